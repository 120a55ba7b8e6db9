"""How each convention computes the spacing s of a group from its range, by the system's usual
name."""

from collections.abc import Callable
from dataclasses import dataclass

from qviz.ui.widgets import number

Range = Callable[[float, float], float]


def _size(low: float, high: float) -> float:
    return max(abs(low), abs(high))


def _span(low: float, high: float) -> float:
    return high - low


def _span_with_zero(low: float, high: float) -> float:
    return max(high, 0.0) - min(low, 0.0)


def _gptq(low: float, high: float) -> float:
    """Twice the largest magnitude, but once in a group without negative weights, as in the
    reference."""
    return (2 if low < 0 else 1) * _size(min(low, 0.0), max(high, 0.0))


@dataclass(frozen=True)
class Recipe:
    """range(low, high) / divisor(bits) is the spacing; `words` name the range, `formula` the
    divisor."""

    range: Range
    words: str
    divisor: Callable[[int], float]
    formula: str


_LARGEST = "the largest magnitude"
_TOP = Recipe(_size, _LARGEST, lambda bits: 2 ** (bits - 1) - 1, "2ᵇ⁻¹ − 1")
_HALF = Recipe(_size, _LARGEST, lambda bits: (2**bits - 1) / 2, "(2ᵇ − 1) / 2")
_ALL = Recipe(_span, "largest − smallest", lambda bits: 2**bits - 1, "2ᵇ − 1")
_ALL_WITH_ZERO = Recipe(
    _span_with_zero, "largest − smallest, 0 included", lambda bits: 2**bits - 1, "2ᵇ − 1"
)
_TWICE = Recipe(_gptq, "twice the largest magnitude", lambda bits: 2**bits - 1, "2ᵇ − 1")

#: Convention → the names under which people know it, and its recipes (symmetric, asymmetric); None
#: where it has none, or where it is not a single division.
SYSTEMS: dict[str, tuple[str, Recipe | None, Recipe | None]] = {
    "compressed_tensors": ("LLM Compressor, vLLM", _HALF, _ALL_WITH_ZERO),
    "absmax": ("textbook absmax, SmoothQuant", _TOP, None),
    "gptq": ("GPTQ, AutoGPTQ", _TWICE, _ALL_WITH_ZERO),
    "awq": ("AWQ", _TOP, _ALL),
    "torchao": ("torchao", _HALF, _ALL_WITH_ZERO),
    "torchao_no_clipping": ("torchao without clipping", None, None),
    "quarot": ("QuaRot", _TOP, None),
    "quanto": ("Optimum Quanto", None, _ALL),
    "kivi": ("KIVI", None, _ALL),
    "hqq": ("HQQ", None, _ALL),
}


def recipe(convention: str, symmetric: bool) -> Recipe | None:
    """How the convention divides, or None where it is not a single division."""
    _, even, uneven = SYSTEMS[convention]
    return even if symmetric else uneven


def system(convention: str, symmetric: bool) -> str:
    """A convention as an option reads: who uses it, and what it divides by.

    >>> system("absmax", True)
    'textbook absmax, SmoothQuant: ÷ (2ᵇ⁻¹ − 1)'
    """
    name, made = SYSTEMS[convention][0], recipe(convention, symmetric)
    if made is None:
        return f"{name}: by the end farther from 0"
    formula = made.formula if "/" in made.formula else f"({made.formula})"
    return f"{name}: ÷ {formula}"


def spacing(
    convention: str, symmetric: bool, bits: int, low: float, high: float, scale: float
) -> str:
    """The division that made `scale`, with its numbers; the scale alone where another rule made it
    (a constant group, a floor)."""
    made = recipe(convention, symmetric)
    if made is not None:
        reach, divisor = made.range(low, high), made.divisor(bits)
        if scale and abs(reach / divisor / scale - 1) < 0.01:  # as stored: float16 and bfloat16 too
            return f"{number(reach, 3)} ÷ {number(divisor)} = {number(scale, 3)}"
    return number(scale, 3)
