"""Layers: those that also quantize their inputs and so have a product of their own, and those that
are trained while quantized."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from qviz.core.check import as_matrix
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

    def flatten(self, x: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Inputs [..., in] as a finite matrix [tokens, in]; ValueError if they do not fit."""
        if not isinstance(x, torch.Tensor | np.ndarray):
            raise TypeError(f"inputs must be a tensor or an array, got {type(x).__name__}")
        if x.ndim == 0 or x.shape[-1] != self.shape[1]:
            raise ValueError(
                f"the layer takes {self.shape[1]} inputs in the last dimension, "
                f"got shape {tuple(x.shape)}"
            )
        if 0 in x.shape:
            raise ValueError(f"inputs must hold at least one token, got shape {tuple(x.shape)}")
        return as_matrix(x.reshape(-1, x.shape[-1]), "inputs")

    def dequantize(self) -> torch.Tensor:
        """The weight's reconstruction [out, in]."""
        return self.weight.dequantize()

    def folded(self) -> "QuantizedLinear":
        """The same layer for inputs that the layer before has already divided."""
        return self.with_weight(self.weight.folded())

    def unfolded(self) -> "QuantizedLinear":
        """The same, with input scales that are stored because no neighbouring layer absorbs
        them."""
        return self.with_weight(self.weight.unfolded())

    def with_weight(self, weight: QuantizedTensor) -> "QuantizedLinear":
        """The same layer with another quantized weight."""
        twin = copy.copy(self)
        object.__setattr__(twin, "weight", weight)  # such layers are frozen
        return twin

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
    """A linear layer with a quantized weight of which some part is trained.

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
    processors without the instructions for it.) Raises ValueError for so many columns that a sum
    may overflow int32.

    >>> integer_product(torch.tensor([[127, -3]]).char(), torch.tensor([[127, 5]]).char())
    tensor([[16114]], dtype=torch.int32)
    """
    if a.shape[1] * 128**2 >= 2**31:
        raise ValueError(
            f"sums over {a.shape[1]} products of int8 may overflow int32; at most 131071 are safe: "
            f"split the inputs"
        )
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for start in range(0, a.shape[1], 1024):
        part = slice(start, start + 1024)
        total += (a[:, part].float() @ b[:, part].float().T).int()
    return total
