"""What lesson 3 says, from numbers alone: any numbers, each number and each direction."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from said import holds, numbers_in

from qviz.methods.affine import CONVENTIONS
from qviz.study.clipping import KEPT, Values, quantize_within, rules, shrink, systems, try_ranges
from qviz.ui.figures.scale_and_zero_point import cost_curves, levels_of_systems, staircase
from qviz.ui.views.scale_and_zero_point_systems_words import (
    COLUMNS,
    Systems,
    short,
    system_rows,
    systems_sentence,
)
from qviz.ui.views.scale_and_zero_point_words import (
    FORMULAS,
    At,
    Judged,
    lit,
    number_rows,
    sentence,
    verdict,
)
from qviz.ui.views.spacing import SYSTEMS, recipe

ANSWERS = (100, 90, 75, 50)
shares = st.floats(0, 4).map(lambda v: round(v, 6))


def beside(change):
    """What a caption has to say of a sum beside that of the whole range."""
    if abs(change) < 5e-4:
        return {}, {", the same as with the whole range/": True}
    if abs(change) < 1:
        return {"change": (abs(change), "% less" if change < 0 else "% more")}, {
            "less than with the whole range/more than with the whole range": -change
        }
    return {"times": (1 + change, "× as much as with the whole range")}, {}


@settings(max_examples=60)
@given(
    kept=st.sampled_from([f"{p} %" for p in range(21, 101)] + ["by hand"]), low=st.floats(-3, -0.1),
    high=st.floats(0.1, 3), apart=st.floats(0.01, 2), used=st.integers(1, 16),
    rounding=shares, clipping=shares, whole=shares, beyond=st.integers(0, 3), lowest=st.booleans(),
    noun=st.sampled_from(["weight", "activation"]),
)  # fmt: skip
def test_every_number_and_direction_of_any_caption(
    kept, low, high, apart, used, rounding, clipping, whole, beyond, lowest, noun
):
    total = rounding + clipping
    at = At(kept, low, high, apart, 40, noun, 16, used, beyond, rounding, clipping, whole, lowest)
    expected = {} if kept == "by hand" else {"kept": int(kept[:-2]) / 100}
    expected |= {"low": low, "high": high, "levels": (16, "levels"), "apart": (apart, "apart")}
    ways = {
        "By hand, from/of the range kept, from": kept == "by hand",
        "is in use/are in use/": 0 if used == 16 else 1 if used == 1 else -1,
        "lie beyond the last level/lies beyond the last level": beyond > 1,
        f"No {noun} lies/": beyond == 0,
        f"Every {noun} is represented exactly/": total == 0,
        "No other point of the curve is lower/": lowest and total > 0,
    }
    if used < 16:
        expected["used"] = used
    if beyond:
        expected |= {"beyond": beyond, "n": (40, f"{noun}s")}
    if total:
        expected |= {
            "rounding": (rounding, "% from rounding"), "clipping": (clipping, "% from clipping"),
            "total": (total, f"% of the squared {noun}s"),
        }  # fmt: skip
        if kept != "100 %" and whole:
            more, more_ways = beside(total / whole - 1)
            expected, ways = expected | more, ways | more_ways
    holds(sentence(at), **expected, ways=ways)


@settings(max_examples=60)
@given(
    guess=st.sampled_from(ANSWERS), best=st.integers(21, 100), lowest=st.floats(0.001, 0.5),
    more=st.floats(1.01, 5), beyond=st.integers(0, 4),
)  # fmt: skip
def test_any_verdict(guess, best, lowest, more, beyond):
    whole = lowest if best == 100 else lowest * more
    judged = Judged(guess, ANSWERS, best, 1.5 * whole, lowest, whole, beyond, 9, "weight")
    gaps = {a: abs(a - best) for a in ANSWERS}
    expected = {"best": (best / 100, "% of the range"), "lowest": lowest}
    ways = {
        "Right. The sum is lowest/The sum is lowest": gaps[guess] == min(gaps.values()),
        "less than the/": best < 100,
        "clipping gains nothing/": best == 100,
    }
    if best < 100:
        expected |= {"less": (1 - lowest / whole, "% less"), "whole": (whole, "% of all of it")}
    if guess not in (best, 100):
        expected |= {"guess": guess / 100, "at guess": 1.5 * whole}
    if best < 100:
        expected |= {"beyond": beyond, "n": (9, "weights")}
        ways["lies beyond the last level/lie beyond the last level"] = beyond == 1
    holds(verdict(judged), **expected, ways=ways)
    assert "is represented exactly" in verdict(replace(judged, whole=0.0, lowest=0.0))


names = st.sampled_from(["absmax", "gptq", "hqq"])


@settings(max_examples=60)
@given(
    bits=st.integers(2, 8), form=st.sampled_from(["symmetric", "asymmetric"]),
    known=st.integers(1, 7), refusing=st.integers(0, 6), results=st.integers(1, 7),
    least=st.floats(0.001, 0.3), more=st.floats(1, 9), by=names, other=names,
)  # fmt: skip
def test_any_sentence_about_systems(bits, form, known, refusing, results, least, more, by, other):
    most = least if results == 1 else least * more
    facts = Systems(form, bits, 16, "weight", known + refusing, 6, refusing, results, least, by,
                    most, other)  # fmt: skip
    text = systems_sentence(facts)
    expected = {"bits": bits, "rules": (6, "different rules"),
                "systems": (known + refusing, "systems"), "n": (16, "weights"),
                "results": (results, "different result")}  # fmt: skip
    ways = {f"bit {form}/": True}
    if refusing:
        expected["refusing"] = refusing
        ways["has no rule/have no rule"] = refusing == 1
    expected["least"] = least
    if results > 1 and most != least:
        expected |= {"most": most, "times": (most / least, "× as much")}
        assert f"({short(by)}) to " in text and f"({short(other)}), " in text
    ways["all with an error/"] = results > 1 and most == least
    holds(text, **expected, ways=ways)


def test_sentences_about_systems_at_their_edges():
    facts = Systems("symmetric", 4, 1, "weight", 7, 6, 7, 0, 0.0, "", 0.0, "")
    assert systems_sentence(facts).endswith("None of them has a rule for such weights.")
    exact = replace(facts, refusing=0, results=2, least_by="absmax", most=0.1, most_by="gptq")
    assert "On this 1 weight" not in systems_sentence(exact)
    assert "× as much" not in systems_sentence(exact)  # nothing is a multiple of no error
    assert {name: short(name) for name in CONVENTIONS} == {k: v[0] for k, v in SYSTEMS.items()}


# ------------------------------------------------------------------------------------- the tables


def numbers(seed=0, n=60):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=g) + 0.3


MODES = [
    (name, symmetric)
    for name, c in CONVENTIONS.items()
    for symmetric in (True, False)
    if (c.symmetric if symmetric else c.asymmetric) is not None
]


@pytest.mark.parametrize(("convention", "symmetric"), MODES)
def test_one_numbers_rows(convention, symmetric):
    """Label by label, each cell beside the library's quantization of that number."""
    values = Values(numbers())
    low, high = shrink(values.low, values.high, torch.tensor(KEPT))
    scheme = {"bits": 3, "symmetric": symmetric, "convention": convention}
    tried = try_ranges(values, low, high, **scheme)
    for x in (values.high, 0.2, values.low):
        table = number_rows(tried, x, ("row, column", "3, 4"), convention, symmetric)
        names = [label for label, _, _ in table]
        roles = {label: role for label, _, role in table}
        for i in (0, 40, 79):
            cells = {k: t if isinstance(t, str) else t[i] for k, t, _ in table}
            q = quantize_within(torch.tensor([x]), float(low[i]), float(high[i]), **scheme)
            s, code, back = float(q.grid.scale), int(q.codes), float(q.dequantize())
            z, o = (
                None if part is None else float(part) for part in (q.grid.zero_point, q.grid.offset)
            )
            holds(cells["row, column"], row=3, column=4)
            holds(cells["x"], x=float(np.float32(x)))
            holds(cells["range"].replace("…", "to"), low=float(low[i]), high=float(high[i]))
            made = recipe(convention, symmetric)
            label = "s" if made is None else names[3]
            if made is None:
                holds(cells["s"], s=s)
            else:
                assert label.startswith(f"s = {made.words} ÷ ") and made.formula in label
                reach = made.range(float(low[i]), float(high[i]))
                holds(cells[label], range=reach, divisor=float(made.divisor(3)), s=s)
            position = "x / s" if o is None else "(x − o) / s"
            first = z is not None and convention in ("compressed_tensors", "hqq")
            position += " + z" if first else ""
            where = (x - (o or 0.0)) / s + (z if first else 0.0)
            after = z if z is not None and not first else 0.0
            step = f"round({position})" + (" + z" if z is not None and not first else "")
            formula = "s · q" if z is None else "s · (q − z)"
            formula += " + o" if o is not None else ""
            wanted = ["row, column", "x", "range", label]
            wanted += ["z"] if z is not None else ["o"] if o is not None else []
            wanted += [position, step, "q, clamped", f"x̂ = {formula}", "x − x̂"]
            assert names == wanted
            if z is not None:
                holds(cells["z"], z=z)
            if o is not None:
                holds(cells["o"], o=o)
            said = {k: numbers_in(cells[k])[0].value for k in (position, step, "q, clamped")}
            assert said[position] == pytest.approx(where, rel=1e-3, abs=1e-4)
            assert abs(said[step] - after - where) <= 0.5 + 1e-4
            assert said["q, clamped"] == code
            cut = said[step] != code
            if cut:
                holds(cells["q, clamped"], q=code, was=int(said[step]))
                assert "clipped from" in cells["q, clamped"]
            else:
                holds(cells["q, clamped"], q=code)
            assert lit(tried, x)[i] == (["clamp"] if cut else ["s", "round"])
            holds(cells[f"x̂ = {formula}"], back=back)
            assert numbers_in(cells["x − x̂"])[0].value == pytest.approx(
                float(np.float32(x)) - back, rel=1e-3, abs=1e-7
            )
        assert (roles["x"], roles["q, clamped"], roles["x − x̂"]) == ("original", "codes", "error")


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_of_systems(symmetric):
    x = numbers(n=24)
    values = Values(x)
    outcomes = [one for one in systems(values, bits=4) if one.symmetric == symmetric]
    errors = [(values.share(o.whole.total), values.share(o.best.total)) for o in outcomes]
    chosen = outcomes[2].convention
    table = system_rows(outcomes, errors, chosen, (values.low, values.high))
    letters = {}
    for one, (label, cells, lit_cells, role), (whole, best) in zip(
        outcomes, table, errors, strict=True
    ):
        cell = dict(zip(COLUMNS, cells, strict=True))
        grid = one.quantized.grid
        assert label == SYSTEMS[one.convention][0]
        assert role == ("now" if one.convention == chosen else "")
        assert numbers_in(cell["spacing s"])[-1].is_(float(grid.scale))
        holds(cell["codes"].replace("…", "to"), low=grid.qmin, high=grid.qmax)
        if grid.offset is not None:
            assert cell["code of 0"] == "none"
        else:
            zero = 0.0 if grid.zero_point is None else float(grid.zero_point)
            holds(cell["code of 0"], zero=zero)
        holds(cell["clipped"], beyond=one.whole.clipped)
        holds(cell["error"], whole=whole)
        holds(cell["best range"], kept=one.kept)
        holds(cell["error at best"], best=best)
        assert lit_cells == ([COLUMNS.index("error")] if whole == min(errors)[0] else [])
        letters.setdefault(cell["result"], []).append(one.quantized.dequantize())
    assert sorted(letters) == [chr(ord("A") + i) for i in range(len(letters))]
    for same in letters.values():
        for back in same:
            torch.testing.assert_close(back, same[0], rtol=0, atol=1e-4)
    assert rules(symmetric=symmetric) == 6


