"""What a model is, by its configuration: its class in transformers, and how it reads text.

This is the one place that decides it. The class is the one named in config.json, so a model with a
head is loaded with its head; if none is named, it is the model type's own. Importing this module is
cheap; using it imports the model's class, which takes seconds the first time.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qviz.models.checkpoint import Checkpoint

# What a model does with text, and how a message calls it.
KINDS = {
    "decoder": "a decoder: it predicts the next token",
    "headless": "a decoder without the head that predicts tokens",
    "encoder": "an encoder: every token sees the whole text",
    "encoder–decoder": "an encoder–decoder: it reads one text and writes another",
    "other": "a model that reads something other than text",
}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers and its `kind`, one of KINDS."""

    cls: Any
    kind: str


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """Class and kind of a checkpoint's model.

    FileNotFoundError where there is no config.json; ValueError for a configuration that says the
    weights are quantized, and for classes that transformers does not have.
    """
    config = checkpoint.config
    if not config:
        raise FileNotFoundError(f"{checkpoint.name} has no config.json, so its model is unknown")
    _refuse_quantized(checkpoint.name, config)
    with quiet_transformers():
        cls = _class(checkpoint.name, config)
        return Architecture(cls, _kind(cls, config))


def _refuse_quantized(name: str, config: Mapping[str, Any]) -> None:
    """ValueError for a configuration that says the weights are quantized, or those of a part."""
    parts = [part for part in config.values() if isinstance(part, Mapping)]  # text_config …
    for part in (config, *parts):
        said = part.get("quantization_config") or part.get("compression_config")
        if said:
            method = said.get("quant_method") if isinstance(said, Mapping) else None
            raise ValueError(
                f"{name} is already quantized ({method or 'some method'}). Give the original "
                f"checkpoint"
            )


def _class(name: str, config: Mapping[str, Any]) -> Any:
    import transformers
    from transformers.models.auto import configuration_auto as auto

    model_type = str(config.get("model_type", ""))
    if model_type not in auto.CONFIG_MAPPING:
        own = " It needs remote code, which qviz never runs." if "auto_map" in config else ""
        raise ValueError(
            f"{name} is a {model_type or 'nameless'} model, which transformers "
            f"{transformers.__version__} does not have.{own} Its single weights can be read with "
            f"load_layer"
        )
    named = _names(config.get("architectures") or ())
    if not named:
        return _class_of_type(name, model_type)
    cls = _find_class(named[0])
    if cls is None:
        raise ValueError(
            f"the config.json of {name} names the class {named[0]}, which transformers "
            f"{transformers.__version__} does not have. If its weights are those of an ordinary "
            f"{model_type} model, write that class under architectures"
        )
    expected = cls.config_class.model_type
    if expected != model_type and cls.__name__ not in _classes_of_type(model_type):
        raise ValueError(
            f"the config.json of {name} contradicts itself: the class {named[0]} is a {expected} "
            f"model, and its model_type is {model_type}. Use the config.json that came with the "
            f"weights"
        )
    return cls


def _find_class(name: str) -> Any:
    """The class of this name that transformers has for torch, or None."""
    import transformers

    for prefix in ("TF", "Flax"):  # the same model, saved from another framework
        name = name.removeprefix(prefix)
    found = getattr(transformers, name, None)
    known = inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel)
    return found if known else None


def _classes_of_type(model_type: str) -> set[str]:
    """Every class that transformers has for a model type; some types have another one's."""
    from transformers.models.auto import modeling_auto as auto

    tables = [t for name, t in vars(auto).items() if name.endswith("_MAPPING_NAMES")]
    return {name for table in tables for name in _names(table.get(model_type, ()))}


def _class_of_type(name: str, model_type: str) -> Any:
    """The class for a configuration that names none: a language model where the type has one that
    is not for filling masks, as encoders appear in both tables."""
    from transformers.models.auto import modeling_auto as auto

    causal = model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    tables = [auto.MODEL_MAPPING_NAMES]
    if causal and not masked:
        tables.insert(0, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for table in tables:
        for entry in _names(table.get(model_type, ())):
            found = _find_class(entry)
            if found is not None:
                return found
    raise ValueError(f"transformers has no model for the type {model_type} of {name}")


def _names(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(map(str, entry))


def _kind(cls: Any, config: Mapping[str, Any]) -> str:
    from transformers.models.auto import modeling_auto as auto

    inputs = inspect.signature(cls.forward).parameters
    if "decoder_input_ids" in inputs:
        return "encoder–decoder"
    if cls.main_input_name != "input_ids":
        return "other"
    predicts = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    if any(cls.__name__ in _names(entry) for table in predicts for entry in table.values()):
        return "decoder"
    model_type = cls.config_class.model_type
    causal = any(model_type in table for table in predicts)
    if "pixel_values" in inputs and not causal:
        return "other"  # compares texts with images and cannot run on one of them alone
    masked = model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if causal and (config.get("is_decoder") or not masked):
        return "headless"
    return "encoder"


def empty_model(checkpoint: Checkpoint, architecture: Architecture) -> Any:
    """The model without weights (on torch's meta device): its modules, names and shapes."""
    import torch

    with quiet_transformers(), torch.device("meta"):
        # by its own reader: a configuration may spell infinity in a way of its own
        config = architecture.cls.config_class.from_json_file(checkpoint.fetch("config.json"))
        config._experts_implementation = "eager"
        return architecture.cls._from_config(config)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and the loading report inside; restore the user's settings
    afterwards."""
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
