"""How much of a group's range its levels should span: rounding error against clipping error.

A narrower range puts the same levels closer together, which helps every value inside it, and clips
the values outside. Both are squared errors and add up, so their sum has a minimum.
GPTQ's optional search (quant.py, `Quantizer.find_params` with mse=True) multiplies both ends of the
range by 1, 0.99 … 0.21 and lets the convention make scale and zero point from the remaining range.
AWQ (auto_clip.py) does the same in steps of 5 %. The steps here are GPTQ's.

Symbols: x values that share a scale, lo and hi their range, κ the part of it that is kept, s, z and
q as in `qviz.methods.affine`, whose rules and arithmetic are used throughout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import silu

from qviz.core.check import as_matrix
from qviz.core.granularity import Granularity
from qviz.core.metrics import ErrorSplit, ratio
from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import CONVENTIONS, Levels, affine, fit_levels
from qviz.models.capture import load_calibration
from qviz.models.checkpoint import load_layer

#: The parts of a range that GPTQ's search tries, ascending: 21 % … 100 %.
KEPT = tuple(percent / 100 for percent in range(21, 101))
_AT_ONCE = 1 << 21  # numbers in one pass: 8 MB of float32, which a cache still helps
_LAST_BITS = 1e-4  # of a spacing: how far float32 rounding may move the last of 256 levels


class Values:
    """Numbers that share one scale, each distinct one once.

    A matrix of a 16-bit model holds millions of weights but at most 65,536 different ones, so that
    eighty ranges can be tried on all of them.

    x      [d] float32, ascending
    count  [d] float64, how often each occurs

    >>> Values(torch.tensor([[1.0, 2.0], [2.0, -1.0]])).x
    tensor([-1.,  1.,  2.])
    """

    def __init__(self, numbers: torch.Tensor) -> None:
        """ValueError for none, and for NaN or infinity among them."""
        flat = numbers.detach().reshape(-1).float()
        if not flat.numel() or not torch.isfinite(flat).all():
            raise ValueError(
                "levels need at least one number, and all of them finite; got "
                f"{flat.numel()} numbers of which {int((~torch.isfinite(flat)).sum())} are not"
            )
        self.x, count = torch.unique(flat, return_counts=True)
        self.count = count.double()
        self.n = flat.numel()

    @property
    def low(self) -> float:
        return float(self.x[0])

    @property
    def high(self) -> float:
        return float(self.x[-1])

    @cached_property
    def energy(self) -> float:
        """Σx²"""
        return float((self.x.double().square() * self.count).sum())

    def share(self, error: float) -> float:
        """A mean squared error as a share of the mean square; 0 if both are 0."""
        return ratio(error * self.n, self.energy)


def shrink(low: float, high: float, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both ends [n] float32 of the range when only the part `kept` [n] of it is kept.

    The ends move towards 0 as GPTQ's do, p·lo and p·hi; in a range that does not contain 0, the
    end that is farther from 0 moves towards the nearer one.

    >>> shrink(-1.0, 3.0, torch.tensor([0.5, 1.0]))
    (tensor([-0.5000, -1.0000]), tensor([1.5000, 3.0000]))
    """
    fixed = min(max(low, 0.0), high)
    rest = (1 - kept) * fixed
    return kept * low + rest, kept * high + rest


@dataclass(frozen=True, eq=False)
class Tried:
    """Some ranges, the levels that a convention gives to each, and the error of each.

    low, high    [n] float32, the ranges
    levels       scales and zero points [n, 1]
    rounding     [n] float64, mean squared error of the values between the outermost levels
    clipping     [n] float64, mean squared error of the values beyond them; the two add up
    beyond       [n] int64, how many values lie beyond the outermost levels
    used         [n] int64, how many levels have at least one value rounded to them
    """

    low: torch.Tensor
    high: torch.Tensor
    levels: Levels
    rounding: torch.Tensor
    clipping: torch.Tensor
    beyond: torch.Tensor
    used: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.rounding + self.clipping

    @property
    def best(self) -> int:
        """The range with the smallest error; of equal ones the last."""
        total = self.total
        return int((total == total.min()).nonzero()[-1])

    def split(self, i: int) -> ErrorSplit:
        return ErrorSplit(float(self.rounding[i]), float(self.clipping[i]), int(self.beyond[i]))

    @cached_property
    def values(self) -> torch.Tensor:
        """[n, levels] float64, what each code of each range stands for, ascending."""
        grid = self.levels.grid
        codes = grid.all_codes().expand(len(self.low), 1, -1)
        return grid.decode(codes).squeeze(1).double()

    def follow(self, x: torch.Tensor) -> "Followed":
        """The path of numbers [m] through every range."""
        position = self.levels.position(x.float().expand(len(self.low), 1, -1))
        rounded = self.levels.round_(position.clone())
        grid = self.levels.grid
        codes = rounded.clamp(grid.qmin, grid.qmax)
        values = grid.decode(codes)
        return Followed(*(part.squeeze(1) for part in (position, rounded, codes, values)))


