"""What each bit of a GGUF block means, read from the tables that encode and decode it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qviz.methods.gguf.layout import LAYOUTS, Layout, Section


@dataclass(frozen=True)
class Bits:
    """Some neighbouring bits of one byte.

    at, bits  the lowest of them, 0 … 7, and how many
    value     the number that they are
    part      what they belong to: "codes", "scales", "mins", "exponent", or a float16's name
    index     which of these; low: their lowest bit in that number, of `width` bits
    """

    at: int
    bits: int
    value: int
    part: str
    index: int
    low: int
    width: int


def bits_of_bytes(name: str, data: torch.Tensor) -> list[list[Bits]]:
    """For each byte of a block [bytes] of this type its bits, the highest first.

    >>> block = torch.zeros(144, dtype=torch.uint8)
    >>> [(b.part, b.index, b.low, b.bits) for b in bits_of_bytes("Q4_K", block)[16]]
    [('codes', 32, 0, 4), ('codes', 0, 0, 4)]
    """
    layout, values = LAYOUTS[name], data.tolist()
    out: list[list[Bits]] = [[] for _ in values]
    start = 0
    for section in layout.sections:
        if section.pieces:
            _integers(layout, section, values, start, out)
        else:
            _half(section.name, values, start, out)
        start += section.size
    return [sorted(each, key=lambda b: -b.at) for each in out]


def _integers(
    layout: Layout, section: Section, values: list[int], start: int, out: list[list[Bits]]
) -> None:
    for piece in section.pieces:
        _, places, run = piece.shape
        for k in range(piece.count):
            chunk, rest = divmod(k, places * run)
            place, along = divmod(rest, run)
            byte = start + piece.byte + chunk * run + along
            at = piece.at + place * piece.bits
            value = values[byte] >> at & (2**piece.bits - 1)
            out[byte].append(
                Bits(at, piece.bits, value, piece.part, piece.first + k, piece.low,
                     layout.width(piece.part))
            )  # fmt: skip


def _half(name: str, values: list[int], start: int, out: list[list[Bits]]) -> None:
    """A float16, low byte first: ten bits of fraction, five of exponent, the sign."""
    for byte, at, bits, low in ((0, 0, 8, 0), (1, 0, 2, 8), (1, 2, 5, 10), (1, 7, 1, 15)):
        value = values[start + byte] >> at & (2**bits - 1)
        out[start + byte].append(Bits(at, bits, value, name, 0, low, 16))


def places_of(
    found: list[list[Bits]], wanted: Mapping[str, int | None]
) -> list[tuple[int, int, int]]:
    """(byte, lowest bit, bits) of everything that is wanted: part → index.

    >>> block = torch.zeros(18, dtype=torch.uint8)
    >>> places_of(bits_of_bytes("Q4_0", block), {"codes": 17})
    [(3, 4, 4)]
    """
    return [
        (byte, b.at, b.bits)
        for byte, each in enumerate(found)
        for b in each
        if b.part in wanted and wanted[b.part] == b.index
    ]
