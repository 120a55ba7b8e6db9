"""What every kernel is held against, and the weights it is tried on."""

import torch

from qviz.core.tensor import QuantizedTensor
from qviz.kernels import Kernel

# Half a unit in the last place of what a product is rounded to, relatively.
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
DEVICES = ("cpu", "cuda")


def inputs(tokens: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Gaussian inputs with one large channel, as real ones have."""
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    x[:, columns // 3] *= 8
    return x.to(dtype)


def agrees(
    kernel: Kernel, q: QuantizedTensor, x: torch.Tensor, device: str = "cpu", slack: float = 4
) -> None:
    """The product is the float64 reference, within rounding of the weights, the sums and Y.

    Each term x·ŵ may be off by a few units of the kernel's `arithmetic`; the errors of many terms
    add up like a random walk. A wrong nibble or scale is off by whole terms.
    """
    packed = kernel.pack(q, device, x.dtype)
    y = kernel.multiply(packed, x.to(device)).cpu()
    assert y.shape == (x.shape[0], q.shape[0]) and y.dtype == x.dtype
    expected = kernel.reference(q, x)
    weight = kernel.adapt(q, x.dtype).dequantize().double()
    walk = (kernel.inputs(x, q) ** 2 @ (weight**2).T).sqrt()
    unit = max(UNIT[x.dtype], UNIT[kernel.arithmetic or x.dtype])
    sums = UNIT[torch.float32] * x.shape[1] ** 0.5 * walk  # sums are kept in float32
    bound = slack * (unit * (walk + expected.abs()) + sums) + 1e-30
    worst = ((y.double() - expected).abs() / bound).max()
    assert worst <= 1, f"{kernel.name}: {float(worst):.3g} of what rounding explains"


def gives_back_the_weight(
    kernel: Kernel, q: QuantizedTensor, dtype: torch.dtype, device: str = "cpu"
) -> None:
    """Multiplied with the unit vectors, the kernel gives back every weight, to rounding: a single
    code, scale or place that is wrong shows."""
    eye = torch.eye(q.shape[1], dtype=dtype)
    got = kernel.multiply(kernel.pack(q, device, dtype), eye.to(device)).cpu().double().T
    expected = kernel.adapt(q, dtype).dequantize().double()
    unit = max(UNIT[dtype], UNIT[kernel.arithmetic or dtype])
    steps = 2 * unit * expected.abs().amax(dim=1, keepdim=True) + 1e-30
    assert ((got - expected).abs() <= steps).all(), kernel.name
