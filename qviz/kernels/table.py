"""A measurement as text: for a terminal, and the same rows for Markdown."""

from collections.abc import Mapping, Sequence

from qviz.kernels.ceilings import Ceilings
from qviz.kernels.registry import BASELINE
from qviz.kernels.results import Measurement, Point


def seconds(value: float) -> str:
    """A duration with three digits and its unit.

    >>> seconds(0.00012345), seconds(0.5)
    ('123 µs', '500 ms')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{_three(value / size)} {unit}"
    return f"{_three(value / 1e-9)} ns"


def _three(value: float) -> str:
    """Three digits, never as a power of ten, for values below a thousand."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def ceilings_text(found: Ceilings) -> str:
    """What the device can do, in lines."""
    lines = [
        f"copy {found.copy_bandwidth / 1e9:.3g} GB/s (read and written), "
        f"read {found.read_bandwidth / 1e9:.3g} GB/s, cache {found.cache / 2**20:g} MiB"
    ]
    rates = (f"{name} {rate / 1e12:.3g}" for name, rate in found.matmul_rate.items())
    return "\n".join([*lines, f"large products, 10¹² operations per second: {', '.join(rates)}"])


def machine_text(about: Mapping[str, str]) -> str:
    """The machine in one paragraph."""
    return ", ".join(f"{name} {value}" for name, value in about.items())


def rows(found: Measurement, format: str, shape: tuple[int, int]) -> list[dict[str, str]]:
    """Column → text for every point with this weight, batch by batch, the fastest first."""
    points = sorted(
        found.select(format=format, shape=shape), key=lambda p: (p.batch, p.time.median)
    )
    named = _dtypes_to_name(points)
    return [_row(found, point, named) for point in points]


def _row(found: Measurement, point: Point, named: bool) -> dict[str, str]:
    time, share = point.time, found.rate_share(point)
    row = {
        "batch": str(point.batch),
        "kernel": f"{point.kernel} ({point.dtype})" if named else point.kernel,
        "time": f"{seconds(time.median)} [{seconds(time.low)} – {seconds(time.high)}]",
        "× 16-bit": f"{found.speedup(point):.2f}",
        "weight": f"{point.weight_bytes / 1e6:.3g} MB",
        "of copy": f"{100 * found.bandwidth_share(point):.0f} %",
        "of product": "" if share is None else f"{100 * share:.0f} %",
        "error": f"{point.error:.1e}",
        "total error": f"{point.total_error:.1e}",
    }
    if point.launch is not None:
        row["called alone"] = seconds(point.launch.median)
    return row


def _dtypes_to_name(points: Sequence[Point]) -> bool:
    """Whether the dtype is needed to know which 16-bit product is meant."""
    return len({p.dtype for p in points if p.kernel == BASELINE}) > 1


def aligned(cells: Sequence[Mapping[str, str]]) -> str:
    """Rows as columns that line up; the names come first."""
    names = list(dict.fromkeys(name for row in cells for name in row))
    lines = [names, *([row.get(name, "") for name in names] for row in cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def sections(found: Measurement) -> list[tuple[str, tuple[int, int]]]:
    """The weights that were measured, (format, shape), in their order."""
    return list(dict.fromkeys((p.format, p.shape) for p in found.points))


def remarks(found: Measurement, format: str, shape: tuple[int, int]) -> list[str]:
    """Sentences about the points with this weight: where kernels meet the 16-bit product, and
    what was different with some of them."""
    points = found.select(format=format, shape=shape)
    said = [
        str(found.crossover(name, format, shape))
        for name in dict.fromkeys(p.kernel for p in points)
        if name != BASELINE
    ]
    notes = dict.fromkeys((p.kernel, p.note) for p in points if p.note)
    said += [f"{kernel}: {note}." for kernel, note in notes]
    checked = {p.error_rows for p in points} - {None}
    said += [f"Errors are those of {n} outputs, chosen at random." for n in checked]
    return said


def left_out_lines(found: Measurement) -> list[str]:
    """Kernels that did not take part, and why: a line for each kernel and reason, with the cases it
    applies to."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for key, why in found.left_out.items():
        kernel, _, where = key.partition(", ")
        grouped.setdefault((kernel, why), []).append(where)
    return [
        kernel + (f" ({'; '.join(places)})" if all(places) else "") + f": {why}"
        for (kernel, why), places in grouped.items()
    ]


def measurement_text(found: Measurement) -> str:
    """All results as a page of text for a terminal."""
    parts = [machine_text(found.machine), ceilings_text(found.ceilings)]
    for format, shape in sections(found):
        parts.append(f"{format}, {shape[0]}×{shape[1]}\n" + aligned(rows(found, format, shape)))
        parts.append("\n".join(remarks(found, format, shape)))
    if found.left_out:
        parts.append("\n".join(["Left out:", *left_out_lines(found)]))
    if not found.complete:
        parts.append("Stopped before everything was measured.")
    return "\n\n".join(filter(None, parts))
