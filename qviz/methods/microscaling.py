"""Microscaling: small floating-point codes, with one small scale for each block of a row.

Every 32 weights (MX) share a scale that is a power of two, stored in the 8 bits of E8M0, and each
weight becomes an FP4, FP6, FP8 or INT8 code; NVFP4 takes blocks of 16, scales in FP8 E4M3, and one
FP32 scale for the tensor. How the scale and the codes are rounded differs between systems, so both
rules come with a named `convention`, tested bit for bit against its system.

Symbols: v weights of one block, a their largest magnitude, P the element format with largest number
P_max and largest exponent e_max, e the shared exponent, s scale, t tensor scale, q codes.
Sources: OCP Microscaling Formats 1.0, sections 5 and 6.3; Rouhani et al. 2023 (arXiv 2310.10537);
NVIDIA's description of NVFP4; the source of each rule stands in `CONVENTIONS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from qviz.core.check import as_matrix, narrowed, require_representable, rescaling, unknown
from qviz.core.divide import divide
from qviz.core.formats import FORMATS, ROUNDINGS, Format, decode, encode
from qviz.core.granularity import Granularity
from qviz.core.grids import Codebook
from qviz.core.ledger import Stream
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.registry import Method

RUN = 1 << 20  # numbers that are encoded at once


@dataclass(frozen=True)
class BlockFormat:
    """What a block consists of.

    element  number format of the codes
    size     weights in a block
    step     the value of integer code 1: MXINT8 is a fixed-point number with 6 bits after the point
    """

    element: Format
    size: int = 32
    step: float = 1.0

    @property
    def top(self) -> float:
        """P_max. MXINT8 does not use its lowest code, −2: both signs reach equally far."""
        return self.element.max_finite * self.step

    @property
    def emax(self) -> int:
        """e_max, the exponent of P_max."""
        return math.frexp(self.top)[1] - 1

    def values(self, device: torch.device) -> torch.Tensor:
        """What each code stands for [codes] float32, before the scale."""
        return decode(torch.arange(1 << self.element.bits, device=device), self.element) * self.step


BLOCK_FORMATS = {
    "mxfp4": BlockFormat(FORMATS["fp4_e2m1"]),
    "mxfp6_e2m3": BlockFormat(FORMATS["fp6_e2m3"]),
    "mxfp6_e3m2": BlockFormat(FORMATS["fp6_e3m2"]),
    "mxfp8_e4m3": BlockFormat(FORMATS["fp8_e4m3"]),
    "mxfp8_e5m2": BlockFormat(FORMATS["fp8_e5m2"]),
    "mxint8": BlockFormat(FORMATS["int8"], step=2.0**-6),
    "nvfp4": BlockFormat(FORMATS["fp4_e2m1"], size=16),
}
E4M3_MAX = FORMATS["fp8_e4m3"].max_finite


@dataclass(frozen=True)
class Fit:
    """What a convention decides for each block; tensors [rows, blocks].

    stored      uint8: E8M0 or E4M3
    scale       float32: what a code is multiplied by
    divisor     what a weight is divided by
    factor      or multiplied by: near a tie the two round differently
    tensor      [1] float32, the tensor scale as it is stored
    minus_zero  of the weights that round to 0, which keep their sign: "all" that have one, the
                "nonzero", or "none"
    """

    stored: torch.Tensor
    scale: torch.Tensor
    divisor: torch.Tensor | None = None
    factor: torch.Tensor | None = None
    tensor: torch.Tensor | None = None
    minus_zero: str = "all"


Rule = Callable[[torch.Tensor, BlockFormat, str], Fit]


@dataclass(frozen=True)
class Convention:
    """A system's rules.

    formats          the formats that it has
    scale_roundings  of MX scales, its default first
    rounding         of elements, as in `formats.encode`
    compute          None: it works in the weight's dtype
    """

    mx: Rule
    nvfp4: Rule | None
    formats: tuple[str, ...]
    scale_roundings: tuple[str, ...]
    rounding: str
    compute: torch.dtype | None
    source: str


def _exponent(x: torch.Tensor) -> torch.Tensor:
    """⌊log₂ x⌋ of x ≥ 0, read from its bits as float32: exact; 0 and subnormals give −127."""
    return (x.float().view(torch.int32) >> 23) - 127


def _log2(x: torch.Tensor) -> torch.Tensor:
    """log₂ x as float32, in which a few numbers beside a power of two become the integer itself.

    Systems that floor or ceil this logarithm take the neighbouring power there. It is rounded from
    float64, because float32 logarithms differ in the last bit between devices.
    """
    return torch.log2(x.double()).float()


def _round_mantissa(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x ≥ 0 rounded half up to a mantissa of `bits`, then its power of two: ⌊·⌋ of the result."""
    integer = torch.int32 if x.dtype == torch.float32 else torch.int16
    width = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}[x.dtype]
    code = x.view(integer) + (1 << (width - bits - 1))
    return (code & -(1 << width)).view(x.dtype)


