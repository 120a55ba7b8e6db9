"""Which kernels there are, and which of them run here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch

from qviz.core.check import as_device, unknown
from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import Kernel

# A backend is one module with KERNELS, and one line here; none of them imports its package before
# a kernel is asked whether it runs.
_BACKENDS = (
    "qviz.kernels.dense",
    "qviz.kernels.torch_kernels",
    "qviz.kernels.bnb",
    "qviz.kernels.triton_kernels",
    "qviz.kernels.llama_cpp",
)
BASELINE = "torch.matmul"  # the kernel that all others are compared with


@cache
def _all() -> dict[str, Kernel]:
    found = [kernel for module in _BACKENDS for kernel in import_module(module).KERNELS]
    return {kernel.name: kernel for kernel in found}


def kernels() -> Mapping[str, Kernel]:
    """Every kernel by name, whether it runs here or not."""
    return dict(_all())


def get(name: str) -> Kernel:
    """The kernel of this name; ValueError with the nearest names if there is none."""
    if name not in _all():
        raise ValueError(unknown("kernel", name, _all()))
    return _all()[name]


@dataclass(frozen=True)
class Availability:
    """Whether a kernel runs on a device, and if not, why: one sentence."""

    kernel: Kernel
    device: torch.device
    reason: str | None

    def __bool__(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return f"{self.kernel.name:<28}{self.reason or 'available: ' + self.kernel.title}"


class Available(list[Availability]):
    """A list that prints itself, one kernel a line."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__


def default_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The named device, or the default one. Raises ValueError for an unknown one."""
    return default_device() if device is None else as_device(device)


def available(device: torch.device | str | None = None) -> Available:
    """Every kernel, and why it cannot run on this device (None: the GPU, if there is one).

    >>> print(qviz.kernels.available("cpu"))
    """
    where = chosen_device(device)
    return Available(Availability(k, where, k.missing(where)) for k in _all().values())


def usable(q: QuantizedTensor, device: torch.device | str | None = None) -> Sequence[Kernel]:
    """The kernels that run on this device and take this tensor, the 16-bit product first."""
    return [each.kernel for each in available(device) if each and not each.kernel.refuses(q)]


def require(name: str, device: torch.device | str | None = None) -> Kernel:
    """The kernel of this name; RuntimeError, saying why, where it does not run on this device."""
    kernel = get(name)
    where = chosen_device(device)
    reason = kernel.missing(where)
    if reason is not None:
        there = [each.kernel.name for each in available(where) if each]
        others = f" On {where} there are {', '.join(there)}." if there else ""
        raise RuntimeError(f"{reason}{others}")
    return kernel
