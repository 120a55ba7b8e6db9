"""Reduction and encoding of matrices against slow, obvious loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from qviz.ui.widgets import codec, colors

finite = st.floats(-1e6, 1e6, width=32)
matrices = npst.arrays(
    np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=13), elements=finite
)
steps = st.tuples(st.integers(1, 5), st.integers(1, 5))


def slow_reduce(matrix: np.ndarray, step: tuple[int, int], how: str) -> np.ndarray:
    (fr, fc), (rows, columns) = step, matrix.shape
    out = np.empty((math.ceil(rows / fr), math.ceil(columns / fc)))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            block = matrix[i * fr : (i + 1) * fr, j * fc : (j + 1) * fc].astype(np.float64)
            if how == "mean":
                out[i, j] = block.mean()
            elif how == "max_abs":
                out[i, j] = max(block.ravel(), key=lambda v: (abs(v), v))
            else:
                out[i, j] = matrix[
                    min(i * fr + fr // 2, rows - 1), min(j * fc + fc // 2, columns - 1)
                ]
    return out


@settings(max_examples=60)
@given(matrices, steps, st.sampled_from(["mean", "max_abs", "nearest"]))
def test_reduction_equals_the_slow_loop(
    matrix: np.ndarray, step: tuple[int, int], how: codec.Reduce
) -> None:
    before = matrix.copy()
    found = codec.reduce_matrix(matrix, step, how)
    np.testing.assert_allclose(found, slow_reduce(matrix, step, how), rtol=1e-5, atol=1e-2)
    np.testing.assert_array_equal(matrix, before)  # the caller's matrix is only read
    if how == "max_abs":
        assert np.abs(found).max() == np.abs(matrix).max()


@settings(max_examples=60)
@given(matrices, st.floats(1e-3, 1e6))
def test_a_decoded_value_is_within_half_a_step(matrix: np.ndarray, span: float) -> None:
    lo, hi = -span, span / 2
    back = codec.decode(codec.encode(matrix, lo, hi), lo, hi)
    step = (hi - lo) / 254
    assert np.abs(back - np.clip(matrix, lo, hi)).max() <= step / 2 * (1 + 1e-9)


def test_zero_is_exact_in_a_symmetric_range() -> None:
    assert codec.encode(np.zeros((1, 1)), -0.3, 0.3)[0, 0] == 127
    assert codec.decode(np.array([[127]]), -0.3, 0.3)[0, 0] == 0


def test_what_is_not_finite() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.0]])
    assert codec.encode(values, -1, 1).tolist() == [[255, 254, 0, 127]]
    about = codec.summarize(values)
    assert (about.nan, about.infinite, about.low, about.high, about.rms) == (1, 2, 0, 0, 0)
    assert codec.summarize(np.full((2, 2), np.nan)).absmax == 0
    reduced = codec.reduce_matrix(np.array([[1.0, np.nan], [2.0, 3.0]]), (1, 2), "max_abs")
    assert np.isnan(reduced[0, 0])
    assert reduced[1, 0] == 3


@pytest.mark.parametrize("factor", [1e-41, 1e-20, 1.0, 1e30])
def test_root_mean_square_at_every_magnitude(factor: float) -> None:
    values = (np.random.default_rng(0).standard_normal((50, 60)) * factor).astype(np.float32)
    want = factor * np.sqrt(np.mean((values.astype(np.float64) / factor) ** 2))
    assert codec.summarize(values).rms == pytest.approx(want, rel=1e-5)


def test_lowest_integer_keeps_its_magnitude() -> None:
    codes = np.array([[-128, 127], [3, 4]], np.int8)
    assert codec.reduce_matrix(codes, (2, 2), "max_abs")[0, 0] == -128
    assert codec.summarize(codes).rms == pytest.approx(np.sqrt((codes.astype(float) ** 2).mean()))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool]
)
def test_tensors_of_every_type(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    np.testing.assert_array_equal(codec.as_matrix(tensor), [[0, 1], [1, 0]])


def test_a_tensor_with_gradient_is_only_read() -> None:
    weight = torch.ones(2, 3, requires_grad=True)
    assert codec.as_matrix(weight).shape == (2, 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(3), "1 dimensions"),
        (np.zeros((2, 2, 2)), "3 dimensions"),
        (np.zeros((0, 4)), "empty"),
        (np.zeros((2, 2), complex), "real numbers"),
        ([["a", "b"]], "real numbers"),
    ],
)
def test_what_is_no_matrix_is_named(values: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        codec.as_matrix(values, "frame 3")


def test_limits_that_most_values_keep() -> None:
    values = np.random.default_rng(1).standard_normal((512, 512))
    values[0, 0] = 1000
    low, high, magnitude = codec.typical(values)
    assert 2.4 < magnitude < 3.2
    assert -3 < low < -2.2
    assert 2.2 < high < 3
    one = np.zeros((400, 400))
    one[0, 0] = 5
    assert codec.typical(one)[2] == 5  # most values are zero: then the maximum


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("colormap", ["diverging", "sequential", "categorical"])
def test_palettes(colormap: colors.Colormap, dark: bool) -> None:
    table = colors.palette(colormap, dark=dark)
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    assert not (table == colors.NAN_COLOR).all(axis=1).any()


def test_codes_keep_distinct_colours() -> None:
    for count in (2, 5, 8, 16, 100):
        table = colors.palette("categorical", categories=count)
        at = np.rint(np.arange(count) / (count - 1) * 255).astype(int)
        assert len({tuple(c) for c in table[at]}) == count


def test_unknown_names_are_named() -> None:
    with pytest.raises(ValueError, match="rainbow"):
        colors.palette("rainbow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="median"):
        codec.reduce_matrix(np.zeros((4, 4)), (2, 2), "median")  # type: ignore[arg-type]
