"""Lesson 9 in a real Chromium: steps by keyboard without the kernel, bytes under pointer and keys,
another block by a click; held against the library."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from driver import Tab, eventually, follow

import qviz
from qviz.methods.gguf import encode
from qviz.study.gguf_files import file_map

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
READY = "body[data-qviz-ready] .qv-page"
LAYER = "model.layers.1.mlp.down_proj"
CELLS = ".qv-byte-row button"


@pytest.fixture(scope="module")
def tab(
    serve_notebooks: Callable[[Path], Any], browser: Any, open_tab: Callable[..., Tab]
) -> Iterator[Tab]:
    with serve_notebooks(NOTEBOOKS) as url:
        tab = open_tab()
        tab.open(f"{url}/voila/render/09_gguf.ipynb", READY)
        yield tab
        tab.assert_clean()


@pytest.fixture(scope="module")
def data() -> torch.Tensor:
    return encode(qviz.load_layer(None, LAYER).float(), "Q4_K")


def go(tab: Tab, link: str) -> Any:
    follow(tab, link)
    return tab.page


def bytes_shown(page: Any) -> list[str]:
    return list(page.eval_on_selector_all(CELLS, "all => all.map((b) => b.textContent)"))


def said(page: Any) -> str:
    return str(page.locator(".qv-transport .qv-caption").inner_text())


def test_steps_by_keyboard_write_the_bytes_section_by_section(tab, data):
    page = go(tab, "")
    scrub = page.get_by_role("slider", name="step")
    scrub.focus()
    assert set(bytes_shown(page)) == {"··"}
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    eventually(lambda: "Try 1 of 21" in said(page))
    page.keyboard.press("End")
    want = [f"{byte:02x}" for byte in data[7, 144:288].tolist()]
    eventually(lambda: bytes_shown(page) == want)
    assert "And back: from these 144 bytes" in said(page)
    page.keyboard.press("ArrowLeft")
    eventually(lambda: page.locator(".qv-byte-now b").inner_text() == "qs")
    page.keyboard.press("ArrowLeft")
    eventually(lambda: page.locator(".qv-byte-now b").inner_text() == "scales")
    assert bytes_shown(page)[16:] == ["··"] * 128
    page.keyboard.press("Home")
    eventually(lambda: "A super-block of Q4_K" in said(page))


def test_a_byte_says_what_its_bits_mean_to_pointer_and_keys(tab, data):
    page = go(tab, "step=31")
    row = data[7, 144:288].tolist()
    cell = page.locator(CELLS).nth(16 + 32 + 5)
    cell.scroll_into_view_if_needed()
    cell.hover()
    about = page.locator(".qv-byte-about")
    low, high = row[53] & 15, row[53] >> 4
    eventually(lambda: f"code of weight 101 (sub-block 3, place 5) = {high}" in about.inner_text())
    assert f"code of weight 69 (sub-block 2, place 5) = {low}" in about.inner_text()
    assert f"{row[53]:08b}"[:4] in about.inner_text()
    cell.click()
    page.locator(CELLS).nth(0).hover()
    assert "Byte 53" in about.inner_text()  # it is held
    cell.click()
    page.locator(CELLS).nth(8).focus()
    page.mouse.move(5, 5)
    page.keyboard.press("ArrowRight")
    eventually(lambda: "Byte 9" in about.inner_text())
    assert "minimum of sub-block 1" in about.inner_text()
    assert "minimum of sub-block 5, its bits 4 to 5" in about.inner_text()


def test_a_click_in_the_layer_opens_another_block(tab, data):
    page = go(tab, "step=31")
    stage = page.locator(".qv-controls .qv-stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    stage.click(position={"x": box["width"] * 0.9, "y": box["height"] * 0.5})
    eventually(lambda: "weight=" in page.evaluate("location.hash"), 20)
    row, column = (int(n) for n in page.evaluate(
        "new URLSearchParams(location.hash.slice(1)).get('weight')").split(", "))  # fmt: skip
    assert column > 768
    want = [f"{byte:02x}" for byte in data[row, 144 * 3 : 144 * 4].tolist()]
    eventually(lambda: bytes_shown(page) == want)


def test_the_file_slider_moves_map_table_and_words(tab):
    page = go(tab, "part=file")
    page.get_by_role("slider", name="File type").focus()
    page.keyboard.press("ArrowLeft")
    one = file_map("Llama-3.1-8B", "Q4_K_S")
    words = page.locator(".qv-caption-row:visible")
    eventually(lambda: f"the whole file has {one.bits:.2f}" in words.inner_text())
    assert f"attn_v in {one.raised['attn_v']} of 32 layers" in words.inner_text()


def test_the_type_slider_needs_no_kernel(tab):
    page = go(tab, "part=types")
    page.get_by_role("slider", name="Type").focus()
    page.keyboard.press("Home")
    eventually(lambda: "Q2_K: 2.625 bits" in page.locator(".qv-caption-row:visible").inner_text())
    page.keyboard.press("End")
    eventually(lambda: "Q8_0: 8.5 bits" in page.locator(".qv-caption-row:visible").inner_text())
