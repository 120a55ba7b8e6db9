"""What stands beside a kernel's steps is what the weight, the input and the codes are."""

import pytest
import torch
from said import holds, numbers_in

from qviz.kernels import registry
from qviz.kernels.formats import FORMATS
from qviz.kernels.tiles import SHOWN, Block, walk
from qviz.ui.views import KernelsLesson
from qviz.ui.views.kernels_tile import SHOWS, label, picture, products, story

OUT, IN, ROWS, PROGRAM = 8, 256, 2, 1
STORED = {
    "triton.w4a16": ["int4-g128", "int4-asym-g64"],
    "triton.nf4": ["nf4-g64", "nf4-g128"],
    "triton.w8a8": ["int8"],
}
CASES = [(kernel, stored) for kernel, names in STORED.items() for stored in names]


class Seen:
    """A small program, and what it works on, the plain way."""

    def __init__(self, kernel: str, stored: str) -> None:
        g = torch.Generator().manual_seed(1)
        weight = torch.randn(OUT, IN, generator=g)
        self.x = torch.randn(IN, generator=g).bfloat16()
        self.kernel, self.q = kernel, FORMATS[stored].quantize(weight)
        wide = 8 if kernel == "triton.w8a8" else 4
        self.walk = walk(kernel, self.q, self.x, program=PROGRAM, block=Block(ROWS, wide))
        rows = slice(ROWS * PROGRAM, ROWS * (PROGRAM + 1))
        self.wide = registry.get(kernel).reference(self.q, self.x[None])[0, rows]
        self.steps = self.walk.steps

    def code(self, row: int, column: int) -> int:
        return int(self.q.codes[ROWS * PROGRAM + row, column])

    def parameters(self, row: int, column: int) -> tuple[float, float]:
        """(scale, zero point of unsigned codes)."""
        r, g = self.q.group_of(ROWS * PROGRAM + row, column)
        zero = self.q.grid.zero_point if hasattr(self.q.grid, "zero_point") else None
        return float(self.q.grid.scale[r, g]), 0.0 if zero is None else float(zero[r, g])


@pytest.fixture(params=CASES, ids=lambda case: case[1])
def seen(request) -> Seen:
    return Seen(*request.param)


def test_there_is_a_case_for_every_kernel_shown():
    assert set(STORED) == set(SHOWN)


def check_word(told: dict, code: int, at: int, row_codes: list[int]) -> None:
    """Thirty-two bits in groups of four, the weight's own in brackets; its plane's columns."""
    bits = told["its four bits there"].split()
    (mine,) = (each for each in bits if each.startswith("["))
    assert len(bits) == 8 and int(mine.strip("[]"), 2) == code
    number, _, word = told["its 32-bit word"].partition(": 0x")
    assert int("".join(bits).replace("[", "").replace("]", ""), 2) == int(word, 16)
    first, last = (int(n.value) for n in numbers_in(told["columns in its bit plane"]))
    assert first <= at <= last and last - first == 15
    assert int(number.removeprefix("number ")) == at - first
    assert row_codes[at] == code


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 5), (1, 127), (0, 70)])
def test_each_step_tells_the_numbers_of_one_weight(seen, row, column):
    told = story(seen.walk, row, column, seen.wide)
    assert len(told) == len(seen.steps)
    for step, known in zip(seen.steps, told, strict=True):
        if step.event == "tile.words":  # another tile: nothing of the last one but the sum
            assert set(known) <= {
                "what happens", "its 32-bit word", "its four bits there",
                "columns in its bit plane", "the sum of its row",
            }  # fmt: skip
    last = told[-1]
    at = column + 128  # the same place in the second and last tile
    x = float(seen.x[at])
    holds(last["output y, in bfloat16"], y=float(seen.walk.y[row]))
    holds(last["the same in float64"], y=float(seen.wide[row]))
    if seen.kernel == "triton.w8a8":
        scale = float(seen.x.float().abs().max()) / 127
        code, x_code = seen.code(row, at), round(x / scale)
        rows = seen.q.codes[ROWS * PROGRAM + row].long()
        whole = int((rows * (seen.x.float() / scale).round().long()).sum())
        holds(last["code q"], q=code)
        holds(last["input's code"], x=x_code)
        holds(last["q · q_x"], product=code * x_code)
        holds(last["the sum of its row"], sum=whole)
        holds(last["token's scale"], scale=scale)
        return
    scale, zero = seen.parameters(row, at)
    code = seen.code(row, at) - min(0, getattr(seen.q.grid, "qmin", 0))
    holds(last["scale s"], s=scale)
    holds(last["input x"], x=x)
    holds(last["code q"], q=code)
    weight = float(seen.q.dequantize()[ROWS * PROGRAM + row, at])
    holds(last["weight ŵ"], w=weight)
    if seen.kernel == "triton.w4a16":
        value = round(weight / scale)
        holds(last["zero point z"], z=code - value)
        holds(last["q − z"], value=value)
        holds(last["(q − z) · x"], product=value * x)
    else:
        value = float(seen.q.grid.values[code])
        holds(last["its level"], level=value)
        holds(last["level · x"], product=value * x)
    holds(last["the sum of its row"], sum=float(seen.wide[row]))
    offset = min(0, getattr(seen.q.grid, "qmin", 0))
    codes = (seen.q.codes[ROWS * PROGRAM + row, 128:].int() - offset).tolist()
    check_word(last, code, column, codes)
    assert zero == 0 or seen.kernel == "triton.w4a16"


