"""From bytes back to codes, scales and the weights that they stand for."""

from collections.abc import Mapping

import numpy as np
import torch

from qviz.core.check import unknown
from qviz.core.granularity import Granularity
from qviz.core.grids import Affine, Blocks, Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.methods.gguf.layout import LAYOUTS, Layout, unpack
from qviz.methods.gguf.legacy import E2M1_DOUBLED, e8m0_half


def from_bytes(name: str, data: torch.Tensor | np.ndarray) -> QuantizedTensor:
    """The tensor that is stored in the rows data [rows, bytes of a row] uint8 of this type.

    `data` is in the form that gguf-py's GGUFReader gives. Raises ValueError if it is not a whole
    number of blocks of the type.

    Codes are as they are stored: unsigned with a zero point for the symmetric types, int8 for
    Q8_0. Scales (and offsets) [rows, groups] are the effective ones: float16 for the types
    of 32 weights, and for the k-quants the float32 products d·scale and −dmin·min.

    >>> q = from_bytes("Q4_K", torch.zeros(2, 144, dtype=torch.uint8))
    >>> q.shape, q.bits_per_weight
    ((2, 256), 4.5)
    """
    if name not in LAYOUTS:
        raise ValueError(unknown("GGUF type", name, LAYOUTS))
    layout = LAYOUTS[name]
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data.copy())  # a file's is read-only
    if data.dtype != torch.uint8 or data.ndim != 2 or not data.numel():
        raise ValueError(
            f"data must be uint8 [rows, bytes of a row], got {data.dtype} {list(data.shape)}"
        )
    if data.shape[1] % layout.nbytes:
        raise ValueError(
            f"a row of {name} is a multiple of {layout.nbytes} bytes, which {data.shape[1]} is not"
        )
    return from_parts(name, data, unpack(layout, data.reshape(-1, layout.nbytes)))


def from_parts(name: str, data: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> QuantizedTensor:
    """The same where the parts of the bytes are known: those that `pack` made them of."""
    layout, rows = LAYOUTS[name], len(data)
    codes = parts["codes"].reshape(rows, -1)
    if name == "Q8_0":
        codes = codes.view(torch.int8)
    columns = codes.shape[1]
    inner = _codebook(parts, rows) if name == "MXFP4" else _affine(name, layout, parts, rows)
    count = data.numel() // layout.nbytes
    grid = Blocks(name, data, inner, layout.parts, count)
    return QuantizedTensor(codes, grid, Granularity("group", layout.group), (rows, columns))


def _affine(name: str, layout: Layout, parts: Mapping[str, torch.Tensor], rows: int) -> Affine:
    scale, offset = parts["d"], parts.get("m")
    if layout.weights != layout.group:
        levels = parts["scales"]
        if name == "Q6_K":
            levels = levels.view(torch.int8)
        elif name == "Q3_K":
            levels = levels.to(torch.int8) - 32
        scale = scale.float() * levels
        if "mins" in parts:
            offset = -(parts["dmin"].float() * parts["mins"])
    scale = scale.reshape(rows, -1)
    zero = torch.tensor([[layout.zero]], device=scale.device).expand_as(scale)
    signed = name == "Q8_0"
    return Affine(
        scale,
        layout.bits,
        qmin=-128 if signed else 0,
        qmax=127 if signed else 2**layout.bits - 1,
        compute=torch.float32,
        zero_point=zero if layout.zero else None,
        offset=None if offset is None else offset.reshape(rows, -1),
    )


def _codebook(parts: Mapping[str, torch.Tensor], rows: int) -> Codebook:
    # ggml counts E2M1 in halves, and multiplies by half the scale: the same numbers.
    levels = torch.tensor(E2M1_DOUBLED, device=parts["codes"].device)
    values = torch.cat([levels, -levels])
    return Codebook(values, e8m0_half(parts["exponent"]).reshape(rows, -1), bits=4, stored=())
