"""Lesson 2 without a browser: every code by ml_dtypes, every sentence by its own computation."""

import json
import math
import re
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from said import cut, holds, points

import qviz
from qviz.core.formats import FORMATS, ROUNDINGS
from qviz.methods.microscaling import BLOCK_FORMATS
from qviz.methods.nf4 import NF4
from qviz.study.number_formats import TITLES, Landing, land, value_of, width
from qviz.study.shared_scale import Cost, shared_scale, traced
from qviz.ui.figures.common import CODES, ERROR, NOW, ORIGINAL
from qviz.ui.figures.formats import block_figure
from qviz.ui.views.formats import NAMES, FormatsLesson
from qviz.ui.views.formats_block_words import (
    BLOCK_TITLES,
    cost_table,
    member_rows,
    members_table,
    scale_rows,
)
from qviz.ui.views.formats_block_words import sentence as block_sentence
from qviz.ui.views.formats_hardware import (
    API,
    COLUMN_OF,
    COLUMNS,
    HARDWARE,
    OPEN,
    SOURCES,
    YES,
    answer,
    rows,
    who,
)
from qviz.ui.views.formats_spending import ANSWERS, spends_row, verdict, where_spent
from qviz.ui.views.formats_words import (
    BLOCK,
    GUIDE,
    arithmetic,
    groups,
    lit_terms,
    notes,
    number_rows,
    pattern,
    sentence,
    table_row,
    value_words,
    what_happened,
)
from qviz.ui.widgets import Bits, FormatLine

DTYPES = {
    "bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn, "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu, "int8": np.int8, "int4": ml_dtypes.int4,
    "int2": ml_dtypes.int2,
}  # fmt: skip
SMALL_LAYER = "model.layers.0.self_attn.k_proj"
numbers = st.one_of(
    st.floats(-1e300, 1e300),
    st.floats(-600, 600),
    st.integers(-300, 300).map(lambda n: n / 8),
    st.sampled_from([math.inf, -math.inf, math.nan, 0.0, -0.0, 65520.0, 464.0, 2.0**-25]),
)


@cache
def theirs(name: str) -> np.ndarray:
    """What each code stands for [codes] float64, by ml_dtypes or bitsandbytes' table."""
    if name == "nf4":
        return np.float32(NF4).astype(np.float64)
    codes = np.arange(1 << width(name)).astype(np.uint16 if width(name) > 8 else np.uint8)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return codes.view(DTYPES[name]).astype(np.float64)


def read(text: str) -> float:
    """A number as the page writes it."""
    return float(text.replace("−", "-").replace("∞", "inf"))


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or a == b


@pytest.fixture(scope="module")
def shared() -> FormatsLesson:
    return FormatsLesson()


@pytest.fixture
def lesson(shared: FormatsLesson) -> FormatsLesson:
    shared.go({})
    return shared


# ------------------------------------------------------------------------------------ every code


@pytest.mark.parametrize("name", [n for n in NAMES if width(n) <= 6])
def test_each_code_pressed_on_the_page_is_ml_dtypes(lesson, name):
    """Bits pressed → the number followed → what stands in bits, readout, table and caption."""
    frame, part = NAMES.index(name), lesson.number
    every = theirs(name)
    for code in range(1 << width(name)):
        part.bits.press(frame, code)
        assert lesson.status.text == ""
        assert part.bits.answered == part.bits.pressed[2]
        assert part.followed.value == every[code]
        texts = {row["label"]: row["texts"] for row in part.readout.rows}
        assert read(texts["value x̂"][frame]) == read(texts["the number x"][frame]) == every[code]
        row = part.table.frames[0][frame]
        assert row["label"] == TITLES[name] and read(row["cells"][0]) == every[code]
        shown = part.bits.codes[frame]
        assert row["cells"][3].replace(" ", "") == f"{shown:0{width(name)}b}"
        assert every[shown] == every[code] and (shown == code or every[code] == 0)
        assert part.line.values[frame] == every[code]
        assert read(part.text.value) == every[code]


@pytest.mark.parametrize("name", [n for n in NAMES if 6 < width(n) <= 16])
def test_each_code_as_the_page_reads_it_is_ml_dtypes(name):
    for code, value in enumerate(theirs(name).tolist()):
        said = value_of(name, code)
        assert same(said, value) and same(read(value_words(land_of(name, code))), value)
    for code in range(0, 1 << width(name), 1 if width(name) <= 8 else 61):
        if math.isfinite(value_of(name, code)):
            at = land(value_of(name, code), name)
            assert at.fate == "exact" and at.value == theirs(name)[code]
            assert at.code == code or at.value == 0


