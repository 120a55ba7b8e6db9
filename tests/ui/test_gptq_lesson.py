"""Lesson 7 without a browser: what stands on the page is what the library computes."""

import json
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import qviz
from qviz.methods.gptq import gptq
from qviz.models.capture import load_calibration
from qviz.study.gptq_contrasts import CONTRASTS
from qviz.ui.figures.gptq import column_codes, errors_so_far, exchange
from qviz.ui.views.gptq import GptqLesson
from qviz.ui.views.gptq_controls import HELD, NOTHING, SAME_TEXT
from qviz.ui.views.gptq_equation import EQUATION, LINES, LIT, MISPRINTS, MOMENTS, TERMS, formulas
from qviz.ui.views.gptq_words import sentence, story_rows
from qviz.ui.views.layer_texts import OWN_TEXT
from qviz.ui.widgets import Text, number

LAYER = "model.layers.0.self_attn.o_proj"  # 256 × 256: quick


@pytest.fixture(scope="module")
def shared() -> GptqLesson:
    return GptqLesson(layer=LAYER)


@pytest.fixture
def lesson(shared: GptqLesson) -> GptqLesson:
    """The lesson in its first state; building it anew for each test would take seconds."""
    shared.go({})
    for view in (shared.pictures.now_view, *shared.pictures.pair_views):
        view.pinned, view.cursor = False, [-1, -1]
    shared.prediction.reset()
    shared._draw_errors()
    return shared


def choose(control, name):
    control.index = list(control.options).index(name)


def rows(table):
    return {row["label"]: row["texts"][0] for row in table.rows}


def shown(view):
    """The exact value under the cursor, of the step that the view shows."""
    assert view.readout["frame"] == view.frame
    return float(view.readout["text"].replace("−", "-"))


def contrast(lesson, name):
    lesson.run.beside.index = lesson.run.beside_names.index(name)


def errors(lesson):
    """name → the last value of each curve of the error chart, in percent, from the summary."""
    text = lesson.pictures.errors.summaries[0].partition(": ")[2]
    return {p.split(" ends at ")[0]: p.split(" ends at ")[1] for p in text.split("; ")}


def test_opens_on_the_layer_at_its_first_step(lesson):
    assert lesson.layer == LAYER
    assert lesson.step == 0
    assert lesson.transport.n == 257  # before each of the columns, and after the last
    assert lesson.status.kind == ""
    assert lesson.shown.first.result.granularity.group_size == 128
    assert "layers.0.self_attn.o_proj" in lesson.layer_control.options


def test_codes_are_those_of_the_library(lesson):
    for act_order, bits, scheme in [(False, "2", "symmetric"), (True, "4", "asymmetric")]:
        lesson.run.order.index = int(act_order)
        choose(lesson.run.bits, bits)
        choose(lesson.run.scheme, scheme)
        q = gptq(
            qviz.load_layer(None, LAYER).float(), load_calibration(None, LAYER), bits=int(bits),
            symmetric=scheme == "symmetric", group_size=128, act_order=act_order,
            scale_dtype=torch.float16,
        )  # fmt: skip
        assert torch.equal(lesson.shown.first.result.codes, q.codes)
        assert lesson.shown.first.result.info["loss"] == q.info["loss"]


def test_errors_are_those_of_the_true_inputs(lesson):
    """The last point of the curve, from the outputs themselves."""
    lesson.transport.index = 1  # the curve is drawn
    judge = load_calibration(None, LAYER, text="heldout_python")
    w = qviz.load_layer(None, LAYER).double()
    lost = w - lesson.shown.first.result.dequantize().double()
    h = judge.hessian.double()
    true = float(((lost @ h * lost).sum() / (w @ h * w).sum()).sqrt())
    assert lesson.shown.first.error[-1] == pytest.approx(true, rel=1e-4)
    assert errors(lesson)["GPTQ"] == f"{100 * true:.3g} %"


