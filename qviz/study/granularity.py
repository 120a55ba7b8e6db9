"""Who pays for one large value, and what smaller groups cost: experiments on one matrix.

A scale is shared by the members of a group, and it follows the largest of them. So one value that
grows takes levels away from the others in its group, and from no other values. `grow` lets one
value grow under one granularity and measures its neighbours. `equal_bits` compares the error of
many granularities and bit-widths with the bits that they really cost.

All sums run in float64, and the outlier itself is left out of every error: the question is its
effect on the others.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qviz.core.calibration import Calibration
from qviz.core.granularity import Granularity
from qviz.core.grids import ScalarGrid
from qviz.core.metrics import ratio
from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import affine
from qviz.methods.nf4 import nf4
from qviz.study.sweep import Progress, sweep

PIECE = 1 << 20  # values that are compared in float64 at once
Rectangle = tuple[int, int, int, int]  # first row, end of rows, first column, end of columns


# ------------------------------------------------------------------------- who shares a scale


def place(
    unit: Granularity, rows: torch.Tensor, columns: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Which member of its group each of these cells is: [r, c] for indices rows [r], columns [c].

    `Granularity.locate` says which group it is; together they say what `split` does to a cell.
    """
    rows, columns = rows[:, None], columns[None, :]
    flat = rows * shape[1] + columns
    if unit.kind == "tensor":
        return flat
    if unit.kind == "flat":
        return flat % int(unit.group_size or 1)
    along, other = (columns, rows) if unit.axis else (rows, columns)
    size = unit.group_size or shape[unit.axis]
    return (along % size).expand(rows.shape[0], columns.shape[1]) + 0 * other


def sharers(
    unit: Granularity, row: int, column: int, shape: tuple[int, int]
) -> tuple[Rectangle, ...]:
    """The cells that share the scale of one cell, as one to three rectangles of the matrix.

    >>> sharers(Granularity("flat", 12), 1, 0, (3, 8))  # it begins in row 0 and ends in row 1
    ((0, 1, 0, 8), (1, 2, 0, 4))
    """
    rows, columns = shape
    size = unit.group_size
    if unit.kind == "tensor":
        return ((0, rows, 0, columns),)
    if unit.kind == "flat":
        assert size is not None
        first = (row * columns + column) // size * size
        return tuple(_run(first, min(first + size, rows * columns), columns))
    if unit.axis == 0:
        first = row // (size or rows) * (size or rows)
        return ((first, first + (size or rows), column, column + 1),)
    first = column // (size or columns) * (size or columns)
    return ((row, row + 1, first, first + (size or columns)),)


def _run(first: int, end: int, columns: int) -> Iterator[Rectangle]:
    """Consecutive cells of the flattened matrix: part of a row, whole rows, part of a row."""
    top, left = divmod(first, columns)
    last, right = divmod(end, columns)
    if left and top < last:
        yield (top, top + 1, left, columns)
        top, left = top + 1, 0
    if top < last:
        yield (top, last, 0, columns)
        top = last
    if right > left and top == last:
        yield (top, top + 1, left, right)


def count(rectangles: Sequence[Rectangle]) -> int:
    """How many cells they have together."""
    return sum((b - a) * (d - c) for a, b, c, d in rectangles)


# ------------------------------------------------------------------------- one value grows


@dataclass(frozen=True)
class Rounding:
    """How the matrix is rounded: by which method, with which options besides the granularity."""

    method: str
    options: Mapping[str, Any]

    def matrix(self, x: torch.Tensor, unit: Granularity) -> QuantizedTensor:
        if self.method == "nf4":
            return nf4(x, group_size=unit.group_size, **self.options)
        return affine(x, granularity=unit, group_size=None, **self.options)

    def group(self, x: torch.Tensor, unit: Granularity) -> QuantizedTensor:
        """One group [n] alone, as [1, n]: it comes out as it does in its matrix."""
        if self.method == "nf4":
            return nf4(x[None], group_size=unit.group_size, **self.options)
        return affine(x[None], granularity="channel", group_size=None, **self.options)


@dataclass(frozen=True)
class Window:
    """A part of a matrix that is looked at."""

    row: int
    column: int
    rows: int
    columns: int

    def of(self, x: torch.Tensor) -> torch.Tensor:
        return x[self.row : self.row + self.rows, self.column : self.column + self.columns]

    def holds(self, row: int, column: int) -> bool:
        return (
            self.row <= row < self.row + self.rows
            and self.column <= column < self.column + self.columns
        )

    def indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.arange(self.row, self.row + self.rows),
            torch.arange(self.column, self.column + self.columns),
        )


