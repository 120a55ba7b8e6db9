"""AWQ's study functions against explicit sums in float64, and against `awq` itself."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import calibration_for

import qviz
from qviz.core.metrics import output_error
from qviz.core.transform import InputScale
from qviz.methods.affine import affine
from qviz.methods.awq import GRIDS, awq, search
from qviz.models.checkpoint import find_checkpoint, list_layers
from qviz.models.fold import feeds
from qviz.study import awq_beside as beside
from qviz.study.awq_case import (
    MEASURED,
    NO_FEED,
    UNKNOWN,
    Case,
    amplifier,
    block_wirings,
    load_case,
    louder,
    loudest,
    some_rows,
    times,
    wiring,
)
from qviz.study.awq_fold import fold_inputs, fold_norm, fold_up, multiplies, powers_of_two
from qviz.study.awq_steps import (
    AT_RANDOM,
    BY_INPUTS,
    BY_WEIGHTS,
    FRACTIONS,
    Clip,
    Search,
    keeping,
    one_channel,
)

FIELDS = ("inputs", "hessian", "act_absmax", "act_absmean")


def inputs(tokens: int, columns: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=g, dtype=torch.float64)
    return x * torch.exp(torch.randn(columns, generator=g, dtype=torch.float64))


def case(rows=(12,), columns=64, seed=0, bits=3, size=16, tokens=90) -> tuple[Case, np.ndarray]:
    """A case, and its calibration's inputs in float64."""
    g = torch.Generator().manual_seed(seed + 100)
    x = inputs(tokens, columns, seed)
    weights = {f"w{i}": torch.randn(r, columns, generator=g) * 0.05 for i, r in enumerate(rows)}
    judge = calibration_for(inputs(tokens, columns, seed + 1))
    return Case("w0", weights, calibration_for(x), judge, bits, size), x.numpy()


def off(x: np.ndarray, back: torch.Tensor, weight: torch.Tensor) -> float:
    """‖X·(Ŵ − W)ᵀ‖ / ‖X·Wᵀ‖, multiplied out."""
    b, w = back.double().numpy(), weight.double().numpy()
    return float(np.linalg.norm(x @ (b - w).T) / np.linalg.norm(x @ w.T))


# ------------------------------------------------------------------------- the case


def test_times_is_what_captured_inputs_times_m_would_give():
    x = inputs(50, 32, 3)
    m = torch.rand(32, dtype=torch.float64) * 4
    m[5] = 0
    ours, true = times(calibration_for(x), m), calibration_for(x * m)
    for name in FIELDS:
        torch.testing.assert_close(getattr(ours, name), getattr(true, name), rtol=1e-5, atol=1e-6)


def test_louder_changes_no_product():
    one, _ = case()
    loud = louder(one, 16.0)
    x = one.calibration.inputs
    m = amplifier(one.calibration, 16.0)
    assert int((m == 16).sum()) == max(1, round(0.01 * 64)) and set(m.tolist()) == {1.0, 16.0}
    assert m[one.calibration.act_absmean.argmax()] == 16
    assert torch.equal(loud.calibration.inputs, x * m)
    # each product of the sum is the same to the last bit
    assert torch.equal((x * m)[:, None] * (one.weight / m), x[:, None] * one.weight)
    assert torch.equal(loud.weight, one.weight / m)
    torch.testing.assert_close(loud.judge.hessian, one.judge.hessian * m * m[:, None])
    assert louder(one, 1.0) is one
    nearest = [c.error(c.nearest.dequantize()) for c in (one, loud)]
    assert nearest[1] > nearest[0]


def test_loudest_takes_a_share_and_at_least_one():
    calibration = calibration_for(inputs(20, 64, 1))
    a = calibration.act_absmean
    for share, count in ((0.0001, 1), (0.25, 16)):
        found = loudest(calibration, share)
        assert len(found) == count
        assert a[found].min() >= a.sort(descending=True).values[count - 1]


