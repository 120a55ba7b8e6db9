"""Every widget in a real browser: what is painted and said is compared with the Python values."""

import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import Tab, canvas_pixels, eventually, run_first_cell, write_notebooks

from qviz.ui.widgets import codec, colors, number

pytestmark = pytest.mark.browser

# Run by the test and by the notebook alike, so that both know the same numbers.
NUMBERS = """
import numpy as np
rng = np.random.default_rng(3)
SMALL = [(rng.standard_normal((12, 16)) / (1 + k)).astype(np.float32) for k in range(5)]
BIG = [rng.standard_normal((1000, 1600)).astype(np.float32) * 0.1 for k in range(5)]
SPIKE = np.zeros((900, 900), np.float32)
SPIKE[407, 613] = -2.5
ODD = np.array([[1.0, np.nan, -1.0], [np.inf, 0.5, -np.inf]])
CODES = np.arange(12).reshape(3, 4) % 4
CURVE = [np.linspace(0, 1, 9) ** (k + 1) for k in range(5)]
"""
PAGE = (
    NUMBERS
    + """
import plotly.graph_objects as go
from qviz.ui.widgets import *

def named(name, widget):
    widget.add_class("t-" + name)
    return widget

names = [f"{k} <b>" for k in range(5)]
slider = named("slider", Slider("Bits & <b>more</b>", [str(b) for b in range(2, 7)], 1, ticks=True))
small = named("small", MatrixView("Small", SMALL, labels=names, limits="max", unit="mV"))
twin = named("twin", MatrixView("Twin", [-m for m in SMALL], labels=names, limits="max"))
big = named("big", MatrixView("Big", BIG, limits=0.3))
spike = named("spike", MatrixView("Spike", [SPIKE], reduce="max_abs"))
odd = named("odd", MatrixView("Odd", [ODD]))
codes = named("codes", MatrixView("Codes", [CODES], colormap="categorical", digits=1))
toggle = named("toggle", Toggle("Own limits"))
choice = named("choice", Choice("Layer", ["first", "second", "third"]))
parts = named("parts", Choice("Kind", ["one", "two"], kind="segmented"))
field = named("field", TextField("Model"))
button = named("button", Button("Compute"))
seen = named("seen", Caption("nothing yet"))
status = named("status", Status())
link(slider, "index", (small, "frame"), (twin, "frame"), (big, "frame"))
link(toggle, "value", (small, "autoscale"))
link_matrices(small, twin)

def figure(k):
    return go.Figure(
        [go.Scatter(x=np.arange(9.0), y=CURVE[k], mode="lines+markers", name="curve",
                    line_color="var(--qv-error)")],
        {"dragmode": False},
    )

said = [f"power {k}" for k in range(5)]
chart = named("chart", Chart("A curve", [figure(k) for k in range(5)], said))
table = named("table", Readout("One weight", [
    ("scale U_{jj}", [f"s{k} <i>" for k in range(5)], "codes"), ("fixed", "42")]))
caption = named("caption", Caption([f"sentence {k}" for k in range(5)], "Paper, eq. 1"))
code = named("code", Code([f"bits = {k}" for k in range(5)]))
equation = named("equation", Equation(
    '<math><mi data-term="w">w</mi><mo>=</mo><mi data-term="s" onclick="alert(1)">s</mi></math>'
    '<img src="x" onerror="alert(1)">',
    {"w": "a weight", "s": "a step"}, aria="w equals s",
    actives=[["w"], ["s"], [], ["w", "s"], ["w"]]))
line = named("line", NumberLine("Some weights", ["low", "high"], shade="outside"))
line.set_line((-1, 1), [-0.5, 0.5], step=0.1)
line.set_histogram([1, 4, 2], [-1, -0.5, 0.5, 1])
line.set_levels([[k / 10, 0.9] for k in range(5)], [f"levels {k}" for k in range(5)])
link(slider, "index", (chart, "frame"), (table, "frame"), (caption, "frame"), (code, "frame"),
     (equation, "frame"), (line, "frame"))
transport = named("transport", Transport(
    40, 3, "column", speeds=(1, 8), events={"outlier": [7, 21]}, rate=20,
    captions=[f"column {k} is done" for k in range(40)]))
link(transport, "index", (big, "column_mark"))

def told(name):
    return lambda change: setattr(seen, "texts", [f"{name}={change['new']}"])

slider.observe(told("slider"), "index")
choice.observe(told("choice"), "index")
parts.observe(told("parts"), "index")
field.observe(told("field"), "value")
field.on_submit(lambda f: setattr(seen, "texts", [f"entered {f.value!r}"]))
equation.observe(told("hovered"), "hovered")
toggle.observe(told("toggle"), "value")
line.observe(told("line"), "values")

def pressed(_):
    import os, time
    if field.value == "wait":
        time.sleep(8)
    if field.value == "pid":
        status.show_error(f"pid {os.getpid()}")
        return
    if field.value == "new":
        small.set_frames([m * 2 for m in SMALL], labels=names, limits="max", unit="mV")
        slider.set_options(["a", "b", "c", "d", "e"], 4)
    status.show_error("Group size 5 does not divide 16 <b>columns</b>.")

button.on_click(pressed)
page(
    "Widgets <em>on</em> one page",
    controls=[slider, toggle, choice, parts, details("More", field), button, status, seen],
    main=[
        section("Matrices", figures_row(small, twin, big), figures_row(spike, odd, codes)),
        section("Chart", chart, line),
    ],
    side=[section("Side", equation, table, code)],
    caption=caption,
    foot=[transport],
)
"""
)
KNOWN: dict[str, Any] = {}
exec(NUMBERS, KNOWN)
SMALL, BIG = KNOWN["SMALL"], KNOWN["BIG"]


