"""How models read text: windows, tokens, batches without padding, errors in words."""

import copy
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import qviz
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.load import load_model
from qviz.models.reading import WindowBatch, equal_batches, run, token_windows
from qviz.models.sequential import Outcome, Sequential, follow
from qviz.models.statistics import Collector
from tests.models.zoo import directory, tiny

TEXT = "def read(path):\n    return open(path).read()\n" * 12
TEXTS = [TEXT[:n] for n in (310, 170, 90, 240, 45)]  # windows of many lengths


def zoo(name: str) -> LoadedModel:
    return load_model(directory(name))


# ------------------------------------------------------------------------------------------ caches


def hessians(model: LoadedModel, texts: list[str]) -> dict[str, torch.Tensor]:
    """What sequential calibration sees where nothing is quantized."""
    seen: dict[str, torch.Tensor] = {}

    def make(name, layer, calibration):
        if calibration is not None:
            seen[name] = calibration.hessian
        return "left as it is"

    how = Sequential(texts, sequence_length=60, batch_size=3, hessian_dtype=torch.float64)
    done: Outcome = follow(model, list(linear_layers(model)), how, make, lambda *_: None)
    assert not done.tensors
    return seen


@pytest.mark.parametrize("name", ["Llama", "Llama, no head", "Llama, classes", "GPT-2, no head"])
def test_sequential_sees_what_a_capture_sees(name):
    """Also without a head, where nothing says that it is a decoder: no cache of earlier runs."""
    model = zoo(name)
    captured = qviz.capture(
        model, TEXTS, sequence_length=60, batch_size=3, hessian_dtype=torch.float64
    )
    for layer, hessian in hessians(model, TEXTS).items():
        assert torch.allclose(hessian, captured[layer].hessian, rtol=1e-5, atol=1e-7), layer


def test_the_same_weights_with_and_without_a_head_get_the_same_codes(tmp_path):
    whole = zoo("Llama")
    whole.model.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    base = load_model(tmp_path)
    assert (whole.kind, base.kind) == ("decoder", "headless")
    how = {"bits": 2, "group_size": 32, "calibration": Sequential(TEXTS, sequence_length=60)}
    a, b = (qviz.quantize_model(m, "gptq", **how) for m in (whole, base))
    for layer, tensor in b.tensors.items():
        assert torch.equal(tensor.codes, a.tensors[f"model.{layer}"].codes)


