"""Vector codebooks: a loss that never rises, more for the same bits than scalars, and the edges."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import adversarial
from torch.utils._python_dispatch import TorchDispatchMode

import qviz
from qviz.methods.vector import EVENTS, Problem


def heavy(rows=32, columns=64, dtype=torch.float32):
    g = torch.Generator().manual_seed(4)
    w = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    w[:, ::13] *= 4
    return (w * torch.logspace(-1, 1, rows, dtype=torch.float64)[:, None]).to(dtype)


@settings(max_examples=60)
@given(data=st.data())
def test_the_loss_never_rises(data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    dim, books = data.draw(st.sampled_from([(1, 1), (2, 1), (4, 1), (4, 2), (8, 2), (2, 3)]))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    w = torch.randn(8, 64, generator=g, dtype=dtype)
    if data.draw(st.booleans()):
        w = w.round()  # ties, and vectors that are equal
    w = w + data.draw(st.sampled_from([0, 5]))
    weigh = torch.rand(64, generator=g) if data.draw(st.booleans()) else torch.ones(64)
    trace = qviz.Trace()
    q = qviz.quantize(
        w,
        "vector",
        bits=data.draw(st.integers(1, 5)),
        dim=dim,
        books=books,
        iters=8,
        beam=data.draw(st.sampled_from([1, 2])),
        importance=weigh,
        row_scale=data.draw(st.booleans()),
        empty=data.draw(st.sampled_from(["farthest", "keep"])),
        store_dtype=None,
        seed=data.draw(st.integers(0, 9)),
        emit=trace,
    )
    slack = 1e-6 if dtype == torch.float32 else 1e-13  # of the energy: rounding of the entries
    losses = []
    for event in trace:
        if event.name == "vector.book":
            losses.append([])
        elif "loss" in event.tensors:
            losses[-1].append(float(event["loss"]))
    for stage in losses:
        assert all(b <= a + slack for a, b in pairwise(stage))
    # and the last one is what it says: the part of the weight's weighted energy that is lost
    error = ((w - q.dequantize()).double().square() * weigh).sum()
    energy = (w.double().square() * weigh).sum()
    assert losses[-1][-1] == q.info["loss"]
    assert q.info["loss"] == pytest.approx(float(error / energy), rel=1e-3, abs=1e-9)


@pytest.mark.slow
def test_more_for_the_same_bits_than_any_scalar():
    """Two bits for each normal weight. The best scalar levels lose 0.1175 of the energy (Max 1960);
    Shannon's limit is 1/16; vectors of 2 and 4 lie between, in this order."""
    w = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    options = {"iters": 12, "row_scale": False}
    loss = {
        dim: qviz.quantize(w, "vector", dim=dim, bits=2 * dim, **options).info["loss"]
        for dim in (1, 2, 4)
    }
    assert loss[1] == pytest.approx(0.11748, rel=0.01)
    assert 1 / 16 < loss[4] < loss[2] < loss[1]
    assert 10 * math.log10(loss[1] / loss[4]) > 0.7  # decibels, at 2.03 bits with the codebook
    for scalar in (
        qviz.quantize(w, bits=2, symmetric=False, granularity="channel"),
        qviz.quantize(w, "hqq", bits=2, group_size=64),
    ):
        assert scalar.bits_per_weight >= 2.03
        assert (w - scalar.dequantize()).square().mean() > loss[1]


