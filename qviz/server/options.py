"""The server's options, and how they are resolved: pages, token, address."""

import errno
import os
import re
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_PORT = 8866
START_PAGE = "00_start.ipynb"
ORIGIN_HOST = re.compile(r"[\w.-]+(:\d+)?").fullmatch

Say = Callable[[str], None]


class ServeError(ValueError):
    """The server cannot start; the message says why and what to do."""


@dataclass(frozen=True)
class ServeOptions:
    """What `qviz serve` was asked for.

    `port=None` means 8866 or, if that is in use, the next free one. A port that is named is used or
    refused. `pool` is the number of warm kernels for each page. `embed` are origins of
    sites that may show the pages inside their own ("https://lms.example").
    """

    notebooks: Path
    port: int | None = None
    host: str = "127.0.0.1"
    browser: bool = True
    token: str | None = None
    pool: int = 1
    fill_cache: bool = True
    embed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for origin in self.embed:
            check_origin(origin)


def check_origin(text: str) -> None:
    """ValueError unless this names a site as browsers do: scheme, host and perhaps a port."""
    parts = urlsplit(text)
    whole = f"{parts.scheme}://{parts.netloc}"
    if parts.scheme not in ("http", "https") or text != whole or not ORIGIN_HOST(parts.netloc):
        raise ServeError(
            f"{text!r} is not the origin of a site; give it as https://lms.example or "
            "https://lms.example:8443, without a path"
        )


def find_notebooks(directory: str | Path | None = None) -> Path:
    """The folder with the lessons: the one named, otherwise the checkout's, otherwise the package's
    own.

    Raises FileNotFoundError when it is missing or has no start page.
    """
    package = Path(__file__).parents[1]
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
    """`QVIZ_TOKEN` if it is set (a class needs a link that survives a restart), otherwise
    random."""
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

    Raises ServeError when the named port or the address is not available.
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
        f"port {port} is in use; stop the program that uses it, choose another with --port, or "
        "omit --port to get a free one"
    )
