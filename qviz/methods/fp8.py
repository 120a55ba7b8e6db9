"""FP8: every weight becomes a floating-point number of eight bits, in units of a scale.

The scale of a row, or of the whole tensor, brings its largest weight to the largest number of the
format; everything else is rounding to the nearest code. The spacing of the numbers grows with the
numbers themselves, so a row with outliers keeps the relative precision of its small weights, which
eight-bit integers do not. This is the W8 of vLLM's FP8 checkpoints and of torchao's Float8 tensors,
and tensor cores multiply it from compute capability 8.9 on.

Symbols: v weights that share a scale, a their largest magnitude, F_max the largest number of the
format (448 for E4M3, 57344 for E5M2), s = a / F_max the scale, q codes, F(·) rounding to the
format.
Sources: OCP 8-bit Floating Point 1.0; Micikevicius et al. 2022 (arXiv 2209.05433). The two
conventions round s and v / s in different dtypes and treat a row of zeros differently; each is
tested bit for bit against its system, named in `CONVENTIONS`.
"""

from dataclasses import dataclass

import numpy as np
import torch

from qviz.core.check import as_matrix, narrowed, require_representable, unknown
from qviz.core.divide import divide
from qviz.core.formats import FORMATS as NUMBERS
from qviz.core.formats import decode, encode
from qviz.core.granularity import Granularity
from qviz.core.grids import Codebook
from qviz.core.ledger import Stream
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.registry import Method

FORMATS = ("fp8_e4m3", "fp8_e5m2")
GRANULARITIES = ("channel", "tensor")


@dataclass(frozen=True)
class Convention:
    """A system's rules.

    formats  the formats that it has
    compute  dtype of v / s, and in which the scale is stored; None: the weight's
    empty    the scale where a / F_max is 0; None: the epsilon of the scale's dtype
    """

    formats: tuple[str, ...]
    compute: torch.dtype | None
    empty: float | None
    source: str


CONVENTIONS: dict[str, Convention] = {
    "compressed_tensors": Convention(
        ("fp8_e4m3",),
        None,
        None,
        "compressed-tensors quantization/utils/helpers.py:calculate_qparams, "
        "lifecycle/forward_helpers.py:_quantize (llm-compressor, vLLM)",
    ),
    "torchao": Convention(
        FORMATS,
        torch.float32,
        # The original divides by 0 there: zeros become NaN.
        1.0,
        "torchao quantization/quant_primitives.py:_choose_scale_float8, _quantize_affine_float8",
    ),
}

EVENTS = (
    EventSpec(
        "fp8.amax",
        {"amax": "[rows, 1], or [1, 1] for a tensor: largest magnitude"},
        "a = max |v|",
        "Micikevicius et al. 2022, section 3",
    ),
    EventSpec(
        "fp8.scale",
        {"scale": "[rows, 1] or [1, 1] what a code is multiplied by, in the dtype it is stored in"},
        "s = a / F_max",
        "the convention's source",
    ),
    EventSpec(
        "fp8.scaled",
        {"scaled": "[out, in] the weights in units of their scale"},
        "v / s",
        "the convention's source",
    ),
    EventSpec(
        "fp8.codes",
        {
            "codes": "[out, in] uint8 bit patterns of the format",
            "clipped": "[out, in] bool: beyond ±F_max, because s was rounded down",
        },
        "q = F(clamp(v / s, −F_max, F_max)), to the nearest, ties to even",
        "OCP 8-bit Floating Point 1.0; the convention's source",
    ),
)


