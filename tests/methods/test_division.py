"""No value is decided by a division that a GPU does otherwise than a CPU."""

import pytest
import test_every_method as every
import torch
from test_gptq import MODES
from torch.overrides import TorchFunctionMode

from qviz.core.divide import divide
from qviz.methods import registry
from qviz.methods.affine import affine
from qviz.methods.gguf import LAYOUTS, gguf
from qviz.methods.microscaling import BLOCK_FORMATS, microscaling
from qviz.methods.microscaling import CONVENTIONS as MX_CONVENTIONS

DIVISIONS = {
    getattr(torch.Tensor, name)
    for name in ("__truediv__", "__itruediv__", "div", "div_", "divide", "divide_", "true_divide")
} | {torch.div, torch.divide, torch.true_divide}


class NoNumbers(TorchFunctionMode):
    """Fails where a tensor is divided by a Python number, of whose reciprocal CUDA takes the
    nearest float, or by a tensor of another device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in DIVISIONS:
            number, by = args[:2]
            assert isinstance(by, torch.Tensor), f"{tuple(number.shape)} divided by the number {by}"
            assert number.device == by.device
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "options"), every.CASES)
def test_no_method_divides_a_tensor_by_a_number(monkeypatch, name, options):
    given = every.calibration()
    monkeypatch.setattr(every, "calibration", lambda: given)
    with NoNumbers():
        every.made_and_used(name, options)


@pytest.mark.parametrize(("convention", "symmetric"), MODES)
def test_no_convention_does(convention, symmetric):
    with NoNumbers():
        affine(every.weight(), convention=convention, symmetric=symmetric)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("importance", [None, torch.rand(256) + 0.1], ids=["plain", "importance"])
def test_no_type_of_gguf_does(name, importance):
    with NoNumbers():
        gguf(every.weight(), type=name, importance=importance)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, {option: value})
        for name, method in registry.methods().items()
        for option, values in method.choices.items()
        for value in values
        if (name, option) not in {("affine", "convention"), ("gguf", "type")}  # above
    ],
    ids=str,
)
def test_no_choice_does(monkeypatch, name, options):
    given = every.calibration()
    monkeypatch.setattr(every, "calibration", lambda: given)
    with NoNumbers():
        try:
            every.run(name, {**every.OPTIONS.get(name, [{}])[0], **options})
        except ValueError as refused:  # a choice may exclude another, and then it says so
            assert str(next(iter(options.values()))) in str(refused)


@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_no_convention_of_blocks_does(format):
    names = [name for name, rules in MX_CONVENTIONS.items() if format in rules.formats]
    assert names
    for name in names:
        with NoNumbers():
            microscaling(every.weight(), format=format, convention=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_divided_by_a_number_is_divided_by_a_tensor(dtype):
    """Against float64, rounded once: a product with the reciprocal is off here and there."""
    x = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )
    for number in (7, 15, 127, 448.0, 127.5):
        divided = divide(x, number)
        assert divided.dtype == dtype
        assert torch.equal(divided, x / torch.full_like(x, number))
        if dtype == torch.float32:
            assert torch.equal(divided, (x.double() / number).float())
            assert not torch.equal(divided, x * (1 / torch.tensor(number, dtype=dtype)))
            assert torch.equal(divide(number, x + 1), (number / (x + 1).double()).float())


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize(("convention", "symmetric"), MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_affine_on_a_gpu_is_affine_on_the_processor(convention, symmetric, dtype):
    """Bit for bit: nothing in it depends on an order of sums."""
    w = torch.randn(256, 1024, generator=torch.Generator().manual_seed(3)).to(dtype)
    for bits in (2, 3, 4, 8):
        options = {"bits": bits, "convention": convention, "symmetric": symmetric}
        here, there = affine(w, **options), affine(w.cuda(), **options)
        assert torch.equal(here.codes, there.codes.cpu()), bits
        for one, other in zip(here._streams(), there._streams(), strict=True):
            assert torch.equal(one.values, other.values.cpu()), (bits, one.name)


@needs_gpu
@pytest.mark.parametrize("name", LAYOUTS)
def test_gguf_on_a_gpu_writes_the_processors_bytes(name):
    w = torch.randn(64, 1024, generator=torch.Generator().manual_seed(4))
    assert torch.equal(gguf(w, type=name).grid.data, gguf(w.cuda(), type=name).grid.data.cpu())
