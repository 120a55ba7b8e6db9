"""Figures of the kernels lesson: times beside 16 bits, speed-ups over the batch, the roofline.

Each is one figure with a frame per batch. Colours are the stylesheet's variables: 16-bit weights
have the colour of originals, the kernel in focus that of codes, the others that of what waits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from qviz.kernels.registry import BASELINE
from qviz.kernels.results import Measurement, Point
from qviz.ui.figures.common import CODES, INK, NOW, ORIGINAL, WAIT, axes_layout

SYMBOLS = ("diamond", "square", "triangle-up", "cross", "x", "star", "hexagon", "pentagon")
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


def points_of(measured: Measurement, kernel: str) -> dict[int, Point]:
    """Batch, ascending → a kernel's point. Of 16-bit weights that were measured in two dtypes
    (beside kernels with other inputs), the first."""
    found: dict[int, Point] = {}
    for point in measured.select(kernel=kernel):
        found.setdefault(point.batch, point)
    return dict(sorted(found.items()))


def role(kernel: str, chosen: str) -> str:
    """A kernel's colour."""
    return ORIGINAL if kernel == BASELINE else CODES if kernel == chosen else WAIT


def times(
    measured: Measurement, kernels: Sequence[str], batches: Sequence[int], chosen: str
) -> go.Figure:
    """Milliseconds of one product, a bar for each kernel, from zero; a frame for each batch.

    The thin line at a bar's end runs from the 10th to the 90th percentile. A kernel that was not
    measured at a batch has no bar there.
    """
    figure = go.Figure(layout=axes_layout("milliseconds", ""))
    names = list(reversed(kernels))  # plotly counts from below
    figure.add_bar(
        orientation="h",
        marker={"color": [role(name, chosen) for name in names], "line": {"width": 0}},
        error_x={"type": "data", "symmetric": False, "color": INK, "thickness": 1, "width": 3},
        hovertemplate="%{y}: %{x:.4g} ms<extra></extra>",
    )
    figure.frames = [_bars(measured, names, batch) for batch in batches]
    figure.update_layout(margin={"l": 8, "r": 12, "t": 2, "b": 36}, bargap=0.3)
    figure.update_yaxes(automargin=True, title=None, showgrid=False)
    return figure


def _bars(measured: Measurement, names: Sequence[str], batch: int) -> go.Frame:
    points = [points_of(measured, name).get(batch) for name in names]
    here = [point.time for point in points if point is not None]
    bars = {
        "type": "bar",
        "x": [None if p is None else 1e3 * p.time.median for p in points],
        "y": [
            f"{name}  {_beside(measured, point)}" for name, point in zip(names, points, strict=True)
        ],
        "error_x": {
            "array": [None if p is None else 1e3 * (p.time.high - p.time.median) for p in points],
            "arrayminus": [
                None if p is None else 1e3 * (p.time.median - p.time.low) for p in points
            ],
        },
    }
    # A single outlying repeat may make a line long; it must not make the bars short.
    top = 1e3 * max(min(time.high, 1.4 * time.median) for time in here)
    return go.Frame(traces=[0], data=[bars], layout={"xaxis": {"range": [0, top * 1.05]}})


def _beside(measured: Measurement, point: Point | None) -> str:
    """What follows a kernel's name on the axis."""
    if point is None:
        return "not measured"
    return "16 bits" if point.kernel == BASELINE else f"{measured.speedup(point):.3g}×"


def speedups(
    measured: Measurement,
    kernels: Sequence[str],
    batches: Sequence[int],
    chosen: str,
    *,
    drawn: bool = True,
) -> go.Figure:
    """How many times as fast as 16-bit weights, over the batch, both axes logarithmic; a frame for
    each batch, which marks the chosen kernel's point.

    drawn  False shows the point of the moment alone, for a learner who is about to predict
    """
    figure = go.Figure(layout=axes_layout("tokens at once", "speed, × 16 bits"))
    others = [name for name in kernels if name != BASELINE]
    seen = []
    for i, name in enumerate(others):
        points = list(points_of(measured, name).values())
        seen += [measured.speedup(point) for point in points]
        mine = name == chosen
        figure.add_scatter(
            x=[point.batch for point in points],
            y=[measured.speedup(point) for point in points],
            mode="lines+markers" if mine else "lines",
            line={
                "color": role(name, chosen),
                "width": 2.5 if mine else 1.5,
                "dash": "solid" if mine else DASHES[i % len(DASHES)],
            },
            marker={"size": 5},
            name=name,
            visible=drawn,
            zorder=int(mine),
            hovertemplate=f"{name}, %{{x}} tokens: %{{y:.3g}}×<extra></extra>",
        )
    figure.add_scatter(
        mode="markers+text",
        marker={"color": NOW, "size": 11, "line": {"width": 2, "color": INK}},
        textfont={"color": INK, "size": 13},
        hoverinfo="skip",
        showlegend=False,
        zorder=2,
    )
    reach = [batches[0] / 1.4, batches[-1] * 1.6]
    figure.add_scatter(
        x=reach, y=[1, 1], mode="lines", line={"color": ORIGINAL, "width": 1.5},
        name="16-bit", hoverinfo="skip", showlegend=drawn,
    )  # fmt: skip
    figure.frames = [
        go.Frame(traces=[len(others)], data=[_now(measured, chosen, batch, batches[0])])
        for batch in batches
    ]
    figure.update_xaxes(
        type="log", range=list(np.log10(reach)), tickvals=list(batches),
        ticktext=[str(batch) for batch in batches],
    )  # fmt: skip
    low, high = np.log10([min([1.0, *seen]), max([1.0, *seen])])
    ticks = [x * 10.0**power for power in range(-4, 4) for x in (1, 2, 5)]
    figure.update_yaxes(
        type="log", range=[low - 0.15, high + 0.35], tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
    )  # fmt: skip
    # Most curves fall, so that the upper right corner is free.
    figure.update_layout(showlegend=drawn, legend=_legend(right=True))
    return figure


