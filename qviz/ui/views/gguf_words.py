"""What the GGUF lesson says of a block: a sentence for each moment, failures, the verdict, bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qviz.methods.gguf.kquants import KQUANTS, Symmetric, WithMinimum
from qviz.methods.gguf.legacy import LEGACY
from qviz.study.gguf_bytes import Bits
from qviz.study.gguf_facts import (
    BytesFacts,
    FoundFacts,
    LevelFacts,
    PassFacts,
    Sizes,
    TryFacts,
    WeighFacts,
)
from qviz.ui.widgets import counted, number, percent

NOUNS = {
    "codes": "code", "scales": "scale", "mins": "minimum", "exponent": "exponent",
    "d": "d", "dmin": "dmin", "m": "m",
}  # fmt: skip
HALVES = {
    "d": "the step of the scales", "dmin": "the step of the minimums", "m": "the minimum",
}  # fmt: skip

ANSWERS = (
    "more spacings than the plain way: the ends are cut off",
    "exactly as many as the plain way",
    "fewer spacings: room beyond the ends",
)


# ------------------------------------------------------------------------------------ the moments


def block_words(sizes: Sizes, row: int, first: int) -> str:
    """A block before anything was done to it; `first` is the column of its first weight."""
    cut = (
        f", in {sizes.groups} sub-blocks of {sizes.size}. Each sub-block gets a scale of its own"
        if sizes.groups > 1
        else ". They share one scale"
    )
    name = "super-block" if sizes.groups > 1 else "block"
    return (
        f"A {name} of {sizes.type}: {sizes.weights} weights of row {row}, from column {first} "
        f"on{cut}. All of it has to fit into {sizes.nbytes} bytes: {number(sizes.bits)} bits per "
        f"weight, of which {sizes.code_bits} are its code."
    )


def weigh_words(facts: WeighFacts, group: int) -> str:
    """How much errors count, before the search."""
    why = (
        "Importance comes from calibration text: the mean square of the input that each weight "
        "meets."
        if facts.importance
        else "No calibration data: the weights themselves decide."
    )
    if facts.most == 0:
        return f"{why} In sub-block {group} no error counts."
    if facts.least == 0:
        return (
            f"{why} In sub-block {group} the error of the weight {number(facts.most_x)} counts "
            f"most; that of {number(facts.least_x)} does not count at all."
        )
    return (
        f"{why} In sub-block {group} an error of the weight {number(facts.most_x)} counts "
        f"{number(facts.most / facts.least, 3)}× as much as one of {number(facts.least_x)}."
    )


def start_words(facts: TryFacts, type: str) -> str:
    """The plain way, with which each search begins."""
    kind, error = KQUANTS.get(type), _error(facts.power)
    if has_minimum(type):
        return (
            f"The plain way: code 0 stands for the smallest weight (or 0, if all are positive), "
            f"the top code {number(facts.tried or 0)} for the largest. The spacing is "
            f"{number(facts.scale)}, the minimum {number(facts.minimum)}. {error}: "
            f"{number(facts.error)}."
        )
    half = number(kind.half if isinstance(kind, Symmetric) else facts.tried or 0)
    return (
        f"The plain way: the weight of the largest size becomes code −{half}, and the others "
        f"follow. Least squares make the scale {number(facts.scale)}. {error}: "
        f"{number(facts.error)}."
    )


def has_minimum(type: str) -> bool:
    """Whether levels are counted from a minimum; else they lie about zero."""
    kind, old = KQUANTS.get(type), LEGACY.get(type)
    return isinstance(kind, WithMinimum) or (old is not None and old.minimum)


def plain_words(type: str, scale: float, minimum: float | None, code_bits: int) -> str:
    """A type without a search: all it does."""
    if type == "MXFP4":
        return (
            f"No search: the scale is the power of two {number(scale)}, so that the largest weight "
            f"fits FP4 E2M1. Each weight takes the nearest of its values."
        )
    low = "" if minimum is None else f" and the minimum m = {number(minimum)}"
    return (
        f"No search: the range of the 32 weights fixes d = {number(scale)}{low}, and each weight "
        f"is rounded to a code of {code_bits} bits."
    )


def _error(power: int) -> str:
    return "Weighted squared error" if power == 2 else "Weighted absolute error"


def try_words(facts: TryFacts, type: str) -> str:
    """One try of the search, or one move of a code."""
    error = number(facts.error)
    if facts.tried is None:
        if not facts.kept:
            return (
                f"Move {facts.number} of {facts.count} in this super-block: no code of this "
                f"sub-block moves, others' do. Its error stays {error}."
            )
        return (
            f"Move {facts.number} of {facts.count}: {counted(facts.changed, 'code')} of this "
            f"sub-block {'goes' if facts.changed == 1 else 'go'} to a better neighbour. The scale "
            f"follows, {number(facts.scale)}, and the error: {error}, "
            f"{_beside(facts.error, facts.best)}."
        )
    tried, plain = number(facts.tried), number(facts.plain_tried or 0)
    how = (
        f"cut the range into {tried} spacings instead of {plain}"
        if has_minimum(type)
        else f"put the largest weight {tried} spacings from 0 instead of {plain}"
    )
    if not math.isfinite(facts.scale):
        return (
            f"Try {facts.number} of {facts.count}: {how}. All codes come out equal, so least "
            f"squares have no scale to give. It is dropped."
        )
    head = (
        f"Try {facts.number} of {facts.count}: {how}. Least squares give the scale "
        f"{number(facts.scale)}"
    )
    if facts.minimum:
        head += f" and the minimum {number(facts.minimum)}"
    end = "It is kept." if facts.kept else "It is dropped."
    return f"{head}. Error {error}, {_beside(facts.error, facts.best)}. {end}"


def _beside(error: float, best: float) -> str:
    """An error beside the best until then."""
    if error == best or best == 0:
        return "as the best so far" if error == best else "above the best so far, which is 0"
    change = abs(error / best - 1)
    return f"{percent(change)} {'below' if error < best else 'above'} the best so far"


def found_words(facts: FoundFacts, group: int, groups: int) -> str:
    """The end of the search."""
    if facts.number == 0:
        head = f"None of the {facts.count} tries beats the plain way in sub-block {group}."
    else:
        how = "" if facts.tried is None else f" ({number(facts.tried)} spacings)"
        what = "Move" if facts.tried is None else "Try"
        head = (
            f"{what} {facts.number}{how} is kept in sub-block {group}: its error is "
            f"{percent(1 - facts.error / facts.plain)} below the plain way's, and "
            f"{counted(facts.changed, 'code')} changed."
        )
    whole = "The block" if groups == 1 else f"All {groups} sub-blocks together: the super-block"
    return f"{head} {whole} is off by {percent(facts.off)}, {_from(facts.off, facts.off_plain)}."


def _from(now: float, before: float) -> str:
    """A share beside what it was."""
    if percent(now) == percent(before):
        return f"as before ({percent(before)})"
    return f"{'down' if now < before else 'up'} from {percent(before)}"


def level_words(facts: LevelFacts, sizes: Sizes, group: int) -> str:
    """Scales become integers."""
    how = (
        f"after {facts.searched} tries, weighed too"
        if facts.searched
        else f"the largest scale divided by {sizes.levels}"
        if facts.minimum is not None
        else f"the scale of the largest size divided by −{sizes.levels}"
    )
    text = (
        f"{sizes.groups} float32 scales would cost {_bits(32 * sizes.groups / sizes.weights)} per "
        f"weight. So they count in steps of d = {number(facts.d)} ({how}), as integers of "
        f"{sizes.scale_bits} bits: here from {facts.smallest} to {facts.largest} in size. That of "
        f"sub-block {group}, {number(facts.scale)}, becomes {number(facts.integer)} · d = "
        f"{number(facts.stored)}"
    )
    if facts.minimum is not None:
        text += (
            f"; its minimum {number(-facts.minimum)} becomes −{facts.min_integer} · dmin = "
            f"{number(-facts.dmin * facts.min_integer)}"
        )
    way = _from(facts.off, facts.off_before)
    return f"{text}. With the old codes the block is off by {percent(facts.off)}, {way}."


def _bits(bits: float) -> str:
    return f"{number(bits)} bit{'' if bits == 1 else 's'}"


def pass_words(facts: PassFacts, sizes: Sizes) -> str:
    """The second pass."""
    if not facts.changed:
        return (
            f"Second pass: round every weight again, with the scales as they are stored. None of "
            f"the {sizes.weights} codes changes. Off by {percent(facts.off)}."
        )
    change = "changes" if facts.changed == 1 else "change"
    return (
        f"Second pass: round every weight again, with the scales as they are stored. "
        f"{facts.changed} of {sizes.weights} codes {change}. Off by {percent(facts.off)}, "
        f"{_from(facts.off, facts.off_before)}."
    )


def bytes_words(facts: BytesFacts) -> str:
    """A member of the struct is written."""
    if facts.section in HALVES:
        return (
            f"Bytes {facts.first} and {facts.last}, {facts.section}: {HALVES[facts.section]} as a "
            f"float16, low byte first."
        )
    where = (
        f"Byte {facts.first}"
        if facts.first == facts.last
        else f"Bytes {facts.first} to {facts.last}"
    )
    held = " and ".join(f"{bits} bits of {_many(part)}" for part, bits in facts.holds)
    return f"{where}, {facts.section}: {held}. Point at a byte to see whose bits it holds."


def _many(part: str) -> str:
    return {"codes": "codes", "scales": "scales", "mins": "minimums", "exponent": "the exponent"}[
        part
    ]


def back_words(sizes: Sizes, off: float, exact: bool = True) -> str:
    """The block decoded."""
    return (
        f"And back: from these {sizes.nbytes} bytes alone come the {sizes.weights} weights that "
        f"the model computes with, off by {percent(off)}. "
        + ("Nothing else is stored." if exact else "They were read in the wrong order.")
    )


# --------------------------------------------------------------------------------- the prediction


@dataclass(frozen=True)
class Won:
    """Which try a row's sub-blocks keep: more spacings than the plain way, as many, fewer."""

    mine: int  # index into ANSWERS, of the chosen sub-block
    more: int
    same: int
    fewer: int

    @property
    def all(self) -> int:
        return self.more + self.same + self.fewer


