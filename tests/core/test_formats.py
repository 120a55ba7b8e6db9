"""Number formats: their published constants, round trips, fields, errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qviz.core.formats import (
    CHUNK,
    FORMATS,
    KINDS,
    ROUNDINGS,
    cast,
    decode,
    encode,
    fields,
    values,
)

FLOATS = [f for f in FORMATS.values() if not f.is_integer]
SMALL = [f for f in FORMATS.values() if f.bits <= 16]

# From IEEE 754, OCP 8-bit Floating Point and OCP Microscaling; not computed by the code under test.
PUBLISHED = {
    "fp32": (32, 127, 3.4028234663852886e38, 2**-126, 2**-149),
    "tf32": (19, 127, (2 - 2**-10) * 2.0**127, 2**-126, 2**-136),
    "bf16": (16, 127, 3.3895313892515355e38, 2**-126, 2**-133),
    "fp16": (16, 15, 65504, 2**-14, 2**-24),
    "fp8_e4m3": (8, 8, 448, 2**-6, 2**-9),
    "fp8_e5m2": (8, 15, 57344, 2**-14, 2**-16),
    "fp6_e3m2": (6, 4, 28, 0.25, 0.0625),
    "fp6_e2m3": (6, 2, 7.5, 1, 0.125),
    "fp4_e2m1": (4, 2, 6, 1, 0.5),
    "e8m0": (8, 127, 2.0**127, 2**-127, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_constants_are_the_published_ones(name):
    f = FORMATS[name]
    assert (f.bits, f.emax, f.max_finite, f.min_normal, f.min_subnormal) == PUBLISHED[name]


def test_special_codes():
    assert (FORMATS["fp16"].inf_code, FORMATS["bf16"].inf_code) == (0x7C00, 0x7F80)
    assert [FORMATS[n].nan_code for n in ("fp32", "fp8_e4m3", "e8m0")] == [0x7FC00000, 0x7F, 0xFF]
    assert FORMATS["fp8_e5m2"].nan_codes == (range(0x7D, 0x80), range(0xFD, 0x100))
    assert FORMATS["e8m0"].nan_codes == (range(0xFF, 0x100),)
    assert FORMATS["fp4_e2m1"].nan_codes == ()
    assert (FORMATS["int4"].min_finite, FORMATS["int4"].max_finite) == (-8, 7)


@pytest.mark.parametrize("fmt", SMALL, ids=str)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_number_of_a_format_is_itself(fmt, rounding):
    listed = values(fmt)
    if fmt.name == "e8m0":
        assert len(listed.codes) == 255
    assert torch.equal(encode(listed.values, fmt, rounding=rounding).long(), listed.codes)
    assert (listed.values.diff() >= 0).all()
    assert torch.signbit(listed.values).sum() == (len(listed.codes) // 2 if fmt.signed else 0)


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_fields_are_the_bits(fmt):
    """Put together again by the formula of the module's first sentence."""
    codes = torch.arange(1 << fmt.bits)
    parts = fields(codes, fmt)
    if fmt.is_integer:
        assert torch.equal(decode(codes, fmt), (parts.mantissa - parts.sign * fmt.sign_bit).float())
        return
    width = fmt.exponent_bits + fmt.mantissa_bits
    assert torch.equal(
        (parts.sign << width) + (parts.exponent << fmt.mantissa_bits) + parts.mantissa, codes
    )
    decoded = decode(codes, fmt)
    for code in range(0, 1 << fmt.bits, 1 if fmt.bits <= 8 else 37):
        s, e, m = (int(p[code]) for p in parts[:3])
        kind = KINDS[int(parts.kind[code])]
        by_hand = {
            "zero": 0.0,
            "subnormal": 2.0 ** (1 - fmt.bias) * m / 2**fmt.mantissa_bits,
            "normal": 2.0 ** (e - fmt.bias) * (1 + m / 2**fmt.mantissa_bits),
            "infinite": math.inf,
            "nan": math.nan,
        }[kind]
        assert float(decoded[code]) == pytest.approx((-1) ** s * by_hand, abs=0, rel=0, nan_ok=True)


@given(st.floats(width=64), st.sampled_from([f.name for f in FLOATS if f.has_nan and f.signed]))
def test_saturation_is_the_only_difference(x, name):
    f = FORMATS[name]
    plain, saturated = float(cast(x, f)), float(cast(x, f, saturate=True))
    if math.isnan(x):
        assert math.isnan(plain) and math.isnan(saturated)
    elif math.isfinite(plain):
        assert plain == saturated
        assert abs(plain - x) <= max(abs(x) * 2.0 ** -(f.mantissa_bits + 1), f.min_subnormal / 2)
    else:
        assert saturated == math.copysign(f.max_finite, x)
        assert math.isinf(plain) == f.has_inf