# ------------------------------------------------------------------------------------ the pictures


def test_the_curve_and_its_marks():
    kept = [f"{p} %" for p in range(21, 101)]
    rounding, clipping = np.linspace(0.001, 0.02, 80), np.linspace(0.05, 0.0, 80) ** 2
    total = rounding + clipping
    low = int(total.argmin())
    figure = cost_curves(kept, rounding, clipping, low, by_hand=(30, 0.015))
    by_name = {trace["name"]: trace for trace in figure["data"]}
    for name, values in (("rounding", rounding), ("clipping", clipping), ("both", total)):
        assert by_name[name]["x"] == kept
        np.testing.assert_array_equal(by_name[name]["y"], 100 * values)
    assert by_name["lowest"]["x"] == [kept[low]]
    assert by_name["lowest"]["y"] == [100 * total[low]]
    holds(by_name["lowest"]["text"][0], lowest=float(total[low]))
    assert by_name["by hand"]["x"] == ["51 %"] and by_name["by hand"]["y"] == [1.5]
    holds(by_name["by hand"]["text"][0], hand=0.015)
    top = figure["layout"]["yaxis"]["range"][1]
    assert 100 * total[-1] < top < 5 * 100 * total[-1]
    for name, y in (("lowest", total[low]), ("by hand", 0.015)):
        holds(by_name[name]["hovertemplate"].partition("kept: ")[2].partition("<")[0], y=float(y))
    for at, side in ((5, "top right"), (40, "top center"), (79, "top left")):  # where there is room
        (star,) = [t for t in cost_curves(kept, rounding, clipping, at)["data"] if len(t["x"]) == 1]
        assert star["textposition"] == side
        assert star["x"] == [kept[at]] and star["y"] == pytest.approx([100 * total[at]])
    above = cost_curves(kept, rounding, clipping, low, by_hand=(30, 0.5))["data"][-1]
    assert above["y"][0] < top and above["marker"]["symbol"] == "triangle-up"
    holds(above["text"][0], hand=0.5)  # what is written stays true
    hidden = cost_curves(kept, rounding, clipping, low, drawn=False)
    assert [list(trace["x"]) for trace in hidden["data"]] == [["100 %"]] * 3
    assert [trace["y"].tolist() for trace in hidden["data"]] == [[2.0], [0.0], [2.0]]
    assert set(figure["layout"]["xaxis"]["tickvals"]) == {"40 %", "60 %", "80 %", "100 %"}
    for label in (figure["layout"]["xaxis"], figure["layout"]["yaxis"]):
        assert label["title"]["text"]
    assert cost_curves(kept, 0 * rounding, 0 * clipping, 79)["layout"]["yaxis"]["range"][1] > 0


