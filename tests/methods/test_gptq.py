"""GPTQ: what its algebra promises, groups, damping, dead columns, trace, recording, errors."""

import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import adversarial, calibration_for

import qviz
from qviz.core.agreement import TIE, agreement
from qviz.core.metrics import output_error
from qviz.methods import gptq as module
from qviz.methods.affine import CONVENTIONS
from qviz.methods.gptq import EVENTS, FAILURES, INNER, gptq, inverse_cholesky, prepare
from qviz.methods.gptq_record import Recording, record
from qviz.models.texts import calibration_texts

MODES = [
    (name, symmetric)
    for name, c in CONVENTIONS.items()
    for symmetric in (True, False)
    if (c.symmetric if symmetric else c.asymmetric) is not None
]
# Each takes another way through the code.
WAYS = [
    {},
    {"act_order": True, "group_size": 32},
    {"act_order": True, "group_size": 16, "static_groups": True},
    {"group_size": 64, "block_size": 48},
    {"group_size": 16, "stale_groups": True},
    {"group_size": None, "act_order": True, "block_size": 100, "mse": True},
]


def weight(rows=24, columns=128, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g, dtype=torch.float64).to(dtype)


def calibration(columns=128, seed=1, tokens=400):
    """Inputs with channels of very different size that depend on one another."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=g, dtype=torch.float64) / columns**0.5
    return calibration_for((x + 2 * x @ mix) * torch.logspace(-1, 1, columns))


def damped_loss(w, q, c):
    """½·tr((W − Q)·(H + λI)·(W − Q)ᵀ), with the damping that was used."""
    d, h = (w - q.dequantize()).double(), c.hessian.clone()
    h.diagonal().add_(q.info["damp"] * h.diagonal().mean())
    return pytest.approx(0.5 * torch.trace(d @ h @ d.T).item(), rel=1e-9)


# ------------------------------------------------------------------------------------- the algebra


@pytest.mark.parametrize(("convention", "symmetric"), MODES)
def test_independent_inputs_leave_rounding_to_nearest(convention, symmetric):
    """With H = I nothing can be compensated: every column is rounded where it lies."""
    w = weight(dtype=torch.float32)
    one = replace(calibration(), hessian=torch.eye(128))
    options = {"bits": 3, "symmetric": symmetric, "convention": convention, "group_size": 32}
    plain, ours = qviz.quantize(w, **options), gptq(w, one, **options)
    assert torch.equal(plain.codes, ours.codes)
    assert plain.codes.dtype == ours.codes.dtype
    assert torch.equal(plain.dequantize(), ours.dequantize())
    assert plain.ledger == ours.ledger


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("bits", [2, 4])
def test_the_loss_is_the_damped_output_error(options, bits):
    """Σe²/2 = ½·tr((W − Q)·(H + λI)·(W − Q)ᵀ), because W − Q = E·U and H⁻¹ = UᵀU."""
    w, c = weight(), calibration()
    q = gptq(w, c, bits=bits, damp=0.05, **({"group_size": 32} | options))
    assert q.info["loss"] == damped_loss(w, q, c)


def test_the_factor_is_that_of_the_inverse():
    h = calibration().hessian + 0.5 * torch.eye(128)
    u = inverse_cholesky(h)
    assert torch.equal(u, u.triu())
    torch.testing.assert_close(u.T @ u @ h, torch.eye(128).double(), rtol=0, atol=1e-10)
    longer = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    torch.testing.assert_close(u, longer)


def test_the_longer_way_to_the_factor_gives_the_same_codes(monkeypatch):
    w, c = weight(64, 256, dtype=torch.float32), calibration(256)
    ours = record(w, c, bits=3, group_size=64)

    def longer(h, diagonal):
        h = h.clone()
        h.diagonal().copy_(diagonal)
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)

    monkeypatch.setattr(module, "inverse_cholesky", longer)
    theirs = gptq(w, c, bits=3, group_size=64)
    assert not torch.equal(prepare(w, c, damp=0.01, act_order=False).hinv_chol, ours.hinv_chol)
    losses = (ours.result.info["loss"], theirs.info["loss"])
    found = agreement(ours.result.codes, theirs.codes, ours.positions(), losses=losses)
    assert found.holds, found


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("group", [16, 32, 64, 128, None])
def test_block_size_changes_nothing(group, order):
    w, c = weight(), calibration()
    options = {"bits": 3, "symmetric": False, "group_size": group, "act_order": order}
    first = gptq(w, c, **options)
    for block in (1, 5, 16, 32, 48, 100, 127, 1000):
        again = gptq(w, c, block_size=block, **options)
        assert torch.equal(again.codes, first.codes), block
        torch.testing.assert_close(again.grid.scale, first.grid.scale, rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (None, "layers.0.self_attn.q_proj"),
        (None, "layers.0.mlp.up_proj"),
        ("minilm", "encoder.layer.3.intermediate.dense"),
    ],
)
def test_block_size_changes_nothing_on_real_layers(model, layer, dtype):
    """In float64 up to ties that are exact, in float32 up to those that rounding error decides."""
    w, c = qviz.load_layer(model, layer)[:48].to(dtype), qviz.load_calibration(model, layer)
    tolerance = 1e-9 if dtype == torch.float64 else TIE
    for bits, group, order in [(2, 32, True), (3, 128, False), (4, 64, True), (8, None, False)]:
        options = {"bits": bits, "group_size": group, "act_order": order}
        one = record(w, c, **options)
        for block in (1, 16, 32, 256):
            other = gptq(w, c, block_size=block, **options)
            losses = (one.result.info["loss"], other.info["loss"])
            found = agreement(
                one.result.codes, other.codes, one.positions(),
                perm=one.perm, losses=losses, tolerance=tolerance,
            )  # fmt: skip
            assert found.holds, (options, block, str(found))


def test_a_symmetric_extreme_lies_on_a_tie():
    """The largest weight of a symmetric GPTQ group lies at ±7.5 steps. Where it is the first of
    its group, rounding error alone decides, and so block sizes agree up to such ties."""
    w, c = weight(), calibration()
    w[:, 32] = -9
    one = record(w, c, group_size=32)
    assert (one.positions()[:, 32] - 0.5).abs().max() < 1e-9
    for block in (1, 16, 48):
        other = gptq(w, c, group_size=32, block_size=block)
        found = agreement(one.result.codes, other.codes, one.positions(), tolerance=1e-9)
        assert found.holds, found


def test_only_the_shape_of_the_hessian_counts():
    """Times four, U is exactly halved, and so is every error: the same codes. Dividing twice
    breaks that, which shows the failure without any accuracy being measured."""
    w, c = weight(), calibration()
    times_four = replace(c, hessian=4 * c.hessian)
    assert torch.equal(gptq(w, c).codes, gptq(w, times_four).codes)
    broken = {"variant": "double_division", "bits": 3}
    assert not torch.equal(gptq(w, c, **broken).codes, gptq(w, times_four, **broken).codes)


def test_misprints_are_worse_and_those_that_divide_twice_can_lose_to_rounding():
    g = torch.Generator().manual_seed(3)
    base = torch.randn(600, 8, generator=g) @ torch.randn(8, 128, generator=g)
    c = calibration_for(base + 0.1 * torch.randn(600, 128, generator=g))
    w = weight(dtype=torch.float32)

    def error(times=1, **options):
        scaled = replace(c, hessian=times * c.hessian)
        return output_error(w, gptq(w, scaled, bits=4, **options).dequantize(), c)

    plain = output_error(w, qviz.quantize(w, bits=4, convention="gptq").dequantize(), c)
    good = error()
    assert good < plain / 3
    assert all(error(variant=name) > 1.5 * good for name in FAILURES)
    for name in ("double_division", "as_printed"):
        assert error(times=100, variant=name) > 2 * plain  # as of inputs ten times as large
    assert gptq(w, c, variant="no_update").info["loss"] is None


def test_errors_accumulate_as_the_paper_says():
    """From the events alone: live_j = W_j − Σ_{k<j} e_k·U_kj, and e_j = (live − value) / U_jj."""
    w, c = weight(), calibration()
    trace = qviz.Trace("gptq.*")
    q = gptq(w, c, bits=3, act_order=True, group_size=32, block_size=48, emit=trace)
    u = trace.named("gptq.cholesky")[0]["hinv_chol"]
    perm = trace.named("gptq.hessian")[0]["perm"]
    columns = trace.named("gptq.column")
    errors = torch.stack([e["error"] for e in columns], 1)  # [out, in]
    wanted = w[:, perm] - errors @ u.triu(1)
    torch.testing.assert_close(torch.stack([e["live"] for e in columns], 1), wanted)
    for j, e in enumerate(columns):
        assert (int(e["step"]), int(e["column"])) == (j, int(perm[j]))
        assert torch.equal(e["error"], (e["live"] - e["value"]) / u[j, j])
        assert torch.equal(e["hinv_row"], u[j, j:])
        assert torch.equal(e["codes"], q.codes[:, perm[j]])
        assert torch.equal(e["value"], q.dequantize()[:, perm[j]])
    blocks = trace.named("gptq.block")
    assert [len(b["steps"]) for b in blocks] == [48, 48, 32]
    torch.testing.assert_close(
        blocks[0]["remaining"], w[:, perm[48:]] - errors[:, :48] @ u[:48, 48:]
    )


# -------------------------------------------------------------------------------------- the groups


def test_live_groups_take_what_compensation_has_made_of_the_weights():
    w, c = weight(), calibration()
    trace = qviz.Trace("gptq.group", "gptq.column")
    gptq(w, c, group_size=32, block_size=48, emit=trace)
    seen = {}
    for e in trace:
        if e.name == "gptq.group":
            seen[int(e["group"])] = e["weights"]
        else:
            step = int(e["step"])
            if step % 32 == 0:  # the group's first column is rounded as it was seen
                assert torch.equal(seen[step // 32][:, 0], e["live"])
    assert sorted(seen) == [0, 1, 2, 3]
    largest = seen[2].abs().amax(1)
    q = gptq(w, c, group_size=32, block_size=48)
    torch.testing.assert_close(q.grid.scale[:, 2], 2 * largest / 15)


def test_stale_groups_are_the_references():
    w, c = weight(), calibration()
    live = gptq(w, c, symmetric=False, group_size=16)
    stale = gptq(w, c, symmetric=False, group_size=16, stale_groups=True)
    assert torch.equal(stale.grid.scale[:, 0], live.grid.scale[:, 0])
    assert not torch.equal(stale.grid.scale[:, 1], live.grid.scale[:, 1])
    # The first block's groups are taken from the original weights, all of them.
    part = w[:, :128].reshape(24, 8, 16)
    spread = part.amax(-1).clamp(min=0) - part.amin(-1).clamp(max=0)
    torch.testing.assert_close(stale.grid.scale, spread / 15)
    # Where a block is one group, or one column, nothing is stale.
    for block in (1, 16):
        same = gptq(w, c, symmetric=False, group_size=16, stale_groups=True, block_size=block)
        assert torch.equal(same.codes, live.codes)


def test_static_groups_take_the_original_weights():
    w, c = weight(), calibration()
    plain = qviz.quantize(w, group_size=32, convention="gptq")
    for order in (False, True):
        q = gptq(w, c, group_size=32, static_groups=True, act_order=order)
        assert torch.equal(q.grid.scale, plain.grid.scale)
        assert q.g_idx is None
        assert q.bits_per_weight == plain.bits_per_weight


def test_act_order_scatters_the_groups_and_says_so():
    w, c = weight(), calibration()
    q = gptq(w, c, group_size=32, act_order=True)
    perm = torch.tensor(q.info["perm"])
    assert (c.hessian.diagonal()[perm].diff() <= 0).all()
    assert torch.equal(q.g_idx[perm], torch.arange(128, dtype=torch.int32) // 32)
    values = (q.codes.double() - 8) * q.grid.scale[:, q.g_idx.long()]
    torch.testing.assert_close(q.dequantize(), values)
    assert q.ledger.per_weight("g_idx") == 128 * 32 / (24 * 128)
    assert gptq(w, c, group_size=None, act_order=True).g_idx is None
    assert gptq(w, c).info["perm"] is None
    # The same problem with its channels sorted beforehand.
    sorted_first = gptq(
        w[:, perm], replace(c, hessian=c.hessian[perm][:, perm]), group_size=32, act_order=False
    )
    assert torch.equal(q.codes[:, perm], sorted_first.codes)


def test_range_search_rounds_each_group_better():
    w, c = weight(), replace(calibration(), hessian=torch.eye(128).double())
    whole, best = (gptq(w, c, bits=2, group_size=32, mse=m).dequantize() for m in (False, True))

    def error(made):
        return (w - made).abs().pow(2.4).reshape(24, 4, 32).sum(-1)

    assert (error(best) <= error(whole)).all()
    assert error(best).sum() < 0.8 * error(whole).sum()


def test_scales_of_fewer_bits_are_used_as_they_are_stored():
    w, c = weight(), calibration()
    q = gptq(w, c, group_size=32, scale_dtype=torch.float16)
    assert q.grid.scale.dtype == torch.float16
    assert q.ledger.per_weight("scales") == 0.5
    assert q.info["loss"] == damped_loss(w, q, c)


# -------------------------------------------------------------------------- damping, dead columns


def test_dead_columns_become_zero_and_disturb_nothing():
    c = calibration()
    dead = [3, 77]
    x = c.hessian.clone()
    x[dead], x[:, dead] = 0, 0
    c = replace(c, hessian=x)
    w = weight()
    w[:, dead] = 50.0  # would ruin every scale that counted it
    for order in (False, True):
        q = gptq(w, c, group_size=32, damp=0.01, act_order=order)
        assert q.info["dead_columns"] == dead
        assert (q.dequantize()[:, dead] == 0).all()
        assert output_error(w, q.dequantize(), c) < 0.1


def test_damping_is_raised_until_cholesky_succeeds():
    g = torch.Generator().manual_seed(5)
    x = torch.randn(40, 128, generator=g)  # fewer tokens than channels: H is singular
    c, w = calibration_for(x), weight(dtype=torch.float32)
    h = c.hessian.clone()
    h[0, 0] -= 0.025 * h.diagonal().mean()  # and a little worse than that
    q = gptq(w, replace(c, hessian=h), damp=0.0)
    assert 0.01 <= q.info["damp"] <= 0.03
    assert q.info["damp"] == round(q.info["damp"], 2)
    assert gptq(w, c, damp=0.05).info["damp"] == 0.05
    with pytest.raises(ValueError, match=r"not positive definite.*qviz\.capture"):
        gptq(w, replace(c, hessian=h - 5 * torch.eye(128)))


# ------------------------------------------------------------------------------- inputs of any kind


def test_hard_weights(hard_weight):
    x = torch.randn(300, 128, generator=torch.Generator().manual_seed(4))
    c = calibration_for(x @ (torch.eye(128) + 0.1))
    for symmetric in (True, False):
        try:
            q = gptq(hard_weight, c, symmetric=symmetric, group_size=32)
        except ValueError as refused:
            assert "scale" in str(refused)  # too small for float32
            continue
        assert torch.isfinite(q.dequantize()).all()
        if not hard_weight.any():
            assert (q.dequantize() == 0).all()


def test_every_hard_weight_but_the_smallest_is_taken():
    refused = []
    for name, w in adversarial().items():
        try:
            gptq(w, replace(calibration(), hessian=torch.eye(128)))
        except ValueError:
            refused.append(name)
    assert refused in ([], ["subnormal"])


@settings(max_examples=30)
@given(
    rows=st.integers(1, 6),
    groups=st.integers(1, 5),
    size=st.sampled_from([1, 3, 8, 20]),
    bits=st.integers(2, 8),
    block=st.integers(1, 40),
    order=st.booleans(),
    static=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_size(rows, groups, size, bits, block, order, static, seed):
    n = groups * size
    w, c = weight(rows, n, seed), calibration(n, seed, tokens=30)
    q = gptq(
        w, c, bits=bits, group_size=size, block_size=block, act_order=order, static_groups=static
    )
    assert q.codes.shape == (rows, n)
    assert 0 <= int(q.codes.min()) <= int(q.codes.max()) < 2**bits
    assert q.grid.scale.shape == (rows, groups)
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes
    assert q.info["loss"] == damped_loss(w, q, c)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    w, c = weight().to(dtype), calibration()
    half, wide = gptq(w, c), gptq(w.float(), c)
    assert torch.equal(half.codes, wide.codes)
    assert torch.equal(half.grid.scale, wide.grid.scale)
    assert half.info["compute"] == "float32"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", WAYS, ids=str)
def test_gpu_agrees(options):
    w, c = weight(64, 128, dtype=torch.float32), calibration()
    ours = record(w, c, **options)
    theirs = gptq(w.cuda(), c, **options)
    assert theirs.codes.is_cuda
    found = agreement(ours.result.codes, theirs.codes.cpu(), ours.positions(), perm=ours.perm)
    assert found.holds, found


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"group_size": 48}, ValueError, "48 does not divide the 128"),
        ({"block_size": 0}, ValueError, "block_size must be from 1"),
        ({"block_size": 12.0}, TypeError, "block_size must be an integer"),
        ({"bits": 1}, ValueError, "bits must be from 2 to 8"),
        ({"damp": -0.1}, ValueError, "from 0 to 1"),
        ({"damp": 5}, ValueError, "from 0 to 1"),
        ({"damp": "1"}, TypeError, "damp must be a number"),
        ({"convention": "gtpq"}, ValueError, "mean gptq"),
        ({"variant": "no_updates"}, ValueError, "mean no_update"),
        ({"stale_groups": True, "static_groups": True}, ValueError, "omit static_groups"),
        ({"stale_groups": True, "group_size": None}, ValueError, "set a group_size"),
        ({"scale_dtype": torch.int32}, TypeError, "scale_dtype must"),
    ],
    ids=str,
)
def test_bad_options_name_the_fix(options, error, says):
    with pytest.raises(error, match=says):
        gptq(weight(), calibration(), **options)


def test_a_hessian_that_is_not_finite_is_refused():
    c = calibration()
    c.hessian[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"hessian.*\[3, 4\]"):
        gptq(weight(), c)


@pytest.mark.parametrize("name", ["inputs", "hessian", "act_absmax", "act_absmean"])
def test_a_calibration_of_numbers_that_are_none_is_refused(name):
    c = calibration()
    broken = getattr(c, name).clone()
    broken[3] = torch.nan
    with pytest.raises(ValueError, match=rf"calibration's {name} has.*nan at \[3"):
        replace(c, **{name: broken})
    with pytest.raises(TypeError, match="pass one layer's entry"):
        gptq(weight(), {"layer": c})


def test_flags_are_true_or_false():
    """A string would count as True."""
    w, c = weight(), calibration()
    for make in (record, lambda w, c, **o: qviz.quantize(w, "gptq", c, **o)):
        with pytest.raises(TypeError, match="act_order must be True or False, got 'no'"):
            make(w, c, act_order="no")
    with pytest.raises(TypeError, match="block_size must be an integer"):
        record(w, c, block_size=None)


def test_dead_columns_count_in_the_damping_as_1():
    """As in the reference: of small inputs, one dead column makes the damping large."""
    c = calibration()
    h = 1e-4 * c.hessian
    h[3], h[:, 3] = 0, 0
    trace = qviz.Trace("gptq.hessian")
    gptq(weight(), replace(c, hessian=h), emit=trace)
    diagonal = h.diagonal().clone()
    diagonal[3] = 1
    h.diagonal().copy_(diagonal + 0.01 * diagonal.mean())
    torch.testing.assert_close(trace[0]["hessian"], h, rtol=1e-14, atol=0)


# ------------------------------------------------------------------------------ trace and recording


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_events_have_the_shapes_that_their_table_gives(options):
    trace = qviz.Trace()
    gptq(weight(8), calibration(), emit=trace, **options)
    out, n = 8, 128
    assert {e.name for e in trace} == {spec.name for spec in EVENTS}
    table = {spec.name: spec for spec in EVENTS}
    for event in trace:
        assert set(event.tensors) == set(table[event.name].tensors)
    for j, event in enumerate(trace.named("gptq.column")):
        shapes = {name: tuple(t.shape) for name, t in event.tensors.items()}
        rows = dict.fromkeys(("live", "codes", "value", "error"), (out,))
        assert shapes == {"step": (), "column": (), **rows, "hinv_row": (n - j,)}
    size = options.get("group_size", 128) or n
    for event in trace.named("gptq.group"):
        assert event["weights"].shape == (out, size)
        assert event["scale"].shape == event["zero"].shape == (out,)


@pytest.mark.parametrize("options", [*WAYS, {"variant": "no_update", "bits": 2}], ids=str)
@pytest.mark.parametrize("rows", [19, 64])
def test_a_recording_is_the_run(options, rows):
    w, c = weight(rows, 256, dtype=torch.float32), calibration(256)
    if options.get("static_groups") or options.get("mse"):
        options = {k: v for k, v in options.items() if k != "block_size"} | {"block_size": 37}
    trace = qviz.Trace("gptq.column")
    q = gptq(w, c, emit=trace, **options)
    run = record(w, c, **options)
    assert torch.equal(run.result.codes, q.codes)
    live = run.live()
    for j in [*range(255, -1, -5), 3, 200, 100]:  # any order, back and forth
        step, event = run.column(j), trace[j]
        for name in ("live", "codes", "value", "error", "hinv_row"):
            assert torch.equal(getattr(step, name), event[name]), (j, name)
        assert torch.equal(live[:, step.column], event["live"])
        assert torch.equal(step.before[:, j], event["live"])
        assert torch.equal(step.before[:, :j], q.dequantize()[:, run.perm[:j]])


def test_steps_follow_one_another():
    w, c = weight(16, 256), calibration(256)
    run = record(w, c, bits=3, group_size=64, act_order=True, block_size=64)
    start = run.column(0).before
    assert torch.equal(start, w[:, run.perm])
    for j in (0, 7, INNER - 1, INNER, 63, 64, 200, 254):
        now, then = run.column(j), run.column(j + 1)
        torch.testing.assert_close(now.after, then.before, rtol=1e-11, atol=1e-12)
        assert now.compensation.shape == (16, 255 - j)
        done, u = run.errors[:j], run.hinv_chol[:j, j:]
        torch.testing.assert_close(now.before[:, j:], start[:, j:] - done.T @ u)
    assert torch.equal(run.column(255).after[:, torch.argsort(run.perm)], run.result.dequantize())
    for step in (-1, 256):
        with pytest.raises(IndexError, match="from 0 to 255"):
            run.column(step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recording_stays_within_its_budget(dtype):
    w, c = weight(128, 1024, dtype=dtype), calibration(1024)
    run = record(w, c)
    most = 0
    for j in (1023, 500, 130, 900, 0):
        run.column(j)
        most = max(most, run.nbytes)
    assert most <= 4 * w.numel() * w.element_size()
    assert len(run) == 1024
    assert isinstance(run, Recording)


def test_positions_round_to_the_codes():
    w, c = weight(), calibration()
    for symmetric, order in ((True, False), (False, True)):
        run = record(w, c, symmetric=symmetric, group_size=32, act_order=order, bits=3)
        position = run.positions()
        near = (position - position.floor() - 0.5).abs() > 1e-9  # not on a tie
        nearest = position.round().clamp(0, 7)
        assert torch.equal(nearest[near], run.result.codes[near].double())


def test_options_of_the_registry_are_the_functions():
    names = set(inspect.signature(gptq).parameters) - {"weight", "calibration", "emit"}
    assert names == set(module.METHOD.origins)


# ----------------------------------------------------------------------------------- a whole model


@pytest.mark.slow
def test_the_bundled_model_loses_less_than_by_rounding():
    model = qviz.load_model()
    found = qviz.capture(model, calibration_texts()["python"].text)
    for bits in (4, 3, 2):
        options = {"bits": bits, "group_size": 128}
        plain = qviz.quantize_model(model, "affine", convention="gptq", **options)
        better = qviz.quantize_model(model, "gptq", calibration=found, **options)
        assert better.bits_per_weight == plain.bits_per_weight
        ours, theirs = (qviz.perplexity(m.model, max_tokens=4096).value for m in (better, plain))
        assert ours < theirs, bits