def land_of(name, code):
    """The landing of a code in its own format, without working it out again."""
    value = value_of(name, code)
    return Landing(name, value, code, value, "exact")


@given(st.integers(0, 2**32 - 1))
@example(0x7FC00001)
@example(1)
@example(0x80000000)
def test_a_float32_code_pressed_on_the_page_is_numpys(shared, code):
    part = shared.number
    part.bits.press(0, code)
    value = float(np.array([code], np.uint32).view(np.float32)[0])
    assert same(part.followed.value, value)
    assert part.bits.codes[0] == code
    assert same(read(part.readout.rows[3]["texts"][0]), value)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        short = float(np.float32(value).astype(ml_dtypes.bfloat16))
    assert same(read(part.readout.rows[3]["texts"][NAMES.index("bf16")]), short)


@given(st.sampled_from(NAMES), st.data())
def test_fields_notes_and_arithmetic_make_the_value(name, data):
    """What stands under the bits and beside them, worked out again with fractions."""
    code = data.draw(st.integers(0, (1 << width(name)) - 1))
    value = value_of(name, code)
    made, said = groups(name), notes(name, code)
    assert len(said) == len(made)
    bits = pattern(name, code).split(" ")
    assert [len(g.names) for g in made] == [len(b) for b in bits]
    assert int("".join(bits), 2) == code
    if not math.isfinite(value):
        assert lit_terms(name, code) == ["special"]
        return
    if name == "nf4":
        assert arithmetic(name, code) == f"v_{{{code}}}" and read(said[0].split()[-1]) == value
        return
    text = arithmetic(name, code).replace("−", "-").replace("·", "*")
    text = re.sub(r"2\^\{([-0-9 ]+)\}", r"(Fraction(2) ** (\1))", text)
    text = re.sub(r"(\d+)/(\d+)", r"Fraction(\1, \2)", text)
    assert float(eval(text, {"Fraction": Fraction})) == value  # noqa: S307
    f = FORMATS[name]
    lit = lit_terms(name, code)
    if f.is_integer:
        assert lit == ["whole", "minus"]
    elif f.subnormals:
        assert (lit == ["E", "M"]) == (abs(value) >= f.min_normal)
    for group, note in zip(made, said, strict=True):
        if group.kind == "exponent":
            power = int(re.search(r"2\^\{(−?\d+)\}$", note)[1].replace("−", "-"))
            normal = math.frexp(value)[1] - 1 if value else -math.inf
            assert power == max(normal, math.log2(f.min_normal))
            if "subnormal" in note or value == 0:
                assert note.startswith("0: ") and ("subnormal" in note) == (value != 0)
            else:
                field, bias = re.match(r"(\d+) − (\d+): ", note).groups()
                assert int(field) - int(bias) == power and int(bias) == f.bias
        elif group.kind == "sign":
            assert note == ("−" if math.copysign(1, value) < 0 else "+") or f.is_integer
    mantissa = [g for g in made if g.kind == "mantissa"]
    if mantissa and said[-1]:
        holds(said[-1].split("/")[0], mantissa=int(bits[-1], 2))


@pytest.mark.parametrize("name", NAMES)
def test_each_bit_says_its_weight(name):
    """A bit's name has the weight with which it counts in its field."""
    at = width(name)
    for group in groups(name):
        for bit_name in group.names:
            at -= 1
            weight = re.search(r"weight (−?\d+)(?:/(\d+))?$", bit_name)
            if group.kind == "sign" and not FORMATS[name].is_integer:
                assert weight is None
                continue
            top, bottom = int(weight[1].replace("−", "-")), int(weight[2] or 1)
            if group.kind == "mantissa":
                # set beside an exponent field of 1: what it adds, in units of the leading 1
                f = FORMATS[name]
                base = 1 << f.mantissa_bits
                added = value_of(name, base | 1 << at) - value_of(name, base)
                assert Fraction(added) / Fraction(value_of(name, base)) == Fraction(top, bottom)
            elif group.kind in ("integer", "sign"):
                assert value_of(name, 1 << at) == top
            elif group.kind == "exponent":
                assert (top, bottom) == (1 << (at - FORMATS[name].mantissa_bits), 1)
            else:
                assert (top, bottom) == (1 << at, 1)


# ------------------------------------------------------------------------------------ one number

FATES = {
    "exact": "exact", "zero": "rounded to 0", "none": "there is no NaN",
}  # fmt: skip


