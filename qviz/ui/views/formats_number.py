"""Lesson 2, first part: one number in every format.

The format slider moves bits, line, tables, caption and code in the browser; a pressed bit or a
typed number asks the kernel, which works out the number in all formats at once.
"""

from dataclasses import dataclass
from typing import Any

from qviz.study.number_formats import TITLES, Followed, Landing, read_number, runs, value_of
from qviz.ui.views.fields import Field
from qviz.ui.views.formats_block import caption_card, tight
from qviz.ui.views.formats_spending import ANSWERS, ASKED, SPENDS, spends_row, verdict, where_spent
from qviz.ui.views.formats_words import (
    BEYOND,
    EQUATION,
    ROUNDINGS,
    SPOKEN,
    TERMS,
    groups,
    lit_terms,
    notes,
    number_rows,
    sentence,
    table_row,
)
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.snippet import call
from qviz.ui.widgets import (
    Bits,
    Caption,
    Choice,
    Equation,
    FormatLine,
    Readout,
    Table,
    TextField,
    details,
    exactly,
    link,
    section,
)

NAMES = list(TITLES)
FIRST = "0.1"


@dataclass(frozen=True)
class Shown:
    """A number, and what each format of the page makes it."""

    followed: Followed
    rounding: str
    saturate: bool
    landings: tuple[Landing, ...]


class NumberPart(LessonPart):
    """Controls and pictures of the first part: one number in every format."""

    keys = ("x", "beside", "rounding", "beyond", "view")
    has_own = False
    shown: Shown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.followed = read_number(FIRST)
        self._build_controls()
        self._build_views()
        self._wire()
        self.controls = [
            self.text,
            self.beside_control,
            details("More", self.rounding_control, self.beyond_control),
            self.prediction.box,
        ]
        self.main = [
            section("Its bits", self.bits),
            caption_card(self.caption),
            section("All numbers of the format, and of a second one", self.line),
            section("", tight(self.table)),
            section("Where a format spends its values", self.spent, tight(self.spends)),
        ]
        self.side = [section("From bits to a number", self.equation, self.readout)]

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        self.text = TextField(
            "A number to follow",
            FIRST,
            description="Also 1/3, 2^-24, inf, nan, or a code: fp16:0x3c00",
        )
        self.beside_control = Choice("Compare with", list(TITLES.values()), NAMES.index("int8"))
        self.rounding_control = Choice("Rounded", list(ROUNDINGS.values()))
        self.beyond_control = Choice("Numbers that are too large", list(BEYOND.values()))
        self.add("rounding", self.rounding_control, busy=COMPUTING, names=lambda: list(ROUNDINGS))
        self.add("beyond", self.beyond_control, busy=COMPUTING, names=lambda: list(BEYOND))
        self.add("beside", self.beside_control, lambda: None, names=lambda: NAMES, looks=True)
        self.page.fields["x"] = NumberField(self)
        self.prediction = Prediction(
            f"Of all the numbers that {TITLES[ASKED]} can represent, how many lie in the range "
            "from −1 to 1?",
            list(ANSWERS),
            verdict,
            self._draw_spends,
        )
        self.page.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_views(self) -> None:
        """And what the browser does with them alone."""
        titles = list(TITLES.values())
        self.bits = Bits("Bits of the code", [groups(name) for name in NAMES])
        self.line = FormatLine(
            "All numbers of two formats", titles,
            [[(r.start, r.spacing, r.count) for r in runs(name)] for name in NAMES],
        )  # fmt: skip
        self.table = Table("The same number in every format")
        self.spends = Table("How the formats spend their codes")
        self.spent = Caption()
        self.readout = Readout("The chosen format")
        self.equation = Equation(EQUATION, TERMS, [], aria=SPOKEN, calm=True)
        self.caption = Caption()
        control = self.page.format_control
        tie_frames(
            control, self.bits, self.line, self.readout, self.equation, self.caption, self.spent,
            self.page.code,
        )  # fmt: skip
        link(control, "index", (self.table, "row"), (self.spends, "row"))
        link(self.beside_control, "index", (self.line, "beside"))
        self._draw_spends()

    def _wire(self) -> None:
        page = self.page
        page.on_change(self.bits, "pressed", self._pressed)
        page.on_change(self.text, "value", self._typed)
        self.text.on_submit(page.handler(self._entered))
        page.fields["view"] = ViewField(self.line)
        page.on_change(self.line, "view", self.prediction.moved)
        page.on_change(self.line, "scale", lambda: None)

    # ---------------------------------------------------------------- the number

    def follow(self, followed: Followed) -> None:
        """Follow another number from now on."""
        self.followed = followed
        with self.page.quietly():
            self.text.value = followed.text

    def _pressed(self) -> None:
        frame, code, _ = self.bits.pressed
        name = NAMES[frame]
        self.follow(Followed(value_of(name, code), (name, code)))
        self.update()

    def _typed(self) -> None:
        """While somebody types: text that is not yet a number changes nothing."""
        try:
            followed = read_number(self.text.value)
        except ValueError:
            return
        self.followed = followed
        self.update()

    def _entered(self) -> None:
        self.follow(read_number(self.text.value))
        self.update()

    # ---------------------------------------------------------------- computing and drawing

    def compute(self) -> Shown:
        """The number in every format; all of it is sent ahead."""
        rounding = list(ROUNDINGS)[int(self.rounding_control.index)]
        saturate = list(BEYOND)[int(self.beyond_control.index)] == "last"
        landings = tuple(
            self.followed.land(name, rounding=rounding, saturate=saturate) for name in NAMES
        )
        return Shown(self.followed, rounding, saturate, landings)

    def draw(self, shown: Shown) -> None:
        landings = shown.landings
        codes = [-1 if at.code is None else at.code for at in landings]
        said = [notes(at.format, at.code) for at in landings]
        self.bits.set_codes(codes, said)
        self.line.set_number(shown.followed.value, [at.value for at in landings])
        self.table.set_rows(
            ["value", "relative error", "what happened", "code"],
            [[(TITLES[at.format], table_row(at), []) for at in landings]],
        )
        self.readout.set_rows(number_rows(list(landings)))
        self.equation.actives = [lit_terms(at.format, at.code) for at in landings]
        self.caption.set_texts([sentence(at, shown.rounding) for at in landings])
        self.page.code.set_texts([self._snippet(shown, name) for name in NAMES])

    def _draw_spends(self) -> None:
        revealed = self.prediction.revealed
        self.spends.set_rows(
            SPENDS, [[(TITLES[name], spends_row(name, revealed), []) for name in NAMES]]
        )
        self.spent.set_texts([where_spent(name, revealed) for name in NAMES])

    def _snippet(self, shown: Shown, name: str) -> str:
        """The library calls behind the page at this moment."""
        made = call("read_number", shown.followed.text)
        landed = call("x.land", name, rounding=shown.rounding, saturate=shown.saturate)
        return (
            f"from qviz.study.number_formats import read_number\n\nx = {made}\n"
            f"landing = {landed}\nprint(landing.value, landing.fate)"
        )


