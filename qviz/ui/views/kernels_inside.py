"""Inside a kernel: one program of it, step by step, on a trained layer and a real input.

Everything that a step shows is computed by `qviz.kernels.tiles.walk`, and sent ahead; going from
step to step needs no kernel of Jupyter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.kernels import registry
from qviz.kernels.formats import FORMATS
from qviz.kernels.tiles import EVENTS, SHOWN, Block, Step, Walk, programs, source, walk
from qviz.models.capture import load_calibration
from qviz.models.checkpoint import load_layer
from qviz.ui.views.fields import CellField, StepField
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.layer_page import FIRST_LAYER
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.widgets import (
    Choice,
    Code,
    MatrixView,
    Readout,
    Slider,
    Text,
    Transport,
    number,
    section,
)

ROWS = (1, 2, 4, 8, 16)
FORMULAS = {event.name: event.formula for event in EVENTS}
INT8_FORMULAS = {
    "tile.inputs": "q_x[column]",
    "tile.products": "total + Σ q · q_x",
    "tile.store": "y[row] = s_x · s[row] · Σ total",
}
PRODUCT = {
    "triton.w4a16": "(q − z) · x", "triton.nf4": "level · x", "triton.w8a8": "q · q_x",
}  # fmt: skip
SHOWS = {
    "tile.rows": "nothing has been read yet",
    "tile.step": "the token's inputs",
    "tile.quantized": "the inputs as int8 codes",
    "tile.words": "bytes, as they lie in memory",
    "tile.weights": "int8 weights",
    "tile.scale": "the scale of each weight",
    "tile.inputs": "the inputs, the same for each row",
    "tile.codes": "codes",
    "tile.weight": "what the codes stand for",
    "tile.products": "value times input",
    "tile.total": "each row's sum so far",
    "tile.store": "the outputs",
}
UNKNOWN = "–"


@dataclass(frozen=True, eq=False)
class Seen:
    """What the part shows: a program of a kernel on a weight, and its outputs in float64."""

    q: QuantizedTensor
    walk: Walk
    wide: torch.Tensor


class Inside:
    """Controls, pictures and the steps' bar of the second part. It computes when it is opened."""

    keys = ("multiplied", "stored", "program", "rows", "step", "tile")  # its fields

    def __init__(self, page: LessonPage, live: Callable[[], bool]) -> None:
        self._page = page
        self.shown: Seen | None = None
        self._quantized: tuple[str, QuantizedTensor] | None = None  # the last format asked for
        self._weight: torch.Tensor | None = None
        self._takes: dict[str, list[str]] = {}  # kernel → the formats that it takes
        self._cell: tuple[int, int] | None = None  # of the tile
        self.kernel_control = Choice(
            "Kernel", [f"{name}: {registry.get(name).title}" for name in SHOWN]
        )
        self.format_control = Choice("Weights stored as", ["…"])
        self.program_control = Slider("Program", ["0"])
        self.rows_control = Slider("Rows of a program", [str(n) for n in ROWS], ROWS.index(4))
        self.transport = Transport(1, label="step of the program", rate=1.5)
        self.code = Code(label="Source of the kernel")
        self.weight_view = MatrixView("Where it is in the weight", aspect=3)
        self.tile_view = MatrixView("This program's tile", aspect=6)
        self.origin = Text("", role="wait")
        self.table = Readout("One weight")
        self.traffic = Readout("Read from memory")
        tie_frames(self.transport, self.code, self.tile_view, self.table, self.traffic)
        self.controls = [
            self.kernel_control, self.format_control, self.program_control, self.rows_control,
            self.weight_view,
        ]  # fmt: skip
        self.main = [section("What it has in hand", self.origin, self.tile_view, self.code)]
        self.side = [section("", self.table), section("", self.traffic)]
        self._wire(live)

    def _wire(self, live: Callable[[], bool]) -> None:
        page = self._page

        def add(key: str, control: Any, names: Callable[[], Sequence[str]] | None = None) -> None:
            page.add(key, control, self.update, busy=COMPUTING, names=names, live=live)

        add("multiplied", self.kernel_control, lambda: list(SHOWN))
        add("stored", self.format_control, lambda: self._formats)
        add("rows", self.rows_control)
        add("program", self.program_control)
        page.fields["step"] = StepField("step", self.transport, live=live)
        page.fields["tile"] = CellField(
            "tile", lambda: self.tile_view, lambda: self._cell or (0, 0), live=live
        )
        page.on_change(self.transport, "index", self.look)
        for trait in ("cursor", "pinned"):
            page.on_change(self.tile_view, trait, self._new_cell)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def kernel(self) -> str:
        return list(SHOWN)[int(self.kernel_control.index)]

    @property
    def block(self) -> Block:
        rows = ROWS[int(self.rows_control.index)]
        return Block(rows, 8 if self.kernel == "triton.w8a8" else 4)

    @property
    def walk(self) -> Walk:
        assert self.shown is not None
        return self.shown.walk

    # ---------------------------------------------------------------- computing

    def _layer(self) -> torch.Tensor:
        if self._weight is None:
            self._weight = load_layer(None, FIRST_LAYER).float()
        return self._weight

    def _stored(self) -> QuantizedTensor:
        """The layer in the chosen format, quantized once."""
        name = self._formats[int(self.format_control.index)]
        if self._quantized is None or self._quantized[0] != name:
            self._quantized = name, FORMATS[name].quantize(self._layer())
        return self._quantized[1]

    @property
    def _formats(self) -> list[str]:
        """Those that the chosen kernel takes."""
        if self.kernel not in self._takes:
            kernel, small = registry.get(self.kernel), self._layer()[:16, :256]
            self._takes[self.kernel] = [
                n for n, f in FORMATS.items() if kernel.refuses(f.quantize(small)) is None
            ]
        return self._takes[self.kernel]

    def fit(self) -> None:
        """Offer the formats that the kernel takes, and the programs that there are."""
        titles = [FORMATS[name].title for name in self._formats]
        if titles != list(self.format_control.options):
            self.format_control.set_options(titles, 0)
        count = programs(self._stored(), self.block)
        at = min(int(self.program_control.index), count - 1)
        if count != len(self.program_control.options):
            self.program_control.set_options([str(i) for i in range(count)], at)

    def update(self) -> None:
        self._page.update(self)

    def compute(self) -> Seen:
        x = load_calibration(None, FIRST_LAYER).inputs[0].bfloat16()
        q = self._stored()
        program = int(self.program_control.index)
        found = walk(self.kernel, q, x, program=program, block=self.block)
        wide = registry.get(self.kernel).reference(q, x[None])[0, found.rows]
        return Seen(q, found, wide)

    def draw(self, seen: Seen) -> None:
        last, self.shown = self.shown, seen
        found, steps = seen.walk, seen.walk.steps
        if last is None or last.q is not seen.q:
            self.weight_view.set_frames([seen.q.codes.float()], axes=("out", "in"), role="codes",
                                        colormap="sequential")  # fmt: skip
        self.origin.text = (
            f"{FIRST_LAYER} of the bundled model, {seen.q.shape[0]}×{seen.q.shape[1]}, and an "
            f"input that it really gets. The whole product takes {found.programs} such "
            f"programs, as many at once as a GPU has room for; this is number {found.program}."
        )
        with self._page.quietly():
            self.transport.set_steps(
                len(steps),
                events={
                    "the next tile": [i for i, s in enumerate(steps) if s.event in _READS],
                    "the end": [len(steps) - 1],
                },
                captions=[step.caption for step in steps],
            )
        self.code.set_texts(source(found.kernel), [step.lines for step in steps])
        self._draw_tile()
        self._draw_tables()
        self.look()

    def _draw_tile(self) -> None:
        width = max(s.columns.stop - s.columns.start for s in self.walk.steps if s.event in _READS)
        frames = picture(self.walk, width)
        self.tile_view.set_frames(
            frames,
            labels=[_label(step) for step in self.walk.steps],
            limits=[max(float(frame.abs().max()), 1e-30) for frame in frames],
            axes=("row of the program", "column of the tile"),
        )
        self.tile_view.autoscale = True
        if self._cell is None:  # to begin with, the weight that moves the sum most
            first = next(i for i, s in enumerate(self.walk.steps) if s.event == "tile.products")
            self._cell = divmod(int(products(self.walk, first).abs().argmax()), width)
        self._cell = (min(self._cell[0], frames[0].shape[0] - 1), min(self._cell[1], width - 1))
        with self._page.quietly():
            self.tile_view.cursor = list(self._cell)

    def _new_cell(self) -> None:
        row, column = (int(i) for i in self.tile_view.cursor)
        if row >= 0 and column >= 0:
            self._cell = (row, column)
            self._draw_tables()

    def _draw_tables(self) -> None:
        assert self._cell is not None and self.shown is not None
        q = self.shown.q
        told = story(self.walk, *self._cell, self.shown.wide)
        if self.walk.kernel == "triton.w8a8":
            assert isinstance(q.grid, Affine)
            scale = q.grid.scale.flatten()[self.walk.rows.start + self._cell[0]]
            told[-1]["scale s of its row"] = number(float(scale))
        labels = list(dict.fromkeys(label for each in told for label in each))
        self.table.set_rows(
            [(label, [each.get(label, UNKNOWN) for each in told], _ROLES.get(label, ""))
             for label in labels],
            f"Row {self.walk.rows.start + self._cell[0]}, column {self._cell[1]} of the tile",
        )  # fmt: skip
        self._draw_traffic()

    def _draw_traffic(self) -> None:
        """Bytes read up to each step, and what 16-bit weights would have needed."""
        read, packed, weights, here, ours, there = 0, 0, 0, [], [], []
        rows = self.walk.rows.stop - self.walk.rows.start
        for step in self.walk.steps:
            read += step.nbytes
            if step.event in (*_READS, "tile.scale"):
                packed += step.nbytes
            if step.event in _READS:
                weights += rows * (step.columns.stop - step.columns.start)
            here.append(f"{read:,} bytes")
            ours.append(f"{packed:,} bytes")
            there.append(f"{2 * weights:,} bytes")
        self.traffic.set_rows(
            [
                ("moved so far, all in all", here),
                ("of it weights and scales", ours, "codes"),
                ("the same weights in 16 bits", there, "original"),
            ]
        )

    def look(self) -> None:
        """Show in the whole weight where the step is."""
        step = self.walk.steps[int(self.transport.index)]
        self.weight_view.row_mark = step.rows.start
        self.weight_view.column_mark = step.columns.start if step.columns.stop else -1


