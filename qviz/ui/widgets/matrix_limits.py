"""Which values the colours of a matrix reach to, and what its indices stand for."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import codec
from .codec import Array, Summary

Limits = float | tuple[float, float]
Span = tuple[float, float]


def limit_pair(limits: Any, colormap: str) -> Span:
    """Limits as the caller wrote them, as (low, high)."""
    if isinstance(limits, (int, float, np.integer, np.floating)):
        high = float(limits)
        low = -high if colormap == "diverging" else 0.0
    else:
        try:
            low, high = (float(v) for v in limits)
        except (TypeError, ValueError):
            raise ValueError(
                f"limits {limits!r} are neither a number nor a pair (low, high)"
            ) from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"limits need finite low < high, not {limits!r}")
    return low, high


def _widen(low: float, high: float) -> Span:
    """A range must have a width: a constant matrix gets one around or above its value."""
    if high > low and np.isfinite(1 / (high / 2 - low / 2)):
        return low, high
    width = max(1.0, abs(low))
    return (low - width, high + width) if low < 0 or high > 0 else (low, high + width)


def color_limits(
    grids: list[Array], about: list[Summary], limits: Any, colormap: str
) -> tuple[list[Span], list[Span]]:
    """Limits of the colours per frame: (each frame's own, those in use unless autoscaled)."""
    if colormap == "categorical":
        low, high = min(a.low for a in about), max(a.high for a in about)
        if any(a.nan or a.infinite for a in about) or any(
            g.dtype.kind == "f" and not np.array_equal(g, np.rint(g)) for g in grids
        ):
            raise ValueError("a categorical map needs integer codes")
        if high - low > 254:
            raise ValueError(f"codes from {low:g} to {high:g}: a categorical map holds 255 of them")
        both = [(low, max(high, low + 1))] * len(grids)
        return both, both

    own = []
    for grid, summary in zip(grids, about, strict=True):
        low, high, magnitude = codec.typical(grid)
        if isinstance(limits, str):
            if limits != "max":
                raise ValueError(f"unknown limits {limits!r}: use None, 'max', numbers or pairs")
            low, high, magnitude = summary.low, summary.high, summary.absmax
        if colormap == "diverging":
            low, high = -magnitude, magnitude
        elif low > 0:
            low = 0.0
        own.append((low, high))
    shared_low, shared_high = min(s[0] for s in own), max(s[1] for s in own)
    if colormap == "diverging" and shared_high == 0:  # nothing but zeros: white, in the middle
        shared_low, shared_high = -1.0, 1.0
    own = [_widen(*span) if span[1] > span[0] else _widen(shared_low, shared_high) for span in own]
    if limits is None or isinstance(limits, str):
        return own, [_widen(shared_low, shared_high)] * len(grids)
    if isinstance(limits, list):
        if len(limits) != len(grids):
            raise ValueError(f"{len(limits)} limits for {len(grids)} frames; give one per frame")
        return own, [limit_pair(span, colormap) for span in limits]
    return own, [limit_pair(limits, colormap)] * len(grids)


def index_ranges(
    about: list[Summary],
    own: list[Span],
    shared: list[Span],
    colormap: str,
) -> list[Span]:
    """What the 255 indices of each frame span: its values, as far as any limits can show them."""
    if colormap == "categorical":
        return [(span[0], span[0] + 254) for span in shared]
    spans = []
    for summary, a, b in zip(about, own, shared, strict=True):
        low, high = max(summary.low, min(a[0], b[0])), min(summary.high, max(a[1], b[1]))
        if colormap == "diverging":  # zero must be an index of its own, so that it stays white
            high = max(abs(low), abs(high))
            low = -high
        spans.append(_widen(low, high))
    return spans
