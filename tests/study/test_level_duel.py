"""Levels on real weights: running sums beside brute force, Lloyd's levels beside scikit-learn's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qviz
from qviz.core import metrics
from qviz.core.nearest import count_below, midpoints
from qviz.methods.nf4 import NF4, nf4
from qviz.models.capture import load_calibration
from qviz.study.level_duel import (
    ASYMMETRIC,
    CONVENTIONS,
    EVEN,
    FP4_NAME,
    LLOYD,
    NF4_DOUBLE,
    NF4_NAME,
    RIVALS,
    SYMMETRIC,
    Blocks,
    Duel,
    distinct,
)

LAYER = "model.layers.1.self_attn.o_proj"
SIZES = (32, 64, 256, 4096)
anywhere = st.lists(
    st.floats(-1.5, 1.5, width=32) | st.sampled_from([-1.0, 0.0, 1.0]), min_size=16, max_size=16
)


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return qviz.load_layer(None, LAYER).float()


@pytest.fixture(scope="module")
def duel(weight: torch.Tensor) -> Duel:
    return Duel(weight, load_calibration(None, LAYER))


def by_brute_force(w: torch.Tensor, levels: torch.Tensor, size: int, double: bool) -> list[float]:
    """Σ(w − v·a)² of each level, weight by weight in float64, with the library's own codes."""
    q = nf4(w, levels=levels, group_size=size, double_quant=double)
    a = q.grid.scale.double().flatten().repeat_interleave(size)[: w.numel()].reshape(w.shape)
    squares = (w.double() - levels.double()[q.codes.int()] * a).square()
    return [float(squares[q.codes == code].sum()) for code in range(16)]


@given(levels=anywhere, size=st.sampled_from(SIZES), double=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_levels_error_is_that_of_brute_force(duel, levels, size, double):
    v = distinct(levels)
    blocks = Blocks.of(duel.weight, group_size=size, double_quant=double)
    want = by_brute_force(duel.weight, v, size, double)
    assert blocks.squared_errors(v) == pytest.approx(want, rel=1e-9, abs=1e-12 * blocks.energy)
    q = nf4(duel.weight, levels=v, group_size=size, double_quant=double)
    assert (
        blocks.counts(v).tolist() == torch.bincount(q.codes.flatten().int(), minlength=16).tolist()
    )
    true = metrics.compare(duel.weight, q.dequantize()).relative_error
    assert blocks.relative_error(v) == pytest.approx(true, rel=1e-5)  # v·a is float32 there


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 90),
    size=st.sampled_from([32, 64]),
    levels=anywhere,
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_odd_sizes_with_a_short_last_block_and_blocks_of_zeros(rows, columns, size, levels, seed):
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    w[0] = 0
    v = distinct(levels)
    blocks = Blocks.of(w, group_size=size)
    assert len(blocks.x) == w.numel()
    want = by_brute_force(w, v, size, False)
    assert blocks.squared_errors(v) == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_a_weight_on_a_bound_goes_down():
    v = distinct(NF4)
    m = midpoints(v)
    w = torch.cat([m, m.new_ones(49)])[None]
    blocks = Blocks.of(w)
    assert blocks.counts(v).tolist() == [1] * 15 + [49]
    assert torch.equal(count_below(w, m)[0, :15].int(), torch.arange(15, dtype=torch.int32))


@given(levels=anywhere)
def test_distinct_levels_are_sorted_within_the_range_and_hardly_moved(levels):
    v = distinct(levels)
    assert (v.diff() > 0).all() and v.abs().max() <= 1
    want = torch.tensor(levels).clamp(-1, 1).sort().values
    assert (v - want).abs().max() <= 16 * 2**-23
    nf4(torch.randn(1, 64), levels=v)  # takes them
    if (want.diff() > 0).all():
        assert torch.equal(v, want)


def test_equal_spacing_is_equal_from_end_to_end():
    assert pytest.approx(np.linspace(-1, 1, 16)) == EVEN


@pytest.mark.parametrize("levels", [[0.5] * 15, [float("nan"), *EVEN[1:]], [*EVEN, 1.0]])
def test_other_than_sixteen_finite_levels_are_refused(levels):
    with pytest.raises(ValueError, match="16 finite levels"):
        distinct(levels)


@given(levels=anywhere, size=st.sampled_from([32, 64]))
@settings(max_examples=30, deadline=None)
def test_a_round_of_lloyd_never_raises_the_error(duel, levels, size):
    blocks, v = duel.blocks(size), distinct(levels)
    after = blocks.moved(v)
    assert blocks.relative_error(after) <= blocks.relative_error(v) * (1 + 1e-6)
    counts = blocks.counts(v)
    kept = torch.tensor(counts == 0)
    assert torch.allclose(after[kept], v[kept], atol=1e-6)


