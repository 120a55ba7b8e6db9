"""Lesson 5: where sixteen levels should lie, on a real layer.

It has four parts. The table is built number by number. Its bins fill unequally. What is stored is
shown to the byte. In a duel the learner's own levels meet those of others. Everything is computed
for every block size and sent ahead, so the slider needs no kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import CONVENTIONS
from qviz.models.capture import load_calibration
from qviz.study.level_duel import (
    CONVENTIONS as INT4,
)
from qviz.study.level_duel import (
    NF4_DOUBLE,
    NF4_NAME,
    RIVALS,
    SYMMETRIC,
    Duel,
    Entry,
)
from qviz.study.nf4_bytes import Stored, stored
from qviz.ui.views.fields import CellField
from qviz.ui.views.frame import compose, tie_frames
from qviz.ui.views.layer_page import OFFLINE, LayerPage, Opened
from qviz.ui.views.layer_pictures import errors
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.nf4_build import BuildPart
from qviz.ui.views.nf4_cell import (
    arithmetic,
    rivals_rows,
)
from qviz.ui.views.nf4_duel import DuelPart
from qviz.ui.views.nf4_stored import FillPart, StorePart
from qviz.ui.views.nf4_words import (
    BUILD,
    DUEL,
    EQUATION,
    FILL,
    GUIDE,
    SPOKEN,
    STORE,
    TERMS,
)
from qviz.ui.views.snippet import Name, call
from qviz.ui.views.spacing import system
from qviz.ui.widgets import (
    Choice,
    Code,
    Equation,
    MatrixFrame,
    MatrixView,
    Readout,
    Slider,
    Text,
    column_of,
    details,
    figures_row,
    link_matrices,
    section,
    show_only,
    stack,
)

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
FIRST_SIZE = 64
PARTS = (BUILD, FILL, STORE, DUEL)
LARGEST = 1 << 18  # weights; of a larger layer as many rows as fit are shown
AXES = ("out", "in")
SYMMETRIC_CONVENTIONS = [name for name, one in CONVENTIONS.items() if one.symmetric]


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows: a layer, and every contender's four bits for it.

    duel        the weight [rows, in] float32, its inputs, and its blocks
    entries     block size → name → result; a rival that does not fit is omitted
    packed      for each of SIZES NF4's bytes of the codes
    convention  of INT4 symmetric
    """

    opened: Opened
    duel: Duel
    entries: Mapping[int, Mapping[str, Entry]]
    packed: list[np.ndarray]
    convention: str

    @property
    def weight(self) -> torch.Tensor:
        return self.duel.weight

    def plain(self, size: int) -> QuantizedTensor:
        """NF4 in blocks of this size."""
        return self.entries[size][NF4_NAME].tensor

    def double(self, size: int) -> QuantizedTensor:
        """The same with double quantization."""
        return self.entries[size][NF4_DOUBLE].tensor


