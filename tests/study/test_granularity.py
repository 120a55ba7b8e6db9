"""Who shares a scale, what one large value does to them, and equal bits: each against brute force.

The other side quantizes the whole changed matrix and sums cell by cell in NumPy's float64.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qviz
from qviz.core.granularity import Granularity
from qviz.methods.affine import affine
from qviz.methods.nf4 import nf4
from qviz.study.granularity import (
    NF4_BLOCKS,
    Rounding,
    Window,
    best_within,
    count,
    equal_bits,
    grow,
    largest,
    outlier_claims,
    place,
    quietest,
    sharers,
    shares_won,
    typical,
    window_at,
)

SHAPE = (6, 24)
UNITS = [
    Granularity("tensor"),
    Granularity("channel"),
    Granularity("token"),
    Granularity("group", 8),
    Granularity("group", 24),
    Granularity("channel", axis=0),
    Granularity("group", 3, axis=0),
    Granularity("flat", 8),
    Granularity("flat", 20),  # runs over the end of rows; the last is short
    Granularity("flat", 1000),
]


def matrix(seed: int = 0, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------- who shares a scale


@settings(deadline=None, max_examples=60)
@given(unit=st.sampled_from(UNITS), row=st.integers(0, 5), column=st.integers(0, 23))
def test_sharers_and_places_are_those_of_split(unit, row, column):
    numbered = torch.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE)
    groups = unit.split(numbered + 1)  # what pads a short group is 0
    mine = next(
        group
        for group in groups.reshape(-1, groups.shape[-1])
        if (group == numbered[row, column] + 1).any()
    )
    members = {int(v) - 1 for v in mine if v > 0}
    rectangles = sharers(unit, row, column, SHAPE)
    covered = [
        r * SHAPE[1] + c
        for a, b, left, right in rectangles
        for r in range(a, b)
        for c in range(left, right)
    ]
    assert len(covered) == len(set(covered)) == count(rectangles)
    assert set(covered) == members
    at = place(unit, torch.tensor([row]), torch.tensor([column]), SHAPE)
    assert int(mine[int(at)]) - 1 == int(numbered[row, column])


def test_places_of_many_cells_have_the_shape_of_the_part():
    for unit in UNITS:
        at = place(unit, torch.arange(2, 5), torch.arange(7), SHAPE)
        assert at.shape == (3, 7)
        alone = place(unit, torch.tensor([3]), torch.tensor([6]), SHAPE)
        assert int(at[1, 6]) == int(alone)


# ------------------------------------------------------------------------- one value grows


def whole(x: torch.Tensor, unit: Granularity, rounding: Rounding) -> qviz.QuantizedTensor:
    """The whole changed matrix, by the method itself."""
    if rounding.method == "nf4":
        return nf4(x, group_size=unit.group_size)
    if unit.axis == 0:  # by hand: transposed, its rows are the columns
        return affine(x.T.contiguous(), granularity=unit.kind, group_size=unit.group_size,
                      **rounding.options)  # fmt: skip
    return affine(x, granularity=unit.kind, group_size=unit.group_size, **rounding.options)


AFFINE = Rounding("affine", {"bits": 3, "convention": "absmax"})
CASES = [
    *((unit, AFFINE) for unit in UNITS if unit.kind != "flat"),
    (
        Granularity("group", 8),
        Rounding("affine", {"bits": 4, "convention": "gptq", "scale_dtype": torch.float16}),
    ),
    *((Granularity("flat", size), Rounding("nf4", {})) for size in (32, 64, 4096)),
]


@pytest.mark.parametrize(("unit", "rounding"), CASES, ids=str)
def test_a_growing_value_does_what_quantizing_the_changed_matrix_does(unit, rounding):
    x = matrix(1)
    x[2, 3] = 0.0  # is 0 before and after: not lost
    cell, window = (2, 10), Window(1, 4, 4, 16)
    values = [float(x[cell]), 0.0, -0.5, 3.0, 40.0, 1e4]
    kept = x.clone()
    shared = grow(x, cell, values, unit, rounding, window)
    assert torch.equal(x, kept)
    members = np.zeros(SHAPE, bool)
    for a, b, c, d in shared.sharers:
        members[a:b, c:d] = True
    assert shared.count == members.sum() - 1
    assert np.array_equal(shared.inside.numpy(), members[1:5, 4:20])
    others = members.copy()
    others[cell] = False
    assert shared.peak == np.abs(x.numpy()[others]).max()
    assert shared.trained.bits_per_weight == whole(x, unit, rounding).bits_per_weight
    everything = np.ones(SHAPE, bool)
    everything[cell] = False
    for fate, value in zip(shared.fates, values, strict=True):
        changed = x.clone()
        changed[cell] = value
        q = whole(changed, unit, rounding)
        turned = unit.axis == 0
        codes, back = (t.T if turned else t for t in (q.codes, q.dequantize()))
        assert torch.equal(fate.codes, window.of(codes))
        assert torch.equal(fate.back, window.of(back))
        group = changed.numpy()[members]
        assert (fate.low, fate.high) == (group.min(), group.max())
        for found, where in ((fate.error, others), (fate.whole_error, everything)):
            w, r = changed.numpy()[where].astype(float), back.numpy()[where].astype(float)
            expected = np.sqrt(((w - r) ** 2).sum() / (w**2).sum())
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        w, r = changed.numpy()[others], back.numpy()[others]
        assert fate.lost == ((r == 0) & (w != 0)).sum()
        assert fate.used == len(np.unique(codes.numpy()[others]))
        assert float(fate.grid.scale[0, 0]) == float(
            q.grid.scale[q.group_of(*(cell[::-1] if turned else cell))]
        )


def test_beyond_its_neighbours_the_error_grows_with_the_outlier_and_only_theirs():
    x = matrix(2, (16, 64))
    unit, window = Granularity("group", 16), Window(0, 0, 4, 4)
    values = [float(x[3, 5]), 8.0, 16.0]
    fates = grow(x, (3, 5), values, unit, Rounding("affine", {"bits": 8}), window).fates
    assert fates[0].error < fates[1].error < fates[2].error
    assert fates[2].error / fates[1].error == pytest.approx(2, rel=0.3)  # the spacing doubled
    first, last = (  # rows 4 to 7, which are other groups
        grow(x, (3, 5), [v], unit, Rounding("affine", {"bits": 8}), Window(4, 0, 4, 4))
        .fates[0]
        .back
        for v in (values[0], values[2])
    )
    assert torch.equal(first, last)


def test_a_group_of_one_has_no_neighbours():
    fates = grow(matrix(), (1, 1), [1.0, 9.0], Granularity("group", 1), Rounding("affine", {}),
                 Window(0, 0, 2, 2)).fates  # fmt: skip
    assert [fate.error for fate in fates] == [0.0, 0.0]
    assert [fate.used for fate in fates] == [0, 0]


def test_what_the_method_refuses_is_refused():
    x = matrix() * 1e-9
    with pytest.raises(ValueError, match="scale"):
        grow(x, (0, 0), [1e-9], Granularity("channel"),
             Rounding("affine", {"scale_dtype": torch.float16}), Window(0, 0, 2, 2))  # fmt: skip


# ------------------------------------------------------------------------- where to look


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000), rows=st.integers(1, 30), columns=st.integers(1, 70),
    size=st.tuples(st.integers(1, 12), st.integers(1, 40)),
)  # fmt: skip
def test_windows_and_largest(seed, rows, columns, size):
    x = matrix(seed, (rows, columns))
    array = x.numpy()
    assert typical(x) == pytest.approx(np.sqrt((array.astype(float) ** 2).mean()), rel=1e-12)
    row, column = largest(x)
    assert abs(array[row, column]) == np.abs(array).max()
    window = window_at((rows, columns), row, column, size)
    assert window.holds(row, column)
    assert window.rows == min(size[0], rows)
    assert window.columns == min(size[1], columns)
    assert window.of(x).shape == (window.rows, window.columns)  # whole, not cut off
    quiet = quietest(x, size)
    peaks = [
        np.abs(window_at((rows, columns), r, c, size).of(x).numpy()).max()
        for r in range(rows) for c in range(columns)
    ]  # fmt: skip
    assert np.abs(quiet.of(x).numpy()).max() == min(peaks)


def test_a_window_of_zeros_is_not_the_quiet_one_unless_there_is_nothing_else():
    x = torch.zeros(4, 8)
    assert quietest(x, (2, 4)).of(x).shape == (2, 4)
    x[2:, 4:] = 1.0
    assert quietest(x, (2, 4)) == Window(2, 4, 2, 4)


# ------------------------------------------------------------------------- at equal bits


@pytest.fixture(scope="module")
def points():
    units = {"matrix": Granularity("tensor"), "row": Granularity("channel"),
             "group of 16": Granularity("group", 16)}  # fmt: skip
    x = matrix(5, (32, 64))
    return x, units, equal_bits(x, units, [2, 4, 5], blocks=[32, 4096], convention="absmax",
                                scale_dtype=torch.float16)  # fmt: skip


def test_costs_are_packed_bytes_and_errors_those_of_the_weights(points):
    x, units, found = points
    assert [p.cost for p in found] == sorted(p.cost for p in found)
    assert len(found) == 3 * 3 + 2
    for point in found:
        if point.label == NF4_BLOCKS:
            q = nf4(x, group_size=point.size)
            assert point.bits == 4
        else:
            unit = units[point.label]
            q = affine(x, bits=point.bits, granularity=unit.kind, group_size=unit.group_size,
                       convention="absmax", scale_dtype=torch.float16)  # fmt: skip
            assert point.size == unit.group_size
        stored = sum(part.nbytes for part in q.pack().values())
        assert point.cost == pytest.approx(8 * stored / x.numel())
        w, r = x.numpy().astype(float), q.dequantize().numpy().astype(float)
        assert point.error == pytest.approx(np.linalg.norm(w - r) / np.linalg.norm(w), rel=1e-12)
        assert point.output_error is None


def test_the_best_within_a_budget_is_found_by_trying_all(points):
    found = points[2]
    for budget in np.arange(1.5, 6.6, 0.13):
        best = best_within(found, budget, lambda p: p.error)
        affordable = [p for p in found if p.cost <= budget]
        assert set(best) == {p.label for p in affordable}
        for label, point in best.items():
            assert point.error == min(p.error for p in affordable if p.label == label)
        errors = [p.error for p in best.values()]
        assert errors == sorted(errors)
    assert best_within(found, 1.0, lambda p: p.error) == {}


def test_shares_of_the_budgets_are_those_of_a_fine_comb(points):
    found = points[2]
    shares = shares_won(found, 1.9, 6.5, lambda p: p.error)
    comb = np.linspace(1.9, 6.5, 20_001)
    winners = [next(iter(best_within(found, b, lambda p: p.error)), "") for b in comb]
    for label in {p.label for p in found}:
        share = np.mean([w == label for w in winners])
        assert shares.get(label, 0.0) == pytest.approx(share, abs=3e-4)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


# ------------------------------------------------------------------------- what articles say


@pytest.mark.parametrize("columns", [128, 96, 7])
def test_the_claims_by_hand(columns):
    x = matrix(8, (10, columns))
    x[4, 2] = -9.0
    array = x.numpy().astype(float)
    claims = outlier_claims(x)
    unit = np.sqrt((array**2).mean())
    ranked = np.sort(np.abs(array).ravel())
    assert claims.peak == pytest.approx(9 / unit)
    assert claims.second == pytest.approx(ranked[-2] / unit)
    rms = np.sqrt((array**2).mean(1))
    assert claims.widest_row == pytest.approx(rms.max() / np.sort(rms)[4])  # torch's median of ten
    assert claims.group_size == {128: 128, 96: 96, 7: 7}[columns]

    def others(a):
        return np.delete(a.ravel(), 4 * columns + 2)

    def rounded(a, bits, scale):
        return np.rint(a / scale)

    assert claims.used == len(np.unique(rounded(others(array), 8, 9 / 127)))
    wide = 100 * ranked[-2]
    assert claims.used_at_100 == len(np.unique(rounded(others(array), 8, wide / 127))) == 3

    def noise(groups):
        scale = np.maximum(np.abs(groups).max(-1, keepdims=True), 1e-5) / 7
        return ((groups - np.rint(groups / scale) * scale) ** 2).sum()

    gain = noise(array.reshape(1, -1)) / noise(array.reshape(-1, claims.group_size))
    assert claims.gain == pytest.approx(gain, rel=1e-4)


def test_the_bundled_layer_has_the_outlier_that_the_lesson_tells_of():
    weight = qviz.load_layer(None, "model.layers.3.mlp.down_proj").float()
    claims = outlier_claims(weight)
    assert claims.peak > 10 > claims.second
    assert claims.widest_row < 3
