"""The AWQ lesson's second experiment by hand: one channel multiplied by a factor (the paper's
section 3.2). All factors are sent ahead.
"""

from dataclasses import dataclass
from typing import Any

import torch

from qviz.core.grids import Affine
from qviz.study.awq_case import Case
from qviz.study.awq_steps import (
    Scaled,
    one_channel,
)
from qviz.ui.figures.awq import group_line, tradeoff
from qviz.ui.views.awq_equations import ONE
from qviz.ui.views.awq_pictures import AwqPart, draw_felt, felt, part, reach, weight_of
from qviz.ui.views.awq_weight import Weight, weight_rows
from qviz.ui.views.awq_words import (
    Factor,
    factor_sentence,
)
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
    MatrixView,
    Readout,
    Slider,
    Text,
    figures_row,
    number,
    percent,
    section,
    stack,
)

FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


@dataclass(frozen=True, eq=False)
class OneShown:
    """A case, and one channel of it at each of FACTORS."""

    opened: Any
    case: Case
    channel: int
    steps: list[Scaled]

    @property
    def first(self) -> int:
        """The first channel of its group."""
        return self.channel // self.case.size * self.case.size

    def facts(self, i: int) -> Factor:
        now, base = self.steps[i], self.steps[0]
        return Factor(
            self.channel, self.case.size - 1, now.factor, now.channel, base.channel, now.others,
            base.others, now.widened, now.growth, now.output, base.output,
        )  # fmt: skip

    def scale(self, i: int) -> torch.Tensor:
        """[in] factors of setting i: one channel's, and 1."""
        s = torch.ones(self.case.weight.shape[1])
        s[self.channel] = self.steps[i].factor
        return s

    def weight(self, i: int, row: int, column: int) -> Weight:
        """A weight's arithmetic at setting i."""
        inside = 0 <= column - self.first < self.case.size
        if not inside:
            return weight_of(self.case, self.case.nearest, row, column)
        q, at = self.steps[i].tensor, column - self.first
        assert isinstance(q.grid, Affine)
        members = self.case.weight[row, self.first : self.first + self.case.size] * self.scale(i)[
            self.first : self.first + self.case.size
        ]  # fmt: skip
        zero = q.grid.zero_point
        return Weight(
            row, column, float(self.case.weight[row, column]), float(self.scale(i)[column]), None,
            float(members.min()), float(members.max()), self.case.bits,
            float(q.grid.scale[row, 0]), 0.0 if zero is None else float(zero[row, 0]),
            int(q.codes[row, at]), float(self.steps[i].back[row, at]),
            float(self.case.calibration.act_absmean[column]),
        )  # fmt: skip


