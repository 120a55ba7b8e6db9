"""Ranges that keep a part: every cost beside a sum number by number, and GPTQ's own search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import adversarial

import qviz
from qviz.core.granularity import Granularity
from qviz.core.metrics import error_split
from qviz.methods.affine import CONVENTIONS, affine
from qviz.methods.gptq import GRID, NORM, SHRINK, _best_shrink
from qviz.models.capture import load_calibration
from qviz.study.clipping import (
    KEPT,
    Values,
    find_groups,
    gate_activations,
    quantize_within,
    rules,
    same_results,
    shrink,
    systems,
    try_ranges,
)

MODES = [
    (name, symmetric)
    for name, c in CONVENTIONS.items()
    for symmetric in (True, False)
    if (c.symmetric if symmetric else c.asymmetric) is not None
]
PARTS = torch.tensor(KEPT)


def numbers(n=120, seed=0):
    """Rounded, so that values repeat and ties occur, with one far out."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=g).mul(8).round() / 16
    x[3] = 2.5
    return x


def brute(x, levels):
    """Rounding, clipping, how many beyond and how many levels in use, number by number."""
    rounding = clipping = beyond = 0.0
    used = set()
    for value in x.double().tolist():
        k = int(np.abs(levels - value).argmin())
        used.add(k)
        error = (value - levels[k]) ** 2
        if levels[0] <= value <= levels[-1]:
            rounding += error
        else:
            clipping += error
            beyond += error > (1e-4 * (levels[1] - levels[0])) ** 2
    return rounding / len(x), clipping / len(x), beyond, len(used)


@pytest.mark.parametrize(("convention", "symmetric"), MODES)
@pytest.mark.parametrize("bits", [2, 4])
def test_every_cost_is_the_sum_number_by_number(convention, symmetric, bits):
    scheme = {"bits": bits, "symmetric": symmetric, "convention": convention}
    for x in (numbers(), numbers().abs() + 0.25, -numbers(seed=2).abs()):
        values = Values(x)
        low, high = shrink(values.low, values.high, PARTS)
        tried = try_ranges(values, low, high, **scheme)
        for i in (0, 60, 79):
            q = quantize_within(x, float(low[i]), float(high[i]), **scheme)
            levels = q.levels(0, 0).double().numpy()
            rounding, clipping, beyond, used = brute(x, levels)
            assert float(tried.rounding[i]) == pytest.approx(rounding, rel=1e-5, abs=1e-12)
            assert float(tried.clipping[i]) == pytest.approx(clipping, rel=1e-5, abs=1e-12)
            assert int(tried.beyond[i]) == beyond
            assert abs(int(tried.used[i]) - used) <= 1  # a tie may go to either neighbour
            assert int(tried.used[i]) == len(set(q.codes.flatten().tolist()))
            split = error_split(x[None], q)
            assert tried.split(i).total == pytest.approx(split.total, rel=1e-9)
            assert np.array_equal(tried.values[i].numpy(), levels)


@pytest.mark.parametrize(("convention", "symmetric"), MODES)
def test_the_whole_range_is_what_affine_makes(convention, symmetric):
    """On every input that affine takes, code by code; what it refuses is refused here too."""
    taken = 0
    for x in adversarial().values():
        scheme = {"bits": 3, "symmetric": symmetric, "convention": convention}
        ends = float(x[1].min()), float(x[1].max())
        try:
            want = affine(x[1:2].float(), granularity="channel", **scheme)
        except ValueError:
            with pytest.raises(ValueError, match=r"scale|levels"):
                quantize_within(x[1], *ends, **scheme)
            continue
        got = quantize_within(x[1], *ends, **scheme)
        assert torch.equal(got.codes, want.codes)
        assert torch.equal(got.grid.scale, want.grid.scale)
        assert torch.equal(got.dequantize(), want.dequantize())
        assert got.info.items() <= want.info.items()
        taken += 1
    assert taken >= 10


def test_numbers_on_their_way():
    x = numbers()
    values = Values(x)
    ends = shrink(values.low, values.high, PARTS)
    tried = try_ranges(values, *ends, bits=3, symmetric=False, convention="gptq")
    way = tried.follow(x)
    for i in (0, 40, 79):
        q = quantize_within(
            x, float(ends[0][i]), float(ends[1][i]), bits=3, symmetric=False, convention="gptq"
        )
        assert torch.equal(way.code[i], q.codes[0].float())
        assert torch.equal(way.value[i], q.dequantize()[0])
        scale, zero = q.grid.scale[0, 0], q.grid.zero_point[0, 0]
        assert torch.equal(way.position[i], x / scale)
        assert torch.equal(way.rounded[i], torch.round(x / scale) + zero)
    assert bool((way.rounded != way.code).any())  # some are cut off


