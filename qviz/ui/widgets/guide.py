"""Guide: things to try on a page, as steps to click that are ticked off when done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import traitlets

from .base import BrowserWidget, module


class Guide(BrowserWidget):
    """Steps as (title, what to watch). A click calls what `on_step` was given with its number;
    `active` is the step whose words are shown, −1 for none; `done` says which were done here. The
    browser remembers those of earlier visits.
    """

    _esm = module("memory", "guide")

    slug = traitlets.Unicode().tag(sync=True)
    steps = traitlets.List().tag(sync=True)
    active = traitlets.Int(-1).tag(sync=True)
    done = traitlets.List(traitlets.Bool()).tag(sync=True)

    def __init__(self, slug: str, steps: Sequence[tuple[str, str]]) -> None:
        made = [{"title": title, "watch": watch} for title, watch in steps]
        super().__init__(slug=slug, steps=made, done=[False] * len(made))
        self._handlers: list[Callable[[int], Any]] = []
        self.on_msg(self._on_message)

    def on_step(self, handler: Callable[[int], Any]) -> None:
        self._handlers.append(handler)

    def click(self, index: int) -> None:
        """What a click on a step does."""
        if not 0 <= index < len(self.steps):
            raise ValueError(f"step {index} is outside the {len(self.steps)} steps of the guide")
        for handler in list(self._handlers):
            handler(index)

    def tick(self, index: int) -> None:
        """Tick a step off."""
        self.done = [was or i == index for i, was in enumerate(self.done)]

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if isinstance(content, dict) and content.get("type") == "step":
            index = content.get("index")
            if isinstance(index, int) and 0 <= index < len(self.steps):
                self.click(index)
