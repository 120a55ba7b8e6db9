"""Affine (uniform) quantization by rounding to nearest.

Each group of weights gets equally spaced levels: a scale s and, when asymmetric, a zero point z
or an offset are found from the group's smallest and largest weight, and every weight goes to the
nearest level. "INT4 symmetric" means half a dozen different things in practice, so the rule is a
named `convention`. Each is tested bit for bit against the system it comes from.

Symbols: x weights of one group, lo and hi their minimum and maximum, b bits, N = 2^b − 1 spacings,
s scale, z zero point, q codes, RNE rounding half to even. Source of the idea: Jacob et al. 2018,
section 2.1; the source of each rule stands in `CONVENTIONS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from qviz.core.check import FLOAT_DTYPES, as_matrix, require_bits, unknown
from qviz.core.divide import divide
from qviz.core.granularity import Granularity
from qviz.core.grids import Affine, affine_values
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.registry import Method


@dataclass(frozen=True)
class Fit:
    """What a convention decides for each group, all tensors [rows, groups].

    `inverse` is given by systems that multiply by 1/s instead of dividing by s: near a tie the
    two round differently. `zero_first` says that z is added before rounding.
    """

    scale: torch.Tensor
    qmin: int
    qmax: int
    zero: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    zero_first: bool = False


@dataclass(frozen=True)
class Arithmetic:
    """How a number gets its nearest level, and the value of that level.

    All tensors are in the dtype to compute in and broadcast against the numbers. `inverse` and
    `zero_first` are those of the Fit.
    """

    scale: torch.Tensor
    zero: torch.Tensor | None
    offset: torch.Tensor | None
    inverse: torch.Tensor | None
    zero_first: bool
    qmin: int
    qmax: int

    def position(self, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """x / s, a new tensor or `out`, plus z where it is added before rounding."""
        if self.offset is not None:
            x = torch.sub(x, self.offset, out=out)
        # Dividing and multiplying by the inverse differ in the last bit, near a tie in codes.
        if self.inverse is not None:
            x = torch.mul(x, self.inverse, out=out)
        else:
            x = torch.div(x, self.scale, out=out)
        # Systems add z before or after rounding, and at a tie the two differ.
        return x if self.zero is None or not self.zero_first else x.add_(self.zero)

    def round_(self, position: torch.Tensor) -> torch.Tensor:
        """The nearest codes, not yet clamped, as floats in place of `position`.

        In place, because a matrix of 4096² is 64 MB, and each further copy takes as long as the
        arithmetic.
        """
        position.round_()
        return position if self.zero is None or self.zero_first else position.add_(self.zero)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The values of codes that are given as floats: a new tensor."""
        return affine_values(codes, self.scale, self.zero, self.offset)


