"""Lesson 11: the real kernels, raced, stepped through, and at work in a model."""

from collections.abc import Mapping
from typing import Any

from qviz.ui.views.frame import compose
from qviz.ui.views.guide_steps import AtLeast, Is, Moved, Step
from qviz.ui.views.kernels_inside import Inside
from qviz.ui.views.kernels_race import Race
from qviz.ui.views.kernels_work import AtWork
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.widgets import Choice, column_of, show_only, stack

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
        "Choose another one under “Look closer at”. Compare its two errors in the table: that of "
        "its arithmetic, and the one that also counts what rounded inputs and scales do.",
        {"part": RACE, "format": "int8"},
        {"part": Is(RACE), "kernel": Moved()},
    ),
    Step(
        "Measure this machine",
        "Press “Measure it here”, twice. Do the intervals of the two runs overlap? Believe of a "
        "figure what survives that.",
        {"part": RACE, "figures": "here", "shape": "256x256"},
        deeds=("measure",),
    ),
    Step(
        "A larger shape",
        "Under “Shape and machine” choose a larger shape and measure again. The smaller a weight, "
        "the more a fixed cost per call weighs: watch the share of the bandwidth.",
        {"part": RACE, "figures": "here", "shape": "256x256"},
        {"shape": Moved()},
        deeds=("measure",),
    ),
    Step(
        "Inside one program",
        "Step until the bytes are fetched. How many are they for one weight? Then choose the NF4 "
        "kernel: what takes the place of subtracting the zero point?",
        {"part": INSIDE},
        {"part": Is(INSIDE), "step": AtLeast(2), "multiplied": Is("triton.nf4")},
    ),
    Step(
        "A whole model",
        "Press “Let both write”. Is the packed model faster here? Is it smaller? Do the two texts "
        "part, and where?",
        {"part": MODEL},
        {"part": Is(MODEL)},
        deeds=("write",),
    ),
)


class KernelsLesson(LessonPage):
    """The lesson, in three parts of which one is shown. `.widget` is the page."""

    lesson_number = 11
    guide_steps = GUIDE

    def __init__(self) -> None:
        super().__init__()
        self.part_control = self.add("part", Choice("Part", list(PARTS), kind="segmented"),
                                     busy=COMPUTING)  # fmt: skip
        self.race = Race(self, lambda: self.part == RACE)
        self.inside = Inside(self, lambda: self.part == INSIDE)
        self.work = AtWork(self, lambda: self.part == MODEL)
        self.prediction = self.race.prediction
        self.parts: dict[str, Race | Inside | AtWork] = {
            RACE: self.race,
            INSIDE: self.inside,
            MODEL: self.work,
        }
        self.widget = self._page()
        self.whole(self.update)

    @property
    def part(self) -> str:
        return str(self.part_control.value)

    @property
    def current(self) -> Any:
        return self.parts[self.part]

    def _page(self) -> Any:
        controls = {name: stack(*part.controls) for name, part in self.parts.items()}
        captions = {RACE: stack(self.race.caption), MODEL: stack(self.work.caption)}
        bar = stack(self.inside.transport)
        whole = compose(
            self,
            lead=self.race.batch_control,
            controls=[self.part_control, *controls.values()],
            main=[box for part in self.parts.values() for box in part.main],
            side=[box for part in self.parts.values() for box in part.side],
            caption=stack(*captions.values()),
            foot=bar,
            code=self.race.code,
        )
        self._of_part = {
            name: [controls[name], *part.main, *part.side] for name, part in self.parts.items()
        }
        self._of_part[RACE] += [
            column_of(whole, "qv-lead"), column_of(whole, "qv-wide"), captions[RACE]
        ]  # fmt: skip
        self._of_part[INSIDE] += [bar]
        self._of_part[MODEL] += [captions[MODEL]]
        self._captions = column_of(whole, "qv-main").children[-1]
        return whole

    def fit(self) -> None:
        self.current.fit()

    def update(self, part: Any = None) -> None:
        """Of the open part. What a model writes is computed by its button alone."""
        for name, widgets in self._of_part.items():
            for widget in widgets:
                show_only(widget, name == self.part)
        show_only(self._captions, self.part != INSIDE)
        if part is None and self.part == MODEL:
            with self.quietly():
                self.fit()
            self.work.look()
            return
        super().update(part)

    def _go(self, state: Mapping[str, str]) -> None:
        """A link that names no part is about the one that its names belong to."""
        if "part" not in state:
            for name, part in self.parts.items():
                if set(state) & set(part.keys):
                    state = {"part": name, **state}
                    break
        super()._go(state)
