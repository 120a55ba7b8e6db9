"""What the lesson on number formats says about one number: bits, sentences, tables, the guide."""

import math

from qviz.core.formats import FORMATS
from qviz.study.number_formats import (
    TITLES,
    Landing,
    largest,
    parts_of,
    value_of,
    width,
)
from qviz.ui.views.guide_steps import Is, Moved, Step
from qviz.ui.widgets import exactly, percent, signed
from qviz.ui.widgets.bits import Group

NUMBER, BLOCK, HARDWARE = "one number", "a block of weights", "hardware"
ROUNDINGS = {
    "nearest_even": "to the nearest, a tie to the even code (IEEE)",
    "half_away": "to the nearest, a tie away from zero",
    "half_toward_zero": "to the nearest, a tie toward zero",
    "toward_zero": "toward zero: extra bits are dropped",
}
BEYOND = {
    "special": "becomes ∞, or NaN where there is no ∞ (ml_dtypes)",
    "last": "becomes the largest number (saturates)",
}

EQUATION = """
<math display="block"><mrow><mi>x</mi><mo>=</mo><msup><mrow><mo>(</mo><mo>−</mo><mn>1</mn><mo>)</mo>
  </mrow><mi data-term="S">S</mi></msup><mo>·</mo><msup><mn>2</mn><mrow><mi data-term="E">E</mi>
  <mo>−</mo><mi data-term="bias">bias</mi></mrow></msup><mo>·</mo><mrow><mo>(</mo>
  <mn data-term="one">1</mn><mo>+</mo><mfrac><mi data-term="M">M</mi><msup><mn>2</mn><mi>m</mi>
  </msup></mfrac><mo>)</mo></mrow></mrow></math>
<math display="block"><mrow><mi>x</mi><mo>=</mo><msup><mrow><mo>(</mo><mo>−</mo><mn>1</mn><mo>)</mo>
  </mrow><mi>S</mi></msup><mo>·</mo><msup><mn>2</mn><mrow><mn data-term="low">1</mn><mo>−</mo>
  <mi>bias</mi></mrow></msup><mo>·</mo><mfrac><mi data-term="small">M</mi><msup><mn>2</mn><mi>m</mi>
  </msup></mfrac></mrow></math>
<math display="block"><mrow><mi>x</mi><mo>=</mo><mi data-term="whole">M</mi><mo>−</mo>
  <mi data-term="minus">S</mi><mo>·</mo><msup><mn>2</mn><mrow><mi>b</mi><mo>−</mo><mn>1</mn></mrow>
  </msup></mrow></math>
<math display="block"><mrow><mi>x</mi><mo>=</mo><msub><mi data-term="level">v</mi>
  <mi data-term="index">i</mi></msub></mrow></math>
<math display="block"><mrow><mi>x</mi><mo>=</mo><msup><mn>2</mn><mrow><mi data-term="power">E</mi>
  <mo>−</mo><mn>127</mn></mrow></msup></mrow></math>
<math display="block"><mrow><mi data-term="special">E</mi><mo>=</mo><mtext>all ones: </mtext>
  <mi>x</mi><mo>=</mo><mtext>∞ or NaN</mtext></mrow></math>
"""
SPOKEN = (
    "x is minus one to the S, times two to the E minus bias, times one plus M over two to the m; "
    "for subnormal numbers two to the one minus bias, times M over two to the m; for integers M "
    "minus S times two to the b minus one; for NF4 the level with this index; for E8M0 two to the "
    "E minus 127"
)
TERMS = {
    "S": "S: the sign bit",
    "E": "E: the exponent field, read as a whole number",
    "bias": "bias: a constant of the format that allows negative exponents",
    "one": "1: the leading bit. Every normal number has it, so it is not stored",
    "M": "M: the mantissa field, read as a whole number of m bits",
    "low": "1 − bias: all subnormal numbers share the exponent of the smallest normal ones",
    "small": "M: there is no leading 1, so a smaller number has fewer significant bits",
    "whole": "M: the bits below the sign, read as a whole number",
    "minus": "S: the sign bit, which has the weight −2ᵇ⁻¹ (two's complement)",
    "level": "v: the table of sixteen levels; a weight is a level times the largest magnitude "
    "of its block",
    "index": "i: the code, a position in the table; its single bits mean nothing",
    "power": "E: E8M0 is only an exponent; it serves as a scale",
    "special": "the highest exponent field is reserved for ∞ and NaN",
}

