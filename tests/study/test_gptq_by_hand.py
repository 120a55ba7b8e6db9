"""GPTQ by hand: every number against exact fractions that know neither U nor float64.

The independent computation is Optimal Brain Surgeon's: with F the columns that still wait,
rounding column j moves them by −(w_j − ŵ_j) / [H_F⁻¹]_jj · [H_F⁻¹]_:j, in rational arithmetic.
"""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inputs import calibration_for
from said import holds, numbers_in, points

from qviz.methods.gptq import gptq
from qviz.study.gptq_by_hand import BITS, INPUTS, KINDS, WEIGHTS, by_hand
from qviz.study.gptq_by_hand_words import sentence

Matrix = list[list[Fraction]]


def exact(value) -> Fraction:
    """The number as written, not the double next to it."""
    return Fraction(str(value))


def inverse(m: Matrix) -> Matrix:
    """Gauss and Jordan."""
    n = len(m)
    rows = [[*row, *(Fraction(i == k) for k in range(n))] for i, row in enumerate(m)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for k in range(n):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[n:] for row in rows]


def hessian_of(tokens) -> Matrix:
    n = len(tokens[0])
    return [
        [Fraction(2, len(tokens)) * sum(exact(x[i]) * exact(x[k]) for x in tokens)
         for k in range(n)] for i in range(n)
    ]  # fmt: skip


def nearest_level(w: Fraction, scale: Fraction, top: int) -> Fraction:
    """Half to even, as Python's round of a Fraction."""
    return scale * max(-top, min(top, round(w / scale)))


def output_error(row, original, tokens) -> Fraction:
    misses = [
        sum((a - b) * exact(x) for a, b, x in zip(row, original, token, strict=True))
        for token in tokens
    ]
    return sum((miss * miss for miss in misses), Fraction(0)) / len(tokens)


def surgeon(weights, tokens, bits):
    """(steps, final row): each step's live weight, level, [H_F⁻¹]_jj and moves of later columns."""
    w, h, top = [exact(v) for v in weights], hessian_of(tokens), 2 ** (bits - 1) - 1
    scale = max(map(abs, w)) / top
    steps = []
    for j in range(len(w)):
        hinv = inverse([row[j:] for row in h[j:]])
        value = nearest_level(w[j], scale, top)
        moves = [-(w[j] - value) / hinv[0][0] * hinv[0][k] for k in range(1, len(w) - j)]
        steps.append((w[j], value, hinv[0][0], moves))
        w[j] = value
        w[j + 1 :] = [a + b for a, b in zip(w[j + 1 :], moves, strict=True)]
    return steps, w


def of_kind(walk, kind):
    return [moment for moment in walk.moments if moment.kind == kind]


def close(value: float, wanted: Fraction):
    return value == pytest.approx(float(wanted), rel=1e-11, abs=1e-11)


