"""The Triton kernels against float64: in Triton's interpreter on a CPU, compiled on a CUDA device.

What no CPU can run is compiled all the same (`test_…_compiles`): the launches that the kernels
plan, with the arguments that they pass.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DEVICES, UNIT, agrees, gives_back_the_weight, inputs

import qviz
from qviz.core.granularity import Granularity
from qviz.core.grids import Affine, Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.kernels import get
from qviz.kernels import triton_kernels as tk
from qviz.kernels.triton_layout import (
    COPIES,
    Layout,
    affine_tensors,
    fp8_codes,
    fp8_words,
    pack_words,
    unpack_words,
)

pytestmark = pytest.mark.usefixtures("interpreter")
if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

FOUR_BIT = ("triton.w4a16", "triton.dequantize")
BATCHES = (1, 3, 4, 16, 64)
MANY = (200, tk.FUSED + 1)  # two blocks of tokens, and through memory
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weight(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    return request.param


def there(name, device="cpu"):
    kernel = get(name)
    reason = kernel.missing(device)
    if device == "cuda" and reason is not None:
        pytest.skip(reason)  # an older GPU
    assert reason is None
    return kernel


# ---------------------------------------------------------------------- availability


def test_why_it_is_not_available(monkeypatch):
    kernel = get("triton.w4a16")
    assert kernel.missing("cpu") is None and kernel.interpreted
    monkeypatch.delenv("TRITON_INTERPRET")
    assert kernel.missing("cpu") == tk.NOT_COMPILED and not kernel.interpreted
    monkeypatch.setattr(tk, "find_spec", lambda name: None)
    assert kernel.missing("cpu") == tk.NOT_INSTALLED
    if not torch.cuda.is_available():
        assert "no CUDA device" in kernel.missing("cuda")


@pytest.mark.parametrize("kernel", tk.KERNELS, ids=lambda kernel: kernel.name)
def test_each_passes_its_own_probe(kernel, device):
    there(kernel.name, device)


def test_listing_the_kernels_does_not_import_triton():
    script = (
        "import sys, qviz.kernels.triton_kernels as tk\n"
        "[k.missing('cpu') for k in tk.KERNELS]\n"
        "print('triton' in sys.modules)"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == "False"


# ---------------------------------------------------------------------- 4 bits


@pytest.mark.parametrize("group_size", [32, 64, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (17, 256), (48, 128)])
def test_w4a16_groups(rows, columns, symmetric, group_size, device):
    kernel = there("triton.w4a16", device)
    q = qviz.quantize(weight(rows, columns), bits=4, symmetric=symmetric, group_size=group_size)
    gives_back_the_weight(kernel, q, torch.float32, device)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, torch.bfloat16), device)


@pytest.mark.parametrize("name", FOUR_BIT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", ["gptq", "hqq", "awq", "compressed_tensors"])
def test_w4a16_of_every_dtype_and_kind_of_zero(convention, dtype, name, device):
    kernel = there(name, device)
    q = qviz.quantize(
        weight(10, 192), bits=4, group_size=64, symmetric=False, convention=convention
    )
    gives_back_the_weight(kernel, q, dtype, device)
    for tokens in (1, 5):
        agrees(kernel, q, inputs(tokens, 192, dtype), device)


@pytest.mark.parametrize("group_size", [8, 16, 24, 40, 96])
@pytest.mark.parametrize("name", FOUR_BIT)
def test_w4a16_any_group_of_a_multiple_of_eight(name, group_size, device):
    kernel = there(name, device)
    q = qviz.quantize(weight(5, 3 * group_size), bits=4, group_size=group_size)
    gives_back_the_weight(kernel, q, torch.float16, device)
    for tokens in (1, 4):
        agrees(kernel, q, inputs(tokens, 3 * group_size, torch.float16), device)


def act_order(rows=12, groups=4, group_size=32, seed=3):
    """A tensor whose columns belong to groups in no order, made by hand."""
    columns = groups * group_size
    generator = torch.Generator().manual_seed(seed)
    g_idx = torch.arange(columns) % groups
    g_idx = g_idx[torch.randperm(columns, generator=generator)].to(torch.int32)
    codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = torch.rand(rows, groups, generator=generator) + 0.1
    zero = torch.randint(0, 16, (rows, groups), generator=generator, dtype=torch.uint8)
    grid = Affine(scale, 4, 0, 15, torch.float32, zero)
    return QuantizedTensor(
        codes, grid, Granularity("group", group_size), (rows, columns), g_idx=g_idx
    )


@pytest.mark.parametrize("name", FOUR_BIT)
def test_w4a16_in_act_order(name, device):
    q = act_order()
    kernel = there(name, device)
    gives_back_the_weight(kernel, q, torch.float32, device)
    for tokens in (1, 16):
        agrees(kernel, q, inputs(tokens, q.shape[1], torch.bfloat16), device)


def test_split_rows_and_more_than_one_tile(device):
    """Rows beyond a block, and 11 tiles of a row shared out among two programs."""
    kernel = there("triton.w4a16", device)
    q = qviz.quantize(weight(70, 1408), bits=4, group_size=64, symmetric=False)
    packed = kernel.pack(q, device, torch.float16)
    config = tk.dot_configs(tk.AFFINE_DOT, 80, 128)[0]
    assert tk.splits(config, 70, 80, packed.options["layout"].tiles, torch.device("cpu")) == 2
    agrees(kernel, q, inputs(80, 1408, torch.float16), device)


@pytest.mark.parametrize(("capability", "tokens"), [((8, 0), 64), ((8, 9), 64), ((9, 0), 128)])
def test_older_gpus_take_fewer_tokens_to_a_program(capability, tokens, monkeypatch):
    tk.widest.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    most = tk.widest(torch.device("cuda", 0))
    tk.widest.cache_clear()
    assert most == tokens
    block = tk.dot_configs(tk.AFFINE_DOT, 256, most)[0].blocks["BLOCK_TOKENS"]
    assert block == tokens


def test_split_rows_of_fp8(device):
    """22 tiles of a row shared out among four programs."""
    kernel = there("triton.fp8_w8a16", device)
    q = qviz.quantize(weight(70, 1408), "fp8")
    config = tk.dot_configs(tk.FP8_DOT, 20, 128)[0]
    assert tk.splits(config, 70, 20, 22, torch.device("cpu")) == 4
    agrees(kernel, q, inputs(20, 1408, torch.bfloat16), device)


def test_how_a_row_is_shared_out():
    """As many programs as asked for, a power of two; each keeps four tiles, and no more than 16."""
    cpu = torch.device("cpu")  # which stands for an H100 with 132 multiprocessors
    few = tk.Config({"BLOCK_ROWS": 64, "BLOCK_TOKENS": 8}, programs=7)
    assert tk.splits(few, 8192, 4, 224, cpu) == 4  # 128 programs; 924 wanted, 7 of them
    assert tk.splits(few, 64, 4, 224, cpu) == 16
    assert tk.splits(few, 64, 4, 32, cpu) == 8 and tk.splits(few, 64, 4, 3, cpu) == 1
    assert tk.splits(few, 2**20, 4, 224, cpu) == 1
    # What was fastest on an H100: 8192 rows in 8 parts for 4 tokens, in 4 for 64, whole for 256.
    for tokens, parts in ((4, 8), (16, 8), (32, 4), (64, 4), (128, 2), (256, 1)):
        config = tk.dot_configs(tk.AFFINE_DOT, tokens, 128)[0 if tokens < 256 else 1]
        assert tk.splits(config, 8192, tokens, 224, cpu) == parts
    for tiles in range(1, 40):  # every tile belongs to one part
        split = tk.splits(few, 64, 4, tiles, cpu)
        steps = tk.cdiv(tiles, split)
        parts = [range(part * steps, min((part + 1) * steps, tiles)) for part in range(split)]
        assert [tile for part in parts for tile in part] == list(range(tiles))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["triton.w4a16", "triton.nf4", "triton.fp8_w8a16"])
@pytest.mark.parametrize(("rows", "columns"), [(130, 384), (65, 200)])
def test_many_tokens(rows, columns, name, dtype, device):
    """More than a block of tokens, and so many that the weight goes through memory; rows and
    columns that no block divides."""
    kernel = there(name, device)
    w = weight(rows, columns)
    q = {
        "triton.w4a16": lambda: qviz.quantize(w, bits=4, group_size=8, symmetric=False),
        "triton.nf4": lambda: qviz.quantize(w, "nf4"),
        "triton.fp8_w8a16": lambda: qviz.quantize(w, "fp8"),
    }[name]()
    for tokens in MANY:
        agrees(kernel, q, inputs(tokens, columns, dtype), device)


@pytest.mark.parametrize("tokens", [1, 4, 16, 200, tk.FUSED + 1])
@pytest.mark.parametrize("kernel", tk.KERNELS, ids=lambda kernel: kernel.name)
def test_twice_is_the_same(kernel, tokens, device):
    """To the bit: a product that still ran while its operands changed would not be."""
    there(kernel.name, device)
    small = (34, 256) if tokens < 200 else (16, 128)  # the interpreter takes a second for a tile
    rows, columns = (2048, 4096) if device == "cuda" else small
    q = quantized_for(kernel, weight(rows, columns))
    packed = kernel.pack(q, device, torch.bfloat16)
    x = inputs(tokens, columns, torch.bfloat16).to(device)
    first = kernel.multiply(packed, x)
    for _ in range(8 if device == "cuda" else 1):
        assert torch.equal(kernel.multiply(packed, x), first)


def quantized_for(kernel, w):
    """A weight as this kernel takes it."""
    if kernel.name == "triton.nf4":
        return qviz.quantize(w, "nf4")
    if "fp8" in kernel.name:
        return qviz.quantize(w, "fp8")
    if kernel.name == "triton.w8a8":
        return qviz.quantize(w, bits=8, granularity="channel", group_size=None)
    return qviz.quantize(w, bits=4, group_size=128, symmetric=False)


@pytest.mark.parametrize("name", FOUR_BIT)
def test_zeros_and_extreme_codes(name, device):
    """A group of zeros, groups of nothing but the lowest or the highest code, a scale of 0."""
    codes = torch.tensor([8, 0, 15, 3], dtype=torch.uint8).repeat_interleave(32).expand(9, -1)
    scale = torch.tensor([[0.5, 2.0, 6e4, 0.0]]).expand(9, -1).to(torch.float16)
    zero = torch.tensor([[8, 15, 0, 3]], dtype=torch.uint8).expand(9, -1)
    grid = Affine(scale.clone(), 4, 0, 15, torch.float32, zero.clone())
    q = QuantizedTensor(codes.clone(), grid, Granularity("group", 32), (9, 128))
    kernel = there(name, device)
    gives_back_the_weight(kernel, q, torch.float32, device)
    x = inputs(3, 128, torch.float32)
    for tokens in (1, 3):
        agrees(kernel, q, x[:tokens], device)


@pytest.mark.parametrize("format", ["nf4", "fp4"])
@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (17, 256)])
def test_nf4_blocks(rows, columns, double, group_size, format, device):
    kernel = there("triton.nf4", device)
    q = qviz.quantize(
        weight(rows, columns), "nf4", format=format, group_size=group_size, double_quant=double
    )
    gives_back_the_weight(kernel, q, torch.float32, device)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, torch.bfloat16), device)


@pytest.mark.parametrize("name", ["triton.nf4", "triton.dequantize"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(7, 100), (5, 33), (6, 48), (9, 1)])
def test_nf4_blocks_that_run_from_row_to_row(rows, columns, double, name, device):
    """Rows that are no whole blocks, nor whole words; the last block is shorter."""
    kernel = there(name, device)
    q = qviz.quantize(weight(rows, columns), "nf4", group_size=64, double_quant=double)
    gives_back_the_weight(kernel, q, torch.float32, device)
    for dtype in DTYPES:
        agrees(kernel, q, inputs(1, columns, dtype), device)
    agrees(kernel, q, inputs(9, columns, torch.bfloat16), device)


def test_levels_of_ones_own(device):
    levels = torch.linspace(-1, 1, 16) ** 3
    kernel = there("triton.nf4", device)
    q = qviz.quantize(weight(8, 64), "nf4", levels=levels)
    gives_back_the_weight(kernel, q, torch.float32, device)
    row = replace(q, granularity=Granularity("group", 32), grid=_regrouped(q.grid))
    gives_back_the_weight(kernel, row, torch.float32, device)


def _regrouped(grid):
    """A scale for each 32 of the 64 weights of a row."""
    return replace(grid, scale=torch.rand(8, 2) + 0.5, stored=())


# ---------------------------------------------------------------------- 8 bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (17, 72), (48, 65)])
def test_w8a8(rows, columns, dtype, device):
    kernel = there("triton.w8a8", device)
    q = qviz.quantize(weight(rows, columns), bits=8, granularity="channel", group_size=None)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, dtype), device)
    gives_back_the_weight(kernel, q, dtype, device)


@pytest.mark.parametrize("name", ["triton.fp8", "triton.fp8_w8a16"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (17, 72), (48, 144)])
def test_fp8(rows, columns, granularity, name, device):
    kernel = there(name, device)
    q = qviz.quantize(weight(rows, columns), "fp8", granularity=granularity)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, torch.bfloat16), device)
    gives_back_the_weight(kernel, q, torch.float16, device)


@pytest.mark.parametrize("tokens", [1, 2])
def test_every_e4m3_number(tokens, device):
    """All 254 finite bytes, subnormal ones and −0 among them, as weights of a row each."""
    codes = torch.tensor([b for b in range(256) if b & 0x7F != 0x7F], dtype=torch.uint8)
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = Codebook(values, torch.ones(len(codes), 1), 8, ())
    q = QuantizedTensor(codes[:, None].repeat(1, 16), grid, Granularity("channel"), (254, 16))
    kernel = there("triton.fp8_w8a16", device)
    x = torch.zeros(tokens, 16, dtype=torch.float16)
    x[0, 5] = 1
    y = kernel.multiply(kernel.pack(q, device, torch.float16), x.to(device)).cpu()
    assert torch.equal(y[0], values[codes.long()].half())


@pytest.mark.parametrize("name", ["triton.w8a8", "triton.fp8"])
def test_inputs_are_quantized_to_the_last_code(name, device):
    """Ties included: a difference of one code would show as one step of the largest weight."""
    kernel = there(name, device)
    x = torch.cat([torch.arange(-127, 128) + 0.5, torch.tensor([127.0])]).bfloat16()[None]
    x = torch.cat([x, inputs(4, 256, torch.bfloat16), torch.zeros(1, 256).bfloat16()])
    codes, step = kernel._buffers(x.to(device))
    q = kernel.sample()
    packed = kernel.pack(q, device, torch.bfloat16)
    packed = replace(packed, shape=(q.shape[0], 256))
    kernel._quantize(packed, x.to(device))(x.to(device), codes, step)
    want = kernel.inputs(x, q)
    assert torch.equal(codes.cpu().double() * step.cpu().double()[:, None], want)


# ---------------------------------------------------------------------- what they share


@pytest.mark.parametrize("kernel", tk.KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy on ∞ − ∞
def test_nan_and_infinity_propagate(value, tokens, kernel, device):
    """As in the reference: NaN where that has it, ±∞ where that has it, numbers elsewhere."""
    there(kernel.name, device)
    q = kernel.sample()
    x = inputs(tokens, q.shape[1], torch.bfloat16)
    x[tokens - 1, 40] = value
    y = kernel.multiply(kernel.pack(q, device, torch.bfloat16), x.to(device)).cpu().double()
    want = kernel.reference(q, x)
    assert torch.equal(y.isnan(), want.isnan())
    infinite = want.isinf()
    assert torch.equal(y[infinite], want[infinite])
    assert not torch.isfinite(y[-1]).any() and torch.isfinite(y[:-1]).all()


@pytest.mark.parametrize("kernel", tk.KERNELS, ids=lambda kernel: kernel.name)
def test_nothing_changes_and_nothing_is_shared(kernel):
    q = kernel.sample()
    before = q.codes.clone()
    packed = kernel.pack(q, "cpu", torch.bfloat16)
    x = inputs(2, q.shape[1], torch.bfloat16)
    kept = x.clone()
    y = kernel.multiply(packed, x)
    again = kernel.multiply(packed, x)
    assert torch.equal(y, again) and y.data_ptr() != again.data_ptr()
    assert torch.equal(q.codes, before) and torch.equal(x, kept)
    assert torch.equal(kernel.multiply(packed.copy(), x), y)


def test_bytes_are_four_bits_and_the_scales():
    w = weight(64, 512).half()
    weights = w.numel()
    q = qviz.quantize(w, bits=4, group_size=128, scale_dtype=torch.float16)
    packed = get("triton.w4a16").pack(q)
    assert packed.nbytes == weights // 2 + weights // 128 * 2
    q = qviz.quantize(w, bits=4, group_size=128, symmetric=False, scale_dtype=torch.float16)
    assert get("triton.w4a16").pack(q).nbytes == weights // 2 + weights // 128 * (2 + 4)
    q = qviz.quantize(w, "nf4")
    registers = 4 * 8 * COPIES  # the table as tensor cores' programs read it
    assert get("triton.nf4").pack(q).nbytes == weights // 2 + weights // 64 * 4 + 64 + registers
    q = qviz.quantize(w, "nf4", double_quant=True)
    tables = 4 * (16 + 256) + 4 + registers  # and the offset
    second = weights // 64 // 256 * 4
    assert get("triton.nf4").pack(q).nbytes == weights // 2 + weights // 64 + second + tables
    q = qviz.quantize(w, bits=8, granularity="channel", group_size=None)
    assert get("triton.w8a8").pack(q).nbytes == weights + 64 * q.grid.scale.element_size()
    q = qviz.quantize(w, "fp8")
    for name in ("triton.fp8", "triton.fp8_w8a16"):
        assert get(name).pack(q).nbytes == weights + 64 * q.grid.scale.element_size()


@given(
    st.integers(1, 5),
    st.integers(1, 90) | st.sampled_from([128, 256, 384]),
    st.integers(1, 130) | st.sampled_from([16, 32, 64, 128, 256, 384]),
    st.integers(0, 2**31),
)
def test_words_round_trip(rows, columns, group, seed):
    layout = Layout.of(columns, group)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=generator)
    words = pack_words(codes, layout)
    assert words.dtype == torch.int32 and words.shape == (layout.tiles, rows, layout.width)
    assert torch.equal(unpack_words(words, layout), codes)
    whole = columns % group == 0 and columns % 8 == 0 and group % 8 == 0
    assert layout.aligned == whole
    planes = group % 128 == 0 or group in (16, 32, 64)
    assert layout.fused == (whole and columns % 128 == 0 and planes)
    if layout.aligned:  # each plane of a tile lies in one group
        plane = torch.arange(columns).reshape(-1, layout.width) // group
        assert bool((plane == plane[:, :1]).all())
    again = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    assert torch.equal(fp8_codes(fp8_words(again), columns), again)


def test_the_picture_of_a_tile():
    """Code j of word w is column 16·j + w, as drawn at the top of triton_source."""
    columns = torch.arange(128)
    words = pack_words((columns % 16).to(torch.uint8)[None], Layout.of(128, 128))[0, 0]
    tens = pack_words((columns // 16).to(torch.uint8)[None], Layout.of(128, 128))[0, 0]
    for w in range(16):
        for j in range(8):
            place = 16 * (int(tens[w]) >> 4 * j & 15) + (int(words[w]) >> 4 * j & 15)
            assert place == 16 * j + w
    drawn = re.findall(r"word +(\d+) +column ([\d ]+)", tk.functions(True).__doc__)
    assert [int(w) for w, _ in drawn] == [0, 1, 2, 15]
    for w, columns in drawn:
        assert [int(c) for c in columns.split()] == [16 * j + int(w) for j in range(7, -1, -1)]


@settings(max_examples=25)
@given(
    st.integers(1, 20),
    st.integers(1, 4),
    st.sampled_from([8, 16, 24, 32, 64]),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_shape(rows, groups, group_size, tokens, symmetric, seed):
    columns = groups * group_size
    w = weight(rows, columns, seed)
    x = inputs(tokens, columns, torch.float16, seed)
    q = qviz.quantize(w, bits=4, group_size=group_size, symmetric=symmetric)
    agrees(get("triton.w4a16"), q, x)
    agrees(get("triton.nf4"), qviz.quantize(w, "nf4", group_size=32), x)
    q = qviz.quantize(w, bits=8, granularity="channel", group_size=None)
    agrees(get("triton.w8a8"), q, x)


def test_what_they_refuse():
    w = weight(4, 60)
    three = qviz.quantize(w, bits=3, group_size=20)
    assert "4-bit" in get("triton.w4a16").refuses(three)
    odd = qviz.quantize(w, bits=4, group_size=20)
    assert "multiple of 8" in get("triton.w4a16").refuses(odd)
    offset = qviz.quantize(
        weight(4, 64), bits=4, group_size=64, symmetric=False, convention="quanto"
    )
    assert "offsets" in get("triton.w4a16").refuses(offset)
    assert "16 levels" in get("triton.nf4").refuses(odd)
    assert get("triton.dequantize").refuses(qviz.quantize(w, "nf4")) is None
    with pytest.raises(ValueError, match="multiple of 8"):
        get("triton.dequantize").pack(odd)
    huge = replace(odd, shape=(2**16, 2**15))
    assert "31 bits" in get("triton.w8a8").refuses(huge)
    wide = act_order()
    wide = replace(wide, grid=replace(wide.grid, zero_point=torch.full((12, 4), 300)))
    assert "go from 300 to 300" in get("triton.w4a16").refuses(wide)


def test_float32_is_not_cut_to_tf32(device):
    """Sixteen tokens go through tl.dot, which would take float32 as TF32 unless told."""
    kernel = there("triton.w4a16", device)
    q = qviz.quantize(weight(16, 64), bits=4, group_size=32)
    x = inputs(16, 64, torch.float32)
    y = kernel.multiply(kernel.pack(q, device, torch.float32), x.to(device)).cpu().double()
    want = kernel.reference(q, x)
    assert (y - want).norm() < 16 * UNIT[torch.float32] * want.norm()


def test_zeros_of_codes_below_zero():
    """Codes −8 … 7 with zero points among them: both are moved to 0 … 15."""
    q = act_order()
    q = replace(q, g_idx=None)
    moved = replace(
        q,
        codes=(q.codes.to(torch.int16) - 8).to(torch.int8),
        grid=replace(q.grid, qmin=-8, qmax=7, zero_point=q.grid.zero_point.to(torch.int8) - 8),
    )
    ours, theirs = affine_tensors(moved)[0], affine_tensors(q)[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ---------------------------------------------------------------------- compiled, without a GPU


@dataclass(frozen=True)
class Launch:
    """A launch that a product plans: the function, its constants with blocks, and its arguments."""

    name: str
    constants: dict
    config: tk.Config
    arguments: tuple
    grid: tuple


def launches(kernel, q, tokens, dtype, widest=128):
    """Every launch that a product plans, of every configuration, with up to so many tokens to a
    program."""
    found = []

    def launcher(device, name, config, constants, grid):
        return lambda *a: found.append(Launch(name, constants, config, a, grid))

    def fastest(packed, name, configs, make, *given):
        for config in configs:
            make(config)(*given)
        return lambda *a: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tk, "launcher", launcher)
        patch.setattr(tk, "fastest", fastest)
        patch.setattr(tk, "widest", lambda device: widest)
        packed = kernel.pack(q, "cpu", dtype)
        x = torch.zeros(tokens, q.shape[1], dtype=dtype)
        kernel._plan(packed, x, y := x.new_empty(tokens, q.shape[0]))(x, y)
    return list({repr((f.name, f.constants, f.config)): f for f in found}.values())


POINTERS = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.float8_e4m3fn: "*fp8e4nv",
}


def compiled(launch, capability):
    """The machine code of a launch, as Triton would specialize it, and what ptxas says of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    config, arguments = launch.config, launch.arguments
    function = getattr(tk.functions(False), launch.name)
    fixed = {**launch.constants, **config.blocks}
    kinds = {}
    for label, value in zip(function.arg_names, arguments, strict=False):
        if value is None:
            fixed[label] = None
        elif isinstance(value, torch.Tensor):
            kinds[label] = POINTERS[value.dtype]
        else:
            kinds[label] = "fp32" if isinstance(value, float) else "i32"
    signature = {label: kinds.get(label, "constexpr") for label in function.arg_names}
    values = dict(zip(function.arg_names, arguments, strict=False))
    even = {  # what Triton notices when it launches: pointers and numbers that 16 divides
        (at,): [["tt.divisibility", 16]]
        for at, label in enumerate(function.arg_names)
        if label in kinds and (kinds[label][0] == "*" or _sixteen(values[label]))
    }
    places = {(function.arg_names.index(label),): value for label, value in fixed.items()}
    made = triton.compile(
        ASTSource(function, signature, places, even),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.warps, "num_stages": config.stages, **tk._FUSED},
    )
    return made.asm


