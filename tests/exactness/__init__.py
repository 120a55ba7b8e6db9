"""Every comparison with a real system, written once.

A module here holds one method against its oracles. `tests/test_exactness.py` asserts each
comparison and `make exactness` tabulates them all, so that the table cannot say what no test holds.

    @against("bitsandbytes", method="nf4", what="codes and absmax")
    def bytes_of_every_dtype() -> Tally:
        import bitsandbytes
        ...
"""

import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch


@dataclass(frozen=True)
class Tally:
    """What a comparison found.

    inputs      how many tensors or settings were compared
    compared    how many numbers were compared
    mismatches  how many of them differ, by whatever equality `what` names
    note        anything a reader of the table should know
    """

    inputs: int
    compared: int
    mismatches: int
    note: str = ""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.inputs + other.inputs,
            self.compared + other.compared,
            self.mismatches + other.mismatches,
            "; ".join(dict.fromkeys(n for n in (self.note, other.note) if n)),
        )


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    method   of qviz, or "formats"
    oracle   the distribution that is the oracle, or a formula ("float64 brute force", …)
    what     what is compared and what counts as equal
    run      does it
    allowed  mismatches that are explained, by the note
    slow     takes more than about ten seconds: not in `make test`
    """

    method: str
    oracle: str
    what: str
    run: Callable[[], Tally]
    allowed: int = 0
    slow: bool = False

    @property
    def name(self) -> str:
        return f"{self.method}-{self.oracle}-{self.run.__name__}"

    @property
    def version(self) -> str:
        """The oracle's installed version; "" for a formula; LookupError if it is missing."""
        if self.oracle not in DISTRIBUTIONS:
            return ""
        try:
            return version(self.oracle)
        except PackageNotFoundError as error:
            raise LookupError(f"{self.oracle} is not installed") from error


# Installed with the tests.
LIGHT = {"torch", "ml_dtypes", "torchao", "compressed-tensors", "bitsandbytes", "gguf", "scipy",
         "scikit-learn", "transformers"}  # fmt: skip
# Built from source or with conflicting pins: only `make exactness` installs them.
HEAVY = {"llama-cpp-python", "hqq", "llmcompressor"}
DISTRIBUTIONS = LIGHT | HEAVY

COMPARISONS: dict[str, Comparison] = {}


def against(
    oracle: str, *, method: str, what: str, allowed: int = 0, slow: bool = False
) -> Callable[[Callable[[], Tally]], Callable[[], Tally]]:
    """Enter a comparison into the table."""

    def enter(run: Callable[[], Tally]) -> Callable[[], Tally]:
        comparison = Comparison(method, oracle, what, run, allowed, slow)
        assert comparison.name not in COMPARISONS, f"two comparisons named {comparison.name}"
        COMPARISONS[comparison.name] = comparison
        return run

    return enter


def everything() -> Mapping[str, Comparison]:
    """Every comparison of every module here, by name."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return COMPARISONS


Array = torch.Tensor | np.ndarray


def equal(pairs: Iterable[tuple[Array, Array]], note: str = "") -> Tally:
    """Compare pair by pair, bit for bit but for NaN (equal to NaN) and −0 (equal to 0).

    A difference in shape is an error, not a mismatch: something was compared with the wrong thing.
    """
    inputs = compared = mismatches = 0
    for ours, theirs in pairs:
        a, b = _numpy(ours), _numpy(theirs)
        assert a.shape == b.shape, f"{a.shape} beside {b.shape}"
        same = (a == b) | ((a != a) & (b != b))
        inputs += 1
        compared += a.size
        mismatches += int(a.size - np.count_nonzero(same))
    return Tally(inputs, compared, mismatches, note)


def _numpy(x: Array) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).numpy()
