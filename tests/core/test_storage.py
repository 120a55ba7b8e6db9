"""What methods return goes through JSON and tensors and comes back to the last bit."""

import dataclasses
import json

import pytest
import torch

import qviz
from qviz.core.calibration import Calibration
from qviz.core.storage import to_plain, to_value
from qviz.methods import registry
from qviz.methods.rotation import Rotation
from qviz.methods.smoothquant import SmoothLinear

CASES = {
    "affine": {"bits": 3, "group_size": 64, "symmetric": False, "scale_dtype": torch.float16},
    "gptq": {"bits": 2, "group_size": 32, "act_order": True},
    "awq": {"bits": 4, "group_size": 64},
    "nf4": {"double_quant": True},
    "gguf": {"type": "Q4_K"},
    "hqq": {"bits": 4},
    "fp8": {},
    "microscaling": {"format": "nvfp4"},
    "vector": {"dim": 4, "bits": 4},
    "rotation": {"bits": 4},
    "smoothquant": {},
}
CLASSES = (Rotation, SmoothLinear)  # what some methods return beside QuantizedTensor


def calibration() -> Calibration:
    x = torch.randn(96, 256, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 257)
    return Calibration(x, 2 * x.T @ x / 96, x.abs().amax(0), x.abs().mean(0), 96)


def same(a: object, b: object) -> bool:
    """Equal in type and value through all fields."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(
            a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
        )
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("method", CASES)
def test_back_to_the_last_bit(method):
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(2))
    made = qviz.quantize(weight, method, calibration(), **CASES[method])
    plain, tensors = to_plain(made, CLASSES)
    back = to_value(json.loads(json.dumps(plain)), tensors, CLASSES)
    assert same(back, made)
    assert torch.equal(back.dequantize(), made.dequantize())
    assert back.bits_per_weight == made.bits_per_weight
    spaces = {t.untyped_storage().data_ptr() for t in tensors.values()}
    assert len(spaces) == len(tensors), "safetensors refuses tensors that share memory"


def test_every_method_that_is_calibrated_can_be_stored():
    needs = {name for name, method in registry.methods().items() if method.needs}
    weights = {name for name in needs if registry.get(name).kind in ("weight", "linear")}
    assert weights <= set(CASES)


def test_the_comparison_above_sees_a_difference():
    made = qviz.quantize(torch.randn(4, 64), "affine", bits=4, group_size=32)
    codes = made.codes.clone()
    codes[3, 5] ^= 1
    assert same(made, dataclasses.replace(made))
    assert not same(made, dataclasses.replace(made, codes=codes))
    assert not same(made, dataclasses.replace(made, info={**made.info, "more": 1}))


def test_what_is_not_known_is_refused():
    made = qviz.quantize(torch.randn(4, 64), "rotation", bits=4, group_size=32)
    with pytest.raises(TypeError, match="a Rotation cannot be stored; of classes, only Quantized"):
        to_plain(made)
    with pytest.raises(TypeError, match="a set cannot be stored"):
        to_plain({"bits": {1, 2}})
    plain, tensors = to_plain(made, [Rotation])
    with pytest.raises(KeyError, match="Rotation"):
        to_value(plain, tensors)
    with pytest.raises(ValueError, match="no dtype 'load'"):
        to_value({"dtype": "load"}, {})
