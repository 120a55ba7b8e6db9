"""Loading a model, and finding its linear layers.

Decoders, encoders and GPT-2 (whose Conv1D stores its weight as [in, out]) look alike from here on:
a layer's weight is [out, in]. Nothing is imported from transformers until a model has to run;
reading a single weight (`load_layer`) never needs it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qviz.core.check import as_device
from qviz.core.memory import require_memory
from qviz.models import hub
from qviz.models.checkpoint import (
    Checkpoint,
    LayerInfo,
    find_checkpoint,
    list_layers,
    load_layer,
    match_name,
    no_layer,
)

__all__ = [
    "LayerInfo",
    "LinearLayer",
    "LoadedModel",
    "linear_layers",
    "list_layers",
    "load_layer",
    "load_model",
    "skipped_layers",
]

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run: in eval mode, no gradients.

    model      the transformers module; kind "decoder" predicts the next token, "encoder" does not
    tokenizer  its tokenizer, or None if the checkpoint has none
    name       "bundled", "minilm", the directory or the Hub id
    missing    parameters that the checkpoint does not have (an encoder's unused pooler)
    """

    model: nn.Module
    tokenizer: Any
    name: str
    kind: str
    missing: frozenset[str] = frozenset()

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
        for name in ("max_position_embeddings", "n_positions"):
            if isinstance(getattr(self.config, name, None), int):
                return int(getattr(self.config, name))
        return None


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer, Y = X·Wᵀ (+ b), whatever class implements it."""

    name: str
    module: nn.Module
    in_features: int
    out_features: int

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
    """ValueError for a layer that multiplies quantized already: it would not see another weight."""
    if hasattr(module, "quantized"):
        raise ValueError(
            f"{name} multiplies quantized already, so that another weight would change nothing in "
            f"it: take the model as it was loaded, and quantize each layer once"
        )


def load_model(
    name_or_path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load the bundled model (None), "minilm", a local directory or a Hub id.

    Only safetensors, never remote code; only a Hub id touches the network. Raises FileNotFoundError
    or ConnectionError where there is no such model, ImportError if "minilm" is not installed,
    MemoryError if it will not fit, ValueError for checkpoints that are quantized, incomplete,
    damaged, or neither decoder nor encoder.

    >>> model = qviz.load_model()
    >>> model.kind
    'decoder'
    """
    device = _check_device(device)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be one such as torch.float32, got {dtype!r}")
    checkpoint = find_checkpoint(name_or_path)
    if checkpoint.origin == "file":
        raise ValueError(
            f"{checkpoint.name} is a single file. A model needs its directory, with config.json; "
            f"one weight of it can be read with load_layer"
        )
    if checkpoint.path is None:
        directory = hub.snapshot(checkpoint.name)
        checkpoint = Checkpoint(checkpoint.name, "directory", directory)
    assert checkpoint.path is not None
    kind = _kind(checkpoint)
    _check_weights(checkpoint, dtype)
    with _quiet_transformers():
        model, missing = _from_pretrained(checkpoint, kind, dtype)
        tokenizer = _tokenizer(checkpoint.path)
    model.requires_grad_(False)
    return LoadedModel(model.eval().to(device), tokenizer, checkpoint.name, kind, missing)


def linear_layers(model: LoadedModel | nn.Module) -> dict[str, LinearLayer]:
    """Name → linear layer, in the order of the modules; skipped_layers names the others.

    An output head that shares its weight with the embeddings is left out, since changing it would
    change them; so are layers whose weights the checkpoint does not have.
    """
    module, missing = _parts(model)
    tied = _embedding_weights(module)
    layers = {}
    for name, child in module.named_modules():
        if not _is_linear(child) or f"{name}.weight" in missing or id(child.weight) in tied:
            continue
        layers[name] = linear_layer(name, child)
    return layers


def linear_layer(name: str, module: nn.Module) -> LinearLayer:
    """One module as a linear layer, which it must be."""
    rows, columns = module.weight.shape  # type: ignore[misc]
    out_in = (columns, rows) if is_conv1d(module) else (rows, columns)
    return LinearLayer(name, module, in_features=out_in[1], out_features=out_in[0])


def choose_layers(
    model: LoadedModel | nn.Module, layers: Sequence[str] | None
) -> dict[str, LinearLayer]:
    """The linear layers of these names (None: all), each by its full name or a unique tail of it.

    ValueError for a name that is unknown or ambiguous, with near ones.
    """
    known = linear_layers(model)
    if layers is None:
        return known
    chosen = {}
    for layer in [layers] if isinstance(layers, str) else layers:
        name = match_name(layer.removesuffix(".weight"), known)
        if name is None:
            why = skipped_layers(model).get(layer)
            raise ValueError(f"{layer} is left out: {why}" if why else no_layer(layer, known))
        chosen[name] = known[name]
    if not chosen:
        raise ValueError("layers is empty; name at least one, or give None for all")
    return chosen