def test_lloyd_max_is_as_good_as_scikit_learns(weight):
    from sklearn.cluster import KMeans

    blocks = Blocks.of(weight[:32], group_size=64)
    a2 = np.diff(blocks.squares)
    x = np.diff(blocks.products) / a2  # w/a, of which the squared error counts a² times
    found = KMeans(16, init=np.array(EVEN)[:, None], n_init=1, max_iter=2000, tol=0).fit(
        x[:, None], sample_weight=a2
    )
    theirs = distinct(found.cluster_centers_.flatten().tolist())
    assert torch.allclose(blocks.rested(distinct(EVEN)), theirs, atol=1e-5)
    best = blocks.best()
    assert torch.equal(blocks.moved(best), best)  # at rest
    assert blocks.relative_error(best) <= blocks.relative_error(theirs) * (1 + 1e-4)


@pytest.mark.parametrize("rows", [4, 8])
def test_no_sixteen_levels_at_all_are_much_better_than_lloyd_max(weight, rows):
    """Of every way to cut the sorted weights into sixteen, by dynamic programming."""
    blocks = Blocks.of(weight[:rows], group_size=64)
    n = len(blocks.x)
    i, j = np.triu_indices(n + 1, 1)
    ww, aw, aa = (s[j] - s[i] for s in (blocks.energies, blocks.products, blocks.squares))
    cost = np.full((n + 1, n + 1), np.inf)
    cost[i, j] = ww - aw * aw / aa
    least = np.full(n + 1, np.inf)
    least[0] = 0
    for _ in range(16):
        least = (least[:, None] + cost).min(0)
    found = float(blocks.squared_errors(blocks.best()).sum())
    assert least[n] * (1 - 1e-6) <= found <= least[n] * 1.01


@pytest.mark.parametrize("size", [64, 512])
def test_the_rivals_are_what_the_methods_return(duel, weight, size):
    wanted = {
        NF4_NAME: qviz.quantize(weight, "nf4", group_size=size),
        NF4_DOUBLE: qviz.quantize(weight, "nf4", group_size=size, double_quant=True),
        FP4_NAME: qviz.quantize(weight, "nf4", format="fp4", group_size=size),
    }
    calibration = load_calibration(None, LAYER)
    for name in RIVALS:
        entry = duel.rival(name, size)
        assert entry is not None
        if name in wanted:
            assert torch.equal(entry.tensor.codes, wanted[name].codes)
            assert entry.bits == wanted[name].bits_per_weight
        assert entry.value(7, 9) == entry.dequantize()[7, 9]
        error = weight.double() - entry.dequantize().double()
        assert entry.error == pytest.approx(float(error.norm() / weight.double().norm()), rel=1e-9)
        assert entry.output_error == pytest.approx(
            metrics.output_error(weight, entry.dequantize(), calibration), rel=1e-9
        )
    for name in CONVENTIONS:
        entry = duel.rival(name, size)
        assert entry is not None
        if weight.shape[1] % size == 0:
            plain = qviz.quantize(
                weight, bits=4, group_size=size, symmetric=name == SYMMETRIC,
                convention=CONVENTIONS[name], scale_dtype=torch.float16,
            )  # fmt: skip
            assert torch.equal(entry.dequantize(), plain.dequantize())
            assert entry.bits == plain.bits_per_weight
        # 16 bits of scale for each block, and 4 of zero point
        assert entry.bits == 4 + (20 if name == ASYMMETRIC else 16) / size
    lloyd, own = duel.rival(LLOYD, size), duel.own(distinct(NF4), size)
    assert lloyd is not None and lloyd.bits == 4 + 32 / size + 512 / weight.numel()
    assert own.error == duel.rival(NF4_NAME, size).error
    assert lloyd.error < own.error


def test_int4_has_no_shorter_last_block():
    duel = Duel(torch.randn(3, 50))
    assert duel.rival(SYMMETRIC, 32) is None
    assert duel.rival(NF4_NAME, 32).output_error is None
    with pytest.raises(ValueError, match="mean NF4"):
        duel.rival("NF5", 32)


def test_the_reach_of_a_block(weight):
    blocks = Blocks.of(weight, group_size=64)
    largest = weight.reshape(-1, 64).abs().amax(1).double()
    want = float((largest.square().mean() / weight.double().square().mean()).sqrt())
    assert blocks.reach == pytest.approx(want, rel=1e-6)
