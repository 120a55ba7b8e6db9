"""Figures of the granularity lesson: who pays for an outlier, a row of it, and equal bits.

Figures are plain descriptions (plotly checks every trace of every frame that it is given, which
takes longer than all the numerics of the page). Colours are the stylesheet's variables, which the
chart widget resolves for the page's theme.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qviz.ui.figures.common import CODES, ERROR, INK, NOW, ORIGINAL, WAIT, axes_layout

Figure = dict[str, Any]
DASHES = (
    "dot",
    "dash",
    "solid",
)  # from coarse to fine: the fewer values share a scale, the more solid the line
SYMBOLS = ("circle", "square", "diamond")
LEGEND = {
    "orientation": "v", "font": {"size": 11}, "bgcolor": "rgba(0,0,0,0)",
    "itemclick": False, "itemdoubleclick": False,
}  # fmt: skip
TICKS = [m * 10.0**e for e in range(-6, 5) for m in (1, 2, 5)]  # of logarithmic axes in percent


def _layout(x: str, y: str) -> dict[str, Any]:
    return axes_layout(x, y).to_plotly_json()  # type: ignore[no-any-return]


def _log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis around these values where they are positive, with room at both ends."""
    known = np.log10([v for v in values if 0 < v < math.inf] or [0.1, 100])
    low, high = float(known.min()), float(known.max())
    span = max(high - low, 0.5)
    low, high = low - 0.12 * span, high + 0.14 * span
    shown = [tick for tick in TICKS if low <= math.log10(tick) <= high]
    return {
        "type": "log", "range": [low, high], "tickmode": "array", "tickvals": shown,
        "ticktext": [f"{tick:g}" for tick in shown],
    }  # fmt: skip


