"""The searches of the k-quants: scales for many sub-blocks at once, each in float32 order.

The bytes of llama.cpp depend on the order of its float32 sums: left to right over the weights of
a sub-block. Here x is therefore [weights of a sub-block, sub-blocks]: one row holds the first
weight of thousands of sub-blocks, and adding row after row keeps the order of every one of them.

Symbols: x weights, w their importance, q codes, s scale, m minimum (m ≤ 0 and x̂ = s·q + m),
N the highest code, h the half range (codes −h … h − 1). `iscale` is the 1/s with which codes are
tried; the scale that is kept comes from least squares. Source: ggml src/ggml-quants.c.
"""

from dataclasses import dataclass

import numpy as np
import torch

from qviz.core.divide import divide
from qviz.core.trace import Emit

TINY = 1e-15  # a sub-block whose largest weight is smaller counts as zero
# Sub-blocks that are looked at together: on a CPU as many as stay in its cache.
PART = {"cpu": 2**14, "cuda": 2**24}
PASSES = 5  # how often a code is tried at most
_MAGIC = 12582912.0  # 1.5·2²³: added to a float32, it leaves the nearest integer in the low bits


@dataclass(frozen=True)
class Found:
    """What a search found: scale and minimum [sub-blocks], and the codes [weights, sub-blocks]
    that are stored where the rounded scale turns out to be 0 and nothing can be divided by it."""

    scale: torch.Tensor
    codes: torch.Tensor
    minimum: torch.Tensor


def nearest_int_(t: torch.Tensor) -> torch.Tensor:
    """Round to nearest, half to even, in place, as ggml does: integers in float32.

    Within ±4194303 this is `round_`. Beyond, and for Inf and NaN, the mask keeps 23 bits of
    whatever is there, and so it does in ggml: Inf and NaN become −4194304.
    """
    bits = t.add_(_MAGIC).view(torch.int32)
    bits.bitwise_and_(0x007FFFFF).bitwise_or_(0x4B000000)
    return t.sub_(_MAGIC)


def sum_rows(x: torch.Tensor) -> torch.Tensor:
    """Σ over the first axis, strictly from first to last (`sum` adds in an order of its own)."""
    total = x[0].clone()
    for row in x[1:]:
        total += row
    return total


def signed_extreme(x: torch.Tensor) -> torch.Tensor:
    """The value of largest magnitude along the first axis, with its sign; the first of equals."""
    low, high = x.amin(0), x.amax(0)
    value = torch.where(high > -low, high, low)
    # Where both are as large, or NaN is among them (it is never larger, but amax returns it), they
    # are looked at in their order.
    odd = ~((high > -low) | (high < -low))
    if odd.any():
        some = x[:, odd]
        first = torch.zeros_like(some[0])
        for row in some:
            first = torch.where(row.abs() > first.abs(), row, first)
        value[odd] = first
    return value


def smallest(x: torch.Tensor) -> torch.Tensor:
    """The minimum along the first axis; of 0 and −0 the first."""
    value = x[0]
    for row in x[1:]:
        value = torch.where(row < value, row, value)
    return value


