"""A second run beside the first in words: how far off each is, and the signs of what goes wrong."""

from dataclasses import dataclass

from qviz.study.gguf_facts import ZooFacts
from qviz.ui.views.gguf_guide import NO_PASS, OUTLIER, PAIRS, UNREACHED
from qviz.ui.views.gguf_words import (
    _from,
)
from qviz.ui.widgets import number, percent

BY_INPUTS, BY_REST = "Weighted by the inputs", "Without the large weight"


@dataclass(frozen=True)
class BesideFacts:
    """Two walks at the end of a step: how far off each is; `weighed`: the same `by` what tells them
    apart, the importance of the inputs say."""

    off: float
    other: float
    weighed: float | None = None
    weighed_other: float | None = None
    by: str = BY_INPUTS


def beside_words(facts: BesideFacts) -> str:
    """What the second run has come to, after the first run's own sentence."""
    text = (
        f" Beside it: off by {percent(facts.other)}, "
        f"{_more_or_less(facts.other, facts.off)} than the first run."
        if percent(facts.other) != percent(facts.off)
        else f" Beside it: off by {percent(facts.other)} as well."
    )
    if facts.weighed is None or facts.weighed_other is None:
        return text
    way = _more_or_less(facts.weighed_other, facts.weighed)
    tail = f" {facts.by}: {percent(facts.weighed_other)}, {way} than {percent(facts.weighed)}."
    if percent(facts.weighed_other) == percent(facts.weighed):
        tail = f" {facts.by}: {percent(facts.weighed_other)} in both."
    return text + tail


def _more_or_less(mine: float, other: float) -> str:
    return "more" if mine > other else "less"


# --------------------------------------------------------------------------------- what goes wrong


def zoo_words(name: str, facts: ZooFacts) -> str:
    """What a failure does to the block, and the sign by which one knows it."""
    if name == NO_PASS:
        return (
            f"The search's codes are stored with rounded scales that they were not made for. "
            f"{facts.farther} of {facts.weights} weights lie nearer to another level of their own "
            f"block: that is the sign. Off by {percent(facts.off)}; with the second pass "
            f"{percent(facts.off_true)}."
        )
    if name == OUTLIER:
        zero = f", {facts.zero_scales} of them 0" if facts.zero_scales else ""
        small = (
            f"{facts.small_scales} of {facts.groups} scales are at most a tenth of the largest "
            f"integer{zero}: so small integers are coarse, and that is the sign. "
            if facts.groups > 1
            else "Most codes are the same: that is the sign. "
        )
        return (
            f"One weight is {number(facts.factor)}× as large, and takes its block's scale with it. "
            f"{small}The other {facts.weights - 1} weights are off by {percent(facts.rest)}, "
            f"{_from(facts.rest, facts.rest_true)}; the error of the whole block, "
            f"{percent(facts.off)}, hides that, because the outlier is nearly all of it."
        )
    if name == UNREACHED:
        return (
            f"No calibration text reached these inputs (an expert of a mixture that it never "
            f"chose, say), so their importance is 0. Errors cost nothing and there is nothing to "
            f"fit: {facts.zero_scales} of {facts.groups} scales become 0, and the block is off by "
            f"{percent(facts.off)}, {_from(facts.off, facts.off_true)}. Scales of 0 are the sign."
        )
    if name == PAIRS:
        same = (
            "the codes are the same, each as often as before, but"
            if facts.same_codes
            else "the codes differ too, and"
        )
        return (
            f"The bytes are right, the reader is not: it takes the two halves of a byte for "
            f"neighbours. So {same} they belong to other weights. Off by {percent(facts.off)} "
            f"instead of {percent(facts.off_true)}: an error near or above 100 % with an ordinary "
            f"histogram is the sign."
        )
    raise KeyError(name)
