"""Number formats: every code decoded, and what a million numbers of every kind become."""

import functools
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import torch

from exactness import Array, Tally, against, equal
from qviz.core.formats import FORMATS, ROUNDINGS, Format, decode, encode, values

# torch and ml_dtypes send numbers between 2^−127 and 1.5·2^−127 to 2^−126, the further of the two;
# we go to the nearer one.
E8M0_NOTE = "E8M0 without (1, 1.5)·2^−127, where ml_dtypes rounds away from the nearest"
ML_DTYPES = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
TORCH = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "fp8_e5m2": (torch.float8_e5m2, False),
    "fp8_e4m3": (torch.float8_e4m3fn, True),  # saturates, and Inf too
}
INTEGERS = ("int8", "int4", "int3", "int2")
NARROW = [f for f in FORMATS.values() if f.bits <= 16 and f.signed]
Pairs = Iterator[tuple[Array, Array]]


@functools.cache
def numbers(name: str) -> torch.Tensor:
    """At least a million float32: any bits, around the format's range, and around every tie."""
    fmt = FORMATS[name]
    g = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**31), 2**31, (450_000,), generator=g, dtype=torch.int64)
    spread = torch.rand(560_000, generator=g, dtype=torch.float64)
    low = np.log2(fmt.min_subnormal or fmt.min_normal) - 3
    scaled = torch.exp2(low + spread * (np.log2(fmt.max_finite) + 3 - low))
    scaled[::2] *= -1
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -torch.nan, 1e-45])
    x = [bits.to(torch.int32).view(torch.float32), scaled.float(), special, ties(fmt)]
    x = torch.cat(x)
    if name == "e8m0":
        x = x[(x <= 2.0**-127) | (x >= 1.5 * 2.0**-127)]
    return x if fmt.has_nan else x[~torch.isnan(x)]


def ties(fmt: Format) -> torch.Tensor:
    """Every number of the format, every middle between two, and their float32 neighbours."""
    exact = values(fmt).values.double() if fmt.bits <= 16 else decode(every_exponent(fmt), fmt)
    exact = exact.double()
    middle = (exact[1:] + exact[:-1]) / 2
    beyond = exact[-1] + (exact[-1] - exact[-2]) / 2  # where rounding first leaves the format
    x = torch.cat([exact, middle, beyond[None], -beyond[None]]).float()
    ends = torch.tensor(torch.inf)
    return torch.cat([x, torch.nextafter(x, ends), torch.nextafter(x, -ends)])


def every_exponent(fmt: Format) -> torch.Tensor:
    """Codes of formats too wide to list: all exponents, mantissas at both ends and some between."""
    m = fmt.mantissa_bits
    g = torch.Generator().manual_seed(4)
    inner = torch.randint(0, 1 << m, (200,), generator=g)
    mantissas = torch.cat([torch.arange(20), (1 << m) - 1 - torch.arange(20), inner]).sort().values
    exponents = torch.arange((1 << fmt.exponent_bits) - 1)
    return ((exponents[:, None] << m) + mantissas.unique()).flatten()


def codes_of(array: np.ndarray) -> torch.Tensor:
    wide = array.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.itemsize])
    return torch.from_numpy(wide.astype(np.int64))


def one_nan(codes: torch.Tensor, fmt: Format) -> torch.Tensor:
    """Codes in which every NaN is the same; libraries differ in its sign and payload."""
    codes = codes.to(torch.int64)
    for codes_of_nan in fmt.nan_codes:
        inside = (codes >= codes_of_nan.start) & (codes < codes_of_nan.stop)
        codes = torch.where(inside, fmt.nan_code, codes)
    return codes


def encoded(x: torch.Tensor, name: str, theirs: torch.Tensor, **options) -> tuple[Array, Array]:
    fmt = FORMATS[name]
    ours = encode(x, fmt, **options)
    return one_nan(ours, fmt), one_nan(theirs, fmt)


@against("ml_dtypes", method="formats", what="every code decoded: equal")
def decode_every_code() -> Tally:
    def one(name: str, dtype: type) -> tuple[Array, Array]:
        codes = torch.arange(1 << FORMATS[name].bits)
        narrow = codes.numpy().astype(np.uint16 if FORMATS[name].bits > 8 else np.uint8)
        return decode(codes, name), narrow.view(dtype).astype(np.float64)

    def integers() -> Pairs:
        for name, dtype in (("int4", ml_dtypes.int4), ("int2", ml_dtypes.int2), ("int8", np.int8)):
            codes = np.arange(1 << FORMATS[name].bits).astype(np.uint8)
            yield decode(codes, name), codes.view(dtype).astype(np.float64)

    floats = equal(one(name, dtype) for name, dtype in ML_DTYPES.items())
    return floats + equal(integers())


@against("ml_dtypes", method="formats", what="a million float32 each, saturate=False: equal codes")
def encode_a_million() -> Tally:
    def one(name: str, dtype: type) -> tuple[Array, Array]:
        x = numbers(name)
        with np.errstate(all="ignore"):
            theirs = codes_of(x.numpy().astype(dtype))
        return encoded(x, name, theirs)

    return equal((one(name, dtype) for name, dtype in ML_DTYPES.items()), E8M0_NOTE)


