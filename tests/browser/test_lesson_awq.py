"""Lesson 8 in a real Chromium: channels kept by keyboard, candidates stepped without the kernel, a
group pointed at; held against the library."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import Tab, eventually, follow
from said import numbers_in

from qviz.study.awq_case import load_case
from qviz.study.awq_steps import BY_INPUTS, FRACTIONS, Clip, Search, keeping

pytestmark = pytest.mark.browser
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
READY = "body[data-qviz-ready] .qv-page"
LAYER = "model.layers.0.self_attn.k_proj"


@pytest.fixture(scope="module")
def tab(
    serve_notebooks: Callable[[Path], Any], browser: Any, open_tab: Callable[..., Tab]
) -> Iterator[Tab]:
    with serve_notebooks(NOTEBOOKS) as url:
        tab = open_tab()
        tab.open(f"{url}/voila/render/08_awq.ipynb", READY)
        yield tab
        tab.assert_clean()


@pytest.fixture(scope="module")
def case() -> Any:
    return load_case(None, LAYER, bits=3)


def go(tab: Tab, link: str) -> Any:
    follow(tab, link)
    return tab.page


def said(page: Any) -> str:
    return str(page.locator(".qv-transport .qv-caption:visible").inner_text())


def rows(page: Any) -> dict[str, str]:
    """The visible table of the chosen weight."""
    return dict(
        page.evaluate(
            """() => [...document.querySelectorAll('table')].filter((t) => t.caption &&
              t.caption.textContent.startsWith('The chosen weight') && t.getClientRects().length)
              .flatMap((t) => [...t.tBodies[0].rows].map((r) =>
                [r.cells[0].textContent, r.cells[1].textContent]))"""
        )
    )


def test_channels_are_kept_by_keyboard(tab, case):
    page = go(tab, f"layer={LAYER}")
    found = keeping(case)
    slider = page.get_by_role("slider", name="Channels kept in 16 bits")
    slider.focus()
    page.keyboard.press("End")
    eventually(lambda: "nothing is rounded" in page.locator(".qv-caption-row:visible").inner_text())
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")

    def agrees() -> bool:
        numbers = numbers_in(page.locator(".qv-caption-row:visible").inner_text())
        return numbers[0].value == 3 and numbers[2].is_(float(found.errors[BY_INPUTS][3]))

    eventually(agrees)


def test_candidates_step_while_the_kernel_is_away(tab, case):
    page = go(tab, f"layer={LAYER}&part=search")
    search = Search(case, "llm-awq")
    page.get_by_role("slider", name="candidate").focus()
    page.keyboard.press("Home")
    for k in range(1, 6):
        page.keyboard.press("ArrowRight")
        one = search.candidates[k]

        def agrees(k: int = k, one: Any = one) -> bool:
            text = said(page)
            table = rows(page)
            factor = numbers_in(table["s of its channel"])[0]
            channel = int(table["row, channel"].split(", ")[1])
            return text.startswith(f"Candidate {k} of 19") and any(
                n.is_(one.error) for n in numbers_in(text)
            ) and factor.is_(float(one.scale[channel]), 3)  # fmt: skip

        eventually(agrees)
    page.keyboard.press("ArrowLeft")
    eventually(lambda: said(page).startswith("Candidate 4 of 19"))
    painted = "[...document.querySelectorAll('.qv-matrix')].filter((e) => " \
              "e.getClientRects().length).map((e) => e.dataset.qvPainted)"  # fmt: skip
    eventually(lambda: page.evaluate(painted) == ["4"])
    page.keyboard.press("]")  # to the next that is the best so far
    best = [k for k in range(20) if search.best_so_far(k) == k]
    there = next((k for k in best if k > 4), 4)
    eventually(lambda: said(page).startswith(f"Candidate {there} of 19"))
    link = f"layer={LAYER}&part=search&candidate={there}"  # what was done has reached the address
    tab.until("link => document.body.dataset.qvAddress === link", link)


def test_both_searches_stand_at_the_same_candidate(tab):
    page = go(tab, f"layer={LAYER}&part=search&beside=silent&candidate=9")
    shown = "[...document.querySelectorAll('.qv-matrix')].filter((e) => " \
            "e.getClientRects().length).map((e) => e.dataset.qvPainted)"  # fmt: skip
    eventually(lambda: page.evaluate(shown) == ["9", "9"])
    assert "The sign: its largest factor" in page.locator(".qv-aside:visible").inner_text()


def test_a_group_that_is_pointed_at_is_cut(tab, case):
    page = go(tab, f"layer={LAYER}&part=clip+and+fold&limit=4")
    clip = Clip(case, Search(case, "llm-awq").chosen.scale)
    stage = page.locator(".qv-stage:visible").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] * 0.2, "y": box["height"] * 0.3})

    def agrees() -> bool:
        where = rows(page)["row, channel"]  # empty while the table is built anew
        row, column = (int(part) for part in (where or "0, 999").split(", "))
        group = column // 128
        limit = float(clip.scaled[row, group * 128 : group * 128 + 128].abs().max()) * FRACTIONS[4]
        return (
            column < 128
            and f"row {row}, group {group}" in said(page)
            and numbers_in(rows(page)["limit m"])[0].is_(limit)
        )

    eventually(agrees)