@given(
    low=st.floats(-100, 100, width=32), span=st.floats(0, 100, width=32), part=st.sampled_from(KEPT)
)
def test_a_part_of_a_range(low, span, part):
    high = float(np.float32(low + span))
    a, b = (float(end) for end in shrink(low, high, torch.tensor(part)))
    slack = 1e-5 * max(abs(low), abs(high), 1e-30)
    assert low - slack <= a <= b + slack <= high + 2 * slack
    assert b - a == pytest.approx(part * (high - low), abs=2 * slack)
    if low <= 0 <= high:  # as GPTQ: p·lo and p·hi
        assert a == np.float32(np.float32(part) * np.float32(low))
        assert b == np.float32(np.float32(part) * np.float32(high))
    whole = shrink(low, high, torch.tensor(1.0))
    assert (float(whole[0]), float(whole[1])) == (np.float32(low), np.float32(high))


def test_the_parts_are_those_of_gptqs_search():
    theirs = sorted(1 - k / GRID for k in range(int(SHRINK * GRID)))
    assert pytest.approx(theirs, abs=1e-12) == KEPT


@pytest.mark.parametrize("symmetric", [True, False])
def test_gptqs_own_search_ends_on_the_same_part(symmetric):
    """With its power of 2.4 in place of 2, over the ranges tried here."""
    scheme = {"bits": 3, "symmetric": symmetric, "convention": "gptq"}
    found = set()
    for seed in range(6):
        x = numbers(seed=seed)
        values = Values(x)
        low, high = shrink(values.low, values.high, PARTS)
        way = try_ranges(values, low, high, **scheme).follow(x)
        errors = (way.value - x).abs().pow(NORM).sum(1)
        ends = (torch.tensor([[end]]) for end in (values.low, values.high))
        theirs = float(_best_shrink(x[None, None], *ends, scheme))
        mine = float(errors[KEPT.index(pytest.approx(theirs))])
        assert mine == pytest.approx(float(errors.min()), rel=1e-6)
        found.add(theirs)
    assert len(found) > 1


def test_of_equal_ranges_the_larger_is_the_best():
    values = Values(torch.tensor([0.0, 0.0]))
    ends = shrink(0.0, 0.0, PARTS)
    tried = try_ranges(values, *ends, bits=4, symmetric=True, convention="compressed_tensors")
    assert tried.best == len(KEPT) - 1 and float(tried.total[tried.best]) == 0
    assert values.share(0.0) == 0.0


