"""Lesson 3 without a browser: every number and direction word on the page, computed another way."""

import json
import re

import numpy as np
import pytest
import torch
from exactness.affine import awq_by_its_text, gptq_by_its_text
from safetensors.torch import save_file
from said import holds

import qviz
from qviz.methods.affine import CONVENTIONS
from qviz.study.clipping import KEPT, gate_activations, quantize_within, shrink
from qviz.ui.views.scale_and_zero_point import ScaleAndZeroPointLesson
from qviz.ui.views.scale_and_zero_point_facts import ANSWERS, HAND, PARTS
from qviz.ui.views.scale_and_zero_point_systems_words import (
    COLUMNS,
    short,
)
from qviz.ui.views.scale_and_zero_point_words import (
    FORMS,
    GUIDE,
    ONE_SIGNED,
)
from qviz.ui.widgets import percent

SMALL = "model.layers.0.self_attn.k_proj"
STATES = [
    {},
    {"bits": "2", "levels": "asymmetric", "convention": "quanto"},
    {"bits": "8", "levels": "asymmetric", "convention": "hqq", "scale": "group of 128"},
    {"bits": "3", "convention": "absmax", "look": "outlier", "scale": "group of 32"},
    {**ONE_SIGNED, "convention": "gptq"},
    {**ONE_SIGNED, "levels": "asymmetric", "convention": "awq"},
    {"look": "gate", "levels": "asymmetric"},
    {"layer": SMALL, "scale": "matrix", "convention": "torchao_no_clipping"},
]


@pytest.fixture(scope="module")
def shared():
    return ScaleAndZeroPointLesson()


@pytest.fixture
def lesson(shared):
    shared.go({})
    return shared


def value(text):
    """A number as the page writes it."""
    return float(text.replace("−", "-").replace("∞", "inf"))


def close(text, true, rel=5.1e-3):
    """The number that stands there is the true one to the digits that it has."""
    return value(text) == pytest.approx(true, rel=rel, abs=1e-12)


def said_levels(convention, symmetric, bits, lo, hi):
    """The levels [n] of a range in float64, from the systems' formulas."""
    n, half = 2**bits - 1, 2 ** (bits - 1)
    size, lo0, hi0 = max(abs(lo), abs(hi)), min(lo, 0.0), max(hi, 0.0)
    if symmetric:
        if convention == "absmax":
            return size / (half - 1) * np.arange(1 - half, half)
        scale = {
            "awq": size / (half - 1),
            "quarot": size / (half - 1),
            "compressed_tensors": size / (n / 2),
            "torchao": size / (n / 2),
            "torchao_no_clipping": max(-lo0 / half, hi0 / (half - 1)),
            "gptq": (2 if lo < 0 else 1) * size / n,
        }[convention]
        return scale * np.arange(-half, half)
    codes = np.arange(n + 1)
    if convention in ("compressed_tensors", "gptq", "torchao"):
        scale = (hi0 - lo0) / n
        return scale * (codes - np.round(-lo0 / scale))
    scale = (hi - lo) / n
    if convention == "awq":
        return scale * (codes - np.clip(-np.round(lo / scale), 0, n))
    zero = -lo / scale
    return scale * (codes - (np.round(zero) if convention == "hqq" and bits == 4 else zero))


def cost(x, levels):
    """Rounding and clipping as shares of Σx², how many beyond, how many levels in use."""
    at = np.abs(x[:, None] - levels[None, :]).argmin(1)
    square = (x - levels[at]) ** 2
    slack = 1e-4 * (levels[1] - levels[0])
    outside = (x < levels[0] - slack) | (x > levels[-1] + slack)
    whole = (x**2).sum()
    return (
        square[~outside].sum() / whole,
        square[outside].sum() / whole,
        int(outside.sum()),
        len(set(at.tolist())),
    )


def ends_of(x, part):
    low, high = shrink(float(x.min()), float(x.max()), torch.tensor(part))
    return float(low), float(high)


CAPTION = re.compile(
    r"(?:(?P<kept>\d+) % of the range kept|By hand), from (?P<low>\S+) to (?P<high>\S+): "
    r"(?P<levels>\d+) levels (?P<apart>\S+) apart(?:, of which (?P<used>\d+) (?:is|are) in use)?\. "
    r"(?:(?P<beyond>\d+) of (?P<n>\d+) (?:weight|activation)s|No (?:weight|activation)) "
    r"(?P<lie>lies?) beyond the last level\. Squared error: (?P<rounding>\S+) % from rounding \+ "
    r"(?P<clipping>\S+) % from clipping = (?P<total>\S+) % of the squared "
    r"(?P<noun>weight|activation)s(?:, (?P<beside>[^.]*(?:\.\d+[^.]*)?))?\."
    r"(?P<lowest> No other point of the curve is lower\.)?"
)


