"""Figures of the AWQ lesson: channels, what keeping and scaling them does, the two searches.

Colours are the stylesheet's variables, which the chart widget resolves for the page's theme.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from qviz.ui.figures.common import CODES, ERROR, INK, NOW, ORIGINAL, WAIT, axes_layout

GOOD = "var(--qv-good)"
LEGEND = {
    "orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11},
    "itemclick": False, "itemdoubleclick": False,
}  # fmt: skip
TOP = {"l": 52, "r": 10, "t": 40, "b": 38}
STAR = {"color": NOW, "size": 12, "symbol": "star", "line": {"width": 1.5, "color": INK}}
DOT = {"color": NOW, "size": 11, "line": {"width": 2, "color": INK}}


def _whole(figure: go.Figure, traces: Sequence[int], frames: Sequence[Any]) -> dict[str, Any]:
    """A figure whose `traces` differ from frame to frame: plain data, which is quick to make.

    A frame is the list of the traces' changes, or that and a change of the layout.
    """
    made = []
    for frame in frames:
        data, layout = frame if isinstance(frame, tuple) else (frame, None)
        one: dict[str, Any] = {"traces": list(traces), "data": list(data)}
        if layout is not None:
            one["layout"] = layout
        made.append(one)
    return {**figure.to_plotly_json(), "frames": made}


def _legend(figure: go.Figure, margin: Mapping[str, int] | None = None) -> None:
    figure.update_layout(showlegend=True, legend=LEGEND, margin=dict(margin or TOP))


def _sticks(at: Sequence[float] | np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Upright lines as one trace: up, and a gap before the next."""
    x = np.asarray(at, dtype=np.float64)
    gap = np.full_like(x, np.nan)
    return np.stack([x, x, gap], 1).ravel(), np.tile([0.0, top, np.nan], len(x))


# ------------------------------------------------------------------------- channels kept


