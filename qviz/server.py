"""The lesson server behind `qviz serve`: Voilà with our template, our pages and nothing else.

What differs from plain Voilà, and why:
- only notebooks are served; no directory listing, no files, no template or theme by URL;
- a token by default, and addresses other than this machine's own are refused on the loopback
  interface (otherwise any web page could reach the server through a name that resolves to
  127.0.0.1);
- warm kernels are started one after the other and in the order of the lessons: sixteen Pythons
  importing torch at the same moment would make the first page the slowest;
- the pages may not load anything from elsewhere (Content-Security-Policy).
"""

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from jupyter_core.utils import run_sync
from jupyter_server.auth.login import LoginFormHandler
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from jupyter_server.utils import url_path_join
from jupyterlab_server.themes_handler import ThemesHandler
from markupsafe import Markup
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RequestHandler, authenticated
from traitlets.config import Config
from voila.app import Voila
from voila.static_file_handler import AllowListFileHandler, TemplateStaticFileHandler
from voila.tornado.contentshandler import VoilaContentsHandler
from voila.tornado.handler import TornadoVoilaHandler
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler
from voila.tornado.treehandler import TornadoVoilaTreeHandler
from voila.utils import ENV_VARIABLE
from voila.voila_kernel_manager import voila_kernel_manager_factory

from qviz.ui import extension

DEFAULT_PORT = 8866
START_PAGE = "00_start.ipynb"
# What the pages' Pythons are started with, unless the user's environment says otherwise. Threads of
# several kernels that wait for each other on two cores cost five times the processor time of one
# thread each; the allocator's default of many arenas doubles a kernel's memory.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
JUPYTER_FILES = Path(__file__).parent / "ui" / "jupyter"  # our template, found as Jupyter data

# Pages stay usable while a laptop sleeps; a closed tab says goodbye itself and waits for no timer.
IDLE_KERNEL_SECONDS = 900
CULL_EVERY_SECONDS = 60
# A taken warm kernel is replaced after this: by then the page that took it has been drawn.
REFILL_DELAY_SECONDS = 3.0
# Below this much free memory no further kernel is warmed; pages then start cold, and work.
KEEP_FREE_BYTES = 1 << 30

# The widget manager that Voilà injects, the standard widgets, and ours. Every other JupyterLab
# extension in the environment would only make pages slower.
LABEXTENSIONS = [
    "@voila-dashboards/widgets-manager8",
    "@jupyter-widgets/jupyterlab-manager",
    "anywidget",
]

# anywidget imports its modules from blob: addresses, and JupyterLab's code is written with eval.
CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:",
        "style-src 'self' 'unsafe-inline' blob: data:",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
    ]
)

Say = Callable[[str], None]


class ServeError(ValueError):
    """The server cannot start; the message says why and what to do."""


@dataclass(frozen=True)
class ServeOptions:
    """What `qviz serve` was asked for.

    `port=None` means 8866 or, where that is in use, the next free one; a port that is named is
    taken or refused. `pool` is the number of warm kernels for each page.
    """

    notebooks: Path
    port: int | None = None
    host: str = "127.0.0.1"
    browser: bool = True
    token: str | None = None
    pool: int = 1
    fill_cache: bool = True


def find_notebooks(directory: str | Path | None = None) -> Path:
    """The folder with the lessons: the one named, else the checkout's, else the package's own.

    Raises FileNotFoundError when it is missing or has no start page.
    """
    package = Path(__file__).parent
    if directory is not None:
        candidates = [Path(directory).expanduser()]
    else:
        candidates = [package.parent / "notebooks", package / "notebooks"]
    for folder in candidates:
        if (folder / START_PAGE).is_file():
            return folder.resolve()
    looked = " and ".join(str(folder) for folder in candidates)
    fix = (
        "name the folder that has it with --notebooks"
        if directory is not None
        else "name the folder with --notebooks DIR, or reinstall qviz"
    )
    raise FileNotFoundError(f"the start page {START_PAGE} was not found in {looked}; {fix}")


def lesson_pages(notebooks: Path) -> list[str]:
    """File names of the pages in the order in which they are taught."""
    return sorted(path.name for path in notebooks.glob("*.ipynb"))


