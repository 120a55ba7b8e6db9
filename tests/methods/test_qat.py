"""Quantization-aware training: what is trained, what its gradients are, what remains."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import adversarial

import qviz
from qviz.core.grids import Affine, Codebook
from qviz.methods.qat import EVENTS, QatLinear, fake_quantize_ste, qat

MODES = [(levels, init) for levels in ("integer", "half") for init in ("mse", "absmax", "lsq")]


@settings(max_examples=60)
@given(
    bits=st.integers(2, 8),
    mode=st.sampled_from(MODES),
    step=st.sampled_from(["learned", "fixed"]),
    size=st.sampled_from([4, 16, None]),
    scale_dtype=st.sampled_from([None, torch.float16, torch.bfloat16]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_what_remains_is_what_was_multiplied_with(bits, mode, step, size, scale_dtype, dtype, seed):
    """Codes and steps give the forward pass's weight bit for bit, also after training."""
    levels, init = mode
    w = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)
    layer = qat(w, bits=bits, group_size=size, step=step, levels=levels, init=init,
                scale_dtype=scale_dtype)  # fmt: skip
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(2):
        q, used = layer.quantized(), layer.fake_quantized()
        assert torch.equal(q.dequantize(), used)
        assert sum(map(len, q.pack().values())) * 8 == q.ledger.total_bits
        assert len(torch.unique(q.codes)) <= 2**bits
        used.square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(("levels", "init"), MODES)
@pytest.mark.parametrize("name", adversarial())
def test_strange_weights(levels, init, name):
    w = adversarial()[name]
    layer = qat(w, bits=3, group_size=32, levels=levels, init=init)
    used = layer.fake_quantized()
    assert torch.isfinite(used).all()
    assert torch.equal(layer.quantized().dequantize(), used)
    used.sum().backward()
    assert torch.isfinite(layer.weight.grad).all()
    assert torch.isfinite(layer.step.grad).all()
    zero = (w.reshape(4, -1, 32) == 0).all(-1)
    assert layer.info["zero_groups"] == int(zero.sum())
    assert (used.reshape(4, -1, 32)[zero].abs() < 1e-30).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_fixed_steps_start_from_symmetric_rounding_to_nearest(bits):
    w = torch.randn(16, 64)
    start = qat(w, bits=bits, group_size=16, step="fixed", levels="integer", init="absmax")
    nearest = qviz.quantize(w, "affine", bits=bits, group_size=16)
    assert torch.equal(start.quantized().codes, nearest.codes)
    assert torch.equal(start.quantized().grid.scale, nearest.grid.scale)


@pytest.mark.parametrize("levels", ["integer", "half"])
def test_the_searched_step_beats_the_formulas(levels):
    w = torch.randn(32, 128)

    def error(init):
        back = qat(w, bits=2, levels=levels, init=init).quantized().dequantize()
        return (w - back).reshape(32, 1, 128).square().sum(-1)

    assert (error("mse") <= error("absmax") * 1.0001).all()
    assert error("mse").sum() < 0.9 * min(error("absmax").sum(), error("lsq").sum())


def test_levels_at_two_bits():
    w = torch.randn(4, 64)
    half = qat(w, bits=2, group_size=64).quantized()
    assert isinstance(half.grid, Codebook)
    assert torch.allclose(half.levels(0, 0) / half.grid.scale[0, 0],
                          torch.tensor([-1.5, -0.5, 0.5, 1.5]))  # fmt: skip
    whole = qat(w, bits=2, group_size=64, levels="integer").quantized()
    assert isinstance(whole.grid, Affine)
    assert (whole.grid.qmin, whole.grid.qmax) == (-2, 1)
    assert qat(w, bits=3, group_size=64).levels == "integer"
    assert half.bits_per_weight == whole.bits_per_weight == 2 + 32 / 64


def test_the_gradient_by_hand():
    """Steps of 1, codes −2 … 1: two weights clipped, two inside, one on the end of the range."""
    w = torch.tensor([[-2.7, 0.4, 0.6, 1.2, 1.0]], requires_grad=True)
    s = torch.ones(1, 1, requires_grad=True)
    y = fake_quantize_ste(w, s, -2, 1, grad_scale=0.5)
    assert torch.equal(y, torch.tensor([[-2.0, 0.0, 1.0, 1.0, 1.0]]))
    y.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert torch.equal(w.grad, torch.tensor([[0.0, 2.0, 3.0, 0.0, 0.0]]))
    by_hand = 1 * -2 + 2 * (0 - 0.4) + 3 * (1 - 0.6) + 4 * 1 + 5 * 1
    assert float(s.grad) == pytest.approx(0.5 * by_hand)


