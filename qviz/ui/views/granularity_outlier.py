"""One outlier: a value of a real matrix grows, and three ways to share a scale show who pays.

Everything that the outlier's size changes is computed for all sizes and sent ahead, so dragging
needs no kernel. Which value is the outlier is what is held in the first picture.
"""

from typing import Any

import torch

from qviz.core.granularity import Granularity
from qviz.study.granularity import (
    OutlierClaims,
    Rounding,
    Window,
    grow,
    largest,
    outlier_claims,
    quietest,
    typical,
    window_at,
)
from qviz.ui.views.fields import CellField
from qviz.ui.views.granularity_claims import claim_texts
from qviz.ui.views.granularity_shown import Shown, error_reach, outlines, reach_of
from qviz.ui.views.granularity_views import OutlierViews
from qviz.ui.views.granularity_words import (
    BLOCKS,
    INPUTS,
    LOUD,
    MULTIPLES,
    NAMES,
    NEVER,
    QUESTION,
    QUIET,
    SIZES,
    WEIGHTS,
    Guess,
    outlier_sentence,
    pays_rows,
    verdict,
)
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.scale_sharing import MATRIX, ROW, sharing
from qviz.ui.widgets import (
    Button,
    Choice,
    Slider,
    show_only,
    stack,
)

WINDOW = (24, 128)  # rows and columns that are looked at
BITS = (2, 3, 4, 5, 6, 7, 8)
GROUPS = (256, 128, 64, 32, 16)
BLOCK_SIZES = (256, 128, 64, 32)
LONG_BLOCKS = (4096, 512)  # the longest that bitsandbytes has, and one between
FIRST_GROUP, FIRST_BITS = "32", 4
FAR = SIZES.index("32×")  # where the articles' picture is judged


