"""What the AWQ lesson says: its sentences, made from frozen facts and from nothing else.

Directions (up, down, still) follow from the numbers as they are written, so that a sentence never
says that something grew and then shows twice the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qviz.core.words import counted, number, percent
from qviz.study.awq_beside import BOTH, CLIPPED, GPTQ, NEAREST, SCALED, SILENT, TEXT, TOKENS
from qviz.study.awq_steps import AT_RANDOM, BY_INPUTS, BY_WEIGHTS

Row = tuple[str, list[str] | str, str]

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


# ------------------------------------------------------------------------- the search


@dataclass(frozen=True)
class Try:
    """A candidate of the search.

    number, of  which it is, from 1; layers: how many are judged together
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


@dataclass(frozen=True)
class Found:
    """What a search found.

    r, weights      the ratio, and whether the weights' sizes enter
    spread          the largest factor over the smallest
    own, judged     the error on its own calibration (of all its layers), on the judge's text (of
                    the layer shown)
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
        f"It takes r = {number(facts.r, 3)}{duo}; the largest factor is {number(facts.spread, 3)}× "
        f"the smallest. On held-out text this layer's output is then off by "
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
    text = (
        f"The second takes r = {number(second.r, 3)}{' with the weights’ sizes' if second.weights else ''}"
        f" and is off by {b} on held-out text, {way}"
    )  # fmt: skip
    text += "." if a == b else f" ({a})."
    spread = f"its largest factor is {number(second.spread, 3)}× the smallest"
    if name == SILENT:
        text += (
            f" The sign: {spread}; the first's is {number(first.spread, 3)}×. A channel whose mean "
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


# ------------------------------------------------------------------------- clipping


@dataclass(frozen=True)
class Limit:
    """One limit for one group.

    number, share  which limit, and which part of the largest weight is kept
    cut            how many of `size` weights become the limit
    spacing, first_spacing  of the group's levels, now and uncut
    error          the group's own error over that of the uncut group; taken: the search takes it
    """

    number: int
    share: float
    row: int
    group: int
    limit: float
    cut: int
    size: int
    spacing: float
    first_spacing: float
    error: float
    taken: bool


def limit_sentence(facts: Limit) -> str:
    """What this limit does to the group."""
    where = f"row {facts.row}, group {facts.group}"
    took = "The search takes this one." if facts.taken else "The search takes another."
    if facts.number == 0:
        return (
            f"Limit 0, {where}: nothing is cut, the largest of {facts.size} weights is "
            f"{number(facts.limit, 3)}, and the spacing is {number(facts.spacing, 3)}. {took}"
        )
    a, b = number(facts.spacing, 3), number(facts.first_spacing, 3)
    way = change(a, b, ("up from", "down from", "still"), (facts.spacing, facts.first_spacing))
    spacing = f"still {a}" if way == "still" else f"{a}, {way} {b}"
    return (
        f"Limit {facts.number}, {where}: cut to {percent(facts.share)} of its largest, "
        f"{number(facts.limit, 3)}. {facts.cut} of {facts.size} weights become that; the spacing "
        f"is {spacing}. The group's own error is {number(facts.error, 3)}× the uncut group's. "
        f"{took}"
    )


@dataclass(frozen=True)
class Clipped:
    """What the clip search does to the layer.

    cut, of         groups that it cuts
    promised        what it believes its error becomes, × the uncut one, each group judged alone
    before, after   the layer's output error; together: the smallest with one limit for all groups,
                    `share` of the largest weight
    usual           whether the paper's code clips such a layer
    """

    cut: int
    of: int
    promised: float
    before: float
    after: float
    together: float
    share: float
    usual: bool


def clipped_sentence(facts: Clipped) -> str:
    """What the search promises, and what it does."""
    after, before = percent(facts.after), percent(facts.before)
    way = change(after, before, ("up from", "down from", "still"), (facts.after, facts.before))
    whole = f"still off by {after}" if way == "still" else f"off by {after}, {way} {before}"
    true = facts.after / facts.before if facts.before else 1.0
    text = (
        f"The search cuts {facts.cut} of {facts.of} groups. Judging each group alone, it expects "
        f"{number(facts.promised, 3)}× the error. In truth the layer's output is {whole}: "
        f"{number(true, 3)}×."
    )
    if way == "up from":
        text += (
            " It loses, and the sign is this: it expects less and makes more. Each group is judged "
            "as if the others made no error; where inputs of several groups move together, their "
            "errors add up."
        )
    text += (
        f" One limit for all groups does best at {percent(facts.share)}, {percent(facts.together)}."
    )
    if not facts.usual:
        text += (
            " The paper's code leaves query and key projections uncut: errors there are multiplied "
            "with each other, which no single layer's error shows."
        )
    return text


# ------------------------------------------------------------------------- beside others


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
    if first.method not in (SCALED, CLIPPED):
        text += f" The better AWQ leaves {percent(awq.judged)}: it loses here."
    else:
        text += f" GPTQ leaves {percent(by[GPTQ].judged)}: it loses here."
    if by[CLIPPED].judged > by[NEAREST].judged:
        text += (
            f" AWQ with clipping leaves {percent(by[CLIPPED].judged)}, which is worse than "
            f"rounding to nearest, {percent(by[NEAREST].judged)}."
        )
    gap, mine = by[GPTQ].judged / by[GPTQ].error, awq.judged / awq.error
    return (
        f"{text} From its own text to held-out text GPTQ's error becomes {number(gap, 3)}× as "
        f"large, AWQ's {number(mine, 3)}×."
    )


def _said(method: str) -> str:
    """A method in the middle of a sentence."""
    return {
        SCALED: "AWQ with scales alone", CLIPPED: "AWQ with scales and clip", BOTH: "GPTQ after AWQ's scales",
    }.get(method, method)  # fmt: skip


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
    worst = "worst" if facts.ratio >= 1 else "least"
    return (
        f"{counted(facts.layers, 'layer')} at {facts.bits} bits, on held-out text. AWQ with "
        f"clipping beats rounding to nearest on {facts.better} and GPTQ on {facts.beaten}. It does "
        f"{worst} for {facts.worst}: {number(facts.ratio, 3)}× the error of rounding to nearest."
    )


# ------------------------------------------------------------------------- one weight's arithmetic


@dataclass(frozen=True)
class Weight:
    """One weight on its way through AWQ.

    w, s         the trained weight, and its channel's factor
    limit        the largest |w·s| that is left of its group, None where nothing is cut
    low, high    what its group spans, scaled and cut
    delta, zero  spacing and zero point of its group; code: what it gets
    back         ŵ, what comes back; a: mean |x| of its channel
    """

    row: int
    column: int
    w: float
    s: float
    limit: float | None
    low: float
    high: float
    bits: int
    delta: float
    zero: float
    code: int
    back: float
    a: float

    @property
    def cut(self) -> float:
        """w·s as it is rounded."""
        v = self.w * self.s
        return v if self.limit is None else min(max(v, -self.limit), self.limit)


def weight_rows(steps: Sequence[Weight], *, scaled: bool = True) -> list[Row]:
    """The arithmetic in the symbols of the equations, a text for each of `steps`."""
    one = steps[0]
    clip = any(w.limit is not None for w in steps)
    top = 2**one.bits - 1
    value = "w·s, cut" if clip else "w·s" if scaled else "w"
    rows: list[Row] = [
        ("row, channel", f"{one.row}, {one.column}", ""),
        ("w, as trained", number(one.w), "original"),
    ]
    if scaled:
        rows += [("s of its channel", [number(w.s) for w in steps], "now"),
                 ("w·s", [number(w.w * w.s) for w in steps], "")]  # fmt: skip
    if clip:
        rows += [("limit of its group", [number(w.limit or 0.0) for w in steps], "now"),
                 (value, [number(w.cut) for w in steps], "")]  # fmt: skip
    rows += [
        ("its group spans", [f"{number(w.low, 3)} … {number(w.high, 3)}" for w in steps], ""),
        (f"Δ = span ÷ {top}", [number(w.delta) for w in steps], ""),
        ("zero point z", [number(w.zero) for w in steps], ""),
        (f"{value}/Δ + z", [number(w.cut / w.delta + w.zero) for w in steps], ""),
        (f"code q (0 … {top})", [number(w.code) for w in steps], "codes"),
    ]
    if scaled:
        rows.append(("Δ·(q − z)", [number(w.delta * (w.code - w.zero)) for w in steps], ""))
    rows += [
        ("ŵ = Δ·(q − z)/s" if scaled else "ŵ = Δ·(q − z)", [number(w.back) for w in steps],
         "codes"),
        ("error ŵ − w", [number(w.back - w.w, 3) for w in steps], "error"),
        ("a = mean |x|", number(one.a), ""),
        ("a·|ŵ − w|", [number(w.a * abs(w.back - w.w), 3) for w in steps], "error"),
    ]  # fmt: skip
    return rows


# ------------------------------------------------------------------------- folding


@dataclass(frozen=True)
class Folded:
    """Where the factors go, and how far the output is off then.

    source    what makes the input, "" where it is unknown
    into      "norm", "linear" or ""
    shared    inputs that one output of the source becomes
    note      why there is no source
    folded, powers, forgotten, equal  as in `qviz.study.awq_fold.Fold`
    """

    source: str
    into: str
    shared: int
    note: str
    folded: float
    powers: float
    forgotten: float
    equal: bool


def folded_sentence(facts: Folded) -> str:
    """Where the factors go, whether the output is still the same, and what forgetting does."""
    if facts.shared > 1:
        text = (
            f"Nothing to fold into: each output of {facts.source} becomes {facts.shared} inputs of "
            f"this layer, because heads share values (grouped-query attention), and these inputs "
            f"want different factors. The paper's code leaves such a layer unscaled. On this page "
            f"its inputs are divided while the model runs."
        )
    elif facts.into == "norm":
        text = f"The weight of {facts.source} is divided by s, channel by channel."
    elif facts.into == "linear":
        text = f"The rows of {facts.source} are divided by s, one for each channel."
    else:
        text = (
            f"Nothing to fold into: {facts.note}. On this page the inputs are divided while the "
            f"model runs."
        )
    same = (
        "With factors rounded to powers of two not a bit changes."
        if facts.equal
        else f"With factors rounded to powers of two, {percent(facts.powers)}."
    )
    return (
        f"{text} Nothing rounded, the output then differs by at most {percent(facts.folded)} of "
        f"its own root mean square: float32's own rounding. {same} Forget the division, and it "
        f"differs by {percent(facts.forgotten)}. The sign of that mistake: the output is wrong "
        f"before a single weight has been rounded."
    )
