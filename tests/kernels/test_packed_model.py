"""Packed models: the logits of dequantized ones, in less memory, and nothing kept by mistake."""

import copy
import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch
from models.conftest import WORDS, build, save_tokenizer

import qviz
from qviz.core.transform import InputScale
from qviz.kernels import formats, packed_compare, packed_cost, registry
from qviz.kernels.dense import Matmul
from qviz.kernels.kernel import Kernel
from qviz.kernels.packed_compare import compare, compare_logits, compare_texts
from qviz.kernels.packed_cost import memory, random_llama, speed, speeds
from qviz.kernels.packed_linear import PackedLinear
from qviz.kernels.packed_model import pack_model
from qviz.models.layers import LoadedModel
from qviz.models.load import load_model
from qviz.models.rotate import rotate_model

UP = "model.layers.0.mlp.up_proj"
EXACT = {"dtype": torch.float32}


class Single(Matmul):
    """Float32 inputs alone, weights of at most 40 rows, and its outputs a little too large."""

    name = "test.single"
    title = "a kernel that takes little and is not exact"
    dtypes = (torch.float32,)
    devices = ("cpu",)

    def refuses(self, q):
        return None if q.shape[0] <= 40 else f"test.single takes 40 rows, not {q.shape[0]}"

    def product(self, packed, x):
        return super().product(packed, x) * 1.001


class Elsewhere(Matmul):
    name = "test.elsewhere"
    devices = ("cuda",)


@pytest.fixture(autouse=True)
def test_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Kernel] = {**registry.kernels()}
    known |= {kernel.name: kernel for kernel in (Single(), Elsewhere())}
    monkeypatch.setattr(registry, "_all", lambda: known)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, LoadedModel]:
    """Random models in float32, biases included. Tests must leave them as they are."""
    made = {}
    for kind in ("llama", "gpt2", "bert"):
        model, directory = build(kind), tmp_path_factory.mktemp(kind)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(directory)
        save_tokenizer(directory, special=kind == "bert")
        made[kind] = load_model(directory)
    return made


@pytest.fixture(scope="module")
def llama(tiny):
    return qviz.quantize_model(tiny["llama"], bits=4, group_size=16)


def outputs(model: LoadedModel) -> torch.Tensor:
    """What comes out for 3 sequences of 10 tokens."""
    ids = torch.arange(30).reshape(3, 10).to(model.device) + 5
    with torch.no_grad():
        made = model.model(input_ids=ids)
    return made.logits if model.kind == "decoder" else made.last_hidden_state


def layer(model: LoadedModel, name: str = UP) -> PackedLinear:
    return model.model.get_submodule(name)


# ---------------------------------------------------------------------- the same numbers


def test_the_16_bit_product_gives_the_dequantized_logits_bit_for_bit(llama):
    packed = pack_model(llama, "torch.matmul", **EXACT)
    assert torch.equal(outputs(packed.model), outputs(llama.model))
    half = pack_model(llama, "torch.matmul")
    assert half.dtype == torch.bfloat16 == outputs(half.model).dtype
    assert torch.equal(outputs(half.model), outputs(half.reference()))
    assert set(half.kernels.values()) == {"torch.matmul"}
    assert half.kernels.keys() == llama.tensors.keys()
    assert half.skipped == llama.skipped


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_layers_with_biases_and_conv1d(tiny, kind):
    made = qviz.quantize_model(tiny[kind], bits=4, group_size=16)
    packed = pack_model(made, "torch.matmul", **EXACT)
    torch.testing.assert_close(
        outputs(packed.model), outputs(made.model), rtol=1e-4, atol=1e-4
    )  # the bias is added after the product, not in it
    torch.testing.assert_close(outputs(packed.reference()), outputs(made.model))
    assert all(layer(packed.model, name).bias is not None for name in packed.kernels)


