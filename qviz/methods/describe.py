"""A method described in Markdown: what it needs, its defaults and their origin, its events."""

from collections.abc import Iterable, Sequence

from qviz.core.check import in_words
from qviz.methods.registry import ELSEWHERE, Method


def describe(method: Method) -> str:
    """The page of one method, made from its registry entry alone."""
    needs = ", ".join(sorted(method.needs)) or "nothing but the weight"
    options = [
        (
            f"`{name}`",
            _written(default),
            _taken(method, name),
            method.origins[name],
        )
        for name, default in method.defaults.items()
    ]
    events = [
        (
            f"`{event.name}`",
            "; ".join(f"`{name}` {what}" for name, what in event.tensors.items()),
            event.formula,
            event.source,
        )
        for event in method.events
    ]
    return "\n".join(
        [
            f"## {method.name}: {method.title}",
            "",
            f"A {method.kind} method; needs {needs}. Source: {method.source}.",
            "",
            *_table(("option", "default", "one of", "origin of the default"), options),
            "",
            *_table(("event", "tensors", "formula", "source"), events),
            "",
        ]
    )


def names_elsewhere() -> str:
    """The options of other libraries with their names here, for the end of the page."""
    rows = [
        (
            f"`{other.name}`",
            other.whose,
            f"`{other.option}`",
            f"`{other.option}={other.value}`" if other.value else "",
        )
        for other in ELSEWHERE
    ]
    return "\n".join(
        [
            "## Names elsewhere",
            "",
            "A method without an option of that name refuses it and names the option here.",
            "",
            *_table(("there", "whose", "here", "where it is True there"), rows),
            "",
        ]
    )


def _taken(method: Method, option: str) -> str:
    """The names or bit-widths that an option accepts, if these are few."""
    if option == "bits":
        return in_words(method.bits).removeprefix("one of ")
    return ", ".join(method.choices.get(option, ()))


def _written(default: object) -> str:
    """A default as a caller would write it."""
    text = str(default) if str(default).startswith("torch.") else repr(default)
    return f"`{text}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    # |x| in a formula would end a cell.
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {line} |" for line in (" | ".join(head), "|".join(["---"] * len(head)), *lines)]
