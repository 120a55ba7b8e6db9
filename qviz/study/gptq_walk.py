"""A walk through a GPTQ run: its matrices after any step, its error so far, one weight's history.

The run itself is a `Recording`; here its numbers are put together for a reader who goes forwards
and backwards in it. Symbols as in `qviz.methods.gptq`: W weights [out, in], E errors, U the factor
of H⁻¹, "step" j the j-th column that is rounded. After s steps the weights differ from the original
ones by Δ_s = E[:, :s]·U[:s], whatever U is, because a rounded column keeps w_j − q_j = e_j·U_jj and
every later one has been moved by −e_j·U_jk.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration, require_fit
from qviz.core.check import as_matrix, require_int
from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import affine
from qviz.methods.gptq import gptq
from qviz.methods.gptq_record import Recording, record
from qviz.study.running_sums import Sandwich, leading_sums

ROUNDING = 1e-6  # share of what is summed up to which a negative sum is rounding error
TOP = 8  # contributors and receivers that a story names
EDGE = 1e-6  # spacings: this close to half a spacing beyond the last level is still a tie


@dataclass(frozen=True, eq=False)
class Column:
    """What one step does to all rows; arrays [out], float64 but for the codes.

    step, column  which step, and which column of the weight
    group         the group, among the columns of the result's scales
    original      w before the first step (dead columns: as given)
    live          w when its turn came
    position      live in spacings, x/s + z: the code is the nearest integer within qmin … qmax
    codes, value  what it was rounded to
    error         e = (live − value) / U_jj
    scale, zero, offset   the levels: value = scale·(code − zero) + offset
    """

    step: int
    column: int
    group: int
    original: np.ndarray
    live: np.ndarray
    position: np.ndarray
    codes: np.ndarray
    value: np.ndarray
    error: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    offset: np.ndarray
    qmin: int
    qmax: int


@dataclass(frozen=True, eq=False)
class Story:
    """One weight from the first step to the last. Numbers are float64 copies of the run's own.

    row, column   of the weight; step: when its turn came; group: whose scale it has
    original      the weight as it was given
    start         where the run began with it: 0 in a dead column, else `original`
    live          what it had become when its turn came
    compensation  live − start
    incoming      [step] −e_j·U_j,step of every earlier step j, whose sum is `compensation`
    incoming_columns  [step] the columns of the weight that these came from
    scale, zero, offset   its levels: value = scale·(code − zero) + offset
    position      live in spacings, x/s + z
    code, value   what it was rounded to, a code from qmin to qmax
    clipped       it lay more than half a spacing beyond the last level
    rounding_error  live − value
    diagonal      U_jj; error: e = rounding_error / U_jj
    outgoing      [in − step − 1] −e·U_jk, what each later column of this row is moved by
    outgoing_columns  [in − step − 1] the columns of the weight that these are
    nearest_code, nearest_value   `original` rounded to nearest
    """

    row: int
    column: int
    step: int
    group: int
    dead: bool
    original: float
    start: float
    live: float
    compensation: float
    incoming: np.ndarray
    incoming_columns: np.ndarray
    scale: float
    zero: float
    offset: float
    position: float
    code: int
    qmin: int
    qmax: int
    clipped: bool
    value: float
    rounding_error: float
    diagonal: float
    error: float
    outgoing: np.ndarray
    outgoing_columns: np.ndarray
    nearest_code: int
    nearest_value: float

    def contributors(self, most: int = TOP) -> list[tuple[int, float]]:
        """(column, amount) of the columns that moved this weight most, the largest first."""
        return _largest(self.incoming_columns, self.incoming, most)

    def receivers(self, most: int = TOP) -> list[tuple[int, float]]:
        """(column, amount) of the columns that this weight's error moves most, largest first."""
        return _largest(self.outgoing_columns, self.outgoing, most)


def _largest(columns: np.ndarray, amounts: np.ndarray, most: int) -> list[tuple[int, float]]:
    order = np.argsort(-np.abs(amounts), kind="stable")[:most]
    return [(int(columns[i]), float(amounts[i])) for i in order]


