"""AWQ: activation-aware weight quantization.

Input channels with large activations carry more of a layer's output, so their weights are scaled
up before rounding and the inputs scaled down by the same factors, which changes nothing but how
finely each channel is rounded. The factors come from one exponent, searched over twenty values on
the layer's own output; a second search clips each group's largest weights where that helps. Then
every weight is rounded to nearest on the same 4-bit grid (convention "awq"): no channel is kept in
16 bits.

Lin et al. 2023 (arXiv 2306.00978), sections 3.2 and 5.1; reference code mit-han-lab/llm-awq
(awq/quantize/auto_scale.py, auto_clip.py). Symbols: W [out, in] weights, X [tokens, in] inputs,
Y = X·Wᵀ, a [in] mean |X| of a channel, w̄ [in] mean relative magnitude of its weights, r the
exponent
(ratio), s [in] the factors, Q rounding to nearest; the effective weight is Ŵ = Q(W·s)/s.

Two differences from the reference, neither of which changes the algorithm. It compares the output
of the whole attention or feed-forward block where several linears share an input; here the loss is
that of the linears' own outputs. And it multiplies the inputs again for each candidate; here the
same sums come from XᵀX wherever that is less work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration, wide_matrix
from qviz.core.check import require_bits, unknown
from qviz.core.divide import divide
from qviz.core.granularity import Granularity
from qviz.core.grids import Affine
from qviz.core.metrics import output_energy
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.core.transform import InputScale, require_input_scale
from qviz.methods.affine import BITS, affine, fit_levels
from qviz.methods.registry import Method, Shared


@dataclass(frozen=True)
class Grid:
    """The candidates of a system: (ratio, whether the weights' sizes enter), in its order."""

    candidates: tuple[tuple[float, bool], ...]
    source: str


GRIDS: dict[str, Grid] = {
    "llm-awq": Grid(
        tuple((k / 20, False) for k in range(20)),
        "the paper's code, auto_scale.py:_search_module_scale",
    ),
    "autoawq": Grid(
        tuple((k / 20, True) for k in range(20)),
        "AutoAWQ quantizer.py:_compute_best_scale, duo_scaling; GPTQModel",
    ),
    # Round to nearest comes first, because weight-aware factors at r = 0 are not 1.
    "llm-compressor": Grid(
        ((0.0, False), *((k / 18, True) for k in range(19))),
        "llm-compressor modifiers/transform/awq/base.py:_get_grid_search_params, duo_scaling",
    ),
}
CLIP_STEPS, CLIP_GRID = 10, 20  # limits 1, 19/20 … 11/20 of a group's largest |w|
CLIP_TOKENS = 512
# Scores are products of query and key, so the layer's own output says little about an error there.
UNCLIPPED = ("q_", "k_", "query", "key", "Wqkv")
# Weights worked on at once: on a CPU as many as a cache holds, elsewhere as memory allows.
BLOCK_CPU, BLOCK_OTHER = 1 << 19, 1 << 26

EVENTS = (
    EventSpec(
        "awq.importance",
        {"activation": "[in] mean |x| of each input channel"},
        "a = mean |X|",
        "Lin et al. 2023, section 3.2; auto_scale.py:get_act_scale",
    ),
    EventSpec(
        "awq.magnitude",
        {"weight": "[in] mean size of each channel's weights, relative to their group's largest"},
        "w̄ = mean over rows of |W| / (max |W| of the group + 1e-6); only where the grid uses it",
        "AutoAWQ quantizer.py:_search_best_scale",
    ),
    EventSpec(
        "awq.candidate",
        {
            "ratio": "[] the exponent r",
            "scale": "[in] the factors it gives",
            "loss": "[] mean squared error of the output",
        },
        "s = a^r (or a^r / (w̄^(1−r) + 1e-4)), s ← s / √(max s · min s), "
        "loss = mean (X·(Q(W·s)/s − W)ᵀ)²",
        "auto_scale.py:_search_module_scale; AutoAWQ quantizer.py:_compute_best_scale",
    ),
    EventSpec(
        "awq.scales",
        {"ratio": "[] the best r", "scale": "[in] its factors", "loss": "[] its loss"},
        "the candidate with the smallest loss, the first of equal ones",
        "auto_scale.py:_search_module_scale",
    ),
    EventSpec(
        "awq.scaled",
        {"weight": "[out, in] the weight as it will be rounded"},
        "W·diag(s)",
        "auto_scale.py:apply_scale",
    ),
    EventSpec(
        "awq.clip",
        {
            "errors": "[10, out, groups] mean squared error of each group's share of the output",
            "step": "[out, groups] which of the ten limits was taken; 0 clips nothing",
            "limit": "[out, groups] the largest |w| that remains",
        },
        "limit = max |w| · (1 − k/20), k = 0 … 9, where "
        "mean over tokens of (x_g·(Q(clamp(w)) − w))² is smallest",
        "auto_clip.py:auto_clip_layer",
    ),
    EventSpec(
        "awq.codes",
        {"codes": "[out, in] integer codes", "scale": "[out, groups]", "zero": "[out, groups]"},
        "q = clamp(RNE(w / scale) + zero, 0, N) of the scaled and clipped weight",
        "quantizer.py:pseudo_quantize_tensor",
    ),
)


@dataclass(frozen=True)
class Scales:
    """What the search for factors found.

    scale   [in] the factors, in float32 (float64 for float64 weights)
    best    which candidate they are from
    losses  [candidates] float64: mean squared output error of each, in the order of `candidates`
    """

    scale: torch.Tensor
    best: int
    losses: torch.Tensor
    candidates: tuple[tuple[float, bool], ...]

    @property
    def ratio(self) -> float:
        return self.candidates[self.best][0]

    @property
    def duo(self) -> bool:
        """Whether the weights' sizes entered the factors."""
        return self.candidates[self.best][1]


def awq(
    weight: torch.Tensor | np.ndarray,
    calibration: Calibration,
    *,
    bits: int = 4,
    group_size: int | None = 128,
    symmetric: bool = False,
    grid: str = "llm-awq",
    clip: bool | None = None,
    scale_dtype: torch.dtype | None = None,
    transform: InputScale | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Scale the input channels by the size of their inputs, clip, and round to nearest.

    weight      [out, in]; half precision is worked on in float32, as the search needs it
    group_size  inputs that share a scale; None or −1: the whole row
    grid        whose candidates are tried, one of `GRIDS`
    clip        None: as in the reference, every layer but query and key projections, recognised by
                `calibration.layer`
    transform   factors to use instead of searching: those that `search` found for all linears of
                one input together

    Returns codes in the coordinates W·diag(s), with `transform` InputScale(s): dequantize() gives
    Q(W·s)/s, which multiplies the original inputs. `info` has the ratio, the losses' source and
    how many groups were clipped. Raises ValueError for whatever `affine` refuses, for a calibration
    of another layer, and if no candidate has a finite loss.

    >>> layer = "model.layers.0.mlp.up_proj"
    >>> q = awq(qviz.load_layer(None, layer), qviz.load_calibration(None, layer))
    >>> q.info["ratio"], q.transform.scale.shape
    """
    w = wide_matrix(weight, calibration)
    if transform is not None:
        require_input_scale(transform)
    if clip is not None and not isinstance(clip, bool):
        raise TypeError(f"clip must be True, False or None, got {clip!r}")
    options: dict[str, Any] = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    found = None
    if transform is None:
        found = search([w], calibration, **options, grid=grid, emit=emit)
        transform = InputScale(found.scale)
    scaled = transform.apply(w)  # [out, in]
    if emit is not None:
        emit("awq.scaled", weight=scaled)

    clipping = _is_clipped(calibration.layer) if clip is None else clip
    changed = 0
    if clipping:
        limit, changed = clip_limits(scaled, calibration, transform, **options, emit=emit)
        # The factors made `scaled` a tensor of our own, so that it may be clamped in place.
        groups = Granularity.of("group", group_size).split(scaled)
        groups.clamp_(-limit.unsqueeze(-1), limit.unsqueeze(-1))

    q = affine(scaled, **options, convention="awq", scale_dtype=scale_dtype)
    assert isinstance(q.grid, Affine)
    if emit is not None:
        zero = torch.zeros_like(q.grid.scale) if q.grid.zero_point is None else q.grid.zero_point
        emit("awq.codes", codes=q.codes, scale=q.grid.scale, zero=zero)
    info = {**q.info, "method": "awq", "clip": clipping, "clipped_groups": changed}
    if found is not None:
        through = "the inputs" if _fewer_tokens(calibration) else "the Hessian"
        info |= {"grid": grid, "ratio": found.ratio, "duo": found.duo, "loss_from": through}
    return replace(q, transform=transform, info=info)


def search(
    weights: Sequence[torch.Tensor | np.ndarray],
    calibration: Calibration,
    *,
    bits: int = 4,
    group_size: int | None = 128,
    symmetric: bool = False,
    grid: str = "llm-awq",
    emit: Emit | None = None,
) -> Scales:
    """The factors s [in] that serve all linears of one input best: query, key and value; gate, up.

    They have to share them, since the layer before can be divided only once. The loss is the mean
    over all calibration tokens, and all outputs of all the weights, of (X·(Ŵ − W)ᵀ)².

    >>> layers = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    >>> weights = [qviz.load_layer(None, layer) for layer in layers]
    >>> search(weights, qviz.load_calibration(None, layers[0])).ratio
    """
    if grid not in GRIDS:
        raise ValueError(unknown("grid", grid, GRIDS))
    if not weights:
        raise ValueError("there is no weight to search factors for; give at least one")
    require_bits(bits, BITS)
    ws = [wide_matrix(weight, calibration) for weight in weights]
    unit = Granularity.of("group", group_size)
    activation = calibration.act_absmean.to(ws[0])  # [in]
    if emit is not None:
        emit("awq.importance", activation=activation)
    candidates = GRIDS[grid].candidates
    magnitude = activation
    if any(duo for _, duo in candidates):
        magnitude = relative_magnitude(ws, unit)
        if emit is not None:
            emit("awq.magnitude", weight=magnitude)

    outputs = sum(len(w) for w in ws)
    inputs = calibration.inputs.to(ws[0]) if _fewer_tokens(calibration) else None
    ratios = torch.tensor([ratio for ratio, _ in candidates], dtype=torch.float64)
    losses = torch.empty(len(candidates), dtype=torch.float64)
    scales = []
    for k, (ratio, duo) in enumerate(candidates):
        s = factors(activation, magnitude if duo else None, ratio)
        scales.append(s)
        energy = sum(
            _energy(difference, calibration, inputs)
            for w in ws
            for difference in _differences(w, s, unit, bits, symmetric)
        )
        losses[k] = energy / outputs
        if emit is not None:
            emit("awq.candidate", ratio=ratios[k], scale=s, loss=losses[k])
    best = _first_smallest(losses)
    if emit is not None:
        emit("awq.scales", ratio=ratios[best], scale=scales[best], loss=losses[best])
    return Scales(scales[best], best, losses, candidates)


def factors(activation: torch.Tensor, magnitude: torch.Tensor | None, ratio: float) -> torch.Tensor:
    """s [in] for a ratio: a^r, or a^r / (w̄^(1−r) + 1e-4), centred so that √(max s · min s) = 1.

    >>> factors(torch.tensor([1.0, 16.0]), None, 0.5)
    tensor([0.5000, 2.0000])
    """
    s = activation.pow(ratio)
    if magnitude is not None:
        s = s / (magnitude.pow(1 - ratio) + 1e-4)
    s = s.clamp(min=1e-4)  # a channel that is always 0 would be divided by 0
    s = s / (s.max() * s.min()).sqrt()
    return torch.where(torch.isfinite(s), s, 1.0)


def relative_magnitude(weights: Sequence[torch.Tensor], unit: Granularity) -> torch.Tensor:
    """w̄ [in]: the mean over all rows of |W| / the largest |W| of its group."""
    total = torch.zeros_like(weights[0][0])
    for weight in weights:
        size = unit.split(weight).abs()  # [out, groups, n]
        size = size / (size.amax(-1, keepdim=True) + 1e-6)
        total += size.sum(0).flatten()
    return divide(total, sum(len(weight) for weight in weights))


def clip_limits(
    scaled: torch.Tensor,
    calibration: Calibration,
    transform: InputScale,
    *,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    emit: Emit | None = None,
) -> tuple[torch.Tensor, int]:
    """The largest |w| to keep in each group [out, groups], and how many groups that changes.

    `scaled` [out, in] is W·diag(s), which `transform` made. Each group is judged by its own share
    of the output, x_g·w_g, on at most about 512 tokens.
    """
    unit = Granularity.of("group", group_size)
    x = calibration.inputs[:: max(1, len(calibration.inputs) // CLIP_TOKENS)].to(scaled)
    x = unit.split(x / transform.scale.to(scaled))  # [tokens, groups, n]
    # Σ_t (x_t·d)² = dᵀ(Σ_t x_t·x_tᵀ)d: with the inner matrix of each group at hand, a limit costs
    # n multiplications per weight instead of one per token, and no [out, tokens, groups] is stored.
    inner = divide(torch.einsum("tgi,tgj->gij", x, x), len(x))  # [groups, n, n]
    fractions = scaled.new_tensor([1 - k / CLIP_GRID for k in range(CLIP_STEPS)])
    errors = scaled.new_empty(CLIP_STEPS, *unit.groups((scaled.shape[0], scaled.shape[1])))
    top = scaled.new_empty(errors.shape[1:])
    for rows, block in _blocks(scaled):
        w = unit.split(block)  # [rows, groups, n]
        top[rows] = w.abs().amax(-1)
        for k, fraction in enumerate(fractions):
            limit = (top[rows] * fraction).unsqueeze(-1)
            d = _round_trip(w.clamp(-limit, limit), bits, symmetric).sub_(w).transpose(0, 1)
            errors[k, rows] = (d @ inner).mul_(d).sum(-1).T
    # min gives the first of equal ones. Rounding can push an error of 0 below 0.
    step = errors.clamp_(min=0).min(dim=0).indices  # [out, groups]
    limit = top * fractions[step]
    if emit is not None:
        emit("awq.clip", errors=errors, step=step, limit=limit)
    return limit, int(torch.count_nonzero(step))


def _is_clipped(layer: str) -> bool:
    return not any(part in layer.rpartition(".")[2] for part in UNCLIPPED)


def _fewer_tokens(calibration: Calibration) -> bool:
    """Whether X itself holds every token and is less work to multiply than XᵀX."""
    tokens = len(calibration.inputs)
    return tokens == calibration.tokens and tokens < calibration.in_features


def _energy(
    difference: torch.Tensor, calibration: Calibration, inputs: torch.Tensor | None
) -> float:
    """Σ over outputs of the mean over tokens of (x·d)², for d [rows, in]."""
    if inputs is None:
        return output_energy(difference, calibration) / 2  # H = 2·XᵀX / tokens
    return float((difference @ inputs.T).double().square().sum()) / len(inputs)


def _differences(
    weight: torch.Tensor, scale: torch.Tensor, unit: Granularity, bits: int, symmetric: bool
) -> Iterator[torch.Tensor]:
    """Q(W·s)/s − W, some rows [rows, in] at a time."""
    for _, w in _blocks(weight):
        rounded = _round_trip(unit.split(w * scale), bits, symmetric)
        yield unit.join(rounded, (w.shape[0], w.shape[1])).div_(scale).sub_(w)


def _round_trip(x: torch.Tensor, bits: int, symmetric: bool) -> torch.Tensor:
    """Q(x) for x [rows, groups, n], a new tensor."""
    lo, hi = x.amin(-1), x.amax(-1)
    levels = fit_levels(lo, hi, bits=bits, symmetric=symmetric, convention="awq")
    codes = levels.round_(levels.position(x)).clamp_(levels.grid.qmin, levels.grid.qmax)
    return levels.grid.decode(codes)


def _blocks(weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, those rows of the weight): as many as stay in cache while they are worked on."""
    size = BLOCK_CPU if weight.device.type == "cpu" else BLOCK_OTHER
    rows = max(1, size // weight.shape[1])
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        yield part, weight[part]


def _first_smallest(losses: torch.Tensor) -> int:
    known = [loss if np.isfinite(loss) else np.inf for loss in losses.tolist()]
    if min(known) == np.inf:
        raise ValueError(
            "no candidate has a finite loss: the weight or the calibration inputs are too large "
            "for float32. Pass the weight as float64"
        )
    return known.index(min(known))


def _shared(
    weights: Sequence[torch.Tensor], calibration: Calibration, **options: Any
) -> torch.Tensor:
    """The factors alone, for options of `awq`, of which the search needs some."""
    needed = ("bits", "group_size", "symmetric", "grid")
    return search(weights, calibration, **{k: options[k] for k in needed if k in options}).scale


METHOD = Method(
    name="awq",
    kind="weight",
    function=awq,
    needs=frozenset({"inputs", "hessian", "act_absmean"}),
    title="Activation-aware scaling before rounding",
    source="Lin et al. 2023 (arXiv 2306.00978); mit-han-lab/llm-awq",
    events=EVENTS,
    bits=BITS,
    choices={"grid": tuple(GRIDS)},
    origins={
        "bits": "llm-awq, AutoAWQ, llm-compressor",
        "group_size": "llm-awq, AutoAWQ, llm-compressor",
        "symmetric": "llm-awq, AutoAWQ (zero_point=True)",
        "grid": "llm-awq; AutoAWQ, GPTQModel and llm-compressor have weight-aware ones",
        "clip": "llm-awq, AutoAWQ; llm-compressor does not clip",
        "scale_dtype": "qviz: the convention's own precision (the systems store float16)",
        "transform": "qviz: factors that layers share come from outside",
    },
    shared=Shared(_shared, frozenset({"norm", "linear"})),
)
