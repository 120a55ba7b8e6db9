"""Lesson 9: GGUF and k-quants, from one super-block's bytes to a whole file.

Three parts: a block of a real layer encoded step by step as llama.cpp does; every type on that
layer; and which tensor of a model gets which type.
"""

from typing import Any

from qviz.ui.views.gguf_encode import EncodePart
from qviz.ui.views.gguf_file import FilePart
from qviz.ui.views.gguf_guide import ENCODE, FILE, GUIDE, TYPES_PART
from qviz.ui.views.gguf_types import TypesPart
from qviz.ui.views.layer_page import LayerPage
from qviz.ui.views.parts import PartedLesson
from qviz.ui.widgets import Code, stack


class GgufLesson(PartedLesson, LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source  None (the bundled model), "minilm", a directory, a .safetensors file or a Hub id
    layer   the name of one of its linear layers
    """

    lesson_number = 9
    guide_steps = GUIDE
    first_layer = "model.layers.1.mlp.down_proj"

    def __init__(self, source: str | None = None, layer: str | None = None) -> None:
        super().__init__()
        self.code = Code()
        self.add_parts(ENCODE, TYPES_PART, FILE)
        self.encode = EncodePart(self, self.code)
        self.types = TypesPart(self)
        self.file = FilePart(self)
        self.parts = {ENCODE: self.encode, TYPES_PART: self.types, FILE: self.file}
        self.prediction, self.equation = self.encode.prediction, self.encode.pictures.equation
        self.widget = self._page()
        self.open(source, layer)

    def _page(self) -> Any:
        """A file is about a model's shape, not about the layer."""
        layer = stack(self.layer_control)
        self.encode.also = self.types.also = [layer]
        own = [self.source_control, self.open_button, self.bundled_button, self.add_capture()]
        return self.compose_parts(first=[layer], code=self.code, own=own)
