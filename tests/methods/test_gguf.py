"""GGUF types: golden bytes, invariants, layout, errors, trace."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inputs import calibration_for

import qviz
from qviz.methods.gguf import EVENTS, FALLBACKS, LAYOUTS, _one_thread, encode, from_bytes
from qviz.methods.gguf.layout import pack, unpack
from qviz.methods.gguf.search import descend_

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "gguf.npz")
VECTORS = [name for name in GOLDEN.files if "/" in name]
SPECS = {spec.name: spec for spec in EVENTS}
BITS_PER_WEIGHT = {
    "Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "MXFP4": 4.25,
    "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625,
}  # fmt: skip

matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.just(256)),
    elements=st.floats(-1e4, 1e4, width=32),
    fill=st.floats(-10, 10, width=32),
)


@pytest.mark.parametrize("vector", VECTORS)
def test_golden_bytes(vector):
    name, how = vector.split("/")
    skewed = "skewed_" if how == "skewed" else ""
    weight = torch.from_numpy(GOLDEN[f"{skewed}weight"])
    importance = None if how == "plain" else torch.from_numpy(GOLDEN[f"{skewed}importance"])
    ours = encode(weight, name, importance=importance)
    assert np.array_equal(ours.numpy(), GOLDEN[vector])


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=20)
@given(x=matrices)
def test_invariants(name, x):
    before = x.copy()
    q = qviz.quantize(x, "gguf", type=name)
    assert np.array_equal(x, before)
    assert int(q.codes.min()) >= 0 if name != "Q8_0" else int(q.codes.min()) >= -127
    assert q.bits_per_weight == BITS_PER_WEIGHT[name]
    packed = q.pack()
    assert sum(len(v) for v in packed.values()) * 8 == q.ledger.total_bits
    # The bytes alone say everything.
    again = from_bytes(name, torch.from_numpy(packed["blocks"]).reshape(len(x), -1))
    assert torch.equal(again.dequantize(), q.dequantize())
    assert torch.equal(again.codes, q.codes)


@pytest.mark.parametrize("name", LAYOUTS)
def test_error_is_within_a_step_for_ordinary_weights(name):
    w = torch.randn(16, 512, generator=torch.Generator().manual_seed(1))
    q = qviz.quantize(w, "gguf", type=name)
    if name == "MXFP4":
        step = q.grid.inner.scale.repeat_interleave(32, 1) * 4  # its widest gap, in half steps
    else:
        step = q.grid.inner.scale.float().abs().repeat_interleave(q.granularity.group_size, 1)
    low, high = (e.repeat_interleave(q.granularity.group_size, 1) for e in q.grid.extremes())
    inside = (w >= low) & (w <= high)
    error = (w - q.dequantize()).abs()
    assert inside.float().mean() > 0.8
    # The types of 32 find codes before d is rounded to float16: at code 127 that is 0.06 steps.
    assert (error <= 0.57 * step + 1e-6)[inside].all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_bit_of_a_block_has_one_place(name):
    layout = LAYOUTS[name]
    assert sum(n * bits for _, n, bits in layout.parts) == 8 * layout.nbytes
    data = torch.randint(0, 256, (200, layout.nbytes), dtype=torch.uint8)
    parts = unpack(layout, data)
    for part, n, bits in layout.parts:
        assert parts[part].shape == (200, n)
        if parts[part].dtype == torch.uint8:
            assert int(parts[part].max()) < 2**bits
    assert torch.equal(pack(layout, parts), data)


def test_a_q4_k_block_by_hand():
    """Codes, scales and minimums where the C struct has them."""
    layout = LAYOUTS["Q4_K"]
    parts = unpack(layout, torch.zeros(1, 144, dtype=torch.uint8))
    parts["codes"][0, 64 + 5], parts["codes"][0, 64 + 32 + 5] = 9, 6
    parts["scales"][0, 2], parts["scales"][0, 6] = 0b101010, 0b110001
    parts["mins"][0, 7] = 0b010111
    parts["d"] = torch.tensor([[1.0]], dtype=torch.float16)
    data = pack(layout, parts)[0]
    assert data[:4].tolist() == [0x00, 0x3C, 0, 0]
    assert data[16 + 32 + 5] == 9 | 6 << 4
    assert data[4 + 2] == 0b101010 | 0b11 << 6  # scale 2, and the top of scale 6
    assert data[4 + 7] == 0b01 << 6  # the top of minimum 7
    assert data[4 + 8 + 2] == 0b0001
    assert data[4 + 8 + 3] == 0b0111 << 4


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("important", [False, True])
def test_trace_changes_nothing_and_is_in_the_table(name, important):
    w = torch.randn(3, 512)
    importance = torch.rand(512) if important else None
    plain = qviz.quantize(w, "gguf", type=name, importance=importance)
    trace = qviz.Trace()
    traced = qviz.quantize(w, "gguf", type=name, importance=importance, emit=trace)
    assert torch.equal(plain.grid.data, traced.grid.data)
    for event in trace:
        assert set(event.tensors) == set(SPECS[event.name].tensors)
    assert torch.equal(trace.named("gguf.bytes")[0]["data"].reshape(3, -1), plain.grid.data)
    codes = trace.named("gguf.codes")[0]["codes"].reshape(3, 512)
    assert torch.equal(codes, plain.codes.view(torch.uint8))


def test_every_event_of_the_table_occurs():
    seen, w = set(), torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    for name in LAYOUTS:
        trace = qviz.Trace()
        qviz.quantize(w, "gguf", type=name, emit=trace)
        seen |= {event.name for event in trace}
    assert seen == set(SPECS)


@pytest.mark.parametrize(("name", "tries"), [("Q2_K", 16), ("Q4_K", 21), ("Q5_K", 16)])
def test_the_search_of_one_super_block_is_a_story(name, tries):
    """Start, every try and the choice: the last accepted fit is what the first level shows."""
    trace = qviz.Trace("kquant.*")
    qviz.quantize(torch.randn(1, 256), "gguf", type=name, emit=trace)
    searched = trace.named("kquant.search")
    assert len(searched) == tries
    start = trace.named("kquant.start")[0]
    best, scale, minimum = start["error"], start["scale"], start["low"]
    for event in searched:
        assert torch.equal(event["accepted"], event["error"] < best)
        best = torch.where(event["accepted"], event["error"], best)
        scale = torch.where(event["accepted"], event["scale"], scale)
        minimum = torch.where(event["accepted"], event["minimum"], minimum)
    first = trace.named("kquant.first_level")[0]
    assert torch.equal(first["scales"].flatten(), scale)
    assert torch.equal(first["mins"].flatten(), -minimum)
    assert (best <= start["error"]).all() and (best < start["error"]).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inputs_of_every_kind_agree(dtype):
    w = torch.randn(8, 256, dtype=torch.float64).to(dtype)
    want = encode(w.float(), "Q4_K")
    spread = torch.empty(16, 512, dtype=dtype)[::2, ::2].copy_(w)
    others = [w, spread, w.t().contiguous().t(), torch.nn.Parameter(w)]
    if dtype != torch.bfloat16:
        others.append(w.numpy())
    for other in others:
        assert torch.equal(qviz.quantize(other, "gguf", type="Q4_K").grid.data, want)


def test_chunks_do_not_show(monkeypatch):
    from qviz.methods import gguf

    w, importance = torch.randn(7, 512), torch.rand(512)
    for name in LAYOUTS:
        whole = encode(w, name), encode(w, name, importance=importance)
        monkeypatch.setitem(gguf.CHUNK, "cpu", 3 * 256)
        parts = encode(w, name), encode(w, name, importance=importance)
        monkeypatch.undo()
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_importance_moves_the_error_away_from_what_matters():
    w = torch.randn(64, 512)
    importance = torch.ones(512)
    importance[::8] = 100.0
    for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q4_0", "Q4_1"):
        plain = qviz.quantize(w, "gguf", type=name)
        weighed = qviz.quantize(w, "gguf", type=name, importance=importance)
        assert weighed.info["importance"]
        loss = [((q.dequantize() - w) ** 2 @ importance).sum() for q in (plain, weighed)]
        assert loss[1] < loss[0]
    assert not qviz.quantize(w, "gguf", type="Q8_0", importance=importance).info["importance"]


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "MXFP4"])
def test_weights_that_vanish_are_counted(name):
    w = torch.randn(4, 256)
    group = LAYOUTS[name].group
    for kept in (w, torch.zeros(4, 256)):
        assert qviz.quantize(kept, "gguf", type=name).info["vanished_groups"] == 0
    q = qviz.quantize(w * 1e-12, "gguf", type=name)
    assert q.info["vanished_groups"] == 4 * 256 // group
    assert not q.dequantize().any()


def test_a_constant_vanishes_only_without_an_offset():
    tiny = torch.full((2, 256), 1e-12)
    assert qviz.quantize(tiny, "gguf", type="Q8_0").info["vanished_groups"] == 16
    assert qviz.quantize(tiny + 0.5, "gguf", type="Q4_1").info["vanished_groups"] == 0


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.endswith("_K")])
def test_a_super_block_without_importance_vanishes(name):
    importance = (torch.arange(512) >= 256).float()
    q = qviz.quantize(torch.randn(3, 512), "gguf", type=name, importance=importance)
    assert q.info["vanished_groups"] == 3 * 256 // LAYOUTS[name].group
    assert not q.dequantize()[:, :256].any()
    assert q.dequantize()[:, 256:].any()


def test_importance_of_every_kind_agrees():
    w, importance = torch.randn(4, 256), torch.rand(256)
    want = encode(w, "Q4_K", importance=importance)
    for own in (importance.numpy(), importance.double(), torch.nn.Parameter(importance)):
        assert torch.equal(qviz.quantize(w, "gguf", importance=own).grid.data, want)


def test_importance_from_a_calibration():
    """The Hessian is twice the mean of x·xᵀ: half its diagonal is the mean square."""
    x = torch.randn(300, 256) * torch.logspace(-1, 1, 256)
    w = torch.randn(32, 256)
    calibration = calibration_for(x)
    importance = calibration.hessian.diagonal() / 2
    assert torch.allclose(importance.float(), x.square().mean(0))
    q, plain = (qviz.quantize(w, "gguf", type="Q3_K", importance=i) for i in (importance, None))
    outputs = [((r.dequantize() - w) @ x.T).square().sum() for r in (q, plain)]
    assert outputs[0] < outputs[1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_bytes_of_a_file_are_read(name):
    """As gguf-py has them: a NumPy array that cannot be written to."""
    w = torch.randn(3, 512)
    data = encode(w, name).numpy()
    data.flags.writeable = False
    assert torch.equal(
        from_bytes(name, data).dequantize(), qviz.quantize(w, "gguf", type=name).dequantize()
    )


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("Q4K", torch.zeros(2, 144, dtype=torch.uint8), "mean Q4_K"),
        ("Q4_K", torch.zeros(144, 2, dtype=torch.uint8), "multiple of 144 bytes, which 2 is not"),
        ("Q4_K", torch.zeros(144, dtype=torch.uint8), r"got torch.uint8 \[144\]"),
        ("Q4_K", torch.zeros(2, 144), "must be uint8.*got torch.float32"),
        ("Q4_K", torch.zeros(0, 144, dtype=torch.uint8), "must be uint8"),
    ],
)
def test_bytes_that_are_no_blocks_are_refused(name, data, says):
    with pytest.raises(ValueError, match=says):
        from_bytes(name, data)


def test_torch_has_its_threads_again():
    """After an error, and after calls that overlapped in two threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(ZeroDivisionError), _one_thread():
            torch.get_num_threads() // (torch.get_num_threads() - 1)
        assert torch.get_num_threads() == 3

        first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

        def first():
            with _one_thread():
                first_is_in.set()
                assert second_is_in.wait(10)
            first_is_out.set()

        def second():
            assert first_is_in.wait(10)
            with _one_thread():
                second_is_in.set()
                assert first_is_out.wait(10)
                seen.append(torch.get_num_threads())  # still, although the first has left

        seen = []
        threads = [threading.Thread(target=f) for f in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [1]
        fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        assert seen == [1, 3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "instead"), FALLBACKS.items())
