"""Figures of the NF4 lesson: quantiles one by one, bins and how full they are, errors.

Colours are the stylesheet's variables, which the chart widget resolves for the page's theme.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from qviz.study.nf4_levels import CLAIMED, NEGATIVE, Made
from qviz.ui.figures.common import CODES, ERROR, INK, NOW, ORIGINAL, WAIT, axes_layout

GOOD = "var(--qv-good)"
WIDEST = 2.6  # standard deviations on either side
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
LEGEND = {
    "orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11},
    "itemclick": False, "itemdoubleclick": False,
}  # fmt: skip
Shares = Sequence[float] | np.ndarray


def _frame(traces: list[int], data: list[dict[str, Any]]) -> dict[str, Any]:
    """What differs in one frame: plain data, because plotly checks slowly what it is given."""
    return {"traces": traces, "data": data}


def _whole(figure: go.Figure, frames: list[dict[str, Any]]) -> dict[str, Any]:
    return {**figure.to_plotly_json(), "frames": frames}


def density(z: np.ndarray) -> np.ndarray:
    """The normal density."""
    return np.asarray(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi))


def quantiles(made: Sequence[Made]) -> dict[str, Any]:
    """The normal distribution with its quantiles, one more in each frame; the last frame is the
    whole again.

    The slice of probability beside each new quantile is filled. made: the sixteen levels in
    the order in which they are made.
    """
    z = np.linspace(-WIDEST, WIDEST, 261)
    figure = go.Figure(layout=axes_layout("standard deviations z", "density"))
    figure.add_scatter(
        x=z, y=density(z), mode="lines", line={"color": ORIGINAL, "width": 2},
        name="normal distribution", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        mode="lines", line={"width": 0}, fill="tozeroy", name="its slice", hoverinfo="skip",
        fillcolor="rgba(217, 119, 6, 0.35)",
    )  # fmt: skip
    figure.add_scatter(
        mode="lines", line={"color": CODES, "width": 1.5}, name="earlier quantiles",
        hovertemplate="z = %{x:.4f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        mode="lines+markers", line={"color": NOW, "width": 2.5}, marker={"size": 7},
        name="this quantile", hovertemplate="z = %{x:.4f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(range=[-WIDEST, WIDEST], dtick=1)
    figure.update_yaxes(range=[0, 0.44])
    figure.update_layout(showlegend=True, legend=LEGEND, margin={"l": 48, "r": 8, "t": 26, "b": 36})
    steps = [(made[:0], None), *((made[:i], made[i]) for i in range(len(made))), (made, None)]
    frames = [
        _frame(
            traces=[1, 2, 3],
            data=[_slice(now, made), _uprights([one.quantile for one in past]), _upright(now)],
        )
        for past, now in steps
    ]
    return _whole(figure, frames)


def _slice(now: Made | None, made: Sequence[Made]) -> dict[str, Any]:
    """The area between a quantile and the next one towards the end of its half."""
    if now is None:
        return {"type": "scatter", "x": [], "y": []}
    beyond = [
        one.quantile
        for one in made
        if one.index == now.index - 1 and (one.half == NEGATIVE) == (now.half == NEGATIVE)
    ]
    far = beyond[0] if beyond else np.copysign(WIDEST, now.quantile)
    z = np.linspace(min(now.quantile, far), max(now.quantile, far), 40)
    return {"type": "scatter", "x": z, "y": density(z)}


def _uprights(at: Sequence[float]) -> dict[str, Any]:
    """Lines up to the density, as one trace: up, and a gap before the next."""
    z = np.asarray(at, dtype=np.float64)
    gap = np.full_like(z, np.nan)
    return {
        "type": "scatter",
        "x": np.stack([z, z, gap], axis=1).ravel(),
        "y": np.stack([np.zeros_like(z), density(z), gap], axis=1).ravel(),
    }


def _upright(now: Made | None) -> dict[str, Any]:
    if now is None:
        return {"type": "scatter", "x": [], "y": []}
    return {
        "type": "scatter",
        "x": [now.quantile] * 2,
        "y": [0.0, float(density(np.array(now.quantile)))],
    }


def occupancy(
    measured: Sequence[Shares], in_blocks: Sequence[Shares], as_built: Shares
) -> dict[str, Any]:
    """How full each of the sixteen bins is, in percent; a frame for each block size.

    measured, in_blocks  for each size the shares [16] of real weights and of normal ones
    as_built             [16] of a normal distribution at the scale the table was made for
    """
    codes = np.arange(16)
    figure = go.Figure(layout=axes_layout("code q", "weights in the bin, %"))
    figure.add_bar(
        x=codes, width=0.8, marker={"color": ORIGINAL, "opacity": 0.55, "line": {"width": 0}},
        name="this layer", hovertemplate="code %{x}: %{y:.2f} %<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=codes, mode="markers", name="normal weights, in blocks of this size",
        marker={"color": CODES, "size": 8, "symbol": "diamond"},
        hovertemplate="code %{x}: %{y:.2f} %<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=codes, y=100 * np.asarray(as_built), mode="markers",
        name="normal weights, at the table’s own scale",
        marker={"color": INK, "size": 9, "symbol": "line-ew-open", "line": {"width": 2}},
        hovertemplate="code %{x}: %{y:.2f} %<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[-0.6, 15.6], y=[100 * CLAIMED] * 2, mode="lines", name="1/16",
        line={"color": WAIT, "dash": "dash", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    top = 100 * max(float(np.max(shares)) for shares in (*measured, *in_blocks, as_built))
    figure.update_yaxes(range=[0, 1.06 * top])
    figure.update_xaxes(range=[-0.6, 15.6], dtick=1)
    figure.update_layout(showlegend=True, legend=LEGEND, margin={"l": 48, "r": 8, "t": 44, "b": 36})
    frames = [
        _frame(
            traces=[0, 1],
            data=[
                {"type": "bar", "y": 100 * np.asarray(a)},
                {"type": "scatter", "y": 100 * np.asarray(b)},
            ],
        )
        for a, b in zip(measured, in_blocks, strict=True)
    ]
    return _whole(figure, frames)


def spread(
    counts: Sequence[np.ndarray], edges: np.ndarray, levels: Shares, largest: float
) -> dict[str, Any]:
    """How x = w/a is spread over −1 … 1, with the table's levels and the distribution that it was
    made for; a frame for each block size.

    counts   for each size [bins], of the same edges [bins + 1]
    largest  how many standard deviations are 1 in that distribution
    """
    width = np.diff(edges)
    middle = (edges[:-1] + edges[1:]) / 2
    heights = [c / max(1, c.sum()) / width for c in counts]  # a density, whose area is 1
    made_for = largest * density(largest * middle)
    # One weight of each block is ±1, so the outermost bars are very tall: the axis ends below them.
    top = 1.15 * max(float(made_for.max()), *(float(h[1:-1].max()) for h in heights))
    figure = go.Figure(layout=axes_layout("x = w / a", "density"))
    figure.add_bar(
        x=middle, width=width, marker={"color": ORIGINAL, "opacity": 0.45, "line": {"width": 0}},
        name="this layer", hovertemplate="x near %{x:.3f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=middle, y=made_for, mode="lines", line={"color": INK, "dash": "dot", "width": 1.5},
        name="what the table was made for", hoverinfo="skip",
    )  # fmt: skip
    v = np.asarray(levels, dtype=np.float64)
    gap = np.full_like(v, np.nan)
    figure.add_scatter(
        x=np.stack([v, v, gap], axis=1).ravel(), y=np.tile([0, 0.86 * top, np.nan], len(v)),
        mode="lines", line={"color": CODES, "width": 1}, name="levels",
        hovertemplate="level %{x:.4f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(range=[-1.03, 1.03], dtick=0.5)
    figure.update_yaxes(range=[0, top])
    figure.update_layout(showlegend=True, legend=LEGEND, margin={"l": 48, "r": 8, "t": 44, "b": 36})
    frames = [_frame(traces=[0], data=[{"type": "bar", "y": h}]) for h in heights]
    return _whole(figure, frames)


def bits_by_size(
    sizes: Sequence[int], plain: Sequence[float], double: Sequence[float]
) -> dict[str, Any]:
    """Bits per weight against block size, with and without double quantization; a frame each."""
    figure = go.Figure(layout=axes_layout("weights in a block", "bits per weight"))
    names = [str(size) for size in sizes]
    figure.add_scatter(
        x=names, y=list(plain), mode="lines+markers", name="absmax as float32",
        line={"color": WAIT, "width": 2, "dash": "dash"},
        hovertemplate="%{x}: %{y:.3f} bits<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=names, y=list(double), mode="lines+markers", name="double quantization",
        line={"color": CODES, "width": 2}, hovertemplate="%{x}: %{y:.3f} bits<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        mode="markers", marker={"color": NOW, "size": 11, "line": {"width": 2, "color": INK}},
        showlegend=False, hoverinfo="skip", name="now",
    )  # fmt: skip
    figure.update_xaxes(type="category")
    figure.update_layout(showlegend=True, legend=LEGEND, margin={"l": 48, "r": 8, "t": 26, "b": 36})
    frames = [
        _frame(traces=[2], data=[{"type": "scatter", "x": [name] * 2, "y": [a, b]}])
        for name, a, b in zip(names, plain, double, strict=True)
    ]
    return _whole(figure, frames)


def error_shares(sets: Sequence[tuple[torch.Tensor, Shares]]) -> dict[str, Any]:
    """How much of the squared error each of the learner's levels causes, in percent, below the
    levels themselves; a frame for each (levels [16], shares [16]).

    Plain data, because it is rebuilt while a level is dragged.
    """
    layout = {
        "margin": {"l": 8, "r": 8, "t": 0, "b": 0},  # as the number line has them
        "xaxis": {"range": [-1, 1], "visible": False, "fixedrange": True},
        "yaxis": {"visible": False, "fixedrange": True},
    }
    bars = {
        "type": "bar", "width": 0.03, "marker": {"color": ERROR, "line": {"width": 0}},
        "name": "share of the squared error, %", "textposition": "outside", "constraintext": "none",
        "cliponaxis": False, "textfont": {"size": 10, "color": INK}, "textangle": 0,
        "hovertemplate": "level %{x:.3f}: %{y:.1f} %<extra></extra>",
    }  # fmt: skip
    frames = []
    for levels, shares in sets:
        percent = 100 * np.asarray(shares)
        text = [f"{p:.0f} %" if p >= 0.5 else "" for p in percent]
        frame = _frame([0], [{"x": levels.numpy(), "y": percent, "text": text}])
        # Downwards from the levels, with room for the text below the longest bar.
        low = 1.25 * max(16.0, float(percent.max()))
        frames.append({**frame, "layout": {"yaxis": {"range": [low, 0]}}})
    return {"data": [bars], "layout": layout, "frames": frames}


def error_by_bits(
    curves: Mapping[str, Sequence[tuple[int, float, float]]], sizes: Sequence[int]
) -> dict[str, Any]:
    """Error in percent against true bits per weight, a line for each rival and a point for each
    block size; a frame for each of `sizes`, which marks its points.

    curves  name → (block size, bits per weight, error as a fraction), by falling size
    """
    colours = (CODES, GOOD, WAIT, INK, ORIGINAL, ERROR)
    figure = go.Figure(layout=axes_layout("bits per weight, all counted", "weights off by, %"))
    # By what comes on top of the codes, on a logarithmic scale: otherwise most sizes lie on one
    # spot.
    ticks = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{4 + t:g}" for t in ticks])
    for (name, points), dash, colour in zip(curves.items(), DASHES, colours, strict=False):
        figure.add_scatter(
            x=[bits - 4 for _, bits, _ in points],
            y=[100 * error for _, _, error in points],
            customdata=[[size, bits] for size, bits, _ in points],
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 5},
            name=name,
            hovertemplate=f"{name}, blocks of %{{customdata[0]}}: %{{y:.2f}} % at "
            "%{customdata[1]:.3f} bits"
            "<extra></extra>",
        )
    figure.add_scatter(
        mode="markers", marker={"color": NOW, "size": 11, "line": {"width": 2, "color": INK}},
        name="this block size", hoverinfo="skip", zorder=2,
    )  # fmt: skip
    figure.update_layout(showlegend=True, legend=LEGEND, margin={"l": 48, "r": 8, "t": 62, "b": 36})
    frames = [
        _frame(
            traces=[len(curves)],
            data=[
                {
                    "type": "scatter",
                    "x": [b - 4 for points in curves.values() for s, b, _ in points if s == size],
                    "y": [100 * e for points in curves.values() for s, _, e in points if s == size],
                }
            ],
        )
        for size in sizes
    ]
    return _whole(figure, frames)