class Walk:
    """A GPTQ run that can be examined at any step: its matrices, its error so far, one weight's
    history.

    weight       [out, in]
    calibration  what the run knows of the layer's inputs
    judge        the inputs that errors are measured on; None: the calibration's
    options      those of `gptq`

    recording    the run, step by step; result: the QuantizedTensor that it returned
    n, rows      columns, and so steps; rows of the weight
    grid         the result's levels
    dead         the columns whose input was always 0
    perm         [in] the column that each step rounds; turn: [in] the step that rounds each column
    original     [out, in] the weight, in its own order, in the dtype computed in
    nearest      the QuantizedTensor of round-to-nearest by the same rule for levels: bits,
                 symmetric, group_size, convention, scale_dtype, mse; groups are those of the
                 weight's own order, ranges those of the original weights

    Columns whose input was always 0 are set to zero before the first step: what that costs is in
    `error` from its first entry on, if the judge has inputs there. Round-to-nearest does not know
    of them and rounds them like any other. ValueError as from `gptq`, which refuses a run that
    leaves the range of its numbers, and for a judge of another layer.

    >>> walk = Walk(weight, calibration, bits=3, group_size=64)
    >>> walk.error[-1] < walk.rtn_error[-1], walk.story(5, 700).contributors(3)
    """

    def __init__(
        self,
        weight: torch.Tensor | np.ndarray,
        calibration: Calibration,
        judge: Calibration | None = None,
        **options: Any,
    ) -> None:
        matrix = as_matrix(weight)
        if judge is not None:
            require_fit(judge, matrix.shape[1])
        self._set(record(matrix, calibration, **options), judge)

    @classmethod
    def of(cls, recording: Recording, *, hessian: torch.Tensor | None = None) -> "Walk":
        """The walk through a run that has been recorded, judged by its own calibration.

        hessian  [in, in] as the run emitted it, damped, where it is at hand
        """
        walk = cls.__new__(cls)
        walk._set(recording, None)
        if hessian is not None:
            walk.hessian = hessian
        return walk

    def _set(self, recording: Recording, judge: Calibration | None) -> None:
        self.recording, self.result = recording, recording.result
        self.calibration = recording.calibration
        self.options = {**recording.options, "group_size": recording.plan.group_size}  # −1 is None
        self.judge = recording.calibration if judge is None else judge
        matrix = recording.weight
        self.rows, self.n = matrix.shape
        self.perm = self.recording.perm
        self.turn = torch.argsort(self.perm)
        self.original = matrix.to(self.recording.errors.dtype)
        self.grid = _affine_grid(self.result)
        self._columns = self.perm.cpu().numpy()
        self.dead = frozenset(self.result.info["dead_columns"])

    @property
    def errors(self) -> torch.Tensor:
        """[in, out] E."""
        return self.recording.errors

    @property
    def factor(self) -> torch.Tensor:
        """[in, in] U; step j passes its error on by row j."""
        return self.recording.hinv_chol

    # ------------------------------------------------------------------------------- the matrices

    @cached_property
    def _values(self) -> torch.Tensor:
        """[in, out] what the codes stand for, in the order of the steps."""
        return self.result.dequantize().to(self.original.dtype).T[self.perm].contiguous()

    @cached_property
    def _start(self) -> torch.Tensor:
        """[in, out] the weights before the first step, in the order of the steps."""
        return self.recording.remaining(0).T

    @cached_property
    def hessian(self) -> torch.Tensor:
        """[in, in] the calibration's H in the order of the steps, damped as the run damped it, with
        1 (and the damping) on the diagonal of dead columns: H⁻¹ = UᵀU, but in a misprint."""
        given = self.calibration.hessian.to(self.original.device, self.original.dtype)
        h = given[self.perm][:, self.perm]
        diagonal = h.diagonal().clone()
        diagonal[diagonal == 0] = 1
        h.diagonal().copy_(diagonal + self.result.info["damp"] * diagonal.mean())
        return h

    def now(self, step: int) -> torch.Tensor:
        """[out, in] in the order of the steps, after `step` columns have been rounded: those as
        they were rounded, the others with all compensation so far. IndexError for a step that is
        not from 0 to n."""
        self._require(step, self.n)
        w = torch.empty_like(self._values)
        w[:step] = self._values[:step]
        w[step:] = self.recording.remaining(step).T
        return w.T

    def handed(self, step: int) -> torch.Tensor:
        """[out, in] in the order of the steps: −e·U_k, what step `step` moves column k by; zeros in
        the columns up to `step`, and everywhere for step n, which rounds nothing."""
        return self.handed_window(step, slice(None), slice(None))

    def window(self, step: int, rows: slice, columns: slice) -> torch.Tensor:
        """A part of `now`, from the errors alone: W − E·U for the columns that are not rounded.

        The cost grows with the part, not with the layer. The columns that are still to come agree
        with `now` but for the order of summation. `columns` counts in the order of the steps.
        """
        self._require(step, self.n)
        first, last, stride = columns.indices(self.n)
        chosen = torch.arange(first, last, stride, device=self.perm.device)
        part = self._start[columns, rows].clone()  # [columns, rows]
        done = chosen < step
        later = chosen[~done]
        move = self.recording.hinv_chol[:step, later].T @ self.recording.errors[:step, rows]
        part[~done] -= move
        part[done] = self._values[columns, rows][done]
        return part.T

    def handed_window(self, step: int, rows: slice, columns: slice) -> torch.Tensor:
        """A part of `handed`; `columns` counts in the order of the steps."""
        self._require(step, self.n)
        if step == self.n:
            return torch.zeros_like(self._start[columns, rows]).T
        u_row = self.recording.hinv_chol[step].clone()
        u_row[: step + 1] = 0
        return -torch.outer(self.recording.errors[step, rows], u_row[columns])

    def _require(self, step: int, last: int) -> None:
        require_int(step, "step", -(10**9), 10**9)
        if not 0 <= step <= last:
            raise IndexError(f"there is no step {step}: steps go from 0 to {last}")

    # ---------------------------------------------------------------------------------- the errors

    @cached_property
    def error(self) -> np.ndarray:
        """[n + 1] float64: relative output error ‖X·Δ_sᵀ‖ / ‖X·Wᵀ‖ after s columns, X the judge's
        inputs: √(tr(Δ_s·H·Δ_sᵀ) / tr(W·H·Wᵀ)), H without damping."""
        u = self.recording.hinv_chol.double()
        e = self.recording.errors.double()  # [in, out]
        h = self.judges_hessian
        parts = leading_sums(e, Sandwich(u, h))
        first = 0.0
        if self.dead:
            zeroed = torch.zeros_like(e)  # Δ before the first step
            dead = torch.isin(self.perm, torch.tensor(sorted(self.dead), device=e.device))
            zeroed[dead] = self.original.T[self.perm[dead]].double()
            pull = h @ zeroed  # [in, out]
            first = float((pull * zeroed).sum())
            parts = parts + 2 * ((u @ pull) * e).sum(1)
        return self._relative(parts, first)

    @cached_property
    def rtn_error(self) -> np.ndarray:
        """[n + 1] float64: the same for round-to-nearest, columns in the same order."""
        lost = self.original.double() - self.nearest.dequantize().double()
        return self._relative(leading_sums(lost.T[self.perm], self.judges_hessian), 0.0)

    @cached_property
    def nearest(self) -> QuantizedTensor:
        """Round-to-nearest by the same rule for levels."""
        names = ("bits", "symmetric", "group_size", "convention", "scale_dtype")
        options = {name: self.options[name] for name in names}
        if not self.options["mse"]:
            return affine(self.original, **options)
        # With independent inputs nothing is compensated, and the range search is GPTQ's own.
        unit = torch.eye(self.n, dtype=self.original.dtype, device=self.original.device)
        ones = unit.new_ones(self.n).float()
        independent = Calibration(unit[:1].float(), unit, ones, ones, 1)
        return gptq(self.original, independent, mse=True, **options)

    @property
    def judges_hessian(self) -> torch.Tensor:
        """[in, in] float64: the judge's H in the order of the steps, without damping; made anew
        each time, because keeping it would take as much as two weights."""
        h = self.judge.hessian.to(self.original.device)
        return h[self.perm][:, self.perm].double()

    @cached_property
    def _energy(self) -> float:
        parts = leading_sums(self.original.T[self.perm].double(), self.judges_hessian)
        self._require_energies(parts)
        return max(float(parts.sum()), 0.0)

    def _relative(self, parts: torch.Tensor, first: float) -> np.ndarray:
        """√(running sums / energy of the output), 0 / 0 being 0 and x / 0 infinite."""
        parts = torch.cat([parts.new_tensor([first]), parts])
        self._require_energies(parts)
        energies = parts.cumsum(0).clamp(min=0).cpu().numpy()
        if self._energy == 0:
            return np.where(energies == 0, 0.0, np.inf)
        return np.sqrt(energies / self._energy)

    def _require_energies(self, parts: torch.Tensor) -> None:
        """ValueError where running sums are negative by more than rounding.

        A Hessian of fewer tokens than channels has eigenvalues that are 0, and in float32 some of
        these are slightly negative: a share of its trace. So are the sums where no energy is.
        """
        sums, sizes = parts.cumsum(0), parts.abs().cumsum(0)
        trace = self.judge.hessian.diagonal().double().abs().sum().to(sizes.device)
        norm = torch.linalg.vector_norm(self.original, dtype=torch.float64)
        slack = sizes + trace * norm.square()
        if bool((sums < -ROUNDING * slack).any()):
            raise ValueError(
                "the judge's Hessian has negative eigenvalues, so it is not a sum of x·xᵀ. "
                "Capture the calibration again with qviz.capture"
            )

    # ------------------------------------------------------------------------------------- one step

    @cached_property
    def _live(self) -> torch.Tensor:
        """[out, in] every weight when its column's turn came, in the weight's order."""
        return self.recording.live()

    def group_of(self, step: int) -> int:
        """The group, among the columns of the result's scales, that this step's column is in."""
        self._require(step, self.n - 1)
        return int(self._groups[self._columns[step]])

    @cached_property
    def _groups(self) -> np.ndarray:
        return self.recording.groups().cpu().numpy()

    def events(self) -> dict[str, list[int]]:
        """Steps at which something begins.

        group   the first step of each group, where groups are reached one after another; empty
                where act_order switches back and forth between groups that were fixed beforehand
        levels  steps before which scales are found: the groups' first ones; with stale groups the
                first of their blocks; 0 alone where they come from the original weights
        block   the first step of each lazy block
        """
        plan, size = self.recording.plan, self.options["block_size"]
        firsts = list(range(0, self.n, plan.size))
        levels = [0] if plan.upfront else firsts
        if plan.stale_groups:
            levels = sorted({step // size * size for step in firsts})
        scattered = plan.upfront and plan.act_order and plan.groups > 1
        return {
            "group": [] if scattered else firsts,
            "levels": levels,
            "block": list(range(0, self.n, size)),
        }

    def column(self, step: int) -> Column:
        """Everything about one step, for all rows. Raises IndexError for a step that is not below
        n."""
        self._require(step, self.n - 1)
        column = int(self._columns[step])
        group = self.group_of(step)
        live = _wide(self._live[:, column])
        scale, zero, offset = self._levels(group)
        return Column(
            step=step,
            column=column,
            group=group,
            original=_wide(self.original[:, column]),
            live=live,
            position=(live - offset) / scale + zero,
            codes=self.result.codes[:, column].cpu().numpy(),
            value=_wide(self._values[step]),
            error=_wide(self.recording.errors[step]),
            scale=scale,
            zero=zero,
            offset=offset,
            qmin=self.grid.qmin,
            qmax=self.grid.qmax,
        )

    def _levels(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scale, zero and offset of a group, each [out]."""
        grid = self.grid
        given = (grid.scale, grid.zero_point, grid.offset)
        scale, zero, offset = (
            np.zeros(self.rows) if part is None else _wide(part[:, group]) for part in given
        )
        return scale, zero, offset

    # ----------------------------------------------------------------------------------- one weight

    def story(self, row: int, column: int) -> Story:
        """One weight's history; `column` counts in the weight's own order. IndexError outside
        it."""
        if not (0 <= row < self.rows and 0 <= column < self.n):
            raise IndexError(f"the weight is {self.rows} × {self.n}; there is no [{row}, {column}]")
        step = int(self.turn[column])
        at = self.column(step)
        u, errors = self.recording.hinv_chol, self.recording.errors
        error = float(errors[step, row])
        dead = column in self.dead
        original, live = float(at.original[row]), float(at.live[row])
        start = 0.0 if dead else original
        position = float(at.position[row])
        return Story(
            row=row,
            column=column,
            step=step,
            group=at.group,
            dead=dead,
            original=original,
            start=start,
            live=live,
            compensation=live - start,
            incoming=-_wide(errors[:step, row]) * _wide(u[:step, step]),
            incoming_columns=self._columns[:step],
            scale=float(at.scale[row]),
            zero=float(at.zero[row]),
            offset=float(at.offset[row]),
            position=position,
            code=int(at.codes[row]),
            qmin=at.qmin,
            qmax=at.qmax,
            clipped=not at.qmin - 0.5 - EDGE <= position <= at.qmax + 0.5 + EDGE,
            value=float(at.value[row]),
            rounding_error=live - float(at.value[row]),
            diagonal=float(u[step, step]),
            error=error,
            outgoing=-error * _wide(u[step, step + 1 :]),
            outgoing_columns=self._columns[step + 1 :],
            nearest_code=int(self.nearest.codes[row, column]),
            nearest_value=float(self._nearest_values[row, column]),
        )

    @cached_property
    def _nearest_values(self) -> torch.Tensor:
        return self.nearest.dequantize()


def _affine_grid(q: QuantizedTensor) -> Affine:
    assert isinstance(q.grid, Affine)
    return q.grid


def _wide(x: torch.Tensor) -> np.ndarray:
    return np.asarray(x.double().cpu().numpy())