def check_numbers(weights, tokens, bits):
    walk = by_hand(weights, tokens, bits=bits)
    steps, final = surgeon(weights, tokens, bits)
    original = [exact(v) for v in weights]
    top = 2 ** (bits - 1) - 1
    scale = max(map(abs, original)) / top
    plain = [nearest_level(v, scale, top) for v in original]
    spent, row = Fraction(0), list(original)
    for j, (live, value, diagonal, moves) in enumerate(steps):
        rounded, divided, moved = (
            of_kind(walk, k)[j].facts for k in ("round", "divide", "compensate")
        )
        before = list(row)
        row[j] = value
        assert close(rounded["w"], live)
        assert close(rounded["position"], live / scale)
        assert close(rounded["value"], value)
        assert rounded["code"] == value / scale
        assert close(rounded["lost"], live - value)
        assert close(rounded["nearest"], plain[j])
        assert bool(rounded["clipped"]) == (abs(live) / scale > top + Fraction(1, 2))
        assert close(rounded["output_error"], output_error(row, original, tokens))
        squares = [(a - b) ** 2 for a, b in zip(row, original, strict=True)]
        assert close(rounded["weight_error"], sum(squares))
        as_far = [*plain[: j + 1], *original[j + 1 :]]
        assert close(rounded["nearest_output_error"], output_error(as_far, original, tokens))
        # U_jj² is [H_F⁻¹]_jj, and U_jj is the positive root.
        assert divided["diagonal"] > 0
        assert close(divided["diagonal"] ** 2, diagonal)
        assert close(divided["e"] * math.sqrt(diagonal), live - value)
        assert close(divided["cost"], (live - value) ** 2 / diagonal / 2)
        unpaid = output_error(row, original, tokens)
        row[j + 1 :] = [a + b for a, b in zip(row[j + 1 :], moves, strict=True)]
        spent += (live - value) ** 2 / diagonal / 2
        for k, move in enumerate(moves, start=j + 1):
            assert close(moved[f"move_{k}"], move)
            assert close(-moved["e"] * moved[f"U_{k}"], move)
            assert close(moved[f"from_{k}"], before[k])
            assert close(moved[f"to_{k}"], row[k])
        assert moved["left"] == len(moves)
        assert close(moved["spent"], spent)
        assert close(moved["unpaid"], unpaid)
        # The identity that the lesson rests on: what e²/2 adds up to is the output error.
        assert close(moved["output_error"], spent)
        assert spent == output_error(row, original, tokens)
        at = of_kind(walk, "compensate")[j].weights
        assert all(close(a, b) for a, b in zip(at, row, strict=True))
    assert all(close(a, b) for a, b in zip(walk.gptq.weights, final, strict=True))
    check_outcomes(walk, original, {"": final, "nearest_": plain}, tokens)
    assert close(walk.moments[-1].facts["cost"], spent)
    return walk


def check_outcomes(walk, original, rows, tokens):
    """What the end says of GPTQ's row and the nearest one, and both token by token."""
    end = walk.moments[-1].facts
    misses = {}
    for name, row in rows.items():
        assert close(end[f"{name}output_error"], output_error(row, original, tokens))
        squares = [(a - b) ** 2 for a, b in zip(row, original, strict=True)]
        assert close(end[f"{name}weight_error"], sum(squares))
        outcome = walk.nearest if name else walk.gptq
        outputs = [sum(a * exact(x) for a, x in zip(row, t, strict=True)) for t in tokens]
        true = [sum(a * exact(x) for a, x in zip(original, t, strict=True)) for t in tokens]
        misses[name] = [a - b for a, b in zip(outputs, true, strict=True)]
        assert all(close(a, b) for a, b in zip(outcome.outputs, outputs, strict=True))
        assert all(close(a, b) for a, b in zip(outcome.misses, misses[name], strict=True))
        assert all(close(a, b) for a, b in zip(walk.original.outputs, true, strict=True))
    token = int(end["token"])
    assert close(abs(end["nearest_miss"]), max(map(abs, misses["nearest_"])))
    assert close(end["nearest_miss"], misses["nearest_"][token])
    assert close(end["miss"], misses[""][token])


def test_every_number_of_the_example_against_fractions():
    walk = check_numbers(WEIGHTS, INPUTS, BITS)
    h = hessian_of(INPUTS)
    hinv = inverse(h)
    n = len(WEIGHTS)
    for i, k in itertools.product(range(n), repeat=2):
        assert walk.hessian[i][k] == h[i][k]
        product = sum(walk.factor[m][i] * walk.factor[m][k] for m in range(n))
        assert product == pytest.approx(float(hinv[i][k]), abs=1e-14)
        assert i <= k or walk.factor[i][k] == 0
    first = walk.moments[0].facts
    assert all(first[f"H_{i}{k}"] == h[i][k] for i in range(n) for k in range(i, n))
    factor = walk.moments[1].facts
    assert all(factor[f"U_{i}{k}"] == walk.factor[i][k] for i in range(n) for k in range(i, n))