_READS = ("tile.words", "tile.weights")
_ROLES = {"code q": "codes", "input x": "original", "the sum of its row": "now"}


def _label(step: Step) -> str:
    where = ""
    if step.columns.stop:
        where = f", columns {step.columns.start} to {step.columns.stop - 1}"
    return f"{SHOWS[step.event]}{where}"


def picture(walk: Walk, width: int) -> list[torch.Tensor]:
    """For each step what the program has in hand, a matrix [rows, width] float32 with a cell for
    each weight of the tile; zeros beyond the end of a row."""
    rows = walk.rows.stop - walk.rows.start
    frames = []
    for i, step in enumerate(walk.steps):
        span = step.columns.stop - step.columns.start
        values = _in_hand(walk, i).float()
        if values.ndim == 1:
            values = values.expand(rows, -1)
        if span and values.shape[1] < span:  # one number for several columns
            values = values.repeat_interleave(-(-span // values.shape[1]), dim=1)
        values = values[:, :width]
        if values.shape[1] == 1:
            values = values.expand(-1, width)
        frames.append(torch.nn.functional.pad(values, (0, width - values.shape[1])).contiguous())
    return frames


def _in_hand(walk: Walk, i: int) -> torch.Tensor:
    """What one step is about: [rows, columns], [columns], or one number for each row."""
    step, rows = walk.steps[i], walk.rows.stop - walk.rows.start
    held = step.tensors
    match step.event:
        case "tile.rows":
            return torch.zeros(rows, 1)
        case "tile.words":
            return held["words"].flatten(1).contiguous().view(torch.uint8)
        case "tile.products":
            return products(walk, i)
        case "tile.total":
            return held["total"].sum(1, keepdim=True)
        case "tile.store":
            return held["y"].float()[:, None]
        case "tile.step":
            return held["inputs"]
    name = step.event.removeprefix("tile.")
    return held[{"quantized": "codes"}.get(name, name)]


def products(walk: Walk, i: int) -> torch.Tensor:
    """Value times input of each weight [rows, columns] of the tile of step i."""
    if walk.kernel == "triton.w8a8":
        return walk.steps[i].tensors["partial"]
    values = _latest(walk, i, "tile.codes")["values"]
    return values * _latest(walk, i, "tile.inputs")["inputs"]


def _latest(walk: Walk, i: int, event: str) -> dict[str, torch.Tensor]:
    """The tensors of the last such event up to step i."""
    return next(dict(s.tensors) for s in reversed(walk.steps[: i + 1]) if s.event == event)


def story(walk: Walk, row: int, column: int, wide: torch.Tensor) -> list[dict[str, str]]:
    """For each step what is known of one weight of the tile: label → text.

    wide  [rows] the program's outputs in float64
    """
    told: list[dict[str, str]] = []
    known: dict[str, str] = {}
    for i, step in enumerate(walk.steps):
        if step.event in _READS:  # another tile, another weight
            known = {k: v for k, v in known.items() if k in ("the sum of its row", "token's scale")}
        formula = FORMULAS[step.event]
        if walk.kernel == "triton.w8a8":
            formula = INT8_FORMULAS.get(step.event, formula)
        known = {**known, "what happens": formula, **_told(walk, i, row, column)}
        told.append(known)
    told[-1] = {
        **told[-1],
        "output y, in bfloat16": number(float(walk.y[row])),
        "the same in float64": number(float(wide[row])),
    }
    return told


def _told(walk: Walk, i: int, row: int, column: int) -> dict[str, str]:
    """What step i tells of one weight of its tile."""
    step, held = walk.steps[i], walk.steps[i].tensors
    span = step.columns.stop - step.columns.start
    if span and column >= span and step.event not in ("tile.step", "tile.quantized"):
        return {}
    match step.event:
        case "tile.step":
            return {"token's scale": number(float(held["step"][0]))}
        case "tile.words":
            return _word(walk, held["words"], row, column)
        case "tile.weights":
            return {"code q": number(int(held["weights"][row, column]))}
        case "tile.scale":
            told = {"scale s": number(float(held["scale"][row, column]))}
            if walk.kernel == "triton.w4a16":
                told["zero point z"] = number(float(held["zero"][row, column]))
            return told
        case "tile.inputs":
            name = "input x" if walk.kernel != "triton.w8a8" else "input's code"
            return {name: number(float(held["inputs"][column]))}
        case "tile.codes":
            name = "q − z" if walk.kernel == "triton.w4a16" else "its level"
            return {
                "code q": number(int(held["codes"][row, column])),
                name: number(float(held["values"][row, column])),
            }
        case "tile.weight":
            return {"weight ŵ": number(float(held["weight"][row, column]))}
        case "tile.products":
            product = products(walk, i)[row, column]
            if walk.kernel != "triton.w8a8":
                return {PRODUCT[walk.kernel]: number(float(product))}
            total = int(_sum_so_far(walk, i)[row])
            return {PRODUCT[walk.kernel]: _integer(int(product)),
                    "the sum of its row": _integer(total)}  # fmt: skip
        case "tile.total":
            return {"the sum of its row": number(float(held["total"][row].sum()))}
    return {}


def _integer(value: int) -> str:
    """All digits in groups of three, with the minus sign that `number` uses."""
    return f"{value:,}".replace("-", "−")


def _sum_so_far(walk: Walk, i: int) -> torch.Tensor:
    """The integer sums [rows] of an int8 program up to step i."""
    parts = [s.tensors["partial"] for s in walk.steps[: i + 1] if s.event == "tile.products"]
    return torch.stack([part.sum(1) for part in parts]).sum(0)


def _word(walk: Walk, words: torch.Tensor, row: int, column: int) -> dict[str, str]:
    """The word [of words [r, c, w]] in which a weight lies, where in it, and beside which columns:
    the same bits of a tile's words are a plane, the codes of as many columns side by side."""
    at = walk.place(column)
    word = int(words[row].flatten()[at.word]) & 0xFFFFFFFF
    bits = [f"{word:032b}"[i : i + 4] for i in range(0, 32, 4)]
    bits[7 - at.plane] = f"[{bits[7 - at.plane]}]"
    return {
        "the word it lies in": f"number {at.word}: 0x{word:08x}",
        "its four bits there": " ".join(bits),
        "columns of its plane": f"{at.side.start} to {at.side.stop - 1}",
    }
