"""FP8 weights: every stored scale, code and reconstruction."""

import functools
import itertools
from collections.abc import Iterator

import torch
from inputs import adversarial

import qviz
from exactness import Array, Tally, against, equal
from qviz.core.formats import values

Pairs = Iterator[tuple[Array, Array]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRANULARITIES = ("channel", "tensor")
NATIVE = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def ties(name: str) -> torch.Tensor:
    """Rows that hold every number of the format, every tie, and their neighbours, times scales."""
    numbers = values(name).values.unique()
    middle = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middle])
    end = torch.tensor(torch.inf)
    x = torch.cat([x, torch.nextafter(x, end), torch.nextafter(x, -end)])
    x = torch.nn.functional.pad(x, (1, -(len(x) + 1) % 64)).reshape(-1, 64)
    x[:, 0] = numbers[-1]
    scales = torch.tensor([1.0, 0.375, 2.0**-20, 3.0, 2.0**30]).reshape(-1, 1, 1)
    return (x.clamp(numbers[0], numbers[-1]) * scales).flatten(0, 1)


@functools.cache
def cases(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(17)
    trained = torch.randn(96, 512, generator=g) * torch.rand(96, 1, generator=g) * 0.1
    trained[::7, ::13] *= 8
    bundled = qviz.load_layer(None, "model.layers.0.mlp.up_proj")[:256].float()
    # In float16 scales of such rows are subnormal, down to 0.
    fading = torch.randn(40, 96, generator=g) * torch.logspace(-8, 1, 40).unsqueeze(-1)
    everything = [trained, bundled, fading, ties(name), *adversarial(96).values()]
    cast = [w.to(dtype).contiguous() for w in everything]
    finite = tuple(w for w in cast if torch.isfinite(w).all())
    assert len(finite) >= len(everything) - 2  # float16 holds neither 1e30 nor 57344·2^30
    return finite


@against("compressed-tensors", method="fp8", what="scales, codes, values equal")
def compressed_tensors() -> Tally:
    """As llm-compressor calls it: parameters from the weight's range, then the compressor."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import preset_name_to_scheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams

    presets = {"channel": "FP8_DYNAMIC", "tensor": "FP8"}
    compressor = BaseCompressor.load_from_registry("float-quantized")

    def one(w: torch.Tensor, kind: str) -> Pairs:
        ours = qviz.quantize(w, "fp8", granularity=kind, convention="compressed_tensors")
        scheme = preset_name_to_scheme(presets[kind], ["Linear"])
        rows = w if kind == "channel" else w.reshape(1, -1)
        scale, _ = calculate_qparams(
            rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), scheme.weights
        )
        theirs = compressor.compress({"weight": w, "weight_scale": scale}, scheme)
        assert scale.dtype == ours.grid.stored[0].values.dtype == w.dtype
        yield ours.grid.stored[0].values, scale
        yield ours.codes, theirs["weight"].view(torch.uint8)
        yield ours.dequantize(), dequantize(theirs["weight"], scale, args=scheme.weights)

    return equal(
        pair
        for dtype, kind in itertools.product(DTYPES, GRANULARITIES)
        for w in cases("fp8_e4m3", dtype)
        for pair in one(w, kind)
    )


@against("torchao", method="fp8", what="scales, codes, values equal, where its scale is not 0")
def torchao() -> Tally:
    from torchao.quantization.granularity import PerRow, PerTensor
    from torchao.quantization.quantize_.workflows import Float8Tensor

    units = {"channel": PerRow(), "tensor": PerTensor()}

    def one(w: torch.Tensor, name: str, kind: str) -> Pairs:
        ours = qviz.quantize(w, "fp8", format=name, granularity=kind, convention="torchao")
        theirs = Float8Tensor.from_hp(w, NATIVE[name], units[kind])
        scale = theirs.scale.reshape(-1, 1)
        # Theirs divides by a scale of 0 and stores NaN for zeros; ours is 1 there.
        kept = scale.flatten() != 0
        assert int((~kept).sum()) == ours.info["vanishing_groups"]
        rows = kept.expand(len(w))
        yield ours.grid.stored[0].values[kept], scale[kept]
        yield ours.codes[rows], theirs.qdata.view(torch.uint8)[rows]
        yield ours.dequantize()[rows], theirs.dequantize()[rows]

    return equal(
        pair
        for name, dtype, kind in itertools.product(NATIVE, DTYPES, GRANULARITIES)
        for w in cases(name, dtype)
        for pair in one(w, name, kind)
    )