def _sixteen(value):
    return isinstance(value, int) and value % 16 == 0


def spilled(asm, folder):
    """Bytes of stack of a kernel: what found no place in the registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton comes without cuobjdump")
    path = folder / "kernel.cubin"
    path.write_bytes(asm["cubin"])
    said = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    found = re.findall(r"(?:STACK|LOCAL):(\d+)", said.stdout + said.stderr)
    assert found
    return sum(map(int, found))


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Triton's compiler, with a cache of its own."""
    monkeypatch.delenv("TRITON_INTERPRET")
    if type(tk.functions(False).add).__name__ == "InterpretedFunction":
        pytest.skip(tk.NO_COMPILER)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return tmp_path


COLUMNS = 4096


@cache
def formats():
    """Name → a kernel and a weight whose row is as long as an 8B model's."""
    w = weight(64, COLUMNS).half()
    zeros = {"bits": 4, "symmetric": False, "scale_dtype": torch.float16}
    int4 = qviz.quantize(w, bits=4, group_size=128, scale_dtype=torch.float16)
    return {
        "int4": ("triton.w4a16", int4),
        "int4-asym": ("triton.w4a16", qviz.quantize(w, group_size=128, **zeros)),
        "int4-hqq": (
            "triton.w4a16",
            qviz.quantize(w, group_size=64, convention="hqq", **zeros),
        ),
        "nf4": ("triton.nf4", qviz.quantize(w, "nf4")),
        "nf4-double": ("triton.nf4", qviz.quantize(w, "nf4", double_quant=True)),
        "nf4-rows": ("triton.nf4", qviz.quantize(w[:, :1100], "nf4")),
        "int8": (
            "triton.w8a8",
            qviz.quantize(w, bits=8, granularity="channel", group_size=None),
        ),
        "fp8": ("triton.fp8", qviz.quantize(w, "fp8")),
        "fp8-wide": ("triton.fp8_w8a16", qviz.quantize(w, "fp8")),
        "dequantize": ("triton.dequantize", int4),
        "dequantize-nf4": ("triton.dequantize", qviz.quantize(w, "nf4")),
    }


