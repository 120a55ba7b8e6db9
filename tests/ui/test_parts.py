"""A lesson in parts: one is open, links find theirs; work beside the page is said and stopped."""

from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

import qviz.ui.views
from qviz.ui.views.background import Background
from qviz.ui.views.lessons import COURSE
from qviz.ui.views.parts import LessonPart, PartedLesson
from qviz.ui.widgets import Button, Caption, Choice, Code, Slider, column_of, section


class Doubling(LessonPart):
    """Twice what is chosen; the lead is its own."""

    keys = ("first",)

    def __init__(self, page):
        super().__init__(page)
        self.lead = self.number = self.add("first", Slider("A number", ["1", "2"]))
        self.caption, self.main = Caption(), [section("Twice")]

    def compute(self):
        return 2 * int(self.number.value)

    def draw(self, shown):
        self.caption.set_texts(f"{shown}")


class Squaring(LessonPart):
    keys = ("second",)
    has_own = False

    def __init__(self, page):
        super().__init__(page)
        self.choice = self.add("second", Choice("Another", ["3", "4"]))
        self.controls, self.main = [self.choice], [section("Square")]

    def compute(self):
        if self.choice.value == "4":
            raise ValueError("no fours")
        return int(self.choice.value) ** 2


class Parted(PartedLesson):
    lesson = replace(COURSE[1], title="In parts")

    def __init__(self):
        super().__init__()
        self.add_parts("double", "square")
        self.doubling, self.squaring = Doubling(self), Squaring(self)
        self.parts = {"double": self.doubling, "square": self.squaring}
        self.box = section("Of the first, and of others to come")
        self.doubling.also = [self.box]
        self.widget = self.compose_parts(first=[self.box], own=[Button("Something")])
        self.whole(self.update)


def hidden(box):
    return "qv-gone" in box._dom_classes


def test_what_belongs_to_the_open_part_is_on_the_page():
    page = Parted()
    columns = [column_of(page.widget, name) for name in ("qv-lead", "qv-wide")]
    said = column_of(page.widget, "qv-main").children[-1]
    for name, first in (("double", True), ("square", False), ("double", True)):
        page.part_control.index = int(name == "square")
        assert page.part == name and page.current is page.parts[name]
        assert page.doubling.is_open() is first and page.squaring.is_open() is not first
        assert [hidden(c) for c in (*columns, said, page.box)] == [not first] * 4
        assert hidden(page.doubling.main[0]) is not first
        assert hidden(page.squaring.main[0]) is first
    assert page.doubling.shown == 2 and page.squaring.shown == 9


def test_panels_are_there_for_the_parts_they_are_about():
    """Here the code stays where the learner's own layer goes, and the lead with it."""

    class Shared(Parted):
        def compose_parts(self, **frame):
            self.doubling.lead, self.squaring.has_lead = None, False
            return super().compose_parts(lead=self.squaring.choice, code=Code(), **frame)

    page = Shared()
    lead, wide = (column_of(page.widget, name) for name in ("qv-lead", "qv-wide"))
    own, code = wide.children
    assert [hidden(box) for box in (lead, own, code, wide)] == [False] * 4
    page.part_control.index = 1
    assert [hidden(box) for box in (lead, own, code, wide)] == [True, True, False, False]


def test_after_a_failure_the_part_that_is_back_is_on_the_page():
    page = Parted()
    with page.quietly():
        page.squaring.choice.index = 1  # which cannot be computed
    page.part_control.index = 1
    assert "no fours" in page.status.text and page.part == "double"
    assert not hidden(page.doubling.main[0]) and hidden(page.squaring.main[0])


def test_a_link_opens_the_part_that_its_names_belong_to():
    page = Parted()
    page.go({"second": "3"})
    assert page.part == "square" and "first" not in page.whole_state
    page.go({"first": "2"})
    assert page.part == "double" and page.doubling.caption.texts == ["4"]
    assert page.address.state == "first=2"


def test_a_part_that_fails_is_as_it_was():
    page = Parted()
    page.part_control.index = 1
    page.squaring.choice.index = 1
    assert page.status.text == "no fours"
    assert page.squaring.choice.value == "3" and page.squaring.shown == 9


def test_work_beside_the_page_is_said_stopped_and_taken():
    page, go, taken = Parted(), Event(), []

    def work(progress, stopped):
        progress(1, 2, "half")
        said.append(beside.progress.text)
        assert go.wait(20)
        return "whole" if not stopped() else "part"

    said: list[str] = []
    beside = Background(
        page, lambda: beside.start(work, taken.append, saying="beginning"), label="Go", stop="Halt"
    )
    beside.button.click()
    assert beside.button.label == "Halt" and not hidden(beside.busy)
    with pytest.raises(ValueError, match="already running"):
        beside.start(work, taken.append, saying="again")
    beside.button.click()
    go.set()
    beside.wait(20)
    assert (taken, said) == (["part"], ["1 of 2: half"])
    assert beside.button.label == "Go" and hidden(beside.busy)


def test_no_file_of_views_has_several_purposes_worth_of_lines():
    folder = Path(qviz.ui.views.__file__).parent
    long = {
        path.name: lines
        for path in folder.glob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
