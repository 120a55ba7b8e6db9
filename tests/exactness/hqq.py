"""HQQ against hqq on the processor: codes, scales and zero points, all equal."""

from collections.abc import Iterator

import torch
from inputs import adversarial

import qviz
from exactness import Array, Tally, against, equal
from qviz.models.checkpoint import list_layers

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = (8, 6, 5, 4, 3, 2, 1)


def hqq_run(w: torch.Tensor, *, bits: int, group_size: int | None = 64, **options) -> tuple:
    """Their codes, scale and zero of the configuration they use for a layer."""
    from hqq.core.quantize import Quantizer

    options = {"optimize": True, "round_zero": bits == 4, **options}
    codes, meta = Quantizer.quantize(
        w.clone(), nbits=bits, group_size=group_size, axis=1, device="cpu", bitpack=False,
        compute_dtype=torch.float32, view_as_float=False, **options,
    )  # fmt: skip
    return codes, meta


def pairs(w: torch.Tensor, *, bits: int, group_size: int | None = 64) -> Iterator[tuple]:
    ours = qviz.quantize(w, "hqq", bits=bits, group_size=group_size, scale_dtype=None)
    codes, meta = hqq_run(w, bits=bits, group_size=group_size)
    yield ours.codes.reshape(codes.shape), codes
    yield ours.grid.scale.reshape(-1, 1), meta["scale"]
    yield ours.grid.zero_point.reshape(-1, 1), meta["zero"]


def wide_range(rows: int = 64, columns: int = 512) -> torch.Tensor:
    """Rows from 1e-4 to 10, with heavy tails: steps with and without outliers, and both limits."""
    g = torch.Generator().manual_seed(23)
    w = torch.randn(rows, columns, generator=g) * torch.logspace(-4, 1, rows)[:, None]
    w[::5, ::17] *= 9
    return w


@against("hqq", method="hqq", what="codes, scales and zero points equal; 7 widths, 3 dtypes")
def random_weights() -> Tally:
    def all_pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in DTYPES:
            for bits in BITS:
                for size in (16, 32, 64, 128, None):
                    yield from pairs(wide_range().to(dtype), bits=bits, group_size=size)

    return equal(all_pairs())


@against("hqq", method="hqq", what="codes, scales and zero points equal; hostile weights")
def adversarial_weights() -> Tally:
    def all_pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in DTYPES:
            for w in adversarial().values():
                w = w.to(dtype)
                if not torch.isfinite(w).all():
                    continue
                for bits in BITS:
                    for size in (16, 64, 128):
                        yield from pairs(w, bits=bits, group_size=size)

    return equal(all_pairs())


@against("hqq", method="hqq", what="codes, scales and zero points equal; groups across rows")
def groups_that_straddle_rows() -> Tally:
    w = wide_range(48, 200)
    return equal(p for bits in (2, 4) for p in pairs(w, bits=bits, group_size=64))


def layers_of(model: str | None) -> Tally:
    def all_pairs() -> Iterator[tuple[Array, Array]]:
        for layer in list_layers(model)[:7]:
            w = qviz.load_layer(model, layer.name)
            for bits in (8, 4, 3, 2):
                for size in (32, 64):
                    yield from pairs(w, bits=bits, group_size=size)

    return equal(all_pairs())


@against("hqq", method="hqq", what="codes, scales and zero points equal; the bundled model")
def trained_layers() -> Tally:
    return layers_of(None)


@against("hqq", method="hqq", what="codes, scales and zero points equal; MiniLM", slow=True)
def published_layers() -> Tally:
    return layers_of("minilm")


@against("hqq", method="hqq", what="codes, scales and zero points equal; without optimization")
def start_alone() -> Tally:
    def all_pairs() -> Iterator[tuple[Array, Array]]:
        for bits in BITS:
            for round_zero in (False, True):
                ours = qviz.quantize(
                    wide_range(), "hqq", bits=bits, iters=0, round_zero=round_zero, scale_dtype=None
                )
                codes, meta = hqq_run(
                    wide_range(), bits=bits, optimize=False, round_zero=round_zero
                )
                yield ours.codes.reshape(codes.shape), codes
                yield ours.grid.scale.reshape(-1, 1), meta["scale"]
                yield ours.grid.zero_point.reshape(-1, 1), meta["zero"]

    return equal(all_pairs())