def test_distinct_values_stand_for_all():
    x = numbers()
    values = Values(x.reshape(4, 30))
    assert values.n == 120 and float(values.count.sum()) == 120
    assert len(values.x) < 90 and bool((values.x.diff() > 0).all())
    assert values.energy == pytest.approx(float((x.double() ** 2).sum()))
    assert values.share(0.5) == pytest.approx(0.5 / float((x.double() ** 2).mean()))
    for bad in (torch.tensor([]), torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")])):
        with pytest.raises(ValueError, match="finite"):
            Values(bad)


def test_a_last_bit_is_not_cut_off():
    """255 times the scale may be a last bit less than the largest number it was made from."""
    found = 0
    scheme = {"bits": 8, "symmetric": False, "convention": "quanto"}
    for seed in range(20):
        x = torch.randn(50, generator=torch.Generator().manual_seed(seed))
        found += error_split(
            x[None], quantize_within(x, float(x.min()), float(x.max()), **scheme)
        ).clipped
        assert int(try_ranges(Values(x), x.min()[None], x.max()[None], **scheme).beyond) == 0
    assert found > 0


def test_memory_is_bounded_by_passes(monkeypatch):
    x = numbers()
    values = Values(x)
    ends = shrink(values.low, values.high, PARTS)
    scheme = {"bits": 4, "symmetric": False, "convention": "hqq"}
    whole = try_ranges(values, *ends, **scheme)
    monkeypatch.setattr("qviz.study.clipping._AT_ONCE", 300)
    parts = try_ranges(values, *ends, **scheme)
    assert torch.equal(whole.total, parts.total) and torch.equal(whole.used, parts.used)


# ------------------------------------------------------------------------------------ the systems


def test_all_ten_conventions_are_there_in_every_form_they_have():
    outcomes = systems(Values(numbers()), bits=4)
    assert [(one.convention, one.symmetric) for one in outcomes] == sorted(
        MODES, key=lambda mode: (not mode[1], list(CONVENTIONS).index(mode[0]))
    )
    assert {one.convention for one in outcomes} == set(CONVENTIONS) and len(CONVENTIONS) == 10
    assert not any(one.refused for one in outcomes)


def test_what_a_system_makes_of_repeated_values_is_what_it_makes_of_all():
    x = numbers()
    values = Values(x)
    for one in systems(values, bits=4):
        scheme = {"bits": 4, "symmetric": one.symmetric, "convention": one.convention}
        q = affine(x[None], granularity="channel", **scheme)
        at = torch.searchsorted(values.x, x)
        assert torch.equal(one.quantized.codes[0][at], q.codes[0])
        split = error_split(x[None], q)
        assert one.whole.total == pytest.approx(split.total, rel=1e-9)
        levels = q.levels(0, 0).double()
        past = torch.maximum(levels[0] - x.double(), x.double() - levels[-1])
        assert one.whole.clipped == int((past > 1e-4 * levels.diff().max()).sum())
        tried = [
            error_split(x[None], quantize_within(x, *map(float, ends), **scheme)).total
            for ends in zip(*shrink(values.low, values.high, PARTS), strict=True)
        ]
        assert one.best.total == pytest.approx(min(tried), rel=1e-9)
        assert tried[KEPT.index(one.kept)] == pytest.approx(min(tried), rel=1e-9)


def test_a_system_without_a_rule_says_so():
    outcomes = {
        one.convention: one
        for one in systems(Values(torch.full((8,), 0.3)), bits=4)
        if not one.symmetric
    }
    assert outcomes["quanto"].quantized is None and "constant" in outcomes["quanto"].refused
    assert outcomes["awq"].quantized is not None and outcomes["awq"].refused == ""


def test_how_many_rules_there_are():
    """Of seven symmetric forms AWQ's and QuaRot's are one, of seven others quanto's and KIVI's."""
    assert rules(symmetric=True) == 6 and rules(symmetric=False) == 6
    assert CONVENTIONS["awq"].symmetric is CONVENTIONS["quarot"].symmetric
    assert CONVENTIONS["quanto"].asymmetric is CONVENTIONS["kivi"].asymmetric


def test_results_that_are_the_same_stand_together():
    x = numbers().abs() + 0.25  # one sign: GPTQ's symmetric rule halves its scale
    outcomes = [one for one in systems(Values(x), bits=4) if one.symmetric]
    together = [{one.convention for one in members} for members in same_results(outcomes)]
    assert sorted(name for members in together for name in members) == sorted(
        one.convention for one in outcomes
    )
    assert {"gptq"} in together
    backs = {one.convention: one.quantized.dequantize() for one in outcomes}
    for members in together:
        for name, back in backs.items():
            spacing = float(next(o for o in outcomes if o.convention == name).quantized.grid.scale)
            off = float((back - backs[next(iter(members))]).abs().max())
            assert (off < 0.1 * spacing) == (name in members)


# -------------------------------------------------------------------------------- what to look at


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), size=st.sampled_from([8, 16, None]))
def test_groups_worth_a_look(seed, size):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(5, 32, generator=g) + 0.5 * torch.randn(5, 1, generator=g)
    found = find_groups(w, Granularity("group", size))
    x = w.double().reshape(5, -1, size or 32).numpy()
    peaks, leans = {}, {}
    for r in range(x.shape[0]):
        for k in range(x.shape[1]):
            one = x[r, k]
            peaks[r, k] = abs(one).max() / np.sqrt((one**2).mean())
            leans[r, k] = abs(one.max() + one.min()) / (one.max() - one.min())
    assert peaks[found["outlier"]] == pytest.approx(max(peaks.values()))
    assert leans[found["one-sided"]] == pytest.approx(max(leans.values()))
    assert peaks[found["typical"]] == pytest.approx(sorted(peaks.values())[len(peaks) // 2])


def test_groups_of_zeros_and_of_constants():
    w = torch.zeros(3, 16)
    assert set(find_groups(w, Granularity("group", 8)).values()) <= {
        (r, g) for r in range(3) for g in range(2)
    }
    w[1] = 0.25
    w[2, 0] = 1.0
    assert find_groups(w, Granularity("channel"))["outlier"] == (2, 0)


def test_gates_are_those_of_the_model():
    """Times what comes up they are what goes down: the captured inputs of down_proj."""
    block = "model.layers.1.mlp"
    gates = gate_activations(f"{block}.down_proj")
    assert torch.equal(gates, gate_activations(f"{block}.up_proj"))
    up = qviz.load_layer(None, f"{block}.up_proj").float()
    x = load_calibration(None, f"{block}.up_proj").inputs.float()
    down = load_calibration(None, f"{block}.down_proj").inputs.float()
    torch.testing.assert_close(gates * (x @ up.T), down, rtol=2e-2, atol=2e-2)
    assert float(gates.min()) > -0.2785  # the lowest point of SiLU
    assert float(gates.max()) > 3
    with pytest.raises(ValueError, match=r"\.mlp\."):
        gate_activations("model.layers.1.self_attn.q_proj")
