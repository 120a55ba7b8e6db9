"""Trace: the hooks through which a method shows its intermediate tensors.

Every method takes `emit=None`, any callable `emit(event, **tensors)`, and guards each call with
`if emit is not None`: an untraced run does the same tensor operations in the same order and pays
one comparison. Nothing is registered anywhere, so nothing can leak; an exception raised in a hook
reaches the caller of the method.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Protocol, overload

import torch


class Emit(Protocol):
    """What a method calls with each intermediate result."""

    def __call__(self, event: str, /, **tensors: torch.Tensor) -> None: ...


@dataclass(frozen=True)
class EventSpec:
    """One row of a method's table of events.

    The table is the single source for captions, equations, documentation and tests.
    `tensors` maps each tensor's name to its shape and meaning.
    """

    name: str
    tensors: Mapping[str, str]
    formula: str
    source: str


@dataclass(frozen=True)
class Event:
    """One emission as it was recorded: its dotted name and copies of its tensors."""

    name: str
    tensors: Mapping[str, torch.Tensor]

    def __getitem__(self, tensor: str) -> torch.Tensor:
        return self.tensors[tensor]


class Trace:
    """Record events; pass it as `emit`.

    Trace() keeps everything, Trace("affine.codes", "gptq.*") only what matches a pattern: it
    filters before it copies, so what is not kept costs nothing.

    >>> trace = Trace("affine.codes")
    >>> _ = qviz.quantize(weight, "affine", bits=4, emit=trace)
    >>> trace[0]["codes"].shape
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns
        self._events: list[Event] = []

    def __call__(self, event: str, /, **tensors: torch.Tensor) -> None:
        if self.patterns and not any(fnmatchcase(event, p) for p in self.patterns):
            return
        # A copy, because the method goes on working in place on what it emitted.
        kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._events.append(Event(event, MappingProxyType(kept)))

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self._events[index]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def named(self, pattern: str) -> list[Event]:
        """The recorded events whose name matches `pattern`, in order."""
        return [e for e in self._events if fnmatchcase(e.name, pattern)]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors kept."""
        return sum(t.numel() * t.element_size() for e in self._events for t in e.tensors.values())

    def __repr__(self) -> str:
        names = sorted({e.name for e in self._events})
        return f"Trace({len(self)} events: {', '.join(names) or 'none'}; {self.nbytes} bytes)"
