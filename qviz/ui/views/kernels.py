"""Lesson 11: the real kernels, raced, stepped through, and at work in a model."""

from typing import Any

from qviz.ui.views.kernels_inside import Inside
from qviz.ui.views.kernels_race import Race
from qviz.ui.views.kernels_work import AtWork
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.widgets import Choice, column_of, page, show_only, stack

RACE, INSIDE, MODEL = "race", "inside", "model"
PARTS = (RACE, INSIDE, MODEL)


class KernelsLesson(LessonPage):
    """The lesson, in three parts of which one is shown. `.widget` is the page."""

    lesson_number = 11

    def __init__(self) -> None:
        super().__init__()
        self.part_control = Choice("Part", list(PARTS), kind="segmented")
        self.race = Race(self)
        self.inside = Inside(self)
        self.work = AtWork(self)
        self.on_change(self.part_control, "index", self._show_part, COMPUTING)
        self.widget = self._page()
        self._show_part()

    def _page(self) -> Any:
        lesson = self.lesson
        parts: dict[str, Race | Inside | AtWork] = {
            RACE: self.race,
            INSIDE: self.inside,
            MODEL: self.work,
        }
        controls = {name: stack(*part.controls) for name, part in parts.items()}
        captions = {RACE: stack(self.race.caption), MODEL: stack(self.work.caption)}
        whole = page(
            f"{lesson.number} · {lesson.title}",
            lesson.question,
            lead=self.race.batch_control,
            controls=[self.part_control, *controls.values(), self.status],
            main=[box for part in parts.values() for box in part.main],
            side=[box for part in parts.values() for box in part.side],
            caption=stack(*captions.values()),
            foot=self.inside.transport,
        )
        self._of_part = {
            name: [controls[name], *part.main, *part.side] for name, part in parts.items()
        }
        self._of_part[RACE] += [column_of(whole, "qv-lead"), captions[RACE]]
        self._of_part[INSIDE] += [column_of(whole, "qv-foot")]
        self._of_part[MODEL] += [captions[MODEL]]
        self._captions = column_of(whole, "qv-caption-row")
        return whole

    def _show_part(self) -> None:
        chosen = self.part_control.value
        if chosen == INSIDE:
            self.inside.open()
        elif chosen == MODEL:
            self.work.open()
        for name, widgets in self._of_part.items():
            for widget in widgets:
                show_only(widget, name == chosen)
        show_only(self._captions, chosen != INSIDE)
