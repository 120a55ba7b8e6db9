"""Lesson 8 without a browser: what it shows is what float64 gives, summed in another way.

Weights are rounded here group by group with NumPy, and errors are traces of D·H·Dᵀ in float64.
"""

from typing import Any

import numpy as np
import pytest
import torch
from said import cut, holds, numbers_in, points

import qviz
from qviz.methods.awq import GRIDS
from qviz.models.capture import load_calibration
from qviz.models.checkpoint import find_checkpoint
from qviz.study import awq_beside as beside
from qviz.study.awq_steps import AT_RANDOM, BY_INPUTS, BY_WEIGHTS
from qviz.ui.views import AwqLesson
from qviz.ui.views.awq import LOUD
from qviz.ui.views.awq_channels import SHARES, counts
from qviz.ui.views.awq_guide import CHANNELS, CLIP, ONE, OTHERS, SEARCH
from qviz.ui.views.awq_one import FACTORS

LAYER = "model.layers.1.self_attn.v_proj"
O_PROJ = "model.layers.1.self_attn.o_proj"
K_PROJ = "model.layers.0.self_attn.k_proj"
GROUP = 128


@pytest.fixture(scope="module")
def lesson() -> AwqLesson:
    return AwqLesson()


@pytest.fixture
def page(lesson: AwqLesson) -> AwqLesson:
    lesson.go({})
    return lesson


class Truth:
    """A layer in float64."""

    def __init__(self, layer: str = LAYER, bits: int = 3, loud: float = 1.0) -> None:
        self.bits = bits
        self.calibration = load_calibration(None, layer)
        self.a = self.calibration.act_absmean.double().numpy()
        m = np.ones(len(self.a))
        loudest = np.argsort(-self.a)[: max(1, round(0.01 * len(self.a)))]
        m[loudest] = loud
        self.a = self.a * m
        held_out = load_calibration(None, layer, text="heldout_python")
        self.h, self.judge = (
            c.hessian.double().numpy() * m * m[:, None] for c in (self.calibration, held_out)
        )
        self.w = qviz.load_layer(None, layer).double().numpy() / m

    def rounded(self, w: np.ndarray | None = None, size: int = GROUP) -> np.ndarray:
        """Every group to its nearest level, as AWQ has them."""
        w = self.w if w is None else w
        groups = w.astype(np.float32).reshape(len(w), -1, size)  # whose ties are those of the page
        low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
        top = 2**self.bits - 1
        scale = np.maximum(high - low, 1e-5) / top
        zero = np.clip(-np.rint(low / scale), 0, top)
        codes = np.clip(np.rint(groups / scale) + zero, 0, top)
        return ((codes - zero) * scale).astype(np.float64).reshape(w.shape)

    def off(self, back: np.ndarray, h: np.ndarray | None = None) -> float:
        h = self.h if h is None else h
        d = back - self.w
        return float(np.sqrt(np.trace(d @ h @ d.T) / np.trace(self.w @ h @ self.w.T)))


def share(text: str) -> float:
    return numbers_in(text)[0].value


# ------------------------------------------------------------------------- which channels


