"""Sixteen levels against sixteen others, on real weights: instant errors for any levels.

A codebook sends x = w/a, a weight over the largest magnitude of its block, to the nearest level v,
and w is reconstructed as v·a. The squared error of all weights with one level is Σw² − 2v·Σa·w +
v²·Σa².
In the order of x the weights of a level are neighbours, so with running sums of a·w and a² the
error of any sixteen levels costs sixteen look-ups, and is exact. The same sums give the best level
of a bin, Σa·w / Σa², and with it Lloyd's rounds, which end when moving any single level no longer
helps.

Sources: QLoRA (arXiv 2305.14314), section 3, for the blocks; Lloyd 1982, Max 1960. The rivals are
those of `qviz.methods`; INT4's groups are the same blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qviz.core import metrics
from qviz.core.calibration import Calibration
from qviz.core.check import as_matrix, unknown
from qviz.core.grids import Codebook
from qviz.core.nearest import midpoints
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Trace
from qviz.methods.affine import affine
from qviz.methods.nf4 import nf4

LEVELS = 16
ROUNDS = 2000  # of Lloyd's method; on trained layers it converges after some hundred
CELLS = 256
EVEN = tuple(-1 + 2 * i / (LEVELS - 1) for i in range(LEVELS))
NF4_NAME, NF4_DOUBLE, FP4_NAME = "NF4", "NF4, double quantization", "FP4"
SYMMETRIC, ASYMMETRIC, LLOYD = "INT4 symmetric", "INT4 asymmetric", "Lloyd–Max"
OWN = "your levels"
RIVALS = (NF4_NAME, NF4_DOUBLE, FP4_NAME, SYMMETRIC, ASYMMETRIC, LLOYD)
# The textbook's, which papers set NF4 against; and that of vLLM's 4-bit files.
CONVENTIONS = {SYMMETRIC: "absmax", ASYMMETRIC: "compressed_tensors"}
Floats = npt.NDArray[np.floating[Any]]


def distinct(levels: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """Sixteen levels as `nf4` takes them, [16] float32: sorted, within −1 … 1, no two equal.

    Equal ones are moved apart by the least amount that float32 allows. ValueError unless they are
    sixteen
    finite numbers.
    """
    given = torch.as_tensor(levels, dtype=torch.float32).detach().flatten()
    if given.shape != (LEVELS,) or not bool(torch.isfinite(given).all()):
        raise ValueError(f"give {LEVELS} finite levels, not {given.tolist()}")
    values = given.clamp(-1, 1).sort().values.numpy().copy()
    for i in range(1, LEVELS):
        values[i] = max(values[i], np.nextafter(values[i - 1], np.float32(2)))
    top = np.float32(1)
    for i in reversed(range(LEVELS)):
        values[i] = top = min(values[i], top)
        top = np.nextafter(top, np.float32(-2))
    return torch.from_numpy(values)


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight in blocks, in the order of x = w/a, with running sums.

    x         [n] float32, ascending; what `nf4` rounds
    energies  [n + 1] float64, Σw² of those before
    products  [n + 1] float64, Σa·w; a is the magnitude that the stored bytes stand for
    squares   [n + 1] float64, Σa²
    """

    x: Floats
    energies: Floats
    products: Floats
    squares: Floats

    @classmethod
    def of(
        cls, weight: torch.Tensor, *, group_size: int = 64, double_quant: bool = False
    ) -> "Blocks":
        """Of a weight [out, in]; ValueError as in `nf4`, whose own x and a these are."""
        weight = as_matrix(weight)
        trace = Trace("nf4.normalized")
        q = nf4(weight, group_size=group_size, double_quant=double_quant, emit=trace)
        assert isinstance(q.grid, Codebook)
        n = weight.numel()
        x = trace[0]["normalized"].flatten()[:n].numpy()
        a = q.grid.scale.double().flatten().numpy().repeat(group_size)[:n]
        w = weight.detach().double().flatten().numpy()
        order = np.argsort(x, kind="stable")
        a, w = a[order], w[order]
        return cls(x[order], _running(w * w), _running(a * w), _running(a * a))

    @property
    def energy(self) -> float:
        """Σw² of all weights."""
        return float(self.energies[-1])

    @property
    def reach(self) -> float:
        """How many times the root mean square the largest weight of a block is, in the mean of
        squares over blocks: 1 / √(Σw² / Σa²)."""
        return math.sqrt(metrics.ratio(float(self.squares[-1]), self.energy))

    def cuts(self, levels: torch.Tensor) -> npt.NDArray[np.int64]:
        """[17] where the weights of each level begin, in the order of x. One that lies on a bound
        goes down, as in `nf4`."""
        inner = np.searchsorted(self.x, midpoints(levels).numpy(), side="right")
        return np.concatenate([[0], inner, [len(self.x)]])

    def counts(self, levels: torch.Tensor) -> npt.NDArray[np.int64]:
        """[16] how many weights have each level."""
        return np.diff(self.cuts(levels))

    def squared_errors(self, levels: torch.Tensor) -> Floats:
        """[16] Σ(w − v·a)² of the weights of each level; levels [16] float32, ascending."""
        cuts, v = self.cuts(levels), levels.double().numpy()
        ww, aw, aa = (np.diff(s[cuts]) for s in (self.energies, self.products, self.squares))
        # rounding may end below zero
        errors: Floats = np.maximum(ww - 2 * v * aw + v * v * aa, 0.0)
        return errors

    def relative_error(self, levels: torch.Tensor) -> float:
        """‖W − Ŵ‖ / ‖W‖, as `metrics.compare` has it of a dequantized weight."""
        return math.sqrt(metrics.ratio(float(self.squared_errors(levels).sum()), self.energy))

    def moved(self, levels: torch.Tensor) -> torch.Tensor:
        """One round of Lloyd's method: move each level to the best place for its weights. Some
        weights may then be nearer to another level. A level without weights stays. The error never
        rises."""
        cuts = self.cuts(levels)
        aw, aa = np.diff(self.products[cuts]), np.diff(self.squares[cuts])
        best = np.divide(aw, aa, out=levels.double().numpy(), where=aa > 0)
        return distinct(torch.from_numpy(best))

    def best(self) -> torch.Tensor:
        """Lloyd–Max levels [16] float32 for these weights: rounds until no level moves.

        Such an end point is not always the global optimum. So the rounds begin at the best levels
        whose
        bins consist of whole cells, of which there are `CELLS` with about equally many weights.
        """
        return self.rested(self._coarse())

    def _coarse(self) -> torch.Tensor:
        """The best sixteen levels whose bins consist of whole cells, by dynamic programming."""
        cells = np.unique(np.linspace(0, len(self.x), CELLS + 1).round().astype(np.int64))
        i, j = np.triu_indices(len(cells), 1)
        ww, aw, aa = (
            s[cells[j]] - s[cells[i]] for s in (self.energies, self.products, self.squares)
        )
        cost = np.full((len(cells), len(cells)), np.inf)  # of one level for the cells i … j − 1
        cost[i, j] = ww - np.divide(aw * aw, aa, out=np.zeros_like(aw), where=aa > 0)
        least, came = np.append(0.0, np.full(len(cells) - 1, np.inf)), []
        for _ in range(min(LEVELS, len(cells) - 1)):
            through = least[:, None] + cost
            came.append(through.argmin(0))
            least = through.min(0)
        cuts = [len(cells) - 1]
        for step in reversed(came):
            cuts.append(int(step[cuts[-1]]))
        at = cells[cuts[::-1]]
        aw, aa = np.diff(self.products[at]), np.diff(self.squares[at])
        found = np.divide(aw, aa, out=np.zeros_like(aw), where=aa > 0)
        return distinct(np.append(found, np.ones(LEVELS - len(found))).tolist())

    def rested(self, levels: torch.Tensor) -> torch.Tensor:
        """The levels at which Lloyd's rounds end when started from these."""
        for _ in range(ROUNDS):
            before, levels = levels, self.moved(levels)
            if torch.equal(before, levels):
                break
        return levels