@pytest.fixture(scope="module")
def url(
    serve_notebooks: Callable[[Path], Any], tmp_path_factory: Any, browser: Any
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("pages")
    write_notebooks(folder, {"01_widgets": PAGE})
    with serve_notebooks(folder) as base:
        yield f"{base}/voila/render/01_widgets.ipynb"


@pytest.fixture(scope="module")
def tab(url: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    """One page for all tests below: opening it is what takes the time."""
    tab = open_tab()
    tab.open(url, ".t-chart[data-qv-painted]")
    yield tab
    tab.assert_clean()


def painted(tab: Tab, name: str, frame: int) -> None:
    tab.until(f"document.querySelector('.t-{name}').dataset.qvPainted === '{frame}'")


def choose(tab: Tab, index: int) -> None:
    """The bits slider by keyboard."""
    tab.page.focus(".t-slider input")
    tab.page.keyboard.press("Home")
    for _ in range(index):
        tab.page.keyboard.press("ArrowRight")
    painted(tab, "small", index)


def says(tab: Tab, text: str) -> None:
    """What Python heard of it."""
    tab.until("text => document.querySelector('.t-seen').textContent.includes(text)", text)


def pixels(tab: Tab, name: str) -> np.ndarray:
    return canvas_pixels(tab, f".t-{name} canvas.qv-values")


def cell_colours(tab: Tab, name: str, shape: tuple[int, int]) -> np.ndarray:
    """The colour in the middle of each cell of a matrix that is shown whole."""
    image = pixels(tab, name)
    rows = ((np.arange(shape[0]) + 0.5) * image.shape[0] / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * image.shape[1] / shape[1]).astype(int)
    return image[rows][:, columns]


def expected(
    values: np.ndarray, span: float, limit: float, dark: bool = False, colormap: str = "diverging"
) -> np.ndarray:
    """The colours that values must have: their index in −span…span, looked up in −limit…limit."""
    shown = codec.decode(codec.encode(values, -span, span), -span, span)
    at = np.floor(np.clip((shown + limit) / (2 * limit), 0, 1) * 255 + 0.5).astype(int)
    return colors.palette(colormap, dark=dark)[at]


def box(tab: Tab, name: str) -> dict[str, float]:
    tab.page.locator(f".t-{name} .qv-stage").scroll_into_view_if_needed()
    return tab.page.locator(f".t-{name} .qv-stage").bounding_box()


def point_at(tab: Tab, name: str, row: int, column: int, shape: tuple[int, int]) -> None:
    where = box(tab, name)
    tab.page.mouse.move(
        where["x"] + (column + 0.5) * where["width"] / shape[1],
        where["y"] + (row + 0.5) * where["height"] / shape[0],
    )


def cell_text(tab: Tab, name: str) -> str:
    return str(tab.page.text_content(f".t-{name} .qv-cell"))


# ---------------------------------------------------------------------- slider and matrix


def test_slider_moves_by_keyboard_and_every_cell_has_the_colour_of_its_value(tab: Tab) -> None:
    limit = max(float(np.abs(m).max()) for m in SMALL)
    for index in (0, 3, 4):
        choose(tab, index)
        found = cell_colours(tab, "small", (12, 16))
        want = expected(SMALL[index], float(np.abs(SMALL[index]).max()), limit)
        np.testing.assert_array_equal(found, want)
        painted(tab, "twin", index)
        says(tab, f"slider={index}")
    slider = tab.page.locator(".t-slider input")
    assert slider.get_attribute("aria-valuetext") == "6"
    assert tab.page.inner_text(".t-slider output") == "6"
    assert tab.page.get_by_label("Bits & <b>more</b>").count() == 1  # a name, and text not markup


def test_slider_moves_by_mouse(tab: Tab) -> None:
    choose(tab, 0)
    where = tab.page.locator(".t-slider input").bounding_box()
    y = where["y"] + where["height"] / 2
    tab.page.mouse.move(where["x"] + 9, y)
    tab.page.mouse.down()
    tab.page.mouse.move(where["x"] + where["width"] / 2, y, steps=4)
    painted(tab, "small", 2)  # while the button is still down
    tab.page.mouse.move(where["x"] + where["width"] - 9, y, steps=4)
    tab.page.mouse.up()
    painted(tab, "small", 4)
    says(tab, "slider=4")


def test_autoscale_uses_each_frames_own_limits(tab: Tab) -> None:
    choose(tab, 4)
    tab.page.check(".t-toggle input")
    own = float(np.abs(SMALL[4]).max())
    want = expected(SMALL[4], own, own)
    eventually(lambda: np.array_equal(cell_colours(tab, "small", (12, 16)), want))
    assert number(own, 2) in tab.page.inner_text(".t-small .qv-legend")
    tab.page.uncheck(".t-toggle input")
    says(tab, "toggle=False")


def test_pointing_reads_out_exact_values_in_linked_views_at_every_frame(tab: Tab) -> None:
    choose(tab, 1)
    point_at(tab, "small", 5, 9, (12, 16))
    text = f"row 5, column 9: {number(SMALL[1][5, 9], 6)} mV"
    eventually(lambda: cell_text(tab, "small") == text)
    eventually(lambda: cell_text(tab, "twin").endswith(number(-SMALL[1][5, 9], 6)))
    # all frames came with the first answer: another bit width needs no second one
    tab.page.focus(".t-slider input")
    tab.page.keyboard.press("ArrowRight")
    painted(tab, "small", 2)
    assert cell_text(tab, "small").startswith(f"row 5, column 9: {number(SMALL[2][5, 9], 6)}")


def test_a_click_holds_the_cursor(tab: Tab) -> None:
    point_at(tab, "small", 2, 3, (12, 16))
    tab.page.mouse.down()
    tab.page.mouse.up()
    eventually(lambda: "held" in cell_text(tab, "twin"))
    point_at(tab, "small", 8, 8, (12, 16))
    tab.page.wait_for_timeout(100)
    assert cell_text(tab, "small").startswith("row 2, column 3")
    tab.page.focus(".t-small .qv-stage")
    tab.page.keyboard.press("Escape")
    eventually(lambda: "held" not in cell_text(tab, "twin"))


def test_matrix_by_keyboard(tab: Tab) -> None:
    tab.page.mouse.move(2, 2)
    tab.page.focus(".t-small .qv-stage")
    for key in ("Home", "PageUp", "ArrowDown", "ArrowDown", "ArrowRight", "Shift+ArrowRight"):
        tab.page.keyboard.press(key)
    eventually(lambda: f"row 2, column 11: {number(SMALL[2][2, 11], 6)}" in cell_text(tab, "small"))
    tab.page.keyboard.press("End")
    eventually(lambda: "row 2, column 15" in cell_text(tab, "twin"))


def test_neighbours_as_a_table(tab: Tab) -> None:
    tab.page.click(".t-small summary")
    here = tab.page.locator(".t-small td.qv-here")
    eventually(lambda: here.count() == 1 and here.inner_text() == number(SMALL[2][2, 15], 4))
    tab.page.click(".t-small summary")


def test_largest_errors_survive_reduction(tab: Tab) -> None:
    image = pixels(tab, "spike").astype(int)
    middle = colors.palette("diverging")[128].astype(int)
    marked = np.argwhere(np.abs(image - middle).sum(axis=2) > 60)
    assert 1 <= len(marked) <= 9
    at = marked.mean(axis=0) / image.shape[:2] * 900
    assert np.abs(at - [407, 613]).max() < 6
    assert "largest" in tab.page.inner_text(".t-spike")


def test_values_that_are_not_finite_have_a_colour_and_a_name(tab: Tab) -> None:
    found = cell_colours(tab, "odd", (2, 3))
    table = colors.palette("diverging")
    assert tuple(found[0, 1]) == colors.NAN_COLOR
    assert tuple(found[1, 0]) == tuple(table[255])
    assert tuple(found[1, 2]) == tuple(table[0])
    assert "not a number: 1" in tab.page.inner_text(".t-odd .qv-legend")
    point_at(tab, "odd", 1, 0, (2, 3))
    eventually(lambda: cell_text(tab, "odd").endswith("∞"))


def test_codes_have_colours_of_their_own(tab: Tab) -> None:
    found = cell_colours(tab, "codes", (3, 4)).reshape(-1, 3)
    assert len({tuple(c) for c in found[:4]}) == 4
    np.testing.assert_array_equal(found[:4], found[4:8])


def test_zooming_in_shows_exact_cells_and_prints_their_values(tab: Tab) -> None:
    choose(tab, 1)
    stage = ".t-big .qv-stage"
    point_at(tab, "big", 333, 777, (1000, 1600))
    eventually(lambda: "row 33" in cell_text(tab, "big"))
    tab.page.focus(stage)
    for _ in range(25):
        tab.page.keyboard.press("+")
    tab.page.mouse.move(2, 2)

    found = eventually(lambda: re.search(r"rows (\d+)–(\d+)", tab.page.inner_text(".t-big")))
    assert int(found[2]) - int(found[1]) < 15  # the whole picture has 1000 rows
    where = box(tab, "big")

    def exact(x: float, y: float) -> bool:
        """The point has the colour of exactly the cell that the readout names there."""
        tab.page.mouse.move(where["x"] + where["width"] * x, where["y"] + where["height"] * y)
        tab.page.wait_for_timeout(40)
        row, column = (int(n) for n in re.findall(r"\d+", cell_text(tab, "big"))[:2])
        image = pixels(tab, "big")
        colour = image[int(image.shape[0] * y), int(image.shape[1] * x)]
        return np.array_equal(colour, expected(BIG[1][row, column], 0.3, 0.3))

    for x, y in ((0.5, 0.5), (0.3, 0.7), (0.8, 0.2)):
        eventually(lambda x=x, y=y: exact(x, y))
    # the other frames' tiles follow; switching shows them exactly as well
    over = "document.querySelector('.t-big canvas.qv-over')"
    printed = tab.page.evaluate(
        f"(() => {{ const c = {over}; const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let n = 0;"
        "for (let i = 3; i < d.length; i += 4) n += d[i] === 255; return n; })()"
    )
    assert printed > 50  # opaque strokes of printed numbers
    tab.page.focus(stage)
    tab.page.keyboard.press("0")
    eventually(lambda: "rows" not in tab.page.inner_text(".t-big"))


def test_wheel_and_drag(tab: Tab) -> None:
    tab.page.focus(".t-big .qv-stage")
    point_at(tab, "big", 500, 800, (1000, 1600))
    for _ in range(6):
        tab.page.mouse.wheel(0, -120)
    eventually(lambda: "rows" in tab.page.inner_text(".t-big"))
    before = tab.page.inner_text(".t-big .qv-hint")
    where = box(tab, "big")
    tab.page.mouse.down()
    tab.page.mouse.move(where["x"] + 30, where["y"] + 30, steps=5)
    tab.page.mouse.up()
    eventually(lambda: tab.page.inner_text(".t-big .qv-hint") != before)
    tab.page.click(".t-big button[aria-label='Show the whole matrix']")
    eventually(lambda: "rows" not in tab.page.inner_text(".t-big"))


# ---------------------------------------------------------------------- what follows the slider


def test_chart_switches_with_the_slider(tab: Tab) -> None:
    for index in (2, 4):
        choose(tab, index)
        painted(tab, "chart", index)
        ys = tab.page.evaluate("Array.from(document.querySelector('.t-chart .qv-plot').data[0].y)")
        np.testing.assert_allclose(ys, KNOWN["CURVE"][index], rtol=1e-6, atol=1e-7)
    plot = tab.page.locator(".t-chart .qv-plot")
    assert plot.get_attribute("aria-label") == "A curve. power 4"


def test_a_chart_waits_while_the_slider_moves_but_not_for_ever(tab: Tab) -> None:
    """Moved every 30 ms for 2.4 s, it is drawn once a second, and at rest in the last frame."""
    choose(tab, 0)
    painted(tab, "chart", 0)
    during = tab.page.evaluate(
        """async () => {
            const chart = document.querySelector('.t-chart');
            const slider = document.querySelector('.t-slider input');
            let drawn = 0;
            const count = () => (drawn += 1);
            chart.addEventListener('qv-painted', count);
            for (let i = 1; i <= 80; i += 1) {
                slider.value = i % 4;
                slider.dispatchEvent(new Event('input', { bubbles: true }));
                await new Promise((ok) => setTimeout(ok, 30));
            }
            chart.removeEventListener('qv-painted', count);
            slider.value = 3;
            slider.dispatchEvent(new Event('input', { bubbles: true }));
            return drawn;
        }"""
    )
    assert 1 <= during <= 8  # without waiting there are dozens; a slow machine pauses now and then
    painted(tab, "chart", 3)


def handle(tab: Tab, name: str) -> Any:
    return tab.page.get_by_role("slider", name=name, exact=True)


def test_handles_are_dragged_and_keep_their_order(tab: Tab) -> None:
    stage = tab.page.locator(".t-line .qv-line-stage")
    stage.scroll_into_view_if_needed()
    where = stage.bounding_box()
    left, width = where["x"] + 8, where["width"] - 16
    y = where["y"] + where["height"] / 2

    def x(value: float) -> float:
        return float(left + (value + 1) / 2 * width)

    tab.page.mouse.move(x(-0.7), y)
    tab.page.mouse.down()  # the nearest handle comes
    says(tab, "line=[-0.7, 0.5]")
    tab.page.mouse.move(x(0.8), y, steps=5)  # and stops at its neighbour
    says(tab, "line=[0.5, 0.5]")
    tab.page.mouse.up()
    tab.page.mouse.move(x(0.9), y)
    tab.page.mouse.down()  # of two on one spot, the one that can follow
    tab.page.mouse.up()
    says(tab, "line=[0.5, 0.9]")
    assert handle(tab, "high").get_attribute("aria-valuemin") == "0.5"


def test_handles_move_by_keyboard(tab: Tab) -> None:
    low = handle(tab, "low")
    low.focus()
    for key, value in (("Home", "-1.0"), ("ArrowRight", "-0.9"), ("Shift+ArrowRight", "0.1"),
                       ("PageDown", "-0.9"), ("ArrowUp", "-0.8"), ("End", "0.9")):  # fmt: skip
        tab.page.keyboard.press(key)
        says(tab, f"line=[{value}, 0.9]")
    assert low.get_attribute("aria-valuetext") == "0.9"
    assert tab.page.evaluate("document.activeElement.getAttribute('aria-label')") == "low"


def test_levels_on_a_line_follow_the_slider(tab: Tab) -> None:
    for index in (1, 3):
        choose(tab, index)
        painted(tab, "line", index)
        drawn = tab.page.get_attribute(".t-line .qv-line-levels", "d")
        at = [float(x) for x in re.findall(r"M([\d.]+)", drawn)]
        width = tab.page.locator(".t-line .qv-line-stage").bounding_box()["width"] - 16
        want = [8 + (level + 1) / 2 * width for level in (index / 10, 0.9)]
        np.testing.assert_allclose(at, want, atol=0.1)
        label = tab.page.get_attribute(".t-line svg", "aria-label")
        assert label == f"levels {index}"


def test_a_single_change_draws_charts_without_waiting(tab: Tab) -> None:
    """No timer of any length stands between the change and the chart; while the slider moves one
    does. A slow machine makes both longer, but changes no timer."""
    longest = """async (moves) => {
        const chart = document.querySelector('.t-chart');
        const slider = document.querySelector('.t-slider input');
        const plain = window.setTimeout;
        const delays = [];
        await new Promise((ok) => plain(ok, 400));
        window.setTimeout = (act, delay = 0, ...more) => {
            delays.push(delay);
            return plain(act, delay, ...more);
        };
        const done = new Promise((ok) => chart.addEventListener('qv-painted', (e) => {
            if (e.detail.frame === moves.at(-1)) ok();
        }));
        try {
            for (const to of moves) {
                slider.value = to;
                slider.dispatchEvent(new Event('input', { bubbles: true }));
                await new Promise((ok) => plain(ok, 15));
            }
            await done;
        } finally {
            window.setTimeout = plain;
        }
        return Math.max(...delays.filter((delay) => delay <= 60)); // others time words
    }"""
    choose(tab, 0)
    painted(tab, "chart", 0)
    assert tab.page.evaluate(longest, [2]) < 10
    assert 10 < tab.page.evaluate(longest, [1, 2, 1, 2, 3]) <= 45


def test_words_follow_the_slider(tab: Tab) -> None:
    choose(tab, 3)
    eventually(lambda: "s3 <i>" in tab.page.inner_text(".t-table"))
    assert tab.page.inner_html(".t-table th").startswith("scale U<sub>jj</sub>")
    assert "42" in tab.page.inner_text(".t-table")
    assert "sentence 3" in tab.page.inner_text(".t-caption")
    assert tab.page.inner_text(".t-code code") == "bits = 3"


def test_equation_lights_up_and_explains(tab: Tab) -> None:
    lit = "Array.from(document.querySelectorAll('.t-equation .qv-lit'), n => n.dataset.term).join()"
    for index, terms in ((0, "w"), (1, "s"), (3, "w,s")):
        choose(tab, index)
        tab.until(f"{lit} === '{terms}'")
    tab.page.hover(".t-equation [data-term=s]")
    eventually(lambda: "a step" in tab.page.inner_text(".t-equation"))
    says(tab, "hovered=s")
    assert tab.page.locator(".t-equation img").count() == 0  # nothing but MathML gets through
    assert tab.page.get_attribute(".t-equation [data-term=s]", "onclick") is None
    tab.page.mouse.move(2, 2)


# ---------------------------------------------------------------------- other controls


def test_with_reduced_motion_playing_is_as_fast_in_fewer_changes(
    url: str, open_tab: Callable[..., Tab]
) -> None:
    """40 steps of 20 a second: two seconds, and at most one change in each."""
    tab = open_tab(reduced_motion="reduce")
    tab.open(url, ".t-chart[data-qv-painted]")
    changes = tab.page.evaluate(
        """async () => {
            const el = document.querySelector('.t-transport');
            const times = [];
            const seen = () => times.push([performance.now(), el.dataset.qvPainted]);
            el.addEventListener('qv-painted', seen);
            el.querySelector('[aria-label="Play"]').click();
            const end = performance.now() + 15000;
            while (el.dataset.qvPainted !== '39' && performance.now() < end)
                await new Promise((ok) => setTimeout(ok, 20));
            return times.filter(([, i], k) => !k || i !== times[k - 1][1]);
        }"""
    )
    assert changes[-1][1] == "39"
    assert len(changes) <= 5
    assert all(later[0] - earlier[0] > 900 for earlier, later in itertools.pairwise(changes))


def test_a_swipe_that_begins_on_a_chart_moves_the_page(
    url: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(width=390, height=600, has_touch=True, is_mobile=True)
    tab.open(url, ".t-chart[data-qv-painted]")
    for name in (".t-chart .qv-plot", ".t-small .qv-stage", ".t-line .qv-line-stage"):
        tab.page.locator(name).evaluate("e => e.scrollIntoView({ block: 'center' })")
        tab.page.wait_for_timeout(300)
        before = tab.page.evaluate("scrollY")
        where = tab.page.locator(name).bounding_box()
        x, y = where["x"] + 40, where["y"] + where["height"] / 2
        finger = tab.context.new_cdp_session(tab.page)
        for kind, at in [("touchStart", 0), *(("touchMove", 10 * k) for k in range(1, 13))]:
            finger.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y + at}]}
            )
            tab.page.wait_for_timeout(16)
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        eventually(lambda before=before: before - tab.page.evaluate("scrollY") > 60)


