"""Nearest levels: against the plain definition, ties, and sizes around a chunk."""

import numpy as np
import pytest
import torch

from qviz.core.ledger import PIECE, Stream
from qviz.core.nearest import CHUNK, count_below, midpoints, searched

LEVELS = torch.tensor([-1.0, -0.25, 0.0, 0.5, 0.75])


@pytest.mark.parametrize("size", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_the_index_is_that_of_the_nearest_level(size):
    x = torch.rand(size, generator=torch.Generator().manual_seed(size)) * 3 - 1.5
    nearest = (x[:, None] - LEVELS).abs().argmin(-1)
    assert torch.equal(count_below(x, midpoints(LEVELS)).long(), nearest)


def test_a_tie_takes_the_lower_level_and_nan_the_first():
    bounds = midpoints(LEVELS)
    assert count_below(bounds, bounds).tolist() == [0, 1, 2, 3]
    above = torch.nextafter(bounds, torch.tensor(2.0))
    assert count_below(above, bounds).tolist() == [1, 2, 3, 4]
    ends = torch.tensor([[-torch.inf, torch.inf], [torch.nan, -0.0]])
    assert count_below(ends, bounds).tolist() == [[0, 4], [0, 2]]


def test_the_search_of_a_gpu_counts_the_same():
    """On the CPU, where both can run."""
    bounds = midpoints(LEVELS)
    x = torch.cat([torch.linspace(-2, 2, 401), bounds, torch.tensor([-torch.inf, torch.inf])])
    assert searched(x, bounds).dtype == torch.uint8
    assert torch.equal(searched(x.reshape(-1, 11), bounds), count_below(x.reshape(-1, 11), bounds))
    assert searched(torch.tensor([torch.nan]), bounds).tolist() == [4]


def test_views_keep_their_shape():
    x = torch.randn(6, 10).T[::2]
    want = torch.bucketize(x.contiguous(), midpoints(LEVELS))
    assert torch.equal(count_below(x, midpoints(LEVELS)).long(), want)


@pytest.mark.parametrize("bits", [3, 6, 12])
@pytest.mark.parametrize("count", [0, 1, 7, PIECE - 1, PIECE + 9])
def test_codes_that_cross_bytes(bits, count):
    """One long integer, whose bits are the codes one after the other."""
    codes = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(count))
    text = "".join(f"{code:0{bits}b}" for code in codes.tolist())
    size = -(-count * bits // 8)
    big = int(text.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")
    assert Stream("codes", codes, bits, "big").pack().tobytes() == big
    text = "".join(f"{code:0{bits}b}" for code in codes.flip(0).tolist())
    little = int(text or "0", 2).to_bytes(size, "little")
    assert Stream("codes", codes, bits).pack().tobytes() == little


def test_the_last_byte_is_filled():
    codes = torch.tensor([1, 2, 3])
    assert Stream("codes", codes, 4, "big", fill=7).pack().tolist() == [0x12, 0x37]
    assert Stream("codes", codes, 4, fill=7).pack().tolist() == [0x21, 0x73]
    assert Stream("codes", codes, 4).pack().dtype == np.uint8
