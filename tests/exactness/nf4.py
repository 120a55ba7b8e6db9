"""NF4 and FP4 beside bitsandbytes on a CPU: all bytes that it stores, all values it returns."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from inputs import adversarial

import qviz
from exactness import Array, Tally, against, equal
from qviz.core.tensor import QuantizedTensor
from qviz.methods.nf4 import FORMATS, dynamic_levels, normal_levels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Pairs = Iterator[tuple[Array, Array]]


def random(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def on_bounds(levels: tuple[float, ...]) -> torch.Tensor:
    """Every bound between two levels and its neighbours in float32, in blocks whose absmax is 1."""
    v = torch.tensor(sorted(levels))
    m = (v[:-1] + v[1:]) / 2
    far = torch.tensor(2.0)
    near = torch.cat([m, torch.nextafter(m, far), torch.nextafter(m, -far), v, -m])
    return torch.nn.functional.pad(near, (0, 127 - len(near)), value=1.0).repeat(4).reshape(4, -1)


def cases(dtype: torch.dtype) -> list[torch.Tensor]:
    """Trained, random, hard, tied and vanishing weights, and sizes with a short last block."""
    layer = qviz.load_layer(None, "model.layers.0.mlp.up_proj")[:64]
    hard = [v.to(dtype) for v in adversarial().values()]
    sizes = [random(*size) for size in ((1, 1), (1, 63), (3, 65), (7, 37), (5, 4097), (128, 512))]
    short = [random(3, 65) * torch.tensor([[1.0], [1.0], [0.0]]), torch.zeros(3, 33)]
    tied = [on_bounds(levels) for levels in FORMATS.values()]
    tiny = [random(4, 130) * float(torch.finfo(dtype).smallest_normal) * 2.0**-k for k in (0, 5)]
    return [
        *(w.to(dtype) for w in (layer, *sizes, *short, *tied, *tiny)),
        *(v for v in hard if torch.isfinite(v).all()),
    ]


def theirs(w: torch.Tensor, **options: object) -> tuple[torch.Tensor, object]:
    from bitsandbytes.functional import quantize_4bit

    return quantize_4bit(w, **options)


def stored(q: QuantizedTensor, name: str, dtype: type) -> np.ndarray:
    return q.pack()[name].view(dtype)


@against("bitsandbytes", method="nf4", what="packed bytes and absmax: equal")
def bytes_and_absmax() -> Tally:
    def one(w: torch.Tensor, form: str, size: int) -> Pairs:
        ours = qviz.quantize(w, "nf4", format=form, group_size=size)
        packed, state = theirs(w, quant_type=form, blocksize=size)
        yield stored(ours, "codes", np.uint8), packed.flatten()
        yield stored(ours, "absmax", np.float32), state.absmax

    settings = itertools.product(DTYPES, FORMATS, (32, 64, 4096))
    return equal(pair for dtype, *rest in settings for w in cases(dtype) for pair in one(w, *rest))


@against("bitsandbytes", method="nf4", what="dequantized values, double quantization too: equal")
def values() -> Tally:
    """Against its own kernel where that is right: see `straddling_rows`."""
    from bitsandbytes.functional import dequantize_4bit

    def one(w: torch.Tensor, form: str, double: bool) -> Pairs:
        ours = qviz.quantize(w, "nf4", format=form, double_quant=double)
        packed, state = theirs(w, quant_type=form, compress_statistics=double)
        yield ours.dequantize(), dequantize_4bit(packed, state).reshape(w.shape)

    settings = itertools.product(DTYPES, FORMATS, (False, True))
    whole = {dtype: [w for w in cases(dtype) if w.shape[1] % 64 == 0] for dtype in DTYPES}
    return equal(pair for dtype, *rest in settings for w in whole[dtype] for pair in one(w, *rest))


@against("bitsandbytes", method="nf4", what="dequantized values of blocks across rows: equal")
def straddling_rows() -> Tally:
    """Flattened first: its AVX-512 kernel takes the wrong absmax where a row is no whole blocks."""
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.functional import get_4bit_type

    # Not compiled for each shape; where torch could not prepare to compile it, it is plain already.
    plain = getattr(_dequantize_4bit_compute, "__wrapped__", _dequantize_4bit_compute)

    def one(w: torch.Tensor, form: str) -> Pairs:
        ours = qviz.quantize(w, "nf4", format=form)
        packed, state = theirs(w, quant_type=form)
        absmax, code = state.absmax, get_4bit_type(form, "cpu")
        back = plain(packed.flatten(), absmax, code, 64, w.shape, w.dtype)
        yield ours.dequantize(), back

    ragged = {dtype: [w for w in cases(dtype) if w.shape[1] % 64] for dtype in DTYPES}
    settings = itertools.product(DTYPES, FORMATS)
    return equal(pair for dtype, form in settings for w in ragged[dtype] for pair in one(w, form))


@against(
    "bitsandbytes", method="nf4", what="double quantization: codes, second absmax, offset: equal"
)
def second_level() -> Tally:
    def one(w: torch.Tensor, form: str) -> Pairs:
        ours = qviz.quantize(w, "nf4", format=form, double_quant=True, group_size=32)
        packed, state = theirs(w, quant_type=form, compress_statistics=True, blocksize=32)
        yield stored(ours, "codes", np.uint8), packed.flatten()
        yield stored(ours, "absmax codes", np.uint8), state.absmax
        second = state.state2.absmax
        yield stored(ours, "second absmax", np.float32), second
        offset = state.offset.reshape(1)
        yield stored(ours, "absmax offset", np.float32), offset

    many = [random(512, 512) * random(512, 1, 1), random(100, 999).abs() ** 3]
    settings = itertools.product(DTYPES, FORMATS)
    return equal(
        pair
        for dtype, form in settings
        for w in (*cases(dtype), *(m.to(dtype) for m in many))
        for pair in one(w, form)
    )


@against("bitsandbytes", method="nf4", what="its table of 65,536 bins, on 4M values: equal")
def second_level_table() -> Tally:
    """Dense near zero, where the levels lie closer than the bins."""
    from bitsandbytes.functional import quantize_blockwise

    from qviz.methods.nf4 import _bin, _lookup

    x = torch.rand(1 << 22, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[1 << 20 :] **= 5
    x[::256] = 1.0
    codes, state = quantize_blockwise(x, code=dynamic_levels(), blocksize=256)
    assert (state.absmax == 1).all()
    nearest = (x[:, None][: 1 << 12] - dynamic_levels()).abs().argmin(-1)
    note = f"{int((nearest != codes[: 1 << 12]).sum())} of the first 4096 are not the nearest level"
    return equal([(_lookup()[_bin(x)], codes)], note)


@against("bitsandbytes", method="nf4", what="the levels of NF4, FP4 and the dynamic type: equal")
def tables() -> Tally:
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    pairs = [(torch.tensor(FORMATS[f]), get_4bit_type(f, "cpu")) for f in FORMATS]
    pairs.append((dynamic_levels(), create_dynamic_map()))
    pairs.append((normal_levels().levels, get_4bit_type("nf4", "cpu")))
    return equal(pairs)


@against("scipy", method="nf4", what="quantiles of the normal distribution: within 1e-14")
def quantiles() -> Tally:
    from scipy.stats import norm

    found = [normal_levels(offset) for offset in (0.9, 0.9677083, 0.99)]
    wrong = [
        int((np.abs(n.quantile.numpy() - norm.ppf(n.probability.numpy())) > 1e-14).sum())
        for n in found
    ]
    return Tally(len(found), 16 * len(found), sum(wrong))
