"""The frame of every page: head, guide, the lesson's columns, wide panels that open, the bar.

A lesson passes its parts to `compose`. Title, question, neighbours, list of lessons, status,
address and guide come from the page itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qviz.ui.views.lessons import COURSE, GALLERY_NOTEBOOK, Lesson, neighbours
from qviz.ui.widgets import Code, Head, details, link, page

if TYPE_CHECKING:
    from qviz.ui.views.lesson_page import LessonPage


def course_list() -> list[dict[str, Any]]:
    """The course as listed in the gallery and in the head of a page."""
    return [
        {
            "number": one.number,
            "slug": one.slug,
            "title": one.title,
            "question": one.question,
            "promise": one.promise,
            "theme": one.theme,
            "href": one.notebook if one.exists else "",
        }
        for one in COURSE
    ]


def head_of(lesson: Lesson) -> Head:
    """The head of a lesson's page."""
    before, after = neighbours(lesson)
    return Head(
        f"{lesson.number} · {lesson.title}",
        lesson.question,
        tab=lesson.title,
        slug=lesson.slug,
        before=before.slug if before else "",
        after=after.slug if after else "",
        gallery=GALLERY_NOTEBOOK,
        course=course_list(),
    )


def compose(
    lesson: LessonPage,
    *,
    lead: Any = None,
    controls: Sequence[Any] = (),
    main: Sequence[Any] = (),
    side: Sequence[Any] = (),
    below: Sequence[Any] = (),
    caption: Any = None,
    foot: Any = None,
    code: Code | None = None,
    own: Sequence[Any] = (),
    own_label: str = "Your own layer",
    controls_heading: str = "You choose",
) -> Any:
    """The page of a lesson.

    lead      the one control the page is about
    controls  one column; main: sections in the middle; side: sections on the right
    caption   one sentence about what is shown
    below     sections across the page, below the columns
    own       opens across the page under *Your own layer*; code: under *Show the code*
    foot      a bar that stays visible, such as a Transport
    """
    wide = [*below, *([details(own_label, *own)] if own else [])]
    if code is not None:
        wide.append(details("Show the code", code))
    return page(
        head=lesson.head,
        guide=lesson.guide if lesson.guide_steps else None,
        lead=lead,
        controls=controls,
        controls_heading=controls_heading,
        main=main,
        side=side,
        caption=caption,
        wide=wide,
        foot=[lesson.status, *([foot] if foot is not None else []), lesson.address],
    )


def tie_frames(control: Any, *views: Any, trait: str = "index") -> None:
    """Every view shows the frame that the control selects, in the browser, without the kernel.

    The tie runs one way: a view that is given fewer frames must not move the control.
    """
    link(control, trait, *((view, "frame") for view in views), back=False)
