"""The system's own Firefox for the browser tests, driven over WebDriver BiDi.

Playwright brings a Firefox of its own; what students have is the one of their system, which listens
for BiDi itself. https://w3c.github.io/webdriver-bidi/
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import websocket

#: A key's name → the code that stands for it in an action.
KEYS = {"ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Home": "\ue011", "End": "\ue010",
        "Tab": "\ue004", "Enter": "\ue007", " ": " "}  # fmt: skip


def find_firefox() -> str:
    """Where Firefox is; without it these tests are skipped."""
    named = os.environ.get("QVIZ_FIREFOX")
    found = next(
        filter(None, map(shutil.which, [named] if named else ["firefox", "firefox-esr"])), None
    )
    if found is None:
        pytest.skip("no Firefox found: install it, or name its program in QVIZ_FIREFOX")
    return found


class Firefox:
    """One window. `errors` are what pages wrote into the console as errors."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(
            f"{address}/session", timeout=120, suppress_origin=True
        )
        self.numbers = itertools.count()
        self.errors: list[str] = []
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["log.entryAdded"])
        self.window = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def close(self) -> None:
        self.socket.close()

    def ask(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("method") == "log.entryAdded" and answer["params"]["level"] == "error":
                self.errors.append(str(answer["params"]["text"]))
            if answer.get("id") == number:
                assert answer["type"] == "success", answer
                return answer["result"]

    def size(self, width: int, height: int) -> None:
        self.ask(
            "browsingContext.setViewport", context=self.window,
            viewport={"width": width, "height": height},
        )  # fmt: skip

    def open(self, address: str) -> None:
        self.ask("browsingContext.navigate", context=self.window, url=address, wait="interactive")

    def run(self, script: str) -> Any:
        """The value of an expression, by way of JSON."""
        answer = self.ask(
            "script.evaluate", expression=f"JSON.stringify(({script}) ?? null)",
            target={"context": self.window}, awaitPromise=True,
        )  # fmt: skip
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def until(self, script: str, seconds: float = 60) -> Any:
        """The value of an expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}; {self.errors}"
            time.sleep(0.05)
        return value

    def press(self, *names: str) -> None:
        steps = [
            {"type": kind, "value": KEYS[name]} for name in names for kind in ("keyDown", "keyUp")
        ]
        self.ask(
            "input.performActions", context=self.window,
            actions=[{"type": "key", "id": "keys", "actions": steps}],
        )  # fmt: skip

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """With the mouse, in a few moves."""
        between = [
            {"type": "pointerMove", "x": round(start[0] + (end[0] - start[0]) * k / 5),
             "y": round(start[1] + (end[1] - start[1]) * k / 5)}
            for k in range(6)
        ]  # fmt: skip
        steps = [between[0], {"type": "pointerDown", "button": 0}, *between[1:],
                 {"type": "pointerUp", "button": 0}]  # fmt: skip
        self.ask(
            "input.performActions", context=self.window,
            actions=[{"type": "pointer", "id": "mouse", "actions": steps}],
        )  # fmt: skip


@contextmanager
def running_firefox() -> Iterator[Firefox]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [find_firefox(), "--headless", "--no-remote", "--profile", profile,
             "--remote-debugging-port", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "HOME": profile},
        )  # fmt: skip
        reader: threading.Thread | None = None
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if match := re.search(r"WebDriver BiDi listening on (ws://\S+)", line):
                    break
            else:
                raise RuntimeError("Firefox ended before it listened")
            reader = threading.Thread(target=process.stderr.read, daemon=True)
            reader.start()
            with closing(Firefox(match[1])) as firefox:
                yield firefox
        finally:
            process.terminate()
            process.wait(20)
            if reader is not None:
                reader.join(5)
            assert process.stderr is not None
            process.stderr.close()