@given(numbers, st.sampled_from(NAMES), st.sampled_from(ROUNDINGS), st.booleans())
@example(2.5, "fp4_e2m1", "nearest_even", False)
@example(0.25, "fp4_e2m1", "nearest_even", False)
@example(464.0, "fp8_e4m3", "nearest_even", False)
@example(460.0, "fp8_e4m3", "nearest_even", False)
@example(65520.0, "fp16", "nearest_even", False)
@example(500.0, "fp8_e4m3", "nearest_even", False)
@example(-500.0, "fp8_e4m3", "nearest_even", False)
@example(-1.0, "e8m0", "nearest_even", False)
@example(0.0, "e8m0", "nearest_even", False)
@example(-3e-8, "fp16", "toward_zero", False)
@example(3.0, "e8m0", "half_toward_zero", False)
@example(3.0, "e8m0", "nearest_even", False)
@example(3.0, "e8m0", "half_away", False)
@example(float(np.float32(NF4[8]) / 2), "nf4", "nearest_even", False)
@example(-float(np.float32(2.5)), "fp4_e2m1", "half_away", False)
@example(1e6, "fp16", "nearest_even", True)
def test_what_is_said_of_a_number(x, name, rounding, saturate):
    """Every number and direction of sentence, table and readout, from x and what torch-free
    arithmetic makes of the code."""
    at = land(x, name, rounding=rounding, saturate=saturate)
    every = theirs(name) if name not in ("fp32", "tf32") else None
    v = math.nan if at.code is None else at.value
    if every is not None and at.code is not None:
        assert same(v, float(every[at.code]))
    check_table(at, x, v)
    text = sentence(at, rounding)
    assert text.startswith(f"{TITLES[name]}: ")
    check_sentence(text.removeprefix(f"{TITLES[name]}: "), at, x, v, rounding)


def check_table(at, x, v):
    value, off, what, code = table_row(at)
    assert value == "–" if at.code is None else same(read(value), v)
    finite = math.isfinite(x) and math.isfinite(v)
    if not finite or (x == 0 and v != 0):
        assert off == "–"
    else:
        holds(off, off=abs(v - x) / abs(x) if x else 0.0)
    assert code == ("–" if at.code is None else pattern(at.format, at.code))
    assert ("rounded up" in what) == (at.fate == "rounded" and v > x)
    assert ("rounded down" in what) == (at.fate == "rounded" and v < x)
    assert ("a tie" in what) == at.tie
    assert ("subnormal" in what) == at.subnormal
    assert ("∞" in what) == (at.fate == "infinite")
    assert ("NaN" in what) == (at.fate in ("nan", "none"))
    assert ("saturated" in what) == (at.fate == "saturated")
    assert ("exact" in what) == (same(x, v) and at.code is not None)
    if at.fate in FATES:
        assert FATES[at.fate] in what
    assert what == what_happened(at)
    rows_ = {label: texts[0] for label, texts, _ in number_rows([at])}
    assert same(read(rows_["the number x"]), x)
    if finite:
        holds(rows_["error x̂ − x"], error=v - x)
        assert rows_["as a share of x"] == off
    if at.code is not None:
        assert int(rows_["its code"], 16) == at.code


