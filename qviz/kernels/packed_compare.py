"""A packed model compared with its dequantized reference: output, speed and memory.

The reference has as many 16-bit weights as the original, so speed and memory are compared with it
too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qviz.kernels.packed_cost import MemoryUse, Rate, Speed, greedy, memory, prompt_ids, speeds
from qviz.kernels.packed_model import PackedModel
from qviz.models.layers import LoadedModel
from qviz.models.quantize import QuantizedModel
from qviz.models.reading import require_tokenizer, token_windows
from qviz.models.text import Perplexity, perplexity
from qviz.models.texts import evaluation_texts

ROWS = 64  # of logits compared at a time: two float64 copies of them are in memory
PROMPT_CHARACTERS = 200  # of the text, where no prompt is given


@dataclass(frozen=True)
class Logits:
    """How far the logits of the packed model are from those of its dequantized reference.

    max_abs   the largest difference
    relative  ‖a − b‖ / ‖b‖ over all of them
    kl        Σ p·ln(p/p̂), the reference's p against the packed model's p̂, mean over tokens, in nats
    same_top  share of positions at which both find the same token likeliest
    tokens    positions compared
    """

    max_abs: float
    relative: float
    kl: float
    same_top: float
    tokens: int


@dataclass(frozen=True)
class Texts:
    """The greedy continuations of a prompt by both.

    parts_at  the number of the first new token (from 0) that differs; None: none does
    """

    prompt: str
    packed: str
    reference: str
    parts_at: int | None
    new_tokens: int


@dataclass(frozen=True)
class Comparison:
    """A packed model beside its dequantized reference, which is a 16-bit model.

    perplexity, speed and memory are pairs: (packed, reference).
    """

    logits: Logits
    texts: Texts
    perplexity: tuple[Perplexity, Perplexity]
    speed: tuple[Speed, Speed]
    memory: tuple[MemoryUse, MemoryUse]
    kernels: tuple[str, ...]
    dtype: torch.dtype
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Figure by figure, for a table: what, packed, reference, packed / reference, in words."""
        (fast, fast16), (held, held16) = self.speed, self.memory
        found = [
            _row("prefill, tokens/s", fast.prefill.median, fast16.prefill.median),
            _row("decode, tokens/s", fast.decode.median, fast16.decode.median),
            _row("bytes of the model", held.total, held16.total),
            _row("perplexity", self.perplexity[0].value, self.perplexity[1].value),
        ]
        found[0]["in words"] = _pace(fast.prefill, fast16.prefill)
        found[1]["in words"] = _pace(fast.decode, fast16.decode)
        found[2]["in words"] = _size(held.total / held16.total)
        if fast.added is not None and fast16.added:
            # Not the peaks themselves: both models lie on the device while either runs.
            found.append(_row("bytes that generating adds on CUDA", fast.added, fast16.added))
            found[-1]["in words"] = _size(fast.added / fast16.added)
        return found

    def __str__(self) -> str:
        lines = [f"{' and '.join(self.kernels)} beside {self.dtype} weights"]
        lines.append(f"{'':<38}{'packed':>14}{'16 bits':>14}{'ratio':>9}")
        lines += [
            f"{r['what']:<38}{_figure(r['packed']):>14}{_figure(r['16 bits']):>14}"
            f"{r['ratio']:>9.3f}  {r['in words']}".rstrip()
            for r in self.rows
        ]
        x, t = self.logits, self.texts
        lines.append(
            f"logits of {x.tokens} tokens: largest difference {x.max_abs:.3g}, relative "
            f"{x.relative:.2e}, KL {x.kl:.2e} nats, the same next token in {x.same_top:.2%}"
        )
        lines.append(
            f"greedy text: the same for {t.new_tokens} tokens"
            if t.parts_at is None
            else f"greedy text: differs from new token {t.parts_at} of {t.new_tokens}"
        )
        return "\n".join([*lines, *self.notes])


def _row(what: str, packed: float, reference: float) -> dict[str, Any]:
    ratio = packed / reference
    return {"what": what, "packed": packed, "16 bits": reference, "ratio": ratio, "in words": ""}


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _pace(ours: Rate, theirs: Rate) -> str:
    """Faster or slower, unless the repeats disagree."""
    (low, high), (low16, high16) = ours.range, theirs.range
    if low <= high16 and low16 <= high:
        return "no difference beyond that between repeats"
    ratio = ours.median / theirs.median
    return f"{ratio:.2f}× as fast" if ratio > 1 else f"{1 / ratio:.2f}× slower"


def _size(ratio: float) -> str:
    if ratio == 1:
        return "the same"
    return f"{1 / ratio:.2f}× smaller" if ratio < 1 else f"{ratio:.2f}× larger"


