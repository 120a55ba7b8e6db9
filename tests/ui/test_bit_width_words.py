"""The words and tables of the bit-width lesson, held against plain computations."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from inputs import calibration_for
from said import cut, holds, numbers_in, points

import qviz
from qviz.core.metrics import error_split
from qviz.methods.affine import CONVENTIONS
from qviz.methods.registry import quantize
from qviz.models.checkpoint import load_layer
from qviz.ui.views.arithmetic import affine_rows
from qviz.ui.views.bit_width_words import GUESS_WITHIN, sentence, verdict
from qviz.ui.views.cost import cost_rows
from qviz.ui.views.gallery import Gallery
from qviz.ui.views.layer_page import FIRST_LAYER
from qviz.ui.views.scale_sharing import ROW, SIZES, ScaleSharing, each, sharing
from qviz.ui.views.spacing import SYSTEMS, recipe, spacing, system

UNITS = {"matrix": ("tensor", None), "row": ("channel", None), "group of 16": ("group", 16)}


@st.composite
def quantized(draw, *, convention: str | None = None):
    """(weight [4, 32], what it became, its unit's name, bits)."""
    bits, unit = draw(st.integers(2, 8)), draw(st.sampled_from(sorted(UNITS)))
    symmetric = draw(st.booleans())
    known = [n for n, c in CONVENTIONS.items() if (c.symmetric if symmetric else c.asymmetric)]
    name = convention or draw(st.sampled_from(known))
    seed, shift = draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 0.3, 4.0, -4.0]))
    w = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)) + shift
    kind, size = UNITS[unit]
    q = quantize(
        w, "affine", bits=bits, symmetric=symmetric, granularity=kind, group_size=size,
        convention=name, scale_dtype=torch.float16,
    )  # fmt: skip
    return w, q, unit, bits


def split_into_groups(w: torch.Tensor, unit: str) -> torch.Tensor:
    """[rows, groups, size]."""
    if unit == "matrix":
        return w.reshape(1, 1, -1)
    return w.unflatten(1, (-1, UNITS[unit][1] or w.shape[1]))


