"""The small weights with which every kernel is tried before it is called available."""

from typing import Any

import torch

from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import affine


def sample_weight(rows: int = 32, columns: int = 128) -> torch.Tensor:
    """Gaussian weights [rows, columns], the same every time."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def affine_sample(**options: Any) -> QuantizedTensor:
    """Those weights on equally spaced levels."""
    return affine(sample_weight(), scale_dtype=torch.float16, **options)
