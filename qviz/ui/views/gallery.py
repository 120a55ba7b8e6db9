"""The gallery: the course as a path, and a first slider to try."""

from typing import Any

from qviz.core.metrics import compare
from qviz.methods.affine import affine
from qviz.models.checkpoint import load_layer
from qviz.ui.views.frame import course_list, tie_frames
from qviz.ui.views.layer_page import FIRST_LAYER
from qviz.ui.widgets import Caption, Head, MatrixView, Path, Slider, page, percent, section

CORNER = 32  # rows and columns of the layer that the first picture shows
BITS = (2, 3, 4, 5, 6, 7, 8)


class Gallery:
    """The landing page. `.widget` is the page."""

    def __init__(self) -> None:
        self.bits_control = Slider("Bits per code", [str(b) for b in BITS], len(BITS) - 1)
        self.picture = MatrixView(f"{CORNER} × {CORNER} trained weights, rounded")
        self.caption = Caption()
        tie_frames(self.bits_control, self.picture, self.caption)
        self._compute()
        self.path = Path(course_list())
        self.widget = page(
            head=Head("qviz", "See and touch LLM quantization, on real weights", tab="All lessons"),
            main=[section("The course", self.path)],
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
                f"{b} bits: {len(q.levels(0, 0))} levels in each row. The weights are off by "
                f"{percent(compare(weight, r).relative_error, 2)}."
                for b, q, r in zip(BITS, tensors, rounded, strict=True)
            ]
        )