def test_where_formats_end():
    """The numbers of the reference: E4M3 at 464, E5M2 at 61440, FP16 at 65520."""
    assert cast([464.0, 464.00001], "fp8_e4m3").tolist()[0] == 448
    assert math.isnan(cast(464.00001, "fp8_e4m3"))
    assert cast([61439.9, 61440.0], "fp8_e5m2").tolist() == [57344, math.inf]
    assert cast([65519.9, 65520.0, -65520.0], "fp16").tolist() == [65504, math.inf, -math.inf]
    assert cast([70000.0, math.inf], "fp16", rounding="toward_zero").tolist() == [65504, math.inf]
    assert cast([-math.inf, math.inf, 100.0, -9.0], "int4").tolist() == [-8, 7, 7, -8]


def test_a_float64_is_rounded_once():
    """Through float32 each of these would first become a tie, and then go to the even side."""
    above = 1 + 2.0**-8 + 2.0**-40
    assert torch.tensor(above, dtype=torch.float64).to(torch.bfloat16) == 1.0
    assert cast(above, "bf16") == 1 + 2.0**-7
    assert cast(1.0625 + 2.0**-40, "fp8_e4m3") == 1.125
    assert cast(1.25 + 2.0**-40, "fp4_e2m1") == 1.5


def test_half_is_not_reached_from_below():
    """⌊a + ½⌋ would make 1 of the float just below ½."""
    below = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0))
    for x in (below, below.double(), torch.tensor(0.5 - 2.0**-54, dtype=torch.float64)):
        assert encode(x, "int8", rounding="half_away") == 0
        assert encode(x / 2, "fp4_e2m1", rounding="half_away") == 0


def test_e8m0_has_no_zero_and_no_sign():
    assert encode([1.0, 0.75, 1.5, 3.0, 2.0**-127], "e8m0").tolist() == [127, 127, 128, 129, 0]
    assert encode([0.0, -1.0, 2.0**127.6], "e8m0").tolist() == [255, 255, 255]
    assert encode([0.0, -1.0, 2.0**127.6, 1e-45], "e8m0", saturate=True).tolist() == [
        0,
        255,
        254,
        0,
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inputs_of_every_kind_agree(dtype):
    x = torch.randn(6, 10).to(dtype)
    want = encode(x.double(), "fp8_e4m3")
    before = x.clone()
    assert torch.equal(encode(x, "fp8_e4m3"), want)
    assert torch.equal(x, before)
    assert torch.equal(encode(x.t(), "fp8_e4m3"), want.t())
    if dtype != torch.bfloat16:
        array = x.numpy()
        array.setflags(write=False)
        assert torch.equal(encode(array, "fp8_e4m3"), want)
    assert encode(1, "fp4_e2m1") == 2
    assert decode(np.array([2, 15], np.uint8), "fp4_e2m1").tolist() == [1, -6]


@pytest.mark.parametrize("size", [0, 1, 256, CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_sizes_around_a_piece(size):
    """Beside torch's own conversion, there and back, in the order of a view."""
    g = torch.Generator().manual_seed(size)
    x = (torch.randn(3, size, generator=g) * 30).T
    theirs = x.to(torch.float8_e5m2)
    codes = encode(x, "fp8_e5m2")
    assert codes.shape == x.shape
    assert torch.equal(codes, theirs.view(torch.uint8))
    assert torch.equal(decode(codes, "fp8_e5m2"), theirs.float())
    assert torch.equal(cast(x, "fp16"), x.half().float())
    assert torch.equal(cast(x, "int8"), x.round().clamp(-128, 127))


def test_a_nan_in_a_later_piece_is_refused():
    x = torch.zeros(3 * CHUNK)
    x[-2:] = torch.nan
    with pytest.raises(ValueError, match="2 of the numbers are NaN"):
        encode(x, "fp4_e2m1")


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: encode(1.0, "fp8_e4m4"), ValueError, "mean fp8_e4m3"),
        (lambda: encode(1.0, "fp16", rounding="even"), ValueError, "nearest_even"),
        (lambda: encode(math.nan, "fp4_e2m1"), ValueError, "nan_to_num"),
        (lambda: encode(math.nan, "int8"), ValueError, "int8 has no NaN"),
        (lambda: encode(torch.arange(3), "fp16"), TypeError, "float()"),
        (lambda: encode(np.arange(3), "fp16"), TypeError, "floating-point"),
        (lambda: encode("1", "fp16"), TypeError, "floating-point"),
        (lambda: decode(16, "fp4_e2m1"), ValueError, "from 0 to 15, got 16"),
        (lambda: decode(-1, "int4"), ValueError, "unsigned"),
        (lambda: decode(1.0, "int4"), TypeError, "encode first"),
        (lambda: values("tf32"), ValueError, "too many"),
    ],
)
def test_bad_input_names_the_fix(call, error, says):
    with pytest.raises(error, match=says):
        call()
