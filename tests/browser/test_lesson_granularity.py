"""Lesson 4 in a real Chromium: the outlier dragged by keyboard, chosen by a click, and outlined."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from driver import Tab, canvas_pixels, eventually

from qviz.ui.views import GranularityLesson
from qviz.ui.views.granularity_words import SIZES

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LAYER = "model.layers.0.self_attn.k_proj"
READY = ".qv-chart .js-plotly-plot .scatterlayer"
SAID = ".qv-main .qv-caption-row"


@pytest.fixture(scope="module")
def tab(base: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    tab = open_tab(device_scale_factor=2)
    tab.open(f"{base}/voila/render/04_granularity.ipynb#layer={LAYER}", READY, 120)
    tab.until("l => document.body.dataset.qvAddress === l", f"layer={LAYER}", seconds=60)
    yield tab
    tab.assert_clean()


@pytest.fixture(scope="module")
def python() -> GranularityLesson:
    """The same page without a browser."""
    return GranularityLesson(layer=LAYER)


def said(tab: Tab) -> str:
    """The caption that is shown; what is spoken of it follows."""
    return str(tab.page.locator(f"{SAID}:visible").inner_text())


def test_dragging_by_keyboard_shows_each_size_and_its_pixels(tab, python):
    slider = tab.page.get_by_role("slider", name="Size of the outlier")
    slider.focus()
    tab.page.keyboard.press("Home")
    captions = python.outlier.caption.texts
    errors = [one.fates for one in python.outlier.shown.shared.values()]
    dark: list[float] = []
    for i in range(len(SIZES)):
        eventually(lambda i=i: said(tab).startswith(captions[i]))
        tab.until(
            "i => [...document.querySelectorAll('.qv-matrix')].every("
            "e => e.dataset.qvPainted === String(i))", i,
        )  # fmt: skip
        picture = canvas_pixels(tab, ".qv-matrix canvas.qv-values", 1).astype(int)
        # What came back as 0 with one scale for the matrix is the middle of the colour map.
        middle = np.abs(picture - picture.max(axis=(0, 1))).sum(-1) < 24
        dark.append(float(middle.mean()))
        tab.page.keyboard.press("ArrowRight")
    zeros = [float((fate.back == 0).float().mean()) for fate in errors[0]]
    assert np.corrcoef(dark, zeros)[0, 1] > 0.95
    assert dark[-1] > 0.95 > dark[0]


def test_a_click_makes_another_weight_the_outlier(tab, python):
    stage = tab.page.locator(".qv-matrix .qv-stage").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    window = python.outlier.shown.window
    row, column = 6, 40
    stage.click(position={"x": box["width"] * (column + 0.5) / window.columns,
                          "y": box["height"] * (row + 0.5) / window.rows})  # fmt: skip
    where = f"row {window.row + row}, column {window.column + column} is".lower()
    eventually(lambda: where in said(tab).lower(), 30)
    python.outlier.first_view.cursor = [row, column]
    python.outlier.first_view.pinned = True
    at = tab.page.get_by_role("slider", name="Size of the outlier").input_value()
    assert said(tab).startswith(python.outlier.caption.texts[int(at)])
    eventually(lambda: "outlier=6%2C+40" in tab.page.evaluate("location.hash"))


def test_those_who_share_are_outlined(tab, python):
    """In the error with a scale per row the colour of now stands around that row alone."""
    shown = python.outlier.shown
    now = tab.page.evaluate(
        "(() => { const d = document.createElement('i'); d.style.color = 'var(--qv-now)';"
        "document.querySelector('.qv-root').append(d);"
        "const c = getComputedStyle(d).color.match(/[0-9]+/g).map(Number); d.remove();"
        "return c; })()"
    )
    over = canvas_pixels(tab, ".qv-matrix canvas.qv-over", 4).astype(int)
    height = over.shape[0] / shown.window.rows
    near = np.abs(over - np.array(now)).sum(-1) < 30
    row = shown.cell[0] - shown.window.row
    lines = near.mean(axis=1)
    around = slice(int((row - 0.5) * height), int((row + 1.5) * height))
    assert lines[around].max() > 0.9
    away = np.delete(lines, np.arange(int((row - 1) * height), int((row + 2) * height)))
    assert away.max() < 0.2


def test_the_other_part_compares_at_equal_bits(tab, python):
    tab.page.get_by_role("radio", name="equal bits").click()
    slider = tab.page.get_by_role("slider", name="Budget")
    slider.wait_for()
    python.go({"layer": LAYER, "part": "equal bits"})
    texts = python.budget.caption.texts
    eventually(lambda: said(tab).startswith(texts[python.budget.budget_control.index]), 60)
    slider.focus()
    tab.page.keyboard.press("End")
    tab.page.keyboard.press("ArrowLeft")
    eventually(lambda: said(tab).startswith(texts[-2]))
    assert "The group of 16 loses" in texts[-2]
