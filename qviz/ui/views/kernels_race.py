"""The race: every kernel beside 16-bit weights, as measured here or as recorded elsewhere.

Everything on this part of the page comes from a measurement. The package ships recorded ones, shown
with machine and date; the button measures this machine. All batches are sent ahead, so the slider
needs no kernel.
"""

from typing import Any

from qviz.kernels import registry
from qviz.kernels.ceilings import Ceilings
from qviz.kernels.formats import DEFAULT_FORMAT, FORMATS
from qviz.kernels.measure import BATCHES, measure
from qviz.kernels.records import Record, recorded, title
from qviz.kernels.registry import BASELINE
from qviz.kernels.results import Measurement
from qviz.kernels.shapes import SHAPES
from qviz.ui.figures.kernels import points_of, roofline, speedups, times
from qviz.ui.views.background import Background
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.kernels_chosen import batches_of, kernels_of, only, shape_names
from qviz.ui.views.kernels_race_words import (
    AXIS_OF,
    EQUATION,
    SPOKEN,
    TERMS,
    figure_rows,
    reasons,
    roof_in_words,
    sentence,
    times_in_words,
)
from qviz.ui.views.kernels_words import busy_words, device_words
from qviz.ui.views.lesson_page import LessonPage
from qviz.ui.views.parts import LessonPart
from qviz.ui.views.prediction import YOUR_GUESS, Prediction
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
    section,
    show_only,
    stack,
)

HERE = "this machine"
FIRST_SHAPE = ("Llama-3.2-1B", "o_proj")  # 2048 × 2048: some seconds on two cores
SECONDS = 0.15  # of timing for each kernel and batch
MEASURE, STOP = "Measure it here", "Stop measuring"
NEVER, BEYOND = "never", "at every batch here"


