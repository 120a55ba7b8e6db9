"""Contrasts: each changes one thing, and says of the two runs what is true of them."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from gptq_plans import NAMES, problem, run
from inputs import calibration_for

import qviz
from qviz.core.metrics import output_error
from qviz.core.words import percent
from qviz.study.gptq_compared import better
from qviz.study.gptq_contrasts import CONTRASTS, FEW, Plan, contrasts_for

LAYER = "model.layers.0.mlp.up_proj"
OPTIONS = [
    {},
    {"bits": 2, "act_order": True, "group_size": 32},
    {"bits": 3, "group_size": None, "mse": True, "damp": 0.0},
    {"group_size": 32, "symmetric": False, "static_groups": True, "act_order": True},
    {"group_size": 16, "stale_groups": True, "block_size": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_contrast_runs_on_a_real_layer_and_says_its_figures(options):
    w, c = qviz.load_layer(None, LAYER)[:96], qviz.load_calibration(None, LAYER)
    judge = qviz.load_calibration(None, LAYER, text="heldout_python")
    plan = Plan(w, c, judge, options)
    first = plan.walk()
    found = contrasts_for(plan)
    assert len(found) >= 14
    for contrast in found:
        changed = contrast.apply(plan, lambda t: qviz.load_calibration(None, LAYER, text=t))
        second = changed.walk()
        text = contrast.diagnose(first, second)
        for walk in (first, second):
            assert percent(walk.error[-1]) in text, contrast.name
        assert changed.judge is judge
        assert text[0].isupper() or text[0].isdigit()
        assert text.endswith(".")
        plain = text.replace("info", "").replace("U_{jj}", "U")  # the page sets it as a subscript
        assert not re.search(r"nan|inf\b|None\b|\{|\.\.|  |, :", plain), text
    assert (c.hessian == qviz.load_calibration(None, LAYER).hessian).all()


def test_each_contrast_changes_one_thing():
    plan, texts = problem()
    for contrast in contrasts_for(plan):
        changed = contrast.apply(plan, texts)
        assert changed.weight is plan.weight
        options = {k for k in changed.options if changed.options[k] != plan.setting(k)}
        other = changed.calibration is not plan.calibration
        assert len(options) + other == 1 + (contrast.name in ("no_damping", "weak_damping"))
        assert changed.judge is plan.judge or not other
    assert {c.family for c in CONTRASTS} == {"setting", "honest", "failure"}
    assert len(NAMES) == len(CONTRASTS)


def test_without_a_judge_another_calibration_is_judged_by_the_first():
    plan, texts = problem()
    plan = replace(plan, judge=None)
    for name in ("few_tokens", "other_text", "no_correlation", "dead_channel", "no_damping"):
        assert NAMES[name].apply(plan, texts).judge is plan.calibration


def test_what_does_not_apply_is_not_offered():
    plan, texts = problem()

    def offered(**options):
        return {c.name for c in contrasts_for(plan.choose(**options))}

    assert "fewer_bits" not in offered(bits=2)
    assert "stale_groups" not in offered(static_groups=True)
    assert "stale_groups" not in offered(block_size=16)
    assert "static_groups" not in offered(group_size=None)
    assert "static_groups" not in offered(stale_groups=True, group_size=16)
    assert "symmetric" not in offered(convention="absmax")
    assert not offered(variant="no_update") & {"as_printed", "no_update", "double_division"}
    few = replace(plan, calibration=plan.calibration.sample(FEW))
    assert not {c.name for c in contrasts_for(few)} & {"few_tokens", "no_damping"}
    narrow = calibration_for(plan.calibration.inputs[:, :FEW].double())
    assert "few_tokens" not in {c.name for c in contrasts_for(Plan(plan.weight[:, :FEW], narrow))}
    one = calibration_for(plan.calibration.inputs[:, :1].double())
    single = {c.name for c in contrasts_for(Plan(plan.weight[:, :1], one, None, {"group_size": 1}))}
    assert not single & {"no_damping", "weak_damping"}  # a token spans the only channel
    with pytest.raises(ValueError, match="'One bit fewer' does not apply here"):
        NAMES["fewer_bits"].apply(plan.choose(bits=2), texts)
    with pytest.raises(TypeError, match="option for gptq"):
        Plan(plan.weight, plan.calibration, None, {"group": 3})


def test_without_correlation_gptq_is_rounding_to_nearest():
    plan, texts = problem()
    _, first, second = run("no_correlation", plan, texts)
    assert torch.equal(second.result.codes, second.nearest.codes)
    np.testing.assert_allclose(second.error, second.rtn_error, rtol=1e-10)
    text = NAMES["no_correlation"].diagnose(first, second)
    assert "All 1536 codes are those of rounding to nearest" in text
    ordered = plan.choose(act_order=True)
    _, first, second = run("no_correlation", ordered, texts)
    same = int((second.result.codes == second.nearest.codes).sum())
    assert same < 1536
    text = NAMES["no_correlation"].diagnose(first, second)
    assert f"{same} of 1536 codes are those of rounding to nearest; act-order" in text
    static = ordered.choose(static_groups=True)
    second = run("no_correlation", static, texts)[2]
    assert torch.equal(second.result.codes, second.nearest.codes)


def test_block_size_changes_no_code_but_at_a_tie():
    plan, texts = problem()
    _, first, second = run("block_size", plan, texts)
    assert "none of the 1536 codes differs" in NAMES["block_size"].diagnose(first, second)
    stale = plan.choose(stale_groups=True, group_size=16)
    _, first, second = run("block_size", stale, texts)
    differ = int((first.result.codes != second.result.codes).sum())
    text = NAMES["block_size"].diagnose(first, second)
    assert differ > 0
    assert f"{differ} of the 1536 codes differ" in text
    assert "stale groups" in text
    layer = "model.layers.0.mlp.down_proj"
    w = qviz.load_layer(None, layer)[:64]
    real = Plan(w, qviz.load_calibration(None, layer), None, {"group_size": 64})
    _, first, second = run("block_size", real, texts)
    text = NAMES["block_size"].diagnose(first, second)
    assert "Only an implementation" not in text


def test_a_singular_hessian_without_damping_has_no_factor():
    plan, texts = problem()
    second, first, walk = run("no_damping", plan, texts)
    assert second.setting("damp") == 0
    assert second.calibration.tokens == 16
    assert walk.result.info["damp"] == 0.01
    assert "raised the damping to 1 %" in NAMES["no_damping"].diagnose(first, walk)
    weak, _, walk = run("weak_damping", plan, texts)
    assert walk.result.info["damp"] == weak.setting("damp") < 0.01
    usual = replace(second, options={**plan.options}).walk()
    text = NAMES["weak_damping"].diagnose(first, walk)
    assert f"a damping of 1 % it is {percent(usual.error[-1])}" in text


def test_a_channel_that_was_silent_costs_its_weights():
    plan, texts = problem()
    second, first, walk = run("dead_channel", plan, texts)
    loudest = int(plan.calibration.act_absmax.argmax())
    assert walk.result.info["dead_columns"] == [loudest]
    assert not walk.result.dequantize()[:, loudest].any()
    without = plan.weight.clone()
    without[:, loudest] = 0
    assert walk.error[0] == pytest.approx(output_error(plan.weight, without, plan.judge))
    text = NAMES["dead_channel"].diagnose(first, walk)
    assert f"input {loudest}" in text
    wanted = f"{percent(walk.error[0])}, up from {percent(first.error[0])}"
    assert f"Before any column is rounded the error is already {wanted}" in text
    assert second.calibration.act_absmax[loudest] == 0
    assert plan.calibration.act_absmax[loudest] > 0


@pytest.mark.parametrize("name", ["double_division", "no_update", "as_printed"])
def test_a_misprint_shows_in_the_runs_own_account(name):
    plan, texts = problem()
    _, first, second = run(name, plan, texts)
    text = NAMES[name].diagnose(first, second)
    account, right = re.search(r"it is (\S+)× as large \((\S+)× in the first", text).groups()
    lost = (plan.weight - second.result.dequantize()).double()
    h = plan.calibration.hessian.clone()
    h.diagonal().add_(0.01 * h.diagonal().mean())
    claimed = second.recording.errors.square().sum() / torch.trace(lost @ h @ lost.T)
    account = account.replace("−", "-")
    assert float(account) == pytest.approx(float(claimed), rel=5e-3)
    assert right == "1"
    assert abs(float(account) - 1) > 0.05


def test_few_tokens_flatter_themselves():
    plan, texts = problem()
    _, first, second = run("few_tokens", plan, texts)
    own = output_error(plan.weight, second.result.dequantize(), second.calibration)
    text = NAMES["few_tokens"].diagnose(first, second)
    assert own < second.error[-1]
    assert f"shows only {percent(own)}" in text
    assert f"which gives {percent(second.rtn_error[-1])}" in text


def test_a_channel_that_makes_most_of_the_error_is_named():
    """As happens in MiniLM: an input that is 0 in nearly all tokens, and in a few the loudest."""
    plan, texts = problem()
    quiet = plan.calibration.inputs.clone()
    quiet[:, 7] = 0
    judge = plan.judge.inputs.double()
    judge[::20, 7] = 500
    plan = replace(plan, calibration=calibration_for(quiet), judge=calibration_for(judge))
    _, first, second = run("few_tokens", plan, texts)
    text = NAMES["few_tokens"].diagnose(first, second)
    assert "it reaches 500 in the text that errors are measured on and 0 in this" in text
    exact = second.result.dequantize().clone()
    exact[:, 7] = plan.weight[:, 7]
    rest = output_error(plan.weight, exact, plan.judge)
    assert f"input 7 alone, without which it would be {percent(rest)}" in text
    assert "its weights were set to zero" in text
    plan, texts = problem()
    _, first, second = run("few_tokens", plan, texts)
    assert "alone" not in NAMES["few_tokens"].diagnose(first, second)


@pytest.mark.parametrize(
    ("factor", "word"), [(0.5, "better than"), (2.0, "worse than"), (1, "as good as")]
)
def test_words_follow_the_numbers(factor, word):
    """The same two runs, with the second's error made up."""
    plan, texts = problem()
    _, first, second = run("other_text", plan, texts)
    second.error = second.rtn_error * factor
    text = NAMES["other_text"].diagnose(first, second)
    assert f"That is {word} rounding to nearest" in text
    new, old = second.error[-1], first.error[-1]
    way = "up" if new > old else "down"
    assert f"is {percent(new)}, {way} from {percent(old)}" in text
    second.error = first.error
    text = NAMES["other_text"].diagnose(first, second)
    assert f"stays at {percent(first.error[-1])}" in text
    assert "makes no difference to this layer" in text
    second.error = first.error * 1.005
    assert "practically the same" in NAMES["other_text"].diagnose(first, second)
    first.error = 0 * first.error
    assert "up from 0 %" in NAMES["few_tokens"].diagnose(first, second)


