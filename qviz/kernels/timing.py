"""How long one product takes: cold weights, no launch cost on a GPU, every kernel in turn.

A product with small weights that is repeated finds them in the cache, which a layer of a model
never does: between two uses of a layer all other layers run. So each call uses the next of several
copies that together exceed the cache. On a GPU the copies are multiplied in one CUDA graph, which
is
replayed, so that Python and the launches cost nothing; `Launched` times the same calls one by one.
"""

import contextlib
import math
import re
import shutil
import statistics
import subprocess
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SHORT = (
    50e-6  # seconds: shorter calls are timed several at once, since reading the clock takes time
)
ROUNDS = 7  # turns that every kernel takes; the fewest repeats there are
IN_GRAPH = 20  # products in a CUDA graph, at least
MOST_COPIES = 1024  # of a weight: limits the time needed to make them
COLD = 3  # how many times the last-level cache the copies fill
AGREE = 0.05  # relative difference at which two medians of a warm-up count as equal
ASSUMED_CACHE = 32 * 2**20  # bytes, where the system does not say
_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Timing:
    """Seconds per product: the median, the 10th and 90th percentile, and of how many samples."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Of samples [repeats], at least two.

        >>> Timing.of([1.0, 2.0, 3.0])
        Timing(median=2.0, low=1.2, high=2.8, repeats=3)
        """
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        return cls(statistics.median(seconds), tenths[0], tenths[-1], len(seconds))

    def overlaps(self, other: "Timing") -> bool:
        """Whether the two ranges from low to high overlap."""
        return self.low <= other.high and other.low <= self.high


# ---------------------------------------------------------------------- the cache


@dataclass(frozen=True)
class Cache:
    """Bytes of the last-level cache, and who says so."""

    size: int
    source: str

    def __str__(self) -> str:
        return f"{self.size / 2**20:g} MiB ({self.source})"


def last_level_cache(device: torch.device) -> Cache:
    """The cache that the copies of a weight have to exceed: L2 of a GPU, L3 of most CPUs."""
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).L2_cache_size
        return Cache(int(size), "from the driver")
    for found, source in ((_cache_in_sys(_CPU), "from /sys"), (_cache_of_lscpu(), "from lscpu")):
        if found:
            return Cache(found, source)
    return Cache(ASSUMED_CACHE, "assumed: the system does not say")


def _cache_in_sys(root: Path) -> int:
    """Bytes of the caches of the highest level that torch's threads can share; 0: unknown."""
    caches: dict[tuple[int, str], int] = {}
    for size in root.glob("cpu[0-9]*/cache/index*/size"):
        text = size.read_text().strip()
        if not re.fullmatch(r"\d+[KMG]?", text):
            continue
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1], 1)
        shared = size.with_name("shared_cpu_list").read_text().strip()
        level = int(size.with_name("level").read_text())
        caches[level, shared] = int(text.rstrip("KMG")) * unit
    if not caches:
        return 0
    top = max(level for level, _ in caches)
    sizes = sorted((n for (level, _), n in caches.items() if level == top), reverse=True)
    return sum(sizes[: torch.get_num_threads()])  # each thread brings one cache at most


def _cache_of_lscpu() -> int:
    if shutil.which("lscpu") is None:
        return 0
    done = subprocess.run(["lscpu", "-B"], capture_output=True, text=True, check=False)
    sizes = re.findall(r"^L\d\w* cache:\s+(\d+)", done.stdout, re.MULTILINE)
    return max(map(int, sizes), default=0)