def capabilities(name):
    return (80, 90) if name != "triton.fp8" else (89, 90)


@pytest.mark.parametrize("format", ["int4", "nf4", "int8", "fp8", "fp8-wide", "dequantize"])
def test_one_token_compiles(format, compiler):
    name, q = formats()[format]
    for launch in {each.name: each for each in launches(get(name), q, 1, torch.bfloat16)}.values():
        asm = compiled(launch, 90)
        assert spilled(asm, compiler) == 0, launch.name


def first(name, format, tokens):
    """The first launch of a function."""
    kernel, q = formats()[format]
    planned = launches(get(kernel), q, tokens, torch.bfloat16)
    return next(each for each in planned if each.name == name)


def loop_of(ptx):
    """The lines of the longest loop of a kernel, from its label to the branch back to it."""
    lines = ptx.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\$L\w+):", line))}
    loops = []
    for end, line in enumerate(lines):
        back = re.search(r"bra(?:\.uni)? \s*(\$L\w+);", line)
        if back and labels.get(back[1], end) < end:
            loops.append(lines[labels[back[1]] : end + 1])
    return max(loops, key=len)


DOTS = [
    ("four_bit_dot", "int4"),
    ("four_bit_dot", "int4-asym"),
    ("four_bit_dot", "nf4"),
    ("fp8_wide_dot", "fp8-wide"),
]


