"""A whole model that computes with packed weights: what it says, how fast, in how much memory.

`pack_model` takes what `qviz.quantize_model` returned and puts a `PackedLinear` in the place of
every quantized layer; embeddings, norms and the output head stay as they are, in 16 bits. The
result is an ordinary LoadedModel. `compare` holds it against its dequantized reference, the same
weights Ŵ written out in 16 bits and multiplied by torch's own product: what differs between the
two comes from the kernel alone. That reference has as many 16-bit weights as the original, so it
is also what speed and memory are measured beside.

Symbols: X [tokens, in] inputs, Ŵ [out, in] the dequantized weight, Y = X·Ŵᵀ, m tokens per product
(1 for each sequence while text is generated).
"""

from __future__ import annotations

import copy
import inspect
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from qviz.core.check import require_int, unknown
from qviz.core.linear import QuantizedLinear
from qviz.core.tensor import QuantizedTensor
from qviz.core.transform import InputScale
from qviz.kernels import registry
from qviz.kernels.kernel import Kernel, Packed
from qviz.methods.rotation import Rotation
from qviz.models.capture import require_tokenizer, token_windows
from qviz.models.checkpoint import HEAD
from qviz.models.load import LoadedModel, is_conv1d
from qviz.models.quantize import Quantized, QuantizedModel
from qviz.models.rotate import run_online
from qviz.models.text import Perplexity, perplexity
from qviz.models.texts import evaluation_texts

DEFAULT_KERNEL = "torch.int4"
HALVES = (torch.bfloat16, torch.float16)
ROWS = 64  # of logits compared at a time: two float64 copies of them are in memory
PROMPT_CHARACTERS = 200  # of the text, where no prompt is given
PARTS = ("packed linears", "other linears", "embeddings", "output head", "norms", "rest")


# ---------------------------------------------------------------------- one layer


