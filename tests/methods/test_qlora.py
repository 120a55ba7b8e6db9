"""QLoRA: the base stays as it was quantized, the branch is all that trains."""

import pytest
import torch

import qviz
from qviz.core.ledger import LedgerItem
from qviz.core.tensor import QuantizedTensor
from qviz.methods.qlora import EVENTS, qlora

TWO_BITS = {"base": "affine", "base_options": {"bits": 2, "group_size": 32}}
NAMES = sorted(n for n, m in qviz.methods.registry.methods().items() if m.kind == "weight")


def trained(layer, steps=3):
    x, y = torch.randn(20, layer.shape[1]), torch.randn(20, layer.shape[0])
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
    return layer


def test_before_training_it_is_the_quantized_layer():
    w, x = torch.randn(16, 64), torch.randn(2, 5, 64)
    base = qviz.quantize(w, "affine", bits=2, group_size=32)
    layer = qlora(w, **TWO_BITS)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, base.dequantize()))
    assert not layer.B.any()
    assert layer.A.any()


def test_forward_is_the_reconstruction_and_the_branch():
    w, x = torch.randn(16, 64, dtype=torch.float64), torch.randn(7, 64, dtype=torch.float64)
    layer = trained(qlora(w.float(), rank=4, alpha=12, **TWO_BITS)).double()
    layer.bias = torch.nn.Parameter(torch.randn(16, dtype=torch.float64))
    back = layer.base.dequantize().double()
    by_hand = x @ back.T + 12 / 4 * (x @ layer.A.T) @ layer.B.T + layer.bias
    assert torch.allclose(layer(x), by_hand, rtol=0, atol=1e-12)
    assert torch.allclose(x @ layer.merged().T + layer.bias, by_hand, rtol=0, atol=1e-12)


def test_gradients_reach_the_branch_and_the_inputs_alone():
    layer = trained(qlora(torch.randn(16, 64), **TWO_BITS))
    assert {name for name, _ in layer.named_parameters()} == {"A", "B"}
    assert set(layer.state_dict()) == {"A", "B"}
    layer.zero_grad()
    x = torch.randn(3, 64, requires_grad=True)
    upstream = torch.randn(3, 16)
    layer(x).backward(upstream)
    merged = layer.merged()
    assert torch.allclose(x.grad, upstream @ merged, atol=1e-4)
    by_hand = 16 / 8 * upstream.T @ (x.detach() @ layer.A.T)
    assert torch.allclose(layer.B.grad, by_hand, atol=1e-4)
    by_hand = 16 / 8 * layer.B.T @ upstream.T @ x.detach()
    assert torch.allclose(layer.A.grad, by_hand, atol=1e-4)


def test_training_leaves_the_base_as_it_was():
    w = torch.randn(16, 64)
    layer = qlora(w, **TWO_BITS)
    codes, scale = layer.base.codes.clone(), layer.base.grid.scale.clone()
    B = layer.B.clone()
    trained(layer)
    assert torch.equal(layer.base.codes, codes)
    assert torch.equal(layer.base.grid.scale, scale)
    assert layer.quantized() is layer.base
    assert not torch.equal(layer.B, B)


@pytest.mark.parametrize("base", NAMES)
def test_any_weight_method_is_a_base(base):
    w, x = torch.randn(32, 256) * 0.1, torch.randn(3, 256)
    if qviz.methods.registry.get(base).needs:
        with pytest.raises(ValueError, match=rf"{base} is not one \(needs calibration.*first"):
            qlora(w, base=base)
        return
    layer = qlora(w, base=base, base_options={})
    assert isinstance(layer.base, QuantizedTensor)
    assert torch.equal(layer(x), x @ layer.base.dequantize().to(x.dtype).T)


def test_a_quantized_tensor_is_a_base():
    w = torch.randn(16, 64)
    q = qviz.quantize(w, "affine", bits=3, group_size=16)
    assert qlora(w, base=q).base is q
    with pytest.raises(ValueError, match=r"the base is \(16, 64\), the weight \(16, 32\)"):
        qlora(w[:, :32], base=q)
    with pytest.raises(ValueError, match="takes no base_options"):
        qlora(w, base=q, base_options={"bits": 2})


@pytest.mark.skipif("nf4" not in NAMES, reason="nf4 is not in the registry")
def test_the_default_is_nf4_with_quantized_constants():
    w = torch.randn(128, 256)
    both = qlora(w).base, qlora(w, double_quant=False).base
    assert both[0].bits_per_weight < 4.2 < both[1].bits_per_weight == 4.5
    assert torch.equal(both[0].codes, qviz.quantize(w, "nf4").codes)


def test_starts_are_drawn_by_seed():
    w = torch.randn(16, 64)
    one, same, other = (qlora(w, seed=s, **TWO_BITS).A.detach() for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    bound = 64**-0.5
    assert one.abs().max() <= bound
    assert one.abs().max() > 0.95 * bound
    assert float(one.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_the_bill_counts_the_adapters():
    layer = qlora(torch.randn(16, 64), rank=4, **TWO_BITS)
    items = layer.ledger.items
    assert items[:-2] == layer.base.ledger.items
    assert items[-2:] == (LedgerItem("A", 4 * 64, 32), LedgerItem("B", 16 * 4, 32))
    assert layer.bits_per_weight == layer.base.bits_per_weight + 4 * (64 + 16) * 32 / (16 * 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_keep_the_dtype_of_the_inputs(dtype):
    w, x = torch.randn(16, 64).to(dtype), torch.randn(3, 64).to(dtype)
    layer = trained(qlora(w.float(), **TWO_BITS))
    y = layer(x)
    assert y.dtype == dtype
    assert layer.A.dtype == torch.float32
    assert torch.allclose(y.float(), layer(x.float()), atol=0.3, rtol=0.05)
    layer.bias = torch.nn.Parameter(torch.ones(16))
    assert layer(x).dtype == dtype


def test_every_event_of_its_table_is_shown():
    w, x = torch.randn(16, 64), torch.randn(3, 64)
    trace = qviz.Trace()
    layer = qlora(w, emit=trace, **TWO_BITS)
    y = layer(x, emit=trace)
    assert torch.equal(y, qlora(w, **TWO_BITS)(x))
    assert [e.name for e in trace] == [spec.name for spec in EVENTS]
    for event, spec in zip(trace, EVENTS, strict=True):
        assert set(event.tensors) == set(spec.tensors)
    assert torch.equal(trace[1]["base"] + trace[1]["branch"], y)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 0}, "rank must be from 1 to 16"),
        ({"rank": 17}, "rank must be from 1 to 16"),
        ({"base": "nf5"}, "unknown method 'nf5'"),
        ({"base": "qat"}, "qat is not one"),
        ({"base_options": {"group_size": 24}}, "does not divide"),
        ({"alpha": float("nan")}, "alpha must be finite"),
    ],
)
def test_what_is_asked_is_checked(options, says):
    with pytest.raises(ValueError, match=says):
        qlora(torch.randn(16, 64), **{"base": "affine", **options})


@pytest.mark.parametrize(
    ("options", "says"),
    [({"alpha": "16"}, "alpha must be a number"), ({"base_options": [4]}, "must map names")],
)
def test_what_is_of_no_use_is_refused(options, says):
    with pytest.raises(TypeError, match=says):
        qlora(torch.randn(16, 64), **{**TWO_BITS, **options})
