"""The AWQ lesson's last two acts: clipping group by group on the steps' bar, and folding."""

from dataclasses import dataclass
from typing import Any

import torch

from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.study.awq_case import Case
from qviz.study.awq_steps import FRACTIONS, Clip, Search
from qviz.ui.figures.awq import clip_counts, clip_curves, group_line
from qviz.ui.views.awq_clip_words import (
    Clipped,
    Folded,
    Limit,
    clipped_sentence,
    folded_sentence,
    limit_sentence,
)
from qviz.ui.views.awq_equations import CLIP
from qviz.ui.views.awq_folding import Folding, block_rows, channel_rows, folding, sibling_rows
from qviz.ui.views.awq_pictures import AXES, AwqPart, part
from qviz.ui.views.awq_weight import Weight, weight_rows
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
    MatrixFrame,
    MatrixView,
    Readout,
    Table,
    Text,
    Transport,
    figures_row,
    number,
    percent,
    section,
    show_only,
    stack,
)


@dataclass(frozen=True, eq=False)
class ClipShown:
    """The clip search after the factors that the search took, and where these are folded.

    folding  where the factors go
    """

    opened: Any
    case: Case
    search: Search
    clip: Clip
    folding: Folding

    def limit(self, row: int, group: int, k: int) -> Limit:
        _, first = self.clip.group(row, group, 0)
        cut, now = self.clip.group(row, group, k)
        original = self.scaled(row, group)
        top = float(original.abs().max()) * FRACTIONS[k]
        errors = self.clip.errors[:, row, group].double()
        return Limit(
            k, FRACTIONS[k], row, group, top, int((cut != original).sum()), len(cut),
            _spacing(now), _spacing(first), _over(float(errors[k]), float(errors[0])),
            int(self.clip.step[row, group]) == k,
        )  # fmt: skip

    def scaled(self, row: int, group: int) -> torch.Tensor:
        size = self.case.size
        return self.clip.scaled[row, group * size : (group + 1) * size]

    def weight(self, row: int, column: int, k: int) -> Weight:
        """A weight's arithmetic with its group cut to limit k."""
        group, size = column // self.case.size, self.case.size
        cut, q = self.clip.group(row, group, k)
        at, s = column - group * size, float(self.search.chosen.scale[column])
        assert isinstance(q.grid, Affine)
        zero = q.grid.zero_point
        return Weight(
            row, column, float(self.case.weight[row, column]), s,
            float(self.scaled(row, group).abs().max()) * FRACTIONS[k], float(cut.min()),
            float(cut.max()), self.case.bits, _spacing(q), 0.0 if zero is None else float(zero),
            int(q.codes[0, at]), float(q.dequantize()[0, at]) / s,
            float(self.case.calibration.act_absmean[column]),
        )  # fmt: skip

    def clipped(self) -> Clipped:
        clip = self.clip
        best = min(range(len(FRACTIONS)), key=lambda k: clip.together[k])
        return Clipped(
            sum(clip.counts[1:]), sum(clip.counts), clip.promised, clip.error_before,
            clip.error_after, clip.together[best], FRACTIONS[best], clip.usual,
        )  # fmt: skip

    def folded(self) -> Folded:
        w, f = self.folding.wiring, self.folding.fold
        return Folded(w.source, w.into, w.shared, w.note, f.folded, f.powers, f.forgotten, f.equal)


def _spacing(q: QuantizedTensor) -> float:
    assert isinstance(q.grid, Affine)
    return float(q.grid.scale)


def _over(new: float, old: float) -> float:
    """√(new / old), of errors squared; 1 for a group that made none."""
    return (new / old) ** 0.5 if old else 1.0


