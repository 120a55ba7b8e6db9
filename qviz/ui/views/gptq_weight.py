"""The weight in focus: it moves on with the steps, or is held while they go on."""

from collections.abc import Callable
from typing import Any

from qviz.study.gptq_walk import Walk
from qviz.ui.views.gptq_pictures import RunPictures
from qviz.ui.widgets import MatrixView


class ChosenWeight:
    """`cell` is its row and column in the layer. `page.shown` has the run, or the two."""

    def __init__(
        self,
        page: Any,
        pictures: RunPictures,
        pointed: Callable[[], None],
        live: Callable[[], bool],
    ) -> None:
        """`pointed` is called once the learner has pointed at another weight."""
        self.cell = (0, 0)
        self._page, self._pictures, self._pointed = page, pictures, pointed
        self._following = True  # the cell moves on with the steps
        page.add_cell(
            "weight", [pictures.now_view, pictures.pair_views[0]], lambda: self.cell, self._point,
            view=self._view, place=self._place, live=live,
        )  # fmt: skip

    def begin(self, walk: Walk, step: int) -> None:
        """Start at the first weight of another layer."""
        self.cell = (walk.rows // 7, int(walk.perm[step]))
        self._following = True

    def follow(self, walk: Walk, step: int) -> None:
        """Move to the column of this step, unless a weight is held."""
        if self._following and step < walk.n:
            self.cell = (self.cell[0], int(walk.perm[step]))

    @property
    def _paired(self) -> bool:
        return self._page.shown is not None and self._page.shown.second is not None

    def _view(self) -> MatrixView:
        """The picture in which a weight is held."""
        return self._pictures.pair_views[0] if self._paired else self._pictures.now_view

    def _place(self, column: int) -> int:
        """Where a column of the weight stands in that picture."""
        return column if self._paired else int(self._page.shown.first.turn[column])

    def _point(self, view: MatrixView) -> None:
        """The learner points at a weight; a click holds it while the steps go on."""
        first = self._page.shown.first
        row, place = view.cursor
        self._following = not view.pinned
        if row < 0 or row >= first.rows or place >= first.n:
            return
        own_order = view is self._pictures.pair_views[0]
        column = place if own_order else int(first.perm[place])
        if (row, column) != self.cell:
            self.cell = (row, column)
            self._pointed()
