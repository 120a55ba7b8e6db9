"""The race: every kernel beside 16-bit weights, as measured here or as recorded elsewhere.

Nothing on this part of the page is known before something was measured. What ships with the package
is shown as recorded, with machine and date; a press of the button measures this machine. All
batches are sent ahead, so that the slider needs no kernel.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from threading import Event, Thread

from qviz.kernels import registry
from qviz.kernels.ceilings import Ceilings
from qviz.kernels.formats import DEFAULT_FORMAT, FORMATS
from qviz.kernels.machine import machine
from qviz.kernels.measure import BATCHES, measure
from qviz.kernels.records import Record, recorded, title
from qviz.kernels.registry import BASELINE
from qviz.kernels.results import Bound, Measurement, Point
from qviz.kernels.shapes import SHAPES
from qviz.ui.figures.kernels import points_of, roofline, speedups, times
from qviz.ui.views.lesson_page import EXPECTED, LessonPage
from qviz.ui.widgets import (
    Button,
    Caption,
    Chart,
    Choice,
    Equation,
    Readout,
    Slider,
    Status,
    Text,
    details,
    figures_row,
    link,
    number,
    section,
    show_only,
    stack,
)

HERE = "this machine"
FIRST_SHAPE = ("Llama-3.2-1B", "o_proj")  # 2048 × 2048: some seconds on two cores
SECONDS = 0.15  # of timing for each kernel and batch
MEASURE, STOP = "Measure it here", "Stop measuring"
GUESS = "your guess"
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
    "bandwidth": "B: bytes a second that a plain copy or read moves on this device (the faster of "
    "the two), measured",
    "operations": "2·m·n·k: a multiplication and an addition for each of m tokens, n outputs, k "
    "inputs",
    "rate": "R: operations a second of the best large product on this device, measured",
}
MEMORY, ARITHMETIC = ["bytes", "bandwidth"], ["operations", "rate"]
AXIS_OF = {"memory": MEMORY, "arithmetic": ARITHMETIC}


class Race:
    """Controls, charts and tables of the first part. Plain Python, no browser needed."""

    def __init__(self, page: LessonPage) -> None:
        self._page = page
        self.records: list[Record] = recorded()
        self.live: dict[tuple[tuple[int, int], str], Measurement] = {}
        self.shown: Measurement | None = None  # one shape, one format
        self._offered_shapes: list[tuple[str, tuple[int, int]]] = []
        self._offered_formats: list[str] = []
        self._shapes = _shape_names(p.shape for r in self.records for p in r.measurement.points)
        self._ceilings: Ceilings | None = None  # of this machine, once they were measured
        self._worker: Thread | None = None
        self._measuring = False
        self._stop = Event()
        self._revealed = False
        self._build()
        self._wire()
        self._offer()

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
        return sorted({point.batch for point in self.shown.points})

    @property
    def kernels(self) -> list[str]:
        """Those that were measured, the 16-bit product first."""
        assert self.shown is not None
        return list(dict.fromkeys(point.kernel for point in self.shown.points))

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
        self.guess_control = Choice("Before you drag: up to how many tokens is it faster than 16 "
                                    "bits?", [GUESS])  # fmt: skip
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
        self.absent = Readout()
        self.caption = Caption()
        self.verdict = Caption()
        self.verdict.add_class("qv-aside")
        self.predict = section("Predict", self.guess_control, self.verdict)
        self.closer = stack(self.kernel_control)
        self.controls = [
            self.closer,
            self.format_control,
            details("Shape and machine", self.shape_control, self.source_control),
            self.measure_button,
            self.busy,
            self.predict,
        ]
        self.main = [section("The race", self.origin, self.charts)]
        self.side = [
            section("What bounds the time", self.equation, self.table),
            section("Not in this race", details("Which kernels, and why not", self.absent)),
        ]

    def _wire(self) -> None:
        framed = (self.times, self.speedups, self.roofline, self.table, self.caption, self.equation)
        link(self.batch_control, "index", *((widget, "frame") for widget in framed))
        page = self._page
        page.on_change(self.batch_control, "index", self._reveal)
        page.on_change(self.source_control, "index", self._offer)
        page.on_change(self.shape_control, "index", self._new_choice)
        page.on_change(self.format_control, "index", self._new_choice)
        page.on_change(self.kernel_control, "index", self._draw)
        page.on_change(self.guess_control, "index", self._judge)
        self.measure_button.on_click(page.handler(self.press))

    # ---------------------------------------------------------------- what can be chosen

    def _offer(self) -> None:
        """Offer what the chosen source has: a record its own, this machine everything."""
        with self._page.quietly():
            titles = [f"recorded: {one.title}" for one in self.records]
            at = self.source_control.index
            if not self.source_control.options[1:] and titles:
                at = 1  # a page that opens shows what there is
            self.source_control.set_options([HERE, *titles], at)
            record = self.record
            if record is None:
                self._offered_shapes = list(self._shapes.items())
                self._offered_formats = list(FORMATS)
            else:
                points = record.measurement.points
                shapes = dict.fromkeys(point.shape for point in points)
                self._offered_shapes = [(self._named(shape), shape) for shape in shapes]
                self._offered_formats = list(dict.fromkeys(point.format for point in points))
            first = self._named(SHAPES[FIRST_SHAPE[0]][FIRST_SHAPE[1]])
            names = [name for name, _ in self._offered_shapes]
            chosen = self.shape_control.value
            here = names.index(first) if chosen == "…" and first in names else None
            self.shape_control.set_options(names, here)
            self.format_control.set_options([FORMATS[f].title for f in self._offered_formats])
        self._new_choice()

    def _named(self, shape: tuple[int, int]) -> str:
        """A shape with the first model's layer that has it."""
        return next(name for name, each in self._shapes.items() if each == shape)

    def _new_choice(self) -> None:
        mine, record = self.live.get((self.shape, self.format)), self.record
        found = mine if record is None else record.measurement
        self.shown = None if found is None else _only(found, self.shape, self.format)
        self._show_all()

    # ---------------------------------------------------------------- drawing

    def _show_all(self) -> None:
        for widget in (self.charts, self.closer, self.predict):
            show_only(widget, self.shown is not None)
        self._say_origin()
        if self.shown is None:
            self.table.set_rows([], "The kernel")
            self.absent.set_rows(_reasons({k.kernel.name: k.reason for k in registry.available()
                                           if k.reason is not None}))  # fmt: skip
            self.caption.set_texts(
                f"“{MEASURE}” times every kernel that takes "
                f"{FORMATS[self.format].title} beside 16-bit weights."
            )
            self.verdict.set_texts("")
            self.equation.actives = []
            return
        with self._page.quietly():
            self.batch_control.set_options([str(batch) for batch in self.batches])
            others = [name for name in self.kernels if name != BASELINE]
            self.kernel_control.set_options(others or [BASELINE])
            ends = [NEVER, *(str(b) for b in self.batches[:-1]), BEYOND]
            self.guess_control.set_options([GUESS, *ends], 0)
        self._revealed = False
        self.absent.set_rows(_reasons(self.shown.left_out))
        self._draw()

    def _say_origin(self) -> None:
        record = self.record
        if record is not None:
            about = record.measurement.machine
            self.origin.text = (
                f"Recorded on {record.title} (torch {about.get('torch', '?')}), not measured here. "
                f"What this machine does, only measuring tells. {_busy_words(record.measurement)}"
            ).strip()
        elif self.shown is None:
            self.origin.text = (
                f"Not measured on this machine yet: press “{MEASURE}”. {_device_words()}"
            )
        else:
            self.origin.text = f"Measured on {title(self.shown)}. {_busy_words(self.shown)}".strip()

    def _draw(self) -> None:
        shown = self.shown
        if shown is None:
            return
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
        points = points_of(shown, chosen)
        self.equation.actives = [
            AXIS_OF[shown.bound(points[b]).limit] if b in points else [] for b in batches
        ]
        self._judge()

    def _draw_speedups(self) -> None:
        assert self.shown is not None
        figure = speedups(self.shown, self.kernels, self.batches, self.kernel, drawn=self._revealed)
        words = "Hidden until you have guessed or dragged."
        if self._revealed:
            words = " ".join(str(one) for one in self.shown.crossovers())
        self.speedups.set_figures(figure, words)

    def _reveal(self) -> None:
        """The curves, once the learner has predicted or dragged: before, they give the answer."""
        if self._revealed or self.shown is None:
            return
        self._revealed = True
        self._draw_speedups()
        self._judge()

    def _judge(self) -> None:
        if self.guess_control.index:
            self._reveal()
        if self.shown is None or not self._revealed or self.kernel == BASELINE:
            self.verdict.set_texts("")
            return
        crossing = self.shown.crossover(self.kernel, self.format, self.shape)
        truth = NEVER if crossing.faster is None else str(crossing.faster)
        if crossing.slower is None and crossing.faster is not None:
            truth = BEYOND
        guess = self.guess_control.value
        said = "" if guess == GUESS else "Right. " if guess == truth else f"Not {guess}. "
        if said and (crossing.verdict == "within the spread" or crossing.gaps):
            said = "No guess is right or wrong here. "
        self.verdict.set_texts(f"{said}{crossing}")

    # ---------------------------------------------------------------- words

    def _draw_table(self) -> None:
        assert self.shown is not None
        points = points_of(self.shown, self.kernel)
        columns = [self._figures(points.get(batch)) for batch in self.batches]
        rows = [(name, [each[name] for each in columns]) for name in columns[0]]
        rows.append(("inputs", [_activations(self.kernel)]))
        self.table.set_rows(rows, self.kernel)

    def _figures(self, point: Point | None) -> dict[str, str]:
        """Label → text of everything that was measured at one batch."""
        shown = self.shown
        assert shown is not None
        names = ("time", "10th–90th percentile", "16 bits take", "as fast as 16 bits", "weight",
                 "in 16 bits", "of a copy's bandwidth", "of the best product's rate",
                 "memory asks for", "arithmetic asks for", "error of its arithmetic",
                 "… and of inputs, scales")  # fmt: skip
        if point is None:
            return dict.fromkeys(names, "not measured")
        beside, bound = shown.baseline(point), shown.bound(point)
        rate = shown.rate_share(point)
        texts = (
            _time(point.time.median),
            f"{_time(point.time.low)} – {_time(point.time.high)}",
            _time(beside.time.median),
            f"{_three(shown.speedup(point))}×",
            size(point.weight_bytes),
            size(beside.weight_bytes),
            _percent(shown.bandwidth_share(point)),
            "not known" if rate is None else _percent(rate),
            _time(bound.memory),
            "not known" if bound.arithmetic is None else _time(bound.arithmetic),
            _percent(point.error),
            _percent(point.total_error),
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
        said = f"{_compared(point, beside, shown.speedup(point))}."
        notes = dict.fromkeys(f" {p.kernel}: {p.note}." for p in (point, beside) if p.note)
        return (
            f"With {tokens}, {self.kernel} takes {_time(point.time.median)}: {said} "
            f"{_bound_words(point, shown.bound(point))}{''.join(notes)}"
        )

    def _times_in_words(self, batch: int) -> str:
        assert self.shown is not None
        found = {name: points_of(self.shown, name).get(batch) for name in self.kernels}
        listed = ", ".join(
            f"{name} {_time(point.time.median)}"
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
            f"{number(point.rate / 1e9, 3)} billion operations per second; a copy or read moves "
            f"{number(shown.ceilings.bandwidth / 1e9, 3)} billion bytes per second."
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
                self._offer()
                self.shape_control.index = list(self._shapes).index(self._named(shape))
                self.format_control.index = self._offered_formats.index(format)
            self._new_choice()
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
        except Exception as error:
            words = str(error) if isinstance(error, EXPECTED) else f"a defect of qviz: {error!r}"
            self._finish(lambda: self._page.status.show_error(words))
            if not isinstance(error, EXPECTED):
                raise
        else:
            self._finish(lambda: self._take(found, shape, format))

    def _finish(self, then: Callable[[], None]) -> None:
        with self._page.one_at_a_time:
            show_only(self.busy, False)
            self.measure_button.label = MEASURE
            self._measuring = False
            self._page.status.clear()
            try:
                then()
            except Exception as error:  # in this thread nobody else would tell the learner
                self._page.status.show_error(f"a defect of qviz: {error!r}")
                raise

    def _take(self, found: Measurement, shape: tuple[int, int], format: str) -> None:
        self._ceilings = found.ceilings  # they take seconds, and stay what they are
        if not found.points:
            whys = " ".join(f"{name}: {why}" for name, why in found.left_out.items())
            self._page.status.show_error(
                f"nothing could be measured. {whys}"
                if found.complete
                else "stopped before anything was measured"
            )
            return
        self.live[shape, format] = found
        if self.record is None and (self.shape, self.format) == (shape, format):
            self._new_choice()
        else:  # the learner looks at something else meanwhile
            self.origin.text += (
                f" Meanwhile {self._named(shape)}, {FORMATS[format].title}, was measured here: "
                f"choose it, under figures of {HERE}."
            )


# ---------------------------------------------------------------------- names and numbers


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


def _reasons(left_out: Mapping[str, str]) -> list[tuple[str, str]]:
    """Rows of a table: who is not there, and why. Names may break after a point, so that the table
    fits beside the charts; a reason that begins with the name does without it."""
    return [
        (name.replace(".", ".\u200b"), why.removeprefix(f"{name} "))
        for name, why in left_out.items()
    ]


def _activations(kernel: str) -> str:
    known = registry.kernels().get(kernel)
    return "not known" if known is None else known.activations


def _device_words() -> str:
    """What would be measured here, in a sentence."""
    device = registry.default_device()
    if device.type == "cuda":
        return f"There is a GPU here, {machine(device)['device']}: its kernels are measured."
    about = machine(device)
    return (
        f"There is no GPU here; the kernels of the processor ({about['processor']}, threads: "
        f"{about['threads']}) are measured."
    )


def _busy_words(measured: Measurement) -> str:
    """How far to trust it: other work on the machine, and whether it is complete."""
    words = [] if measured.complete else ["Stopped early: what is missing was not measured."]
    about = measured.machine
    try:
        load, cores = float(about["load before"]), int(about["cores"])
    except (KeyError, ValueError):
        return " ".join(words)
    if load > cores / 4:
        words.append(
            f"In the minute before, the machine was busy (load {load:g} on {cores} cores), with "
            f"other work or an earlier measuring: do not trust small differences."
        )
    return " ".join(words)


def _compared(point: Point, beside: Point, speed: float) -> str:
    """How it compares with 16-bit weights, without a full stop."""
    said = f"{_three(max(speed, 1 / speed))} times as {'fast' if speed > 1 else 'slow'} as"
    if point.time.overlaps(beside.time):
        said = "within the spread as fast as"
    if point.kernel == BASELINE:
        said = "there is no other kernel to set beside these"
    unsteady = dict.fromkeys(each.kernel for each in (point, beside) if _unsteady(each))
    if unsteady:
        said = (
            f"{said} 16-bit weights, but the repeats of {' and of '.join(unsteady)} are more than "
            f"a factor of 2 apart (something else ran?)"
        )
    else:
        said += " 16-bit weights"
    return said


def _bound_words(point: Point, bound: Bound) -> str:
    """What the device's ceilings ask for, and how the measured time compares."""
    asked = f"Moving {size(point.moved_bytes)} asks for {_time(bound.memory)}"
    if bound.arithmetic is not None:
        asked += f", the arithmetic for {_time(bound.arithmetic)}"
    times = _three(point.time.median / bound.seconds)
    took = f"the kernel takes {times} times as long as it"
    if point.time.median < bound.seconds:
        took += ": the device can do more than what was measured as its best"
    return f"{asked}, so {bound.limit} is the tighter bound; {took}."


def _unsteady(point: Point) -> bool:
    """Whether the 10th and the 90th percentile are more than a factor of 2 apart."""
    return point.time.high > 2 * point.time.low


def _time(seconds: float) -> str:
    return f"{_three(1e3 * seconds)} ms" if seconds >= 1e-3 else f"{_three(1e6 * seconds)} µs"


def size(count: float) -> str:
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{_three(count / 10**power)} {unit}"
    return f"{number(count)} bytes"


def _three(value: float) -> str:
    """Three significant digits; all of the whole part where that has more."""
    return number(value, max(3, len(str(int(abs(value))))))


def _percent(share: float) -> str:
    return f"{_three(100 * share)} %"
