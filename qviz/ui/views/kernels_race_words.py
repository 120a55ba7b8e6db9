"""What the race says: its equation, and every figure of a measurement in words."""

from collections.abc import Mapping, Sequence

from qviz.kernels.results import Measurement, Point
from qviz.ui.figures.kernels import points_of
from qviz.ui.views.kernels_words import (
    activations,
    bandwidth_name,
    bound_words,
    compared,
    duration,
    share,
    size,
    three,
    why_so_fast,
)
from qviz.ui.widgets import number

EQUATION = """
<math display="block"><mrow>
  <mi data-term="t">t</mi><mo>≥</mo><mi>max</mi><mo>(</mo>
  <mfrac><mi data-term="bytes" mathvariant="normal">bytes</mi>
  <mi data-term="bandwidth">B</mi></mfrac>
  <mo>,</mo>
  <mfrac><mrow data-term="operations"><mn>2</mn><mo>·</mo><mi>m</mi><mo>·</mo><mi>n</mi><mo>·</mo>
  <mi>k</mi></mrow><mi data-term="rate">R</mi></mfrac>
  <mo>)</mo>
</mrow></math>
"""
TERMS = {
    "t": "t: the time of one product Y = X·Wᵀ",
    "bytes": "bytes: the packed weight, the inputs and the outputs, each read or written once",
    "bandwidth": "B: the memory bandwidth, the most bytes per second that this device moves in "
    "a plain copy or a plain read, measured in the same run",
    "operations": "2·m·n·k: a multiplication and an addition for each of m tokens, n outputs, k "
    "inputs",
    "rate": "R: the operations per second of the fastest large product on this device, measured",
}
SPOKEN = "t is at least the larger of bytes over B and 2 m n k over R"
MEMORY, ARITHMETIC = ["bytes", "bandwidth"], ["operations", "rate"]
AXIS_OF = {"memory": MEMORY, "arithmetic": ARITHMETIC}
FIGURES = ("time", "10th–90th percentile", "16 bits take", "speed, × 16 bits", "weight",
           "at 16 bits", "bandwidth B", "share of B used", "share of R used",
           "memory bound", "arithmetic bound", "error of its arithmetic",
           "… with rounded inputs, scales")  # fmt: skip


def figure_rows(
    shown: Measurement, kernel: str, batches: Sequence[int]
) -> list[tuple[str, list[str]]]:
    """Rows of a table, a text for each batch: everything that was measured of a kernel."""
    points = points_of(shown, kernel)
    columns = [_figures(shown, points.get(batch)) for batch in batches]
    rows = [(name, [column[i] for column in columns]) for i, name in enumerate(FIGURES)]
    return [*rows, ("inputs", [activations(kernel)])]


def _figures(shown: Measurement, point: Point | None) -> list[str]:
    """The texts of FIGURES at one batch."""
    if point is None:
        return ["not measured"] * len(FIGURES)
    beside, bound = shown.baseline(point), shown.bound(point)
    rate = shown.rate_share(point)
    return [
        duration(point.time.median),
        f"{duration(point.time.low)} – {duration(point.time.high)}",
        duration(beside.time.median),
        f"{three(shown.speedup(point))}×",
        size(point.weight_bytes),
        size(beside.weight_bytes),
        bandwidth_name(shown.ceilings),
        share(point.bandwidth / shown.ceilings.bandwidth),
        "not known" if rate is None else share(rate),
        duration(bound.memory),
        "not known" if bound.arithmetic is None else duration(bound.arithmetic),
        share(point.error),
        share(point.total_error),
    ]


def sentence(shown: Measurement, kernel: str, batch: int) -> str:
    """A kernel's time at a batch, compared with 16 bits and with its bound."""
    point = points_of(shown, kernel).get(batch)
    tokens = "1 token" if batch == 1 else f"{batch} tokens"
    if point is None:
        return f"{kernel} was not measured with {tokens}."
    beside = shown.baseline(point)
    said = f"{compared(point, beside, shown.speedup(point))}."
    notes = dict.fromkeys(f" {p.kernel}: {p.note}." for p in (point, beside) if p.note)
    said += why_so_fast(point, beside, shown.speedup(point), shown.bound(beside))
    return (
        f"With {tokens}, {kernel} takes {duration(point.time.median)}: {said} "
        f"{bound_words(point, shown.bound(point))}{''.join(notes)}"
    )


def times_in_words(shown: Measurement, kernels: Sequence[str], batch: int) -> str:
    found = {name: points_of(shown, name).get(batch) for name in kernels}
    listed = ", ".join(
        f"{name} {duration(point.time.median)}"
        for name, point in found.items()
        if point is not None
    )
    return f"With batch {batch}: {listed}."


def roof_in_words(shown: Measurement, kernel: str, batch: int) -> str:
    point = points_of(shown, kernel).get(batch)
    if point is None:
        return f"{kernel} was not measured at batch {batch}."
    return (
        f"{kernel} at batch {batch}: {number(point.intensity, 3)} operations per byte, "
        f"{number(point.rate / 1e9, 3)} billion operations per second; memory moves "
        f"{number(shown.ceilings.bandwidth / 1e9, 3)} billion bytes per second at best."
    )


def reasons(left_out: Mapping[str, str]) -> list[tuple[str, str]]:
    """Rows of a table: which kernels are missing, and why. Names may break after a point, so that
    the table fits beside the charts. A name at the beginning of a reason is dropped."""
    return [
        (name.replace(".", ".\u200b"), why.removeprefix(f"{name} "))
        for name, why in left_out.items()
    ]
