"""Shapes of real models: derived from their configurations, and what people may write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qviz.kernels.shapes import CONFIGS, SHAPES, linear_shapes, parse_shape
from qviz.models.checkpoint import list_layers


def weights(model: str) -> int:
    """Of all linear layers of a model's blocks."""
    shapes = linear_shapes(CONFIGS[model])
    block = sum(out * columns for role, (out, columns) in shapes.items() if role != "lm_head")
    return block * CONFIGS[model]["num_hidden_layers"]


@pytest.mark.parametrize(
    ("model", "billions", "parameters"),
    # Linear weights as counted from the checkpoints' headers, and the published parameter counts,
    # which the embeddings (once more where the head is not tied) and the norms complete.
    [
        ("Llama-3.2-1B", 0.973, 1.24),
        ("Llama-3.1-8B", 6.979, 8.03),
        ("Llama-3.1-70B", 68.45, 70.6),
        ("Qwen2.5-0.5B", 0.358, 0.49),
        ("Qwen2.5-7B", 6.525, 7.62),
        ("Mistral-7B-v0.3", 6.979, 7.25),
    ],
)
def test_shapes_add_up_to_the_model(model, billions, parameters):
    config = CONFIGS[model]
    tables = 1 if config["tie_word_embeddings"] else 2
    embeddings = tables * config["vocab_size"] * config["hidden_size"]
    assert weights(model) / 1e9 == pytest.approx(billions, rel=2e-3)
    assert (weights(model) + embeddings) / 1e9 == pytest.approx(parameters, rel=1e-2)


def test_the_bundled_model_has_the_shapes_of_its_checkpoint():
    found = {layer.name.rpartition(".")[2]: layer.shape for layer in list_layers()}
    assert dict(SHAPES["bundled"]) == found


def test_a_head_has_a_shape_where_it_has_weights():
    assert "lm_head" not in SHAPES["Llama-3.2-1B"]
    assert SHAPES["Llama-3.1-8B"]["lm_head"] == (128256, 4096)


def test_a_configuration_may_give_the_size_of_heads():
    config = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip
    shapes = linear_shapes(config)
    assert (shapes["q_proj"], shapes["k_proj"], shapes["o_proj"]) == (
        (128, 64),
        (64, 64),
        (64, 128),
    )
    with pytest.raises(ValueError, match="lacks intermediate_size, num_key_value_heads"):
        linear_shapes({"hidden_size": 64, "num_attention_heads": 4})


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from("xX×*"))
def test_a_written_shape_is_read(out, columns, sign):
    assert parse_shape(f" {out}{sign}{columns} ") == (out, columns)


def test_layers_are_found_whatever_the_case_of_the_model():
    for model, layers in SHAPES.items():
        for role, shape in layers.items():
            assert parse_shape(f"{model.upper()}:{role}") == shape


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("4096", "a shape is written OUTxIN"),
        ("0x4", "a shape is written OUTxIN"),
        ("4x-4", "a shape is written OUTxIN"),
        ("", "a shape is written OUTxIN"),
        ("Llama-3.1-8:up_proj", "unknown model 'Llama-3.1-8'. Did you mean Llama-3.1-8B"),
        ("Llama-3.1-8B:up", "unknown layer of Llama-3.1-8B 'up'.* up_proj"),
    ],
)
def test_what_is_no_shape_is_said(text, words):
    with pytest.raises(ValueError, match=words):
        parse_shape(text)
