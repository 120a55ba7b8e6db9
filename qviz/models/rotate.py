"""Rotating a whole model without changing what it computes, as QuaRot does.

Everything that a Llama-like block reads from the hidden state or adds to it passes a linear layer,
and its norms divide by a length, which a rotation keeps. So the hidden state can be rotated once
and for all: the norms' weights go into the linears after them, what reads the hidden state is
multiplied by Q, what writes to it by Qᵀ, and the text that comes out is the same. Each head's
values can be rotated too, since attention only mixes tokens; between the two halves of the MLP a
rotation has to run with the model. Any method then quantizes weights without outliers.

Symbols: Q = S·Hᵀ/√n the rotation of qviz.methods.rotation, W [out, in], γ a norm's weight. Paper:
QuaRot (Ashkboos et al. 2024, arXiv 2404.00456), section 4. Code: QuaRot
fake_quant/rotation_utils.py:fuse_layer_norms, rotate_model. That code also subtracts each
embedding's mean, which LayerNorm would not notice but RMSNorm does; here it is omitted, so that the
model computes the same as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from qviz.core.hadamard import hadamard_transform, has_hadamard
from qviz.methods.rotation import Rotation
from qviz.models.architecture import KINDS
from qviz.models.layers import LoadedModel, copy_of, loaded, require_own_weight

# Model types whose blocks have just these parts, and whose norms multiply by their weight.
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class RotatedModel:
    """A model in rotated coordinates.

    model     the copy; it computes the same as the original
    rotation  Q of the hidden state
    steps     parameter → what was done to it
    online    layer → the rotation that its inputs go through whenever the model runs. It belongs
              to the modules (as their child `online`): a saved checkpoint does not contain it
    """

    model: LoadedModel
    rotation: Rotation
    steps: Mapping[str, str]
    online: Mapping[str, str]


class OnlineHadamard(nn.Module):
    """x·Hᵀ/√n for x [..., n], or the same across the heads that lie side by side in x.

    heads  n = number of heads: what stands at one place in each head is mixed. None: all of x is
    Computed in float32 at least, returned in x's dtype.
    """

    def __init__(self, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        turned = _turn(wide) if self.heads is None else _across_heads(wide, self.heads)
        return turned.to(x.dtype)

    def extra_repr(self) -> str:
        return "all inputs" if self.heads is None else f"across {self.heads} heads"


def rotate_model(
    model: LoadedModel, *, seed: int = 0, heads: bool = True, online: bool = False
) -> RotatedModel:
    """A copy of a Llama-like model in rotated coordinates: other weights, the same function.

    seed    of the random signs of Q
    heads   also rotate each head's values by H, inside v_proj and o_proj
    online  also rotate the inputs of down_proj by H, and those of o_proj across the heads, while
            the model runs (QuaRot does). Without it those two are rotated on their other side, and
            o_proj inside each head

    Computed in float64 and cast back to the parameters' dtype. Norms keep a weight of ones. A head
    that shares its weight with the embeddings gets one of its own: the last norm's γ goes into the
    head and not into the embeddings. Raises ValueError for other kinds of model, and for sizes
    without a Hadamard matrix.

    >>> rotated = rotate_model(qviz.load_model())
    >>> qviz.quantize_model(rotated.model, bits=3, group_size=32)
    """
    model = loaded(model)
    _require_llama_like(model)
    _require_sizes(model, heads, online)
    twin = copy_of(model)
    turn = Rotation.random((1, model.config.hidden_size), seed, device=model.device)
    steps: dict[str, str] = {}
    running: dict[str, str] = {}
    with torch.no_grad():
        _rotate_ends(twin.model, turn, steps)
        for i, block in enumerate(_blocks(twin)):
            with _in_float64(block):
                _rotate_block(f"model.layers.{i}", block, turn, steps)
                if heads:
                    _rotate_heads(f"model.layers.{i}", block.self_attn, steps)
                if online:
                    _rotate_online(f"model.layers.{i}", block, running, steps)
    twin = replace(twin, name=f"{model.name}, rotated")
    return RotatedModel(twin, turn, steps, running)


def _rotate_ends(model: Any, turn: Rotation, steps: dict[str, str]) -> None:
    """Embeddings E·Q; head W·diag(γ)·Q, its own if it was tied."""
    decoder, head, note = model.model, model.lm_head, ""
    if head.weight is decoder.embed_tokens.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
        note = ", no longer shared with the embeddings"
    with _in_float64(nn.ModuleList([decoder.embed_tokens, decoder.norm, head])):
        decoder.embed_tokens.weight.copy_(turn.apply(decoder.embed_tokens.weight))
        _read_rotated(head, decoder.norm, turn)
        decoder.norm.weight.fill_(1)
    steps["model.embed_tokens.weight"] = "E·Q"
    steps["lm_head.weight"] = "W·diag(γ)·Q" + note
    steps["model.norm.weight"] = "1"


def _rotate_block(name: str, block: Any, turn: Rotation, steps: dict[str, str]) -> None:
    """W·diag(γ)·Q for what reads the hidden state, Qᵀ·W for what is added to it."""
    for norm, part, readers in (
        ("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj")),
        ("post_attention_layernorm", "mlp", ("gate_proj", "up_proj")),
    ):
        gamma = getattr(block, norm)
        for reader in readers:
            _read_rotated(getattr(getattr(block, part), reader), gamma, turn)
            steps[f"{name}.{part}.{reader}.weight"] = "W·diag(γ)·Q"
        gamma.weight.fill_(1)
        steps[f"{name}.{norm}.weight"] = "1"
    for part, writer in (("self_attn", "o_proj"), ("mlp", "down_proj")):
        linear = getattr(getattr(block, part), writer)
        linear.weight.copy_(turn.apply(linear.weight.T).T)
        if linear.bias is not None:
            linear.bias.copy_(turn.apply(linear.bias.unsqueeze(0)).squeeze(0))
        steps[f"{name}.{part}.{writer}.weight"] = "Qᵀ·W"


def _read_rotated(linear: Any, norm: Any, turn: Rotation) -> None:
    linear.weight.copy_(turn.apply(linear.weight * norm.weight))


def _rotate_heads(name: str, attention: Any, steps: dict[str, str]) -> None:
    """H on each head's values: on the rows of v_proj, and undone on the columns of o_proj."""
    v, o, width = attention.v_proj, attention.o_proj, attention.head_dim
    v.weight.copy_(_within_heads(v.weight.T, width).T)
    if v.bias is not None:
        v.bias.copy_(_within_heads(v.bias, width))
    o.weight.copy_(_within_heads(o.weight, width))
    steps[f"{name}.self_attn.v_proj.weight"] += ", then H/√n on each head's rows"
    steps[f"{name}.self_attn.o_proj.weight"] += ", then Hᵀ/√n on each head's columns"


