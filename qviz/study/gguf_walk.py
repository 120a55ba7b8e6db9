"""One block of a GGUF type from its weights to its bytes and back, moment by moment.

Everything comes from the events that `gguf` emits while it encodes a whole row, as llama.cpp does;
nothing is encoded a second time. Three things that go wrong in practice can be made of a walk: the
second pass left out, codes read in another order, and weights or importance of another kind.

Symbols: x weights, w how much their errors count, q codes, s scale, m minimum, d and dmin the
float16 numbers of a block. Source: ggml src/ggml-quants.c.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from qviz.core.grids import Blocks
from qviz.core.trace import Event, Trace
from qviz.methods.gguf import LAYOUTS, from_bytes, gguf
from qviz.methods.gguf.kquants import KQUANTS, WITH_IMPORTANCE, Symmetric, WithMinimum
from qviz.methods.gguf.layout import Layout, pack, unpack
from qviz.methods.gguf.legacy import LEGACY
from qviz.methods.gguf.search import steps

#: The kinds of moments, in their order.
BLOCK, WEIGH, START, TRY, FOUND, LEVELS, PASS, BYTES, BACK = KINDS = (
    "block", "weigh", "start", "try", "found", "levels", "pass", "bytes", "back",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fit:
    """Codes that were tried, and the levels that suit them.

    tried     by how many spacings the range was cut to find them; None where another code moved
    scale     [sub-blocks] float64, as are minimum and error
    error     what the search compares: Σ w·|s·q + m − x|ᵖ
    accepted  [sub-blocks] bool: it is the best so far
    codes     [sub-blocks, weights of one]; signed where the type is symmetric
    values    the same shape: what the codes stand for
    position  the same shape: where the weights fell before they were rounded to codes; None where
              another code moved
    """

    tried: float | None
    scale: torch.Tensor
    minimum: torch.Tensor
    error: torch.Tensor
    accepted: torch.Tensor
    codes: torch.Tensor
    values: torch.Tensor
    position: torch.Tensor | None


@dataclass(frozen=True)
class Moment:
    """One step of the walk: `fit` is its try, `section` the member of the struct it writes."""

    kind: str
    fit: int = 0
    section: str = ""


@dataclass(frozen=True, eq=False)
class Walk:
    """One block of a type.

    x          [sub-blocks, weights of one] float32, as are weights, codes and values everywhere
    weights    how much each error counts; None where the type does not ask
    power      the errors are raised to it before they are added up
    fits       the tries, the first of them the plain one; of types without a search only that
    first      (scales, minimums) [sub-blocks] that the search found; None without two levels
    second     (d, dmin, scales, minimums) as they are stored: float16, and integers
    level_tries  how many d were tried for the scales, 0 where it is simply the largest scale's
    chosen     codes of the search's best fits, as they would be stored
    parts      what the bytes hold, by name [count]
    data       the bytes [bytes]
    back       what they decode to
    """

    type: str
    importance: bool
    x: torch.Tensor
    weights: torch.Tensor | None
    power: int
    fits: tuple[Fit, ...]
    first: tuple[torch.Tensor, torch.Tensor] | None
    second: tuple[float, float, torch.Tensor, torch.Tensor] | None
    chosen: torch.Tensor
    parts: dict[str, torch.Tensor]
    data: torch.Tensor
    back: torch.Tensor
    level_tries: int = 0
    skipped: bool = False

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.type]

    @property
    def groups(self) -> int:
        """Sub-blocks of the block."""
        return len(self.x)

    @property
    def codes(self) -> torch.Tensor:
        """As they are stored, int64."""
        codes = self.parts["codes"]
        codes = codes.view(torch.int8) if self.type == "Q8_0" else codes
        return codes.reshape(self.x.shape).long()

    @property
    def moments(self) -> tuple[Moment, ...]:
        """The walk, in order."""
        searched = len(self.fits) > 1
        out = [Moment(BLOCK), *([Moment(WEIGH)] if self.weights is not None else [])]
        out += [Moment(TRY if k else START, k) for k in range(len(self.fits))]
        if searched:
            out.append(Moment(FOUND, len(self.fits) - 1))
        if self.second is not None:
            out.append(Moment(LEVELS, len(self.fits) - 1))
            if not self.skipped:
                out.append(Moment(PASS, len(self.fits) - 1))
        last = len(self.fits) - 1
        out += [Moment(BYTES, last, section.name) for section in self.layout.sections]
        return (*out, Moment(BACK, last))

    def best(self, group: int, until: int | None = None) -> int:
        """The fit that is kept for a sub-block, of those up to `until`."""
        last = len(self.fits) - 1 if until is None else until
        return max((k for k in range(last + 1) if bool(self.fits[k].accepted[group])), default=0)

    def kept(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and values of each sub-block's best fit."""
        best = [self.fits[self.best(g)] for g in range(self.groups)]
        return (
            torch.stack([fit.codes[g] for g, fit in enumerate(best)]),
            torch.stack([fit.values[g] for g, fit in enumerate(best)]),
        )

    def at(self, moment: Moment) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Codes, as they would be stored, and values at a moment; None before there are any."""
        if moment.kind in (BLOCK, WEIGH):
            return None
        if len(self.fits) > 1 and moment.kind in (START, TRY, FOUND):
            fit = self.fits[moment.fit]
            codes, values = self.kept() if moment.kind == FOUND else (fit.codes, fit.values)
            return codes + self.layout.zero, values
        if moment.kind == LEVELS:
            return self.chosen.long(), self.decoded(self.chosen)
        return self.codes, self.back

    def levels(self, moment: Moment, group: int) -> torch.Tensor | None:
        """The levels of a sub-block [codes] at a moment, from code 0 on; None before there are any,
        and after the first moment of types that do not search."""
        if moment.kind in (BLOCK, WEIGH):
            return None
        if moment.kind in (START, TRY, FOUND) and len(self.fits) > 1:
            fit = self.fits[self.best(group) if moment.kind == FOUND else moment.fit]
            codes = torch.arange(2**self.layout.bits, dtype=torch.float64) - self.layout.zero
            return fit.scale[group] * codes + fit.minimum[group]
        return self.stored_levels()[group]

    def stored_levels(self) -> torch.Tensor:
        """The levels [sub-blocks, codes] float64 that the bytes stand for, by code."""
        grid = from_bytes(self.type, self.data[None]).grid
        assert isinstance(grid, Blocks)
        count = 2**self.layout.bits
        codes = torch.arange(count) - (count // 2 if self.type == "Q8_0" else 0)
        return grid.inner.decode(codes.expand(1, self.groups, count))[0].double()

    def decoded(self, codes: torch.Tensor) -> torch.Tensor:
        """What these codes [sub-blocks, weights] stand for under the scales as stored."""
        return _decode(self.type, {**self.parts, "codes": codes.reshape(-1).to(torch.uint8)}).view(
            self.x.shape
        )


class RowWalk:
    """A row of a layer, encoded whole; `block(b)` is the walk of its block b.

    row         [in]
    importance  [in] or None, as `gguf` takes it
    """

    def __init__(
        self, row: torch.Tensor, *, type: str, importance: torch.Tensor | None = None
    ) -> None:
        self.trace = Trace()
        self.type = type
        self.q = gguf(row[None], type=type, importance=importance, emit=self.trace)
        self.importance = bool(self.q.info["importance"])
        self.blocks = len(self.trace.named("gguf.bytes")[0]["data"])

    def block(self, b: int) -> Walk:
        layout = LAYOUTS[self.type]
        per = layout.weights // layout.group
        subs = slice(b * per, (b + 1) * per)
        data = self._one("gguf.bytes", "data")[b]
        x = self._one("gguf.blocks", "x")[b].reshape(per, -1)
        back = self.q.dequantize()[0].reshape(self.blocks, *x.shape)[b]
        parts = {k: v[0] for k, v in unpack(layout, data[None]).items()}
        weights = self._maybe("kquant.weights", "weights")
        weights = None if weights is None else weights[subs]
        power = 1 if self.type == "Q2_K" and not self.importance else 2
        fits = self._fits(x, weights, subs) or (self._plain(x, parts, back, b),)
        first = second = None
        if self.trace.named("kquant.first_level"):
            found = self.trace.named("kquant.first_level")[0]
            stored = self.trace.named("kquant.second_level")[0]
            first = found["scales"][b].double(), found["mins"][b].double()
            second = (
                float(stored["d"][b]), float(stored["dmin"][b]),
                stored["scales"][b].long(), stored["mins"][b].long(),
            )  # fmt: skip
        walk = Walk(
            self.type, self.importance, x, weights, power, fits, first, second, x, parts, data,
            back, len(self.trace.named("kquant.levels")) // 2,
        )  # fmt: skip
        chosen = walk.kept()[0] + (layout.zero if len(fits) > 1 else 0)
        return replace(walk, chosen=chosen)

    def _one(self, event: str, tensor: str) -> torch.Tensor:
        return self.trace.named(event)[0][tensor]

    def _maybe(self, event: str, tensor: str) -> torch.Tensor | None:
        return self._one(event, tensor) if self.trace.named(event) else None

    def _plain(
        self, x: torch.Tensor, parts: dict[str, torch.Tensor], back: torch.Tensor, b: int
    ) -> Fit:
        """The one fit of a type that does not search: as it is stored."""
        codes = parts["codes"].view(torch.int8) if self.type == "Q8_0" else parts["codes"]
        scale = parts["d"].double() if "d" in parts else _block_scale(parts)
        minimum = parts["m"].double() if "m" in parts else torch.zeros(1, dtype=torch.float64)
        error = (back.double() - x.double()).square().sum(1)
        yes = torch.ones(1, dtype=torch.bool)
        position = self._maybe("gguf.position", "position")
        return Fit(
            None, scale, minimum, error, yes, codes.reshape(x.shape).long(), back,
            None if position is None else position[b][None],
        )  # fmt: skip

    def _fits(self, x: torch.Tensor, weights: torch.Tensor | None, subs: slice) -> tuple[Fit, ...]:
        start = self.trace.named("kquant.start")
        if start:
            searched = self.trace.named("kquant.search")
            return _with_minimum(self.type, self.importance, start[0], searched, x, subs)
        assert weights is not None or not self.trace.named("kquant.*")
        if self.trace.named("kquant.symmetric"):
            assert weights is not None
            return _symmetric(self.type, self.trace.named("kquant.symmetric"), x, weights, subs)
        if self.trace.named("kquant.refine_start"):
            assert weights is not None
            return _by_coordinates(self.trace, x, weights, subs)
        return ()


def _block_scale(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """MXFP4's scale: a power of two."""
    return torch.exp2(parts["exponent"].double() - 127)