def new_token() -> str:
    """`QVIZ_TOKEN` where it is set (a class needs a link that outlives a restart), else random."""
    return os.environ.get("QVIZ_TOKEN") or secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def bind(port: int | None, host: str, say: Say) -> socket.socket:
    """A socket that listens on `host`.

    Raises ServeError when the named port, or the address, cannot be had.
    """
    wanted = [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + 100)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in wanted:
        try:
            # Not tornado's bind_sockets, which leaves a socket open when it fails.
            listening = socket.create_server((host, candidate), family=family, backlog=128)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno in (errno.EACCES, errno.EPERM):
                raise ServeError(
                    f"not allowed to listen on port {candidate}; choose one above 1023"
                ) from error
            raise ServeError(
                f"cannot listen on {host}: {error.strerror or error}; "
                "--host takes an address of this machine, such as 127.0.0.1 or 0.0.0.0"
            ) from error
        if port is None and candidate != DEFAULT_PORT:
            say(f"Port {DEFAULT_PORT} is in use; using {candidate} instead.")
        listening.setblocking(False)
        return listening
    if port is None:
        raise ServeError(
            f"ports {DEFAULT_PORT} to {DEFAULT_PORT + 99} are all in use; name another with --port"
        )
    raise ServeError(
        f"port {port} is in use; stop what uses it, or choose another with --port, "
        "or leave --port away to get a free one"
    )


def voila_config(options: ServeOptions) -> Config:
    """Voilà's settings, each of them deliberate."""
    return Config(
        {
            "Voila": {
                "root_dir": str(options.notebooks),
                "ip": options.host,
                "token": options.token or "",
                "open_browser": False,  # done here, after the link has been printed
                "config_file_paths": [],  # a stray voila.json must not loosen what follows
                "log_level": logging.WARNING,
                "tornado_settings": tornado_settings(options.host),
            },
            "VoilaConfiguration": {
                "template": "qviz",
                "allow_template_override": "NO",
                "allow_theme_override": "NO",
                "strip_sources": True,
                "show_tracebacks": False,
                "file_allowlist": [],
                "file_denylist": [".*"],
                "preheat_kernel": True,
                "default_pool_size": 0,  # WarmKernels fills its pools itself
                "extension_allowlist": LABEXTENSIONS,
            },
            # Between server and kernels: files of this user, not TCP ports that others can read.
            "KernelManager": {"transport": "tcp" if sys.platform == "win32" else "ipc"},
            # Several megabytes of pictures are written for one move of a slider.
            "ZMQChannelsWebsocketConnection": {
                "iopub_data_rate_limit": 0,
                "iopub_msg_rate_limit": 0,
            },
        }
    )


def tornado_settings(host: str) -> dict[str, Any]:
    return {
        "headers": {
            "Content-Security-Policy": CONTENT_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
        },
        "xsrf_cookies": True,
        # Another site can point a name of its own at 127.0.0.1; its Host header gives it away.
        "allow_remote_access": not is_loopback(host),
        "local_hostnames": ["localhost"],
        # Between two processes of one machine there is nothing to save.
        "compress_response": not is_loopback(host),
        "log_function": log_failures,
        "websocket_max_message_size": 64 << 20,
        "ws_ping_interval": 30_000,
        # Jupyter looks for an answer one interval after a page has come, before it has asked for
        # one: with no more time than that, it closes every connection after 30 seconds.
        "ws_ping_timeout": 90_000,
    }


def log_failures(handler: RequestHandler) -> None:
    """Only what went wrong, and without the query, which may hold the token."""
    if handler.get_status() >= 500:
        logging.getLogger("qviz").error(
            "%d %s %s", handler.get_status(), handler.request.method, handler.request.path
        )


