"""Every lesson in a real Chromium, from warm kernels, behind a prefix and with a token: links,
keyboard, names, the guide, the projector.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from driver import Tab, eventually, follow, kernel_of, kernels, running

from qviz.ui.views.lessons import LESSONS, Lesson

pytestmark = [pytest.mark.browser, pytest.mark.contract]
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PREFIX, TOKEN = "/user/ann/", "a-token-of-the-test"
PREFIXED = f"""
import sys
from pathlib import Path
from qviz.server import ServeOptions, app

plain = app.voila_config

def prefixed(options):
    config = plain(options)
    config.Voila.base_url = {PREFIX!r}
    return config

app.voila_config = prefixed
rendered = app.WarmKernels.get_rendered_notebook

async def told(self, notebook_name, **more):
    answer = await rendered(self, notebook_name, **more)
    print("from a warm kernel:", notebook_name, flush=True)
    return answer

app.WarmKernels.get_rendered_notebook = told
app.serve(
    ServeOptions(
        notebooks=Path(sys.argv[1]), port=0, host="127.0.0.1", browser=False, token={TOKEN!r},
        pool=1, fill_cache=False,
    ),
    lambda text: print(text, flush=True),
)
"""
READY = "body[data-qviz-ready]"
#: Lesson → a link, and words that then stand on the page.
LINKS = {
    "awq": ("layer=model.layers.0.self_attn.k_proj&part=search&beside=autoawq&candidate=7",
            ["Candidate 7 of 19, r = 0.35", "Second search: candidate 7",
             "layers.0.self_attn.k_proj"]),
    "bit_width": ("layer=model.layers.0.self_attn.q_proj&scale=group+of+32&bits=3&weight=7%2C+9",
                  ["3 bits: 8 levels for each group of 32", "7, 9", "layers.0.self_attn.q_proj"]),
    "formats": ("beside=nf4&x=2.5&format=fp4_e2m1",
                ["halfway between 2 and 3", "FP4 E2M1", "NF4"]),
    "scale_and_zero_point": (
        "layer=model.layers.0.self_attn.q_proj&levels=asymmetric&scale=group+of+32&kept=75+%25"
        "&number=1%2C+2",
        ["75 % of the range kept", "The 32 weights of row", "layers.0.self_attn.q_proj"]),
    "gptq": ("part=a+real+layer&beside=act_order&step=512",
             ["Step 512, column 512", "Second run: Act-order", "both runs have rounded"]),
    "gguf": ("type=Q4_0&step=3&weight=7%2C+300",
             ["Bytes 2 to 17, qs", "Row 7, column 300", "code of weight 12"]),
    "granularity": ("layer=model.layers.0.self_attn.k_proj&size=16%C3%97&outlier=3%2C+4",
                    ["Row 75, column 4", "16× the typical weight", "scale set by"]),
    "memory_and_speed": ("part=inside&multiplied=triton.nf4&stored=nf4-g64&rows=16&step=3",
                         ["this is number 0", "its level", "step of the program 3 /"]),
    "nf4": ("layer=model.layers.0.self_attn.k_proj&part=store&block=32&weight=7%2C+9",
            ["Blocks of 32: 5.000 bits per weight", "7, 9", "layers.0.self_attn.k_proj"]),
}  # fmt: skip
PARTS = {
    "awq": [
        "part=one+channel",
        "part=search&beside=silent",
        "part=clip+and+fold",
        "part=beside+others",
    ],
    "formats": ["part=a+block+of+weights", "part=hardware"],
    "gptq": ["part=a+real+layer"],
    "gguf": ["part=types", "part=file", "beside=second+pass+left+out&step=30"],
    "granularity": ["part=equal+bits"],
    "memory_and_speed": ["part=inside", "part=model"],
    "nf4": ["part=fill", "part=store", "part=duel&board=on"],
}


#: Lessons that a projector shows whole, without scrolling.
IN_ONE_VIEW = ("bit_width", "gptq", "memory_and_speed")
#: Lessons whose first step of the guide is done at the far end of the slider that leads.
GUIDE_ENDS = ("awq", "formats", "granularity", "memory_and_speed")


#: Lessons of whose guide a step was done here, which the gallery must then know.
KEPT: list[Lesson] = []


@pytest.fixture(scope="module")
def server(browser: Any) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it prints."""
    arguments = [sys.executable, "-c", PREFIXED, str(NOTEBOOKS)]
    with running(arguments, rf"(http://127\.0\.0\.1:\d+){PREFIX}") as (match, lines):
        yield f"{match.group(1)}{PREFIX}", lines


