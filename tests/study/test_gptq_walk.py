"""A walk through a GPTQ run: its matrices and its error equal what is computed the plain way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from inputs import calibration_for

import qviz
from qviz.core.metrics import output_error
from qviz.methods.affine import CONVENTIONS
from qviz.methods.gptq import FAILURES
from qviz.methods.gptq_record import record
from qviz.study.gptq_walk import Walk

WAYS = [
    {},
    {"act_order": True, "group_size": 32, "bits": 3},
    {"act_order": True, "group_size": 16, "static_groups": True, "symmetric": False},
    {"group_size": 64, "block_size": 48, "bits": 2},
    {"group_size": 16, "stale_groups": True, "block_size": 40},
    {"group_size": None, "act_order": True, "block_size": 100, "mse": True},
    {"group_size": 32, "convention": "compressed_tensors", "symmetric": False},
    *({"variant": name, "group_size": 32, "damp": 0.1} for name in FAILURES),
]


def weight(rows=12, columns=128, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g, dtype=torch.float64).to(dtype)


def calibration(columns=128, seed=1, tokens=400):
    """Inputs with channels of different size that depend on one another."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=g, dtype=torch.float64) / columns**0.5
    return calibration_for((x + 2 * x @ mix) * torch.logspace(-0.5, 0.5, columns))


def with_dead(c, dead):
    h = c.hessian.clone()
    h[dead], h[:, dead] = 0, 0
    return replace(c, hessian=h)


def explicit_error(w, made, c):
    """‖X·(W − Ŵ)ᵀ‖ / ‖X·Wᵀ‖ from the difference itself."""
    return output_error(w.double(), made.double(), replace(c, hessian=c.hessian.double()))


def in_the_weights_order(walk, matrix):
    return matrix[:, walk.turn]


# -------------------------------------------------------------------------------------- the errors


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("dead", [[], [3, 77]], ids=["alive", "dead"])
@pytest.mark.parametrize("judged", ["by its own", "by another"])
def test_the_error_is_that_of_the_explicit_difference(options, dead, judged):
    w, c = weight(), with_dead(calibration(), dead)
    judge = c if judged == "by its own" else calibration(seed=9)
    walk = Walk(w, c, judge, **options)
    assert walk.error.shape == walk.rtn_error.shape == (129,)
    for step in (0, 1, 2, 50, 77, 78, 127, 128):
        wanted = explicit_error(w, in_the_weights_order(walk, walk.now(step)), judge)
        assert walk.error[step] == pytest.approx(wanted, rel=1e-8, abs=1e-12), step
    assert walk.error[-1] == pytest.approx(explicit_error(w, walk.result.dequantize(), judge))


@pytest.mark.parametrize("options", WAYS[:7], ids=str)
def test_rounding_to_nearest_goes_through_the_same_columns(options):
    w, judge = weight(), calibration(seed=9)
    walk = Walk(w, calibration(), judge, **options)
    made = walk.nearest.dequantize()
    for step in (0, 1, 50, 127, 128):
        now = w.clone()
        now[:, walk.perm[:step]] = made[:, walk.perm[:step]]
        assert walk.rtn_error[step] == pytest.approx(explicit_error(w, now, judge), rel=1e-8)


def test_round_to_nearest_is_that_of_the_affine_method():
    w = weight()
    options = {"bits": 3, "symmetric": False, "group_size": 32, "convention": "compressed_tensors"}
    walk = Walk(w, calibration(), act_order=True, **options)
    assert torch.equal(walk.nearest.codes, qviz.quantize(w, **options).codes)
    searched = Walk(w, calibration(), mse=True, bits=2, group_size=32).nearest
    plain = qviz.quantize(w, bits=2, group_size=32, convention="gptq")
    assert (searched.grid.scale <= plain.grid.scale).all()
    assert (searched.grid.scale < plain.grid.scale).any()
    lost = [(w - q.dequantize()).abs().pow(2.4).sum() for q in (searched, plain)]
    assert lost[0] < lost[1]


