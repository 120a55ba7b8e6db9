"""Quantize the linear layers of a model, on a copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qviz.core.calibration import Calibration
from qviz.core.check import unknown
from qviz.core.linear import QuantizedLinear
from qviz.core.tensor import QuantizedTensor
from qviz.core.transform import InputScale
from qviz.methods import registry
from qviz.methods.smoothquant import SmoothLinear
from qviz.models.capture import NEVER_RAN, Progress
from qviz.models.checkpoint import HEAD, plain_name
from qviz.models.fold import Feed, feeds, fold_in_place, transforms
from qviz.models.layers import (
    LinearLayer,
    LoadedModel,
    Wrapped,
    choose_layers,
    copy_of,
    linear_layers,
    loaded,
    skipped_layers,
)
from qviz.models.resume import Checkpoint, describe, weights_fingerprint
from qviz.models.rotate import put_in_place
from qviz.models.sequential import Sequential, follow, noted, run_key

Quantized = QuantizedTensor | QuantizedLinear


@dataclass(frozen=True, repr=False)
class QuantizedModel:
    """A model whose linear layers went through a quantizer.

    model    a copy that computes with the dequantized weights (its parameters keep their dtype),
             or with the products of the QuantizedLinears
    tensors  layer → QuantizedTensor or QuantizedLinear: codes, scales and what they cost; in the
             coordinates of the model given, whatever was folded into the copy
    skipped  layer → why it was left as it was
    method   the method's name
    notes    what was read from a checkpoint, and which of it was damaged and recomputed; experts
             that few or no tokens reached, and what was done instead
    """

    model: LoadedModel
    tensors: Mapping[str, Quantized]
    skipped: Mapping[str, str]
    method: str
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all quantized weights, with scales and everything else included."""
        bits = sum(q.ledger.total_bits for q in self.tensors.values())
        return bits / sum(q.ledger.weights for q in self.tensors.values())

    @property
    def share(self) -> float:
        """The share of the model's parameters that was quantized."""
        return sum(q.ledger.weights for q in self.tensors.values()) / self._parameters

    @property
    def _parameters(self) -> int:
        return sum(p.numel() for p in self.model.model.parameters())  # tied ones once

    def __repr__(self) -> str:
        """Method, true bits and share; bytes before and after; what was left unquantized, and
        why."""
        before, after = 2 * self._parameters, self.nbytes()
        reasons = Counter(self.skipped.values())
        lines = [
            f"{self.model.name}, quantized with {self.method}: {self.bits_per_weight:.3f} bits per "
            f"weight in {len(self.tensors)} layers, {self.share:.1%} of all parameters",
            f"{_megabytes(before)} at 16 bits, {_megabytes(after)} with the rest at 16 bits "
            f"({before / after:.2f}× smaller)",
            *(f"left unquantized: {count} × {reason}" for reason, count in reasons.most_common()),
            *self.notes,
        ]
        return "\n".join(lines)

    def nbytes(self, other_bits: int = 16) -> int:
        """Bytes of the whole model with every other parameter in `other_bits` bits."""
        layers = linear_layers(self.model)
        quantized = {id(layers[name].module.weight) for name in self.tensors}
        # parameters() gives tied parameters once
        others = sum(p.numel() for p in self.model.model.parameters() if id(p) not in quantized)
        return sum(q.ledger.nbytes for q in self.tensors.values()) + others * other_bits // 8


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def quantize_model(
    model: LoadedModel | Wrapped,
    method: str = "affine",
    *,
    layers: str | Sequence[str] | None = None,
    calibration: Mapping[str, Calibration] | Sequential | None = None,
    per_layer: Mapping[str, Mapping[str, Any]] | None = None,
    fold: bool = True,
    on_error: str = "raise",
    progress: Progress | None = None,
    **options: Any,
) -> QuantizedModel:
    """Quantize a model's linear layers with one method; the model given stays as it is.

    layers=None means all linear layers except an output head, which usually stays at 16 bits; name
    it to have it quantized. Names may be patterns, "*.mlp.*". `calibration`, for methods that
    need it, is the result of qviz.capture for this model with these weights (another model's is
    refused), or qviz.Sequential(texts), with which each layer is calibrated on the outputs of the
    layers quantized before it. An expert of a mixture that no token reached is quantized as if its
    inputs had equal size and were uncorrelated, which for GPTQ is rounding to nearest; `.notes`
    says so, and
    which experts saw fewer tokens than they have inputs. `options` are the method's own, and
    `per_layer` has options of single layers, by name, which take precedence: a GGUF file's mix of
    types, or more bits where they matter.

    A method that scales inputs (AWQ, SmoothQuant) finds factors for all linears of one input
    together, and the layer before is divided by them; linears whose inputs no layer can absorb get
    no factors. fold=False gives each linear factors of its own, stored beside its codes, and
    its inputs are divided while the model runs.

    A layer that does not fit the options (a group size that does not divide its inputs) is an
    error; on_error="skip" leaves it as it is and says so in `.skipped`, unless no layer fits.

    >>> quantized = qviz.quantize_model(qviz.load_model(), bits=4, group_size=32)
    >>> quantized.bits_per_weight, qviz.perplexity(quantized.model, max_tokens=1024).value
    """
    model = loaded(model)
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error must be "raise" or "skip", got {on_error!r}')
    kind = registry.get(method).kind
    if kind not in ("weight", "linear"):
        raise ValueError(
            f"{method} is a {kind} method; quantize_model takes methods that quantize the weight "
            "of a linear layer"
        )
    registry.require_options(method, options)
    if "transform" in options:
        raise TypeError("transform is one layer's; quantize_model finds each layer's own")
    chosen, skipped = layers_to_quantize(model, layers)
    single = _single_options(method, per_layer or {}, chosen, fold)
    if not chosen:
        raise ValueError(f"{model.name} has no linear layers to quantize")
    if isinstance(calibration, Sequential):
        recipe = _Recipe(method, options, single, fold, on_error)
        return _sequential(model, recipe, list(chosen), skipped, calibration, progress)
    given, shared = _by_layer(calibration), registry.get(method).shared
    given = _for_this_model(model, given, chosen) if registry.get(method).needs else {}
    scales = _factors(model, shared, chosen, given, on_error, options) if shared and fold else {}
    recipe = _Recipe(method, options, single, fold, on_error, transforms(model, scales))
    tensors: dict[str, Quantized] = {}
    failed: dict[str, str] = {}
    seen = _seen_stacks(model, given)
    for done, (name, layer) in enumerate(chosen.items()):
        asked = (
            layer.stack in seen or name in given
        )  # otherwise nothing has checked whether tokens reach it
        one, instead = _calibrated(layer, given.get(name)) if asked else (None, {})
        if given and one is None:
            made: Quantized | str = recipe.left(name, NOT_GIVEN)
        else:
            made = recipe.make(name, layer, one)
        if isinstance(made, str):
            failed[name] = made
        else:
            facts = {"order": "one shot", **instead}
            tensors[name] = made if one is None else noted(made, one, **facts)
        if progress is not None:
            progress(done + 1, len(chosen))
    _require_some(tensors, failed)
    twin = with_weights(model, tensors, scales)
    return QuantizedModel(twin, tensors, skipped | failed, method, _notes(model, tensors))


