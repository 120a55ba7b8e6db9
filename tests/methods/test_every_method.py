"""What holds for every method of the registry, whatever it does."""

import ast
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from inputs import calibration_for
from torch.utils._python_dispatch import TorchDispatchMode

import qviz
from qviz.core.linear import QuantizedLinear
from qviz.core.tensor import QuantizedTensor
from qviz.methods import registry

# What a call needs beyond its defaults, on a weight [64, 256]. A method without a line runs with
# its defaults alone; a few have lines for each of their branches.
OPTIONS: dict[str, list[dict]] = {
    "affine": [{}, {"symmetric": False, "convention": "hqq", "group_size": 64}],
    "gptq": [{}, {"act_order": True, "group_size": 32}, {"mse": True, "static_groups": True}],
    "nf4": [{}, {"double_quant": True}, {"format": "fp4"}],
    "gguf": [{"type": t} for t in ("Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K")],
    "fp8": [{}, {"format": "fp8_e5m2", "granularity": "tensor"}],
    "microscaling": [{}, {"format": "mxfp8_e4m3"}, {"format": "nvfp4"}],
    "vector": [{}, {"books": 2}],
}
SHAPE = (64, 256)
CASES = [
    pytest.param(name, options, id=f"{name} {options}" if options else name)
    for name in registry.methods()
    for options in OPTIONS.get(name, [{}])
]


