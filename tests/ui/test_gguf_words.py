"""What the GGUF lesson says, held against the numbers that it is about."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from said import cut, holds, points

from qviz.methods.gguf import LAYOUTS
from qviz.study.gguf_bytes import bits_of_bytes
from qviz.study.gguf_facts import (
    BytesFacts,
    FoundFacts,
    LevelFacts,
    PassFacts,
    Sizes,
    TryFacts,
    WeighFacts,
    ZooFacts,
)
from qviz.ui.views.gguf_beside_words import (
    BY_INPUTS,
    BY_REST,
    BesideFacts,
    beside_words,
    zoo_words,
)
from qviz.ui.views.gguf_equation import formulas
from qviz.ui.views.gguf_guide import NO_PASS, OUTLIER, PAIRS, UNREACHED
from qviz.ui.views.gguf_types_words import (
    FileFacts,
    ShiftFacts,
    TypeFacts,
    cell_words,
    file_words,
    mix_words,
    shift_words,
    type_rows,
    type_words,
)
from qviz.ui.views.gguf_words import (
    ANSWERS,
    Won,
    back_words,
    bit_words,
    block_words,
    bytes_words,
    found_words,
    has_minimum,
    level_words,
    pass_words,
    plain_words,
    section_words,
    start_words,
    try_words,
    verdict,
    weigh_words,
)

Q4 = Sizes("Q4_K", 8, 32, 144, 4, 4.5, 63, 6)
Q6 = Sizes("Q6_K", 16, 16, 210, 6, 6.5625, 128, 8)
OLD = Sizes("Q4_0", 1, 32, 18, 4, 4.5, 0, 0)
shares = st.floats(0.001, 3.0)
scales = st.floats(1e-5, 10)
counts = st.integers(0, 256)


def same(a, b):
    """As a reader sees them, to three digits."""
    return f"{100 * a:.3g}" == f"{100 * b:.3g}"


def way(now, before):
    return 0 if same(now, before) else before - now


def test_the_block():
    text = block_words(Q4, 7, 256)
    holds(text, weights=256, row=7, column=256, subs=8, size=32, bytes=144, bits=4.5, code=4)
    assert text.startswith("A super-block of Q4_K")
    text = block_words(OLD, 7, 32)
    holds(text, weights=32, row=7, column=32, bytes=18, bits=4.5, code=4)
    assert text.startswith("A block of Q4_0") and "share one scale" in text


@given(most=scales, least=scales, x=st.floats(-1, 1), y=st.floats(-1, 1), important=st.booleans())
def test_how_much_errors_count(most, least, x, y, important):
    text = weigh_words(WeighFacts(important, most, least, x, y), 3)
    points(text, "Importance comes from calibration text/No calibration data", important)
    holds(text, sub=3, x=x, ratio=most / least, y=y)
    none = weigh_words(WeighFacts(important, most, 0.0, x, y), 3)
    holds(none, sub=3, x=x, y=y)
    assert "does not count at all" in none
    assert "no error counts" in weigh_words(WeighFacts(important, 0.0, 0.0, x, y), 3)


def one_try(**more):
    usual = {"number": 4, "count": 21, "tried": 14.3, "plain_tried": 15.0, "scale": 0.02,
             "minimum": -0.2, "error": 0.5, "best": 0.6, "plain": 1.0, "kept": True, "changed": 2,
             "power": 2}  # fmt: skip
    return TryFacts(**{**usual, **more})


@given(error=scales, scale=scales, minimum=st.floats(-3, -0.001), power=st.sampled_from([1, 2]))
def test_the_plain_way(error, scale, minimum, power):
    facts = one_try(number=0, tried=15.0, scale=scale, minimum=minimum, error=error, power=power)
    text = start_words(facts, "Q4_K")
    points(text, "squared/absolute", power == 2)
    holds(text, code=0, zero=0, top=15, scale=scale, minimum=minimum, error=error)
    text = start_words(one_try(number=0, tried=32.0, scale=-scale, error=error), "Q6_K")
    holds(text, half=-32, scale=-scale, error=error)
    text = start_words(one_try(number=0, tried=None, scale=scale, error=error), "Q3_K")
    holds(text, half=-4, scale=scale, error=error)


@given(error=scales, best=scales, kept=st.booleans(), tried=st.floats(14, 16),
       minimum=st.sampled_from([0.0, -0.25]))  # fmt: skip
def test_a_try(error, best, kept, tried, minimum):
    facts = one_try(error=error, best=best, kept=kept, tried=tried, minimum=minimum)
    text = try_words(facts, "Q4_K")
    points(text, "It is kept./It is dropped.", kept)
    least = {"minimum": minimum} if minimum else {}
    change = {} if error == best else {"change": abs(error / best - 1)}
    ways = {"below the best so far/above the best so far/as the best so far": best - error}
    holds(text, number=4, count=21, tried=tried, plain=15, scale=0.02, **least, error=error,
          **change, ways=ways)  # fmt: skip
    assert "cut the range" in text
    other = try_words(facts, "Q6_K")
    assert "largest weight" in other and "cut the range" not in other
    none = try_words(one_try(scale=float("nan"), error=float("nan"), kept=False), "Q4_K")
    holds(none, number=4, count=21, tried=14.3, plain=15)
    zero = try_words(one_try(error=0.1, best=0.0, kept=False), "Q4_K")
    assert "above the best so far, which is 0" in zero


@given(error=scales, best=scales, changed=st.integers(1, 3))
def test_a_move_of_one_code(error, best, changed):
    facts = one_try(tried=None, plain_tried=None, error=error, best=best, changed=changed)
    text = try_words(facts, "Q3_K")
    change = {} if error == best else {"change": abs(error / best - 1)}
    ways = {"below the best so far/above the best so far/as the best so far": best - error}
    holds(text, number=4, count=21, codes=changed, scale=0.02, error=error, **change,
          ways=ways, fixed=["a better neighbour"])  # fmt: skip
    still = try_words(one_try(tried=None, plain_tried=None, kept=False, error=error), "Q3_K")
    holds(still, number=4, count=21, error=error)
    assert "no code of this sub-block moves" in still


@given(error=st.floats(0.01, 0.99), off=shares, plain=shares, tried=st.sampled_from([14.3, None]))
def test_the_end_of_a_search(error, off, plain, tried):
    facts = FoundFacts(5, 21, tried, error, 1.0, 7, plain, off)
    text = found_words(facts, 3, 8)
    points(text, "Try/Move", tried is not None)
    spacings = {} if tried is None else {"tried": tried}
    holds(text, number=5, **spacings, sub=3, gain=1 - error, changed=7, subs=8, off=off,
          plain=plain, ways={"down from/up from/as before": way(off, plain),
                             "below the plain way's": 1})  # fmt: skip
    text = found_words(FoundFacts(0, 21, 15.0, 1.0, 1.0, 0, plain, off), 0, 1)
    holds(text, count=21, sub=0, off=off, plain=plain,
          ways={"down from/up from/as before": way(off, plain)})  # fmt: skip
    assert text.startswith("None of the 21 tries") and "The block is off" in text


@given(off=shares, before=shares, searched=st.sampled_from([0, 9]), scale=scales,
       k=st.integers(1, 63))  # fmt: skip
def test_scales_become_integers(off, before, searched, scale, k):
    facts = LevelFacts(0.001, scale, k, 0.001 * k, 0.004, 0.25, 50, before, off, searched, 20, 63)
    how = {"tries": 9} if searched else {"levels": 63}
    ways = {"down from/up from/as before": way(off, before)}
    holds(level_words(facts, Q4, 2), floats=8, each=1, d=0.001, **how, bits=6, low=20, high=63,
          sub=2, scale=scale, k=k, stored=0.001 * k, minimum=-0.25, low_k=-50, dmin=-0.2, off=off,
          before=before, ways=ways)  # fmt: skip
    facts = LevelFacts(-0.001, -scale, k, -0.001 * k, 0.0, None, 0, before, off, 0, 20, 128)
    holds(level_words(facts, Q6, 2), floats=16, each=2, d=-0.001, levels=-128, bits=8, low=20,
          high=128, sub=2, scale=-scale, k=k, stored=-0.001 * k, off=off, before=before,
          ways=ways)  # fmt: skip
    assert "1 bit per weight" in level_words(
        LevelFacts(0.001, scale, k, 0.001 * k, 0.004, 0.25, 50, before, off, 0, 20, 63), Q4, 2
    )


@given(changed=counts, off=shares, before=shares)
def test_the_second_pass(changed, off, before):
    text = pass_words(PassFacts(changed, before, off), Q4)
    if not changed:
        holds(text, of=256, off=off, fixed=["Second pass"])
        assert "None of the 256 codes changes" in text
        return
    holds(text, changed=changed, of=256, off=off, before=before, fixed=["Second pass"],
          ways={"down from/up from/as before": way(off, before),
                "codes changes/codes change": changed == 1})  # fmt: skip


def test_bytes_and_back():
    text = bytes_words(BytesFacts("scales", 4, 15, (("scales", 48), ("mins", 48))))
    holds(text, first=4, last=15, scales=48, mins=48)
    assert "scales and 48 bits of minimums" in text
    holds(
        bytes_words(BytesFacts("d", 0, 1, (("d", 16),))), first=0, last=1, fixed=["low byte first"]
    )
    holds(bytes_words(BytesFacts("e", 0, 0, (("exponent", 8),))), byte=0, bits=8)
    assert section_words("qs", (("codes", 1024),)) == "codes, 1024 bits"
    assert "minimums" in section_words("dmin", (("dmin", 16),))
    holds(back_words(Q4, 0.0714), bytes=144, weights=256, off=0.0714)


@given(scale=scales, minimum=st.floats(-3, 0))
def test_a_type_without_a_search(scale, minimum):
    holds(plain_words("Q4_0", scale, None, 4), weights=32, d=scale, bits=4)
    holds(plain_words("Q4_1", scale, minimum, 4), weights=32, d=scale, m=minimum, bits=4)
    holds(plain_words("MXFP4", 0.03125, None, 4), scale=0.03125)
    assert [has_minimum(n) for n in ("Q4_K", "Q4_1", "Q6_K", "Q4_0", "Q8_0")] == [
        True, True, False, False, False]  # fmt: skip


@given(off=shares, other=shares, a=shares, b=shares, by=st.sampled_from([BY_INPUTS, BY_REST]))
def test_the_second_run_beside_the_first(off, other, a, b, by):
    text = beside_words(BesideFacts(off, other, a, b, by))
    first, second = cut(text, by)
    says = {} if same(off, other) else {"less/more": off - other}
    holds(first, other=other, ways=says, fixed=["than the first run"] if says else ["as well"])
    if same(a, b):
        holds(second, b=b, fixed=["in both"])
    else:
        holds(second, b=b, a=a, ways={"less/more": a - b})
    assert by not in beside_words(BesideFacts(off, other))


@given(off=shares, true=shares, n=st.integers(1, 8), zero=st.integers(0, 3), rest=shares,
       rest_true=shares)  # fmt: skip
def test_failures_say_their_sign(off, true, n, zero, rest, rest_true):
    facts = ZooFacts(off, true, 256, 9, True, zero, n, 8, rest, rest_true, 100.0)
    holds(zoo_words(NO_PASS, facts), farther=9, weights=256, off=off, true=true,
          ways={"nearer": 1}, fixed=["with the second pass"])  # fmt: skip
    zeros = {"zero": zero, "nought": 0} if zero else {}
    holds(zoo_words(OUTLIER, facts), factor=100, small=n, of=8, **zeros, others=255, rest=rest,
          rest_true=rest_true, off=off,
          ways={"down from/up from/as before": way(rest, rest_true)})  # fmt: skip
    holds(zoo_words(UNREACHED, facts), importance=0, zero=zero, of=8, nought=0, off=off, true=true,
          scales=0, ways={"down from/up from/as before": way(off, true)})  # fmt: skip
    text = zoo_words(PAIRS, facts)
    holds(text, off=off, true=true, sign=1.0, fixed=["near or above 100 %"][:0],
          ways={"above": 1})  # fmt: skip
    assert "the codes are the same" in text
    other = ZooFacts(off, true, 256, 9, False, zero, n, 8, rest, rest_true, 100.0)
    assert "the codes differ too" in zoo_words(PAIRS, other)


@given(mine=st.integers(0, 2), guess=st.integers(0, 2), each=st.tuples(counts, counts, counts))
def test_the_verdict(mine, guess, each):
    facts = Won(mine, *each)
    text = verdict(guess, facts)
    points(text, "Right./Not here.", guess == mine)
    head, rest = cut(text, ". Of the ")
    assert ("more spacings", "as many as the plain way", "fewer spacings")[mine] in head
    assert ANSWERS[mine].split()[0] in ("more", "exactly", "fewer")
    holds(rest, all=sum(each), more=each[0], same=each[1], fewer=each[2],
          fixed=["keep more", "fewer"])  # fmt: skip
    assert ("Cutting off the ends" in text) == (each[0] > each[1] + each[2])
    assert verdict(-1, facts) == verdict(0, None) == ""


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_words_of_each_bit(name):
    g = torch.Generator().manual_seed(5)
    layout = LAYOUTS[name]
    data = torch.randint(0, 256, (layout.nbytes,), dtype=torch.uint8, generator=g)
    for each in bits_of_bytes(name, data):
        for b in each:
            text = bit_words(b, layout.group)
            if b.width == 16:
                assert text.startswith(f"{b.part}, float16: ")
                continue
            numbers = {} if b.part == "exponent" else {"index": b.index}
            if b.part == "codes":
                numbers |= {"sub": b.index // layout.group, "place": b.index % layout.group}
            if b.bits == b.width:
                numbers |= {"value": b.value}
            else:
                high = {"high": b.low + b.bits - 1} if b.bits > 1 else {}
                numbers |= {"low": b.low, **high, "width": b.width}
            holds(text, **numbers)


# ------------------------------------------------------------------------------------ types, files


@given(error=shares, weighed=st.one_of(st.none(), shares), inputs=st.booleans(), rival=shares)
def test_a_type_on_the_layer(error, weighed, inputs, rival):
    facts = TypeFacts("Q4_K", 4.5, 4.0, error, weighed, inputs, {"Q4_0": rival}, "weights")
    text = type_words(facts)
    assert ("It ignores importance" in text) == (weighed is None and inputs)
    expected = {"bits": 4.5, "codes": 4, "over": 0.5, "error": error}
    says = {}
    if weighed is not None:
        expected |= {"weighed": weighed}
        if not same(weighed, error):
            expected |= {"change": abs(weighed / error - 1)}
            says = {"less/more": error - weighed}
    holds(text, **expected, rival=rival, ways=says)
    cells = type_rows(facts)
    holds(cells[0], error=error)
    assert cells[1] == "–" if weighed is None else holds(cells[1], weighed=weighed) is None


@given(a=shares, b=shares, c=shares, d=shares)
def test_where_the_error_goes(a, b, c, d):
    text = shift_words("Q4_K", ShiftFacts(a, b, c, d), True)
    most, least = cut(text, "where they are smallest")
    for part, now, before in ((most, d, b), (least, c, a)):
        if same(now, before):
            holds(part, stays=now)
        else:
            holds(part, before=before, now=now, ways={"down from/up from": before - now})
    assert "no search" in shift_words("Q8_0", None, True)
    assert "Nobody knows" in shift_words("Q4_K", None, False)


def test_a_file():
    facts = FileFacts(
        "Llama-3.1-8B", "Q4_K_M", "Q4_K", 4.5, 4.8944, 8_030_000_000, 4_912_000_000, 32,
        [("attn_v", 16, ("Q6_K",)), ("ffn_up", 32, ("Q5_K", "Q6_K"))], [("output", "Q6_K")],
    )  # fmt: skip
    text = file_words(facts)
    head, raised = cut(text, " Not Q4_K: ")
    holds(head.replace("Llama-3.1-8B", "it"), block=4.5, file=4.8944, size=4.912e9,
          weights=(8.03, "billion"))  # fmt: skip
    assert "4.89" in head
    holds(raised, some=16, of=32, all=32)
    assert "attn_v in 16 of 32 layers (Q6_K)" in raised
    assert "ffn_up in all 32 layers (Q5_K and Q6_K)" in raised and "output is Q6_K." in raised
    plain = file_words(FileFacts("it", "Q8_0", "Q8_0", 8.5, 8.5, 4_700_000, 2_830_000, 4, [], []))
    holds(plain, block=8.5, file=8.5, size=2.83e6, weights=(4.7, "million"))
    assert "Every linear layer is Q8_0." in plain


def test_k_names_the_block_m_the_mix():
    text = mix_words("it", [("Q4_K_S", 4.672), ("Q4_K_M", 4.894)], "Q4_K")
    holds(text, mixes=2, small=4.67, medium=4.89)
    assert "Q4_K_S 4.67, Q4_K_M 4.89" in text
    holds(mix_words("it", [("Q8_0", 8.5)], "Q8_0"), bits=8.5, fixed=["one mix only"])
    assert cell_words(["Q6_K", "Q4_K", "Q6_K"]) == "2× Q6_K, 1× Q4_K"
    assert cell_words(["Q6_K", "Q6_K"]) == "Q6_K"


@pytest.mark.parametrize("important", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_moment_lights_its_own_lines(name, important):
    from qviz.study.gguf_walk import KINDS

    made = formulas(name, important and name not in ("Q8_0", "MXFP4"))
    assert set(made.lit) == set(KINDS)
    marked = made.mathml.split('data-term="')[1:]
    names = {part.partition('"')[0] for part in marked}
    for terms in made.lit.values():
        assert set(terms) <= names
    assert names == set(made.terms) and made.spoken
    assert made.lit["back"] and made.lit["start"]
    from xml.etree import ElementTree

    lines = ElementTree.fromstring(f"<all>{made.mathml}</all>")
    assert len(lines) == len(made.spoken.split("; ")) or "; k is" in made.spoken
