"""Lesson 1: a real layer, a slider from 2 to 8 bits, and what the bits do.

The browser ties the bit-width slider to every picture, chart, table and caption. All seven
bit-widths are computed and sent ahead, so dragging needs no kernel. Everything else (the layer,
symmetric or asymmetric, who shares a scale) the kernel computes when it changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qviz.core import metrics
from qviz.core.calibration import Calibration
from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import affine
from qviz.study.sweep import measure, sweep
from qviz.ui.views.affine_controls import AffineControls
from qviz.ui.views.arithmetic import affine_rows
from qviz.ui.views.bit_width_charts import draw_curves, draw_histogram
from qviz.ui.views.bit_width_words import (
    EQUATION,
    GUESS_WITHIN,
    GUIDE,
    OUTPUT,
    SPOKEN,
    TERMS,
    WEIGHTS,
    sentence,
    verdict,
)
from qviz.ui.views.cost import cost_rows
from qviz.ui.views.frame import compose, tie_frames
from qviz.ui.views.layer_page import LayerPage, Opened
from qviz.ui.views.layer_pictures import LayerPictures
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.scale_sharing import MATRIX, ROW, sharing
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
    Choice,
    Code,
    Equation,
    Readout,
    Slider,
    Text,
    details,
    figures_row,
    percent,
    section,
    stack,
)

BITS = (2, 3, 4, 5, 6, 7, 8)
FRAMES = [f"{b} bits" for b in BITS]
COMPARED = (MATRIX, ROW, "group of 128", "group of 32")
COMPARE_UP_TO = 4 << 20  # weights; above this the other curves would take half a minute
LARGE_NOTE = (
    "This layer is large: the chart shows the other ways to share a scale only after you choose "
    "them."
)


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows: a layer, quantized at every bit-width.

    weight   [out, in] float32; calibration its inputs, None where nobody ran the model
    scheme   the options of `affine` that all curves share; unit: who shares a scale
    tensors  one for each of BITS; rows: unit → a row of measures for each of BITS
    spread   the weights' histogram: counts, edges
    """

    opened: Opened
    weight: torch.Tensor
    calibration: Calibration | None
    scheme: Mapping[str, Any]
    unit: str
    tensors: list[QuantizedTensor]
    rows: Mapping[str, list[dict[str, Any]]]
    spread: tuple[np.ndarray, np.ndarray]

    @property
    def small(self) -> bool:
        """Whether all curves can be computed while somebody waits."""
        return self.weight.numel() <= COMPARE_UP_TO


