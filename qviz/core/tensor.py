"""QuantizedTensor: integer codes, the grid that gives them their meaning, and what they cost.

Symbols: q codes, s scale, z zero point (the integer code of 0.0), x̂ the reconstruction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from qviz.core.granularity import Granularity


@dataclass(frozen=True)
class Affine:
    """Equally spaced levels: x̂ = s·(q − z), or x̂ = s·q + offset.

    scale       [rows, groups], positive, in the dtype it is stored in
    zero_point  [rows, groups] or None (then 0): an integer dtype where the system stores an
                integer code, a floating one where it stores a real-valued zero (HQQ)
    offset      [rows, groups] or None: what is added after scaling (quanto, KIVI)
    bits        width of one code; qmin, qmax the codes that may occur
    compute     dtype in which x̂ is computed
    """

    scale: torch.Tensor
    bits: int
    qmin: int
    qmax: int
    compute: torch.dtype
    zero_point: torch.Tensor | None = None
    offset: torch.Tensor | None = None

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """x̂ [rows, groups, n] in `compute` for codes of that shape."""
        x = codes.to(self.compute)
        if self.zero_point is not None:
            x = x - self.zero_point.to(self.compute).unsqueeze(-1)
        x = x * self.scale.to(self.compute).unsqueeze(-1)
        if self.offset is not None:
            x = x + self.offset.to(self.compute).unsqueeze(-1)
        return x

    def select(self, rows: torch.Tensor, groups: torch.Tensor) -> "Affine":
        """The grid of these groups: parameters [len(rows), len(groups)]."""

        def pick(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x[rows][:, groups]

        return replace(
            self,
            scale=self.scale[rows][:, groups],
            zero_point=pick(self.zero_point),
            offset=pick(self.offset),
        )

    def levels(self, row: int, group: int) -> torch.Tensor:
        """The 2^bits (or fewer) values [levels] that one group can represent, ascending."""
        one = self.select(torch.tensor([row]), torch.tensor([group]))
        codes = torch.arange(self.qmin, self.qmax + 1, device=self.scale.device)
        return one.decode(codes.reshape(1, 1, -1)).flatten()

    def extremes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The lowest and highest representable value of each group, both [rows, groups]."""
        ends = torch.tensor([self.qmin, self.qmax], device=self.scale.device)
        low_high = self.decode(ends.expand(*self.scale.shape, 2))
        return low_high[..., 0], low_high[..., 1]

    def streams(self) -> list["Stream"]:
        """What is stored beside the codes."""
        streams = [Stream("scales", self.scale)]
        if self.zero_point is not None:
            integer = not self.zero_point.is_floating_point()
            # An integer zero point is one of the codes, so it needs no more bits than a code.
            zero = self.zero_point - self.qmin if integer else self.zero_point
            streams.append(Stream("zero points", zero, self.bits if integer else None))
        if self.offset is not None:
            streams.append(Stream("offsets", self.offset))
        return streams


@dataclass(frozen=True)
class Stream:
    """A run of stored numbers: `bits` wide unsigned integers, or floats as they are (None)."""

    name: str
    values: torch.Tensor
    bits: int | None = None

    @property
    def width(self) -> int:
        return self.bits if self.bits is not None else 8 * self.values.element_size()

    def pack(self) -> np.ndarray:
        """The bytes, uint8 [ceil(count·width / 8)]; integers least significant bit first."""
        flat = self.values.detach().cpu().flatten()
        if self.bits is None:
            return flat.view(torch.uint8).numpy()
        shifts = np.arange(self.bits, dtype=np.uint8)
        planes = (flat.to(torch.uint8).numpy()[:, None] >> shifts) & 1
        return np.packbits(planes.reshape(-1), bitorder="little")


@dataclass(frozen=True)
class LedgerItem:
    """One line of the bill: `count` numbers of `bits` bits each."""

    name: str
    count: int
    bits: int

    @property
    def total_bits(self) -> int:
        return self.count * self.bits


