"""Queries, keys and values of a real layer, and what quantizing them does to its attention."""

import pytest
import torch

import qviz
from qviz.methods.kv_cache import KiviCache, kv_cache
from qviz.models.attention import AttentionStates, capture_attention
from qviz.models.layers import LoadedModel


def output_of_attention(model: LoadedModel, text: str, layer: int) -> torch.Tensor:
    """What the model itself gives to o_proj [heads, tokens, width]."""
    module, seen = model.model.model.layers[layer].self_attn, []
    handle = module.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.model(input_ids=torch.tensor([model.tokenizer(text)["input_ids"]]))
    handle.remove()
    return seen[0][0].unflatten(-1, (-1, module.head_dim)).transpose(0, 1)


@pytest.fixture(scope="module")
def bundled() -> list[AttentionStates]:
    model = qviz.load_model()
    from qviz.models.texts import evaluation_texts

    text = "\n".join(t.text for t in evaluation_texts().values())
    return [capture_attention(model, text, layer, max_tokens=256) for layer in range(4)]


@pytest.mark.parametrize("layer", [0, 1])
def test_the_attention_is_the_models_own(loaded, words, layer):
    model, text = loaded["llama"], words[:80]
    states = capture_attention(model, text, layer)
    assert states.queries.shape == (4, 80, 8)
    assert states.keys.shape == states.values.shape == (80, 16)
    assert states.kv_heads == 2
    own = output_of_attention(model, text, layer)
    torch.testing.assert_close(states.outputs(), own, rtol=1e-4, atol=1e-5)


def test_keys_and_values_are_those_of_the_models_cache(loaded, words):
    model, text = loaded["llama"], words[:40]
    with torch.no_grad():
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        cached = model.model(input_ids=ids, use_cache=True).past_key_values.layers[1]
    states = capture_attention(model, text, 1)
    torch.testing.assert_close(states.keys, cached.keys[0].transpose(0, 1).flatten(1))
    torch.testing.assert_close(states.values, cached.values[0].transpose(0, 1).flatten(1))


def test_no_hook_remains(loaded, words):
    model = loaded["llama"]
    capture_attention(model, words[:10])
    module = model.model.model.layers[0].self_attn
    assert not module._forward_pre_hooks
    module.q_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            capture_attention(model, words[:10])
    finally:
        module.q_proj._forward_pre_hooks.clear()
    assert not module._forward_pre_hooks


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_keys_want_scales_per_channel(bundled, bits):
    """On every layer of a real model, at every width: KIVI's choice for keys."""
    for states in bundled:
        per_channel = kv_cache(states.keys, bits=bits, kind_of="keys").dequantize()
        per_token = kv_cache(states.keys, bits=bits, kind_of="values").dequantize()
        assert states.error(keys=per_channel) < 0.9 * states.error(keys=per_token)


def test_more_bits_lose_less(bundled):
    for states in bundled:
        errors = []
        for bits in (2, 4, 8):
            k = kv_cache(states.keys, bits=bits, kind_of="keys").dequantize()
            v = kv_cache(states.values, bits=bits, kind_of="values").dequantize()
            errors.append(states.error(k, v))
        assert errors[0] < 0.6
        assert errors[1] < errors[0] / 4
        assert errors[2] < errors[1] / 10
        assert states.error() == 0


def test_eight_bits_of_the_serving_systems(bundled):
    for states in bundled:
        for scheme, most in (("token_int8", 0.015), ("fp8", 0.06)):
            k, v = (kv_cache(x, scheme=scheme).dequantize() for x in (states.keys, states.values))
            assert states.error(k, v) < most


def test_a_cache_that_grows_attends_as_the_model_does(bundled):
    """The last token's attention through KiviCache beside the exact one."""
    states = bundled[1]
    cache = KiviCache(heads=states.kv_heads, bits=8, residual=64, dtype=torch.float32)
    cache.prefill(states.keys[:-1], states.values[:-1])
    out = cache.decode(states.queries[:, -1], states.keys[-1:], states.values[-1:])
    exact = states.outputs()[:, -1]
    assert (out - exact).norm() < 0.01 * exact.norm()
    bare = KiviCache(heads=states.kv_heads, residual=512, dtype=torch.float32)
    bare.prefill(states.keys, states.values)  # nothing is old yet
    torch.testing.assert_close(bare.attend(states.queries[:, -1]), exact, rtol=1e-4, atol=1e-5)


def test_what_is_asked_is_checked(loaded, words):
    for kind in ("gpt2", "bert"):
        with pytest.raises(ValueError, match="captured in llama"):
            capture_attention(loaded[kind], words)
    with pytest.raises(ValueError, match="layer must be from 0 to 1"):
        capture_attention(loaded["llama"], words, 2)
    with pytest.raises(TypeError, match="load the model first"):
        capture_attention("bundled", words)
    assert capture_attention(loaded["llama"], words, max_tokens=7).keys.shape == (7, 16)


def test_what_would_not_be_the_models_attention_is_refused(loaded, words):
    states = capture_attention(loaded["llama"], words[:40])
    twice = torch.cat([states.values, states.values])
    with pytest.raises(ValueError, match=r"\[40, 16\].*got \[80, 16\]"):
        states.outputs(values=twice)
    module = loaded["llama"].model.model.layers[0].self_attn
    module.sliding_window = 16
    try:
        with pytest.raises(ValueError, match="use max_tokens=16"):
            capture_attention(loaded["llama"], words[:40])
        assert len(capture_attention(loaded["llama"], words[:40], max_tokens=16).keys) == 16
    finally:
        del module.sliding_window
