"""The pictures of a block at every step: matrices, the search, levels, bytes, one weight's numbers.

They all follow the steps' bar in the browser; the kernel draws them once for a block.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qviz.study.gguf_bytes import Bits, bits_of_bytes, places_of
from qviz.study.gguf_facts import off, try_facts
from qviz.study.gguf_walk import BACK, BLOCK, BYTES, START, TRY, WEIGH, Moment, Walk
from qviz.ui.figures.gguf import input_sizes, on_levels, search_curve
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.gguf_cell import weight_rows
from qviz.ui.views.gguf_equation import formulas
from qviz.ui.views.gguf_guide import IMPORTANCE
from qviz.ui.views.gguf_run import Shown
from qviz.ui.views.gguf_said import section_holds, sentence
from qviz.ui.views.gguf_words import (
    bit_words,
    section_words,
)
from qviz.ui.widgets import (
    BlockBytes,
    Caption,
    Chart,
    Equation,
    MatrixFrame,
    MatrixView,
    Table,
    Text,
    Transport,
    figures_row,
    link_matrices,
    percent,
    show_only,
    stack,
)

AXES = ("sub-block", "place")
LINES = 64  # levels that can still be told apart as lines
WIDE = 2.0  # width of a block's picture over its height


class BlockPictures:
    """All of them, tied to the steps' bar. `first`, `charts` and `beside` are boxes for the page;
    `views` the matrices, which share a cursor [sub-block, place]."""

    def __init__(self, transport: Transport) -> None:
        self.x_view = MatrixView("Weights x", aspect=WIDE)
        self.code_view = MatrixView("Codes q at this step", aspect=WIDE)
        self.error_view = MatrixView("Error x − x̂ at this step", aspect=WIDE)
        self.codes_beside = MatrixView("Second run: codes q", aspect=WIDE)
        self.error_beside = MatrixView("Second run: error", aspect=WIDE)
        self.curve = Chart("The search of one sub-block", height=200)
        self.levels = Chart("The sub-block on its levels", height=200)
        self.levels_beside = Chart("Second run: the sub-block on its levels", height=200)
        self.inputs = Chart("How large the inputs of this block are", height=130)
        self.bytes = BlockBytes("The bytes of the block")
        self.equation = Equation("<math></math>", aria="no formula yet", calm=True)
        self.cell_table = Table("The chosen weight")
        self.beside_said = Caption()
        self.beside_said.add_class("qv-aside")
        self.views = (
            self.x_view, self.code_view, self.error_view, self.codes_beside, self.error_beside,
        )  # fmt: skip
        tie_frames(
            transport, *self.views, self.curve, self.levels, self.levels_beside, self.bytes,
            self.equation, self.cell_table,
        )  # fmt: skip
        link_matrices(*self.views)
        self._found: list[list[Bits]] = []
        self.first = figures_row(self.x_view, self.code_view, self.error_view)
        self._curve_box = _titled(self.curve)
        self.charts = figures_row(self._curve_box, _titled(self.levels), wide=True)
        self._inputs_box = _titled(self.inputs)
        self.beside = stack(
            Text("Second run", "h3"), self.beside_said,
            figures_row(self.codes_beside, self.error_beside, _titled(self.levels_beside)),
            self._inputs_box,
        )  # fmt: skip

    # ---------------------------------------------------------------- a block

    def draw(self, shown: Shown) -> None:
        """Another block, or another run beside it."""
        self.x_view.set_frames([MatrixFrame(shown.walk.x)], role="original", axes=AXES)
        mine = [first for first, _ in shown.steps]
        _draw_run(shown.walk, mine, self.code_view, self.error_view)
        # What is out of sight shows the first run too: no picture is ever without a matrix.
        other = [second or first for first, second in shown.steps]
        _draw_run(shown.second or shown.walk, other, self.codes_beside, self.error_beside)
        show_only(self.beside, shown.second is not None)
        show_only(self._inputs_box, shown.beside == IMPORTANCE)
        if shown.weighs is not None and shown.beside == IMPORTANCE:
            values = shown.weighs.flatten().numpy()
            last, top = shown.first + len(values) - 1, shown.first + int(values.argmax())
            self.inputs.set_figures(
                input_sizes(values, shown.first),
                f"Mean square of inputs {shown.first} to {last}; the largest is "
                f"{values.max():.3g}, of input {top}",
            )
        self._draw_formulas(shown)
        self._draw_bytes(shown)

    def put_cursor(self, cell: tuple[int, int], *, held: bool) -> None:
        for view in self.views:
            view.cursor, view.pinned = list(cell), held

    def _draw_formulas(self, shown: Shown) -> None:
        made = formulas(shown.type, shown.walk.importance)
        with self.equation.hold_sync():
            self.equation.mathml, self.equation.aria = made.mathml, made.spoken
            self.equation.terms = dict(made.terms)
            self.equation.actives = [made.lit[first.kind] for first, _ in shown.steps]

    def _draw_bytes(self, shown: Shown) -> None:
        walk, size = shown.walk, shown.walk.x.shape[1]
        sections = [
            (one.name, one.size, section_words(one.name, section_holds(walk, one.name)))
            for one in walk.layout.sections
        ]
        self._found = bits_of_bytes(walk.type, walk.data)
        names = [name for name, _, _ in sections]
        ends = np.cumsum([size for _, size, _ in sections]).tolist()
        now = [names.index(m.section) if m.kind == BYTES else -1 for m, _ in shown.steps]
        self.bytes.set_block(
            walk.data.tolist(), sections,
            [[(b.at, b.bits, bit_words(b, size)) for b in each] for each in self._found],
            written=[ends[at] if at >= 0 else ends[-1] * (m.kind == BACK)
                     for at, (m, _) in zip(now, shown.steps, strict=True)],
            now=now, others=[] if shown.second is None else shown.second.data.tolist(),
        )  # fmt: skip

    # ---------------------------------------------------------------- one weight

    def draw_weight(self, shown: Shown, cell: tuple[int, int]) -> None:
        """Its numbers, and its bits in the bytes."""
        group, place = cell
        index = group * shown.walk.x.shape[1] + place
        self.cell_table.label = (
            f"Row {shown.row}, column {shown.first + index}: sub-block {group}, place {place}"
        )
        self.cell_table.set_rows(
            [shown.type] if shown.second is None else ["first", "second"],
            [weight_rows(shown.walks, shown.moments(i), group, place)
             for i in range(len(shown.steps))],
        )  # fmt: skip
        wanted = {"codes": index, "scales": group, "mins": group}
        self.bytes.lit = [list(one) for one in places_of(self._found, wanted)]

    # ---------------------------------------------------------------- one sub-block

    def draw_curve(self, shown: Shown, group: int, *, whole: bool) -> None:
        """The search of a sub-block; `whole`: the tries to come are seen as well."""
        searched = [w for w in shown.walks if len(w.fits) > 1]
        show_only(self._curve_box, bool(searched))
        if not searched:
            self.curve.set_figures({"data": []}, "This type does not search")
            return
        runs = [
            [try_facts(w, m, group) for m in w.moments if m.kind in (START, TRY)] for w in searched
        ]
        moves = runs[0][1].tried is None
        if len({run[1].tried is None for run in runs}) > 1:  # moves beside tries
            del runs[1:], searched[1:]
        reached = [
            [-1 if m.kind in (BLOCK, WEIGH) else m.fit
             for m, w in zip(shown.moments(i), shown.walks, strict=True) if w in searched]
            for i in range(len(shown.steps))
        ]  # fmt: skip
        self.curve.set_figures(
            search_curve(runs, reached, moves=moves, whole=whole),
            [sentence(shown, i, group) for i in range(len(shown.steps))],
        )

    def draw_levels(self, shown: Shown, group: int) -> None:
        """The weights of a sub-block and the levels that they go to."""
        charts = (self.levels, self.levels_beside)
        for chart, walk, at in zip(charts, (shown.walk, shown.second), (0, -1), strict=True):
            walk = walk or shown.walk
            moments = [shown.moments(i)[at] for i in range(len(shown.steps))]
            weights = None if walk.weights is None else walk.weights[group].double().numpy()
            chart.set_figures(
                on_levels(
                    walk.x[group].double().numpy(),
                    [_on_levels(walk, moment, group) for moment in moments],
                    weights,
                ),
                [
                    f"{walk.x.shape[1]} weights of sub-block {group}"
                    + _off_words(walk, walk.at(moment), group)
                    for moment in moments
                ],
            )


def _titled(chart: Chart) -> Any:
    return stack(Text(chart.label, "h3"), chart)


def _draw_run(walk: Walk, moments: Sequence[Moment], codes: MatrixView, errors: MatrixView) -> None:
    """Codes and errors of a run at each step; empty before there are any."""
    empty = np.full(walk.x.shape, np.nan, np.float32)
    known: dict[Moment, tuple[Any, Any]] = {}
    for moment in dict.fromkeys(moments):
        at = walk.at(moment)
        known[moment] = (
            (empty, empty) if at is None else (at[0].float().numpy(), (walk.x - at[1]).numpy())
        )
    frames = [known[moment] for moment in moments]
    signed = walk.type == "Q8_0"
    codes.set_frames(
        [MatrixFrame(q) for q, _ in frames], role="codes", axes=AXES,
        limits=(-128, 127) if signed else (0, 2**walk.layout.bits - 1),
        colormap="diverging" if signed else "sequential",
    )  # fmt: skip
    errors.set_frames([MatrixFrame(e) for _, e in frames], role="error", axes=AXES)


def _off_words(walk: Walk, state: tuple[torch.Tensor, torch.Tensor] | None, group: int) -> str:
    """How far a sub-block is off, for who does not see it; nothing where that is not known."""
    if state is None or not bool(torch.isfinite(state[1][group]).all()):
        return ""
    return f", off by {percent(off(walk.x[group], state[1][group]))}"


def _on_levels(
    walk: Walk, moment: Moment, group: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The values of a sub-block's weights at a moment, and its levels."""
    state, levels = walk.at(moment), walk.levels(moment, group)
    if state is None or levels is None:
        return None, None
    lines = np.unique(levels.numpy())
    return state[1][group].double().numpy(), lines if len(lines) <= LINES else lines[:0]
