"""One program of a Triton kernel, step by step: what it reads, computes and writes.

`walk` goes through the loop of a function in `triton_source` for one program, with torch and
without Triton, and keeps every intermediate result; `source` is that function's text. The lines
of a step are found by the markers that stand in the real source, such as
"# [words]": there is no copy that could get out of date.

Symbols: r rows of the program, c chunks of its block, w words of a chunk, j the planes.
"""

import ast
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from qviz.core.check import unknown
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.kernels.registry import get
from qviz.kernels.torch_kernels import row_scale
from qviz.kernels.triton_layout import WORD, Layout, affine_tensors, codebook_tensors

# The functions of a kernel for one token, in the order in which they are shown.
SHOWN = {
    "triton.w4a16": ("code_minus", "affine_gemv"),
    "triton.nf4": ("nibble", "levels", "scale_of", "codebook_gemv"),
    "triton.w8a8": ("row_scale", "int8_inputs", "int8_gemv"),
}
SIXTEEN = 16  # int8 weights that one thread reads at once

_FROM = "qviz/kernels/triton_source.py"
EVENTS = (
    EventSpec(
        "tile.step",
        {"inputs": "[columns] of the token", "step": "[1] its scale, float32"},
        "s_x = max |x| / 127",
        f"{_FROM}:row_scale",
    ),
    EventSpec(
        "tile.quantized",
        {"codes": "[columns] int8 codes of the inputs"},
        "q_x = RNE(x / s_x)",
        f"{_FROM}:int8_inputs",
    ),
    EventSpec(
        "tile.rows",
        {"rows": "[r] rows of the weight that are this program's"},
        "min(program · r, out − r) + 0 … r − 1",
        f"{_FROM}:affine_gemv",
    ),
    EventSpec(
        "tile.words",
        {"words": "[r, c, w] int32, eight codes each"},
        "words[row, chunk, 0 … w − 1]",
        f"{_FROM}:affine_gemv",
    ),
    EventSpec(
        "tile.weights",
        {"weights": "[r, columns] int8"},
        "weights[row, column]",
        f"{_FROM}:int8_gemv",
    ),
    EventSpec(
        "tile.scale",
        {
            "scale": "[r, columns] of each weight, in the order of the columns",
            "zero": "[r, columns] the number subtracted from its code; 0 for codes of a table",
        },
        "s[group], z[group]",
        f"{_FROM}:affine_gemv, scale_of",
    ),
    EventSpec(
        "tile.inputs",
        {"inputs": "[columns] float32; int32 codes where inputs are quantized"},
        "x[column]",
        f"{_FROM}:affine_gemv",
    ),
    EventSpec(
        "tile.codes",
        {
            "codes": "[r, columns] 0 … 15, in the order of the columns",
            "values": "[r, columns] code − zero, or the level that the code points to",
        },
        "(words ≫ 4j) & 15",
        f"{_FROM}:code_minus, nibble, levels",
    ),
    EventSpec(
        "tile.weight",
        {"weight": "[r, columns] ŵ; formed only where a word can lie in two blocks"},
        "ŵ = value · scale",
        "the method that quantized the weight",
    ),
    EventSpec(
        "tile.products",
        {
            "partial": "[r, groups, c, w] sums over a word's codes of one group; [r, columns] for "
            "int8"
        },
        "Σⱼ value · x",
        f"{_FROM}:affine_gemv",
    ),
    EventSpec(
        "tile.total",
        {"total": "[r, block] what each thread has added up so far, scaled"},
        "total + scale · Σ partial",
        f"{_FROM}:affine_gemv",
    ),
    EventSpec(
        "tile.store",
        {"y": "[r] in the inputs' dtype", "total": "[r] the sums before they are rounded"},
        "y[row] = Σ total",
        f"{_FROM}:affine_gemv",
    ),
)


