"""What the address says about a page: each control as a named text that is read, set and restored.

A field is one control (or one value) of a lesson under the name that it has in a link. The same
fields restore a page's last good state when something fails, and set the page up for a step of the
guide.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from qviz.core.check import unknown
from qviz.ui.widgets import MatrixView, NumberLine, TextField, Toggle, Transport


def _always() -> bool:
    return True


class Field(Protocol):
    """One part of a page's state.

    looks  it only says where the learner is looking, so it is set after the thing has been computed
    live   whether it counts now (a closed part of a page has no state)
    """

    looks: bool
    live: Callable[[], bool]

    @property
    def text(self) -> str:
        """The value as written in a link."""

    def offers(self, text: str) -> bool:
        """Whether it can be set to this text now."""

    def set(self, text: str) -> None:
        """Take a value from a link. Raises ValueError, in words, for one that is not offered."""

    def keep(self) -> Any:
        """Everything that `back` needs."""

    def back(self, kept: Any) -> None:
        """Restore the earlier state."""


class OptionField:
    """A slider or a choice. `names` are the options' names in a link, where they differ from those
    on the page."""

    def __init__(
        self,
        key: str,
        control: Any,
        *,
        names: Callable[[], Sequence[str]] | None = None,
        looks: bool = False,
        live: Callable[[], bool] = _always,
    ) -> None:
        self.key, self.control, self.looks, self.live = key, control, looks, live
        self._names = names

    @property
    def names(self) -> list[str]:
        return list(self._names() if self._names is not None else self.control.options)

    @property
    def text(self) -> str:
        return self.names[int(self.control.index)]

    def offers(self, text: str) -> bool:
        return text in self.names

    def set(self, text: str) -> None:
        if not self.offers(text):
            raise ValueError(unknown(f"{self.key} in the address", text, self.names))
        self.control.index = self.names.index(text)

    def keep(self) -> Any:
        return list(self.control.options), int(self.control.index)

    def back(self, kept: Any) -> None:
        options, index = kept
        self.control.set_options(options, index)


class ToggleField:
    """A checkbox: on or off."""

    def __init__(self, key: str, control: Toggle, *, live: Callable[[], bool] = _always) -> None:
        self.key, self.control, self.looks, self.live = key, control, True, live

    @property
    def text(self) -> str:
        return "on" if self.control.value else "off"

    def offers(self, text: str) -> bool:
        return text in ("on", "off")

    def set(self, text: str) -> None:
        if not self.offers(text):
            raise ValueError(unknown(f"{self.key} in the address", text, ["on", "off"]))
        self.control.value = text == "on"

    def keep(self) -> Any:
        return self.control.value

    def back(self, kept: Any) -> None:
        self.control.value = kept


class StepField:
    """The position of a steps' bar."""

    def __init__(
        self, key: str, transport: Transport, *, live: Callable[[], bool] = _always
    ) -> None:
        self.key, self.control, self.looks, self.live = key, transport, True, live

    @property
    def text(self) -> str:
        return str(self.control.index)

    def offers(self, text: str) -> bool:
        return text.isdecimal() and int(text) < self.control.n

    def set(self, text: str) -> None:
        if not self.offers(text):
            raise ValueError(
                f"{self.key}={text} in the address is not a step: steps go from 0 to "
                f"{self.control.n - 1}"
            )
        self.control.index = int(text)

    def keep(self) -> Any:
        return self.control.index

    def back(self, kept: Any) -> None:
        self.control.index = min(kept, self.control.n - 1)


