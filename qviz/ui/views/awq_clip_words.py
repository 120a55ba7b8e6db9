"""What the AWQ lesson says of clipping and of folding."""

from dataclasses import dataclass

from qviz.core.words import number, percent
from qviz.ui.views.awq_words import change


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
