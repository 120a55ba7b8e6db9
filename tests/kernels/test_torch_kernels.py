"""torch's own products against float64: sizes that do not fit, groups, batches, dtypes."""

from dataclasses import replace

import pytest
import torch
from inputs import calibration_for
from kernel_cases import agrees, gives_back_the_weight, inputs
from torch.utils._python_dispatch import TorchDispatchMode

import qviz
from qviz import kernels
from qviz.core.granularity import Granularity
from qviz.kernels.torch_kernels import fp8_tokens, int8_tokens

BATCHES = (1, 3, 16, 64)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weight(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    return request.param


def there(name, device):
    kernel = kernels.get(name)
    reason = kernel.missing(device)
    if reason is not None:
        pytest.skip(reason)
    return kernel


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (17, 3), (48, 2), (130, 1)])
def test_int4_groups(rows, groups, symmetric, group_size, device):
    kernel = there("torch.int4", device)
    w = weight(rows, groups * group_size)
    q = qviz.quantize(w, bits=4, symmetric=symmetric, group_size=group_size)
    gives_back_the_weight(kernel, q, torch.bfloat16, device)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, w.shape[1], torch.bfloat16), device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("convention", ["gptq", "hqq", "quanto", "awq"])
def test_int4_of_every_dtype_and_kind_of_zero(convention, dtype):
    symmetric = convention == "gptq"
    q = qviz.quantize(
        weight(40, 192), bits=4, group_size=64, symmetric=symmetric, convention=convention
    )
    agrees(there("torch.int4", "cpu"), q, inputs(5, 192, dtype))


def test_int4_in_act_order(device):
    """Groups of columns that are not consecutive: the inputs are gathered."""
    w = weight(24, 128)
    calibration = calibration_for(inputs(400, 128, torch.float32))
    q = qviz.quantize(
        w, "gptq", calibration, bits=4, group_size=32, act_order=True, static_groups=False
    )
    assert q.g_idx is not None
    kernel = there("torch.int4", device)
    gives_back_the_weight(kernel, q, torch.bfloat16, device)
    agrees(kernel, q, inputs(3, 128, torch.bfloat16), device)


@pytest.mark.parametrize("name", ["torch.int8", "torch.int8_dynamic"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 33), (5, 7), (64, 96), (33, 200)])
def test_int8_rows(rows, columns, granularity, name, device):
    kernel = there(name, device)
    q = qviz.quantize(weight(rows, columns), bits=8, granularity=granularity, group_size=None)
    gives_back_the_weight(kernel, q, torch.bfloat16, device)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, torch.bfloat16), device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["torch.int8", "torch.int8_dynamic"])
def test_int8_of_every_dtype(name, dtype):
    q = qviz.quantize(weight(40, 100), bits=8, granularity="channel", group_size=None)
    agrees(there(name, "cpu"), q, inputs(5, 100, dtype))


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 33), (64, 96)])
def test_fp8(rows, columns, granularity, device):
    kernel = there("torch.fp8", device)
    q = qviz.quantize(weight(rows, columns), "fp8", granularity=granularity)
    gives_back_the_weight(kernel, q, torch.bfloat16, device)
    for tokens in BATCHES:
        agrees(kernel, q, inputs(tokens, columns, torch.bfloat16), device)


def test_zeros_and_extremes():
    """All-zero groups and tokens, and codes at both ends, are nothing special."""
    w = weight(32, 128)
    w[3] = 0
    w[:, 32:64] = 0
    w[5] = w[5].sign() * 4
    x = inputs(4, 128, torch.bfloat16)
    x[2] = 0
    for name, options in {
        "torch.int4": {"bits": 4, "group_size": 32},
        "torch.int8": {"bits": 8, "granularity": "channel", "group_size": None},
        "torch.int8_dynamic": {"bits": 8, "granularity": "channel", "group_size": None},
    }.items():
        q = qviz.quantize(w, **options)
        agrees(there(name, "cpu"), q, x)
    agrees(there("torch.fp8", "cpu"), qviz.quantize(w, "fp8"), x)


