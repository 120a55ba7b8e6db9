"""Lesson 5: where sixteen levels should lie, on a real layer.

It has four parts. The table is built number by number. Its bins fill unequally. What is stored is
shown to the byte. In a duel the learner's own levels meet those of others. Everything is computed
for every block size and sent ahead, so the slider needs no kernel.
"""

from typing import Any

from qviz.methods.affine import CONVENTIONS
from qviz.models.capture import load_calibration
from qviz.study.level_duel import (
    CONVENTIONS as INT4,
)
from qviz.study.level_duel import (
    NF4_NAME,
    RIVALS,
    SYMMETRIC,
    Duel,
    Entry,
)
from qviz.study.nf4_bytes import Stored, stored
from qviz.ui.views.fields import CellField
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.layer_page import OFFLINE, LayerPage
from qviz.ui.views.layer_pictures import errors
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.nf4_build import BuildPart
from qviz.ui.views.nf4_cell import (
    arithmetic,
    rivals_rows,
)
from qviz.ui.views.nf4_duel import DuelPart
from qviz.ui.views.nf4_shown import SIZES, Shown
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
from qviz.ui.views.parts import PartedLesson
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
    details,
    figures_row,
    link_matrices,
    section,
    stack,
)

FIRST_SIZE = 64
PARTS = (BUILD, FILL, STORE, DUEL)
LARGEST = 1 << 18  # weights; of a larger layer as many rows as fit are shown
AXES = ("out", "in")
SYMMETRIC_CONVENTIONS = [name for name, one in CONVENTIONS.items() if one.symmetric]


class Nf4Lesson(PartedLesson, LayerPage):
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
    def current(self) -> Any:
        """The page: its parts show what it computes."""
        return self

    @property
    def size(self) -> int:
        return SIZES[int(self.size_control.index)]

    @property
    def convention(self) -> str:
        return SYMMETRIC_CONVENTIONS[int(self.convention_control.index)]

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        self.add_parts(*PARTS)
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
        self.building, self.filling = BuildPart(self), FillPart(self)
        self.storing, self.dueling = StorePart(self), DuelPart(self)
        self.parts = {
            BUILD: self.building, FILL: self.filling, STORE: self.storing, DUEL: self.dueling,
        }  # fmt: skip
        self.prediction = self.dueling.prediction

    def _build_views(self) -> None:
        self.weight_view = MatrixView("Trained weights w")
        self.code_view = MatrixView("Codes q")
        self.error_view = MatrixView("Error w − ŵ")
        self.equation = Equation(EQUATION, TERMS, [], aria=SPOKEN)
        self.cell_table = Readout("The chosen weight in NF4")
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
        build, fill, store, duel = self.building, self.filling, self.storing, self.dueling
        layer = section(
            "The layer",
            figures_row(self.weight_view, self.code_view, self.error_view), self.part_of_layer,
        )  # fmt: skip
        cell = section("What happens to a weight", self.equation, self.cell_table)
        choose, more = stack(self.layer_control), stack(details("More", self.convention_control))
        fill.also = [choose, layer, cell]
        store.also = [*fill.also, store.bits_box]
        duel.also = [choose, more, layer, cell]
        return self.compose_parts(
            lead=self.size_control,
            caption=None,
            common=[choose, more],
            main=[*build.main, *fill.main, *store.main, *duel.main, layer, store.bits_box],
            side=[*build.side, cell, *store.side, *duel.side],
            code=self.code,
            own=[self.source_control, self.open_button, self.bundled_button],
        )

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
            return
        self.shown = shown  # what the parts draw from
        if last is None or last.opened is not shown.opened:
            self._draw_layer(shown)
            self.dueling.new_layer()
        self.filling.draw(shown)
        self.storing.draw(shown)
        self._draw_cell(shown)
        self.dueling.draw(shown)
        self.code.set_texts([self._snippet(shown, size) for size in SIZES])

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
