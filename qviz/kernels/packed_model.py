"""A whole model that computes with packed weights.

`pack_model` takes what `qviz.quantize_model` returned and puts a `PackedLinear` in the place of
every quantized layer; embeddings, norms and the output head stay as they are, at 16 bits. The
result is an ordinary LoadedModel. Its reference is the same model with the weights Ŵ written out in
16 bits and multiplied by torch's own product: any difference between the two comes from the kernel.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from qviz.core.check import unknown
from qviz.core.linear import QuantizedLinear
from qviz.core.tensor import QuantizedTensor
from qviz.core.transform import InputScale
from qviz.kernels import registry
from qviz.kernels.kernel import Kernel
from qviz.kernels.packed_linear import PackedLinear, inner_dtype
from qviz.models.layers import LoadedModel
from qviz.models.quantize import Quantized, QuantizedModel
from qviz.models.rotate import run_online

DEFAULT_KERNEL = "torch.int4"
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class PackedModel:
    """A model whose quantized layers multiply packed weights.

    model    runs through qviz.generate and qviz.perplexity like any other. Its tensors are its own:
             nothing in it keeps the original, or the quantized model, in memory
    dtype    of everything that is not packed
    kernels  layer → the kernel that multiplies there
    skipped  layer → why it is not packed, those that were not quantized included
    notes    what was converted, in sentences
    """

    model: LoadedModel
    dtype: torch.dtype
    kernels: Mapping[str, str]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]
    _quantized: weakref.ref[QuantizedModel]

    def reference(self, quantized: QuantizedModel | None = None) -> LoadedModel:
        """The dequantized reference: Ŵ in `dtype` where this model has packed weights.

        Built anew by each call; all that is not packed it shares with this model, so that it adds
        the bytes of its dense linears and no more. It needs the codes, which a packed model does
        not keep: `quantized` is what was packed (None: that very object, if it is still alive).
        RuntimeError where it is not, ValueError for a quantized model with other layers.

        >>> quantized = qviz.quantize_model(model, bits=4, group_size=32)
        >>> packed = qviz.kernels.pack_model(quantized, "torch.matmul")
        >>> qviz.generate(packed.reference(), "def f(", max_new_tokens=4)
        """
        made = self._quantized() if quantized is None else quantized
        if made is None:
            raise RuntimeError(
                f"the quantized model from which {self.model.name} was packed is no longer in "
                "memory, and packed bytes cannot serve as their own reference: keep it, or pass "
                "it again as quantized="
            )
        dense: dict[nn.Module, nn.Module] = {}
        for name in self.kernels:
            here = self.model.model.get_submodule(name)
            assert isinstance(here, PackedLinear)
            q = _weight_of(made.tensors[name]) if name in made.tensors else None
            if q is None or q.shape != here.packed.shape:
                raise ValueError(
                    f"{name} is packed here as {list(here.packed.shape)}, but this quantized "
                    "model has a different layer or none: pass the model that was packed"
                )
            twin = _dense(q, here.bias, here.packed.device, self.dtype)
            dense[here] = _with_online(twin, here)
        root = _twin(self.model.model, dense, lambda tensor: tensor.detach())
        return replace(self.model, model=root, name=f"{made.model.name}, dequantized")

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{list(self.kernels.values()).count(name)} × {name}"
            for name in dict.fromkeys(self.kernels.values())
        )
        return f"PackedModel({self.model.name}: {counts}; {len(self.skipped)} layers not packed)"


def pack_model(
    quantized: QuantizedModel,
    kernel: str | Mapping[str, str] = DEFAULT_KERNEL,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    on_error: str = "raise",
) -> PackedModel:
    """The model with packed weights in the place of every layer that was quantized.

    kernel    for all layers, or layer → kernel by full names (layers without one stay dense)
    device    None: where the quantized model is
    dtype     of all that is not packed, and between layers; None: the first 16-bit dtype that the
              (first) kernel takes, bfloat16 if it takes none. Buffers keep their dtypes
    on_error  "raise": ValueError where a kernel does not take a layer, with those that do; "skip":
              the layer stays dense, Ŵ in `dtype`, and `.skipped` says why, unless none fits

    Nothing given is changed. What the layers of a QuantizedLinear do to their inputs is up to the
    kernel: only their weight is packed. Factors that were folded into the model are there already;
    others run with the layer. RuntimeError where a kernel does not run on the device.

    >>> quantized = qviz.quantize_model(model, bits=4, group_size=32)
    >>> packed = qviz.kernels.pack_model(quantized, "torch.matmul")
    >>> packed.kernels["model.layers.0.mlp.up_proj"]
    'torch.matmul'
    """
    if not isinstance(quantized, QuantizedModel):
        raise TypeError(
            f"pack_model takes what qviz.quantize_model returned, got {type(quantized).__name__}"
        )
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
    where = quantized.model.device if device is None else torch.device(device)
    chosen = _chosen(quantized, kernel, where)
    inside = dtype or next(iter(_halves(next(iter(chosen.values())))), torch.bfloat16)
    if not inside.is_floating_point:
        raise ValueError(f"dtype must be one such as torch.bfloat16, got {inside}")
    new: dict[nn.Module, nn.Module] = {}
    packed: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, made in quantized.tensors.items():
        old, q = quantized.model.model.get_submodule(name), _weight_of(made)
        one = _layer(name, old, q, chosen.get(name), where, inside, on_error)
        if isinstance(one, str):
            failed[name] = one
            new[old] = _with_online(_dense(q, _bias(old), where, inside), old)
        else:
            packed[name] = one.kernel.name
            new[old] = _with_online(one, old)
    if not packed:
        name, reason = next(iter(failed.items()))
        raise ValueError(f"no layer could be packed; {name}: {reason}")
    root = _twin(quantized.model.model, new, lambda tensor: _copied(tensor, where, inside))
    label = f"{quantized.model.name}, packed for {' and '.join(dict.fromkeys(packed.values()))}"
    loaded = replace(quantized.model, model=root, name=label)
    notes = _notes({name: chosen[name] for name in packed}, inside)
    skipped = {**quantized.skipped, **failed}
    return PackedModel(loaded, inside, packed, skipped, notes, weakref.ref(quantized))


def _chosen(
    quantized: QuantizedModel, kernel: str | Mapping[str, str], device: torch.device
) -> dict[str, Kernel]:
    """Layer → its kernel, each of which runs on the device."""
    if isinstance(kernel, str):
        kernel = dict.fromkeys(quantized.tensors, kernel)
    if not isinstance(kernel, Mapping) or not kernel:
        raise TypeError(f"kernel must be a kernel's name, or layer → name, got {kernel!r}")
    for name in kernel:
        if name not in quantized.tensors:
            raise ValueError(unknown("quantized layer in kernel", name, quantized.tensors))
    ready = {name: registry.require(name, device) for name in dict.fromkeys(kernel.values())}
    return {layer: ready[name] for layer, name in kernel.items()}


def _halves(kernel: Kernel) -> list[torch.dtype]:
    return [dtype for dtype in kernel.dtypes if dtype in HALVES]


def _layer(
    name: str,
    old: nn.Module,
    q: QuantizedTensor,
    kernel: Kernel | None,
    device: torch.device,
    dtype: torch.dtype,
    on_error: str,
) -> PackedLinear | str:
    """The layer packed, or why it is not, unless that is an error."""
    if kernel is None:
        return "no kernel was named for it, so it stays dense"
    try:
        return PackedLinear.pack(q, kernel, _bias(old), device=device, dtype=dtype)
    except ValueError as error:
        if on_error == "skip":
            return str(error)
        others = [each.name for each in registry.usable(q, device)]
        raise ValueError(
            f"{name}: {error}. Kernels that take it on {device}: {', '.join(others)}; or pass "
            f'on_error="skip"'
        ) from error


def _weight_of(made: Quantized) -> QuantizedTensor:
    """The tensor in the coordinates of the model: folded factors are in the model already."""
    q = made.weight if isinstance(made, QuantizedLinear) else made
    return q.folded() if isinstance(q.transform, InputScale) and q.transform.folded else q


def _bias(module: nn.Module) -> torch.Tensor | None:
    bias: torch.Tensor | None = getattr(module, "bias", None)
    return bias


def _dense(
    q: QuantizedTensor, bias: torch.Tensor | None, device: torch.device, dtype: torch.dtype
) -> nn.Linear:
    """The layer that multiplies Ŵ, rounded to dtype, by torch's own product."""
    layer = nn.Linear(q.shape[1], q.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(q.dequantize().to(device, dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(device, dtype), requires_grad=False)
    return layer.eval()


def _with_online(new: nn.Module, old: nn.Module) -> nn.Module:
    """A rotation that runs before the old layer runs before the new one."""
    online = getattr(old, "online", None)
    if online is not None:
        run_online(new, copy.deepcopy(online))
    return new.eval()


def _copied(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of its own on the device; parameters are cast, buffers keep their dtype (the
    frequencies of rotary embeddings lose positions at 16 bits)."""
    cast = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
    return tensor.detach().to(device, dtype if cast else tensor.dtype, copy=True)


def _twin(
    root: nn.Module,
    new: Mapping[nn.Module, nn.Module],
    keep: Callable[[torch.Tensor], torch.Tensor],
) -> nn.Module:
    """A copy of a module tree with other modules in the place of some.

    Every parameter and buffer of the others becomes `keep` of it, once, so that tied ones stay
    tied. Nothing of the replaced modules is copied: a dense weight never exists twice.
    """
    memo: dict[int, Any] = {id(old): module for old, module in new.items()}
    for module in root.modules():
        if module in new:
            continue
        for parameter in module.parameters(recurse=False):
            memo.setdefault(id(parameter), nn.Parameter(keep(parameter), requires_grad=False))
        for buffer in module.buffers(recurse=False):
            memo.setdefault(id(buffer), keep(buffer))
    # deepcopy takes what the memo holds for the copy that it would have made
    return copy.deepcopy(root, memo).eval()


def _notes(kernels: Mapping[str, Kernel], dtype: torch.dtype) -> tuple[str, ...]:
    other = [k for k in kernels.values() if inner_dtype(k, dtype) != dtype]
    return tuple(
        f"{kernel.name} multiplies {inner_dtype(kernel, dtype)}: the inputs of "
        f"{other.count(kernel)} layers are converted from {dtype}, their outputs back"
        for kernel in dict.fromkeys(other)
    )
