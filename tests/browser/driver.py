"""A real server and a real Chromium for the browser tests.

`running` starts a server as a process of its own; `Tab` is a page that remembers what went wrong in
it: errors of the console, exceptions, requests that left the machine; `cuttable_proxy` is a network
that fails.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from qviz.ui.widgets import from_address

ROOT = Path(__file__).parents[2]
CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SERVER = """
import json, sys
from pathlib import Path
from qviz.server import ServeOptions, serve
serve(
    ServeOptions(
        notebooks=Path(sys.argv[1]), port=0, host="127.0.0.1", browser=False, token=None, pool=0,
        fill_cache=False, **json.loads(sys.argv[2]),
    ),
    lambda text: print(text, flush=True),
)
"""


def find_chromium() -> str | None:
    named = os.environ.get("QVIZ_CHROMIUM")
    candidates = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def require_chromium() -> str:
    """Where Chromium is. Without it the tests are skipped, unless QVIZ_REQUIRE_BROWSER=1."""
    path = find_chromium()
    if path is None:
        why = "no Chromium found: install it, or name its program in QVIZ_CHROMIUM"
        if os.environ.get("QVIZ_REQUIRE_BROWSER") == "1":
            pytest.fail(why)
        pytest.skip(why)
    return path


def notebook(*cells: str) -> dict[str, Any]:
    """A notebook of code cells."""
    return {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{i}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source,
            }
            for i, source in enumerate(cells)
        ],
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "title": "Test page",
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def write_notebooks(folder: Path, pages: dict[str, str]) -> None:
    """One notebook of one cell for each name; the start page is added where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in {"00_start": "print('start')", **pages}.items():
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook(source)), encoding="utf-8")


@contextmanager
def running(arguments: list[str], ready: str, seconds: float = 90, **options: Any) -> Iterator[Any]:
    """A child process and the first line of its output that matches `ready`; ended afterwards."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, **options
    )
    assert process.stdout is not None
    lines: list[str] = []
    found: list[re.Match[str]] = []
    there = threading.Event()

    def read(stream: Any) -> None:
        for line in stream:  # to the end: a full pipe would stop the server
            lines.append(line)
            match = re.search(ready, line)
            if match and not found:
                found.append(match)
                there.set()
        there.set()

    reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        there.wait(seconds)
        if not found:
            raise RuntimeError(f"the server did not start:\n{''.join(lines[-40:])}")
        yield found[0], lines
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        reader.join(5)
        process.stdout.close()


class Tab:
    """A page with what tests want to know of it."""

    def __init__(self, browser: Any, width: int = 1280, height: int = 800, **context: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.left_the_machine: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        self.page.on("request", self._on_request)

    def _on_console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _on_request(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self.left_the_machine.append(request.url)

    def open(self, url: str, ready: str = "[data-qv-painted]", seconds: float = 60) -> Any:
        """Goes there and waits until `ready` is on the page."""
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_selector(ready, timeout=seconds * 1000, state="attached")
        return self.page

    def until(self, expression: str, argument: Any = None, seconds: float = 10) -> Any:
        """Waits until a JavaScript expression is true."""
        return self.page.wait_for_function(expression, arg=argument, timeout=seconds * 1000)

    def assert_clean(self) -> None:
        assert self.errors == []
        assert self.left_the_machine == []

    def close(self) -> None:
        self.context.close()


def eventually(check: Callable[[], Any], seconds: float = 10) -> Any:
    """What `check` returns once it is true; its last value is in the failure otherwise."""
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s; last was {value!r}"
        time.sleep(0.05)


def follow(tab: Tab, link: str, seconds: float = 60) -> None:
    """Set the page's address, until the kernel has confirmed the state in it.

    More than once: an address that is set to what it still says, a moment before the page writes
    where it is by now, is no change.
    """

    def there() -> bool:
        tab.page.evaluate("link => { location.hash = link; }", link)
        for _ in range(50):
            said = str(tab.page.evaluate("document.body.dataset.qvAddress ?? ''"))
            if from_address(said) == from_address(link):
                return True
            tab.page.wait_for_timeout(100)
        return False

    eventually(there, seconds)


def canvas_pixels(tab: Tab, selector: str, which: int = 0) -> np.ndarray:
    """RGB of one of the canvases that match, uint8 [height, width, 3]."""
    width, height, data = tab.page.evaluate(
        """([selector, which]) => {
            const c = document.querySelectorAll(selector)[which];
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let s = '';
            for (let i = 0; i < d.length; i += 4)
                s += String.fromCharCode(d[i], d[i + 1], d[i + 2]);
            return [c.width, c.height, btoa(s)];
        }""",
        [selector, which],
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 3)


def kernel_of(tab: Tab) -> str:
    """The id of the kernel behind a page."""
    text = tab.page.locator("#jupyter-config-data").text_content()
    return str(json.loads(text)["kernelId"])


def kernels() -> dict[str, psutil.Process]:
    """The kernels that run here now, by their ids."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            match = re.search(r"kernel-([0-9a-f-]{36})\.json", line)
            if match and process.status() != psutil.STATUS_ZOMBIE:
                found[match[1]] = process
    return found


class CuttableProxy:
    """Passes bytes on between a port of its own and another one, until it is cut; or only what is
    no WebSocket, as a proxy does that does not know of them."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.open: list[socket.socket] = []
        self.is_cut = False
        self.is_plain = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listening.accept()
            except OSError:  # closed
                return
            if self.is_cut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except ConnectionRefusedError:  # the server behind it has been stopped
                near.close()
                continue
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # cut, or closed by either side
            while data := source.recv(1 << 16):
                if self.is_plain and b"upgrade: websocket" in data.lower():
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.is_cut = True
        for end in self.open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.open = []

    def refuse_sockets(self) -> None:
        """Those that are open end, and no other is let through."""
        self.cut()
        self.is_cut, self.is_plain = False, True

    def restore(self) -> None:
        self.is_cut = self.is_plain = False


@contextmanager
def cuttable_proxy(target: int) -> Iterator[CuttableProxy]:
    proxy = CuttableProxy(target)
    try:
        yield proxy
    finally:
        proxy.cut()
        proxy.listening.shutdown(socket.SHUT_RDWR)
        proxy.listening.close()


@contextmanager
def jupyterlab(folder: Path, home: Path, theme: str = "JupyterLab Light") -> Iterator[str]:
    """Base URL of a JupyterLab over a folder of notebooks, with settings of its own in `home`."""
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    arguments = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    arguments += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--IdentityProvider.token="]
    arguments += [f"--ServerApp.root_dir={folder}"]
    places = {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
    }
    ready = r"(http://127\.0\.0\.1:\d+)/lab"
    with running(arguments, ready, env={**os.environ, **places}) as (match, _):
        port = int(match.group(1).rsplit(":", 1)[1])

        def listens() -> bool:  # it says its address a moment before
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0

        eventually(listens, 30)
        yield match.group(1)


def run_first_cell(tab: Tab, url: str) -> None:
    """Open a notebook in JupyterLab and run its first cell as a reader would."""
    tab.page.goto(f"{url}?reset")  # not beside what an earlier test had open
    tab.page.wait_for_selector(".jp-Notebook .jp-InputPrompt", timeout=60_000)
    tab.until("document.body.innerText.includes('| Idle')", seconds=60)  # the kernel is there
    tab.page.click(".jp-Notebook .jp-Cell .jp-InputArea-editor")
    tab.page.keyboard.press("Control+Enter")
