"""Lesson 2, second part: blocks of real weights with a shared scale, MX and NVFP4."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qviz.core.grids import Codebook
from qviz.methods.microscaling import CONVENTIONS
from qviz.study.shared_scale import Cost, SharedScale, Traced, cost_of, shared_scale, traced
from qviz.ui.figures.formats import block_figure
from qviz.ui.views.fields import CellField
from qviz.ui.views.formats_block_words import (
    BLOCK_TITLES,
    EQUATION,
    SCALE_RULES,
    SPOKEN,
    SYSTEMS,
    TERMS,
    cost_table,
    member_rows,
    members_table,
    scale_rows,
    sentence,
)
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
    Choice,
    Equation,
    MatrixFrame,
    MatrixView,
    Readout,
    Table,
    details,
    section,
    stack,
)

FORMATS = list(BLOCK_TITLES)
COMPARE_UP_TO = 4 << 20  # weights; above this the other formats would take many seconds


@dataclass(frozen=True, eq=False)
class Shown:
    """What the part shows: a layer in blocks.

    cost   what the chosen format does to it
    plain  format → what it does by its default rules; empty for a layer so large that it would take
           many seconds
    """

    opened: Opened
    options: Mapping[str, Any]
    run: Traced
    cost: Cost
    plain: Mapping[str, Cost]

    @property
    def costs(self) -> dict[str, Cost]:
        """Those of all formats, the chosen one's as it was chosen."""
        chosen = str(self.options["format"])
        every = {**self.plain, chosen: self.cost}
        return {name: every[name] for name in FORMATS if name in every}


def caption_card(caption: Caption) -> Any:
    """A caption as a card of its own, so that it can stand beside what it is about."""
    box = stack(caption)
    box.add_class("qv-card")
    box.add_class("qv-caption-row")
    return box


def tight(table: Table) -> Any:
    """A wide table with less room between its columns."""
    box = stack(table)
    box.add_class("qv-tight")
    return box