def _bytes(exponent: torch.Tensor) -> torch.Tensor:
    """E8M0 codes of exponents; those beyond the format go to its ends, and 255 is NaN."""
    return (exponent.clamp(-127, 128) + 127).to(torch.uint8)


def _torchao_mx(amax: torch.Tensor, block: BlockFormat, rounding: str) -> Fit:
    if rounding == "rceil":  # on the newest GPUs an instruction, which needs no logarithm
        e = torch.ceil(_log2(divide(amax, block.top))).clamp(-127, 127).to(torch.int32)
    else:
        exact = _exponent(amax)
        if rounding == "even":
            exact = _exponent(_round_mantissa(amax, block.element.mantissa_bits))
        elif rounding == "ceil":
            exact = exact + (amax.view(torch.int32) & 0x7FFFFF != 0)
        e = exact - block.emax
    stored = _bytes(e)
    scale = decode(stored, "e8m0")
    # Byte 0 stands for 2^−127, a subnormal that their GPU code cannot use; they divide by another
    # number, so that a block of subnormals comes back halved (or, with rceil, as zeros).
    divisor = torch.where(stored == 0, 1.0 if rounding == "rceil" else 2.0**-126, scale)
    return Fit(stored, scale, divisor)


def _compressed_mx(amax: torch.Tensor, block: BlockFormat, rounding: str) -> Fit:
    # FP8 is rounded with the mantissa of FP4 here, only FP6 with its own.
    power = _round_mantissa(amax, 3 if block.element.bits == 6 else 1)
    stored = _bytes(torch.where(torch.isinf(power), 128, _exponent(power) - block.emax))
    scale = decode(stored, "e8m0").to(amax.dtype)
    # FP16 cannot hold the scale of a tiny block. A scale of 0 is replaced by 1.
    stored = torch.where(scale == 0, 127, stored)
    scale = decode(stored, "e8m0")
    minus_zero = "nonzero" if block.element.bits == 4 else "all"
    return Fit(stored, scale, scale.to(amax.dtype), minus_zero=minus_zero)


def _log2_mx(amax: torch.Tensor, block: BlockFormat, rounding: str) -> Fit:
    """microxcaling and ggml take the logarithm in float32 where torchao reads the exponent."""
    nonzero = torch.where(amax == 0, torch.finfo(torch.float32).tiny, amax)
    stored = _bytes(torch.floor(_log2(nonzero)).to(torch.int32) - block.emax)
    scale = decode(stored, "e8m0")
    return Fit(stored, scale, scale)


def _torchao_nvfp4(amax: torch.Tensor, block: BlockFormat, rounding: str) -> Fit:
    tensor = divide(amax.amax().reshape(1), E4M3_MAX * block.top)
    # The original gives NaN for a tensor of zeros, 0/0.
    tensor = torch.where(amax.amax() == 0, 1.0, tensor)
    local = (divide(amax, block.top) / tensor).clamp(FORMATS["fp8_e4m3"].min_normal, E4M3_MAX)
    stored = encode(local, "fp8_e4m3")
    scale = decode(stored, "fp8_e4m3")
    return Fit(stored, tensor * scale, factor=(1.0 / tensor) / scale, tensor=tensor)


def _compressed_nvfp4(amax: torch.Tensor, block: BlockFormat, rounding: str) -> Fit:
    # The tensor scale is stored as its reciprocal, found in the weight's dtype. In FP16 it
    # overflows for weights below 0.04, as it does in any dtype for a tensor of zeros; it is then 1.
    floor = torch.finfo(amax.dtype).tiny
    tensor = (E4M3_MAX * block.top / amax.amax().clamp(min=floor)).reshape(1)
    tensor = torch.where(torch.isinf(tensor), 1.0, tensor).float()
    local = (tensor * divide(amax, block.top)).clamp(max=E4M3_MAX)
    stored = encode(local, "fp8_e4m3")
    stored = torch.where(stored == 0, encode(0.125, "fp8_e4m3").to(stored.device), stored)
    scale = decode(stored, "fp8_e4m3") / tensor
    return Fit(stored, scale, scale, tensor=tensor, minus_zero="nonzero")


