"""FP8: the nearest code, scales by hand, weights made to break it, errors, trace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inputs import adversarial

import qviz
from qviz.core.formats import decode, values
from qviz.methods.fp8 import CONVENTIONS, EVENTS

TOP = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}
MODES = [
    (name, convention, granularity)
    for convention, rules in CONVENTIONS.items()
    for name in rules.formats
    for granularity in ("channel", "tensor")
]

matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 40)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def quantize(w, name="fp8_e4m3", convention=None, granularity="channel", **more):
    return qviz.quantize(
        w, "fp8", format=name, convention=convention, granularity=granularity, **more
    )


@pytest.mark.parametrize(("name", "convention", "granularity"), MODES)
@settings(max_examples=25)
@given(x=matrices)
def test_every_weight_gets_its_nearest_code(name, convention, granularity, x):
    before = x.copy()
    q = quantize(x, name, convention, granularity)
    assert np.array_equal(x, before)
    assert q.codes.dtype == torch.uint8
    assert q.codes.shape == x.shape
    scale = q.grid.scale.double()
    assert scale.shape == ((1, 1) if granularity == "tensor" else (len(x), 1))
    assert (scale > 0).all()
    w = torch.from_numpy(x).double()
    # A scale is the largest magnitude over the largest number, but for its own rounding.
    amax = w.abs().amax() if granularity == "tensor" else w.abs().amax(-1, keepdim=True)
    want = (amax / TOP[name]).expand_as(scale)
    usable = want > 2.0**-126
    assert torch.allclose(scale[usable], want[usable], rtol=2.0**-23, atol=0)
    # Ties and the last bit of v / s aside, no other number of the format was nearer.
    grid = values(name).values.double()
    nearest = (w.unsqueeze(-1) - grid * scale.unsqueeze(-1)).abs().amin(-1)
    error = (w - q.dequantize().double()).abs()
    assert (error <= nearest + 1e-6 * w.abs() + 1e-37).all()


@pytest.mark.parametrize(("name", "convention", "granularity"), MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_it_costs_and_the_bytes_are_enough(name, convention, granularity, dtype):
    w = torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q = quantize(w.to(dtype), name, convention, granularity)
    half = convention == "compressed_tensors" and dtype in (torch.bfloat16, torch.float16)
    stored = dtype if half else torch.float32
    count = 1 if granularity == "tensor" else 6
    named = {i.name: (i.count, i.bits) for i in q.ledger.items}
    assert named == {"codes": (240, 8), "scales": (count, 16 if half else 32)}
    packed = q.pack()
    scale = torch.from_numpy(packed["scales"].copy()).view(stored).float().reshape(-1, 1)
    back = decode(packed["codes"], name).reshape(6, 40) * scale
    assert torch.equal(back.to(dtype), q.dequantize())
    assert q.dequantize().dtype == dtype


def test_by_hand():
    """a = 896, s = 2: 100 / 2 is a tie of 48 and 52, 1 / 2 is a number, 3e-3 / 2 a subnormal."""
    w = torch.tensor([[896.0, -100.0, 1.0, 3e-3, -0.0, 0.0]])
    q = quantize(w)
    assert float(q.grid.scale) == 2.0
    assert q.dequantize().tolist() == [[896.0, -96.0, 1.0, 2 * 2.0**-9, 0.0, 0.0]]
    assert q.codes.tolist() == [[0x7E, 0xE4, 0x30, 0x01, 0x80, 0x00]]
    wide = quantize(w, "fp8_e5m2")
    assert float(wide.grid.scale) == 896 / 57344
    assert wide.info["convention"] == "torchao"
    assert wide.dequantize().tolist()[0][:3] == [896.0, -96.0, 1.0]


def test_half_a_subnormal_is_a_tie():
    """Below 2^−9 of E4M3, in units of the scale, 0 and the smallest subnormal meet at half."""
    unit = 2.0**-9
    w = torch.tensor([[448.0, unit, 0.5 * unit, 0.5001 * unit, 1.5 * unit, 2.5 * unit]])
    q = quantize(w)
    assert (q.dequantize()[0, 1:] / unit).tolist() == [1, 0, 1, 2, 2]
    assert q.codes[0, 1:].tolist() == [1, 0, 1, 2, 2]


def test_a_scale_per_row_survives_an_outlier():
    w = torch.randn(8, 256, generator=torch.Generator().manual_seed(2)) * 1e-2
    w[3, 7] = 4000.0
    rest = [0, 1, 2, 4, 5, 6, 7]

    def error(granularity):
        back = quantize(w, granularity=granularity).dequantize()
        return ((back - w)[rest].norm() / w[rest].norm()).item()

    assert error("channel") < 0.04 < 0.2 < error("tensor")


def test_e4m3_is_finer_and_e5m2_reaches_further():
    w = torch.randn(16, 256, generator=torch.Generator().manual_seed(3))
    w[:, 0] = 3e6

    def error(name):
        return (quantize(w, name).dequantize() - w)[:, 1:].norm().item()

    assert error("fp8_e5m2") < error("fp8_e4m3") / 2
    w[:, 0] = 0

    assert error("fp8_e4m3") < 0.6 * error("fp8_e5m2")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conventions_differ_in_half_precision(dtype):
    """One rounds v / s to the weight's dtype first: two roundings miss some nearest codes."""
    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(4)).to(dtype)
    ours, other = (quantize(w, convention=c) for c in ("compressed_tensors", "torchao"))
    # The same scales, in another dtype; and, where the codes differ, neighbours.
    assert torch.equal(ours.grid.scale, other.grid.scale)
    apart = ours.codes != other.codes
    assert 0 < apart.sum() < 0.05 * w.numel()
    assert ((ours.codes.int() - other.codes.int()).abs()[apart] == 1).all()
    single = w.float()
    assert torch.equal(quantize(single).codes, quantize(single, convention="torchao").codes)


