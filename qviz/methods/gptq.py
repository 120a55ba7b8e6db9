"""GPTQ: rounding column by column, with each column's error compensated by the later columns.

The columns of a weight are rounded one after another, in all rows at once. The effect of rounding a
column on the layer's output is compensated by moving the columns that are not yet rounded, as far
as the inputs' correlations allow. Frantar et al. 2022 (arXiv 2210.17323).

Symbols: W weights [out, in], H Hessian of the squared output error [in, in], λ damping, U the upper
Cholesky factor of H⁻¹ (H⁻¹ = UᵀU), Q reconstruction, E errors, e_j and U_j their column and row j.
The code holds W transposed, [in, out]: a column of the paper is a row in memory, so each step is
arithmetic on whole rows. "Step" j is the j-th column that is rounded; `perm`
says which column of the weight that is.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration, require_fit
from qviz.core.check import (
    as_matrix,
    require_bits,
    require_finite,
    require_int,
    require_number,
    unknown,
)
from qviz.core.granularity import Granularity
from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.affine import BITS, CONVENTIONS, Arithmetic, Levels, fit_levels, require_levels
from qviz.methods.gptq_cuda import Replays
from qviz.methods.registry import Method

INNER = 16  # columns that are updated one by one before a matrix product takes over
PANEL = 256  # columns that are factored at a time
STRIP = {"cpu": 512, "cuda": 4096}  # columns of a product with a triangle
DAMP_STEP, DAMP_LIMIT = 0.01, 1.0  # how damping is raised when Cholesky fails, and how far
NORM, GRID, SHRINK = 2.4, 100, 0.8  # range search: error power, points of the whole range, reach

EVENTS = (
    EventSpec(
        "gptq.hessian",
        {
            "hessian": "[in, in] H in the order of the steps, damped",
            "perm": "[in] the weight's column that each step rounds",
            "dead": "[in] bool, columns of the weight whose input was always 0",
        },
        "H = 2·XᵀX / tokens, H_jj = 1 of dead columns; H ← H + λ·mean(diag H)·I",
        "Frantar et al. 2022, section 3.3, step 3; gptq.py:GPTQ.fasterquant",
    ),
    EventSpec(
        "gptq.cholesky",
        {"hinv_chol": "[in, in] U, upper triangular"},
        "H⁻¹ = UᵀU",
        "Frantar et al. 2022, section 3.3, step 3",
    ),
    EventSpec(
        "gptq.group",
        {
            "group": "[] the group's number",
            "weights": "[out, group_size] the weights whose range is taken, with all "
            "compensation so far",
            "scale": "[out] spacing of the levels, as stored",
            "zero": "[out] the code of 0",
        },
        "s = range / N, z = the code of 0",
        "Frantar et al. 2022, section 4; quant.py:Quantizer.find_params",
    ),
    EventSpec(
        "gptq.column",
        {
            "step": "[] j",
            "column": "[] the weight's column that is rounded",
            "live": "[out] w_j, the column with all compensation so far",
            "codes": "[out] integer codes",
            "value": "[out] q_j, the values of the codes",
            "error": "[out] e_j",
            "hinv_row": "[in − j] U_jj, U_j,j+1 …: later column k is moved by −e_j·U_jk",
        },
        "q_j = quant(w_j), e_j = (w_j − q_j) / U_jj, w_k ← w_k − e_j·U_jk for k > j",
        "Frantar et al. 2022, algorithm 1",
    ),
    EventSpec(
        "gptq.block",
        {
            "steps": "[block] the steps of the block",
            "codes": "[out, block] its codes",
            "errors": "[out, block] E, its errors",
            "remaining": "[out, in − end] the columns after the block, now compensated",
        },
        "W_rest ← W_rest − E·U_block,rest",
        "Frantar et al. 2022, section 3.3, step 2 and algorithm 1",
    ),
)


def gptq(
    weight: torch.Tensor | np.ndarray,
    calibration: Calibration,
    *,
    bits: int = 4,
    symmetric: bool = True,
    group_size: int | None = 128,
    block_size: int = 128,
    damp: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    mse: bool = False,
    stale_groups: bool = False,
    convention: str = "gptq",
    scale_dtype: torch.dtype | None = None,
    variant: str | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Round a weight column by column, compensating each error in the columns that follow.

    weight         [out, in]; float32, bfloat16 or float16 (computed in float32) or float64
    calibration    of the inputs of this layer; only its Hessian is used
    bits           2 to 8
    symmetric      levels placed around 0
    group_size     inputs that share a scale; None or −1: the whole row
    block_size     columns between two updates of the rest of the matrix: affects speed, not results
    damp           λ, a fraction of the mean of diag H; raised by 0.01 as often as Cholesky fails
    act_order      columns in descending order of diag H, instead of from left to right
    static_groups  scales from the original weights; otherwise from the compensated ones, when a
                   group is reached. With act_order they keep the groups consecutive: no g_idx
    mse            shrink each range to the part with the smallest Σ|w − q|^2.4
    stale_groups   take ranges as the reference code does, without the compensation of the same
                   block
    convention     how a range becomes levels: one of `qviz.methods.affine.CONVENTIONS`
    scale_dtype    dtype in which scales are stored and used; None: the one computed in
    variant        one of `FAILURES`, which break the method as it is often misprinted

    Returns codes [out, in] in the weight's own order of columns. `info` holds the damping that
    was used, the dead columns, perm, and `loss` = Σ e²/2: the mean over tokens of the squared
    output error, damping included. Columns whose input was always 0 are rounded as zeros, as in the
    reference, with 1 in their place of diag H.
    Raises ValueError for a calibration of another layer, a group size that does not divide the
    row, a Hessian that no damping makes positive definite, and contradictory options.

    >>> layer = "model.layers.0.mlp.down_proj"
    >>> q = gptq(qviz.load_layer(None, layer), qviz.load_calibration(None, layer), bits=3)
    >>> q.dequantize().shape, q.info["loss"]
    """
    weight = as_matrix(weight)
    require_fit(calibration, weight.shape[1])
    block_size = require_int(block_size, "block_size", 1, 10**9)
    bits = require_bits(bits, BITS)
    if variant is not None and variant not in FAILURES:
        raise ValueError(unknown("variant", variant, FAILURES))
    plan = GroupPlan(
        bits, symmetric, convention, scale_dtype, mse,
        group_size, static_groups, stale_groups, act_order, weight.shape[1],
    )  # fmt: skip
    setup = prepare(weight, calibration, damp=damp, act_order=act_order, emit=emit)
    u = setup.hinv_chol if variant is None else FAILURES[variant](setup.hinv_chol)
    if emit is not None:
        emit("gptq.cholesky", hinv_chol=u)

    w, levels = setup.columns(weight), Levelling(plan, setup.perm)
    if plan.upfront:
        _fit_upfront(levels, setup, weight, emit)
    codes = torch.empty_like(w, dtype=levels.code_dtype)  # [in, out]
    loss = torch.zeros((), dtype=torch.float64, device=w.device)
    cuts = [(start, min(start + block_size, len(w))) for start in range(0, len(w), block_size)]
    replays = Replays(plan, cuts, round_block) if w.is_cuda and emit is None else None
    for start, stop in cuts:
        loss += _quantize_block(w, u, codes, levels, start, stop, replays, emit)

    levels.check()
    total = finite_loss(loss, w.dtype, variant)
    info = {
        "method": "gptq",
        "convention": convention,
        "symmetric": symmetric,
        "device": str(weight.device),
        "compute": str(w.dtype).removeprefix("torch."),
        "damp": setup.damp,
        "dead_columns": setup.dead.nonzero().flatten().tolist(),
        "perm": setup.perm.tolist() if act_order else None,
        "loss": total / 2 if variant is None else None,
    }
    if replays is not None:
        info["replayed_blocks"] = replays.replayed
    if setup.reordered:
        codes = codes[torch.argsort(setup.perm)]
    return QuantizedTensor(
        codes.T.contiguous(),
        levels.grid(),
        Granularity.of("group", group_size),
        (weight.shape[0], weight.shape[1]),
        g_idx=levels.g_idx() if act_order and not plan.upfront else None,
        info=info,
    )


