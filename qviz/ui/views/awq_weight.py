"""One weight's arithmetic in the AWQ lesson, in the symbols of its equations."""

from collections.abc import Sequence
from dataclasses import dataclass

from qviz.core.words import number

Row = tuple[str, list[str] | str, str]


@dataclass(frozen=True)
class Weight:
    """One weight on its way through AWQ.

    w, s         the trained weight, and its channel's factor
    limit        the largest |w·s| that is left of its group, None where nothing is cut
    low, high    what its group spans, scaled and cut
    delta, zero  spacing and zero point of its group; code: what it gets
    back         ŵ, what comes back; a: mean |x| of its channel
    """

    row: int
    column: int
    w: float
    s: float
    limit: float | None
    low: float
    high: float
    bits: int
    delta: float
    zero: float
    code: int
    back: float
    a: float

    @property
    def cut(self) -> float:
        """w·s as it is rounded."""
        v = self.w * self.s
        return v if self.limit is None else min(max(v, -self.limit), self.limit)


def weight_rows(steps: Sequence[Weight], *, scaled: bool = True) -> list[Row]:
    """The arithmetic in the symbols of the equations, a text for each of `steps`."""
    one = steps[0]
    clip = any(w.limit is not None for w in steps)
    top = 2**one.bits - 1
    value = "v" if clip else "w·s" if scaled else "w"
    rows: list[Row] = [
        ("row, channel", f"{one.row}, {one.column}", ""),
        ("w, as trained", number(one.w), "original"),
    ]
    if scaled:
        rows += [("s of its channel", [number(w.s) for w in steps], "now"),
                 ("w·s", [number(w.w * w.s) for w in steps], "")]  # fmt: skip
    if clip:
        rows += [("limit m", [number(w.limit or 0.0) for w in steps], "now"),
                 ("v = clamp(w·s, ±m)", [number(w.cut) for w in steps], "")]  # fmt: skip
    rows += [
        ("its group spans", [f"{number(w.low, 3)} … {number(w.high, 3)}" for w in steps], ""),
        (f"Δ = span ÷ {top}", [number(w.delta) for w in steps], ""),
        ("zero point z", [number(w.zero) for w in steps], ""),
        (f"{value}/Δ + z", [number(w.cut / w.delta + w.zero) for w in steps], ""),
        (f"code q (0 … {top})", [number(w.code) for w in steps], "codes"),
    ]
    if scaled:
        rows.append(("Δ·(q − z)", [number(w.delta * (w.code - w.zero)) for w in steps], ""))
    rows += [
        ("ŵ = Δ·(q − z)/s" if scaled else "ŵ = Δ·(q − z)", [number(w.back) for w in steps],
         "codes"),
        ("error ŵ − w", [number(w.back - w.w, 3) for w in steps], "error"),
        ("a = mean |x|", number(one.a), ""),
        ("a·|ŵ − w|", [number(w.a * abs(w.back - w.w), 3) for w in steps], "error"),
    ]  # fmt: skip
    return rows
