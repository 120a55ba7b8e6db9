"""Folding: factors on a layer's inputs, absorbed by the layer before, so that they cost nothing.

AWQ and SmoothQuant multiply the input columns of a linear layer by factors s and divide its inputs
by them. Those inputs come from a norm, or from another linear layer with nothing in between that s
cannot pass through. If they are divided there once and for all, the model computes the same as
before. All linears of one input have to share its factors. Which layer feeds which is data, one
entry for each kind of block; a model whose blocks match none of them is refused, because a wrong
guess would change what it computes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from qviz.core.transform import InputScale
from qviz.models.layers import LinearLayer, LoadedModel, copy_of, linear_layers
from qviz.models.reading import as_in_use, run, some_tokens
from qviz.models.rotate import OnlineHadamard


@dataclass(frozen=True)
class Feed:
    """An input and what multiplies it.

    source   the layer whose outputs it is, where they can be divided
    into     what that is: "norm" or "linear"
    linears  the linears that multiply it, all of them
    """

    source: str
    into: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """How one kind of block is wired, by the names inside it.

    feeds   (source, linears) of each input that can be divided
    others  the other parts it may have; with an extra norm or parameter, its parts may feed
            something else, or a factor may not pass
    note    why it has no other feeds
    """

    name: str
    feeds: tuple[Feed, ...]
    others: frozenset[str] = frozenset()
    note: str = ""


BLOCKS = (
    Block(
        "Llama, Mistral, Qwen 2 and 3",
        (
            Feed(
                "input_layernorm",
                "norm",
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ),
            # Attention only mixes tokens, so a value's factor passes through it; where several
            # heads share values (grouped-query attention) their factors would differ.
            Feed("self_attn.v_proj", "linear", ("self_attn.o_proj",)),
            Feed("post_attention_layernorm", "norm", ("mlp.gate_proj", "mlp.up_proj")),
            Feed("mlp.up_proj", "linear", ("mlp.down_proj",)),  # down(act(gate) · up)
        ),
        frozenset({"self_attn.q_norm", "self_attn.k_norm"}),
    ),
    Block(
        "Phi-3",
        (
            Feed("input_layernorm", "norm", ("self_attn.qkv_proj",)),
            Feed("post_attention_layernorm", "norm", ("mlp.gate_up_proj",)),
            Feed("mlp.gate_up_proj", "linear", ("mlp.down_proj",)),  # up is its second half
        ),
        frozenset({"self_attn.o_proj"}),
    ),
    Block(
        "GPT-2",
        (
            Feed("ln_1", "norm", ("attn.c_attn",)),
            Feed("ln_2", "norm", ("mlp.c_fc",)),
        ),
        frozenset({"attn.c_proj", "mlp.c_proj"}),
    ),
    Block(
        "BERT",
        (Feed("attention.self.value", "linear", ("attention.output.dense",)),),
        frozenset(
            {
                "attention.self.query",
                "attention.self.key",
                "attention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
            }
        ),
        "the output of its norms also bypasses the next layer unscaled",
    ),
)


def feeds(
    model: LoadedModel, into: frozenset[str] = frozenset({"norm", "linear"})
) -> tuple[Feed, ...]:
    """Every input of the model's linears that can be divided in the layer before.

    `into` limits what that layer may be. Raises ValueError for a model whose blocks are not known,
    and for one without such inputs.

    >>> feeds(qviz.load_model())[0]
    Feed(source='model.layers.0.input_layernorm', into='norm',
         linears=('model.layers.0.self_attn.q_proj', 'model.layers.0.self_attn.k_proj',
                  'model.layers.0.self_attn.v_proj'))
    """
    found, notes, layers = [], [], linear_layers(model)
    for name, module in model.model.named_modules():
        block = _block_of(module)
        if block is None:
            continue
        notes.append(block.note)
        for feed in block.feeds:
            whole = Feed(
                f"{name}.{feed.source}", feed.into, tuple(f"{name}.{x}" for x in feed.linears)
            )
            if feed.into in into and _fits(layers, whole):
                found.append(whole)
    known = "; ".join(block.name for block in BLOCKS)
    if not notes:
        raise ValueError(
            f"{model.name} ({type(model.model).__name__}) has no blocks whose wiring is known "
            f"({known}), so no factors can be folded into it. Use fold=False, which divides the "
            f"inputs while the model runs"
        )
    if not found:
        raise ValueError(
            f"nothing in {model.name} can absorb factors: {notes[0] or 'no layer fits'}. Use "
            "fold=False, which divides the inputs while the model runs"
        )
    return tuple(found)


def fold_input_scales(model: LoadedModel, scales: Mapping[Feed, torch.Tensor]) -> LoadedModel:
    """A copy of the model with the factors s [in] of each feed folded in: the same function.

    The source's outputs are divided by s, the linears' input columns multiplied.

    >>> feed = feeds(model)[0]
    >>> fold_input_scales(model, {feed: torch.full((256,), 2.0)})
    """
    twin = copy_of(model)
    fold_in_place(twin, scales, model)
    return twin


def fold_in_place(
    twin: LoadedModel, scales: Mapping[Feed, torch.Tensor], original: LoadedModel
) -> None:
    """Fold factors into a copy of the original.

    Blocks are recognised by the names inside them, and names do not tell everything (the first GPT
    has GPT-2's and another order). So powers of two go first, which floating point multiplies and
    divides without error: ValueError where the copy then computes something else.
    """
    layers = linear_layers(twin)
    for feed, scale in scales.items():
        _check(layers, feed, scale)
    probe = {
        feed: 2.0 ** (torch.arange(len(scale), device=scale.device) % 3 - 1).to(scale.dtype)
        for feed, scale in scales.items()
    }
    _apply(twin, probe)
    _require_same_function(original, twin)
    _apply(twin, {feed: 1 / scale for feed, scale in probe.items()})
    _apply(twin, scales)


def _require_same_function(original: LoadedModel, twin: LoadedModel) -> None:
    ids = some_tokens(original, 16)
    with as_in_use(original), as_in_use(twin):
        before, after = (run(one, ids)[0].float() for one in (original, twin))
    off = float((after - before).abs().max() / before.abs().max())
    if not off <= 1e-3:
        raise ValueError(
            f"{original.name} ({type(original.model).__name__}) names its layers like a model "
            "that factors can be folded into, but computes something else with them (off by "
            f"{off:.1%} of its largest output). Use fold=False, which divides the inputs while "
            "the model runs"
        )


def _apply(model: LoadedModel, scales: Mapping[Feed, torch.Tensor]) -> None:
    layers = linear_layers(model)
    with torch.no_grad():
        for feed, scale in scales.items():
            source = model.model.get_submodule(feed.source)
            parameters = dict(source.named_parameters(recurse=False))
            if feed.into == "norm":
                _require_multiplier(feed.source, source)
                parameters["weight"].div_(scale.to(parameters["weight"]))
            if "bias" in parameters:
                parameters["bias"][-len(scale) :].div_(scale.to(parameters["bias"]))
        for name, transform in transforms(model, scales).items():
            layers[name].set_weight(transform.apply(layers[name].weight))


def transforms(model: LoadedModel, scales: Mapping[Feed, torch.Tensor]) -> dict[str, InputScale]:
    """Layer → how folding these factors changes its weight, for every layer that changes."""
    columns: dict[str, torch.Tensor] = {}
    rows: dict[str, torch.Tensor] = {}
    for feed, scale in scales.items():
        columns |= dict.fromkeys(feed.linears, scale)
        if feed.into == "linear":
            rows[feed.source] = scale
    layers, made = linear_layers(model), {}
    for name in {**columns, **rows}:
        layer, outputs = layers[name], None
        if name in rows:
            # A fused layer's last rows are the ones that go on (gate and up: up).
            outputs = rows[name].new_ones(layer.out_features)
            outputs[-len(rows[name]) :] = rows[name]
        scale = columns.get(name, torch.ones(layer.in_features, device=layer.weight.device))
        made[name] = InputScale(scale, outputs=outputs)
    return made


def _block_of(module: nn.Module) -> Block | None:
    """The entry that describes this module, if it is a block of a known kind."""
    children = dict(module.named_modules())
    parts = {name for name, child in children.items() if name and _counts(child)}
    weighted = {name for name in parts if hasattr(children[name], "weight")}
    for block in BLOCKS:
        names = {name for feed in block.feeds for name in (feed.source, *feed.linears)}
        if names <= weighted and parts <= names | block.others:
            return block
    return None


def _counts(module: nn.Module) -> bool:
    """Whether a factor may not pass this module unseen: norms, parameters, what runs in a linear
    before it multiplies (a rotation)."""
    own = next(module.parameters(recurse=False), None) is not None
    norm = "norm" in type(module).__name__.lower()
    return own or norm or isinstance(module, OnlineHadamard)


def _fits(layers: Mapping[str, LinearLayer], feed: Feed) -> bool:
    """Whether each output of the source is exactly one input of the linears."""
    if feed.into == "norm":
        return all(name in layers for name in feed.linears)
    if not {feed.source, *feed.linears} <= layers.keys():
        return False
    inputs = layers[feed.linears[0]].in_features
    return layers[feed.source].out_features % inputs == 0


def _check(layers: Mapping[str, LinearLayer], feed: Feed, scale: torch.Tensor) -> None:
    unknown = {*feed.linears} - layers.keys()
    if unknown:
        raise ValueError(f"the model has no linear layer {min(unknown)}; use a feed from feeds()")
    inputs = layers[feed.linears[0]].in_features
    if scale.shape != (inputs,):
        raise ValueError(
            f"{feed.linears[0]} has {inputs} inputs, the factors' shape is {tuple(scale.shape)}"
        )
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError(f"the factors of {feed.linears[0]} must all be finite and above 0")


def _require_multiplier(name: str, norm: nn.Module) -> None:
    """ValueError for a norm that does not simply multiply by its weight, as Gemma's 1 + weight."""
    double = copy.deepcopy(norm)
    for parameter in double.parameters():
        parameter.mul_(2)
    weight = norm.get_parameter("weight")
    x = torch.linspace(-1, 1, len(weight)).to(weight)
    if not torch.allclose(double(x), 2 * norm(x), rtol=1e-2, atol=1e-6):
        raise ValueError(
            f"{name} ({type(norm).__name__}) does not simply multiply by its weight, so it "
            "cannot absorb factors. Use fold=False, which divides the inputs while the model "
            "runs"
        )
