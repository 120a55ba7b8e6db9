"""Figures of the bit-width lesson: where the levels fall, and what each bit buys.

Colours are the stylesheet's variables, which the chart widget resolves for the page's theme.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

ORIGINAL, CODES, ERROR = "var(--qv-original)", "var(--qv-codes)", "var(--qv-error)"
NOW, WAIT, INK = "var(--qv-now)", "var(--qv-wait)", "var(--qv-ink)"


def _layout(x: str, y: str) -> go.Layout:
    return go.Layout(
        margin={"l": 52, "r": 10, "t": 8, "b": 40},
        xaxis={"title": {"text": x}, "fixedrange": True, "zeroline": False},
        yaxis={"title": {"text": y}, "fixedrange": True, "zeroline": False},
        showlegend=False,
        bargap=0,
    )


def levels_histogram(
    counts: np.ndarray, edges: np.ndarray, levels: np.ndarray, weight: float, nearest: float
) -> go.Figure:
    """How the layer's weights are spread, and the levels one of them may take.

    counts [bins], edges [bins + 1] of all weights of the layer; levels [n] of the group of the
    chosen weight; `weight` its value, `nearest` the level it was rounded to.
    """
    top = float(counts.max())
    gap = np.full_like(levels, np.nan)
    x = np.stack([levels, levels, gap], axis=1).ravel()
    y = np.tile([0.0, top, np.nan], len(levels))
    figure = go.Figure(layout=_layout("weight", "weights per bin"))
    figure.add_bar(
        x=(edges[:-1] + edges[1:]) / 2,
        y=counts,
        width=np.diff(edges),
        marker={"color": ORIGINAL, "opacity": 0.45, "line": {"width": 0}},
        name="weights of the layer",
        hovertemplate="%{y} weights near %{x:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": CODES, "width": 1.5 if len(levels) <= 32 else 0.5},
        name="levels",
        hovertemplate="level %{x:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=[weight, nearest],
        y=[top * 1.06, top * 1.06],
        mode="lines+markers",
        line={"color": ERROR, "width": 2},
        marker={"color": [ORIGINAL, CODES], "size": 9, "symbol": ["circle", "diamond"]},
        name="the chosen weight and its level",
        hovertemplate="%{x:.5f}<extra></extra>",
    )
    reach = max(float(np.abs(edges).max()), float(np.abs(levels).max()))
    figure.update_xaxes(range=[-1.04 * reach, 1.04 * reach])
    figure.update_yaxes(range=[0, top * 1.14])
    return figure


def error_curves(
    bits: Sequence[int], curves: Mapping[str, Sequence[float]], chosen: str, now: int, what: str
) -> go.Figure:
    """Relative error in percent against bit-width, one line per granularity, log scale.

    curves  label → error as a fraction for each entry of `bits`; `chosen` is drawn in full, the
            others for comparison; `now` the bit-width of the moment; `what` names the error.
    """
    figure = go.Figure(layout=_layout("bits per code", f"{what}, %"))
    for label, values in curves.items():
        mine = label == chosen
        figure.add_scatter(
            x=list(bits),
            y=[100 * v for v in values],
            mode="lines+markers" if mine else "lines",
            line={"color": ERROR if mine else WAIT, "width": 2.5 if mine else 1.2},
            marker={"size": 5},
            name=label,
            hovertemplate=f"{label}, %{{x}} bits: %{{y:.3g}} %<extra></extra>",
        )
    value = 100 * curves[chosen][list(bits).index(now)]
    figure.add_scatter(
        x=[now],
        y=[value],
        mode="markers+text",
        marker={"color": NOW, "size": 12, "line": {"width": 2, "color": INK}},
        text=[f" {value:.3g} %"],
        textposition="top right" if now <= (bits[0] + bits[-1]) / 2 else "top left",
        textfont={"color": INK, "size": 13},
        name="now",
        hoverinfo="skip",
    )
    for label, text_at in _ends(curves).items():
        figure.add_annotation(
            x=bits[0],
            y=np.log10(max(100 * text_at, 1e-9)),
            text=label,
            showarrow=False,
            xanchor="right",
            xshift=-6,
            font={"size": 11, "color": ERROR if label == chosen else WAIT},
        )
    figure.update_yaxes(type="log", dtick=1, exponentformat="none")
    figure.update_xaxes(dtick=1, range=[bits[0] - 1.45, bits[-1] + 0.3])
    return figure


def _ends(curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Where each curve's label stands: at its left end, pushed apart so that none overlap."""
    order = sorted(curves, key=lambda label: curves[label][0], reverse=True)
    places: dict[str, float] = {}
    ceiling = np.inf
    for label in order:
        place = min(max(curves[label][0], 1e-9), ceiling)
        places[label] = place
        ceiling = place / 1.33
    return places
