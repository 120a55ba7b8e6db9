"""Messages and descriptions of the core, word for word: what was wrong, what was expected, what to
do. A number or a direction that is wrong in one of them sends its reader the wrong way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import calibration_for
from said import holds, points

from qviz.core import metrics
from qviz.core.agreement import agreement
from qviz.core.calibration import require_calibration, require_fit
from qviz.core.check import (
    as_matrix,
    in_words,
    narrowed,
    require_bits,
    require_finite,
    require_int,
    require_number,
    rescaling,
    unknown,
)
from qviz.core.divide import divide
from qviz.core.formats import FORMATS, decode, encode, format_of, values
from qviz.core.granularity import Granularity, whole_or_size
from qviz.core.grids import Affine
from qviz.core.hadamard import hadamard_matrix
from qviz.core.ledger import Ledger, LedgerItem
from qviz.core.linear import QuantizedLinear, integer_product
from qviz.core.memory import require_memory
from qviz.core.storage import to_value
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Trace
from qviz.core.transform import InputScale, require_input_scale

CALIBRATION = calibration_for(torch.ones(5, 3))
WEIGHT_SHAPE = "weight must be a non-empty matrix [out_features, in_features], got shape"


class Layer(QuantizedLinear):
    """A layer of three inputs."""

    weight = QuantizedTensor(
        torch.zeros(2, 3, dtype=torch.uint8), Affine(torch.ones(2, 1), 4, 0, 15, torch.float32),
        Granularity("channel"), (2, 3), info={"method": "made up"},
    )  # fmt: skip

    def __call__(self, x, *, emit=None):
        return self.flatten(x)


REFUSALS = [
    # the calibration
    (lambda: replace(CALIBRATION, tokens=0), "a calibration needs at least one token"),
    (lambda: replace(CALIBRATION, hessian=torch.ones(3, 4)),
     "hessian must be [in, in], got shape (3, 4)"),
    (lambda: replace(CALIBRATION, act_absmax=torch.ones(4)),
     "act_absmax must have the hessian's 3 channels, got shape (4,)"),
    (lambda: replace(CALIBRATION, act_absmean=torch.ones(2)),
     "act_absmean must have the hessian's 3 channels, got shape (2,)"),
    (lambda: replace(CALIBRATION, inputs=torch.ones(5, 4)),
     "inputs must be [tokens, 3] like the hessian, got (5, 4)"),
    (lambda: CALIBRATION.sample(7), "only 5 rows of inputs were kept, 7 were asked for: capture "
     "again with keep_inputs=7"),
    (lambda: require_fit(CALIBRATION, 4), "the calibration has 3 input channels, the weight 4: was "
     "it captured for another layer?"),
    (lambda: require_fit(replace(CALIBRATION, layer="q"), 4), "the calibration has 3 input "
     "channels (q), the weight 4: was it captured for another layer?"),
    (lambda: require_calibration({}), "calibration must be one layer's qviz.Calibration, as "
        "returned by qviz.capture(…)[layer] or qviz.load_calibration; got dict; pass one "
        "layer's entry of it"),
    (lambda: require_calibration(3), "calibration must be one layer's qviz.Calibration, as "
        "returned by qviz.capture(…)[layer] or qviz.load_calibration; got int"),
    # matrices
    (lambda: as_matrix(torch.ones(2, 0)), f"{WEIGHT_SHAPE} (2, 0): it has no values. If it is "
        "sharded over processes or not loaded yet, gather or load it first"),
    (lambda: as_matrix(torch.ones(3)), f"{WEIGHT_SHAPE} (3,): the vectors of a model (biases, the "
     "weights of norms) stay in full precision. If it is one row of a matrix, pass "
     "weight.reshape(1, -1)"),
    (lambda: as_matrix(torch.ones(2, 3, 4)), f"{WEIGHT_SHAPE} (2, 3, 4): where the first dimension "
     "counts experts, quantize each expert's matrix, weight[i] (weight[i].T where it is stored "
     "[in, out]). The weight of a 1-D convolution is the matrix weight.flatten(1)"),
    (lambda: as_matrix(torch.ones(2, 3, 4, 5)), f"{WEIGHT_SHAPE} (2, 3, 4, 5): the weight of a "
     "convolution is the matrix weight.flatten(1)"),
    (lambda: as_matrix(torch.tensor(1.0)), f"{WEIGHT_SHAPE} (): pass the whole weight of a layer"),
    (lambda: as_matrix("name"), "weight must be a torch tensor or a NumPy array, got 'name': load "
     "it first, qviz.load_layer(model, layer)"),
    (lambda: as_matrix([1.0]), "weight must be a torch tensor or a NumPy array, got list: pass "
     "torch.tensor(weight, dtype=torch.float32)"),
    (lambda: as_matrix({"a": 1}), "weight must be a torch tensor or a NumPy array, got dict: pass "
     "one of its tensors, such as weight['a']"),
    (lambda: as_matrix(3), "weight must be a torch tensor or a NumPy array, got int"),
    (lambda: as_matrix(torch.empty(2, 2, device="meta")), "weight must be a dense tensor that "
     "holds its values: load its values first"),
    (lambda: as_matrix(torch.ones(2, 2).to_sparse()), "weight must be a dense tensor that holds "
     "its values: take weight.to_dense()"),
    (lambda: as_matrix(torch.ones(2, 2).bool()), "weight has dtype torch.bool; expected one of "
     "float32, bfloat16, float16, float64. Pass weight.float()"),
    (lambda: as_matrix(torch.ones(2, 2).to(torch.float8_e5m2)), "weight has dtype "
        "torch.float8_e5m2; expected one of float32, bfloat16, float16, float64. Weights in 8 "
        "bits are stored in units of a scale, which a cast alone would drop: pass "
        "weight.float() * scale, with the scale of each weight's tensor, row or block "
        "(weight_scale or weight_scale_inv in a checkpoint)"),
    (lambda: as_matrix(torch.ones(2, 2).int()), "weight has dtype torch.int32; expected one of "
        "float32, bfloat16, float16, float64. Integers are usually codes whose scales are "
        "stored separately: dequantize them with the library that made them. If they are the "
        "weights themselves, pass weight.float()"),
    (lambda: as_matrix(np.ones((2, 2), "i4")), "weight has NumPy dtype int32; expected one of "
     "float32, float16, float64. Integers are mostly the codes of a quantizer, whose scales are "
     "stored beside them: have its own library dequantize them. If they are the weights "
     'themselves, pass weight.astype("float32")'),
    (lambda: as_matrix(torch.ones(2, 2) * 1j), "weight has dtype torch.complex64; expected one of "
     "float32, bfloat16, float16, float64. Pass its real and its imaginary part one by one, "
     "weight.real and weight.imag"),
    (lambda: as_matrix(torch.nn.Linear(2, 3)), "weight must be a torch tensor or a NumPy array, "
     "got Linear: pass its weight, layer.weight"),
    (lambda: as_matrix(torch.nn.ReLU()), "weight must be a torch tensor or a NumPy array, got "
     "ReLU: pass the weight of one layer, or the model to qviz.quantize_model"),
    (lambda: as_matrix(Layer.weight), "weight must be a torch tensor or a NumPy array, got "
     "QuantizedTensor, which is quantized already: pass its values, weight.dequantize()"),
    (lambda: require_finite(torch.tensor([[1.0, 2.0], [torch.nan, -torch.inf]]), "it"),
     "it has 2 value(s) that are not finite, the first is nan at [1, 0]. Quantization needs finite "
     "numbers: load it again, or set them to 0 with torch.nan_to_num(it, 0, 0, 0)"),
    (lambda: require_finite(torch.tensor([1.0, torch.inf]).half(), "it"),
     "it has 1 value(s) that are not finite, the first is inf at [1]. Float16 ends at 65504: if "
     "the tensor was cast, keep the dtype that it was saved in. Quantization needs finite "
     "numbers: load it again, or set them to 0 with torch.nan_to_num(it, 0, 0, 0)"),
    (lambda: require_finite(torch.tensor([torch.nan]), "it", fix="Do this"),
     "it has 1 value(s) that are not finite, the first is nan at [0]. Do this"),
    (lambda: narrowed(torch.tensor([[1.0, 7e4], [-9e4, 0.0]]), torch.float16, "w"),
     "w has 2 value(s) beyond float16, which ends at 65504: the first is 70000 at [0, 1]. Pass w / "
     "2.0**2, and multiply the result by 2.0**2"),
    # numbers
    (lambda: require_int(9, "n", 1, 8), "n must be from 1 to 8, got 9"),
    (lambda: require_int(1.0, "n", 1, 8), "n must be an integer, got 1.0"),
    (lambda: require_int(True, "n", 0, 8), "n must be an integer, got True"),
    (lambda: require_bits(5, (2, 4, 8)), "bits must be one of 2, 4, 8, got 5"),
    (lambda: require_bits(1, range(2, 9)), "bits must be from 2 to 8, got 1"),
    (lambda: require_bits("4", (4,)), "bits must be an integer, got '4'"),
    (lambda: require_number("4", "damp"), "damp must be a number, got '4'"),
    # who shares a scale
    (lambda: Granularity("rows"), "granularity must be one of tensor, channel, group, token, "
     "flat, got 'rows'"),
    (lambda: Granularity("channel", axis=2), "axis must be 0 (along columns) or 1 (along rows), "
     "got 2"),
    (lambda: Granularity("flat"), 'granularity="flat" needs a group_size: its groups run on from '
     "row to row"),
    (lambda: Granularity("tensor", 8), 'group_size=8 does not apply to granularity="tensor"; use '
     'granularity="group", or omit group_size'),
    (lambda: Granularity.of(Granularity("group", 8), 4), "group of 8 has its own group size; omit "
     "group_size=4"),
    (lambda: whole_or_size(-3), "group_size must be at least 1, or None (or -1) for the whole "
     "row; got -3"),
    (lambda: whole_or_size(2.0), "group_size must be an integer, or None (or -1) for the whole "
     "row; got 2.0"),
    (lambda: Granularity("group", 5).split(torch.ones(2, 24)), "group_size 5 does not divide the "
     "24 columns of this matrix. Sizes that do: 8, 12, 24; None (or -1) puts all 24 into one "
     "group"),
    (lambda: Granularity("group", 5, axis=0).split(torch.ones(16, 2)), "group_size 5 does not "
     "divide the 16 rows of this matrix. Sizes that do: 8, 16; None (or -1) puts all 16 into one "
     "group"),
    (lambda: Granularity("group", 5).split(torch.ones(2, 7)), "group_size 5 does not divide the 7 "
     "columns of this matrix. Sizes that do: 7; None (or -1) puts all 7 into one group"),
    # tensors and layers
    (lambda: Layer.weight.group_of(2, 0), "there is no weight [2, 0]: rows go from 0 to 1, columns "
     "from 0 to 2"),
    (lambda: Layer.weight.group_of(0, 3), "there is no weight [0, 3]: rows go from 0 to 1, columns "
     "from 0 to 2"),
    (lambda: Layer()(torch.ones(5, 4)), "the layer takes 3 inputs in the last dimension, got shape "
     "(5, 4)"),
    (lambda: Layer()(torch.ones(0, 3)), "inputs must hold at least one token, got shape (0, 3)"),
    (lambda: Layer()([1.0]), "inputs must be a tensor or an array, got list"),
    (lambda: integer_product(*[torch.zeros(1, 2**17, dtype=torch.int8)] * 2), "sums over 131072 "
     "products of int8 may overflow int32; at most 131071 are safe: split the inputs"),
    (lambda: InputScale(torch.tensor([1.0, 0.0])), "InputScale: scale must be finite and above 0 "
     "everywhere"),
    (lambda: InputScale(torch.ones(2), outputs=torch.tensor([-1.0])), "InputScale: outputs must be "
     "finite and above 0 everywhere"),
    (lambda: InputScale(torch.ones(3)).apply(torch.ones(2, 4)), "the weight has 4 inputs, the "
     "factors' shape is (3,); give one for each input"),
    (lambda: require_input_scale(torch.ones(3)), "transform must be an InputScale, got Tensor; "
     "factors s [in] become one by InputScale(s)"),
    (lambda: metrics.mse(torch.ones(2, 3), torch.ones(3, 2)), "the two matrices differ in shape: "
     "(2, 3) and (3, 2)"),
    (lambda: agreement(*[torch.ones(2, 2)] * 2, torch.ones(2, 3)), "codes and positions must be "
     "matrices of one shape, got (2, 2), (2, 2) and (2, 3)"),
    (lambda: to_value({"dtype": "load"}, {}), "torch has no dtype 'load'"),
    (lambda: hadamard_matrix(6), "no Hadamard matrix of size 6 is known here: the size must be 1, "
     "2, or K·2^m with a known K (4, 12, 20, 28, 36 …). Pad that side with 2 zeros to 8, the next "
     "larger size, or leave this layer without a rotation"),
    # formats
    (lambda: encode([torch.nan, 1.0], "int8"), "int8 has no NaN, and 1 of the numbers are NaN; "
     "mask them first, for example with torch.nan_to_num"),
    (lambda: values("fp32"), "fp32 has 2^32 codes, too many to list; take 16 bits or less"),
    (lambda: decode(16, "int4"), "int4 has codes from 0 to 15, got 16; codes are unsigned "
     "bit patterns"),
    (lambda: decode([3, -2], "int4"), "int4 has codes from 0 to 15, got -2; codes are unsigned "
     "bit patterns"),
    (lambda: decode(1.0, "int4"), "codes are integers (bit patterns), got torch.float64; use "
     "encode first"),
    (lambda: encode(torch.arange(3), "fp16"), "numbers must be float32, bfloat16, float16 or "
     "float64, got torch.int64; convert them first, for example with .float()"),
    (lambda: encode("x", "fp16"), "numbers must be floating-point, got <U1; convert them first"),
    (lambda: format_of("fp17"), unknown("number format", "fp17", FORMATS)),
]  # fmt: skip


@pytest.mark.parametrize(("call", "text"), REFUSALS, ids=[text[:40] for _, text in REFUSALS])
def test_a_refusal_says_what_was_wrong_and_what_to_do(call, text):
    with pytest.raises((ValueError, TypeError, IndexError)) as refused:
        call()
    assert str(refused.value) == text


def test_memory_that_is_missing_is_said_in_gibibytes(monkeypatch):
    monkeypatch.setattr("qviz.core.memory.available_memory", lambda: 3 * 2**29)
    with pytest.raises(MemoryError) as refused:
        require_memory(5 * 2**30, "this copy", "Take less.")
    assert str(refused.value) == ("this copy needs 5.0 GiB of memory, 1.5 GiB are free. Take less.")
    require_memory(3 * 2**29, "as much as there is", "")


@given(st.floats(1e-30, 1e30), st.integers(-20, 100))
def test_rescaling_brings_numbers_below_the_power_and_back(largest, exponent):
    text = rescaling("w", largest, exponent)
    up = " * " in text
    power = int(text.split("2.0**")[1].split(",")[0])
    points(text, "divide the result/multiply the result", up)
    assert text.count(f"2.0**{power}") == 2 and power >= 0
    scaled = largest * 2.0**power if up else largest / 2.0**power
    assert scaled < 2.0**exponent or (up and power == 100)
    assert scaled >= 2.0 ** (exponent - 1) or power in (0, 100)


@pytest.mark.parametrize(
    ("given", "said"),
    [(range(2, 9), "from 2 to 8"), ((2, 4), "one of 2, 4"), ((8, 2, 4), "one of 2, 4, 8"),
     ((4,), "4"), ((1, 2), "one of 1, 2"), ((3, 2, 4), "from 2 to 4")],
)  # fmt: skip
def test_numbers_to_choose_from(given, said):
    assert in_words(given) == said


def test_an_unknown_name_is_answered_with_near_ones_and_all():
    assert unknown("kind", "gptqq", ["gptq", "awq"]) == (
        "unknown kind 'gptqq'. Did you mean gptq? Known: awq, gptq"
    )
    many = [f"x{i:02d}" for i in range(25)]
    text = unknown("kind", "zzz", many)
    assert text == f"unknown kind 'zzz'. Known: {', '.join(many[:20])} and 5 more"


# ----------------------------------------------------------------------------------- descriptions


def test_how_runs_agree_is_counted():
    ours = torch.tensor([[3, 1], [3, 1], [3, 1], [3, 1], [3, 1]])
    theirs, at = ours.clone(), torch.tensor([[3.1, 1.2]] * 5)
    theirs[1, 1], at[1, 1] = 2, 1.5002
    theirs[3, 0], at[3, 0] = 4, 3.2
    found = agreement(ours, theirs, at, losses=(1.02, 1.0))
    assert str(found) == (
        "3 of 5 rows equal, 1 differ at a tie, 1 elsewhere, loss +2.000%; first: row 3, column 0 "
        "(step 0): 3 beside 4, the weight lay at 3.200000, 0.3 spacings from the tie"
    )
    assert str(agreement(ours, ours, at)) == "5 of 5 rows equal, 0 differ at a tie, 0 elsewhere"
    assert found.excess_loss == pytest.approx(0.02)
    lost = agreement(ours, ours, at, losses=(1.0, 0.0)).excess_loss
    assert (lost, agreement(ours, ours, at, losses=(0.0, 0.0)).excess_loss) == (torch.inf, 0)


def test_a_bill_is_written_line_by_line():
    bill = Ledger((LedgerItem("codes", 96, 4), LedgerItem("scales", 3, 16)), 96)
    assert str(bill).splitlines() == [
        "       codes:        96 ×  4 bits = 4.0000 bpw",
        "      scales:         3 × 16 bits = 0.5000 bpw",
        "       total: 4.5000 bits per weight",
    ]
    assert (bill.nbytes, bill.total_bits, bill.per_weight("scales")) == (54, 432, 0.5)


def test_a_tensor_a_layer_and_a_trace_describe_themselves():
    said = "QuantizedTensor(made up, 2×3, 4 bits, per channel, 14.667 bits per weight)"
    assert repr(Layer.weight) == said
    assert repr(Layer()) == f"Layer({said})"
    trace = Trace("b.*", "a.*")
    for name in ("b.one", "a.one", "b.one", "c"):
        trace(name, x=torch.zeros(3))
    assert repr(trace) == "Trace(3 events: a.one, b.one; 36 bytes)"
    assert repr(Trace()) == "Trace(0 events: none; 0 bytes)"


def test_granularities_are_named_with_their_direction():
    made = [
        Granularity("group", 8), Granularity("group", 8, axis=0), Granularity("flat", 8),
        Granularity("channel"), Granularity("token", axis=0), Granularity("group", None),
    ]  # fmt: skip
    assert [str(one) for one in made] == [
        "group of 8", "group of 8 along the columns", "group of 8 of the flattened matrix",
        "per channel", "per token along the columns", "per channel",
    ]  # fmt: skip


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_formats_describe_their_fields(fmt):
    text = str(fmt).removeprefix(f"{fmt.name}: ")
    if fmt.is_integer:
        holds(text, low=int(fmt.min_finite), high=int(fmt.max_finite))
        return
    expected = {"sign": (1, "sign")} if fmt.signed else {}
    expected |= {"exponent": (fmt.exponent_bits, "exponent")}
    expected |= {"mantissa": (fmt.mantissa_bits, "mantissa"), "largest": float(fmt.max_finite)}
    holds(text, **expected)


# ------------------------------------------------------------------------- what these rest on


def test_division_of_either_kind():
    three = torch.tensor([3.0, 4.0])
    assert divide(12.0, three).tolist() == [4.0, 3.0]
    assert divide(three, 2.0).tolist() == [1.5, 2.0]
    assert divide(three, three).tolist() == [1.0, 1.0]


def test_a_sample_is_the_statistics_of_its_rows():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    made = calibration_for(x).sample(6)
    rows = x[:6].double()
    assert made.tokens == 6 and torch.equal(made.inputs, x[:6])
    torch.testing.assert_close(made.hessian.double(), 2 * rows.T @ rows / 6)
    torch.testing.assert_close(made.act_absmax, x[:6].abs().amax(0))
    torch.testing.assert_close(made.act_absmean, x[:6].abs().mean(0))
    assert made.in_features == 4


def test_arrays_that_torch_cannot_share_are_copied():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    shared = as_matrix(array)
    array[0, 0] = 9
    assert shared[0, 0] == 9
    assert as_matrix(array[::-1])[0].tolist() == [3, 4, 5]
    array.setflags(write=False)
    copied = as_matrix(array)
    copied[0, 0] = 7
    assert array[0, 0] == 9
