"""Contrasts: a second GPTQ run beside a first one, with one thing changed, and what it shows.

Settings a user may choose, honest comparisons (no correlation, few tokens, another text), and ways
in which GPTQ fails in practice. This is the catalogue. `gptq_plan` changes a plan, `gptq_compared`
compares the two runs, and `gptq_verdicts` puts the comparison into words.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qviz.core.words import counted, percent
from qviz.study import gptq_plan as change
from qviz.study import gptq_verdicts as say
from qviz.study.gptq_plan import FEW, Change, Fits, Plan, Texts
from qviz.study.gptq_walk import Walk

__all__ = ["CONTRASTS", "FEW", "Contrast", "Plan", "contrasts_for"]


@dataclass(frozen=True)
class Contrast:
    """One thing to change.

    name, title  for code and for readers; family: "setting", "honest" or "failure"
    why          what is changed, in words
    change       (plan, texts) → the changed plan
    fits         plan → whether the change applies there
    say          (first, second) → what to see, how to recognise it, what to do
    second       plan → the second run's name, which says what is different in it; None: the title
                 does

    >>> plan = Plan(weight, calibration, options={"bits": 3})
    >>> contrast = contrasts_for(plan)[0]
    >>> second = contrast.apply(plan, lambda text: qviz.load_calibration(None, layer, text=text))
    >>> contrast.diagnose(plan.walk(), second.walk())
    """

    name: str
    title: str
    family: str
    why: str
    change: Change
    fits: Fits
    say: Callable[[Walk, Walk], str]
    second: Callable[[Plan], str] | None = None

    def apply(self, plan: Plan, texts: Texts) -> Plan:
        """The plan of the second run; texts("numbers") gives this layer's calibration on that text.

        Raises ValueError for a plan that this contrast does not change.
        """
        if not self.fits(plan):
            raise ValueError(f"{self.title!r} does not apply here; see contrasts_for(plan)")
        return self.change(plan, texts)

    def named(self, plan: Plan) -> str:
        """The name of the second run beside this plan: what is different in it.

        >>> CONTRASTS[0].named(Plan(weight, calibration, options={"act_order": True}))
        'Left to right'
        """
        return self.title if self.second is None else self.second(plan)

    def diagnose(self, first: Walk, second: Walk) -> str:
        """A few sentences, computed from the two runs, which are those of two plans as `apply`
        takes and gives them."""
        return self.say(first, second)


def contrasts_for(plan: Plan) -> tuple[Contrast, ...]:
    """The contrasts that apply to this plan, in the order of `CONTRASTS`."""
    return tuple(c for c in CONTRASTS if c.fits(plan))


def _switched(name: str, on: str, off: str) -> Callable[[Plan], str]:
    """The name of a run in which this option is switched, by its present state."""
    return lambda plan: off if plan.setting(name) else on


CONTRASTS: tuple[Contrast, ...] = (
    Contrast(
        "act_order", "Act-order the other way", "setting",
        "Act-order rounds the columns with the largest inputs first, while many others are left to "
        "compensate.",
        change.toggle("act_order"), change.always, say.order,
        _switched("act_order", "Act-order", "Left to right"),
    ),
    Contrast(
        "fewer_bits", "One bit fewer", "setting",
        "Half as many levels.",
        change.fewer_bits, change.fewer_bits_fits, say.fewer_bits,
        lambda plan: f"{plan.setting('bits') - 1} bits",
    ),
    Contrast(
        "group_size", "Other groups", "setting",
        "A different number of inputs shares a scale.",
        change.regroup, change.regroup_fits, say.groups,
        lambda plan: f"Groups of {change.other_size(plan)}",
    ),
    Contrast(
        "symmetric", "Symmetric and asymmetric", "setting",
        "Symmetric levels lie around 0; asymmetric ones lie between the smallest and the largest "
        "weight.",
        change.toggle("symmetric"), change.other_mode_fits, say.symmetry,
        _switched("symmetric", "Symmetric levels", "Asymmetric levels"),
    ),
    Contrast(
        "static_groups", "Static groups", "setting",
        "Static groups take their scales from the original weights, before compensation has moved "
        "them.",
        change.toggle("static_groups"), change.static_fits, say.static,
        _switched("static_groups", "Static groups", "Scales set when a group is reached"),
    ),
    Contrast(
        "mse", "Range search", "setting",
        "A range search shrinks each range to the part with the smallest rounding and clipping "
        "error.",
        change.toggle("mse"), change.always, say.mse,
        _switched("mse", "Range search", "Whole range"),
    ),
    Contrast(
        "damp", "With and without damping", "setting",
        "Damping adds a share of its mean to the diagonal of H.",
        change.damping, change.always, say.damping,
        lambda plan: f"Damping of {percent(change.other_damp(plan))}",
    ),
    Contrast(
        "block_size", "Another block size", "setting",
        "The block size says after how many columns the compensation is applied to the rest of "
        "the matrix.",
        change.reblock, change.always, say.block,
        lambda plan: f"Blocks of {counted(change.other_block(plan), 'column')}",
    ),
    Contrast(
        "stale_groups", "Stale groups", "setting",
        "Stale groups compute their ranges without the compensation of their own block.",
        change.toggle("stale_groups"), change.stale_fits, say.stale,
        _switched("stale_groups", "Stale groups", "Up-to-date groups"),
    ),
    Contrast(
        "no_correlation", "Inputs without correlation", "honest",
        "Only the diagonal of H is kept, as if no two inputs were correlated.",
        change.uncorrelated, change.correct_fits, say.uncorrelated,
    ),
    Contrast(
        "few_tokens", f"{FEW} tokens", "honest",
        f"The calibration is cut to {FEW} tokens.",
        change.few_tokens, change.few_tokens_fits, say.few_tokens,
    ),
    Contrast(
        "other_text", "Calibrated on numbers", "honest",
        "The calibration text is a text of numbers. The text that errors are measured on stays "
        "the same.",
        change.other_text, change.always, say.other_text,
    ),
    Contrast(
        "no_damping", "A singular Hessian, no damping", "failure",
        "The calibration has only a quarter as many tokens as there are channels, and nothing "
        "is added to the diagonal.",
        change.no_damping, change.singular_fits, say.no_damping,
    ),
    Contrast(
        "weak_damping", "A singular Hessian, hardly any damping", "failure",
        "The calibration has only a quarter as many tokens as there are channels, and the "
        "damping is the smallest power of ten with which Cholesky succeeds.",
        change.weak_damping, change.singular_fits, say.weak_damping,
    ),
    Contrast(
        "dead_channel", "A channel that calibration never saw", "failure",
        "The input channel with the largest values is 0 during calibration, but not in the text "
        "that errors are measured on.",
        change.dead_channel, change.dead_channel_fits, say.dead_channel,
    ),
    Contrast(
        "double_division", "Divided twice", "failure",
        "The error is divided by U_{jj}, and then the row of U is divided by it again.",
        change.misprint("double_division"), change.correct_fits, say.misprint,
    ),
    Contrast(
        "no_update", "The inverse never updated", "failure",
        "Compensation uses H⁻¹ of all columns at every step, as if none were rounded yet.",
        change.misprint("no_update"), change.correct_fits, say.misprint,
    ),
    Contrast(
        "as_printed", "As articles print it", "failure",
        "Divided twice, with an inverse that is never updated.",
        change.misprint("as_printed"), change.correct_fits, say.misprint,
    ),
)  # fmt: skip