def test_curves_are_hidden_until_a_guess_or_a_step(lesson):
    assert set(errors(lesson)) == {"round to nearest"}
    lesson.prediction.control.index = 1
    assert set(errors(lesson)) == {"round to nearest", "GPTQ"}
    share = lesson.shown.first.error[-1] / lesson.shown.first.rtn_error[-1]
    assert f"{100 * share:.3g} %" in lesson.prediction.verdict.texts[0]
    assert lesson.prediction.verdict.texts[0].startswith("Not quite")  # GPTQ wins on this layer
    right = next(i for i, (low, _) in enumerate([(1.0, 0), (0.75, 0), (0.5, 0), (0.25, 0), (0, 0)])
                 if share >= low)  # fmt: skip
    lesson.prediction.control.index = right + 1
    assert lesson.prediction.verdict.texts[0].startswith("Right")


def test_each_moment_says_the_numbers_of_its_step(lesson):
    lesson.transport.index = 140
    first, (row, column) = lesson.shown.first, lesson.chosen.cell
    assert column == int(first.perm[140]) == 140
    story = first.story(row, column)
    said = {}
    for moment in MOMENTS:
        choose(lesson.moment_control, moment)
        said[moment] = lesson.transport.caption
        assert f"Step 140, column 140, row {row}" in said[moment]
    assert "set at step 128" in said["levels"]
    assert f"code {story.code}" in said["round"]
    assert f"{story.diagonal:.3g}" in said["divide"]
    assert "the 115 waiting weights move" in said["pass on"]
    assert f"w/s + z = {number(story.position)}" in said["round"]
    table = rows(lesson.story.table)
    assert table["its turn"] == "step 140, now"
    assert table["code q"].startswith(str(story.code))
    lesson.transport.index = 256
    assert "All 256 columns are rounded" in lesson.transport.caption


def test_every_moment_of_every_kind_of_run_can_be_said(lesson):
    """First, last and inner steps; groups found beforehand; clipped weights; dead columns."""
    for static, order in [(0, 0), (1, 1)]:
        lesson.run.static.index, lesson.run.order.index = static, order
        walk = lesson.shown.first
        for step in (0, 127, 128, 255, 256):
            for moment in MOMENTS:
                assert sentence(walk, step, moment, 3)
            assert story_rows(walk, walk.story(3, min(step, 255)), step)
    choose(lesson.run.unit, "row")
    assert "whole row shares one scale" in sentence(lesson.shown.first, 9, "levels", 0)
    contrast(lesson, "dead_channel")
    dead = lesson.shown.second.result.info["dead_columns"][0]
    labels = [
        label
        for label, _, _ in story_rows(lesson.shown.second, lesson.shown.second.story(0, dead), 0)
    ]
    assert "its input was always 0" in labels


def test_the_cell_follows_the_steps_until_it_is_held(lesson):
    lesson.transport.index = 10
    assert lesson.chosen.cell[1] == 10
    lesson.pictures.now_view.cursor = [7, 200]
    assert lesson.chosen.cell == (7, 200)
    assert rows(lesson.story.table)["row, column"] == "7, 200"
    assert rows(lesson.story.table)["its turn"] == "step 200, waiting"
    lesson.pictures.now_view.pinned = True
    for step in (0, 1, 100, 200):
        lesson.transport.index = step
        said = rows(lesson.story.table)[f"now, moved {step}×"]
        now = float(lesson.shown.first.now(step)[7, 200])
        assert float(said.replace("−", "-")) == pytest.approx(now, rel=1e-3, abs=1e-6)
    lesson.transport.index = 210
    assert rows(lesson.story.table)["now, rounded"] == rows(lesson.story.table)["ŵ"]
    assert lesson.chosen.cell == (7, 200)
    assert rows(lesson.story.table)["its turn"] == "step 200, done"
    lesson.pictures.now_view.pinned = False
    lesson.transport.index = 211
    assert lesson.chosen.cell == (7, 211)


def test_with_act_order_the_picture_goes_by_steps(lesson):
    lesson.run.order.index = 1
    walk = lesson.shown.first
    lesson.pictures.now_view.cursor = [2, 0]
    assert lesson.chosen.cell == (2, int(walk.perm[0]))
    for step in (0, 100, 256):
        lesson.transport.index = step
        lesson.pictures.now_view.frame = step
        lesson.pictures.now_view.cursor = [5, 130]
        assert shown(lesson.pictures.now_view) == pytest.approx(
            float(walk.now(step)[5, 130]), rel=1e-4, abs=1e-7
        )


