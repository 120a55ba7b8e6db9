"""Lesson 2 in a real Chromium: bits pressed, painted and typed at; the line; blocks of weights."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from driver import Tab, eventually, follow

import qviz
from qviz.study.number_formats import TITLES, count_between, land, value_of
from qviz.ui.views.layer_page import FIRST_LAYER
from qviz.ui.widgets import as_address, exactly, from_address

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
READY = ".qv-line-stage canvas"
NAMES = list(TITLES)
WHERE = "voila/render/02_formats.ipynb"


@pytest.fixture(scope="module")
def tab(base: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    tab = open_tab()
    tab.open(f"{base}/{WHERE}", READY)
    yield tab
    tab.assert_clean()


FIRST = {"format": "fp32", "beside": "int8", "x": "0.1"}


def go(tab: Tab, **state: str) -> None:
    """To a state of the page; the kernel has confirmed it."""
    asked = {name: text for name, text in state.items() if text != FIRST.get(name)}
    follow(tab, as_address(asked))


def address(tab: Tab) -> dict[str, str]:
    return from_address(str(tab.page.evaluate("document.body.dataset.qvAddress ?? ''")))


def bits(tab: Tab) -> str:
    """The row of bits, as pressed."""
    return "".join(
        tab.page.eval_on_selector_all(
            ".qv-bit-group button", "all => all.map(b => b.getAttribute('aria-pressed') === 'true' "
            "? '1' : '0')")
    )  # fmt: skip


def said(tab: Tab) -> str:
    return str(tab.page.locator(".qv-caption-row .qv-caption").first.inner_text())


def follows(tab: Tab, name: str, code: int) -> None:
    """The page follows the number of this code."""
    value = exactly(value_of(name, code))
    eventually(lambda: said(tab).startswith(f"{TITLES[name]}: {value} is one of its numbers"))
    readout = ".qv-readout tr:has(th:text-is('value x̂')) td"
    eventually(lambda: tab.page.locator(readout).inner_text() == value)


def test_the_slider_shows_every_format_without_a_computation(tab):
    slider = tab.page.get_by_role("slider", name="Format")
    slider.focus()
    tab.page.keyboard.press("Home")
    for name in NAMES:
        at = land(0.1, name)
        eventually(lambda at=at: bits(tab) == f"{at.code:b}".zfill(len(bits(tab))))
        eventually(lambda name=name: said(tab).startswith(f"{TITLES[name]}: 0.1 lies between"))
        current = tab.page.locator(".qv-numbers tr[aria-current] th").first
        eventually(lambda name=name, c=current: c.inner_text() == TITLES[name])
        tab.page.keyboard.press("ArrowRight")


def test_a_bit_is_pressed_by_mouse_and_by_keyboard(tab):
    go(tab, x="1.5", format="fp8_e4m3")
    assert bits(tab) == "00111100"
    tab.page.get_by_role("button", name="exponent bit 3, weight 8").click()
    follows(tab, "fp8_e4m3", 0b01111100)
    tab.page.keyboard.press("ArrowRight")
    focused = "document.activeElement.getAttribute('aria-label')"
    assert tab.page.evaluate(focused) == "exponent bit 2, weight 4"
    tab.page.keyboard.press("Space")
    follows(tab, "fp8_e4m3", 0b01011100)
    tab.page.keyboard.press("ArrowUp")
    follows(tab, "fp8_e4m3", 0b01011101)
    tab.page.keyboard.press("End")
    assert tab.page.evaluate(focused) == "mantissa bit 0, weight 1/8"
    stops = tab.page.eval_on_selector_all(
        ".qv-bit-group button", "all => all.filter(b => b.tabIndex === 0).length"
    )
    assert stops == 1
    assert tab.page.get_by_label("A number to follow").input_value() == "26"


def test_bits_are_painted_by_dragging(tab):
    go(tab, x="0", format="bf16")
    boxes = [b.bounding_box() for b in tab.page.locator(".qv-bit-exponent button").all()]
    middle = boxes[0]["y"] + boxes[0]["height"] / 2
    tab.page.mouse.move(boxes[1]["x"] + 8, middle)
    tab.page.mouse.down()
    for box in boxes[1:]:
        tab.page.mouse.move(box["x"] + box["width"] / 2, middle, steps=3)
    tab.page.mouse.up()
    assert bits(tab) == "0011111110000000"  # at once, before the kernel has answered
    follows(tab, "bf16", 0b0_01111111_0000000)
    tab.page.mouse.move(boxes[7]["x"] + 8, middle)
    tab.page.mouse.down()
    tab.page.mouse.move(boxes[4]["x"] + 8, middle, steps=6)
    tab.page.mouse.up()
    follows(tab, "bf16", 0b0_01110000_0000000)


@pytest.mark.parametrize(
    ("name", "beside", "view"),
    [("fp32", "bf16", "1, 2"), ("fp16", "fp8_e4m3", "-1, 1"), ("int8", "nf4", "-0.3, 40"),
     ("fp4_e2m1", "e8m0", "even 0.1, 7"), ("fp32", "tf32", "1.0001, 1.000101"),
     ("fp32", "int8", "-4e38, 4e38")],
)  # fmt: skip
def test_the_line_counts_what_is_there(tab, name, beside, view):
    """The browser's counts of what is in view, by the library's."""
    whole = view == "-4e38, 4e38"
    go(tab, format=name, beside=beside, **({} if whole else {"view": view}))
    low, high = (float(end) for end in view.removeprefix("even ").split(", "))
    wanted = f"{count_between(name, low, high)} {count_between(beside, low, high)}"
    eventually(lambda: tab.page.get_attribute(".qv-format-line", "data-counts") == wanted)
    label = str(tab.page.get_attribute(".qv-line-stage", "aria-label"))
    assert TITLES[name] in label and TITLES[beside] in label


def test_the_line_is_zoomed_and_moved(tab):
    go(tab, x="2.5", format="fp4_e2m1")
    tab.page.get_by_role("button", name="Around the number").click()
    eventually(lambda: "view" in address(tab))
    counts = lambda: str(tab.page.get_attribute(".qv-format-line", "data-counts"))  # noqa: E731
    eventually(lambda: 8 <= int(counts().split()[0]) <= 12)
    assert address(tab)["view"].startswith("even ")
    before = address(tab)["view"]
    stage = tab.page.locator(".qv-line-stage")
    box = stage.bounding_box()
    tab.page.mouse.move(box["x"] + 200, box["y"] + 90)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 300, box["y"] + 90, steps=5)
    tab.page.mouse.up()
    eventually(lambda: address(tab)["view"] != before)
    stage.focus()
    tab.page.keyboard.press("Home")
    eventually(lambda: "view" not in address(tab))
    y = tab.page.evaluate("scrollY")
    tab.page.evaluate("document.activeElement.blur()")
    tab.page.mouse.wheel(0, 300)  # not at the line: the page scrolls
    eventually(lambda: tab.page.evaluate("scrollY") > y)
    tab.page.evaluate("scrollTo(0, 0)")
    pixels = "(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]" \
             ".filter((v, i) => i % 4 === 3 && v).length)(document.querySelector('.qv-line-stage " \
             "canvas'))"  # fmt: skip
    assert tab.page.evaluate(pixels) > 500


def test_a_wrong_number_is_said_and_a_right_one_follows(tab):
    go(tab, format="fp16")
    field = tab.page.get_by_label("A number to follow")
    field.fill("one half")
    field.press("Enter")
    alert = tab.page.get_by_role("alert").filter(has_text="not a number here")
    alert.wait_for(timeout=20_000)
    field.fill("1/2")
    field.press("Enter")
    eventually(lambda: said(tab).startswith("FP16: 0.5 is one of its numbers"))
    eventually(lambda: alert.count() == 0)


def test_pointing_at_a_weight_shows_its_block(tab):
    go(tab, part="a block of weights")
    weight = qviz.load_layer(None, FIRST_LAYER).float()
    q = qviz.quantize(weight, "microscaling", format="mxfp4").dequantize()
    stage = tab.page.locator(".qv-matrix .qv-stage").first
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] * 0.8, "y": box["height"] * 0.4})

    def right() -> bool:
        rows = dict(
            tab.page.eval_on_selector_all(
                ".qv-readout tr",
                "all => all.map(r => [...r.querySelectorAll('th, td')].map(c => c.textContent))",
            )
        )
        where = tab.page.locator(".qv-matrix").first.inner_text()
        row, column = (int(s) for s in where.split("out ")[1].split(":")[0].split(", in "))
        v, back = float(weight[row, column]), float(q[row, column])
        number = {k: float(t.replace("−", "-")) for k, t in rows.items() if k in
                  ("trained weight v", "v̂ = P(q) · s")}  # fmt: skip
        return column > 700 and np.allclose(list(number.values()), [v, back], rtol=1e-3, atol=1e-9)

    eventually(right)


def test_on_a_phone_by_touch(base, open_tab):
    tab = open_tab(width=390, height=844, color_scheme="dark", has_touch=True)
    tab.open(f"{base}/{WHERE}#format=fp32&x=1", READY)
    eventually(lambda: address(tab) == {"x": "1"}, 60)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    small = tab.page.eval_on_selector_all(
        ".qv-bit-group button",
        "all => all.filter(b => Math.min(b.clientWidth, b.clientHeight) < 22).length",
    )
    assert small == 0
    tab.page.get_by_role("button", name="sign bit").tap()
    eventually(lambda: said(tab).startswith("FP32: −1 is one of its numbers"))
    tab.assert_clean()
    tab.close()
