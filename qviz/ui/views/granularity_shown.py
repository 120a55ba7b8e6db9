"""What the part about one outlier shows: one frozen value, and the facts that words are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qviz.core.grids import Affine, Codebook
from qviz.study.granularity import OutlierClaims, Shared, Window, count, sharers
from qviz.ui.views.granularity_words import SIZES, Cell, Moment, Pays
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.spacing import spacing
from qviz.ui.widgets import number


@dataclass(frozen=True, eq=False)
class Shown:
    """What the part shows: a matrix, one value of it at every size, under three granularities.

    matrix   [rows, columns] float32, as trained or as it came in; kind: which
    options  of `affine`; those of NF4's blocks are its own
    typical  root mean square of the matrix
    cell     row and column of the outlier in the matrix; window: what is looked at
    values   of the outlier, one for each of SIZES
    shared   label → the outcome, the coarsest first
    claims   what articles say, computed on the layer's weights
    reach    what colours and the row's axes reach to
    """

    opened: Opened
    kind: str
    matrix: torch.Tensor
    options: Mapping[str, Any]
    at: str
    typical: float
    window: Window
    cell: tuple[int, int]
    values: tuple[float, ...]
    shared: Mapping[str, Shared]
    claims: OutlierClaims
    reach: float

    @property
    def moments(self) -> list[Moment]:
        """The facts of each size of the outlier."""
        unit = self.typical or 1.0
        return [
            Moment(
                self.kind, size, self.cell, value, abs(value) / unit,
                tuple(self._pays(label, one, i) for label, one in self.shared.items()),
            )
            for i, (size, value) in enumerate(zip(SIZES, self.values, strict=True))
        ]  # fmt: skip

    def _pays(self, label: str, one: Shared, i: int) -> Pays:
        fate, ledger = one.fates[i], one.trained.ledger
        return Pays(
            unit=label,
            sharing=one.count,
            before=one.fates[0].error,
            now=fate.error,
            whole=fate.whole_error,
            lost=fate.lost,
            used=fate.used,
            peak=one.peak / (self.typical or 1.0),
            sets=abs(fate.value) > one.peak,
            scales=ledger.bits_per_weight - ledger.per_weight("codes"),
            bits=ledger.bits_per_weight,
        )

    def windows(self) -> list[torch.Tensor]:
        """The window with the outlier at each size."""
        made = []
        for value in self.values:
            x = self.window.of(self.matrix).clone()
            x[self.cell[0] - self.window.row, self.cell[1] - self.window.column] = value
            made.append(x)
        return made


def reach_of(matrix: torch.Tensor, window: Window) -> float:
    """What the colours reach to: nearly all values of the window as trained, its outliers apart."""
    sizes = window.of(matrix).abs().flatten()
    reach = float(sizes.quantile(0.99)) or float(sizes.max())
    return reach or 1.0


def error_reach(error: torch.Tensor, reach: float) -> float:
    """What the colours of all errors reach to: twice nearly all of the coarsest granularity's
    before anything grew, but no more than half of what the values' colours reach to."""
    nearly = float(error.abs().flatten().quantile(0.99))
    return min(2 * nearly, reach / 2) or reach / 2


def outlines(one: Shared, window: Window) -> list[list[int]]:
    """The cells of the window that share the outlier's scale."""
    return [
        [a - window.row, b - window.row, c - window.column, d - window.column]
        for a, b, c, d in one.sharers
        if a < window.row + window.rows and b > window.row
        and c < window.column + window.columns and d > window.column
    ]  # fmt: skip


def cell_of(
    shown: Shown, label: str, frame: int, at: tuple[int, int], place: tuple[int, int]
) -> Cell:
    """The facts of one value under one granularity, at one size of the outlier."""
    one = shown.shared[label]
    fate, trained, shape = one.fates[frame], one.trained, one.trained.shape
    shares = bool(one.inside[at])
    group = trained.group_of(*place)
    if shares:
        grid, where, low, high = fate.grid, (0, 0), fate.low, fate.high
    else:
        values = one.unit.split(shown.matrix)[group][: count(sharers(one.unit, *place, shape))]
        grid, where = trained.grid, group  # type: ignore[assignment]
        low, high = float(values.min()), float(values.max())
    assert isinstance(grid, Affine | Codebook)
    scale, code = float(grid.scale[where]), int(fate.codes[at])
    zero = grid.zero_point if isinstance(grid, Affine) else None
    made = number(scale, 3)
    if isinstance(grid, Affine):
        convention = str(trained.info["convention"])
        made = spacing(convention, True, grid.bits, low, high, scale).partition(" = ")[0]
    return Cell(
        unit=label,
        x=shown.values[frame] if place == shown.cell else float(shown.matrix[place]),
        spacing=made,
        scale=scale,
        zero=None if zero is None else float(zero[where]),
        level=float(grid.values[code]) if isinstance(grid, Codebook) else None,
        code=code,
        back=float(fate.back[at]),
        shares=shares,
        sharing=count(sharers(one.unit, *place, shape)) - 1,
    )
