"""GPTQ by hand: one row, three weights, every number visible, on the steps' bar of the lesson.

All numbers are those of `qviz.study.gptq_by_hand`, which takes them from the real function; here
they are put into tables, one for each moment of the walk.
"""

from collections.abc import Sequence
from typing import Any

from qviz.study.gptq_by_hand import BITS, INPUTS, WEIGHTS, ByHand, Moment, by_hand
from qviz.study.gptq_by_hand_words import sentence
from qviz.ui.views.fields import WordsField
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.gptq_equation import BY_HAND_LIT, EQUATION, SPOKEN, TERMS
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.snippet import call
from qviz.ui.widgets import (
    Button,
    Equation,
    Slider,
    Table,
    TextField,
    Transport,
    details,
    figures_row,
    number,
    section,
)

BITS_OFFERED = (2, 3, 4)
DIGITS = 10  # float64 rounding noise below this is dropped, so that 0.4 reads as 0.4


class ByHandPart(LessonPart):
    """Controls, tables and steps of the part. `shown` is the walk."""

    keys = ("row", "inputs", "width")
    shown: ByHand | None

    def __init__(self, page: LessonPage, transport: Transport) -> None:
        super().__init__(page)
        self._transport = transport
        self.weights_control = TextField("Weights of the row", _row_text(WEIGHTS))
        self.inputs_control = TextField(
            "Inputs, one token after the other", "; ".join(_row_text(token) for token in INPUTS)
        )
        page.fields["row"] = WordsField("row", self.weights_control, live=self.is_open)
        page.fields["inputs"] = WordsField("inputs", self.inputs_control, live=self.is_open)
        self.bits_control = self.add(
            "width",
            Slider("Bits per code", [str(b) for b in BITS_OFFERED], BITS_OFFERED.index(BITS)),
            busy=COMPUTING,
        )  # fmt: skip
        self.again_button = Button("Compute with these numbers")
        page.on_press(self.again_button, self.update, COMPUTING, field=self.weights_control)
        self.inputs_control.on_submit(page.handler(self.update, COMPUTING))
        self.row_table = Table("The row")
        self.output_table = Table("Error of the outputs")
        self.hessian_table = Table("H: how inputs move together")
        self.factor_table = Table("U: who can compensate for whom")
        self.equation = Equation(EQUATION, TERMS, [], aria=SPOKEN, calm=True)
        tie_frames(
            transport, self.row_table, self.output_table, self.hessian_table, self.factor_table,
            self.equation,
        )  # fmt: skip
        self.controls = [
            self.bits_control,
            details("Other numbers", self.weights_control, self.inputs_control, self.again_button),
        ]
        self.main = [
            section("Three weights, by hand", figures_row(self.row_table, self.output_table))
        ]
        self.side = [
            section("What happens here", self.equation),
            section("What the inputs say", self.hessian_table, self.factor_table),
        ]

    def compute(self) -> ByHand:
        tokens = [_numbers(part, "inputs") for part in self.inputs_control.value.split(";")]
        row = _numbers(self.weights_control.value, "weights")
        return by_hand(row, tokens, bits=BITS_OFFERED[int(self.bits_control.index)])

    def draw(self, walk: ByHand) -> None:
        moments = walk.moments
        columns = [f"column {j}" for j in range(len(walk.weights))]
        with self.page.quietly():
            on_bar = self.page.on_bar is self
            self.page.on_bar = self
            self._transport.set_steps(
                len(moments),
                None if on_bar else 0,
                events={"column": [i for i, m in enumerate(moments) if m.kind == "round"]},
                captions=[sentence(walk, moment) for moment in moments],
            )
        self.row_table.set_rows([*columns, "Σ(w − ŵ)²"], [_row(walk, m) for m in moments])
        self.output_table.set_rows(
            ["inputs x", "output x·w, as trained", "error now", "error, rounded to nearest"],
            [_outputs(walk, m) for m in moments],
        )
        options = {"bits": walk.bits}
        made = call("by_hand", walk.weights, walk.inputs, **options)
        self.page.code.set_texts(
            f"from qviz.study.gptq_by_hand import by_hand\n\nwalk = {made}\n"
            f"walk.gptq.weights, walk.gptq.output_error, walk.nearest.output_error"
        )
        self.hessian_table.set_rows(columns, [_matrix(walk.hessian, m, "H") for m in moments])
        self.factor_table.set_rows(columns, [_matrix(walk.factor, m, "U") for m in moments])
        self.equation.actives = [BY_HAND_LIT[moment.kind] for moment in moments]


def _n(value: float) -> str:
    return number(round(value, DIGITS))


def _row_text(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _numbers(text: str, what: str) -> list[float]:
    try:
        return [float(part.replace("−", "-")) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(
            f"{what} must be numbers separated by commas, such as {_row_text(WEIGHTS)}; got "
            f"{text.strip()!r}"
        ) from error


def _row(walk: ByHand, moment: Moment) -> list[Any]:
    """The row as given, as it is now, and after rounding to nearest."""
    lit = [] if moment.step is None else [moment.step]
    if moment.kind == "compensate" and moment.step is not None:
        lit = list(range(moment.step + 1, len(walk.weights)))
    gap = sum((a - b) ** 2 for a, b in zip(moment.weights, walk.weights, strict=True))
    rows: list[Any] = [
        ("as trained", [*map(_n, walk.weights), ""], [], "original"),
        ("now", [*map(_n, moment.weights), _n(gap)], lit, "now"),
    ]
    if moment.kind not in ("inputs", "factor"):
        near = walk.nearest
        rows.append(
            ("rounded to nearest", [*map(_n, near.weights), _n(near.weight_error)], [], "wait")
        )
    return rows


def _outputs(walk: ByHand, moment: Moment) -> list[Any]:
    """Each token's inputs and output x·w, and its error now and with rounding to nearest."""
    early = moment.kind in ("inputs", "factor")
    rows: list[Any] = []
    squares = 0.0
    for i, x in enumerate(walk.inputs):
        true, now = (
            sum(a * b for a, b in zip(x, row, strict=True))
            for row in (walk.weights, moment.weights)
        )
        squares += (now - true) ** 2
        near = "" if early else _n(walk.nearest.misses[i])
        rows.append((f"token {i}", [_row_text(x), _n(true), _n(now - true), near], []))
    mean = _n(squares / len(walk.inputs))
    near = "" if early else _n(walk.nearest.output_error)
    return [*rows, ("mean of squares", ["", "", mean, near], [2], "error")]


def _matrix(matrix: Sequence[Sequence[float]], moment: Moment, name: str) -> list[Any]:
    """A row for each column; what the stage uses lights up."""
    rows = []
    for j, values in enumerate(matrix):
        lit: list[int] = []
        if name == "H" and moment.kind == "inputs":
            pair = int(moment.facts["first"]), int(moment.facts["second"])
            lit = [pair[1]] if j == pair[0] else [pair[0]] if j == pair[1] else []
        if name == "U" and moment.step == j:
            lit = {"divide": [j], "compensate": list(range(j + 1, len(values)))}.get(
                moment.kind, []
            )
        rows.append((f"column {j}", [_n(value) for value in values], lit))
    return rows
