"""Storage: a method's result as plain data and tensors, and back, exact to the last bit.

Unlike `QuantizedTensor.pack`, which gives the bytes that a system would ship, this keeps every
field as it is in memory (decoded scales, dtypes, `info`), so that loading gives the same object. A
stored class is looked up by name among the allowed ones: nothing in a file can name code.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from qviz.core.granularity import Granularity
from qviz.core.grids import Affine, Blocks, Codebook, VectorCodebook
from qviz.core.ledger import LedgerItem, Stream
from qviz.core.tensor import QuantizedTensor
from qviz.core.transform import InputScale

CLASSES: tuple[type, ...] = (
    QuantizedTensor,
    Affine,
    Codebook,
    VectorCodebook,
    Blocks,
    Granularity,
    InputScale,
    Stream,
    LedgerItem,
)
PLAIN = (str, bool, int, float, type(None))


def to_plain(value: object, classes: Sequence[type] = ()) -> tuple[Any, dict[str, torch.Tensor]]:
    """Data that JSON can hold, and the tensors it refers to by the names t0, t1 …

    value    a dataclass of CLASSES or `classes`, or what such fields hold: tensors, dtypes, tuples,
             lists, mappings with strings as keys, strings, numbers, None
    classes  more dataclasses that may occur

    The tensors are on the CPU, row-major, and share no memory. TypeError for anything else.

    >>> plain, tensors = to_plain(qviz.quantize(torch.randn(4, 128), "affine", bits=4))
    >>> to_value(plain, tensors).codes
    """
    tensors: dict[str, torch.Tensor] = {}
    return _plain(value, _by_name(classes), tensors), tensors


def to_value(plain: Any, tensors: Mapping[str, torch.Tensor], classes: Sequence[type] = ()) -> Any:
    """The value that `to_plain` was given. Raises KeyError, TypeError or ValueError for data that
    do not fit."""
    return _value(plain, _by_name(classes), tensors)


def _by_name(classes: Sequence[type]) -> dict[str, type]:
    return {one.__name__: one for one in (*CLASSES, *classes)}


def _plain(value: object, classes: Mapping[str, type], tensors: dict[str, torch.Tensor]) -> Any:
    if type(value) in PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, classes, tensors) for item in value]}
    if isinstance(value, list):
        return [_plain(item, classes, tensors) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {k: _plain(item, classes, tensors) for k, item in value.items()}}
    if dataclasses.is_dataclass(value) and classes.get(type(value).__name__) is type(value):
        fields = {
            field.name: _plain(getattr(value, field.name), classes, tensors)
            for field in dataclasses.fields(value)
        }
        return {"class": type(value).__name__, "fields": fields}
    known = ", ".join(classes)
    raise TypeError(f"a {type(value).__name__} cannot be stored; of classes, only {known} can")


def _value(plain: Any, classes: Mapping[str, type], tensors: Mapping[str, torch.Tensor]) -> Any:
    if type(plain) in PLAIN:
        return plain
    if isinstance(plain, list):
        return [_value(item, classes, tensors) for item in plain]
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    if "dtype" in plain:
        found = getattr(torch, plain["dtype"], None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"torch has no dtype {plain['dtype']!r}")
        return found
    if "tuple" in plain:
        return tuple(_value(item, classes, tensors) for item in plain["tuple"])
    if "mapping" in plain:
        return {key: _value(item, classes, tensors) for key, item in plain["mapping"].items()}
    fields = {key: _value(item, classes, tensors) for key, item in plain["fields"].items()}
    return classes[plain["class"]](**fields)