@dataclass(frozen=True)
class Levels:
    """The levels of every group as stored, and how a weight gets its nearest one.

    The same code rounds a whole matrix (here) and one column at a time (GPTQ). `inverse` and
    `zero_first` are those of the Fit, `computed` is its scale, before it was stored.
    """

    grid: Affine
    inverse: torch.Tensor | None
    zero_first: bool
    computed: torch.Tensor

    def position(self, x: torch.Tensor) -> torch.Tensor:
        """Where x [rows, groups, n] falls: a new tensor; see `Arithmetic.position`."""
        return self._spread(x.dtype).position(x)

    def round_(self, position: torch.Tensor) -> torch.Tensor:
        """The nearest codes in place of `position`; see `Arithmetic.round_`."""
        return self._spread(position.dtype).round_(position)

    def _spread(self, dtype: torch.dtype) -> Arithmetic:
        return self.arithmetic(lambda x: x.to(dtype).unsqueeze(-1))

    def column(self) -> Arithmetic:
        """Of a single group, for columns [rows]."""
        return self.arithmetic(lambda x: x.to(self.grid.compute).squeeze(-1))

    def arithmetic(self, shape: Callable[[torch.Tensor], torch.Tensor]) -> Arithmetic:
        """With each parameter [rows, groups] brought into the shape and dtype of the numbers."""

        def each(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else shape(x)

        grid = self.grid
        return Arithmetic(
            shape(grid.scale),
            each(grid.zero_point),
            each(grid.offset),
            each(self.inverse),
            self.zero_first,
            grid.qmin,
            grid.qmax,
        )

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Levels":
        """The same with each of its tensors changed."""

        def each(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else change(x)

        grid = self.grid
        changed = replace(
            grid,
            scale=change(grid.scale),
            zero_point=each(grid.zero_point),
            offset=each(grid.offset),
        )
        computed = change(self.computed)
        return replace(self, grid=changed, inverse=each(self.inverse), computed=computed)

    def tensors(self) -> list[torch.Tensor]:
        """All its tensors, in the order in which `map` has them."""
        found: list[torch.Tensor] = []

        def keep(x: torch.Tensor) -> torch.Tensor:
            found.append(x)
            return x

        self.map(keep)
        return found

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> "Levels":
        """The same with other tensors, in the order of `tensors`."""
        rest = iter(tensors)
        return self.map(lambda _: next(rest))

    def working(self) -> "Levels":
        """The same numbers in the dtype to compute in, so that no use has to convert them."""
        return self.map(lambda x: x.to(self.grid.compute))

    def of_rows(self, rows: torch.Tensor) -> "Levels":
        """The levels of some rows only."""
        return self.map(lambda x: x[rows])

    def shown_zero(self) -> torch.Tensor:
        """The zero points for a picture: zeros where the convention has none."""
        zero = self.grid.zero_point
        return torch.zeros_like(self.grid.scale) if zero is None else zero


Rule = Callable[[torch.Tensor, torch.Tensor, int], Fit]


@dataclass(frozen=True)
class Convention:
    """A system's rule for groups of weights.

    compute   None: it works in the weight's dtype
    constant  the scale of a group whose own is stored as 0; None: there is no rule for it
    """

    symmetric: Rule | None
    asymmetric: Rule | None
    compute: torch.dtype | None
    source: str
    constant: float | None = None


def _absmax(lo: torch.Tensor, hi: torch.Tensor) -> torch.Tensor:
    return torch.maximum(lo.abs(), hi.abs())


def _with_zero(lo: torch.Tensor, hi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The range stretched to contain 0, so that 0 can be represented."""
    return lo.clamp(max=0), hi.clamp(min=0)


def _textbook(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    top = 2 ** (bits - 1) - 1
    # The floor keeps an all-zero group from dividing by zero.
    return Fit(divide(_absmax(lo, hi).clamp(min=1e-5), top), -top, top)


def _gptq_symmetric(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    steps = 2**bits - 1
    lo, hi = _with_zero(lo, hi)
    hi = _absmax(lo, hi)
    # A group without negative weights keeps lo = 0: its scale is half as large, yet z below stays
    # in the middle, so its upper half is clipped. That is what the reference code does.
    lo = torch.where(lo < 0, -hi, lo)
    lo, hi = _unit_if_zero(lo, hi)
    scale = divide(hi - lo, steps)
    zero = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.int32)
    return Fit(scale, 0, steps, zero=zero)


def _gptq_asymmetric(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    steps = 2**bits - 1
    lo, hi = _unit_if_zero(*_with_zero(lo, hi))
    scale = divide(hi - lo, steps)
    return Fit(scale, 0, steps, zero=torch.round(-lo / scale).to(torch.int32))


def _unit_if_zero(lo: torch.Tensor, hi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An all-zero group gets the range [−1, 1], so that its scale is not zero."""
    empty = (lo == 0) & (hi == 0)
    return lo.masked_fill(empty, -1.0), hi.masked_fill(empty, 1.0)


def _floored_absmax(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    half = 2 ** (bits - 1)
    return Fit(divide(_absmax(lo, hi).clamp(min=1e-5), half - 1), -half, half - 1)


def _awq_asymmetric(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    steps = 2**bits - 1
    scale = divide((hi - lo).clamp(min=1e-5), steps)
    # 0 is not forced into the range: in a one-signed group z saturates and the far end is clipped.
    zero = (-torch.round(lo / scale)).clamp(0, steps).to(torch.int32)
    return Fit(scale, 0, steps, zero=zero)


def _compressed_symmetric(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    half = 2 ** (bits - 1)
    lo, hi = _with_zero(lo, hi)
    scale = divide(_absmax(lo, hi), (2**bits - 1) / 2)
    return Fit(_eps_if_zero(scale), -half, half - 1)


def _compressed_asymmetric(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    half = 2 ** (bits - 1)
    lo, hi = _with_zero(lo, hi)
    scale = divide(hi - lo, 2**bits - 1)
    zero = (-half - lo / scale).clamp(-half, half - 1)
    # 0/0 in an all-zero group: the reference casts the NaN to the integer 0. A range so small that
    # its scale underflows gives ∞ instead, and z saturates.
    zero = torch.round(zero.nan_to_num(0.0)).to(torch.int8)
    return Fit(_eps_if_zero(scale), -half, half - 1, zero=zero, zero_first=True)


def _eps_if_zero(scale: torch.Tensor) -> torch.Tensor:
    return scale.masked_fill(scale == 0, torch.finfo(scale.dtype).eps)


def _torchao_symmetric(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    half = 2 ** (bits - 1)
    lo, hi = _with_zero(lo, hi)
    return _torchao(divide(torch.maximum(-lo, hi), (2**bits - 1) / 2), half)


def _torchao_no_clipping(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    half = 2 ** (bits - 1)
    lo, hi = _with_zero(lo, hi)
    return _torchao(torch.maximum(divide(lo, -half), divide(hi, half - 1)), half)


def _torchao_asymmetric(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    half = 2 ** (bits - 1)
    lo, hi = _with_zero(lo, hi)
    fit = _torchao(divide(hi - lo, 2**bits - 1), half)
    zero = (-half - torch.round(lo / fit.scale)).clamp(-half, half - 1).to(torch.int32)
    return Fit(fit.scale, fit.qmin, fit.qmax, zero=zero, inverse=fit.inverse)


def _torchao(scale: torch.Tensor, half: int) -> Fit:
    # The smallest normal number is the floor, because 1/s of a subnormal overflows.
    scale = scale.clamp(min=torch.finfo(scale.dtype).smallest_normal)
    return Fit(scale, -half, half - 1, inverse=1.0 / scale)


def _minmax_offset(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    steps = 2**bits - 1
    return Fit(divide(hi - lo, steps), 0, steps, offset=lo)


def _hqq(lo: torch.Tensor, hi: torch.Tensor, bits: int) -> Fit:
    steps = 2**bits - 1
    spread = hi - lo
    inverse = (steps / spread).masked_fill_(spread <= 1e-4, 1.0).clamp_(max=2e4)
    zero = -lo * inverse
    if bits == 4:  # the default of its configuration, for 4 bits alone
        zero = torch.round(zero)
    return Fit(1.0 / inverse, 0, steps, zero=zero, inverse=inverse, zero_first=True)


CONVENTIONS: dict[str, Convention] = {
    "compressed_tensors": Convention(
        _compressed_symmetric,
        _compressed_asymmetric,
        None,
        "compressed-tensors quantization/utils/helpers.py:calculate_qparams (llm-compressor, vLLM)",
    ),
    "absmax": Convention(
        _textbook, None, None, "textbook; SmoothQuant smoothquant/fake_quant.py (restricted range)"
    ),
    "gptq": Convention(
        _gptq_symmetric, _gptq_asymmetric, torch.float32, "GPTQ quant.py:Quantizer.find_params"
    ),
    "awq": Convention(
        _floored_absmax,
        _awq_asymmetric,
        None,
        "llm-awq quantizer.py:pseudo_quantize_tensor; symmetric as in GPTQModel",
    ),
    "torchao": Convention(
        _torchao_symmetric,
        _torchao_asymmetric,
        None,
        "torchao quantization/quant_primitives.py:_choose_qparams_affine",
    ),
    "torchao_no_clipping": Convention(
        _torchao_no_clipping, None, None, "torchao MappingType.SYMMETRIC_NO_CLIPPING_ERR"
    ),
    "quarot": Convention(
        _floored_absmax, None, None, "QuaRot fake_quant/quant_utils.py:WeightQuantizer"
    ),
    "quanto": Convention(
        None, _minmax_offset, None, "optimum-quanto tensor/optimizers/max_optimizer.py"
    ),
    # KIVI divides 0 by 0 in a constant group; its GPU makes code 0 of that, and 0·s + min is right
    # for any s. A scale of 1 does the same on every device.
    "kivi": Convention(None, _minmax_offset, None, "KIVI quant/new_pack.py", constant=1.0),
    "hqq": Convention(
        None, _hqq, torch.float32, "hqq core/quantize.py:Quantizer.quantize, without optimization"
    ),
}
DEFAULT_CONVENTION = "compressed_tensors"
BITS = range(2, 9)

EVENTS = (
    EventSpec(
        "affine.range",
        {"lo": "[rows, groups] smallest weight", "hi": "[rows, groups] largest weight"},
        "lo = min x, hi = max x over each group",
        "Jacob et al. 2018, section 2.1",
    ),
    EventSpec(
        "affine.scale",
        {
            "scale": "[rows, groups] spacing of the levels, as stored",
            "zero": "[rows, groups] q of 0",
        },
        "s = range / N, z = the code of 0 (0 when symmetric)",
        "the convention's source",
    ),
    EventSpec(
        "affine.position",
        {"position": "[rows, columns] where each weight falls, in spacings, before rounding"},
        "x / s, plus z where the convention adds it before rounding",
        "the convention's source",
    ),
    EventSpec(
        "affine.codes",
        {"codes": "[rows, columns] integer codes", "clipped": "[rows, columns] bool"},
        "q = clamp(RNE(position), qmin, qmax)",
        "the convention's source",
    ),
)


def affine(
    weight: torch.Tensor | np.ndarray,
    *,
    bits: int = 4,
    symmetric: bool = True,
    granularity: str | Granularity = "group",
    group_size: int | None = 128,
    convention: str = DEFAULT_CONVENTION,
    scale_dtype: torch.dtype | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Round every weight to the nearest of the equally spaced levels of its group.

    weight       [out, in] (or activations [tokens, in]); float32, bfloat16, float16 or float64
    bits         2 to 8
    symmetric    levels placed around 0, without a stored zero point
    granularity  "tensor", "channel", "group" or "token"; group_size counts inputs and is used only
                 by "group"; None or −1 is the whole row. Or a Granularity, which may run
                 along the columns
    convention   one of `CONVENTIONS`; each names the system it follows
    scale_dtype  dtype in which scales (and real-valued zeros and offsets) are stored; codes are
                 then found with the stored values. None: the dtype the convention computes in

    Returns codes [out, in] int8 or uint8, scales [rows, groups], and integer zero points where
    the convention stores them. `info` counts the degenerate groups and clipped weights.
    Raises ValueError for NaN or Inf, a group size that does not divide the row, a combination
    that the convention does not define, and scales or levels that its arithmetic cannot hold.

    >>> q = affine(torch.randn(8, 256), bits=4, group_size=128)
    >>> q.dequantize().shape, q.bits_per_weight
    (torch.Size([8, 256]), 4.25)
    """
    weight = as_matrix(weight)
    require_bits(bits, BITS)
    _, compute = _rule(convention, symmetric, weight.dtype)
    kind = granularity.kind if isinstance(granularity, Granularity) else granularity
    if kind == "flat":
        raise ValueError(
            'groups of the flattened matrix are those of "nf4"; here use granularity="group"'
        )
    unit = Granularity.of(granularity, group_size if granularity == "group" else None)
    shape = (weight.shape[0], weight.shape[1])
    x = unit.split(weight).to(compute)  # [rows, groups, group_size]

    lo, hi = x.amin(-1), x.amax(-1)  # [rows, groups]; aminmax over a dim takes 4× as long
    if emit is not None:
        emit("affine.range", lo=lo, hi=hi)

    levels = fit_levels(
        lo, hi, bits=bits, symmetric=symmetric, convention=convention, scale_dtype=scale_dtype
    )
    grid = levels.grid
    if emit is not None:
        emit("affine.scale", scale=grid.scale, zero=levels.shown_zero())

    position = levels.position(x)
    if emit is not None:
        emit("affine.position", position=unit.join(position, shape))
    rounded = levels.round_(position)
    clipped = (rounded < grid.qmin) | (rounded > grid.qmax)
    codes = unit.join(rounded.clamp_(grid.qmin, grid.qmax).to(grid.code_dtype), shape)
    if emit is not None:
        emit("affine.codes", codes=codes, clipped=unit.join(clipped, shape))

    info = {
        "method": "affine",
        "convention": convention,
        "symmetric": symmetric,
        "device": str(weight.device),
        "compute": str(compute).removeprefix("torch."),
        "constant_groups": int(torch.count_nonzero(lo == hi)),
        "clipped": int(torch.count_nonzero(clipped)),
    }
    return QuantizedTensor(codes, grid, unit, shape, info=info)


def fit_levels(
    lo: torch.Tensor,
    hi: torch.Tensor,
    *,
    bits: int,
    symmetric: bool,
    convention: str,
    scale_dtype: torch.dtype | None = None,
    check: bool = True,
) -> Levels:
    """The levels that a convention gives to groups that reach from lo to hi, both [rows, groups].

    lo and hi are in the dtype to compute in. Raises ValueError for a combination that the
    convention does not define and, if `check`, for scales or levels that the arithmetic cannot
    hold. Without it nothing here waits for a GPU, and `require_levels` must be called later.

    >>> levels = fit_levels(lo, hi, bits=4, symmetric=True, convention="gptq")
    >>> codes = levels.round_(levels.position(x)).clamp(levels.grid.qmin, levels.grid.qmax)
    """
    rule, compute = _rule(convention, symmetric, lo.dtype)
    levels = store(rule(lo, hi, bits), bits, compute, scale_dtype, convention)
    if check:
        require_levels(levels, convention)
    return levels


def _rule(convention: str, symmetric: bool, dtype: torch.dtype) -> tuple[Rule, torch.dtype]:
    """The convention's rule for this mode and the dtype it computes in."""
    if convention not in CONVENTIONS:
        raise ValueError(unknown("convention", convention, CONVENTIONS))
    chosen = CONVENTIONS[convention]
    rule = chosen.symmetric if symmetric else chosen.asymmetric
    if rule is None:
        mode = "symmetric" if symmetric else "asymmetric"
        others = [
            name
            for name, c in CONVENTIONS.items()
            if (c.symmetric if symmetric else c.asymmetric) is not None
        ]
        raise ValueError(
            f"the convention {convention!r} has no {mode} form; these have: {', '.join(others)}"
        )
    # Where a system says float32, float64 is kept too, for studies of exactness.
    if chosen.compute is None or dtype == torch.float64:
        return rule, dtype
    return rule, chosen.compute


def store(
    fit: Fit, bits: int, compute: torch.dtype, dtype: torch.dtype | None, convention: str
) -> Levels:
    """The levels with their parameters in the dtype they are stored in, not yet checked."""
    if dtype is not None and dtype not in FLOAT_DTYPES:
        names = ", ".join(map(str, FLOAT_DTYPES))
        raise TypeError(f"scale_dtype must be None or one of {names}; got {dtype!r}")

    def stored(x: torch.Tensor | None) -> torch.Tensor | None:
        return x if x is None or dtype is None or not x.is_floating_point() else x.to(dtype)

    scale = stored(fit.scale)
    assert scale is not None
    if (constant := CONVENTIONS[convention].constant) is not None:
        scale = scale.masked_fill(scale == 0, constant)
    inverse = fit.inverse
    if inverse is not None and dtype is not None:
        inverse = 1.0 / scale.to(compute)
    grid = Affine(scale, bits, fit.qmin, fit.qmax, compute, stored(fit.zero), stored(fit.offset))
    return Levels(grid, inverse, fit.zero_first, fit.scale)


def require_levels(levels: Levels, convention: str, first_group: int = 0) -> None:
    """Raise ValueError if the dtype of the scales, or the arithmetic, cannot hold a scale or a
    level.

    `first_group` is the number of the first of these groups, for the message.
    """
    grid, scale = levels.grid, levels.grid.scale
    bad = ~(torch.isfinite(scale) & (scale > 0))
    if bad.any():
        row, group = bad.nonzero()[0].tolist()
        value, was = float(scale[row, group]), float(levels.computed[row, group])
        raise ValueError(
            f"the scale of group [{row}, {first_group + group}] is {value} "
            + (f"(computed as {was:g}) " if value != was else "")
            + f"in {str(scale.dtype).removeprefix('torch.')}: the group is constant, or its "
            "range is too small or too large for that dtype, and the convention "
            f"{convention!r} has no rule for this case. "
            f"{_remedy(scale.dtype, levels.computed.dtype, constant=was == 0)}"
        )
    # A zero point or offset that its dtype cannot hold ends here too, as infinite levels.
    bad = ~torch.isfinite(torch.stack(grid.extremes())).all(dim=0)
    if bad.any():
        row, group = bad.nonzero()[0].tolist()
        raise ValueError(
            f"the levels of group [{row}, {first_group + group}] overflow: its weights are too "
            f"large, or too far from zero, for {str(scale.dtype).removeprefix('torch.')} scales in "
            f"{str(grid.compute).removeprefix('torch.')} arithmetic. "
            f"{_remedy(scale.dtype, levels.computed.dtype)}"
        )


def _remedy(stored: torch.dtype, computed: torch.dtype, *, constant: bool = False) -> str:
    """What to do where scales, found in `computed`, or levels do not fit the dtypes that they have.

    Following the advice may lead to another such message, but never to the same one again.
    """
    if constant:
        return f'Use a convention that has one, such as convention="{DEFAULT_CONVENTION}"'
    if torch.finfo(stored).max < torch.finfo(computed).max:
        return f"Pass scale_dtype={computed}, which holds them"
    if computed == torch.float64:
        return "Divide the numbers by a power of two, and multiply the result by it"
    half = computed == torch.float16
    return f"Pass the numbers as {'float32, .float()' if half else 'float64, .double()'}"


METHOD = Method(
    name="affine",
    kind="weight",
    function=affine,
    needs=frozenset(),
    title="Round to nearest on equally spaced levels",
    source="Jacob et al. 2018 (arXiv 1712.05877), section 2.1; conventions: see CONVENTIONS",
    events=EVENTS,
    bits=BITS,
    choices={
        "granularity": ("tensor", "channel", "group", "token"),
        "convention": tuple(CONVENTIONS),
    },
    origins={
        "bits": "GPTQ, AWQ, llm-compressor W4A16",
        "symmetric": "llm-compressor W4A16, GPTQModel",
        "granularity": "llm-compressor W4A16",
        "group_size": "GPTQ, AWQ, llm-compressor W4A16",
        "convention": "qviz: what vLLM loads most",
        "scale_dtype": "qviz: the convention's own precision",
    },
)
