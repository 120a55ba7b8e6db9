"""What stands beside a GPTQ run: what a second one shows, and one weight's whole history."""

from qviz.study.gptq_contrasts import Contrast
from qviz.study.gptq_plan import Plan
from qviz.study.gptq_walk import Walk
from qviz.ui.figures.gptq import exchange
from qviz.ui.views.gptq_equation import MISPRINTS, formulas
from qviz.ui.views.gptq_words import brief_rows, side_by_side, story_rows
from qviz.ui.widgets import (
    Caption,
    Chart,
    Equation,
    Readout,
    Text,
    details,
    number,
    stack,
)


class SecondRun:
    """Which second run is shown, and what it shows. `box` holds all of it."""

    def __init__(self) -> None:
        self.title = Text("", "h3")
        self.diagnosis = Caption()
        self.diagnosis.add_class("qv-aside")
        self.box = stack(self.title, self.diagnosis)

    def say(self, title: str, text: str) -> None:
        self.title.text = title
        self.diagnosis.set_texts(text)

    def draw(self, first: Walk, second: Walk, contrast: Contrast | None, plan: Plan) -> None:
        """`contrast` is the change made to the plan's own run; None: the learner kept the run."""
        if contrast is None:
            self.say("Second run: the one you kept", side_by_side(first, second))
            return
        said = f"{contrast.why} {contrast.diagnose(first, second)}"
        self.say(f"Second run: {contrast.named(plan)}", said)


class FormulasNow:
    """The equations of the run, one stage of the step at a time. While a misprint is shown beside
    it they are the misprinted ones, with the error marked. `parts` are for the page."""

    def __init__(self) -> None:
        true = formulas()
        self.equation = Equation(
            true.mathml, true.terms, aria=true.spoken, actives=true.actives, calm=True
        )
        self.note = Text("", role="error")
        self.parts = [self.note, self.equation]

    def show(self, variant: str | None) -> None:
        """The equations of this variant of GPTQ, None: of GPTQ."""
        lines, equation = formulas(variant), self.equation
        with equation.hold_sync():
            equation.mathml, equation.aria = lines.mathml, lines.spoken
            equation.terms, equation.actives = dict(lines.terms), lines.actives
        wrong = "" if variant is None else MISPRINTS[variant][0]
        self.note.text = wrong and f"As misprinted, used by the second run. {wrong}."


class WeightStory:
    """The chosen weight: what the stage is about, and behind a button everything."""

    def __init__(self) -> None:
        self.brief_table = Readout("The chosen weight")
        self.table = Readout("From first step to last")
        self.exchange = Chart("The chosen weight: received and passed on", height=130)
        self.whole = details("Its whole history", self.table, self.exchange)

    def draw(
        self, walk: Walk, cell: tuple[int, int], step: int, moment: str, *, of_two: bool
    ) -> None:
        """At a moment of a step; `of_two`: there is a second run beside this one."""
        story = walk.story(*cell)
        rows = story_rows(walk, story, step)
        label = "The chosen weight" + (", first run" if of_two else "")
        self.brief_table.set_rows(brief_rows(rows, moment), label)
        self.table.set_rows(rows)
        self.exchange.set_figures(
            exchange(story.incoming, story.outgoing),
            summary=(
                f"Weight {story.row}, {story.column}: moved by {number(story.compensation, 3)} in "
                f"all; its error {number(story.error, 3)} moves {len(story.outgoing)} columns"
            ),
        )