# ------------------------------------------------------------------------- Hessian and its factor


@dataclass(frozen=True)
class Setup:
    """What is fixed before the first column is rounded.

    perm       [in] the weight's column of each step
    dead       [in] bool: columns of the weight whose input was always 0
    hinv_chol  [in, in] U, in the order of the steps
    damp       the fraction λ that was used in the end
    reordered  perm is not the weight's own order
    """

    perm: torch.Tensor
    dead: torch.Tensor
    hinv_chol: torch.Tensor
    damp: float
    reordered: bool

    def columns(self, weight: torch.Tensor, dead_too: bool = False) -> torch.Tensor:
        """The weight as the steps see it, a new tensor [in, out] in the dtype to compute in."""
        w = torch.empty(weight.T.shape, dtype=self.hinv_chol.dtype, device=weight.device)
        w.copy_(weight.T)
        if self.reordered:
            w = w[self.perm]
        if not dead_too:
            w[self.dead[self.perm]] = 0
        return w


def prepare(
    weight: torch.Tensor,
    calibration: Calibration,
    *,
    damp: float,
    act_order: bool,
    emit: Emit | None = None,
) -> Setup:
    """Order of the columns, damping and factor: everything that does not depend on the levels."""
    if not 0 <= (damp := require_number(damp, "damp")) <= DAMP_LIMIT:
        raise ValueError(f"damp is a fraction of the mean of diag H, from 0 to 1; got {damp!r}")
    compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
    h = calibration.hessian.to(device=weight.device, dtype=compute)
    fix = "Pass the weight as float64 to compute everything in float64"
    require_finite(
        h, f"the calibration's hessian, in {str(compute).removeprefix('torch.')},", fix=fix
    )
    diagonal = h.diagonal().clone()
    dead = diagonal == 0
    # These columns are tied to no other. 1 as in the reference: it counts in the mean of diag H.
    diagonal[dead] = 1
    perm = torch.arange(len(h), device=h.device)
    if act_order:
        perm = torch.argsort(diagonal, descending=True, stable=True)
        diagonal = diagonal[perm]
    h = h[perm][:, perm] if act_order else h
    damped, u, damp = _factor(h, diagonal, damp)
    if emit is not None:
        h = h.clone()
        h.diagonal().copy_(damped)
        emit("gptq.hessian", hessian=h, perm=perm, dead=dead)
    return Setup(perm, dead, u, damp, act_order)