def test_dead_columns_cost_from_the_start_where_the_judge_has_inputs():
    w, judge = weight(), calibration(seed=9)
    walk = Walk(w, with_dead(calibration(), [5]), judge)
    without = w.clone()
    without[:, 5] = 0
    assert walk.error[0] == pytest.approx(explicit_error(w, without, judge))
    assert walk.error[0] > 0
    assert walk.rtn_error[0] == 0
    assert Walk(w, with_dead(calibration(), [5])).error[0] == 0


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("model.layers.0.mlp.down_proj", {"bits": 3, "group_size": 64}),
        ("model.layers.1.mlp.up_proj", {"bits": 2, "act_order": True, "group_size": 32}),
    ],
)
def test_errors_on_a_real_layer(layer, options):
    """The run is in float32, the sums are not: their difference is that of the run alone."""
    w = qviz.load_layer(None, layer).float()
    judge = qviz.load_calibration(None, layer, text="heldout_python")
    walk = Walk(w, qviz.load_calibration(None, layer), judge, **options)
    for step in (1, 100, walk.n // 2 + 3, walk.n):
        wanted = explicit_error(w, in_the_weights_order(walk, walk.now(step)), judge)
        assert walk.error[step] == pytest.approx(wanted, rel=1e-4)
    assert walk.rtn_error[-1] == pytest.approx(explicit_error(w, walk.nearest.dequantize(), judge))
    assert walk.error[-1] < walk.rtn_error[-1]


def test_a_judge_that_no_inputs_can_have_is_refused():
    w, c = weight(), calibration()
    walk = Walk(w, c, replace(c, hessian=-c.hessian))
    with pytest.raises(ValueError, match="negative eigenvalues"):
        _ = walk.error
    with pytest.raises(ValueError, match="64 input channels"):
        Walk(w, c, calibration(64))
    with pytest.raises(TypeError, match="option for gptq"):
        Walk(w, c, group=3)


def test_a_judge_without_inputs_counts_nothing_as_lost():
    w, c = weight(), calibration()
    walk = Walk(w, c, replace(c, hessian=0 * c.hessian))
    assert (walk.error == 0).all()
    assert (walk.rtn_error == 0).all()


@pytest.mark.parametrize("damp", [0.01, 1e-3, 1e-4])
def test_a_judge_of_few_tokens_is_no_negative_energy(damp):
    """Of 16 tokens, a float32 Hessian has eigenvalues that are negative by rounding, and nearly
    all of an error that was made with it lies where they are."""
    layer = "model.layers.0.mlp.up_proj"
    w, few = qviz.load_layer(None, layer), qviz.load_calibration(None, layer).sample(16)
    walk = Walk(w, few, damp=damp, group_size=64)
    assert torch.linalg.eigvalsh(few.hessian.double())[0] < 0
    x = few.inputs.double()
    lost, whole = ((x @ m.double().T).norm() for m in (w - walk.result.dequantize(), w))
    assert walk.error[-1] == pytest.approx(float(lost / whole), rel=1e-2)


# ------------------------------------------------------------------------------------ the matrices


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_windows_are_parts_of_the_whole(options):
    walk = Walk(weight(), with_dead(calibration(), [3]), **options)
    rows, columns = slice(2, 9), slice(20, 90)
    for step in (0, 1, 19, 20, 55, 89, 90, 127, 128):
        now = walk.now(step)
        torch.testing.assert_close(walk.window(step, rows, columns), now[rows, columns])
        assert torch.equal(
            walk.handed_window(step, rows, columns), walk.handed(step)[rows, columns]
        )
        assert walk.window(step, slice(0, 0), columns).shape == (0, 70)
    values = walk.result.dequantize()[:, walk.perm]
    assert torch.equal(walk.now(128), values)
    assert torch.equal(walk.now(50)[:, :50], values[:, :50])


@pytest.mark.parametrize("options", WAYS[:6], ids=str)
def test_the_hessian_is_the_one_that_was_factored(options):
    trace = qviz.Trace("gptq.hessian")
    w, c = weight(), with_dead(calibration(), [3, 77])
    qviz.quantize(w, "gptq", c, emit=trace, **options)
    walk = Walk(w, c, **options)
    assert torch.equal(walk.hessian, trace[0]["hessian"])
    u = walk.recording.hinv_chol
    torch.testing.assert_close(u.T @ u @ walk.hessian, torch.eye(128).double())


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_what_is_handed_out_leads_to_the_next_step(options):
    walk = Walk(weight(), calibration(), **options)
    for step in (0, 15, 16, 47, 48, 99, 126, 127):
        now = walk.now(step) + walk.handed(step)
        now[:, step] = walk.result.dequantize()[:, walk.perm[step]]
        torch.testing.assert_close(now, walk.now(step + 1))
    assert not walk.handed(128).any()
    for step in (-1, 129):
        with pytest.raises(IndexError, match="from 0 to 128"):
            walk.now(step)
        with pytest.raises(IndexError, match="from 0 to 128"):
            walk.window(step, slice(None), slice(None))
    with pytest.raises(IndexError, match="from 0 to 127"):
        walk.column(128)


def test_nothing_given_is_changed():
    w, c = weight(dtype=torch.bfloat16), calibration()
    before, h = w.clone(), c.hessian.clone()
    walk = Walk(w, c, group_size=32)
    walk.now(40), walk.error, walk.rtn_error, walk.story(3, 50)
    assert torch.equal(w, before)
    assert torch.equal(c.hessian, h)
    assert walk.original.dtype == torch.float32
    assert torch.equal(walk.original, w.float())
    walk.now(40).zero_()
    assert walk.now(40).any()


# --------------------------------------------------------------------------------------- one weight


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_story_adds_up(options):
    walk = Walk(weight(), with_dead(calibration(), [3]), **options)
    run = record(weight(), with_dead(calibration(), [3]), **options)
    for row, column in ((0, 0), (3, 3), (5, 64), (11, 127)):
        s = walk.story(row, column)
        step = run.column(s.step)
        assert (s.column, step.column) == (column, column)
        assert s.original == walk.original[row, column]
        assert s.dead == (column == 3)
        assert s.start == (0 if s.dead else s.original)
        assert s.live == step.live[row] == walk.now(s.step)[row, s.step]
        assert s.incoming.sum() == pytest.approx(s.compensation, abs=1e-10)
        assert s.compensation == s.live - s.start
        assert (s.code, s.value) == (step.codes[row], step.value[row])
        assert s.value == pytest.approx(s.scale * (s.code - s.zero) + s.offset)
        assert s.position == pytest.approx(run.positions()[row, column])
        assert s.error == pytest.approx(s.rounding_error / s.diagonal)
        moved = walk.handed(s.step)[row, s.step + 1 :]
        np.testing.assert_allclose(s.outgoing, moved.numpy(), rtol=1e-12)
        assert np.array_equal(s.outgoing_columns, walk.perm[s.step + 1 :])
        assert np.array_equal(s.incoming_columns, walk.perm[: s.step])
        assert s.nearest_code == walk.nearest.codes[row, column]
        assert s.nearest_value == walk.nearest.dequantize()[row, column]


def test_a_story_names_the_largest():
    s = Walk(weight(), calibration(), act_order=True, group_size=32).story(4, 60)
    found = s.contributors(3)
    amounts = np.abs(s.incoming)
    assert [abs(a) for _, a in found] == sorted(amounts, reverse=True)[:3]
    where = {int(c): a for c, a in zip(s.incoming_columns, s.incoming, strict=True)}
    assert all(where[column] == amount for column, amount in found)
    assert len(s.receivers()) == min(8, len(s.outgoing))


def test_clipped_weights_are_those_beyond_the_last_level():
    w = weight()
    w[:, 40] = 9.0  # in a group whose range was taken before
    walk = Walk(w, calibration(), group_size=16, block_size=128, stale_groups=True, bits=2)
    stories = [walk.story(row, column) for row in range(12) for column in range(128)]
    clipped = [s for s in stories if s.clipped]
    assert clipped
    assert all(s.code in (s.qmin, s.qmax) for s in clipped)
    for s in stories:
        inside = abs(s.position - s.code) <= 0.5 + 1e-6
        assert inside != s.clipped


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
def test_columns_hold_what_a_chart_needs(convention):
    symmetric = CONVENTIONS[convention].symmetric is not None
    walk = Walk(weight(), calibration(), group_size=32, symmetric=symmetric, convention=convention)
    for step in (0, 33, 127):
        c = walk.column(step)
        np.testing.assert_allclose(c.value, c.scale * (c.codes - c.zero) + c.offset, atol=1e-12)
        near = np.clip(np.round(c.position), c.qmin, c.qmax) == c.codes
        tie = np.abs(np.abs(c.position - np.floor(c.position)) - 0.5) < 1e-9
        assert (near | tie).all()
        assert c.group == walk.group_of(step) == step // 32
        assert np.array_equal(c.original, walk.original[:, step])


def test_events_say_where_something_begins():
    w, c = weight(), calibration()
    found = Walk(w, c, group_size=32, block_size=48).events()
    assert found == {"group": [0, 32, 64, 96], "levels": [0, 32, 64, 96], "block": [0, 48, 96]}
    stale = Walk(w, c, group_size=16, block_size=48, stale_groups=True).events()
    assert stale["group"] == list(range(0, 128, 16))
    assert stale["levels"] == [0, 48, 96]
    static = {"group_size": 32, "static_groups": True}
    assert Walk(w, c, **static).events()["group"] == [0, 32, 64, 96]
    assert Walk(w, c, **static).events()["levels"] == [0]
    assert Walk(w, c, **static, act_order=True).events()["group"] == []
    assert Walk(w, c, group_size=None, act_order=True).events()["group"] == [0]
    trace = qviz.Trace("gptq.group", "gptq.column")
    qviz.methods.gptq.gptq(w, c, group_size=16, block_size=48, stale_groups=True, emit=trace)
    before, seen = set(), 0
    for event in trace:
        if event.name == "gptq.group":
            before.add(seen)
        else:
            seen += 1
    assert sorted(before) == stale["levels"]


# ----------------------------------------------------------------------------------------- a sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_is_the_calibration_of_its_rows(dtype):
    c = calibration()
    c = replace(c, hessian=c.hessian.to(dtype), layer="a.layer", source="a text")
    few, plain = c.sample(16), calibration_for(c.inputs[:16])
    torch.testing.assert_close(few.hessian, plain.hessian.to(dtype))
    assert few.hessian.dtype == dtype
    assert torch.equal(few.hessian, few.hessian.T)
    assert torch.equal(few.act_absmax, plain.act_absmax)
    torch.testing.assert_close(few.act_absmean, plain.act_absmean)
    assert (few.tokens, few.layer, few.source) == (16, "a.layer", "a text")
    assert torch.equal(few.inputs, c.inputs[:16])
    with pytest.raises(ValueError, match=r"401 rows of inputs.*only 400.*keep_inputs=401"):
        c.sample(401)
    with pytest.raises(ValueError, match="tokens must be from 1"):
        c.sample(0)


def test_minus_one_is_the_whole_row():
    w, c = weight(), calibration()
    walk, whole = Walk(w, c, group_size=-1, bits=3), Walk(w, c, group_size=None, bits=3)
    assert walk.options == whole.options
    assert np.array_equal(walk.error, whole.error)
    assert torch.equal(walk.nearest.codes, whole.nearest.codes)
