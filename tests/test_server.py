"""The lesson server: what it says, what it lets through, what it leaves behind."""

import asyncio
import contextlib
import gzip
import http.client
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from jupyter_server.base.websocket import WebSocketMixin
from tornado.ioloop import IOLoop
from tornado.websocket import websocket_connect

from qviz.server import (
    ServeError,
    ServeOptions,
    find_notebooks,
    lesson_pages,
    new_token,
    options,
    warm,
)
from qviz.server.options import bind
from qviz.server.settings import tornado_settings, voila_config
from qviz.ui.extension import plotly_js_file, plotly_js_name

TOKEN = "token-of-the-tests"
SCRIPT = """
import json, sys
from pathlib import Path
from qviz.server import ServeOptions, serve
options = json.loads(sys.argv[2])
serve(
    ServeOptions(notebooks=Path(sys.argv[1]), port=0, browser=False, fill_cache=False, **options),
    lambda text: print(text, flush=True),
)
"""


def write_notebook(path: Path, *cells: str) -> None:
    """Cells that start with # are prose, the others are code."""
    made = []
    for number, source in enumerate(cells):
        prose = source.startswith("#")
        cell = {"id": f"c{number}", "metadata": {}, "source": source}
        more = {"execution_count": None, "outputs": []}
        made.append(
            {**cell, "cell_type": "markdown"} if prose else {**cell, **more, "cell_type": "code"}
        )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document = {
        "cells": made,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    write_notebook(folder / "00_start.ipynb", "# Start here\n\n[First](01_first.ipynb)")
    write_notebook(
        folder / "01_first.ipynb",
        "# The first page",
        "import os\nhidden_name = 1  # a source that nobody should see\n"
        "print('warm', os.environ['VOILA_PREHEAT'])",
    )
    write_notebook(
        folder / "02_broken.ipynb", "# Broken", "raise ValueError('a detail of the code')"
    )
    (folder / "private.txt").write_text("nobody may read this")
    (folder / "picture.png").write_bytes(b"\x89PNG nobody may read this")
    return folder


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Running:
    process: subprocess.Popen[str]
    lines: list[str]
    port: int

    def ask(
        self, path: str, *, token: str | None = TOKEN, method: str = "GET", **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            if token is not None:
                named["Authorization"] = f"token {token}"
            connection.request(method, path, headers=named)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def kernels(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextlib.contextmanager
def serving(folder: Path, **options: object) -> Iterator[Running]:
    arguments = [sys.executable, "-c", SCRIPT, str(folder), json.dumps(options)]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    there = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if "Ctrl-C" in line:
                there.set()
        there.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert there.wait(60), "the server said nothing for a minute"
        links = [line for line in lines if line.startswith("http://")]
        assert links, "\n".join(lines)
        port = re.search(r":(\d+)/", links[0])
        assert port, links
        yield Running(process, lines, int(port[1]))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30)
        reader.join(5)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def running(notebooks: Path) -> Iterator[Running]:
    with serving(notebooks, token=TOKEN, pool=0) as server_at_work:
        yield server_at_work


# ---- before it starts -------------------------------------------------------------------------


def test_missing_notebooks_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"00_start\.ipynb was not found in .* --notebooks"):
        find_notebooks(tmp_path)


def test_the_lessons_of_the_checkout_are_found() -> None:
    assert find_notebooks() == Path(__file__).parents[1] / "notebooks"


def test_pages_come_in_teaching_order(notebooks: Path) -> None:
    pages = ["00_start.ipynb", "01_first.ipynb", "02_broken.ipynb"]
    assert lesson_pages(notebooks) == pages


@contextlib.contextmanager
def occupied() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_named_port_in_use_is_refused() -> None:
    with occupied() as port, pytest.raises(ServeError, match=f"port {port} is in use; .*--port"):
        bind(port, "127.0.0.1", lambda text: None)


def test_the_default_port_gives_way_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with occupied() as port:
        monkeypatch.setattr(options, "DEFAULT_PORT", port)
        with bind(None, "127.0.0.1", said.append) as listening:
            chosen = listening.getsockname()[1]
    assert chosen != port
    assert said == [f"Port {port} is in use; using {chosen} instead."]


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServeError, match=r"cannot listen on 192\.0\.2\.1"):
        bind(0, "192.0.2.1", lambda text: None)