class Caching(nn.Module):
    """A block that is handed what earlier runs left."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden, *args, **kwargs):
        kwargs.pop("leftover", None)
        return self.inner(hidden, **kwargs)


@pytest.mark.parametrize("named", [True, False])
def test_a_cache_in_a_blocks_call_is_refused(named):
    model = zoo("Llama")
    twin = replace(model, model=copy.deepcopy(model.model))
    first = Caching(twin.model.model.layers[0])
    first.register_forward_pre_hook(
        lambda m, args, kwargs: (
            (args, {**kwargs, "leftover": KeyCache()}) if named else ((*args, KeyCache()), kwargs)
        ),
        with_kwargs=True,
        prepend=True,
    )
    twin.model.model.layers[0] = first
    how = "leftover" if named else "by position"
    with pytest.raises(ValueError, match=rf"passes model.layers.0 a cache \({how}\)"):
        hessians(twin, TEXTS)


class KeyCache:
    pass


# ----------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("name", ["DeepSeek-V3", "DeepSeek-V2", "DeBERTa", "FNet"])
def test_padding_never_counts(name):
    """Layers that see [batch, 1, tokens, rank], positions once for a batch, tokens mixed."""
    model = zoo(name)
    runs = [
        qviz.capture(model, TEXTS, sequence_length=60, batch_size=b, max_tokens=700) for b in (1, 4)
    ]
    for layer, one in runs[0].items():
        four = runs[1][layer]
        assert one.tokens == four.tokens, layer
        assert torch.allclose(one.hessian, four.hessian, rtol=1e-4, atol=1e-5), layer
        assert torch.allclose(one.act_absmax, four.act_absmax, rtol=1e-5), layer


def test_batches_have_one_length_and_keep_the_order():
    windows = [[1] * n for n in (4, 4, 4, 2, 4, 3, 3)]
    batches = equal_batches(windows, 2, torch.device("cpu"))
    assert [tuple(b.ids.shape) for b in batches] == [(2, 4), (1, 4), (1, 2), (1, 4), (2, 3)]
    assert [(b.first, b.number) for b in batches] == [(0, 0), (2, 1), (3, 2), (4, 3), (5, 4)]


@pytest.mark.parametrize("name", ["Longformer", "Reformer"])
def test_a_model_that_pads_inside_is_refused_and_told_what_fits(name):
    model = zoo(name)
    with pytest.raises(ValueError, match=r"pads 60 tokens to (\d+) inside") as raised:
        qviz.capture(model, TEXT, sequence_length=60)
    fits = int(str(raised.value).partition("sequence_length=")[2].partition(",")[0])
    advised = qviz.capture(model, TEXT, sequence_length=fits, max_tokens=2 * fits)
    layer = next(iter(advised))
    assert advised[layer].tokens == 2 * fits


def test_runs_leave_no_trace():
    """BigBird draws who sees whom, and a short window would end that for good."""
    model = zoo("BigBird, sparse")
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    fitting = {"sequence_length": 60, "max_tokens": 140}  # 60, 60 and, too short for sparse, 20
    first = qviz.capture(model, TEXT, **fitting)
    assert np.array_equal(np.random.random(3), expected)
    again = qviz.capture(model, TEXT, **fitting)  # from another state of the generator
    assert all(torch.equal(first[n].hessian, again[n].hessian) for n in first)


def test_what_a_model_draws_is_the_same_every_time():
    """Reformer hashes tokens with random rotations, in evaluation too."""
    reformer = tiny(
        "ReformerModelWithLMHead", attn_layers=["lsh", "lsh"], lsh_attn_chunk_length=16,
        axial_pos_embds=False, num_buckets=2, is_decoder=True, feed_forward_size=96,
    )  # fmt: skip
    model = LoadedModel(reformer.requires_grad_(False), zoo("Llama").tokenizer, "LSH", "decoder")
    before = torch.random.get_rng_state()
    first, again = (qviz.capture(model, TEXT, sequence_length=64, max_tokens=128) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(first) > 5
    assert all(torch.equal(first[n].hessian, again[n].hessian) for n in first)


# ------------------------------------------------------------------------------------ what is asked


@pytest.mark.parametrize(
    ("name", "longest"),
    [("Llama", 128), ("RoBERTa", 128), ("MPNet", 126), ("MPT", 128), ("OPT", 128), ("XLNet", None)],
)
def test_how_long_an_input_may_be(name, longest):
    """RoBERTa counts positions from its padding on; a table of −1 rows means no limit."""
    model = zoo(name)
    assert model.max_length == longest
    ids = torch.full((1, longest or 200), 5)
    run(model, ids)  # as long as it may be
    if longest is not None:
        with pytest.raises(ValueError, match=f"has positions for only {longest} tokens"):
            qviz.capture(model, TEXT, sequence_length=longest + 1)


def test_beyond_its_positions_a_model_fails_in_words():
    model = zoo("RoBERTa")
    with pytest.raises(
        ValueError, match=r"RobertaForMaskedLM\) fails in \S*embeddings.* on 1 × 400"
    ):
        run(model, torch.full((1, 400), 5))


def test_a_token_without_an_embedding_is_named():
    model = zoo("Llama")
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens(["<new>"])
    added = replace(model, tokenizer=tokenizer)
    rows = model.model.get_input_embeddings().num_embeddings
    assert len(tokenizer) > rows
    said = rf"token {len(tokenizer) - 1} \('<new>'\).*embeddings for only {rows} tokens"
    with pytest.raises(ValueError, match=said):
        qviz.capture(added, "a <new> b")
    with pytest.raises(ValueError, match=said):
        qviz.perplexity(added, "a <new> b")
    with pytest.raises(ValueError, match=said):
        qviz.generate(added, "a <new> b")
    how = Sequential("a <new> b")
    with pytest.raises(ValueError, match=said):
        qviz.quantize_model(added, "gptq", calibration=how, group_size=32)


def test_slow_tokenizers_read_the_same_windows():
    """CTRL's is in Python: no places in the text, another form of overflow."""
    model = zoo("CTRL")
    assert not model.tokenizer.is_fast
    ids = model.tokenizer(TEXT)["input_ids"]
    windows = token_windows(model, TEXT, None, 50)
    assert [i for w in windows for i in w] == ids
    assert {len(w) for w in windows[:-1]} == {50}
    seen = qviz.capture(model, TEXT, sequence_length=50)
    assert next(iter(seen.values())).tokens == len(ids)
    found = qviz.perplexity(model, TEXT, sequence_length=50)
    assert found.tokens == len(ids) - 1
    assert qviz.generate(model, TEXT[:40], max_new_tokens=3) is not None


