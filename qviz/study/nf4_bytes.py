"""One weight's path into NF4's bytes and back, with every number.

Two codes share a byte, the first of them in its high half. Each block's absmax is a float32; with
double quantization it is one byte, a code of the dynamic table, and 256 blocks share a second
float32, all blocks one mean. Symbols as in `qviz.methods.nf4`: w, a, x = w·(1/a), q, v; o the mean
of all a, A the largest |a − o| of 256 blocks, c the code of (a − o)/A, d the dynamic levels, â the
reconstructed magnitude. Source: bitsandbytes functional.py:quantize_4bit.
"""

from dataclasses import dataclass

import numpy as np
import torch

from qviz.core.grids import Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Trace
from qviz.methods.nf4 import SECOND_GROUP, dynamic_levels, nf4

ROW = 8  # bytes beside each other in a listing


@dataclass(frozen=True)
class Stored:
    """How one weight is stored: all as float32 computes it.

    block, index  which block of the flattened weight, and which of its weights
    w, a, x       the weight, its block's absmax, and x = w·(1/a)
    below, above  the bounds between which x lies; None beyond the first and the last
    code, level   q and v_q; value: ŵ = v_q·a
    byte_at       which byte of the codes; byte its value, high whether q is its high half
    absmax        the four bytes of a, as they lie in memory
    """

    block: int
    index: int
    w: float
    a: float
    x: float
    below: float | None
    above: float | None
    code: int
    level: float
    value: float
    byte_at: int
    byte: int
    high: bool
    absmax: bytes


@dataclass(frozen=True)
class Second:
    """How the block's absmax is stored by double quantization.

    offset, absmax  o, and A of the block's group of 256
    position        (a − o)/A; NaN where all of the group are equal
    code, level     c and d_c
    value           â = d_c·A + o
    weight          ŵ with â in place of a
    """

    group: int
    offset: float
    absmax: float
    position: float
    code: int
    level: float
    value: float
    weight: float


def stored(weight: torch.Tensor, packed: np.ndarray, size: int, row: int, column: int) -> Stored:
    """The path of weight [row, column] of `weight` [out, in] in blocks of `size`.

    packed  the bytes of its codes, `nf4(weight, group_size=size).pack()["codes"]`
    """
    k = row * weight.shape[1] + column
    block, index = divmod(k, size)
    piece = weight.reshape(-1)[block * size : (block + 1) * size][None]
    trace = Trace("nf4.levels", "nf4.absmax", "nf4.normalized")
    q = nf4(piece, group_size=size, emit=trace)
    levels, absmax, normalized = (event.tensors for event in trace)
    bounds = levels["midpoints"].tolist()
    code = int(q.codes[0, index])
    byte = int(packed[k // 2])
    a = absmax["absmax"].flatten()
    return Stored(
        block, index, float(piece[0, index]), float(a),
        float(normalized["normalized"].flatten()[index]),
        bounds[code - 1] if code else None, bounds[code] if code < len(bounds) else None,
        code, float(levels["levels"][code]), float(q.window(slice(0, 1), slice(index, index + 1))),
        k // 2, byte, k % 2 == 0, a.numpy().tobytes(),
    )  # fmt: skip


def second(double: QuantizedTensor, at: Stored) -> Second:
    """How double quantization stores the absmax of that weight's block.

    double  `nf4(weight, group_size=size, double_quant=True)`
    """
    grid = double.grid
    if not isinstance(grid, Codebook) or not double.info.get("double_quant"):
        raise ValueError("this weight was quantized without double quantization")
    streams = {stream.name: stream.values.flatten() for stream in grid.stored}
    group = at.block // SECOND_GROUP
    offset, absmax = float(streams["absmax offset"]), streams["second absmax"][group]
    code = int(streams["absmax codes"][at.block])
    centered = torch.tensor(at.a) - streams["absmax offset"][0]
    value = grid.scale.flatten()[at.block]
    return Second(
        group, offset, float(absmax), float(centered * (1.0 / absmax)), code,
        float(dynamic_levels()[code]), float(value), float(torch.tensor(at.level) * value),
    )  # fmt: skip


def listing(packed: np.ndarray, at: int, rows: int = 4) -> list[tuple[int, list[int]]]:
    """(number of the first byte, bytes) of a few rows of eight, among them that of byte `at`."""
    total = -(-len(packed) // ROW)
    first = max(0, min(at // ROW - rows // 2, total - rows))
    return [
        (r * ROW, packed[r * ROW : (r + 1) * ROW].tolist())
        for r in range(first, min(first + rows, total))
    ]
