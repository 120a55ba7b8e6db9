"""Hadamard matrices: the defining property for every size, and the fast transform beside them."""

import pytest
import torch

from qviz.core.hadamard import (
    hadamard_matrix,
    hadamard_transform,
    has_hadamard,
    random_signs,
)

QUAROT = (12, 20, 28, 36, 40, 52, 60, 108, 140, 156, 172)
SIZES = sorted(
    {n for n in range(1, 257) if has_hadamard(n)} | {k * m for k in QUAROT for m in (1, 2, 8)}
)


def test_which_sizes_there_are():
    assert all(has_hadamard(2**m) for m in range(16))
    assert all(has_hadamard(k * 2**m) for k in QUAROT for m in range(8))
    # Hadamard matrices of other orders do not exist; of order 4k below 188 none is missing here.
    assert [n for n in range(1, 188) if has_hadamard(n)] == [1, 2, *range(4, 188, 4)]
    # widths of published models
    assert all(has_hadamard(n) for n in (384, 768, 1536, 1600, 4864, 8960, 11008, 14336, 29568))


@pytest.mark.parametrize("n", SIZES)
def test_h_times_its_transpose_is_n(n):
    h = hadamard_matrix(n)
    assert h.dtype == torch.int8
    assert (h.abs() == 1).all()
    assert torch.equal(h.int() @ h.int().T, n * torch.eye(n, dtype=torch.int32))


@pytest.mark.parametrize("n", [1, 2, 8, 12, 28, 52, 80, 144, 156, 172, 344, 1024])
@pytest.mark.parametrize("transpose", [False, True])
def test_the_transform_is_the_product(n, transpose):
    """On integers all sums are exact, so the two must be equal bit for bit."""
    x = torch.randint(-99, 100, (3, 2, n), generator=torch.Generator().manual_seed(n))
    h = hadamard_matrix(n).double()
    want = x.double() @ (h if transpose else h.T)
    for dtype in (torch.float64, torch.float32):
        got = hadamard_transform(x.to(dtype), transpose=transpose)
        assert got.dtype == dtype
        assert torch.equal(got.double(), want)
    x = torch.randn(5, n, dtype=torch.float64)
    want = x @ (h if transpose else h.T)
    torch.testing.assert_close(hadamard_transform(x, transpose=transpose), want)


@pytest.mark.parametrize("n", [1, 4, 12])
def test_the_input_stays_and_is_not_shared(n):
    x = torch.randn(2, n)
    before = x.clone()
    hadamard_transform(x).zero_()
    assert torch.equal(x, before)


def test_sizes_without_a_matrix_name_the_next_larger_one():
    """A smaller one is no help: nothing can be padded to it."""
    for n, larger in ((6, 8), (188, 192), (90, 92)):
        with pytest.raises(
            ValueError, match=rf"size {n} is known.* {larger - n} zeros to {larger},"
        ):
            hadamard_matrix(n)
        hadamard_matrix(larger)
        with pytest.raises(ValueError, match=rf"size {n} is known"):
            hadamard_transform(torch.randn(2, n))
    with pytest.raises(TypeError, match="integer"):
        hadamard_matrix(4.0)
    with pytest.raises(ValueError, match="from 1"):
        hadamard_matrix(0)


def test_signs_follow_the_seed():
    signs = random_signs(1000, 3)
    assert signs.dtype == torch.int8
    assert (signs.abs() == 1).all()
    assert 400 < int((signs > 0).sum()) < 600
    assert torch.equal(signs, random_signs(1000, 3))
    assert not torch.equal(signs, random_signs(1000, 4))
    assert random_signs(8, 0).tolist() == [1, 1, 1, -1, -1, -1, -1, -1]  # never changes
