"""A decoder and text: perplexity, and generation."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qviz.core.check import require_int
from qviz.models.capture import Progress
from qviz.models.layers import LoadedModel, Wrapped, loaded
from qviz.models.reading import (
    as_in_use,
    as_texts,
    require_encodable,
    require_known_tokens,
    require_next_tokens,
    require_tokenizer,
    run,
    window_length,
)
from qviz.models.texts import evaluation_texts

LOGITS_BYTES = 64 * 2**20  # windows are batched up to this many bytes of float32 logits


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text; lower is better.

    value          exp(nll_per_token): the number of equally likely choices per token
    nll_per_token  mean negative log-likelihood of a scored token, in nats
    tokens         how many tokens were scored
    bits_per_byte  the same information per byte of UTF-8: comparable between tokenizers, and with
                   a compressor; NaN if the tokenizer does not tell which text a token stands for
    bytes          how many bytes of text the scored tokens stand for, in whole characters; 0 there
    """

    value: float
    nll_per_token: float
    tokens: int
    bits_per_byte: float
    bytes: int


@dataclass(frozen=True)
class _Window:
    """The model reads ids[:-1] and predicts ids[1:]; the last `scored` predictions count."""

    ids: list[int]
    scored: int


def perplexity(
    model: LoadedModel | Wrapped,
    texts: str | Sequence[str] | None = None,
    *,
    sequence_length: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity of a decoder on texts (None: the evaluation texts that come with qviz).

    Each text is read in windows of `sequence_length` tokens (None: 512, or what the model can
    take) that start every `stride` tokens (None: sequence_length, so that windows do not overlap).
    Every token but the first of a text is scored exactly once, in the first window that predicts
    it: with a smaller stride each has at least sequence_length − stride tokens of context, and the
    run takes longer by sequence_length / stride. At most `max_tokens` tokens are scored.
    Deterministic. A QuantizedModel is measured as it is. Raises ValueError for models that do not
    predict each token from those before it, for a text of less than two tokens, and for a model
    whose predictions are NaN.

    >>> qviz.perplexity(qviz.load_model(), max_tokens=2048).bits_per_byte
    """
    model = loaded(model)
    require_next_tokens(model, "perplexity")
    length = window_length(model, sequence_length)
    step = length if stride is None else require_int(stride, "stride", 1, length)
    if max_tokens is not None:
        require_int(max_tokens, "max_tokens", 1, 10**9)
    if texts is None:
        texts = [text.text for text in evaluation_texts().values()]
    windows, size = _windows(model, as_texts(texts), length, step, max_tokens)
    batches = list(_batches(windows, length * model.config.get_text_config().vocab_size * 4))
    total, tokens = 0.0, sum(w.scored for w in windows)
    with as_in_use(model):
        for done, batch in enumerate(batches):
            total += _negative_log_likelihood(model, batch)
            if progress is not None:
                progress(done + 1, len(batches))
    if math.isnan(total):
        raise ValueError(_not_a_number(model))
    mean = total / tokens
    value = math.exp(mean) if mean < 700 else math.inf  # a model broken by 2 bits can get there
    per_byte = total / math.log(2) / size if size else math.nan
    return Perplexity(value, mean, tokens, per_byte, size)


def generate(
    model: LoadedModel | Wrapped,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The text with which a decoder continues the prompt (the prompt itself is not repeated).

    temperature 0 takes the likeliest token every time; above 0 tokens are drawn from
    softmax(logits / temperature) by `seed`. Stops early at the model's end-of-text token.
    A model that keeps a cache of keys and values reads each token once, another reads the whole
    text again for every token. Raises ValueError for models that do not predict each token from
    those before it, where prompt and answer exceed the model's positions, and for a model whose
    predictions are NaN.

    >>> qviz.generate(qviz.load_model(), "def read_file(path):", max_new_tokens=24)
    """
    model = loaded(model)
    require_next_tokens(model, "generate")
    require_int(max_new_tokens, "max_new_tokens", 1, 1_000_000)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    prompt_ids = _prompt_ids(model, prompt)
    require_known_tokens(model, prompt_ids)
    longest = model.max_length
    if longest is not None and len(prompt_ids) + max_new_tokens > longest:
        raise ValueError(
            f"the prompt's {len(prompt_ids)} tokens and {max_new_tokens} new ones exceed the "
            f"{longest} positions of {model.name}; shorten one of them"
        )
    draw = np.random.default_rng(seed)
    ends, new = _end_tokens(model), list[int]()
    with as_in_use(model):
        for logits in _predictions(model, prompt_ids, new):
            if bool(logits.isnan().any()):
                raise ValueError(_not_a_number(model))
            token = _next_token(logits, temperature, draw)
            if token in ends:
                break
            new.append(token)
            if len(new) == max_new_tokens:
                break
    # Decoded together: some tokenizers drop the space before a first token.
    before, together = (_decoded(model, ids) for ids in (prompt_ids, prompt_ids + new))
    return together[len(before) :]


def _decoded(model: LoadedModel, ids: list[int]) -> str:
    try:
        text: str = require_tokenizer(model).decode(ids, clean_up_tokenization_spaces=False)
    except Exception as error:
        raise ValueError(
            f"{model.name} wrote a token that its tokenizer cannot turn into text "
            f"({type(error).__name__}: {error}). Use the tokenizer that the model was trained with"
        ) from error
    return text


def _predictions(model: LoadedModel, prompt: list[int], new: list[int]) -> Iterator[torch.Tensor]:
    """The logits [vocabulary] of the token after the prompt, and of that after each one that the
    caller has put into `new` by then."""

    def read(ids: list[int], **options: Any) -> Any:
        return run(model, torch.tensor([ids], device=model.device), **options)

    cache: Any = None
    position: bool | None = False
    if "past_key_values" in inspect.signature(model.model.forward).parameters:
        first = read(prompt, past_key_values=None, use_cache=True)
        cache = getattr(first, "past_key_values", None)
        yield first.logits[0, -1]
        if cache is not None:
            position = _wants_position(model, prompt, new[0], cache)
            cache = None if position is None else cache
    else:
        yield read(prompt).logits[0, -1]
    while True:
        if cache is None:  # keeps no keys and values (Mamba, the first GPT): all of it again
            yield read(prompt + new).logits[0, -1]
            continue
        place = len(prompt) + len(new) - 1
        options: dict[str, Any] = {}
        if position:
            options["position_ids"] = torch.tensor([[place]], device=model.device)
        output = read(new[-1:], past_key_values=cache, use_cache=True, **options)
        cache = output.past_key_values
        yield output.logits[0, -1]


def _wants_position(model: LoadedModel, prompt: list[int], token: int, cache: Any) -> bool | None:
    """Whether a model that reads on from its cache has to be told the position (Bamba does); None
    for one that predicts something else from its cache than from the whole text either way."""
    ids = torch.tensor([[*prompt, token]], device=model.device)
    whole = run(model, ids).logits[0, -1].float()
    named = "position_ids" in inspect.signature(model.model.forward).parameters
    for position in (False, True)[: 1 + named]:
        options: dict[str, Any] = {}
        if position:
            options["position_ids"] = ids.new_tensor([[len(prompt)]])
        kept = copy.deepcopy(cache)
        read_on = run(model, ids[:, -1:], past_key_values=kept, use_cache=True, **options)
        off = (read_on.logits[0, -1].float() - whole).abs().max() / whole.abs().max()
        if not off > 2e-2:  # rounding, in half precision; NaN is said where it is used
            return position
    return None


def _not_a_number(model: LoadedModel) -> str:
    return (
        f"{model.name} predicts NaN on this text: it overflows, or its weights are broken. Load it "
        f"with dtype=torch.float32, or check its weights"
    )


def _windows(
    model: LoadedModel, texts: list[str], length: int, step: int, max_tokens: int | None
) -> tuple[list[_Window], int]:
    """The windows of all texts, and how many bytes of UTF-8 their scored tokens stand for."""
    windows: list[_Window] = []
    sizes, left = list[int](), max_tokens if max_tokens is not None else 10**12
    for text in texts:
        every, offsets = _tokens(require_tokenizer(model), text)
        ids = every[: left + 1]
        require_known_tokens(model, ids)
        if len(ids) < 2 or left == 0:
            continue
        scored_until = 1  # the first token has nothing before it to predict it from
        for start in range(0, len(ids), step):
            if scored_until == len(ids):
                break
            window = ids[start : start + length + 1]
            end = start + len(window)
            windows.append(_Window(window, end - scored_until))
            scored_until = end
        left -= len(ids) - 1
        sizes.append(_bytes_after_first(require_tokenizer(model), text, every, len(ids), offsets))
    if not windows:
        raise ValueError("the texts have fewer than two tokens, so there is nothing to predict")
    return windows, 0 if 0 in sizes else sum(sizes)


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
    """Token ids, and the place of each in the text where the tokenizer tells."""
    if not getattr(tokenizer, "is_fast", False):
        return list(tokenizer(text, verbose=False)["input_ids"]), None
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def _bytes_after_first(
    tokenizer: Any,
    text: str,
    ids: list[int],
    count: int,
    offsets: list[tuple[int, int]] | None,
) -> int:
    """Bytes of UTF-8 that tokens 1 to `count` stand for; 0 where this is unknown."""
    if offsets is not None:
        # From the end of the first token, as tokenizers leave leading spaces out of offsets; but a
        # character of which the first token holds only some bytes counts with the rest.
        first = min(offsets[0][1], offsets[1][0])
        return len(text[first : max(end for _, end in offsets[:count])].encode())
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        return 0  # it changes what it reads
    parts = [tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False) for n in (count, 1)]
    return len(parts[0].encode()) - len(parts[1].encode())


