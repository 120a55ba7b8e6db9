"""llama.cpp's product against float64, and what it makes of inputs against its own C functions."""

import ctypes
import importlib.machinery
import platform
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from kernel_cases import agrees, inputs

import qviz
from qviz.kernels import llama_cpp
from qviz.kernels.llama_cpp import BLOCK, INPUTS, TYPES, quantized_inputs
from qviz.methods.gguf import LAYOUTS, from_bytes
from qviz.methods.gguf.layout import pack as pack_parts

KERNEL = llama_cpp.KERNELS[0]
REASON = llama_cpp.library_missing()
needs_library = pytest.mark.skipif(REASON is not None, reason=REASON or "")
needs_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the rounding held here is that for x86"
)
BATCHES = (1, 3, 16, 64)


def quantized(type, rows, columns, seed=0):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return qviz.quantize(w, "gguf", type=type)


def any_bytes(type, rows, columns, seed=0):
    """A tensor of blocks in which every code, and every integer scale, may occur."""
    g = torch.Generator().manual_seed(seed)
    layout = LAYOUTS[type]
    blocks = rows * columns // layout.weights

    def part(name, count, bits):
        if bits == 16:  # a small positive or negative float16
            return (torch.randn(blocks, count, generator=g) * 0.01).half()
        if name == "exponent":  # any power of two would be a weight beyond all others
            return torch.randint(115, 128, (blocks, count), generator=g, dtype=torch.uint8)
        return torch.randint(0, 2**bits, (blocks, count), generator=g, dtype=torch.uint8)

    parts = {name: part(name, count, bits) for name, count, bits in layout.parts}
    return from_bytes(type, pack_parts(layout, parts).reshape(rows, -1))


def shapes(type):
    block = LAYOUTS[type].weights
    return ((1, block), (17, 2 * block), (33, 3 * block), (64, 5 * block))


# ---------------------------------------------------------------------- the product


@needs_library
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("make", [quantized, any_bytes])
def test_the_product_is_the_reference(type, make):
    for rows, columns in shapes(type):
        q = make(type, rows, columns)
        for tokens in BATCHES:
            agrees(KERNEL, q, inputs(tokens, columns, torch.float32))


@needs_library
@pytest.mark.parametrize("type", TYPES)
def test_unit_vectors_give_back_every_weight(type):
    """127 at one place and 0 elsewhere has a scale of 1: the inputs are exact."""
    q = any_bytes(type, 19, 512, seed=1)
    x = 127 * torch.eye(512)
    assert torch.equal(KERNEL.inputs(x, q), x.double())
    got = KERNEL.multiply(KERNEL.pack(q), x).double().T / 127
    expected = q.dequantize().double()
    # A weight may be the difference of a level and a minimum, each rounded at its own size.
    step = 2.0**-22 * expected.abs().amax(1, keepdim=True)
    assert ((got - expected).abs() <= step).all()
    assert ((got - expected).norm() / expected.norm()) < 1e-7


@needs_library
@pytest.mark.parametrize("type", ["Q4_1", "Q5_1"])
def test_stored_sums_are_what_the_reference_adds(type):
    """Without them, the product is a thousand times further from the reference."""
    q, x = quantized(type, 33, 256), inputs(16, 256, torch.float32)
    y = KERNEL.multiply(KERNEL.pack(q), x).double()
    plain = KERNEL.inputs(x, q) @ q.dequantize().double().T
    apart = (y - plain).norm() / plain.norm()
    assert (y - KERNEL.reference(q, x)).norm() / plain.norm() < 1e-6
    assert 1e-4 < apart < 4e-3


