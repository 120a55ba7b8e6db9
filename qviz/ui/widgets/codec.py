"""Matrices on their way to the screen: reduced to its resolution, one byte per cell.

A frame is sent as indices 0…254 into its own range, with 255 for "not a number". The browser turns
indices into values (`lo + k·(hi − lo)/254`) and values into colours, so that one picture can be
looked at with limits of its own or with limits shared by all frames, without being sent again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Reduce = Literal["mean", "max_abs", "nearest"]

#: Longest side of a frame that is sent ahead, in cells.
SENT = 512
#: Index of a cell that is not a number.
NAN_INDEX = 255
_TOP = 254  # the highest index that stands for a value; even, so that 127 is the exact middle


def as_matrix(values: Any, name: str = "matrix") -> Array:
    """`values` (tensor, array, nested lists) as a real 2-D numpy array, without a copy if possible.

    Raises ValueError for anything that is not a non-empty real matrix.
    """
    if hasattr(values, "detach"):  # a torch tensor; numpy knows neither bfloat16 nor its gradient
        values = values.detach().cpu()
        if str(values.dtype) in ("torch.bfloat16", "torch.float16") or "float8" in str(
            values.dtype
        ):
            values = values.float()
        values = values.numpy()
    matrix = np.asarray(values)
    if matrix.ndim != 2:
        raise ValueError(
            f"{name} has {matrix.ndim} dimensions with shape {matrix.shape}; a matrix view needs 2"
        )
    if matrix.size == 0:
        raise ValueError(f"{name} is empty, with shape {matrix.shape}; there is nothing to show")
    if matrix.dtype == bool:
        return matrix.astype(np.uint8)
    if matrix.dtype == np.float16:
        return matrix.astype(np.float32)
    if matrix.dtype.kind not in "iuf":
        raise ValueError(f"{name} holds {matrix.dtype} values; a matrix view needs real numbers")
    return matrix


def factors(shape: tuple[int, int], limit: int = SENT) -> tuple[int, int]:
    """How many rows and columns one sent cell stands for, so that neither side exceeds `limit`."""
    return -(-shape[0] // limit), -(-shape[1] // limit)


def middles(size: int, step: int) -> npt.NDArray[np.intp]:
    """Which of `size` cells stands for each run of `step` where the "nearest" one is shown."""
    return np.minimum(np.arange(0, size, step) + step // 2, size - 1)


def _along(matrix: Array, step: int, axis: int, how: np.ufunc) -> Array:
    """Combine each run of `step` neighbours along `axis`; the last run may be shorter.

    Slices `k::step` are combined instead of reshaped blocks: numpy runs along whole rows then,
    which is several times faster than reducing many short axes.
    """
    if step == 1:
        return matrix
    lead: tuple[slice, ...] = (slice(None),) * axis
    result = matrix[(*lead, slice(0, None, step))].copy()
    for k in range(1, step):
        part = matrix[(*lead, slice(k, None, step))]
        here = result[(*lead, slice(0, part.shape[axis]))]
        how(here, part, out=here)
    return result


def reduce_matrix(matrix: Array, step: tuple[int, int], how: Reduce) -> Array:
    """One value per block of `step` cells: [ceil(rows / step[0]), ceil(columns / step[1])].

    - "nearest": the cell in the middle of the block;
    - "mean": the mean;
    - "max_abs": the value with the largest magnitude, with its sign (so no error hides).
    A block with a NaN in it is NaN for "mean" and "max_abs".
    """
    (fr, fc), (rows, columns) = step, matrix.shape
    if how not in ("nearest", "mean", "max_abs"):
        raise ValueError(f"unknown reduction {how!r}: use 'nearest', 'mean' or 'max_abs'")
    if fr == fc == 1:
        return matrix
    if how == "nearest":
        middle: Array = matrix[middles(rows, fr)][:, middles(columns, fc)]
        return middle
    if matrix.dtype.kind in "iu":  # the magnitude of the lowest integer does not fit its type
        matrix = matrix.astype(np.float64)
    if how == "mean":
        total = _along(_along(matrix, fr, 0, np.add), fc, 1, np.add)
        heights = np.minimum(fr, rows - np.arange(0, rows, fr))  # [grid rows]
        widths = np.minimum(fc, columns - np.arange(0, columns, fc))  # [grid columns]
        mean: Array = total / (heights[:, None] * widths)
        return mean
    high = _along(_along(matrix, fr, 0, np.maximum), fc, 1, np.maximum)
    low = _along(_along(matrix, fr, 0, np.minimum), fc, 1, np.minimum)
    return np.where(high >= -low, high, low)  # NaN compares false and low is NaN then as well


def encode(values: Array, lo: float, hi: float) -> npt.NDArray[np.uint8]:
    """Indices of `values` in the range lo…hi, saturating: uint8 of the same shape."""
    middle, half = lo / 2 + hi / 2, hi / 2 - lo / 2
    with np.errstate(over="ignore", invalid="ignore"):
        k = (values.astype(np.float64) - middle) / half
        k = np.rint(np.clip((k + 1) * (_TOP / 2), 0, _TOP))
    return np.where(np.isnan(k), NAN_INDEX, k).astype(np.uint8)


def decode(indices: Array, lo: float, hi: float) -> npt.NDArray[np.float64]:
    """The values that the browser shows for indices: the middle of each index's interval."""
    middle, half = lo / 2 + hi / 2, hi / 2 - lo / 2
    values = middle + (indices.astype(np.float64) / (_TOP / 2) - 1) * half
    return np.where(indices == NAN_INDEX, np.nan, values)


