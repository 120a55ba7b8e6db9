"""Path: the course by theme, which lessons exist and which were visited, and where to start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import traitlets

from .base import BrowserWidget, module


class Path(BrowserWidget):
    """The lessons of a course: {number, slug, title, question, promise, theme, href} each; an empty
    href: it is not written yet. What was visited and guessed the browser remembers by itself."""

    _esm = module("memory", "path")

    course = traitlets.List().tag(sync=True)

    def __init__(self, course: Sequence[dict[str, Any]]) -> None:
        super().__init__(course=[dict(one) for one in course])
