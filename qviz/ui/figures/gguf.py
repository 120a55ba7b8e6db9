"""Figures of the GGUF lesson: the search's errors, a sub-block on its levels, types, file maps.

Plain data where there are many frames: plotly checks slowly what it is given. Colours are the
stylesheet's variables, which the chart widget resolves for the page's theme.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qviz.study.gguf_facts import TryFacts
from qviz.study.gguf_files import FileMap, type_bits
from qviz.ui.figures.common import CODES, ERROR, INK, NOW, ORIGINAL, WAIT, axes_layout

GOOD = "var(--qv-good)"
LEGEND = {
    "orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11},
    "itemclick": False, "itemdoubleclick": False,
}  # fmt: skip
MARGIN = {"l": 52, "r": 8, "t": 28, "b": 38}
#: Types by colour in the map of a file: more bits, warmer.
SCALE = "Viridis"


def _layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    layout = axes_layout(x, y).to_plotly_json()
    return {**layout, "margin": MARGIN, "showlegend": True, "legend": LEGEND, **more}


def search_curve(
    runs: Sequence[Sequence[TryFacts]],
    reached: Sequence[Sequence[int]],
    *,
    moves: bool,
    whole: bool,
) -> dict[str, Any]:
    """Each try's error in percent of the plain way's, a frame for each step.

    runs     the tries of a sub-block, the plain one first; one or two runs
    reached  for each frame the last try of each run that has been made, −1 for none
    moves    the tries are moves of one code: they have no number of spacings
    whole    draw all tries faintly, those still to come too
    """
    frames: list[dict[str, Any]] = []
    lines = [_line(run, moves) for run in runs]
    for at in reached:
        data: list[dict[str, Any]] = []
        for (x, y, kept), last in zip(lines, at, strict=True):
            seen = slice(0, last + 1)
            order = np.argsort(x[seen], kind="stable")
            chosen = [k for k in range(last + 1) if kept[k]]
            best = chosen[-1:] if chosen else []
            data += [
                {"x": x[seen][order], "y": y[seen][order]},
                {"x": x[chosen], "y": y[chosen]},
                {"x": x[best], "y": y[best]},
                {"x": x[last : last + 1] if last >= 0 else [],
                 "y": y[last : last + 1] if last >= 0 else []},
            ]  # fmt: skip
        frames.append({"traces": list(range(len(lines), len(lines) + len(data))), "data": data})
    shown = [_faint(x, y, whole) for x, y, _ in lines]
    for run, (colour, dash) in enumerate(((CODES, "solid"), (ORIGINAL, "dot"))[: len(runs)]):
        first = run == 0  # one entry of the legend for the second run
        shown += [
            {"type": "scatter", "mode": "lines+markers",
             "name": "error of a try" if first else "second run",
             "line": {"color": colour, "width": 1.5, "dash": dash}, "marker": {"size": 5},
             "hovertemplate": "%{x:.4g}: %{y:.1f} %<extra></extra>"},
            {"type": "scatter", "mode": "markers", "name": "kept when tried", "showlegend": first,
             "marker": {"color": GOOD, "size": 9, "symbol": "circle-open", "line": {"width": 2}},
             "hoverinfo": "skip"},
            {"type": "scatter", "mode": "markers", "name": "best so far", "showlegend": first,
             "marker": {"color": GOOD, "size": 11, "symbol": "star"}, "hoverinfo": "skip"},
            {"type": "scatter", "mode": "markers", "name": "now", "showlegend": False,
             "marker": {"color": NOW, "size": 10, "line": {"width": 2, "color": INK}},
             "hoverinfo": "skip"},
        ]  # fmt: skip
    every = np.concatenate([line[1] for line in lines])
    across = np.concatenate([line[0] for line in lines])
    finite = every[np.isfinite(every)]
    top = float(np.percentile(finite, 90)) if len(finite) else 100.0
    low = float(finite.min()) if len(finite) else 0.0
    layout = _layout("move" if moves else "spacings that the range is cut into",
                     "% of plain error")  # fmt: skip
    pad = 0.04 * (float(across.max() - across.min()) or 1.0)
    span = max(top, 102.0) - low
    layout["xaxis"]["range"] = [float(across.min()) - pad, float(across.max()) + pad]
    layout["yaxis"]["range"] = [low - 0.08 * span, max(top, 102.0) + 0.1 * span]
    layout["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100, "y1": 100,
         "line": {"color": WAIT, "width": 1, "dash": "dash"}},
    ]  # fmt: skip
    return {"data": shown, "layout": layout, "frames": frames}


def _faint(x: np.ndarray, y: np.ndarray, whole: bool) -> dict[str, Any]:
    order = np.argsort(x, kind="stable")
    return {
        "type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False,
        "name": "all tries", "line": {"color": WAIT, "width": 1},
        "x": x[order] if whole else [], "y": y[order] if whole else [],
    }  # fmt: skip


def _line(run: Sequence[TryFacts], moves: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, errors in percent of the first one's, and which were kept."""
    first = run[0].error
    x = np.array([one.number if one.tried is None or moves else one.tried for one in run], float)
    y = np.array([100 * one.error / first if first else 100.0 for one in run], float)
    return x, y, np.array([one.kept for one in run])