@dataclass(frozen=True, eq=False)
class Fate:
    """The effect of one size of the outlier.

    value        of the outlier; low, high: what its group then spans
    grid         the levels of its group, with parameters [1, 1]
    error        of the others who share its scale: ‖x − x̂‖ / ‖x‖ over them
    whole_error  the same over all values of the matrix but the outlier
    lost         how many of those who share were not 0 and are rounded to 0
    used         how many different levels those who share use
    codes, back  [rows, columns] of the window: codes and reconstructed values
    """

    value: float
    low: float
    high: float
    grid: ScalarGrid
    error: float
    whole_error: float
    lost: int
    used: int
    codes: torch.Tensor
    back: torch.Tensor


@dataclass(frozen=True, eq=False)
class Shared:
    """One granularity, and the effect of a growing value under it.

    trained  the matrix as it was trained, quantized
    sharers  the rectangles of those who share the outlier's scale, itself among them
    inside   [rows, columns] bool: which cells of the window they are
    peak     the largest magnitude among the others who share
    fates    one for each size of the outlier
    """

    unit: Granularity
    trained: QuantizedTensor
    sharers: tuple[Rectangle, ...]
    inside: torch.Tensor
    peak: float
    fates: tuple[Fate, ...]

    @property
    def count(self) -> int:
        """How many share the outlier's scale, without itself."""
        return count(self.sharers) - 1

    @property
    def bits_per_weight(self) -> float:
        return self.trained.bits_per_weight


def grow(
    matrix: torch.Tensor,
    cell: tuple[int, int],
    values: Sequence[float],
    unit: Granularity,
    rounding: Rounding,
    window: Window,
) -> Shared:
    """Let the value at `cell` take each of `values`, and measure those who share its scale.

    matrix [rows, columns] is not changed. ValueError for whatever the method refuses.

    >>> unit, at = Granularity("group", 8), Window(0, 0, 4, 8)
    >>> shared = grow(weight, (3, 5), [0.1, 10.0], unit, Rounding("affine", {"bits": 4}), at)
    >>> shared.fates[0].error < shared.fates[1].error
    True
    """
    shape = (matrix.shape[0], matrix.shape[1])
    trained = rounding.matrix(matrix, unit)
    at, members = trained.group_of(*cell), sharers(unit, *cell, shape)
    group = unit.split(matrix)[at][: count(members)].clone()  # [n]
    here = int(place(unit, torch.tensor([cell[0]]), torch.tensor([cell[1]]), shape))
    before = trained.dequantize()
    rest = _Sums.of(matrix, before) - _Sums.of(group, unit.split(before)[at][: len(group)])

    group[here] = 0.0
    peak = float(torch.maximum(group.max(), -group.min()))
    rows, columns = window.indices()
    where = unit.locate(rows, columns, shape)
    inside = ((where[0] == at[0]) & (where[1] == at[1])).expand(window.rows, window.columns)
    seen = place(unit, rows, columns, shape)[inside]
    fates: list[Fate] = []
    last: tuple[float, float, QuantizedTensor, _Others] | None = None
    for value in values:
        group[here] = value
        low, high = float(group.min()), float(group.max())
        if last is None or last[:2] != (low, high):  # else the levels are those of the last size
            q = rounding.group(group, unit)
            last = low, high, q, _Others.of(group, q, here)
        _, _, q, others = last
        one = rounding.group(torch.tensor([value, low, high], dtype=group.dtype), unit)
        codes, back = window.of(trained.codes).clone(), window.of(before).clone()
        codes[inside], back[inside] = q.codes[0][seen], q.dequantize()[0][seen]
        if window.holds(*cell):
            mine = cell[0] - window.row, cell[1] - window.column
            codes[mine], back[mine] = one.codes[0, 0], one.dequantize()[0, 0]
        assert isinstance(q.grid, ScalarGrid)
        whole = (rest + others.sums).error
        fates.append(
            Fate(value, low, high, q.grid, others.sums.error, whole, others.lost, others.used,
                 codes, back)
        )  # fmt: skip
    return Shared(unit, trained, members, inside, peak, tuple(fates))


@dataclass(frozen=True)
class _Others:
    """The result for a group, without one member."""

    sums: "_Sums"
    lost: int
    used: int

    @classmethod
    def of(cls, group: torch.Tensor, q: QuantizedTensor, without: int) -> "_Others":
        after, codes = q.dequantize()[0], q.codes[0]
        kept, group[without], after[without] = group[without].clone(), 0.0, 0.0
        lost = int(torch.count_nonzero((after == 0) & (group != 0)))
        sums = _Sums.of(group, after)
        group[without] = kept
        return cls(sums, lost, _in_use(codes, without))