def free_memory() -> int | None:
    """Bytes that a new process could use, or None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


_PreheatedKernels: Any = voila_kernel_manager_factory(AsyncMappingKernelManager, True, 0)


class WarmKernels(_PreheatedKernels):  # type: ignore[misc]
    """Voilà's pool of kernels that have already run their notebook, filled with more care.

    Voilà warms every notebook that it finds, all at the same moment, and lets a visitor wait for a
    kernel that has not even been started. Here one kernel starts at a time, in the order of
    `pages`, memory permitting, and a visitor who comes before a page is warm gets a fresh kernel.
    """

    def __init__(self, *, pages: list[str], size: int, **kwargs: Any) -> None:
        self._pages: list[str] = []  # the parent fills pools while it is constructed: not yet
        self._size = size
        self._closing = False
        self._starting: asyncio.Task[Any] | None = None
        self._one_at_a_time = asyncio.Semaphore(1)
        super().__init__(**kwargs)
        self._pages = pages

    def warm_up(self, *pages: str) -> None:
        """Ask for warm kernels of these pages, or of all; they start one after the other."""
        for page in pages or self._pages:
            self.fill_if_needed(delay=0, notebook_name=page)

    def fill_if_needed(
        self,
        delay: float | None = None,
        notebook_name: str | None = None,
        extra_kernel_env_variables: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if notebook_name not in self._pages or self._closing:
            return
        pool = self._pools.setdefault(notebook_name, [])
        pool[:] = [entry for entry in pool if not failed(entry)]
        for _ in range(self._size - len(pool)):
            wait = REFILL_DELAY_SECONDS if delay is None else delay
            entry = asyncio.ensure_future(self._warm(notebook_name, wait))
            entry.add_done_callback(self._note)
            pool.append(entry)

    def _note(self, entry: "asyncio.Future[Any]") -> None:
        if failed(entry) and not entry.cancelled() and not self._closing:
            self.log.warning("A page stays cold: %s", entry.exception())

    async def _warm(self, page: str, delay: float) -> dict[str, Any]:
        await asyncio.sleep(delay)
        await self._one_at_a_time.acquire()
        self._starting = asyncio.current_task()
        try:
            self._check_room(page)
            content: dict[str, Any] = await self._initialize(
                page, None, path=os.path.dirname(page), env=self._environment()
            )
        except BaseException:
            self._one_at_a_time.release()
            raise
        # The next one starts when this one has run its cells, not when its process exists.
        content["task"].add_done_callback(lambda _: self._one_at_a_time.release())
        return content

    def _check_room(self, page: str) -> None:
        free = free_memory()
        if self._closing or (free is not None and free < KEEP_FREE_BYTES):
            raise RuntimeError(f"too little free memory to keep {page} ready")

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            ENV_VARIABLE.VOILA_BASE_URL: self.parent.base_url,
            ENV_VARIABLE.VOILA_SERVER_URL: self.parent.server_url,
            ENV_VARIABLE.VOILA_APP_PORT: str(self.parent.port),
            ENV_VARIABLE.VOILA_PREHEAT: "True",
        }

    def get_pool_size(self, notebook_name: str) -> int:
        """Kernels that a visitor can have now; those still waiting to be started do not count."""
        return sum(ready(entry) for entry in self._pools.get(notebook_name, []))

    async def get_rendered_notebook(self, notebook_name: str, **kwargs: Any) -> Any:
        pool = self._pools[notebook_name]
        pool.sort(key=lambda entry: not ready(entry))  # the parent takes the first
        return await super().get_rendered_notebook(notebook_name, **kwargs)

    async def shutdown_all(self, *args: Any, **kwargs: Any) -> None:
        self._closing = True
        for pool in self._pools.values():
            for entry in pool:
                # The one that is being started may finish: cut short, its process would stay.
                if not entry.done() and entry is not self._starting:
                    entry.cancel()
            pool[:] = [entry for entry in pool if entry.done() or entry is self._starting]
        # Kernels hold nothing worth an orderly end, and one interrupted while it starts prints a
        # traceback into the terminal.
        await super().shutdown_all(now=True)

    async def _async_shutdown_kernel(self, kernel_id: str, **kwargs: Any) -> None:
        try:
            await super()._async_shutdown_kernel(kernel_id, **kwargs)
        except HTTPError as error:
            # All are ended at once: one that was just ending by itself is gone as it should be.
            if not (self._closing and error.status_code == 404):
                raise


def ready(entry: "asyncio.Future[Any]") -> bool:
    return entry.done() and not entry.cancelled() and entry.exception() is None


def failed(entry: "asyncio.Future[Any]") -> bool:
    return entry.done() and not ready(entry)


class StartPageHandler(JupyterHandler):  # type: ignore[misc]
    """`/` leads to the gallery; the token, if the address had one, is by then in a cookie."""

    @authenticated  # type: ignore[untyped-decorator]
    def get(self) -> None:
        self.redirect(url_path_join(self.base_url, "voila", "render", START_PAGE))


class PageHandler(TornadoVoilaHandler):  # type: ignore[misc]
    """A notebook as a page; what goes wrong half-way is said on the page, in words."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self, path: str | None = None) -> None:
        if not path or not path.endswith(".ipynb"):
            raise HTTPError(404, "pages are notebooks")
        # The page sends this cookie back when it is closed, to end its kernel.
        _ = self.xsrf_token
        try:
            async for part in self.get_generator(path=path):
                self.write(part)
                self.flush()
        except HTTPError:
            raise
        except Exception as error:  # whatever it was, the visitor is told
            self.log.error("%s could not be shown", path, exc_info=error)
            if not self._headers_written:
                raise HTTPError(500, "the page could not be built") from error
            self.write(
                "<script>qvizPage.alarm('This page could not be built. The terminal in which the "
                "server runs says why.')</script>"
            )


