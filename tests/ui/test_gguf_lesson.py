"""Lesson 9 without a browser: what stands on the page is what llama.cpp writes and reads."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from said import holds, numbers_in

import qviz
from qviz.methods.gguf import LAYOUTS, encode
from qviz.study.gguf_types import importance_of
from qviz.study.gguf_walk import RowWalk
from qviz.ui.views.gguf import GgufLesson
from qviz.ui.views.gguf_encode import TYPES_OFFERED
from qviz.ui.views.gguf_guide import BESIDE, IMPORTANCE, NO_PASS, NOTHING, OUTLIER, PAIRS, UNREACHED
from qviz.ui.views.gguf_words import (
    ANSWERS,
)

LAYER = "model.layers.1.mlp.down_proj"
SMALL = "model.layers.0.self_attn.k_proj"
WHOLE = np.load(Path(__file__).parents[1] / "golden" / "gguf_layer.npz")


@pytest.fixture(scope="module")
def shared() -> GgufLesson:
    return GgufLesson()


@pytest.fixture
def lesson(shared: GgufLesson) -> GgufLesson:
    shared.go({})
    return shared


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return qviz.load_layer(None, LAYER).float()


def decoded(name, data):
    """By gguf-py."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(np.array(data, np.uint8)[None], GGMLQuantizationType[name])[0]


def kinds(part):
    return [first.kind for first, _ in part.shown.steps]


def cells(part, step):
    return {row["label"]: row["cells"] for row in part.pictures.cell_table.frames[step]}


def test_1024_super_blocks_reached_through_the_page_are_those_of_llama_cpp(lesson, weight):
    """Every block of the layer, as the page computes what it shows. The oracle is ggml's C code
    (llama-cpp-python 0.3.36), of whose bytes this is the SHA-256."""
    part, data = lesson.encode, []
    for row in range(256):
        for block in range(4):
            part.held = row, 256 * block + row
            shown = part.compute()
            assert (shown.row, shown.first) == (row, 256 * block)
            data.append(shown.walk.data)
            part.shown = shown  # as drawing does: the next block of the row is known
    part.shown = None
    lesson.go({})
    digest = hashlib.sha256(torch.cat(data).numpy().tobytes()).digest()
    assert len(data) == 1024 and digest == WHOLE["Q4_K/plain/256"].tobytes()


@pytest.mark.parametrize("name", TYPES_OFFERED)
def test_the_bytes_on_screen_are_the_encoders_with_and_without_importance(lesson, weight, name):
    part = lesson.encode
    per, size = LAYOUTS[name].weights, LAYOUTS[name].nbytes
    own = importance_of(qviz.load_calibration(None, LAYER))
    for row, column in ((7, 300), (255, 1023)):
        lesson.go({"type": name, "weight": f"{row}, {column}"})
        at = column // per * size
        want = encode(weight, name)[row, at : at + size].tolist()
        assert part.pictures.bytes.values == want and part.pictures.bytes.others == []
        assert part.pictures.bytes.written[-1] == size and part.pictures.bytes.written[0] == 0
        if IMPORTANCE in part.beside_control.options:
            lesson.go({"type": name, "weight": f"{row}, {column}", "beside": IMPORTANCE})
            weighed = encode(weight, name, importance=own)[row, at : at + size].tolist()
            assert part.pictures.bytes.values == want and part.pictures.bytes.others == weighed
        else:
            assert name in ("Q8_0", "MXFP4")


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q3_K", "Q4_1", "Q8_0"])
def test_everything_of_each_step_is_sent_ahead(lesson, name):
    part = lesson.encode
    lesson.go({"type": name})
    n = len(part.shown.steps)
    assert part.transport.n == len(part.transport.captions) == n
    assert len(part.pictures.code_view.summaries) == len(part.pictures.error_view.summaries) == n
    assert len(part.pictures.levels.summaries) == len(part.pictures.cell_table.frames) == n
    assert (
        len(part.pictures.bytes.written)
        == len(part.pictures.bytes.now)
        == len(part.pictures.equation.actives)
        == n
    )
    if len(part.shown.walk.fits) > 1:
        assert len(part.pictures.curve.summaries) == n
    assert part.shown.steps[-1][0].kind == "back"


