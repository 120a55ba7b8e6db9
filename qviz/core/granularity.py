"""Granularity: which values share one scale.

For a weight [out, in]: the whole tensor, one row (channel), or `group_size` consecutive inputs of
a row. For activations [tokens, in] a row is a token. Every granularity is the same thing seen as
[rows, groups, group_size], so that a method is written once, for groups.
"""

from dataclasses import dataclass

import numpy as np
import torch

KINDS = ("tensor", "channel", "group", "token")


@dataclass(frozen=True)
class Granularity:
    """`kind` is one of tensor, channel, group, token; `group_size` belongs to "group" alone."""

    kind: str
    group_size: int | None = None

    def __post_init__(self) -> None:
        size = self.group_size
        if self.kind not in KINDS:
            raise ValueError(f"granularity must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if size is None:
            return
        if self.kind != "group":
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

        Raises ValueError when the group size does not divide the columns. The field's systems
        differ in what they do with a remainder, so this is left to the caller's choice.
        """
        rows, columns = x.shape
        if self.kind == "tensor":
            return x.reshape(1, 1, rows * columns)
        size = self.group_size or columns
        if columns % size:
            fits = [d for d in range(1, columns + 1) if columns % d == 0 and d >= 8]
            raise ValueError(
                f"group_size {size} does not divide the {columns} columns of this matrix. "
                f"Sizes that do: {', '.join(map(str, fits)) or columns}; "
                f'or use granularity="channel"'
            )
        return x.reshape(rows, columns // size, size)

    def groups(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape [rows, groups] of the scales of a matrix of this shape."""
        if self.kind == "tensor":
            return (1, 1)
        return (shape[0], shape[1] // (self.group_size or shape[1]))

    def group_of(self, row: int, column: int) -> tuple[int, int]:
        """Where in the scales [rows, groups] the scale of one cell stands."""
        if self.kind == "tensor":
            return (0, 0)
        return (row, column // self.group_size if self.group_size else 0)

    def __str__(self) -> str:
        return f"group of {self.group_size}" if self.kind == "group" else f"per {self.kind}"
