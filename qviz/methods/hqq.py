"""HQQ: half-quadratic quantization, which moves the zero points until the error is sparse.

Rounding to nearest on asymmetric groups is the start; then, without any data, every group's zero
point is fitted to a residual that may have a few large entries (an ℓp norm with p < 1 forgives
them), in closed form and for all groups at once. Codes follow the zero points; the scales stay as
they were.

Paper: Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"; the rule
is that of hqq core/optimize.py:optimize_weights_proximal_legacy on CPU in float32.

Symbols: W weights in groups, N = 2^b − 1, s scale, z zero point (real-valued), q codes, W_r the
reconstruction, d = W − W_r, e the part of d that counts as outliers and is not fitted, p the norm,
β the weight of the coupling. x̂ = (q − z)·s.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from qviz.core.check import as_matrix, require_bits, require_int, require_number
from qviz.core.granularity import Granularity
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.affine import CONVENTIONS, Fit, require_levels, store
from qviz.methods.registry import Method

BITS = (1, 2, 3, 4, 5, 6, 8)
# One iteration makes a dozen passes over the weights. In blocks of this many they stay in the
# processor's cache, which makes it three times as fast; no result depends on it.
BLOCK = 2**16

EVENTS = (
    EventSpec(
        "hqq.start",
        {"scale": "[rows, groups] s, final", "zero": "[rows, groups] z to start from"},
        "s = (max − min) / N, z = −min / s, rounded for 4 bits",
        "hqq core/quantize.py:Quantizer.quantize",
    ),
    EventSpec(
        "hqq.step",
        {
            "codes": "[rows, columns] q with the zero points so far",
            "reconstruction": "[rows, columns] W_r = (q − z)·s",
            "e": "[rows, columns] the outliers of the residual d = W − W_r",
            "zero": "[rows, groups] the new z",
            "error": "[] mean |d| over the whole weight, before z was moved",
        },
        "e = sign(d)·max(|d| − |d|^(p−1) / β, 0); z ← mean over the group of q − (W − e) / s",
        "Badri & Shaji 2023, sub-problems 1 and 2; optimize_weights_proximal_legacy_step",
    ),
    EventSpec(
        "hqq.codes",
        {"codes": "[rows, columns] integer codes", "zero": "[rows, groups] z as it is stored"},
        "q = clamp(RNE(W / s + z), 0, N) with the last z",
        "hqq core/optimize.py:optimize_weights_proximal_legacy",
    ),
)


def hqq(
    weight: torch.Tensor | np.ndarray,
    *,
    bits: int = 4,
    group_size: int | None = 64,
    iters: int = 20,
    lp_norm: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.0,
    round_zero: bool | None = None,
    scale_dtype: torch.dtype | None = torch.float16,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Quantize by moving zero points until the mean absolute error stops falling.

    weight       [out, in]; float32, bfloat16, float16 (computed in float32) or float64
    bits         1, 2, 3, 4, 5, 6 or 8
    group_size   consecutive weights that share s and z; None or −1: a row. One that divides the
                 weight but not its rows gives groups that straddle rows, as in hqq
    iters        the maximum number of steps; 0 leaves the start as it is (optimize=False in hqq)
    lp_norm      p, above 0 and at most 1: how little large residuals count
    beta, kappa  β, and its factor after each step
    round_zero   round the z to start from; None: for 4 bits only
    scale_dtype  dtype in which s and z are stored and x̂ is computed, once the codes are found
                 (compute_dtype of hqq); None: the dtype of the search

    Returns codes [out, in] uint8 on an Affine grid with real-valued zero points. `info` has the
    error before each step that ran, how many residuals the last step treated as outliers, and the
    groups whose scale hit a limit: flat ones (a range of at most 1e-4 gets s = 1) and capped ones
    (no s is below 1/2e4).
    Raises ValueError for NaN or Inf, a group size that does not divide the weight, options out of
    range, and scales or levels that `scale_dtype` cannot hold.

    >>> q = hqq(torch.randn(8, 256), bits=4, group_size=64)
    >>> q.dequantize().dtype, q.bits_per_weight
    (torch.float16, 4.5)
    """
    weight = as_matrix(weight)
    _require_options(bits, iters, lp_norm, beta, kappa)
    shape = (weight.shape[0], weight.shape[1])
    unit = _unit(weight, group_size)
    compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
    groups = unit.split(weight).to(compute)  # [rows, groups, group_size]
    at = groups.shape[:2]
    x = groups.reshape(-1, groups.shape[-1])  # [all groups, group_size]

    lo, hi = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # [all groups, 1]
    fit, inverse, zero = _start(lo, hi, bits, round_zero)
    if emit is not None:
        emit("hqq.start", scale=fit.scale.reshape(at), zero=zero.reshape(at))

    def show(work: torch.Tensor, zero: torch.Tensor, error: torch.Tensor) -> None:
        if emit is not None:
            codes, back, _, e = (unit.join(part, shape) for part in work)
            zero = zero.reshape(at)
            emit("hqq.step", codes=codes, reconstruction=back, e=e, zero=zero, error=error)

    zero, errors, outliers = _optimize(
        x, inverse, zero, fit.qmax, show, iters=iters, lp_norm=lp_norm, beta=beta, kappa=kappa
    )

    codes = (x * inverse).add_(zero).round_().clamp_(0, fit.qmax)
    codes = unit.join(codes, shape).to(torch.uint8)
    final = replace(fit, scale=fit.scale.reshape(at), zero=zero.reshape(at))
    levels = store(final, bits, scale_dtype or compute, scale_dtype, "hqq")
    require_levels(levels, "hqq")
    grid = levels.grid
    if emit is not None:
        assert grid.zero_point is not None
        emit("hqq.codes", codes=codes, zero=grid.zero_point)
    info = {
        "method": "hqq",
        "device": str(weight.device),
        "compute": str(compute).removeprefix("torch."),
        "errors": torch.stack(errors).tolist() if errors else [],
        "outliers": outliers,
        "flat_groups": int(torch.count_nonzero(hi - lo <= 1e-4)),
        "capped_groups": int(torch.count_nonzero(inverse == 2e4)),
    }
    return QuantizedTensor(codes, grid, unit, shape, info=info)