def test_two_books_go_further_than_one():
    """Two books of 2^6 at dim 4 against one of 2^8 at dim 4 and one of 2^6 at dim 2 (3 bits)."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    two = qviz.quantize(w, "vector", dim=4, bits=6, books=2, iters=10)
    one = qviz.quantize(w, "vector", dim=2, bits=6, iters=10)
    assert two.ledger.per_weight("codes") == one.ledger.per_weight("codes") == 3
    assert two.info["loss"] < one.info["loss"]
    greedy, _, together = two.info["losses"]
    assert together[-1] < two.info["losses"][1][-1] < greedy[-1]
    wider = qviz.quantize(w, "vector", dim=4, bits=6, books=2, iters=10, beam=32)
    assert wider.info["loss"] < two.info["loss"]


def test_a_trained_layer():
    w = qviz.load_layer(None, "model.layers.0.mlp.up_proj")
    q = qviz.quantize(w, "vector", bits=8, dim=4, iters=10)
    scalar = qviz.quantize(w, "hqq", bits=2, group_size=64)
    assert q.bits_per_weight < scalar.bits_per_weight
    assert (w - q.dequantize()).norm() < 0.8 * (w - scalar.dequantize()).norm()


def test_importance_moves_the_error_where_it_counts_less():
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    weigh = torch.ones(64)
    weigh[::2] = 20
    plain = qviz.quantize(w, "vector", bits=6, dim=4)
    led = qviz.quantize(w, "vector", bits=6, dim=4, importance=weigh)

    def counted(q):
        return float(((w - q.dequantize()).square() * weigh).sum())

    assert counted(led) < 0.7 * counted(plain)
    scaled = qviz.quantize(w, "vector", bits=6, dim=4, importance=weigh * 8)
    assert torch.equal(scaled.codes, led.codes)
    share = counted(led) / float((w.square() * weigh).sum())
    assert led.info["loss"] == pytest.approx(share, rel=1e-3)


def test_what_it_costs():
    w = heavy(64, 128)
    q = qviz.quantize(w, "vector", bits=5, dim=4, books=2)
    items = {i.name: (i.count, i.bits) for i in q.ledger.items}
    assert items == {
        "codes": (64 * 32 * 2, 5),
        "codebooks": (2 * 32 * 4, 16),
        "scales": (64, 16),
    }
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes
    full = qviz.quantize(w, "vector", bits=5, row_scale=False, store_dtype=None)
    assert full.ledger.per_weight("codebooks") == 32 * 4 * 32 / w.numel()
    assert full.ledger.per_weight("scales") == 0


def test_narrow_codes():
    """One bit for four weights, and a beam wider than there are entries."""
    q = qviz.quantize(heavy(), "vector", bits=1, books=2)
    assert int(q.codes.max()) == 1
    assert q.ledger.per_weight("codes") == 0.5


def test_wide_codes():
    w = heavy(64, 128)
    q = qviz.quantize(w, "vector", bits=10, dim=2, iters=2)
    assert q.codes.dtype == torch.int16 and q.codes.shape == (64, 64, 1)
    assert int(q.codes.max()) > 255
    assert len(q.pack()["codes"]) == 64 * 64 * 10 // 8
    assert (heavy(64, 128) - q.dequantize()).norm() < 0.1 * w.norm()


def test_events_in_their_order():
    trace = qviz.Trace()
    q = qviz.quantize(heavy(), "vector", bits=4, books=2, iters=3, emit=trace)
    names = [event.name.removeprefix("vector.") for event in trace]
    turns = ["assign", "update"] * 3
    assert names == ["start", "book", *turns, "book", *turns, *turns, "codes"]
    table = {spec.name: spec for spec in EVENTS}
    assert set(table) == {event.name for event in trace}
    for event in trace:
        assert event.tensors.keys() == table[event.name].tensors.keys()
    assert torch.equal(trace[-1]["codes"], q.codes)
    assert torch.equal(trace[-1]["books"], q.grid.books)
    assert trace[2]["codes"].shape == (32, 16, 2) and trace[3]["books"].shape == (2, 16, 4)
    assert not trace[3]["books"][1].any(), "the second book is still to come"
    updates = [float(event["loss"]) for event in trace.named("vector.update")]
    assert updates == [loss for stage in q.info["losses"] for loss in stage]


def test_an_update_is_the_weighted_mean():
    g = torch.Generator().manual_seed(3)
    x, h = (torch.rand(60, 2, generator=g, dtype=torch.float64) for _ in range(2))
    codes = torch.randint(4, (60, 1), generator=g)
    table, _, moved = Problem.of(x, h, "farthest").update(
        torch.zeros(1, 4, 2, dtype=torch.float64), codes, [0]
    )
    assert moved == 0
    for k in range(4):
        own = codes[:, 0] == k
        want = (h[own] * x[own]).sum(0) / h[own].sum(0)
        assert torch.allclose(table[0, k], want, atol=1e-14)


@pytest.mark.parametrize(("empty", "moved"), [("farthest", 2), ("keep", 0)])
def test_empty_entries(empty, moved):
    x = torch.tensor([0.0, 1, 2, 3, 10, 11, 30, 50], dtype=torch.float64).reshape(1, 8)
    start = torch.tensor([1.0, 12, 100, 200], dtype=torch.float64).reshape(1, 4, 1)
    trace = qviz.Trace("vector.update")
    q = qviz.quantize(
        x, "vector", bits=2, dim=1, iters=1, start=start, empty=empty, row_scale=False,
        store_dtype=None, emit=trace,
    )  # fmt: skip
    assert int(trace[0]["moved"]) == moved == q.info["moved"]
    entries = trace[0]["books"].flatten().tolist()
    # 50 and 30 have the largest errors; the others keep their entries' means
    assert entries == ([1.5, 10.5, 50, 30] if moved else [1.5, 25.25, 100, 200])
    assert q.info["unused"] == [0 if moved else 2]


def test_a_draw_is_repeated_by_its_seed():
    w = heavy()
    a, b, c = (qviz.quantize(w, "vector", bits=4, iters=1, seed=s) for s in (3, 3, 4))
    assert torch.equal(a.codes, b.codes) and torch.equal(a.grid.books, b.grid.books)
    assert not torch.equal(a.grid.books, c.grid.books)
    state = torch.get_rng_state()
    qviz.quantize(w, "vector", bits=4, iters=1)
    assert torch.equal(state, torch.get_rng_state()), "torch's own generator is left alone"


def test_what_a_training_loop_holds_may_be_given():
    """Importances and starts with a gradient of their own, which the result does not carry on."""
    w, weigh = heavy(), torch.rand(64) + 0.1
    start = torch.randn(1, 16, 4)
    plain = qviz.quantize(w, "vector", bits=4, importance=weigh, start=start)
    given = qviz.quantize(
        torch.nn.Parameter(w),
        "vector",
        bits=4,
        importance=torch.nn.Parameter(weigh),
        start=torch.nn.Parameter(start),
    )
    assert not given.grid.books.requires_grad
    assert torch.equal(given.codes, plain.codes)
    assert torch.equal(given.dequantize(), plain.dequantize())


def test_far_start_draws_are_far_apart():
    """Eight tight clusters: k-means++ hits nearly all of them, an even draw about five."""
    g = torch.Generator().manual_seed(9)
    centres = torch.randn(8, 2, generator=g) * 10
    x = (centres[torch.arange(4096) % 8] + 0.01 * torch.randn(4096, 2, generator=g)).reshape(64, -1)
    hits = []
    for seed in range(10):
        trace = qviz.Trace("vector.book")
        qviz.quantize(x, "vector", bits=3, dim=2, iters=1, row_scale=False, seed=seed, emit=trace)
        hits.append(len(torch.cdist(trace[0]["books"][0], centres).argmin(1).unique()))
    assert sum(hits) / len(hits) > 7


class Largest(TorchDispatchMode):
    """The most numbers that any tensor held that an operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.slow
