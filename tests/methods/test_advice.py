"""Each message that says what to do, and what comes of doing it: the calls that it names are read
out of the message and run, on what was refused."""

import re

import numpy as np
import pytest
import torch
from inputs import calibration_for
from torch import nn

import qviz
from qviz.core.check import as_matrix, narrowed, require_finite
from qviz.methods import registry
from qviz.methods.affine import CONVENTIONS
from qviz.methods.kv_cache import KiviCache, kv_cache
from qviz.methods.rotation import rotation


def refusal(call, error=ValueError):
    with pytest.raises(error) as refused:
        call()
    return str(refused.value)


def followed(text, pattern, **names):
    """The value of the expression that the message advises; the pattern says which it should be."""
    found = re.search(pattern, text)
    assert found, text
    names = {"torch": torch, "np": np, "qviz": qviz, **names}
    return eval(found.group(), names)  # noqa: S307  what our own messages say


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


# ------------------------------------------------------------------------------------- the weight


def test_fused_experts_are_quantized_one_by_one():
    """Put into one row each, whole experts would share a few scales."""
    w = random(5, 16, 64)
    text = refusal(lambda: qviz.quantize(w, group_size=32))
    assert "experts" in text
    assert "reshape" not in text
    for i in range(5):
        one = followed(text, r"weight\[i\](?= \()", weight=w, i=i)
        assert torch.equal(one, w[i])
        assert qviz.quantize(one, group_size=32).shape == (16, 64)
        turned = followed(text, r"weight\[i\]\.T", weight=w, i=i)
        assert qviz.quantize(turned, group_size=16).shape == (64, 16)


@pytest.mark.parametrize(("shape", "module"), [((6, 8, 4), nn.Conv1d), ((6, 8, 2, 3), nn.Conv2d)])
def test_a_convolution_becomes_its_matrix(shape, module):
    w = random(*shape)
    matrix = followed(
        refusal(lambda: qviz.quantize(w)), r"weight\.flatten\(1\)", weight=w
    )  # [out, in·kernel]
    conv = module(shape[1], shape[0], shape[2:], bias=False)
    conv.weight.data.copy_(w)
    x = random(1, *shape[1:])  # one position of the kernel: a product with the matrix
    assert torch.allclose(conv(x).flatten(), x.flatten() @ matrix.T, atol=1e-5)
    assert qviz.quantize(matrix, group_size=None).shape == matrix.shape


def test_a_vector_is_left_or_is_one_row():
    w = random(64)
    text = refusal(lambda: qviz.quantize(w, group_size=32))
    assert "stay in full precision" in text
    row = followed(text, r"weight\.reshape\(1, -1\)", weight=w)
    assert qviz.quantize(row, group_size=32).shape == (1, 64)  # one row, not one weight per row


def test_what_is_empty_is_not_to_be_reshaped():
    text = refusal(lambda: qviz.quantize(torch.empty(0, 64)))
    assert "no values" in text
    assert "reshape" not in text


def test_integers_are_codes_unless_they_are_the_weights():
    codes, scale = torch.randint(-127, 128, (8, 64), dtype=torch.int8), 0.001
    for given in (codes, codes.numpy()):
        text = refusal(lambda w=given: qviz.quantize(w, group_size=64), TypeError)
        assert "scales are stored separately" in text
    values = followed(
        refusal(lambda: qviz.quantize(codes), TypeError), r"weight\.float\(\)", weight=codes
    )
    assert qviz.quantize(values * scale, group_size=64).shape == (8, 64)


def test_eight_bit_floats_are_multiplied_by_their_scale():
    w = random(8, 64)
    scale = w.abs().amax(1, keepdim=True) / 448
    stored = (w / scale).to(torch.float8_e4m3fn)
    text = refusal(lambda: qviz.quantize(stored), TypeError)
    back = followed(text, r"weight\.float\(\) \* scale", weight=stored, scale=scale)
    assert (back - w).norm() / w.norm() < 0.05
    qviz.quantize(back, group_size=64)


@pytest.mark.parametrize("dtype", [">f4", np.longdouble, np.bool_])
def test_other_numbers_are_cast(dtype):
    w = random(8, 64).numpy().astype(dtype)
    text = refusal(lambda: as_matrix(w), TypeError)
    cast = followed(text, r'weight\.astype\("float32"\)', weight=w)
    assert np.array_equal(as_matrix(cast).numpy(), w.astype("float32"))


