"""Fixtures of the browser tests: one Chromium for the session, servers and tabs on request."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from driver import CHROMIUM_ARGUMENTS, SERVER, Tab, require_chromium, running


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
def browser() -> Iterator[Any]:
    path = require_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, headless=True, args=CHROMIUM_ARGUMENTS
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens tabs of given size (and colour scheme …) that are closed at the end of the session."""
    tabs: list[Tab] = []

    def new(**options: Any) -> Tab:
        tabs.append(Tab(browser, **options))
        return tabs[-1]

    yield new
    for tab in tabs:
        tab.close()
