"""LLM.int8(): the arithmetic by hand, outliers, inputs of every kind, errors, trace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qviz
from qviz.methods.llm_int8 import EVENTS, Int8Linear

HALVES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def layer(rows: int = 12, columns: int = 40, **options) -> Int8Linear:
    g = torch.Generator().manual_seed(rows * columns)
    return qviz.quantize(torch.randn(rows, columns, generator=g), "llm_int8", **options)


def with_outliers(tokens: int = 6, columns: int = 40) -> torch.Tensor:
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).clamp(-3, 3)
    x[1, 5], x[4, 5], x[2, 33] = 20.0, -7.0, 6.0
    return x


@settings(max_examples=60)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    tokens=st.integers(1, 6),
    threshold=st.sampled_from([0.0, 0.5, 2.0, 6.0]),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    dtype=st.sampled_from(HALVES),
)
def test_invariants(rows, columns, tokens, threshold, size, dtype):
    g = torch.Generator().manual_seed(rows + 10 * columns + 1000 * tokens)
    w = torch.randn(rows, columns, generator=g)
    x = (torch.randn(tokens, columns, generator=g) * size).to(dtype)
    before = w.clone(), x.clone()
    linear = qviz.quantize(w, "llm_int8", threshold=threshold)
    trace = qviz.Trace()
    y = linear(x, emit=trace)
    assert torch.equal(w, before[0])
    assert torch.equal(x, before[1])
    assert y.shape == (tokens, rows)
    assert y.dtype == dtype
    assert int(linear.weight.codes.abs().max()) == 127  # every row uses the whole range
    assert sum(len(v) for v in linear.pack().values()) * 8 == linear.ledger.total_bits
    assert linear.bits_per_weight == pytest.approx(8 + 32 / columns)

    outliers, activation, _, side, _ = trace
    mask = x.half().abs() >= threshold if threshold else torch.zeros(x.shape).bool()
    assert torch.equal(outliers["mask"], mask)
    columns_out = mask.any(0)
    assert torch.equal(outliers["columns"], columns_out.nonzero().flatten())
    assert (activation["codes"][:, columns_out] == 0).all()
    assert side["inputs"].shape == (tokens, int(columns_out.sum()))
    # What a column that is no outlier stands for is within half a step, and a little float error.
    step = activation["absmax"] / 127
    error = (activation["codes"] * step - x.half().float())[:, ~columns_out].abs()
    assert (error <= step / 2 * 1.0001).all()
    # The output is the product of the two reconstructions, the outlier columns as they came.
    inputs = torch.where(columns_out, x.double(), (activation["codes"] * step).double())
    want = inputs @ linear.dequantize().double().T
    unit = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, 2**-20)
    reach = inputs.abs() @ linear.dequantize().double().abs().T
    # each of its parts is rounded once, and the CPU's constant is 1.8e-5 too large
    assert ((y.double() - want).abs() <= reach * (unit + 3e-5) + 1e-6).all()


def test_by_hand():
    w = torch.tensor([[127.0, -64.0, 1.0], [0.0, 0.0, 0.0]])
    x = torch.tensor([[2.54, -1.27, 0.0], [0.5, 0.25, 100.0]])
    trace = qviz.Trace()
    linear = qviz.quantize(w, "llm_int8", path="cuda", emit=trace)
    y = linear(x, emit=trace)
    assert linear.weight.codes.tolist() == [[127, -64, 1], [0, 0, 0]]
    assert linear.info["zero_rows"] == 1
    shown = {event.name: event for event in trace}
    assert shown["llm_int8.outliers"]["columns"].tolist() == [2]
    assert shown["llm_int8.activation"]["codes"].tolist() == [[127, -64, 0], [127, 64, 0]]
    # −1.27 is half of 2.54 in float16 too: code −63.5 goes to the even −64, 63.5 to 64
    product = [[127 * 127 + 64 * 64, 0], [127 * 127 - 64 * 64, 0]]
    assert shown["llm_int8.product"]["product"].tolist() == product
    assert shown["llm_int8.side"]["inputs"].tolist() == [[0.0], [100.0]]
    assert shown["llm_int8.side"]["weight"].tolist() == [[1.0], [0.0]]
    scale = float(x[0, 0].half()) * 127 / 127**2
    assert y[0, 0].item() == pytest.approx(product[0][0] * scale, rel=1e-3)
    assert y[1, 0].item() == pytest.approx(product[1][0] * 0.5 / 127 + 100, rel=1e-3)
    assert y[:, 1].tolist() == [0, 0]


def test_the_paths_differ_by_their_constant():
    x = with_outliers().clamp(-3, 3)
    cpu, cuda = (layer(path=path)(x) for path in ("cpu", "cuda"))
    ratio = (cpu / cuda).double()
    # the CUDA path rounds to float16, which is coarser than the constants' difference
    assert ratio.median() == pytest.approx(6.200124 / 6.200012, abs=2e-5)


def test_a_threshold_of_zero_takes_no_column_out():
    x = with_outliers() * 10
    trace = qviz.Trace()
    y = layer(threshold=0)(x, emit=trace)
    assert not trace.named("*.outliers")[0]["mask"].any()
    part = trace.named("*.product")[0]["part"]
    assert torch.equal(part, y)


def test_every_column_may_be_an_outlier():
    linear, x = layer(), with_outliers() * 100
    x[x.abs() < 6] = 6.0
    trace = qviz.Trace()
    y = linear(x, emit=trace)
    assert (trace.named("*.activation")[0]["codes"] == 0).all()
    assert (trace.named("*.activation")[0]["absmax"] == 0).all()
    assert torch.allclose(y, x @ linear.dequantize().T, rtol=1e-5, atol=1e-3)


def test_outlier_columns_are_those_of_the_whole_batch():
    """A token's output depends on its neighbours: they can make a column an outlier's."""
    linear, x = layer(), with_outliers()
    alone = torch.cat([linear(token[None]) for token in x])
    assert not torch.equal(alone, linear(x))
    calm = x.clamp(-3, 3)
    assert torch.equal(torch.cat([linear(token[None]) for token in calm]), linear(calm))


def test_outliers_in_the_side_path_save_the_others():
    x = with_outliers(16)
    x[:, 5] *= 40
    linear = layer(64, 40)
    exact = x.double() @ linear.dequantize().double().T
    split = (linear(x) - exact).square().mean()
    together = (layer(64, 40, threshold=0)(x) - exact).square().mean()
    assert split < together / 20


@pytest.mark.parametrize("dtype", HALVES)
def test_inputs_of_every_kind_agree(dtype):
    linear = layer()
    x = with_outliers().to(dtype)
    want = linear(x)
    assert want.dtype == dtype
    spread = torch.empty(12, 80, dtype=dtype)[::2, ::2].copy_(x)
    for other in (spread, x.t().contiguous().t(), torch.nn.Parameter(x)):
        assert torch.equal(linear(other), want)
    assert torch.equal(linear(x.reshape(3, 2, 40)).reshape(6, 12), want)
    assert linear(x[0]).shape == (12,)
    w = torch.randn(12, 40, generator=torch.Generator().manual_seed(480))
    if dtype != torch.bfloat16:  # NumPy has none
        assert torch.equal(linear(x.numpy()), want)
        codes = qviz.quantize(w.to(dtype).numpy(), "llm_int8").weight.codes
        assert torch.equal(codes, linear.weight.codes)


def test_trace_changes_nothing_and_is_complete():
    w, x = torch.randn(12, 40), with_outliers()
    plain = qviz.quantize(w, "llm_int8")
    trace = qviz.Trace()
    traced = qviz.quantize(w, "llm_int8", emit=trace)
    assert torch.equal(plain.weight.codes, traced.weight.codes)
    assert torch.equal(plain(x), traced(x, emit=trace))
    assert [e.name for e in trace] == [spec.name for spec in EVENTS]
    for event, spec in zip(trace, EVENTS, strict=True):
        assert set(event.tensors) == set(spec.tensors)
    assert torch.equal(trace.named("*.output")[0]["output"], plain(x))


def test_a_window_and_levels_agree_with_the_whole():
    q = layer().weight
    whole = q.dequantize()
    assert torch.equal(q.window(slice(2, 5), slice(30, 40)), whole[2:5, 30:])
    levels = q.levels(3, 7)
    assert len(levels) == 255
    assert whole[3, 7] in levels
    assert torch.allclose(levels.diff(), q.grid.scale[3], rtol=1e-3)


@pytest.mark.parametrize(
    ("weight", "options", "error", "says"),
    [
        (torch.randn(4, 8), {"threshold": -1.0}, ValueError, "no outliers"),
        (torch.randn(4, 8), {"threshold": float("nan")}, ValueError, "no outliers"),
        (torch.randn(4, 8), {"threshold": "6"}, TypeError, "number"),
        (torch.randn(4, 8), {"path": "gpu"}, ValueError, '"cpu" or "cuda"'),
        (torch.randn(4, 8), {"treshold": 6.0}, TypeError, "mean threshold"),
        (torch.randn(4, 8) * 1e6, {}, ValueError, "float16.*65504"),
        (torch.full((4, 8), float("nan")), {}, ValueError, r"\[0, 0\]"),
        (torch.randn(8), {}, ValueError, "reshape"),
    ],
)
def test_bad_weights_and_options_name_the_fix(weight, options, error, says):
    with pytest.raises(error, match=says):
        qviz.quantize(weight, "llm_int8", **options)


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (torch.randn(3, 39), ValueError, r"takes 40 inputs .* \(3, 39\)"),
        (torch.tensor(1.0), ValueError, "takes 40 inputs"),
        (torch.full((3, 40), float("inf")), ValueError, "inputs has.*finite"),
        (torch.full((3, 40), 1e6), ValueError, "float16.*65504"),
        (torch.ones(3, 40, dtype=torch.int8), TypeError, "float"),
        (np.ones((3, 40), np.int32), TypeError, "astype"),
        ([1.0] * 40, TypeError, "tensor or an array"),
        (torch.empty(0, 40), ValueError, "at least one token"),
    ],
)
def test_bad_inputs_name_the_fix(x, error, says):
    with pytest.raises(error, match=says):
        layer()(x)