def test_complex_numbers_are_two_matrices():
    w = random(8, 64) * 1j
    text = refusal(lambda: qviz.quantize(w), TypeError)
    for pattern in (r"weight\.real", r"weight\.imag"):
        qviz.quantize(followed(text, pattern, weight=w), group_size=64)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_tensor_that_torch_quantized_is_dequantized():
    w = torch.quantize_per_tensor(random(8, 64), 0.05, 0, torch.qint8)
    text = refusal(lambda: qviz.quantize(w), TypeError)
    qviz.quantize(followed(text, r"weight\.dequantize\(\)", weight=w), group_size=64)


def test_a_layer_given_by_mistake_leads_to_its_weight():
    layer = nn.Linear(64, 8)
    text = refusal(lambda: qviz.quantize(layer), TypeError)
    assert "got Linear" in text
    assert qviz.quantize(followed(text, r"layer\.weight", layer=layer), group_size=64).shape == (
        8,
        64,
    )


def test_a_linear_layer_of_gpt2_is_stored_the_other_way():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(8, 64)  # 64 inputs, 8 outputs
    text = refusal(lambda: qviz.quantize(layer), TypeError)
    assert qviz.quantize(followed(text, r"layer\.weight\.T", layer=layer), group_size=64).shape == (
        8,
        64,
    )


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"a.weight": random(8, 64)}, r"weight\['a\.weight'\]"),
        (random(8, 64).tolist(), r"torch\.tensor\(weight, dtype=torch\.float32\)"),
        (qviz.quantize(random(8, 64), group_size=64), r"weight\.dequantize\(\)"),
    ],
    ids=["state dict", "list", "quantized"],
)
def test_other_things_given_by_mistake_lead_to_a_tensor(given, pattern):
    text = refusal(lambda: qviz.quantize(given), TypeError)
    assert qviz.quantize(followed(text, pattern, weight=given), group_size=64).shape == (8, 64)


def test_names_and_models_lead_to_the_functions_that_take_them():
    model = qviz.load_model()
    assert "qviz.quantize_model" in refusal(lambda: qviz.quantize(model), TypeError)
    assert "qviz.quantize_model" in refusal(lambda: qviz.quantize(nn.Sequential()), TypeError)
    name = "model.layers.0.self_attn.k_proj"
    text = refusal(lambda: qviz.quantize(name), TypeError)
    weight = followed(text, r"qviz\.load_layer\(model, layer\)", model=None, layer=name)
    assert qviz.quantize(weight).shape == tuple(weight.shape)


# --------------------------------------------------------------------- what a dtype cannot hold


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_becomes_zero(value):
    """nan_to_num alone would put the dtype's largest number there, and ruin every scale."""
    w = random(8, 64)
    w[2, 7] = value
    text = refusal(lambda: qviz.quantize(w))
    mended = followed(text, r"torch\.nan_to_num\(.*\)", weight=w)
    expected = w.clone()
    expected[2, 7] = 0
    assert torch.equal(mended, expected)
    qviz.quantize(mended, group_size=64)


def test_infinities_of_float16_come_from_a_cast():
    w = random(8, 64)
    w[0, 0] = 7e4
    text = refusal(lambda: qviz.quantize(w.half()))
    assert "keep the dtype that it was saved in" in text
    qviz.quantize(w, group_size=64)
    assert "keep the dtype" not in refusal(lambda: qviz.quantize(w / 0))


OVERFLOWING = [
    ("llm_int8", {}, 1e6, torch.float32),
    ("nf4", {}, 1e300, torch.float64),
    ("nf4", {"double_quant": True}, 8e37, torch.float32),
    ("fp8", {}, 1e300, torch.float64),
    ("fp8", {}, 65504, torch.float16),
    ("fp8", {}, 3.3895e38, torch.bfloat16),
    ("microscaling", {}, 1e300, torch.float64),
    ("microscaling", {"convention": "compressed_tensors"}, 65504, torch.float16),
    ("microscaling", {"convention": "compressed_tensors", "format": "nvfp4"}, 65504, torch.float16),
    ("microscaling", {"format": "nvfp4"}, 1e-43, torch.float32),
    ("gguf", {}, 1e300, torch.float64),
    ("gguf", {}, 1e9, torch.float32),
    ("gguf", {"type": "Q8_0"}, 1e9, torch.float32),
    ("rotation", {}, 65504, torch.float16),
    ("rotation", {}, 3.3e38, torch.float32),
    ("rotation", {}, 3.3e38, torch.bfloat16),
    ("kv_cache", {"scheme": "fp8"}, 1e300, torch.float64),
]


