"""What determines a GPTQ run, and how one thing in it is changed.

A Plan holds the inputs of a run. A change makes another plan from it, with one thing different.
`…_fits` says whether a change applies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration, require_calibration
from qviz.core.check import as_matrix
from qviz.core.granularity import whole_or_size
from qviz.methods.affine import CONVENTIONS
from qviz.methods.gptq import METHOD, prepare
from qviz.methods.registry import require_options
from qviz.study.gptq_walk import Walk

Texts = Callable[[str], Calibration]

FEW, OTHER_TEXT = 16, "numbers"
SHARE = 4  # a singular Hessian is made from one token per this many channels


@dataclass(frozen=True)
class Plan:
    """The inputs of a run.

    weight       [out, in]
    calibration  what the run knows of the inputs
    judge        the inputs that errors are measured on; None: the calibration
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


Change = Callable[[Plan, Texts], Plan]
Fits = Callable[[Plan], bool]


def always(plan: Plan) -> bool:
    return True


# ---------------------------------------------------------------------------------------- settings


def toggle(name: str) -> Change:
    """Switch an option on or off."""
    return lambda plan, texts: plan.choose(**{name: not plan.setting(name)})


def fewer_bits(plan: Plan, texts: Texts) -> Plan:
    return plan.choose(bits=plan.setting("bits") - 1)


def fewer_bits_fits(plan: Plan) -> bool:
    return bool(plan.setting("bits") > 2)


def other_size(plan: Plan) -> int | None:
    """A group size that is not the plan's and divides its rows; None where there is none."""
    size: int | None = plan.setting("group_size")
    return next(
        (
            g
            for g in (32, 128, 64)
            if g not in (size, plan.in_features) and not plan.in_features % g
        ),
        None,
    )


def regroup(plan: Plan, texts: Texts) -> Plan:
    return plan.choose(group_size=other_size(plan))


def regroup_fits(plan: Plan) -> bool:
    return other_size(plan) is not None


def other_mode_fits(plan: Plan) -> bool:
    """Whether the convention has symmetric and asymmetric levels."""
    chosen = CONVENTIONS[plan.setting("convention")]
    return (chosen.asymmetric if plan.setting("symmetric") else chosen.symmetric) is not None


def static_fits(plan: Plan) -> bool:
    return plan.setting("group_size") is not None and not plan.setting("stale_groups")


def stale_fits(plan: Plan) -> bool:
    size = plan.setting("group_size")
    dynamic = size is not None and not plan.setting("static_groups")
    return dynamic and size < min(plan.setting("block_size"), plan.in_features)


def other_damp(plan: Plan) -> float:
    return 0.0 if plan.setting("damp") else float(METHOD.defaults["damp"])


def damping(plan: Plan, texts: Texts) -> Plan:
    return plan.choose(damp=other_damp(plan))


def other_block(plan: Plan) -> int:
    return 1 if plan.setting("block_size") > 1 else 128


def reblock(plan: Plan, texts: Texts) -> Plan:
    return plan.choose(block_size=other_block(plan))


# ------------------------------------------------------------------------------- honest comparisons


def correct_fits(plan: Plan) -> bool:
    """Whether the run is GPTQ and not a misprint of it."""
    return plan.setting("variant") is None


def uncorrelated(plan: Plan, texts: Texts) -> Plan:
    c = plan.calibration
    return plan.calibrate(replace(c, hessian=torch.diag(c.hessian.diagonal())))


def few_tokens(plan: Plan, texts: Texts) -> Plan:
    return plan.calibrate(plan.calibration.sample(FEW))


def few_tokens_fits(plan: Plan) -> bool:
    return _kept(plan, FEW) and _used(plan) > FEW


def other_text(plan: Plan, texts: Texts) -> Plan:
    return plan.calibrate(texts(OTHER_TEXT))


def _kept(plan: Plan, tokens: int) -> bool:
    c = plan.calibration
    return tokens <= len(c.inputs) and tokens < c.tokens


def _used(plan: Plan) -> int:
    """Channels that the calibration has seen: the others have no part in the Hessian."""
    return int((plan.calibration.hessian.diagonal() != 0).sum())


# ---------------------------------------------------------------------------------------- failures


def _singular(plan: Plan) -> int:
    """Tokens so few that the Hessian has no inverse."""
    return min(max(_used(plan) // SHARE, 1), len(plan.calibration.inputs))


def singular_fits(plan: Plan) -> bool:
    tokens = _singular(plan)
    return _kept(plan, tokens) and tokens < _used(plan)


def no_damping(plan: Plan, texts: Texts) -> Plan:
    return plan.calibrate(plan.calibration.sample(_singular(plan))).choose(damp=0.0)


def weak_damping(plan: Plan, texts: Texts) -> Plan:
    """The smallest power of ten with which a singular Hessian has a Cholesky factor."""
    few = no_damping(plan, texts)
    weight = as_matrix(few.weight)
    order = few.setting("act_order")
    for damp in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        if prepare(weight, few.calibration, damp=damp, act_order=order).damp == damp:
            break
    return few.choose(damp=damp)


def dead_channel(plan: Plan, texts: Texts) -> Plan:
    """Set the input with the largest values to 0 in the calibration."""
    c = plan.calibration
    loudest = int(c.act_absmax.argmax())
    h, x = c.hessian.clone(), c.inputs.clone()
    largest, mean = c.act_absmax.clone(), c.act_absmean.clone()
    h[loudest], h[:, loudest], x[:, loudest] = 0, 0, 0
    largest[loudest], mean[loudest] = 0, 0
    return plan.calibrate(replace(c, hessian=h, inputs=x, act_absmax=largest, act_absmean=mean))


def dead_channel_fits(plan: Plan) -> bool:
    return bool(plan.calibration.act_absmax.any())


def misprint(name: str) -> Change:
    """One of the ways in which articles break the method."""
    return lambda plan, texts: plan.choose(variant=name)
