"""GPTQ in a dozen plain lines gives the codes of the real function, in float64."""

import inspect
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import calibration_for

import qviz
from qviz.methods.gptq import gptq
from qviz.methods.gptq_plain import gptq_plain


def problem(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, qviz.Calibration]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * columns, columns, generator=g, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=g, dtype=torch.float64) / columns**0.5
    weight = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    return weight, calibration_for(x + 2 * x @ mix)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([16, 48, 96]),
    st.sampled_from([8, 16, None]), st.integers(2, 8), st.sampled_from([0.0, 0.01, 0.3]),
    st.sampled_from([1, 16, 40, 128]),
)  # fmt: skip
def test_the_codes_are_those_of_the_real_function(
    seed, rows, columns, group_size, bits, damp, block_size
):
    weight, calibration = problem(seed, rows, columns)
    real = gptq(
        weight, calibration, bits=bits, group_size=group_size, damp=damp, convention="absmax",
        block_size=block_size,
    )  # fmt: skip
    plain = gptq_plain(
        weight, calibration.hessian, bits=bits, group_size=group_size or columns, damp=damp
    )
    assert torch.equal(plain, real.codes)


@pytest.mark.parametrize("bits", [3, 4])
def test_on_a_real_layer_too(bits):
    layer = "model.layers.0.mlp.down_proj"
    weight = qviz.load_layer(None, layer)[:64].double()
    calibration = qviz.load_calibration(None, layer)
    real = gptq(weight, calibration, bits=bits, convention="absmax")
    plain = gptq_plain(weight, calibration.hessian.double(), bits=bits)
    assert torch.equal(plain, real.codes)
    nearest = qviz.quantize(weight, bits=bits, convention="absmax").codes
    assert not torch.equal(plain, nearest)


def test_it_is_a_dozen_lines():
    module = sys.modules[gptq_plain.__module__]
    source = inspect.getsource(module.gptq_plain)
    body = source[source.rindex('"""') + 3 :]
    lines = [line for line in body.splitlines() if line.strip()]
    assert len(lines) <= 12, len(lines)
    assert max(len(line) for line in lines) <= 100


def test_the_weight_is_left_alone():
    weight, calibration = problem(0, 4, 16)
    before, h = weight.clone(), calibration.hessian.clone()
    gptq_plain(weight, calibration.hessian, group_size=8)
    assert torch.equal(weight, before)
    assert torch.equal(calibration.hessian, h)
