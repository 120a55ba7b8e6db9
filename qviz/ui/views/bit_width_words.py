"""What the bit-width lesson says: its equation, a sentence for each bit-width, the verdict."""

from collections.abc import Mapping
from typing import Any

from qviz.core import metrics
from qviz.core.calibration import Calibration
from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.ui.views.guide_steps import Is, Moved, Step
from qviz.ui.views.scale_sharing import each
from qviz.ui.widgets import number, percent

OUTPUT, WEIGHTS = "layer output", "weights"
GUESS_WITHIN = 0.10  # the prediction asks for the fewest bits that keep the output this close

EQUATION = """
<math display="block"><mrow>
  <mi data-term="q">q</mi><mo>=</mo><mi data-term="clamp">clamp</mi><mo>(</mo>
  <mi data-term="round">round</mi><mo>(</mo><mfrac><mi data-term="x">x</mi>
  <mi data-term="s">s</mi></mfrac><mo>+</mo><mi data-term="z">z</mi><mo>)</mo><mo>)</mo>
</mrow></math>
<math display="block"><mrow>
  <mover accent="true"><mi data-term="xhat">x</mi><mo>^</mo></mover><mo>=</mo>
  <mi data-term="s">s</mi><mo>·</mo><mo>(</mo><mi data-term="q">q</mi><mo>−</mo>
  <mi data-term="z">z</mi><mo>)</mo>
</mrow></math>
"""
SPOKEN = "q is x over s plus z, rounded and clamped; x hat is s times q minus z"
TERMS = {
    "x": "x: the trained weight",
    "s": "s: the scale, which is the spacing of the levels. The whole group shares it: the "
    "group's range divided by a number that depends on the bits and on the system",
    "z": "z: the zero point, the code that stands for 0. Symmetric levels need none",
    "round": "round: to the nearest whole number; a tie goes to the even one",
    "clamp": "clamp: a code beyond the first or last level is replaced by that level's code",
    "q": "q: the stored code, a whole number that fits in the chosen number of bits",
    "xhat": "x̂: the reconstructed weight, which the model uses",
}

GUIDE = (
    Step(
        "Drag from 8 bits to 2",
        "Drag “Bits per code” to the left end. The rounded weights look unchanged for a long "
        "time; the error picture does not. At how many bits does the output start to suffer?",
        done={"bits": Is("2")},
    ),
    Step(
        "Share the scale less",
        "One large weight spreads the levels of every weight that shares its scale. Move “One "
        "scale per” from the whole matrix to small groups. The damage stays in one group, and "
        "the table “What the bits cost, per weight” shows what the extra scales cost.",
        {"bits": "4", "scale": "matrix"},
        {"scale": Is("group of 32")},
    ),
    Step(
        "Shift the range",
        "Switch to asymmetric levels. The range then runs from the smallest to the largest "
        "weight of the group instead of being centred on zero. Groups whose weights lean to one "
        "side gain; every group pays for a zero point.",
        {"bits": "4"},
        {"levels": Is("asymmetric")},
    ),
    Step(
        "Compare the two errors",
        "Switch the chart to the weights. The error of the weights counts every weight equally. "
        "The output error also depends on the inputs: an error in a weight that meets large "
        "inputs counts more. That is what the rest of the model sees.",
        {"bits": "4"},
        {"error": Is(WEIGHTS)},
    ),
    Step(
        "Find out who divides by what",
        "Choose other systems under “Spacing computed as in”, and watch s in the table. With 4 "
        "symmetric bits some divide the largest magnitude by 7 and some by 7.5; others divide "
        "twice that size by 15. A weight beyond the last level is clipped to it.",
        {"bits": "4"},
        {"convention": Moved()},
    ),
)


def sentence(bits: int, q: QuantizedTensor, unit: str, row: Mapping[str, Any],
             calibration: Calibration | None, split: metrics.ErrorSplit) -> str:  # fmt: skip
    """What this bit-width does to the layer, in words. `row` holds its measures."""
    text = (
        f"{bits} bits: {len(q.levels(0, 0))} levels for {each(unit)}. Weights are off by "
        f"{percent(row['relative_error'])}"
    )
    if calibration is not None:
        text += (
            f", the layer's output by {percent(row['output_error'])} on {calibration.tokens} "
            f"tokens of real input"
        )
    bpw = q.bits_per_weight
    cost = f"A weight costs {number(bpw)} bits, {number(16 / bpw, 3)}× smaller than 16 bits."
    return f"{text}. {_clipping(q, unit, split)}{cost}"


def _clipping(q: QuantizedTensor, unit: str, split: metrics.ErrorSplit) -> str:
    """How much is clipped and, where the range itself causes it, why."""
    if split.clipping <= 0:
        return ""
    share = split.clipping / split.total
    amount = percent(share) if share >= 1e-4 else "Less than 0.01 %"
    text = f"{amount} of the squared error is clipping"
    if not isinstance(q.grid, Affine) or not q.info["symmetric"]:
        return f"{text}. "
    top = q.grid.qmax - (0 if q.grid.zero_point is None else int(q.grid.zero_point.flatten()[0]))
    text += (
        f": {split.clipped} weights lie beyond the last level, {number(top)}·s, which this "
        "system places inside the range"
    )
    return f"{text}, separately in every group. " if unit.startswith("group") else f"{text}. "


def verdict(guess: int, errors: Mapping[int, float]) -> str:
    """The prediction against the output error at each bit-width, and what to ask next."""
    enough = [b for b in errors if errors[b] <= GUESS_WITHIN]
    at_guess = f"At {guess} bits the output is off by {percent(errors[guess])}"
    if not enough:
        text = f"{at_guess}, and here even 8 bits do not bring it within {percent(GUESS_WITHIN)}."
    elif guess == enough[0]:
        text = f"Right. {at_guess}."
    else:
        text = (
            f"{at_guess}. The fewest bits that do are {enough[0]}, with "
            f"{percent(errors[enough[0]])}."
        )
    if errors[4] == 0:  # a layer of zeros has no error to divide by
        return text
    return (
        f"{text} One bit more divides the error by about {number(errors[3] / errors[4], 2)} (from "
        f"3 to 4). Why about that much? Move the scale's slider, and see whether the answer "
        f"changes."
    )
