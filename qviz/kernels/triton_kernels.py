"""Kernels in Triton, written to be read: `triton_source` has the code that runs on the GPU; this
module arranges the weights for it, chooses block sizes and launches it.

On a CUDA device Triton compiles each function when it is first used. Without one, Triton's
interpreter (TRITON_INTERPRET=1) runs the same functions with NumPy, program after program: correct,
but slow. Which of the two a function is made for is settled when it is defined, so `functions`
executes the source once for each, and both can be used in one process.
"""

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any, ClassVar

import torch

from qviz.core.grids import Affine, Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import Kernel, Packed, affine_of, group_of
from qviz.kernels.samples import affine_sample, sample_weight
from qviz.kernels.torch_kernels import (
    fp8_rows,
    fp8_sample,
    fp8_tokens,
    int8_rows,
    int8_tokens,
    row_scale,
)
from qviz.kernels.triton_choice import fastest, remember_tried, tried
from qviz.kernels.triton_layout import (
    WORD,
    Layout,
    affine_tensors,
    codebook_tensors,
    fp8_codes,
    fp8_words,
)
from qviz.methods.nf4 import nf4

SOURCE = "qviz.kernels.triton_source"
MAGIC = 0x4B000000  # the bits of 2²³ in float32; see triton_source.code_minus
MOST = 2**31  # what the functions' int32 indices reach
PROCESSORS = 132  # of an H100; what the interpreter stands for
NOT_INSTALLED = "Triton is not installed: pip install triton (Linux)."
NOT_COMPILED = (
    "Triton compiles for GPUs; on a CPU its kernels only run in its interpreter, slowly. Set "
    "TRITON_INTERPRET=1 to see their results."
)
NO_COMPILER = (
    "Triton was first imported with TRITON_INTERPRET=1, so this process cannot compile "
    "anything: unset it and start again."
)

# ---------------------------------------------------------------------- the two ways to run


def interpreting() -> bool:
    """Whether TRITON_INTERPRET asks for the interpreter, now."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@cache
def functions(interpreted: bool) -> ModuleType:
    """The functions of `triton_source`, for the interpreter or for the compiler."""
    import triton

    spec = find_spec(SOURCE)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = interpreted
        spec.loader.exec_module(module)
    return module


Run = Callable[..., Any]
Grid = tuple[int, ...]


@dataclass(frozen=True)
class Config:
    """A choice that only changes the speed: block sizes and compiler options.

    blocks    the capital BLOCK_… of the function
    warps     groups of 32 threads that share a program
    stages    loads that are under way at once
    programs  for each multiprocessor that there should be, where a row can be shared out
    """

    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 3
    programs: int = 1


# x·y + z as one instruction where the source has two: Triton's default, until it changes in 3.10.
_FUSED = {"enable_fp_fusion": True}


def launcher(
    device: torch.device, name: str, config: Config, constants: Mapping[str, Any], grid: Grid
) -> Run:
    """A function of `triton_source` with these blocks and constants, to be called with its
    arguments."""
    run = getattr(functions(device.type == "cpu"), name)[grid]
    options = {"num_warps": config.warps, "num_stages": config.stages, **_FUSED}
    numbers = {**constants, **config.blocks, **options}
    return lambda *a: run(*a, **numbers)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_above(value: int) -> int:
    """The smallest power of two that is not below value."""
    return 1 << max(0, value - 1).bit_length()


def power_below(value: int) -> int:
    """The largest power of two that is not above value, 1 at least."""
    return 1 << max(0, value.bit_length() - 1)


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors."""
    if device.type != "cuda":
        return PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def widest(device: torch.device) -> int:
    """Tokens of a program at most: with 128 the sums need more registers than a thread of a GPU
    before Hopper has, whose tensor cores want the weights of two products in registers, too."""
    if device.type != "cuda":
        return 128
    return 128 if torch.cuda.get_device_capability(device) >= (9, 0) else 64


# ---------------------------------------------------------------------- which configuration