def check_beside(text, total, whole):
    """The words for a sum beside that of the whole range."""
    change = total / whole - 1
    if text == "the same as with the whole range":
        assert abs(change) < 6e-4
    elif text.endswith(" less than with the whole range"):
        assert close(text.split(" %")[0], -100 * change)
    elif text.endswith(" more than with the whole range"):
        assert close(text.split(" %")[0], 100 * change) and change < 1.001
    else:
        assert text.endswith("× as much as with the whole range")
        assert close(text.split("×")[0], 1 + change) and change > 0.999


@pytest.mark.parametrize("state", STATES, ids=lambda s: "-".join(s.values()) or "first")
def test_every_number_and_direction_of_every_caption(lesson, state):
    lesson.go({**state, "kept": "60 %"})
    x = lesson.shown.numbers.flat.double().numpy()
    scheme = lesson.scheme
    order = (scheme["convention"], scheme["symmetric"], scheme["bits"])
    costs = [cost(x, said_levels(*order, *ends_of(x, part))) for part in KEPT]
    totals = [r + c for r, c, _, _ in costs]
    assert len(lesson.caption.texts) == len(KEPT) == 80
    lowest = []
    for i, text in enumerate(lesson.caption.texts):
        match = CAPTION.fullmatch(text)
        assert match, text
        said, (rounding, clipping, beyond, used) = match.groupdict(), costs[i]
        low, high = ends_of(x, KEPT[i])
        levels = said_levels(*order, low, high)
        assert said["kept"] == f"{100 * KEPT[i]:.0f}"
        assert close(said["low"], low) and close(said["high"], high)
        assert int(said["levels"]) == len(levels)
        assert close(said["apart"], levels[1] - levels[0])
        assert abs(int(said["used"] or len(levels)) - used) <= 2  # ties
        assert int(said["beyond"] or 0) == beyond
        assert said["lie"] == ("lie" if beyond > 1 else "lies")
        assert said["n"] in (None, str(len(x)))
        assert close(said["rounding"], 100 * rounding, 6e-3)
        assert value(said["clipping"]) == pytest.approx(100 * clipping, rel=6e-3, abs=1e-4)
        assert close(said["total"], 100 * totals[i], 6e-3)
        assert said["noun"] == ("activation" if state.get("look") == "gate" else "weight")
        assert (said["beside"] is None) == (i == 79)
        if said["beside"]:
            check_beside(said["beside"], totals[i], totals[-1])
        lowest += [i] if said["lowest"] else []
    assert lowest == [lesson.shown.tried.best]
    assert totals[lowest[0]] == pytest.approx(min(totals), rel=1e-5)


# ----------------------------------------------------------------------------------- the prediction


def test_the_prediction_is_judged_by_the_curve(lesson):
    x = lesson.shown.numbers.flat.double().numpy()
    totals = [
        sum(cost(x, said_levels("compressed_tensors", True, 4, *ends_of(x, p)))[:2]) for p in KEPT
    ]
    best = int(np.argmin(totals))
    beyond = cost(x, said_levels("compressed_tensors", True, 4, *ends_of(x, KEPT[best])))[2]
    for i, answer in enumerate(ANSWERS):
        lesson.prediction.control.index = i + 1
        text = lesson.prediction.verdict.texts[0]
        right = min(ANSWERS, key=lambda a: abs(a - 100 * KEPT[best])) == answer
        assert text.startswith("Right. ") == right
        assert f"lowest with {PARTS[best]} of the range: {percent(totals[best])}" in text
        less = 1 - totals[best] / totals[-1]
        assert f"{percent(less)} less than the {percent(totals[-1])} of all of it" in text
        if answer != 100:
            assert f"With {answer} % it is {percent(totals[PARTS.index(f'{answer} %')])}" in text
        assert f"{beyond} of {len(x)} weights lie beyond the last level then" in text


def traces(chart, frame=0):
    """Trace → y of a chart, as the browser gets it."""
    figures = json.loads(chart.figures)

    def array(spot):
        if isinstance(spot, list):
            return np.array(spot)
        kind = np.dtype(spot["qv"])
        return np.frombuffer(chart.buffers, kind, int(np.prod(spot["shape"])), spot["at"])

    return {t["name"]: (t["x"], array(t["y"]), t) for t in figures[frame]["data"] if "y" in t}


def test_the_curve_does_not_give_the_prediction_away(tmp_path):
    lesson = ScaleAndZeroPointLesson(layer=SMALL)
    assert set(traces(lesson.curves)) == {"rounding", "clipping", "both"}
    assert all(len(y) == 1 for _, y, _ in traces(lesson.curves).values())
    assert "lowest" not in lesson.curves.summaries[0]
    assert not any("No other point" in text for text in lesson.caption.texts)
    lesson.kept_control.index = 40
    shown = traces(lesson.curves)
    assert all(len(shown[name][1]) == 80 for name in ("rounding", "clipping", "both"))
    best = lesson.shown.tried.best
    assert shown["lowest"][0] == [PARTS[best]]
    assert (
        f"lowest with {PARTS[best]} of it, {percent(lesson.shown.total[best])}"
        in (lesson.curves.summaries[0])
    )
    assert sum("No other point" in text for text in lesson.caption.texts) == 1


