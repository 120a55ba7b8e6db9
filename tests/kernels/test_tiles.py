"""The stepped program against the kernel's own, in Triton's interpreter, block for block."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from kernel_cases import inputs
from test_triton import act_order, weight

import qviz
from qviz.core.trace import Trace
from qviz.kernels import get, tiles
from qviz.kernels import triton_kernels as tk
from qviz.kernels.tiles import Block
from qviz.kernels.triton_layout import affine_tensors

pytestmark = pytest.mark.usefixtures("interpreter")
if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)


def cases():
    """Name → a kernel and a weight that it takes: 18 rows, so that the last program overlaps."""
    w, tiles = weight(18, 160), weight(18, 256)
    return {
        "whole-tiles": ("triton.w4a16", qviz.quantize(tiles, bits=4, group_size=128)),
        "four-groups-to-a-tile": (
            "triton.w4a16",
            qviz.quantize(tiles, bits=4, group_size=32, symmetric=False),
        ),
        "nf4-two-groups-to-a-tile": ("triton.nf4", qviz.quantize(tiles, "nf4", group_size=64)),
        "symmetric": ("triton.w4a16", qviz.quantize(w, bits=4, group_size=32)),
        "zero-points": (
            "triton.w4a16",
            qviz.quantize(w, bits=4, group_size=16, symmetric=False),
        ),
        "real-zeros": (
            "triton.w4a16",
            qviz.quantize(w, bits=4, group_size=40, symmetric=False, convention="hqq"),
        ),
        "nf4": ("triton.nf4", qviz.quantize(w, "nf4", group_size=32)),
        "nf4-double": ("triton.nf4", qviz.quantize(w, "nf4", group_size=32, double_quant=True)),
        "nf4-row-to-row": ("triton.nf4", qviz.quantize(w[:, :99], "nf4")),
        "int8": (
            "triton.w8a8",
            qviz.quantize(w, bits=8, granularity="channel", group_size=None),
        ),
    }


CASES = sorted(cases())
ULPS = 2.0**-24


def run(name, q, x, block):
    """What the jit function stores with these very blocks, in float32."""
    packed = get(name).pack(q, "cpu", x.dtype)
    rows, t = q.shape[0], packed.tensors
    functions = tk.functions(True)
    grid = (tiles.programs(q, block), 1)
    y = torch.full((rows,), torch.nan, dtype=x.dtype)
    sizes = {"BLOCK_ROWS": block.rows, "BLOCK_CHUNKS": block.chunks}
    if name == "triton.w4a16":
        function, fixed, last = functions.affine_gemv, (t.get("zero"),), (rows, tk.MAGIC)
    elif name == "triton.nf4":
        function = functions.codebook_gemv
        fixed, last = (t.get("second"), t.get("offset"), t["table"]), (rows,)
    else:
        codes, step = get(name)._buffers(x[None])
        columns = q.shape[1]
        functions.int8_inputs[(1,)](x, codes, step, 127.0, COLUMNS=columns, BLOCK=64)
        functions.int8_gemv[grid](
            codes, step, t["weight"], t["scale"], y, rows,
            COLUMNS=columns, BLOCK_ROWS=block.rows, BLOCK_COLUMNS=16 * block.chunks,
        )  # fmt: skip
        return y
    stages = {"STAGES": 1} if name == "triton.w4a16" else {}
    constants = {**tk.gemv_constants(packed), **stages, **sizes}
    function[grid](x, t["words"], t["scale"], *fixed, y, *last, **constants)
    return y


@pytest.mark.parametrize("block", [Block(4, 4), Block(2, 8), Block(16, 4)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_all_programs_together_are_the_product(case, block):
    name, q = cases()[case]
    x = inputs(1, q.shape[1], torch.float32)[0]
    stored = run(name, q, x, block)
    y = torch.full_like(stored, torch.nan)
    for program in range(tiles.programs(q, block)):
        walked = tiles.walk(name, q, x, program=program, block=block)
        again = y[walked.rows][~y[walked.rows].isnan()]
        y[walked.rows] = walked.y
        # The last program computes some rows for a second time, to the same bits.
        assert torch.equal(y[walked.rows][: len(again)], again)
    kernel = get(name)
    wide = kernel.inputs(x[None], q).abs() @ kernel.adapt(q, x.dtype).dequantize().double().abs().T
    assert ((y - stored).abs() <= 4 * ULPS * wide[0]).all()
    assert (y - kernel.reference(q, x[None])[0]).abs().max() <= (8 * ULPS * wide).max()
    if case == "int8":
        assert torch.equal(y, stored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["symmetric", "nf4", "int8"])
def test_outputs_have_the_dtype_of_the_inputs(case, dtype):
    name, q = cases()[case]
    x = inputs(1, q.shape[1], dtype)[0]
    y = tiles.walk(name, q, x, block=Block(4, 4)).y
    stored = run(name, q, x, Block(4, 4))[:4]
    assert y.dtype == dtype
    assert ((y - stored).abs() <= torch.finfo(dtype).eps * stored.abs()).all()


@pytest.mark.parametrize("case", CASES)
def test_codes_weights_and_bytes(case):
    """Steps of all programs give back the codes and the weight; each word is read once."""
    name, q = cases()[case]
    adapted, rows, columns = get(name).adapt(q, torch.float32), *q.shape
    block = Block(2, 4)
    codes = torch.full((rows, columns), -1, dtype=torch.int32)
    made = torch.full((rows, columns), torch.nan)
    read = 0
    for program in range(tiles.programs(q, block)):
        for step in tiles.walk(name, q, torch.randn(columns), program=program, block=block).steps:
            if step.event == "tile.codes":
                codes[step.rows, step.columns] = step.tensors["codes"]
            if step.event == "tile.weights":
                codes[step.rows, step.columns] = step.tensors["weights"].int()
            if step.event == "tile.weight":
                made[step.rows, step.columns] = step.tensors["weight"]
            read += step.nbytes if step.event in ("tile.words", "tile.weights") else 0
    shift = q.grid.qmin if name == "triton.w4a16" else 0
    assert torch.equal(codes + shift, q.codes.int())
    if name != "triton.w8a8":
        torch.testing.assert_close(made, adapted.dequantize(), rtol=3 * ULPS, atol=0)
    tensors = get(name).pack(q).tensors
    stored = tensors.get("words", tensors.get("weight"))
    assert read == stored.numel() * stored.element_size()


def test_scales_are_counted_once():
    """Four rows of 64 columns in groups of 32: 8 scales of 2 bytes, 8 zeros of four."""
    q = qviz.quantize(
        weight(4, 64), bits=4, group_size=32, symmetric=False, scale_dtype=torch.float16
    )
    walked = tiles.walk("triton.w4a16", q, torch.randn(64).half(), block=Block(4, 2))
    size = {step.event: step.nbytes for step in walked.steps}
    assert size["tile.scale"] == 8 * 2 + 8 * 4
    assert size["tile.words"] == 4 * 64 // 2
    assert size["tile.inputs"] == 64 * 2 and size["tile.store"] == 4 * 2
    assert walked.nbytes == sum(size.values())


@pytest.mark.parametrize("case", CASES)
def test_traced_equals_untraced(case):
    name, q = cases()[case]
    x = torch.randn(q.shape[1])
    trace = Trace()
    traced = tiles.walk(name, q, x, program=1, emit=trace)
    plain = tiles.walk(name, q, x, program=1)
    assert torch.equal(traced.y, plain.y) and len(trace) == len(plain.steps)
    known = {spec.name: spec for spec in tiles.EVENTS}
    for event, step in zip(trace, plain.steps, strict=True):
        assert event.name == step.event
        assert set(event.tensors) == set(known[event.name].tensors) == set(step.tensors)
        for label, tensor in event.tensors.items():
            assert torch.equal(tensor, step.tensors[label])
        assert step.caption[-1] == "." and "nan" not in step.caption


def test_every_event_occurs():
    seen = set()
    for name, q in cases().values():
        seen |= {step.event for step in tiles.walk(name, q, torch.randn(q.shape[1])).steps}
    assert seen == {spec.name for spec in tiles.EVENTS}


@pytest.mark.parametrize("case", CASES)
def test_steps_point_to_the_lines_that_do_them(case):
    name, q = cases()[case]
    text = tiles.source(name).splitlines()
    does = {
        "tile.step": "tl.div_rn",
        "tile.quantized": "12582912.0",
        "tile.rows": "tl.program_id(0)",
        "tile.words": "words_ptr",
        "tile.weights": "weight_ptr +",
        "tile.scale": "scale_ptr",
        "tile.inputs": "token * COLUMNS + column",
        "tile.codes": "nibble(words, j)" if name == "triton.nf4" else "code_minus(words",
        "tile.weight": "scale_ptr",
        "tile.products": "total +=" if name == "triton.w8a8" else "tl.fma(",
        "tile.total": "tl.reduce(partial, 2, add)",
        "tile.store": "tl.store(y_ptr",
    }
    for step in tiles.walk(name, q, torch.randn(q.shape[1])).steps:
        assert step.lines and all(1 <= line <= len(text) for line in step.lines)
        shown = "\n".join(text[line - 1] for line in step.lines)
        assert does[step.event] in shown, step.event


@pytest.mark.parametrize("name", sorted(tiles.SHOWN))
def test_the_source_is_the_real_one(name):
    import inspect

    parts = [inspect.getsource(getattr(tk.functions(True), f).fn) for f in tiles.SHOWN[name]]
    assert tiles.source(name) == "\n\n\n".join(part.rstrip("\n") for part in parts)


def test_neither_the_source_nor_a_walk_needs_triton():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import qviz, torch; from qviz.kernels import tiles\n"
        "q = qviz.quantize(torch.randn(4, 128), bits=4)\n"
        "print(len(tiles.walk('triton.w4a16', q, torch.randn(128)).steps), "
        "'def affine_gemv' in tiles.source('triton.w4a16'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "9 True"


def test_inputs_that_are_not_finite():
    name, q = cases()["int8"]
    x = torch.randn(q.shape[1])
    x[3] = torch.inf
    assert tiles.walk(name, q, x).y.isnan().all()


def test_what_a_walk_refuses():
    name, q = cases()["symmetric"]
    x = torch.randn(160)
    with pytest.raises(ValueError, match="kernel with steps"):
        tiles.walk("triton.w4a61", q, x)
    with pytest.raises(ValueError, match="one token of 160 inputs"):
        tiles.walk(name, q, x[None])
    with pytest.raises(ValueError, match="from 0 to 4, got 5"):
        tiles.walk(name, q, x, program=5)
    with pytest.raises(ValueError, match="32 rows does not fit into 18"):
        tiles.walk(name, q, x, block=Block(32, 1))
    with pytest.raises(ValueError, match="power of two"):
        Block(3, 1)
    with pytest.raises(ValueError, match="whole tiles, of 4 chunks here"):
        tiles.walk(*cases()["whole-tiles"], torch.randn(256), block=Block(4, 2))
    with pytest.raises(ValueError, match="without act-order"):
        tiles.walk(name, act_order(), torch.randn(128))
    with pytest.raises(ValueError, match="16 levels"):
        tiles.walk("triton.nf4", q, x)
    with pytest.raises(KeyError, match="does not show"):
        tiles.lines(name, "codebook_gemv", "words")
    with pytest.raises(KeyError, match="0 markers"):
        tiles.lines(name, "affine_gemv", "nothing")


def test_what_is_given_stays_as_it_is():
    name, q = cases()["zero-points"]
    x = torch.randn(160)
    codes, kept = q.codes.clone(), x.clone()
    before = {label: t.clone() for label, t in affine_tensors(q)[0].items()}
    tiles.walk(name, q, x)
    assert torch.equal(q.codes, codes) and torch.equal(x, kept)
    assert all(torch.equal(t, before[label]) for label, t in affine_tensors(q)[0].items())
