"""Affine quantization against the real systems: every scale, zero point and code equal."""

import warnings

import numpy as np
import pytest
import torch
from inputs import adversarial

import qviz
from qviz.methods.affine import CONVENTIONS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = (2, 3, 4, 5, 6, 7, 8)


def trained_like(dtype: torch.dtype) -> torch.Tensor:
    """Random weights with heavy tails, and every kind of exact tie that the dtype can hold."""
    g = torch.Generator().manual_seed(11)
    w = torch.randn(96, 512, generator=g) * torch.rand(96, 1, generator=g) * 0.1
    w[::7, ::13] *= 8
    return w.to(dtype)


def cases(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    hard = {k: v.to(dtype) for k, v in adversarial().items()}
    finite = {k: v for k, v in hard.items() if torch.isfinite(v).all()}
    # one-sided and centred ranges whose scales are subnormal or underflow to zero
    w = adversarial()["random"] * float(torch.finfo(dtype).smallest_normal)
    vanishing = {
        f"{sign} normal·2^-{k}": (half * 2.0**-k).to(dtype)
        for k in (0, 3, 6)
        for sign, half in (("±", w), ("+", w.abs()), ("-", -w.abs()))
    }
    return {"trained": trained_like(dtype), **finite, **vanishing}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
def test_compressed_tensors(dtype, symmetric, bits, strategy):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    size = 32 if strategy == "group" else None
    for name, w in cases(dtype).items():
        ours = qviz.quantize(
            w, bits=bits, symmetric=symmetric, granularity=strategy, group_size=size
        )
        args = QuantizationArgs(
            num_bits=bits, symmetric=symmetric, strategy=strategy, group_size=size
        )
        groups = {
            "tensor": w.reshape(1, 1, -1),
            "channel": w.unsqueeze(1),
            "group": w.reshape(w.shape[0], -1, size or 1),
        }[strategy]
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        if strategy == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        theirs = quantize(w, scale, zero, args, dtype=torch.int8)
        assert torch.equal(ours.grid.scale.flatten(), scale.flatten()), name
        if not symmetric:
            assert torch.equal(ours.grid.zero_point.flatten(), zero.flatten()), name
        assert torch.equal(ours.codes, theirs), name
        back = dequantize(theirs, scale, zero, args)
        assert torch.equal(ours.dequantize(), back.reshape(w.shape)), name


def test_stored_scale_follows_compressed_tensors():
    """scale_dtype rounds the scale before the codes are found, as their `scale_dtype` does."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    w = trained_like(torch.float32)
    args = QuantizationArgs(num_bits=4, strategy="group", group_size=64, scale_dtype=torch.float16)
    groups = w.reshape(w.shape[0], -1, 64)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    ours = qviz.quantize(w, bits=4, group_size=64, scale_dtype=torch.float16)
    assert ours.grid.scale.dtype == torch.float16
    assert torch.equal(ours.grid.scale.float(), scale)
    assert torch.equal(ours.codes, quantize(w, scale, zero, args, dtype=torch.int8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("convention", "symmetric", "mapping"),
    [
        ("torchao", True, "SYMMETRIC"),
        ("torchao_no_clipping", True, "SYMMETRIC_NO_CLIPPING_ERR"),
        ("torchao", False, "ASYMMETRIC"),
    ],
)
def test_torchao(dtype, bits, convention, symmetric, mapping):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns about its own optional parts
        from torchao.quantization.quant_primitives import (
            MappingType,
            choose_qparams_affine,
            dequantize_affine,
            quantize_affine,
        )
    for name, w in cases(dtype).items():
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        block = (1, 32)
        ours = qviz.quantize(
            w, bits=bits, symmetric=symmetric, group_size=32, convention=convention
        )
        scale, zero = choose_qparams_affine(
            w, MappingType[mapping], block, torch.int8, low, high, zero_point_dtype=torch.int32
        )
        theirs = quantize_affine(w, block, scale, zero, torch.int8, low, high)
        assert torch.equal(ours.grid.scale.flatten(), scale.flatten()), name
        assert torch.equal(ours.codes, theirs), name
        back = dequantize_affine(
            theirs, block, scale, zero, torch.int8, low, high, output_dtype=dtype
        )
        assert torch.equal(ours.dequantize(), back), name


@pytest.mark.parametrize("bits", BITS)
def test_torch_fake_quantize(bits):
    """torch's own kernel, per channel, with the parameters of the torchao convention."""
    w = trained_like(torch.float32)
    ours = qviz.quantize(w, bits=bits, symmetric=False, granularity="channel", convention="torchao")
    theirs = torch.fake_quantize_per_channel_affine(
        w,
        ours.grid.scale.flatten(),
        ours.grid.zero_point.flatten(),
        0,
        ours.grid.qmin,
        ours.grid.qmax,
    )
    assert torch.equal(ours.dequantize(), theirs)


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


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("convention", "reference"), [("gptq", gptq_by_its_text), ("awq", awq_by_its_text)]
)
def test_group_by_group(bits, symmetric, convention, reference):
    for name, w in cases(torch.float32).items():
        ours = qviz.quantize(
            w, bits=bits, symmetric=symmetric, group_size=64, convention=convention
        )
        groups = w.reshape(w.shape[0], -1, 64).numpy()
        back = ours.dequantize().reshape(groups.shape).numpy()
        codes = ours.codes.reshape(groups.shape).numpy()
        for r in range(groups.shape[0]):
            for g in range(groups.shape[1]):
                s, z, q, x = reference(groups[r, g], bits, symmetric)
                assert ours.grid.scale[r, g].item() == s, name
                if ours.grid.zero_point is not None:
                    assert ours.grid.zero_point[r, g].item() == z, name
                np.testing.assert_array_equal(codes[r, g], q, err_msg=name)
                np.testing.assert_array_equal(back[r, g], x, err_msg=name)


