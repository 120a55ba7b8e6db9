"""Lesson 4 without a browser: what it shows is what the library computes, and what it says follows.

Sentences are held twice: against arbitrary facts, and on the page against errors that NumPy sums
in float64 over the whole changed matrix.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from said import cut, holds

import qviz
from qviz.methods.affine import affine
from qviz.methods.nf4 import nf4
from qviz.study.granularity import NF4_BLOCKS, OutlierClaims, Window, quietest, sharers
from qviz.ui.figures.granularity import row_picture
from qviz.ui.views import GranularityLesson
from qviz.ui.views.granularity_budget import BUDGETS, MEASURED, some_rows
from qviz.ui.views.granularity_budget_words import (
    OF_OUTPUT,
    OF_WEIGHTS,
    Budgeted,
    Standing,
    budget_rows,
    budget_sentence,
    tally,
)
from qviz.ui.views.granularity_claims import claim_texts
from qviz.ui.views.granularity_words import (
    BLOCKS,
    BUDGET,
    INPUTS,
    LOUD,
    MULTIPLES,
    NEVER,
    SIZES,
    UNTOUCHED,
    WEIGHTS,
    Guess,
    Moment,
    Pays,
    outlier_sentence,
    pays_rows,
    verdict,
)

SMALL = "model.layers.0.self_attn.k_proj"


def written(share: float) -> float:
    """A share as the page writes it, to three digits: directions follow from what a reader sees."""
    return float(f"{100 * share:.3g}")


# ------------------------------------------------------------------------- words, from any facts

errors = st.floats(0.001, 0.999)
counts = st.integers(2, 10**6)
sizes = st.floats(0.01, 500.0)


@st.composite
def pays(draw, unit: str) -> Pays:
    return Pays(
        unit, draw(counts), draw(errors), draw(errors), draw(errors), draw(counts), draw(counts),
        draw(sizes), draw(st.booleans()), draw(st.floats(0.001, 2)), draw(st.floats(2, 9)),
    )  # fmt: skip


moments = st.builds(
    Moment, st.sampled_from((WEIGHTS, BLOCKS, INPUTS)), st.sampled_from(SIZES),
    st.tuples(st.integers(0, 9999), st.integers(0, 9999)), sizes, sizes,
    st.tuples(pays("matrix"), pays("row"), pays("group of 32")),
)  # fmt: skip


@settings(deadline=None, max_examples=120)
@given(moment=moments, same=st.booleans())
def test_the_outliers_sentence_says_just_its_facts(moment, same):
    if same:  # what a drag most often shows at first
        moment = replace(moment, pays=tuple(replace(p, now=p.before) for p in moment.pays))
    head, *parts = cut(outlier_sentence(moment), *["With one scale"] * 3)
    row, column = moment.cell
    holds(head, row=row, column=column, value=moment.value, multiple=(moment.multiple, "× the"))
    assert ("Untouched" in head) == (moment.size == UNTOUCHED)
    assert {WEIGHTS: "weight", BLOCKS: "weight", INPUTS: "input"}[moment.kind] in head
    for part, one in zip(parts, moment.pays, strict=True):
        grown = written(one.now) - written(one.before)
        known = {"size": 32} if "32" in one.unit else {}
        known |= {"count": (one.sharing, "others that share it"), "now": one.now}
        assert one.unit in part
        if moment.size == UNTOUCHED:
            holds(part, **known, ways={"up from/down from/": 0, "/still": True})
            continue
        if grown:
            known |= {"before": one.before}
        elif not one.sets:
            known |= {"peak": (one.peak, "×, sets the scale")}
        ways = {"up from/down from/still": grown}
        holds(part, **known, ways=ways)


@settings(deadline=None, max_examples=60)
@given(moment=moments)
def test_the_table_of_who_pays_says_just_its_facts(moment):
    rows = pays_rows(moment)
    labels = [row[0] for row in rows]
    assert labels[2:4] == ["they were off by", "they are off by"]
    for i, one in enumerate(moment.pays):
        cells = [row[1][i] for row in rows]
        peak = {} if one.sets else {"peak": (one.peak, "×")}
        holds(
            cells, sharing=one.sharing, **peak, before=one.before, now=one.now, lost=one.lost,
            used=one.used, whole=one.whole, scales=one.scales, bits=one.bits,
            ways={"outlier/another": one.sets},
        )  # fmt: skip
        lit = [row[2] for row in rows]
        assert (i in lit[1]) == (i in lit[3]) == one.sets


@settings(deadline=None, max_examples=120)
@given(
    errors=st.lists(errors, min_size=len(SIZES), max_size=len(SIZES)), peak=sizes,
    guess=st.integers(0, len(MULTIPLES)), climbing=st.booleans(),
)  # fmt: skip
def test_the_verdict_follows_from_the_curve(errors, peak, guess, climbing):
    errors = sorted(errors) if climbing else errors
    facts = Guess("group of 32", tuple(errors), peak)
    twice = [e >= 2 * errors[0] for e in errors]
    at = next((i for i in range(1, len(errors)) if all(twice[i:])), None)
    assert facts.doubled == at
    text = verdict(guess, facts)
    if at is None:
        holds(text, last=100.0, ways={"Right/Not here": guess == len(MULTIPLES)}, fixed=["up to"])
        return
    size = MULTIPLES[at - 1]
    known: dict[str, object] = {}
    if guess + 1 < at:
        known |= {"guessed": MULTIPLES[guess], "off": errors[guess + 1]}
    known |= {
        "size": size, "unit": 32, "then": errors[at], "first": errors[0], "peak": peak, "two": 2,
        "again": peak, "double": 2 * peak,
    }  # fmt: skip
    fixed = ["nothing happens below that. Above it", "up from"]
    holds(text, **known, fixed=fixed, ways={"Sooner/Later/Right": guess + 1 - at})


def test_a_group_without_error_has_nothing_to_double():
    text = verdict(2, Guess("group of 32", (0.0,) * len(SIZES), 1.0))
    assert "nothing to double" in text


labels = st.sampled_from(("matrix", "row", "group of 64", "group of 16", NF4_BLOCKS))
standings = st.builds(
    lambda label, bits, scales, error: Standing(
        label, 512 if label == NF4_BLOCKS else None, bits, bits + scales, error
    ),
    labels, st.integers(2, 8), st.sampled_from((1 / 64, 0.125, 0.5, 1.0)), errors,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    budget=st.sampled_from(BUDGETS), what=st.sampled_from((OF_WEIGHTS, OF_OUTPUT)),
    several=st.lists(standings, max_size=5, unique_by=lambda one: one.label),
    ahead=st.none() | standings,
)  # fmt: skip
def test_the_budgets_sentence_and_table_say_just_their_facts(budget, what, several, ahead):
    several = sorted(several, key=lambda one: one.error)
    facts = Budgeted(budget, what, tuple(several), "group of 16", ahead)
    text = budget_sentence(facts)
    if not several:
        holds(text, budget=float(budget), digits=4)
        return
    best = several[0]
    small = next((one for one in several if one.label == "group of 16"), None)

    def spent(one: Standing) -> dict[str, object]:
        if one.label == NF4_BLOCKS:
            return {"block": one.size}
        sizes = {"group of 64": 64, "group of 16": 16}
        size = {"size": sizes[one.label]} if one.label in sizes else {}
        return {"bits": (one.bits, "bit codes"), **size}

    said, rest = cut(text, "come closest")
    holds(said, budget=float(budget), fixed=["Within"], **spent(best))
    assert (f"the {what} {'are' if what == OF_WEIGHTS else 'is'} off") in rest
    more = ""
    if ahead is not None:
        rest, more = cut(rest, " With ")
        holds(more, more=(ahead.cost - budget, "bits more") if ahead.cost != budget else 0,
              **spent(ahead), error=ahead.error, fixed=["bits more"], digits=2)  # fmt: skip
    known: dict[str, object] = {"error": best.error, "cost": (best.cost, "bits")}
    if small is None:
        known |= {"finest": 16}
    elif small is best:
        known |= {"scales": small.scales}
    else:
        known |= {
            "finest": 16, "scales": small.scales, "of": (small.cost, "bits"),
            "left": (small.bits, "bit codes"), "small": small.error,
            "times": small.error / best.error,
        }  # fmt: skip
    loses = small is not None and small is not best
    words = "loses/here that pays off/does not fit into this budget"
    holds(rest, **known, ways={words: 1 if loses else (
        0 if small is None else -1)})  # fmt: skip
    rows = budget_rows(facts, ["matrix", "row", "group of 64", "group of 16", NF4_BLOCKS])
    for label, cells, lit, role in rows:
        one = next((s for s in several if s.label == label), None)
        if one is None:
            assert set(cells) == {"–"}
            continue
        holds(cells, bits=one.bits, scales=one.scales, cost=one.cost, error=one.error,
              times=one.error / best.error)  # fmt: skip
        assert bool(lit) == (role == "now") == (one is best)


@settings(deadline=None, max_examples=80)
@given(shares=st.dictionaries(labels, st.floats(0.01, 1), min_size=1))
def test_the_tally_says_just_its_shares(shares):
    ranked = dict(sorted(shares.items(), key=lambda item: -item[1]))
    said, rest = cut(tally(ranked, "group of 16"), ". The")
    known: dict[str, object] = {}
    for label, share in ranked.items():
        known[label] = share
        if label[:5] == "group":
            known[f"{label}, size"] = int(label[9:])
    holds(said, **known)
    winner, mine = next(iter(ranked)), ranked.get("group of 16", 0.0)
    if not mine or winner == "group of 16":
        holds(rest, finest=16, ways={"most often/never": bool(mine)})
        return
    size = {"other": 64} if winner == "group of 64" else {}
    ways = {"far less often/less often": mine < ranked[winner] / 2}
    holds(rest, finest=16, **size, ways=ways)
    assert winner in rest


claims = st.builds(
    OutlierClaims, st.floats(1, 500), st.floats(0.5, 400), st.floats(1, 40), counts,
    st.sampled_from((1, 3, 5)), st.sampled_from((128, 96)), st.floats(0.5, 60),
)  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(claims=claims, far=moments)
def test_what_is_so_of_the_claims(claims, far):
    texts = [text for _, text in claim_texts(claims, far)]
    wide = claims.widest_row >= 10
    said = {"widest": claims.widest_row}
    holds(
        texts[0], **said, **({} if wide else {"ten": 10}), peak=claims.peak, second=claims.second,
        ways={"as wide as that/far from": wide},
    )  # fmt: skip
    holds(
        texts[1], hundred=100, codes=claims.used_at_100, of=255,
        ratio=claims.peak / claims.second, used=claims.used,
        ways={"holds/does not hold": claims.used_at_100 == 3}, fixed=["as large as any other"],
    )  # fmt: skip
    gain = claims.gain
    holds(
        texts[2], size=claims.group_size, gain=(gain, "×"), fixed=["cost more bits"],
        ways={"more than that/less than that/as they say": 1 if gain > 10 else -(gain < 3)},
    )  # fmt: skip
    fine, coarse = far.pays[-1], far.pays[0]
    size = {} if far.size == UNTOUCHED else {"size": int(far.size[:-1])}
    holds(
        texts[3], **size, sharing=fine.sharing, unit=32, now=fine.now, coarse=coarse.now,
        bits=fine.scales - coarse.scales,
        fixed=["Only fewer weights suffer it", "bits more per weight"],
    ) if fine.scales != coarse.scales else None  # fmt: skip
    assert len(claim_texts(claims, None)) == 3


# ------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def lesson():
    return GranularityLesson(layer=SMALL)


@pytest.fixture
def at(lesson):
    """Sets the page to a state, as a link does."""

    def go(**state: str) -> GranularityLesson:
        lesson.go({"layer": SMALL, **state})
        return lesson

    return go


def changed(part, i: int) -> torch.Tensor:
    """The whole matrix of the part, with the outlier at size i."""
    x = part.shown.matrix.clone()
    x[part.shown.cell] = part.shown.values[i]
    return x


def by_the_library(part, label: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Codes, rounded values, and true bits of the whole matrix, by the method itself."""
    if label.startswith("block"):
        q = nf4(x, group_size=int(label.removeprefix("block of ")))
        return q.codes, q.dequantize(), q.bits_per_weight
    options = dict(part.shown.options)
    if label == "channel":
        q = affine(x.T.contiguous(), granularity="channel", **options)
        return q.codes.T, q.dequantize().T, q.bits_per_weight
    kind, size = {"matrix": ("tensor", None), "row": ("channel", None),
                  "token": ("token", None)}.get(label, ("group", int(label[9:] or 0)))  # fmt: skip
    q = affine(x, granularity=kind, group_size=size, **options)
    return q.codes, q.dequantize(), q.bits_per_weight


