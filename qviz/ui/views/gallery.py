"""The gallery: the lessons that exist, and a first thing to touch."""

from html import escape
from typing import Any

import ipywidgets

from qviz.core.metrics import compare
from qviz.methods.affine import affine
from qviz.models.checkpoint import load_layer
from qviz.ui.views.bit_width import BITS
from qviz.ui.views.layer_page import FIRST_LAYER
from qviz.ui.views.lessons import LESSONS, Lesson
from qviz.ui.widgets import Caption, MatrixView, Slider, figures_row, link, page, section

CORNER = 32  # rows and columns of the layer that the first picture shows


class Gallery:
    """The landing page. `.widget` is the page."""

    def __init__(self) -> None:
        self.bits_control = Slider("Bits per code", [str(b) for b in BITS], len(BITS) - 1)
        self.picture = MatrixView(f"{CORNER} × {CORNER} trained weights, rounded")
        self.caption = Caption()
        link(self.bits_control, "index", (self.picture, "frame"), (self.caption, "frame"))
        self._compute()
        lessons = [ipywidgets.HTML(_link(lesson)) for lesson in LESSONS]
        self.widget = page(
            "qviz",
            "See and touch LLM quantization, on real weights",
            main=[section("Lessons", figures_row(*lessons, wide=True))],
            side=[section("Touch it", self.bits_control, self.picture, self.caption)],
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.widget._repr_mimebundle_(**kwargs)

    def _compute(self) -> None:
        weight = load_layer(None, FIRST_LAYER).float()[:CORNER, :CORNER]
        tensors = [affine(weight, bits=b, granularity="channel") for b in BITS]
        rounded = [q.dequantize() for q in tensors]
        self.picture.set_frames(rounded, labels=[f"{b} bits" for b in BITS], role="codes")
        self.caption.set_texts(
            [
                f"{b} bits: {len(q.levels(0, 0))} levels in each row, the weights are "
                f"off by {100 * compare(weight, r).relative_error:.2g} %."
                for b, q, r in zip(BITS, tensors, rounded, strict=True)
            ]
        )


def _link(lesson: Lesson) -> str:
    """A plain anchor, so that it opens like any link."""
    return (
        f'<a class="qv-lesson-link" href="{escape(lesson.notebook)}">'
        f"<strong>{lesson.number} · {escape(lesson.title)}</strong>"
        f"<span>{escape(lesson.question)}</span><small>{escape(lesson.promise)}</small></a>"
    )
