"""Affine quantization: every scale, zero point, code and reconstruction."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from inputs import adversarial

import qviz
from exactness import Array, Tally, against, equal
from qviz.core.tensor import QuantizedTensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = (2, 3, 4, 5, 6, 7, 8)
Pairs = Iterator[tuple[Array, Array]]


def trained_like(dtype: torch.dtype) -> torch.Tensor:
    """Random weights with heavy tails, and every kind of exact tie that the dtype can hold."""
    g = torch.Generator().manual_seed(11)
    w = torch.randn(96, 512, generator=g) * torch.rand(96, 1, generator=g) * 0.1
    w[::7, ::13] *= 8
    return w.to(dtype)


def cases(dtype: torch.dtype) -> list[torch.Tensor]:
    hard = [v.to(dtype) for v in adversarial().values()]
    # one-sided and centred ranges whose scales are subnormal or underflow to zero
    w = adversarial()["random"] * float(torch.finfo(dtype).smallest_normal)
    vanishing = [(half * 2.0**-k).to(dtype) for k in (0, 3, 6) for half in (w, w.abs(), -w.abs())]
    return [trained_like(dtype), *(v for v in hard if torch.isfinite(v).all()), *vanishing]


def parts(q: QuantizedTensor, scale: Array, zero: Array | None, codes: Array, back: Array) -> Pairs:
    """Ours beside theirs, flattened: scale, zero point where there is one, codes, values."""
    yield q.grid.scale.flatten(), scale.flatten()
    if q.grid.zero_point is not None and zero is not None:
        yield q.grid.zero_point.flatten(), zero.flatten()
    yield q.codes.flatten(), codes.flatten()
    yield q.dequantize().flatten(), back.flatten()


@against("compressed-tensors", method="affine", what="scales, zero points, codes, values: equal")
def compressed_tensors() -> Tally:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    def one(w: torch.Tensor, bits: int, symmetric: bool, kind: str) -> Pairs:
        size = 32 if kind == "group" else None
        ours = qviz.quantize(w, bits=bits, symmetric=symmetric, granularity=kind, group_size=size)
        args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy=kind, group_size=size)
        groups = {
            "tensor": w.reshape(1, 1, -1),
            "channel": w.unsqueeze(1),
            "group": w.reshape(w.shape[0], -1, size or 1),
        }[kind]
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        if kind == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        codes = quantize(w, scale, zero, args, dtype=torch.int8)
        return parts(ours, scale, zero, codes, dequantize(codes, scale, zero, args))

    settings = itertools.product(DTYPES, BITS, (True, False), ("tensor", "channel", "group"))
    return equal(
        pair for dtype, *options in settings for w in cases(dtype) for pair in one(w, *options)
    )


@against("compressed-tensors", method="affine", what="scales stored in float16, codes: equal")
def compressed_tensors_stored_scale() -> Tally:
    """scale_dtype rounds the scale before the codes are found, as theirs does."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    w = trained_like(torch.float32)
    args = QuantizationArgs(num_bits=4, strategy="group", group_size=64, scale_dtype=torch.float16)
    groups = w.reshape(w.shape[0], -1, 64)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    ours = qviz.quantize(w, bits=4, group_size=64, scale_dtype=torch.float16)
    assert ours.grid.scale.dtype == torch.float16
    codes = quantize(w, scale, zero, args, dtype=torch.int8)
    return equal([(ours.grid.scale, scale), (ours.codes, codes)])


@against("torchao", method="affine", what="scales, zero points, codes, values: equal")
def torchao() -> Tally:
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    mappings = (
        ("torchao", True, MappingType.SYMMETRIC),
        ("torchao_no_clipping", True, MappingType.SYMMETRIC_NO_CLIPPING_ERR),
        ("torchao", False, MappingType.ASYMMETRIC),
    )

    def one(w: torch.Tensor, bits: int, convention: str, symmetric: bool, mapping: object) -> Pairs:
        ours = qviz.quantize(
            w, bits=bits, symmetric=symmetric, group_size=32, convention=convention
        )
        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        scale, zero = choose_qparams_affine(
            w, mapping, (1, 32), torch.int8, *ends, zero_point_dtype=torch.int32
        )
        codes = quantize_affine(w, (1, 32), scale, zero, torch.int8, *ends)
        back = dequantize_affine(
            codes, (1, 32), scale, zero, torch.int8, *ends, output_dtype=w.dtype
        )
        return parts(ours, scale, None if symmetric else zero, codes, back)

    settings = itertools.product(DTYPES, BITS, mappings)
    return equal(
        pair
        for dtype, bits, mapping in settings
        for w in cases(dtype)
        for pair in one(w, bits, *mapping)
    )


