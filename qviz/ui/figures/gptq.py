"""Figures of the GPTQ lesson: the error so far, the current column, one weight's compensation.

Colours are the stylesheet's variables, which the chart widget resolves for the page's theme.
"""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from qviz.ui.figures.common import CODES, ERROR, NOW, ORIGINAL, WAIT, axes_layout

LINES = {"first": (ERROR, "solid"), "second": (CODES, "dash"), "rtn": (WAIT, "dot")}


def errors_so_far(curves: Mapping[str, tuple[str, np.ndarray, np.ndarray]]) -> go.Figure:
    """Relative output error in percent after some numbers of columns, one line per run.

    curves  "first", "second" or "rtn" → (label, numbers of columns, errors there as fractions)
    """
    figure = go.Figure(layout=axes_layout("columns rounded", "output error, %"))
    for role, (label, steps, errors) in curves.items():
        color, dash = LINES[role]
        figure.add_scatter(
            x=steps,
            y=100 * errors,
            mode="lines",
            line={"color": color, "dash": dash, "width": 1.5 if role == "rtn" else 2.5},
            name=label,
            hovertemplate=f"%{{y:.3g}} % after %{{x}} columns<extra>{label}</extra>",
        )
    last = max(int(steps[-1]) for _, steps, _ in curves.values())
    top = max(float(100 * errors.max()) for _, _, errors in curves.values())
    figure.update_xaxes(range=[0, last])
    figure.update_yaxes(range=[0, (top or 1.0) * 1.25])
    # errors grow from the lower left, so that the upper left is free
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "v", "x": 0.02, "y": 1, "yanchor": "top", "font": {"size": 11}},
    )
    return figure


def column_codes(
    position: np.ndarray, codes: np.ndarray, levels: tuple[int, int], row: int
) -> go.Figure:
    """Where the column's weights lie among the levels, and the code each of them takes.

    position  [rows] weights in spacings, counted like codes; a point on the dashed line has no
              error
    codes     [rows] what they were rounded to
    levels    the first and the last code
    row       the chosen one
    """
    figure = go.Figure(layout=axes_layout("w/s + z before rounding", "code q"))
    low, high = levels
    reach = [min(low, float(position.min())) - 0.5, max(high, float(position.max())) + 0.5]
    figure.add_scatter(
        x=reach, y=reach, mode="lines", line={"color": WAIT, "dash": "dot", "width": 1},
        hoverinfo="skip", name="no error",
    )  # fmt: skip
    figure.add_scatter(
        x=position,
        y=codes,
        mode="markers",
        marker={"color": CODES, "size": 5, "opacity": 0.5},
        name="one row each",
        hovertemplate="%{x:.3f} → %{y}<extra></extra>",
    )
    x, q = float(position[row]), float(codes[row])
    figure.add_scatter(
        x=[x, x],
        y=[x, q],
        mode="lines+markers",
        line={"color": ERROR, "width": 2},
        marker={"color": [ORIGINAL, CODES], "size": 10, "symbol": ["circle", "diamond"]},
        name="the chosen row",
        hovertemplate="%{x:.3f} → %{y:.3f}<extra>chosen row</extra>",
    )
    figure.update_xaxes(range=reach)
    figure.update_yaxes(range=[low - 0.6, high + 0.6])
    return figure


def exchange(incoming: np.ndarray, outgoing: np.ndarray) -> go.Figure:
    """What one weight received from the columns before it and passes on to those after it.

    incoming  [step] amounts by which each earlier step moved it
    outgoing  [columns − step − 1] amounts by which it moves each later column
    """
    step = len(incoming)
    figure = go.Figure(layout=axes_layout("step", "moved by"))
    for x, y, color, name in (
        (np.arange(step), incoming, ORIGINAL, "received from"),
        (np.arange(step + 1, step + 1 + len(outgoing)), outgoing, ERROR, "passed on to"),
    ):
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": color, "width": 1, "shape": "hvh"},
            fill="tozeroy", name=name, hovertemplate="step %{x}: %{y:.2e}",
        )  # fmt: skip
    figure.add_vline(x=step, line={"color": NOW, "width": 2})
    figure.update_xaxes(range=[0, step + len(outgoing)])
    return figure
