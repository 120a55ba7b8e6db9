"""How a model reads text: texts become windows of tokens, windows batches, and batches run.

This is the one place that decides how long a window may be, which tokens a model knows, what runs
together and with which options. Capture, sequential calibration, perplexity and generation all use
it. Windows of different length never share a batch, so there is no padding anywhere: inside layers,
padding could no longer be told from text.
"""

from __future__ import annotations

import inspect
import os
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from qviz.core.check import require_int
from qviz.models.architecture import KINDS
from qviz.models.layers import LoadedModel

SEQUENCE_LENGTH = 512


# ----------------------------------------------------------------------------------- text to tokens


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several as a list, each a non-empty string."""
    if isinstance(texts, Mapping):
        raise TypeError("texts must be a string or several; for a mapping, pass its values()")
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts must be a string or several, got {type(texts).__name__}")
    listed = [texts] if isinstance(texts, str) else list(texts)
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"text {i} must be a string, got {type(text).__name__}")
        require_encodable(text, f"text {i}")
    if not any(text.strip() for text in listed):
        raise ValueError("the texts are empty; give at least one text with some words")
    return [text for text in listed if text.strip()]


def require_encodable(text: str, what: str) -> None:
    """ValueError for halves of surrogate pairs, which a file read with errors="surrogateescape"
    leaves: no tokenizer reads them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds {text[error.start]!r} at character {error.start}, which is not a "
            "Unicode character by itself. Read its file again with the right encoding"
        ) from error


def require_tokenizer(model: LoadedModel) -> Any:
    """The tokenizer; ValueError for a model that does not read text, or has none."""
    if model.kind == "other":
        raise ValueError(
            f"{model.name} ({type(model.model).__name__}) does not read plain text, so it cannot "
            "be run on text; methods that only look at weights can quantize it"
        )
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name} has no tokenizer, so it cannot read text; put its tokenizer.json next "
            "to the weights"
        )
    return model.tokenizer


def window_length(model: LoadedModel, sequence_length: int | None) -> int:
    """The window in tokens: as asked, or 512, within what the model has positions for."""
    longest = model.max_length or 10**9
    if sequence_length is None:
        return min(SEQUENCE_LENGTH, longest)
    if longest < sequence_length:
        raise ValueError(
            f"sequence_length={sequence_length}, but {model.name} has positions for only "
            f"{longest} tokens; use at most that"
        )
    return require_int(sequence_length, "sequence_length", 4, longest)


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
    tokenizer = require_tokenizer(model)
    per_text = [_windows_of(tokenizer, text, length) for text in as_texts(texts)]
    in_turn = [w for w in chain.from_iterable(zip_longest(*per_text)) if w]
    windows: list[list[int]] = []
    left = max_tokens if max_tokens is not None else sum(map(len, in_turn))
    for window in in_turn:
        if left > 0:
            windows.append(window[:left])
            left -= len(windows[-1])
    if not windows:
        raise ValueError("the texts hold no tokens; give at least one text that is not empty")
    for window in windows:
        require_known_tokens(model, window)
    return windows


def _windows_of(tokenizer: Any, text: str, length: int) -> list[list[int]]:
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(
            text, truncation=True, max_length=length, return_overflowing_tokens=True
        )
        return [list(ids) for ids in encoded["input_ids"]]
    # A tokenizer in Python returns one window and the rest in a form of its own.
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    room = length - tokenizer.num_special_tokens_to_add()
    pieces = [ids[i : i + room] for i in range(0, len(ids), room)]
    return [list(tokenizer.build_inputs_with_special_tokens(piece)) for piece in pieces]


def require_known_tokens(model: LoadedModel, ids: Sequence[int]) -> None:
    """ValueError for a token that has no row in the model's table of embeddings."""
    table = _embeddings(model)
    rows = getattr(table, "num_embeddings", None)
    if isinstance(rows, int) and ids and max(ids) >= rows:
        token = max(ids)
        text = require_tokenizer(model).convert_ids_to_tokens(token)
        raise ValueError(
            f"the tokenizer of {model.name} gives token {token} ({text!r}), but the model has "
            f"embeddings for only {rows} tokens. Use the tokenizer that the model was trained "
            "with, or resize the embeddings (resize_token_embeddings of transformers) and save "
            "the model again"
        )


def _embeddings(model: LoadedModel) -> Any:
    """The module that looks tokens up, or None where the model does not name it."""
    try:
        return model.model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None


# ---------------------------------------------------------------------------------- tokens to model


@dataclass(frozen=True, eq=False)
class WindowBatch:
    """Some windows of one length, as a model reads them.

    ids     [batch, tokens] token ids
    first   the number of the first window
    number  of the batch itself
    """

    ids: torch.Tensor
    first: int
    number: int


def equal_batches(
    windows: Sequence[Sequence[int]], batch_size: int, device: torch.device
) -> list[WindowBatch]:
    """All windows in their order, up to `batch_size` neighbours of one length at a time."""
    batches: list[WindowBatch] = []
    start = 0
    for i in range(1, len(windows) + 1):
        full = i - start == batch_size
        if i == len(windows) or full or len(windows[i]) != len(windows[start]):
            ids = torch.tensor([list(w) for w in windows[start:i]], device=device)
            batches.append(WindowBatch(ids, start, len(batches)))
            start = i
    return batches


