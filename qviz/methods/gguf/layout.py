"""How each GGUF type lays its numbers out in bytes: tables, and two functions that read them.

A block is a C struct. Its sections follow one another without gaps; a section holds one float16,
or unsigned integers that are cut into pieces, because bytes have 8 bits and codes have 2 to 6.
Source: ggml src/ggml-common.h (the structs) and src/ggml-quants.c (which number has which bits).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Piece:
    """Some bits of some numbers: the numbers first … first + count − 1 of `part`, of each the
    `bits` bits that start at bit `low`.

    `run` consecutive numbers go to `run` consecutive bytes from `byte` on, at bit `at`; the next
    run goes above them, as long as a byte has room; then the next bytes follow.
    """

    part: str
    count: int
    bits: int
    run: int
    first: int = 0
    low: int = 0
    byte: int = 0
    at: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(chunks, places in a byte, run): the order of the numbers."""
        places = min(self.count // self.run, (8 - self.at) // self.bits)
        return self.count // (self.run * places), places, self.run

    @property
    def single_bits(self) -> bool:
        """Whether eight numbers of one bit that follow one another make a byte."""
        return self.bits == self.run == 1


@dataclass(frozen=True)
class Section:
    """A member of the struct, `size` bytes; without pieces it is a float16 of its own name."""

    name: str
    size: int
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A type: how many weights a block has, how many of them share a scale, and its sections.

    parts   (name, how many in a block, bits of each) of everything that a block holds
    zero    the stored code of 0.0; codes are unsigned, but for Q8_0's bytes
    """

    weights: int
    group: int
    parts: tuple[tuple[str, int, int], ...]
    sections: tuple[Section, ...]
    zero: int = 0

    @property
    def nbytes(self) -> int:
        return sum(section.size for section in self.sections)

    @property
    def bits(self) -> int:
        """Width of one code."""
        return self.width("codes")

    def width(self, part: str) -> int:
        """Bits of one number of this part."""
        return next(bits for name, _, bits in self.parts if name == part)


def _codes(count: int, bits: int, run: int, low: int = 0) -> tuple[Piece, ...]:
    return (Piece("codes", count, bits, run, low=low),)


# Six bits each for 8 scales and 8 minimums in 12 bytes: the first four of both have the low six
# bits of a byte to themselves, the last four are split into 4 + 2.
_SIX_BITS = (
    Piece("scales", 4, 6, 4, byte=0),
    Piece("mins", 4, 6, 4, byte=4),
    Piece("scales", 4, 4, 4, first=4, byte=8),
    Piece("mins", 4, 4, 4, first=4, byte=8, at=4),
    Piece("scales", 4, 2, 4, first=4, low=4, byte=0, at=6),
    Piece("mins", 4, 2, 4, first=4, low=4, byte=4, at=6),
)
_D, _DMIN, _M = Section("d", 2), Section("dmin", 2), Section("m", 2)
_NIBBLES = Section("qs", 16, _codes(32, 4, 16))
_FIFTH_BITS = Section("qh", 4, _codes(32, 1, 1, low=4))  # bit j belongs to weight j

LAYOUTS: dict[str, Layout] = {
    "Q4_0": Layout(32, 32, (("codes", 32, 4), ("d", 1, 16)), (_D, _NIBBLES), zero=8),
    "Q4_1": Layout(32, 32, (("codes", 32, 4), ("d", 1, 16), ("m", 1, 16)), (_D, _M, _NIBBLES)),
    "Q5_0": Layout(32, 32, (("codes", 32, 5), ("d", 1, 16)), (_D, _FIFTH_BITS, _NIBBLES), zero=16),
    "Q5_1": Layout(
        32, 32, (("codes", 32, 5), ("d", 1, 16), ("m", 1, 16)), (_D, _M, _FIFTH_BITS, _NIBBLES)
    ),
    "Q8_0": Layout(
        32, 32, (("codes", 32, 8), ("d", 1, 16)), (_D, Section("qs", 32, _codes(32, 8, 32)))
    ),
    "MXFP4": Layout(
        32,
        32,
        (("codes", 32, 4), ("exponent", 1, 8)),
        (Section("e", 1, (Piece("exponent", 1, 8, 1),)), _NIBBLES),
    ),
    "Q2_K": Layout(
        256,
        16,
        (("codes", 256, 2), ("scales", 16, 4), ("mins", 16, 4), ("d", 1, 16), ("dmin", 1, 16)),
        (
            Section("scales", 16, (Piece("scales", 16, 4, 16), Piece("mins", 16, 4, 16, at=4))),
            Section("qs", 64, _codes(256, 2, 32)),
            _D,
            _DMIN,
        ),
    ),
    "Q3_K": Layout(
        256,
        16,
        (("codes", 256, 3), ("scales", 16, 6), ("d", 1, 16)),
        (
            Section("hmask", 32, _codes(256, 1, 32, low=2)),
            Section("qs", 64, _codes(256, 2, 32)),
            Section(
                "scales",
                12,
                (Piece("scales", 16, 4, 8), Piece("scales", 16, 2, 4, low=4, byte=8)),
            ),
            _D,
        ),
        zero=4,
    ),
    "Q4_K": Layout(
        256,
        32,
        (("codes", 256, 4), ("scales", 8, 6), ("mins", 8, 6), ("d", 1, 16), ("dmin", 1, 16)),
        (_D, _DMIN, Section("scales", 12, _SIX_BITS), Section("qs", 128, _codes(256, 4, 32))),
    ),
    "Q5_K": Layout(
        256,
        32,
        (("codes", 256, 5), ("scales", 8, 6), ("mins", 8, 6), ("d", 1, 16), ("dmin", 1, 16)),
        (
            _D,
            _DMIN,
            Section("scales", 12, _SIX_BITS),
            Section("qh", 32, _codes(256, 1, 32, low=4)),
            Section("qs", 128, _codes(256, 4, 32)),
        ),
    ),
    "Q6_K": Layout(
        256,
        16,
        (("codes", 256, 6), ("scales", 16, 8), ("d", 1, 16)),
        (
            Section("ql", 128, _codes(256, 4, 64)),
            Section("qh", 64, _codes(256, 2, 32, low=4)),
            Section("scales", 16, (Piece("scales", 16, 8, 16),)),
            _D,
        ),
        zero=32,
    ),
}


# Bytes are worked on eight at a time where they lie side by side: for shifts of single bytes there
# are no vector instructions.
_COPIES = sum(1 << 8 * i for i in range(8))  # times a byte: that byte eight times


def _eights(x: torch.Tensor) -> torch.Tensor | None:
    """Bytes uint8 [..., 8n] as int64 [..., n], the same memory; None where they do not lie so."""
    apart = x.stride(-1) != 1 or x.shape[-1] % 8 or x.storage_offset() % 8
    if apart or any(stride % 8 for stride in x.stride()[:-1]):
        return None
    return x.view(torch.int64)


def _cut(x: torch.Tensor, low: int, bits: int, width: int) -> torch.Tensor:
    """The `bits` bits from bit `low` of numbers of `width` bits. Operations that would change
    nothing are skipped, here and in `_shift`, because each is a pass through all weights."""
    if low == 0 and bits == width:
        return x
    mask, eights = 2**bits - 1, _eights(x)
    if eights is None:
        cut: torch.Tensor = (x >> low) & mask
    else:
        cut = (eights >> low).bitwise_and_(_signed(mask * _COPIES)).view(torch.uint8)
    return cut


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    """x·2^by of numbers that stay below 2^8."""
    if by == 0:
        return x
    eights = _eights(x)
    return x << by if eights is None else (eights << by).view(torch.uint8)


def _signed(number: int) -> int:
    """The int64 with these 64 bits."""
    return number - 2**64 if number >= 2**63 else number


def _put_(into: torch.Tensor, bits: torch.Tensor, fresh: bool) -> None:
    """Write bits where nothing is yet (`fresh`), or add them to what is there."""
    if fresh:
        into.copy_(bits)
    else:
        into |= bits


# Eight numbers of one bit, a byte each, and the byte that holds them all are turned into each other
# 64 bits at a time. The product moves bit 8i, that of the i-th byte, to bit 56 + i, and nothing
# else reaches the top byte. Backwards, the product copies the byte into all eight, of each the mask
# leaves one bit, and the sum carries that to the byte's top.
_COLLECT = sum(1 << (56 - 7 * i) for i in range(8))
_ONE_EACH = sum(1 << 9 * i for i in range(8))
_TO_TOP = sum((128 - (1 << i)) << 8 * i for i in range(8))
_TOPS = sum(128 << 8 * i for i in range(8))


def _bytes_of_bits(bits: torch.Tensor) -> torch.Tensor:
    """Bytes uint8 [blocks, n] of numbers 0 or 1, uint8 [blocks, 8n]: bit i is the i-th of eight."""
    eight = bits.contiguous().view(torch.int64)
    return ((eight * _COLLECT) >> 56).to(torch.uint8)


def _bits_of_bytes(source: torch.Tensor) -> torch.Tensor:
    """Numbers 0 or 1, uint8 [blocks, 8n], that are the bits of bytes uint8 [blocks, n]."""
    eight = (source.to(torch.int64) * _COPIES).bitwise_and_(_signed(_ONE_EACH))
    eight.add_(_TO_TOP).bitwise_and_(_signed(_TOPS))
    return eight.view(torch.uint8) >> 7


def pack(
    layout: Layout, parts: Mapping[str, torch.Tensor], *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The bytes uint8 [blocks, bytes] of parts [blocks, count]: float16 d, dmin, m; else uint8."""
    if out is None:
        out = parts["codes"].new_empty(len(parts["codes"]), layout.nbytes)
    start = 0
    for section in layout.sections:
        own = out[:, start : start + section.size]
        if not section.pieces:
            own.copy_(parts[section.name].view(torch.uint8))
        begun: set[int] = set()
        for piece in section.pieces:
            chunks, places, run = piece.shape
            numbers = parts[piece.part][:, piece.first : piece.first + piece.count]
            bits = _cut(numbers, piece.low, piece.bits, layout.width(piece.part))
            region = range(piece.byte, piece.byte + chunks * run)
            if piece.single_bits:
                bits, places = _bytes_of_bits(bits), 1
            bits = bits.reshape(-1, chunks, places, run)
            into = own[:, region.start : region.stop].view(-1, chunks, run)
            for place in range(places):
                fresh = place == 0 and begun.isdisjoint(region)
                _put_(into, _shift(bits[:, :, place], piece.at + place * piece.bits), fresh)
            begun.update(region)
        start += section.size
    return out


def unpack(layout: Layout, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parts of blocks [blocks, bytes], as `pack` takes them."""
    halves = {section.name for section in layout.sections if not section.pieces}
    parts = {
        name: torch.empty(len(data), count, dtype=torch.uint8, device=data.device)
        for name, count, _ in layout.parts
        if name not in halves
    }
    begun: dict[str, set[int]] = {name: set() for name in parts}
    start = 0
    for section in layout.sections:
        own = data[:, start : start + section.size]
        if not section.pieces:
            parts[section.name] = own.contiguous().view(torch.float16)
        for piece in section.pieces:
            chunks, places, run = piece.shape
            source = own[:, piece.byte : piece.byte + chunks * run].contiguous()
            source = source.view(-1, chunks, run)
            region = range(piece.first, piece.first + piece.count)
            numbers = parts[piece.part][:, region.start : region.stop]
            fresh = begun[piece.part].isdisjoint(region)
            begun[piece.part].update(region)
            if piece.single_bits:
                _put_(numbers, _shift(_bits_of_bytes(source.flatten(1)), piece.low), fresh)
                continue
            numbers = numbers.view(-1, chunks, places, run)
            for place in range(places):
                bits = _cut(source, piece.at + place * piece.bits, piece.bits, 8)
                _put_(numbers[:, :, place], _shift(bits, piece.low), fresh)
        start += section.size
    return parts