STATES = [
    {},
    {"at": LOUD, "bits": "2", "group": "128"},
    {"outlier": "2, 100", "bits": "6", "group": "16", "convention": "gptq", "dtype": "float32"},
    {"matrix": BLOCKS, "group": "64"},
    {"matrix": INPUTS, "bits": "8", "at": LOUD},
]


@pytest.mark.parametrize("state", STATES, ids=str)
def test_pictures_tables_and_captions_are_what_the_library_computes(at, state):
    page = at(**state)
    part = page.outlier
    shown = part.shown
    assert page.status.text == ""
    window = shown.window
    row, column = shown.cell
    assert window.holds(row, column)
    if not part.error_views[0].pinned:
        assert part.error_views[0].cursor == [row - window.row, column - window.column]
    assert part.hint.text.startswith("Click any")
    assert ("for each channel" in part.hint.text) == (shown.kind == INPUTS)
    unit = float(np.sqrt((shown.matrix.numpy().astype(float) ** 2).mean()))
    before: dict[str, float] = {}
    for i in (0, 3, len(SIZES) - 1):
        x = changed(part, i)
        assert torch.equal(
            torch.from_numpy(np.array(part.first_view._frames.matrix(i))), window.of(x)
        )
        facts = []
        for n, label in enumerate(shown.shared):
            _, back, bits = by_the_library(part, label, x)
            part_of = window.of(back)
            assert np.array_equal(part.rounded_views[n]._frames.matrix(i), part_of.numpy())
            assert np.array_equal(
                part.error_views[n]._frames.matrix(i), (window.of(x) - part_of).numpy()
            )
            others = np.zeros(x.shape, bool)
            for a, b, c, d in sharers(shown.shared[label].unit, row, column, tuple(x.shape)):
                others[a:b, c:d] = True
            others[row, column] = False
            w, r = x.numpy()[others].astype(float), back.numpy()[others].astype(float)
            off = float(np.sqrt(((w - r) ** 2).sum() / (w**2).sum()))
            before.setdefault(label, off)
            facts.append((label, int(others.sum()), off, bits, float(np.abs(w).max()) / unit))
        _said_of(part, i, facts, before, unit)


