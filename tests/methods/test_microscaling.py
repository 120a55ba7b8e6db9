"""Microscaling: invariants, vectors of real systems, errors, trace."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inputs import adversarial

import qviz
from qviz.core.formats import cast, decode
from qviz.methods.microscaling import BLOCK_FORMATS, CONVENTIONS, EVENTS

GOLDEN = Path(__file__).parents[1] / "golden"
MODES = [
    (name, convention, rounding)
    for convention, c in CONVENTIONS.items()
    for name in c.formats
    for rounding in ((None,) if name == "nvfp4" else c.scale_roundings)
]
BITS = {"mxfp4": 4.25, "mxfp6_e2m3": 6.25, "mxfp6_e3m2": 6.25, "mxfp8_e4m3": 8.25,
        "mxfp8_e5m2": 8.25, "mxint8": 8.25, "nvfp4": 4.5}  # fmt: skip

matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([32, 64])),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@pytest.mark.parametrize(("name", "convention", "rounding"), MODES)
@settings(max_examples=15)
@given(x=matrices)
def test_invariants(name, convention, rounding, x):
    before = x.copy()
    options = {"format": name, "convention": convention, "scale_rounding": rounding}
    try:
        q = qviz.quantize(x, "microscaling", **options)
    except ValueError as refused:
        assert "overflows or underflows its format" in str(refused)
        return
    assert np.array_equal(x, before)
    assert q.codes.dtype == torch.uint8
    assert int(q.codes.max()) < 1 << BLOCK_FORMATS[name].element.bits
    packed = q.pack()
    assert sum(len(v) for v in packed.values()) * 8 == q.ledger.total_bits
    # No other code of the block would have been nearer, but for what is clipped; ties and the
    # last bits of x/s aside.
    levels = BLOCK_FORMATS[name].values(torch.device("cpu"))
    levels = levels[torch.isfinite(levels) & (levels.abs() <= BLOCK_FORMATS[name].top)]
    size = BLOCK_FORMATS[name].size
    w = torch.from_numpy(x).reshape(len(x), -1, size, 1).double()
    scale = q.grid.scale[..., None, None].double()
    usable = (scale > 2.0**-126).expand(w.shape)[..., 0]
    nearest = (w - levels.double() * scale).abs().amin(-1)
    error = (w[..., 0] - q.dequantize().double().reshape(w.shape[:-1])).abs()
    slack = 1e-6 * w[..., 0].abs() + 1e-42
    assert (error <= nearest + slack)[usable].all()


@pytest.mark.parametrize("name", BITS)
def test_what_it_costs(name):
    q = qviz.quantize(torch.randn(64, 256), "microscaling", format=name)
    extra = 32 / (64 * 256) if name == "nvfp4" else 0
    assert q.bits_per_weight == BITS[name] + extra
    named = {i.name: (i.count, i.bits) for i in q.ledger.items}
    blocks = 64 * 256 // BLOCK_FORMATS[name].size
    assert named["codes"] == (64 * 256, BLOCK_FORMATS[name].element.bits)
    assert named["scales"] == (blocks, 8)
    assert ("tensor scale" in named) == (name == "nvfp4")


def test_the_stored_bytes_are_enough():
    """Codes, scale bytes and the tensor scale rebuild the weight, by the definition alone."""
    w = torch.randn(6, 96, generator=torch.Generator().manual_seed(1))
    for name, block in BLOCK_FORMATS.items():
        q = qviz.quantize(w, "microscaling", format=name)
        packed = q.pack()
        bits = np.unpackbits(packed["codes"], bitorder="little").reshape(-1, block.element.bits)
        codes = torch.from_numpy(bits.astype(np.int64) @ (1 << np.arange(block.element.bits)))
        elements = decode(codes, block.element).reshape(6, -1, block.size)
        if name == "mxint8":
            elements = elements / 64
        kind = "fp8_e4m3" if name == "nvfp4" else "e8m0"
        scale = decode(packed["scales"], kind).reshape(6, -1, 1)
        if name == "nvfp4":
            scale = scale * torch.from_numpy(packed["tensor scale"].view(np.float32).copy())
        assert torch.equal((elements * scale).reshape(6, 96), q.dequantize()), name


@pytest.mark.parametrize(
    ("peak", "rounding", "power", "value"),
    [
        (7.0, "floor", 1.0, 6.0),  # clipped: E2M1 ends at 6
        (7.0, "ceil", 2.0, 8.0),  # 3.5 is a tie and goes to 4
        (7.0, "even", 2.0, 8.0),  # 1.75 · 2² rounds to 2³
        (7.0, "rceil", 2.0, 8.0),
        (6.5, "floor", 1.0, 6.0),
        (6.5, "even", 1.0, 6.0),  # 1.625 · 2² stays
        (6.5, "rceil", 2.0, 6.0),  # 6.5 > 6, so the next power; 3.25 → 3
        (6.0, "ceil", 2.0, 6.0),
        (6.0, "rceil", 1.0, 6.0),
        (4.0, "ceil", 1.0, 4.0),
    ],
)
def test_scale_roundings_by_hand(peak, rounding, power, value):
    w = torch.zeros(1, 32)
    w[0, 5] = peak
    q = qviz.quantize(w, "microscaling", format="mxfp4", scale_rounding=rounding)
    assert float(q.grid.scale) == power
    assert float(q.dequantize()[0, 5]) == value
    assert q.info["clipped"] == (peak > 6 * power)


def test_element_ties_differ_between_systems():
    """The numbers of the reference: .75 → 1 and .5, 1.75 → 2 and 1.5, 3.5 → 4 and 3."""
    w = torch.zeros(1, 32)
    w[0, :5] = torch.tensor([4.0, 0.75, 1.75, 3.5, 2.5])

    def back(**options):
        return qviz.quantize(w, "microscaling", **options).dequantize()[0, 1:5].tolist()

    assert back() == [1, 2, 4, 2]
    assert back(convention="ggml") == [0.5, 1.5, 3, 2]
    assert back(convention="microxcaling") == [1, 2, 4, 3]
    assert back(rounding="toward_zero") == [0.5, 1.5, 3, 2]


def test_nvfp4_follows_an_outlier_better():
    """A block of 16 with a fine scale: one outlier costs fewer neighbours their precision."""
    w = torch.randn(8, 256, generator=torch.Generator().manual_seed(2))
    w[:, 7] = 20
    errors = {
        name: (qviz.quantize(w, "microscaling", format=name).dequantize() - w).square().mean()
        for name in ("mxfp4", "nvfp4", "mxfp8_e4m3")
    }
    assert errors["mxfp8_e4m3"] < errors["nvfp4"] < errors["mxfp4"]


def golden(name: str) -> tuple[np.lib.npyio.NpzFile, torch.Tensor]:
    stored = np.load(GOLDEN / f"microscaling_{name}.npz")
    w = stored["parts"].astype(np.float32) / 64 * stored["peaks"][..., None]
    return stored, torch.from_numpy(w.reshape(len(w), -1))


@pytest.mark.parametrize("name", CONVENTIONS["microxcaling"].formats)
@pytest.mark.parametrize("theirs", ["nearest", "even"])
def test_values_of_microxcaling(name, theirs):
    stored, w = golden("microxcaling")
    rounding = {"nearest": "half_away", "even": "nearest_even"}[theirs]
    q = qviz.quantize(w, "microscaling", format=name, convention="microxcaling", rounding=rounding)
    want = torch.from_numpy(
        stored[f"{name.removeprefix('mx').replace('fp4', 'fp4_e2m1')}/{theirs}"]
    )
    assert torch.equal(q.dequantize(), want)


@pytest.mark.parametrize(("name", "size", "head"), [("mxfp4", 32, 1), ("nvfp4", 64, 4)])
def test_bytes_of_ggml(name, size, head):
    stored, w = golden("ggml")
    blocks = torch.from_numpy(stored[f"{name}/blocks"])
    back = torch.from_numpy(stored[f"{name}/values"])
    q = qviz.quantize(w, "microscaling", format=name, convention="ggml")
    # Under 2^−125 its C code turns a negative number into a byte, which C leaves undefined. NVFP4
    # without a tensor scale ends at 6·448; far beyond, where float32 sees all codes as equally
    # wrong, theirs takes 0 and ours the largest.
    amax = w.reshape(-1, size).abs().amax(-1)
    defined = (amax == 0) | (amax >= 2.0**-125) if name == "mxfp4" else amax < 2.0**24
    assert defined.float().mean() > 0.6
    scales = q.grid.stored[0].values.reshape(-1, head)
    assert torch.equal(scales[defined], blocks[defined, :head])
    half = BLOCK_FORMATS[name].size // 2  # a byte holds elements j and j + half
    low, high = q.codes.reshape(len(blocks), -1, 2, half).unbind(2)
    assert torch.equal((low | high << 4).reshape(len(blocks), -1)[defined], blocks[defined, head:])
    assert torch.equal(q.dequantize().reshape(-1, size)[defined], back.reshape(-1, size)[defined])


@pytest.mark.parametrize(("name", "convention", "rounding"), MODES)
def test_trace_changes_nothing_and_is_complete(name, convention, rounding):
    w = torch.randn(6, 64)
    w[1] = 0
    options = {"format": name, "convention": convention, "scale_rounding": rounding}
    plain = qviz.quantize(w, "microscaling", **options)
    trace = qviz.Trace()
    traced = qviz.quantize(w, "microscaling", emit=trace, **options)
    assert torch.equal(plain.codes, traced.codes)
    assert torch.equal(plain.grid.scale, traced.grid.scale)
    assert [e.name for e in trace] == [spec.name for spec in EVENTS]
    for event, spec in zip(trace, EVENTS, strict=True):
        assert set(event.tensors) == set(spec.tensors)
    # What is shown is what happened: the codes are the shown numbers, rounded.
    scaled, codes = trace[2]["scaled"], trace[3]["codes"]
    assert torch.equal(codes, traced.codes)
    block = BLOCK_FORMATS[name]
    elements = scaled.float().clamp(-block.top, block.top) / block.step
    want = cast(elements, block.element, rounding=CONVENTIONS[convention].rounding) * block.step
    assert torch.equal(decode(codes, block.element) * block.step, want)
    assert int(trace[3]["clipped"].sum()) == traced.info["clipped"]
    assert trace[1]["stored"].dtype == torch.uint8
    assert traced.info["zero_blocks"] == 64 // block.size


@pytest.mark.parametrize("convention", ["torchao", "compressed_tensors"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inputs_of_every_kind_agree(convention, dtype):
    w = torch.randn(8, 64, dtype=torch.float64).to(dtype)
    before = w.clone()

    def codes(x):
        return qviz.quantize(x, "microscaling", format="nvfp4", convention=convention).codes

    want = codes(w)
    assert torch.equal(w, before)
    spread = torch.empty(16, 128, dtype=dtype)[::2, ::2].copy_(w)
    for other in (spread, w.t().contiguous().t(), torch.nn.Parameter(w)):
        assert torch.equal(codes(other), want)
    if dtype != torch.bfloat16:
        array = w.numpy()
        array.setflags(write=False)
        assert torch.equal(codes(array), want)
    q = qviz.quantize(w, "microscaling", convention=convention)
    assert q.dequantize().dtype == dtype


@pytest.mark.parametrize(("name", "convention", "rounding"), MODES)
def test_degenerate_weights_come_back_or_are_refused(name, convention, rounding):
    for kind, w in adversarial().items():
        options = {"format": name, "convention": convention, "scale_rounding": rounding}
        try:
            q = qviz.quantize(w, "microscaling", **options)
        except ValueError as refused:
            assert kind in ("tiny", "subnormal", "large"), kind
            assert "Pass weight" in str(refused) or "reconstruction" in str(refused)
            continue
        back = q.dequantize()
        assert torch.isfinite(back).all(), kind
        assert (back[w == 0] == 0).all(), kind
        assert (back * w >= 0).all(), kind


@pytest.mark.parametrize(
    ("weight", "options", "error", "says"),
    [
        (torch.randn(4, 100), {}, ValueError, r"pad\(weight, \(0, 28\)\)"),
        (torch.randn(4, 40), {"format": "nvfp4"}, ValueError, r"16 inputs.*\(0, 8\)"),
        (torch.randn(4), {}, ValueError, "reshape"),
        (torch.full((4, 32), float("nan")), {}, ValueError, r"\[0, 0\]"),
        (torch.ones(4, 32, dtype=torch.int8), {}, TypeError, "float"),
        (torch.randn(4, 32), {"format": "mxfp5"}, ValueError, "mean mxfp"),
        (torch.randn(4, 32), {"convention": "torch"}, ValueError, "mean torchao"),
        (torch.randn(4, 32), {"scale_rounding": "round"}, ValueError, "floor or ceil or even"),
        (torch.randn(4, 32), {"rounding": "even"}, ValueError, "nearest_even"),
        (
            torch.randn(4, 32),
            {"format": "mxint8", "convention": "torchao"},
            ValueError,
            "these have: microxcaling",
        ),
        (
            torch.randn(4, 32),
            {"convention": "ggml", "scale_rounding": "ceil"},
            ValueError,
            "torchao has them all",
        ),
        (
            torch.randn(4, 32),
            {"format": "nvfp4", "scale_rounding": "floor"},
            ValueError,
            "Omit it",
        ),
        (
            torch.randn(4, 32) * 1e-43,
            {"format": "nvfp4"},
            ValueError,
            r"Pass weight \* 2\.0\*\*100",
        ),
        (torch.full((1, 32), 6e4).half(), {"scale_rounding": "even"}, ValueError, "reconstruction"),
        (
            torch.full((1, 32), 6e4).half(),
            {"convention": "compressed_tensors"},
            ValueError,
            r"block \[0, 0\].*60000",
        ),
        (torch.full((1, 32), 1e300, dtype=torch.float64), {}, ValueError, "beyond float32"),
    ],
)
def test_bad_input_names_the_fix(weight, options, error, says):
    with pytest.raises(error, match=says):
        qviz.quantize(weight, "microscaling", **options)


def test_levels_are_where_the_codes_decode():
    w = torch.randn(4, 64)
    for name in BLOCK_FORMATS:
        q = qviz.quantize(w, "microscaling", format=name)
        levels = q.levels(3, 40)
        assert (levels.diff() > 0).all()
        assert q.dequantize()[3, 40] in levels
        assert torch.equal(q.window(slice(1, 3), slice(5, 40)), q.dequantize()[1:3, 5:40])