def test_windows_of_a_slow_tokenizer_have_room_for_special_tokens():
    model = zoo("Llama")
    tokenizer = transformers.ByT5Tokenizer(extra_ids=0)  # ends every text with </s>
    assert (tokenizer.is_fast, tokenizer.num_special_tokens_to_add()) == (False, 1)
    windows = token_windows(replace(model, tokenizer=tokenizer), TEXT, None, 50)
    assert {len(w) for w in windows[:-1]} == {50}
    assert {w[-1] for w in windows} == {tokenizer.eos_token_id}
    assert sum(len(w) - 1 for w in windows) == len(TEXT.encode())


def test_images_are_no_text():
    model = zoo("ViT")
    assert model.kind == "other"
    for ask in (
        lambda: qviz.capture(model, TEXT),
        lambda: qviz.perplexity(model, TEXT),
        lambda: qviz.generate(model, "a"),
        lambda: qviz.quantize_model(model, "gptq", calibration=Sequential(TEXT)),
    ):
        with pytest.raises(ValueError, match=r"does not read plain text|has no tokenizer"):
            ask()
    assert qviz.quantize_model(model, bits=4, group_size=32, on_error="skip").share > 0.5


@pytest.mark.parametrize("name", ["BERT, called a decoder", "XLNet", "XLM"])
def test_who_sees_the_next_token_does_not_predict_it(name):
    """Classes with a language model's head in which every token sees those after it."""
    model = zoo(name)
    assert model.kind == "encoder"
    with pytest.raises(ValueError, match="every token sees the whole text"):
        qviz.perplexity(model, TEXT)


def test_a_mapping_of_texts_is_not_its_keys():
    with pytest.raises(TypeError, match=r"pass its values\(\)"):
        qviz.capture(zoo("Llama"), {"text": TEXT})


@pytest.mark.parametrize("name", ["Mamba", "GPT", "Jamba", "RWKV", "Bamba"])
def test_models_without_a_cache_of_keys_write_text(name):
    model = zoo(name)
    ids = torch.tensor([model.tokenizer("def f(")["input_ids"]])
    theirs = []
    for _ in range(6):  # greedy, the whole text every time
        token = run(model, torch.tensor([[*ids[0].tolist(), *theirs]])).logits[0, -1].argmax()
        theirs.append(int(token))
    expected = model.tokenizer.decode([*ids[0].tolist(), *theirs])
    assert expected.startswith("def f(" + qviz.generate(model, "def f(", max_new_tokens=6))


# --------------------------------------------------------------------------------- errors in words


def test_what_the_model_raises_is_one_sentence_and_a_hooks_error_passes():
    model = zoo("Llama")
    broken = replace(model, model=copy.deepcopy(model.model))
    broken.model.model.layers[1].mlp.down_proj.weight = nn.Parameter(
        torch.zeros(64, 3), requires_grad=False
    )
    with pytest.raises(ValueError, match=r"fails in model\.layers\.1\.mlp\.down_proj on 1 × ") as e:
        qviz.perplexity(broken, TEXT, max_tokens=50)
    assert "RuntimeError" in str(e.value)
    assert "\n" not in str(e.value)
    handle = model.model.model.layers[0].mlp.register_forward_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            qviz.capture(model, TEXT)
    finally:
        handle.remove()


def test_out_of_memory_says_what_helps(monkeypatch):
    model = zoo("Llama")

    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(torch.nn.functional, "silu", full)
    with pytest.raises(
        MemoryError, match=r"ran out of memory in model\.layers\.0\.mlp.*batch_size"
    ):
        run(model, torch.tensor([[1, 2, 3]]))


