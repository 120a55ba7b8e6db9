"""Sliders, choices and other native form controls; their value changes in the browser at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import traitlets

from .base import BrowserWidget, module


class _Options(BrowserWidget):
    """One of several named options; `index` says which."""

    label = traitlets.Unicode().tag(sync=True)
    description = traitlets.Unicode().tag(sync=True)
    options = traitlets.List(traitlets.Unicode()).tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, label: str, options: Sequence[str], index: int = 0, description: str = "", **more: Any
    ) -> None:
        names = _checked(options, index)
        super().__init__(label=label, options=names, index=index, description=description, **more)

    @property
    def value(self) -> str:
        """The chosen option."""
        return str(self.options[self.index])

    def set_options(self, options: Sequence[str], index: int | None = None) -> None:
        """Replace the options; without `index` the choice stays on the option of the same name,
        else on the same position as far as there is one."""
        names = [str(name) for name in options]
        if index is None:
            index = min(self.index, max(0, len(names) - 1))
            if self.options and self.value in names:
                index = names.index(self.value)
        names = _checked(names, index)
        with self.hold_sync():
            if index >= len(self.options):  # never, not even between two traits, an index outside
                self.options = names
            self.index = index
            self.options = names


def _checked(options: Sequence[str], index: int) -> list[str]:
    names = [str(name) for name in options]
    if not names:
        raise ValueError("a control needs at least one option")
    if not 0 <= index < len(names):
        raise ValueError(f"index {index} is outside the {len(names)} options 0…{len(names) - 1}")
    return names


class Slider(_Options):
    """A native range input over named options.

    >>> Slider("Bits", ["2", "3", "4"], index=2).value
    '4'
    """

    _esm = module("slider")

    ticks = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        label: str,
        options: Sequence[str],
        index: int = 0,
        description: str = "",
        *,
        ticks: bool = False,
    ) -> None:
        """`ticks` writes every option below the slider; good for up to nine short ones."""
        super().__init__(label, options, index, description, ticks=ticks)


class Choice(_Options):
    """A native select ("select") or a row of radio buttons ("segmented")."""

    _esm = module("choice")

    kind = traitlets.Unicode("select").tag(sync=True)

    def __init__(
        self,
        label: str,
        options: Sequence[str],
        index: int = 0,
        description: str = "",
        *,
        kind: Literal["select", "segmented"] = "select",
    ) -> None:
        if kind not in ("select", "segmented"):
            raise ValueError(f"kind {kind!r} is neither 'select' nor 'segmented'")
        super().__init__(label, options, index, description, kind=kind)


class Toggle(BrowserWidget):
    """A checkbox; `value` says whether it is on."""

    _esm = module("toggle")

    label = traitlets.Unicode().tag(sync=True)
    description = traitlets.Unicode().tag(sync=True)
    value = traitlets.Bool(False).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(self, label: str, value: bool = False, description: str = "") -> None:
        super().__init__(label=label, value=value, description=description)


class TextField(BrowserWidget):
    """A line of text. `value` follows when typing pauses; Enter calls the handler given to
    `on_submit`.

    `submitted` counts the presses of Enter; `value` is then what stands in the line.
    """

    _esm = module("textfield")

    label = traitlets.Unicode().tag(sync=True)
    description = traitlets.Unicode().tag(sync=True)
    placeholder = traitlets.Unicode().tag(sync=True)
    value = traitlets.Unicode().tag(sync=True)
    submitted = traitlets.Int(0).tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, label: str, value: str = "", placeholder: str = "", description: str = ""
    ) -> None:
        super().__init__(label=label, value=value, placeholder=placeholder, description=description)

    def on_submit(self, handler: Callable[[TextField], Any]) -> None:
        """Call `handler` with the field when Enter is pressed in it: the line's own button."""
        self.observe(lambda change: handler(self), "submitted")


class Button(BrowserWidget):
    """A button; the handler given to `on_click` is called with the button."""

    _esm = module("button")

    label = traitlets.Unicode().tag(sync=True)
    disabled = traitlets.Bool(False).tag(sync=True)

    def __init__(self, label: str) -> None:
        super().__init__(label=label)
        self._handlers: list[Callable[[Button], Any]] = []
        self.on_msg(self._on_message)

    def on_click(self, handler: Callable[[Button], Any]) -> None:
        self._handlers.append(handler)

    def click(self) -> None:
        """The effect of a press."""
        for handler in list(self._handlers):
            handler(self)

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if isinstance(content, dict) and content.get("type") == "click" and not self.disabled:
            self.click()
