"""What the parts of the AWQ lesson share: pictures of a layer, and one weight's arithmetic."""

from collections.abc import Sequence
from typing import Any

import torch

from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.study.awq_case import Case
from qviz.ui.views.awq_weight import Weight
from qviz.ui.views.parts import LessonPart
from qviz.ui.widgets import MatrixFrame, MatrixView

AXES = ("out", "channel")
ROWS, CELLS = 128, 1 << 16  # of a layer that pictures show; twenty of them are kept


class AwqPart(LessonPart):
    """A part of the lesson, whose page has the case that all parts share."""

    page: Any  # the AwqLesson, which imports its parts


def part(matrix: torch.Tensor) -> torch.Tensor:
    """The rows that pictures show."""
    return matrix[: max(1, min(ROWS, CELLS // matrix.shape[1]))]


def felt(case: Case, back: torch.Tensor) -> torch.Tensor:
    """a·(Ŵ − W) of those rows: each weight's error as the output feels it on average."""
    return (part(back) - part(case.weight)) * case.calibration.act_absmean.to(case.weight)


def draw_felt(
    view: MatrixView, frames: Sequence[torch.Tensor], labels: Sequence[str], limit: float
) -> None:
    """Pictures of such errors, colours ending at `limit`."""
    view.set_frames(
        [MatrixFrame(one) for one in frames], labels=labels, limits=limit, reduce="max_abs",
        role="error", axes=AXES, cells="errors",
    )  # fmt: skip


def reach(error: torch.Tensor) -> float:
    """Where the colours of errors end: what 99 % of them keep, so that loud channels stand out."""
    sizes = error.abs().flatten()
    step = max(1, len(sizes) // 100_000)
    return float(sizes[::step].quantile(0.99)) or float(sizes.max()) or 1.0


def weight_of(
    case: Case,
    q: QuantizedTensor,
    row: int,
    column: int,
    *,
    scale: torch.Tensor | None = None,
    limit: torch.Tensor | None = None,
) -> Weight:
    """The arithmetic of a weight of the layer in `q`, which may be scaled by s [in], and clipped
    to limits [out, groups]."""
    assert isinstance(q.grid, Affine)
    r, g = q.group_of(row, column)
    first = g * case.size
    members = case.weight[row, first : first + case.size]
    if scale is not None:
        members = members * scale[first : first + case.size].to(members)
    cut = None if limit is None else float(limit[row, g])
    if cut is not None:
        members = members.clamp(-cut, cut)
    back = q.window(slice(row, row + 1), slice(column, column + 1))
    return Weight(
        row=row,
        column=column,
        w=float(case.weight[row, column]),
        s=1.0 if scale is None else float(scale[column]),
        limit=cut,
        low=float(members.min()),
        high=float(members.max()),
        bits=case.bits,
        delta=float(q.grid.scale[r, g]),
        zero=0.0 if q.grid.zero_point is None else float(q.grid.zero_point[r, g]),
        code=int(q.codes[row, column]),
        back=float(back),
        a=float(case.calibration.act_absmean[column]),
    )
