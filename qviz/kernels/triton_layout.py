"""How the Triton kernels want their weights: codes dealt out over words, and back.

The picture is at the top of `triton_source`; this module needs no Triton.
"""

from dataclasses import dataclass

import torch

from qviz.core.grids import Affine, Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import group_of, padded, round_up
from qviz.methods.nf4 import dynamic_levels

WORD = 8  # 4-bit codes in an int32


@dataclass(frozen=True)
class Layout:
    """Where the 4-bit codes of a weight lie, and which of them share a scale.

    columns  inputs of the weight; rows are filled up to whole words
    group    weights that share a scale, along a row or along the flattened matrix
    chunk    words that one thread reads together
    aligned  no chunk lies in two groups
    """

    columns: int
    group: int
    chunk: int
    aligned: bool

    @classmethod
    def of(cls, columns: int, group: int) -> "Layout":
        """The widest chunks, of 4, 2 or 1 words, that lie in one group each."""
        for chunk in (4, 2, 1):
            size = WORD * chunk
            if columns % size == 0 and group % size == 0:
                return cls(columns, group, chunk, True)
        return cls(columns, group, 1, False)

    @property
    def width(self) -> int:
        """Words of a row."""
        return round_up(self.columns, WORD * self.chunk) // WORD


def pack_words(codes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Codes 0 … 15 [rows, columns] as words [rows, width] int32."""
    rows = codes.shape[0]
    full = padded(codes, rows, layout.width * WORD).int()
    dealt = full.reshape(rows, -1, WORD, layout.chunk)  # [rows, chunks, code of a word, word]
    words = torch.zeros_like(dealt[:, :, 0])
    for j in range(WORD):
        words |= dealt[:, :, j] << (4 * j)  # the last one fills the sign
    return words.reshape(rows, -1)


def unpack_words(words: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The codes [rows, columns] uint8 of words [rows, width]."""
    rows = words.shape[0]
    chunks = words.reshape(rows, -1, layout.chunk)
    dealt = torch.stack([(chunks >> (4 * j)) & 15 for j in range(WORD)], dim=2)
    return dealt.reshape(rows, -1)[:, : layout.columns].to(torch.uint8)


def affine_tensors(q: QuantizedTensor) -> tuple[dict[str, torch.Tensor], Layout, float]:
    """What `affine_gemv` reads, its layout, and the zero that all groups share (0 if each has its
    own). Codes count from 0; zeros are bytes, or floats where the method's zeros are."""
    grid, group = q.grid, group_of(q)
    assert isinstance(grid, Affine) and group is not None
    layout = Layout.of(q.shape[1], group)
    codes = q.codes.to(torch.int16) - grid.qmin
    tensors = {"words": pack_words(codes, layout), "scale": grid.scale}
    if grid.zero_point is None:
        return tensors, layout, float(-grid.qmin)
    zero = grid.zero_point - grid.qmin
    tensors["zero"] = zero if zero.is_floating_point() else zero.to(torch.uint8)
    return tensors, layout, 0.0


def codebook_tensors(q: QuantizedTensor) -> tuple[dict[str, torch.Tensor], Layout, bool]:
    """What `codebook_gemv` reads, its layout, and whether its scales are codes themselves."""
    grid = q.grid
    assert isinstance(grid, Codebook)
    layout = Layout.of(q.shape[1], q.granularity.group_size or q.shape[1])
    tensors = {"words": pack_words(q.codes, layout)}
    stored = {stream.name: stream for stream in grid.stored}
    double = {"absmax codes", "second absmax", "absmax offset"} <= set(stored)
    if double:
        tensors["scale"] = stored["absmax codes"].values.flatten()
        tensors["second"] = stored["second absmax"].values.flatten()
        tensors["offset"] = stored["absmax offset"].values.flatten()
    else:
        tensors["scale"] = grid.scale.flatten()
    tensors["table"] = _tables(grid, double)
    return tensors, layout, double


def _tables(grid: Codebook, double: bool) -> torch.Tensor:
    """The 16 levels, and after them the 256 of the scales where these are codes, float32."""
    levels = grid.values.float()
    return torch.cat([levels, dynamic_levels().to(levels.device)]) if double else levels


def fp8_words(codes: torch.Tensor) -> torch.Tensor:
    """Bytes [rows, columns] as words of four [rows, ⌈columns/16⌉·4] int32: byte j of word w is
    column 16·(w/4) + 4·j + w%4."""
    rows, columns = codes.shape
    full = padded(codes, rows, round_up(columns, 16))
    dealt = full.reshape(rows, -1, 4, 4).transpose(2, 3).contiguous()  # [rows, chunks, word, byte]
    return dealt.view(torch.int32).reshape(rows, -1)