def test_settings_are_the_strict_ones(notebooks: Path) -> None:
    config = voila_config(ServeOptions(notebooks=notebooks, token="t"))
    voila = config.VoilaConfiguration
    assert voila.template == "qviz"
    assert voila.allow_template_override == voila.allow_theme_override == "NO"
    assert voila.strip_sources is True
    assert voila.show_tracebacks is False
    assert voila.file_allowlist == []
    assert config.Voila.token == "t"
    assert config.Voila.ip == "127.0.0.1"
    assert config.Voila.config_file_paths == []


def test_only_the_loopback_interface_checks_the_host_name() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        assert tornado_settings(host)["allow_remote_access"] is False
    for host in ("0.0.0.0", "192.168.0.7", "lab.example"):
        assert tornado_settings(host)["allow_remote_access"] is True


@pytest.mark.parametrize(
    "origin", ["lms.example", "https://lms.example/", "https://lms.example/a", "ftp://lms.example",
               "https://", "https://a b", "*", "https://lms.example; script-src *"],
)  # fmt: skip
def test_what_may_embed_pages_is_the_origin_of_a_site(notebooks: Path, origin: str) -> None:
    with pytest.raises(ServeError, match=r"give it as https://lms\.example"):
        ServeOptions(notebooks=notebooks, embed=(origin,))


def test_sites_that_may_embed_pages_are_told_to_the_browser(notebooks: Path) -> None:
    plain, embedded = (
        voila_config(ServeOptions(notebooks=notebooks, embed=embed))
        for embed in ((), ("https://lms.example", "http://localhost:90"))
    )
    policies = [
        config.Voila.tornado_settings["headers"]["Content-Security-Policy"]
        for config in (plain, embedded)
    ]
    assert policies[0].endswith("; frame-ancestors 'self'")
    assert policies[1].endswith("; frame-ancestors 'self' https://lms.example http://localhost:90")
    assert plain.IdentityProvider.cookie_options == {}
    assert embedded.IdentityProvider.cookie_options == {"samesite": "None", "secure": True}


def test_inside_a_strange_site_there_is_a_link_and_no_kernel(running: Running) -> None:
    for site, page in (("cross-site", "in a tab of its own"), ("same-origin", "The first page")):
        answer = running.ask(
            "/voila/render/01_first.ipynb?a=%22%3Cb%3E",
            Sec_Fetch_Dest="iframe", Sec_Fetch_Site=site,
        )  # fmt: skip
        assert answer.status == 200 and page in answer.text
        own = "frame-ancestors 'self'" in answer.headers["Content-Security-Policy"]
        assert own is (site == "same-origin")
        assert ("jupyter-config-data" in answer.text) is own  # where a kernel is named
        assert '"<b>' not in answer.text


def test_a_page_is_asked_for_a_sign_of_life_before_it_is_cut_off() -> None:
    """Jupyter's own rule, one interval after a page has come, whose connection lives on."""
    settings = tornado_settings("127.0.0.1")

    class Connection(WebSocketMixin):  # type: ignore[misc]
        log = logging.getLogger("test")
        ws_connection = SimpleNamespace(client_terminated=False)

        def __init__(self) -> None:
            self.settings = settings
            self.done: list[str] = []

        def ping(self, data: bytes) -> None:
            self.done.append("asked")

        def close(self) -> None:
            self.done.append("cut off")

    async def silent_for(milliseconds: int, asked: int) -> list[str]:
        page, now = Connection(), IOLoop.current().time()
        page.last_pong = now - milliseconds / 1000 - 0.01
        page.last_ping = now - asked / 1000
        page.send_ping()
        return page.done

    interval, patience = settings["ws_ping_interval"], settings["ws_ping_timeout"]
    with ThreadPoolExecutor(1) as other:  # a browser of other tests has a loop in this thread
        assert other.submit(asyncio.run, silent_for(interval, interval)).result() == ["asked"]
        assert other.submit(asyncio.run, silent_for(patience, interval)).result() == ["cut off"]


def test_tokens_are_long_and_new_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QVIZ_TOKEN", raising=False)
    assert len(new_token()) >= 32
    assert new_token() != new_token()
    monkeypatch.setenv("QVIZ_TOKEN", "named")
    assert new_token() == "named"


# ---- who may come in --------------------------------------------------------------------------


def test_the_link_stands_on_its_own_line(running: Running) -> None:
    assert f"http://127.0.0.1:{running.port}/?token={TOKEN}" in running.lines


@pytest.mark.parametrize(
    "path", ["/", "/voila/render/00_start.ipynb", f"/qviz/static/{plotly_js_name()}"]
)
@pytest.mark.parametrize("token", [None, "wrong"])
def test_without_the_token_there_is_only_the_question_for_it(
    running: Running, path: str, token: str | None
) -> None:
    answer = running.ask(path, token=token)
    assert answer.status == 302
    assert answer.headers["Location"].startswith("/login?next=")
    question = running.ask(answer.headers["Location"], token=token)
    assert question.status == 403
    assert "This server needs its token" in question.text
    assert not re.search(r"""(src|href)=['"]?https?:""", question.text)


