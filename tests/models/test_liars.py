"""Directories that lie: refused in words that name the lie, or read as transformers reads them."""

import pytest
import torch
from cells import sort_out
from liars import LIARS, build
from zoo import directory

import qviz
from qviz.models.checkpoint import list_layers

LAYER = "model.layers.0.self_attn.q_proj"
# What load_model says; None where it loads, with the weights that transformers takes.
SAYS = {
    "integer weights": ("weight_scale", "already quantized"),
    "two truths": None,
    "stale index": None,
    "another model": None,
    "wrong class": ("BertModel", "contradicts itself"),
    "unknown class": ("LlamaForEverything", "does not have"),
    "other sizes": ("mlp.", "96", "128"),
    "more layers": ("lacks 9 parameters", "model.layers.2"),
    "tied, but different": None,
    "broken tokenizer": ("tokenizer", "cannot be read"),
    "added tokens": None,
    "truncated": ("damaged",),
    "missing shard": ("which is missing",),
    "wrong shard": None,
    "index leads out": ("secret.safetensors", "not a file name"),
    "not numbers": None,
    "LFS pointer": ("git lfs pull",),
    "adapter only": ("LoRA",),
    "MXFP4": ("already quantized", "mxfp4"),
    "MXFP4, unsaid": ("_blocks", "MXFP4"),
}


def test_every_liar_is_tried():
    assert SAYS.keys() == LIARS.keys()


@pytest.mark.parametrize("name", LIARS)
def test_what_a_liar_gets(name):
    loaded = sort_out(lambda: str(qviz.load_model(build(name)).name))
    if SAYS[name] is None:
        assert loaded.state == "ok", loaded
        return
    assert loaded.state == "refused", loaded
    for words in SAYS[name]:
        assert words in loaded.words
    for call in (
        lambda: str(list_layers(build(name))),
        lambda: str(qviz.load_layer(build(name), LAYER)),
    ):
        assert sort_out(call).state in ("ok", "refused")


@pytest.mark.parametrize("name", [name for name, words in SAYS.items() if words is None])
def test_both_loaders_read_the_same_weight(name):
    """The one that transformers takes: the single file's, where there is one."""
    layer = qviz.linear_layers(qviz.load_model(build(name)))[LAYER]
    assert torch.equal(layer.weight, qviz.load_layer(build(name), LAYER))
    honest = qviz.load_layer(directory(LIARS[name].honest), LAYER)
    assert torch.equal(layer.weight, honest) == (name != "another model")


def test_a_capture_of_another_model_is_refused():
    calibration = qviz.capture(qviz.load_model(directory("Llama")), LIARS["another model"].text)
    other = qviz.load_model(build("another model"))
    with pytest.raises(ValueError, match="captured from other weights"):
        qviz.quantize_model(other, "gptq", calibration=calibration, group_size=None)


def test_tokens_without_an_embedding_are_named():
    model = qviz.load_model(build("added tokens"))
    for run in (qviz.capture, qviz.perplexity, qviz.generate):
        with pytest.raises(ValueError, match=r"<\|assistant\|>|<\|user\|>") as refused:
            run(model, LIARS["added tokens"].text)
        assert "512" in str(refused.value)


def test_a_weight_that_is_no_number_is_refused():
    model = qviz.load_model(build("not numbers"))
    for method in ("affine", "hqq"):
        with pytest.raises(ValueError, match=r"mlp\.up_proj.*(NaN|nan|finite)"):
            qviz.quantize_model(model, method, group_size=32)
    with pytest.raises(ValueError, match="nan"):
        qviz.capture(model, LIARS["not numbers"].text)


def test_a_head_of_its_own_stays_its_own():
    """Whatever config.json says of ties: the file has another head, and so has the model."""
    model = qviz.load_model(build("tied, but different")).model
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert "lm_head" in {info.name for info in list_layers(build("tied, but different"))}
