"""Lesson 5 in a real Chromium: the block size by keyboard, a level by mouse, bytes under the
pointer; held against the library."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from driver import Tab, eventually, follow
from said import numbers_in

import qviz
from qviz.study.level_duel import Blocks, distinct
from qviz.ui.views.nf4 import SIZES

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
READY = "body[data-qviz-ready] .qv-page"
LAYER = "model.layers.0.self_attn.k_proj"


@pytest.fixture(scope="module")
def tab(base: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    tab = open_tab()
    tab.open(f"{base}/voila/render/05_nf4.ipynb", READY)
    yield tab
    tab.assert_clean()


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return qviz.load_layer(None, LAYER).float()


def go(tab: Tab, link: str) -> Any:
    follow(tab, link)
    return tab.page


def table(tab: Tab, caption: str) -> dict[str, list[str]]:
    """Rows of the table of that caption: label → cells."""
    return dict(
        tab.page.evaluate(
            """caption => {
                const all = [...document.querySelectorAll('table')].filter((t) => t.caption &&
                  t.caption.textContent === caption && t.getClientRects().length);
                return all.flatMap((t) => [...t.tBodies[0].rows].map((r) =>
                  [r.cells[0].textContent, [...r.cells].slice(1).map((c) => c.textContent)]));
            }""",
            caption,
        )
    )


def test_each_step_adds_one_level_without_the_kernel(tab):
    page = go(tab, f"layer={LAYER}")
    scrub = page.get_by_role("slider", name="step")
    scrub.focus()
    for step in range(1, 4):
        page.keyboard.press("ArrowRight")
        eventually(
            lambda step=step: (
                sum(
                    bool(cells[2])
                    for name in ("Above zero", "Zero and below")
                    for cells in table(tab, name).values()
                )
                == step
            )
        )
    page.keyboard.press("End")
    eventually(lambda: table(tab, "Zero and below")["code 0"][2] == "−1")
    assert "All 16 levels are done" in page.locator(".qv-transport .qv-caption").inner_text()


def test_the_block_size_by_keyboard_changes_bill_and_words(tab, weight):
    page = go(tab, f"layer={LAYER}&part=store")
    page.get_by_role("slider", name="Block size").focus()
    page.keyboard.press("Home")
    for size in SIZES:
        q = qviz.quantize(weight, "nf4", group_size=size)
        double = qviz.quantize(weight, "nf4", group_size=size, double_quant=True)
        want = [f"{q.bits_per_weight:.3f}", f"{double.bits_per_weight:.3f}"]
        eventually(lambda want=want: table(tab, "What this layer costs")["together"][2::2] == want)
        words = page.locator(".qv-caption-row:visible").inner_text()
        assert f"Blocks of {size}: {want[0]} bits" in words
        page.keyboard.press("ArrowRight")


def test_pointing_at_a_weight_shows_its_byte(tab, weight):
    page = go(tab, f"layer={LAYER}&part=store&block=32")
    packed = qviz.quantize(weight, "nf4", group_size=32).pack()["codes"]
    stage = page.locator(".qv-stage:visible").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] * 0.7, "y": box["height"] * 0.4})

    def read() -> Any:
        where = table(tab, "The chosen weight in NF4")["row, column"][0]
        row, column = (int(part) for part in where.split(", "))
        byte = table(tab, "In memory")["byte"][0]
        at = (row * 256 + column) // 2
        return column > 128 and byte.startswith(f"{at}: 0x{packed[at]:02x}") and packed[at]

    byte = int(eventually(read))
    lit = page.locator(".qv-numbers:visible td.qv-lit", has_text=f"{byte:02x}")
    assert lit.count() >= 1


def test_dragging_a_level_with_the_mouse_answers_with_the_exact_error(tab, weight):
    page = go(tab, f"layer={LAYER}&part=duel")
    board = "How large the error is, at how many bits per weight"
    before = table(tab, board)["your levels"][0]
    knob = page.get_by_role("slider", name="level 4", exact=True)
    knob.scroll_into_view_if_needed()
    box = page.locator(".qv-line-stage:visible").bounding_box()
    at = float(knob.get_attribute("aria-valuenow"))

    def x(value: float) -> float:
        return box["x"] + 8 + (value + 1) / 2 * (box["width"] - 16)

    y = box["y"] + box["height"] * 0.6
    page.mouse.move(x(at), y)
    page.mouse.down()
    for part in range(1, 6):
        page.mouse.move(x(at + 0.05 * part / 5), y)
    page.mouse.up()
    eventually(lambda: table(tab, board)["your levels"][0] != before)
    blocks = Blocks.of(weight, group_size=64)

    def agrees() -> bool:
        values = page.eval_on_selector_all(
            ".qv-line:not([hidden]) .qv-knob", "all => all.map((k) => +k.ariaValueNow)"
        )
        said = numbers_in(table(tab, board)["your levels"][0])[0]
        return values[4] > at and said.is_(blocks.relative_error(distinct(values)), 4)

    eventually(agrees)
    knob.focus()
    before = table(tab, board)["your levels"][0]
    page.keyboard.press("Shift+ArrowRight")
    eventually(lambda: table(tab, board)["your levels"][0] != before)
    eventually(agrees)
    page.get_by_role("button", name="Start from NF4").click()
    eventually(lambda: table(tab, board)["your levels"][3] == "equal")


def test_a_guess_opens_the_score_board(tab):
    page = go(tab, f"layer={LAYER}&part=duel")
    board = "How large the error is, at how many bits per weight"
    assert set(table(tab, board)) == {"your levels", "NF4"}
    page.locator("select").filter(has_text="your guess").select_option("INT4 asymmetric")
    eventually(lambda: len(table(tab, board)) == 7)
    eventually(lambda: "In blocks of 64: NF4" in str(page.text_content(".qv-aside")))
    assert page.locator(".qv-chart:visible").count() == 2
