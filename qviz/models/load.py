"""Loading a model: the class that its configuration names, with the weights of its checkpoint.

Nothing is imported from transformers until a model has to run; reading a single weight
(`load_layer`) needs it only if the files use other names than the model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qviz.core.check import as_device
from qviz.core.memory import require_memory
from qviz.models import hub
from qviz.models.architecture import Architecture, architecture_of, quiet_transformers
from qviz.models.checkpoint import (
    FLOAT_BYTES,
    INDEX,
    SINGLE,
    Checkpoint,
    find_checkpoint,
    leftover,
    leftovers,
    require_floats,
)
from qviz.models.experts import separate_experts
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.names import origins_of
from qviz.models.reading import sees_after

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def load_model(
    name_or_path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """Load the bundled model (None), "minilm", a local directory or a Hub id.

    The class is the one that config.json names. Only safetensors, never remote code; only a Hub id
    touches the network. Raises FileNotFoundError or ConnectionError where there is no such model,
    ImportError if "minilm" is not installed, MemoryError if it will not fit, ValueError for
    checkpoints that are quantized, incomplete or damaged, for a configuration or a tokenizer that
    does not fit, and for encoder–decoders.

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
            f"{checkpoint.name} is a single file. A model needs its directory with config.json; "
            "single weights can be read with load_layer"
        )
    if checkpoint.path is None:
        directory = hub.snapshot(checkpoint.name)
        checkpoint = Checkpoint(checkpoint.name, "directory", directory)
    assert checkpoint.path is not None
    architecture = architecture_of(checkpoint)
    if architecture.kind == "encoder–decoder":
        raise ValueError(
            f"{checkpoint.name} is an encoder–decoder ({architecture.cls.__name__}); qviz runs "
            f"decoders and encoders. Its single weights can be read with load_layer"
        )
    _require_usual_name(checkpoint)
    _check_weights(checkpoint, dtype)
    with quiet_transformers():
        model, missing, unused = _from_pretrained(checkpoint, architecture, dtype)
        tokenizer = _tokenizer(checkpoint)
    separate_experts(model)
    model.requires_grad_(False)
    kind = architecture.kind
    loaded = LoadedModel(model.eval().to(device), tokenizer, checkpoint.name, kind, missing, unused)
    if kind == "decoder" and sees_after(loaded):
        # A class with a language model's head, and yet (BERT without is_decoder, XLNet) every token
        # sees those after it: a perplexity would be a number without meaning.
        return replace(loaded, kind="encoder")
    return loaded


def _require_usual_name(checkpoint: Checkpoint) -> None:
    """ValueError for the one file of another name, of which single weights can be read."""
    if checkpoint.fetch(SINGLE) is None and checkpoint.fetch(INDEX) is None:
        (file,) = set(checkpoint.weight_map.values())
        raise ValueError(
            f"{checkpoint.name} keeps its weights in {file}; a whole model is loaded from "
            f"{SINGLE}. Rename the file, or read single layers with load_layer"
        )


def _check_device(device: str | torch.device) -> torch.device:
    device = as_device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError('this machine has no CUDA device that torch can use; use device="cpu"')
    return device


def _check_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Every file is there and whole, unquantized, and the model fits in memory as `dtype`."""
    headers = checkpoint.headers()
    strange = leftovers(headers)  # once: a mixture has tens of thousands of tensors
    for info in headers.values():
        if info.name.endswith("weight") or info.dtype.startswith("F8"):
            require_floats(checkpoint.name, info, strange)
    beside = leftover(strange)
    if beside is not None:
        raise ValueError(
            f"{checkpoint.name} holds {beside[0]} ({beside[1]}, it seems), so its weights are "
            "already quantized. Give the original checkpoint"
        )
    count = sum(torch.Size(t.shape).numel() for t in headers.values())
    require_memory(
        count * dtype.itemsize,
        f"{checkpoint.name} as {dtype}",
        "Use a smaller model or dtype=torch.bfloat16, or read single layers with load_layer",
    )


def _from_pretrained(
    checkpoint: Checkpoint, architecture: Architecture, dtype: torch.dtype
) -> tuple[nn.Module, frozenset[str], frozenset[str]]:
    """The model, the parameters that the files lack, and the tensors that it does not use."""
    try:
        model, report = architecture.cls.from_pretrained(
            str(checkpoint.path),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            experts_implementation="eager",  # the form that separate_experts knows
            ignore_mismatched_sizes=True,  # said below, by name
        )
    except Exception as error:
        raise ValueError(f"transformers cannot load {checkpoint.name}: {error}") from error
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"{checkpoint.name} stores {name} with shape {list(stored)}, but its config.json "
            f"says {list(expected)}: the configuration belongs to another model"
        )
    _require_float_parameters(checkpoint, model)
    # transformers fills what is missing with random numbers and only logs it. An encoder's pooler
    # is often missing and seldom used; anything else would make every result meaningless.
    missing = frozenset(report["missing_keys"])
    fatal = sorted(name for name in missing if "pooler." not in name)
    if fatal:
        raise ValueError(
            f"{checkpoint.name} lacks {len(fatal)} parameters of {type(model).__name__}, the "
            f"first is {fatal[0]}. The checkpoint is incomplete, or its config.json belongs to "
            "another model"
        )
    unused = frozenset(report["unexpected_keys"])
    _require_nothing_beside(checkpoint, model, unused)
    return model, missing, unused


def _require_float_parameters(checkpoint: Checkpoint, model: nn.Module) -> None:
    """ValueError for a parameter that is stored as integers, which transformers silently converts
    to floats (a mixture's fused experts do not end in "weight")."""
    headers = checkpoint.headers()
    others = [name for name, info in headers.items() if info.dtype not in FLOAT_BYTES]
    parameters = dict(model.named_parameters())
    for origin in origins_of(model, others, parameters).values() if others else ():
        require_floats(checkpoint.name, headers[origin.parts[0][1]], headers)


def _require_nothing_beside(
    checkpoint: Checkpoint, model: nn.Module, unused: frozenset[str]
) -> None:
    """ValueError for tensors in a linear layer's place that the model does not use: scales, an
    adapter, a bias. The layer was meant to compute something other than its weight says."""
    layers = linear_layers(model)
    for name in sorted(unused):
        parts = name.split(".")
        owner = next(
            (".".join(parts[:n]) for n in range(1, len(parts)) if ".".join(parts[:n]) in layers), ""
        )
        if owner and name != f"{owner}.weight" and _is_more_than_zeros(checkpoint, name):
            raise ValueError(
                f"{checkpoint.name} stores {name} with the weight of {owner}, but "
                f"{type(model).__name__} does not use it, so the layer would not compute what "
                "was meant. Scales belong to a quantized checkpoint (give the original one), an "
                "adapter has to be merged first, and a bias needs a config.json that names it"
            )


def _is_more_than_zeros(checkpoint: Checkpoint, tensor: str) -> bool:
    info = checkpoint.headers().get(tensor)
    floats = info is not None and info.dtype in FLOAT_BYTES
    return not floats or bool(checkpoint.read(tensor).count_nonzero())


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer; None where there are no files of one."""
    directory = checkpoint.path
    assert directory is not None
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ValueError(
            f"the tokenizer of {checkpoint.name} cannot be read: {error}. Download its files "
            "again, or remove them if you only need the weights"
        ) from error
