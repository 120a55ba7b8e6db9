"""Lesson 11: real kernels, raced, stepped through, and at work in a model."""

from typing import Any

from qviz.ui.views.guide_steps import AtLeast, Is, Moved, Step
from qviz.ui.views.kernels_inside import Inside
from qviz.ui.views.kernels_race import Race
from qviz.ui.views.kernels_work import AtWork
from qviz.ui.views.parts import PartedLesson

RACE, INSIDE, MODEL = "race", "inside", "model"
PARTS = (RACE, INSIDE, MODEL)

GUIDE = (
    Step(
        "From one token to many",
        "Up to how many tokens is the chosen kernel faster than 16 bits? Guess, then drag the "
        "batch to its right end, and see which of the two bounds lights up in the equation.",
        {"part": RACE},
        {"part": Is(RACE), "tokens": Moved()},
    ),
    Step(
        "Another kernel",
        "Choose another one under “Kernel in focus”. Compare its two errors in the table: the "
        "error of its own arithmetic, and the error that also counts rounded inputs and scales.",
        {"part": RACE, "format": "int8"},
        {"part": Is(RACE), "kernel": Moved()},
    ),
    Step(
        "Measure this machine",
        "Press “Measure it here” twice. Do the 10th–90th percentile intervals of the two runs "
        "overlap? Trust only differences that both runs show.",
        {"part": RACE, "figures": "here", "shape": "256x256"},
        deeds=("measure",),
    ),
    Step(
        "A larger shape",
        "Under “Shape and machine” choose a larger shape and measure again. In a small matrix "
        "the fixed cost of each call counts for more: watch the share of the bandwidth that is "
        "used.",
        {"part": RACE, "figures": "here", "shape": "256x256"},
        {"shape": Moved()},
        deeds=("measure",),
    ),
    Step(
        "Inside one program",
        "Step until the bytes are fetched. How many bytes is that per weight? Then choose the "
        "NF4 kernel: what replaces the subtraction of the zero point?",
        {"part": INSIDE},
        {"part": Is(INSIDE), "step": AtLeast(2), "multiplied": Is("triton.nf4")},
    ),
    Step(
        "A whole model",
        "Press “Let both write”. Is the packed model faster here? Is it smaller? Do the two "
        "texts differ, and from which token on?",
        {"part": MODEL},
        {"part": Is(MODEL)},
        deeds=("write",),
    ),
)


class KernelsLesson(PartedLesson):
    """The lesson, in three parts of which one is shown. `.widget` is the page."""

    lesson_number = 11
    guide_steps = GUIDE

    def __init__(self) -> None:
        super().__init__()
        self.add_parts(*PARTS)
        self.race, self.inside, self.work = Race(self), Inside(self), AtWork(self)
        self.parts = {RACE: self.race, INSIDE: self.inside, MODEL: self.work}
        self.prediction = self.race.prediction
        self.widget = self.compose_parts(code=self.race.code)
        self.whole(self.update)

    def update(self, part: Any = None) -> None:
        """What a model writes is computed only when its button is pressed."""
        if part is None and self.part == MODEL:
            self.show_open()
            with self.quietly():
                self.fit()
            self.work.look()
            return
        super().update(part)
