"""Metrics: how far a reconstruction is from the weight, and what that does to the layer's output.

All sums run in float64, so that a figure on screen does not depend on the order of summation.
W [out, in] the weight, Ŵ its reconstruction, X [tokens, in] the layer's inputs.
"""

import math
from dataclasses import dataclass

import torch

from qviz.core.calibration import Calibration
from qviz.core.tensor import QuantizedTensor


def _pair(weight: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if weight.shape != other.shape:
        raise ValueError(
            f"the two matrices differ in shape: {tuple(weight.shape)} and {tuple(other.shape)}"
        )
    return weight.detach().double(), other.detach().double()


def mse(weight: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """Mean squared error, in the weight's units squared."""
    w, r = _pair(weight, reconstruction)
    return float((w - r).square().mean())


def sqnr_db(weight: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """Signal to quantization noise, 10·log10(ΣW² / Σ(W − Ŵ)²) in dB; inf for no error at all."""
    w, r = _pair(weight, reconstruction)
    noise = float((w - r).square().sum())
    signal = float(w.square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def max_error(weight: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """The largest |W − Ŵ|."""
    w, r = _pair(weight, reconstruction)
    return float((w - r).abs().max())


def relative_error(weight: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """‖W − Ŵ‖ / ‖W‖ in the Frobenius norm; 0 when both are zero, inf when only W is."""
    w, r = _pair(weight, reconstruction)
    return _ratio(float((w - r).norm()), float(w.norm()))


def output_error(
    weight: torch.Tensor, reconstruction: torch.Tensor, calibration: Calibration
) -> float:
    """‖X·(W − Ŵ)ᵀ‖ / ‖X·Wᵀ‖ over all calibration tokens.

    Needs only the Hessian H ∝ XᵀX, since ‖X·Dᵀ‖² = tr(D·XᵀX·Dᵀ): it counts every token that was
    captured, not a sample of them.
    """
    w, r = _pair(weight, reconstruction)
    if calibration.in_features != w.shape[1]:
        raise ValueError(
            f"the calibration has {calibration.in_features} input channels"
            f"{f' ({calibration.layer})' if calibration.layer else ''}, the weight {w.shape[1]}: "
            f"was it captured for another layer?"
        )
    return _ratio(math.sqrt(_energy(w - r, calibration)), math.sqrt(_energy(w, calibration)))


def _energy(d: torch.Tensor, calibration: Calibration) -> float:
    """tr(D·H·Dᵀ); clamped, because rounding can push the trace of a zero product below zero."""
    h = calibration.hessian.to(d.device).double()
    return max(float(torch.einsum("oi,oi->", d @ h, d)), 0.0)


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


@dataclass(frozen=True)
class ErrorSplit:
    """Mean squared error by cause. The two add up to the whole, there is no cross term:
    a clipped weight sits exactly on the end of the range, so it has no rounding error."""

    rounding: float
    clipping: float
    clipped: int

    @property
    def total(self) -> float:
        return self.rounding + self.clipping


def error_split(weight: torch.Tensor, quantized: QuantizedTensor) -> ErrorSplit:
    """Split the squared error into rounding (inside the representable range) and clipping
    (what lies beyond its ends), and count the clipped weights."""
    w, r = _pair(weight, quantized.dequantize())
    groups = quantized.granularity.split(w)
    low, high = (end.double().unsqueeze(-1) for end in quantized.grid.extremes())
    inside = torch.minimum(torch.maximum(groups, low), high)
    beyond = groups - inside
    rounding = inside - quantized.granularity.split(r)
    return ErrorSplit(
        rounding=float(rounding.square().mean()),
        clipping=float(beyond.square().mean()),
        clipped=int((beyond != 0).sum()),
    )
