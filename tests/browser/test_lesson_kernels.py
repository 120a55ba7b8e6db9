"""Lesson 11 in a real Chromium: drag the batch, measure this machine, step through a kernel, let a
model write."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver import Tab, canvas_pixels, eventually, run_first_cell

from qviz.kernels.records import recorded
from qviz.kernels.registry import BASELINE
from qviz.ui.figures.kernels import points_of
from qviz.ui.views import KernelsLesson

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
READY = ".qv-chart .js-plotly-plot .barlayer"
PAGE = "voila/render/11_memory_and_speed.ipynb"


@pytest.fixture(scope="module")
def tab(base: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    tab = open_tab()
    tab.open(f"{base}/{PAGE}", READY)
    yield tab
    tab.assert_clean()


def rows(tab: Tab, which: int = 0) -> dict[str, str]:
    """Label → text of one of the tables that are on the page."""
    return dict(
        tab.page.eval_on_selector_all(
            ".qv-readout",
            """(all, which) => [...all.filter((t) => t.offsetParent)[which].querySelectorAll('tr')]
                .map((r) => [...r.querySelectorAll('th, td')].map((c) => c.textContent))""",
            which,
        )
    )


def caption(tab: Tab) -> str:
    return str(tab.page.locator(".qv-caption-row .qv-caption:visible").first.inner_text())


def part(tab: Tab, name: str) -> None:
    tab.page.get_by_role("radio", name=name, exact=True).click()


def test_a_record_opens_as_a_record(tab):
    first = recorded()[0]
    said = tab.page.inner_text(".qv-main")
    assert f"Recorded on {first.title}" in said and "not measured here" in said


def test_dragging_the_batch_shows_each_batchs_figures(tab):
    """By keyboard through all of them, and by mouse; the words are those of Python's page."""
    race = KernelsLesson().race
    slider = tab.page.get_by_role("slider", name="Tokens at once (batch)")
    slider.focus()
    tab.page.keyboard.press("Home")
    for i, batch in enumerate(race.batches):
        eventually(lambda i=i: caption(tab) == race.caption.texts[i])
        point = points_of(race.shown, race.kernel)[batch]
        speed = race.shown.speedup(point)
        near = pytest.approx(speed, rel=0.006)
        eventually(lambda near=near: float(rows(tab)["speed, × 16 bits"].rstrip("×")) == near)
        tab.page.keyboard.press("ArrowRight")
    where = slider.bounding_box()
    y = where["y"] + where["height"] / 2
    tab.page.mouse.move(where["x"] + where["width"] - 9, y)
    tab.page.mouse.down()
    for step in range(12):
        tab.page.mouse.move(where["x"] + 9 + (where["width"] - 18) * (1 - step / 11), y)
    tab.page.mouse.up()
    eventually(lambda: caption(tab) == race.caption.texts[0])


def test_the_bars_are_drawn_for_the_batch(tab):
    """Plotly's own record of what it drew, once the slider rests."""
    race = KernelsLesson().race
    slider = tab.page.get_by_role("slider", name="Tokens at once (batch)")
    slider.focus()
    tab.page.keyboard.press("End")
    last = race.batches[-1]
    expected = [1e3 * points_of(race.shown, name)[last].time.median for name in race.kernels]

    def drawn() -> bool:
        x = tab.page.evaluate("[...document.querySelector('.js-plotly-plot')._fullData[0].x]")
        return x == pytest.approx(list(reversed(expected)), rel=1e-4)

    eventually(drawn)


@pytest.mark.slow
def test_measuring_this_machine(tab):
    tab.page.get_by_role("button", name="Shape and machine").click()
    choose = tab.page.get_by_label("Shape, from a model")
    tab.page.get_by_label("Figures from").select_option(index=0)
    tab.page.wait_for_function(
        "[...document.querySelectorAll('p')].some((p) => p.textContent.includes('Not measured'))"
    )
    labels = choose.locator("option").all_inner_texts()
    choose.select_option(label=next(text for text in labels if "bundled" in text))
    tab.page.get_by_role("button", name="Measure it here").click()
    tab.page.get_by_role("button", name="Stop measuring").wait_for()
    eventually(lambda: "Measured on" in tab.page.inner_text(".qv-main"), 120)
    tab.page.get_by_role("button", name="Measure it here").wait_for()
    # The words come first; table and charts are messages of their own.
    eventually(lambda: "speed, × 16 bits" in rows(tab))
    assert float(rows(tab)["speed, × 16 bits"].rstrip("×")) > 0
    eventually(lambda: BASELINE in tab.page.inner_text(".qv-main"))
    assert tab.page.locator(".qv-status [role=alert]").count() == 0


