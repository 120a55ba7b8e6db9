"""The report on a learner's function after it ran beside the true one."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qviz.core.agreement import Agreement
from qviz.core.calibration import Calibration
from qviz.core.trace import Event, Trace
from qviz.exercises.emitted import Divergence
from qviz.exercises.mistakes import Mistake
from qviz.methods.gptq_record import Recording
from qviz.study.gptq_walk import Walk


@dataclass(frozen=True, eq=False)
class StepReport:
    """What a learner's function did, compared with the true run.

    passed         all codes agree, except at ties, and nothing else is wrong
    summary        one or two sentences
    first          the first divergence; None if there is none
    mistakes       the known mistakes that give the same result; empty if none does
    findings       what else is wrong: an exception, a wrong shape, NaN, missing columns
    notes          what was taken into account and is not a mistake
    agreement      of the codes with the true run's; None if none could be compared. Codes of −10⁶
                   stand for values that are not a level
    steps_equal    steps before the first wrong code; `steps` in all
    loss           ½·tr((W − Q)·H·(W − Q)ᵀ) of the learner's Q, the mean over tokens of the squared
                   output error; None if columns are missing. Codes are read with the true scales
    true_loss, rtn_loss   the same of the true run, and of rounding to nearest
    walk           through the true run, which was run once; `recording`: that run
    events         everything the learner's function emitted, and `columns`: step → its event
    codes          [out, in] int32 the learner's codes, counted as the true run's; None without any
    values         [out, in] what was given instead of codes, if it was values; else None
    known          [in] bool: columns of which there is a code or a value
    weight, calibration, options   the inputs of both runs
    exception      what the function raised, and `trace` its traceback
    """

    passed: bool
    summary: str
    first: Divergence | None
    mistakes: tuple[Mistake, ...]
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    agreement: Agreement | None
    steps_equal: int
    steps: int
    loss: float | None
    true_loss: float
    rtn_loss: float
    walk: Walk
    events: Trace
    columns: Mapping[int, Event]
    codes: torch.Tensor | None
    values: torch.Tensor | None
    known: torch.Tensor
    weight: torch.Tensor
    calibration: Calibration
    options: Mapping[str, Any]
    exception: BaseException | None

    @property
    def recording(self) -> Recording:
        return self.walk.recording

    @property
    def trace(self) -> str:
        if self.exception is None:
            return ""
        return "".join(traceback.format_exception(self.exception))

    def __str__(self) -> str:
        loss = "" if self.loss is None else f"yours {self.loss:.4g}, "
        lines = [
            self.summary,
            *(f"Looks like: {_ended(str(mistake))}" for mistake in self.mistakes),
            *(f"Note: {_ended(note)}" for note in self.notes),
            f"Output error: {loss}GPTQ {self.true_loss:.4g}, round to nearest {self.rtn_loss:.4g}.",
        ]
        return "\n".join(lines)


def summarize(
    passed: bool,
    first: Divergence | None,
    findings: tuple[str, ...],
    mistakes: tuple[Mistake, ...],
    equal: int,
    steps: int,
    found: Agreement | None,
) -> str:
    """One or two sentences."""
    if passed:
        ties = len(found.differences) if found is not None else 0
        more = f" ({ties} rows differ at a tie, which is not a mistake)" if ties else ""
        return f"Equal in all {steps} columns{more}."
    parts = [_sentence(text) for text in findings]
    if first is not None:
        until = f"Codes equal until step {equal}; " if equal else ""
        early = first.step is None or first.step < equal
        parts.append(_sentence(f"{until}{'but ' if until and early else ''}{first}"))
    elif found is not None:
        parts.append(f"Everything that can be compared agrees ({equal} of {steps} columns).")
    if found is not None and found.unexplained and not mistakes:
        parts.append("No known mistake gives this result.")
    return " ".join(parts)


def _sentence(text: str) -> str:
    return _ended(f"{text[0].upper()}{text[1:]}")


def _ended(text: str) -> str:
    return text if text.endswith(("?", "!", ".")) else f"{text}."