@pytest.fixture(scope="module")
def base(server: tuple[str, list[str]]) -> str:
    return server[0]


@pytest.fixture(scope="module")
def tab(base: str, open_tab: Callable[..., Tab]) -> Iterator[Tab]:
    """One tab for all lessons, which has been let in by the token."""
    tab = open_tab(permissions=["clipboard-read", "clipboard-write"])
    tab.open(f"{base}?token={TOKEN}", READY)
    yield tab
    tab.assert_clean()


@pytest.fixture(scope="module", params=LESSONS, ids=lambda lesson: lesson.slug)
def lesson(request: pytest.FixtureRequest) -> Lesson:
    return request.param


def address(tab: Tab) -> str:
    return str(tab.page.evaluate("location.hash.slice(1)"))


def go(tab: Tab, base: str, lesson: Lesson, link: str = "") -> Any:
    """To a state of the lesson's page, which is opened where it is not."""
    where, said = f"{base}voila/render/{lesson.notebook}", "document.body.dataset.qvAddress"
    tab.page.set_viewport_size({"width": 1280, "height": 800})
    presenting = tab.page.locator(".qv-presenting").count()  # a test that failed there left it so
    if presenting or tab.page.url.partition("#")[0] != where:
        tab.page.goto("about:blank")
        tab.open(f"{where}#{link}", f"{READY} .qv-page", 90)
        tab.until(f"link => ({said} ?? '') === link", link, seconds=60)
    else:
        follow(tab, link)
    return tab.page


def test_a_link_opens_its_state_from_a_warm_kernel_behind_a_prefix(
    tab: Tab, server: tuple[str, list[str]], lesson: Lesson
) -> None:
    link, words = LINKS[lesson.slug]
    base, printed = server

    def warm() -> bool:
        """Opened until a warm kernel was there to take."""
        tab.page.goto("about:blank")
        where = f"{base}voila/render/{lesson.notebook}#{link}"
        tab.open(where, f"{READY} .qv-page", 90)
        return f"from a warm kernel: {lesson.notebook}\n" in printed

    eventually(warm, 150)
    tab.until("link => document.body.dataset.qvAddress === link", link, seconds=60)
    assert urlsplit(tab.page.url).path == f"{PREFIX}voila/render/{lesson.notebook}"
    for word in words:
        eventually(lambda word=word: word in all_text(tab), 20)
    assert tab.page.title() == f"{lesson.title} · qviz"
    assert copied(tab.page) == f"{base}voila/render/{lesson.notebook}#{link}"
    if lesson.slug == "gptq":  # both runs' pictures, and their difference, stand at the step
        shown = "[...document.querySelectorAll('.qv-matrix')].filter((e) => " \
                "e.getClientRects().length).map((e) => e.dataset.qvPainted)"  # fmt: skip
        eventually(lambda: tab.page.evaluate(shown) == ["512"] * 3, 20)


def all_text(tab: Tab) -> str:
    return str(
        tab.page.evaluate(
            "document.body.innerText + [...document.querySelectorAll('select')]"
            ".map((s) => s.selectedOptions[0]?.text).join(' ')"
        )
    )


