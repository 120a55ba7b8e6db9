"""Types on a layer and mixes of files, against gguf-py, brute force and published numbers."""

import numpy as np
import pytest
import torch

import qviz
from qviz.methods.gguf import LAYOUTS
from qviz.methods.gguf.mixes import FILE_TYPES
from qviz.study.gguf_files import MODELS, ONCE, ROWS, file_map, type_bits
from qviz.study.gguf_types import TYPES, bits_of, fitting, importance_of, scores, shift

LAYER = "model.layers.0.self_attn.k_proj"


@pytest.fixture(scope="module")
def weight():
    return qviz.load_layer(None, LAYER).float()


@pytest.fixture(scope="module")
def calibration():
    return qviz.load_calibration(None, LAYER)


@pytest.fixture(scope="module")
def found(weight, calibration):
    return scores(weight, TYPES, calibration)


def test_bits_are_counted_from_the_struct():
    assert set(TYPES) == set(LAYOUTS) and len(TYPES) == 11
    wanted = {"Q2_K": 2.625, "Q3_K": 3.4375, "MXFP4": 4.25, "Q4_0": 4.5, "Q4_K": 4.5, "Q4_1": 5.0,
              "Q5_0": 5.5, "Q5_K": 5.5, "Q5_1": 6.0, "Q6_K": 6.5625, "Q8_0": 8.5}  # fmt: skip
    assert list(TYPES) == list(wanted)
    for name, bits in wanted.items():
        assert sum(bits_of(name).values()) == bits == type_bits(name)


def test_importance_is_the_mean_square_of_the_inputs(calibration):
    """The Hessian counts every token, the inputs that are kept are some of them."""
    own = importance_of(calibration)
    assert own.dtype == torch.float32 and (own > 0).all()
    if calibration.inputs.shape[0] == calibration.tokens:
        assert torch.allclose(own, calibration.inputs.float().square().mean(0), rtol=1e-3)
    some = calibration.inputs.float().square().mean(0)
    assert np.corrcoef(own.log(), some.log())[0, 1] > 0.95


def test_errors_are_those_of_the_bytes_as_gguf_py_reads_them(found, weight, calibration):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    x = calibration.inputs.double()
    for name, pair in found.items():
        for score in pair:
            data = score.tensor.grid.data.numpy()
            back = torch.from_numpy(dequantize(data, GGMLQuantizationType[name])).double()
            off = float((back - weight).norm() / weight.double().norm())
            assert score.error == pytest.approx(off)
            assert score.bits == 8 * data.size / weight.numel()
            noise = (x @ (back - weight).T).norm() / (x @ weight.double().T).norm()
            assert score.output == pytest.approx(float(noise), rel=0.2)  # of some of the tokens
    assert not found["Q8_0"][1].weighs and not found["MXFP4"][1].weighs
    assert found["Q8_0"][1].error == found["Q8_0"][0].error
    assert found["Q4_K"][0].error < found["Q4_0"][0].error  # of the same bits


def test_without_inputs_there_is_no_importance(weight):
    plain, weighed = scores(weight, ["Q4_0"])["Q4_0"]
    assert weighed is None and plain.output is None


def test_types_that_fit():
    assert fitting(1024) == list(TYPES)
    assert all(LAYOUTS[name].weights == 32 for name in fitting(384)) and len(fitting(384)) == 6
    with pytest.raises(ValueError, match="multiple of 32"):
        fitting(8)


def test_where_the_error_goes(found, weight, calibration):
    own = importance_of(calibration)
    plain, weighed = found["Q4_0"]
    parts = shift(weight, plain.tensor, weighed.tensor, own, parts=4)
    order = np.argsort(own.numpy(), kind="stable")
    w = weight.double().numpy()
    for values, score in ((parts.plain, plain), (parts.weighed, weighed)):
        squared = (w - score.tensor.dequantize().double().numpy()) ** 2
        for group, value in zip(np.array_split(order, 4), values, strict=True):
            assert float(value) == pytest.approx(squared[:, group].mean() / (w**2).mean())
    assert parts.importance.tolist() == sorted(parts.importance.tolist())
    assert parts.weighed[-1] < parts.plain[-1]


# ------------------------------------------------------------------------------------ files

#: Bits per weight of files as llama.cpp's README tables them.
PUBLISHED = {
    "Llama-2-7B": {"Q2_K": 3.01, "Q3_K_S": 3.50, "Q3_K_M": 3.91, "Q3_K_L": 4.27, "Q4_K_S": 4.58,
                   "Q4_K_M": 4.84, "Q5_K_S": 5.52, "Q5_K_M": 5.68, "Q6_K": 6.56, "Q8_0": 8.50},
    "Llama-3.1-8B": {"Q2_K": 3.16, "Q3_K_S": 3.64, "Q3_K_M": 4.00, "Q3_K_L": 4.30, "Q4_K_S": 4.67,
                     "Q4_K_M": 4.89, "Q5_K_S": 5.57, "Q5_K_M": 5.70, "Q6_K": 6.56, "Q8_0": 8.50},
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_bits_of_files_are_the_published_ones_to_two_decimals(model):
    for name, bits in PUBLISHED[model].items():
        assert f"{file_map(model, name).bits:.2f}" == f"{bits:.2f}"


@pytest.mark.parametrize("model", MODELS)
def test_a_map_has_every_tensor_and_its_share(model):
    config = MODELS[model]
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    for name in FILE_TYPES:
        one = file_map(model, name)
        assert one.layers == layers
        tied = config["tie_word_embeddings"]
        assert list(one.types) == [*ROWS, *(ONCE[:1] if tied else ONCE)]
        assert 0.99 < sum(one.shares.values()) <= 1  # the rest are norms and routers
        down = config["intermediate_size"] * hidden * max(1, config.get("num_local_experts", 0))
        size = sum(down * type_bits(kind) / 8 for kind in one.types["ffn_down"])
        assert one.shares["ffn_down"] == pytest.approx(size / one.nbytes)
        assert one.bits == pytest.approx(8 * one.nbytes / one.parameters)
        for row, n in one.raised.items():
            assert n == sum(kind != one.base for kind in one.types[row]) > 0


def test_the_letter_is_the_mix_and_rows_of_896_fall_back():
    small, medium = (file_map("Llama-3.1-8B", f"Q4_K_{letter}") for letter in "SM")
    assert small.base == medium.base == "Q4_K" and small.bits < medium.bits
    assert medium.raised == {"attn_v": 16, "ffn_down": 16}
    assert medium.types["output"] == ("Q6_K",) and medium.types["token_embd"] == ("Q4_K",)
    odd = file_map("Qwen2.5-0.5B", "Q4_K_M")
    assert odd.types["attn_q"] == ("Q5_0",) * 24 and odd.bits > 6
    experts = file_map("Mixtral-8x7B", "Q4_K_M")
    assert set(experts.types["attn_v"]) == {"Q8_0"}
    plain, weighed = (file_map("Llama-2-7B", "Q4_0", importance=i) for i in (False, True))
    assert weighed.raised == {"ffn_down": 4} and not plain.raised
