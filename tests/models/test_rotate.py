"""Rotating a model: the function stays, to rounding; the weights become what the paper says."""

import copy
from dataclasses import replace

import pytest
import torch

import qviz
from qviz.core.hadamard import hadamard_matrix
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.load import load_model
from qviz.models.rotate import rotate_model

OPTIONS = [{}, {"heads": False}, {"online": True}, {"heads": False, "online": True}]


@pytest.fixture
def float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes RMSNorm in float32 whatever comes in, which would hide what is tested:
    for these tests it computes in the dtype of its input."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self, x):
        size = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x * size)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def logits(model: LoadedModel, words: str, count: int = 100) -> torch.Tensor:
    ids = torch.tensor([model.tokenizer(words)["input_ids"][:count]])
    with torch.no_grad():
        return model.model(input_ids=ids).logits


def change(model: LoadedModel, other: LoadedModel, words: str) -> float:
    """The largest change of a logit, relative to the largest logit."""
    before, after = logits(model, words), logits(other, words)
    return float((before - after).abs().max() / before.abs().max())


def with_everything(checkpoint) -> LoadedModel:
    """The tiny Llama in float64, with weights in its norms and biases in its attention."""
    from transformers import LlamaForCausalLM

    model = load_model(checkpoint, dtype=torch.float64)
    config = copy.deepcopy(model.config)
    config.attention_bias = config.mlp_bias = True
    torch.manual_seed(3)
    module = LlamaForCausalLM(config).double().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    return replace(model, model=module.eval())


@pytest.mark.usefixtures("float64_norms")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_output_stays_in_float64(checkpoints, words, options):
    model = with_everything(checkpoints["llama"])
    rotated = rotate_model(model, seed=4, **options)
    assert change(model, rotated.model, words) < 1e-12
    # and the test can fail: without one of the steps the output is another
    broken = copy.deepcopy(rotated.model.model)
    broken.model.layers[0].mlp.down_proj.weight.copy_(
        model.model.model.layers[0].mlp.down_proj.weight
    )
    assert change(model, replace(model, model=broken), words) > 1e-3


@pytest.mark.usefixtures("float64_norms")
def test_the_bundled_model_in_float64():
    model = load_model(dtype=torch.float64)
    rotated = rotate_model(model, online=True)
    text = "def read(path):\n    with open(path) as f:\n        return f.read()\n" * 5
    assert change(model, rotated.model, text) < 1e-12


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_output_stays_in_float32(loaded, words, options):
    rotated = rotate_model(loaded["llama"], **options)
    assert change(loaded["llama"], rotated.model, words) < 1e-4
    assert {p.dtype for p in rotated.model.model.parameters()} == {torch.float32}


def test_the_original_stays_as_it_was(loaded):
    model = loaded["llama"]
    before = copy.deepcopy(model.model.state_dict())
    rotate_model(model, online=True)
    assert model.model.lm_head.weight is model.model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not list(model.model.model.layers[0].mlp.down_proj.named_children())


def test_every_weight_is_what_the_paper_says(checkpoints):
    model = with_everything(checkpoints["llama"])
    rotated = rotate_model(model, seed=9, online=True)
    signs = rotated.rotation.signs.double()
    q = torch.diag(signs) @ hadamard_matrix(32).double().T / 32**0.5
    old, new = (dict(m.model.named_parameters()) for m in (model, rotated.model))
    block = "model.layers.1."

    def was(name):
        return old[f"{block}{name}"]

    def now(name):
        return new[f"{block}{name}"]

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    gamma, after = was("input_layernorm.weight"), was("post_attention_layernorm.weight")
    for name in ("q_proj", "k_proj"):
        close(now(f"self_attn.{name}.weight"), was(f"self_attn.{name}.weight") * gamma @ q)
        close(now(f"self_attn.{name}.bias"), was(f"self_attn.{name}.bias"))
    for name in ("gate_proj", "up_proj"):
        close(now(f"mlp.{name}.weight"), was(f"mlp.{name}.weight") * after @ q)
    eight = hadamard_matrix(8).double() / 8**0.5
    of_values = torch.block_diag(eight, eight)
    close(now("self_attn.v_proj.weight"), of_values @ (was("self_attn.v_proj.weight") * gamma @ q))
    close(now("self_attn.v_proj.bias"), of_values @ was("self_attn.v_proj.bias"))
    # per head and across the heads together are one Hadamard matrix of all inputs
    whole = hadamard_matrix(32).double() / 32**0.5
    close(now("self_attn.o_proj.weight"), q.T @ was("self_attn.o_proj.weight") @ whole.T)
    close(now("self_attn.o_proj.bias"), q.T @ was("self_attn.o_proj.bias"))
    inner = hadamard_matrix(48).double() / 48**0.5
    close(now("mlp.down_proj.weight"), q.T @ was("mlp.down_proj.weight") @ inner.T)
    close(new["model.embed_tokens.weight"], old["model.embed_tokens.weight"] @ q)
    close(new["lm_head.weight"], old["lm_head.weight" if "lm_head.weight" in old
                                     else "model.embed_tokens.weight"]
          * old["model.norm.weight"] @ q)  # fmt: skip
    for name, parameter in new.items():
        if "norm" in name:
            assert (parameter == 1).all()
    # everything that changed is in the list, and nothing else
    changed = {n for n, p in new.items() if n not in old or not torch.equal(p, old[n])}
    assert {n for n in changed if n.endswith("weight")} == set(rotated.steps)