class BlockPart(LessonPart):
    """Controls and pictures of the second part. It computes when it is opened."""

    keys = ("block", "system", "power", "weight")  # its fields
    has_lead = False
    shown: Shown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self._cell = (0, 0)
        self._drawn: tuple[int, int, int] | None = None  # of which block the pictures are
        self.format_control = Choice("Block format", list(BLOCK_TITLES.values()))
        self.system_control = Choice("Computed as in", list(SYSTEMS.values()))
        self.power_control = Choice("The scale's power of two", list(SCALE_RULES.values()))
        self._build_views()
        self._wire()
        self.controls = [
            page.layer_control,
            self.format_control,
            details("More", self.system_control, self.power_control),
        ]
        self.main = [
            section("The layer", self.original_view),
            caption_card(self.caption),
            section("The block of the chosen weight", self.chart,
                    details("Every weight of the block", self.members)),
            section("", self.costs),
        ]  # fmt: skip
        self.side = [
            section("", self.scale_table),
            section("What happens to a weight", self.equation, self.member_table),
        ]

    def _build_views(self) -> None:
        self.original_view = MatrixView("Trained weights W", aspect=4)
        self.chart = Chart("The block: trained weights, and rounded weights", height=210)
        self.members = Table("Every weight of the block")
        self.costs = Table("The same layer in every block format")
        self.scale_table = Readout("How the block gets its scale")
        self.member_table = Readout("The chosen weight")
        self.equation = Equation(EQUATION, TERMS, ["P", "s"], aria=SPOKEN)
        self.caption = Caption()

    def _wire(self) -> None:
        page = self.page

        def add(key: str, control: Any, names: Callable[[], list[str]]) -> None:
            self.add(key, control, busy=COMPUTING, names=names)

        add("block", self.format_control, lambda: FORMATS)
        add("system", self.system_control, self._systems)
        add("power", self.power_control, self._powers)
        page.fields["weight"] = CellField(
            "weight", lambda: self.original_view, lambda: self._cell, live=self.is_open
        )
        for trait in ("cursor", "pinned"):
            page.on_change(self.original_view, trait, self.look)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def format(self) -> str:
        return FORMATS[int(self.format_control.index)]

    @property
    def system(self) -> str:
        return self._systems()[int(self.system_control.index)]

    def _systems(self) -> list[str]:
        """Those that have the format."""
        return [name for name, c in CONVENTIONS.items() if self.format in c.formats]

    def _powers(self) -> list[str]:
        """The rules by which the system finds a scale."""
        if self.format == "nvfp4":
            return ["nearest"]
        systems = self._systems()
        at = min(int(self.system_control.index), len(systems) - 1)
        return list(CONVENTIONS[systems[at]].scale_roundings)

    @property
    def options(self) -> dict[str, Any]:
        """The options of `microscaling`, as the controls say."""
        options = {"format": self.format, "convention": self.system}
        if self.format != "nvfp4":
            options["scale_rounding"] = self._powers()[int(self.power_control.index)]
        return options

    def fit(self) -> None:
        for control, titles, names in (
            (self.system_control, SYSTEMS, self._systems),
            (self.power_control, SCALE_RULES, self._powers),
        ):
            offered = [titles[name] for name in names()]
            if offered != list(control.options):
                kept = offered.index(control.value) if control.value in offered else 0
                control.set_options(offered, kept)

    # ---------------------------------------------------------------- computing

    def compute(self) -> Shown:
        opened, last, options = self.page.opened, self.shown, self.options
        same = last is not None and last.opened is opened
        weight = last.run.weight if last is not None and same else opened.weight.float()
        run = traced(weight, **options)
        if last is not None and same:
            plain = last.plain
        elif weight.numel() <= COMPARE_UP_TO:
            plain = {name: cost_of(weight, traced(weight, format=name).q) for name in FORMATS}
        else:
            plain = {}
        return Shown(opened, options, run, cost_of(weight, run.q), plain)

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: Shown) -> None:
        last = self.shown
        if last is None or last.opened is not shown.opened:
            rows, columns = shown.run.weight.shape
            self._cell = (rows // 7, columns // 7)
            with self.page.quietly():
                self.original_view.set_frames(
                    [MatrixFrame(shown.run.weight)], role="original", axes=("out", "in")
                )
                self.original_view.cursor = list(self._cell)
                self.original_view.pinned = False
        self.costs.set_rows(["bits per weight", "off by", "clipped"], [cost_table(shown.costs)])
        self.costs.row = list(shown.costs).index(str(shown.options["format"]))
        layer = call("qviz.load_layer", shown.opened.source, shown.opened.layer)
        made = call("qviz.quantize", Name("weight"), "microscaling", **shown.options)
        self.page.code.set_texts(f"import qviz\n\nweight = {layer}.float()\nq = {made}\n"
                                  f"error = weight - q.dequantize()\nprint(q.ledger)")  # fmt: skip
        self._drawn = None
        self._draw_cell(shown)

    def look(self) -> None:
        """Follow the cursor to another weight."""
        row, column = self.original_view.cursor
        if self.shown is not None and row >= 0 and (row, column) != self._cell:
            self._cell = (row, column)
            self._draw_cell(self.shown)

    def _draw_cell(self, shown: Shown) -> None:
        block = shared_scale(shown.run, *self._cell)
        chosen = self._cell[1] - block.start
        self.member_table.set_rows(member_rows(block, block.members[chosen]))
        self._draw_chart(shown, block, chosen)
        if self._drawn == (id(shown), block.row, block.start):
            return
        self._drawn = (id(shown), block.row, block.start)
        rule = str(shown.run.q.info["scale_rounding"])
        self.scale_table.set_rows(scale_rows(block, rule))
        self.members.set_rows(["v", "v / s", "code q", "v̂", "v − v̂"], [members_table(block)])
        self.caption.set_texts(sentence(block, shown.cost))

    def _draw_chart(self, shown: Shown, block: SharedScale, chosen: int) -> None:
        grid = shown.run.q.grid
        assert isinstance(grid, Codebook)
        levels = sorted({float(v) * block.scale for v in grid.values[grid.all_codes()]})
        members = block.members
        m = members[chosen]
        self.chart.set_figures(
            block_figure(
                [one.column for one in members],
                [one.weight for one in members],
                [one.value for one in members],
                [one.clipped for one in members],
                levels,
                chosen,
            ),
            summary=f"{len(members)} weights of row {block.row} from input {block.start} on, and "
            f"its rounded values; weight {block.row}, {m.column}: {m.weight:.4f} is rounded to "
            f"{m.value:.4f}",
        )
