"""The data behind a MatrixView: given matrices, or a run in which each step is one.

Both answer the same questions: how many frames, which part of one, what a tile's indices stand for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import codec
from .codec import Array, Reduce
from .replay import Replay

KEPT = 64 << 20  # bytes of computed frames that a view keeps for the next request


@dataclass(frozen=True)
class MatrixFrame:
    """One matrix of a view.

    `values` is a 2-D array or tensor, or a function without arguments that returns one. `window`,
    where given, returns only the part `[rows, columns]` (two slices) and spares the rest: give it
    for large matrices that are computed on demand.
    """

    values: Any
    window: Callable[[slice, slice], Any] | None = None


@dataclass
class Frames:
    """The matrices behind one set of frames. Replaced as a whole, so that a request that runs on
    another thread meets either the old set or the new one, never a mixture."""

    version: int
    items: list[MatrixFrame]
    shape: tuple[int, int]
    ranges: list[tuple[float, float]]  # what index 0 and index 254 stand for, per frame
    reduce: Reduce
    digits: int
    kept: OrderedDict[int, Array] = field(default_factory=OrderedDict)

    @property
    def count(self) -> int:
        return len(self.items)

    def range(self, i: int, _asked: Any) -> tuple[float, float]:
        """What the indices of a tile of frame i stand for."""
        return self.ranges[i]

    def matrix(self, i: int) -> Array:
        values = self.items[i].values
        if not callable(values):
            return codec.as_matrix(values, f"frame {i}")
        found = self.kept.get(i)
        if found is None:
            found = codec.as_matrix(values(), f"frame {i}")
            if self.items[i].window is None or found.nbytes < KEPT // 8:
                self.keep(i, found)  # of a larger one its windows are computed when asked for
        return found

    def keep(self, i: int, matrix: Array) -> None:
        kept = self.kept
        kept[i] = matrix
        while len(kept) > 1 and sum(m.nbytes for m in list(kept.values())) > KEPT:
            kept.popitem(last=False)

    def window(self, i: int, rows: slice, columns: slice) -> Array:
        part = self.items[i].window
        if part is None:
            return self.matrix(i)[rows, columns]
        return codec.as_matrix(part(rows, columns), f"window of frame {i}")


@dataclass(frozen=True)
class Steps:
    """A run behind the frames: frame s is the matrix after s steps. Replaced as a whole too."""

    version: int
    replay: Replay
    minus: Replay | None
    exact: Callable[[int, slice, slice], Any]  # the values of a step, from the kernel
    limits: tuple[float, float]
    digits: int
    reduce: Reduce = "nearest"

    @property
    def shape(self) -> tuple[int, int]:
        """(0, 0) as long as there is nothing to show: no run yet, or two that do not match."""
        rows, columns = self.replay.shape
        if self.minus is not None and self.minus.shape != self.replay.shape:
            return 0, 0
        return rows, columns

    @property
    def count(self) -> int:
        return self.shape[1] + 1 if self.shape[1] else 0

    def range(self, _i: int, asked: Any) -> tuple[float, float]:
        """The browser knows the limits of the step that it shows; else the shared ones."""
        try:
            low, high = (float(v) for v in asked)
        except (TypeError, ValueError):
            return self.limits
        return (low, high) if np.isfinite([low, high]).all() and low < high else self.limits

    def window(self, i: int, rows: slice, columns: slice) -> Array:
        part = codec.as_matrix(self.exact(i, rows, columns), f"window of step {i}")
        want = (rows.stop - rows.start, columns.stop - columns.start)
        if part.shape != want:
            raise ValueError(f"window of step {i} has shape {part.shape}, asked was for {want}")
        return part
