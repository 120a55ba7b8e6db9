"""Dataclasses as plain JSON and back, strictly: every field, no other, each of its type, finite."""

import dataclasses
import json
import math
import sys
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints


def dumps(value: Any) -> str:
    """A dataclass as JSON. ValueError for NaN and infinities, which JSON does not have."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def loads(kind: type, text: str) -> Any:
    """What `dumps` wrote, as this dataclass. ValueError, naming the field, for anything else."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a finite number")

    try:
        data = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error}") from error
    return _read(kind, data, kind.__name__)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if origin in (Union, types.UnionType):  # only ever X | None here
        if data is None:
            return None
        return _read(next(each for each in inner if each is not type(None)), data, where)
    if origin is tuple:
        return _read_tuple(inner, _expect(list, data, where), where)
    if origin is Mapping:
        pairs = _expect(dict, data, where).items()
        return {key: _read(inner[1], each, f"{where}.{key}") for key, each in pairs}
    return _read_scalar(kind, data, where)


def _read_dataclass(kind: Any, data: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    given = set(_expect(dict, data, where))
    if names != given:
        missing, unknown = sorted(names - given), sorted(given - names)
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise ValueError(f"{where} {' and '.join(said)}")
    return kind(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in names})


def _read_tuple(inner: tuple[Any, ...], data: list[Any], where: str) -> tuple[Any, ...]:
    kinds = [inner[0]] * len(data) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(data):
        raise ValueError(f"{where} must have {len(kinds)} entries, got {len(data)}")
    pairs = enumerate(zip(kinds, data, strict=True))
    return tuple(_read(kind, each, f"{where}[{i}]") for i, (kind, each) in pairs)


def _read_scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float and type(data) is int:
        data = float(data) if abs(data) <= sys.float_info.max else math.inf
    if type(data) is not kind:  # exactly: True is not a number here
        raise ValueError(f"{where} must be {kind.__name__}, got {data!r:.60}")
    if kind is float and not math.isfinite(data):
        raise ValueError(f"{where} must be finite, got {data}")
    return data


def _expect(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, kind):
        what = "an object" if kind is dict else "a list"
        raise ValueError(f"{where} must be {what}, got {data!r:.60}")
    return data
