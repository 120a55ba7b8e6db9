"""The server itself: Voilà, restricted to our pages, from its start to its end."""

import contextlib
import os
import shutil
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jupyter_core.utils import run_sync
from jupyter_server.utils import url_path_join
from jupyterlab_server.themes_handler import ThemesHandler
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from voila.app import Voila
from voila.static_file_handler import AllowListFileHandler, TemplateStaticFileHandler
from voila.tornado.contentshandler import VoilaContentsHandler
from voila.tornado.handler import TornadoVoilaHandler
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler
from voila.tornado.treehandler import TornadoVoilaTreeHandler

from qviz.server.cache_filler import CacheFiller
from qviz.server.handlers import (
    PageHandler,
    SocketHandler,
    StartPageHandler,
    TemplateFileHandler,
    TokenPageHandler,
)
from qviz.server.options import START_PAGE, Say, ServeOptions, bind, is_loopback, lesson_pages
from qviz.server.settings import voila_config
from qviz.server.warm import REFILL_DELAY_SECONDS, WarmKernels
from qviz.server.words import Started, welcome
from qviz.ui import extension

# Settings for the pages' Python processes, unless the user's environment sets them. Threads of
# several kernels that wait for each other on two cores cost five times the processor time of one
# thread each; the allocator's default of many arenas doubles a kernel's memory.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
JUPYTER_FILES = Path(__file__).parents[1] / "ui" / "jupyter"  # our template, found as Jupyter data

# Pages stay usable while a laptop sleeps. A closed tab ends its kernel itself, without a timer.
IDLE_KERNEL_SECONDS = 900
CULL_EVERY_SECONDS = 60


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
        unwanted = {
            TornadoVoilaTreeHandler,
            VoilaContentsHandler,
            AllowListFileHandler,
            ThemesHandler,
        }
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

    @property
    def started(self) -> Started:
        """What the terminal says about the server."""
        options = self.options
        return Started(
            pages=len(lesson_pages(options.notebooks)),
            notebooks=options.notebooks,
            link=self.link,
            token=bool(options.token),
            loopback=is_loopback(options.host),
            capturing=options.fill_cache,
            embed=options.embed,
        )

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
        self._listening.close()  # no new visitors while kernels end
        run_sync(self.kernel_manager.shutdown_all)()
        shutil.rmtree(self.connection_dir, ignore_errors=True)


def kernel_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the pages' Python processes: ours where the user's sets nothing."""
    return {**KERNEL_ENVIRONMENT, **given}


def serve(options: ServeOptions, say: Say) -> None:
    """Serve the lessons until Ctrl-C. Raises ServeError when it cannot start."""
    os.environ.update(kernel_environment(os.environ))
    app = LessonServer(config=voila_config(options))
    app.options = options
    app.say = say
    app.initialize([])
    # Trust is about outputs saved in a notebook; ours are run anew for every page.
    app.log.addFilter(lambda record: "is not trusted" not in record.getMessage())
    filler: CacheFiller | None = None

    def on_ready() -> None:
        nonlocal filler
        for line in welcome(app.started):
            say(line)
        loop = app.ioloop

        def warm_up() -> None:
            loop.add_callback(app.kernel_manager.warm_up)

        if options.fill_cache:
            # Lessons wait for it: started now, each would capture the same data by itself. The
            # gallery needs none, and is the page that is opened first.
            app.kernel_manager.warm_up(START_PAGE)
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
    # A missing browser is not an error: the link has been printed.
    with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(link, new=2)
