"""Folding: the model computes the same, wrong guesses are refused, factors are shared."""

import copy
from dataclasses import replace

import pytest
import torch

import qviz
from qviz.core.linear import QuantizedLinear
from qviz.core.transform import InputScale
from qviz.methods.awq import search
from qviz.models.fold import Feed, feeds, fold_input_scales, transforms
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.rotate import rotate_model


def in_float64(model):
    return replace(model, model=copy.deepcopy(model.model).double())


def logits(model, ids=None):
    ids = torch.arange(5, 45).reshape(2, 20) if ids is None else ids
    with torch.no_grad():
        out = model.model(input_ids=ids)
    return (out.logits if "logits" in out else out.last_hidden_state).double()


def random_scales(model, found, seed=0):
    g = torch.Generator().manual_seed(seed)
    layers = linear_layers(model)
    return {
        feed: torch.exp(torch.randn(layers[feed.linears[0]].in_features, generator=g))
        for feed in found
    }


def tiny(config_class, model_class, **options):
    import transformers

    torch.manual_seed(3)
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 260,
        "max_position_embeddings": 128, "initializer_range": 0.3,
        "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    config = getattr(transformers, config_class)(**sizes | options)
    module = getattr(transformers, model_class)(config).eval().requires_grad_(False)
    return LoadedModel(module, None, model_class, "decoder")


