"""Each verdict says the numbers of its two runs, each in its place, and the directions are theirs.

What is expected is computed here from the runs' tensors, and the settings are hypothesis's. The
errors of the second run are also made up, so that each direction is said in both ways.
"""

import math
from copy import copy
from dataclasses import replace

import pytest
import torch
from gptq_plans import NAMES, problem, run
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import calibration_for
from said import cut, holds, points

from qviz.study.gptq_contrasts import CONTRASTS, Contrast, contrasts_for
from qviz.study.gptq_plan import Plan
from qviz.study.gptq_walk import Walk

PLAN, TEXTS = problem(columns=32, rows=8, tokens=100)
WIDE, _ = problem(columns=64, rows=8, tokens=100)  # where there are other sizes of groups
Walks = tuple[Walk, Walk]
MOVED = "up from/down from/as before"


# ------------------------------------------------------------------------------- plain computations


def way(new: float, old: float) -> int:
    """1 where the new error is better, −1 where it is worse, 0 within one percent."""
    if new == old or (old and abs(new / old - 1) <= 0.01):
        return 0
    return 1 if new < old else -1


def root_share(lost: torch.Tensor, whole: torch.Tensor, hessian: torch.Tensor) -> float:
    """√(tr(Δ·H·Δᵀ) / tr(W·H·Wᵀ))."""
    lost, whole, h = lost.double(), whole.double(), hessian.double()
    return math.sqrt(float((lost @ h * lost).sum() / (whole @ h * whole).sum()))


def own(walk: Walk) -> float:
    """The error on the inputs that the run was calibrated on."""
    lost = walk.original - walk.result.dequantize()
    return root_share(lost, walk.original, walk.calibration.hessian)


def same(new: float, old: float) -> bool:
    """Whether a reader sees one number."""
    return f"{100 * new:.3g}" == f"{100 * old:.3g}"


def moved(new: float, old: float) -> dict:
    """ "5 %, up from 3 %": both, and which is larger."""
    if same(new, old):
        return {"ways": {MOVED: 0}, "new": new}
    return {"ways": {MOVED: new - old}, "new": new, "old": old}


def bits(walk: Walk) -> float:
    return float(walk.result.ledger.bits_per_weight)


def changed_bits(first: Walk, second: Walk) -> dict:
    new, old = bits(second), bits(first)
    if new == old:
        return {"bits": (new, "bits per weight")}
    return {"ways": {MOVED: new - old}, "new": (new, "bits per weight"), "old": old}


# --------------------------------------------------------------------------------- shared sentences


def check_errors(text: str, first: Walk, second: Walk) -> None:
    """ "The output error …", without what follows its colon or full stop."""
    new, old = float(second.error[-1]), float(first.error[-1])
    if same(new, old):
        assert text.startswith("The output error stays at")
        holds(text, new=new)
        return
    assert text.startswith("The output error is")
    ways = {MOVED: new - old, ", which is practically the same/": way(new, old) == 0}
    holds(text, ways=ways, new=new, old=old)


def check_rounding(text: str, walk: Walk) -> None:
    """ "That is better than rounding to nearest, which gives …"."""
    end, nearest = float(walk.error[-1]), float(walk.rtn_error[-1])
    words = "better than rounding/worse than rounding/as good as rounding"
    holds(text, ways={words: way(end, nearest)}, nearest=nearest)


def check_flattery(text: str, second: Walk) -> None:
    mine, judged = own(second), float(second.error[-1])
    low = mine < 0.99 * judged
    points(text, "shows only/shows", low)
    holds(text, ways={"a low error on its own inputs proves nothing/": low}, own=mine)


def check_one_channel(text: str, second: Walk) -> None:
    """The input without whose error the judge's squared error would fall below half."""
    original, made = second.original.double(), second.result.dequantize().double()
    judge = second.judge.hessian.double()
    ends = []
    for channel in range(second.n):
        lost = original - made
        lost[:, channel] = 0
        ends.append(root_share(lost, original, judge))
    whole = root_share(original - made, original, judge)
    worst = min(range(second.n), key=ends.__getitem__)
    if ends[worst] ** 2 >= 0.5 * whole**2:
        assert text == ""
        return
    loudest, seen = (
        float(c.inputs[:, worst].abs().max()) for c in (second.judge, second.calibration)
    )
    holds(
        text,
        ways={"its weights were set to zero/": not second.calibration.inputs[:, worst].any()},
        fixed=["Most of that"],
        channel=worst,
        rest=ends[worst] / whole * float(second.error[-1]),
        loudest=(loudest, "in the text that errors are measured on"),
        seen=(seen, "in this calibration"),
    )