def test_a_second_run_stands_beside_the_first(lesson):
    contrast(lesson, "act_order")
    a, b = lesson.shown.first, lesson.shown.second
    assert not a.options["act_order"]
    assert b.options["act_order"]
    assert "qv-gone" in lesson.pictures.single._dom_classes
    assert "qv-gone" not in lesson.pictures.pair._dom_classes
    lesson.transport.index = 90
    for view in (*lesson.pictures.pair_views, lesson.pictures.between_view):
        view.frame = 90  # the browser's link does this
        view.cursor = [4, 77]
    seen = [shown(view) for view in (*lesson.pictures.pair_views, lesson.pictures.between_view)]
    true = [float(w.now(90)[4, int(w.turn[77])]) for w in (a, b)]
    assert seen[:2] == pytest.approx(true, rel=1e-4, abs=1e-7)
    assert seen[2] == pytest.approx(true[0] - true[1], rel=1e-3, abs=1e-6)
    assert {"first run", "second run"} <= set(errors(lesson))
    both = (a.turn < 90) & (b.turn < 90)
    step = torch.stack([torch.tensor(a.column(int(t)).scale) for t in a.turn], 1)[:, both]
    apart = (a.result.dequantize()[:, both] - b.result.dequantize()[:, both]).abs() / step
    share = (apart > 0.499).double().mean()
    assert f"{100 * share:.3g} % differ by s/2" in lesson.transport.caption
    assert lesson.beside.title.text == "Second run: Act-order"
    choose(lesson.run.beside, NOTHING)
    assert lesson.shown.second is None
    assert "qv-gone" in lesson.pictures.pair._dom_classes


@pytest.mark.parametrize("name", [c.name for c in CONTRASTS])
def test_every_contrast_can_be_chosen(lesson, name):
    if name not in lesson.run.beside_names:
        choose(lesson.run.unit, "group of 32")  # groups inside a block can be stale
    contrast(lesson, name)
    assert lesson.status.kind == "", lesson.status.text
    assert lesson.shown.second is not None
    assert lesson.beside.diagnosis.texts[0]
    assert lesson.run.beside_name == name


@pytest.mark.parametrize("variant", list(MISPRINTS))
def test_a_misprint_stands_in_the_equation(lesson, variant):
    """Instead of the right lines, marked at every moment, and only while its run is shown."""
    true, wrong = formulas(), formulas(variant)
    contrast(lesson, variant)
    assert lesson.shown.second.options["variant"] == variant
    assert lesson.equation.mathml == wrong.mathml != true.mathml
    assert all("wrong" in lit for lit in lesson.equation.actives)
    meaning, lines = MISPRINTS[variant]
    for name, (formula, spoken) in lines.items():
        assert 'data-term="wrong"' in formula and formula in lesson.equation.mathml
        assert LINES[name][0] not in lesson.equation.mathml
        assert spoken in lesson.equation.aria
        assert LINES[name][1] not in lesson.equation.aria
    assert lesson.equation.terms["wrong"] == meaning
    assert meaning in lesson.formulas.note.text
    choose(lesson.run.beside, NOTHING)
    assert lesson.equation.mathml == true.mathml == EQUATION
    assert lesson.formulas.note.text == "" and lesson.equation.actives == true.actives


def test_other_settings_leave_the_page_at_its_step_and_weight(lesson):
    lesson.transport.index = 70
    lesson.pictures.now_view.cursor = [9, 90]
    lesson.pictures.now_view.pinned = True
    choose(lesson.run.bits, "2")
    assert lesson.step == 70
    assert rows(lesson.story.table)["row, column"] == "9, 90"
    assert "of 0 … 3" in rows(lesson.story.table)["code q"]
    choose(lesson.layer_control, "layers.0.self_attn.k_proj")
    assert lesson.step == 0