class TemplateFileHandler(TemplateStaticFileHandler):  # type: ignore[misc]
    """Static files of page templates; the parent answers a malformed path with an exception."""

    def parse_url_path(self, path: str) -> str:
        parts = path.split("/")
        if len(parts) < 3 or parts[1] != "static" or ".." in parts:
            raise HTTPError(404)
        checked: str = super().parse_url_path(path)
        return checked


class SocketHandler(VoilaKernelWebsocketHandler):  # type: ignore[misc]
    """A page that is closed while its socket is being opened is no error."""

    async def get(self, kernel_id: str) -> None:
        try:
            await super().get(kernel_id=kernel_id)
        except AttributeError:
            # Closed in between, `connection` is None, and the parent uses it all the same.
            if getattr(self, "connection", self) is not None:
                raise
            raise HTTPError(404, "this page has been closed") from None


class TokenPageHandler(LoginFormHandler):  # type: ignore[misc]
    """Asks for the token in words, for a visitor who came without the link."""

    def _render(self, message: dict[str, str] | None = None) -> None:
        wrong = "<p class='qv-notice'>This is not the token.</p>" if message else ""
        target = escape(self.get_argument("next", default=self.base_url), quote=True)
        action = url_path_join(self.base_url, "login")
        page = self.settings["voila_jinja2_env"].from_string(
            "{% extends 'page.html' %}{% block title %}Token needed · qviz{% endblock %}"
            "{% block body %}{{ content }}{% endblock %}"
        )
        content = Markup(
            f"<h1>This server needs its token</h1>{wrong}"
            "<p>Open the link that the server printed in its terminal when it started, or enter "
            "the token, which is the part of that link after <code>token=</code>.</p>"
            f"<form class='qv-token' method='post' action='{action}?next={target}'>"
            f"{self.xsrf_form_html()}"
            "<label>Token <input type='password' name='password' autocomplete='off'></label> "
            "<button type='submit'>Enter</button></form>"
        )
        if not message:
            self.set_status(403)
        self.finish(page.render(content=content))


class LessonServer(Voila):  # type: ignore[misc]
    """Voilà, restricted to our pages. `options` and `say` are set before `initialize`."""

    options: ServeOptions
    say: Say
    on_ready: Callable[[], None] | None = None

    def initialize(self, argv: list[str] | None = None) -> None:
        # Jupyter's own way of finding data files: the template then works uninstalled as well.
        paths = [str(JUPYTER_FILES), os.environ.get("JUPYTER_PATH", "")]
        os.environ["JUPYTER_PATH"] = os.pathsep.join(path for path in paths if path)
        super().initialize(argv or [])

    def init_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = super().init_settings()
        self.kernel_manager = WarmKernels(
            parent=self,
            pages=lesson_pages(self.options.notebooks),
            size=max(self.options.pool, 0),
            connection_dir=self.connection_dir,
            kernel_spec_manager=self.kernel_spec_manager,
            allowed_message_types=settings["kernel_manager"].allowed_message_types,
            fill_delay=REFILL_DELAY_SECONDS,
            cull_idle_timeout=IDLE_KERNEL_SECONDS,
            cull_interval=CULL_EVERY_SECONDS,
            cull_connected=False,
        )
        self.identity_provider.login_handler_class = TokenPageHandler
        settings["kernel_manager"] = self.kernel_manager
        settings["jinja2_env"] = settings["voila_jinja2_env"]  # errors of any handler: our page
        settings["login_url"] = url_path_join(self.base_url, "login")
        return settings

    def init_handlers(self) -> list[Any]:
        unwanted = (
            TornadoVoilaTreeHandler,
            VoilaContentsHandler,
            AllowListFileHandler,
            ThemesHandler,
        )
        ours = {
            TornadoVoilaHandler: PageHandler,
            TemplateStaticFileHandler: TemplateFileHandler,
            VoilaKernelWebsocketHandler: SocketHandler,
        }
        kept = []
        for route in super().init_handlers():
            pattern, handler, *arguments = route
            if handler in unwanted or "/voila/query/" in pattern:
                continue
            kept.append((pattern, ours.get(handler, handler), *arguments))
        return [
            *kept,
            (self.base_url, StartPageHandler),
            *extension.handlers(self.base_url),
        ]

    @property
    def link(self) -> str:
        """The address to open, token included."""
        every = self.options.host in ("", "0.0.0.0", "::")
        host = socket.gethostname() if every else self.options.host
        if ":" in host:
            host = f"[{host}]"
        query = f"?token={self.options.token}" if self.options.token else ""
        return f"http://{host}:{self.port}{self.base_url}{query}"

    def start(self) -> None:
        self._listening = bind(self.options.port, self.options.host, self.say)
        self.port = self._listening.getsockname()[1]
        super().start()

    def listen(self) -> None:
        server = HTTPServer(self.app)
        server.add_socket(self._listening)
        self.ioloop = IOLoop.current()
        for name in ("SIGINT", "SIGHUP"):  # SIGTERM is Voilà's already, to the same end
            if hasattr(signal, name) and threading.current_thread() is threading.main_thread():
                signal.signal(getattr(signal, name), self._handle_signal_stop)
        try:
            if self.on_ready is not None:
                self.on_ready()
            self.ioloop.start()
        finally:
            self.stop()

    def stop(self) -> None:
        self._listening.close()  # nobody new comes in while kernels end
        run_sync(self.kernel_manager.shutdown_all)()
        shutil.rmtree(self.connection_dir, ignore_errors=True)


