"""One weight's whole arithmetic as rows of text: how it became its code and what came back."""

from collections.abc import Sequence

import torch

from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.ui.views.spacing import recipe, spacing
from qviz.ui.widgets import number

Row = tuple[str, list[str] | str, str]


def affine_rows(
    weight: torch.Tensor, tensors: Sequence[QuantizedTensor], row: int, column: int
) -> list[Row]:
    """(label, a text for each of `tensors`, colour role) for the weight at [row, column].

    `tensors` are quantizations of `weight` [out, in] that differ only in bit-width.
    """
    x = float(weight[row, column])
    at = [_Place(q, row, column) for q in tensors]
    group = tensors[0].granularity.split(weight)
    r, g = tensors[0].group_of(row, column)
    low, high = float(group[r, g].min()), float(group[r, g].max())
    convention, symmetric = (str(tensors[0].info["convention"]), tensors[0].info["symmetric"])
    made = recipe(convention, symmetric)
    rows: list[Row] = [
        ("row, column", f"{row}, {column}", ""),
        ("trained weight x", number(x), "original"),
        ("range of its group", f"{number(low, 3)} … {number(high, 3)}", ""),
        (
            "spacing s" if made is None else f"s = {made.words} ÷ ({made.formula})",
            [spacing(convention, symmetric, p.grid.bits, low, high, p.scale) for p in at],
            "",
        ),
        ("s as stored", [number(p.scale) for p in at], ""),
    ]
    if at[0].zero is not None:
        rows.append(("zero point z", [number(p.zero or 0.0) for p in at], ""))
    if at[0].offset is not None:
        rows.append(("offset", [number(p.offset or 0.0) for p in at], ""))
    position = "x / s" if at[0].offset is None else "(x − offset) / s"
    if at[0].zero is not None:
        position += " + z"
    return [
        *rows,
        (position, [number(p.position(x)) for p in at], ""),
        (
            "code q",
            [f"{number(p.code)} (of {number(p.grid.qmin)} … {p.grid.qmax})" for p in at],
            "codes",
        ),
        ("reconstruction x̂", [number(p.value) for p in at], "codes"),
        ("error x − x̂", [number(x - p.value) for p in at], "error"),
        ("error ÷ s", [number((x - p.value) / p.scale, 2) for p in at], "error"),
    ]


class _Place:
    """One cell of a quantized tensor: its code, its parameters, its value."""

    def __init__(self, q: QuantizedTensor, row: int, column: int) -> None:
        if not isinstance(q.grid, Affine):
            raise TypeError(f"these rows show equally spaced levels, not {type(q.grid).__name__}")
        self.grid = q.grid
        r, g = q.group_of(row, column)
        self.code = int(q.codes[row, column])
        self.scale = float(self.grid.scale[r, g])
        zero, offset = self.grid.zero_point, self.grid.offset
        self.zero = None if zero is None else float(zero[r, g])
        self.offset = None if offset is None else float(offset[r, g])
        self.value = float(q.window(slice(row, row + 1), slice(column, column + 1)))

    def position(self, x: float) -> float:
        """Where x lies among the codes, before rounding."""
        return (x - (self.offset or 0.0)) / self.scale + (self.zero or 0.0)