def test_tied_embeddings_are_untied(loaded):
    rotated = rotate_model(loaded["llama"])
    module = rotated.model.model
    assert module.lm_head.weight is not module.model.embed_tokens.weight
    assert not module.config.tie_word_embeddings
    assert "no longer shared" in rotated.steps["lm_head.weight"]
    assert "lm_head" in linear_layers(rotated.model)


def test_a_rotated_model_can_be_saved(loaded, words, tmp_path):
    rotated = rotate_model(loaded["llama"])
    rotated.model.model.save_pretrained(tmp_path)
    rotated.model.tokenizer.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path), words), logits(rotated.model, words))


def test_what_runs_online_is_said_and_seen(loaded, words):
    rotated = rotate_model(loaded["llama"], online=True)
    assert set(rotated.online) == {
        f"model.layers.{i}.{name}"
        for i in range(2)
        for name in ("mlp.down_proj", "self_attn.o_proj")
    }
    assert rotate_model(loaded["llama"]).online == {}
    assert "OnlineHadamard(across 4 heads)" in repr(rotated.model.model)
    # what calibration sees is what the weight multiplies: rotated inputs
    name = "model.layers.0.mlp.down_proj"
    plain = qviz.capture(rotate_model(loaded["llama"]).model, words, [name], max_tokens=64)[name]
    seen = qviz.capture(rotated.model, words, [name], max_tokens=64)[name]
    h = hadamard_matrix(48).float() / 48**0.5
    torch.testing.assert_close(seen.inputs, plain.inputs @ h.T, rtol=1e-3, atol=1e-4)
    # the same names as before, so that everything that takes layers takes these
    assert set(linear_layers(rotated.model)) == {*linear_layers(loaded["llama"]), "lm_head"}


@pytest.mark.parametrize("options", [{}, {"online": True}], ids=str)
def test_a_rotated_model_quantizes_as_any(loaded, words, options):
    rotated = rotate_model(loaded["llama"], **options).model
    quantized = qviz.quantize_model(rotated, bits=8, group_size=16)
    assert "16 bits" in quantized.skipped["lm_head"]
    four = qviz.quantize_model(rotated, bits=4, group_size=16)
    eight_bits, four_bits = (change(rotated, q.model, words) for q in (quantized, four))
    assert 0 < eight_bits < 0.1  # a random model is sensitive
    assert eight_bits < four_bits / 3


def test_outliers_in_channels_of_the_hidden_state_are_spread(checkpoints, words):
    """A model whose hidden state has a large channel, as large models have, keeps its output
    through 4-bit rounding better when it is rotated."""
    model = load_model(checkpoints["llama"])
    with torch.no_grad():  # the same function: γ takes out what the weights take in
        for block in model.model.model.layers:
            for norm, linears in (
                (block.input_layernorm, (block.self_attn.q_proj, block.self_attn.k_proj,
                                         block.self_attn.v_proj)),
                (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
            ):  # fmt: skip
                norm.weight[5] /= 30
                for linear in linears:
                    linear.weight[:, 5] *= 30
    options = {"bits": 4, "granularity": "channel"}
    plain = qviz.quantize_model(model, **options).model
    rotated = rotate_model(model).model
    turned = qviz.quantize_model(rotated, **options).model
    assert change(model, turned, words) < 0.7 * change(model, plain, words)


def test_what_cannot_be_rotated_says_why(loaded):
    for kind, says in (
        ("gpt2", r"\(gpt2\) is a decoder.*llama, mistral"),
        ("bert", r"\(bert\) is an encoder"),
    ):
        with pytest.raises(ValueError, match=says):
            rotate_model(loaded[kind])
    with pytest.raises(TypeError, match="load the model first"):
        rotate_model("bundled")
    with pytest.raises(ValueError, match="seed must be from 0"):
        rotate_model(loaded["llama"], seed=-1)


@pytest.mark.parametrize(
    ("sizes", "options", "says"),
    [
        ({"hidden_size": 36, "head_dim": 6, "num_attention_heads": 6, "num_key_value_heads": 6},
         {}, "head width of 6.*take heads=False"),
        ({"hidden_size": 30, "head_dim": 4, "num_attention_heads": 6, "num_key_value_heads": 6},
         {}, "hidden size of 30.*one by one"),
        ({"intermediate_size": 50}, {"online": True}, "intermediate size of 50.*online=False"),
        ({"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8},
         {"online": True}, "number of heads of 6.*online=False"),
    ],
)  # fmt: skip
def test_sizes_without_a_hadamard_matrix(loaded, sizes, options, says):
    from transformers import LlamaConfig, LlamaForCausalLM

    base = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 50}  # fmt: skip
    module = LlamaForCausalLM(LlamaConfig(**(base | sizes))).requires_grad_(False).eval()
    model = replace(loaded["llama"], model=module)
    with pytest.raises(ValueError, match=says):
        rotate_model(model, **options)
    if "head width" in says:
        assert rotate_model(model, heads=False).steps


def test_layers_that_multiply_quantized_keep_their_online_rotation(loaded, words):
    rotated = rotate_model(loaded["llama"], online=True).model
    fine = qviz.perplexity(loaded["llama"], words, max_tokens=100).nll_per_token
    made = qviz.quantize_model(rotated, "llm_int8").model
    assert qviz.perplexity(made, words, max_tokens=100).nll_per_token == pytest.approx(
        fine, rel=0.02
    )
    with pytest.raises(ValueError, match="q_proj already multiplies quantized"):
        rotate_model(made)