OTHERS = {
    "llama, all heads": lambda: tiny("LlamaConfig", "LlamaForCausalLM", attention_bias=True,
                                     mlp_bias=True),
    "qwen2": lambda: tiny("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": lambda: tiny("Qwen3Config", "Qwen3ForCausalLM", head_dim=8),
    "mistral": lambda: tiny("MistralConfig", "MistralForCausalLM"),
    "phi3": lambda: tiny("Phi3Config", "Phi3ForCausalLM"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", *OTHERS])
def test_the_model_computes_the_same(loaded, kind):
    model = OTHERS[kind]() if kind in OTHERS else loaded[kind]
    found = feeds(model)
    for typed, within in ((model, 1e-5), (in_float64(model), 1e-9)):
        before = copy.deepcopy(typed.model.state_dict())
        folded = fold_input_scales(typed, random_scales(typed, found))
        want, got = logits(typed), logits(folded)
        assert (want - got).norm() <= within * want.norm()
        for name, value in typed.model.state_dict().items():
            assert torch.equal(value, before[name]), "the model given stays as it is"
        for feed in found:  # and yet every layer named has changed
            for name in (f"{feed.source}.weight", *(f"{one}.weight" for one in feed.linears)):
                assert not torch.equal(folded.model.state_dict()[name], before[name])


def test_what_feeds_what(loaded):
    names = {kind: [(f.into, f.source) for f in feeds(loaded[kind])] for kind in loaded}
    # two heads share each value here, so o_proj cannot be fed by v_proj
    assert names["llama"][:3] == [
        ("norm", "model.layers.0.input_layernorm"),
        ("norm", "model.layers.0.post_attention_layernorm"),
        ("linear", "model.layers.0.mlp.up_proj"),
    ]
    assert len(names["llama"]) == 6
    assert [f.source for f in feeds(OTHERS["llama, all heads"]())][1].endswith("v_proj")
    assert all(source.endswith(("ln_1", "ln_2")) for _, source in names["gpt2"])
    # BERT's norms also feed the sum bypasses the next layer
    assert {into for into, _ in names["bert"]} == {"linear"}
    assert feeds(loaded["llama"], frozenset({"linear"}))[0].linears == (
        "model.layers.0.mlp.down_proj",
    )


def test_unknown_wiring_is_refused(loaded):
    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 4)

    strange = LoadedModel(Other(), None, "strange", "decoder")
    with pytest.raises(ValueError, match=r"strange \(Other\) has no blocks.*Llama.*fold=False"):
        feeds(strange)
    with pytest.raises(ValueError, match=r"bypasses the next layer.*fold=False"):
        feeds(loaded["bert"], frozenset({"norm"}))
    gemma = tiny("GemmaConfig", "GemmaForCausalLM", head_dim=8)  # multiplies by 1 + weight
    with pytest.raises(ValueError, match=r"GemmaRMSNorm.*does not simply multiply by its weight"):
        fold_input_scales(gemma, random_scales(gemma, feeds(gemma)))
    for kind in (
        "BitNet",
        "DiffLlama",
        "Doge",
    ):  # a value meets a norm or another reader
        other = tiny(f"{kind}Config", f"{kind}ForCausalLM")
        with pytest.raises(ValueError, match="no blocks whose wiring is known"):
            feeds(other)
    rotated = rotate_model(tiny("LlamaConfig", "LlamaForCausalLM"), online=True)
    with pytest.raises(ValueError, match="no blocks whose wiring is known"):
        feeds(rotated.model)  # up's outputs are mixed before they are down's inputs
    olmo = tiny("OlmoConfig", "OlmoForCausalLM")  # norms without a weight
    with pytest.raises(ValueError, match="no blocks whose wiring is known"):
        feeds(olmo)
    gemma2 = tiny("Gemma2Config", "Gemma2ForCausalLM", head_dim=8)  # four norms in a block
    with pytest.raises(ValueError, match="no blocks whose wiring is known"):
        feeds(gemma2)


def test_bad_factors_are_refused(loaded):
    feed = feeds(loaded["llama"])[0]
    for scale, says in (
        (torch.ones(31), r"32 inputs.*\(31,\)"),
        (torch.zeros(32), "above 0"),
        (torch.full((32,), torch.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=says):
            fold_input_scales(loaded["llama"], {feed: scale})
    with pytest.raises(ValueError, match="no linear layer nowhere"):
        fold_input_scales(loaded["llama"], {Feed("x", "norm", ("nowhere",)): torch.ones(32)})


def test_transforms_are_what_folding_does_to_the_weights(loaded):
    model = OTHERS["phi3"]()
    scales = random_scales(model, feeds(model))
    before, after = linear_layers(model), linear_layers(fold_input_scales(model, scales))
    changed = transforms(model, scales)
    for name, layer in before.items():
        want = changed[name].apply(layer.weight) if name in changed else layer.weight
        torch.testing.assert_close(after[name].weight, want)
    fused = changed["model.layers.0.mlp.gate_up_proj"]
    assert torch.equal(fused.outputs[:48], torch.ones(48))  # the gate is not divided


@pytest.fixture(scope="module")
def captured(loaded, words):
    return {kind: qviz.capture(loaded[kind], words, max_tokens=256) for kind in loaded}


def test_awq_on_a_model_is_its_search_folded_and_rounded(loaded, captured):
    model, calibration = loaded["llama"], captured["llama"]
    options = {"bits": 4, "group_size": 16}
    quantized = qviz.quantize_model(model, "awq", calibration=calibration, **options)
    layers, after = linear_layers(model), linear_layers(quantized.model)
    block = "model.layers.1"
    parts = [f"{block}.self_attn.{p}_proj" for p in "qkv"]
    shared = search([layers[p].weight for p in parts], calibration[parts[0]], **options).scale
    for name in parts:
        assert torch.equal(quantized.tensors[name].transform.scale, shared)
    norm = quantized.model.model.get_submodule(f"{block}.input_layernorm").weight
    torch.testing.assert_close(
        norm, model.model.get_submodule(f"{block}.input_layernorm").weight / shared
    )
    # up is scaled on both sides: its inputs with gate, its outputs for down
    up, down = (quantized.tensors[f"{block}.mlp.{p}_proj"].transform for p in ("up", "down"))
    assert torch.equal(up.outputs, down.scale)
    # nothing can take up factors of o_proj where heads share values
    assert torch.equal(
        quantized.tensors[f"{block}.self_attn.o_proj"].transform.scale, torch.ones(32)
    )
    for name, q in quantized.tensors.items():
        assert torch.equal(after[name].weight, q.folded().dequantize())
        error = (q.dequantize() - layers[name].weight).norm() / layers[name].weight.norm()
        assert error < 0.2, "in the coordinates of the model given"
    # so the folded model computes what these reconstructions compute unfolded
    plain = copy.deepcopy(model.model)
    for name, q in quantized.tensors.items():
        plain.get_submodule(name).weight.copy_(q.dequantize())
    want, got = logits(replace(model, model=plain)), logits(quantized.model)
    assert (want - got).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_unfolded_factors_are_each_layers_own_and_are_paid_for(loaded, captured, method):
    model, calibration = loaded["bert"], captured["bert"]
    options = {"group_size": 16} if method == "awq" else {}
    made = qviz.quantize_model(model, method, calibration=calibration, fold=False,
                               on_error="skip", **options)  # fmt: skip
    name = "encoder.layer.0.intermediate.dense"
    alone = qviz.quantize(linear_layers(model)[name].weight, method, calibration[name], **options)
    q = made.tensors[name]
    assert torch.equal(q.dequantize(), alone.dequantize())
    assert q.ledger.total_bits == alone.ledger.total_bits + 32 * 32
    norm = "encoder.layer.0.attention.output.LayerNorm.weight"
    assert torch.equal(made.model.model.state_dict()[norm], model.model.state_dict()[norm])


def test_smoothquant_on_a_model(loaded, captured, words):
    model, calibration = loaded["llama"], captured["llama"]
    made = qviz.quantize_model(model, "smoothquant", calibration=calibration)
    assert all(isinstance(q, QuantizedLinear) for q in made.tensors.values())
    down = made.tensors["model.layers.0.mlp.down_proj"].weight.transform  # no norm before it
    assert torch.equal(down.scale, torch.ones(48))
    gate, up = (
        made.tensors[f"model.layers.0.mlp.{p}_proj"].weight.transform for p in ("gate", "up")
    )
    assert torch.equal(gate.scale, up.scale)
    assert not torch.equal(gate.scale, torch.ones(32))
    fine, eight = (qviz.perplexity(m, words, max_tokens=200) for m in (model, made.model))
    assert eight.nll_per_token == pytest.approx(fine.nll_per_token, rel=0.02)
    plain = qviz.quantize_model(model, "smoothquant", calibration=calibration, alpha=None)
    norm = "model.layers.0.input_layernorm.weight"
    assert torch.equal(plain.model.model.state_dict()[norm], model.model.state_dict()[norm])
    with pytest.raises(ValueError, match="bypasses the next layer"):
        qviz.quantize_model(loaded["bert"], "smoothquant", calibration=captured["bert"])


def test_some_layers_of_a_model(loaded, captured):
    """The others of a feed are folded all the same, so the model still computes as it should."""
    model, calibration = loaded["llama"], captured["llama"]
    name = "model.layers.0.self_attn.q_proj"
    made = qviz.quantize_model(
        model, "awq", layers=[name], calibration=calibration, bits=8, group_size=16
    )
    assert list(made.tensors) == [name]
    want, got = logits(model), logits(made.model)
    assert (want - got).norm() <= 0.05 * want.norm()
    key = "model.layers.0.self_attn.k_proj.weight"
    assert not torch.equal(made.model.model.state_dict()[key], model.model.state_dict()[key])


def test_layers_that_do_not_fit_are_left_but_folded(loaded, captured):
    model, calibration = loaded["llama"], captured["llama"]
    with pytest.raises(ValueError, match=r"down_proj.*32 does not divide the 48"):
        qviz.quantize_model(model, "awq", calibration=calibration, group_size=32)
    made = qviz.quantize_model(
        model, "awq", calibration=calibration, bits=8, group_size=32, on_error="skip"
    )
    assert "32 does not divide" in made.skipped["model.layers.0.mlp.down_proj"]
    want, got = logits(model), logits(made.model)
    assert (want - got).norm() <= 0.05 * want.norm()


def test_what_is_asked_of_a_model_is_checked(loaded, captured):
    with pytest.raises(ValueError, match=r"q_proj: awq needs calibration"):
        qviz.quantize_model(loaded["llama"], "awq", group_size=16)
    with pytest.raises(TypeError, match="unknown option"):
        qviz.quantize_model(loaded["llama"], "awq", calibration=captured["llama"], grd="autoawq")
    with pytest.raises(TypeError, match="one layer's"):
        qviz.quantize_model(loaded["llama"], "awq", transform=InputScale(torch.ones(32)))
    one = next(iter(captured["llama"].values()))
    with pytest.raises(TypeError, match=r"all that qviz\.capture.*got Calibration"):
        qviz.quantize_model(loaded["llama"], "gptq", calibration=one, group_size=16)


def test_a_layer_that_nothing_folds_keeps_its_transform():
    q = qviz.quantize(torch.randn(4, 16), group_size=16)
    assert q.unfolded() is q
    scaled = replace(q, transform=InputScale(torch.ones(16)))
    assert scaled.unfolded().transform.folded is False
    assert scaled.folded().transform is None


def test_nothing_is_folded_into_a_layer_that_multiplies_quantized(loaded):
    made = qviz.quantize_model(loaded["llama"], "llm_int8").model
    with pytest.raises(ValueError, match="already multiplies quantized"):
        fold_input_scales(made, random_scales(made, feeds(made)))