# For each range of tokens, the few that were fastest on an H100 with 8192×28672 and 4096×4096
# (bench/results/kernels_prototypes_h100.md). Each is compiled where it is timed: no more than help.
# (rows, chunks, warps, stages); a chunk is what one thread reads of a row at once.
GemvOptions = Sequence[tuple[int, int, int, int]]
AFFINE_GEMV: GemvOptions = ((16, 32, 2, 3), (8, 32, 1, 3), (2, 64, 2, 1), (2, 32, 1, 1))
CODEBOOK_GEMV: GemvOptions = ((8, 32, 1, 1), (4, 32, 1, 1), (2, 32, 1, 1), (4, 128, 4, 1))
INT8_GEMV: GemvOptions = ((4, 32, 1, 1), (4, 64, 2, 1), (2, 64, 2, 1), (2, 128, 4, 1))
FP8_GEMV: GemvOptions = ((8, 32, 1, 1), (4, 64, 2, 1), (2, 128, 4, 1))
# Tokens of a program → (rows, warps, stages, programs for each multiprocessor).
DotOptions = Mapping[int, Sequence[tuple[int, int, int, int]]]
AFFINE_DOT: DotOptions = {
    8: ((64, 2, 4, 8), (32, 2, 4, 8)),
    16: ((64, 2, 3, 8), (32, 1, 3, 16)),
    32: ((64, 4, 4, 4), (128, 8, 3, 4)),
    64: ((128, 4, 4, 2), (128, 8, 4, 2)),
    128: ((64, 4, 3, 2), (128, 8, 4, 1)),
}
TABLE_DOT: DotOptions = {
    8: ((32, 2, 4, 8), (64, 4, 4, 8)),
    16: ((64, 4, 4, 8), (64, 4, 3, 4)),
    32: ((64, 4, 4, 4), (64, 4, 3, 8)),
    64: ((64, 4, 5, 2), (64, 4, 3, 4)),
    128: ((64, 4, 3, 2), (128, 8, 3, 1)),
}
FP8_DOT: DotOptions = {
    8: ((128, 8, 6, 1), (32, 2, 6, 8)),
    16: ((128, 4, 6, 2), (64, 2, 3, 8)),
    32: ((128, 4, 4, 2), (64, 4, 4, 4)),
    64: ((128, 8, 4, 2), (64, 4, 4, 4)),
    128: ((128, 8, 4, 1), (64, 4, 4, 2)),
}
# (rows, columns, warps, stages): 64 rows and 4 warps are what Hopper's own instruction (wgmma)
# wants, 32 rows make more programs.
EIGHT_BIT_DOT = ((64, 128, 4, 4), (32, 128, 4, 4), (64, 256, 4, 3), (32, 256, 4, 3))
DEQUANTIZE_COLUMNS, DEQUANTIZE_ROWS = 512, 8  # of a program
FUSED = 512  # tokens up to which weights are decoded on the way, once for each 128 of them
PLAIN = 8  # tokens up to which float32, which tensor cores do not take, is multiplied one by one


def gemv_configs(rows: int, units: int, options: GemvOptions) -> list[Config]:
    """Configurations of a program of one token, cut down to the matrix.

    No more rows than there are, since the last program must be full, and no more chunks than the
    next power of two, since the rest would be idle.
    """
    cut = {
        (min(r, power_below(rows)), min(c, power_above(units)), w, s): None
        for r, c, w, s in options
    }  # a dict keeps the order
    return [Config({"BLOCK_ROWS": r, "BLOCK_CHUNKS": c}, w, s) for r, c, w, s in cut]


def dot_configs(options: DotOptions, tokens: int, most: int) -> list[Config]:
    """Configurations of a product with this many tokens, 8 to `most` of them a program."""
    block = min(max(power_above(tokens), 8), most)
    return [
        Config({"BLOCK_TOKENS": block, "BLOCK_ROWS": r}, w, s, p) for r, w, s, p in options[block]
    ]


