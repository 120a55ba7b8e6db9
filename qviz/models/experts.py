"""Experts as layers: each matrix of a mixture of experts becomes a linear layer of its own.

transformers keeps the matrices of all experts in one 3-D parameter, [experts, out, in] or (as
GPT-OSS and Llama 4 do) [experts, in, out]. They are most of such a model's weights, but not modules
that could be hooked or quantized. `separate_experts` puts an ExpertStack in the parameter's place:
the model's own code runs unchanged, and every matrix is a layer named like its place in the
parameter, "…experts.gate_up_proj.3" for gate_up_proj[3], whose inputs are the tokens routed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

# Which way a parameter of these classes lies: True for [experts, in, out]. The classes that
# transformers decorates with use_experts_implementation say so themselves (`is_transposed`).
TURNED: Mapping[str, Mapping[str, bool]] = {
    "Llama4TextExperts": {"gate_up_proj": True, "down_proj": True},
    "JetMoeParallelExperts": {"weight": False},
    "LongcatFlashExperts": {"gate_up_proj": False, "down_proj": False},
    "Step3p7Experts": {"gate_up_proj": False, "down_proj": False},
    "InklingSharedExperts": {"gate_proj": False, "up_proj": False, "down_proj": False},
    # all experts' rows one below the other; w2 is multiplied from the other side
    "DbrxExpertGLU": {"w1": False, "v1": False, "w2": True},
}
_PRODUCTS = {
    torch.matmul,
    torch.mm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.mm,
}


class _Factor:
    """What torch asks before it multiplies by it: the experts of a stack, either way round."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _multiply_all(func, args, kwargs or {})


class ExpertStack(_Factor, nn.Module):
    """The matrices of all experts, each an nn.Linear, where the model expects one parameter.

    The model's own operations on the parameter run those layers: F.linear(x, stack[e]),
    x @ stack[e] and torch.bmm(x, stack). For anything else an expert's matrix is an ordinary
    tensor. state_dict() has the one tensor that was there before, so that a saved model is an
    ordinary checkpoint.

    shape   of the parameter
    turned  whether it is stored as [experts, in, out]
    """

    def __init__(self, parameter: torch.Tensor, experts: int, *, turned: bool) -> None:
        super().__init__()
        self.shape, self.turned = parameter.shape, turned
        for i, matrix in enumerate(parameter.detach().view(experts, -1, parameter.shape[-1])):
            self.add_module(str(i), _linear(matrix.T if turned else matrix))

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, expert: int | torch.Tensor) -> _Matrix:
        return _Matrix(self.get_submodule(str(int(expert))), self.turned)

    def __iter__(self) -> Iterator[_Matrix]:
        return (self[i] for i in range(len(self)))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def view(self, *shape: Any) -> ExpertStack:
        """The stack itself, viewed as [experts, …, …], which is how it is already indexed."""
        sizes = shape[0] if len(shape) == 1 else shape
        if len(sizes) != 3 or sizes[-1] != self.shape[-1]:
            raise TypeError(f"a stack of {len(self)} experts cannot be viewed as {tuple(sizes)}")
        return self

    def transpose(self, first: int, second: int) -> _Turned:
        """What torch.bmm multiplies by; only the matrices can be turned, not the experts."""
        if {first % 3, second % 3} != {1, 2}:
            raise TypeError("only the last two axes of a stack of experts can be exchanged")
        return _Turned(self)

    def stacked(self) -> torch.Tensor:
        """The parameter that it replaces, with the layers' present values."""
        return torch.stack([matrix.tensor for matrix in self]).view(self.shape)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The one tensor under the parameter's own name, as a checkpoint has it."""
        destination, prefix = kwargs.get("destination"), kwargs.get("prefix", "")
        destination = {} if destination is None else destination
        destination[prefix.removesuffix(".")] = self.stacked()
        return destination

    def extra_repr(self) -> str:
        return f"{len(self)} experts, stored as {list(self.shape)}"


class _Turned(_Factor):
    """A stack of experts with the two axes of each matrix exchanged."""

    def __init__(self, stack: ExpertStack) -> None:
        self.stack, self.turned = stack, not stack.turned

    def stacked(self) -> torch.Tensor:
        return self.stack.stacked().transpose(1, 2)


def _multiply_all(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """bmm(x [experts, tokens, in], stack): each expert's layer on the tokens routed to it.

    A token that is not routed to an expert arrives there as zeros (Llama 4), which give zeros.
    """
    if func is torch.bmm and len(args) == 2 and isinstance(args[1], ExpertStack | _Turned):
        x, factor = args
        if factor.turned and isinstance(x, torch.Tensor):
            stack = factor.stack if isinstance(factor, _Turned) else factor
            return torch.stack([_routed(matrix.layer, x[e]) for e, matrix in enumerate(stack)])
    plain = [a.stacked() if isinstance(a, ExpertStack | _Turned) else a for a in args]
    named = {
        k: a.stacked() if isinstance(a, ExpertStack | _Turned) else a for k, a in kwargs.items()
    }
    return func(*plain, **named)


def _routed(layer: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The layer's outputs for x [tokens, in], which it gets without the rows of zeros."""
    rows = (x != 0).any(dim=-1)
    if bool(rows.all()):
        return layer(x)
    outputs = layer(x[rows])
    y = outputs.new_zeros(len(x), outputs.shape[-1])
    y[rows] = outputs
    return y


class _Matrix:
    """One expert's matrix in the model's code: multiplying by it runs the expert's layer."""

    def __init__(self, layer: Any, turned: bool) -> None:
        self.layer, self.turned = layer, turned

    @property
    def tensor(self) -> torch.Tensor:
        weight: torch.Tensor = self.layer.weight
        return weight.T if self.turned else weight

    @property
    def T(self) -> _Matrix:
        return _Matrix(self.layer, not self.turned)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)  # shape, dtype, device, and what else a tensor has

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        x, factor = (*args, None, None)[:2]
        if isinstance(factor, _Matrix) and isinstance(x, torch.Tensor):
            if func is F.linear and not factor.turned:
                bias = args[2] if len(args) > 2 else kwargs.get("bias")
                return factor.layer(x) if bias is None else factor.layer(x) + bias
            if func in _PRODUCTS and factor.turned:
                return factor.layer(x)
        plain = [a.tensor if isinstance(a, _Matrix) else a for a in args]
        return func(
            *plain, **{k: a.tensor if isinstance(a, _Matrix) else a for k, a in kwargs.items()}
        )


def separate_experts(model: nn.Module) -> None:
    """Make every expert's matrix a layer, in place; the model computes the same as before."""
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            turned = _turned(module, name, parameter)
            if turned is None:
                continue
            experts = len(parameter) if parameter.ndim == 3 else int(module.moe_num_experts)  # type: ignore[arg-type]
            delattr(module, name)
            setattr(module, name, ExpertStack(parameter, experts, turned=turned))


def _turned(module: nn.Module, name: str, parameter: nn.Parameter) -> bool | None:
    """The orientation of this parameter's matrices; None if it is not a stack of experts'
    matrices."""
    known = TURNED.get(type(module).__name__, {})
    if name in known:
        return known[name]
    says = getattr(module, "is_transposed", None)
    return says if isinstance(says, bool) and parameter.ndim == 3 else None


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
