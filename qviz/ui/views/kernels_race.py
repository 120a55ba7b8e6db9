"""The race: every kernel beside 16-bit weights, as measured here or as recorded elsewhere.

Nothing on this part of the page is known before something was measured. What ships with the package
is shown as recorded, with machine and date; a press of the button measures this machine. All
batches are sent ahead, so that the slider needs no kernel.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from threading import Event, Thread
from typing import Any

from qviz.kernels import registry
from qviz.kernels.ceilings import Ceilings
from qviz.kernels.formats import DEFAULT_FORMAT, FORMATS
from qviz.kernels.measure import BATCHES, measure
from qviz.kernels.records import Record, recorded, title
from qviz.kernels.registry import BASELINE
from qviz.kernels.results import Measurement, Point
from qviz.kernels.shapes import SHAPES
from qviz.ui.figures.kernels import points_of, roofline, speedups, times
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.kernels_words import (
    activations,
    bandwidth_name,
    bound_words,
    busy_words,
    compared,
    device_words,
    duration,
    share,
    size,
    three,
    why_so_fast,
)
from qviz.ui.views.lesson_page import LessonPage
from qviz.ui.views.prediction import YOUR_GUESS, Prediction
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Button,
    Caption,
    Chart,
    Choice,
    Code,
    Equation,
    Readout,
    Slider,
    Status,
    Text,
    details,
    figures_row,
    number,
    section,
    show_only,
    stack,
)

HERE = "this machine"
FIRST_SHAPE = ("Llama-3.2-1B", "o_proj")  # 2048 × 2048: some seconds on two cores
SECONDS = 0.15  # of timing for each kernel and batch
MEASURE, STOP = "Measure it here", "Stop measuring"
NEVER, BEYOND = "never", "at every batch here"

EQUATION = """
<math display="block"><mrow>
  <mi data-term="t">t</mi><mo>≥</mo><mi>max</mi><mo>(</mo>
  <mfrac><mi data-term="bytes" mathvariant="normal">bytes</mi>
  <mi data-term="bandwidth">B</mi></mfrac>
  <mo>,</mo>
  <mfrac><mrow data-term="operations"><mn>2</mn><mo>·</mo><mi>m</mi><mo>·</mo><mi>n</mi><mo>·</mo>
  <mi>k</mi></mrow><mi data-term="rate">R</mi></mfrac>
  <mo>)</mo>
