"""What stands beside a GPTQ run: what a second one shows, and one weight's whole story."""

from qviz.study.gptq_contrasts import Contrast
from qviz.study.gptq_plan import Plan
from qviz.study.gptq_walk import Walk
from qviz.ui.figures.gptq import exchange
from qviz.ui.views.gptq_words import MISPRINTS, brief_rows, side_by_side, story_rows
from qviz.ui.widgets import (
    Caption,
    Chart,
    Equation,
    Readout,
    Text,
    details,
    number,
    show_only,
    stack,
)


class SecondRun:
    """Which second run is shown, what it shows and, for a misprint, the line as it is misprinted.
    `box` holds all of it."""

    def __init__(self) -> None:
        self.title = Text("", "h3")
        self.diagnosis = Caption()
        self.diagnosis.add_class("qv-aside")
        wrong = next(iter(MISPRINTS.values()))
        self.misprint = Equation(wrong[0], {"wrong": wrong[1]}, ["wrong"], aria="the wrong line")
        self.misprinted = stack(Text("The line as it is misprinted", "h3"), self.misprint)
        self.box = stack(self.title, self.diagnosis, self.misprinted)

    def say(self, title: str, text: str) -> None:
        self.title.text = title
        self.diagnosis.set_texts(text)
        show_only(self.misprinted, False)

    def draw(self, first: Walk, second: Walk, contrast: Contrast | None, plan: Plan) -> None:
        """`contrast` is what the plan's own run was changed by; None: the run was kept."""
        if contrast is None:
            self.say("Second run: the one you kept", side_by_side(first, second))
            return
        said = f"{contrast.why} {contrast.diagnose(first, second)}"
        self.say(f"Second run: {contrast.named(plan)}", said)
        variant = second.options["variant"]
        if variant is not None:
            self.misprint.mathml, meaning = MISPRINTS[variant]
            self.misprint.terms = {"wrong": meaning}
            show_only(self.misprinted, True)


class WeightStory:
    """The chosen weight: what the moment is about, and behind a button all of it."""

    def __init__(self) -> None:
        self.brief_table = Readout("The chosen weight")
        self.table = Readout("From beginning to end")
        self.exchange = Chart("The chosen weight: received and passed on", height=130)
        self.whole = details("Its whole story", self.table, self.exchange)

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
