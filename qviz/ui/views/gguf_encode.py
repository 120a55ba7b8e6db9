"""A block of a real layer, encoded step by step on the steps' bar, and a second run beside it.

Both runs come whole from `qviz.study.gguf_walk`; every step's pictures, words and bytes are sent
ahead, so the bar needs no kernel.
"""

from qviz.methods.gguf.kquants import SUPER_BLOCK
from qviz.study.gguf_facts import zoo_facts
from qviz.study.gguf_types import fitting, importance_of
from qviz.study.gguf_walk import BLOCK, START, WEIGH, tries
from qviz.ui.views.fields import ValueField
from qviz.ui.views.gguf_beside_words import (
    beside_words,
    zoo_words,
)
from qviz.ui.views.gguf_guide import BESIDE, IMPORTANCE
from qviz.ui.views.gguf_pictures import BlockPictures
from qviz.ui.views.gguf_run import Shown, code_of, offered, run
from qviz.ui.views.gguf_said import beside_at, sentence, won
from qviz.ui.views.gguf_words import (
    ANSWERS,
    verdict,
)
from qviz.ui.views.layer_page import LayerPage, Opened
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.prediction import Prediction
from qviz.ui.widgets import (
    Choice,
    Code,
    MatrixFrame,
    MatrixView,
    Text,
    Transport,
    details,
    section,
    stack,
)

TYPES_OFFERED = ("Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
                 "MXFP4")  # fmt: skip
FIRST_PLACE = (7, 300)  # a weight to begin with


class EncodePart(LessonPart):
    """Controls, pictures and steps of the part.

    held  the weight of the layer that a learner chose; None: the page's own choice
    cell  the weight that the page is about, in its block
    """

    keys = ("type", "beside", "step", "weight")
    page: LayerPage
    shown: Shown | None

    def __init__(self, page: LayerPage, code: Code) -> None:
        super().__init__(page)
        self.held: tuple[int, int] | None = None
        self.cell = (0, 0)
        self._code = code
        self._build_controls()
        self._build_views()

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        page = self.page
        self.transport = Transport(2, label="step", rate=1.0, speeds=(0.5, 1, 2, 4))
        self.type_control = self.add("type", Choice("Type", list(TYPES_OFFERED)), busy=COMPUTING)
        self.beside_control = self.add("beside", Choice("Beside it", list(BESIDE)), busy=COMPUTING)
        self.add("step", self.transport, self.look)
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
        self.pictures = p = BlockPictures(self.transport)
        self.note = Text("", role="wait")
        for trait in ("pinned", "cursor"):
            for view in p.views:
                self.page.on_change(view, trait, self._pointed)
            self.page.on_change(self.layer_view, trait, self._picked)
        self.controls = [
            self.beside_control, self.prediction.box,
            details("Another block", self.layer_view, open=True),
        ]  # fmt: skip
        self.main = [
            section("The block now", self.note, p.first, p.charts, p.beside),
            section("What is stored", p.bytes),
        ]
        numbers = stack(p.cell_table)
        numbers.add_class("qv-side")
        self.side = [section("What happens here", p.equation), section("", numbers)]
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
        rows, columns = self.page.opened.weight.shape
        there = row.isdecimal() and column.isdecimal()
        if not there or int(row) >= rows or int(column) >= columns:
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
        shown, view = self.shown, self.pictures.x_view
        group, place = view.cursor
        if shown is None or group < 0:
            return
        if view.pinned:
            self.held = shown.row, shown.first + group * shown.walk.x.shape[1] + place
        if (group, place) != self.cell:
            other, self.cell = group != self.cell[0], (group, place)
            self.pictures.draw_weight(shown, self.cell)
            if other:
                self._draw_group(shown)

    def look(self) -> None:
        """From the first try on there is nothing left to predict."""
        if self.shown and self.shown.steps[self.step][0].kind not in (BLOCK, WEIGH, START):
            self.prediction.moved()

    # ---------------------------------------------------------------- computing

    def fit(self) -> None:
        """Offer the types that fit the rows, and what a second run can be."""
        opened = self.page.opened
        columns, known = opened.weight.shape[1], self.page.inputs_of(opened) is not None
        there = fitting(columns)
        _offer(self.type_control, [name for name in TYPES_OFFERED if name in there])
        _offer(self.beside_control, offered(self.type_control.value, columns, known))

    def compute(self) -> Shown:
        opened = self.page.opened
        calibration = self.page.inputs_of(opened)
        importance = None if calibration is None else importance_of(calibration)
        kind, beside = self.type_control.value, self.beside_control.value
        return run(opened, self._place(opened), kind, beside, importance, self.shown)

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: Shown) -> None:
        last, self.shown = self.shown, shown
        row, column = self._place(shown.opened)
        self.cell = divmod(column - shown.first, shown.walk.x.shape[1])
        with self.page.quietly():
            if last is None or last.opened is not shown.opened:
                frames = [MatrixFrame(shown.opened.weight)]
                self.layer_view.set_frames(frames, role="original", axes=("out", "in"))
            self.layer_view.cursor = [row, column]
            self.layer_view.pinned = self.held is not None
            end = shown.first + shown.walk.x.numel()
            self.layer_view.outlines = [[row, row + 1, shown.first, end]]
            kinds = [first.kind for first, _ in shown.steps]
            starts = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
            self.transport.set_steps(len(kinds), events={"part of the way": starts})
            self.pictures.draw(shown)
            self.pictures.put_cursor(self.cell, held=self.held is not None)
        if not shown.is_of(last):
            self.prediction.reset(possible=bool(tries(shown.type, shown.walk.importance)))
        self._draw_words(shown)
        self.pictures.draw_weight(shown, self.cell)
        self._draw_group(shown)
        self.look()
        self._code.set_texts(code_of(shown))

    def _draw_words(self, shown: Shown) -> None:
        text = ""
        if shown.beside == IMPORTANCE:
            text = beside_words(beside_at(shown, len(shown.steps) - 1)).strip()
        elif shown.second is not None:
            text = zoo_words(shown.beside, zoo_facts(shown.walk, shown.second))
        self.pictures.beside_said.set_texts(text)
        columns = shown.opened.weight.shape[1]
        self.note.text = "" if columns % SUPER_BLOCK == 0 else (
            f"Rows of {columns} weights are not a multiple of {SUPER_BLOCK}: no k-quant fits them, "
            f"and llama.cpp falls back to a type with blocks of 32."
        )  # fmt: skip

    def _draw_group(self, shown: Shown) -> None:
        """The sub-block of the chosen weight: its search, its levels, the words about it."""
        group = self.cell[0]
        with self.page.quietly():
            self.transport.captions = [sentence(shown, i, group) for i in range(len(shown.steps))]
        self._draw_curve()
        self.pictures.draw_levels(shown, group)
        self.prediction.answer()

    def _draw_curve(self) -> None:
        if self.shown is not None:
            seen = self.prediction.revealed
            self.pictures.draw_curve(self.shown, self.cell[0], whole=seen)

    def _judge(self, guess: int) -> str:
        if self.shown is None:
            return ""
        return verdict(guess, won(self.shown.whole, self.shown.block, self.cell[0]))


def _offer(control: Choice, names: list[str]) -> None:
    """Offer these options; the choice stays where it can, else it is the first."""
    if names != list(control.options):
        at = names.index(control.value) if control.value in names else 0
        control.set_options(names, at)
