"""Fixtures of the browser tests: one Chromium and one server of the lessons for the session, others
and tabs on request."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from driver import CHROMIUM_ARGUMENTS, SERVER, Tab, jupyterlab, require_chromium, running

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture(scope="session")
def serve_notebooks() -> Callable[..., Any]:
    """Context manager: folder of notebooks, options → base URL of a server that shows them."""

    @contextmanager
    def serve(folder: Path, **options: Any) -> Iterator[str]:
        arguments = [sys.executable, "-c", SERVER, str(folder), json.dumps(options)]
        with running(arguments, r"(http://127\.0\.0\.1:\d+)") as (match, _):
            yield match.group(1)

    return serve


@pytest.fixture(scope="session")
def base(serve_notebooks: Callable[[Path], Any]) -> Iterator[str]:
    """One server with all lessons, for whoever needs nothing special of it."""
    with serve_notebooks(NOTEBOOKS) as url:
        yield url


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Theme → base URL of a JupyterLab in it and its folder, which holds copies of the lessons.

    It is started when a test first asks for it: a start takes as long as many a test.
    """
    started: dict[str, tuple[str, Path]] = {}
    with ExitStack() as stack:

        def in_theme(theme: str = "JupyterLab Light") -> tuple[str, Path]:
            if theme not in started:
                home = tmp_path_factory.mktemp("lab")
                pages = home / "pages"
                shutil.copytree(NOTEBOOKS, pages)
                started[theme] = stack.enter_context(jupyterlab(pages, home, theme)), pages
            return started[theme]

        yield in_theme


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = require_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, headless=True, args=CHROMIUM_ARGUMENTS
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens tabs of given size (and colour scheme …) that are closed at the end of the module."""
    tabs: list[Tab] = []

    def new(**options: Any) -> Tab:
        tabs.append(Tab(browser, **options))
        return tabs[-1]

    yield new
    for tab in tabs:
        tab.close()