@pytest.mark.parametrize(("name", "options", "largest", "dtype"), OVERFLOWING)
def test_finite_weights_that_leave_a_format_are_scaled_or_widened(name, options, largest, dtype):
    w = random(40, 256).double().clamp(-1, 1)
    w[:, 0] = 1
    w = (w * largest).to(dtype)
    assert torch.isfinite(w).all()
    text = refusal(lambda: qviz.quantize(w, name, **options))
    assert "mend" not in text
    what = "x" if name == "kv_cache" else "weight"
    expression = rf"(?<=[Pp]ass ){what}(\.float\(\)| [*/] 2\.0(\*\*\d+)?|\.double\(\))"
    given = followed(text, expression, **{what: w})
    made = qviz.quantize(given, name, **options)
    error = (made.dequantize().double() - given.double()).norm() / given.double().norm()
    assert error < 0.35


def test_double_quantization_that_rounds_beyond_float16_is_scaled():
    w = torch.full((40, 64), 0.88 * 65504)
    w[4], w[7] = 65504, 0
    text = refusal(lambda: qviz.quantize(w.half(), "nf4", double_quant=True))
    given = followed(text, r"weight / 2\.0\*\*\d+", weight=w.half())
    assert torch.isfinite(qviz.quantize(given, "nf4", double_quant=True).dequantize()).all()
    assert "omit double_quant" in text
    assert torch.isfinite(qviz.quantize(w.half(), "nf4").dequantize()).all()


def test_the_power_of_two_is_enough_and_named_both_ways():
    for value in (65520.0, 70000.0, 1e30):
        x = torch.full((1, 1), value)
        text = refusal(lambda x=x: narrowed(x, torch.float16, "x"))
        assert torch.isfinite(followed(text, r"x / 2\.0\*\*\d+", x=x).half()).all()
        down, up = re.search(r"x / (2\.0\*\*\d+), and multiply the result by (\S+)$", text).groups()
        assert down == up


def test_inputs_beyond_float16_are_scaled():
    linear, x = qviz.quantize(random(8, 64), "llm_int8"), random(5, 64)
    large = x * 2.0**20
    given = followed(refusal(lambda: linear(large)), r"inputs / 2\.0\*\*\d+", inputs=large)
    factor = float((large / given).flatten()[0])
    outliers = linear(x * 2.0**20 / factor) * factor
    assert torch.allclose(outliers / 2.0**20, x @ random(8, 64).T, atol=0.5)


UNIT = [(name, sym) for name, c in CONVENTIONS.items() for sym in (True, False)
        if (c.symmetric if sym else c.asymmetric) is not None]  # fmt: skip
HARD = {
    "zero": torch.zeros(4, 64),
    "constant": torch.full((4, 64), 0.7),
    "tiny": random(4, 64) * 1e-20,
    "subnormal": random(4, 64) * 1e-41,
    "large": random(4, 64) * 1e37,
    "largest": random(4, 64).sign() * 3.4e38,
    "largest float16": random(4, 64).sign().half() * 65504,
    "largest bfloat16": (random(4, 64).sign() * 3.38e38).bfloat16(),
}


@pytest.mark.parametrize(("convention", "symmetric"), UNIT)
@pytest.mark.parametrize("scale_dtype", [None, torch.float16], ids=str)
@pytest.mark.parametrize("case", HARD)
def test_levels_that_do_not_fit_lead_to_some_that_do(convention, symmetric, scale_dtype, case):
    """In at most three steps, each a message of its own."""
    w = HARD[case]
    options = {"convention": convention, "symmetric": symmetric, "scale_dtype": scale_dtype}
    seen = set()
    for _ in range(4):
        try:
            q = qviz.quantize(w, group_size=64, **options)
        except ValueError as error:
            advice = str(error).rpartition(". ")[2]
            assert (advice, w.dtype) not in seen
            seen.add((advice, w.dtype))
            w, options = _advised(advice, w, options)
        else:
            assert torch.isfinite(q.dequantize()).all()
            return
    pytest.fail("the advice leads nowhere")


