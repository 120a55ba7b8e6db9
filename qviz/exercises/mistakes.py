"""Known mistakes in GPTQ, each as an algorithm that can be run.

A diagnosis is never guessed: every mistake is a small change of one plain loop, `Bench.follow`
runs them all beside what the learner's function gave, and those that give the same are named.
The plain loop is GPTQ without blocks: round a column, move all later ones. With r_jk = U_jk / U_jj
it says w_k ← w_k − (w_j − q_j)·r_jk, so that whatever is wrong with the factor, the division or the
extent of the compensation is another row r_j.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from qviz.core.agreement import TIE, Agreement, agreement
from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import CONVENTIONS, Levels
from qviz.methods.gptq import FAILURES, GroupPlan, Levelling, inverse_cholesky

OFF_GRID = -(10**6)  # the code of a value that is no level: a neighbour of none
ON_GRID = 1e-2  # steps between a value and a level, up to which it is that level
ROWS = 64  # rows in which mistakes are tried
MISSES = 0.1  # share of the rows that may part from a mistake that is named all the same

EXPLANATIONS = {
    "no_compensation": "columns are rounded where they lie, and no error is carried over to later "
    "columns. After each column: W[:, j+1:] −= outer(e_j, U[j, j+1:]). If that is there, e_j is 0: "
    "w_j = W[:, j] is a view, which is overwritten with q_j before it is subtracted; copy it",
    "lower_factor": "row j of the lower factor L of H⁻¹ is 0 right of the diagonal, so nothing is "
    "compensated. Take row j of U = Lᵀ (column j of L)",
    "no_update": "H⁻¹ of the whole matrix is used at every step, although the columns already "
    "rounded are fixed. Take row j of its upper Cholesky factor U instead of row j of H⁻¹",
    "double_division": "the compensation is divided twice by U_jj: e_j = (w_j − q_j) / U_jj holds "
    "the one division; then w_k −= e_j·U_jk",
    "as_printed": "as many articles print it: H⁻¹ is never updated, and divided twice by its "
    "diagonal. Take U, the upper Cholesky factor of H⁻¹, and divide once",
    "no_division": "the error is not divided: e_j = (w_j − q_j) / U_jj",
    "factor_of_hessian": "the factor is that of H, not of its inverse: H⁻¹ = UᵀU",
    "other_factor": "the factor is the inverse of H's own, with H⁻¹ = U·Uᵀ: that is for the "
    "columns from right to left. From left to right H⁻¹ = UᵀU is needed",
    "wrong_sign": "the compensation has the wrong sign: w_k −= e_j·U_jk with e_j = (w_j − q_j) / "
    "U_jj; w − q, not q − w",
    "within_block_only": "errors are carried on within a block alone. After each block: "
    "W[:, stop:] −= E @ U[start:stop, stop:]",
    "update_skips_column": "the update after a block leaves out the block's next column: it "
    "begins at `stop`, not at stop + 1",
    "update_skips_error": "the update after a block leaves out the error of its last column: "
    "all of E and of U[start:stop] belong to it",
    "compensation_skips_column": "the compensation leaves out the very next column: it begins at "
    "j + 1, not at j + 2",
    "no_damping": "H is not damped: add damp times the mean of its diagonal to the diagonal before "
    "inverting",
    "absolute_damping": "`damp` itself is added to the diagonal of H: it is a fraction of the mean "
    "of the diagonal",
    "damping_everywhere": "the damping is added to all of H: it belongs on the diagonal alone, "
    "H[j, j] += damp * mean",
    "floor": "codes are rounded down (floor, or a cast to integer) instead of to the nearest level",
    "truncation": "codes are cut towards zero instead of being rounded to the nearest level",
    "ceil": "codes are rounded up instead of to the nearest level",
    "no_clamp": "codes are not clamped to the range of their bits",
    "static_groups": "a group's levels come from the original weights: take them when the group is "
    "reached, from the columns as compensated by then",
    "live_groups": "a group's levels come from the compensated weights: this run asks for the "
    "original ones (static groups)",
    "stale_groups": "a group's levels are taken from weights that lack the compensation of the "
    "current block, as in the reference code: take them from the columns as they are by then",
    "another_group_size": "the groups have another size than was asked for: is group_size a "
    "parameter of your function?",
    "whole_row": "one scale is used for a whole row: each group has its own",
    "per_tensor": "a group's range is taken over all rows: each row has its own levels",
    "symmetric": "the levels are symmetric; asymmetric ones were asked for",
    "asymmetric": "the levels are asymmetric; symmetric ones were asked for",
    "another_convention": "the levels follow another convention than was asked for",
    "no_order": "the columns are rounded from left to right: act_order asks for descending diag H",
    "order_unasked": "the columns are rounded in descending order of diag H, which was not asked",
    "ascending_order": "the columns are rounded in ascending order of diag H: descending is asked",
    "order_not_undone": "the columns came back in the order of the steps: undo the permutation, "
    "codes[:, argsort(perm)]",
    "order_applied_twice": "the permutation was applied again instead of undone: "
    "codes[:, argsort(perm)], not codes[:, perm]",
    "codes_shifted": "all codes are moved by the same number: count them from 0, or around 0 from "
    "−2^(bits − 1)",
    "zero_point_off_by_one": "the zero point is off by one",
    "transposed": "the matrix came back transposed: [out, in] is asked, rows are outputs",
    "rounded_moved": "the column just rounded was compensated too, and became 2q − w: move only "
    "the columns from j + 1 on",
    "not_rounded": "the compensated weights came back, not what they were rounded to: keep q_j",
    "dead_columns": "columns whose input was always 0 were not set apart: their diag H becomes 1, "
    "and they are rounded as zeros",
    "dead_in_ranges": "columns whose input was always 0 count in a range where they should not, or "
    "do not where they should: a whole row's range is taken before they become 0, as in the "
    "reference code, a group's after",
}


@dataclass(frozen=True)
class Mistake:
    """A known mistake that gives what the learner's function gave.

    name         a key of `EXPLANATIONS`
    explanation  what happens, and what to change
    details      what was varied, where the mistake has several forms (conventions, block sizes)
    agreement    of the mistake's run with the learner's, in the rows that were tried; None where
                 it gives no codes but an error
    """

    name: str
    explanation: str
    details: tuple[str, ...]
    agreement: Agreement | None

    def __str__(self) -> str:
        more = f" ({', '.join(self.details)})" if self.details else ""
        return f"{self.name.replace('_', ' ')}{more}: {self.explanation}"


def named(name: str, found: Agreement | None = None, details: tuple[str, ...] = ()) -> Mistake:
    """The mistake of this name."""
    return Mistake(name, EXPLANATIONS[name], details, found)


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

# name → what is done to a position, and how far from there the middle between two codes lies
ROUNDINGS: dict[str, tuple[Cut, Cut]] = {
    "nearest": (torch.round, torch.zeros_like),
    "floor": (torch.floor, lambda x: torch.full_like(x, -0.5)),
    "truncation": (torch.trunc, lambda x: -0.5 * torch.sign(x)),
    "ceil": (torch.ceil, lambda x: torch.full_like(x, 0.5)),
}


@dataclass(frozen=True)
class Variant:
    """The plain loop with its switches; as it is by default it is GPTQ.

    order      "asked", "given" (left to right), "descending" or "ascending" diag H
    damping    "relative", "none", "absolute" or "everywhere" (on all of H)
    factor     name of the matrix that is used as U, see `Bench.factor`; "none": no compensation
    divide     whether the error is divided by the factor's diagonal
    sign       of the compensation; −1: the wrong one
    keep       masks the factor [in, in]: 0 where an error is not carried to a column
    rounding   one of `ROUNDINGS`
    clamp      codes are kept in their range
    plan       options of the groups that differ from the asked ones
    snapshot   steps between two copies of the weights from which ranges are taken; None: live ones
    per_tensor a group's range is that of all rows
    shift      of the zero point
    placed     "undone", "steps" or "twice": in which column of the result a step's codes stand
    shown      "value", "live" or "mirrored" (2q − w): what is given back as values
    dead       columns without input are set apart
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
        """What is added to codes of this grid so that they count as the true run's."""
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
        """The factor with what is not compensated set to 0; None for no compensation at all."""
        if v.factor in ("none", "lower"):
            return None
        factor = self.factor(v)
        assert factor is not None
        return factor if v.keep is None else v.keep(factor.clone())

    # --------------------------------------------------------------------------------- the loop

    def drift(self, rows: torch.Tensor) -> torch.Tensor:
        """[in] steps of a level by which float32 moves a weight before each step rounds it.

        The most over these rows, as long as their codes are the same with U found in float32, by
        way of the inverse, as with the exact one. Where H is close to singular the last columns
        move by more than a tie is wide; 0 where all rows have parted.
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
        """Run a variant on some rows beside what was seen; None as soon as more than a share of
        `misses` of these rows has parted from it other than at a tie."""
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
        except ValueError:  # of the levels: this variant has left the range of numbers
            return None
        return found_so_far

    def candidates(self, values: bool) -> Iterator[Variant]:
        """Every known mistake that can be made on this layer with these options; some can be
        seen in values alone."""
        o = self.options
        yield from _compensation(int(o["block_size"]), len(self.hessian))
        yield from _order(bool(o["act_order"]))
        yield from (Variant(name, rounding=name) for name in ROUNDINGS if name != "nearest")
        yield Variant("no_clamp", clamp=False)
        yield from _levels(o)
        for shift in (-1, 1):
            yield Variant("zero_point_off_by_one", shift=shift, detail=f"{shift:+d}")
        if values:
            yield Variant("rounded_moved", shown="mirrored")
            yield Variant("not_rounded", shown="live")
        if bool((self.hessian.diagonal() == 0).any()):
            yield Variant("dead_columns", dead=False)
            yield from (Variant("dead_in_ranges", counts=counts) for counts in (False, True))


def _in_float32(h: torch.Tensor) -> torch.Tensor | None:
    """U as most would find it: the inverse in float32, then its factor; None where that fails."""
    inverse, failed = torch.linalg.inv_ex(h.float())
    upper, indefinite = torch.linalg.cholesky_ex(inverse, upper=True)
    return None if bool(failed) or bool(indefinite) else upper.to(h.dtype)


def _compensation(block: int, n: int) -> Iterator[Variant]:
    """Mistakes in the factor, the division, the damping and the extent of the compensation."""
    yield Variant("no_compensation", factor="none")
    yield Variant("lower_factor", factor="lower")
    yield from (Variant(name, factor=name) for name in FAILURES)
    yield Variant("no_division", divide=False)
    yield Variant("factor_of_hessian", factor="of_hessian")
    yield Variant("other_factor", factor="reversed")
    yield Variant("wrong_sign", sign=-1)
    yield Variant("no_damping", damping="none")
    yield Variant("absolute_damping", damping="absolute")
    yield Variant("damping_everywhere", damping="everywhere")
    yield Variant("compensation_skips_column", keep=_skip_next)
    for size in sorted({block, 128}):
        if size < n:
            detail = f"blocks of {size}"
            yield Variant("within_block_only", keep=_within(size), detail=detail)
            yield Variant("update_skips_column", keep=_skip_column(size), detail=detail)
            yield Variant("update_skips_error", keep=_skip_error(size), detail=detail)


def _order(asked: bool) -> Iterator[Variant]:
    if not asked:
        yield Variant("order_unasked", order="descending")
        return
    yield Variant("no_order", order="given")
    yield Variant("ascending_order", order="ascending")
    yield Variant("order_not_undone", placed="steps")
    yield Variant("order_applied_twice", placed="twice")


def _levels(options: Mapping[str, Any]) -> Iterator[Variant]:
    """Mistakes in what the levels are taken from, and by which rule."""
    size, n = options["group_size"], options["in_features"]
    if size is not None:
        live = {"static_groups": False, "stale_groups": False}
        if options["static_groups"] or options["stale_groups"]:
            yield Variant("live_groups", plan=live)
        if not options["static_groups"]:
            static = {"static_groups": True, "stale_groups": False}
            yield Variant("static_groups", plan=static, detail="groups of columns")
        if options["act_order"]:
            yield Variant("static_groups", plan=live, snapshot=n, detail="groups of steps")
        for block in sorted({options["block_size"], 128}):
            if size < min(block, n) and not options["stale_groups"]:
                detail = f"blocks of {block}"
                yield Variant("stale_groups", plan=live, snapshot=block, detail=detail)
        whole = {"group_size": None, "stale_groups": False}
        yield Variant("whole_row", plan=whole)
    for another in (16, 32, 64, 128, 256):
        if another not in (size, n) and n % another == 0:
            plan = {"group_size": another}
            yield Variant("another_group_size", plan=plan, detail=str(another))
    if not options["mse"]:
        yield Variant("per_tensor", per_tensor=True)
    mode = bool(options["symmetric"])
    for name, rules in CONVENTIONS.items():
        if name != options["convention"] and (rules.symmetric if mode else rules.asymmetric):
            yield Variant("another_convention", plan={"convention": name}, detail=name)
        if rules.asymmetric if mode else rules.symmetric:
            other = {"symmetric": not mode, "convention": name}
            yield Variant("asymmetric" if mode else "symmetric", plan=other, detail=name)


def _skip_next(ratio: torch.Tensor) -> torch.Tensor:
    ratio.diagonal(1).zero_()
    return ratio


def _within(block: int) -> Cut:
    def keep(ratio: torch.Tensor) -> torch.Tensor:
        number = torch.arange(len(ratio), device=ratio.device) // block
        return ratio.masked_fill_(number.unsqueeze(1) != number, 0.0)

    return keep


def _skip_column(block: int) -> Cut:
    def keep(ratio: torch.Tensor) -> torch.Tensor:
        for stop in range(block, len(ratio), block):
            ratio[stop - block : stop, stop] = 0.0
        return ratio

    return keep


def _skip_error(block: int) -> Cut:
    def keep(ratio: torch.Tensor) -> torch.Tensor:
        for stop in range(block, len(ratio), block):
            ratio[stop - 1, stop:] = 0.0
        return ratio

    return keep


class _Run:
    """A variant on its way, all matrices [in, rows] in the order of its steps."""

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


# ---------------------------------------------------------------------------------- the diagnosis


def diagnose(bench: Bench, seen: Seen, affected: torch.Tensor) -> tuple[Mistake, ...]:
    """The known mistakes that give what was seen, where the true run does not.

    affected  [out] bool: rows in which the true run does not
    A mistake is named if it parts from what was seen in at most one in ten of the rows tried (those
    affected and some others), and in at most one in ten of those affected.
    """
    bad = _spread(affected.nonzero().flatten(), ROWS * 3 // 4)
    good = _spread((~affected).nonzero().flatten(), ROWS - len(bad))
    if len(bad) == 0:
        return ()
    rows = torch.cat([bad, good])
    mistakes: dict[str, Mistake] = {}
    kept: list[tuple[Variant, Agreement]] = []
    for v in bench.candidates(seen.values is not None):
        found = bench.follow(v, seen, rows, MISSES)
        if found is None:
            continue
        missed = sum(d.row < len(bad) for d in found.unexplained)
        if missed <= MISSES * len(bad):
            kept.append((v, found))
    for v, found in _closest(bench, kept, seen):
        before = mistakes[v.name].details if v.name in mistakes else ()
        details = (*before, v.detail) if v.detail else before
        mistakes[v.name] = named(v.name, found, details)
    return tuple(mistakes.values())


def _closest(
    bench: Bench, kept: list[tuple[Variant, Agreement]], seen: Seen
) -> list[tuple[Variant, Agreement]]:
    """Of those that explain what was seen: the ones that leave the fewest rows unexplained, and
    whose factor is the emitted one, if that tells them apart."""
    fewest = min((len(found.unexplained) for _, found in kept), default=0)
    kept = [(v, found) for v, found in kept if len(found.unexplained) == fewest]
    if seen.factor is None or len(kept) < 2:
        return kept
    alike = [pair for pair in kept if _is_factor(bench.factor(pair[0]), seen.factor)]
    return alike or kept


def _is_factor(ours: torch.Tensor | None, theirs: torch.Tensor) -> bool:
    if ours is None or ours.shape != theirs.shape:
        return False
    return float((ours - theirs).norm()) <= 1e-2 * float(ours.norm())


def _spread(indices: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` of the indices, evenly spread."""
    if len(indices) <= count:
        return indices
    return indices[torch.arange(count, device=indices.device) * len(indices) // count]