@needs_library
@pytest.mark.parametrize("type", ["Q4_0", "Q5_1", "Q4_K"])
def test_inputs_of_every_size(type):
    """Zeros, outliers, and numbers so small that there is no scale, or no 1/scale, for them."""
    q = quantized(type, 8, 256)
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(2))
    x[0] = 0
    x[1] *= 1e-40
    x[2] *= 1e3
    x[3, 5] = 3e4
    x[4, :128] = -0.0
    x[5] *= 1e-9
    y = KERNEL.multiply(KERNEL.pack(q), x)
    assert torch.isfinite(y).all()
    assert (y[:2] == 0).all()
    assert (y[5] == 0).all() == (INPUTS[type] != "Q8_K")  # 1e-9 / 127 is nothing in float16
    # In units of the largest term: beside an outlier, a level and its minimum may nearly cancel.
    largest = KERNEL.inputs(x, q).abs().amax(1, keepdim=True) * q.dequantize().abs().max()
    assert ((y - KERNEL.reference(q, x)).abs() <= 2e-6 * largest).all()


@needs_library
def test_inputs_too_large_for_float16():
    """What llama.cpp does with them, so that whoever measures knows: it says nothing."""
    x = torch.full((1, 256), 3000.0)  # the sum of a block, 96000, is beyond float16
    for type in TYPES:
        y = KERNEL.multiply(KERNEL.pack(quantized(type, 4, 256)), x)
        assert torch.isfinite(y).all() == (INPUTS[type] != "Q8_1"), type
    x = torch.full((1, 256), 1e7)  # 1e7 / 127 too; Q8_K has a float32 scale
    for type in ("Q4_0", "Q4_K"):
        y = KERNEL.multiply(KERNEL.pack(quantized(type, 4, 256)), x)
        assert torch.isfinite(y).all() == (INPUTS[type] == "Q8_K"), type


@needs_library
@pytest.mark.parametrize("type", ["Q4_0", "Q4_K", "Q8_0"])
def test_threads_change_nothing(type):
    q = quantized(type, 70, 512)
    packed, before = KERNEL.pack(q), torch.get_num_threads()
    try:
        for tokens in BATCHES:
            x, made = inputs(tokens, 512, torch.float32), []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                made.append(KERNEL.multiply(packed, x))
            assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    finally:
        torch.set_num_threads(before)


@needs_library
def test_products_at_the_same_time():
    """Weights of one shape share a graph; callers must not share its numbers."""
    tensors = [quantized("Q8_0", 40, 256, seed) for seed in range(4)]
    packed = [KERNEL.pack(q) for q in tensors]
    x = inputs(8, 256, torch.float32)
    expected = [KERNEL.multiply(each, x) for each in packed]
    with ThreadPoolExecutor(4) as pool:
        jobs = [(i % 4, pool.submit(KERNEL.multiply, packed[i % 4], x)) for i in range(200)]
        for which, job in jobs:
            assert torch.equal(job.result(), expected[which])


# ---------------------------------------------------------------------- packing


def test_the_bytes_are_read_where_they_are():
    q = quantized("Q4_K", 6, 512)
    packed = KERNEL.pack(q)
    assert packed.tensors["blocks"].data_ptr() == q.grid.data.data_ptr()
    assert packed.nbytes == 6 * 2 * 144
    assert packed.options == {"type": "Q4_K"}


@needs_library
def test_a_copy_reads_its_own_bytes():
    q, x = quantized("Q8_0", 6, 64), inputs(2, 64, torch.float32)
    packed = KERNEL.pack(q)
    first = KERNEL.multiply(packed, x)
    copy = packed.copy()
    copy.tensors["blocks"].zero_()
    assert (KERNEL.multiply(copy, x) == 0).all()
    assert torch.equal(KERNEL.multiply(packed, x), first)


@needs_library
def test_bytes_and_inputs_at_odd_places():
    """As views into a file, or into a larger tensor, lie."""
    q, x = quantized("Q4_0", 6, 64), inputs(3, 64, torch.float32)
    expected = KERNEL.multiply(KERNEL.pack(q), x)
    data = q.grid.data
    room = torch.zeros(data.numel() + 7, dtype=torch.uint8)
    room[7:] = data.flatten()
    other = from_bytes("Q4_0", room[7:].view(data.shape))
    assert other.grid.data.data_ptr() % llama_cpp.ALIGNMENT
    packed = KERNEL.pack(other)
    assert packed.tensors["blocks"].data_ptr() % llama_cpp.ALIGNMENT == 0
    line = torch.zeros(3 * 64 + 1)
    line[1:] = x.flatten()
    assert torch.equal(KERNEL.multiply(packed, line[1:].view(3, 64)), expected)
    assert torch.equal(KERNEL.multiply(packed, x.T.contiguous().T), expected)


