"""How NF4's sixteen levels are made, one number after the other, and how full their bins are.

The levels are quantiles of the normal distribution divided by the largest of them. Sixteen equally
likely bins was the aim, but two things come between: weights go to the nearest level, so that the
bins end halfway between quantiles; and a block is divided by its own largest weight, which lies
farther out than the largest quantile does.

Symbols: δ the share of the distribution below the highest level, p shares, z = Φ⁻¹(p) quantiles,
v = z / z_max levels, m bounds halfway between levels, M the largest |w| of a block of B weights.
Sources: QLoRA (arXiv 2305.14314), section 3 and appendix E; bitsandbytes
functional.py:create_normal_map. That bins cannot be equally likely in blocks: Yoshida 2023
(arXiv 2306.06965).
"""

from dataclasses import dataclass

import torch

from qviz.core.check import require_int
from qviz.core.nearest import midpoints
from qviz.methods.nf4 import OFFSET, normal_levels

POSITIVE, NEGATIVE, ZERO = "positive", "negative", "zero"
PARTS = {POSITIVE: 8, NEGATIVE: 7, ZERO: 8}  # equal parts between one half and δ
CODES = (*range(15, 6, -1), *range(7))  # in the order in which they are made
CLAIMED = 1 / 16  # share of each bin, were they equally full
FARTHEST = 12.0  # standard deviations; a normal number lies beyond with probability 4e−33
POINTS = 6001  # of the integral over M


@dataclass(frozen=True)
class Made:
    """One level: its code, the half it belongs to, and which of that half's points it is.

    index        i: how many of the half's equal parts below δ
    p            δ − i·(δ − ½)/n, as the reference rounds it to float32
    quantile     z = Φ⁻¹(p), in the lower half −Φ⁻¹(p), in standard deviations, float64
    level        v, as stored: float32
    """

    code: int
    half: str
    index: int
    p: float
    quantile: float
    level: float


def construction(offset: float = OFFSET) -> tuple[Made, ...]:
    """The sixteen levels in the order in which they are made: from the highest down to zero, then
    from the lowest up. All numbers are those of `normal_levels`; ValueError as there.

    >>> [(made.code, made.half, made.index) for made in construction()][:2]
    [(15, 'positive', 0), (14, 'positive', 1)]
    """
    found = normal_levels(offset)
    made = []
    for code in CODES:
        half = ZERO if code == 7 else POSITIVE if code > 7 else NEGATIVE
        below = found.probability[code]
        made.append(
            Made(
                code, half, code if half == NEGATIVE else 15 - code,
                float(1 - below if half == NEGATIVE else below), float(found.quantile[code]),
                float(found.levels[code]),
            )
        )  # fmt: skip
    return tuple(made)


def occupancy_as_built(levels: torch.Tensor, largest: float) -> torch.Tensor:
    """Share [16] float64 of a normal distribution in each bin, at the scale the levels were made
    for: `largest` standard deviations are level 1."""
    bounds = midpoints(levels).double() * largest
    below = torch.special.ndtr(bounds)
    return torch.cat([below, below.new_ones(1)]).diff(prepend=below.new_zeros(1))


def occupancy_in_blocks(levels: torch.Tensor, block: int) -> torch.Tensor:
    """Share [16] float64 of normal weights in each bin once blocks of so many are divided by their
    largest magnitude M.

    One weight of each block is ±M and becomes ±1; the others are normal within ±M. So the share of
    a bin from l to u is [an end bin]/(2B) + (B−1)/B · E((Φ(M·u) − Φ(M·l)) / (2Φ(M) − 1)), where
    P(M ≤ m) = (2Φ(m) − 1)^B.

    levels  [16] ascending, within −1 … 1
    block   B, at least 2
    """
    size = require_int(block, "block", 2, 1 << 30)
    m = torch.linspace(0.0, FARTHEST, POINTS, dtype=torch.float64)[1:]
    inside = torch.special.erf(m / 2**0.5)  # 2Φ(m) − 1
    density = torch.exp((size - 1) * torch.log(inside) - m.square() / 2)
    density /= density.sum()  # on equal steps, and 0 at both ends: the trapezoidal rule
    ends = torch.ones(1, dtype=torch.float64)
    bounds = torch.cat([-ends, midpoints(levels).double().clamp(-1, 1), ends])
    shares = torch.special.ndtr(m[:, None] * bounds).diff(dim=1) / inside[:, None]
    others = density @ shares
    largest = torch.zeros_like(others)
    largest[0] = largest[-1] = 0.5
    result: torch.Tensor = (largest + (size - 1) * others) / size
    return result
