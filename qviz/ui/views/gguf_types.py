"""Every GGUF type on the layer: true bits against error, what the bits are spent on, importance.

All types are encoded once per layer, and everything is sent ahead: the slider needs no kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration
from qviz.study.gguf_types import (
    PARTS,
    Score,
    Shift,
    bits_of,
    fitting,
    importance_of,
    scores,
    shift,
)
from qviz.ui.figures.gguf import bill_chart, shift_chart, types_chart
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.gguf_types_words import (
    OF_OUTPUTS,
    OF_WEIGHTS,
    ShiftFacts,
    TypeFacts,
    shift_words,
    type_rows,
    type_words,
)
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.layer_pictures import LayerPictures
from qviz.ui.views.lesson_page import LessonPage
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
    Choice,
    Slider,
    Table,
    Text,
    figures_row,
    section,
    stack,
)

LARGEST = 1 << 18  # weights; of a larger layer as many whole rows as fit are encoded
FIRST = "Q4_K"


@dataclass(frozen=True, eq=False)
class Shown:
    """A layer [rows, in] in every type that fits it, and which error is shown."""

    opened: Opened
    weight: torch.Tensor
    calibration: Calibration | None
    scores: Mapping[str, tuple[Score, Score | None]]
    shifts: Mapping[str, Shift | None]
    of_outputs: bool

    @property
    def types(self) -> list[str]:
        return list(self.scores)

    def error(self, score: Score) -> float:
        """The one that is shown."""
        if not self.of_outputs:
            return score.error
        assert score.output is not None
        return score.output

    def facts(self, name: str) -> TypeFacts:
        plain, weighed = self.scores[name]
        return TypeFacts(
            name, plain.bits, bits_of(name)["codes"], self.error(plain),
            None if weighed is None or not weighed.weighs else self.error(weighed),
            weighed is not None,
            {other: self.error(pair[0]) for other, pair in self.scores.items()
             if pair[0].bits == plain.bits and other != name},
            OF_OUTPUTS if self.of_outputs else OF_WEIGHTS,
        )  # fmt: skip


class TypesPart(LessonPart):
    """Controls, charts and words of the part."""

    keys = ("kind", "error")
    shown: Shown | None

    def __init__(self, page: LessonPage) -> None:
        super().__init__(page)
        self.kind_control = self.add("kind", Slider("Type", [FIRST]), self._new_kind, looks=True)
        self.error_control = self.add(
            "error", Choice("Error of the", [OF_WEIGHTS, OF_OUTPUTS], kind="segmented")
        )
        self.chart = Chart("Error against true bits", height=300)
        self.bill = Chart("What the bits are spent on", height=290)
        self.shift = Chart("Where the error goes", height=290)
        self.table = Table("The types on this layer")
        self.caption = Caption()
        self.shift_said = Caption()
        self.shift_said.add_class("qv-aside")
        self.pictures = LayerPictures(self.kind_control, "Stretch each type's errors")
        self.note = Text("", role="wait")
        tie_frames(self.kind_control, self.chart, self.bill, self.shift, self.caption,
                   self.shift_said, self.table)  # fmt: skip
        page.add("stretch", self.pictures.stretch_control, lambda: None, live=self.is_open)
        self.lead = self.kind_control
        self.controls = [self.error_control, self.pictures.stretch_control]
        self.main = [
            section(
                "Every type on this layer", self.note, Text(self.chart.label, "h3"), self.chart,
                figures_row(stack(Text(self.bill.label, "h3"), self.bill),
                            stack(Text(self.shift.label, "h3"), self.shift), wide=True),
            ),
            section("The layer in this type", self.pictures.row),
        ]  # fmt: skip
        numbers = stack(self.table)
        numbers.add_class("qv-side")
        self.side = [
            section("", numbers),
            section("What importance changes", self.shift_said),
        ]

    def _new_kind(self) -> None:
        """Nothing here waits for the kernel."""

    def fit(self) -> None:
        page: Any = self.page
        names = fitting(page.opened.weight.shape[1])
        if names != list(self.kind_control.options):
            now = str(self.kind_control.value)
            at = names.index(now) if now in names else 0
            self.kind_control.set_options(names, at)
        there = page.inputs_of(page.opened) is not None
        self.error_control.disabled = not there
        if not there:
            self.error_control.index = 0

    def compute(self) -> Shown:
        page: Any = self.page
        opened, last = page.opened, self.shown
        calibration = page.inputs_of(opened)
        of_outputs = self.error_control.index == 1
        if last is not None and last.opened is opened and last.calibration is calibration:
            return Shown(opened, last.weight, calibration, last.scores, last.shifts, of_outputs)
        weight = opened.weight.float()
        weight = weight[: max(1, LARGEST // weight.shape[1])]
        found = scores(weight, fitting(weight.shape[1]), calibration)
        shifts: dict[str, Shift | None] = {}
        for name, (plain, weighed) in found.items():
            shifts[name] = None
            if weighed is not None and weighed.weighs and calibration is not None:
                shifts[name] = shift(weight, plain.tensor, weighed.tensor,
                                     importance_of(calibration))  # fmt: skip
        return Shown(opened, weight, calibration, found, shifts, of_outputs)

    def draw(self, shown: Shown) -> None:
        last, self.shown = self.shown, shown
        types = shown.types
        facts = [shown.facts(name) for name in types]
        texts = [type_words(one) for one in facts]
        self.caption.set_texts(texts)
        self.chart.set_figures(
            types_chart(types, [f.bits for f in facts], [f.error for f in facts],
                        [f.weighed for f in facts], facts[0].what),
            summary=texts,
        )  # fmt: skip
        self.bill.set_figures(bill_chart(types, [bits_of(name) for name in types], PARTS), texts)
        said = [_shift_said(name, shown.shifts[name], shown.calibration is not None)
                for name in types]  # fmt: skip
        self.shift_said.set_texts(said)
        self.shift.set_figures(
            shift_chart([_curve(shown.shifts[name]) for name in types]), summary=said
        )
        rows: list[tuple[str, list[str]]] = [
            (name, [f"{f.bits:g}", *type_rows(f)]) for name, f in zip(types, facts, strict=True)
        ]
        self.table.set_rows(
            ["bits", "off by", "with importance"],
            [[(label, cells, [0, 1, 2] if i == k else []) for i, (label, cells) in
              enumerate(rows)] for k in range(len(types))],
        )  # fmt: skip
        if last is None or last.weight is not shown.weight:
            with self.page.quietly():
                rows_, columns = shown.weight.shape
                self.pictures.draw_layer(shown.weight, (rows_ // 7, columns // 7))
                self.pictures.draw(
                    shown.weight, [shown.scores[name][0].tensor for name in types], types
                )
        whole, some = shown.opened.weight.shape[0], shown.weight.shape[0]
        self.note.text = "" if some == whole else (
            f"The first {some} of {whole} rows: rows are encoded independently of each other."
        )  # fmt: skip
        self._draw_code(shown)

    def _draw_code(self, shown: Shown) -> None:
        page: Any = self.page
        source, name = shown.opened.source, shown.opened.layer
        layer = call("qviz.load_layer", source, name)
        some = shown.weight.shape[0]
        rows = "" if some == shown.opened.weight.shape[0] else f"[:{some}]"
        calibration = (
            "None" if shown.calibration is None else call("qviz.load_calibration", source, name)
        )
        types = Name("fitting(weight.shape[1])")
        made = call("scores", Name("weight"), types, Name(calibration))
        page.code.set_texts(
            f"import qviz\nfrom qviz.study.gguf_types import fitting, scores\n\n"
            f"weight = {layer}.float(){rows}\n"
            f"found = {made}\n"
            f'plain, weighed = found["{shown.types[0]}"]\n'
            f"print(plain.bits, plain.error, plain.output)"
        )


def _curve(one: Shift | None) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    if one is None:
        return None
    return one.importance.numpy(), one.plain.numpy(), one.weighed.numpy()


def _shift_said(name: str, one: Shift | None, inputs: bool) -> str:
    facts = None
    if one is not None:
        facts = ShiftFacts(*(float(v[at]) for v in (one.plain, one.weighed) for at in (0, -1)))
    return shift_words(name, facts, inputs)
