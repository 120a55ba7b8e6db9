"""Head: the subject of a page, the way to the other lessons, and the page's own tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets

from .base import BrowserWidget, module


class Head(BrowserWidget):
    """Title and question, the course's list with the lessons before and after, *Copy link* and
    *Present*. In Voilà it names the browser's tab.

    course         {number, slug, title, href} of each lesson; an empty href: it is not written yet
    slug           which of them this page is; before, after: its neighbours; empty: none
    gallery        the address of the page with all lessons; empty on that page itself
    guessed        the learner has predicted; the browser remembers it for this lesson
    """

    _esm = module("memory", "present", "head")

    title = traitlets.Unicode().tag(sync=True)
    tab = traitlets.Unicode().tag(sync=True)
    question = traitlets.Unicode().tag(sync=True)
    slug = traitlets.Unicode().tag(sync=True)
    before = traitlets.Unicode().tag(sync=True)
    after = traitlets.Unicode().tag(sync=True)
    gallery = traitlets.Unicode().tag(sync=True)
    course = traitlets.List().tag(sync=True)
    guessed = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        title: str,
        question: str = "",
        *,
        tab: str = "",
        slug: str = "",
        before: str = "",
        after: str = "",
        gallery: str = "",
        course: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(
            title=title, question=question, tab=tab or title, slug=slug, before=before,
            after=after, gallery=gallery, course=[dict(one) for one in course],
        )  # fmt: skip
