"""The duel: sixteen levels that the learner drags on real weights, against those of others.

While a level is dragged the kernel answers with exact errors at every block size, from running
sums (`qviz.study.level_duel`); the layer's output is computed for the size that is shown.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qviz.methods.nf4 import NF4
from qviz.study.level_duel import (
    ASYMMETRIC,
    EVEN,
    LEVELS,
    LLOYD,
    NF4_DOUBLE,
    NF4_NAME,
    OWN,
    RIVALS,
    SYMMETRIC,
    Blocks,
    Entry,
    distinct,
)
from qviz.ui.figures.nf4 import error_by_bits, error_shares
from qviz.ui.views.nf4_build import narrow
from qviz.ui.views.nf4_shown import SIZES, Shown
from qviz.ui.views.nf4_words import (
    ANSWERS,
    ROW_NAMES,
    DuelFacts,
    Score,
    beside,
    conventions,
    duel_sentence,
    same,
    verdict,
)
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.spacing import system
from qviz.ui.widgets import (
    Button,
    Caption,
    Chart,
    NumberLine,
    Table,
    Text,
    Toggle,
    figures_row,
    number,
    percent,
    section,
    show_only,
    stack,
)

STEP = 0.001
COLUMNS = ("weights", "output", "bits", "beside NF4")
CURVES = (NF4_NAME, NF4_DOUBLE, SYMMETRIC, ASYMMETRIC, LLOYD)
EVEN_FLOATS = tuple(float(v) for v in torch.tensor(EVEN))
Entries = Mapping[int, Mapping[str, Entry]]


class DuelPart(LessonPart):
    """Handles, scoreboard and prediction. `levels` are the learner's, [16] ascending float32."""

    keys = ("levels", "board")

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self._outputs: dict[int, float] = {}  # of the learner's levels as they are now
        self._scores: dict[int, dict[str, Score]] = {}
        self.line = NumberLine(
            "Your levels (handles) and NF4’s (short lines), for x = w / a",
            [f"level {i}" for i in range(LEVELS)], root=True, height=150,
        )  # fmt: skip
        self.line.set_line((-1.0, 1.0), list(EVEN_FLOATS), step=STEP)
        self.nf4_button = Button("Start from NF4")
        self.even_button = Button("Equal spacing")
        self.round_button = Button("One round of Lloyd")
        self.rest_button = Button("Lloyd until nothing moves")
        self.board_control = Toggle("Everyone's score")
        self.prediction = Prediction(
            "In the same blocks, on these weights: which of these has less error than NF4?",
            ANSWERS, self._verdict, self._reveal,
        )  # fmt: skip
        self.shares = Chart("Each level’s share of the squared error", height=120)
        self.board = Table("How large the error is, at how many bits per weight")
        self.curves = Chart("Error against true bits", height=250)
        self.curves_box = stack(Text(self.curves.label, "h3"), self.curves)
        self.caption = Caption()
        self.each = Table("The chosen weight, by each")
        self._wire()
        self.conventions = Text("", role="wait")
        buttons = figures_row(
            self.even_button, self.nf4_button, self.round_button, self.rest_button, wide=True
        )
        self.controls = [self.board_control, self.prediction.box]
        self.main = [
            section("Drag the levels", self.line, self.shares, buttons, said(self.caption)),
            section("", narrow(self.board), self.conventions, self.curves_box),
        ]
        self.side = [section("", self.each)]

    def _wire(self) -> None:
        page = self.page
        self.add("levels", self.line, self._dragged, lights=["v", "q"], looks=True)
        self.add("board", self.board_control, self._board_toggled)
        page.on_press(self.nf4_button, lambda: self._put(NF4))
        page.on_press(self.even_button, lambda: self._put(EVEN_FLOATS))
        page.on_press(self.round_button, lambda: self._lloyd(Blocks.moved))
        page.on_press(self.rest_button, lambda: self._lloyd(Blocks.rested))
        page.on_change(self.prediction.control, "index", self._guessed)

    # ---------------------------------------------------------------- the learner's levels

    @property
    def levels(self) -> torch.Tensor:
        return distinct(list(self.line.values))

    @property
    def size(self) -> int:
        return int(self.page.size)

    @property
    def _shown(self) -> Any:
        return self.page.shown

    def _put(self, levels: Any) -> None:
        with self.page.quietly():
            self.line.values = [float(v) for v in levels]
        self._dragged()

    def _lloyd(self, move: Callable[[Blocks, torch.Tensor], torch.Tensor]) -> None:
        """Move the levels to the best places for their weights, in blocks of the size shown."""
        self._put(move(self._shown.duel.blocks(self.size), self.levels).tolist())

    def _dragged(self) -> None:
        self._outputs = {}
        self.draw_own(self._shown)

    # ---------------------------------------------------------------- the prediction

    def _guessed(self) -> None:
        self.prediction.answer()
        if self.prediction.guessed:
            with self.page.quietly():
                self.board_control.value = True
            self.draw_own(self._shown)

    def _reveal(self) -> None:
        """The prediction says so after a guess, and when the page goes back after a failure."""

    def _board_toggled(self) -> None:
        if self.board_control.value:
            self.prediction.moved()
        self.draw_own(self._shown)

    def _verdict(self, guess: int) -> str:
        return verdict(guess, self.size, self._scores[self.size])

    # ---------------------------------------------------------------- drawing

    def new_layer(self) -> None:
        """Another layer means another prediction."""
        with self.page.quietly():
            self.prediction.reset()
            self.board_control.value = False

    def draw(self, shown: Shown) -> None:
        """Draw what does not depend on the learner's levels, then what does."""
        self._outputs = {}
        self._scores = {size: _scores(shown.entries[size]) for size in SIZES}
        curves = {
            ROW_NAMES[name]: [
                (size, entry.bits, entry.error)
                for size in reversed(SIZES)
                if (entry := shown.entries[size].get(name)) is not None
            ]
            for name in CURVES
        }
        self.curves.set_figures(
            error_by_bits(curves, SIZES),
            [_curve_words(shown.entries[size], size) for size in SIZES],
        )
        nf4 = [shown.duel.blocks(size) for size in SIZES]
        edges = torch.linspace(-1, 1, 101).numpy()
        counts = [_histogram(blocks.x, edges) for blocks in nf4]
        self.line.set_histogram(counts, [edges] * len(counts))
        self.line.set_levels(
            [NF4] * len(SIZES),
            [
                f"Histogram of x in blocks of {size}, with NF4's sixteen levels and yours"
                for size in SIZES
            ],
        )
        self.conventions.text = conventions(system(shown.convention, True))
        self.draw_own(shown)

    def look(self) -> None:
        """Another block size: the output of the learner's levels is known for it too."""
        self.draw_own(self._shown)
        self.prediction.answer()

    def draw_own(self, shown: Shown) -> None:
        """Scoreboard, words and bars for the levels as they are now."""
        levels, size = self.levels, self.size
        if shown.duel.calibration is not None and size not in self._outputs:
            own = shown.duel.own(levels, size)
            assert own.output_error is not None
            self._outputs[size] = own.output_error
        errors = {s: shown.duel.blocks(s).squared_errors(levels) for s in SIZES}
        sums = {s: float(e.sum()) for s, e in errors.items()}
        self.shares.set_figures(
            error_shares([(levels, e / (sums[s] or 1.0)) for s, e in errors.items()]),
            [
                f"In blocks of {s}, level {int(e.argmax())} makes most of the error, "
                f"{percent(float(e.max()) / (sums[s] or 1.0))}"
                for s, e in errors.items()
            ],
        )
        facts = [self._facts(shown, s, levels) for s in SIZES]
        told = bool(self.board_control.value)
        self.board.set_rows(COLUMNS, [_board(one) for one in facts])
        self.caption.set_texts([duel_sentence(one) for one in facts])
        show_only(self.curves_box, told)
        self.page.draw_each()

    def _facts(self, shown: Shown, size: int, levels: torch.Tensor) -> DuelFacts:
        own = Score(
            shown.duel.blocks(size).relative_error(levels),
            self._outputs.get(size),
            self._scores[size][LLOYD].bits,  # it too stores a table of its own
        )
        told = bool(self.board_control.value)
        return DuelFacts(size, own, self._scores[size], told, bargain(self._scores, size))