def test_what_it_refuses():
    w = torch.randn(4, 64)
    for q in (qviz.quantize(w, bits=4, group_size=32), qviz.quantize(w, "nf4")):
        assert "GGUF" in KERNEL.refuses(q)
        with pytest.raises(ValueError, match="method gguf"):
            KERNEL.pack(q)
    q = quantized("Q4_0", 4, 64)
    assert KERNEL.refuses(q) is None
    with pytest.raises(ValueError, match="float32 inputs"):
        KERNEL.pack(q, dtype=torch.bfloat16)
    for type in LAYOUTS:  # every type that qviz encodes has a product
        assert type in TYPES and type in INPUTS


# ---------------------------------------------------------------------- inputs


def test_inputs_by_hand():
    x = torch.zeros(1, 256)
    x[0, :4] = torch.tensor([-254.0, 3.0, 5.0, 127.0])  # steps of 2; ties to even
    for kind in BLOCK:
        blocks = quantized_inputs(x, kind)
        assert blocks.codes.shape == (1, 256 // BLOCK[kind], BLOCK[kind])
        assert blocks.codes[0, 0, :4].tolist() == [-127, 2, 2, 64]
        assert float(blocks.scale[0, 0]) == 2
        assert blocks.values()[0, :4].tolist() == [-254, 4, 4, 128]
        assert (blocks.values()[0, 4:] == 0).all()
    assert quantized_inputs(x, "Q8_1").sums[0].tolist() == [2 * (-127 + 2 + 2 + 64)] + [0] * 7
    # The extreme number always has the code −127 in Q8_K: here the scale is negative.
    flipped = quantized_inputs(-x, "Q8_K")
    assert float(flipped.scale[0, 0]) == -2
    assert flipped.codes[0, 0, :4].tolist() == [-127, 2, 2, 64]


@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.sampled_from([256, 512])),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    kind=st.sampled_from(sorted(BLOCK)),
)
def test_inputs_are_within_half_a_step(x, kind):
    kept = x.copy()
    x = torch.from_numpy(x)
    blocks = quantized_inputs(x, kind)
    assert np.array_equal(x.numpy(), kept)
    exact = x.double().reshape(blocks.codes.shape)
    step = exact.abs().amax(-1, keepdim=True) / 127
    rounded = blocks.scale.double().abs().unsqueeze(-1) - step  # float16, or float32
    error = (blocks.values().reshape(exact.shape) - exact).abs()
    assert (error <= (0.5 + 1e-4) * step + 127 * rounded.abs() + 1e-38).all()


def test_inputs_that_are_no_blocks():
    with pytest.raises(ValueError, match="multiple of 256"):
        quantized_inputs(torch.zeros(1, 128), "Q8_K")
    with pytest.raises(ValueError, match="mean Q8"):
        quantized_inputs(torch.zeros(1, 128), "Q8_2")


class Traits(ctypes.Structure):
    """struct ggml_type_traits_cpu"""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, ctypes.c_int64)),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


def traits(number):
    function = llama_cpp.library().cpu.ggml_get_type_traits_cpu
    function.restype, function.argtypes = ctypes.POINTER(Traits), [ctypes.c_int]
    return function(number).contents


@needs_library
def test_the_types_of_inputs_are_theirs():
    numbers = {"Q8_0": 8, "Q8_1": 9, "Q8_K": 15}
    for type, number in TYPES.items():
        found = traits(number)
        assert found.vec_dot and found.vec_dot_type == numbers[INPUTS[type]], type


