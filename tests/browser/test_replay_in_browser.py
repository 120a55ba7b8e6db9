"""Runs in a real browser: every step's pixels are the colours of the numbers that Python has."""

import re
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

def make(rows, n, shuffled, seed):
    rng = np.random.default_rng(seed)
    start, end = rng.standard_normal((2, rows, n))
    errors = rng.standard_normal((rows, n))
    shares = rng.standard_normal((n, n)) / np.sqrt(n)
    return start, end, errors, shares, rng.permutation(n) if shuffled else np.arange(n)

def after(run, s):
    start, end, errors, shares, turn = run
    return np.where(turn < s, end, start - errors[:, :s] @ shares[:s])

def value(kind, s):
    start, end, errors, shares, turn = RUNS["small"]
    if kind == "minus":
        return after(RUNS["small"], s) - after(RUNS["other"], s)
    if kind == "handed":
        ended = s == len(turn)
        return 0 * start if ended else np.where(turn > s, -np.outer(errors[:, s], shares[s]), 0)
    return after(RUNS["small"], s) - (start if kind == "moved" else 0)

RUNS = {"small": make(14, 40, True, 0), "other": make(14, 40, False, 1)}
RUNS["big"] = make(600, 700, True, 2)
LATER = {"small": make(9, 30, False, 3), "other": make(9, 30, True, 4)}
LIMITS = {"now": 2.0, "moved": 3.0, "handed": 0.5, "minus": (-4.0, 2.0)}
"""
PAGE = (
    NUMBERS
    + """
import plotly.graph_objects as go
from qviz.ui.widgets import *

def named(name, widget):
    widget.add_class("t-" + name)
    return widget

runs = {name: Replay() for name in RUNS}
for name, run in RUNS.items():
    runs[name].set_run(*run)
seen = named("seen", Caption("nothing yet"))
asked = []

def window(kind):
    def part(s, rows, columns):
        if kind == "big":
            asked.append(s)
            return after(RUNS["big"], s)[rows, columns]
        return value(kind, s)[rows, columns]
    return part

transport = named("transport", Transport(41, 0, "column", events={"group": [0, 10, 20, 30]}))
views = {}
for kind, limits in LIMITS.items():
    views[kind] = view = named(kind, MatrixView(kind))
    view.set_replay(runs["small"], show="now" if kind == "minus" else kind, window=window(kind),
                    limits=limits, minus=runs["other"] if kind == "minus" else None,
                    axes=("row", "input"), describe="Told.")
views["big"] = big = named("big", MatrixView("big", aspect=1.0))
big.set_replay(runs["big"], show="now", window=window("big"), limits=2.0)
FLAT = [np.ones((4, 4)) * k for k in range(3)]
views["plain"] = plain = named("plain", MatrixView("plain", FLAT))
link(transport, "index", *((view, "frame") for view in views.values()))
link_matrices(*(views[kind] for kind in LIMITS))
toggle = named("toggle", Toggle("Own limits"))
link(toggle, "value", *((view, "autoscale") for view in views.values()))
x = np.arange(41)
chart = named("chart", Chart("Loss", go.Figure(go.Scatter(x=x, y=x ** 2), {"dragmode": False})))
link(transport, "index", (chart, "mark"))
another, swap, count = (named(n, Button(n)) for n in ("another", "swap", "count"))

def other_runs(_):
    RUNS.update(LATER)
    for name in LATER:
        runs[name].set_run(*RUNS[name])
    views["now"].row_mark = 3

def swap_views(_):
    views["now"].set_frames([after(RUNS["small"], s) for s in range(31)], limits="max")
    plain.set_replay(runs["small"], show="now", window=window("now"), limits=2.0)

another.on_click(other_runs)
swap.on_click(swap_views)
count.on_click(lambda _: setattr(seen, "texts", [f"asked {sorted(set(asked))}"]))
page("Runs", controls=[toggle, another, swap, count, seen],
     main=[section("Runs", figures_row(*views.values())), section("Chart", chart)],
     foot=[transport])
