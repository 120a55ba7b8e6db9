"""Random rotation before rounding.

A weight with a few large entries wastes its levels on them. Multiplied by a random rotation, each
entry becomes a signed mean over a whole row. So the entries look like draws from one Gaussian,
whose largest is only about √(2·ln(mn)) times the rest; that matrix is rounded, and multiplying by
the transposed rotation gives the weight back. The rotation costs one bit per channel to store, and
at run time one fast transform of the inputs, unless it is folded into the neighbouring layers
(qviz.models.rotate), which is how QuaRot uses it.

Symbols: W weight [out, in], H Hadamard matrix of order n, S = diag(±1) random signs,
Q = S·Hᵀ/√n the rotation, W' = W·Q the rotated weight (W' = Qₒᵀ·W·Q where both sides are rotated),
μ = max|W_ij|·√(mn)/‖W‖ the incoherence. Papers: QuaRot (Ashkboos et al. 2024, arXiv 2404.00456),
section 4; QuIP# (Tseng et al. 2024, arXiv 2402.04396), section 3, which rotates both sides. Code:
QuaRot fake_quant/hadamard_utils.py:random_hadamard_matrix, QuIP# lib/algo/quip.py.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from qviz.core.check import as_matrix
from qviz.core.hadamard import hadamard_transform, random_signs
from qviz.core.ledger import Stream
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods import affine as rounding
from qviz.methods.registry import Method

SIDES = ("input", "both")


@dataclass(frozen=True)
class Rotation:
    """W' = Qₒᵀ·W·Q with Q = diag(signs)·Hᵀ/√n, a Transform.

    signs   [in] int8, ±1: the randomness of the input side
    output  [out] int8 or None: that of the output side, where it is rotated too

    The signs themselves are stored, one bit each, instead of the seed: this costs 1/out bits per
    weight, and code
    without this generator can read them. (QuIP#
    stores them as vectors of 16-bit numbers; QuaRot, which folds Q into the model, stores nothing.)
    """

    signs: torch.Tensor
    output: torch.Tensor | None = None

    @classmethod
    def random(
        cls,
        shape: tuple[int, int],
        seed: int,
        sides: str = "input",
        device: torch.device | str = "cpu",
    ) -> "Rotation":
        """A rotation of weights [out, in]; both sides are drawn from one stream of signs."""
        both = random_signs(shape[1] + shape[0], seed).to(device)
        return cls(both[: shape[1]], both[shape[1] :] if sides == "both" else None)

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """Qₒᵀ·W·Q, computed in float64 and returned in the weight's dtype."""
        w = _times_q(weight, self.signs)
        if self.output is not None:
            w = _times_q(w.T, self.output).T
        return w.to(weight.dtype)

    def undo(self, weight: torch.Tensor) -> torch.Tensor:
        """Qₒ·W'·Qᵀ, computed in float64 and returned in the weight's dtype."""
        w = weight
        if self.output is not None:
            w = _times_q_transposed(w.T, self.output).T
        return _times_q_transposed(w, self.signs).to(weight.dtype)

    def streams(self) -> list[Stream]:
        sides = {"input signs": self.signs, "output signs": self.output}
        return [
            Stream(name, (s < 0).to(torch.uint8), 1) for name, s in sides.items() if s is not None
        ]


