"""NF4 and FP4: invariants, the tables' construction, inputs of every kind, errors, trace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qviz
from qviz.methods.nf4 import EVENTS, FORMATS, NF4, dynamic_levels, normal_levels

OWN = torch.linspace(-1, 1, 16)
matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(1, 40)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)
options = st.fixed_dictionaries(
    {
        "format": st.sampled_from(["nf4", "fp4"]),
        "group_size": st.sampled_from([32, 64, 128]),
        "double_quant": st.booleans(),
        "second_rounding": st.sampled_from(["table", "nearest"]),
        "levels": st.sampled_from([None, OWN]),
    }
)


@settings(max_examples=150)
@given(x=matrices, chosen=options)
def test_invariants(x, chosen):
    before = x.copy()
    q = qviz.quantize(x, "nf4", **chosen)
    assert np.array_equal(x, before)
    assert q.codes.dtype == torch.uint8
    assert int(q.codes.max()) <= 15
    packed = q.pack()
    assert sum(len(v) for v in packed.values()) * 8 == q.ledger.total_bits
    assert len(packed["codes"]) == -(-x.size // 2)
    # Element 2j stands in the high half of byte j, and the packed bytes give every code back.
    halves = np.stack([packed["codes"] >> 4, packed["codes"] & 15], axis=1).flatten()
    assert np.array_equal(halves[: x.size], q.codes.numpy().flatten())
    # No level of the table is nearer than the one that was taken, whatever the block.
    absmax = np.abs(np.pad(x.flatten(), (0, -x.size % chosen["group_size"])))
    absmax = absmax.reshape(-1, chosen["group_size"]).max(-1)
    blocks = np.arange(x.size) // chosen["group_size"]
    scaled = x.flatten() / np.maximum(absmax[blocks], 1e-38)
    table = q.grid.values.numpy()
    distance = np.abs(scaled[:, None] - table)
    taken = distance[np.arange(x.size), q.codes.numpy().flatten()]
    assert (taken <= distance.min(-1) + 1e-6).all()
    if not chosen["double_quant"]:
        assert np.allclose(q.grid.scale.numpy().flatten(), absmax, atol=1e-37)
        largest = np.abs(scaled) == 1  # every table ends at ±1, so these are kept exactly
        back = q.dequantize().numpy().flatten()
        assert np.array_equal(back[largest], x.flatten()[largest])


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_trace_changes_nothing_and_is_complete(form, double_quant):
    w = torch.randn(20, 70)
    chosen = {"format": form, "double_quant": double_quant, "group_size": 32}
    plain = qviz.quantize(w, "nf4", **chosen)
    trace = qviz.Trace()
    traced = qviz.quantize(w, "nf4", emit=trace, **chosen)
    assert torch.equal(plain.codes, traced.codes)
    assert torch.equal(plain.grid.scale, traced.grid.scale)
    expected = [e for e in EVENTS if double_quant or not e.name.startswith("nf4.second")]
    assert [e.name for e in trace] == [spec.name for spec in expected]
    for event, spec in zip(trace, expected, strict=True):
        assert set(event.tensors) == set(spec.tensors)
    assert torch.equal(trace.named("nf4.codes")[0]["codes"], traced.codes)
    # what was shown explains what was stored
    shown = trace.named("nf4.levels")[0]
    assert torch.equal(traced.grid.values[shown["codes"].int()], shown["levels"])
    scaled = trace.named("nf4.normalized")[0]["normalized"]
    ranks = torch.bucketize(scaled, shown["midpoints"])
    assert torch.equal(shown["codes"][ranks], traced.codes)
    if double_quant:
        assert torch.equal(trace.named("nf4.second.absmax")[0]["absmax"], traced.grid.scale)


def test_the_levels_are_normal_quantiles():
    derived = normal_levels()
    assert torch.allclose(derived.levels, torch.tensor(NF4), rtol=0, atol=3e-7)
    assert len(derived.levels) == 16
    assert int((derived.levels < 0).sum()) == 7
    assert derived.levels[7] == 0
    assert derived.levels.abs().max() == 1
    # equal steps of probability within each half
    steps = derived.probability.diff()
    assert torch.allclose(steps[:7], steps[0].expand(7), atol=1e-6)
    assert torch.allclose(steps[7:], steps[-1].expand(8), atol=1e-6)
    # the share of the distribution below each quantile, from the error function
    below = (1 + torch.special.erf(derived.quantile / 2**0.5)) / 2
    assert torch.allclose(below, derived.probability, atol=1e-12)
    # the last two are 0.5 and 1 in float32
    for offset in (0.5, 1.0, 2.0, 1e300, float("nan"), 0.5 + 1e-9, 1 - 1e-12):
        with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
            normal_levels(offset)
    with pytest.raises(TypeError, match="offset must be a number"):
        normal_levels("0.97")


def test_the_dynamic_levels_are_what_the_numbers_say():
    levels = dynamic_levels()
    assert len(levels) == 256
    assert (levels.diff() > 0).all()
    assert levels.max() == 1
    assert levels.min() == pytest.approx(-0.99296875, abs=1e-7)
    assert int((levels == 0).sum()) == 1
    for decade in range(7):
        inside = (levels > 10.0 ** (decade - 7) * 1.0001) & (levels < 10.0 ** (decade - 6) * 0.9999)
        assert int(inside.sum()) == 2**decade


def test_costs_what_the_field_says():
    w = torch.randn(256, 1024)
    assert qviz.quantize(w, "nf4").bits_per_weight == 4.5
    double = qviz.quantize(w, "nf4", double_quant=True)
    assert double.bits_per_weight == 4 + 8 / 64 + 32 / (64 * 256) + 32 / w.numel()
    items = {i.name: (i.count, i.bits) for i in double.ledger.items}
    assert items == {
        "codes": (262144, 4),
        "absmax codes": (4096, 8),
        "second absmax": (16, 32),
        "absmax offset": (1, 32),
    }
    own = qviz.quantize(w, "nf4", levels=OWN)
    assert own.bits_per_weight == 4.5 + 16 * 32 / w.numel()


def test_blocks_of_zeros():
    w = torch.zeros(3, 64)
    w[1] = torch.randn(64)
    q = qviz.quantize(w, "nf4")
    assert q.info["vanishing_blocks"] == 2
    assert (q.codes[0] == 7).all()
    assert q.pack()["codes"][:32].tolist() == [0x77] * 32
    assert torch.equal(q.dequantize()[[0, 2]], torch.zeros(2, 64))
    double = qviz.quantize(torch.zeros(3, 64), "nf4", double_quant=True)
    assert torch.equal(double.dequantize(), torch.zeros(3, 64))


def test_equal_blocks_survive_double_quantization():
    """All absmax equal: nothing is left after the mean, and 0/0 must not become NaN."""
    w = torch.randn(1, 64).sign().repeat(8, 1)
    for rounding in ("table", "nearest"):
        q = qviz.quantize(w, "nf4", double_quant=True, second_rounding=rounding)
        assert torch.equal(q.dequantize(), w)


def test_the_table_of_bins_misses_the_nearest_level_only_near_zero():
    w = torch.randn(2048, 256, generator=torch.Generator().manual_seed(1))
    both = {}
    for rounding in ("table", "nearest"):
        trace = qviz.Trace("nf4.second.codes")
        q = qviz.quantize(w, "nf4", double_quant=True, second_rounding=rounding, emit=trace)
        both[rounding] = trace[0]["codes"]
        # both stay within half of the widest gap between two levels
        error = (q.grid.scale - qviz.quantize(w, "nf4").grid.scale).abs()
        assert error.max() <= trace[0]["absmax"].max() * 0.0071
    position = trace[0]["position"]
    differ = both["table"] != both["nearest"]
    assert 0 < differ.float().mean() < 0.01
    assert (position[differ].abs() < 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inputs_of_every_kind_agree(dtype):
    w = torch.randn(8, 96, dtype=torch.float64).to(dtype)
    want = qviz.quantize(w, "nf4", double_quant=True)
    assert want.dequantize().dtype == dtype
    spread = torch.empty(16, 192, dtype=dtype)[::2, ::2].copy_(w)
    others = [spread, w.t().contiguous().t(), torch.nn.Parameter(w), w.float()]
    if dtype != torch.bfloat16:  # NumPy has none
        array = w.numpy()
        array.setflags(write=False)
        others += [array, np.flip(np.flip(array).copy())]
    for other in others:
        q = qviz.quantize(other, "nf4", double_quant=True)
        assert torch.equal(q.codes, want.codes)
        assert torch.equal(q.grid.scale, want.grid.scale)


def test_own_levels_are_copied_and_may_be_any_sequence():
    w = torch.randn(4, 64)
    levels = OWN.clone()
    q = qviz.quantize(w, "nf4", levels=levels)
    before = q.dequantize()
    levels.zero_()
    assert torch.equal(q.dequantize(), before)
    assert torch.equal(qviz.quantize(w, "nf4", levels=OWN.tolist()).codes, q.codes)
    assert torch.equal(qviz.quantize(w, "nf4", levels=NF4).codes, qviz.quantize(w, "nf4").codes)


@pytest.mark.parametrize("form", FORMATS)
def test_a_window_and_levels_agree_with_the_whole(form):
    w = torch.randn(12, 70)
    q = qviz.quantize(w, "nf4", format=form)
    whole = q.dequantize()
    assert torch.equal(q.window(slice(2, 5), slice(40, 70)), whole[2:5, 40:])
    levels = q.levels(3, 69)
    assert len(levels) == (16 if form == "nf4" else 15)  # FP4 has two zeros
    assert whole[3, 69] in levels


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"group_size": 48}, ValueError, "32, 64, 128"),
        ({"group_size": 16}, ValueError, "32, 64, 128 … 4096.*got 16"),
        ({"group_size": 64.0}, TypeError, "integer"),
        ({"format": "nf3"}, ValueError, "mean nf4"),
        ({"second_rounding": "nearst"}, ValueError, "mean nearest"),
        ({"levels": [0.0, 1.0]}, ValueError, "16 ascending numbers"),
        ({"levels": OWN.flip(0)}, ValueError, "sort them"),
        ({"levels": OWN * 2}, ValueError, "divide them by the largest"),
        ({"levels": torch.full((16,), torch.nan)}, ValueError, "16 ascending"),
        ({"groupsize": 64}, TypeError, "group_size"),
    ],
)
def test_bad_options_name_the_fix(given, error, says):
    with pytest.raises(error, match=says):
        qviz.quantize(torch.randn(4, 64), "nf4", **given)


def test_bad_weights_are_refused():
    w = torch.randn(4, 64)
    w[2, 7] = torch.nan
    with pytest.raises(ValueError, match=r"\[2, 7\].*finite"):
        qviz.quantize(w, "nf4")
    with pytest.raises(ValueError, match="beyond float32"):
        qviz.quantize(torch.full((2, 64), 1e300, dtype=torch.float64), "nf4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_double_quantization_that_overflows_is_refused(dtype):
    """The mean of large magnitudes is Inf in float32; one that is rounded up leaves float16."""
    w = torch.full((40, 64), 0.88 * torch.finfo(dtype).max)
    w[4], w[7] = torch.finfo(dtype).max, 0
    w = w.to(dtype)
    assert torch.isfinite(qviz.quantize(w, "nf4").dequantize()).all()
    with pytest.raises(ValueError, match="omit double_quant"):
        qviz.quantize(w, "nf4", double_quant=True)