def test_stepping_through_a_kernel(tab):
    part(tab, "inside")
    bar = tab.page.get_by_role("slider", name="step of the program")
    bar.wait_for()
    bar.focus()
    python = KernelsLesson()
    python.part_control.index = 1
    inside = python.inside
    eventually(lambda: tab.page.locator(".qv-code .qv-lit").count() > 0)
    seen = []
    for i in range(8):
        eventually(
            lambda i=i: (
                inside.transport.captions[i] == tab.page.inner_text(".qv-transport .qv-caption")
            )
        )
        eventually(
            lambda i=i: (
                len(inside.walk.steps[i].lines) == tab.page.locator(".qv-code .qv-lit").count()
            )
        )
        expected = {r["label"]: r["texts"][min(i, len(r["texts"]) - 1)] for r in inside.table.rows}
        eventually(lambda expected=expected: rows(tab) == expected)
        visible = ".qv-main .qv-card:not(.qv-gone) .qv-stage canvas"
        seen.append(canvas_pixels(tab, visible).tobytes())
        tab.page.keyboard.press("ArrowRight")
    assert len(set(seen)) > 5  # the picture changes with the steps
    tab.page.keyboard.press("End")
    eventually(lambda: rows(tab)["output y, in bfloat16"] != "–")
    value, wide = (
        float(rows(tab)[n].replace("−", "-"))
        for n in ("output y, in bfloat16", "the same in float64")
    )
    assert value == pytest.approx(wide, rel=2**-7)


def test_another_kernel_and_program(tab):
    tab.page.get_by_label("Kernel", exact=True).select_option(index=1)
    eventually(lambda: "its level" in rows(tab))
    program = tab.page.get_by_role("slider", name="Program", exact=True)
    program.focus()
    tab.page.keyboard.press("End")
    eventually(lambda: "this is number 63" in tab.page.inner_text(".qv-main"))


def test_a_model_writes_with_packed_weights(tab):
    part(tab, "model")
    tab.page.get_by_role("button", name="Let both write").click()
    eventually(lambda: "× smaller" in caption(tab), 150)
    assert tab.page.locator(".qv-status [role=alert]").count() == 0
    texts = [t for t in tab.page.locator(".qv-code pre").all_inner_texts() if t.strip()]
    assert len(texts) >= 2
    assert "decode, tokens/s" in rows(tab)


def test_an_empty_prompt_is_said_in_words(tab):
    part(tab, "model")
    tab.page.get_by_label("Prompt").fill(" ")
    tab.page.get_by_role("button", name="Let both write").click()
    tab.page.wait_for_selector(".qv-status [role=alert]")
    assert "type a prompt" in str(tab.page.text_content(".qv-status [role=alert]"))
    part(tab, "race")
    eventually(lambda: tab.page.get_by_role("slider", name="Tokens at once (batch)").is_visible())


def test_on_a_phone(base, open_tab):
    tab = open_tab(width=390, height=844, color_scheme="dark", has_touch=True)
    tab.open(f"{base}/{PAGE}", READY)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    slider = tab.page.get_by_role("slider", name="Tokens at once (batch)")
    slider.focus()
    tab.page.keyboard.press("End")
    race = KernelsLesson().race
    eventually(lambda: caption(tab) == race.caption.texts[-1])
    for name in ("inside", "model"):
        part(tab, name)
        tab.page.wait_for_timeout(1500)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.assert_clean()


def test_in_jupyterlab(open_tab, lab):
    """There controls are answered on another thread, and measuring runs on a third."""
    url, _ = lab()
    tab = open_tab(width=1600, height=1000)
    run_first_cell(tab, f"{url}/lab/tree/11_memory_and_speed.ipynb")
    tab.page.wait_for_selector(READY, timeout=60_000, state="attached")
    tab.page.get_by_role("button", name="Shape and machine").click()
    tab.page.get_by_label("Figures from").select_option(index=0)
    choose = tab.page.get_by_label("Shape, from a model")
    eventually(lambda: "bundled" in choose.inner_text(), 20)
    labels = choose.locator("option").all_inner_texts()
    choose.select_option(label=next(text for text in labels if "bundled" in text))
    tab.page.get_by_role("button", name="Measure it here").click()
    eventually(lambda: "Measured on" in tab.page.inner_text(".qv-main"), 120)
    tab.assert_clean()
    tab.close()