def _times_q(x: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """x·Q [rows, n] float64: the rows with their signs changed, then transformed."""
    # In place, and float64 only where it is worked on: a weight of 4096² has 128 MB in it.
    y = hadamard_transform(x * signs.double())
    return y.div_(y.new_full((), math.sqrt(len(signs))))


def _times_q_transposed(x: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """x·Qᵀ [rows, n] float64, which undoes x·Q."""
    y = hadamard_transform(x.double(), transpose=True)
    return y.mul_(signs.to(y)).div_(y.new_full((), math.sqrt(len(signs))))


def incoherence(x: torch.Tensor) -> torch.Tensor:
    """μ = max|x|·√(mn) / ‖x‖ in the Frobenius norm, a float64 scalar; 0 for an all-zero matrix.

    1 if all entries are of one size, √(mn) if a single one is not zero, about √(2·ln(mn)) for a
    Gaussian matrix.
    """
    y = _in_units_of_its_largest(x)
    largest = torch.maximum(y.amax(), -y.amin())
    size = y.square_().mean().sqrt()
    return torch.where(size > 0, largest / size, 0.0)


def kurtosis(x: torch.Tensor) -> torch.Tensor:
    """mean(d⁴) / mean(d²)² with d = x − mean(x), a float64 scalar; 0 for a constant matrix.

    3 for a Gaussian matrix, more where outliers make up the variance.
    """
    d = _in_units_of_its_largest(x)  # a new tensor, so worked on in place
    squares = d.sub_(d.mean()).square_()
    variance = squares.mean()
    spread = variance > 1e-30  # for a constant the subtraction leaves only rounding error
    return torch.where(spread, squares.square_().mean() / variance.square(), 0.0)


def _in_units_of_its_largest(x: torch.Tensor) -> torch.Tensor:
    """x / max|x| in float64, a new tensor, so that fourth powers neither overflow nor vanish."""
    y = x.to(torch.float64, copy=True)
    largest = torch.maximum(y.amax(), -y.amin())
    return y.div_(torch.where(largest > 0, largest, 1.0))


EVENTS = (
    EventSpec(
        "rotation.signs",
        {
            "input": "[in] ±1, the diagonal of S",
            "output": "[out] ±1 of the output side; [0] where that side stays",
        },
        "Q = S·Hᵀ / √n, S = diag(±1)",
        "QuaRot fake_quant/hadamard_utils.py:random_hadamard_matrix",
    ),
    EventSpec(
        "rotation.rotated",
        {"weight": "[out, in] before", "rotated": "[out, in] after"},
        "W' = W·Q, or Qₒᵀ·W·Q",
        "QuaRot, section 4; QuIP#, section 3",
    ),
    EventSpec(
        "rotation.spread",
        {
            "incoherence": "[2] μ before and after",
            "kurtosis": "[2] before and after; 3 for a Gaussian",
            "largest": "[2] the largest |entry| before and after",
        },
        "μ = max|W_ij|·√(mn) / ‖W‖",
        "QuIP#, definition 2.1",
    ),
    *rounding.EVENTS,
)


def rotation(
    weight: torch.Tensor | np.ndarray,
    *,
    bits: int = 4,
    symmetric: bool = True,
    group_size: int | None = None,
    convention: str = "quarot",
    scale_dtype: torch.dtype | None = None,
    sides: str = "input",
    seed: int = 0,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Rotate the weight at random, then round it to nearest as `affine` does.

    weight       [out, in]; float32, bfloat16, float16 or float64; a Hadamard matrix must exist for
                 `in` (and `out`, if both sides are rotated): K·2^m, see qviz.core.hadamard
    bits, symmetric, group_size, convention, scale_dtype
                 as in affine; group_size counts rotated inputs, None or −1 is the whole row
    sides        "input" (W·Q, QuaRot) or "both" (Qₒᵀ·W·Q, QuIP#)
    seed         of the signs

    The rotation is computed in float64 and the rotated weight is kept in the weight's dtype, as
    QuaRot keeps it. Returns codes [out, in] and scales of the rotated weight; `transform` is the
    Rotation, so that dequantize() is in original coordinates. `info` has incoherence, kurtosis and
    largest entry, each (before, after). Raises ValueError for a size without a Hadamard matrix and
    for a weight whose rotation overflows its dtype, and what affine raises.

    >>> q = rotation(torch.randn(64, 768), bits=4)
    >>> q.info["kurtosis"], q.bits_per_weight
    """
    weight = as_matrix(weight)
    if sides not in SIDES:
        raise ValueError(f"sides must be one of {', '.join(map(repr, SIDES))}, got {sides!r}")
    turn = Rotation.random((weight.shape[0], weight.shape[1]), seed, sides, weight.device)
    if emit is not None:
        output = turn.signs[:0] if turn.output is None else turn.output
        emit("rotation.signs", input=turn.signs, output=output)

    rotated = turn.apply(weight)
    if not torch.isfinite(rotated).all():
        half = weight.dtype == torch.float16
        wider = "weight.float()" if half else "weight.double()"
        raise ValueError(
            f"the rotated weight overflows {str(weight.dtype).removeprefix('torch.')}: a rotation "
            f"can make an entry √{weight.shape[1]} times larger. Pass {wider}"
        )
    if emit is not None:
        emit("rotation.rotated", weight=weight, rotated=rotated)
    pair = (weight, rotated)
    mu = torch.stack([incoherence(x) for x in pair])
    tails = torch.stack([kurtosis(x) for x in pair])
    largest = torch.stack([x.abs().amax() for x in pair])
    if emit is not None:
        emit("rotation.spread", incoherence=mu, kurtosis=tails, largest=largest)

    q = rounding.affine(
        rotated,
        bits=bits,
        symmetric=symmetric,
        group_size=group_size,
        convention=convention,
        scale_dtype=scale_dtype,
        emit=emit,
    )
    info = {
        **q.info,
        "method": "rotation",
        "sides": sides,
        "seed": seed,
        "incoherence": tuple(mu.tolist()),
        "kurtosis": tuple(tails.tolist()),
        "largest": tuple(largest.tolist()),
    }
    return QuantizedTensor(q.codes, q.grid, q.granularity, q.shape, transform=turn, info=info)


METHOD = Method(
    name="rotation",
    kind="weight",
    function=rotation,
    needs=frozenset(),
    title="Random Hadamard rotation, then round to nearest",
    source="QuaRot (Ashkboos et al. 2024, arXiv 2404.00456), section 4; QuIP# (Tseng et al. 2024, "
    "arXiv 2402.04396), section 3",
    events=EVENTS,
    bits=rounding.BITS,
    choices={"convention": tuple(rounding.CONVENTIONS), "sides": ("input", "both")},
    origins={
        "bits": "QuaRot's main setting, W4A4KV4",
        "symmetric": "QuaRot (w_asym is off)",
        "group_size": "QuaRot (w_groupsize −1: the whole row)",
        "convention": "QuaRot WeightQuantizer, without its search for a clipping ratio",
        "scale_dtype": "qviz: the convention's own precision",
        "sides": "QuaRot; QuIP# takes both",
        "seed": "qviz: so that results repeat",
    },
)
