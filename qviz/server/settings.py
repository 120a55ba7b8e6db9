"""Voilà's and tornado's settings, each of them deliberate."""

import logging
import sys
from typing import Any

from tornado.web import RequestHandler
from traitlets.config import Config

from qviz.server.options import ServeOptions, is_loopback

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
    ]
)

FRAMED_COOKIES = {"samesite": "None", "secure": True}


def voila_config(options: ServeOptions) -> Config:
    """Voilà's settings, each of them deliberate."""
    return Config(
        {
            "Voila": {
                "root_dir": str(options.notebooks),
                "ip": options.host,
                "token": options.token or "",
                "open_browser": False,  # done here, after the link has been printed
                "config_file_paths": [],  # a stray voila.json must not loosen these settings
                "log_level": logging.WARNING,
                "tornado_settings": tornado_settings(options.host, options.embed),
            },
            # Inside another site's page a browser sends back no other cookies than these.
            "IdentityProvider": {"cookie_options": dict(FRAMED_COOKIES) if options.embed else {}},
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


def tornado_settings(host: str, embed: tuple[str, ...] = ()) -> dict[str, Any]:
    ancestors = " ".join(["frame-ancestors 'self'", *embed])
    return {
        "headers": {
            "Content-Security-Policy": f"{CONTENT_POLICY}; {ancestors}",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
        },
        "xsrf_cookies": True,
        "xsrf_cookie_kwargs": dict(FRAMED_COOKIES) if embed else {},
        "embed": embed,
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
    """Log only errors, and without the query, which may hold the token."""
    if handler.get_status() >= 500:
        logging.getLogger("qviz").error(
            "%d %s %s", handler.get_status(), handler.request.method, handler.request.path
        )
