"""What the NF4 lesson says, held against the numbers that it is about."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from said import cut, holds, numbers_in, points
from scipy.stats import norm

import qviz
from qviz.methods.nf4 import NF4, nf4
from qviz.study.level_duel import (
    ASYMMETRIC,
    FP4_NAME,
    LLOYD,
    NF4_DOUBLE,
    NF4_NAME,
    OWN,
    RIVALS,
    SYMMETRIC,
    Duel,
)
from qviz.study.nf4_bytes import second, stored
from qviz.study.nf4_levels import NEGATIVE, ZERO, construction
from qviz.ui.views.nf4_cell import (
    ITEMS,
    arithmetic,
    bill,
    byte_rows,
    byte_words,
    rivals_rows,
    second_rows,
)
from qviz.ui.views.nf4_duel import bargain
from qviz.ui.views.nf4_words import (
    ANSWERS,
    EQUAL,
    FIXED,
    NONE,
    ROW_NAMES,
    SHORT,
    DuelFacts,
    FillFacts,
    Score,
    StoreFacts,
    beats,
    beside,
    built,
    conventions,
    duel_sentence,
    fill_sentence,
    same,
    store_sentence,
    verdict,
)

LARGEST = norm.ppf(0.9677083)
errors = st.floats(0.01, 0.5)
bits = st.floats(4.0, 5.5)


# ------------------------------------------------------------------------------------ the table


def test_each_step_of_the_construction_says_its_own_numbers():
    made = construction()
    for one in made:
        text, n = built(one, 0, LARGEST), 7 if one.half == NEGATIVE else 8
        sign = -1 if one.half == NEGATIVE else 1
        p = 0.9677083 - one.index * (0.9677083 - 0.5) / n
        z = sign * norm.ppf(p)
        if one.half == ZERO:
            holds(text, code=one.code, index=8, quantile=0, weight=0, back=0,
                  fixed=["below δ"])  # fmt: skip
        elif one.index == 0 and sign < 0:
            holds(text, code=0, p=p, z=z, v=-1, left=7,
                  fixed=["the lower half", "Φ⁻¹", "each a little larger"])  # fmt: skip
        elif one.index == 0:
            holds(text, code=15, p=p, z=z, largest=LARGEST, v=1, fixed=["below it"])
        else:
            slices = {} if one.index == 1 else {"slices": one.index}
            assert ("one slice" in text) == (one.index == 1)
            points(text, "Mirrored, its/Its", one.half == NEGATIVE)
            holds(text, code=one.code, p=p, **slices, z=z, again=z, largest=LARGEST,
                  v=z / LARGEST, fixed=["below δ"])  # fmt: skip


def test_the_first_and_the_last_step():
    first = built(None, 0, LARGEST)
    holds(first, a=1, b=(1, "/32"), c=32, d=16, e=1, f=(1, "/30"), g=30, h=15, delta=0.9677083,
          fixed=["Below the outermost middle"])  # fmt: skip
    assert pytest.approx(0.9677083, abs=1e-7) == 1 - (1 / 32 + 1 / 30) / 2
    holds(built(None, 16, LARGEST), levels=16, bounds=15)


# ------------------------------------------------------------------------------------ the bins


@given(
    size=st.sampled_from([32, 4096]),
    full=st.integers(0, 15),
    empty=st.integers(0, 15),
    shares=st.tuples(st.floats(0.001, 0.9), st.floats(0.001, 0.9)),
    reach=st.floats(0.5, 6),
)
def test_the_words_about_bins(size, full, empty, shares, reach):
    facts = FillFacts(size, full, shares[0], empty, shares[1], reach, LARGEST)
    holds(
        fill_sentence(facts), size=size, code=full, share=shares[0], other=empty, least=shares[1],
        one=1, sixteen=16, claimed=1 / 16, reach=reach, largest=LARGEST,
        ways={
            "crowds the middle/leaves the middle": reach > LARGEST,
            "such a large/such a small": reach > LARGEST,
        },
        fixed=["no fuller than planned" if reach <= LARGEST else "empties the outer ones"],
    )  # fmt: skip


def test_a_layer_of_zeros_is_said():
    facts = FillFacts(64, 7, 1.0, 0, 0.0, 0.0, LARGEST)
    assert fill_sentence(facts) == "Every weight is 0, so they all share one level."


# ------------------------------------------------------------------------------------ the bill


@given(
    size=st.sampled_from([32, 64]),
    plain=bits,
    double=bits,
    bytes_=st.tuples(st.integers(100, 10**6), st.integers(100, 10**6)),
)
def test_the_words_about_the_bill(size, plain, double, bytes_):
    a, b = bytes_
    text = store_sentence(StoreFacts(size, plain, double, a, b))
    assert numbers_in(text)[1].digits <= 4
    if a > b:
        holds(text, size=size, plain=plain, double=double, saved=a - b,
              of=(a, "bytes of this layer"), share=(a - b) / a, digits=2)  # fmt: skip
        assert "saves" in text and "more than" not in text
    else:
        holds(text, size=size, plain=plain, double=double, lost=(b - a, "byte"),
              fixed=["more than it saves"])  # fmt: skip


@pytest.mark.parametrize("shape", [(64, 256), (3, 65), (256, 1024)])
def test_the_bill_adds_up_to_the_bytes_that_are_packed(shape):
    w = torch.randn(*shape)
    plain, double = nf4(w), nf4(w, double_quant=True)
    rows = {row[0]: row[1] for row in bill(plain, double)}
    n, blocks = w.numel(), -(-w.numel() // 64)
    seconds = -(-blocks // 256)
    wanted = {
        "codes": (n, 4, 1, 1), "absmax": (blocks, 32, 1, 0), "absmax codes": (blocks, 8, 0, 1),
        "second absmax": (seconds, 32, 0, 1), "absmax offset": (1, 32, 0, 1),
    }  # fmt: skip
    if n % 2:
        wanted["padding"] = (4, 1, 1, 1)
    assert set(rows) == {*(ITEMS[name] for name in wanted), "together", "at 16 bits"}
    for name, (count, width, *there) in wanted.items():
        cells = rows[ITEMS[name]]
        assert cells[0] == f"{count} × {width}"
        for at, one in enumerate(there):
            have = cells[1 + 2 * at : 3 + 2 * at]
            want = [f"{count * width / 8:g}", f"{count * width / n:.3f}"] if one else ["–", "–"]
            assert have == want
    packed = [sum(part.nbytes for part in q.pack().values()) for q in (plain, double)]
    sums = rows["together"]
    assert sums == ["", str(packed[0]), f"{8 * packed[0] / n:.3f}",
                    str(packed[1]), f"{8 * packed[1] / n:.3f}"]  # fmt: skip
    assert rows["at 16 bits"] == [f"{n} × 16", str(2 * n), "16.000", "", ""]


# ------------------------------------------------------------------------------------ one weight


@given(place=st.integers(0, 2**16), seed=st.integers(0, 50), scale=st.sampled_from([1, 1e-4, 300]))
@settings(max_examples=25, deadline=None)
def test_one_weights_arithmetic(place, seed, scale):
    w = scale * torch.randn(6, 80, generator=torch.Generator().manual_seed(seed))
    row, column = divmod(place % w.numel(), 80)
    packed = [nf4(w, group_size=size).pack()["codes"] for size in (32, 64)]
    found = [stored(w, p, size, row, column) for p, size in zip(packed, (32, 64), strict=True)]
    double = [nf4(w, group_size=size, double_quant=True) for size in (32, 64)]
    then = [second(q, at) for q, at in zip(double, found, strict=True)]
    rows = {label: texts for label, texts, _ in arithmetic(row, column, found)}
    x = w[row, column].item()
    k = row * 80 + column
    holds(rows["row, column"], row=row, column=column)
    holds(rows["trained weight w"], w=x)
    for i, size in enumerate((32, 64)):
        block = w.flatten()[k // size * size :][:size]
        a = float(block.abs().max())
        level = min(NF4, key=lambda v: abs(v - x / a))
        holds(rows["block, place in it"][i], block=k // size, at=k % size)
        holds(rows["a = max |w| of the block"][i], a=a)
        near(rows["x = w / a"][i], x / a, 5)
        holds(rows["level v_{q}"][i], v=level)
        holds(rows["code q"][i], q=NF4.index(level))
        near(rows["ŵ = v_{q} · a"][i], level * a)
        said = numbers_in(rows["error w − ŵ"][i])[0].value
        assert said == pytest.approx(x - level * a, abs=1e-6 * a + 1e-3 * abs(x - level * a))
        _between(rows["lies between the bounds"][i], x / a)
        _bytes(byte_words(found), i, packed[i], k, a, w)
        _second(second_rows(found, then), i, double[i], found[i].block, a, level, x)
        listed = byte_rows(packed, found)[i]
        lit = [(label, cells[at[0]]) for label, cells, at in listed if at]
        assert lit == [(str(k // 16 * 8), f"{packed[i][k // 2]:02x}")]
        for label, cells, _ in listed:
            there = packed[i][int(label) : int(label) + 8]
            assert [c for c in cells if c] == [f"{byte:02x}" for byte in there]


def near(text, value, digits=4):
    """The text is this value to so many digits, but for what float32 rounds before a tie does."""
    (said,) = numbers_in(text)
    half = 0.5 * 10.0 ** (math.floor(math.log10(abs(value) or 1)) - digits + 1)
    assert abs(said.value - value) <= half + 2e-6 * abs(value), (text, value)


def _between(text, x):
    """The bounds halfway between levels around x."""
    m = [(a + b) / 2 for a, b in pairwise(NF4)]
    below, above = [b for b in m if b < x], [b for b in m if b >= x]
    if not below:
        near(text, m[0])
        points(text, "up to/above", True)
    elif not above:
        near(text, m[-1])
        points(text, "up to/above", False)
    else:
        low, high = cut(text, " … ")
        near(low, below[-1])
        near(high, above[0])


def _bytes(rows, i, packed, k, a, w):
    rows = {label: texts for label, texts, _ in rows}
    byte = int(packed[k // 2])
    assert rows["byte"][i] == f"{k // 2}: 0x{byte:02x} = {byte:08b}"
    halves = byte >> 4, byte & 15
    mine, other = halves if k % 2 == 0 else halves[::-1]
    assert (
        rows["its half of the byte"][i] == f"{'low' if k % 2 else 'high'}, {mine:04b} = code {mine}"
    )
    assert rows["the other half"][i] == (
        f"code {other}, the weight {'before' if k % 2 else 'after'} it"
    )
    assert bytes.fromhex(rows["a in memory"][i]) == np.float32(a).tobytes()


def _second(rows, i, double, block, a, level, x):
    rows = {label: texts for label, texts, _ in rows}
    packed = double.pack()
    offset = float(packed["absmax offset"].view(np.float32)[0])
    biggest = float(packed["second absmax"].view(np.float32)[block // 256])
    code = int(packed["absmax codes"][block])
    holds(rows["a"][i], a=a)
    holds(rows["o, the mean of all a"][i], o=offset)
    holds(rows["A, largest |a − o| of 256"][i], A=biggest)
    if biggest:
        said = numbers_in(rows["(a − o) / A"][i])[0].value
        assert said == pytest.approx((a - offset) / biggest, rel=1e-3, abs=1e-4)
    assert rows["code c, one byte"][i] == f"{code} = 0x{code:02x}"
    back = float(double.grid.scale.flatten()[block])
    holds(rows["â = d_{c} · A + o"][i], back=back)
    said = numbers_in(rows["its level d_{c}"][i])[0].value
    assert said * biggest + offset == pytest.approx(back, rel=1e-4)
    near(rows["ŵ = v_{q} · â"][i], level * back)
    said = numbers_in(rows["error w − ŵ"][i])[0].value
    assert said == pytest.approx(x - level * back, abs=1e-6 * a + 1e-3 * abs(x - level * back))


def test_equal_magnitudes_divide_nothing_and_that_is_said():
    w = torch.ones(2, 64)
    found = stored(w, nf4(w).pack()["codes"], 64, 1, 3)
    then = second(nf4(w, double_quant=True), found)
    assert math.isnan(then.position)
    rows = {label: texts for label, texts, _ in second_rows([found], [then])}
    assert rows["(a − o) / A"] == ["0 / 0, all a are equal"]


def test_the_weight_by_each_contender():
    w = torch.randn(4, 64)
    duel = Duel(w)
    entries = [duel.rival(name, 32) for name in RIVALS]
    rows = rivals_rows(float(w[2, 5]), 2, 5, (0.5, 0.25), entries)
    assert [row[0] for row in rows] == [SHORT[name] for name in (OWN, *RIVALS)]
    holds(rows[0][1], back=0.25, error=float(w[2, 5]) - 0.25)
    for row, entry in zip(rows[1:], entries, strict=True):
        back = float(entry.dequantize()[2, 5])
        holds(row[1], back=back, error=float(w[2, 5]) - back)


# ------------------------------------------------------------------------------------ the duel


@given(a=errors, b=errors)
def test_an_error_beside_nf4s(a, b):
    text = beside(a, b)
    if abs(a - b) <= EQUAL * max(a, b):
        assert text == "equal" and same(a, b) and not beats(a, b)
        return
    assert beats(a, b) == (a < b) and beats(b, a) == (b < a)
    holds(text, by=abs(a - b) / b, ways={"more/less": a - b}, digits=2)


def test_beside_errors_of_zero():
    assert beside(0.0, 0.0) == "equal"
    assert beside(0.1, 0.0) == "more"


scores = st.fixed_dictionaries(
    {NF4_NAME: st.tuples(errors, bits), LLOYD: st.tuples(errors, bits)},
    optional={n: st.tuples(errors, bits) for n in (NF4_DOUBLE, FP4_NAME, SYMMETRIC, ASYMMETRIC)},
)
factors = st.floats(1 - EQUAL / 3, 1 + EQUAL / 3)


def told(given, output=None):
    return {n: Score(e, output, b) for n, (e, b) in given.items()}


@given(
    given=scores,
    own=errors,
    level=st.none() | factors,
    output=st.none() | errors,
    size=st.sampled_from([32, 4096]),
    tell=st.booleans(),
    best=st.tuples(errors, bits),
)
def test_the_words_of_the_duel(given, own, level, output, size, tell, best):
    nf4_error, nf4_bits = given[NF4_NAME]
    own = own if level is None else nf4_error * level
    facts = DuelFacts(
        size, Score(own, output, 4.5), told(given, output), tell,
        (NF4_DOUBLE, 128, Score(best[0], None, best[1])),
    )  # fmt: skip
    text = duel_sentence(facts)
    outputs = {} if output is None else {"out": output, "theirs": output}
    equal = abs(own - nf4_error) <= EQUAL * max(own, nf4_error)
    how = {} if equal else {"by": abs(own / nf4_error - 1)}
    ways = {"more error/less error/level": 0 if equal else own - nf4_error}
    first, rest = cut(text, "level with NF4." if equal else "error than NF4's.")
    first += "level" if equal else "error"
    holds(first, size=size, own=own, nf4=nf4_error, **outputs, **how, ways=ways, digits=2)
    if not tell:
        assert not rest
        return
    ahead = [n for n in FIXED if n in given and given[n][0] < nf4_error * (1 - 1.01 * EQUAL)]
    level_ones = [n for n in FIXED if n in given and same(given[n][0], nf4_error)]
    if not level_ones:
        mid, last = cut(rest, " With at most ")
        if not ahead:
            assert mid == " In these blocks no fixed rival beats NF4."
        else:
            for name, part in zip(ahead, mid.split("; "), strict=True):
                assert part.strip().startswith(name)
                holds(
                    part.replace(name, "it"), by=1 - given[name][0] / nf4_error,
                    bits=given[name][1], nf4=nf4_bits, ways={"less error": True}, digits=2,
                )  # fmt: skip
        if same(best[0], nf4_error):
            holds(last, bits=nf4_bits, ways={"less error": True})
        else:
            holds(last, limit=nf4_bits, error=best[0], size=128, bits=best[1],
                  fixed=["the least error is"])  # fmt: skip
            assert NF4_DOUBLE in last


@given(st.dictionaries(st.sampled_from([32, 64, 128]), scores, min_size=1))
def test_the_bargain_is_the_least_error_that_nf4s_bits_buy(given):
    found = {size: told(each) for size, each in given.items()}
    for size in found:
        limit = given[size][NF4_NAME][1]
        name, at, score = bargain(found, size)
        assert score is found[at][name] and score.bits <= limit
        assert all(
            score.error <= e for each in given.values() for e, b in each.values() if b <= limit
        )


@given(given=scores, guess=st.integers(0, len(ANSWERS) - 1), size=st.sampled_from([32, 64]))
def test_the_verdict_judges_by_the_errors(given, guess, size):
    text = verdict(guess, size, told(given))
    nf4_error, nf4_bits = given[NF4_NAME]
    there = [n for n in FIXED if n in given]
    ahead = [n for n in there if beats(given[n][0], nf4_error)]
    right = not ahead if ANSWERS[guess] == NONE else ANSWERS[guess] in ahead
    points(text, "Right/Not quite", right)
    _, rest = cut(text, ". In blocks of ")
    figures, rest = rest.split(". ", 1)
    holds(figures.replace("asymmetric", "").replace("symmetric", ""), size=size, nf4=nf4_error,
          **{n: given[n][0] for n in there})  # fmt: skip
    assert [NF4_NAME, *there] == [
        part.rsplit(" ", 2)[0] for part in figures.split(": ")[1].split(", ")
    ]
    if not ahead:
        assert rest == "None of them beats NF4 here. Try smaller blocks: does that last?"
        return
    beat, costs = cut(rest, " NF4 (")
    assert beat.replace(" and ", ", ").rsplit(" ", 1)[0].split(", ") == ahead
    points(beat, "beat/beats", len(ahead) > 1)
    inside, why = cut(costs, ").")
    assert ("Its range runs from" in why) == (ahead == [ASYMMETRIC])
    for name, part in zip(ahead, inside.split("; "), strict=True):
        assert part.startswith(name)
        part, its = part.replace(name, "it"), given[name][1]
        if its == nf4_bits:
            holds(part, bits=its)
        else:
            holds(part, bits=its, nf4=nf4_bits, ways={"more/fewer": its - nf4_bits})


def test_no_guess_no_verdict():
    assert verdict(-1, 64, {NF4_NAME: Score(0.1, None, 4.5)}) == ""


def test_every_contender_has_its_name_and_its_convention():
    assert set(ROW_NAMES) == set(RIVALS)
    assert len(set(ROW_NAMES.values())) == len(set(SHORT.values()) - {SHORT[OWN]}) == len(RIVALS)
    text = conventions("some system: ÷ 7")
    assert "some system: ÷ 7" in text and "÷ 15" in text
    # what it says of the divisors is what the library does
    w = torch.tensor([[-1.0, 0.5] * 32])
    q = qviz.quantize(w, bits=4, symmetric=False, group_size=32, scale_dtype=torch.float32)
    assert float(q.grid.scale[0, 0]) == pytest.approx(1.5 / 15)
