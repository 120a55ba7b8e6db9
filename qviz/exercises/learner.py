"""A learner's function: how it is called, and how its result is read.

It gets copies, so that changes in place do no harm, and those options that it has parameters for.
An exception is kept, with the line of its own source. Any result that can be told apart is
accepted: codes from 0 or around 0, values, a QuantizedTensor.
"""

import inspect
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.core.check import unknown
from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Event, Trace
from qviz.exercises.variants import OFF_GRID, Seen, nearest_codes
from qviz.methods.gptq import EVENTS

KNOWN_EVENTS = {event.name: event for event in EVENTS}


ONE = ("step", "column", "group")  # what is emitted as one whole number


def as_tensor(x: Any) -> torch.Tensor | None:
    """A number, an array, a tensor of any kind, or rows in a list, as a plain tensor of real
    numbers; None for anything else."""
    if isinstance(x, list | tuple):
        rows = [as_tensor(item) for item in x]
        shapes = {None if row is None else row.shape for row in rows}
        if len(shapes) != 1 or None in shapes:
            return None
        return torch.stack([row for row in rows if row is not None])
    if isinstance(x, bool | int | float | np.ndarray | np.generic):
        array = np.array(x)  # a copy: its strides may be negative
        if array.dtype.kind not in "fiub":
            return None
        if not array.dtype.isnative or array.dtype.itemsize > 8:  # torch has no such dtype
            array = array.astype("float64" if array.dtype.kind == "f" else "int64")
        return torch.from_numpy(array)
    if not isinstance(x, torch.Tensor) or x.is_complex() or x.is_meta or x.is_quantized:
        return None
    dense = x.detach().to_dense() if x.layout != torch.strided else x.detach()
    return dense.float() if dense.is_floating_point() and dense.itemsize == 1 else dense


def _is_whole(x: torch.Tensor) -> bool:
    return x.numel() == 1 and bool(torch.isfinite(x).all()) and float(x) == int(x)


class Listener:
    """The `emit` that a learner's function is given; it also takes arrays and numbers."""

    def __init__(self, device: torch.device) -> None:
        self.trace, self._device = Trace(), device
        self.strange: dict[str, str] = {}  # event that GPTQ does not have → the note about it

    def __call__(self, event: str, /, *unnamed: Any, **tensors: Any) -> None:
        if unnamed:
            raise TypeError(f"emit({event!r}, …) takes tensors by name: step=j, codes=…")
        if event not in KNOWN_EVENTS:
            self.strange.setdefault(event, unknown("event", event, KNOWN_EVENTS))
        else:
            known = KNOWN_EVENTS[event].tensors
            for name in tensors.keys() - known.keys():
                said = unknown(f"tensor in {event}", name, known)
                self.strange.setdefault(f"{event} {name}", said)
        self.trace(event, **{name: self._tensor(event, name, x) for name, x in tensors.items()})

    def _tensor(self, event: str, name: str, x: Any) -> torch.Tensor:
        found = as_tensor(x)
        if found is None or (name in ONE and not _is_whole(found)):
            wanted = "one whole number" if name in ONE else "a tensor or an array of real numbers"
            kind = type(x).__name__ if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise TypeError(f"emit({event!r}, {name}=…) takes {wanted}, not {kind}")
        return found.clone().to(
            self._device
        )  # a copy: the learner's function goes on using its buffers

    def columns(self) -> dict[int, Event]:
        """Step → what was emitted there; if `step` is missing, the emissions are counted."""
        found: dict[int, Event] = {}
        for i, event in enumerate(self.trace.named("gptq.column")):
            step = event.tensors.get("step")
            found[i if step is None else int(step)] = event
        return found


@dataclass(frozen=True, eq=False)
class Attempt:
    """One call of a learner's function.

    result     what it returned
    exception  what it raised instead, or None
    listener   what it emitted
    mutated    whether it changed the weight that it was given (a copy), and `weight` that copy
    ignored    options that differ from GPTQ's default and for which it has no parameter
    """

    result: Any
    exception: BaseException | None
    listener: Listener
    mutated: bool
    weight: torch.Tensor | np.ndarray
    ignored: tuple[str, ...]

    def failure(self, function: Callable[..., Any]) -> str:
        """What it raised, in words, with the line of its own source."""
        assert self.exception is not None
        frames = traceback.extract_tb(self.exception.__traceback__)
        code = getattr(inspect.unwrap(function), "__code__", None)
        own = [f for f in frames if code is not None and f.filename == code.co_filename]
        at = f" in line {own[-1].lineno}" if own else ""
        at += f", `{own[-1].line}`" if own and own[-1].line else ""
        if isinstance(self.exception, KeyboardInterrupt):
            return f"your function was interrupted{at}"
        lines = [line for line in str(self.exception).splitlines() if line.strip()]
        text = f": {lines[0].strip()}" if lines else ""
        return f"your function raised {type(self.exception).__name__}{at}{text}"


