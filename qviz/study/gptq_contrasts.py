"""Contrasts: a second GPTQ run beside a first one, with one thing changed, and what it shows.

Settings a user may choose, honest comparisons (no correlation, few tokens, another text), and ways
in which GPTQ fails in practice. Every verdict is computed from the two runs: what is better on one
layer is worse on the next.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from qviz.core.agreement import agreement
from qviz.core.calibration import Calibration, require_calibration
from qviz.core.check import as_matrix
from qviz.core.granularity import whole_or_size
from qviz.core.metrics import output_energy, output_error, ratio
from qviz.methods.affine import CONVENTIONS
from qviz.methods.gptq import METHOD, prepare
from qviz.methods.registry import require_options
from qviz.study.gptq_walk import Walk

Texts = Callable[[str], Calibration]

FEW, OTHER_TEXT = 16, "numbers"
SHARE = 4  # a singular Hessian is made of one token for so many channels
SAME = 0.01  # relative difference between two errors that is called none: three digits show more


@dataclass(frozen=True)
class Plan:
    """What a run is made of.

    weight       [out, in]
    calibration  what the run knows of the inputs
    judge        what errors are measured on; None: the calibration
    options      those of `gptq`

    >>> plan = Plan(weight, calibration, options={"bits": 3})
    >>> plan.walk().error[-1]
    """

    weight: torch.Tensor | np.ndarray
    calibration: Calibration
    judge: Calibration | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_calibration(self.calibration)
        require_options("gptq", self.options)
        if "group_size" in self.options:
            size = whole_or_size(self.options["group_size"])  # −1 is None; this class is frozen
            object.__setattr__(self, "options", {**self.options, "group_size": size})

    def walk(self) -> Walk:
        """Do the run. ValueError as from `gptq`: a misprint may diverge, and says so."""
        return Walk(self.weight, self.calibration, self.judge, **self.options)

    def setting(self, name: str) -> Any:
        """The value of an option, the default where none is given."""
        return {**METHOD.defaults, **self.options}[name]

    @property
    def in_features(self) -> int:
        return int(as_matrix(self.weight).shape[1])

    def choose(self, **options: Any) -> "Plan":
        return replace(self, options={**self.options, **options})

    def calibrate(self, calibration: Calibration) -> "Plan":
        """The same plan with another calibration, and the judge that it had."""
        judge = self.calibration if self.judge is None else self.judge
        return replace(self, calibration=calibration, judge=judge)


@dataclass(frozen=True)
class Contrast:
    """One thing to change.

    name, title  for code and for readers; family: "setting", "honest" or "failure"
    why          what is changed, in words
    change       (plan, texts) → the changed plan
    fits         plan → whether the change means anything there
    say          (first, second) → what to see, how one recognises it, what to do

    >>> plan = Plan(weight, calibration, options={"bits": 3})
    >>> contrast = contrasts_for(plan)[0]
    >>> second = contrast.apply(plan, lambda text: qviz.load_calibration(None, layer, text=text))
    >>> contrast.diagnose(plan.walk(), second.walk())
    """

    name: str
    title: str
    family: str
    why: str
    change: Callable[[Plan, Texts], Plan]
    fits: Callable[[Plan], bool]
    say: Callable[[Walk, Walk], str]

    def apply(self, plan: Plan, texts: Texts) -> Plan:
        """The plan of the second run; texts("numbers") gives this layer's calibration on that text.

        ValueError for a plan that this contrast changes nothing in.
        """
        if not self.fits(plan):
            raise ValueError(f"{self.title!r} has no meaning here; see contrasts_for(plan)")
        return self.change(plan, texts)

    def diagnose(self, first: Walk, second: Walk) -> str:
        """A few sentences, computed from the two runs, which are those of two plans as `apply`
        takes and gives them."""
        return self.say(first, second)


def contrasts_for(plan: Plan) -> tuple[Contrast, ...]:
    """The contrasts that make sense for this plan, in the order of `CONTRASTS`."""
    return tuple(c for c in CONTRASTS if c.fits(plan))


# ------------------------------------------------------------------------------------ in few words


def _pc(share: float) -> str:
    """In percent, as the pages write errors."""
    return f"{100 * share:.3g} %"


def _end(walk: Walk) -> float:
    return float(walk.error[-1])


def _rtn(walk: Walk) -> float:
    return float(walk.rtn_error[-1])


def _times(new: float, old: float) -> str:
    if old == new or (old and abs(new / old - 1) <= SAME):
        return "practically the same"
    if old == 0:
        return "where there was none"
    return f"{new / old:.3g} times as much"


def _better(new: float, old: float) -> int:
    """1 for a smaller error, −1 for a larger one, 0 for the same."""
    if old == new or (old and abs(new / old - 1) <= SAME):
        return 0
    return 1 if new < old else -1


def _errors(first: Walk, second: Walk) -> str:
    new, old = _end(second), _end(first)
    if _pc(new) == _pc(old):
        return f"The output error stays at {_pc(new)}"
    return f"The output error ends at {_pc(new)} instead of {_pc(old)}, {_times(new, old)}"


def _against_rounding(walk: Walk) -> str:
    new, plain = _end(walk), _rtn(walk)
    word = ("worse than", "as good as", "better than")[_better(new, plain) + 1]
    return f"{word} rounding to nearest ({_pc(plain)})"


def _choose(better: int, good: str, same: str, bad: str) -> str:
    return (bad, same, good)[better + 1]


def _verdict(first: Walk, second: Walk) -> int:
    return _better(_end(second), _end(first))


def _changed_codes(first: Walk, second: Walk) -> str:
    count, of = int((first.result.codes != second.result.codes).sum()), first.result.codes.numel()
    return f"{count} of the {of} codes differ" if count else f"None of the {of} codes differs"


def _bits(walk: Walk) -> float:
    return float(walk.result.bits_per_weight)


def _cost(first: Walk, second: Walk) -> str:
    new, old = _bits(second), _bits(first)
    if new == old:
        return f"for the same {new:.4g} bits per weight"
    return f"for {new:.4g} bits per weight instead of {old:.4g}"


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"


def _on_own(walk: Walk) -> float:
    """The relative output error on the inputs that the run was calibrated on."""
    return output_error(walk.original, walk.result.dequantize(), walk.calibration)


# ---------------------------------------------------------------------------------------- settings


def _toggle(name: str) -> Callable[[Plan, Texts], Plan]:
    return lambda plan, texts: plan.choose(**{name: not plan.setting(name)})


def _say_order(first: Walk, second: Walk) -> str:
    on = second.options["act_order"]
    now = "descending order of diag H" if on else "their own order"
    quarter = second.n // 4
    early, before = float(second.error[quarter]), float(first.error[quarter])
    scattered = (second if on else first).result.g_idx is not None
    sign = (
        "One recognises act-order without static groups by its g_idx, which no longer ascends"
        if scattered
        else "With static groups or one group a row, a checkpoint shows nothing of the order"
    )
    advice = _choose(
        _verdict(first, second), "this order is better", "the order makes no difference",
        "this order is worse",
    )  # fmt: skip
    return (
        f"Columns go in {now}: after a quarter of them the error is {_pc(early)} instead of "
        f"{_pc(before)}. {_errors(first, second)}. {sign}. On this layer {advice}."
    )


def _say_bits(first: Walk, second: Walk) -> str:
    fewer, more = second.options["bits"], first.options["bits"]
    new, plain = _end(second), _rtn(first)
    word = _choose(_better(new, plain), "still below", "as large as", "above")
    advice = _choose(
        _better(new, plain), "compensation pays for the missing bit",
        "compensation just pays for the missing bit", "compensation does not pay for a whole bit",
    )  # fmt: skip
    return (
        f"{_errors(first, second)}, {_cost(first, second)}. That is {word} the {_pc(plain)} of "
        f"rounding to nearest with {more} bits: here {advice} when going to {fewer}."
    )


def _other_size(plan: Plan) -> int | None:
    size: int | None = plan.setting("group_size")
    return next(
        (
            g
            for g in (32, 128, 64)
            if g not in (size, plan.in_features) and not plan.in_features % g
        ),
        None,
    )


def _regroup(plan: Plan, texts: Texts) -> Plan:
    return plan.choose(group_size=_other_size(plan))


def _group_name(walk: Walk) -> str:
    size = walk.options["group_size"]
    return "whole rows" if size is None else f"groups of {size}"


def _say_groups(first: Walk, second: Walk) -> str:
    spent = _bits(second) - _bits(first)
    better = _verdict(first, second)
    if (better > 0) == (spent > 0) and better and spent:
        advice = "error and size trade against each other: compare with one bit more or fewer"
    elif better >= 0 and spent <= 0:
        advice = "nothing speaks for the groups there were"
    else:
        advice = "nothing speaks for these groups"
    return (
        f"With {_group_name(second)} instead of {_group_name(first)}, a weight takes "
        f"{_bits(second):.4g} bits instead of {_bits(first):.4g}. {_errors(first, second)}: "
        f"{advice}."
    )


def _say_symmetry(first: Walk, second: Walk) -> str:
    levels = (
        "around 0" if second.options["symmetric"] else "from the smallest to the largest weight"
    )
    sign = (
        "One recognises symmetric levels by zero points that are all the same, or missing"
        if second.options["symmetric"]
        else "One recognises asymmetric levels by zero points that differ from group to group"
    )
    advice = _choose(
        _verdict(first, second), "worth it for the error", "no reason to change for the error",
        "not worth it for the error",
    )  # fmt: skip
    return (
        f"Levels are placed {levels}. {_errors(first, second)}, {_cost(first, second)}: "
        f"{advice}. {sign}."
    )


def _say_static(first: Walk, second: Walk) -> str:
    where = (
        "the original weights, before the first column"
        if second.options["static_groups"]
        else "the weights as compensation has left them, when the run reaches a group"
    )
    reasons = ""
    if second.options["act_order"]:
        now = second if second.options["static_groups"] else first
        assert now.result.g_idx is None
        reasons = " With act-order, static groups stay consecutive, so that no g_idx is needed."
    advice = _choose(
        _verdict(first, second), "better on this layer", "no difference on this layer",
        "worse on this layer",
    )  # fmt: skip
    return f"Scales come from {where}. {_errors(first, second)}: {advice}.{reasons}"


def _say_mse(first: Walk, second: Walk) -> str:
    searched = second.options["mse"]
    how = "cut to what rounds best" if searched else "taken whole"
    plain = _better(_rtn(second), _rtn(first))
    word = _choose(plain, "gains from it", "does not notice it", "loses by it")
    advice = _choose(
        _verdict(first, second), "this is better", "it makes no difference", "this is worse"
    )
    return (
        f"Ranges are {how}. {_errors(first, second)}; rounding to nearest {word} "
        f"({_pc(_rtn(second))} instead of {_pc(_rtn(first))}). The search looks at weights alone "
        f"and not at inputs, so it may lose as well as gain: on this layer {advice}."
    )


def _say_block(first: Walk, second: Walk) -> str:
    sizes = f"{second.options['block_size']} instead of {first.options['block_size']}"
    found = agreement(
        first.result.codes,
        second.result.codes,
        first.recording.positions(),
        perm=first.perm,
    )
    opening = f"With blocks of {sizes} columns: {_changed_codes(first, second).lower()}."
    if not found.differences:
        return (
            f"{opening} {_errors(first, second)}: the block size decides how fast the run is, not "
            f"what comes of it."
        )
    rows = f"{len(found.differences)} of {found.rows} rows"
    if not found.unexplained:
        return (
            f"{opening} {rows} part, each at a weight that lay within a thousandth of a step of "
            f"the middle between two levels, where the order of float32 sums decides; what follows "
            f"in the row differs then. {_errors(first, second)}: block size is a matter of speed."
        )
    return (
        f"{opening} {rows} part, {len(found.unexplained)} of them at weights that were on no tie. "
        f"{_errors(first, second)}. Only an implementation whose ranges miss the current block's "
        f"compensation (stale groups) depends on the block size like that."
    )


def _say_stale(first: Walk, second: Walk) -> str:
    second_is = bool(second.options["stale_groups"])
    stale, which = (second, "second") if second_is else (first, "first")
    a, b = (walk.grid.scale for walk in (first, second))
    share = float((~torch.isclose(a, b, rtol=1e-5)).double().mean())
    differ = f"{100 * share:.3g} % of all scales differ" if share else "No scale differs by it here"
    return (
        f"The {which} run takes ranges as the reference code does, without what the same block of "
        f"{stale.options['block_size']} columns has added: {differ}. {_errors(first, second)}. One "
        f"recognises it by results that change with the block size; groups that are not smaller "
        f"than a block are never stale."
    )


def _damping(plan: Plan, texts: Texts) -> Plan:
    return plan.choose(damp=0.0 if plan.setting("damp") else METHOD.defaults["damp"])


def _say_damping(first: Walk, second: Walk) -> str:
    asked, used = second.options["damp"], second.result.info["damp"]
    raised = (
        f"Cholesky failed with {asked:g} and damping was raised to {used:g}. "
        if used > asked
        else ""
    )
    word = _choose(
        _better(_on_own(second), _on_own(first)),
        "smaller", "the same", "larger",
    )  # fmt: skip
    advice = _choose(
        _verdict(first, second), "this damping suits the layer better",
        "the damping hardly matters here", "the damping there was suits the layer better",
    )  # fmt: skip
    return (
        f"{raised}Damping is {used:g} instead of {first.result.info['damp']:g}. "
        f"{_errors(first, second)}; on its own calibration inputs it is {word} "
        f"({_pc(_on_own(second))} instead of {_pc(_on_own(first))}). Damping keeps "
        f"compensation small where the calibration knows little: {advice}."
    )


# ------------------------------------------------------------------------------- honest comparisons


def _uncorrelated(plan: Plan, texts: Texts) -> Plan:
    c = plan.calibration
    return plan.calibrate(replace(c, hessian=torch.diag(c.hessian.diagonal())))


def _say_uncorrelated(first: Walk, second: Walk) -> str:
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
        reasons = reasons or ["ranges are taken by another rule"]
        what = f"{of - differ} of {of} codes are those of rounding to nearest; {reasons[0]}"
    advice = _choose(
        _better(_end(first), _end(second)), "is what compensation gains",
        "shows that compensation gains nothing", "shows that compensation harms",
    )  # fmt: skip
    return (
        f"Without correlation no column can make good for another, and nothing is handed on. "
        f"{what}. {_errors(first, second)}: the difference {advice} on this layer."
    )


def _few_tokens(plan: Plan, texts: Texts) -> Plan:
    return plan.calibrate(plan.calibration.sample(FEW))


def _other_text(plan: Plan, texts: Texts) -> Plan:
    return plan.calibrate(texts(OTHER_TEXT))


def _flatters(second: Walk) -> str:
    """The error on a run's own calibration beside that on the judge's inputs."""
    own, judged = _on_own(second), _end(second)
    low = own < (1 - SAME) * judged
    word = "only " if low else ""
    tail = ": a low error on its own inputs proves nothing" if low else ""
    return f"On its own calibration the run shows {word}{_pc(own)}{tail}"


def _from_one_channel(walk: Walk) -> str:
    """Where the weights of one input make most of the judge's error: which, and how the calibration
    saw that input. Were they exact, tr(Δ·H·Δᵀ) would fall by 2·Δ_j·(Δ·H)_j − H_jj·|Δ_j|²."""
    lost = walk.original.double() - walk.result.dequantize().double()
    h = walk.judge.hessian.double()
    pull = lost @ h
    fall = 2 * (lost * pull).sum(0) - h.diagonal() * lost.square().sum(0)
    worst, whole = int(fall.argmax()), float((lost * pull).sum())
    if float(fall[worst]) <= 0.5 * whole:
        return ""
    rest = max(1 - float(fall[worst]) / whole, 0.0) ** 0.5 * _end(walk)
    loud, seen = (float(c.act_absmax[worst]) for c in (walk.judge, walk.calibration))
    tail = ", so that its weights were set to zero" if worst in walk.dead else ""
    return (
        f" Most of that is input {worst} alone, without which it would be {_pc(rest)}: it reaches "
        f"{loud:.3g} for the judge and {seen:.3g} in this calibration{tail}."
    )


def _say_few(first: Walk, second: Walk) -> str:
    tokens = second.calibration.tokens
    return (
        f"{_tokens(tokens)} know at most {tokens} directions of {second.n}. "
        f"{_errors(first, second)}: {_against_rounding(second)}."
        f"{_from_one_channel(second)} {_flatters(second)}. "
        f"Take more tokens than the layer has inputs, and measure on others."
    )


def _say_text(first: Walk, second: Walk) -> str:
    advice = _choose(
        _verdict(first, second), "This text serves the layer even better",
        "The layer does not mind the text",
        "Calibrate on what the model will read",
    )  # fmt: skip
    return (
        f"{_errors(first, second)}: {_against_rounding(second)}."
        f"{_from_one_channel(second)} {_flatters(second)}. {advice}."
    )


# ---------------------------------------------------------------------------------------- failures


def _used(plan: Plan) -> int:
    """Channels that the calibration has seen: the others have no part in the Hessian."""
    return int((plan.calibration.hessian.diagonal() != 0).sum())


def _singular(plan: Plan) -> int:
    """Tokens so few that the Hessian has no inverse."""
    return min(max(_used(plan) // SHARE, 1), len(plan.calibration.inputs))


def _no_damping(plan: Plan, texts: Texts) -> Plan:
    return plan.calibrate(plan.calibration.sample(_singular(plan))).choose(damp=0.0)


def _say_no_damping(first: Walk, second: Walk) -> str:
    used, tokens = second.result.info["damp"], second.calibration.tokens
    seen, before = (walk.n - len(walk.dead) for walk in (second, first))
    what = f"{_tokens(tokens)} cannot span {before} channels"
    if seen <= tokens:
        what = (
            f"{_tokens(tokens)} have inputs in {seen} of {before} channels only: the weights of "
            f"the others were set to zero"
        )
    elif used > 0:
        what += (
            f": H has no inverse, and without damping its Cholesky factorization fails. The run "
            f"raised the damping to {used:g} by itself, as info['damp'] says; other programs do "
            f"that too, round to nearest, or stop"
        )
    else:
        what += ", yet rounding error let the factorization through: what U holds there is noise"
    return (
        f"{what}. {_errors(first, second)}: {_against_rounding(second)}. "
        f"Keep some damping, and take more tokens."
    )


def _weak_damping(plan: Plan, texts: Texts) -> Plan:
    few = _no_damping(plan, texts)
    weight = as_matrix(few.weight)
    order = few.setting("act_order")
    for damp in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        if prepare(weight, few.calibration, damp=damp, act_order=order).damp == damp:
            break
    return few.choose(damp=damp)


def _say_weak_damping(first: Walk, second: Walk) -> str:
    damp, usual = second.result.info["damp"], METHOD.defaults["damp"]
    options = {name: value for name, value in second.options.items() if name != "damp"}
    cautious = Walk(second.original, second.calibration, second.judge, damp=usual, **options)
    advice = _choose(
        _better(_end(cautious), _end(second)), "the usual damping would have helped",
        "the usual damping would not have mattered", "the usual damping would have been worse",
    )  # fmt: skip
    return (
        f"With {_tokens(second.calibration.tokens)} for {second.n} channels, damping of {damp:g} "
        f"is enough for Cholesky, and compensation leans on directions that were never seen. "
        f"{_errors(first, second)}: {_against_rounding(second)}; with the same tokens and "
        f"damping {usual:g} it is {_pc(_end(cautious))}: {advice}. {_flatters(second)}."
    )


def _dead_channel(plan: Plan, texts: Texts) -> Plan:
    c = plan.calibration
    loudest = int(c.act_absmax.argmax())
    h, x = c.hessian.clone(), c.inputs.clone()
    largest, mean = c.act_absmax.clone(), c.act_absmean.clone()
    h[loudest], h[:, loudest], x[:, loudest] = 0, 0, 0
    largest[loudest], mean[loudest] = 0, 0
    return plan.calibrate(replace(c, hessian=h, inputs=x, act_absmax=largest, act_absmean=mean))


def _say_dead(first: Walk, second: Walk) -> str:
    before = set(first.result.info["dead_columns"])
    new = [j for j in second.result.info["dead_columns"] if j not in before]
    lost = float(second.error[0])
    which = ", ".join(map(str, new))
    return (
        f"Calibration never saw input {which}, so GPTQ set the weights that read it to zero: the "
        f"error is {_pc(lost)} before a single column is rounded, where it was "
        f"{_pc(float(first.error[0]))}. {_errors(first, second)}: {_against_rounding(second)}. "
        f"One recognises it by info['dead_columns']: calibrate on texts that use every channel."
    )


def _misprint(name: str) -> Callable[[Plan, Texts], Plan]:
    return lambda plan, texts: plan.choose(variant=name)


def _account(walk: Walk) -> float:
    """Σe² over the damped output error that it is equal to in a correct run."""
    lost = walk.original.double() - walk.result.dequantize().double()
    lost[:, walk.result.info["dead_columns"]] = 0  # they were zero before the run began
    damped = replace(walk.calibration, hessian=walk.hessian.double())
    total = float(walk.recording.errors.double().square().sum())
    return ratio(total, output_energy(lost[:, walk.perm], damped))


def _say_misprint(first: Walk, second: Walk) -> str:
    advice = {
        "double_division": "Divide by U_jj once; dividing twice also makes the codes depend on the "
        "scale of H, which a correct run does not notice",
        "no_update": "Use row j of U, or update H⁻¹ after every column: those that are rounded can "
        "compensate nothing any more",
        "as_printed": "Divide once, and use row j of U",
    }[second.options["variant"]]
    sums = [_account(walk) for walk in (second, first)]
    sign = (
        f"Σe² is {sums[0]:.3g} times the damped output error that it should equal, and "
        f"{sums[1]:.3g} times in the first run"
        if sums[1]
        else "Σe² should equal the damped output error, which is 0 here in the first run"
    )
    return (
        f"{_errors(first, second)}: {_against_rounding(second)}. One recognises it by the "
        f"run's own account: {sign}. {advice}."
    )


# -------------------------------------------------------------------------------------------- table


def _always(plan: Plan) -> bool:
    return True


def _has_other_mode(plan: Plan) -> bool:
    chosen = CONVENTIONS[plan.setting("convention")]
    return (chosen.asymmetric if plan.setting("symmetric") else chosen.symmetric) is not None


def _may_be_static(plan: Plan) -> bool:
    return plan.setting("group_size") is not None and not plan.setting("stale_groups")


def _may_be_stale(plan: Plan) -> bool:
    size = plan.setting("group_size")
    dynamic = size is not None and not plan.setting("static_groups")
    return dynamic and size < min(plan.setting("block_size"), plan.in_features)


def _kept(plan: Plan, tokens: int) -> bool:
    c = plan.calibration
    return tokens <= len(c.inputs) and tokens < c.tokens


def _few_fits(plan: Plan) -> bool:
    return _kept(plan, FEW) and _used(plan) > FEW


def _singular_fits(plan: Plan) -> bool:
    tokens = _singular(plan)
    return _kept(plan, tokens) and tokens < _used(plan)


def _correct(plan: Plan) -> bool:
    return plan.setting("variant") is None


CONTRASTS: tuple[Contrast, ...] = (
    Contrast(
        "act_order", "Act-order the other way", "setting",
        "Act-order rounds the columns with the largest inputs first, while many others are left to "
        "compensate.",
        _toggle("act_order"), _always, _say_order,
    ),
    Contrast(
        "fewer_bits", "One bit fewer", "setting",
        "Half as many levels.",
        lambda plan, texts: plan.choose(bits=plan.setting("bits") - 1),
        lambda plan: plan.setting("bits") > 2, _say_bits,
    ),
    Contrast(
        "group_size", "Other groups", "setting",
        "Another number of inputs shares a scale.",
        _regroup, lambda plan: _other_size(plan) is not None, _say_groups,
    ),
    Contrast(
        "symmetric", "Symmetric and asymmetric", "setting",
        "Symmetric levels lie around 0, asymmetric ones between the smallest and the largest "
        "weight.",
        _toggle("symmetric"), _has_other_mode, _say_symmetry,
    ),
    Contrast(
        "static_groups", "Static groups", "setting",
        "Static groups take their scales from the original weights, before compensation has moved "
        "them.",
        _toggle("static_groups"), _may_be_static, _say_static,
    ),
    Contrast(
        "mse", "Range search", "setting",
        "A range search cuts each range to what rounds its weights best.",
        _toggle("mse"), _always, _say_mse,
    ),
    Contrast(
        "damp", "With and without damping", "setting",
        "Damping adds a share of its mean to the diagonal of H.",
        _damping, _always, _say_damping,
    ),
    Contrast(
        "block_size", "Another block size", "setting",
        "The block size says after how many columns compensation reaches the rest of the matrix.",
        lambda plan, texts: plan.choose(block_size=1 if plan.setting("block_size") > 1 else 128),
        _always, _say_block,
    ),
    Contrast(
        "stale_groups", "Stale groups", "setting",
        "Stale groups take their ranges without what the same block has added.",
        _toggle("stale_groups"), _may_be_stale, _say_stale,
    ),
    Contrast(
        "no_correlation", "Inputs without correlation", "honest",
        "Only the diagonal of H is kept, as if no two inputs had anything to do with each other.",
        _uncorrelated, _correct, _say_uncorrelated,
    ),
    Contrast(
        "few_tokens", f"{FEW} tokens", "honest",
        f"The calibration is cut to {FEW} tokens.",
        _few_tokens, _few_fits, _say_few,
    ),
    Contrast(
        "other_text", "Calibrated on numbers", "honest",
        "The calibration is that of a text of numbers; the judge stays.",
        _other_text, _always, _say_text,
    ),
    Contrast(
        "no_damping", "A singular Hessian, no damping", "failure",
        "The calibration is cut to a quarter as many tokens as there are channels, and nothing is "
        "added to the diagonal.",
        _no_damping, _singular_fits, _say_no_damping,
    ),
    Contrast(
        "weak_damping", "A singular Hessian, hardly any damping", "failure",
        "The calibration is cut to a quarter as many tokens as there are channels, and the damping "
        "to the smallest power of ten with which Cholesky succeeds.",
        _weak_damping, _singular_fits, _say_weak_damping,
    ),
    Contrast(
        "dead_channel", "A channel that calibration never saw", "failure",
        "The loudest input channel is silent during calibration, and not for the judge.",
        _dead_channel, lambda plan: bool(plan.calibration.act_absmax.any()), _say_dead,
    ),
    Contrast(
        "double_division", "Divided twice", "failure",
        "The error is divided by U_jj, and the row of U again.",
        _misprint("double_division"), _correct, _say_misprint,
    ),
    Contrast(
        "no_update", "The inverse never updated", "failure",
        "Compensation uses H⁻¹ of all columns at every step, as if none were rounded yet.",
        _misprint("no_update"), _correct, _say_misprint,
    ),
    Contrast(
        "as_printed", "As articles print it", "failure",
        "Divided twice, with an inverse that is never updated.",
        _misprint("as_printed"), _correct, _say_misprint,
    ),
)  # fmt: skip
