"""A block of a real layer, encoded step by step on the steps' bar, and a second run beside it.

Both runs come whole from `qviz.study.gguf_walk`; every step's pictures, words and bytes are sent
ahead, so the bar needs no kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.methods.gguf import LAYOUTS
from qviz.methods.gguf.kquants import SUPER_BLOCK
from qviz.study.gguf_bytes import bits_of_bytes, places_of
from qviz.study.gguf_facts import (
    off,
    try_facts,
    without_largest,
    zoo_facts,
)
from qviz.study.gguf_types import fitting, importance_of
from qviz.study.gguf_walk import (
    BYTES,
    START,
    TRY,
    Moment,
    RowWalk,
    Walk,
    can_be_read_in_pairs,
    read_in_pairs,
    together,
    tries,
    unreached,
    with_outlier,
    without_second_pass,
)
from qviz.ui.figures.gguf import input_sizes, on_levels, search_curve
from qviz.ui.views.fields import ValueField
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.gguf_cell import weight_rows
from qviz.ui.views.gguf_equation import formulas
from qviz.ui.views.gguf_said import beside_at, section_holds, sentence, won
from qviz.ui.views.gguf_words import (
    ANSWERS,
    BESIDE,
    FACTOR,
    IMPORTANCE,
    NO_PASS,
    NOTHING,
    OUTLIER,
    PAIRS,
    UNREACHED,
    beside_words,
    bit_words,
    section_words,
    verdict,
    zoo_words,
)
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    BlockBytes,
    Caption,
    Chart,
    Choice,
    Equation,
    MatrixFrame,
    MatrixView,
    Table,
    Text,
    Transport,
    details,
    figures_row,
    link_matrices,
    percent,
    section,
    show_only,
    stack,
)

TYPES_OFFERED = ("Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
                 "MXFP4")  # fmt: skip
AXES = ("sub-block", "place")
FIRST_PLACE = (7, 300)  # a weight to begin with
LINES = 64  # levels that can still be told apart as lines


@dataclass(frozen=True, eq=False)
class Shown:
    """What the part shows: a block, its walk, and perhaps a second one.

    row, first   where the block begins in the layer
    whole        the row's run, of which the walk is a part
    weighs       [sub-blocks, weights] by which the two runs are compared as well, or None
    steps        (moment of the first run, of the second) for each step of the bar
    """

    opened: Opened
    type: str
    beside: str
    row: int
    first: int
    whole: RowWalk
    walk: Walk
    second: Walk | None
    weighs: torch.Tensor | None
    steps: Sequence[tuple[Moment, Moment | None]]

    @property
    def walks(self) -> tuple[Walk, ...]:
        return (self.walk,) if self.second is None else (self.walk, self.second)

    def moments(self, step: int) -> tuple[Moment, ...]:
        return tuple(moment for moment in self.steps[step] if moment is not None)


class EncodePart(LessonPart):
    """Controls, pictures and steps of the part. `held` is the weight that a learner chose, of the
    layer; None: the page's own choice."""

    keys = ("type", "beside", "step", "weight")
    shown: Shown | None

    def __init__(self, page: LessonPage) -> None:
        super().__init__(page)
        self.held: tuple[int, int] | None = None
        self._cell = (0, 0)  # of the block: sub-block, place
        self._asked_of: Any = None
        self._build_controls()
        self._build_views()
        self._lay_out()

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        page = self.page
        self.transport = Transport(2, label="step", rate=1.0, speeds=(0.5, 1, 2, 4))
        self.type_control = self.add("type", Choice("Type", list(TYPES_OFFERED)), busy=COMPUTING)
        self.beside_control = self.add("beside", Choice("Beside it", list(BESIDE)), busy=COMPUTING)
        self.add("step", self.transport, self._stepped)
        page.fields["weight"] = ValueField(
            "weight", self, "held",
            text=lambda held: "" if held is None else f"{held[0]}, {held[1]}", take=self._take,
        )  # fmt: skip
        self.prediction = Prediction(
            "Before you step: how will the search cut the range of this sub-block?",
            list(ANSWERS), self._judge, self._draw_curve,
        )  # fmt: skip
        page.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_views(self) -> None:
        self.layer_view = MatrixView("Click: another block of the layer")
        self.x_view = MatrixView("Weights x", aspect=2.0)
        self.code_view = MatrixView("Codes q at this step", aspect=2.0)
        self.error_view = MatrixView("Error x − x̂ at this step", aspect=2.0)
        self.codes_beside = MatrixView("Second run: codes q", aspect=2.0)
        self.error_beside = MatrixView("Second run: error", aspect=2.0)
        self.curve = Chart("The search of one sub-block", height=200)
        self.levels = Chart("The sub-block on its levels", height=200)
        self.levels_beside = Chart("Second run: the sub-block on its levels", height=200)
        self.inputs = Chart("How large the inputs of this block are", height=130)
        self.bytes = BlockBytes("The bytes of the block")
        self.equation = Equation("<math></math>", aria="no formula yet", calm=True)
        self.cell_table = Table("The chosen weight")
        self.beside_said = Caption()
        self.beside_said.add_class("qv-aside")
        self.note = Text("", role="wait")
        tie_frames(
            self.transport, self.x_view, self.code_view, self.error_view, self.codes_beside,
            self.error_beside, self.curve, self.levels, self.levels_beside, self.bytes,
            self.equation, self.cell_table,
        )  # fmt: skip
        self.pictures = (
            self.x_view, self.code_view, self.error_view, self.codes_beside, self.error_beside,
        )  # fmt: skip
        link_matrices(*self.pictures)
        for view in self.pictures:
            self.page.on_change(view, "pinned", self._pointed)
            self.page.on_change(view, "cursor", self._pointed)
        for trait in ("cursor", "pinned"):
            self.page.on_change(self.layer_view, trait, self._picked, COMPUTING)

    def _lay_out(self) -> None:
        self._curve_box = stack(Text(self.curve.label, "h3"), self.curve)
        charts = figures_row(
            self._curve_box, stack(Text(self.levels.label, "h3"), self.levels), wide=True
        )
        self._inputs_box = stack(Text(self.inputs.label, "h3"), self.inputs)
        self._beside_box = stack(
            Text("Second run", "h3"), self.beside_said,
            figures_row(self.codes_beside, self.error_beside,
                        stack(Text(self.levels_beside.label, "h3"), self.levels_beside)),
            self._inputs_box,
        )  # fmt: skip
        self.controls = [
            self.beside_control, self.prediction.box,
            details("Another block", self.layer_view, open=True),
        ]  # fmt: skip
        self.main = [
            section("The block now", self.note,
                    figures_row(self.x_view, self.code_view, self.error_view), charts,
                    self._beside_box),
            section("What is stored", self.bytes),
        ]  # fmt: skip
        numbers = stack(self.cell_table)
        numbers.add_class("qv-side")
        self.side = [section("What happens here", self.equation), section("", numbers)]
        self.lead, self.foot = self.type_control, self.transport

    # ---------------------------------------------------------------- what the learner chose

    @property
    def step(self) -> int:
        return int(self.transport.index)

    def _place(self, opened: Opened) -> tuple[int, int]:
        """The weight of the layer that the page is about."""
        rows, columns = opened.weight.shape
        row, column = self.held or FIRST_PLACE
        return min(row, rows - 1), min(column, columns - 1)

    def _take(self, text: str) -> None:
        if not text:
            self.held = None
            return
        row, _, column = (part.strip() for part in text.partition(","))
        rows, columns = self.page.opened.weight.shape  # type: ignore[attr-defined]
        if not (row.isdecimal() and column.isdecimal()
                and int(row) < rows and int(column) < columns):  # fmt: skip
            raise ValueError(
                f"weight={text} in the address is no weight: give row, column of a weight of "
                f"{rows}×{columns}"
            )
        self.held = int(row), int(column)

    def _picked(self) -> None:
        """The learner clicked on the picture of the layer."""
        row, column = self.layer_view.cursor
        if self.layer_view.pinned and row >= 0 and (row, column) != self.held:
            self.held = row, column
            self.update()

    def _pointed(self) -> None:
        """The learner points at a weight of the block, or holds it."""
        group, place = self.x_view.cursor
        if self.shown is None or group < 0:
            return
        if self.x_view.pinned:
            size = self.shown.walk.x.shape[1]
            self.held = self.shown.row, self.shown.first + group * size + place
        if (group, place) != self._cell:
            other = group != self._cell[0]
            self._cell = group, place
            self._draw_weight(self.shown, other)

    def _stepped(self) -> None:
        if self.shown is None:
            return
        if self.shown.steps[self.step][0].kind not in ("block", "weigh", START):
            self.prediction.moved()

    def look(self) -> None:
        self._stepped()

    # ---------------------------------------------------------------- computing

    def fit(self) -> None:
        """Offer the types that fit the rows, and what a second run can be."""
        page: Any = self.page
        there = fitting(page.opened.weight.shape[1])
        types = [name for name in TYPES_OFFERED if name in there]
        if types != list(self.type_control.options):
            self.type_control.set_options(types)
        kind = str(self.type_control.value)
        weighs = bool(tries(kind, True)) and page.inputs_of(page.opened) is not None
        two = LAYOUTS[kind].weights == SUPER_BLOCK
        others = page.opened.weight.shape[1] > SUPER_BLOCK  # that importance is left to
        can = {
            NOTHING: True, IMPORTANCE: weighs, NO_PASS: two, OUTLIER: True,
            UNREACHED: weighs and two and others, PAIRS: can_be_read_in_pairs(kind),
        }  # fmt: skip
        names = [name for name in BESIDE if can[name]]
        if names != list(self.beside_control.options):
            self.beside_control.set_options(
                names, names.index(self.beside_control.value)
                if self.beside_control.value in names else 0,
            )  # fmt: skip

    def compute(self) -> Shown:
        page: Any = self.page
        opened, kind, beside = page.opened, self.type_control.value, self.beside_control.value
        row, column = self._place(opened)
        per = LAYOUTS[kind].weights
        block = column // per
        weights = opened.weight[row].float()
        calibration = page.inputs_of(opened)
        importance = None if calibration is None else importance_of(calibration)
        last = self.shown
        same = last is not None and last.opened is opened and last.type == kind and last.row == row
        whole = last.whole if same and last is not None else RowWalk(weights, type=kind)
        walk = whole.block(block)
        second = _second(beside, weights, kind, block, whole, walk, importance)
        weighs = None
        if beside == IMPORTANCE and importance is not None:
            weighs = importance[block * per : (block + 1) * per].view(walk.x.shape)
        elif beside == OUTLIER and second is not None:
            weighs = without_largest(second.x)
        return Shown(
            opened, kind, beside, row, block * per, whole, walk, second, weighs,
            together(walk, second),
        )  # fmt: skip

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: Shown) -> None:
        last, self.shown = self.shown, shown
        moved = last is None or (last.opened, last.type, last.row, last.first) != (
            shown.opened, shown.type, shown.row, shown.first)  # fmt: skip
        with self.page.quietly():
            if last is None or last.opened is not shown.opened:
                self.layer_view.set_frames([MatrixFrame(shown.opened.weight)], role="original",
                                           axes=("out", "in"))  # fmt: skip
            self._put_cursors(shown)
            self._draw_bar(shown)
            self._draw_pictures(shown)
        if moved:
            self.prediction.reset(possible=bool(tries(shown.type, shown.walk.importance)))
        self._draw_words(shown)
        self._draw_formulas(shown)
        self._draw_weight(shown, True)
        self._stepped()
        self.prediction.answer()
        self._draw_code(shown)

    def _put_cursors(self, shown: Shown) -> None:
        row, column = self._place(shown.opened)
        size = shown.walk.x.shape[1]
        self._cell = divmod(column - shown.first, size)
        self.layer_view.cursor, self.layer_view.pinned = [row, column], self.held is not None
        end = shown.first + shown.walk.x.numel()
        self.layer_view.outlines = [[row, row + 1, shown.first, end]]

    def _draw_bar(self, shown: Shown) -> None:
        kinds = [first.kind for first, _ in shown.steps]
        starts = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
        self.transport.set_steps(len(shown.steps), events={"part of the way": starts})

    def _draw_pictures(self, shown: Shown) -> None:
        self.x_view.set_frames(
            [MatrixFrame(shown.walk.x)] , role="original", axes=AXES,
        )  # fmt: skip
        self._draw_run(shown.walk, [first for first, _ in shown.steps],
                       self.code_view, self.error_view)  # fmt: skip
        show_only(self._beside_box, shown.second is not None)
        show_only(self._inputs_box, shown.beside == IMPORTANCE)
        # What is out of sight shows the first run too: no picture is ever without a matrix.
        self._draw_run(
            shown.second or shown.walk,
            [second or first for first, second in shown.steps],
            self.codes_beside, self.error_beside,
        )  # fmt: skip
        for view in self.pictures:
            view.cursor, view.pinned = list(self._cell), self.held is not None
        if shown.weighs is not None and shown.beside == IMPORTANCE:
            values = shown.weighs.flatten().numpy()
            top = shown.first + int(values.argmax())
            self.inputs.set_figures(
                input_sizes(values, shown.first),
                summary=f"Mean square of inputs {shown.first} to {shown.first + len(values) - 1}; "
                f"the largest is {values.max():.3g}, of input {top}",
            )

    def _draw_run(
        self, walk: Walk, moments: Sequence[Moment], codes: MatrixView, errors: MatrixView
    ) -> None:
        """Codes and errors of a run at each step; empty before there are any."""
        known: dict[Moment, tuple[Any, Any]] = {}
        empty = np.full(walk.x.shape, np.nan, np.float32)
        for moment in dict.fromkeys(moments):
            at = walk.at(moment)
            if at is None:
                known[moment] = empty, empty
                continue
            q = at[0].numpy().astype(np.float32)
            if walk.layout.zero and (q < 0).any():
                q = q + walk.layout.zero  # as they are stored
            known[moment] = q, (walk.x - at[1]).numpy()
        frames = [known[moment] for moment in moments]
        top = 2**walk.layout.bits
        span = (-128, 127) if walk.type == "Q8_0" else (0, top - 1)
        codes.set_frames([MatrixFrame(q) for q, _ in frames], limits=span, role="codes", axes=AXES,
                         colormap="sequential" if span[0] == 0 else "diverging")  # fmt: skip
        errors.set_frames([MatrixFrame(e) for _, e in frames], role="error", axes=AXES)

    # ---------------------------------------------------------------- words, formulas, bytes

    def _draw_words(self, shown: Shown) -> None:
        zoo = shown.beside not in (NOTHING, IMPORTANCE)
        text = ""
        if shown.second is not None:
            if zoo:
                text = zoo_words(shown.beside, zoo_facts(shown.walk, shown.second))
            else:
                text = beside_words(beside_at(shown, len(shown.steps) - 1)).strip()
        self.beside_said.set_texts(text)
        known = shown.opened.weight.shape[1] % SUPER_BLOCK == 0
        self.note.text = "" if known else (
            f"Rows of {shown.opened.weight.shape[1]} weights are no multiple of {SUPER_BLOCK}: no "
            f"k-quant fits them, and llama.cpp falls back to a type with blocks of 32."
        )  # fmt: skip

    def _draw_formulas(self, shown: Shown) -> None:
        made = formulas(shown.type, shown.walk.importance)
        lit = [made.lit[first.kind] for first, _ in shown.steps]
        with self.equation.hold_sync():
            self.equation.mathml, self.equation.aria = made.mathml, made.spoken
            self.equation.terms, self.equation.actives = dict(made.terms), lit

    def _draw_bytes(self, shown: Shown) -> None:
        walk, size = shown.walk, shown.walk.x.shape[1]
        sections = [
            (one.name, one.size, section_words(one.name, section_holds(walk, one.name)))
            for one in walk.layout.sections
        ]
        found = bits_of_bytes(walk.type, walk.data)
        ends, numbers = _ends(walk)
        written, now = [], []
        for first, _ in shown.steps:
            now.append(numbers[first.section] if first.kind == BYTES else -1)
            done = first.kind == "back"
            written.append(ends[first.section] if first.kind == BYTES else len(walk.data) * done)
        self.bytes.set_block(
            walk.data.tolist(), sections,
            [[(b.at, b.bits, bit_words(b, size)) for b in each] for each in found],
            written=written, now=now,
            others=[] if shown.second is None else shown.second.data.tolist(),
        )  # fmt: skip
        group, place = self._cell
        wanted = {"codes": group * size + place, "scales": group, "mins": group}
        self.bytes.lit = [list(one) for one in places_of(found, wanted)]

    # ---------------------------------------------------------------- one weight, one sub-block

    def _draw_weight(self, shown: Shown, other_group: bool) -> None:
        """The chosen weight's table and bytes; and, where it lies in another sub-block, that."""
        group, place = self._cell
        columns = [shown.type] if shown.second is None else ["first", "second"]
        self.cell_table.label = (
            f"Row {shown.row}, column {shown.first + group * shown.walk.x.shape[1] + place}: "
            f"sub-block {group}, place {place}"
        )
        self.cell_table.set_rows(
            columns,
            [weight_rows(shown.walks, shown.moments(i), group, place)
             for i in range(len(shown.steps))],
        )  # fmt: skip
        self._draw_bytes(shown)
        if other_group:
            self._draw_group(shown)

    def _draw_group(self, shown: Shown) -> None:
        group = self._cell[0]
        with self.page.quietly():
            self.transport.captions = [sentence(shown, i, group) for i in range(len(shown.steps))]
        self._draw_curve()
        self._draw_levels(shown, group)
        self.prediction.answer()

    def _draw_curve(self) -> None:
        shown, group = self.shown, self._cell[0]
        if shown is None:
            return
        searched = [w for w in shown.walks if len(w.fits) > 1]
        show_only(self._curve_box, bool(searched))
        if not searched:
            self.curve.set_figures({"data": []}, "This type does not search")
            return
        runs = [
            [try_facts(w, m, group) for m in w.moments if m.kind in (START, TRY)] for w in searched
        ]
        mixed = len({run[1].tried is None for run in runs}) > 1  # moves beside tries
        runs = runs[:1] if mixed else runs
        reached = [
            [_reached(m) for m, w in zip(shown.moments(i), shown.walks, strict=True)
             if w in searched[: len(runs)]]
            for i in range(len(shown.steps))
        ]  # fmt: skip
        self.curve.set_figures(
            search_curve(runs, reached, moves=runs[0][1].tried is None,
                         whole=self.prediction.revealed),
            summary=[sentence(shown, i, group) for i in range(len(shown.steps))],
        )  # fmt: skip

    def _draw_levels(self, shown: Shown, group: int) -> None:
        for chart, walk, at in (
            (self.levels, shown.walk, 0), (self.levels_beside, shown.second, 1),
        ):  # fmt: skip
            walk = walk or shown.walk
            moments = [shown.moments(i)[min(at, len(shown.walks) - 1)] for i in
                       range(len(shown.steps))]  # fmt: skip
            chart.set_figures(
                on_levels(
                    walk.x[group].double().numpy(),
                    [_on_levels(walk, moment, group) for moment in moments],
                    None if walk.weights is None else walk.weights[group].double().numpy(),
                ),
                summary=[
                    f"{walk.x.shape[1]} weights of sub-block {group}"
                    + _off_words(walk, state, group)
                    for state in map(walk.at, moments)
                ],
            )  # fmt: skip

    # ---------------------------------------------------------------- prediction, code

    def _judge(self, guess: int) -> str:
        if self.shown is None or len(self.shown.walk.fits) < 2:
            return ""
        return verdict(guess, won(self.shown.whole, self.shown.first // self.shown.walk.x.numel(),
                                  self._cell[0]))  # fmt: skip

    def _draw_code(self, shown: Shown) -> None:
        page: Any = self.page
        layer = call("qviz.load_layer", shown.opened.source, shown.opened.layer)
        lines = [
            "import qviz", "from qviz.study.gguf_walk import RowWalk", "",
            f"weight = {layer}.float()",
            f"walk = RowWalk(weight[{shown.row}], type={shown.type!r})"
            f".block({shown.first // shown.walk.x.numel()})",
            f"q = {call('qviz.quantize', Name('weight'), 'gguf', type=shown.type)}",
            f"whole = q.grid.data[{shown.row}]  # the bytes of the row; the block's are walk.data",
        ]  # fmt: skip
        if shown.beside == IMPORTANCE:
            calibration = call("qviz.load_calibration", shown.opened.source, shown.opened.layer)
            weighed = call(
                "qviz.quantize",
                Name("weight"),
                "gguf",
                type=shown.type,
                importance=Name("importance"),
            )
            lines += [
                f"importance = {calibration}.hessian.diagonal() / 2",
                f"weighed = {weighed}",
            ]
        page.code.set_texts("\n".join(lines))


