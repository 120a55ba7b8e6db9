"""Metrics against their definitions, computed the long way."""

import math

import pytest
import torch
from inputs import calibration_for

import qviz
from qviz.core import metrics


def test_output_error_is_the_error_of_the_output():
    x, w = torch.randn(50, 32), torch.randn(12, 32)
    r = qviz.quantize(w, bits=3, group_size=16).dequantize()
    y, z = x.double() @ w.double().T, x.double() @ r.double().T
    want = ((y - z).norm() / y.norm()).item()
    assert metrics.output_error(w, r, calibration_for(x)) == pytest.approx(want, rel=1e-9)


def test_output_error_refuses_another_layers_calibration():
    with pytest.raises(ValueError, match="another layer"):
        metrics.output_error(
            torch.ones(2, 8), torch.ones(2, 8), calibration_for(torch.randn(5, 16))
        )


def test_definitions():
    w = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    r = torch.tensor([[1.5, -2.0], [3.0, 3.0]])
    assert metrics.mse(w, r) == (0.25 + 1) / 4
    assert metrics.compare(w, r).max_error == 1
    assert metrics.compare(w, r).sqnr_db == pytest.approx(10 * math.log10(30 / 1.25))
    assert metrics.compare(w, r).relative_error == pytest.approx(math.sqrt(1.25 / 30))
    assert metrics.compare(w, w).sqnr_db == math.inf
    zero = torch.zeros(2, 2)
    assert metrics.compare(zero, zero).relative_error == 0
    assert metrics.compare(zero, w).relative_error == math.inf
    assert metrics.compare(zero, w).sqnr_db == -math.inf
    with pytest.raises(ValueError, match="shape"):
        metrics.mse(w, w[:1])


@pytest.mark.parametrize("convention", ["gptq", "awq", "compressed_tensors"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_and_clipping_add_up(hard_weight, convention, symmetric):
    w = hard_weight.double()  # in float64 every adversarial range has a scale
    q = qviz.quantize(w, bits=3, symmetric=symmetric, group_size=32, convention=convention)
    split = metrics.error_split(w, q)
    assert split.total == pytest.approx(metrics.mse(w, q.dequantize()), rel=1e-9, abs=1e-300)


def test_clipping_alone():
    """A one-signed group under GPTQ's symmetric rule loses its upper half, by clipping."""
    w = torch.linspace(0.01, 1, 64).reshape(1, 64)
    split = metrics.error_split(w, qviz.quantize(w, group_size=64, convention="gptq"))
    assert split.clipping > 100 * split.rounding
    assert split.clipped == int((w > 7 / 15).sum())
