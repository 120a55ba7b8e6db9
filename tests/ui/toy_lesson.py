"""A whole new lesson, as short as the frame lets it be: how far one weight is from its level."""

from dataclasses import dataclass
from typing import Any

import torch

from qviz.methods.affine import affine
from qviz.ui.views.frame import compose
from qviz.ui.views.guide_steps import Is, Step
from qviz.ui.views.layer_page import LayerPage, Opened
from qviz.ui.views.lessons import Lesson
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import Caption, Choice, Code, MatrixView, Transport, number, section

TOY = Lesson(99, "toy", "A toy", "How far is one column?", "Numbers", "", "toy_lesson", "ToyLesson")


@dataclass(frozen=True, eq=False)
class Shown:
    opened: Opened
    error: torch.Tensor


class ToyLesson(LayerPage):
    lesson = TOY  # type: ignore[assignment]
    guide_steps = (Step("Take two bits", "The error grows.", done={"bits": Is("2")}),)

    def __init__(self) -> None:
        super().__init__()
        self.bits = self.add("bits", Choice("Bits per code", ["4", "3", "2"]))
        self.transport = self.add("column", Transport(2, label="column"))
        self.picture, self.caption, self.code = MatrixView("Error"), Caption(), Code()
        self.widget = compose(
            self, controls=[self.layer_control, self.bits], main=[section("Error", self.picture)],
            caption=self.caption, foot=self.transport, code=self.code,
            own=[self.source_control, self.open_button, self.bundled_button],
        )  # fmt: skip
        self.open()

    def compute(self) -> Shown:
        weight = self.opened.weight.float()
        return Shown(self.opened, weight - affine(weight, bits=int(self.bits.value)).dequantize())

    def draw(self, shown: Shown) -> None:
        self.picture.set_frames([shown.error], role="error")
        self.transport.set_steps(shown.error.shape[1])
        self.shown: Any = shown
        self.look()

    def look(self) -> None:
        off = float(self.shown.error[:, self.transport.index].norm())
        self.caption.set_texts(f"Column {self.transport.index} is off by {number(off)}.")
        layer = call("qviz.load_layer", self.shown.opened.source, self.shown.opened.layer)
        made = call("qviz.quantize", Name("weight"), "affine", bits=int(self.bits.value))
        self.code.set_texts(
            f"import qviz\n\nweight = {layer}.float()\nerror = weight - {made}.dequantize()"
        )
