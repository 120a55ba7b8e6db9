"""llama.cpp's product on a CPU: GGUF blocks as in a file, inputs in int8 blocks.

The product is ggml's own graph of one node, `ggml_mul_mat`, computed by its CPU backend, as
llama.cpp computes every linear layer; the weight's bytes are read where torch keeps them. ggml
first quantizes each row of inputs, to blocks of 32 (Q8_0; Q8_1, which stores a block's sum beside
its codes, for weights with a minimum) or of 256 (Q8_K, for k-quants), and then adds up products of
integers. One thing that llama.cpp does is not included: some builds rearrange the weights of a few
types when a file is loaded.

The package is reached through ctypes, by the C functions of ggml.h, ggml-cpu.h and
ggml-backend.h, without importing its Python part. Source: ggml src/ggml-cpu.
"""

import ctypes
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from qviz.core.check import unknown
from qviz.core.divide import divide
from qviz.core.grids import Affine, Blocks
from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import Kernel, Packed
from qviz.kernels.samples import sample_weight
from qviz.methods.gguf import gguf

NOT_INSTALLED = (
    "llama-cpp-python is not installed. Run pip install llama-cpp-python, which compiles "
    "llama.cpp and takes minutes."
)
F32 = 0  # in enum ggml_type, as the numbers below
TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "MXFP4": 39,
}  # fmt: skip
# What the inputs become, by the type of the weight.
INPUTS = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "MXFP4"), "Q8_0"),
    **dict.fromkeys(("Q4_1", "Q5_1"), "Q8_1"),
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), "Q8_K"),
}
BLOCK = {"Q8_0": 32, "Q8_1": 32, "Q8_K": 256}
_COMPUTING = threading.Lock()  # a backend and a graph are made for one product at a time
ALIGNMENT = 32  # bytes; what ggml gives its own tensors
INSTRUCTIONS = (
    "sse3", "ssse3", "avx", "avx2", "avx_vnni", "f16c", "fma", "bmi2", "avx512", "avx512_vbmi",
    "avx512_vnni", "avx512_bf16", "amx_int8", "neon", "arm_fma", "fp16_va", "dotprod",
    "matmul_int8", "sve", "sme", "riscv_v", "vsx", "vxe", "wasm_simd",
)  # fmt: skip


# ---------------------------------------------------------------------- what ggml makes of inputs


@dataclass(frozen=True)
class InputBlocks:
    """X [tokens, in] as ggml stores it before it multiplies.

    codes  [tokens, blocks, 32 or 256] float32, integers from −127 to 127
    scale  [tokens, blocks] what a code stands for: float16 in Q8_0 and Q8_1, float32 in Q8_K
    sums   [tokens, blocks] float16 in Q8_1, Σ x̂ with the scale before it was rounded; else None
    """

    codes: torch.Tensor
    scale: torch.Tensor
    sums: torch.Tensor | None = None

    def values(self) -> torch.Tensor:
        """x̂ [tokens, in] in float64."""
        return (self.codes.double() * self.scale.double().unsqueeze(-1)).flatten(1)


def quantized_inputs(x: torch.Tensor, kind: str) -> InputBlocks:
    """X [tokens, in] in ggml's blocks for inputs; ValueError where they do not divide a row.

    kind  "Q8_0" or "Q8_1": blocks of 32, s = max|x|/127, but codes are found with 127/max|x|.
          "Q8_K": blocks of 256, s = −x_e/127 with x_e the number of largest magnitude, which gets
          the code −127

    Rounding is to the nearest, ties to even, as in ggml's code for x86 (arch/x86/quants.c) and in
    quantize_row_q8_K_ref; other processors may round ties away from zero.

    >>> quantized_inputs(torch.arange(32.0)[None], "Q8_0").values()[0, -1]
    tensor(31.0059, dtype=torch.float64)
    """
    if kind not in BLOCK:
        raise ValueError(unknown("type of input blocks", kind, BLOCK))
    if x.shape[1] % BLOCK[kind]:
        raise ValueError(f"{kind} needs a multiple of {BLOCK[kind]} inputs, got {x.shape[1]}")
    blocks = x.float().reshape(len(x), -1, BLOCK[kind])  # [tokens, blocks, 32 or 256]
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    if kind == "Q8_K":
        inverse = divide(-127.0, extreme)
        scale = torch.where(extreme == 0, 0.0, divide(1.0, inverse))
    else:
        inverse = divide(127.0, extreme.abs())
        scale = divide(extreme.abs(), 127.0)
    # 0·∞ in a block of zeros. Where x is too small for a finite inverse, its scale is 0 as well.
    codes = torch.round(inverse * blocks).nan_to_num(0.0).clamp(-127, 127)
    if kind == "Q8_K":
        return InputBlocks(codes, scale.squeeze(-1))
    sums = (scale.squeeze(-1) * codes.sum(-1)).half() if kind == "Q8_1" else None
    return InputBlocks(codes, scale.squeeze(-1).half(), sums)


