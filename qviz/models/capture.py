"""Calibration data: run a model on text and watch what enters its linear layers.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qviz.core.calibration import Calibration
from qviz.core.check import require_int
from qviz.core.memory import require_memory
from qviz.models import cache
from qviz.models.checkpoint import find_checkpoint, list_layers
from qviz.models.load import (
    LinearLayer,
    LoadedModel,
    choose_layers,
    linear_layers,
    load_model,
    require_loaded,
)
from qviz.models.statistics import Collector
from qviz.models.texts import calibration_texts, evaluation_texts, find_text

Progress = Callable[[int, int], None]  # called with (done, total)

MAX_TOKENS, SEQUENCE_LENGTH, KEEP_INPUTS = 4096, 512, 1024
BUNDLED_TOKENS = 16384  # of the bundled model, which is small: 1024 channels want that many
FIRST_TEXT = "python"  # what is captured where nobody names a text
STORE_ALL_BELOW = 2**30  # bytes of Hessians up to which a run keeps every layer, not only one


def capture(
    model: LoadedModel,
    texts: str | Sequence[str],
    layers: Sequence[str] | None = None,
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
    take), one window from each text in turn, until `max_tokens` are together. Every token counts
    once, special tokens included; padding never counts. `keep_inputs` rows are drawn from all of
    them at random by `seed`, the same tokens for every layer, in the order of the text (all rows
    if there are fewer). Sums are kept in `hessian_dtype`, float32 or float64; results are on the
    model's device. layers=None takes all that the model runs.

    Raises ValueError for unknown layers, for empty texts and for inputs that are NaN or infinite.

    >>> model = qviz.load_model()
    >>> calibration = qviz.capture(model, "def f(x):\\n    return x", max_tokens=64)
    >>> calibration["model.layers.0.mlp.down_proj"].hessian.shape
    torch.Size([1024, 1024])
    """
    require_collecting(hessian_dtype, keep_inputs, batch_size)
    require_loaded(model)
    wanted = choose_layers(model, layers)
    windows = token_windows(model, texts, max_tokens, sequence_length)
    # At least one Hessian for each width within each module; q, k and v share one.
    widths = {(name.rpartition(".")[0], one.in_features) for name, one in wanted.items()}
    needed = sum(width**2 for _, width in widths) * hessian_dtype.itemsize
    require_memory(needed, f"Hessians for {len(wanted)} layers", "Name fewer layers at a time")
    with as_in_use(model):
        results = collect(
            wanted,
            padded_batches(windows, batch_size, model.device),
            runner_of(model, wanted),
            keep_inputs=keep_inputs,
            hessian_dtype=hessian_dtype,
            source=source,
            seed=seed,
            progress=progress,
        )
    silent = [name for name in wanted if name not in results]
    if silent and layers is not None:
        raise ValueError(f"the model never ran {', '.join(silent)} on this text; leave it out")
    return results


def require_collecting(hessian_dtype: torch.dtype, keep_inputs: int, batch_size: int) -> None:
    """TypeError or ValueError for what no statistics can be collected with."""
    if hessian_dtype not in (torch.float32, torch.float64):
        raise TypeError(f"hessian_dtype must be torch.float32 or float64, got {hessian_dtype}")
    require_int(keep_inputs, "keep_inputs", 1, 1_000_000)
    require_int(batch_size, "batch_size", 1, 4096)


