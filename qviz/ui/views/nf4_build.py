"""NF4's table, built on the steps' bar: one level more with each step.

All numbers are those of `qviz.study.nf4_levels`; every step's words and pictures are sent ahead.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from qviz.core.nearest import midpoints
from qviz.methods.nf4 import OFFSET, normal_levels
from qviz.study.nf4_levels import NEGATIVE, PARTS, Made, construction
from qviz.ui.figures.nf4 import quantiles
from qviz.ui.views.fields import StepField
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.nf4_words import BUILD_EQUATION, BUILD_SPOKEN, BUILD_TERMS, built
from qviz.ui.views.parts import LessonPart
from qviz.ui.widgets import (
    Chart,
    Equation,
    NumberLine,
    Readout,
    Table,
    Transport,
    figures_row,
    number,
    section,
    stack,
)

FIRST_LIT = ["delta"]
LIT = ["p", "delta", "i", "n", "z", "phi", "v", "zmax"]
LAST_LIT = ["m"]


class BuildPart(LessonPart):
    """Pictures, table and the steps' bar of the first part. None of it depends on a layer."""

    keys = ("step",)
    has_lead = False

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.made = construction()
        self.largest = float(normal_levels().quantile[-1])
        self.transport = Transport(len(self.made) + 2, label="step", rate=1.0)
        page.fields["step"] = StepField("step", self.transport, live=self.is_open)
        page.on_change(self.transport, "index", lambda: None)
        self.chart = Chart("The normal distribution, cut into slices", height=210)
        self.line = NumberLine("The levels v so far", height=64)
        self.equation = Equation(BUILD_EQUATION, BUILD_TERMS, [], aria=BUILD_SPOKEN)
        self.upper, self.lower = Table("Above zero"), Table("Zero and below")
        self.numbers = Readout("This step")
        tie_frames(
            self.transport,
            self.chart,
            self.line,
            self.equation,
            self.upper,
            self.lower,
            self.numbers,
        )
        self.foot = self.transport
        self.main = [
            section("Quantiles of the normal distribution", self.chart, self.line),
            section(
                "The table so far", figures_row(narrow(self.upper), narrow(self.lower), wide=True)
            ),
        ]
        self.side = [section("How a level is made", self.equation, self.numbers)]
        self._draw()

    def _draw(self) -> None:
        made, steps = self.made, self._steps()
        texts = [built(now, len(past), self.largest) for past, now in steps]
        self.transport.set_steps(
            len(steps), events={"half": [1, 9, 10, len(steps) - 1]}, captions=texts
        )
        self.chart.set_figures(quantiles(made), summary=texts)
        shown = [[one.level for one in (*past, *([now] if now else []))] for past, now in steps]
        self.line.set_line((-1.05, 1.05))
        self.line.set_levels(
            shown, [f"{len(levels)} of {len(made)} levels on the line" for levels in shown]
        )
        self.equation.actives = [
            FIRST_LIT if not past and now is None else LAST_LIT if now is None else
            [*LIT, *(["sign"] if now.half == NEGATIVE else [])]
            for past, now in steps
        ]  # fmt: skip
        for table, codes in ((self.upper, range(15, 7, -1)), (self.lower, range(7, -1, -1))):
            table.set_rows(["p", "z", "v"], [_rows(codes, past, now) for past, now in steps])
        self.numbers.set_rows(self._numbers())

    def _steps(self) -> list[tuple[Sequence[Made], Made | None]]:
        """For each step, the levels before it and the one it makes."""
        made = self.made
        return [((), None), *((made[:i], made[i]) for i in range(len(made))), (made, None)]

    def _numbers(self) -> list[Any]:
        """The arithmetic of each step, in the symbols of the equation."""
        steps = self._steps()

        def each(text: Callable[[Made], str], last: str = "") -> list[str]:
            ends = ["", last]
            return [text(now) if now else ends[bool(past)] for past, now in steps]

        levels = normal_levels().levels
        low, high = (number(float(bound)) for bound in midpoints(levels)[[0, -1]])
        return [
            ("δ", number(OFFSET, 7), ""),
            ("n, equal slices to ½", each(lambda one: str(PARTS[one.half])), ""),
            ("i", each(lambda one: str(one.index)), ""),
            ("p", each(_share), ""),
            ("z", each(lambda one: number(one.quantile, 6)), ""),
            ("z_{max} = Φ⁻¹(δ)", number(self.largest, 6), ""),
            ("v = z ÷ z_{max}", each(lambda one: number(one.level, 6)), "codes"),
            ("v, all digits of float32", each(lambda one: number(one.level, 9)), "codes"),
            ("bounds m", each(lambda one: "", f"{low} … {high}"), ""),
        ]  # fmt: skip


def _share(one: Made) -> str:
    """p with the numbers of its formula."""
    n = PARTS[one.half]
    way = f"{number(OFFSET, 7)} − {one.index}·({number(OFFSET, 7)} − ½)/{n}"
    return f"{way} = {number(one.p, 5)}"


def narrow(table: Table) -> Any:
    """A table with little room between its columns, as it has at the side of a page."""
    box = stack(table)
    box.add_class("qv-side")
    return box


def _rows(codes: Iterable[int], past: Sequence[Made], now: Made | None) -> list[Any]:
    """A row for each code; rows of levels still to come are empty."""
    there = {one.code: one for one in (*past, *([now] if now else []))}
    return [
        (
            f"code {code}",
            _cells(there[code]) if code in there else [""] * 3,
            [0, 1, 2] if now is not None and now.code == code else [],
        )
        for code in codes
    ]


def _cells(one: Made) -> list[str]:
    return [number(one.p), number(one.quantile), number(one.level)]
