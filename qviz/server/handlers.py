"""The request handlers: Voilà's own, made more careful, and two pages of ours."""

from html import escape
from typing import Any
from urllib.parse import urlsplit

from jupyter_server.auth.login import LoginFormHandler
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import url_path_join
from markupsafe import Markup
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, authenticated
from voila.static_file_handler import TemplateStaticFileHandler
from voila.tornado.handler import TornadoVoilaHandler
from voila.tornado.kernel_websocket_handler import VoilaKernelWebsocketHandler

from qviz.server.options import START_PAGE
from qviz.server.warm import given

# A page connects as soon as its scripts have come, which a slow network delays.
CONNECT_SECONDS = 60.0


class InFrame(JupyterHandler):  # type: ignore[misc]
    """Inside the frame of a site that was not named with --embed, show a link and start no kernel.

    The browser would show neither the page nor the reason, and would withhold the token's cookie.
    """

    async def prepare(self, *args: Any, **kwargs: Any) -> None:
        sent = self.request.headers
        framed = sent.get("Sec-Fetch-Dest") in ("iframe", "frame", "embed", "object")
        around = urlsplit(sent.get("Referer", ""))
        # A site may hide its name; the browser enforces frame-ancestors anyway.
        names = self.settings["embed"]
        named = bool(names) and f"{around.scheme}://{around.netloc}" in ("://", *names)
        if framed and sent.get("Sec-Fetch-Site") == "cross-site" and not named:
            page = self.settings["voila_jinja2_env"].get_template("framed.html")
            self.set_header(
                "Content-Security-Policy",
                "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
            )
            self.finish(page.render(address=self.request.uri))
            return
        await super().prepare(*args, **kwargs)


class StartPageHandler(InFrame):
    """`/` leads to the gallery; the token, if the address had one, is by then in a cookie."""

    @authenticated  # type: ignore[untyped-decorator]
    def get(self) -> None:
        self.redirect(url_path_join(self.base_url, "voila", "render", START_PAGE))


class PageHandler(InFrame, TornadoVoilaHandler):  # type: ignore[misc]
    """A notebook as a page. An error half-way is reported on the page, in words.

    A page that is left while it is being prepared ends its kernel; so does one that has not
    connected a minute after it was sent.
    """

    def initialize(self, **kwargs: Any) -> None:
        super().initialize(**kwargs)
        self._kernels: list[str] = []

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self, path: str | None = None) -> None:
        if not path or not path.endswith(".ipynb"):
            raise HTTPError(404, "pages are notebooks")
        # The page sends this cookie back when it is closed, to end its kernel.
        _ = self.xsrf_token
        given.set(self._kernels)
        try:
            async for part in self.get_generator(path=path):
                if self._left():
                    break
                self.write(part)
                self.flush()
        except HTTPError:
            raise
        except Exception as error:  # whatever it was, the visitor must be told
            self.log.error("%s could not be shown", path, exc_info=error)
            if not self._headers_written:
                raise HTTPError(500, "the page could not be built") from error
            self.write(
                "<script>qvizPage.alarm('This page could not be built. The terminal of "
                "the server says why.')</script>"
            )
        finally:
            IOLoop.current().call_later(0 if self._left() else CONNECT_SECONDS, self._end_kernels)

    def _left(self) -> bool:
        stream = self.request.connection.stream
        return stream is None or bool(stream.closed())

    async def _end_kernels(self) -> None:
        for kernel in self._kernels:
            await self.kernel_manager.end_unless_met(kernel)


class TemplateFileHandler(TemplateStaticFileHandler):  # type: ignore[misc]
    """Static files of page templates; the parent answers a malformed path with an exception."""

    def parse_url_path(self, path: str) -> str:
        parts = path.split("/")
        if len(parts) < 3 or parts[1] != "static" or ".." in parts:
            raise HTTPError(404)
        checked: str = super().parse_url_path(path)
        return checked


class SocketHandler(VoilaKernelWebsocketHandler):  # type: ignore[misc]
    """A page that is closed while its socket is being opened is not an error, and only Jupyter, not
    tornado, sends pings."""

    def get_websocket_protocol(self) -> Any:
        protocol = super().get_websocket_protocol()
        if protocol is not None:
            # Jupyter's interval and patience are milliseconds under the names of tornado's, which
            # are seconds: tornado would ask once in eight hours, and warns of the two numbers.
            protocol.params.ping_interval = protocol.params.ping_timeout = None
        return protocol

    async def get(self, kernel_id: str) -> None:
        try:
            await super().get(kernel_id=kernel_id)
        except AttributeError:
            # Closed in between, `connection` is None, and the parent uses it all the same.
            if getattr(self, "connection", self) is not None:
                raise
            raise HTTPError(404, "this page has been closed") from None


class TokenPageHandler(LoginFormHandler):  # type: ignore[misc]
    """Asks for the token in words when a visitor comes without the link."""

    def _render(self, message: dict[str, str] | None = None) -> None:
        wrong = "<p class='qv-notice'>That is not the right token.</p>" if message else ""
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
