"""How the Triton kernels want their weights: codes dealt out over the words of tiles, and back.

The picture is at the top of `triton_source`; this module needs no Triton.
"""

from dataclasses import dataclass

import torch

from qviz.core.grids import Affine, Codebook
from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import group_of, padded, round_up
from qviz.methods.nf4 import dynamic_levels

WORD = 8  # 4-bit codes in an int32
WIDTH = 16  # words of a whole tile in a row: a tensor core takes 16 columns at once
TILE = WORD * WIDTH  # columns
FP8_TILE = 4 * WIDTH  # columns of a tile whose words hold four bytes
COPIES = 8  # of a table that threads read through different addresses


@dataclass(frozen=True)
class Layout:
    """Where the 4-bit codes of a weight lie, and which of them share a scale.

    columns  inputs of the weight; rows are filled up to whole tiles
    group    weights that share a scale, along a row or along the flattened matrix
    width    words of a tile of one row
    aligned  tiles are whole groups, or groups whole planes of a tile, and rows are whole groups
    """

    columns: int
    group: int
    width: int
    aligned: bool

    @classmethod
    def of(cls, columns: int, group: int) -> "Layout":
        """Whole tiles where the rows allow them and each plane has one scale; else the widest
        tiles of 8, 4, 2 or 1 words that lie in one group each."""
        if columns % group:
            return cls(columns, group, 1, False)  # groups run on from row to row
        if columns % TILE == 0 and (group % TILE == 0 or TILE % group == 0) and group % WIDTH == 0:
            return cls(columns, group, WIDTH, True)
        for width in (8, 4, 2, 1):
            if columns % (WORD * width) == 0 and group % (WORD * width) == 0:
                return cls(columns, group, width, True)
        return cls(columns, group, 1, False)

    @property
    def tiles(self) -> int:
        """Of a row."""
        return round_up(self.columns, WORD * self.width) // (WORD * self.width)

    @property
    def chunk(self) -> int:
        """Words that one thread reads together."""
        return min(self.width, 4)

    @property
    def chunks(self) -> int:
        """Of a row."""
        return self.tiles * self.width // self.chunk

    @property
    def fused(self) -> bool:
        """Whether a tensor core can take the planes as they are."""
        return self.width == WIDTH


def pack_words(codes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Codes 0 … 15 [rows, columns] as words [tiles, rows, width] int32."""
    rows = codes.shape[0]
    full = padded(codes, rows, layout.tiles * layout.width * WORD).int()
    dealt = full.reshape(rows, layout.tiles, WORD, layout.width)  # [rows, tiles, plane, word]
    words = torch.zeros_like(dealt[:, :, 0])
    for j in range(WORD):
        words |= dealt[:, :, j] << (4 * j)  # the last one fills the sign
    return words.transpose(0, 1).contiguous()


def unpack_words(words: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The codes [rows, columns] uint8 of words [tiles, rows, width]."""
    rows = words.shape[1]
    dealt = torch.stack([(words >> (4 * j)) & 15 for j in range(WORD)], dim=2)
    return dealt.transpose(0, 1).reshape(rows, -1)[:, : layout.columns].to(torch.uint8)


def affine_tensors(q: QuantizedTensor) -> tuple[dict[str, torch.Tensor], Layout, float]:
    """What `affine_gemv` reads, its layout, and the zero that all groups share (0 if each has its
    own). Codes count from 0; scales and zeros are [groups, rows], since a program reads those of
    one group for many rows, and zeros are float32, four bytes that can be fetched ahead."""
    grid, group = q.grid, group_of(q)
    assert isinstance(grid, Affine) and group is not None
    layout = Layout.of(q.shape[1], group)
    codes = q.codes.to(torch.int16) - grid.qmin
    tensors = {"words": pack_words(codes, layout), "scale": grid.scale.T.contiguous()}
    if grid.zero_point is None:
        return tensors, layout, float(-grid.qmin)
    tensors["zero"] = (grid.zero_point.float() - grid.qmin).T.contiguous()
    return tensors, layout, 0.0


def codebook_tensors(
    q: QuantizedTensor, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], Layout, bool]:
    """What `codebook_gemv` and, with inputs of this dtype, `four_bit_dot` read; its layout; and
    whether its scales are codes themselves. Aligned scales are [groups, rows], others flat."""
    grid = q.grid
    assert isinstance(grid, Codebook)
    layout = Layout.of(q.shape[1], q.granularity.group_size or q.shape[1])
    tensors = {"words": pack_words(q.codes, layout)}
    stored = {stream.name: stream for stream in grid.stored}
    double = {"absmax codes", "second absmax", "absmax offset"} <= set(stored)
    scale = stored["absmax codes"].values.flatten() if double else grid.scale.flatten()
    if layout.aligned:
        scale = scale.reshape(q.shape[0], -1).T.contiguous()
    tensors["scale"] = scale
    if double:
        tensors["second"] = stored["second absmax"].values.flatten()
        tensors["offset"] = stored["absmax offset"].values.flatten()
    tensors["table"] = _tables(grid, double)
    if dtype != torch.float32:
        tensors["bytes"] = table_bytes(grid.values, dtype)
    return tensors, layout, double


def _tables(grid: Codebook, double: bool) -> torch.Tensor:
    """The 16 levels, and after them the 256 of the scales where these are codes, float32."""
    levels = grid.values.float()
    return torch.cat([levels, dynamic_levels().to(levels.device)]) if double else levels


def table_bytes(levels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """16 levels in a 16-bit dtype as eight registers, [8, COPIES] int32: the lower bytes of levels
    0–3, 4–7, 8–11 and 12–15, then the upper bytes."""
    bytes_ = levels.to(dtype).contiguous().view(torch.uint8).reshape(16, 2).T.contiguous()
    return bytes_.view(torch.int32).reshape(8, 1).repeat(1, COPIES)


def fp8_words(codes: torch.Tensor) -> torch.Tensor:
    """Bytes [rows, columns] as words of four [tiles, rows, 16] int32: byte j of word w of a tile
    is its column 16·j + w."""
    rows, columns = codes.shape
    full = padded(codes, rows, round_up(columns, FP8_TILE))
    dealt = full.reshape(rows, -1, 4, WIDTH).permute(1, 0, 3, 2).contiguous()
    return dealt.view(torch.int32)[..., 0].contiguous()


def fp8_codes(words: torch.Tensor, columns: int) -> torch.Tensor:
    """The bytes [rows, columns] uint8 of `fp8_words`."""
    dealt = words.view(torch.uint8).reshape(*words.shape[:2], WIDTH, 4)  # [tiles, rows, word, byte]
    return dealt.permute(1, 0, 3, 2).reshape(words.shape[1], -1)[:, :columns].contiguous()