"""
)
KNOWN: dict[str, Any] = {}
exec(NUMBERS, KNOWN)
LIMITS = KNOWN["LIMITS"]


@pytest.fixture(scope="module")
def url(
    serve_notebooks: Callable[[Path], Any], tmp_path_factory: Any, browser: Any
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("pages")
    write_notebooks(folder, {"01_runs": PAGE})
    with serve_notebooks(folder) as base:
        yield f"{base}/voila/render/01_runs.ipynb"


@pytest.fixture(scope="module")
def tab(url: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    """One page for the tests below, in their order: opening it is what takes the time."""
    KNOWN.clear()
    exec(NUMBERS, KNOWN)
    tab = open_tab(height=1000)
    tab.open(url, ".t-chart[data-qv-painted]")
    yield tab
    tab.assert_clean()


def go(tab: Tab, step: int, names: tuple[str, ...] = tuple(LIMITS)) -> None:
    """To a step at once, and until it is painted."""
    tab.page.evaluate(
        """step => { const i = document.querySelector('.t-transport input');
                     i.value = step; i.dispatchEvent(new Event('input')); }""",
        step,
    )
    for name in names:
        tab.until(f"document.querySelector('.t-{name}').dataset.qvPainted === '{step}'")


def cell_colours(tab: Tab, name: str, shape: tuple[int, int]) -> np.ndarray:
    """The colour in the middle of each cell of a matrix that is shown whole."""
    image = canvas_pixels(tab, f".t-{name} canvas.qv-values")
    rows = ((np.arange(shape[0]) + 0.5) * image.shape[0] / shape[0]).astype(int)
    columns = ((np.arange(shape[1]) + 0.5) * image.shape[1] / shape[1]).astype(int)
    return image[rows][:, columns]


def in_colour(found: np.ndarray, values: np.ndarray, limits: Any, *, dark: bool = False) -> bool:
    """Whether all cells have their value's colour or one index beside it, most of them exactly."""
    low, high = limits if isinstance(limits, tuple) else (-limits, limits)
    table = colors.palette("diverging", dark=dark)
    index = codec.encode(values, low, high).astype(int)
    near = [
        (found == table[np.floor(np.clip(index + d, 0, 254) / 254 * 255 + 0.5).astype(int)]).all(2)
        for d in (0, -1, 1)
    ]
    return bool(np.any(near, axis=0).all() and near[0].mean() > 0.97)


def assert_shown(tab: Tab, name: str, step: int) -> np.ndarray:
    values = KNOWN["value"](name, step)
    found = cell_colours(tab, name, values.shape)
    assert in_colour(found, values, LIMITS[name]), (name, step)
    return found


def over(tab: Tab, name: str) -> np.ndarray:
    """The layer of marks in the row of pixels at the bottom: RGBA of each, [width, 4]."""
    data = tab.page.evaluate(
        """name => { const c = document.querySelector(`.t-${name} canvas.qv-over`);
            const line = c.getContext('2d').getImageData(0, c.height - 1, c.width, 1);
            return Array.from(line.data); }""",
        name,
    )
    return np.array(data, np.uint8).reshape(-1, 4)


def cell_text(tab: Tab, name: str) -> str:
    return str(tab.page.text_content(f".t-{name} .qv-cell"))


def point_at(tab: Tab, name: str, row: int, column: int, shape: tuple[int, int]) -> None:
    stage = tab.page.locator(f".t-{name} .qv-stage")
    stage.scroll_into_view_if_needed()
    where = stage.bounding_box()
    tab.page.mouse.move(
        where["x"] + (column + 0.5) * where["width"] / shape[1],
        where["y"] + (row + 0.5) * where["height"] / shape[0],
    )


def test_each_step_has_the_colours_of_its_values(tab: Tab) -> None:
    for step in (0, 1, 17, 39, 40):
        go(tab, step)
        for name in LIMITS:
            assert_shown(tab, name, step)


def test_every_way_to_a_step_gives_the_same_picture(tab: Tab) -> None:
    pictures: dict[int, list[np.ndarray]] = {}
    for step in (11, 12, 13, 12, 11, 40, 12, 0, 13, 33, 11):
        go(tab, step)
        pictures.setdefault(step, []).append(
            np.stack([cell_colours(tab, name, (14, 40)) for name in LIMITS])
        )
    for found in pictures.values():
        assert all(np.array_equal(found[0], later) for later in found)
    assert not np.array_equal(pictures[11][0], pictures[12][0])


