"""Equal bits: every granularity at every bit-width, against the bits that it really costs.

All budgets are computed and sent ahead, so dragging the budget needs no kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qviz.study.granularity import NF4_BLOCKS, Point, best_within, equal_bits, shares_won
from qviz.ui.figures.granularity import behind_chart, equal_bits_chart
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.granularity_budget_words import (
    OF_OUTPUT,
    OF_WEIGHTS,
    Budgeted,
    budget_rows,
    budget_sentence,
    standing,
    tally,
)
from qviz.ui.views.granularity_outlier import BITS, GROUPS
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.scale_sharing import MATRIX, ROW, sharing
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
    Choice,
    Slider,
    Table,
    Text,
    figures_row,
    number,
    percent,
    section,
    stack,
)

#: Where granularities become affordable: a row of 1024 at 1/64 above whole bits, a group of 256 at
#: 1/16, and so on to a group of 16 at one bit.
PARTS_OF_A_BIT = (1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
BUDGETS = tuple(bits + part for bits in range(2, 8) for part in PARTS_OF_A_BIT)
FIRST_BUDGET = BUDGETS.index(4.5)  # what articles give for 4 bits in groups of 32
BLOCKS = (4096, 1024, 512, 256, 128, 64, 32)
MEASURED = 4 << 20  # weights; of a larger layer as many whole rows as make up so many


@dataclass(frozen=True, eq=False)
class Shown:
    """What the part shows: all points of a layer, and which error they are judged by.

    rows    how many rows were measured, all of them but in a large layer
    labels  granularities, the coarsest first; finest: the smallest group
    output  whether the error is that of the layer's output
    """

    opened: Opened
    options: Mapping[str, Any]
    rows: int
    points: tuple[Point, ...]
    labels: tuple[str, ...]
    finest: str
    output: bool

    def error(self, point: Point) -> float:
        if not self.output:
            return point.error
        assert point.output_error is not None
        return point.output_error

    def at(self, budget: float) -> Budgeted:
        """What fits into a budget."""
        best = best_within(self.points, budget, self.error)
        standings = tuple(standing(point, self.error(point)) for point in best.values())
        ahead = next(
            (p for p in self.points if p.cost > budget
             and (not standings or self.error(p) < standings[0].error)), None,
        )  # fmt: skip
        return Budgeted(
            budget, OF_OUTPUT if self.output else OF_WEIGHTS, standings, self.finest,
            None if ahead is None else standing(ahead, self.error(ahead)),
        )  # fmt: skip

    def wins(self) -> dict[str, float]:
        """Which share of all budgets, from the first to the last, each granularity wins."""
        return shares_won(self.points, BUDGETS[0], BUDGETS[-1], self.error)


class BudgetPart(LessonPart):
    """Controls, chart and words of the part."""

    keys = ("budget", "error")

    shown: Shown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.budget_control = self.add(
            "budget", Slider("Budget", [f"{number(b)} bits" for b in BUDGETS], FIRST_BUDGET),
            self.look, looks=True,
        )  # fmt: skip
        self.error_control = self.add(
            "error", Choice("Error of the", [OF_WEIGHTS, OF_OUTPUT], kind="segmented")
        )
        self.chart = Chart("Error against true bits per weight", height=360)
        self.behind = Chart("How far each is behind the best within each budget", height=360)
        self.table = Table("The best choice of each within the budget")
        self.note = Text("", role="wait")
        self.caption = Caption()
        tie_frames(self.budget_control, self.chart, self.behind, self.table, self.caption)
        self.controls = [self.budget_control, self.error_control]
        said = stack(self.caption)
        said.add_class("qv-caption-row")
        charts = figures_row(
            stack(Text(self.chart.label, "h3"), self.chart),
            stack(Text(self.behind.label, "h3"), self.behind),
            wide=True,
        )
        self.main = [
            section("What smaller groups cost", charts, said, self.note),
            section("", self.table),
        ]

    def fit(self) -> None:
        there = self.page.has_inputs
        self.error_control.disabled = not there
        if not there:
            self.error_control.index = 0

    def look(self) -> None:
        """Nothing here waits for the kernel: chart, table and words are sent ahead."""

    def units(self, columns: int) -> list[str]:
        fitting = [g for g in GROUPS if g < columns and columns % g == 0]
        return [MATRIX, ROW, *(f"group of {g}" for g in fitting)]

    def compute(self) -> Shown:
        opened, options, last = self.page.opened, self.page.scheme, self.shown
        output = self.error_control.index == 1
        labels = self.units(opened.weight.shape[1])
        if last is not None and last.opened is opened and last.options == options and (
            not output or last.points[0].output_error is not None
        ):  # fmt: skip
            points, rows = last.points, last.rows
        else:
            weight = some_rows(opened.weight).float()
            rows = weight.shape[0]
            points = equal_bits(
                weight, {label: sharing(label) for label in labels}, BITS, blocks=BLOCKS,
                calibration=self.page.calibration() if self.page.has_inputs else None, **options,
            )  # fmt: skip
        return Shown(opened, options, rows, points, (*labels, NF4_BLOCKS), labels[-1], output)

    def draw(self, shown: Shown) -> None:
        facts = [shown.at(budget) for budget in BUDGETS]
        curves: dict[str, list[tuple[float, float, str]]] = {label: [] for label in shown.labels}
        for point in shown.points:
            what = f"{point.label}{f' of {point.size}' if point.label == NF4_BLOCKS else ''}"
            curves[point.label].append(
                (point.cost, shown.error(point), f"{what}, {point.bits}-bit codes")
            )
        firsts = [one.standings[0] if one.standings else None for one in facts]
        self.chart.set_figures(
            equal_bits_chart(
                curves, BUDGETS, [None if w is None else (w.cost, w.error) for w in firsts]
            ),
            summary=[
                f"Error of the {facts[i].what} against true bits per weight for "
                f"{', '.join(shown.labels)}. Within {number(budget)} bits "
                + ("there is nothing" if w is None else
                   f"{w.label} with {w.bits}-bit codes is closest, {percent(w.error)}")
                for i, (budget, w) in enumerate(zip(BUDGETS, firsts, strict=True))
            ],
        )  # fmt: skip
        first = next(iter(shown.wins()), shown.finest)
        told = dict.fromkeys((MATRIX, ROW, first, shown.finest))
        behind = {label: [_behind(one, label) for one in facts] for label in told}
        self.behind.set_figures(
            behind_chart(BUDGETS, behind, shown.finest, first),
            summary=[
                f"Within {number(budget)} bits, times the error of the best: "
                + ", ".join(
                    f"{label} {number(v[i] or 0.0, 3)}" for label, v in behind.items() if v[i]
                )
                for i, budget in enumerate(BUDGETS)
            ],
        )
        self.table.set_rows(
            ["code bits", "scale bits", "true bits", "off by", "× best"],
            [budget_rows(one, shown.labels) for one in facts],
        )
        self.caption.set_texts([budget_sentence(one) for one in facts])
        whole = shown.opened.weight.shape[0]
        some = "" if shown.rows == whole else (
            f" This layer is large, so {shown.rows} of its {whole} rows were measured."
        )  # fmt: skip
        self.note.text = tally(shown.wins(), shown.finest) + some
        self._draw_code(shown)

    def _draw_code(self, shown: Shown) -> None:
        layer = call("qviz.load_layer", shown.opened.source, shown.opened.layer)
        rows = "" if shown.rows == shown.opened.weight.shape[0] else (
            "\nweight = some_rows(weight)"
        )  # fmt: skip
        units = {label: Name(f"sharing({label!r})") for label in shown.labels[:-1]}
        options: dict[str, Any] = {"blocks": BLOCKS, **shown.options}
        if shown.points[0].output_error is not None:
            source, name = shown.opened.source, shown.opened.layer
            options["calibration"] = Name(call("qviz.load_calibration", source, name))
        made = call("equal_bits", Name("weight"), units, list(BITS), **options)
        key = "output_error" if shown.output else "error"
        self.page.code.set_texts(
            f"import qviz, torch\nfrom qviz.study.granularity import best_within, equal_bits\n"
            f"from qviz.ui.views.granularity_budget import some_rows\n"
            f"from qviz.ui.views.scale_sharing import sharing\n\n"
            f"weight = {layer}.float(){rows}\npoints = {made}\n"
            f"best = best_within(points, {BUDGETS[FIRST_BUDGET]}, lambda point: point.{key})"
        )


def _behind(facts: Budgeted, label: str) -> float | None:
    """A granularity's error within a budget, as a multiple of the best one's. None where nothing of
    it fits the budget, or where the best has no error."""
    mine = next((one for one in facts.standings if one.label == label), None)
    if mine is None or not facts.standings[0].error:
        return None
    return mine.error / facts.standings[0].error


def some_rows(weight: torch.Tensor) -> torch.Tensor:
    """The whole weight [out, in], or evenly spread rows of it where it is large."""
    rows = max(1, MEASURED // weight.shape[1])
    if weight.shape[0] <= rows:
        return weight
    return weight[torch.linspace(0, weight.shape[0] - 1, rows).long()]
