"""What a device can do at best: bytes moved and operations computed per second, measured now."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from qviz.core.memory import require_memory
from qviz.kernels.kernel import LACKING
from qviz.kernels.registry import chosen_device
from qviz.kernels.timing import CpuTimer, Looped, Timer, last_level_cache, round_robin

SECONDS = 0.1  # for each figure
LONGEST = 0.1  # seconds that one product may take on a CPU; bounds how large its matrices get
LEAST_COPY = {"cpu": 2**27, "cuda": 2**29}  # bytes of a buffer that is copied or read
SIDES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # of the square products

Maker = Callable[[int, torch.device], Callable[[], object]]  # from a side to the product


@dataclass(frozen=True)
class Ceilings:
    """Measured on one device.

    copy_bandwidth  bytes read and written per second by a copy larger than every cache
    read_bandwidth  bytes per second of a plain read, a sum
    matmul_rate     dtype name → operations per second of the best large square product that torch
                    has for it here; absent where it has none
    cache           bytes of the last-level cache that rotated buffers have to exceed
    """

    copy_bandwidth: float
    read_bandwidth: float
    matmul_rate: Mapping[str, float]
    cache: int

    @property
    def bandwidth(self) -> float:
        """Bytes per second at best: of the copy or of the read, whichever is faster. This bounds a
        product, which reads far more than it writes."""
        return max(self.copy_bandwidth, self.read_bandwidth)


def ceilings(device: torch.device | str | None = None) -> Ceilings:
    """Measure them on this device (None: the GPU, if there is one); takes a few seconds.

    MemoryError where two buffers larger than the cache do not fit.

    >>> ceilings("cpu").copy_bandwidth > 1e6  # bytes per second
    True
    """
    where = chosen_device(device)
    cache = last_level_cache(where).size
    with torch.inference_mode():
        copy, read = _bandwidths(where, cache)
        rates = {name: _rate(make, where) for name, make in _PRODUCTS.items()}
    return Ceilings(copy, read, {name: rate for name, rate in rates.items() if rate}, cache)


def _bandwidths(device: torch.device, cache: int) -> tuple[float, float]:
    """Bytes per second of a copy (both ways) and of a sum."""
    size = max(LEAST_COPY[device.type], 4 * cache)
    _require_room(2 * size, device)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    copy = _seconds(lambda: target.copy_(source), device)
    read = _seconds(source.sum, device)
    return 2 * size / copy, size / read


def _require_room(size: int, device: torch.device) -> None:
    what, instead = "measuring the bandwidth", "Close programs that hold memory"
    if device.type == "cpu":
        require_memory(size, what, instead)
        return
    torch.cuda.empty_cache()  # memory that torch only caches counts as free
    free = torch.cuda.mem_get_info(device)[0]
    if size > free:
        raise MemoryError(
            f"{what} needs {size / 2**30:.1f} GiB of the GPU's memory, but only "
            f"{free / 2**30:.1f} GiB are free. {instead}"
        )


def _rate(make: Maker, device: torch.device) -> float:
    """Operations per second of the best square product; 0 where torch has none here.

    Sides are tried once each, on a CPU until the next would take too long; the best is timed.
    """
    best: tuple[float, int, Callable[[], object]] | None = None
    for side in SIDES[device.type]:
        try:
            call = make(side, device)
            call()
        except LACKING:
            break
        seconds = _timer(call, device).sample()
        if best is None or 2 * side**3 / seconds > best[0]:
            best = 2 * side**3 / seconds, side, call
        if device.type == "cpu" and 8 * seconds > LONGEST:  # twice the side takes 8 times as long
            break
    return 0.0 if best is None else 2 * best[1] ** 3 / _seconds(best[2], device)


def _timer(call: Callable[[], object], device: torch.device) -> Timer:
    return CpuTimer(call) if device.type == "cpu" else Looped(call, device, 5)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    found = round_robin({"only": _timer(call, device)}, SECONDS)
    assert found is not None  # it cannot be stopped
    return found["only"].median


def _floats(dtype: torch.dtype) -> Maker:
    def make(side: int, device: torch.device) -> Callable[[], object]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return lambda: torch.nn.functional.linear(a, b)

    return make


def _int8(side: int, device: torch.device) -> Callable[[], object]:
    a, b = (torch.randint(-127, 128, (side, side), device=device).to(torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b.T)


def _fp8(side: int, device: torch.device) -> Callable[[], object]:
    a, b = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b.T, one, one, out_dtype=torch.bfloat16)


_PRODUCTS: Mapping[str, Maker] = {
    "bfloat16": _floats(torch.bfloat16),
    "float16": _floats(torch.float16),
    "float32": _floats(torch.float32),
    "int8": _int8,
    "float8_e4m3fn": _fp8,
}
