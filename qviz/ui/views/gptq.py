"""Lesson 7: GPTQ column by column, by hand first, then on a real layer with its real inputs.

A run is made once, in the kernel; the browser shows any step of it by itself. Words, one weight's
arithmetic and the column's chart follow from the kernel a moment later. A second run may stand
beside the first, at the same step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.exercises.attempt_walk import AttemptWalk
from qviz.exercises.report import StepReport
from qviz.study.gptq_contrasts import CONTRASTS, Contrast, contrasts_for
from qviz.study.gptq_plan import Plan
from qviz.study.gptq_walk import Walk
from qviz.ui.views.cost import cost_rows
from qviz.ui.views.fields import CellField, StepField, ValueField
from qviz.ui.views.frame import compose, tie_frames
from qviz.ui.views.gptq_beside import SecondRun, WeightStory
from qviz.ui.views.gptq_by_hand import ByHandPart
from qviz.ui.views.gptq_controls import (
    KEPT,
    OWN_TEXT,
    SAME_TEXT,
    TEXT_NAMES,
    LayerTexts,
    RunControls,
)
from qviz.ui.views.gptq_pictures import RunPictures, apart
from qviz.ui.views.gptq_words import (
    A_LAYER,
    BY_HAND,
    EQUATION,
    GUESSES,
    GUIDE,
    LIT,
    MOMENTS,
    SPOKEN,
    TERMS,
    adapted,
    guess_judged,
    sentence,
    told,
)
from qviz.ui.views.guide_steps import Step
from qviz.ui.views.layer_page import LayerPage, Opened
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Button,
    Choice,
    Code,
    Equation,
    MatrixView,
    Readout,
    Text,
    TextField,
    Transport,
    as_address,
    details,
    figures_row,
    from_address,
    percent,
    section,
    show_only,
    stack,
)

WIDEST = 8192  # columns: Hessian, factor and errors of more do not fit a session
SHOWN = 1 << 22  # weights; of a larger layer its first rows are shown, which depend on no others
RUN_FIELDS = ("bits", "scale", "order", "levels", "found", "range", "damp", "block", "dtype",
              "text", "tokens", "judge")  # fmt: skip
LONG = 1500  # characters; a longer text of the learner's own is too long for a link


@dataclass(frozen=True, eq=False)
class Held:
    """A run that the learner kept: what it was made of, in a link, and of which layer."""

    opened: Opened
    state: str
    walk: Walk


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows of a layer: a run, perhaps a second one beside it, and why.

    rows      of the layer, of which the weight shown may be a part; plan: what the run is made of
    left_out  the second run that the settings leave no room for
    apart     [in] share of each column in which the two runs differ
    """

    opened: Opened | None
    rows: int
    plan: Plan | None
    first: Walk
    second: Walk | AttemptWalk | None = None
    contrast: Contrast | None = None
    left_out: str = ""
    apart: np.ndarray | None = None


