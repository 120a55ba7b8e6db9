"""NF4 and FP4: four-bit codes that point into a table of sixteen unequal levels.

Each block of 64 consecutive weights is divided by its largest magnitude and every quotient goes
to the nearest level of a fixed table: for NF4 quantiles of the normal distribution, because
trained weights are nearly normal; for FP4 a small floating-point format. Double quantization then
compresses the magnitudes themselves: their mean is kept, and the differences from it become 8-bit
codes of a second, dynamic table.

Symbols: w weights of one block, a = max |w| (absmax), x = w/a, v the levels, q codes, o the mean
of all a, A the largest |a − o| of 256 blocks, c the codes of (a − o)/A, Φ⁻¹ the normal quantile
function. Paper: Dettmers et al. 2023 (QLoRA, arXiv 2305.14314), sections 2 and 3, appendix E; the
dynamic table: Dettmers 2016 (arXiv 1511.04561). Convention: bitsandbytes 0.50.2 on a CPU, bit for
bit; blocks run over the flattened matrix and may begin in one row and end in the next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from qviz.core.check import as_matrix, narrowed, require_number, rescaling, unknown
from qviz.core.divide import divide
from qviz.core.granularity import Granularity, whole_or_size
from qviz.core.grids import Codebook
from qviz.core.ledger import Stream
from qviz.core.nearest import count_below, midpoints
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.registry import Method

# The levels as bitsandbytes stores them, by code; `normal_levels` derives NF4's.
NF4 = (
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
# Sign and three bits that are not an ordinary exponent and mantissa: all multiples of 1/12 but one.
FP4 = tuple(sign * m / 12 for sign in (1, -1) for m in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
FORMATS = {"nf4": NF4, "fp4": FP4}

# Halfway between 1 − 1/32 and 1 − 1/30: the outermost of 16 and of 15 equally likely bins, each
# taken in its middle.
OFFSET = 0.9677083
SMALLEST = 1e-38  # what a block of zeros is divided by: its reciprocal is finite, 0's is not
SECOND_GROUP = 256  # absmax values that share a second-level scale
TABLE = 65536  # entries of the table that replaces the search for the nearest second-level code
ROUNDINGS = ("table", "nearest")


@dataclass(frozen=True)
class NormalLevels:
    """How NF4's levels are made, all [16], ascending.

    probability  share of the normal distribution below each quantile, float64
    quantile     Φ⁻¹ of it, in standard deviations, float64
    levels       the quantiles divided by the largest, float32
    """

    probability: torch.Tensor
    quantile: torch.Tensor
    levels: torch.Tensor


def normal_levels(offset: float = OFFSET) -> NormalLevels:
    """Sixteen levels from the normal distribution: 7 below zero, zero, 8 above it.

    offset  share of the distribution below the highest level, between 0.5 and 1

    Both halves start at ±Φ⁻¹(offset) and run to zero in equal slices of probability, one slice more
    in the positive half: that is how a table of even size has an exact zero. Source: QLoRA,
    section 3 and appendix E; bitsandbytes functional.py:create_normal_map.

    >>> normal_levels().quantile[-1]
    tensor(1.8481, dtype=torch.float64)
    """
    # in float32 already here: what rounds to 1 has an infinite quantile
    if not 0.5 < torch.tensor(require_number(offset, "offset"), dtype=torch.float32) < 1:
        raise ValueError(f"offset is a probability between 0.5 and 1, got {offset}")
    # Probabilities rounded to float32, and a division in float32, as in the reference: its levels
    # come out bit for bit.
    upper = torch.linspace(offset, 0.5, 9, dtype=torch.float32).flip(0).double()  # 0 and 8 above
    lower = torch.linspace(offset, 0.5, 8, dtype=torch.float32)[:-1].double()  # 7, mirrored below
    probability = torch.cat([1 - lower, upper])
    quantile = torch.cat([-torch.special.ndtri(lower), torch.special.ndtri(upper)])
    levels = quantile.float()
    return NormalLevels(probability, quantile, levels / levels[-1])


def dynamic_levels() -> torch.Tensor:
    """The 256 ascending levels [256] float32 of the 8-bit dynamic type.

    Seven decades, each with twice as many levels as the one below: 2^i midpoints of equal steps
    from 0.1 to 1, times 10^(i−6); both signs, and 0 and 1. There is no −1: the lowest level is
    −0.99296875. Source: Dettmers 2016, section 3; bitsandbytes functional.py:create_dynamic_map.
    """
    decades = [
        midpoints(torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)) * 10.0 ** (i - 6)
        for i in range(7)
    ]
    positive = torch.cat(decades)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values


EVENTS = (
    EventSpec(
        "nf4.levels",
        {
            "levels": "[16] the table, ascending",
            "midpoints": "[15] bounds between neighbours; a value on one goes down",
            "codes": "[16] the code of each level",
        },
        "mᵢ = (vᵢ + vᵢ₊₁) / 2",
        "QLoRA, section 3; bitsandbytes functional.py:get_4bit_type",
    ),
    EventSpec(
        "nf4.absmax",
        {"absmax": "[1, blocks] largest magnitude of each block"},
        "a = max |w|",
        "QLoRA, equation 1; bitsandbytes backends/default/ops.py:quantize_4bit",
    ),
    EventSpec(
        "nf4.normalized",
        {"normalized": "[rows, columns] weights in units of their block's absmax"},
        "x = w · (1/a)",
        "bitsandbytes backends/default/ops.py:quantize_4bit",
    ),
    EventSpec(
        "nf4.codes",
        {"codes": "[rows, columns] the nearest level's code"},
        "q = argminᵢ |x − vᵢ|",
        "QLoRA, section 3; bitsandbytes backends/default/ops.py:quantize_4bit",
    ),
    EventSpec(
        "nf4.second.offset",
        {"offset": "[1] mean of the absmax", "centered": "[1, blocks] the differences from it"},
        "o = mean a, then a − o",
        "QLoRA, section 3 (double quantization); bitsandbytes functional.py:quantize_4bit",
    ),
    EventSpec(
        "nf4.second.codes",
        {
            "absmax": "[1, blocks of 256] largest |a − o| of 256",
            "position": "[1, blocks] (a − o)/A, NaN where A is 0",
            "codes": "[1, blocks] index into the dynamic levels",
        },
        "c = argminᵢ |p − dᵢ|, p = (a − o)/A, which the table rounds to steps of 2/65535 first",
        "bitsandbytes csrc/cpu_ops.cpp:quantize_cpu_impl",
    ),
    EventSpec(
        "nf4.second.absmax",
        {"absmax": "[1, blocks] the magnitudes that the stored numbers stand for"},
        "â = d_c · A + o",
        "bitsandbytes functional.py:dequantize_4bit",
    ),
)


def nf4(
    weight: torch.Tensor | np.ndarray,
    *,
    format: str = "nf4",
    group_size: int | None = 64,
    double_quant: bool = False,
    second_rounding: str = "table",
    levels: Sequence[float] | torch.Tensor | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Send every weight, divided by its block's largest magnitude, to the nearest of 16 levels.

    weight           [out, in]; float32, bfloat16, float16; float64 is computed in float32 too
    format           "nf4" or "fp4"
    group_size       weights in a block, 32 to 4096, a power of two; the last may be shorter. None
                     or −1: the whole row, where its length is such a power
    double_quant     store the absmax as 8-bit codes: 4.127 instead of 4.5 bits per weight
    second_rounding  how those codes are found: "table" looks 65,536 bins up, as bitsandbytes ≥ 0.50
                     does on a CPU; "nearest" takes the nearest level, as a CUDA device does
    levels           16 ascending levels of your own in [−1, 1] instead of the format's; they are
                     stored with the weight and counted

    Returns codes [out, in] uint8 and absmax [1, blocks] float32; `dequantize()` multiplies in
    float32 and rounds to the weight's dtype. `info` counts the blocks that vanish: zeros, or too
    small for their reciprocal. In blocks of zeros bitsandbytes has code 7 on a CPU, as here, and 0
    on a CUDA device; both mean 0. Raises ValueError for NaN or Inf, for other group sizes, and if
    double quantization overflows the weight's dtype (bitsandbytes returns NaN or Inf then).

    >>> q = nf4(torch.randn(128, 256), double_quant=True)
    >>> q.dequantize().shape, q.ledger.per_weight("absmax codes")
    (torch.Size([128, 256]), 0.125)
    """
    weight = as_matrix(weight)
    unit, shape = _unit(group_size, weight.shape[1]), (weight.shape[0], weight.shape[1])
    values, order = _table(format, levels, weight.device)
    if second_rounding not in ROUNDINGS:
        raise ValueError(unknown("second_rounding", second_rounding, ROUNDINGS))
    x = unit.split(narrowed(weight, torch.float32, "weight"))  # [1, blocks, group_size]
    rest = weight.numel() % x.shape[-1]  # weights in a last, shorter block

    ascending = values[order.int()]
    bounds = midpoints(ascending)
    if emit is not None:
        emit("nf4.levels", levels=ascending, midpoints=bounds, codes=order)

    absmax = _absmax(x)  # [1, blocks]
    if rest:  # stored with the floor, unlike the absmax of a whole block
        absmax[:, -1:].clamp_(min=SMALLEST)
    if emit is not None:
        emit("nf4.absmax", absmax=absmax)

    normalized = x * (1.0 / absmax.clamp(min=SMALLEST)).unsqueeze(-1)
    if rest:  # the reference divides here: the last bit can differ, and near a tie the code
        normalized[:, -1] = x[:, -1] / absmax[:, -1:]
    if emit is not None:
        emit("nf4.normalized", normalized=unit.join(normalized, shape))

    # The reference clamps x to [−1, 1] first. What rounding put beyond has the same codes.
    ranks = count_below(normalized, bounds)
    codes = unit.join(ranks if levels is None and format == "nf4" else order[ranks.int()], shape)
    if emit is not None:
        emit("nf4.codes", codes=codes)

    scale, stored = absmax, [Stream("absmax", absmax)]
    if double_quant:
        scale, stored = _compress(absmax, second_rounding, weight.dtype, emit)
    if levels is not None:
        stored.append(Stream("levels", values))
    zero = int(order[int(count_below(torch.zeros(1, device=bounds.device), bounds))])
    # An odd last byte is filled with the code of 0, as in the reference.
    grid = Codebook(values, scale, 4, tuple(stored), weight.dtype, "big", fill=zero)
    info = {
        "method": "nf4",
        "format": format if levels is None else "own levels",
        "double_quant": double_quant,
        "device": str(weight.device),
        "compute": "float32",
        "vanishing_blocks": int(torch.count_nonzero(absmax <= SMALLEST)),
        "short_block": rest,
    }
    return QuantizedTensor(codes, grid, unit, shape, info=info)


