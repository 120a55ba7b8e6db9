"""Lesson 7 in a real Chromium: steps by keyboard, mouse and jump, held against the library."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from driver import Tab, canvas_pixels, eventually, run_first_cell

import qviz
from qviz.models.capture import load_calibration
from qviz.study.gptq_walk import Walk
from qviz.ui.views.gptq import GptqLesson
from qviz.ui.views.gptq_pictures import reach
from qviz.ui.widgets import codec, colors

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
READY = ".qv-chart .js-plotly-plot .scatterlayer"
LAYER = GptqLesson.first_layer
NOW, PASSED, FIRST, SECOND, BETWEEN = 0, 1, 3, 4, 5  # the pictures in their order on the page


@pytest.fixture(scope="module")
def tab(base: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    # A dense screen, so that every cell that was sent has a pixel of its own to be compared.
    tab = open_tab(device_scale_factor=3)
    tab.open(f"{base}/voila/render/07_gptq.ipynb#part=a+real+layer", READY)
    yield tab
    tab.assert_clean()


@pytest.fixture(scope="module")
def walk() -> Walk:
    return walk_with(bits=3)


def walk_with(**options: Any) -> Walk:
    weight = qviz.load_layer(None, LAYER).float()
    judge = load_calibration(None, LAYER, text="heldout_python")
    return Walk(
        weight,
        load_calibration(None, LAYER),
        judge,
        **{"group_size": 128, "scale_dtype": torch.float16, **options},
    )


def rows(tab: Tab) -> dict[str, str]:
    """Label → text of the chosen weight's table."""
    return dict(
        tab.page.eval_on_selector_all(
            ".qv-readout tr",
            "all => all.map(r => [...r.querySelectorAll('th, td')].map(c => c.textContent))",
        )
    )


def caption(tab: Tab) -> str:
    return str(tab.page.text_content(".qv-transport .qv-caption"))


def steps_bar(tab: Tab) -> Any:
    return tab.page.get_by_role("slider", name="step", exact=True)


def jump(tab: Tab, step: int) -> None:
    """Put the bar there at once, as a click on it does."""
    steps_bar(tab).evaluate(
        "(bar, v) => { bar.value = v; bar.dispatchEvent(new Event('input', {bubbles: true})); }",
        step,
    )


def wait_for_step(tab: Tab, step: int, *pictures: int) -> None:
    for which in pictures or (NOW, PASSED):
        tab.until(
            "([which, n]) => document.querySelectorAll('.qv-matrix')[which].dataset.qvPainted"
            " === String(n)",
            [which, step],
        )


def assert_shows(tab: Tab, which: int, values: torch.Tensor, limit: float, veil_from: int) -> None:
    """Every cell of the picture up to `veil_from` has the colour of its value, but for one step
    of 8 bits; what waits is veiled and not compared."""
    want = colors_of(values.numpy(), limit)
    image = canvas_pixels(tab, ".qv-matrix canvas.qv-values", which).astype(int)
    r = ((np.arange(want.shape[0]) + 0.5) * image.shape[0] / want.shape[0]).astype(int)
    c = ((np.arange(want.shape[1]) + 0.5) * image.shape[1] / want.shape[1]).astype(int)
    until = int(veil_from * want.shape[1] / values.shape[1])
    off = np.abs(image[r][:, c] - want).max(axis=-1)[:, :until]
    assert np.quantile(off, 0.999) <= 8, f"picture {which} is off by {off.max()}"


def colors_of(values: np.ndarray, limit: float) -> np.ndarray:
    small = codec.reduce_matrix(values, codec.factors(values.shape), "nearest")
    at = np.clip((small + limit) / (2 * limit), 0, 1) * 255
    return colors.palette("diverging")[np.rint(at).astype(int)].astype(int)


def test_steps_by_keyboard_show_the_run_of_the_library(tab, walk):
    limit = reach(walk.original)
    bar = steps_bar(tab)
    bar.focus()
    for key, step in [("ArrowRight", 1), ("Shift+ArrowRight", 11), ("ArrowLeft", 10),
                      ("End", 1024), ("Home", 0)]:  # fmt: skip
        tab.page.keyboard.press(key)
        wait_for_step(tab, step)
        # the values layer has no veil: that is drawn on the layer above
        assert_shows(tab, NOW, walk.now(step), limit, 1024)
    tab.page.keyboard.press("]")
    wait_for_step(tab, 128)
    assert_shows(tab, NOW, walk.now(128), limit, 1024)
    eventually(lambda: "Step 128, column 128" in caption(tab))