@dataclass(frozen=True, eq=False)
class Followed:
    """The path of numbers through ranges, all [n, m] float32.

    position  x / s, plus z where the convention adds it before rounding
    rounded   the nearest code, which may lie outside the available codes
    code      the code that is stored
    value     what it stands for
    """

    position: torch.Tensor
    rounded: torch.Tensor
    code: torch.Tensor
    value: torch.Tensor


def try_ranges(
    values: Values,
    low: torch.Tensor,
    high: torch.Tensor,
    *,
    bits: int,
    symmetric: bool,
    convention: str,
) -> Tried:
    """The errors that the ranges low … high, both [n] float32, cause for these values.

    Options and errors are those of `affine`: ValueError for a convention without this form, or
    without a rule for such a range.

    >>> values = Values(torch.linspace(-1, 1, 200) ** 3)
    >>> low, high = shrink(values.low, values.high, torch.tensor(KEPT))
    >>> tried = try_ranges(values, low, high, bits=4, symmetric=True, convention="gptq")
    >>> KEPT[tried.best]
    0.95
    """
    levels = fit_levels(
        low[:, None], high[:, None], bits=bits, symmetric=symmetric, convention=convention
    )
    parts = [_costs(values, levels, rows) for rows in _passes(len(low), len(values.x))]
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return Tried(low, high, levels, *columns)