def test_columns_in_act_order(tiny):
    seen = qviz.capture(tiny["llama"], WORDS * 12, max_tokens=256)
    options = {"bits": 4, "group_size": 16, "act_order": True}
    made = qviz.quantize_model(tiny["llama"], "gptq", calibration=seen, **options)
    packed = pack_model(made, "torch.matmul", **EXACT)
    here = layer(packed.model)
    assert here.columns is not None and not torch.equal(here.columns, torch.arange(32))
    torch.testing.assert_close(outputs(packed.model), outputs(made.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "options"), [("awq", {"group_size": 16}), ("smoothquant", {})])
def test_factors_that_were_folded_into_the_model(tiny, method, options):
    seen = qviz.capture(tiny["llama"], WORDS * 12, max_tokens=256)
    made = qviz.quantize_model(tiny["llama"], method, calibration=seen, **options)
    q = made.tensors[UP] if method == "awq" else made.tensors[UP].weight
    assert not torch.equal(q.transform.scale, torch.ones(32))
    packed = pack_model(made, "torch.matmul", **EXACT)
    assert layer(packed.model).input_scale is None
    assert torch.equal(outputs(packed.model), outputs(packed.reference()))
    if method == "awq":  # SmoothQuant's own product rounds its inputs, a 16-bit one does not
        assert torch.equal(outputs(packed.model), outputs(made.model))


@pytest.mark.parametrize(("method", "options"), [("awq", {"group_size": 16}), ("smoothquant", {})])
def test_factors_that_no_layer_took_up_run_with_the_layer(tiny, method, options):
    seen = qviz.capture(tiny["llama"], WORDS * 12, max_tokens=256)
    made = qviz.quantize_model(tiny["llama"], method, calibration=seen, fold=False, **options)
    packed = pack_model(made, "torch.matmul", **EXACT)
    assert not torch.equal(layer(packed.model).input_scale, torch.ones(32))
    reference = outputs(packed.reference())
    torch.testing.assert_close(outputs(packed.model), reference, rtol=1e-3, atol=1e-3)
    layer(packed.model).input_scale.mul_(2)  # what a forgotten division would look like
    assert not torch.allclose(outputs(packed.model), reference, rtol=1e-2, atol=1e-2)


