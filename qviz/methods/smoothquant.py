"""SmoothQuant: 8-bit weights and activations, with the difficulty moved from one to the other.

A few input channels are so large that they leave hardly any of the 255 integer levels to the
others. Each input channel is divided by a factor and its weights multiplied by the same, which
changes nothing before rounding but makes both easier to round. Then weights are rounded per output
channel, activations per token, and the product is one of integers.

Xiao et al. 2022 (arXiv 2211.10438), section 4; reference code mit-han-lab/smoothquant (smooth.py,
fake_quant.py). Symbols: X [tokens, in] inputs, W [out, in] weights, Y = X·Wᵀ, a [in] max |X| of a
channel over all calibration tokens, w [in] max |W| of its weights, s [in] the factors, α how much
of the difficulty goes to the weights: s = a^α / w^(1−α).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration, wide_matrix
from qviz.core.check import require_bits, require_number
from qviz.core.grids import Affine
from qviz.core.linear import QuantizedLinear, integer_product
from qviz.core.metrics import compare
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.core.transform import InputScale, require_input_scale
from qviz.methods.affine import BITS, affine
from qviz.methods.registry import Method, Shared

ALPHAS = tuple(k / 20 for k in range(21))  # what alpha="search" tries
FLOOR = 1e-5

EVENTS = (
    EventSpec(
        "smoothquant.factors",
        {
            "activation": "[in] largest |x| of each input channel",
            "weight": "[in] largest |w| of each input channel",
            "scale": "[in] the factors",
        },
        "a = max |X|, w = max(max |W|, 1e-5), s = max(a^α / w^(1−α), 1e-5)",
        "Xiao et al. 2022, equation 4; smooth.py:smooth_ln_fcs",
    ),
    EventSpec(
        "smoothquant.candidate",
        {
            "alpha": "[] the candidate",
            "scale": "[in] its factors",
            "loss": "[] mean squared error of the output",
        },
        "loss = mean (Ŷ − X·Wᵀ)², Ŷ the quantized product; for each α = 0, 0.05 … 1",
        "Xiao et al. 2022, section 4: α by a grid search",
    ),
    EventSpec(
        "smoothquant.smoothed",
        {"weight": "[out, in] the weight as it will be rounded"},
        "W·diag(s)",
        "smooth.py:smooth_ln_fcs",
    ),
    EventSpec(
        "smoothquant.weight",
        {"codes": "[out, in] int8", "scale": "[out, 1]"},
        "scale = max(max |w|, 1e-5) / 127 of a row, q = RNE(w / scale)",
        "fake_quant.py:quantize_weight_per_channel_absmax",
    ),
    EventSpec(
        "smoothquant.inputs",
        {"inputs": "[tokens, in] the inputs as they will be rounded"},
        "X·diag(s)⁻¹",
        "Xiao et al. 2022, equation 3",
    ),
    EventSpec(
        "smoothquant.activation",
        {"codes": "[tokens, in] int8", "scale": "[tokens, 1] or [1, 1]"},
        "scale = max(max |x|, 1e-5) / 127 of a token (or of all), q = RNE(x / scale)",
        "fake_quant.py:quantize_activation_per_token_absmax",
    ),
    EventSpec(
        "smoothquant.product",
        {"product": "[tokens, out] int32"},
        "Σ q_x·q_w, exact",
        "Xiao et al. 2022, equation 2",
    ),
    EventSpec(
        "smoothquant.output",
        {"output": "[tokens, out] the layer's output"},
        "product · scale_x · scale_w",
        "Xiao et al. 2022, equation 2",
    ),
)


@dataclass(frozen=True, repr=False)
class SmoothLinear(QuantizedLinear):
    """An 8-bit layer Y = X·Wᵀ. Calling it takes the original inputs X.

    weight       codes [out, in] of W·diag(s), with `transform` InputScale(s), or None where the
                 division of the inputs was folded into the layer before
    act_bits     of the activations' codes
    activations  what shares their scale: "token" or "tensor"
    """

    weight: QuantizedTensor
    act_bits: int = 8
    activations: str = "token"

    def __call__(self, x: torch.Tensor, *, emit: Emit | None = None) -> torch.Tensor:
        """Y [..., out] in the dtype of x [..., in], without bias."""
        grid, transform = self.weight.grid, self.weight.transform
        assert isinstance(grid, Affine)
        flat = self.flatten(x).to(grid.compute)  # [tokens, in]
        if isinstance(transform, InputScale):
            flat = flat / transform.scale.to(flat.dtype)
        if emit is not None:
            emit("smoothquant.inputs", inputs=flat)

        q = affine(flat, bits=self.act_bits, granularity=self.activations, convention="absmax")
        assert isinstance(q.grid, Affine)
        if emit is not None:
            emit("smoothquant.activation", codes=q.codes, scale=q.grid.scale)

        product = integer_product(q.codes, self.weight.codes)  # [tokens, out]
        if emit is not None:
            emit("smoothquant.product", product=product)

        y = product.to(grid.compute) * q.grid.scale * grid.scale.T
        if emit is not None:
            emit("smoothquant.output", output=y)
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)


def smoothquant(
    weight: torch.Tensor | np.ndarray,
    calibration: Calibration,
    *,
    alpha: float | str | None = 0.5,
    bits: int = 8,
    act_bits: int = 8,
    activations: str = "token",
    transform: InputScale | None = None,
    emit: Emit | None = None,
) -> SmoothLinear:
    """A layer that quantizes its weights once and its activations as they come.

    weight       [out, in]; half precision is worked on in float32
    alpha        0 to 1; "search": that of `ALPHAS` with the smallest output error on the
                 calibration's sample of inputs; None: no smoothing
    bits         of the weights, 2 to 8, one scale for each output channel
    act_bits     of the activations, 2 to 8
    activations  "token": a scale for each token; "tensor": one for all tokens of a call
    transform    factors to use instead of alpha's: those that all linears of one input share

    Returns a SmoothLinear. Raises ValueError for weights or inputs that are not finite and for a
    calibration of another layer.

    >>> layer = "model.layers.0.mlp.up_proj"
    >>> calibration = qviz.load_calibration(None, layer)
    >>> linear = smoothquant(qviz.load_layer(None, layer), calibration)
    >>> linear(calibration.inputs).shape
    """
    w = wide_matrix(weight, calibration)
    require_bits(bits, BITS)
    require_bits(act_bits, BITS, "act_bits")
    if activations not in ("token", "tensor"):
        raise ValueError(f'activations must be "token" or "tensor", got {activations!r}')
    if transform is not None:
        require_input_scale(transform)
    chosen: float | None = None
    if transform is None and alpha is not None:
        quantized: dict[str, Any] = {"bits": bits, "act_bits": act_bits, "activations": activations}
        chosen, scale = search([w], calibration, alpha=alpha, **quantized, emit=emit)
        transform = InputScale(scale)
    linear = _linear(w, transform, bits, act_bits, activations, emit)
    info = {
        **linear.weight.info,
        "method": "smoothquant",
        "alpha": chosen,
        "act_bits": act_bits,
        "activations": activations,
    }
    return replace(linear, weight=replace(linear.weight, info=info))


def search(
    weights: Sequence[torch.Tensor | np.ndarray],
    calibration: Calibration,
    *,
    alpha: float | str = 0.5,
    bits: int = 8,
    act_bits: int = 8,
    activations: str = "token",
    emit: Emit | None = None,
) -> tuple[float, torch.Tensor]:
    """α and the factors s [in] for all linears of one input; α is searched where it says "search".

    >>> search([query, key, value], calibration, alpha="search")
    """
    ws = [wide_matrix(weight, calibration) for weight in weights]
    if not ws:
        raise ValueError("there is no weight to find factors for; give at least one")
    if alpha == "search":
        alpha = _best_alpha(ws, calibration, bits, act_bits, activations, emit)
    if isinstance(alpha, str) or not 0 <= (alpha := require_number(alpha, "alpha")) <= 1:
        raise ValueError(f'alpha must be from 0 to 1, "search" or None, got {alpha!r}')
    activation = calibration.act_absmax.to(ws[0])
    largest = weight_absmax(ws)
    scale = factors(activation, largest, alpha)
    if emit is not None:
        emit("smoothquant.factors", activation=activation, weight=largest, scale=scale)
    return alpha, scale


def factors(act_absmax: torch.Tensor, weight_absmax: torch.Tensor, alpha: float) -> torch.Tensor:
    """s [in] = max(a^α / w^(1−α), 1e-5).

    >>> factors(torch.tensor([64.0, 1.0]), torch.tensor([1.0, 1.0]), 0.5)
    tensor([8., 1.])
    """
    return (act_absmax.pow(alpha) / weight_absmax.pow(1 - alpha)).clamp(min=FLOOR)


def weight_absmax(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """w [in]: the largest |W| of each input channel over all the weights that it feeds."""
    return torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp(min=FLOOR)


def _best_alpha(
    weights: Sequence[torch.Tensor],
    calibration: Calibration,
    bits: int,
    act_bits: int,
    activations: str,
    emit: Emit | None,
) -> float:
    """The α of `ALPHAS` with the smallest output error, the first of equal ones."""
    x = calibration.inputs.to(weights[0])
    outputs = [x @ w.T for w in weights]  # [tokens, out] each
    activation, largest = calibration.act_absmax.to(x), weight_absmax(weights)
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    losses = torch.empty(len(ALPHAS), dtype=torch.float64)
    for k, alpha in enumerate(ALPHAS):
        scale = factors(activation, largest, alpha)
        noise = 0.0
        for w, y in zip(weights, outputs, strict=True):
            linear = _linear(w, InputScale(scale), bits, act_bits, activations, None)
            noise += compare(y, linear(x)).noise
        losses[k] = noise / sum(y.numel() for y in outputs)
        if emit is not None:
            emit("smoothquant.candidate", alpha=alphas[k], scale=scale, loss=losses[k])
    return ALPHAS[int(losses.min(dim=0).indices)]  # min gives the first of equal ones


def _linear(
    w: torch.Tensor,
    transform: InputScale | None,
    bits: int,
    act_bits: int,
    activations: str,
    emit: Emit | None,
) -> SmoothLinear:
    smoothed = w if transform is None else transform.apply(w)  # [out, in]
    if emit is not None:
        emit("smoothquant.smoothed", weight=smoothed)
    q = affine(smoothed, bits=bits, granularity="channel", convention="absmax")
    assert isinstance(q.grid, Affine)
    if emit is not None:
        emit("smoothquant.weight", codes=q.codes, scale=q.grid.scale)
    return SmoothLinear(replace(q, transform=transform), act_bits, activations)


def _shared(
    weights: Sequence[torch.Tensor], calibration: Calibration, **options: Any
) -> torch.Tensor:
    """The factors alone, for options of `smoothquant`; 1 where there is no smoothing."""
    if options.get("alpha", 0.5) is None:
        return torch.ones_like(calibration.act_absmax)
    return search(weights, calibration, **options)[1]


METHOD = Method(
    name="smoothquant",
    kind="linear",
    function=smoothquant,
    needs=frozenset({"inputs", "act_absmax"}),
    title="8-bit weights and activations, outliers shared between them",
    source="Xiao et al. 2022 (arXiv 2211.10438); mit-han-lab/smoothquant",
    events=EVENTS,
    bits=BITS,
    choices={"activations": ("token", "tensor")},
    origins={
        "alpha": "SmoothQuant smooth.py, llm-compressor",
        "bits": "SmoothQuant fake_quant.py",
        "act_bits": "SmoothQuant fake_quant.py",
        "activations": "SmoothQuant fake_quant.py:quantize_llama_like",
        "transform": "qviz: factors that layers share come from outside",
    },
    shared=Shared(_shared, frozenset({"norm"})),
)