NOT_GIVEN = (
    "the calibration has no entry for it: it was captured for other layers, or the model never "
    "calls it as a layer"
)


@dataclass(frozen=True)
class _Recipe:
    """How each layer is quantized; `changed` is what folding did to the weights of some."""

    method: str
    options: Mapping[str, Any]
    single: Mapping[str, Mapping[str, Any]]
    fold: bool
    on_error: str
    changed: Mapping[str, InputScale] = field(default_factory=dict)

    def make(
        self, name: str, layer: LinearLayer, calibration: Calibration | None
    ) -> Quantized | str:
        """The layer quantized, or why it could not be, unless that is an error."""
        own = {**self.options, **self.single.get(name, {})}
        shared = registry.get(self.method).shared
        if shared and self.fold:
            ones = torch.ones(layer.in_features, device=layer.weight.device)
            own["transform"] = self.changed.get(name, InputScale(ones))
        try:
            made: Quantized = registry.quantize(layer.weight, self.method, calibration, **own)
            return made if self.fold or not shared else made.unfolded()
        except ValueError as error:
            return self.left(name, str(error), error)

    def left(self, name: str, reason: str, error: Exception | None = None) -> str:
        """The reason why a layer is left as it is, unless that is an error."""
        if self.on_error == "raise":
            advice = "" if error else '. Name the layers to quantize, or use on_error="skip"'
            raise ValueError(f"{name}: {reason}{advice}") from error
        return reason

    def key(self) -> dict[str, Any]:
        """Everything in it that determines results, defaults included, as JSON holds it."""
        defaults = registry.get(self.method).defaults
        return {
            "method": self.method,
            "options": describe({**defaults, **self.options}),
            "per_layer": describe(self.single),
            "fold": self.fold,
            "on_error": self.on_error,
        }


def _require_some(tensors: Mapping[str, Quantized], failed: Mapping[str, str]) -> None:
    """ValueError with the first reason where no layer could be quantized."""
    if not tensors:
        name, reason = next(iter(failed.items()))
        raise ValueError(f"{name}: {reason}")


