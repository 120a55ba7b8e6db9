"""The AWQ lesson's first experiment by hand: some channels kept in 16 bits (the paper's section
3.1). All settings of the slider that leads are sent ahead.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.study.awq_case import LOUD_SHARE, Case
from qviz.study.awq_steps import (
    BY_INPUTS,
    BY_WEIGHTS,
    Keeping,
    keeping,
)
from qviz.ui.figures.awq import channels, kept_curves
from qviz.ui.views.awq_equations import CHANNELS
from qviz.ui.views.awq_pictures import AXES, AwqPart, draw_felt, felt, part, reach, weight_of
from qviz.ui.views.awq_weight import weight_rows
from qviz.ui.views.awq_words import (
    CHOICES,
    GUESSES,
    QUESTION,
    Guess,
    Kept,
    kept_sentence,
    verdict,
)
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.prediction import Prediction
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


class ChannelsPart(AwqPart):
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
        self.sizes = Chart("Inputs and weights, channel by channel", height=260)
        self.curves = Chart("The output's error, with channels kept", height=260)
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
            self.original.set_frames([MatrixFrame(part(case.weight))], role="original", axes=AXES)
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