@against("ml_dtypes", method="formats", what="every BF16 and FP16 number in ≤ 8 bits: equal codes")
def encode_every_half() -> Tally:
    """Inputs of 16 bits are not converted by the caller."""

    def one(source: str, name: str) -> tuple[Array, Array]:
        every = np.arange(1 << 16).astype(np.uint16).view(ML_DTYPES[source])
        x = torch.from_numpy(every.view(np.uint16).view(np.int16))
        x = x.view(torch.bfloat16 if source == "bf16" else torch.float16)
        keep = torch.ones_like(x, dtype=torch.bool)
        if name == "e8m0":
            keep = ~((x > 2.0**-127) & (x < 1.5 * 2.0**-127))
        elif not FORMATS[name].has_nan:
            keep = ~torch.isnan(x)
        every, x = every[keep.numpy()], x[keep]
        with np.errstate(all="ignore"):
            theirs = codes_of(every.astype(np.float32).astype(ML_DTYPES[name]))
        return encoded(x, name, theirs)

    small = [name for name in ML_DTYPES if FORMATS[name].bits <= 8]
    pairs = (one(source, name) for source in ("bf16", "fp16") for name in small)
    return equal(pairs, E8M0_NOTE)


@against("torch", method="formats", what="a million float32 each, as torch saturates: equal codes")
def encode_as_torch() -> Tally:
    def one(name: str, dtype: torch.dtype, saturate: bool) -> tuple[Array, Array]:
        x = numbers(name)
        theirs = x.to(dtype).view(torch.int16 if dtype.itemsize == 2 else torch.uint8)
        theirs = theirs.to(torch.int64) & (256**dtype.itemsize - 1)
        return encoded(x, name, theirs, saturate=saturate)

    return equal(one(name, *how) for name, how in TORCH.items())


@against("torchao", method="formats", what="FP4 and FP6 of a million float32: equal codes")
def encode_as_torchao() -> Tally:
    from torchao.prototype.custom_fp_utils import _f32_to_floatx_unpacked

    def one(name: str) -> tuple[Array, Array]:
        x, fmt = numbers(name), FORMATS[name]
        theirs = _f32_to_floatx_unpacked(x.clone(), fmt.exponent_bits, fmt.mantissa_bits)
        return encode(x, fmt), theirs

    return equal(one(name) for name in ("fp4_e2m1", "fp6_e3m2", "fp6_e2m3"))


@against("bits of float32", method="formats", what="TF32, both roundings, a million: equal codes")
def encode_tf32() -> Tally:
    """Half away from zero: add half of the 13 dropped bits, then drop them. Truncation: drop."""
    x = numbers("tf32")
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    nan = torch.isnan(x)
    away = torch.where(nan, bits, bits + 0x1000) >> 13
    return equal(
        [
            encoded(x[~nan], "tf32", away[~nan], rounding="half_away"),
            encoded(x[~nan], "tf32", bits[~nan] >> 13, rounding="toward_zero"),
            (decode(encode(x, "tf32", rounding="half_away"), "tf32")[nan], x[nan]),
        ]
    )


@against("numpy", method="formats", what="float64 to FP32 and FP16, never by float32: equal codes")
def encode_from_float64() -> Tally:
    """Near every tie of the target a float64 has room for what float32 would round away."""

    def one(name: str, dtype: type) -> tuple[Array, Array]:
        base = numbers(name).double()[::2]
        ends = torch.tensor(torch.inf, dtype=torch.float64)
        x = torch.cat([base, torch.nextafter(base, ends), torch.nextafter(base, -ends)])
        if name == "fp32":  # ties of float32 itself: float64 between two neighbours
            up = torch.nextafter(base.float(), torch.tensor(torch.inf)).double()
            middle = base + (up - base) / 2
            x = torch.cat([x, middle, torch.nextafter(middle, ends)])
        with np.errstate(all="ignore"):
            theirs = codes_of(x.numpy().astype(dtype))
        return encoded(x, name, theirs)

    return equal([one("fp32", np.float32), one("fp16", np.float16)])


@against("nearest of all values", method="formats", what="float64, all roundings: equal values")
def encode_by_search() -> Tally:
    """Every format's own list of values, searched: the definition of each rounding."""

    def one(fmt: Format, rounding: str) -> tuple[Array, Array]:
        x = numbers(fmt.name).double()[::16]
        x = torch.cat([x, ties(fmt).double() * (1 + 2.0**-45), ties(fmt).double()])
        x = x[~torch.isnan(x)]
        ours = decode(encode(x, fmt, rounding=rounding, saturate=True), fmt)
        return ours, search(x, fmt, rounding)

    return equal(one(fmt, rounding) for fmt in NARROW for rounding in ROUNDINGS)


def search(x: torch.Tensor, fmt: Format, rounding: str) -> torch.Tensor:
    """The value that each x rounds to, by looking at its two neighbours."""
    codes, magnitudes = (part[-(fmt.max_code + 1) :] for part in values(fmt))  # those from +0 on
    magnitudes = magnitudes.double()
    top = -fmt.min_finite if fmt.is_integer else fmt.max_finite
    if fmt.is_integer:  # one more on the negative side
        magnitudes = torch.cat([magnitudes, magnitudes[-1:] + 1])
        codes = torch.cat([codes, codes[-1:] + 1])
    a = x.abs().clamp(max=top)
    above = torch.searchsorted(magnitudes, a).clamp(min=1, max=len(magnitudes) - 1)
    low, high = magnitudes[above - 1], magnitudes[above]
    middle = low + (high - low) / 2
    even_is_high = codes[above] % 2 == 0
    up = {
        "nearest_even": (a > middle) | ((a == middle) & even_is_high),
        "half_away": a >= middle,
        "half_toward_zero": a > middle,
        "toward_zero": a >= high,
    }[rounding]
    nearest = torch.copysign(torch.where(up, high, low), x)
    return nearest.clamp(fmt.min_finite, fmt.max_finite)