@contextmanager
def as_in_use(model: LoadedModel) -> Iterator[None]:
    """While open, the model runs as in evaluation: dropout would calibrate on noise."""
    training = [module for module in model.model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Some windows as a model reads them.

    ids    [batch, longest] token ids
    mask   [batch, longest] bool, True where there is a token
    first  the number of the first window
    """

    ids: torch.Tensor
    mask: torch.Tensor
    first: int


def padded_batches(
    windows: list[list[int]], batch_size: int, device: torch.device
) -> list[WindowBatch]:
    """All windows, `batch_size` at a time."""
    starts = range(0, len(windows), batch_size)
    return [WindowBatch(*_pad(windows[i : i + batch_size], device), i) for i in starts]


def runner_of(
    model: LoadedModel, layers: Mapping[str, LinearLayer]
) -> Callable[[WindowBatch], None]:
    """A function that runs the model on a batch, as much of it as has these layers."""
    runner = _smallest_runner(model, layers)
    options = {"use_cache": False} if model.kind == "decoder" else {}

    def run(batch: WindowBatch) -> None:
        runner(input_ids=batch.ids, attention_mask=batch.mask.long(), **options)

    return run


def collect(
    layers: Mapping[str, LinearLayer],
    batches: Sequence[WindowBatch],
    run: Callable[[WindowBatch], None],
    *,
    keep_inputs: int,
    hessian_dtype: torch.dtype,
    source: str,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Calibration]:
    """Layer → statistics of its inputs while `run` is called with each batch.

    Layers that never ran are not in it.
    """
    collector = Collector(hessian_dtype, keep_inputs, seed)
    total = batches[-1].first + len(batches[-1].ids)
    with input_hooks(layers, collector.see), torch.no_grad():
        for batch in batches:
            collector.begin(batch.mask, batch.first)
            run(batch)
            collector.flush()
            if progress is not None:
                progress(batch.first + len(batch.ids), total)
    return collector.results(layers, source)


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
            handle = layer.module.register_forward_pre_hook(hook_for(name), with_kwargs=True)
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_windows(
    model: LoadedModel,
    texts: str | Sequence[str],
    max_tokens: int | None,
    sequence_length: int | None,
) -> list[list[int]]:
    """The texts as windows of token ids, one from each text in turn, at most max_tokens together.

    Each window carries the special tokens that the model's tokenizer puts around a text.
    """
    length = window_length(model, sequence_length)
    if max_tokens is not None:
        require_int(max_tokens, "max_tokens", 1, 10**9)
    per_text = []
    for text in as_texts(texts):
        encoded = require_tokenizer(model)(
            text, truncation=True, max_length=length, return_overflowing_tokens=True
        )
        per_text.append([list(ids) for ids in encoded["input_ids"]])
    in_turn = [w for w in chain.from_iterable(zip_longest(*per_text)) if w]
    windows: list[list[int]] = []
    left = max_tokens if max_tokens is not None else sum(map(len, in_turn))
    for window in in_turn:
        if left > 0:
            windows.append(window[:left])
            left -= len(windows[-1])
    if not windows:
        raise ValueError("the texts hold no tokens; give at least one text that is not empty")
    return windows


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several as a list, each a non-empty string."""
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a string or several, got {type(texts).__name__}")
    listed = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"text {i} must be a string, got {type(text).__name__}")
    if not any(text.strip() for text in listed):
        raise ValueError("the texts are empty; give at least one text with some words")
    return [text for text in listed if text.strip()]


def window_length(model: LoadedModel, sequence_length: int | None) -> int:
    """The window in tokens: as asked, or 512, within what the model has positions for."""
    longest = model.max_length or 10**9
    if sequence_length is None:
        return min(SEQUENCE_LENGTH, longest)
    if longest < sequence_length:
        raise ValueError(
            f"sequence_length={sequence_length}, but {model.name} has positions for {longest} "
            f"tokens; take at most that"
        )
    return require_int(sequence_length, "sequence_length", 4, longest)


def require_tokenizer(model: LoadedModel) -> Any:
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name} has no tokenizer, so it cannot read text; put its tokenizer.json "
            f"beside the weights"
        )
    return model.tokenizer


def _smallest_runner(model: LoadedModel, layers: Mapping[str, LinearLayer]) -> nn.Module:
    """The base model if it has all the layers: the output head may cost more than the rest."""
    base = getattr(model.model, "base_model", model.model)
    inside = set(map(id, base.modules()))
    return base if all(id(layer.module) in inside for layer in layers.values()) else model.model


def _pad(windows: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (True where there is a token), both [batch, longest].

    Padding is on the right, where the tokens of a decoder do not see it; id 0 always exists.
    """
    longest = max(map(len, windows))
    ids = torch.zeros(len(windows), longest, dtype=torch.long)
    mask = torch.zeros(len(windows), longest, dtype=torch.bool)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(window)
        mask[row, : len(window)] = True
    return ids.to(device), mask.to(device)


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
    the user's cache directory, or $QVIZ_CACHE. A damaged file in it is computed again, which the
    logger "qviz" says.

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
    layer = layer.removesuffix(".weight")
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
        cache.write(key | {"layers": "all" if scope is None else [layer]}, captured)
    (name,) = chosen
    if name not in captured:
        raise ValueError(f"the model never ran {name} on this text; take another layer")
    return captured[name]


def _look_up(key: dict[str, Any], layer: str) -> Calibration | None:
    for scope in ("all", [layer]):
        stored = cache.read(key | {"layers": scope}, layer)
        if stored is not None:
            return stored
    return None


def warm_cache(progress: Progress | None = None) -> Iterator[str]:
    """Fill the cache for the lessons; a line of words whenever a stage of it is ready.

    First what lessons open on: the bundled model on the text they begin with and the one they
    measure on. Then the bundled model on the other texts, and MiniLM, where it is installed, on
    the first two alone, since its files are large. Takes seconds the first
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
