"""MatrixView: matrices up to 4096 × 4096 on a canvas, switched, zoomed and read out in the browser.

All frames (one per bit width, say) are sent ahead at display resolution, one byte per cell, so a
slider moves through them without the kernel. Zooming beyond that resolution asks the kernel for
the exact part that is on the screen; the cursor asks it for the exact values of its cell in every
frame. With a Replay in place of frames, each step is computed in the browser, and exact values are
those of the step that is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import ipywidgets
import numpy as np
import traitlets

from qviz.core.words import number

from . import codec, colors
from .base import BrowserWidget, link, module
from .codec import Array, Reduce, Summary
from .matrix_limits import Limits, color_limits, index_ranges, limit_pair
from .matrix_source import Frames, MatrixFrame, Steps
from .replay import Replay

Show = Literal["now", "moved", "handed"]

# The browser module, by purpose; each file stands after those that it uses.
_PARTS = tuple(
    f"matrix_{part}" for part in ("frames", "page", "zoom", "tiles", "paint", "words", "input")
)
_VALUES = 64 * 64  # a tile of at most this many cells carries its exact values
_TILE = 512  # longest side of a tile, in cells


class MatrixView(BrowserWidget):
    """A picture of one matrix per frame, with zoom, cursor, legend and exact values.

    Traits to link in the browser: `frame` (which matrix is shown), `cursor` ([row, column] or
    [-1, -1]), `pinned` (a click holds the cursor), `view` ([zoom 0…1, row, column] of the centre),
    `column_mark` (−1 or a column: those before it are done, those after it wait), `row_mark` (−1
    or a row), `autoscale` (limits per frame instead of shared ones).

    `outlines` are rectangles [first row, end, first column, end] of cells, drawn around them in
    every frame; what lies outside the matrix is cut off. Of a part of a larger matrix, `origin` is
    the [row, column] there of its first cell: readout and tables count from it.

    `readout` holds the exact values of the cursor's cell: {"row", "column", "texts" (one per
    frame), "version"}; with a replay {"row", "column", "frame", "text" (of that frame), "version"}.

    >>> view = MatrixView("Weights", [[[0.0, 1.0], [2.0, -3.0]]])
    >>> view.summaries
    ['2 × 2, from −3 to 2, root mean square 1.871']
    """

    _esm = module("replay", *_PARTS, "matrix")

    label = traitlets.Unicode().tag(sync=True)
    labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    role = traitlets.Unicode().tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    autoscale = traitlets.Bool(False).tag(sync=True)
    cursor = traitlets.List(traitlets.Int(), [-1, -1]).tag(sync=True)
    pinned = traitlets.Bool(False).tag(sync=True)
    view = traitlets.List(traitlets.Float(), [0.0, 0.0, 0.0]).tag(sync=True)
    column_mark = traitlets.Int(-1).tag(sync=True)
    row_mark = traitlets.Int(-1).tag(sync=True)
    outlines = traitlets.List().tag(sync=True)
    origin = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    aspect = traitlets.Float(0.0).tag(sync=True)
    axes = traitlets.List(traitlets.Unicode(), ["row", "column"]).tag(sync=True)
    cells = traitlets.Unicode("weights").tag(sync=True)

    data = traitlets.Bytes().tag(sync=True)  # uint8 [frames, grid rows, grid columns]
    shape = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    grid = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    step = traitlets.List(traitlets.Int(), [1, 1]).tag(sync=True)  # matrix cells per sent cell
    ranges = traitlets.List().tag(sync=True)  # per frame: the values of index 0 and of index 254
    shared_limits = traitlets.List().tag(sync=True)  # per frame: limits of the colours
    own_limits = traitlets.List().tag(sync=True)  # the same with `autoscale`
    clipped = traitlets.List().tag(sync=True)  # per frame: the smallest and the largest value
    nans = traitlets.List(traitlets.Int()).tag(sync=True)
    colormap = traitlets.Unicode("diverging").tag(sync=True)
    reduce = traitlets.Unicode("nearest").tag(sync=True)
    palettes = traitlets.Bytes().tag(sync=True)  # uint8 [2, 256, 3]: for light and dark pages
    nan_color = traitlets.List(traitlets.Int(), list(colors.NAN_COLOR)).tag(sync=True)
    summaries = traitlets.List(traitlets.Unicode()).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)
    readout = traitlets.Dict().tag(sync=True)
    digits = traitlets.Int(4).tag(sync=True)

    replay = traitlets.Instance(Replay, allow_none=True).tag(
        sync=True, **ipywidgets.widget_serialization
    )
    minus = traitlets.Instance(Replay, allow_none=True).tag(
        sync=True, **ipywidgets.widget_serialization
    )
    show = traitlets.Unicode("now").tag(sync=True)
    runs = traitlets.List(traitlets.Int()).tag(sync=True)  # versions of the runs that belong here

    def __init__(
        self,
        label: str,
        frames: Sequence[Any] | None = None,
        *,
        aspect: float = 0.0,
        **options: Any,
    ) -> None:
        """`aspect` is width / height of the picture; 0 follows the matrix between 1:1 and 4:3.

        `options` are those of `set_frames`.
        """
        super().__init__(label=label, aspect=aspect)
        self._frames: Frames | Steps | None = None
        self.observe(self._on_cursor, "cursor")
        self.observe(self._on_frame, "frame")
        self.on_msg(self._on_message)
        if frames is not None:
            self.set_frames(frames, **options)

    def set_frames(
        self,
        frames: Sequence[Any],
        *,
        labels: Sequence[str] | None = None,
        limits: str | Limits | Sequence[Limits] | None = None,
        colormap: colors.Colormap = "diverging",
        reduce: Reduce = "nearest",
        unit: str = "",
        digits: int = 4,
        axes: tuple[str, str] = ("row", "column"),
        cells: str = "weights",
        role: str = "",
        describe: Sequence[str] | None = None,
    ) -> None:
        """Replace all matrices. `frame` stays where it is as long as that frame exists.

        - `frames`: matrices of one shape; arrays, tensors, functions returning one, MatrixFrames.
          They are read again when somebody zooms in: do not change them afterwards.
        - `limits`: what the ends of the colour map stand for. None: limits shared by all frames
          that 99.5 % of the values keep; "max": shared, at the largest magnitude; a number m:
          −m…m (0…m for "sequential"); a pair (low, high); a list with one of these per frame.
        - `reduce`: which of several values is shown where the screen has one cell for them.
        - `labels`, `describe`: a name and an additional sentence per frame.
        - `unit`, `digits`, `axes`, `cells`: how numbers, rows, columns and cells are named.
        - `role`: the meaning whose colour marks the title: "original", "codes", "error" …

        Raises ValueError for anything that is not a list of real matrices of one shape.
        """
        items = [f if isinstance(f, MatrixFrame) else MatrixFrame(f) for f in frames]
        if not items:
            raise ValueError("a matrix view needs at least one frame")
        names = [""] * len(items) if labels is None else [str(name) for name in labels]
        if len(names) != len(items):
            raise ValueError(f"{len(names)} labels for {len(items)} frames; give one per frame")
        if describe is not None and len(describe) != len(items):
            raise ValueError(f"{len(describe)} descriptions for {len(items)} frames")

        reduce = "nearest" if colormap == "categorical" else reduce
        new = Frames(self.version + 1, items, (0, 0), [], reduce, digits)
        grids: list[Array] = []
        about: list[Summary] = []
        for i in range(len(items)):
            matrix = new.matrix(i)
            shape = (int(matrix.shape[0]), int(matrix.shape[1]))
            if i and shape != new.shape:
                raise ValueError(
                    f"frame {i} has shape {shape}, but frame 0 has shape {new.shape}; "
                    "all frames of a view need the same shape"
                )
            new.shape = shape
            grids.append(codec.reduce_matrix(matrix, codec.factors(shape), reduce))
            about.append(codec.summarize(matrix))

        own, shared = color_limits(grids, about, limits, colormap)
        new.ranges = index_ranges(about, own, shared, colormap)
        categories = int(shared[0][1] - shared[0][0]) + 1 if colormap == "categorical" else 0
        palettes = [colors.palette(colormap, dark=d, categories=categories) for d in (False, True)]
        data = b"".join(
            codec.encode(grid, *span).tobytes()
            for grid, span in zip(grids, new.ranges, strict=True)
        )
        self._leave_replay()
        self._frames = new
        with self.hold_sync():
            self.replay, self.minus, self.runs = None, None, []
            self.labels, self.unit, self.digits = names, unit, digits
            self.axes, self.cells, self.role = list(axes), cells, role
            self.shape = list(new.shape)
            self.grid, self.step = list(grids[0].shape), list(codec.factors(new.shape))
            self.data, self.ranges = data, [list(span) for span in new.ranges]
            self.own_limits = [list(span) for span in own]
            self.shared_limits = [list(span) for span in shared]
            self.clipped = [[a.low, a.high] for a in about]
            self.nans = [a.nan for a in about]
            self.colormap, self.reduce = colormap, reduce
            self.palettes = b"".join(table.tobytes() for table in palettes)
            self.summaries = [
                _sentence(a, digits, unit, describe[i] if describe else "")
                for i, a in enumerate(about)
            ]
            self.version = new.version
            if self.frame >= len(items):
                self.frame = len(items) - 1
            if self.cursor[0] >= new.shape[0] or self.cursor[1] >= new.shape[1]:
                self.cursor = [-1, -1]
            self._on_cursor(None)

    def set_replay(
        self,
        replay: Replay,
        *,
        show: Show,
        window: Callable[[int, slice, slice], Any],
        limits: Limits,
        minus: Replay | None = None,
        labels: Sequence[str] | None = None,
        colormap: colors.Colormap = "diverging",
        unit: str = "",
        digits: int = 4,
        axes: tuple[str, str] = ("row", "column"),
        cells: str = "weights",
        role: str = "",
        describe: str = "",
    ) -> None:
        """Show a run instead of frames: `frame` is the step s = 0 … n, computed in the browser.

        - `show`: "now", the matrix after s steps; "moved", that minus the start; "handed", what the
        current column passes on, −errors[r, s]·shares[s, c] for the columns after it and 0
        elsewhere (0 everywhere at s = n).
        - `minus`: another replay of the same shape, whose picture is subtracted.
        - `window(s, rows, columns)`: the exact values of a part (two slices) after s steps; asked
          for where the learner zooms in or points, only for the step that is shown.
        - `limits`: a number or a pair, as in `set_frames`. With `autoscale`, 99.5 % of the values
          of each step instead.
        - `labels`: a name per step; `describe`: an additional sentence.

        Finished, current and waiting columns are marked; `column_mark` has no effect. A later
        `replay.set_run` shows the new run; `window` must answer for it from that call on.
        """
        if not isinstance(replay, Replay) or not isinstance(minus, Replay | None):
            raise TypeError("replay and minus must be Replay widgets")
        if replay.comm is None or (minus is not None and minus.comm is None):
            raise ValueError("a closed replay cannot be shown; make a new one")
        if show not in ("now", "moved", "handed"):
            raise ValueError(f"unknown show {show!r}: use 'now', 'moved' or 'handed'")
        if colormap == "categorical":
            raise ValueError("a replay shows sums; use the 'diverging' or 'sequential' map")
        if minus is not None and minus.n and replay.n and minus.shape != replay.shape:
            raise ValueError(
                f"the replay to subtract has shape {minus.shape}, but {replay.shape} is needed"
            )
        names = [] if labels is None else [str(name) for name in labels]
        if names and replay.n and len(names) != replay.n + 1:
            raise ValueError(f"{len(names)} labels for {replay.n + 1} steps; give one per step")
        span = limit_pair(limits, colormap)
        palettes = [colors.palette(colormap, dark=d) for d in (False, True)]
        self._leave_replay()
        self._frames = Steps(self.version + 1, replay, minus, window, span, digits)
        with self.hold_sync():
            self.replay, self.minus, self.show = replay, minus, show
            self.labels, self.unit, self.digits = names, unit, digits
            self.axes, self.cells, self.role = list(axes), cells, role
            self.data, self.ranges, self.clipped, self.nans = b"", [], [], []
            self.own_limits, self.shared_limits = [], [list(span)]
            self.colormap, self.reduce = colormap, "nearest"
            self.palettes = b"".join(table.tobytes() for table in palettes)
            self.summaries = [describe]
            self._on_run(None)
        for source in self._replays():
            source.observe(self._on_run, "version")

    def _replays(self) -> list[Replay]:
        return [source for source in (self.replay, self.minus) if source is not None]

    def _leave_replay(self) -> None:
        for source in self._replays():
            source.unobserve(self._on_run, "version")

    def _on_run(self, _change: Any) -> None:
        """Another run came: everything asked so far was asked about the one before."""
        steps = self._frames
        if not isinstance(steps, Steps):
            return
        steps = self._frames = replace(steps, version=self.version + 1)
        with self.hold_sync():
            self.shape = list(steps.shape)
            self.grid, self.step = list(steps.replay.grid), list(steps.replay.step)
            self.runs = [source.version for source in self._replays()] if steps.count else []
            self.version = steps.version
            if self.cursor[0] >= self.shape[0] or self.cursor[1] >= self.shape[1]:
                self.cursor = [-1, -1]
            self._on_cursor(None)

    def _on_frame(self, _change: Any) -> None:
        if isinstance(self._frames, Steps):  # other frames' values came with the cursor
            self._on_cursor(None)

    def values_at(self, row: int, column: int) -> list[float]:
        """The exact value of one cell in every frame."""
        frames = self._frames
        if frames is None or not (0 <= row < frames.shape[0] and 0 <= column < frames.shape[1]):
            raise ValueError(f"no cell [{row}, {column}] in a matrix of shape {self.shape}")
        at = slice(row, row + 1), slice(column, column + 1)
        return [float(frames.window(i, *at)[0, 0]) for i in range(frames.count)]

    def _on_cursor(self, _change: Any) -> None:
        """Answer the cursor with exact values; runs for moves in the browser and in Python."""
        frames, (row, column) = self._frames, self.cursor
        if frames is None or not (0 <= row < frames.shape[0] and 0 <= column < frames.shape[1]):
            self.readout = {}
            return
        if isinstance(frames, Steps):
            i = min(max(0, self.frame), frames.count - 1)
            value = frames.window(i, slice(row, row + 1), slice(column, column + 1))[0, 0]
            self.readout = {
                "row": row, "column": column, "frame": i, "version": frames.version,
                "text": number(value, max(6, frames.digits)),
            }  # fmt: skip
            return
        texts = [number(v, max(6, frames.digits)) for v in self.values_at(row, column)]
        self.readout = {"row": row, "column": column, "texts": texts, "version": frames.version}

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """Requests of the browser. A request that does not fit the present frames came late: ignore
        it, because the browser asks again for what it needs."""
        frames = self._frames
        if frames is None or not isinstance(content, dict):
            return
        if content.get("version") != frames.version:
            return
        i = content.get("frame")
        if not isinstance(i, int) or not 0 <= i < frames.count:
            return
        if content.get("type") == "tile":
            self._send_tile(frames, i, content)
        elif content.get("type") == "around":
            self._send_neighbours(frames, i, content)

    def _send_tile(self, frames: Frames | Steps, i: int, content: dict[str, Any]) -> None:
        """The region rows × cols (half-open) of frame i, with exact values where it is small."""
        rows, columns = (
            _span(content.get(axis), size)
            for axis, size in zip(("rows", "cols"), frames.shape, strict=True)
        )
        if rows is None or columns is None:
            return
        part = frames.window(i, rows, columns)
        step = codec.factors((part.shape[0], part.shape[1]), _TILE)
        small = codec.reduce_matrix(part, step, frames.reduce)
        span = frames.range(i, content.get("range"))
        indices = codec.encode(small, *span)
        exact = part.size <= _VALUES
        answer = {
            "type": "tile",
            "id": content.get("id"),
            "version": frames.version,
            "frame": i,
            "range": list(span),
            "rows": [rows.start, rows.stop],
            "cols": [columns.start, columns.stop],
            "step": list(step),
            "grid": list(small.shape),
        }
        buffers = [indices.tobytes()]
        if exact:
            with np.errstate(over="ignore"):
                buffers.append(np.ascontiguousarray(part, dtype=np.float32).tobytes())
        self.send(answer, buffers)

    def _send_neighbours(self, frames: Frames | Steps, i: int, content: dict[str, Any]) -> None:
        """The cells around the cursor as text, for the table below the picture."""
        at = [content.get("row"), content.get("column")]
        if not all(isinstance(v, int) for v in at):
            return
        starts, stops = [], []
        for value, size in zip(at, frames.shape, strict=True):
            start = max(0, min(cast(int, value) - 3, size - 7))
            starts.append(start)
            stops.append(min(size, start + 7))
        part = frames.window(i, slice(starts[0], stops[0]), slice(starts[1], stops[1]))
        texts = [[number(v, frames.digits) for v in line] for line in part]
        self.send(
            {"type": "around", "version": frames.version, "frame": i, "row": at[0],
             "column": at[1], "start": starts, "texts": texts}
        )  # fmt: skip


def link_matrices(first: MatrixView, *others: MatrixView) -> None:
    """Let views of equal shape share cursor, pin and zoom: one cell is the same cell everywhere."""
    for trait in ("cursor", "pinned", "view"):
        link(first, trait, *((other, trait) for other in others))


def _sentence(about: Summary, digits: int, unit: str, more: str) -> str:
    unit = f" {unit}" if unit else ""
    text = (
        f"{about.shape[0]} × {about.shape[1]}, from {number(about.low, digits)} to "
        f"{number(about.high, digits)}{unit}, root mean square {number(about.rms, digits)}"
    )
    if about.nan:
        text += f", {about.nan} not a number"
    if about.infinite:
        text += f", {about.infinite} infinite"
    return f"{text}. {more}" if more else text


def _span(value: Any, size: int) -> slice | None:
    """[start, stop) as the browser sent it, cut to the matrix; None when nothing is left."""
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value)):
        return None
    start, stop = max(0, value[0]), min(size, value[1])
    return slice(start, stop) if start < stop else None
