"""A recording of a GPTQ run: any step at once, forwards and backwards.

A copy of the weight for each of a thousand steps would be a thousand weights. Instead, each step's
error and the remaining columns at a few blocks are kept; the operations of the run, repeated from
there with those errors, give the same numbers.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration
from qviz.core.check import as_matrix, require_int
from qviz.core.grids import Affine
from qviz.core.trace import Emit
from qviz.methods.gptq import METHOD, GroupPlan, Setup, gptq, spread, spread_one
from qviz.methods.registry import require_options

BUDGET = 4  # weights' worth of bytes that a recording may take, the factor U apart


@dataclass(frozen=True)
class Step:
    """One step of a run. Matrices have the weight's rows, and columns in the order of the steps.

    step          j
    column        of the weight that is rounded
    live          [out] w_j, with all compensation so far
    codes, value  [out] what it was rounded to
    error         [out] e_j = (w_j − q_j) / U_jj
    hinv_row      [in − j] U_jj, U_j,j+1, …
    before        [out, in] reconstruction of the steps before j, live columns from there on
    compensation  [out, in − j − 1] −e_j·U_jk, what the later columns are moved by
    """

    step: int
    column: int
    live: torch.Tensor
    codes: torch.Tensor
    value: torch.Tensor
    error: torch.Tensor
    hinv_row: torch.Tensor
    before: torch.Tensor

    @property
    def compensation(self) -> torch.Tensor:
        return -torch.outer(self.error, self.hinv_row[1:])

    @property
    def after(self) -> torch.Tensor:
        """[out, in] with column j rounded and the later ones compensated."""
        after = self.before.clone()
        after[:, self.step] = self.value
        after[:, self.step + 1 :] += self.compensation
        return after


def record(
    weight: torch.Tensor | np.ndarray,
    calibration: Calibration,
    *,
    emit: Emit | None = None,
    **options: Any,
) -> "Recording":
    """Run GPTQ with these options (those of `gptq`) and keep what is needed to show any step.

    `emit` receives every event too, so nothing has to run twice if more is needed than is kept.

    >>> run = record(weight, calibration, bits=3, act_order=True)
    >>> run.column(700).before, run.result.info["loss"]
    """
    return Recording(as_matrix(weight), calibration, options, emit)


class Recording:
    """The steps of one GPTQ run.

    result     the QuantizedTensor that the run returned
    perm       [in] the weight's column of each step
    errors     [in, out] E
    hinv_chol  [in, in] U
    plan       which columns share levels, and when these were found
    weight, calibration, options   what the run was made of; options with their defaults

    Codes and the live columns of the run's current piece are bit-equal to the run's. Columns
    further on, which the lazy algorithm has not touched yet at that step, are W − E·U. The weight
    is kept, not copied: it must not change as long as the recording is used.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        calibration: Calibration,
        options: dict[str, Any],
        emit: Emit | None = None,
    ) -> None:
        require_options("gptq", options)
        self.weight, self.calibration = weight, calibration
        self.options = {**METHOD.defaults, **options}
        given = {**self.options, "in_features": weight.shape[1]}
        self._emit = emit
        self._block = require_int(given["block_size"], "block_size", 1, 10**9)
        self._arriving = 0  # the first step of the block that the run works on
        self._checkpoints: dict[int, torch.Tensor] = {}  # start of a block → columns from there
        self._last: tuple[int, torch.Tensor] | None = None  # the block shown last, likewise
        self.result = gptq(weight, calibration, emit=self._keep, **options)
        self.plan = GroupPlan(**{field.name: given[field.name] for field in fields(GroupPlan)})

    def _keep(self, event: str, /, **tensors: torch.Tensor) -> None:
        if self._emit is not None:
            self._emit(event, **tensors)
        if event == "gptq.hessian":
            self.perm, self._dead = tensors["perm"], tensors["dead"]
        elif event == "gptq.cholesky":
            self.hinv_chol = tensors["hinv_chol"]  # never changed by the run: no copy
            self.errors = self.hinv_chol.new_empty(self.weight.shape[1], self.weight.shape[0])
            self._chosen = self._choose_checkpoints()
        elif event == "gptq.block":
            start, errors = self._arriving, tensors["errors"].T
            self._arriving = stop = start + len(errors)
            self.errors[start:stop] = errors
            if stop in self._chosen:
                self._checkpoints[stop] = tensors["remaining"].T.clone()

    def _choose_checkpoints(self) -> set[int]:
        """Starts of blocks, evenly spread, as many as fit beside the errors and one working copy
        of the columns: k of them hold k/2 times the columns."""
        whole = self.errors.numel() * self.errors.element_size()
        spare = BUDGET * self.weight.numel() * self.weight.element_size() - 2 * whole
        blocks = -(-len(self.errors) // self._block)
        count = min(max(2 * spare // whole, 0), blocks - 1)
        return {-(-i * blocks // (count + 1)) * self._block for i in range(1, count + 1)}

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept, the factor U and the result apart."""
        kept = [self.errors, self.perm, self._dead, *self._checkpoints.values()]
        if self._last is not None:
            kept.append(self._last[1])
        return sum(t.numel() * t.element_size() for t in kept)

    def __len__(self) -> int:
        return len(self.errors)

    def column(self, step: int) -> Step:
        """Step `step` of the run, from 0 to len − 1; IndexError for any other."""
        if not 0 <= step < len(self):
            raise IndexError(f"there is no step {step}: steps go from 0 to {len(self) - 1}")
        w = self._before(step)
        live = w[step].clone()
        rounded = self.result.dequantize().T
        w[:step] = rounded[self.perm[:step]]
        column = int(self.perm[step])
        return Step(
            step=step,
            column=column,
            live=live,
            codes=self.result.codes[:, column],
            value=rounded[column],
            error=self.errors[step],
            hinv_row=self.hinv_chol[step, step:],
            before=w.T,
        )

    def remaining(self, step: int) -> torch.Tensor:
        """[out, in − step] the columns that are not rounded when `step` of them have been, in the
        order of the steps; IndexError for a step that is not from 0 to len."""
        if not 0 <= step <= len(self):
            raise IndexError(f"between 0 and {len(self)} columns can have been rounded, not {step}")
        if step == len(self):
            return self.errors.new_empty(self.errors.shape[1], 0)
        return self._before(step)[step:].T

    def groups(self) -> torch.Tensor:
        """[in] the group, among the columns of the result's scales, of each of its columns."""
        if self.result.g_idx is not None:
            return self.result.g_idx.long()
        return torch.arange(len(self), device=self.errors.device) // self.plan.size

    def live(self) -> torch.Tensor:
        """[out, in] every weight as it was when its column's turn came, in the weight's order."""
        live = torch.empty_like(self.errors)
        for start in range(0, len(self), self._block):
            stop = min(start + self._block, len(self))
            w = self._at_block(start)
            self._replay(w, start, stop, stop)
            live[self.perm[start:stop]] = w[start:stop]
        return live.T

    def positions(self) -> torch.Tensor:
        """[out, in] where each weight lay among the codes before it was rounded, for `agreement`.

        x/s + z, with the scales and zero points that were stored, in float64.
        """
        result, live = self.result, self.live().double()
        grid = result.grid
        assert isinstance(grid, Affine)
        groups = self.groups()
        if grid.offset is not None:
            live = live - grid.offset.double()[:, groups]
        position = live / grid.scale.double()[:, groups]
        return position if grid.zero_point is None else position + grid.zero_point[:, groups]

    def _before(self, step: int) -> torch.Tensor:
        """[in, out] the columns from `step` on, when the run came to it, in rows; new."""
        start = step // self._block * self._block
        stop = min(start + self._block, len(self))
        w = self._at_block(start)
        self._replay(w, start, stop, step)
        spread(w[stop:], self.hinv_chol[start:step, stop:], self.errors[start:step])
        return w

    def _at_block(self, start: int) -> torch.Tensor:
        """[in, out] the columns when the run came to this block, in rows from `start` on; new."""
        known = dict(self._checkpoints)
        if self._last is not None:
            known[self._last[0]] = self._last[1]
        at = max((s for s in known if s <= start), default=0)
        w = self._fresh(known.get(at), at)
        while at < start:
            stop = at + self._block
            # Where a product's operands lie in memory is part of what BLAS does with them.
            errors = self.errors[at:stop].clone()
            spread(w[stop:], self.hinv_chol[at:stop, stop:], errors)
            at = stop
        if start not in known and start > 0:  # the first is quickly had from the weight
            self._last = (start, w[start:].clone())
        return w

    def _fresh(self, columns: torch.Tensor | None, at: int) -> torch.Tensor:
        if columns is None:
            setup = Setup(self.perm, self._dead, self.hinv_chol, 0.0, reordered=True)
            return setup.columns(self.weight)
        w = torch.empty_like(self.errors)
        w[at:] = columns
        return w

    def _replay(self, w: torch.Tensor, start: int, stop: int, step: int) -> None:
        """Do to columns [start, stop) what the steps from `start` up to `step` did, in place."""
        u = self.hinv_chol[start:stop, start:stop].contiguous()
        errors, w = self.errors[start:stop].clone(), w[start:stop]
        for piece in self.plan.pieces(start, stop):
            first, last, done = (at - start for at in (*piece, min(piece[1], step)))
            if first >= done:
                break
            for j in range(first, done):
                spread_one(w[j + 1 : last], u[j, j + 1 : last], errors[j])
            spread(w[last:], u[first:done, last:], errors[first:done])