def run(
    model: LoadedModel, ids: torch.Tensor, module: nn.Module | None = None, **options: Any
) -> Any:
    """Run the model (or `module`, a part of it that reads tokens) on ids [batch, tokens].

    Without a cache, unless `options` ask for one. Whatever the model raises becomes a ValueError
    (a MemoryError where memory ran out) with the model, the layer and a remedy; errors of qviz
    and of a caller's hooks pass as they are.
    """
    module = model.model if module is None else module
    accepted = inspect.signature(module.forward).parameters
    if (
        "input_ids" not in accepted
    ):  # Bart's decoder is wrapped in a module that passes everything on
        accepted = inspect.signature(model.model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids}
    if "attention_mask" in accepted and "past_key_values" not in options:
        inputs["attention_mask"] = torch.ones_like(ids)
    passed_on = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    if "use_cache" in accepted or (passed_on and hasattr(model.config, "text_config")):
        inputs["use_cache"] = False  # a vision–language model hands it to its text part
    try:
        with torch.no_grad(), _no_padding_inside(model, ids), _as_it_was(model):
            return module(**{**inputs, **options})
    except Exception as error:
        translated = _in_words(model, ids, error)
        if translated is None:
            raise
        raise translated from error


@contextmanager
def _no_padding_inside(model: LoadedModel, ids: torch.Tensor) -> Iterator[None]:
    """Raise ValueError for a model that lengthens its input: padding would count as text."""
    owner, table = threading.get_ident(), _embeddings(model)
    if not isinstance(table, nn.Module):
        yield
        return

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen = args[0] if args and isinstance(args[0], torch.Tensor) else ids
        integers = not seen.is_floating_point() and seen.ndim == 2
        # XLNet looks up [tokens, batch], which may be wider and is no longer for that
        longer = seen.shape[-1] > ids.shape[1] and seen.numel() > ids.numel()
        if threading.get_ident() == owner and integers and longer:
            raise ValueError(
                f"{model.name} ({type(model.model).__name__}) pads {ids.shape[1]} tokens to "
                f"{seen.shape[1]} inside, and the padding would count as text. If it pads to a "
                f"multiple, use windows that need no padding: sequence_length={seen.shape[1]}, "
                "and max_tokens a multiple of it"
            )

    handle = table.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _as_it_was(model: LoadedModel) -> Iterator[None]:
    """Whatever runs inside leaves no trace and does not depend on earlier runs.

    BigBird draws from NumPy's global generator which tokens see which, Reformer from torch's; and
    after one short window BigBird never looks sparsely again.
    """
    state = np.random.get_state()
    np.random.seed(0)
    kinds = [(m, m.attention_type) for m in model.model.modules() if _chooses_attention(m)]
    try:
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(0)
            yield
    finally:
        np.random.set_state(state)
        for module, kind in kinds:
            module.set_attention_type(kind)  # type: ignore[operator]


def _chooses_attention(module: nn.Module) -> bool:
    return hasattr(module, "set_attention_type") and hasattr(module, "attention_type")


# Code that a model consists of lies beside torch and transformers, or in Python itself.
_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = (Path(torch.__file__).parents[1], Path(os.__file__).parent)


def _in_words(model: LoadedModel, ids: torch.Tensor, error: Exception) -> Exception | None:
    """The error to raise for what a forward pass raised; None to let it pass, since code of qviz
    or a caller's hook raised it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    if not all(map(_of_a_model, frames)):
        return None
    names = {id(module): name for name, module in model.model.named_modules()}
    owners = [id(frame.f_locals.get("self")) for frame in frames]
    inside = [names[owner] for owner in owners if owner in names]
    where = f" in {inside[-1]}" if inside and inside[-1] else ""
    shape = f"{ids.shape[0]} × {ids.shape[1]} tokens"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return MemoryError(
            f"{model.name} ran out of memory{where} on {shape}: use a smaller batch_size or "
            "sequence_length, or load it with dtype=torch.bfloat16"
        )
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return ValueError(
        f"{model.name} ({type(model.model).__name__}) fails{where} on {shape}: "
        f"{type(error).__name__}: {text}. Check that its configuration fits its weights, or use "
        "a shorter sequence_length"
    )


def _of_a_model(frame: FrameType) -> bool:
    """Whether this is code of a model or of the libraries that it runs on."""
    if frame.f_globals.get("__name__") == "__main__":
        return False  # a notebook's or a console's, whose files have names like "<stdin>"
    path = Path(frame.f_code.co_filename)
    if _PACKAGE in path.parents:
        return path.name == "experts.py"
    return str(path).startswith("<") or any(place in path.parents for place in _LIBRARIES)


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


# ------------------------------------------------------------------------------------ which tokens


def require_next_tokens(model: LoadedModel, what: str) -> None:
    """ValueError for a model that does not predict each token from those before it."""
    require_tokenizer(model)
    if model.kind != "decoder":
        raise ValueError(
            f"{what} needs a model that predicts the next token, and {model.name} "
            f"({type(model.model).__name__}) is {KINDS[model.kind]}. Use qviz.load_model() for "
            "the bundled decoder"
        )


def some_tokens(model: LoadedModel, count: int) -> torch.Tensor:
    """[1, count] ids of tokens that the model has, one after the other, to try it out."""
    rows = getattr(_embeddings(model), "num_embeddings", 2)
    return torch.arange(1, count + 1, device=model.device)[None] % rows


def sees_after(model: LoadedModel) -> bool:
    """Whether another last token changes predictions before it: then it is no decoder.

    False for a model that fails on these tokens; its first real run will report that.
    """
    ids = some_tokens(model, 8)
    other = ids.clone()
    other[0, -1] = 0
    try:
        with as_in_use(model):
            here, there = (run(model, x).logits[:, :-1].float() for x in (ids, other))
    except ValueError:
        return False
    # false too for NaN, which is said where predictions are used
    return bool((here - there).abs().max() > 1e-3 * here.abs().max())
