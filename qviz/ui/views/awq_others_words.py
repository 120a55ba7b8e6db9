"""What the AWQ lesson says of AWQ beside other methods."""

from collections.abc import Sequence
from dataclasses import dataclass

from qviz.core.words import counted, number, percent
from qviz.study.awq_beside import BOTH, CLIPPED, GPTQ, NEAREST, SCALED


@dataclass(frozen=True)
class Score:
    """A method at one width: error on the calibration text and on held-out text."""

    method: str
    error: float
    judged: float


def scores_sentence(bits: int, cost: float, scores: Sequence[Score]) -> str:
    """Who leaves least, how AWQ does, and what GPTQ's calibration hides; `cost` bits per weight."""
    by = {one.method: one for one in scores}
    first = min(scores, key=lambda one: one.judged)
    text = (
        f"{bits} bits, {number(cost)} with scales and zero points, the same for all. On held-out "
        f"text {_said(first.method)} leaves least, {percent(first.judged)}."
    )
    awq = min((by[SCALED], by[CLIPPED]), key=lambda one: one.judged)
    ours = first.method in (SCALED, CLIPPED)
    who, other = ("Beside it GPTQ", by[GPTQ]) if ours else ("The better AWQ", awq)
    if percent(other.judged) == percent(first.judged):
        text += f" {who} leaves as much."
    else:
        text += f" {who} leaves {percent(other.judged)}: it loses here."
    clipped, nearest = percent(by[CLIPPED].judged), percent(by[NEAREST].judged)
    if by[CLIPPED].judged > by[NEAREST].judged and clipped != nearest:
        text += (
            f" AWQ with clipping leaves {clipped}, which is worse than rounding to nearest, "
            f"{nearest}."
        )
    if not (by[GPTQ].error and awq.error):
        return text  # of a layer that comes back whole there is nothing to compare
    gap, mine = by[GPTQ].judged / by[GPTQ].error, awq.judged / awq.error
    return (
        f"{text} From its own text to held-out text GPTQ's error becomes {number(gap, 3)}× as "
        f"large, AWQ's {number(mine, 3)}×."
    )


def _said(method: str) -> str:
    """A method in the middle of a sentence."""
    return {
        NEAREST: "rounding to nearest",
        SCALED: "AWQ with scales alone",
        CLIPPED: "AWQ with scales and clip",
        BOTH: "GPTQ after AWQ's scales",
    }.get(method, method)


@dataclass(frozen=True)
class Tally:
    """All layers of a model at one width.

    layers  how many; better, beaten: on how many AWQ with clipping is better than rounding to
            nearest, and than GPTQ
    worst   the layer on which it does worst, and its error there over that of rounding to nearest
    """

    bits: int
    layers: int
    better: int
    beaten: int
    worst: str
    ratio: float


def tally_sentence(facts: Tally) -> str:
    """How AWQ with clipping does on all layers, on held-out text."""
    does = "does worst" if facts.ratio >= 1 else "gains least"
    return (
        f"{counted(facts.layers, 'layer')} at {facts.bits} bits, on held-out text. AWQ with "
        f"clipping beats rounding to nearest on {facts.better} and GPTQ on {facts.beaten}. It "
        f"{does} on {facts.worst}: {number(facts.ratio, 3)}× the error of rounding to nearest."
    )
