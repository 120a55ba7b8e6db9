"""The k-quants: super-blocks of 256 weights with scales on two levels.

Sub-blocks of 16 or 32 weights have scales (and minimums) of 4 to 8 bits, in units of one float16
per super-block. Each type is a search over sub-blocks, a rounding of its result, and a second pass
that rounds the weights again, now with the scales as stored. They need no calibration;
`importance`, the mean square of each input, weights the errors if given.
Source: ggml src/ggml-quants.c, quantize_row_q*_K_ref and, with importance, _impl.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qviz.core.divide import divide
from qviz.core.trace import Emit
from qviz.methods.gguf.layout import LAYOUTS
from qviz.methods.gguf.search import (
    TINY,
    Found,
    descend_,
    nearest_int_,
    search_coordinates,
    search_minimum,
    search_symmetric,
    signed_extreme,
    square_root,
    steps,
    sum_rows,
)

SUPER_BLOCK = 256


@dataclass(frozen=True)
class WithMinimum:
    """Q2_K, Q4_K, Q5_K: x̂ = d·scale·code − dmin·min.

    top       the highest code
    levels    the highest quantized scale and min
    grid      (start, delta, last k) of the search
    absolute  it minimizes |error| instead of its square
    weights   of the errors, from x [n, sub-blocks]
    sigma     with importance: the factor of the mean square of the super-block
    """

    top: int
    levels: int
    grid: tuple[float, float, int]
    absolute: bool
    weights: Callable[[torch.Tensor], torch.Tensor]
    sigma: int


@dataclass(frozen=True)
class Symmetric:
    """Q3_K, Q6_K: x̂ = d·scale·(code − half), with signed scales −levels … levels − 1.

    search  finds the scales of the sub-blocks
    zero    a super-block whose largest scale is below this is all zero bytes, codes too
    """

    half: int
    levels: int
    search: Callable[..., Found]
    zero: float
    sigma: int


def _rms_plus_absolute(x: torch.Tensor) -> torch.Tensor:
    return square_root(divide(sum_rows(x * x), len(x))) + x.abs()


KQUANTS: dict[str, WithMinimum | Symmetric] = {
    "Q2_K": WithMinimum(3, 15, (-0.5, 0.1, 15), True, torch.abs, sigma=1),
    "Q3_K": Symmetric(4, 32, search_coordinates, zero=0.0, sigma=2),
    "Q4_K": WithMinimum(15, 63, (-1.0, 0.1, 20), False, _rms_plus_absolute, sigma=2),
    "Q5_K": WithMinimum(31, 63, (-0.5, 0.1, 15), False, _rms_plus_absolute, sigma=2),
    "Q6_K": Symmetric(32, 128, search_symmetric, zero=TINY, sigma=0),
}
WITH_IMPORTANCE = (-0.9, 0.05, 36)  # the grid of search_minimum when importance is given


def encode(
    name: str, blocks: torch.Tensor, importance: torch.Tensor | None, emit: Emit | None
) -> dict[str, torch.Tensor]:
    """The parts (see layout.py) of super-blocks [blocks, 256] float32.

    importance  [blocks, 256] or None: the mean square of the input that meets each weight
    """
    kind, group = KQUANTS[name], LAYOUTS[name].group
    x = blocks.reshape(-1, group).T.contiguous()  # [group, sub-blocks]
    weights = _weights(kind, x, blocks, importance)
    if emit is not None:
        emit("kquant.weights", weights=weights.T)
    if isinstance(kind, WithMinimum):
        return _with_minimum(name, kind, x, weights, importance is not None, emit)
    return _symmetric(kind, x, weights, importance is not None, emit)


def _weights(
    kind: WithMinimum | Symmetric,
    x: torch.Tensor,
    blocks: torch.Tensor,
    importance: torch.Tensor | None,
) -> torch.Tensor:
    """How much the error of each weight counts [group, sub-blocks]."""
    if importance is None:
        return x * x if isinstance(kind, Symmetric) else kind.weights(x)
    own = importance.reshape(-1, len(x)).T.contiguous()
    if kind.sigma == 0:
        return own
    return own * square_root(spread(blocks, kind.sigma, len(x)) + x * x)


def spread(rows: torch.Tensor, factor: int, group: int) -> torch.Tensor:
    """factor · mean square of each row [rows, n], for each of its groups [rows · n / group]."""
    columns = rows.T.contiguous()
    mean = divide(factor * sum_rows(columns * columns), len(columns))
    return mean.repeat_interleave(len(columns) // group)


def _with_minimum(
    name: str,
    kind: WithMinimum,
    x: torch.Tensor,
    weights: torch.Tensor,
    important: bool,
    emit: Emit | None,
) -> dict[str, torch.Tensor]:
    grid = WITH_IMPORTANCE if important else kind.grid
    absolute = kind.absolute and not important
    found = search_minimum(x, weights, top=kind.top, grid=grid, absolute=absolute, emit=emit)
    subs = SUPER_BLOCK // len(x)
    scales = found.scale.reshape(-1, subs)  # [blocks, sub-blocks of a block]
    mins = -found.minimum.reshape(-1, subs)
    if emit is not None:
        emit("kquant.first_level", scales=scales, mins=mins)

    if important:
        sums = sum_rows(weights).reshape(-1, subs)
        d, ls = _fit_levels(scales, sums, kind.levels)
        dmin, lm = _fit_levels(mins, sums, kind.levels)
    else:
        d, ls = _round_levels(scales, kind.levels)
        dmin, lm = _round_levels(mins, kind.levels)
    ls, lm = _as_read(name, ls & 0xFF, lm & 0xFF, limited=name != "Q4_K" or not important)
    d, dmin = d.half(), dmin.half()
    if emit is not None:
        emit("kquant.second_level", d=d, dmin=dmin, scales=ls, mins=lm)

    step = (d.float() * ls).reshape(-1)  # [sub-blocks]
    minimum = (dmin.float() * lm).reshape(-1)
    codes = nearest_int_((x + minimum).div_(step)).clamp_(0, kind.top)
    _keep_where_zero_(codes, step, found.codes)
    return {
        "codes": codes.to(torch.uint8).T.reshape(-1, SUPER_BLOCK),
        "scales": ls.to(torch.uint8),
        "mins": lm.to(torch.uint8),
        "d": d,
        "dmin": dmin,
    }


def _as_read(
    name: str, ls: torch.Tensor, lm: torch.Tensor, *, limited: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The quantized scales and minimums that decoding these bytes gives.

    They fit, unless a sub-block's scale is below 0: its byte has wrapped around, and ggml lets it
    spill over into its neighbours or, if it is `limited`, sets it to the highest level.
    """
    if name == "Q2_K":  # both share a byte without a mask
        shared = (ls | (lm << 4)) & 0xFF
        return shared & 15, shared >> 4
    if limited:
        return ls.clamp(max=63), lm.clamp(max=63)
    return _spilled(ls), _spilled(lm)


