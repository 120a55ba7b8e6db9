"""The two charts of the bit-width lesson, a frame for each bit-width."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from qviz.core.tensor import QuantizedTensor
from qviz.ui.figures.bit_width import error_curves, levels_histogram
from qviz.ui.views.bit_width_words import OUTPUT
from qviz.ui.views.scale_sharing import each
from qviz.ui.widgets import Chart, percent


def draw_histogram(
    chart: Chart,
    weight: torch.Tensor,
    spread: tuple[np.ndarray, np.ndarray],
    tensors: Sequence[QuantizedTensor],
    cell: tuple[int, int],
) -> None:
    """All weights (`spread`: counts, edges), and the levels available to one of them."""
    row, column = cell
    x = float(weight[row, column])
    here = slice(row, row + 1), slice(column, column + 1)
    nearest = [float(q.window(*here)) for q in tensors]
    levels = [q.levels(row, column).numpy() for q in tensors]
    chart.set_figures(
        levels_histogram(*spread, levels, x, nearest),
        summary=[
            f"Histogram of the layer's {weight.numel()} weights, with the {len(open_to)} "
            f"levels available to weight {row}, {column}: {x:.4f} goes to {to:.4f}"
            for open_to, to in zip(levels, nearest, strict=True)
        ],
    )


def draw_curves(
    chart: Chart,
    bits: Sequence[int],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    chosen: str,
    what: str,
    *,
    drawn: bool,
) -> None:
    """Error against bit-width, of the output or the weights, for each of `rows` (who shares a scale
    → measures at each bit-width). `drawn`: show the curves."""
    column = "output_error" if what == OUTPUT else "relative_error"
    curves = {unit: [row[column] for row in measured] for unit, measured in rows.items()}
    chart.set_figures(
        error_curves(bits, curves, chosen, drawn=drawn),
        summary=[
            f"Relative error of the {what} with one scale for {each(chosen)}, at {b} bits "
            f"{percent(curves[chosen][i])}"
            for i, b in enumerate(bits)
        ],
    )
