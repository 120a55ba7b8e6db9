"""A learner's run in the form that a page can step through, beside the true run.

The learner's result is shown as it is. Codes give the rounded columns. If errors and rows of U were
emitted too, they move the waiting columns; otherwise those stay as they were. Only the scales that
codes are read with come from the true run.
"""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch

from qviz.core.trace import Event
from qviz.exercises.report import StepReport

POINTS = 32  # steps at which the error is computed


class AttemptWalk:
    """What a learner's function did, as `Walk` shows the true run.

    report  on the learner's function, with the walk through the true run it was compared with

    n, rows, perm, turn   those of the true run: its columns in its order
    errors   [in, out] the errors that were emitted; 0 at steps without
    factor   [in, in] the rows of U that were emitted; 0 at steps without
    options  those of the true run
    values   [out, in] what the codes stand for, in the weight's order; NaN where there are none

    Raises ValueError for a report without codes: there is nothing to step through.

    >>> report = qviz.step_through(my_gptq, weight, calibration)
    >>> AttemptWalk(report).now(17)
    """

    def __init__(self, report: StepReport) -> None:
        if report.codes is None:
            raise ValueError(f"there are no codes to show: {report.summary}")
        true = self.true = report.walk
        self.options = true.options
        self.n, self.rows, self.perm, self.turn = true.n, true.rows, true.perm, true.turn
        self.values = self._read(report)
        self.errors = torch.zeros_like(true.recording.errors)
        self.factor = torch.zeros_like(true.recording.hinv_chol)
        for step, event in report.columns.items():
            if 0 <= step < self.n:
                self._take(step, event)

    def _read(self, report: StepReport) -> torch.Tensor:
        """[out, in] the learner's values; NaN where there is no code of a level, or none at all."""
        like = self.true.original
        if report.values is not None:
            finite = report.known & torch.isfinite(report.values)
            return torch.where(finite, report.values.to(like), torch.nan)
        codes, grid = report.codes, self.true.grid
        assert codes is not None
        inside = (codes >= grid.qmin) & (codes <= grid.qmax) & report.known
        kept = codes.clamp(grid.qmin, grid.qmax).to(self.true.result.codes.dtype)
        read = replace(self.true.result, codes=kept).dequantize()
        return torch.where(inside, read.to(like), torch.nan)

    def _take(self, step: int, event: Event) -> None:
        """Keep a step's error and row of U, if both were emitted in a usable shape."""
        error, row = event.tensors.get("error"), event.tensors.get("hinv_row")
        if error is None or row is None or error.numel() != self.rows:
            return
        row = row.flatten()
        if len(row) == self.n:
            row = row[step:]
        if len(row) != self.n - step:
            return
        finite = bool(torch.isfinite(error).all() and torch.isfinite(row).all())
        if finite:
            self.errors[step] = error.flatten().to(self.errors)
            self.factor[step, step:] = row.to(self.factor)

    @cached_property
    def _ends(self) -> torch.Tensor:
        """[out, in] in the order of the steps: values, and where there are none the original."""
        values = torch.where(torch.isnan(self.values), self.true.original, self.values)
        return values[:, self.perm]

    def now(self, step: int) -> torch.Tensor:
        """[out, in] in the order of the steps, after `step` columns: theirs for those, and the
        others as the emitted errors have left them. IndexError for a step that is not in 0 … n."""
        if not 0 <= step <= self.n:
            raise IndexError(f"there is no step {step}: steps go from 0 to {self.n}")
        w = self.true.now(0).clone()
        w[:, step:] -= self.errors[:step].T @ self.factor[:step, step:]
        w[:, :step] = self._ends[:, :step]
        return w

    @cached_property
    def error(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps, relative output errors) at about 32 steps, first and last among them, measured as
        the true walk measures its own."""
        steps = np.unique(np.linspace(0, self.n, min(self.n, POINTS) + 1).round().astype(int))
        h = self.true.judges_hessian
        start = self.true.original[:, self.perm].double()
        whole = float(((start @ h) * start).sum())
        found = []
        for step in steps:
            lost = start - self.now(int(step)).double()
            found.append(max(float(((lost @ h) * lost).sum()), 0.0))
        return steps, np.sqrt(np.array(found) / whole) if whole else np.zeros(len(steps))