def _running(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


@dataclass(frozen=True, eq=False)
class Entry:
    """One contender's result on a layer.

    error   ‖W − Ŵ‖ / ‖W‖; output_error the same of X·Wᵀ, None without inputs
    bits    per weight, of everything that is stored
    tensor  what was stored, perhaps with the weight in another shape (a block to a row)
    shape   of the weight
    """

    name: str
    error: float
    output_error: float | None
    bits: float
    tensor: QuantizedTensor
    shape: tuple[int, int]

    def dequantize(self) -> torch.Tensor:
        """Ŵ [out, in]."""
        return self.tensor.dequantize().reshape(self.shape)

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Where in `tensor` the weight [row, column] is."""
        return divmod(row * self.shape[1] + column, self.tensor.shape[1])

    def value(self, row: int, column: int) -> float:
        """One reconstructed weight."""
        r, c = self.place(row, column)
        return float(self.tensor.window(slice(r, r + 1), slice(c, c + 1)))


class Duel:
    """A weight, its inputs if known, and all contenders that code it in four bits.

    weight [out, in]; calibration as `metrics.output_error` takes it.
    """

    def __init__(self, weight: torch.Tensor, calibration: Calibration | None = None) -> None:
        self.weight, self.calibration = as_matrix(weight), calibration
        self.shape = (self.weight.shape[0], self.weight.shape[1])
        self._energy = None if calibration is None else metrics.output_energy(weight, calibration)
        self._blocks: dict[int, Blocks] = {}

    def blocks(self, group_size: int) -> Blocks:
        """The weight in blocks of this size, sorted once."""
        if group_size not in self._blocks:
            self._blocks[group_size] = Blocks.of(self.weight, group_size=group_size)
        return self._blocks[group_size]

    def rival(self, name: str, group_size: int, *, convention: str | None = None) -> Entry | None:
        """One of `RIVALS` with blocks of this size; None where INT4 cannot have them.

        `convention` is INT4's, as `affine` takes it; without it that of `CONVENTIONS`.
        """
        if name not in RIVALS:
            raise ValueError(unknown("rival", name, RIVALS))
        if name in CONVENTIONS:
            return self._integers(name, group_size, convention or CONVENTIONS[name])
        if name == LLOYD:
            q = nf4(self.weight, levels=self.blocks(group_size).best(), group_size=group_size)
        elif name == FP4_NAME:
            q = nf4(self.weight, format="fp4", group_size=group_size)
        else:
            q = nf4(self.weight, double_quant=name == NF4_DOUBLE, group_size=group_size)
        return self._entry(name, q)

    def own(self, levels: torch.Tensor, group_size: int) -> Entry:
        """Levels of your own, ascending [16] within −1 … 1, as `distinct` makes them."""
        return self._entry(OWN, nf4(self.weight, levels=levels, group_size=group_size))

    def _integers(self, name: str, group_size: int, convention: str) -> Entry | None:
        """INT4 on the same blocks of the flattened weight. Where a row is whole blocks, they are
        the groups of a row that its systems have."""
        if self.weight.numel() % group_size:
            return None
        q = affine(
            self.weight.reshape(-1, group_size), bits=4, granularity="channel", group_size=None,
            symmetric=name == SYMMETRIC, convention=convention, scale_dtype=torch.float16,
        )  # fmt: skip
        return self._entry(name, q)

    def _entry(self, name: str, q: QuantizedTensor) -> Entry:
        back, output = q.dequantize().reshape(self.shape), None
        if self.calibration is not None:
            output = metrics.output_error(self.weight, back, self.calibration, energy=self._energy)
        error = metrics.compare(self.weight, back).relative_error
        return Entry(name, error, output, q.bits_per_weight, q, self.shape)
