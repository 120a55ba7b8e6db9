"""Affine quantization: invariants, inputs of every kind, errors, trace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qviz
from qviz.core.granularity import Granularity
from qviz.methods.affine import CONVENTIONS, EVENTS, affine

MODES = [
    (name, symmetric)
    for name, c in CONVENTIONS.items()
    for symmetric in (True, False)
    if (c.symmetric if symmetric else c.asymmetric) is not None
]

matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.sampled_from([8, 16, 32])),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@pytest.mark.parametrize(("convention", "symmetric"), MODES)
@settings(max_examples=40)
@given(x=matrices, bits=st.integers(2, 8))
def test_invariants(convention, symmetric, x, bits):
    before = x.copy()
    options = {"bits": bits, "symmetric": symmetric, "convention": convention, "group_size": 8}
    try:
        q = qviz.quantize(x, **options)
    except ValueError as refused:
        assert "scale" in str(refused)
        return
    assert np.array_equal(x, before, equal_nan=True)
    assert int(q.codes.min()) >= q.grid.qmin
    assert int(q.codes.max()) <= q.grid.qmax
    assert (q.grid.scale > 0).all()
    # The ledger is the packed bytes, whatever the sizes.
    packed = q.pack()
    assert sum(len(v) for v in packed.values()) == q.ledger.nbytes
    assert q.bits_per_weight == pytest.approx(8 * q.ledger.nbytes / x.size)
    # Nothing inside the representable range is further than half a step from its level (the
    # slack is float32's own: x/s and s·q each round once).
    low, high = q.grid.extremes()
    w = torch.from_numpy(x).reshape(x.shape[0], -1, 8)
    back = q.dequantize().reshape(w.shape)
    step = q.grid.scale.float().unsqueeze(-1)
    inside = (w >= low.unsqueeze(-1)) & (w <= high.unsqueeze(-1))
    slack = 1e-5 * w.abs() + 1e-3 * step
    assert ((w - back).abs() <= step / 2 + slack)[inside].all()


@pytest.mark.parametrize(("convention", "symmetric"), MODES)
def test_trace_changes_nothing_and_is_complete(convention, symmetric):
    w = torch.randn(6, 64)
    options = {"bits": 3, "symmetric": symmetric, "convention": convention, "group_size": 16}
    plain = qviz.quantize(w, **options)
    trace = qviz.Trace()
    traced = qviz.quantize(w, emit=trace, **options)
    assert torch.equal(plain.codes, traced.codes)
    assert torch.equal(plain.grid.scale, traced.grid.scale)
    assert [e.name for e in trace] == [spec.name for spec in EVENTS]
    for event, spec in zip(trace, EVENTS, strict=True):
        assert set(event.tensors) == set(spec.tensors)
    assert torch.equal(trace.named("affine.codes")[0]["codes"], traced.codes)


def test_traced_and_untraced_run_the_same_operations():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.ops = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.ops.append(str(func))
            return func(*args, **(kwargs or {}))

    w = torch.randn(4, 64)

    def operations(emit):
        with Recorder() as recorder:
            qviz.quantize(w, bits=4, symmetric=False, group_size=16, emit=emit)
        return recorder.ops

    # views and the zeros shown for a missing zero point are the trace's; arithmetic is the same
    free = ("aten.view", "aten._unsafe_view", "aten.zeros_like", "aten.reshape")
    plain = [op for op in operations(None) if not op.startswith(free)]
    traced = [op for op in operations(lambda event, **tensors: None) if not op.startswith(free)]
    assert plain == traced


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inputs_of_every_kind_agree(dtype):
    w = torch.randn(8, 64, dtype=torch.float64).to(dtype)
    want = qviz.quantize(w, bits=4, group_size=32)
    spread = torch.empty(16, 128, dtype=dtype)[::2, ::2].copy_(w)
    assert not spread.is_contiguous()
    transposed = w.t().contiguous().t()
    parameter = torch.nn.Parameter(w)
    for other in (spread, transposed, parameter):
        assert torch.equal(qviz.quantize(other, bits=4, group_size=32).codes, want.codes)
    if dtype != torch.bfloat16:  # NumPy has none
        array = w.numpy()
        assert torch.equal(qviz.quantize(array, bits=4, group_size=32).codes, want.codes)
        backwards = np.flip(np.flip(array).copy())
        assert min(backwards.strides) < 0
        assert torch.equal(qviz.quantize(backwards, bits=4, group_size=32).codes, want.codes)
        array.setflags(write=False)
        assert torch.equal(qviz.quantize(array, bits=4, group_size=32).codes, want.codes)


def test_granularities_are_one_idea():
    w = torch.randn(8, 64)
    channel = qviz.quantize(w, granularity="channel")
    assert torch.equal(channel.codes, qviz.quantize(w, granularity="group", group_size=64).codes)
    assert torch.equal(channel.codes, qviz.quantize(w, granularity="group", group_size=None).codes)
    assert torch.equal(channel.codes, qviz.quantize(w, granularity="token").codes)
    numpy_size = qviz.quantize(w, granularity="group", group_size=np.int64(64))
    assert torch.equal(channel.codes, numpy_size.codes)
    tensor = qviz.quantize(w, granularity="tensor")
    assert tensor.grid.scale.shape == (1, 1)
    flat = qviz.quantize(w.reshape(1, -1), granularity="channel")
    assert torch.equal(tensor.codes.flatten(), flat.codes.flatten())


def test_a_granularity_is_checked_however_it_is_made():
    with pytest.raises(ValueError, match="one of tensor, channel"):
        qviz.Granularity("grup")
    with pytest.raises(ValueError, match="does not apply"):
        qviz.Granularity("channel", 32)
    with pytest.raises(ValueError, match="omit group_size=32"):
        qviz.Granularity.of(qviz.Granularity("channel"), 32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_refused_by_position(bad):
    w = torch.randn(4, 64)
    w[2, 7] = bad
    with pytest.raises(ValueError, match=r"weight.*\[2, 7\].*finite"):
        qviz.quantize(w)


@pytest.mark.parametrize(
    ("weight", "options", "error", "says"),
    [
        (torch.randn(4, 100), {"group_size": 64}, ValueError, "64 does not divide the 100"),
        (torch.randn(4), {}, ValueError, "reshape"),
        (torch.randn(2, 3, 4), {}, ValueError, "matrix"),
        (torch.empty(0, 4), {}, ValueError, "non-empty"),
        (torch.ones(4, 64, dtype=torch.int8), {}, TypeError, "float"),
        (np.ones((4, 64), dtype=np.int32), {}, TypeError, "astype"),
        ([[1.0, 2.0]], {}, TypeError, "tensor or a NumPy array"),
        (torch.randn(4, 128), {"bits": 1}, ValueError, "from 2 to 8"),
        (torch.randn(4, 128), {"bits": 4.0}, TypeError, "integer"),
        (torch.randn(4, 128), {"granularity": "row"}, ValueError, "channel"),
        (torch.randn(4, 128), {"group_size": 0}, ValueError, "at least 1"),
        (torch.randn(4, 128), {"group_size": 32.0}, TypeError, r"integer, or None \(or -1\)"),
        (torch.randn(4, 128), {"convention": "gtpq"}, ValueError, "mean gptq"),
        (torch.randn(4, 128), {"convention": "hqq"}, ValueError, "no symmetric form"),
        (torch.randn(4, 128), {"group": 32}, TypeError, "group_size"),
        (torch.randn(4, 128) * 1e-9, {"scale_dtype": torch.float16}, ValueError, "scale_dtype"),
        ((torch.randn(4, 128) * 1e4).half(), {"symmetric": False}, ValueError, "float32"),
        ((torch.randn(4, 128) * 1e4).half(), {"bits": 2}, ValueError, "levels.*overflow"),
        (torch.randn(4, 128), {"scale_dtype": torch.float8_e4m3fn}, TypeError, "scale_dtype must"),
        (torch.randn(4, 128) * 100, {"scale_dtype": torch.int32}, TypeError, "scale_dtype must"),
        (torch.randn(4, 128), {"scale_dtype": "float16"}, TypeError, "scale_dtype must"),
        (torch.eye(128).to_sparse(), {}, TypeError, "to_dense"),
        (torch.empty(4, 128, device="meta"), {}, TypeError, "load its values"),
    ],
)
def test_bad_input_names_the_fix(weight, options, error, says):
    if isinstance(weight, torch.Tensor) and weight.dtype == torch.float16:
        weight[0, :2] = torch.tensor([60000.0, -60000.0])
    with pytest.raises(error, match=says):
        qviz.quantize(weight, **options)


@pytest.mark.parametrize(
    ("convention", "bits", "far"), [("hqq", 8, 5.0), ("quanto", 4, 1e5), ("kivi", 4, -1e5)]
)
def test_levels_that_the_stored_numbers_cannot_reach_are_refused(convention, bits, far):
    """A real-valued zero or an offset of 1e5 is infinite in float16; every level would be too."""
    w = torch.linspace(far, far * 1.0002, 128).reshape(1, 128)
    options = {"bits": bits, "symmetric": False, "convention": convention}
    assert torch.isfinite(qviz.quantize(w, **options).dequantize()).all()
    with pytest.raises(ValueError, match=r"levels of group \[0, 0\] overflow.*float16 scales"):
        qviz.quantize(w, scale_dtype=torch.float16, **options)


def test_unknown_method_names_the_near_one():
    with pytest.raises(ValueError, match="mean affine"):
        qviz.quantize(torch.randn(4, 128), "afine")


def test_ledger_by_hand():
    w = torch.randn(3, 64)
    q = qviz.quantize(w, bits=3, symmetric=False, group_size=32, scale_dtype=torch.float16)
    items = {i.name: (i.count, i.bits) for i in q.ledger.items}
    # 192 codes of 3 bits fill bytes exactly, 6 zero points of 3 bits leave 6 bits of padding
    assert items == {
        "codes": (192, 3),
        "scales": (6, 16),
        "zero points": (6, 3),
        "padding": (6, 1),
    }
    assert q.bits_per_weight == (192 * 3 + 6 * 16 + 6 * 3 + 6) / 192


def test_int4_g128_costs_what_the_field_says():
    w = torch.randn(128, 1024)
    assert qviz.quantize(w, scale_dtype=torch.float16).bits_per_weight == 4.125
    asym = qviz.quantize(w, symmetric=False, scale_dtype=torch.float16)
    assert asym.bits_per_weight == 4.15625


@settings(max_examples=30)
@given(bits=st.integers(2, 8), rows=st.integers(1, 4), data=st.data())
def test_packed_codes_can_be_unpacked(bits, rows, data):
    columns = data.draw(st.integers(1, 20))
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    q = qviz.quantize(w, bits=bits, granularity="channel")
    stream = np.unpackbits(q.pack()["codes"], bitorder="little")[: rows * columns * bits]
    values = stream.reshape(-1, bits) @ (1 << np.arange(bits))
    assert np.array_equal(values + q.grid.qmin, q.codes.numpy().flatten())


def test_levels_are_where_the_codes_decode():
    w = torch.randn(4, 64)
    q = qviz.quantize(w, bits=3, symmetric=False, group_size=32)
    back = q.dequantize()
    for row, column in [(0, 0), (3, 63), (2, 31), (2, 32)]:
        levels = q.levels(row, column)
        assert len(levels) == 8
        assert (levels.diff() > 0).all()
        assert back[row, column] in levels
    for row, column in [(4, 0), (0, 64), (-1, 0), (0, -1)]:
        with pytest.raises(IndexError, match="rows go from 0 to 3, columns from 0 to 63"):
            q.levels(row, column)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_window_is_the_part_of_the_whole(granularity, symmetric):
    w = torch.randn(12, 64)
    q = qviz.quantize(
        w,
        bits=4,
        symmetric=symmetric,
        granularity=granularity,
        group_size=16 if granularity == "group" else None,
    )
    whole = q.dequantize()
    for rows, columns in [(slice(0, 12), slice(0, 64)), (slice(3, 4), slice(15, 34))]:
        assert torch.equal(q.window(rows, columns), whole[rows, columns])


def test_gptq_clips_a_group_without_negative_weights():
    """The reference keeps z in the middle although half of the codes are never used."""
    w = torch.linspace(0.01, 1, 64).reshape(1, 64)
    q = qviz.quantize(w, bits=4, group_size=64, convention="gptq")
    assert q.grid.zero_point.item() == 8
    assert q.info["clipped"] > 30
    assert q.dequantize().max() == pytest.approx(7 / 15, rel=1e-6)


def test_a_constant_group_with_an_offset():
    """quanto divides 0 by 0; KIVI does too, and its GPU makes code 0 of that, which is right."""
    w = torch.full((2, 32), 0.7)
    options = {"bits": 2, "symmetric": False, "group_size": 32}
    with pytest.raises(ValueError, match="constant"):
        qviz.quantize(w, convention="quanto", **options)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        q = qviz.quantize(w.to(dtype), convention="kivi", **options)
        assert torch.equal(q.dequantize(), w.to(dtype))
        assert (q.codes == 0).all()
        assert q.info["constant_groups"] == 2
    # a range whose scale is 0 as it is stored
    small = torch.linspace(0, 1e-9, 32).reshape(1, 32)
    q = qviz.quantize(small, convention="kivi", scale_dtype=torch.float16, **options)
    assert q.grid.scale.dtype == torch.float16
    assert (q.grid.scale == 1).all()
    assert (q.dequantize() == 0).all()


def test_the_conventions_really_differ():
    """Pure convention effect on N(0, 1), group 128, 4 bits (numbers to 2 digits)."""
    w = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(0))

    def mse(**options):
        return (qviz.quantize(w, bits=4, **options).dequantize() - w).square().mean().item()

    assert mse(convention="absmax") == pytest.approx(0.01377, rel=0.01)
    assert mse(convention="compressed_tensors") == pytest.approx(0.01229, rel=0.01)
    assert mse(convention="compressed_tensors", symmetric=False) == pytest.approx(0.01012, rel=0.01)


def test_every_convention_names_its_source():
    assert all(c.source and (c.symmetric or c.asymmetric) for c in CONVENTIONS.values())


def test_groups_of_the_flattened_matrix_are_refused_in_words():
    with pytest.raises(ValueError, match="nf4"):
        qviz.quantize(torch.ones(4, 32), granularity="flat", group_size=64)


@pytest.mark.parametrize("unit", [("channel", None), ("group", 4)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_along_the_columns_are_those_of_the_transposed_matrix(unit, symmetric):
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    seen = {}
    q = affine(
        x, granularity=Granularity(*unit, axis=0), group_size=None, symmetric=symmetric,
        emit=lambda name, **tensors: seen.update(tensors),
    )  # fmt: skip
    turned = affine(x.T.contiguous(), granularity=unit[0], group_size=unit[1], symmetric=symmetric)
    assert torch.equal(q.codes.T, turned.codes)
    assert torch.equal(q.dequantize().T, turned.dequantize())
    assert torch.equal(q.grid.scale, turned.grid.scale)
    assert torch.equal(seen["codes"], q.codes)
    assert seen["position"].shape == seen["clipped"].shape == x.shape
    assert q.ledger.bits_per_weight == turned.ledger.bits_per_weight
    with pytest.raises(ValueError, match="nf4"):
        affine(x, granularity=Granularity("flat", 4), group_size=None)