def square_root(x: torch.Tensor) -> torch.Tensor:
    """√x in float32, correctly rounded, which torch's own is not: NumPy's is, and so is one by way
    of float64."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.sqrt(x.numpy()))
    return x.double().sqrt_().float()


def steps(start: float, delta: float, count: int, base: float) -> list[float]:
    """start + delta·k + base for k = 0 … count, every operation rounded to float32."""
    k = np.arange(count + 1, dtype=np.float32)
    grid = np.float32(start) + np.float32(delta) * k + np.float32(base)
    return [float(value) for value in grid]


def search_minimum(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    top: int,
    grid: tuple[float, float, int],
    absolute: bool = False,
    emit: Emit | None = None,
) -> Found:
    """Scale and minimum of asymmetric sub-blocks, codes 0 … top (make_qkx2_quants).

    For each iscale of the grid (start, delta, last k): round, fit s and m to the codes by
    weighted least squares, keep them if the error Σw·|s·q + m − x|² (power 1 if `absolute`) falls.
    The next try starts from the minimum that was kept: the order of the tries matters.
    """
    low, high = smallest(x), x.amax(0)  # [sub-blocks]
    low = torch.where(low > 0, 0, low)  # 0 stays representable
    sum_w, sum_wx = sum_rows(w), sum_rows(w * x)
    q, diff = torch.empty_like(x), torch.empty_like(x)
    products = x.new_empty(len(x), 3, x.shape[1])  # w·q, w·q², w·q·x, summed in one go

    def codes(iscale: torch.Tensor, minimum: torch.Tensor) -> None:
        torch.sub(x, minimum, out=q)
        nearest_int_(q.mul_(iscale)).clamp_(0, top)

    def error(scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
        torch.mul(q, scale, out=diff)
        diff.add_(minimum).sub_(x)
        (diff.abs_() if absolute else diff.mul_(diff)).mul_(w)
        return sum_rows(diff)

    # A constant sub-block has iscale ∞ and scale 0: of 0 and −0 the difference may be −0.
    best_iscale, best_low = divide(top, (high - low).add_(0.0)), low
    minimum, scale = low, divide(1, best_iscale)
    codes(best_iscale, low)
    best = error(scale, minimum)
    if emit is not None:
        emit("kquant.start", low=low, high=high, iscale=best_iscale, scale=scale, error=best,
             codes=q.T)  # fmt: skip

    for step in steps(*grid, base=top):
        iscale = divide(step, high - minimum)
        codes(iscale, minimum)
        torch.mul(w, q, out=products[:, 0])
        torch.mul(products[:, 0], q, out=products[:, 1])
        torch.mul(products[:, 0], x, out=products[:, 2])
        # These sums start from 0 there, the two above from the first weight: −0 tells them apart.
        s, m, solvable = _least_squares(sum_w, sum_wx, *sum_rows(products).add_(0.0))
        err = error(s, m)
        accepted = solvable & (err < best)
        if emit is not None:
            emit("kquant.search", iscale=iscale, scale=s, minimum=m, error=err, accepted=accepted,
                 codes=q.T)  # fmt: skip
        best = torch.where(accepted, err, best)
        best_iscale = torch.where(accepted, iscale, best_iscale)
        best_low = torch.where(accepted, minimum, best_low)
        scale = torch.where(accepted, s, scale)
        minimum = torch.where(accepted, m, minimum)

    codes(best_iscale, best_low)  # again, instead of keeping a copy at every improvement
    return Found(scale, q, minimum)


def _least_squares(
    sum_w: torch.Tensor,
    sum_wx: torch.Tensor,
    sum_wq: torch.Tensor,
    sum_wqq: torch.Tensor,
    sum_wxq: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """s and m of the weighted regression of x on q with m ≤ 0, and where it has a solution."""
    determinant = sum_w * sum_wqq - sum_wq * sum_wq
    s = (sum_w * sum_wxq - sum_wx * sum_wq) / determinant
    m = (sum_wqq * sum_wx - sum_wq * sum_wxq) / determinant
    above = m > 0  # a minimum above 0 cannot be stored: then the line goes through 0
    s = torch.where(above, sum_wxq / sum_wqq, s)
    return s, m.masked_fill(above, 0), determinant > 0


def search_symmetric(
    x: torch.Tensor, w: torch.Tensor, *, half: int, emit: Emit | None = None
) -> Found:
    """Scale of symmetric sub-blocks, codes −half … half − 1 (make_qx_quants).

    The extreme weight goes to −half, or, in 18 further tries, to −half ± 0.1 … 0.9. For given
    codes the best scale is Σwxq/Σwq², and (Σwxq)²/Σwq² is how much it reduces the error.
    """
    extreme = signed_extreme(x)
    wx = w * x
    q = torch.empty_like(x)
    products = x.new_empty(len(x), 2, x.shape[1])  # w·x·q, w·q²

    def sums(iscale: torch.Tensor) -> torch.Tensor:
        nearest_int_(torch.mul(x, iscale, out=q)).clamp_(-half, half - 1)
        torch.mul(wx, q, out=products[:, 0])
        torch.mul(w, q, out=products[:, 1]).mul_(q)
        return sum_rows(products)

    best_iscale = divide(-half, extreme)
    wxq, wqq = sums(best_iscale)
    usable = wqq != 0
    scale = torch.where(usable, wxq / wqq, 0)
    best = scale * wxq
    if emit is not None:
        emit("kquant.symmetric", iscale=best_iscale, scale=scale, gain=best, accepted=usable,
             codes=q.T)  # fmt: skip
    for step in [*reversed(steps(0, -0.1, 9, half)[1:]), *steps(0, 0.1, 9, half)[1:]]:
        iscale = divide(-step, extreme)
        wxq, wqq = sums(iscale)
        s = wxq / wqq
        gain = s * wxq
        accepted = (wqq > 0) & (wxq * wxq > best * wqq)
        if emit is not None:
            emit("kquant.symmetric", iscale=iscale, scale=s, gain=gain, accepted=accepted,
                 codes=q.T)  # fmt: skip
        best_iscale = torch.where(accepted, iscale, best_iscale)
        scale = torch.where(accepted, s, scale)
        best = torch.where(accepted, gain, best)

    sums(best_iscale)
    return _symmetric_found(extreme, scale, q, half)


def search_coordinates(
    x: torch.Tensor, w: torch.Tensor, *, half: int, emit: Emit | None = None
) -> Found:
    """Scale of symmetric sub-blocks, one code at a time (make_q3_quants)."""
    extreme = signed_extreme(x)
    q = nearest_int_(x * divide(-half, extreme)).clamp_(-half, half - 1)
    wxq, wqq = descend_(x, w, q, low=-half, high=half - 1, emit=emit)
    scale = torch.where(wqq > 0, wxq / wqq, 0)
    return _symmetric_found(extreme, scale, q, half)


def _symmetric_found(
    extreme: torch.Tensor, scale: torch.Tensor, q: torch.Tensor, half: int
) -> Found:
    """Codes as they are stored, from 0 on; a sub-block that counts as zero has codes 0, which
    stand for −half: harmless, because its scale is 0."""
    zero = extreme.abs() < TINY
    q.add_(half)
    if zero.any():
        scale, q = scale.masked_fill(zero, 0), q.masked_fill_(zero, 0)
    return Found(scale, q, torch.zeros_like(scale))


def descend_(
    x: torch.Tensor,
    w: torch.Tensor,
    q: torch.Tensor,
    *,
    low: int | None,
    high: int,
    as_bytes: bool = False,
    emit: Emit | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Improve the codes q in place, one weight after another, five times over.

    A weight's own part is taken out of the sums, its best code under the scale of all the others
    is found, and it moves there if (Σwxq)²/Σwq² grows. With `as_bytes`, ggml's way with scales,
    codes are kept modulo 256, and the others' Σwq² has to be positive. Returns Σwxq and Σwq².

    Few weights move, and until one does all the others can be tried at once. So each round tries
    all weights of a sub-block and makes the move whose turn comes first. Only sub-blocks with a
    move, one in five after the first round, are tried again.
    """
    rule = Rule(low, high, as_bytes)
    sums = torch.empty_like(x[:2])  # Σwq², Σwxq
    size = PART["cuda" if x.is_cuda else "cpu"]
    begun = []
    for start in range(0, x.shape[1], size):
        part = slice(start, start + size)
        moved, state = State.begin(x[:, part], w[:, part], q[:, part], sums[:, part], rule)
        begun.append((start + moved, state.x, state.w, state.q, state.sums, state.turn))
    if emit is not None:
        emit("kquant.refine_start", wxq=sums[1], wqq=sums[0], codes=q.T)
    blocks, *joined = (torch.cat(same, -1) for same in zip(*begun, strict=True))
    state = State(*joined)
    while len(blocks):
        weight = state.turn % len(x)
        code = state.q[weight, torch.arange(len(blocks), device=x.device)]
        q[weight, blocks] = code
        sums.index_copy_(1, blocks, state.sums)
        if emit is not None:
            emit("kquant.refine", blocks=blocks, weight=weight, code=code,
                 wxq=state.sums[1], wqq=state.sums[0])  # fmt: skip
        moved, state = state.after(state.first_move(rule), rule)
        blocks = blocks.take(moved)
    return sums[1], sums[0]


