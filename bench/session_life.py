"""What a lesson lives through: a cut connection, a night's sleep, a killed kernel, a new server.

    python bench/session_life.py              eight minutes, five of them asleep
    python bench/session_life.py --asleep 30

Of each: what the page says meanwhile and afterwards, after how long it answers again, whether what
the learner had chosen is still there, and how many kernels run for how many open pages.
"""

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import sync_playwright
from record import save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from driver import (
    CHROMIUM_ARGUMENTS,
    CuttableProxy,
    Tab,
    cuttable_proxy,
    eventually,
    kernels,
    require_chromium,
    running,
)

NOTEBOOK = "voila/render/01_bit_width.ipynb"
CHOSEN = "bits=2"  # by the Home key; the page opens with what the End key chooses
READY = "body[data-qviz-ready] .qv-page"
NOTICE = ".qv-notice"


@contextmanager
def server(port: int) -> Iterator[None]:
    command = [sys.executable, "-m", "qviz", "serve", "--no-browser", "--no-token", "--pool", "0"]
    with running([*command, "--port", str(port)], r"(http://127\.0\.0\.1:\d+)"):
        yield


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Life:
    """A tab on a lesson, behind a network that can be cut, and the rows of what happened to it."""

    def __init__(self, browser: Any, proxy: CuttableProxy) -> None:
        self.browser, self.proxy = browser, proxy
        self.rows: list[dict[str, Any]] = []
        self.tab = self.opened()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def opened(self) -> Tab:
        tab = Tab(self.browser)
        tab.open(f"{self.base}/{NOTEBOOK}", READY, 120)
        self.choose(tab, "Home", CHOSEN)
        return tab

    @staticmethod
    def choose(tab: Tab, key: str, address: str) -> None:
        """Move the slider that leads, and wait until Python has confirmed it."""
        tab.page.locator(".qv-lead input").focus()
        tab.page.keyboard.press(key)
        tab.until("text => document.body.dataset.qvAddress === text", address, 60)

    def said(self) -> str:
        """The alarm's words without its button."""
        words = f"document.querySelector('{NOTICE}')?.firstChild.textContent.trim()"
        return str(self.tab.page.evaluate(words) or "nothing")

    def answers(self) -> bool:
        """Whether Python still hears the page: one key there, and one back."""
        self.choose(self.tab, "End", "")
        self.choose(self.tab, "Home", CHOSEN)
        return True

    def row(self, what: str, said: str, after: float | None, then: str) -> None:
        kept = self.tab.page.evaluate("location.hash") == f"#{CHOSEN}"
        slider = self.tab.page.locator(".qv-lead input").get_attribute("aria-valuetext") or ""
        pages = len(self.browser.contexts)
        start = time.monotonic()
        eventually(lambda: len(kernels()) <= pages, 120)
        ended = time.monotonic() - start
        self.rows.append(
            {
                "what happened": what,
                "the page says": said,
                "answers again after, s": "" if after is None else round(after, 1),
                "then it says": then,
                "what was chosen": f"kept ({slider})" if kept and self.answers() else "lost",
                "kernels": len(kernels()),
                "open pages": pages,
                "no kernel too many after, s": round(ended, 1),
            }
        )
        print(self.rows[-1], flush=True)

    # ------------------------------------------------------------ what happens

    def cut(self, seconds: float) -> None:
        self.proxy.cut()
        self.tab.page.locator(NOTICE).first.wait_for(timeout=30_000)
        said = self.said()
        time.sleep(seconds)
        self.proxy.restore()
        self.back(f"connection cut for {seconds:.0f} s", said)

    def asleep(self, seconds: float) -> None:
        """The browser stops, as on a closed laptop, and the network is gone meanwhile."""
        browsers = [p for p in psutil.Process().children(recursive=True) if "chrom" in p.name()]
        for process in browsers:
            process.send_signal(signal.SIGSTOP)
        self.proxy.cut()
        time.sleep(seconds)
        self.proxy.restore()
        for process in browsers:
            process.send_signal(signal.SIGCONT)
        self.back(f"asleep for {seconds:.0f} s", "")

    def back(self, what: str, said: str) -> None:
        """The learner goes on: a key, until Python has answered it."""
        start, seen = time.monotonic(), [said] if said else []
        self.tab.page.locator(".qv-lead input").focus()
        self.tab.page.keyboard.press("End")

        def now(done: str) -> bool:
            if (words := self.said()) not in [*seen, "nothing"]:
                seen.append(words)
            return bool(self.tab.page.evaluate(done))

        eventually(lambda: now("document.body.dataset.qvAddress === ''"), 90)
        after = time.monotonic() - start
        eventually(lambda: now(f"!document.querySelector('{NOTICE}')"), 60)
        self.choose(self.tab, "Home", CHOSEN)
        self.row(what, " ".join(seen[:1]), after, " ".join(seen[1:]))

    def kernel_killed(self) -> None:
        for process in kernels().values():
            process.kill()
        self.started_again("kernel killed")

    def started_again(self, what: str) -> None:
        ended = self.tab.page.get_by_text("The Python process behind this page has ended")
        ended.wait_for(timeout=60_000)
        said, start = self.said(), time.monotonic()
        self.tab.page.get_by_role("button", name="Start again").click()
        self.come_back()
        self.row(what, said, time.monotonic() - start, "Start again pressed: " + self.said())

    def come_back(self) -> None:
        self.tab.page.wait_for_selector(READY, timeout=120_000)
        self.tab.until("text => document.body.dataset.qvAddress === text", CHOSEN, 60)

    def reloaded(self, times: int) -> None:
        for pause in range(times):
            self.tab.page.reload(wait_until="commit")
            self.tab.page.wait_for_timeout(150 + 300 * pause)
        start = time.monotonic()
        self.come_back()
        self.row(f"{times} quick reloads", "", time.monotonic() - start, self.said())

    def gone_and_back(self) -> None:
        self.tab.page.goto(f"{self.base}/voila/render/00_start.ipynb")
        start = time.monotonic()
        self.tab.page.go_back()
        self.come_back()
        self.row("to the gallery, and Back", "", time.monotonic() - start, self.said())

    def beside_another(self) -> None:
        other = self.opened()
        self.choose(other, "End", "")
        self.row("a second tab, moved elsewhere", "", None, self.said())
        other.page.close(run_before_unload=True)  # as a learner closes it, with the page's goodbye
        other.close()
        eventually(lambda: len(kernels()) == 1, 120)
        self.row("the second tab closed", "", None, self.said())