def _said_of(part, i, facts, before, unit) -> None:
    """The caption and the table of one size, against (label, sharing, error, bits, peak)."""
    shown = part.shown
    value = shown.values[i]
    head, *parts = cut(part.caption.texts[i], *["With one scale"] * 3)
    holds(head, row=shown.cell[0], column=shown.cell[1], value=value, multiple=abs(value) / unit)
    rows = {row["label"]: row["cells"] for row in part.pays_table.frames[i]}
    pays = shown.moments[i].pays
    assert [one.peak for one in pays] == pytest.approx([fact[-1] for fact in facts])
    curves = part.curves.summaries[i].partition(": ")[2]
    holds(curves, **{f"{n}": fact[2] for n, fact in enumerate(facts)},
          fixed=[f"({label})" for label, *_ in facts])  # fmt: skip
    for n, (text, (label, sharing, off, bits, peak)) in enumerate(zip(parts, facts, strict=True)):
        size = {"size": int(label.split()[-1])} if label[-1].isdigit() else {}
        grown = written(off) - written(before[label]) if i else 0.0
        sets = abs(value) / unit > peak
        more = {} if not i or grown or sets else {"peak": peak}
        was = {"was": before[label]} if grown else {}
        holds(text, **size, sharing=sharing, off=off, **was, **more,
              ways={"up from/down from/still" if i else "up from/down from/": grown})  # fmt: skip
        holds(rows["they are off by"][n], off=off)
        holds(rows["they were off by"][n], off=before[label])
        holds(rows["share its scale"][n], sharing=sharing)
        assert (rows["scale set by"][n] == "outlier") == sets
        bill = next(cells for name, cells in rows.items() if name.startswith("bits per"))
        holds(bill[n], bits=bits, digits=4)


