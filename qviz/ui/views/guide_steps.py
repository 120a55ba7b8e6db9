"""Steps of a guide as data: where each begins, what to watch, and when the learner has done it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Goal(Protocol):
    """When a part of the page's state counts as reached."""

    def met(self, text: str, start: str) -> bool:
        """Whether `text` meets the goal; `start` is the value when the step began."""

    def example(self, start: str, offered: Sequence[str]) -> str:
        """One of the offered values that meets it, to show that the step can be done."""


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
    """Any value other than the one at the beginning."""

    def met(self, text: str, start: str) -> bool:
        return text != start

    def example(self, start: str, offered: Sequence[str]) -> str:
        return next(one for one in offered if one != start)


@dataclass(frozen=True)
class AtLeast(Goal):
    """This step or a later one."""

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
    start  the state that the page is set to; whatever is not named is as when the page opens
    done   field → goal; all have to be met
    deeds  what else has to be done, by the page's own names (`LessonPage.deeds`)
    """

    title: str
    watch: str
    start: Mapping[str, str] = field(default_factory=dict)
    done: Mapping[str, Goal] = field(default_factory=dict)
    deeds: tuple[str, ...] = ()

    def met(self, state: Mapping[str, str], began: Mapping[str, str], did: set[str]) -> bool:
        """Whether it has been done in a page of this state; `began` is the state when the step
        began."""
        return set(self.deeds) <= did and all(
            goal.met(state.get(name, ""), began.get(name, "")) for name, goal in self.done.items()
        )