def said(caption: Caption) -> Any:
    """A caption where the learner looks, marked as the page's."""
    box = stack(caption)
    box.add_class("qv-caption-row")
    return box


def bargain(scores: Mapping[int, Mapping[str, Score]], size: int) -> tuple[str, int, Score]:
    """The least error for at most NF4's bits in blocks of `size`, over rivals and sizes of
    `scores`: whose it is, in which blocks."""
    limit = scores[size][NF4_NAME].bits
    found = [
        (name, at, score)
        for at, each in scores.items()
        for name, score in each.items()
        if score.bits <= limit
    ]
    return min(found, key=lambda one: one[2].error)


def _scores(entries: Mapping[str, Entry]) -> dict[str, Score]:
    return {n: Score(e.error, e.output_error, e.bits) for n, e in entries.items()}


def _histogram(x: Any, edges: Any) -> Any:
    """Counts of sorted values."""
    at = x.searchsorted(edges, side="left")
    at[-1] = len(x)
    counts = at[1:] - at[:-1]
    counts[0] += at[0]
    return counts


def _board(facts: DuelFacts) -> list[Any]:
    """A row for the learner and for each rival that may be revealed, the best of each column
    lit."""
    rows = [(OWN, facts.own, "now")]
    told = RIVALS if facts.told else (NF4_NAME,)
    rows += [(name, facts.scores[name], "") for name in told if name in facts.scores]
    nf4 = facts.scores[NF4_NAME].error
    least = min(score.error for _, score, _ in rows)
    cheapest = min(score.bits for _, score, _ in rows)
    outputs = [score.output for _, score, _ in rows if score.output is not None]
    made: list[Any] = []
    for name, score, role in rows:
        lit = [0] if same(score.error, least) else []
        if score.output is not None and same(score.output, min(outputs)):
            lit.append(1)
        if score.bits == cheapest:
            lit.append(2)
        cells = [
            percent(score.error, 4),
            "–" if score.output is None else percent(score.output, 4),
            number(score.bits, 5),
            "" if name == NF4_NAME else beside(score.error, nf4),
        ]
        made.append((ROW_NAMES.get(name, name), cells, lit, role))
    return made


def _curve_words(entries: Mapping[str, Entry], size: int) -> str:
    """What the chart shows for one block size."""
    said = "; ".join(
        f"{ROW_NAMES[name]} {percent(entries[name].error, 4)} at "
        f"{number(entries[name].bits, 5)} bits"
        for name in CURVES
        if name in entries
    )
    return f"Blocks of {size}: {said}"