# ------------------------------------------------------------------------------------ each contrast


def check_order(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    on, quarter = second.options["act_order"], second.n // 4
    now, early, errors, advice, sign = cut(
        text, ". After a quarter of them the error is ", ". The output", ": on this layer ", ". "
    )
    holds(now, ways={"in descending order of diag H/from left to right": on})
    holds(early, **moved(float(second.error[quarter]), float(first.error[quarter])))
    check_errors(f"The output{errors}", first, second)
    words = "this order is better/this order is worse/the order makes no difference"
    holds(advice, ways={words: way(second.error[-1], first.error[-1])})
    ordered = second if on else first
    scattered = ordered.options["group_size"] not in (None, ordered.n)
    scattered = scattered and not ordered.options["static_groups"]
    holds(sign, ways={"its g_idx, which does not ascend/a checkpoint shows nothing": scattered})


def check_fewer_bits(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    errors, cost, rest = cut(text, ", at ", ". That is ")
    check_errors(errors, first, second)
    holds(cost, **changed_bits(first, second))
    nearest = float(first.rtn_error[-1])
    against = way(float(second.error[-1]), nearest)
    words = {
        "below the/above the/the same as the": against,
        "compensation makes up/compensation does not make up/compensation just makes up": against,
    }
    assert rest.endswith(" for the missing bit.")
    more, fewer = first.options["bits"], second.options["bits"]
    holds(rest, ways=words, nearest=nearest, more=(more, "bits"), fewer=(fewer, ","))


def check_groups(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    now, before, cost, errors, advice = cut(
        text, ", where ", " in the first run. A weight takes ", ". The output", ": "
    )
    for said, walk in ((now, second), (before, first)):
        size = walk.options["group_size"]
        if size is None:
            assert said.lower() == "a whole row shares a scale"
        else:
            holds(said, size=(size, "inputs share a scale"))
    spent, better = bits(second) - bits(first), way(second.error[-1], first.error[-1])
    holds(cost, new=(bits(second), "bits, "), old=bits(first), ways={MOVED: spent})
    check_errors(f"The output{errors}", first, second)
    if better * spent > 0:
        said = "there is a trade-off between error and size, so compare with one bit more or fewer."
    elif better >= 0 and spent <= 0:
        said = "there is no reason to keep the old groups."
    else:
        said = "there is no reason to take the new groups."
    assert advice == said


def check_symmetry(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    where, errors, cost, advice, sign = cut(text, ". The output", ", at ", ": ", ". You can tell ")
    symmetric = second.options["symmetric"]
    words = "around 0/from the smallest to the largest weight"
    fixed = ["0"] if symmetric else []
    points(where, words, symmetric)
    holds(where, fixed=fixed)
    check_errors(f"The output{errors}", first, second)
    holds(cost.removeprefix("the same "), **changed_bits(first, second))
    points(cost, "the same/", bits(first) == bits(second))
    words = "worth it for the error/not worth it for the error/no reason to change for the error"
    holds(advice, ways={words: way(second.error[-1], first.error[-1])})
    words = "symmetric levels by zero points that are all the same/asymmetric levels by zero points"
    holds(sign, ways={words: symmetric})


def check_static(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    where, errors, advice, more = cut(text, ". The output", ": ", ".")
    on = second.options["static_groups"]
    originals = "the original weights, before the first column is rounded"
    left = "the weights as compensation has left them, when the run reaches a group"
    holds(where, ways={f"{originals}/{left}": on})
    check_errors(f"The output{errors}", first, second)
    words = "better on this layer/worse on this layer/no difference on this layer"
    holds(advice, ways={words: way(second.error[-1], first.error[-1])})
    points(more, "no g_idx is needed/", bool(second.options["act_order"]))


def check_mse(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    how, errors, plain, shares, advice = cut(
        text, ". The output", ". Rounding to nearest ", ": ", "so it can help or harm. "
    )
    holds(how, ways={"shrunk by a search/not shrunk": second.options["mse"]})
    check_errors(f"The output{errors}", first, second)
    new, old = float(second.rtn_error[-1]), float(first.rtn_error[-1])
    holds(plain, ways={"gains from it/loses from it/is not affected by it": way(new, old)})
    shares, _ = cut(shares, ". The search looks only at the weights, not at the inputs")
    holds(shares, **moved(new, old))
    words = "this is better/this is worse/it makes no difference"
    holds(advice, ways={words: way(second.error[-1], first.error[-1])})


def check_block(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    a, b = first.result.codes, second.result.codes
    opening, rest = cut(text, ". ")
    counts = [second.options["block_size"], first.options["block_size"]]
    changed = int((a != b).sum())
    counts += [changed] * bool(changed) + [a.numel()]
    names = {f"{i}": n for i, n in enumerate(counts)}
    holds(opening, ways={"codes differ/none of the": changed > 0}, **names)
    points(opening, "1 column,/columns,", second.options["block_size"] == 1)
    parted = (a != b).any(1)
    if not changed:
        errors, _ = cut(rest, ": the block size decides how fast the run is")
    else:
        assert "stale groups" not in rest or plan.setting("stale_groups")
        rows, errors, _ = cut(rest, ". ", ": " if "a matter of speed" in rest else ". Only")
        assert rows.startswith(f"{int(parted.sum())} of {len(parted)} rows differ, ")
        errors = errors.partition("of the row differs as a result. ")[2] or errors
    check_errors(errors, first, second)


def check_stale(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    on = second.options["stale_groups"]
    walk = second if on else first
    opening, differ, errors, _ = cut(text, ". ", ". The output", ". You can tell stale")
    points(opening, "The second run computes/The first run computes", on)
    block = walk.options["block_size"]
    holds(opening, fixed=["first" if not on else "second"], block=(block, "column"))
    a, b = first.grid.scale.double(), second.grid.scale.double()
    share = float(((a - b).abs() > 1e-5 * b.abs() + 1e-8).double().mean())
    words = {"of all scales differ/No scale differs": share > 0}
    holds(differ, ways=words, **({"share": share} if share else {}))
    check_errors(f"The output{errors}", first, second)


def check_damping(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    asked, used = second.options["damp"], second.result.info["damp"]
    raised, now, errors, mine, advice = cut(
        text, "The damping is ", ". The output", ". On the run's own calibration inputs it is ",
        ". Damping keeps the compensation small where the calibration says little: ",
    )  # fmt: skip
    if used > asked:
        holds(raised, fixed=["raised"], asked=(asked, "%, so it was raised to"), used=used)
    else:
        assert raised == ""
    holds(now, **moved(used, first.result.info["damp"]))
    check_errors(f"The output{errors}", first, second)
    holds(mine, **moved(own(second), own(first)))
    words = (
        "this damping suits the layer better/the previous damping suits this layer better/"
        "damping hardly matters here"
    )
    holds(advice, ways={words: way(second.error[-1], first.error[-1])})


def check_uncorrelated(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    what, errors, advice = cut(text, ". The output", ": ")
    equal, of = second.result.codes == second.nearest.codes, second.result.codes.numel()
    if equal.all():
        holds(what, ways={"All": True}, of=(of, "codes are those of rounding to nearest"))
    else:
        _, what = cut(what, ", so nothing is passed on. ")
        counts = {"equal": int(equal.sum()), "of": (of, "codes are those of rounding to nearest")}
        scattered = second.options["act_order"] and not second.options["static_groups"]
        scattered = scattered and second.options["group_size"] not in (None, second.n)
        holds(what, ways={"act-order puts other columns into a group/": scattered}, **counts)
    check_errors(f"The output{errors}", first, second)
    words = (
        "compensation harms this layer/the difference is what compensation gains on this layer/"
        "compensation gains nothing on this layer"
    )
    holds(advice, ways={words: way(second.error[-1], first.error[-1])})


def check_few_tokens(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    tokens = len(second.calibration.inputs)
    known, errors, against, channel, flattery, _ = cut(
        text, ". The output", ". That is ", " %.", "On its own", ". Use more tokens"
    )
    holds(known, fixed=["at most"], tokens=(tokens, "token"), rank=tokens, of=second.n)
    check_errors(f"The output{errors}", first, second)
    check_rounding(f"{against} %", second)
    check_one_channel(channel.strip(), second)
    check_flattery(flattery, second)


def check_other_text(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    errors, against, channel, flattery, advice = cut(text, ". That is ", " %.", "On its own", ". ")
    check_errors(errors, first, second)
    check_rounding(f"{against} %", second)
    check_one_channel(channel.strip(), second)
    check_flattery(flattery, second)
    words = (
        "This text suits the layer even better/Calibrate on text like what the model will read/"
        "The text makes no difference to this layer"
    )
    holds(advice, ways={words: way(second.error[-1], first.error[-1])})


def check_no_damping(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    what, errors, against, _ = cut(text, ". The output", ". That is ", ". Keep some damping")
    tokens, used = len(second.calibration.inputs), second.result.info["damp"]
    seen, before = (int((w.calibration.hessian.diagonal() > 0).sum()) for w in (second, first))
    few = seen <= tokens
    expected = {"tokens": (tokens, "token"), **({"seen": seen} if few else {})}
    expected["before"] = (before, "channels")
    if not few and used > 0:
        expected["used"] = used
    ways = {
        "channels only: the weights of the others were set to zero/": few,
        "raised the damping to/": not few and used > 0,
        "rounding error let the factorization succeed/": not few and not used,
    }
    holds(what, ways=ways, **expected)
    check_errors(f"The output{errors}", first, second)
    check_rounding(against, second)


def check_weak_damping(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    what, errors, against, usual, advice, flattery = cut(
        text, ". The output", ". That is ", ". With the same tokens and a damping of 1 % it is ",
        ": ", ". On its own",
    )  # fmt: skip
    tokens = len(second.calibration.inputs)
    used = second.result.info["damp"]
    holds(what, tokens=(tokens, "token"), of=(second.n, "channels"), used=used)
    check_errors(f"The output{errors}", first, second)
    check_rounding(against, second)
    cautious = Walk(
        second.original, second.calibration, second.judge, **{**second.options, "damp": 0.01}
    )
    holds(usual, end=float(cautious.error[-1]))
    words = "would have helped/would have been worse/would not have mattered"
    holds(advice, ways={words: way(cautious.error[-1], second.error[-1])})
    check_flattery(f"On its own{flattery}", second)


def check_dead_channel(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    silent, lost, errors, against, _ = cut(
        text, ", so GPTQ set the weights that read it to zero. Before any column is "
        "rounded the error is already ", ". The output", ". That is ",
        ". You can tell by info['dead_columns']",
    )  # fmt: skip
    loudest = int(first.calibration.inputs.abs().amax(0).argmax())
    holds(silent, channel=loudest)
    without = torch.zeros_like(second.original)
    without[:, loudest] = second.original[:, loudest]
    zeroed = root_share(without, second.original, second.judge.hessian)
    made_up = second.error[0] / zeroed  # the test may have made the errors up
    holds(lost, **moved(made_up * zeroed, float(first.error[0])))
    check_errors(f"The output{errors}", first, second)
    check_rounding(against, second)


def check_misprint(text: str, plan: Plan, first: Walk, second: Walk) -> None:
    errors, against, accounts, remedy = cut(
        text, ". That is ", ". You can tell from the run's own sums: in a correct run Σe² equals "
        "the damped output error, and here it is ", ". ",
    )  # fmt: skip
    check_errors(errors, first, second)
    check_rounding(against, second)
    ratios = []
    for walk in (second, first):
        lost = (walk.original - walk.result.dequantize()).double()
        h = walk.calibration.hessian.double().clone()
        h.diagonal().add_(walk.result.info["damp"] * h.diagonal().mean())
        spent = float(walk.recording.errors.double().square().sum())
        ratios.append(spent / float((lost @ h * lost).sum()))
    holds(
        accounts,
        fixed=["in the first run"],
        wrong=(ratios[0], "× as large"),
        right=(ratios[1], "×"),
    )
    words = {
        "double_division": "Divide by U_{jj} once",
        "no_update": "Use row j of U, or update",
        "as_printed": "Divide once, and use row j",
    }
    assert remedy.startswith(words[second.options["variant"]])


CHECKS = {
    "act_order": check_order,
    "fewer_bits": check_fewer_bits,
    "group_size": check_groups,
    "symmetric": check_symmetry,
    "static_groups": check_static,
    "mse": check_mse,
    "damp": check_damping,
    "block_size": check_block,
    "stale_groups": check_stale,
    "no_correlation": check_uncorrelated,
    "few_tokens": check_few_tokens,
    "other_text": check_other_text,
    "no_damping": check_no_damping,
    "weak_damping": check_weak_damping,
    "dead_channel": check_dead_channel,
    "double_division": check_misprint,
    "no_update": check_misprint,
    "as_printed": check_misprint,
}


def check(contrast: Contrast, plan: Plan, factor: float | None, walks: Walks | None = None) -> None:
    """`factor` makes the second run's error up, as a multiple of the first one's."""
    first, second = walks or (plan.walk(), contrast.apply(plan, TEXTS).walk())
    if factor is not None:
        second = copy(second)
        second.error = first.error * factor
    CHECKS[contrast.name](contrast.diagnose(first, second), plan, first, second)


options = st.fixed_dictionaries(
    {
        "bits": st.integers(2, 4),
        "group_size": st.sampled_from([8, 16, None]),
        "act_order": st.booleans(),
        "symmetric": st.booleans(),
        "static_groups": st.booleans(),
        "mse": st.booleans(),
        "damp": st.sampled_from([0.0, 0.01, 0.1]),
        "block_size": st.sampled_from([1, 12, 128]),
    }
)
factors = st.sampled_from([None, 0.4, 1.0, 1.004, 0.996, 2.5])


@settings(max_examples=5)
@pytest.mark.parametrize("contrast", CONTRASTS, ids=lambda c: c.name)
@given(options=options, factor=factors)
def test_every_verdict_says_what_its_runs_are(contrast, options, factor):
    plan = (WIDE if contrast.name == "group_size" else PLAN).choose(**options)
    if contrast in contrasts_for(plan):
        check(contrast, plan, factor)


@pytest.mark.parametrize("contrast", CONTRASTS, ids=lambda c: c.name)
def test_every_verdict_in_every_direction(contrast):
    plan = (WIDE if contrast.name == "group_size" else PLAN).choose(group_size=16)
    assert contrast in contrasts_for(plan)
    walks = plan.walk(), contrast.apply(plan, TEXTS).walk()
    for factor in (None, 0.4, 1.0, 1.004, 2.5):
        check(contrast, plan, factor, walks)


def test_every_contrast_is_checked():
    assert set(CHECKS) == {contrast.name for contrast in CONTRASTS}


def test_groups_that_grow_and_groups_that_shrink():
    """Bits and error in every combination of directions."""
    contrast = NAMES["group_size"]
    for size in (16, None, 8):
        chosen = WIDE.choose(group_size=size)
        walks = chosen.walk(), contrast.apply(chosen, TEXTS).walk()
        for factor in (None, 0.4, 1.0, 2.5):
            check(contrast, chosen, factor, walks)


def test_one_channel_that_makes_most_of_the_error():
    """An input that is 0 in the calibration, and loud for the judge."""
    quiet, judge = PLAN.calibration.inputs.clone(), PLAN.judge.inputs.double().clone()
    quiet[:, 7], judge[::20, 7] = 0, 500
    plan = replace(PLAN, calibration=calibration_for(quiet), judge=calibration_for(judge))
    _, first, second = run("few_tokens", plan, TEXTS)
    text = NAMES["few_tokens"].diagnose(first, second)
    assert "input 7 alone" in text
    check_few_tokens(text, plan, first, second)


def test_tokens_that_use_few_channels_are_said_to():
    x = PLAN.calibration.inputs.double().clone()
    x[:16, 10:] = 0
    check(NAMES["no_damping"], replace(PLAN, calibration=calibration_for(x)), None)


def test_a_second_run_is_named_by_what_it_has():
    """The name follows the plan: what is switched on is not called "the other way"."""
    plan, texts = problem(columns=64, rows=2, tokens=80)
    told = {
        "act_order": ("act_order", {True: "Act-order", False: "Left to right"}),
        "symmetric": ("symmetric", {True: "Symmetric levels", False: "Asymmetric levels"}),
        "mse": ("mse", {True: "Range search", False: "Whole range"}),
        "static_groups": ("static_groups", {True: "Static groups", False: "Scales set"}),
        "stale_groups": ("stale_groups", {True: "Stale groups", False: "Up-to-date groups"}),
    }
    for name, (option, words) in told.items():
        base = plan.choose(group_size=16)
        for now in (False, True):
            contrast, before = NAMES[name], base.choose(**{option: now})
            after = contrast.change(before, texts)
            assert contrast.named(before).startswith(words[after.setting(option)])
    assert NAMES["fewer_bits"].named(plan) == "2 bits"
    fine = plan.choose(group_size=16)
    size = NAMES["group_size"].apply(fine, texts).setting("group_size")
    assert NAMES["group_size"].named(fine) == f"Groups of {size}"
    assert NAMES["damp"].named(plan) == "Damping of 0 %"
    assert NAMES["damp"].named(plan.choose(damp=0.0)) == "Damping of 1 %"
    block = NAMES["block_size"].apply(plan, texts).setting("block_size")
    assert NAMES["block_size"].named(plan) == f"Blocks of {block} column"
    assert NAMES["dead_channel"].named(plan) == NAMES["dead_channel"].title