def _legend(*, right: bool) -> dict[str, Any]:
    return {
        "orientation": "v",
        "x": 1 if right else 0.02,
        "xanchor": "right" if right else "left",
        "y": 1.02,
        "yanchor": "top",
        "font": {"size": 10.5},
        "bgcolor": "rgba(0,0,0,0)",
        "itemclick": False,
        "itemdoubleclick": False,
    }


def _now(measured: Measurement, chosen: str, batch: int, first: int) -> dict[str, Any]:
    point = points_of(measured, chosen).get(batch)
    if point is None:
        return {"type": "scatter", "x": [], "y": [], "text": []}
    value = measured.speedup(point)
    return {
        "type": "scatter",
        "x": [batch],
        "y": [value],
        "text": [f"<b>{value:.3g}×</b>"],
        "textposition": "top center" if batch > first else "top right",
    }


def roofline(
    measured: Measurement, kernels: Sequence[str], batches: Sequence[int], chosen: str
) -> go.Figure:
    """Operations per second over operations per byte, both logarithmic, and what the device allows:
    the sloped roof is the bandwidth of a copy or a read, the faster one, a flat roof the rate of a
    large product; a frame for each batch. The chosen kernel's line goes through its points of all
    batches."""
    figure = go.Figure(layout=axes_layout("operations per byte moved", "10⁹ operations per second"))
    points = [p for name in kernels for p in points_of(measured, name).values()]
    low = min(p.intensity for p in points) / 2
    high = max(p.intensity for p in points) * 3
    bandwidth = measured.ceilings.bandwidth
    rates = measured.ceilings.matmul_rate
    used = dict.fromkeys(p.arithmetic for p in points if p.arithmetic and p.arithmetic in rates)
    for i, dtype in enumerate(used):
        ridge = rates[dtype] / bandwidth
        figure.add_scatter(
            x=[low, max(ridge, low), high],
            y=[bandwidth * low / 1e9, rates[dtype] / 1e9, rates[dtype] / 1e9],
            mode="lines",
            line={"color": INK, "width": 1.5, "dash": "solid" if i == 0 else DASHES[i - 1]},
            name=f"what {dtype} allows",
            hovertemplate=f"{dtype}: %{{y:.3g}}·10⁹ per second<extra></extra>",
        )
    for i, name in enumerate(dict.fromkeys([chosen, BASELINE])):
        trail = list(points_of(measured, name).values())
        figure.add_scatter(
            x=[p.intensity for p in trail],
            y=[p.rate / 1e9 for p in trail],
            mode="lines",
            line={"color": role(name, chosen), "width": 1.5, "dash": "solid" if i == 0 else "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
    first = len(figure.data)
    for i, name in enumerate(kernels):
        figure.add_scatter(
            mode="markers",
            marker={
                "color": role(name, chosen),
                "size": 12 if name == chosen else 9,
                "symbol": "circle" if name == BASELINE else SYMBOLS[i % len(SYMBOLS)],
                "line": {"color": INK, "width": 1 if name == chosen else 0},
            },
            name=name,
            zorder=2 if name == chosen else 1,
            hovertemplate=f"{name}: %{{x:.3g}} operations per byte, %{{y:.3g}}·10⁹ per second"
            "<extra></extra>",
        )
    traces = list(range(first, first + len(kernels)))
    figure.frames = [
        go.Frame(traces=traces, data=[_spot(measured, name, batch) for name in kernels])
        for batch in batches
    ]
    figure.update_xaxes(type="log", range=list(np.log10([low, high])), dtick=1)
    rate = [p.rate / 1e9 for p in points]
    roof = max([*(rates[dtype] / 1e9 for dtype in used), *rate])
    # Only the legend is above the roof, with a tenth of the height for each of its lines.
    part = min(0.105 * (len(kernels) + len(used)), 0.55)
    room = (2 * roof / min(rate)) ** (part / (1 - part))
    figure.update_yaxes(type="log", dtick=1, exponentformat="none",
                        range=list(np.log10([min(rate) / 2, roof * room])))  # fmt: skip
    figure.update_layout(showlegend=True, legend=_legend(right=False))
    return figure


def _spot(measured: Measurement, name: str, batch: int) -> dict[str, Any]:
    point = points_of(measured, name).get(batch)
    here = [] if point is None else [point]
    return {
        "type": "scatter",
        "x": [p.intensity for p in here],
        "y": [p.rate / 1e9 for p in here],
    }