def _rotate_online(name: str, block: Any, running: dict[str, str], steps: dict[str, str]) -> None:
    """Rotations that run before down_proj and o_proj, undone in their weights."""
    down, o = block.mlp.down_proj, block.self_attn.o_proj
    heads = o.in_features // block.self_attn.head_dim
    down.weight.copy_(_turn(down.weight))
    o.weight.copy_(_across_heads(o.weight, heads))
    for layer, linear, module in (
        ("mlp.down_proj", down, OnlineHadamard()),
        ("self_attn.o_proj", o, OnlineHadamard(heads)),
    ):
        run_online(linear, module)
        running[f"{name}.{layer}"] = f"H·x/√n, {module.extra_repr()}"
        steps[f"{name}.{layer}.weight"] += f", then Hᵀ/√n, {module.extra_repr()}"


def run_online(linear: nn.Module, rotation: nn.Module) -> None:
    """Let a linear's inputs go through a rotation first, before all hooks that come later, so that
    those see what the weight multiplies."""
    linear.add_module("online", rotation)
    linear.register_forward_pre_hook(_through_online)


def put_in_place(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the linear `name` stands; a rotation that runs before it goes on running."""
    old = model.get_submodule(name)
    if new is old:
        return
    if (online := getattr(old, "online", None)) is not None:
        run_online(new, online)
    model.set_submodule(name, new)


def _through_online(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.online(args[0]), *args[1:])


def _turn(x: torch.Tensor) -> torch.Tensor:
    """x·Hᵀ/√n [..., n]"""
    return hadamard_transform(x) / math.sqrt(x.shape[-1])


def _within_heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """Each run of `width` numbers along the last axis, turned by itself."""
    return _turn(x.reshape(*x.shape[:-1], -1, width)).reshape(x.shape)


def _across_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """What stands at one place in each of the heads along the last axis, turned together."""
    places = x.reshape(*x.shape[:-1], heads, -1).transpose(-1, -2)
    return _turn(places).transpose(-1, -2).reshape(x.shape)


@contextmanager
def _in_float64(module: nn.Module) -> Iterator[None]:
    """The module's parameters in float64 inside, and in their own dtypes again outside."""
    dtypes = {name: p.dtype for name, p in module.named_parameters()}
    for parameter in module.parameters():
        parameter.data = parameter.data.double()
    yield
    for name, parameter in module.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])


def _blocks(model: LoadedModel) -> Any:
    return model.model.model.layers  # type: ignore[union-attr]


def _require_llama_like(model: LoadedModel) -> None:
    kind = getattr(model.config, "model_type", "unknown")
    if model.kind != "decoder" or kind not in LLAMA_LIKE:
        raise ValueError(
            f"{model.name} ({kind}) is {KINDS[model.kind]}; rotating needs a decoder of one of "
            f'these types: {", ".join(LLAMA_LIKE)}. The method "rotation" rotates the layers of '
            f"any model one by one"
        )
    for name, module in model.model.named_modules():
        require_own_weight(name, module)


def _require_sizes(model: LoadedModel, heads: bool, online: bool) -> None:
    config, attention = model.config, _blocks(model)[0].self_attn
    wanted = [("hidden size", config.hidden_size, 'rotate its layers one by one with "rotation"')]
    if heads:
        wanted.append(("head width", attention.head_dim, "take heads=False"))
    if online:
        wanted.append(("intermediate size", config.intermediate_size, "take online=False"))
        wanted.append(("number of heads", config.num_attention_heads, "take online=False"))
    for what, size, instead in wanted:
        if not has_hadamard(size):
            raise ValueError(
                f"{model.name} has a {what} of {size}, for which no Hadamard matrix is known here; "
                f"{instead}"
            )
