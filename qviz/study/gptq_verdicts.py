"""What two GPTQ runs show, in words: one verdict for each contrast.

Every number and every direction word comes from the two runs (`gptq_compared`): what is better on
one layer may be worse on the next.
"""

from qviz.core.agreement import agreement
from qviz.core.words import counted, number, percent
from qviz.methods.gptq import METHOD
from qviz.study.gptq_compared import (
    SAME,
    account,
    better,
    bits,
    changed_codes,
    changed_scales,
    end,
    from_one_channel,
    nearest_end,
    on_own,
    verdict,
    with_damping,
)
from qviz.study.gptq_walk import Walk


def _choose(better: int, good: str, same: str, bad: str) -> str:
    return (bad, same, good)[better + 1]


def _from(new: str, old: str, larger: bool) -> str:
    """A value and the one before: "5 %, up from 3 %"."""
    if new == old:
        return f"{new}, as before"
    return f"{new}, {'up' if larger else 'down'} from {old}"


def _shares(new: float, old: float) -> str:
    return _from(percent(new), percent(old), new > old)


def _errors(first: Walk, second: Walk) -> str:
    new, old = end(second), end(first)
    if percent(new) == percent(old):
        return f"The output error stays at {percent(new)}"
    little = ", which is practically the same" if old and abs(new / old - 1) <= SAME else ""
    return f"The output error is {_shares(new, old)}{little}"


def _against_rounding(walk: Walk) -> str:
    """How a run compares with rounding to nearest, as a sentence."""
    word = _choose(better(end(walk), nearest_end(walk)), "better than", "as good as", "worse than")
    return f"That is {word} rounding to nearest, which gives {percent(nearest_end(walk))}"


def _changed(first: Walk, second: Walk) -> str:
    count, of = changed_codes(first, second), first.result.codes.numel()
    return f"{count} of the {of} codes differ" if count else f"none of the {of} codes differs"


def _cost(first: Walk, second: Walk) -> str:
    new, old = bits(second), bits(first)
    if new == old:
        return f"at the same {number(new)} bits per weight"
    return f"at {_from(f'{number(new)} bits per weight', number(old), new > old)}"


# ---------------------------------------------------------------------------------------- settings


def order(first: Walk, second: Walk) -> str:
    on = second.options["act_order"]
    now = "in descending order of diag H" if on else "from left to right"
    quarter = second.n // 4
    early = _shares(float(second.error[quarter]), float(first.error[quarter]))
    scattered = (second if on else first).result.g_idx is not None
    sign = (
        "You can tell act-order without static groups by its g_idx, which does not ascend"
        if scattered
        else "With static groups or one group per row, a checkpoint shows nothing of the order"
    )
    advice = _choose(
        verdict(first, second), "this order is better", "the order makes no difference",
        "this order is worse",
    )  # fmt: skip
    return (
        f"The columns are rounded {now}. After a quarter of them the error is {early}. "
        f"{_errors(first, second)}: on this layer {advice}. {sign}."
    )


def fewer_bits(first: Walk, second: Walk) -> str:
    fewer, more = second.options["bits"], first.options["bits"]
    plain = nearest_end(first)
    against = better(end(second), plain)
    word = _choose(against, "below", "the same as", "above")
    advice = _choose(against, "makes up", "just makes up", "does not make up")
    return (
        f"{_errors(first, second)}, {_cost(first, second)}. That is {word} the {percent(plain)} of "
        f"rounding to nearest with {more} bits: going to {fewer}, compensation {advice} for the "
        f"missing bit."
    )


def _sharing(walk: Walk) -> str:
    size = walk.options["group_size"]
    return "a whole row shares a scale" if size is None else f"{size} inputs share a scale"


def groups(first: Walk, second: Walk) -> str:
    spent = bits(second) - bits(first)
    which = verdict(first, second)
    if (which > 0) == (spent > 0) and which and spent:
        advice = (
            "there is a trade-off between error and size, so compare with one bit more or fewer"
        )
    elif which >= 0 and spent <= 0:
        advice = "there is no reason to keep the old groups"
    else:
        advice = "there is no reason to take the new groups"
    cost = _from(f"{number(bits(second))} bits", number(bits(first)), spent > 0)
    opening = _sharing(second)
    return (
        f"{opening[0].upper()}{opening[1:]}, where {_sharing(first)} in the first run. A weight "
        f"takes {cost}. {_errors(first, second)}: {advice}."
    )


def symmetry(first: Walk, second: Walk) -> str:
    symmetric = second.options["symmetric"]
    levels = "around 0" if symmetric else "from the smallest to the largest weight"
    sign = (
        "You can tell symmetric levels by zero points that are all the same, or missing"
        if symmetric
        else "You can tell asymmetric levels by zero points that differ from group to group"
    )
    advice = _choose(
        verdict(first, second), "worth it for the error", "no reason to change for the error",
        "not worth it for the error",
    )  # fmt: skip
    return (
        f"Levels are placed {levels}. {_errors(first, second)}, {_cost(first, second)}: "
        f"{advice}. {sign}."
    )


