"""Quantization-aware training: the weight is rounded in every forward pass while it is trained.

Rounding has a derivative of zero almost everywhere, so the backward pass uses the derivative of the
clamp alone: the straight-through estimator. The step size, the spacing of the levels, can be
trained as well, by the gradient of learned step size quantization (LSQ). A float32 master weight is
trained; after training, only its codes and step sizes remain.

Symbols: w master weights of one group, s step size (the scale), v = w/s the position in step sizes,
q codes,
l = q + shift the level that a code means, ŵ = s·l, g the gradient that arrives at ŵ, N how many
weights share a step size. Straight-through: Bengio et al. 2013 (arXiv 1308.3432). Learned step
sizes: Esser
et al. 2020 (arXiv 1902.08153). Levels between the integers for 2 bits: Liu et al. 2025 (ParetoQ,
arXiv 2502.02631).
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from qviz.core.check import FLOAT_DTYPES, as_matrix, require_bits, require_finite, unknown
from qviz.core.divide import divide
from qviz.core.granularity import Granularity
from qviz.core.grids import Affine, Codebook
from qviz.core.ledger import Stream
from qviz.core.linear import TrainableLinear
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.registry import Method

# Where the levels are, in step sizes: on the integers −2^(b−1) … 2^(b−1)−1, of which 0 is one and
# the
# negative side has one more, or half a step size above them, symmetric and without a 0.
SHIFTS = {"integer": 0.0, "half": 0.5}
BITS = range(2, 9)
INITS = ("mse", "absmax", "lsq")
DIVERGED = "Training has diverged: start again with a smaller learning rate"
CANDIDATES = 64  # step sizes that init="mse" tries for each group

EVENTS = (
    EventSpec(
        "qat.step",
        {"step": "[rows, groups] the step sizes that training starts from"},
        "s = argmin Σ(w − ŵ)², or max|w| / (qmax + ½ + shift), or 2·mean|w| / √(qmax + shift)",
        "init=: search, affine's symmetric range, Esser et al. 2020 section 2.1",
    ),
    EventSpec(
        "qat.codes",
        {
            "position": "[rows, groups, group_size] v, where each weight falls, in step sizes",
            "codes": "[rows, groups, group_size] q, as floats",
        },
        "v = w / s, q = clamp(RNE(v − shift), qmin, qmax)",
        "Esser et al. 2020, equation 1",
    ),
    EventSpec(
        "qat.weight",
        {"weight": "[rows, groups, group_size] ŵ, which the layer multiplies with"},
        "ŵ = s·(q + shift)",
        "Esser et al. 2020, equation 2",
    ),
    EventSpec(
        "qat.gradient",
        {
            "upstream": "[rows, groups, group_size] g = ∂L/∂ŵ",
            "inside": "[rows, groups, group_size] bool: v lies strictly inside the range",
            "weight": "[rows, groups, group_size] ∂L/∂w by the straight-through rule",
            "step": "[rows, groups, 1] ∂L/∂s, times the gradient scale",
        },
        "∂ŵ/∂w = 1 inside, 0 outside; ∂ŵ/∂s = l − v inside, l outside; scale 1/√(N·(qmax + shift))",
        "Bengio et al. 2013; Esser et al. 2020, equations 3 and 5, section 2.2",
    ),
)


def fake_quantize_ste(
    x: torch.Tensor,
    scale: torch.Tensor,
    qmin: int,
    qmax: int,
    *,
    shift: float = 0.0,
    grad_scale: float = 1.0,
    emit: Emit | None = None,
) -> torch.Tensor:
    """Round x to the levels scale·(q + shift), q from qmin to qmax; differentiable by convention.

    x      floating, any shape; scale positive, broadcasts to x
    Backward, x gets the gradient where x/scale lies strictly between qmin and qmax + 2·shift (with
    a shift the outermost cells are as wide as the others, so the range ends where they end), and 0
    elsewhere. If scale requires a gradient it gets LSQ's, times `grad_scale`.
    Returns the reconstruction, x's shape, in the dtype that x and scale have in common.

    >>> x = torch.tensor([-3.0, 0.2, 0.8], requires_grad=True)
    >>> fake_quantize_ste(x, torch.tensor(1.0), -2, 1).sum().backward()
    >>> x.grad
    tensor([0., 1., 1.])
    """
    y: torch.Tensor = _FakeQuantize.apply(x, scale, qmin, qmax, shift, grad_scale, emit)  # type: ignore[no-untyped-call]
    return y


class _FakeQuantize(torch.autograd.Function):
    """The two directions of fake quantization; the backward pass is not the derivative of the
    forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        qmin: int,
        qmax: int,
        shift: float,
        grad_scale: float,
        emit: Emit | None,
    ) -> torch.Tensor:
        position = x / scale
        codes = _codes(position, qmin, qmax, shift)
        if emit is not None:
            emit("qat.codes", position=position, codes=codes)
        level = codes + shift
        ctx.save_for_backward(position, level, scale)
        ctx.settings = (qmin, qmax + 2 * shift, grad_scale, emit)
        weight = level * scale
        if emit is not None:
            emit("qat.weight", weight=weight)
        return weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        position, level, scale = ctx.saved_tensors
        low, high, grad_scale, emit = ctx.settings
        (upstream,) = gradients
        # Strictly inside: at the ends the paper counts a weight as clipped.
        inside = (position > low) & (position < high)
        weight = upstream * inside
        step = None
        if ctx.needs_input_grad[1]:
            # Inside, the surrogate is w plus a rounding residue of (l − v)·s that is held fixed in
            # units of s; outside, only s moves the level that the weight is clipped to.
            slope = torch.where(inside, level - position, level)
            step = (upstream * slope).sum_to_size(scale.shape) * grad_scale
        if emit is not None:
            shown = torch.zeros_like(scale) if step is None else step
            emit("qat.gradient", upstream=upstream, inside=inside, weight=weight, step=shown)
        return weight, step, None, None, None, None, None


