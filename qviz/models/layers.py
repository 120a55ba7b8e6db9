"""A loaded model and its linear layers.

Decoders, encoders, mixtures of experts and GPT-2 (whose Conv1D stores its weight as [in, out]) all
look the same from here on: a layer's weight is [out, in].
"""

from __future__ import annotations

import copy
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from qviz.core.memory import require_memory
from qviz.models.architecture import KINDS
from qviz.models.checkpoint import match_name, no_layer, plain_name
from qviz.models.experts import ExpertStack


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model that is ready to run: in eval mode, no gradients.

    model      the transformers module, its experts separated (qviz.models.experts)
    tokenizer  its tokenizer, or None if the checkpoint has none
    name       "bundled", "minilm", the directory or the Hub id
    kind       "decoder" predicts the next token, "headless" is a decoder without that head,
               "encoder" lets every token see the whole text, "other" reads something other than
               text
    missing    parameters that the checkpoint does not have (an encoder's unused pooler)
    unused     tensors of the checkpoint that the model does not use
    """

    model: nn.Module
    tokenizer: Any
    name: str
    kind: str
    missing: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def config(self) -> Any:
        """The model's transformers configuration."""
        return self.model.config

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens that the model has positions for, if its config says."""
        return _positions(self.model)

    def __repr__(self) -> str:
        """Name, class and kind; parameters and layers; what was not loaded."""
        parameters = list(self.model.parameters())
        dtypes = " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
        layers = linear_layers(self)
        inside = sum(layer.in_features * layer.out_features for layer in layers.values())
        total = sum(p.numel() for p in parameters)
        lines = [
            f"{self.name}: {type(self.model).__name__}, {KINDS.get(self.kind, self.kind)}",
            f"{total:,} parameters in {dtypes} on {self.device}; {inside / max(total, 1):.1%} of "
            f"them in {len(layers)} linear layers",
        ]
        if self.missing:
            lines.append(f"random, because the checkpoint lacks them: {_some(self.missing)}")
        if self.unused:
            lines.append(f"in the checkpoint, but unused by the model: {_some(self.unused)}")
        return "\n".join(lines)


def _some(names: frozenset[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - 3} more" if len(first) > 3 else ""
    return ", ".join(first[:3]) + more


# What configurations call the number of positions; of several the first that is given.
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "n_ctx",
    "max_sequence_length",
)


def _positions(model: nn.Module) -> int | None:
    """The number of tokens that a model has positions for; None where nothing limits it.

    A learned table of positions that keeps rows for padding, as RoBERTa's does, has fewer than its
    configuration says: positions are counted from the padding's on.
    """
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    given = [getattr(config, name, None) for name in _POSITIONS]
    counts = [n for n in given if isinstance(n, int) and n > 0]
    if not counts:
        return None
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)  # I-BERT's table is no nn.Embedding
        table = getattr(module, "weight", None) if "position" in name.rpartition(".")[2] else None
        if isinstance(padding, int) and table is not None and len(table) == counts[0]:
            return counts[0] - padding - 1
    return counts[0]


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer, Y = X·Wᵀ (+ b), whatever class implements it.

    stack   for an expert of a mixture: the parameter that its matrix is a part of
    shared  other modules with the same weight, by name (Zamba's blocks share theirs)
    """

    name: str
    module: nn.Module
    in_features: int
    out_features: int
    stack: str | None = None
    shared: Mapping[str, nn.Module] = field(default_factory=dict, compare=False)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every module that multiplies by this weight."""
        return {self.name: self.module, **self.shared}

    @property
    def weight(self) -> torch.Tensor:
        """W [out, in], a view of the module's parameter (transposed for Conv1D)."""
        stored: torch.Tensor = self.module.weight.detach()  # type: ignore[operator]
        return stored.T if is_conv1d(self.module) else stored

    def set_weight(self, weight: torch.Tensor) -> None:
        """Overwrite W with `weight` [out, in], cast to the parameter's dtype and device."""
        require_own_weight(self.name, self.module)
        if weight.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"{self.name} needs a weight [{self.out_features}, {self.in_features}], "
                f"got {list(weight.shape)}"
            )
        with torch.no_grad():
            self.weight.copy_(weight)


def require_own_weight(name: str, module: nn.Module) -> None:
    """Raise ValueError for a layer that already multiplies quantized: it would ignore another
    weight."""
    if hasattr(module, "quantized"):
        raise ValueError(
            f"{name} already multiplies quantized, so another weight would change nothing: start "
            "from the model as loaded, and quantize each layer once"
        )


def linear_layers(model: LoadedModel | nn.Module) -> dict[str, LinearLayer]:
    """Name → linear layer, in the order of the modules; skipped_layers names the others.

    Each expert of a mixture is one, "…experts.gate_up_proj.3". An output head that shares its
    weight with the embeddings is omitted, since changing it would change them. So are layers whose
    weights the checkpoint does not have. Modules that share one weight are one layer.
    """
    module, missing = _parts(model)
    tied = _embedding_weights(module)
    stacks = {n for n, child in module.named_modules() if isinstance(child, ExpertStack)}
    layers: dict[str, LinearLayer] = {}
    firsts: dict[int, str] = {}  # of several with one weight
    for name, child in module.named_modules():
        if not _is_linear(child) or f"{name}.weight" in missing or id(child.weight) in tied:
            continue
        first = firsts.setdefault(id(child.weight), name)
        if first != name:
            shared = {**layers[first].shared, name: child}
            layers[first] = replace(layers[first], shared=shared)
            continue
        parent = name.rpartition(".")[0]
        stack = parent if parent in stacks else None
        layers[name] = replace(linear_layer(name, child), stack=stack)
    return layers


