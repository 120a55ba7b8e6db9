"""What our pages need from any Jupyter server that shows them: plotly.js, and a way to end a
kernel.

- plotly.js over HTTP is the copy inside the installed plotly package, compressed and cacheable. A
  widget could bring it over the websocket, 4.8 MB on every page; over HTTP it is 1.4 MB once per
  browser. The address carries plotly's version, so the browser may keep it for ever.
- A page ends its kernel when it is closed, which needs the XSRF cookie; Voilà's pages do not set
  it. Without it every page ever opened would keep its kernel, and Binder's memory would be full
  after a few lessons.

`qviz serve` has the same addresses. Neither plotly (0.3 s) nor Voilà is imported here.
"""

import gzip
from functools import cache
from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.utils import url_path_join
from tornado.web import HTTPError, authenticated

from qviz.ui.plotly_js import plotly_js_file, plotly_js_name


@cache
def _compressed() -> bytes:
    return gzip.compress(plotly_js_file().read_bytes(), compresslevel=6, mtime=0)


class PlotlyJsHandler(JupyterHandler):  # type: ignore[misc]
    """`GET <base_url>qviz/static/plotly-<version>.min.js`."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self, name: str) -> None:
        if name != plotly_js_name():
            raise HTTPError(404, f"only {plotly_js_name()} is served here")
        self.set_header("Content-Type", "text/javascript; charset=utf-8")
        self.set_header("Cache-Control", "public, max-age=31536000, immutable")
        self.set_header("Vary", "Accept-Encoding")
        if "gzip" in self.request.headers.get("Accept-Encoding", ""):
            self.set_header("Content-Encoding", "gzip")
            self.finish(_compressed())
        else:
            self.finish(plotly_js_file().read_bytes())

    @authenticated  # type: ignore[untyped-decorator]
    async def head(self, name: str) -> None:
        await self.get(name)


class CookieHandler(JupyterHandler):  # type: ignore[misc]
    """`GET <base_url>qviz/cookie` sets the XSRF cookie and says nothing."""

    @authenticated  # type: ignore[untyped-decorator]
    async def get(self) -> None:
        _ = self.xsrf_token
        self.set_header("Cache-Control", "no-store")
        self.set_status(204)
        self.finish()


def handlers(base_url: str) -> list[tuple[str, type[JupyterHandler]]]:
    """Routes for a tornado application whose pages live under `base_url`."""
    return [
        (url_path_join(base_url, r"/qviz/static/(plotly-[\w.+-]+\.js)"), PlotlyJsHandler),
        (url_path_join(base_url, "/qviz/cookie"), CookieHandler),
    ]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "qviz.ui.extension"}]


def _load_jupyter_server_extension(server: Any) -> None:
    server.web_app.add_handlers(".*$", handlers(server.web_app.settings["base_url"]))