def test_fallback_is_asked_for_and_told(name, instead):
    w = torch.randn(4, 96)
    with pytest.raises(ValueError, match=f"multiple of 256.*got 96.*fallback=True.*{instead}"):
        qviz.quantize(w, "gguf", type=name)
    q = qviz.quantize(w, "gguf", type=name, fallback=True)
    assert q.info["type"] == instead
    assert name in q.info["fallback"]
    assert torch.equal(q.grid.data, encode(w, instead))


@pytest.mark.parametrize(
    ("weight", "options", "error", "says"),
    [
        (torch.randn(4, 100), {}, ValueError, "not even a multiple of 32.*skip this layer"),
        (torch.randn(4, 40), {"type": "Q8_0"}, ValueError, "not even a multiple of 32"),
        (torch.randn(4, 256), {"type": "Q4_k"}, ValueError, "mean Q4_K"),
        (torch.randn(4, 256) * 1e12, {"type": "Q4_K"}, ValueError, r"\[0, 0\] overflow.*Q4_K"),
        (torch.randn(4, 256) * 1e12, {"type": "Q4_1"}, ValueError, r"overflow.*Pass weight /"),
        (torch.randn(4, 256).double() * 1e300, {}, ValueError, "weight has.*beyond float32"),
        (torch.randn(4, 256), {"importance": torch.ones(4)}, ValueError, r"tensor \[256\].*\(4,\)"),
        (torch.randn(4, 256), {"importance": -torch.ones(256)}, ValueError, "mean of squares"),
        (torch.randn(4, 256), {"importance": torch.ones(256) / 0}, ValueError, "not finite"),
        (
            torch.randn(4, 256),
            {"importance": torch.ones(256).double() * 1e300},
            ValueError,
            "importance has.*beyond float32",
        ),
        (torch.randn(4, 256), {"importance": torch.zeros(256)}, ValueError, "importance=None"),
        (torch.randn(4, 256), {"importance": [1.0] * 256}, ValueError, r"\[256\].*got list"),
        (torch.randn(4, 256), {"importance": torch.ones(256) * 1j}, TypeError, "real"),
        (torch.randn(4, 256), {"type": "Q4_K_M"}, ValueError, "mix.*type='Q4_K'.*tensor_types"),
        (torch.randn(4, 256), {"bits": 4}, TypeError, "option for gguf"),
        (torch.randn(256), {}, ValueError, "reshape"),
    ],
)
def test_bad_input_names_the_fix(weight, options, error, says):
    with pytest.raises(error, match=says):
        qviz.quantize(weight, "gguf", **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite_is_refused_by_position(bad):
    w = torch.randn(4, 256)
    w[2, 7] = bad
    with pytest.raises(ValueError, match=r"weight.*\[2, 7\].*finite"):
        qviz.quantize(w, "gguf")


def test_hard_weights_decode_to_something_near(hard_weight):
    w = hard_weight.repeat(1, 2)
    for name in LAYOUTS:
        try:
            back = qviz.quantize(w, "gguf", type=name).dequantize()
        except ValueError as refused:
            assert "overflow" in str(refused) and w.abs().max() > 1e5
            continue
        assert torch.isfinite(back).all()


def test_a_window_and_levels():
    w = torch.randn(6, 512)
    for name in LAYOUTS:
        q = qviz.quantize(w, "gguf", type=name)
        whole = q.dequantize()
        assert torch.equal(q.window(slice(1, 3), slice(30, 50)), whole[1:3, 30:50])
        assert whole[2, 40] in q.levels(2, 40)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("important", [False, True])
def test_codes_and_grid_are_what_the_bytes_decode_to(hard_weight, name, important):
    """They come from the encoder, not from reading its bytes again."""
    w = hard_weight.repeat(1, 2)
    g = torch.Generator().manual_seed(6)
    importance = torch.rand(w.shape[1], generator=g) if important else None
    try:
        q = qviz.quantize(w, "gguf", type=name, importance=importance)
    except ValueError as refused:
        assert "overflow" in str(refused)
        return
    read = from_bytes(name, q.grid.data)
    assert torch.equal(q.codes, read.codes)
    assert torch.equal(q.grid.inner.scale, read.grid.inner.scale)
    offsets = [getattr(made.grid.inner, "offset", None) for made in (q, read)]
    assert (offsets[0] is None) == (offsets[1] is None)
    assert offsets[0] is None or torch.equal(*offsets)


def test_moves_of_q3_k_come_one_at_a_time():
    """From the events alone: each is the first, in the order of the weights and round and round,
    that makes (Σwxq)²/Σwq² larger, and what they lead to is what is stored."""
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    trace = qviz.Trace("kquant.*", "gguf.blocks")
    qviz.quantize(w, "gguf", type="Q3_K", emit=trace)
    x = trace.named("gguf.blocks")[0]["x"].reshape(-1, 16)
    weights = trace.named("kquant.weights")[0]["weights"]
    start = trace.named("kquant.refine_start")[0]
    codes, sums = start["codes"].clone(), (start["wxq"].clone(), start["wqq"].clone())
    last, gain = torch.full((len(x),), -1), sums[0].square() / sums[1]
    moves = trace.named("kquant.refine")
    assert len(moves) > 3
    seen = torch.arange(len(x))
    for event in moves:
        blocks = event["blocks"]
        assert torch.isin(blocks, seen).all()  # a sub-block without a move is done
        seen = blocks
        assert (event["weight"] != last[blocks]).all()
        assert (codes[blocks, event["weight"]] != event["code"]).all()
        codes[blocks, event["weight"]], last[blocks] = event["code"], event["weight"]
        now = event["wxq"].square() / event["wqq"]
        assert (now > gain[blocks]).all()
        gain[blocks] = now
        exact = (weights * x * codes)[blocks].sum(1)
        torch.testing.assert_close(event["wxq"], exact, rtol=1e-4, atol=1e-5)
    best = weights * x * codes
    scale = best.sum(1) / (weights * codes.square()).sum(1)
    first = trace.named("kquant.first_level")[0]["scales"].flatten()
    torch.testing.assert_close(first, scale, rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.unique(last), torch.arange(-1, 16))


def one_by_one(x, w, q, low, high, as_bytes):
    """What `descend_` does, for one sub-block, number after number in float32: ggml's own loop."""
    f = np.float32

    def nearest(t):
        bits = (np.array([t], f) + f(12582912)).view(np.int32)
        return f(int(bits[0] & 0x007FFFFF) - 0x00400000)

    wxq, wqq = f(0), f(0)
    for i in range(len(x)):
        wxq, wqq = f(wxq + f(f(w[i] * x[i]) * q[i])), f(wqq + f(f(w[i] * q[i]) * q[i]))
    q = [f(int(c) % 256) if as_bytes else c for c in q]
    for _ in range(5):
        moved = False
        for i in range(len(x)):
            others_x = f(wxq - f(f(w[i] * x[i]) * q[i]))
            others_q = f(wqq - f(f(w[i] * q[i]) * q[i]))
            if not (others_x > 0 and (others_q > 0 or not as_bytes)):
                continue
            code = nearest(f(f(x[i] * others_q) / others_x))
            code = min(code, f(high)) if low is None else max(f(low), min(code, f(high)))
            if code == q[i]:
                continue
            now_x = f(others_x + f(f(w[i] * x[i]) * code))
            now_q = f(others_q + f(f(w[i] * code) * code))
            if now_q > 0 and f(f(now_x * now_x) * wqq) > f(f(wxq * wxq) * now_q):
                q[i], wxq, wqq, moved = f(int(code) % 256) if as_bytes else code, now_x, now_q, True
        if not moved:
            break
    return q, wxq, wqq


@pytest.mark.parametrize(("low", "high", "as_bytes"), [(-4, 3, False), (None, 63, True)])
@settings(max_examples=60)
@given(
    x=hnp.arrays(np.float32, (16, 5), elements=st.floats(-8, 8, width=16)),
    w=hnp.arrays(np.float32, (16, 5), elements=st.floats(0, 8, width=16)),
)
def test_looking_at_all_weights_at_once_moves_the_same(low, high, as_bytes, x, w):
    start = np.clip(np.round(x * np.float32(1.3)), -4 if low is None else low, high)
    start = start.astype(np.float32)
    q = torch.from_numpy(start.copy())
    wxq, wqq = descend_(
        torch.from_numpy(x), torch.from_numpy(w), q, low=low, high=high, as_bytes=as_bytes
    )
    with np.errstate(all="ignore"):
        for j in range(x.shape[1]):
            codes, sum_x, sum_q = one_by_one(x[:, j], w[:, j], start[:, j], low, high, as_bytes)
            assert np.array_equal(q[:, j].numpy(), np.array(codes, np.float32))
            assert (wxq[j].item(), wqq[j].item()) == (sum_x, sum_q)