def _in_use(codes: torch.Tensor, without: int) -> int:
    """How many different codes [n] there are, one place left out."""
    first = int(codes.min())  # counted piece by piece: as wide integers they would fill memory
    counts = [torch.bincount(p.int() - first, minlength=256) for p in torch.split(codes, PIECE)]
    counted = torch.stack(counts).sum(0)
    counted[int(codes[without]) - first] -= 1
    return int(torch.count_nonzero(counted))


@dataclass(frozen=True)
class _Sums:
    noise: float
    signal: float

    @classmethod
    def of(cls, x: torch.Tensor, back: torch.Tensor) -> "_Sums":
        noise = signal = 0.0
        pieces = (torch.split(one.flatten(), PIECE) for one in (x, back))
        for a, b in zip(
            *pieces, strict=True
        ):  # piece by piece: a large matrix in float64 would be eight bytes a value
            a, d = a.double(), a.double() - b.double()
            noise += float(torch.dot(d, d))
            signal += float(torch.dot(a, a))
        return cls(noise, signal)

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(self.noise + other.noise, self.signal + other.signal)

    def __sub__(self, other: "_Sums") -> "_Sums":
        """A sum minus a part of it; rounding can push a remainder of zero below zero."""
        noise, signal = self.noise - other.noise, self.signal - other.signal
        tiny = 1e-13  # relative, of the larger sum
        return _Sums(
            noise if noise > tiny * self.noise else 0.0,
            signal if signal > tiny * self.signal else 0.0,
        )

    @property
    def error(self) -> float:
        return math.sqrt(ratio(self.noise, self.signal))


# ------------------------------------------------------------------------- where to look


def typical(matrix: torch.Tensor) -> float:
    """The root mean square of all values, to which a value's size is compared."""
    pieces = torch.split(matrix.flatten(), PIECE)
    total = sum(float(piece.double().square().sum()) for piece in pieces)
    return math.sqrt(total / matrix.numel())


def largest(matrix: torch.Tensor) -> tuple[int, int]:
    """Row and column of the value with the largest magnitude."""
    sizes = torch.maximum(matrix.amax(1), -matrix.amin(1))
    row = int(sizes.argmax())
    return row, int(matrix[row].abs().argmax())


