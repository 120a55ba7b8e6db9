"""What the outlier part of the granularity lesson shows, and how a computed value is drawn."""

from collections.abc import Mapping
from typing import Any

from qviz.core.granularity import Granularity
from qviz.ui.figures.granularity import growing_error, row_picture
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.granularity_shown import Shown, cell_of
from qviz.ui.views.granularity_words import (
    BLOCK_EQUATION,
    BLOCK_SPOKEN,
    BLOCK_TERMS,
    BLOCKS,
    EQUATION,
    INPUTS,
    NAMES,
    SIZES,
    SPOKEN,
    TERMS,
    WEIGHTS,
    cell_rows,
    cell_title,
)
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
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
    stack,
)


class OutlierViews:
    """Pictures, charts and tables of the part. Whoever derives from it brings the page, the slider
    that they all follow, the prediction, and the value that is pointed at."""

    page: Any
    _cell: tuple[int, int]  # in the window
    size_control: Slider
    prediction: Prediction

    def _build_views(self) -> None:
        self.first_view = MatrixView("The values", aspect=5.6)
        self.rounded_views = [MatrixView("Rounded", aspect=1.9) for _ in range(3)]
        self.error_views = [MatrixView("Error", aspect=1.9) for _ in range(3)]
        self.hint = Text("", role="wait")
        self.pays_table = Table("Who pays")
        self.curves = Chart(
            "Error of the values that share its scale, against the outlier's size", height=300
        )
        self.row_chart = Chart("The outlier's row, rounded in three ways", height=300)
        self.claim_parts = [(Text("", "h3"), Text("")) for _ in range(4)]
        self.affine_equation = Equation(EQUATION, TERMS, ["s", "g"], aria=SPOKEN)
        self.block_equation = Equation(BLOCK_EQUATION, BLOCK_TERMS, ["s", "g"], aria=BLOCK_SPOKEN)
        self.affine_box, self.block_box = stack(self.affine_equation), stack(self.block_equation)
        self.cell_table = Table("The value pointed at")
        self.caption = Caption()
        tie_frames(
            self.size_control, self.first_view, *self.rounded_views, *self.error_views,
            self.pays_table, self.curves, self.row_chart, self.cell_table, self.caption,
            self.page.code,
        )  # fmt: skip
        others = [*self.error_views, *self.rounded_views]
        link_matrices(*others)
        link(self.first_view, "view", *((view, "view") for view in others))

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
                "The picture that articles draw, on a real row",
                figures_row(
                    stack(Text(self.row_chart.label, "h3"), self.row_chart),
                    stack(Text(self.curves.label, "h3"), self.curves),
                    wide=True,
                ),
                details("What articles claim, and what holds here", *claims, open=True),
            ),
        ]

    # ---------------------------------------------------------------- drawing

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
            f"Click any {names.one} in this picture to make it the outlier. In the other "
            "pictures, point at a cell to see its arithmetic; a click holds it. The outlines "
            "mark the outlier and the cells that share its scale."
        ) + (
            " One scale for each channel is shown for comparison only. It differs from term to "
            "term of the sum that makes an output, so no integer kernel can factor it out of "
            "that sum."
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
                f"{axis} {shown.cell[0]} and its rounded values, for scales per "
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
                f"Outlier {size}: the values that share its scale are off by "
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
        self.page.code.set_texts(
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

    def _light(self, terms: list[str]) -> None:
        for equation in (self.affine_equation, self.block_equation):
            equation.active = terms
