"""bitsandbytes' products against float64, by what they are given of ours."""

import logging
import sys

import pytest
import torch
from kernel_cases import agrees, gives_back_the_weight, inputs

import qviz
from qviz import kernels
from qviz.kernels import bnb
from qviz.kernels import kernel as kernel_module

BATCHES = (1, 3, 16, 64)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weight(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def there(name):
    kernel = kernels.get(name)
    reason = kernel.missing("cpu")
    if reason is not None:
        pytest.skip(reason)
    return kernel


@pytest.mark.parametrize("format", ["nf4", "fp4"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (17, 256), (32, 128), (7, 384)])
def test_four_bits(rows, columns, group_size, format):
    q = qviz.quantize(weight(rows, columns), "nf4", format=format, group_size=group_size)
    kernel = there("bitsandbytes.matmul_4bit")
    gives_back_the_weight(kernel, q, torch.bfloat16)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, torch.bfloat16))


@pytest.mark.parametrize("format", ["nf4", "fp4"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "columns"), [(32, 128), (96, 256), (64, 384)])
def test_four_bits_packed_for_a_cpu(rows, columns, group_size, format):
    q = qviz.quantize(weight(rows, columns), "nf4", format=format, group_size=group_size)
    kernel = there("bitsandbytes.cpu_4bit")
    gives_back_the_weight(kernel, q, torch.bfloat16)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["bitsandbytes.matmul_4bit", "bitsandbytes.cpu_4bit"])
def test_every_dtype_and_double_quantization(name, dtype):
    q = qviz.quantize(weight(64, 128), "nf4", double_quant=True)
    agrees(there(name), q, inputs(5, 128, dtype))


def test_the_packed_layout_is_theirs():
    """Byte for byte what Linear4bit makes of the same weight for inference."""
    kernel = there("bitsandbytes.cpu_4bit")
    functional = bnb.bitsandbytes().functional
    w = weight(64, 192).bfloat16()
    codes, state = functional.quantize_4bit(w, quant_type="nf4", blocksize=64)
    theirs, state = functional._convert_weight_packed_for_cpu(codes, state)
    ours = kernel.pack(qviz.quantize(w, "nf4"))
    assert torch.equal(ours.tensors["weight"], theirs)
    assert torch.equal(ours.tensors["absmax"], state.absmax)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(7, 3), (33, 129), (64, 256)])
def test_llm_int8(rows, columns, dtype):
    q = qviz.quantize(weight(rows, columns), "llm_int8").weight
    kernel = there("bitsandbytes.llm_int8")
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, dtype))  # one column holds outliers
        agrees(kernel, q, inputs(tokens, columns, dtype) / 16)  # none does


@pytest.mark.parametrize("dtype", DTYPES)
def test_llm_int8_writes_no_log_for_each_product(dtype, caplog):
    """Its line about a cast would be timed with every product; what others log is left alone."""
    kernel = there("bitsandbytes.llm_int8")
    q = qviz.quantize(weight(32, 64), "llm_int8").weight
    kernel.multiply(kernel.pack(q, dtype=dtype), inputs(3, 64, dtype))
    assert caplog.records == []
    logging.getLogger("bitsandbytes.autograd._functions").warning("another's")
    assert [record.message for record in caplog.records] == ["another's"]


def test_an_installation_that_is_broken_is_not_called_absent(monkeypatch):
    def broken(name):
        def load():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return load

    kernel = kernels.get("bitsandbytes.matmul_4bit")
    monkeypatch.setattr(bnb, "bitsandbytes", broken("bitsandbytes"))
    assert kernel._lacks(torch.device("cpu")) == bnb.NOT_INSTALLED
    monkeypatch.setattr(bnb, "bitsandbytes", broken("scipy"))
    reason = kernel_module._probed.__wrapped__(kernel, torch.device("cpu"))
    assert reason == "bitsandbytes.matmul_4bit does not run here: No module named 'scipy'."


def test_a_copy_reads_its_own_bytes():
    kernel = there("bitsandbytes.matmul_4bit")
    packed = kernel.pack(qviz.quantize(weight(8, 64), "nf4"))
    x = inputs(1, 64, torch.bfloat16)
    first = kernel.multiply(packed, x)
    copy = packed.copy()
    copy.tensors["absmax"].mul_(2)
    assert torch.equal(kernel.multiply(copy, x), 2 * first)
    assert torch.equal(kernel.multiply(packed, x), first)


def test_rows_of_broken_blocks():
    """What bitsandbytes 0.50.2 does with them on a CPU, and why we do not call it: when this fails,
    it has been mended, and `refuses` can go."""
    functional = bnb.bitsandbytes().functional
    w = weight(17, 96)
    q = qviz.quantize(w, "nf4")
    theirs = functional.dequantize_4bit(*functional.quantize_4bit(w, quant_type="nf4"))
    assert float((theirs - q.dequantize()).abs().max()) > 1
    assert "whole blocks" in kernels.get("bitsandbytes.matmul_4bit").refuses(q)


def test_what_they_refuse():
    affine = qviz.quantize(weight(32, 64), bits=4, group_size=32)
    assert "NF4 or FP4" in kernels.get("bitsandbytes.matmul_4bit").refuses(affine)
    assert "llm_int8" in kernels.get("bitsandbytes.llm_int8").refuses(affine)
    there("bitsandbytes.matmul_4bit")
    odd = qviz.quantize(weight(33, 64), "nf4")
    assert "multiple of 32 rows" in kernels.get("bitsandbytes.cpu_4bit").refuses(odd)
    own = qviz.quantize(weight(32, 64), "nf4", levels=torch.linspace(-1, 1, 16))
    assert kernels.get("bitsandbytes.matmul_4bit").refuses(own) is not None


def test_importing_it_runs_nothing_from_the_hub():
    """It would look for a package that fetches a binary: hidden while it is imported."""
    there("bitsandbytes.matmul_4bit")
    with bnb._without_remote_code(), pytest.raises(ImportError):
        import kernels as package  # noqa: F401
    assert sys.modules.get("kernels", "not imported") is not None