def test_clipping_is_counted():
    """A scale that is rounded down leaves the largest weights beyond the largest number."""
    w = torch.randn(200, 64, generator=torch.Generator().manual_seed(5)).bfloat16()
    q = quantize(w)
    beyond = (w / q.grid.stored[0].values).abs() > 448
    assert q.info["clipped"] == int(beyond.sum()) > 0
    assert (q.codes[beyond] & 0x7F == 0x7E).all()
    # The float16 scale of a tiny row has few bits left: 6e-5 / 448 is 2.2 of its steps, kept as 2.
    tiny = torch.full((1, 8), 6e-5, dtype=torch.float16)
    q = quantize(tiny)
    assert q.info["clipped"] == 8
    assert float(q.dequantize()[0, 0]) == pytest.approx(448 * 2 * 2.0**-24, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "convention", "granularity"), MODES)
def test_degenerate_weights_come_back(name, convention, granularity, dtype):
    for kind, exact in adversarial().items():
        w = exact.to(dtype)
        if not torch.isfinite(w).all():
            assert kind == "large"
            continue
        q = quantize(w, name, convention, granularity)
        back = q.dequantize()
        assert torch.isfinite(back).all(), kind
        assert (back[w == 0] == 0).all(), kind
        assert (back * w >= 0).all(), kind
        assert (q.grid.scale > 0).all(), kind
        assert torch.isfinite(q.grid.values[q.codes.int()]).all(), kind


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_zeros_have_a_scale_and_are_counted(convention):
    w = torch.randn(5, 16)
    w[1] = 0
    w[4] = -0.0
    q = quantize(w, convention=convention)
    assert q.info["zero_groups"] == q.info["vanishing_groups"] == 2
    empty = torch.finfo(torch.float32).eps if convention == "compressed_tensors" else 1.0
    assert q.grid.scale[[1, 4]].tolist() == [[empty], [empty]]
    assert (q.codes[1] == 0).all()
    assert (q.codes[4] == 0x80).all()  # −0 keeps its sign
    whole = quantize(torch.zeros(2, 8), convention=convention, granularity="tensor")
    assert whole.info["zero_groups"] == 1
    assert (whole.dequantize() == 0).all()


