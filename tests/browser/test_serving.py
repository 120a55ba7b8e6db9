"""A page in a real browser: nothing from elsewhere, readable, honest when its kernel is lost."""

import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from driver import Tab, cuttable_proxy, eventually, kernel_of, kernels, write_notebooks

pytestmark = pytest.mark.browser

WIDGETS = '''
import os, signal
import anywidget, traitlets
import ipywidgets as widgets
from IPython.display import display

slider = widgets.IntSlider(description="Bits", min=2, max=8)
label = widgets.Label("2 bits")
slider.observe(lambda change: setattr(label, "value", f"{change.new} bits"), "value")
end = widgets.Button(description="End Python")
end.on_click(lambda _: os.kill(os.getpid(), signal.SIGKILL))

class Own(anywidget.AnyWidget):
    _esm = """export default {
        render({ model, el }) { el.innerHTML = `<b id=own>${model.get("n")}</b>` }
    }"""
    n = traitlets.Int(7).tag(sync=True)

display(widgets.VBox([slider, label, end]), Own())
'''


@contextmanager
def files_served(folder: Path) -> Iterator[int]:
    """Another site: a folder, on a port of its own."""
    handler = partial(QuietFiles, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield int(other.server_address[1])
        other.shutdown()


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing in the test's output."""


READY = "body[data-qviz-ready]"


@pytest.fixture(scope="module")
def base(
    serve_notebooks: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serving")
    pages = {"01_widgets": WIDGETS, "02_broken": "raise ValueError('a detail of the code')"}
    write_notebooks(folder, pages)
    with serve_notebooks(folder) as url:
        yield url


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_from_this_machine_alone(
    base: str, open_tab: Callable[..., Tab], width: int, scheme: str
) -> None:
    tab = open_tab(width=width, color_scheme=scheme)
    page = tab.open(f"{base}/voila/render/01_widgets.ipynb", READY)
    assert page.title() == "Test page · qviz"
    assert page.locator("#own").inner_text() == "7"
    assert page.locator("#loading").count() == 0
    slider = page.locator("[role=slider]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("3 bits").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    light = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128"
    )
    assert light == (scheme == "light")
    tab.assert_clean()


def test_the_address_alone_leads_to_the_gallery(base: str, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    page = tab.open(base, READY)
    assert page.url == f"{base}/voila/render/00_start.ipynb"
    tab.assert_clean()


def test_a_page_that_is_left_ends_its_kernel(base: str, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    tab.open(f"{base}/voila/render/01_widgets.ipynb", READY)
    kernel = f"{base}/api/kernels/{kernel_of(tab)}"
    assert status_of(kernel) == 200
    tab.page.goto("about:blank")
    eventually(lambda: status_of(kernel) == 404)


def test_a_lost_kernel_is_said_and_can_be_started_again(
    base: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab()
    page = tab.open(f"{base}/voila/render/01_widgets.ipynb", READY)
    page.get_by_text("End Python").click()
    page.get_by_text("The Python process behind this page has ended").wait_for(timeout=20_000)
    page.get_by_role("button", name="Start again").click()
    page.wait_for_selector(READY, timeout=30_000)
    page.locator("[role=slider]").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("3 bits").wait_for()


def test_a_connection_that_comes_back_takes_the_alarm_with_it(
    base: str, open_tab: Callable[..., Tab]
) -> None:
    """Cut for as long as it takes to notice; then the page answers, the alarm is gone, and a
    kernel that really ends is still reported."""
    port = int(base.rsplit(":", 1)[1].split("/")[0])
    with cuttable_proxy(port) as proxy:
        tab = open_tab()
        page = tab.open(f"http://127.0.0.1:{proxy.port}/voila/render/01_widgets.ipynb", READY)
        proxy.cut()
        page.get_by_text("The server does not answer").wait_for(timeout=20_000)
        proxy.restore()
        page.get_by_text("The connection is back").wait_for(timeout=20_000)
        page.locator("[role=slider]").focus()
        page.keyboard.press("ArrowRight")
        page.get_by_text("3 bits").wait_for()
        page.wait_for_function("!document.querySelector('.qv-notice')")
        proxy.cut()
        page.get_by_text("The server does not answer").wait_for(timeout=20_000)
        kernels()[kernel_of(tab)].kill()
        proxy.restore()
        page.get_by_text("The Python process behind this page has ended").wait_for(timeout=20_000)
        assert page.locator(".qv-notice").count() == 1


def test_a_socket_that_does_not_come_back_though_the_server_answers_is_said(
    base: str, open_tab: Callable[..., Tab]
) -> None:
    """As behind a proxy that has been set anew. Not at once: most come back by themselves."""
    port = int(base.rsplit(":", 1)[1].split("/")[0])
    with cuttable_proxy(port) as proxy:
        tab = open_tab()
        page = tab.open(f"http://127.0.0.1:{proxy.port}/voila/render/01_widgets.ipynb", READY)
        page.clock.install()  # its pauses pass as quickly as this test asks
        rounds: list[int] = []
        asked = f"/api/kernels/{kernel_of(tab)}"
        page.on("response", lambda r: r.url.endswith(asked) and rounds.append(r.status))
        notice = page.locator(".qv-notice")

        def a_second_later() -> bool:
            page.clock.run_for(1000)
            page.wait_for_timeout(20)
            return True

        proxy.refuse_sockets()
        eventually(lambda: a_second_later() and notice.count())
        assert notice.get_by_text("The server answers, but the connection to Python").count() == 1
        assert len(rounds) >= 4
        assert len(rounds) < 10
        assert rounds == [200] * len(rounds)
        proxy.restore()
        eventually(lambda: a_second_later() and "The connection is back" in notice.inner_text())
        page.locator("[role=slider]").focus()
        page.keyboard.press("ArrowRight")
        eventually(lambda: a_second_later() and page.get_by_text("3 bits").count())
        eventually(lambda: a_second_later() and notice.count() == 0)


def test_pages_that_are_left_early_leave_no_kernel(base: str, open_tab: Callable[..., Tab]) -> None:
    """Reloaded again and again before it was ready: one page, one kernel."""
    before = set(kernels())
    tab = open_tab()
    for pause in (50, 300, 800, 1500, 2200):
        tab.page.goto(f"{base}/voila/render/01_widgets.ipynb", wait_until="commit")
        tab.page.wait_for_timeout(pause)
    tab.open(f"{base}/voila/render/01_widgets.ipynb", READY)
    eventually(lambda: set(kernels()) - before == {kernel_of(tab)}, 20)
    tab.page.goto("about:blank")
    eventually(lambda: set(kernels()) == before)


def test_a_page_that_cannot_be_built_says_so(base: str, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(width=390)
    page = tab.open(f"{base}/voila/render/02_broken.ipynb", READY)
    assert "could not be built" in page.locator(".qv-failed").inner_text()
    assert "a detail of the code" not in page.content()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.assert_clean()


def test_without_scripts_a_page_says_what_it_needs(base: str, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(java_script_enabled=False)
    tab.page.goto(f"{base}/voila/render/01_widgets.ipynb")
    assert re.search("needs JavaScript", tab.page.locator("noscript").inner_text())


def test_plotly_js_comes_over_http_once(base: str, open_tab: Callable[..., Tab]) -> None:
    from qviz.ui.extension import plotly_js_name

    tab = open_tab()
    page = tab.open(f"{base}/voila/render/00_start.ipynb", READY)
    address = f"{base}/qviz/static/{plotly_js_name()}"
    load = """address => new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = address;
        script.onload = () => done(typeof Plotly.react);
        script.onerror = () => failed(new Error("not loaded"));
        document.head.append(script);
    })"""
    assert page.evaluate(load, address) == "function"
    sizes = "name => performance.getEntriesByName(name).map(entry => entry.transferSize)"
    assert 1_000_000 < page.evaluate(sizes, address)[-1] < 2_000_000
    page.goto(f"{base}/voila/render/00_start.ipynb")
    page.wait_for_selector(READY)
    page.evaluate(load, address)
    assert page.evaluate(sizes, address)[-1] == 0  # from the browser's own cache
    tab.assert_clean()


def test_a_stopped_server_is_said(
    serve_notebooks: Callable[[Path], Any], tmp_path: Path, open_tab: Callable[..., Tab]
) -> None:
    write_notebooks(tmp_path, {"01_widgets": WIDGETS})
    tab = open_tab()
    with serve_notebooks(tmp_path) as url:
        tab.open(f"{url}/voila/render/01_widgets.ipynb", READY)
    tab.page.get_by_text("The server does not answer").wait_for(timeout=20_000)


@pytest.mark.parametrize("named", [False, True])
def test_a_page_inside_another_site(
    serve_notebooks: Callable[..., Any], tmp_path: Path, open_tab: Callable[..., Tab], named: bool
) -> None:
    """As a link that opens a tab, or, where the site was named to the server, as the lesson."""
    write_notebooks(tmp_path / "pages", {"01_widgets": WIDGETS})
    outside = tmp_path / "outside"
    outside.mkdir()
    with (
        files_served(outside) as port,
        serve_notebooks(
            tmp_path / "pages", embed=[f"http://localhost:{port}"] if named else []
        ) as url,
    ):
        frame = f'<iframe src="{url}/voila/render/01_widgets.ipynb" width=900 height=600></iframe>'
        (outside / "index.html").write_text(frame)
        tab = open_tab()
        tab.page.goto(f"http://localhost:{port}/index.html")
        inside = tab.page.frame_locator("iframe")
        if named:
            inside.locator("[role=slider]").focus(timeout=30_000)
            tab.page.keyboard.press("ArrowRight")
            inside.get_by_text("3 bits").wait_for()
        else:
            with tab.context.expect_page() as opened:
                inside.get_by_role("link", name="Open it").click()
            opened.value.wait_for_selector(READY, timeout=30_000)