def fp8(
    weight: torch.Tensor | np.ndarray,
    *,
    format: str = "fp8_e4m3",
    granularity: str = "channel",
    convention: str | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Divide every row, or the tensor, by a scale and round the weights to FP8.

    weight       [out, in]; float32, bfloat16, float16, or float64, which is rounded to float32
                 first
    format       "fp8_e4m3", which is finer, or "fp8_e5m2", which reaches further
    granularity  "channel", a scale for each row, or "tensor", one for all
    convention   "compressed_tensors": scales are stored, and v / s is rounded, in the weight's
                 dtype, before it is rounded to FP8; E4M3 only. "torchao": a / F_max is rounded to
                 the weight's dtype and stored as float32, v / s is float32. None:
                 compressed_tensors where it has the format, else torchao

    Returns codes [out, in] uint8 (bit patterns), and a Codebook of the 256 values with scales
    [out, 1] or [1, 1]. −0, and what rounds to it, keeps its sign. `info` says which rules ran and
    counts the groups of zeros, those whose scale would be 0 (zeros, or weights too small for their
    dtype) and that get the convention's own instead, and the clipped weights.
    Raises ValueError for NaN or Inf, a format that the convention does not have, and weights whose
    reconstruction overflows their dtype.

    >>> q = fp8(torch.randn(64, 256))
    >>> q.dequantize().shape, q.bits_per_weight
    (torch.Size([64, 256]), 8.125)
    """
    weight = as_matrix(weight)
    name, rules = _rules(format, granularity, convention)
    unit = Granularity(granularity)
    top = NUMBERS[format].max_finite
    x = unit.split(_single(weight))  # [rows, 1, columns], or [1, 1, all]

    amax = x.abs().amax(-1)  # [rows, 1]
    if emit is not None:
        emit("fp8.amax", amax=amax)

    exact, scale = _scale(amax, top, rules)
    if emit is not None:
        emit("fp8.scale", scale=scale)

    scaled = x.to(scale.dtype) / scale.unsqueeze(-1)
    if emit is not None:
        emit("fp8.scaled", scaled=scaled.reshape(weight.shape))

    clipped = scaled.abs() > top
    codes = encode(scaled, format, saturate=True).reshape(weight.shape)
    if emit is not None:
        emit("fp8.codes", codes=codes, clipped=clipped.reshape(weight.shape))

    info = {
        "method": "fp8",
        "format": format,
        "convention": name,
        "device": str(weight.device),
        "compute": str(scale.dtype).removeprefix("torch."),
        "zero_groups": int(torch.count_nonzero(amax == 0)),
        "vanishing_groups": int(torch.count_nonzero(exact == 0)),
        "clipped": int(torch.count_nonzero(clipped)),
    }
    values = decode(torch.arange(256, device=weight.device), format)
    grid = Codebook(values, scale.float(), 8, (Stream("scales", scale),), weight.dtype)
    q = QuantizedTensor(codes, grid, unit, (weight.shape[0], weight.shape[1]), info=info)
    if float(amax.amax()) > torch.finfo(weight.dtype).max / 4:  # s rounded up may overflow
        require_representable(q.dequantize(), weight, format)
    return q


def _rules(format: str, granularity: str, convention: str | None) -> tuple[str, Convention]:
    """The convention and its name, after checking all names."""
    if format not in FORMATS:
        raise ValueError(unknown("FP8 format", format, FORMATS))
    if granularity not in GRANULARITIES:
        raise ValueError(unknown("granularity", granularity, GRANULARITIES))
    having = [name for name, c in CONVENTIONS.items() if format in c.formats]
    if convention is None:
        convention = having[0]
    if convention not in CONVENTIONS:
        raise ValueError(unknown("convention", convention, CONVENTIONS))
    if convention not in having:
        raise ValueError(
            f"the convention {convention!r} has no {format}; these have: {', '.join(having)}"
        )
    return convention, CONVENTIONS[convention]


def _single(weight: torch.Tensor) -> torch.Tensor:
    """The weight as it is; float64 as float32."""
    double = weight.dtype == torch.float64
    return narrowed(weight, torch.float32, "weight") if double else weight


def _scale(amax: torch.Tensor, top: float, rules: Convention) -> tuple[torch.Tensor, torch.Tensor]:
    """a / F_max in the weight's dtype, and the scale as it is stored, which is never 0."""
    exact = divide(amax, top)
    scale = exact if rules.compute is None else exact.to(rules.compute)
    empty = torch.finfo(scale.dtype).eps if rules.empty is None else rules.empty
    return exact, torch.where(scale == 0, empty, scale)


METHOD = Method(
    name="fp8",
    kind="weight",
    function=fp8,
    needs=frozenset(),
    title="FP8: eight-bit floating point, a scale per row or tensor",
    source="OCP 8-bit Floating Point 1.0; arXiv 2209.05433; conventions: see CONVENTIONS",
    events=EVENTS,
    choices={
        "format": FORMATS,
        "granularity": GRANULARITIES,
        "convention": tuple(CONVENTIONS),
    },
    origins={
        "format": "compressed-tensors and torchao; arXiv 2209.05433 takes E4M3 for weights",
        "granularity": "compressed-tensors' preset FP8_DYNAMIC, torchao's Float8Tensor",
        "convention": "qviz: compressed-tensors, whose checkpoints vLLM runs; E5M2 has torchao",
    },
)
