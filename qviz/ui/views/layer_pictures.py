"""Three linked pictures of a layer: as trained, as rounded, and the error, a frame for each setting
of a control that the browser moves by itself.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from qviz.core.tensor import QuantizedTensor
from qviz.ui.views.frame import tie_frames
from qviz.ui.widgets import MatrixFrame, MatrixView, Toggle, figures_row, link, link_matrices

AXES = ("out", "in")


class LayerPictures:
    """The pictures, tied to `control`; `row` has all three side by side.

    stretch_control  stretches the error's colours for each frame instead of for all together
    """

    def __init__(self, control: Any, stretch_label: str = "Stretch the error's colours") -> None:
        self.original = MatrixView("Trained weights W")
        self.rounded = MatrixView("Rounded weights Ŵ")
        self.error = MatrixView("Error W − Ŵ")
        self.stretch_control = Toggle(stretch_label)
        self.row = figures_row(self.original, self.rounded, self.error)
        tie_frames(control, self.rounded, self.error)
        link(self.stretch_control, "value", (self.error, "autoscale"))
        link_matrices(self.original, self.rounded, self.error)

    def draw_layer(self, weight: torch.Tensor, cell: tuple[int, int]) -> None:
        """Another layer, weight [out, in]. The cursor stands at `cell` and is not held."""
        self.original.set_frames([MatrixFrame(weight)], role="original", axes=AXES)
        self.original.cursor = list(cell)
        self.original.pinned = False

    def draw(
        self, weight: torch.Tensor, tensors: Sequence[QuantizedTensor], labels: Sequence[str]
    ) -> None:
        """`tensors` are quantizations of the layer drawn last, one for each frame."""
        self.rounded.set_frames(
            [MatrixFrame(q.dequantize, q.window) for q in tensors],
            labels=labels,
            limits=tuple(self.original.shared_limits[0]),
            role="codes",
            axes=AXES,
        )
        self.error.set_frames(
            [MatrixFrame(*errors(weight, q)) for q in tensors],
            labels=labels,
            reduce="max_abs",
            role="error",
            axes=AXES,
        )


def errors(weight: torch.Tensor, q: QuantizedTensor) -> tuple[Callable[..., Any], ...]:
    """The whole error, and a window of it; computed when it is asked for."""
    return partial(_error, weight, q), partial(_window, weight, q)


def _error(weight: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    return weight - q.dequantize()


def _window(weight: torch.Tensor, q: QuantizedTensor, rows: slice, columns: slice) -> torch.Tensor:
    return weight[rows, columns] - q.window(rows, columns)
