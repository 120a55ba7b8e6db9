"""A block's walk held against brute force, against llama.cpp's own bytes, and its failures."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import qviz
from qviz.methods.gguf import LAYOUTS
from qviz.methods.gguf.layout import unpack
from qviz.study.gguf_bytes import bits_of_bytes, places_of
from qviz.study.gguf_facts import (
    bytes_facts,
    found_facts,
    level_facts,
    off,
    pass_facts,
    sizes_of,
    try_facts,
    weigh_facts,
    without_largest,
    zoo_facts,
)
from qviz.study.gguf_walk import (
    BACK,
    BLOCK,
    BYTES,
    FOUND,
    KINDS,
    LEVELS,
    PASS,
    START,
    TRY,
    WEIGH,
    RowWalk,
    can_be_read_in_pairs,
    read_in_pairs,
    together,
    tries,
    unreached,
    with_outlier,
    without_second_pass,
)

LAYER = "model.layers.1.mlp.down_proj"
WHOLE = np.load(Path(__file__).parents[1] / "golden" / "gguf_layer.npz")
KQUANTS = [name for name in LAYOUTS if name.endswith("_K")]
WITH_MINIMUM = ["Q2_K", "Q4_K", "Q5_K"]
TOPS = {"Q2_K": 3, "Q4_K": 15, "Q5_K": 31, "Q4_1": 15, "Q5_1": 31}


@pytest.fixture(scope="module")
def weight():
    return qviz.load_layer(None, LAYER).float()


@pytest.fixture(scope="module")
def importance():
    return (torch.arange(1024) * 37 % 101 + 1).float() / 128


@pytest.fixture(scope="module")
def walks(weight, importance):
    """One block of each type, without and with importance."""
    return {
        (name, how): RowWalk(weight[7], type=name, importance=own).block(1)
        for name in LAYOUTS
        for how, own in (("plain", None), ("importance", importance))
    }


# ------------------------------------------------------------------------------------ the bytes


@pytest.mark.parametrize(
    "vector",
    [  # 1,024 plain ones are those of the page, in the test of the lesson
        pytest.param(name, marks=[pytest.mark.slow] if name.endswith("/256") else [])
        for name in WHOLE.files
        if "/" in name and name != "Q4_K/plain/256"
    ],
)
def test_bytes_are_those_of_llama_cpp(vector, weight, importance):
    """Block by block, each by its own walk: 64 super-blocks (or 512 blocks of 32) in every type,
    and 1,024 with importance in Q4_K. The oracle is ggml's C code; here is its bytes' digest."""
    name, how, rows = vector.split("/")
    blocks = []
    for row in weight[: int(rows)]:
        run = RowWalk(row, type=name, importance=importance if how == "importance" else None)
        blocks += [run.block(b).data for b in range(run.blocks)]
    assert len(blocks) * LAYOUTS[name].weights == int(rows) * 1024
    assert hashlib.sha256(torch.cat(blocks).numpy().tobytes()).digest() == WHOLE[vector].tobytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_the_bytes_decode_to_is_what_gguf_py_reads(name, walks):
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    for how in ("plain", "importance"):
        walk = walks[name, how]
        theirs = dequantize(walk.data.numpy()[None], GGMLQuantizationType[name])
        assert np.array_equal(walk.back.flatten().numpy(), theirs.flatten())
        levels = walk.stored_levels()
        q = walk.codes + (128 if name == "Q8_0" else 0)
        assert torch.equal(levels.gather(1, q).float(), walk.back)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_bit_of_a_block_says_whose_it_is(name):
    """The numbers put together from the bits are those that decoding finds, in arbitrary bytes."""
    g = torch.Generator().manual_seed(3)
    layout = LAYOUTS[name]
    for _ in range(3):
        data = torch.randint(0, 256, (layout.nbytes,), dtype=torch.uint8, generator=g)
        found = bits_of_bytes(name, data)
        made: dict[tuple[str, int], int] = {}
        for byte, each in zip(data.tolist(), found, strict=True):
            assert sum(b.bits for b in each) == 8
            assert sum(b.value << b.at for b in each) == byte
            assert [b.at for b in each] == sorted((b.at for b in each), reverse=True)
            for b in each:
                made[b.part, b.index] = made.get((b.part, b.index), 0) + (b.value << b.low)
        parts = unpack(layout, data[None])
        for part, count, bits in layout.parts:
            values = parts[part][0]
            if values.dtype == torch.float16:
                values = values.view(torch.int16).int() & 0xFFFF
            assert [made[part, i] for i in range(count)] == values.int().tolist()
            assert sum(n for b in (b for e in found for b in e) if b.part == part
                       for n in [b.bits]) == count * bits  # fmt: skip
        places = places_of(found, {"codes": 17})
        assert sum(bits for _, _, bits in places) == layout.bits
        value = sum(b.value << b.low for each in found for b in each
                    if b.part == "codes" and b.index == 17)  # fmt: skip
        assert value == int(parts["codes"][0, 17])


# ------------------------------------------------------------------------------------ the search


@pytest.mark.parametrize("how", ["plain", "importance"])
@pytest.mark.parametrize("name", [*WITH_MINIMUM, "Q4_1", "Q5_1"])
def test_each_try_is_a_weighted_least_squares_fit(name, how, walks):
    walk = walks[name, how]
    if len(walk.fits) == 1:
        assert how == "plain" and name in ("Q4_1", "Q5_1")
        return
    assert len(walk.fits) == len(tries(name, how == "importance")) == (
        38 if how == "importance" else {"Q4_K": 22}.get(name, 17))  # fmt: skip
    x, w = (v.double().numpy() for v in (walk.x, walk.weights))
    for k, fit in enumerate(walk.fits):
        q = fit.codes.double().numpy()
        assert q.min() >= 0 and q.max() <= TOPS[name]
        position = fit.position.double().numpy()
        inside = (position > 0.01) & (position < TOPS[name] - 0.01)
        assert (np.abs(position - q)[inside] <= 0.5 + 1e-4).all()
        for g in range(walk.groups):
            s, m = float(fit.scale[g]), float(fit.minimum[g])
            if k == 0:
                low, high = min(x[g].min(), 0.0), x[g].max()
                assert m == pytest.approx(low) and s == pytest.approx((high - low) / TOPS[name])
            else:
                root = np.sqrt(w[g])
                a = np.stack([q[g] * root, root], 1)
                best_s, best_m = np.linalg.lstsq(a, x[g] * root, rcond=None)[0]
                if best_m > 0:
                    best_m = 0.0
                    best_s = (w[g] * x[g] * q[g]).sum() / (w[g] * q[g] ** 2).sum()
                assert (s, m) == pytest.approx((best_s, best_m), rel=2e-4, abs=2e-6)
            error = (w[g] * np.abs(s * q[g] + m - x[g]) ** walk.power).sum()
            assert float(fit.error[g]) == pytest.approx(error, rel=2e-3)
            before = [float(f.error[g]) for f in walk.fits[:k] if bool(f.accepted[g])]
            assert bool(fit.accepted[g]) == (k == 0 or float(fit.error[g]) < min(before))


@pytest.mark.parametrize("how", ["plain", "importance"])
@pytest.mark.parametrize("name", ["Q6_K", "Q3_K", "Q4_0", "Q5_0"])
def test_each_symmetric_fit_is_the_best_scale_for_its_codes(name, how, walks):
    walk = walks[name, how]
    if len(walk.fits) == 1:
        return
    half = LAYOUTS[name].zero
    x, w = (v.double().numpy() for v in (walk.x, walk.weights))
    for k, fit in enumerate(walk.fits):
        q = fit.codes.double().numpy()
        assert q.min() >= -half and q.max() <= half - 1
        for g in range(walk.groups):
            best = (w[g] * x[g] * q[g]).sum() / (w[g] * q[g] ** 2).sum()
            assert float(fit.scale[g]) == pytest.approx(best, rel=1e-3)
            error = (w[g] * (best * q[g] - x[g]) ** 2).sum()
            assert float(fit.error[g]) == pytest.approx(error, rel=1e-2)
            kept = [float(f.error[g]) for f in walk.fits[:k] if bool(f.accepted[g])]
            if k and bool(fit.accepted[g]):
                assert float(fit.error[g]) <= min(kept) * (1 + 1e-3)
        if k and fit.tried is None:  # one code of a sub-block at a time
            moved = (fit.codes != walk.fits[k - 1].codes).sum(1)
            assert torch.equal(moved, fit.accepted.long())


def test_where_the_tries_lie():
    assert tries("Q4_K", False)[:3] == [15, 14, pytest.approx(14.1)] and len(tries("Q4_K", 0)) == 22
    assert tries("Q4_K", True)[1] == pytest.approx(14.1) and len(tries("Q4_K", True)) == 38
    assert tries("Q6_K", False)[1] == pytest.approx(31.1) and len(tries("Q6_K", False)) == 19
    assert tries("Q3_K", False) == tries("Q8_0", True) == tries("Q4_0", False) == []
    assert len(tries("Q3_K", True)) == len(tries("Q4_0", True)) == 19


@pytest.mark.parametrize("name", KQUANTS)
def test_what_is_found_is_what_is_rounded_and_stored(name, walks):
    walk = walks[name, "plain"]
    assert walk.first is not None and walk.second is not None
    scales, mins = walk.first
    d, dmin, ks, ls = walk.second
    best = [walk.best(g) for g in range(walk.groups)]
    for g, k in enumerate(best):
        assert float(scales[g]) == pytest.approx(float(walk.fits[k].scale[g]), rel=1e-4)
        assert float(mins[g]) == pytest.approx(-float(walk.fits[k].minimum[g]), rel=1e-6)
        kept = [i for i, fit in enumerate(walk.fits) if bool(fit.accepted[g])]
        assert k == kept[-1]
    top = {"Q2_K": 15, "Q3_K": 32, "Q4_K": 63, "Q5_K": 63, "Q6_K": 128}[name]
    extreme = float(scales[scales.abs().argmax()])
    assert d == pytest.approx(extreme / (top if name in WITH_MINIMUM else -top), rel=1e-3)
    assert (ks - scales / d).abs().max() <= 0.5 + 0.06
    values = d * ks[:, None].double() * (walk.codes - walk.layout.zero)
    values -= dmin * ls[:, None].double()
    assert torch.allclose(values.float(), walk.back, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("how", ["plain", "importance"])
@pytest.mark.parametrize("name", KQUANTS)
def test_the_second_pass_takes_the_nearest_level(name, how, walks):
    walk = walks[name, how]
    levels = walk.stored_levels()
    nearest = (levels[:, None] - walk.x.double()[:, :, None]).abs().amin(2)
    assert torch.allclose((walk.back.double() - walk.x).abs(), nearest, rtol=1e-4, atol=1e-8)
    _, dmin, ks, ls = walk.second
    assert torch.equal(walk.levels(walk.moments[-1], 2), levels[2])
    stored = walk.second[0] * ks[2] * (torch.arange(len(levels[2])) - walk.layout.zero)
    assert torch.allclose(levels[2], stored.double() - dmin * ls[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LAYOUTS)
def test_moments_follow_each_other_and_end_with_the_bytes(name, walks):
    for how in ("plain", "importance"):
        walk = walks[name, how]
        kinds = [moment.kind for moment in walk.moments]
        assert kinds == sorted(kinds, key=KINDS.index)
        assert kinds[0] == BLOCK and kinds[-1] == BACK
        assert [m.section for m in walk.moments if m.kind == BYTES] == [
            section.name for section in LAYOUTS[name].sections
        ]
        assert (WEIGH in kinds) == (walk.weights is not None)
        assert (FOUND in kinds) == (TRY in kinds) == (len(walk.fits) > 1)
        assert (LEVELS in kinds) == (PASS in kinds) == (name in KQUANTS)
        assert walk.at(walk.moments[0]) is None
        for moment in walk.moments:
            state = walk.at(moment)
            if moment.kind not in (BLOCK, WEIGH):
                assert state is not None
                assert state[0].shape == state[1].shape == walk.x.shape
                low, high = (-128, 127) if name == "Q8_0" else (0, 2 ** LAYOUTS[name].bits - 1)
                assert low <= int(state[0].min()) and int(state[0].max()) <= high
        codes, back = walk.at(walk.moments[-1])
        assert torch.equal(back, walk.back) and torch.equal(codes, walk.codes)


# ------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("name", ["Q4_K", "Q2_K", "Q6_K", "Q3_K"])
@pytest.mark.parametrize("how", ["plain", "importance"])
def test_facts_are_what_brute_force_finds(name, how, walks):
    walk, x = walks[name, how], walks[name, how].x.double()

    def rel(values):
        return float((values.double() - x).norm() / x.norm())

    for g in (0, walk.groups - 1):
        facts = weigh_facts(walk, g)
        w = walk.weights[g]
        assert (facts.most, facts.least) == (float(w.max()), float(w.min()))
        assert facts.most_x in walk.x[g].tolist() and facts.least_x in walk.x[g].tolist()
        for moment in walk.moments:
            if moment.kind not in (START, TRY):
                continue
            one, k = try_facts(walk, moment, g), moment.fit
            errors = [float(fit.error[g]) for fit in walk.fits]
            until = [e for e, fit in zip(errors[:k], walk.fits, strict=False) if fit.accepted[g]]
            assert one.error == errors[k] and one.plain == errors[0]
            assert one.best == (until[-1] if until else errors[0])
        found = found_facts(walk, g)
        assert found.off_plain == pytest.approx(rel(walk.fits[0].values))
        assert found.off == pytest.approx(rel(walk.kept()[1]))
        level = level_facts(walk, g)
        assert level.off_before == found.off
        assert level.stored == pytest.approx(walk.second[0] * int(walk.second[2][g]))
    passed = pass_facts(walk)
    assert passed.off == pytest.approx(rel(walk.back))
    assert passed.off_before == level.off >= passed.off
    mine = walk.chosen.long() != walk.codes
    assert passed.changed == int(mine.sum())
    sizes = sizes_of(walk)
    assert sizes.nbytes == len(walk.data) and sizes.weights == 256
    ends = [bytes_facts(walk, s.name) for s in walk.layout.sections]
    assert ends[0].first == 0 and ends[-1].last == len(walk.data) - 1
    assert sum(bits for one in ends for _, bits in one.holds) == 8 * len(walk.data)


def test_off_of_nothing_and_of_zeros():
    zero, one = torch.zeros(2, 3), torch.ones(2, 3)
    assert off(zero, zero) == 0 and off(zero, one) == float("inf") and off(one, zero) == 1
    assert off(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]])) == pytest.approx(0.8)
    weights = torch.tensor([[1.0, 0.0]])
    assert off(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 0.0]]), weights) == 0


# ------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("name", KQUANTS)
def test_without_the_second_pass(name, walks):
    walk = walks[name, "plain"]
    wrong = without_second_pass(walk)
    assert PASS not in [moment.kind for moment in wrong.moments]
    changed = int((wrong.codes != walk.codes).sum())
    facts = zoo_facts(walk, wrong)
    assert (facts.farther > 0) == (changed > 0)
    assert facts.farther <= changed
    assert off(walk.x, wrong.back) >= off(walk.x, walk.back)
    assert zoo_facts(walk, walk).farther == 0
    with pytest.raises(ValueError, match="no second pass"):
        without_second_pass(walks["Q4_0", "plain"])


def test_one_outlier_makes_the_other_scales_small(weight, walks):
    row = with_outlier(weight[7], 256 + 40, 100.0)
    assert float(row[296]) == pytest.approx(100 * float(weight[7, 296])) and row[0] == weight[7, 0]
    wrong = RowWalk(row, type="Q4_K").block(1)
    facts = zoo_facts(walks["Q4_K", "plain"], wrong)
    ks = wrong.second[2]
    assert facts.small_scales == int((10 * ks <= 63).sum()) >= 5
    rest = without_largest(wrong.x)
    assert rest.sum() == 255 and rest.flatten()[40] == 0
    x, back = (v.double().flatten() for v in (wrong.x, wrong.back))
    kept = torch.arange(256) != 40
    assert facts.rest == pytest.approx(float((x - back)[kept].norm() / x[kept].norm()))
    assert facts.rest > 3 * facts.rest_true and facts.factor == pytest.approx(100, rel=1e-4)


@pytest.mark.parametrize("name", KQUANTS)
def test_inputs_that_nothing_reached_lose_their_block(name, weight, importance, walks):
    own = unreached(importance, 256, 256)
    assert not own[256:512].any() and torch.equal(own[512:], importance[512:])
    wrong = RowWalk(weight[7], type=name, importance=own).block(1)
    facts = zoo_facts(walks[name, "plain"], wrong)
    assert facts.off == 1 and not wrong.back.any()
    assert facts.zero_scales == wrong.groups or wrong.second[0] == 0


@pytest.mark.parametrize("name", ["Q4_K", "Q4_0", "Q4_1", "MXFP4"])
def test_bytes_read_in_pairs_are_other_weights(name, walks):
    walk = walks[name, "plain"]
    wrong = read_in_pairs(walk)
    assert torch.equal(wrong.data, walk.data)
    start = walk.layout.nbytes - (128 if name == "Q4_K" else 16)
    pairs = [n for byte in walk.data[start:].tolist() for n in (byte & 15, byte >> 4)]
    levels = walk.stored_levels()
    codes = torch.tensor(pairs).view(walk.x.shape)
    assert torch.equal(wrong.back, levels.gather(1, codes).float())
    assert off(walk.x, wrong.back) > 0.5
    assert zoo_facts(walk, wrong).same_codes
    assert not can_be_read_in_pairs("Q6_K") and not can_be_read_in_pairs("Q5_0")
    with pytest.raises(ValueError, match="halves"):
        read_in_pairs(walks["Q6_K", "plain"])


def test_two_walks_step_together(walks):
    plain, weighed = walks["Q4_K", "plain"], walks["Q4_K", "importance"]
    steps = together(plain, weighed)
    assert len(steps) == len(weighed.moments) > len(plain.moments)
    assert [second for _, second in steps] == list(weighed.moments)
    assert [a for i, (a, _) in enumerate(steps) if i == 0 or a != steps[i - 1][0]] == list(
        plain.moments
    )
    for first, second in steps:
        assert first.kind == second.kind
    assert together(plain, None) == [(moment, None) for moment in plain.moments]
    old, searched = walks["Q4_0", "plain"], walks["Q4_0", "importance"]
    for first, second in together(old, searched):  # one of them has nothing to search
        assert KINDS.index(first.kind) <= KINDS.index(second.kind)
