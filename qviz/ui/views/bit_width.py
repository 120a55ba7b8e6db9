"""Lesson 1: a real layer, a slider from 2 to 8 bits, and what the bits do.

The bit-width slider is tied to every picture, chart, table and caption in the browser: all seven
bit-widths are computed and sent ahead, so dragging needs no kernel. Everything else (the layer,
symmetric or asymmetric, who shares a scale) the kernel computes when it changes.
"""

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
from qviz.ui.views.layer_page import LayerPage
from qviz.ui.views.lesson_page import COMPUTING
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
    number,
    page,
    section,
    stack,
)

BITS = (2, 3, 4, 5, 6, 7, 8)
FRAMES = [f"{b} bits" for b in BITS]
WHOLE, ROW = "matrix", "row"
GROUP_SIZES = (256, 128, 64, 32, 16)
COMPARED = (WHOLE, ROW, "group of 128", "group of 32")
SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
OUTPUT, WEIGHTS = "layer output", "weights"
GUESS_WITHIN = 0.10  # the prediction asks for the fewest bits that keep the output this close
COMPARE_UP_TO = 4 << 20  # weights; above this the other curves would take half a minute
LARGE_NOTE = "A large layer: other scales join the chart once you have chosen them."
AXES = ("out", "in")

EQUATION = """
<math display="block"><mrow>
  <mi data-term="q">q</mi><mo>=</mo><mi data-term="clamp">clamp</mi><mo>(</mo>
  <mi data-term="round">round</mi><mo>(</mo><mfrac><mi data-term="x">x</mi>
  <mi data-term="s">s</mi></mfrac><mo>+</mo><mi data-term="z">z</mi><mo>)</mo><mo>)</mo>
</mrow></math>
<math display="block"><mrow>
  <mover accent="true"><mi data-term="xhat">x</mi><mo>^</mo></mover><mo>=</mo>
  <mi data-term="s">s</mi><mo>·</mo><mo>(</mo><mi data-term="q">q</mi><mo>−</mo>
  <mi data-term="z">z</mi><mo>)</mo>
</mrow></math>
"""
TERMS = {
    "x": "x: the trained weight",
    "s": "s: the step between two levels, shared by the group",
    "z": "z: the code that means 0; symmetric levels need none",
    "round": "round: to the nearest whole number, a tie to the even one",
    "clamp": "clamp: codes beyond the first or last level become that level",
    "q": "q: the stored code, a whole number of so many bits",
    "xhat": "x̂: the weight as it comes back",
}


