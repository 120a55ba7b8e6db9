"""Figures of the lesson on number formats: a block of weights and their rounded values."""

from collections.abc import Sequence

import plotly.graph_objects as go

from qviz.ui.figures.common import CODES, ERROR, NOW, ORIGINAL, WAIT, axes_layout

MANY = 40  # levels; more would hide the weights


def block_figure(
    columns: Sequence[int],
    weights: Sequence[float],
    values: Sequence[float],
    clipped: Sequence[bool],
    levels: Sequence[float],
    chosen: int,
) -> go.Figure:
    """The weights of a block as bars, the rounded weights as diamonds, the levels they share as
    lines.

    columns, weights, values, clipped are of each weight; `chosen` is the place of one in them.
    """
    figure = go.Figure(layout=axes_layout("input", "weight"))
    reach = max([abs(v) for v in (*weights, *values)]) or 1.0
    seen = [level for level in levels if abs(level) <= 1.15 * reach]
    if len(seen) <= MANY:
        ends = [columns[0] - 0.6, columns[-1] + 0.6, None]
        figure.add_scatter(
            x=ends * len(seen),
            y=[y for level in seen for y in (level, level, None)],
            mode="lines",
            line={"color": WAIT, "width": 0.75},
            name="levels",
            hoverinfo="skip",
        )
    figure.add_bar(
        x=list(columns),
        y=list(weights),
        marker={
            "color": [NOW if i == chosen else ORIGINAL for i in range(len(columns))],
            "opacity": 0.55,
            "line": {"width": 0},
        },
        width=0.7,
        name="trained weight",
        hovertemplate="input %{x}: %{y:.5f}<extra></extra>",
    )
    figure.add_scatter(
        x=list(columns),
        y=list(values),
        mode="markers",
        marker={
            "color": [ERROR if cut else CODES for cut in clipped],
            "size": 8,
            "symbol": ["triangle-down" if cut else "diamond" for cut in clipped],
        },
        name="rounded weight",
        hovertemplate="input %{x}: %{y:.5f}<extra></extra>",
    )
    figure.update_xaxes(range=[columns[0] - 0.7, columns[-1] + 0.7])
    figure.update_yaxes(range=[-1.18 * reach, 1.18 * reach])
    return figure