class Race(LessonPart):
    """Controls, charts and tables of the first part. Plain Python, no browser needed."""

    keys = ("tokens", "figures", "shape", "format", "kernel")  # its fields

    shown: Measurement | None  # one shape, one format

    def __init__(self, page: LessonPage) -> None:
        super().__init__(page)
        self.records: list[Record] = recorded()
        self.live: dict[tuple[tuple[int, int], str], Measurement] = {}
        self._selected: tuple[Any, Measurement | None] = ((), None)
        self._shapes = shape_names(p.shape for r in self.records for p in r.measurement.points)
        self._ceilings: Ceilings | None = None  # of this machine, once they were measured
        self._build()
        self._wire()

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
        return batches_of(self.shown)

    @property
    def kernels(self) -> list[str]:
        """Those that were measured, the 16-bit product first."""
        assert self.shown is not None
        return kernels_of(self.shown)

    # ---------------------------------------------------------------- built once, then mutated

    def _build(self) -> None:
        self.lead = self.batch_control = Slider(
            "Tokens at once (batch)", [str(b) for b in BATCHES], ticks=True
        )
        self.source_control = Choice("Figures from", [HERE])
        self.format_control = Choice("Weights stored as", [FORMATS[DEFAULT_FORMAT].title])
        self.shape_control = Choice("Shape, from a model", ["…"])
        self.kernel_control = Choice("Kernel in focus", ["…"])
        self.measuring = Background(
            self.page, self.measure, label=MEASURE, stop=STOP, deed="measure"
        )
        self.prediction = Prediction(
            "Before you drag: up to how many tokens is it faster than 16-bit weights?",
            [NEVER, BEYOND],
            self._verdict, self._draw_speedups, tells=True,
        )  # fmt: skip
        self.times = Chart("Time of one product", height=170)
        self.speedups = Chart("Speed relative to 16 bits", height=215)
        self.roofline = Chart("What memory and arithmetic allow (roofline)", height=215)
        self.charts = stack(
            stack(Text(self.times.label, "h3"), self.times),
            figures_row(
                stack(Text(self.speedups.label, "h3"), self.speedups),
                stack(Text(self.roofline.label, "h3"), self.roofline),
                wide=True,
            ),
        )
        self.origin = Text("", role="wait")
        self.equation = Equation(EQUATION, TERMS, aria=SPOKEN)
        self.table = Readout("The kernel")
        self.absent = Readout("Kernel, and why it is missing")
        self.caption = Caption()
        self.code = Code()
        self.closer = stack(self.kernel_control)
        self.controls = [
            self.closer,
            self.format_control,
            details("Shape and machine", self.shape_control, self.source_control),
            self.measuring.button,
            self.measuring.busy,
            self.prediction.box,
        ]
        self.main = [section("The race", self.origin, self.charts)]
        self.side = [
            section("What bounds the time", self.equation, self.table),
            section("Not in this race", details("Which kernels are missing, and why", self.absent)),
        ]

    def _wire(self) -> None:
        tie_frames(
            self.batch_control, self.times, self.speedups, self.roofline, self.table, self.caption,
            self.equation, self.code,
        )  # fmt: skip

        def measured() -> bool:
            return self.compute() is not None

        self.add(
            "figures", self.source_control,
            names=lambda: ["here", *(one.name for one in self.records)],
        )  # fmt: skip
        self.add(
            "shape", self.shape_control,
            names=lambda: [f"{out}x{columns}" for _, (out, columns) in self._offered_shapes],
        )  # fmt: skip
        self.add("format", self.format_control, names=lambda: self._offered_formats)
        # Until something is measured there is no kernel and no batch to choose.
        self.add("kernel", self.kernel_control, live=measured)
        self.add("tokens", self.batch_control, self.prediction.moved, looks=True, live=measured)
        self.page.on_change(self.prediction.control, "index", self.prediction.answer)

    # ---------------------------------------------------------------- what can be chosen

    def fit(self) -> None:
        """Offer what the chosen source has: a record only its own, this machine everything."""
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
            self.batch_control.set_options([str(batch) for batch in batches_of(measured)])
            others = [name for name in kernels_of(measured) if name != BASELINE]
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

    def compute(self) -> Measurement | None:
        """The chosen shape and format of the measurements or the record; None if there are none
        yet."""
        record = self.record
        found = self.live.get((self.shape, self.format)) if record is None else record.measurement
        if found is None:
            return None
        key = found, self.shape, self.format
        if self._selected[0] != key:
            self._selected = key, only(found, self.shape, self.format)
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
            self.absent.set_rows(reasons({k.kernel.name: k.reason for k in registry.available()
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
            with self.page.quietly():
                self.prediction.reset(ends)
        self.absent.set_rows(reasons(measured.left_out))
        self._draw_figures(measured)

    def _say_origin(self) -> None:
        record = self.record
        if record is not None:
            about = record.measurement.machine
            self.origin.text = (
                f"Recorded on {record.title} (torch {about.get('torch', '?')}), not measured "
                f"here. To know this machine, measure it. {busy_words(record.measurement)}"
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
            [times_in_words(shown, kernels, batch) for batch in batches],
        )
        self._draw_speedups()
        self.roofline.set_figures(
            roofline(shown, kernels, batches, chosen),
            [roof_in_words(shown, chosen, batch) for batch in batches],
        )
        self.table.set_rows(figure_rows(shown, chosen, batches), chosen)
        self.caption.set_texts([sentence(shown, chosen, batch) for batch in batches])
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

    # ---------------------------------------------------------------- measuring here

    def measure(self) -> None:
        """Start measuring the chosen shape and format; the page stays usable meanwhile."""
        if self.record is not None:
            with self.page.quietly():
                shape, format = self.shape, self.format
                self.source_control.index = 0
                self.fit()
                self.shape_control.index = list(self._shapes).index(self._named(shape))
                self.format_control.index = self._offered_formats.index(format)
            self.update()
        shape, format = self.shape, self.format
        self.measuring.start(
            lambda progress, stopped: measure(
                shape, format, BATCHES, seconds=SECONDS, ceilings=self._ceilings,
                progress=progress, stopped=stopped,
            ),
            lambda found: self._take(found, shape, format),
            saying="starting to measure",
        )  # fmt: skip

    def _take(self, found: Measurement, shape: tuple[int, int], format: str) -> None:
        self._ceilings = found.ceilings  # they take seconds and do not change
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
        else:  # the learner has since chosen something else
            self.origin.text += (
                f" Meanwhile {self._named(shape)}, {FORMATS[format].title}, was measured here. "
                f"To see it, choose “{HERE}” under “Figures from”."
            )