class BitWidthLesson(LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source  None (the bundled model), "minilm", a directory, a .safetensors file or a Hub id
    layer   the name of one of its linear layers
    """

    lesson_number = 1
    guide_steps = GUIDE
    shown: Shown | None

    def __init__(self, source: str | None = None, layer: str | None = None) -> None:
        super().__init__()
        self._cell = (0, 0)
        self._build_controls()
        self._build_views()
        self.widget = self._page()
        self.open(source, layer)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def bits(self) -> int:
        return BITS[self.bits_control.index]

    def fit(self) -> None:
        self.affine.fit(self.opened.weight.shape[1])

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        add = self.add
        first = len(BITS) - 1
        self.affine = AffineControls(self)
        self.bits_control = add(
            "bits", Slider("Bits per code", [str(b) for b in BITS], first, ticks=True),
            self._drag, lights=["q", "clamp"], looks=True,
        )  # fmt: skip
        self.metric_control = add(
            "error", Choice("Plot the error of the", [OUTPUT, WEIGHTS], kind="segmented"),
            lambda: self._draw_curves(self._now), looks=True,
        )  # fmt: skip
        self.pictures = LayerPictures(
            self.bits_control, "Stretch the error's colours at each bit-width"
        )
        add("stretch", self.pictures.stretch_control, lambda: None)
        self.add_cell(
            "weight", [self.pictures.original], lambda: self._cell, lambda _view: self.look()
        )
        self.prediction = Prediction(
            "Before you drag: what is the fewest bits per weight that keeps this layer's output "
            f"within {percent(GUESS_WITHIN)} of the true one?",
            FRAMES,
            self._verdict,
            lambda: self._draw_curves(self._now),
        )
        self.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_views(self) -> None:
        """And what the browser does with them alone."""
        self.histogram = Chart("All weights, and the chosen one's levels", height=190)
        self.curves = Chart("Error against bit-width", height=190)
        self.note = Text("", role="wait")
        self.equation = Equation(EQUATION, TERMS, [], aria=SPOKEN)
        self.cell_table = Readout("The chosen weight")
        self.ledger_table = Readout("What the bits cost, per weight")
        self.caption = Caption()
        self.code = Code()
        tie_frames(
            self.bits_control, self.histogram, self.curves, self.cell_table, self.ledger_table,
            self.caption, self.code,
        )  # fmt: skip

    def _page(self) -> Any:
        assert self.prediction is not None
        charts = figures_row(
            stack(Text(self.histogram.label, "h3"), self.histogram),
            stack(self.metric_control, self.curves, self.note),
            wide=True,
        )
        return compose(
            self,
            lead=self.bits_control,
            controls=[
                self.affine.levels,
                self.affine.unit,
                self.layer_control,
                self.affine.convention,
                details("More", self.affine.dtype, self.pictures.stretch_control),
                self.prediction.box,
            ],
            main=[section("The layer", self.pictures.row, charts)],
            side=[
                section("What happens to a weight", self.equation, self.cell_table),
                section("", self.ledger_table),
            ],
            caption=self.caption,
            code=self.code,
            own=[self.source_control, self.open_button, self.add_capture(), self.bundled_button],
        )

    # ---------------------------------------------------------------- computing

    @property
    def _now(self) -> Shown:
        assert self.shown is not None
        return self.shown

    def compute(self) -> Shown:
        """Quantize at every bit-width and measure; all of it is sent ahead."""
        opened, last = self.opened, self.shown
        same = last is not None and last.opened is opened
        calibration = last.calibration if last is not None and same else None
        if calibration is None:
            calibration = self.inputs_of(opened)
        weight = last.weight if last is not None and same else opened.weight.float()
        tensors = [affine(weight, bits=b, **self.affine.options) for b in BITS]
        unit, scheme = self.affine.unit.value, self.affine.scheme
        rows = {}
        if last is not None and (same, last.scheme, last.calibration is calibration) == (
            True, scheme, True,
        ):  # fmt: skip
            rows = dict(last.rows)
        if unit not in rows:
            energy = None if calibration is None else metrics.output_energy(weight, calibration)
            rows[unit] = [measure(weight, q, calibration, energy=energy) for q in tensors]
        spread = last.spread if last is not None and same else np.histogram(weight.numpy(), bins=81)
        return Shown(opened, weight, calibration, scheme, unit, tensors, rows, spread)

    def update(self, part: Any = None) -> None:
        """The curves for the other granularities are slow to compute, so they come last."""
        super().update(part)
        self.shown = self._compared(self._now)
        self._draw_curves(self.shown)
        assert self.prediction is not None
        self.prediction.answer()

    def _compared(self, shown: Shown) -> Shown:
        """Add the curves for the other granularities where they can be computed."""
        units = self.affine.unit.options if shown.small else []
        rows = dict(shown.rows)
        for unit in (u for u in units if u in COMPARED and u not in rows):
            grain = sharing(unit)
            try:
                rows[unit] = list(sweep(
                    shown.weight, "affine", BITS, calibration=shown.calibration,
                    granularity=grain.kind, group_size=grain.group_size, **shown.scheme,
                ))  # fmt: skip
            except ValueError as error:
                self.problem(f"{unit} is not on the chart: {error}")
        return replace(shown, rows=rows)

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: Shown) -> None:
        last = self.shown
        if (
            last is None
            or last.opened is not shown.opened
            or last.calibration is not shown.calibration
        ):
            self._draw_layer(shown)
        weight, tensors = shown.weight, shown.tensors
        self.pictures.draw(weight, tensors, FRAMES)
        self._draw_cell(shown)
        self.ledger_table.set_rows(cost_rows(tensors))
        self.caption.set_texts(
            [
                sentence(b, q, shown.unit, row, shown.calibration, metrics.error_split(weight, q))
                for b, q, row in zip(BITS, tensors, shown.rows[shown.unit], strict=True)
            ]
        )
        self.code.set_texts([self._snippet(shown, b) for b in BITS])
        self.note.text = "" if shown.small else LARGE_NOTE

    def _draw_layer(self, shown: Shown) -> None:
        """Draw what depends on the layer alone. A new layer means a new prediction."""
        rows, columns = shown.weight.shape
        self._cell = (rows // 7, columns // 7)
        there = shown.calibration is not None
        assert self.prediction is not None
        with self.quietly():
            self.metric_control.index = 0 if there else 1
            self.metric_control.disabled = not there
            self.prediction.reset(possible=there)
            self.pictures.draw_layer(shown.weight, self._cell)

    def _drag(self) -> None:
        assert self.prediction is not None
        self.prediction.moved()

    def look(self) -> None:
        row, column = self.pictures.original.cursor
        if row >= 0 and (row, column) != self._cell:
            self._cell = (row, column)
            self._draw_cell(self._now)

    def _draw_cell(self, shown: Shown) -> None:
        self.cell_table.set_rows(affine_rows(shown.weight, shown.tensors, *self._cell))
        draw_histogram(self.histogram, shown.weight, shown.spread, shown.tensors, self._cell)

    def _draw_curves(self, shown: Shown) -> None:
        assert self.prediction is not None
        chosen = shown.unit
        rows = {
            unit: shown.rows[unit]
            for unit in self.affine.unit.options
            if unit in shown.rows and (unit in COMPARED or unit == chosen)
        }
        what, drawn = self.metric_control.value, self.prediction.revealed
        draw_curves(self.curves, BITS, rows, chosen, what, drawn=drawn)

    def _verdict(self, guess: int) -> str:
        """Compare the prediction with the computed curve."""
        shown = self._now
        measured = (row["output_error"] for row in shown.rows[shown.unit])
        return verdict(BITS[guess], dict(zip(BITS, measured, strict=True)))

    def _snippet(self, shown: Shown, bits: int) -> str:
        """The library calls behind what the page shows now."""
        layer = call("qviz.load_layer", shown.opened.source, shown.opened.layer)
        made = call("qviz.quantize", Name("weight"), "affine", bits=bits, **self.affine.options)
        return (
            f"import qviz, torch\n\nweight = {layer}.float()\nq = {made}\n"
            f"error = weight - q.dequantize()\nprint(q.ledger)"
        )
