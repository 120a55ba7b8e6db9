"""Lesson 5 without a browser: what stands on the page is what the library and bitsandbytes do."""

import base64
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from said import holds, numbers_in

import qviz
from qviz.core import metrics
from qviz.core.nearest import midpoints
from qviz.methods.nf4 import NF4, normal_levels
from qviz.models.capture import load_calibration
from qviz.study.level_duel import EVEN, LLOYD, NF4_NAME, distinct
from qviz.study.nf4_levels import occupancy_in_blocks
from qviz.ui.views.nf4 import FIRST_SIZE, LARGEST, SIZES, Nf4Lesson
from qviz.ui.views.nf4_words import ASYMMETRIC, DUEL, FILL, FP4_NAME, ROW_NAMES, STORE, SYMMETRIC

SMALL = "model.layers.0.self_attn.k_proj"
FIRST = SIZES.index(FIRST_SIZE)


@pytest.fixture(scope="module")
def shared() -> Nf4Lesson:
    return Nf4Lesson(None, SMALL)


@pytest.fixture
def lesson(shared: Nf4Lesson) -> Nf4Lesson:
    """The lesson with nothing moved, on a small layer."""
    shared.go({"layer": SMALL})
    return shared


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return qviz.load_layer(None, SMALL).float()


def rows(table, frame=None):
    """Label → its text (or cells) in a frame."""
    if frame is None:
        return {row["label"]: row["texts"] for row in table.rows}
    return {row["label"]: row["cells"] for row in table.frames[frame]}


