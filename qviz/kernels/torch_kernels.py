"""The products with quantized weights that torch itself has.

All are private functions of torch (a leading underscore): what they accept differs between versions
and devices, so each is tried on a small weight before it is called available, and padding meets its
requirements on sizes. Sources: pytorch aten/src/ATen/native/cuda/int4mm.cu ("tinygemm"),
aten/src/ATen/native/cpu/int4mm_kernel.cpp and int8mm_kernel.cpp, cuda/Blas.cpp (_int_mm,
_scaled_mm).
"""

from dataclasses import replace
from typing import Any

import torch

from qviz.core.granularity import Granularity
from qviz.core.grids import Affine, Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import Kernel, Packed, affine_of, group_of, padded, round_up
from qviz.kernels.samples import affine_sample, sample_weight
from qviz.methods.registry import quantize

E4M3_MAX = 448.0


class Int4(Kernel):
    """Four-bit groups, rebuilt in the registers: x̂ = (q − 8)·s + o, s and o in the inputs' dtype.

    On a CUDA device weights lie in the order in which a tensor core wants them (16 × 8 tiles, 8
    tiles of inputs together); on a CPU, 16 to 64 rows beside each other.
    """

    name = "torch.int4"
    title = "4-bit groups, 16-bit inputs (tinygemm on CUDA)"
    source = "torch._weight_int4pack_mm, torch._weight_int4pack_mm_for_cpu"
    groups = (32, 64, 128, 256)

    def sample(self) -> QuantizedTensor:
        return affine_sample(bits=4, symmetric=False, group_size=32)

    def refuses(self, q: QuantizedTensor) -> str | None:
        grid, size = affine_of(q), group_of(q)
        if grid is None or grid.bits != 4 or size is None:
            return f"{self.name} takes 4-bit equally spaced levels in groups along a row."
        if size not in self.groups:
            known = ", ".join(map(str, self.groups))
            return f"{self.name} takes groups of {known} weights, not of {size}."
        return None

    def adapt(self, q: QuantizedTensor, dtype: torch.dtype) -> QuantizedTensor:
        """Scales and offsets in the inputs' dtype, as the kernel wants them."""
        grid = q.grid
        assert isinstance(grid, Affine)
        scale = grid.scale.to(dtype)
        # The level of code 8 (from 0 to 15); the kernel's other levels start from it.
        middle = grid.decode(torch.full_like(grid.scale, grid.qmin + 8).unsqueeze(-1)).squeeze(-1)
        codes = (q.codes.to(torch.int16) - grid.qmin - 8).to(torch.int8)
        shifted = Affine(scale, 4, -8, 7, torch.float32, offset=middle.to(dtype))
        return replace(q, codes=codes, grid=shifted)

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        if device.type == "cuda" and dtype is not torch.bfloat16:
            raise ValueError(
                f"{self.name} multiplies bfloat16 inputs on CUDA, not {dtype}: pass "
                f"dtype=torch.bfloat16"
            )
        grid, size = q.grid, group_of(q)
        assert isinstance(grid, Affine) and grid.offset is not None and size is not None
        rows, columns = q.shape
        # CUDA tiles take 8 rows and 8 · 16 inputs, the CPU's 16 rows.
        rows, columns = round_up(rows, 16), round_up(columns, 128 if device.type == "cuda" else 2)
        columns = round_up(columns, size)
        codes = padded(q.codes.to(device, torch.int32) + 8, rows, columns, 8)
        groups = columns // size
        scale = padded(grid.scale.to(device), rows, groups, 1)
        middle = padded(grid.offset.to(device), rows, groups, 0)
        if device.type == "cuda":
            pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
            packed = torch._convert_weight_to_int4pack(pairs.contiguous(), 8)
        else:
            packed = torch._convert_weight_to_int4pack_for_cpu(codes.contiguous(), 8)
        both = torch.stack([scale.T, middle.T], dim=-1)  # [groups, rows, 2]
        return {"weight": packed, "scales": both}, {"group_size": size, "columns": columns}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        columns, size = packed.options["columns"], packed.options["group_size"]
        x = padded(x, x.shape[0], columns)
        weight, scales = packed.tensors["weight"], packed.tensors["scales"]
        if x.device.type == "cuda":
            y = torch._weight_int4pack_mm(x, weight, size, scales)
        else:
            y = torch._weight_int4pack_mm_for_cpu(x, weight, size, scales)
        return y[:, : packed.shape[0]]


