"""Status: what went wrong or is being worked on, in words, in the page."""

from __future__ import annotations

import traitlets

from .base import BrowserWidget, module


class Status(BrowserWidget):
    """One line for an error or for work in progress; takes no space when there is neither."""

    _esm = module("status")

    kind = traitlets.Unicode().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)

    def show_error(self, text: str) -> None:
        """An error, announced at once. Say what was wrong, what was expected and what to do."""
        self._show("error", text)

    def busy(self, text: str) -> None:
        """Say what is being computed."""
        self._show("busy", text)

    def clear(self) -> None:
        self._show("", "")

    def _show(self, kind: str, text: str) -> None:
        with self.hold_sync():
            self.kind, self.text = kind, text