def test_gptq_clips_a_group_without_negative_weights():
    """The reference keeps z in the middle although half of the codes are never used."""
    w = torch.linspace(0.01, 1, 64).reshape(1, 64)
    q = qviz.quantize(w, bits=4, group_size=64, convention="gptq")
    assert q.grid.zero_point.item() == 8
    assert q.info["clipped"] > 30
    assert q.dequantize().max() == pytest.approx(7 / 15, rel=1e-6)


@pytest.mark.parametrize("convention", ["quanto", "kivi"])
def test_offset_conventions_by_formula(convention):
    w = trained_like(torch.float32)
    q = qviz.quantize(w, bits=2, symmetric=False, group_size=32, convention=convention)
    x = w.reshape(96, -1, 32)
    lo, hi = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    s = (hi - lo) / 3
    codes = torch.round((x - lo) / s).clamp(0, 3)
    assert torch.equal(q.codes, codes.reshape(w.shape).to(torch.uint8))
    assert torch.equal(q.dequantize(), (codes * s + lo).reshape(w.shape))
    with pytest.raises(ValueError, match="constant"):
        qviz.quantize(
            torch.ones(2, 32), bits=2, symmetric=False, group_size=32, convention=convention
        )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_hqq_start_by_formula(bits):
    for name, w in cases(torch.float32).items():
        q = qviz.quantize(w, bits=bits, symmetric=False, group_size=64, convention="hqq")
        x = w.reshape(w.shape[0], -1, 64)
        lo, hi = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        inverse = torch.where(hi - lo <= 1e-4, 1.0, (2**bits - 1) / (hi - lo)).clamp(max=2e4)
        z = -lo * inverse
        z = torch.round(z) if bits == 4 else z
        codes = torch.round(x * inverse + z).clamp(0, 2**bits - 1)
        assert torch.equal(q.codes, codes.reshape(w.shape).to(torch.uint8)), name
        assert torch.equal(q.dequantize(), ((codes - z) * (1 / inverse)).reshape(w.shape)), name


def test_the_conventions_really_differ():
    """Pure convention effect on N(0, 1), group 128, 4 bits (numbers to 2 digits)."""
    w = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))

    def mse(**options):
        return (qviz.quantize(w, bits=4, **options).dequantize() - w).square().mean().item()

    assert mse(convention="absmax") == pytest.approx(0.01377, rel=0.01)
    assert mse(convention="compressed_tensors") == pytest.approx(0.01229, rel=0.01)
    assert mse(convention="compressed_tensors", symmetric=False) == pytest.approx(0.01012, rel=0.01)


def test_every_convention_names_its_source():
    assert all(c.source and (c.symmetric or c.asymmetric) for c in CONVENTIONS.values())
