"""Lesson 7: GPTQ column by column, by hand first, then on a real layer with its real inputs.

A run is made once, in the kernel; the browser shows any step of it by itself. Words, one weight's
arithmetic and the column's chart follow from the kernel a moment later. A second run may stand
beside the first, at the same step.
"""

from collections.abc import Sequence
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
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.gptq_beside import FormulasNow, SecondRun, WeightStory
from qviz.ui.views.gptq_by_hand import ByHandPart
from qviz.ui.views.gptq_code import judge_of, same_run, shown_rows, snippet
from qviz.ui.views.gptq_controls import KEPT, RunControls
from qviz.ui.views.gptq_equation import MOMENTS
from qviz.ui.views.gptq_held import Keeping
from qviz.ui.views.gptq_pictures import RunPictures, apart
from qviz.ui.views.gptq_weight import ChosenWeight
from qviz.ui.views.gptq_words import (
    A_LAYER,
    BY_HAND,
    GUESSES,
    GUIDE,
    adapted,
    differing,
    guess_judged,
    sentence,
    told,
)
from qviz.ui.views.guide_steps import Step
from qviz.ui.views.layer_page import LayerPage, Opened
from qviz.ui.views.layer_texts import OWN_TEXT, LayerTexts
from qviz.ui.views.parts import PartedLesson
from qviz.ui.views.prediction import Prediction
from qviz.ui.widgets import (
    Choice,
    Code,
    Readout,
    Text,
    Transport,
    details,
    figures_row,
    section,
    show_only,
    stack,
)


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows of a layer: a run, perhaps a second one beside it, and why.

    rows      of the layer, of which the weight shown may be a part; plan: what the run is made of
    left_out  the second run that does not apply with these settings
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


