"""GGUF types against llama.cpp's C code and against gguf-py: every byte equal, and every weight."""

from collections.abc import Callable, Iterator

import ggml
import torch
from inputs import adversarial

import qviz
from exactness import Array, Tally, against, equal
from qviz.methods.gguf import LAYOUTS, encode, from_bytes
from qviz.models.checkpoint import list_layers

LEGACY = [name for name, layout in LAYOUTS.items() if layout.weights == 32]
KQUANTS = [name for name in LAYOUTS if name not in LEGACY]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def hostile(columns: int = 512) -> dict[str, torch.Tensor]:
    """Weights [64, columns] at every place where float32 or float16 gives out, or ties are many."""
    g = torch.Generator().manual_seed(11)
    w = torch.randn(64, columns, generator=g)
    sparse = torch.where(torch.rand(64, columns, generator=g) < 0.9, 0.0, w)
    powers = 2.0 ** torch.randint(-10, 10, (64, columns), generator=g)
    signs = torch.where(w > 0, 1.0, -1.0)
    cases = {
        "sparse": sparse,
        "sparse negative zeros": torch.where(sparse == 0, -0.0, sparse),
        "rectified": sparse.clamp(min=0),
        "both zeros": torch.where(w.abs() < 1, -0.0, sparse.clamp(min=0)),
        "heavy tails": w * torch.exp(4 * torch.randn(64, columns, generator=g)),
        "integers": (3 * w).round(),
        "powers of two": powers,
        "signed powers of two": powers * signs,
        "below powers of two": torch.nextafter(powers, torch.tensor(0.0)),
    }
    for size in (1e-42, 1e-38, 1e-30, 3e-16, 1e-15, 1e-10, 1e5, 1e15, 1e25, 1e35, 1e37):
        cases[f"size {size}"] = w * size
    for middle in (-5.0, 5.0, -1e-3):
        for spread in (2e-7, 2e-6):  # a few neighbouring float32 numbers
            cases[f"{middle} ± {spread}"] = middle + w * abs(middle) * spread
    return {**adversarial(columns), **cases}


def random_weights() -> Iterator[torch.Tensor]:
    """5,120 super-blocks of normal weights and their products, in three dtypes."""
    g = torch.Generator().manual_seed(12)
    rows = torch.logspace(-3, 1, 512)[:, None]
    for dtype in DTYPES:
        yield (torch.randn(512, 512, generator=g) * rows).to(dtype)
    yield torch.randn(1024, 512, generator=g)


def hostile_weights() -> Iterator[torch.Tensor]:
    """9,616 super-blocks."""
    for w in hostile().values():
        for dtype in DTYPES:
            if torch.isfinite(w.to(dtype)).all():
                yield w.to(dtype)


def trained_weights(limit: int = 16_000) -> Iterator[torch.Tensor]:
    """16,000 super-blocks of the bundled model and, where it is installed, of MiniLM, whose rows
    of 384 are cut into 256."""
    for model in ("bundled", "minilm"):
        left = limit
        try:
            layers = list_layers(model)
        except ImportError:  # MiniLM is an extra
            continue
        for layer in layers:
            if left > 0:
                w = qviz.load_layer(model, layer.name).reshape(-1, 256)
                left -= len(w)
                yield w


def bytes_beside_c(
    names: list[str],
    weights: Callable[[], Iterator[torch.Tensor]],
    importance: Callable[[int], torch.Tensor] | None = None,
) -> Tally:
    def pairs() -> Iterator[tuple[Array, Array]]:
        for w in weights():
            # Under 2^−125 the exponent byte of MXFP4 would be negative, and what C makes of the
            # conversion is undefined (it wraps on x86-64).
            tiny = float(w.abs().amax()) < 1e-36
            for name in names:
                if name == "MXFP4" and tiny:
                    continue
                own = None if importance is None else importance(w.shape[1])
                ours = encode(w, name, importance=own)
                yield ours, ggml.quantize(name, w, own)

    return equal(pairs())


def some_importance(columns: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(13)
    values = torch.rand(columns, generator=g) ** 3
    values[::11] = 0
    return values


C = "llama-cpp-python"


@against(C, method="gguf", what="bytes of all 11 types equal; 5,120 super-blocks")
def c_random() -> Tally:
    return bytes_beside_c(list(LAYOUTS), random_weights)


@against(C, method="gguf", slow=True, what="bytes of all 11 types equal; hostile weights, 3 dtypes")
def c_hostile() -> Tally:
    return bytes_beside_c(list(LAYOUTS), hostile_weights)


@against(C, method="gguf", slow=True, what="bytes of all 11 types equal; layers of two models")
def c_trained() -> Tally:
    return bytes_beside_c(list(LAYOUTS), trained_weights)


@against(C, method="gguf", slow=True, what="bytes of all 11 types equal; weighted by importance")
def c_importance() -> Tally:
    def weights() -> Iterator[torch.Tensor]:
        yield from random_weights()
        yield from hostile_weights()

    return bytes_beside_c(list(LAYOUTS), weights, some_importance)


@against(C, method="gguf", slow=True, what="bytes of all 11 types equal; importance of all sizes")
def c_skewed_importance() -> Tally:
    """Importance that hangs on a few inputs, or is zero for many: the fit of a sub-block can then
    have a scale below 0."""
    g = torch.Generator().manual_seed(16)
    w = torch.randn(64, 512, generator=g)
    values = torch.rand(512, generator=g)
    cases = [torch.exp(factor * torch.randn(512, generator=g)) for factor in (3, 8, 20)]
    cases += [(torch.arange(512) == 37).float(), torch.cat([torch.zeros(256), values[:256]])]
    cases += [values * size for size in (1e-43, 1e-30, 1e30)]
    cases += [values * (torch.rand(512, generator=g) < share) for share in (0.02, 0.1, 0.5)]
    weights = [w, w.abs() + 0.5, -w.abs() - 1, -w.abs(), (2 * w).round(), w * w * w]
    tallies = [
        bytes_beside_c(list(LAYOUTS), lambda: iter(weights), lambda columns, own=own: own)
        for own in cases
    ]
    return sum(tallies[1:], tallies[0])


@against("gguf", method="gguf", what="bytes of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4 equal")
def python_bytes() -> Tally:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    g = torch.Generator().manual_seed(14)

    def pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in DTYPES:
            w = torch.randn(256, 96, generator=g).to(dtype)
            for name in LEGACY:
                yield encode(w, name), quantize(w.float().numpy(), GGMLQuantizationType[name])

    return equal(pairs())


@against("gguf", method="gguf", what="weights decoded from arbitrary bytes equal; all 11 types")
def python_weights() -> Tally:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    g = torch.Generator().manual_seed(15)

    def pairs() -> Iterator[tuple[Array, Array]]:
        for name, layout in LAYOUTS.items():
            data = torch.randint(0, 256, (64, 3 * layout.nbytes), dtype=torch.uint8, generator=g)
            theirs = dequantize(data.numpy(), GGMLQuantizationType[name])
            yield from_bytes(name, data).dequantize(), theirs
            w = torch.randn(64, 512, generator=g)
            data = encode(w, name)
            theirs = dequantize(data.numpy(), GGMLQuantizationType[name])
            yield qviz.quantize(w, "gguf", type=name).dequantize(), theirs

    return equal(pairs())