def tries(type: str, importance: bool) -> list[float]:
    """By how many spacings the search of a type cuts the range in each try, the first included;
    empty for types that do not search, and for Q3_K, which moves one code at a time."""
    kind = KQUANTS.get(type)
    if isinstance(kind, WithMinimum):
        return [kind.top, *steps(*(WITH_IMPORTANCE if importance else kind.grid), base=kind.top)]
    if isinstance(kind, Symmetric):
        half = kind.half if importance or type != "Q3_K" else 0
    else:
        legacy = LEGACY.get(type)
        if legacy is None or not importance or legacy.shift is None:
            return []
        if legacy.minimum:
            return [legacy.steps, *steps(*WITH_IMPORTANCE, base=legacy.steps)]
        half = -legacy.steps
    if not half:
        return []
    return [half, *reversed(steps(0, -0.1, 9, half)[1:]), *steps(0, 0.1, 9, half)[1:]]


def _with_minimum(
    type: str,
    importance: bool,
    start: Event,
    searched: Sequence[Event],
    x: torch.Tensor,
    subs: slice,
) -> tuple[Fit, ...]:
    """Of make_qkx2_quants: the plain scale, then each try's least squares."""
    fits: list[Fit] = []
    low = start["low"][subs]  # codes are counted from the minimum of the best fit so far
    for k, (event, tried) in enumerate(
        zip([start, *searched], tries(type, importance), strict=True)
    ):
        s = event["scale"][subs].double()
        m = event["low" if k == 0 else "minimum"][subs].double()
        codes, iscale = event["codes"][subs], event["iscale"][subs]
        accepted = torch.ones(len(s), dtype=torch.bool) if k == 0 else event["accepted"][subs]
        values = (s[:, None] * codes + m[:, None]).float()
        error, position = event["error"][subs].double(), (x - low[:, None]) * iscale[:, None]
        fits.append(Fit(tried, s, m, error, accepted, codes.long(), values, position))
        low = torch.where(accepted, m.float(), low)
    return tuple(fits)