def check_sentence(text, at, x, v, rounding):
    f = FORMATS.get(at.format)
    if at.subnormal:
        text, least = cut(text, " Below ")
        holds(least, fixed=["no leading 1", "fewer significant bits"], least=f.min_normal)
    last = math.copysign(max(r for r in ends(at.format)), x) if f and f.signed else max(
        ends(at.format)
    )  # fmt: skip
    if at.fate == "exact":
        said = {"x": x} if math.isfinite(x) else {"x": x, "again": x}
        holds(text, fixed=["nothing is lost"] if math.isfinite(x) else [], **said)
    elif at.fate == "none":
        assert "no code for NaN" in text
    elif at.fate == "nan":
        if f.signed or x > 0:
            holds(text, fixed=["there is no ∞: NaN", "lies beyond the last number"], x=x, last=last)
        else:
            points(text, "zero has no code/there is no sign", x == 0)
            holds(text, x=x, nan=math.nan)
    elif at.fate == "saturated":
        holds(text, fixed=["lies beyond the last number"], x=x, v=v)
        assert v in (min(ends(at.format)), max(ends(at.format)))
    elif at.fate == "infinite" and not at.tie:
        holds(text, fixed=["lies beyond the last number"], x=x, last=last, v=v)
    elif at.fate == "infinite":
        holds(text, fixed=["halfway between the last number"], x=x, v=v)
    elif not min(ends(at.format)) <= x <= max(ends(at.format)):
        points(text, "the largest number/the lowest number", x > 0)
        holds(text, fixed=["a little beyond"], x=x, v=v)
    else:
        low, high = around(at, x, v)
        assert low < x < high and v in (low, high)
        off = abs(v - x) / abs(x)
        expected = {"x": x, "low": low, "high": high, "v": v}
        if at.tie:
            rules = {"whose last bit is 0", "the larger", "the lower level, as in bitsandbytes",
                     "away from zero", "toward zero"}  # fmt: skip
            rule = next(r for r in rules if r in text)
            assert Fraction(x) - Fraction(low) == Fraction(high) - Fraction(x)
            assert {
                "whose last bit is 0": at.code % 2 == 0,
                "the larger": v == high,
                "the lower level, as in bitsandbytes": v == low,
                "away from zero": abs(v) == max(abs(low), abs(high)),
                "toward zero": abs(v) == min(abs(low), abs(high)),
            }[rule]
            holds(text, fixed=[rule, "Off by"], **expected, off=off)
        elif "Rounded toward zero" in text:
            assert rounding == "toward_zero" and abs(v) == min(abs(low), abs(high))
            holds(text, **expected, off=off)
        else:
            other = low if v == high else high
            near = abs(Fraction(v) - Fraction(x)) < abs(Fraction(other) - Fraction(x))
            assert near or at.format == "nf4"  # whose middles are rounded to float32
            lost = v == 0
            assert ("Nothing of it is left" in text) == lost
            fixed = ["nearer to", *(["Nothing of it is left"] if lost else [])]
            holds(text, fixed=fixed, **expected, **({} if lost else {"off": off}))


def ends(name):
    f = FORMATS.get(name)
    if f is None:
        return -1.0, 1.0
    return f.min_finite, f.max_finite


def around(at, x, v):
    """The numbers of the format on both sides of x."""
    other = at.below if v > x else at.above
    return (other, v) if v > x else (v, other)


# ------------------------------------------------------------------------- where numbers lie


def listed(name: str) -> list[float]:
    every = theirs(name)
    return sorted(set((every[np.isfinite(every)] + 0.0).tolist()))


