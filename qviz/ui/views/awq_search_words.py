"""What the AWQ lesson says of a search for factors, and of two beside each other."""

from dataclasses import dataclass

from qviz.core.words import number, percent
from qviz.study.awq_beside import SILENT, TEXT, TOKENS
from qviz.ui.views.awq_words import change


@dataclass(frozen=True)
class Try:
    """A candidate of the search.

    number, of  which it is, from 0, and the last one; layers: how many are judged together
    weights     whether the weights' sizes enter
    low, high   the smallest and the largest factor
    error       of the output, of these layers together; best: of the best before it, None at first
    nearest     of rounding to nearest
    """

    number: int
    of: int
    r: float
    weights: bool
    low: float
    high: float
    layers: int
    error: float
    best: float | None
    nearest: float


def try_sentence(facts: Try) -> str:
    """What this candidate is, and whether the search would take it."""
    duo = ", with the weights' sizes" if facts.weights else ""
    factors = f"factors from {number(facts.low, 3)} to {number(facts.high, 3)}"
    if percent(facts.low) == percent(facts.high):
        factors = f"every factor is {number(facts.low, 3)}, so this is rounding to nearest"
    who = "the layer's output" if facts.layers == 1 else f"the output of {facts.layers} layers"
    text = (
        f"Candidate {facts.number} of {facts.of}, r = {number(facts.r, 3)}{duo}: {factors}. It "
        f"puts {who} off by {percent(facts.error)}"
    )
    if facts.best is None:
        return f"{text}, and is the first."
    if facts.error < facts.best:
        return f"{text}: the best so far, before it {percent(facts.best)}."
    return f"{text}; the best so far keeps {percent(facts.best)}."


def _times(spread: float) -> str:
    """How many times, also where it is thousands."""
    return f"{spread:,.0f}" if spread >= 1000 else number(spread, 3)


@dataclass(frozen=True)
class Found:
    """What a search found.

    r, weights      the ratio, and whether the weights' sizes enter
    spread          the largest factor over the smallest
    own, judged     the error on its own calibration, and on the judge's text
    nearest         rounding to nearest on the judge's text
    """

    r: float
    weights: bool
    spread: float
    own: float
    judged: float
    nearest: float


def found_sentence(facts: Found) -> str:
    """What the search takes, and how it does on a text that it has not heard."""
    duo = " with the weights' sizes" if facts.weights else ""
    return (
        f"It takes r = {number(facts.r, 3)}{duo}; the largest factor is {_times(facts.spread)}× "
        f"the smallest. On held-out text the output is then off by "
        f"{percent(facts.judged)}; {_than(facts.judged, facts.nearest)}."
    )


def _than(mine: float, nearest: float) -> str:
    a, b = percent(mine), percent(nearest)
    if a == b:
        return f"rounding to nearest is just as far off, {b}"
    return f"rounding to nearest is {'better' if nearest < mine else 'worse'}, {b}"


def beside_sentence(name: str, first: Found, second: Found) -> str:
    """Two searches side by side: how the second does, and the sign by which one knows it."""
    a, b = percent(first.judged), percent(second.judged)
    way = change(b, a, ("worse than the first", "better than the first", "as far off as the first"),
                 (second.judged, first.judged))  # fmt: skip
    duo = " with the weights' sizes" if second.weights else ""
    text = (
        f"The second takes r = {number(second.r, 3)}{duo} and is off by {b} on held-out text, {way}"
    )
    text += "." if a == b else f" ({a})."
    spread = f"its largest factor is {_times(second.spread)}× the smallest"
    if name == SILENT:
        text += (
            f" The sign: {spread}; the first's is {_times(first.spread)}×. A channel whose mean "
            f"|x| is 0 gets the smallest factor that is allowed, its weights vanish below the "
            f"spacing, and its own text cannot tell ({percent(second.own)} there). Look at the "
            f"spread of the factors; calibrate on text that uses every channel."
        )
    elif name in (TEXT, TOKENS):
        text += (
            f" The sign: on its own text it claims {percent(second.own)}. Compare on a text that "
            f"was not used."
        )
    return text
