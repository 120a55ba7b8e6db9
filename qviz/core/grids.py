"""Grids: what gives codes their meaning.

A grid knows the values that codes stand for and how its parameters are stored. It does not know how
they were found. Symbols: q codes, s scale, z zero point (the integer code of 0.0), x̂ the
reconstruction.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from qviz.core.granularity import Granularity
from qviz.core.ledger import LedgerItem, Stream

RUN = 1 << 20  # codes that are looked up at once


class Grid(Protocol):
    """What a QuantizedTensor asks of its grid."""

    @property
    def bits(self) -> int:
        """Width of one code."""

    def reconstruct(
        self, codes: torch.Tensor, granularity: Granularity, shape: tuple[int, int]
    ) -> torch.Tensor:
        """x̂ of this shape."""

    def streams(self, codes: torch.Tensor) -> list[Stream]:
        """Everything that is stored, the codes first."""


class ScalarGrid(ABC):
    """A grid with one code for each weight: x̂ = f(q; parameters of the group)."""

    bits: int

    @abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """x̂ [rows, groups, n] for codes of that shape, parameters being [rows, groups]."""

    @abstractmethod
    def at(self, rows: torch.Tensor, groups: torch.Tensor) -> "ScalarGrid":
        """The grid whose parameters are those at these indices, in their broadcast shape."""

    @abstractmethod
    def all_codes(self) -> torch.Tensor:
        """Every code [codes] that may occur and has a finite value."""

    @abstractmethod
    def streams(self, codes: torch.Tensor) -> list[Stream]:
        """Everything that is stored, the codes first."""

    @property
    @abstractmethod
    def groups(self) -> torch.Size:
        """[rows, groups], the shape of the parameters."""

    def reconstruct(
        self, codes: torch.Tensor, granularity: Granularity, shape: tuple[int, int]
    ) -> torch.Tensor:
        return granularity.join(self.decode(granularity.split(codes)), shape)

    def levels(self, row: int, group: int) -> torch.Tensor:
        """The values [levels] that one group can represent, ascending, each once."""
        one = self.at(torch.tensor([[row]]), torch.tensor([[group]]))
        values = one.decode(self.all_codes().reshape(1, 1, -1))
        return torch.unique(values)  # type: ignore[no-any-return]

    def extremes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The lowest and highest representable value of each group, both [rows, groups]."""
        ends = self.decode(self._end_codes().expand(*self.groups, 2))
        return ends.amin(-1), ends.amax(-1)  # a negative scale (GGUF) turns the two around

    @abstractmethod
    def _end_codes(self) -> torch.Tensor:
        """The codes of the smallest and the largest value."""


def affine_values(
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    offset: torch.Tensor | None,
) -> torch.Tensor:
    """s·(q − z) + offset, a new tensor in the shape of `codes` and the dtype of the others, which
    broadcast; codes are in that dtype too, or integers, which need no copy of their own."""
    x = codes * scale if zero is None else (codes - zero).mul_(scale)
    return x if offset is None else x.add_(offset)


