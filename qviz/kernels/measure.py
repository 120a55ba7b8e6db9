"""Measuring kernels side by side: one weight, several batches, every kernel in turn.

The weight is quantized by the real method and packed by each kernel that takes it. For each batch
all of them multiply the same inputs: first once, for comparison with float64, then repeatedly in
turn, timed. 16-bit weights (torch.matmul) take part in every run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from qviz.core.check import as_matrix
from qviz.core.memory import require_memory
from qviz.core.tensor import QuantizedTensor
from qviz.kernels import formats, registry
from qviz.kernels.alone import alone
from qviz.kernels.asked import Asked, check
from qviz.kernels.ceilings import Ceilings
from qviz.kernels.ceilings import ceilings as measure_ceilings
from qviz.kernels.errors import Target
from qviz.kernels.kernel import LACKING, Kernel, Packed
from qviz.kernels.machine import load, machine
from qviz.kernels.registry import BASELINE
from qviz.kernels.results import HALF, Crossover, Measurement, Point, baseline_dtype
from qviz.kernels.timing import (
    COLD,
    Timer,
    Timing,
    copies_for,
    launched,
    round_robin,
    timer_for,
)

__all__ = ["Ceilings", "Crossover", "Measurement", "Point", "Timing", "measure"]

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WORKSPACE = 24  # bytes for each weight that quantizing takes at its peak, float32 weight included
INPUT_BYTES = 2**28  # of all copies of the inputs together
# What a kernel multiplies in, by the first word of what it makes of the inputs.
_PRODUCT_OF = {"int8": "int8", "fp8": "float8_e4m3fn"}


def measure(
    shape: tuple[int, int] | None,
    format: str | Sequence[str] = formats.DEFAULT_FORMAT,
    batches: Sequence[int] = BATCHES,
    *,
    device: torch.device | str | None = None,
    kernels: Sequence[str] | None = None,
    weight: torch.Tensor | None = None,
    seconds: float = 0.3,
    seed: int = 0,
    ceilings: Ceilings | None = None,
    progress: Callable[[int, int, str], object] | None = None,
    stopped: Callable[[], bool] | None = None,
    keep: Callable[[Measurement], object] | None = None,
) -> Measurement:
    """Time and error of every kernel that runs on the device and takes the format.

    shape     (out, in) of the weight; None: that of `weight`
    format    one or several names of qviz.kernels.formats
    batches   tokens that are multiplied at once
    device    None: the GPU, if there is one
    kernels   names; None: all. Those that cannot take part are in `left_out`, with the reason;
              torch.matmul always takes part
    weight    a real weight [out, in], float; None: `synthetic_weight`
    seconds   of timing for each kernel and batch
    ceilings  of this device from an earlier run; None: they are measured first
    progress  called with (done, total, what comes next)
    stopped   called between steps; if it returns True, what has been measured so far is returned
    keep      called after each format with what has been measured so far, `complete` False

    Raises ValueError or TypeError for invalid arguments, MemoryError if it would not fit,
    RuntimeError where not even torch.matmul runs.

    >>> found = qviz.kernels.measure((64, 128), "int8", [1], device="cpu", seconds=0.01)
    >>> found.points[0].kernel, found.points[0].flops
    ('torch.matmul', 16384)
    """
    asked = check(
        shape, format, batches, device=device, kernels=kernels, weight=weight, seconds=seconds,
        seed=seed,
    )  # fmt: skip
    run = _Run(
        asked=asked,
        total=len(asked.formats) * (1 + len(asked.batches)) + (ceilings is None),
        progress=progress,
        stopped=stopped,
    )
    taking_part = run.those_that_run(asked.kernels)
    with alone(run.wait, stopped) as mine, torch.inference_mode():
        if not mine:
            raise ValueError(
                "stopped before anything was measured, while another page or command was measuring "
                "on this machine"
            )
        return run.everything(taking_part, weight, ceilings, keep)


def synthetic_weight(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Gaussian weights [out, in] float32 of deviation 0.02, one column in 256 (at least one) eight
    times as large, as the inputs of trained layers are of unequal importance."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).mul_(0.02)
    weight[:, _some(shape[1], 256, generator)] *= 8
    return weight


def synthetic_inputs(batch: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Gaussian inputs [batch, in] float32, one column in 1024 (at least one) ten times as large:
    the outliers of language models, for which kernels such as LLM.int8() take a second path."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, columns, generator=generator)
    x[:, _some(columns, 1024, generator)] *= 10
    return x


def _some(columns: int, one_in: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(columns, generator=generator)[: math.ceil(columns / one_in)]


@dataclass(frozen=True, eq=False)
class _Entrant:
    """A kernel with the copies of the weight that it takes turns with."""

    kernel: Kernel
    dtype: torch.dtype
    copies: list[Packed]

    @property
    def name(self) -> str:
        """Unique in a run: the baseline takes part once for each dtype of the others."""
        return f"{self.kernel.name} {self.dtype}"


@dataclass
class _Run:
    """The state of a measurement while it runs."""

    asked: Asked
    total: int
    progress: Callable[[int, int, str], object] | None
    stopped: Callable[[], bool] | None
    cache: int = 0
    points: list[Point] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    done: int = -1  # no step has begun

    def step(self, text: str) -> None:
        """Say what comes now; everything before is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, text)

    def say_on_cuda(self, text: str) -> None:
        """Say what a step is at where it may compile, which takes seconds: on a GPU."""
        if self.progress is not None and self.asked.device.type == "cuda":
            self.progress(max(self.done, 0), self.total, text)

    def leave_out(self, kernel: str, format: str, reason: str, batch: int | None = None) -> None:
        parts = [kernel, *([format] if len(self.asked.formats) > 1 else [])]
        parts += [] if batch is None else [f"batch {batch}"]
        self.left_out[", ".join(parts)] = reason

    def is_stopped(self) -> bool:
        return self.stopped is not None and self.stopped()

    def require_room(self, kernels: int) -> None:
        """MemoryError where the copies of all kernels, or quantizing, would not fit."""
        weights = self.asked.shape[0] * self.asked.shape[1]
        # At most two products with 16-bit weights, and one byte for each weight in the others.
        held = sum(_held(bytes_, self.cache) for bytes_ in [2 * weights] * 2 + [weights] * kernels)
        what = f"measuring {self.asked.shape[0]}×{self.asked.shape[1]} with {kernels} kernels"
        instead = "Use a smaller shape, or name fewer kernels"
        on_cpu = self.asked.device.type == "cpu"
        beside = 13 * weights + held  # the weight, its codes, one being packed
        require_memory(max(WORKSPACE * weights, beside) if on_cpu else 4 * weights, what, instead)
        if on_cpu:
            return
        torch.cuda.empty_cache()  # memory that torch only caches counts as free
        needed = held + WORKSPACE * weights
        free = torch.cuda.mem_get_info(self.asked.device)[0]
        if needed > free:
            raise MemoryError(
                f"{what} needs {needed / 2**30:.1f} GiB of the GPU's memory, "
                f"but only {free / 2**30:.1f} GiB are free. {instead}"
            )

    # ------------------------------------------------------------------ who takes part

    def wait(self) -> None:
        """Say that another process is measuring; only one can at a time."""
        if self.progress is not None:
            self.progress(
                0, self.total, "waiting: another page or command is measuring on this machine"
            )

    def everything(
        self,
        kernels: Sequence[Kernel],
        weight: torch.Tensor | None,
        ceilings: Ceilings | None,
        keep: Callable[[Measurement], object] | None,
    ) -> Measurement:
        """Every format and batch, and what the device can do."""
        about = machine(self.asked.device)
        if ceilings is None:
            self.step("what the device can do")
            ceilings = measure_ceilings(self.asked.device)
        self.cache = ceilings.cache
        self.require_room(len(kernels))
        made = (
            synthetic_weight(self.asked.shape, self.asked.seed)
            if weight is None
            else as_matrix(weight)
        )
        complete = True
        for each in self.asked.formats:
            complete = complete and self.one_format(each, made.cpu(), kernels)
            about["load after"] = load()
            if keep is not None:
                points = tuple(self.points)
                keep(Measurement(dict(about), ceilings, points, dict(self.left_out), False))
        if complete:
            self.step("done")
        return Measurement(about, ceilings, tuple(self.points), self.left_out, complete)

    def those_that_run(self, kernels: Sequence[Kernel]) -> list[Kernel]:
        """The kernels that can be timed on this device, without the baseline; the others go to
        `left_out`."""
        found = []
        for kernel in kernels:
            if kernel.name == BASELINE:
                continue
            self.say_on_cuda(f"trying {kernel.name}")
            reason = kernel.missing(self.asked.device) or _interpreted(kernel, self.asked.device)
            if reason is None:
                found.append(kernel)
            else:
                self.left_out[kernel.name] = reason
        return found

    def entrants(
        self, format: str, q: QuantizedTensor, kernels: Sequence[Kernel]
    ) -> list[_Entrant] | None:
        """Those that take the tensor, packed; the baseline first, in the dtypes of the others.
        None where it was stopped."""
        found = []
        for kernel in kernels:
            if self.is_stopped():
                return None
            reason = kernel.refuses(q)
            if reason is not None:
                self.leave_out(kernel.name, format, reason)
                continue
            try:
                found.append(self._packed(kernel, _dtype_of(kernel, self.asked.device), q))
            except (*LACKING, ValueError) as error:
                self.leave_out(kernel.name, format, f"It could not be packed: {_said(error)}.")
        sixteen = {_name(each.dtype): each.dtype for each in found}
        dtypes = [sixteen[name] for name in HALF if name in sixteen] or [torch.bfloat16]
        if torch.bfloat16 not in dtypes and any(n not in HALF for n in sixteen):
            dtypes.append(torch.bfloat16)
        baseline = registry.get(BASELINE)
        return [*(self._packed(baseline, dtype, q) for dtype in dtypes), *found]

    def _packed(self, kernel: Kernel, dtype: torch.dtype, q: QuantizedTensor) -> _Entrant:
        first = kernel.pack(q, self.asked.device, dtype)
        count = copies_for(first.nbytes, self.cache)
        return _Entrant(kernel, dtype, [first, *(first.copy() for _ in range(count - 1))])

    # ------------------------------------------------------------------ measuring

    def one_format(
        self, format: formats.Format, weight: torch.Tensor, kernels: Sequence[Kernel]
    ) -> bool:
        """Measure every batch with the weight in this format; False where it was stopped."""
        if self.is_stopped():
            return False
        self.step(
            f"{format.name}: quantizing and packing {self.asked.shape[0]}×{self.asked.shape[1]}"
        )
        # Where the kernels run: a GPU is some hundred times as fast at this, too.
        q = format.quantize(weight.to(self.asked.device))
        entrants = self.entrants(format.name, q, kernels)
        if entrants is None:
            return False
        target = Target.of(q, self.asked.seed)
        return all(self.one_batch(format.name, n, entrants, target) for n in self.asked.batches)

    def one_batch(
        self, format: str, batch: int, entrants: Sequence[_Entrant], target: Target
    ) -> bool:
        """One point for each entrant; False, and no points, where it was stopped."""
        if self.is_stopped():
            return False
        self.step(f"{format}, batch {batch}: {len(entrants)} kernels in turns")
        x = synthetic_inputs(batch, self.asked.shape[1], self.asked.seed + batch)
        ready: dict[str, _Ready] = {}
        for entrant in entrants:
            self.say_on_cuda(f"{format}, batch {batch}: preparing {entrant.kernel.name}")
            try:
                ready[entrant.name] = _Ready.of(entrant, x, target, self.asked.device, self.cache)
            except (*LACKING, ValueError) as error:
                self.leave_out(entrant.kernel.name, format, f"It failed: {_said(error)}.", batch)
        self._keep_comparable(ready, format, batch)
        times = round_robin(
            {n: r.timer for n, r in ready.items()}, self.asked.seconds, self.stopped
        )
        if times is None:
            return False
        launches = self._launches(ready)
        for name, each in ready.items():
            self.points.append(each.point(format, times[name], launches.get(name), target))
        return True

    def _keep_comparable(self, ready: "dict[str, _Ready]", format: str, batch: int) -> None:
        """Drop kernels for which the 16-bit product failed: a time alone says nothing."""
        beside = {
            _name(r.entrant.dtype) for r in ready.values() if r.entrant.kernel.name == BASELINE
        }
        for name, each in list(ready.items()):
            if baseline_dtype(_name(each.entrant.dtype)) not in beside:
                del ready[name]
                why = f"There is no {BASELINE} to compare it with, because that failed."
                self.leave_out(each.entrant.kernel.name, format, why, batch)

    def _launches(self, ready: "dict[str, _Ready]") -> dict[str, Timing]:
        """CUDA: the same products one by one from Python."""
        if self.asked.device.type != "cuda":
            return {}
        timers = {name: launched(each.call, self.asked.device) for name, each in ready.items()}
        return round_robin(timers, self.asked.seconds / 5) or {}


