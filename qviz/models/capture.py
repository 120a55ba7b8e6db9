"""Calibration data: run a model on text and record what enters its linear layers.

Forward hooks stream every layer's input rows X into the statistics that methods need (the Hessian
2·XᵀX / tokens, channel maxima and means, a sample of rows), so memory does not grow with the
text. Layers that receive the same tensor (query, key and value; gate and up) share the work and
the result. `load_calibration` keeps results on disk: a lesson then needs neither the model nor
transformers.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qviz.core.calibration import Calibration
from qviz.core.check import require_int
from qviz.core.memory import require_memory
from qviz.models import cache
from qviz.models.checkpoint import find_checkpoint, list_layers, plain_name
from qviz.models.layers import LinearLayer, LoadedModel, choose_layers, linear_layers, loaded
from qviz.models.load import load_model
from qviz.models.reading import WindowBatch, as_in_use, equal_batches, run, token_windows
from qviz.models.resume import weights_fingerprint
from qviz.models.statistics import Collector
from qviz.models.texts import calibration_texts, evaluation_texts, find_text

Progress = Callable[[int, int], None]  # called with (done, total)

MAX_TOKENS, KEEP_INPUTS = 4096, 1024
BUNDLED_TOKENS = 16384  # of the bundled model, which is small: 1024 channels want that many
FIRST_TEXT = "python"  # the text to capture on if none is named
STORE_ALL_BELOW = 2**30  # bytes of Hessians up to which a run keeps every layer, not only one


def capture(
    model: LoadedModel,
    texts: str | Sequence[str],
    layers: str | Sequence[str] | None = None,
    *,
    max_tokens: int = MAX_TOKENS,
    sequence_length: int | None = None,
    keep_inputs: int = KEEP_INPUTS,
    batch_size: int = 4,
    hessian_dtype: torch.dtype = torch.float32,
    source: str = "",
    progress: Progress | None = None,
    seed: int = 0,
) -> dict[str, Calibration]:
    """Layer name → Calibration, from one pass of the model over the texts.

    The texts are cut into windows of `sequence_length` tokens (None: 512, or what the model can
    take), one window from each text in turn, until there are `max_tokens`. Every token counts
    once, special tokens included; windows of different length never run together, so there is no
    padding. `keep_inputs` rows are drawn from all of them at random by `seed`, the same tokens for
    every layer, in the order of the text (all rows if there are fewer). Sums are kept in
    `hessian_dtype`, float32 or float64; results are on the model's device. layers=None takes all
    that the model runs; names may be patterns, "*.mlp.*". An expert of a mixture sees the tokens
    routed to it; an expert without tokens has no entry. Each Calibration records which weights it
    was captured from.

    Raises ValueError for unknown layers, for empty texts, for inputs that are NaN or infinite and
    for whatever the model itself fails on.

    >>> model = qviz.load_model()
    >>> calibration = qviz.capture(model, "def f(x):\\n    return x", max_tokens=64)
    >>> calibration["model.layers.0.mlp.down_proj"].hessian.shape
    torch.Size([1024, 1024])
    """
    require_collecting(hessian_dtype, keep_inputs, batch_size)
    model = loaded(model)
    wanted = choose_layers(model, layers)
    windows = token_windows(model, texts, max_tokens, sequence_length)
    # At least one Hessian for each width within each module; q, k and v share one, experts do not.
    widths = {
        (name if one.stack else name.rpartition(".")[0], one.in_features)
        for name, one in wanted.items()
    }
    needed = sum(width**2 for _, width in widths) * hessian_dtype.itemsize
    require_memory(needed, f"Hessians for {len(wanted)} layers", "Name fewer layers at a time")
    with as_in_use(model):
        results = collect(
            wanted,
            equal_batches(windows, batch_size, model.device),
            runner_of(model, wanted),
            keep_inputs=keep_inputs,
            hessian_dtype=hessian_dtype,
            source=source,
            weights=weights_fingerprint(model),
            seed=seed,
            progress=progress,
        )
    silent = [n for n, one in wanted.items() if n not in results and one.stack is None]
    if silent and layers is not None:
        raise ValueError(f"{', '.join(silent)}: {NEVER_RAN}; omit it")
    if not results:
        raise ValueError(f"no token of these texts reached {', '.join(wanted)}; use longer texts")
    return results


NEVER_RAN = (
    "the model never calls it as a layer on text (it may use the weight in another way), so there "
    "are no inputs to capture"
)


def require_collecting(hessian_dtype: torch.dtype, keep_inputs: int, batch_size: int) -> None:
    """Raise TypeError or ValueError for options with which no statistics can be collected."""
    if hessian_dtype not in (torch.float32, torch.float64):
        raise TypeError(f"hessian_dtype must be torch.float32 or float64, got {hessian_dtype}")
    require_int(keep_inputs, "keep_inputs", 1, 1_000_000)
    require_int(batch_size, "batch_size", 1, 4096)


def runner_of(
    model: LoadedModel, layers: Mapping[str, LinearLayer]
) -> Callable[[WindowBatch], None]:
    """A function that runs the model on a batch, as far as these layers need."""
    part = _smallest_part(model, layers)

    def run_on(batch: WindowBatch) -> None:
        run(model, batch.ids, part)

    return run_on


def collect(
    layers: Mapping[str, LinearLayer],
    batches: Sequence[WindowBatch],
    run: Callable[[WindowBatch], None],
    *,
    keep_inputs: int,
    hessian_dtype: torch.dtype,
    source: str,
    weights: str,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Calibration]:
    """Layer → statistics of its inputs while `run` is called with each batch.

    Layers that never ran are not in it, nor experts to which no token was routed.
    """
    collector = Collector(hessian_dtype, keep_inputs, seed)
    total = batches[-1].first + len(batches[-1].ids)
    with input_hooks(layers, collector.see), torch.no_grad():
        for batch in batches:
            collector.begin(batch)
            run(batch)
            collector.flush()
            if progress is not None:
                progress(batch.first + len(batch.ids), total)
    return collector.results(layers, source, weights)


@contextmanager
def input_hooks(
    layers: Mapping[str, LinearLayer], see: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """While open, see(name, x) is called with the input of each layer that this thread runs.

    The hooks are removed on the way out, whatever happens inside.
    """
    owner = threading.get_ident()

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Another thread may be using the same model for something else.
            if threading.get_ident() == owner:
                see(name, args[0] if args else kwargs["input"])

        return hook

    handles = []
    try:
        for name, layer in layers.items():
            for module in layer.modules.values():
                handle = module.register_forward_pre_hook(hook_for(name), with_kwargs=True)
                handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _smallest_part(model: LoadedModel, layers: Mapping[str, LinearLayer]) -> nn.Module:
    """The base model if it has all the layers: the output head may cost more than the rest."""
    base = getattr(model.model, "base_model", model.model)
    inside = set(map(id, base.modules()))
    return base if all(id(layer.module) in inside for layer in layers.values()) else model.model


_one_at_a_time = threading.Lock()  # two callbacks that miss together should run the model once


def load_calibration(
    name_or_path: str | Path | None,
    layer: str,
    *,
    text: str = FIRST_TEXT,
    max_tokens: int | None = None,
    sequence_length: int | None = None,
    keep_inputs: int = KEEP_INPUTS,
    progress: Progress | None = None,
) -> Calibration:
    """The Calibration of one layer, from the cache on disk if it has been computed before.

    `text` is the name of a text that comes with qviz, or a text of your own (anything with a
    space or a line break in it), of which at most `max_tokens` are read (None: 16384 for the
    bundled model, 4096 for others). The first call for a model and text runs the model once and
    stores all its layers (only this one where the Hessians together would exceed 1 GiB); later
    calls read one layer in milliseconds, without the model and without transformers. The cache is
    the user's cache directory, or $QVIZ_CACHE. A damaged file is computed again, and the logger
    "qviz" reports it.

    >>> qviz.load_calibration(None, "model.layers.0.mlp.down_proj").inputs.shape
    torch.Size([1024, 1024])
    """
    source, content = find_text(text)
    if max_tokens is None:
        max_tokens = BUNDLED_TOKENS if name_or_path is None else MAX_TOKENS
    max_tokens = require_int(max_tokens, "max_tokens", 1, 10**9)
    keep_inputs = require_int(keep_inputs, "keep_inputs", 1, 1_000_000)
    if sequence_length is not None:
        sequence_length = require_int(sequence_length, "sequence_length", 4, 10**9)
    key = {
        "model": find_checkpoint(name_or_path).identity(),
        "text": hashlib.sha256(content.encode()).hexdigest(),
        "max_tokens": max_tokens,
        "sequence_length": sequence_length,
        "keep_inputs": keep_inputs,
    }
    layer = plain_name(layer)
    found = _look_up(key, layer)
    if found is not None:
        return found
    with _one_at_a_time:
        found = _look_up(key, layer)  # another thread may have been quicker
        if found is not None:
            return found
        model = load_model(name_or_path)
        chosen = choose_layers(model, [layer])
        everything = linear_layers(model)
        hessians = sum(4 * one.in_features**2 for one in everything.values())
        scope = None if hessians <= STORE_ALL_BELOW else list(chosen)
        captured = capture(
            model,
            content,
            scope,
            max_tokens=max_tokens,
            sequence_length=sequence_length,
            keep_inputs=keep_inputs,
            source=source,
            progress=progress,
        )
        silent = {n: _silence(one) for n, one in everything.items() if n not in captured}
        cache.write(key | {"layers": "all" if scope is None else [layer]}, captured, silent)
    (name,) = chosen
    if name not in captured:
        raise ValueError(silent[name])
    return captured[name]


def _silence(layer: LinearLayer) -> str:
    """Why a layer has no calibration although the model ran."""
    why = "no token of this text was routed to this expert" if layer.stack else NEVER_RAN
    return f"{layer.name}: {why}; choose another layer"


def _look_up(key: dict[str, Any], layer: str) -> Calibration | None:
    for scope in ("all", [layer]):
        stored = cache.read(key | {"layers": scope}, layer)
        if stored is not None:
            return stored
    return None


def warm_cache(progress: Progress | None = None) -> Iterator[str]:
    """Fill the cache for the lessons, yielding a line of text when each stage is ready.

    First the data that lessons open on: the bundled model on the text they begin with and the one
    they measure on. Then the bundled model on the other texts and, if installed, MiniLM on the
    first two only, since its files are large. Takes seconds the first
    time and milliseconds afterwards. For the start of a server.
    """
    first, rest = [FIRST_TEXT, *evaluation_texts()], [*calibration_texts()]
    rest.remove(FIRST_TEXT)
    stages: list[tuple[str | None, str, list[str]]] = [
        (None, "the bundled model", first),
        (None, "the bundled model on other texts", rest),
    ]
    try:
        find_checkpoint("minilm")
        stages.append(("minilm", "minilm", first))
    except ImportError:
        pass  # optional: without it the lessons use the bundled model only
    for name, called, texts in stages:
        start = time.perf_counter()
        for text in texts:
            load_calibration(name, list_layers(name)[0].name, text=text, progress=progress)
        megabytes = sum(f.stat().st_size for f in cache.directory().glob("*.safetensors")) / 1e6
        yield (
            f"calibration data of {called} ready in "
            f"{time.perf_counter() - start:.1f} s ({cache.directory()}, {megabytes:.0f} MB)"
        )
