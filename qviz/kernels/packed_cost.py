"""The cost of a model: the bytes that it holds, and how fast it reads and writes tokens."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from qviz.core.check import require_int
from qviz.kernels.packed_linear import PackedLinear
from qviz.kernels.packed_model import PackedModel
from qviz.models.checkpoint import HEAD
from qviz.models.layers import LoadedModel, is_conv1d
from qviz.models.reading import require_tokenizer

PARTS = ("packed linears", "other linears", "embeddings", "output head", "norms", "rest")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a model's parameters and buffers hold.

    parts        part → bytes; tensors that share a storage count once, tied ones as embeddings
    sixteen_bit  the same with every parameter, packed or not, at 16 bits
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
        lines = [f"{'':<16}{'bytes':>16}{'at 16 bits':>16}"]
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
    """What a model holds in memory, part by part, beside what it would at 16 bits.

    On CUDA also what torch has allocated there and, with a prompt, the most that it had while it
    continued it by `new_tokens`. On a CPU the memory of a process is not the model's alone:
    bench/packed_model.py measures it in processes of their own.

    >>> quantized = qviz.quantize_model(model, bits=4, group_size=32)
    >>> packed = qviz.kernels.pack_model(quantized, "torch.matmul")
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
    ids = {name: prompt_ids(model, prompt, new_tokens) for name, model in loaded.items()}
    inputs = {
        name: torch.tensor([ids[name]] * batch, device=m.device) for name, m in loaded.items()
    }
    for name, model in loaded.items():
        greedy(model, inputs[name], 2)
    runs: dict[str, list[_Run]] = {name: [] for name in loaded}
    for _ in range(repeats):
        for name, model in loaded.items():
            runs[name].append(greedy(model, inputs[name], new_tokens))
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


def greedy(model: LoadedModel, ids: torch.Tensor, new_tokens: int) -> _Run:
    """The likeliest `new_tokens` after ids [batch, prompt], never stopping."""
    on_cuda, before = ids.device.type == "cuda", 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(ids.device)
        before = torch.cuda.memory_allocated(ids.device)
    # Only the last position's logits are wanted; a large head would hide the layers otherwise. By
    # its index, which copies that position out: multiplied with a slice of all positions, torch
    # copies the whole head first on a CPU, half a second for 32000×2048 in bfloat16.
    short = "logits_to_keep" in inspect.signature(model.model.forward).parameters
    at = torch.tensor([ids.shape[1] - 1], device=ids.device)
    new, cache, times = [], None, [_now(ids.device)]
    with torch.no_grad():
        for step in range(new_tokens):
            last: dict[str, Any] = {"logits_to_keep": at} if short else {}
            output = model.model(input_ids=ids, past_key_values=cache, use_cache=True, **last)
            cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)  # [batch, 1]
            new.append(ids)
            if step == 0:
                times.append(_now(ids.device))
                at = torch.zeros_like(at)  # from now on the input is one token
    times.append(_now(ids.device))
    peak = torch.cuda.max_memory_allocated(ids.device) if on_cuda else None
    return _Run(times[1] - times[0], times[2] - times[1], torch.cat(new, dim=1), peak, before)


def _now(device: torch.device) -> float:
    """The time in seconds, once the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def prompt_ids(model: LoadedModel, prompt: str | Sequence[int], new_tokens: int) -> list[int]:
    """The prompt's tokens; ValueError where they and the new ones do not fit."""
    if model.kind != "decoder":
        raise ValueError(f"generating needs a decoder, but {model.name} is an encoder")
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

    Its text is meaningless. The defaults have the layers of Llama-3.2-1B, 6 of its 16, and a
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