class Operations(TorchDispatchMode):
    """Records the tensor operations that run, by name and the shapes of what goes in."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        self.seen.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


def weight(dtype=torch.float32):
    g = torch.Generator().manual_seed(7)
    w = torch.randn(SHAPE, generator=g) * 0.1
    w[:, 5] *= 6  # a channel that stands out
    return w.to(dtype)


def calibration():
    g = torch.Generator().manual_seed(8)
    mix = torch.randn(SHAPE[1], SHAPE[1], generator=g) * 0.1 + torch.eye(SHAPE[1])
    x = torch.randn(600, SHAPE[1], generator=g) @ mix
    x[:, 9] *= 10
    return calibration_for(x)


def run(name, options, w=None, emit=None):
    method = registry.get(name)
    w = weight() if w is None else w
    torch.manual_seed(0)  # for modules that draw their start from torch's generator
    return registry.quantize(w, name, calibration() if method.needs else None, emit=emit, **options)


def result(made):
    """Everything numeric that a method made, by name."""
    if isinstance(made, torch.nn.Module):
        return {k: v.detach() for k, v in made.state_dict().items()}
    tensor = made.weight if isinstance(made, QuantizedLinear) else made
    packed = {k: torch.from_numpy(v.copy()) for k, v in tensor.pack().items()}
    return {"value": tensor.dequantize(), "codes": tensor.codes, **packed}


def made_and_used(name, options, emit=None):
    """What a method made, and the product of a layer that quantizes its inputs as well."""
    made = run(name, options, emit=emit)
    found = result(made)
    if isinstance(made, QuantizedLinear):
        found["product"] = made(calibration().inputs[:48], emit=emit)
    return found


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(("name", "options"), CASES)
def test_traced_equals_untraced_bit_for_bit(name, options):
    trace = qviz.Trace()
    same(made_and_used(name, options), made_and_used(name, options, emit=trace))
    known = {event.name for event in registry.get(name).events}
    emitted = {event.name for event in trace}
    assert emitted, "a method must show its intermediates"
    assert emitted <= known, f"not in the table of events: {emitted - known}"


@pytest.mark.parametrize(("name", "options"), CASES)
def test_traced_and_untraced_execute_the_same_operations(name, options):
    made_and_used(name, options)  # what is computed once and kept, such as NF4's second levels
    with Operations() as plain:
        made_and_used(name, options)

    def hook(event, /, **tensors):
        assert all(isinstance(t, torch.Tensor) for t in tensors.values()), event

    with Operations() as traced:
        made_and_used(name, options, emit=hook)
    views = ("aten.view", "aten.reshape", "aten._unsafe_view", "aten.slice", "aten.select",
             "aten.detach", "aten.diagonal", "aten.t.", "aten.transpose", "aten.unsqueeze",
             "aten.squeeze", "aten.expand", "aten.alias", "aten.as_strided", "aten.permute",
             "aten.split", "aten.unbind")  # fmt: skip

    def work(seen):
        return [op for op in seen if not op[0].startswith(views)]

    # What an event needs beyond that may only be a copy into the shape in which it is shown, or a
    # constant that says "none"; never arithmetic.
    shown = ("aten.clone", "aten.zeros_like", "aten.new_ones", "aten._to_copy",
             "aten.scalar_tensor", "aten.lift_fresh", "aten.copy_", "aten.empty")  # fmt: skip
    plain_work, traced_work = work(plain.seen), work(traced.seen)
    extra = _surplus(traced_work, plain_work)
    assert extra is not None, "an operation of the untraced run is missing or out of order"
    assert all(op[0].startswith(shown) for op in extra), extra


def _surplus(longer, shorter):
    """What `longer` has beside `shorter`, whose elements it must hold in their order."""
    surplus, rest = [], iter(shorter)
    wanted = next(rest, None)
    for op in longer:
        if op == wanted:
            wanted = next(rest, None)
        else:
            surplus.append(op)
    return surplus if wanted is None else None


@pytest.mark.parametrize(("name", "options"), CASES)
def test_events_hold_the_tensors_that_their_table_names(name, options):
    trace = qviz.Trace()
    run(name, options, emit=trace)
    table = {event.name: set(event.tensors) for event in registry.get(name).events}
    for event in trace:
        assert set(event.tensors) <= table[event.name], event.name


@pytest.mark.parametrize(("name", "options"), CASES)
def test_inputs_stay_as_they_were(name, options):
    w, given = weight(), calibration()
    kept = [t.clone() for t in (w, given.inputs, given.hessian, given.act_absmax)]
    registry.quantize(w, name, given if registry.get(name).needs else None, **options)
    for now, before in zip((w, given.inputs, given.hessian, given.act_absmax), kept, strict=True):
        assert torch.equal(now, before)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_bill_equals_the_packed_bytes(name, options):
    made = run(name, options)
    if isinstance(made, torch.nn.Module):
        made = made.quantized()
    assert sum(map(len, made.pack().values())) == made.ledger.nbytes
    assert made.bits_per_weight == pytest.approx(8 * made.ledger.nbytes / (64 * 256))
    assert sum(i.total_bits for i in made.ledger.items) == made.ledger.total_bits


@pytest.mark.parametrize(("name", "options"), CASES)
def test_arrays_and_strides_change_nothing(name, options):
    w = weight()
    expected = result(run(name, options, w))
    apart = torch.stack([w, w], dim=-1)[..., 0]
    assert not apart.is_contiguous()
    same(expected, result(run(name, options, apart)))
    same(expected, result(run(name, options, w.T.contiguous().T)))
    same(expected, result(run(name, options, w.numpy())))
    frozen = w.numpy().copy()
    frozen.flags.writeable = False
    same(expected, result(run(name, options, np.asfortranarray(frozen))))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights(name, options, dtype):
    made = run(name, options, weight(dtype))
    value = (
        made.quantized().dequantize() if isinstance(made, torch.nn.Module) else made.dequantize()
    )
    error = (value.float() - weight()).norm() / weight().norm()
    assert torch.isfinite(value).all()
    assert error < 0.6


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite_is_refused_with_its_place(name, options, value):
    w = weight()
    w[3, 17] = value
    with pytest.raises(ValueError, match=r"not finite.*\[3, 17\]"):
        run(name, options, w)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(
    ("w", "error"),
    [
        (torch.ones(4), ValueError),
        (torch.ones(4, 256, dtype=torch.int32), TypeError),
        (torch.ones(0, 256), ValueError),
        ([[1.0]], TypeError),
    ],
    ids=["vector", "integers", "empty", "list"],
)
def test_what_is_no_weight_is_refused(name, options, w, error):
    with pytest.raises(error, match=r"weight|matrix|tensor"):
        registry.quantize(w, name, calibration() if registry.get(name).needs else None, **options)


@pytest.mark.parametrize("name", [n for n, m in registry.methods().items() if m.needs])
def test_calibration_is_asked_for(name):
    with pytest.raises(ValueError, match=rf"{name} needs calibration"):
        registry.quantize(weight(), name)
    other = calibration_for(torch.randn(40, 128))
    with pytest.raises(ValueError, match=r"128.*256|256.*128"):
        registry.quantize(weight(), name, other)


def test_kinds_return_what_they_promise():
    promised = {
        "weight": QuantizedTensor,
        "cache": QuantizedTensor,
        "linear": QuantizedLinear,
        "training": torch.nn.Module,
    }
    for name, method in registry.methods().items():
        assert isinstance(run(name, OPTIONS.get(name, [{}])[0]), promised[method.kind]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("name", "options"), CASES)
def test_on_a_gpu_as_on_the_processor(name, options):
    """The other device may sum in another order: a few codes may differ at ties, no more."""
    method, given = registry.get(name), calibration()
    there = replace(
        given,
        **{
            part: getattr(given, part).cuda()
            for part in ("inputs", "hessian", "act_absmax", "act_absmean")
        },
    )
    made = registry.quantize(weight().cuda(), name, there if method.needs else None, **options)
    made = made.quantized() if isinstance(made, torch.nn.Module) else made
    here = run(name, options)
    here = here.quantized() if isinstance(here, torch.nn.Module) else here
    value = made.dequantize()
    assert value.device.type == "cuda"
    away = (value.cpu() - here.dequantize()).abs() > 1e-5
    assert away.float().mean() < (0.2 if method.needs or name == "vector" else 0.001)
    assert made.bits_per_weight == here.bits_per_weight


@pytest.mark.parametrize(("name", "options"), CASES)
def test_trainable_weights_give_what_their_values_give(name, options):
    """An nn.Parameter is taken as it is, and no gradient leads from the result to it."""
    parameter = torch.nn.Parameter(weight())
    made = run(name, options, parameter)
    same(result(run(name, options)), result(made))
    tensors = made.parameters() if isinstance(made, torch.nn.Module) else [made.dequantize()]
    assert all(t.grad_fn is None for t in tensors)
    assert parameter.grad is None


@pytest.mark.parametrize("name", [n for n, m in registry.methods().items() if "bits" in m.defaults])
def test_bits_are_whole_numbers(name):
    for bits in (4.0, "4", True):
        with pytest.raises(TypeError, match="bits must be an integer"):
            run(name, {"bits": bits})
    same(result(run(name, {"bits": np.int64(4)})), result(run(name, {"bits": 4})))


GROUPED = [n for n, m in registry.methods().items() if "group_size" in m.defaults]


@pytest.mark.parametrize("name", GROUPED)
def test_minus_one_is_a_group_of_the_whole_row(name):
    """As almost everywhere; None is the same, and a group as long as the row has the same codes."""
    length = SHAPE[0] if name == "kv_cache" else SHAPE[1]  # keys share a scale along the tokens
    whole = result(run(name, {"group_size": None}))
    assert whole["value"].shape == SHAPE if "value" in whole else whole
    for spelled in (-1, np.int64(-1)):
        same(whole, result(run(name, {"group_size": spelled})))
    sized = result(run(name, {"group_size": length}))
    for part in whole.keys() & {"value", "codes", "weight"}:
        close = torch.isclose(whole[part].float(), sized[part].float(), atol=1e-5)
        assert close.all() or name == "gptq", part  # whose scales then follow the compensation


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize(
    ("size", "error"),
    [(0, ValueError), (-2, ValueError), (True, TypeError), (64.0, TypeError), ("64", TypeError)],
    ids=repr,
)
def test_what_is_no_group_size_is_refused(name, size, error):
    with pytest.raises(error, match=r"group_size must be .*None \(or -1\) for the whole row.* got"):
        run(name, {"group_size": size})


@pytest.mark.parametrize("other", registry.ELSEWHERE, ids=lambda e: f"{e.name} {e.option}")
def test_names_of_other_libraries_lead_to_ours(other):
    """Each line is of use to some method, never hides an option, and says the opposite aloud."""
    having = [n for n, m in registry.methods().items() if other.option in m.defaults]
    said = {}
    for name in having:
        if other.name not in registry.get(name).defaults:
            with pytest.raises(TypeError, match=f"unknown option for {name}") as refused:
                registry.require_options(name, {other.name: True})
            said[name] = str(refused.value)
    ours = {name: text for name, text in said.items() if f"Here it is {other.option} " in text}
    assert ours
    for name, text in ours.items():
        assert other.whose in text
        if other.value:
            assert f"{other.name}=True is {other.option}={other.value}" in text
            value = ast.literal_eval(other.value)
            registry.require_options(name, {other.option: value})


def test_all_unknown_options_are_named_at_once():
    with pytest.raises(TypeError) as refused:
        qviz.quantize(weight(), "gptq", calibration(), w_bit=4, desc_act=True, bitz=3, magic=1)
    text = str(refused.value)
    for part in ("'w_bit'. Here it is bits ", "'desc_act'. Here it is act_order ", "mean bits?"):
        assert part in text
    assert text.count("unknown option") == 4
    assert text.count("Known: ") == 1


@pytest.mark.parametrize(
    ("asked", "call"),
    [
        ("GPTQ", "Did you mean gptq"),
        ("Q4_K", '"gguf", type="Q4_K"'),
        ("q4_k", '"gguf", type="Q4_K"'),
        ("nvfp4", '"microscaling", format="nvfp4"'),
        ("kivi", '"kv_cache", scheme="kivi"'),
        ("bitsandbytes", '"llm_int8"'),
        ("RTN", '"affine"'),
    ],
)
def test_what_a_method_is_called_elsewhere_leads_to_it(asked, call):
    with pytest.raises(ValueError, match="unknown method") as refused:
        qviz.quantize(weight(), asked)
    assert call in str(refused.value)


@pytest.mark.parametrize("call", registry.METHODS_ELSEWHERE.values())
def test_the_calls_that_are_recommended_run(call):
    for each in re.sub(r" \(.*?\)", "", call).split(" or "):
        name, *options = each.split(", ")
        given = {key: int(value) for key, value in (option.split("=") for option in options)}
        assert run(name.strip('"'), given) is not None


def test_a_method_is_named():
    with pytest.raises(TypeError, match=r"method must be a name.*got Calibration.*calibration="):
        qviz.quantize(weight(), calibration())


CHOICES = [
    (name, option) for name, method in registry.methods().items() for option in method.choices
]


@pytest.mark.parametrize(("name", "option"), CHOICES)
def test_options_that_are_one_of_a_few(name, option):
    method = registry.get(name)
    options = OPTIONS.get(name, [{}])[0]
    default = method.defaults[option]
    assert default is None or default in method.choices[option]
    with pytest.raises(ValueError, match="nonsense") as refused:
        run(name, {**options, option: "nonsense"})
    assert all(choice in str(refused.value) for choice in method.choices[option])
    with pytest.raises(TypeError, match=f"{option} must be one of"):
        run(name, {**options, option: ["nonsense"]})