def test_any_column_is_reached_at_once(tab, walk):
    limit = reach(walk.original)
    for step in (900, 17, 512, 1023, 300):
        jump(tab, step)
        wait_for_step(tab, step)
        assert_shows(tab, NOW, walk.now(step), limit, 1024)
        assert tab.page.text_content(".qv-transport .qv-count") == f"step {step} / 1024"
    story = walk.story(walk.rows // 7, 300)
    eventually(lambda: rows(tab).get("row, column") == f"{story.row}, 300")
    table = rows(tab)
    assert table["code q"].startswith(str(story.code))
    assert float(table["w at its turn"].replace("−", "-")) == pytest.approx(story.live, rel=1e-3)


def test_scrubbing_with_the_mouse(tab):
    where = steps_bar(tab).bounding_box()
    y = where["y"] + where["height"] / 2
    tab.page.mouse.move(where["x"] + 12, y)
    tab.page.mouse.down()
    for part in range(24):
        tab.page.mouse.move(where["x"] + where["width"] * part / 23, y)
    tab.page.mouse.up()
    wait_for_step(tab, 1024)
    eventually(lambda: "All 1024 columns are rounded" in caption(tab))


def test_playing_moves_on_and_stops(tab):
    jump(tab, 200)
    tab.page.get_by_role("button", name="Play").click()
    tab.until("() => +document.querySelector('.qv-transport .qv-range').value > 202", seconds=20)
    tab.page.get_by_role("button", name="Pause").click()
    step = int(steps_bar(tab).input_value())
    wait_for_step(tab, step)
    eventually(lambda: f"Step {step}," in caption(tab))


def test_moments_light_their_terms(tab):
    jump(tab, 40)
    for name, term in [
        ("levels", "range"),
        ("round", "q"),
        ("divide", "gap"),
        ("pass on", "Ujk"),
    ]:
        tab.page.get_by_role("radio", name=name, exact=True).check(force=True)
        tab.until(
            "t => [...document.querySelectorAll(`.qv-math [data-term=${t}].qv-lit`)]"
            ".some((e) => e.getClientRects().length)",
            term,
        )
    eventually(lambda: "waiting weights move" in caption(tab))


def test_a_clicked_weight_keeps_its_story_while_steps_go_on(tab, walk):
    jump(tab, 40)
    wait_for_step(tab, 40)
    stage = tab.page.locator(".qv-matrix .qv-stage").first
    box = stage.bounding_box()
    where = {"x": box["width"] * 0.8, "y": box["height"] * 0.5}
    stage.click(position=where)
    eventually(lambda: "waiting" in rows(tab).get("its turn", ""))
    held = rows(tab)["row, column"]
    row, column = (int(v) for v in held.split(", "))
    jump(tab, column + 1)
    eventually(lambda: rows(tab)["its turn"] == f"step {column}, done")
    assert rows(tab)["row, column"] == held
    story = walk.story(row, column)
    moved = rows(tab)["moved in total by"].replace("−", "-")
    assert float(moved) == pytest.approx(story.compensation, rel=1e-2, abs=1e-9)
    stage.click(position=where)  # and let go


def test_two_runs_in_lockstep(tab, walk):
    tab.page.get_by_label("A second run beside it").select_option(label="setting: Act-order")
    other = walk_with(bits=3, act_order=True)
    eventually(lambda: tab.page.locator(".qv-matrix").nth(SECOND).is_visible(), 20)
    limit = reach(walk.original)
    for step in (700, 64):
        jump(tab, step)
        wait_for_step(tab, step, FIRST, SECOND, BETWEEN)
        a, b = (run.now(step)[:, run.turn] for run in (walk, other))
        assert_shows(tab, FIRST, a, limit, 1024)
        assert_shows(tab, SECOND, b, limit, 1024)
        assert_shows(tab, BETWEEN, a - b, limit, 1024)
    eventually(lambda: "differ" in caption(tab))
    assert f"{100 * other.error[-1]:.3g} %" in str(tab.page.inner_text(".qv-main .qv-aside"))
    tab.page.get_by_label("A second run beside it").select_option(label="nothing")
    eventually(lambda: not tab.page.locator(".qv-matrix").nth(SECOND).is_visible(), 20)


def test_other_bits_are_another_run(tab):
    jump(tab, 512)
    tab.page.get_by_role("slider", name="Bits per code").focus()
    tab.page.keyboard.press("Home")
    run = walk_with(bits=2)
    limit = reach(run.original)

    def shown() -> bool:
        story = run.story(run.rows // 7, int(rows(tab)["row, column"].split(", ")[1]))
        return rows(tab)["code q"].startswith(f"{story.code} (of 0 … 3")

    eventually(shown, 20)
    wait_for_step(tab, 512)
    eventually(lambda: _same(tab, run, 512, limit), 10)


def _same(tab: Tab, run: Walk, step: int, limit: float) -> bool:
    try:
        assert_shows(tab, NOW, run.now(step), limit, 1024)
    except AssertionError:
        return False
    return True


def test_answers_to_the_learner_are_in_sight(base, open_tab):
    """The verdict on a guess, and what was wrong, without scrolling, above the steps' bar."""
    tab = open_tab()
    tab.open(f"{base}/voila/render/07_gptq.ipynb#part=a+real+layer", READY)
    tab.page.get_by_label("Before you step").select_option(label="half or more")
    verdict = tab.page.locator(".qv-controls .qv-caption")
    eventually(lambda: "GPTQ leaves" in verdict.inner_text())
    bar = tab.page.locator(".qv-transport")
    assert _bottom(verdict) < bar.bounding_box()["y"]
    tab.page.get_by_role("button", name="More settings").click()
    tab.page.get_by_role("button", name="Your own layer").click()
    tab.page.get_by_role("button", name="Open it").click()
    wrong = tab.page.get_by_role("alert").filter(has_text="Not possible")
    eventually(lambda: wrong.count() == 1)
    assert wrong.bounding_box()["y"] >= 0
    assert _bottom(wrong) <= bar.bounding_box()["y"]
    assert _bottom(bar) <= 800
    tab.assert_clean()


@pytest.mark.parametrize("beside", ["", "&beside=double_division"])
def test_what_a_step_needs_is_in_sight(base, open_tab, beside):
    """At 1280×800 without scrolling, above the steps' bar: pictures, charts, the equation of this
    moment and the first numbers of the chosen weight."""
    tab = open_tab()
    link = f"part=a+real+layer{beside}&step=300"
    tab.open(f"{base}/voila/render/07_gptq.ipynb#{link}", READY)
    tab.until("link => document.body.dataset.qvAddress === link", link, seconds=60)
    bar = tab.page.locator(".qv-transport")
    needed = ".qv-main .qv-stage, .qv-main .qv-plot, .qv-side .qv-equation"
    weight = tab.page.locator(".qv-side tr").filter(has_text="now, moved")

    def hidden() -> list[str]:
        top = bar.bounding_box()["y"]
        seen = [one for one in tab.page.locator(needed).all() if one.is_visible()]
        assert len(seen) >= 5
        out = [one for one in (*seen, weight.first) if _bottom(one) > top]
        return [str(one.get_attribute("class")) for one in out]

    eventually(lambda: hidden() == [], 20)
    tab.assert_clean()


def _bottom(element: Any) -> float:
    box = element.bounding_box()
    return float(box["y"] + box["height"])


def test_on_a_phone(base, open_tab):
    tab = open_tab(width=390, height=844, color_scheme="dark", has_touch=True)
    tab.open(f"{base}/voila/render/07_gptq.ipynb#part=a+real+layer", READY)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    jump(tab, 512)
    wait_for_step(tab, 512)
    eventually(lambda: "Step 512" in caption(tab))
    tab.assert_clean()


def test_in_jupyterlab(open_tab, lab, walk):
    """There the kernel answers on another thread."""
    url, _ = lab()
    tab = open_tab(width=1600, height=1000)
    run_first_cell(tab, f"{url}/lab/tree/07_gptq.ipynb")
    tab.page.get_by_role("radio", name="a real layer").check(force=True)
    tab.page.wait_for_selector(READY, timeout=60_000, state="attached")
    tab.page.locator(".qv-stage:visible").first.scroll_into_view_if_needed()
    bar = tab.page.locator(".qv-transport").bounding_box()  # in sight with the pictures
    assert bar["y"] > 0 and bar["y"] + bar["height"] <= 1000
    steps_bar(tab).focus()
    tab.page.keyboard.press("]")
    wait_for_step(tab, 128)
    eventually(lambda: "Step 128" in caption(tab))
    tab.assert_clean()
