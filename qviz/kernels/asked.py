"""The request for a measurement, checked completely before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qviz.core.check import as_matrix, require_int, require_number
from qviz.kernels import formats, registry
from qviz.kernels.kernel import Kernel
from qviz.kernels.registry import BASELINE


@dataclass(frozen=True)
class Asked:
    """A valid request: (out, in), tokens multiplied at once, seconds for each kernel and batch, and
    the names of the kernels to measure, whether they run here or not."""

    shape: tuple[int, int]
    formats: tuple[formats.Format, ...]
    batches: tuple[int, ...]
    device: torch.device
    kernels: tuple[Kernel, ...]
    seconds: float
    seed: int


def check(
    shape: tuple[int, int] | None,
    format: str | Sequence[str],
    batches: Sequence[int],
    *,
    device: torch.device | str | None = None,
    kernels: Sequence[str] | None = None,
    weight: torch.Tensor | None = None,
    seconds: float = 0.3,
    seed: int = 0,
) -> Asked:
    """Check the arguments of `measure`.

    ValueError, TypeError and RuntimeError as from `measure`.

    >>> check((64, 128), "int8", [1], device="cpu").batches
    (1,)
    """
    names = [format] if isinstance(format, str) else list(dict.fromkeys(format))
    wanted = tuple(formats.get(name) for name in names)
    if not wanted:
        raise ValueError("there is no format to measure; name one, such as int4-g128")
    where = registry.chosen_device(device)
    registry.require(BASELINE, where)
    chosen = registry.kernels() if kernels is None else {n: registry.get(n) for n in kernels}
    asked = Asked(
        shape=_checked_shape(shape, weight),
        formats=wanted,
        batches=_checked_batches(batches),
        device=where,
        kernels=tuple(chosen.values()),
        seconds=_checked_seconds(seconds),
        seed=require_int(seed, "seed", 0, 2**31 - 1),
    )
    _check_formats(wanted, asked.shape[1])
    return asked


def _checked_shape(shape: tuple[int, int] | None, weight: torch.Tensor | None) -> tuple[int, int]:
    if weight is not None:
        own = tuple(as_matrix(weight).shape)
        if shape is not None and tuple(shape) != own:
            raise ValueError(
                f"the weight is {own[0]}×{own[1]}, not {'×'.join(map(str, shape))}; omit the "
                "shape (None)"
            )
        return own[0], own[1]
    if shape is None or len(shape) != 2:
        raise ValueError(f"shape must be (out, in), such as (4096, 4096), got {shape!r}")
    out, columns = (require_int(n, "each side of the shape", 1, 2**20) for n in shape)
    return out, columns


def _check_formats(wanted: Sequence[formats.Format], columns: int) -> None:
    """Raise ValueError, naming the format, if one does not accept rows of this length, before
    anything is measured."""
    row = torch.linspace(-1, 1, columns)[None]
    for each in wanted:
        try:
            each.quantize(row)
        except ValueError as error:
            raise ValueError(f"{each.name} does not accept this shape: {error}") from error


def _checked_batches(batches: Sequence[int]) -> tuple[int, ...]:
    found = tuple(require_int(n, "a batch", 1, 2**16) for n in batches)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"batches must be distinct numbers of tokens, got {list(batches)}")
    return found


def _checked_seconds(seconds: float) -> float:
    value = require_number(seconds, "seconds")
    if not 0 < value <= 60:  # also refuses NaN
        raise ValueError(f"seconds must be above 0 and at most 60, got {seconds}")
    return value
