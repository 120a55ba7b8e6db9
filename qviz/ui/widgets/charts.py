"""Chart: plotly figures built in Python, sent ahead, switched in the browser.

A FigureWidget carries five megabytes of JavaScript each. Here plotly.js is loaded once per page,
over HTTP where the server offers it, otherwise from the kernel. The figures travel as their
description
plus one block of bytes for all arrays of all frames, equal arrays once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import traitlets

from qviz.ui.plotly_js import plotly_js_file, plotly_js_url

from .base import BrowserWidget, module

_TYPES = {"i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"}  # what a typed array of a browser holds
_LONG = 8  # lists shorter than this stay lists


def smallest(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers in a type that browsers hold, in half the bytes where nothing is lost.

    float64 becomes float32 unless that overflows, underflows or merges neighbours on an axis.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        fits = low >= -(2**31) and high < 2**31
        return values.astype(np.int32 if fits else np.float64)
    if values.dtype == np.float16:
        return values.astype(np.float32)
    if values.dtype != np.float64:
        return values
    finite = values[np.isfinite(values)]
    if finite.size:
        with np.errstate(over="ignore", under="ignore"):
            short = finite.astype(np.float32)
        spread = float(finite.max() - finite.min()) or float(np.abs(finite).max())
        if not np.isfinite(short).all() or np.abs(short - finite).max() > 1e-5 * spread:
            return values
        if ((short == 0) != (finite == 0)).any():
            return values
    with np.errstate(under="ignore"):
        return values.astype(np.float32)


class _Buffers:
    """One block of bytes for the arrays of all figures; equal arrays are kept once."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.length = 0
        self.known: dict[tuple[str, bytes], dict[str, Any]] = {}

    def add(self, values: npt.NDArray[Any]) -> dict[str, Any]:
        values = np.ascontiguousarray(smallest(values))
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        kind = values.dtype.str[1:]
        raw = values.tobytes()
        key = (f"{kind}{values.shape}", raw)
        if key not in self.known:
            self.known[key] = {"qv": kind, "at": self.length, "shape": list(values.shape)}
            pad = -len(raw) % 8  # a typed array must begin at a multiple of its item size
            self.parts.append(raw + b"\0" * pad)
            self.length += len(raw) + pad
        return self.known[key]

    def pack(self, value: Any) -> Any:
        """A plotly description with its arrays moved into the block, fit for strict JSON."""
        if isinstance(value, Mapping):
            if "bdata" in value and value.get("dtype") in _TYPES:
                shape = str(value.get("shape", "")).replace(" ", "")
                flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
                return self.add(flat.reshape([int(n) for n in shape.split(",")]) if shape else flat)
            return {str(k): self.pack(v) for k, v in value.items()}
        if isinstance(value, np.ndarray):
            if value.dtype.kind in "iufb" and value.ndim in (1, 2):
                return self.add(value)
            return [self.pack(v) for v in value.tolist()]
        if isinstance(value, (list, tuple)):
            if len(value) >= _LONG and all(type(v) in (int, float) for v in value):
                return self.add(np.asarray(value, dtype=np.float64))
            return [self.pack(v) for v in value]
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        if isinstance(value, (int, float, np.integer, np.floating)):
            scalar = value.item() if hasattr(value, "item") else value
            return scalar if np.isfinite(scalar) else None
        return value if value is None or isinstance(value, str) else str(value)


def _descriptions(figure: Any) -> list[dict[str, Any]]:
    """Traces and layout of a go.Figure, or of a plain dict of its form: one for each of its frames,
    or one alone. A frame says what differs in the traces that it names."""
    if hasattr(figure, "to_plotly_json"):
        figure = figure.to_plotly_json()
    if not isinstance(figure, Mapping) or "data" not in figure:
        raise ValueError(
            f"a chart shows plotly figures (go.Figure or {{'data': …, 'layout': …}}), not "
            f"{type(figure).__name__}"
        )
    layout = {k: v for k, v in dict(figure.get("layout") or {}).items() if k != "template"}
    made = []  # the page's theme is the template
    for frame in figure.get("frames") or [{}]:
        traces = list(figure["data"])
        changes = frame.get("data") or []
        for i, change in zip(frame.get("traces") or range(len(changes)), changes, strict=True):
            traces[i] = _merged(traces[i], change)
        made.append({"data": traces, "layout": _merged(layout, frame.get("layout") or {})})
    return made


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `change` says, mappings within mappings merged alike."""
    out = dict(base)
    for key, value in change.items():
        nested = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if nested else value
    return out


class PlotlyLoader(BrowserWidget):
    """Brings plotly.js into the page early. Optional: the first chart does it too."""

    _esm = module("plotly", "plotly_loader")

    url = traitlets.Unicode().tag(sync=True)

    def __init__(self) -> None:
        super().__init__(url=plotly_js_url())
        self.on_msg(_answer_plotly)


def _answer_plotly(widget: Any, content: Any, _buffers: Any) -> None:
    """The page could not get plotly.js over HTTP and requests it here."""
    if isinstance(content, dict) and content.get("type") == "plotly":
        try:
            source = plotly_js_file().read_bytes()
        except OSError as error:
            widget.send({"type": "plotly", "error": str(error)})
        else:
            widget.send({"type": "plotly"}, [source])


class Chart(BrowserWidget):
    """One of several plotly figures; `frame` says which.

    `mark` draws a vertical line at this x, in the data's units, without drawing the chart again;
    None, or a value outside the axis, draws none. Link it to what steps through the x axis.

    Colours may be written `var(--qv-original)` and so on; the page's theme gives fonts, grid and
    background. `summaries` says in words what each figure shows.
    """

    _esm = module("plotly", "chart")

    label = traitlets.Unicode().tag(sync=True)
    url = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(220).tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    figures = traitlets.Unicode("[]").tag(sync=True)  # JSON: [{"data": …, "layout": …}, …]
    buffers = traitlets.Bytes().tag(sync=True)
    summaries = traitlets.List(traitlets.Unicode()).tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)
    mark = traitlets.Float(None, allow_none=True).tag(sync=True)

    def __init__(
        self,
        label: str,
        figures: Any = None,
        summary: Sequence[str] | str = "",
        *,
        height: int = 220,
    ) -> None:
        super().__init__(label=label, height=height, url=plotly_js_url())
        self.on_msg(_answer_plotly)
        if figures is not None:
            self.set_figures(figures, summary)

    def set_figures(self, figures: Any, summary: Sequence[str] | str = "") -> None:
        """Replace all figures; `summary` is one text for all of them or one per figure.

        `figures` is a list of plotly figures, or one figure whose `frames` say what differs from
        frame to frame: much quicker to build, since plotly checks every trace that it is given.
        Raises ValueError for anything else.
        """
        several = figures if isinstance(figures, Sequence) else [figures]
        if not several:
            raise ValueError("a chart needs at least one figure")
        descriptions = [made for figure in several for made in _descriptions(figure)]
        texts = (
            [summary] * len(descriptions) if isinstance(summary, str) else [str(s) for s in summary]
        )
        if len(texts) != len(descriptions):
            raise ValueError(f"{len(texts)} summaries for {len(descriptions)} figures")
        block = _Buffers()
        packed = [block.pack(description) for description in descriptions]
        with self.hold_sync():
            self.figures = json.dumps(packed, allow_nan=False, separators=(",", ":"))
            self.buffers = b"".join(block.parts)
            self.summaries = texts
            self.version += 1
            if self.frame >= len(descriptions):
                self.frame = len(descriptions) - 1
