"""What the kernels lesson says of a measurement: bounds, comparisons, sizes and times in words."""

from qviz.kernels import registry
from qviz.kernels.ceilings import Ceilings
from qviz.kernels.machine import machine
from qviz.kernels.registry import BASELINE
from qviz.kernels.results import Bound, Measurement, Point
from qviz.ui.widgets import number, percent


def activations(kernel: str) -> str:
    known = registry.kernels().get(kernel)
    return "not known" if known is None else known.activations


def device_words() -> str:
    """What would be measured here, in a sentence."""
    device = registry.default_device()
    if device.type == "cuda":
        return f"This machine has a GPU, {machine(device)['device']}: its kernels are measured."
    about = machine(device)
    return (
        f"This machine has no GPU. The kernels of its processor ({about['processor']}, threads: "
        f"{about['threads']}) are measured."
    )


def busy_words(measured: Measurement) -> str:
    """How far to trust it: other work on the machine, and whether it is complete."""
    words = [] if measured.complete else ["Stopped early: whatever is missing was not measured."]
    about = measured.machine
    try:
        load, cores = float(about["load before"]), int(about["cores"])
    except (KeyError, ValueError):
        return " ".join(words)
    if load > cores / 4:
        words.append(
            f"In the minute before, the machine was busy (load {load:g} on {cores} cores), with "
            "other work or an earlier measurement. Do not trust small differences."
        )
    return " ".join(words)


def compared(point: Point, beside: Point, speed: float) -> str:
    """How it compares with 16-bit weights, without a full stop."""
    said = f"{three(max(speed, 1 / speed))}× as {'fast' if speed > 1 else 'slow'} as"
    if point.time.overlaps(beside.time):
        said = "no measurable difference from"
    if point.kernel == BASELINE:
        said = "there is no other kernel to compare these with"
    unsteady = dict.fromkeys(each.kernel for each in (point, beside) if scattered(each))
    if unsteady:
        said = (
            f"{said} 16-bit weights, but the repeats of {' and of '.join(unsteady)} are more "
            "than a factor of 2 apart (was something else running?)"
        )
    else:
        said += " 16-bit weights"
    return said


def bound_words(point: Point, bound: Bound) -> str:
    """What the device's ceilings allow, and how the measured time compares."""
    asked = f"Moving {size(point.moved_bytes)} takes at least {duration(bound.memory)}"
    if bound.arithmetic is not None:
        asked += f", the arithmetic at least {duration(bound.arithmetic)}"
    times = three(point.time.median / bound.seconds)
    took = f"the kernel takes {times}× as long as that"
    if point.time.median < bound.seconds:
        took += ": the device can do more than the best that was measured"
    return f"{asked}, so {bound.limit} is the tighter bound; {took}."


def scattered(point: Point) -> bool:
    """Whether the 10th and the 90th percentile are more than a factor of 2 apart."""
    return point.time.high > 2 * point.time.low


def duration(seconds: float) -> str:
    return f"{three(1e3 * seconds)} ms" if seconds >= 1e-3 else f"{three(1e6 * seconds)} µs"


def size(count: float) -> str:
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{three(count / 10**power)} {unit}"
    return f"{number(count)} bytes"


def three(value: float) -> str:
    """Three significant digits; all of the whole part where that has more."""
    return number(value, max(3, len(str(int(abs(value))))))


def share(part: float) -> str:
    """In percent, all of the whole part."""
    return percent(part, max(3, len(str(int(abs(100 * part))))))


def bandwidth_name(ceilings: Ceilings) -> str:
    """The one bandwidth that everything is compared with: its figure, and how it was timed."""
    way = "a read" if ceilings.read_bandwidth >= ceilings.copy_bandwidth else "a copy"
    return f"{three(ceilings.bandwidth / 1e9)} GB/s, {way}"


def why_so_fast(point: Point, beside: Point, speed: float, bound: Bound) -> str:
    """Why its speed-up differs from how much smaller its weights are; `bound` is that of the 16-bit
    product beside it."""
    smaller = beside.weight_bytes / point.weight_bytes
    if point.kernel == BASELINE or scattered(point) or scattered(beside):
        return ""
    text = f" Its weights are {three(smaller)}× smaller."
    lag = beside.time.median / bound.seconds
    if bound.limit == "memory" and speed > 1.1 * smaller and lag > 1.1:
        text += (
            f" It gains more than that because the 16-bit product itself takes {three(lag)}× as "
            "long as its memory bound."
        )
    return text