@pytest.mark.parametrize("state", STATES, ids=str)
def test_one_values_arithmetic_under_each_granularity(at, state):
    part = at(**state).outlier
    shown, window = part.shown, part.shown.window
    mine = (shown.cell[0] - window.row, shown.cell[1] - window.column)
    for cell in (mine, (0, 0), (mine[0], 1)):
        part.error_views[0].cursor = list(cell)
        place = (window.row + cell[0], window.column + cell[1])
        for i in (0, 5):
            rows = {row["label"]: row["cells"] for row in part.cell_table.frames[i]}
            x = changed(part, i)
            holds(part.cell_table.label, row=place[0], column=place[1])
            for n, label in enumerate(shown.shared):
                codes, back, _ = by_the_library(part, label, x)
                name = next(key for key in rows if key.startswith("x̂"))
                holds(rows[name][n], back=float(back[place]), digits=4)
                code = next(key for key in rows if key.startswith("q"))
                assert int(rows[code][n].split()[0].replace("−", "-")) == int(codes[place])
                holds(rows["x − x̂"][n], error=float(x[place]) - float(back[place]), digits=4)
                group = np.zeros(x.shape, bool)
                for a, b, c, d in sharers(shown.shared[label].unit, *place, tuple(x.shape)):
                    group[a:b, c:d] = True
                low, high = (float(f(x.numpy()[group])) for f in (np.min, np.max))
                made = next(key for key in rows if key.startswith("max"))
                divided = float(rows[made][n].split(" ÷ ")[0])
                if shown.options.get("convention") == "gptq":
                    divided /= 2  # it divides twice the largest magnitude
                assert divided == pytest.approx(max(abs(low), abs(high)), rel=5e-3)
                others, inside = int(group.sum()) - 1, bool(group[shown.cell])
                inside = inside and place != shown.cell
                assert rows["others in g"][n] == (
                    f"{others - 1} + outlier" if inside else str(others)
                )
                near = {"rel": 3e-3, "abs": 1e-9}
                zero = 0
                if label.startswith("block"):
                    scale = max(abs(low), abs(high))
                    level = float(rows[code][n].split(" → ")[1].replace("−", "-"))
                    assert level * scale == pytest.approx(float(back[place]), **near)
                else:
                    scale = float(rows["s_{g}, as stored"][n])
                    if shown.options["convention"] == "gptq":
                        zero = 2 ** (int(part.bits_control.value) - 1)
                    again = scale * (int(codes[place]) - zero)
                    assert again == pytest.approx(float(back[place]), **near)
                name = next(key for key in rows if key.startswith("x / s"))
                assert ("+ z" in name) == bool(zero)
                position = float(rows[name][n].replace("−", "-"))
                expected = float(x[place]) / scale + zero
                assert position == pytest.approx(expected, rel=3e-3, abs=3e-3)