def test_the_curve_is_the_two_costs_and_their_sum(lesson):
    lesson.go({"kept": "50 %"})
    x = lesson.shown.numbers.flat.double().numpy()
    parts = [cost(x, said_levels("compressed_tensors", True, 4, *ends_of(x, p))) for p in KEPT]
    shown = traces(lesson.curves)
    np.testing.assert_allclose(shown["rounding"][1], [100 * r for r, *_ in parts], rtol=1e-3)
    np.testing.assert_allclose(
        shown["clipping"][1], [100 * c for _, c, *_ in parts], rtol=1e-3, atol=1e-5
    )
    both = [100 * (r + c) for r, c, *_ in parts]
    np.testing.assert_allclose(shown["both"][1], both, rtol=1e-3)
    assert shown["lowest"][1][0] == pytest.approx(min(both), rel=1e-3)


# ------------------------------------------------------------------------------------ one number


def rows(lesson, i):
    return {r["label"]: r["texts"][min(i, len(r["texts"]) - 1)] for r in lesson.number_table.rows}


@pytest.mark.parametrize("state", STATES, ids=lambda s: "-".join(s.values()) or "first")
def test_one_numbers_whole_arithmetic(lesson, state):
    lesson.go(state)
    numbers, scheme = lesson.shown.numbers, lesson.scheme
    extreme = divmod(int(numbers.picture.abs().argmax()), numbers.picture.shape[1])
    for cell in ((0, 0), extreme):
        lesson.picture.cursor = list(cell)
        x = float(numbers.picture[cell])
        for i in (0, 47, 79):
            table = rows(lesson, i)
            ends = ends_of(numbers.flat, KEPT[i])
            q = quantize_within(torch.tensor([x]), *ends, **scheme)
            scale, code, back = q.grid.scale.item(), int(q.codes), q.dequantize().item()
            assert close(table["x"], x, 6e-4)
            low, high = table["range"].split(" … ")
            assert close(low, ends[0]) and close(high, ends[1])
            made = next(text for label, text in table.items() if label.split(" ")[0] == "s")
            assert close(made.split(" ")[-1], scale)
            if "÷" in made:
                top, bottom = made.split(" = ")[0].split(" ÷ ")
                assert value(top) / value(bottom) == pytest.approx(scale, rel=6e-3)
            zero, offset = q.grid.zero_point, q.grid.offset
            assert ("z" in table) == (zero is not None) and ("o" in table) == (offset is not None)
            z = 0.0 if zero is None else float(zero)
            o = 0.0 if offset is None else float(offset)
            if zero is not None:
                assert close(table["z"], z, 6e-4)
            if offset is not None:
                assert close(table["o"], o, 6e-4)
            labels = list(table)
            at = next(k for k, label in enumerate(labels) if label.startswith("round("))
            first = (x - o) / scale + (z if "+ z" in labels[at - 1] else 0)
            assert value(table[labels[at - 1]]) == pytest.approx(first, rel=6e-4, abs=1e-5)
            rounded = value(table[labels[at]])
            after = z if labels[at].endswith(") + z") else 0
            assert rounded == round(rounded) and abs(rounded - after - first) <= 0.5 + 1e-5
            assert value(table["q, clamped"].split(",")[0]) == code
            cut = code != rounded
            assert ("clipped from" in table["q, clamped"]) == cut
            assert lesson.equation.actives[i] == (["clamp"] if cut else ["s", "round"])
            came = next(text for label, text in table.items() if label.startswith("x̂ ="))
            assert value(came) == pytest.approx(back, rel=6e-4, abs=1e-9)
            assert value(table["x − x̂"]) == pytest.approx(x - back, rel=1e-3, abs=1e-9)
            assert value(came) == pytest.approx(scale * (code - z) + o, rel=6e-4, abs=1e-6)
    stored = "o" if "o" in table else "z" if "z" in table else ""
    assert ('data-term="z"' in lesson.equation.mathml) == (stored == "z")
    assert ('data-term="o"' in lesson.equation.mathml) == (stored == "o")