@dataclass(frozen=True)
class Block:
    """What one program covers: `rows` of the weight, and `chunks` of each in one turn of the loop.

    Both are powers of two, as Triton's blocks are. A chunk is what a thread reads at once: 4 words
    of eight 4-bit codes, a quarter of a tile of 128 columns; 16 columns of int8. A walk takes whole
    tiles.
    """

    rows: int = 4
    chunks: int = 4

    def __post_init__(self) -> None:
        for name in ("rows", "chunks"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size & (size - 1):
                raise ValueError(f"{name} of a block is a power of two, got {size!r}")


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a program.

    event    its name in EVENTS
    caption  what happens, with the numbers of this step
    rows     of the weight that it is about
    columns  of the weight that it is about
    lines    1-based, of `source(kernel)`, that do it
    tensors  by the names in EVENTS
    nbytes   read from memory, or written, by this step; what is read twice counts once
    """

    event: str
    caption: str
    rows: slice
    columns: slice
    lines: tuple[int, ...]
    tensors: Mapping[str, torch.Tensor]
    nbytes: int = 0


@dataclass(frozen=True, eq=False)
class Walk:
    """What one program did.

    kernel   its name
    program  which it was, of how many
    rows     of the weight, whose outputs it computed
    steps    in order
    y        [r] what it stored
    width    words of a tile of one row; 0 where a word holds no 4-bit codes
    """

    kernel: str
    program: int
    programs: int
    rows: slice
    steps: Sequence[Step]
    y: torch.Tensor
    width: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes moved in all."""
        return sum(step.nbytes for step in self.steps)

    def place(self, column: int) -> "Place":
        """Where the code of this column of a turn lies. ValueError for a kernel without words."""
        if not self.width:
            raise ValueError(f"{self.kernel} has no words of 4-bit codes")
        tile, within = divmod(column, WORD * self.width)
        plane, word = divmod(within, self.width)
        first = tile * WORD * self.width + plane * self.width
        return Place(tile * self.width + word, plane, slice(first, first + self.width))


@dataclass(frozen=True)
class Place:
    """Where a code lies among the words of a turn.

    word   its number, counted along the row
    plane  which code of the word it is: bits 4·plane to 4·plane + 3
    side   the columns whose codes are the same bits of this tile's words: the plane
    """

    word: int
    plane: int
    side: slice


# ---------------------------------------------------------------------- the source, as shown


@cache
def source(kernel: str) -> str:
    """The text of the functions that `walk` goes through, without importing Triton.

    ValueError for a kernel that has none.

    >>> from qviz.kernels import tiles
    >>> print(tiles.source("triton.w8a8").splitlines()[1])
    def row_scale(x_ptr, token, largest, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """
    return "\n\n\n".join(_texts()[name] for name in _shown(kernel))


@cache
def lines(kernel: str, function: str, marker: str) -> tuple[int, ...]:
    """The lines of `source(kernel)` from "# [marker]" in this function to the next blank line or
    marker. KeyError where there is no such marker."""
    before = 0
    for name in _shown(kernel):
        text = _texts()[name].splitlines()
        if name == function:
            return tuple(before + at for at in _section(text, marker))
        before += len(text) + 2
    raise KeyError(f"{kernel} does not show {function}")


def _section(text: Sequence[str], marker: str) -> list[int]:
    # At the beginning of a line: at the end of one, brackets are shapes.
    found = [at for at, line in enumerate(text, 1) if line.lstrip().startswith(f"# [{marker}]")]
    if len(found) != 1:
        raise KeyError(f"there are {len(found)} markers [{marker}], not one")
    last = found[0]
    while last < len(text) and text[last].strip() and not re.match(r"\s*# \[\w+\]", text[last]):
        last += 1
    return list(range(found[0], last + 1))


@cache
def _texts() -> dict[str, str]:
    """The functions of triton_source by name, decorators included."""
    text = Path(__file__).with_name("triton_source.py").read_text(encoding="utf-8")
    all_lines = text.splitlines()
    return {
        node.name: "\n".join(all_lines[node.decorator_list[0].lineno - 1 : node.end_lineno])
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    }


def _shown(kernel: str) -> tuple[str, ...]:
    if kernel not in SHOWN:
        raise ValueError(unknown("kernel with steps", kernel, SHOWN))
    return SHOWN[kernel]


# ---------------------------------------------------------------------- the walk


def walk(
    kernel: str,
    q: QuantizedTensor,
    x: torch.Tensor,
    *,
    program: int = 0,
    block: Block | None = None,
    emit: Emit | None = None,
) -> Walk:
    """What program number `program` of this kernel does with one token.

    kernel   "triton.w4a16", "triton.nf4" or "triton.w8a8"
    q        a weight [out, in] that it takes
    x        [in] one token
    program  0 to `programs(q, block)` − 1
    block    what a program covers; None: 4 rows (or as many as there are) and 4 chunks

    Returns the steps and y [r] in the dtype of x. The sums are those of the kernel, in the same
    order but for the additions within a `Σ`. ValueError where the kernel does not take q (act-order
    included: sort the columns first), for other shapes, and for a program that there is not.

    >>> from qviz.kernels import tiles
    >>> q = qviz.quantize(torch.randn(16, 128), bits=4, group_size=32)
    >>> tiles.walk("triton.w4a16", q, torch.randn(128)).y.shape
    torch.Size([4])
    """
    block = block or Block(min(4, 1 << (q.shape[0].bit_length() - 1)))
    count = _checked(kernel, q, x, program, block)
    first = min(program * block.rows, q.shape[0] - block.rows)
    rows = slice(first, first + block.rows)
    walker = _Int8 if kernel == "triton.w8a8" else _FourBit
    made = walker(kernel, get(kernel).adapt(q, x.dtype), x, rows, block)
    steps = []
    for step in made.steps():
        if emit is not None:
            emit(step.event, **step.tensors)
        steps.append(step)
    width = 0 if kernel == "triton.w8a8" else _tensors(q, kernel == "triton.nf4")[1].width
    return Walk(kernel, program, count, rows, steps, steps[-1].tensors["y"], width)


def programs(q: QuantizedTensor, block: Block) -> int:
    """The number of programs that together compute all outputs of one token."""
    return -(-q.shape[0] // block.rows)


def _checked(kernel: str, q: QuantizedTensor, x: torch.Tensor, program: int, block: Block) -> int:
    _shown(kernel)
    reason = get(kernel).refuses(q)
    if reason is None and (q.g_idx is not None or q.transform is not None):
        reason = (
            "a walk follows the columns in order, so it needs a weight without act-order and "
            "transforms"
        )
    if reason is not None:
        raise ValueError(reason)
    if x.shape != (q.shape[1],):
        raise ValueError(f"x is one token of {q.shape[1]} inputs, got shape {tuple(x.shape)}")
    if block.rows > q.shape[0]:
        raise ValueError(f"a block of {block.rows} rows does not fit into {q.shape[0]}")
    if kernel != "triton.w8a8":
        layout = _tensors(q, kernel == "triton.nf4")[1]
        each = layout.width // layout.chunk
        if block.chunks % each:
            raise ValueError(
                f"a walk takes whole tiles, of {each} chunks here; a block of {block.chunks} is "
                "only part of one"
            )
    count = programs(q, block)
    if not 0 <= program < count:
        raise ValueError(f"programs go from 0 to {count - 1}, got {program}")
    return count


@dataclass(frozen=True, eq=False)
class _Walker(ABC):
    """What the walks have in common. `columns` of a step are those of one turn of the loop."""

    kernel: str
    q: QuantizedTensor
    x: torch.Tensor
    rows: slice
    block: Block

    @abstractmethod
    def steps(self) -> Iterator[Step]:
        """The steps of this program, the last of which stores y."""

    def _step(
        self,
        event: str,
        caption: str,
        columns: slice,
        where: Sequence[tuple[str, str]],
        nbytes: int = 0,
        **tensors: torch.Tensor,
    ) -> Step:
        found = tuple(n for function, marker in where for n in lines(self.kernel, function, marker))
        name = f"tile.{event}"
        return Step(name, caption, self.rows, columns, found, tensors, nbytes)

    def _rows_step(self, function: str) -> Step:
        first, last = self.rows.start, self.rows.stop - 1
        caption = f"This program computes outputs {first} to {last}, from these rows of the weight."
        rows = torch.arange(first, last + 1)
        return self._step("rows", caption, slice(0, 0), [(function, "rows")], rows=rows)

    def _store_step(
        self, function: str, total: torch.Tensor, sums: torch.Tensor, scales: int = 0
    ) -> Step:
        """`scales`: bytes of scales that are read only now."""
        y = total.to(self.x.dtype)
        caption = (
            f"The threads' sums are added up: the first output is {_number(total[0])}. {len(y)} "
            "outputs are written to memory."
        )
        size = y.numel() * y.element_size() + scales
        where = [(function, "store")]
        return self._step("store", caption, slice(0, 0), where, size, y=y, total=sums)


class _FourBit(_Walker):
    """affine_gemv and codebook_gemv."""

    def steps(self) -> Iterator[Step]:
        table = self.kernel == "triton.nf4"
        function = "codebook_gemv" if table else "affine_gemv"
        tensors, layout, zero = _tensors(self.q, table)
        words = tensors["words"][:, self.rows].transpose(0, 1)  # [r, tiles, width]
        total = torch.zeros(self.block.rows, self.block.chunks)
        turn = self.block.chunks * layout.chunk // layout.width  # tiles
        yield self._rows_step(function)
        for start in range(0, layout.tiles, turn):
            tile = words[:, start : start + turn]
            columns = slice(
                start * WORD * layout.width,
                min((start + tile.shape[1]) * WORD * layout.width, layout.columns),
            )
            yield self._words_step(function, tile, layout, columns)
            scale, zeros, step = self._scale_step(function, tensors, layout, columns, zero)
            yield step
            x = self._inputs(columns, tile.numel() // self.block.rows * WORD)
            yield self._inputs_step(function, x, columns)
            values, step = self._codes_step(function, tensors, tile, layout, zeros, columns)
            yield step
            yield self._weight_step(function, values, scale, layout, columns)
            partial, sums = self._sums(values, scale, x, layout)
            yield self._products_step(function, partial, columns)
            total[:, : sums.shape[1]] += sums
            yield self._total_step(function, total, columns)
        y = total.sum(1)
        yield self._store_step(function, y, y)

    def _words_step(
        self, function: str, tile: torch.Tensor, layout: Layout, columns: slice
    ) -> Step:
        size = tile.numel() * 4
        caption = (
            f"Columns {columns.start} to {columns.stop - 1} of {tile.shape[0]} rows: "
            f"{tile.numel()} words, {size} bytes. The first is "
            f"0x{int(tile.flatten()[0]) & 0xFFFFFFFF:08x}."
        )
        chunks = tile.reshape(tile.shape[0], -1, layout.chunk)
        return self._step("words", caption, columns, [(function, "words")], size, words=chunks)

    def _scale_step(
        self,
        function: str,
        tensors: Mapping[str, torch.Tensor],
        layout: Layout,
        columns: slice,
        shared: float,
    ) -> tuple[torch.Tensor, torch.Tensor, Step]:
        """Scales and zeros [r, columns], of each weight of the turn."""
        column = torch.arange(columns.start, columns.stop)
        row = torch.arange(self.rows.start, self.rows.stop)[:, None]
        block = (row * layout.columns + column) // layout.group  # in the order of the weights
        at = block
        if layout.aligned:
            at = (column // layout.group) * self.q.shape[0] + row
        scale, size = _scales(tensors, at, block)
        zero = torch.full_like(scale, shared)
        if "zero" in tensors:
            zero = tensors["zero"].flatten()[at]
            size += _distinct(at, tensors["zero"])
        caption = (
            f"{torch.unique(at).numel()} scales for this turn, the first is {_number(scale[0, 0])}"
        )
        where = [(function, "scale")]
        if function == "affine_gemv":
            caption += f", its zero point {_number(zero[0, 0])}"
        else:
            where.insert(0, ("scale_of", "scale"))
        step = self._step("scale", f"{caption}.", columns, where, size, scale=scale, zero=zero)
        return scale, zero, step

    def _inputs(self, columns: slice, width: int) -> torch.Tensor:
        """The inputs [width] of the turn in float32, 0 beyond the end of the row."""
        x = self.x[columns].float()
        return torch.nn.functional.pad(x, (0, width - len(x)))

    def _inputs_step(self, function: str, x: torch.Tensor, columns: slice) -> Step:
        shown = x[: columns.stop - columns.start]
        size = len(shown) * self.x.element_size()
        caption = (
            f"{len(shown)} inputs, {size} bytes, are read once for all {self.block.rows} rows. "
            f"The first is {_number(shown[0])}."
        )
        return self._step("inputs", caption, columns, [(function, "inputs")], size, inputs=shown)

    def _codes_step(
        self,
        function: str,
        tensors: Mapping[str, torch.Tensor],
        tile: torch.Tensor,
        layout: Layout,
        zero: torch.Tensor,
        columns: slice,
    ) -> tuple[torch.Tensor, Step]:
        """Values [r, columns], what is multiplied with the inputs."""
        span = columns.stop - columns.start
        planes = torch.stack([(tile >> (4 * j)) & 15 for j in range(WORD)], dim=2)
        codes = planes.flatten(1)[:, :span]  # plane after plane is column after column
        word, first = int(tile.flatten()[0]) & 0xFFFFFFFF, int(codes[0, 0])
        if function == "affine_gemv":
            values = codes.float() - zero
            where = [("code_minus", "code"), (function, "codes")]
            meaning = f"minus the zero point {_number(zero[0, 0])}"
        else:
            values = tensors["table"][:16][codes.long()]
            where = [("nibble", "code"), ("levels", "level"), (function, "codes")]
            meaning = f"which points to the level {_number(values[0, 0])}"
        caption = f"The lowest four bits of 0x{word:08x} are the code {first}, {meaning}. "
        caption += (
            f"The same four bits of {layout.width} words are those of {layout.width} columns side "
            f"by side."
        )
        return values, self._step("codes", caption, columns, where, 0, codes=codes, values=values)

    def _weight_step(
        self,
        function: str,
        values: torch.Tensor,
        scale: torch.Tensor,
        layout: Layout,
        columns: slice,
    ) -> Step:
        weight = values * scale
        caption = (
            f"The first weight is {_number(values[0, 0])} · {_number(scale[0, 0])} = "
            f"{_number(weight[0, 0])}. "
        )
        if layout.aligned:
            caption += "No thread computes this product: the scale is applied to the sum later."
        else:
            caption += "A word can belong to two blocks, so each level is scaled separately."
        where = [(function, "codes"), (function, "scale")]
        return self._step("weight", caption, columns, where, 0, weight=weight)

    def _sums(
        self, values: torch.Tensor, scale: torch.Tensor, x: torch.Tensor, layout: Layout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over a word's codes of one group [r, groups, c, w], and what joins the total
        [r, c]: these over a chunk's words, times the scales of the groups."""
        if not layout.aligned:
            values = values * scale
        missing = len(x) - values.shape[1]  # up to whole words
        values, scale = (torch.nn.functional.pad(t, (0, missing)) for t in (values, scale))
        groups = max(1, WORD * layout.width // layout.group) if layout.aligned else 1
        shape = (-1, groups, WORD // groups, layout.width // layout.chunk, layout.chunk)
        each = values.reshape(self.block.rows, *shape)  # [r, tiles, groups, planes, c, w]
        inputs = x.reshape(1, *shape)
        partial = torch.zeros_like(each[:, :, :, 0])
        for j in range(each.shape[3]):  # as the kernel's loop adds
            partial = each[:, :, :, j] * inputs[:, :, :, j] + partial
        first = scale.reshape(self.block.rows, *shape)[:, :, :, 0, :, 0]  # [r, tiles, groups, c]
        sums = torch.zeros_like(partial[:, :, 0, :, 0])
        for g in range(groups):
            added = partial[:, :, g].sum(-1)
            sums = added * (first[:, :, g] if layout.aligned else 1) + sums
        ordered = partial.transpose(1, 2).flatten(2, 3)  # [r, groups, c, w]
        return ordered, sums.flatten(1)

    def _products_step(self, function: str, partial: torch.Tensor, columns: slice) -> Step:
        several = "" if partial.shape[1] == 1 else f" and {partial.shape[1]} groups to a tile"
        caption = (
            f"Each value times its input, eight to a word{several}, is added up: "
            f"{partial.numel()} sums, the first is {_number(partial.flatten()[0])}."
        )
        where = [(function, "products")]
        return self._step("products", caption, columns, where, 0, partial=partial)

    def _total_step(self, function: str, total: torch.Tensor, columns: slice) -> Step:
        caption = (
            "The sums of a chunk, times the scales of their groups, are added to the total. "
            f"After column {columns.stop - 1} the sum of the first row is "
            f"{_number(total[0].sum())}."
        )
        where = [(function, "total")]
        return self._step("total", caption, columns, where, 0, total=total.clone())


class _Int8(_Walker):
    """int8_inputs, then int8_gemv."""

    def steps(self) -> Iterator[Step]:
        x = self.x.float()
        broken = (x - x).sum()  # NaN where an input is NaN or infinite
        step = torch.where(x - x == 0, x.abs(), 0.0).amax() / 127 + broken
        yield self._step_step(step)
        ratio = x / torch.where(step > 0, step, 1.0)
        inputs = torch.where(ratio - ratio == 0, ratio.round(), 0.0).to(torch.int8)
        yield self._quantized_step(inputs, step)
        yield self._rows_step("int8_gemv")
        weights = self.q.codes[self.rows].to(torch.int8)
        width = SIXTEEN * self.block.chunks
        total = torch.zeros(self.block.rows, width, dtype=torch.int32)
        for start in range(0, self.q.shape[1], width):
            columns = slice(start, min(start + width, self.q.shape[1]))
            tile, codes = weights[:, columns], inputs[columns]
            yield self._weights_step(tile, columns)
            yield self._inputs_step(codes, columns)
            partial = tile.int() * codes.int()
            total[:, : partial.shape[1]] += partial
            yield self._products_step(partial, total, columns)
        scale = row_scale(self.q)[self.rows]
        exact = total.sum(1, dtype=torch.int32).float()
        size = len(scale) * scale.element_size() + step.element_size()
        yield self._store_step("int8_gemv", exact * (step * scale.float()), exact, size)

    def _step_step(self, step: torch.Tensor) -> Step:
        size = self.x.numel() * self.x.element_size()
        caption = f"The largest input, divided by 127, is the token's scale: {_number(step)}."
        everything = slice(0, len(self.x))
        where = [("row_scale", "step")]
        x = self.x.float()
        return self._step("step", caption, everything, where, size, inputs=x, step=step[None])

    def _quantized_step(self, codes: torch.Tensor, step: torch.Tensor) -> Step:
        caption = (
            f"Each input is divided by {_number(step)} and rounded: {_number(self.x[0])} becomes "
            f"{int(codes[0])}. {len(codes)} codes of one byte each are written to memory, for "
            "all programs."
        )
        where = [("int8_inputs", "quantized")]
        return self._step(
            "quantized", caption, slice(0, len(self.x)), where, codes.numel(), codes=codes
        )

    def _weights_step(self, tile: torch.Tensor, columns: slice) -> Step:
        caption = (
            f"Columns {columns.start} to {columns.stop - 1} of {tile.shape[0]} rows: "
            f"{tile.numel()} weights of a byte each. The first is {int(tile[0, 0])}."
        )
        where = [("int8_gemv", "weights")]
        return self._step("weights", caption, columns, where, tile.numel(), weights=tile)

    def _inputs_step(self, codes: torch.Tensor, columns: slice) -> Step:
        caption = f"{len(codes)} codes of the inputs, the first is {int(codes[0])}."
        where = [("int8_gemv", "inputs")]
        return self._step("inputs", caption, columns, where, len(codes), inputs=codes.int())

    def _products_step(self, partial: torch.Tensor, total: torch.Tensor, columns: slice) -> Step:
        caption = (
            "Products of integers are added to the totals without any rounding. The sum of the "
            f"first row so far is {int(total[0].sum())}."
        )
        where = [("int8_gemv", "products")]
        return self._step("products", caption, columns, where, 0, partial=partial)


def _tensors(q: QuantizedTensor, table: bool) -> tuple[dict[str, torch.Tensor], Layout, float]:
    if table:
        tensors, layout, _ = codebook_tensors(q)
        return tensors, layout, 0.0
    return affine_tensors(q)


def _scales(
    tensors: Mapping[str, torch.Tensor], at: torch.Tensor, block: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """The scales at these places, float32, and the bytes that were read for them; `block` counts
    their groups in the order of the weights."""
    scale, size = tensors["scale"].flatten()[at], _distinct(at, tensors["scale"])
    if "second" not in tensors:
        return scale.float(), size
    level = tensors["table"][16:][scale.long()]
    size += _distinct(block // 256, tensors["second"]) + tensors["offset"].element_size()
    return level * tensors["second"][block // 256] + tensors["offset"], size


def _distinct(at: torch.Tensor, tensor: torch.Tensor) -> int:
    """Bytes of the elements at these places, each counted once."""
    count: int = torch.unique(at).numel()
    return count * tensor.element_size()


def _number(value: torch.Tensor) -> str:
    """For captions: four significant digits."""
    return f"{float(value):.4g}".replace("-", "−")
