"""GPTQ by hand: one row of a few weights, small whole-number inputs, every number visible.

The numbers are those of `qviz.methods.gptq` itself, in float64, as its Trace records them; here
they are put into the order in which a reader does the arithmetic. With three weights all
combinations of levels can be tried, so the best one is known too.

Symbols as in `qviz.methods.gptq`: w weights, ŵ what a weight is rounded to, x one token's inputs,
H = mean of 2·x·xᵀ over the tokens, U the upper factor of H⁻¹ = UᵀU, e = (w − ŵ) / U_jj. Nothing is
added to the diagonal of H, so Σe²/2 is exactly the mean squared output error.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration
from qviz.core.check import require_finite, require_int
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Trace
from qviz.methods.affine import affine
from qviz.methods.gptq import gptq

# Chosen so that every number has at most two decimals and U is rational too. Rounding to nearest
# moves the first two weights in the same direction, and their inputs never differ in sign, so their
# errors add up.
WEIGHTS = (-2.6, -2.7, 3.0)
INPUTS = ((0, 2, 0), (0, 2, 1), (3, 2, 0), (4, 2, 1))
BITS = 3

CONVENTION = "absmax"  # the levels −3 … 3 times s: the easiest to follow by hand
KINDS = ("inputs", "factor", "levels", "round", "divide", "compensate", "end")
COMBINATIONS = 10**5  # more combinations than this are not tried
SAME = 1e-9  # relative: two sums that differ by less differ only by rounding


@dataclass(frozen=True)
class Outcome:
    """A row of weights and its effect on the layer's output.

    weights       the row; codes of its levels, empty for the row as it was given
    outputs       x·w of each token
    misses        the error of each output: output − the output of the original row
    weight_error  Σ(w − ŵ)²
    output_error  the mean over tokens of misses²
    """

    weights: tuple[float, ...]
    codes: tuple[int, ...]
    outputs: tuple[float, ...]
    misses: tuple[float, ...]
    weight_error: float
    output_error: float


@dataclass(frozen=True)
class Moment:
    """One stage of the walk.

    kind        one of `KINDS`
    step        the column that the moment is about; None before the first step and after the last
    weights     the row after this moment: rounded columns as they were rounded, the others moved
    rounded     how many columns have been rounded, this one included from "round" on
    facts       name → number, all that the moment shows
    directions  name → word: "up", "down" or "same" for what moves, "smaller", "same" or "larger"
                for what is compared, "same" or "different" for codes; made of the facts

    What each kind has among its facts (j the step, k a later column):
    inputs      tokens; H_ik of all i ≤ k; first, second: the two inputs whose H_ik has the largest
                magnitude; shared: that H_ik
    factor      U_ik of all i ≤ k
    levels      largest, top, scale: the largest |w|, the last level's number, s = largest / top;
                nearest_k: the level nearest to each weight as it was given
    round       w, position: w and w/s; code, value: what it becomes; lost: w − ŵ; clipped: 1 where
                it lay beyond the last level; nearest: the level nearest to the weight as given
    divide      lost, diagonal: U_jj; e; cost: e²/2, by which this step raises the output error once
                the later columns have moved
    compensate  e; U_k, move_k: −e·U_jk; from_k, to_k: column k before and after; left: how many
                wait; spent: Σe²/2 so far, which is the output error by now; unpaid: the output
                error before this moment
    end         weight_error, output_error of GPTQ; the same of round-to-nearest, nearest_…, and of
                the best combination, best_…; combinations: how many were tried; cost: Σe²/2;
                token: where rounding to nearest is off the most, miss and nearest_miss there
    Those of "round", "divide" and "compensate" also have output_error and weight_error: of the row
    as it is after the moment, and nearest_output_error: that of round-to-nearest with as many
    columns rounded.
    """

    kind: str
    step: int | None
    weights: tuple[float, ...]
    rounded: int
    facts: Mapping[str, float]
    directions: Mapping[str, str]


@dataclass(frozen=True)
class ByHand:
    """A walk by hand.

    weights, inputs  as they were given; bits
    hessian, factor  H and U, as rows
    scale, top       s; the levels are −top·s … top·s
    original, gptq, nearest, best  the row as given, after GPTQ, rounded to nearest, and with the
                     combination of levels whose output error is smallest
    combinations     how many combinations were tried to find the best
    moments          to be stepped through, in the order of the arithmetic
    """

    weights: tuple[float, ...]
    inputs: tuple[tuple[float, ...], ...]
    bits: int
    hessian: tuple[tuple[float, ...], ...]
    factor: tuple[tuple[float, ...], ...]
    scale: float
    top: int
    original: Outcome
    gptq: Outcome
    nearest: Outcome
    best: Outcome
    combinations: int
    moments: tuple[Moment, ...]


def by_hand(
    weights: Sequence[float] = WEIGHTS,
    inputs: Sequence[Sequence[float]] = INPUTS,
    *,
    bits: int = BITS,
) -> ByHand:
    """Round one row by GPTQ and keep every number on the way.

    weights  of the row, 2 to 4 of them
    inputs   tokens, each with one input for each weight
    bits     2 to 4: the levels are −(2^(bits−1) − 1) … 2^(bits−1) − 1 times s

    ValueError for shapes that do not fit, for a row of zeros, and for inputs that do not span all
    columns: without damping such a Hessian has no inverse, and here nothing is added to it.

    >>> walk = by_hand()
    >>> walk.nearest.weights, walk.gptq.weights
    ((-3.0, -3.0, 3.0), (-3.0, -2.0, 2.0))
    >>> [round(x.output_error, 9) for x in (walk.nearest, walk.gptq)]
    [2.2, 0.9]
    """
    w, x = _row(weights), _tokens(inputs, len(weights))
    bits = require_int(bits, "bits", 2, 4)
    trace, calibration = Trace(), _calibration(x)
    options: dict[str, Any] = {"bits": bits, "group_size": None, "convention": CONVENTION}
    made = gptq(w, calibration, damp=0.0, emit=trace, **options)
    # Rounding error may let the factorization of a singular matrix through: so its rank is asked.
    if made.info["damp"] or np.linalg.matrix_rank(x.numpy()) < len(weights):
        raise ValueError(
            f"the {len(x)} tokens do not span all {len(weights)} inputs, so H has no inverse: "
            f"add a token that is not a combination of the others"
        )
    score = _Score(w[0].numpy(), x.numpy())
    top = 2 ** (bits - 1) - 1
    nearest = score.of_codes(affine(w, **options))
    found = score.of_codes(made)
    scale = float(trace.named("gptq.group")[0]["scale"])
    best, combinations = score.best(scale, top)
    parts = _Parts(w[0].numpy(), trace, score, found, nearest, best, combinations, scale, top)
    return ByHand(
        weights=_numbers(w[0]),
        inputs=tuple(_numbers(token) for token in x),
        bits=bits,
        hessian=tuple(_numbers(row) for row in parts.h),
        factor=tuple(_numbers(row) for row in parts.u),
        scale=scale,
        top=top,
        original=score.of(score.w, ()),
        gptq=found,
        nearest=nearest,
        best=best,
        combinations=combinations,
        moments=parts.moments(),
    )


def _row(weights: Sequence[float]) -> torch.Tensor:
    """[1, n] float64."""
    w = torch.tensor([list(weights)], dtype=torch.float64)
    if not 2 <= w.shape[1] <= 4:
        raise ValueError(f"by hand a row has 2 to 4 weights, got {w.shape[1]}")
    require_finite(w, "weights")
    if not w.any():
        raise ValueError("all weights are 0, so there is nothing to round: change one of them")
    return w


def _tokens(inputs: Sequence[Sequence[float]], n: int) -> torch.Tensor:
    """[tokens, n] float64."""
    if not inputs or any(len(token) != n for token in inputs):
        raise ValueError(
            f"each token needs {n} inputs, one for each weight; got "
            f"{[len(token) for token in inputs]}"
        )
    x = torch.tensor([list(token) for token in inputs], dtype=torch.float64)
    require_finite(x, "inputs")
    silent = (x == 0).all(0).nonzero().flatten().tolist()
    if silent:
        raise ValueError(
            f"input {silent[0]} is 0 in every token, so its weight does nothing: give it a value "
            f"in at least one token"
        )
    return x


def _calibration(x: torch.Tensor) -> Calibration:
    return Calibration(
        inputs=x.float(),
        hessian=2 * (x.T @ x) / len(x),
        act_absmax=x.abs().amax(0).float(),
        act_absmean=x.abs().mean(0).float(),
        tokens=len(x),
        layer="by hand",
    )


class _Score:
    """A row's effect on the outputs, compared with the original row's."""

    def __init__(self, w: np.ndarray, x: np.ndarray) -> None:
        self.w, self.x = w, x

    def of(self, row: np.ndarray, codes: tuple[int, ...]) -> Outcome:
        outputs = self.x @ row
        misses = outputs - self.x @ self.w
        return Outcome(
            weights=_numbers(row),
            codes=codes,
            outputs=_numbers(outputs),
            misses=_numbers(misses),
            weight_error=float(np.square(row - self.w).sum()),
            output_error=float(np.square(misses).mean()),
        )

    def of_codes(self, made: QuantizedTensor) -> Outcome:
        codes = tuple(int(code) for code in made.codes[0])
        return self.of(made.dequantize()[0].double().numpy(), codes)

    def best(self, scale: float, top: int) -> tuple[Outcome, int]:
        """The combination of levels whose output error is smallest, and how many there are."""
        count = (2 * top + 1) ** len(self.w)
        if count > COMBINATIONS:
            raise ValueError(
                f"{count} combinations of levels are too many to try: take fewer weights or bits"
            )
        codes = np.array(list(itertools.product(range(-top, top + 1), repeat=len(self.w))))
        misses = (scale * codes - self.w) @ self.x.T  # [combinations, tokens]
        least = codes[np.square(misses).sum(1).argmin()]
        return self.of(scale * least, tuple(int(code) for code in least)), count


@dataclass(frozen=True)
class _Parts:
    """The facts that the stages are made of."""

    w: np.ndarray
    trace: Trace
    score: _Score
    found: Outcome
    nearest: Outcome
    best: Outcome
    combinations: int
    scale: float
    top: int

    @property
    def h(self) -> np.ndarray:
        return self.trace.named("gptq.hessian")[0]["hessian"].numpy()

    @property
    def u(self) -> np.ndarray:
        return self.trace.named("gptq.cholesky")[0]["hinv_chol"].numpy()

    def moments(self) -> tuple[Moment, ...]:
        return (self._inputs(), self._factor(), self._levels(), *self._steps(), self._end())

    def _moment(
        self,
        kind: str,
        row: np.ndarray,
        facts: dict[str, float],
        directions: dict[str, str] | None = None,
        step: int | None = None,
        rounded: int = 0,
    ) -> Moment:
        return Moment(
            kind,
            step,
            _numbers(row),
            rounded,
            MappingProxyType(facts),
            MappingProxyType(directions or {}),
        )

    def _inputs(self) -> Moment:
        h, n = self.h, len(self.w)
        pairs = [(i, k) for i in range(n) for k in range(i + 1, n)]
        first, second = max(pairs, key=lambda pair: abs(h[pair]))
        facts = {"tokens": len(self.score.x), **_entries("H", h)}
        facts |= {"first": first, "second": second, "shared": float(h[first, second])}
        return self._moment("inputs", self.w, facts, {"together": _way(facts["shared"])})

    def _factor(self) -> Moment:
        return self._moment("factor", self.w, _entries("U", self.u))

    def _levels(self) -> Moment:
        facts = {"largest": float(np.abs(self.w).max()), "top": self.top, "scale": self.scale}
        facts |= {f"nearest_{k}": value for k, value in enumerate(self.nearest.weights)}
        return self._moment("levels", self.w, facts)

    def _steps(self) -> list[Moment]:
        row, made, spent = self.w.copy(), [], 0.0
        for j, event in enumerate(self.trace.named("gptq.column")):
            live, value, e = (float(event[name]) for name in ("live", "value", "error"))
            u = event["hinv_row"].numpy()  # [n − j] U_jj, U_j,j+1, …
            row, spent = row.copy(), spent + e * e / 2
            row[j] = value
            made += [
                self._rounding(j, live, value, int(event["codes"]), row),
                self._division(j, live - value, float(u[0]), e, row),
            ]
            before, row = row, row.copy()
            row[j + 1 :] = before[j + 1 :] - e * u[1:]
            made.append(self._compensation(j, e, u, before, row, spent))
        return made

    def _so_far(self, row: np.ndarray, rounded: int) -> dict[str, float]:
        now = self.score.of(row, ())
        plain = self.w.copy()
        plain[:rounded] = self.nearest.weights[:rounded]
        return {
            "weight_error": now.weight_error,
            "output_error": now.output_error,
            "nearest_output_error": self.score.of(plain, ()).output_error,
        }

    def _rounding(self, j: int, live: float, value: float, code: int, row: np.ndarray) -> Moment:
        position = live / self.scale
        nearest = self.nearest.weights[j]
        facts = {
            "w": live,
            "position": position,
            "code": code,
            "value": value,
            "lost": live - value,
            "nearest": nearest,
            "clipped": float(abs(position) > self.top + 0.5 + SAME),
            **self._so_far(row, j + 1),
        }
        directions = {
            "rounded": _way(value - live),
            "moved_before": _way(live - self.w[j]),
            "beside_nearest": _way(value - nearest),
        }
        return self._moment("round", row, facts, directions, j, j + 1)

    def _division(self, j: int, lost: float, diagonal: float, e: float, row: np.ndarray) -> Moment:
        facts = {
            "lost": lost,
            "diagonal": diagonal,
            "e": e,
            "cost": e * e / 2,
            **self._so_far(row, j + 1),
        }
        return self._moment("divide", row, facts, {"error": _compared(abs(e), abs(lost))}, j, j + 1)

    def _compensation(
        self,
        j: int,
        e: float,
        u: np.ndarray,
        before: np.ndarray,
        row: np.ndarray,
        spent: float,
    ) -> Moment:
        later = range(j + 1, len(row))
        unpaid = self.score.of(before, ()).output_error
        facts: dict[str, float] = {"e": e, "left": len(later), "spent": spent, "unpaid": unpaid}
        for k in later:
            facts |= {
                f"U_{k}": float(u[k - j]),
                f"move_{k}": float(-e * u[k - j]),
                f"from_{k}": float(before[k]),
                f"to_{k}": float(row[k]),
            }
        so_far = self._so_far(row, j + 1)
        directions = {f"move_{k}": _way(facts[f"move_{k}"]) for k in later}
        directions["output_error"] = _compared(so_far["output_error"], unpaid)
        return self._moment("compensate", row, facts | so_far, directions, j, j + 1)

    def _end(self) -> Moment:
        errors = [float(event["error"]) for event in self.trace.named("gptq.column")]
        token = int(np.abs(self.nearest.misses).argmax())
        facts: dict[str, float] = {
            "weight_error": self.found.weight_error,
            "output_error": self.found.output_error,
            "nearest_weight_error": self.nearest.weight_error,
            "nearest_output_error": self.nearest.output_error,
            "best_weight_error": self.best.weight_error,
            "best_output_error": self.best.output_error,
            "combinations": self.combinations,
            "cost": sum(e * e for e in errors) / 2,
            "token": token,
            "miss": self.found.misses[token],
            "nearest_miss": self.nearest.misses[token],
        }
        directions = {
            "weight_error": _compared(facts["weight_error"], facts["nearest_weight_error"]),
            "output_error": _compared(facts["output_error"], facts["nearest_output_error"]),
            "beside_best": _compared(facts["output_error"], facts["best_output_error"]),
            "miss": _compared(abs(facts["miss"]), abs(facts["nearest_miss"])),
            "codes": "same" if self.found.codes == self.nearest.codes else "different",
        }
        row = np.array(self.found.weights)
        return self._moment("end", row, facts, directions, rounded=len(row))


def _entries(name: str, matrix: np.ndarray) -> dict[str, float]:
    """The upper half, by subscripts."""
    n = len(matrix)
    return {f"{name}_{i}{k}": float(matrix[i, k]) for i in range(n) for k in range(i, n)}


def _way(change: float) -> str:
    """The direction of a change; a change of rounding error only has none."""
    if abs(change) <= SAME:
        return "same"
    return "up" if change > 0 else "down"


def _compared(one: float, other: float) -> str:
    if abs(one - other) <= SAME * max(abs(one), abs(other), 1.0):
        return "same"
    return "larger" if one > other else "smaller"


def _numbers(values: torch.Tensor | np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