@dataclass(frozen=True)
class Summary:
    """A one-line summary of a matrix. `low`, `high`, `rms` are over its finite values."""

    shape: tuple[int, int]
    low: float
    high: float
    rms: float
    nan: int
    infinite: int

    @property
    def absmax(self) -> float:
        return max(abs(self.low), abs(self.high))


def summarize(matrix: Array) -> Summary:
    """Range and root mean square of the finite values, and how many are not finite."""
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    low, high = float(matrix.min()), float(matrix.max())
    nan = infinite = 0
    if not (np.isfinite(low) and np.isfinite(high)):  # a NaN anywhere makes both of them NaN
        nan = int(np.isnan(matrix).sum())
        infinite = int(np.isinf(matrix).sum())
        matrix = matrix[np.isfinite(matrix)]
        if matrix.size == 0:
            return Summary(shape, 0.0, 0.0, 0.0, nan, infinite)
        low, high = float(matrix.min()), float(matrix.max())
    flat = matrix.reshape(-1)
    if flat.dtype.kind in "iu":
        flat = flat.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        square = float(np.dot(flat, flat))
        peak = max(abs(low), abs(high))
        if not np.isfinite(square) or (square < 1e-30 and peak > 0):
            scaled = flat.astype(np.float64) / peak  # squares left the range of the type
            rms = peak * float(np.sqrt(np.dot(scaled, scaled) / scaled.size))
        else:
            rms = float(np.sqrt(square / flat.size))
    return Summary(shape, low, high, rms, nan, infinite)


def typical(values: Array, share: float = 0.995) -> tuple[float, float, float]:
    """Limits that most values keep: (low, high, magnitude) such that `share` of them lie inside.

    Trained weights have a few values ten times the rest; limits at the maximum would leave a pale
    picture. Where most values are zero the maximum itself is taken.
    """
    step = max(1, values.size // 65536)
    some = values.reshape(-1)[::step].astype(np.float64)
    some = some[np.isfinite(some)]
    if some.size == 0:
        return 0.0, 0.0, 0.0
    low, high = np.quantile(some, [1 - share, share])
    magnitude = float(np.quantile(np.abs(some), share))
    if magnitude == 0:
        low, high, magnitude = some.min(), some.max(), float(np.abs(some).max())
    return float(low), float(high), magnitude
