"""A lesson in several parts, of which one is open: the switch between them, and what each shows.

A part is an object of its own with controls, pictures, `compute` and `draw` (`LessonPart`), or the
page itself under another name. The page computes and draws the part that is open, and everything
that belongs to the others is out of sight.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qviz.ui.views.frame import compose
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.widgets import Choice, column_of, show_only, stack


class LessonPart:
    """One part of a lesson.

    keys      names of its fields: a link that names one of them is about this part
    lead, controls, main, side, caption, foot
              what it puts on the page, as for `compose`
    has_code  what opens across the page (the code, the learner's own layer) is about this part
    shown     what its pictures show: one frozen value, or None before the first
    """

    keys: Sequence[str] = ()
    lead: Any = None
    controls: Sequence[Any] = ()
    main: Sequence[Any] = ()
    side: Sequence[Any] = ()
    caption: Any = None
    foot: Any = None
    has_code = True
    shown: Any = None

    def __init__(self, page: LessonPage) -> None:
        self.page = page

    def is_open(self) -> bool:
        return self.page.current is self

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


class PartedLesson(LessonPage):
    """A lesson in parts. `parts` (name → part) is set before `compose_parts` makes the page.

    `part_control` chooses one; `part` is the name of the one that is open; `shared` are controls
    that stand below those of every part.
    """

    shared: Sequence[Any] = ()

    part_control: Any
    parts: Mapping[str, Any]
    # where the page is a part itself
    lead: Any = None
    controls: Sequence[Any] = ()
    main: Sequence[Any] = ()
    side: Sequence[Any] = ()
    caption: Any = None
    foot: Any = None
    has_code = True

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
    def current(self) -> Any:
        return self.parts[self.part]

    def keys_of(self, part: Any) -> Sequence[str]:
        """The names of a part's fields."""
        return part.keys  # type: ignore[no-any-return]

    def fit(self) -> None:
        if self.current is not self:
            self.current.fit()

    def update(self, part: Any = None) -> None:
        """Of the open part."""
        self.show_open()
        super().update(part)

    def show_open(self) -> None:
        """Put on the page what belongs to the open part, and take the rest out of it."""
        for name, boxes in self._of_part.items():
            for box in boxes:
                show_only(box, name == self.part)
        for column, serves in self._columns:
            show_only(column, serves(self.current))

    def _go(self, state: Mapping[str, str]) -> None:
        """A link that names no part is about the one that its names belong to."""
        if "part" not in state:
            named = [
                name for name, part in self.parts.items() if set(state) & set(self.keys_of(part))
            ]
            state = {**({"part": named[0]} if named else {}), **state}
        super()._go(state)

    # ---------------------------------------------------------------- the page

    def compose_parts(self, **frame: Any) -> Any:
        """The page of all parts; `frame` is what they share, as for `compose`."""
        self._of_part: dict[str, list[Any]] = {}
        self._columns: list[tuple[Any, Callable[[Any], bool]]] = []
        slots: dict[str, list[Any]] = {"lead": [], "controls": [], "caption": [], "foot": []}
        for name, part in self.parts.items():
            boxes = {"controls": stack(*part.controls)}
            for slot in ("lead", "caption", "foot"):
                if slot not in frame and getattr(part, slot) is not None:
                    boxes[slot] = stack(getattr(part, slot))
            for slot, box in boxes.items():
                slots[slot].append(box)
            self._of_part[name] = [*boxes.values(), *part.main, *part.side]
        parts = self.parts.values()
        for slot in ("lead", "caption", "foot"):
            if slots[slot] and slot not in frame:
                frame[slot] = stack(*slots[slot])
        frame.setdefault("controls", [self.part_control, *slots["controls"], *self.shared])
        main = [box for part in parts for box in part.main]
        side = [box for part in parts for box in part.side]
        whole = compose(self, main=main, side=side, **frame)
        if slots["lead"]:
            self._columns.append((column_of(whole, "qv-lead"), lambda p: p.lead is not None))
        if slots["caption"]:
            said = column_of(whole, "qv-main").children[-1]
            self._columns.append((said, lambda p: p.caption is not None))
        if not all(part.has_code for part in parts):
            self._columns.append((column_of(whole, "qv-wide"), lambda p: p.has_code))
        return whole