@pytest.mark.parametrize(("name", "format"), DOTS)
@pytest.mark.parametrize("tokens", [8, 64])
def test_a_tile_is_one_product_of_weights_that_stay_in_registers(name, format, tokens, compiler):
    """One `dot`; words come in 16 bytes at once, ahead of time; what is decoded is not written to
    shared memory to be read again; and nothing finds no room."""
    asm = compiled(first(name, format, tokens), 90)
    assert len(re.findall(r"= (?:tt\.dot|ttng\.warp_group_dot) ", asm["ttgir"])) == 1
    turn = loop_of(asm["ptx"])
    copies = [line for line in turn if "cp.async.cg" in line]
    assert copies and all("0x10" in line for line in copies)
    stored = [line for line in turn if re.search(r"\bst\.shared|\bstmatrix", line)]
    assert len(stored) <= 2  # the scales of the rows, where another thread reads them
    assert sum("mma" in line for line in turn) >= 4
    assert spilled(asm, compiler) == 0


@pytest.mark.parametrize(("name", "format"), DOTS)
def test_a_product_is_complete_before_its_weights_change(name, format, compiler):
    """Hopper's products run on by themselves, and read weights from registers. Each turn of the
    loop waits for all of them before it ends: left running, they gave wrong results on an H100."""
    turn = loop_of(compiled(first(name, format, 64), 90)["ptx"])
    products = [i for i, line in enumerate(turn) if "wgmma.mma_async" in line]
    waits = [i for i, line in enumerate(turn) if re.search(r"wgmma\.wait_group\S* \t?0;", line)]
    assert products and waits and max(waits) > max(products)