GUIDE = (
    Step(
        "Follow 0.1 from FP32 to INT2",
        "Drag “Format” to its right end. First the mantissa shrinks, then the exponent, and the "
        "error in the table grows. In which formats does 0.1 become 0?",
        {"format": "fp32", "x": "0.1"},
        {"format": Is("int2")},
    ),
    Step(
        "Meet a tie",
        "2.5 lies exactly halfway between two FP4 numbers, 2 and 3. Under “More” choose another "
        "way of rounding and see the tie go the other way. Real systems differ here.",
        {"format": "fp4_e2m1", "x": "2.5", "beside": "fp6_e2m3"},
        {"rounding": Moved()},
    ),
    Step(
        "Go beyond the end",
        "500 is too large for E4M3 and becomes NaN. E5M2 reaches that far, and FP4 turns it "
        "into 6. Under “More” let numbers that are too large become the largest number. "
        "Libraries that clamp before they cast do this.",
        {"format": "fp8_e4m3", "x": "500", "beside": "fp8_e5m2"},
        {"beyond": Is("last")},
    ),
    Step(
        "Watch a number vanish",
        "4e-8 still has a code in FP16, the smallest one above zero. The number is subnormal, "
        "and its error is half its size. Press the one bit that is set, and the number becomes "
        "0. BF16, on the lower half of the line, reaches thirty more powers of ten down.",
        {"format": "fp16", "x": "4e-8", "beside": "bf16"},
        {"x": Is("0")},
    ),
    Step(
        "See where the numbers lie",
        "The line shows all numbers of the chosen format above it and those of a second format "
        "below it. Compare INT8 with FP8: they have as many codes, but in different places. "
        "Then choose BF16 under “Compare with” and zoom out: its wide range costs precision.",
        {"format": "fp8_e4m3", "beside": "int8", "view": "even -4, 4"},
        {"beside": Is("bf16")},
    ),
    Step(
        "Share a scale",
        "FP4 numbers other than 0 lie between 0.5 and 6, and the weights are far smaller. So 32 "
        "weights share a scale, a power of two. Point at weights and follow their arithmetic. "
        "Then choose NVFP4 as “Block format”. Which scale fits its block better?",
        {"part": BLOCK, "block": "mxfp4"},
        {"part": Is(BLOCK), "block": Is("nvfp4")},
    ),
)


# ------------------------------------------------------------------------------------ the bits


def groups(name: str) -> tuple[Group, ...]:
    """The bits of a format by their fields, the highest first."""
    if name == "nf4":
        return (Group("index", "index", tuple(_weighted("index bit", 4))),)
    f = FORMATS[name]
    if f.is_integer:
        low = tuple(_weighted("bit", f.mantissa_bits))
        return (
            Group("sign", "sign", (f"sign bit, weight −{f.sign_bit}",)),
            Group("integer", "whole number", low),
        )
    made = [Group("sign", "sign", ("sign bit",))] if f.signed else []
    made.append(Group("exponent", "exponent", tuple(_weighted("exponent bit", f.exponent_bits))))
    m = f.mantissa_bits
    if m:
        names = tuple(f"mantissa bit {k}, weight 1/{1 << (m - k)}" for k in reversed(range(m)))
        made.append(Group("mantissa", "mantissa", names))
    return tuple(made)


def _weighted(what: str, count: int) -> list[str]:
    return [f"{what} {k}, weight {1 << k}" for k in reversed(range(count))]