def test_the_link_leads_to_the_gallery_and_a_cookie_keeps_the_door_open(running: Running) -> None:
    first = running.ask(f"/?token={TOKEN}", token=None)
    assert first.status == 302
    assert first.headers["Location"] == "/voila/render/00_start.ipynb"  # the token is gone from it
    cookie = first.headers["Set-Cookie"].split(";")[0]
    page = running.ask(first.headers["Location"], token=None, Cookie=cookie)
    assert page.status == 200
    assert "<title>Start here · qviz</title>" in page.text
    assert 'href="01_first.ipynb"' in page.text


def test_a_name_of_another_site_is_refused(running: Running) -> None:
    """Else any web page could reach the server through a name that resolves to 127.0.0.1."""
    assert running.ask("/", Host="evil.example").status == 403
    assert running.ask("/", Host=f"localhost:{running.port}").status == 302


def test_without_a_token_pages_open_at_once(notebooks: Path) -> None:
    with serving(notebooks, pool=0) as open_server:
        assert open_server.ask("/", token=None).headers["Location"].endswith("/00_start.ipynb")
        assert open_server.ask("/voila/render/00_start.ipynb", token=None).status == 200
        assert open_server.ask("/", token=None, Host="evil.example").status == 403


# ---- what can be read -------------------------------------------------------------------------


def test_pages_show_results_and_not_their_source(running: Running) -> None:
    page = running.ask("/voila/render/01_first.ipynb")
    assert page.status == 200
    assert "warm False" in page.text
    assert "hidden_name" not in page.text
    assert 'lang="en"' in page.text
    assert 'name="viewport"' in page.text
    assert "<noscript>" in page.text


def test_an_error_is_said_in_words(running: Running) -> None:
    page = running.ask("/voila/render/02_broken.ipynb")
    assert "This page could not be built" in page.text
    assert "a detail of the code" not in page.text
    assert "Traceback" not in page.text
    assert "show_tracebacks" not in page.text


@pytest.mark.parametrize(
    "path",
    [
        "/private.txt",
        "/voila/files/private.txt",
        "/voila/files/picture.png",
        "/voila/files/01_first.ipynb",
        "/voila/render/private.txt",
        "/voila/render/",
        "/voila/tree",
        "/voila/tree/",
        "/voila/api/contents/",
        "/voila/api/contents/01_first.ipynb",
        "/api/contents",
        "/api/kernels",
        "/files/private.txt",
        "/voila/render/nothing_here.ipynb",
        "/voila/render/../../../../../../etc/passwd",
        "/voila/render/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/voila/render/%2e%2e/%2e%2e/secret.ipynb",
        "/voila/static/../../../../../../../../../../etc/passwd",
        "/voila/static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/voila/templates/qviz/static/../../../../../../../../../../etc/passwd",
        "/voila/templates/qviz/static/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/voila/labextensions/../../../../../../../../../../etc/passwd",
        "/qviz/static/plotly-0.0.1.min.js",
        "/qviz/static/../extension.py",
    ],
)
def test_nothing_else_is_readable(running: Running, path: str) -> None:
    answer = running.ask(path)
    assert answer.status in (400, 403, 404, 405), answer.text[:300]
    assert "nobody may read" not in answer.text
    assert "root:" not in answer.text


def test_a_missing_page_is_said_in_words(running: Running) -> None:
    page = running.ask("/voila/render/nothing_here.ipynb")
    assert "There is no page at this address" in page.text
    assert "https://" not in page.text


@pytest.mark.parametrize("query", ["template=lab", "template=reveal", "theme=dark", "theme=../x"])
def test_template_and_theme_cannot_be_chosen_by_address(running: Running, query: str) -> None:
    page = running.ask(f"/voila/render/00_start.ipynb?{query}")
    assert page.status == 200
    assert 'id="qviz"' in page.text
    assert "cdn" not in page.text
    assert 'data-jp-theme-name="JupyterLab Light"' in page.text


def test_pages_refer_to_this_server_alone_and_the_browser_holds_them_to_it(
    running: Running,
) -> None:
    page = running.ask("/voila/render/01_first.ipynb")
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(addresses) > 4
    assert all(address.startswith(("/", "data:", "#")) for address in addresses)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"


# ---- plotly.js --------------------------------------------------------------------------------