class Nf4Lesson(LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source  None (the bundled model), "minilm", a directory, a .safetensors file or a Hub id
    layer   the name of one of its linear layers
    """

    lesson_number = 5
    guide_steps = GUIDE
    first_layer = "model.layers.1.self_attn.o_proj"
    shown: Shown | None

    def __init__(self, source: str | None = None, layer: str | None = None) -> None:
        super().__init__()
        self._cell = (0, 0)
        self._found: list[Stored] = []
        self._build_controls()
        self._build_views()
        self.widget = self._page()
        self.open(source, layer)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def part(self) -> str:
        return str(self.part_control.value)

    @property
    def size(self) -> int:
        return SIZES[int(self.size_control.index)]

    @property
    def convention(self) -> str:
        return SYMMETRIC_CONVENTIONS[int(self.convention_control.index)]

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        self.part_control = self.add(
            "part", Choice("Part", list(PARTS), kind="segmented"), self._open_part
        )
        self.size_control = self.add(
            "block",
            Slider("Block size", [str(s) for s in SIZES], SIZES.index(FIRST_SIZE)),
            self.look, lights=["a"], looks=True,
        )  # fmt: skip
        titles = [system(name, True) for name in SYMMETRIC_CONVENTIONS]
        self.convention_control = self.add(
            "int4",
            Choice("INT4 symmetric as in", titles,
                   SYMMETRIC_CONVENTIONS.index(INT4[SYMMETRIC])),
            busy=COMPUTING, names=lambda: SYMMETRIC_CONVENTIONS,
        )  # fmt: skip
        self.building = BuildPart(self, lambda: self.part == BUILD)
        self.dueling = DuelPart(self, SIZES, lambda: self.part == DUEL)
        self.prediction = self.dueling.prediction

    def _build_views(self) -> None:
        self.weight_view = MatrixView("Trained weights w")
        self.code_view = MatrixView("Codes q")
        self.error_view = MatrixView("Error w − ŵ")
        self.equation = Equation(EQUATION, TERMS, [], aria=SPOKEN)
        self.cell_table = Readout("The chosen weight in NF4")
        self.filling, self.storing = FillPart(), StorePart()
        self.part_of_layer = Text("", role="wait")
        self.code = Code()
        duel = self.dueling
        tie_frames(
            self.size_control, self.code_view, self.error_view, self.cell_table, self.code,
            *self.filling.views, *self.storing.views, duel.line, duel.shares, duel.board,
            duel.curves, duel.caption, duel.each,
        )  # fmt: skip
        link_matrices(self.weight_view, self.code_view, self.error_view)
        self.fields["weight"] = CellField(
            "weight", lambda: self.weight_view, lambda: self._cell,
            live=lambda: self.part != BUILD,
        )  # fmt: skip
        for trait in ("cursor", "pinned"):
            self.on_change(self.weight_view, trait, self._new_cell)

    def _page(self) -> Any:
        build, duel = self.building, self.dueling
        layer = section(
            "The layer",
            figures_row(self.weight_view, self.code_view, self.error_view), self.part_of_layer,
        )  # fmt: skip
        fill, store = self.filling.box, self.storing
        cell = section("What happens to a weight", self.equation, self.cell_table)
        layer_box, duel_box = stack(self.layer_control), stack(*duel.controls)
        more = stack(details("More", self.convention_control))
        bar = stack(build.transport)
        whole = compose(
            self,
            lead=self.size_control,
            controls=[
                self.part_control, layer_box, duel_box, more,
            ],
            main=[*build.main, fill, store.box, store.memory, *duel.main, layer, store.bits_box],
            side=[*build.side, cell, store.second_box, *duel.side],
            foot=bar,
            code=self.code,
            own=[self.source_control, self.open_button, self.bundled_button],
        )  # fmt: skip
        lead = column_of(whole, "qv-lead")
        shared = {FILL: [layer, cell], STORE: [layer, cell], DUEL: [layer]}
        self._boxes = {
            BUILD: [*build.main, *build.side, bar],
            FILL: [lead, layer_box, fill, *shared[FILL]],
            STORE: [
                lead, layer_box, store.box, store.memory, store.second_box, store.bits_box,
                *shared[STORE],
            ],
            DUEL: [
                lead, layer_box, duel_box, more, cell, *duel.main, *duel.side,
                *shared[DUEL],
            ],
        }  # fmt: skip
        return whole

    def _open_part(self) -> None:
        here = self._boxes[self.part]
        for boxes in self._boxes.values():
            for box in boxes:
                show_only(box, any(box is one for one in here))

    # ---------------------------------------------------------------- computing

    @property
    def _now(self) -> Shown:
        assert self.shown is not None
        return self.shown

    def compute(self) -> Shown:
        """Every contender's four bits for the layer, at every block size."""
        opened, last, convention = self.opened, self.shown, self.convention
        if last is not None and last.opened is opened:
            if last.convention == convention:
                return last
            duel, known = last.duel, last.entries
        else:
            weight = opened.weight.float()
            weight = weight[: max(1, LARGEST // weight.shape[1])]
            there = self.source in OFFLINE
            duel = Duel(weight, load_calibration(self.source, self.layer) if there else None)
            known = {}
        entries: dict[int, dict[str, Entry]] = {size: {} for size in SIZES}
        left_out: dict[str, tuple[list[int], ValueError]] = {}
        for size in SIZES:
            for name in RIVALS:
                entry = known[size].get(name) if known and name != SYMMETRIC else None
                try:
                    entry = entry or duel.rival(
                        name, size, convention=convention if name == SYMMETRIC else None
                    )
                except ValueError as error:
                    if name not in INT4:  # float16 scales may not fit
                        raise
                    left_out.setdefault(name, ([], error))[0].append(size)
                if entry is not None:
                    entries[size][name] = entry
        for name, (sizes, why) in left_out.items():
            at = ", ".join(map(str, sizes))
            self.problem(f"{name} is omitted in blocks of {at}: {why}")
        packed = [entries[size][NF4_NAME].tensor.pack()["codes"] for size in SIZES]
        return Shown(opened, duel, entries, packed, convention)

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: Shown) -> None:
        last = self.shown
        if last is shown:  # another part of the same layer
            self._open_part()
            return
        self.shown = shown  # what the parts draw from
        if last is None or last.opened is not shown.opened:
            self._draw_layer(shown)
            self.dueling.new_layer()
        plain, double = zip(*((shown.plain(n), shown.double(n)) for n in SIZES), strict=True)
        self.filling.draw([shown.duel.blocks(size) for size in SIZES], SIZES)
        self.storing.draw(plain, double, SIZES)
        self._draw_cell(shown)
        self.dueling.draw(shown)
        self.code.set_texts([self._snippet(shown, size) for size in SIZES])
        self._open_part()

    def _draw_layer(self, shown: Shown) -> None:
        """Pictures, and a weight to begin with."""
        rows, columns = shown.weight.shape
        whole = shown.opened.weight.shape[0]
        self._cell = (rows // 7, columns // 7)
        self.part_of_layer.text = (
            ""
            if rows == whole
            else f"Only the first {rows} of {whole} rows are shown, as a layer of their own."
        )
        labels = [f"blocks of {size}" for size in SIZES]
        with self.quietly():
            self.weight_view.set_frames([MatrixFrame(shown.weight)], role="original", axes=AXES)
            self.code_view.set_frames(
                [MatrixFrame(shown.plain(size).codes) for size in SIZES],
                labels=labels, limits=(0, 15), role="codes", axes=AXES,
            )  # fmt: skip
            self.error_view.set_frames(
                [
                    MatrixFrame(*errors(shown.weight, shown.plain(size)))
                    for size in SIZES
                ],
                labels=labels, reduce="max_abs", role="error", axes=AXES,
            )  # fmt: skip
            self.weight_view.cursor = list(self._cell)
            self.weight_view.pinned = False

    # ---------------------------------------------------------------- one weight

    def look(self) -> None:
        """Another block size, or another weight."""
        self._new_cell()
        self.dueling.look()

    def _new_cell(self) -> None:
        row, column = self.weight_view.cursor
        if row >= 0 and (row, column) != self._cell:
            self._cell = (row, column)
            self._draw_cell(self._now)
            self.draw_each()

    def _draw_cell(self, shown: Shown) -> None:
        row, column = self._cell
        self._found = [
            stored(shown.weight, packed, size, row, column)
            for size, packed in zip(SIZES, shown.packed, strict=True)
        ]
        self.cell_table.set_rows(arithmetic(row, column, self._found))
        self.storing.draw_cell(shown.packed, self._found, [shown.double(size) for size in SIZES])

    def draw_each(self) -> None:
        """The chosen weight by each contender, in the duel."""
        shown, (row, column) = self._now, self._cell
        levels = self.dueling.levels
        frames = []
        for size, at in zip(SIZES, self._found, strict=True):
            level = float(levels[(levels - at.x).abs().argmin()])
            told = (
                shown.entries[size].values()
                if self.dueling.board_control.value
                else [shown.entries[size][NF4_NAME]]
            )
            frames.append(rivals_rows(at.w, row, column, (level, level * at.a), list(told)))
        self.dueling.each.set_rows(["ŵ", "error w − ŵ"], frames)

    def _snippet(self, shown: Shown, size: int) -> str:
        """The library calls behind the page at this moment."""
        layer = call("qviz.load_layer", shown.opened.source, shown.opened.layer)
        rows = (
            ""
            if shown.weight.shape == shown.opened.weight.shape
            else (f"[:{shown.weight.shape[0]}]")
        )
        made = call("qviz.quantize", Name("weight"), "nf4", group_size=size)
        double = call("qviz.quantize", Name("weight"), "nf4", group_size=size, double_quant=True)
        own = call("qviz.quantize", Name("weight"), "nf4", group_size=size, levels=Name("levels"))
        return (
            f"import qviz\nfrom qviz.study.level_duel import Duel\n\n"
            f"weight = {layer}.float(){rows}\nq = {made}\ndouble = {double}\n"
            f'print(q.ledger, double.ledger, sep="\\n\\n")\n\n'
            f"levels = Duel(weight).blocks({size}).best()  # Lloyd–Max; or sixteen of your own\n"
            f"own = {own}"
        )
