"""What the server says as it starts and when it cannot: to whom it is open, and where."""

import errno
import itertools
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from said import holds, numbers_in

from qviz.server import ServeError, ServeOptions, options
from qviz.server.app import LessonServer, kernel_environment
from qviz.server.options import bind, find_notebooks, is_loopback
from qviz.server.words import Started, welcome

OPEN = "anyone who can reach this machine can now run computations on it"


@given(
    st.integers(1, 30), st.booleans(), st.booleans(), st.booleans(), st.sampled_from("abc"),
    st.sampled_from([(), ("https://lms.example", "http://b")]),
)  # fmt: skip
def test_a_server_that_is_open_to_the_network_warns_and_no_other(
    pages, token, loopback, busy, x, embed
):
    link = f"http://{x}:1/"
    lines = welcome(Started(pages, Path("/lessons"), link, token, loopback, busy, embed))
    inside = [line for line in lines if line.startswith("Pages may be shown inside")]
    assert len(inside) == bool(embed) and all(site in line for site in embed for line in inside)
    assert any(OPEN in line for line in lines) == (not token and not loopback)
    assert any(line == "No token is needed. Open:" for line in lines) == (not token)
    assert any(line == "Open this link in a browser:" for line in lines) == token
    assert any(line.startswith("Preparing calibration data") for line in lines) == busy
    holds(lines[0], pages=(pages, "pages from /lessons"))
    assert lines.index(link) == 2 and "Stop with Ctrl-C." in lines
    assert len(lines) == 4 + (not token and not loopback) + busy + bool(embed)


def server_of(**given) -> SimpleNamespace:
    asked = {"notebooks": find_notebooks(), "token": "secret", **given}
    server = SimpleNamespace(options=ServeOptions(**asked), port=8866, base_url="/")
    server.link = LessonServer.link.fget(server)
    return server


@pytest.mark.parametrize("token", ["secret", None])
@pytest.mark.parametrize("fill_cache", [True, False])
@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
     ("::", False), ("192.168.0.7", False), ("lab.example", False)],
)  # fmt: skip
def test_what_is_said_of_a_server_is_what_it_was_asked_for(host, loopback, token, fill_cache):
    server = server_of(host=host, token=token, fill_cache=fill_cache)
    started = LessonServer.started.fget(server)
    assert started.token == (token is not None)
    assert started.loopback == loopback == is_loopback(host)
    assert started.capturing == fill_cache
    assert started.pages == len(list(server.options.notebooks.glob("*.ipynb"))) > 1
    assert started.notebooks == server.options.notebooks
    assert started.link == server.link


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", "http://127.0.0.1:8866/"),
        ("::1", "http://[::1]:8866/"),
        ("0.0.0.0", f"http://{socket.gethostname()}:8866/"),
        ("::", f"http://{socket.gethostname()}:8866/"),
        ("", f"http://{socket.gethostname()}:8866/"),
    ],
)
def test_the_link_can_be_opened(host, said):
    assert server_of(host=host).link == f"{said}?token=secret"
    assert server_of(host=host, token=None).link == said


def refuse(monkeypatch, *numbers):
    """Make listening fail, with these errors one after the other."""
    left = itertools.chain(numbers, itertools.repeat(numbers[-1]))
    asked = []

    def create_server(address, **_options):
        number = next(left)
        asked.append(address)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "create_server", create_server)
    return asked


def test_a_port_that_needs_rights_is_said_to(monkeypatch):
    refuse(monkeypatch, errno.EACCES)
    with pytest.raises(ServeError) as caught:
        bind(80, "127.0.0.1", print)
    holds(str(caught.value), ways={"above/below": 1}, port=80, least=1023)


def test_when_every_port_is_taken_the_whole_range_is_named(monkeypatch):
    asked = refuse(monkeypatch, errno.EADDRINUSE)
    with pytest.raises(ServeError, match="--port") as caught:
        bind(None, "127.0.0.1", print)
    ports = [port for _, port in asked]
    assert ports == list(range(options.DEFAULT_PORT, options.DEFAULT_PORT + len(ports)))
    holds(str(caught.value), first=ports[0], last=ports[-1])
    assert len(ports) > 20


def test_another_port_than_the_usual_one_is_announced(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(options, "DEFAULT_PORT", taken.getsockname()[1])
        said = []
        with bind(None, "127.0.0.1", said.append) as listening:
            chosen = listening.getsockname()[1]
        assert said == [f"Port {options.DEFAULT_PORT} is in use; using {chosen} instead."]


def test_an_address_that_cannot_be_had_is_named_with_its_reason(monkeypatch):
    refuse(monkeypatch, errno.EADDRNOTAVAIL)
    with pytest.raises(ServeError) as caught:
        bind(1, "lab.example", print)
    assert str(caught.value).startswith(
        f"cannot listen on lab.example: {os.strerror(errno.EADDRNOTAVAIL)}; --host takes an address"
    )


def test_a_named_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError) as caught:
            bind(port, "127.0.0.1", print)
    assert [n.value for n in numbers_in(str(caught.value))] == [port]


def test_a_listening_socket_waits_for_nobody():
    with bind(0, "127.0.0.1", print) as listening:
        assert not listening.getblocking()
        assert listening.family == socket.AF_INET


def test_the_lessons_are_looked_for_where_they_are_said_to_be(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as caught:
        find_notebooks(tmp_path)
    assert f"was not found in {tmp_path}; name the folder that has it with --notebooks" in str(
        caught.value
    )
    monkeypatch.setattr(options, "__file__", str(tmp_path / "a" / "qviz" / "server" / "options.py"))
    with pytest.raises(FileNotFoundError) as caught:
        find_notebooks()
    checkout, package = tmp_path / "a" / "notebooks", tmp_path / "a" / "qviz" / "notebooks"
    assert (
        f"not found in {checkout} and {package}; name the folder with --notebooks DIR, or "
        in str(caught.value)
    )
    for folder in (package, checkout):  # the checkout's own comes before the installed ones
        folder.mkdir(parents=True)
        (folder / options.START_PAGE).touch()
        assert find_notebooks() == folder
    assert find_notebooks(package) == package


def test_threads_of_kernels_are_few_unless_the_user_says_otherwise():
    made = kernel_environment({"MKL_NUM_THREADS": "7", "HOME": "/home"})
    assert made["OMP_NUM_THREADS"] == "1" and made["MALLOC_ARENA_MAX"] == "2"
    assert made["MKL_NUM_THREADS"] == "7" and made["HOME"] == "/home"