def test_waiting_columns_are_veiled_and_the_current_ones_marked(tab: Tab) -> None:
    go(tab, 17)
    turns = [KNOWN["RUNS"][name][4] for name in ("small", "other")]
    for name, of in (("now", turns[:1]), ("moved", turns[:1]), ("minus", turns)):
        pixels = over(tab, name)
        middles = ((np.arange(40) + 0.5) * len(pixels) / 40).astype(int)
        waiting = np.mean([turn > 17 for turn in of], axis=0)
        current = np.any([turn == 17 for turn in of], axis=0)
        alpha = pixels[middles][:, 3] / 255
        np.testing.assert_allclose(alpha[~current], 0.28 * waiting[~current], atol=0.01)
        edges = (np.flatnonzero(current) * len(pixels) / 40).round().astype(int)
        assert (
            pixels[edges][:, 0].astype(int) > pixels[edges][:, 2].astype(int) + 90
        ).all()  # orange
    handed = over(tab, "handed")
    assert 0 < (handed[:, 3] > 0).mean() < 0.1  # the current column alone
    go(tab, 40)
    assert not over(tab, "minus").any()


def test_a_screen_reader_is_told_the_step(tab: Tab) -> None:
    go(tab, 17)
    column = int(np.flatnonzero(KNOWN["RUNS"]["small"][4] == 17)[0])
    values = KNOWN["value"]("now", 17)
    said = re.compile(
        rf"now: step 17 of 40: 17 inputs finished, input {column} is next, "
        r"22 inputs wait after that; shown values from −(\S+) to (\S+)\. Told\."
    )
    text = lambda: said.search(str(tab.page.text_content(".t-now p.qv-sr[id$=-summary]")))  # noqa: E731
    found = eventually(text)
    ends = [-float(found[1]), float(found[2])]
    assert np.allclose(ends, [values.min(), values.max()], rtol=1e-3)


def test_own_limits_hold_most_values_of_the_step(tab: Tab) -> None:
    tab.page.check(".t-toggle input")
    go(tab, 21)
    for name in ("now", "handed"):
        values = KNOWN["value"](name, 21)
        magnitude = float(np.quantile(np.abs(values), 0.995))
        ends = tab.page.locator(f".t-{name} .qv-legend-ends span")
        found = eventually(lambda ends=ends: float(ends.nth(2).inner_text().strip("≥ ")))
        assert found == pytest.approx(magnitude, rel=0.1)
        assert ends.nth(2).inner_text().startswith("≥")  # there is more than the limits hold
        shown = cell_colours(tab, name, values.shape)
        top = colors.palette("diverging")[[0, 255]]
        beyond = np.abs(values) > found * 1.1
        assert beyond.any()
        assert all((pixel == top).all(axis=1).any() for pixel in shown[beyond])
    tab.page.uncheck(".t-toggle input")
    eventually(
        lambda: in_colour(cell_colours(tab, "now", (14, 40)), KNOWN["value"]("now", 21), 2.0)
    )


def test_the_readout_follows_the_step_with_exact_values(tab: Tab) -> None:
    go(tab, 5)
    point_at(tab, "now", 3, 8, (14, 40))
    for step in (5, 6, 30):
        go(tab, step)
        for name in ("now", "minus"):
            text = f"row 3, input 8: {number(KNOWN['value'](name, step)[3, 8], 6)}"
            eventually(lambda name=name, text=text: cell_text(tab, name) == text)


def test_a_value_is_not_shown_at_another_step(tab: Tab) -> None:
    """In the very frame in which the step is painted, the readout is marked as approximate, unless
    the kernel was quicker than the paint."""
    go(tab, 6)
    point_at(tab, "now", 3, 8, (14, 40))
    exact = number(KNOWN["value"]("now", 6)[3, 8], 6)
    eventually(lambda: cell_text(tab, "now").endswith(exact))
    text = tab.page.evaluate(
        """() => new Promise((ok) => {
            const view = document.querySelector('.t-now');
            const seen = (e) => e.detail.frame === 7 && Promise.resolve().then(
                () => ok(view.querySelector('.qv-cell').textContent));
            view.addEventListener('qv-painted', seen);
            const i = document.querySelector('.t-transport input');
            i.value = 7; i.dispatchEvent(new Event('input'));
        })"""
    )
    true = KNOWN["value"]("now", 7)[3, 8]
    if "≈" in text:
        assert float(text.split("≈")[1].replace("−", "-")) == pytest.approx(true, rel=1e-2)
    else:
        assert text.endswith(number(true, 6))
    tab.page.mouse.move(2, 2)


