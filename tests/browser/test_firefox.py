"""Every lesson in the system's Firefox: it opens, its main control works, nothing is thrown."""

import time
from collections.abc import Iterator

import pytest
from firefox import Firefox, running_firefox

from qviz.ui.views.lessons import LESSONS, Lesson

pytestmark = pytest.mark.browser
CONTROL = ".qv-lead .qv-range, .qv-foot .qv-transport .qv-range"


@pytest.fixture(scope="module")
def firefox() -> Iterator[Firefox]:
    with running_firefox() as one:
        yield one


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.slug)
def test_each_lesson_answers(firefox: Firefox, base: str, lesson: Lesson) -> None:
    firefox.errors.clear()
    firefox.size(1280, 800)
    firefox.open(f"{base}/voila/render/{lesson.notebook}")
    firefox.until("document.body?.dataset.qvizReady", 120)
    control = f"[...document.querySelectorAll('{CONTROL}')].find((e) => e.getClientRects().length)"
    said = "[...document.querySelectorAll('.qv-caption')].some((e) => e.textContent.trim())"
    firefox.until(said, 60)
    time.sleep(2)  # parts that are not open are folded once the page has been drawn
    firefox.until(f"Boolean({control})", 60)
    firefox.run(f"{control}.focus()")
    before = firefox.run(f"{control}.value")
    firefox.press("Home", "ArrowRight")
    firefox.until(f"{control}?.value === '1'", 20)
    firefox.press("End")
    firefox.until(f"{control}?.value === {control}?.max && {control}?.value !== '1'", 20)
    assert firefox.run(said) and before is not None
    assert firefox.run("document.querySelector('#qv-alarm').textContent") == ""
    firefox.size(390, 844)
    firefox.until("document.documentElement.scrollWidth <= 390", 10)
    assert firefox.errors == []


def test_the_gallery_leads_to_a_lesson(firefox: Firefox, base: str) -> None:
    firefox.errors.clear()
    firefox.size(1280, 800)
    firefox.open(f"{base}/voila/render/00_start.ipynb")
    firefox.until("document.querySelectorAll('.qv-path a').length")
    links = firefox.run("[...document.querySelectorAll('.qv-path li a')].map((a) => a.href)")
    assert [link.rsplit("/", 1)[1] for link in links] == [one.notebook for one in LESSONS]
    assert firefox.errors == []
