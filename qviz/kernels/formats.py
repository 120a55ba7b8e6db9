"""The formats of weights that kernels are measured with: a name, a method and its options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qviz.core.check import unknown
from qviz.core.linear import QuantizedLinear
from qviz.core.tensor import QuantizedTensor
from qviz.methods import registry


@dataclass(frozen=True)
class Format:
    """One way to store a weight.

    name     as on the command line
    title    as on a page
    method   that of qviz.quantize, with its options
    """

    name: str
    title: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def quantize(self, weight: torch.Tensor) -> QuantizedTensor:
        """The weight [out, in] in this format."""
        made = registry.quantize(weight, self.method, **self.options)
        return made.weight if isinstance(made, QuantizedLinear) else made


def _affine(name: str, title: str, **options: Any) -> Format:
    return Format(name, title, "affine", {"scale_dtype": torch.float16, **options})


def _int4(size: int, symmetric: bool) -> Format:
    sign, word = ("", "INT4") if symmetric else ("-asym", "INT4 asymmetric")
    title = f"{word}, group {size}"
    return _affine(f"int4{sign}-g{size}", title, bits=4, symmetric=symmetric, group_size=size)


def _gguf(name: str) -> Format:
    return Format(name.lower(), f"GGUF {name}", "gguf", {"type": name})


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        *(_int4(size, symmetric) for symmetric in (True, False) for size in (128, 64, 32)),
        *(
            Format(f"nf4-g{size}", f"NF4, block {size}", "nf4", {"group_size": size})
            for size in (64, 32, 128)
        ),
        Format("fp4-g64", "FP4 of bitsandbytes, block 64", "nf4", {"format": "fp4"}),
        _affine("int8", "INT8, a scale per row", bits=8, granularity="channel", group_size=None),
        Format("llm-int8", "LLM.int8() of bitsandbytes", "llm_int8"),
        Format("fp8", "FP8 E4M3, a scale per row", "fp8", {"granularity": "channel"}),
        Format("fp8-tensor", "FP8 E4M3, one scale", "fp8", {"granularity": "tensor"}),
        *map(_gguf, ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")),
    )
}
DEFAULT_FORMAT = "int4-g128"


def get(name: str) -> Format:
    """The format of this name; ValueError with the nearest names if there is none."""
    if name not in FORMATS:
        raise ValueError(unknown("format", name, FORMATS))
    return FORMATS[name]