def test_a_misprint_that_diverges_says_so():
    plan, texts = problem()
    louder = replace(plan.calibration, hessian=1e12 * plan.calibration.hessian)
    second = NAMES["double_division"].apply(replace(plan, calibration=louder), texts)
    with pytest.raises(ValueError, match="'double_division' diverges"):
        second.walk()


def test_few_tokens_with_inputs_in_few_channels_are_not_called_singular():
    """Channels that these tokens never use have no part in the Hessian: it has an inverse."""
    plan, texts = problem()
    x = plan.calibration.inputs.double().clone()
    x[:16, 10:] = 0
    plan = replace(plan, calibration=calibration_for(x))
    _, first, second = run("no_damping", plan, texts)
    assert second.result.info["damp"] == 0
    text = NAMES["no_damping"].diagnose(first, second)
    assert text.startswith("16 tokens have inputs in 10 of 64 channels only")
    assert "noise" not in text
    assert "no inverse" not in text


def test_the_words_of_damping_and_stale_groups_name_the_direction():
    plan, texts = problem()
    _, first, second = run("damp", plan, texts)
    assert "The damping is 0 %, down from 1 %" in NAMES["damp"].diagnose(first, second)
    assert "The damping is 1 %, up from 0 %" in NAMES["damp"].diagnose(second, first)
    _, first, second = run("stale_groups", plan.choose(group_size=16), texts)
    assert "The second run computes ranges" in NAMES["stale_groups"].diagnose(first, second)
    assert "The first run computes ranges" in NAMES["stale_groups"].diagnose(second, first)