def growing_error(
    sizes: Sequence[str], curves: Mapping[str, Sequence[float]], *, drawn: bool = True
) -> Figure:
    """Error in percent of those who share the outlier's scale, against its size; a frame for each
    size, which marks it.

    curves  granularity → error as a fraction for each size, the coarsest first
    drawn   False shows the points of the moment alone, for a learner who is about to predict
    """
    places = list(range(len(sizes)))
    lines = [
        {
            "type": "scatter", "mode": "lines", "name": label, "visible": drawn,
            "x": places, "y": [100 * v for v in values],
            "line": {"color": ERROR, "width": 2, "dash": DASHES[i]},
            "hovertemplate": f"scale per {label}: %{{y:.3g}} %<extra></extra>",
        }
        for i, (label, values) in enumerate(curves.items())
    ]  # fmt: skip
    marks = [
        {
            "type": "scatter", "mode": "markers", "name": f"scale per {label}, now",
            "showlegend": False, "hoverinfo": "skip",
            "marker": {"color": NOW, "size": 10, "symbol": SYMBOLS[i],
                       "line": {"width": 1.5, "color": INK}},
        }
        for i, label in enumerate(curves)
    ]  # fmt: skip
    layout = _layout("size of the outlier, × typical", "off by, %")
    layout["xaxis"] |= {
        "tickvals": places, "ticktext": ["as is", *(size.rstrip("×") for size in sizes[1:])],
        "range": [-0.4, len(sizes) - 0.6],
    }  # fmt: skip
    layout["yaxis"] |= _log_axis([100 * v for values in curves.values() for v in values])
    layout |= {
        "showlegend": drawn,
        "legend": {**LEGEND, "orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
    n = len(lines)
    frames = [
        {
            "traces": list(range(n, 2 * n)),
            "data": [{"x": [i], "y": [100 * values[i]]} for values in curves.values()],
        }
        for i in places
    ]
    return {"data": [*lines, *marks], "layout": layout, "frames": frames}


def row_picture(
    columns: Sequence[int],
    values: Sequence[np.ndarray],
    backs: Mapping[str, Sequence[np.ndarray]],
    shared: Mapping[str, tuple[int, int]],
    reach: float,
    axis: str,
) -> Figure:
    """A row of the window as articles draw it, once for each granularity, one below the other: the
    values as bars, the rounded values as marks, the stretch that shares the outlier's scale shaded.

    columns  of the matrix; values: for each frame [columns]; backs: granularity → the same
    shared   granularity → first and last column of the stretch
    reach    end of the value axes: the outlier may leave them
    axis     what a column is called
    """
    layout = _layout(axis, "")
    layout["shapes"] = []
    data: list[Figure] = []
    height = 1 / len(backs)
    for i, label in enumerate(backs):
        y = f"y{i + 1}" if i else "y"
        data += [
            {
                "type": "bar", "x": list(columns), "width": 0.9, "yaxis": y,
                "name": f"values, scale per {label}",
                "marker": {"color": ORIGINAL, "opacity": 0.55, "line": {"width": 0}},
                "hovertemplate": f"{axis} %{{x}}: %{{y:.4g}}<extra></extra>",
            },
            {
                "type": "scatter", "mode": "markers", "x": list(columns), "yaxis": y,
                "name": f"rounded, scale per {label}",
                "marker": {"color": CODES, "size": 4, "symbol": SYMBOLS[i]},
                "hovertemplate": f"{axis} %{{x}} is rounded to %{{y:.4g}}<extra></extra>",
            },
        ]  # fmt: skip
        top = 1 - i * height
        layout[f"yaxis{y[1:]}"] = {
            "domain": [top - 0.84 * height, top], "range": [-reach, reach], "nticks": 4,
            "title": {"text": label, "font": {"size": 11}, "standoff": 4},
            "tickfont": {"size": 10}, "fixedrange": True, "zeroline": True,
        }  # fmt: skip
        first, last = shared[label]
        layout["shapes"].append({
            "type": "rect", "xref": "x", "yref": f"{y} domain", "x0": first - 0.5, "x1": last + 0.5,
            "y0": 0, "y1": 1, "layer": "below", "line": {"width": 1, "color": NOW},
            "fillcolor": NOW, "opacity": 0.16,
        })  # fmt: skip
    layout["xaxis"] |= {
        "anchor": "free", "position": 0, "nticks": 8,
        "range": [columns[0] - 0.6, columns[-1] + 0.6],
    }  # fmt: skip
    frames = [
        {
            "traces": list(range(len(data))),
            "data": [{"y": y} for label in backs for y in (values[f], backs[label][f])],
        }
        for f in range(len(values))
    ]
    return {"data": data, "layout": layout, "frames": frames}


def equal_bits_chart(
    curves: Mapping[str, Sequence[tuple[float, float, str]]],
    budgets: Sequence[float],
    winners: Sequence[tuple[float, float] | None],
) -> Figure:
    """Error in percent against true bits per weight, a line for each granularity; a frame for each
    budget, with what it affords and the winner marked.

    curves   granularity → (true bits, error as a fraction, what the point is); the last is of
             another kind and has a colour of its own
    winners  for each budget (true bits, error), or None where nothing is within it
    """
    last = len(curves) - 1
    data: list[Figure] = [
        {
            "type": "scatter", "mode": "lines+markers", "name": label,
            "x": [cost for cost, _, _ in points],
            "y": [100 * error for _, error, _ in points],
            "text": [what for _, _, what in points],
            "line": _line(i, last),
            "marker": {"size": 6, "color": CODES if i == last else ERROR},
            "hovertemplate": "%{text}: %{x:.4g} bits, off by %{y:.3g} %<extra></extra>",
        }
        for i, (label, points) in enumerate(curves.items())
    ]  # fmt: skip
    everything = [point for points in curves.values() for point in points]
    layout = _layout("true bits per weight, scales included", "off by, %")
    layout["yaxis"] |= _log_axis([100 * error for _, error, _ in everything])
    costs = [cost for cost, _, _ in everything]
    layout["xaxis"] |= {"range": [min(costs) - 0.1, max(costs) + 0.15], "dtick": 1}
    layout |= {
        "showlegend": True,
        "legend": {**LEGEND, "x": 1, "y": 1, "xanchor": "right", "yanchor": "top"},
    }
    data += [
        {"type": "scatter", "mode": "lines", "name": "budget", "showlegend": False,
         "line": {"color": NOW, "width": 2}, "hoverinfo": "skip"},
        {"type": "scatter", "mode": "markers", "name": "the closest within the budget",
         "showlegend": False, "hoverinfo": "skip",
         "marker": {"color": NOW, "size": 13, "symbol": "star",
                    "line": {"width": 1.5, "color": INK}}},
    ]  # fmt: skip
    ends = [10.0**end for end in layout["yaxis"]["range"]]
    frames = [
        {
            "traces": [last + 1, last + 2],
            "data": [
                {"x": [budget, budget], "y": ends},
                {
                    "x": [] if winner is None else [winner[0]],
                    "y": [] if winner is None else [100 * winner[1]],
                },
            ],
        }
        for budget, winner in zip(budgets, winners, strict=True)
    ]
    return {"data": data, "layout": layout, "frames": frames}


def _line(i: int, last: int) -> dict[str, Any]:
    """Granularity i of several: grey and broken, the smallest group firm, other codes coloured."""
    styles = ("dot", "dash", "5px 2px", "longdash", "2px 5px", "dashdot")
    if i >= last - 1:
        return {"color": CODES if i == last else INK, "width": 1.8, "dash": "solid"}
    return {"color": WAIT, "width": 1.5, "dash": styles[i % len(styles)]}


def behind_chart(
    budgets: Sequence[float], behind: Mapping[str, Sequence[float | None]], finest: str, winner: str
) -> Figure:
    """Error of each granularity's best within a budget, as a multiple of the best of all; a frame
    for each budget, which marks it.

    behind  granularity → multiple for each budget, None where it affords nothing
    finest  the smallest group, winner: what is closest most often; both are drawn firmly
    """
    last = len(behind) - 1
    firm = {finest: {"color": INK, "width": 2}, winner: {"color": ERROR, "width": 2}}
    data: list[Figure] = [
        {
            "type": "scatter", "mode": "lines", "name": label, "x": list(budgets),
            "y": list(values), "connectgaps": False,
            "line": {**firm.get(label, {"color": WAIT, "width": 1.5, "dash": DASHES[min(i, 1)]}),
                     "shape": "hv"},
            "hovertemplate": f"{label}, %{{x:.4g}} bits: %{{y:.3g}}× the best<extra></extra>",
        }
        for i, (label, values) in enumerate(behind.items())
    ]  # fmt: skip
    known = [v for values in behind.values() for v in values if v]
    layout = _layout("budget, bits per weight", "× the error of the best")
    top = 1.25 * math.log10(max([*known, 2.0]))  # above the lines there is room for the legend
    ticks = [t for t in (1, 1.5, 2, 3, 4, 6, 10, 20, 50) if math.log10(t) <= top * 1.1]
    layout["yaxis"] |= {
        "type": "log", "range": [-0.06 * top, 1.15 * top], "tickmode": "array", "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }  # fmt: skip
    layout["xaxis"] |= {"range": [budgets[0] - 0.1, budgets[-1] + 0.1], "dtick": 1}
    layout |= {
        "showlegend": True,
        "legend": {**LEGEND, "x": 1, "y": 1, "xanchor": "right", "yanchor": "top"},
    }
    ends = [10.0**end for end in layout["yaxis"]["range"]]
    data.append(
        {"type": "scatter", "mode": "lines", "name": "budget", "showlegend": False,
         "line": {"color": NOW, "width": 2}, "hoverinfo": "skip"}
    )  # fmt: skip
    frames = [
        {"traces": [last + 1], "data": [{"x": [budget, budget], "y": ends}]} for budget in budgets
    ]
    return {"data": data, "layout": layout, "frames": frames}
