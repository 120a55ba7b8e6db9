"""The product with 16-bit weights, which every other kernel has to beat."""

from typing import Any

import torch
from torch.nn import functional

from qviz.core.tensor import QuantizedTensor
from qviz.kernels.kernel import Kernel, Packed
from qviz.kernels.samples import affine_sample


class Matmul(Kernel):
    """Ŵ rounded to the inputs' dtype, and torch's own product with it."""

    name = "torch.matmul"
    title = "16-bit weights, torch's own product"
    source = "torch.nn.functional.linear"

    def sample(self) -> QuantizedTensor:
        return affine_sample(bits=4, group_size=32)

    def refuses(self, q: QuantizedTensor) -> str | None:
        return None

    def reference(self, q: QuantizedTensor, x: torch.Tensor) -> torch.Tensor:
        """In float64, of Ŵ rounded to the inputs' dtype: that is what its bytes stand for."""
        return self.inputs(x, q) @ q.dequantize().to(x.dtype).double().T

    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"weight": q.dequantize().to(device, dtype)}, {}

    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, packed.tensors["weight"])


KERNELS = (Matmul(),)