</mrow></math>
"""
TERMS = {
    "t": "t: the time of one product Y = X·Wᵀ",
    "bytes": "bytes: the packed weight, the inputs and the outputs, each moved once",
    "bandwidth": "B: bytes a second that this device moves at best, in a plain copy or a plain "
    "read, measured in the same run",
    "operations": "2·m·n·k: a multiplication and an addition for each of m tokens, n outputs, k "
    "inputs",
    "rate": "R: operations a second of the best large product on this device, measured",
}
MEMORY, ARITHMETIC = ["bytes", "bandwidth"], ["operations", "rate"]
AXIS_OF = {"memory": MEMORY, "arithmetic": ARITHMETIC}


class Race:
    """Controls, charts and tables of the first part. Plain Python, no browser needed."""

    keys = ("tokens", "figures", "shape", "format", "kernel")  # its fields

    def __init__(self, page: LessonPage, live: Callable[[], bool]) -> None:
        self._page = page
        self.records: list[Record] = recorded()
        self.live: dict[tuple[tuple[int, int], str], Measurement] = {}
        self.shown: Measurement | None = None  # one shape, one format
        self._selected: tuple[Any, Measurement | None] = ((), None)
        self._shapes = _shape_names(p.shape for r in self.records for p in r.measurement.points)
        self._ceilings: Ceilings | None = None  # of this machine, once they were measured
        self._worker: Thread | None = None
        self._measuring = False
        self._stop = Event()
        self._build()
        self._wire(live)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def record(self) -> Record | None:
        """The chosen record; None for this machine."""
        at = self.source_control.index - 1
        return None if at < 0 else self.records[at]

    @property
    def shape(self) -> tuple[int, int]:
        return self._offered_shapes[int(self.shape_control.index)][1]

    @property
    def format(self) -> str:
        return self._offered_formats[int(self.format_control.index)]

    @property
    def kernel(self) -> str:
        return self.kernel_control.value

    @property
    def batches(self) -> list[int]:
        assert self.shown is not None
        return _batches(self.shown)

    @property
    def kernels(self) -> list[str]:
        """Those that were measured, the 16-bit product first."""
        assert self.shown is not None
        return _kernels(self.shown)

    # ---------------------------------------------------------------- built once, then mutated

    def _build(self) -> None:
        self.batch_control = Slider("Tokens at once (batch)", [str(b) for b in BATCHES], ticks=True)
        self.source_control = Choice("Figures of", [HERE])
        self.format_control = Choice("Weights stored as", [FORMATS[DEFAULT_FORMAT].title])
        self.shape_control = Choice("Shape, from a model", ["…"])
        self.kernel_control = Choice("Look closer at", ["…"])
        self.measure_button = Button(MEASURE)
        # Not the page's status, which every control that is used meanwhile clears.
        self.progress = Status()
        self.busy = stack(self.progress)
        show_only(self.busy, False)
        self.prediction = Prediction(
            "Before you drag: up to how many tokens is it faster than 16 bits?", [NEVER, BEYOND],
            self._verdict, self._draw_speedups, tells=True,
        )  # fmt: skip
        self.times = Chart("Time of one product", height=170)
        self.speedups = Chart("Times as fast as 16 bits", height=215)
        self.roofline = Chart("What memory and arithmetic allow", height=215)
        self.charts = stack(
            stack(Text(self.times.label, "h3"), self.times),
            figures_row(
                stack(Text(self.speedups.label, "h3"), self.speedups),
                stack(Text(self.roofline.label, "h3"), self.roofline),
                wide=True,
            ),
        )
        self.origin = Text("", role="wait")
        self.equation = Equation(EQUATION, TERMS, aria="t is at least the larger of bytes over B "
                                 "and 2 m n k over R")  # fmt: skip
        self.table = Readout("The kernel")
        self.absent = Readout("Kernel, and why it is not here")
        self.caption = Caption()
        self.code = Code()
        self.closer = stack(self.kernel_control)
        self.controls = [
            self.closer,
            self.format_control,
            details("Shape and machine", self.shape_control, self.source_control),
            self.measure_button,
            self.busy,
            self.prediction.box,
        ]
        self.main = [section("The race", self.origin, self.charts)]
        self.side = [
            section("What bounds the time", self.equation, self.table),
            section("Not in this race", details("Which kernels, and why not", self.absent)),
        ]

    def _wire(self, live: Callable[[], bool]) -> None:
        tie_frames(
            self.batch_control, self.times, self.speedups, self.roofline, self.table, self.caption,
            self.equation, self.code,
        )  # fmt: skip
        page = self._page

        def measured() -> bool:
            return live() and self.compute() is not None

        page.add(
            "figures", self.source_control, self.update, live=live,
            names=lambda: ["here", *(one.name for one in self.records)],
        )  # fmt: skip
        page.add(
            "shape", self.shape_control, self.update, live=live,
            names=lambda: [f"{out}x{columns}" for _, (out, columns) in self._offered_shapes],
        )  # fmt: skip
        page.add(
            "format", self.format_control, self.update, live=live,
            names=lambda: self._offered_formats,
        )  # fmt: skip
        # Before anything was measured there is no kernel and no batch to choose.
        page.add("kernel", self.kernel_control, self.update, live=measured)
        page.add("tokens", self.batch_control, self.prediction.moved, looks=True, live=measured)
        page.on_change(self.prediction.control, "index", self.prediction.answer)
        page.on_press(self.measure_button, self.press, deed="measure")

    # ---------------------------------------------------------------- what can be chosen

    def fit(self) -> None:
        """Offer what the chosen source has: a record its own, this machine everything."""
        titles = [HERE, *(f"recorded: {one.title}" for one in self.records)]
        if len(self.source_control.options) != len(titles):
            self.source_control.set_options(titles, min(1, len(self.records)))
        names = [name for name, _ in self._offered_shapes]
        first = self._named(SHAPES[FIRST_SHAPE[0]][FIRST_SHAPE[1]])
        opening = self.shape_control.value == "…" and first in names
        self.shape_control.set_options(names, names.index(first) if opening else None)
        self.format_control.set_options([FORMATS[f].title for f in self._offered_formats])
        measured = self.compute()
        if measured is not None:
            self.batch_control.set_options([str(batch) for batch in _batches(measured)])
            others = [name for name in _kernels(measured) if name != BASELINE]
            self.kernel_control.set_options(others or [BASELINE])

    @property
    def _offered_shapes(self) -> list[tuple[str, tuple[int, int]]]:
        record = self.record
        if record is None:
            return list(self._shapes.items())
        shapes = dict.fromkeys(point.shape for point in record.measurement.points)
        return [(self._named(shape), shape) for shape in shapes]

    @property
    def _offered_formats(self) -> list[str]:
        record = self.record
        if record is None:
            return list(FORMATS)
        return list(dict.fromkeys(point.format for point in record.measurement.points))

    def _named(self, shape: tuple[int, int]) -> str:
        """A shape with the first model's layer that has it."""
        return next(name for name, each in self._shapes.items() if each == shape)

    def update(self) -> None:
        self._page.update(self)

    def compute(self) -> Measurement | None:
        """Of what was measured or recorded, the chosen shape and format; None: nothing yet."""
        record = self.record
        found = self.live.get((self.shape, self.format)) if record is None else record.measurement
        if found is None:
            return None
        key = found, self.shape, self.format
        if self._selected[0] != key:
            self._selected = key, _only(found, self.shape, self.format)
        return self._selected[1]

    # ---------------------------------------------------------------- drawing

    def look(self) -> None:
        """The browser shows any batch by itself."""

    def draw(self, measured: Measurement | None) -> None:
        another, self.shown = self.shown is not measured, measured
        for widget in (self.charts, self.closer, self.prediction.box):
            show_only(widget, measured is not None)
        self._say_origin()
        if measured is None:
            self.table.set_rows([], "The kernel")
            self.absent.set_rows(_reasons({k.kernel.name: k.reason for k in registry.available()
                                           if k.reason is not None}))  # fmt: skip
            self.caption.set_texts(
                f"“{MEASURE}” times every kernel that takes "
                f"{FORMATS[self.format].title} beside 16-bit weights."
            )
            self.code.set_texts(self._snippet(None))
            self.equation.actives = []
            return
        if another:
            ends = [NEVER, *(str(b) for b in self.batches[:-1]), BEYOND]
            with self._page.quietly():
                self.prediction.reset(ends)
        self.absent.set_rows(_reasons(measured.left_out))
        self._draw_figures(measured)

    def _say_origin(self) -> None:
        record = self.record
        if record is not None:
            about = record.measurement.machine
            self.origin.text = (
                f"Recorded on {record.title} (torch {about.get('torch', '?')}), not measured here. "
                f"What this machine does, only measuring tells. {busy_words(record.measurement)}"
            ).strip()
        elif self.shown is None:
            self.origin.text = (
                f"Not measured on this machine yet: press “{MEASURE}”. {device_words()}"
            )
        else:
            self.origin.text = f"Measured on {title(self.shown)}. {busy_words(self.shown)}".strip()

    def _draw_figures(self, shown: Measurement) -> None:
        kernels, batches, chosen = self.kernels, self.batches, self.kernel
        self.times.height = 60 + 30 * len(kernels)
        self.times.set_figures(
            times(shown, kernels, batches, chosen),
            [self._times_in_words(batch) for batch in batches],
        )
        self._draw_speedups()
        self.roofline.set_figures(
            roofline(shown, kernels, batches, chosen),
            [self._roof_in_words(batch) for batch in batches],
        )
        self._draw_table()
        self.caption.set_texts([self._sentence(batch) for batch in batches])
        self.code.set_texts([self._snippet(batch) for batch in batches])
        points = points_of(shown, chosen)
        self.equation.actives = [
            AXIS_OF[shown.bound(points[b]).limit] if b in points else [] for b in batches
        ]
        self.prediction.answer()

    def _draw_speedups(self) -> None:
        """The curves are hidden until the learner has guessed or dragged."""
        if self.shown is None:
            return
        drawn = self.prediction.revealed
        figure = speedups(self.shown, self.kernels, self.batches, self.kernel, drawn=drawn)
        words = "Hidden until you have guessed or dragged."
        if drawn:
            words = " ".join(str(one) for one in self.shown.crossovers())
        self.speedups.set_figures(figure, words)

    def _verdict(self, guess: int) -> str:
        if self.shown is None or self.kernel == BASELINE:
            return ""
        crossing = self.shown.crossover(self.kernel, self.format, self.shape)
        truth = NEVER if crossing.faster is None else str(crossing.faster)
        if crossing.slower is None and crossing.faster is not None:
            truth = BEYOND
        answer = self.prediction.control.value
        said = "" if answer == YOUR_GUESS else "Right. " if answer == truth else f"Not {answer}. "
        if said and (crossing.verdict == "within the spread" or crossing.gaps):
            said = "No guess is right or wrong here. "
        return f"{said}{crossing}"

    def _snippet(self, batch: int | None) -> str:
        """The library calls behind the figures at this moment."""
        record = self.record
        found = call(
            "qviz.kernels.measure", self.shape, self.format, list(BATCHES), seconds=SECONDS
        )
        lines = ["import qviz", ""]
        if record is not None:
            lines[1:] = ["from qviz.kernels.records import recorded", ""]
            found = f"next(r for r in recorded() if r.name == {record.name!r}).measurement"
        lines.append(f"found = {found}")
        if batch is not None:
            chosen = call(
                "found.select", kernel=self.kernel, shape=self.shape, format=self.format,
                batch=batch,
            )  # fmt: skip
            lines += [f"point = {chosen}[0]", "point.time.median, found.speedup(point)"]
        return str(Name("\n".join(lines)))

    # ---------------------------------------------------------------- words

    def _draw_table(self) -> None:
        assert self.shown is not None
        points = points_of(self.shown, self.kernel)
        columns = [self._figures(points.get(batch)) for batch in self.batches]
        rows = [(name, [each[name] for each in columns]) for name in columns[0]]
        rows.append(("inputs", [activations(self.kernel)]))
        self.table.set_rows(rows, self.kernel)

    def _figures(self, point: Point | None) -> dict[str, str]:
        """Label → text of everything that was measured at one batch."""
        shown = self.shown
        assert shown is not None
        names = ("time", "10th–90th percentile", "16 bits take", "as fast as 16 bits", "weight",
                 "in 16 bits", "bandwidth B", "of it used", "of the best product's rate",
                 "memory asks for", "arithmetic asks for", "error of its arithmetic",
                 "… and of inputs, scales")  # fmt: skip
        if point is None:
            return dict.fromkeys(names, "not measured")
        beside, bound = shown.baseline(point), shown.bound(point)
        rate = shown.rate_share(point)
        texts = (
            duration(point.time.median),
            f"{duration(point.time.low)} – {duration(point.time.high)}",
            duration(beside.time.median),
            f"{three(shown.speedup(point))}×",
            size(point.weight_bytes),
            size(beside.weight_bytes),
            bandwidth_name(shown.ceilings),
            share(point.bandwidth / shown.ceilings.bandwidth),
            "not known" if rate is None else share(rate),
            duration(bound.memory),
            "not known" if bound.arithmetic is None else duration(bound.arithmetic),
            share(point.error),
            share(point.total_error),
        )
        return dict(zip(names, texts, strict=True))

    def _sentence(self, batch: int) -> str:
        shown = self.shown
        assert shown is not None
        point = points_of(shown, self.kernel).get(batch)
        tokens = "1 token" if batch == 1 else f"{batch} tokens"
        if point is None:
            return f"{self.kernel} was not measured with {tokens}."
        beside = shown.baseline(point)
        said = f"{compared(point, beside, shown.speedup(point))}."
        notes = dict.fromkeys(f" {p.kernel}: {p.note}." for p in (point, beside) if p.note)
        said += why_so_fast(point, beside, shown.speedup(point), shown.bound(beside))
        return (
            f"With {tokens}, {self.kernel} takes {duration(point.time.median)}: {said} "
            f"{bound_words(point, shown.bound(point))}{''.join(notes)}"
        )

    def _times_in_words(self, batch: int) -> str:
        assert self.shown is not None
        found = {name: points_of(self.shown, name).get(batch) for name in self.kernels}
        listed = ", ".join(
            f"{name} {duration(point.time.median)}"
            for name, point in found.items()
            if point is not None
        )
        return f"With batch {batch}: {listed}."

    def _roof_in_words(self, batch: int) -> str:
        shown = self.shown
        assert shown is not None
        point = points_of(shown, self.kernel).get(batch)
        if point is None:
            return f"{self.kernel} was not measured at batch {batch}."
        return (
            f"{self.kernel} at batch {batch}: {number(point.intensity, 3)} operations per byte, "
            f"{number(point.rate / 1e9, 3)} billion operations per second; memory moves "
            f"{number(shown.ceilings.bandwidth / 1e9, 3)} billion bytes per second at best."
        )

    # ---------------------------------------------------------------- measuring here

    def press(self) -> None:
        """One button begins and stops, so that the keyboard's focus has somewhere to stay."""
        if self._measuring:
            self.stop()
        else:
            self.measure()

    def measure(self) -> None:
        """Begin to measure the chosen shape and format, beside the page: it stays usable."""
        if self._measuring:
            raise ValueError("this page is measuring already; wait for it, or press Stop")
        if self.record is not None:
            with self._page.quietly():
                shape, format = self.shape, self.format
                self.source_control.index = 0
                self.fit()
                self.shape_control.index = list(self._shapes).index(self._named(shape))
                self.format_control.index = self._offered_formats.index(format)
            self.update()
        self._stop.clear()
        self._measuring = True
        self.progress.busy("beginning to measure")
        self.measure_button.label = STOP
        show_only(self.busy, True)
        self._worker = Thread(target=self._measure, args=(self.shape, self.format), daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """Stop after the step that runs; what was measured until then is shown."""
        self._stop.set()
        self.progress.busy("stopping after the step that runs")

    def wait(self, seconds: float | None = None) -> None:
        """Until the measuring has ended."""
        if self._worker is not None:
            self._worker.join(seconds)

    def _measure(self, shape: tuple[int, int], format: str) -> None:
        """In a thread of its own, so that the page answers meanwhile."""

        def progress(done: int, total: int, text: str) -> None:
            if not self._stop.is_set():
                self.progress.busy(f"{done} of {total}: {text}")

        try:
            found = measure(
                shape, format, BATCHES, seconds=SECONDS, ceilings=self._ceilings,
                progress=progress, stopped=self._stop.is_set,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001, said on the page and raised again by it
            self._finish(partial(_again, error))
        else:
            self._finish(lambda: self._take(found, shape, format))

    def _finish(self, then: Callable[[], None]) -> None:
        """In this thread nobody else would tell the learner what went wrong."""
        with self._page.one_at_a_time:
            show_only(self.busy, False)
            self.measure_button.label = MEASURE
            self._measuring = False
            self._page.do(then)

    def _take(self, found: Measurement, shape: tuple[int, int], format: str) -> None:
        self._ceilings = found.ceilings  # they take seconds, and stay what they are
        if not found.points:
            whys = " ".join(f"{name}: {why}" for name, why in found.left_out.items())
            raise ValueError(
                f"nothing could be measured. {whys}"
                if found.complete
                else "stopped before anything was measured"
            )
        self.live[shape, format] = found
        if self.record is None and (self.shape, self.format) == (shape, format):
            self.update()
        else:  # the learner looks at something else meanwhile
            self.origin.text += (
                f" Meanwhile {self._named(shape)}, {FORMATS[format].title}, was measured here: "
                f"choose it, under figures of {HERE}."
            )


# ---------------------------------------------------------------------- names


def _name(model: str, layer: str) -> str:
    out, columns = SHAPES[model][layer]
    return f"{out}×{columns} · {model}, {layer}"


def _shape_names(more: Iterable[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Title → shape of the layers of real models and of `more`, each shape once, the smallest
    first."""
    seen: dict[tuple[int, int], str] = {}
    for model, layers in SHAPES.items():
        for layer, shape in layers.items():
            if layer != "lm_head":
                seen.setdefault(shape, _name(model, layer))
    for shape in more:
        seen.setdefault(shape, f"{shape[0]}×{shape[1]}")
    return {seen[shape]: shape for shape in sorted(seen, key=lambda s: s[0] * s[1])}


def _only(measured: Measurement, shape: tuple[int, int], format: str) -> Measurement | None:
    """One shape and format of a measurement, and who was left out of it; None where it has no such
    points."""
    points = measured.select(shape=shape, format=format)
    if not points:
        return None
    absent = {}
    for key, why in measured.left_out.items():
        kernel, *where = key.split(", ")  # and format or batch, where only that
        if not any(part in FORMATS and part != format for part in where):
            absent[", ".join([kernel, *(part for part in where if part != format)])] = why
    return replace(measured, points=points, left_out=absent)


def _batches(measured: Measurement) -> list[int]:
    return sorted({point.batch for point in measured.points})


def _kernels(measured: Measurement) -> list[str]:
    return list(dict.fromkeys(point.kernel for point in measured.points))


def _again(error: Exception) -> None:
    raise error


def _reasons(left_out: Mapping[str, str]) -> list[tuple[str, str]]:
    """Rows of a table: who is not there, and why. Names may break after a point, so that the table
    fits beside the charts; a reason that begins with the name does without it."""
    return [
        (name.replace(".", ".\u200b"), why.removeprefix(f"{name} "))
        for name, why in left_out.items()
    ]