def live(browser: Any, asleep: float) -> list[dict[str, Any]]:
    port = free_port()
    with cuttable_proxy(port) as proxy:
        with server(port):
            life = Life(browser, proxy)
            events: list[Callable[[], None]] = [
                lambda: life.cut(12), lambda: life.asleep(asleep), life.kernel_killed,
                lambda: life.reloaded(6), life.gone_and_back, life.beside_another,
            ]  # fmt: skip
            for event in events:
                event()
        life.tab.page.get_by_text("The server does not answer").wait_for(timeout=60_000)
        stopped = life.said()
        with server(port):
            life.started_again(f"server stopped (“{stopped}”) and started anew")
            life.tab.close()
    return life.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asleep", type=float, default=300, metavar="S", help="seconds of sleep")
    options = parser.parse_args()
    os.environ["QVIZ_REQUIRE_BROWSER"] = "1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=require_chromium(), headless=True, args=CHROMIUM_ARGUMENTS
        )
        rows = live(browser, options.asleep)
        browser.close()
    notes = (
        "What was chosen was 2 bits on a page that opens with 8. “Kept” is said where "
        "the address and the slider still hold it and Python answers the next two moves."
    )
    save("session_life", "A lesson's life in the field", rows, notes)


if __name__ == "__main__":
    main()