def test_a_staircase_is_what_rounding_makes_of_every_number():
    levels = np.array([[-1.0, 0.0, 1.0], [-0.5, 0.0, 0.5]])
    figure = staircase(levels, (-2.0, 2.0), 0.8, np.array([1.0, 0.5]))
    for frame, each, back in zip(figure["frames"], levels, (1.0, 0.5), strict=True):
        steps, chosen = frame["data"]
        assert frame["traces"] == [1, 2]
        for x in np.linspace(-1.99, 1.99, 41):
            at = np.searchsorted(steps["x"], x) - 1  # "hv": the level from where it begins
            assert steps["y"][at] == each[np.abs(each - x).argmin()]
        assert chosen == {"x": [0.8, 0.8], "y": [0.8, back]}
    assert figure["data"][0]["x"].tolist() == figure["data"][0]["y"].tolist() == [-2.0, 2.0]


def test_rows_of_levels():
    levels = [np.array([-1.0, 1.0]), np.array([]), np.array([0.0, 2.0])]
    figure = levels_of_systems(["A", "B", "C"], levels, 2, (-0.5, 1.5))
    axis = figure["layout"]["yaxis"]
    place = dict(zip(axis["ticktext"], axis["tickvals"], strict=True))
    for trace, name, each in zip(figure["data"], "ABC", levels, strict=True):
        assert trace["name"] == name and list(trace["x"]) == list(each)
        assert set(trace["y"].tolist()) <= {place[name]}
    widths = [trace["marker"]["line"]["width"] for trace in figure["data"]]
    assert widths[2] > widths[0] == widths[1]
    (tint,) = figure["layout"]["shapes"]
    assert (tint["x0"], tint["x1"]) == (-0.5, 1.5)
    assert place["A"] > place["B"] > place["C"]  # from top to bottom


def test_formulas_have_what_is_stored():
    for stored, formula in FORMULAS.items():
        assert ('data-term="z"' in formula.mathml) == (stored == "z") == ("z" in formula.terms)
        assert ('data-term="o"' in formula.mathml) == (stored == "o") == ("o" in formula.terms)
        assert all(f'data-term="{term}"' in formula.mathml for term in formula.terms)
        lines = formula.mathml.split("</math>")[:-1]
        assert [re.sub("<[^>]*>", "", line) for line in lines] == {
            "": ["q=clamp(round(xs))", "x^=s·q"],
            "z": ["q=clamp(round(xs+z))", "x^=s·(q−z)"],
            "o": ["q=clamp(round(x−os))", "x^=s·q+o"],
        }[stored]
        assert formula.mathml.count("<mfrac>") == 1 and set("xsq") < set(formula.terms)
    assert ("plus z" in FORMULAS["z"].spoken, "plus o" in FORMULAS["o"].spoken) == (True, True)