def test_plotly_js_is_compressed_and_kept_by_the_browser(running: Running) -> None:
    path = f"/qviz/static/{plotly_js_name()}"
    packed = running.ask(path, Accept_Encoding="gzip, br")
    assert packed.status == 200
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert packed.headers["Content-Type"].startswith("text/javascript")
    assert len(packed.body) < 2_000_000
    assert gzip.decompress(packed.body) == plotly_js_file().read_bytes()
    plain = running.ask(path)
    assert "Content-Encoding" not in plain.headers
    assert plain.body == plotly_js_file().read_bytes()
    assert running.ask(path, method="HEAD").body == b""


# ---- kernels ----------------------------------------------------------------------------------


def page_kernel(page: Answer) -> str:
    config = re.search(r'<script id="jupyter-config-data"[^>]*>(.*?)</script>', page.text, re.S)
    assert config
    return str(json.loads(config[1])["kernelId"])


def test_a_closed_page_ends_its_kernel_but_no_other_site_can(running: Running) -> None:
    first = running.ask(f"/voila/render/01_first.ipynb?token={TOKEN}", token=None)
    cookies = "; ".join(value.split(";")[0] for value in first.headers.get_all("Set-Cookie") or [])
    kernel = page_kernel(first)
    goodbye = f"/voila/api/shutdown/{kernel}"
    assert running.ask(f"/api/kernels/{kernel}").status == 200
    # The cookie alone is what a form on another site would send along.
    assert running.ask(goodbye, token=None, method="POST", Cookie=cookies).status == 403
    assert running.ask(f"/api/kernels/{kernel}").status == 200
    xsrf = re.search(r"_xsrf=([^;]+)", cookies)
    assert xsrf
    said = running.ask(goodbye, token=None, method="POST", Cookie=cookies, X_XSRFToken=xsrf[1])
    assert said.status == 204
    assert running.ask(f"/api/kernels/{kernel}").status == 404


def test_an_open_page_says_nothing_in_the_terminal(running: Running) -> None:
    """Jupyter's milliseconds, read as seconds by tornado, put a warning into every user's sight."""
    page = running.ask(f"/voila/render/01_first.ipynb?token={TOKEN}", token=None)
    place = f"/api/kernels/{page_kernel(page)}/channels?token={TOKEN}&session_id=a-page"
    address = f"ws://127.0.0.1:{running.port}{place}"
    said = len(running.lines)

    async def stay_a_moment() -> None:
        socket = await websocket_connect(address)
        await asyncio.sleep(0.5)
        assert socket.close_code is None
        socket.close()

    asyncio.run(stay_a_moment())
    assert running.lines[said:] == []


def wait_for(condition: object, seconds: float = 40) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_warm_kernels_serve_refill_and_all_end_with_the_server(notebooks: Path) -> None:
    with serving(notebooks, token=TOKEN, pool=1) as warm:
        wait_for(lambda: len(warm.kernels()) == 3)
        # A warm kernel has run its notebook before anybody asked for the page.
        wait_for(lambda: "warm True" in warm.ask("/voila/render/01_first.ipynb").text)
        wait_for(lambda: len(warm.kernels()) >= 4)  # the one in use, and its successor
        kernels = warm.kernels()
        warm.process.send_signal(signal.SIGINT)
        assert warm.process.wait(30) == 0
        _, alive = psutil.wait_procs(kernels, timeout=5)
        assert alive == []
    assert "Stopped; all kernels have ended." in warm.lines
    assert not any("Traceback" in line for line in warm.lines)


def test_stopping_while_kernels_start_leaves_none(notebooks: Path) -> None:
    with serving(notebooks, token=TOKEN, pool=2) as young:
        wait_for(lambda: young.kernels())
        kernels = young.kernels()
        young.process.send_signal(signal.SIGTERM)
        assert young.process.wait(30) == 0
        kernels += [p for p in psutil.process_iter() if p.ppid() == young.process.pid]
        _, alive = psutil.wait_procs(kernels, timeout=5)
        assert alive == []
    assert not any("Traceback" in line for line in young.lines), "\n".join(young.lines)


def test_too_little_memory_means_cold_kernels_not_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warm, "available_memory", lambda: warm.KEEP_FREE_BYTES - 1)
    kernels = warm.WarmKernels.__new__(warm.WarmKernels)
    kernels._closing = False
    with pytest.raises(RuntimeError, match="too little free memory"):
        kernels._check_room("01_first.ipynb")
    monkeypatch.setattr(warm, "available_memory", lambda: None)
    kernels._check_room("01_first.ipynb")
