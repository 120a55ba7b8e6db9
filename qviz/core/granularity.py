"""Granularity: which values share one scale.

For a weight [out, in]: the whole tensor, one row (channel), `group_size` consecutive inputs of a
row, or `group_size` consecutive values of the flattened matrix (bitsandbytes). For activations
[tokens, in] a row is a token, and axis 0 shares a scale among the tokens of a column (KIVI's keys).
Every granularity is a view [rows, groups, group_size], so a method is written once, for groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

KINDS = ("tensor", "channel", "group", "token", "flat")
SIZED = ("group", "flat")  # the kinds that have a group size
WHOLE = -1  # how most systems write a group of the whole row, which is None here


def whole_or_size(group_size: object) -> int | None:
    """The requested group size; None for the whole row, which may be given as None or -1.

    Raises TypeError or ValueError for anything else.

    >>> whole_or_size(-1), whole_or_size(128)
    (None, 128)
    """
    if group_size is None:
        return None
    if isinstance(group_size, bool) or not isinstance(group_size, int | np.integer):
        raise TypeError(
            f"group_size must be an integer, or None (or -1) for the whole row; got {group_size!r}"
        )
    if group_size == WHOLE:
        return None
    if group_size < 1:
        raise ValueError(
            f"group_size must be at least 1, or None (or -1) for the whole row; got {group_size}"
        )
    return int(group_size)


def not_dividing(size: int, length: int, what: str) -> str:
    """The message for a group size that does not divide `length` columns, rows …: which sizes
    do."""
    fits = [d for d in range(8, length + 1) if length % d == 0] or [length]
    return (
        f"group_size {size} does not divide the {length} {what}. Sizes that do: "
        f"{', '.join(map(str, fits))}; None (or -1) puts all {length} into one group"
    )


@dataclass(frozen=True)
class Granularity:
    """`kind` is one of tensor, channel, group, token, flat.

    group_size  applies to "group" and "flat" only. None or -1 with "group" is the whole row, and
                makes it "channel"
    axis        along which the members of a group lie: 1 along a row, 0 along a column
    """

    kind: str
    group_size: int | None = None
    axis: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"granularity must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.axis not in (0, 1):
            raise ValueError(f"axis must be 0 (along columns) or 1 (along rows), got {self.axis!r}")
        size = whole_or_size(self.group_size)
        object.__setattr__(self, "group_size", size)  # this class is frozen
        if self.kind == "group" and size is None:
            object.__setattr__(self, "kind", "channel")
        if self.kind == "flat" and size is None:
            raise ValueError(
                'granularity="flat" needs a group_size: its groups run on from row to row'
            )
        if self.kind not in SIZED and size is not None:
            raise ValueError(
                f'group_size={size} does not apply to granularity="{self.kind}"; '
                f'use granularity="group", or omit group_size'
            )

    @classmethod
    def of(cls, kind: "str | Granularity", group_size: int | None = None) -> "Granularity":
        """From the options of a method."""
        if isinstance(kind, Granularity):
            if group_size is not None:
                raise ValueError(f"{kind} has its own group size; omit group_size={group_size}")
            return kind
        return cls(kind, group_size)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """View `x` [rows, columns] as [rows, groups, group_size] ([1, 1, all] for a tensor).

        Raises ValueError when the group size does not divide the row. Real systems treat a
        remainder differently, so the choice is left to the caller. Only "flat" may have a shorter
        last group, as in bitsandbytes; it is padded with zeros.
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
            raise ValueError(
                not_dividing(size, columns, f"{'columns' if self.axis else 'rows'} of this matrix")
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
        """The positions in the scales [rows, groups] of these cells' scales.

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
        """The group size; the whole length if the kind has none."""
        return int(self.group_size or length)

    def __str__(self) -> str:
        along = "" if self.axis else " along the columns"
        if self.kind in SIZED:
            flat = " of the flattened matrix" if self.kind == "flat" else ""
            return f"group of {self.group_size}{flat}{along}"
        return f"per {self.kind}{along}"
