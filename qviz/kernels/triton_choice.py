"""A record of which configuration is fastest here, and of which kernels were tried.

Results are kept in a file for each card, so that the next process or page does not time them again.
It lies in $QVIZ_CACHE or the user's cache directory, and holds for these
sources, these versions, this shape and this range of tokens alone.
"""

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qviz.kernels.kernel import Packed

if TYPE_CHECKING:
    from qviz.kernels.triton_kernels import Config

log = logging.getLogger("qviz")

SMALL = 2**21  # weights below which a product takes as long as its launch, whatever is chosen
WARM, TIMED = 1, 6  # milliseconds of running before and while a configuration is timed
SOURCES = ("triton_source.py", "triton_decode.py", "triton_kernels.py")

_chosen: dict[str, int] = {}

Run = Callable[..., Any]


def fastest(
    packed: Packed,
    name: str,
    configs: "Sequence[Config]",
    make: "Callable[[Config], Run]",
    *given: Any,
) -> Run:
    """The product of the configuration that is fastest with the arguments `given`, to be called
    with others like them.

    make  configuration → product. On a CPU, where all are interpreted, the first one is taken, as
          it is of small weights that it fits.
    """
    if packed.device.type == "cpu":
        return make(configs[0])
    small = packed.shape[0] * packed.shape[1] < SMALL
    key = _key(packed, name, configs)
    at = 0 if small or len(configs) == 1 else _known(packed.device, key)
    if at is not None and fits(run := make(configs[at]), given):
        return run
    made = [make(config) for config in configs]
    times = [timed(run, given) for run in made]
    best = min(range(len(made)), key=times.__getitem__)
    if times[best] == float("inf"):
        raise RuntimeError(f"no configuration of {name} fits this GPU's shared memory")
    if not small:
        _remember(packed.device, key, best)
    return made[best]


def fits(run: Run, given: Sequence[Any]) -> bool:
    """Whether a configuration runs here: smaller GPUs have less shared memory."""
    from triton.runtime.errors import OutOfResources

    try:
        run(*given)
    except OutOfResources:
        return False
    return True


def timed(run: Run, given: Sequence[Any]) -> float:
    """Milliseconds of one call, the cache flushed before each; infinite where it does not fit."""
    from triton.testing import do_bench

    if not fits(run, given):
        return float("inf")
    return float(do_bench(lambda: run(*given), warmup=WARM, rep=TIMED, return_mode="median"))


# ---------------------------------------------------------------------- what is remembered


def _key(packed: Packed, name: str, configs: "Sequence[Config]") -> str:
    """What a choice depends on beside the card, as text. The range of tokens is in the blocks."""
    made_for = sorted((k, str(v)) for k, v in packed.options.items() if k != "zero")
    tensors = sorted((k, str(t.dtype)) for k, t in packed.tensors.items())
    text = [_version(), packed.kernel, name, packed.shape, str(packed.dtype), made_for, tensors]
    options = [(sorted(c.blocks.items()), c.warps, c.stages, c.programs) for c in configs]
    return hashlib.sha256(json.dumps([text, options]).encode()).hexdigest()[:24]


@cache
def _version() -> str:
    """Of Triton, of torch and of the sources."""
    import triton

    folder = Path(__file__).parent
    text = b"".join((folder / each).read_bytes() for each in SOURCES)
    return f"{triton.__version__} {torch.__version__} {hashlib.sha256(text).hexdigest()[:16]}"


def tried(device: torch.device, kernel: str) -> bool:
    """Whether the kernel gave the right product here before, in this process or an earlier one."""
    return _known(device, _trial(kernel)) is not None


def remember_tried(device: torch.device, kernel: str) -> None:
    """Keep that it did."""
    _remember(device, _trial(kernel), 0)


def _trial(kernel: str) -> str:
    return hashlib.sha256(f"{kernel} {_version()}".encode()).hexdigest()[:24]


def path_of(device: torch.device) -> Path:
    """The file of this card."""
    card = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower()).strip("_")
    chosen = os.environ.get("QVIZ_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "kernels" / f"{card}.json"
    import platformdirs

    return Path(platformdirs.user_cache_dir("qviz")) / "kernels" / f"{card}.json"


def _known(device: torch.device, key: str) -> int | None:
    if key not in _chosen:
        _chosen.update(read(path_of(device)))
    return _chosen.get(key)


def _remember(device: torch.device, key: str, at: int) -> None:
    _chosen[key] = at
    write(path_of(device), _chosen)


def read(path: Path) -> dict[str, int]:
    """Choices of earlier processes; none where there is no sound file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): int(at) for key, at in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("the kernels' choices in %s cannot be read (%s); timing again", path, error)
        return {}


def write(path: Path, choices: dict[str, int]) -> None:
    """Written under another name and renamed, so that no reader sees half a file."""
    half = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**read(path), **choices})
        half.write_text(text, encoding="utf-8")
        os.replace(half, path)
    except OSError as error:
        log.warning("the kernels' choices could not be kept in %s (%s)", path, error)