def tied_layers(model: LoadedModel | nn.Module) -> list[str]:
    """The linear layers whose weight is the table of embeddings."""
    module, _ = _parts(model)
    tied = _embedding_weights(module)
    return [n for n, m in module.named_modules() if _is_linear(m) and id(m.weight) in tied]


def linear_layer(name: str, module: nn.Module) -> LinearLayer:
    """One module as a linear layer, which it must be."""
    rows, columns = module.weight.shape  # type: ignore[misc]
    out_in = (columns, rows) if is_conv1d(module) else (rows, columns)
    return LinearLayer(name, module, in_features=out_in[1], out_features=out_in[0])


def choose_layers(
    model: LoadedModel | nn.Module, layers: str | Sequence[str] | None
) -> dict[str, LinearLayer]:
    """The linear layers of these names (None: all), in the order of the names.

    Each by its full name, by a unique tail of it, or by a pattern with * and ? for several:
    "*.mlp.*". ValueError for a name that is unknown or ambiguous, with near ones.
    """
    known = linear_layers(model)
    if layers is None:
        return known
    chosen = {}
    for layer in [layers] if isinstance(layers, str) else layers:
        for name in _matching(model, layer, known):
            chosen[name] = known[name]
    if not chosen:
        raise ValueError("layers is empty; name at least one, or pass None for all")
    return chosen


def _matching(
    model: LoadedModel | nn.Module, layer: str, known: Mapping[str, LinearLayer]
) -> list[str]:
    short = plain_name(layer)
    if "*" in short or "?" in short:
        # only * and ? are special: an expert is written gate_up_proj[3] as well
        pattern = re.compile(fnmatch.translate(short.replace("[", "[[]")))
        found = [name for name in known if pattern.match(name)]
        if not found:
            raise ValueError(
                f"no layer matches the pattern {layer!r}; the layers have names like "
                f"{', '.join([*known][:3])}"
            )
        return found
    name = match_name(short, known)
    if name is None:
        why = skipped_layers(model).get(short)
        raise ValueError(f"{layer} cannot be used: {why}" if why else no_layer(layer, known))
    return [name]


def skipped_layers(model: LoadedModel | nn.Module) -> dict[str, str]:
    """Name → why the module is not among linear_layers, for all that hold a matrix or more."""
    module, missing = _parts(model)
    tied = _embedding_weights(module)
    skipped = {}
    shared = {n: first for first, one in linear_layers(model).items() for n in one.shared}
    for name, child in module.named_modules():
        weight = getattr(child, "weight", None)
        if _is_linear(child):
            if name in shared:
                skipped[name] = f"it shares its weight with {shared[name]}, which stands for both"
            elif f"{name}.weight" in missing:
                skipped[name] = "the checkpoint has no weight for it, so it is random"
            elif id(weight) in tied:
                skipped[name] = "its weight is the table of embeddings (tied)"
        elif isinstance(child, nn.Embedding):
            skipped[name] = "an embedding: rows are looked up, nothing is multiplied"
        else:
            for part, parameter in child.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    where = f"{name}.{part}" if part != "weight" else name
                    skipped[where] = (
                        f"a {type(child).__name__} parameter of shape {tuple(parameter.shape)}, "
                        f"not a linear layer"
                    )
    return skipped


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, told without importing transformers."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


# Classes with a forward of their own that nevertheless is X·Wᵀ + b: Falcon's rounds between the
# two, and Product (qviz.models.quantize) multiplies quantized.
_LINEAR = ("FalconLinear", "Product")


def _is_linear(module: nn.Module) -> bool:
    """Whether a module computes X·Wᵀ + b. Some that derive from nn.Linear do not: routers that give
    out scores (Llama 4), products of each group of inputs with rows of its own (DeepSeek-V4)."""
    plain = type(module).forward is nn.Linear.forward or type(module).__name__ in _LINEAR
    return (isinstance(module, nn.Linear) and plain) or is_conv1d(module)


def _parts(model: LoadedModel | nn.Module) -> tuple[nn.Module, frozenset[str]]:
    if isinstance(model, LoadedModel):
        return model.model, model.missing
    if isinstance(model, nn.Module):
        return model, frozenset()
    raise TypeError(
        f"expected what qviz.load_model() returns or a torch module, got {type(model).__name__}"
    )


class Wrapped(Protocol):
    """What qviz made of a model, with the model that runs in it: a QuantizedModel and others."""

    @property
    def model(self) -> LoadedModel: ...


def loaded(model: object) -> LoadedModel:
    """The model itself, or the one inside what qviz made of one (a QuantizedModel, a RotatedModel).

    TypeError for anything that is not a qviz model, such as a model's name.
    """
    if isinstance(model, LoadedModel):
        return model
    inside = getattr(model, "model", None)
    if isinstance(inside, LoadedModel):
        return inside
    kind = type(model).__name__
    if isinstance(model, nn.Module):
        raise TypeError(
            f"expected what qviz.load_model() returns, got the torch module {kind}. Save it with "
            f"its tokenizer, model.save_pretrained(directory), and load it with "
            f"qviz.load_model(directory)"
        )
    raise TypeError(f"expected what qviz.load_model() returns, got {kind}; load the model first")


def _embedding_weights(module: nn.Module) -> set[int]:
    return {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}


def copy_of(model: LoadedModel) -> LoadedModel:
    """A copy of the model with parameters of its own; MemoryError if they do not fit."""
    size = sum(p.numel() * p.element_size() for p in model.model.parameters())
    require_memory(size, f"a copy of {model.name}", "Use a smaller model, or single layers")
    return replace(model, model=copy.deepcopy(model.model))
