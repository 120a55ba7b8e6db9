"""Metrics: how far a reconstruction is from the weight, and how much that changes the layer's
output.

All sums run in float64, so that a figure on screen does not depend on the order of summation.
W [out, in] the weight, Ŵ its reconstruction, X [tokens, in] the layer's inputs.
"""

import math
from dataclasses import dataclass

import torch

from qviz.core.calibration import Calibration, require_fit
from qviz.core.grids import ScalarGrid
from qviz.core.tensor import QuantizedTensor

RUN = 1 << 20  # values that are compared at once


@dataclass(frozen=True)
class Comparison:
    """Two matrices compared, in one pass: the sums that all error figures are made of."""

    count: int
    noise: float  # Σ(W − Ŵ)²
    signal: float  # ΣW²
    max_error: float  # the largest |W − Ŵ|

    @property
    def mse(self) -> float:
        """Mean squared error, in the weight's units squared."""
        return self.noise / self.count

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 10·log10(ΣW² / Σ(W − Ŵ)²) in dB; inf for no error."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def relative_error(self) -> float:
        """‖W − Ŵ‖ / ‖W‖ in the Frobenius norm; 0 when both are zero, inf when only W is."""
        return math.sqrt(ratio(self.noise, self.signal))


def compare(weight: torch.Tensor, reconstruction: torch.Tensor) -> Comparison:
    """Compare two matrices of one shape; ValueError when the shapes differ."""
    _require_pair(weight, reconstruction)
    noise = signal = 0.0
    peaks = []
    pairs = zip(_runs(weight), _runs(reconstruction), strict=True)
    for w, r in ((w.double(), r.double()) for w, r in pairs):
        d = w - r
        noise += float(torch.dot(d, d))
        signal += float(torch.dot(w, w))
        peaks.append(d.abs().max())
    return Comparison(weight.numel(), noise, signal, float(torch.stack(peaks).max()))


def _runs(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Its values in runs, so that float64 copies of a large one are never there as a whole."""
    return torch.split(matrix.detach().flatten(), RUN)


def _require_pair(weight: torch.Tensor, other: torch.Tensor) -> None:
    if weight.shape != other.shape:
        raise ValueError(
            f"the two matrices differ in shape: {tuple(weight.shape)} and {tuple(other.shape)}"
        )


def _pair(weight: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _require_pair(weight, other)
    return weight.detach().double(), other.detach().double()


def mse(weight: torch.Tensor, reconstruction: torch.Tensor) -> float:
    """`compare(…).mse`"""
    return compare(weight, reconstruction).mse


def output_error(
    weight: torch.Tensor,
    reconstruction: torch.Tensor,
    calibration: Calibration,
    *,
    energy: float | None = None,
) -> float:
    """‖X·(W − Ŵ)ᵀ‖ / ‖X·Wᵀ‖ over all calibration tokens.

    Needs only the Hessian H ∝ XᵀX, since ‖X·Dᵀ‖² = tr(D·XᵀX·Dᵀ): it counts every captured token,
    not a sample. Pass `energy` = `output_energy(weight, calibration)` if you already have it: it
    costs as much as the rest.
    """
    w, r = _pair(weight, reconstruction)
    whole = output_energy(w, calibration) if energy is None else energy
    return math.sqrt(ratio(output_energy(w - r, calibration), whole))


def output_energy(d: torch.Tensor, calibration: Calibration) -> float:
    """tr(D·H·Dᵀ) = 2/tokens · ‖X·Dᵀ‖² for D [out, in].

    The product runs in the Hessian's own precision, so D·H loses nothing that H still has; the sum
    runs in float64.
    """
    require_fit(calibration, d.shape[1])
    h = calibration.hessian.to(d.device)
    d = d.to(h.dtype)
    product = torch.dot((d @ h).double().flatten(), d.double().flatten())
    return max(float(product), 0.0)  # rounding can push the trace of a zero product below zero


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 for 0/0, because nothing was lost, and inf for a loss where the whole is
    0."""
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole


@dataclass(frozen=True)
class ErrorSplit:
    """Mean squared error by cause. The two add up to the total without a cross term: a clipped
    weight sits exactly on the end of the range, so it has no rounding error."""

    rounding: float
    clipping: float
    clipped: int

    @property
    def total(self) -> float:
        return self.rounding + self.clipping


def error_split(weight: torch.Tensor, quantized: QuantizedTensor) -> ErrorSplit:
    """Split the squared error into rounding (inside the representable range) and clipping (beyond
    its ends), and count the clipped weights.

    ValueError where no weight has a range of its own: vector codebooks, transformed weights.
    """
    grid = quantized.grid
    if not isinstance(grid, ScalarGrid) or quantized.transform or quantized.g_idx is not None:
        raise ValueError(
            "only groups of consecutive, untransformed weights have a range to clip at"
        )
    total = compare(weight, quantized.dequantize())
    groups = quantized.granularity.split(weight.detach())
    low, high = (end.unsqueeze(-1).expand_as(groups) for end in grid.extremes())
    beyond = [  # usually few: only these are computed in float64
        groups[outside].double() - end[outside].double()
        for outside, end in ((groups < low, low), (groups > high, high))
    ]
    clipping = sum(float(torch.dot(d, d)) for d in beyond) / total.count
    return ErrorSplit(
        rounding=max(total.mse - clipping, 0.0),  # the difference of two sums may end below zero
        clipping=clipping,
        clipped=sum(d.numel() for d in beyond),
    )