class GptqLesson(PartedLesson, LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source   None (the bundled model), "minilm", a directory or a Hub id
    layer    the name of one of its linear layers; with either, the page opens on the real layer
    attempt  what `qviz.step_through` reported of the learner's own function: it stands beside the
             true run on the same weight, at the step where the two first differ. Instead of a layer

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
        self._left_out = ""
        self.on_bar: Any = ""  # the layer, or the part, whose steps the bar has
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
        return A_LAYER if self.attempt is not None else str(self.part_control.value)

    def keys_of(self, part: Any) -> Sequence[str]:
        """A link that describes a run, but names no part, is about the real layer."""
        shared = {"part", "step", "model", *self.hand.keys}
        run = [key for key in self.fields if key not in shared]
        return run if part is self else self.hand.keys

    @property
    def step(self) -> int:
        return int(self.transport.index)

    def _is_layer(self) -> bool:
        return self.part == A_LAYER

    @property
    def weight(self) -> torch.Tensor:
        """[rows, in] float32 of the layer, the rows that are shown."""
        last = self.shown
        if last is not None and last.plan is not None and last.opened is self.opened:
            return torch.as_tensor(last.plan.weight)
        return shown_rows(self.opened)

    def plan(self) -> Plan:
        """What determines the first run."""
        c, opened = self.run, self.opened
        return Plan(
            self.weight,
            self.texts.sample(opened, c.text.value, int(c.tokens.value)),
            self.texts.of(opened, judge_of(c)),
            c.options,
        )

    def fit(self) -> None:
        if self.attempt is not None or not self._is_layer():
            return super().fit()
        c, weight = self.run, self.weight
        self.keeping.fit(self.opened)
        c.unit.fit(weight.shape[1])
        c.fit_texts(self.texts.own)
        c.fit_tokens(self.texts.of(self.opened, c.text.value))
        plan = self.plan()
        held = self.keeping.held is not None
        self._left_out = c.fit_beside(contrasts_for(plan), plan, held)
        return None

    # ---------------------------------------------------------------- built once, then mutated

    def _build_controls(self) -> None:
        self.transport = Transport(2, label="step", rate=4.0, speeds=(0.25, 1, 4, 16, 64))
        self.add_parts(BY_HAND, A_LAYER)
        self.hand = ByHandPart(self, self.transport)
        self.parts = {BY_HAND: self.hand, A_LAYER: self}
        self.texts = LayerTexts(self, self._use_own_text)
        self.keeping = Keeping(self)
        self.run = RunControls(self, self._is_layer)
        self.add("step", self.transport, self._new_step)
        self.moment_control = self.add(
            "moment", Choice("Stage of the step", list(MOMENTS), 1, kind="segmented"),
            self._new_moment, looks=True, live=self._is_layer,
        )  # fmt: skip
        self.prediction = Prediction(
            "Before you step: how much of the output error of rounding to nearest will GPTQ leave?",
            [words for _, words in GUESSES],
            lambda guess: guess_judged(self._now.first, guess),
            self._draw_errors,
        )
        self.on_change(self.prediction.control, "index", self.prediction.answer)

    def _build_views(self) -> None:
        self.pictures = p = RunPictures(self.transport)
        self.add("shown", p.factor_control, lambda: None, looks=True, live=self._is_layer)
        self.add("stretch", p.stretch_control, lambda: None, live=self._is_layer)
        self.chosen = ChosenWeight(self, p, self._pointed, self._is_layer)
        self.formulas = FormulasNow()
        self.equation = self.formulas.equation
        tie_frames(self.moment_control, self.equation)
        self.story, self.beside = WeightStory(), SecondRun()
        self.cost_table = Readout("What the bits cost")
        self.note = Text("", role="wait")
        self.code = Code()

    def _page(self) -> Any:
        assert self.prediction is not None
        c, p = self.run, self.pictures
        more = details(
            "More settings",
            c.order, c.scheme, c.static, c.range, c.damp, c.block, c.dtype, p.factor_control,
            p.stretch_control,
        )  # fmt: skip
        data = details(
            "Calibration text",
            c.text, c.tokens, c.judge, *self.texts.controls,
        )  # fmt: skip
        self.controls = [
            self.prediction.box, c.bits, c.unit, self.layer_control, c.beside,
            self.keeping.button, more, data,
        ]  # fmt: skip
        self._column = stack(Text(p.column_chart.label, "h3"), p.column_chart)
        charts = figures_row(
            stack(Text(p.errors.label, "h3"), p.errors), self._column, self.beside.box, wide=True
        )
        self.main = [section("The layer now", self.note, p.single, p.pair, charts)]
        self.side = [
            section("What happens here", self.moment_control, *self.formulas.parts),
            section(
                "",
                self.story.brief_table,
                self.story.whole,
                details("What the bits cost", self.cost_table),
            ),
        ]
        if self.attempt is not None:
            said = told(self.attempt)
            return self.compose_parts(
                controls=said, controls_heading="Your function", foot=self.transport
            )
        own = [self.source_control, self.open_button, self.bundled_button]
        return self.compose_parts(code=self.code, own=own, foot=self.transport)

    # ---------------------------------------------------------------- what is computed

    def compute(self) -> Shown:
        """Make the runs that the controls ask for; reuse a run where nothing changed."""
        plan, last = self.plan(), self.shown
        first = last.first if last is not None and same_run(last.plan, plan) else plan.walk()
        _ = first.error, first.rtn_error  # whatever can fail in them must fail here
        name = self.run.beside_name
        contrast = next((one for one in CONTRASTS if one.name == name), None)
        second: Walk | None = None
        if contrast is not None:
            texts = self.texts
            changed = contrast.apply(plan, lambda text: texts.of(self.opened, text))
            known = last is not None and last.first is first and last.contrast is contrast
            second = last.second if known and last is not None else changed.walk()  # type: ignore[assignment]
            assert second is not None
            _ = second.error
        elif name == KEPT and self.keeping.held is not None:
            second = self.keeping.held.walk
        return Shown(
            self.opened, len(self.opened.weight), plan, first, second, contrast, self._left_out,
            None if second is None else apart(first, second),
        )  # fmt: skip

    def _use_own_text(self) -> None:
        with self.quietly():
            self.fit()
            self.fields["text"].set(OWN_TEXT)
        self.update()

    def _show_attempt(self, report: StepReport) -> None:
        """The learner's run beside the true one, where they first differ."""
        first = report.walk
        second = None if report.codes is None else AttemptWalk(report)
        self.pictures.name_pair("GPTQ", "yours")
        assert self.prediction is not None
        self.prediction.revealed = True
        self.show_open()
        parted = None if second is None else apart(first, second)
        self.show(self, Shown(None, first.rows, None, first, second, apart=parted))
        at = report.first
        if at is not None and at.step is not None:
            row = self.chosen.cell[0] if at.row is None else at.row
            self.chosen.cell = (row, int(first.perm[at.step]))
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
        self.formulas.show(second.options["variant"] if isinstance(second, Walk) else None)
        self.shown = shown  # what follows is drawn with every step
        self._draw_words(shown)
        self._draw_errors()
        self._draw_step()
        assert self.prediction is not None
        self.prediction.answer()

    def _draw_bar(self, shown: Shown) -> None:
        """The steps of the run. Another layer starts again and means a new prediction."""
        first = shown.first
        with self.quietly():
            at = min(self.step, first.n) if self.on_bar is shown.opened else 0
            self.transport.set_steps(first.n + 1, at, events=first.events())
            self.on_bar = shown.opened
            if self._asked_of is not shown.opened:
                self._asked_of = shown.opened
                self.chosen.begin(first, self.step)
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
                f"Only the first {first.rows} of {shown.rows} rows are shown. GPTQ rounds rows "
                "independently of each other, so a run of the whole layer does the same to them."
            ))  # fmt: skip
        if shown.left_out:
            title = next(one.title for one in CONTRASTS if one.name == shown.left_out)
            parts.append(f"“{title}” does not apply with these settings: no second run is shown.")
        self.note.text = " ".join(parts)
        if self.attempt is not None:
            self.beside.say("Where the runs first differ", self.attempt.summary)
            return
        if isinstance(second, Walk) and shown.plan is not None:
            self.beside.draw(first, second, shown.contrast, shown.plan)
        assert shown.opened is not None and shown.plan is not None
        said = shown.opened, shown.plan, self.run, self.texts, self.step, self.chosen.cell
        self.code.set_texts(snippet(*said))

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
        self.chosen.follow(self._now.first, self.step)
        self._pointed()

    def _new_moment(self) -> None:
        self._say_step()
        self._draw_story()

    def _pointed(self) -> None:
        self._say_step()
        self.pictures.draw_column(self._now.first, self.step, self.chosen.cell[0])
        self._draw_story()

    def _say_step(self) -> None:
        shown = self._now
        text = sentence(shown.first, self.step, self.moment_control.value, self.chosen.cell[0])
        if shown.second is not None and shown.apart is not None:
            text += differing(shown.first, shown.second, shown.apart, self.step)
        self.transport.caption = text

    def _draw_story(self) -> None:
        now = self._now
        self.story.draw(
            now.first, self.chosen.cell, self.step, self.moment_control.value,
            of_two=now.second is not None,
        )  # fmt: skip