def test_where_the_chosen_number_is(lesson):
    """In the layer, whatever the picture's shape."""
    weight = qviz.load_layer(None, lesson.layer).float()
    for state in ({}, {"scale": "group of 64", "look": "outlier"}, {"scale": "matrix"}):
        lesson.go(state)
        shape = lesson.shown.numbers.picture.shape
        for cell in ((0, 0), (shape[0] - 1, shape[1] - 1), (shape[0] // 2, 1)):
            lesson.picture.cursor = list(cell)
            row, column = (int(v) for v in rows(lesson, 0)["row, column"].split(", "))
            assert close(rows(lesson, 0)["x"], float(weight[row, column]), 6e-4)
            assert float(lesson.shown.numbers.picture[cell]) == float(weight[row, column])
    lesson.go({"look": "gate"})
    lesson.picture.cursor = [3, 5]
    token, feature = (int(v) for v in rows(lesson, 0)["token, feature"].split(", "))
    gates = gate_activations(lesson.layer)
    assert float(lesson.shown.numbers.picture[3, 5]) == float(gates[token, feature])


def test_titles_say_which_numbers_these_are(lesson):
    weight = qviz.load_layer(None, lesson.layer).float()
    assert (n := re.fullmatch(r"The 1024 weights of row (\d+)", lesson.line.label))
    assert torch.equal(lesson.shown.numbers.flat, weight[int(n[1])])
    lesson.go({"scale": "group of 32", "look": "outlier"})
    n = re.fullmatch(r"The 32 weights of row (\d+), columns (\d+) to (\d+)", lesson.line.label)
    row, first, last = map(int, n.groups())
    assert torch.equal(lesson.shown.numbers.flat, weight[row, first : last + 1])
    lesson.go({"scale": "matrix"})
    assert lesson.picture.axes == ["out", "in"]
    assert lesson.line.label == f"All {weight.numel()} weights of the layer"
    lesson.go({"look": "gate"})
    assert lesson.picture.axes == ["line", "place"]
    n = re.fullmatch(r"The 1024 gate activations of token (\d+)", lesson.line.label)
    assert torch.equal(lesson.shown.numbers.flat, gate_activations(lesson.layer)[int(n[1])])


@pytest.mark.parametrize("state", STATES[:7], ids=lambda s: "-".join(s.values()) or "first")
def test_pictures_show_the_library_s_numbers(lesson, state):
    lesson.go(state)
    numbers, scheme = lesson.shown.numbers, lesson.scheme
    for i in (0, 50, 79):
        q = quantize_within(numbers.flat, *ends_of(numbers.flat, KEPT[i]), **scheme)
        errors = (numbers.flat - q.dequantize()[0]).reshape(numbers.picture.shape)
        for cell in ((0, 0), (1, 2)):
            assert lesson.error_view.values_at(*cell)[i] == float(errors[cell])
        levels = q.levels(0, 0).double().numpy()
        np.testing.assert_allclose(lesson.line.levels[i], levels, atol=2e-5 * abs(levels).max())
        assert lesson.line.places[i] == list(ends_of(numbers.flat, KEPT[i]))
        stairs = traces(lesson.stairs, i)
        np.testing.assert_allclose(
            stairs["what x becomes"][1][:-1], levels, rtol=1e-5, atol=1e-7 * abs(levels).max()
        )
        x, back = stairs["the chosen number"][1]
        at = (numbers.flat - x).abs().argmin()
        assert back == pytest.approx(float(q.dequantize()[0, at]), rel=1e-5, abs=1e-9)
        assert f"{len(levels)} levels from" in lesson.stairs.summaries[i]
        ends = lesson.line.places[i]
        holds(lesson.line.summaries[i], n=(len(levels), "levels"), first=levels[0], last=levels[-1],
              low=ends[0], high=ends[1])  # fmt: skip
    counts, edges = lesson.line.bars[0]
    assert sum(counts) == numbers.n
    assert (edges[0], edges[-1]) == pytest.approx((numbers.values.low, numbers.values.high))


def test_a_stair_begins_half_way_to_the_level_below(lesson):
    """What every number becomes is what the library makes of it, just left and right of a stair."""
    lesson.go({"levels": "asymmetric"})
    figure = json.loads(lesson.stairs.figures)[20]["data"][1]
    edges = np.frombuffer(lesson.stairs.buffers, figure["x"]["qv"], figure["x"]["shape"][0],
                          figure["x"]["at"])[1:-1]  # fmt: skip
    levels = traces(lesson.stairs, 20)["what x becomes"][1]
    ends = ends_of(lesson.shown.numbers.flat, KEPT[20])
    gap = 1e-3 * (levels[1] - levels[0])
    for side, step in ((-gap, 0), (gap, 1)):
        x = torch.tensor(edges + side, dtype=torch.float32)
        back = quantize_within(x, *ends, **lesson.scheme).dequantize()[0].numpy()
        np.testing.assert_allclose(back, levels[step : step + len(edges)], rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------ by hand


def test_dragging_a_handle_is_by_hand(lesson):
    lesson.go({"levels": "asymmetric"})
    lesson.line.values = [-0.15, 0.2]
    assert lesson.kept_control.value == "by hand" and lesson.prediction.revealed
    x = lesson.shown.numbers.flat.double().numpy()
    levels = said_levels("compressed_tensors", False, 4, -0.15, 0.2)
    rounding, clipping, beyond, _ = cost(x, levels)
    (text,) = lesson.caption.texts
    match = CAPTION.fullmatch(text)
    assert text.startswith("By hand, from −0.15 to 0.2: ")
    assert close(match["rounding"], 100 * rounding, 6e-3)
    assert close(match["clipping"], 100 * clipping, 6e-3)
    assert int(match["beyond"]) == beyond
    whole = sum(cost(x, said_levels("compressed_tensors", False, 4, x.min(), x.max()))[:2])
    check_beside(match["beside"], rounding + clipping, whole)
    assert traces(lesson.curves)["by hand"][2]["text"] == [
        f"<b>{100 * (rounding + clipping):.3g} %</b>"
    ]
    np.testing.assert_allclose(lesson.line.levels, [levels], atol=1e-5)
    assert lesson.state["kept"] == "by hand" and lesson.state["ends"] == "-0.15, 0.2"


def test_a_link_brings_the_handles_back(lesson):
    lesson.go({"levels": "asymmetric"})
    lesson.line.values = [-0.15, 0.2]
    link, caption = lesson.address.state, list(lesson.caption.texts)
    lesson.go({})
    assert lesson.fields["ends"].text == ""
    lesson._on_address(link)
    assert lesson.status.text == "" and lesson.caption.texts == caption
    assert list(lesson.line.values) == [-0.15, 0.2]


def test_the_slider_takes_the_handles_along_and_back_from_by_hand(lesson):
    lesson.kept_control.index = 30
    lesson.line.frame = 30  # the browser's link does this
    assert lesson.kept_control.value == PARTS[30]
    assert list(lesson.line.values) == list(ends_of(lesson.shown.numbers.flat, KEPT[30]))
    lesson.kept_control.index = HAND  # by hand begins where the handles are
    assert lesson.shown.hand is not None and len(lesson.caption.texts) == 1
    here = ends_of(lesson.shown.numbers.flat, KEPT[30])
    assert (float(lesson.shown.hand.low), float(lesson.shown.hand.high)) == here
    lesson.kept_control.index = 10
    assert lesson.shown.hand is None and len(lesson.caption.texts) == 80
    assert list(lesson.line.values) == list(ends_of(lesson.shown.numbers.flat, KEPT[10]))
    assert "by hand" not in traces(lesson.curves)


def test_other_settings_keep_the_range_by_hand_and_other_numbers_do_not(lesson):
    lesson.line.values = [-0.1, 0.2]
    lesson.bits_control.index = 1
    assert lesson.caption.texts[0].startswith("By hand, from −0.1 to 0.2: 8 levels")
    lesson.affine.levels.index = 1
    assert lesson.caption.texts[0].startswith("By hand, from −0.1 to 0.2: 8 levels")
    lesson.look_control.index = 1
    values = lesson.shown.numbers.values
    assert list(lesson.line.values) == [values.low, values.high]
    assert lesson.fields["ends"].text


def test_both_handles_on_one_spot_are_said_in_words(lesson):
    lesson.go({"levels": "asymmetric"})
    lesson.line.values = [-0.1, 0.2]
    caption = list(lesson.caption.texts)
    lesson.line.values = [0.2, 0.2]
    assert lesson.status.kind == "error" and "move them apart" in lesson.status.text
    assert list(lesson.line.values) == [-0.1, 0.2] and lesson.caption.texts == caption
    lesson.line.values = [-0.1, 0.1]
    assert lesson.status.kind == ""


# ------------------------------------------------------------------------------------ the systems


def of_compressed_tensors(x, bits, symmetric):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="channel")
    w = x[None]
    scale, zero = calculate_qparams(w.amin(1, keepdim=True), w.amax(1, keepdim=True), args)
    codes = quantize(w, scale, zero, args, dtype=torch.int8)
    return scale, codes, dequantize(codes, scale, zero, args)


def of_torchao(mapping):
    def found(x, bits, _symmetric):
        from torchao.quantization import quant_primitives as ao

        ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        block, w = (1, len(x)), x[None]
        scale, zero = ao.choose_qparams_affine(
            w, ao.MappingType[mapping], block, torch.int8, *ends, zero_point_dtype=torch.int32
        )
        codes = ao.quantize_affine(w, block, scale, zero, torch.int8, *ends)
        back = ao.dequantize_affine(
            codes, block, scale, zero, torch.int8, *ends, output_dtype=torch.float32
        )
        return scale, codes, back

    return found


def by_text(reference):
    def found(x, bits, symmetric):
        scale, _, codes, back = reference(x.numpy(), bits, symmetric)
        return torch.tensor(scale), torch.from_numpy(codes), torch.from_numpy(back)

    return found


def of_formula(x, bits, _symmetric):
    """KIVI and quanto: from the smallest to the largest."""
    scale = (x.max() - x.min()) / (2**bits - 1)
    codes = torch.round((x - x.min()) / scale).clamp(0, 2**bits - 1)
    return scale, codes, codes * scale + x.min()


def of_smoothquant(x, bits, _symmetric):
    scale = x.abs().max().clamp(min=1e-5) / (2 ** (bits - 1) - 1)
    codes = torch.round(x / scale)
    return scale, codes, codes * scale


def of_hqq(x, bits, _symmetric):
    inverse = (2**bits - 1) / (x.max() - x.min())
    zero = -x.min() * inverse
    zero = torch.round(zero) if bits == 4 else zero
    codes = torch.round(x * inverse + zero).clamp(0, 2**bits - 1)
    return 1 / inverse, codes, (codes - zero) * (1 / inverse)


THEIRS = {
    ("compressed_tensors", True): of_compressed_tensors,
    ("compressed_tensors", False): of_compressed_tensors,
    ("torchao", True): of_torchao("SYMMETRIC"),
    ("torchao", False): of_torchao("ASYMMETRIC"),
    ("torchao_no_clipping", True): of_torchao("SYMMETRIC_NO_CLIPPING_ERR"),
    ("gptq", True): by_text(gptq_by_its_text),
    ("gptq", False): by_text(gptq_by_its_text),
    ("awq", True): by_text(awq_by_its_text),
    ("awq", False): by_text(awq_by_its_text),
    ("quarot", True): by_text(awq_by_its_text),
    ("absmax", True): of_smoothquant,
    ("quanto", False): of_formula,
    ("kivi", False): of_formula,
    ("hqq", False): of_hqq,
}


@pytest.mark.filterwarnings("ignore")  # the systems' own
@pytest.mark.parametrize("state", [{}, ONE_SIGNED, {"look": "gate", "bits": "3"}, {"bits": "8"}],
                         ids=["row", "one sign", "gates", "8 bits"])  # fmt: skip
def test_conventions_on_the_page_are_their_systems(lesson, state):
    """Scales, codes and values of the real systems where they are installed, else of their text,
    bit for bit, on the page's own numbers; and the table says these."""
    lesson.go(state)
    numbers = lesson.shown.numbers
    x, bits = numbers.flat, lesson.scheme["bits"]
    at = torch.searchsorted(numbers.values.x, x)
    assert {(o.convention, o.symmetric) for o in lesson.shown.outcomes} == set(THEIRS)
    backs = {}
    for one in lesson.shown.outcomes:
        scale, codes, back = THEIRS[one.convention, one.symmetric](x, bits, one.symmetric)
        q = one.quantized
        assert torch.equal(q.grid.scale.flatten(), scale.flatten().float())
        assert torch.equal(q.codes[0][at].double(), codes.flatten().double())
        assert torch.equal(q.dequantize()[0][at], back.flatten().float())
        backs[one.convention, one.symmetric] = back.flatten().double(), float(scale)
    x = x.double()
    for i, form in enumerate(FORMS):
        table = {row["label"]: dict(zip(COLUMNS, row["cells"], strict=True))
                 for row in lesson.systems.tables[i].frames[0]}  # fmt: skip
        found = {k: v for (k, s), v in backs.items() if s == (form == "symmetric")}
        assert list(table) == [short(name) for name in found]
        errors = {k: float(((x - b) ** 2).sum() / (x**2).sum()) for k, (b, _) in found.items()}
        for name, (back, scale) in found.items():
            cells = table[short(name)]
            levels = said_levels(name, form == "symmetric", bits, float(x.min()), float(x.max()))
            assert close(cells["spacing s"].split(" ")[-1], scale)
            assert close(cells["error"].split(" ")[0], 100 * errors[name])
            assert int(cells["clipped"]) == cost(x.numpy(), levels)[2]
            low, high = (value(text) for text in cells["codes"].split(" … "))
            assert high - low + 1 == len(levels)
            if cells["code of 0"] == "none":
                assert name in ("quanto", "kivi")
            else:
                zero = value(cells["code of 0"])
                assert levels[0] == pytest.approx((low - zero) * scale, abs=0.1 * scale)
            trials = [
                sum(cost(x.numpy(), said_levels(name, form == "symmetric", bits,
                                                *ends_of(numbers.flat, part)))[:2])
                for part in KEPT
            ]  # fmt: skip
            assert close(cells["error at best"].split(" ")[0], 100 * min(trials), 6e-3)
            assert trials[PARTS.index(cells["best range"])] == pytest.approx(min(trials), rel=1e-4)
            for other, (its, _) in found.items():
                same = float((its - back).abs().max()) < 0.1 * scale
                assert (table[short(other)]["result"] == cells["result"]) == same
        lit = {row["label"] for row in lesson.systems.tables[i].frames[0] if row["lit"]}
        assert lit == {short(k) for k in errors if errors[k] == pytest.approx(min(errors.values()),
                                                                            rel=1e-9)}  # fmt: skip
        letters = {cells["result"] for cells in table.values()}
        text = lesson.systems.texts[i].text
        assert text.startswith(f"“{bits}-bit {form}” means 6 different rules in 7 systems")
        assert f"they give {len(letters)} different results" in text
        least, most = min(errors.values()), max(errors.values())
        assert f"from {percent(least)} (" in text and f"to {percent(most)} (" in text
        for error, word in ((least, "from"), (most, "to")):
            by = re.search(rf"{word} {re.escape(percent(error))} \(([^)]*)\)", text)[1]
            assert errors[next(k for k in found if short(k) == by)] == pytest.approx(
                error, rel=1e-6
            )
        assert close(re.search(r"(\S+)× as much", text)[1], most / least)


def test_the_chosen_system_is_marked_and_its_whole_range_is_the_table_s(lesson):
    for state in ({"convention": "gptq"}, {"levels": "asymmetric", "convention": "kivi"}):
        lesson.go(state)
        form = lesson.affine.levels.index
        marked = [row for t in lesson.systems.tables for row in t.frames[0] if row["role"] == "now"]
        assert [row["label"] for row in marked] == [short(state["convention"])]
        assert marked[0] in lesson.systems.tables[form].frames[0]
        assert marked[0]["cells"][COLUMNS.index("error")] == percent(lesson.shown.total[-1])
        outcome = next(o for o in lesson.shown.outcomes if o.convention == state["convention"]
                       and o.symmetric == (form == 0))  # fmt: skip
        codes = lesson.shown.tried.follow(lesson.shown.numbers.values.x).code[-1]
        assert torch.equal(outcome.quantized.codes[0].float(), codes)


def test_levels_of_every_system_are_on_the_chart(lesson):
    lesson.go(ONE_SIGNED)
    x = lesson.shown.numbers.flat
    for i, form in enumerate(FORMS):
        names = [k for k, c in CONVENTIONS.items() if (c.asymmetric if i else c.symmetric)]
        figure = json.loads(lesson.systems.charts[i].figures)[0]
        assert figure["layout"]["yaxis"]["ticktext"] == [
            short(name).partition(",")[0] for name in reversed(names)
        ]
        for row, (name, trace) in enumerate(zip(names, figure["data"], strict=True)):
            spot = trace["x"]
            got = np.frombuffer(
                lesson.systems.charts[i].buffers, spot["qv"], spot["shape"][0], spot["at"]
            )
            want = said_levels(name, form == "symmetric", 4, float(x.min()), float(x.max()))
            np.testing.assert_allclose(got, want, atol=1e-6)
            assert trace["name"] == short(name).partition(",")[0]
            spot = trace["y"]
            y = np.frombuffer(
                lesson.systems.charts[i].buffers, spot["qv"], spot["shape"][0], spot["at"]
            )
            assert set(y) == {len(names) - 1 - row}


# ------------------------------------------------------------------------------------ the guide


def best(lesson):
    return lesson.shown.tried.best, 1 - lesson.shown.total.min() / lesson.shown.total[-1]


def test_what_the_guide_says_is_so(lesson):
    start, gain = best(lesson)
    assert start < 79 and gain > 0.3  # cutting off a little is better
    lesson.go({"bits": "8"})
    eight, nothing = best(lesson)
    assert eight > start and nothing < 0.05
    assert lesson.shown.tried.values.shape[1] == 256
    lesson.go({"bits": "2"})
    assert best(lesson)[0] < start
    lesson.go({"scale": "group of 32"})
    small, less = best(lesson)
    assert small > start and less < gain / 2
    lesson.go(ONE_SIGNED)
    assert lesson.shown.numbers.n == 16 and lesson.shown.numbers.values.low > 0
    half = int(lesson.shown.tried.used[-1])
    lesson.go({**ONE_SIGNED, "levels": "asymmetric"})
    assert half <= 8 < int(lesson.shown.tried.used[-1]) + 1
    (gptq,) = [o for o in lesson.shown.outcomes if o.convention == "gptq" and o.symmetric]
    top, values = float(gptq.quantized.levels(0, 0)[-1]), lesson.shown.numbers.values
    assert values.low < top < values.high
    assert 0.25 < (top - values.low) / (values.high - values.low) < 0.6  # in the middle of it


def test_one_can_get_below_the_lowest_point_by_hand(lesson):
    lesson.go(GUIDE[-1].start)
    lowest = float(lesson.shown.total.min())
    assert lesson.shown.tried.values.shape[1] == 4  # there are four levels to place
    lesson.line.values = [-0.21, 0.76]
    at = lesson.facts(lesson.shown)[0]
    assert at.total < 0.8 * lowest
    x = lesson.shown.numbers.flat
    left, right = float(x.median() - x.min()), float(x.max() - x.median())
    assert right > 3 * left  # ends abruptly on the left, trails off on the right


# ------------------------------------------------------------------------------------ to break it


@pytest.mark.parametrize(
    ("shape", "fill"),
    [
        ((7, 13), None),
        ((1, 8), None),
        ((8, 1), None),
        ((1, 1), None),
        ((3, 8), 0.0),
        ((1, 1), 0.3),
        ((3, 8), -2.0),
        ((8, 1), 0.0),
    ],
)
def test_odd_shapes_and_constant_weights_open(lesson, tmp_path, shape, fill):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    if fill is not None:
        weight.fill_(fill)
    save_file({"a.weight": weight}, tmp_path / "odd.safetensors")
    lesson.source_control.value = str(tmp_path / "odd.safetensors")
    lesson.open_button.click()
    assert lesson.status.kind == "", lesson.status.text
    for form in (0, 1):
        lesson.affine.levels.index = form
        for i in range(len(lesson.affine.unit.options)):
            lesson.affine.unit.index = i
            assert lesson.status.kind == "", lesson.status.text
        assert not any("nan" in text.lower() for text in lesson.caption.texts)
        assert not any("nan" in text.lower() for text in lesson.curves.summaries)
    lesson.bundled_button.click()
    assert lesson.status.kind == ""


def test_what_a_system_refuses_is_said_and_the_page_stays(lesson, tmp_path):
    save_file({"a.weight": torch.full((4, 16), 0.3)}, tmp_path / "constant.safetensors")
    lesson.source_control.value = str(tmp_path / "constant.safetensors")
    lesson.open_button.click()
    lesson.affine.levels.index = 1
    table = {row["label"]: row["cells"] for row in lesson.systems.tables[1].frames[0]}
    assert table["Optimum Quanto"][0] == "no rule for such numbers"
    assert "1 has no rule for them" in lesson.systems.texts[1].text
    before = list(lesson.caption.texts)
    lesson.fields["convention"].set("quanto")
    assert lesson.status.kind == "error" and "constant" in lesson.status.text
    assert lesson.caption.texts == before
    assert lesson.fields["convention"].text == "compressed_tensors"
    lesson.bundled_button.click()


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e38])
def test_tiny_and_huge_weights(lesson, tmp_path, size):
    weight = torch.rand(4, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    save_file({"a.weight": weight * size}, tmp_path / "sized.safetensors")
    before = list(lesson.caption.texts)
    lesson.source_control.value = str(tmp_path / "sized.safetensors")
    lesson.open_button.click()
    if lesson.status.kind == "error":
        assert size == 3e38 and "large" in lesson.status.text
        assert lesson.caption.texts == before
    else:
        assert all(CAPTION.fullmatch(text) for text in lesson.caption.texts)
    lesson.bundled_button.click()


def test_weights_that_are_not_finite_are_said(lesson, tmp_path):
    weight = torch.randn(4, 32)
    weight[1, 2] = float("nan")
    save_file({"a.weight": weight}, tmp_path / "bad.safetensors")
    before = list(lesson.caption.texts)
    lesson.source_control.value = str(tmp_path / "bad.safetensors")
    lesson.open_button.click()
    assert lesson.status.kind == "error" and "finite" in lesson.status.text
    assert lesson.caption.texts == before and lesson.source is None
    lesson.affine.unit.index = 0  # all weights of the layer
    lesson.open_button.click()
    assert lesson.status.kind == "error" and "finite" in lesson.status.text


def test_gate_activations_are_offered_where_there_is_a_gate(lesson):
    assert "gate" in lesson.fields["look"].names
    lesson.go({"layer": SMALL})
    assert "gate" not in lesson.fields["look"].names
    with pytest.raises(ValueError, match="look"):
        lesson.go({"layer": SMALL, "look": "gate"})


def test_the_code_gives_the_page_in_every_state(lesson):
    for state in [*STATES, {"kept": "by hand", "ends": "-0.1, 0.2"}]:
        lesson.go(state)
        i = -1 if state.get("kept") else 40
        names: dict[str, object] = {}
        exec(lesson.code.texts[i], names)
        codes = lesson.shown.frames.follow(lesson.shown.numbers.flat).code[i]
        assert torch.equal(names["q"].codes[0].float(), codes)


def test_what_the_notebook_says():
    """Numbers in its prose."""
    assert min(float(gate_activations(f"model.layers.{k}.mlp.up_proj").min()) for k in (0, 3)) > (
        -0.28
    )
    assert pytest.approx(0.2, abs=0.02) == 1 - 0.9**2  # "by almost a fifth"
