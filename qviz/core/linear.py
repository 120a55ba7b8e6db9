"""QuantizedLinear: a layer that quantizes its inputs as well, so that its product is its own."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from qviz.core.ledger import Ledger
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit


class QuantizedLinear(ABC):
    """A quantized weight and the product that its system computes with it.

    weight  the QuantizedTensor [out, in]
    """

    weight: QuantizedTensor

    @abstractmethod
    def __call__(self, x: torch.Tensor, *, emit: Emit | None = None) -> torch.Tensor:
        """Y [..., out] for inputs x [..., in], as the real system multiplies."""

    def dequantize(self) -> torch.Tensor:
        """The weight's reconstruction [out, in]."""
        return self.weight.dequantize()

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape

    @property
    def info(self) -> Mapping[str, Any]:
        return self.weight.info

    @property
    def ledger(self) -> Ledger:
        return self.weight.ledger

    @property
    def bits_per_weight(self) -> float:
        return self.weight.bits_per_weight

    def pack(self) -> dict[str, np.ndarray]:
        return self.weight.pack()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.weight!r})"
