"""What the granularity lesson says: equation, guide, and sentences made from frozen facts.

Every sentence is a function of a dataclass of numbers; directions (up, down, still) follow from
the numbers as they are written, so that a sentence never says that something grew and then shows
the same number twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qviz.ui.views.guide_steps import Is, Moved, Step
from qviz.ui.widgets import counted, number, percent

OUTLIER, BUDGET = "one outlier", "equal bits"
WEIGHTS, BLOCKS, INPUTS = "weights", "weights in flat blocks", "inputs of the layer"
QUIET, LOUD = "a quiet part", "around the largest"
UNTOUCHED = "untouched"
#: Multiples of the typical value that the outlier takes, after the trained one.
MULTIPLES = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100)
SIZES = (UNTOUCHED, *(f"{k}×" for k in MULTIPLES))

EQUATION = """
<math display="block"><mrow>
  <msub><mi data-term="s">s</mi><mi data-term="g">g</mi></msub><mo>=</mo><mfrac><mrow>
  <munder><mi data-term="max">max</mi><mrow><mi>i</mi><mo>∈</mo><mi data-term="g">g</mi></mrow>
  </munder><mo>|</mo><msub><mi data-term="x">x</mi><mi>i</mi></msub><mo>|</mo></mrow>
  <mi data-term="d">D</mi></mfrac>
</mrow></math>
<math display="block"><mrow>
  <mi data-term="q">q</mi><mo>=</mo><mi data-term="round">round</mi><mo>(</mo>
  <mfrac><mi data-term="x">x</mi><msub><mi data-term="s">s</mi><mi data-term="g">g</mi></msub>
  </mfrac><mo>)</mo><mspace width="1em"/>
  <mover accent="true"><mi data-term="xhat">x</mi><mo>^</mo></mover><mo>=</mo>
  <msub><mi data-term="s">s</mi><mi data-term="g">g</mi></msub><mo>·</mo><mi data-term="q">q</mi>
</mrow></math>
"""
SPOKEN = (
    "s of group g is the largest magnitude in the group over D; q is x over s of g, rounded; x "
    "hat is s of g times q"
)
TERMS = {
    "s": "s: the scale, which is the spacing of the levels. All members of the group have the same",
    "g": "g: the group, all values that share the scale",
    "max": "max: the largest magnitude in the group. One large value decides for all",
    "x": "x: the trained value",
    "d": "D: a number that depends on the bits and on the system, such as 7.5 at 4 bits",
    "q": "q: the stored code, clamped to the codes that fit in the chosen number of bits",
    "round": "round: to the nearest whole number. The rounding error is at most half a spacing",
    "xhat": "x̂: the value after rounding",
}
BLOCK_EQUATION = """
<math display="block"><mrow>
  <msub><mi data-term="s">s</mi><mi data-term="g">g</mi></msub><mo>=</mo>
  <munder><mi data-term="max">max</mi><mrow><mi>i</mi><mo>∈</mo><mi data-term="g">g</mi></mrow>
  </munder><mo>|</mo><msub><mi data-term="x">x</mi><mi>i</mi></msub><mo>|</mo>
</mrow></math>
<math display="block"><mrow>
  <mi data-term="q">q</mi><mo>=</mo><mi data-term="nearest">nearest</mi><mo>(</mo>
  <mfrac><mi data-term="x">x</mi><msub><mi data-term="s">s</mi><mi data-term="g">g</mi></msub>
  </mfrac><mo>)</mo><mspace width="1em"/>
  <mover accent="true"><mi data-term="xhat">x</mi><mo>^</mo></mover><mo>=</mo>
  <msub><mi data-term="s">s</mi><mi data-term="g">g</mi></msub><mo>·</mo>
  <msub><mi data-term="v">v</mi><mi data-term="q">q</mi></msub>