class Int8(Kernel):
    """Eight-bit weights with a scale per row, 16-bit inputs: Y = (X·Qᵀ)·s."""

    name = "torch.int8"
    title = "8-bit rows, 16-bit inputs"
    source = "torch._weight_int8pack_mm"

    def sample(self) -> QuantizedTensor:
        return affine_sample(bits=8, granularity="channel", group_size=None)

    def refuses(self, q: QuantizedTensor) -> str | None:
        return int8_rows(self.name, q)

    def adapt(self, q: QuantizedTensor, dtype: torch.dtype) -> QuantizedTensor:
        """The scales in the inputs' dtype, as the kernel wants them."""
        assert isinstance(q.grid, Affine)
        grid = replace(q.grid, scale=row_scale(q)[:, None].to(dtype))
        return replace(q, grid=grid, granularity=Granularity("channel"))

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        # Rows of 33 read past their end on a CPU, with a wrong result or a crash: its loop takes
        # 32 inputs at a time. Nothing checks this, so padding is the only remedy.
        rows, columns = round_up(q.shape[0], 32), round_up(q.shape[1], 64)
        codes = padded(q.codes.to(device), rows, columns)
        scale = padded(row_scale(q).to(device, dtype)[None], 1, rows)[0]
        return {"weight": codes, "scale": scale}, {"columns": columns}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        x = padded(x, x.shape[0], packed.options["columns"])
        y = torch._weight_int8pack_mm(x, packed.tensors["weight"], packed.tensors["scale"])
        return y[:, : packed.shape[0]]


