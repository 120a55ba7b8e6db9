"""The learner's own GPTQ beside the true one: where do they first differ, and because of which
mistake?

Both run on the same weight and Hessian. Codes are compared by the first difference in each row,
except at ties (`core.agreement`). What the learner's function emits is compared too. Known mistakes
are run to see which of them give the learner's result (`mistakes`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qviz.core.agreement import Agreement, Difference, agreement
from qviz.core.calibration import Calibration, require_fit
from qviz.core.check import as_matrix
from qviz.core.granularity import whole_or_size
from qviz.core.trace import Trace
from qviz.exercises.emitted import Divergence, Slack, Truth, collected, first_wrong
from qviz.exercises.learner import Answer, Attempt, Levelled, Listener, call, read
from qviz.exercises.mistakes import ROWS, Mistake, diagnose, named
from qviz.exercises.report import StepReport, summarize
from qviz.exercises.variants import OFF_GRID, Bench, Seen, Variant
from qviz.methods.affine import affine
from qviz.methods.gptq import METHOD
from qviz.methods.gptq_record import record
from qviz.study.gptq_walk import Walk

FAR = 0.05  # spacings: nothing this far from the midpoint between two codes is a tie
# What NumPy and torch raise where a matrix has no factor.
FACTOR_ERRORS = (np.linalg.LinAlgError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


def step_through(
    my_gptq: Callable[..., Any],
    weight: torch.Tensor | np.ndarray,
    hessian: torch.Tensor | np.ndarray | Calibration,
    **options: Any,
) -> StepReport:
    """Run a learner's GPTQ beside the true one and report where they first differ.

    my_gptq  called as my_gptq(weight, hessian, **options) with copies, and with those of the
             options, and `emit`, that it has parameters for. Both are of the kind of `weight`,
             NumPy or torch, in the dtype of the true run: float64 for a float64 weight, else
             float32. It returns codes [out, in], from 0 or around 0, or the values they stand for
             (within 0.01 spacings of a true level), or a QuantizedTensor; and it may
             emit("gptq.column", step=…, codes=…, error=…, …), all or some of `gptq`'s events
    weight   [out, in], as for `gptq`
    hessian  [in, in], or a Calibration; a positive factor on it changes no code
    options  those of `gptq` except `variant`: bits=4, symmetric=True, group_size=128,
             act_order=False,
             damp=0.01, static_groups=False, block_size=128, …

    Raises TypeError for a function that cannot be called like this, and for whatever `gptq`
    refuses. An exception raised by the function is in the report.

    >>> report = qviz.step_through(lambda w, h: w.round(), weight, calibration)
    >>> print(report)
    """
    if "variant" in options:
        raise TypeError("omit variant: the true run is GPTQ, and mistakes are searched for")
    if "group_size" in options:
        options["group_size"] = whole_or_size(options["group_size"])
    as_numpy = isinstance(weight, np.ndarray)
    matrix = as_matrix(weight)
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    matrix = matrix.to(dtype).contiguous().clone()
    calibration = _calibration(hessian, matrix)
    truth = _true_run(matrix, calibration, options)
    asked = {name: default for name, default in METHOD.defaults.items() if name != "variant"}
    attempt = call(
        my_gptq, matrix, calibration.hessian.to(dtype), {**asked, **options}, asked, as_numpy
    )
    return _Judge(matrix, calibration, {**METHOD.defaults, **options}, truth).report(
        attempt, my_gptq
    )


def _calibration(
    hessian: torch.Tensor | np.ndarray | Calibration, weight: torch.Tensor
) -> Calibration:
    """The calibration as gptq takes it. A bare Hessian has no inputs, and gptq uses none."""
    if not isinstance(hessian, Calibration):
        h = as_matrix(hessian, "hessian").to(weight.device)
        none = h.new_zeros(0, h.shape[1])
        unknown = h.new_zeros(h.shape[1])
        hessian = Calibration(none, h.clone(), unknown, unknown, tokens=1)
    require_fit(hessian, weight.shape[1])
    return hessian


def _true_run(weight: torch.Tensor, calibration: Calibration, options: Mapping[str, Any]) -> Truth:
    fixed = Trace("gptq.hessian", "gptq.group")
    recording = record(weight, calibration, emit=fixed, **options)
    given = {**METHOD.defaults, **options}
    return Truth(
        recording=recording,
        levelled=Levelled.of(recording.result),
        hessian=fixed.named("gptq.hessian")[0]["hessian"],
        groups={int(event["group"]): event for event in fixed.named("gptq.group")},
        live=recording.live(),
        position=recording.positions(),
        upfront=bool(given["static_groups"]) or given["group_size"] is None,
        group_size=int(given["group_size"] or weight.shape[1]),
    )


class _Judge:
    """One comparison."""

    def __init__(
        self,
        weight: torch.Tensor,
        calibration: Calibration,
        options: Mapping[str, Any],
        truth: Truth,
    ) -> None:
        self.weight, self.options, self.truth = weight, options, truth
        self.calibration = calibration
        self.hessian = calibration.hessian.double().to(weight.device)

    def report(self, attempt: Attempt, function: Callable[..., Any]) -> StepReport:
        answer, findings, notes = self._answer(attempt, function)
        listener, seen = attempt.listener, answer.seen
        found = None if seen is None else self._agreement(seen)
        parted = self._parted(found)
        wrong, said = first_wrong(
            listener, self.truth, parted, answer.offset, self._slack(listener)
        )
        notes += said
        bad_codes = found.unexplained if found is not None else ()
        if not bad_codes and wrong is not None and not findings and seen is not None:
            notes.append(f"all codes agree, but the emitted tensors do not: {wrong}")
            wrong = None
        first = self._first(bad_codes, wrong, answer)
        mistakes = self._mistakes(answer, bad_codes, listener, attempt)
        steps = len(self.truth.perm)
        equal = bad_codes[0].step if bad_codes else self._known_steps(seen)
        loss = self._loss_of(seen)
        passed = seen is not None and not bad_codes and not findings
        return StepReport(
            passed=passed,
            summary=summarize(passed, first, tuple(findings), mistakes, equal, steps, found),
            first=first,
            mistakes=mistakes,
            findings=tuple(findings),
            notes=tuple(notes),
            agreement=found,
            steps_equal=equal,
            steps=steps,
            loss=loss,
            true_loss=self._loss(self.truth.levelled.value),
            rtn_loss=self._loss(self._nearest()),
            walk=Walk.of(self.truth.recording, hessian=self.truth.hessian),
            events=listener.trace,
            columns=listener.columns(),
            codes=None if seen is None else self._codes(seen),
            values=None if seen is None else seen.values,
            known=torch.zeros(steps, dtype=torch.bool) if seen is None else seen.known,
            weight=self.weight,
            calibration=self.calibration,
            options=self.options,
            exception=attempt.exception,
        )

    def _answer(
        self, attempt: Attempt, function: Callable[..., Any]
    ) -> tuple[Answer, list[str], list[str]]:
        """What can be compared: the returned result or, without one, what was emitted."""
        notes = [f"your function has no parameter {name}" for name in attempt.ignored]
        if self._ties_in_order:
            notes.append("diag H has equal values, and their columns may go in either order; "
                "the true run takes them from left to right, as a stable sort does")  # fmt: skip
        answer = Answer(None)
        findings = []
        if attempt.exception is not None:
            findings.append(attempt.failure(function))
        else:
            answer = read(attempt, self.truth.levelled)
            findings += answer.findings
            notes += answer.notes
        codes, values, known, offset = collected(attempt.listener, self.truth)
        if answer.seen is None and (codes is not None or values is not None):
            answer = Answer(Seen(codes, values, known), offset)
        elif answer.seen is not None and codes is not None and bool(known.all()):
            emitted, returned = (
                self._agreement(Seen(codes, None, known)),
                self._agreement(answer.seen),
            )
            if not emitted.unexplained and returned.unexplained:
                findings.append("the emitted codes agree, but the returned ones do not")
        if answer.seen is not None and codes is not None and attempt.exception is None:
            notes += self._emitted_otherwise(codes, known, answer.seen)
        return answer, findings, notes

    def _emitted_otherwise(
        self, codes: torch.Tensor, known: torch.Tensor, returned: Seen
    ) -> list[str]:
        """What to say if the emitted codes are not the returned ones."""
        both = (known & returned.known)[self.truth.perm]
        other = (codes != self._codes(returned)).any(0)[self.truth.perm] & both
        if not bool(other.any()):
            return []
        return [f"the codes emitted at step {int(other.int().argmax())} are not those returned"]

    def _codes(self, seen: Seen) -> torch.Tensor:
        if seen.codes is not None:
            return seen.codes
        assert seen.values is not None
        return self.truth.levelled.codes_of(seen.values)

    def _agreement(self, seen: Seen) -> Agreement:
        """The agreement of the given codes; unknown columns count as equal."""
        ours = self.truth.levelled.codes
        theirs = torch.where(seen.known, self._codes(seen), ours)
        found = agreement(ours, theirs, self.truth.position, perm=self.truth.perm)
        if not found.unexplained:
            return found
        if self._ties_in_order:
            perm, codes, position = self._other_order
            other = agreement(codes, torch.where(seen.known, self._codes(seen), codes), position,
                              perm=perm)  # fmt: skip
            if not other.unexplained:
                return other
        ties = self._zero_ties()
        found = _explained(
            found, lambda d: abs(d.ours - d.theirs) == 1 and bool(ties[d.row, d.column])
        )
        if found.unexplained:
            width = self._tie_width
            found = _explained(found, lambda d: d.distance <= float(width[d.step]))
        return found

    @cached_property
    def _ties_in_order(self) -> bool:
        """Whether act-order leaves the order of two columns open, because diag H is equal there."""
        live = self.hessian.diagonal()[self.hessian.diagonal() != 0]
        return bool(self.options["act_order"]) and bool((live.sort().values.diff() == 0).any())

    @cached_property
    def _other_order(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """perm [in], codes and positions [out, in] with such columns from right to left."""
        turned = replace(self.calibration, hessian=self.calibration.hessian.flip(0, 1))
        given = {name: value for name, value in self.options.items() if name != "variant"}
        run = record(self.weight.flip(1), turned, **given)
        codes = run.result.codes.flip(1).int()
        return len(run.perm) - 1 - run.perm, codes, run.positions().flip(1)

    @cached_property
    def _bench(self) -> Bench:
        return Bench(self.weight, self.hessian, self.options, self.truth.recording.result)

    def _slack(self, listener: Listener) -> Slack:
        """How far the emitted tensors may be off; computed only if some were emitted."""
        none = self.hessian.new_zeros(len(self.hessian))
        if not len(listener.trace):
            return Slack(none, none)
        exact, single = (self._bench.factor(Variant(factor=f)) for f in ("true", "float32"))
        if exact is None or single is None:
            return Slack(none, none)
        return Slack(4 * (exact - single).norm(dim=1), 8 * self._drift)

    @cached_property
    def _tie_width(self) -> torch.Tensor:
        """[in] how far from the midpoint between two codes a weight may be at each step and still
        be a tie: a few times as far as float32, which most learners use, moves it.

        That is usually less than FAR. If H is nearly singular it can be more: on some processors
        the float32 inverse makes the last rows of U wrong by a sixth, and then their codes say
        nothing about the learner.
        """
        width = 4 * self._drift
        return torch.where(self._drift > FAR, width, width.clamp(max=FAR))

    @cached_property
    def _drift(self) -> torch.Tensor:
        rows = torch.arange(min(len(self.weight), ROWS), device=self.weight.device)
        return self._bench.drift(rows)

    def _zero_ties(self) -> torch.Tensor:
        """[out, in] bool: weights whose group's zero point was itself rounded at a tie.

        It may go either way, and shifts all codes of its group by one.
        """
        near = torch.zeros(self.weight.shape, dtype=torch.bool, device=self.weight.device)
        result = self.truth.recording.result
        index = torch.arange(near.shape[1], device=near.device) // self.truth.group_size
        if result.g_idx is not None:
            index = result.g_idx.long()
        for group in self.truth.groups:
            near[:, index == group] = self.truth.zero_tie(group).unsqueeze(1)
        return near

    def _parted(self, found: Agreement | None) -> torch.Tensor:
        """[out] the step at which each row's codes first differ from the true run's; in if
        never."""
        rows, n = self.weight.shape
        parted = torch.full((rows,), n, device=self.weight.device)
        for difference in found.differences if found is not None else ():
            parted[difference.row] = difference.step
        return parted

    def _first(
        self, bad: tuple[Difference, ...], wrong: Divergence | None, answer: Answer
    ) -> Divergence | None:
        """The earliest divergence: an emitted quantity, or a code."""
        if not bad:
            return wrong
        code = bad[0]
        if wrong is not None and (wrong.step is None or wrong.step <= code.step):
            return wrong
        if code.theirs == OFF_GRID and answer.seen is not None and answer.seen.values is not None:
            truth, got = self.truth.levelled.value, answer.seen.values
            return Divergence(
                code.step, code.column, code.row, "value",
                float(truth[code.row, code.column]), float(got[code.row, code.column]),
            )  # fmt: skip
        number = code.theirs - answer.offset if code.theirs > OFF_GRID else float("nan")
        return Divergence(
            code.step, code.column, code.row, "codes",
            code.ours - answer.offset, number, code.distance,
        )  # fmt: skip

    def _mistakes(
        self,
        answer: Answer,
        bad: tuple[Difference, ...],
        listener: Listener,
        attempt: Attempt,
    ) -> tuple[Mistake, ...]:
        bench = self._bench
        seen = answer.seen
        square = seen is not None and self.weight.shape[0] == self.weight.shape[1]
        if seen is not None and (answer.transposed or (bad and square)):
            turned = seen if answer.transposed else _turned(seen)
            found = self._agreement(turned)
            if not found.unexplained:
                return (named("transposed", found),)
        if isinstance(attempt.exception, FACTOR_ERRORS):
            damped = bench.factors_undamped() or not bench.factors_in_float32()
            return () if damped else (named("no_damping"),)
        if seen is None or not bad:
            return ()
        shift = self._shift(seen)
        if shift:
            return (named("codes_shifted", details=(f"{shift:+d}",)),)
        affected = torch.zeros(len(self.weight), dtype=torch.bool, device=self.weight.device)
        affected[[d.row for d in bad]] = True
        factors = [e["hinv_chol"].double() for e in listener.trace.named("gptq.cholesky")
                   if "hinv_chol" in e.tensors]  # fmt: skip
        return diagnose(bench, replace(seen, factor=factors[-1] if factors else None), affected)

    def _shift(self, seen: Seen) -> int:
        """The number by which all codes are shifted from the true run's; 0 if they are not."""
        if seen.codes is None:
            return 0
        moved = (seen.codes - self.truth.levelled.codes)[:, seen.known]
        shift = int(moved.flatten().mode().values)
        back = replace(seen, codes=seen.codes - shift)
        return 0 if self._agreement(back).unexplained else shift

    def _known_steps(self, seen: Seen | None) -> int:
        """The number of leading steps without a gap."""
        if seen is None:
            return 0
        unknown = (~seen.known[self.truth.perm]).nonzero().flatten()
        return int(unknown[0]) if len(unknown) else len(self.truth.perm)

    def _nearest(self) -> torch.Tensor:
        o = self.options
        return affine(
            self.weight,
            bits=o["bits"],
            symmetric=o["symmetric"],
            granularity="channel" if o["group_size"] is None else "group",
            group_size=o["group_size"],
            convention=o["convention"],
            scale_dtype=o["scale_dtype"],
        ).dequantize()

    def _loss_of(self, seen: Seen | None) -> float | None:
        if seen is None or not bool(seen.known.all()):
            return None
        values = seen.values
        if values is None:
            assert seen.codes is not None
            level = self.truth.levelled
            values = level.value + (seen.codes - level.codes) * level.scale
            values[seen.codes <= OFF_GRID] = torch.nan
        loss = self._loss(values)
        return loss if np.isfinite(loss) else None

    def _loss(self, values: torch.Tensor) -> float:
        error = self.weight.double() - values.double()
        return float(((error @ self.hessian) * error).sum()) / 2


def _explained(found: Agreement, rule: Callable[[Difference], bool]) -> Agreement:
    """The same, where differences that this rule allows are explained too."""
    differences = (replace(d, explained=d.explained or rule(d)) for d in found.differences)
    return replace(found, differences=tuple(differences))


def _turned(seen: Seen) -> Seen:
    codes, values = seen.codes, seen.values
    return replace(
        seen,
        codes=None if codes is None else codes.T,
        values=None if values is None else values.T,
    )