# ---------------------------------------------------------------------- the library


class _InitParams(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


_POINTER, _INT, _LONG, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
_BASE: dict[str, tuple[Any, Sequence[Any]]] = {
    "ggml_init": (_POINTER, [_InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_type_name": (ctypes.c_char_p, [_INT]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_graph_overhead_custom": (_SIZE, [_SIZE, ctypes.c_bool]),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, _LONG, _LONG]),
    "ggml_get_data": (_POINTER, [_POINTER]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_new_graph_custom": (_POINTER, [_POINTER, _SIZE, ctypes.c_bool]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_backend_graph_compute": (_INT, [_POINTER, _POINTER]),
}
_CPU: dict[str, tuple[Any, Sequence[Any]]] = {
    "ggml_backend_cpu_init": (_POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [_POINTER, _INT]),
}


@dataclass(frozen=True)
class Library:
    """ggml's two shared libraries, ready to compute.

    base, cpu  the libraries
    backend    the CPU backend's handle
    data       where in a struct ggml_tensor the pointer to its numbers stands, in bytes
    """

    base: ctypes.CDLL
    cpu: ctypes.CDLL
    backend: int
    data: int


@cache
def library() -> Library:
    """ggml as llama-cpp-python brought it. ImportError where it is not installed; OSError or
    RuntimeError, saying what is wrong, if it is not the one that this was written for."""
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(NOT_INSTALLED)
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    base, cpu = (_load(folder, name) for name in ("ggml-base", "ggml-cpu"))
    for shared, functions in ((base, _BASE), (cpu, _CPU)):
        for name, (result, arguments) in functions.items():
            function = getattr(shared, name)
            function.restype, function.argtypes = result, arguments
    for name, number in TYPES.items():
        theirs = base.ggml_type_name(number) or b"nothing"
        if theirs.decode().upper() != name:
            raise RuntimeError(f"type {number} of this ggml is {theirs.decode()}, not {name}")
    backend = cpu.ggml_backend_cpu_init()
    if not backend:
        raise RuntimeError("ggml's CPU backend could not be started")
    return Library(base, cpu, backend, _data_offset(base))


def _load(folder: Path, name: str) -> ctypes.CDLL:
    found = [p for p in folder.glob(f"*{name}.*") if p.suffix in (".so", ".dylib", ".dll")]
    if not found:
        raise OSError(f"llama-cpp-python has no {name} among its libraries in {folder.name}/")
    return ctypes.CDLL(str(found[0]))


def _data_offset(base: ctypes.CDLL) -> int:
    """Where a tensor keeps the pointer to its numbers. ggml has a function that reads it and none
    that sets it, and the struct's layout changes between versions: so it is searched for."""
    context = base.ggml_init(_InitParams(1 << 16, None, False))
    try:
        tensor = base.ggml_new_tensor_2d(context, F32, 8, 8)
        size = base.ggml_tensor_overhead() - ctypes.sizeof(_POINTER)
        words = ctypes.cast(tensor, ctypes.POINTER(ctypes.c_size_t))
        step, wanted = ctypes.sizeof(ctypes.c_size_t), base.ggml_get_data(tensor)
        found = [step * i for i in range(size // step) if words[i] == wanted]
    finally:
        base.ggml_free(context)
    if len(found) != 1:
        raise RuntimeError("a tensor of this ggml does not hold its data pointer in one place")
    return found[0]


@cache
def instructions() -> tuple[str, ...]:
    """The vector instructions that this build of ggml was compiled with; "llamafile" where it has
    that project's products for several tokens as well. Raises as `library` does.

    >>> library_missing() or instructions()
    """
    cpu, found = library().cpu, []
    for name in (*INSTRUCTIONS, "llamafile"):
        ask = getattr(cpu, f"ggml_cpu_has_{name}", None)  # not every version asks for every one
        if ask is not None and ask():
            found.append(name)
    return tuple(found)


def library_missing() -> str | None:
    """One sentence that says why ggml's libraries cannot be used here; None: they can.

    >>> library_missing()
    """
    try:
        library()
    except ImportError:
        return NOT_INSTALLED
    except (OSError, RuntimeError, AttributeError) as error:
        return f"llama-cpp-python is installed, but cannot be used: {str(error).rstrip('.')}."
    return None


class Graph:
    """One product as ggml's graph, without numbers: they are given at each run.

    kind    number of the weight's type
    rows    outputs
    columns inputs
    tokens  rows of inputs
    """

    def __init__(self, kind: int, rows: int, columns: int, tokens: int) -> None:
        lib = library()
        base = lib.base
        size = 4 * base.ggml_tensor_overhead() + base.ggml_graph_overhead_custom(4, False)
        context = base.ggml_init(_InitParams(size + 256, None, True))  # 256: alignment
        if not context:
            raise RuntimeError("ggml could not allocate memory for a graph")
        # Not at exit: the library may be gone by then, and so is the memory.
        weakref.finalize(self, base.ggml_free, context).atexit = False
        # ggml counts the fastest dimension first.
        weight = base.ggml_new_tensor_2d(context, kind, columns, rows)
        inputs = base.ggml_new_tensor_2d(context, F32, columns, tokens)
        outputs = base.ggml_mul_mat(context, weight, inputs)  # [rows, tokens], so Y in C order
        self._graph = base.ggml_new_graph_custom(context, 4, False)
        base.ggml_build_forward_expand(self._graph, outputs)
        self._places = [
            ctypes.c_void_p.from_address(tensor + lib.data) for tensor in (weight, inputs, outputs)
        ]

    def run(self, weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor, threads: int) -> None:
        """Fill y [tokens, rows] with the product of x [tokens, columns] and the weight's bytes."""
        lib = library()
        with _COMPUTING:
            for place, tensor in zip(self._places, (weight, x, y), strict=True):
                place.value = tensor.data_ptr()
            lib.cpu.ggml_backend_cpu_set_n_threads(lib.backend, threads)
            status = lib.base.ggml_backend_graph_compute(lib.backend, self._graph)
        if status != 0:
            raise RuntimeError(f"ggml could not compute the product (status {status})")


@lru_cache(maxsize=1024)
def _graph(kind: int, rows: int, columns: int, tokens: int) -> Graph:
    """Graphs hold no numbers, so that all weights of a shape share one; each is a few kilobytes."""
    return Graph(kind, rows, columns, tokens)


# ---------------------------------------------------------------------- the kernel


class MulMat(Kernel):
    """GGUF blocks times inputs in int8 blocks, with as many threads as torch has.

    With Q4_1 and Q5_1 a block's minimum m is not multiplied input by input, but with the sum of
    the block's inputs as Q8_1 stores it, in float16: what each block's minimum contributes is off
    by up to 2^−10 of itself, far more than all other roundings. The reference has those sums. A
    sum beyond 65504 is Inf, and so is the product; Q8_0 ends at inputs of 8 million.
    """

    name = "llama_cpp.mul_mat"
    title = "GGUF blocks of every type, llama.cpp's product on a CPU"
    source = "ggml src/ggml-cpu/ggml-cpu.c:ggml_compute_forward_mul_mat"
    devices = ("cpu",)
    dtypes = (torch.float32,)
    activations = "int8 blocks of 32 inputs, or of 256 for k-quants (Q8_0, Q8_1, Q8_K)"

    def _lacks(self, device: torch.device) -> str | None:
        return library_missing()

    def sample(self) -> QuantizedTensor:
        return gguf(sample_weight(), type="Q4_0")

    def refuses(self, q: QuantizedTensor) -> str | None:
        if not isinstance(q.grid, Blocks) or q.grid.format not in TYPES:
            return f"{self.name} takes the blocks of a GGUF file (method gguf)."
        return None

    def inputs(self, x: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
        assert isinstance(q.grid, Blocks)
        return quantized_inputs(x, INPUTS[q.grid.format]).values()

    def reference(self, q: QuantizedTensor, x: torch.Tensor) -> torch.Tensor:
        y = super().reference(q, x)
        assert isinstance(q.grid, Blocks)
        blocks = quantized_inputs(x, INPUTS[q.grid.format])
        if blocks.sums is None:
            return y
        # m·Σx̂ is in y; m times the stored sum takes its place.
        assert isinstance(q.grid.inner, Affine) and q.grid.inner.offset is not None
        exact = blocks.codes.double().sum(-1) * blocks.scale.double()  # [tokens, blocks]
        return y + (blocks.sums.double() - exact) @ q.grid.inner.offset.double().T

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        assert isinstance(q.grid, Blocks)
        data = q.grid.data.to(device).contiguous()
        if data.data_ptr() % ALIGNMENT:  # a view into something larger, such as a file
            data = data.clone()
        return {"blocks": data}, {"type": q.grid.format}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        y = x.new_empty(x.shape[0], packed.shape[0])
        graph = _graph(TYPES[packed.options["type"]], *packed.shape, x.shape[0])
        graph.run(packed.tensors["blocks"], x, y, torch.get_num_threads())
        return y


KERNELS = (MulMat(),)