def _second(
    beside: str, row: torch.Tensor, kind: str, block: int, whole: RowWalk, walk: Walk,
    importance: torch.Tensor | None,
) -> Walk | None:  # fmt: skip
    """The walk that stands beside the first."""
    if beside == NOTHING:
        return None
    if beside == NO_PASS:
        return without_second_pass(walk)
    if beside == PAIRS:
        return read_in_pairs(walk)
    first, count = block * walk.x.numel(), walk.x.numel()
    if beside == OUTLIER:
        place = first + int(row[first : first + count].abs().argmax())
        return RowWalk(with_outlier(row, place, FACTOR), type=kind).block(block)
    assert importance is not None, "offered only where inputs are known"
    own = unreached(importance, first, count) if beside == UNREACHED else importance
    return RowWalk(row, type=kind, importance=own).block(block)


def _off_words(walk: Walk, state: tuple[torch.Tensor, torch.Tensor] | None, group: int) -> str:
    """How far a sub-block is off, for who does not see it; nothing before it is anywhere."""
    if state is None or not bool(torch.isfinite(state[1][group]).all()):
        return ""
    return f", off by {percent(off(walk.x[group], state[1][group]))}"


def _reached(moment: Moment) -> int:
    """The last try that was made."""
    if moment.kind in ("block", "weigh"):
        return -1
    return moment.fit


def _on_levels(
    walk: Walk, moment: Moment, group: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    state, levels = walk.at(moment), walk.levels(moment, group)
    if state is None or levels is None:
        return None, None
    lines = np.unique(levels.numpy())
    values = state[1][group].double().numpy()
    return values, lines if len(lines) <= LINES else lines[:0]


def _ends(walk: Walk) -> tuple[dict[str, int], dict[str, int]]:
    """Section → how many bytes there are once it is written, and its number."""
    ends, numbers, end = {}, {}, 0
    for i, one in enumerate(walk.layout.sections):
        end += one.size
        ends[one.name], numbers[one.name] = end, i
    return ends, numbers
