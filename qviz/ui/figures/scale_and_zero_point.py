"""Figures of the lesson on scale and zero point: two costs, a staircase, the systems' levels.

Plain descriptions of plotly figures: checking each of eighty frames with plotly's own classes would
take longer than all the rest of the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qviz.ui.figures.common import CODES, ERROR, INK, NOW, ORIGINAL, WAIT, axes_layout

Figure = dict[str, Any]


def _layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = axes_layout(x, y).to_plotly_json()
    for name, change in more.items():
        made[name] = {**made[name], **change} if name in ("xaxis", "yaxis") else change
    return made


def cost_curves(
    kept: Sequence[str],
    rounding: np.ndarray,
    clipping: np.ndarray,
    best: int,
    *,
    drawn: bool = True,
    by_hand: tuple[int, float] | None = None,
) -> Figure:
    """Both costs and their sum against the part of the range that is kept.

    kept      [n] what the x axis says, ascending, the whole range last
    rounding  [n] and clipping [n], squared errors as shares of the squared values
    best      where the sum is smallest
    drawn     False shows the whole range alone, for a learner who is about to predict
    by_hand   place on the x axis and sum of a range that the learner has dragged
    """
    total = rounding + clipping
    shown = slice(None) if drawn else slice(-1, None)
    mode = "lines" if drawn else "markers"
    lines = [
        ("rounding", rounding, CODES, "dash", 2),
        ("clipping", clipping, ERROR, "dot", 2),
        ("both", total, INK, "solid", 3),
    ]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": mode, "name": name, "x": list(kept[shown]),
            "y": 100 * values[shown], "marker": {"color": colour, "size": 8},
            "line": {"color": colour, "dash": dash, "width": width},
            "hovertemplate": f"{name}, %{{x}} kept: %{{y:.3g}} %<extra></extra>",
        }
        for name, values, colour, dash, width in lines
    ]  # fmt: skip
    if drawn:
        traces.append(_point("lowest", kept[best], 100 * total[best], NOW, "star", best, len(kept)))
    # The left end may be fifty times the minimum; what matters lies around the minimum and right of
    # it.
    top = 100 * max(1.3 * float(total[-1]), 2.5 * float(total[best]) if drawn else 0.0)
    top = top or 1.0
    if by_hand is not None:
        at, y = by_hand[0], 100 * by_hand[1]
        high = y > 0.95 * top  # above the chart: at its edge, pointing up
        made = _point("by hand", kept[at], y, ORIGINAL, "triangle-up" if high else "diamond", at,
                      len(kept))  # fmt: skip
        traces.append({**made, "y": [min(y, 0.95 * top)]})
    fifths = [name for name in kept if int(name.removesuffix(" %")) % 20 == 0]
    return {
        "data": traces,
        "layout": _layout(
            "part of the range that is kept", "squared error, %",
            xaxis={"type": "category", "categoryorder": "array", "categoryarray": list(kept),
                   "range": [-0.5, len(kept) - 0.2], "tickmode": "array", "tickvals": fifths,
                   "tickangle": 0},
            yaxis={"range": [0, top]},
            showlegend=True,
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom",
                    "font": {"size": 11}, "itemwidth": 30, "entrywidth": 70, "itemclick": False,
                    "itemdoubleclick": False},
        ),
    }  # fmt: skip


def _point(
    name: str, x: str, y: float, colour: str, symbol: str, at: int, places: int
) -> dict[str, Any]:
    """A marked point with its number beside it, on the side where there is room."""
    side = "left" if at > 0.8 * places else "right" if at < 0.2 * places else "center"
    return {
        "type": "scatter", "mode": "markers+text", "name": name, "x": [x], "y": [y],
        "marker": {"color": colour, "size": 13, "symbol": symbol,
                   "line": {"width": 1, "color": INK}},
        "text": [f"<b>{y:.3g} %</b>"], "textposition": f"top {side}", "textfont": {"color": INK},
        "showlegend": False, "hovertemplate": f"{name}, %{{x}} kept: {y:.3g} %<extra></extra>",
    }  # fmt: skip


def staircase(
    levels: np.ndarray, span: tuple[float, float], x: float, codes_of_x: np.ndarray
) -> Figure:
    """What every number becomes, x → x̂; a frame for each range.

    levels      [frames, levels] ascending, what each code stands for
    span        the ends of the axes
    x         the number that is held, codes_of_x [frames] what it becomes
    """
    ends = np.asarray(span)
    figure: Figure = {
        "data": [
            {"type": "scatter", "mode": "lines", "name": "x̂ = x", "x": ends, "y": ends,
             "line": {"color": WAIT, "dash": "dot", "width": 1}, "hoverinfo": "skip"},
            {"type": "scatter", "mode": "lines", "name": "what x becomes",
             "line": {"color": CODES, "width": 2.5, "shape": "hv"},
             "hovertemplate": "x = %{x:.4f} → x̂ = %{y:.4f}<extra></extra>"},
            {"type": "scatter", "mode": "lines+markers", "name": "the chosen number",
             "line": {"color": ERROR, "width": 3},
             "marker": {"color": [ORIGINAL, CODES], "size": 10, "symbol": ["circle", "diamond"],
                        "line": {"width": 1, "color": INK}},
             "hovertemplate": "%{y:.5f}<extra></extra>"},
        ],
        "layout": _layout(
            "number x", "after rounding, x̂", xaxis={"range": list(span)},
            yaxis={"range": list(span)},
        ),
    }  # fmt: skip
    figure["frames"] = [
        {
            "traces": [1, 2],
            "data": [_steps(each, ends), {"x": [x, x], "y": [x, float(to)]}],
        }
        for each, to in zip(levels, codes_of_x, strict=True)
    ]
    return figure


def _steps(levels: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
    """A staircase: where each level begins, in the middle between it and the one below."""
    low, high = min(ends[0], levels[0]), max(ends[1], levels[-1])
    middles = (levels[1:] + levels[:-1]) / 2
    return {"x": np.array([low, *middles, high]), "y": np.append(levels, levels[-1])}


def levels_of_systems(
    names: Sequence[str],
    levels: Sequence[np.ndarray],
    chosen: int,
    span: tuple[float, float],
) -> Figure:
    """The levels that each system offers, one row each, over the span of the numbers.

    names   of the rows, from top to bottom; chosen: the one that the page uses
    levels  per row; none where the system has no rule for such numbers
    span    smallest and largest number
    """
    rows = len(names)
    traces: list[Mapping[str, Any]] = []
    for i, (name, each) in enumerate(zip(names, levels, strict=True)):
        colour = NOW if i == chosen else CODES
        traces.append(
            {"type": "scatter", "mode": "markers", "name": name, "x": each,
             "y": np.full(len(each), rows - 1 - i),
             "marker": {"symbol": "line-ns", "size": 13,
                        "line": {"width": 2.5 if i == chosen else 1.5, "color": colour}},
             "hovertemplate": f"{name}: level %{{x:.4f}}<extra></extra>"}
        )  # fmt: skip
    shape = {
        "type": "rect", "xref": "x", "yref": "paper", "x0": span[0], "x1": span[1], "y0": 0,
        "y1": 1, "fillcolor": ORIGINAL, "opacity": 0.13, "line": {"width": 0}, "layer": "below",
    }  # fmt: skip
    return {
        "data": traces,
        "layout": _layout(
            "number (the tint is their range)", "",
            yaxis={"tickmode": "array", "tickvals": list(range(rows)),
                   "ticktext": list(reversed(names)), "range": [-0.6, rows - 0.4],
                   "showgrid": False},
            shapes=[shape],
        ),
    }  # fmt: skip
