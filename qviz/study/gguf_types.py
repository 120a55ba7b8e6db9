"""Every GGUF type on a layer: true bits, error of weights and outputs, with and without importance.

Importance is llama.cpp's imatrix: the mean square of each input over calibration text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from qviz.core.calibration import Calibration
from qviz.core.metrics import compare, output_energy, output_error
from qviz.core.tensor import QuantizedTensor
from qviz.methods.gguf import LAYOUTS, gguf

#: All types, by their bits; of two with the same bits the older one first.
TYPES = tuple(sorted(LAYOUTS, key=lambda name: (8 * LAYOUTS[name].nbytes / LAYOUTS[name].weights,
                                                LAYOUTS[name].weights)))  # fmt: skip
#: The parts of a block as a bill names them.
PARTS: Mapping[str, str] = {
    "codes": "codes", "scales": "scales", "mins": "minimums", "d": "d", "dmin": "dmin", "m": "m",
    "exponent": "exponent",
}  # fmt: skip


def importance_of(calibration: Calibration) -> torch.Tensor:
    """[in] float32: the mean square of each input, which is half of the Hessian's diagonal."""
    return (calibration.hessian.diagonal() / 2).float()


def fitting(columns: int) -> list[str]:
    """The types that take rows of so many weights; ValueError where none does."""
    found = [name for name in TYPES if columns % LAYOUTS[name].weights == 0]
    if not found:
        raise ValueError(
            f"rows of {columns} weights fit no GGUF type: each needs a multiple of 32. llama.cpp "
            f"stores such a layer as float16; choose another layer"
        )
    return found


def bits_of(name: str) -> dict[str, float]:
    """Bits per weight of each part of a block.

    >>> bits_of("Q4_K")
    {'codes': 4.0, 'scales': 0.1875, 'mins': 0.1875, 'd': 0.0625, 'dmin': 0.0625}
    """
    layout = LAYOUTS[name]
    return {part: count * bits / layout.weights for part, count, bits in layout.parts}


@dataclass(frozen=True, eq=False)
class Score:
    """A type on a layer.

    error   ‖W − Ŵ‖ / ‖W‖; output: the same of the layer's outputs, None without inputs
    weighs  whether the type can use an importance
    """

    type: str
    importance: bool
    tensor: QuantizedTensor
    error: float
    output: float | None
    weighs: bool

    @property
    def bits(self) -> float:
        return self.tensor.bits_per_weight


def scores(
    weight: torch.Tensor, types: Sequence[str], calibration: Calibration | None = None
) -> dict[str, tuple[Score, Score | None]]:
    """Type → its score without importance, and with it; None where there are no inputs.

    weight [out, in] float32
    """
    importance = None if calibration is None else importance_of(calibration)
    energy = None if calibration is None else output_energy(weight.double(), calibration)
    found: dict[str, tuple[Score, Score | None]] = {}
    for name in types:
        plain = _score(weight, name, None, calibration, energy)
        weighed = None
        if importance is not None:
            weighed = _score(weight, name, importance, calibration, energy)
        found[name] = plain, weighed
    return found


def _score(
    weight: torch.Tensor,
    name: str,
    importance: torch.Tensor | None,
    calibration: Calibration | None,
    energy: float | None,
) -> Score:
    q = gguf(weight, type=name, importance=importance)
    back = q.dequantize()
    output = None
    if calibration is not None:
        output = output_error(weight, back, calibration, energy=energy)
    weighs = importance is None or bool(q.info["importance"])
    return Score(
        name, importance is not None, q, compare(weight, back).relative_error, output, weighs
    )


@dataclass(frozen=True, eq=False)
class Shift:
    """Where a type puts its error, without and with importance, by how important the input is.

    importance  [parts] the mean importance of each part, from the least important inputs on
    plain, weighed  [parts] mean squared error of the weights there, over the mean square of all
    """

    importance: torch.Tensor
    plain: torch.Tensor
    weighed: torch.Tensor


def shift(
    weight: torch.Tensor, plain: QuantizedTensor, weighed: QuantizedTensor,
    importance: torch.Tensor, parts: int = 10,
) -> Shift:  # fmt: skip
    """The inputs in as many parts, equal to one input, by their importance [in]."""
    order = importance.argsort(stable=True)
    signal = weight.double().square().mean()
    each = [
        (weight.double() - q.dequantize().double()).square().mean(0) / signal
        for q in (plain, weighed)
    ]
    groups = order.tensor_split(min(parts, len(order)))
    return Shift(*(
        torch.stack([values.double()[group].mean() for group in groups])
        for values in (importance, *each)
    ))  # fmt: skip
