"""QuantizedTensor: integer codes, the grid that gives them their meaning, and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qviz.core.granularity import Granularity
from qviz.core.grids import Grid, ScalarGrid
from qviz.core.ledger import Ledger, Stream, ledger_of
from qviz.core.transform import InputScale, Transform


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A quantized weight [out, in].

    codes        [out, in] integers; [out, in/d, books] for vectors
    grid         what the codes mean
    granularity  which weights share a scale
    shape        (out, in)
    transform    the change of coordinates before quantizing; None: none
    g_idx        [in] int32: the group of each column where groups are not consecutive (GPTQ's
                 act-order); None: they are
    info         what ran and what had to be changed: method, convention, degenerate groups …
    """

    codes: torch.Tensor
    grid: Grid
    granularity: Granularity
    shape: tuple[int, int]
    transform: Transform | None = None
    g_idx: torch.Tensor | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def dequantize(self) -> torch.Tensor:
        """The reconstruction [out, in] in the weight's own coordinates."""
        if self.g_idx is None:
            x = self.grid.reconstruct(self.codes, self.granularity, self.shape)
        else:
            x = self._cells(slice(None), slice(None))
        return x if self.transform is None else self.transform.undo(x)

    def folded(self) -> "QuantizedTensor":
        """The same codes for a model with the transform folded into its layers."""
        return replace(self, transform=None)

    def unfolded(self) -> "QuantizedTensor":
        """The same, with input scales that are stored because no neighbouring layer absorbs
        them."""
        if not isinstance(self.transform, InputScale):
            return self
        return replace(self, transform=replace(self.transform, folded=False))

    def window(self, rows: slice, columns: slice) -> torch.Tensor:
        """A part of the reconstruction [rows, columns], without computing the rest if possible."""
        if not isinstance(self.grid, ScalarGrid):
            return self.dequantize()[rows, columns]
        if self.transform is None:
            return self._cells(rows, columns)
        if isinstance(self.transform, InputScale):
            return self.transform.part(rows, columns).undo(self._cells(rows, columns))
        return self.dequantize()[rows, columns]

    def _cells(self, rows: slice, columns: slice) -> torch.Tensor:
        """The reconstruction of some cells, in the coordinates in which they were quantized."""
        at = [
            torch.arange(n, device=self.codes.device)[part]
            for n, part in zip(self.shape, (rows, columns), strict=True)
        ]
        grid = self._scalar_grid().at(*self._groups_of(*at))
        return grid.decode(self.codes[rows, columns].unsqueeze(-1)).squeeze(-1)

    def _groups_of(
        self, rows: torch.Tensor, columns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.g_idx is not None:
            return rows[:, None], self.g_idx[columns].long()[None, :]
        return self.granularity.locate(rows, columns, self.shape)

    def group_of(self, row: int, column: int) -> tuple[int, int]:
        """The position of one weight's parameters in the grid's parameters [rows, groups]."""
        if not (0 <= row < self.shape[0] and 0 <= column < self.shape[1]):
            raise IndexError(
                f"there is no weight [{row}, {column}]: rows go from 0 to {self.shape[0] - 1}, "
                f"columns from 0 to {self.shape[1] - 1}"
            )
        r, g = self._groups_of(torch.tensor([row]), torch.tensor([column]))
        return int(r), int(g)

    def _scalar_grid(self) -> ScalarGrid:
        if isinstance(self.grid, ScalarGrid):
            return self.grid
        raise ValueError("a vector codebook quantizes several weights at once, not single ones")

    def levels(self, row: int, column: int) -> torch.Tensor:
        """All values [levels], ascending, that the weight at this place could have been rounded to.

        Raises ValueError where no weight has levels of its own: vector codebooks, rotated weights.
        """
        levels = self._scalar_grid().levels(*self.group_of(row, column))
        if self.transform is None:
            return levels
        if isinstance(self.transform, InputScale):
            cell = self.transform.part(slice(row, row + 1), slice(column, column + 1))
            return cell.undo(levels.unsqueeze(0)).squeeze(0)
        raise ValueError(
            "a rotated weight has no levels of its own: every code moves the whole row"
        )

    def _streams(self) -> list[Stream]:
        streams = self.grid.streams(self.codes)
        if self.g_idx is not None:
            streams.append(Stream("g_idx", self.g_idx))
        if self.transform is not None:
            streams += self.transform.streams()
        return streams

    def pack(self) -> dict[str, np.ndarray]:
        """Name → bytes (uint8) of everything that must be stored to rebuild the weight."""
        return {stream.name: stream.pack() for stream in self._streams()}

    @cached_property
    def ledger(self) -> Ledger:
        return ledger_of(self._streams(), self.shape[0] * self.shape[1])

    @property
    def bits_per_weight(self) -> float:
        return self.ledger.bits_per_weight

    def __repr__(self) -> str:
        method = self.info.get("method", "quantized")
        return (
            f"QuantizedTensor({method}, {self.shape[0]}×{self.shape[1]}, {self.grid.bits} bits, "
            f"{self.granularity}, {self.bits_per_weight:.3f} bits per weight)"
        )