def _advised(advice, w, options):
    wider = re.search(r"\.(float|double)\(\)$", advice)
    if wider:
        return getattr(w, wider[1])(), options
    option = re.search(r"(scale_dtype|convention)=", advice)[1]
    return w, {**options, option: followed(advice, rf'(?<={option}=)(torch\.\w+|"\w+")')}


@pytest.mark.parametrize("scale", [1e9, 1e6])
def test_levels_of_hqq_and_of_a_cache_lead_to_wider_scales(scale):
    """Their scales are float16 unless told, whatever dtype the weight has."""
    for name in ("hqq", "kv_cache"):
        w = random(64, 64) * scale
        if name == "hqq":
            w = w + 1e5
        text = refusal(lambda w=w, name=name: qviz.quantize(w, name))
        dtype = followed(text, r"(?<=scale_dtype=)torch\.\w+")
        assert torch.isfinite(qviz.quantize(w, name, scale_dtype=dtype).dequantize()).all()


# ------------------------------------------------------------------------------- sizes and the rest


def test_a_row_that_no_block_divides_is_padded():
    w = random(4, 40)
    text = refusal(lambda: qviz.quantize(w, "microscaling"))
    padded = followed(text, r"torch\.nn\.functional\.pad\(.*?\)\)", weight=w)
    q, x = qviz.quantize(padded, "microscaling"), random(3, 40)
    wide = nn.functional.pad(x, (0, padded.shape[1] - 40))
    assert (wide @ q.dequantize().T - x @ w.T).norm() / (x @ w.T).norm() < 0.3


def test_a_size_without_a_hadamard_matrix_is_padded():
    w = random(6, 178)
    add = [
        int(n)
        for n in re.search(r"with (\d+) zeros to (\d+)", refusal(lambda: rotation(w))).groups()
    ]
    wide = nn.functional.pad(w, (0, add[0]))
    assert rotation(wide).shape == (6, add[1])
    more = re.search(r"with (\d+) zeros", refusal(lambda: rotation(wide, sides="both")))[1]
    assert rotation(nn.functional.pad(wide, (0, 0, 0, int(more))), sides="both").shape == (
        8,
        add[1],
    )


def test_a_row_too_short_for_k_quants_falls_back():
    w = random(4, 64)
    text = refusal(lambda: qviz.quantize(w, "gguf"))
    assert "fallback=True" in text
    kind = re.search(r"type='(\w+)'", text)[1]
    fallen, named = qviz.quantize(w, "gguf", fallback=True), qviz.quantize(w, "gguf", type=kind)
    assert torch.equal(fallen.codes, named.codes)


def test_too_few_vectors_lead_to_bits_that_fit():
    w = random(2, 64)
    text = refusal(lambda: qviz.quantize(w, "vector"))
    most = int(re.search(r"at most (\d+)", text)[1])
    assert qviz.quantize(w, "vector", bits=most).grid.bits == most
    refusal(lambda: qviz.quantize(w, "vector", bits=most + 1))


def test_squares_that_leave_float32_lead_to_row_scales_or_float64():
    w = random(64, 64) * 1e30
    text = refusal(lambda: qviz.quantize(w, "vector", row_scale=False, store_dtype=torch.float32))
    assert "row_scale=True" in text
    assert "float64" in text
    qviz.quantize(w, "vector", row_scale=True, store_dtype=torch.float32)
    qviz.quantize(w.double(), "vector", row_scale=False, store_dtype=torch.float64)
    text = refusal(lambda: qviz.quantize(w, "vector", row_scale=True, store_dtype=torch.float16))
    dtype = followed(text, r"(?<=store_dtype=)torch\.\w+")
    qviz.quantize(w, "vector", row_scale=True, store_dtype=dtype)


def test_keys_and_values_as_transformers_has_them():
    keys = random(2, 4, 32, 16)  # [batch, heads, tokens, width]
    text = refusal(lambda: kv_cache(keys))
    one = followed(text, r"x\[i\]\.transpose\(0, 1\)\.flatten\(1\)", x=keys, i=1)
    assert one.shape == (32, 64)
    assert torch.equal(one[5, 16:32], keys[1, 1, 5])  # token 5, head 1
    assert kv_cache(one).shape == (32, 64)
    text = refusal(lambda: kv_cache(keys[0]))
    assert torch.equal(
        followed(text, r"x\.transpose\(0, 1\)\.flatten\(1\)", x=keys[0])[5, :16], keys[0, 0, 5]
    )
    text = refusal(lambda: KiviCache(heads=4).prefill(keys[0], keys[0]))
    assert "keys.transpose(0, 1).flatten(1)" in text
    single = followed(
        refusal(lambda: kv_cache(keys[0, 0, 0])), r"x\.reshape\(1, -1\)", x=keys[0, 0, 0]
    )
    assert kv_cache(single, kind_of="values", group_size=16).shape == (1, 16)