class PackedLinear(nn.Module):
    """A linear layer Y = X·Ŵᵀ (+ b) whose weight exists only as a kernel packed it.

    kernel     what multiplies
    packed     its bytes; each of its tensors is a buffer of this module, named packed_…
    bias       [out] or None
    transform  what is done to the inputs and outputs because no layer before or after takes it up:
               an InputScale (inputs divided, outputs multiplied) or a Rotation (x·Q, y·Qₒᵀ)

    Inputs of another dtype than the weight was packed for are converted to it, and outputs back to
    the dtype of the inputs, so that a kernel which takes float32 alone works in a 16-bit model.
    Casting the module (`.half()`, `.to(torch.float32)`) casts its bias; the packed bytes keep their
    dtypes. It moves between devices of one type; ValueError for a move to another type, as the
    layout of the bytes may be another there.
    """

    quantized = True  # no weight of its own that could be set: load.require_own_weight asks for it
    bias: torch.Tensor | None
    columns: torch.Tensor | None
    input_scale: torch.Tensor | None
    output_scale: torch.Tensor | None
    input_signs: torch.Tensor | None
    output_signs: torch.Tensor | None

    def __init__(
        self,
        kernel: Kernel,
        packed: Packed,
        bias: torch.Tensor | None = None,
        *,
        transform: InputScale | Rotation | None = None,
    ) -> None:
        super().__init__()
        if packed.kernel != kernel.name:
            raise ValueError(f"these bytes were packed for {packed.kernel}, not for {kernel.name}")
        self.kernel, self.packed = kernel, packed
        self.out_features, self.in_features = packed.shape
        for name, tensor in packed.tensors.items():
            self.register_buffer(f"packed_{name}", tensor)
        self.register_buffer("columns", packed.columns)
        held = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", held)
        scale = transform if isinstance(transform, InputScale) else None
        turn = transform if isinstance(transform, Rotation) else None
        self._hold("input_scale", None if scale is None else scale.scale)
        self._hold("output_scale", None if scale is None else scale.outputs)
        self._hold("input_signs", None if turn is None else turn.signs)
        self._hold("output_signs", None if turn is None else turn.output)
        self._plain = transform is None

    def _hold(self, name: str, tensor: torch.Tensor | None) -> None:
        where = self.packed.device
        self.register_buffer(name, None if tensor is None else tensor.detach().to(where, copy=True))

    @classmethod
    def pack(
        cls,
        q: QuantizedTensor,
        kernel: Kernel,
        bias: torch.Tensor | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PackedLinear:
        """The layer of a quantized weight; its transform, if it has one, runs with it.

        dtype is that of inputs and outputs (None: the kernel's own); a kernel that does not take it
        packs for its own. ValueError, saying why, for a tensor that the kernel does not take.

        >>> q = qviz.quantize(weight, bits=4, group_size=32)
        >>> layer = PackedLinear.pack(q, registry.get("torch.matmul"), dtype=torch.float32)
        >>> layer(torch.ones(2, weight.shape[1])).shape
        torch.Size([2, 64])
        """
        if not isinstance(q.transform, InputScale | Rotation | None):
            raise ValueError(
                f"this weight was quantized in other coordinates ({type(q.transform).__name__}), "
                f"and how inputs get there is not known here; pack q.folded() and do it yourself"
            )
        # A copy, since a kernel may hand on the codes themselves, which are the tensor's.
        packed = kernel.pack(q.folded(), device, inner_dtype(kernel, dtype)).copy()
        if bias is not None:
            bias = bias.detach().to(packed.device, dtype or packed.dtype, copy=True)
        return cls(kernel, packed, bias, transform=q.transform)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Y [..., out] in the dtype of x [..., in]; ValueError for another width or device."""
        if self._plain:
            y = self.kernel.multiply(self.packed, x.to(self.packed.dtype)).to(x.dtype)
        else:
            y = self._leave(self.kernel.multiply(self.packed, self._enter(x))).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def _enter(self, x: torch.Tensor) -> torch.Tensor:
        """The inputs in the coordinates in which the weight was quantized, in the packed dtype."""
        if self.input_scale is not None:
            x = x / self.input_scale  # in the wider dtype of the two, rounded once below
        if self.input_signs is not None:
            x = Rotation(self.input_signs).apply(x)  # x·Q, row by row as for a weight
        return x.to(self.packed.dtype)

    def _leave(self, y: torch.Tensor) -> torch.Tensor:
        """The outputs back in their own coordinates."""
        if self.output_scale is not None:
            y = y * self.output_scale
        if self.output_signs is not None:
            y = Rotation(self.output_signs).undo(y)  # y·Qₒᵀ
        return y

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """What .to(), .half() and .cuda() call with what they do to one tensor."""
        there = fn(torch.empty(0, device=self.packed.device)).device
        if there.type != self.packed.device.type:
            raise ValueError(
                f"weights packed for {self.kernel.name} on {self.packed.device} cannot move to "
                f"{there}, where their layout may be another: pack the quantized model again with "
                f"device={str(there)!r}. Other parts of the model may have moved already"
            )

        def bytes_kept(tensor: torch.Tensor) -> torch.Tensor:
            if tensor is self.bias or fn(tensor.new_empty(0)).dtype == tensor.dtype:
                return fn(tensor)
            return tensor.to(there)  # a cast would change what the bytes mean

        super()._apply(bytes_kept, recurse)  # type: ignore[no-untyped-call]
        self._refresh(there)
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._refresh(self.packed.device)

    def _refresh(self, device: torch.device) -> None:
        """Let `packed` be made of the buffers as they are now: products read it, not them."""
        tensors = {name: self.get_buffer(f"packed_{name}") for name in self.packed.tensors}
        self.packed = replace(self.packed, tensors=tensors, columns=self.columns, device=device)

    def extra_repr(self) -> str:
        return (
            f"{self.kernel.name}, in_features={self.in_features}, "
            f"out_features={self.out_features}, {self.packed.dtype}, {self.packed.nbytes} bytes"
        )


def inner_dtype(kernel: Kernel, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype a kernel packs for where the model computes in `dtype`."""
    return dtype if dtype in kernel.dtypes and dtype is not None else kernel.dtypes[0]


# ---------------------------------------------------------------------- the model


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
        >>> packed = pack_model(quantized, "torch.matmul")
        >>> qviz.generate(packed.reference(), "def f(", max_new_tokens=4)
        """
        made = self._quantized() if quantized is None else quantized
        if made is None:
            raise RuntimeError(
                f"the quantized model from which {self.model.name} was packed is no longer in "
                f"memory, and its packed bytes are no reference for themselves: keep it, or pass "
                f"it again as quantized="
            )
        dense: dict[nn.Module, nn.Module] = {}
        for name in self.kernels:
            here = self.model.model.get_submodule(name)
            assert isinstance(here, PackedLinear)
            q = _weight_of(made.tensors[name]) if name in made.tensors else None
            if q is None or q.shape != here.packed.shape:
                raise ValueError(
                    f"{name} is packed here as {list(here.packed.shape)} and is another layer, or "
                    f"none, in this quantized model: pass the one that was packed"
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

    >>> packed = pack_model(qviz.quantize_model(model, bits=4, group_size=32), "torch.matmul")
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
    frequencies of rotary embeddings lose positions in 16 bits)."""
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


# ---------------------------------------------------------------------- memory


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a model's parameters and buffers hold.

    parts        part → bytes; tensors that share a storage count once, tied ones as embeddings
    sixteen_bit  the same with every parameter, packed or not, in 16 bits
    allocated    on CUDA, what torch had allocated on the device, other things included
    peak         on CUDA, the most that it had allocated while text was generated
    """

    parts: Mapping[str, int]
    sixteen_bit: Mapping[str, int]
    allocated: int | None = None
    peak: int | None = None

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def sixteen_bit_total(self) -> int:
        return sum(self.sixteen_bit.values())

    def __str__(self) -> str:
        lines = [f"{'':<16}{'bytes':>16}{'in 16 bits':>16}"]
        lines += [
            f"{part:<16}{size:>16,}{self.sixteen_bit[part]:>16,}"
            for part, size in self.parts.items()
        ]
        lines.append(f"{'total':<16}{self.total:>16,}{self.sixteen_bit_total:>16,}")
        if self.allocated is not None:
            lines.append(f"{'torch on CUDA':<16}{self.allocated:>16,}")
        if self.peak is not None:
            lines.append(f"{'at most':<16}{self.peak:>16,}")
        return "\n".join(lines)


def memory(
    model: PackedModel | LoadedModel,
    *,
    prompt: str | Sequence[int] | None = None,
    new_tokens: int = 64,
) -> MemoryUse:
    """What a model holds in memory, part by part, beside what it would in 16 bits.

    On CUDA also what torch has allocated there and, with a prompt, the most that it had while it
    continued it by `new_tokens`. On a CPU the memory of a process is not the model's alone:
    bench/packed_model.py measures it in processes of their own.

    >>> packed = pack_model(qviz.quantize_model(model, bits=4, group_size=32), "torch.matmul")
    >>> use = memory(packed)
    >>> use.total == use.sixteen_bit_total  # the 16-bit product packs nothing
    True
    """
    loaded = _loaded(model)
    parts, halves = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    seen: set[tuple[torch.device, int]] = set()
    for part, module in _parts(loaded.model):
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            storage = tensor.untyped_storage()
            if storage.nbytes() == 0 or (tensor.device, storage.data_ptr()) in seen:
                continue
            seen.add((tensor.device, storage.data_ptr()))
            parts[part] += storage.nbytes()
            if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                halves[part] += 2 * tensor.numel()
            elif not isinstance(module, PackedLinear):
                halves[part] += storage.nbytes()
        if isinstance(module, PackedLinear):
            halves[part] += 2 * math.prod(module.packed.shape)
    held = {name: size for name, size in parts.items() if size}
    return MemoryUse(
        held, {name: halves[name] for name in held}, *_on_cuda(model, prompt, new_tokens)
    )


def _parts(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(part, module) for all modules, embeddings first: a tied head is counted there."""
    named = [(_part(name, module), module) for name, module in root.named_modules()]
    return iter(sorted(named, key=lambda pair: pair[0] != "embeddings"))


def _part(name: str, module: nn.Module) -> str:
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if HEAD.search(name):
        return "output head"
    if isinstance(module, PackedLinear):
        return "packed linears"
    if isinstance(module, nn.Linear) or is_conv1d(module):
        return "other linears"
    return "norms" if "norm" in type(module).__name__.lower() else "rest"


def _on_cuda(
    model: PackedModel | LoadedModel, prompt: str | Sequence[int] | None, new_tokens: int
) -> tuple[int | None, int | None]:
    """(allocated, peak) of the model's device; None where that is no CUDA device."""
    device = _loaded(model).device
    if device.type != "cuda":
        return None, None
    allocated = torch.cuda.memory_allocated(device)
    if prompt is None:
        return allocated, None
    found = speed(model, prompt, new_tokens=new_tokens, repeats=1)
    return allocated, found.peak


def _loaded(model: PackedModel | LoadedModel) -> LoadedModel:
    if isinstance(model, PackedModel):
        return model.model
    if not isinstance(model, LoadedModel):
        raise TypeError(
            f"expected what pack_model or qviz.load_model returned, got {type(model).__name__}"
        )
    return model


# ---------------------------------------------------------------------- speed


@dataclass(frozen=True)
class Rate:
    """How fast tokens went by: `tokens` in each of `seconds`, one for each repeat."""

    tokens: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Tokens per second in the median repeat."""
        return self.tokens / float(np.median(self.seconds))

    @property
    def p95(self) -> float:
        """Tokens per second that 95 % of the repeats reach."""
        return self.tokens / float(np.quantile(self.seconds, 0.95))

    @property
    def range(self) -> tuple[float, float]:
        """Tokens per second in the slowest and in the fastest repeat."""
        return self.tokens / max(self.seconds), self.tokens / min(self.seconds)

    def __str__(self) -> str:
        low, high = self.range
        return f"{self.median:.4g} tokens/s ({low:.4g} to {high:.4g})"


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a model, its two phases apart.

    prefill        reading the prompt, all of its tokens in one product
    decode         generating, one token of each sequence at a time
    prompt_tokens  of each sequence
    new_tokens     of each sequence, the first of which the prefill gives
    batch          sequences at once
    peak           on CUDA, the most bytes that torch had allocated meanwhile
    added          on CUDA, how many of them were not there before: keys, values, activations
    """

    prefill: Rate
    decode: Rate
    prompt_tokens: int
    new_tokens: int
    batch: int
    peak: int | None = None
    added: int | None = None

    def __str__(self) -> str:
        return f"prefill {self.prefill}\ndecode  {self.decode}"


def speed(
    model: PackedModel | LoadedModel,
    prompt: str | Sequence[int],
    *,
    new_tokens: int = 64,
    batch: int = 1,
    repeats: int = 5,
) -> Speed:
    """How fast a decoder reads a prompt and continues it, greedily, keys and values cached.

    prompt is a text or its token ids; `batch` copies of it go together. End-of-text tokens do not
    stop it. After a warm-up, `repeats` runs are measured, the device synchronized on both sides.
    ValueError for an encoder and for more tokens than the model has positions for.

    >>> speed(model, "def read_file(path):", new_tokens=8, repeats=3).decode.median > 0
    True
    """
    options = {"new_tokens": new_tokens, "batch": batch, "repeats": repeats}
    return speeds({"": model}, prompt, **options)[""]


def speeds(
    models: Mapping[str, PackedModel | LoadedModel],
    prompt: str | Sequence[int],
    *,
    new_tokens: int = 64,
    batch: int = 1,
    repeats: int = 5,
) -> dict[str, Speed]:
    """`speed` of several models, run in turns so that all meet the same machine.

    >>> found = speeds({"one": model, "two": model}, [1, 2, 3], new_tokens=4, repeats=2)
    >>> len(found["two"].decode.seconds)
    2
    """
    if not models:
        raise ValueError("there is no model to measure; give at least one")
    for name, value, least in (("new_tokens", new_tokens, 2), ("batch", batch, 1)):
        require_int(value, name, least, 1_000_000)
    require_int(repeats, "repeats", 1, 10_000)
    loaded = {name: _loaded(model) for name, model in models.items()}
    ids = {name: _ids(model, prompt, new_tokens) for name, model in loaded.items()}
    inputs = {
        name: torch.tensor([ids[name]] * batch, device=m.device) for name, m in loaded.items()
    }
    for name, model in loaded.items():
        _generate(model, inputs[name], 2)
    runs: dict[str, list[_Run]] = {name: [] for name in loaded}
    for _ in range(repeats):
        for name, model in loaded.items():
            runs[name].append(_generate(model, inputs[name], new_tokens))
    return {name: _speed(runs[name], len(ids[name]), new_tokens, batch) for name in loaded}


@dataclass(frozen=True)
class _Run:
    """One generation: seconds of its phases, its new tokens [batch, new]; on CUDA its peak and
    what lay there before."""

    prefill: float
    decode: float
    tokens: torch.Tensor
    peak: int | None = None
    before: int = 0


def _speed(runs: Sequence[_Run], prompt_tokens: int, new_tokens: int, batch: int) -> Speed:
    peaks = [(run.peak, run.peak - run.before) for run in runs if run.peak is not None]
    return Speed(
        Rate(batch * prompt_tokens, tuple(run.prefill for run in runs)),
        Rate(batch * (new_tokens - 1), tuple(run.decode for run in runs)),
        prompt_tokens,
        new_tokens,
        batch,
        max(peak for peak, _ in peaks) if peaks else None,
        max(added for _, added in peaks) if peaks else None,
    )


def _generate(model: LoadedModel, ids: torch.Tensor, new_tokens: int) -> _Run:
    """The likeliest `new_tokens` after ids [batch, prompt], never stopping."""
    on_cuda, before = ids.device.type == "cuda", 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(ids.device)
        before = torch.cuda.memory_allocated(ids.device)
    # Only the last position's logits are wanted; a large head would hide the layers otherwise.
    takes = inspect.signature(model.model.forward).parameters
    last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    new, cache, times = [], None, [_now(ids.device)]
    with torch.no_grad():
        for step in range(new_tokens):
            output = model.model(input_ids=ids, past_key_values=cache, use_cache=True, **last)
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)  # [batch, 1]
            new.append(ids)
            if step == 0:
                times.append(_now(ids.device))
    times.append(_now(ids.device))
    peak = torch.cuda.max_memory_allocated(ids.device) if on_cuda else None
    return _Run(times[1] - times[0], times[2] - times[1], torch.cat(new, dim=1), peak, before)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _ids(model: LoadedModel, prompt: str | Sequence[int], new_tokens: int) -> list[int]:
    """The prompt's tokens; ValueError where they and the new ones do not fit."""
    if model.kind != "decoder":
        raise ValueError(f"generating needs a decoder, and {model.name} is an encoder")
    text = isinstance(prompt, str)
    ids = list(require_tokenizer(model)(prompt)["input_ids"] if text else prompt)
    if not ids:
        raise ValueError("the prompt is empty; give at least one token")
    longest = model.max_length
    if longest is not None and len(ids) + new_tokens > longest:
        raise ValueError(
            f"the prompt's {len(ids)} tokens and {new_tokens} new ones exceed the {longest} "
            f"positions of {model.name}; shorten one of them"
        )
    return ids


