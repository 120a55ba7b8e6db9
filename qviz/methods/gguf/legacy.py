"""The types with blocks of 32 weights: one float16 scale, or a scale and a minimum, and codes.

Q4_0, Q5_0 and Q8_0 are x̂ = d·(code − zero), Q4_1 and Q5_1 are x̂ = d·code + m. Codes are found
with the scale before it is rounded to float16, and decoded with the rounded one. MXFP4 has a
power of two for a scale and E2M1 elements. Source: ggml src/ggml-quants.c, quantize_row_*_ref;
with importance, quantize_row_*_impl.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qviz.core.divide import divide
from qviz.core.grids import Codebook
from qviz.core.trace import Emit
from qviz.methods.gguf.kquants import WITH_IMPORTANCE
from qviz.methods.gguf.layout import LAYOUTS
from qviz.methods.gguf.search import search_minimum, search_symmetric
from qviz.methods.microscaling import microscaling

BLOCK = 32
# Twice the magnitudes of E2M1, in the order of its codes; codes 9 … 15 are their negatives.
E2M1_DOUBLED = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)


@dataclass(frozen=True)
class Legacy:
    """How a type finds d and rounds.

    steps    the divisor of the range, or of the extreme weight
    minimum  codes count from the smallest weight
    shift    the number added before truncation; None: round half away from zero
    """

    steps: int
    minimum: bool = False
    shift: float | None = None


LEGACY: dict[str, Legacy] = {
    "Q4_0": Legacy(-8, shift=8.5),
    "Q4_1": Legacy(15, minimum=True, shift=0.5),
    "Q5_0": Legacy(-16, shift=16.5),
    "Q5_1": Legacy(31, minimum=True, shift=0.5),
    "Q8_0": Legacy(127),
}


def encode(
    name: str, blocks: torch.Tensor, weights: torch.Tensor | None, emit: Emit | None
) -> dict[str, torch.Tensor]:
    """The parts (see layout.py) of blocks [blocks, 32] float32.

    weights  [blocks, 32] or None: how much each error counts; Q8_0 has no search to use them
    """
    kind = LEGACY[name]
    if weights is not None and kind.shift is not None:
        return _searched(name, kind, blocks, weights, emit)
    low = None
    if kind.minimum:
        low = _smallest(blocks)
        d = divide((blocks.amax(1, keepdim=True) - low).add_(0.0), kind.steps)  # never −0
    elif kind.steps < 0:  # the extreme weight, whatever its sign, becomes code 0
        d = divide(_extreme(blocks), kind.steps)
    else:
        d = divide(blocks.abs().amax(1, keepdim=True), kind.steps)
    inverse = torch.where(d == 0, 0, divide(1, d))  # of d as it is, not as it is stored
    t = blocks * inverse if low is None else (blocks - low).mul_(inverse)
    if emit is not None:
        emit("gguf.position", position=t, inverse=inverse)

    # A subnormal d has no finite inverse; what is not finite becomes code 0 when it is cast.
    if kind.shift is None:
        codes = _half_away_(t.nan_to_num_(0, 0, 0)).to(torch.int8).view(torch.uint8)
    else:
        top = 2 ** LAYOUTS[name].bits - 1
        codes = t.add_(kind.shift).nan_to_num_(0, 0, 0).to(torch.uint8).clamp_(max=top)
    parts = {"codes": codes, "d": d.half()}
    return parts if low is None else {**parts, "m": low.half()}


def _smallest(blocks: torch.Tensor) -> torch.Tensor:
    """The minimum of each block [blocks, 1]; of 0 and −0 the first, which float16 tells apart."""
    low = blocks.amin(1, keepdim=True)
    return _first_where(blocks, low, (low == 0).flatten(), lambda x: x)


def _extreme(blocks: torch.Tensor) -> torch.Tensor:
    """The value of largest magnitude in each block, with its sign; the first of equals."""
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    value = torch.where(high > -low, high, low)
    value = _first_where(blocks, value, (high == -low).flatten(), torch.abs)
    return value.add_(0.0)  # −0 becomes 0


def _first_where(
    blocks: torch.Tensor,
    value: torch.Tensor,
    tied: torch.Tensor,
    key: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`value`, but in blocks that are tied the first weight whose key equals the value's."""
    if tied.any():
        some = blocks[tied]
        equal = key(some) == key(value[tied])
        value[tied] = some.gather(1, equal.to(torch.uint8).argmax(1, keepdim=True))
    return value


def _half_away_(t: torch.Tensor) -> torch.Tensor:
    """C's roundf, in place: to the nearest integer, half away from zero."""
    whole = t.trunc()
    return t.sub_(whole).mul_(2).trunc_().add_(whole)


def _searched(
    name: str, kind: Legacy, blocks: torch.Tensor, weights: torch.Tensor, emit: Emit | None
) -> dict[str, torch.Tensor]:
    """With importance the older types use the searches of the k-quants."""
    x, w = blocks.T.contiguous(), weights.T.contiguous()
    if kind.minimum:
        found = search_minimum(x, w, top=kind.steps, grid=WITH_IMPORTANCE, emit=emit)
    else:
        found = search_symmetric(x, w, half=-kind.steps, emit=emit)
    parts = {"codes": found.codes.to(torch.uint8).T, "d": found.scale.half().unsqueeze(1)}
    return {**parts, "m": found.minimum.half().unsqueeze(1)} if kind.minimum else parts


def encode_mxfp4(blocks: torch.Tensor, emit: Emit | None) -> dict[str, torch.Tensor]:
    """MXFP4 by the rules of ggml, which microscaling.py has: here it only becomes a block."""
    found = microscaling(blocks, format="mxfp4", convention="ggml")
    assert isinstance(found.grid, Codebook)
    exponent = found.grid.stored[0].values.reshape(-1, 1)
    if emit is not None:
        emit("gguf.exponent", exponent=exponent)
    return {"codes": found.codes, "exponent": exponent}


def e8m0_half(exponent: torch.Tensor) -> torch.Tensor:
    """Half of 2^(exponent − 127) in float32, for bytes 0 … 255; of bytes 0 and 1 a subnormal."""
    return torch.tensor([2.0 ** (e - 128) for e in range(256)], device=exponent.device)[
        exponent.int()
    ]
