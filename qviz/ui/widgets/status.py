"""Status and KernelWatch: what went wrong, in words, in the page."""

from __future__ import annotations

from typing import Any

import traitlets

from .base import BrowserWidget, module


class Status(BrowserWidget):
    """One line for an error or for work in progress; takes no room while there is neither."""

    _esm = module("status")

    kind = traitlets.Unicode().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)

    def show_error(self, text: str) -> None:
        """An error, announced at once. Say what was wrong, what was expected and what to do."""
        self._show("error", text)

    def busy(self, text: str) -> None:
        """What is being worked on."""
        self._show("busy", text)

    def clear(self) -> None:
        self._show("", "")

    def _show(self, kind: str, text: str) -> None:
        with self.hold_sync():
            self.kind, self.text = kind, text


class KernelWatch(BrowserWidget):
    """Notices that Python is gone and says so in a banner with a button to start again.

    The page looks at its connection and at the kernel's state, and asks for a sign of life now and
    then. A kernel that computes for a long time is busy, not gone: it raises no alarm.
    """

    _esm = module("watch")

    every = traitlets.Float(15.0).tag(sync=True)  # seconds between two signs of life
    patience = traitlets.Float(12.0).tag(sync=True)  # seconds that an idle kernel may take

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self.on_msg(self._on_message)

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if isinstance(content, dict) and content.get("type") == "ping":
            self.send({"type": "pong", "id": content.get("id")})