class Divisions(TorchDispatchMode):
    """What tensors are divided by, while it is active."""

    def __init__(self):
        super().__init__()
        self.divisors = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "div" in function._schema.name:
            self.divisors.append(args[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("round_inputs", [int8_tokens, lambda x: fp8_tokens(x, whole=False)])
def test_no_input_is_divided_by_a_plain_number(round_inputs):
    """On CUDA that would be a product with the number's reciprocal, and another code now and
    then: on an H100 5 of 6144 codes were others."""
    with Divisions() as seen:
        round_inputs(torch.randn(3, 40))
    assert len(seen.divisors) == 2
    assert all(isinstance(each, torch.Tensor) for each in seen.divisors)


@pytest.mark.parametrize("round_inputs", [int8_tokens, lambda x: fp8_tokens(x, whole=False)])
def test_inputs_have_the_same_codes_on_a_gpu(round_inputs, device):
    if device == "cpu":
        pytest.skip("this compares a GPU with the CPU")
    x = inputs(64, 4096, torch.bfloat16)
    codes, scale = round_inputs(x)
    theirs, other = round_inputs(x.to(device))
    assert torch.equal(scale, other.cpu())
    assert torch.equal(codes.view(torch.uint8), theirs.cpu().view(torch.uint8))


def test_inputs_that_are_rounded():
    x = torch.tensor([[0.0, 0.0], [-127.0, 63.5], [1e-30, 2e-30]])
    codes, scale = int8_tokens(x)
    assert codes.tolist() == [[0, 0], [-127, 64], [64, 127]]  # 63.5 goes to the even neighbour
    assert torch.allclose(scale.flatten(), torch.tensor([0.0, 1.0, 2e-30 / 127]))
    values, scale = fp8_tokens(x[:2] * 448, whole=False)
    assert values.float().tolist() == [[0, 0], [-448, 224]]
    assert fp8_tokens(x, whole=True)[1].shape == ()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("torch.int4", {"bits": 3, "group_size": 32}, "4-bit"),
        ("torch.int4", {"bits": 4, "group_size": 16}, "groups of 32"),
        ("torch.int4", {"bits": 4, "granularity": "channel", "group_size": None}, "not of 96"),
        ("torch.int8", {"bits": 8, "group_size": 32}, "one scale per row"),
        (
            "torch.int8_dynamic",
            {"bits": 8, "granularity": "channel", "group_size": None, "symmetric": False},
            "zero points",
        ),
        ("torch.fp8", {"bits": 8, "granularity": "channel", "group_size": None}, "FP8"),
    ],
)
def test_what_a_kernel_refuses(name, options, said):
    kernel = kernels.get(name)
    q = qviz.quantize(weight(8, 96), **options)
    assert said in kernel.refuses(q)
    with pytest.raises(ValueError, match=said):
        kernel.pack(q)


@pytest.mark.parametrize("name", ["torch.int8", "torch.int8_dynamic", "torch.fp8"])
def test_a_scale_per_column_is_no_scale_per_row(name):
    """Of a square weight the two have the same shape: only the axis tells."""
    options = {"bits": 8, "granularity": "channel", "group_size": None}
    w = weight(32, 32)
    q = qviz.quantize(w, "fp8") if name == "torch.fp8" else qviz.quantize(w, **options)
    kernel = kernels.get(name)
    assert kernel.refuses(q) is None
    assert kernel.refuses(replace(q, granularity=Granularity("channel", axis=0))) is not None


def test_e5m2_is_another_format():
    q = qviz.quantize(weight(16, 32), "fp8", format="fp8_e5m2")
    assert "E4M3" in kernels.get("torch.fp8").refuses(q)


def test_int4_on_cuda_is_for_bfloat16_alone():
    """Refused when it is packed, not by torch when it is multiplied; on the way, without a GPU."""
    kernel = kernels.get("torch.int4")
    q = kernel.adapt(qviz.quantize(weight(16, 128), bits=4, group_size=64), torch.float16)
    with pytest.raises(ValueError, match="bfloat16 inputs on CUDA"):
        kernel._pack(q, torch.device("cuda"), torch.float16)