def test_distances_are_never_held_all_at_once(monkeypatch):
    w = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        whole = qviz.quantize(w, "vector", bits=8, iters=2)
    assert largest.numel <= 2**18 < 256 * w.numel() // 4  # a part beside the whole table
    monkeypatch.setattr("qviz.methods.vector.CHUNK", {"cpu": 1000, "cuda": 1000})
    assert torch.equal(qviz.quantize(w, "vector", bits=8, iters=2).codes, whole.codes)


@pytest.mark.parametrize(("name", "w"), adversarial().items(), ids=list(adversarial()))
@pytest.mark.parametrize("books", [1, 2])
def test_hostile_weights(name, w, books):
    q = qviz.quantize(w, "vector", bits=4, dim=4, books=books, iters=5, store_dtype=None)
    back = q.dequantize()
    assert torch.isfinite(back).all()
    if name in ("all zero", "constant", "negative constant"):
        assert torch.allclose(back, w, rtol=1e-6)
        assert q.info["loss"] < 1e-12
    else:
        assert q.info["loss"] < 0.55
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes


def test_what_16_bits_cannot_hold_is_refused():
    w = adversarial()
    for name, options in (
        ("large", {}),  # row scales of 1e30
        ("tiny", {}),
        ("tiny", {"row_scale": False}),  # entries of 1e-20
        ("large", {"row_scale": False}),  # squares beyond float32
    ):
        with pytest.raises(ValueError, match=r"row_scale=True"):
            qviz.quantize(w[name], "vector", bits=4, **options)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"bits": 13}, ValueError, "from 1 to 12"),
        ({"bits": 10}, ValueError, r"512 vectors are fewer than the 1024.*at most 9"),
        ({"dim": 7}, ValueError, r"dim 7 does not divide the 64 columns.*1, 2, 4, 8, 16"),
        ({"dim": 4.0}, TypeError, "integer"),
        ({"books": 5}, ValueError, "from 1 to 4"),
        ({"iters": 0}, ValueError, "iters must be from 1"),
        ({"beam": 0}, ValueError, "beam must be from 1"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"seed": None}, TypeError, "seed must be an integer"),
        ({"empty": "farest"}, ValueError, "mean farthest"),
        ({"store_dtype": torch.int8}, TypeError, "store_dtype must"),
        ({"importance": torch.ones(63)}, ValueError, r"importance must be \[64\]"),
        ({"importance": -torch.ones(64)}, ValueError, "not negative"),
        ({"importance": torch.zeros(64)}, ValueError, "nothing would be fitted"),
        ({"start": torch.zeros(1, 16, 4)}, ValueError, r"\[1, 256, 4\]"),
        ({"group_size": 32}, TypeError, "option for vector"),
    ],
)
def test_bad_options_name_the_fix(options, error, says):
    with pytest.raises(error, match=says):
        qviz.quantize(heavy(), "vector", **options)


def test_no_weight_has_levels_of_its_own():
    q = qviz.quantize(heavy(), "vector", bits=4)
    with pytest.raises(ValueError, match="several weights at once"):
        q.levels(0, 0)
    assert torch.equal(q.window(slice(1, 3), slice(5, 9)), q.dequantize()[1:3, 5:9])