def static(first: Walk, second: Walk) -> str:
    where = (
        "the original weights, before the first column is rounded"
        if second.options["static_groups"]
        else "the weights as compensation has left them, when the run reaches a group"
    )
    more = ""
    if second.options["act_order"]:
        now = second if second.options["static_groups"] else first
        assert now.result.g_idx is None
        more = " With act-order, static groups stay consecutive, so no g_idx is needed."
    advice = _choose(
        verdict(first, second), "better on this layer", "no difference on this layer",
        "worse on this layer",
    )  # fmt: skip
    return f"Scales come from {where}. {_errors(first, second)}: {advice}.{more}"


def mse(first: Walk, second: Walk) -> str:
    how = "shrunk by a search" if second.options["mse"] else "not shrunk"
    plain = _choose(
        better(nearest_end(second), nearest_end(first)), "gains from it", "is not affected by it",
        "loses from it",
    )  # fmt: skip
    advice = _choose(
        verdict(first, second), "this is better", "it makes no difference", "this is worse"
    )
    return (
        f"Ranges are {how}. {_errors(first, second)}. Rounding to nearest {plain}: "
        f"{_shares(nearest_end(second), nearest_end(first))}. The search looks only at the "
        f"weights, not at the inputs, so it can help or harm. On this layer {advice}."
    )


def block(first: Walk, second: Walk) -> str:
    new, old = second.options["block_size"], first.options["block_size"]
    found = agreement(
        first.result.codes,
        second.result.codes,
        first.recording.positions(),
        perm=first.perm,
    )
    opening = f"With blocks of {counted(new, 'column')}, not {old}, {_changed(first, second)}."
    if not found.differences:
        return (
            f"{opening} {_errors(first, second)}: the block size decides how fast the run is, "
            "not its result."
        )
    rows = f"{len(found.differences)} of {found.rows} rows"
    if not found.unexplained:
        return (
            f"{opening} {rows} differ, each at a weight within a thousandth of a spacing of the "
            "midpoint between two levels. There the order of float32 sums decides, and the rest "
            f"of the row differs as a result. {_errors(first, second)}: the block size is a "
            "matter of speed."
        )
    return (
        f"{opening} {rows} differ, {len(found.unexplained)} of them at weights that were not at "
        f"a tie. {_errors(first, second)}. Only an implementation whose ranges lack the current "
        "block's compensation (stale groups) depends on the block size like that."
    )


def stale(first: Walk, second: Walk) -> str:
    second_is = bool(second.options["stale_groups"])
    walk, which = (second, "second") if second_is else (first, "first")
    share = changed_scales(first, second)
    differ = f"{percent(share)} of all scales differ" if share else "No scale differs by it here"
    return (
        f"The {which} run computes ranges as the reference code does, without the compensation "
        f"of the same block of {counted(walk.options['block_size'], 'column')}. {differ}. "
        f"{_errors(first, second)}. You can tell stale groups by results that change with the "
        "block size; a group that is not smaller than a block is never stale."
    )


def damping(first: Walk, second: Walk) -> str:
    asked, used = second.options["damp"], second.result.info["damp"]
    before = first.result.info["damp"]
    raised = (
        f"Cholesky failed with a damping of {percent(asked)}, so it was raised to {percent(used)}. "
        if used > asked
        else ""
    )
    own = _shares(on_own(second), on_own(first))
    advice = _choose(
        verdict(first, second), "this damping suits the layer better",
        "damping hardly matters here", "the previous damping suits this layer better",
    )  # fmt: skip
    return (
        f"{raised}The damping is {_shares(used, before)}. {_errors(first, second)}. On the run's "
        f"own calibration inputs it is {own}. Damping keeps the compensation small where the "
        f"calibration says little: {advice}."
    )


# ------------------------------------------------------------------------------- honest comparisons


def uncorrelated(first: Walk, second: Walk) -> str:
    differ = int((second.result.codes != second.nearest.codes).sum())
    of = second.result.codes.numel()
    if not differ:
        what = f"All {of} codes are those of rounding to nearest"
    else:
        reasons = []
        if second.result.g_idx is not None:
            reasons.append("act-order puts other columns into a group")
        if second.result.info["dead_columns"]:
            reasons.append("columns without inputs were set to zero")
        reasons = reasons or ["ranges are computed by another rule"]
        what = f"{of - differ} of {of} codes are those of rounding to nearest; {reasons[0]}"
    advice = _choose(
        verdict(second, first), "the difference is what compensation gains on this layer",
        "compensation gains nothing on this layer", "compensation harms this layer",
    )  # fmt: skip
    return (
        f"Without correlation no column can compensate for another, so nothing is passed on. "
        f"{what}. {_errors(first, second)}: {advice}."
    )