def on_levels(
    x: np.ndarray,
    frames: Sequence[tuple[np.ndarray | None, np.ndarray | None]],
    weights: np.ndarray | None,
) -> dict[str, Any]:
    """A sub-block's weights and the levels they go to, a frame for each step.

    x        [n] the weights
    frames   (their values at the step, all levels), None before there are any; no levels where they
             are too many to be told apart
    weights  [n] how much each error counts, drawn as size
    """
    place = np.arange(len(x), dtype=np.float64)
    if weights is None or not weights.max() > 0:
        sizes: Any = 7
    else:
        sizes = 4 + 9 * np.sqrt(weights / weights.max())
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "name": "levels", "hoverinfo": "skip",
         "line": {"color": CODES, "width": 0.8}},
        {"type": "scatter", "mode": "lines", "name": "error", "hoverinfo": "skip",
         "line": {"color": ERROR, "width": 2}},
        {"type": "scatter", "mode": "markers", "name": "weight x", "x": place, "y": x,
         "marker": {"color": ORIGINAL, "size": sizes},
         "hovertemplate": "place %{x}: %{y:.4g}<extra></extra>"},
        {"type": "scatter", "mode": "markers", "name": "its level",
         "marker": {"color": CODES, "size": 9, "symbol": "line-ew-open", "line": {"width": 2}},
         "hovertemplate": "place %{x}: %{y:.4g}<extra></extra>"},
    ]  # fmt: skip
    every = [x, *(levels for _, levels in frames if levels is not None and len(levels))]
    low, high = (float(f([f(v) for v in every])) for f in (np.min, np.max))
    reach = max(float(np.abs(x).max()), 1e-30)
    low, high = max(low, float(x.min()) - reach), min(high, float(x.max()) + reach)
    pad = 0.05 * (high - low or 1.0)
    layout = _layout("place in the sub-block", "")
    layout["margin"] = {**MARGIN, "l": 56}
    layout["xaxis"]["range"] = [-0.8, len(x) - 0.2]
    layout["yaxis"]["range"] = [low - pad, high + pad]
    return {
        "data": data,
        "layout": layout,
        "frames": [
            {"traces": [0, 1, 3], "data": _levels(place, x, values, levels)}
            for values, levels in frames
        ],
    }


def _levels(
    place: np.ndarray, x: np.ndarray, values: np.ndarray | None, levels: np.ndarray | None
) -> list[dict[str, Any]]:
    if values is None or levels is None:
        return [{"x": [], "y": []}] * 3
    ends = [-0.8, len(x) - 0.2, np.nan]
    gap = np.full_like(place, np.nan)
    return [
        {"x": np.tile(ends, len(levels)), "y": np.stack([levels, levels, levels], 1).ravel()},
        {"x": np.stack([place, place, gap], 1).ravel(),
         "y": np.stack([x, values, gap], 1).ravel()},
        {"x": place, "y": values},
    ]  # fmt: skip


def input_sizes(importance: np.ndarray, first: int) -> dict[str, Any]:
    """The importance of a block's inputs, from column `first` on."""
    layout = _layout("input", "mean square")
    layout["showlegend"] = False
    bars = {
        "type": "bar", "x": np.arange(first, first + len(importance)), "y": importance,
        "marker": {"color": GOOD, "line": {"width": 0}},
        "hovertemplate": "input %{x}: %{y:.3g}<extra></extra>", "name": "importance",
    }  # fmt: skip
    return {"data": [bars], "layout": layout}


# ------------------------------------------------------------------------------------ types