class Int8Dynamic(Kernel):
    """W8A8: inputs rounded to 8 bits token by token, an integer product, both scales after it."""

    name = "torch.int8_dynamic"
    title = "8-bit rows, inputs to int8 token by token, integer product"
    source = "torch._int_mm"
    activations = "int8 per token"

    def sample(self) -> QuantizedTensor:
        return affine_sample(bits=8, granularity="channel", group_size=None)

    def refuses(self, q: QuantizedTensor) -> str | None:
        return int8_rows(self.name, q)

    def inputs(self, x: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
        codes, scale = int8_tokens(x)
        return codes.double() * scale.double()

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        rows, columns = round_up(q.shape[0], 8), round_up(q.shape[1], 8)  # what CUDA asks for
        codes = padded(q.codes.to(device), rows, columns)
        scale = padded(row_scale(q).to(device, torch.float32)[None], 1, rows)
        return {"weight": codes, "scale": scale}, {"columns": columns}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        codes, scale = int8_tokens(x)
        tokens = x.shape[0]
        # cuBLAS wants more than 16 tokens: at batch 1 it multiplies 17, 16 of them zeros.
        least = 17 if x.device.type == "cuda" else tokens
        codes = padded(codes, max(tokens, least), packed.options["columns"])
        sums = torch._int_mm(codes, packed.tensors["weight"].T)[:tokens]
        y = sums.float() * scale * packed.tensors["scale"]
        return y[:, : packed.shape[0]].to(x.dtype)


class Fp8(Kernel):
    """FP8 weights and inputs: E4M3 both, a scale per row and token, or one for each matrix.

    Hopper's tensor cores keep only some 14 bits of a sum of E4M3 products. Without "fast
    accumulation" their sums are taken out and added up in float32 every so often: measured on an
    H100 with up to 8192 inputs, the error stays below a third of the bound that the tests hold it
    to. With it, it reached eight times the bound.
    """

    name = "torch.fp8"
    title = "FP8 weights, inputs to FP8 (E4M3)"
    source = "torch._scaled_mm"
    dtypes = (torch.bfloat16,)
    activations = "FP8 E4M3 per token (per tensor where the weight has one scale)"

    def sample(self) -> QuantizedTensor:
        return fp8_sample()

    def refuses(self, q: QuantizedTensor) -> str | None:
        return fp8_rows(self.name, q)

    def inputs(self, x: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
        values, scale = fp8_tokens(x, whole=q.granularity.kind == "tensor")
        return values.double() * scale.double()

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        assert isinstance(q.grid, Codebook)
        whole = q.granularity.kind == "tensor"
        rows, columns = round_up(q.shape[0], 16), round_up(q.shape[1], 16)
        values = padded(q.codes, rows, columns).to(device).view(torch.float8_e4m3fn)
        scale = q.grid.scale.to(device, torch.float32)
        scale = scale.reshape(()) if whole else padded(scale.T, 1, rows, 1)
        return {"weight": values, "scale": scale}, {"columns": columns, "whole": whole}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        values, scale = fp8_tokens(x, whole=packed.options["whole"])
        # Padded as bytes: torch pads no FP8 tensors.
        codes = padded(values.view(torch.uint8), x.shape[0], packed.options["columns"])
        y = torch._scaled_mm(
            codes.view(torch.float8_e4m3fn),
            packed.tensors["weight"].T,
            scale,
            packed.tensors["scale"],
            out_dtype=x.dtype,
            use_fast_accum=False,
        )
        return y[:, : packed.shape[0]]


# ---------------------------------------------------------------------- inputs, rounded


def int8_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [tokens, in] int8 and scales [tokens, 1] float32: absmax/127, half to even."""
    x = x.float()
    scale = quotient(x.abs().amax(dim=1, keepdim=True), 127.0)
    # A token of zeros has no scale; 0/1 keeps its codes 0.
    codes = torch.round(x / scale.masked_fill(scale == 0, 1.0))
    return codes.to(torch.int8), scale


def fp8_tokens(x: torch.Tensor, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [tokens, in] E4M3 and scales [tokens, 1] float32 ([] for `whole`): absmax/448."""
    x = x.float()
    top = x.abs().amax() if whole else x.abs().amax(dim=1, keepdim=True)
    scale = quotient(top, E4M3_MAX)
    # Clamped, since what is above 448 after rounding the quotient becomes NaN in some versions.
    scaled = (x / scale.masked_fill(scale == 0, 1.0)).clamp(-E4M3_MAX, E4M3_MAX)
    return scaled.to(torch.float8_e4m3fn), scale


def quotient(x: torch.Tensor, divisor: float) -> torch.Tensor:
    """x / divisor, rounded once on every device.

    On CUDA torch makes a division by a number, or by a scalar on the CPU, a product with its
    reciprocal, which is another float now and then, and near a tie another code.
    """
    return x / x.new_full((), divisor)


# ---------------------------------------------------------------------- which tensors


def row_scale(q: QuantizedTensor) -> torch.Tensor:
    """The scales [out] of a tensor with a scale per row, or one for all."""
    assert isinstance(q.grid, Affine)
    return q.grid.scale.expand(q.shape[0], 1)[:, 0]


def int8_rows(name: str, q: QuantizedTensor) -> str | None:
    """Why a kernel for symmetric 8-bit rows does not take this tensor; None: it does."""
    grid = affine_of(q)
    along = q.granularity.kind != "flat" and q.granularity.axis == 1
    rows = grid is not None and grid.scale.shape[1] == 1 and along
    if grid is None or not rows or grid.bits != 8 or grid.qmin >= 0:
        return f"{name} takes symmetric 8-bit codes with one scale per row."
    if grid.zero_point is not None or grid.offset is not None:
        return f"{name} takes symmetric 8-bit codes: this tensor has zero points."
    return None


def fp8_rows(name: str, q: QuantizedTensor) -> str | None:
    """Why a kernel for E4M3 rows does not take this tensor; None: it does."""
    grid = q.grid
    rows = q.granularity.kind in ("channel", "tensor") and q.granularity.axis == 1
    if not isinstance(grid, Codebook) or grid.bits != 8 or not rows:
        return f"{name} takes FP8 weights with a scale per row, or one for all."
    if not torch.equal(grid.values.nan_to_num(0.0), e4m3_values(grid.values.device)):
        return f"{name} takes FP8 E4M3; this tensor has other levels."
    return None


def e4m3_values(device: torch.device) -> torch.Tensor:
    """What each byte [256] means in E4M3, float32; 0 for the two NaNs."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    return codes.view(torch.float8_e4m3fn).float().nan_to_num(0.0)


def fp8_sample() -> QuantizedTensor:
    """The sample weights in FP8, a scale per row."""
    made = quantize(sample_weight(), "fp8")
    assert isinstance(made, QuantizedTensor)
    return made


KERNELS = (Int4(), Int8(), Int8Dynamic(), Fp8())