def test_minus_one_is_the_whole_row():
    """To the sentences, too, which name the groups."""
    plan, texts = problem()
    spelled, whole = plan.choose(group_size=-1), plan.choose(group_size=None)
    assert spelled.setting("group_size") is None
    assert [c.name for c in contrasts_for(spelled)] == [c.name for c in contrasts_for(whole)]
    second, walk, changed = run("group_size", spelled, texts)
    assert second.setting("group_size") == 32
    assert "where a whole row shares a scale" in NAMES["group_size"].diagnose(walk, changed)
    with pytest.raises(ValueError, match="group_size must be at least 1"):
        plan.choose(group_size=-2)


def test_directions_follow_the_numbers_in_either_order():
    """Each setting's verdict with the two runs exchanged says the opposite."""
    plan, texts = problem()
    for contrast in contrasts_for(plan):
        if contrast.family != "setting" or contrast.name == "stale_groups":
            continue
        first, second = plan.walk(), contrast.apply(plan, texts).walk()
        if abs(second.error[-1] / first.error[-1] - 1) < 0.01:
            continue
        for a, b in ((first, second), (second, first)):
            if contrast.name == "fewer_bits" and b is first:
                continue  # it says "missing bit"
            way = "up" if b.error[-1] > a.error[-1] else "down"
            text = contrast.say(a, b)
            assert f"is {percent(b.error[-1])}, {way} from {percent(a.error[-1])}" in text


