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
from qviz.kernels.tiles import SHOWN, Block, Walk, programs, source, walk
from qviz.models.capture import load_calibration
from qviz.models.checkpoint import load_layer
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.kernels_tile import READS, ROLES, label, picture, products, story
from qviz.ui.views.layer_page import FIRST_LAYER
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.views.parts import LessonPart
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
UNKNOWN = "–"


@dataclass(frozen=True, eq=False)
class Seen:
    """What the part shows: one program of a kernel on a weight, and its outputs in float64."""

    q: QuantizedTensor
    walk: Walk
    wide: torch.Tensor


class Inside(LessonPart):
    """Controls, pictures and the steps' bar of the second part. It computes when it is opened."""

    keys = ("multiplied", "stored", "program", "rows", "step", "tile")  # its fields

    has_code = False
    shown: Seen | None

    def __init__(self, page: LessonPage) -> None:
        super().__init__(page)
        self._quantized: tuple[str, QuantizedTensor] | None = None  # the last format asked for
        self._weight: torch.Tensor | None = None
        self._takes: dict[str, list[str]] = {}  # kernel → the formats that it takes
        self._cell: tuple[int, int] | None = None  # of the tile
        self.kernel_control = Choice(
            "Kernel", [f"{name}: {registry.get(name).title}" for name in SHOWN]
        )
        self.format_control = Choice("Weights stored as", ["…"])
        self.program_control = Slider("Program", ["0"])
        self.rows_control = Slider("Program, by its rows", [str(n) for n in ROWS], ROWS.index(4))
        self.foot = self.transport = Transport(1, label="step of the program", rate=1.5)
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
        self.main = [section("What the program holds now", self.origin, self.tile_view, self.code)]
        self.side = [section("", self.table), section("", self.traffic)]
        self._wire()

    def _wire(self) -> None:
        def add(key: str, control: Any, names: Callable[[], Sequence[str]] | None = None) -> None:
            self.add(key, control, busy=COMPUTING, names=names)

        add("multiplied", self.kernel_control, lambda: list(SHOWN))
        add("stored", self.format_control, lambda: self._formats)
        add("rows", self.rows_control)
        add("program", self.program_control)
        self.add("step", self.transport, self.look)
        self.page.add_cell(
            "tile", [self.tile_view], lambda: self._cell or (0, 0), self._new_cell,
            live=self.is_open,
        )  # fmt: skip

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
        """The formats that the chosen kernel takes."""
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
            f"{FIRST_LAYER} of the bundled model, {seen.q.shape[0]}×{seen.q.shape[1]}, and one "
            f"of its real inputs. The whole product takes {found.programs} such programs, of "
            f"which a GPU runs as many at once as fit; this is number {found.program}."
        )
        with self.page.quietly():
            self.transport.set_steps(
                len(steps),
                events={
                    "the next tile": [i for i, s in enumerate(steps) if s.event in READS],
                    "the end": [len(steps) - 1],
                },
                captions=[step.caption for step in steps],
            )
        self.code.set_texts(source(found.kernel), [step.lines for step in steps])
        self._draw_tile()
        self._draw_tables()
        self.look()

    def _draw_tile(self) -> None:
        width = max(s.columns.stop - s.columns.start for s in self.walk.steps if s.event in READS)
        frames = picture(self.walk, width)
        self.tile_view.set_frames(
            frames,
            labels=[label(step) for step in self.walk.steps],
            limits=[max(float(frame.abs().max()), 1e-30) for frame in frames],
            axes=("row of the program", "column of the tile"),
        )
        self.tile_view.autoscale = True
        if self._cell is None:  # to begin with, the weight that changes the sum most
            first = next(i for i, s in enumerate(self.walk.steps) if s.event == "tile.products")
            self._cell = divmod(int(products(self.walk, first).abs().argmax()), width)
        self._cell = (min(self._cell[0], frames[0].shape[0] - 1), min(self._cell[1], width - 1))
        with self.page.quietly():
            self.tile_view.cursor = list(self._cell)

    def _new_cell(self, _view: Any) -> None:
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
        names = list(dict.fromkeys(name for each in told for name in each))
        self.table.set_rows(
            [(name, [each.get(name, UNKNOWN) for each in told], ROLES.get(name, ""))
             for name in names],
            f"Row {self.walk.rows.start + self._cell[0]}, column {self._cell[1]} of the tile",
        )  # fmt: skip
        self._draw_traffic()

    def _draw_traffic(self) -> None:
        """Bytes read up to each step, and the bytes that 16-bit weights would have needed."""
        read, packed, weights, here, ours, there = 0, 0, 0, [], [], []
        rows = self.walk.rows.stop - self.walk.rows.start
        for step in self.walk.steps:
            read += step.nbytes
            if step.event in (*READS, "tile.scale"):
                packed += step.nbytes
            if step.event in READS:
                weights += rows * (step.columns.stop - step.columns.start)
            here.append(f"{read:,} bytes")
            ours.append(f"{packed:,} bytes")
            there.append(f"{2 * weights:,} bytes")
        self.traffic.set_rows(
            [
                ("bytes read so far", here),
                ("of these, weights and scales", ours, "codes"),
                ("the same weights at 16 bits", there, "original"),
            ]
        )

    def look(self) -> None:
        """Show the step's place in the whole weight."""
        step = self.walk.steps[int(self.transport.index)]
        self.weight_view.row_mark = step.rows.start
        self.weight_view.column_mark = step.columns.start if step.columns.stop else -1