class OutlierPart(OutlierViews, LessonPart):
    """Controls, pictures and words of the part. `shown` is what they are about."""

    keys = ("matrix", "group", "bits", "at", "size", "outlier", "weight")

    shown: Shown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self._cell = (0, 0)  # in the window, of the value that is pointed at
        self._claims: tuple[Opened, OutlierClaims] | None = None
        self._build_controls()
        self._build_views()
        self._build_fields()
        self.controls = [
            self.matrix_control,
            self.group_control,
            self.bits_control,
            self.prediction.box,
        ]
        self.also = [stack(self.at_control, self.capture_button)]
        self.lead = self.size_control
        self.main = self._main()

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        add = self.add
        self.matrix_control = add(
            "matrix", Choice("What is rounded", [WEIGHTS, BLOCKS, INPUTS]), self._other_matrix,
            busy=COMPUTING,
        )  # fmt: skip
        self.group_control = add(
            "group", Slider("Group size", [str(g) for g in GROUPS], GROUPS.index(int(FIRST_GROUP))),
            busy=COMPUTING, lights=["g"],
        )  # fmt: skip
        self.bits_control = add(
            "bits", Slider("Bits per code", [str(b) for b in BITS], BITS.index(FIRST_BITS),
                           ticks=True),
            busy=COMPUTING, lights=["d"],
        )  # fmt: skip
        self.at_control = add(
            "at", Choice("Look at", [QUIET, LOUD], kind="segmented"), self._other_matrix,
            busy=COMPUTING,
        )  # fmt: skip
        self.size_control = add(
            "size", Slider("Size of the outlier", SIZES), self._drag, lights=["max", "s"],
            looks=True,
        )  # fmt: skip
        self.capture_button = Button("Run it on text to see its inputs")
        self.page.on_press(self.capture_button, self._capture, "Running the model on text …")
        self.prediction = Prediction(
            QUESTION, [*SIZES[1:], NEVER], self._verdict, lambda: self._draw_curves(self._now)
        )
        self.page.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_fields(self) -> None:
        live, fields = self.is_open, self.page.fields
        fields["outlier"] = CellField("outlier", lambda: self.first_view, self._held, live=live)
        fields["weight"] = CellField(
            "weight", lambda: self.error_views[0], lambda: self._cell, live=live
        )
        for trait in ("cursor", "pinned"):
            self.page.on_change(self.first_view, trait, self._at_first)
            self.page.on_change(self.error_views[0], trait, self._at_others)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def _now(self) -> Shown:
        assert self.shown is not None
        return self.shown

    @property
    def kind(self) -> str:
        return str(self.matrix_control.value)

    @property
    def rounding(self) -> Rounding:
        if self.kind == BLOCKS:
            return Rounding("nf4", {})
        return Rounding("affine", {"bits": int(self.bits_control.value), **self.page.scheme})

    def units(self) -> dict[str, Granularity]:
        """Label → the three granularities that are compared, the coarsest first."""
        if self.kind == INPUTS:
            return {
                MATRIX: Granularity("tensor"),
                "token": Granularity("token"),
                "channel": Granularity("channel", axis=0),
            }
        size = int(self.group_control.value)
        if self.kind == BLOCKS:
            return {f"block of {n}": Granularity("flat", n) for n in (*LONG_BLOCKS, size)}
        return {
            MATRIX: sharing(MATRIX),
            ROW: sharing(ROW),
            f"group of {size}": Granularity("group", size),
        }

    def fit(self) -> None:
        kinds = [WEIGHTS, BLOCKS, *([INPUTS] if self.page.has_inputs else [])]
        if kinds != list(self.matrix_control.options):
            kept = kinds.index(self.kind) if self.kind in kinds else 0
            self.matrix_control.set_options(kinds, kept)
        columns = self.page.opened.weight.shape[1]
        fitting = [g for g in GROUPS if g < columns and columns % g == 0] or [columns]
        sizes = {BLOCKS: list(BLOCK_SIZES), WEIGHTS: fitting}.get(self.kind)
        self.group_control.disabled = sizes is None
        if sizes is not None and [str(n) for n in sizes] != list(self.group_control.options):
            chosen = int(self.group_control.value)
            near = next((i for i, n in enumerate(sizes) if n <= chosen), len(sizes) - 1)
            self.group_control.set_options([str(n) for n in sizes], near)
        self.bits_control.disabled = self.kind == BLOCKS
        self.capture_button.disabled = self.page.has_inputs

    def _held(self) -> tuple[int, int]:
        row, column = self.first_view.cursor
        return row, column

    # ---------------------------------------------------------------- computing

    def _other_matrix(self) -> None:
        """Another matrix or another part of it: the held value is no longer in it."""
        with self.page.quietly():
            self._let_go()
        self.update()

    def _let_go(self) -> None:
        for view in (self.first_view, self.error_views[0]):
            view.pinned = False
            view.cursor = [-1, -1]

    def _capture(self) -> None:
        """Run the learner's model, only when asked: it may take a while and much memory."""
        self.page.capture()
        self.update()

    def compute(self) -> Shown:
        opened, kind, at = self.page.opened, self.kind, str(self.at_control.value)
        last = self.shown
        if last is not None and last.opened is opened and last.kind == kind:
            matrix, unit = last.matrix, last.typical
        else:
            matrix = self.page.inputs() if kind == INPUTS else opened.weight.float()
            unit = typical(matrix)
        if self._claims is None or self._claims[0] is not opened:
            weight = matrix if kind != INPUTS else opened.weight.float()
            self._claims = opened, outlier_claims(weight)
        same = last is not None and last.matrix is matrix and last.at == at
        window, cell = (last.window, last.cell) if same and last else self._first_look(matrix, at)
        if same and self.first_view.pinned:
            cell = (window.row + self._held()[0], window.column + self._held()[1])
        elif same:
            cell = self._first_cell(matrix, at, window)
        trained = float(matrix[cell])
        sign = -1.0 if trained < 0 else 1.0
        wanted = [trained, *(sign * k * unit for k in MULTIPLES)]
        values = tuple(
            torch.tensor(wanted, dtype=matrix.dtype).tolist()
        )  # as the matrix holds them
        rounding = self.rounding
        shared = {
            label: grow(matrix, cell, values, unit_, rounding, window)
            for label, unit_ in self.units().items()
        }
        return Shown(
            opened, kind, matrix, rounding.options, at, unit, window, cell, values, shared,
            self._claims[1], reach_of(matrix, window),
        )  # fmt: skip

    def _first_look(self, matrix: torch.Tensor, at: str) -> tuple[Window, tuple[int, int]]:
        shape = (matrix.shape[0], matrix.shape[1])
        window = quietest(matrix, WINDOW) if at == QUIET else window_at(
            shape, *largest(matrix), WINDOW)  # fmt: skip
        return window, self._first_cell(matrix, at, window)

    def _first_cell(self, matrix: torch.Tensor, at: str, window: Window) -> tuple[int, int]:
        """The outlier before anyone chose one: the largest, or one in the middle."""
        if at == LOUD:
            return largest(matrix)
        return window.row + window.rows // 2, window.column + window.columns * 9 // 16

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: Shown) -> None:
        last = self.shown
        new = last is None or last.matrix is not shown.matrix or last.window != shown.window
        with self.page.quietly():
            if new:
                self._let_go()
                self.prediction.reset(possible=shown.kind == WEIGHTS)
            self._cell = (shown.cell[0] - shown.window.row, shown.cell[1] - shown.window.column)
            if not self.error_views[0].pinned:
                self.error_views[0].cursor = list(self._cell)
            else:
                row, column = self.error_views[0].cursor
                self._cell = (row, column)
        names = NAMES[shown.kind]
        options: dict[str, Any] = {"labels": list(SIZES), "axes": names.axes, "cells": names.many}
        row, column = (shown.cell[0] - shown.window.row, shown.cell[1] - shown.window.column)
        own = [row, row + 1, column, column + 1]
        self._draw_first(shown, own, options)
        coarsest = next(iter(shown.shared.values())).fates[0].back
        limit = error_reach(shown.window.of(shown.matrix) - coarsest, shown.reach)
        for i, (label, one) in enumerate(shown.shared.items()):
            rounded, error = self.rounded_views[i], self.error_views[i]
            rounded.label, error.label = f"Rounded, per {label}", f"Error, per {label}"
            rounded.set_frames([f.back for f in one.fates], limits=shown.reach, role="codes",
                               **options)  # fmt: skip
            error.set_frames(
                [x - f.back for x, f in zip(shown.windows(), one.fates, strict=True)],
                limits=limit, reduce="max_abs", role="error", **options,
            )  # fmt: skip
            for view in (rounded, error):
                view.origin = [shown.window.row, shown.window.column]
                view.outlines = [*outlines(one, shown.window), own]
        moments = shown.moments
        self.pays_table.set_rows(list(shown.shared), [pays_rows(m) for m in moments])
        self.caption.set_texts([outlier_sentence(m) for m in moments])
        far = moments[FAR] if shown.kind == WEIGHTS else None
        said = claim_texts(shown.claims, far)
        for i, (head, text) in enumerate(self.claim_parts):
            head.text, text.text = said[i] if i < len(said) else ("", "")
        show_only(self.affine_box, shown.kind != BLOCKS)
        show_only(self.block_box, shown.kind == BLOCKS)
        self._draw_row(shown)
        self._draw_curves(shown)
        self._draw_cell(shown)
        self._draw_code(shown)
        self.prediction.answer()

    # ---------------------------------------------------------------- where one looks

    def _drag(self) -> None:
        if self.kind == WEIGHTS:
            self.prediction.moved()

    def look(self) -> None:
        self._at_others()

    def _at_first(self) -> None:
        """In the first picture pointing shows a value and a click makes it the outlier."""
        row, column = self._held()
        shown = self._now
        place = (shown.window.row + row, shown.window.column + column)
        held = self.first_view.pinned
        wanted = place if held else self._first_cell(shown.matrix, shown.at, shown.window)
        if wanted != shown.cell and (row >= 0 or not held):
            self.page.status.busy(COMPUTING)
            self.update()
        elif not held and row >= 0 and not self.error_views[0].pinned:
            self.error_views[0].cursor = [row, column]

    def _at_others(self) -> None:
        row, column = self.error_views[0].cursor
        if row >= 0 and (row, column) != self._cell:
            self._cell = (row, column)
            self._draw_cell(self._now)
            self._light(["s", "g", "x", "q", "xhat"])

    def _verdict(self, guess: int) -> str:
        shown = self._now
        label, one = list(shown.shared.items())[-1]
        errors = tuple(f.error for f in one.fates)
        return verdict(guess, Guess(label, errors, one.peak / (shown.typical or 1.0)))