def _spilled(bits: torch.Tensor) -> torch.Tensor:
    """Of 8 bytes the last four lend the first four their bits 4 and 5, as bits 6 and 7."""
    first, last = bits.chunk(2, dim=1)
    return torch.cat([first & 63, (last & 63) | (first >> 6 << 4)], dim=1)


def _round_levels(values: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """d [blocks, 1] such that the largest value is `levels` units of d, and the values in units of
    d, int32."""
    largest = values.amax(1, keepdim=True).clamp_(min=0).add_(0.0)  # not −0
    iscale = torch.where(largest > 0, divide(levels, largest), 0)
    return divide(largest, levels), nearest_int_(iscale * values).int()


def _fit_levels(
    values: torch.Tensor, weights: torch.Tensor, levels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by a weighted search: 9 units tried, then codes improved (make_qp_quants).

    A value below 0 has a code that wraps around where it is kept, because codes are bytes there.
    """
    x, w = values.T.contiguous(), weights.T.contiguous()  # [sub-blocks of a block, blocks]
    largest = x.amax(0).clamp_(min=0)

    def codes(iscale: torch.Tensor) -> torch.Tensor:
        return nearest_int_(iscale * x).clamp_(max=levels)

    def error(iscale: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        diff = x - divide(1, iscale) * q
        return sum_rows((w * diff).mul_(diff))

    best_iscale = divide(levels, largest)
    best = error(best_iscale, codes(best_iscale).remainder_(256))  # only this try keeps its codes
    for step in [*reversed(steps(0, -0.1, 4, levels)[1:]), *steps(0, 0.1, 4, levels)[1:]]:
        iscale = divide(step, largest)
        err = error(iscale, codes(iscale))
        best_iscale = torch.where(err < best, iscale, best_iscale)
        best = torch.where(err < best, err, best)
    q = codes(best_iscale)
    wxq, wqq = descend_(x, w, q, low=None, high=levels, as_bytes=True)
    zero = largest < TINY
    d = torch.where((wqq > 0) & ~zero, wxq / wqq, 0)
    return d.unsqueeze(1), q.masked_fill_(zero, 0).T.int()


def _symmetric(
    kind: Symmetric, x: torch.Tensor, weights: torch.Tensor, important: bool, emit: Emit | None
) -> dict[str, torch.Tensor]:
    search = search_symmetric if important else kind.search
    found = search(x, weights, half=kind.half, emit=emit)
    scales = found.scale.reshape(-1, SUPER_BLOCK // len(x))  # [blocks, sub-blocks of a block]
    if emit is not None:
        emit("kquant.first_level", scales=scales, mins=found.minimum.reshape(scales.shape))

    if important and kind.zero == 0:  # Q3_K searches its 6-bit scales too, Q6_K does not
        sums = sum_rows(weights).reshape(scales.shape)
        level = search_symmetric(scales.T.contiguous(), sums.T.contiguous(), half=kind.levels)
        d, ls = level.scale.unsqueeze(1), level.codes.T - kind.levels
        empty = torch.zeros_like(d, dtype=torch.bool)
    else:
        extreme = signed_extreme(scales.T).unsqueeze(1)  # [blocks, 1]
        empty = (extreme == 0) | (extreme.abs() < kind.zero)
        iscale = divide(-kind.levels, extreme)
        # Inf and NaN would become −4194304, and 0 in the byte in which it is stored.
        ls = nearest_int_((iscale * scales).nan_to_num_(0, 0, 0))
        ls = ls.clamp_(-kind.levels, kind.levels - 1).masked_fill_(empty, 0)
        d = divide(1, iscale).masked_fill_(empty, 0)
    d = d.half()
    if emit is not None:
        emit(
            "kquant.second_level",
            d=d,
            dmin=torch.zeros_like(d),
            scales=ls,
            mins=torch.zeros_like(ls),
        )

    step = (d.float() * ls).reshape(-1)  # [sub-blocks]
    codes = nearest_int_(x / step).clamp_(-kind.half, kind.half - 1).add_(kind.half)
    _keep_where_zero_(codes, step, found.codes)
    codes = codes.to(torch.uint8).T.reshape(-1, SUPER_BLOCK)
    if kind.levels == 128:  # an int8
        stored = ls.to(torch.int8).view(torch.uint8)
        codes = codes.masked_fill(empty, 0)
    else:  # 6 bits, from 0 on; an empty block is not touched and keeps 0
        stored = (ls + kind.levels).masked_fill(empty, 0).to(torch.uint8)
    return {"codes": codes, "scales": stored, "d": d}


def _keep_where_zero_(codes: torch.Tensor, step: torch.Tensor, found: torch.Tensor) -> None:
    """The search's codes in place of those found with a scale of 0, by which nothing can be
    divided.

    That is rare, and choosing for each weight would take longer than dividing.
    """
    zero = step == 0
    if zero.any():
        codes[:, zero] = found[:, zero]
