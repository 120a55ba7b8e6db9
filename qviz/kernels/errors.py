"""How far a kernel's product is from what it should be, in float64."""

from dataclasses import dataclass, replace

import torch

from qviz.core.grids import Blocks, ScalarGrid
from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import Kernel

WHOLE = 2**22  # weights up to which every output is checked
SOME = 256  # outputs that are checked of larger ones


def checked_rows(shape: tuple[int, int], seed: int = 0) -> torch.Tensor | None:
    """The outputs [256] whose errors are computed, ascending, chosen by the seed; None: all.

    A float64 product with all of 8192×28672 would take longer than everything that is measured.
    """
    out, columns = shape
    if out * columns <= WHOLE or out <= SOME:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(out, generator=generator)[:SOME].sort().values


def rows_of(q: QuantizedTensor, rows: torch.Tensor) -> QuantizedTensor:
    """These rows [r] of a tensor, as one of r×in that dequantizes to the same bits.

    ValueError where rows have no parameters of their own: vector codebooks, transformed weights,
    groups along columns, flat blocks that run from one row into the next.
    """
    grid, granularity = q.grid, q.granularity
    if not isinstance(grid, ScalarGrid) or q.transform is not None or granularity.axis == 0:
        raise ValueError("the rows of this tensor share their parameters with others")
    rows = rows.to(q.codes.device)
    if granularity.kind == "tensor":
        part: ScalarGrid = grid
    elif granularity.kind == "flat":
        part = grid.at(*_flat_blocks(q, rows))
    else:
        part = _grid_rows(grid, rows)
    return replace(q, codes=q.codes[rows], grid=part, shape=(len(rows), q.shape[1]))


def _grid_rows(grid: ScalarGrid, rows: torch.Tensor) -> ScalarGrid:
    groups = torch.arange(grid.groups[1], device=rows.device)
    if not isinstance(grid, Blocks):
        return grid.at(rows[:, None], groups[None])
    count = grid.count // grid.data.shape[0] * len(rows)
    inner = grid.at(rows[:, None], groups[None])
    return replace(grid, data=grid.data[rows], inner=inner, count=count)


def _flat_blocks(q: QuantizedTensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [1, blocks of these rows], twice, into parameters that are [1, blocks]."""
    each, rest = divmod(q.shape[1], q.granularity.group_size or 1)
    if rest:
        raise ValueError("the blocks of this tensor run from one row into the next")
    blocks = (rows[:, None] * each + torch.arange(each, device=rows.device)).reshape(1, -1)
    return torch.zeros_like(blocks), blocks


@dataclass(frozen=True, eq=False)
class Target:
    """The references for products with one weight.

    q       the weight, or the rows of it that are checked
    rows    [r] which those are; None: all
    weight  [r, in] float64: dequantized, before any kernel's adapt
    """

    q: QuantizedTensor
    rows: torch.Tensor | None
    weight: torch.Tensor

    @classmethod
    def of(cls, q: QuantizedTensor, seed: int = 0) -> "Target":
        rows = checked_rows(q.shape, seed)
        part = q if rows is None else rows_of(q, rows)
        return cls(part, rows, part.dequantize().double())

    def errors(self, kernel: Kernel, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        """Of a product y [tokens, out] with x [tokens, in], relative in the Frobenius norm: from
        the kernel's reference, and from X·Ŵᵀ.

        Raises ValueError if y is not finite, because no error figure could express that.
        """
        x, y = x.to(self.q.codes.device), y.to(self.q.codes.device).double()
        if self.rows is not None:
            y = y[:, self.rows]
        if not bool(torch.isfinite(y).all()):
            raise ValueError("the product has values that are not finite")
        return _relative(y, kernel.reference(self.q, x)), _relative(y, x.double() @ self.weight.T)


def _relative(y: torch.Tensor, reference: torch.Tensor) -> float:
    """‖y − r‖/‖r‖; ‖y‖ where r is zero."""
    norm = reference.norm()
    return float((y - reference).norm() / torch.where(norm == 0, 1.0, norm))