def _codes(position: torch.Tensor, qmin: int, qmax: int, shift: float) -> torch.Tensor:
    """q of positions in step sizes, as floats: half to even, clamped."""
    return torch.round(position - shift).clamp(qmin, qmax)


class _Stored(torch.autograd.Function):
    """The step size as stored: positive and rounded to its dtype. The gradient passes straight
    through, so a step size that training drove below zero can come back."""

    @staticmethod
    def forward(ctx: Any, step: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # Of both dtypes: a 0 that the narrower leaves 0 would give the position 0 / 0.
        least = max(torch.finfo(d).smallest_normal for d in (dtype, step.dtype))
        return step.clamp(min=least).to(dtype).to(step.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


class QatLinear(TrainableLinear):
    """A linear layer that trains through its own rounding: y = x·ŵᵀ (+ bias). Made by `qat`.

    weight  [out, in] parameter: the master weight, float32 or float64
    step    [rows, groups] step sizes; a parameter if learned, otherwise a buffer
    """

    weight: nn.Parameter
    step: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        step: torch.Tensor,
        *,
        bits: int,
        granularity: Granularity,
        levels: str,
        learned: bool,
        scale_dtype: torch.dtype,
        dtype: torch.dtype,
        info: dict[str, Any],
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        if learned:
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)
        self.bits, self.granularity, self.levels = bits, granularity, levels
        self.scale_dtype, self.dtype, self.info = scale_dtype, dtype, info

    @property
    def qmin(self) -> int:
        return int(-(2 ** (self.bits - 1)))

    @property
    def qmax(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.weight.shape[0], self.weight.shape[1])

    def fake_quantized(self, *, emit: Emit | None = None) -> torch.Tensor:
        """ŵ [out, in], through which gradients reach the master weight and the step size."""
        x = self.granularity.split(self.weight)  # [rows, groups, group_size]
        shift = SHIFTS[self.levels]
        # Without the gradient scale, a step size shared by N weights gets N of their gradients and
        # learns √N·√qmax times faster, relative to its size, than a weight. Adam undoes the scale.
        grad_scale = 1 / math.sqrt(x.shape[-1] * (self.qmax + shift))
        scale = self._stored_step().unsqueeze(-1)
        x = fake_quantize_ste(
            x, scale, self.qmin, self.qmax, shift=shift, grad_scale=grad_scale, emit=emit
        )
        return self.granularity.join(x, self.shape)

    def forward(self, x: torch.Tensor, *, emit: Emit | None = None) -> torch.Tensor:
        """y [..., out] for x [..., in], in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.fake_quantized(emit=emit).to(x.dtype), bias)

    @torch.no_grad()
    def quantized(self) -> QuantizedTensor:
        """The present codes and step sizes; `dequantize()` is `fake_quantized()` bit for bit.

        Raises ValueError for NaN or Inf, which training may lead to and codes cannot hold.
        """
        scale, shift = self._stored_step(), SHIFTS[self.levels]
        require_finite(self.weight, "the trained weight", fix=DIVERGED)
        require_finite(scale, "the trained step size, as stored,", fix=DIVERGED)
        position = self.granularity.split(self.weight) / scale.unsqueeze(-1)
        codes = _codes(position, self.qmin, self.qmax, shift)
        stored = scale.to(self.scale_dtype)
        grid: Affine | Codebook
        if shift == 0:
            grid = Affine(stored, self.bits, self.qmin, self.qmax, scale.dtype)
        else:  # the same four, eight … values for every group, so only the step size is stored
            values = torch.arange(self.qmin, self.qmax + 1, device=scale.device) + shift
            grid = Codebook(
                values.to(scale.dtype), scale, self.bits, (Stream("scales", stored),), scale.dtype
            )
            codes = codes - self.qmin
        codes = self.granularity.join(codes, self.shape)
        codes = codes.to(torch.int8 if shift == 0 else torch.uint8)
        return QuantizedTensor(codes, grid, self.granularity, self.shape, info=self.info)

    def frozen(self) -> nn.Module:
        """An ordinary layer with the rounded weight, in the dtype of the weight given."""
        rows, columns = self.shape
        layer = nn.Linear(columns, rows, bias=self.bias is not None, device="meta")
        weight = self.quantized().dequantize().to(self.dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        return layer

    def _stored_step(self) -> torch.Tensor:
        stored: torch.Tensor = _Stored.apply(self.step, self.scale_dtype)  # type: ignore[no-untyped-call]
        return stored

    def extra_repr(self) -> str:
        learned = "learned" if isinstance(self.step, nn.Parameter) else "fixed"
        rows, columns = self.shape
        return f"{columns} → {rows}, {self.bits} bits, {self.granularity}, {learned} {self.levels}"


def qat(
    weight: torch.Tensor | np.ndarray,
    *,
    bits: int = 3,
    group_size: int | None = 128,
    step: str = "learned",
    levels: str = "auto",
    init: str = "mse",
    scale_dtype: torch.dtype | None = None,
    emit: Emit | None = None,
) -> QatLinear:
    """A trainable layer whose weight is rounded to b bits whenever it is used.

    weight       [out, in]; float32 or float64 is trained in its own precision, bfloat16 and float16
                 in float32, because their own spacing is larger than most updates
    bits         2 to 8
    group_size   inputs that share a step size; None or −1: the whole row
    step         "learned" (LSQ) or "fixed" (straight-through estimator alone)
    levels       "integer": −2^(b−1) … 2^(b−1)−1 step sizes; "half": half a step size above them;
                 "auto":
                 half for 2 bits, where one of four levels on 0 and one only on the negative side
                 would leave two for most weights, integer for more
    init         "mse": of 64 step sizes up to absmax's, the one with the smallest squared error;
                 "absmax": the largest weight on the end of the outermost cell, as in symmetric
                 rounding to nearest; "lsq": the paper's 2·mean|w|/√qmax
    scale_dtype  dtype in which step sizes are stored; the forward pass uses the stored value. None:
                 the precision that is trained in

    Returns a QatLinear; `.quantized()` gives its codes. `info` counts all-zero groups. Raises
    ValueError for NaN or Inf, a group size that does not divide the row, and step sizes that
    scale_dtype cannot hold.

    >>> layer = qat(torch.randn(8, 256), bits=2)
    >>> layer(torch.randn(4, 256)).shape, layer.quantized().bits_per_weight
    (torch.Size([4, 8]), 2.25)
    """
    weight = as_matrix(weight)
    require_bits(bits, BITS)
    for name, value, known in (("step", step, ("learned", "fixed")), ("init", init, INITS)):
        if value not in known:
            raise ValueError(unknown(name, value, known))
    if levels == "auto":
        levels = "half" if bits == 2 else "integer"
    if levels not in tuple(SHIFTS):
        raise ValueError(unknown("levels", levels, [*SHIFTS, "auto"]))
    if scale_dtype is not None and scale_dtype not in FLOAT_DTYPES:
        names = ", ".join(map(str, FLOAT_DTYPES))
        raise TypeError(f"scale_dtype must be None or one of {names}; got {scale_dtype!r}")
    precision = weight.dtype if weight.dtype == torch.float64 else torch.float32
    master = weight.to(precision, copy=True)
    unit = Granularity.of("group", group_size)

    start = _initial_step(unit.split(master), bits, SHIFTS[levels], init)  # [rows, groups]
    if emit is not None:
        emit("qat.step", step=start)
    stored = scale_dtype or precision
    _require_storable(start, stored)
    info = {
        "method": "qat",
        "levels": levels,
        "step": step,
        "init": init,
        "device": str(weight.device),
        "compute": str(precision).removeprefix("torch."),
        "zero_groups": int(torch.count_nonzero(start == 0)),
    }
    return QatLinear(
        master,
        start,
        bits=bits,
        granularity=unit,
        levels=levels,
        learned=step == "learned",
        scale_dtype=stored,
        dtype=weight.dtype,
        info=info,
    )


def _initial_step(x: torch.Tensor, bits: int, shift: float, init: str) -> torch.Tensor:
    """[rows, groups] for weights [rows, groups, group_size]; 0 where all of them are 0."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if init == "lsq":
        return divide(2 * x.abs().mean(-1), math.sqrt(qmax + shift))
    widest = divide(x.abs().amax(-1), qmax + 0.5 + shift)  # the outermost cell ends at the largest
    if init == "absmax":
        return widest
    best, least = widest, torch.full_like(widest, torch.inf)
    for k in range(CANDIDATES, 0, -1):
        step = (widest * (k / CANDIDATES)).clamp(min=torch.finfo(x.dtype).smallest_normal)
        scale = step.unsqueeze(-1)
        # In step sizes, not in weights: the squares of tiny weights would underflow to 0.
        position = x / scale
        error = (_codes(position, qmin, qmax, shift) + shift - position).square_().sum(-1)
        error = error * (k / CANDIDATES) ** 2  # back to one unit for all candidates
        better = error < least
        best, least = torch.where(better, step, best), torch.where(better, error, least)
    return torch.where(widest == 0, widest, best)


def _require_storable(step: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError if a step size is too large for its dtype or, unless it is 0, too small."""
    limits = torch.finfo(dtype)
    bad = (step > limits.max) | step.isinf()
    if dtype != step.dtype:  # in its own, a step may be as small as the weights are
        bad |= (step < limits.smallest_normal) & (step > 0)
    if bad.any():
        row, group = bad.nonzero()[0].tolist()
        raise ValueError(
            f"the step size of group [{row}, {group}] is {float(step[row, group]):.3g}, which "
            f"{str(dtype).removeprefix('torch.')} cannot hold at full precision; omit "
            "scale_dtype, or rescale the weight"
        )


METHOD = Method(
    name="qat",
    kind="training",
    function=qat,
    needs=frozenset(),
    title="Quantization-aware training: straight-through estimator, learned step sizes",
    source=(
        "Bengio et al. 2013 (arXiv 1308.3432); Esser et al. 2020 (LSQ, arXiv 1902.08153); levels "
        "at 2 bits: Liu et al. 2025 (ParetoQ, arXiv 2502.02631)"
    ),
    events=EVENTS,
    bits=BITS,
    choices={"step": ("learned", "fixed"), "levels": (*SHIFTS, "auto"), "init": INITS},
    origins={
        "bits": "qviz: where training starts to matter",
        "group_size": "GPTQ, AWQ, llm-compressor W4A16; LSQ has one step size for each layer",
        "step": "LSQ",
        "levels": "ParetoQ: shifted at 2 bits, integers at 3 and 4",
        "init": "qviz: the nearest start; LSQ's is its formula, ParetoQ's absmax for 2 bits",
        "scale_dtype": "qviz: the precision that is trained in",
    },
)
