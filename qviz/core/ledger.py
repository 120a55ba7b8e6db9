"""What is stored: runs of numbers, their packed bytes, and their cost in bits."""

from dataclasses import dataclass

import numpy as np
import torch

PIECE = (
    1 << 16
)  # numbers taken apart into bits at once; a multiple of 8, so that whole bytes result


@dataclass(frozen=True)
class LedgerItem:
    """One line of the ledger: `count` numbers of `bits` bits each."""

    name: str
    count: int
    bits: int

    @property
    def total_bits(self) -> int:
        return self.count * self.bits


@dataclass(frozen=True, eq=False)
class Stream:
    """A run of stored numbers: `bits` wide unsigned integers, or values as they are (None).

    bitorder  which end of a byte the first integer takes: "little" the low bits, "big" the high
    parts     the contents of the bytes, where one run interleaves several things (GGUF blocks)
    fill      the code that fills the last byte, where whole codes make up a byte
    """

    name: str
    values: torch.Tensor
    bits: int | None = None
    bitorder: str = "little"
    parts: tuple[LedgerItem, ...] = ()
    fill: int = 0

    @property
    def width(self) -> int:
        return self.bits if self.bits is not None else 8 * self.values.element_size()

    @property
    def items(self) -> tuple[LedgerItem, ...]:
        """The lines of the ledger, without the bits that fill the last byte."""
        return self.parts or (LedgerItem(self.name, self.values.numel(), self.width),)

    def pack(self) -> np.ndarray:
        """The bytes, uint8 [ceil(count·width / 8)]."""
        flat = self.values.detach().cpu().flatten()
        if self.bits is None:
            return flat.contiguous().view(torch.uint8).numpy()
        wide = flat.to(torch.uint8 if self.bits <= 8 else torch.int64).numpy()
        if 8 % self.bits == 0:  # whole codes in every byte: one shift for each place in it
            count = 8 // self.bits
            if len(wide) % count:
                wide = np.pad(wide, (0, -len(wide) % count), constant_values=self.fill)
            places = wide.reshape(-1, count)
            order = range(count) if self.bitorder == "little" else range(count - 1, -1, -1)
            out = np.zeros(len(places), np.uint8)
            for place, position in zip(places.T, order, strict=True):
                out |= place << np.uint8(self.bits * position)
            return out
        shifts = np.arange(self.bits, dtype=wide.dtype)
        if self.bitorder == "big":
            shifts = shifts[::-1]
        parts = []
        for start in range(0, max(len(wide), 1), PIECE):
            planes = (wide[start : start + PIECE, None] >> shifts & 1).astype(np.uint8)
            parts.append(np.packbits(planes.reshape(-1), bitorder=self.bitorder))  # type: ignore[call-overload]
        return np.concatenate(parts)


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


def ledger_of(streams: list[Stream], weights: int) -> Ledger:
    """The ledger of these streams. The bits that fill their last bytes get a line of their own."""
    items = [item for stream in streams for item in stream.items]
    padding = sum(-sum(item.total_bits for item in stream.items) % 8 for stream in streams)
    if padding:
        items.append(LedgerItem("padding", padding, 1))
    return Ledger(tuple(items), weights)