class OnePart(AwqPart):
    """Why multiplying a channel protects it, and whom it costs."""

    keys = ("factor",)
    shown: OneShown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.lead = self.add(
            "factor", Slider("Factor s on one channel", [f"{f:g}" for f in FACTORS]),
            lambda: None, looks=True,
        )  # fmt: skip
        self.picture = MatrixView("Error, times its input: a·(Ŵ − W)")
        self.line = Chart("The chosen weight's group, and its levels", height=230)
        self.curves = Chart("What the factor does to the output", height=330)
        self.table = Readout("The chosen weight")
        self.paper = Readout("All rows, as in the paper's table 2")
        self.caption = Caption()
        tie_frames(
            self.lead, self.picture, self.line, self.curves, self.table, self.paper, self.caption
        )
        self.controls = [
            Text("Hold a weight in the picture (click it) to scale its channel instead.")
        ]
        self.main = [
            section(
                "One group's arithmetic",
                Text(self.line.label, "h3"),
                self.line,
                figures_row(
                    self.picture,
                    stack(Text(self.curves.label, "h3"), self.curves),
                    wide=True,
                ),
            )
        ]
        self.side = [
            section("What happens to a weight", ONE.widget(), self.table),
            section("", self.paper),
        ]

    @property
    def _now(self) -> OneShown:
        assert self.shown is not None
        return self.shown

    @property
    def channel(self) -> int:
        """The channel of the weight that is held, else the loudest."""
        return int(self.page.cell[1] if self.page.held else self.page.loudest)

    def compute(self) -> OneShown:
        case, last, channel = self.page.case(), self.shown, self.channel
        if last is not None and last.case is case and last.channel == channel:
            return last
        return OneShown(self.page.opened, case, channel, one_channel(case, channel, FACTORS))

    def draw(self, shown: OneShown) -> None:
        case, first = shown.case, shown.first
        layer = case.nearest.dequantize()
        limit = reach(felt(case, layer))
        frames = []
        for step in shown.steps:
            layer[:, first : first + case.size] = step.back
            frames.append(felt(case, layer))
        self.shown = shown
        with self.page.quietly():
            draw_felt(self.picture, frames, [f"s = {f:g}" for f in FACTORS], limit)
            self.page.settle(self.picture)
        rows = len(part(case.weight))
        self.picture.outlines = [
            [0, rows, first, first + case.size], [0, rows, shown.channel, shown.channel + 1]
        ]  # fmt: skip
        self._draw_curves(shown)
        self.paper.set_rows(_paper_rows(shown))
        self.caption.set_texts([factor_sentence(shown.facts(i)) for i in range(len(FACTORS))])
        self.look()
        self.page.code.set_texts(
            f"{self.page.code_of_case}\n\nfrom qviz.study.awq_steps import one_channel\n\n"
            f"steps = {call('one_channel', Name('case'), shown.channel, FACTORS)}\n"
            f"print([(step.factor, step.channel, step.others, step.output) for step in steps])"
        )

    def _draw_curves(self, shown: OneShown) -> None:
        self.curves.set_figures(
            tradeoff(
                FACTORS,
                {
                    "its own errors": [one.channel for one in shown.steps],
                    "the others' of its group": [one.others for one in shown.steps],
                    "the group's together": [one.group for one in shown.steps],
                    "the whole layer's": [one.output for one in shown.steps],
                },
            ),
            [factor_sentence(shown.facts(i)) for i in range(len(FACTORS))],
        )

    def pointed(self) -> None:
        """Another weight is held: another channel is scaled."""
        if self.channel != self._now.channel:
            self.update()
        else:
            self.look()

    def look(self) -> None:
        shown = self._now
        row, column = self.page.cell
        weights = [shown.weight(i, row, column) for i in range(len(FACTORS))]
        self.table.set_rows(weight_rows(weights))
        inside = 0 <= column - shown.first < shown.case.size
        at = column - shown.first if inside else shown.channel - shown.first
        values, levels, nearest = [], [], []
        for i, step in enumerate(shown.steps):
            group = slice(shown.first, shown.first + shown.case.size)
            value = shown.case.weight[row, group] * shown.scale(i)[group]
            values.append(value.numpy())
            levels.append(step.tensor.levels(row, 0).numpy())
            nearest.append(float(step.back[row, at]) * float(shown.scale(i)[shown.first + at]))
        self.line.set_figures(
            group_line(values, levels, at, nearest),
            [
                f"s = {f:g}: the {len(values[i])} weights of row {row} reach from "
                f"{number(values[i].min(), 3)} to {number(values[i].max(), 3)}; the chosen one, "
                f"{number(values[i][at], 3)}, becomes {number(nearest[i], 3)}"
                for i, f in enumerate(FACTORS)
            ],
        )


def _paper_rows(shown: OneShown) -> list[tuple[str, list[str], str]]:
    """What the paper's table 2 has, for this channel: of all rows of the layer."""
    steps = shown.steps
    return [
        ("rows in which Δ grew", [percent(one.widened) for one in steps], ""),
        ("rows in which Δ shrank", [percent(one.narrowed) for one in steps], ""),
        ("mean Δ′/Δ", [number(one.growth) for one in steps], ""),
        ("(Δ′/Δ)/s", [number(one.growth / one.factor) for one in steps], "now"),
        ("own errors, × s = 1",
         [_times(one.channel, steps[0].channel) for one in steps], "now"),
        ("others' errors, × s = 1", [_times(one.others, steps[0].others) for one in steps],
         "error"),
        ("output off by", [percent(one.output) for one in steps], "error"),
    ]  # fmt: skip


def _times(new: float, old: float) -> str:
    return f"{number(new / old, 3)}×" if old else "–"
