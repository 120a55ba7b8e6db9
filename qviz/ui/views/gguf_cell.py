"""One weight of a block as rows of text, in the symbols of the lit equation, at each moment."""

import math
from typing import Any

from qviz.study.gguf_walk import (
    BACK,
    BLOCK,
    BYTES,
    FOUND,
    KINDS,
    LEVELS,
    PASS,
    START,
    TRY,
    WEIGH,
    Moment,
    Walk,
)
from qviz.ui.widgets import number

#: Rows by the moment from which they are known, and the moments that light them up.
_ROWS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("x", "trained weight x", "original", (BLOCK,)),
    ("w", "w, in the error", "", (WEIGH,)),
    ("t", "t, spacings", "", (START, TRY, FOUND)),
    ("position", "x falls at", "", (START, TRY)),
    ("q", "code q", "codes", (START, TRY, FOUND)),
    ("s", "scale s", "", (START, TRY, FOUND)),
    ("m", "minimum m", "", (START, TRY, FOUND)),
    ("value", "level", "codes", (START, TRY, FOUND)),
    ("error", "x − level", "error", (START, TRY, FOUND)),
    ("d", "d", "", (LEVELS, BYTES)),
    ("k", "k, integer", "codes", (LEVELS,)),
    ("dk", "d · k", "", (LEVELS, PASS)),
    ("dmin", "d_{min}", "", (LEVELS, BYTES)),
    ("l", "l, integer", "codes", (LEVELS,)),
    ("dl", "d_{min} · l", "", (LEVELS, PASS)),
    ("again", "x falls at, now", "", (PASS,)),
    ("stored", "stored q", "codes", (PASS, BYTES, BACK)),
    ("back", "x̂", "codes", (PASS, BACK)),
    ("off", "error x − x̂", "error", (PASS, BACK)),
)


def _n(value: float, digits: int = 4) -> str:
    """A number, or a dash where least squares had no answer."""
    return number(value, digits) if math.isfinite(value) else "–"


def values_at(walk: Walk, moment: Moment, group: int, place: int) -> dict[str, str]:
    """The numbers of a weight that are known at a moment."""
    out = {"x": _n(float(walk.x[group, place]))}
    reached = KINDS.index(moment.kind)
    if walk.weights is not None and reached >= KINDS.index(WEIGH):
        out["w"] = _n(float(walk.weights[group, place]))
    if len(walk.fits) > 1 and reached >= KINDS.index(START):
        out |= _searched(walk, moment, group, place)
    if walk.second is not None and reached >= KINDS.index(LEVELS):
        out |= _stored_scales(walk, group)
    simple = len(walk.fits) == 1 and reached >= KINDS.index(START)
    if simple or reached >= KINDS.index(PASS):
        out |= _stored(walk, group, place, simple)
    return out


def _searched(walk: Walk, moment: Moment, group: int, place: int) -> dict[str, str]:
    """Of the try of this moment, or of the one that is kept."""
    trying = moment.kind in (START, TRY)
    fit = walk.fits[moment.fit if trying else walk.best(group)]
    x, value = float(walk.x[group, place]), float(fit.values[group, place])
    out = {
        "q": str(int(fit.codes[group, place])).replace("-", "−"),
        "s": _n(float(fit.scale[group])),
        "value": _n(value),
        "error": _n(x - value, 3),
    }
    if fit.tried is not None:
        out["t"] = _n(fit.tried)
    if fit.position is not None:
        out["position"] = _n(float(fit.position[group, place]))
    if "mins" in walk.parts or "m" in walk.parts:
        out["m"] = _n(float(fit.minimum[group]))
    return out


def _stored_scales(walk: Walk, group: int) -> dict[str, str]:
    assert walk.second is not None
    d, dmin, ks, ls = walk.second
    k, low = int(ks[group]), int(ls[group])
    out = {"d": _n(d), "k": str(k).replace("-", "−"), "dk": _n(d * k)}
    if "mins" in walk.parts:
        out |= {"dmin": _n(dmin), "l": str(low), "dl": _n(dmin * low)}
    return out


def _stored(walk: Walk, group: int, place: int, simple: bool) -> dict[str, str]:
    x, back = float(walk.x[group, place]), float(walk.back[group, place])
    code = int(walk.codes[group, place])
    out = {
        "stored": str(code - walk.layout.zero).replace("-", "−")
        + (f", as {code}" if walk.layout.zero else ""),
        "back": _n(back),
        "off": _n(x - back, 3),
    }
    if walk.second is not None and not walk.skipped:
        d, dmin, ks, ls = walk.second
        step = d * int(ks[group])
        if step:
            out["again"] = _n((x + dmin * int(ls[group])) / step)
    if simple:
        fit = walk.fits[0]
        if fit.position is not None:
            out["position"] = _n(float(fit.position[group, place]))
        out["d" if walk.type != "MXFP4" else "s"] = _n(float(fit.scale[group]))
        if "m" in walk.parts:
            out["m"] = _n(float(fit.minimum[group]))
    return out


def weight_rows(
    walks: tuple[Walk, ...], moments: tuple[Moment, ...], group: int, place: int
) -> list[Any]:
    """The table's rows at a step: a cell for each walk, those of the moment lit."""
    told = [values_at(w, m, group, place) for w, m in zip(walks, moments, strict=True)]
    last = [values_at(w, w.moments[-1], group, place) for w in walks]
    rows: list[Any] = []
    for key, label, role, lights in _ROWS:
        if not any(key in each for each in last):
            continue
        lit = [i for i, m in enumerate(moments) if m.kind in lights and key in told[i]]
        rows.append((label, [each.get(key, "") for each in told], lit, role))
    return rows