@pytest.mark.parametrize("loud", ["as trained", "8×"])
def test_keeping_channels_leaves_the_error_that_is_said(page, loud):
    page.go({"loud": loud, "bits": "4", "by": BY_WEIGHTS})
    truth = Truth(bits=4, loud=LOUD[loud])
    nearest = truth.rounded()
    orders = {BY_INPUTS: np.argsort(-truth.a, kind="stable"),
              BY_WEIGHTS: np.argsort(-np.abs(truth.w).mean(0), kind="stable")}  # fmt: skip
    lost = nearest - truth.w
    m = (lost.T @ lost) * truth.h
    alone, pairs = np.trace(m), m.sum() - np.trace(m)
    whole = np.trace(truth.w @ truth.h @ truth.w.T)
    n = truth.w.shape[1]
    for i, count in enumerate(counts(n)):
        text = page.channels.caption.texts[i]
        left = {}
        for how, order in orders.items():
            back = nearest.copy()
            back[:, order[:count]] = truth.w[:, order[:count]]
            left[how] = truth.off(back)
        k = n - count
        left[AT_RANDOM] = np.sqrt((alone * k / n + pairs * k * (k - 1) / (n * (n - 1))) / whole)
        before = truth.off(nearest)
        if count in (0, n):
            holds(text, **({"of": n} if count else {"of": n, "bits": 4, "before": before}))
            continue
        way = float(f"{100 * left[BY_WEIGHTS]:.3g}") - float(f"{100 * before:.3g}")
        known = {"count": count, "of": n, "now": left[BY_WEIGHTS]}
        known |= {"before": before} if way else {}
        cost = ((4 + 36 / 128) * k + 16 * count) / n  # scales are as computed, in float32
        holds(text, **known, inputs=left[BY_INPUTS], random=left[AT_RANDOM], cost=cost,
              ways={"up from/down from/still": way})  # fmt: skip


def test_the_guess_is_judged_and_hides_the_curves(page):
    part, chart = page.channels, page.channels.curves
    page.open(None, K_PROJ)
    page.open(None, LAYER)

    def drawn() -> list[bool]:
        import json

        return [t.get("visible", True) for t in json.loads(chart.figures)[0]["data"]][:3]

    assert drawn() == [False] * 3 and not part.prediction.revealed
    part.prediction.control.index = 2
    assert drawn() == [True] * 3
    text = part.prediction.verdict.texts[0]
    facts = part.shown.guess()
    best = min(facts.errors, key=facts.errors.__getitem__)
    points(text, "Right/Not here", best == BY_WEIGHTS)
    page.open(None, K_PROJ)
    assert not part.prediction.revealed
    part.lead.index = 4
    assert part.prediction.revealed and drawn() == [True] * 3


def test_a_kept_weight_has_no_error(page):
    page.go({"weight": "3, 250", "by": BY_INPUTS})
    order = np.argsort(-Truth().a, kind="stable").tolist()
    rows = {row["label"]: row["texts"] for row in page.channels.table.rows}
    assert rows["channel's place by largest inputs"] == [str(order.index(250) + 1)]
    said = [text.startswith("yes") for text in rows["kept in 16 bits"]]
    assert said == [order.index(250) < count for count in counts(256)]
    assert len(SHARES) == len(said)


# ------------------------------------------------------------------------- one channel