def _require_options(bits: int, iters: int, lp_norm: float, beta: float, kappa: float) -> None:
    require_bits(bits, BITS)
    require_int(iters, "iters", 0, 10_000)
    # p − 1 below −1, or a β that shrinks, would make the step grow without bound.
    if not 0 < require_number(lp_norm, "lp_norm") <= 1:
        raise ValueError(f"lp_norm must be above 0 and at most 1, got {lp_norm!r}")
    if not 0 < require_number(beta, "beta") < math.inf:
        raise ValueError(f"beta must be positive and finite, got {beta!r}")
    if not 1 <= require_number(kappa, "kappa") < math.inf:
        raise ValueError(f"kappa must be at least 1 and finite, got {kappa!r}")


def _unit(weight: torch.Tensor, group_size: int | None) -> Granularity:
    """Groups along the rows; along the flattened weight if only that can be divided."""
    unit = Granularity("group", group_size)
    size = unit.group_size
    if size is None or weight.shape[1] % size == 0 or weight.numel() % size:
        return unit
    return Granularity("flat", size)


def _start(
    lo: torch.Tensor, hi: torch.Tensor, bits: int, round_zero: bool | None
) -> tuple[Fit, torch.Tensor, torch.Tensor]:
    """Scales, 1/s and the first z of groups that reach from lo to hi, each shaped like lo."""
    rule = CONVENTIONS["hqq"].asymmetric
    assert rule is not None
    fit = rule(lo, hi, bits)
    inverse, zero = fit.inverse, fit.zero
    assert inverse is not None and zero is not None
    if round_zero is not None:  # otherwise the convention has done what its default is
        zero = -lo * inverse
        zero = torch.round(zero) if round_zero else zero
    return fit, inverse, zero


def _optimize(
    x: torch.Tensor,
    inverse: torch.Tensor,
    zero: torch.Tensor,
    top: int,
    show: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None],
    *,
    iters: int,
    lp_norm: float,
    beta: float,
    kappa: float,
) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """The last z [all groups, 1], the error before each step, the outliers of the last step."""
    if iters == 0:
        return zero, [], 0
    work = x.new_empty((4, *x.shape))  # q, W_r, |d| and e of the last step
    rows = max(1, BLOCK // x.shape[1]) if x.device.type == "cpu" else len(x)
    best, errors = torch.full((), math.inf, device=x.device), []
    for _ in range(iters):
        moved = torch.empty_like(zero)
        for i in range(0, len(x), rows):
            part = slice(i, i + rows)
            moved[part] = _step(
                x[part], inverse[part], zero[part], top, work[:, part], lp_norm, beta
            )
        zero = moved
        error = work[2].mean()
        errors.append(error)
        show(work, zero, error)
        # Whether to go on depends on a number, so this waits for the device, once in a step. The
        # test comes after z was moved: a step that did not help still leaves its z behind.
        if not error < best:
            break
        best, beta = error, beta * kappa
    return zero, errors, int(torch.count_nonzero(work[3]))


def _step(
    x: torch.Tensor,
    inverse: torch.Tensor,
    zero: torch.Tensor,
    top: int,
    work: torch.Tensor,
    lp_norm: float,
    beta: float,
) -> torch.Tensor:
    """The new z [groups, 1] of some groups; fills work with q, W_r, |d| and e."""
    codes, back, gap, e = work  # each [groups, group_size]
    torch.mul(x, inverse, out=codes).add_(zero).round_().clamp_(0, top)
    torch.sub(codes, zero, out=back).div_(inverse)  # not times s: 1 / (1/s) is not s to the bit
    d = x - back
    torch.abs(d, out=gap)
    # Shrinking: a residual below β^(−1/(2−p)), 0.17 by default, is no outlier. The weights of a
    # usual trained layer leave none above, and z becomes what makes the group's mean error 0.
    # Where d = 0 the power is infinite, and the clamp ends it.
    torch.pow(gap, lp_norm - 1, out=e).mul_(1.0 / beta)
    torch.sub(gap, e, out=e).clamp_(min=0)
    torch.copysign(e, d, out=e)
    fitted = torch.sub(x, e, out=d).mul_(inverse)
    return torch.sub(codes, fitted, out=fitted).mean(dim=1, keepdim=True)


METHOD = Method(
    name="hqq",
    kind="weight",
    function=hqq,
    needs=frozenset(),
    title="Zero points moved until the error is sparse (half-quadratic)",
    source="Badri & Shaji 2023; hqq 0.2.8 core/quantize.py, core/optimize.py",
    events=EVENTS,
    bits=BITS,
    origins={
        "bits": "hqq BaseQuantizeConfig",
        "group_size": "hqq BaseQuantizeConfig",
        "iters": "hqq",
        "lp_norm": "hqq",
        "beta": "hqq",
        "kappa": "hqq: its 1.01 is not applied by the optimizer it uses",
        "round_zero": "hqq BaseQuantizeConfig",
        "scale_dtype": "hqq HQQLinear (compute_dtype)",
    },
)
