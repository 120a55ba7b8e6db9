"""NumberLine: values on a line that can be dragged, with a histogram behind and levels on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import traitlets

from .base import BrowserWidget, module


class NumberLine(BrowserWidget):
    """Handles on a line of numbers.

    A handle is dragged, or moved with the arrow keys (Shift: by ten), Page Up and Down, Home and
    End. Handles keep their order: none can pass its neighbour. `values` follows while dragging.
    `frame` says which of the histograms and sets of levels is shown, and takes the handles to that
    frame's places where there are any.

    >>> line = NumberLine("Weights", handles=["lowest level", "highest level"])
    >>> line.set_line(bounds=(-1, 1), values=[-0.5, 0.5])
    >>> line.set_levels([[-0.5, 0.0, 0.5]])
    """

    _esm = module("number_line")

    label = traitlets.Unicode().tag(sync=True)
    handles = traitlets.List(traitlets.Unicode()).tag(sync=True)
    bounds = traitlets.List(traitlets.Float(), [0.0, 1.0]).tag(sync=True)
    values = traitlets.List(traitlets.Float()).tag(sync=True)
    step = traitlets.Float(0.01).tag(sync=True)
    shade = traitlets.Unicode().tag(sync=True)
    root = traitlets.Bool(False).tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(130).tag(sync=True)
    bars = traitlets.List().tag(sync=True)  # per frame: [counts, edges]
    levels = traitlets.List().tag(sync=True)  # per frame: numbers
    places = traitlets.List().tag(sync=True)  # per frame: where its handles are, or nothing
    summaries = traitlets.List(traitlets.Unicode()).tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        label: str,
        handles: Sequence[str] = (),
        *,
        shade: Literal["", "outside", "between"] = "",
        root: bool = False,
        unit: str = "",
        height: int = 130,
    ) -> None:
        """`shade` tints what lies outside of the outermost handles, or between them; `root` draws
        square roots of the counts, so that a few far values can be seen, and says so."""
        if shade not in ("", "outside", "between"):
            raise ValueError(f"shade {shade!r} is none of '', 'outside', 'between'")
        names = [str(name) for name in handles]
        super().__init__(
            label=label, handles=names, shade=shade, root=root, unit=unit, height=height,
            values=[0.0] * len(names),
        )  # fmt: skip
        self.observe(self._on_frame, "frame")

    def set_line(
        self,
        bounds: tuple[float, float],
        values: Sequence[float] | None = None,
        *,
        step: float | None = None,
    ) -> None:
        """The ends of the line, where the handles are, and how far an arrow key moves one (without
        `step`, a two-hundredth of the line). Without `values` the handles stay where they can."""
        low, high = float(bounds[0]), float(bounds[1])
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"a line needs two ends, the lower one first, not {low} and {high}")
        if step is not None and not 0 < step <= high - low:
            raise ValueError(f"a step of {step} does not fit a line from {low} to {high}")
        kept = [min(max(v, low), high) for v in self.values] if values is None else values
        with self.hold_sync():
            self.values = self.checked(kept, low, high)
            self.bounds = [low, high]
            self.step = (high - low) / 200 if step is None else float(step)

    def checked(
        self, values: Sequence[float], low: float | None = None, high: float | None = None
    ) -> list[float]:
        """Values that the handles can take: ValueError for others."""
        low = self.bounds[0] if low is None else low
        high = self.bounds[1] if high is None else high
        made = [float(value) for value in values]
        if len(made) != len(self.handles):
            raise ValueError(f"{len(made)} values for {len(self.handles)} handles")
        if any(not low <= value <= high for value in made):
            raise ValueError(f"{made} do not all lie between {low} and {high}")
        if made != sorted(made):
            raise ValueError(f"handles keep their order; {made} do not rise")
        return made

    def set_histogram(self, counts: Any, edges: Any) -> None:
        """What lies behind: counts [n] and edges [n + 1], or lists of these, one per frame; an
        empty list draws none."""
        several = len(counts) > 0 and np.ndim(counts[0]) == 1
        pairs = list(zip(counts, edges, strict=True)) if several else [(counts, edges)]
        made = []
        for each, ends in pairs if len(counts) else []:
            c, e = np.asarray(each, np.float64), np.asarray(ends, np.float64)
            if c.ndim != 1 or e.shape != (len(c) + 1,) or (c < 0).any() or (np.diff(e) < 0).any():
                raise ValueError(
                    f"a histogram is counts [n] from 0 on and rising edges [n + 1], not {c.shape} "
                    f"and {e.shape}"
                )
            made.append([c.tolist(), e.tolist()])
        self.bars = made

    def set_levels(
        self, levels: Sequence[Sequence[float]], summaries: Sequence[str] | str = ""
    ) -> None:
        """Marks on the line, for each frame; `summaries` say in words what each frame shows."""
        made = [[float(level) for level in each] for each in levels]
        texts = [summaries] * len(made) if isinstance(summaries, str) else list(summaries)
        if len(texts) != len(made):
            raise ValueError(f"{len(texts)} summaries for {len(made)} frames")
        with self.hold_sync():
            self.levels = made
            self.summaries = texts

    def set_places(self, places: Sequence[Sequence[float]]) -> None:
        """Where the handles go when a frame is shown; where it has an empty list they stay."""
        self.places = [self.checked(each) if len(each) else [] for each in places]

    def _on_frame(self, _change: Any) -> None:
        """As the browser does by itself."""
        if self.frame < len(self.places) and self.places[self.frame]:
            self.values = list(self.places[self.frame])