def _ggml_mx(amax: torch.Tensor, block: BlockFormat, rounding: str) -> Fit:
    # A search through the codes that stops at the first of several equals never takes −0.
    return replace(_log2_mx(amax, block, rounding), minus_zero="none")


def _ggml_nvfp4(amax: torch.Tensor, block: BlockFormat, rounding: str) -> Fit:
    local = divide(amax, block.top)
    stored = encode(local, "fp8_e4m3", rounding="half_away", saturate=True).to(torch.int32)
    # Their conversion ends early at both ends: from 256 on all is 448, and a subnormal that would
    # round up to the smallest normal number stays the largest subnormal.
    stored = torch.where(stored >= 0x78, 0x7E, stored)
    stored = torch.where(local < FORMATS["fp8_e4m3"].min_normal, stored.clamp(max=7), stored)
    scale = decode(stored, "fp8_e4m3")
    # If the scale is 0 any code will do; the original takes the first, 0.
    divisor = torch.where(scale == 0, math.inf, scale)
    return Fit(stored.to(torch.uint8), scale, divisor, minus_zero="none")


CONVENTIONS: dict[str, Convention] = {
    "torchao": Convention(
        _torchao_mx,
        _torchao_nvfp4,
        ("mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "nvfp4"),
        ("floor", "ceil", "even", "rceil"),
        "nearest_even",
        torch.float32,
        "torchao prototype/mx_formats/mx_tensor.py:to_mx, nvfp4_tensor.py:nvfp4_quantize",
    ),
    "compressed_tensors": Convention(
        _compressed_mx,
        _compressed_nvfp4,
        ("mxfp4", "mxfp6_e2m3", "mxfp8_e4m3", "nvfp4"),
        ("even",),
        "nearest_even",
        None,
        "compressed-tensors quantization/utils/mxfp_utils.py, helpers.py:calculate_qparams",
    ),
    "microxcaling": Convention(
        _log2_mx,
        None,
        ("mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8"),
        ("floor",),
        "half_away",
        torch.float32,
        "microxcaling mx/mx_ops.py:_quantize_mx, the emulation of the paper's authors",
    ),
    "ggml": Convention(
        _ggml_mx,
        _ggml_nvfp4,
        ("mxfp4", "nvfp4"),
        ("floor",),
        "half_toward_zero",
        torch.float32,
        "ggml src/ggml-quants.c:quantize_row_mxfp4_ref, quantize_row_nvfp4_ref (no tensor scale)",
    ),
}

EVENTS = (
    EventSpec(
        "microscaling.amax",
        {"amax": "[rows, blocks] largest magnitude"},
        "a = max |v| over each block",
        "OCP MX 1.0, section 6.3",
    ),
    EventSpec(
        "microscaling.scale",
        {
            "stored": "[rows, blocks] uint8 as stored, E8M0 (e + 127) or E4M3",
            "scale": "[rows, blocks] what a code is multiplied by",
            "tensor_scale": "[1] the tensor's FP32 scale as stored; 1 where there is none",
        },
        "MX: s = 2^e, e = ⌊log₂ a⌋ − e_max, or as scale_rounding says; NVFP4: E4M3(a / 6 / t)·t",
        "OCP MX 1.0, section 6.3; the convention's source",
    ),
    EventSpec(
        "microscaling.scaled",
        {"scaled": "[rows, columns] the weights in units of their block's scale"},
        "v / s",
        "OCP MX 1.0, section 6.3",
    ),
    EventSpec(
        "microscaling.codes",
        {
            "codes": "[rows, columns] uint8 bit patterns of the element format",
            "clipped": "[rows, columns] bool: beyond the largest element",
        },
        "q = P(clamp(v / s, −P_max, P_max))",
        "OCP MX 1.0, section 6.3; the convention's source",
    ),
)


def microscaling(
    weight: torch.Tensor | np.ndarray,
    *,
    format: str = "mxfp4",
    convention: str | None = None,
    scale_rounding: str | None = None,
    rounding: str | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Give every block of a row a small scale, and every weight a small floating-point code.

    weight          [out, in] or activations [tokens, in]; float32, bfloat16, float16, or float64,
                    which is rounded to float32 first
    format          one of `BLOCK_FORMATS`; the block is 32 inputs, 16 for nvfp4
    convention      one of `CONVENTIONS`; each names the system it follows. None: microxcaling for
                    mxint8, which no other has, else torchao
    scale_rounding  how the power of two of an MX scale is found. "floor": that of a, so that what
                    lies above P_max after scaling is clipped; "ceil": the next one up unless a is a
                    power itself, and nothing is clipped; "even": that of a rounded to the element's
                    mantissa; "rceil": the smallest that brings a within P_max. None: the
                    convention's own
    rounding        of elements, one of `formats.ROUNDINGS`. None: the convention's own

    Returns codes [out, in] uint8 (bit patterns) and a Codebook whose scales are stored as bytes
    [out, in / block]; NVFP4 also stores a float32 for the tensor, except with "ggml". `info` says
    which rules ran and counts zero blocks and clipped weights.
    Raises ValueError for NaN or Inf, an input size that the block does not divide, a format or
    rounding that the convention does not have, and weights that its scales cannot hold.

    >>> q = microscaling(torch.randn(8, 256), format="mxfp4")
    >>> q.dequantize().shape, q.bits_per_weight
    (torch.Size([8, 256]), 4.25)
    """
    weight = as_matrix(weight)
    name, rules, scale_rule, rounding = _rules(format, convention, scale_rounding, rounding)
    block = BLOCK_FORMATS[format]
    unit = _blocks(weight, format)
    x = unit.split(_computable(weight, rules.compute))  # [rows, blocks, size]

    amax = x.abs().amax(-1)  # [rows, blocks]
    if emit is not None:
        emit("microscaling.amax", amax=amax)

    rule = rules.nvfp4 if format == "nvfp4" else rules.mx
    assert rule is not None
    fit = _checked(rule(amax, block, scale_rule), amax, name)
    if emit is not None:
        shown = amax.new_ones(1, dtype=torch.float32) if fit.tensor is None else fit.tensor
        emit("microscaling.scale", stored=fit.stored, scale=fit.scale, tensor_scale=shown)

    scaled = _scaled(x, fit)
    if emit is not None:
        emit("microscaling.scaled", scaled=scaled.reshape(weight.shape))

    clipped = (scaled > block.top) | (scaled < -block.top)
    runs = torch.split(scaled.flatten(), RUN)
    codes = torch.cat([_elements(run, block, rounding, fit.minus_zero) for run in runs])
    codes = codes.reshape(weight.shape)
    if emit is not None:
        emit("microscaling.codes", codes=codes, clipped=clipped.reshape(weight.shape))

    info = {
        "method": "microscaling",
        "format": format,
        "convention": name,
        "scale_rounding": scale_rule,
        "rounding": rounding,
        "device": str(weight.device),
        "compute": str(x.dtype).removeprefix("torch."),
        "zero_blocks": int(torch.count_nonzero(amax == 0)),
        "clipped": int(torch.count_nonzero(clipped)),
    }
    grid = _grid(fit, block, weight)
    q = QuantizedTensor(codes, grid, unit, (weight.shape[0], weight.shape[1]), info=info)
    if float(amax.amax()) > torch.finfo(weight.dtype).max / 4:  # rounding up may overflow
        require_representable(q.dequantize(), weight, format)
    return q


def _rules(
    format: str, convention: str | None, scale_rounding: str | None, rounding: str | None
) -> tuple[str, Convention, str, str]:
    """The convention's name, the convention, and the roundings of scales and elements."""
    if format not in BLOCK_FORMATS:
        raise ValueError(unknown("microscaling format", format, BLOCK_FORMATS))
    if convention is None:
        convention = "microxcaling" if format == "mxint8" else "torchao"
    if convention not in CONVENTIONS:
        raise ValueError(unknown("convention", convention, CONVENTIONS))
    rules = CONVENTIONS[convention]
    if format not in rules.formats:
        having = [name for name, c in CONVENTIONS.items() if format in c.formats]
        raise ValueError(
            f"the convention {convention!r} has no {format}; these have: {', '.join(having)}"
        )
    if rounding is None:
        rounding = rules.rounding
    elif rounding not in ROUNDINGS:
        raise ValueError(unknown("rounding", rounding, ROUNDINGS))
    if format == "nvfp4":
        if scale_rounding is not None:
            raise ValueError(
                "scale_rounding chooses among powers of two; the scales of nvfp4 are E4M3 "
                "numbers, rounded to nearest. Omit it"
            )
        return convention, rules, "nearest", rounding
    if scale_rounding is None:
        scale_rounding = rules.scale_roundings[0]
    elif scale_rounding not in rules.scale_roundings:
        raise ValueError(
            f"the convention {convention!r} rounds scales by {' or '.join(rules.scale_roundings)}, "
            f"not {scale_rounding!r}; torchao has them all"
        )
    return convention, rules, scale_rounding, rounding


def _blocks(weight: torch.Tensor, format: str) -> Granularity:
    size = BLOCK_FORMATS[format].size
    short = -weight.shape[1] % size
    if short:
        raise ValueError(
            f"the blocks of {format} are {size} inputs, which do not divide the {weight.shape[1]} "
            f"of this weight: pad it with zeros, torch.nn.functional.pad(weight, (0, {short})), "
            f"and its inputs in the same way, or skip this layer"
        )
    return Granularity("group", size)


def _computable(weight: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """The weight in the dtype that the convention computes in; float64 becomes float32."""
    single = torch.float32 if weight.dtype == torch.float64 else weight.dtype
    return narrowed(weight, dtype or single, "weight")


def _checked(fit: Fit, amax: torch.Tensor, convention: str) -> Fit:
    """The fit, if weights can be scaled by it and codes be scaled back."""
    by = fit.scale if fit.factor is None else fit.factor
    bad = ~torch.isfinite(fit.scale) | ~torch.isfinite(by)
    if bad.any():
        row, group = bad.nonzero()[0].tolist()
        raise ValueError(
            f"the scale of block [{row}, {group}] overflows or underflows its format: the "
            f"largest weight there is {float(amax[row, group]):g}, too large or too small for "
            f"the convention {convention!r}. {rescaling('weight', float(amax.amax()), 0)}"
        )
    return fit


def _scaled(x: torch.Tensor, fit: Fit) -> torch.Tensor:
    """x in units of its block's scale [rows, blocks, size]."""
    if fit.factor is not None:
        return x * fit.factor.unsqueeze(-1)
    assert fit.divisor is not None
    return x / fit.divisor.unsqueeze(-1)


def _elements(
    scaled: torch.Tensor, block: BlockFormat, rounding: str, minus_zero: str
) -> torch.Tensor:
    """Codes uint8 of numbers in units of the scale, saturating at ±P_max."""
    x = scaled.clamp(-block.top, block.top)
    if block.step != 1:
        x = divide(x, block.step)
    if minus_zero == "nonzero":
        x = x + 0.0  # −0 + 0 = 0
    codes = encode(x, block.element, rounding=rounding, saturate=True)
    if minus_zero == "none":
        codes = torch.where(codes == block.element.sign_bit, 0, codes)
    return codes


def _grid(fit: Fit, block: BlockFormat, weight: torch.Tensor) -> Codebook:
    stored: tuple[Stream, ...] = (Stream("scales", fit.stored),)
    if fit.tensor is not None:
        stored = (*stored, Stream("tensor scale", fit.tensor))
    values = block.values(weight.device)
    return Codebook(values, fit.scale, block.element.bits, stored, weight.dtype)


METHOD = Method(
    name="microscaling",
    kind="weight",
    function=microscaling,
    needs=frozenset(),
    title="MX and NVFP4: small floating-point codes in scaled blocks",
    source="OCP Microscaling Formats 1.0; arXiv 2310.10537; conventions: see CONVENTIONS",
    events=EVENTS,
    choices={
        "format": tuple(BLOCK_FORMATS),
        "convention": tuple(CONVENTIONS),
        "scale_rounding": ("floor", "ceil", "even", "rceil"),
        "rounding": tuple(ROUNDINGS),
    },
    origins={
        "format": "OCP Microscaling Formats 1.0; gpt-oss checkpoints",
        "convention": "qviz: torchao's floor is the rule of OCP; mxint8 only microxcaling has",
        "scale_rounding": "the convention's own; torchao: floor",
        "rounding": "the convention's own; torchao: nearest, ties to even",
    },
)
