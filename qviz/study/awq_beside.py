"""AWQ beside other methods at equal bits, and beside itself with one thing changed.

At equal bits: the same width, the same groups, scales of the same type and a zero point for each
group, so that the ledgers agree. What differs is how the codes are found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from qviz.core.calibration import Calibration
from qviz.core.tensor import QuantizedTensor
from qviz.core.transform import InputScale
from qviz.methods.affine import affine
from qviz.methods.awq import GRIDS, awq, search
from qviz.methods.gptq import gptq
from qviz.study.awq_case import Case, times

NEAREST, SCALED, CLIPPED = "round to nearest", "AWQ, scales alone", "AWQ, scales and clip"
GPTQ, BOTH = "GPTQ", "AWQ's scales, then GPTQ"
METHODS = (NEAREST, SCALED, CLIPPED, GPTQ, BOTH)
FEW = 16  # tokens of the contrast with few of them
STORED = torch.float16  # what all of them store their scales as


@dataclass(frozen=True)
class Standing:
    """A method on a layer at some width.

    error, judged  how far the output is off, on the calibration and on the judge's inputs
    bits_per_weight  of the whole ledger
    """

    method: str
    bits: int
    error: float
    judged: float
    bits_per_weight: float


def quantize_as(case: Case, method: str, scale: torch.Tensor | None = None) -> QuantizedTensor:
    """The layer by one of METHODS; `scale` [in]: AWQ's factors, where they are known.

    `BOTH` hands W·diag(s) and the inputs x/s to GPTQ, which compensates on AWQ's grid.
    """
    given: dict[str, Any] = {**case.options, "scale_dtype": STORED}
    if method == NEAREST:
        return affine(case.weight, **given, convention="awq")
    if method == GPTQ:
        return gptq(case.weight, case.calibration, **given)
    if scale is None:
        scale = search(list(case.weights.values()), case.calibration, **case.options).scale
    transform = InputScale(scale)
    if method == BOTH:
        q = gptq(transform.apply(case.weight), times(case.calibration, 1 / scale), **given)
        return replace(q, transform=transform)
    return awq(case.weight, case.calibration, **given, transform=transform, clip=method == CLIPPED)


def standings(case: Case) -> list[Standing]:
    """All METHODS on the layer, in that order."""
    scale = search(list(case.weights.values()), case.calibration, **case.options).scale
    made = []
    for method in METHODS:
        q = quantize_as(case, method, scale)
        back = q.dequantize()
        made.append(
            Standing(method, case.bits, case.error(back), case.error(back, judged=True),
                     q.bits_per_weight)
        )  # fmt: skip
    return made


def every_layer(
    names: list[str], make: Callable[[str], Case], stopped: Callable[[], bool]
) -> Iterator[tuple[str, list[Standing]]]:
    """(layer, standings) of one layer after the other, until `stopped` says so."""
    for name in names:
        if stopped():
            return
        yield name, standings(make(name))


# ------------------------------------------------------------------------- one thing changed


@dataclass(frozen=True)
class Contrast:
    """A second search beside a first one.

    name, title  for links and for readers; family: "grid", "does it still win" or "failure"
    why          what is changed, in words
    """

    name: str
    title: str
    family: str
    why: str


GRID_TITLES = {
    "llm-awq": "llm-awq",
    "autoawq": "AutoAWQ (duo scaling)",
    "llm-compressor": "llm-compressor (duo scaling)",
    "llm-compressor-both": "llm-compressor (both)",
}
GRID_WHY = {
    "llm-awq": "The paper's own code: s = a^{r} for r = 0, 1/20 … 19/20. The weights do not enter.",
    "autoawq": "Duo scaling divides by the weights' sizes: s = a^{r} / (w̄^{1−r} + 0.0001), for the "
    "same twenty r. At r = 0 that is not s = 1, so rounding to nearest is not among its "
    "candidates.",
    "llm-compressor": "Duo scaling for r = 0, 1/18 … 1, and s = 1 put in front of them.",
    "llm-compressor-both": "Ten values of r from 0 to 1, each without and with the weights' sizes.",
}
SILENT, TEXT, TOKENS = "silent", "other_text", "few_tokens"
CONTRASTS = (
    Contrast(TEXT, "Calibrated on numbers", "does it still win",
             "The search listens to a text of numbers; the judge stays."),
    Contrast(TOKENS, f"{FEW} tokens", "does it still win",
             f"The search listens to {FEW} tokens. A mean size needs few of them, a Hessian many."),
    *(Contrast(name, title, "grid", GRID_WHY[name]) for name, title in GRID_TITLES.items()),
    Contrast(SILENT, "A channel that calibration never heard", "failure",
             "The loudest input channel is silent during calibration, and not for the judge."),
)  # fmt: skip
assert set(GRID_TITLES) == set(GRIDS)


def changed(case: Case, grid: str, name: str, other: Calibration | None) -> tuple[Case, str]:
    """(case, grid) of the second search; `other`: the calibration on a text of numbers.

    The judge stays the same in all of them.
    """
    if name in GRIDS:
        return case, name
    if name == TEXT:
        assert other is not None, "the other text's calibration is needed for this contrast"
        return replace(case, calibration=other), grid
    if name == TOKENS:
        return replace(case, calibration=case.calibration.sample(FEW)), grid
    return replace(case, calibration=times(case.calibration, silence(case.calibration))), grid


def silence(calibration: Calibration) -> torch.Tensor:
    """[in] 1 everywhere, 0 for the channel with the largest mean |x|."""
    heard = torch.ones(calibration.in_features)
    heard[int(calibration.act_absmean.argmax())] = 0
    return heard