@dataclass(frozen=True, eq=False)
class _Ready:
    """An entrant with inputs, compared with float64 and ready to be timed."""

    entrant: _Entrant
    batch: int
    call: Callable[[], object]
    timer: Timer
    errors: tuple[float, float]
    note: str

    @classmethod
    def of(
        cls, entrant: _Entrant, x: torch.Tensor, target: Target, device: torch.device, cache: int
    ) -> "_Ready":
        """ValueError where the product is not finite; LACKING where it fails."""
        given = x.to(entrant.dtype)
        kernel, copies = entrant.kernel, entrant.copies
        errors = target.errors(kernel, given, kernel.multiply(copies[0], given.to(device)))
        size = given.numel() * given.element_size()
        count = max(2, min(len(copies), INPUT_BYTES // size))
        inputs = [given.to(device, copy=True) for _ in range(count)]
        call = _Turns(kernel, copies, inputs)
        if device.type == "cuda" or copies[0].scratch:
            for _ in copies:  # what a kernel makes of each copy the first time it sees it
                call()
        timer, note = timer_for(call, device, len(copies))
        return cls(entrant, len(x), call, timer, errors, note or _warm_note(copies, cache))

    def point(self, format: str, time: Timing, launch: Timing | None, target: Target) -> Point:
        packed, dtype = self.entrant.copies[0], self.entrant.dtype
        out, columns = packed.shape
        moved = packed.nbytes + self.batch * (out + columns) * dtype.itemsize
        return Point(
            kernel=self.entrant.kernel.name,
            format=format,
            shape=packed.shape,
            batch=self.batch,
            dtype=_name(dtype),
            time=time,
            weight_bytes=packed.nbytes,
            moved_bytes=moved,
            flops=2 * self.batch * out * columns,
            error=self.errors[0],
            total_error=self.errors[1],
            copies=len(self.entrant.copies),
            launch=launch,
            arithmetic=_arithmetic_of(self.entrant.kernel, dtype),
            error_rows=None if target.rows is None else len(target.rows),
            note=self.note,
        )


class _Turns:
    """The product with the next copy of the weight and of the inputs."""

    def __init__(
        self, kernel: Kernel, copies: Sequence[Packed], inputs: Sequence[torch.Tensor]
    ) -> None:
        # What is measured is `product`: the checks of `multiply` are not the kernel's.
        self._product = kernel.product
        self._pairs = [(w, inputs[i % len(inputs)]) for i, w in enumerate(copies)]
        self._next = 0

    def __call__(self) -> torch.Tensor:
        packed, x = self._pairs[self._next]
        self._next = (self._next + 1) % len(self._pairs)
        return self._product(packed, x)


# ---------------------------------------------------------------------- small decisions


def _dtype_of(kernel: Kernel, device: torch.device) -> torch.dtype:
    """The dtype that a kernel is made for; on a CPU, where products in float16 are rarely more
    than an emulation, bfloat16 instead if it takes that."""
    made_for = kernel.dtypes[0]
    if device.type == "cpu" and made_for is torch.float16 and torch.bfloat16 in kernel.dtypes:
        return torch.bfloat16
    return made_for


def _arithmetic_of(kernel: Kernel, dtype: torch.dtype) -> str | None:
    """The dtype in which a kernel multiplies; None where it is not known."""
    if kernel.activations == "as they are":
        return _name(kernel.arithmetic or dtype)
    first = kernel.activations.split()[0].lower().rstrip(",;:")
    return _PRODUCT_OF.get(first)


def _interpreted(kernel: Kernel, device: torch.device) -> str | None:
    """Why a kernel that runs only in an interpreter is not timed; None: it runs for real."""
    if device.type != "cpu" or not kernel.interpreted:
        return None
    return (
        f"{kernel.name} is only interpreted on a CPU, so its results mean something but its time "
        "does not."
    )


def _warm_note(copies: Sequence[Packed], cache: int) -> str:
    """A note for the reader if even the maximum number of copies does not exceed the cache."""
    total = sum(copy.nbytes for copy in copies)
    if total > COLD * cache:
        return ""
    return f"{len(copies)} copies are {total / 2**20:.1f} MiB: some may have been in the cache"


def _held(weight_bytes: int, cache: int) -> int:
    return weight_bytes * copies_for(weight_bytes, cache)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _said(error: Exception) -> str:
    """The first line of what an exception says, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:160]
