"""File mixes: bits and bytes of three models, and who gets which type."""

import pytest

from qviz.methods.gguf.mixes import (
    FILE_TYPES,
    ModelShape,
    file_bits_per_weight,
    file_bytes,
    fitting_type,
    tensor_type,
    tensor_types,
)


def llama(layers, hidden, intermediate, heads, kv_heads, vocabulary, **more):
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        **more,
    }


LLAMA_2_7B = llama(32, 4096, 11008, 32, 32, 32000)
LLAMA_31_8B = llama(32, 4096, 14336, 32, 8, 128256)
LLAMA_2_70B = llama(80, 8192, 28672, 64, 8, 32000)
MIXTRAL = llama(32, 4096, 14336, 32, 8, 32000, num_local_experts=8)
NAMES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K",
         "Q8_0")  # fmt: skip


# llama.cpp's quantize README lists those of the 8B.
@pytest.mark.parametrize(
    ("config", "bits", "gigabytes"),
    [
        (
            LLAMA_2_7B,
            (3.01, 3.50, 3.91, 4.27, 4.58, 4.84, 5.52, 5.68, 6.56, 8.50),
            (2.5, 2.9, 3.3, 3.6, 3.9, 4.1, 4.7, 4.8, 5.5, 7.2),
        ),
        (
            LLAMA_31_8B,
            (3.16, 3.64, 4.00, 4.30, 4.67, 4.89, 5.57, 5.70, 6.56, 8.50),
            (3.2, 3.7, 4.0, 4.3, 4.7, 4.9, 5.6, 5.7, 6.6, 8.5),
        ),
        (
            LLAMA_2_70B,
            (2.95, 3.47, 3.86, 4.19, 4.55, 4.80, 5.50, 5.65, 6.56, 8.50),
            (25.5, 29.9, 33.3, 36.1, 39.2, 41.4, 47.5, 48.8, 56.6, 73.3),
        ),
    ],
    ids=["7B", "8B", "70B"],
)
def test_what_a_file_costs(config, bits, gigabytes):
    assert tuple(round(file_bits_per_weight(config, name), 2) for name in NAMES) == bits
    assert tuple(round(file_bytes(config, name) / 1e9, 1) for name in NAMES) == gigabytes


def layers_with(types, part, name):
    return [i for i in range(100) if types.get(f"blk.{i}.{part}.weight") == name]


def test_q4_k_m_layer_by_layer():
    types = tensor_types(LLAMA_2_7B, "Q4_K_M")
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert layers_with(types, "attn_v", "Q6_K") == more
    assert layers_with(types, "ffn_down", "Q6_K") == more
    for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert layers_with(types, part, "Q4_K") == list(range(32))
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q4_K"
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("config", "file_type", "part", "expected"),
    [
        (LLAMA_2_7B, "Q3_K_M", "attn_v", {"Q5_K": 2, "Q4_K": 30}),
        (LLAMA_2_7B, "Q3_K_M", "ffn_down", {"Q5_K": 2, "Q4_K": 30}),
        (LLAMA_2_7B, "Q3_K_M", "attn_output", {"Q4_K": 32}),
        (LLAMA_2_7B, "Q4_K_S", "attn_v", {"Q5_K": 4, "Q4_K": 28}),
        (LLAMA_2_7B, "Q2_K", "attn_v", {"Q3_K": 32}),
        (LLAMA_31_8B, "Q2_K", "attn_v", {"Q4_K": 32}),
        (LLAMA_31_8B, "Q2_K_S", "ffn_down", {"Q4_K": 4, "Q2_K": 28}),
        (LLAMA_2_70B, "Q3_K_S", "attn_v", {"Q5_K": 80}),
        (LLAMA_2_70B, "Q4_K_M", "attn_v", {"Q6_K": 40, "Q5_K": 40}),
        (MIXTRAL, "Q4_K_M", "attn_v", {"Q8_0": 32}),
        (MIXTRAL, "Q4_K_M", "attn_k", {"Q8_0": 32}),
        (MIXTRAL, "Q4_K_M", "attn_output", {"Q5_K": 32}),
        (MIXTRAL, "Q4_K_M", "ffn_down_exps", {"Q6_K": 16, "Q4_K": 16}),
        (MIXTRAL, "Q5_K_M", "attn_output", {"Q5_K": 32}),
        (MIXTRAL, "Q4_K_M", "ffn_gate_inp", {"F32": 32}),
    ],
)
def test_who_is_raised(config, file_type, part, expected):
    types = tensor_types(config, file_type)
    found = [types[f"blk.{i}.{part}.weight"] for i in range(config["num_hidden_layers"])]
    assert {name: found.count(name) for name in found} == expected


def test_tied_embeddings_are_the_head():
    config = {**LLAMA_31_8B, "tie_word_embeddings": True}
    types = tensor_types(config, "Q4_K_M")
    assert types["token_embd.weight"] == "Q6_K"
    assert "output.weight" not in types


def test_importance_guards_the_first_down_projections():
    types = tensor_types(LLAMA_2_7B, "Q4_0", importance=True)
    assert layers_with(types, "ffn_down", "Q4_1") == [0, 1, 2, 3]
    assert not layers_with(tensor_types(LLAMA_2_7B, "Q4_0"), "ffn_down", "Q4_1")


def test_rows_that_do_not_fit():
    odd = llama(4, 96, 250, 4, 4, 100)
    types = tensor_types(odd, "Q4_K_M")
    assert types["blk.1.attn_q.weight"] == "Q5_0"
    assert types["blk.3.attn_v.weight"] == "Q8_0"  # Q6_K's fallback
    assert types["blk.0.ffn_down.weight"] == "F16"  # 250 is not a multiple of 32
    assert types["output.weight"] == "Q8_0"
    assert fitting_type("Q8_0", 100) == fitting_type("Q6_K", 100) == "F16"


def test_every_file_type_has_a_size_between_its_base_and_8_bits():
    for name in FILE_TYPES:
        assert 2.5 < file_bits_per_weight(LLAMA_31_8B, name) <= 8.51


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match=r"mean .*Q4_K_M"):
        file_bits_per_weight(LLAMA_2_7B, "Q4_K_N")
    with pytest.raises(ValueError, match=r"lacks hidden_size.*Llama kind"):
        file_bits_per_weight({**LLAMA_2_7B, "hidden_size": None}, "Q4_0")
    with pytest.raises(ValueError, match="file type"):
        tensor_type("output.weight", (32, 32), ModelShape.of(LLAMA_2_7B), "Q9")
