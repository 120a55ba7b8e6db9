"""The models' calibration data, captured beside the server before the lessons ask for it."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable

from qviz.server.options import Say


class CacheFiller:
    """Captures the models' calibration data once, in a process of its own. `done` is called when
    the data that lessons open on is ready.

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
            stderr=self._complaints,  # a file: nothing reads a pipe while stdout is being read
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
