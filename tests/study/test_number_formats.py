"""A number in every format, and where each format's numbers lie, against lists of all of them."""

import math
from bisect import bisect_left
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from qviz.core.formats import FORMATS, ROUNDINGS
from qviz.methods.nf4 import NF4, nf4
from qviz.study.number_formats import (
    TITLES,
    Followed,
    count_between,
    finite_numbers,
    land,
    largest,
    neighbours,
    parts_of,
    read_number,
    runs,
    smallest_positive,
    value_of,
    width,
    within_one,
)

DTYPES = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
    "int8": np.int8,
    "int4": ml_dtypes.int4,
    "int2": ml_dtypes.int2,
}
SHORT = [*DTYPES, "nf4"]  # formats whose numbers can be listed
finite = st.floats(allow_nan=False, allow_infinity=False)
near = st.one_of(
    finite,
    st.floats(-600, 600),
    st.floats(-1.5, 1.5),
    st.integers(-4000, 4000).map(lambda n: n / 16),  # full of ties
    st.integers(-280, 260).map(lambda e: 1.5 * 2.0 ** (e / 2)),
)


@cache
def theirs(name: str) -> np.ndarray:
    """What each code stands for by the other library [codes] float64."""
    if name == "nf4":
        return np.float32(NF4).astype(np.float64)
    codes = np.arange(1 << width(name)).astype(np.uint16 if width(name) > 8 else np.uint8)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return codes.view(DTYPES[name]).astype(np.float64)


@cache
def listed(name: str) -> list[float]:
    """All finite numbers, ascending, 0 once."""
    every = theirs(name)
    return sorted(set((every[np.isfinite(every)] + 0.0).tolist()))


@pytest.mark.parametrize("name", SHORT)
def test_runs_are_all_numbers(name):
    found = [run.start + k * run.spacing for run in runs(name) for k in range(run.count)]
    assert found == listed(name)
    assert finite_numbers(name) == len(listed(name))
    assert largest(name) == listed(name)[-1]
    assert smallest_positive(name) == min(v for v in listed(name) if v > 0)
    assert within_one(name) == sum(-1 <= v <= 1 for v in listed(name)) / len(listed(name))


