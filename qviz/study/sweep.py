"""Sweep: the error of methods on one layer against bit-width, as a tidy table."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.core import metrics
from qviz.core.calibration import Calibration, require_calibration
from qviz.core.check import as_matrix, in_words, require_int
from qviz.core.linear import QuantizedLinear
from qviz.core.tensor import QuantizedTensor
from qviz.methods import registry

Progress = Callable[[int, int, str], None]
WIDTHS = range(2, 9)  # the bit-widths of a sweep when none are named


@dataclass(frozen=True)
class Table:
    """Rows of a tidy table, one observation each; `pandas.DataFrame(table.rows)` takes it as is."""

    rows: tuple[dict[str, Any], ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]

    def where(self, **equal: Any) -> "Table":
        """The rows in which every named column has the given value."""
        return Table(tuple(r for r in self.rows if all(r[k] == v for k, v in equal.items())))

    def to_csv(self) -> str:
        out = io.StringIO()
        if self.rows:
            writer = csv.DictWriter(out, self.rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        return out.getvalue()

    def _repr_markdown_(self) -> str:
        if not self.rows:
            return "(no rows)"
        names = list(self.rows[0])
        lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        for row in self.rows:
            cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


def sweep(
    weight: torch.Tensor | np.ndarray,
    methods: str | Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any]]] = "affine",
    bits: Sequence[int] | None = None,
    *,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Table:
    """Quantize one weight with every method at every bit-width and measure.

    weight       [out, in]
    methods      a name, several names, or label → (name, its own options) for variants of one;
                 "weight" and "linear" methods
    bits         the bit-widths; None: those from 2 to 8 that each method has. A method without the
                 option `bits`, whose format fixes the width, runs once
    calibration  adds `output_error`, on the real inputs of the layer
    progress     called as progress(done, of, what) before each run
    options      go to every method

    Returns a row for each run: label, method, bits, bits_per_weight, mse, sqnr_db, max_error,
    relative_error and, with calibration, output_error (both relative, Frobenius).
    Raises ValueError, before anything is computed, for a requested bit-width that one of the
    methods lacks, and for whatever a method refuses, with the label if there are several.

    >>> table = qviz.sweep(weight, "affine", bits=[2, 4, 8], group_size=64)
    >>> table.column("mse")
    """
    w = as_matrix(weight)
    if bits is not None and (not hasattr(bits, "__len__") or not len(bits)):
        raise ValueError(f"bits must be several bit-widths, such as [2, 3, 4], got {bits!r}")
    runs = _runs(methods, options)
    if calibration is not None:
        require_calibration(calibration)
    else:
        for _, name, _ in runs:
            registry.require_data(name)
    energy = None if calibration is None else metrics.output_energy(w, calibration)
    plan = [
        (label, name, width, {**options, **own, **width})
        for label, name, own in runs
        for width in _widths(f"{label}: " if len(runs) > 1 else "", name, bits)
    ]
    rows = []
    for done, (label, name, width, given) in enumerate(plan):
        if progress is not None:
            progress(done, len(plan), label + "".join(f", {b} bits" for b in width.values()))
        try:
            q = registry.quantize(w, name, calibration, **given)
        except ValueError as error:
            if len(runs) == 1:
                raise
            raise ValueError(f"{label}: {error}") from error
        figures = measure(w, q, calibration, energy=energy)
        rows.append({"label": label, "method": name, "bits": _bits(q), **figures})
    if progress is not None:
        progress(len(rows), len(rows), "done")
    return Table(tuple(rows))


def _widths(who: str, method: str, bits: Sequence[int] | None) -> list[dict[str, int]]:
    """The options of one method's runs: a width each, or none where the format fixes it. `who`
    goes before a message."""
    known = registry.get(method).bits
    if not known:
        return [{}]
    if bits is None:
        return [{"bits": b} for b in WIDTHS if b in known]
    lacking = [b for b in bits if require_int(b, "bits", 0, 64) not in known]
    if lacking:
        raise ValueError(
            f"{who}{method} has no {' or '.join(map(str, lacking))}-bit codes: bits must be "
            f"{in_words(known)}. Omit bits to sweep the widths that each method has"
        )
    return [{"bits": int(b)} for b in bits]


def _bits(quantized: QuantizedTensor | QuantizedLinear) -> int:
    """The width of one code."""
    tensor = quantized.weight if isinstance(quantized, QuantizedLinear) else quantized
    return tensor.grid.bits


def measure(
    weight: torch.Tensor,
    quantized: QuantizedTensor | QuantizedLinear,
    calibration: Calibration | None = None,
    *,
    energy: float | None = None,
) -> dict[str, float]:
    """The figures of one row: cost, errors of the weight, and error of the output if known.

    A QuantizedLinear multiplies in its own way, so its output error is that of its own product on
    the calibration's sample of inputs. `energy` as in `metrics.output_error`.
    """
    r = quantized.dequantize()
    error = metrics.compare(weight, r)
    row = {
        "bits_per_weight": quantized.bits_per_weight,
        "mse": error.mse,
        "sqnr_db": error.sqnr_db,
        "max_error": error.max_error,
        "relative_error": error.relative_error,
    }
    if calibration is not None and isinstance(quantized, QuantizedLinear):
        x = calibration.inputs.to(weight.device)
        y = x.double() @ weight.double().T  # [tokens, out]
        row["output_error"] = metrics.compare(y, quantized(x)).relative_error
    elif calibration is not None:
        row["output_error"] = metrics.output_error(weight, r, calibration, energy=energy)
    return row


def _runs(
    methods: str | Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any]]],
    options: Mapping[str, Any],
) -> list[tuple[str, str, Mapping[str, Any]]]:
    """[(label, method, its own options)], names and options checked before the first run."""
    if isinstance(methods, str):
        methods = [methods]
    if isinstance(methods, Mapping):
        runs = [(label, *_variant(label, given)) for label, given in methods.items()]
    else:
        runs = [(name, name, {}) for name in methods]
    if not runs:
        raise ValueError("no methods were named; give at least one, such as 'affine'")
    for label, name, own in runs:
        kind = registry.get(name).kind
        if kind not in ("weight", "linear"):
            raise ValueError(f"{label!r}: {name} is a {kind} method; a sweep takes weights")
        if "bits" in own:
            raise ValueError(f"{label!r} sets bits itself; the bit-widths of a sweep go to `bits`")
        registry.require_options(name, {**options, **own})
    return runs


def _variant(label: str, given: object) -> tuple[str, Mapping[str, Any]]:
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        return given[0], given[1]
    raise TypeError(
        f"methods[{label!r}] must be (name, its own options), such as "
        f"('affine', {{'group_size': 32}}); got {given!r}"
    )
