"""bitsandbytes' own products: 4-bit blocks on CUDA and CPU, and LLM.int8().

Its package is imported when a kernel is first tried. Sources: bitsandbytes
autograd/_functions.py (matmul_4bit, MatMul8bitLt), backends/{cpu,cuda}/ops.py.
"""

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import torch

from qviz.core.grids import Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import Kernel, Packed
from qviz.kernels.samples import sample_weight
from qviz.methods.llm_int8 import AbsmaxRows, Int8Linear, llm_int8
from qviz.methods.nf4 import FORMATS, nf4

NOT_INSTALLED = "bitsandbytes is not installed: pip install bitsandbytes."
THRESHOLD = 6.0


@cache
def bitsandbytes() -> ModuleType:
    """The package; ImportError where it is not installed."""
    with _without_remote_code():
        import bitsandbytes as package
        import bitsandbytes.functional

    return package  # type: ignore[no-any-return]


@contextmanager
def _without_remote_code() -> Iterator[None]:
    """While bitsandbytes is imported on a CPU it looks for a package `kernels`, with which it would
    fetch a binary from the Hub and run it. qviz never runs code from a network, so the package is
    hidden, and the warning that it is missing is suppressed."""
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    known, disabled = sys.modules.get("kernels"), log.disabled
    sys.modules["kernels"] = None  # type: ignore[assignment]
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = disabled
        if known is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = known


@contextmanager
def _without_cast_warning() -> Iterator[None]:
    """With inputs that are not float16, LLM.int8() writes a line to the log for each product, which
    would be timed, and thousands of them. `activations` and `arithmetic` contain the same
    information."""
    log, mine = logging.getLogger("bitsandbytes.autograd._functions"), threading.get_ident()

    def from_others(record: logging.LogRecord) -> bool:
        return threading.get_ident() != mine

    log.addFilter(from_others)
    try:
        yield
    finally:
        log.removeFilter(from_others)


class _Bitsandbytes(Kernel):
    """What its kernels share: the package has to be there."""

    def _lacks(self, device: torch.device) -> str | None:
        try:
            bitsandbytes()
        except ModuleNotFoundError as error:
            if error.name == "bitsandbytes":
                return NOT_INSTALLED
            raise  # installed, but one of its requirements is not, which needs another fix
        return None


class Matmul4bit(_Bitsandbytes):
    """NF4 or FP4 in blocks over the flattened weight, by the call that Linear4bit makes.

    On CUDA a fused product, or for many tokens dequantize and multiply, as its own table of sizes
    says; on a CPU always dequantize and multiply.
    """

    name = "bitsandbytes.matmul_4bit"
    title = "NF4 and FP4 blocks, the library's own choice of product"
    source = "bitsandbytes.matmul_4bit"

    def sample(self) -> QuantizedTensor:
        return nf4(sample_weight())

    def refuses(self, q: QuantizedTensor) -> str | None:
        size = q.granularity.group_size or 1
        if q.shape[1] % size and four_bit_format(q) is not None:
            # Seen with 0.50.2 on a CPU: blocks are counted afresh in each row, and most weights get
            # the absmax of another block. Its CUDA code could not be tested on such rows.
            return (
                "On a CPU bitsandbytes dequantizes rows that are not whole blocks wrongly; "
                f"{q.shape[1]} inputs are not a multiple of {size}."
            )
        return four_bit_blocks(self.name, q)

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        grid, size = q.grid, q.granularity.group_size
        assert isinstance(grid, Codebook)
        tensors = {
            "weight": packed_codes(q, device),
            "absmax": grid.scale.flatten(),
            "levels": grid.values,
        }
        return tensors, {"group_size": size, "format": four_bit_format(q)}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        state = packed.scratch.get("state")
        if state is None:
            state = packed.scratch["state"] = bitsandbytes().functional.QuantState(
                absmax=packed.tensors["absmax"],
                shape=torch.Size(packed.shape),
                code=packed.tensors["levels"],
                blocksize=packed.options["group_size"],
                quant_type=packed.options["format"],
                dtype=packed.dtype,
            )
        y = bitsandbytes().matmul_4bit(x, packed.tensors["weight"], state)
        return y  # type: ignore[no-any-return]