def test_steps_share_their_gradient_by_the_papers_factor():
    w = torch.randn(4, 64)
    upstream = torch.randn(4, 64)
    layer = qat(w, bits=3, group_size=16)
    layer.fake_quantized().backward(upstream)
    scale = layer.step.detach().unsqueeze(-1).requires_grad_()
    fake_quantize_ste(w.reshape(4, 4, 16), scale, -4, 3).backward(upstream.reshape(4, 4, 16))
    assert torch.allclose(layer.step.grad, scale.grad.squeeze(-1) / math.sqrt(16 * 3))


def test_a_step_below_zero_is_mended_and_can_return():
    layer = qat(torch.randn(2, 16), bits=3, group_size=16)
    with torch.no_grad():
        layer.step[0] = -0.5
    assert torch.isfinite(layer.fake_quantized()).all()
    assert (layer.quantized().grid.scale > 0).all()
    layer.fake_quantized().sum().backward()
    assert float(layer.step.grad[0]) != 0


def test_what_trains():
    learned, fixed = (
        qat(torch.randn(4, 32), group_size=16),
        qat(torch.randn(4, 32), group_size=16, step="fixed"),
    )
    assert {n for n, _ in learned.named_parameters()} == {"weight", "step"}
    assert {n for n, _ in fixed.named_parameters()} == {"weight"}
    assert set(fixed.state_dict()) == {"weight", "step"}
    before = fixed.step.clone()
    fixed(torch.randn(3, 32)).sum().backward()
    assert fixed.weight.grad is not None
    assert torch.equal(fixed.step, before)


def test_the_layer_multiplies_with_its_rounded_weight():
    w, x = torch.randn(8, 32), torch.randn(2, 5, 32)
    layer = qat(w, bits=2, group_size=16)
    assert isinstance(layer, QatLinear)
    assert torch.equal(layer(x), x @ layer.quantized().dequantize().T)
    layer.bias = torch.nn.Parameter(torch.randn(8))
    frozen = layer.frozen()
    assert type(frozen) is torch.nn.Linear
    assert not any(p.requires_grad for p in frozen.parameters())
    assert torch.equal(frozen(x), layer(x))


def test_master_weights_are_copies_in_enough_precision():
    for dtype, master in [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]:
        w = torch.randn(4, 32).to(dtype)
        layer = qat(w, group_size=16)
        assert layer.weight.dtype == layer.step.dtype == master
        x = torch.randn(3, 32).to(dtype)
        y, frozen = layer(x), layer.frozen()
        assert y.dtype == frozen.weight.dtype == dtype
        assert torch.equal(frozen(x), y)
        layer.weight.data.zero_()
        assert w.abs().max() > 0


def test_every_event_of_its_table_is_shown():
    w, x = torch.randn(4, 32), torch.randn(3, 32)
    trace = qviz.Trace()
    for emit in (None, trace):
        layer = qat(w, bits=3, group_size=16, emit=emit)
        y = layer(x, emit=emit)
        y.square().sum().backward()
        if emit is None:
            plain, plain_gradients = y, (layer.weight.grad, layer.step.grad)
    assert torch.equal(y, plain)
    assert torch.equal(layer.weight.grad, plain_gradients[0])
    assert torch.equal(layer.step.grad, plain_gradients[1])
    assert [e.name for e in trace] == [spec.name for spec in EVENTS]
    for event, spec in zip(trace, EVENTS, strict=True):
        assert set(event.tensors) == set(spec.tensors)
    assert torch.equal(trace[-1]["weight"].reshape(4, 32), layer.weight.grad)
    fixed = qat(w, group_size=16, step="fixed")
    trace = qviz.Trace("qat.gradient")
    fixed(x, emit=trace).sum().backward()
    assert not trace[0]["step"].any()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"bits": 1}, ValueError, "bits must be from 2 to 8"),
        ({"group_size": 24}, ValueError, "does not divide the 64 columns"),
        ({"step": "learn"}, ValueError, "unknown step 'learn'. Did you mean learned"),
        ({"levels": "halves"}, ValueError, "Did you mean half"),
        ({"levels": ["half"]}, ValueError, "unknown levels"),
        ({"init": "max"}, ValueError, "Did you mean absmax"),
        ({"scale_dtype": torch.int8}, TypeError, "scale_dtype must be None or one of"),
    ],
)
def test_what_is_asked_is_checked(options, error, says):
    with pytest.raises(error, match=says):
        qat(torch.randn(4, 64), **{"group_size": 32, **options})