def test_dequantizing_writes_whole_lines(compiler):
    """Neighbouring threads write 16 bytes each, not two."""
    for format in ("dequantize", "dequantize-nf4"):
        name, q = formats()[format]
        planned = launches(get(name), q, 300, torch.bfloat16)
        asm = compiled(next(each for each in planned if each.name == "dequantize"), 90)
        stores = re.findall(r"st\.global\.\S+", asm["ptx"])
        assert stores and all(store.startswith("st.global.v4.b32") for store in stores)
        assert spilled(asm, compiler) == 0


@pytest.mark.parametrize("format", ["int4", "int8"])
def test_a_thread_loads_sixteen_bytes_of_weights_at_once(format, compiler):
    name, q = formats()[format]
    for launch in launches(get(name), q, 1, torch.bfloat16):
        if launch.name.endswith("_gemv"):
            ptx = compiled(launch, 90)["ptx"]
            # Straight to registers, or ahead of time to shared memory.
            wide = re.findall(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\S+ \[.*\], 0x10", ptx)
            blocks, threads = launch.config.blocks, 32 * launch.config.warps
            unit = blocks.get("BLOCK_CHUNKS") or blocks["BLOCK_COLUMNS"] // 16
            assert len(wide) >= blocks["BLOCK_ROWS"] * unit // threads, launch.config


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 8, 64, 256, tk.FUSED + 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("format", sorted(formats()))
def test_every_configuration_compiles(format, dtype, tokens, compiler):
    name, q = formats()[format]
    kernel = get(name)
    if dtype not in kernel.dtypes:
        pytest.skip(f"{name} takes no {dtype}")
    for capability in capabilities(name):
        for launch in launches(kernel, q, tokens, dtype, 128 if capability >= 90 else 64):
            stack = spilled(compiled(launch, capability), compiler)
            # A register or two that ptxas sets aside before a loop of products of matrices.
            allowed = 16 if launch.name.endswith("_dot") else 0
            assert stack <= allowed, (capability, launch.name, launch.config)