def by_hand(name: str) -> dict[str, float]:
    """Counts of a format's numbers; of the two that are too wide to list from their fields."""
    if name in ("fp32", "tf32"):
        m = {"fp32": 23, "tf32": 10}[name]
        return {
            "all": 2 * (255 << m) - 1,
            "inside": 2 * (127 << m) + 1,
            "one to two": 1 << m,
            "least": 2.0 ** (-126 - m),
            "most": (2 - 2.0**-m) * 2.0**127,
        }
    numbers = listed(name)
    return {
        "all": len(numbers),
        "inside": sum(-1 <= v <= 1 for v in numbers),
        "one to two": sum(1 <= v < 2 for v in numbers),
        "least": min(v for v in numbers if v > 0),
        "most": numbers[-1],
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("revealed", [True, False])
def test_how_a_format_spends_its_codes(name, revealed):
    true = by_hand(name)
    cells = spends_row(name, revealed)
    share = {"share": true["inside"] / true["all"]} if revealed else {}
    assert (cells[1] == "?") == (not revealed)
    holds(cells, all=true["all"], **share, here=true["one to two"], least=true["least"],
          most=true["most"])  # fmt: skip
    text = where_spent(name, revealed)
    fixed = ["from −1 to 1"] if revealed else []
    if name == "nf4" or FORMATS[name].is_integer:
        fixed += ["close together around 0"] if name == "nf4" else []
        holds(text, fixed=fixed, all=true["all"], **share)
        return
    f = FORMATS[name]
    first = math.log2(f.min_normal)
    doublings = math.floor(math.log2(true["most"])) - int(first) + 1
    expected = {"all": true["all"], "doublings": doublings, "from": f.min_normal,
                "each": true["one to two"]}  # fmt: skip
    if name == "fp8_e4m3":
        expected["last"] = sum(v >= 256 for v in listed(name))
    holds(text, fixed=fixed, **expected, **share)


def test_the_prediction_is_judged_by_the_count(lesson):
    part = lesson.number
    true, other = by_hand("fp16"), by_hand("int8")
    share = true["inside"] / true["all"]
    right = min(range(len(ANSWERS)), key=lambda i: abs(list(ANSWERS.values())[i] - share))
    for guess in range(len(ANSWERS)):
        text = verdict(guess)
        assert text.startswith("Right") == (guess == right)
        holds(text, fixed=["below 0", "above"] if guess != right else [], inside=true["inside"],
              all=true["all"], share=share, int8=other["inside"] / other["all"])  # fmt: skip
    part.prediction.reset()
    part._draw_spends()
    assert all(row["cells"][1] == "?" for row in part.spends.frames[0])
    assert not any("range from" in text for text in part.spent.texts)
    lesson.format_control.index = 5  # dragging the format gives nothing away
    assert not part.prediction.revealed
    part.prediction.control.index = 1
    assert part.spends.frames[0][3]["cells"][1] != "?" and part.prediction.verdict.texts[0]
    part.prediction.reset()
    part._draw_spends()
    part.line.look(-1.0, 1.0)  # who looks for themselves has seen it
    assert part.prediction.revealed and "?" not in part.spends.frames[0][3]["cells"]


def test_what_the_guide_says_is_so():
    """Its numbers and claims, one by one."""
    watch = {step.title: step.watch for step in GUIDE}
    kept = [land(0.1, name).value for name in NAMES]
    assert kept[0] and not kept[-1] and "In which formats does 0.1" in watch[GUIDE[0].title]
    tie = land(2.5, "fp4_e2m1")
    assert tie.tie and tie.value == 2 and land(2.5, "fp4_e2m1", rounding="half_away").value == 3
    holds(watch["Meet a tie"], fixed=["2.5 lies exactly halfway between two FP4 numbers, 2 and 3.",
                                      "Under “More”"])  # fmt: skip
    assert land(500, "fp8_e4m3").fate == "nan" and math.isfinite(land(500, "fp8_e5m2").value)
    assert land(500, "fp4_e2m1").value == 6 and land(500, "fp8_e4m3", saturate=True).value == 448
    assert len({land(2.5, "fp4_e2m1", rounding=r).value for r in ROUNDINGS}) == 2
    holds(watch["Go beyond the end"], fixed=["500 is too large for E4M3 and becomes NaN",
                                             "FP4 turns it into 6", "Under “More”"])  # fmt: skip
    last = land(4e-8, "fp16")
    assert last.code == 1 and last.subnormal and 0.4 < last.relative < 0.6
    decades = math.log10(land(4e-8, "fp16").value / min(v for v in listed("bf16") if v > 0))
    assert 30 <= decades < 40
    assert finite_codes("int8") == finite_codes("fp8_e4m3") == 256
    assert by_hand("fp4_e2m1")["least"] == 0.5 and by_hand("fp4_e2m1")["most"] == 6
    weight = qviz.load_layer(None, FormatsLesson.first_layer).float()
    assert float(weight.abs().max()) < 6 and float(weight.abs().median()) < 0.5 / 5
    holds(
        watch["Share a scale"],
        fixed=[
            "FP4 numbers other than 0 lie between 0.5 and 6, and the weights are far smaller",
            "32 weights",
            "fits its block better?",
        ],
    )


def finite_codes(name):
    return 1 << width(name)


# ------------------------------------------------------------------------------------ controls


def test_typing_follows_and_enter_says_what_is_wrong(lesson):
    part = lesson.number
    part.text.value = "2^-24"
    assert part.followed.value == 2.0**-24 and "x=" in lesson.address.state
    part.text.value = "2^-"  # on the way to 2^-3
    assert lesson.status.text == "" and part.followed.value == 2.0**-24
    part.text.submitted += 1
    assert lesson.status.kind == "error" and "“2^-” is not a number here" in lesson.status.text
    assert part.followed.value == 2.0**-24
    part.text.value = "2^-3"
    part.text.submitted += 1
    assert lesson.status.text == "" and part.followed.value == 0.125
    assert part.text.value == "0.125"


def test_the_bits_of_a_nan_stay_as_they_were_pressed(lesson):
    part, frame = lesson.number, NAMES.index("fp16")
    for code in (0x7E01, 0xFC01, 0x7FFF):
        part.bits.press(frame, code)
        assert part.bits.codes[frame] == code
        link = lesson.address.state
        lesson.go({})
        lesson._on_address(link)
        assert part.bits.codes[frame] == code
        assert part.bits.codes[NAMES.index("int8")] == -1
        assert part.bits.notes[NAMES.index("int8")][0] == "no code for NaN"


def test_rounding_and_saturation_reach_every_format(lesson):
    part = lesson.number
    for state, options in (
        ({"x": "2.5", "rounding": "half_away"}, {"rounding": "half_away"}),
        ({"x": "1e6", "beyond": "last"}, {"saturate": True}),
        ({"x": "1e6"}, {}),
    ):
        lesson.go(state)
        for at, name in zip(part.shown.landings, NAMES, strict=True):
            assert at == land(float(state["x"]), name, **options)
        assert part.caption.texts == [
            sentence(at, options.get("rounding", "nearest_even")) for at in part.shown.landings
        ]


def test_the_part_of_the_line_is_in_the_address(lesson):
    line = lesson.number.line
    lesson.go({"view": "even -7, 7"})
    assert (line.scale, line.view) == ("linear", [-7.0, 7.0])
    line.view = [1e-45, 3.25]
    assert lesson.fields["view"].text == "even 1e-45, 3.25"
    for wrong in ("2, 1", "a, b", "1", "nan, 1", "1, inf"):
        with pytest.raises(ValueError, match="such as -1, 1"):
            lesson.go({"view": wrong})
    assert line.view == [1e-45, 3.25]
    lesson.go({})
    assert line.scale == "log" and lesson.fields["view"].text == ""


def test_the_line_is_sent_the_numbers_of_the_formats(lesson):
    line = lesson.number.line
    flat = np.frombuffer(line.runs, "<f8").reshape(-1, 3)
    starts = [0, *line.ends]
    for i, name in enumerate(NAMES):
        mine = flat[starts[i] : starts[i + 1]]
        assert mine[:, 2].sum() == by_hand(name)["all"]
        if name not in ("fp32", "tf32"):
            every = np.concatenate([s + d * np.arange(n) for s, d, n in mine])
            assert every.tolist() == listed(name)


def test_widgets_refuse_what_does_not_fit():
    bits = Bits("Bits", [groups("int4")])
    with pytest.raises(ValueError, match="16 does not fit into 4 bits"):
        bits.set_codes([16], [["0", "0"]])
    with pytest.raises(ValueError, match="notes for 2 groups"):
        bits.set_codes([3], [["0"]])
    with pytest.raises(ValueError, match="does not fit"):
        bits.press(0, 16)
    line = FormatLine("Line", ["A"], [[(0.0, 1.0, 4)]])
    with pytest.raises(ValueError, match="2 titles"):
        FormatLine("Line", ["A", "B"], [[(0.0, 1.0, 4)]])
    for ends in ((1.0, 1.0), (0.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="to a larger one"):
            line.look(*ends)
    line.set_number(math.inf, [math.nan])
    assert line.number is None and line.values == [None]


# ------------------------------------------------------------------------------------ blocks


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return qviz.load_layer(None, SMALL_LAYER).float()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@given(row=st.integers(0, 63), column=st.integers(0, 255))
def test_what_is_said_of_a_block(weight, name, row, column):
    """Every number of rows, table and sentence, from the weight and its rounded value."""
    run = RUNS.setdefault(name, traced(weight, format=name))
    b = shared_scale(run, row, column)
    size, element = BLOCK_FORMATS[name].size, BLOCK_FORMATS[name].element.name
    start = column // size * size
    v = weight[row, start : start + size].double()
    back = run.q.window(slice(row, row + 1), slice(start, start + size)).flatten().double()
    top = TOPS[name]
    rows_ = [(label, text) for label, text, _ in scale_rows(b, str(run.q.info["scale_rounding"]))]
    holds(rows_[0][1], row=row, start=start, end=start + size - 1)
    holds(rows_[1][1], amax=float(v.abs().max()))
    scale = b.scale
    named = dict(rows_)
    if name == "nvfp4":
        holds(named["a ÷ 6"], share=float(v.abs().max()) / 6)
        tensor = float(weight.abs().max()) / 448 / 6
        holds(named["the tensor's scale, FP32"], tensor=tensor)
        holds(named["the block's scale, E4M3"], local=scale / tensor)
        holds(named["s, both together"], scale=scale)
    else:
        e = round(math.log2(scale))
        assert scale == 2.0**e
        low = math.floor(math.log2(float(v.abs().max())))
        emax = low - e
        assert named[f"e = ⌊log_{{2}} a⌋ − {emax}"] == (f"{low} − {emax} = {e}".replace("-", "−"))
        assert named["s, a power of two"].startswith(f"2^{{{e}}} = ".replace("-", "−"))
        holds(named["s, a power of two"].split("= ")[1], scale=scale)
    assert f"(byte {b.stored})" in rows_[-1][1]
    k = column - start
    m = b.members[k]
    said = {label: text for label, text, _ in member_rows(b, m)}
    holds(said["trained weight v"], v=float(v[k]))
    holds(said["v / s"], scaled=float(v[k]) / scale)
    holds(said["v̂ = P(q) · s"], back=float(back[k]))
    holds(said["error v − v̂"], error=float(v[k] - back[k]))
    assert said["code q"] == pattern(element, m.code)
    clipped = abs(float(v[k])) / scale > top * (1 + 1e-6)
    points(said[f"P(q), {TITLES[element]}"], "the largest: clipped/", clipped or m.clipped)
    holds(said[f"P(q), {TITLES[element]}"], element=float(back[k]) / scale)
    assert [row_[0] for row_ in members_table(b)] == [str(start + i) for i in range(size)]
    holds([c for c in members_table(b)[k][1] if c != pattern(element, m.code)], v=float(v[k]),
          scaled=float(v[k]) / scale, back=float(back[k]), error=float(v[k] - back[k]))  # fmt: skip
    check_block_sentence(b, v, back, top, scale)


RUNS: dict = {}
TOPS = {"mxfp4": 6, "nvfp4": 6, "mxfp6_e2m3": 7.5, "mxfp6_e3m2": 28, "mxfp8_e4m3": 448,
        "mxfp8_e5m2": 57344, "mxint8": 127 / 64}  # fmt: skip


def check_block_sentence(b, v, back, top, scale):
    cost = Cost(4.25, 0.113, 0.0276)
    text = block_sentence(b, cost)
    cut_off = int((v.abs() / scale > top * (1 + 1e-6)).sum())
    assert abs(b.clipped - cut_off) <= (1 if b.format == "nvfp4" else 0)
    clipped = {"clipped": b.clipped} if b.clipped else {}
    ways = {"is clipped/are clipped": b.clipped == 1} if b.clipped else {}
    before, after = cut(text, "The layer: ")
    name, rest = cut(before, ": ")
    assert name == b.format.upper().replace("_", " ")
    holds(rest, ways=ways, size=len(v), scale=scale, reach=scale * top,
          largest=float(v.abs().max()), **clipped, values=len(set(back.tolist())),
          off=float((v - back).norm() / v.norm()))  # fmt: skip
    holds(after, bits=(4.25, "bits per weight"), off=0.113, clipped=0.0276)


def test_the_block_page_is_the_librarys(lesson, weight):
    lesson.go({"part": BLOCK, "layer": SMALL_LAYER})
    part = lesson.block
    states = [{"block": name} for name in ("mxfp4", "nvfp4", "mxint8")]
    states += [{"block": "mxfp4", "system": "ggml"}, {"block": "mxfp4", "power": "rceil"}]
    for state in states:
        lesson.go({"part": BLOCK, "layer": SMALL_LAYER, **state})
        options = dict(part.shown.options)
        assert options["format"] == state["block"]
        assert options["convention"] == state.get("system", options["convention"])
        q = qviz.quantize(weight, "microscaling", **options)
        assert torch.equal(part.shown.run.q.codes, q.codes)
        for i, (name, cost) in enumerate(part.shown.costs.items()):
            mine = options if name == options["format"] else {"format": name}
            other = qviz.quantize(weight, "microscaling", **mine)
            off = float((weight - other.dequantize()).double().norm() / weight.double().norm())
            cells = part.costs.frames[0][i]["cells"]
            holds(cells, bits=other.bits_per_weight, off=off,
                  clipped=int(other.info["clipped"]) / weight.numel())  # fmt: skip
            assert cells == cost_table({name: cost})[0][1]
            assert part.costs.frames[0][i]["label"] in BLOCK_TITLES[name]
        assert part.costs.row == list(part.shown.costs).index(options["format"])
        part.original_view.cursor = [9, 77]
        texts = {row["label"]: row["texts"][0] for row in part.member_table.rows}
        holds(texts["trained weight v"], v=float(weight[9, 77]))
        assert "weight 9, 77" in part.chart.summaries[0]
        assert part.caption.texts[0].startswith(state["block"].upper())


def test_a_block_chart_shows_the_block(lesson, weight):
    lesson.go({"part": BLOCK, "layer": SMALL_LAYER, "weight": "9, 77"})
    figure = json.loads(lesson.block.chart.figures)[0]
    assert [trace["name"] for trace in figure["data"]] == [
        "levels", "trained weight", "rounded weight",
    ]  # fmt: skip
    raw = lesson.block.chart.buffers

    def values(spec):
        return np.frombuffer(raw, spec["qv"], spec["shape"][0], spec["at"])

    assert values(figure["data"][1]["y"]) == pytest.approx(weight[9, 64:96].numpy())
    ends = [x for x in figure["data"][0]["x"] if x is not None]
    assert min(ends) < 64 and max(ends) > 95  # levels go across the whole block
    q = qviz.quantize(weight, "microscaling", format="mxfp4")
    assert values(figure["data"][2]["y"]) == pytest.approx(q.dequantize()[9, 64:96].numpy())


def test_what_is_clipped_is_marked_in_the_chart():
    figure = block_figure([3, 4, 5], [1, 9, -1], [1, 6, -1], [False, True, False], [-6, 0, 6], 2)
    levels, bars, back = figure.data
    assert list(back.marker.symbol) == ["diamond", "triangle-down", "diamond"]
    assert list(back.marker.color) == [CODES, ERROR, CODES]
    assert list(bars.marker.color) == [ORIGINAL, ORIGINAL, NOW]
    low, high = figure.layout.xaxis.range
    assert low < 3 and high > 5 and levels.x[0] < 3 and levels.x[1] > 5


def opened(lesson, tmp_path, weight, name="mine"):
    save_file({"block.fc.weight": weight.contiguous()}, tmp_path / f"{name}.safetensors")
    lesson.go({"part": BLOCK, "layer": SMALL_LAYER})
    lesson.source_control.value = str(tmp_path / f"{name}.safetensors")
    lesson.open_button.click()
    return lesson.status


def test_odd_layers_of_ones_own(lesson, tmp_path):
    try:
        before = lesson.block.caption.texts
        status = opened(lesson, tmp_path, torch.randn(4, 8), "narrow")
        assert status.kind == "error" and "do not divide the 8" in status.text
        assert lesson.source is None and lesson.part == BLOCK
        assert opened(lesson, tmp_path, torch.zeros(4, 64), "zeros").text == ""
        assert "All of them are 0" in lesson.block.caption.texts[0]
        assert opened(lesson, tmp_path, torch.full((4, 64), 0.75), "same").text == ""
        assert opened(lesson, tmp_path, torch.full((4, 64), 3e38), "huge").text == ""
        tiny = opened(lesson, tmp_path, torch.full((4, 64), 1e-40), "tiny")
        assert tiny.kind == "error" and "Pass weight * 2.0**" in tiny.text
        assert opened(lesson, tmp_path, torch.randn(1, 32), "one row").text == ""
        assert before
    finally:
        lesson.bundled_button.click()


def test_a_narrow_layer_is_no_hindrance_to_the_other_parts(lesson, tmp_path):
    """It is said when the part is opened, and the part that was open stays open."""
    save_file({"fc.weight": torch.randn(4, 8)}, tmp_path / "narrow.safetensors")
    narrow = FormatsLesson()
    narrow.source_control.value = str(tmp_path / "narrow.safetensors")
    narrow.open_button.click()
    assert narrow.status.text == ""
    narrow.part_control.index = 1
    assert narrow.status.kind == "error" and "do not divide the 8" in narrow.status.text
    assert narrow.part == "one number"
    gone = "qv-gone"
    assert gone not in narrow.number.main[0]._dom_classes
    assert gone in narrow.block.main[0]._dom_classes


# ------------------------------------------------------------------------------------ hardware


def test_the_table_of_hardware_is_whole():
    names = [one.name for one in HARDWARE]
    assert len(set(names)) == len(names)
    for one in HARDWARE:
        assert set(one.types) | set(one.open) <= set(COLUMNS) and not set(one.types) & set(one.open)
        assert one.sources and all(1 <= n <= len(SOURCES) for n in one.sources)
    assert {n for one in HARDWARE for n in one.sources} == set(range(1, len(SOURCES) + 1))
    assert set(COLUMN_OF.values()) == set(COLUMNS) and set(COLUMN_OF) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_hardware(name):
    column = COLUMN_OF.get(name)
    true = [one.name for one in HARDWARE if column in one.types and not one.only_api]
    assert who(name) == true
    text = answer(name)
    assert ("no processor in this table" in text) == (not true)
    for one in HARDWARE:
        short = one.name.partition(" (")[0]
        assert (short in text) == any(t.startswith(short) for t in true), one.name
    if true and name != "e8m0":
        assert text.startswith(f"{TITLES[name]}: {len(true)} of the {len(HARDWARE)} ")
    for one, (label, cells, lit) in zip(HARDWARE, rows(name), strict=True):
        assert label.startswith(one.name)
        for c, cell in zip(COLUMNS, cells, strict=True):
            marks = {YES: c in one.types and not one.only_api, API: c in one.types and one.only_api,
                     OPEN: c in one.open}  # fmt: skip
            assert marks.get(cell, c not in (*one.types, *one.open))
        assert [COLUMNS[i] for i in lit] == ([column] if one.name in true else [])
