"""The results of a measurement: points, the device's ceilings, and what follows from both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qviz.kernels import plain
from qviz.kernels.ceilings import Ceilings
from qviz.kernels.registry import BASELINE
from qviz.kernels.timing import Timing

HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Point:
    """One kernel with one batch.

    kernel        its name
    format        of the weight, a name of qviz.kernels.formats
    shape         (out, in)
    batch         tokens
    dtype         of inputs and outputs
    time          of one product with cold weights
    weight_bytes  that the packed weight occupies
    moved_bytes   weight, inputs and outputs, each once
    flops         2 · tokens · out · in
    error         ‖y − r‖/‖r‖, r the kernel's own reference in float64: the error of its arithmetic
    total_error   the same with r = X·Ŵᵀ for the inputs and the weight as given: this includes the
                  error of rounded inputs and scales
    copies        of the weight that took turns
    launch        CUDA only: the same product called one by one from Python
    arithmetic    dtype in which it multiplies, whose product bounds its rate; None: unknown
    error_rows    outputs that the errors were computed over; None: all of them
    note          what was special about this one; usually ""
    """

    kernel: str
    format: str
    shape: tuple[int, int]
    batch: int
    dtype: str
    time: Timing
    weight_bytes: int
    moved_bytes: int
    flops: int
    error: float
    total_error: float
    copies: int
    launch: Timing | None
    arithmetic: str | None = None
    error_rows: int | None = None
    note: str = ""

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return self.moved_bytes / self.time.median

    @property
    def rate(self) -> float:
        """Floating-point operations per second."""
        return self.flops / self.time.median

    @property
    def intensity(self) -> float:
        """Operations for each byte moved."""
        return self.flops / self.moved_bytes


@dataclass(frozen=True)
class Bound:
    """What the device allows at best: the roofline, in seconds.

    memory      moving weight, inputs and outputs once, at the speed of a copy or of a plain read,
                whichever is higher: a product reads far more than it writes
    arithmetic  the operations at the rate of the best large product in the kernel's arithmetic;
                None where that is not known
    """

    memory: float
    arithmetic: float | None

    @property
    def limit(self) -> str:
        """The word "memory" or "arithmetic", whichever takes longer."""
        return "arithmetic" if (self.arithmetic or 0.0) > self.memory else "memory"

    @property
    def seconds(self) -> float:
        return max(self.memory, self.arithmetic or 0.0)


@dataclass(frozen=True)
class Crossover:
    """Up to which batch a kernel is faster than 16-bit weights.

    faster   the largest batch measured at which it was faster; None: at none
    slower   the next batch measured, at which it was not; None: it was at the largest
    batch    between the two, where a straight line through both speed-ups on log-log axes
             meets 1; None where there are not both
    gaps     smaller batches at which it was not faster either
    unclear  of `faster` and `slower`, those at which the spreads of the two kernels overlap
    batches  all that were measured
    """

    kernel: str
    format: str
    shape: tuple[int, int]
    faster: int | None
    slower: int | None
    batch: float | None
    gaps: tuple[int, ...]
    unclear: tuple[int, ...]
    batches: tuple[int, ...]

    @property
    def verdict(self) -> str:
        """ "always", "never", "crosses", or "within the spread" where no end is clear."""
        ends = [end for end in (self.faster, self.slower) if end is not None]
        if all(end in self.unclear for end in ends):
            return "within the spread"
        if self.faster is None:
            return "never"
        return "always" if self.slower is None and not self.gaps else "crosses"

    def __str__(self) -> str:
        return " ".join(filter(None, (self._main(), self._gaps(), self._unclear())))

    def _main(self) -> str:
        name, several = self.kernel, len(self.batches) > 1
        first, last = self.batches[0], self.batches[-1]
        span = f"every batch measured, {first} to {last}" if several else f"batch {first}"
        if self.faster is None:
            at = f"any batch measured, {first} to {last}" if several else f"batch {first}"
            return f"{name} is not faster than 16-bit weights at {at}."
        if self.slower is None:
            at = f"the largest batch measured, {last}" if self.gaps else span
            return f"{name} is faster than 16-bit weights at {at}."
        about = "" if self.batch is None else f"; they break even at about batch {self.batch:.3g}"
        return (
            f"{name} is faster than 16-bit weights up to batch {self.faster} but no longer at "
            f"{self.slower}{about}."
        )

    def _gaps(self) -> str:
        return f"At batch {_listed(self.gaps)} it is not, though." if self.gaps else ""

    def _unclear(self) -> str:
        if not self.unclear:
            return ""
        return f"At batch {_listed(self.unclear)} there is no measurable difference."


@dataclass(frozen=True)
class Measurement:
    """All that one run found.

    machine   what a reader needs to judge it: device, processor, versions, date, load
    ceilings  what the device can do, measured in the same run
    points    one for each kernel, format, shape and batch
    left_out  kernel (and format or batch, where only that) → why, one sentence
    complete  False if it was stopped and is only partial
    """

    machine: Mapping[str, str]
    ceilings: Ceilings
    points: tuple[Point, ...]
    left_out: Mapping[str, str]
    complete: bool = True

    def select(
        self,
        *,
        kernel: str | None = None,
        format: str | None = None,
        shape: tuple[int, int] | None = None,
        batch: int | None = None,
        dtype: str | None = None,
    ) -> tuple[Point, ...]:
        """The points that agree with everything that is given, in their order."""
        wanted = {"kernel": kernel, "format": format, "shape": shape, "batch": batch}
        wanted["dtype"] = dtype
        asked = {name: value for name, value in wanted.items() if value is not None}
        return tuple(p for p in self.points if all(getattr(p, n) == v for n, v in asked.items()))

    def baseline(self, point: Point) -> Point:
        """The 16-bit product beside it: same shape, format and batch, inputs of the same dtype
        (bfloat16 for a kernel with 32-bit inputs). LookupError where it was not measured."""
        dtype = baseline_dtype(point.dtype)
        beside = self.select(
            kernel=BASELINE, format=point.format, shape=point.shape, batch=point.batch, dtype=dtype
        )
        if not beside:
            raise LookupError(
                f"{BASELINE} was not measured in {dtype} at batch {point.batch} of "
                f"{point.shape[0]}×{point.shape[1]}, {point.format}"
            )
        return beside[0]

    def speedup(self, point: Point) -> float:
        """How many times as fast as 16-bit weights, by the medians."""
        return self.baseline(point).time.median / point.time.median

    def bandwidth_share(self, point: Point) -> float:
        """The bytes it moves per second, of those of a copy."""
        return point.bandwidth / self.ceilings.copy_bandwidth

    def rate_share(self, point: Point) -> float | None:
        """Its operations per second, of the best product in the dtype in which it multiplies;
        None where that is not known."""
        ceiling = self.ceilings.matmul_rate.get(point.arithmetic or "")
        return None if ceiling is None else point.rate / ceiling

    def bound(self, point: Point) -> Bound:
        """The least time that this device's ceilings leave for a point (Williams et al. 2009)."""
        rate = self.ceilings.matmul_rate.get(point.arithmetic or "")
        arithmetic = None if rate is None else point.flops / rate
        return Bound(point.moved_bytes / self.ceilings.bandwidth, arithmetic)

    def crossover(self, kernel: str, format: str, shape: tuple[int, int]) -> Crossover:
        """From which batch a kernel is no longer faster than 16-bit weights.

        ValueError for the baseline itself, LookupError where the kernel was not measured so.
        """
        if kernel == BASELINE:
            raise ValueError(f"{BASELINE} is the baseline that the others are compared with")
        points = {p.batch: p for p in self.select(kernel=kernel, format=format, shape=shape)}
        if not points:
            why = self.left_out.get(kernel) or self.left_out.get(f"{kernel}, {format}")
            raise LookupError(
                f"{kernel} was not measured with {format} at {shape[0]}×{shape[1]}: "
                f"{why or 'it was not requested.'}"
            )
        batches = tuple(sorted(points))
        speedups = {batch: self.speedup(points[batch]) for batch in batches}
        faster = max((b for b in batches if speedups[b] > 1), default=None)
        later = [b for b in batches if faster is None or b > faster]
        slower = later[0] if later else None
        at = None
        if faster is not None and slower is not None:
            at = _meets_one(faster, speedups[faster], slower, speedups[slower])
        gaps = tuple(b for b in batches if speedups[b] <= 1 and b < (faster or 0))
        unclear = tuple(
            b
            for b in (faster, slower)
            if b is not None and points[b].time.overlaps(self.baseline(points[b]).time)
        )
        return Crossover(kernel, format, shape, faster, slower, at, gaps, unclear, batches)

    def crossovers(self) -> list[Crossover]:
        """Of every kernel, format and shape that was measured."""
        keys = dict.fromkeys((p.kernel, p.format, p.shape) for p in self.points)
        return [self.crossover(*key) for key in keys if key[0] != BASELINE]

    def joined(self, other: "Measurement") -> "Measurement":
        """Both in one, as of this one's machine and ceilings: for several shapes of one run."""
        both = dict(self.left_out)
        for name, why in other.left_out.items():
            known = both.get(name, why)
            both[name] = known if why in known else f"{known} {why}"
        points = self.points + other.points
        complete = self.complete and other.complete
        machine = dict(self.machine)
        if "load after" in other.machine:
            machine["load after"] = other.machine["load after"]
        return Measurement(machine, self.ceilings, points, both, complete)

    def to_json(self) -> str:
        """Plain JSON. ValueError where a figure is not finite."""
        return plain.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> "Measurement":
        """What to_json wrote. ValueError, naming the field, for anything else."""
        read: Measurement = plain.loads(cls, text)
        return read


def baseline_dtype(dtype: str) -> str:
    """The dtype of the 16-bit product that a kernel with such inputs is compared with."""
    return dtype if dtype in HALF else HALF[0]


def _meets_one(low: int, fast: float, high: int, slow: float) -> float:
    """Where the line through (low, fast) and (high, slow) on log-log axes has the height 1."""
    share = math.log(fast) / (math.log(fast) - math.log(slow))
    return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))


def _listed(numbers: tuple[int, ...]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last
