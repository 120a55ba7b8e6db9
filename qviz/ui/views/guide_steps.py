"""Steps of a guide as data: where each begins, what to watch, and when the learner has done it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Goal(Protocol):
    """When a part of the page's state counts as reached."""

    def met(self, text: str, start: str) -> bool:
        """Whether `text` is there; `start` is what it was when the step began."""

    def example(self, start: str, offered: Sequence[str]) -> str:
        """A value that meets it, of those offered, for whoever has to show that it can be done."""


@dataclass(frozen=True)
class Is(Goal):
    """This value."""

    value: str

    def met(self, text: str, start: str) -> bool:
        return text == self.value

    def example(self, start: str, offered: Sequence[str]) -> str:
        return self.value


@dataclass(frozen=True)
class Moved(Goal):
    """Any other value than at the beginning."""

    def met(self, text: str, start: str) -> bool:
        return text != start

    def example(self, start: str, offered: Sequence[str]) -> str:
        return next(one for one in offered if one != start)


@dataclass(frozen=True)
class AtLeast(Goal):
    """A step this far or farther on."""

    value: int

    def met(self, text: str, start: str) -> bool:
        return text.isdecimal() and int(text) >= self.value

    def example(self, start: str, offered: Sequence[str]) -> str:
        return str(self.value)


@dataclass(frozen=True)
class Step:
    """One thing to try.

    title  what to do, in a few words: the button's
    watch  what to look at, once the page has been set
    start  the state that the page is set to; what is not named is as the page opens
    done   field → goal; all have to be met
    deeds  what has to have been done besides, by the page's own names (`LessonPage.deeds`)
    """

    title: str
    watch: str
    start: Mapping[str, str] = field(default_factory=dict)
    done: Mapping[str, Goal] = field(default_factory=dict)
    deeds: tuple[str, ...] = ()

    def met(self, state: Mapping[str, str], began: Mapping[str, str], did: set[str]) -> bool:
        """Whether it has been done, in a page of this state that the step began with `began`."""
        return set(self.deeds) <= did and all(
            goal.met(state.get(name, ""), began.get(name, "")) for name, goal in self.done.items()
        )
