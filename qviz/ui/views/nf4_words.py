"""What the NF4 lesson says: equations, a sentence for each state, the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass

from qviz.methods.nf4 import OFFSET
from qviz.study.level_duel import (
    ASYMMETRIC,
    FP4_NAME,
    LLOYD,
    NF4_DOUBLE,
    NF4_NAME,
    OWN,
    SYMMETRIC,
)
from qviz.study.nf4_levels import CLAIMED, NEGATIVE, PARTS, ZERO, Made
from qviz.ui.views.guide_steps import AtLeast, Is, Moved, Step
from qviz.ui.widgets import counted, number, percent

BUILD, FILL, STORE, DUEL = "build", "fill", "store", "duel"
EQUAL = 5e-5  # relative difference of two errors below which neither is said to win
NONE = "none of them"
FIXED = (FP4_NAME, SYMMETRIC, ASYMMETRIC)  # rivals whose levels do not depend on the layer
ANSWERS = (*FIXED, NONE)

BUILD_EQUATION = """
<math display="block"><mrow>
  <mi data-term="p">p</mi><mo>=</mo><mi data-term="delta">δ</mi><mo>−</mo>
  <mi data-term="i">i</mi><mo>·</mo><mfrac><mrow><mi data-term="delta">δ</mi><mo>−</mo>
  <mn>½</mn></mrow><mi data-term="n">n</mi></mfrac>
</mrow></math>
<math display="block"><mrow>
  <mi data-term="z">z</mi><mo>=</mo><mo data-term="sign">±</mo>
  <msup><mi data-term="phi">Φ</mi><mrow><mo>−</mo><mn>1</mn></mrow></msup><mo>(</mo>
  <mi data-term="p">p</mi><mo>)</mo><mo>,</mo><mspace width="1em"></mspace>
  <mi data-term="v">v</mi><mo>=</mo><mfrac><mi data-term="z">z</mi>
  <msub><mi data-term="zmax">z</mi><mi>max</mi></msub></mfrac>
</mrow></math>
<math display="block"><mrow>
  <msub><mi data-term="m">m</mi><mi>q</mi></msub><mo>=</mo><mfrac><mrow>
  <msub><mi data-term="v">v</mi><mi>q</mi></msub><mo>+</mo>
  <msub><mi data-term="v">v</mi><mrow><mi>q</mi><mo>+</mo><mn>1</mn></mrow></msub></mrow>
  <mn>2</mn></mfrac>
</mrow></math>
"""
BUILD_SPOKEN = (
    "p is delta minus i times delta minus one half over n; z is plus or minus the normal quantile "
    "of p; v is z over the largest z; the bound m is halfway between neighbouring levels"
)
BUILD_TERMS = {
    "delta": f"δ = {OFFSET}: the share of the normal distribution below the highest level",
    "i": "i: how many slices below δ this point lies",
    "n": f"n: the number of equal slices between ½ and δ; {PARTS['positive']} above zero, "
    f"{PARTS[NEGATIVE]} below",
    "p": "p: the share of the distribution below Φ⁻¹(p)",
    "phi": "Φ⁻¹: the quantile function of the normal distribution",
    "sign": "±: the lower half is mirrored at zero",
    "z": "z: the quantile, in standard deviations",
    "zmax": "z_max: the largest quantile, Φ⁻¹(δ); dividing by it makes the largest level 1",
    "v": "v: the level, a number from −1 to 1, stored as float32",
    "m": "m: the bound between two levels; a weight goes to the nearer level",
}

EQUATION = """
<math display="block"><mrow>
  <mi data-term="a">a</mi><mo>=</mo><mi>max</mi><mo>|</mo><mi data-term="w">w</mi><mo>|</mo>
  <mo>,</mo><mspace width="1em"></mspace>
  <mi data-term="x">x</mi><mo>=</mo><mfrac><mi data-term="w">w</mi><mi data-term="a">a</mi></mfrac>
</mrow></math>
<math display="block"><mrow>
  <mi data-term="q">q</mi><mo>=</mo><munder><mi>argmin</mi><mi>i</mi></munder><mo>|</mo>
  <mi data-term="x">x</mi><mo>−</mo><msub><mi data-term="v">v</mi><mi>i</mi></msub><mo>|</mo>