def compare(
    packed: PackedModel,
    texts: str | Sequence[str] | None = None,
    *,
    prompt: str | None = None,
    quantized: QuantizedModel | None = None,
    max_tokens: int = 2048,
    new_tokens: int = 64,
    batch: int = 1,
    repeats: int = 5,
) -> Comparison:
    """Compare the packed model with its dequantized reference: output, speed and memory.

    texts       for logits and perplexity, at most `max_tokens` of them; None: the evaluation texts
                that come with qviz
    prompt      for generation and speed; None: the first 200 characters of the texts
    quantized   what was packed, for the reference; None: that very object if it is still alive

    Speed is measured in turns, so both meet the same conditions. The reference is in memory
    meanwhile. Raises ValueError for encoders, models without a tokenizer and predictions of NaN.

    >>> quantized = qviz.quantize_model(model, bits=4, group_size=32)
    >>> packed = qviz.kernels.pack_model(quantized, "torch.matmul")
    >>> found = compare(packed, max_tokens=64, new_tokens=4, repeats=1)
    >>> found.logits.max_abs, found.texts.parts_at
    (0.0, None)
    """
    if not isinstance(packed, PackedModel):
        raise TypeError(f"compare takes what pack_model returned, got {type(packed).__name__}")
    if texts is None:
        texts = [text.text for text in evaluation_texts().values()]
    if prompt is None:
        prompt = (texts if isinstance(texts, str) else texts[0])[:PROMPT_CHARACTERS]
    # What cannot be generated is refused before the rest runs.
    prompt_ids(packed.model, prompt, new_tokens)
    reference = packed.reference(quantized)
    pair = (packed.model, reference)
    scored = tuple(perplexity(model, texts, max_tokens=max_tokens) for model in pair)
    options = {"new_tokens": new_tokens, "batch": batch, "repeats": repeats}
    fast = speeds({"packed": packed.model, "reference": reference}, prompt, **options)
    return Comparison(
        compare_logits(packed.model, reference, texts, max_tokens=max_tokens),
        compare_texts(packed.model, reference, prompt, new_tokens=new_tokens),
        (scored[0], scored[1]),
        (fast["packed"], fast["reference"]),
        (memory(packed), memory(reference)),
        tuple(dict.fromkeys(packed.kernels.values())),
        packed.dtype,
        packed.notes,
    )


def compare_logits(
    model: LoadedModel,
    reference: LoadedModel,
    texts: str | Sequence[str],
    *,
    max_tokens: int = 2048,
) -> Logits:
    """How far the logits of a model are from a reference's, over the same tokens.

    >>> compare_logits(model, model, "def read(path):").relative
    0.0
    """
    largest = error = energy = kl = same = 0.0
    count = 0
    for window in token_windows(reference, texts, max_tokens, None):
        with torch.no_grad():
            a, b = (
                one.model(input_ids=torch.tensor([window], device=one.device)).logits[0]
                for one in (model, reference)
            )
        for ours, theirs in zip(a.split(ROWS), b.split(ROWS), strict=True):
            x, y = ours.double(), theirs.double().to(ours.device)  # [rows, vocabulary]
            difference = x - y
            largest = max(largest, float(difference.abs().max()))
            error += float(difference.square().sum())
            energy += float(y.square().sum())
            log_p, log_q = y.log_softmax(-1), x.log_softmax(-1)
            kl += float((log_p.exp() * (log_p - log_q)).sum())
            same += float((x.argmax(-1) == y.argmax(-1)).sum())
        count += len(window)
    relative = math.sqrt(error / energy) if energy else 0.0
    return Logits(largest, relative, kl / count, same / count, count)


def compare_texts(
    model: LoadedModel, reference: LoadedModel, prompt: str, *, new_tokens: int = 64
) -> Texts:
    """The continuations of a prompt by both, and where they first differ.

    >>> compare_texts(model, model, "def read(path):", new_tokens=4).parts_at is None
    True
    """
    ours, theirs = (_continued(one, prompt, new_tokens) for one in (model, reference))
    differ = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    shorter = min(len(ours), len(theirs))
    parts_at = next(differ, None if len(ours) == len(theirs) else shorter)
    said = [_text(one, prompt, new) for one, new in ((model, ours), (reference, theirs))]
    return Texts(prompt, said[0], said[1], parts_at, max(len(ours), len(theirs)))


def _continued(model: LoadedModel, prompt: str, new_tokens: int) -> list[int]:
    """The likeliest new tokens up to the model's end-of-text token."""
    ids = torch.tensor([prompt_ids(model, prompt, new_tokens)], device=model.device)
    new: list[int] = greedy(model, ids, new_tokens).tokens[0].tolist()
    listed = getattr(model.config, "eos_token_id", None)
    ends = {
        require_tokenizer(model).eos_token_id,
        *(listed if isinstance(listed, list) else [listed]),
    }
    stop = next((i for i, token in enumerate(new) if token in ends), len(new))
    return new[:stop]


def _text(model: LoadedModel, prompt: str, new: list[int]) -> str:
    """The new tokens as text, decoded with the prompt: some tokenizers drop a first space."""
    tokenizer, before = require_tokenizer(model), prompt_ids(model, prompt, 0)
    options = {"clean_up_tokenization_spaces": False}
    start: str = tokenizer.decode(before, **options)
    together: str = tokenizer.decode(before + new, **options)
    return together[len(start) :]