def test_forced_colours_leave_curves_apart(url: str, open_tab: Callable[..., Tab]) -> None:
    """And what can be dragged, and where it is, can be seen."""
    tab = open_tab(forced_colors="active", color_scheme="dark")
    tab.open(url, ".t-chart[data-qv-painted]")
    curve = "getComputedStyle(document.querySelector('.t-chart .js-line')).stroke"
    tick = "getComputedStyle(document.querySelector('.t-chart .xtick text')).fill"
    assert tab.page.evaluate(curve) != tab.page.evaluate(tick)
    background = (
        "getComputedStyle(document.querySelector('.t-line .qv-knob'), '::before').backgroundColor"
    )
    page = "getComputedStyle(document.body).backgroundColor"
    assert tab.page.evaluate(background) != tab.page.evaluate(page)


def test_pictures_are_sharp_on_another_screen(url: str, open_tab: Callable[..., Tab]) -> None:
    """A window that is dragged to a screen of twice the resolution keeps its size."""
    tab = open_tab()
    tab.open(url, ".t-chart[data-qv-painted]")
    wide = "document.querySelector('.t-small canvas').width"
    before = tab.page.evaluate(wide)
    session = tab.context.new_cdp_session(tab.page)
    for factor in (2, 1, 3):
        session.send(
            "Emulation.setDeviceMetricsOverride",
            {"width": 1280, "height": 800, "deviceScaleFactor": factor, "mobile": False},
        )
        # the emulated screen tells nobody that it has changed: the next picture finds out
        tab.page.locator(".t-slider input").focus()
        tab.page.keyboard.press("ArrowRight" if factor == 2 else "ArrowLeft")
        eventually(lambda factor=factor: abs(tab.page.evaluate(wide) - factor * before) <= factor)