class CpuPacked4bit(_Bitsandbytes):
    """NF4 or FP4 on a CPU with AVX512-BF16: 32 rows beside each other, absmax in bfloat16.

    The layout into which Linear4bit brings its weight for inference on such a CPU.
    """

    name = "bitsandbytes.cpu_4bit"
    title = "NF4 and FP4 blocks, the fused product of a CPU with AVX512-BF16"
    source = "bitsandbytes csrc/cpu_ops.cpp:gemv_4bit_inference"
    devices = ("cpu",)
    arithmetic = torch.bfloat16
    rows = 32

    def _lacks(self, device: torch.device) -> str | None:
        lacking = super()._lacks(device)
        if lacking is None and not bitsandbytes().functional.has_avx512bf16():
            return "This processor has no AVX512-BF16, which bitsandbytes' product needs."
        return lacking

    def sample(self) -> QuantizedTensor:
        return nf4(sample_weight())

    def refuses(self, q: QuantizedTensor) -> str | None:
        reason = four_bit_blocks(self.name, q)
        if reason is not None:
            return reason
        size = q.granularity.group_size or 1
        if q.shape[0] % self.rows or q.shape[1] % size:
            return (
                f"{self.name} needs a multiple of {self.rows} rows, and rows that are whole "
                f"blocks of {size}; this weight is {q.shape[0]}×{q.shape[1]}."
            )
        return None

    def adapt(self, q: QuantizedTensor, dtype: torch.dtype) -> QuantizedTensor:
        grid = q.grid
        assert isinstance(grid, Codebook)
        return replace(q, grid=replace(grid, scale=grid.scale.bfloat16().float()))

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        grid, size = q.grid, q.granularity.group_size
        assert isinstance(grid, Codebook) and size is not None
        # [blocks of 32 rows, pairs of inputs, 32 rows, 2] → byte j of a pair of inputs holds
        # numbers j (low) and j + 32 (high) of those 64.
        tiles = q.codes.reshape(q.shape[0] // self.rows, self.rows, -1, 2).transpose(1, 2)
        flat = tiles.reshape(-1, 2, 32)
        weight = (flat[:, 1] << 4 | flat[:, 0]).reshape(q.shape[0], -1)
        absmax = grid.scale.reshape(q.shape[0], -1).T.bfloat16()  # [blocks of a row, rows]
        tensors = {"weight": weight, "absmax": absmax, "levels": grid.values}
        return tensors, {"group_size": size}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        kept = packed.tensors
        y = torch.ops.bitsandbytes.gemv_4bit(
            x, kept["weight"], packed.shape, kept["absmax"], kept["levels"],
            packed.options["group_size"],
        )  # fmt: skip
        return y  # type: ignore[no-any-return]


class LlmInt8(_Bitsandbytes):
    """LLM.int8(): int8 products, outlier columns of the inputs in half precision."""

    name = "bitsandbytes.llm_int8"
    title = "8-bit rows, inputs to int8 except for outlier columns"
    source = "bitsandbytes.matmul, MatMul8bitLt"
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    arithmetic = torch.float16
    activations = f"int8 per token, columns with a value of {THRESHOLD:g} or more in float16"

    def sample(self) -> QuantizedTensor:
        return llm_int8(sample_weight()).weight

    def refuses(self, q: QuantizedTensor) -> str | None:
        if not isinstance(q.grid, AbsmaxRows):
            return f"{self.name} takes the rows that LLM.int8() makes (method llm_int8)."
        return None

    def inputs(self, x: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
        """int8 codes times their scale; outlier columns as they came."""
        caught: dict[str, torch.Tensor] = {}

        def emit(event: str, /, **tensors: torch.Tensor) -> None:
            if event == "llm_int8.activation":
                caught.update(tensors)
            elif event == "llm_int8.outliers":
                caught["columns"] = tensors["columns"]

        Int8Linear(q, THRESHOLD)(x, emit=emit)
        rebuilt = caught["codes"].double() * caught["absmax"].double() / 127
        rebuilt[:, caught["columns"]] = x[:, caught["columns"]].double()
        return rebuilt

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        assert isinstance(q.grid, AbsmaxRows)
        return {"weight": q.codes, "absmax": q.grid.absmax.flatten()}, {}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        package = bitsandbytes()
        state = package.MatmulLtState()
        # As Linear8bitLt in evaluation; while training, a CPU quantizes no inputs at all.
        state.is_training, state.has_fp16_weights = False, False
        state.threshold = THRESHOLD
        state.CB, state.SCB = packed.tensors["weight"], packed.tensors["absmax"]
        with contextlib.nullcontext() if x.dtype == torch.float16 else _without_cast_warning():
            y = package.matmul(x, packed.tensors["weight"], state=state, threshold=THRESHOLD)
        return y  # type: ignore[no-any-return]


def four_bit_format(q: QuantizedTensor) -> str | None:
    """Which of bitsandbytes' 4-bit tables a tensor has: nf4, fp4 or None."""
    if not isinstance(q.grid, Codebook) or q.grid.values.numel() != 16:
        return None
    values = q.grid.values.cpu()
    for name, table in FORMATS.items():
        if torch.equal(values, torch.tensor(table, dtype=values.dtype)):
            return name
    return None


def four_bit_blocks(name: str, q: QuantizedTensor) -> str | None:
    """Why bitsandbytes' 4-bit products do not take this tensor; None: they do."""
    if q.granularity.kind != "flat" or four_bit_format(q) is None:
        return f"{name} takes NF4 or FP4 in blocks of the flattened weight (method nf4)."
    return None


def packed_codes(q: QuantizedTensor, device: torch.device) -> torch.Tensor:
    """Bytes [⌈weights/2⌉, 1] uint8, the first of two codes in the high half."""
    assert isinstance(q.grid, Codebook)
    return torch.from_numpy(q.grid.streams(q.codes)[0].pack()).to(device)[:, None]


KERNELS = (Matmul4bit(), CpuPacked4bit(), LlmInt8())
