"""Perplexity against transformers' own loss and against counting by hand; generation."""

import math

import pytest
import torch

from qviz.models.layers import LoadedModel
from qviz.models.load import load_model
from qviz.models.text import generate, perplexity


def losses_by_hand(model: LoadedModel, ids: list[int], length: int, stride: int) -> list[float]:
    """−log p of each token but the first, each from a forward pass of its own."""
    losses = []
    for target in range(1, len(ids)):
        # the first window (start 0, stride, …) that reads up to the token before the target
        start = max(0, math.ceil((target - length) / stride)) * stride
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([ids[start:target]])).logits
        losses.append(-torch.log_softmax(logits[0, -1].double(), dim=-1)[ids[target]].item())
    return losses


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_one_window_is_transformers_loss(loaded, words, kind):
    model = loaded[kind]
    ids = torch.tensor([model.tokenizer(words[:90])["input_ids"]])
    with torch.no_grad():
        loss = model.model(input_ids=ids, labels=ids).loss
    found = perplexity(model, words[:90])
    assert found.nll_per_token == pytest.approx(float(loss), rel=1e-5)
    assert found.value == pytest.approx(math.exp(float(loss)), rel=1e-4)
    assert found.tokens == ids.shape[1] - 1


@pytest.mark.parametrize(("length", "stride"), [(16, 16), (16, 5), (32, 1)])
@pytest.mark.parametrize("count", [2, 17, 18, 50])
def test_windows_by_hand(loaded, words, length, stride, count):
    """Every token but the first is scored once, with the documented context."""
    model = loaded["llama"]
    text = words[:count]
    ids = model.tokenizer(text)["input_ids"]
    losses = losses_by_hand(model, ids, length, stride)
    found = perplexity(model, text, sequence_length=length, stride=stride)
    assert found.tokens == len(ids) - 1 == len(losses)
    assert found.nll_per_token == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_several_texts_are_pooled_by_token(loaded, words):
    model = loaded["llama"]
    one, two = perplexity(model, words[:80]), perplexity(model, words[:20])
    both = perplexity(model, [words[:80], "", words[:20]])
    assert both.tokens == one.tokens + two.tokens
    total = one.nll_per_token * one.tokens + two.nll_per_token * two.tokens
    assert both.nll_per_token == pytest.approx(total / both.tokens, rel=1e-5)


def test_bits_per_byte_count_the_bytes_of_what_is_scored(loaded):
    """One token per byte here, so both ways of counting must agree, umlauts included."""
    text = "naïve café — ß" * 3
    found = perplexity(loaded["llama"], text)
    assert found.bytes == len(text.encode()) - 1 == found.tokens
    assert found.bits_per_byte == pytest.approx(found.nll_per_token / math.log(2))


def test_bytes_of_a_character_that_the_first_token_splits(loaded):
    """Its other bytes are scored, so the character counts; nothing scored costs zero bytes."""
    found = perplexity(loaded["llama"], "ß" * 3)  # six tokens of one byte, five of them scored
    assert (found.tokens, found.bytes) == (5, 6)
    found = perplexity(loaded["llama"], "\N{SNAKE}" * 2, max_tokens=3)
    assert (found.tokens, found.bytes) == (3, 4)


def test_max_tokens(loaded, words):
    model = loaded["llama"]
    found = perplexity(model, [words[:50], words[:50]], max_tokens=60, sequence_length=16)
    assert found.tokens == 60
    assert found.bytes == 60
    alone = perplexity(model, [words[:50], words[:12]], sequence_length=16)
    assert alone.nll_per_token == pytest.approx(found.nll_per_token)


def test_deterministic_and_with_progress(loaded, words):
    steps = []
    model = loaded["llama"]
    first = perplexity(model, words, sequence_length=32, progress=lambda *s: steps.append(s))
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert first == perplexity(model, words, sequence_length=32)


def test_what_is_asked_is_checked(loaded, words):
    for call in (perplexity, generate):
        with pytest.raises(ValueError, match="needs a model that predicts the next token"):
            call(loaded["bert"], words)
        with pytest.raises(TypeError, match="load the model first"):
            call("bundled", words)
    with pytest.raises(TypeError, match="prompt must be a string"):
        generate(loaded["llama"], None)
    model = loaded["llama"]
    with pytest.raises(ValueError, match="fewer than two tokens"):
        perplexity(model, "a")
    with pytest.raises(ValueError, match="empty"):
        perplexity(model, [])
    with pytest.raises(ValueError, match="stride must be from 1 to 16"):
        perplexity(model, words, sequence_length=16, stride=17)
    with pytest.raises(ValueError, match="temperature"):
        generate(model, "a", temperature=-1)
    with pytest.raises(ValueError, match="128 positions"):
        generate(model, "a" * 100, max_new_tokens=29)
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(model, "")


def test_a_model_that_predicts_nan_is_an_error(checkpoints, words):
    """Not a perplexity of infinity, and not whatever token argmax makes of NaN."""
    broken = load_model(checkpoints["llama"])
    broken.model.model.norm.weight.fill_(float("nan"))
    for call in (perplexity, generate):
        with pytest.raises(ValueError, match=r"predicts NaN .*dtype=torch\.float32"):
            call(broken, words[:50])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_text_is_transformers_text(loaded, kind):
    model = loaded[kind]
    ids = torch.tensor([model.tokenizer("def f(x):")["input_ids"]])
    expected = model.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    expected = model.tokenizer.decode(expected[0, ids.shape[1] :])
    assert generate(model, "def f(x):", max_new_tokens=20) == expected


def test_sampling_follows_the_seed(loaded):
    def sample(seed: int, temperature: float = 1.0) -> str:
        return generate(loaded["llama"], "a", max_new_tokens=12, temperature=temperature, seed=seed)

    assert sample(1) == sample(1)
    assert len({sample(s) for s in range(4)}) == 4
    assert sample(3, temperature=1e-4) == generate(loaded["llama"], "a", max_new_tokens=12)


def test_generation_stops_at_the_end_token(loaded, monkeypatch):
    model = loaded["llama"]
    text = generate(model, "a", max_new_tokens=5)
    ids = model.tokenizer("a" + text)["input_ids"]
    monkeypatch.setattr(model.model.config, "eos_token_id", [ids[3], 9999])
    stopped = generate(model, "a", max_new_tokens=5)
    assert model.tokenizer("a" + stopped)["input_ids"] == ids[: ids.index(ids[3], 1)]