class CellField:
    """The weight that is held, as "row, column"; empty while none is.

    view   the picture in which it is held now
    cell   the weight that the page is about
    place  column of the weight → column of that picture, which may be in another order
    """

    def __init__(
        self,
        key: str,
        view: Callable[[], MatrixView],
        cell: Callable[[], tuple[int, int]],
        place: Callable[[int], int] = lambda column: column,
        *,
        live: Callable[[], bool] = _always,
    ) -> None:
        self.key, self.looks, self.live = key, True, live
        self._view, self._cell, self._place = view, cell, place

    @property
    def control(self) -> MatrixView:
        return self._view()

    @property
    def text(self) -> str:
        row, column = self._cell()
        return f"{row}, {column}" if self.control.pinned else ""

    def offers(self, text: str) -> bool:
        return not text or self._parse(text) is not None

    def set(self, text: str) -> None:
        cell, view = self._parse(text), self.control
        if text and cell is None:
            rows, columns = view.shape
            raise ValueError(
                f"{self.key}={text} in the address is not a weight: give row, column of a weight "
                f"of {rows}×{columns}"
            )
        view.pinned = cell is not None
        if cell is not None:
            there = [cell[0], self._place(cell[1])]
            if list(view.cursor) == there:
                view.cursor = [-1, -1]  # else nobody is told, though the page may be elsewhere
            view.cursor = there

    def _parse(self, text: str) -> tuple[int, int] | None:
        row, _, column = (part.strip() for part in text.partition(","))
        if not (row.isdecimal() and column.isdecimal()):
            return None
        rows, columns = self.control.shape
        return (int(row), int(column)) if int(row) < rows and int(column) < columns else None

    def keep(self) -> Any:
        return self.control, list(self.control.cursor), self.control.pinned

    def back(self, kept: Any) -> None:
        view, cursor, pinned = kept
        view.cursor, view.pinned = cursor, pinned


class HandlesField:
    """The positions of a line's handles, as the shortest numbers that give the same float32 again:
    with fewer digits a weight halfway between two levels could go to the other one."""

    def __init__(
        self,
        key: str,
        line: NumberLine,
        *,
        looks: bool = False,
        live: Callable[[], bool] = _always,
    ) -> None:
        self.key, self.control, self.looks, self.live = key, line, looks, live

    @property
    def text(self) -> str:
        return ", ".join(map(_shortest, self.control.values))

    @property
    def names(self) -> list[str]:
        """The positions of the handles, and a position one key press away."""
        line, other = self.control, list(self.control.values)
        if other[0] - line.step >= line.bounds[0]:
            other[0] -= line.step
        elif other[-1] + line.step <= line.bounds[1] or len(other) == 1:
            other[-1] = min(other[-1] + line.step, line.bounds[1])
        else:  # handles already stand at both ends
            other[0] = min(other[0] + line.step, other[1])
        return [self.text, ", ".join(map(_shortest, other))]

    def offers(self, text: str) -> bool:
        try:
            self._parse(text)
        except ValueError:
            return False
        return True

    def set(self, text: str) -> None:
        self.control.values = self._parse(text)

    def _parse(self, text: str) -> list[float]:
        try:
            values = [float(part) for part in text.split(",")] if text.strip() else []
            # the digits of an end may lie just outside the line
            low, high = self.control.bounds
            slack = 1e-5 * max(abs(low), abs(high))
            near = [
                min(max(v, low), high) if low - slack <= v <= high + slack else v for v in values
            ]
            return self.control.checked(near)
        except ValueError as error:
            raise ValueError(f"{self.key}={text} in the address: {error}") from error

    def keep(self) -> Any:
        return list(self.control.bounds), list(self.control.values), self.control.step

    def back(self, kept: Any) -> None:
        bounds, values, step = kept
        self.control.set_line(bounds, values, step=step)


def _shortest(value: float) -> str:
    return str(np.float32(value))


class WordsField:
    """A line of text that the learner typed."""

    def __init__(self, key: str, control: TextField, *, live: Callable[[], bool] = _always) -> None:
        self.key, self.control, self.looks, self.live = key, control, False, live

    @property
    def text(self) -> str:
        return str(self.control.value)

    def offers(self, text: str) -> bool:
        return True

    def set(self, text: str) -> None:
        self.control.value = text

    def keep(self) -> Any:
        return self.control.value

    def back(self, kept: Any) -> None:
        """What was typed stays: the error is about it."""


class ValueField:
    """A value that no control holds: the page's attribute `name`."""

    def __init__(
        self,
        key: str,
        page: Any,
        name: str,
        *,
        text: Callable[[Any], str],
        take: Callable[[str], None],
    ) -> None:
        self.key, self.looks, self.live = key, False, _always
        self._page, self._name, self._text, self._take = page, name, text, take

    @property
    def text(self) -> str:
        return self._text(getattr(self._page, self._name))

    def offers(self, text: str) -> bool:
        return True

    def set(self, text: str) -> None:
        self._take(text)

    def keep(self) -> Any:
        return getattr(self._page, self._name)

    def back(self, kept: Any) -> None:
        setattr(self._page, self._name, kept)
