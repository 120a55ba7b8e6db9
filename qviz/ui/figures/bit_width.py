"""Figures of the bit-width lesson: where the levels fall, and what each bit buys.

Colours are the stylesheet's variables, which the chart widget resolves for the page's theme.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from qviz.ui.figures.common import CODES, ERROR, INK, NOW, ORIGINAL, WAIT, axes_layout


def levels_histogram(
    counts: np.ndarray,
    edges: np.ndarray,
    levels: Sequence[np.ndarray],
    weight: float,
    nearest: Sequence[float],
) -> go.Figure:
    """How the layer's weights are spread, and the levels one of them may take; a frame for each
    bit-width.

    counts [bins], edges [bins + 1] of all weights of the layer; for each bit-width `levels` [n] of
    the group of the chosen weight and `nearest`, the level its value `weight` was rounded to.
    """
    top = float(counts.max())
    figure = go.Figure(layout=axes_layout("weight", "weights per bin"))
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts,
        width=np.diff(edges),
        marker={"color": ORIGINAL, "opacity": 0.45, "line": {"width": 0}},
        name="weights of the layer",
        hovertemplate="%{y} weights near %{x:.4f}<extra></extra>",
    )
    figure.add_scatter(
        mode="lines",
        line={"color": CODES},
        name="levels",
        hovertemplate="level %{x:.4f}<extra></extra>",
    )
    figure.add_scatter(
        y=[top * 1.06, top * 1.06],
        mode="lines+markers",
        line={"color": ERROR, "width": 2},
        marker={"color": [ORIGINAL, CODES], "size": 9, "symbol": ["circle", "diamond"]},
        name="the chosen weight and its level",
        hovertemplate="%{x:.5f}<extra></extra>",
    )
    reach = max(float(np.abs(edges).max()), *(float(np.abs(x).max()) for x in levels))
    figure.update_xaxes(range=[-1.04 * reach, 1.04 * reach])
    figure.update_yaxes(range=[0, top * 1.14])
    figure.frames = [
        go.Frame(
            traces=[1, 2],
            data=[_upright(x, top), {"type": "scatter", "x": [weight, to]}],
        )
        for x, to in zip(levels, nearest, strict=True)
    ]
    return figure


def _upright(levels: np.ndarray, top: float) -> dict[str, object]:
    """Vertical lines as one trace: up, and a gap before the next."""
    gap = np.full_like(levels, np.nan)
    return {
        "type": "scatter",
        "x": np.stack([levels, levels, gap], axis=1).ravel(),
        "y": np.tile([0.0, top, np.nan], len(levels)),
        "line": {"width": 1.5 if len(levels) <= 32 else 0.5},
        "opacity": 1.0 if len(levels) <= 64 else 0.4,  # 256 lines must not hide the bars
    }


def error_curves(
    bits: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    chosen: str,
    *,
    drawn: bool = True,
) -> go.Figure:
    """Relative error in percent against bit-width, one line per granularity, log scale; a frame for
    each bit-width, which marks it.

    curves  label → error as a fraction for each entry of `bits`; `chosen` is drawn in full, the
            others for comparison, each with its own dashes
    drawn   False shows the point of the moment alone, for a learner who is about to predict
    """
    figure = go.Figure(layout=axes_layout("bits per code", "error, %"))
    dashes = iter(("dot", "dash", "dashdot", "longdash", "longdashdot"))
    for label, values in curves.items():
        mine = label == chosen
        dash = next(dashes)  # also for the chosen one, so that the others keep theirs
        figure.add_scatter(
            x=list(bits),
            y=[100 * v for v in values],
            mode="lines+markers" if mine else "lines",
            line={
                "color": ERROR if mine else WAIT,
                "width": 2.5 if mine else 1.5,
                "dash": "solid" if mine else dash,
            },
            marker={"size": 5},
            name=label,
            visible=drawn,
            zorder=int(mine),
            hovertemplate=f"{label}, %{{x}} bits: %{{y:.3g}} %<extra></extra>",
        )
    figure.add_scatter(
        mode="markers+text",
        marker={"color": NOW, "size": 11, "line": {"width": 2, "color": INK}},
        textfont={"color": INK, "size": 13},
        name="now",
        showlegend=False,
        hoverinfo="skip",
        zorder=2,
    )
    figure.frames = [
        go.Frame(
            traces=[len(curves)],
            data=[
                {
                    "type": "scatter",
                    "x": [b],
                    "y": [100 * value],
                    "text": [f"<b>{100 * value:.{2 if value < 0.1 else 3}g} %</b>"],
                    # right of the line, where the curves have fallen; at the right end left of it
                    "textposition": "top right" if b < bits[-1] else "bottom left",
                }
            ],
        )
        for b, value in zip(bits, curves[chosen], strict=True)
    ]
    # The upper right corner is free: every curve falls.
    figure.update_layout(
        showlegend=drawn,
        legend={
            "orientation": "v",
            "x": 1,
            "y": 1.02,
            "xanchor": "right",
            "yanchor": "top",
            "font": {"size": 11},
            "bgcolor": "rgba(0,0,0,0)",
            "itemclick": False,
            "itemdoubleclick": False,
        },
    )
    known = np.log10([100 * v for values in curves.values() for v in values if v > 0] or [0.1, 100])
    low, high = float(known.min()), float(known.max())
    span = max(high - low, 1.0)  # below the last point there must be room for its label
    figure.update_yaxes(
        type="log", dtick=1, exponentformat="none", range=[low - 0.24 * span, high + 0.18 * span]
    )
    figure.update_xaxes(dtick=1, range=[bits[0] - 0.3, bits[-1] + 0.4])
    return figure
