"""One number in every number format, and where each format's own numbers lie.

A format here is one of `qviz.core.formats`, or NF4, whose sixteen codes point into a table of
levels. `land` converts a number to a format and says what happened to it: whether it stayed the
same, was rounded, was a tie, left the range or vanished. `runs` writes all finite numbers
of a format, four billion or four, as a few hundred rows of equally spaced ones; counting them in
any interval is then a few divisions.

Everything is exact: numbers are float64, which holds every number of every format here; comparisons
and differences use exact fractions.
Sources: as in `qviz.core.formats` and `qviz.methods.nf4`.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache, lru_cache

import torch

from qviz.core.check import unknown
from qviz.core.formats import FORMATS, Format, decode, encode, fields
from qviz.core.nearest import count_below, midpoints
from qviz.core.words import exactly
from qviz.methods.nf4 import NF4

#: Name in the library → name on the page, from wide to narrow, then those that are no floats.
TITLES = {
    "fp32": "FP32",
    "tf32": "TF32",
    "bf16": "BF16",
    "fp16": "FP16",
    "fp8_e5m2": "FP8 E5M2",
    "fp8_e4m3": "FP8 E4M3",
    "fp6_e3m2": "FP6 E3M2",
    "fp6_e2m3": "FP6 E2M3",
    "fp4_e2m1": "FP4 E2M1",
    "nf4": "NF4",
    "e8m0": "E8M0",
    "int8": "INT8",
    "int4": "INT4",
    "int2": "INT2",
}
_POWER = re.compile(r"(-?)(\d+(?:\.\d*)?)\^\(?(-?\d{1,5})\)?")
_SHARE = re.compile(r"(-?\d{1,30}(?:\.\d{1,30})?)/(\d{1,30}(?:\.\d{1,30})?)")
FATES = ("exact", "rounded", "saturated", "infinite", "nan", "zero", "none")


@dataclass(frozen=True)
class Landing:
    """A number's result in a format.

    number     the number, float64
    code       the bit pattern; None where the format has nothing for it (fate "none")
    value      what the code stands for; NaN without one
    fate       "exact"; "rounded"; "saturated": beyond the last number, and became it; "infinite"
               and "nan": became Inf or NaN though it was neither; "zero": was not 0 and became 0;
               "none": a NaN in a format without NaN
    tie        it lay exactly halfway between two numbers of the format
    subnormal  the value is below the smallest normal number, with fewer bits left for it
    below, above  the neighbours of the value among the format's finite numbers, None at its ends
    """

    format: str
    number: float
    code: int | None
    value: float
    fate: str
    tie: bool = False
    subnormal: bool = False
    below: float | None = None
    above: float | None = None

    @property
    def error(self) -> float:
        """value − number, rounded once; NaN where either is not finite."""
        finite = math.isfinite(self.value) and math.isfinite(self.number)
        return self.value - self.number if finite else math.nan

    @property
    def relative(self) -> float:
        """|error| as a share of the number; 0 for an exact one, NaN where there is no error."""
        if self.error == 0:
            return 0.0
        return abs(self.error) / abs(self.number) if self.number else math.nan


@dataclass(frozen=True)
class Run:
    """Equally spaced numbers: start, start + spacing, …; `count` of them."""

    start: float
    spacing: float
    count: int


def width(name: str) -> int:
    """Bits of a code."""
    return 4 if name == "nf4" else _format(name).bits


@lru_cache(4096)  # a page asks for each of its codes several times
def value_of(name: str, code: int) -> float:
    """What a code stands for.

    >>> value_of("fp8_e4m3", 0b0_0111_100), value_of("nf4", 15)
    (1.5, 1.0)
    """
    if name != "nf4" and _format(name).bits > 16:
        return float(decode(code, _format(name)))
    table = _values(name)
    if not 0 <= code < len(table):
        raise ValueError(f"{name} has codes from 0 to {len(table) - 1}, got {code}")
    return table[code]


def land(
    number: float, name: str, *, rounding: str = "nearest_even", saturate: bool = False
) -> Landing:
    """What `number` becomes in a format; options as in `qviz.core.formats.encode`.

    NF4 is always rounded to the nearest level in float32, a tie to the lower one, and saturates.

    >>> land(2.5, "fp4_e2m1")
    Landing(format='fp4_e2m1', number=2.5, code=4, value=2.0, fate='rounded', tie=True, \
subnormal=False, below=1.5, above=3.0)
    """
    number = float(number)
    code = _code(number, name, rounding, saturate)
    if code is None:
        return Landing(name, number, None, math.nan, "none")
    value = value_of(name, code)
    below, above = neighbours(name, value)
    fate = _fate(number, value, name)
    return Landing(
        name,
        number,
        code,
        value,
        fate,
        # a tie that decides nothing is not counted as one
        _is_tie(number, name) and rounding != "toward_zero" and fate != "saturated",
        name != "nf4" and value != 0 and abs(value) < _format(name).min_normal,
        below,
        above,
    )


def neighbours(name: str, value: float) -> tuple[float | None, float | None]:
    """The finite numbers of a format next below and next above one of its own (None beyond its
    ends, and for Inf and NaN)."""
    if not math.isfinite(value):
        return None, None
    all_runs = runs(name)
    at = bisect_right(_starts(name), value) - 1
    run = all_runs[at]
    k = round((value - run.start) / run.spacing) if run.count > 1 else 0
    below = run.start + (k - 1) * run.spacing if k else None
    above = run.start + (k + 1) * run.spacing if k + 1 < run.count else None
    if below is None and at:
        below = _last(all_runs[at - 1])
    if above is None and at + 1 < len(all_runs):
        above = all_runs[at + 1].start
    return below, above


@cache
def runs(name: str) -> tuple[Run, ...]:
    """All finite numbers of a format, ascending, 0 once, as rows of equally spaced ones.

    >>> runs("fp4_e2m1")[-3:]
    (Run(start=0.0, spacing=0.5, count=4), Run(start=2.0, spacing=1.0, count=2), \
Run(start=4.0, spacing=2.0, count=2))
    """
    if name == "nf4":
        return tuple(Run(level, 0.0, 1) for level in _values("nf4"))
    f = _format(name)
    if f.is_integer:  # in two, so that what is counted from a start near zero stays exact
        return (Run(f.min_finite, 1.0, f.sign_bit), Run(0.0, 1.0, f.sign_bit))
    if not f.subnormals:  # E8M0: powers of two and nothing between
        return tuple(Run(math.ldexp(1.0, e), 0.0, 1) for e in range(f.emin, f.emax + 1))
    upper = list(_binades(f))
    lower = [Run(-_last(r), r.spacing, r.count) for r in reversed(upper)]
    zero = lower.pop()  # runs to −0, which 0 stands for
    return (*lower, Run(zero.start, zero.spacing, zero.count - 1), *upper)


@cache
def _starts(name: str) -> list[float]:
    return [run.start for run in runs(name)]


def count_between(name: str, low: float, high: float) -> int:
    """How many different finite numbers of a format lie in [low, high).

    >>> count_between("fp8_e4m3", 1, 2), count_between("fp32", 1, 2), count_between("int8", 1, 2)
    (8, 8388608, 1)
    """
    return sum(_below(run, high) - _below(run, low) for run in runs(name)) if high > low else 0


def finite_numbers(name: str) -> int:
    """How many different finite numbers a format has."""
    return sum(run.count for run in runs(name))


def within_one(name: str) -> float:
    """The share of a format's finite numbers that lie from −1 to 1, both included."""
    return count_between(name, -1.0, math.nextafter(1.0, 2.0)) / finite_numbers(name)


