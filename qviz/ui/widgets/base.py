"""What all widgets of qviz share: how a browser module is assembled, and links.

A widget is a Python class and one JavaScript file of the same folder. `shared.js` is put in front
of each module when the class is made: modules must load within two seconds (anywidget stops
delivering the kernel's messages to a widget whose module came later), so each is a few kilobytes,
self-contained, and imports nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets

_HERE = Path(__file__).parent
# Whole lines alone: what begins behind code might be part of a string.
_COMMENTS = re.compile(r"^[ \t]*(?://[^\n]*|/\*\*.*?\*/[ \t]*)$", re.MULTILINE | re.DOTALL)
_shared: dict[str, Any] = {}  # what all widgets of this kernel have in common


def module(*names: str) -> str:
    """One browser module of the files `names`.js, with the shared helpers in front of them.

    Without comments and indentation: every view of a page carries its module with it.
    """
    text = "".join((_HERE / f"{name}.js").read_text("utf-8") for name in ("shared", *names))
    lines = (line.strip() for line in _COMMENTS.sub("", text).splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _one(key: str, make: Callable[[], Any]) -> Any:
    """The one widget called `key`; another one after it was closed."""
    found = _shared.get(key)
    if found is None or found.comm is None:
        found = _shared[key] = make()
    return found


def plain_layout() -> Any:
    """One empty Layout for all widgets: each of its own would double the models of a page."""
    return _one("layout", ipywidgets.Layout)


class Style(anywidget.AnyWidget):  # type: ignore[misc]
    """The stylesheet of all pages. anywidget puts it into a page once, however many there are."""

    _esm = "export default { render({ el }) { el.hidden = true; } };"
    _css = (_HERE / "style.css").read_text(encoding="utf-8")


def style() -> Any:
    """The one Style of this kernel; every widget of qviz makes sure that it exists."""
    return _one("style", lambda: Style(layout=plain_layout()))


class BrowserWidget(anywidget.AnyWidget):  # type: ignore[misc]
    """Base of all widgets here: brings the stylesheet along and shares one Layout."""

    def __init__(self, **traits: Any) -> None:
        style()
        traits.setdefault("layout", plain_layout())
        super().__init__(**traits)
        self.on_msg(_heard)


def _heard(widget: BrowserWidget, content: Any, _buffers: Any) -> None:
    """Answers a browser that waits until its changes were heard (`sendAfterChanges`)."""
    if isinstance(content, dict) and content.get("type") == "hear":
        widget.send({"heard": content.get("id")})


def link(
    source: ipywidgets.Widget,
    trait: str,
    *targets: tuple[ipywidgets.Widget, str],
    back: bool = True,
) -> list[ipywidgets.Widget]:
    """Tie `source.trait` to each (widget, trait) in the browser; `back`: in both directions.

    The browser does it without the kernel, so a slider moves its views at once even over a slow
    connection; Python sees the values a moment later.
    """
    if not targets:
        raise ValueError("link needs at least one (widget, trait) pair to tie to")
    tie = ipywidgets.jslink if back else ipywidgets.jsdlink
    return [tie((source, trait), target) for target in targets]
