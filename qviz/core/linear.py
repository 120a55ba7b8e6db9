"""Layers: those that quantize their inputs as well, so that their product is their own, and those
that are trained while they are quantized."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

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


class TrainableLinear(nn.Module, ABC):
    """A linear layer that trains with a quantized weight, whatever of it is trained.

    bias  [out] parameter or None, never quantized; None until it is set
    """

    bias: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    @abstractmethod
    def forward(self, x: torch.Tensor, *, emit: Emit | None = None) -> torch.Tensor:
        """y [..., out] for x [..., in]."""

    @abstractmethod
    def quantized(self) -> QuantizedTensor:
        """The quantized weight as it is now."""

    @abstractmethod
    def frozen(self) -> nn.Module:
        """The layer as it is used after training, without gradients."""

    @property
    def ledger(self) -> Ledger:
        """Everything that has to be stored beside the bias."""
        return self.quantized().ledger

    @property
    def bits_per_weight(self) -> float:
        return self.ledger.bits_per_weight


def integer_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a·bᵀ [m, n] int32, exactly, for int8 matrices a [m, k] and b [n, k].

    In float32, for which every device has a fast product. Its integers are exact up to 2²⁴ = 1024 ·
    128², so the columns are taken 1024 at a time. (torch's own int8 product saturates inside on
    processors without the instructions for it.)

    >>> integer_product(torch.tensor([[127, -3]]).char(), torch.tensor([[127, 5]]).char())
    tensor([[16114]], dtype=torch.int32)
    """
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for x, y in zip(a.split(1024, dim=1), b.split(1024, dim=1), strict=True):
        total += (x.float() @ y.float().T).int()
    return total