class NumberField(Field):
    """The number that is followed, as it is typed."""

    looks = False

    def __init__(self, part: NumberPart) -> None:
        self._part, self.control, self.live = part, part.text, part.is_open

    @property
    def text(self) -> str:
        return self._part.followed.text

    def offers(self, text: str) -> bool:
        return True

    def set(self, text: str) -> None:
        try:
            followed = read_number(text)
        except ValueError as error:
            raise ValueError(f"x in the address: {error}") from None
        self._part.followed = followed
        self.control.value = followed.text  # and the page follows, as for who types it

    def keep(self) -> Any:
        return self._part.followed

    def back(self, kept: Any) -> None:
        """What was typed stays: the error is about it."""
        self._part.followed = kept


class ViewField(Field):
    """Which part of the line is seen, as "from, to", and "even" before it on the linear scale."""

    looks = True

    def __init__(self, line: FormatLine) -> None:
        self.control = line
        self._whole = list(line.view)

    @staticmethod
    def live() -> bool:
        return True

    @property
    def text(self) -> str:
        ends = ", ".join(exactly(v).replace("−", "-") for v in self.control.view)
        even = "even " if self.control.scale == "linear" else ""
        return f"{even}{ends}" if even or self.control.view != self._whole else ""

    def offers(self, text: str) -> bool:
        return True

    def set(self, text: str) -> None:
        plain = text.removeprefix("even").strip()
        self.control.scale = "linear" if text.startswith("even") else "log"
        try:
            low, high = (float(v) for v in plain.split(",")) if plain else self._whole
            self.control.look(low, high)
        except ValueError as error:
            raise ValueError(
                f"view={text} in the address is not a part of the line ({error}): give two "
                "numbers, such as -1, 1"
            ) from None

    def keep(self) -> Any:
        return list(self.control.view), self.control.scale

    def back(self, kept: Any) -> None:
        self.control.view, self.control.scale = kept
