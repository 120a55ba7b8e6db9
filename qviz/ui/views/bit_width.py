"""Lesson 1: a real layer, a slider from 2 to 8 bits, and what the bits do.

The bit-width slider is tied to every picture, chart, table and caption in the browser: all seven
bit-widths are computed and sent ahead, so dragging needs no kernel. Everything else (the layer,
symmetric or asymmetric, who shares a scale) the kernel computes when it changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from qviz.core import metrics
from qviz.core.calibration import Calibration
from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import CONVENTIONS, DEFAULT_CONVENTION, affine
from qviz.models.capture import load_calibration
from qviz.study.sweep import measure, sweep
from qviz.ui.figures.bit_width import error_curves, levels_histogram
from qviz.ui.views.arithmetic import affine_rows
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
from qviz.ui.views.fields import CellField
from qviz.ui.views.frame import compose, tie_frames
from qviz.ui.views.layer_page import LayerPage, Opened
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.scale_sharing import MATRIX, ROW, ScaleSharing, each, sharing
from qviz.ui.views.snippet import Name, call
from qviz.ui.views.spacing import system
from qviz.ui.widgets import (
    Button,
    Caption,
    Chart,
    Choice,
    Code,
    Equation,
    MatrixFrame,
    MatrixView,
    Readout,
    Slider,
    Text,
    Toggle,
    details,
    figures_row,
    link,
    link_matrices,
    percent,
    section,
    stack,
)

BITS = (2, 3, 4, 5, 6, 7, 8)
FRAMES = [f"{b} bits" for b in BITS]
COMPARED = (MATRIX, ROW, "group of 128", "group of 32")
SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
COMPARE_UP_TO = 4 << 20  # weights; above this the other curves would take half a minute
LARGE_NOTE = "A large layer: other scales join the chart once you have chosen them."
AXES = ("out", "in")


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
        self._captured: set[str] = set()  # models of the learner that were run
        self._cell = (0, 0)
        self._build_controls()
        self._build_views()
        self.widget = self._page()
        self.open(source, layer)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def bits(self) -> int:
        return BITS[self.bits_control.index]

    @property
    def options(self) -> dict[str, Any]:
        """The options of `affine`, except bits, as the controls say."""
        unit = self.unit_control.granularity
        return {"granularity": unit.kind, "group_size": unit.group_size, **self._scheme}

    @property
    def _scheme(self) -> dict[str, Any]:
        return {
            "symmetric": self.scheme_control.index == 0,
            "convention": self._conventions()[int(self.convention_control.index)],
            "scale_dtype": SCALE_DTYPES[self.dtype_control.value],
        }

    def _conventions(self) -> list[str]:
        """Those that define what the learner chose, symmetric or asymmetric."""
        symmetric = self.scheme_control.index == 0
        return [n for n, c in CONVENTIONS.items() if (c.symmetric if symmetric else c.asymmetric)]

    def fit(self) -> None:
        self.unit_control.fit(self.opened.weight.shape[1])
        names, symmetric = self._conventions(), self.scheme_control.index == 0
        titles = [system(name, symmetric) for name in names]
        if titles != list(self.convention_control.options):
            # Across the two kinds a convention is known by its system, whose divisor changes.
            kept = str(self.convention_control.value).partition(":")[0]
            same = [i for i, title in enumerate(titles) if title.partition(":")[0] == kept]
            at = same[0] if same else names.index(DEFAULT_CONVENTION)
            self.convention_control.set_options(titles, at)

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        add = self.add
        first = len(BITS) - 1
        self.scheme_control = add(
            "levels", Choice("Levels", ["symmetric", "asymmetric"], kind="segmented"),
            busy=COMPUTING, lights=["z"],
        )  # fmt: skip
        self.unit_control = add("scale", ScaleSharing(), busy=COMPUTING, lights=["s"])
        names = [system(name, True) for name in self._conventions()]
        self.convention_control = add(
            "convention", Choice("Spacing made as by", names), busy=COMPUTING, lights=["s"],
            names=self._conventions,
        )  # fmt: skip
        self.dtype_control = add(
            "dtype", Choice("Scales stored as", list(SCALE_DTYPES)), busy=COMPUTING
        )
        self.bits_control = add(
            "bits", Slider("Bits per code", [str(b) for b in BITS], first, ticks=True),
            self._drag, lights=["q", "clamp"], looks=True,
        )  # fmt: skip
        self.metric_control = add(
            "error", Choice("Error against bit-width, of the", [OUTPUT, WEIGHTS], kind="segmented"),
            lambda: self._draw_curves(self._now), looks=True,
        )  # fmt: skip
        self.stretch_control = add(
            "stretch", Toggle("Stretch the error's colours at each bit-width"), lambda: None
        )
        self.capture_button = Button("Run it on text, to measure outputs")
        self.on_press(self.capture_button, self._capture, "Running the model on text …")
        self.prediction = Prediction(
            f"Before you drag: how few bits keep this layer's output within "
            f"{percent(GUESS_WITHIN)} of the true one?",
            FRAMES,
            self._verdict,
            lambda: self._draw_curves(self._now),
        )
        self.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_views(self) -> None:
        """And what the browser does with them alone."""
        self.original_view = MatrixView("Trained weights W")
        self.rounded_view = MatrixView("Rounded weights Ŵ")
        self.error_view = MatrixView("Error W − Ŵ")
        self.histogram = Chart("All weights, and the chosen one's levels", height=190)
        self.curves = Chart("Error against bit-width", height=190)
        self.note = Text("", role="wait")
        self.equation = Equation(EQUATION, TERMS, [], aria=SPOKEN)
        self.cell_table = Readout("The chosen weight")
        self.ledger_table = Readout("What the bits cost")
        self.caption = Caption()
        self.code = Code()
        tie_frames(
            self.bits_control, self.rounded_view, self.error_view, self.histogram, self.curves,
            self.cell_table, self.ledger_table, self.caption, self.code,
        )  # fmt: skip
        link(self.stretch_control, "value", (self.error_view, "autoscale"))
        link_matrices(self.original_view, self.rounded_view, self.error_view)
        self.fields["weight"] = CellField("weight", lambda: self.original_view, lambda: self._cell)
        for trait in ("cursor", "pinned"):
            self.on_change(self.original_view, trait, self._new_cell)

    def _page(self) -> Any:
        assert self.prediction is not None
        pictures = figures_row(self.original_view, self.rounded_view, self.error_view)
        charts = figures_row(
            stack(Text(self.histogram.label, "h3"), self.histogram),
            stack(self.metric_control, self.curves, self.note),
            wide=True,
        )
        return compose(
            self,
            lead=self.bits_control,
            controls=[
                self.scheme_control,
                self.unit_control,
                self.layer_control,
                self.convention_control,
                details("More", self.dtype_control, self.stretch_control),
                self.prediction.box,
            ],
            main=[section("The layer", pictures, charts)],
            side=[
                section("What happens to a weight", self.equation, self.cell_table),
                section("", self.ledger_table),
            ],
            caption=self.caption,
            code=self.code,
            own=[self.source_control, self.open_button, self.capture_button, self.bundled_button],
        )

    # ---------------------------------------------------------------- computing

    @property
    def _now(self) -> Shown:
        assert self.shown is not None
        return self.shown

    def _capture(self) -> None:
        """Run the learner's model, which may take a while and much memory: only when asked."""
        if self.source is None:
            raise ValueError("the bundled model's inputs are captured already; open yours first")
        load_calibration(self.source, self.layer)
        self._captured.add(self.source)
        self.update()

    def compute(self) -> Shown:
        """Quantize at every bit-width and measure; all of it is sent ahead."""
        opened, last = self.opened, self.shown
        same = last is not None and last.opened is opened
        known = self.source in (None, "minilm") or self.source in self._captured
        calibration = last.calibration if last is not None and same else None
        if known and calibration is None:
            calibration = load_calibration(self.source, self.layer)
        weight = last.weight if last is not None and same else opened.weight.float()
        tensors = [affine(weight, bits=b, **self.options) for b in BITS]
        unit, scheme = self.unit_control.value, self._scheme
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
        """The other curves are the slow part, so they come last."""
        super().update(part)
        self.shown = self._compared(self._now)
        self._draw_curves(self.shown)
        assert self.prediction is not None
        self.prediction.answer()

    def _compared(self, shown: Shown) -> Shown:
        """With the curves of the other granularities, as far as they can be computed."""
        units = self.unit_control.options if shown.small else []
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
        self.rounded_view.set_frames(
            [MatrixFrame(q.dequantize, q.window) for q in tensors],
            labels=FRAMES,
            limits=tuple(self.original_view.shared_limits[0]),
            role="codes",
            axes=AXES,
        )
        self.error_view.set_frames(
            [MatrixFrame(partial(_error, weight, q), partial(_window, weight, q)) for q in tensors],
            labels=FRAMES,
            reduce="max_abs",
            role="error",
            axes=AXES,
        )
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
        """What belongs to the layer alone; a new one is a new question."""
        rows, columns = shown.weight.shape
        self._cell = (rows // 7, columns // 7)
        there = shown.calibration is not None
        assert self.prediction is not None
        with self.quietly():
            self.metric_control.index = 0 if there else 1
            self.metric_control.disabled = not there
            self.prediction.reset(possible=there)
            self.original_view.set_frames([MatrixFrame(shown.weight)], role="original", axes=AXES)
            self.original_view.cursor = list(self._cell)
            self.original_view.pinned = False

    def _drag(self) -> None:
        assert self.prediction is not None
        self.prediction.moved()

    def look(self) -> None:
        self._new_cell()

    def _new_cell(self) -> None:
        row, column = self.original_view.cursor
        if row >= 0 and (row, column) != self._cell:
            self._cell = (row, column)
            self._draw_cell(self._now)

    def _draw_cell(self, shown: Shown) -> None:
        row, column = self._cell
        self.cell_table.set_rows(affine_rows(shown.weight, shown.tensors, row, column))
        x = float(shown.weight[row, column])
        here = slice(row, row + 1), slice(column, column + 1)
        nearest = [float(q.window(*here)) for q in shown.tensors]
        levels = [q.levels(row, column).numpy() for q in shown.tensors]
        self.histogram.set_figures(
            levels_histogram(*shown.spread, levels, x, nearest),
            summary=[
                f"Histogram of the layer's {shown.weight.numel()} weights, with the {len(open_to)} "
                f"levels open to weight {row}, {column}: {x:.4f} goes to {to:.4f}"
                for open_to, to in zip(levels, nearest, strict=True)
            ],
        )

    def _draw_curves(self, shown: Shown) -> None:
        assert self.prediction is not None
        what, chosen = self.metric_control.value, shown.unit
        column = "output_error" if what == OUTPUT else "relative_error"
        curves = {
            unit: [row[column] for row in shown.rows[unit]]
            for unit in self.unit_control.options
            if unit in shown.rows and (unit in COMPARED or unit == chosen)
        }
        self.curves.set_figures(
            error_curves(BITS, curves, chosen, drawn=self.prediction.revealed),
            summary=[
                f"Relative error of the {what} with one scale for {each(chosen)}, at {b} bits "
                f"{percent(curves[chosen][i])}"
                for i, b in enumerate(BITS)
            ],
        )

    def _verdict(self, guess: int) -> str:
        """The prediction against the computed curve."""
        shown = self._now
        measured = (row["output_error"] for row in shown.rows[shown.unit])
        return verdict(BITS[guess], dict(zip(BITS, measured, strict=True)))

    def _snippet(self, shown: Shown, bits: int) -> str:
        """The library calls behind the page at this moment."""
        layer = call("qviz.load_layer", shown.opened.source, shown.opened.layer)
        made = call("qviz.quantize", Name("weight"), "affine", bits=bits, **self.options)
        return (
            f"import qviz, torch\n\nweight = {layer}.float()\nq = {made}\n"
            f"error = weight - q.dequantize()\nprint(q.ledger)"
        )


def _error(weight: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    return weight - q.dequantize()


def _window(weight: torch.Tensor, q: QuantizedTensor, rows: slice, columns: slice) -> torch.Tensor:
    return weight[rows, columns] - q.window(rows, columns)
