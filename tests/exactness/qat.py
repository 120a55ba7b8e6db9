"""Fake quantization and its gradients against torch's own operators and float64 differences."""

import math

import torch
from inputs import adversarial

import qviz
from exactness import Tally, against, equal
from qviz.methods.qat import fake_quantize_ste

BITS = (2, 3, 4, 8)


def _weights() -> list[torch.Tensor]:
    """[rows, 256]: a trained layer, random ones, and what breaks quantizers."""
    trained = qviz.load_layer(None, "model.layers.0.mlp.up_proj")[:96].float()
    g = torch.Generator().manual_seed(11)
    random = torch.randn(64, 256, generator=g)
    odd = [w for name, w in adversarial(256).items() if name not in ("subnormal", "tiny", "large")]
    return [trained, random, *odd]


def _scales(w: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, 1], powers of two: dividing by one and multiplying by its inverse are the same."""
    wanted = w.abs().amax(-1, keepdim=True).clamp(min=1e-3) / 2 ** (bits - 1) * 0.7
    return torch.exp2(torch.log2(wanted).round())


def _leaf(x: torch.Tensor) -> torch.Tensor:
    return x.clone().requires_grad_()


@against(
    "torch",
    method="qat",
    what="reconstruction (fake_quantize_per_channel_affine) and straight-through gradient, bits",
)
def values_and_straight_through() -> Tally:
    pairs = []
    for w in _weights():
        for bits in BITS:
            qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            scale = _scales(w, bits)
            upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(bits))
            ours, theirs = _leaf(w), _leaf(w)
            a = fake_quantize_ste(ours, scale, qmin, qmax)
            zeros = torch.zeros(len(w), dtype=torch.int32)
            b = torch.fake_quantize_per_channel_affine(theirs, scale[:, 0], zeros, 0, qmin, qmax)
            a.backward(upstream)
            b.backward(upstream)
            agreed = _agreed(w / scale, qmin, qmax)
            pairs += [(a.detach(), b.detach()), (ours.grad[agreed], theirs.grad[agreed])]
    return equal(pairs, "gradients without the half step beyond each end, see below")


@against(
    "torch",
    method="qat",
    what="gradient of learned steps (_fake_quantize_learnable_per_channel_affine), 1e-5 relative",
)
def learned_steps() -> Tally:
    """torch sums in another order, so the sums agree to rounding and no further."""
    compared = mismatches = inputs = 0
    for w in _weights():
        for bits in BITS:
            qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            scale = _scales(w, bits)
            # torch counts a weight up to half a step size past the ends as inside, the paper not
            w = torch.where(_agreed(w / scale, qmin, qmax), w, 0.0)
            upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(bits))
            factor = 1 / math.sqrt(w.shape[1] * qmax)
            ours, theirs = _leaf(scale), _leaf(scale[:, 0])
            fake_quantize_ste(w, ours, qmin, qmax, grad_scale=factor).backward(upstream)
            zeros = torch.zeros(len(w))
            torch._fake_quantize_learnable_per_channel_affine(
                w, theirs, zeros, 0, qmin, qmax, factor
            ).backward(upstream)
            size = factor * upstream.abs().sum(-1)  # what a sum of such terms can round by
            mismatches += int(((ours.grad[:, 0] - theirs.grad).abs() > 1e-5 * size).sum())
            compared += len(w)
            inputs += 1
    return Tally(inputs, compared, mismatches, "weights clipped by less than half a step left out")


@against(
    "float64 differences",
    method="qat",
    what="gradients of weight and step against central differences of the surrogate, 1e-6 relative",
)
def surrogate() -> Tally:
    """Straight-through claims the derivative of s·(clamp(w/s) + r), r what rounding added at the
    point itself, held fixed."""
    compared = mismatches = inputs = 0
    for bits in BITS:
        for shift in (0.0, 0.5):
            qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            low, high, h = qmin, qmax + 2 * shift, 1e-6
            g = torch.Generator().manual_seed(bits)
            w = torch.randn(8, 64, generator=g, dtype=torch.float64)
            scale = 0.3 + torch.rand(8, 1, generator=g, dtype=torch.float64)
            scale = scale * 2.2 / 2**bits * 2
            upstream = torch.randn(w.shape, generator=g, dtype=torch.float64)
            ends = torch.minimum((w / scale - low).abs(), (w / scale - high).abs())
            assert float(ends.min()) > 1e-4  # no difference straddles an end of the range
            one, step = _leaf(w), _leaf(scale)
            y = fake_quantize_ste(one, step, qmin, qmax, shift=shift)
            y.backward(upstream)
            residue = y.detach() / scale - (w / scale).clamp(low, high)

            def f(w, s, low=low, high=high, residue=residue, upstream=upstream):
                return upstream * s * ((w / s).clamp(low, high) + residue)

            by_w = (f(w + h, scale) - f(w - h, scale)) / (2 * h)
            by_s = ((f(w, scale + h) - f(w, scale - h)) / (2 * h)).sum(-1, keepdim=True)
            for ours, wanted in ((one.grad, by_w), (step.grad, by_s)):
                mismatches += int(((ours - wanted).abs() > 1e-6 * (1 + wanted.abs())).sum())
                compared += wanted.numel()
            inputs += 1
    return Tally(inputs, compared, mismatches)


def _agreed(position: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    """Where torch's "the code was not clamped" and the paper's "inside the range" are the same."""
    return ((position > qmin) & (position < qmax)) | (position < qmin - 1) | (position > qmax + 1)