def _flatters(second: Walk) -> str:
    """The error on a run's own calibration, next to that on the judge's inputs."""
    own, judged = on_own(second), end(second)
    low = own < (1 - SAME) * judged
    word = "only " if low else ""
    tail = ": a low error on its own inputs proves nothing" if low else ""
    return f"On its own calibration the run shows {word}{percent(own)}{tail}"


def _one_channel(walk: Walk) -> str:
    found = from_one_channel(walk)
    if found is None:
        return ""
    tail = ", so its weights were set to zero" if found.dead else ""
    return (
        f" Most of that is input {found.channel} alone, without which it would be "
        f"{percent(found.rest)}: it reaches {number(found.loudest, 3)} in the text that errors "
        f"are measured on and {number(found.seen, 3)} in this calibration{tail}."
    )


def few_tokens(first: Walk, second: Walk) -> str:
    tokens = second.calibration.tokens
    return (
        f"{counted(tokens, 'token')} span at most {tokens} of {second.n} directions. "
        f"{_errors(first, second)}. {_against_rounding(second)}.{_one_channel(second)} "
        f"{_flatters(second)}. Use more tokens than the layer has inputs, and measure on other "
        "text."
    )


def other_text(first: Walk, second: Walk) -> str:
    advice = _choose(
        verdict(first, second), "This text suits the layer even better",
        "The text makes no difference to this layer",
        "Calibrate on text like what the model will read",
    )  # fmt: skip
    return (
        f"{_errors(first, second)}. {_against_rounding(second)}.{_one_channel(second)} "
        f"{_flatters(second)}. {advice}."
    )


# ---------------------------------------------------------------------------------------- failures


def no_damping(first: Walk, second: Walk) -> str:
    used, tokens = second.result.info["damp"], second.calibration.tokens
    seen, before = (walk.n - len(walk.dead) for walk in (second, first))
    what = f"{counted(tokens, 'token')} cannot span {before} channels"
    if seen <= tokens:
        what = (
            f"{counted(tokens, 'token')} have inputs in {seen} of {before} channels only: the "
            f"weights of the others were set to zero"
        )
    elif used > 0:
        what += (
            ": H has no inverse, and without damping its Cholesky factorization fails. The run "
            f"raised the damping to {percent(used)} by itself, as info['damp'] says; other "
            "programs do the same, round to nearest, or stop"
        )
    else:
        what += ", yet rounding error let the factorization succeed: that part of U is noise"
    return (
        f"{what}. {_errors(first, second)}. {_against_rounding(second)}. "
        f"Keep some damping, and use more tokens."
    )


def weak_damping(first: Walk, second: Walk) -> str:
    damp, usual = second.result.info["damp"], float(METHOD.defaults["damp"])
    cautious = with_damping(second, usual)
    advice = _choose(
        better(end(cautious), end(second)), "the usual damping would have helped",
        "the usual damping would not have mattered", "the usual damping would have been worse",
    )  # fmt: skip
    return (
        f"With {counted(second.calibration.tokens, 'token')} for {second.n} channels, a damping "
        f"of {percent(damp)} is enough for Cholesky, but the compensation relies on directions "
        f"that were never seen. {_errors(first, second)}. {_against_rounding(second)}. With the "
        f"same tokens and a damping of {percent(usual)} it is {percent(end(cautious))}: "
        f"{advice}. {_flatters(second)}."
    )


def dead_channel(first: Walk, second: Walk) -> str:
    before = set(first.result.info["dead_columns"])
    new = [j for j in second.result.info["dead_columns"] if j not in before]
    lost = _shares(float(second.error[0]), float(first.error[0]))
    return (
        f"Calibration never saw input {', '.join(map(str, new))}, so GPTQ set the weights that "
        f"read it to zero. Before any column is rounded the error is already {lost}. "
        f"{_errors(first, second)}. {_against_rounding(second)}. You can tell by "
        f"info['dead_columns']: calibrate on texts that use every channel."
    )


_MISPRINTS = {
    "double_division": "Divide by U_{jj} once; dividing twice also makes the codes depend on "
    "the scale of H, while a correct run does not",
    "no_update": "Use row j of U, or update H⁻¹ after every column: rounded columns can no longer "
    "compensate for anything",
    "as_printed": "Divide once, and use row j of U",
}


def misprint(first: Walk, second: Walk) -> str:
    wrong, right = account(second), account(first)
    sign = (
        f"in a correct run Σe² equals the damped output error, and here it is {number(wrong, 3)}× "
        f"as large ({number(right, 3)}× in the first run)"
        if right
        else "in a correct run Σe² equals the damped output error, which is 0 in the first run"
    )
    return (
        f"{_errors(first, second)}. {_against_rounding(second)}. You can tell from the run's own "
        f"sums: {sign}. {_MISPRINTS[second.options['variant']]}."
    )