def test_outlines_go_around_those_who_share_and_the_outlier(at):
    part = at().outlier
    shown, window = part.shown, part.shown.window
    assert isinstance(window, Window)
    r, c = shown.cell[0] - window.row, shown.cell[1] - window.column
    group = c // 32 * 32 if window.column % 32 == 0 else None
    assert group is not None
    for views in (part.rounded_views, part.error_views):
        assert [view.outlines[-1] for view in views] == [[r, r + 1, c, c + 1]] * 3
        assert views[1].outlines[0][:2] == [r, r + 1]
        assert views[2].outlines[0] == [r, r + 1, group, group + 32]
        rows, columns = shown.matrix.shape
        assert views[0].outlines[0] == [
            -window.row, rows - window.row, -window.column, columns - window.column
        ]  # fmt: skip
        assert all(view.origin == [window.row, window.column] for view in views)
    assert part.first_view.outlines == [[r, r + 1, c, c + 1]]


def test_a_click_in_the_first_picture_makes_another_value_the_outlier(at):
    page = at(size="16×")
    part = page.outlier
    first = part.shown.cell
    part.first_view.cursor = [3, 4]  # pointing alone shows its arithmetic
    assert part.shown.cell == first
    assert part.error_views[0].cursor == [3, 4]
    part.first_view.pinned = True
    window = part.shown.window
    assert part.shown.cell == (window.row + 3, window.column + 4)
    assert page.whole_state["outlier"] == "3, 4"
    assert part.shown.values[0] == float(part.shown.matrix[part.shown.cell])
    part.first_view.cursor = [5, 6]
    assert part.shown.cell == (window.row + 5, window.column + 6)
    part.first_view.pinned = False
    assert part.shown.cell == first
    assert page.whole_state["outlier"] == ""


