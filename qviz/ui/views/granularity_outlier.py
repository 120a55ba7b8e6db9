"""One outlier: a value of a real matrix grows, and three ways to share a scale show who pays.

Everything that the outlier's size changes is computed for all sizes and sent ahead, so dragging
needs no kernel. Which value is the outlier is what is held in the first picture.
"""

from collections.abc import Mapping
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
from qviz.ui.figures.granularity import growing_error, row_picture
from qviz.ui.views.fields import CellField
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.granularity_shown import Shown, cell_of, error_reach, outlines, reach_of
from qviz.ui.views.granularity_words import (
    BLOCK_EQUATION,
    BLOCK_SPOKEN,
    BLOCK_TERMS,
    BLOCKS,
    EQUATION,
    INPUTS,
    LOUD,
    MULTIPLES,
    NAMES,
    NEVER,
    QUESTION,
    QUIET,
    SIZES,
    SPOKEN,
    TERMS,
    WEIGHTS,
    Guess,
    cell_rows,
    cell_title,
    claim_texts,
    outlier_sentence,
    pays_rows,
    verdict,
)
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.scale_sharing import MATRIX, ROW, sharing
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Button,
    Caption,
    Chart,
    Choice,
    Equation,
    MatrixView,
    Slider,
    Table,
    Text,
    details,
    figures_row,
    link,
    link_matrices,
    number,
    percent,
    section,
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