class BitWidthLesson(LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source  None (the bundled model), "minilm", a directory, a .safetensors file or a Hub id
    layer   the name of one of its linear layers
    """

    lesson_number = 1
    kept = ("calibration", "tensors", "rows", "_spread")

    def __init__(self, source: str | None = None, layer: str | None = None) -> None:
        super().__init__()
        self.calibration: Calibration | None = None
        self.tensors: list[QuantizedTensor] = []  # one for each of BITS
        self.rows: dict[str, list[dict[str, Any]]] = {}  # unit → a row of measures for each of BITS
        self._captured: set[str] = set()  # models of the learner that were run
        self._spread = (np.zeros(1), np.zeros(2))  # the weights' histogram: counts, edges
        self._cell = (0, 0)
        self._fresh = False  # a layer that the pictures do not show yet
        self._revealed = False
        self._build_controls()
        self._build_views()
        self._wire()
        self.widget = self._page()
        self.open(source, layer)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def bits(self) -> int:
        return BITS[self.bits_control.index]

    @property
    def options(self) -> dict[str, Any]:
        """The options of `affine`, except bits, as the controls say."""
        kind, size = _granularity(self.unit_control.value)
        return {"granularity": kind, "group_size": size, **self._scheme}

    @property
    def _scheme(self) -> dict[str, Any]:
        """The options that all curves of the chart share."""
        return {
            "symmetric": self.scheme_control.index == 0,
            "convention": self.convention_control.value,
            "scale_dtype": SCALE_DTYPES[self.dtype_control.value],
        }

    @property
    def _small(self) -> bool:
        """Whether all curves can be computed while somebody waits."""
        return self.weight.numel() <= COMPARE_UP_TO

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        self.bits_control = Slider(
            "Bits per code", [str(b) for b in BITS], len(BITS) - 1, ticks=True
        )
        self.scheme_control = Choice("Levels", ["symmetric", "asymmetric"], kind="segmented")
        self.unit_control = Slider("Scale per", [ROW])
        self.convention_control = Choice("Convention", [DEFAULT_CONVENTION])
        self.dtype_control = Choice("Scales stored as", list(SCALE_DTYPES))
        self.stretch_control = Toggle("Stretch the error's colours at each bit-width")
        self.metric_control = Choice(
            "Error against bit-width, of the", [OUTPUT, WEIGHTS], kind="segmented"
        )
        self.guess_control = Choice(
            f"Before you drag: how few bits keep this layer's output within "
            f"{_percent(GUESS_WITHIN)} of the true one?",
            ["your guess", *(f"{b} bits" for b in BITS)],
        )
        self.capture_button = Button("Run it on text, to measure outputs")

    def _build_views(self) -> None:
        self.original_view = MatrixView("Trained weights W")
        self.rounded_view = MatrixView("Rounded weights Ŵ")
        self.error_view = MatrixView("Error W − Ŵ")
        self.histogram = Chart("All weights, and the chosen one's levels", height=190)
        self.curves = Chart("Error against bit-width", height=190)
        self.note = Text("", role="wait")
        self.equation = Equation(EQUATION, TERMS, [])
        self.cell_table = Readout("The chosen weight")
        self.ledger_table = Readout()
        self.caption = Caption()
        self.verdict = Caption()
        self.code = Code()

    def _wire(self) -> None:
        """First what the browser does alone, then what the kernel does for each control."""
        framed = (
            self.rounded_view, self.error_view, self.histogram, self.curves,
            self.cell_table, self.ledger_table, self.caption, self.code,
        )  # fmt: skip
        link(self.bits_control, "index", *((widget, "frame") for widget in framed))
        link(self.stretch_control, "value", (self.error_view, "autoscale"))
        link_matrices(self.original_view, self.rounded_view, self.error_view)

        self.on_change(self.bits_control, "index", self._reveal, lights=["q", "clamp"])
        self.on_change(self.scheme_control, "index", self._new_scheme, COMPUTING, ["z"])
        self.on_change(self.unit_control, "index", self._new_grid, COMPUTING, ["s"])
        self.on_change(self.convention_control, "index", self._recompute, busy=COMPUTING)
        self.on_change(self.dtype_control, "index", self._recompute, busy=COMPUTING)
        self.on_change(self.metric_control, "index", self._draw_curves)
        self.on_change(self.guess_control, "index", self._judge_guess)
        self.on_change(self.original_view, "cursor", self._new_cell)
        self.capture_button.on_click(self.handler(self._capture, "Running the model on text …"))

    def _controls(self) -> list[Any]:
        return [
            self.layer_control, self.scheme_control, self.convention_control,
            self.dtype_control, self.unit_control,
        ]  # fmt: skip

    def _restore(self) -> None:
        if self._remembered is not None:
            self._fresh = False
        super()._restore()

    def _page(self) -> Any:
        lesson = self.lesson
        more = details("More", self.convention_control, self.dtype_control, self.stretch_control)
        own = details(
            "Your own layer",
            self.source_control, self.open_button, self.capture_button, self.bundled_button,
        )  # fmt: skip
        return page(
            f"{lesson.number} · {lesson.title}",
            lesson.question,
            lead=self.bits_control,
            controls=[
                self.scheme_control,
                self.unit_control,
                self.layer_control,
                more,
                own,
                details("Show the code", self.code),
                self.status,
                section("Predict", self.guess_control, self.verdict),
            ],
            main=[
                section(
                    "The layer",
                    figures_row(self.original_view, self.rounded_view, self.error_view),
                    figures_row(
                        stack(Text(self.histogram.label, "h3"), self.histogram),
                        stack(self.metric_control, self.curves, self.note),
                        wide=True,
                    ),
                )
            ],
            side=[
                section("What happens to a weight", self.equation, self.cell_table),
                section("What the bits cost", self.ledger_table),
            ],
            caption=self.caption,
        )

    # ---------------------------------------------------------------- opening a layer

    def _capture(self) -> None:
        """Run the learner's model, which may take a while and much memory: only when asked."""
        if self.source is None:
            raise ValueError("the bundled model's inputs are captured already; open yours first")
        load_calibration(self.source, self.layer)
        self._captured.add(self.source)
        self._show(self.weight)

    def _show(self, weight: torch.Tensor) -> None:
        self.weight = weight.float()
        known = self.source in (None, "minilm") or self.source in self._captured
        self.calibration = load_calibration(self.source, self.layer) if known else None
        columns = weight.shape[1]
        sizes = [f"group of {g}" for g in GROUP_SIZES if g < columns and columns % g == 0]
        with self.quietly():
            options = [WHOLE, ROW, *sizes]
            chosen = self.unit_control.value
            first = "group of 128" if chosen == ROW and not self.tensors else chosen
            at = options.index(first) if first in options else 1
            self.unit_control.set_options(options, at)
            self._fit_conventions()
        self._fresh = True
        self._recompute()

    def _show_weight(self) -> None:
        """Everything that belongs to the layer alone."""
        rows, columns = self.weight.shape
        self._cell = (rows // 7, columns // 7)
        self._spread = np.histogram(self.weight.numpy(), bins=81)
        with self.quietly():
            self.metric_control.index = 0 if self.calibration is not None else 1
            self.metric_control.disabled = self.calibration is None
            self.guess_control.index = 0
            self.guess_control.disabled = self.calibration is None
            self.verdict.set_texts("")
            self.original_view.set_frames([MatrixFrame(self.weight)], role="original", axes=AXES)
            self.original_view.cursor = list(self._cell)
            self.original_view.pinned = False
        self._fresh = False

    # ---------------------------------------------------------------- computing

    def _recompute(self) -> None:
        """After a change that makes every measure stale."""
        self.rows = {}
        self._new_grid()

    def _new_scheme(self) -> None:
        with self.quietly():
            self._fit_conventions()
        self._recompute()

    def _fit_conventions(self) -> None:
        """Offer the conventions that define what the learner chose, symmetric or asymmetric."""
        symmetric = self.scheme_control.index == 0
        names = [n for n, c in CONVENTIONS.items() if (c.symmetric if symmetric else c.asymmetric)]
        kept = self.convention_control.value
        name = kept if kept in names else DEFAULT_CONVENTION
        self.convention_control.set_options(names, names.index(name))

    def _new_grid(self) -> None:
        """Quantize at every bit-width and send all of it ahead.

        What can fail comes before the first picture changes.
        """
        tensors = [affine(self.weight, bits=b, **self.options) for b in BITS]
        unit, known = self.unit_control.value, self.calibration
        if unit not in self.rows:
            energy = None if known is None else metrics.output_energy(self.weight, known)
            self.rows[unit] = [measure(self.weight, q, known, energy=energy) for q in tensors]
        self.tensors = tensors
        if self._fresh:
            self._show_weight()
        self._keep()
        self.rounded_view.set_frames(
            [MatrixFrame(q.dequantize, q.window) for q in self.tensors],
            labels=FRAMES,
            limits=tuple(self.original_view.shared_limits[0]),
            role="codes",
            axes=AXES,
        )
        self.error_view.set_frames(
            [
                MatrixFrame(partial(_error, self.weight, q), partial(_error_window, self.weight, q))
                for q in self.tensors
            ],
            labels=FRAMES,
            reduce="max_abs",
            role="error",
            axes=AXES,
        )
        self._draw_cell_table()
        self._draw_ledger()
        self._draw_captions()
        self._draw_histogram()
        self.code.set_texts([self._snippet(b) for b in BITS])
        self._compare()

    def _compare(self) -> None:
        """The curves of the other granularities: the slow part, so it comes last."""
        units = self.unit_control.options if self._small else []
        missing = [u for u in units if u in COMPARED and u not in self.rows]
        problems = []
        for unit in missing:
            kind, size = _granularity(unit)
            try:
                table = sweep(
                    self.weight, "affine", BITS, calibration=self.calibration,
                    granularity=kind, group_size=size, **self._scheme,
                )  # fmt: skip
            except ValueError as error:
                problems.append(f"{unit} is not on the chart: {error}")
            else:
                self.rows[unit] = list(table)
        self._draw_curves()
        self._judge_guess()
        if problems:
            raise ValueError("; ".join(problems))

    def _reveal(self) -> None:
        """Draw the curves once the learner has predicted or dragged: before, they would give the
        answer away."""
        if not self._revealed:
            self._revealed = True
            self._draw_curves()

    # ---------------------------------------------------------------- drawing

    def _new_cell(self) -> None:
        row, column = self.original_view.cursor
        if row >= 0 and (row, column) != self._cell:
            self._cell = (row, column)
            self._draw_cell_table()
            self._draw_histogram()

    def _draw_cell_table(self) -> None:
        self.cell_table.set_rows(affine_rows(self.weight, self.tensors, *self._cell))

    def _draw_histogram(self) -> None:
        row, column = self._cell
        counts, edges = self._spread
        x = float(self.weight[row, column])
        here = slice(row, row + 1), slice(column, column + 1)
        nearest = [float(q.window(*here)) for q in self.tensors]
        levels = [q.levels(row, column).numpy() for q in self.tensors]
        self.histogram.set_figures(
            levels_histogram(counts, edges, levels, x, nearest),
            summary=[
                f"Histogram of the layer's {self.weight.numel()} weights, with the {len(open_to)} "
                f"levels open to weight {row}, {column}: {x:.4f} goes to {to:.4f}"
                for open_to, to in zip(levels, nearest, strict=True)
            ],
        )

    def _draw_curves(self) -> None:
        chosen = self.unit_control.value
        what = self.metric_control.value
        column = "output_error" if what == OUTPUT else "relative_error"
        curves = {
            unit: [row[column] for row in self.rows[unit]]
            for unit in self.unit_control.options
            if unit in self.rows and (unit in COMPARED or unit == chosen)
        }
        self.note.text = "" if self._small else LARGE_NOTE
        self.curves.set_figures(
            error_curves(BITS, curves, chosen, drawn=self._revealed),
            summary=[
                f"Relative error of the {what} with one scale for {_each(chosen)}, at {b} bits "
                f"{_percent(curves[chosen][i])}"
                for i, b in enumerate(BITS)
            ],
        )

    def _draw_ledger(self) -> None:
        ledgers = [q.ledger for q in self.tensors]
        names = dict.fromkeys(item.name for ledger in ledgers for item in ledger.items)
        kilobytes = 2 * self.weight.numel() / 1000
        self.ledger_table.set_rows(
            [
                *((name, [f"{x.per_weight(name):.4g}" for x in ledgers], "") for name in names),
                ("bits per weight", [f"{x.bits_per_weight:.4g}" for x in ledgers], "codes"),
                ("this layer", [f"{x.nbytes / 1000:.4g} kB" for x in ledgers], ""),
                ("in 16 bits", f"{kilobytes:.4g} kB", "wait"),
            ]
        )

    def _draw_captions(self) -> None:
        self.caption.set_texts(
            [
                self._sentence(b, q, row)
                for b, q, row in zip(
                    BITS, self.tensors, self.rows[self.unit_control.value], strict=True
                )
            ]
        )

    def _sentence(self, bits: int, q: QuantizedTensor, row: dict[str, Any]) -> str:
        """What this bit-width does to the layer, in words."""
        levels = len(q.levels(0, 0))
        unit = self.unit_control.value
        text = (
            f"{bits} bits: {levels} levels for {_each(unit)}. Weights are off by "
            f"{_percent(row['relative_error'])}"
        )
        if self.calibration is not None:
            text += (
                f", the layer's output by {_percent(row['output_error'])} on "
                f"{self.calibration.tokens} tokens of real input"
            )
        split = metrics.error_split(self.weight, q)
        if split.clipping > 0:
            share = split.clipping / split.total
            amount = _percent(share) if share >= 1e-4 else "less than 0.01 %"
            text += f"; {amount} of the squared error is clipping"
        bpw = q.bits_per_weight
        return f"{text}. A weight costs {bpw:.4g} bits, {16 / bpw:.3g} times less than in 16."

    def _snippet(self, bits: int) -> str:
        """The library calls behind the page at this moment."""
        o = self.options
        size = f", group_size={o['group_size']}" if o["group_size"] else ""
        return (
            "import qviz, torch\n\n"
            f"weight = qviz.load_layer({self.source!r}, {self.layer!r})\n"
            f'q = qviz.quantize(weight.float(), "affine", bits={bits},\n'
            f"    symmetric={o['symmetric']}, granularity={o['granularity']!r}{size},\n"
            f"    convention={o['convention']!r}, scale_dtype={o['scale_dtype']})\n"
            "error = weight - q.dequantize()\n"
            "print(q.ledger)"
        )

    def _judge_guess(self) -> None:
        """Compare the prediction with the computed curve and ask why."""
        if self.calibration is None or self.guess_control.index == 0:
            self.verdict.set_texts("")
            return
        self._reveal()
        guess = BITS[self.guess_control.index - 1]
        unit = self.unit_control.value
        errors = dict(zip(BITS, (row["output_error"] for row in self.rows[unit]), strict=True))
        enough = [b for b in BITS if errors[b] <= GUESS_WITHIN]
        at_guess = f"At {guess} bits the output is off by {_percent(errors[guess])}"
        if not enough:
            verdict = f"{at_guess}, and even 8 bits are not within {_percent(GUESS_WITHIN)} here."
        elif guess == enough[0]:
            verdict = f"Right. {at_guess}."
        else:
            verdict = (
                f"{at_guess}; the fewest that do are {enough[0]}, with "
                f"{_percent(errors[enough[0]])}."
            )
        if errors[4] == 0:  # a layer of zeros: nothing to divide, nothing to ask
            self.verdict.set_texts(verdict)
            return
        step = errors[3] / errors[4]
        self.verdict.set_texts(
            f"{verdict} One bit more divides the error by about {step:.2g} (from 3 to 4). Why "
            f"about that much? Move the scale's slider, and see whether the answer changes."
        )


def _granularity(unit: str) -> tuple[str, int | None]:
    """(granularity, group_size) of an option of the scale's slider."""
    if unit.startswith("group of "):
        return "group", int(unit.removeprefix("group of "))
    return {WHOLE: "tensor", ROW: "channel"}[unit], None


def _each(unit: str) -> str:
    return "the whole matrix" if unit == WHOLE else f"each {unit}"


def _error(weight: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
    return weight - q.dequantize()


def _error_window(
    weight: torch.Tensor, q: QuantizedTensor, rows: slice, columns: slice
) -> torch.Tensor:
    return weight[rows, columns] - q.window(rows, columns)


def _percent(share: float) -> str:
    return f"{number(100 * share, 2 if share < 0.1 else 3)} %"