def channels(inputs: np.ndarray, weights: np.ndarray, kept: Sequence[np.ndarray]) -> dict[str, Any]:
    """How large inputs and weights of each channel are, × the median channel's; a frame for each
    of `kept`, which channels stay in 16 bits."""
    n = np.arange(len(inputs))
    figure = go.Figure(layout=axes_layout("channel", "× the median channel"))
    x, y = _sticks(n, 1.0)
    y = np.where(y == 1.0, np.repeat(inputs, 3), y)
    figure.add_scatter(
        x=x, y=y, mode="lines", line={"color": INK, "width": 1}, name="inputs, mean |x|",
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=n, y=weights, mode="lines", line={"color": ORIGINAL, "width": 1.5},
        name="weights, mean |w|", hovertemplate="channel %{x}: weights %{y:.3g}×<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        mode="markers", marker={**DOT, "size": 8}, name="kept",
        hovertemplate="channel %{x}: inputs %{y:.3g}×<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(range=[-1, len(inputs)])
    figure.update_yaxes(range=[0, 1.12 * float(max(inputs.max(), weights.max()))])
    _legend(figure)
    frames = [[{"type": "scatter", "x": one, "y": inputs[one]}] for one in kept]
    return _whole(figure, [2], frames)


def kept_curves(
    errors: Mapping[str, np.ndarray], counts: Sequence[int], how: str, *, drawn: bool
) -> dict[str, Any]:
    """The output's error in percent against the share of channels kept, a line for each choice; a
    frame for each of `counts`, which marks it on the line of `how`.

    errors  choice → [channels + 1]; drawn: False for a learner who is about to predict
    """
    n = len(next(iter(errors.values()))) - 1
    share = 100 * np.arange(1, n + 1) / n
    figure = go.Figure(layout=axes_layout("channels kept, %", "output error, %"))
    colours = ((INK, "solid"), (ORIGINAL, "dash"), (WAIT, "dot"))
    for (name, values), (colour, dash) in zip(errors.items(), colours, strict=True):
        figure.add_scatter(
            x=share, y=100 * values[1:], mode="lines", visible=drawn, name=name,
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate=f"{name}, %{{x:.3g}} %: %{{y:.3g}} %<extra></extra>",
        )  # fmt: skip
    before = 100 * float(errors[how][0])
    figure.add_scatter(
        x=[share[0], 100], y=[before, before], mode="lines", name="none kept",
        line={"color": ERROR, "width": 1}, hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(mode="markers", marker=DOT, showlegend=False, hoverinfo="skip", name="now")
    figure.update_xaxes(type="log", range=[float(np.log10(share[0])) - 0.08, 2.05],
                        tickvals=[0.1, 0.5, 1, 2, 5, 10, 20, 50, 100])  # fmt: skip
    figure.update_yaxes(range=[0, 1.1 * (max(100 * float(v.max()) for v in errors.values()) or 1)])
    _legend(figure)
    mark = [
        [{"type": "scatter", "x": [100 * max(k, 1) / n], "y": [100 * float(errors[how][k])]}]
        for k in counts
    ]
    return _whole(figure, [len(errors) + 1], mark)


# ------------------------------------------------------------------------- a group on its line


def group_line(
    values: Sequence[np.ndarray],
    levels: Sequence[np.ndarray],
    chosen: int,
    nearest: Sequence[float],
    limits: Sequence[float] | None = None,
) -> dict[str, Any]:
    """A group's weights above its levels, and the chosen one on its way to its level; a frame for
    each of `values` [size], with its `levels` and the level `nearest` to the chosen one.

    limits  where the group is cut, drawn at both ends
    """
    figure = go.Figure(layout=axes_layout("weight, scaled", ""))
    figure.add_scatter(
        mode="lines", line={"color": CODES, "width": 1.5}, name="levels",
        hovertemplate="level %{x:.4g}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        mode="markers", name="weights of the group", hovertemplate="%{x:.4g}<extra></extra>",
        marker={"color": ORIGINAL, "size": 9, "symbol": "line-ns-open", "line": {"width": 1.2}},
    )  # fmt: skip
    figure.add_scatter(
        mode="lines+markers", line={"color": ERROR, "width": 2.5},
        name="the chosen one, and its level", hovertemplate="%{x:.5g}<extra></extra>",
        marker={"color": [NOW, CODES], "size": 12, "symbol": ["circle", "diamond"],
                "line": {"width": 1.5, "color": INK}},
    )  # fmt: skip
    figure.add_scatter(
        mode="lines", line={"color": NOW, "width": 2, "dash": "dash"}, name="limit",
        showlegend=limits is not None, hoverinfo="skip",
    )  # fmt: skip
    figure.update_yaxes(visible=False, range=[0, 1])
    _legend(figure, {"l": 10, "r": 10, "t": 40, "b": 38})
    frames = []
    for i, (value, level, to) in enumerate(zip(values, levels, nearest, strict=True)):
        reach = 1.08 * float(max(np.abs(value).max(), np.abs(level).max())) or 1.0
        x, y = _sticks(level, 0.5)
        ends = [] if limits is None else [-limits[i], limits[i]]
        cut, tall = _sticks(ends, 1.0)
        data = [
            {"type": "scatter", "x": x, "y": y},
            {"type": "scatter", "x": value, "y": np.full(len(value), 0.62)},
            {"type": "scatter", "x": [float(value[chosen]), to], "y": [0.82, 0.82]},
            {"type": "scatter", "x": cut, "y": tall},
        ]
        frames.append((data, {"xaxis": {"range": [-reach, reach]}}))
    return _whole(figure, [0, 1, 2, 3], frames)


def tradeoff(factors: Sequence[float], curves: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What errors put the output off by, in percent, against the factor on one channel; a frame
    for each factor. curves  name → a share for each factor."""
    figure = go.Figure(layout=axes_layout("factor s on the channel", "output off by, %"))
    looks = ((NOW, "solid"), (WAIT, "dash"), (ERROR, "dot"), (INK, "solid"))
    for (name, values), (colour, dash) in zip(curves.items(), looks, strict=True):
        figure.add_scatter(
            x=list(factors), y=[100 * v for v in values], mode="lines+markers", name=name,
            line={"color": colour, "dash": dash, "width": 2}, marker={"size": 4},
            hovertemplate=f"{name}, s = %{{x:g}}: %{{y:.3g}} %<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(mode="markers", marker=DOT, showlegend=False, hoverinfo="skip", name="now")
    figure.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16])
    figure.update_yaxes(range=[0, 1.08 * (max(100 * max(v) for v in curves.values()) or 1)])
    _legend(figure)
    frames = [
        [{"type": "scatter", "x": [f] * len(curves), "y": [100 * v[i] for v in curves.values()]}]
        for i, f in enumerate(factors)
    ]
    return _whole(figure, [len(curves)], frames)


# ------------------------------------------------------------------------- the searches


def search_curves(
    runs: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float]]],
    best: Sequence[Sequence[int]],
    nearest: float,
) -> dict[str, Any]:
    """The output's error in percent against r, of one search or two; a frame for each candidate,
    with what has been tried and the best of it.

    runs     (name, ratios, errors that the search compares, errors on held-out text)
    best     for each run, which candidate is the best after each
    nearest  rounding to nearest, on held-out text
    """
    figure = go.Figure(layout=axes_layout("ratio r", "output error, %"))
    looks = ((INK, ERROR), (WAIT, CODES))
    moving: list[int] = []
    for (name, ratios, errors, judged), (colour, tried) in zip(runs, looks, strict=False):
        more = "" if len(runs) == 1 else f"{name}: "
        figure.add_scatter(
            x=list(ratios), y=[100 * e for e in judged], mode="markers",
            marker={"color": colour, "size": 5, "symbol": "x-thin-open"},
            name=f"{more}held-out text",
            hovertemplate="r = %{x:.3g}: %{y:.4g} %<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=list(ratios), y=[100 * e for e in errors], mode="markers", showlegend=False,
            marker={"color": colour, "size": 5, "opacity": 0.35}, hoverinfo="skip", name="to come",
        )  # fmt: skip
        moving += [len(figure.data), len(figure.data) + 1]
        figure.add_scatter(
            mode="markers", marker={"color": tried, "size": 8},
            name=f"{more}calibration text",
            hovertemplate="r = %{x:.3g}: %{y:.4g} %<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            mode="markers", marker={**STAR, "color": tried}, name=f"{more}best so far",
            hoverinfo="skip",
        )  # fmt: skip
    figure.add_scatter(
        x=[-0.03, 1.03], y=[100 * nearest] * 2, mode="lines", hoverinfo="skip",
        line={"color": WAIT, "dash": "dash", "width": 1}, name="round to nearest, held-out",
    )  # fmt: skip
    figure.update_xaxes(range=[-0.04, 1.04], dtick=0.1)
    _legend(figure, {**TOP, "t": 60 if len(runs) == 1 else 98})
    frames = []
    for k in range(len(best[0])):
        data: list[dict[str, Any]] = []
        for (_, ratios, errors, _), first in zip(runs, best, strict=True):
            b = first[k]
            data += [
                {"type": "scatter", "x": list(ratios[: k + 1]),
                 "y": [100 * e for e in errors[: k + 1]]},
                {"type": "scatter", "x": [ratios[b]], "y": [100 * errors[b]]},
            ]  # fmt: skip
        frames.append(data)
    return _whole(figure, moving, frames)


def factor_cloud(
    activation: np.ndarray, scales: Sequence[np.ndarray], chosen: int
) -> dict[str, Any]:
    """Each channel's factor against the size of its inputs, both logarithmic; a frame for each
    candidate. activation [in], scales [in] of each, chosen: the channel that is looked at."""
    figure = go.Figure(layout=axes_layout("mean |x| of the channel", "factor s"))
    heard = activation > 0
    figure.add_scatter(
        mode="markers", marker={"color": ORIGINAL, "size": 4, "opacity": 0.6}, name="channels",
        hovertemplate="mean |x| %{x:.3g}: s = %{y:.3g}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(mode="markers", marker=DOT, name="the chosen channel", hoverinfo="skip")
    every = np.concatenate([np.asarray(s) for s in scales])
    low, high = float(np.log10(every.min())), float(np.log10(every.max()))
    pad = 0.06 * (high - low) or 0.5
    figure.update_xaxes(type="log", exponentformat="none", nticks=5, tickangle=0)
    figure.update_yaxes(type="log", range=[low - pad, high + pad], exponentformat="none")
    _legend(figure)
    frames = [
        [
            {"type": "scatter", "x": activation[heard], "y": np.asarray(s)[heard]},
            {"type": "scatter", "x": [float(activation[chosen])], "y": [float(s[chosen])]},
        ]
        for s in scales
    ]
    return _whole(figure, [0, 1], frames)


def clip_curves(
    shares: Sequence[float], group: Sequence[float], together: Sequence[float]
) -> dict[str, Any]:
    """Errors × that of nothing cut, against what is kept of the largest weight, in percent; a frame
    for each limit. group: the chosen group's own; together: the layer's, one limit for all."""
    figure = go.Figure(layout=axes_layout("kept of the largest weight, %", "error × uncut"))
    x = [100 * s for s in shares]
    for name, values, colour, dash in (
        ("this group, alone", group, NOW, "solid"),
        ("the layer, one limit for all groups", together, ERROR, "dash"),
    ):
        figure.add_scatter(
            x=x, y=list(values), mode="lines+markers", name=name, marker={"size": 5},
            line={"color": colour, "dash": dash, "width": 2},
            hovertemplate="%{x:g} %: %{y:.3g}×<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(mode="markers", marker=DOT, showlegend=False, hoverinfo="skip", name="now")
    figure.update_xaxes(autorange="reversed", dtick=10)
    top = max(*group, *together, 1.0)
    figure.update_yaxes(range=[0, 1.08 * min(top, 4.0)])
    _legend(figure)
    frames = [
        [{"type": "scatter", "x": [x[k]] * 2, "y": [group[k], together[k]]}] for k in range(len(x))
    ]
    return _whole(figure, [2], frames)


def clip_counts(shares: Sequence[float], counts: Sequence[int]) -> dict[str, Any]:
    """How many groups the search cuts at each limit; a frame for each, which lights its bar."""
    figure = go.Figure(layout=axes_layout("kept of the largest weight, %", "groups"))
    x = [f"{100 * s:g}" for s in shares]
    figure.add_bar(
        x=x, y=list(counts), hovertemplate="%{x} %: %{y} groups<extra></extra>",
        marker={"color": [ORIGINAL] * len(x), "line": {"width": 0}}, width=0.8,
    )  # fmt: skip
    figure.update_xaxes(type="category")
    frames = [
        [{"type": "bar",
          "marker": {"color": [NOW if i == k else ORIGINAL for i in range(len(x))]}}]
        for k in range(len(x))
    ]  # fmt: skip
    return _whole(figure, [0], frames)


def by_bits(
    bits: Sequence[int], curves: Mapping[str, Sequence[float]], title: str
) -> dict[str, Any]:
    """The output's error in percent against bits per code, a line for each method; a frame for
    each width."""
    figure = go.Figure(layout=axes_layout("bits per code", title))
    looks = ((WAIT, "dot"), (ORIGINAL, "dash"), (NOW, "solid"), (CODES, "solid"), (GOOD, "dashdot"))
    for (name, values), (colour, dash) in zip(curves.items(), looks, strict=True):
        figure.add_scatter(
            x=list(bits), y=[100 * v for v in values], mode="lines+markers", name=name,
            line={"color": colour, "dash": dash, "width": 2}, marker={"size": 6},
            hovertemplate=f"{name}, %{{x}} bits: %{{y:.3g}} %<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(mode="markers", marker=DOT, showlegend=False, hoverinfo="skip", name="now")
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(type="log", tickvals=[0.5, 1, 2, 5, 10, 20, 50, 100])
    _legend(figure, {**TOP, "t": 62})
    frames = [
        [{"type": "scatter", "x": [b] * len(curves), "y": [100 * v[i] for v in curves.values()]}]
        for i, b in enumerate(bits)
    ]
    return _whole(figure, [len(curves)], frames)