def _factor(
    h: torch.Tensor, diagonal: torch.Tensor, damp: float
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The diagonal with damping, U of H with that diagonal, and the damping that it took."""
    asked = damp
    while damp <= DAMP_LIMIT:
        damped = diagonal + damp * diagonal.mean()
        u = inverse_cholesky(h, damped)
        if u is not None:
            return damped, u, damp
        damp = round(damp + DAMP_STEP, 10)  # as GPTQModel does, so that 0.29 is not 0.28999…
    raise ValueError(
        f"the Hessian is not positive definite, whatever the damping (tried {asked} to "
        f"{DAMP_LIMIT}), so it is not a sum of x·xᵀ. Capture the calibration again with "
        "qviz.capture"
    )


def inverse_cholesky(h: torch.Tensor, diagonal: torch.Tensor | None = None) -> torch.Tensor | None:
    """U, upper triangular with H⁻¹ = UᵀU; None where H is not positive definite. If a diagonal is
    given, H has that one instead of its own.

    From the last row up, H = R·Rᵀ with R upper triangular, and U is its inverse. That is half the
    work of factoring H, inverting it and factoring the inverse, and it rounds less, because H⁻¹
    itself is never formed.
    """
    u = h.clone()
    if diagonal is not None:
        u.diagonal().copy_(diagonal)
    corners = _factor_upwards_(u)
    if corners is None:
        return None
    _invert_(u.triu_(), corners)
    # A pivot that is zero but for rounding gives an infinite inverse instead of a failure.
    return u if bool(torch.isfinite(u.diagonal()).all()) else None


def _factor_upwards_(h: torch.Tensor) -> dict[int, torch.Tensor] | None:
    """R with R·Rᵀ = H in the upper triangle of H, but for its corners: these [at:end, at:end] are
    returned inverted, by `at`. None where H is not positive definite.

    Some columns at a time, so that all work is matrix products: the library's own factorization of
    a matrix of 2048² takes more than twice as long on a CPU, and its triangular solves take longer
    than a product with the inverse of a corner.
    """
    corners = {}
    for at in reversed(range(0, len(h), PANEL)):
        end = min(at + PANEL, len(h))
        lower, failed = torch.linalg.cholesky_ex(h[at:end, at:end].flip(0, 1))
        if bool(failed):
            return None
        eye = torch.eye(end - at, dtype=h.dtype, device=h.device)
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1)
        corners[at] = inverse
        above = h[:at, at:end]
        above.copy_(above @ inverse.T)
        for first, last in _strips(h, at):  # only what lies on and above the diagonal, roughly
            h[:last, first:last].addmm_(above[:last], above[first:last].T, alpha=-1)
    return corners


def _invert_(r: torch.Tensor, corners: dict[int, torch.Tensor]) -> None:
    """R⁻¹ in place of the upper triangular R, whose corners are given inverted.

    With the columns before `at` inverted already, those from `at` on become −R⁻¹·(R·R_corner⁻¹).
    """
    for at, corner in sorted(corners.items()):
        end = at + len(corner)
        right = (r[:at, at:end] @ corner).neg_()
        for first, last in _strips(r, at):
            torch.mm(r[first:last, first:at], right[first:], out=r[first:last, at:end])
        r[at:end, at:end] = corner


def _strips(h: torch.Tensor, end: int) -> Iterator[tuple[int, int]]:
    """Cut [0, end) into pieces: narrow ones, that waste little of a triangle, where the processor
    is busy with them all the same."""
    width = STRIP["cuda" if h.is_cuda else "cpu"]
    for first in range(0, end, width):
        yield first, min(first + width, end)


# ------------------------------------------------------------------------------------- the groups


@dataclass(frozen=True)
class GroupPlan:
    """Which columns share levels, when these are found, and by which rule."""

    bits: int
    symmetric: bool
    convention: str
    scale_dtype: torch.dtype | None
    mse: bool
    group_size: int | None
    static_groups: bool
    stale_groups: bool
    act_order: bool
    in_features: int

    def __post_init__(self) -> None:
        unit = Granularity("group", self.group_size)
        object.__setattr__(self, "group_size", unit.group_size)  # −1 is None; this class is frozen
        unit.split(torch.empty(0, self.in_features))
        if self.stale_groups and self.upfront:
            raise ValueError(
                "stale_groups does not apply when scales are set before the first column: omit "
                "it, or omit static_groups and set a group_size"
            )

    @property
    def size(self) -> int:
        return self.group_size or self.in_features

    @property
    def groups(self) -> int:
        return self.in_features // self.size

    @property
    def upfront(self) -> bool:
        """Levels come from the original weights, before the first column is rounded."""
        return self.static_groups or self.group_size is None

    def first_fit(self, step: int) -> bool:
        """Whether a group's levels are found at this step."""
        return not self.upfront and step % self.size == 0

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut the block [start, stop) into runs of at most INNER columns, and at each new group,
        whose columns must be up to date when its range is taken."""
        cut = start
        for step in range(start + 1, stop + 1):
            if (
                step == stop
                or step - cut == INNER
                or (not self.stale_groups and self.first_fit(step))
            ):
                yield cut, step
                cut = step


class Levelling:
    """The levels of all groups, as they are found."""

    def __init__(self, plan: GroupPlan, perm: torch.Tensor) -> None:
        self.plan, self.perm = plan, perm
        self.steps = torch.arange(len(perm), device=perm.device)
        # Static groups are consecutive columns of the weight, the others consecutive steps.
        self._index = (perm if plan.upfront else self.steps) // plan.size  # [in] of each step
        self._group_of: list[int] = self._index.tolist()
        self._found: dict[int, Levels] = {}  # as they are stored
        self._columns: dict[int, Arithmetic] = {}  # the same, for a column at a time

    def members(self, group: int) -> torch.Tensor | slice:
        """The steps that round the columns of this group, in the order of the weight's columns."""
        first, size = group * self.plan.size, self.plan.size
        if not (self.plan.upfront and self.plan.act_order):
            return slice(first, first + size)
        return torch.argsort(self.perm)[first : first + size]

    def fit(self, group: int, weights: torch.Tensor, emit: Emit | None) -> None:
        """Find the levels of a group from its weights [group_size, out]. Nothing here waits for a
        GPU; `check` does, once for all groups."""
        plan = self.plan
        options: dict[str, Any] = {
            "bits": plan.bits,
            "symmetric": plan.symmetric,
            "convention": plan.convention,
            "scale_dtype": plan.scale_dtype,
            "check": False,
        }
        lo, hi = weights.amin(0).unsqueeze(-1), weights.amax(0).unsqueeze(-1)  # [out, 1]
        if plan.mse:
            shrink = _best_shrink(weights.T.contiguous().unsqueeze(1), lo, hi, options)
            lo, hi = shrink * lo, shrink * hi
        found = fit_levels(lo, hi, **options)
        self.keep(group, found)
        if emit is not None:
            emit(
                "gptq.group",
                group=self.steps[group],
                weights=weights.T,
                scale=found.grid.scale.squeeze(-1),
                zero=found.shown_zero().squeeze(-1),
            )

    def keep(self, group: int, found: Levels) -> None:
        self._found[group] = found
        self._columns[group] = found.column()

    def __getitem__(self, step: int) -> Levels:
        """Those of the step's group, in the dtype to compute in."""
        return self._found[self._group_of[step]].working()

    def column(self, step: int) -> Arithmetic:
        """How the step's column is rounded."""
        return self._columns[self._group_of[step]]

    def missing(self, step: int) -> bool:
        return self._group_of[step] not in self._found

    def of_group(self, group: int) -> Levels:
        """What was found for it, as it is stored."""
        return self._found[group]

    def alone(self, given: Mapping[int, Levels]) -> "Levelling":
        """Another one, for which these steps have these levels, and no others are found yet."""
        one = copy(self)
        one._found, one._columns = {}, {}
        if self.plan.upfront:
            one._group_of = list(range(len(self._group_of)))
        for step, levels in given.items():
            one.keep(one._group_of[step], levels)
        return one

    def check(self, group: int | None = None) -> None:
        """Raise ValueError if a group's levels, or any group's, are not valid; see
        `require_levels`."""
        if group is None:
            require_levels(self._together(), self.plan.convention)
        else:
            require_levels(self._found[group], self.plan.convention, group)

    @cached_property
    def code_dtype(self) -> torch.dtype:
        """Of all groups, known before the first is found."""
        unit = torch.ones(1, 1)
        plan = self.plan
        levels = fit_levels(
            -unit, unit, bits=plan.bits, symmetric=plan.symmetric, convention=plan.convention
        )
        return levels.grid.code_dtype

    def grid(self) -> Affine:
        """The levels of all groups as one grid, parameters [out, groups]."""
        return self._together().grid

    def _together(self) -> Levels:
        return together([self._found[group] for group in range(self.plan.groups)])

    def g_idx(self) -> torch.Tensor:
        """[in] int32: the group of each column of the weight."""
        return self._index[torch.argsort(self.perm)].int()


def together(parts: Sequence[Levels]) -> Levels:
    """The levels of some groups as one, parameters [out, groups]."""

    def joined(pieces: list[torch.Tensor | None]) -> torch.Tensor | None:
        given = [piece for piece in pieces if piece is not None]
        return torch.cat(given, 1) if given else None

    grids = [part.grid for part in parts]
    scale, computed = torch.cat([g.scale for g in grids], 1), [part.computed for part in parts]
    grid = replace(
        grids[0],
        scale=scale,
        zero_point=joined([g.zero_point for g in grids]),
        offset=joined([g.offset for g in grids]),
    )
    inverse = joined([part.inverse for part in parts])
    return replace(parts[0], grid=grid, inverse=inverse, computed=torch.cat(computed, 1))


def _fit_upfront(levels: Levelling, setup: Setup, weight: torch.Tensor, emit: Emit | None) -> None:
    """Find the levels of all groups from the weight as it was given."""
    plan = levels.plan
    # Whether a dead column still counts in a range: llm-compressor's observer has seen it, and the
    # reference code zeroes it after taking the range of a whole row, but before that of a group.
    counts = plan.group_size is None or plan.convention == "compressed_tensors"
    w = setup.columns(weight, dead_too=counts)
    for group in range(plan.groups):
        levels.fit(group, w[levels.members(group)], emit)


def _best_shrink(
    x: torch.Tensor, lo: torch.Tensor, hi: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """The share [out, 1] of its range that gives each row of x [out, 1, n] the smallest error.

    The shares are 1, 0.99 … 0.21, the error Σ|x − q|^2.4, and the larger range wins a tie:
    quant.py:Quantizer.find_params with mse=True.
    """
    share = torch.ones_like(lo)
    best = torch.full_like(lo, torch.inf)
    for k in range(int(SHRINK * GRID)):
        p = 1 - k / GRID
        levels = fit_levels(p * lo, p * hi, **options)
        codes = levels.round_(levels.position(x)).clamp_(levels.grid.qmin, levels.grid.qmax)
        error = (levels.grid.decode(codes) - x).abs_().pow_(NORM).sum(-1)  # [out, 1]
        better = error < best
        share.masked_fill_(better, p)
        best = torch.where(better, error, best)
    return share


# ------------------------------------------------------------------------------------ the columns


def _quantize_block(
    w: torch.Tensor,
    u: torch.Tensor,
    codes: torch.Tensor,
    levels: Levelling,
    start: int,
    stop: int,
    replays: Replays | None,
    emit: Emit | None,
) -> torch.Tensor:
    """Round the columns of one lazy block and compensate in all that follow; returns Σe², [].

    `w` and `codes` [in, out] are worked on in place. The rest of the matrix gets the errors of the
    whole block in one product.
    """
    plan = levels.plan
    if plan.stale_groups:
        for step in filter(plan.first_fit, range(start, stop)):
            levels.fit(step // plan.size, w[step : step + plan.size], emit)
    block = Block(w[start:], u[start:stop, start:], levels, start, stop)
    rounded, errors = round_block(block, emit) if replays is None else replays.run(block)
    codes[start:stop] = rounded
    spread(w[stop:], u[start:stop, stop:], errors)
    if emit is not None:
        emit(
            "gptq.block",
            steps=levels.steps[start:stop],
            codes=codes[start:stop].T,
            errors=errors.T,
            remaining=w[stop:].T,
        )
    size: torch.Tensor = torch.linalg.vector_norm(errors, dtype=torch.float64)
    return size.square()


@dataclass(frozen=True)
class Block:
    """The steps [start, stop) and what they work on.

    w       [in − start, out] the columns from the first step on; those of the block are worked on
            in place
    u       [stop − start, in − start] the rows of U that belong to the steps
    """

    w: torch.Tensor
    u: torch.Tensor
    levels: Levelling
    start: int
    stop: int


def round_block(block: Block, emit: Emit | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the steps of a block. Returns codes, as floats, and errors E, both [block, out].

    Each error moves at once only the columns of its piece; the rest of the block gets a piece's
    errors in one product. Nothing here waits for a GPU.
    """
    levels, plan, size = block.levels, block.levels.plan, block.stop - block.start
    w = block.w[:size]
    u = block.u[:, :size].contiguous()  # where it lies is part of what a product does with it
    codes, errors = torch.empty_like(w), torch.empty_like(w)
    steps = list(zip(w, u.diagonal(), codes, errors, strict=True))  # all rows at once: it is faster
    for first, last in plan.pieces(block.start, block.stop):
        a, b = first - block.start, last - block.start
        if levels.missing(first):
            levels.fit(first // plan.size, _up_to_date(block, errors, a, a + plan.size), emit)
        for j in range(a, b):
            live, pivot, code, error = steps[j]
            rule = levels.column(block.start + j)
            rule.round_(rule.position(live, out=code)).clamp_(rule.qmin, rule.qmax)
            value = rule.decode(code)
            torch.sub(live, value, out=error)
            error /= pivot  # once: U_jk below is not divided again
            if emit is not None:
                _show_column(block, j, live, code, value, error, emit)
            spread_one(w[j + 1 : b], u[j, j + 1 : b], error)
        spread(w[b:], u[a:b, b:], errors[a:b])
    return codes, errors


def _show_column(
    block: Block,
    j: int,
    live: torch.Tensor,
    code: torch.Tensor,
    value: torch.Tensor,
    error: torch.Tensor,
    emit: Emit,
) -> None:
    levels, step = block.levels, block.start + j
    emit(
        "gptq.column",
        step=levels.steps[step],
        column=levels.perm[step],
        live=live,
        codes=code.to(levels.code_dtype),
        value=value,
        error=error,
        hinv_row=block.u[j, j:],
    )


def _up_to_date(block: Block, errors: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Columns [first, last), counted from the block's first, with all compensation so far, where
    the steps before `first` have been done.

    Inside the block that is what `w` holds. Where the group reaches beyond, the block's errors
    are still pending there: without them, the result would depend on block_size.
    """
    w, size = block.w, block.stop - block.start
    if last <= size or first == 0:
        return w[first:last]
    beyond = w[size:last].clone()
    spread(beyond, block.u[:first, size:last], errors[:first])
    return torch.cat([w[first:size], beyond])


def finite_loss(loss: torch.Tensor, dtype: torch.dtype, variant: str | None = None) -> float:
    """Σe² as a number. Raises ValueError if the compensation overflowed and the codes are
    useless."""
    total = float(loss)
    if np.isfinite(total):
        return total
    if variant is not None:
        raise ValueError(f"variant={variant!r} diverges on this layer")
    wider = "" if dtype == torch.float64 else ", or pass the weight as float64"
    name = str(dtype).removeprefix("torch.")
    raise ValueError(f"the compensation overflowed {name}: raise damp{wider}")


def spread_one(columns: torch.Tensor, u_row: torch.Tensor, error: torch.Tensor) -> None:
    """w_k ← w_k − e·U_k for columns [k, out], in place: one column's compensation, of rank one."""
    columns.addr_(u_row, error, alpha=-1)


def spread(columns: torch.Tensor, u_rows: torch.Tensor, errors: torch.Tensor) -> None:
    """W ← W − E·U for columns [k, out], rows [steps, k] of U and errors [steps, out], in place."""
    columns.addmm_(u_rows.T, errors, alpha=-1)


# ------------------------------------------------------------------------------------- misprints


def _never_updated(u: torch.Tensor) -> torch.Tensor:
    """H⁻¹ of the whole matrix at every step, although the columns already rounded are fixed."""
    return (u.T @ u).triu_()


def _divided_twice(u: torch.Tensor) -> torch.Tensor:
    """Compensation e_j·U_jk / U_jj, although e_j has been divided by U_jj already."""
    diagonal = u.diagonal()
    broken = u / diagonal.unsqueeze(1)
    broken.diagonal().copy_(diagonal)
    return broken


def _as_printed(u: torch.Tensor) -> torch.Tensor:
    """Both: articles print this as GPTQ."""
    return _divided_twice(_never_updated(u))


# Each failure puts another matrix in U's place; the steps stay the same.
FAILURES = {
    "no_update": _never_updated,
    "double_division": _divided_twice,
    "as_printed": _as_printed,
}

METHOD = Method(
    name="gptq",
    kind="weight",
    function=gptq,
    needs=frozenset({"hessian"}),
    title="Round column by column, compensating each error in the columns to come",
    source="Frantar et al. 2022 (arXiv 2210.17323); IST-DASLab/gptq",
    events=EVENTS,
    bits=BITS,
    choices={"convention": tuple(CONVENTIONS), "variant": tuple(FAILURES)},
    origins={
        "bits": "GPTQModel, llm-compressor W4A16",
        "symmetric": "GPTQModel, llm-compressor W4A16; the reference code's is False",
        "group_size": "GPTQModel, llm-compressor W4A16; the reference code's is the whole row",
        "block_size": "the reference code, llm-compressor",
        "damp": "the reference code, llm-compressor; GPTQModel's is 0.05",
        "act_order": "the reference code, GPTQModel (desc_act)",
        "static_groups": "the reference code, GPTQModel; llm-compressor has only this",
        "mse": "the reference code",
        "stale_groups": "qviz: the reference code always does; then block_size changes results",
        "convention": "the reference code, GPTQModel",
        "scale_dtype": "qviz: the precision computed in; checkpoints hold float16",
        "variant": "qviz: the method as published",
    },
)
