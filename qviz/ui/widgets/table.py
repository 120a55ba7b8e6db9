"""Table: numbers in rows and columns, all of them written out, a set for each frame."""

from __future__ import annotations

from collections.abc import Sequence

import traitlets

from .base import BrowserWidget, module

Row = tuple[str, Sequence[str], Sequence[int]] | tuple[str, Sequence[str], Sequence[int], str]


class Table(BrowserWidget):
    """A small table under a heading. Each row is (label, cells, which cells light up[, role]).

    `row` is the current one, −1 for none; it can be linked to what chooses it.
    """

    _esm = module("table")

    label = traitlets.Unicode().tag(sync=True)
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    frames = traitlets.List().tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    row = traitlets.Int(-1).tag(sync=True)

    def __init__(self, label: str) -> None:
        super().__init__(label=label)

    def set_rows(self, columns: Sequence[str], frames: Sequence[Sequence[Row]]) -> None:
        """Replace everything. ValueError for a row that has not a cell for each column."""
        made: list[list[dict[str, object]]] = []
        for rows in frames:
            made.append([])
            for row in rows:
                label, cells, lit, role = row if len(row) == 4 else (*row, "")
                if len(cells) != len(columns):
                    raise ValueError(
                        f"row {label!r} has {len(cells)} cells for {len(columns)} columns"
                    )
                made[-1].append(
                    {"label": label, "cells": list(cells), "lit": list(lit), "role": role}
                )
        with self.hold_sync():
            self.columns, self.frames = list(columns), made