class GptqLesson(LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source   None (the bundled model), "minilm", a directory or a Hub id
    layer    the name of one of its linear layers; with either, the page opens on the real layer
    attempt  what `qviz.step_through` reported of the learner's own function: it stands beside the
             true run on the same weight, at the step where the two part. Instead of a layer

    >>> GptqLesson(attempt=qviz.step_through(my_gptq, weight, calibration))
    """

    lesson_number = 7
    guide_steps: Sequence[Step] = GUIDE
    first_layer = "model.layers.0.mlp.down_proj"
    sources = "Hub id, folder or minilm"  # not a file alone: the model has to run
    shown: Shown | None

    def __init__(
        self,
        source: str | None = None,
        layer: str | None = None,
        *,
        attempt: StepReport | None = None,
    ) -> None:
        self.attempt = attempt
        if attempt is not None:
            self.guide_steps = ()
        super().__init__()
        self.held: Held | None = None
        self.texts = LayerTexts(self._say_progress)
        self._left_out = ""
        self._cell = (0, 0)  # row and column of the weight
        self._following = True  # the cell moves on with the steps
        self._on_bar: Any = ""  # the layer, or the part, whose steps the bar has
        self._asked_of: Any = ""  # the layer that the prediction is about
        self._build_controls()
        self._build_views()
        self.widget = self._page()
        if attempt is not None:
            self.whole(lambda: self._show_attempt(attempt))
            return
        with self.quietly():
            self.part_control.index = 0 if source is None and layer is None else 1
        self.open(source, layer)

    # ---------------------------------------------------------------- what the learner chose

    @property
    def part(self) -> str:
        return A_LAYER if self.attempt is not None else self.part_control.value

    @property
    def step(self) -> int:
        return int(self.transport.index)

    def _is_layer(self) -> bool:
        return self.part == A_LAYER

    def _weight(self) -> torch.Tensor:
        """[rows, in] float32 of the layer, as many rows as are shown."""
        last, columns = self.shown, self.opened.weight.shape[1]
        if last is not None and last.plan is not None and last.opened is self.opened:
            return torch.as_tensor(last.plan.weight)
        if columns > WIDEST:
            raise ValueError(
                f"{self.layer} has {columns} input channels; the page shows layers of up to "
                f"{WIDEST}. qviz.quantize(weight, 'gptq', calibration) has no such limit"
            )
        return self.opened.weight[: max(1, SHOWN // columns)].float()

    def _plan(self) -> Plan:
        """What the first run is made of."""
        c, opened = self.controls, self.opened
        judge = c.text.value if c.judge.value == SAME_TEXT else c.judge.value
        return Plan(
            self._weight(),
            self.texts.sample(opened, c.text.value, int(c.tokens.value)),
            self.texts.of(opened, judge),
            c.options,
        )

    def fit(self) -> None:
        if self.attempt is not None or not self._is_layer():
            return
        c, weight = self.controls, self._weight()
        if self.held is not None and self.held.opened is not self.opened:
            self.held = None
        c.unit.fit(weight.shape[1])
        c.fit_texts(self.texts.own)
        c.fit_tokens(self.texts.of(self.opened, c.text.value))
        plan = self._plan()
        self._left_out = c.fit_beside(contrasts_for(plan), plan, self.held is not None)

    def _say_progress(self, done: int, total: int) -> None:
        self.status.busy(f"Running the model on the text: {done} of {total} pieces")

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        self.transport = Transport(2, label="step", rate=4.0, speeds=(0.25, 1, 4, 16, 64))
        self.part_control = self.add(
            "part", Choice("Part", [BY_HAND, A_LAYER], kind="segmented"), busy=COMPUTING
        )
        self.hand = ByHandPart(self, self.transport)
        self.fields["own"] = ValueField(
            "own", self, "own_text", text=lambda own: own if len(own) <= LONG else "",
            take=lambda text: setattr(self, "own_text", text),
        )  # fmt: skip
        self.fields["kept"] = ValueField(
            "kept", self, "held", text=lambda held: "" if held is None else held.state,
            take=self._take_held,
        )  # fmt: skip
        self.controls = RunControls(self, self._is_layer)
        self.hold_button = Button("Keep this run to compare")
        self.on_press(self.hold_button, self._hold, COMPUTING)
        self.own_text_control = TextField("Your own text", placeholder="paste some text")
        self.own_text_button = Button("Calibrate on it")
        self.on_press(
            self.own_text_button, self._take_own_text, "Reading the text …",
            field=self.own_text_control,
        )  # fmt: skip
        self.fields["step"] = StepField("step", self.transport)
        self.on_change(self.transport, "index", self._new_step)
        self.moment_control = self.add(
            "moment", Choice("Moment of the step", list(MOMENTS), 1, kind="segmented"),
            self._new_moment, looks=True, live=self._is_layer,
        )  # fmt: skip
        self.prediction = Prediction(
            "Before you step: how much of round-to-nearest's output error will GPTQ leave?",
            [words for _, words in GUESSES],
            lambda guess: guess_judged(self._now.first, guess),
            self._draw_errors,
        )
        self.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_views(self) -> None:
        self.pictures = p = RunPictures(self.transport)
        self.add("shown", p.factor_control, lambda: None, looks=True, live=self._is_layer)
        self.add("stretch", p.stretch_control, lambda: None, live=self._is_layer)
        self.fields["weight"] = CellField(
            "weight", self._view, lambda: self._cell, self._place, live=self._is_layer
        )
        for view in (p.now_view, p.pair_views[0]):
            for trait in ("cursor", "pinned"):
                self.on_change(view, trait, lambda view=view: self._point(view))  # type: ignore[misc]
        self.equation = Equation(
            EQUATION, TERMS, [], aria=SPOKEN, actives=[LIT[name] for name in MOMENTS], calm=True
        )
        tie_frames(self.moment_control, self.equation)
        self.story, self.beside = WeightStory(), SecondRun()
        self.cost_table = Readout("What the bits cost")
        self.note = Text("", role="wait")
        self.code = Code()

    def _page(self) -> Any:
        assert self.prediction is not None
        c, p = self.controls, self.pictures
        more = details(
            "More settings",
            c.order, c.scheme, c.static, c.range, c.damp, c.block, c.dtype, p.stretch_control,
        )  # fmt: skip
        data = details(
            "Calibration text",
            c.text, c.tokens, c.judge, self.own_text_control, self.own_text_button,
        )  # fmt: skip
        chosen = [
            self.prediction.box, c.bits, c.unit, self.layer_control, c.beside, self.hold_button,
            more, data,
        ]  # fmt: skip
        self._column = stack(Text(p.column_chart.label, "h3"), p.column_chart)
        charts = figures_row(
            stack(Text(p.errors.label, "h3"), p.errors), self._column, self.beside.box, wide=True
        )
        layer = [section("The layer now", self.note, p.single, p.pair, charts)]
        side = [
            section("What happens here", self.moment_control, self.equation),
            section(
                "",
                self.story.brief_table,
                self.story.whole,
                details("What the bits cost", self.cost_table),
            ),
        ]
        attempt, hand = self.attempt, self.hand
        boxes = [stack(*chosen), stack(*hand.controls)]
        self._of_part = {
            A_LAYER: [boxes[0], *layer, *side],
            BY_HAND: [boxes[1], *hand.main, *hand.side],
        }
        return compose(
            self,
            controls=[self.part_control, *boxes] if attempt is None else told(attempt),
            controls_heading="You choose" if attempt is None else "Your function",
            main=[*hand.main, *layer],
            side=[*hand.side, *side],
            foot=self.transport,
            code=self.code if attempt is None else None,
            own=[self.source_control, self.open_button, self.bundled_button]
            if attempt is None
            else [],
        )

    # ---------------------------------------------------------------- what is computed

    @property
    def current(self) -> Any:
        return self if self._is_layer() else self.hand

    def update(self, part: Any = None) -> None:
        """Of the open part."""
        for name, boxes in self._of_part.items():
            for box in boxes:
                show_only(box, name == self.part)
        super().update(part)

    def _go(self, state: Mapping[str, str]) -> None:
        """A link that speaks of a run, and not of a part, is about the real layer."""
        by_hand = {"part", "step", "model", *self.hand.keys}
        if "part" not in state and set(state) - by_hand:
            state = {"part": A_LAYER, **state}
        super()._go(state)

    def compute(self) -> Shown:
        """Make the runs that the controls ask for; one that is known where nothing changed."""
        plan, last = self._plan(), self.shown
        first = last.first if last is not None and _same(last.plan, plan) else plan.walk()
        _ = first.error, first.rtn_error  # what can fail in them belongs here
        name = self.controls.beside_name
        contrast = next((one for one in CONTRASTS if one.name == name), None)
        second: Walk | None = None
        if contrast is not None:
            texts = self.texts
            changed = contrast.apply(plan, lambda text: texts.of(self.opened, text))
            known = last is not None and last.first is first and last.contrast is contrast
            second = last.second if known and last is not None else changed.walk()  # type: ignore[assignment]
            assert second is not None
            _ = second.error
        elif name == KEPT and self.held is not None:
            second = self.held.walk
        return Shown(
            self.opened, len(self.opened.weight), plan, first, second, contrast, self._left_out,
            None if second is None else apart(first, second),
        )  # fmt: skip

    def _hold(self) -> None:
        """Keep the present run; what is changed from now on is compared with it."""
        shown = self._now
        assert shown.opened is not None
        told = {key: self.fields[key].text for key in RUN_FIELDS}
        self.held = Held(shown.opened, as_address(told), shown.first)
        with self.quietly():
            self.fit()
            self.fields["beside"].set(KEPT)
        self.update()

    def _take_held(self, text: str) -> None:
        """From a link: make the run that was kept, before the page's own is set."""
        self.held = None
        if not text:
            return
        for key, value in from_address(text).items():
            if key not in RUN_FIELDS:
                raise ValueError(f"a kept run is made of {', '.join(RUN_FIELDS)}, not of {key}")
            self.fields[key].set(value)
            self.fit()
        self.held = Held(self.opened, text, self._plan().walk())

    @property
    def own_text(self) -> str:
        """The learner's own calibration text."""
        return self.texts.own

    @own_text.setter
    def own_text(self, text: str) -> None:
        self.texts.own = text

    def _take_own_text(self) -> None:
        text = str(self.own_text_control.value).strip()
        if len(text.split()) < 2:
            raise ValueError("type or paste a few words of text first")
        self.own_text = text
        with self.quietly():
            self.fit()
            self.fields["text"].set(OWN_TEXT)
        self.update()

    def _show_attempt(self, report: StepReport) -> None:
        """The learner's run beside the true one, where they part."""
        first = report.walk
        second = None if report.codes is None else AttemptWalk(report)
        self.pictures.name_pair("GPTQ", "yours")
        assert self.prediction is not None
        self.prediction.revealed = True
        for box in self._of_part[BY_HAND]:
            show_only(box, False)
        differing = None if second is None else apart(first, second)
        self.show(self, Shown(None, first.rows, None, first, second, apart=differing))
        at = report.first
        if at is not None and at.step is not None:
            row = self._cell[0] if at.row is None else at.row
            self._cell = (row, int(first.perm[at.step]))
            self.transport.index = at.step
        self._draw_errors()
        self._new_step()

    # ---------------------------------------------------------------- drawing the runs

    @property
    def _now(self) -> Shown:
        assert self.shown is not None
        return self.shown

    def draw(self, shown: Shown) -> None:
        last, first, second = self.shown, shown.first, shown.second
        if last is None or first is not last.first:
            self.pictures.draw_first(first)
        if second is not None and (
            last is None or first is not last.first or second is not last.second
        ):
            self.pictures.draw_pair(first, second)
        self._draw_bar(shown)
        self.pictures.show_pair(second is not None)
        show_only(self._column, second is None)
        show_only(self.beside.box, second is not None)
        self.cost_table.set_rows(cost_rows([first.result]))
        self.shown = shown  # what follows depends on where one looks, and is drawn with every step
        self._draw_words(shown)
        self._draw_errors()
        self._draw_step()
        assert self.prediction is not None
        self.prediction.answer()

    def _draw_bar(self, shown: Shown) -> None:
        """The steps of the run. Another layer begins anew, and is a new question."""
        first = shown.first
        with self.quietly():
            at = min(self.step, first.n) if self._on_bar is shown.opened else 0
            self.transport.set_steps(first.n + 1, at, events=first.events())
            self._on_bar = shown.opened
            if self._asked_of is not shown.opened:
                self._asked_of = shown.opened
                self._cell = (first.rows // 7, int(first.perm[self.step]))
                self._following = True
                if self.attempt is None:
                    assert self.prediction is not None
                    self.prediction.reset()

    def _draw_errors(self) -> None:
        shown = self._now
        assert self.prediction is not None
        self.pictures.draw_errors(shown.first, shown.second, revealed=self.prediction.revealed)

    def _draw_words(self, shown: Shown) -> None:
        first, second = shown.first, shown.second
        parts = adapted(first)
        if first.rows < shown.rows:
            parts.insert(0, (
                f"The first {first.rows} of {shown.rows} rows: rows are rounded independently of "
                f"each other, so this is what a run of the whole layer does to them."
            ))  # fmt: skip
        if shown.left_out:
            title = next(one.title for one in CONTRASTS if one.name == shown.left_out)
            parts.append(f"“{title}” does not apply with these settings; no second run is shown.")
        self.note.text = " ".join(parts)
        if self.attempt is not None:
            self.beside.say("Where they part", self.attempt.summary)
            return
        if isinstance(second, Walk) and shown.plan is not None:
            self.beside.draw(first, second, shown.contrast, shown.plan)
        self.code.set_texts(self._snippet(shown))

    def _snippet(self, shown: Shown) -> str:
        """The library calls behind the page at this moment."""
        assert shown.opened is not None and shown.plan is not None
        c, where = self.controls, (shown.opened.source, shown.opened.layer)
        judge = c.text.value if c.judge.value == SAME_TEXT else c.judge.value
        inputs = call("qviz.load_calibration", *where, text=self._in_code(c.text.value))
        tokens = int(c.tokens.value)
        if tokens < self.texts.of(shown.opened, c.text.value).tokens:
            inputs += f".sample({tokens})"
        options = shown.plan.options
        walk = call("Walk", Name("weight"), Name("inputs"), Name("judge"), **options)
        own = f"your_text = {self.own_text!r}\n" if OWN_TEXT in (c.text.value, judge) else ""
        return (
            f"import qviz, torch\nfrom qviz.study.gptq_walk import Walk\n\n{own}"
            f"weight = {call('qviz.load_layer', *where)}.float()\n"
            f"inputs = {inputs}\n"
            f"judge = {call('qviz.load_calibration', *where, text=self._in_code(judge))}\n"
            f"walk = {walk}\n"
            f"walk.now({self.step}), walk.error[{self.step}], walk.story{self._cell}"
        )

    def _in_code(self, text: str) -> Any:
        return Name("your_text") if text == OWN_TEXT else TEXT_NAMES[text]

    # ---------------------------------------------------------------- drawing a step, a weight

    def look(self) -> None:
        if self._is_layer() and self.shown is not None:
            self._draw_step()

    def _new_step(self) -> None:
        if not self._is_layer() or self.shown is None:
            return
        assert self.prediction is not None
        if self.step > 0:
            self.prediction.moved()
        self._draw_step()

    def _draw_step(self) -> None:
        first = self._now.first
        if self._following and self.step < first.n:
            self._cell = (self._cell[0], int(first.perm[self.step]))
        self._say_step()
        self.pictures.draw_column(first, self.step, self._cell[0])
        self._draw_cell()

    def _new_moment(self) -> None:
        self._say_step()
        self._draw_cell()

    def _say_step(self) -> None:
        shown = self._now
        text = sentence(shown.first, self.step, self.moment_control.value, self._cell[0])
        second, differing = shown.second, shown.apart
        if second is not None and differing is not None:
            both = ((shown.first.turn < self.step) & (second.turn < self.step)).numpy()
            if both.any():
                share = percent(float(differing[both].mean()))
                text += f" Of the weights that both runs have rounded, {share} differ by s/2 or "
                text += "more."
        self.transport.caption = text

    def _view(self) -> MatrixView:
        """The picture in which a weight is held."""
        pair = self.shown is not None and self.shown.second is not None
        return self.pictures.pair_views[0] if pair else self.pictures.now_view

    def _place(self, column: int) -> int:
        """Where a column of the weight stands in that picture."""
        pair = self._now.second is not None
        return column if pair else int(self._now.first.turn[column])

    def _point(self, view: MatrixView) -> None:
        """The learner points at a weight; a click holds it while the steps go on."""
        first = self._now.first
        row, place = view.cursor
        self._following = not view.pinned
        if row < 0 or row >= first.rows or place >= first.n:
            return
        own_order = view is self.pictures.pair_views[0]
        column = place if own_order else int(first.perm[place])
        if (row, column) != self._cell:
            self._cell = (row, column)
            self._say_step()
            self.pictures.draw_column(first, self.step, row)
            self._draw_cell()

    def _draw_cell(self) -> None:
        now = self._now
        self.story.draw(
            now.first, self._cell, self.step, self.moment_control.value,
            of_two=now.second is not None,
        )  # fmt: skip


def _same(one: Plan | None, other: Plan) -> bool:
    """Whether two plans make the same run."""
    return one is not None and (
        one.weight is other.weight
        and one.calibration is other.calibration
        and one.judge is other.judge
        and one.options == other.options
    )
