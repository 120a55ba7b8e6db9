"""Lesson 2: number formats, bit by bit; the line of all their numbers; blocks with a shared scale.

Three parts of one page. "One number" follows a number through every format (`formats_number`), "a
block of weights" is `formats_block`, "hardware" a table with its sources, `formats_hardware`. The
format slider leads the first and the last; it is tied to what it moves in the browser, so that
dragging needs no kernel.
"""

from collections.abc import Sequence
from typing import Any

from qviz.study.number_formats import TITLES
from qviz.ui.views.formats_block import BlockPart
from qviz.ui.views.formats_hardware import HardwarePart
from qviz.ui.views.formats_number import NAMES, NumberPart
from qviz.ui.views.formats_words import BLOCK, GUIDE, HARDWARE, NUMBER
from qviz.ui.views.layer_page import LayerPage
from qviz.ui.views.parts import PartedLesson
from qviz.ui.widgets import Code, Slider

PARTS = (NUMBER, BLOCK, HARDWARE)


class FormatsLesson(PartedLesson, LayerPage):
    """The lesson, in three parts of which one is shown. `.widget` is the page.

    source  None (the bundled model), "minilm", a directory, a .safetensors file or a Hub id
    layer   the name of one of its linear layers; with either the second part is open
    """

    lesson_number = 2
    guide_steps = GUIDE

    def __init__(self, source: str | None = None, layer: str | None = None) -> None:
        super().__init__()
        self.add_parts(*PARTS)
        self.format_control = Slider("Format", list(TITLES.values()))
        self.code = Code()
        self.number, self.block = NumberPart(self), BlockPart(self)
        self.hardware = HardwarePart(self)
        self.add("format", self.format_control, lambda: None, names=lambda: NAMES, looks=True)
        self.prediction = self.number.prediction
        self.equation = self.number.equation
        self.parts = {NUMBER: self.number, BLOCK: self.block, HARDWARE: self.hardware}
        self.widget = self.compose_parts(
            lead=self.format_control,
            caption=None,
            code=self.code,
            own=[self.source_control, self.open_button, self.bundled_button],
        )
        if source is not None or layer is not None:
            with self.quietly():
                self.part_control.index = PARTS.index(BLOCK)
        self.open(source, layer)

    def fit(self) -> None:
        self.block.fit()  # its fields are there whichever part is open

    def keys_of(self, part: Any) -> Sequence[str]:
        """A layer is what the second part is about."""
        return [*part.keys, "layer", "model"] if part is self.block else part.keys