def _sequential(
    model: LoadedModel,
    recipe: _Recipe,
    layers: Sequence[str],
    skipped: Mapping[str, str],
    how: Sequential,
    progress: Progress | None,
) -> QuantizedModel:
    """Calibrate each layer on the outputs of the layers quantized before it."""
    method = registry.get(recipe.method)
    if not method.needs:
        raise ValueError(f"{method.name} only looks at weights: omit calibration")
    if method.shared and recipe.fold:
        raise ValueError(
            f"{method.name} finds factors for all linears of one input together and divides the "
            "layer before by them, all on the unquantized model as its reference does; a layer "
            "that is already quantized cannot absorb them. Use fold=False, which gives each "
            "linear factors of its own, or calibration=qviz.capture(model, texts)"
        )
    checkpoint = None
    if how.checkpoint is not None:
        key = {**recipe.key(), **run_key(model, layers, how)}
        classes = (SmoothLinear,)
        checkpoint = Checkpoint(how.checkpoint, key, layers, classes, model.device)

    def make(name: str, layer: LinearLayer, found: Calibration | None) -> Quantized | str:
        one, instead = _calibrated(layer, found)
        if one is None:
            return recipe.left(name, NEVER_RAN)
        made = recipe.make(name, layer, one)
        return noted(made, one, **instead) if instead and not isinstance(made, str) else made

    twin = copy_of(model)
    found = follow(twin, layers, how, make, _put, checkpoint=checkpoint, progress=progress)
    _require_some(found.tensors, found.skipped)
    tensors = {name: found.tensors[name] for name in layers if name in found.tensors}
    notes = (*found.notes, *_notes(model, tensors))
    return QuantizedModel(twin, tensors, {**skipped, **found.skipped}, recipe.method, notes)


def _single_options(
    method: str,
    per_layer: Mapping[str, Mapping[str, Any]],
    chosen: Mapping[str, LinearLayer],
    fold: bool,
) -> Mapping[str, Mapping[str, Any]]:
    """`per_layer`, once its layers and options are known to exist."""
    if per_layer and registry.get(method).shared and fold:
        raise ValueError(
            f"{method} finds factors for several layers together, which per_layer would "
            "separate: pass fold=False, or omit per_layer"
        )
    single = {plain_name(name): options for name, options in per_layer.items()}
    for name, options in single.items():
        if name not in chosen:
            raise ValueError(unknown("layer in per_layer", name, chosen))
        registry.require_options(method, options)
    return single


def _by_layer(calibration: object) -> Mapping[str, Calibration]:
    """What qviz.capture returned; TypeError for anything else, such as one layer's entry of it."""
    if calibration is None or isinstance(calibration, Mapping):
        return calibration or {}
    raise TypeError(
        f"calibration must be layer → Calibration, all that qviz.capture(model, texts) returned, "
        f"or qviz.Sequential(texts); got {type(calibration).__name__}"
    )


def _for_this_model(
    model: LoadedModel, calibration: Mapping[str, Calibration], chosen: Mapping[str, LinearLayer]
) -> Mapping[str, Calibration]:
    """The calibrations, once they are known to be of this model's weights.

    ValueError for those of another model, or of this one with other weights (a quantized or a
    rotated copy): names and shapes fit, and every result would be wrong.
    """
    known = {name: one for name, one in calibration.items() if name in chosen and one.weights}
    if not known:
        return calibration
    ours = weights_fingerprint(model)
    for name, one in known.items():
        if one.weights != ours:
            raise ValueError(
                f"the calibration of {name} was captured from other weights than those of "
                f"{model.name}: they belong to another model, or to this one in another dtype or "
                "before a change. Capture it again: qviz.capture(model, texts)"
            )
    return calibration


def _seen_stacks(model: LoadedModel, given: Mapping[str, Calibration]) -> set[str]:
    """The parameters of which at least one expert has a calibration: tokens reach some of them
    whenever the model runs, so the others were left out by the router."""
    layers = linear_layers(model)
    return {layers[name].stack or "" for name in given if name in layers} - {""}


WHITE = "quantized as if its inputs had equal size and were uncorrelated"


def _white(layer: LinearLayer) -> Calibration:
    """Statistics of inputs that favour no channel: each method then behaves as without data."""
    n, device = layer.in_features, layer.weight.device
    ones, unit = torch.ones(n, device=device), torch.eye(n, device=device)
    return Calibration(unit, unit * 2, ones, ones, tokens=n, layer=layer.name, source=WHITE)


