"""One view per lesson: wires controls to methods and figures.

Each is imported when it is asked for: a page needs one lesson, not all of them.
"""

from importlib import import_module
from typing import Any

from qviz.ui.views.lessons import LESSONS

_WHERE = {"Gallery": "qviz.ui.views.gallery", **{one.view: one.module for one in LESSONS}}

__all__ = [
    "AwqLesson",
    "BitWidthLesson",
    "FormatsLesson",
    "Gallery",
    "GgufLesson",
    "GptqLesson",
    "GranularityLesson",
    "KernelsLesson",
    "Nf4Lesson",
    "ScaleAndZeroPointLesson",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
