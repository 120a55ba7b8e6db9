"""What can be chosen of a measurement: shapes by the models they are from, one shape and format."""

from collections.abc import Iterable
from dataclasses import replace

from qviz.kernels.formats import FORMATS
from qviz.kernels.results import Measurement
from qviz.kernels.shapes import SHAPES


def _name(model: str, layer: str) -> str:
    out, columns = SHAPES[model][layer]
    return f"{out}×{columns} · {model}, {layer}"


def shape_names(more: Iterable[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Title → shape of the layers of real models and of `more`, each shape once, the smallest
    first."""
    seen: dict[tuple[int, int], str] = {}
    for model, layers in SHAPES.items():
        for layer, shape in layers.items():
            if layer != "lm_head":
                seen.setdefault(shape, _name(model, layer))
    for shape in more:
        seen.setdefault(shape, f"{shape[0]}×{shape[1]}")
    return {seen[shape]: shape for shape in sorted(seen, key=lambda s: s[0] * s[1])}


def only(measured: Measurement, shape: tuple[int, int], format: str) -> Measurement | None:
    """One shape and format of a measurement, and the kernels left out of it. None where it has no
    such points."""
    points = measured.select(shape=shape, format=format)
    if not points:
        return None
    absent = {}
    for key, why in measured.left_out.items():
        kernel, *where = key.split(", ")  # and format or batch, where only that
        if not any(part in FORMATS and part != format for part in where):
            absent[", ".join([kernel, *(part for part in where if part != format)])] = why
    return replace(measured, points=points, left_out=absent)


def batches_of(measured: Measurement) -> list[int]:
    return sorted({point.batch for point in measured.points})


def kernels_of(measured: Measurement) -> list[str]:
    return list(dict.fromkeys(point.kernel for point in measured.points))