def _symmetric(
    type: str, searched: Sequence[Event], x: torch.Tensor, weights: torch.Tensor, subs: slice
) -> tuple[Fit, ...]:
    """Of make_qx_quants."""
    fits = []
    for event, tried in zip(searched, tries(type, True), strict=True):
        s, codes = event["scale"][subs].double(), event["codes"][subs]
        position = x * event["iscale"][subs, None]
        fits.append(_fit(tried, s, codes, x, weights, event["accepted"][subs], position))
    first = replace(fits[0], accepted=torch.ones(len(x), dtype=torch.bool))
    return (first, *fits[1:])


def _by_coordinates(
    trace: Trace, x: torch.Tensor, weights: torch.Tensor, subs: slice
) -> tuple[Fit, ...]:
    """Of make_q3_quants: one code after another moves, in every sub-block that has a better one."""
    start = trace.named("kquant.refine_start")[0]
    wxq, wqq = (start[name][subs].double().clone() for name in ("wxq", "wqq"))
    codes = start["codes"][subs].clone()
    yes = torch.ones(len(x), dtype=torch.bool)
    fits = [_fit(None, _quotient(wxq, wqq), codes, x, weights, yes)]
    for event in trace.named("kquant.refine"):
        own = (event["blocks"] >= subs.start) & (event["blocks"] < subs.stop)
        if not own.any():
            continue
        at = event["blocks"][own] - subs.start
        codes = codes.clone()
        codes[at, event["weight"][own]] = event["code"][own]
        wxq, wqq = wxq.clone(), wqq.clone()
        wxq[at], wqq[at] = event["wxq"][own].double(), event["wqq"][own].double()
        moved = torch.zeros(len(x), dtype=torch.bool)
        moved[at] = True
        fits.append(_fit(None, _quotient(wxq, wqq), codes, x, weights, moved))
    return tuple(fits)