@pytest.mark.parametrize("name", ["Q4_K", "Q2_K", "Q6_K", "Q4_0", "Q5_1"])
def test_the_words_at_the_end_are_about_the_bytes(lesson, weight, name):
    """How far off the block is, from gguf-py's reading of the bytes on screen."""
    part = lesson.encode
    lesson.go({"type": name, "beside": IMPORTANCE})
    shown = part.shown
    x = weight[shown.row, shown.first : shown.first + shown.walk.x.numel()].double().numpy()
    importance = importance_of(qviz.load_calibration(None, LAYER)).double().numpy()
    own = importance[shown.first : shown.first + len(x)]
    found = []
    for data in (part.pictures.bytes.values, part.pictures.bytes.others):
        e = decoded(name, data) - x
        found.append((np.sqrt((e**2).sum() / (x**2).sum()),
                      np.sqrt((own * e**2).sum() / (own * x**2).sum())))  # fmt: skip
    (a, aw), (b, bw) = found
    bits = 8 * len(part.pictures.bytes.values)
    assert sum(size for _, size, _ in part.pictures.bytes.sections) * 8 == bits
    text = part.transport.captions[-1]
    plain, beside = text.split(" Beside it")
    holds(plain, bytes=bits // 8, weights=len(x), off=a)
    same = f"{100 * a:.3g}" == f"{100 * b:.3g}"
    first, second = beside.split(" Weighted by the inputs")
    holds(first, off=b, ways={} if same else {"less/more": a - b},
          fixed=["as well"] if same else ["than the first run"])  # fmt: skip
    holds(second, bw=bw, aw=aw, ways={"less/more": aw - bw})
    assert aw > bw, "importance lowers what it weighs here"


def test_the_captions_of_the_search_follow_from_its_numbers(lesson, weight):
    """Recomputed from the weights alone, as make_qkx2_quants does it: codes in float32, where a
    weight may lie next to a tie, and all else in float64."""
    part = lesson.encode
    shown, group = part.shown, part.cell[0]
    x = weight[shown.row, shown.first + 32 * group :][:32].double().numpy()
    w = np.sqrt((x**2).mean()) + np.abs(x)
    low, high = min(x.min(), 0.0), x.max()
    s, m = (high - low) / 15, low
    error = (w * (s * np.clip(np.rint((x - low) / s), 0, 15) + m - x) ** 2).sum()
    at = kinds(part).index("start")
    holds(part.transport.captions[at], code=0, zero=0, top=15, spacing=s, minimum=m, error=error)
    best = error
    for k in range(21):
        t = 15 - 1 + 0.1 * k
        low = np.float32(m)
        iscale = np.float32(t) / (np.float32(high) - low)
        q = np.clip(np.rint(iscale * (x.astype(np.float32) - low)), 0, 15).astype(np.float64)
        a = np.stack([q, np.ones(32)], 1) * np.sqrt(w)[:, None]
        s_, m_ = np.linalg.lstsq(a, x * np.sqrt(w), rcond=None)[0]
        error = (w * (s_ * q + m_ - x) ** 2).sum()
        kept = error < best * (1 - 1e-6)
        numbers = {"number": k + 1, "count": 21, "tried": t, "plain": 15, "scale": s_,
                   "minimum": m_, "error": error}  # fmt: skip
        same = abs(error / best - 1) < 1e-6
        if not same:
            numbers["change"] = abs(error / best - 1)
        holds(part.transport.captions[at + 1 + k], **numbers,
              ways={"below the best so far/above the best so far/as the best so far":
                    0 if same else best - error,
                    "It is kept./It is dropped.": kept})  # fmt: skip
        if kept:  # the next tries are counted from it, in float32
            best, m = error, float(shown.walk.fits[k + 1].minimum[group])
            assert m == pytest.approx(m_, rel=1e-4)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q2_K", "Q6_K", "Q3_K"])
def test_a_weights_numbers_lead_from_the_bytes_to_its_value(lesson, name):
    part = lesson.encode
    lesson.go({"type": name, "weight": "9, 77"})
    last = cells(part, len(part.shown.steps) - 1)
    value = {label: numbers_in(texts[0])[0].value for label, texts in last.items() if texts[0]}
    back = value["d"] * value["k, integer"] * value["stored q"] - (
        value.get("d_{min}", 0) * value.get("l, integer", 0)
    )
    assert value["x̂"] == pytest.approx(back, rel=2e-3)
    assert decoded(name, part.pictures.bytes.values)[77] == pytest.approx(value["x̂"], rel=1e-3)
    assert value["error x − x̂"] == pytest.approx(value["trained weight x"] - value["x̂"], abs=2e-4)
    first = cells(part, 0)
    assert [label for label, texts in first.items() if texts[0]] == ["trained weight x"]


def test_the_lit_bits_are_the_weights(lesson):
    part = lesson.encode
    lesson.go({"weight": "9, 77"})
    group, place = divmod(77, 32)
    code = part.shown.walk.codes[group, place]
    byte = 16 + 32 * (77 // 64) + 77 % 32
    assert [byte, 4 * (77 // 32 % 2), 4] in part.pictures.bytes.lit
    assert part.pictures.bytes.values[byte] >> (4 * (77 // 32 % 2)) & 15 == int(code)
    words = [text for _, _, text in part.pictures.bytes.meanings[byte]]
    assert f"code of weight 77 (sub-block {group}, place {place}) = {int(code)}" in words
    k = [text for low, bits, text in part.pictures.bytes.meanings[4 + group] if bits == 6]
    assert k == [f"scale of sub-block {group} = {int(part.shown.walk.second[2][group])}"]


# ------------------------------------------------------------------------------------ second runs


def test_what_is_beside_fits_the_type(lesson):
    part = lesson.encode
    offered = {}
    for name in TYPES_OFFERED:
        lesson.go({"type": name})
        offered[name] = set(part.beside_control.options)
    assert offered["Q4_K"] == set(BESIDE)
    assert offered["Q6_K"] == set(BESIDE) - {PAIRS}
    assert offered["Q4_0"] == {NOTHING, IMPORTANCE, OUTLIER, PAIRS}
    assert offered["Q8_0"] == {NOTHING, OUTLIER}
    assert offered["MXFP4"] == {NOTHING, OUTLIER, PAIRS}
    lesson.go({"layer": SMALL})  # one block to a row: no importance would be left
    assert UNREACHED not in part.beside_control.options


@pytest.mark.parametrize("beside", [NO_PASS, OUTLIER, UNREACHED, PAIRS])
def test_each_failure_is_shown_and_said(lesson, weight, beside):
    part = lesson.encode
    lesson.go({"beside": beside})
    shown, text = part.shown, part.pictures.beside_said.texts[0]
    x = shown.walk.x.flatten().double().numpy()
    true = decoded("Q4_K", part.pictures.bytes.values)
    off = np.linalg.norm(true - x) / np.linalg.norm(x)
    wrong = shown.second.back.flatten().double().numpy()
    other = shown.second.x.flatten().double().numpy()
    bad = np.linalg.norm(wrong - other) / np.linalg.norm(other)
    said = [n.value for n in numbers_in(text)]
    assert any(v == pytest.approx(bad, rel=5e-3) for v in said)
    if beside != OUTLIER:
        assert any(v == pytest.approx(off, rel=5e-3) for v in said)
        assert bad > off
        assert np.array_equal(other, x)
    if beside == PAIRS:
        assert part.pictures.bytes.others == part.pictures.bytes.values
    else:
        assert part.pictures.bytes.others != part.pictures.bytes.values
        assert np.allclose(decoded("Q4_K", part.pictures.bytes.others), wrong)
    assert "sign" in text
    assert len(part.pictures.cell_table.columns) == 2
    lesson.go({})
    assert part.pictures.beside_said.texts == [""] and len(part.pictures.cell_table.columns) == 1


# ------------------------------------------------------------------------------------ choosing


def test_a_click_in_the_layer_opens_another_block(lesson):
    part = lesson.encode
    part.layer_view.cursor = [40, 900]
    assert part.held is None and part.shown.row == 7  # pointing alone changes nothing
    part.layer_view.pinned = True
    assert (part.shown.row, part.shown.first) == (40, 768)
    assert lesson.state["weight"] == "40, 900"
    assert part.layer_view.outlines == [[40, 41, 768, 1024]]
    assert part.pictures.x_view.cursor == [(900 - 768) // 32, (900 - 768) % 32]
    part.pictures.x_view.cursor = [0, 3]
    part.pictures.x_view.pinned = True
    assert part.pictures.cell_table.label.startswith("Row 40, column 771")
    assert part.held == (40, 771)
    lesson.go({})
    assert part.shown.row == 7 and not part.layer_view.pinned


def test_pointing_at_another_sub_block_draws_its_search(lesson):
    part = lesson.encode
    before, step = part.pictures.curve.buffers, part.transport.captions[5]
    part.pictures.x_view.cursor = [6, 2]
    assert part.pictures.curve.buffers != before and part.transport.captions[5] != step
    assert "sub-block 6" in part.transport.captions[1]
    again = part.pictures.curve.buffers
    part.pictures.x_view.cursor = [6, 3]
    assert part.pictures.curve.buffers == again


@pytest.mark.parametrize("text", ["1", "1, x", "256, 0", "0, 1024", "-1, 0"])
def test_a_weight_that_there_is_not_is_said(lesson, text):
    with pytest.raises(ValueError, match="no weight"):
        lesson.go({"weight": text})
    assert lesson.encode.held is None


def test_a_guess_is_judged_by_all_sub_blocks_of_the_row(lesson, weight):
    part = lesson.encode
    control = lesson.prediction.control
    assert not lesson.prediction.revealed
    control.index = 1
    run = RowWalk(weight[7], type="Q4_K")
    tally = [0, 0, 0]
    for b in range(4):
        walk = run.block(b)
        for g in range(8):
            tried = walk.fits[walk.best(g)].tried
            tally[0 if tried > 15 else 1 if tried == 15 else 2] += 1
    assert sum(tally) == 32
    text = lesson.prediction.verdict.texts[0]
    mine = run.block(1)
    tried = mine.fits[mine.best(part.cell[0])].tried
    assert text.startswith("Right." if tried > 15 else "Not here.")
    for n in (*tally, 32):
        assert str(n) in text
    assert lesson.prediction.revealed
    lesson.go({"type": "Q5_K"})
    assert control.index == 0 and not lesson.prediction.revealed
    part.transport.index = 1
    assert not lesson.prediction.revealed
    part.transport.index = 5
    assert lesson.prediction.revealed
    lesson.go({"type": "Q8_0"})
    assert control.disabled
    assert len(ANSWERS) == 3


# ------------------------------------------------------------------------------------ other layers


def test_layers_of_other_shapes_are_taken_or_refused_in_words(lesson, tmp_path):
    path = tmp_path / "odd.safetensors"
    g = torch.Generator().manual_seed(0)
    save_file(
        {
            "a.weight": torch.randn(6, 384, generator=g),
            "b.weight": torch.randn(6, 8, generator=g),
            "c.weight": torch.full((6, 256), 0.25),
            "d.weight": torch.randn(6, 256, generator=g) * 1e30,
            "e.weight": torch.zeros(6, 512),
        },
        path,
    )
    part = lesson.encode
    lesson.open(str(path), "a")
    assert set(part.type_control.options) == {n for n, v in LAYOUTS.items() if v.weights == 32}
    assert "384" in part.note.text and lesson.status.kind == ""
    assert IMPORTANCE not in part.beside_control.options  # nobody knows its inputs
    for name, why in (("b", "multiple of 32"), ("d", "too large")):
        before = part.shown
        lesson.layer_control.index = lesson.layers.index(name)
        assert lesson.status.kind == "error" and why in lesson.status.text
        assert part.shown is before and lesson.layer == "a"
    for name in ("c", "e"):
        lesson.layer_control.index = lesson.layers.index(name)
        assert lesson.status.kind == "" and part.shown.opened.layer == name
        assert "NaN" not in " ".join(part.transport.captions)
    lesson.open()
    assert part.type_control.value in LAYOUTS


def test_constant_and_zero_layers_can_be_stepped_in_every_type(lesson, tmp_path):
    path = tmp_path / "flat.safetensors"
    save_file({"c.weight": torch.full((3, 256), -0.25), "e.weight": torch.zeros(3, 256)}, path)
    for name in ("c", "e"):
        lesson.open(str(path), name)
        for i, kind in enumerate(lesson.encode.type_control.options):
            lesson.encode.type_control.index = i
            assert lesson.status.kind == "", (name, kind, lesson.status.text)
            assert "NaN" not in " ".join(lesson.encode.transport.captions), (name, kind)
    lesson.open()


# --------------------------------------------------------------------------------- the other parts


def test_types_are_drawn_at_their_bits_and_errors(lesson):
    lesson.go({"part": "types", "layer": SMALL, "error": "outputs"})
    part = lesson.types
    rows = {row["label"]: row["cells"] for row in part.table.frames[0]}
    for i, (name, (plain, weighed)) in enumerate(part.shown.scores.items()):
        assert part.kind_control.options[i] == name
        assert float(rows[name][0]) == pytest.approx(plain.bits)
        holds(rows[name][1], off=plain.output)
        if weighed.weighs:
            holds(rows[name][2], off=weighed.output)
        assert f"{name}: " in part.caption.texts[i] and "outputs" in part.caption.texts[i]
    lesson.go({"part": "types", "layer": SMALL})
    weights = {row["label"]: row["cells"] for row in part.table.frames[0]}
    holds(weights["Q4_K"][1], off=part.shown.scores["Q4_K"][0].error)
    assert weights["Q4_K"][1] != rows["Q4_K"][1]


def test_a_file_is_drawn_layer_by_layer(lesson):
    lesson.go({"part": "file", "file": "Q4_K_M"})
    part = lesson.file
    at = part.file_control.index
    text = part.caption.texts[at]
    assert "4.89" in text and "attn_v in 16 of 32 layers (Q6_K)" in text
    rows = {row["label"]: row["cells"] for row in part.table.frames[at]}
    assert rows["the whole file"][1] == "4.89" and rows["attn_q"][0] == "Q4_K"
    assert "Q4_K_S 4.67, Q4_K_M 4.89" in part.mix.texts[at]
    lesson.go({"part": "file", "file": "Q4_0", "model_shape": "Llama-2-7B", "imatrix": "on"})
    assert "ffn_down in 4 of 32 layers (Q4_1)" in part.caption.texts[part.file_control.index]


def test_a_link_about_a_file_opens_that_part(lesson):
    lesson.go({"file": "Q6_K"})
    assert lesson.part == "file"
    lesson.go({"kind": "Q6_K"})
    assert lesson.part == "types"
    lesson.go({"weight": "3, 4"})
    assert lesson.part == "encode" and lesson.encode.held == (3, 4)