def types_chart(
    types: Sequence[str],
    bits: Sequence[float],
    plain: Sequence[float],
    weighed: Sequence[float | None],
    what: str,
) -> dict[str, Any]:
    """Error in percent against true bits, a point for each type, with and without importance; a
    frame for each type, which marks it."""
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "markers+text", "name": "without importance", "x": list(bits),
         "y": [100 * e for e in plain], "text": list(types), "textposition": _sides(bits, plain),
         "textfont": {"size": 11, "color": INK}, "cliponaxis": False,
         "marker": {"color": CODES, "size": 9},
         "hovertemplate": "%{text}: %{y:.3g} % at %{x:.4g} bits<extra></extra>"},
        {"type": "scatter", "mode": "markers", "name": "with importance", "x": list(bits),
         "y": [None if e is None else 100 * e for e in weighed], "text": list(types),
         "marker": {"color": GOOD, "size": 9, "symbol": "diamond-open", "line": {"width": 2}},
         "hovertemplate": "%{text}, with importance: %{y:.3g} % at %{x:.4g} bits<extra></extra>"},
        {"type": "scatter", "mode": "markers", "name": "chosen", "hoverinfo": "skip",
         "marker": {"color": NOW, "size": 17, "symbol": "circle-open", "line": {"width": 3}}},
    ]  # fmt: skip
    layout = _layout("bits per weight, all counted", f"{what} off by, %")
    layout["yaxis"]["type"] = "log"
    found = [100 * e for e in (*plain, *weighed) if e]
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
    layout["yaxis"] |= {"tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks]}
    if found:
        layout["yaxis"]["range"] = [np.log10(min(found) / 1.6), np.log10(max(found) * 1.5)]
    layout["xaxis"]["range"] = [min(bits) - 0.4, max(bits) + 0.5]
    frames = [
        {"traces": [2], "data": [{"x": [b], "y": [100 * e]}]}
        for b, e in zip(bits, plain, strict=True)
    ]
    return {"data": data, "layout": layout, "frames": frames}


def _sides(bits: Sequence[float], errors: Sequence[float]) -> list[str]:
    """Where each name stands: of types with the same bits above the worst, below the best."""
    out = []
    for b, e in zip(bits, errors, strict=True):
        same = [x for c, x in zip(bits, errors, strict=True) if abs(c - b) < 0.3]
        out.append("top center" if e >= max(same) else "bottom center")
    return out


def bill_chart(types: Sequence[str], bills: Sequence[Mapping[str, float]], names: Mapping[str, str]
               ) -> dict[str, Any]:  # fmt: skip
    """What each type's bits are spent on, as stacked bars; a frame for each type, which is lit."""
    colours = {"codes": CODES, "scales": NOW, "mins": ERROR, "exponent": NOW,
               "d": GOOD, "dmin": WAIT, "m": WAIT}  # fmt: skip
    parts = [part for part in names if any(part in bill for bill in bills)]
    data = [
        {"type": "bar", "orientation": "h", "name": names[part], "y": list(types),
         "x": [bill.get(part, 0.0) for bill in bills],
         "marker": {"color": colours[part], "line": {"width": 0}},
         "hovertemplate": f"%{{y}}, {names[part]}: %{{x:.4g}} bits<extra></extra>"}
        for part in parts
    ]  # fmt: skip
    layout = _layout("bits per weight", "")
    layout |= {"barmode": "stack", "bargap": 0.25, "margin": {**MARGIN, "l": 62}}
    layout["yaxis"]["autorange"] = "reversed"
    frames = [
        {"traces": list(range(len(parts))),
         "data": [{"marker": {"opacity": [1.0 if i == k else 0.45 for i in range(len(types))]}}
                  for _ in parts]}
        for k in range(len(types))
    ]  # fmt: skip
    return {"data": data, "layout": layout, "frames": frames}


def shift_chart(
    each: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray] | None],
) -> dict[str, Any]:
    """Mean squared error by the importance of the input, without and with importance; a frame for
    each type, None where it ignores importance."""
    layout = _layout("mean square of the input (tenths of the inputs)",
                     "squared error, %")  # fmt: skip
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "log"
    data = [
        {"type": "scatter", "mode": "lines+markers", "name": "without importance",
         "line": {"color": CODES, "width": 2}, "marker": {"size": 6},
         "hovertemplate": "inputs of %{x:.3g}: %{y:.3g} %<extra></extra>"},
        {"type": "scatter", "mode": "lines+markers", "name": "with importance",
         "line": {"color": GOOD, "width": 2, "dash": "dash"}, "marker": {"size": 6},
         "hovertemplate": "inputs of %{x:.3g}: %{y:.3g} %<extra></extra>"},
    ]  # fmt: skip
    frames = []
    for one in each:
        if one is None:
            frames.append({"traces": [0, 1], "data": [{"x": [], "y": []}] * 2})
            continue
        at, plain, weighed = one
        frames.append({"traces": [0, 1], "data": [
            {"x": at, "y": 100 * plain}, {"x": at, "y": 100 * weighed}]})  # fmt: skip
    return {"data": data, "layout": layout, "frames": frames}