@dataclass(frozen=True)
class Rule:
    """What codes there are, and whether they are kept in bytes."""

    low: int | None
    high: int
    as_bytes: bool


@dataclass(frozen=True)
class Moves:
    """The next move in each of the sub-blocks that have one.

    block   [moves] which sub-block
    turn    [moves] which weight, counted through all passes
    code    [moves] the code that it moves to
    sums    [2, moves] Σwq² and Σwxq with that
    """

    block: torch.Tensor
    turn: torch.Tensor
    code: torch.Tensor
    sums: torch.Tensor


@dataclass(frozen=True)
class State:
    """Sub-blocks whose codes are being improved.

    x, w, q  [weights, sub-blocks] the weights, their importance and their codes
    sums     [2, sub-blocks] Σwq² and Σwxq
    turn     [sub-blocks] the weight that has moved last, counted through all passes
    """

    x: torch.Tensor
    w: torch.Tensor
    q: torch.Tensor
    sums: torch.Tensor
    turn: torch.Tensor

    @classmethod
    def begin(
        cls,
        x: torch.Tensor,
        w: torch.Tensor,
        q: torch.Tensor,
        sums: torch.Tensor,
        rule: Rule,
    ) -> "tuple[torch.Tensor, State]":
        """Fill the sums, and make the first move where there is one: `after`."""
        none = torch.full_like(x[0], -1, dtype=torch.int64)
        state = cls(x, w, q, sums, none)
        parts = state.parts()
        torch.stack([sum_rows(part) for part in parts], out=sums)
        if rule.as_bytes:  # after the sums
            q.remainder_(256)
            parts = state.parts()
        return state.after(state.first_move(rule, parts), rule)

    def parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """w·q² and w·x·q of each weight, rounded after each product."""
        return (self.w * self.q).mul_(self.q), (self.w * self.x).mul_(self.q)

    def first_move(
        self, rule: Rule, parts: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> Moves:
        """The first one after the last, in one of five passes. `parts` are overwritten."""
        x, q = self.x, self.q
        size, n = x.shape
        wqq, wxq = self.parts() if parts is None else parts
        torch.sub(self.sums[0], wqq, out=wqq)  # of all other weights
        torch.sub(self.sums[1], wxq, out=wxq)
        best = nearest_int_((x * wqq).div_(wxq)).clamp_(rule.low, rule.high)
        at = differing(best, q)  # counted through all weights; few have a better code than theirs
        block, code, w = at % n, best.take(at), self.w.take(at)
        wqq, wxq = wqq.take(at), wxq.take(at)
        allowed = (wxq > 0) & (wqq > 0) if rule.as_bytes else wxq > 0
        wxq = wxq + (w * x.take(at)) * code
        wqq = wqq + (w * code) * code
        was_wqq, was_wxq = self.sums[0].take(block), self.sums[1].take(block)
        better = (wxq * wxq) * was_wqq > (was_wxq * was_wxq) * wqq
        # When it is tried next: in this pass, if its turn is still to come, or in the next.
        last, end = self.turn.take(block), PASSES * size
        turn = last + 1 + (at // n - last - 1) % size
        usable = allowed & (wqq > 0) & better & (turn < end)
        turn = turn.masked_fill_(~usable, end)
        first = torch.full_like(self.turn, end).scatter_reduce_(0, block, turn, "amin")
        chosen = places(usable & (turn == first.take(block)))
        sums = torch.stack([wqq, wxq]).index_select(1, chosen)
        return Moves(block.take(chosen), turn.take(chosen), code.take(chosen), sums)

    def after(self, moves: Moves, rule: Rule) -> "tuple[torch.Tensor, State]":
        """The sub-blocks that have a move, and they alone, copied, with it made."""
        x, w, q = (t.index_select(1, moves.block) for t in (self.x, self.w, self.q))
        each = torch.arange(len(moves.block), device=x.device)
        q[moves.turn % len(q), each] = moves.code.remainder(256) if rule.as_bytes else moves.code
        return moves.block, State(x, w, q, moves.sums, moves.turn)


def places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is true [places], counted through all of it."""
    if mask.device.type == "cpu":  # torch takes ten times as long, here and below
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().squeeze(1)


def differing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where two tensors of a shape differ [places], counted through all of them."""
    if a.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(a.numpy() != b.numpy()))
    return places(a != b)
