"""The check of words is checked itself: each kind of fault must fail, and name its number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from said import cut, holds, numbers_in, points

from qviz.core.words import number, percent, signed


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("3.87× smaller than 16 bits", [3.87, 16]),
        ("12.5 % and 0.5%", [0.125, 0.005]),
        ("1.2e-5, 1.5e−7, −2e+3", [1.2e-5, 1.5e-7, -2e3]),
        ("1,024 weights, 1\u2009234\u202f567 bytes, 36, 1000", [1024, 1234567, 36, 1000]),
        ("2–8 bits, 2-8, 2 to 8", [2, 8, 2, 8, 2, 8]),
        ("−2.6, -3, +0.25, (−0.3)², 4 − 1", [-2.6, -3, 0.25, -0.3, 4, 1]),
        ("4.1 ms, 12 µs, 2 s, 3.5 GB, 40 GB/s, 3 kB", [4.1e-3, 12e-6, 2, 3.5e9, 40e9, 3e3]),
        ("NF4, float32, Q4_K, W4A16, w3, U_{12} = 0.5", [0.5]),
        ("16-bit, the 4th, 100.", [16, 4, 100]),
        ("∞, −∞", [math.inf, -math.inf]),
        ("It costs .5 and 5. Then 7.", [0.5, 5, 7]),
        ([("w", "3"), ["4 %", ""]], [3, 0.04]),
        ("no number", []),
    ],
)
def test_numbers_are_read_as_they_are_written(text, values):
    assert [n.value for n in numbers_in(text)] == pytest.approx(values, rel=1e-15)


def test_a_number_that_is_none_is_read():
    (found,) = numbers_in("It is NaN here")
    assert math.isnan(found.value)
    holds("It is NaN here", error=math.nan)


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(finite, st.integers(3, 6))
def test_what_our_formatters_write_is_recognised_and_what_is_ten_times_as_much_is_not(x, digits):
    for text, wanted in ((number(x, digits), x), (signed(x, digits), x), (percent(x, digits), x)):
        holds(f"It is {text}.", x=wanted)
        if abs(x) > 1e-30:
            for wrong in (10 * x, x / 10, -x, 1.02 * x):
                with pytest.raises(AssertionError, match="without a source"):
                    holds(f"It is {text}.", x=wrong)


def test_counts_are_exact():
    holds("1024 codes", n=1024)
    with pytest.raises(AssertionError, match="without a source: \\['1024'\\]"):
        holds("1024 codes", n=1025)
    holds("1024 codes", n=1024.4)  # as a float it is rounded


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5 % where rounding leaves 4 %", "without a source: \\['4 %'\\]; missing: {'rtn'"),
        ("5 % where rounding leaves much", "not said: {'rtn': 0.03}"),
        ("3 % where rounding leaves 5 %", "another order: \\['3 %', '5 %'\\]"),
        ("5 where rounding leaves 3 %", "without a source: \\['5'\\]"),
        ("5 %, that is 5 %, where rounding leaves 3 %", "another order"),
    ],
)
def test_each_number_has_its_source_and_its_place(text, message):
    holds("5 % where rounding leaves 3 %", error=0.05, rtn=0.03)
    with pytest.raises(AssertionError, match=message):
        holds(text, error=0.05, rtn=0.03)


def test_what_follows_a_number_can_be_asked_for():
    holds("at 4.25 bits per weight, 16-bit inputs", bits=(4.25, "bits per"), to=(16, "bit inputs"))
    with pytest.raises(AssertionError, match="without a source"):
        holds("at 4.25 bytes per weight", bits=(4.25, "bits"))


def test_digits_that_are_too_few_are_no_source():
    holds("3", x=3.004)
    with pytest.raises(AssertionError, match="without a source"):
        holds("3", x=3.04)
    holds("3", x=3.04, digits=2)


@pytest.mark.parametrize(
    ("way", "word"),
    [(0.2, "faster"), (-0.2, "slower"), (0, "no faster"), (True, "faster"), (False, "slower")],
)
def test_a_direction_agrees_with_its_sign_and_no_other_is_said(way, word):
    for said in ("faster", "slower", "no faster"):
        if said == word:
            holds(f"It is {said}.", ways={"faster/slower/no faster": way})
        else:
            with pytest.raises(AssertionError, match=f"asks for {word!r}"):
                holds(f"It is {said}.", ways={"faster/slower/no faster": way})
    with pytest.raises(AssertionError, match="is said where"):
        holds("It is faster, and slower.", ways={"faster/slower/no faster": way})


def test_a_direction_may_be_none_at_all():
    points("nothing", "up/down/", 0)
    points("nothing", "clipped/", False)
    points("clipped", "clipped/", True)
    with pytest.raises(AssertionError, match="none of"):
        points("nothing", "clipped/", True)


def test_a_direction_without_a_source_is_named():
    with pytest.raises(AssertionError, match=r"without a source: \['Faster', 'below'\]"):
        holds("Faster than the line below")
    with pytest.raises(AssertionError, match=r"without a source: \['better'\]"):
        holds("5 %, up from 3 %, is better", new=5e-2, old=3e-2, ways={"up from/down from": 1})
    holds("Take more tokens: 7 of them", fixed=("more tokens",), n=7)
    holds("one of 16 levels", fixed=("16 levels",))
    with pytest.raises(AssertionError, match="is not in"):
        holds("Take tokens", fixed=("more tokens",))
    holds("the uppermost slowdown")  # parts of words point nowhere


def test_a_text_is_cut_where_its_marks_follow_one_another():
    assert cut("a, at b: c", ", at ", ": ") == ["a", "b", "c"]
    with pytest.raises(AssertionError, match="', at ' does not follow"):
        cut("a: b, c", ": ", ", at ")