def test_a_large_weight_is_cut_to_its_first_rows():
    wide = torch.arange(3.0)[:, None].expand(3, MEASURED).clone()
    assert some_rows(wide).shape == (1, MEASURED) and some_rows(wide)[0, 0] == 0
    small = torch.zeros(4, 8)
    assert some_rows(small).shape == small.shape


def test_a_case_of_the_bundled_model():
    one = load_case(None, "model.layers.1.self_attn.v_proj", bits=3, loud=4.0)
    assert [n.rpartition(".")[2] for n in one.weights] == ["q_proj", "k_proj", "v_proj"]
    assert one.weight.shape == (128, 256)
    plain = qviz.load_layer(None, one.name).float()
    m = amplifier(qviz.load_calibration(None, one.name), 4.0)
    assert torch.equal(one.weight * m, plain)
    assert one.judge.source != one.calibration.source


# ------------------------------------------------------------------------- what feeds a layer

LLAMA = (
    "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
    "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def shapes(*more: str, heads_share: int = 2) -> dict[str, tuple[int, ...]]:
    made = {f"model.layers.0.{n}.weight": (256, 256) for n in (*LLAMA, *more)}
    made["model.layers.0.self_attn.v_proj.weight"] = (256 // heads_share, 256)
    return made


def test_the_bundled_models_wiring_is_that_of_folding():
    found = {n: i.shape for n, i in find_checkpoint(None).headers().items()}
    at = "model.layers.2."
    q = wiring(found, f"{at}self_attn.q_proj")
    assert (q.source, q.into, q.folds) == (f"{at}input_layernorm", "norm", True)
    assert len(q.linears) == 3
    o = wiring(found, f"{at}self_attn.o_proj")
    assert (o.source, o.shared, o.folds) == (f"{at}self_attn.v_proj", 2, False)
    down = wiring(found, f"{at}mlp.down_proj")
    assert (down.source, down.into, down.folds) == (f"{at}mlp.up_proj", "linear", True)
    block = block_wirings(found, f"{at}mlp.down_proj")
    assert [one.folds for one in block] == [True, False, True, True]
    folded = {f.source for f in feeds(qviz.load_model())}
    for layer in (info.name for info in list_layers(None)):
        one = wiring(found, layer)
        assert one.folds == (one.source in folded), layer


def test_heads_that_do_not_share_values_fold():
    o = wiring(shapes(heads_share=1), "model.layers.0.self_attn.o_proj")
    assert o.folds and o.shared == 1


def test_a_block_with_another_norm_is_not_guessed():
    found = shapes("pre_feedforward_layernorm")
    one = wiring(found, "model.layers.0.mlp.up_proj")
    assert not one.folds and one.note == UNKNOWN and one.linears == ("model.layers.0.mlp.up_proj",)
    assert block_wirings(found, "model.layers.0.mlp.up_proj") == ()
    assert wiring({"head.weight": (8, 8)}, "head").note == UNKNOWN


def test_a_layer_without_a_feed_is_left():
    names = ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    found = {f"h.0.{n}.weight": (64, 64) for n in names}
    assert wiring(found, "h.0.mlp.c_proj").note == NO_FEED
    assert wiring(found, "h.0.mlp.c_fc").source == "h.0.ln_2"


# ------------------------------------------------------------------------- channels kept


@pytest.mark.parametrize("seed", range(3))
def test_keeping_channels_is_what_multiplying_out_gives(seed):
    one, x = case(seed=seed)
    found = keeping(one)
    a, size = np.abs(x).mean(0), np.abs(one.weight.numpy()).mean(0)
    for how, by in ((BY_INPUTS, a), (BY_WEIGHTS, size)):
        assert found.orders[how].tolist() == np.argsort(-by, kind="stable").tolist()
        for count in (0, 1, 2, 7, 40, 63, 64):
            back = one.nearest.dequantize().clone()
            kept = found.orders[how][:count]
            back[:, kept] = one.weight[:, kept]
            want = off(x, back, one.weight)
            assert float(found.errors[how][count]) == pytest.approx(want, rel=1e-4, abs=1e-7)


def test_at_random_is_the_root_mean_square_over_all_choices():
    one, x = case(columns=6, size=6, rows=(5,))
    found = keeping(one).errors[AT_RANDOM]
    for count in range(7):
        squares = []
        for kept in itertools.combinations(range(6), count):
            back = one.nearest.dequantize().clone()
            back[:, list(kept)] = one.weight[:, list(kept)]
            squares.append(off(x, back, one.weight) ** 2)
        want = np.sqrt(np.mean(squares))
        assert float(found[count]) == pytest.approx(want, rel=1e-5, abs=1e-7)


# ------------------------------------------------------------------------- one channel scaled


@settings(max_examples=20)
@given(channel=st.integers(0, 63), seed=st.integers(0, 5), size=st.sampled_from([16, None]))
def test_one_channel_scaled_is_awq_with_that_factor(channel, seed, size):
    one, x = case(seed=seed, size=size)
    width = 64 if size is None else size
    first = channel // width * width
    part = slice(first, first + width)
    factors = (1.0, 1.5, 4.0, 16.0)
    base = None
    for factor, step in zip(factors, one_channel(one, channel, factors), strict=True):
        s = torch.ones(64)
        s[channel] = factor
        q = awq(one.weight, one.calibration, **one.options, transform=InputScale(s), clip=False)
        back = q.dequantize()
        torch.testing.assert_close(step.back, back[:, part])
        assert step.output == pytest.approx(off(x, back, one.weight), rel=1e-4)
        lost = (back - one.weight)[:, part].double().numpy()
        whole = np.linalg.norm(x @ one.weight.double().numpy().T)
        at = channel - first
        others = [j for j in range(width) if j != at]
        for value, columns in ((step.channel, [at]), (step.others, others),
                               (step.group, list(range(width)))):  # fmt: skip
            inside = x[:, part][:, columns]
            want = np.linalg.norm(inside @ lost[:, columns].T) / whole
            assert value == pytest.approx(want, rel=1e-3, abs=1e-7)
        spacing = q.grid.scale[:, first // width].double()
        base = spacing if base is None else base
        assert step.widened == float((spacing > base).double().mean())
        assert step.narrowed == float((spacing < base).double().mean())
        assert step.growth == pytest.approx(float((spacing / base).mean()))


# ------------------------------------------------------------------------- the searches


@pytest.mark.parametrize("grid", GRIDS)
def test_a_search_is_that_of_awq(grid):
    one, x = case(rows=(9, 5), seed=2)
    found = Search(one, grid)
    true = search(list(one.weights.values()), one.calibration, **one.options, grid=grid)
    assert [c.loss for c in found.candidates] == true.losses.tolist()
    assert (found.best, found.chosen.ratio, found.chosen.duo) == (true.best, true.ratio, true.duo)
    assert torch.equal(found.chosen.scale, true.scale)
    both = torch.cat(list(one.weights.values()))
    for k in (0, 3, 19):
        s = found.candidates[k].scale
        q = awq(both, one.calibration, **one.options, transform=InputScale(s), clip=False)
        assert found.candidates[k].error == pytest.approx(off(x, q.dequantize(), both), rel=1e-3)
        judged = output_error(both, q.dequantize(), one.judge)
        assert found.judged(k) == pytest.approx(judged, rel=1e-4)
        assert torch.equal(found.tensor(k).codes, q.codes[:9])
        assert found.candidates[k].spread == pytest.approx(float(s.max() / s.min()))
        assert found.best_so_far(k) == int(true.losses[: k + 1].argmin())
    nearest = affine(both, **one.options, convention="awq").dequantize()
    assert found.judged_nearest == pytest.approx(output_error(both, nearest, one.judge), rel=1e-5)


def test_the_grid_called_both_tries_each_ratio_twice():
    found = GRIDS["llm-compressor-both"].candidates
    assert len(found) == 20 and found[0] == (0.0, False) and found[-1] == (1.0, True)
    assert [r for r, _ in found[::2]] == [r for r, _ in found[1::2]]
    assert {duo for _, duo in found[::2]} == {False}


def test_of_one_layer_it_is_what_awq_returns():
    one, _ = case(seed=4)
    found = Search(one, "autoawq")
    q = awq(one.weight, one.calibration, **one.options, grid="autoawq", clip=False)
    assert torch.equal(found.tensor(found.best).codes, q.codes)
    assert q.info["ratio"] == found.chosen.ratio


def test_clipping_is_that_of_awq():
    one, x = case(seed=5)
    scale = Search(one, "llm-awq").chosen.scale
    clip = Clip(one, scale)
    q = awq(one.weight, one.calibration, **one.options, clip=True)
    assert torch.equal(clip.after.codes, q.codes)
    assert q.info["clipped_groups"] == sum(clip.counts[1:]) and sum(clip.counts) == 12 * 4
    assert clip.error_after == pytest.approx(off(x, q.dequantize(), one.weight), rel=1e-4)
    assert clip.together[0] == pytest.approx(clip.error_before, rel=1e-6)
    own = clip.errors.double().numpy()
    want = np.sqrt(own.min(0).sum() / own[0].sum())
    assert clip.promised == pytest.approx(want, rel=1e-6)
    xs = x / scale.double().numpy()
    for row, group, k in itertools.product((0, 7), (0, 3), (0, 4, 9)):
        part = slice(16 * group, 16 * group + 16)
        cut, rounded = clip.group(row, group, k)
        w = clip.scaled[row, part]
        limit = float(w.abs().max()) * FRACTIONS[k]
        torch.testing.assert_close(cut, w.clamp(-limit, limit))
        miss = xs[:, part] @ (rounded.dequantize()[0] - w).double().numpy()
        assert np.mean(miss**2) == pytest.approx(float(own[k, row, group]), rel=1e-2)
    k = 3
    cut = clip.scaled.reshape(12, 4, 16)
    limit = cut.abs().amax(-1, keepdim=True) * FRACTIONS[k]
    same = affine(cut.clamp(-limit, limit).reshape(12, 64), **one.options, convention="awq")
    assert clip.together[k] == pytest.approx(
        off(x, same.dequantize() / scale, one.weight), rel=1e-4
    )


def test_a_clip_search_can_lose():
    """Two groups of inputs that move together: what is cut adds up."""
    x = inputs(80, 1, 3).expand(80, 32) * (1 + 0.02 * inputs(80, 32, 4))
    weight = torch.rand(6, 32, generator=torch.Generator().manual_seed(1)) + 0.5
    weight[:, ::8] *= 3
    one = Case("w0", {"w0": weight}, calibration_for(x), calibration_for(x), 3, 8)
    clip = Clip(one, torch.ones(32))
    assert clip.promised <= 1
    assert clip.error_after == pytest.approx(off(x.numpy(), clip.after.dequantize(), weight), 1e-3)


def test_which_layers_are_clipped_as_usual():
    one, _ = case()
    scale = torch.ones(64)
    assert Clip(one, scale).usual
    query = replace(one, name="self_attn.q_proj", weights={"self_attn.q_proj": one.weight})
    assert not Clip(query, scale).usual


# ------------------------------------------------------------------------- folding


def test_folding_into_a_norm_changes_nothing():
    g = torch.Generator().manual_seed(0)
    plain = torch.nn.functional.rms_norm(torch.randn(40, 64, generator=g) * 3, (64,))
    gamma = torch.rand(64, generator=g) + 0.5
    weight = torch.randn(16, 64, generator=g)
    scale = torch.rand(64, generator=g) * 4 + 0.1
    found = fold_norm(plain * gamma, gamma, weight, scale)
    assert found.folded < 1e-5 and found.equal and found.powers == 0
    x, w, s = (t.double().numpy() for t in (plain * gamma, weight, scale))
    y = x @ w.T
    want = np.abs(x @ (w * s).T - y).max() / np.sqrt(np.mean(y**2))
    assert found.forgotten == pytest.approx(want, rel=1e-4) and want > 0.1
    none = fold_norm(plain * gamma, gamma, weight, torch.ones(64))
    assert none.forgotten < 1e-5
    assert multiplies(plain * gamma, gamma)
    assert not multiplies(plain * (1 + gamma), gamma), "as Gemma's norms do"
    beta = torch.randn(64, generator=g)
    assert multiplies(plain * gamma + beta, gamma, beta)
    with_bias = fold_norm(plain * gamma + beta, gamma, weight, scale, beta)
    assert with_bias.folded < 1e-5 and with_bias.equal
    gamma[3] = 0
    assert fold_norm(plain * gamma, gamma, weight, scale).folded < 1e-5


def test_folding_into_an_up_projection_changes_nothing():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(30, 16, generator=g)
    gate, up = torch.randn(2, 32, 16, generator=g)
    down, scale = torch.randn(8, 32, generator=g), torch.rand(32, generator=g) * 4 + 0.1
    found = fold_up(x, gate, up, down, scale)
    assert found.folded < 1e-5 and found.equal and found.forgotten > 0.1
    inner = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    same = fold_inputs(inner, down, scale)
    assert same.forgotten == pytest.approx(found.forgotten, rel=1e-4)
    assert same.folded < 1e-5


def test_powers_of_two():
    s = torch.tensor([0.3, 1.0, 1.5, 5.0])
    assert powers_of_two(s).tolist() == [0.25, 1.0, 2.0, 4.0]


# ------------------------------------------------------------------------- beside others


def test_all_methods_cost_the_same_and_are_what_they_are_called():
    one, x = case(seed=6, tokens=200)
    made = beside.standings(one)
    assert [s.method for s in made] == list(beside.METHODS)
    assert len({s.bits_per_weight for s in made}) == 1
    scale = search([one.weight], one.calibration, **one.options).scale
    for s in made:
        back = beside.quantize_as(one, s.method, scale).dequantize()
        assert s.error == pytest.approx(off(x, back, one.weight), rel=1e-4)
        assert s.judged == pytest.approx(output_error(one.weight, back, one.judge), rel=1e-6)
    errors = {s.method: s.error for s in made}
    assert errors[beside.SCALED] <= errors[beside.NEAREST] * 1.001  # float16 scales move a little
    assert errors[beside.GPTQ] < errors[beside.NEAREST]
    both = beside.quantize_as(one, beside.BOTH, scale)
    # GPTQ on W·s with the inputs x/s, worked out from those inputs
    given = calibration_for(torch.from_numpy(x / scale.double().numpy()))
    again = qviz.quantize(one.weight * scale, "gptq", given, **one.options,
                          scale_dtype=torch.float16)  # fmt: skip
    assert (both.codes != again.codes).double().mean() < 0.01
    torch.testing.assert_close(both.dequantize(), both.folded().dequantize() / scale)


def test_every_layer_stops_when_told():
    one, _ = case(columns=16)
    asked = []

    def make(name):
        asked.append(name)
        return one

    found = list(beside.every_layer(["a", "b", "c"], make, lambda: len(asked) == 2))
    assert [name for name, _ in found] == ["a", "b"]
    assert found[0][1] == beside.standings(one)


def test_contrasts_change_one_thing():
    one, _ = case(seed=7, tokens=300)
    other = calibration_for(inputs(300, 64, 50))
    for contrast in beside.CONTRASTS:
        second, grid = beside.changed(one, "llm-awq", contrast.name, other)
        assert second.judge is one.judge and second.weights is one.weights
        if contrast.family == "grid":
            assert grid == contrast.name and second is one
            continue
        assert grid == "llm-awq"
        if contrast.name == beside.TEXT:
            assert second.calibration is other
        elif contrast.name == beside.TOKENS:
            assert second.calibration.tokens == beside.FEW
        else:
            loud = int(one.calibration.act_absmean.argmax())
            assert not second.calibration.inputs[:, loud].any()
            assert second.calibration.hessian[loud].abs().sum() == 0
            first, mute = Search(one, grid), Search(second, grid)
            if mute.chosen.ratio:
                assert mute.chosen.spread > 50 * first.chosen.spread
                back = mute.tensor(mute.best).dequantize()[:, loud]
                assert float((back - one.weight[:, loud]).abs().max()) > 0
    assert {c.name for c in beside.CONTRASTS if c.family == "grid"} == set(GRIDS)