def _quotient(wxq: torch.Tensor, wqq: torch.Tensor) -> torch.Tensor:
    return torch.where(wqq > 0, wxq / torch.where(wqq > 0, wqq, 1), 0)


def _fit(
    tried: float | None,
    scale: torch.Tensor,
    codes: torch.Tensor,
    x: torch.Tensor,
    weights: torch.Tensor,
    accepted: torch.Tensor,
    position: torch.Tensor | None = None,
) -> Fit:
    """A symmetric fit. Its error is Σwx² less the gain that the search looks at."""
    scale = torch.where(torch.isfinite(scale), scale, 0)
    values = scale[:, None] * codes.double()
    error = (weights.double() * (values - x.double()).square()).sum(1)
    return Fit(
        tried,
        scale,
        torch.zeros_like(scale),
        error,
        accepted,
        codes.long(),
        values.float(),
        position,
    )


def _decode(type: str, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weights [n] that these parts stand for."""
    data = pack(LAYOUTS[type], {name: part[None] for name, part in parts.items()})
    return from_bytes(type, data).dequantize()[0]


# --------------------------------------------------------------------------------- what goes wrong


def without_second_pass(walk: Walk) -> Walk:
    """The codes of the search are stored, though the scales that they were found with are not.

    ValueError for types whose scales have one level: there is no second pass to leave out.
    """
    if walk.second is None:
        raise ValueError(f"{walk.type} has no second pass: its scales are not rounded to integers")
    parts = {**walk.parts, "codes": walk.chosen.reshape(-1).to(torch.uint8)}
    data = pack(walk.layout, {name: part[None] for name, part in parts.items()})[0]
    back = _decode(walk.type, parts).view(walk.x.shape)
    return replace(walk, parts=parts, data=data, back=back, skipped=True)


def can_be_read_in_pairs(type: str) -> bool:
    """Whether its codes are the halves of bytes."""
    return any(section.name == "qs" and LAYOUTS[type].bits == 4 for section in
               LAYOUTS[type].sections)  # fmt: skip


def read_in_pairs(walk: Walk) -> Walk:
    """The same bytes, decoded as if each held two weights that follow one another. In the file the
    low halves are one run of weights, and the high halves the next.

    ValueError for types whose codes are no halves of bytes.
    """
    if not can_be_read_in_pairs(walk.type):
        raise ValueError(f"the codes of {walk.type} are not the halves of bytes")
    start = 0
    for section in walk.layout.sections:
        if section.name == "qs":
            qs = walk.data[start : start + section.size]
        start += section.size
    codes = torch.stack([qs & 15, qs >> 4], 1).flatten()
    back = _decode(walk.type, {**walk.parts, "codes": codes}).view(walk.x.shape)
    return replace(walk, back=back)


def with_outlier(row: torch.Tensor, column: int, factor: float) -> torch.Tensor:
    """The row [in] with one weight multiplied."""
    changed = row.clone()
    changed[column] *= factor
    return changed


def unreached(importance: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """The importance [in] with 0 for `count` inputs from `first` on: no text reached them."""
    changed = importance.clone()
    changed[first : first + count] = 0
    return changed


# --------------------------------------------------------------------------------- two in lockstep


def together(first: Walk, second: Walk | None) -> list[tuple[Moment, Moment | None]]:
    """The steps of two walks beside each other: a walk with fewer moments of a kind waits at its
    last one until the other has come as far."""
    if second is None:
        return [(moment, None) for moment in first.moments]
    out: list[tuple[Moment, Moment | None]] = []
    mine, other = (
        {kind: list(each) for kind, each in groupby(w.moments, lambda m: m.kind)}
        for w in (first, second)
    )
    last = first.moments[0], second.moments[0]
    for kind in KINDS:
        a, b = mine.get(kind, []), other.get(kind, [])
        for i in range(max(len(a), len(b))):
            last = (
                a[min(i, len(a) - 1)] if a else last[0],
                b[min(i, len(b) - 1)] if b else last[1],
            )
            out.append(last)
    return out