def test_scales_too_small_for_float16_are_counted():
    w = torch.full((2, 8), 1e-5, dtype=torch.float16)
    w[1] = 1.0
    q = quantize(w, convention="torchao")
    assert (q.info["zero_groups"], q.info["vanishing_groups"]) == (0, 1)
    assert (q.dequantize()[0] == 0).all()
    # The epsilon of float16 is 98 times their size: a subnormal code, 5 or 6 · 2^−9, is left.
    q = quantize(w, convention="compressed_tensors")
    assert q.info["vanishing_groups"] == 1
    assert float(q.dequantize()[0, 0]) == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize(("name", "convention", "granularity"), MODES)
def test_trace_changes_nothing_and_is_complete(name, convention, granularity):
    w = torch.randn(6, 64).bfloat16()
    w[1] = 0
    plain = quantize(w, name, convention, granularity)
    trace = qviz.Trace()
    traced = quantize(w, name, convention, granularity, emit=trace)
    assert torch.equal(plain.codes, traced.codes)
    assert torch.equal(plain.grid.scale, traced.grid.scale)
    assert [e.name for e in trace] == [spec.name for spec in EVENTS]
    for event, spec in zip(trace, EVENTS, strict=True):
        assert set(event.tensors) == set(spec.tensors)
    assert torch.equal(trace[1]["scale"], traced.grid.stored[0].values)
    scaled = trace[2]["scaled"].float().clamp(-TOP[name], TOP[name])
    native = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[name]
    assert torch.equal(scaled.to(native).view(torch.uint8), trace[3]["codes"])
    assert int(trace[3]["clipped"].sum()) == traced.info["clipped"]


def test_float64_is_computed_in_float32():
    w = torch.randn(8, 64, dtype=torch.float64)
    q, single = quantize(w), quantize(w.float())
    assert q.info["compute"] == "float32"
    assert torch.equal(q.codes, single.codes)
    assert torch.equal(q.dequantize(), single.dequantize().double())


def test_levels_are_where_the_codes_decode():
    w = torch.randn(4, 64)
    for name, count in (("fp8_e4m3", 253), ("fp8_e5m2", 247)):
        q = quantize(w, name)
        levels = q.levels(3, 40)
        assert len(levels) == count  # all codes but NaN and Inf; both zeros are one level
        assert (levels.diff() > 0).all()
        assert q.dequantize()[3, 40] in levels
        assert torch.equal(q.window(slice(1, 3), slice(5, 40)), q.dequantize()[1:3, 5:40])


@pytest.mark.parametrize(
    ("weight", "options", "error", "says"),
    [
        (torch.randn(4), {}, ValueError, "reshape"),
        (torch.full((4, 32), float("nan")), {}, ValueError, r"\[0, 0\]"),
        (torch.ones(4, 32, dtype=torch.int8), {}, TypeError, "float"),
        (torch.ones(4, 32).to(torch.float8_e4m3fn), {}, TypeError, "dtype"),
        (torch.randn(4, 32), {"format": "fp8_e4m2"}, ValueError, "mean fp8_e"),
        (torch.randn(4, 32), {"convention": "torch"}, ValueError, "mean torchao"),
        (torch.randn(4, 32), {"granularity": "group"}, ValueError, "channel, tensor"),
        (
            torch.randn(4, 32),
            {"format": "fp8_e5m2", "convention": "compressed_tensors"},
            ValueError,
            "these have: torchao",
        ),
        (torch.randn(4, 32), {"group_size": 32}, TypeError, "group_size"),
        (
            torch.full((1, 32), 1e300, dtype=torch.float64),
            {},
            ValueError,
            r"beyond float32.*weight / 2\.0\*\*87",
        ),
        (
            torch.full((1, 32), 65504.0).half(),
            {},
            ValueError,
            r"the fp8_e4m3 reconstruction.*pass weight\.float\(\)",
        ),
    ],
)
def test_bad_input_names_the_fix(weight, options, error, says):
    with pytest.raises(error, match=says):
        qviz.quantize(weight, "fp8", **options)