def splits(config: Config, rows: int, tokens: int, tiles: int, device: torch.device) -> int:
    """Parts, 1 to 16, into which a row's tiles are shared out, so that each multiprocessor has
    as many programs as the configuration asks for; four tiles at least are left to each."""
    programs = cdiv(rows, config.blocks["BLOCK_ROWS"]) * cdiv(tokens, config.blocks["BLOCK_TOKENS"])
    wanted = config.programs * processors(device) // programs
    return power_below(max(1, min(wanted, tiles // 4, 16)))


# ---------------------------------------------------------------------- kernels


class TritonKernel(Kernel):
    """What the kernels here have in common. `_plan` does everything that depends on the shape, and
    `product` calls what comes back: at one token the GPU is done within microseconds, and Python
    must not take longer."""

    source = "qviz/kernels/triton_source.py"
    capability: ClassVar[tuple[int, int]] = (8, 0)

    @property
    def interpreted(self) -> bool:
        """Whether TRITON_INTERPRET lets it run on a CPU; on a CUDA device it is compiled."""
        return interpreting()

    def missing(self, device: torch.device | str = "cpu") -> str | None:
        # Not remembered, as what a probe found is: the variable may be set later.
        if torch.device(device).type == "cpu" and not interpreting():
            return NOT_INSTALLED if find_spec("triton") is None else NOT_COMPILED
        return super().missing(device)

    def _lacks(self, device: torch.device) -> str | None:
        if find_spec("triton") is None:
            return NOT_INSTALLED
        if device.type == "cpu":
            return None
        if type(functions(False).add).__name__ == "InterpretedFunction":
            return NO_COMPILER
        has = torch.cuda.get_device_capability(device)
        if has < self.capability:
            major, minor = self.capability
            return (
                f"{self.name} needs a GPU of compute capability {major}.{minor}; this one has "
                f"{has[0]}.{has[1]}."
            )
        return None

    def refuses(self, q: QuantizedTensor) -> str | None:
        if q.shape[0] * q.shape[1] >= MOST:
            return (
                f"{self.name} counts weights with 31 bits, and {q.shape[0]}×{q.shape[1]} are too "
                "many."
            )
        return self._refuses(q)

    def _probe(self, device: torch.device) -> str | None:
        # Compiling takes seconds: what another process has tried here with the same card, sources
        # and versions need not be tried again.
        if device.type == "cpu" or not tried(device, self.name):
            reason = super()._probe(device)
            if reason is None and device.type != "cpu":
                remember_tried(device, self.name)
            return reason
        return self._lacks(device)

    @abstractmethod
    def _refuses(self, q: QuantizedTensor) -> str | None:
        """As `refuses`, for a tensor of any size."""

    def adapt(self, q: QuantizedTensor, dtype: torch.dtype) -> QuantizedTensor:
        """The same numbers, decoded in float32: a method may round its own to 16 bits."""
        return in_float32(q)

    @abstractmethod
    def _plan(self, packed: Packed, x: torch.Tensor, y: torch.Tensor) -> Run:
        """A call that fills y [tokens, out] from x [tokens, in] of this many tokens."""

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        y, tokens = x.new_empty(x.shape[0], packed.shape[0]), str(x.shape[0])
        elsewhere = x.is_cuda and x.device.index != torch.cuda.current_device()
        # Triton launches on the current device, whatever the tensors lie on.
        with torch.cuda.device(x.device) if elsewhere else nullcontext():
            run = packed.scratch.get(tokens)
            if run is None:
                run = packed.scratch[tokens] = self._plan(packed, x, y)
            run(x, y)
        return y


class FourBit(TritonKernel):
    """Four bits a weight, equally spaced levels or a table."""

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        options: dict[str, Any] = {"table": isinstance(q.grid, Codebook)}
        if options["table"]:
            tensors, layout, double = codebook_tensors(q, dtype)
            return tensors, {**options, "layout": layout, "double": double, "zeros": "one"}
        tensors, layout, zero = affine_tensors(q)
        given = q.grid.zero_point if isinstance(q.grid, Affine) else None
        zeros = "one" if given is None else "real" if given.is_floating_point() else "integer"
        return tensors, {**options, "layout": layout, "zero": zero, "zeros": zeros}

    def _plan(self, packed: Packed, x: torch.Tensor, y: torch.Tensor) -> Run:
        # One token: a multiply-add for each weight. More: the tensor cores, which multiply with 8
        # tokens in the time of one. They take no float32, for which the former pays off longer.
        # Many more: what decoding costs each 128 tokens again, it costs but once in memory.
        tokens, wide = x.shape[0], x.dtype == torch.float32
        tensor_cores = packed.options["layout"].fused and not wide
        if tensor_cores and (tokens > 1 or packed.options["table"]) and tokens <= FUSED:
            return self._dot(packed, x, y)
        if tokens <= (PLAIN if wide else 1):
            return self._gemv(packed, x, y)
        return through_memory(packed, x, y)

    def _gemv(self, packed: Packed, x: torch.Tensor, y: torch.Tensor) -> Run:
        layout, rows, tokens = packed.options["layout"], packed.shape[0], x.shape[0]
        t, constants = packed.tensors, gemv_constants(packed)
        fixed: tuple[torch.Tensor | None, ...]
        options: GemvOptions
        last: tuple[int, ...]
        if packed.options["table"]:
            name, options, last = "codebook_gemv", CODEBOOK_GEMV, (rows,)
            fixed = (t["words"], t["scale"], t.get("second"), t.get("offset"), t["table"])
        else:
            name, options, last = "affine_gemv", AFFINE_GEMV, (rows, MAGIC)
            fixed = (t["words"], t["scale"], t.get("zero"))

        def make(config: Config) -> Run:
            grid = (cdiv(rows, config.blocks["BLOCK_ROWS"]), tokens)
            stages = {} if packed.options["table"] else {"STAGES": config.stages}
            run = launcher(packed.device, name, config, {**constants, **stages}, grid)
            return lambda x, y: run(x, *fixed, y, *last)

        configs = gemv_configs(rows, layout.chunks, options)
        return fastest(packed, name, configs, make, x, y)

    def _dot(self, packed: Packed, x: torch.Tensor, y: torch.Tensor) -> Run:
        options = TABLE_DOT if packed.options["table"] else AFFINE_DOT
        constants = {n: v for n, v in four_bit_constants(packed).items() if n not in _TILES}
        fixed, layout = four_bit_tensors(packed), packed.options["layout"]
        configs = dot_configs(options, x.shape[0], widest(packed.device))
        name, tiles = "four_bit_dot", layout.tiles
        return split_dot(packed, name, configs, constants, fixed, tiles, x, y)


_TILES = ("WIDTH", "ALIGNED")  # what four_bit_dot takes for granted


def split_dot(
    packed: Packed,
    name: str,
    configs: Sequence[Config],
    constants: Mapping[str, Any],
    fixed: tuple[torch.Tensor | None, ...],
    tiles: int,
    x: torch.Tensor,
    y: torch.Tensor,
) -> Run:
    """A product on the tensor cores, the tiles of a row shared out and added up afterwards."""
    rows, tokens, device = packed.shape[0], x.shape[0], packed.device
    numbers = tokens * rows

    def make(config: Config) -> Run:
        split = splits(config, rows, tokens, tiles, device)
        grid = (
            cdiv(rows, config.blocks["BLOCK_ROWS"]),
            cdiv(tokens, config.blocks["BLOCK_TOKENS"]),
            split,
        )
        all_of_it = {**constants, "SPLIT": split, "STAGES": config.stages}
        run = launcher(device, name, config, all_of_it, grid)
        if split == 1:
            return lambda x, y: run(x, *fixed, y, tokens, rows)
        total = launcher(
            device, "add_splits", Config({"BLOCK": 512}), {"SPLIT": split}, (cdiv(numbers, 512),)
        )

        def both(x: torch.Tensor, y: torch.Tensor) -> None:
            parts = x.new_empty(split, tokens, rows, dtype=torch.float32)
            run(x, *fixed, parts, tokens, rows)
            total(parts, y, numbers)

        return both

    return fastest(packed, name, configs, make, x, y)


def through_memory(packed: Packed, x: torch.Tensor, y: torch.Tensor) -> Run:
    """The weight in the inputs' dtype in memory, and torch's own product with it."""
    layout, rows = packed.options["layout"], packed.shape[0]
    fixed = four_bit_tensors(packed)
    tiles = power_below(min(DEQUANTIZE_COLUMNS // (WORD * layout.width), power_above(layout.tiles)))
    config = Config({"BLOCK_ROWS": DEQUANTIZE_ROWS, "BLOCK_TILES": tiles}, 8, 1)
    grid = (cdiv(layout.tiles, tiles), cdiv(rows, DEQUANTIZE_ROWS))
    run = launcher(packed.device, "dequantize", config, four_bit_constants(packed), grid)

    def both(x: torch.Tensor, y: torch.Tensor) -> None:
        weight = x.new_empty(packed.shape)
        run(*fixed, weight, rows)
        torch.mm(x, weight.T, out=y)

    return both


def gemv_constants(packed: Packed) -> dict[str, Any]:
    """What affine_gemv or codebook_gemv is compiled for, beside its block sizes."""
    constants = four_bit_constants(packed)
    table = constants.pop("TABLE")
    unused = ("ZERO", "ZEROS") if table else ("ALIGNED", "DOUBLE")
    return {name: value for name, value in constants.items() if name not in unused}


def four_bit_constants(packed: Packed) -> dict[str, Any]:
    """What dequantize is compiled for, beside its block sizes."""
    layout: Layout = packed.options["layout"]
    return {
        "COLUMNS": layout.columns,
        "GROUP": layout.group,
        "WIDTH": layout.width,
        "ZERO": packed.options.get("zero", 0.0),
        "ZEROS": packed.options["zeros"],
        "TABLE": packed.options["table"],
        "ALIGNED": layout.aligned,
        "DOUBLE": packed.options.get("double", False),
    }


def four_bit_tensors(packed: Packed) -> tuple[torch.Tensor | None, ...]:
    """Words, scales, and what of the rest there is, in the order of the functions' arguments."""
    names = ("words", "scale", "zero", "second", "offset", "table", "bytes")
    return tuple(packed.tensors.get(name) for name in names)


class W4A16(FourBit):
    """Groups of equally spaced levels, decoded in registers without any conversion. Beyond FUSED
    tokens, and for several tokens where a tensor core cannot take the tiles (groups or rows whose
    length is not a multiple of 16 or 128 columns; float32), it does what triton.dequantize does."""

    name = "triton.w4a16"
    title = f"4-bit groups, 16-bit inputs (Triton, fused up to {FUSED} tokens)"

    def sample(self) -> QuantizedTensor:
        return affine_sample(bits=4, symmetric=False, group_size=32)

    def _refuses(self, q: QuantizedTensor) -> str | None:
        return affine_groups(self.name, q)


class Nf4(FourBit):
    """Sixteen levels of a table and a scale for each block, as NF4 and FP4 have them; absmax in
    float32, or as the codes of double quantization, which are decoded where they are needed. Many
    tokens go through memory, as with triton.w4a16."""

    name = "triton.nf4"
    title = f"NF4 and FP4 blocks, 16-bit inputs (Triton, fused up to {FUSED} tokens)"

    def sample(self) -> QuantizedTensor:
        return nf4(sample_weight())

    def _refuses(self, q: QuantizedTensor) -> str | None:
        return codebook_blocks(self.name, q)


class Dequantize(FourBit):
    """The whole weight at 16 bits, written to memory, and torch's product with it: what fusing
    saves is the way there and back, four times the bytes of the codes each."""

    name = "triton.dequantize"
    title = "4 bits to 16 in memory (Triton), then torch's own product"

    def sample(self) -> QuantizedTensor:
        return affine_sample(bits=4, symmetric=False, group_size=32)

    def _refuses(self, q: QuantizedTensor) -> str | None:
        reason = codebook_blocks if isinstance(q.grid, Codebook) else affine_groups
        return reason(self.name, q)

    def _plan(self, packed: Packed, x: torch.Tensor, y: torch.Tensor) -> Run:
        return through_memory(packed, x, y)


class EightBit(TritonKernel):
    """Weights and inputs of eight bits: one function quantizes each token, one multiplies."""

    largest: ClassVar[float]
    quantizer: ClassVar[str]
    code: ClassVar[torch.dtype]

    def _quantize(self, packed: Packed, x: torch.Tensor) -> Run:
        """A call that fills codes [tokens, in] and steps [tokens] from x."""
        columns, largest = packed.shape[1], self.largest
        config = Config({"BLOCK": min(power_above(columns), 2048)}, 8)
        run = launcher(packed.device, self.quantizer, config, {"COLUMNS": columns}, (x.shape[0],))
        return lambda x, codes, step: run(x, codes, step, largest)

    def _buffers(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = torch.empty(x.shape, dtype=self.code, device=x.device)
        return codes, torch.empty(x.shape[0], dtype=torch.float32, device=x.device)

    def _plan(self, packed: Packed, x: torch.Tensor, y: torch.Tensor) -> Run:
        quantize = self._quantize(packed, x)
        codes, step = self._buffers(x)
        quantize(x, codes, step)
        run = self._multiply(packed, codes, step, y)

        def both(x: torch.Tensor, y: torch.Tensor) -> None:
            codes, step = self._buffers(x)
            quantize(x, codes, step)
            run(codes, step, y)

        return both

    def _multiply(
        self, packed: Packed, codes: torch.Tensor, step: torch.Tensor, y: torch.Tensor
    ) -> Run:
        """A call that fills y from codes and steps."""
        rows, tokens, t = packed.shape[0], codes.shape[0], packed.tensors
        constants = {"COLUMNS": packed.shape[1], "SCALES": packed.options["scales"]}
        block = min(max(power_above(tokens), 16), 64)

        def make(config: Config) -> Run:
            grid = (cdiv(rows, config.blocks["BLOCK_ROWS"]), cdiv(tokens, block))
            run = launcher(packed.device, "eight_bit_dot", config, constants, grid)
            return lambda c, s, y: run(c, s, t["weight"], t["scale"], y, tokens, rows)

        configs = [
            Config({"BLOCK_TOKENS": block, "BLOCK_ROWS": r, "BLOCK_COLUMNS": c}, w, stages)
            for r, c, w, stages in EIGHT_BIT_DOT
        ]
        return fastest(packed, f"eight_bit_dot {block}", configs, make, codes, step, y)


class W8A8(EightBit):
    """INT8 weights and inputs; sums of their products are exact in int32."""

    name = "triton.w8a8"
    title = "8-bit rows, inputs to 8 bits (Triton, fused)"
    activations = "int8 per token"
    largest = 127.0
    quantizer = "int8_inputs"
    code = torch.int8

    def sample(self) -> QuantizedTensor:
        return affine_sample(bits=8, granularity="channel", group_size=None)

    def _refuses(self, q: QuantizedTensor) -> str | None:
        return int8_rows(self.name, q)

    def inputs(self, x: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
        codes, step = int8_tokens(x)
        return (codes.double() * step.double()).masked_fill(_broken(x), torch.nan)

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"weight": q.codes.to(torch.int8), "scale": row_scale(q)}, {"scales": "row"}

    def _multiply(
        self, packed: Packed, codes: torch.Tensor, step: torch.Tensor, y: torch.Tensor
    ) -> Run:
        if codes.shape[0] > 1:
            return super()._multiply(packed, codes, step, y)
        rows, columns = packed.shape
        weight, scale = packed.tensors["weight"], packed.tensors["scale"]

        def make(config: Config) -> Run:
            blocks = config.blocks
            wide = {
                "BLOCK_ROWS": blocks["BLOCK_ROWS"],
                "BLOCK_COLUMNS": 16 * blocks["BLOCK_CHUNKS"],
            }
            grid = (cdiv(rows, blocks["BLOCK_ROWS"]), 1)
            run = launcher(
                packed.device, "int8_gemv", replace(config, blocks=wide), {"COLUMNS": columns}, grid
            )
            return lambda c, s, y: run(c, s, weight, scale, y, rows)

        configs = gemv_configs(rows, cdiv(columns, 16), INT8_GEMV)  # chunks of 16 columns
        return fastest(packed, "int8_gemv", configs, make, codes, step, y)


class Fp8(EightBit):
    """E4M3 weights and inputs on tensor cores that multiply them, sums in float32."""

    name = "triton.fp8"
    title = "FP8 rows, inputs to FP8 (Triton, fused)"
    activations = "FP8 E4M3 per token"
    dtypes = (torch.bfloat16, torch.float16)
    capability = (8, 9)
    largest = 448.0
    quantizer = "fp8_inputs"
    code = torch.float8_e4m3fn

    def sample(self) -> QuantizedTensor:
        return fp8_sample()

    def _refuses(self, q: QuantizedTensor) -> str | None:
        return fp8_rows(self.name, q)

    def inputs(self, x: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
        values, step = fp8_tokens(x, whole=False)
        return (values.double() * step.double()).masked_fill(_broken(x), torch.nan)

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        assert isinstance(q.grid, Codebook)
        scale = q.grid.scale.flatten()
        codes = q.codes.contiguous().view(torch.float8_e4m3fn)
        return {"weight": codes, "scale": scale}, {"scales": _scales(q)}


class Fp8A16(TritonKernel):
    """E4M3 weights, widened in registers; inputs as they are, so it runs on older GPUs, too. Beyond
    FUSED tokens torch widens the weight in memory, and multiplies."""

    name = "triton.fp8_w8a16"
    title = f"FP8 rows, 16-bit inputs (Triton, fused up to {FUSED} tokens)"

    def sample(self) -> QuantizedTensor:
        return fp8_sample()

    def _refuses(self, q: QuantizedTensor) -> str | None:
        return fp8_rows(self.name, q)

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        assert isinstance(q.grid, Codebook)
        tensors = {"words": fp8_words(q.codes), "scale": q.grid.scale.flatten()}
        return tensors, {"scales": _scales(q)}

    def _plan(self, packed: Packed, x: torch.Tensor, y: torch.Tensor) -> Run:
        (rows, columns), tokens = packed.shape, x.shape[0]
        words, scale = packed.tensors["words"], packed.tensors["scale"]
        constants = {"COLUMNS": columns, "SCALES": packed.options["scales"]}
        wide = x.dtype == torch.float32
        if tokens > 1 and not wide and tokens <= FUSED:
            configs = dot_configs(FP8_DOT, tokens, widest(packed.device))
            tiles = words.shape[0]
            return split_dot(
                packed, "fp8_wide_dot", configs, constants, (words, scale), tiles, x, y
            )
        if tokens > (PLAIN if wide else 1):
            return self._through_memory(packed)

        def make(config: Config) -> Run:
            grid = (cdiv(rows, config.blocks["BLOCK_ROWS"]), tokens)
            run = launcher(packed.device, "fp8_gemv", config, constants, grid)
            return lambda x, y: run(x, words, scale, y, rows)

        configs = gemv_configs(rows, 4 * words.shape[0], FP8_GEMV)
        return fastest(packed, "fp8_gemv", configs, make, x, y)

    def _through_memory(self, packed: Packed) -> Run:
        """The weight in the inputs' dtype in memory, as torch converts it, and torch's product."""
        words, scale = packed.tensors["words"], packed.tensors["scale"].float()[:, None]
        columns = packed.shape[1]

        def both(x: torch.Tensor, y: torch.Tensor) -> None:
            weight = fp8_codes(words, columns).view(torch.float8_e4m3fn).to(x.dtype)
            weight *= scale  # in float32, rounded once
            torch.mm(x, weight.T, out=y)

        return both


# ---------------------------------------------------------------------- which tensors


def affine_groups(name: str, q: QuantizedTensor) -> str | None:
    """Why a kernel for 4-bit groups does not take this tensor; None: it does."""
    grid, size = affine_of(q), group_of(q)
    if grid is None or grid.bits != 4 or size is None:
        return f"{name} takes 4-bit equally spaced levels in groups along a row."
    if size % 8 or q.shape[1] % size:
        return f"{name} takes groups of a multiple of 8 weights, not of {size}."
    if grid.offset is not None:
        return f"{name} takes zero points; this tensor has offsets, which are added after scaling."
    zero = grid.zero_point
    if zero is not None and not zero.is_floating_point():
        low, high = int(zero.min()) - grid.qmin, int(zero.max()) - grid.qmin
        if low < 0 or high > 255:
            return f"{name} keeps zero points as bytes; those here go from {low} to {high}."
    return None


def codebook_blocks(name: str, q: QuantizedTensor) -> str | None:
    """Why a kernel for 16 levels does not take this tensor; None: it does."""
    grid, kind = q.grid, q.granularity
    if not isinstance(grid, Codebook) or grid.bits != 4 or grid.values.numel() != 16:
        return f"{name} takes 4-bit codes that point into a table of 16 levels."
    if kind.kind not in ("flat", "group", "channel") or kind.axis != 1:
        return f"{name} takes a scale for each block of weights along the rows, not one {kind}."
    return None


def in_float32(q: QuantizedTensor) -> QuantizedTensor:
    """The same codes and parameters, decoded in float32; float64 parameters are rounded to it."""

    def narrow(x: torch.Tensor | None) -> torch.Tensor | None:
        return x.float() if x is not None and x.dtype == torch.float64 else x

    grid = q.grid
    if isinstance(grid, Affine):
        scale = narrow(grid.scale)
        assert scale is not None
        zero = narrow(grid.zero_point)
        return replace(q, grid=replace(grid, compute=torch.float32, scale=scale, zero_point=zero))
    assert isinstance(grid, Codebook)
    return replace(q, grid=replace(grid, dtype=torch.float32))


def _scales(q: QuantizedTensor) -> str:
    return "tensor" if q.granularity.kind == "tensor" else "row"


def _broken(x: torch.Tensor) -> torch.Tensor:
    """Tokens [tokens, 1] with NaN or Inf, of which no eight-bit code can tell."""
    return ~torch.isfinite(x).all(dim=1, keepdim=True)


KERNELS = (W4A16(), Nf4(), W8A8(), Fp8(), Fp8A16(), Dequantize())