class ClipPart(AwqPart):
    """Clipping, and folding."""

    keys = ("limit",)
    shown: ClipShown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.foot = Transport(len(FRACTIONS), label="limit", rate=1.0)
        self.add("limit", self.foot, lambda: None)
        self.picture = MatrixView("Scaled weights W·s; the outline is the group")
        self.line = Chart("The group, cut to this limit", height=230)
        self.curves = Chart("Errors at each limit", height=300)
        self.counts = Chart("What all groups take", height=200)
        self.table = Readout("The chosen weight")
        self.whole, self.said = Caption(), Caption()
        self.fold_table = Table("The loudest channels")
        self.sibling_table = Table("Inputs that one value channel becomes, and their factors")
        self.block_table = Table("Every input of this block")
        self._siblings_box = stack(self.sibling_table)
        self._block_box = stack(self.block_table)
        for box in (self._siblings_box, self._block_box):
            show_only(box, False)
        for one in (self.whole, self.said):
            one.add_class("qv-aside")
        tie_frames(self.foot, self.line, self.curves, self.counts, self.table)
        self.controls = [Text("Point at a weight in the picture to see its group cut.")]
        self.main = [
            section(
                "Clip, one group at a time",
                Text(self.line.label, "h3"),
                self.line,
                figures_row(
                    self.picture, stack(Text(self.curves.label, "h3"), self.curves), wide=True
                ),
            ),
            section(
                "All groups, and the layer",
                figures_row(stack(Text(self.counts.label, "h3"), self.counts), self.whole,
                            wide=True),
            ),
            section(
                "Fold: where the factors go", self.said, self._siblings_box, self.fold_table,
                self._block_box,
            ),
        ]  # fmt: skip
        self.side = [section("What happens to a weight", CLIP.widget(), self.table)]

    def compute(self) -> ClipShown:
        case, last = self.page.case(), self.shown
        grid = self.page.search.grid
        if last is not None and last.case is case and last.search.grid == grid:
            return last
        search = self.page.search_of(case)
        page = self.page
        found = folding(page.source, case, page.inputs(), page.loud, search.chosen.scale)
        clip = Clip(case, search.chosen.scale)
        _ = clip.together, clip.error_before, clip.error_after  # what can fail belongs here
        return ClipShown(self.page.opened, case, search, clip, found)

    def draw(self, shown: ClipShown) -> None:
        self.shown = shown
        with self.page.quietly():
            self.picture.set_frames(
                [MatrixFrame(part(shown.clip.scaled))], role="original", axes=AXES
            )
            self.page.settle(self.picture)
        self.counts.set_figures(
            clip_counts(FRACTIONS, shown.clip.counts),
            [
                f"{count} of {sum(shown.clip.counts)} groups keep {percent(f)} of their largest "
                f"weight"
                for f, count in zip(FRACTIONS, shown.clip.counts, strict=True)
            ],
        )
        self.whole.set_texts(clipped_sentence(shown.clipped()))
        self.said.set_texts(folded_sentence(shown.folded()))
        self._draw_fold(shown)
        self.look()
        self.page.code.set_texts(
            f"{self.page.code_of_case}\n\nfrom qviz.study.awq_steps import Clip, Search\n\n"
            f"{call('search = Search', Name('case'), shown.search.grid)}\n"
            f"clip = Clip(case, search.chosen.scale)\n"
            f"print(clip.counts, clip.error_before, clip.error_after)"
        )

    def _draw_fold(self, shown: ClipShown) -> None:
        found, scale = shown.folding, shown.search.chosen.scale
        columns, rows = channel_rows(shown.case, found, scale)
        self.fold_table.set_rows(columns, [rows])
        show_only(self._siblings_box, bool(found.siblings))
        if found.siblings:
            columns, rows = sibling_rows(found, scale)
            self.sibling_table.set_rows(columns, [rows])
        show_only(self._block_box, bool(found.block))
        if found.block:
            columns, rows = block_rows(found, shown.case.name)
            self.block_table.set_rows(columns, [rows])

    def look(self) -> None:
        shown = self.shown
        assert shown is not None
        row, column = self.page.cell
        group, size = column // shown.case.size, shown.case.size
        self.picture.outlines = [[row, row + 1, group * size, (group + 1) * size]]
        steps = range(len(FRACTIONS))
        facts = [shown.limit(row, group, k) for k in steps]
        weights = [shown.weight(row, column, k) for k in steps]
        with self.page.quietly():
            self.foot.set_steps(
                len(FRACTIONS), captions=[limit_sentence(one) for one in facts],
                events={"taken": [int(shown.clip.step[row, group])]},
            )  # fmt: skip
        self.table.set_rows(weight_rows(weights))
        pairs = [shown.clip.group(row, group, k) for k in steps]
        self.line.set_figures(
            group_line(
                [cut.numpy() for cut, _ in pairs], [q.levels(0, 0).numpy() for _, q in pairs],
                column - group * size, [one.back * one.s for one in weights],
                [one.limit for one in facts],
            ),
            [limit_sentence(one) for one in facts],
        )  # fmt: skip
        together = [_ratio(e, shown.clip.together[0]) for e in shown.clip.together]
        self.curves.set_figures(
            clip_curves(FRACTIONS, [one.error for one in facts], together),
            [
                f"Keeping {percent(f)}: this group's own error is {number(one.error, 3)}× the "
                f"uncut, the layer's with one limit for all {number(t, 3)}×"
                for f, one, t in zip(FRACTIONS, facts, together, strict=True)
            ],
        )


def _ratio(new: float, old: float) -> float:
    return new / old if old else 1.0