def ordinal(values: np.ndarray) -> np.ndarray:
    """The place of float32 numbers in their order, from their bits; both zeros at 0."""
    bits = np.asarray(values, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def test_runs_of_float32_are_all_of_them():
    """Each run begins one number after the last one ended, and goes on from number to number."""
    after = -int(ordinal(np.float32(largest("fp32"))))
    for run in runs("fp32"):
        places = np.array([0, 1, run.count // 2, run.count - 1])
        values = run.start + places * run.spacing
        assert (values.astype(np.float32) == values).all()
        assert (ordinal(values) == after + places).all()
        after += run.count
    assert after == ordinal(np.float32(largest("fp32"))) + 1
    assert largest("fp32") == float(np.finfo(np.float32).max)
    assert smallest_positive("fp32") == float(np.finfo(np.float32).smallest_subnormal)


def test_runs_of_tf32_are_those_of_float32_without_13_bits():
    assert finite_numbers("tf32") == 2 * (0x7F800000 >> 13) - 1
    for run in runs("tf32"):
        values = np.float32([run.start, run.start + (run.count - 1) * run.spacing])
        assert not (values.view(np.int32) & 0x1FFF).any()


@given(st.sampled_from(SHORT), near, near)
def test_counting_is_counting(name, low, high):
    assert count_between(name, low, high) == sum(low <= v < high for v in listed(name))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False),
       st.floats(width=32, allow_nan=False, allow_infinity=False))  # fmt: skip
def test_counting_float32_is_subtracting_places(low, high):
    low, high = sorted((low, high))
    counted = int(ordinal(np.float32(high)) - ordinal(np.float32(low)))
    assert count_between("fp32", low, high) == counted


@given(st.sampled_from(SHORT), st.data())
def test_neighbours_are_the_next_in_the_list(name, data):
    numbers = listed(name)
    at = data.draw(st.integers(0, len(numbers) - 1))
    below, above = neighbours(name, numbers[at])
    assert below == (numbers[at - 1] if at else None)
    assert above == (numbers[at + 1] if at + 1 < len(numbers) else None)


# ------------------------------------------------------------------------------------ landing


def expected(x: float, name: str, rounding: str) -> tuple[float, bool]:
    """By the list of all numbers: what a finite x inside the range becomes, and whether it is a
    tie."""
    numbers = listed(name)
    at = bisect_left(numbers, x)
    if numbers[at] == x:
        return x, False
    low, high = numbers[at - 1], numbers[at]
    middle = (Fraction(low) + Fraction(high)) / 2
    tie = Fraction(x) == middle
    if rounding == "toward_zero":
        return (low if x > 0 else high), tie
    if not tie:
        return (low if Fraction(x) < middle else high), False
    if rounding == "nearest_even":
        every = theirs(name).tolist()
        even = [v for v in (low, high) if every.index(v) % 2 == 0]
        return (high if name == "e8m0" else even[0]), True
    toward = low if x > 0 else high
    return (toward if rounding == "half_toward_zero" else low + high - toward), True


@given(near, st.sampled_from(sorted(set(SHORT) - {"nf4"})), st.sampled_from(ROUNDINGS),
       st.booleans())  # fmt: skip
@example(2.5, "fp4_e2m1", "nearest_even", False)
@example(0.25, "fp4_e2m1", "nearest_even", False)
@example(3.0, "e8m0", "nearest_even", False)
def test_inside_the_range_it_goes_where_the_list_says(x, name, rounding, saturate):
    numbers = listed(name)
    if not numbers[0] <= x <= numbers[-1]:
        return
    at = land(x, name, rounding=rounding, saturate=saturate)
    value, tie = expected(x, name, rounding)
    assert at.value == value
    assert at.tie == (tie and rounding != "toward_zero")
    assert at.value == theirs(name)[at.code]
    assert at.fate == ("exact" if value == x else "zero" if value == 0 else "rounded")
    f = FORMATS[name]
    normal = f.is_integer or value == 0 or abs(value) >= f.min_normal
    assert at.subnormal == (not normal)
    assert Fraction(at.error) == Fraction(value) - Fraction(x) or at.error == pytest.approx(
        float(Fraction(value) - Fraction(x)), rel=1e-15
    )
    if x:
        assert at.relative == pytest.approx(
            float(abs(Fraction(value) - Fraction(x)) / abs(Fraction(x))), rel=1e-12
        )


@given(finite, st.sampled_from(sorted(set(SHORT) - {"nf4"})))
def test_beyond_the_range(x, name):
    f, numbers = FORMATS[name], listed(name)
    if numbers[0] <= x <= numbers[-1]:
        return
    last = numbers[-1] if x > 0 else numbers[0]
    at = land(x, name)
    if not f.has_nan or (name == "e8m0" and 0 < x < numbers[0]):
        assert (at.fate, at.value) == ("saturated", last if name != "e8m0" else numbers[0])
        return
    if name == "e8m0":
        assert at.fate == "nan" or (x > 0 and (at.fate, at.value) == ("saturated", last))
        return
    reach = Fraction(numbers[-1]) + (Fraction(numbers[-1]) - Fraction(numbers[-2])) / 2
    stays = abs(Fraction(x)) < reach or (abs(Fraction(x)) == reach and name == "fp8_e4m3")
    if stays:
        assert (at.fate, at.value) == ("rounded", last)
    elif f.has_inf:
        assert (at.fate, at.value) == ("infinite", math.copysign(math.inf, x))
    else:
        assert at.fate == "nan" and math.isnan(at.value)
    saturated = land(x, name, saturate=True)
    assert (saturated.fate, saturated.value) == ("rounded" if stays else "saturated", last)


def test_the_ends_by_hand():
    """E4M3 at 464, FP16 at 65520, Inf and NaN, and what has no code."""
    fates = {
        (464.0, "fp8_e4m3"): ("rounded", 448.0, True),
        (65520.0, "fp16"): ("infinite", math.inf, True),
        (65519.0, "fp16"): ("rounded", 65504.0, False),
        (7.0, "fp4_e2m1"): ("saturated", 6.0, False),
        (-9.0, "int4"): ("saturated", -8.0, False),
        (math.inf, "fp16"): ("exact", math.inf, False),
        (math.inf, "int8"): ("saturated", 127.0, False),
    }
    for (x, name), wanted in fates.items():
        at = land(x, name)
        assert (at.fate, at.value, at.tie) == wanted, (x, name)
    assert land(math.inf, "fp8_e4m3").fate == land(-1.0, "e8m0").fate == "nan"
    assert land(math.nan, "fp16").fate == "exact"
    for name in ("fp4_e2m1", "int8", "nf4"):
        at = land(math.nan, name)
        assert (at.fate, at.code) == ("none", None) and math.isnan(at.value)
    assert land(65520.0, "fp16", saturate=True).fate == "saturated"
    assert land(70000.0, "fp16", rounding="toward_zero").fate == "saturated"


@given(st.one_of(st.floats(-2, 2), st.sampled_from([float(v) for v in np.float32(NF4)])))
def test_nf4_is_that_of_the_method(x):
    """A block whose absmax is 1 is its own normalized self."""
    block = torch.zeros(1, 64)
    block[0, 0], block[0, 1] = 1.0, max(-1.0, min(1.0, x))
    q = nf4(block)
    at = land(x, "nf4")
    assert at.code == int(q.codes[0, 1])
    assert at.value == float(q.dequantize()[0, 1])
    assert at.fate == ("saturated" if abs(np.float32(x)) > 1 else at.fate)


@given(st.integers(0, 2**32 - 1))
def test_every_float32_code_is_numpys(code):
    theirs = float(np.array([code], np.uint32).view(np.float32)[0])
    ours = value_of("fp32", code)
    assert (math.isnan(ours) and math.isnan(theirs)) or (
        ours == theirs and math.copysign(1, ours) == math.copysign(1, theirs)
    )
    sign, exponent, mantissa = parts_of("fp32", code)
    assert (sign << 31) + (exponent << 23) + mantissa == code


@given(st.floats())
def test_float32_is_numpys_conversion(x):
    with np.errstate(all="ignore"):
        theirs = float(np.float64(x).astype(np.float32))
    at = land(x, "fp32")
    assert at.value == theirs or (math.isnan(at.value) and math.isnan(theirs))


# ------------------------------------------------------------------------------------ typing


@given(st.floats())
def test_what_is_written_is_read_back(x):
    followed = read_number(Followed(x).text)
    assert followed.value == x or (math.isnan(x) and math.isnan(followed.value))
    assert math.isnan(x) or math.copysign(1, followed.value) == math.copysign(1, x)


@given(st.sampled_from([n for n, f in FORMATS.items() if f.has_nan and n in TITLES]), st.data())
def test_the_bits_of_a_nan_survive(name, data):
    codes = data.draw(st.sampled_from(list(FORMATS[name].nan_codes)))
    code = data.draw(st.integers(codes.start, codes.stop - 1))
    followed = read_number(Followed(value_of(name, code), (name, code)).text)
    at = followed.land(name)
    assert (at.code, at.fate) == (code, "exact")
    other = next(n for n in ("bf16", "fp16") if n != name)
    assert followed.land(other).code == FORMATS[other].nan_code


def test_how_people_write_numbers():
    for text, value in {
        "1/3": 1 / 3, " −3e-8 ": -3e-8, "2^-24": 2.0**-24, "-2^3": -8.0, "∞": math.inf,
        "-inf": -math.inf, "fp16:0x3c00": 1.0, "fp4_e2m1:0b0101": 3.0, "-1/8": -0.125, ".5": 0.5,
    }.items():  # fmt: skip
        assert read_number(text).value == value, text
    assert math.isnan(read_number("nan").value)


@pytest.mark.parametrize(
    "text",
    ["", "abc", "1e", "1/0", "1e400", "1e-400", "2^99999", "2^-99999", "fp17:3", "fp4_e2m1:16",
     "int8:-1", "1/2/3", "1e9999999999/3", "9" * 200, "fp16:", "nf4:99", "0x1p-3"],
)  # fmt: skip
def test_what_is_no_number_is_said(text):
    with pytest.raises(ValueError, match=r"is not a number here.*2\^-24.* or the bits of a format"):
        read_number(text)


def test_unknown_formats_are_said():
    with pytest.raises(ValueError, match="fp16"):
        land(1.0, "fp17")
    with pytest.raises(ValueError, match="0 to 15"):
        value_of("nf4", 16)