def copies_for(weight_bytes: int, cache: int) -> int:
    """How many copies of a weight are rotated: at least 2, enough to exceed the cache 3 times.

    >>> copies_for(2**20, cache=32 * 2**20), copies_for(2**30, cache=32 * 2**20)
    (97, 2)
    """
    return min(max(2, COLD * cache // max(weight_bytes, 1) + 1), MOST_COPIES)


# ---------------------------------------------------------------------- clocks


class Timer(ABC):
    """Times one kind of call; `sample` returns seconds per call."""

    @abstractmethod
    def sample(self) -> float: ...


class CpuTimer(Timer):
    """By the processor's clock: one call at a time, or several where one is short."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._calls = 1
        call()  # not counted: the first call may compile or choose
        self._calls = max(1, math.ceil(SHORT / max(1e-9, min(self.sample() for _ in range(3)))))

    def sample(self) -> float:
        call, calls = self._call, self._calls
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Looped(Timer):
    """By CUDA events around some calls; Python runs ahead of the GPU if it can."""

    def __init__(self, call: Callable[[], object], device: torch.device, calls: int) -> None:
        self._call, self._device, self._calls = call, device, calls
        for _ in range(3):
            call()
        torch.cuda.synchronize(device)

    def sample(self) -> float:
        with torch.cuda.device(self._device):
            start, end = _event(), _event()
            start.record()
            for _ in range(self._calls):
                self._call()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / self._calls


def launched(call: Callable[[], object], device: torch.device) -> Looped:
    """One call at a time on an idle GPU: the way from Python is part of what is timed."""
    return Looped(call, device, 1)


class Graph(Timer):
    """By CUDA events around the replay of a graph of many calls: nothing but the GPU's own time.

    RuntimeError where the calls cannot be captured, such as those that wait for the GPU.
    """

    def __init__(self, call: Callable[[], object], device: torch.device, calls: int) -> None:
        self._device, self._calls = device, calls
        with torch.cuda.device(device):
            _warm_beside(call, device)
            _refuse_waiting(call)
            self._graph = _captured(call, calls)
            self._graph.replay()
            torch.cuda.synchronize(device)

    def sample(self) -> float:
        with torch.cuda.device(self._device):
            start, end = _event(), _event()
            start.record()
            self._graph.replay()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / self._calls


def _warm_beside(call: Callable[[], object], device: torch.device) -> None:
    """On a stream of its own, as a capture wants it: compiles, tunes, takes workspaces."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)


def _refuse_waiting(call: Callable[[], object]) -> None:
    """RuntimeError where a call waits for the GPU: better known before a capture than by one that
    fails, after which some versions of torch's allocator trust no later one."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _captured(call: Callable[[], object], calls: int) -> torch.cuda.CUDAGraph:
    """The calls as a graph, on the current device."""
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        # thread_local: another thread of the process may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            for _ in range(calls):
                call()
    except RuntimeError:
        # Up to torch 2.12 a failed capture leaves the allocator believing that it goes on, and
        # the next one dies of that. Later versions have ended it, and say so: nothing is lost.
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise
    return graph


def timer_for(call: Callable[[], object], device: torch.device, copies: int) -> tuple[Timer, str]:
    """The timer for products on this device, and a note where it is not the one it should be."""
    if device.type != "cuda":
        return CpuTimer(call), ""
    calls = copies * math.ceil(IN_GRAPH / copies)  # each copy equally often
    try:
        return Graph(call, device, calls), ""
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        note = f"timed in a loop, launches included: no CUDA graph takes it ({said[:120]})"
        return Looped(call, device, calls), note


# ---------------------------------------------------------------------- sampling


def warm_up(timer: Timer, seconds: float) -> float:
    """Seconds per call, once two successive medians agree or time is up."""
    start = time.perf_counter()
    each = 3 if timer.sample() < seconds / 20 else 1
    before = math.inf
    while True:
        median = statistics.median(timer.sample() for _ in range(each))
        if abs(median - before) <= AGREE * median or time.perf_counter() - start > seconds:
            return median
        before = median


def round_robin(
    timers: Mapping[str, Timer], seconds: float, stopped: Callable[[], bool] | None = None
) -> dict[str, Timing] | None:
    """The timing of each. All take turns, so that a drift of the clock affects all alike.

    Each gets about `seconds` in all, and 7 samples at least. None where `stopped` said so between
    two turns.
    """
    expected = {name: warm_up(timer, seconds) for name, timer in timers.items()}
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(ROUNDS):
        if stopped is not None and stopped():
            return None
        for name in list(timers)[:: -1 if turn % 2 else 1]:
            _fill(samples[name], timers[name], seconds / ROUNDS, expected[name])
    return {name: Timing.of(found) for name, found in samples.items()}


def _fill(samples: list[float], timer: Timer, slot: float, expected: float) -> None:
    """Samples until the slot is used, at least one; no more than the warm-up made expect twice,
    so that a kernel whose samples are cheap to take cannot fill the memory with them."""
    end = time.perf_counter() + slot
    for _ in range(max(1, math.ceil(2 * slot / expected))):
        samples.append(timer.sample())
        if time.perf_counter() >= end:
            return