def test_the_example_can_be_followed_by_hand():
    """No number on the way has more than two decimals, so nothing is rounded for display."""
    walk = by_hand()
    numbers = [value for moment in walk.moments for value in moment.facts.values()]
    numbers += [value for moment in walk.moments for value in moment.weights]
    assert all(abs(100 * value - round(100 * value)) < 1e-9 for value in numbers)
    ties = [abs(m.facts["position"] % 1 - 0.5) for m in of_kind(walk, "round")]
    assert min(ties) > 0.09  # whom rounding hangs on a hair cannot follow it


def test_the_example_shows_that_the_output_decides():
    walk = by_hand()
    assert walk.gptq.weight_error > 2 * walk.nearest.weight_error
    assert walk.gptq.output_error < walk.nearest.output_error / 2
    assert walk.nearest.weights[2] == WEIGHTS[2] != walk.gptq.weights[2]  # made wrong on purpose
    end = walk.moments[-1]
    assert end.directions["weight_error"] == "larger"
    assert end.directions["output_error"] == "smaller"


def test_the_codes_are_those_of_the_real_function_on_this_row():
    walk = by_hand()
    x = torch.tensor(INPUTS, dtype=torch.float64)
    made = gptq(
        torch.tensor([WEIGHTS], dtype=torch.float64), calibration_for(x), bits=BITS, damp=0.0,
        group_size=None, convention="absmax",
    )  # fmt: skip
    assert tuple(made.codes[0].tolist()) == walk.gptq.codes
    assert made.info["loss"] == pytest.approx(walk.gptq.output_error, rel=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_best_combination_is_found_by_trying_all(bits):
    walk = by_hand(bits=bits)
    top = 2 ** (bits - 1) - 1
    original = [exact(v) for v in WEIGHTS]
    scale = max(map(abs, original)) / top
    errors = {
        codes: output_error([scale * c for c in codes], original, INPUTS)
        for codes in itertools.product(range(-top, top + 1), repeat=3)
    }
    assert walk.combinations == len(errors)
    assert errors[walk.best.codes] == min(errors.values())
    assert close(walk.best.output_error, min(errors.values()))


weights = st.lists(st.integers(-40, 40).map(lambda v: v / 10), min_size=2, max_size=3)
tokens = st.lists(st.tuples(*[st.integers(-4, 4)] * 3), min_size=3, max_size=5)


@settings(max_examples=60, deadline=None)
@given(weights, tokens, st.integers(2, 4))
def test_every_number_of_any_row_against_fractions(w, x, bits):
    x = [token[: len(w)] for token in x]
    assume(any(w) and all(any(column) for column in zip(*x, strict=True)))
    h = hessian_of(x)
    assume(_determinant(h) != 0)
    steps, _ = surgeon(w, x, bits)
    scale = max(abs(exact(v)) for v in w) / (2 ** (bits - 1) - 1)
    ties = [*(live for live, *_ in steps), *map(exact, w)]
    # At a tie the last bit decides, and then float64 and fractions go different ways.
    assume(all(abs(abs(v / scale) % 1 - Fraction(1, 2)) > Fraction(1, 10**9) for v in ties))
    walk = check_numbers(w, x, bits)
    assert walk.gptq.output_error >= walk.best.output_error - 1e-12
    check_words(walk)


def _determinant(m: Matrix) -> Fraction:
    if len(m) == 1:
        return m[0][0]
    return sum(
        (-1) ** k * m[0][k] * _determinant([[*row[:k], *row[k + 1 :]] for row in m[1:]])
        for k in range(len(m))
    )


# ------------------------------------------------------------------------------------------- words


def shown(value: float) -> float:
    """Without what float64 adds: 0.1 + 0.2 is said as 0.3, and 1e-17 as 0."""
    return round(value, 10)


def check_words(walk):
    """Each moment says its numbers and no other, in their places, and the directions are theirs."""
    for moment in walk.moments:
        facts = {name: shown(value) for name, value in moment.facts.items()}
        expected, ways, fixed = WANTED[moment.kind](walk, facts, moment)
        numbered = {f"{i}: {value}": value for i, value in enumerate(expected)}
        holds(sentence(walk, moment), ways=ways, fixed=fixed, **numbered)


def of_inputs(walk, facts, moment):
    n, shared = len(walk.weights), facts["shared"]
    tied = [int(facts["first"]), int(facts["second"])] if shared else []
    assert walk.hessian[int(facts["first"])][int(facts["second"])] == moment.facts["shared"]
    others = [abs(shown(walk.hessian[i][k])) for i in range(n) for k in range(i)]
    assert max(others) == abs(shared)
    ways = {"with the same sign/with opposite signs/no two inputs are correlated": shared}
    return [int(facts["tokens"]), n, shared, *tied], ways, ["the mean of 2·x·xᵀ"]


def of_factor(walk, facts, moment):
    return [shown(walk.factor[j][j]) for j in range(len(walk.weights))], {}, []


def of_levels(walk, facts, moment):
    largest, top = max(map(abs, walk.weights)), 2 ** (walk.bits - 1) - 1
    scale = largest / top
    nearest = map(shown, walk.nearest.weights)
    return [largest, walk.bits, -top, top, largest, top, scale, *nearest], {}, []


def of_round(walk, facts, moment):
    change = shown(facts["value"] - facts["w"])
    inside = not facts["clipped"]
    elsewhere = shown(facts["value"] - facts["nearest"])
    expected = [moment.step, facts["w"], shown(facts["w"] / walk.scale)]
    expected += [shown(facts["value"] / walk.scale)] * bool(change and inside)
    expected += [facts["value"], -change, *([facts["nearest"]] if elsewhere else [])]
    ways = {
        "rounded up/rounded down/": change if inside else 0,
        "beyond the last level/": not inside,
        "already a level/": inside and not change,
        "Without compensation/": elsewhere != 0,
    }
    return expected, ways, []


def of_divide(walk, facts, moment):
    lost, diagonal = facts["lost"], shown(walk.factor[moment.step][moment.step])
    e = shown(lost / diagonal)
    return [lost, lost, diagonal, e, e, shown(e * e / 2)], {}, ["Once the later columns", "²/2 ="]


def of_compensate(walk, facts, moment):
    after, n = facts["output_error"], len(walk.weights)
    if moment.step == n - 1:
        return [after], {}, ["No column is left", "e²/2"]
    later, rounded = range(moment.step + 1, n), moment.rounded
    row = [shown(w) for w in moment.weights]
    moves = {k: shown(row[k] - facts[f"from_{k}"]) for k in later}
    if not any(moves.values()):
        return [after], {}, ["Nothing moves"]
    assert rounded == moment.step + 1
    expected = []
    for k in later:
        expected += [k, facts["e"], shown(walk.factor[moment.step][k]), moves[k], row[k]]
    gain = shown(facts["unpaid"] - after)
    expected += [facts["unpaid"], after] if percent_apart(facts["unpaid"], after) else [after]
    fixed = ["Each later column", "e²/2"]
    return expected, {"lowers/raises/leaves": gain}, fixed


def percent_apart(one, other):
    """Whether four digits tell them apart."""
    return f"{one:.4g}" != f"{other:.4g}"


def of_end(walk, facts, moment):
    end, ways = facts, {}
    rows = [list(map(shown, made.weights)) for made in (walk.gptq, walk.nearest, walk.best)]
    same = walk.gptq.codes == walk.nearest.codes
    expected, fixed = [*rows[0], end["output_error"]], []
    text = sentence(walk, moment)
    points(text, "both give/GPTQ gives", same)
    if not same:
        expected = [*rows[0], *rows[1]]
        for name in ("weight_error", "output_error"):
            one, other = end[name], end[f"nearest_{name}"]
            expected += [one, other] if one != other else [one]
        weights = shown(end["weight_error"] - end["nearest_weight_error"])
        outputs = shown(end["output_error"] - end["nearest_output_error"])
        ways = {
            "further from/nearer to/as far from the": weights,
            "further off/outputs are nearer/as far off": outputs,
        }
        for part, way in zip(text.split("Its outputs"), (weights, outputs), strict=True):
            points(part, "up from/down from/", way)  # each its own; so in the whole
        fixed += [way for way in ("up from", "down from") if way in text]
        worst = max(range(len(walk.inputs)), key=lambda t: abs(walk.nearest.misses[t]))
        misses = (abs(shown(made.misses[worst])) for made in (walk.nearest, walk.gptq))
        expected += [worst, *misses]
        ways["The next layer only sees/"] = weights > 0 > outputs
    levels = 2**walk.bits - 1
    best = shown(end["output_error"] - end["best_output_error"]) == 0
    expected += [levels ** len(walk.weights)]
    expected += [] if best else [*rows[2], end["best_output_error"]]
    fixed += ["a smaller output error"] if best else ["One pass"]
    ways["None of the/The best of all"] = best
    return expected, ways, fixed


WANTED = {
    "inputs": of_inputs,
    "factor": of_factor,
    "levels": of_levels,
    "round": of_round,
    "divide": of_divide,
    "compensate": of_compensate,
    "end": of_end,
}


def test_the_words_of_the_example():
    walk = by_hand()
    check_words(walk)
    assert [moment.kind for moment in walk.moments] == [
        *KINDS[:3], *(3 * KINDS[3:6]), KINDS[6],
    ]  # fmt: skip
    said = [sentence(walk, moment) for moment in walk.moments]
    assert said[3] == (
        "Column 0: w = −2.6, so w/s = −2.6. It is rounded down to code −3, which stands for "
        "ŵ = −3, and w − ŵ = 0.4."
    )
    assert "up from 0.25" in said[-1] and "down from 2.2" in said[-1]
    assert "never the weights" in said[-1]


def test_a_row_that_gptq_makes_worse_is_called_worse():
    """One pass over the columns is no search: some rows come out worse, and the words say so."""
    found = by_hand((0.8, 0.7, 3.0), ((0, 3, 3), (1, 1, 0), (3, 3, 1), (0, 2, 3)))
    assert found.gptq.output_error > 2 * found.nearest.output_error
    assert found.nearest.output_error > 2 * found.best.output_error
    check_words(found)
    text = sentence(found, found.moments[-1])
    assert "Its outputs are further off" in text
    assert "One pass over the columns does not always find it" in text
    assert any(n.is_(found.best.output_error) for n in numbers_in(text))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (((1.0,), ((1,),)), {}, "2 to 4 weights"),
        (((1.0, 2.0), ((1, 2, 3),)), {}, "2 inputs"),
        (((1.0, 2.0), ()), {}, "2 inputs"),
        (((0.0, 0.0), ((1, 2), (2, 1))), {}, "nothing to round"),
        (((1.0, 2.0), ((1, 0), (2, 0))), {}, "input 1 is 0 in every token"),
        (((1.0, 2.0), ((1, 2), (2, 4))), {}, "do not span"),
        (((1.0, float("nan")), ((1, 2), (2, 1))), {}, "not finite"),
        (((1.0, 2.0), ((1, 2), (2, 1))), {"bits": 5}, "from 2 to 4"),
    ],
)
def test_what_cannot_be_done_by_hand_is_refused(given, options, message):
    with pytest.raises(ValueError, match=message):
        by_hand(*given, **options)


def test_moments_cannot_be_changed():
    moment = by_hand().moments[3]
    with pytest.raises(TypeError):
        moment.facts["w"] = 0.0  # type: ignore[index]