def smallest_positive(name: str) -> float:
    """The smallest number above 0."""
    first = runs(name)[0].start
    above = first if first > 0 else neighbours(name, 0.0)[1]
    assert above is not None
    return above


def largest(name: str) -> float:
    """The largest finite number."""
    return _last(runs(name)[-1])


# ------------------------------------------------------------------------------------ details


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(unknown("number format", name, [*FORMATS, "nf4"]))
    return FORMATS[name]


@cache
def _values(name: str) -> tuple[float, ...]:
    """What each code of a format of at most 16 bits stands for. NF4's levels are those of float32,
    which a decoded weight has before its block's absmax."""
    if name == "nf4":
        return tuple(torch.tensor(NF4, dtype=torch.float32).double().tolist())
    f = _format(name)
    return tuple(decode(torch.arange(1 << f.bits), f).double().tolist())


@cache
def _nf4_bounds() -> torch.Tensor:
    return midpoints(torch.tensor(NF4, dtype=torch.float32))


def _single(number: float) -> torch.Tensor:
    """[1] float32, in which NF4 is computed."""
    return torch.tensor([number], dtype=torch.float64).float()


def _code(number: float, name: str, rounding: str, saturate: bool) -> int | None:
    if name == "nf4":
        if math.isnan(number):
            return None
        return int(count_below(_single(number), _nf4_bounds()))
    f = _format(name)
    if math.isnan(number) and not f.has_nan:
        return None
    return int(encode(number, f, rounding=rounding, saturate=saturate))


def _fate(number: float, value: float, name: str) -> str:
    if value == number or (math.isnan(value) and math.isnan(number)):
        return "exact"
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "infinite"
    first, last = runs(name)[0].start, largest(name)
    if (number > last and value == last) or (number < first and value == first):
        return "rounded" if _rounds_to(value, number, name) else "saturated"
    return "zero" if value == 0 else "rounded"


def _rounds_to(value: float, number: float, name: str) -> bool:
    """Whether a number beyond the last one becomes it by rounding alone: in formats where the next
    would be Inf or NaN, a number nearer to the last is rounded, not saturated."""
    if name == "nf4" or not (_format(name).signed and _format(name).has_nan):
        return False
    return value_of(name, _code(number, name, "nearest_even", False) or 0) == value


def _end(name: str) -> Fraction:
    """Halfway from the last number to the one that would come after it."""
    run = runs(name)[-1]
    return Fraction(_last(run)) + Fraction(run.spacing) / 2