def test_a_run_can_be_kept_and_compared_with(lesson):
    kept = lesson.shown.first
    lesson.keeping.button.click()
    assert lesson.run.beside.value == HELD
    choose(lesson.run.bits, "5")
    assert lesson.shown.second is kept
    assert lesson.shown.first.options["bits"] == 5
    assert "Bits 5 beside 3." in lesson.beside.diagnosis.texts[0]


def test_tokens_and_texts(lesson):
    assert lesson.run.tokens.options[:2] == ["16", "64"]
    full = lesson.shown.first
    choose(lesson.run.tokens, "64")
    assert lesson.shown.first.calibration.tokens == 64
    assert lesson.shown.first.error[-1] > full.error[-1]
    choose(lesson.run.text, "numbers")
    assert lesson.shown.first.calibration.source == "numbers"
    assert lesson.shown.first.calibration.tokens == 64  # as chosen
    choose(lesson.run.judge, SAME_TEXT)
    assert lesson.shown.first.judge.source == "numbers"
    assert lesson.shown.first.judge.tokens > 64


def test_own_text(lesson):
    lesson.texts.own_button.click()
    assert lesson.status.kind == "error"
    assert "type or paste some text" in lesson.status.text
    lesson.texts.own_control.value = "for x in range(10): print(x) " * 20
    lesson.texts.own_button.click()
    assert lesson.status.kind == "", lesson.status.text
    assert lesson.run.text.value == OWN_TEXT
    assert lesson.shown.first.calibration.source == "your text"
    assert OWN_TEXT in lesson.run.judge.options


def test_the_kept_run_says_all_that_is_different(lesson):
    lesson.keeping.button.click()
    assert "still the same" in lesson.beside.diagnosis.texts[0]
    lesson.run.damp.index, lesson.run.order.index = 0, 1
    lesson.run.unit.index = 0
    choose(lesson.run.tokens, "64")
    choose(lesson.run.judge, SAME_TEXT)
    said = lesson.beside.diagnosis.texts[0]
    assert "act-order on beside off" in said
    assert "amping 0 % beside 1 %" in said
    assert "cale per row beside group of 128" in said
    assert "calibrated on 64 tokens of python beside" in said
    assert "tokens of held-out python" in said


def test_the_kept_run_is_let_go_with_its_layer(lesson):
    lesson.keeping.button.click()
    choose(lesson.layer_control, "layers.0.self_attn.k_proj")
    assert lesson.shown.second is None
    assert lesson.run.beside.value == NOTHING
    assert HELD not in lesson.run.beside.options


def test_a_contrast_without_meaning_gives_way_to_the_setting(lesson):
    contrast(lesson, "fewer_bits")
    choose(lesson.run.bits, "2")
    assert lesson.status.kind == ""
    assert lesson.shown.first.options["bits"] == 2
    assert lesson.shown.second is None
    assert lesson.run.beside.value == NOTHING
    assert "“One bit fewer” does not apply" in lesson.note.text
    choose(lesson.run.bits, "4")
    assert lesson.note.text == ""


def test_the_same_levels_of_other_sums_are_not_called_different(lesson):
    choose(lesson.run.dtype, "float32")
    contrast(lesson, "block_size")
    lesson.transport.index = 256
    codes = lesson.shown.first.result.codes != lesson.shown.second.result.codes
    assert not torch.equal(
        lesson.shown.first.result.dequantize(), lesson.shown.second.result.dequantize()
    )  # float32 sums in another order
    share = f"{100 * codes.double().mean():.3g} % differ"
    assert share in lesson.transport.caption


def test_the_code_shown_measures_what_the_page_measures(lesson):
    lesson.transport.index = 100
    choose(lesson.run.bits, "4")
    scope = {}
    exec(lesson.code.texts[0].replace("walk.now(100), ", "result = "), scope)
    assert scope["result"][0] == lesson.shown.first.error[100]


def test_only_one_thing_is_done_at_a_time(lesson):
    """A control moved on another thread waits for what is being computed, and is not lost."""
    meanwhile = Thread(target=choose, args=(lesson.run.bits, "5"))
    with lesson.one_at_a_time, lesson.quietly():
        meanwhile.start()
        meanwhile.join(0.2)
        assert meanwhile.is_alive()
    meanwhile.join(20)
    assert lesson.shown.first.options["bits"] == 5