def _batches(windows: list[_Window], logits_bytes: int) -> Iterator[list[_Window]]:
    """Consecutive windows of equal length, together as far as their logits fit in memory."""
    most = max(1, LOGITS_BYTES // logits_bytes)
    batch: list[_Window] = []
    for window in windows:
        if batch and (len(batch) == most or len(batch[0].ids) != len(window.ids)):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _negative_log_likelihood(model: LoadedModel, batch: list[_Window]) -> float:
    """Sum over the scored tokens of −log p(token), in nats."""
    ids = torch.tensor([w.ids for w in batch], device=model.device)  # [batch, length + 1]
    logits = run(model, ids[:, :-1]).logits.float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(len(batch), -1)  # [batch, length]
    total = sum(row[-w.scored :].double().sum() for row, w in zip(losses, batch, strict=True))
    return float(total)


def _prompt_ids(model: LoadedModel, prompt: str) -> list[int]:
    if not isinstance(prompt, str):
        raise TypeError(f"the prompt must be a string, got {type(prompt).__name__}")
    require_encodable(prompt, "the prompt")
    tokenizer = require_tokenizer(model)
    ids = list(tokenizer(prompt)["input_ids"])
    if ids:
        return ids
    for start in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if start is not None:
            return [int(start)]
    raise ValueError("the prompt is empty; give at least one character")


def _end_tokens(model: LoadedModel) -> set[int]:
    """The tokens after which text ends: the tokenizer's own, and those that the configurations of
    the model and of its generation list (a chat model ends a turn with another)."""
    ends = {require_tokenizer(model).eos_token_id}
    for config in (model.config, getattr(model.model, "generation_config", None)):
        listed = getattr(config, "eos_token_id", None)
        ends |= set(listed) if isinstance(listed, list) else {listed}
    return {int(e) for e in ends if e is not None}


def _next_token(logits: torch.Tensor, temperature: float, draw: np.random.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    p = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    # Inverse transform sampling with NumPy's stream: the same text from a seed on every device.
    return int(torch.searchsorted(p, float(draw.random() * p[-1])).clamp(max=len(p) - 1))