def call(
    function: Callable[..., Any],
    weight: torch.Tensor,
    hessian: torch.Tensor,
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    as_numpy: bool,
) -> Attempt:
    """Call a learner's function with copies of the weight and the Hessian, and the options it
    accepts.

    Raises TypeError for a function that cannot be called like this.
    """
    listener = Listener(weight.device)
    accepted = _accepted(function, {**options, "emit": listener})
    w, h = weight.clone(), hessian.clone()
    given: list[Any] = [w.numpy(), h.numpy()] if as_numpy else [w, h]
    result: Any = None
    exception: BaseException | None = None
    try:
        result = function(*given, **accepted)
    except (Exception, KeyboardInterrupt, SystemExit) as raised:  # noqa: BLE001 - the report says it
        exception = raised
    ignored = [name for name, value in options.items()
               if name not in accepted and value != defaults[name]]  # fmt: skip
    return Attempt(
        result, exception, listener, not torch.equal(w, weight), given[0], tuple(ignored)
    )


def _accepted(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a function has parameters for, beyond its first two."""
    if not callable(function):
        raise TypeError(f"my_gptq must be a function, got {type(function).__name__}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # functions in C have no signature to inspect
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        accepted = dict(options)
    else:
        accepted = {p.name: options[p.name] for p in parameters[2:] if p.name in options}
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise TypeError(
            "my_gptq must take the weight and the Hessian as its first arguments: def "
            "my_gptq(weight, hessian, …)"
        )
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for p in parameters:
        needed = p.default is p.empty and p.kind not in optional and p not in places[:2]
        if needed and (p.name not in accepted or p.kind is p.POSITIONAL_ONLY):
            raise TypeError(
                f"my_gptq needs {p.name!r}: give it a default, or the name of an option; "
                + unknown("option", p.name, options)
            )
    return accepted


# ---------------------------------------------------------------------------- what was answered


@dataclass(frozen=True, eq=False)
class Answer:
    """What a learner's function returned, as far as it can be compared.

    seen       its matrix; None if there is nothing to compare
    offset     the number added to its codes so that they count like the true run's
    findings   what is wrong with it, in words
    notes      what was taken into account, in words
    """

    seen: Seen | None
    offset: int = 0
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Levelled:
    """The true run's levels for each weight, all [out, in] in the weight's order of columns."""

    codes: torch.Tensor
    value: torch.Tensor
    scale: torch.Tensor
    qmin: int
    qmax: int

    @classmethod
    def of(cls, truth: QuantizedTensor) -> "Levelled":
        grid = truth.grid
        assert isinstance(grid, Affine)
        n = truth.shape[1]
        groups = torch.arange(n, device=grid.scale.device) // (n // grid.scale.shape[1])
        if truth.g_idx is not None:
            groups = truth.g_idx.long()
        value = truth.dequantize().double()
        scale = grid.scale.double()[:, groups]
        return cls(truth.codes.int(), value, scale, grid.qmin, grid.qmax)

    def codes_of(self, values: torch.Tensor) -> torch.Tensor:
        """The codes that values [out, in] stand for; OFF_GRID where a value is not a level."""
        return nearest_codes(values, self.value, self.scale, self.codes)


def read(attempt: Attempt, truth: Levelled) -> Answer:
    """What was returned, compared in shape and kind with the true run's result."""
    result = attempt.result
    notes: list[str] = []
    if isinstance(result, QuantizedTensor):
        result = result.codes if isinstance(result.grid, Affine) else result.dequantize()
    if result is attempt.weight and not attempt.mutated:
        notes.append("it returned the weight that it was given, unchanged")
    elif result is attempt.weight:
        notes.append("it returned the weight that it was given, changed in place: work on a copy")
    elif attempt.mutated:
        notes.append("it changed the weight that it was given, in place: work on a copy")
    if result is None:
        said = "your function returned None: is `return` missing at its end?"
        return Answer(None, findings=(said,), notes=tuple(notes))
    found = as_tensor(result)
    several = isinstance(result, list | tuple) and (found is None or found.ndim != 2)
    if found is None or several:
        return Answer(None, findings=(_of_no_use(result),), notes=tuple(notes))
    return _read_matrix(found.clone().to(truth.codes.device), truth, notes)


def _of_no_use(result: Any) -> str:
    """What to say about a result that is not a matrix."""
    wanted = "return one matrix [out, in], of integer codes or of the values they stand for"
    if isinstance(result, tuple | list):
        several = f"your function returned {type(result).__name__} of {len(result)}"
        return f"{several}: {wanted}, and nothing else"
    if inspect.isgenerator(result):
        return f"your function returned a generator, because it holds `yield`: {wanted}"
    return f"your function returned {getattr(result, 'dtype', type(result).__name__)}: {wanted}"


def _read_matrix(matrix: torch.Tensor, truth: Levelled, notes: list[str]) -> Answer:
    """A matrix of any shape, brought to [out, in] if the intended layout can be inferred."""
    rows, columns = truth.codes.shape
    shape, wanted = tuple(matrix.shape), (rows, columns)
    findings, transposed, known = [], False, torch.ones(columns, dtype=torch.bool)
    if shape == (columns, rows) and rows != columns:
        findings.append(f"the matrix is transposed: {shape} instead of [out, in] = {wanted}")
        matrix, transposed = matrix.T, True
    elif len(shape) == 2 and shape[0] == rows and 0 < shape[1] < columns:
        findings.append(f"columns are missing: only {shape[1]} of {columns} were returned")
        known[shape[1] :] = False
        missing = matrix.new_zeros(rows, columns - shape[1])
        matrix = torch.cat([matrix, missing], 1)
    elif shape != wanted:
        said = f"the matrix has shape {shape}, expected [out, in] = {wanted}"
        return Answer(None, findings=(said,), notes=tuple(notes))
    if matrix.is_floating_point():
        matrix, bad = matrix.double(), ~torch.isfinite(matrix)
        if bool(bad.any()):
            first = int(bad.any(0).int().argmax())
            findings.append(
                f"{int(bad.sum())} of its numbers are NaN or infinite, the first in column {first}"
            )
        whole = bool((matrix[~bad] == matrix[~bad].round()).all()) and bool((~bad).any())
        if not whole or _are_values(matrix, truth):
            notes.append("it returned values, which are compared using the true run's levels")
            return Answer(
                Seen(None, matrix, known.to(matrix.device)),
                0, tuple(findings), tuple(notes), transposed,
            )  # fmt: skip
        notes.append("it returned codes as floating-point numbers")
    codes, offset, how = read_codes(matrix, truth)
    seen = Seen(codes, None, known.to(codes.device))
    return Answer(seen, offset, tuple(findings), (*notes, *how), transposed)


def _are_values(matrix: torch.Tensor, truth: Levelled) -> bool:
    """Whether whole numbers are values rather than codes: only if the true ones are whole too."""
    if not bool((truth.value == truth.value.round()).all()):
        return False
    read, _, _ = read_codes(matrix, truth)
    as_codes = (read == truth.codes).double().mean()
    return bool((matrix == truth.value).double().mean() > as_codes)


def read_codes(
    matrix: torch.Tensor, truth: Levelled, columns: torch.Tensor | None = None
) -> tuple[torch.Tensor, int, list[str]]:
    """Codes (int32) counted as the true run counts its own, what was added for that, and notes.

    columns  of the weight that these are; None: all
    Codes may count from 0 or around 0; the reading that keeps them in range and nearest to the
    truth is taken.
    NaN becomes OFF_GRID.
    """
    levels = truth.qmax - truth.qmin + 1
    notes = []
    if matrix.dtype == torch.uint8 and int(matrix.max()) > 2 * levels:
        matrix = matrix.view(torch.int8)
        notes.append("negative codes have wrapped around in uint8: −1 became 255")
    wide = matrix.double()
    bad = ~torch.isfinite(wide)
    codes = wide.nan_to_num().clamp(-(2**30), 2**30).int()  # int alone would wrap around
    true = truth.codes if columns is None else truth.codes[:, columns]

    def strangeness(offset: int) -> float:
        moved = codes + offset
        outside = (moved < truth.qmin) | (moved > truth.qmax)
        away = (moved - true).abs().clamp(max=levels)
        return float(outside.double().mean() * levels + away.double().mean())

    half = (levels + 1) // 2  # a restricted range has one level fewer
    offset = min((0, half, -half), key=strangeness)
    low = truth.qmin - offset
    notes.append(f"its codes are read as {low}…{low + levels - 1}")
    return (codes + offset).masked_fill_(bad, OFF_GRID), offset, notes
