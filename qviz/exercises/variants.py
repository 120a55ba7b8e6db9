"""GPTQ as one plain loop with switches: right with the defaults, otherwise a known mistake.

The plain loop is GPTQ without blocks: round a column, move all later ones. With r_jk = U_jk / U_jj
it says w_k ← w_k − (w_j − q_j)·r_jk, so any mistake in the factor, the division or the extent of
the compensation is another row r_j. `Bench` runs variants on one layer beside what a
learner's function gave.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from qviz.core.agreement import TIE, Agreement, agreement
from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import Levels
from qviz.methods.gptq import FAILURES, GroupPlan, Levelling, inverse_cholesky

OFF_GRID = -(10**6)  # the code of a value that is not a level, far from every real code
ON_GRID = 1e-2  # spacings: a value this close to a level is that level


@dataclass(frozen=True, eq=False)
class Seen:
    """What a learner's function gave, [out, in] in the order in which it gave the columns.

    codes   int32, counted as the true run counts them; None if values were given
    values  float64; None if codes were given
    known   [in] bool: columns that were given at all
    factor  [in, in] what was emitted as U, or None
    """

    codes: torch.Tensor | None
    values: torch.Tensor | None
    known: torch.Tensor
    factor: torch.Tensor | None = None

    @property
    def matrix(self) -> torch.Tensor:
        matrix = self.values if self.codes is None else self.codes
        assert matrix is not None
        return matrix


Cut = Callable[[torch.Tensor], torch.Tensor]

# name → the rounding of a position, and how far from there the midpoint between two codes lies
ROUNDINGS: dict[str, tuple[Cut, Cut]] = {
    "nearest": (torch.round, torch.zeros_like),
    "floor": (torch.floor, lambda x: torch.full_like(x, -0.5)),
    "truncation": (torch.trunc, lambda x: -0.5 * torch.sign(x)),
    "ceil": (torch.ceil, lambda x: torch.full_like(x, 0.5)),
}


@dataclass(frozen=True)
class Variant:
    """The plain loop with its switches; with the defaults it is GPTQ.

    order      "asked", "given" (left to right), "descending" or "ascending" diag H
    damping    "relative", "none", "absolute" or "everywhere" (on all of H)
    factor     name of the matrix that is used as U, see `Bench.factor`; "none": no compensation
    divide     whether the error is divided by the factor's diagonal
    sign       of the compensation; −1: the wrong one
    keep       masks the factor [in, in]: 0 where an error is not carried to a column
    rounding   one of `ROUNDINGS`
    clamp      codes are kept in their range
    plan       options of the groups that differ from the asked ones
    snapshot   steps between two copies of the weights that ranges are taken from; None: the live
               weights
    per_tensor a group's range is that of all rows
    shift      of the zero point
    placed     "undone", "steps" or "twice": in which column of the result a step's codes stand
    shown      "value", "live" or "mirrored" (2q − w): what is returned as values
    dead       columns without input are treated separately
    counts     whether they count in ranges that are taken beforehand; None: as in GPTQ
    detail     which form of the mistake this is
    """

    name: str = "gptq"
    order: str = "asked"
    damping: str = "relative"
    factor: str = "true"
    divide: bool = True
    sign: int = 1
    keep: Cut | None = None
    rounding: str = "nearest"
    clamp: bool = True
    plan: Mapping[str, Any] = field(default_factory=dict)
    snapshot: int | None = None
    per_tensor: bool = False
    shift: int = 0
    placed: str = "undone"
    shown: str = "value"
    dead: bool = True
    counts: bool | None = None
    detail: str = ""


class Bench:
    """One layer and the options asked for, on which variants are tried.

    weight   [out, in] float64, and hessian [in, in] float64
    options  all of `gptq`
    truth    what the true run returned
    """

    def __init__(
        self,
        weight: torch.Tensor,
        hessian: torch.Tensor,
        options: Mapping[str, Any],
        truth: QuantizedTensor,
    ) -> None:
        self.weight, self.hessian = weight.double(), hessian.double().to(weight.device)
        self.options = {**options, "in_features": weight.shape[1]}
        self.damp = float(truth.info["damp"])
        self._factors: dict[tuple[str, str, bool], tuple[torch.Tensor, ...] | None] = {}
        self._half = 2 ** (int(options["bits"]) - 1)
        assert isinstance(truth.grid, Affine)
        self._true_half = self._half if truth.grid.qmin < 0 else 0

    def offset(self, grid: Affine) -> int:
        """The number to add to codes of this grid so that they count like the true run's."""
        return (self._half if grid.qmin < 0 else 0) - self._true_half

    # ------------------------------------------------------------------- what is fixed beforehand

    def setup(self, v: Variant) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """perm [in], damped H and U [in, in] in the order of the steps; None where H⁻¹ fails."""
        asked = "descending" if self.options["act_order"] else "given"
        order = asked if v.order == "asked" else v.order
        key = (order, v.damping, v.dead)
        if key not in self._factors:
            self._factors[key] = self._factor(*key)
        found = self._factors[key]
        return None if found is None else (found[0], found[1], found[2])

    def _factor(self, order: str, damping: str, dead: bool) -> tuple[torch.Tensor, ...] | None:
        h = self.hessian.clone()
        diagonal = h.diagonal()  # a view: h changes with it
        if dead:
            diagonal[diagonal == 0] = 1
        perm = torch.arange(len(h), device=h.device)
        if order != "given":
            perm = torch.argsort(diagonal, descending=order == "descending", stable=True)
        mean = float(diagonal.mean())
        added = {"absolute": self.damp, "none": 0.0}
        (h if damping == "everywhere" else diagonal).add_(added.get(damping, self.damp * mean))
        h = h[perm][:, perm]
        u = inverse_cholesky(h)
        return None if u is None else (perm, h, u)

    def factors_undamped(self) -> bool:
        """Whether H has a factor without damping, in float64 and in float32."""
        found = self.setup(Variant(damping="none"))
        return found is not None and inverse_cholesky(found[1].float()) is not None

    def factor(self, v: Variant) -> torch.Tensor | None:
        """[in, in] the matrix that this variant would take as U."""
        found = self.setup(v)
        if found is None:
            return None
        _, h, u = found
        if v.factor in FAILURES:
            return FAILURES[v.factor](u)
        if v.factor == "of_hessian":
            upper: torch.Tensor = torch.linalg.cholesky(h, upper=True)
            return upper
        if v.factor == "reversed":  # H = L·Lᵀ, H⁻¹ = L⁻ᵀ·L⁻¹
            lower = torch.linalg.cholesky(h)
            eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
            inverse: torch.Tensor = torch.linalg.solve_triangular(lower, eye, upper=False)
            return inverse.T
        if v.factor == "float32":
            single = _in_float32(h)
            return u if single is None else single
        return u.T if v.factor == "lower" else u

    def spreading(self, v: Variant) -> torch.Tensor | None:
        """The factor, set to 0 where nothing is compensated; None for no compensation at all."""
        if v.factor in ("none", "lower"):
            return None
        factor = self.factor(v)
        assert factor is not None
        return factor if v.keep is None else v.keep(factor.clone())

    # --------------------------------------------------------------------------------- the loop

    def drift(self, rows: torch.Tensor) -> torch.Tensor:
        """[in] how many spacings float32 moves a weight by before each step rounds it.

        The maximum over these rows while U computed in float32, by way of the inverse, gives the
        same codes as the exact U. Where H is close to singular the last columns move by more than
        the width of a tie. 0 once all rows differ.
        """
        found = self.setup(Variant())
        if found is None:
            return self.hessian.new_zeros(len(self.hessian))
        perm, most = found[0], []
        exact, single = (_Run(self, Variant(factor=f), perm, rows) for f in ("true", "float32"))
        same = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        for j in range(len(perm)):
            exact.step(j)
            single.step(j)
            moved = (exact.position[j] - single.position[j]).abs()
            most.append(torch.where(same, moved, 0.0).amax())
            same &= exact.codes[j] == single.codes[j]
        return torch.stack(most)

    def factors_in_float32(self) -> bool:
        """Whether the inverse of the damped H, found in float32, has a factor."""
        found = self.setup(Variant())
        return found is not None and _in_float32(found[1]) is not None

    def follow(self, v: Variant, seen: Seen, rows: torch.Tensor, misses: float) -> Agreement | None:
        """Run a variant on some rows beside what was seen. None as soon as more than a share of
        `misses` of these rows differs other than at a tie."""
        found = self.setup(v)
        if found is None:
            return None
        perm, n = found[0], len(found[0])
        steps = torch.arange(n, device=perm.device)
        place = {"undone": perm, "steps": steps, "twice": torch.argsort(perm)}[v.placed]
        theirs = seen.matrix[rows][:, place].T  # [in, rows] in the order of the variant's steps
        check = 16
        try:
            run = _Run(self, v, perm, rows)
            for j in range(n):
                run.step(j)
                if j + 1 == min(check, n):
                    check *= 2
                    found_so_far = run.compare(theirs, seen, place, j + 1)
                    if len(found_so_far.unexplained) > misses * len(rows):
                        return None
        except ValueError:  # of the levels: this variant's numbers have overflowed
            return None
        return found_so_far