@pytest.mark.parametrize("factor", [1e-7, 1e7])
def test_steps_that_their_dtype_cannot_hold_are_refused(factor):
    with pytest.raises(ValueError, match=r"group \[0, 0\].*float16.*scale_dtype"):
        qat(torch.randn(4, 64) * factor, group_size=32, scale_dtype=torch.float16)


def test_a_step_that_overflows_is_refused():
    with pytest.raises(ValueError, match=r"group \[0, 0\] is inf"):
        qat(torch.full((2, 64), 3e38), group_size=64, init="lsq")


@pytest.mark.parametrize("bits", [2, 3])
def test_rows_of_zeros_stay_finite_where_master_and_steps_have_different_ranges(bits):
    """A step of 0 is stored as the smallest that both dtypes hold."""
    w = torch.randn(4, 32)
    w[1] = 0
    wide = qat(w, bits=bits, group_size=16, scale_dtype=torch.float64)
    narrow = qat(w, bits=bits, group_size=16).half()
    for layer in (wide, narrow):
        used = layer.fake_quantized()
        assert torch.isfinite(used).all()
        assert used[1].abs().max() < 1e-3
        assert torch.equal(layer.quantized().dequantize(), used)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize(("part", "value"), [("weight", "nan"), ("step", "nan"), ("step", "1e6")])
def test_what_codes_cannot_hold_is_refused_after_training(bits, part, value):
    layer = qat(torch.randn(4, 32), bits=bits, group_size=16, scale_dtype=torch.float16)
    with torch.no_grad():
        getattr(layer, part)[1, 0] = float(value)
    with pytest.raises(ValueError, match=rf"trained {part}.*not finite.*\[1, 0\]"):
        layer.quantized()


def test_a_bias_of_another_dtype_takes_that_of_the_inputs():
    layer, x = qat(torch.randn(4, 32), group_size=16), torch.randn(3, 32).bfloat16()
    plain = layer(x)
    layer.bias = torch.nn.Parameter(torch.ones(4))
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y, plain + 1, atol=0.1)


GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "paretoq.npz")


@pytest.mark.parametrize(
    ("theirs", "bits", "shift"),
    [
        ("LsqBinaryTernaryExtension", 3, 0.0),
        ("LsqBinaryTernaryExtension", 4, 0.0),
        ("StretchedElasticQuant", 2, 0.5),
        ("StretchedElasticQuant", 3, 0.5),
    ],
)
def test_values_and_gradients_are_paretoqs(theirs, bits, shift):
    """For 2 and 3 bits its levels are ours; its stretched range ends 1 % early, which is left out,
    and its gradient is by the range, 2^(b−1) steps."""
    w, upstream, steps = (
        torch.from_numpy(GOLDEN[part]) for part in ("weight", "upstream", "steps")
    )
    value, by_weight, by_size = (
        torch.from_numpy(GOLDEN[f"{theirs}.{bits}.{part}"])
        for part in ("value", "by_weight", "by_size")
    )
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    ours, step = w.clone().requires_grad_(), steps.clone().requires_grad_()
    factor = 1 / math.sqrt(w.numel() * qmax)
    y = fake_quantize_ste(ours, step, qmin, qmax, shift=shift, grad_scale=factor)
    y.backward(upstream)
    assert torch.equal(y, value)
    position = (w / steps).abs()
    early = (position >= 0.99 * -qmin) & (position <= -qmin) if shift else torch.zeros(1).bool()
    assert early.sum() <= 0.03 * w.numel()
    assert torch.equal(ours.grad.masked_fill(early, 0), by_weight.masked_fill(early, 0))
    rows = ~early.any(-1).expand(len(w))
    assert rows.sum() >= 2
    wanted = by_size * (2 ** (bits - 1) if shift else 1)
    assert torch.allclose(step.grad[rows], wanted[rows], rtol=1e-5, atol=1e-6)
