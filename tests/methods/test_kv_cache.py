"""KV cache: groups of each part, streaming beside one shot, memory, errors, trace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qviz
from qviz.methods.kv_cache import EVENTS, KiviCache, attention, kivi_words, kv_cache


def states(tokens: int, channels: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys with two large channels, as models have them, and values."""
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(tokens, channels, generator=g)
    keys[:, [3, 20]] += torch.tensor([12.0, -9.0])
    return keys, torch.randn(tokens, channels, generator=g)


@settings(max_examples=40)
@given(
    bits=st.integers(2, 8),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([1, 8, 32]),
    part=st.sampled_from(["keys", "values"]),
    seed=st.integers(0, 99),
)
def test_every_number_is_within_half_a_step(bits, groups, group_size, part, seed):
    shape = (groups * group_size, 24) if part == "keys" else (24, groups * group_size)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + seed
    before = x.clone()
    q = kv_cache(x, bits=bits, kind_of=part, group_size=group_size, scale_dtype=torch.float32)
    assert torch.equal(x, before)
    assert q.codes.shape == x.shape
    assert int(q.codes.max()) < 2**bits
    step = q.grid.scale.repeat_interleave(group_size, dim=1)
    step = step.T if part == "keys" else step
    assert ((x - q.dequantize()).abs() <= step / 2 + 1e-5 * (1 + seed)).all()
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes


def test_keys_share_scales_among_tokens_values_among_channels():
    keys, values = states(96)
    q = kv_cache(keys, kind_of="keys")
    assert q.granularity == qviz.Granularity("group", 32, axis=0)
    assert q.grid.scale.shape == (64, 3)
    assert q.group_of(70, 5) == (5, 2)
    assert len(q.levels(70, 5)) == 4
    assert q.dequantize()[70, 5] in q.levels(70, 5)
    v = kv_cache(values, kind_of="values")
    assert v.granularity == qviz.Granularity("group", 32)
    assert v.grid.scale.shape == (96, 2)
    # transposing turns one into the other
    other = kv_cache(keys.T, kind_of="values")
    assert torch.equal(other.codes.T, q.codes)


def test_a_large_channel_of_keys_needs_groups_along_the_tokens():
    keys, values = states(256)

    def error(x, part):
        return float((kv_cache(x, kind_of=part).dequantize() - x).norm() / x.norm())

    assert error(keys, "keys") < 0.5 * error(keys, "values")
    assert error(values, "values") < 1.1 * error(values, "keys")


