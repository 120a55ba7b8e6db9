"""What the lesson on scale and zero point says: equation, guide, and sentences from numbers.

Every sentence is made from a frozen value of named numbers, so that a test can compute the numbers
in another way and hold the words to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qviz.study.clipping import Tried
from qviz.ui.views.guide_steps import Is, Moved, Step
from qviz.ui.views.spacing import recipe, spacing
from qviz.ui.widgets import counted, number, percent

BY_HAND = "by hand"
FORMS = ("symmetric", "asymmetric")

_ROUND = '<mi data-term="round">round</mi>'
_CLAMP = '<mi data-term="clamp">clamp</mi>'
_XHAT = '<mover accent="true"><mi data-term="xhat">x</mi><mo>^</mo></mover>'


def _formulas(position: str, back: str) -> str:
    return (
        f'<math display="block"><mrow><mi data-term="q">q</mi><mo>=</mo>{_CLAMP}<mo>(</mo>{_ROUND}'
        f"<mo>(</mo>{position}<mo>)</mo><mo>)</mo></mrow></math>"
        f'<math display="block"><mrow>{_XHAT}<mo>=</mo>{back}</mrow></math>'
    )


_OVER_S = '<mfrac><mi data-term="x">x</mi><mi data-term="s">s</mi></mfrac>'
_S, _Q, _Z, _O = (
    f'<mi data-term="{term}">{text}</mi>'
    for term, text in (("s", "s"), ("q", "q"), ("z", "z"), ("o", "o"))
)
_FROM_O = f'<mfrac><mrow><mi data-term="x">x</mi><mo>−</mo>{_O}</mrow>{_S}</mfrac>'
_TERMS = {
    "x": "x: the number as it was",
    "s": "s: the spacing of the levels. The range divided by a number that depends on the bits and "
    "on the system: keep less of the range, and s shrinks with it",
    "round": "round: to the nearest whole number, a tie to the even one",
    "clamp": "clamp: a code beyond the first or last one becomes that one. This is clipping",
    "q": "q: the stored code, a whole number that fits in the chosen number of bits",
    "xhat": "x̂: the number after rounding",
}
_ZERO = {"z": "z: the zero point, the code that stands for 0. It shifts all levels to one side"}
_OFFSET = {"o": "o: the offset, the number that code 0 stands for"}


@dataclass(frozen=True)
class Formula:
    """An equation: MathML, what its terms mean, and how it is read."""

    mathml: str
    terms: dict[str, str]
    spoken: str


#: By what is stored in addition to codes and scale: nothing, a zero point, an offset.
FORMULAS = {
    "": Formula(
        _formulas(_OVER_S, f"{_S}<mo>·</mo>{_Q}"), _TERMS,
        "q is x over s, rounded and clamped; x hat is s times q",
    ),
    "z": Formula(
        _formulas(f"{_OVER_S}<mo>+</mo>{_Z}",
                  f"{_S}<mo>·</mo><mo>(</mo>{_Q}<mo>−</mo>{_Z}<mo>)</mo>"),
        {**_TERMS, **_ZERO},
        "q is x over s plus z, rounded and clamped; x hat is s times q minus z",
    ),
    "o": Formula(
        _formulas(_FROM_O, f"{_S}<mo>·</mo>{_Q}<mo>+</mo>{_O}"), {**_TERMS, **_OFFSET},
        "q is x minus o over s, rounded and clamped; x hat is s times q plus o",
    ),
}  # fmt: skip

LEGEND = (
    "The handles are the ends of the range. The marks are the levels that the chosen system "
    "makes from it."
)
ONE_SIGNED = {"layer": "model.layers.3.mlp.down_proj", "scale": "group of 16", "look": "one-sided"}

GUIDE = (
    Step(
        "Clip a little",
        "Drag “Range kept” to the left. The levels move closer together, so the rounding error "
        "falls. Numbers beyond the last level are clipped, and the clipping error grows. Where "
        "is the sum lowest?",
        done={"kept": Moved()},
    ),
    Step(
        "Give it eight bits",
        "Set “Bits per code” to 8. With 256 levels the rounding error is so small that there is "
        "almost nothing to gain: the lowest point of the curve moves to the right. With 2 bits "
        "it moves to the left.",
        {"kept": "75 %"},
        {"bits": Is("8")},
    ),
    Step(
        "Share the scale less",
        "Open “Other numbers, other systems” and move “One scale per” from a row to groups of "
        "32. In a small group the largest number seldom stands out far, so clipping it gains less.",
        {"kept": "75 %"},
        {"scale": Is("group of 32")},
    ),
    Step(
        "Numbers of one sign",
        "All sixteen weights of this group are positive. Symmetric levels spend half of the "
        "codes on negative numbers that do not occur. Switch “Levels” to “asymmetric” and watch "
        "how many levels are in use.",
        ONE_SIGNED,
        {"levels": Is("asymmetric")},
    ),
    Step(
        "Ask the systems",
        "Below the charts every system quantizes these weights. Equal letters mean equal "
        "results. Look at GPTQ, which places its last level in the middle of this group. Choose "
        "one of the systems under “Spacing computed as in”.",
        ONE_SIGNED,
        {"convention": Moved()},
    ),
    Step(
        "Move the ends yourself",
        "The slider moves both ends alike. These numbers stop abruptly on the left and trail "
        "off on the right, and you have four levels to place. Drag the two handles below the "
        "histogram. Can you get below the lowest point of the curve?",
        {"look": "gate", "levels": "asymmetric", "bits": "2"},
        {"ends": Moved()},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class At:
    """What one range does to the numbers that share a scale.

    kept       the part of the range, such as "75 %", or BY_HAND
    low, high  the range; spacing: of the levels
    n          how many numbers, noun: what one of them is
    levels     how many, used: how many have a number, beyond: how many numbers are clipped
    rounding   and clipping: squared errors as shares of the squared numbers
    whole      both together with the whole range
    lowest     whether no part of the range does better, once that may be told
    """

    kept: str
    low: float
    high: float
    spacing: float
    n: int
    noun: str
    levels: int
    used: int
    beyond: int
    rounding: float
    clipping: float
    whole: float
    lowest: bool

    @property
    def total(self) -> float:
        return self.rounding + self.clipping


def sentence(at: At) -> str:
    """The caption of one range."""
    start = "By hand, from" if at.kept == BY_HAND else f"{at.kept} of the range kept, from"
    text = (
        f"{start} {number(at.low, 3)} to {number(at.high, 3)}: {at.levels} levels "
        f"{number(at.spacing, 3)} apart"
    )
    if at.used < at.levels:
        text += f", of which {at.used} {'is' if at.used == 1 else 'are'} in use"
    off = f"{at.beyond} of {counted(at.n, at.noun)}" if at.beyond else f"No {at.noun}"
    lies = "lie" if at.beyond > 1 else "lies"
    text += f". {off} {lies} beyond the last level"
    if at.total == 0:
        return f"{text}. Every {at.noun} is represented exactly."
    text += (
        f". Squared error: {percent(at.rounding)} from rounding + {percent(at.clipping)} from "
        f"clipping = {percent(at.total)} of the squared {at.noun}s{_beside(at)}."
    )
    return f"{text} No other point of the curve is lower." if at.lowest else text


def _beside(at: At) -> str:
    """The sum compared with that of the whole range."""
    if at.kept == "100 %" or at.whole == 0:
        return ""
    change = at.total / at.whole - 1
    if abs(change) < 5e-4:
        return ", the same as with the whole range"
    if change < 0:
        return f", {percent(-change)} less than with the whole range"
    if change < 1:
        return f", {percent(change)} more than with the whole range"
    return f", {times(1 + change)} as much as with the whole range"


def times(ratio: float) -> str:
    return f"{ratio:.0f}×" if 1000 <= ratio < 1e6 else f"{number(ratio, 3)}×"


@dataclass(frozen=True)
class Judged:
    """What a guess is judged by: parts of the range, sums of squared errors there as shares."""

    guess: int
    answers: tuple[int, ...]
    best: int
    at_guess: float
    lowest: float
    whole: float
    beyond: int
    n: int
    noun: str


def verdict(judged: Judged) -> str:
    """The guess compared with what was computed, and why."""
    j = judged
    if j.whole == 0:
        return (
            f"With the whole range every {j.noun} is represented exactly, so there is nothing to "
            "gain."
        )
    nearest = min(abs(answer - j.best) for answer in j.answers)
    right = abs(j.guess - j.best) == nearest
    text = "Right. " if right else ""
    text += f"The sum is lowest with {j.best} % of the range: {percent(j.lowest)}"
    if j.best < 100:
        text += f", {percent(1 - j.lowest / j.whole)} less than the {percent(j.whole)} of all of it"
    if j.guess not in (j.best, 100):
        text += f". With {j.guess} % it is {percent(j.at_guess)}"
    if j.best == 100:
        return f"{text}. Here the rounding error is so small that clipping gains nothing."
    few = f"{j.beyond} of {counted(j.n, j.noun)}"
    return (
        f"{text}. {few} {'lies' if j.beyond == 1 else 'lie'} beyond the last level then, and all "
        "others are rounded to finer levels."
    )


# ----------------------------------------------------------------------------- one weight's numbers

Row = tuple[str, list[str] | str, str]


def number_rows(
    tried: Tried, x: float, place: tuple[str, str], convention: str, symmetric: bool
) -> list[Row]:
    """(label, a text for each range, colour role) for the number x; `place` names where it is."""
    way = tried.follow(torch.tensor([x]))
    grid, made = tried.levels.grid, recipe(convention, symmetric)
    scale = _column(grid.scale)
    ends = list(zip(tried.low.tolist(), tried.high.tolist(), strict=True))
    rows: list[Row] = [
        (*place, ""),
        ("x", number(x), "original"),
        ("range", [f"{number(a, 3)} … {number(b, 3)}" for a, b in ends], ""),
        (
            "s" if made is None else f"s = {made.words} ÷ {_in_brackets(made.formula)}",
            [
                spacing(convention, symmetric, grid.bits, a, b, s)
                for (a, b), s in zip(ends, scale, strict=True)
            ],
            "",
        ),
    ]
    position = "x / s"
    if grid.zero_point is not None:
        rows.append(("z", _texts(_column(grid.zero_point)), ""))
        # Where z is added after rounding it changes nothing about which number is nearest.
        position += " + z" if tried.levels.zero_first else ""
    if grid.offset is not None:
        rows.append(("o", _texts(_column(grid.offset)), ""))
        position = "(x − o) / s"
    after = " + z" if grid.zero_point is not None and not tried.levels.zero_first else ""
    rounded, code, back = (part[:, 0].tolist() for part in (way.rounded, way.code, way.value))
    formula = "s · q" if grid.zero_point is None else "s · (q − z)"
    formula += " + o" if grid.offset is not None else ""
    return [
        *rows,
        (position, _texts(way.position[:, 0].tolist()), ""),
        (f"round({position}){after}", _texts(rounded), ""),
        (
            "q, clamped",
            [
                f"{number(q)}{'' if q == r else f', clipped from {number(r)}'}"
                for q, r in zip(code, rounded, strict=True)
            ],
            "codes",
        ),
        (f"x̂ = {formula}", _texts(back), "codes"),
        ("x − x̂", _texts([x - b for b in back]), "error"),
    ]


def lit(tried: Tried, x: float) -> list[list[str]]:
    """The terms of the equation that decide about x, for each range."""
    way = tried.follow(torch.tensor([x]))
    cut = (way.rounded != way.code)[:, 0].tolist()
    return [["clamp"] if one else ["s", "round"] for one in cut]


def _column(parameter: torch.Tensor) -> list[float]:
    return [float(value) for value in parameter[:, 0]]


def _texts(values: Sequence[float]) -> list[str]:
    return [number(value) for value in values]


def _in_brackets(formula: str) -> str:
    return formula if "/" in formula else f"({formula})"