def ends(w: torch.Tensor, q, unit: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(groups, first level, last level), in float64."""
    groups = split_into_groups(w, unit).double()
    grid = q.grid
    zero = 0 if grid.zero_point is None else grid.zero_point.double().reshape(groups.shape[:2])
    offset = 0 if grid.offset is None else grid.offset.double().reshape(groups.shape[:2])
    scale = grid.scale.double().reshape(groups.shape[:2])
    low, high = (scale * (end - zero) + offset for end in (grid.qmin, grid.qmax))
    return groups, low[..., None], high[..., None]


@settings(max_examples=60)
@given(quantized(), st.booleans())
def test_the_sentence_of_any_bit_width(made, with_inputs):
    w, q, unit, bits = made
    groups, low, high = ends(w, q, unit)
    lost = w.double() - q.dequantize().double()
    beyond = (groups - groups.clamp(low, high)).square()
    # At the very end of the range float32 and float64 may see the weight on either side of it.
    assume(not ((beyond > 0) & (beyond < 1e-12)).any())
    calibration = calibration_for(torch.randn(9, 32)) if with_inputs else None
    row = {"relative_error": float(lost.norm() / w.double().norm()), "output_error": 0.0421}
    text = sentence(bits, q, unit, row, calibration, error_split(w, q))
    expected = {"bits": (bits, "bits:"), "levels": (q.grid.qmax - q.grid.qmin + 1, "levels for")}
    expected |= {"size": int(unit.split()[-1])} if "group" in unit else {}
    expected["weights"] = row["relative_error"]
    if calibration is not None:
        expected |= {"output": row["output_error"], "tokens": (9, "tokens of real input")}
    share = float(beyond.sum() / lost.square().sum()) if lost.any() else 0.0
    clipped = int((beyond > 0).sum())
    fixed = ["Less than 0.01 %"] if 0 < share < 1e-4 else []
    expected |= {"share": share} if share >= 1e-4 else {}
    explained = share > 0 and q.info["symmetric"]
    if explained:
        zero = 0 if q.grid.zero_point is None else int(q.grid.zero_point.flatten()[0])
        expected |= {"clipped": (clipped, "weights lie"), "top": (q.grid.qmax - zero, "·s")}
        fixed.append("beyond the last level")
    points(text, "of the squared error is clipping/", share > 0)
    points(text, "separately in every group/", explained and "group" in unit)
    bpw = q.bits_per_weight
    expected |= {"cost": (bpw, "bits, "), "ratio": (16 / bpw, "× smaller")}
    ways = {"smaller/larger": 16 / bpw - 1, "whole matrix/each row/each group": 1 - list(
        UNITS).index(unit)}  # fmt: skip
    if unit != "matrix":
        ways = {"smaller/larger": 16 / bpw - 1}
        assert f"levels for each {unit}." in text
    holds(text, ways=ways, fixed=[*fixed, "than 16 bits"], **expected)
    assert ("layer's output" in text) == with_inputs


def test_a_share_of_clipping_too_small_to_write_is_not_written_as_zero():
    w = torch.linspace(-1, 1, 64).reshape(1, 64)
    q = quantize(w, "affine", bits=2, convention="compressed_tensors", granularity="channel")
    split = error_split(w, q)
    tiny = type(split)(rounding=1.0, clipping=5e-5, clipped=1)
    row = {"relative_error": 0.1, "output_error": 0.1}
    assert "Less than 0.01 % of the squared error" in sentence(2, q, "row", row, None, tiny)
    some = type(split)(rounding=1.0, clipping=1.0, clipped=7)
    text = sentence(2, q, "row", row, None, some)
    assert "50 % of the squared error is clipping: 7 weights lie beyond" in text


errors_by_bits = st.lists(st.floats(1e-4, 1.5), min_size=7, max_size=7).map(
    lambda values: dict(zip(range(2, 9), sorted(values, reverse=True), strict=True))
)


@given(errors_by_bits, st.integers(2, 8))
def test_the_verdict_on_a_guess(errors, guess):
    text = verdict(guess, errors)
    enough = [b for b in errors if errors[b] <= 0.10]
    first, rest = cut(text, " One bit more divides the error by about ")
    expected = {"guess": (guess, "bits the output"), "error": errors[guess]}
    points(text, "Right./The fewest bits that do/even 8 bits do not bring it within",
           0 if not enough else guess == enough[0] or -1)  # fmt: skip
    fixed = []
    if not enough:
        fixed = ["even 8 bits do not bring it within 10 %"]
    elif guess != enough[0]:
        fixed = ["The fewest bits that do"]
        expected |= {"fewest": enough[0], "there": errors[enough[0]]}
    holds(first, fixed=fixed, **expected)
    ratio, _ = cut(rest, " (from 3 to 4). Why about that much?")
    holds(ratio, digits=2, ratio=errors[3] / errors[4])


def test_the_verdict_asks_nothing_of_a_layer_of_zeros():
    assert (
        verdict(2, dict.fromkeys(range(2, 9), 0.0)) == "Right. At 2 bits the output is off by 0 %."
    )
    assert GUESS_WITHIN == 0.10


# ------------------------------------------------------------------------------- one weight's table


@settings(max_examples=40)
@given(quantized(), st.integers(0, 3), st.integers(0, 31))
def test_one_weights_arithmetic(made, row, column):
    w, q, unit, _ = made
    finer = quantize(
        w, "affine", bits=8, symmetric=q.info["symmetric"], granularity=UNITS[unit][0],
        group_size=UNITS[unit][1], convention=q.info["convention"], scale_dtype=torch.float16,
    )  # fmt: skip
    rows = affine_rows(w, [q, finer], row, column)
    x, group = float(w[row, column]), split_into_groups(w, unit)
    r, g = (0, 0) if unit == "matrix" else (row, column // (UNITS[unit][1] or 32))
    low, high = float(group[r, g].min()), float(group[r, g].max())
    name, symmetric = q.info["convention"], q.info["symmetric"]
    zeros, offsets = q.grid.zero_point is not None, q.grid.offset is not None
    made_by = recipe(name, symmetric)
    labels = {
        "row, column": "", "trained weight x": "original", "range of its group": "",
        "spacing s" if made_by is None else f"s = {made_by.words} ÷ ({made_by.formula})": "",
        "s as stored": "", **({"zero point z": ""} if zeros else {}),
        **({"offset": ""} if offsets else {}),
        ("(x − offset) / s" if offsets else "x / s") + (" + z" if zeros else ""): "",
        "code q": "codes", "reconstruction x̂": "codes", "error x − x̂": "error",
        "error ÷ s": "error",
    }  # fmt: skip
    assert {label: role for label, _, role in rows} == labels
    table = {label: texts for label, texts, _ in rows}
    holds(table["row, column"], row=row, column=column)
    holds(table["trained weight x"], x=x)
    holds(table["range of its group"], low=low, high=high)
    for i, each_q in enumerate((q, finer)):
        grid = each_q.grid
        scale = float(grid.scale.reshape(group.shape[:2])[r, g])
        zero = float(grid.zero_point.reshape(group.shape[:2])[r, g]) if zeros else 0.0
        offset = float(grid.offset.reshape(group.shape[:2])[r, g]) if offsets else 0.0
        code, back = int(each_q.codes[row, column]), float(each_q.dequantize()[row, column])
        holds(table["s as stored"][i], s=scale)
        if zeros:
            holds(table["zero point z"][i], z=zero)
        if offsets:
            holds(table["offset"][i], offset=offset)
        position = next(texts for label, texts in table.items() if label.startswith(("x /", "(x")))
        holds(position[i], position=(x - offset) / scale + zero)
        holds(table["code q"][i], code=code, first=grid.qmin, last=grid.qmax)
        assert "(of " in table["code q"][i]
        holds(table["reconstruction x̂"][i], back=back)
        holds(table["error x − x̂"][i], error=x - back)
        holds(table["error ÷ s"][i], digits=2, steps=(x - back) / scale)


def test_levels_that_are_not_equally_spaced_are_refused():
    weight = torch.randn(4, 64)
    with pytest.raises(TypeError) as refused:
        affine_rows(weight, [quantize(weight, "nf4")], 0, 0)
    assert str(refused.value) == "these rows show equally spaced levels, not Codebook"


def plain_range(words: str, low: float, high: float) -> float:
    """What a recipe's words say that the range is."""
    return {
        "the largest magnitude": max(-low, high),
        "twice the largest magnitude": 2 * max(-low, high),
        "largest − smallest": high - low,
        "largest − smallest, 0 included": max(high, 0) - min(low, 0),
    }[words]


def plain_divisor(formula: str, bits: int) -> float:
    """What a recipe's formula comes to."""
    return {
        "2ᵇ⁻¹ − 1": 2 ** (bits - 1) - 1, "(2ᵇ − 1) / 2": (2**bits - 1) / 2, "2ᵇ − 1": 2**bits - 1,
    }[formula]  # fmt: skip


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", SYSTEMS)
@given(st.integers(2, 8), st.floats(-9, -0.1), st.floats(0.1, 9))
def test_recipes_divide_as_their_words_and_formulas_say(name, symmetric, bits, low, high):
    made, title = recipe(name, symmetric), SYSTEMS[name][0]
    if made is None:
        assert system(name, symmetric) == f"{title}: by the end farther from 0"
        assert spacing(name, symmetric, bits, low, high, 0.123456) == "0.123"
        return
    reach, divisor = plain_range(made.words, low, high), plain_divisor(made.formula, bits)
    assert made.range(low, high) == pytest.approx(reach)
    assert made.divisor(bits) == divisor
    _, said = cut(system(name, symmetric), f"{title}: ÷ ")
    assert said.replace("(", "").replace(")", "") == made.formula.replace("(", "").replace(")", "")
    text = spacing(name, symmetric, bits, low, high, reach / divisor)
    holds(text, reach=reach, divisor=divisor, scale=reach / divisor)
    assert " ÷ " in text and " = " in text
    holds(spacing(name, symmetric, bits, low, high, 2 * reach / divisor), other=2 * reach / divisor)


def test_groups_on_one_side_of_zero():
    """GPTQ's reference doubles the size only where there is a negative weight; others begin at 0,
    or do not."""

    def range_of(name, symmetric):
        made = recipe(name, symmetric)
        assert made is not None
        return made.range

    for low, high in ((1.0, 3.0), (-3.0, -1.0)):
        assert range_of("gptq", True)(low, high) == (3.0 if low > 0 else 6.0)
        assert range_of("gptq", False)(low, high) == 3.0
        assert range_of("awq", False)(low, high) == 2.0
        assert range_of("absmax", True)(low, high) == 3.0


# ----------------------------------------------------------------------------------------- the bill


@settings(max_examples=40)
@given(quantized())
def test_the_bill_adds_up(made):
    w, q, _, bits = made
    rows = cost_rows([q, q])
    table = {label: texts for label, texts, _ in rows}
    *items, whole, here, plain = rows
    assert whole[0] == "bits per weight" and whole[2] == "codes" and plain[2] == "wait"
    parts = [float(texts[0]) for _, texts, _ in items]
    assert sum(parts) == pytest.approx(q.bits_per_weight, rel=2e-3)
    assert table["codes"][0] == str(bits)
    groups = q.grid.scale.numel()
    (scales,) = (label for label in table if label.startswith("scales"))
    assert scales == f"scales ({str(q.grid.scale.dtype).removeprefix('torch.')})"
    size = q.grid.scale.element_size()
    for texts in (table[scales], table["bits per weight"], here[1]):
        assert texts[0] == texts[1]
    holds(table[scales][0], scales=8 * size * groups / w.numel())
    holds(table["bits per weight"][0], bits=q.bits_per_weight)
    holds(table["this layer"][0], here=(q.bits_per_weight * w.numel() / 8, "kB"))
    holds(table["at 16 bits"], plain=(2.0 * w.numel(), "kB"))


def test_a_format_without_scales_names_none():
    q = qviz.quantize(torch.randn(8, 64), "nf4")
    assert not any(label.startswith("scales (") for label, _, _ in cost_rows([q]))


# ---------------------------------------------------------------------------------- who has a scale


def test_sharing_is_offered_from_coarse_to_fine():
    control = ScaleSharing()
    for columns in (64, 96, 256, 1024, 7):
        control.fit(columns)
        sizes = [size for size in (256, 128, 64, 32, 16) if size < columns and columns % size == 0]
        assert control.options == ["matrix", "row", *(f"group of {size}" for size in sizes)]
    assert list(SIZES) == sorted(SIZES, reverse=True)
    assert ScaleSharing(matrix=False).options[0] == ROW


@pytest.mark.parametrize(
    ("chosen", "columns", "then"),
    [("group of 128", 256, "group of 128"), ("group of 128", 96, "group of 32"),
     ("group of 64", 96, "group of 32"), ("group of 16", 7, "row"), ("row", 7, "row"),
     ("matrix", 64, "matrix")],
)  # fmt: skip
def test_a_choice_stays_or_goes_to_the_nearest(chosen, columns, then):
    control = ScaleSharing()
    control.fit(2048)
    control.index = list(control.options).index(chosen)
    control.fit(columns)
    assert control.value == then
    kind, size = {"matrix": ("tensor", None), "row": ("channel", None)}.get(
        then, ("group", int(then.split()[-1]) if "group" in then else None)
    )
    assert (control.granularity.kind, control.granularity.group_size) == (kind, size)


def test_who_has_a_scale_is_named():
    assert [each(n) for n in ("matrix", "row", "group of 8")] == [
        "the whole matrix", "each row", "each group of 8",
    ]  # fmt: skip
    assert sharing("group of 8").group_size == 8


def test_the_gallery_says_what_its_picture_shows():
    page = Gallery()
    w = load_layer(None, FIRST_LAYER).float()[:32, :32]
    assert page.bits_control.options == ["2", "3", "4", "5", "6", "7", "8"]
    assert page.bits_control.value == "8"
    for i, bits in enumerate(range(2, 9)):
        q = quantize(w, "affine", bits=bits, granularity="channel")
        off = float((w - q.dequantize()).double().norm() / w.double().norm())
        levels = q.grid.qmax - q.grid.qmin + 1
        expected = {"bits": (bits, "bits:"), "levels": (levels, "levels in each row"), "off": off}
        holds(page.caption.texts[i], digits=2, **expected)
        assert page.picture.values_at(5, 7)[i] == q.dequantize()[5, 7].item()
        assert page.picture.labels[i] == f"{bits} bits"
    assert math.prod(page.picture.shape) == 32 * 32
    assert [n.value for n in numbers_in(page.picture.label)] == [32, 32]