class CacheFiller:
    """Captures the models' calibration data once, in a process of its own; `done` is called when
    those are there which lessons open on.

    It needs transformers, which would add 150 MB to the server for as long as that runs.
    """

    CODE = (
        "from qviz.models.capture import warm_cache\n"
        "for line in warm_cache(): print(line, flush=True)"
    )

    def __init__(self, say: Say, done: Callable[[], None]) -> None:
        self._say = say
        self._done = done
        self._stopped = False
        self._complaints = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            stdout=subprocess.PIPE,
            stderr=self._complaints,  # a file: nobody empties a pipe while stdout is read
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for the server, which stops this
        )
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        ready = False
        for line in process.stdout:
            text = line.strip()
            if text and not self._stopped:
                self._say(f"{text[0].upper()}{text[1:]}.")
                if not ready:
                    ready = True
                    self._done()
        process.wait()
        if self._stopped:
            return
        if process.returncode != 0:
            self._complaints.seek(0)
            reason = (self._complaints.read().strip().splitlines() or ["no reason given"])[-1]
            self._say(
                f"The calibration data could not be prepared ({reason}). "
                "Lessons that need it will try again themselves."
            )
        if not ready:
            self._done()

    def stop(self) -> None:
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=10)


def can_fill_cache() -> bool:
    return find_spec("qviz.models.capture") is not None


def serve(options: ServeOptions, say: Say) -> None:
    """Serve the lessons until Ctrl-C. Raises ServeError when it cannot begin."""
    for name, value in KERNEL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    app = LessonServer(config=voila_config(options))
    app.options = options
    app.say = say
    app.initialize([])
    # Trust is about outputs saved in a notebook; ours are run anew for every page.
    app.log.addFilter(lambda record: "is not trusted" not in record.getMessage())
    filler: CacheFiller | None = None

    def on_ready() -> None:
        nonlocal filler
        say(f"{len(lesson_pages(options.notebooks))} pages from {options.notebooks}")
        say("Open this link in a browser:" if options.token else "No token is asked for. Open:")
        say(app.link)
        say("Stop with Ctrl-C.")
        if not options.token and not is_loopback(options.host):
            say("Take care: anyone who can reach this machine can now use its processor.")
        loop = app.ioloop

        def warm_up() -> None:
            loop.add_callback(app.kernel_manager.warm_up)

        if options.fill_cache and can_fill_cache():
            # Lessons wait for it: begun now, each would capture the same data by itself. The
            # gallery needs none, and is the page that is opened first.
            app.kernel_manager.warm_up(START_PAGE)
            say("Preparing calibration data: the model's activations on sample text.")
            filler = CacheFiller(say, warm_up)
            filler.start()
        else:
            warm_up()
        if options.browser:
            threading.Thread(target=open_browser, args=(app.link,), daemon=True).start()

    app.on_ready = on_ready
    try:
        app.start()
    finally:
        if filler is not None:
            filler.stop()
        LessonServer.clear_instance()
    say("Stopped; all kernels have ended.")


def open_browser(link: str) -> None:
    # No browser is no failure: the link has been printed.
    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(link, new=2)