def test_the_address_follows_the_page_and_the_page_the_address(
    tab: Tab, base: str, lesson: Lesson
) -> None:
    page = go(tab, base, lesson)
    assert address(tab) == ""
    link, words = LINKS[lesson.slug]
    page.evaluate("link => { location.hash = link; }", link)  # as Back does, or who edits it
    tab.until("link => document.body.dataset.qvAddress === link", link, seconds=60)
    eventually(lambda: words[0] in all_text(tab), 20)
    page.goto("about:blank")
    page.go_back()  # what was done is not lost
    page.wait_for_selector(f"{READY} .qv-page", timeout=90_000)
    tab.until("link => document.body.dataset.qvAddress === link", link, seconds=60)
    eventually(lambda: words[0] in all_text(tab), 20)
    page.evaluate("location.hash = 'no_such_name=1'")
    alert = page.get_by_role("alert").filter(has_text="in the address")
    alert.wait_for(timeout=20_000)
    eventually(lambda: address(tab) == link)  # nothing changed, and the address says so
    page.evaluate("location.hash = ''")
    eventually(lambda: page.evaluate("document.body.dataset.qvAddress") == "", 30)


def test_a_link_comes_after_what_was_changed_before_it(tab: Tab, base: str) -> None:
    """The kernel is busy with a first change, and others wait for its answer.
    The address is edited, and what was asked before is not done after it."""
    page = go(tab, base, LESSONS[0])
    kernel = kernels()[kernel_of(tab)]
    kernel.suspend()
    try:
        page.locator(".qv-lead input").focus()
        for key in ("Home", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
            page.wait_for_timeout(100)
        page.evaluate("location.hash = 'bits=7'")
        page.wait_for_timeout(300)
    finally:
        kernel.resume()
    tab.until("document.body.dataset.qvAddress === 'bits=7'")
    page.wait_for_timeout(600)
    assert address(tab) == page.evaluate("document.body.dataset.qvAddress") == "bits=7"


def test_the_copied_link_carries_the_state_and_no_token(tab: Tab, base: str) -> None:
    """Of a page that was itself opened by the token."""
    lesson = LESSONS[0]
    page, link = go(tab, base, lesson), LINKS[lesson.slug][0]
    page.goto("about:blank")
    page.goto(f"{base}voila/render/{lesson.notebook}?token={TOKEN}#{link}")
    page.wait_for_selector(f"{READY} .qv-page", timeout=90_000)
    tab.until("link => document.body.dataset.qvAddress === link", link, seconds=60)
    assert copied(page) == f"{base}voila/render/{lesson.notebook}#{link}"


def copied(page: Any) -> str:
    """What the page's button puts on the clipboard."""
    page.get_by_role("button", name="Copy link").click()
    page.get_by_role("button", name="Copied").wait_for()
    return str(page.evaluate("navigator.clipboard.readText()"))


def test_the_guide_sets_the_page_and_remembers(tab: Tab, base: str, lesson: Lesson) -> None:
    page = go(tab, base, lesson)
    steps = page.locator(".qv-guide button")
    steps.nth(0).click()
    page.wait_for_selector(".qv-guide button[aria-current=step]")
    assert page.locator(".qv-watch").inner_text()
    if lesson.slug in ("gguf", "gptq", "nf4"):
        page.get_by_role("button", name="To the end").click()
    else:
        page.locator(".qv-lead input:visible").focus()
        page.keyboard.press("End" if lesson.slug in GUIDE_ENDS else "Home")
    done = ".qv-guide li:first-child .qv-done"
    page.wait_for_selector(done, timeout=20_000)
    tab.until("document.body.dataset.qvAddress === location.hash.slice(1)")
    link = address(tab)
    page.reload()
    page.wait_for_selector(done, timeout=90_000)
    tab.until("link => document.body.dataset.qvAddress === link", link, seconds=60)
    KEPT.append(lesson)


def test_the_gallery_knows_what_was_visited_and_tried(tab: Tab, base: str) -> None:
    page = tab.open(f"{base}voila/render/00_start.ipynb", ".qv-path li a")
    for lesson in LESSONS:
        card = page.locator(".qv-path li a", has_text=f"{lesson.number} · {lesson.title}")
        card.wait_for(timeout=60_000)
        assert ("visited" in card.inner_text()) >= (lesson in KEPT)
        assert ("1 tried" in card.inner_text()) == (lesson in KEPT)
    if not KEPT:
        pytest.skip("no lesson's guide was followed in this run")


def test_keyboard_stops_come_in_order_with_names_and_in_sight(
    tab: Tab, base: str, lesson: Lesson
) -> None:
    """Through everything by Tab: forwards down the document, named, not under a bar, also where
    the page is enlarged to 200 and to 400 %."""
    parts = ["", *PARTS.get(lesson.slug, [])]
    sizes = ((1280, 800), (640, 400), (320, 256))
    for part, (width, height) in itertools.product(parts, sizes):
        page = go(tab, base, lesson, part)
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(250)
        page.evaluate("document.activeElement?.blur(); scrollTo(0, 0)")
        seen = page.evaluate("window.qvStops = []")
        for _ in range(150):
            page.keyboard.press("Tab")
            stop = page.evaluate(STOP)
            if stop is None or stop["again"]:
                break
            seen.append(stop)
        assert len(seen) > 12
        assert [s["html"] for s in seen if not s["name"]] == []
        assert [s["html"] for s in seen if not s["after"]] == []
        assert [s["html"] for s in seen if s["hidden"]] == [], (part, width)
    page.set_viewport_size({"width": 1280, "height": 800})


def test_the_first_stop_leads_to_the_controls(tab: Tab, base: str, lesson: Lesson) -> None:
    page = go(tab, base, lesson)
    page.evaluate("document.activeElement?.blur(); scrollTo(0, 0)")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    here = page.evaluate(
        "[document.activeElement.closest('.qv-lead, .qv-foot, .qv-controls') !== null,"
        " document.activeElement.getBoundingClientRect().top]"
    )
    assert here[0] and 0 <= here[1] < 800


STOP = """() => {
  const el = document.activeElement;
  if (!el || el === document.body) return null;
  const again = window.qvStops.includes(el);
  const last = window.qvStops.at(-1);
  window.qvStops.push(el);
  const by = (el.getAttribute('aria-labelledby') ?? '').split(' ')
    .map((id) => document.getElementById(id)?.textContent ?? '').join(' ');
  const name = el.getAttribute('aria-label') || by.trim() || el.labels?.[0]?.textContent
    || (el.matches('a, button, summary') ? el.textContent : '') || el.title;
  const box = el.getBoundingClientRect();
  const [x, y] = [box.left + box.width / 2, box.top + Math.min(box.height, 30) / 2];
  const top = document.elementFromPoint(x, y);
  const radio = el.matches('[type=radio]');
  return { again, name: (name ?? '').trim(), html: el.outerHTML.slice(0, 160),
    after: !last || Boolean(last.compareDocumentPosition(el) & 4),
    hidden: !(y >= 0 && y <= innerHeight) || !(top && (el.contains(top) || top.contains(el)
      || (radio && el.parentElement.contains(top)))) };
}"""


def test_axe_finds_nothing(tab: Tab, base: str, lesson: Lesson) -> None:
    """In each part, light and dark."""
    package = pytest.importorskip(
        "axe_playwright_python", reason="axe-playwright-python, which carries axe, is not installed"
    )
    axe = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    for part in ["", *PARTS.get(lesson.slug, [])]:
        page = go(tab, base, lesson, part)
        page.wait_for_timeout(700)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(250)  # colours fade
            page.evaluate(axe)
            found = page.evaluate(
                "axe.run(document, { resultTypes: ['violations'] }).then((r) => r.violations"
                ".map((v) => [v.id, v.impact, v.nodes.map((n) => n.html.slice(0, 120))]))"
            )
            assert found == [], (part, scheme)
        page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)], ids=lambda size: str(size[0]))
