"""QLoRA: a frozen quantized weight, and a small trainable branch beside it.

The weight is quantized once (NF4 with quantized constants in the paper, any weight method here) and
dequantized whenever it is multiplied with, forwards and backwards; gradients reach only two thin
matrices A and B whose product is added to the output. B starts at zero, so that training starts
from exactly the quantized layer.

Symbols: W [out, in] the weight, Ŵ its reconstruction, A [r, in], B [out, r], r rank, α a constant:
y = x·Ŵᵀ + (α/r)·((x·Aᵀ)·Bᵀ). Source: Dettmers et al. 2023 (arXiv 2305.14314), equation 5; the
branch and how it starts: Hu et al. 2022 (LoRA, arXiv 2106.09685), section 4.1, and its reference
loralib/layers.py. Not included: paged optimizers, which move optimizer state between GPU and CPU
memory and change no number, and dropout on the branch.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from qviz.core.check import as_matrix, require_int, require_number
from qviz.core.ledger import Ledger, Stream, ledger_of
from qviz.core.linear import TrainableLinear
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods import registry
from qviz.methods.registry import Method

EVENTS = (
    EventSpec(
        "qlora.adapter",
        {"A": "[rank, in] the branch's initial values", "B": "[out, rank] zero"},
        "A uniform in ±1/√in, B = 0, so B·A = 0",
        "LoRA loralib/layers.py:Linear.reset_parameters (Kaiming uniform with a = √5)",
    ),
    EventSpec(
        "qlora.output",
        {
            "base": "[..., out] the output of the quantized weight",
            "low": "[..., rank] the inputs multiplied by A",
            "branch": "[..., out] the output of the branch",
        },
        "y = x·Ŵᵀ + (α/r)·((x·Aᵀ)·Bᵀ)",
        "Dettmers et al. 2023, equation 5",
    ),
)


class LoraLinear(TrainableLinear):
    """A frozen quantized layer with a trainable branch. Made by `qlora`.

    base     the QuantizedTensor [out, in]; neither a parameter nor in the state dict, which holds
             what is trained and nothing else
    A, B     [rank, in] and [out, rank] parameters, float32
    scaling  α/r
    """

    def __init__(
        self, base: QuantizedTensor, A: torch.Tensor, B: torch.Tensor, scaling: float
    ) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def forward(self, x: torch.Tensor, *, emit: Emit | None = None) -> torch.Tensor:
        """y [..., out] for x [..., in], in the dtype of x."""
        base: torch.Tensor = _FrozenProduct.apply(x, self.base)  # type: ignore[no-untyped-call]
        low = functional.linear(x.to(self.A.dtype), self.A)  # [..., rank]
        branch = functional.linear(low, self.B) * self.scaling
        if emit is not None:
            emit("qlora.output", base=base, low=low, branch=branch)
        y = base + branch.to(base.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def quantized(self) -> QuantizedTensor:
        """The base, which training never changes."""
        return self.base

    @torch.no_grad()
    def merged(self) -> torch.Tensor:
        """Ŵ + (α/r)·B·A [out, in]: the layer as one matrix. It is no longer quantized, and
        quantizing it again loses part of the training."""
        return self.base.dequantize() + self.scaling * (self.B @ self.A)

    def frozen(self) -> nn.Module:
        """This layer without gradients."""
        return self.requires_grad_(False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def ledger(self) -> Ledger:
        """The cost of the base, and of the adapters in their stored dtype."""
        adapters = ledger_of([Stream("A", self.A), Stream("B", self.B)], self.base.ledger.weights)
        return Ledger(self.base.ledger.items + adapters.items, adapters.weights)

    def extra_repr(self) -> str:
        return f"{self.base!r}, rank {len(self.A)}, scaling {self.scaling:g}"


class _FrozenProduct(torch.autograd.Function):
    """x·Ŵᵀ that keeps codes for the backward pass, not Ŵ: this is where QLoRA saves its memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: QuantizedTensor) -> torch.Tensor:
        ctx.base = base
        return functional.linear(x, base.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (upstream,) = gradients
        return upstream @ ctx.base.dequantize().to(upstream.dtype), None


def qlora(
    weight: torch.Tensor | np.ndarray,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    base: str | QuantizedTensor = "nf4",
    base_options: Mapping[str, Any] | None = None,
    double_quant: bool = True,
    seed: int = 0,
    emit: Emit | None = None,
) -> LoraLinear:
    """A layer whose weight is quantized for good, with a trainable branch of low rank beside it.

    weight        [out, in]; float32, bfloat16, float16 or float64
    rank, alpha   r and α; only α/r matters to the output, and with Adam mostly as a learning rate
    base          any weight method that needs no calibration, or a QuantizedTensor of this weight
                  (one of GPTQ's, say)
    base_options  the base method's own
    double_quant  that option of the base, for bases that have it (nf4)
    seed          of A's random start: give every layer its own

    Returns a LoraLinear. Raises ValueError for NaN or Inf, a base that is not such a method or has
    another shape, and whatever the base method refuses.

    >>> layer = qlora(torch.randn(8, 256), rank=4, base="affine", base_options={"bits": 2})
    >>> layer(torch.randn(3, 256)).shape
    torch.Size([3, 8])
    """
    weight = as_matrix(weight)
    rows, columns = weight.shape
    require_int(rank, "rank", 1, min(rows, columns))
    require_int(seed, "seed", 0, 2**63 - 1)
    if not math.isfinite(require_number(alpha, "alpha")):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if not isinstance(base_options, Mapping | None):
        raise TypeError(f"base_options must map names to values, got {base_options!r}")
    quantized = _base(weight, base, dict(base_options or {}), double_quant)

    draw = torch.Generator().manual_seed(seed)  # on the CPU, for the same start on every device
    A = torch.empty(rank, columns)
    nn.init.kaiming_uniform_(A, a=5**0.5, generator=draw)  # a = √5: bounds of ±1/√in
    A = A.to(weight.device)
    B = torch.zeros(rows, rank, device=weight.device)
    if emit is not None:
        emit("qlora.adapter", A=A, B=B)
    return LoraLinear(quantized, A, B, alpha / rank)


def _base(
    weight: torch.Tensor,
    base: str | QuantizedTensor,
    options: dict[str, Any],
    double_quant: bool,
) -> QuantizedTensor:
    if isinstance(base, QuantizedTensor):
        if base.shape != tuple(weight.shape):
            raise ValueError(f"the base is {base.shape}, the weight {tuple(weight.shape)}")
        if options:
            raise ValueError("a base that is already quantized takes no base_options")
        return base
    method = registry.get(base)
    if method.kind != "weight" or method.needs:
        why = f"needs calibration ({', '.join(method.needs)})" if method.needs else method.kind
        raise ValueError(
            f"the base must be a weight method that needs no calibration, and {base} is not one "
            f"({why}); quantize the weight with it first and pass the result as base"
        )
    if "double_quant" in method.defaults:
        options.setdefault("double_quant", double_quant)
    quantized = registry.quantize(weight, base, **options)
    assert isinstance(quantized, QuantizedTensor)
    return quantized


METHOD = Method(
    name="qlora",
    kind="training",
    function=qlora,
    needs=frozenset(),
    title="A frozen quantized weight with a trainable low-rank branch",
    source="Dettmers et al. 2023 (arXiv 2305.14314); Hu et al. 2022 (LoRA, arXiv 2106.09685)",
    events=EVENTS,
    origins={
        "rank": "peft LoraConfig, LoRA (GPT-3 experiments); QLoRA's own runs take 64",
        "alpha": "QLoRA's own runs",
        "base": "QLoRA",
        "base_options": "the base method's own defaults",
        "double_quant": "QLoRA",
        "seed": "qviz",
    },
)
