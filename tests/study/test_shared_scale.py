"""Blocks with a shared scale against the formula in plain numbers, and ml_dtypes."""

import math
from functools import cache

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qviz.methods.microscaling import BLOCK_FORMATS, microscaling
from qviz.study.shared_scale import Traced, cost_of, shared_scale, traced

DTYPES = {
    "mxfp4": ml_dtypes.float4_e2m1fn,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
    "mxfp8_e4m3": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
}
EMAX = {"mxfp4": 2, "mxfp6_e2m3": 2, "mxfp6_e3m2": 4, "mxfp8_e4m3": 8, "mxfp8_e5m2": 15}


@cache
def small() -> torch.Tensor:
    w = torch.randn(6, 128, generator=torch.Generator().manual_seed(5)) * 0.05
    w[2, 32:64] = 0.0
    w[3, 5] = 3.0
    return w


@cache
def run_of(name: str) -> Traced:
    return traced(small(), format=name)


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return small()


@pytest.mark.parametrize("name", DTYPES)
@given(row=st.integers(0, 5), column=st.integers(0, 127))
def test_mx_is_the_formula(weight, name, row, column):
    """s = 2^(⌊log₂ a⌋ − e_max), then v/s clamped, by ml_dtypes."""
    block = shared_scale(run_of(name), row, column)
    start = column // 32 * 32
    v = weight[row, start : start + 32].double().numpy()
    a = float(np.abs(v).max())
    assert (block.row, block.start, block.amax) == (row, start, a)
    assert [m.column for m in block.members] == list(range(start, start + 32))
    if a == 0:
        assert (block.relative_error, block.used, block.clipped) == (0.0, 1, 0)
        return
    e = math.floor(math.log2(a)) - EMAX[name]
    assert (block.stored, block.scale, block.local) == (e + 127, 2.0**e, 2.0**e)
    assert (block.tensor, block.scale_format) == (None, "e8m0")
    top = float(ml_dtypes.finfo(DTYPES[name]).max)
    clamped = np.clip(v / 2.0**e, -top, top)
    codes = clamped.astype(np.float32).astype(DTYPES[name])
    back = codes.astype(np.float64) * 2.0**e
    for m, x, code, value in zip(block.members, v, codes, back, strict=True):
        assert (m.weight, m.scaled) == (x, x / 2.0**e)
        assert (m.code, m.element) == (int(code.view(np.uint8)), float(code))
        assert (m.value, m.error) == (value, x - value)
        assert m.clipped == (abs(x / 2.0**e) > top)
    assert block.clipped == int((np.abs(v / 2.0**e) > top).sum())
    assert block.used == len(set(back.tolist()))
    assert block.relative_error == pytest.approx(
        math.sqrt(((v - back) ** 2).sum() / (v**2).sum()), rel=1e-12
    )


@given(row=st.integers(0, 5), column=st.integers(0, 127))
def test_nvfp4_has_two_scales(weight, row, column):
    block = shared_scale(run_of("nvfp4"), row, column)
    start = column // 16 * 16
    v = weight[row, start : start + 16].double().numpy()
    tensor = float(np.float32(weight.abs().max().item()) / np.float32(448 * 6))
    assert (block.start, len(block.members), block.scale_format) == (start, 16, "fp8_e4m3")
    assert block.tensor == pytest.approx(tensor, rel=1e-6)
    local = max(2.0**-6, float(np.abs(v).max()) / 6 / tensor)
    assert block.local == pytest.approx(local, rel=1 / 16)
    assert block.local == float(np.array([block.stored], np.uint8).view(ml_dtypes.float8_e4m3fn)[0])
    assert block.scale == pytest.approx(block.local * block.tensor, rel=1e-6)
    for m, x in zip(block.members, v, strict=True):
        assert m.scaled == pytest.approx(x / block.scale, rel=1e-5, abs=1e-12)
        assert m.value == pytest.approx(m.element * block.scale, rel=1e-6)
        assert abs(m.element) in (0, 0.5, 1, 1.5, 2, 3, 4, 6)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_the_blocks_make_up_the_matrix(weight, name):
    run, size = traced(weight, format=name), BLOCK_FORMATS[name].size
    blocks = [shared_scale(run, r, c) for r in range(6) for c in range(0, 128, size)]
    back = torch.tensor([m.value for b in blocks for m in b.members]).reshape(6, 128)
    assert torch.equal(back, microscaling(weight, format=name).dequantize())
    cost = cost_of(weight, run.q)
    assert cost.clipped == sum(b.clipped for b in blocks) / weight.numel()
    w, r = weight.double(), back.double()
    assert cost.off == pytest.approx(float((w - r).norm() / w.norm()), rel=1e-9)
    assert cost.bits == run.q.bits_per_weight
    bits = BLOCK_FORMATS[name].element.bits + 8 / size
    assert cost.bits == pytest.approx(bits + (32 / weight.numel() if name == "nvfp4" else 0))


def test_a_place_outside_is_said(weight):
    with pytest.raises(IndexError, match="rows go from 0 to 5"):
        shared_scale(traced(weight), 6, 0)