def test_a_step_is_labelled_by_what_it_shows_and_where(seen):
    for step in seen.steps:
        said = label(step)
        assert said.startswith(SHOWS[step.event])
        if step.columns.stop:
            _, _, where = said.partition(", columns ")
            holds(where, first=step.columns.start, last=step.columns.stop - 1)
        else:
            assert said == SHOWS[step.event]


def test_the_picture_of_a_step_holds_the_weights_that_it_works_on(seen):
    frames = picture(seen.walk, 128)
    rows = slice(ROWS * PROGRAM, ROWS * (PROGRAM + 1))
    weight, codes = seen.q.dequantize()[rows], seen.q.codes[rows].float()
    codes = codes - min(0, getattr(seen.q.grid, "qmin", 0))
    for i, (step, frame) in enumerate(zip(seen.steps, frames, strict=True)):
        assert frame.shape == (ROWS, 128)
        part = step.columns
        if step.event == "tile.weight":
            torch.testing.assert_close(frame, weight[:, part].float())
        elif step.event == "tile.codes":
            torch.testing.assert_close(frame, codes[:, part])
        elif step.event == "tile.weights":
            torch.testing.assert_close(frame, seen.q.codes[rows, part].float())
        elif step.event == "tile.products":
            torch.testing.assert_close(frame, products(seen.walk, i).float())
        elif step.event == "tile.inputs" and seen.kernel != "triton.w8a8":
            torch.testing.assert_close(frame, seen.x[part].float().expand(ROWS, -1))
        elif step.event == "tile.rows":
            assert not frame.any()
        elif step.event == "tile.store":
            torch.testing.assert_close(frame, seen.walk.y.float()[:, None].expand(-1, 128))
        elif step.event == "tile.total":
            total = step.tensors["total"].sum(1, keepdim=True)
            torch.testing.assert_close(frame, total.expand(-1, 128))


def test_the_page_says_where_it_is_and_what_was_read():
    lesson = KernelsLesson()
    lesson.part_control.index = 1
    part = lesson.inside
    part.program_control.index = 3
    found, q = part.walk, part.shown.q
    _, _, rest = part.origin.text.partition("bundled model, ")
    assert rest.startswith(f"{q.shape[0]}×{q.shape[1]}, and one of its real inputs")
    _, _, rest = rest.partition("The whole product takes ")
    programs = -(-q.shape[0] // (found.rows.stop - found.rows.start))
    holds(rest, programs=(programs, "such programs"), program=3)
    rows = {row["label"]: row["texts"] for row in part.traffic.rows}
    every, ours, weights = 0, 0, 0
    for i, step in enumerate(found.steps):
        every += step.nbytes
        if step.event in ("tile.words", "tile.weights", "tile.scale"):
            ours += step.nbytes
        if step.event in ("tile.words", "tile.weights"):
            size = step.columns.stop - step.columns.start
            weights += 2 * size * (found.rows.stop - found.rows.start)
        holds(rows["bytes read so far"][i], all=(every, "bytes"))
        holds(rows["of these, weights and scales"][i], ours=(ours, "bytes"))
        holds(rows["the same weights at 16 bits"][i], plain=(weights, "bytes"))
    part.tile_view.cursor = [2, 9]
    label = part.table.label
    holds(label, row=found.rows.start + 2, column=9)
