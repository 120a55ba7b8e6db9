"""HQQ: golden vectors of hqq, what its steps promise, its options and its trace."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inputs import adversarial

import qviz
from qviz.methods.hqq import BITS, EVENTS

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "hqq.npz")
NAMES = sorted({key.split("/")[0] for key in GOLDEN.files} - {"origin"})
DTYPE = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("name", NAMES)
def test_golden(name, bits):
    w = torch.from_numpy(GOLDEN[f"{name}/weight"]).to(DTYPE.get(name, torch.float32))
    ours = qviz.quantize(w, "hqq", bits=bits, scale_dtype=None)
    assert np.array_equal(ours.codes.reshape(-1, 64), GOLDEN[f"{name}/{bits}/codes"])
    assert np.array_equal(ours.grid.scale.reshape(-1, 1), GOLDEN[f"{name}/{bits}/scale"])
    assert np.array_equal(ours.grid.zero_point.reshape(-1, 1), GOLDEN[f"{name}/{bits}/zero"])


def heavy(rows=16, columns=256):
    g = torch.Generator().manual_seed(4)
    w = torch.randn(rows, columns, generator=g)
    w[:, ::13] *= 6
    return w


@settings(max_examples=60)
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.sampled_from([8, 24, 32])),
        elements=st.floats(-100, 100, width=32, allow_subnormal=False),
    ),
    bits=st.sampled_from(BITS),
    iters=st.integers(0, 8),
)
def test_invariants(x, bits, iters):
    before = x.copy()
    q = qviz.quantize(x, "hqq", bits=bits, group_size=8, iters=iters, scale_dtype=None)
    assert np.array_equal(x, before)
    assert int(q.codes.max()) <= 2**bits - 1
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes
    errors = q.info["errors"]
    assert len(errors) <= iters
    # every step but the last one helped: that is the rule for going on
    assert all(b < a for a, b in pairwise(errors[:-1]))
    # a weight between its group's outermost levels is at most half a step from its level
    low, high = (end.unsqueeze(-1) for end in q.grid.extremes())
    w = torch.from_numpy(x).reshape(x.shape[0], -1, 8)
    step = q.grid.scale.unsqueeze(-1)
    gap = (w - q.dequantize().reshape(w.shape)).abs()
    inside = (w >= low) & (w <= high)
    assert (gap <= step / 2 + 1e-5 * w.abs() + 1e-3 * step)[inside].all()


def test_each_step_is_the_formula_in_float64():
    """The alternation written plainly, in twice the precision: same codes, z to rounding error."""
    w = heavy().double()
    trace = qviz.Trace("hqq.step")
    q = qviz.quantize(w, "hqq", bits=3, group_size=32, scale_dtype=None, emit=trace)
    x = w.reshape(-1, 32)
    lo, hi = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    s = (hi - lo) / 7
    z = -lo / s
    for event in trace:
        codes = (x / s + z).round().clamp(0, 7)
        d = x - s * (codes - z)
        e = d.sign() * (d.abs() - d.abs() ** -0.3 / 10).clamp(min=0)
        z = (codes - (x - e) / s).mean(1, keepdim=True)
        assert torch.equal(event["codes"].reshape(-1, 32), codes)
        assert torch.allclose(event["reconstruction"].reshape(-1, 32), x - d, atol=1e-12)
        assert torch.allclose(event["e"].reshape(-1, 32), e, atol=1e-12)
        assert torch.allclose(event["zero"].reshape(-1, 1), z, atol=1e-12)
        assert float(event["error"]) == pytest.approx(float(d.abs().mean()), rel=1e-12)
    assert torch.equal(q.codes.reshape(-1, 32), (x / s + z).round().clamp(0, 7).to(torch.uint8))
    assert q.info["outliers"] == int((e != 0).sum()) > 0


def test_a_trained_layer_has_no_outliers_and_zero_points_end_its_mean_error():
    """What the default β does to weights of the usual size; and what a large β changes."""
    w = qviz.load_layer(None, "model.layers.0.mlp.up_proj")
    q = qviz.quantize(w, "hqq", bits=4, scale_dtype=None)
    assert q.info["outliers"] == 0
    rtn = qviz.quantize(w, "hqq", bits=4, iters=0, scale_dtype=None)

    def bias(made):
        return (made.dequantize() - w).reshape(-1, 64).mean(1).abs().mean()

    assert bias(q) < 0.1 * bias(rtn)
    assert q.info["errors"][-1] < q.info["errors"][0]
    assert qviz.quantize(w, "hqq", bits=4, beta=1e4).info["outliers"] > w.numel() / 10


def test_without_steps_it_is_affine_quantization_in_its_convention():
    for bits in (2, 3, 4, 5, 6, 8):
        plain = qviz.quantize(heavy(), bits=bits, symmetric=False, convention="hqq", group_size=64)
        ours = qviz.quantize(heavy(), "hqq", bits=bits, iters=0, scale_dtype=None)
        assert torch.equal(ours.codes, plain.codes)
        assert torch.equal(ours.dequantize(), plain.dequantize())


def test_events_in_their_order():
    for iters in (0, 3):
        trace = qviz.Trace()
        q = qviz.quantize(heavy(), "hqq", bits=2, iters=iters, emit=trace)
        steps = ["hqq.step"] * iters
        assert [event.name for event in trace] == ["hqq.start", *steps, "hqq.codes"]
        table = {spec.name: spec for spec in EVENTS}
        for event in trace:
            assert event.tensors.keys() == table[event.name].tensors.keys()
        assert torch.equal(trace[-1]["codes"], q.codes)
        if iters:  # the last z that was found is the one that is stored
            assert torch.equal(trace[-2]["zero"].half(), q.grid.zero_point)
            assert trace[-2]["e"].shape == (16, 256) and trace[-2]["zero"].shape == (16, 4)
            assert [float(e["error"]) for e in trace.named("hqq.step")] == q.info["errors"]


def test_blocks_change_nothing(monkeypatch):
    w = heavy(48)
    whole = qviz.quantize(w, "hqq", bits=3)
    monkeypatch.setattr("qviz.methods.hqq.BLOCK", 64 * 7)
    parts = qviz.quantize(w, "hqq", bits=3)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.grid.zero_point, parts.grid.zero_point)


def test_what_it_costs():
    w = heavy()
    assert qviz.quantize(w, "hqq").bits_per_weight == 4.5
    assert qviz.quantize(w, "hqq", bits=2).bits_per_weight == 2.5
    assert qviz.quantize(w, "hqq", bits=1, group_size=128).bits_per_weight == 1.25
    assert qviz.quantize(w, "hqq", scale_dtype=None).bits_per_weight == 5.0
    assert qviz.quantize(w, "hqq", group_size=None).bits_per_weight == 4 + 32 / 256


def test_groups_may_straddle_rows():
    w = heavy(8, 40)
    q = qviz.quantize(w, "hqq", group_size=64, scale_dtype=None)
    flat = qviz.quantize(w.reshape(1, -1), "hqq", group_size=64, scale_dtype=None)
    assert torch.equal(q.codes.flatten(), flat.codes.flatten())
    assert torch.equal(q.dequantize().flatten(), flat.dequantize().flatten())
    assert torch.equal(q.window(slice(1, 3), slice(20, 30)), q.dequantize()[1:3, 20:30])


@pytest.mark.parametrize(("name", "w"), adversarial().items(), ids=list(adversarial()))
def test_hostile_weights(name, w):
    q = qviz.quantize(w, "hqq", bits=4, scale_dtype=None)
    assert torch.isfinite(q.dequantize()).all()
    flat = {"all zero", "constant", "negative constant", "tiny", "subnormal"}
    assert q.info["flat_groups"] == {"zero row": 2, "single value": 4}.get(name, 8 * (name in flat))
    if name == "large":
        with pytest.raises(ValueError, match=r"scale of group \[0, 0\] is inf.*scale_dtype"):
            qviz.quantize(w, "hqq", bits=4)


def test_limits_of_the_scale():
    w = heavy() * 1e-4  # a range of 2e-3: 1/s would be 1e5
    q = qviz.quantize(w, "hqq", bits=8, scale_dtype=None)
    assert q.info["capped_groups"] == q.grid.scale.numel() == 64
    assert torch.allclose(q.grid.scale, torch.tensor(5e-5))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"bits": 7}, ValueError, "one of 1, 2, 3, 4, 5, 6, 8, got 7"),
        ({"bits": 9}, ValueError, "one of 1, 2, 3, 4, 5, 6, 8, got 9"),
        ({"bits": 1.58}, TypeError, "integer"),
        ({"iters": -1}, ValueError, "iters"),
        ({"lp_norm": 0.0}, ValueError, "lp_norm must be above 0"),
        ({"lp_norm": 1.5}, ValueError, "lp_norm"),
        ({"beta": 0.0}, ValueError, "beta must be positive"),
        ({"beta": float("nan")}, ValueError, "beta"),
        ({"kappa": 0.9}, ValueError, "kappa must be at least 1"),
        ({"lp_norm": "0.7"}, TypeError, "lp_norm must be a number"),
        ({"beta": None}, TypeError, "beta must be a number"),
        ({"kappa": torch.tensor(1.0)}, TypeError, "kappa must be a number"),
        (
            {"group_size": 48},
            ValueError,
            r"48 does not divide the 256.*64, 128, 256; None \(or -1\) puts all",
        ),
        ({"group_size": 0}, ValueError, "at least 1"),
        ({"group_size": 64.0}, TypeError, r"integer, or None \(or -1\)"),
        ({"scale_dtype": torch.int8}, TypeError, "scale_dtype must"),
        ({"granularity": "group"}, TypeError, "group_size"),
    ],
)
def test_bad_options_name_the_fix(options, error, says):
    with pytest.raises(error, match=says):
        qviz.quantize(heavy(), "hqq", **options)
