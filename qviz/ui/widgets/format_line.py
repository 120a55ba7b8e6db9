"""FormatLine: all numbers of two formats on one line, from the smallest to the largest, zoomable.

The numbers come as rows of equally spaced ones (start, spacing, count), so that four billion of
them are a few hundred rows; the browser counts how many fall on each pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import traitlets

from .base import BrowserWidget, module

WHOLE = 4e38  # a little beyond the largest float32


class FormatLine(BrowserWidget):
    """The line. `frame` is the format above it, `beside` the one below.

    `view` is [from, to] of what is seen; `scale` is "log" (each decade is as wide as the next, with
    zero and the negative numbers in their places) or "linear". `number` is marked, and on each lane
    what it became: `values` has that for each format, None where it is not a number.
    """

    _esm = module("format_line")

    label = traitlets.Unicode().tag(sync=True)
    titles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    runs = traitlets.Bytes().tag(sync=True)  # float64: start, spacing, count of every run
    ends = traitlets.List(traitlets.Int()).tag(sync=True)  # how many runs there are up to a format
    frame = traitlets.Int(0).tag(sync=True)
    beside = traitlets.Int(0).tag(sync=True)
    number = traitlets.Float(None, allow_none=True).tag(sync=True)
    values = traitlets.List(traitlets.Float(None, allow_none=True)).tag(sync=True)
    scale = traitlets.Unicode("log").tag(sync=True)
    view = traitlets.List(traitlets.Float(), [-WHOLE, WHOLE]).tag(sync=True)

    def __init__(
        self,
        label: str,
        titles: Sequence[str],
        runs: Sequence[Sequence[tuple[float, float, int]]],
    ) -> None:
        """`runs` are those of each format, ascending."""
        if len(titles) != len(runs):
            raise ValueError(f"{len(runs)} formats with {len(titles)} titles")
        flat = np.array([run for each in runs for run in each], dtype="<f8").reshape(-1, 3)
        ends = np.cumsum([len(each) for each in runs]).tolist()
        super().__init__(label=label, titles=list(titles), runs=flat.tobytes(), ends=ends)

    def set_number(self, number: float, values: Sequence[float]) -> None:
        """Mark a number, and what it became in each format; Inf and NaN have no place."""
        with self.hold_sync():
            self.number = number if math.isfinite(number) else None
            self.values = [value if math.isfinite(value) else None for value in values]

    def look(self, low: float, high: float) -> None:
        """Show this part. ValueError where it is none."""
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a part of the line goes from a number to a larger one, not {low} "
                             f"to {high}")  # fmt: skip
        self.view = [max(low, -WHOLE), min(high, WHOLE)]