def test_block_size_is_about_speed_only(lesson):
    codes = lesson.shown.first.result.codes
    choose(lesson.run.block, "32")
    assert lesson.transport.events["block"] == list(range(0, 256, 32))
    differ = (lesson.shown.first.result.codes != codes).any(1)
    assert differ.float().mean() < 0.05  # rows that differ at a tie, if any


def test_what_was_adapted_is_said(lesson):
    choose(lesson.run.damp, "0 %")
    choose(lesson.run.tokens, "64")
    assert "damping was raised to" in lesson.note.text


def test_an_unknown_model_leaves_everything_as_it_was(lesson, tmp_path):
    before = lesson.shown.first
    lesson.source_control.value = str(tmp_path)
    lesson.open_button.click()
    assert lesson.status.kind == "error"
    assert lesson.shown.first is before
    assert lesson.layer == LAYER
    choose(lesson.run.bits, "4")
    assert lesson.status.kind == ""


def test_a_layer_that_is_too_wide_is_refused_in_words(lesson, tmp_path):
    save_file({"wide.weight": torch.zeros(2, 9000)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="up to 8192"):
        lesson.open(str(tmp_path / "model.safetensors"))
    assert lesson.layer == LAYER


def test_the_learners_own_function_stands_beside_the_true_run():
    weight, inputs = qviz.load_layer(None, LAYER), load_calibration(None, LAYER)

    def mine(weight, hessian, bits, group_size):
        q = gptq(weight, inputs, bits=bits, group_size=group_size, variant="double_division")
        return q.codes

    report = qviz.step_through(mine, weight, inputs, bits=3, group_size=128)
    page = GptqLesson(attempt=report)
    assert page.step == report.first.step
    assert page.chosen.cell == (report.first.row, report.first.column)
    assert report.summary in page.beside.diagnosis.texts[0]
    assert {"GPTQ", "yours"} <= set(errors(page))
    assert "qv-gone" not in page.pictures.pair._dom_classes
    page.pictures.pair_views[1].frame = 256
    page.pictures.pair_views[1].cursor = [report.first.row, report.first.column]
    truth, row, column = page.shown.first, report.first.row, report.first.column
    scale = truth.grid.scale[row, column // 128]
    zero = truth.grid.zero_point[row, column // 128]
    assert shown(page.pictures.pair_views[1]) == pytest.approx(
        float(scale * (report.codes[row, column] - zero)), rel=1e-4
    )
    texts = [child.text for child in _texts_of(page.widget)]
    assert any("divided twice" in text or "double division" in text for text in texts)


def test_a_function_that_gives_nothing_is_told_on_the_page():
    weight, inputs = qviz.load_layer(None, LAYER)[:8], load_calibration(None, LAYER)
    page = GptqLesson(attempt=qviz.step_through(lambda w, h: None, weight, inputs))
    assert page.shown.second is None
    assert any("return" in child.text for child in _texts_of(page.widget))


def _texts_of(widget):
    """All Text widgets inside a page."""
    if isinstance(widget, Text):
        return [widget]
    return [text for child in getattr(widget, "children", ()) for text in _texts_of(child)]


def test_figures_hold_the_numbers_they_are_given():
    steps = np.arange(2)
    rtn, first = ("a", steps, np.array([0.0, 0.5])), ("b", steps, np.array([0.0, 0.2]))
    figure = errors_so_far({"rtn": rtn, "first": first})
    assert list(figure.data[1].y) == [0.0, 20.0]
    figure = column_codes(np.array([1.2, 6.9]), np.array([1, 7]), (0, 7), 1)
    assert list(figure.data[2].x) == [6.9, 6.9]
    assert list(figure.data[2].y) == [6.9, 7.0]
    figure = exchange(np.array([0.1, 0.2]), np.array([0.3]))
    assert list(figure.data[0].x) == [0, 1]
    assert list(figure.data[1].x) == [3]


def test_every_lit_term_is_in_the_equation():
    for name in [*TERMS, *(term for terms in LIT.values() for term in terms)]:
        assert f'data-term="{name}"' in EQUATION
