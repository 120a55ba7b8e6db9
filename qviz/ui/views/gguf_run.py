"""Which block of a layer is encoded, and what stands beside it: all of the GGUF lesson's first part
that needs no widget."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qviz.methods.gguf import LAYOUTS
from qviz.methods.gguf.kquants import SUPER_BLOCK
from qviz.study.gguf_facts import without_largest
from qviz.study.gguf_walk import (
    Moment,
    RowWalk,
    Walk,
    can_be_read_in_pairs,
    read_in_pairs,
    together,
    tries,
    unreached,
    with_outlier,
    without_second_pass,
)
from qviz.ui.views.gguf_guide import (
    BESIDE,
    FACTOR,
    IMPORTANCE,
    NO_PASS,
    NOTHING,
    OUTLIER,
    PAIRS,
    UNREACHED,
)
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.snippet import Name, call


@dataclass(frozen=True, eq=False)
class Shown:
    """What the part shows: a block, its walk, and perhaps a second one.

    row, first   where the block begins in the layer
    whole        the row's run, of which the walk is a part
    weighs       [sub-blocks, weights] by which the two runs are compared as well, or None
    steps        (moment of the first run, of the second) for each step of the bar
    """

    opened: Opened
    type: str
    beside: str
    row: int
    first: int
    whole: RowWalk
    walk: Walk
    second: Walk | None
    weighs: torch.Tensor | None
    steps: Sequence[tuple[Moment, Moment | None]]

    @property
    def walks(self) -> tuple[Walk, ...]:
        return (self.walk,) if self.second is None else (self.walk, self.second)

    @property
    def block(self) -> int:
        """Its number in the row."""
        return self.first // self.walk.x.numel()

    def moments(self, step: int) -> tuple[Moment, ...]:
        """Of each walk, at a step."""
        return tuple(moment for moment in self.steps[step] if moment is not None)

    def is_of(self, other: "Shown | None") -> bool:
        """Whether both are about the same block in the same type."""
        return other is not None and (
            (self.opened, self.type, self.row, self.first)
            == (other.opened, other.type, other.row, other.first)
        )


def offered(type: str, columns: int, inputs: bool) -> list[str]:
    """What a second run of this type can be, in rows of so many weights; `inputs`: they are
    known."""
    weighs = bool(tries(type, True)) and inputs
    two = LAYOUTS[type].weights == SUPER_BLOCK
    can = {
        NOTHING: True, IMPORTANCE: weighs, NO_PASS: two, OUTLIER: True,
        # elsewhere in the row some importance must be left
        UNREACHED: weighs and two and columns > SUPER_BLOCK, PAIRS: can_be_read_in_pairs(type),
    }  # fmt: skip
    return [name for name in BESIDE if can[name]]


def run(
    opened: Opened,
    place: tuple[int, int],
    type: str,
    beside: str,
    importance: torch.Tensor | None,
    last: Shown | None,
) -> Shown:
    """Encode the block around a weight of the layer; the row's run is taken from `last` where that
    is about the same row. `importance` [in] of the layer's inputs, None where nobody knows them."""
    row, column = place
    weights = opened.weight[row].float()
    known = last is not None and (last.opened, last.type, last.row) == (opened, type, row)
    whole = last.whole if known and last is not None else RowWalk(weights, type=type)
    per = LAYOUTS[type].weights
    block = column // per
    walk = whole.block(block)
    second = _second(beside, weights, block, walk, importance)
    weighs = None
    if beside == IMPORTANCE and importance is not None:
        weighs = importance[block * per : (block + 1) * per].view(walk.x.shape)
    elif beside == OUTLIER and second is not None:
        weighs = without_largest(second.x)
    return Shown(
        opened, type, beside, row, block * per, whole, walk, second, weighs, together(walk, second)
    )


def _second(
    beside: str, row: torch.Tensor, block: int, walk: Walk, importance: torch.Tensor | None
) -> Walk | None:
    """The walk that stands beside the first."""
    if beside == NOTHING:
        return None
    if beside == NO_PASS:
        return without_second_pass(walk)
    if beside == PAIRS:
        return read_in_pairs(walk)
    first, count = block * walk.x.numel(), walk.x.numel()
    if beside == OUTLIER:
        place = first + int(row[first : first + count].abs().argmax())
        return RowWalk(with_outlier(row, place, FACTOR), type=walk.type).block(block)
    assert importance is not None, "offered only where inputs are known"
    own = unreached(importance, first, count) if beside == UNREACHED else importance
    return RowWalk(row, type=walk.type, importance=own).block(block)


def code_of(shown: Shown) -> str:
    """The library calls that give what is on screen."""
    source, layer = shown.opened.source, shown.opened.layer
    weight, type = Name("weight"), shown.type
    lines = [
        "import qviz", "from qviz.study.gguf_walk import RowWalk", "",
        f"weight = {call('qviz.load_layer', source, layer)}.float()",
        f"walk = RowWalk(weight[{shown.row}], type={type!r}).block({shown.block})",
        f"q = {call('qviz.quantize', weight, 'gguf', type=type)}",
        f"whole = q.grid.data[{shown.row}]  # the bytes of the row; the block's are walk.data",
    ]  # fmt: skip
    if shown.beside == IMPORTANCE:
        made = call("qviz.quantize", weight, "gguf", type=type, importance=Name("importance"))
        calibration = call("qviz.load_calibration", source, layer)
        lines += [
            f"importance = {calibration}.hessian.diagonal() / 2", f"weighed = {made}",
        ]  # fmt: skip
    return "\n".join(lines)
