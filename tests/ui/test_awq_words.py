"""The AWQ lesson's sentences against any facts: numbers and directions must follow from them."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from said import cut, holds, points

from qviz.core.words import percent
from qviz.study.awq_beside import (
    BOTH,
    CLIPPED,
    GPTQ,
    METHODS,
    NEAREST,
    SCALED,
    SILENT,
    TEXT,
    TOKENS,
)
from qviz.study.awq_steps import AT_RANDOM, BY_INPUTS, BY_WEIGHTS
from qviz.ui.views.awq_clip_words import (
    Clipped,
    Folded,
    Limit,
    clipped_sentence,
    folded_sentence,
    limit_sentence,
)
from qviz.ui.views.awq_others_words import Score, Tally, scores_sentence, tally_sentence
from qviz.ui.views.awq_search_words import (
    Found,
    Try,
    beside_sentence,
    found_sentence,
    try_sentence,
)
from qviz.ui.views.awq_weight import Weight, weight_rows
from qviz.ui.views.awq_words import (
    CHOICES,
    GUESSES,
    LITTLE,
    Factor,
    Guess,
    Kept,
    factor_sentence,
    kept_sentence,
    verdict,
)

shares = st.floats(0.001, 0.9)
few = st.integers(1, 9)
SHORT = settings(max_examples=80)


def written(share: float) -> float:
    """A share as the page writes it: directions follow from what a reader sees."""
    return float(f"{100 * share:.3g}")


def seen(new: float, old: float) -> float:
    return written(new) - written(old)


@st.composite
def errors(draw) -> dict[str, float]:
    return {how: draw(shares) for how in CHOICES}


# ------------------------------------------------------------------------- channels kept


@SHORT
@given(
    count=st.integers(0, 40), how=st.sampled_from((BY_INPUTS, BY_WEIGHTS)), bits=st.integers(2, 8),
    before=shares, left=errors(), cost=st.floats(2, 15), same=st.booleans(),
)  # fmt: skip
def test_channels_kept(count, how, bits, before, left, cost, same):
    if same:
        left[how] = before
    text = kept_sentence(Kept(count, 40, how, bits, before, left, cost))
    if count == 0:
        holds(text, of=40, bits=(bits, "bits"), before=before)
        return
    if count == 40:
        holds(text, of=40)
        return
    moved = seen(left[how], before)
    known = {"count": (count, "channel"), "of": 40, "now": left[how]}
    known |= {"before": before} if moved else {}
    others = [other for other in CHOICES if other != how]
    known |= {other: left[other] for other in others}
    holds(text, **known, cost=(cost, "bits"), ways={"up from/down from/still": moved})
    _, rest = cut(text, "chosen otherwise leave: ")
    for other in others:
        assert f"{other} {percent(left[other])}" in rest
    assert f"kept, by {how}" in text


@SHORT
@given(guess=st.integers(0, 2), before=shares, left=errors(), loudest=st.floats(1, 200))
def test_the_verdict(guess, before, left, loudest):
    text = verdict(guess, Guess(3, 256, before, left, loudest))
    order = sorted(left, key=left.__getitem__)
    little = left[order[0]] > (1 - LITTLE) * before
    known = {"before": before, "count": 3, "of": 256, **{how: left[how] for how in order}}
    known |= {"loudest": (loudest, "× the median")} if little else {}
    holds(text, **known, ways={"Right/Not here": CHOICES[guess] == order[0]})
    assert ("helps little" in text) == little
    places = [text.index(f"{how} {percent(left[how])}") for how in order]
    assert places == sorted(places)
    assert all(how.split()[-1] in GUESSES[i] for i, how in enumerate(CHOICES))


# ------------------------------------------------------------------------- one channel scaled


@SHORT
@given(
    channel=st.integers(0, 999), others=st.integers(2, 255), s=st.sampled_from((1, 1.25, 2, 16)),
    values=st.lists(shares, min_size=6, max_size=6), widened=st.sampled_from((0.0, 0.13, 1.0)),
    growth=st.floats(0.5, 4), same=st.booleans(),
)  # fmt: skip
def test_one_channel_scaled(channel, others, s, values, widened, growth, same):
    own, own1, rest, rest1, out, out1 = values
    if same:
        own, rest, out = own1, rest1, out1
    facts = Factor(channel, others, s, own, own1, rest, rest1, widened, growth, out, out1)
    text = factor_sentence(facts)
    if s == 1:
        holds(text, s=1, channel=channel, own=own, others=(others, "others"), rest=rest, out=out)
        return
    first, spacing, end = cut(text, ". In ", " The layer's output")
    wide, tail = cut(spacing, ", and the others")
    for part, new, old, known in (
        (first, own, own1, {"channel": channel, "s": float(s)}), (tail, rest, rest1, {}),
    ):  # fmt: skip
        way = seen(new, old)
        known |= {"old": old, "new": new} if way else {"new": new}
        holds(part, **known, ways={"rise/fall/stay": way})
    if widened:
        holds(wide, widened=widened, growth=(growth, "× what it was"))
    else:
        holds(wide)
        assert wide.startswith("no row") and "stays" in wide
    way = seen(out, out1)
    known = {"now": out, "was": out1} if way else {"now": out}
    holds(end, **known, ways={"up from/down from/still": way})


# ------------------------------------------------------------------------- the search

tries = st.builds(
    Try, st.integers(0, 19), st.just(19), st.floats(0, 1), st.booleans(), st.floats(0.1, 0.9),
    st.floats(1.1, 20), st.integers(1, 3), shares, shares, shares,
)  # fmt: skip


@SHORT
@given(facts=tries, plain=st.booleans(), first=st.booleans())
def test_a_candidate(facts, plain, first):
    if plain:
        facts = replace(facts, low=1.0, high=1.0)
    if first:
        facts = replace(facts, best=None)
    text = try_sentence(facts)
    known = {"number": facts.number, "of": facts.of, "r": facts.r}
    known |= {"factor": 1} if plain else {"low": facts.low, "high": facts.high}
    known |= {"layers": (facts.layers, "layers")} if facts.layers > 1 else {}
    known |= {"error": facts.error} | ({} if first else {"best": facts.best})
    better = facts.best is not None and facts.error < facts.best
    ways = {"and is the first/the best so far, before/the best so far keeps":
            1 if first else -1 if better else 0}  # fmt: skip
    holds(text, **known, ways=ways)
    assert ("weights' sizes" in text) == facts.weights
    assert ("rounding to nearest" in text) == plain


found = st.builds(
    Found, st.floats(0, 1), st.booleans(), st.floats(1, 2e4), shares, shares, shares
)  # fmt: skip


@SHORT
@given(facts=found, same=st.booleans())
def test_what_a_search_found(facts, same):
    if same:
        facts = replace(facts, nearest=facts.judged)
    text = found_sentence(facts)
    way = seen(facts.nearest, facts.judged)
    phrases = "rounding to nearest is worse/rounding to nearest is better/just as far off"
    holds(
        text, r=facts.r, spread=(facts.spread, "× the smallest"), judged=facts.judged,
        nearest=facts.nearest, ways={phrases: way},
    )  # fmt: skip
    assert ("weights' sizes" in text) == facts.weights


@SHORT
@given(
    first=found, second=found, same=st.booleans(),
    name=st.sampled_from((SILENT, TEXT, TOKENS, "autoawq")),
)  # fmt: skip
def test_two_searches(first, second, same, name):
    if same:
        second = replace(second, judged=first.judged)
    text = beside_sentence(name, first, second)
    way = seen(second.judged, first.judged)
    known: dict[str, object] = {"r": second.r, "judged": second.judged}
    known |= {"first": first.judged} if way else {}
    if name == SILENT:
        known |= {"spread": (second.spread, "× the smallest"), "its": (first.spread, "×"),
                  "zero": 0, "own": second.own}  # fmt: skip
    elif name != "autoawq":
        known |= {"own": second.own}
    phrases = "worse than the first/better than the first/as far off as the first"
    fixed = ["The second takes", "below the spacing", "the first's is"]
    holds(text, **known, ways={phrases: way}, fixed=[f for f in fixed if f in text])
    assert ("The sign" in text) == (name != "autoawq")


# ------------------------------------------------------------------------- clipping

limits = st.builds(
    Limit, st.integers(0, 9), st.floats(0.55, 1), st.integers(0, 99), st.integers(0, 9),
    st.floats(0.01, 2), st.integers(0, 60), st.just(128), st.floats(0.01, 1), st.floats(0.01, 1),
    st.floats(0.1, 5), st.booleans(),
)  # fmt: skip


@SHORT
@given(facts=limits, same=st.booleans())
def test_a_limit(facts, same):
    if same:
        facts = replace(facts, first_spacing=facts.spacing)
    text = limit_sentence(facts)
    took = {"takes this one/takes another": facts.taken}
    where = {"number": facts.number, "row": facts.row, "group": facts.group}
    if facts.number == 0:
        holds(text, **where, size=facts.size, limit=facts.limit, spacing=facts.spacing, ways=took)
        return
    way = float(f"{facts.spacing:.3g}") - float(f"{facts.first_spacing:.3g}")
    known = {"spacing": facts.spacing} | ({"was": facts.first_spacing} if way else {})
    holds(
        text, **where, share=facts.share, limit=facts.limit, cut=facts.cut, size=facts.size,
        **known, error=(facts.error, "× the uncut"),
        ways={"up from/down from/still": way, **took},
    )  # fmt: skip


@SHORT
@given(
    cuts=st.integers(0, 200), promised=st.floats(0.2, 1), before=shares, after=shares,
    together=shares, share=st.floats(0.55, 1), usual=st.booleans(), same=st.booleans(),
)  # fmt: skip
def test_what_clipping_does_to_the_layer(
    cuts, promised, before, after, together, share, usual, same
):
    after = before if same else after
    text = clipped_sentence(Clipped(cuts, 256, promised, before, after, together, share, usual))
    way = seen(after, before)
    known = {"after": after} | ({"before": before} if way else {})
    lost = ["It loses, and the sign is this: it expects less and makes more.", "errors add up"]
    assert (lost[0] in text) == (way > 0)
    holds(
        text, cut=cuts, of=256, promised=(promised, "× the error"), **known,
        true=(after / before, "×"), share=share, together=together,
        ways={"up from/down from/still": way}, fixed=lost if way > 0 else (),
    )  # fmt: skip
    assert ("query and key" in text) == (not usual)


# ------------------------------------------------------------------------- beside others


@SHORT
@given(
    bits=st.integers(2, 4), cost=st.floats(2, 5),
    values=st.lists(st.tuples(shares, shares), min_size=5, max_size=5),
)  # fmt: skip
def test_who_leaves_least(bits, cost, values):
    scores = [Score(m, e, j) for m, (e, j) in zip(METHODS, values, strict=True)]
    by = {s.method: s for s in scores}
    text = scores_sentence(bits, cost, scores)
    first = min(scores, key=lambda s: s.judged)
    awq = min((by[SCALED], by[CLIPPED]), key=lambda s: s.judged)
    ours = first in (by[SCALED], by[CLIPPED])
    known: dict[str, object] = {"bits": (bits, "bits"), "cost": (cost, "with"),
                                "least": first.judged}  # fmt: skip
    other = by[GPTQ] if ours else awq
    tie = not seen(other.judged, first.judged)
    known |= {} if tie else {"other": other.judged}
    worse = seen(by[CLIPPED].judged, by[NEAREST].judged) > 0
    if worse:
        known |= {"clipped": by[CLIPPED].judged, "nearest": by[NEAREST].judged}
    known |= {"gap": (by[GPTQ].judged / by[GPTQ].error, "× as large"),
              "mine": (awq.judged / awq.error, "×")}  # fmt: skip
    ways = {"Beside it GPTQ/The better AWQ": ours, "worse than rounding/": worse}
    head, _ = cut(text, " leaves least")
    names = {NEAREST: "rounding to nearest", SCALED: "AWQ with scales alone",
             CLIPPED: "AWQ with scales and clip", BOTH: "GPTQ after AWQ's scales"}  # fmt: skip
    assert head.endswith(names.get(first.method, first.method))
    holds(text, **known, ways={**ways, "leaves as much/it loses here": tie})


def test_nothing_is_divided_by_an_error_of_zero():
    text = scores_sentence(4, 4.25, [Score(method, 0.0, 0.0) for method in METHODS])
    ways = {"leaves as much/it loses here": True}
    holds(text, bits=(4, "bits"), cost=4.25, least=0.0, ways=ways, fixed=["The better AWQ"])


@given(
    layers=st.integers(2, 99), better=st.integers(0, 99), beaten=st.integers(0, 99),
    ratio=st.floats(0.2, 4),
)  # fmt: skip
def test_all_layers(layers, better, beaten, ratio):
    text = tally_sentence(Tally(3, layers, better, beaten, "a.b", ratio))
    holds(
        text, layers=(layers, "layers"), bits=(3, "bits"), better=better, beaten=beaten,
        ratio=(ratio, "× the error"), ways={"does worst/gains least": ratio >= 1},
    )  # fmt: skip
    assert "on held-out text" in text and "on a.b:" in text


# ------------------------------------------------------------------------- folding, arithmetic


@SHORT
@given(
    into=st.sampled_from(("norm", "linear", "")), shared=st.sampled_from((1, 2, 4)), off=shares,
    powers=shares, forgotten=st.floats(0.1, 50), equal=st.booleans(),
)  # fmt: skip
def test_folding(into, shared, off, powers, forgotten, equal):
    note = "" if into else "nobody knows"
    text = folded_sentence(
        Folded("src" if into else "", into, shared, note, off, powers, forgotten, equal)
    )
    known = {"shared": (shared, "inputs")} if shared > 1 else {}
    known |= {"off": off} | ({} if equal else {"powers": powers}) | {"forgotten": forgotten}
    fixed = ["float32's own rounding"]
    holds(text, **known, fixed=fixed, ways={"not a bit changes/": equal})
    kinds = {"norm": "The weight of src", "linear": "The rows of src", "": "nobody knows"}
    assert ("grouped-query" if shared > 1 else kinds[into]) in text
    points(text, "Nothing to fold into/", shared > 1 or not into)


@SHORT
@given(
    w=st.floats(-1, 1), s=st.floats(0.1, 10), limit=st.none() | st.floats(0.01, 1),
    delta=st.floats(0.01, 1), zero=st.integers(0, 7), code=st.integers(0, 7), a=st.floats(0.1, 90),
    back=st.floats(-1, 1),
)  # fmt: skip
def test_a_weights_arithmetic(w, s, limit, delta, zero, code, a, back):
    one = Weight(3, 5, w, s, limit, -0.75, 0.5, 3, delta, float(zero), code, back, a)
    rows = {label: texts for label, texts, _ in weight_rows([one])}
    v = w * s if limit is None else max(-limit, min(limit, w * s))
    name = "w·s" if limit is None else "v"
    want = {
        "w, as trained": w, "s of its channel": s, "w·s": w * s, "Δ = span ÷ 7": delta,
        "zero point z": zero, f"{name}/Δ + z": v / delta + zero, "code q (0 … 7)": code,
        "Δ·(q − z)": delta * (code - zero), "ŵ = Δ·(q − z)/s": back, "error ŵ − w": back - w,
        "a = mean |x|": a, "a·|ŵ − w|": a * abs(back - w),
    }  # fmt: skip
    if limit is not None:
        want |= {"limit m": limit, "v = clamp(w·s, ±m)": v}
    for label, value in want.items():
        holds(rows.pop(label), value=value)
    holds(rows.pop("row, channel"), row=3, column=5)
    holds(rows.pop("its group spans"), low=-0.75, high=0.5)
    assert not rows
    plain = {label: texts for label, texts, _ in weight_rows([one], scaled=False)}
    assert "w/Δ + z" in plain or limit is not None
    assert "s of its channel" not in plain


def test_choices_are_told_apart():
    assert len({AT_RANDOM, BY_INPUTS, BY_WEIGHTS}) == len(CHOICES) == len(GUESSES)