def test_for_a_projector(tab: Tab, base: str, lesson: Lesson, size: tuple[int, int]) -> None:
    """Larger type; pictures, caption, lead in one view; controls folded, a click or keys away."""
    for part in ["", *PARTS.get(lesson.slug, [])]:
        page = go(tab, base, lesson, part)
        page.set_viewport_size({"width": size[0], "height": size[1]})
        type_size = "parseFloat(getComputedStyle(document.querySelector('.qv-title h1')).fontSize)"
        before = page.evaluate(type_size)
        assert not page.get_by_role("button", name="Controls", exact=True).is_visible()
        page.get_by_role("button", name="Present").click()
        assert page.evaluate(type_size) > 1.2 * before
        assert folded(page)
        all_in_view(page, lesson)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        page.get_by_role("button", name="Controls", exact=True).click()
        assert not folded(page)
        page.keyboard.press("Alt+c")
        assert folded(page)
        all_in_view(page, lesson)
        page.get_by_role("button", name="Present").click()
        assert page.locator(".qv-controls").is_visible()
        assert page.evaluate(type_size) == before
    page.set_viewport_size({"width": 1280, "height": 800})


def folded(page: Any) -> bool:
    """Whether all that stands around is away."""
    around = page.locator(".qv-controls, .qv-guide-row, .qv-wide, .qv-course, .qv-prose")
    seen = [one.is_visible() for one in around.all()]
    return not any(seen)