@pytest.mark.parametrize("held", [None, "10, 40"])
def test_one_channel_scaled_does_what_is_said(page, held):
    page.go({"part": ONE, **({"weight": held} if held else {})})
    truth = Truth()
    j = int(held.split(",")[1]) if held else int(truth.a.argmax())
    part = slice(j // GROUP * GROUP, (j // GROUP + 1) * GROUP)
    whole = np.trace(truth.w @ truth.h @ truth.w.T)
    first: dict[str, Any] = {}
    for i, s in enumerate(FACTORS):
        factor = np.ones(256)
        factor[j] = s
        back = truth.rounded(truth.w * factor) / factor
        lost = np.zeros_like(back)
        lost[:, part] = (back - truth.w)[:, part]
        own, rest = lost.copy(), lost.copy()
        own[:, np.arange(256) != j] = 0
        rest[:, j] = 0
        now = {"own": own, "rest": rest}
        now = {k: float(np.sqrt(np.trace(d @ truth.h @ d.T) / whole)) for k, d in now.items()}
        now["output"] = truth.off(back)
        text = page.one.caption.texts[i]
        if s == 1:
            first = now
            holds(text, s=1, j=j, own=now["own"], others=127, rest=now["rest"], out=now["output"])
            continue
        head, middle, end = cut(text, ". In ", " The layer's output")
        _, tail = cut(middle, ", and the others")
        for told, name, known, phrases in (
            (head, "own", {"j": j, "s": s}, "rise/fall/stay"),
            (tail, "rest", {}, "rise/fall/stay"),
            (end, "output", {}, "up from/down from/still"),
        ):
            way = float(f"{100 * now[name]:.3g}") - float(f"{100 * first[name]:.3g}")
            order = ("new", "old") if name == "output" else ("old", "new")
            values = {"old": first[name], "new": now[name]}
            known |= {key: values[key] for key in order if way or key == "new"}
            holds(told, **known, ways={phrases: way})


def test_the_table_of_all_rows_is_that_of_the_paper(page):
    page.go({"part": ONE})
    truth, rows = Truth(), {row["label"]: row["texts"] for row in page.one.paper.rows}
    j = int(truth.a.argmax())
    part = slice(j // GROUP * GROUP, (j // GROUP + 1) * GROUP)
    spans, own = [], []
    for s in FACTORS:
        factor = np.ones(256)
        factor[j] = s
        group = (truth.w * factor).astype(np.float32)[:, part]
        spans.append(group.max(1) - group.min(1))
        own.append(np.linalg.norm((truth.rounded(truth.w * factor) / factor - truth.w)[:, j]))
    for i, s in enumerate(FACTORS):
        growth = float((spans[i] / spans[0]).mean())
        want = {
            "rows in which Δ grew": (spans[i] > spans[0]).mean(),
            "rows in which Δ shrank": (spans[i] < spans[0]).mean(),
            "mean Δ′/Δ": growth, "(Δ′/Δ)/s": growth / s,
            "own errors, × s = 1": own[i] / own[0],
        }  # fmt: skip
        for label, value in want.items():
            holds(rows[label][i], value=float(value))


def test_holding_another_weight_scales_its_channel(page):
    page.go({"part": ONE})
    assert page.one.shown.channel == page.loudest
    page.one.picture.cursor = [5, 17]  # pointing alone does not
    assert page.one.shown.channel == page.loudest
    rows = {row["label"]: row["texts"] for row in page.one.table.rows}
    assert rows["row, channel"] == ["5, 17"]
    page.one.picture.pinned = True
    assert page.one.shown.channel == 17 and page.state["weight"] == "5, 17"
    assert page.one.picture.outlines[1] == [0, 128, 17, 18]
    page.part_control.index = 2
    assert page.search.picture.cursor == [5, 17] and page.held
    page.search.picture.pinned = False
    page.part_control.index = 1
    assert page.one.shown.channel == page.loudest


# ------------------------------------------------------------------------- the search


def by_hand(truth: list[Truth], r: float, duo: bool) -> np.ndarray:
    """The factors, from the formula."""
    s = truth[0].a ** r
    if duo:
        sizes = []
        for one in truth:
            groups = np.abs(one.w).reshape(len(one.w), -1, GROUP)
            sizes.append((groups / (groups.max(-1, keepdims=True) + 1e-6)).reshape(one.w.shape))
        s = s / (np.concatenate(sizes).mean(0) ** (1 - r) + 1e-4)
    s = np.maximum(s, 1e-4)
    return s / np.sqrt(s.max() * s.min())


@pytest.mark.parametrize("grid", ["llm-awq", "llm-compressor-both"])
def test_each_candidate_does_what_is_said(page, grid):
    page.go({"part": SEARCH, "grid": grid})
    truth = [Truth(LAYER.replace("v_proj", f"{x}_proj")) for x in "qkv"]
    whole = sum(np.trace(t.w @ t.h @ t.w.T) for t in truth)
    judged_whole = sum(np.trace(t.w @ t.judge @ t.w.T) for t in truth)
    best, errors = None, []
    for k, (r, duo) in enumerate(GRIDS[grid].candidates):
        s = by_hand(truth, r, duo)
        lost = [t.rounded(t.w * s) / s - t.w for t in truth]
        error = float(np.sqrt(sum(np.trace(d @ t.h @ d.T)
                                  for d, t in zip(lost, truth, strict=True)) / whole))  # fmt: skip
        judged = sum(np.trace(d @ t.judge @ d.T) for d, t in zip(lost, truth, strict=True))
        text = page.search.foot.captions[k]
        head = text.partition(" It takes")[0]
        known = {"k": k, "of": 19, "r": r}
        known |= {"factor": 1} if r == 0 and not duo else {"low": s.min(), "high": s.max()}
        known |= {"layers": 3, "error": error} | ({} if best is None else {"best": best})
        way = 1 if best is None else -1 if error < best else 0
        phrases = "and is the first/the best so far, before/the best so far keeps"
        holds(head, **known, ways={phrases: way})
        best = error if best is None else min(best, error)
        errors.append((error, r, duo, s.max() / s.min(), float(np.sqrt(judged / judged_whole))))
    _, r, duo, spread, judged = min(errors)
    nearest = [t.rounded() - t.w for t in truth]
    plain = sum(np.trace(d @ t.judge @ d.T) for d, t in zip(nearest, truth, strict=True))
    holds(
        page.search.foot.captions[19].partition("It takes ")[2], r=r, spread=spread,
        judged=judged, nearest=float(np.sqrt(plain / judged_whole)),
        ways={"rounding to nearest is worse/rounding to nearest is better": 1},
    )  # fmt: skip
    assert page.search.foot.events["new best"][0] == 0


def test_a_weights_arithmetic_follows_the_candidates(page):
    page.go({"part": SEARCH, "weight": "7, 200"})
    truth = [Truth(LAYER.replace("v_proj", f"{x}_proj")) for x in "qkv"]
    rows = {row["label"]: row["texts"] for row in page.search.table.rows}
    for k, (r, duo) in enumerate(GRIDS["llm-awq"].candidates):
        s = by_hand(truth, r, duo)
        v = truth[2]
        back = v.rounded(v.w * s) / s
        at = {label: texts[k if len(texts) > 1 else 0] for label, texts in rows.items()}
        holds(at["s of its channel"], s=s[200])
        holds(at["ŵ = Δ·(q − z)/s"], back=back[7, 200])
        group = (v.w * s)[7, 128:256]
        holds(at["its group spans"], low=group.min(), high=group.max())
        holds(at["Δ = span ÷ 7"], delta=(group.max() - group.min()) / 7)
        holds(at["a·|ŵ − w|"], felt=v.a[200] * abs(back[7, 200] - v.w[7, 200]), digits=2)


def test_the_silent_channel_is_known_by_its_factors(page):
    page.go({"part": SEARCH, "beside": beside.SILENT})
    shown = page.search.shown
    assert shown.second.chosen.spread > 1000 * shown.first.chosen.spread
    first, second = (shown.found(one) for one in (shown.first, shown.second))
    text = page.search.sign.texts[0]
    points(text, "worse than the first/better than the first", second.judged - first.judged)
    assert second.judged > second.nearest > first.judged
    assert "Second search: candidate 19" in page.search.foot.captions[19]
    page.go({"part": SEARCH})
    assert page.search.shown.second is None


def test_a_second_search_that_is_the_first_gives_way(page):
    page.go({"part": SEARCH, "beside": "autoawq"})
    page.search.grid_control.index = list(GRIDS).index("autoawq")
    assert page.search.shown.second is None and page.status.text == ""
    assert "grid: AutoAWQ (duo scaling)" not in page.search.beside_control.options


# ------------------------------------------------------------------------- clip and fold


def test_clipping_does_what_is_said(page):
    page.go({"part": CLIP, "weight": "20, 200"})
    truth, clip = Truth(), page.clip.shown.clip
    s = page.clip.shown.search.chosen.scale.numpy()
    # In float32: cut at both ends, a group's zero point is a tie, which the last bit decides.
    scaled = truth.w.astype(np.float32) * s
    groups = scaled.reshape(len(scaled), -1, GROUP)
    top = np.abs(groups).max(-1, keepdims=True)
    parts = [np.float32(1 - k / 20) for k in range(10)]
    x = load_calibration(None, LAYER).inputs.double().numpy()
    x = x[:: max(1, len(x) // 512)] / s
    inner = np.stack([x[:, g * GROUP : (g + 1) * GROUP] for g in range(groups.shape[1])])
    own, uniform = [], []
    for part in parts:
        back = truth.rounded(np.clip(groups, -top * part, top * part).reshape(scaled.shape))
        d = (back - scaled).reshape(groups.shape)
        own.append(np.mean(np.einsum("gti,ogi->ogt", inner, d) ** 2, -1))
        uniform.append(truth.off(back / s))
    own = np.stack(own)  # [10, out, groups]
    step = clip.step.numpy()  # near ties may go either way, and are judged by their errors
    taken = np.take_along_axis(own, step[None], 0)[0]
    assert (taken <= own.min(0) * (1 + 1e-3)).all()
    best = np.take_along_axis(own, step[None], 0).sum()
    limit = top * np.float32(1 - step[..., None] / 20)
    after = truth.rounded(np.clip(groups, -limit, limit).reshape(scaled.shape)) / s
    low = int(np.argmin(uniform))
    now, before = truth.off(after), truth.off(truth.rounded(scaled) / s)
    holds(
        page.clip.whole.texts[0], cut=int((step > 0).sum()), of=step.size,
        promised=np.sqrt(best / own[0].sum()), now=now, before=before, true=now / before,
        share=1 - low / 20, together=uniform[low], ways={"up from/down from/still": now - before},
    )  # fmt: skip
    for k, text in enumerate(page.clip.foot.captions):
        reach = float(top[20, 1, 0]) * (1 - k / 20)
        points(text, "takes this one/takes another", bool(step[20, 1] == k))
        said = [n.value for n in numbers_in(text)]
        assert said[:3] == [k, 20, 1]
        if k:
            assert numbers_in(text)[4].is_(reach)
            assert said[5] == int((np.abs(groups[20, 1]) > reach * (1 + 1e-6)).sum())
            assert numbers_in(text)[-1].is_(float(np.sqrt(own[k, 20, 1] / own[0, 20, 1])))
    assert page.clip.foot.events == {"taken": [int(step[20, 1])]}


def test_pointing_at_another_group_cuts_that_one(page):
    page.go({"part": CLIP})
    page.clip.picture.cursor = [9, 140]
    assert page.clip.picture.outlines == [[9, 10, 128, 256]]
    assert "row 9, group 1" in page.clip.foot.captions[3]


def test_folding_is_worked_out_on_the_layers_inputs(page):
    page.go({"part": CLIP})
    x = load_calibration(None, LAYER).inputs[:256].double().numpy()
    w = Truth().w
    s = page.clip.shown.search.chosen.scale.double().numpy()
    y = x @ w.T
    wrong = np.abs(x @ (w * s).T - y).max() / np.sqrt(np.mean(y**2))
    text = page.clip.said.texts[0]
    assert "model.layers.1.input_layernorm is divided" in text and "not a bit changes" in text
    said = [n.value for n in numbers_in(text.partition("root mean")[2])]
    assert any(abs(v / wrong - 1) < 5e-3 for v in said), (said, wrong)
    folded = numbers_in(text.partition("by at most")[2])[0].value
    assert 0 < folded < 1e-4


def test_the_table_of_folding_divides_the_norm_and_multiplies_the_weights(page):
    page.go({"part": CLIP})
    truth = Truth()
    s = page.clip.shown.search.chosen.scale.double().numpy()
    gamma = find_checkpoint(None).read("model.layers.1.input_layernorm.weight").double().numpy()
    size = np.abs(truth.w).mean(0)
    rows = page.clip.fold_table.frames[0]
    loud = np.argsort(-truth.a, kind="stable")[: len(rows)]
    assert [row["label"] for row in rows] == [f"channel {j}" for j in loud]
    for j, row in zip(loud, rows, strict=True):
        holds(
            row["cells"], a=truth.a[j], s=s[j], gamma=gamma[j], folded=gamma[j] / s[j],
            weights=size[j], scaled=size[j] * s[j],
        )  # fmt: skip


def test_shared_values_cannot_be_folded_and_it_is_said(page):
    page.go({"part": CLIP, "layer": O_PROJ})
    text = page.clip.said.texts[0]
    assert "grouped-query attention" in text and "becomes 2 inputs" in text
    s = page.clip.shown.search.chosen.scale.double().numpy()
    columns, rows = page.clip.sibling_table.columns, page.clip.sibling_table.frames[0]
    assert columns == ["head 1 wants", "head 2 wants", "apart"]
    size, seen = 64, []
    for row in rows:
        j = int(row["label"].split()[-1])
        pair = [(j // size * 2 + r) * size + j % size for r in range(2)]
        assert [f"(input {i})" in cell for i, cell in zip(pair, row["cells"], strict=False)] == [
            True, True
        ]  # fmt: skip
        apart = s[pair].max() / s[pair].min()
        holds(row["cells"][2], apart=(apart, "×"))
        seen.append(apart)
    assert seen == sorted(seen, reverse=True)
    # these two inputs of o_proj are one value channel, repeated for two heads
    x = load_calibration(None, O_PROJ).inputs
    assert x.shape[1] == 2 * qviz.load_layer(None, LAYER).shape[0]
    block = page.clip.block_table.frames[0]
    assert [row["cells"][2] for row in block] == ["yes", "no", "yes", "yes"]
    assert block[1]["lit"] and not block[0]["lit"]


def test_a_norm_that_is_no_multiplier_is_not_folded_into(page, monkeypatch):
    monkeypatch.setattr("qviz.ui.views.awq_folding.multiplies", lambda *_: False)
    page.go({"part": CLIP, "bits": "4"})
    assert "does not multiply by its weight alone" in page.clip.said.texts[0]
    assert page.clip.shown.folding.divided is None


def test_down_projections_fold_into_up(page):
    page.go({"part": CLIP, "layer": "model.layers.0.mlp.down_proj", "loud": "4×"})
    assert "rows of model.layers.0.mlp.up_proj are divided" in page.clip.said.texts[0]
    assert page.clip.shown.folding.fold.equal


# ------------------------------------------------------------------------- beside others


def test_all_methods_at_equal_bits(page):
    page.go({"part": OTHERS, "layer": K_PROJ})
    truth = Truth(K_PROJ)
    shown = page.others.shown
    for i, bits in enumerate((2, 3, 4)):
        truth.bits = bits
        rows = page.others.table.frames[i]
        assert [row["label"] for row in rows] == list(beside.METHODS)
        assert len({row["cells"][0] for row in rows}) == 1
        cost = bits + 16 / 128 + bits / 128  # codes, float16 scales, zero points
        holds(rows[0]["cells"][0], cost=cost)
        for row, one in zip(rows, shown.scores[bits], strict=True):
            back = beside.quantize_as(page.case_maker()(K_PROJ), one.method) if bits == 4 else None
            if back is not None:
                w = back.dequantize().double().numpy()
                holds(row["cells"][1], error=truth.off(w))
                holds(row["cells"][2], judged=truth.off(w, truth.judge))
        nearest = shown.scores[bits][0]
        for row, one in zip(rows, shown.scores[bits], strict=True):
            holds(row["cells"][3], times=(one.judged / nearest.judged, "×"))
        least = min(one.judged for one in shown.scores[bits])
        assert [bool(r["lit"]) for r in rows] == [s.judged == least for s in shown.scores[bits]]
        assert nearest.error == pytest.approx(truth.off(truth.rounded()), rel=5e-3)
        text = page.others.caption.texts[i]
        least = min(shown.scores[bits], key=lambda one: one.judged)
        assert numbers_in(text)[2].is_(least.judged)
    assert page.others.lead.index == 1


def test_every_layer_is_measured_beside_the_page(page, monkeypatch):
    real = beside.every_layer
    monkeypatch.setattr(
        "qviz.ui.views.awq_others.every_layer",
        lambda names, make, stopped: real([n for n in names if ".0.self_attn" in n], make, stopped),
    )
    page.go({"part": OTHERS, "layer": K_PROJ})
    page.others.every.button.click()
    page.others.every.wait(60)
    assert page.status.text == "" and not page.others.every.running
    found = page.others.shown.layers
    assert len(found) == 4 and page.others.every_table.frames[0][0]["label"].endswith("k_proj")
    for row, made in zip(page.others.every_table.frames[0], found.values(), strict=True):
        holds(row["cells"], **{one.method: one.judged for one in made})
        assert row["lit"] == [int(np.argmin([one.judged for one in made]))]
    own = {one.method: one.judged for one in found[K_PROJ]}
    assert own == {one.method: one.judged for one in page.others.shown.scores[3]}
    better = sum(one[2].judged < one[0].judged for one in found.values())
    gptq = sum(one[2].judged < one[3].judged for one in found.values())
    ratios = [one[2].judged / one[0].judged for one in found.values()]
    holds(
        page.others.tally.texts[0], layers=4, bits=3, better=better, beaten=gptq,
        ratio=max(ratios), ways={"does worst/gains least": max(ratios) >= 1},
    )  # fmt: skip
    page.go({"part": OTHERS, "layer": K_PROJ, "loud": "2×"})
    assert page.others.shown.layers is None, "they were those of other settings"


# ------------------------------------------------------------------------- the whole page


def test_what_was_done_to_the_layer_is_said(page):
    page.go({"loud": "8×"})
    assert "3 of 256 channels are 8× as loud" in page.note.text
    assert "q_proj and k_proj" in page.note.text
    page.go({"layer": "model.layers.1.mlp.up_proj"})
    assert "Pictures show the first 128 rows" in page.note.text and "loud" not in page.note.text


def test_another_layer_begins_at_its_own_loudest_channel(page):
    page.go({"weight": "3, 250"})
    page.layer_control.index = page.layers.index("model.layers.0.mlp.down_proj")
    a = load_calibration(None, "model.layers.0.mlp.down_proj").act_absmean
    assert page.cell[1] == int(a.argmax()) and not page.held


def test_nothing_is_computed_twice(page, monkeypatch):
    page.go({"part": SEARCH})
    first = page.search.shown.first
    page.go({"part": CLIP})
    assert page.clip.shown.search is first
    assert torch.equal(page.clip.shown.clip.before.codes, first.tensor(first.best).codes)
    page.go({"part": SEARCH, "candidate": "5"})
    assert page.search.shown.first is first


def test_few_tokens_are_offered_where_there_are_more(page, monkeypatch):
    page.go({"part": SEARCH})
    titles = list(page.search.beside_control.options)
    assert any("16 tokens" in title for title in titles)
    monkeypatch.setattr(page, "inputs", lambda: page.base().calibration.sample(16))
    page.search.fit()
    assert list(page.search.beside_control.options) == [t for t in titles if "16 tokens" not in t]
    monkeypatch.undo()
    page.search.fit()


@pytest.mark.parametrize("rows", [8, 1])
def test_a_tiny_layer_opens_everywhere(page, monkeypatch, rows):
    """Eight inputs, one loud, one silent, rows of zeros."""
    from inputs import calibration_for

    from qviz.study.awq_case import Case

    g = torch.Generator().manual_seed(rows)
    x = torch.randn(40, 8, generator=g)
    x[:, 2] *= 1000
    x[:, 5] = 0
    weight = torch.randn(rows, 8, generator=g)
    weight[rows // 2 :] = 0
    tiny = Case("alone", {"alone": weight}, calibration_for(x), calibration_for(x + 0.1))
    monkeypatch.setattr("qviz.ui.views.awq.load_case", lambda *_: tiny)
    monkeypatch.setattr("qviz.ui.views.layer_page.load_layer", lambda *_: weight)
    page._base = page._opened = None
    for part in (CHANNELS, ONE, SEARCH, CLIP, OTHERS):
        page.go({"part": part, "layer": K_PROJ, **({"loud": "32×"} if part != CLIP else {})})
        assert page.status.text == ""
    monkeypatch.undo()
    page._base = page._opened = None
    page.shown = None
    page.go({})