@dataclass(frozen=True)
class Ledger:
    """What a quantized tensor costs, item by item, in bits."""

    items: tuple[LedgerItem, ...]
    weights: int

    @property
    def total_bits(self) -> int:
        return sum(item.total_bits for item in self.items)

    @property
    def nbytes(self) -> int:
        return self.total_bits // 8  # padding makes it a whole number

    @property
    def bits_per_weight(self) -> float:
        return self.total_bits / self.weights

    def per_weight(self, name: str) -> float:
        """Bits per weight that the items of this name cost."""
        return sum(item.total_bits for item in self.items if item.name == name) / self.weights

    def __str__(self) -> str:
        lines = [
            f"{i.name:>12}: {i.count:>9} × {i.bits:>2} bits = {i.total_bits / self.weights:.4f} bpw"
            for i in self.items
        ]
        return "\n".join([*lines, f"{'total':>12}: {self.bits_per_weight:.4f} bits per weight"])


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized weight [out, in].

    codes        [out, in] int8 or uint8
    grid         what the codes mean
    granularity  which weights share a scale
    shape        (out, in)
    info         what ran and what had to be adapted: method, convention, degenerate groups …
    """

    codes: torch.Tensor
    grid: Affine
    granularity: Granularity
    shape: tuple[int, int]
    info: Mapping[str, Any] = field(default_factory=dict)

    def dequantize(self) -> torch.Tensor:
        """The reconstruction [out, in] in the grid's compute dtype."""
        return self.grid.decode(self.granularity.split(self.codes)).reshape(self.shape)

    def window(self, rows: slice, columns: slice) -> torch.Tensor:
        """A part of the reconstruction [rows, columns], without computing the rest."""
        codes = self.codes[rows, columns]
        at = [torch.arange(n)[part] for n, part in zip(self.shape, (rows, columns), strict=True)]
        if self.granularity.kind == "tensor":
            row_of, group_of = torch.zeros_like(at[0]), torch.zeros_like(at[1])
        else:
            row_of, group_of = at[0], at[1] // (self.granularity.group_size or self.shape[1])
        return self.grid.select(row_of, group_of).decode(codes.unsqueeze(-1)).squeeze(-1)

    def _streams(self) -> list[Stream]:
        codes = Stream("codes", self.codes.to(torch.int16) - self.grid.qmin, self.grid.bits)
        return [codes, *self.grid.streams()]

    def pack(self) -> dict[str, np.ndarray]:
        """Name → bytes (uint8) of everything that must be stored to rebuild the weight."""
        return {stream.name: stream.pack() for stream in self._streams()}

    @property
    def ledger(self) -> Ledger:
        items = [LedgerItem(s.name, s.values.numel(), s.width) for s in self._streams()]
        padding = sum(-item.total_bits % 8 for item in items)
        if padding:
            items.append(LedgerItem("padding", padding, 1))
        return Ledger(tuple(items), self.shape[0] * self.shape[1])

    @property
    def bits_per_weight(self) -> float:
        return self.ledger.bits_per_weight

    def levels(self, row: int, column: int) -> torch.Tensor:
        """All values [levels] that the weight at this place could have taken."""
        if not (0 <= row < self.shape[0] and 0 <= column < self.shape[1]):
            raise IndexError(
                f"there is no weight [{row}, {column}]: rows go from 0 to {self.shape[0] - 1}, "
                f"columns from 0 to {self.shape[1] - 1}"
            )
        return self.grid.levels(*self.granularity.group_of(row, column))

    def __repr__(self) -> str:
        method = self.info.get("method", "quantized")
        return (
            f"QuantizedTensor({method}, {self.shape[0]}×{self.shape[1]}, {self.grid.bits} bits, "
            f"{self.granularity}, {self.bits_per_weight:.3f} bits per weight)"
        )