def _in_float32(h: torch.Tensor) -> torch.Tensor | None:
    """U as most people compute it: the inverse in float32, then its factor; None where that
    fails."""
    inverse, failed = torch.linalg.inv_ex(h.float())
    upper, indefinite = torch.linalg.cholesky_ex(inverse, upper=True)
    return None if bool(failed) or bool(indefinite) else upper.to(h.dtype)


class _Run:
    """A variant while it runs, all matrices [in, rows] in the order of its steps."""

    def __init__(self, bench: Bench, v: Variant, perm: torch.Tensor, rows: torch.Tensor) -> None:
        self.v, self.perm = v, perm
        self.factor = bench.spreading(v)
        options = {**bench.options, **v.plan}
        # What follows the range of all rows needs all of them until the codes are compared.
        self.rows = rows
        weight = bench.weight if v.per_tensor else bench.weight[rows]
        self.w = weight.T[perm].clone()
        if v.dead:
            self.w[bench.hessian.diagonal()[perm] == 0] = 0
        plan = {f.name: options[f.name] for f in fields(GroupPlan)}
        plan["stale_groups"] = False  # `snapshot` does that
        stale = options["stale_groups"] and v.snapshot is None
        self.every = options["block_size"] if stale else v.snapshot
        self.plan = GroupPlan(**plan)
        self.levels = Levelling(self.plan, perm)
        self.source = self.w
        self.codes = torch.empty_like(self.w, dtype=torch.int32)
        self.position, self.live = torch.empty_like(self.w), torch.empty_like(self.w)
        self.value, self.scale = torch.empty_like(self.w), torch.empty_like(self.w)
        self.bench = bench
        if self.plan.upfront:
            self._fit_upfront(weight)

    def _fit_upfront(self, weight: torch.Tensor) -> None:
        # As in gptq: whether a column without input counts in a range.
        counts = self.v.counts
        if counts is None:
            counts = self.plan.group_size is None or self.plan.convention == "compressed_tensors"
        w = weight.T[self.perm] if counts else self.w
        for group in range(self.plan.groups):
            self._fit(group, w[self.levels.members(group)])

    def _fit(self, group: int, weights: torch.Tensor) -> None:
        if self.v.per_tensor:
            ends = torch.stack([weights.amin(), weights.amax()])
            weights = ends.unsqueeze(1).expand(2, weights.shape[1])
        self.levels.fit(group, weights, None)
        self.levels.check(group)

    def _found(self, j: int) -> Levels:
        found = self.levels[j]
        if not self.v.shift or found.grid.zero_point is None:
            return found
        return replace(
            found, grid=replace(found.grid, zero_point=found.grid.zero_point + self.v.shift)
        )

    def step(self, j: int) -> None:
        """Round column j and move the later ones."""
        if self.every is not None and j % self.every == 0:
            self.source = self.w.clone()
        if self.levels.missing(j):
            source = self.w if self.every is None else self.source
            self._fit(j // self.plan.size, source[j : j + self.plan.size])
        found, live = self._found(j), self.w[j]
        grid = found.grid
        position = found.position(live.view(-1, 1, 1))
        cut, lean = ROUNDINGS[self.v.rounding]
        codes = found.round_(cut(position))
        if self.v.clamp:
            codes.clamp_(grid.qmin, grid.qmax)
        value = grid.decode(codes).view(-1)
        shift = self.bench.offset(grid)
        self.codes[j] = codes.view(-1).int() + shift
        # Where the position lacks the zero point, the codes have it.
        zero = 0.0 if found.zero_first or grid.zero_point is None else grid.zero_point.view(-1)
        self.position[j] = (position + lean(position)).view(-1) + zero + shift
        self.live[j], self.value[j], self.scale[j] = live, value, grid.scale.view(-1)
        if self.factor is not None:
            divisor = float(self.factor[j, j]) if self.v.divide else 1.0
            ratio = self.factor[j, j + 1 :] * (self.v.sign / divisor)
            self.w[j + 1 :].addr_(ratio, live - value, alpha=-1)

    def compare(self, theirs: torch.Tensor, seen: Seen, place: torch.Tensor, n: int) -> Agreement:
        """Agreement of the first n steps with what was seen there."""
        pick = self.rows if self.v.per_tensor else slice(None)
        ours, at = self.codes[:n, pick], self.position[:n, pick]
        if seen.codes is not None:
            given = theirs[:n]
        else:
            live, value, scale = self.live[:n, pick], self.value[:n, pick], self.scale[:n, pick]
            shown = {"value": value, "live": live, "mirrored": 2 * value - live}[self.v.shown]
            given = nearest_codes(theirs[:n], shown, scale, ours)
        given = torch.where(seen.known[place[:n]].unsqueeze(1), given, ours)
        return agreement(ours.T, given.T, at.T, tolerance=TIE)


def nearest_codes(
    values: torch.Tensor, shown: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor
) -> torch.Tensor:
    """The codes (int32) that values stand for, where `shown` is what `codes` stand for.

    All of one shape. OFF_GRID where a value is none of the levels, and for NaN.
    """
    steps = (values - shown) / scale
    whole = steps.round()
    near = (steps - whole).abs() <= ON_GRID  # false for NaN
    near &= whole.abs() < -OFF_GRID / 2
    moved = torch.where(near, whole, torch.zeros_like(whole)).int()
    return torch.where(near, codes + moved, OFF_GRID)
