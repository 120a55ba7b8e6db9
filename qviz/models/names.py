"""From the names in a checkpoint's files to those of the model's own layers.

Most files use the model's own names for its weights. Others do not: transformers renames, splits
and merges tensors while it loads (a mixture's experts are single tensors in the files and one
parameter in the model), and only the model's modules tell which matrices are linear layers. For
those models this
module builds the model without weights and asks transformers' own rules where each parameter comes
from: once for all that lists layers or reads one.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qviz.models.architecture import architecture_of, empty_model

if TYPE_CHECKING:
    import torch

    from qviz.models.checkpoint import Checkpoint

# Model types whose files name each weight as the model does, and whether their head is the table
# of embeddings where config.json does not say. For these, layers are listed and read without
# transformers. A test holds the table against transformers itself.
PLAIN: Mapping[str, bool] = {
    "llama": False,
    "mistral": False,
    "qwen2": False,
    "qwen3": False,
    "phi3": False,
    "gpt2": True,
    "bert": True,
}

Read = Callable[[str, "int | None"], "torch.Tensor"]  # (tensor, row of its first axis or None)


@dataclass(frozen=True)
class Origin:
    """Where a parameter comes from.

    parts      (pattern, tensor in the files): for a parameter that is one tensor, just that one
    converter  how transformers combines several, or converts a part of one; None: used as it is
    """

    parts: tuple[tuple[str, str], ...]
    converter: Any = None


@dataclass(frozen=True)
class Place:
    """A linear layer's weight: a parameter, or the matrix of one expert in it.

    turned  stored as [in, out]
    """

    parameter: str
    expert: int | None = None
    turned: bool = False


class Translation:
    """The layers of one model, and where in its files their weights are.

    model    without weights, its experts separated
    origins  parameter → where it comes from, for every parameter that the files have
    tied     parameter → the one that it is tied to
    """

    def __init__(self, model: Any, tensors: Iterable[str]) -> None:
        from qviz.models.experts import separate_experts  # brings torch, as the model has already

        parameters = model.state_dict()
        self.origins = origins_of(model, tensors, parameters)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        self.tied: Mapping[str, str] = dict(model.all_tied_weights_keys)
        self.whole = model  # converters ask it for shapes
        self.model = copy.deepcopy(model)
        separate_experts(self.model)

    def place(self, layer: str) -> Place:
        """Where the weight of a linear layer is."""
        from qviz.models.experts import ExpertStack
        from qviz.models.layers import is_conv1d

        stack_name, _, number = layer.rpartition(".")
        stack = self.model.get_submodule(stack_name)
        if isinstance(stack, ExpertStack):
            return Place(stack_name, int(number), stack.turned)
        return Place(f"{layer}.weight", turned=is_conv1d(self.model.get_submodule(layer)))

    def tensors(self, parameter: str) -> list[str]:
        """The tensors of the files that a parameter is made from."""
        return [tensor for _, tensor in self.origins[parameter].parts]

    def read(self, place: Place, read: Read) -> torch.Tensor:
        """The weight [out, in]."""
        origin = self.origins[place.parameter]
        if origin.converter is None:
            weight = read(origin.parts[0][1], None if self._flat(place) else place.expert)
        else:
            weight = _converted(origin, place, read, self.whole)
        if self._flat(place):  # all experts' rows one below the other
            stack = self.model.get_submodule(place.parameter)
            weight = weight.view(len(stack), -1, weight.shape[-1])[place.expert]
        return weight.T.contiguous() if place.turned else weight.contiguous()

    def _flat(self, place: Place) -> bool:
        return place.expert is not None and len(self.shapes[place.parameter]) == 2


def translation_of(checkpoint: Checkpoint) -> Translation | None:
    """How this checkpoint's names are translated; None where its files have the model's names.

    None too if there is no config.json, or if transformers does not know its model: then the names
    in the files are all there is.
    """
    if checkpoint.origin in ("bundled", "minilm", "file"):
        return None
    kind = checkpoint.config.get("model_type")
    if kind is None or kind in PLAIN:
        return None
    return _translation(checkpoint.identity(), checkpoint)


@lru_cache(maxsize=1)  # of the checkpoint that was asked for last
def _translation(identity: str, checkpoint: Checkpoint) -> Translation | None:
    """`identity` is the checkpoint's: a part of the key, since files change."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if checkpoint.config["model_type"] not in CONFIG_MAPPING:
        return None
    model = empty_model(checkpoint, architecture_of(checkpoint))
    return Translation(model, checkpoint.headers())


def origins_of(
    model: Any, tensors: Iterable[str], parameters: Mapping[str, Any]
) -> dict[str, Origin]:
    """Parameter → its origin among these tensors, by the rules with which transformers loads this
    model.

    In the order in which transformers reads (experts 2 before 10): lists are merged in it.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = {
        pattern: rule
        for rule in rules
        if isinstance(rule, WeightConverter)
        for pattern in rule.source_patterns
    }
    several = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = model.base_model_prefix
    parts: dict[str, list[tuple[str, str]]] = {}
    for tensor in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(tensor, renamings, several, prefix, parameters)
        if name not in parameters and tensor in parameters:
            name, pattern = rename_source_key(tensor, [], [], prefix, parameters)
        for target in _targets(name, converters.get(pattern or "")):
            if target in parameters:
                parts.setdefault(target, []).append((pattern or tensor, tensor))
    return {
        name: Origin(tuple(found), copy.deepcopy(converters.get(found[0][0])))
        for name, found in parts.items()
    }


def _targets(name: str, converter: Any) -> list[str]:
    """Every parameter that a tensor becomes part of; a fused tensor goes into several."""
    if converter is None or len(converter.target_patterns) == 1:
        return [name]
    first, *others = converter.target_patterns
    return [name, *(name.replace(first, other) for other in others)]


def _converted(origin: Origin, place: Place, read: Read, model: Any) -> torch.Tensor:
    """What transformers' converter makes of the tensors; for one expert, of its own alone."""
    own = place.expert if _one_by_one(origin.converter) else None
    if own is not None:
        _require_all_experts(origin, place.parameter, len(model.get_parameter(place.parameter)))
    converter = copy.deepcopy(origin.converter)
    seen: dict[str, int] = {}
    for pattern, tensor in origin.parts:
        number = seen[pattern] = seen.get(pattern, -1) + 1
        if own is None or own == number:
            weight = read(tensor, None)
            converter.add_tensor(place.parameter, tensor, pattern, lambda weight=weight: weight)
    made = converter.convert(place.parameter, model=model, config=model.config)
    found = made[place.parameter]
    whole: torch.Tensor = found[0] if isinstance(found, list) else found
    if place.expert is None:
        return whole
    return whole[0 if own is not None else place.expert]


def _require_all_experts(origin: Origin, parameter: str, experts: int) -> None:
    """ValueError where an expert's tensors are missing: those after it would take its place."""
    for pattern, count in Counter(pattern for pattern, _ in origin.parts).items():
        if count != experts:
            raise ValueError(
                f"the files hold {count} tensors {pattern} for the {experts} experts of "
                f"{parameter}. The checkpoint is incomplete, or its config.json belongs to "
                "another model"
            )


def _one_by_one(converter: Any) -> bool:
    """Whether a converter stacks experts along the first axis and then leaves that axis alone, so
    that each can be made from its own tensors."""
    first, *others = converter.operations
    if type(first).__name__ != "MergeModulelist" or first.dim != 0:
        return False
    return all(type(op).__name__ == "Concatenate" and op.dim != 0 for op in others)