def test_on_paper_nothing_is_cut_and_no_bar_covers_anything(
    url: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(width=1920, height=1080)
    tab.open(url, ".t-chart[data-qv-painted]")
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.page.emulate_media(media="print")
    tab.page.set_viewport_size({"width": 700, "height": 1000})
    too_wide = (
        "[...document.querySelectorAll('.qv-plot, .qv-plot svg, .qv-stage, .qv-line-stage')]"
        ".filter((e) => e.getBoundingClientRect().right > 700).map((e) => e.className)"
    )
    assert tab.page.evaluate(too_wide) == []
    stuck = "getComputedStyle(document.querySelector('.qv-foot')).position"
    assert tab.page.evaluate(stuck) == "static"
    tab.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.page.evaluate("document.querySelector('.t-chart .qv-plot').style.zoom") == ""


def test_transport_steps_plays_and_jumps(tab: Tab) -> None:
    count = lambda: tab.page.inner_text(".t-transport .qv-count")  # noqa: E731
    tab.page.click(".t-transport button[aria-label='One step forward']")
    eventually(lambda: count() == "column 4 / 39")
    assert "column 4 is done" in tab.page.inner_text(".t-transport")
    tab.page.keyboard.press("Shift+ArrowRight")
    eventually(lambda: count() == "column 14 / 39")
    tab.page.keyboard.press("Home")
    eventually(lambda: count() == "column 0 / 39")
    tab.page.focus(".t-transport input")
    tab.page.keyboard.press(" ")
    eventually(lambda: tab.page.locator("button[aria-label=Pause]").count() == 1)
    eventually(lambda: int(count().split()[1]) > 3)
    tab.page.keyboard.press(" ")
    eventually(lambda: tab.page.locator("button[aria-label=Play]").count() == 1)
    tab.page.select_option(".t-transport select[aria-label='Jump to']", "21")
    eventually(lambda: count() == "column 21 / 39")
    tab.page.select_option(".t-transport select[aria-label='Speed']", "8×")
    tab.page.click(".t-transport button[aria-label='Play']")
    eventually(lambda: count() == "column 39 / 39")  # stops at the end by itself
    eventually(lambda: tab.page.locator("button[aria-label=Play]").count() == 1)


def test_choices_text_and_disclosure(tab: Tab) -> None:
    tab.page.get_by_label("Layer").select_option("third")
    says(tab, "choice=2")
    tab.page.get_by_label("two").check(force=True)
    says(tab, "parts=1")
    assert not tab.page.locator(".t-field").is_visible()
    more = tab.page.get_by_role("button", name="More", exact=True)
    more.focus()
    tab.page.keyboard.press("Enter")
    tab.page.get_by_label("Model").fill("some/model")
    says(tab, "field=some/model")
    tab.page.keyboard.type("/7")
    tab.page.keyboard.press("Enter")  # at once: what was typed last counts
    says(tab, "entered 'some/model/7'")
    assert more.get_attribute("aria-expanded") == "true"


def test_headings_and_landmarks(tab: Tab) -> None:
    assert (
        tab.page.get_by_role("heading", name="Widgets <em>on</em> one page", level=1).count() == 1
    )
    assert tab.page.get_by_role("region", name="Matrices").count() == 1
    assert tab.page.get_by_role("application", name="Small").count() == 1


def test_python_replaces_frames_and_options(tab: Tab) -> None:
    tab.page.get_by_label("Model").fill("new")
    says(tab, "field=new")
    tab.page.click(".t-button button")
    painted(tab, "small", 4)
    eventually(lambda: tab.page.inner_text(".t-slider output") == "e")
    top = max(float(np.abs(m).max()) for m in SMALL) * 2
    want = expected(SMALL[4] * 2, float(np.abs(SMALL[4]).max()) * 2, top)
    eventually(lambda: np.array_equal(cell_colours(tab, "small", (12, 16)), want))
    alert = tab.page.locator(".t-status [role=alert]")
    eventually(lambda: "does not divide 16 <b>columns</b>" in (alert.text_content() or ""))


def test_latency_is_far_below_what_a_learner_notices(tab: Tab) -> None:
    """No budget is held here (benchmarks do that), only that nothing waits for the kernel."""
    choose(tab, 0)
    times = tab.page.evaluate(
        """async () => {
            const view = document.querySelector('.t-small');
            const input = document.querySelector('.t-slider input');
            const out = [];
            for (let i = 1; i < 5; i += 1) {
                const done = new Promise((ok) =>
                    view.addEventListener('qv-painted', ok, {once: true}));
                const start = performance.now();
                input.value = i;
                input.dispatchEvent(new Event('input'));
                await done;
                out.push(performance.now() - start);
            }
            return out;
        }"""
    )
    assert np.median(times) < 250, times


# ---------------------------------------------------------------------- other pages


def test_narrow_dark_page_without_plotly_over_http(url: str, open_tab: Callable[..., Tab]) -> None:
    """390 pixels, dark, a server that lacks plotly.js: the kernel sends it, nothing overflows."""
    tab = open_tab(width=390, height=844, color_scheme="dark")
    tab.page.route("**/plotly-*.js", lambda route: route.fulfill(status=404, body=""))
    tab.open(url, ".t-chart[data-qv-painted]")
    tab.until("document.querySelector('.t-small').dataset.qvPainted === '1'")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = tab.page.evaluate(
        "Array.from(document.querySelectorAll('.qv')).map(e => e.getBoundingClientRect())"
        ".filter(r => r.right > 391).length"
    )
    assert wide == 0
    limit = max(float(np.abs(m).max()) for m in SMALL)
    want = expected(SMALL[1], float(np.abs(SMALL[1]).max()), limit, dark=True)
    np.testing.assert_array_equal(cell_colours(tab, "small", (12, 16)), want)
    assert [e for e in tab.errors if "404" not in e] == []
    assert tab.left_the_machine == []
    tab.close()


def test_busy_kernel_raises_no_alarm_and_a_lost_one_does(
    url: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab()
    tab.open(url)
    tab.page.get_by_role("button", name="More", exact=True).click()
    press = tab.page.locator(".t-button button")
    tab.page.get_by_label("Model").fill("wait")
    says(tab, "field=wait")
    press.click()
    tab.page.wait_for_timeout(7500)
    alarm = "document.querySelector('#qv-alarm *') !== null"
    assert not tab.page.evaluate(alarm)
    tab.page.get_by_label("Model").fill("pid")
    says(tab, "field=pid")
    press.click()
    message = tab.page.locator(".t-status [role=alert]")
    pid = int(eventually(lambda: "pid" in (message.text_content() or "") and message.text_content())
              .split()[-1])  # fmt: skip
    os.kill(pid, signal.SIGKILL)
    tab.until(alarm, seconds=30)
    assert tab.page.get_by_role("button", name="Start again").count() >= 1
    tab.close()


def test_jupyterlab_in_its_dark_theme(
    open_tab: Callable[..., Tab], lab: Callable[..., Any]
) -> None:
    """There the callbacks run on another thread, and the theme is Lab's, not the system's."""
    url, folder = lab("JupyterLab Dark")
    write_notebooks(folder, {"01_widgets": PAGE})
    tab = open_tab(height=1000, color_scheme="light")
    page = tab.page
    run_first_cell(tab, f"{url}/lab/tree/01_widgets.ipynb")
    page.wait_for_selector(".t-chart[data-qv-painted]", timeout=60_000)
    choose(tab, 3)
    says(tab, "slider=3")
    limit = max(float(np.abs(m).max()) for m in SMALL)
    want = expected(SMALL[3], float(np.abs(SMALL[3]).max()), limit, dark=True)
    eventually(lambda: np.array_equal(cell_colours(tab, "small", (12, 16)), want))
    point_at(tab, "small", 5, 9, (12, 16))
    text = f"row 5, column 9: {number(SMALL[3][5, 9], 6)} mV"
    eventually(lambda: cell_text(tab, "small") == text)
    painted(tab, "chart", 3)
    tab.assert_clean()
    tab.close()