def test_the_numbers_around_the_cursor_are_those_of_the_step(tab: Tab) -> None:
    tab.page.click(".t-moved summary")
    here = tab.page.locator(".t-moved td.qv-here")
    for step in (7, 28):
        go(tab, step)
        want = number(KNOWN["value"]("moved", step)[3, 8], 4)
        eventually(lambda want=want: here.count() == 1 and here.inner_text() == want)
        assert tab.page.locator(".t-moved .qv-stale").count() == 0
        assert f"step {step}" in str(tab.page.text_content(".t-moved caption"))
    tab.page.evaluate(  # before the kernel answers, the old numbers are not shown as current
        """() => { const view = document.querySelector('.t-moved');
            view.addEventListener('qv-painted', () => Promise.resolve().then(() => {
                view.dataset.stale = view.querySelector('.qv-stale') !== null;
            }), {once: true}); }"""
    )
    go(tab, 29)
    assert tab.page.get_attribute(".t-moved", "data-stale") == "true"
    tab.page.click(".t-moved summary")


def test_zooming_in_asks_for_the_shown_step_alone(tab: Tab) -> None:
    go(tab, 25, ("big",))
    values = KNOWN["after"](KNOWN["RUNS"]["big"], 25)
    reduced = codec.reduce_matrix(values, (2, 2), "nearest")
    stage = tab.page.locator(".t-big .qv-stage")
    assert stage.bounding_box()["width"] < reduced.shape[1] * 1.5
    point_at(tab, "big", 200, 300, (600, 700))
    stage.focus()
    for _ in range(25):
        tab.page.keyboard.press("+")
    found = eventually(lambda: re.search(r"rows (\d+)–(\d+)", tab.page.inner_text(".t-big")))
    assert int(found[2]) - int(found[1]) < 20
    where = stage.bounding_box()

    def exact(x: float, y: float, step: int) -> bool:
        """The point has the colour of exactly the cell that the readout names there."""
        tab.page.mouse.move(where["x"] + where["width"] * x, where["y"] + where["height"] * y)
        tab.page.wait_for_timeout(60)
        row, column = (int(n) for n in re.findall(r"\d+", cell_text(tab, "big"))[:2])
        image = canvas_pixels(tab, ".t-big canvas.qv-values")
        colour = image[int(image.shape[0] * y), int(image.shape[1] * x)]
        cell = KNOWN["after"](KNOWN["RUNS"]["big"], step)[row : row + 1, column : column + 1]
        return in_colour(colour[None, None], cell, 2.0)

    points = ((0.45, 0.5), (0.3, 0.7), (0.8, 0.2), (0.62, 0.41))
    for x, y in points:
        eventually(lambda x=x, y=y: exact(x, y, 25))
    tab.page.mouse.move(2, 2)
    go(tab, 31, ("big",))
    for x, y in points:
        eventually(lambda x=x, y=y: exact(x, y, 31))
    stage.focus()
    tab.page.keyboard.press("0")
    tab.page.mouse.move(2, 2)
    tab.page.click(".t-count button")
    told = eventually(
        lambda: re.search(r"asked \[(.*)\]", tab.page.inner_text(".t-seen")), seconds=20
    )
    steps = {int(step) for step in told[1].split(",")}
    assert {25, 31} <= steps
    assert not steps & {24, 26, 27, 28, 29, 32}  # their neighbours are nobody's business


def test_the_chart_is_marked_where_the_step_is(tab: Tab) -> None:
    for step in (0, 13, 40):
        go(tab, step)
        line, want = tab.page.evaluate(
            """step => {
                const box = (s) => document.querySelector(s).getBoundingClientRect();
                const line = box('.t-chart .qv-mark');
                const left = box('.t-chart .nsewdrag');
                const plot = document.querySelector('.t-chart .qv-plot');
                const axis = plot._fullLayout.xaxis;
                const part = (step - axis.range[0]) / (axis.range[1] - axis.range[0]);
                return [line.left + line.width / 2, left.left + part * left.width]; }""",
            step,
        )
        assert line == pytest.approx(want, abs=1.5)
    line = tab.page.locator(".t-chart .qv-mark")
    assert line.is_visible()
    tab.page.set_viewport_size({"width": 1000, "height": 1000})
    tab.until("document.querySelector('.t-chart .qv-plot')._fullLayout.width < 700")
    at = "document.querySelector('.t-chart .qv-mark').getBoundingClientRect().right"
    edge = "document.querySelector('.t-chart .nsewdrag').getBoundingClientRect().right"
    eventually(lambda: abs(tab.page.evaluate(f"{at} - {edge}")) < 3)  # step 40 is the right end
    zoom = "x => Plotly.relayout(document.querySelector('.t-chart .qv-plot'), {'xaxis.range': x})"
    tab.page.evaluate(zoom, [0, 20])
    eventually(lambda: not line.is_visible())
    tab.page.evaluate(zoom, [0, 50])
    eventually(line.is_visible)
    tab.page.set_viewport_size({"width": 1280, "height": 1000})