def random_llama(
    *,
    hidden: int = 2048,
    layers: int = 6,
    heads: int = 32,
    kv_heads: int = 8,
    intermediate: int = 8192,
    vocabulary: int = 32000,
    positions: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """A Llama of this shape with RANDOM weights: for speed and memory, which do not depend on them.

    What it says means nothing. The defaults have the layers of Llama-3.2-1B, 6 of its 16, and a
    table of 32000 tied embeddings instead of 128256, 0.43 billion parameters in all. It has no
    tokenizer: prompts are token ids. ValueError where heads do not divide the hidden size.

    >>> small = random_llama(hidden=64, layers=1, heads=4, kv_heads=2, intermediate=96)
    >>> small.tokenizer is None, "random weights" in small.name
    (True, True)
    """
    if hidden % heads or heads % kv_heads:
        raise ValueError(
            f"{heads} heads must divide the hidden size of {hidden}, and {kv_heads} kv_heads the "
            f"heads"
        )
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.requires_grad_(False)
    name = f"Llama with random weights, {layers} layers of {hidden}"
    return LoadedModel(model.eval().to(device), None, name, "decoder")


# ---------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Logits:
    """How far the logits of the packed model are from those of its dequantized reference.

    max_abs   the largest difference
    relative  ‖a − b‖ / ‖b‖ over all of them
    kl        Σ p·ln(p/p̂), the reference's p against the packed model's p̂, mean over tokens, in nats
    same_top  share of positions at which both find the same token likeliest
    tokens    positions compared
    """

    max_abs: float
    relative: float
    kl: float
    same_top: float
    tokens: int


@dataclass(frozen=True)
class Texts:
    """What both continue a prompt with, greedily.

    parts_at  the number of the first new token (from 0) that differs; None: none does
    """

    prompt: str
    packed: str
    reference: str
    parts_at: int | None
    new_tokens: int


@dataclass(frozen=True)
class Comparison:
    """A packed model beside its dequantized reference, which is a 16-bit model.

    perplexity, speed and memory are pairs: (packed, reference).
    """

    logits: Logits
    texts: Texts
    perplexity: tuple[Perplexity, Perplexity]
    speed: tuple[Speed, Speed]
    memory: tuple[MemoryUse, MemoryUse]
    kernels: tuple[str, ...]
    dtype: torch.dtype
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Figure by figure, for a table: what, packed, reference, packed / reference, in words."""
        (fast, fast16), (held, held16) = self.speed, self.memory
        found = [
            _row("prefill, tokens/s", fast.prefill.median, fast16.prefill.median),
            _row("decode, tokens/s", fast.decode.median, fast16.decode.median),
            _row("bytes of the model", held.total, held16.total),
            _row("perplexity", self.perplexity[0].value, self.perplexity[1].value),
        ]
        found[0]["in words"] = _pace(fast.prefill, fast16.prefill)
        found[1]["in words"] = _pace(fast.decode, fast16.decode)
        found[2]["in words"] = _size(held.total / held16.total)
        if fast.added is not None and fast16.added:
            # Not the peaks themselves: both models lie on the device while either runs.
            found.append(_row("bytes that generating adds on CUDA", fast.added, fast16.added))
            found[-1]["in words"] = _size(fast.added / fast16.added)
        return found

    def __str__(self) -> str:
        lines = [f"{' and '.join(self.kernels)} beside {self.dtype} weights"]
        lines.append(f"{'':<38}{'packed':>14}{'16 bits':>14}{'ratio':>9}")
        lines += [
            f"{r['what']:<38}{_figure(r['packed']):>14}{_figure(r['16 bits']):>14}"
            f"{r['ratio']:>9.3f}  {r['in words']}".rstrip()
            for r in self.rows
        ]
        x, t = self.logits, self.texts
        lines.append(
            f"logits of {x.tokens} tokens: largest difference {x.max_abs:.3g}, relative "
            f"{x.relative:.2e}, KL {x.kl:.2e} nats, the same next token in {x.same_top:.2%}"
        )
        lines.append(
            f"greedy text: the same for {t.new_tokens} tokens"
            if t.parts_at is None
            else f"greedy text: parts at new token {t.parts_at} of {t.new_tokens}"
        )
        return "\n".join([*lines, *self.notes])


def _row(what: str, packed: float, reference: float) -> dict[str, Any]:
    ratio = packed / reference
    return {"what": what, "packed": packed, "16 bits": reference, "ratio": ratio, "in words": ""}


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _pace(ours: Rate, theirs: Rate) -> str:
    """Faster or slower, unless some repeats say one thing and some the other."""
    (low, high), (low16, high16) = ours.range, theirs.range
    if low <= high16 and low16 <= high:
        return "no difference beyond that between repeats"
    ratio = ours.median / theirs.median
    return f"{ratio:.2f} times as fast" if ratio > 1 else f"slower, {1 / ratio:.2f} times"


def _size(ratio: float) -> str:
    if ratio == 1:
        return "the same"
    return f"{1 / ratio:.2f} times smaller" if ratio < 1 else f"larger, {ratio:.2f} times"


def compare(
    packed: PackedModel,
    texts: str | Sequence[str] | None = None,
    *,
    prompt: str | None = None,
    quantized: QuantizedModel | None = None,
    max_tokens: int = 2048,
    new_tokens: int = 64,
    batch: int = 1,
    repeats: int = 5,
) -> Comparison:
    """The packed model against its dequantized reference: what it says, how fast, in which memory.

    texts       for logits and perplexity, at most `max_tokens` of them; None: the evaluation texts
                that come with qviz
    prompt      for generation and speed; None: the first 200 characters of the texts
    quantized   what was packed, for the reference; None: that very object if it is still alive

    Speed is measured in turns, so that both meet the same machine. The reference is in memory
    meanwhile. Raises ValueError for encoders, models without a tokenizer and predictions of NaN.

    >>> quantized = qviz.quantize_model(model, bits=4, group_size=32)
    >>> packed = pack_model(quantized, "torch.matmul")
    >>> found = compare(packed, max_tokens=64, new_tokens=4, repeats=1)
    >>> found.logits.max_abs, found.texts.parts_at
    (0.0, None)
    """
    if not isinstance(packed, PackedModel):
        raise TypeError(f"compare takes what pack_model returned, got {type(packed).__name__}")
    if texts is None:
        texts = [text.text for text in evaluation_texts().values()]
    if prompt is None:
        prompt = (texts if isinstance(texts, str) else texts[0])[:PROMPT_CHARACTERS]
    _ids(packed.model, prompt, new_tokens)  # what cannot be generated is refused before the rest
    reference = packed.reference(quantized)
    pair = (packed.model, reference)
    scored = tuple(perplexity(model, texts, max_tokens=max_tokens) for model in pair)
    options = {"new_tokens": new_tokens, "batch": batch, "repeats": repeats}
    fast = speeds({"packed": packed.model, "reference": reference}, prompt, **options)
    return Comparison(
        compare_logits(packed.model, reference, texts, max_tokens=max_tokens),
        compare_texts(packed.model, reference, prompt, new_tokens=new_tokens),
        (scored[0], scored[1]),
        (fast["packed"], fast["reference"]),
        (memory(packed), memory(reference)),
        tuple(dict.fromkeys(packed.kernels.values())),
        packed.dtype,
        packed.notes,
    )


def compare_logits(
    model: LoadedModel,
    reference: LoadedModel,
    texts: str | Sequence[str],
    *,
    max_tokens: int = 2048,
) -> Logits:
    """How far the logits of a model are from a reference's, over the same tokens.

    >>> compare_logits(model, model, "def read(path):").relative
    0.0
    """
    largest = error = energy = kl = same = 0.0
    count = 0
    for window in token_windows(reference, texts, max_tokens, None):
        with torch.no_grad():
            a, b = (
                one.model(input_ids=torch.tensor([window], device=one.device)).logits[0]
                for one in (model, reference)
            )
        for ours, theirs in zip(a.split(ROWS), b.split(ROWS), strict=True):
            x, y = ours.double(), theirs.double().to(ours.device)  # [rows, vocabulary]
            difference = x - y
            largest = max(largest, float(difference.abs().max()))
            error += float(difference.square().sum())
            energy += float(y.square().sum())
            log_p, log_q = y.log_softmax(-1), x.log_softmax(-1)
            kl += float((log_p.exp() * (log_p - log_q)).sum())
            same += float((x.argmax(-1) == y.argmax(-1)).sum())
        count += len(window)
    relative = math.sqrt(error / energy) if energy else 0.0
    return Logits(largest, relative, kl / count, same / count, count)


def compare_texts(
    model: LoadedModel, reference: LoadedModel, prompt: str, *, new_tokens: int = 64
) -> Texts:
    """What both continue a prompt with, and where they part.

    >>> compare_texts(model, model, "def read(path):", new_tokens=4).parts_at is None
    True
    """
    ours, theirs = (_continued(one, prompt, new_tokens) for one in (model, reference))
    differ = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    shorter = min(len(ours), len(theirs))
    parts_at = next(differ, None if len(ours) == len(theirs) else shorter)
    said = [_text(one, prompt, new) for one, new in ((model, ours), (reference, theirs))]
    return Texts(prompt, said[0], said[1], parts_at, max(len(ours), len(theirs)))


def _continued(model: LoadedModel, prompt: str, new_tokens: int) -> list[int]:
    """The likeliest new tokens up to the model's end-of-text token."""
    ids = torch.tensor([_ids(model, prompt, new_tokens)], device=model.device)
    new: list[int] = _generate(model, ids, new_tokens).tokens[0].tolist()
    listed = getattr(model.config, "eos_token_id", None)
    ends = {
        require_tokenizer(model).eos_token_id,
        *(listed if isinstance(listed, list) else [listed]),
    }
    stop = next((i for i, token in enumerate(new) if token in ends), len(new))
    return new[:stop]


def _text(model: LoadedModel, prompt: str, new: list[int]) -> str:
    """The new tokens as text, decoded with the prompt: some tokenizers drop a first space."""
    tokenizer, before = require_tokenizer(model), _ids(model, prompt, 0)
    options = {"clean_up_tokenization_spaces": False}
    start: str = tokenizer.decode(before, **options)
    together: str = tokenizer.decode(before + new, **options)
    return together[len(start) :]