</mrow></math>
<math display="block"><mrow>
  <mover accent="true"><mi data-term="what">w</mi><mo>^</mo></mover><mo>=</mo>
  <msub><mi data-term="v">v</mi><mi>q</mi></msub><mo>·</mo><mi data-term="a">a</mi>
</mrow></math>
"""
SPOKEN = (
    "a is the largest magnitude of the block; x is w over a; q is the code whose level v is "
    "nearest to x; w hat is that level times a"
)
TERMS = {
    "w": "w: the trained weight",
    "a": "a: absmax, the largest magnitude among the weights of the block; one is stored per block",
    "x": "x: the weight in units of its block's largest magnitude, from −1 to 1",
    "q": "q: the stored code, 0 to 15",
    "v": "v: the table of sixteen levels, the same for every block",
    "what": "ŵ: the reconstructed weight",
}

GUIDE = (
    Step(
        "Build the sixteen levels",
        "Press “One step forward” again and again, or press Play. From each level to the next "
        "lies the same slice of probability. Why are there eight slices above zero and only "
        "seven below?",
        {"part": BUILD},
        {"part": Is(BUILD), "step": AtLeast(17)},
    ),
    Step(
        "Are the bins equally full?",
        "Each is said to hold 1/16 of the weights. Drag “Block size” to its right end and watch "
        "the outer bins. Where do their weights go, and why?",
        {"part": FILL},
        {"part": Is(FILL), "block": Is("4096")},
    ),
    Step(
        "Pay for the block size",
        "Drag “Block size” to its left end. How many bits per weight does the absmax cost then, "
        "and how many with double quantization? Point at a weight to find its byte.",
        {"part": STORE},
        {"part": Is(STORE), "block": Is("32")},
    ),
    Step(
        "Beat NF4",
        "Start from equal spacing and drag the levels. The bars below show which level causes "
        "the most error. Can you beat NF4? “One round of Lloyd” moves each level to the best "
        "place for its weights. After that, some weights may be nearer to another level, so a "
        "second round can help.",
        {"part": DUEL},
        {"part": Is(DUEL), "levels": Moved()},
    ),
    Step(
        "Find the right rival",
        "Guess which rival beats NF4 in blocks of 64, then look at “Everyone's score”. Does "
        "your answer still hold in larger blocks?",
        {"part": DUEL},
        {"part": Is(DUEL), "board": Is("on"), "block": Moved()},
    ),
)


def built(made: Made | None, count: int, largest: float) -> str:
    """What one step of the construction does; None for the first and the last.

    count    levels made so far
    largest  the quantile that all are divided by
    """
    if made is None and count == 0:
        return (
            "Cut the normal distribution into equally likely bins and take the middle of each. "
            "Below the outermost middle lies a share of 1 − 1/32 of the distribution with 16 "
            f"bins, and 1 − 1/30 with 15. NF4 takes the value halfway between, δ = {OFFSET}. "
            "Everything else follows from it."
        )
    if made is None:
        return (
            f"All {count} levels are done. In float32 they equal those of bitsandbytes bit for "
            f"bit. A weight goes to the nearest level, so the {count - 1} bounds between bins "
            "lie halfway between levels. That alone makes the bins unequal."
        )
    head = f"Code {made.code}: "
    if made.half == ZERO:
        return (
            f"{head}{made.index} slices below δ is one half, whose quantile is 0. So zero has a "
            "level of its own: a weight of 0 stays 0."
        )
    p, z, v = number(made.p), number(made.quantile), number(made.level)
    if made.index == 0 and made.half == NEGATIVE:
        return (
            f"{head}the lower half begins at δ again and is mirrored at zero: z = −Φ⁻¹({p}) = "
            f"{z}, so v = {v}. Zero already has its level, so this half gets only "
            f"{PARTS[NEGATIVE]} slices, each a little larger."
        )
    if made.index == 0:
        return (
            f"{head}the highest level has {p} of the distribution below it, at z = {z}. "
            f"Dividing by {number(largest)} makes it v = {v}."
        )
    slices = "one slice" if made.index == 1 else f"{made.index} slices"
    mirrored = "Mirrored, its" if made.half == NEGATIVE else "Its"
    return (
        f"{head}p = {p} is {slices} below δ. {mirrored} quantile is z = {z}, and v = {z} ÷ "
        f"{number(largest)} = {v}."
    )


@dataclass(frozen=True)
class FillFacts:
    """How full the bins are in blocks of one size: codes and shares, and the reach of a block.

    reach    the largest weight of a block over the root mean square of all weights
    largest  the reach for which the table was made: its largest quantile
    """

    size: int
    fullest: int
    fullest_share: float
    emptiest: int
    emptiest_share: float
    reach: float
    largest: float


def fill_sentence(facts: FillFacts) -> str:
    """How full the bins are, and what the division by the largest weight does to them."""
    if facts.reach == 0:
        return "Every weight is 0, so they all share one level."
    text = (
        f"Blocks of {facts.size}: the fullest bin (code {facts.fullest}) holds "
        f"{percent(facts.fullest_share)} of the weights, the emptiest (code {facts.emptiest}) "
        f"{percent(facts.emptiest_share)}, rather than 1/16 = {percent(CLAIMED)} each. A block's "
        f"largest weight is {number(facts.reach, 3)}× the root mean square of all; the table was "
        f"made for {number(facts.largest, 3)}×."
    )
    if facts.reach > facts.largest:
        return (
            f"{text} Dividing by such a large weight crowds the middle bins and empties the "
            "outer ones."
        )
    return f"{text} Dividing by such a small weight leaves the middle bins no fuller than planned."


@dataclass(frozen=True)
class StoreFacts:
    """What blocks of one size cost: bits per weight, bytes of the layer."""

    size: int
    plain_bits: float
    double_bits: float
    plain_bytes: int
    double_bytes: int


def store_sentence(facts: StoreFacts) -> str:
    """What the absmax costs in blocks of this size, and what double quantization saves."""
    saved = facts.plain_bytes - facts.double_bytes
    text = (
        f"Blocks of {facts.size}: {facts.plain_bits:.3f} bits per weight with a float32 absmax for "
        f"each, {facts.double_bits:.3f} with double quantization. "
    )
    if saved > 0:
        return (
            f"{text}It saves {saved} of {facts.plain_bytes} bytes of this layer, "
            f"{percent(saved / facts.plain_bytes, 2)}."
        )
    return (
        f"{text}With so few blocks its own constants cost {counted(-saved, 'byte')} more than it "
        f"saves."
    )


@dataclass(frozen=True)
class Score:
    """One contender's figures: errors as fractions, the output's None without inputs."""

    error: float
    output: float | None
    bits: float


@dataclass(frozen=True)
class DuelFacts:
    """A duel in blocks of one size.

    own     the learner's levels; scores of the others, by name (without INT4 where blocks do not
            fit)
    told    whether the others may be revealed
    bargain the least error for at most NF4's bits, over all sizes: (name, size, score)
    """

    size: int
    own: Score
    scores: Mapping[str, Score]
    told: bool
    bargain: tuple[str, int, Score]


def same(a: float, b: float) -> bool:
    """Whether two errors are too near to each other for a winner."""
    return abs(a - b) <= EQUAL * max(a, b)


def beats(error: float, other: float) -> bool:
    """Whether an error is smaller by more than nothing."""
    return error < other and not same(error, other)


def beside(error: float, nf4: float) -> str:
    """An error compared with NF4's, as a share of NF4's: how much more or less."""
    if same(error, nf4):
        return "equal"
    more = "more" if error > nf4 else "less"
    return f"{percent(abs(error / nf4 - 1), 2)} {more}" if nf4 else more


def duel_sentence(facts: DuelFacts) -> str:
    """The score in words: yours beside NF4, and once it may be told, who beats NF4 at what bits."""
    nf4 = facts.scores[NF4_NAME]
    text = (
        f"Blocks of {facts.size}: your levels put the weights off by "
        f"{percent(facts.own.error, 4)}, NF4's by {percent(nf4.error, 4)}"
    )
    if facts.own.output is not None and nf4.output is not None:
        text += (
            f" (the layer's output by {percent(facts.own.output, 4)} and {percent(nf4.output, 4)})"
        )
    how = beside(facts.own.error, nf4.error)
    text += ". You are level with NF4." if how == "equal" else f". That is {how} error than NF4's."
    if not facts.told:
        return text
    return f"{text} {_rivals(facts)} {_bargain(facts)}"


def _rivals(facts: DuelFacts) -> str:
    """Which rivals beat NF4 in the same blocks, and what that costs."""
    nf4 = facts.scores[NF4_NAME]
    ahead = [n for n in FIXED if n in facts.scores and beats(facts.scores[n].error, nf4.error)]
    if not ahead:
        return "In these blocks no fixed rival beats NF4."
    said = [
        f"{name} has {beside(facts.scores[name].error, nf4.error)} error than NF4, with "
        f"{number(facts.scores[name].bits)} bits per weight to NF4's {number(nf4.bits)}"
        for name in ahead
    ]
    return f"{'; '.join(said)}."


def _bargain(facts: DuelFacts) -> str:
    """The least error for the same bits in blocks of any size."""
    name, size, score = facts.bargain
    nf4 = facts.scores[NF4_NAME]
    if same(score.error, nf4.error):
        return f"With at most {number(nf4.bits)} bits per weight no contender has less error."
    return (
        f"With at most {number(nf4.bits)} bits per weight the least error is "
        f"{percent(score.error, 4)}: {name} in blocks of {size}, at {number(score.bits)} bits."
    )


def verdict(guess: int, size: int, scores: Mapping[str, Score]) -> str:
    """The prediction (an index into `ANSWERS`) against the errors computed in these blocks."""
    if guess < 0:
        return ""
    nf4 = scores[NF4_NAME]
    there = [name for name in FIXED if name in scores]
    ahead = [name for name in there if beats(scores[name].error, nf4.error)]
    said = ANSWERS[guess]
    right = said in ahead or (said == NONE and not ahead)
    figures = ", ".join(f"{name} {percent(scores[name].error, 4)}" for name in (NF4_NAME, *there))
    text = f"{'Right' if right else 'Not quite'}. In blocks of {size}: {figures}. "
    if not ahead:
        return f"{text}None of them beats NF4 here. Try smaller blocks: does that last?"
    costs = "; ".join(_cost(name, scores[name].bits, nf4.bits) for name in ahead)
    why = (
        " Why? Its range runs from the smallest to the largest weight of a block, so no level "
        "is wasted on the shorter side."
    )
    return (
        f"{text}{_and(ahead)} {'beat' if len(ahead) > 1 else 'beats'} NF4 ({costs})."
        f"{why if ahead == [ASYMMETRIC] else ''}"
    )


def _cost(name: str, bits: float, nf4: float) -> str:
    """A rival's bits compared with NF4's."""
    if bits == nf4:
        return f"{name} costs the same {number(bits)} bits"
    more = "more" if bits > nf4 else "fewer"
    return f"{name} costs {more} bits, {number(bits)} to {number(nf4)}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


#: What the rows of tables are called.
ROW_NAMES = {
    NF4_NAME: "NF4",
    NF4_DOUBLE: "NF4, double quantization",
    FP4_NAME: "FP4",
    SYMMETRIC: "INT4 symmetric",
    ASYMMETRIC: "INT4 asymmetric",
    LLOYD: "Lloyd–Max, fitted here",
}
#: The same where there is little room.
SHORT = {**ROW_NAMES, OWN: "yours", NF4_DOUBLE: "NF4, double", LLOYD: "Lloyd–Max",
         SYMMETRIC: "INT4 symm.", ASYMMETRIC: "INT4 asymm."}  # fmt: skip


def conventions(symmetric: str) -> str:
    """Whose convention each row of the scoreboard follows; `symmetric` is INT4 symmetric's."""
    return (
        "NF4 and FP4 as in bitsandbytes, with a float32 absmax for each block. INT4 symmetric "
        f"as in {symmetric}; asymmetric as in LLM Compressor, range ÷ 15; both in the same "
        "blocks, with float16 scales. Your levels and Lloyd–Max's are stored with the layer, "
        "and their bits are counted."
    )