class OutlierPart:
    """Controls, pictures and words of the part. `shown` is what they are about."""

    keys = ("matrix", "group", "bits", "at", "size", "outlier", "weight")

    def __init__(self, page: Any) -> None:
        self._page = page
        self.shown: Shown | None = None
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
        self.more = [self.at_control, self.capture_button]
        self.main = self._main()

    def is_open(self) -> bool:
        return bool(self._page.current is self)

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        add, live = self._page.add, self.is_open
        self.matrix_control = add(
            "matrix", Choice("What is rounded", [WEIGHTS, BLOCKS, INPUTS]), self._other_matrix,
            busy=COMPUTING, live=live,
        )  # fmt: skip
        self.group_control = add(
            "group", Slider("Group size", [str(g) for g in GROUPS], GROUPS.index(int(FIRST_GROUP))),
            self._update, busy=COMPUTING, lights=["g"], live=live,
        )  # fmt: skip
        self.bits_control = add(
            "bits", Slider("Bits per code", [str(b) for b in BITS], BITS.index(FIRST_BITS),
                           ticks=True),
            self._update, busy=COMPUTING, lights=["d"], live=live,
        )  # fmt: skip
        self.at_control = add(
            "at", Choice("Look at", [QUIET, LOUD], kind="segmented"), self._other_matrix,
            busy=COMPUTING, live=live,
        )  # fmt: skip
        self.size_control = add(
            "size", Slider("Size of the outlier", SIZES), self._drag, lights=["max", "s"],
            looks=True, live=live,
        )  # fmt: skip
        self.capture_button = Button("Run it on text, to see its inputs")
        self._page.on_press(self.capture_button, self._capture, "Running the model on text …")
        self.prediction = Prediction(
            QUESTION, [*SIZES[1:], NEVER], self._verdict, lambda: self._draw_curves(self._now)
        )
        self._page.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_views(self) -> None:
        self.first_view = MatrixView("The values", aspect=5.6)
        self.rounded_views = [MatrixView("Rounded", aspect=1.9) for _ in range(3)]
        self.error_views = [MatrixView("Error", aspect=1.9) for _ in range(3)]
        self.hint = Text("", role="wait")
        self.pays_table = Table("Who pays")
        self.curves = Chart("Error of those who share, against the outlier's size", height=300)
        self.row_chart = Chart("The outlier's row, three times", height=300)
        self.claim_parts = [(Text("", "h3"), Text("")) for _ in range(4)]
        self.affine_equation = Equation(EQUATION, TERMS, ["s", "g"], aria=SPOKEN)
        self.block_equation = Equation(BLOCK_EQUATION, BLOCK_TERMS, ["s", "g"], aria=BLOCK_SPOKEN)
        self.affine_box, self.block_box = stack(self.affine_equation), stack(self.block_equation)
        self.cell_table = Table("The value pointed at")
        self.caption = Caption()
        tie_frames(
            self.size_control, self.first_view, *self.rounded_views, *self.error_views,
            self.pays_table, self.curves, self.row_chart, self.cell_table, self.caption,
            self._page.code,
        )  # fmt: skip
        others = [*self.error_views, *self.rounded_views]
        link_matrices(*others)
        link(self.first_view, "view", *((view, "view") for view in others))

    def _build_fields(self) -> None:
        live, fields = self.is_open, self._page.fields
        fields["outlier"] = CellField("outlier", lambda: self.first_view, self._held, live=live)
        fields["weight"] = CellField(
            "weight", lambda: self.error_views[0], lambda: self._cell, live=live
        )
        for trait in ("cursor", "pinned"):
            self._page.on_change(self.first_view, trait, self._at_first)
            self._page.on_change(self.error_views[0], trait, self._at_others)

    def _main(self) -> list[Any]:
        columns = [
            stack(rounded, error)
            for rounded, error in zip(self.rounded_views, self.error_views, strict=True)
        ]
        claims = [part for pair in self.claim_parts for part in pair]
        said = stack(self.caption)
        said.add_class("qv-caption-row")
        return [
            section("One value grows", self.first_view, self.hint, figures_row(*columns), said),
            section(
                "Who pays, and how a value gets its code",
                figures_row(
                    self.pays_table,
                    stack(self.affine_box, self.block_box, self.cell_table),
                    wide=True,
                ),
            ),
            section(
                "The articles' picture, on a real row",
                figures_row(
                    stack(Text(self.row_chart.label, "h3"), self.row_chart),
                    stack(Text(self.curves.label, "h3"), self.curves),
                    wide=True,
                ),
                details("What articles say of it, and what is so here", *claims, open=True),
            ),
        ]

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
        return Rounding("affine", {"bits": int(self.bits_control.value), **self._page.scheme})

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
        kinds = [WEIGHTS, BLOCKS, *([INPUTS] if self._page.has_inputs else [])]
        if kinds != list(self.matrix_control.options):
            kept = kinds.index(self.kind) if self.kind in kinds else 0
            self.matrix_control.set_options(kinds, kept)
        columns = self._page.opened.weight.shape[1]
        fitting = [g for g in GROUPS if g < columns and columns % g == 0] or [columns]
        sizes = {BLOCKS: list(BLOCK_SIZES), WEIGHTS: fitting}.get(self.kind)
        self.group_control.disabled = sizes is None
        if sizes is not None and [str(n) for n in sizes] != list(self.group_control.options):
            chosen = int(self.group_control.value)
            near = next((i for i, n in enumerate(sizes) if n <= chosen), len(sizes) - 1)
            self.group_control.set_options([str(n) for n in sizes], near)
        self.bits_control.disabled = self.kind == BLOCKS
        self.capture_button.disabled = self._page.has_inputs

    def _held(self) -> tuple[int, int]:
        row, column = self.first_view.cursor
        return row, column

    # ---------------------------------------------------------------- computing

    def _update(self) -> None:
        self._page.update(self)

    def _other_matrix(self) -> None:
        """Another matrix or another part of it: what was held is not in it any more."""
        with self._page.quietly():
            self._let_go()
        self._update()

    def _let_go(self) -> None:
        for view in (self.first_view, self.error_views[0]):
            view.pinned = False
            view.cursor = [-1, -1]

    def _capture(self) -> None:
        """Run the learner's model, which may take a while and much memory: only when asked."""
        self._page.capture()
        self._update()

    def compute(self) -> Shown:
        opened, kind, at = self._page.opened, self.kind, str(self.at_control.value)
        last = self.shown
        if last is not None and last.opened is opened and last.kind == kind:
            matrix, unit = last.matrix, last.typical
        else:
            matrix = self._page.inputs() if kind == INPUTS else opened.weight.float()
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
        """The outlier before anybody chose one: the largest, or one in the middle."""
        if at == LOUD:
            return largest(matrix)
        return window.row + window.rows // 2, window.column + window.columns * 9 // 16

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: Shown) -> None:
        last = self.shown
        new = last is None or last.matrix is not shown.matrix or last.window != shown.window
        with self._page.quietly():
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

    def _draw_first(self, shown: Shown, own: list[int], options: Mapping[str, Any]) -> None:
        names, window = NAMES[shown.kind], shown.window
        self.first_view.label = (
            f"{names.many.capitalize()} of {names.axes[0]}s {window.row} to "
            f"{window.row + window.rows - 1}, {names.axes[1]}s {window.column} to "
            f"{window.column + window.columns - 1}"
        )
        self.first_view.origin = [window.row, window.column]
        self.first_view.set_frames(shown.windows(), limits=shown.reach, role="original", **options)
        self.first_view.outlines = [own]
        self.hint.text = (
            f"Click any {names.one} in this picture to make it the outlier. In the others, point "
            f"for its arithmetic; a click holds it. Outlined: the outlier, and those who share "
            f"its scale."
        ) + (
            " A scale for each channel is here for comparison: it differs from term to term of the "
            "sum that makes an output, so no integer kernel can take it out of that sum."
            if shown.kind == INPUTS
            else ""
        )

    def _draw_row(self, shown: Shown) -> None:
        row, column = shown.cell[0] - shown.window.row, shown.cell[1]
        columns = range(shown.window.column, shown.window.column + shown.window.columns)
        stretches = {}
        for label, one in shown.shared.items():
            there = one.inside[row].nonzero().flatten() + shown.window.column
            stretches[label] = int(there[0]), int(there[-1])
        axis = NAMES[shown.kind].axes[0]
        self.row_chart.set_figures(
            row_picture(
                list(columns),
                [x[row].numpy() for x in shown.windows()],
                {n: [f.back[row].numpy() for f in s.fates] for n, s in shown.shared.items()},
                stretches,
                1.3 * shown.reach,
                NAMES[shown.kind].axes[1],
            ),
            summary=[
                f"{axis} {shown.cell[0]} and what comes back of it, for scales per "
                f"{', '.join(shown.shared)}. The outlier in column {column} is {number(value, 3)}"
                + (", beyond the axis" if abs(value) > 1.3 * shown.reach else "")
                for value in shown.values
            ],
        )

    def _draw_curves(self, shown: Shown) -> None:
        curves = {label: [f.error for f in one.fates] for label, one in shown.shared.items()}
        drawn = self.prediction.revealed or shown.kind != WEIGHTS
        self.curves.set_figures(
            growing_error(SIZES, curves, drawn=drawn),
            summary=[
                f"Outlier {size}: those who share its scale are off by "
                + ", ".join(f"{percent(v[i])} ({label})" for label, v in curves.items())
                for i, size in enumerate(SIZES)
            ],
        )

    def _draw_cell(self, shown: Shown) -> None:
        row, column = self._cell
        place = shown.window.row + row, shown.window.column + column
        frames = []
        for i in range(len(SIZES)):
            cells = [cell_of(shown, label, i, (row, column), place) for label in shown.shared]
            frames.append(cell_rows(cells, place == shown.cell))
        self.cell_table.label = cell_title(shown.kind, *place)
        self.cell_table.set_rows(list(shown.shared), frames)

    def _draw_code(self, shown: Shown) -> None:
        layer = call("qviz.load_layer", shown.opened.source, shown.opened.layer)
        imports, head = "import qviz, torch", f"x = {layer}.float()"
        if shown.kind == INPUTS:  # along columns: what the registry does not offer by name
            loaded = call("qviz.load_calibration", shown.opened.source, shown.opened.layer)
            imports += "\nfrom qviz.methods.affine import affine"
            head = f"x = {loaded}.inputs.clone()"
        made = [self._call(shown, one.unit) for one in shown.shared.values()]
        row, column = shown.cell
        body = "\n".join(f"q.append({text})" for text in made)
        self._page.code.set_texts(
            [
                f"{imports}\n\n{head}\nx[{row}, {column}] = {value!r}\nq = []\n{body}\n"
                f"for one in q:\n    print(one, (x - one.dequantize())[{row}])"
                for value in shown.values
            ]
        )

    def _call(self, shown: Shown, unit: Granularity) -> str:
        x = Name("x")
        if shown.kind == BLOCKS:
            return call("qviz.quantize", x, "nf4", group_size=unit.group_size)
        size = {"group_size": unit.group_size}
        if unit.axis == 0:
            along = Name(f"qviz.Granularity({unit.kind!r}, axis=0)")
            return call("affine", x, granularity=along, **size, **shown.options)
        return call("qviz.quantize", x, "affine", granularity=unit.kind, **size, **shown.options)

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
            self._page.status.busy(COMPUTING)
            self._update()
        elif not held and row >= 0 and not self.error_views[0].pinned:
            self.error_views[0].cursor = [row, column]

    def _at_others(self) -> None:
        row, column = self.error_views[0].cursor
        if row >= 0 and (row, column) != self._cell:
            self._cell = (row, column)
            self._draw_cell(self._now)
            self._light(["s", "g", "x", "q", "xhat"])

    def _light(self, terms: list[str]) -> None:
        for equation in (self.affine_equation, self.block_equation):
            equation.active = terms

    def _verdict(self, guess: int) -> str:
        shown = self._now
        label, one = list(shown.shared.items())[-1]
        errors = tuple(f.error for f in one.fates)
        return verdict(guess, Guess(label, errors, one.peak / (shown.typical or 1.0)))