def _calibrated(
    layer: LinearLayer, found: Calibration | None
) -> tuple[Calibration | None, dict[str, Any]]:
    """The data to quantize a layer with, and a note for its result: an expert that no token reached
    gets none."""
    if found is not None or layer.stack is None:
        return found, {}
    return _white(layer), {"tokens": 0, "instead": WHITE}


def _notes(model: LoadedModel, tensors: Mapping[str, Quantized]) -> tuple[str, ...]:
    """Which experts saw no tokens, or fewer than they have inputs."""
    layers, none, few = linear_layers(model), list[str](), dict[str, int]()
    for name, made in tensors.items():
        tensor = made.weight if isinstance(made, QuantizedLinear) else made
        about = tensor.info.get("calibration")
        if about is None or layers[name].stack is None:
            continue
        if "instead" in about:
            none.append(name)
        elif about["tokens"] < layers[name].in_features:
            few[name] = about["tokens"]
    notes = []
    if none:
        notes.append(
            f"expert matrices that saw no token: {len(none)} ({_first(none)}), each {WHITE}"
        )
    if few:
        notes.append(
            f"expert matrices that saw fewer tokens than they have inputs: {len(few)} "
            f"({_first([*few])}), the fewest {min(few.values())}; their calibration is rough"
        )
    return tuple(notes)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _factors(
    model: LoadedModel,
    shared: registry.Shared,
    chosen: Mapping[str, LinearLayer],
    calibration: Mapping[str, Calibration],
    on_error: str,
    options: Mapping[str, Any],
) -> dict[Feed, torch.Tensor]:
    """The factors of each input that can be folded and feeds a layer that is to be quantized.

    All are found on the model as it is, before any is folded, as AWQ's reference does.
    """
    found = {}
    for feed in feeds(model, shared.into):
        names = [name for name in feed.linears if name in chosen and name in calibration]
        if not names:
            continue
        weights = [chosen[name].weight for name in names]
        try:
            found[feed] = shared.factors(weights, calibration[names[0]], **options)
        except ValueError as error:
            # Where layers may be skipped, each of these gives its own reason later.
            if on_error == "raise":
                raise ValueError(f"{names[0]}: {error}") from error
    return found


class Product(nn.Linear):
    """A linear layer that multiplies as its QuantizedLinear does."""

    def __init__(self, quantized: QuantizedLinear, like: LinearLayer) -> None:
        weight = like.weight
        bias = like.module.bias
        super().__init__(like.in_features, like.out_features, bias is not None, device="meta")
        self.weight = nn.Parameter(quantized.dequantize().to(weight), requires_grad=False)
        self.bias = bias  # type: ignore[assignment]
        self.quantized = quantized

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:  # an expert to which no token is routed
            return x.new_empty(*x.shape[:-1], self.out_features)
        y = self.quantized(x).to(x.dtype)
        return y if self.bias is None else y + self.bias


def with_weights(
    model: LoadedModel,
    tensors: Mapping[str, Quantized],
    scales: Mapping[Feed, torch.Tensor] | None = None,
) -> LoadedModel:
    """A copy of the model that computes with what was quantized; tied weights stay tied.

    `scales` are folded into it, and the layers hold the weights as they are stored.
    """
    twin = copy_of(model)
    if scales:
        fold_in_place(twin, scales, model)
    layers = linear_layers(twin)
    for name, made in tensors.items():
        _put(twin, layers[name], made.folded() if scales else made)
    return twin


def _put(model: LoadedModel, layer: LinearLayer, made: Quantized) -> None:
    """Let a layer of the model compute with its quantized form, in place."""
    if isinstance(made, QuantizedLinear):
        for place in layer.modules:
            put_in_place(model.model, place, Product(made, layer))
    else:
        layer.set_weight(made.dequantize())


def _head(model: LoadedModel) -> nn.Module | None:
    """The module that the model itself calls its output head (RWKV's has a name of its own)."""
    try:
        head: nn.Module | None = model.model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return head


def layers_to_quantize(
    model: LoadedModel, layers: str | Sequence[str] | None
) -> tuple[dict[str, LinearLayer], dict[str, str]]:
    """The layers to quantize (None: all but an output head), and why the others are left."""
    chosen, skipped = choose_layers(model, layers), skipped_layers(model)
    if layers is None:
        heads = {n for n, one in chosen.items() if HEAD.search(n) or one.module is _head(model)}
        reason = "the output head stays at 16 bits unless it is named in layers"
        chosen = {name: layer for name, layer in chosen.items() if name not in heads}
        return chosen, skipped | dict.fromkeys(heads, reason)
    left = [name for name in linear_layers(model) if name not in chosen]
    return chosen, skipped | dict.fromkeys(left, "not among the requested layers")