def skipped_layers(model: LoadedModel | nn.Module) -> dict[str, str]:
    """Name → why the module is not among linear_layers, for all that hold a matrix or more."""
    module, missing = _parts(model)
    tied = _embedding_weights(module)
    skipped = {}
    for name, child in module.named_modules():
        weight = getattr(child, "weight", None)
        if _is_linear(child):
            if f"{name}.weight" in missing:
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


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _parts(model: LoadedModel | nn.Module) -> tuple[nn.Module, frozenset[str]]:
    if isinstance(model, LoadedModel):
        return model.model, model.missing
    if isinstance(model, nn.Module):
        return model, frozenset()
    raise TypeError(
        f"expected what qviz.load_model() returns or a torch module, got {type(model).__name__}"
    )


def require_loaded(model: object) -> None:
    """TypeError for anything that cannot run on text, such as a model's name."""
    if not isinstance(model, LoadedModel):
        raise TypeError(
            f"expected what qviz.load_model() returns, got {type(model).__name__}; "
            f"load the model first"
        )


def _embedding_weights(module: nn.Module) -> set[int]:
    return {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}


def _check_device(device: str | torch.device) -> torch.device:
    device = as_device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError('this machine has no CUDA device that torch can use; take device="cpu"')
    return device


def _kind(checkpoint: Checkpoint) -> str:
    """Decoder or encoder, by config.json: its architecture, or else its model type."""
    config = checkpoint.config
    if not config:
        raise FileNotFoundError(f"{checkpoint.name} has no config.json, so its model is unknown")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "some method")
        raise ValueError(
            f"{checkpoint.name} is already quantized ({method}). Give the original checkpoint"
        )
    if config.get("is_encoder_decoder"):
        raise ValueError(
            f"{checkpoint.name} is an encoder–decoder; qviz runs decoders and encoders. Its "
            f"single weights can be read with load_layer"
        )
    names = [str(a) for a in config.get("architectures") or ()]
    if any(n.endswith(("ForCausalLM", "LMHeadModel")) for n in names):
        return "decoder"
    if names:
        return "encoder"
    from transformers.models.auto import modeling_auto as auto

    # BERT and others appear in both tables; those that fill masks are meant as encoders
    kind = config.get("model_type")
    causal = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "decoder" if causal and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES else "encoder"


def _check_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Every file is there and whole, unquantized, and the model fits in memory as `dtype`."""
    headers = checkpoint.headers()
    eight_bit = sorted(t.name for t in headers.values() if t.dtype.startswith("F8"))
    if eight_bit:
        raise ValueError(
            f"{checkpoint.name} stores {eight_bit[0]} in 8 bits: it is already quantized. "
            f"Give the original checkpoint"
        )
    count = sum(torch.Size(t.shape).numel() for t in headers.values())
    require_memory(
        count * dtype.itemsize,
        f"{checkpoint.name} as {dtype}",
        "Take a smaller model or dtype=torch.bfloat16, or read single layers with load_layer",
    )


def _from_pretrained(
    checkpoint: Checkpoint, kind: str, dtype: torch.dtype
) -> tuple[nn.Module, frozenset[str]]:
    import transformers

    auto = transformers.AutoModelForCausalLM if kind == "decoder" else transformers.AutoModel
    try:
        model, report = auto.from_pretrained(
            str(checkpoint.path),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise ValueError(f"transformers cannot load {checkpoint.name}: {error}") from error
    # transformers fills what is missing with random numbers and only logs it. An encoder's pooler
    # is often missing and seldom used; anything else would make every result meaningless.
    missing = frozenset(report["missing_keys"])
    fatal = sorted(name for name in missing if "pooler." not in name)
    if fatal:
        raise ValueError(
            f"{checkpoint.name} lacks {len(fatal)} parameters of {type(model).__name__}, the first "
            f"is {fatal[0]}. The checkpoint is incomplete or its config.json is another model's"
        )
    return model, missing


def _tokenizer(directory: Path) -> Any:
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    import transformers

    return transformers.AutoTokenizer.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=False
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no loading report inside; the user's settings are as before outside."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_off = are_progress_bars_disabled()  # transformers switches these too
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if hub_off:
            disable_progress_bars()


def copy_of(model: LoadedModel) -> LoadedModel:
    """The model again, with parameters of its own; MemoryError where they do not fit."""
    size = sum(p.numel() * p.element_size() for p in model.model.parameters())
    require_memory(size, f"a copy of {model.name}", "Take a smaller model, or single layers")
    return replace(model, model=copy.deepcopy(model.model))
