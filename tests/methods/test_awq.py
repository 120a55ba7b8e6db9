"""AWQ: never worse than rounding on its own loss, transforms, clipping, errors, events."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import calibration_for

import qviz
from qviz.core.metrics import output_energy, output_error
from qviz.core.transform import InputScale
from qviz.methods.affine import affine
from qviz.methods.awq import EVENTS, GRIDS, _fewer_tokens, awq, factors, search


def problem(rows=16, columns=64, tokens=200, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g, dtype=torch.float64)
    x *= torch.exp(torch.randn(columns, generator=g, dtype=torch.float64))
    w = torch.randn(rows, columns, generator=g, dtype=torch.float64) * 0.05
    return w.to(dtype), calibration_for(x)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    size=st.sampled_from([8, 32, None]),
    tokens=st.sampled_from([3, 40, 90]),
    grid=st.sampled_from(["llm-awq", "llm-compressor"]),
    symmetric=st.booleans(),
)
def test_never_worse_than_rounding_to_nearest(seed, bits, size, tokens, grid, symmetric):
    """Both grids hold r = 0 without weights, which is rounding to nearest."""
    w, calibration = problem(4, 32, tokens, seed)
    options = {"bits": bits, "group_size": size, "symmetric": symmetric}
    ours = awq(w, calibration, **options, grid=grid, clip=False).dequantize()
    rtn = affine(w, **options, convention="awq").dequantize()
    error, other = (output_error(w, back, calibration) for back in (ours, rtn))
    assert error <= other * (1 + 1e-4)


def test_the_loss_is_the_output_error_of_what_comes_out():
    w, calibration = problem()
    found = search([w], calibration, bits=3, group_size=16)
    q = awq(w, calibration, bits=3, group_size=16, clip=False)
    mean = output_energy(q.dequantize() - w, calibration) / 2 / len(w)
    assert mean == pytest.approx(float(found.losses[found.best]), rel=1e-4)
    assert q.info["ratio"] == found.ratio
    assert torch.equal(q.transform.scale, found.scale)
    assert found.losses.argmin() == found.best


def test_the_loss_is_the_same_from_the_inputs_and_from_the_hessian():
    w, few = problem(tokens=40, dtype=torch.float64)
    assert _fewer_tokens(few)
    more = qviz.Calibration(few.inputs, few.hessian, few.act_absmax, few.act_absmean, tokens=41)
    assert not _fewer_tokens(more)
    a, b = (search([w], c, group_size=16).losses for c in (few, more))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=0)  # the inputs are rounded to float32
    assert awq(w, few, group_size=16).info["loss_from"] == "the inputs"
    assert awq(w, more, group_size=16).info["loss_from"] == "the Hessian"


@pytest.mark.parametrize("block", [1, 64, 200, 10**6])
def test_blocks_of_rows_change_nothing(monkeypatch, block):
    w, calibration = problem(dtype=torch.float64)
    whole = awq(w, calibration, bits=3, group_size=16)
    monkeypatch.setattr("qviz.methods.awq.BLOCK_CPU", block)
    parts = awq(w, calibration, bits=3, group_size=16)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.transform.scale, parts.transform.scale)


def test_a_channel_that_stands_out_gets_finer_levels():
    w, calibration = problem(seed=3)
    x = calibration.inputs.clone()
    x[:, 5] *= 100
    q = awq(w, calibration_for(x), bits=3, group_size=16, clip=False)
    rtn = affine(w, bits=3, symmetric=False, group_size=16, convention="awq")
    assert q.info["ratio"] > 0
    assert q.transform.scale.argmax() == 5
    ours, other = ((back.dequantize() - w)[:, 5].norm() for back in (q, rtn))
    assert ours < other / 2


def test_linears_of_one_input_share_their_factors():
    (q, calibration), (k, _) = problem(12, seed=1), problem(4, seed=2)
    together = search([q, k], calibration, bits=3, group_size=16)
    alone = [search([w], calibration, bits=3, group_size=16) for w in (q, k)]
    # the mean over outputs of both is that of each, weighted by its rows
    torch.testing.assert_close(
        together.losses, (alone[0].losses * 12 + alone[1].losses * 4) / 16, rtol=1e-6, atol=0
    )
    transform = InputScale(together.scale)
    made = awq(k, calibration, bits=3, group_size=16, transform=transform)
    assert made.transform is transform
    assert "ratio" not in made.info


def test_factors():
    a = torch.tensor([1.0, 16.0, 0.0])
    torch.testing.assert_close(factors(a[:2], None, 0.5), torch.tensor([0.5, 2.0]))
    assert torch.equal(factors(a, None, 0.0), torch.ones(3))  # also of the channel that is 0
    s = factors(a, torch.tensor([0.1, 0.5, 0.0]), 0.5)
    assert torch.isfinite(s).all()
    assert float(s.max() * s.min()) == pytest.approx(1, rel=1e-5)


def test_transform_is_undone():
    w, calibration = problem()
    q = awq(w, calibration, bits=8, group_size=16, clip=False)
    torch.testing.assert_close(q.dequantize(), w, rtol=0, atol=2e-3)
    stored = q.folded().dequantize()
    torch.testing.assert_close(stored, w * q.transform.scale, rtol=0, atol=4e-3)
    assert q.ledger == q.folded().ledger
    assert q.unfolded().ledger.total_bits == q.ledger.total_bits + 64 * 32


def test_query_and_key_are_not_clipped():
    w, plain = problem()

    def clipped(layer, clip=None):
        given = qviz.Calibration(
            plain.inputs, plain.hessian, plain.act_absmax, plain.act_absmean, 200, layer=layer
        )
        return awq(w, given, bits=2, group_size=16, clip=clip).info

    for layer in ("", "model.layers.3.mlp.down_proj", "block_sparse_moe.experts.0.w1"):
        assert clipped(layer)["clip"], layer
        assert clipped(layer)["clipped_groups"] > 0
    for layer in ("model.layers.3.self_attn.q_proj", "self_attn.k_proj", "attention.self.query"):
        assert not clipped(layer)["clip"], layer
        assert clipped(layer)["clipped_groups"] == 0
        assert clipped(layer, True)["clip"]


def test_clipping_limits_the_weights():
    w, calibration = problem()
    w[3, 4] = 1.0  # twenty times its neighbours
    trace = qviz.Trace("awq.clip", "awq.scaled")
    q = awq(w, calibration, bits=3, group_size=16, emit=trace)
    scaled, event = trace[0]["weight"], trace[1]
    top = scaled.reshape(16, 4, 16).abs().amax(-1)
    torch.testing.assert_close(event["limit"], top * (1 - event["step"] / 20))
    best = event["errors"].gather(0, event["step"].unsqueeze(0)).squeeze(0)
    assert (best <= event["errors"][0]).all()
    assert (event["step"] > 0).sum() == q.info["clipped_groups"] > 0
    assert (q.folded().dequantize().reshape(16, 4, 16).abs().amax(-1) <= 1.3 * event["limit"]).all()


def test_events_are_those_of_the_table():
    w, calibration = problem()
    for grid in GRIDS:
        trace = qviz.Trace()
        traced = awq(w, calibration, group_size=16, grid=grid, emit=trace)
        names = ["awq.importance", *["awq.magnitude"] * (grid != "llm-awq"),
                 *["awq.candidate"] * 20, "awq.scales", "awq.scaled", "awq.clip",
                 "awq.codes"]  # fmt: skip
        assert [e.name for e in trace] == names
        assert torch.equal(traced.codes, awq(w, calibration, group_size=16, grid=grid).codes)
    assert {e.name for e in trace} == {spec.name for spec in EVENTS}
    table = {spec.name: set(spec.tensors) for spec in EVENTS}
    for event in trace:
        assert set(event.tensors) == table[event.name]
    candidates = trace.named("awq.candidate")
    losses = torch.stack([c["loss"] for c in candidates])
    best = trace.named("awq.scales")[0]
    assert best["loss"] == losses.min()
    assert torch.equal(best["scale"], candidates[int(losses.argmin())]["scale"])


@pytest.mark.parametrize("symmetric", [True, False])
def test_hard_weights(hard_weight, symmetric):
    _, calibration = problem(columns=128)
    q = awq(hard_weight, calibration, group_size=32, symmetric=symmetric)
    assert torch.isfinite(q.dequantize()).all()
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes


def test_what_it_costs():
    w, calibration = problem(columns=256)
    q = awq(w, calibration, scale_dtype=torch.float16)
    assert q.bits_per_weight == 4 + 16 / 128 + 4 / 128  # 4.15625, as the field says


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"grid": "lm-awq"}, ValueError, "mean llm-awq"),
        ({"group_size": 48}, ValueError, "48 does not divide the 64"),
        ({"bits": 1}, ValueError, "from 2 to 8"),
        ({"bits": 3.0}, TypeError, "integer"),
    ],
)
def test_bad_options_name_the_fix(options, error, says):
    w, calibration = problem()
    with pytest.raises(error, match=says):
        awq(w, calibration, **{"group_size": 16, **options})


def test_bad_inputs_name_the_fix():
    w, calibration = problem()
    with pytest.raises(TypeError, match="pass one layer's entry"):
        awq(w, {"layer": calibration})
    with pytest.raises(ValueError, match="captured for another layer"):
        awq(w[:, :32], calibration)
    with pytest.raises(ValueError, match="at least one"):
        search([], calibration)
    huge = replace(calibration, hessian=torch.full((64, 64), 1e38))
    with pytest.raises(TypeError, match=r"InputScale.*got Tensor"):
        awq(w, calibration, transform=torch.ones(64))
    with pytest.raises(TypeError, match="clip must be"):
        awq(w, calibration, clip="no")
    with pytest.raises(ValueError, match="no candidate has a finite loss"):
        awq(w * 1e3, huge, group_size=16)


def test_arrays_are_not_written_to():
    w, calibration = problem()
    array = w.numpy().copy()
    array.setflags(write=False)
    kept = [t.clone() for t in (calibration.inputs, calibration.hessian, calibration.act_absmean)]
    q = awq(array, calibration, group_size=16)
    assert np.array_equal(array, w.numpy())
    now = (calibration.inputs, calibration.hessian, calibration.act_absmean)
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))
    # factors of 1 must not let the clipping write into the weight
    ones = InputScale(torch.ones(64))
    again = awq(w, calibration, bits=2, group_size=16, transform=ones)
    assert again.info["clipped_groups"] > 0
    assert np.array_equal(array, w.numpy())
    assert not torch.equal(q.codes, again.codes)
