"""What all lessons share: a page, its controls' handlers, and what happens when something fails.

Errors of the learner's input appear in the page in words, and the page keeps working.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from qviz.ui.views.lessons import LESSONS, Lesson
from qviz.ui.widgets import Equation, Status

COMPUTING = "Computing …"
# What a handler may meet in the learner's input; anything else is a defect and stays loud.
EXPECTED = (ValueError, TypeError, OSError, ImportError, MemoryError)


class LessonPage:
    """A lesson. `.widget` is the page.

    lesson_number  its number in LESSONS
    """

    lesson_number: int

    def __init__(self) -> None:
        self._quiet = False
        self.one_at_a_time = RLock()  # JupyterLab answers controls on another thread than cells
        self.status = Status()
        self.equation: Equation | None = None
        self.widget: Any = None

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)

    @property
    def lesson(self) -> Lesson:
        return next(one for one in LESSONS if one.number == self.lesson_number)

    def _restore(self) -> None:
        """Called when a handler failed: go back to what was last computed."""

    # ---------------------------------------------------------------- handlers

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
                if lights and self.equation is not None:
                    self.equation.active = lights
                handle(change)

        control.observe(changed, trait)

    def handler(self, action: Callable[[], None], busy: str = "") -> Callable[[Any], None]:
        """The action for a control: what is wrong with the input is said in the page in words,
        and controls and pictures go back to what was last computed, so that they agree."""

        def handle(_event: Any) -> None:
            with self.one_at_a_time:
                self._act(action, busy)

        return handle

    def _act(self, action: Callable[[], None], busy: str) -> None:
        if busy:
            self.status.busy(busy)
        try:
            action()
        except Exception as error:
            self._restore()
            if isinstance(error, EXPECTED):
                self.status.show_error(str(error))
            else:
                self.status.show_error(f"this is a defect of qviz: {error!r}")
                raise
        else:
            self.status.clear()

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Set controls from Python without each change starting a computation."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before
