"""Two GPTQ runs in numbers: which is better, and how they differ.

Nothing here is words: each function returns a number, or a record of them, that the verdicts
(`gptq_verdicts`) are made of.
"""

from dataclasses import dataclass, replace

import torch

from qviz.core.metrics import output_energy, output_error, ratio
from qviz.study.gptq_walk import Walk

SAME = 0.01  # relative: errors that differ by less are called equal, as three digits would show


def end(walk: Walk) -> float:
    """The relative output error of the finished run, on the judge's inputs."""
    return float(walk.error[-1])


def nearest_end(walk: Walk) -> float:
    """The same of rounding to nearest."""
    return float(walk.rtn_error[-1])


def on_own(walk: Walk) -> float:
    """The relative output error on the inputs that the run was calibrated on."""
    return output_error(walk.original, walk.result.dequantize(), walk.calibration)


def better(new: float, old: float) -> int:
    """1 for a smaller error, −1 for a larger one, 0 for the same."""
    if old == new or (old and abs(new / old - 1) <= SAME):
        return 0
    return 1 if new < old else -1


def verdict(first: Walk, second: Walk) -> int:
    """Whether the second run ends better than the first."""
    return better(end(second), end(first))


def bits(walk: Walk) -> float:
    return float(walk.result.bits_per_weight)


def changed_codes(first: Walk, second: Walk) -> int:
    return int((first.result.codes != second.result.codes).sum())


def changed_scales(first: Walk, second: Walk) -> float:
    """The share of scales that differ by more than rounding."""
    a, b = (walk.grid.scale for walk in (first, second))
    return float((~torch.isclose(a, b, rtol=1e-5)).double().mean())


def account(walk: Walk) -> float:
    """Σe² over the damped output error that it is equal to in a correct run."""
    lost = walk.original.double() - walk.result.dequantize().double()
    lost[:, walk.result.info["dead_columns"]] = 0  # they were set to zero before the run began
    damped = replace(walk.calibration, hessian=walk.hessian.double())
    total = float(walk.recording.errors.double().square().sum())
    return ratio(total, output_energy(lost[:, walk.perm], damped))


def with_damping(walk: Walk, damp: float) -> Walk:
    """The same run with another damping."""
    options = {**walk.options, "damp": damp}
    return Walk(walk.original, walk.calibration, walk.judge, **options)


@dataclass(frozen=True)
class OneChannel:
    """An input whose weights make most of a run's error.

    channel  its number
    rest     the relative output error if these weights were exact
    loudest  the largest |x| of this input for the judge; seen: the same in the calibration
    dead     the calibration never saw it, so its weights were set to 0
    """

    channel: int
    rest: float
    loudest: float
    seen: float
    dead: bool


def from_one_channel(walk: Walk) -> OneChannel | None:
    """The input whose weights make more than half of the judge's squared error, if one does.

    Were they exact, tr(Δ·H·Δᵀ) would fall by 2·Δ_j·(Δ·H)_j − H_jj·|Δ_j|².
    """
    lost = walk.original.double() - walk.result.dequantize().double()
    h = walk.judge.hessian.double()
    pull = lost @ h
    fall = 2 * (lost * pull).sum(0) - h.diagonal() * lost.square().sum(0)
    worst, whole = int(fall.argmax()), float((lost * pull).sum())
    if float(fall[worst]) <= 0.5 * whole:
        return None
    loudest, seen = (float(c.act_absmax[worst]) for c in (walk.judge, walk.calibration))
    rest = max(1 - float(fall[worst]) / whole, 0.0) ** 0.5 * end(walk)
    return OneChannel(worst, rest, loudest, seen, worst in walk.dead)
