"""Number formats: what each bit pattern means, and which pattern a number becomes.

A floating-point code is a sign, an exponent field E of e bits and a mantissa field M of m bits; it
stands for ±2^(E − bias)·(1 + M/2^m), and for ±2^(1 − bias)·M/2^m where E = 0 (subnormal). An
integer code is a two's complement number. Codes here are unsigned bit patterns, so a bit that is
clicked is a bit of the code.

Encoding is one algorithm for every format and exact for every input: |x| is scaled by a power of
two until its last kept bit is worth 1, and rounded once. Most libraries convert float64 through
float32, which rounds twice and can miss the nearest code; this one does not.
Sources: IEEE 754; OCP 8-bit Floating Point 1.0; OCP Microscaling Formats 1.0, through ml_dtypes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from qviz.core.check import FLOAT_DTYPES, unknown

KINDS = ("zero", "subnormal", "normal", "infinite", "nan")
ROUNDINGS = ("nearest_even", "half_away", "half_toward_zero", "toward_zero")
CHUNK = 1 << 16  # numbers whose intermediate results stay in the processor's cache


@dataclass(frozen=True)
class Format:
    """A number format of `exponent_bits` and `mantissa_bits`.

    exponent_bits  0: a two's complement integer, whose bits below the sign are the mantissa and
                   which has neither exponents nor subnormals
    mantissa_bits  as stored, without the leading 1
    bias           the number subtracted from the exponent field
    specials       "ieee": the highest exponent holds Inf and NaN; "fn": only all bits 1 is NaN and
                   there is no Inf; "none": every code is a number
    signed         has a sign bit
    subnormals     exponent field 0 holds zero and the subnormals; E8M0 has neither
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int = 0
    specials: str = "none"
    signed: bool = True
    subnormals: bool = True

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def is_integer(self) -> bool:
        return self.exponent_bits == 0

    @property
    def sign_bit(self) -> int:
        """The code with only the sign set; 0 where there is none."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def emin(self) -> int:
        """The exponent of the smallest normal number, and of all subnormals."""
        return 1 - self.bias if self.subnormals else -self.bias

    @property
    def emax(self) -> int:
        """The exponent of the largest finite number."""
        return math.frexp(self.max_finite)[1] - 1

    @property
    def has_inf(self) -> bool:
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        return self.specials != "none"

    @property
    def inf_code(self) -> int | None:
        """The code of +Inf."""
        top = (1 << self.exponent_bits) - 1
        return top << self.mantissa_bits if self.has_inf else None

    @property
    def nan_code(self) -> int | None:
        """The NaN that `encode` writes. Formats with Inf have several; `nan_codes` lists them."""
        if self.inf_code is not None:
            return self.inf_code | 1 << (self.mantissa_bits - 1)
        return self._magnitudes - 1 if self.has_nan else None

    @property
    def nan_codes(self) -> tuple[range, ...]:
        """Every NaN, as ranges of codes: those with the sign clear, then those with it set."""
        if not self.has_nan:
            return ()
        first = self.max_code + 1 + self.has_inf
        positive = range(first, self._magnitudes)
        negative = range(first + self.sign_bit, self._magnitudes + self.sign_bit)
        return (positive, negative) if self.signed else (positive,)

    @property
    def max_code(self) -> int:
        """The code of the largest finite number."""
        if self.inf_code is not None:
            return self.inf_code - 1
        return self._magnitudes - 1 - self.has_nan

    @property
    def max_finite(self) -> float:
        return self._value(self.max_code)

    @property
    def min_finite(self) -> float:
        """The most negative finite number; the smallest one where there is no sign."""
        if self.is_integer:
            return -self.max_finite - 1
        return -self.max_finite if self.signed else self.min_normal

    @property
    def min_normal(self) -> float:
        """The smallest positive normal number; 1 for integers."""
        return 1.0 if self.is_integer else math.ldexp(1.0, self.emin)

    @property
    def min_subnormal(self) -> float | None:
        """The smallest positive subnormal number, where there are any."""
        if self.is_integer or not self.subnormals:
            return None
        return math.ldexp(1.0, self.emin - self.mantissa_bits)

    @property
    def _magnitudes(self) -> int:
        """How many codes have the sign clear."""
        return 1 << (self.exponent_bits + self.mantissa_bits)

    def _value(self, code: int) -> float:
        """The value of a finite code with the sign clear."""
        exponent, mantissa = divmod(code, 1 << self.mantissa_bits)
        if self.is_integer:
            return float(code)
        normal = exponent > 0 or not self.subnormals
        significand = mantissa + (1 << self.mantissa_bits) * normal
        power = exponent - self.bias if normal else self.emin
        return math.ldexp(significand, power - self.mantissa_bits)

    def __str__(self) -> str:
        if self.is_integer:
            return f"{self.name}: integer from {self.min_finite:g} to {self.max_finite:g}"
        sign = "1 sign, " if self.signed else ""
        return (
            f"{self.name}: {sign}{self.exponent_bits} exponent and {self.mantissa_bits} mantissa "
            f"bits, largest {self.max_finite:g}"
        )


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("fp32", 8, 23, 127, "ieee"),
        Format("tf32", 8, 10, 127, "ieee"),
        Format("bf16", 8, 7, 127, "ieee"),
        Format("fp16", 5, 10, 15, "ieee"),
        Format("fp8_e4m3", 4, 3, 7, "fn"),
        Format("fp8_e5m2", 5, 2, 15, "ieee"),
        Format("fp6_e3m2", 3, 2, 3),
        Format("fp6_e2m3", 2, 3, 1),
        Format("fp4_e2m1", 2, 1, 1),
        Format("e8m0", 8, 0, 127, "fn", signed=False, subnormals=False),
        Format("int8", 0, 7),
        Format("int4", 0, 3),
        Format("int3", 0, 2),
        Format("int2", 0, 1),
    )
}


class Fields(NamedTuple):
    """The parts of codes, each tensor in the codes' shape.

    sign      0 or 1
    exponent  the field as stored, bias included; 0 for integers
    mantissa  the field as stored; an integer's bits below the sign
    kind      int8 index into `KINDS`: zero, subnormal, normal, infinite, nan
    """

    sign: torch.Tensor
    exponent: torch.Tensor
    mantissa: torch.Tensor
    kind: torch.Tensor


class Values(NamedTuple):
    """The finite numbers of a format in ascending order, −0 before 0, with their codes."""

    codes: torch.Tensor
    values: torch.Tensor


def format_of(fmt: str | Format) -> Format:
    """The format of this name; ValueError with the nearest names if there is none."""
    if isinstance(fmt, Format):
        return fmt
    if fmt not in FORMATS:
        raise ValueError(unknown("number format", fmt, FORMATS))
    return FORMATS[fmt]


def encode(
    x: object, fmt: str | Format, *, rounding: str = "nearest_even", saturate: bool = False
) -> torch.Tensor:
    """The codes of numbers in a format.

    x         floating-point tensor on any device, NumPy array, or Python number(s), which count as
              float64
    rounding  "nearest_even" (IEEE's default, ml_dtypes, torch); "half_away" (nearest, ties away
              from zero: `cvt.rna.tf32`, microxcaling); "half_toward_zero" (nearest, ties toward
              zero: ggml's FP4); "toward_zero" (truncation: what a tensor core does with FP32 given
              as TF32)
    saturate  numbers too large after rounding, Inf included, become the largest finite number:
              torch ≥ 2.12 casting to E4M3, `cvt.satfinite`, OCP's saturating mode. False: it
              becomes Inf, in E4M3 and E8M0 NaN (IEEE; ml_dtypes; torch casting to E5M2, FP16 and
              BF16; E4M3 is NaN above 464, E5M2 Inf from 61440). Formats with neither saturate
              always, as they do everywhere; truncation makes only Inf itself Inf.

    Returns unsigned bit patterns in the shape of x: uint8 up to 8 bits, int64 above.
    E8M0 has no sign and no zero: a negative number is NaN; 0 is NaN, or with `saturate` 2^−127.
    Raises ValueError for a NaN where the format has none, or an unknown name.

    >>> encode(0.1, "fp8_e4m3"), decode(29, "fp8_e4m3")
    (tensor(29, dtype=torch.uint8), tensor(0.1016))
    """
    fmt = format_of(fmt)
    x = _as_float(x)
    if rounding not in ROUNDINGS:
        raise ValueError(unknown("rounding", rounding, ROUNDINGS))
    if fmt.nan_code is None and (count := int(torch.isnan(x).sum())):
        raise ValueError(
            f"{fmt.name} has no NaN, but {count} of the numbers are NaN; replace them first, for "
            "example with torch.nan_to_num"
        )
    dtype = torch.uint8 if fmt.bits <= 8 else torch.int64
    codes = torch.empty(x.shape, dtype=dtype, device=x.device)
    # A dozen passes over the numbers, a piece at a time: four times as fast at 4096².
    size = CHUNK if x.device.type == "cpu" else max(1, x.numel())
    pieces = torch.split(x.reshape(-1), size), torch.split(codes.view(-1), size)
    for numbers, out in zip(*pieces, strict=True):
        out.copy_(_codes(numbers, fmt, rounding, saturate))
    return codes


def _codes(x: torch.Tensor, fmt: Format, rounding: str, saturate: bool) -> torch.Tensor:
    """The codes of some numbers, in one integer dtype or another; options as in `encode`."""
    if fmt.is_integer:
        n = _round(x.abs(), rounding) * torch.sign(x)
        return n.clamp(fmt.min_finite, fmt.max_finite).to(torch.int64) & (2 * fmt.sign_bit - 1)

    codes = _magnitude(x.abs(), fmt, rounding)
    if rounding == "toward_zero":  # truncation does not reach Inf
        codes = torch.where(torch.isinf(x), codes, codes.clamp(max=fmt.max_code))
    beyond = None if saturate else fmt.inf_code or fmt.nan_code
    if beyond is None:
        codes = codes.clamp_(max=fmt.max_code)
    else:
        codes = torch.where(codes > fmt.max_code, beyond, codes)
    negative, nan = torch.signbit(x), torch.isnan(x)
    if fmt.signed:
        codes += negative * codes.new_tensor(fmt.sign_bit)
    else:
        nan = nan | (negative & (x != 0)) | ((x == 0) & (not saturate))
    if fmt.nan_code is not None:
        codes = torch.where(nan, fmt.nan_code, codes)
    return codes


def _magnitude(a: torch.Tensor, fmt: Format, rounding: str) -> torch.Tensor:
    """Codes of a ≥ 0, as if exponents had no upper end; Inf and NaN give any code beyond the last.

    A code counts the numbers below it: 2^m for each binade below that of a, and those within it. So
    a carry into the next binade needs no special care.
    """
    m = fmt.mantissa_bits
    # float32 is faster, and as exact unless the factor below leaves its exponents.
    small = a.dtype != torch.float64 and m > 0 and m - fmt.emin <= 127
    a = a.to(torch.float32 if small else torch.float64)
    integer, width, bias = (torch.int32, 23, 127) if small else (torch.int64, 52, 1023)
    # ⌊log₂ a⌋ from the bits of a, between the ends that formats have here. In place from here on:
    # a copy costs as much as the arithmetic.
    e = (a.view(integer) >> width).sub_(bias).clamp_(fmt.emin, 127)
    factor = ((m + bias - e) << width).view(a.dtype)  # 2^(m − e), exact on every device
    # In units of the last kept bit. Anything beyond every binade, Inf too, ends one binade up.
    n = factor.mul_(a).clamp_(max=2.0 ** (m + 1))
    code = e.sub_(fmt.emin).bitwise_left_shift_(m).add_(_round(n, rounding).to(integer))
    # Without subnormals there are no numbers below the lowest binade.
    return code if fmt.subnormals else code.sub_(1 << m).clamp_(min=0)


def _round(a: torch.Tensor, rounding: str) -> torch.Tensor:
    """a ≥ 0 to integers. Not ⌊a + ½⌋: just below ½ that sum is 1."""
    if rounding == "nearest_even":
        return torch.round(a)
    whole = torch.floor(a)
    rest = a - whole  # exact
    if rounding == "half_away":
        return whole + (rest >= 0.5)
    if rounding == "half_toward_zero":
        return whole + (rest > 0.5)
    return whole


def fields(codes: object, fmt: str | Format) -> Fields:
    """The sign, exponent and mantissa fields of codes, and what kind of number each is.

    Returns `Fields` of int64 tensors in the codes' shape, `kind` int8. Raises TypeError for codes
    that are not integers, ValueError for codes that the format does not have.

    >>> fields(0b1_0111_000, "fp8_e4m3")
    Fields(sign=tensor(1), exponent=tensor(7), mantissa=tensor(0), kind=tensor(2, dtype=torch.int8))
    """
    fmt = format_of(fmt)
    codes = _as_codes(codes, fmt)
    m = fmt.mantissa_bits
    sign = codes >> (fmt.bits - 1) if fmt.signed else torch.zeros_like(codes)
    magnitude = codes & ~fmt.sign_bit
    exponent, mantissa = magnitude >> m, magnitude & ((1 << m) - 1)

    if fmt.is_integer:
        kind = torch.where(codes == 0, 0, 2)
        return Fields(sign, exponent, mantissa, kind.to(torch.int8))
    kind = torch.full_like(codes, KINDS.index("normal"))
    if fmt.subnormals:
        kind = torch.where(exponent == 0, torch.where(mantissa == 0, 0, 1), kind)
    kind = torch.where(magnitude > fmt.max_code, KINDS.index("nan"), kind)
    if fmt.inf_code is not None:
        kind = torch.where(magnitude == fmt.inf_code, KINDS.index("infinite"), kind)
    return Fields(sign, exponent, mantissa, kind.to(torch.int8))


def decode(codes: object, fmt: str | Format) -> torch.Tensor:
    """The numbers that codes stand for: float32, which holds every format here exactly.

    codes  integer tensor, NumPy array or Python int(s): bit patterns, unsigned

    >>> decode(torch.arange(8), "fp4_e2m1")
    tensor([0.0000, 0.5000, 1.0000, 1.5000, 2.0000, 3.0000, 4.0000, 6.0000])
    """
    fmt = format_of(fmt)
    codes = _as_codes(codes, fmt)
    if codes.numel() > 1 << fmt.bits <= 1 << 16:  # fewer codes exist than are given
        table = decode(torch.arange(1 << fmt.bits, device=codes.device), fmt)
        return table[codes]
    if fmt.is_integer:
        return (codes - ((codes & fmt.sign_bit) << 1)).to(torch.float32)
    sign, exponent, mantissa, kind = fields(codes, fmt)
    normal = (kind == KINDS.index("normal")).to(torch.int64)
    significand = mantissa + (normal << fmt.mantissa_bits)
    power = torch.where(normal == 1, exponent - fmt.bias, fmt.emin) - fmt.mantissa_bits
    # float64, because 2^−149 is not a normal float32.
    values = significand.to(torch.float64) * ((power + 1023) << 52).view(torch.float64)
    values = torch.where(kind == KINDS.index("infinite"), math.inf, values)
    values = torch.where(kind == KINDS.index("nan"), math.nan, values)
    return torch.where(sign == 1, -values, values).to(torch.float32)


def cast(
    x: object, fmt: str | Format, *, rounding: str = "nearest_even", saturate: bool = False
) -> torch.Tensor:
    """Numbers rounded to a format, as float32: decode(encode(x)). Options as in `encode`.

    >>> cast([0.3, 5.0, 100.0], "fp4_e2m1")
    tensor([0.5000, 4.0000, 6.0000])
    """
    return decode(encode(x, fmt, rounding=rounding, saturate=saturate), fmt)


def values(fmt: str | Format) -> Values:
    """Every finite number of a format of at most 16 bits, ascending, with its code.

    Returns `Values`: codes int64 and values float32, both [numbers].

    >>> values("int2")
    Values(codes=tensor([2, 3, 0, 1]), values=tensor([-2., -1.,  0.,  1.]))
    """
    fmt = format_of(fmt)
    if fmt.bits > 16:
        raise ValueError(
            f"{fmt.name} has 2^{fmt.bits} codes, too many to list; choose a format of at most 16 "
            "bits"
        )
    codes = torch.arange(fmt.max_code + 1)
    if fmt.signed:
        # Negative integers ascend with their codes, the other formats have sign and magnitude.
        negative = codes + fmt.sign_bit
        codes = torch.cat([negative if fmt.is_integer else negative.flip(0), codes])
    return Values(codes, decode(codes, fmt))


def _as_float(x: object) -> torch.Tensor:
    """`x` as a floating-point tensor; a tensor is never cast, Python numbers count as float64."""
    if not isinstance(x, torch.Tensor):
        array = np.asarray(x)
        if not isinstance(x, np.ndarray) and array.dtype.kind in "iu":
            array = array.astype(np.float64)
        if array.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"numbers must be floating-point, got {array.dtype}; convert them first"
            )
        return torch.tensor(array)
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"numbers must be float32, bfloat16, float16 or float64, got {x.dtype}; convert them "
            f"first, for example with .float()"
        )
    return x.detach()


def _as_codes(codes: object, fmt: Format) -> torch.Tensor:
    """`codes` as int64, each of them one that the format has."""
    codes = codes if isinstance(codes, torch.Tensor) else torch.tensor(np.asarray(codes))
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"codes are integers (bit patterns), got {codes.dtype}; use encode first")
    codes = codes.to(torch.int64)
    wrong = (codes < 0) | (codes >= 1 << fmt.bits)
    if wrong.any():
        raise ValueError(
            f"{fmt.name} has codes from 0 to {(1 << fmt.bits) - 1}, got {int(codes[wrong][0])}; "
            f"codes are unsigned bit patterns"
        )
    return codes
