"""Division that rounds the same on every device.

Torch divides by a Python number in two ways: on a CPU it divides, on CUDA it multiplies by the
rounded reciprocal, and the last bit differs in about one result in eight. Next to a tie that bit
decides the code. Numerics therefore divide by tensors.
"""

import torch


def divide(a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
    """a / b, rounded once, on every device; at least one of them is a tensor.

    A number divided by a tensor is rounded twice by torch's operator, on all devices alike: a
    times the rounded reciprocal of b. Write `a / b` where the system being followed does that.

    >>> divide(torch.ones(2), 3), divide(1, torch.full((2,), 3.0))
    """
    if not isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        return torch.full_like(b, a) / b
    return a / (b if isinstance(b, torch.Tensor) else a.new_full((), b))
