"""Granularity: which values share one scale.

For a weight [out, in]: the whole tensor, one row (channel), `group_size` consecutive inputs of a
row, or `group_size` consecutive values of the flattened matrix (bitsandbytes). For activations
[tokens, in] a row is a token, and axis 0 shares a scale among the tokens of a column (KIVI's keys).
Every granularity is the same thing seen as [rows, groups, group_size], so that a method is written
once, for groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

KINDS = ("tensor", "channel", "group", "token", "flat")
SIZED = ("group", "flat")  # the kinds that have a group size


@dataclass(frozen=True)
class Granularity:
    """`kind` is one of tensor, channel, group, token, flat.

    group_size  belongs to "group" and "flat" alone
    axis        along which the members of a group lie: 1 along a row, 0 along a column
    """

    kind: str
    group_size: int | None = None
    axis: int = 1

    def __post_init__(self) -> None:
        size = self.group_size
        if self.kind not in KINDS:
            raise ValueError(f"granularity must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.axis not in (0, 1):
            raise ValueError(f"axis must be 0 (along columns) or 1 (along rows), got {self.axis!r}")
        if size is None:
            if self.kind in SIZED:
                raise ValueError(f'granularity="{self.kind}" needs a group_size')
            return
        if self.kind not in SIZED:
            raise ValueError(
                f'group_size={size} has no meaning with granularity="{self.kind}"; '
                f'use granularity="group", or leave group_size out'
            )
        if isinstance(size, bool) or not isinstance(size, int | np.integer):
            raise TypeError(f"group_size must be an integer or None, got {size!r}")
        if size < 1:
            raise ValueError(f"group_size must be at least 1, got {size}")

    @classmethod
    def of(cls, kind: "str | Granularity", group_size: int | None = None) -> "Granularity":
        """From the options of a method. A group_size of None with "group" means the whole row."""
        if isinstance(kind, Granularity):
            if group_size is not None:
                raise ValueError(
                    f"{kind} has its own group size; leave group_size={group_size} out"
                )
            return kind
        if kind == "group" and group_size is None:
            return cls("channel")
        return cls(kind, group_size)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """View `x` [rows, columns] as [rows, groups, group_size] ([1, 1, all] for a tensor).

        Raises ValueError when the group size does not divide the row. The field's systems differ
        in what they do with a remainder, so this is left to the caller's choice. Only "flat" has a
        shorter last group, as bitsandbytes has; it comes padded with zeros.
        """
        if self.kind == "tensor":
            return x.reshape(1, 1, -1)
        if self.kind == "flat":
            size = self._size(x.numel())
            x = x.reshape(-1)
            if x.numel() % size:  # pad would copy even what needs no padding
                x = functional.pad(x, (0, -x.numel() % size))
            return x.reshape(1, -1, size)
        if self.axis == 0:
            x = x.T
        rows, columns = x.shape
        size = self._size(columns)
        if columns % size:
            fits = [d for d in range(1, columns + 1) if columns % d == 0 and d >= 8]
            what = "columns" if self.axis else "rows"
            raise ValueError(
                f"group_size {size} does not divide the {columns} {what} of this matrix. "
                f"Sizes that do: {', '.join(map(str, fits)) or columns}"
                + ("; or None, for groups of a whole row" if self.axis else "")
            )
        return x.reshape(rows, columns // size, size)

    def join(self, groups: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The matrix of this shape that `split` took apart."""
        if self.kind == "flat":
            return groups.reshape(-1)[: shape[0] * shape[1]].reshape(shape)
        if self.kind != "tensor" and self.axis == 0:
            return groups.reshape(shape[1], shape[0]).T
        return groups.reshape(shape)

    def groups(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape [rows, groups] of the scales of a matrix of this shape."""
        if self.kind == "tensor":
            return (1, 1)
        if self.kind == "flat":
            return (1, -(-shape[0] * shape[1] // self._size(1)))
        rows, columns = shape if self.axis else (shape[1], shape[0])
        return (rows, columns // self._size(columns))

    def locate(
        self, rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in the scales [rows, groups] the scales of these cells stand.

        rows [r] and columns [c] are indices; returns two index tensors that broadcast to [r, c].
        """
        rows, columns = rows[:, None], columns[None, :]
        if self.kind == "tensor":
            return torch.zeros_like(rows), torch.zeros_like(columns)
        if self.kind == "flat":
            return torch.zeros_like(rows), (rows * shape[1] + columns) // self._size(1)
        if self.axis == 0:
            return columns, rows // self._size(shape[0])
        return rows, columns // self._size(shape[1])

    def _size(self, length: int) -> int:
        """The group size; the whole length where the kind has none."""
        return int(self.group_size or length)

    def __str__(self) -> str:
        along = "" if self.axis else " along the columns"
        if self.kind in SIZED:
            flat = " of the flattened matrix" if self.kind == "flat" else ""
            return f"group of {self.group_size}{flat}{along}"
        return f"per {self.kind}{along}"