</mrow></math>
"""
BLOCK_SPOKEN = (
    "s of block g is the largest magnitude in the block; q is the number of the level nearest "
    "to x over s of g; x hat is s of g times level q"
)
BLOCK_TERMS = {
    "s": "s: the block's largest magnitude (bitsandbytes calls it absmax). All its members have "
    "the same",
    "g": "g: the block, a run of consecutive weights of the flattened matrix",
    "max": "max: the largest magnitude in the block. One large value decides for all",
    "x": "x: the trained weight",
    "nearest": "nearest: of the sixteen levels of NF4, which lie between −1 and 1",
    "q": "q: the number of that level, which is the stored code",
    "v": "v: the sixteen levels",
    "xhat": "x̂: the weight after rounding",
}

GUIDE = (
    Step(
        "Drag one weight",
        "Drag “Size of the outlier” to the right. The outlined weights share its scale. In "
        "which picture do all weights round to 0, and in which does nothing change at first? "
        "Watch “scale set by” in the table below the pictures.",
        {"part": OUTLIER},
        {"size": Is("100×")},
    ),
    Step(
        "Make another weight the outlier",
        "Click a weight in the first picture (or move there with the arrow keys and press Enter). "
        "The outlines follow it. With these scales one weight can only spoil its own row or group.",
        {"part": OUTLIER, "size": "32×"},
        {"outlier": Moved()},
    ),
    Step(
        "Find a real outlier",
        "Under “More” set “Look at” to “around the largest”. This outlier comes from training; "
        "nobody dragged it. Below, compare what articles claim with what this layer shows.",
        {"part": OUTLIER},
        {"at": Is(LOUD)},
    ),
    Step(
        "Blocks that cross rows",
        "bitsandbytes cuts the flattened matrix into blocks. A block that is longer than a row "
        "covers rows that have nothing to do with each other. Make the outlier large and see "
        "which rows suffer.",
        {"part": OUTLIER, "matrix": BLOCKS},
        {"size": Is("32×")},
    ),
    Step(
        "Now the inputs",
        "The real outliers are in a layer's inputs. Set “Look at” to “around the largest”: does "
        "a scale for each token confine them? What would a scale for each channel do?",
        {"part": OUTLIER, "matrix": INPUTS, "bits": "8"},
        {"at": Is(LOUD)},
    ),
    Step(
        "Compare at equal bits",
        "Small groups look better than they are, because the bit-width does not count their "
        "scales. Drag “Budget” and watch the star. Which combination wins, and where does the "
        "small group lose?",
        {"part": BUDGET},
        {"part": Is(BUDGET), "budget": Moved()},
    ),
)


# ------------------------------------------------------------------------- who shares


@dataclass(frozen=True)
class Names:
    """What the values of a matrix are called."""

    one: str  # a value
    many: str
    axes: tuple[str, str]


NAMES = {
    WEIGHTS: Names("weight", "weights", ("row", "column")),
    BLOCKS: Names("weight", "weights", ("row", "column")),
    INPUTS: Names("input", "inputs", ("token", "channel")),
}


def one_scale(unit: str) -> str:
    """What has one scale each.

    >>> one_scale("matrix"), one_scale("group of 32")
    ('one scale for the whole matrix', 'one scale for each group of 32')
    """
    return f"one scale for {'the whole matrix' if unit == 'matrix' else f'each {unit}'}"


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]


# ------------------------------------------------------------------------- one outlier


@dataclass(frozen=True)
class Pays:
    """The effect of the outlier under one granularity, at one size.

    unit      who shares a scale; sharing: how many share the outlier's, without itself
    before    what they were off by as trained, now: what they are off by
    whole     what the whole matrix is off by now, the outlier apart
    lost      how many of them were not 0 and are rounded to 0; used: levels in use among them
    peak      the largest of them, as a multiple of the typical value
    sets      whether the outlier is larger than that, so that it sets the scale
    scales    bits per value that the scales cost; bits: all in all
    """

    unit: str
    sharing: int
    before: float
    now: float
    whole: float
    lost: int
    used: int
    peak: float
    sets: bool
    scales: float
    bits: float


@dataclass(frozen=True)
class Moment:
    """The outlier at one size: its multiple of the typical value, and who pays."""

    kind: str
    size: str
    cell: tuple[int, int]
    value: float
    multiple: float
    pays: tuple[Pays, ...]


def outlier_sentence(moment: Moment) -> str:
    """Where the outlier is, and what its neighbours are off by under each granularity."""
    names = NAMES[moment.kind]
    row, column = moment.cell
    where = f"{names.axes[0]} {row}, {names.axes[1]} {column}"
    untouched = moment.size == UNTOUCHED
    text = (
        f"{f'Untouched, {where}' if untouched else upper(where)} is {number(moment.value, 3)}, "
        f"{number(moment.multiple, 3)}× the typical {names.one}. "
    )
    return text + " ".join(
        f"With {one_scale(pays.unit)}, {_off(pays, names.one, untouched)}." for pays in moment.pays
    )


def _off(pays: Pays, one: str, untouched: bool) -> str:
    """Who shares the outlier's scale, and what they are off by."""
    if pays.sharing == 0:
        return "no other value shares its scale"
    who = (
        f"the {counted(pays.sharing, 'other')} that {'shares' if pays.sharing == 1 else 'share'} it"
    )
    are = "is" if pays.sharing == 1 else "are"
    was, now = percent(pays.before), percent(pays.now)
    if untouched:
        return f"{who} {are} off by {now}"
    if was == now:
        why = "" if pays.sets else f": another {one}, {number(pays.peak, 3)}×, sets the scale"
        return f"{who} {are} still off by {now}{why}"
    return f"{who} {are} off by {now}, {'up' if pays.now > pays.before else 'down'} from {was}"


