"""What all lessons share: state, handlers, address, guide, and what happens when something fails.

A lesson brings controls (`add`), `compute` and `draw`. What it shows is one frozen value, `shown`,
which is replaced whole when the next one has been computed. When anything fails, controls and
pictures go back to it, and the page says in words what was wrong.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import Any

from qviz.core.check import unknown
from qviz.ui.views.fields import (
    CellField,
    Field,
    HandlesField,
    OptionField,
    StepField,
    ToggleField,
)
from qviz.ui.views.frame import head_of
from qviz.ui.views.guide_steps import Step
from qviz.ui.views.lessons import COURSE, Lesson
from qviz.ui.views.prediction import Prediction
from qviz.ui.widgets import (
    Address,
    Button,
    Equation,
    Guide,
    MatrixView,
    NumberLine,
    Status,
    TextField,
    Toggle,
    Transport,
    as_address,
    from_address,
)

COMPUTING = "Computing …"
# Errors that a learner's input can cause; anything else is a defect and is raised again.
EXPECTED = (ValueError, TypeError, OSError, ImportError, MemoryError)


def words_of(error: Exception) -> str:
    """An error as the page words it: input errors in their own words, ours as a defect."""
    return str(error) if isinstance(error, EXPECTED) else f"this is a defect of qviz: {error!r}"


class LessonPage:
    """A lesson. `.widget` is the page.

    lesson_number  its number in the course; `lesson` is its entry there
    guide_steps    what to try
    shown          what the pictures show: one frozen value, or None before the first
    fields         name in a link → control
    deeds          name → button, of what a guide can ask for besides controls
    """

    lesson_number: int
    guide_steps: Sequence[Step] = ()

    def __init__(self) -> None:
        self._quiet = False
        self.one_at_a_time = RLock()  # JupyterLab answers controls on another thread than cells
        self.status = Status()
        self.address = Address()
        self.head = head_of(self.lesson)
        self.guide = Guide(
            self.lesson.slug, [(step.title, step.watch) for step in self.guide_steps]
        )
        self.equation: Equation | None = None
        self.prediction: Prediction | None = None
        self.shown: Any = None
        self.fields: dict[str, Field] = {}
        self.deeds: dict[str, Button] = {}
        self.widget: Any = None
        self._first: dict[str, str] = {}  # the state in which the page opens
        self._kept: dict[str, Any] = {}  # fields as they were when all was well
        self._kept_shown: list[tuple[Any, Any]] = []  # parts, and what they showed then
        self._guess: Any = None  # the prediction as it was then
        self._half_drawn: list[Any] = []  # what was being drawn when something failed
        self._parts: list[Any] = []  # the page and those parts of it that show something
        self._problems: list[str] = []
        self._step: Step | None = None  # of the guide, with the state in which it began
        self._began: dict[str, str] = {}
        self._did: set[str] = set()
        self.address.on_ask(self._on_address)
        self.guide.on_step(self._on_guide)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)

    @property
    def lesson(self) -> Lesson:
        return next(one for one in COURSE if one.number == self.lesson_number)

    # ---------------------------------------------------------------- what a lesson brings

    @property
    def current(self) -> Any:
        """What computes and draws now: the page, or its open part."""
        return self

    def fit(self) -> None:
        """Offer the options that fit the present choices; called whenever these may have
        changed."""

    def compute(self) -> Any:
        """Compute the value that the controls ask for. Whatever can fail happens here, before any
        picture changes."""

    def draw(self, shown: Any) -> None:
        """Show a computed value; called again with the last one when something fails."""

    def look(self) -> None:
        """Draw what depends on where the learner is looking, after the fields for that were
        restored."""

    # ---------------------------------------------------------------- controls

    def add(
        self,
        key: str,
        control: Any,
        action: Callable[[], None] | None = None,
        *,
        busy: str = "",
        lights: list[str] | None = None,
        names: Callable[[], Sequence[str]] | None = None,
        looks: bool = False,
        live: Callable[[], bool] = lambda: True,
    ) -> Any:
        """Give a control its name in links, and what it does; without `action` the page computes,
        or looks again where the control is a steps' bar.

        `looks` and `live` are those of Field; `names` what the options are called in a link;
        `lights` are terms of the equation. Returns the control.
        """
        usual: Callable[[], None] = self.update
        if isinstance(control, Toggle):
            self.fields[key], trait = ToggleField(key, control, live=live), "value"
        elif isinstance(control, NumberLine):
            self.fields[key], trait = HandlesField(key, control, looks=looks, live=live), "values"
        elif isinstance(control, Transport):
            self.fields[key], trait = StepField(key, control, live=live), "index"
            usual = self.look
        else:
            made = OptionField(key, control, names=names, looks=looks, live=live)
            self.fields[key], trait = made, "index"
        self.on_change(control, trait, action or usual, busy=busy, lights=lights)
        return control

    def add_cell(
        self,
        key: str,
        views: Sequence[MatrixView],
        cell: Callable[[], tuple[int, int]],
        pointed: Callable[[MatrixView], None],
        *,
        view: Callable[[], MatrixView] | None = None,
        place: Callable[[int], int] = lambda column: column,
        live: Callable[[], bool] = lambda: True,
    ) -> None:
        """Let the learner point at a weight of `views`, and hold it: `pointed` is told in which.

        `cell` is the weight that the page is about, `view` the picture in which it is held now
        (the first of `views`), `place` as in CellField.
        """
        self.fields[key] = CellField(key, view or (lambda: views[0]), cell, place, live=live)
        for one in views:
            for trait in ("cursor", "pinned"):
                self.on_change(one, trait, partial(pointed, one))

    def on_change(
        self,
        control: Any,
        trait: str,
        action: Callable[[], None],
        busy: str = "",
        lights: list[str] | None = None,
    ) -> None:
        """Do `action` when the learner changes the control; `lights` are terms of the equation."""
        handle = self.handler(action, busy)

        def changed(change: Any) -> None:
            with self.one_at_a_time:
                if self._quiet:
                    return
                if handle(change) and lights and self.equation is not None:
                    self.equation.active = lights

        control.observe(changed, trait)

    def on_press(
        self,
        button: Button,
        action: Callable[[], None],
        busy: str = "",
        *,
        field: TextField | None = None,
        deed: str = "",
    ) -> None:
        """Do `action` for a button, and for Enter in the field beside it. `deed` is its name for
        the guide."""
        if deed:
            self.deeds[deed] = button

            def act() -> None:
                action()
                self._did.add(deed)

        handle = self.handler(act if deed else action, busy)
        button.on_click(handle)
        if field is not None:
            field.on_submit(handle)

    def handler(self, action: Callable[[], None], busy: str = "") -> Callable[[Any], bool]:
        """The action for a control: what is wrong with the input is said in the page in words,
        and controls and pictures go back to what was last computed, so that they agree."""

        def handle(_event: Any) -> bool:
            with self.one_at_a_time:
                return self.do(action, busy)

        return handle

    def do(self, action: Callable[[], None], busy: str = "") -> bool:
        """Do it, or restore the earlier state and say why; returns whether it was done."""
        if busy:
            self.status.busy(busy)
        try:
            self.whole(action)
        except Exception as error:
            self.status.show_error(words_of(error))
            if not isinstance(error, EXPECTED):
                raise
            return False
        return True

    def whole(self, action: Callable[[], None]) -> None:
        """Do it completely or not at all: after an exception the page is as it was."""
        self._problems = []
        try:
            action()
        except Exception:
            self._restore()
            raise
        self._keep()
        if self._problems:
            self.status.show_error("; ".join(self._problems))
        else:
            self.status.clear()

    def problem(self, text: str) -> None:
        """Say that something is missing from a page that is otherwise complete."""
        self._problems.append(text)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Set controls from Python without each change starting a computation."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    # ---------------------------------------------------------------- what is shown

    def update(self, part: Any = None) -> None:
        """Compute what the controls of the page, or of a part of it, ask for, and show it."""
        part = self.current if part is None else part
        with self.quietly():
            self.fit()
        fresh = part.compute()
        self.show(part, fresh)

    def show(self, part: Any, fresh: Any) -> None:
        """Draw a computed value of the page or a part of it; it is `shown` from then on."""
        if part not in self._parts:
            self._parts.append(part)
        self._half_drawn.append(part)
        part.draw(fresh)
        self._half_drawn.remove(part)
        part.shown = fresh

    def _keep(self) -> None:
        """Remember the present state: a later failure returns to it, and the address shows it."""
        self._kept = {key: field.keep() for key, field in self.fields.items()}
        self._kept_shown = [(part, part.shown) for part in self._parts]
        if self.prediction is not None:
            self._guess = self.prediction.keep()
        self._note_first()
        self.address.state = as_address(self.state)
        if self.prediction is not None:
            self.head.guessed = self.head.guessed or self.prediction.guessed
        self._tick()

    def _note_first(self) -> None:
        for key, field in self.fields.items():
            if field.live():
                self._first.setdefault(key, field.text)

    def _restore(self) -> None:
        broken, self._half_drawn = self._half_drawn, []
        with self.quietly():
            for key, kept in self._kept.items():
                self.fields[key].back(kept)
            again = [
                (p, last) for p, last in self._kept_shown if p in broken or p.shown is not last
            ]
            for part, last in again:
                part.shown = None  # nothing on screen can be relied upon
                part.draw(last)
                part.shown = last
            for key, kept in self._kept.items():  # drawing moves cursors and steps
                self.fields[key].back(kept)
            if again and self.prediction is not None and self._guess is not None:
                self.prediction.back(self._guess)
            for part, _ in again:
                part.look()

    # ---------------------------------------------------------------- the state, and links to it

    @property
    def whole_state(self) -> dict[str, str]:
        """Every field that is active now, by its name in a link."""
        return {key: field.text for key, field in self.fields.items() if field.live()}

    @property
    def state(self) -> dict[str, str]:
        """What differs from the page as it opens: what a link has to say."""
        return {k: text for k, text in self.whole_state.items() if text != self._first.get(k)}

    def go(self, state: Mapping[str, str]) -> None:
        """Set the page to a state as links carry it: what it does not name is as the page opens.

        ValueError for names and values that the page does not have; it is then as it was.
        """
        self.whole(lambda: self._go(state))

    def _go(self, state: Mapping[str, str]) -> None:
        for key in state:
            if key not in self.fields:
                raise ValueError(unknown("name in the address", key, list(self.fields)))
        with self.quietly():
            for key, field in self.fields.items():
                if not field.looks:
                    self._set(key, field, state)
                    self.fit()
                    self._note_first()
        self._arrive()
        for key, field in self.fields.items():  # each does what it does for the learner
            if field.looks:
                self._set(key, field, state)

    def _arrive(self) -> None:
        """Show what the fields now ask for."""
        self.update()

    def _set(self, key: str, field: Field, state: Mapping[str, str]) -> None:
        text = state.get(key)
        if text is not None:
            if not field.live():
                raise ValueError(f"{key}={text} in the address belongs to a part that is not open")
            field.set(text)
            return
        first = self._first.get(key)  # on another layer it may not be offered: what is, stays
        if first is not None and field.live() and field.offers(first) and field.text != first:
            field.set(first)

    def _on_address(self, text: str) -> None:
        with self.one_at_a_time:
            self.do(lambda: self._go(from_address(text)), COMPUTING)

    # ---------------------------------------------------------------- the guide

    def _on_guide(self, index: int) -> None:
        with self.one_at_a_time:
            step = self.guide_steps[index]
            self._step = None
            self.do(lambda: self._go(step.start), COMPUTING)
            self._step, self._began, self._did = step, self.whole_state, set()
            self.guide.active = index

    def _tick(self) -> None:
        step = self._step
        if step is not None and step.met(self.whole_state, self._began, self._did):
            self.guide.tick(self.guide_steps.index(step))