# ------------------------------------------------------------------------------------ files


def file_map_chart(maps: Sequence[FileMap]) -> dict[str, Any]:
    """The type of each tensor, layer by layer; a frame for each file, all of one model."""
    kinds = sorted({kind for one in maps for kind in one.kinds}, key=lambda k: (type_bits(k), k))
    number = {kind: i for i, kind in enumerate(kinds)}
    rows = list(next(iter(maps)).types)
    layers = maps[0].layers
    steps = max(1, len(kinds))
    colours = [[edge, _colour(i, steps)] for i in range(steps)
               for edge in (i / steps, (i + 1) / steps)]  # fmt: skip
    heat = {
        "type": "heatmap", "x": np.arange(layers), "y": rows, "zmin": -0.5, "zmax": steps - 0.5,
        "colorscale": colours, "xgap": 1, "ygap": 2,
        "hovertemplate": "%{y}, layer %{x}: %{text}<extra></extra>",
        "colorbar": {"tickvals": list(range(steps)), "ticktext": kinds, "thickness": 14,
                     "tickfont": {"size": 11}, "len": 1.0},
    }  # fmt: skip
    layout = _layout("layer (embedding and head: once)", "")
    layout |= {"showlegend": False, "margin": {"l": 92, "r": 8, "t": 6, "b": 38}}
    layout["yaxis"] |= {"autorange": "reversed", "type": "category"}
    frames = []
    for one in maps:
        grid = [[*one.types[row], *[None] * (layers - len(one.types[row]))] for row in rows]
        frames.append({"traces": [0], "data": [{
            "z": [[None if kind is None else number[kind] for kind in line] for line in grid],
            "text": [[kind or "" for kind in line] for line in grid],
        }]})  # fmt: skip
    return {"data": [heat], "layout": layout, "frames": frames}


def _colour(i: int, steps: int) -> str:
    """Evenly spread over a colour-blind-safe map that does not begin in black."""
    stops = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
    at = (0.08 + 0.92 * i / max(1, steps - 1)) * (len(stops) - 1)
    k = min(int(at), len(stops) - 2)
    mixed = (round(a + (b - a) * (at - k)) for a, b in zip(stops[k], stops[k + 1], strict=True))
    return f"rgb({', '.join(map(str, mixed))})"


def files_chart(maps: Sequence[FileMap]) -> dict[str, Any]:
    """Bits per weight of each file beside those of the block that names it; a frame for each."""
    names = [one.file_type for one in maps]
    gap = [np.nan] * len(maps)
    pairs = np.stack([[m.base_bits for m in maps], [m.bits for m in maps], gap], 1).ravel()
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines", "x": pairs, "y": np.repeat(names, 3).tolist(),
         "line": {"color": WAIT, "width": 2}, "hoverinfo": "skip", "showlegend": False,
         "name": "from block to file"},
        {"type": "scatter", "mode": "markers", "name": "the block",
         "x": [m.base_bits for m in maps], "y": names,
         "marker": {"color": CODES, "size": 9, "symbol": "square"},
         "hovertemplate": "%{y}: its block %{x:.4g} bits<extra></extra>"},
        {"type": "scatter", "mode": "markers", "name": "the file", "x": [m.bits for m in maps],
         "y": names, "marker": {"color": ORIGINAL, "size": 10},
         "hovertemplate": "%{y}: the file %{x:.2f} bits<extra></extra>"},
        {"type": "scatter", "mode": "markers", "name": "chosen", "hoverinfo": "skip",
         "marker": {"color": NOW, "size": 18, "symbol": "circle-open", "line": {"width": 3}}},
    ]  # fmt: skip
    layout = _layout("bits per weight", "")
    layout["margin"] = {**MARGIN, "l": 70}
    layout["yaxis"] |= {"type": "category", "autorange": "reversed"}
    frames = [{"traces": [3], "data": [{"x": [m.bits], "y": [m.file_type]}]} for m in maps]
    return {"data": data, "layout": layout, "frames": frames}