def all_in_view(page: Any, lesson: Lesson) -> None:
    """Within ten seconds; what is not is in the failure. Of longer lessons what comes first."""
    for _ in range(40):
        out = page.evaluate(OUT_OF_VIEW, lesson.slug in IN_ONE_VIEW)
        if not out:
            return
        page.wait_for_timeout(250)
    assert out == []


# What should be in view and is not, without scrolling: lead, pictures, charts, caption, steps' bar.
OUT_OF_VIEW = """(whole) => {
  scrollTo(0, 0);
  const seen = (e) => e.getClientRects().length > 0;
  const bar = [...document.querySelectorAll('.qv-transport')].find(seen);
  const end = bar ? bar.getBoundingClientRect().top : innerHeight;
  const what = '.qv-lead, .qv-caption-row, .qv-main :is(.qv-stage, .qv-plot, .qv-numbers)';
  const found = [...document.querySelectorAll(what)].filter(seen);
  const all = whole ? found : found.filter((e) => e.matches('.qv-lead'));
  const first = [...document.querySelectorAll('.qv-main > *')].find(seen);
  const out = all.filter((e) => {
    const { top, bottom, height } = e.getBoundingClientRect();
    return (height < 60 && !e.matches('.qv-caption-row')) || top < 0 || bottom > end;
  });
  if (bar && bar.getBoundingClientRect().bottom > innerHeight) out.push(bar);
  if (!first || first.getBoundingClientRect().top > end - 60) out.push(first ?? document.body);
  return out.map((e) => [e.className, e.getBoundingClientRect().bottom, end]);
}"""


def test_charts_type_grows_for_a_projector(tab: Tab, base: str, lesson: Lesson) -> None:
    page = go(tab, base, lesson, PARTS["gptq"][0] if lesson.slug == "gptq" else "")
    tick = "parseFloat([...document.querySelectorAll('.xtick text')]" \
           ".find((e) => e.getClientRects().length)?.style.fontSize ?? 'NaN')"  # fmt: skip

    def at_rest() -> float | None:
        """Not while a chart is still drawn anew, after the test before this one."""
        before = page.evaluate(tick)
        page.wait_for_timeout(500)
        return before if str(before) == str(page.evaluate(tick)) else None

    ticks = eventually(at_rest)
    if ticks != ticks:
        pytest.skip("this lesson opens without a chart")
    page.get_by_role("button", name="Present").click()
    eventually(lambda: page.evaluate(tick) > 1.2 * ticks)
    page.get_by_role("button", name="Present").click()
    eventually(lambda: page.evaluate(tick) == ticks)


def test_pictures_grow_with_the_page(tab: Tab, base: str, lesson: Lesson) -> None:
    page = go(tab, base, lesson, PARTS.get(lesson.slug, [""])[0] if lesson.number == 7 else "")
    wide = "() => Math.max(...[...document.querySelectorAll('.qv-stage, .qv-plot')]" \
           ".map((e) => e.clientWidth))"  # fmt: skip
    small = page.evaluate(wide)
    page.set_viewport_size({"width": 1920, "height": 1080})
    eventually(lambda: page.evaluate(wide) > 1.25 * small)
    page.set_viewport_size({"width": 390, "height": 844})
    eventually(lambda: page.evaluate("document.documentElement.scrollWidth") <= 390)
    page.set_viewport_size({"width": 1280, "height": 800})
