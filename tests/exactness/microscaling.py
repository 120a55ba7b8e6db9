"""Microscaling: every stored scale, code and reconstruction."""

import ctypes
import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from inputs import adversarial

import qviz
from exactness import Array, Tally, against, equal
from qviz.core.tensor import QuantizedTensor
from qviz.methods.microscaling import BLOCK_FORMATS

Pairs = Iterator[tuple[Array, Array]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TORCHAO = {
    "mxfp8_e4m3": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp6_e2m3": "fp6_e2m3",
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp4": torch.float4_e2m1fn_x2,
}


def near_powers() -> torch.Tensor:
    """Rows of blocks whose maximum lies a few float32 steps around a power of two, or 6 times it:
    where floor, ceil and logarithms decide."""
    exponents = torch.arange(-100, 100, 7)
    rows = []
    for base in (1.0, 1.5, 1.75, 1.875, 6 / 4, 448 / 256):
        at = torch.ldexp(torch.tensor(base), exponents)
        rows += [(at.view(torch.int32) + n).view(torch.float32) for n in (-3, -1, 0, 1, 2)]
    peaks = torch.stack(rows)  # [rows, blocks]
    g = torch.Generator().manual_seed(7)
    inner = torch.rand(*peaks.shape, 32, generator=g) * 2 - 1
    inner[..., 0] = 1.0
    inner[..., 16] = -1.0  # NVFP4 has two blocks here
    return (inner * peaks.unsqueeze(-1)).flatten(1)


def element_ties(name: str) -> torch.Tensor:
    """Blocks that hold every number of the element format, every tie, and their neighbours."""
    values = BLOCK_FORMATS[name].values(torch.device("cpu"))
    values = values[torch.isfinite(values)].unique()
    middle = (values[1:] + values[:-1]) / 2
    x = torch.cat([values, middle])
    ends = torch.tensor(torch.inf)
    x = torch.cat([x, torch.nextafter(x, ends), torch.nextafter(x, -ends)])
    x = torch.nn.functional.pad(x, (0, -len(x) % 30)).reshape(-1, 30)
    top = torch.full((len(x), 1), float(values[-1]))
    blocks = torch.cat([top, x[:, :15], top, x[:, 15:]], dim=1)  # [blocks, 32]
    scales = torch.tensor([1.0, 0.375, 2.0**-20, 3.0, 2.0**30]).reshape(-1, 1, 1)
    return (blocks * scales).flatten(0, 1)


@functools.cache
def cases(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(11)
    trained = torch.randn(96, 512, generator=g) * torch.rand(96, 1, generator=g) * 0.1
    trained[::7, ::13] *= 8
    bundled = qviz.load_layer(None, "model.layers.0.mlp.up_proj")[:256].float()
    everything = [trained, bundled, near_powers(), element_ties(name), *adversarial().values()]
    cast = [w.to(dtype).contiguous() for w in everything]
    return tuple(w for w in cast if torch.isfinite(w).all())


def held(cases: tuple[torch.Tensor, ...], run: Callable[[torch.Tensor], Pairs]) -> Pairs:
    """The pairs of all cases that the convention's scales can hold; the others are refused.

    Those are weights so small or so large that the system itself returns Inf, NaN or nothing.
    """
    refused = []
    for w in cases:
        try:
            yield from run(w)
        except ValueError as why:
            assert "overflows or underflows its format" in str(why) or "reconstruction" in str(
                why
            ), why
            refused.append(float(w.abs().max()))
    assert all(a < 1e-30 or a > 1e30 for a in refused), refused
    assert len(refused) <= 2, refused


def packed(q: QuantizedTensor) -> torch.Tensor:
    return torch.from_numpy(q.pack()["codes"])


@against("torchao", method="microscaling", what="MX, four modes: scales, codes, values equal")
def torchao_mx() -> Tally:
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    def one(name: str, mode: str, w: torch.Tensor) -> Pairs:
        ours = qviz.quantize(w, "microscaling", format=name, scale_rounding=mode)
        scale, data = to_mx(w, TORCHAO[name], 32, ScaleCalculationMode[mode.upper()])
        yield ours.grid.stored[0].values, scale.view(torch.uint8)
        codes = packed(ours) if name == "mxfp4" else ours.codes.flatten()
        yield codes, data.view(torch.uint8).flatten()
        yield ours.dequantize(), to_dtype(data, scale, TORCHAO[name], 32, w.dtype)

    return equal(
        pair
        for name, mode, dtype in itertools.product(
            TORCHAO, ("floor", "ceil", "even", "rceil"), DTYPES[:2]
        )
        for pair in held(cases(name, dtype), functools.partial(one, name, mode))
    )


@against("torchao", method="microscaling", what="NVFP4: scales, codes, values equal")
def torchao_nvfp4() -> Tally:
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    def one(w: torch.Tensor) -> Pairs:
        ours = qviz.quantize(w, "microscaling", format="nvfp4")
        if not w.any():
            return  # theirs divides 0 by 0
        tensor = per_tensor_amax_to_scale(w.abs().amax())
        theirs = NVFP4Tensor.to_nvfp4(w, 16, per_tensor_scale=tensor)
        scales, scale = ours.grid.stored
        yield scale.values, tensor.reshape(1)
        yield scales.values, theirs.scale.view(torch.uint8)
        yield packed(ours), theirs.qdata.flatten()
        yield ours.dequantize(), theirs.dequantize(w.dtype)

    return equal(pair for dtype in DTYPES[:2] for pair in held(cases("nvfp4", dtype), one))


@against("compressed-tensors", method="microscaling", what="scales, packed codes, values equal")
def compressed_tensors() -> Tally:
    """As llm-compressor calls it: parameters from the weight's range, then the compressor."""
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.compressors.mxfp6.base import MXFP6PackedCompressor
    from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    systems = {
        "mxfp4": ("MXFP4A16", MXFP4PackedCompressor),
        "mxfp6_e2m3": ("MXFP6A16", MXFP6PackedCompressor),
        "mxfp8_e4m3": ("MXFP8A16", MXFP8QuantizationCompressor),
        "nvfp4": ("NVFP4A16", NVFP4PackedCompressor),
    }

    def one(name: str, w: torch.Tensor) -> Pairs:
        ours = qviz.quantize(w, "microscaling", format=name, convention="compressed_tensors")
        preset, compressor = systems[name]
        scheme: QuantizationScheme = preset_name_to_scheme(preset, ["Linear"])
        groups = w.unflatten(-1, (-1, BLOCK_FORMATS[name].size))
        lo, hi = groups.amin(-1), groups.amax(-1)
        tensor = generate_gparam(w.min(), w.max()) if name == "nvfp4" else None
        scale, _ = calculate_qparams(lo, hi, scheme.weights, tensor)
        state = {"weight": w, "weight_scale": scale}
        if tensor is not None:
            state["weight_global_scale"] = tensor
            yield ours.grid.stored[1].values, tensor
        theirs = compressor.compress(dict(state), scheme)
        yield ours.grid.stored[0].values, theirs["weight_scale"].view(torch.uint8)
        codes = theirs["weight_packed"] if "weight_packed" in theirs else theirs["weight"]
        yield packed(ours), codes.view(torch.uint8).flatten()
        back = fake_quantize(w, scale, None, scheme.weights, tensor)
        yield ours.dequantize(), back.to(w.dtype)

    return equal(
        pair
        for name, dtype in itertools.product(systems, DTYPES)
        for pair in held(cases(name, dtype), functools.partial(one, name))
    )


def defined(w: torch.Tensor, size: int) -> torch.Tensor:
    """The weight without blocks on which ggml's C code has no defined or no useful answer.

    Below 2^−125 the exponent of MXFP4 is a negative number cast to a byte; NVFP4 ends at 6·448, and
    far above float32 sees all codes as equally wrong.
    """
    blocks = w.float().unflatten(-1, (-1, size))
    amax = blocks.abs().amax(-1, keepdim=True)
    lost = ((amax > 0) & (amax < 2.0**-125)) if size == 32 else amax > 2.0**24
    return torch.where(lost, 1.0, blocks).flatten(1)


def nibbles(q: QuantizedTensor, half: int) -> torch.Tensor:
    """Bytes that hold the codes j and j + half of a block, as ggml lays them out."""
    low, high = q.codes.reshape(-1, 2, half).unbind(1)
    return low | high << 4


@against("gguf", method="microscaling", what="MXFP4, convention ggml: bytes and values equal")
def gguf_mxfp4() -> Tally:
    from gguf.quants import MXFP4

    def one(w: torch.Tensor) -> Pairs:
        w = defined(w, 32)
        ours = qviz.quantize(w, "microscaling", format="mxfp4", convention="ggml")
        blocks = MXFP4.quantize_blocks(w.reshape(-1, 32).numpy())
        yield ours.grid.stored[0].values.flatten(), blocks[:, 0]
        yield nibbles(ours, 16), blocks[:, 1:]
        yield ours.dequantize().reshape(-1, 32), MXFP4.dequantize_blocks(blocks)

    with np.errstate(all="ignore"):
        return equal(pair for dtype in DTYPES for pair in held(cases("mxfp4", dtype), one))


@against(
    "llama-cpp-python", method="microscaling", what="MXFP4, NVFP4 of ggml: bytes, values equal"
)
def ggml_blocks() -> Tally:
    from ggml import library

    def one(name: str, w: torch.Tensor) -> Pairs:
        size, head, half = (32, 1, 16) if name == "mxfp4" else (64, 4, 8)
        w = defined(w, 32 if name == "mxfp4" else 16)
        w = torch.nn.functional.pad(w, (0, -w.shape[1] % size)).contiguous()
        ours = qviz.quantize(w, "microscaling", format=name, convention="ggml")
        blocks = torch.zeros(w.numel() // size, head + size // 2, dtype=torch.uint8)
        back = torch.zeros_like(w)
        x, packed, values = (ctypes.c_void_p(t.data_ptr()) for t in (w, blocks, back))
        count = ctypes.c_int64(w.numel())
        getattr(library(), f"quantize_row_{name}_ref")(x, packed, count)
        getattr(library(), f"dequantize_row_{name}")(packed, values, count)
        yield ours.grid.stored[0].values.flatten(), blocks[:, :head].flatten()
        yield nibbles(ours, half).flatten(), blocks[:, head:].flatten()
        yield ours.dequantize(), back

    return equal(
        pair
        for name, dtype in itertools.product(("mxfp4", "nvfp4"), DTYPES)
        for pair in held(cases(name, dtype), functools.partial(one, name))
    )
