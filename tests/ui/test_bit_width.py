"""Lesson 1 without a browser: what stands on the page is what the library computes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import qviz
from qviz.core import metrics
from qviz.methods.affine import CONVENTIONS
from qviz.models.capture import load_calibration
from qviz.ui.figures.bit_width import error_curves
from qviz.ui.views.bit_width import BITS, BitWidthLesson
from qviz.ui.views.gptq import GptqLesson
from qviz.ui.views.layer_page import FIRST_LAYER, short_names
from qviz.ui.views.spacing import SYSTEMS, recipe, spacing, system
from qviz.ui.widgets import number

LAYER = "model.layers.0.self_attn.k_proj"  # a small one: every control computes it anew


@pytest.fixture(scope="module")
def shared() -> BitWidthLesson:
    return BitWidthLesson(layer=LAYER)


@pytest.fixture
def lesson(shared: BitWidthLesson) -> BitWidthLesson:
    """The lesson in its first state; building it anew for each test would take seconds."""
    shared.go({"bits": "4"})
    return shared


def choose(control, name):
    control.index = list(control.options).index(name)


def choose_convention(lesson, name):
    lesson.fields["convention"].set(name)


def rows(table):
    return {row["label"]: row["texts"] for row in table.rows}


def test_opens_on_the_bundled_model(lesson):
    assert BitWidthLesson.first_layer == FIRST_LAYER and lesson.layer == LAYER
    assert torch.equal(lesson.shown.weight, qviz.load_layer(None, LAYER).float())
    assert lesson.bits == 4
    assert lesson.status.kind == ""


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("unit", ["matrix", "row", "group of 32"])
def test_what_is_shown_is_what_the_library_computes(lesson, scheme, unit):
    choose(lesson.affine.levels, scheme)
    choose(lesson.affine.unit, unit)
    w = lesson.shown.weight
    calibration = load_calibration(None, LAYER)
    kind, size = {"matrix": ("tensor", None), "row": ("channel", None)}.get(unit, ("group", 32))
    row, column = lesson.pictures.original.cursor
    for i, bits in enumerate(BITS):
        q = qviz.quantize(
            w, bits=bits, symmetric=scheme == "symmetric", granularity=kind, group_size=size,
            scale_dtype=torch.float16,
        )  # fmt: skip
        r = q.dequantize()
        assert lesson.pictures.rounded.values_at(row, column)[i] == r[row, column].item()
        assert lesson.pictures.error.values_at(row, column)[i] == (w - r)[row, column].item()
        measured = lesson.shown.rows[unit][i]
        assert measured["output_error"] == pytest.approx(
            metrics.output_error(w, r, calibration), rel=1e-5
        )
        assert measured["relative_error"] == metrics.compare(w, r).relative_error
        assert rows(lesson.ledger_table)["bits per weight"][i] == f"{q.bits_per_weight:.4g}"
        assert rows(lesson.cell_table)["code q"][i].startswith(
            str(int(q.codes[row, column])).replace("-", "−")
        )
        assert f"{bits} bits:" in lesson.caption.texts[i]


def test_the_cursor_brings_that_weights_arithmetic(lesson):
    assert not lesson.pictures.original.pinned  # pointing is enough from the start
    lesson.pictures.original.cursor = [3, 200]
    assert all("weight 3, 200:" in text for text in lesson.histogram.summaries)
    table = rows(lesson.cell_table)
    assert table["row, column"] == ["3, 200"]
    x = lesson.shown.weight[3, 200].item()
    for i in range(len(BITS)):
        back = float(table["reconstruction x̂"][i].replace("−", "-"))
        error = float(table["error x − x̂"][i].replace("−", "-"))
        assert back + error == pytest.approx(x, abs=1e-3 * max(abs(x), abs(back)))


def test_every_kind_of_layer_opens(lesson):
    kinds = {name.rpartition(".")[2]: i for i, name in enumerate(lesson.layers)}
    assert len(kinds) == 7  # q, k, v, o, gate, up, down
    for i in kinds.values():
        lesson.layer_control.index = i
        assert lesson.status.kind == "", lesson.status.text
        assert tuple(lesson.pictures.original.shape) == tuple(lesson.shown.weight.shape)


def test_conventions_follow_the_scheme(lesson):
    choose(lesson.affine.levels, "asymmetric")
    names = lesson.fields["convention"].names
    assert "hqq" in names
    assert "absmax" not in names
    for name in names:
        choose_convention(lesson, name)
        assert lesson.status.kind == "", lesson.status.text
        assert lesson.shown.tensors[0].info["convention"] == name
    choose(lesson.affine.levels, "symmetric")
    assert lesson.fields["convention"].text == "compressed_tensors"


def test_bad_sources_are_said_in_words_and_nothing_is_lost(lesson, tmp_path):
    before = lesson.caption.texts
    for source, says in [
        ("", "type a Hub id"),
        (str(tmp_path), "safetensors"),
        (str(tmp_path / "nowhere"), "nowhere"),
    ]:
        lesson.source_control.value = source
        lesson.open_button.click()
        assert lesson.status.kind == "error"
        assert says in lesson.status.text
        assert lesson.caption.texts == before
        assert lesson.source is None
    choose(lesson.affine.unit, "row")
    assert lesson.status.kind == ""


def test_own_layer_from_a_file(lesson, tmp_path):
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    save_file({"block.fc.weight": weight.half()}, tmp_path / "mine.safetensors")
    lesson.source_control.value = str(tmp_path / "mine.safetensors")
    lesson.open_button.click()
    assert lesson.status.kind == "", lesson.status.text
    assert torch.equal(lesson.shown.weight, weight.half().float())
    assert lesson.shown.calibration is None
    assert lesson.metric_control.disabled
    assert lesson.affine.unit.options == ["matrix", "row", "group of 32", "group of 16"]
    assert "output" not in lesson.caption.texts[0]
    lesson.bundled_button.click()
    assert lesson.layer == FIRST_LAYER
    assert not lesson.metric_control.disabled


def test_a_layer_that_float16_scales_cannot_hold_is_an_error_in_words(lesson, tmp_path):
    save_file({"fc.weight": torch.randn(8, 64) * 1e-9}, tmp_path / "tiny.safetensors")
    lesson.source_control.value = str(tmp_path / "tiny.safetensors")
    lesson.open_button.click()
    assert lesson.status.kind == "error"
    assert "scale" in lesson.status.text
    choose(lesson.affine.dtype, "float32")
    lesson.open_button.click()
    assert lesson.status.kind == ""
    assert lesson.pictures.original.shape == [8, 64]
    choose(lesson.affine.dtype, "float16")  # goes back: the pictures show float32's
    assert lesson.status.kind == "error"
    assert lesson.affine.dtype.value == "float32"
    assert_agrees(lesson)
    lesson.bundled_button.click()
    choose(lesson.affine.dtype, "float16")
    assert lesson.status.kind == ""


def assert_agrees(lesson):
    """Controls, code, pictures and numbers are about the same weight and the same options."""
    weight = qviz.load_layer(lesson.source, lesson.layer).float()
    q = qviz.quantize(weight, bits=lesson.bits, **lesson.affine.options)
    assert torch.equal(lesson.shown.weight, weight)
    assert torch.equal(lesson.shown.tensors[lesson.bits_control.index].codes, q.codes)
    assert lesson.pictures.original.shape == lesson.pictures.error.shape == list(weight.shape)
    names: dict[str, object] = {}
    exec(lesson.code.texts[lesson.bits_control.index], names)
    assert torch.equal(names["q"].codes, q.codes)
    for metric in (1, 0 if lesson.shown.calibration is not None else 1):
        lesson.metric_control.index = metric  # raises where a chosen curve is missing


def test_a_layer_that_cannot_be_computed_leaves_the_page_as_it_was(lesson, tmp_path):
    good = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    bad = good.clone()
    bad[3, 4] = float("nan")
    path = tmp_path / "my weights.safetensors"
    save_file({"bad.weight": bad}, path)
    before = lesson.caption.texts
    lesson.source_control.value = str(path)
    lesson.open_button.click()
    assert "not finite" in lesson.status.text
    assert lesson.caption.texts == before
    assert_agrees(lesson)

    save_file({"a.weight": good, "b.weight": bad, "c.weight": -good}, path)
    lesson.open_button.click()
    assert lesson.status.kind == ""
    lesson.layer_control.index = 1
    assert "not finite" in lesson.status.text
    assert lesson.layer == "a"
    assert_agrees(lesson)
    path.rename(tmp_path / "away.safetensors")
    lesson.layer_control.index = 2
    assert str(path) in lesson.status.text
    assert lesson.layer == "a"
    lesson.bundled_button.click()
    assert_agrees(lesson)


def test_a_curve_that_cannot_be_computed_is_missing_and_said(lesson, tmp_path):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    weight[2] = 0.0  # torchao has no scale in float16 for a row of zeros
    save_file({"a.weight": weight}, tmp_path / "zeros.safetensors")
    lesson.source_control.value = str(tmp_path / "zeros.safetensors")
    lesson.open_button.click()
    choose(lesson.affine.unit, "matrix")
    choose_convention(lesson, "torchao")
    assert "row is not on the chart" in lesson.status.text
    assert lesson.fields["convention"].text == "torchao"
    assert_agrees(lesson)
    choose(lesson.affine.unit, "row")
    assert lesson.status.kind == "error"
    assert lesson.affine.unit.value == "matrix"
    choose_convention(lesson, "compressed_tensors")
    lesson.bundled_button.click()


def test_a_defect_is_said_in_the_page_and_stays_loud(lesson, monkeypatch):
    def broken(*_args, **_options):
        raise KeyError("broken")

    monkeypatch.setattr("qviz.ui.views.bit_width.affine", broken)
    with pytest.raises(KeyError):
        choose(lesson.affine.levels, "asymmetric")
    monkeypatch.undo()
    assert lesson.status.kind == "error"
    assert "defect" in lesson.status.text
    assert lesson.affine.levels.value == "symmetric"
    assert_agrees(lesson)


@pytest.mark.parametrize("shape", [(7, 13), (1, 64), (64, 1), (1, 1)])
@pytest.mark.parametrize("fill", [None, 0.0, 0.3])
def test_odd_shapes_and_constant_weights_open(lesson, tmp_path, shape, fill):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    if fill is not None:
        weight.fill_(fill)
    save_file({"a.weight": weight}, tmp_path / "odd.safetensors")
    lesson.source_control.value = str(tmp_path / "odd.safetensors")
    lesson.open_button.click()
    for scheme in ("asymmetric", "symmetric"):
        choose(lesson.affine.levels, scheme)
        for unit in list(lesson.affine.unit.options):
            choose(lesson.affine.unit, unit)
            assert lesson.status.kind == "", lesson.status.text
        assert_agrees(lesson)
        assert not any("nan" in text for text in lesson.caption.texts)


def test_the_prediction_is_judged_by_the_curve(lesson):
    errors = {
        b: row["output_error"]
        for b, row in zip(BITS, lesson.shown.rows["group of 128"], strict=True)
    }
    fewest = min(b for b in BITS if errors[b] <= 0.10)
    choose(lesson.prediction.control, f"{fewest} bits")
    assert lesson.prediction.verdict.texts[0].startswith("Right.")
    choose(lesson.prediction.control, "2 bits")
    assert f"The fewest bits that do are {fewest}" in lesson.prediction.verdict.texts[0]
    lesson.prediction.control.index = 0
    assert lesson.prediction.verdict.texts == [""]


def test_the_code_on_the_page_runs_and_gives_the_page(lesson):
    choose(lesson.affine.unit, "group of 64")
    names: dict[str, object] = {}
    exec(lesson.code.texts[1], names)  # the page's own text, 3 bits
    assert torch.equal(names["q"].codes, lesson.shown.tensors[1].codes)


def test_the_histogram_counts_every_weight(lesson):

    figure = json.loads(lesson.histogram.figures)[0]
    spot = figure["data"][0]["y"]
    counts = np.frombuffer(
        lesson.histogram.buffers, np.dtype(spot["qv"]), int(np.prod(spot["shape"])), spot["at"]
    )
    assert counts.sum() == lesson.shown.weight.numel()


def test_the_marked_point_has_room_for_its_label():
    errors = [0.4 / 2.1**b for b in range(len(BITS))]
    figure = error_curves(BITS, {"matrix": [2 * e for e in errors], "row": errors}, "row")
    low, high = figure.layout.yaxis.range
    assert low < np.log10(100 * errors[-1]) - 0.2 * (high - low) + 0.1
    assert high > np.log10(200 * errors[0])
    assert figure.frames[0].data[0].text[0] == "<b>40 %</b>"
    error_curves(BITS, {"row": [0.0] * len(BITS)}, "row")  # nothing to take a logarithm of


def test_short_names():
    assert short_names(["model.a.x", "model.b.x"]) == ["a.x", "b.x"]
    assert short_names(["model.layers.0.q", "model.layers.1.q"]) == ["layers.0.q", "layers.1.q"]
    assert short_names(["fc"]) == ["fc"]
    assert short_names(["a.b", "a.b.c"]) == ["b", "b.c"]


def lines_drawn(lesson):
    return [trace.get("visible", True) for trace in json.loads(lesson.curves.figures)[0]["data"]]


def test_the_curves_do_not_give_the_prediction_away():
    """Until the learner has predicted or dragged, only the point of the moment is on the chart."""
    lesson = BitWidthLesson()
    assert lesson.bits == 8
    assert lines_drawn(lesson).count(True) == 1
    choose(lesson.prediction.control, "3 bits")
    assert all(lines_drawn(lesson))
    assert lesson.prediction.verdict.texts[0]


def test_a_large_layer_is_not_compared_with_everything(lesson, tmp_path, monkeypatch):
    monkeypatch.setattr("qviz.ui.views.bit_width.COMPARE_UP_TO", lesson.shown.weight.numel() - 1)
    choose(lesson.affine.levels, "asymmetric")
    assert list(lesson.shown.rows) == ["group of 128"]
    assert "only after you choose them" in lesson.note.text
    choose(lesson.affine.unit, "row")
    assert list(lesson.shown.rows) == ["group of 128", "row"]
    monkeypatch.undo()
    choose(lesson.affine.levels, "symmetric")
    assert lesson.note.text == ""
    assert len(lesson.shown.rows) >= 4


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_spacing_shown_is_the_one_that_the_library_made(symmetric):
    """Range over divisor, for each system and bit-width, on groups of all kinds."""
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(6, 64, generator=generator)
    w[1] = w[1].abs()
    w[2] = -w[2].abs()
    w[3] += 4
    divided = 0
    for name, convention in CONVENTIONS.items():
        made = recipe(name, symmetric)
        if (convention.symmetric if symmetric else convention.asymmetric) is None:
            assert made is None, name
            continue
        assert system(name, symmetric).startswith(SYSTEMS[name][0])
        for bits in BITS:
            q = qviz.quantize(
                w, "affine", bits=bits, symmetric=symmetric, convention=name, group_size=32
            )
            for row, column in [(0, 0), (1, 40), (2, 3), (3, 33), (5, 63)]:
                group = w[row, column // 32 * 32 : column // 32 * 32 + 32]
                low, high, scale = (
                    float(group.min()), float(group.max()), float(q.grid.scale[row, column // 32])
                )  # fmt: skip
                text = spacing(name, symmetric, bits, low, high, scale)
                if made is not None:
                    assert made.range(low, high) / made.divisor(bits) == pytest.approx(
                        scale, rel=1e-5
                    )
                    assert text.endswith(f"= {number(scale, 3)}") and "÷" in text
                    divided += 1
                else:
                    assert text == number(scale, 3)
    assert divided > 100
    assert spacing("absmax", True, 4, 0.0, 0.0, 1e-5 / 7) == number(1e-5 / 7, 3)  # a floor


def test_bits_cost_the_same_in_both_lessons(lesson):
    """For the same options, item by item, with the scale's type named."""
    lesson.go({"bits": "3", "convention": "gptq", "layer": "model.layers.0.self_attn.o_proj"})
    other = GptqLesson(layer="model.layers.0.self_attn.o_proj")
    here = {k: v[lesson.bits_control.index] for k, v in rows(lesson.ledger_table).items()
            if len(v) > 1}  # fmt: skip
    there = {k: v[0] for k, v in rows(other.cost_table).items()}
    assert here == {k: there[k] for k in here}
    assert here["scales (float16)"] == "0.125" and here["bits per weight"] == "3.148"


def test_another_layer_is_another_question(lesson):
    lesson.prediction.control.index = 2
    assert lesson.prediction.revealed and lesson.prediction.verdict.texts[0]
    lesson.layer_control.index = 0
    assert not lesson.prediction.revealed
    assert lesson.prediction.verdict.texts == [""]
    assert lines_drawn(lesson).count(True) == 1