def test_what_it_costs():
    keys, _ = states(128)
    assert kv_cache(keys).bits_per_weight == 3.0
    assert kv_cache(keys, bits=4).bits_per_weight == 5.0
    assert kv_cache(keys.bfloat16()).bits_per_weight == 3.0
    assert kv_cache(keys, scheme="token_int8").bits_per_weight == 8 + 16 / 64
    q = kv_cache(keys, scheme="fp8")
    assert q.ledger.total_bits == 8 * keys.numel() + 32
    for q in (kv_cache(keys, bits=3, group_size=8), kv_cache(keys, scheme="fp8")):
        assert sum(map(len, q.pack().values())) == q.ledger.nbytes


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_hold_the_first_code_lowest(bits):
    keys, values = states(64)
    for x, part in ((keys, "keys"), (values, "values")):
        q = kv_cache(x, bits=bits, kind_of=part)
        codes = (q.codes.T if part == "keys" else q.codes).numpy()
        packed = np.packbits(
            np.unpackbits(codes[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(-1),
            bitorder="little",
        )
        assert np.array_equal(kivi_words(q).numpy().view(np.uint8).flatten(), packed)
    with pytest.raises(ValueError, match=r"2, 4 or 8 bits.*pack\(\) takes any"):
        kivi_words(kv_cache(keys, bits=3))
    with pytest.raises(ValueError, match="not 8 codes of 2 bits"):
        kivi_words(kv_cache(keys[:8], group_size=8))
    for other in (kv_cache(keys, scheme="token_int8"), qviz.quantize(keys, "nf4")):
        with pytest.raises(ValueError, match='only keys and values of scheme="kivi"'):
            kivi_words(other)


def test_groups_of_equal_numbers_are_kept_exactly():
    x = torch.full((64, 32), 0.7).half()
    x[:32, 1] = 0
    for part in ("keys", "values"):
        q = kv_cache(x, kind_of=part)
        same = x if part == "keys" else x[32:]
        assert torch.equal(q.dequantize()[-len(same) :], same)
    assert kv_cache(x).info["constant_groups"] == 64
    for scheme in ("token_int8", "fp8"):
        assert (kv_cache(torch.zeros(4, 32), scheme=scheme).dequantize() == 0).all()


@pytest.mark.parametrize("scheme", ["token_int8", "fp8"])
def test_eight_bits_are_close(scheme):
    keys, _ = states(64)
    error = (kv_cache(keys, scheme=scheme).dequantize() - keys).norm() / keys.norm()
    assert 1e-4 < error < 0.03


@pytest.mark.parametrize("options", [{}, {"kind_of": "values"}, {"scheme": "token_int8"},
                                     {"scheme": "fp8"}], ids=str)  # fmt: skip
def test_trace_shows_the_groups_and_changes_nothing(options):
    keys, _ = states(64)
    trace = qviz.Trace()
    traced, plain = kv_cache(keys, emit=trace, **options), kv_cache(keys, **options)
    assert torch.equal(traced.codes, plain.codes)
    assert torch.equal(traced.dequantize(), plain.dequantize())
    skipped = "affine." if options.get("scheme") == "fp8" else "kv_cache.fp8"
    want = [spec.name for spec in EVENTS if not spec.name.startswith(skipped)]
    assert [event.name for event in trace] == want
    groups = trace[0]["groups"]
    assert groups.shape[:2] == traced.grid.groups
    assert torch.equal(groups, traced.granularity.split(keys))


@pytest.mark.parametrize(
    ("x", "options", "says"),
    [
        (torch.randn(40, 64), {}, "32 does not divide the 40 tokens of these keys.*KiviCache"),
        (torch.randn(64, 40), {"kind_of": "values"}, "32 does not divide the 40 channels"),
        (torch.randn(64, 64), {"kind_of": "key"}, '"keys" or "values"'),
        (torch.randn(64, 64), {"scheme": "kvii"}, "mean kivi"),
        (torch.randn(64, 64), {"scheme": "fp8", "bits": 4}, "has 8 bits, got bits=4"),
        (torch.randn(64, 64), {"bits": 1}, "from 2 to 8"),
        (torch.randn(64, 64) * 1e9, {}, "overflow|scale_dtype"),
        (torch.full((64, 64), torch.nan), {"scheme": "fp8"}, "not finite"),
        (torch.full((4, 64), 1e300, dtype=torch.float64), {"scheme": "fp8"}, "beyond float32"),
    ],
)
def test_bad_input_names_the_fix(x, options, says):
    with pytest.raises(ValueError, match=says):
        kv_cache(x, **options)


# The cache as it grows


def same(a: KiviCache, b: KiviCache) -> None:
    assert len(a) == len(b)
    for part in ("keys", "values"):
        assert torch.equal(a.latest(part), b.latest(part))
        old, other = a.quantized(part), b.quantized(part)
        assert (old is None) == (other is None)
        if old is not None and other is not None:
            assert old.shape == other.shape
            assert torch.equal(old.codes, other.codes)
            assert torch.equal(old.grid.scale, other.grid.scale)
            assert torch.equal(old.grid.offset, other.grid.offset)
    assert torch.equal(a.keys(), b.keys())
    assert torch.equal(a.values(), b.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("prompt", "more"), [(0, 70), (20, 12), (31, 1), (32, 33), (75, 60)])
def test_streaming_is_one_shot(prompt, more, dtype):
    """A prompt and tokens one by one leave the same state as all tokens at once."""
    keys, values = states(prompt + more)
    options = {"group_size": 16, "residual": 32, "dtype": dtype}
    streamed, at_once = KiviCache(**options), KiviCache(**options)
    if prompt:
        streamed.prefill(keys[:prompt], values[:prompt])
    for i in range(prompt, prompt + more):
        streamed.append(keys[i : i + 1], values[i : i + 1])
    at_once.prefill(keys, values)
    same(streamed, at_once)
    # and what is quantized is what the function makes of those tokens together
    for part, x in (("keys", keys), ("values", values)):
        old = at_once.quantized(part)
        if old is not None:
            alone = kv_cache(x[: old.shape[0]].to(dtype), kind_of=part, group_size=16)
            assert torch.equal(old.codes, alone.codes)
            assert torch.equal(old.dequantize(), alone.dequantize())
            seen = at_once.keys() if part == "keys" else at_once.values()
            assert torch.equal(seen[: old.shape[0]], alone.dequantize())


@settings(max_examples=25)
@given(tokens=st.integers(1, 200), residual=st.sampled_from([32, 64, 128]))
def test_what_is_old_and_what_is_recent(tokens, residual):
    keys, values = states(tokens, 32)
    cache = KiviCache(residual=residual)
    cache.prefill(keys, values)
    assert len(cache) == tokens
    assert len(cache.latest("keys")) == tokens % residual
    assert len(cache.latest("values")) == min(tokens, residual)
    assert cache.keys().shape == cache.values().shape == (tokens, 32)
    recent = len(cache.latest("values"))
    assert torch.equal(cache.values()[tokens - recent :], values[tokens - recent :].half())
    # the bill: 3 bits for what is old, 16 for what is recent
    numbers = {"keys": tokens % residual, "values": recent}
    bits = sum(32 * (16 * n + 3 * (tokens - n)) for n in numbers.values())
    assert cache.ledger.total_bits == bits
    assert cache.bits_per_number == pytest.approx(bits / (2 * 32 * tokens))
    assert sum(map(len, cache.pack().values())) == cache.ledger.nbytes


def test_a_long_cache_comes_to_three_bits():
    keys, values = states(128 * 64, 32)
    cache = KiviCache()
    cache.prefill(keys, values)
    assert cache.bits_per_number == 3 + 13 * 128 / (2 * len(cache))  # values keep 128 tokens back
    items = {item.name: item.bits for item in cache.ledger.items}
    assert items["keys: codes"] == items["values: codes"] == 2
    assert items["keys: scales"] == items["keys: offsets"] == items["values: latest"] == 16


def test_a_step_sees_the_new_token_before_anything_becomes_old():
    """As in KIVI: the step that fills the residual still attends to it in full precision."""
    keys, values = states(32)
    query = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    cache = KiviCache(heads=2, residual=32)
    cache.prefill(keys[:31], values[:31])
    out = cache.decode(query, keys[31:], values[31:])
    by_head = [x.half().reshape(32, 2, 32).transpose(0, 1) for x in (keys, values)]
    exact = attention(query.unsqueeze(1), *by_head).squeeze(1)
    assert torch.equal(out, exact)
    assert cache.quantized("keys").shape == (32, 64)
    assert len(cache.latest("keys")) == 0
    after = cache.attend(query)
    assert not torch.equal(after, exact)
    cache.decode(query, keys[:1], values[:1])
    assert cache.quantized("values").shape == (1, 64)


def test_attention_is_torch_attention():
    g = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(n, t, 16, generator=g) for n, t in ((4, 7), (2, 12), (2, 12)))
    mask = torch.ones(7, 12, dtype=torch.bool).tril(5)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    want = sdpa(q[None], k[None], v[None], attn_mask=mask, enable_gqa=True)[0]
    torch.testing.assert_close(attention(q, k, v), want, rtol=1e-5, atol=1e-6)
    want = sdpa(q[None], k[None], v[None], scale=0.5, enable_gqa=True)[0]
    torch.testing.assert_close(
        attention(q, k, v, scaling=0.5, causal=False), want, rtol=1e-5, atol=1e-6
    )


def test_attention_of_shapes_that_do_not_fit():
    q, kv = torch.randn(4, 7, 16), torch.randn(2, 12, 16)
    for queries, keys, values in (
        (q[:3], kv, kv),  # 3 heads cannot share 2
        (q[:1], kv, kv),  # nor can 1
        (q, kv[..., :8], kv),
        (q, kv, kv[:, :5]),
        (q[0], kv, kv),
    ):
        with pytest.raises(ValueError, match="kv heads that divide the heads"):
            attention(queries, keys, values)
    with pytest.raises(ValueError, match="7 queries see only 5 tokens"):
        attention(q, kv[:, :5], kv[:, :5])
    assert torch.isfinite(attention(q, kv[:, :5], kv[:, :5], causal=False)).all()
    assert torch.isfinite(attention(q[:, :5], kv[:, :5], kv[:, :5])).all()


def test_inputs_of_the_cache_stay_as_they_were():
    keys, values = states(40)
    before = keys.clone(), values.clone()
    cache = KiviCache(residual=32, dtype=torch.float32)
    cache.prefill(keys[:10], values[:10])
    cache.append(keys[10:], values[10:])
    cache.latest("keys").zero_()
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


def test_what_the_cache_is_asked_is_checked():
    keys, values = states(8)
    cache = KiviCache(heads=2)
    for call in (cache.keys, cache.pack, lambda: cache.ledger, lambda: cache.latest("keys")):
        with pytest.raises(ValueError, match="empty; give it tokens"):
            call()
    assert len(cache) == 0
    cache.prefill(keys, values)
    for call, says in (
        (lambda: cache.prefill(keys, values), "use append"),
        (lambda: cache.append(keys, values[:2]), "one shape"),
        (lambda: cache.append(keys[:, :40], values[:, :40]), "divides the width"),
        (lambda: cache.append(torch.cat([keys, keys], 1), torch.cat([keys, keys], 1)), "has 64"),
        (lambda: cache.append(keys * 1e6, values), "keys overflow float16.*bfloat16"),
        (lambda: cache.append(keys * torch.nan, values), "keys has .* not finite"),
        (lambda: cache.attend(torch.randn(3, 32)), "a multiple of 2 heads, 32"),
        (lambda: cache.attend(torch.randn(4, 64)), "a multiple of 2 heads, 32"),
        (lambda: cache.decode(torch.randn(3, 32), keys[:1], values[:1]), "multiple of 2 heads"),
        (lambda: KiviCache(residual=100), "multiple of group_size"),
        (lambda: KiviCache(bits=9), "from 2 to 8"),
        (lambda: KiviCache(group_size=-1), "a growing cache"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
        assert len(cache) == 8
    with pytest.raises(TypeError, match="dtype must be one of"):
        KiviCache(dtype=torch.int8)
    for options in ({"bits": 8.0, "scheme": "fp8"}, {"group_size": 32.0}):
        with pytest.raises(TypeError, match="must be an integer"):
            kv_cache(torch.randn(64, 64), **options)
