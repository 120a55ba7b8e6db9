"""Which numbers the lesson on scale and zero point looks at: those that share one scale."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from qviz.core.granularity import Granularity
from qviz.study.clipping import (
    KEPT,
    Outcome,
    Tried,
    Values,
    find_groups,
    gate_activations,
    shrink,
    try_ranges,
)
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.scale_sharing import MATRIX, ROW, sharing
from qviz.ui.views.snippet import call

TYPICAL, OUTLIER, ONE_SIDED, GATE = "typical", "outlier", "one-sided", "gate"


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers that share one scale.

    look     why these; unit: what shares a scale, such as "row"
    flat     [n] float32, in their order
    picture  [lines, places] the same, for a picture
    first    row and column of the first in its matrix; width: columns of the matrix
    code     Python that gives `flat`
    """

    look: str
    unit: str
    flat: torch.Tensor
    picture: torch.Tensor
    first: tuple[int, int]
    width: int
    noun: str
    code: str

    @cached_property
    def values(self) -> Values:
        return Values(self.flat)

    @property
    def is_layer(self) -> bool:
        """Whether they are all weights of the layer, and the picture is the layer's."""
        return self.unit == MATRIX and self.look != GATE

    @property
    def n(self) -> int:
        return self.flat.numel()

    def at(self, line: int, place: int) -> tuple[float, tuple[str, str]]:
        """The number at a place of the picture, and where it is in its matrix, in words."""
        start = self.first[0] * self.width + self.first[1]
        row, column = divmod(start + line * self.picture.shape[1] + place, self.width)
        names = "row, column" if self.noun == "weight" else "token, feature"
        return float(self.picture[line, place]), (names, f"{row}, {column}")

    @property
    def title(self) -> str:
        """What they are, in words."""
        row, column = self.first
        if self.look == GATE:
            return f"The {self.n} gate activations of token {row}"
        if self.is_layer:
            return f"All {self.n} weights of the layer"
        if self.unit == ROW:
            return f"The {self.n} weights of row {row}"
        return f"The {self.n} weights of row {row}, columns {column} to {column + self.n - 1}"


def looks(unit: str, source: str | None, layer: str) -> dict[str, str]:
    """What can be looked at: name in a link → words on the page."""
    what = "row" if unit == ROW else "group"
    found = (
        {TYPICAL: "all weights of the layer"}
        if unit == MATRIX
        else {
            TYPICAL: f"a typical {what}",
            OUTLIER: "the largest outlier",
            ONE_SIDED: f"the most one-sided {what}",
        }
    )
    if source is None and ".mlp." in layer:
        found[GATE] = "gate activations"
    return found


def numbers_of(opened: Opened, look: str, unit: str) -> Numbers:
    """The numbers that the controls ask for."""
    loaded = f"{call('qviz.load_layer', opened.source, opened.layer)}.float()"
    if look == GATE:
        gates = gate_activations(opened.layer)
        token, _ = find_groups(gates, Granularity("token"))[TYPICAL]
        made = call("gate_activations", opened.layer)
        flat, code = gates[token].float(), f"{made}[{token}]"
        return Numbers(look, unit, flat, _grid(flat), (token, 0), len(flat), "activation", code)
    weight = opened.weight.float()
    columns = weight.shape[1]
    if unit == MATRIX:
        return Numbers(
            look, unit, weight.flatten(), weight, (0, 0), columns, "weight", f"{loaded}.flatten()"
        )
    granularity = sharing(unit)
    row, group = find_groups(weight, granularity)[look]
    size = granularity.group_size or columns
    part = slice(group * size, (group + 1) * size)
    flat = weight[row, part]
    code = f"{loaded}[{row}, {part.start}:{part.stop}]"
    return Numbers(look, unit, flat, _grid(flat), (row, part.start), columns, "weight", code)


def _grid(flat: torch.Tensor) -> torch.Tensor:
    """In lines, about twice as wide as high, so that a finger can hit each number."""
    n = len(flat)
    places = next((p for p in range(1, n + 1) if n % p == 0 and p * p >= 2 * n), n)
    return flat.reshape(-1, places)


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows: numbers that share a scale, and the error that every range causes.

    scheme    bits, symmetric, convention
    tried     the ranges of KEPT, the whole one last
    hand      the range by hand; None while the slider says what is kept
    outcomes  how every system quantizes the numbers with this many bits
    """

    opened: Opened
    numbers: Numbers
    scheme: dict[str, Any]
    tried: Tried
    hand: Tried | None
    outcomes: list[Outcome]

    @property
    def frames(self) -> Tried:
        """What the pictures switch between."""
        return self.tried if self.hand is None else self.hand

    def shares(self, tried: Tried) -> tuple[np.ndarray, np.ndarray]:
        """Rounding and clipping, each [ranges], as shares of the squared numbers."""
        share = self.numbers.values.share
        return (
            np.array([share(e) for e in tried.rounding.tolist()]),
            np.array([share(e) for e in tried.clipping.tolist()]),
        )

    @cached_property
    def total(self) -> np.ndarray:
        """[KEPT], both together."""
        rounding, clipping = self.shares(self.tried)
        both: np.ndarray = rounding + clipping
        return both


def try_parts(numbers: Numbers, scheme: dict[str, Any]) -> Tried:
    """Every part of KEPT."""
    values = numbers.values
    return try_ranges(values, *shrink(values.low, values.high, torch.tensor(KEPT)), **scheme)


def try_by_hand(numbers: Numbers, scheme: dict[str, Any], ends: list[float]) -> Tried:
    """One range; ValueError for one without width."""
    if ends[0] == ends[1]:
        raise ValueError("both ends of the range are at the same place; move them apart")
    low, high = (torch.tensor([end]) for end in ends)
    return try_ranges(numbers.values, low, high, **scheme)