def _passes(rows: int, numbers: int) -> Iterator[slice]:
    """Some rows at a time, so that memory stays small."""
    step = max(1, _AT_ONCE // numbers)
    return (slice(at, at + step) for at in range(0, rows, step))


def _costs(values: Values, levels: Levels, rows: slice) -> tuple[torch.Tensor, ...]:
    """rounding, clipping, beyond and used of some of the ranges."""
    some = levels.map(lambda t: t[rows])
    grid = some.grid
    x = values.x.expand(len(grid.scale), 1, -1)
    codes = some.round_(some.position(x)).clamp(grid.qmin, grid.qmax)
    square = (x.double() - grid.decode(codes).double()).square() * values.count
    low, high = (end.unsqueeze(-1) for end in grid.extremes())
    outside = (x < low) | (x > high)
    clipping = (square * outside).sum((1, 2))
    # The largest number may be the last level itself and still miss it by the last bit of the
    # scale.
    slack = _LAST_BITS * grid.scale.unsqueeze(-1)
    beyond = (x < low - slack) | (x > high + slack)
    there = torch.zeros(len(codes), grid.qmax - grid.qmin + 1, dtype=torch.bool)
    there.scatter_(1, (codes.squeeze(1) - grid.qmin).long(), True)
    return (
        (square * ~outside).sum((1, 2)) / values.n,
        clipping / values.n,
        (beyond * values.count).sum((1, 2)).long(),
        there.sum(1),
    )


def quantize_within(
    numbers: torch.Tensor,
    low: float,
    high: float,
    *,
    bits: int,
    symmetric: bool,
    convention: str,
) -> QuantizedTensor:
    """`numbers` [n] on the levels that the convention gives to the range low … high: a row [1, n].

    With the row's own smallest and largest number this equals `affine`.

    >>> q = quantize_within(torch.randn(128), -2, 2, bits=4, symmetric=True, convention="gptq")
    >>> q.codes.shape
    torch.Size([1, 128])
    """
    row = numbers.float().reshape(1, -1)
    ends = (torch.tensor([[end]], dtype=torch.float32) for end in (low, high))
    levels = fit_levels(*ends, bits=bits, symmetric=symmetric, convention=convention)
    grid = levels.grid
    codes = levels.round_(levels.position(row[None])).clamp(grid.qmin, grid.qmax)
    info = {"method": "affine", "convention": convention, "symmetric": symmetric}
    shape = (1, row.shape[1])
    codes = codes.reshape(shape).to(grid.code_dtype)
    return QuantizedTensor(codes, grid, Granularity("channel"), shape, info=info)


# ------------------------------------------------------------------------ the systems, side by side


@dataclass(frozen=True, eq=False)
class Outcome:
    """How one system quantizes some values, over their whole range and over a part of it.

    quantized  [1, d] the distinct values as `affine` quantizes them; None where the system has no
               rule for such values, which `refused` then says
    whole      the cost of the whole range, best that of the cheapest of `KEPT`
    kept       which of `KEPT` that is
    """

    convention: str
    symmetric: bool
    quantized: QuantizedTensor | None
    refused: str = ""
    whole: ErrorSplit | None = None
    best: ErrorSplit | None = None
    kept: float | None = None


def systems(values: Values, *, bits: int) -> list[Outcome]:
    """Every convention in every form it has, on the same values: symmetric ones first."""
    return [
        _outcome(values, bits=bits, symmetric=symmetric, convention=name)
        for symmetric in (True, False)
        for name, rules in CONVENTIONS.items()
        if (rules.symmetric if symmetric else rules.asymmetric) is not None
    ]


def _outcome(values: Values, **scheme: Any) -> Outcome:
    symmetric, name = scheme["symmetric"], scheme["convention"]
    try:
        made = affine(values.x[None], granularity="channel", **scheme)
        ends = shrink(values.low, values.high, torch.tensor(KEPT))
        tried = try_ranges(values, *ends, **scheme)
    except ValueError as error:
        return Outcome(name, symmetric, None, str(error))
    best = tried.best
    return Outcome(name, symmetric, made, "", tried.split(-1), tried.split(best), KEPT[best])


def rules(*, symmetric: bool) -> int:
    """How many different rules the conventions of one form have."""
    found = {c.symmetric if symmetric else c.asymmetric for c in CONVENTIONS.values()}
    return len(found - {None})


def same_results(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Outcomes grouped where every value gets the same result, in the order of the first.

    The same: to within a thousandth of the spacing, so that a last bit of a scale does not count,
    and one value that goes to another level does.
    """
    found: list[tuple[torch.Tensor, list[Outcome]]] = []
    for one in outcomes:
        if one.quantized is None:
            continue
        back = one.quantized.dequantize().double()
        slack = 1e-3 * float(one.quantized.levels(0, 0).diff().max())
        for known, members in found:
            if float((known - back).abs().max()) <= slack:
                members.append(one)
                break
        else:
            found.append((back, [one]))
    return [members for _, members in found]


# -------------------------------------------------------------------------- which values to look at


def find_groups(weight: torch.Tensor, granularity: Granularity) -> dict[str, tuple[int, int]]:
    """Interesting groups [row, group] of a weight, by what they are an example of.

    typical    the middle one when all are ordered by (largest size) ÷ (root mean square)
    outlier    where that ratio is the largest
    one-sided  where (hi + lo) / (hi − lo) is farthest from 0: beyond ±1 all weights have one sign

    ValueError for weights that are not finite.
    """
    x = granularity.split(as_matrix(weight)).float()
    low, high = x.amin(-1).flatten(), x.amax(-1).flatten()
    size = torch.maximum(low.abs(), high.abs())
    rms = x.square().mean(-1).sqrt().flatten()
    peak = torch.where(rms > 0, size / rms, 1.0)
    width = high - low
    lean = torch.where(width > 0, (high + low).abs() / width, 0.0)
    found = {
        "typical": int(peak.argsort()[len(peak) // 2]),
        "outlier": int(peak.argmax()),
        "one-sided": int(lean.argmax()),
    }
    return {name: divmod(at, x.shape[1]) for name, at in found.items()}


def gate_activations(layer: str) -> torch.Tensor:
    """SiLU(X·Wᵀ) [tokens, features] behind the gate of the bundled model's MLP to which `layer`
    belongs, on the tokens kept of its calibration text: numbers that are hardly ever below 0.

    ValueError for a layer that belongs to none.

    >>> gate_activations("model.layers.1.mlp.down_proj").min() > -0.28
    tensor(True)
    """
    block, found, _ = layer.rpartition(".mlp.")
    if not found:
        raise ValueError(
            f"{layer} does not belong to an MLP with a gate; choose a layer with .mlp. in its name"
        )
    gate = f"{block}.mlp.gate_proj"
    weight = load_layer(None, gate).float()
    return silu(load_calibration(None, gate).inputs.float() @ weight.T)
