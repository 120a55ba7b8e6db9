"""What a kernel says of itself, and what happens to those who ask for one that is not there."""

import pytest
import torch
from inputs import calibration_for
from kernel_cases import inputs

import qviz
from qviz import kernels
from qviz.core.check import FLOAT_DTYPES
from qviz.kernels import formats
from qviz.kernels.kernel import by_group
from qviz.kernels.registry import BASELINE


def q4(rows=16, columns=64, **options):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return qviz.quantize(w, bits=4, group_size=32, **options)


def test_every_kernel_describes_itself():
    for name, kernel in kernels.kernels().items():
        assert kernel.name == name and kernel.backend == name.split(".")[0]
        assert kernel.title and kernel.source and kernel.activations
        assert set(kernel.devices) <= {"cpu", "cuda"}
        assert set(kernel.dtypes) <= set(FLOAT_DTYPES)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_why_a_kernel_is_not_there_is_one_sentence(device):
    for each in kernels.available(device):
        if each.reason is not None:
            assert each.reason.endswith(".") and "\n" not in each.reason, each
            assert len(each.reason) < 240
        assert each.kernel.name in str(each)
    if device == "cuda" and not torch.cuda.is_available():
        assert not any(kernels.available(device))


def test_the_sixteen_bit_product_is_always_there():
    there = {each.kernel.name: bool(each) for each in kernels.available("cpu")}
    assert there[BASELINE]
    assert kernels.usable(q4(), "cpu")[0].name == BASELINE


def test_a_probe_notices_a_wrong_product(monkeypatch):
    kernel = kernels.get("torch.int4")
    monkeypatch.setattr(type(kernel), "product", lambda self, packed, x: x.new_ones(3, 32))
    assert "wrong" in kernel._probe(torch.device("cpu"))


def test_a_probe_says_what_was_raised(monkeypatch):
    from qviz.kernels import kernel as module

    def product(self, packed, x):
        raise RuntimeError("no such instruction\nat frame 7")

    kernel = type(kernels.get("torch.int4"))()
    monkeypatch.setattr(type(kernel), "product", product)
    reason = module._probed.__wrapped__(kernel, torch.device("cpu"))
    assert reason == "torch.int4 does not run here: no such instruction."


def test_names_that_are_unknown_or_absent():
    with pytest.raises(ValueError, match=r"torch\.int4"):
        kernels.get("torch.int")
    with pytest.raises(ValueError, match="int4-g128"):
        formats.get("int4-g12")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="no CUDA device") as caught:
            kernels.require("torch.int4", "cuda")
        assert str(caught.value).endswith("without CUDA.")  # and no list of nothing


def test_multiply_checks_what_it_is_given():
    kernel, q = kernels.get("torch.int4"), q4()
    packed = kernel.pack(q)
    with pytest.raises(ValueError, match="64 inputs"):
        kernel.multiply(packed, torch.zeros(2, 63, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="pack it again"):
        kernel.multiply(packed, torch.zeros(2, 64))
    with pytest.raises(ValueError, match=r"packed for torch\.int4"):
        kernels.get(BASELINE).multiply(packed, torch.zeros(2, 64, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="float64"):
        kernel.pack(q, dtype=torch.float64)
    with pytest.raises(TypeError, match="weight"):
        kernel.pack(torch.zeros(2, 2))


def test_leading_dimensions_and_no_tokens():
    kernel, q = kernels.get("torch.int4"), q4()
    packed, x = kernel.pack(q), inputs(6, 64, torch.bfloat16)
    flat = kernel.multiply(packed, x)
    assert torch.equal(kernel.multiply(packed, x.reshape(2, 3, 64)), flat.reshape(2, 3, 16))
    assert torch.equal(kernel.multiply(packed, x.T.contiguous().T), flat)  # not contiguous
    assert kernel.multiply(packed, x[:0]).shape == (0, 16)


def test_inputs_and_tensor_stay_as_they_are():
    for name in ("torch.int4", BASELINE):
        kernel, q, x = kernels.get(name), q4(), inputs(3, 64, torch.bfloat16)
        codes, scale, kept = q.codes.clone(), q.grid.scale.clone(), x.clone()
        kernel.multiply(kernel.pack(q), x)
        assert torch.equal(q.codes, codes) and torch.equal(q.grid.scale, scale)
        assert torch.equal(x, kept)


def test_a_transform_is_refused_with_the_remedy():
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    calibration = calibration_for(inputs(300, 64, torch.float32))
    q = qviz.quantize(w, "awq", calibration, bits=4, group_size=32)
    assert q.transform is not None
    with pytest.raises(ValueError, match=r"folded\(\)"):
        kernels.get("torch.int4").pack(q)
    kernels.get("torch.int4").pack(q.folded())


def test_columns_by_group():
    q = q4()
    assert by_group(q) == (q, None)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format_can_be_made_and_multiplied(name):
    w = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    q = formats.get(name).quantize(w)
    relative = float((q.dequantize() - w).norm() / w.norm())
    assert relative < 0.2
    assert BASELINE in [kernel.name for kernel in kernels.usable(q, "cpu")]


def test_packed_bytes_are_those_of_the_format():
    q = q4(64, 256)
    packed = kernels.get("torch.int4").pack(q)
    assert packed.nbytes == 64 * 256 // 2 + 64 * 8 * 4  # codes; a scale and an offset per group
    assert kernels.get(BASELINE).pack(q).nbytes == 64 * 256 * 2
    assert "bytes" in repr(packed)
