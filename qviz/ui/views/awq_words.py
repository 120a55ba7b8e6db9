"""What the AWQ lesson says of its two experiments by hand; sentences made from frozen facts.

Directions (up, down, still) follow from the numbers as they are written, so that a sentence never
says that something grew and then shows twice the same.
"""

from dataclasses import dataclass

from qviz.core.words import counted, number, percent
from qviz.study.awq_steps import AT_RANDOM, BY_INPUTS, BY_WEIGHTS

QUESTION = (
    "Before you drag: one channel in a hundred may stay in 16 bits. Which choice of channels "
    "lowers the output's error most?"
)
GUESSES = (f"those with the {BY_INPUTS}", f"those with the {BY_WEIGHTS}", "any, chosen at random")
CHOICES = (BY_INPUTS, BY_WEIGHTS, AT_RANDOM)
LITTLE = 0.10  # share of the error below which help is called little


def change(new: str, old: str, words: tuple[str, str, str], values: tuple[float, float]) -> str:
    """Of (up, down, still) the word for two numbers as they are written."""
    if new == old:
        return words[2]
    return words[0] if values[0] > values[1] else words[1]


# ------------------------------------------------------------------------- channels kept


@dataclass(frozen=True)
class Kept:
    """So many channels in 16 bits: what the output is off by.

    count, of  channels kept, of all; how: what they are chosen by
    before     the error with none kept; errors: how → the error with so many kept
    bits       of the codes; cost: bits per weight of the mixture
    """

    count: int
    of: int
    how: str
    bits: int
    before: float
    errors: dict[str, float]
    cost: float


def kept_sentence(facts: Kept) -> str:
    """What keeping these channels does to the output."""
    before = percent(facts.before)
    if facts.count == 0:
        return (
            f"No channel is kept: all {facts.of} are rounded to {facts.bits} bits, and the layer's "
            f"output is off by {before}."
        )
    if facts.count == facts.of:
        return f"All {facts.of} channels are kept: nothing is rounded, and nothing is saved."
    mine = percent(facts.errors[facts.how])
    way = change(mine, before, ("up from", "down from", "still"),
                 (facts.errors[facts.how], facts.before))  # fmt: skip
    off = f"still off by {mine}" if way == "still" else f"off by {mine}, {way} {before}"
    others = ", ".join(
        f"{'' if how == AT_RANDOM else 'by '}{how} {percent(facts.errors[how])}"
        for how in CHOICES if how != facts.how
    )  # fmt: skip
    return (
        f"{counted(facts.count, 'channel')} of {facts.of} kept, by {facts.how}: the layer's output "
        f"is {off}. As many chosen otherwise leave: {others}. Such a mixture costs "
        f"{number(facts.cost)} bits per weight."
    )


@dataclass(frozen=True)
class Guess:
    """What a guess is judged by: one channel in a hundred kept.

    loudest  mean |x| of the loudest channel over the median channel's
    """

    count: int
    of: int
    before: float
    errors: dict[str, float]
    loudest: float


def verdict(guess: int, facts: Guess) -> str:
    """The prediction (a number of GUESSES) against the three errors."""
    order = sorted(CHOICES, key=lambda how: facts.errors[how])
    judged = "Right" if CHOICES[guess] == order[0] else "Not here"
    each = ", ".join(
        f"{'' if how == AT_RANDOM else 'by '}{how} {percent(facts.errors[how])}" for how in order
    )
    text = (
        f"{judged}. Of {percent(facts.before)} error, keeping {facts.count} of {facts.of} leaves: "
        f"{each}."
    )
    if facts.errors[order[0]] > (1 - LITTLE) * facts.before:
        text += (
            f" Even the best choice helps little here: the loudest channel is only "
            f"{number(facts.loudest, 3)}× the median one. Make channels louder, and ask again."
        )
    return text


# ------------------------------------------------------------------------- one channel scaled


@dataclass(frozen=True)
class Factor:
    """One channel times s. Errors are what they put the layer's output off by.

    others  how many other channels share its groups
    first_… the same at s = 1
    widened, growth  share of rows whose spacing grew, and the mean Δ′/Δ over all rows
    """

    channel: int
    others: int
    s: float
    own: float
    first_own: float
    rest: float
    first_rest: float
    widened: float
    growth: float
    output: float
    first_output: float


def factor_sentence(facts: Factor) -> str:
    """What multiplying a channel by s does to it, to its groups, and to the output."""
    who = f"the {counted(facts.others, 'other')} of its group"
    if facts.s == 1:
        return (
            f"s = 1: nothing is scaled. Channel {facts.channel}'s errors alone put the output off "
            f"by {percent(facts.own)}, those of {who} by {percent(facts.rest)}. All in all it is "
            f"off by {percent(facts.output)}."
        )
    own = _moved(facts.own, facts.first_own, "its own errors")
    rest = _moved(facts.rest, facts.first_rest, "the others' errors")
    if facts.widened == 0:
        wide = "In no row does it stretch its group: the spacing stays, and"
    else:
        wide = (
            f"In {percent(facts.widened)} of the rows it now stretches its group; over all rows "
            f"the spacing is {number(facts.growth)}× what it was, and"
        )
    out = percent(facts.output)
    first = percent(facts.first_output)
    way = change(out, first, ("up from", "down from", "still"), (facts.output, facts.first_output))
    whole = f"still off by {out}" if way == "still" else f"off by {out}, {way} {first}"
    return (
        f"Channel {facts.channel} times s = {number(facts.s)}: {own}. {wide} {rest}. The layer's "
        f"output is {whole}."
    )


def _moved(new: float, old: float, what: str) -> str:
    a, b = percent(new), percent(old)
    way = change(a, b, ("rise", "fall", "stay"), (new, old))
    return f"{what} stay at {a}" if way == "stay" else f"{what} {way} from {b} to {a}"