@needs_library
@needs_x86
@pytest.mark.parametrize(
    ("kind", "number", "size"), [("Q8_0", 8, 34), ("Q8_1", 9, 36), ("Q8_K", 15, 292)]
)
def test_input_blocks_are_theirs_byte_for_byte(kind, number, size):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(400, 512, generator=g) * torch.logspace(-9, 4, 400).unsqueeze(-1)
    x[::5, ::7] *= 20
    x[1] = 0
    x[2, :256] = 0
    x[3] = torch.arange(512) - 255.5  # ties
    x[4] = torch.tensor([127.0, -127.0]).repeat(256)  # the first of two extremes counts
    blocks = quantized_inputs(x, kind)
    theirs = torch.zeros(x.numel() // BLOCK[kind], size, dtype=torch.uint8)
    traits(number).from_float(x.data_ptr(), theirs.data_ptr(), x.numel())
    n, head = BLOCK[kind], {"Q8_0": 2, "Q8_1": 4, "Q8_K": 4}[kind]
    scale = theirs[:, : 4 if kind == "Q8_K" else 2].contiguous()
    scale = scale.view(torch.float32 if kind == "Q8_K" else torch.float16).flatten()
    assert torch.equal(scale, blocks.scale.flatten())
    codes = theirs[:, head : head + n].view(torch.int8)
    assert torch.equal(codes, blocks.codes.reshape(-1, n).to(torch.int8))
    if kind == "Q8_1":
        sums = theirs[:, 2:4].contiguous().view(torch.float16).flatten()
        assert torch.equal(sums, blocks.sums.flatten())


# ---------------------------------------------------------------------- the library


def test_without_the_package(monkeypatch, tmp_path):
    """The reason says how to mend it; a package without its libraries is said to be that."""
    monkeypatch.setattr(llama_cpp, "library", llama_cpp.library.__wrapped__)
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    assert llama_cpp.library_missing() == llama_cpp.NOT_INSTALLED
    assert KERNEL._probe(torch.device("cpu")) == llama_cpp.NOT_INSTALLED
    assert "pip install llama-cpp-python" in llama_cpp.NOT_INSTALLED
    spec = importlib.machinery.ModuleSpec("llama_cpp", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: spec)
    said = llama_cpp.library_missing()
    assert "no ggml-base" in said and said.endswith(".")
    assert ("on cpu only" if torch.cuda.is_available() else "no CUDA device") in KERNEL.missing(
        "cuda"
    )


@needs_library
def test_it_runs_here_and_says_with_what():
    assert KERNEL.missing("cpu") is None
    found = llama_cpp.instructions()
    for name in ("avx2", "avx512", "neon", "llamafile"):
        assert bool(getattr(llama_cpp.library().cpu, f"ggml_cpu_has_{name}")()) == (name in found)


@needs_library
def test_the_data_pointer_was_found():
    base, place = llama_cpp.library().base, llama_cpp.library().data
    context = base.ggml_init(llama_cpp._InitParams(1 << 16, None, False))
    tensor = base.ggml_new_tensor_2d(context, TYPES["Q4_K"], 256, 4)
    ctypes.c_void_p.from_address(tensor + place).value = 0x1230
    assert base.ggml_get_data(tensor) == 0x1230
    base.ggml_free(context)


@needs_library
def test_a_graph_is_freed_with_its_object(monkeypatch):
    freed, base = [], llama_cpp.library().base
    original = base.ggml_free

    def free(context):
        freed.append(context)
        original(context)

    monkeypatch.setattr(base, "ggml_free", free)
    graph = llama_cpp.Graph(TYPES["Q4_0"], 4, 32, 2)
    gone = weakref.ref(graph)
    y = torch.empty(2, 4)
    graph.run(quantized("Q4_0", 4, 32).grid.data, torch.ones(2, 32), y, 1)
    assert not freed
    del graph
    assert gone() is None and len(freed) == 1


@needs_library
def test_a_failure_is_not_silent(monkeypatch):
    monkeypatch.setattr(llama_cpp.library().base, "ggml_backend_graph_compute", lambda *_: -2)
    with pytest.raises(RuntimeError, match="status -2"):
        KERNEL.multiply(KERNEL.pack(quantized("Q4_0", 4, 32)), torch.ones(1, 32))
