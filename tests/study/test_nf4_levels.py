"""NF4's levels number by number, bit for bit, and how full their bins are."""

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import norm

import qviz
from qviz.core.nearest import midpoints
from qviz.methods.nf4 import NF4, OFFSET, normal_levels
from qviz.study.nf4_levels import (
    CLAIMED,
    NEGATIVE,
    PARTS,
    POSITIVE,
    ZERO,
    construction,
    occupancy_as_built,
    occupancy_in_blocks,
)

LEVELS = torch.tensor(NF4)


def test_the_last_step_has_the_sixteen_constants_of_bitsandbytes_bit_for_bit():
    from bitsandbytes.functional import get_4bit_type

    made = construction()
    assert sorted(one.code for one in made) == list(range(16))
    levels = torch.empty(16)
    for one in made:
        levels[one.code] = one.level
    assert torch.equal(levels, get_4bit_type("nf4", "cpu"))
    assert torch.equal(levels, LEVELS)


@pytest.mark.parametrize("offset", [OFFSET, 0.9, 0.99])
def test_each_number_follows_from_its_formula(offset):
    made = construction(offset)
    largest = norm.ppf(float(np.float32(offset)))
    for one in made:
        way = one.index * (offset - 0.5) / PARTS[one.half]
        sign = -1 if one.half == NEGATIVE else 1
        assert one.p == pytest.approx(offset - way, abs=1e-7)
        assert one.quantile == pytest.approx(sign * norm.ppf(one.p), abs=1e-14)
        assert one.level == pytest.approx(sign * norm.ppf(offset - way) / largest, abs=4e-7)
    halves = [one.half for one in made]
    assert halves == [POSITIVE] * 8 + [ZERO] + [NEGATIVE] * 7
    assert [one.index for one in made if one.half != ZERO] == [*range(8), *range(7)]


def test_equal_slices_of_probability():
    made = construction()
    upper = [one.p for one in made[:9]]
    lower = [one.p for one in made[9:]] + [0.5]
    assert np.diff(upper) == pytest.approx([-(OFFSET - 0.5) / 8] * 8, abs=1e-7)
    assert np.diff(lower) == pytest.approx([-(OFFSET - 0.5) / 7] * 7, abs=1e-7)


def test_occupancy_as_built_is_what_scipy_says():
    largest = float(normal_levels().quantile[-1])
    shares = occupancy_as_built(LEVELS, largest)
    cuts = norm.cdf(np.array([-np.inf, *(midpoints(LEVELS).double() * largest), np.inf]))
    assert shares.numpy() == pytest.approx(np.diff(cuts), abs=1e-12)
    assert (round(100 * float(shares.min()), 1), round(100 * float(shares.max()), 1)) == (5.6, 7.1)


@pytest.mark.parametrize("block", [2, 8, 64, 4096])
def test_occupancy_in_blocks_is_the_integral(block):
    """By adaptive quadrature over the largest magnitude, bin by bin."""
    shares = occupancy_in_blocks(LEVELS, block)
    assert float(shares.sum()) == pytest.approx(1, abs=1e-9)
    bounds = np.clip([-1, *midpoints(LEVELS).double(), 1], -1, 1)
    for code in (0, 3, 7, 15):

        def part(m: float, low: float = bounds[code], high: float = bounds[code + 1]) -> float:
            density = 2 * block * norm.pdf(m) * (2 * norm.cdf(m) - 1) ** (block - 1)
            return density * (norm.cdf(m * high) - norm.cdf(m * low)) / (2 * norm.cdf(m) - 1)

        others = integrate.quad(part, 0, 12, points=[0.5, 1, 2, 3, 4, 5], limit=200)[0]
        want = (block - 1) / block * others + (0.5 / block if code in (0, 15) else 0)
        assert float(shares[code]) == pytest.approx(want, abs=2e-6)


def test_occupancy_in_blocks_is_what_drawn_weights_have():
    w = torch.randn(4096, 256, generator=torch.Generator().manual_seed(0))
    for block in (32, 64, 256):
        q = qviz.quantize(w, "nf4", group_size=block)
        counted = torch.bincount(q.codes.flatten().int(), minlength=16) / w.numel()
        assert (counted - occupancy_in_blocks(LEVELS, block)).abs().max() < 0.002


def test_what_the_field_says_of_real_blocks():
    shares = occupancy_in_blocks(LEVELS, 64)
    assert (round(100 * float(shares.min()), 1), round(100 * float(shares.max()), 1)) == (1.7, 9.2)
    assert float(shares.min()) < CLAIMED < float(shares.max())
    with pytest.raises(ValueError, match="block"):
        occupancy_in_blocks(LEVELS, 1)