def test_a_group_of_tokens_that_does_not_divide_names_those_that_do():
    keys = random(40, 64)
    text = refusal(lambda: kv_cache(keys))
    sizes = [int(n) for n in re.search(r"Sizes that do: ([\d, ]+)", text)[1].split(", ")]
    assert sizes == [8, 10, 20, 40]
    for size in (*sizes, None, -1):
        assert kv_cache(keys, group_size=size).shape == (40, 64)


def test_levels_before_the_first_column_cannot_be_stale():
    w, given = random(8, 64), calibration_for(random(90, 64))
    for options in ({"group_size": -1}, {"group_size": 32, "static_groups": True}):
        text = refusal(lambda o=options: qviz.quantize(w, "gptq", given, stale_groups=True, **o))
        assert "omit it" in text
        qviz.quantize(w, "gptq", given, **options)
    qviz.quantize(w, "gptq", given, stale_groups=True, group_size=32)


def test_a_calibration_that_overflowed_is_captured_again_not_masked():
    x = random(40, 64)
    given = calibration_for(x)
    text = refusal(lambda: qviz.Calibration(
        given.inputs / 0, given.hessian, given.act_absmax, given.act_absmean, 40))  # fmt: skip
    assert "Capture again with the model in float32 or bfloat16" in text
    assert "nan_to_num" not in text


def test_a_hessian_beyond_float32_leads_to_float64():
    w, given = random(8, 64), calibration_for(random(90, 64) * 1e-3)
    large = qviz.Calibration(
        given.inputs, given.hessian * 1e60, given.act_absmax, given.act_absmean, given.tokens
    )
    assert "Pass the weight as float64" in refusal(
        lambda: qviz.quantize(w, "gptq", large, group_size=64)
    )
    expected = qviz.quantize(w.double(), "gptq", given, group_size=64)
    assert torch.equal(
        qviz.quantize(w.double(), "gptq", large, group_size=64).codes, expected.codes
    )


def test_a_tensor_names_itself_where_nothing_else_is_advised():
    with pytest.raises(ValueError, match=r"nan_to_num\(things, 0, 0, 0\)"):
        require_finite(torch.tensor([torch.nan]), "things")


def test_calibration_that_is_missing_can_be_captured_as_it_says():
    """`calibration=qviz.capture(model, texts)` for a model, one layer's for a weight."""
    layer, model = "model.layers.0.self_attn.k_proj", qviz.load_model()
    weight, texts = qviz.load_layer(None, layer), ["def add(a, b):\n    return a + b\n" * 4]
    text = refusal(lambda: qviz.quantize(weight, "gptq"))
    one = followed(
        text,
        r"qviz\.capture\(model, texts, \[layer\]\)\[layer\]",
        model=model,
        texts=texts,
        layer=layer,
    )
    assert registry.quantize(weight, "gptq", one).shape == tuple(weight.shape)


def test_a_model_names_the_layer_and_the_sizes_that_fit():
    model = qviz.load_model()
    name = "model.layers.0.mlp.down_proj"
    text = refusal(lambda: qviz.quantize_model(model, layers=[name], group_size=96))
    assert text.startswith(f"{name}: group_size 96 does not divide the ")
    sizes = [int(n) for n in re.search(r"Sizes that do: ([\d, ]+)", text)[1].split(", ")]
    columns = qviz.load_layer(None, name).shape[1]
    assert sizes == [d for d in range(8, columns + 1) if columns % d == 0]
    whole = qviz.quantize_model(model, layers=[name], group_size=None).tensors[name]
    spelled = [
        qviz.quantize_model(model, layers=[name], group_size=-1),
        qviz.quantize_model(model, layers=[name], per_layer={name: {"group_size": -1}}),
    ]
    for made in spelled:
        assert torch.equal(made.tensors[name].codes, whole.codes)
        assert made.tensors[name].bits_per_weight == whole.bits_per_weight
