"""Quantizing a model: on a copy, layer by layer, with everything accounted for."""

import copy
from dataclasses import replace

import pytest
import torch

import qviz
from qviz.methods.gguf.mixes import layer_types
from qviz.models.layers import linear_layers
from qviz.models.quantize import quantize_model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_every_layer_holds_its_reconstruction_and_the_original_is_untouched(loaded, kind):
    model = loaded[kind]
    before = copy.deepcopy(model.model.state_dict())
    quantized = quantize_model(model, bits=3, group_size=16)
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, before[name])
    layers = linear_layers(quantized.model)
    assert set(quantized.tensors) == set(layers)
    for name, layer in linear_layers(model).items():
        alone = qviz.quantize(layer.weight, "affine", bits=3, group_size=16)
        assert torch.equal(layers[name].weight, alone.dequantize())
        assert torch.equal(quantized.tensors[name].codes, alone.codes)
        assert not torch.equal(layers[name].weight, layer.weight)
    changed = {id(layer.module.weight) for layer in layers.values()}
    for name, parameter in quantized.model.model.named_parameters():
        if id(parameter) not in changed:
            assert torch.equal(parameter, before[name])


def test_tied_weights_stay_tied(loaded):
    quantized = quantize_model(loaded["llama"], bits=2, group_size=16)
    model = quantized.model.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, loaded["llama"].model.lm_head.weight)
    assert "tied" in quantized.skipped["lm_head"]


def test_the_quantized_model_runs_with_its_weights(loaded, words):
    fine = qviz.perplexity(loaded["llama"], words, max_tokens=200).nll_per_token
    eight = quantize_model(loaded["llama"], bits=8, group_size=16)
    assert qviz.perplexity(eight.model, words, max_tokens=200).nll_per_token == pytest.approx(
        fine, rel=0.05
    )


def test_the_bill(loaded):
    quantized = quantize_model(loaded["llama"], bits=4, group_size=16, scale_dtype=torch.float16)
    assert quantized.bits_per_weight == pytest.approx(5.0)
    weights = sum(x.in_features * x.out_features for x in linear_layers(loaded["llama"]).values())
    every = sum(p.numel() for p in loaded["llama"].model.parameters())
    assert quantized.nbytes() == weights * 5 // 8 + (every - weights) * 2


def test_chosen_layers(loaded):
    quantized = quantize_model(loaded["llama"], layers=["layers.0.mlp.up_proj"], group_size=16)
    assert list(quantized.tensors) == ["model.layers.0.mlp.up_proj"]
    assert quantized.skipped["model.layers.1.mlp.up_proj"] == "not among the requested layers"
    with pytest.raises(ValueError, match="lm_head cannot be used: "):
        quantize_model(loaded["llama"], layers=["lm_head"], group_size=16)


def test_an_untied_head_is_quantized_only_by_name(loaded):
    module = copy.deepcopy(loaded["llama"].model)
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())
    model = replace(loaded["llama"], model=module)
    quantized = quantize_model(model, group_size=16)
    assert "16 bits" in quantized.skipped["lm_head"]
    assert list(quantize_model(model, layers=["lm_head"], group_size=16).tensors) == ["lm_head"]


def test_a_group_size_that_does_not_fit_is_an_error_or_a_reason(loaded):
    """32 divides the hidden size of 32, not the intermediate size of 48."""
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.down_proj.*32"):
        quantize_model(loaded["llama"], group_size=32)
    quantized = quantize_model(loaded["llama"], group_size=32, on_error="skip")
    assert len(quantized.tensors) == 12
    assert "32" in quantized.skipped["model.layers.0.mlp.down_proj"]
    with pytest.raises(ValueError, match="q_proj"):
        quantize_model(loaded["llama"], group_size=17, on_error="skip")  # nothing fits


def test_what_is_asked_is_checked(loaded):
    with pytest.raises(ValueError, match="unknown method"):
        quantize_model(loaded["llama"], "gptqq")
    with pytest.raises(ValueError, match="on_error"):
        quantize_model(loaded["llama"], on_error="ignore")
    with pytest.raises(TypeError, match="unknown option"):
        quantize_model(loaded["llama"], on_error="skip", group_sise=16)


def test_progress(loaded):
    steps = []
    quantize_model(loaded["bert"], group_size=16, progress=lambda *s: steps.append(s))
    assert steps == [(i + 1, 13) for i in range(13)]


def test_a_layer_that_multiplies_quantized_is_not_quantized_again(loaded):
    """Its product would not look at a new weight."""
    up = ["layers.0.mlp.up_proj"]
    made = quantize_model(loaded["llama"], "llm_int8", layers=up).model
    with pytest.raises(ValueError, match=r"up_proj already multiplies quantized.*as loaded"):
        quantize_model(made, bits=2, group_size=16)
    rest = quantize_model(made, bits=8, layers=["layers.0.mlp.gate_proj"], group_size=16)
    assert list(rest.tensors) == ["model.layers.0.mlp.gate_proj"]


def test_layers_may_have_options_of_their_own(loaded):
    own = {"model.layers.1.mlp.up_proj": {"bits": 8}, "model.layers.0.mlp.up_proj": {}}
    made = quantize_model(loaded["llama"], bits=3, group_size=16, per_layer=own)
    bits = {name: tensor.grid.bits for name, tensor in made.tensors.items()}
    assert bits.pop("model.layers.1.mlp.up_proj") == 8
    assert set(bits.values()) == {3}
    with pytest.raises(ValueError, match=r"unknown layer in per_layer 'up_proj'"):
        quantize_model(loaded["llama"], group_size=16, per_layer={"up_proj": {"bits": 8}})
    with pytest.raises(TypeError, match="unknown option for affine 'bitz'"):
        quantize_model(
            loaded["llama"], group_size=16, per_layer={"model.layers.1.mlp.up_proj": {"bitz": 8}}
        )
    with pytest.raises(ValueError, match="fold=False"):
        quantize_model(loaded["llama"], "awq", per_layer=own)


def test_a_model_takes_the_mix_of_a_gguf_file():
    """Types layer by layer as the rules say, weighted by the real inputs."""
    model = qviz.load_model()
    seen = qviz.capture(model, "def f(x):\n    return x + 1\n" * 40, max_tokens=256)
    types = layer_types(model.config.to_dict(), "Q4_K_M")
    own = {
        name: {"type": kind, "importance": seen[name].hessian.diagonal() / 2}
        for name, kind in types.items()
    }
    made = quantize_model(model, "gguf", per_layer=own)
    assert {name: tensor.info["type"] for name, tensor in made.tensors.items()} == types
    assert {"Q4_K", "Q6_K"} <= set(types.values())
    plain = quantize_model(model, "gguf", type="Q4_K")
    assert made.bits_per_weight > plain.bits_per_weight == 4.5
