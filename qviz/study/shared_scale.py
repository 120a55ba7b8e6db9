"""One block of weights with a shared scale: how MX and NVFP4 quantize each weight in it.

Every number is what `qviz.methods.microscaling` computed or stored; nothing is quantized again
here. Symbols as there: v weight, a largest magnitude of the block, s scale, P element format.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from qviz.core import metrics
from qviz.core.formats import decode
from qviz.core.grids import Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Trace
from qviz.methods.microscaling import BLOCK_FORMATS, BlockFormat, microscaling


@dataclass(frozen=True, eq=False)
class Traced:
    """A matrix that `microscaling` has quantized, and what it computed on the way.

    weight   [out, in]; q its codes and scales
    amax     [out, blocks] in the dtype that the convention computes in
    scaled   [out, in] v / s; clipped: bool, beyond the largest element
    """

    weight: torch.Tensor
    q: QuantizedTensor
    amax: torch.Tensor
    scaled: torch.Tensor
    clipped: torch.Tensor


@dataclass(frozen=True)
class Member:
    """One weight of a block.

    weight   as trained; scaled: v / s as the convention computes it
    code     bit pattern of the element format; element: the number it stands for; value: the
             reconstructed weight
    clipped  beyond the largest element
    """

    column: int
    weight: float
    scaled: float
    code: int
    element: float
    value: float
    clipped: bool

    @property
    def error(self) -> float:
        return self.weight - self.value


@dataclass(frozen=True)
class SharedScale:
    """A block.

    row, start  where it is in the matrix
    amax        its largest magnitude
    stored      the scale's byte; scale: the factor of every element
    tensor      the tensor's own scale as it is stored, None where there is none
    """

    format: str
    row: int
    start: int
    amax: float
    stored: int
    scale: float
    tensor: float | None
    members: tuple[Member, ...]

    @property
    def block(self) -> BlockFormat:
        return BLOCK_FORMATS[self.format]

    @property
    def scale_format(self) -> str:
        """The number format of the scale's byte."""
        return "fp8_e4m3" if self.format == "nvfp4" else "e8m0"

    @property
    def local(self) -> float:
        """What the scale's byte stands for."""
        return float(decode(self.stored, self.scale_format))

    @property
    def clipped(self) -> int:
        """How many weights lie beyond the largest element."""
        return sum(member.clipped for member in self.members)

    @property
    def relative_error(self) -> float:
        """Root mean square of the errors as a share of that of the weights; 0 for zeros."""
        energy = math.fsum(m.weight**2 for m in self.members)
        lost = math.fsum(m.error**2 for m in self.members)
        return math.sqrt(lost / energy) if energy else 0.0

    @property
    def used(self) -> int:
        """How many different values its weights became."""
        return len({member.value for member in self.members})


def traced(weight: torch.Tensor, **options: Any) -> Traced:
    """`microscaling(weight, **options)` with what it computed on the way."""
    trace = Trace("microscaling.amax", "microscaling.scaled", "microscaling.codes")
    q = microscaling(weight, emit=trace, **options)
    amax, scaled, codes = trace
    return Traced(weight, q, amax["amax"], scaled["scaled"], codes["clipped"])


def shared_scale(run: Traced, row: int, column: int) -> SharedScale:
    """The block of the weight at [row, column].

    >>> block = shared_scale(traced(torch.randn(8, 256), format="mxfp4"), 3, 100)
    >>> block.start, len(block.members), block.scale == 2.0 ** (block.stored - 127)
    (96, 32, True)
    """
    q, name = run.q, str(run.q.info["format"])
    assert isinstance(q.grid, Codebook)
    r, g = q.group_of(row, column)
    size = BLOCK_FORMATS[name].size
    here = slice(row, row + 1), slice(g * size, (g + 1) * size)
    streams = {stream.name: stream.values for stream in q.grid.stored}
    tensor = streams.get("tensor scale")
    codes = q.codes[here].flatten()
    columns = (
        run.weight[here], run.scaled[here], codes, q.grid.values[codes.int()], q.window(*here),
        run.clipped[here],
    )  # fmt: skip
    lists = [x.flatten().tolist() for x in columns]
    return SharedScale(
        name,
        row,
        g * size,
        float(run.amax[r, g]),
        int(streams["scales"][r, g]),
        float(q.grid.scale[r, g]),
        None if tensor is None else float(tensor),
        tuple(Member(g * size + k, *each) for k, each in enumerate(zip(*lists, strict=True))),
    )


@dataclass(frozen=True)
class Cost:
    """What a block format costs for a matrix, and how it changes it.

    bits     per weight, scales included
    off      ‖W − Ŵ‖ / ‖W‖
    clipped  share of the weights beyond the largest element
    """

    bits: float
    off: float
    clipped: float


def cost_of(weight: torch.Tensor, q: QuantizedTensor) -> Cost:
    """Of a matrix that `microscaling` has quantized."""
    off = metrics.compare(weight, q.dequantize()).relative_error
    return Cost(q.bits_per_weight, off, int(q.info["clipped"]) / weight.numel())