def test_inputs_are_divided_and_outputs_multiplied():
    g = torch.Generator().manual_seed(1)
    w, x = torch.randn(8, 32, generator=g), torch.randn(5, 32, generator=g)
    scale, outs = (torch.rand(n, generator=g) + 0.5 for n in (32, 8))
    transform = InputScale(scale, folded=False, outputs=outs)
    q = replace(qviz.quantize(transform.apply(w), group_size=16), transform=transform)
    here = PackedLinear.pack(q, Matmul(), torch.ones(8), dtype=torch.float32)
    torch.testing.assert_close(here(x), x @ q.dequantize().T + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sides", ["input", "both"])
def test_rotated_weights_turn_their_inputs(sides):
    g = torch.Generator().manual_seed(2)
    w, x = torch.randn(8, 32, generator=g), torch.randn(2, 5, 32, generator=g)
    q = qviz.quantize(w, "rotation", bits=4, sides=sides)
    here = PackedLinear.pack(q, Matmul(), dtype=torch.float32)
    assert (here.output_signs is not None) == (sides == "both")
    torch.testing.assert_close(here(x), x @ q.dequantize().T, rtol=1e-4, atol=1e-4)


def test_a_rotation_that_runs_before_a_layer_goes_on_running(tiny):
    narrow = copy.deepcopy(build("llama").config)
    narrow.intermediate_size = 64
    module = type(tiny["llama"].model)(narrow).eval().requires_grad_(False)
    rotated = rotate_model(replace(tiny["llama"], model=module), online=True)
    made = qviz.quantize_model(rotated.model, bits=4, group_size=16)
    packed = pack_model(made, "torch.matmul", **EXACT)
    assert torch.equal(outputs(packed.model), outputs(made.model))
    assert torch.equal(outputs(packed.reference()), outputs(made.model))
    assert layer(packed.model, "model.layers.0.mlp.down_proj").online is not (
        made.model.model.get_submodule("model.layers.0.mlp.down_proj").online
    )


def test_the_weight_of_a_quantized_linear_is_packed(tiny):
    made = qviz.quantize_model(tiny["llama"], "llm_int8")
    packed = pack_model(made, "torch.matmul", **EXACT)
    expected = made.tensors[UP].weight.dequantize()
    assert torch.equal(layer(packed.model).packed_weight, expected)
    assert torch.equal(outputs(packed.model), outputs(packed.reference()))


def test_inputs_are_converted_where_a_kernel_takes_another_dtype(llama):
    packed = pack_model(llama, "test.single", dtype=torch.bfloat16, on_error="skip")
    here = layer(packed.model, "model.layers.0.self_attn.q_proj")
    assert here.packed.dtype == torch.float32
    assert here(torch.ones(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert "test.single multiplies torch.float32" in packed.notes[0]
    assert "10 layers are converted from torch.bfloat16" in packed.notes[0]
    assert pack_model(llama, "torch.matmul").notes == ()
    assert pack_model(llama, "test.single", on_error="skip").dtype == torch.bfloat16  # it has none


# ---------------------------------------------------------------------- what the model does


def test_generate_and_perplexity_run_unchanged(llama):
    packed = pack_model(llama, "torch.matmul", **EXACT)
    said = qviz.generate(packed.model, "the quick", max_new_tokens=20)
    assert said == qviz.generate(llama.model, "the quick", max_new_tokens=20)
    assert qviz.perplexity(packed.model, WORDS) == qviz.perplexity(llama.model, WORDS)


def test_a_tied_head_stays_tied(llama):
    packed = pack_model(llama, "torch.matmul")
    for model in (packed.model.model, packed.reference().model):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_head_of_its_own_is_packed_by_name(tiny):
    module = copy.deepcopy(tiny["llama"].model)
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())
    model = replace(tiny["llama"], model=module)
    made = qviz.quantize_model(model, layers=["lm_head", UP], group_size=16)
    packed = pack_model(made, "torch.matmul", **EXACT)
    assert torch.equal(outputs(packed.model), outputs(made.model))
    assert memory(packed).parts["output head"] == 260 * 32 * 4


def test_frequencies_keep_their_precision(llama):
    rotary = pack_model(llama, "torch.matmul").model.model.model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32


def test_a_packed_model_is_not_quantized_again(llama):
    with pytest.raises(ValueError, match="no linear layers to quantize"):
        qviz.quantize_model(pack_model(llama, "torch.matmul").model, group_size=16)
    with pytest.raises(ValueError, match="already multiplies quantized"):
        rotate_model(pack_model(llama, "torch.matmul").model)


# ---------------------------------------------------------------------- nothing kept, or changed


def test_what_was_given_stays_as_it_was(tiny):
    made = qviz.quantize_model(tiny["llama"], group_size=16)
    before = {name: t.clone() for name, t in made.model.model.state_dict().items()}
    codes = {name: q.codes.clone() for name, q in made.tensors.items()}
    packed = pack_model(made, "torch.matmul")
    packed.model.model.float()
    for tensor in packed.model.model.state_dict().values():
        tensor.zero_()
    after = made.model.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert all(torch.equal(made.tensors[name].codes, c) for name, c in codes.items())


def test_a_kernel_that_hands_on_the_codes_gets_a_copy_of_them():
    class Codes(Matmul):
        def _pack(self, q, device, dtype):
            return {"weight": q.codes}, {}

    q = qviz.quantize(torch.randn(8, 32), group_size=16)
    assert q.codes.data_ptr() != PackedLinear.pack(q, Codes()).packed_weight.data_ptr()


def test_dense_weights_and_codes_are_freed():
    model = LoadedModel(build("llama").eval().requires_grad_(False), None, "tiny", "decoder")
    made = qviz.quantize_model(model, group_size=16)
    gone = [weakref.ref(p) for one in (model, made.model) for p in one.model.parameters()]
    gone += [weakref.ref(q.codes) for q in made.tensors.values()]
    gone.append(weakref.ref(made))
    packed = pack_model(made, "torch.matmul")
    held = {t.untyped_storage().data_ptr() for t in packed.model.model.state_dict().values()}
    theirs = {p.untyped_storage().data_ptr() for p in made.model.model.parameters()}
    assert not held & theirs
    assert not any(one() is None for one in gone)
    del model, made
    gc.collect()
    assert [one for one in gone if one() is not None] == []
    assert outputs(packed.model).isfinite().all()


def test_the_reference_needs_the_codes_and_adds_no_more_than_dense_linears(tiny):
    made = qviz.quantize_model(tiny["llama"], group_size=16)
    packed = pack_model(made, "torch.matmul")
    reference = packed.reference()
    held = [
        {t.untyped_storage().data_ptr() for t in one.model.state_dict().values()}
        for one in (reference, packed.model)
    ]
    assert len(held[0] - held[1]) == len(packed.kernels) == 14
    assert reference.model is not packed.reference().model  # built anew, kept by nobody
    other = qviz.quantize_model(tiny["llama"], layers=[UP], group_size=16)
    with pytest.raises(ValueError, match=r"packed here as .* pass the model that was packed"):
        packed.reference(other)
    del made
    gc.collect()
    with pytest.raises(RuntimeError, match=r"no longer in memory.*quantized="):
        packed.reference()
    again = qviz.quantize_model(tiny["llama"], group_size=16)
    assert torch.equal(outputs(packed.reference(again)), outputs(reference))


# ---------------------------------------------------------------------- moving and casting


def test_casting_leaves_the_packed_bytes_alone(tiny):
    made = qviz.quantize_model(tiny["gpt2"], group_size=16)
    packed = pack_model(made, "torch.matmul")
    here = layer(packed.model, "transformer.h.0.mlp.c_fc")
    before = here.packed_weight.clone()
    packed.model.model.float()
    assert here.bias.dtype == torch.float32
    assert here.packed_weight.dtype == torch.bfloat16 and torch.equal(here.packed_weight, before)
    assert outputs(packed.model).dtype == torch.float32
    packed.model.model.to("cpu", torch.float16)
    assert outputs(packed.model).isfinite().all()


def test_a_move_to_another_kind_of_device_is_refused(llama):
    here = layer(pack_model(llama, "torch.matmul").model)
    with pytest.raises(ValueError, match=r"packed for torch.matmul on cpu cannot move to meta.*"):
        here.to("meta")
    assert here(torch.ones(1, 32, dtype=torch.bfloat16)).shape == (1, 48)


def test_state_and_copies(llama):
    one, two = (pack_model(llama, "torch.matmul").model.model for _ in range(2))
    state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    assert f"{UP}.packed_weight" in state
    for assign in (False, True):
        for tensor in two.state_dict().values():
            tensor.zero_()
        two.load_state_dict(state, assign=assign)
        models = [replace(llama.model, model=each) for each in (one, two, copy.deepcopy(two))]
        first, *others = map(outputs, models)
        assert all(torch.equal(first, other) for other in others)
    twin = copy.deepcopy(two).get_submodule(UP)
    assert twin.packed.tensors["weight"] is twin.packed_weight  # one copy, not two
    assert twin.packed_weight is not two.get_submodule(UP).packed_weight


def test_what_a_layer_says_of_itself(llama):
    assert "torch.matmul, in_features=32, out_features=48" in repr(
        layer(pack_model(llama, "torch.matmul").model)
    )
    assert "14 × torch.matmul" in repr(pack_model(llama, "torch.matmul"))


# ---------------------------------------------------------------------- refusals


def test_a_layer_that_a_kernel_does_not_take_is_an_error_or_a_reason(llama):
    with pytest.raises(ValueError, match=r"mlp\.gate_proj: .*40 rows, not 48.*torch\.matmul.*skip"):
        pack_model(llama, "test.single")
    packed = pack_model(llama, "test.single", on_error="skip")
    assert len(packed.kernels) == 10
    assert packed.skipped[UP] == "test.single takes 40 rows, not 48"
    assert packed.skipped["lm_head"] == llama.skipped["lm_head"]
    dense = packed.model.model.get_submodule(UP)
    assert torch.equal(dense.weight, llama.tensors[UP].dequantize().to(packed.dtype))
    only = qviz.quantize_model(llama.model, layers=[UP], group_size=16)
    with pytest.raises(ValueError, match=r"no layer could be packed.*40 rows"):
        pack_model(only, "test.single", on_error="skip")


def test_a_skipped_quantized_linear_becomes_a_dense_layer(tiny):
    made = qviz.quantize_model(tiny["llama"], "llm_int8")
    packed = pack_model(made, "test.single", on_error="skip", **EXACT)
    dense = packed.model.model.get_submodule(UP)
    assert type(dense) is torch.nn.Linear
    assert torch.equal(dense.weight, made.tensors[UP].dequantize())


def test_a_kernel_for_each_layer(llama):
    q = "model.layers.0.self_attn.q_proj"
    packed = pack_model(llama, {UP: "torch.matmul", q: "test.single"}, on_error="skip")
    assert packed.kernels == {q: "test.single", UP: "torch.matmul"}
    assert "no kernel was named" in packed.skipped["model.layers.1.mlp.up_proj"]
    assert "1 × test.single" in repr(packed)
    with pytest.raises(ValueError, match=r"unknown quantized layer in kernel 'mlp\.down_proj'"):
        pack_model(llama, {UP: "torch.matmul", "mlp.down_proj": "torch.matmul"})


def test_what_is_asked_is_checked(llama, tiny):
    with pytest.raises(TypeError, match=r"quantize_model returned, got LoadedModel"):
        pack_model(tiny["llama"])
    with pytest.raises(ValueError, match="on_error"):
        pack_model(llama, "torch.matmul", on_error="ignore")
    with pytest.raises(ValueError, match=r"unknown kernel 'torch\.matmull'.*torch\.matmul"):
        pack_model(llama, "torch.matmull")
    with pytest.raises(RuntimeError, match=r"test\.elsewhere exists only on cuda, not on cpu"):
        pack_model(llama, "test.elsewhere")
    with pytest.raises(TypeError, match="layer → name"):
        pack_model(llama, {})
    with pytest.raises(ValueError, match="dtype must be"):
        pack_model(llama, "torch.matmul", dtype=torch.int8)
    with pytest.raises(TypeError, match=r"pack_model or qviz\.load_model returned"):
        memory("bundled")
    with pytest.raises(TypeError, match="compare takes what pack_model"):
        compare(tiny["llama"])
    here = layer(pack_model(llama, "torch.matmul").model)
    with pytest.raises(ValueError, match=r"not for test\.single"):
        PackedLinear(Single(), here.packed)
    with pytest.raises(ValueError, match="takes 32 inputs"):
        here(torch.ones(2, 31, dtype=torch.bfloat16))


def test_an_unknown_change_of_coordinates_is_refused():
    class Odd:
        pass

    q = replace(qviz.quantize(torch.randn(8, 32), group_size=16), transform=Odd())
    with pytest.raises(ValueError, match=r"other coordinates \(Odd\)"):
        PackedLinear.pack(q, Matmul())


# ---------------------------------------------------------------------- memory


def test_memory_by_hand(tiny, llama):
    """Embeddings 260·32, norms 5·32, blocks of 32·(32 + 16 + 16 + 32 + 3·48), float32 beside 16."""
    blocks, table, norms = 2 * 32 * (96 + 144), 260 * 32, 5 * 32
    packed = memory(pack_model(llama, "torch.matmul", **EXACT))
    assert {k: v for k, v in packed.parts.items() if k != "rest"} == {
        "packed linears": 4 * blocks,
        "embeddings": 4 * table,
        "norms": 4 * norms,
    }
    assert {k: v for k, v in packed.sixteen_bit.items() if k != "rest"} == {
        "packed linears": 2 * blocks,
        "embeddings": 2 * table,
        "norms": 2 * norms,
    }
    assert packed.parts["rest"] == packed.sixteen_bit["rest"] > 0  # frequencies
    dense = memory(tiny["llama"])
    assert dense.parts["other linears"] == 4 * blocks and dense.total == packed.total
    assert f"{packed.total:,}" in str(packed)
    assert (packed.allocated, packed.peak) == (None, None)


def test_biases_count(tiny):
    made = qviz.quantize_model(tiny["gpt2"], group_size=16)
    use = memory(pack_model(made, "torch.matmul"))
    assert use.parts["packed linears"] == use.sixteen_bit["packed linears"]
    weights = sum(math.prod(q.shape) + q.shape[0] for q in made.tensors.values())
    assert use.parts["packed linears"] == 2 * weights


def test_packed_bytes_are_those_of_the_buffers(llama):
    packed = pack_model(llama, "torch.matmul")
    held = sum(layer(packed.model, name).packed.nbytes for name in packed.kernels)
    assert memory(packed).parts["packed linears"] == held


# ---------------------------------------------------------------------- speed


def test_speed_counts_tokens(tiny):
    found = speed(tiny["llama"], "the quick", new_tokens=5, batch=3, repeats=4)
    assert (found.prompt_tokens, found.new_tokens, found.batch, found.peak) == (9, 5, 3, None)
    assert (found.prefill.tokens, found.decode.tokens) == (27, 12)
    for rate in (found.prefill, found.decode):
        assert len(rate.seconds) == 4 and min(rate.seconds) > 0
        low, high = rate.range
        assert low <= rate.p95 <= rate.median <= high
    assert "tokens/s" in str(found)
    assert packed_cost.Rate(10, (1.0, 2.0, 4.0)).median == 5.0


def test_models_are_measured_in_turns(tiny, monkeypatch):
    ran, run = [], packed_cost.greedy

    def noted(model, ids, new_tokens):
        ran.append((model.name, new_tokens))
        return run(model, ids, new_tokens)

    monkeypatch.setattr(packed_cost, "greedy", noted)
    models = {name: replace(tiny["llama"], name=name) for name in ("a", "b")}
    speeds(models, [5, 6], new_tokens=3, repeats=2)
    assert ran == [("a", 2), ("b", 2), *[("a", 3), ("b", 3)] * 2]


def test_speed_refuses_in_words(tiny):
    with pytest.raises(ValueError, match="needs a decoder"):
        speed(tiny["bert"], "the")
    with pytest.raises(ValueError, match=r"9 tokens and 120 new ones exceed the 128 positions"):
        speed(tiny["llama"], "the quick", new_tokens=120)
    with pytest.raises(ValueError, match="new_tokens must be from 2"):
        speed(tiny["llama"], "the quick", new_tokens=1)
    with pytest.raises(ValueError, match="prompt is empty"):
        speed(tiny["llama"], [])
    with pytest.raises(ValueError, match="has no tokenizer"):
        speed(replace(tiny["llama"], tokenizer=None), "the")
    with pytest.raises(ValueError, match="no model to measure"):
        speeds({}, "the")


def test_a_random_llama():
    shape = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 96}
    state = torch.get_rng_state()
    one, two = (random_llama(**shape, vocabulary=300, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    again = random_llama(**shape, vocabulary=300)
    assert torch.equal(outputs(one), outputs(again))
    assert not torch.equal(outputs(one), outputs(two))
    count = 300 * 64 + 5 * 64 + 2 * 64 * (64 + 32 + 32 + 64 + 3 * 96)
    assert sum(p.numel() for p in one.model.parameters()) == count
    assert one.model.dtype == torch.bfloat16
    assert "random weights" in one.name
    assert speed(one, range(9), new_tokens=3, repeats=1).prompt_tokens == 9
    with pytest.raises(ValueError, match="5 heads must divide the hidden size of 64"):
        random_llama(hidden=64, heads=5)


# ---------------------------------------------------------------------- comparing


def test_no_difference_is_found_where_there_is_none(llama):
    packed = pack_model(llama, "torch.matmul")
    found = compare(packed, WORDS * 3, prompt="the", max_tokens=100, new_tokens=10, repeats=2)
    x = found.logits
    assert (x.max_abs, x.relative, x.kl, x.same_top, x.tokens) == (0, 0, 0, 1, 100)
    assert found.texts.parts_at is None and found.texts.packed == found.texts.reference
    assert found.perplexity[0] == found.perplexity[1]
    assert found.memory[0].total == found.memory[1].total
    assert "the same for 10 tokens" in str(found)
    with pytest.raises(ValueError, match=r"204 tokens and 10 new ones exceed the 128 positions"):
        compare(packed, WORDS * 3, new_tokens=10)  # 200 characters, some of two bytes


def test_differences_by_hand(tiny):
    """Against float64 arithmetic written out here, over windows of unequal lengths."""
    made = qviz.quantize_model(tiny["llama"], bits=3, group_size=16)
    text = (WORDS[:70] * 3)[:150]  # a token per byte: windows of 128 and 22
    found = compare_logits(made.model, tiny["llama"], text)
    ids = torch.tensor([tiny["llama"].tokenizer(text)["input_ids"]])
    ours, theirs = [], []
    for window in (ids[:, :128], ids[:, 128:]):
        for rows, model in ((ours, made.model), (theirs, tiny["llama"])):
            with torch.no_grad():
                rows.append(model.model(input_ids=window).logits[0].double())
    a, b = torch.cat(ours), torch.cat(theirs)
    p = b.softmax(-1)
    kl = (p * (p / a.softmax(-1)).log()).sum(-1).mean()
    assert found.tokens == 150
    assert found.max_abs == pytest.approx(float((a - b).abs().max()))
    assert found.relative == pytest.approx(float((a - b).norm() / b.norm()))
    assert found.kl == pytest.approx(float(kl), rel=1e-6) and found.kl > 0.01
    assert found.same_top == float((a.argmax(-1) == b.argmax(-1)).double().mean()) < 1


def test_where_texts_part(tiny):
    made = qviz.quantize_model(tiny["llama"], bits=2, group_size=16)
    found = compare_texts(made.model, tiny["llama"], "the quick", new_tokens=30)
    for model, said in ((made.model, found.packed), (tiny["llama"], found.reference)):
        assert said == qviz.generate(model, "the quick", max_new_tokens=30)
    assert found.parts_at is not None
    ours, theirs = (
        packed_compare._continued(m, "the quick", 30) for m in (made.model, tiny["llama"])
    )
    assert ours[: found.parts_at] == theirs[: found.parts_at]
    assert ours[found.parts_at] != theirs[found.parts_at]


def test_generation_stops_at_the_end_of_text(tiny):
    whole = compare_texts(tiny["llama"], tiny["llama"], "the quick", new_tokens=12)
    ids = packed_compare._continued(tiny["llama"], "the quick", 12)
    module = copy.copy(tiny["llama"].model)
    module.config = copy.deepcopy(module.config)
    module.config.eos_token_id = [ids[5]]
    stopped = replace(tiny["llama"], model=module)
    found = compare_texts(stopped, tiny["llama"], "the quick", new_tokens=12)
    end = ids.index(ids[5])
    assert (found.parts_at, found.new_tokens) == (end, 12)
    assert whole.reference.startswith(found.packed)
    assert found.packed == qviz.generate(stopped, "the quick", max_new_tokens=12)


def test_a_kernel_that_is_not_exact_is_seen(tiny):
    layers = [name for name in qviz.linear_layers(tiny["llama"]) if "self_attn" in name]
    made = qviz.quantize_model(tiny["llama"], layers=layers, group_size=16)
    packed = pack_model(made, "test.single", **EXACT)
    found = compare(packed, WORDS, prompt="the", max_tokens=60, new_tokens=4, repeats=1)
    assert 1e-5 < found.logits.relative < 0.1
    assert found.kernels == ("test.single",)
    words = [row["in words"] for row in found.rows]
    assert all(words[:2]) and words[2:] == ["the same", ""]
    assert [row["what"] for row in found.rows] == [
        "prefill, tokens/s",
        "decode, tokens/s",
        "bytes of the model",
        "perplexity",
    ]
    assert found.rows[2]["ratio"] == 1.0


def test_slower_and_larger_are_called_so():
    slow, fast, both = (packed_cost.Rate(8, s) for s in ((4.0, 4.4), (2.0, 2.2), (2.1, 4.1)))
    assert packed_compare._pace(slow, fast) == "2.00× slower"
    assert packed_compare._pace(fast, slow) == "2.00× as fast"
    for one in (slow, fast):
        assert packed_compare._pace(one, both) == "no difference beyond that between repeats"
    assert packed_compare._size(0.25) == "4.00× smaller"
    assert packed_compare._size(2.0) == "2.00× larger"
    assert packed_compare._size(1.0) == "the same"


def test_compare_refuses_what_cannot_generate(tiny):
    bert = pack_model(qviz.quantize_model(tiny["bert"], group_size=16), "torch.matmul")
    with pytest.raises(ValueError, match="needs a decoder"):
        compare(bert, WORDS)


# ---------------------------------------------------------------------- the real kernels


def bundled_with(kernel: Kernel, device: str) -> tuple[qviz.models.quantize.QuantizedModel, str]:
    """The bundled model in the first format that the kernel takes."""
    model = qviz.load_model(device=device)
    for name, one in formats.FORMATS.items():
        sample = one.quantize(qviz.linear_layers(model)[UP].weight)
        if kernel.refuses(sample) is None:
            return qviz.quantize_model(model, one.method, **one.options), name
    raise AssertionError(f"{kernel.name} takes none of the formats")


def held_beside_its_reference(kernel: Kernel, device: str) -> None:
    made, _ = bundled_with(kernel, device)
    packed = pack_model(made, kernel.name)
    found = compare(packed, max_tokens=256, new_tokens=8, repeats=1)
    assert len(packed.kernels) == 28
    # Rounding of bfloat16 sums; a percent or two where inputs are quantized to 8 bits as well.
    assert found.logits.relative < (0.02 if kernel.activations == "as they are" else 0.1)
    assert found.logits.same_top > 0.9
    ratio = found.perplexity[0].value / found.perplexity[1].value
    assert ratio == pytest.approx(1, rel=0.03)
    use = memory(packed)
    assert use.parts["packed linears"] < 0.7 * use.sixteen_bit["packed linears"] or (
        kernel.name == registry.BASELINE
    )


def real(device: str) -> list[str]:
    return [each.kernel.name for each in registry.available(device) if each]


@pytest.mark.parametrize("name", real("cpu"))
def test_the_bundled_model_runs_with_each_kernel(name):
    held_beside_its_reference(registry.get(name), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("name", real("cuda"))
def test_the_bundled_model_runs_with_each_kernel_on_cuda(name):
    held_beside_its_reference(registry.get(name), "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_memory_on_cuda_is_torchs_own(tiny):
    made = qviz.quantize_model(tiny["llama"], group_size=16)
    packed = pack_model(made, "torch.matmul", device="cuda")
    assert packed.model.device.type == "cuda" and made.model.device.type == "cpu"
    use = memory(packed, prompt=[5, 6, 7], new_tokens=8)
    assert use.allocated >= use.total and use.peak > use.allocated
    with pytest.raises(ValueError, match="cannot move to cpu"):
        layer(packed.model).cpu()
    reference = packed.reference()
    torch.testing.assert_close(outputs(packed.model), outputs(reference))