def test_the_outliers_sign_is_the_trained_ones(at):
    part = at().outlier
    x = part.shown.window.of(part.shown.matrix)
    for cell in ((x < 0).nonzero()[0], (x > 0).nonzero()[0]):
        part.first_view.cursor = cell.tolist()
        part.first_view.pinned = True
        trained, *others = part.shown.values
        assert trained == float(x[tuple(cell)])
        assert np.sign(others).tolist() == [np.sign(trained)] * len(others)
        unit = part.shown.typical
        assert np.abs(others) == pytest.approx([k * unit for k in MULTIPLES])


def test_a_value_that_is_held_stays_while_the_outlier_changes(at):
    part = at().outlier
    view = part.error_views[0]
    view.cursor, view.pinned = [2, 3], True
    part.bits_control.index = 1 if part.bits_control.index != 1 else 0
    window = part.shown.window
    holds(part.cell_table.label, row=window.row + 2, column=window.column + 3)
    view.pinned = False


def test_only_a_model_of_ones_own_is_run_for_its_inputs(at, monkeypatch):
    page, ran = at(), []
    monkeypatch.setattr(
        "qviz.ui.views.granularity.load_calibration", lambda *which: ran.append(which)
    )
    with pytest.raises(ValueError, match="already known"):
        page.capture()
    assert not ran
    with monkeypatch.context() as patch:
        patch.setattr(page, "source", "mine")
        assert not page.has_inputs
        page.capture()
        assert ran == [("mine", SMALL)]
        assert page.has_inputs
    page._captured.clear()


def test_another_part_of_the_matrix_lets_the_outlier_go(at):
    part = at(outlier="3, 4").outlier
    assert part.first_view.pinned
    part.at_control.index = 1
    assert not part.first_view.pinned
    weight = part.shown.matrix
    assert abs(float(weight[part.shown.cell])) == float(weight.abs().max())
    part.at_control.index = 0
    assert part.shown.window == quietest(weight, (24, 128))


