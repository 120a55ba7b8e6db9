"""Replay: a matrix that changes step by step, sent once, so that the browser can show any step.

Each step finishes one column and changes those that still wait by a product of two short vectors.
The vectors of all steps are what is sent; the browser adds them up. A copy of the matrix for each
of a thousand steps would be half a gigabyte, this is two and a half megabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import traitlets

from . import codec
from .base import BrowserWidget
from .codec import Array

_TOP = 32767  # the integer that stands for the largest magnitude of a step
_ROOM = 2**30  # the browser sums in 32-bit integers; half of their range is left free


@dataclass(frozen=True)
class Encoded:
    """A run as it travels. Displayed columns come in the order of their turns, [columns, rows].

    `data` holds, little-endian and without gaps: turn int32 [matrix columns]; scales float32 of
    the errors [n], the shares [n], the start [columns] and the movement [columns]; then int16:
    errors [n, rows], the shares of each step for the columns after it, start [columns, rows],
    end − start [columns, rows]. An integer k stands for k / 32767 of its scale.
    `unit` is what 1 stands for in the browser's sums.
    """

    data: bytes
    shape: tuple[int, int]
    grid: tuple[int, int]
    step: tuple[int, int]
    unit: float


class Replay(BrowserWidget):
    """A run of n steps over a matrix [rows, columns], n = columns. Nothing to see by itself.

    `turn[c]` is the step at which column c is finished. After s steps, s = 0 … n, a cell is

    - `end[r, c]` where turn[c] < s (finished);
    - `start[r, c] − Σ_{j<s} errors[r, j]·shares[j, c]` elsewhere (turn[c] == s: the current
      column; turn[c] > s: it waits).

    MatrixViews show it with `set_replay`; several share what the browser computes.

    >>> replay = Replay()
    >>> replay.set_run([[1.0, 2.0]], [[1.5, 2.5]], [[-0.5, 0.1]], [[1.0, 0.2], [0.0, 1.0]], [0, 1])
    >>> replay.n, replay.shape
    (2, [1, 2])
    """

    _esm = "export default { render({ el }) { el.hidden = true; } };"

    data = traitlets.Bytes().tag(sync=True)
    shape = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    grid = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    step = traitlets.List(traitlets.Int(), [1, 1]).tag(sync=True)
    unit = traitlets.Float(1.0).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)

    @property
    def n(self) -> int:
        """How many steps the run has: one per column; 0 before the first run."""
        return int(self.shape[1])

    def set_run(self, start: Any, end: Any, errors: Any, shares: Any, turn: Any) -> None:
        """Another run: start, end [rows, columns]; errors [rows, n]; shares [n, columns]; turn
        [columns], integers. Arrays or tensors; they are copied at display resolution.

        Of `shares`, only `shares[j, c]` with turn[c] > j matter. Raises ValueError for shapes that
        do not fit together, values that are not finite, and turns that are not 0 … n − 1 once each.
        """
        run = encode_run(start, end, errors, shares, turn)
        with self.hold_sync():
            self.data, self.unit = run.data, run.unit
            self.shape, self.grid, self.step = list(run.shape), list(run.grid), list(run.step)
            self.version += 1


def encode_run(start: Any, end: Any, errors: Any, shares: Any, turn: Any) -> Encoded:
    """The run at display resolution; arguments and errors as in `Replay.set_run`."""
    start, end, errors, shares, turn = _checked(start, end, errors, shares, turn)
    shape = (int(start.shape[0]), int(start.shape[1]))
    step = codec.factors(shape)
    rows, columns = (codec.middles(*pair) for pair in zip(shape, step, strict=True))
    columns = columns[np.argsort(turn[columns])]  # in the order of their turns
    first = start[rows][:, columns].T.astype(np.float64)  # [columns, rows]
    moved = end[rows][:, columns].T - first
    e, e_scale = _integers(errors[rows].T, "errors")  # [n, rows]
    waiting = turn[columns] > np.arange(shape[1])[:, None]  # [n, columns]
    s, s_scale = _integers(np.where(waiting, shares[:, columns], 0), "shares")
    w, w_scale = _integers(first, "start")
    m, m_scale = _integers(moved, "end − start")
    parts = [turn.astype("<i4"), e_scale, s_scale, w_scale, m_scale, e, s[waiting], w, m]
    return Encoded(
        b"".join(np.ascontiguousarray(part).tobytes() for part in parts),
        shape, (len(rows), len(columns)), step, _unit(e, s, e_scale, s_scale),
    )  # fmt: skip


def _integers(lines: Array, name: str) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Each line as integers −32767 … 32767 of its largest magnitude, and these magnitudes."""
    lines = lines.astype(np.float64)
    with np.errstate(over="ignore"):
        scale = np.abs(lines).max(axis=1).astype("<f4")
    if not np.isfinite(scale).all():
        raise ValueError(f"{name} holds magnitudes that float32 cannot hold; scale the run down")
    ratio = lines / np.where(scale > 0, scale, 1)[:, None].astype(np.float64)
    return np.rint(np.clip(ratio, -1, 1) * _TOP).astype("<i2"), scale


def _unit(e: Array, s: Array, e_scale: Array, s_scale: Array) -> float:
    """What 1 stands for in the sums, so that none of them, at any step, leaves its integers: no
    sum is larger than that of the magnitudes of all its terms."""
    weight = e_scale.astype(np.float64) * s_scale
    peak = float(weight.max())
    if peak == 0:
        return 1.0
    share = np.abs(s).astype(np.float32) * (weight / peak / _TOP)[:, None].astype(np.float32)
    error = np.abs(e).astype(np.float32) / np.float32(_TOP)
    bound = peak * float((error.T @ share).max()) * 1.001  # float32 sums come out a little low
    return bound / _ROOM if bound > 0 else 1.0


def _checked(
    start: Any, end: Any, errors: Any, shares: Any, turn: Any
) -> tuple[Array, Array, Array, Array, npt.NDArray[np.int64]]:
    """The arguments as arrays that fit together; ValueError where they do not."""
    start = codec.as_matrix(start, "start")
    rows, n = start.shape
    checked = [start]
    for values, name, want, why in (
        (end, "end", (rows, n), "that of start"),
        (errors, "errors", (rows, n), "[rows, steps] with a step for each column"),
        (shares, "shares", (n, n), "[steps, columns] with a step for each column"),
    ):
        matrix = codec.as_matrix(values, name)
        if matrix.shape != want:
            raise ValueError(f"{name} has shape {matrix.shape}, but {want} is needed: {why}")
        checked.append(matrix)
    for matrix, name in zip(checked, ("start", "end", "errors", "shares"), strict=True):
        if not np.isfinite(matrix).all():
            raise ValueError(f"{name} holds values that are not finite; a run needs numbers")
    order = np.asarray(turn.detach().cpu() if hasattr(turn, "detach") else turn)
    if order.shape != (n,) or order.dtype.kind not in "iu":
        raise ValueError(
            f"turn must be {n} integers, the step of each column, not {order.dtype} of shape "
            f"{order.shape}"
        )
    if not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(
            f"turn must name each step 0 … {n - 1} once: which column is finished when"
        )
    return checked[0], checked[1], checked[2], checked[3], order.astype(np.int64)
