"""Lesson 7: GPTQ column by column, on a real layer with the inputs it really gets.

A run is made once, in the kernel. Its errors and the factor U are sent to the browser, which shows
the weights at any step from them, forwards and backwards, without the kernel. Words, one weight's
arithmetic and the column's chart follow from the kernel a moment later. A second run may stand
beside the first, at the same step.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration
from qviz.exercises.attempt_walk import AttemptWalk
from qviz.exercises.report import StepReport
from qviz.models.capture import load_calibration
from qviz.models.texts import calibration_texts, evaluation_texts
from qviz.study.gptq_contrasts import CONTRASTS, Contrast, Plan, contrasts_for
from qviz.study.gptq_walk import Walk
from qviz.ui.figures.gptq import column_codes, errors_so_far, exchange
from qviz.ui.views.gptq_words import (
    EQUATION,
    LIT,
    MOMENTS,
    SPOKEN,
    TERMS,
    percent,
    sentence,
    side_by_side,
    spoken_text,
    story_rows,
)
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
    Replay,
    Slider,
    Text,
    TextField,
    Toggle,
    Transport,
    details,
    figures_row,
    link,
    link_matrices,
    number,
    page,
    section,
    show_only,
    stack,
)

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (256, 128, 64, 32)
ROW = "row"
DAMPS = (0.0, 0.0001, 0.001, 0.01, 0.05, 0.1, 0.5)
BLOCKS = (1, 8, 32, 128, 256)
FEW = (16, 64, 256, 1024)  # tokens of the kept sample that a run may be limited to
FIRST_GROUP = "group of 128"
OWN_TEXT = "your own text"
SAME_TEXT = "the calibration text"
NOTHING, HELD = "nothing", "the run you kept"
WIDEST = 8192  # columns: Hessian, factor and errors of more do not fit a session
SHOWN = 1 << 22  # weights; of a larger layer its first rows are shown, which depend on no others
GUESSES = ((1.0, "more than all of it"), (0.75, "three quarters or more"), (0.5, "half or more"),
           (0.25, "a quarter or more"), (0.0, "less than a quarter"))  # fmt: skip
TEXT_NAMES = {spoken_text(n): n for n in [*calibration_texts(), *evaluation_texts()]}
FAMILIES = {"setting": "setting", "honest": "does it still win", "failure": "failure"}
AXES = ("row", "step")
ASPECT = 4 / 3  # of all pictures, so that they stand in line


class GptqLesson(LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source   None (the bundled model), "minilm", a directory or a Hub id
    layer    the name of one of its linear layers
    attempt  what `qviz.step_through` reported of the learner's own function: it stands beside the
             true run on the same weight, at the step where the two part. Instead of a layer

    >>> GptqLesson(attempt=qviz.step_through(my_gptq, weight, calibration))
    """

    lesson_number = 7
    first_layer = "model.layers.0.mlp.down_proj"
    sources = "Hub id, folder or minilm"  # not a file alone: the model has to run
    kept = ("rows", "first", "second", "held", "_contrast", "_texts", "_own_text")

    def __init__(
        self,
        source: str | None = None,
        layer: str | None = None,
        *,
        attempt: StepReport | None = None,
    ) -> None:
        super().__init__()
        self.attempt = attempt
        self.first: Walk | None = None
        self.second: Walk | AttemptWalk | None = None
        self.held: Walk | None = None
        self.rows = 0  # of the layer, of which the weight shown may be a part
        self._contrast: Contrast | None = None
        self._left_out = ""  # the contrast that the present settings leave no room for
        self._own_text = ""
        self._texts: dict[str, Calibration] = {}  # of this layer
        self._parts: dict[tuple[str, int], Calibration] = {}  # of some of a text's tokens
        self._runs: list[tuple[Plan, Walk]] = []  # the first run and what it was made of
        self._cell = (0, 0)  # row and column of the weight
        self._following = True  # the cell moves on with the steps
        self._apart = np.zeros(0)  # [in] share of each column in which the two runs differ
        self._drawn: tuple[Walk | None, Walk | AttemptWalk | None] = (
            None,
            None,
        )  # what the pictures show
        self._drawn_weight: torch.Tensor | None = None
        self._revealed = False
        self._build_controls()
        self._build_views()
        self._wire()
        self.widget = self._page()
        if attempt is None:
            self.open(source, layer)
        else:
            self._show_attempt(attempt)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def step(self) -> int:
        return int(self.transport.index)

    @property
    def options(self) -> dict[str, Any]:
        """The options of `gptq`, as the controls say."""
        unit = self.unit_control.value
        return {
            "bits": BITS[self.bits_control.index],
            "symmetric": self.scheme_control.index == 0,
            "group_size": None if unit == ROW else int(unit.removeprefix("group of ")),
            "act_order": self.order_control.index == 1,
            "static_groups": self.static_control.index == 1,
            "mse": self.range_control.index == 1,
            "damp": DAMPS[self.damp_control.index],
            "block_size": BLOCKS[self.block_control.index],
        }

    def _plan(self) -> Plan:
        """What the first run is made of."""
        whole = self._calibration(self.text_control.value)
        calibration, tokens = whole, int(self.tokens_control.value)
        if tokens < whole.tokens:
            key = self.text_control.value, tokens
            calibration = self._parts.setdefault(key, whole.sample(tokens))
        judged = self.judge_control.value
        judge = whole if judged == SAME_TEXT else self._calibration(judged)
        return Plan(self.weight, calibration, judge, self.options)

    def _calibration(self, text: str) -> Calibration:
        """The layer's inputs on a text, by its name on the page."""
        if text not in self._texts:
            content = self._own_text if text == OWN_TEXT else TEXT_NAMES[text]
            self._texts[text] = load_calibration(
                self.source, self.layer, text=content, progress=self._say_progress
            )
        return self._texts[text]

    def _say_progress(self, done: int, total: int) -> None:
        self.status.busy(f"Running the model on the text: {done} of {total} pieces")

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        self.bits_control = Slider("Bits per code", [str(b) for b in BITS], 1, ticks=True)
        self.unit_control = Slider("Scale per", [ROW])
        self.beside_control = Choice("A second run beside it", [NOTHING])
        self.hold_button = Button("Keep this run to compare")
        self.order_control = Choice(
            "Order of the columns", ["left to right", "act-order"], kind="segmented"
        )
        self.scheme_control = Choice("Levels", ["symmetric", "asymmetric"], kind="segmented")
        self.static_control = Choice(
            "Levels are found", ["when a group is reached", "before the first step"]
        )
        self.range_control = Choice("From", ["the whole range", "the best range (MSE search)"])
        self.damp_control = Slider("Damping", [percent(d) for d in DAMPS], DAMPS.index(0.01))
        self.block_control = Slider("Block size", [str(b) for b in BLOCKS], BLOCKS.index(128))
        self.text_control = Choice("Calibration text", _spoken(calibration_texts()))
        self.own_text_control = TextField("Your own text", placeholder="paste some text")
        self.own_text_button = Button("Calibrate on it")
        self.tokens_control = Slider("Tokens", ["1"])
        self.judge_control = Choice("Errors are measured on", self._judges())
        self.stretch_control = Toggle("Stretch the colours of what is handed on")
        self.factor_control = Choice("Shown", ["factor U", "Hessian H"], kind="segmented")
        self.moment_control = Choice("Moment of the step", list(MOMENTS), 1, kind="segmented")
        self.guess_control = Choice(
            "Before you step: how much of round-to-nearest's output error will GPTQ leave?",
            ["your guess", *(words for _, words in GUESSES)],
        )
        self.transport = Transport(2, label="step", rate=4.0, speeds=(0.25, 1, 4, 16, 64))

    def _build_views(self) -> None:
        self.replay, self.replays = Replay(), (Replay(), Replay())
        self.now_view = MatrixView("Weights now", aspect=ASPECT)
        self.handed_view = MatrixView("This step hands on", aspect=ASPECT)
        self.factor_view = MatrixView("What it knows", aspect=ASPECT)
        self.pair_views = (
            MatrixView("First run", aspect=ASPECT),
            MatrixView("Second run", aspect=ASPECT),
        )
        self.between_view = MatrixView("First − second", aspect=ASPECT)
        self.errors = Chart("Output error so far", height=190)
        self.column_chart = Chart("This column: weights and their codes", height=190)
        self.exchange_chart = Chart("The chosen weight: received and handed on", height=130)
        self.equation = Equation(
            EQUATION, TERMS, [], aria=SPOKEN, actives=[LIT[name] for name in MOMENTS]
        )
        self.cell_table = Readout("The chosen weight")
        self.note = Text("", role="wait")
        self.verdict, self.diagnosis = Caption(), Caption()
        for words in (self.verdict, self.diagnosis):
            words.add_class("qv-aside")
        self.compared = Text("", "h3")  # which second run is shown
        self.code = Code()

    def _wire(self) -> None:
        """First what the browser does alone, then what the kernel does for each control."""
        stepped = (self.now_view, self.handed_view, *self.pair_views, self.between_view)
        link(
            self.transport, "index", (self.errors, "mark"), (self.factor_view, "row_mark"),
            *((view, "frame") for view in stepped),
        )  # fmt: skip
        link(self.factor_control, "index", (self.factor_view, "frame"))
        link(self.moment_control, "index", (self.equation, "frame"))
        link(self.stretch_control, "value", (self.handed_view, "autoscale"))
        link_matrices(self.now_view, self.handed_view)
        link_matrices(*self.pair_views, self.between_view)

        self.on_change(self.transport, "index", self._new_step)
        self.on_change(self.moment_control, "index", self._say_step)
        for control in self._controls()[1:]:
            self.on_change(control, "index", self._recompute, COMPUTING)
        self.on_change(self.guess_control, "index", self._judge_guess)
        for view in (self.now_view, self.pair_views[0]):
            for trait in ("cursor", "pinned"):
                self.on_change(view, trait, self._new_cell_of(view))
        take_own_text = self.handler(self._take_own_text, "Reading the text …")
        self.own_text_button.on_click(take_own_text)
        self.own_text_control.on_submit(take_own_text)
        self.hold_button.on_click(self.handler(self._hold, COMPUTING))

    def _controls(self) -> list[Any]:
        return [
            self.layer_control, self.bits_control, self.unit_control, self.beside_control,
            self.order_control, self.scheme_control, self.static_control, self.range_control,
            self.damp_control, self.block_control, self.text_control, self.tokens_control,
            self.judge_control,
        ]  # fmt: skip

    def _page(self) -> Any:
        lesson = self.lesson
        self._single = figures_row(
            self.now_view, self.handed_view, stack(self.factor_view, self.factor_control)
        )
        self._pair = figures_row(*self.pair_views, self.between_view)
        self._column = stack(Text(self.column_chart.label, "h3"), self.column_chart)
        self._comparison = stack(self.compared, self.diagnosis)
        more = details(
            "More settings",
            self.order_control, self.scheme_control, self.static_control, self.range_control,
            self.damp_control, self.block_control, self.stretch_control,
        )  # fmt: skip
        data = details(
            "Calibration text",
            self.text_control, self.tokens_control, self.judge_control,
            self.own_text_control, self.own_text_button,
        )  # fmt: skip
        own = details("Your own layer", self.source_control, self.open_button, self.bundled_button)
        controls = [
            section("Predict", self.guess_control, self.verdict),
            self.bits_control,
            self.unit_control,
            self.layer_control,
            self.beside_control,
            self.hold_button,
            more,
            data,
            own,
            details("Show the code", self.code),
        ]
        return page(
            f"{lesson.number} · {lesson.title}",
            lesson.question,
            controls=controls if self.attempt is None else _told(self.attempt),
            controls_heading="You choose" if self.attempt is None else "Your function",
            main=[
                section(
                    "The layer now",
                    self.note,
                    self._single,
                    self._pair,
                    figures_row(
                        stack(Text(self.errors.label, "h3"), self.errors),
                        self._column,
                        self._comparison,
                        wide=True,
                    ),
                )
            ],
            side=[
                section("What happens here", self.moment_control, self.equation),
                section("", self.cell_table, self.exchange_chart),
            ],
            foot=[self.status, self.transport],  # in sight wherever the reader is
        )

    # ---------------------------------------------------------------- opening a layer

    def _show_attempt(self, report: StepReport) -> None:
        """The learner's run beside the true one, where they part."""
        first = report.walk
        self.weight, self.rows, self.first = report.weight, first.rows, first
        self.pair_views[0].label, self.pair_views[1].label = "GPTQ", "Yours"
        self.between_view.label = "GPTQ − yours"
        if report.codes is not None:
            self.second = AttemptWalk(report)
        self._draw_runs()
        at = report.first
        if at is not None and at.step is not None:
            row = self._cell[0] if at.row is None else at.row
            self._cell = (row, int(first.perm[at.step]))
            self.transport.index = at.step
        self._revealed = True
        self._draw_errors()
        self._new_step()

    def _show(self, weight: torch.Tensor) -> None:
        rows, columns = weight.shape
        if columns > WIDEST:
            raise ValueError(
                f"{self.layer} has {columns} input channels; the page shows layers of up to "
                f"{WIDEST}. qviz.quantize(weight, 'gptq', calibration) has no such limit"
            )
        self._texts, self._parts, self._runs = {}, {}, []
        self.rows = rows
        self.weight = weight[: max(1, SHOWN // columns)].float()
        self.held = None
        sizes = [f"group of {g}" for g in GROUP_SIZES if g < columns and columns % g == 0]
        with self.quietly():
            options = [ROW, *sizes]
            chosen = FIRST_GROUP if self.first is None else self.unit_control.value
            at = options.index(chosen) if chosen in options else len(options) - 1
            self.unit_control.set_options(options, at)
            self._fit_tokens()
        self._recompute()

    def _fit_tokens(self) -> None:
        """Offer as many tokens as there are: parts of the kept sample, and all."""
        whole = self._calibration(self.text_control.value)
        kept = len(whole.inputs)
        names = [str(n) for n in FEW if n <= kept and n < whole.tokens] + [str(whole.tokens)]
        all_of_them = self.tokens_control.index == len(self.tokens_control.options) - 1
        at = names.index(self.tokens_control.value) if self.tokens_control.value in names else -1
        last = len(names) - 1
        self.tokens_control.set_options(names, last if all_of_them or at < 0 else at)

    def _take_own_text(self) -> None:
        text = str(self.own_text_control.value).strip()
        if len(text.split()) < 2:
            raise ValueError("type or paste a few words of text first")
        self._own_text = text
        self._texts, self._parts, self._runs = {}, {}, []
        with self.quietly():
            names = [*_spoken(calibration_texts()), OWN_TEXT]
            self.text_control.set_options(names, len(names) - 1)
            self.judge_control.set_options(self._judges())
            self._fit_tokens()
        self._recompute()

    def _judges(self) -> list[str]:
        own = [OWN_TEXT] if self._own_text else []
        return [
            *_spoken(evaluation_texts()), SAME_TEXT, *_spoken(calibration_texts()), *own,
        ]  # fmt: skip

    # ---------------------------------------------------------------- computing

    def _recompute(self) -> None:
        """Make the runs that the controls ask for. What can fail comes before the first picture."""
        with self.quietly():
            self._fit_tokens()
        plan = self._plan()
        first = self._walk(plan)
        chosen = self.beside_control.value
        contrast = {_named(contrast): contrast for contrast in CONTRASTS}.get(chosen)
        self._left_out = ""
        if contrast is not None and not contrast.fits(plan):
            self._left_out = contrast.title
            contrast = None
        second = None
        if contrast is not None:
            second = contrast.apply(plan, self._calibration).walk()
            _ = second.error
        elif chosen == HELD:
            second = self.held
        self.first, self.second, self._contrast = first, second, contrast
        self._offer_contrasts(plan)
        self._keep()
        self._draw_runs()

    def _walk(self, plan: Plan) -> Walk:
        """The run of a plan; one that is known where nothing in it has changed."""
        for known, walk in self._runs:
            if (
                known.weight is plan.weight
                and known.calibration is plan.calibration
                and known.judge is plan.judge
                and known.options == plan.options
            ):
                return walk
        walk = plan.walk()
        _ = walk.error, walk.rtn_error  # what can fail in them belongs here
        self._runs = [(plan, walk)]
        return walk

    def _offer_contrasts(self, plan: Plan) -> None:
        names = [_named(contrast) for contrast in contrasts_for(plan)]
        held = [HELD] if self.held is not None else []
        options = [NOTHING, *held, *names]
        now = HELD if self.second is not None else NOTHING
        if self._contrast is not None:
            now = _named(self._contrast)
        with self.quietly():
            self.beside_control.set_options(options, options.index(now))

    def _hold(self) -> None:
        """Keep the present run; what is changed from now on is compared with it."""
        self.held = self.first
        with self.quietly():
            options = [NOTHING, HELD, *(o for o in self.beside_control.options[1:] if o != HELD)]
            self.beside_control.set_options(options, options.index(HELD))
        self._recompute()

    # ---------------------------------------------------------------- drawing the runs

    def _draw_runs(self) -> None:
        first, second = self.first, self.second
        assert first is not None
        if first is not self._drawn[0]:
            self._draw_first(first)
        if second is not None and (first, second) != self._drawn:
            self._apart = _apart(first, second)
            self._draw_pair(first, second)
        self._drawn = (first, second)
        for box in (self._single, self._column):
            show_only(box, second is None)
        for box in (self._pair, self._comparison):
            show_only(box, second is not None)
        self._draw_errors()
        self._draw_words()
        self._new_step()

    def _draw_first(self, walk: Walk) -> None:
        """The pictures of the first run, columns in the order of its steps."""
        same_layer = self._drawn_weight is self.weight
        self._drawn_weight = self.weight
        steps = torch.arange(walk.n)
        limits = _reach(walk.original)
        self._fill(self.replay, walk, steps)
        with self.quietly():
            self.transport.set_steps(
                walk.n + 1, min(self.step, walk.n) if same_layer else 0, events=walk.events()
            )
            if not same_layer:
                self._cell = (walk.rows // 7, int(walk.perm[self.step]))
                self._following = True
                self.guess_control.index = 0
                self._revealed = False
        self.now_view.set_replay(
            self.replay, show="now", window=walk.window, limits=limits, role="codes", axes=AXES
        )
        self.handed_view.set_replay(
            self.replay, show="handed", window=walk.handed_window, limits=_handed_reach(walk),
            role="error", axes=AXES, cells="amounts",
        )  # fmt: skip
        u, h = walk.recording.hinv_chol, walk.hessian
        self.factor_view.set_frames(
            [MatrixFrame(u), MatrixFrame(h)],
            labels=["U, H⁻¹ = UᵀU", "H, damped"],
            limits=[_reach(u[u != 0]), _reach(h)],
            reduce="max_abs", axes=("step", "step"), cells="entries",
        )  # fmt: skip

    def _draw_pair(self, first: Walk, second: Walk | AttemptWalk) -> None:
        """Both runs at the same step, columns in the weight's own order, which they share."""
        limits = _reach(first.original)
        for walk, replay, view in zip((first, second), self.replays, self.pair_views, strict=True):
            self._fill(replay, walk, walk.turn)
            view.set_replay(
                replay, show="now", window=_own_order(walk), limits=limits,
                role="codes", axes=("row", "column"),
            )  # fmt: skip
        a, b = _own_order(first), _own_order(second)
        self.between_view.set_replay(
            self.replays[0], minus=self.replays[1], show="now",
            window=lambda step, rows, columns: a(step, rows, columns) - b(step, rows, columns),
            limits=limits, role="error", axes=("row", "column"), cells="differences",
        )  # fmt: skip

    def _fill(self, replay: Replay, walk: Walk | AttemptWalk, turn: torch.Tensor) -> None:
        """Send a run to the browser; `turn` [in] is the step that rounds each column shown."""
        replay.set_run(
            walk.now(0)[:, turn], walk.now(walk.n)[:, turn],
            walk.errors.T, walk.factor[:, turn], turn,
        )  # fmt: skip

    def _draw_errors(self) -> None:
        """The curves, once the learner has predicted or stepped: before, they would give the
        answer away."""
        first, second = self.first, self.second
        assert first is not None
        names = ("first run", "second run") if self.attempt is None else ("GPTQ", "yours")
        steps = np.arange(first.n + 1)
        curves = {"rtn": ("round to nearest", steps, first.rtn_error)}
        if self._revealed:
            curves["first"] = ("GPTQ" if second is None else names[0], steps, first.error)
            if isinstance(second, Walk):
                curves["second"] = (names[1], steps, second.error)
            elif second is not None:
                curves["second"] = (names[1], *second.error)
        words = "; ".join(f"{label} ends at {percent(y[-1])}" for label, _, y in curves.values())
        self.errors.set_figures(
            errors_so_far(curves),
            summary=f"Relative error of the layer's output against columns rounded: {words}",
        )

    def _draw_words(self) -> None:
        first, second = self.first, self.second
        assert first is not None
        shown = len(self.weight)
        parts = []
        if shown < self.rows:
            parts.append(
                f"The first {shown} of {self.rows} rows: rows are rounded independently of each "
                f"other, so this is what a run of the whole layer does to them."
            )
        parts += _adapted(first)
        if self._left_out:
            parts.append(
                f"“{self._left_out}” has no meaning with these settings; no second run is shown."
            )
        self.note.text = " ".join(parts)
        if self.attempt is not None:
            self.compared.text = "Where they part"
            self.diagnosis.set_texts(self.attempt.summary)
            return
        if isinstance(second, Walk):
            contrast = self._contrast
            if contrast is None:
                self.compared.text = "Second run: the one you kept"
                text = side_by_side(first, second)
            else:
                self.compared.text = f"Second run: {contrast.title}"
                text = f"{contrast.why} {contrast.diagnose(first, second)}"
            self.diagnosis.set_texts(text)
        self._judge_guess()
        self.code.set_texts(self._snippet())

    def _snippet(self) -> str:
        """The library calls behind the page at this moment."""
        o = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        named = self._in_code(self.text_control.value)
        tokens = int(self.tokens_control.value)
        whole = self._calibration(self.text_control.value)
        part = f".sample({tokens})" if tokens < whole.tokens else ""
        judged = self.judge_control.value
        judge = self._in_code(self.text_control.value if judged == SAME_TEXT else judged)
        return (
            "import qviz\n"
            "from qviz.study.gptq_walk import Walk\n\n"
            f"weight = qviz.load_layer({self.source!r}, {self.layer!r}).float()\n"
            f"inputs = qviz.load_calibration({self.source!r}, {self.layer!r}, text={named}){part}\n"
            f"judge = qviz.load_calibration({self.source!r}, {self.layer!r}, text={judge})\n"
            f"walk = Walk(weight, inputs, judge, {o})\n"
            f"walk.now({self.step}), walk.error[{self.step}], walk.story{self._cell}"
        )

    def _in_code(self, text: str) -> str:
        return "your_text" if text == OWN_TEXT else repr(TEXT_NAMES[text])

    # ---------------------------------------------------------------- drawing a step, a weight

    def _new_step(self) -> None:
        if self.step > 0 and not self._revealed:
            self._revealed = True
            self._draw_errors()
        first = self.first
        assert first is not None
        if self._following and self.step < first.n:
            self._cell = (self._cell[0], int(first.perm[self.step]))
        self._say_step()
        self._draw_column()
        self._draw_cell()

    def _say_step(self) -> None:
        first, second = self.first, self.second
        assert first is not None
        text = sentence(first, self.step, self.moment_control.value, self._cell[0])
        if second is not None:
            text += f" {self._differing(first, second)}"
        self.transport.caption = text

    def _differing(self, first: Walk, second: Walk | AttemptWalk) -> str:
        """How many of the weights that both runs have rounded came out differently."""
        both = ((first.turn < self.step) & (second.turn < self.step)).numpy()
        if not both.any():
            return ""
        share = percent(float(self._apart[both].mean()))
        return f"Of the weights that both runs have rounded, {share} differ by s/2 or more."

    def _draw_column(self) -> None:
        first = self.first
        assert first is not None
        at = first.column(min(self.step, first.n - 1))
        row = self._cell[0]
        off = np.sqrt(np.mean((at.position - at.codes) ** 2))
        self.column_chart.set_figures(
            column_codes(at.position, at.codes, (at.qmin, at.qmax), row),
            summary=(
                f"Column {at.column}: {first.rows} weights against their codes, off by "
                f"{number(float(off), 3)} steps (root mean square); row {row} lies at "
                f"{number(at.position[row])} and becomes {number(at.codes[row])}"
            ),
        )

    def _new_cell_of(self, view: MatrixView) -> Any:
        def new_cell() -> None:
            self._point(view)

        return new_cell

    def _point(self, view: MatrixView) -> None:
        """The learner points at a weight; a click holds it while the steps go on."""
        first = self.first
        assert first is not None
        row, place = view.cursor
        self._following = not view.pinned
        if row < 0 or row >= first.rows or place >= first.n:
            return
        column = int(first.perm[place]) if view is self.now_view else place
        if (row, column) != self._cell:
            moved = row != self._cell[0]
            self._cell = (row, column)
            self._draw_cell()
            if moved:
                self._say_step()
                self._draw_column()

    def _draw_cell(self) -> None:
        first = self.first
        assert first is not None
        story = first.story(*self._cell)
        label = "The chosen weight" + (", first run" if self.second is not None else "")
        self.cell_table.set_rows(story_rows(first, story, self.step), label)
        self.exchange_chart.set_figures(
            exchange(story.incoming, story.outgoing),
            summary=(
                f"Weight {story.row}, {story.column}: moved by {number(story.compensation, 3)} in "
                f"all; its error {number(story.error, 3)} moves {len(story.outgoing)} columns"
            ),
        )

    def _judge_guess(self) -> None:
        """Compare the prediction with the run and ask why."""
        first = self.first
        if first is None or self.guess_control.index == 0:
            self.verdict.set_texts("")
            return
        if not self._revealed:
            self._revealed = True
            self._draw_errors()
        left, all_of_it = float(first.error[-1]), float(first.rtn_error[-1])
        if all_of_it == 0:
            self.verdict.set_texts("Rounding to nearest loses nothing here: nothing to guess.")
            return
        share = left / all_of_it
        bounds = [low for low, _ in GUESSES]
        right = next(i for i, low in enumerate(bounds) if share >= low)
        opening = "Right: " if right == self.guess_control.index - 1 else "Not quite: "
        why = (
            "Try calibration text of 16 tokens, or of another kind: does it still win?"
            if share < 1
            else "Which of its settings makes it lose? Look at the tokens and the text first."
        )
        self.verdict.set_texts(
            f"{opening}GPTQ leaves {percent(left)} where round-to-nearest leaves "
            f"{percent(all_of_it)}, that is {percent(share)} of it. {why}"
        )


def _named(contrast: Contrast) -> str:
    return f"{FAMILIES[contrast.family]}: {contrast.title}"


def _spoken(texts: Mapping[str, Any]) -> list[str]:
    return [spoken_text(name) for name in texts]


def _reach(values: torch.Tensor) -> float:
    """The magnitude that 99.5 % of the values keep, where a colour map may end."""
    sizes = values.abs().flatten().float().numpy()
    return float(np.quantile(sizes[:: max(1, len(sizes) // 100_000)], 0.995)) or 1.0


def _handed_reach(walk: Walk) -> float:
    """A colour limit for what steps hand on, which half of the steps reach in places."""
    errors = walk.recording.errors.abs().quantile(0.95, dim=1)  # [in]
    later = walk.recording.hinv_chol.triu(1).abs().quantile(0.95, dim=1)  # [in]
    return float((errors * later).median()) or 1.0


def _own_order(walk: Walk | AttemptWalk) -> Any:
    """Parts of `walk.now` with columns in the weight's own order."""

    def window(step: int, rows: slice, columns: slice) -> torch.Tensor:
        return walk.now(step)[:, walk.turn[columns]][rows]

    return window


def _adapted(walk: Walk) -> list[str]:
    """What the run had to change to be possible."""
    info, said = walk.result.info, []
    if info["damp"] != walk.options["damp"]:
        said.append(
            f"The Hessian had no Cholesky factor with {percent(walk.options['damp'])} damping, so "
            f"it was raised to {percent(info['damp'])}."
        )
    dead = len(info["dead_columns"])
    if dead:
        said.append(
            f"{dead} input channels were 0 in every token of the calibration text; GPTQ sets "
            f"their weights to 0."
        )
    return said


def _apart(first: Walk, second: Walk | AttemptWalk) -> np.ndarray:
    """[in] per column, the share of weights that the two runs put s/2 or more from each other.

    Values that differ by less are the same level, found from slightly different weights.
    """
    a, b = (walk.now(walk.n)[:, walk.turn] for walk in (first, second))
    groups = [first.group_of(int(step)) for step in first.turn]
    half = first.grid.scale.reshape(first.rows, -1)[:, groups] / 2
    far = (a - b).abs() >= half * (1 - 1e-6)
    return np.asarray(far.double().mean(0))


def _told(report: StepReport) -> list[Any]:
    """What the report says, and how to go on."""
    lines = str(report).splitlines()
    return [
        *(
            Text(line, role="good" if report.passed and i == 0 else "")
            for i, line in enumerate(lines)
        ),
        Text(
            "The first run is the true one. Yours shows what your function gave: columns that wait "
            "move only if it emitted its errors and rows of U.",
            role="wait",
        ),
    ]