def test_keys_go_from_group_to_group(tab: Tab) -> None:
    go(tab, 13)
    count = lambda: tab.page.inner_text(".t-transport .qv-count")  # noqa: E731
    scrub = tab.page.locator(".t-transport input")
    scrub.focus()
    for key, step in (("]", 20), ("PageUp", 30), ("]", 30), ("[", 20), ("PageDown", 10), ("[", 0)):
        tab.page.keyboard.press(key)
        eventually(lambda step=step: count() == f"column {step} / 40")
    words = tab.page.locator(f"[id='{scrub.get_attribute('aria-describedby')}']").text_content()
    assert "previous and next group" in str(words)


def test_another_run_of_another_shape_takes_over(tab: Tab) -> None:
    go(tab, 17)
    tab.page.click(".t-another button")
    KNOWN["RUNS"].update(KNOWN["LATER"])
    for name in LIMITS:
        values = KNOWN["value"](name, 17)
        eventually(
            lambda name=name, values=values: in_colour(
                cell_colours(tab, name, (9, 30)), values, LIMITS[name]
            )
        )
    go(tab, 40, ())  # beyond its 30 steps: the end
    for name in LIMITS:
        tab.until(f"document.querySelector('.t-{name}').dataset.qvPainted === '30'")
        assert_shown(tab, name, 30)


def test_a_row_is_marked(tab: Tab) -> None:
    column = tab.page.evaluate(
        """() => { const c = document.querySelector('.t-now canvas.qv-over');
            const d = c.getContext('2d').getImageData(2, 0, 1, c.height).data;
            return Array.from({length: c.height}, (_, y) => d[4 * y + 3]); }"""
    )
    marked = np.flatnonzero(np.array(column) > 200)
    height = len(column) / 9
    assert abs(marked.min() - 3 * height) <= 2
    assert abs(marked.max() - 4 * height) <= 2


def test_views_change_between_frames_and_runs(tab: Tab) -> None:
    tab.page.click(".t-swap button")
    frames = [KNOWN["after"](KNOWN["RUNS"]["small"], s) for s in range(31)]
    top = float(np.abs(frames).max())
    for step in (12, 30):
        go(tab, step, ("now", "plain"))
        values = KNOWN["value"]("now", step)
        eventually(
            lambda values=values: in_colour(cell_colours(tab, "plain", values.shape), values, 2.0)
        )
        # frames that were sent are rounded twice: to an index in their range, then to a colour
        own = float(np.abs(values).max())
        shown = codec.decode(codec.encode(values, -own, own), -own, own)
        at = np.floor((shown / top + 1) / 2 * 255 + 0.5).astype(int)
        want = colors.palette("diverging")[at]
        eventually(lambda want=want: np.array_equal(cell_colours(tab, "now", want.shape[:2]), want))


def test_jupyterlab_in_its_dark_theme(
    open_tab: Callable[..., Tab], lab: Callable[..., Any]
) -> None:
    KNOWN.clear()
    exec(NUMBERS, KNOWN)
    url, folder = lab("JupyterLab Dark")
    write_notebooks(folder, {"01_runs": PAGE})
    tab = open_tab(height=1000, color_scheme="light")
    run_first_cell(tab, f"{url}/lab/tree/01_runs.ipynb")
    tab.page.wait_for_selector(".t-minus[data-qv-painted]", timeout=60_000)
    go(tab, 17)
    values = KNOWN["value"]("minus", 17)
    found = cell_colours(tab, "minus", values.shape)
    assert in_colour(found, values, LIMITS["minus"], dark=True)
    point_at(tab, "now", 3, 8, (14, 40))
    text = f"row 3, input 8: {number(KNOWN['value']('now', 17)[3, 8], 6)}"
    eventually(lambda: cell_text(tab, "now") == text)
    tab.assert_clean()
    tab.close()