@against("torch", method="affine", what="fake_quantize_per_channel_affine: equal values")
def torch_fake_quantize() -> Tally:
    """torch's own kernel, per channel, with the parameters of the torchao convention."""

    def one(w: torch.Tensor, bits: int) -> tuple[Array, Array]:
        ours = qviz.quantize(
            w, bits=bits, symmetric=False, granularity="channel", convention="torchao"
        )
        scale, zero = ours.grid.scale.flatten(), ours.grid.zero_point.flatten()
        ends = (ours.grid.qmin, ours.grid.qmax)
        return ours.dequantize(), torch.fake_quantize_per_channel_affine(w, scale, zero, 0, *ends)

    return equal(one(trained_like(torch.float32), bits) for bits in BITS)


Reference = Callable[
    [np.ndarray, int, bool], tuple[np.floating, np.floating, np.ndarray, np.ndarray]
]


def gptq_by_its_text(x, bits, symmetric):
    """GPTQ's find_params and quantize, one group at a time in Python floats rounded to float32."""
    f = np.float32
    n = 2**bits - 1
    lo, hi = min(f(0), x.min()), max(f(0), x.max())
    if symmetric:
        hi = max(abs(lo), hi)
        lo = -hi if lo < 0 else lo
    if lo == 0 and hi == 0:
        lo, hi = f(-1), f(1)
    s = f((hi - lo) / f(n))
    z = f(2 ** (bits - 1)) if symmetric else np.rint(-lo / s)
    q = np.clip(np.rint(x / s) + z, 0, n)
    return s, z, q, f(s) * (q - z).astype(np.float32)


def awq_by_its_text(x, bits, symmetric):
    f = np.float32
    if symmetric:
        half = 2 ** (bits - 1)
        s = f(max(np.abs(x).max(), f(1e-5)) / f(half - 1))
        q = np.clip(np.rint(x / s), -half, half - 1)
        return s, f(0), q, q.astype(np.float32) * s
    n = 2**bits - 1
    s = f(max(f(x.max() - x.min()), f(1e-5)) / f(n))
    z = np.clip(-np.rint(x.min() / s), 0, n)
    q = np.clip(np.rint(x / s) + z, 0, n)
    return s, z, q, (q - z).astype(np.float32) * s


def group_by_group(convention: str, reference: Reference) -> Tally:
    def one(w: torch.Tensor, bits: int, symmetric: bool) -> Pairs:
        ours = qviz.quantize(
            w, bits=bits, symmetric=symmetric, group_size=64, convention=convention
        )
        groups = w.reshape(-1, 64).numpy()
        scale, zero, codes, back = zip(
            *(reference(x, bits, symmetric) for x in groups), strict=True
        )
        return parts(
            ours, np.array(scale), np.array(zero), np.concatenate(codes), np.concatenate(back)
        )

    settings = itertools.product(cases(torch.float32), BITS, (True, False))
    return equal(pair for setting in settings for pair in one(*setting))


@against("formula, group by group", method="affine", what="GPTQ's parameters, codes, values: equal")
def gptq_formula() -> Tally:
    return group_by_group("gptq", gptq_by_its_text)


@against("formula, group by group", method="affine", what="AWQ's parameters, codes, values: equal")
def awq_formula() -> Tally:
    return group_by_group("awq", awq_by_its_text)


@against("formula", method="affine", what="quanto's and KIVI's codes and values: equal")
def offset_formula() -> Tally:
    def one(bits: int, convention: str) -> Pairs:
        w = trained_like(torch.float32)
        q = qviz.quantize(w, bits=bits, symmetric=False, group_size=32, convention=convention)
        x = w.reshape(96, -1, 32)
        lo, hi = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        s = (hi - lo) / (2**bits - 1)
        codes = torch.round((x - lo) / s).clamp(0, 2**bits - 1)
        return parts(q, s, None, codes, codes * s + lo)

    settings = itertools.product(BITS, ("quanto", "kivi"))
    return equal(pair for setting in settings for pair in one(*setting))


@against("formula", method="affine", what="HQQ's start, codes and values: equal")
def hqq_start_formula() -> Tally:
    def one(w: torch.Tensor, bits: int) -> Pairs:
        q = qviz.quantize(w, bits=bits, symmetric=False, group_size=64, convention="hqq")
        x = w.reshape(w.shape[0], -1, 64)
        lo, hi = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        inverse = torch.where(hi - lo <= 1e-4, 1.0, (2**bits - 1) / (hi - lo)).clamp(max=2e4)
        z = -lo * inverse
        z = torch.round(z) if bits == 4 else z
        codes = torch.round(x * inverse + z).clamp(0, 2**bits - 1)
        return parts(q, 1 / inverse, z, codes, (codes - z) * (1 / inverse))

    settings = itertools.product(cases(torch.float32), (2, 3, 4, 8))
    return equal(pair for setting in settings for pair in one(*setting))
