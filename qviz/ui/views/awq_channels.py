"""The AWQ lesson's two experiments by hand, both from the paper: some channels kept in 16 bits, and
one channel multiplied by a factor. All settings of the slider that leads are sent ahead.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.core.grids import Affine
from qviz.study.awq_case import LOUD_SHARE, Case
from qviz.study.awq_steps import (
    BY_INPUTS,
    BY_WEIGHTS,
    Keeping,
    Scaled,
    keeping,
    one_channel,
)
from qviz.ui.figures.awq import channels, group_line, kept_curves, tradeoff
from qviz.ui.views.awq_equations import CHANNELS, ONE
from qviz.ui.views.awq_pictures import AXES, draw_felt, felt, part, reach, weight_of
from qviz.ui.views.awq_words import (
    CHOICES,
    GUESSES,
    QUESTION,
    Factor,
    Guess,
    Kept,
    Weight,
    factor_sentence,
    kept_sentence,
    verdict,
    weight_rows,
)
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
    Choice,
    MatrixFrame,
    MatrixView,
    Readout,
    Slider,
    Text,
    figures_row,
    link_matrices,
    number,
    percent,
    section,
    stack,
)

SHARES = (0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
FACTORS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)


def counts(columns: int) -> list[int]:
    """How many channels each of SHARES keeps: at least one, where it keeps any."""
    return [0 if not share else max(1, round(share * columns)) for share in SHARES]


@dataclass(frozen=True, eq=False)
class KeptShown:
    """A case, and what keeping channels does to it; how: the choice that pictures follow."""

    opened: Any
    case: Case
    found: Keeping
    how: str

    @property
    def counts(self) -> list[int]:
        return counts(self.case.weight.shape[1])

    def kept(self, i: int) -> torch.Tensor:
        """The channels that setting i of the slider keeps."""
        return self.found.orders[self.how][: self.counts[i]]

    def facts(self, i: int) -> Kept:
        count, n = self.counts[i], self.case.weight.shape[1]
        bits = self.case.nearest.bits_per_weight
        return Kept(
            count, n, self.how, self.case.bits, self.error(BY_INPUTS, 0),
            {how: self.error(how, count) for how in CHOICES},
            (bits * (n - count) + 16 * count) / n,
        )  # fmt: skip

    def error(self, how: str, count: int) -> float:
        return float(self.found.errors[how][count])

    def guess(self) -> Guess:
        n = self.case.weight.shape[1]
        count, a = max(1, round(LOUD_SHARE * n)), self.case.calibration.act_absmean
        return Guess(
            count, n, self.error(BY_INPUTS, 0), {how: self.error(how, count) for how in CHOICES},
            float(a.max() / a.median()) if float(a.median()) else float("inf"),
        )  # fmt: skip


class ChannelsPart(LessonPart):
    """Which channels deserve 16 bits."""

    keys = ("kept", "by")
    shown: KeptShown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.lead = self.add(
            "kept", Slider("Channels kept in 16 bits", ["none", *map(percent, SHARES[1:])]),
            self._drag, looks=True,
        )  # fmt: skip
        self.by_control = self.add(
            "by", Choice("Chosen by", [BY_INPUTS, BY_WEIGHTS], kind="segmented")
        )
        self.prediction = Prediction(
            QUESTION, list(GUESSES), lambda guess: verdict(guess, self._now.guess()),
            self._draw_curves,
        )  # fmt: skip
        page.on_change(self.prediction.control, "index", self.prediction.answer)
        self.original = MatrixView("Weights W")
        self.picture = MatrixView("Error, times its input: a·(Ŵ − W)")
        self.sizes = Chart("Inputs and weights, channel by channel", height=210)
        self.curves = Chart("The output's error, with channels kept", height=210)
        self.table = Readout("The chosen weight")
        self.caption = Caption()
        tie_frames(self.lead, self.picture, self.sizes, self.curves, self.table, self.caption)
        link_matrices(self.original, self.picture)
        self.controls = [self.prediction.box, self.by_control]
        charts = figures_row(
            stack(Text(self.sizes.label, "h3"), self.sizes),
            stack(Text(self.curves.label, "h3"), self.curves),
            wide=True,
        )
        self.main = [
            section("Which channels matter?", charts, figures_row(self.original, self.picture))
        ]
        self.side = [section("An error and its input", CHANNELS.widget(), self.table)]

    @property
    def _now(self) -> KeptShown:
        assert self.shown is not None
        return self.shown

    def compute(self) -> KeptShown:
        case, last, how = self.page.case(), self.shown, str(self.by_control.value)
        known = last is not None and last.case is case
        return KeptShown(
            self.page.opened, case, last.found if known and last else keeping(case), how
        )

    def draw(self, shown: KeptShown) -> None:
        last, case = self.shown, shown.case
        self.shown = shown
        if last is None or last.opened is not shown.opened:
            with self.page.quietly():
                self.prediction.reset()
        back = case.nearest.dequantize()
        limit = reach(felt(case, back))
        frames = []
        for i in range(len(SHARES)):
            error = felt(case, back)
            error[:, shown.kept(i)] = 0
            frames.append(error)
        with self.page.quietly():
            self.original.set_frames(
                [MatrixFrame(part(case.weight))], role="original", axes=AXES
            )
            draw_felt(self.picture, frames, list(self.lead.options), limit)
            self.page.settle(self.picture)
            self.original.cursor = list(self.picture.cursor)
        self._draw_sizes(shown)
        self._draw_curves()
        self.caption.set_texts([kept_sentence(shown.facts(i)) for i in range(len(SHARES))])
        self.look()
        self.prediction.answer()
        self.page.code.set_texts(self._snippet(shown))

    def _draw_sizes(self, shown: KeptShown) -> None:
        a, w = (shown.found.sizes[how].double().numpy() for how in (BY_INPUTS, BY_WEIGHTS))
        inputs, weights = (x / (float(np.median(x)) or float(x.max()) or 1.0) for x in (a, w))
        kept = [shown.kept(i).numpy() for i in range(len(SHARES))]
        self.sizes.set_figures(
            channels(inputs, weights, kept),
            [
                f"Mean |x| of {len(a)} channels, up to {number(inputs.max(), 3)}× the median; mean "
                f"|w| up to {number(weights.max(), 3)}×. Kept: {len(one)}"
                for one in kept
            ],
        )

    def _draw_curves(self) -> None:
        shown = self._now
        errors = {how: shown.found.errors[how].numpy() for how in CHOICES}
        self.curves.set_figures(
            kept_curves(errors, shown.counts, shown.how, drawn=self.prediction.revealed),
            [
                f"Off by {percent(shown.error(shown.how, k))} with {k} channels kept by {shown.how}"
                for k in shown.counts
            ],
        )

    def _drag(self) -> None:
        self.prediction.moved()

    def look(self) -> None:
        shown = self._now
        row, column = self.page.cell
        one = weight_of(shown.case, shown.case.nearest, row, column)
        kept = [bool((shown.kept(i) == column).any()) for i in range(len(SHARES))]
        rows = weight_rows([one], scaled=False)
        places = [
            (f"channel's place by {how}",
             str(int((shown.found.orders[how] == column).nonzero()[0]) + 1), "")
            for how in (BY_INPUTS, BY_WEIGHTS)
        ]  # fmt: skip
        stays = ("kept in 16 bits", ["yes: its error is 0" if k else "no" for k in kept], "now")
        self.table.set_rows([*rows, *places, stays])

    def _snippet(self, shown: KeptShown) -> str:
        return (
            f"{self.page.code_of_case}\n\nfrom qviz.study.awq_steps import keeping\n\n"
            f"found = keeping(case)\n"
            f"print({{how: errors[{shown.guess().count}].item() for how, errors in "
            f"found.errors.items()}})"
        )


# ------------------------------------------------------------------------- one channel scaled


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


class OnePart(LessonPart):
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
        self.line = Chart("The chosen weight's group, and its levels", height=210)
        self.curves = Chart("What the factor does to the output", height=230)
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
        return self.page.cell[1] if self.page.held else self.page.loudest

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