def test_functions_take_what_qviz_made_of_a_model_and_nothing_else():
    model = zoo("Llama")
    quantized = qviz.quantize_model(model, bits=4, group_size=32)
    assert qviz.perplexity(quantized, TEXT) == qviz.perplexity(quantized.model, TEXT)
    assert qviz.generate(quantized, "def ", max_new_tokens=4) == qviz.generate(
        quantized.model, "def ", max_new_tokens=4
    )
    for ask in (
        lambda: qviz.quantize_model(model.model, bits=4, group_size=32),
        lambda: qviz.perplexity(model.model, TEXT),
    ):
        with pytest.raises(TypeError, match=r"torch module LlamaForCausalLM\. Save it.*load_model"):
            ask()
    with pytest.raises(TypeError, match="got str; load the model first"):
        qviz.capture("bundled", TEXT)


def test_a_hook_in_a_notebook_raises_its_own_error():
    """Its file has a name like "<stdin>", as generated code has; its module is __main__."""
    model = zoo("Llama")
    console = {"__name__": "__main__"}
    exec("def hook(*_): return 1 / 0", console)
    handle = model.model.model.layers[0].mlp.register_forward_hook(console["hook"])
    try:
        with pytest.raises(ZeroDivisionError):
            qviz.capture(model, TEXT)
    finally:
        handle.remove()


def test_half_a_surrogate_pair_is_named():
    model = zoo("Llama")
    for ask in (
        lambda: qviz.capture(model, ["def f():", "abc\ud800b"]),
        lambda: qviz.perplexity(model, ["def f():", "abc\ud800b"]),
        lambda: Sequential(["def f():", "abc\ud800b"]),
    ):
        with pytest.raises(ValueError, match=r"text 1 holds '\\ud800' at character 3"):
            ask()
    with pytest.raises(ValueError, match=r"the prompt holds '\\udc80' at character 0"):
        qviz.generate(model, "\udc80")


def test_more_windows_than_tokens_is_no_padding():
    """XLNet reads [tokens, batch]: four short windows are wider than they are long, and one layer's
    input of one token each looks like something that comes once for a batch."""
    model = zoo("XLNet")
    texts = ["a", "b", "c", "d"]
    one, four = (qviz.capture(model, texts, batch_size=b) for b in (1, 4))
    length = len(token_windows(model, texts, None, None)[0])
    assert length < 4
    for layer, alone in one.items():
        assert torch.allclose(alone.hessian, four[layer].hessian, rtol=1e-4, atol=1e-5), layer
        assert alone.tokens == four[layer].tokens, layer


def test_tokens_first_of_one_token_each_count_once():
    collector = Collector(torch.float32, 8, 0)
    collector.begin(WindowBatch(torch.zeros(4, 1, dtype=torch.long), 0, 0))
    collector.see("tokens first", torch.ones(1, 4, 5))
    collector.flush()
    collector.see("once for a batch", torch.ones(1, 7, 5))
    collector.flush()
    counts = {n: s.tokens for n, s in collector.statistics.items()}
    assert counts == {"tokens first": 4, "once for a batch": 28}


def test_text_ends_where_the_generation_configuration_says():
    """Chat models end a turn with a token that only generation_config.json lists."""
    model = zoo("Llama")
    written = qviz.generate(model, "def f(", max_new_tokens=3)
    assert written
    ids = torch.tensor([model.tokenizer("def f(")["input_ids"]])
    first = int(run(model, ids).logits[0, -1].argmax())
    before = model.model.generation_config.eos_token_id
    model.model.generation_config.eos_token_id = [first]
    try:
        assert qviz.generate(model, "def f(", max_new_tokens=3) == ""
    finally:
        model.model.generation_config.eos_token_id = before


def test_a_part_that_hands_everything_on_keeps_no_cache_either():
    """The base of Bart as a decoder takes *args and **kwargs, and does not say what they are."""
    bart = tiny("BartForCausalLM", decoder_layers=2, decoder_ffn_dim=96, is_decoder=True)
    model = LoadedModel(bart.requires_grad_(False), zoo("Llama").tokenizer, "Bart", "decoder")
    captured = qviz.capture(model, TEXTS, sequence_length=60, hessian_dtype=torch.float64)
    seen = hessians(model, TEXTS)
    assert len(seen) > 10
    for layer, hessian in seen.items():
        assert torch.allclose(hessian, captured[layer].hessian, rtol=1e-5, atol=1e-7), layer