def test_the_curve_is_hidden_until_somebody_guesses_or_drags(lesson):
    for act in ("guess", "drag"):
        fresh = GranularityLesson(layer=SMALL)
        part = fresh.outlier
        assert part.prediction.control.options[1:] == [*SIZES[1:], NEVER]
        assert '"visible":false' in part.curves.figures
        if act == "guess":
            part.prediction.control.index = 1
            errors = [f.error for f in list(part.shown.shared.values())[-1].fates]
            at = next(i for i in range(1, len(SIZES)) if min(errors[i:]) >= 2 * errors[0])
            assert ("Right" if at == 1 else "Later") in part.prediction.verdict.texts[0]
            assert SIZES[at] in part.prediction.verdict.texts[0]
            x, unit = part.shown.matrix, part.shown.typical
            row, column = part.shown.cell
            size = int(part.group_control.value)
            group = x[row, column // size * size :][:size].abs()
            others = torch.cat([group[: column % size], group[column % size + 1 :]])
            peak = float(others.max()) / unit
            said = cut(part.prediction.verdict.texts[0], "The scale follows")[1]
            holds(said, peak=peak, two=2, again=peak, double=2 * peak,
                  fixed=["largest", "below that", "Above it"])  # fmt: skip
        else:
            part.size_control.index = 4
        assert '"visible":true' in part.curves.figures
        assert '"visible":false' not in part.curves.figures


def test_who_sets_the_scale_is_seen_in_the_curves(at):
    """Below the largest of the others nothing changes; far beyond it all become 0."""
    part = at(at="a quiet part").outlier
    for one in part.shown.shared.values():
        errors = [fate.error for fate in one.fates]
        for fate in one.fates:
            if abs(fate.value) <= one.peak and abs(one.fates[0].value) <= one.peak:
                assert fate.error == errors[0]
        assert errors[-1] > 0.9


def test_each_granularity_has_its_own_axis_and_its_stretch_is_shaded():
    x = np.array([1.0, -2.0, 3.0])
    figure = row_picture([4, 5, 6], [x], {"matrix": [x / 2], "row": [x / 4]},
                         {"matrix": (4, 6), "row": (5, 5)}, 9.0, "input")  # fmt: skip
    layout = figure["layout"]
    for i, (label, (first, last)) in enumerate({"matrix": (4, 6), "row": (5, 5)}.items()):
        bars, marks = figure["data"][2 * i : 2 * i + 2]
        axis = "yaxis" + bars["yaxis"][1:]
        assert (
            marks["yaxis"] == bars["yaxis"] == ("y", "y2")[i]
            and layout[axis]["title"]["text"] == label
        )
        assert label in bars["name"] and label in marks["name"]
        shade = layout["shapes"][i]
        assert (shade["x0"], shade["x1"]) == (first - 0.5, last + 0.5)
        assert shade["layer"] == "below" and shade["yref"] == f"{bars['yaxis']} domain"
        assert list(figure["frames"][0]["data"][2 * i]["y"]) == x.tolist()
    assert len({layout[a]["domain"][0] for a in layout if a.startswith("yaxis")}) == 2


# ------------------------------------------------------------------------- equal bits


def test_equal_bits_on_the_page(at):
    page = at(part=BUDGET)
    part = page.budget
    weight = qviz.load_layer(None, SMALL).float()
    calibration = qviz.load_calibration(None, SMALL)
    for output in (False, True):
        part.error_control.index = int(output)
        known = {}
        for label in part.shown.labels[:-1]:
            kind, size = {"matrix": ("tensor", None), "row": ("channel", None)}.get(
                label, ("group", int(label[9:] or 0))
            )
            for bits in range(2, 9):
                q = affine(weight, bits=bits, granularity=kind, group_size=size,
                           scale_dtype=torch.float16)  # fmt: skip
                d = (weight - q.dequantize()).double()
                if output:
                    h = calibration.hessian.double()
                    whole = torch.trace(weight.double() @ h @ weight.double().T)
                    error = float(torch.sqrt(torch.trace(d @ h @ d.T) / whole))
                else:
                    error = float(d.norm() / weight.double().norm())
                known[label, bits] = q.bits_per_weight, error
        for i in (5, 20, 40):
            budget = BUDGETS[i]
            affordable = {k: v for k, v in known.items() if v[0] <= budget}
            rows = {row["label"]: row["cells"] for row in part.table.frames[i]}
            holds(part.budget_control.options[i], budget=(budget, "bits"), digits=4)
            told, _, behind = part.behind.summaries[i].partition(": ")
            holds(told, budget=(budget, "bits"), digits=4, fixed=["Within"])
            for text in behind.split(", "):
                label, ratio = text.rsplit(" ", 1)
                assert rows[label][part.table.columns.index("× best")] == f"{ratio}×"
            for label in part.shown.labels[:-1]:
                mine = {k: v for k, v in affordable.items() if k[0] == label}
                if not mine:
                    assert set(rows[label]) == {"–"}
                    continue
                (_, bits), (cost, error) = min(mine.items(), key=lambda item: item[1][1])
                cells = rows[label][:4]
                holds(cells, bits=bits, scales=cost - bits, cost=cost, error=error)
                times = rows[label][part.table.columns.index("× best")]
                blocks = [part.shown.error(p) for p in part.shown.points
                          if p.label == NF4_BLOCKS and p.cost <= budget]  # fmt: skip
                holds(times, ratio=error / min([*blocks, *(v[1] for v in affordable.values())]))
        assert (OF_OUTPUT if output else OF_WEIGHTS) in part.caption.texts[0]


def test_the_small_group_loses_where_it_does(at):
    """On this layer: just above five bits, a scale per row and one more bit are closer."""
    part = at(part=BUDGET).budget
    i = BUDGETS.index(5.0625)
    rows = {row["label"]: row["cells"] for row in part.table.frames[i]}
    assert rows["group of 16"][0] == "4" and rows["row"][0] == "5"
    error = {k: float(v[3].split()[0]) for k, v in rows.items() if v[3] != "–"}
    assert error["row"] < error["group of 16"]
    assert "The group of 16 loses" in part.caption.texts[i]
    costs = {p.label: p.cost for p in part.shown.points if p.bits == 4}
    assert costs["group of 16"] == 5.0  # float16 scales: one bit


def test_a_large_layer_is_measured_on_rows_spread_over_it():
    weight = torch.arange(4096.0).repeat_interleave(1).reshape(-1, 1).expand(4096, 2048)
    part = some_rows(weight)
    assert part.numel() <= MEASURED
    assert part[0, 0] == 0 and part[-1, 0] == 4095
    assert torch.equal(some_rows(weight[:100]), weight[:100])


# ------------------------------------------------------------------------- the learner's own


def open_file(page, tmp_path, tensor, name="own"):
    path = tmp_path / f"{name}.safetensors"
    save_file({"a.weight": tensor}, path)
    page.source_control.value = str(path)
    page.open_button.click()


SHAPES = {
    "normal": [(7, 13), (1, 64), (64, 1), (1, 1), (40, 8), (3, 96)],
    "zeros": [(7, 13), (1, 1)],
    "constant": [(1, 64), (40, 8)],
}


def test_odd_shapes_and_constant_weights_open_in_both_parts(lesson, tmp_path):
    layers = {}
    for kind, shapes in SHAPES.items():
        for shape in shapes:
            made = torch.randn(shape, generator=torch.Generator().manual_seed(4))
            made = made if kind == "normal" else torch.full(shape, 0.3 * (kind == "constant"))
            layers[f"{kind}_{shape[0]}_{shape[1]}"] = made
    path = str(tmp_path / "odd.safetensors")
    save_file({f"{name}.weight": made for name, made in layers.items()}, path)
    lesson.go({"layer": SMALL})
    lesson.source_control.value = path
    lesson.open_button.click()
    assert lesson.status.kind == "", lesson.status.text
    assert lesson.outlier.matrix_control.options == [WEIGHTS, BLOCKS]
    for name, made in layers.items():
        parts = [{}, {"matrix": BLOCKS}]
        parts += [{"part": BUDGET}] if "7_13" in name or "1_1" in name else []
        for state in parts:
            lesson.go({"model": path, "layer": name, **state})
            assert lesson.status.kind == "", (name, state, lesson.status.text)
        assert torch.equal(lesson.outlier.shown.matrix, made)
    assert lesson.budget.error_control.disabled
    lesson.go({"layer": SMALL})
    assert INPUTS in lesson.outlier.matrix_control.options


def test_inputs_are_left_when_the_new_model_has_none(lesson, tmp_path):
    lesson.go({"layer": SMALL, "matrix": INPUTS})
    open_file(lesson, tmp_path, torch.randn(16, 64, generator=torch.Generator().manual_seed(1)))
    assert lesson.status.kind == ""
    assert lesson.outlier.kind == WEIGHTS
    lesson.outlier.capture_button.click()  # a file alone cannot be run
    assert lesson.status.kind == "error"
    assert lesson.outlier.kind == WEIGHTS
    lesson.bundled_button.click()


def test_what_float16_scales_cannot_hold_is_an_error_in_words(lesson, tmp_path):
    lesson.go({"layer": SMALL})
    before = lesson.outlier.caption.texts
    open_file(lesson, tmp_path, torch.randn(8, 64) * 1e-9)
    assert lesson.status.kind == "error"
    assert "scale" in lesson.status.text
    assert lesson.outlier.caption.texts == before
    lesson.go({"layer": SMALL, "dtype": "float32"})
    lesson.source_control.value = str(tmp_path / "own.safetensors")
    lesson.open_button.click()
    assert lesson.status.kind == "", lesson.status.text
    lesson.go({})
