"""Lesson 1 in a real Chromium: the slider by keyboard and by mouse, held against the library."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driver import Tab, canvas_pixels, eventually, run_first_cell

import qviz
from qviz.ui.views.bit_width import BITS, BitWidthLesson
from qviz.ui.views.layer_page import FIRST_LAYER
from qviz.ui.widgets import codec, colors

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
READY = ".qv-chart .js-plotly-plot .scatterlayer"


@pytest.fixture(scope="module")
def tab(base: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    # A dense screen, so that every cell that was sent has a pixel of its own to be compared.
    tab = open_tab(device_scale_factor=3)
    tab.open(f"{base}/voila/render/01_bit_width.ipynb", READY)
    yield tab
    tab.assert_clean()


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return qviz.load_layer(None, FIRST_LAYER).float()


def quantized(weight: torch.Tensor, bits: int, **options: Any) -> qviz.QuantizedTensor:
    options = {"group_size": 128, **options}
    return qviz.quantize(weight, bits=bits, scale_dtype=torch.float16, **options)


def rows(tab: Tab) -> dict[str, str]:
    """Label → text of the tables on the page."""
    return dict(
        tab.page.eval_on_selector_all(
            ".qv-readout tr",
            "all => all.map(r => [...r.querySelectorAll('th, td')].map(c => c.textContent))",
        )
    )


def picture(tab: Tab, which: int) -> np.ndarray:
    return canvas_pixels(tab, ".qv-matrix canvas.qv-values", which)


def wait_for_bits(tab: Tab, bits: int) -> None:
    at = BITS.index(bits)
    tab.until(
        "n => [...document.querySelectorAll('.qv-matrix')].slice(1)"
        ".every(e => e.dataset.qvPainted === String(n))",
        at,
    )
    eventually(lambda: f"{bits} bits:" in str(tab.page.text_content(".qv-caption-row")))


def expected_colours(values: np.ndarray, limit: float, reduce: codec.Reduce) -> np.ndarray:
    """The colour of every sent cell of a light page: blue below zero, red above."""
    small = codec.reduce_matrix(values, codec.factors(values.shape), reduce)
    at = np.clip((small + limit) / (2 * limit), 0, 1) * 255
    return colors.palette("diverging")[np.rint(at).astype(int)]


def assert_shows(tab: Tab, which: int, values: np.ndarray, limit: float, reduce: str) -> None:
    """Every cell of the picture has the colour of its value, but for one step of 8 bits."""
    want = expected_colours(values, limit, reduce).astype(int)
    image = picture(tab, which).astype(int)
    r = ((np.arange(want.shape[0]) + 0.5) * image.shape[0] / want.shape[0]).astype(int)
    c = ((np.arange(want.shape[1]) + 0.5) * image.shape[1] / want.shape[1]).astype(int)
    off = np.abs(image[r][:, c] - want).max(axis=-1)
    assert np.quantile(off, 0.999) <= 8, f"picture {which} is off by {off.max()}"


def test_opens_with_the_numbers_of_the_library(tab, weight):
    table = rows(tab)
    q = quantized(weight, 8)
    row, column = (int(v) for v in table["row, column"].split(", "))
    assert float(table["reconstruction x̂"].replace("−", "-")) == pytest.approx(
        q.dequantize()[row, column].item(), rel=1e-3
    )
    assert table["bits per weight"] == f"{q.bits_per_weight:.4g}"


def test_the_slider_by_keyboard_changes_pixels_and_numbers_to_the_right_values(tab, weight):
    slider = tab.page.get_by_role("slider", name="Bits per code")
    slider.focus()
    tab.page.keyboard.press("Home")
    # The ends of the colour maps do not change with the bits, so that the error is seen to shrink.
    python = BitWidthLesson()
    limit_of_weights = python.pictures.rounded.shared_limits[0][1]
    limit_of_errors = python.pictures.error.shared_limits[0][1]
    seen = []
    for bits in BITS:
        wait_for_bits(tab, bits)
        q = quantized(weight, bits)
        r = q.dequantize()
        assert_shows(tab, 1, r.numpy(), limit_of_weights, "nearest")
        assert_shows(tab, 2, (weight - r).numpy(), limit_of_errors, "max_abs")
        table = rows(tab)
        assert table["bits per weight"] == f"{q.bits_per_weight:.4g}"
        assert table["codes"] == str(bits)
        seen.append(picture(tab, 2))
        tab.page.keyboard.press("ArrowRight")
    assert all(not np.array_equal(a, b) for a, b in pairwise(seen))


def test_the_slider_by_mouse(tab):
    slider = tab.page.get_by_role("slider", name="Bits per code")
    where = slider.bounding_box()
    y = where["y"] + where["height"] / 2
    tab.page.mouse.move(where["x"] + where["width"] - 4, y)
    tab.page.mouse.down()
    for step in range(20):
        tab.page.mouse.move(where["x"] + where["width"] * (1 - step / 19), y)
    tab.page.mouse.up()
    wait_for_bits(tab, 2)
    assert rows(tab)["codes"] == "2"


def test_what_the_kernel_computes_when_a_control_changes(tab, weight):
    tab.page.get_by_role("radio", name="asymmetric", exact=True).click()
    q = quantized(weight, 2, symmetric=False)
    eventually(lambda: rows(tab).get("bits per weight") == f"{q.bits_per_weight:.4g}", 30)
    assert "zero points" in rows(tab)
    slider = tab.page.get_by_role("slider", name="One scale per")
    slider.focus()
    tab.page.keyboard.press("Home")  # one scale for the matrix
    q = quantized(weight, 2, symmetric=False, granularity="tensor", group_size=None)
    eventually(lambda: rows(tab).get("bits per weight") == f"{q.bits_per_weight:.4g}", 30)
    eventually(
        lambda: "levels for the whole matrix" in str(tab.page.text_content(".qv-caption-row")), 30
    )


def said_of(tab: Tab, weight: torch.Tensor, expected: Callable[[int, int], bool]) -> str:
    """The table's cell once it is an expected one and its weight is the library's."""
    table = rows(tab)
    row, column = (int(v) for v in table["row, column"].split(", "))
    x = float(table["trained weight x"].replace("−", "-"))
    same = x == pytest.approx(weight[row, column].item(), rel=1e-3)
    return table["row, column"] if expected(row, column) and same else ""


def test_pointing_at_a_weight_reads_it_out_everywhere(tab, weight):
    stage = tab.page.locator(".qv-matrix .qv-stage").first
    box = stage.bounding_box()
    where = {"x": box["width"] * 0.9, "y": box["height"] * 0.5}
    stage.hover(position=where)
    before = eventually(lambda: said_of(tab, weight, lambda row, column: column > 800))
    stage.click(position=where)  # held: the cursor no longer follows the mouse
    other = {"x": box["width"] * 0.2, "y": box["height"] * 0.8}
    stage.hover(position=other)
    tab.page.wait_for_timeout(300)
    assert said_of(tab, weight, lambda row, column: column > 800) == before
    stage.click(position=where)  # and let go
    stage.hover(position=other)
    after = eventually(lambda: said_of(tab, weight, lambda row, column: column < 400 and row > 128))
    assert before != after


def test_a_bad_source_is_said_in_words_and_the_page_keeps_working(tab):
    tab.page.get_by_role("button", name="Your own layer").click()
    tab.page.get_by_role("textbox", name="Model").fill("/no/such/place")
    tab.page.get_by_role("button", name="Open it").click()
    tab.page.wait_for_selector(".qv-status [role=alert]")
    assert "/no/such/place" in str(tab.page.text_content(".qv-status [role=alert]"))
    slider = tab.page.get_by_role("slider", name="Bits per code")
    slider.focus()
    tab.page.keyboard.press("End")
    wait_for_bits(tab, 8)


def test_on_a_phone(base, open_tab):
    tab = open_tab(width=390, height=844, color_scheme="dark", has_touch=True)
    tab.open(f"{base}/voila/render/01_bit_width.ipynb", READY)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.page.get_by_role("slider", name="Bits per code").focus()
    tab.page.keyboard.press("End")
    wait_for_bits(tab, 8)
    tab.assert_clean()


def test_the_gallery_leads_to_the_lesson(base, open_tab):
    tab = open_tab()
    tab.open(f"{base}/", ".qv-matrix[data-qv-painted]")
    tab.page.get_by_role("slider", name="Bits per code").focus()
    tab.page.keyboard.press("Home")
    eventually(lambda: "2 bits" in str(tab.page.text_content(".qv-caption")))
    tab.assert_clean()
    tab.page.get_by_role("link", name="Start with 1 · Bit width").click()
    tab.page.wait_for_selector(".qv-chart .js-plotly-plot", timeout=60_000, state="attached")
    tab.assert_clean()


def test_in_jupyterlab(open_tab, lab, weight):
    """There the kernel answers on another thread."""
    url, _ = lab()
    tab = open_tab(width=1600, height=1000)
    run_first_cell(tab, f"{url}/lab/tree/01_bit_width.ipynb")
    tab.page.wait_for_selector(READY, timeout=60_000, state="attached")
    slider = tab.page.get_by_role("slider", name="Bits per code")
    slider.focus()
    tab.page.keyboard.press("Home")
    wait_for_bits(tab, 2)
    assert rows(tab)["codes"] == "2"
    tab.page.get_by_role("radio", name="asymmetric", exact=True).click()
    want = f"{quantized(weight, 2, symmetric=False).bits_per_weight:.4g}"
    eventually(lambda: rows(tab).get("bits per weight") == want, 30)
    tab.assert_clean()
    tab.close()