def verdict(guess: int, facts: Won | None) -> str:
    """The guess, judged by the sub-block and all others of its row."""
    if facts is None or guess < 0:
        return ""
    right = "Right." if guess == facts.mine else "Not here."
    won = ("more spacings", "as many as the plain way", "fewer spacings")[facts.mine]
    return (
        f"{right} This sub-block keeps {won}. Of the {facts.all} sub-blocks of this row, "
        f"{facts.more} keep more, {facts.same} as many, {facts.fewer} fewer."
        + (
            " Cutting off the ends a little lets all the other weights come closer."
            if facts.more > facts.same + facts.fewer
            else ""
        )
    )


# ------------------------------------------------------------------------------------ bits of bytes


def bit_words(bits: Bits, size: int) -> str:
    """What some bits of a byte are; `size`: weights of a sub-block."""
    noun = NOUNS[bits.part]
    if bits.width == 16:
        which = {0: "lower 8 bits of the fraction", 8: "upper 2 bits of the fraction",
                 10: "exponent", 15: "sign"}[bits.low]  # fmt: skip
        return f"{noun}, float16: {which}"
    group, place = divmod(bits.index, size)
    whose = {
        "codes": f"code of weight {bits.index} (sub-block {group}, place {place})",
        "exponent": noun,
    }.get(bits.part, f"{noun} of sub-block {bits.index}")
    if bits.bits == bits.width:
        return f"{whose} = {bits.value}"
    high = bits.low + bits.bits - 1
    span = f"bit {bits.low}" if bits.bits == 1 else f"bits {bits.low} to {high}"
    return f"{whose}, its {span} of {bits.width}"


def section_words(name: str, holds: Sequence[tuple[str, int]]) -> str:
    """A member of the struct in a few words."""
    if name in HALVES:
        return f"float16, {HALVES[name]}"
    return " + ".join(f"{_many(part)}, {bits} bits" for part, bits in holds)