def notes(name: str, code: int | None) -> list[str]:
    """What each group of bits means now."""
    if code is None:
        return ["no code for NaN", *([""] * (len(groups(name)) - 1))]
    sign, exponent, mantissa = parts_of(name, code)
    if name == "nf4":
        return [f"{mantissa}: level {exactly(value_of(name, code))}"]
    f = FORMATS[name]
    if f.is_integer:
        return [f"−{f.sign_bit}" if sign else "0", str(mantissa)]
    said = ["−" if sign else "+"] if f.signed else []
    value = abs(value_of(name, code))
    if not math.isfinite(value):
        said.append(f"{exponent}: {exactly(value)}")
    elif f.subnormals and not exponent:
        said.append(f"0: {'subnormal, ' if mantissa else ''}2^{{{_minus(f.emin)}}}")
    else:
        said.append(f"{exponent} − {f.bias}: 2^{{{_minus(exponent - f.bias)}}}")
    if f.mantissa_bits:
        said.append(f"{mantissa}/{1 << f.mantissa_bits}")
    return said


def _minus(n: int) -> str:
    return str(n).replace("-", "−")


def pattern(name: str, code: int | None) -> str:
    """A code in bits, with its fields set apart.

    >>> pattern("fp8_e4m3", 29)
    '0 0011 101'
    """
    if code is None:
        return "–"
    bits = f"{code:0{width(name)}b}"
    parts = []
    for group in groups(name):
        parts.append(bits[: len(group.names)])
        bits = bits[len(group.names) :]
    return " ".join(parts)


def lit_terms(name: str, code: int | None) -> list[str]:
    """The terms of the equation by which a code is read."""
    if code is None:
        return []
    if name == "nf4":
        return ["level", "index"]
    f = FORMATS[name]
    if f.is_integer:
        return ["whole", "minus"]
    if not math.isfinite(value_of(name, code)):
        return ["special"]
    if not f.subnormals:
        return ["power"]
    return ["E", "M"] if parts_of(name, code)[1] else ["low", "small"]


def arithmetic(name: str, code: int | None) -> str:
    """The value of a code, computed from its fields.

    >>> arithmetic("fp8_e4m3", 29), arithmetic("int4", 9)
    ('+2^{−4} · (1 + 5/8)', '1 − 8')
    """
    if code is None:
        return "–"
    sign, exponent, mantissa = parts_of(name, code)
    if name == "nf4":
        return f"v_{{{mantissa}}}"
    f = FORMATS[name]
    if f.is_integer:
        return f"{mantissa} − {sign * f.sign_bit}"
    if not math.isfinite(value_of(name, code)):
        return exactly(value_of(name, code))
    if not f.subnormals:
        return f"2^{{{exponent} − {f.bias}}}"
    before, share = "−" if sign else "+", f"{mantissa}/{1 << f.mantissa_bits}"
    if not exponent:
        return f"{before}2^{{{_minus(f.emin)}}} · {share}"
    return f"{before}2^{{{_minus(exponent - f.bias)}}} · (1 + {share})"


# ------------------------------------------------------------------------------------ one number


def what_happened(at: Landing) -> str:
    """A few words for the table."""
    if at.fate == "exact":
        return "exact, subnormal" if at.subnormal else "exact"
    if at.fate == "none":
        return "there is no NaN"
    if at.fate == "nan":
        return "too large: NaN" if _too_large(at) else f"no {_lacking(at)}: NaN"
    if at.fate == "saturated":
        last = "largest" if at.value > 0 and at.number > at.value else "lowest"
        return f"saturated at the {last}"
    said = "too large: ∞" if at.value > 0 else "too large: −∞"
    if at.fate == "zero":
        said = "rounded to 0"
    if at.fate == "rounded":
        said = "rounded up" if at.value > at.number else "rounded down"
    return f"{'a tie, ' if at.tie else ''}{said}{', subnormal' if at.subnormal else ''}"


def _too_large(at: Landing) -> bool:
    return at.number > largest(at.format) or (FORMATS[at.format].signed and at.number != 0)


def _lacking(at: Landing) -> str:
    """What a format lacks when it turns a number into NaN."""
    return "zero" if at.number == 0 else "sign"


def error_words(at: Landing) -> tuple[str, str]:
    """The error, and the error as a share of the number."""
    if math.isnan(at.error):
        return "–", "–"
    off = "–" if math.isnan(at.relative) else percent(at.relative)
    return signed(at.error), off


def table_row(at: Landing) -> list[str]:
    """Value, error as a share of the number, what happened, code."""
    return [value_words(at), error_words(at)[1], what_happened(at), pattern(at.format, at.code)]


