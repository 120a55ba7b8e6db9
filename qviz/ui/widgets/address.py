"""Address: the state of a page behind the # of its address, where a link can carry it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import traitlets

from .base import BrowserWidget, module


def as_address(state: Mapping[str, str]) -> str:
    """A state as written behind the #; any text survives, including brackets and spaces.

    >>> as_address({"layer": "experts.up[3]", "bits": "3"})
    'layer=experts.up%5B3%5D&bits=3'
    """
    return urlencode(state)


def from_address(text: str) -> dict[str, str]:
    """The state that `as_address` wrote; ValueError for what is no list of name=value.

    >>> from_address("layer=experts.up%5B3%5D&bits=3")
    {'layer': 'experts.up[3]', 'bits': '3'}
    """
    text = text.removeprefix("#")
    if not text:
        return {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError as error:
        raise ValueError(
            f"the text behind the # of the address, {text[:60]!r}, is not a page's state: write "
            "it as name=value&name=value"
        ) from error
    return dict(pairs)


class Address(BrowserWidget):
    """The address of the page, which follows `state`; `on_ask` hears what a link asks for."""

    _esm = module("address")

    state = traitlets.Unicode().tag(sync=True)
    answered = traitlets.Int(0).tag(sync=True)

    def __init__(self) -> None:
        super().__init__()
        self._ask: Callable[[str], Any] = lambda text: None
        self.on_msg(self._on_message)

    def on_ask(self, handler: Callable[[str], Any]) -> None:
        """`handler` gets the text behind the # when someone follows a link or goes back."""
        self._ask = handler

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if isinstance(content, dict) and content.get("type") == "go":
            try:
                self._ask(str(content.get("state", "")))
            finally:
                self.answered += 1  # from here on the address follows the page again