def pays_rows(moment: Moment) -> list[tuple[str, list[str], list[int], str]]:
    """The same as a table: a column for each granularity."""
    names, pays = NAMES[moment.kind], moment.pays
    setting = [i for i, p in enumerate(pays) if p.sets]
    return [
        ("share its scale", [str(p.sharing) for p in pays], [], ""),
        (
            "scale set by",
            ["outlier" if p.sets else f"another, {number(p.peak, 3)}×" for p in pays],
            setting,
            "now",
        ),
        ("they were off by", [percent(p.before) for p in pays], [], ""),
        ("they are off by", [percent(p.now) for p in pays], setting, "error"),
        ("rounded to 0", [str(p.lost) for p in pays], [], ""),
        ("levels they use", [str(p.used) for p in pays], [], "codes"),
        (f"all {names.many} off by", [percent(p.whole) for p in pays], [], "error"),
        ("scale bits per value", [number(p.scales, 3) for p in pays], [], ""),
        (f"bits per {names.one}", [number(p.bits) for p in pays], [], "codes"),
    ]


@dataclass(frozen=True)
class Guess:
    """What a guess is judged by.

    errors  of the outlier's group at each of SIZES; peak: its largest other weight, × typical
    """

    unit: str
    errors: tuple[float, ...]
    peak: float

    @property
    def doubled(self) -> int | None:
        """The first size from which on the error is at least twice that as trained."""
        found = None
        for i in range(len(self.errors) - 1, 0, -1):
            if self.errors[i] < 2 * self.errors[0]:
                break
            found = i
        return found


QUESTION = (
    "Before you drag: with one scale for each group, how large must one weight become before "
    "the error of the rest of its group doubles?"
)
NEVER = "it never doubles"


def verdict(guess: int, facts: Guess) -> str:
    """The prediction (a number of SIZES[1:], or the one after it: never) against the curve."""
    if facts.errors[0] == 0:
        return "As trained, this group has no rounding error, so there is nothing to double."
    at = facts.doubled
    if at is None:
        judged = "Right" if guess == len(MULTIPLES) else "Not here"
        return f"{judged}: up to {SIZES[-1]} the error does not double."
    told = (
        f"at {SIZES[at]} the {facts.unit} is off by {percent(facts.errors[at])}, up from "
        f"{percent(facts.errors[0])}"
    )
    if guess + 1 == at:
        text = f"Right: {told}."
    elif guess + 1 > at:
        text = f"Sooner: {told}."
    else:
        off = percent(facts.errors[guess + 1])
        text = f"Later: at {SIZES[guess + 1]} it is off by {off}; {told}."
    return (
        f"{text} The scale follows the largest weight. The largest other weight of this group is "
        f"already {number(facts.peak, 3)}× the typical one, so nothing happens below that. Above "
        "it the spacing grows in proportion to the outlier, and so does the error: it doubles "
        f"near 2 · {number(facts.peak, 3)} = {number(2 * facts.peak, 3)}×."
    )


# ------------------------------------------------------------------------- one value's arithmetic


@dataclass(frozen=True)
class Cell:
    """One value under one granularity: who shares its scale and how it became its code.

    spacing  the division that makes s, as text (that of `views.spacing`)
    zero     the zero point, where the convention has one
    level    v of the code, where levels come from a table
    shares   whether it shares the outlier's scale; sharing: with how many others it shares its own
    """

    unit: str
    x: float
    spacing: str
    scale: float
    zero: float | None
    level: float | None
    code: int
    back: float
    shares: bool
    sharing: int


def cell_title(kind: str, row: int, column: int) -> str:
    """Which value the arithmetic is about."""
    axes = NAMES[kind].axes
    return f"{upper(axes[0])} {row}, {axes[1]} {column}: how it gets its code"


def cell_rows(cells: Sequence[Cell], outlier: bool) -> list[tuple[str, list[str], list[int], str]]:
    """The arithmetic of one value, a column for each granularity, in the equation's symbols.

    outlier  whether the value is the outlier itself
    """
    lit = [i for i, c in enumerate(cells) if c.shares]
    table, zero = cells[0].level is not None, cells[0].zero is not None
    position = [number(c.x / c.scale + (c.zero or 0.0)) if c.scale else "–" for c in cells]
    codes = [number(c.code) if c.level is None else f"{c.code} → {number(c.level)}" for c in cells]
    others = [
        f"{c.sharing - 1} + outlier" if c.shares and not outlier else str(c.sharing) for c in cells
    ]
    times = "v_{q}" if table else "(q − z)" if zero else "q"
    return [
        ("x, the outlier" if outlier else "x", [number(c.x) for c in cells], [], "original"),
        ("others in g", others, lit, "now"),
        ("max |x_{i}|" if table else "max |x_{i}| ÷ D", [c.spacing for c in cells], [], ""),
        ("s_{g}, as stored", [number(c.scale) for c in cells], lit, ""),
        ("x / s_{g} + z" if zero else "x / s_{g}", position, [], ""),
        ("q → v_{q}" if table else "q", codes, [], "codes"),
        (f"x̂ = s_{{g}} · {times}", [number(c.back) for c in cells], [], "codes"),
        ("x − x̂", [number(c.x - c.back) for c in cells], [], "error"),
    ]