def window_at(shape: tuple[int, int], row: int, column: int, size: tuple[int, int]) -> Window:
    """The window of at most this size on the grid of such windows that holds the cell; at the
    lower and right ends it is moved in, so that it is whole."""
    rows, columns = min(size[0], shape[0]), min(size[1], shape[1])
    return Window(
        min(row // rows * rows, shape[0] - rows),
        min(column // columns * columns, shape[1] - columns),
        rows,
        columns,
    )


def quietest(matrix: torch.Tensor, size: tuple[int, int]) -> Window:
    """Of the grid of windows of this size, the one whose largest value is smallest, zeros apart
    (a window of nothing but zeros shows nothing)."""
    shape = (matrix.shape[0], matrix.shape[1])
    rows, columns = min(size[0], shape[0]), min(size[1], shape[1])
    windows = [
        window_at(shape, r, c, size)
        for r in range(0, shape[0], rows)
        for c in range(0, shape[1], columns)
    ]
    peaks = [float(w.of(matrix).abs().max()) for w in windows]
    return min(zip(peaks, windows, strict=True), key=lambda pair: pair[0] or math.inf)[1]


# ------------------------------------------------------------------------- at equal bits


NF4_BLOCKS = "NF4 blocks"


@dataclass(frozen=True)
class Point:
    """One way to spend bits: who shares a scale, the width of a code, and the result.

    label    the granularity's; `NF4_BLOCKS` for all sizes of the flat blocks of NF4
    size     of a group or block; None where there are none
    cost     true bits per weight, scales included
    error    of the weights, output_error of the layer's output where its inputs are known; both
             relative
    """

    label: str
    size: int | None
    bits: int
    cost: float
    error: float
    output_error: float | None


def equal_bits(
    weight: torch.Tensor,
    units: Mapping[str, Granularity],
    bits: Sequence[int],
    *,
    blocks: Sequence[int] = (),
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Point, ...]:
    """The cost and the error of every granularity at every bit-width, cheapest first.

    units    label → granularity; blocks: sizes of flat blocks of NF4, as bitsandbytes counts them
    options  go to `affine`: convention, scale_dtype …

    >>> points = equal_bits(weight, {"row": Granularity("channel")}, [4, 5], blocks=[64])
    >>> best = best_within(points, 4.5, lambda point: point.error)
    """
    runs = {
        label: ("affine", {"granularity": unit.kind, "group_size": unit.group_size, **options})
        for label, unit in units.items()
    }
    size = {label: unit.group_size for label, unit in units.items()}
    rows = list(sweep(weight, runs, list(bits), calibration=calibration, progress=progress))
    if blocks:
        flat = {f"{NF4_BLOCKS} of {n}": ("nf4", {"group_size": n}) for n in blocks}
        size |= {f"{NF4_BLOCKS} of {n}": n for n in blocks}
        rows += list(sweep(weight, flat, calibration=calibration))
    points = [
        Point(
            NF4_BLOCKS if row["method"] == "nf4" else row["label"], size[row["label"]],
            row["bits"], row["bits_per_weight"], row["relative_error"], row.get("output_error"),
        )
        for row in rows
    ]  # fmt: skip
    return tuple(sorted(points, key=lambda point: point.cost))


def best_within(
    points: Sequence[Point], budget: float, error: Callable[[Point], float]
) -> dict[str, Point]:
    """Label → its best point that costs no more than the budget, the best label first.

    Labels that have none are omitted.
    """
    found: dict[str, Point] = {}
    for point in points:
        if point.cost <= budget and (
            point.label not in found or error(point) < error(found[point.label])
        ):
            found[point.label] = point
    return dict(sorted(found.items(), key=lambda item: error(item[1])))


def shares_won(
    points: Sequence[Point], low: float, high: float, error: Callable[[Point], float]
) -> dict[str, float]:
    """Label → the share of all budgets from low to high in which it is the closest, the largest
    first. The winner changes only where another point becomes affordable.
    """
    won: dict[str, float] = {}
    turns = sorted({low, *(p.cost for p in points if low < p.cost < high), high})
    for start, end in itertools.pairwise(turns):
        best = next(iter(best_within(points, start, error)), "")
        if best:
            won[best] = won.get(best, 0.0) + (end - start) / (high - low)
    return dict(sorted(won.items(), key=lambda item: -item[1]))


# ------------------------------------------------------------------------- what articles say


@dataclass(frozen=True)
class OutlierClaims:
    """What a popular picture of outliers claims, computed on a real matrix.

    peak        the largest magnitude, as a multiple of the root mean square
    second      the second largest magnitude, likewise
    widest_row  the root mean square of the widest row, as a multiple of the median row's
    used        different 8-bit levels in use with one scale for the matrix, by all values but the
                largest
    used_at_100 the same with the largest made 100 times as large as any other
    group_size  of the groups compared; gain: how much smaller their mean squared error is than
                that of one scale for the matrix, at 4 bits
    """

    peak: float
    second: float
    widest_row: float
    used: int
    used_at_100: int
    group_size: int
    gain: float


def outlier_claims(weight: torch.Tensor, *, group_size: int = 128) -> OutlierClaims:
    """The claims on [out, in]; where `group_size` does not divide the rows, the next smaller size
    that does. Levels are those of the articles' code: absmax."""
    row, column = largest(weight)
    unit = typical(weight) or 1.0
    rows = torch.cat([piece.double().square().mean(1).sqrt() for piece in torch.split(weight, 64)])
    middle = float(rows.median()) or 1.0
    size = next(g for g in range(group_size, 0, -1) if weight.shape[1] % g == 0)

    def used(x: torch.Tensor) -> int:
        codes = affine(x, bits=8, granularity="tensor", convention="absmax").codes.flatten()
        return _in_use(codes, row * weight.shape[1] + column)

    def noise(unit: Granularity) -> float:
        q = affine(weight, bits=4, granularity=unit, group_size=None, convention="absmax")
        return _Sums.of(weight, q.dequantize()).noise

    stretched = weight.clone()
    stretched[row, column] = 0.0
    at = largest(stretched)
    second = abs(float(stretched[at]))
    stretched[row, column] = 100 * second
    return OutlierClaims(
        peak=abs(float(weight[row, column])) / unit,
        second=second / unit,
        widest_row=float(rows.max()) / middle,
        used=used(weight),
        used_at_100=used(stretched),
        group_size=size,
        gain=ratio(noise(Granularity("tensor")), noise(Granularity("group", size))),
    )