@dataclass(frozen=True, eq=False)
class Affine(ScalarGrid):
    """Equally spaced levels: x̂ = s·(q − z), or x̂ = s·q + offset.

    scale       [rows, groups] in the dtype it is stored in; positive, except for GGUF's signed ones
    zero_point  [rows, groups] or None (then 0): an integer dtype where the system stores an
                integer code, a floating one where it stores a real-valued zero (HQQ)
    offset      [rows, groups] or None: the number added after scaling (quanto, KIVI)
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

    @property
    def code_dtype(self) -> torch.dtype:
        """The integer dtype that codes are kept in."""
        return torch.int8 if self.qmin < 0 else torch.uint8

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """x̂ [rows, groups, n] in `compute` for codes of that shape."""

        def spread(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.to(self.compute).unsqueeze(-1)

        scale = self.scale.to(self.compute).unsqueeze(-1)
        zero, offset = spread(self.zero_point), spread(self.offset)
        if codes.is_floating_point():
            codes = codes.to(self.compute)
        return affine_values(codes, scale, zero, offset)

    def at(self, rows: torch.Tensor, groups: torch.Tensor) -> "Affine":
        def pick(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x[rows, groups]

        return replace(
            self,
            scale=self.scale[rows, groups],
            zero_point=pick(self.zero_point),
            offset=pick(self.offset),
        )

    def all_codes(self) -> torch.Tensor:
        return torch.arange(self.qmin, self.qmax + 1, device=self.scale.device)

    def streams(self, codes: torch.Tensor) -> list[Stream]:
        streams = [
            Stream("codes", codes.to(torch.int16) - self.qmin, self.bits),
            Stream("scales", self.scale),
        ]
        if self.zero_point is not None:
            integer = not self.zero_point.is_floating_point()
            # An integer zero point is one of the codes, so it needs no more bits than a code.
            zero = self.zero_point - self.qmin if integer else self.zero_point
            streams.append(Stream("zero points", zero, self.bits if integer else None))
        if self.offset is not None:
            streams.append(Stream("offsets", self.offset))
        return streams

    @property
    def groups(self) -> torch.Size:
        return self.scale.shape

    def _end_codes(self) -> torch.Tensor:
        return torch.tensor([self.qmin, self.qmax], device=self.scale.device)


@dataclass(frozen=True, eq=False)
class Codebook(ScalarGrid):
    """Levels from a table, times a scale for each group: x̂ = values[q]·s.

    values    [codes] float32: what each code stands for (NaN or Inf where the format has them)
    scale     [rows, groups] float32, decoded: what the stored streams stand for
    stored    the scales as they are stored (absmax; or codes, second-level scales and an offset)
    dtype     of the reconstruction; the product itself is computed in float32
    bitorder  as in Stream: which half of a byte the first code takes
    fill      as in Stream: the code that fills the last byte
    """

    values: torch.Tensor
    scale: torch.Tensor
    bits: int
    stored: tuple[Stream, ...]
    dtype: torch.dtype = torch.float32
    bitorder: str = "little"
    fill: int = 0

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        # A run at a time: indices and values of a large matrix would be four bytes each.
        found = torch.cat([self.values[run.int()] for run in torch.split(codes.flatten(), RUN)])
        scale = self.scale.unsqueeze(-1)
        x = found.reshape(codes.shape)
        same = torch.result_type(x, scale) == x.dtype
        return (x.mul_(scale) if same else x * scale).to(self.dtype)

    def at(self, rows: torch.Tensor, groups: torch.Tensor) -> "Codebook":
        return replace(self, scale=self.scale[rows, groups])

    def all_codes(self) -> torch.Tensor:
        return torch.isfinite(self.values).nonzero().flatten()

    def streams(self, codes: torch.Tensor) -> list[Stream]:
        stream = Stream("codes", codes, self.bits, self.bitorder, fill=self.fill)
        return [stream, *self.stored]

    @property
    def groups(self) -> torch.Size:
        return self.scale.shape

    def _end_codes(self) -> torch.Tensor:
        codes = self.all_codes()
        finite = self.values[codes]
        return codes[torch.stack([finite.argmin(), finite.argmax()])]


@dataclass(frozen=True, eq=False)
class VectorCodebook:
    """Vectors from tables: d weights share a code, and codes of several tables add up.

    books    [books, entries, d] in the dtype they are stored in
    scale    [rows, groups] or None: multiplies the sum
    bits     of one code, ⌈log₂ entries⌉
    compute  dtype in which x̂ is computed
    Codes are [out, in/d, books].
    """

    books: torch.Tensor
    bits: int
    scale: torch.Tensor | None = None
    compute: torch.dtype = torch.float32

    def reconstruct(
        self, codes: torch.Tensor, granularity: Granularity, shape: tuple[int, int]
    ) -> torch.Tensor:
        books = self.books.to(self.compute)
        parts = [book[codes[..., i].long()] for i, book in enumerate(books)]
        x = torch.stack(parts).sum(0).reshape(shape)
        if self.scale is None:
            return x
        scale = self.scale.to(self.compute).unsqueeze(-1)
        return granularity.join(granularity.split(x) * scale, shape)

    def streams(self, codes: torch.Tensor) -> list[Stream]:
        streams = [Stream("codes", codes, self.bits), Stream("codebooks", self.books)]
        return streams if self.scale is None else [*streams, Stream("scales", self.scale)]


@dataclass(frozen=True, eq=False)
class Blocks(ScalarGrid):
    """Byte blocks of a file format, in which codes, scales and minimums are interleaved.

    format  the name, such as "Q4_K"
    data    uint8 [rows, bytes of a row]: the truth; everything else was read from it
    inner   the grid that its fields decode to, one parameter for each sub-block
    fields  (name, how many in a block, bits of each) of everything that a block holds
    count   blocks in `data`
    """

    format: str
    data: torch.Tensor
    inner: Affine | Codebook
    fields: tuple[tuple[str, int, int], ...]
    count: int

    @property
    def bits(self) -> int:  # type: ignore[override]
        return self.inner.bits

    @property
    def groups(self) -> torch.Size:
        return self.inner.groups

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.inner.decode(codes)

    def at(self, rows: torch.Tensor, groups: torch.Tensor) -> Affine | Codebook:
        return self.inner.at(rows, groups)

    def all_codes(self) -> torch.Tensor:
        return self.inner.all_codes()

    def streams(self, codes: torch.Tensor) -> list[Stream]:
        parts = tuple(LedgerItem(name, self.count * n, bits) for name, n, bits in self.fields)
        return [Stream("blocks", self.data, parts=parts)]

    def _end_codes(self) -> torch.Tensor:
        return self.inner._end_codes()
