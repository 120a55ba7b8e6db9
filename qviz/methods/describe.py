"""A method described in Markdown: what it needs, its defaults and whose they are, its events."""

from collections.abc import Iterable, Sequence

from qviz.methods.registry import Method


def describe(method: Method) -> str:
    """The page of one method, made from its registry entry alone."""
    needs = ", ".join(sorted(method.needs)) or "nothing but the weight"
    options = [
        (
            f"`{name}`",
            _written(default),
            ", ".join(method.choices.get(name, ())),
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
            *_table(("option", "default", "one of", "whose default"), options),
            "",
            *_table(("event", "tensors", "formula", "source"), events),
            "",
        ]
    )


def _written(default: object) -> str:
    """A default as a caller would write it."""
    text = str(default) if str(default).startswith("torch.") else repr(default)
    return f"`{text}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    # |x| in a formula would end a cell.
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {line} |" for line in (" | ".join(head), "|".join(["---"] * len(head)), *lines)]