def value_words(at: Landing) -> str:
    """The value, with all its digits."""
    return "–" if at.code is None else exactly(at.value)


def sentence(at: Landing, rounding: str = "nearest_even") -> str:
    """What a format does to the number."""
    title, x = TITLES[at.format], exactly(at.number)
    return f"{title}: {_story(at, x, title, rounding)}{_subnormal(at, title)}"


def _story(at: Landing, x: str, title: str, rounding: str) -> str:
    v, last = exactly(at.value), exactly(math.copysign(largest(at.format), at.number))
    if at.fate == "exact":
        if not math.isfinite(at.number):
            return f"{x} stays {x}."
        return f"{x} is one of its numbers, so nothing is lost."
    if at.fate == "none":
        return "there is no code for NaN. Real systems refuse it or return an arbitrary number."
    if at.fate == "nan" and _too_large(at):
        return f"{x} lies beyond the last number, {last}, and there is no ∞: NaN."
    if at.fate == "nan":
        why = {"zero": "zero has no code", "sign": "there is no sign"}[_lacking(at)]
        return f"{why}, so {x} becomes NaN."
    if at.fate == "saturated":
        return f"{x} lies beyond the last number, {v}, and saturates: it becomes that number."
    if at.fate == "infinite":
        if at.tie:
            return (
                f"{x} lies halfway between the last number and the next power of two: a tie, "
                f"which goes to {v}."
            )
        return f"{x} lies beyond the last number, {last}, and becomes {v}."
    if at.above is None and at.value > 0 and at.number > at.value:
        return f"{x} is a little beyond the largest number, {v}, and is rounded to it."
    if at.below is None and at.value < 0 and at.number < at.value:
        return f"{x} is a little beyond the lowest number, {v}, and is rounded to it."
    low, high = _around(at)
    off = percent(at.relative)
    if at.tie:
        return (
            f"{x} lies exactly halfway between {low} and {high}. The tie goes to {v}, "
            f"{_tie_rule(at, rounding)}. Off by {off}."
        )
    if rounding == "toward_zero" and at.format != "nf4":
        return (
            f"{x} lies between {low} and {high}. Rounded toward zero it becomes {v}, off by {off}."
        )
    lost = " Nothing of it is left." if at.fate == "zero" else f" Off by {off}."
    return f"{x} lies between {low} and {high}, nearer to {v}.{lost}"


def _around(at: Landing) -> tuple[str, str]:
    """The two numbers of the format that it lies between."""
    low, high = (at.below, at.value) if at.value > at.number else (at.value, at.above)
    assert low is not None and high is not None
    return exactly(low + 0.0), exactly(high + 0.0)


def _tie_rule(at: Landing, rounding: str) -> str:
    if at.format == "nf4":
        return "the lower level, as in bitsandbytes"
    if rounding == "half_away":
        return "away from zero"
    if rounding == "half_toward_zero":
        return "toward zero"
    return "the larger" if at.format == "e8m0" else "whose last bit is 0"


def _subnormal(at: Landing, title: str) -> str:
    if not at.subnormal:
        return ""
    least = exactly(FORMATS[at.format].min_normal)
    return (
        f" Below {least} there is no leading 1: the number is subnormal and has fewer "
        "significant bits."
    )


def number_rows(landings: list[Landing]) -> list[tuple[str, list[str], str]]:
    """The readout of one format, for each of them."""

    def beside(value: float | None) -> str:
        return "–" if value is None else exactly(value)

    return [
        ("the number x", [exactly(at.number) for at in landings], "original"),
        ("its code", [_hex(at) for at in landings], "codes"),
        ("what the code means", [arithmetic(at.format, at.code) for at in landings], ""),
        ("value x̂", [value_words(at) for at in landings], "codes"),
        ("error x̂ − x", [error_words(at)[0] for at in landings], "error"),
        ("as a share of x", [error_words(at)[1] for at in landings], "error"),
        ("next number below", [beside(at.below) for at in landings], ""),
        ("next number above", [beside(at.above) for at in landings], ""),
    ]


def _hex(at: Landing) -> str:
    return "–" if at.code is None else f"0x{at.code:0{(width(at.format) + 3) // 4}x}"