def numbers(values):
    """An array of a figure, which plotly may have packed."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return np.asarray(values)


def test_opens_on_the_table_before_its_first_level(lesson):
    assert (lesson.part, lesson.size, lesson.status.kind) == ("build", FIRST_SIZE, "")
    build = lesson.building
    assert build.transport.index == 0 and build.line.levels[0] == []
    lit = build.equation.actives  # a step each, and the sign where it turns the half round
    assert len(lit) == build.transport.n == len(build.line.levels)
    made = [set(new) - set(old) for old, new in pairwise(build.line.levels)]
    negative = [bool(new) and min(new) < 0 for new in made]
    assert ["sign" in terms for terms in lit[1:]] == negative and any(negative)
    assert torch.equal(lesson.shown.weight, qviz.load_layer(None, SMALL).float())


def test_the_table_grows_by_one_number_a_step_to_the_constants_of_bitsandbytes(lesson):
    from bitsandbytes.functional import get_4bit_type

    build, steps = lesson.building, lesson.building.transport.n
    assert steps == 18
    for step in range(1, 17):
        line = build.line.levels[step]
        assert len(line) == step and set(build.line.levels[step - 1]) < set(line) | {None}
        table = {**rows(build.upper, step), **rows(build.lower, step)}
        there = {label: cells for label, cells in table.items() if cells[2]}
        assert len(there) == step and len(table) == 16
        made = build.made[step - 1]
        assert there[f"code {made.code}"] == [
            f"{v:.4g}".replace("-", "−") for v in (made.p, made.quantile, made.level)
        ]
        assert f"Code {made.code}:" in build.transport.captions[step]
        assert f"{step} of 16" in build.line.summaries[step]
    theirs = get_4bit_type("nf4", "cpu")
    assert torch.equal(torch.tensor(build.line.levels[17]).sort().values, theirs)
    digits = rows(build.numbers)["v, all digits of float32"]
    for made, text in zip(build.made, digits[1:17], strict=True):
        assert np.float32(text.replace("−", "-")) == theirs[made.code].numpy()
    low, high = (float(b) for b in midpoints(theirs)[[0, -1]])
    holds(rows(build.numbers)["bounds m"][17], low=low, high=high)


def test_the_numbers_of_a_step_follow_from_its_formula(lesson):
    table = rows(lesson.building.numbers)
    for step in range(1, 17):
        text = table["p"][step]
        terms, _, p = text.partition(" = ")
        delta, i, again, n = re.fullmatch(r"([\d.]+) − (\d+)·\(([\d.]+) − ½\)/(\d)", terms).groups()
        assert delta == again == table["δ"][0]
        assert (n, i) == (table["n, equal slices to ½"][step], table["i"][step])
        assert float(delta) - int(i) * (float(delta) - 0.5) / int(n) == pytest.approx(
            float(p), abs=1e-5
        )
        z, v = (numbers_in(table[name][step])[0].value for name in ("z", "v = z ÷ z_{max}"))
        assert z / numbers_in(table["z_{max} = Φ⁻¹(δ)"])[0].value == pytest.approx(v, abs=1e-5)


def test_the_slice_that_lights_up_has_its_share_of_the_distribution(lesson):
    """As drawn: the area under the density between this quantile and the one before."""
    from qviz.ui.figures.nf4 import quantiles

    made = lesson.building.made
    frames = quantiles(made)["frames"]
    assert quantiles(made)["layout"]["showlegend"]
    for step, one in enumerate(made, 1):
        area, past, now = frames[step]["data"]
        x, y = np.asarray(area["x"]), np.asarray(area["y"])
        share = np.trapezoid(y, x)
        if one.index:
            assert share == pytest.approx((0.9677083 - 0.5) / (7 if one.code < 7 else 8), rel=2e-3)
        else:  # to the end of the axis
            assert share == pytest.approx(1 - 0.9677083, abs=0.006)
        assert now["x"] == [one.quantile] * 2
        assert len(past["x"]) == 3 * (step - 1)


# ------------------------------------------------------------------------------------ the bins


@pytest.mark.parametrize("at", [0, FIRST, len(SIZES) - 1])
def test_the_bins_are_counted_on_the_codes_of_bitsandbytes(lesson, weight, at):
    from bitsandbytes.functional import quantize_4bit

    lesson.go({"layer": SMALL, "part": FILL, "block": str(SIZES[at])})
    packed, _ = quantize_4bit(weight, quant_type="nf4", blocksize=SIZES[at])
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten()
    share = torch.bincount(codes.int(), minlength=16).double() / weight.numel()
    a = weight.flatten().split(SIZES[at])
    largest = torch.stack([block.abs().max() for block in a]).double()
    reach = float((largest.square().mean() / weight.double().square().mean()).sqrt())
    made_for = float(normal_levels().quantile[-1])
    full, empty = int(share.argmax()), int(share.argmin())
    assert reach > made_for
    holds(
        lesson.filling.caption.texts[at], size=SIZES[at], code=full, most=float(share[full]),
        other=empty, least=float(share[empty]), one=1, sixteen=16, claimed=1 / 16, reach=reach,
        made_for=made_for, ways={"crowds the middle": True}, fixed=["empties the outer ones"],
    )  # fmt: skip
    said = numbers_in(lesson.filling.occupancy.summaries[at].split(": ", 1)[1])
    assert [n.value for n in said] == pytest.approx(share.tolist(), abs=6e-4)


def test_the_bars_are_the_shares_and_the_diamonds_what_normal_weights_have(lesson, weight):
    from qviz.ui.figures.nf4 import occupancy, spread

    levels = distinct(NF4)
    measured = [np.full(16, 1 / 16), np.linspace(0, 2 / 16, 16)]
    normal = [occupancy_in_blocks(levels, size).numpy() for size in (32, 64)]
    figure = occupancy(measured, normal, normal[0])
    for frame, a, b in zip(figure["frames"], measured, normal, strict=True):
        assert frame["traces"] == [0, 1]
        assert frame["data"][0]["y"] == pytest.approx(100 * a)
        assert frame["data"][1]["y"] == pytest.approx(100 * b)
    assert numbers(figure["data"][2]["y"]) == pytest.approx(100 * normal[0])
    assert list(numbers(figure["data"][3]["y"])) == [6.25, 6.25]
    low, high = figure["layout"]["yaxis"]["range"]
    highest = 100 * max(map(np.max, (*measured, *normal)))
    assert low == 0 and highest < high < 1.2 * highest
    edges = np.linspace(-1, 1, 11)
    counts = [np.arange(10), np.ones(10, int)]
    figure = spread(counts, edges, NF4, 2.0)
    for frame, c in zip(figure["frames"], counts, strict=True):
        y = frame["data"][0]["y"]
        assert (y * 0.2).sum() == pytest.approx(1) and y == pytest.approx(c / c.sum() / 0.2)
    made_for = figure["data"][1]
    area = np.trapezoid(numbers(made_for["y"]), numbers(made_for["x"]))
    assert area == pytest.approx(0.93, abs=0.02)
    assert list(numbers(figure["data"][2]["x"])[::3]) == pytest.approx(NF4)
    assert (
        figure["layout"]["showlegend"]
        and occupancy(measured, normal, normal[0])["layout"]["showlegend"]
    )


# ------------------------------------------------------------------------------------ the bytes


@pytest.mark.parametrize("cell", [[0, 0], [77, 201], [127, 255]])
def test_the_bytes_on_the_page_are_those_of_bitsandbytes(lesson, weight, cell):
    from bitsandbytes.functional import quantize_4bit

    lesson.go({"layer": SMALL, "part": STORE})
    lesson.weight_view.cursor = cell
    k = cell[0] * 256 + cell[1]
    for at, size in enumerate(SIZES):
        packed, state = quantize_4bit(weight, quant_type="nf4", blocksize=size)
        theirs = packed.flatten().numpy()
        for label, cells in rows(lesson.storing.bytes, at).items():
            there = theirs[int(label) : int(label) + 8]
            assert cells == [f"{byte:02x}" for byte in there] + [""] * (8 - len(there))
        lit = [(row["label"], row["lit"]) for row in lesson.storing.bytes.frames[at] if row["lit"]]
        assert lit == [(str(k // 16 * 8), [k // 2 % 8])]
        words = rows(lesson.storing.byte_words)
        assert words["a in memory"][at] == state.absmax[k // size].numpy().tobytes().hex(" ")
        nibble = theirs[k // 2] & 15 if k % 2 else theirs[k // 2] >> 4
        assert words["its half of the byte"][at].endswith(f"code {nibble}")
        assert rows(lesson.cell_table)["code q"][at] == str(nibble)
        _, twice = quantize_4bit(weight, quant_type="nf4", blocksize=size, compress_statistics=True)
        assert rows(lesson.storing.second)["code c, one byte"][at].startswith(
            f"{int(twice.absmax[k // size])} = 0x"
        )


def test_the_bill_of_the_page(lesson, weight):
    for at, size in enumerate(SIZES):
        plain = qviz.quantize(weight, "nf4", group_size=size)
        double = qviz.quantize(weight, "nf4", group_size=size, double_quant=True)
        cells = rows(lesson.storing.bill, at)["together"]
        assert cells[1:] == [
            text for q in (plain, double)
            for text in (str(q.ledger.nbytes), f"{q.bits_per_weight:.3f}")
        ]  # fmt: skip
        saved = plain.ledger.nbytes - double.ledger.nbytes
        text = lesson.storing.caption.texts[at]
        if saved > 0:
            holds(text, size=size, plain=plain.bits_per_weight, double=double.bits_per_weight,
                  saved=saved, of=plain.ledger.nbytes, share=saved / plain.ledger.nbytes,
                  digits=2)  # fmt: skip
        else:
            holds(text, size=size, plain=plain.bits_per_weight, double=double.bits_per_weight,
                  lost=-saved, fixed=["more than it saves"])  # fmt: skip


def test_bits_by_size_is_drawn_as_computed():
    from qviz.ui.figures.nf4 import bits_by_size

    figure = bits_by_size((32, 64), [5.0, 4.5], [4.25, 4.125])
    assert [list(trace["y"]) for trace in figure["data"][:2]] == [[5.0, 4.5], [4.25, 4.125]]
    assert figure["frames"][1]["data"][0]["y"] == [4.5, 4.125]
    assert figure["frames"][1]["data"][0]["x"] == ["64", "64"]
    assert figure["layout"]["showlegend"]
    assert [trace.get("showlegend", True) for trace in figure["data"]] == [True, True, False]


# ------------------------------------------------------------------------------------ the duel


def duel_page(lesson, **state):
    lesson.go({"layer": SMALL, "part": DUEL, **state})
    return lesson.dueling


def by_brute_force(weight, levels, size):
    """‖W − Ŵ‖ / ‖W‖ weight by weight, every level tried, in float64."""
    blocks = weight.double().reshape(-1, size)
    a = blocks.abs().amax(1, keepdim=True)
    errors = (blocks[..., None] - a[..., None] * torch.tensor(levels, dtype=torch.float64)).square()
    x = (blocks / a)[..., None]
    at = (x - torch.tensor(levels, dtype=torch.float64)).abs().argmin(-1, keepdim=True)
    return float((errors.gather(-1, at).sum() / weight.double().square().sum()).sqrt())


def test_dragging_a_level_answers_with_the_exact_error_at_once(lesson, weight):
    duel = duel_page(lesson)
    calibration = load_calibration(None, SMALL)
    values = list(duel.line.values)
    for moves in ([(3, -0.55)], [(0, -0.97), (15, 0.93)], [(7, 0.0), (8, 0.001)]):
        for i, value in moves:
            values[i] = value
        duel.line.values = sorted(values)
        for at in (0, FIRST):
            want = by_brute_force(weight, duel.line.values, SIZES[at])
            said = numbers_in(rows(duel.board, at)["your levels"][0])[0]
            assert said.is_(want, 4)
        q = qviz.quantize(weight, "nf4", group_size=FIRST_SIZE, levels=duel.levels)
        output = metrics.output_error(weight, q.dequantize(), calibration)
        cells = rows(duel.board, FIRST)["your levels"]
        assert numbers_in(cells[1])[0].is_(output, 4)
        assert numbers_in(cells[2])[0].is_(q.bits_per_weight, 5)
        assert rows(duel.board, 0)["your levels"][1] == "–"  # known when one looks at it
    lesson.size_control.index = 0
    assert rows(duel.board, 0)["your levels"][1] != "–"


def test_nf4s_levels_are_level_with_nf4_and_equal_spacing_comes_back(lesson):
    duel = duel_page(lesson)
    duel.nf4_button.click()
    assert torch.equal(duel.levels, torch.tensor(NF4))
    for frame in range(len(SIZES)):
        mine, theirs = (rows(duel.board, frame)[n] for n in ("your levels", "NF4"))
        assert (mine[0], mine[3]) == (theirs[0], "equal")
        assert "level with NF4" in duel.caption.texts[frame]
    duel.even_button.click()
    assert duel.line.values == pytest.approx(EVEN)
    assert lesson.state.get("levels") is None  # as the page opens


def test_rounds_of_lloyd_never_hurt_and_end_at_lloyd_max(lesson):
    duel = duel_page(lesson)
    blocks = lesson.shown.duel.blocks(FIRST_SIZE)
    before = blocks.relative_error(duel.levels)
    for _ in range(5):
        duel.round_button.click()
        after = blocks.relative_error(duel.levels)
        assert after <= before * (1 + 1e-6)
        before = after
    duel.rest_button.click()
    after = blocks.relative_error(duel.levels)
    best = lesson.shown.entries[FIRST_SIZE][LLOYD].error
    assert best * (1 - 1e-4) <= after <= best * 1.01 < before
    assert torch.equal(blocks.moved(duel.levels), duel.levels)


def test_nobodys_score_is_told_before_a_guess_but_nf4s(lesson):
    duel = duel_page(lesson)
    hidden = {ROW_NAMES[n] for n in lesson.shown.entries[FIRST_SIZE]} - {"NF4"}
    assert set(rows(duel.board, FIRST)) == {"your levels", "NF4"}
    assert len(duel.each.frames[FIRST]) == 2
    assert not any(name in text for name in hidden for text in duel.caption.texts)
    assert "qv-gone" in duel.curves_box._dom_classes
    duel.prediction.control.index = 1
    assert set(rows(duel.board, FIRST)) == {"your levels", "NF4", *hidden}
    assert duel.board_control.value and "qv-gone" not in duel.curves_box._dom_classes
    assert len(duel.each.frames[FIRST]) == 7


def test_the_verdict_is_judged_in_the_blocks_that_are_shown(lesson):
    duel = duel_page(lesson)
    duel.prediction.control.index = 1 + list(duel.prediction.control.options[1:]).index(ASYMMETRIC)
    for at, size in enumerate(SIZES):
        lesson.size_control.index = at
        entries = lesson.shown.entries[size]
        ahead = entries[ASYMMETRIC].error < entries[NF4_NAME].error
        text = duel.prediction.verdict.texts[0]
        assert text.startswith("Right" if ahead else "Not quite")
        assert f"blocks of {size}:" in text
    assert ahead is False  # in large blocks NF4 is ahead; in the smallest it is not
    assert lesson.shown.entries[32][ASYMMETRIC].error < lesson.shown.entries[32][NF4_NAME].error


def test_the_board_has_everybodys_true_figures(lesson, weight):
    duel = duel_page(lesson, board="on")
    entries = lesson.shown.entries[FIRST_SIZE]
    nf4 = entries[NF4_NAME].error
    best = min(entry.error for entry in entries.values())
    for row in duel.board.frames[FIRST]:
        if row["label"] == "your levels":
            continue
        entry = next(e for n, e in entries.items() if ROW_NAMES[n] == row["label"])
        error = weight.double() - entry.dequantize().double()
        true = float(error.norm() / weight.double().norm())
        holds(row["cells"][:3], error=true, output=entry.output_error,
              bits=entry.tensor.bits_per_weight, digits=4)  # fmt: skip
        assert (0 in row["lit"]) == (entry.error <= best * (1 + 5e-5))
        if entry.name == NF4_NAME:
            assert row["cells"][3] == ""
        else:
            holds(row["cells"][3], by=abs(true / nf4 - 1), digits=2,
                  ways={"more/less": true - nf4})  # fmt: skip
    assert entries[FP4_NAME].bits == entries[NF4_NAME].bits == 4.5


def test_the_convention_of_int4_is_the_one_that_is_named(lesson, weight):
    duel = duel_page(lesson, board="on", int4="compressed_tensors")
    entry = lesson.shown.entries[FIRST_SIZE][SYMMETRIC]
    q = qviz.quantize(
        weight, bits=4, group_size=FIRST_SIZE, symmetric=True, convention="compressed_tensors",
        scale_dtype=torch.float16,
    )  # fmt: skip
    assert torch.equal(entry.dequantize(), q.dequantize())
    assert "LLM Compressor, vLLM: ÷ (2ᵇ − 1) / 2" in duel.conventions.text
    lesson.go({"layer": SMALL, "part": DUEL})
    assert not torch.equal(
        lesson.shown.entries[FIRST_SIZE][SYMMETRIC].dequantize(), entry.dequantize()
    )


def test_shares_and_curves_are_drawn_as_computed(lesson):
    from qviz.ui.figures.nf4 import error_by_bits, error_shares

    levels = distinct(EVEN)
    shares = np.array([0.004, 0.5, *[0.0] * 13, 0.496])
    figure = error_shares([(levels, shares)])
    bars = figure["frames"][0]["data"][0]
    assert bars["y"] == pytest.approx(100 * shares) and bars["x"] == pytest.approx(levels.numpy())
    assert bars["text"][:2] == ["", "50 %"] and bars["text"][-1] == "50 %"
    low, high = figure["frames"][0]["layout"]["yaxis"]["range"]
    assert low > 50 and high == 0  # downwards
    curves = {"A": [(64, 4.5, 0.09), (32, 5.0, 0.08)], "B": [(64, 4.25, 0.11)]}
    figure = error_by_bits(curves, (32, 64))
    a, b, _ = figure["data"]
    assert list(a["x"]) == [0.5, 1.0] and list(a["y"]) == pytest.approx([9, 8])
    assert list(b["x"]) == [0.25] and b["name"] == "B"
    assert [f["data"][0]["x"] for f in figure["frames"]] == [[1.0], [0.5, 0.25]]
    assert figure["frames"][1]["data"][0]["y"] == pytest.approx([9, 11])
    assert figure["layout"]["showlegend"]
    ticks = figure["layout"]["xaxis"]
    assert [float(t) for t in ticks["ticktext"]] == pytest.approx(
        [4 + v for v in ticks["tickvals"]]
    )


def test_words_of_the_charts_in_the_duel(lesson):
    duel = duel_page(lesson, board="on")
    for at, size in enumerate(SIZES):
        errors = lesson.shown.duel.blocks(size).squared_errors(duel.levels)
        holds(duel.shares.summaries[at], size=size, level=int(errors.argmax()),
              share=float(errors.max() / errors.sum()), fixed=["most"])  # fmt: skip
        text = duel.curves.summaries[at]
        for name in (NF4_NAME, ASYMMETRIC, LLOYD):
            entry = lesson.shown.entries[size][name]
            part = next(p for p in text.split("; ") if f"{ROW_NAMES[name]} " in p)
            found = numbers_in(part.split(f"{ROW_NAMES[name]} ")[1])
            assert found[0].is_(entry.error, 4) and found[1].is_(entry.bits, 5)


# ------------------------------------------------------------------------------------ other layers


def opened(lesson, tmp_path, weight):
    save_file({"fc.weight": weight}, tmp_path / "mine.safetensors")
    lesson.source_control.value = str(tmp_path / "mine.safetensors")
    lesson.open_button.click()


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 64),
        torch.ones(16, 8),
        torch.randn(3, 5),
        torch.randn(7, 37).half(),
        torch.randn(8, 64).sign() * 1e30,
        torch.randn(9, 8) * 1e-3,
    ],
    ids=["zeros", "constant", "tiny", "odd", "huge", "eight columns"],
)  # fmt: skip
def test_odd_layers_open_in_every_part(lesson, tmp_path, weight):
    opened(lesson, tmp_path, weight)
    problem = lesson.status.text
    assert not problem or "is omitted" in problem  # INT4's float16 scales have their limits
    assert torch.equal(lesson.shown.weight, weight.float())
    for part in (FILL, STORE, DUEL):
        lesson.part_control.index = list(lesson.part_control.options).index(part)
        assert lesson.status.kind == "", lesson.status.text
    duel = lesson.dueling
    assert lesson.shown.duel.calibration is None
    assert rows(duel.board, 0)["your levels"][1] == "–"
    duel.board_control.value = True
    for button in (duel.round_button, duel.nf4_button, duel.even_button):
        button.click()
        assert lesson.status.kind == "", lesson.status.text
    lesson.weight_view.cursor = [weight.shape[0] - 1, weight.shape[1] - 1]
    assert lesson.status.kind == ""
    assert not any("nan" in text.lower() for text in duel.caption.texts)
    lesson.bundled_button.click()
    assert lesson.status.kind == ""


def test_all_handles_on_one_spot(lesson):
    duel = duel_page(lesson)
    for spot in (-1.0, 0.0, 1.0):
        duel.line.values = [spot] * 16
        assert lesson.status.kind == "" and len(set(duel.levels.tolist())) == 16
        assert "your levels" in rows(duel.board, FIRST)
        assert duel.round_button.click() is None and lesson.status.kind == ""


def test_of_a_large_layer_the_first_rows_are_shown_and_that_is_said(lesson, tmp_path):
    weight = torch.randn(300, 1024, generator=torch.Generator().manual_seed(0))
    opened(lesson, tmp_path, weight)
    assert lesson.shown.weight.shape == (LARGEST // 1024, 1024)
    holds(lesson.part_of_layer.text, rows=LARGEST // 1024, of=(300, "rows"), fixed=["first"])
    lesson.bundled_button.click()
    assert lesson.part_of_layer.text == ""


def test_a_rival_that_cannot_be_computed_is_left_out_and_that_is_said(lesson, tmp_path):
    opened(lesson, tmp_path, torch.randn(8, 64) * 1e-9)  # float16 has no such scales
    sizes = ", ".join(map(str, SIZES[:5]))  # the others do not divide its 512 weights
    assert f"INT4 asymmetric is omitted in blocks of {sizes}: " in lesson.status.text
    for size in SIZES:
        assert ASYMMETRIC not in lesson.shown.entries[size]
        assert NF4_NAME in lesson.shown.entries[size]
    lesson.bundled_button.click()
    assert lesson.status.kind == ""


def test_another_layer_is_another_question(lesson):
    duel = duel_page(lesson)
    duel.prediction.control.index = 2
    lesson.layer_control.index = lesson.layers.index("model.layers.1.self_attn.k_proj")
    assert not duel.prediction.guessed and not duel.board_control.value
    assert set(rows(duel.board, FIRST)) == {"your levels", "NF4"}