@pytest.mark.parametrize(
    ("new", "old", "found"),
    [(1.0, 2.0, 1), (2.0, 1.0, -1), (1.005, 1.0, 0), (0.995, 1.0, 0), (1.02, 1.0, -1),
     (0.0, 0.0, 0), (0.5, 0.0, -1), (0.0, 0.5, 1)],
)  # fmt: skip
def test_errors_within_a_hundredth_are_the_same(new, old, found):
    assert better(new, old) == found


ADVICE = {  # where the second run is better, the same, worse
    "act_order": ("this order is better", "makes no difference", "this order is worse"),
    "group_size": (
        "trade-off between error and size",
        "no reason to take the new",
        "no reason to take the",
    ),
    "symmetric": (": worth it for the error", "no reason to change", "not worth it"),
    "static_groups": ("better on this layer", "no difference on", "worse on this layer"),
    "mse": ("this is better", "it makes no difference", "this is worse"),
    "damp": ("suits the layer better", "hardly matters", "the previous damping suits"),
    "no_correlation": ("compensation harms", "gains nothing", "is what compensation gains"),
    "other_text": ("even better", "no difference to this layer", "Calibrate on text like what"),
}


@pytest.mark.parametrize("name", ADVICE)
def test_each_verdict_follows_the_errors(name):
    """The same two runs with the second's error made up: the advice turns with it."""
    plan, texts = problem()
    plan = plan.choose(group_size=64) if name == "group_size" else plan  # finer groups cost bits
    _, first, second = run(name, plan, texts)
    for factor, word in zip((0.5, 1.0, 2.0), ADVICE[name], strict=True):
        second.error = first.error * factor
        text = NAMES[name].diagnose(first, second)
        assert word in text
        other = [w for w in ADVICE[name] if w not in word and word not in w]
        assert not any(w in text for w in other)


@pytest.mark.parametrize(
    ("factor", "said"),
    [(0.5, ("below", "makes up")), (1.0, ("the same as", "just makes up")),
     (2.0, ("above", "does not make up"))],
)  # fmt: skip
def test_a_missing_bit_is_held_against_rounding_to_nearest(factor, said):
    plan, texts = problem()
    _, first, second = run("fewer_bits", plan, texts)
    second.error = first.rtn_error * factor
    text = NAMES["fewer_bits"].diagnose(first, second)
    assert f"That is {said[0]} the {percent(first.rtn_error[-1])} of rounding to nearest" in text
    assert f"compensation {said[1]} for the missing bit" in text
