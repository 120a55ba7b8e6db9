"""Lesson 3: which range the levels of a group should span, and who decides.

The slider keeps a part of the range: all eighty parts of GPTQ's search are computed and sent ahead,
so dragging it needs no kernel. A last position, "by hand", is for the two handles on the histogram;
while they are dragged the kernel computes their range with all the others.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from qviz.study.clipping import KEPT, systems
from qviz.ui.figures.scale_and_zero_point import cost_curves, staircase
from qviz.ui.views.affine_controls import AffineControls
from qviz.ui.views.fields import CellField
from qviz.ui.views.frame import compose, tie_frames
from qviz.ui.views.layer_page import LayerPage
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.scale_and_zero_point_facts import (
    ANSWERS,
    HAND,
    PARTS,
    EndsField,
    bars,
    facts,
    frame_names,
    judged,
    shortened,
    snippet,
)
from qviz.ui.views.scale_and_zero_point_numbers import (
    Shown,
    looks,
    numbers_of,
    try_by_hand,
    try_parts,
)
from qviz.ui.views.scale_and_zero_point_systems import SystemsPart
from qviz.ui.views.scale_and_zero_point_words import (
    BY_HAND,
    FORMULAS,
    GUIDE,
    LEGEND,
    At,
    lit,
    number_rows,
    sentence,
    verdict,
)
from qviz.ui.views.scale_sharing import ROW
from qviz.ui.widgets import (
    Caption,
    Chart,
    Choice,
    Code,
    Equation,
    MatrixView,
    NumberLine,
    Readout,
    Slider,
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

BITS = (2, 3, 4, 5, 6, 7, 8)
PICTURE_UP_TO = 8192  # numbers whose errors are sent ahead for every range


class ScaleAndZeroPointLesson(LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source  None (the bundled model), "minilm", a directory, a .safetensors file or a Hub id
    layer   the name of one of its linear layers
    """

    lesson_number = 3
    guide_steps = GUIDE
    _look: str
    look_control: Choice
    shown: Shown | None

    def __init__(self, source: str | None = None, layer: str | None = None) -> None:
        super().__init__()
        self._cell = (0, 0)
        self._axes = ("line", "place")
        self._span = (0.0, 1.0)  # the ends of the axes
        self._build_controls()
        self._build_views()
        self.widget = self._page()
        self.open(source, layer)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def scheme(self) -> dict[str, Any]:
        return {"bits": BITS[self.bits_control.index], **self.affine.scheme}

    def _looks(self) -> dict[str, str]:
        name = self.layer if self.layers else ""
        return looks(self.affine.unit.value, self.source, name)

    def fit(self) -> None:
        self.affine.fit(self.opened.weight.shape[1])
        offered = self._looks()
        titles = list(offered.values())
        if titles != list(self.look_control.options):
            kept = self._look if self._look in offered else next(iter(offered))
            self.look_control.set_options(titles, list(offered).index(kept))
        self._look = list(offered)[int(self.look_control.index)]

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        add = self.add
        self.bits_control = add(
            "bits", Slider("Bits per code", [str(b) for b in BITS], BITS.index(4), ticks=True),
            busy=COMPUTING,
        )  # fmt: skip
        self.affine = AffineControls(self, first=ROW, stored=False)
        self._look = ""
        self.look_control = add(
            "look", Choice("Look at", list(self._looks().values())), busy=COMPUTING,
            names=lambda: list(self._looks()),
        )  # fmt: skip
        self.kept_control = add(
            "kept", Slider("Range kept", [*PARTS, BY_HAND], HAND - 1), self._slide, looks=True
        )
        self.prediction = Prediction(
            "Before you drag: which part of the range should the levels span to make the "
            "squared error smallest?",
            [f"{part} %" for part in ANSWERS],
            lambda guess: verdict(judged(self._now, guess)),
            self._reveal,
        )
        self.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_views(self) -> None:
        """And what the browser does with them alone."""
        self.line = NumberLine(
            "The numbers", ["lower end", "upper end"], shade="outside", height=160, root=True
        )
        self.fields["ends"] = EndsField("ends", self.line, self.kept_control)
        self.on_change(self.line, "values", self._drag)
        self.curves = Chart("What each range costs", height=215)
        self.stairs = Chart("What every number becomes", height=215)
        self.picture = MatrixView("The numbers", aspect=2)
        self.error_view = MatrixView("Their errors x − x̂", aspect=2)
        self.picture_box, self.error_box = stack(self.picture), stack(self.error_view)
        self.equation = Equation(FORMULAS[""].mathml, FORMULAS[""].terms, aria=FORMULAS[""].spoken)
        self.number_table = Readout("The chosen number")
        self.systems = SystemsPart()
        self.caption = Caption()
        self.code = Code()
        tie_frames(
            self.kept_control, self.line, self.stairs, self.error_view, self.equation,
            self.number_table, self.caption, self.code,
        )  # fmt: skip
        link(self.kept_control, "index", (self.curves, "mark"))
        link_matrices(self.picture, self.error_view)
        self.fields["number"] = CellField("number", lambda: self.picture, lambda: self._cell)
        for trait in ("cursor", "pinned"):
            self.on_change(self.picture, trait, self._new_cell)

    def _page(self) -> Any:
        assert self.prediction is not None
        charts = figures_row(
            stack(Text(self.curves.label, "h3"), self.curves),
            stack(Text(self.stairs.label, "h3"), self.stairs),
            wide=True,
        )
        return compose(
            self,
            lead=self.kept_control,
            controls=[
                self.bits_control,
                self.affine.levels,
                self.look_control,
                details(
                    "Other numbers, other systems",
                    self.affine.unit,
                    self.layer_control,
                    self.affine.convention,
                ),
                self.prediction.box,
            ],
            main=[
                section("The range and its levels", self.line, Text(LEGEND, role="wait"), charts),
            ],
            side=[
                section("What happens to a number", self.equation, self.number_table),
                section("Point at a number", self.picture_box, self.error_box),
            ],
            below=[self.systems.widget],
            caption=self.caption,
            code=self.code,
            own=[self.source_control, self.open_button, self.bundled_button],
        )

    # ---------------------------------------------------------------- computing

    @property
    def _now(self) -> Shown:
        assert self.shown is not None
        return self.shown

    def compute(self) -> Shown:
        """Every range, and every system; all of it is sent ahead."""
        opened, last, look, unit = self.opened, self.shown, self._look, self.affine.unit.value
        numbers = None if last is None or last.opened is not opened else last.numbers
        if numbers is None or (numbers.look, numbers.unit) != (look, unit):
            numbers = numbers_of(opened, look, unit)
        scheme = self.scheme
        known = last is not None and last.numbers is numbers
        if last is not None and known and last.scheme["bits"] == scheme["bits"]:
            outcomes = last.outcomes
        else:
            outcomes = systems(numbers.values, bits=scheme["bits"])
        hand = None
        if self._is_by_hand:
            ends = self.line.values if known else [numbers.values.low, numbers.values.high]
            hand = try_by_hand(numbers, scheme, list(ends))
        return Shown(opened, numbers, scheme, try_parts(numbers, scheme), hand, outcomes)

    def update(self, part: Any = None) -> None:
        super().update(part)
        assert self.prediction is not None
        self.prediction.answer()

    @property
    def _is_by_hand(self) -> bool:
        return int(self.kept_control.index) == HAND

    def _slide(self) -> None:
        """Another part of the range, which the browser shows by itself, or a range by hand."""
        assert self.prediction is not None
        self.prediction.moved()
        now = self._now
        if self._is_by_hand:
            hand = try_by_hand(now.numbers, now.scheme, list(self.line.values))
            self.show(self, replace(now, hand=hand))
        elif now.hand is not None:
            self.show(self, replace(now, hand=None))

    def _drag(self) -> None:
        """The handles were moved by the learner, or by the slider."""
        if list(self.line.values) not in self.line.places:
            with self.quietly():
                self.kept_control.index = HAND
            self._slide()

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: Shown) -> None:
        last = self.shown
        if last is None or (last.opened, last.numbers.look) != (shown.opened, shown.numbers.look):
            assert self.prediction is not None
            with self.quietly():
                self.prediction.reset()  # other numbers are another question
        if last is None or last.numbers is not shown.numbers:
            self._draw_numbers(shown)
        if last is None or (last.outcomes, last.scheme) != (shown.outcomes, shown.scheme):
            self.systems.draw(shown.numbers, shown.outcomes, shown.scheme)
        tried = shown.frames
        ends = list(zip(tried.low.tolist(), tried.high.tolist(), strict=True))
        levels = tried.values.numpy()
        if shown.hand is None:
            with self.quietly():
                self.line.set_places(ends)
                self.line.values = list(ends[int(self.kept_control.index)])
        self.line.set_levels(shortened(levels).tolist(), [
            f"{len(each)} levels from {number(each[0])} to {number(each[-1])}, for the range "
            f"{number(a)} to {number(b)}" for each, (a, b) in zip(levels, ends, strict=True)
        ])  # fmt: skip
        if self._has_errors(shown):
            flat = shown.numbers.flat
            errors = (flat - tried.follow(flat).value).reshape(-1, *shown.numbers.picture.shape)
            self.error_view.set_frames(
                list(errors), labels=frame_names(shown), role="error", axes=self._axes,
                limits=float(shown.tried.levels.grid.scale[-1, 0]),
                cells=f"{shown.numbers.noun}s",
            )  # fmt: skip
        self._draw_curves(shown)
        self._draw_cell(shown)
        self._say(shown)
        self.code.set_texts([snippet(shown, i) for i in range(len(ends))])

    @staticmethod
    def _has_errors(shown: Shown) -> bool:
        return shown.numbers.n <= PICTURE_UP_TO

    def _draw_numbers(self, shown: Shown) -> None:
        """Draw what depends on the numbers alone."""
        numbers, values = shown.numbers, shown.numbers.values
        low, high = min(values.low, 0.0), max(values.high, 0.0)
        room = 0.1 * ((high - low) or 1.0)
        self._span = (low - room, high + room)
        largest = int(numbers.picture.abs().argmax())  # which meets both costs
        self._cell = divmod(largest, numbers.picture.shape[1])
        self._axes = ("out", "in") if numbers.is_layer else ("line", "place")
        with self.quietly():
            self.line.label = numbers.title
            self.line.set_places([])
            self.line.set_line(self._span, [values.low, values.high])
            self.line.set_histogram(
                *np.histogram(values.x.double(), bars(values.n), weights=values.count)
            )
            self.picture.set_frames(
                [numbers.picture], role="original", axes=self._axes, cells=f"{numbers.noun}s"
            )
            self.picture.cursor, self.picture.pinned = list(self._cell), False
        show_only(self.error_box, self._has_errors(shown))
        show_only(self.picture_box, not self._has_errors(shown))

    def _reveal(self) -> None:
        self._draw_curves(self._now)
        self._say(self._now)

    def _draw_curves(self, shown: Shown) -> None:
        assert self.prediction is not None
        drawn, total, best = self.prediction.revealed, shown.total, shown.tried.best
        text = f"With the whole range {percent(total[-1])} of the squared numbers"
        if drawn:
            text += f"; lowest with {PARTS[best]} of it, {percent(total[best])}"
        hand = None
        if shown.hand is not None:
            values = shown.numbers.values
            width = float(shown.hand.high - shown.hand.low) / ((values.high - values.low) or 1.0)
            at = int(np.abs(np.array(KEPT) - width).argmin())
            rounding, clipping = shown.shares(shown.hand)
            hand = at, float(rounding[0] + clipping[0])
            text += f"; by hand {percent(hand[1])}"
        self.curves.set_figures(
            cost_curves(PARTS, *shown.shares(shown.tried), best, drawn=drawn, by_hand=hand), text
        )

    def look(self) -> None:
        self._new_cell()

    def _new_cell(self) -> None:
        line, place = self.picture.cursor
        if line >= 0 and (line, place) != self._cell:
            self._cell = (line, place)
            self._draw_cell(self._now)

    def _draw_cell(self, shown: Shown) -> None:
        """One number's path through every range."""
        x, place = shown.numbers.at(*self._cell)
        tried, scheme = shown.frames, shown.scheme
        self.number_table.set_rows(
            number_rows(tried, x, place, scheme["convention"], scheme["symmetric"])
        )
        grid = tried.levels.grid
        stored = "o" if grid.offset is not None else "" if grid.zero_point is None else "z"
        formula = FORMULAS[stored]
        equation = self.equation
        assert equation is not None
        with equation.hold_sync():
            equation.mathml, equation.terms = formula.mathml, formula.terms
            equation.aria, equation.actives = formula.spoken, lit(tried, x)
        levels = tried.values.numpy()
        back = tried.follow(torch.tensor([x])).value[:, 0].numpy()
        self.stairs.set_figures(
            staircase(levels, self._span, x, back),
            [
                f"{len(each)} levels from {number(each[0])} to {number(each[-1])}; {number(x)} "
                f"becomes {number(to)}"
                for each, to in zip(levels, back, strict=True)
            ],
        )

    def _say(self, shown: Shown) -> None:
        self.caption.set_texts([sentence(at) for at in self.facts(shown)])

    def facts(self, shown: Shown) -> list[At]:
        """The numbers behind the caption of each range."""
        assert self.prediction is not None
        return facts(shown, revealed=self.prediction.revealed)
