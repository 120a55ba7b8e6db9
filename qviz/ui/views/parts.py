"""A lesson in several parts, of which one is open: the switch between them, and what each shows.

A part is an object of its own with controls, pictures, `compute` and `draw` (`LessonPart`), or the
page itself under another name. The page computes and draws the part that is open, and everything
that belongs to the others is out of sight.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from qviz.ui.views.frame import compose
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.widgets import Choice, column_of, show_only, stack


class Slots:
    """What a part of a lesson puts on the page.

    keys      names of its fields: a link that names one of them is about this part
    lead, controls, main, side, caption, foot
              as for `compose`
    also      boxes of the page that this part shows, and others too, but not all
    has_lead, has_code, has_own
              whether a lead that the parts share, the code and the learner's own layer are about
              this part
    """

    keys: Sequence[str] = ()
    lead: Any = None
    controls: Sequence[Any] = ()
    main: Sequence[Any] = ()
    side: Sequence[Any] = ()
    caption: Any = None
    foot: Any = None
    also: Sequence[Any] = ()
    has_lead = True
    has_code = True
    has_own = True


class LessonPart(Slots):
    """One part of a lesson. `shown` is what its pictures show: one frozen value, or None before
    the first."""

    shown: Any = None

    def __init__(self, page: Any) -> None:
        self.page = page

    def is_open(self) -> bool:
        return self.page.open_part is self

    def add(self, key: str, control: Any, action: Any = None, **more: Any) -> Any:
        """Give a control its name in links while this part is open; see `LessonPage.add`."""
        live = more.pop("live", None)
        open_now = self.is_open if live is None else lambda: self.is_open() and live()
        return self.page.add(key, control, action or self.update, live=open_now, **more)

    def update(self) -> None:
        """Compute what its controls ask for, and show it."""
        self.page.update(self)

    def fit(self) -> None:
        """Offer what fits what was chosen so far."""

    def compute(self) -> Any:
        """The value that its controls ask for; what can fail is in here."""

    def draw(self, shown: Any) -> None:
        """Show a computed value."""

    def look(self) -> None:
        """Draw what depends on where one looks."""


class PartedLesson(Slots, LessonPage):
    """A lesson in parts. `parts` (name → part) is set before `compose_parts` makes the page.

    `part_control` chooses one; `part` is the name of the one that is open. What is computed and
    drawn is that part, where the lesson's `current` says nothing else. The page may be a part of
    its own lesson.
    """

    part_control: Any
    parts: Mapping[str, Any]

    def add_parts(self, *names: str) -> None:
        """The control for the parts of these names; the parts themselves follow in `parts`."""
        self.parts = {}
        self.part_control = self.add(
            "part", Choice("Part", list(names), kind="segmented"), busy=COMPUTING
        )

    @property
    def part(self) -> str:
        return str(self.part_control.value)

    @property
    def open_part(self) -> Any:
        return self.parts[self.part]

    @property
    def current(self) -> Any:
        return self.open_part

    def keys_of(self, part: Any) -> Sequence[str]:
        """The names of a part's fields."""
        return part.keys  # type: ignore[no-any-return]

    def fit(self) -> None:
        if self.open_part is not self:
            self.open_part.fit()

    def update(self, part: Any = None) -> None:
        """Of the open part."""
        self.show_open()
        super().update(part)

    def show_open(self) -> None:
        """Put on the page what belongs to the open part, and take the rest out of it."""
        here = self._of_part[self.part]
        for boxes in self._of_part.values():
            for box in boxes:
                show_only(box, box in here)
        for column, serves in self._columns:
            show_only(column, serves(self.open_part))

    def _restore(self) -> None:
        super()._restore()
        self.show_open()  # the part may have been changed by what failed

    def _go(self, state: Mapping[str, str]) -> None:
        """A link that names no part is about the one that its names belong to."""
        if "part" not in state:
            named = [
                name for name, part in self.parts.items() if set(state) & set(self.keys_of(part))
            ]
            state = {**({"part": named[0]} if named else {}), **state}
        super()._go(state)

    # ---------------------------------------------------------------- the page

    def compose_parts(
        self, *, first: Sequence[Any] = (), common: Sequence[Any] = (), **frame: Any
    ) -> Any:
        """The page of all parts.

        first, common
                controls above and below those of the parts
        frame   what the parts share, as for `compose`; `main` and `side` may give another order,
                and `caption=None` says that captions stand among the parts' pictures
        """
        slots: dict[str, list[Any]] = {"lead": [], "controls": [], "caption": [], "foot": []}
        self._of_part: dict[str, list[Any]] = {}
        for name, part in self.parts.items():
            boxes = {"controls": stack(*part.controls)}
            for slot in ("lead", "caption", "foot"):
                if slot not in frame and getattr(part, slot) is not None:
                    boxes[slot] = stack(getattr(part, slot))
            for slot, box in boxes.items():
                slots[slot].append(box)
            self._of_part[name] = [*boxes.values(), *part.main, *part.side, *part.also]
        shares_lead = "lead" in frame
        for slot in ("lead", "caption", "foot"):
            if slots[slot]:
                frame[slot] = stack(*slots[slot])
        for slot in ("main", "side"):
            frame.setdefault(slot, [box for p in self.parts.values() for box in getattr(p, slot)])
        frame.setdefault("controls", [self.part_control, *first, *slots["controls"], *common])
        whole = compose(self, **frame)
        self._columns = self._shared_columns(whole, frame, shares_lead)
        return whole

    @staticmethod
    def _shared_columns(
        whole: Any, frame: Mapping[str, Any], shares_lead: bool
    ) -> list[tuple[Any, Callable[[Any], bool]]]:
        """Where parts stand together, and whether a part has something there."""
        found: list[tuple[Any, Callable[[Any], bool]]] = []
        if "lead" in frame:
            found.append((
                column_of(whole, "qv-lead"),
                lambda p: p.has_lead if shares_lead else p.lead is not None,
            ))  # fmt: skip
        if frame.get("caption") is not None:
            said = column_of(whole, "qv-main").children[-1]
            found.append((said, lambda p: p.caption is not None))
        panels = [f"has_{name}" for name in ("own", "code") if frame.get(name)]
        if panels:
            wide = column_of(whole, "qv-wide")
            for panel, name in zip(wide.children[-len(panels) :], panels, strict=True):
                found.append((panel, partial(_flag, name)))
            if len(wide.children) == len(panels):
                found.append((wide, lambda p: any(getattr(p, name) for name in panels)))
        return found


def _flag(name: str, part: Any) -> bool:
    return bool(getattr(part, name))