def _unit(group_size: int | None, columns: int) -> Granularity:
    """Blocks of the flattened weight; those of whole rows are blocks as long as a row."""
    size = whole_or_size(group_size) or columns
    if not 32 <= size <= 4096 or size & (size - 1):
        row = "" if whole_or_size(group_size) else ", the length of a row"
        raise ValueError(
            f"group_size must be 32, 64, 128 … 4096, as in bitsandbytes; got {size}{row}. A "
            "block may cross the end of a row, so each of these fits any weight; None (or -1) "
            "is the whole row, if its length is one of them"
        )
    return Granularity("flat", size)


def _table(
    format: str, levels: Sequence[float] | torch.Tensor | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels [16] float32 by code, and the codes [16] uint8 by ascending level."""
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    values = torch.as_tensor(FORMATS[format] if levels is None else levels, dtype=torch.float32)
    if levels is not None:
        values = values.detach().clone()  # the caller's tensor may change later
        if values.shape != (16,) or not bool((values.diff() > 0).all()) or _absmax(values) > 1:
            raise ValueError(
                f"levels must be 16 ascending numbers in [−1, 1]; got {values.tolist()}: sort "
                f"them, make them distinct and divide them by the largest magnitude"
            )
    values = values.to(device)
    # FP4 has two zeros. A stable order makes 0 the code of 0 and of negative values that round
    # to it, 8 of positive ones: their bound is 0 itself.
    return values, values.argsort(stable=True).to(torch.uint8)


def _absmax(x: torch.Tensor) -> torch.Tensor:
    """max |x| over the last dimension, without the copy that x.abs() would be."""
    return torch.maximum(x.amax(-1).abs(), x.amin(-1).abs())


def _compress(
    absmax: torch.Tensor, rounding: str, dtype: torch.dtype, emit: Emit | None
) -> tuple[torch.Tensor, list[Stream]]:
    """Double quantization: absmax [1, blocks] as 8-bit codes give it back, and what is stored.

    ValueError where the mean leaves float32, or what comes back the weight's dtype.
    """
    offset = absmax.flatten().mean(0, keepdim=True)  # [1]
    centered = absmax - offset
    if emit is not None:
        emit("nf4.second.offset", offset=offset, centered=centered)

    unit, shape = Granularity("flat", SECOND_GROUP), (1, absmax.numel())
    x = unit.split(centered)  # [1, blocks/256, 256]
    second = _absmax(x)
    position = unit.join(x * (1.0 / second).unsqueeze(-1), shape)  # 0·∞ = NaN where all are equal
    levels = _dynamic().to(absmax.device)
    known = position.nan_to_num(-1.0, 1.0, -1.0)  # code 0 for NaN: it is multiplied by 0 anyway
    if rounding == "table":
        # Bins 2/65535 wide: near zero, where levels lie closer, it misses the nearest one.
        codes = _lookup().to(absmax.device)[_bin(known)]
    else:
        codes = count_below(known, midpoints(levels))
    if emit is not None:
        emit("nf4.second.codes", absmax=second, position=position, codes=codes)

    x = unit.split(levels[codes.int()]) * second.unsqueeze(-1)
    scale = unit.join(x, shape) + offset
    if not torch.isfinite(scale.to(dtype)).all():
        raise ValueError(
            f"the double quantization of magnitudes up to {float(absmax.amax()):g} overflows "
            f"{str(dtype).removeprefix('torch.')}: omit double_quant. Or: "
            f"{rescaling('weight', float(absmax.amax()), _room(absmax.numel(), dtype))}"
        )
    if emit is not None:
        emit("nf4.second.absmax", absmax=scale)
    stored = [
        Stream("absmax codes", codes, 8),
        Stream("second absmax", second),
        Stream("absmax offset", offset),
    ]
    return scale, stored


def _room(blocks: int, dtype: torch.dtype) -> int:
    """e, so that absmax below 2^e can be doubly quantized: their sum fits into float32, and what
    rounding up makes of them into the weight's dtype."""
    single = math.frexp(torch.finfo(torch.float32).max)[1]
    own = math.frexp(torch.finfo(dtype).max)[1]
    return min(single - blocks.bit_length(), own - 1)


@cache
def _dynamic() -> torch.Tensor:
    return dynamic_levels()


@cache
def _lookup() -> torch.Tensor:
    """The nearest dynamic code [65536] uint8 of each bin's value.

    Source: bitsandbytes csrc/cpu_ops.cpp:build_quantize_lut.
    """
    values = -1.0 + divide(2.0 * torch.arange(TABLE, dtype=torch.float32), TABLE - 1)
    return count_below(values, midpoints(_dynamic()))


def _bin(x: torch.Tensor) -> torch.Tensor:
    """The bin of each value in [−1, 1]: rounded by adding a half and truncating."""
    return ((x.clamp(-1, 1) + 1.0) * 0.5 * (TABLE - 1) + 0.5).int()


METHOD = Method(
    name="nf4",
    kind="weight",
    function=nf4,
    needs=frozenset(),
    title="Sixteen unequal levels from the normal distribution, absmax per block of 64",
    source="Dettmers et al. 2023 (QLoRA, arXiv 2305.14314); bitsandbytes 0.50.2 on a CPU",
    events=EVENTS,
    choices={"format": tuple(FORMATS), "second_rounding": ROUNDINGS},
    origins={
        "format": "QLoRA; bitsandbytes and transformers default to fp4",
        "group_size": "QLoRA, bitsandbytes",
        "double_quant": "transformers BitsAndBytesConfig, bitsandbytes quantize_4bit",
        "second_rounding": "bitsandbytes 0.50 on a CPU",
        "levels": "qviz: none; for experiments with your own levels",
    },
)