@against("hqq", method="hqq", what="reconstruction equal, with s and z stored in 16 bits")
def stored_in_16_bits() -> Tally:
    from hqq.core.quantize import HQQLinear, hqq_base_quant_config

    def all_pairs() -> Iterator[tuple[Array, Array]]:
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            for bits in (8, 4, 3, 2, 1):
                linear = torch.nn.Linear(512, 64, bias=False)
                linear.weight.data = wide_range()
                config = hqq_base_quant_config(nbits=bits, group_size=64)
                theirs = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
                ours = qviz.quantize(wide_range(), "hqq", bits=bits, scale_dtype=dtype)
                assert ours.dequantize().dtype == dtype
                yield ours.dequantize(), theirs.dequantize()

    return equal(all_pairs())


@against("hqq", method="hqq", what="codes and zero points equal; other p, β and number of steps")
def other_options() -> Tally:
    from hqq.core.optimize import optimize_weights_proximal_legacy

    def all_pairs() -> Iterator[tuple[Array, Array]]:
        x = wide_range().reshape(-1, 64)
        for bits in (2, 4):
            for p, beta, iters in ((1.0, 10.0, 20), (0.5, 100.0, 7), (0.9, 1e3, 1), (0.7, 1.0, 30)):
                start = qviz.quantize(wide_range(), "hqq", bits=bits, iters=0, scale_dtype=None)
                z = start.grid.zero_point.reshape(-1, 1)
                lo, hi = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
                inverse = (2**bits - 1) / (hi - lo)
                inverse = torch.where(hi - lo <= 1e-4, 1.0, inverse).clamp(max=2e4)
                codes, _, zero = optimize_weights_proximal_legacy(
                    x, inverse, z, [0, 2**bits - 1], axis=1, device="cpu",
                    opt_params={"lp_norm": p, "beta": beta, "kappa": 1.01, "iters": iters},
                )  # fmt: skip
                ours = qviz.quantize(
                    wide_range(), "hqq", bits=bits, lp_norm=p, beta=beta, iters=iters,
                    scale_dtype=None,
                )  # fmt: skip
                yield ours.codes.reshape(codes.shape), codes
                yield ours.grid.zero_point.reshape(-1, 1), zero

    return equal(all_pairs())


@against("hqq", method="hqq", what="codes and zero points equal; β growing, in its other optimizer")
def growing_beta() -> Tally:
    from hqq.core.optimize import optimize_weights_proximal_v2

    def all_pairs() -> Iterator[tuple[Array, Array]]:
        g = torch.Generator().manual_seed(3)
        w = torch.randn(32, 256, generator=g)
        x = w.reshape(-1, 64)
        for kappa in (1.01, 1.5):
            for bits in (2, 3):
                lo, hi = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
                inverse = (2**bits - 1) / (hi - lo)
                # it computes in float32 here, and without its early stop takes every step
                codes, _, zero = optimize_weights_proximal_v2(
                    x, inverse, -lo * inverse, [0, 2**bits - 1], axis=1, device="cpu",
                    opt_params={"lp_norm": 0.7, "beta": 10.0, "kappa": kappa, "iters": 6,
                                "tol": 0.0, "early_stop": False, "scale_gridsearch": False},
                )  # fmt: skip
                ours = qviz.quantize(w, "hqq", bits=bits, kappa=kappa, iters=6, scale_dtype=None)
                assert len(ours.info["errors"]) == 6, "stopped early, so not comparable"
                yield ours.codes.reshape(codes.shape), codes
                yield ours.grid.zero_point.reshape(-1, 1), zero

    return equal(all_pairs())