def _is_tie(number: float, name: str) -> bool:
    """Whether a number lies exactly halfway between two numbers of the format, or between the last
    one and where the next would be."""
    if not math.isfinite(number):
        return False
    if name == "nf4":
        return bool((_single(number) == _nf4_bounds()).any())
    x, f = Fraction(number), _format(name)
    if f.has_nan and f.signed and abs(x) == _end(name):
        return True
    starts = _starts(name)
    at = bisect_left(starts, number) - 1  # the last run that starts below the number
    if at < 0:
        return False
    run = runs(name)[at]
    k = min((x - Fraction(run.start)) // Fraction(run.spacing) if run.spacing else 0, run.count - 1)
    low = Fraction(run.start) + k * Fraction(run.spacing)
    if k + 1 < run.count:
        high = low + Fraction(run.spacing)
    elif at + 1 < len(starts):
        high = Fraction(starts[at + 1])
    else:
        return False
    return x - low == high - x


def _binades(f: Format) -> Iterator[Run]:
    """The numbers from 0 on: zero with the subnormals and the lowest binade, which are equally
    spaced, then one run for each doubling."""
    step = 1 << f.mantissa_bits
    yield Run(0.0, math.ldexp(1.0, f.emin - f.mantissa_bits), 2 * step)
    top = f.max_code >> f.mantissa_bits
    for field in range(2, top + 1):
        e = field - f.bias
        rest = f.max_code - (top << f.mantissa_bits) + 1  # E4M3 gives up a code for its NaN
        yield Run(
            math.ldexp(1.0, e),
            math.ldexp(1.0, e - f.mantissa_bits),
            rest if field == top else step,
        )


def _last(run: Run) -> float:
    return run.start + (run.count - 1) * run.spacing


def _below(run: Run, bound: float) -> int:
    """How many numbers of a run lie below a bound."""
    if bound <= run.start:
        return 0
    if bound > _last(run):
        return run.count
    return math.ceil((Fraction(bound) - Fraction(run.start)) / Fraction(run.spacing))


@dataclass(frozen=True)
class Followed:
    """The number that a learner follows.

    value    float64
    pattern  (format, code) where it was given as bits, which matter for a NaN: there are several
    """

    value: float
    pattern: tuple[str, int] | None = None

    @property
    def text(self) -> str:
        """As it is typed and stands in a link; `read_number` reads it back."""
        if self.pattern is not None and math.isnan(self.value):
            return "{}:{:#x}".format(*self.pattern)
        return exactly(self.value).replace("−", "-").replace("∞", "inf").replace("NaN", "nan")

    def land(self, name: str, *, rounding: str = "nearest_even", saturate: bool = False) -> Landing:
        """As the function `land`; in the format that it was given in, its bits stay as they are."""
        if self.pattern is not None and self.pattern[0] == name and math.isnan(self.value):
            return Landing(name, self.value, self.pattern[1], self.value, "exact")
        return land(self.value, name, rounding=rounding, saturate=saturate)


def read_number(text: str) -> Followed:
    """A number as people type it: 0.1, -3e-8, 1/3, 2^-24, inf, nan, or bits such as fp16:0x3c00.

    ValueError in words for anything else.

    >>> read_number("2^-24").value == 2.0**-24, read_number("fp4_e2m1:0b101").value
    (True, 3.0)
    """
    plain = text.strip().replace("−", "-").replace("∞", "inf").lower()
    name, colon, code = plain.partition(":")
    try:
        if len(plain) > 80:
            raise ValueError("80 characters are enough")
        if colon:
            pattern = name.strip(), int(code, 0)
            return Followed(value_of(*pattern), pattern)
        return Followed(_read(plain))
    except (ValueError, ArithmeticError) as error:
        why = "" if str(error).startswith(("invalid literal", "could not")) else f" ({error})"
        raise ValueError(
            f"“{text.strip()[:60]}” is not a number here{why}: type one such as 0.1, -3e-8, 1/3, "
            f"2^-24, inf or nan, or the bits of a format, such as fp16:0x3c00"
        ) from None


def _read(plain: str) -> float:
    """A number without bits, as the float64 nearest to it."""
    if found := _POWER.fullmatch(plain):
        sign, base, exponent = found.groups()
        value = float(base) ** int(exponent)
        return _in_range(-value if sign else value, float(base) != 0)
    if found := _SHARE.fullmatch(plain):
        above, below = (Fraction(part) for part in found.groups())
        return float(above / below)
    value = float(plain)
    if plain.lstrip("+-") in ("inf", "infinity", "nan"):
        return value
    return _in_range(value, not Decimal(plain).is_zero())


def _in_range(value: float, nonzero: bool) -> float:
    """The value, unless float64 cannot hold the number at all."""
    if math.isinf(value) or (value == 0 and nonzero):
        raise ValueError("beyond the float64 in which numbers are followed")
    return value


@lru_cache(4096)
def parts_of(name: str, code: int) -> tuple[int, int, int]:
    """Sign, exponent field and mantissa field of a code; an integer's bits below the sign and
    NF4's index are its mantissa."""
    if name == "nf4":
        return 0, 0, code
    parts = fields(code, _format(name))
    return int(parts.sign), int(parts.exponent), int(parts.mantissa)
