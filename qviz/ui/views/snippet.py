"""Code as the page shows it, printed from the call that the page makes."""

from collections.abc import Mapping
from typing import Any

WIDTH = 88


class Name(str):
    """Code that is written as it is, where other values are written with repr."""

    def __repr__(self) -> str:
        return str(self)


def call(function: str, *args: Any, **options: Any) -> str:
    """The text of a call.

    >>> print(call("qviz.quantize", Name("weight"), "affine", bits=3, scale_dtype=torch.float16))
    qviz.quantize(weight, 'affine', bits=3, scale_dtype=torch.float16)
    """
    parts = [_value(value) for value in args]
    parts += [f"{name}={_value(value)}" for name, value in options.items()]
    whole = f"{function}({', '.join(parts)})"
    if len(whole) <= WIDTH:
        return whole
    lines, line = [], ""
    for part in parts:
        if line and len(line) + len(part) > WIDTH - 6:
            lines.append(line)
            line = ""
        line += f"{part}, "
    lines.append(line)
    body = "\n".join(f"    {line.rstrip()}" for line in lines)
    return f"{function}(\n{body}\n)"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_value(v)}" for k, v in value.items()) + "}"
    return repr(value)
