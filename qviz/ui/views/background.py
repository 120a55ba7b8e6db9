"""Long work beside the page: one button starts and stops it; progress and errors are shown."""

from collections.abc import Callable
from functools import partial
from threading import Event, Thread
from typing import Any

from qviz.ui.views.lesson_page import LessonPage
from qviz.ui.widgets import Button, Status, show_only, stack

Progress = Callable[[int, int, str], None]


class Background:
    """Work in a thread of its own, while the page stays usable.

    button  begins the work and stops it: one button, so that the keyboard's focus has somewhere to
            stay
    busy    the box that shows its progress while the work runs
    deed    the name of a press for the guide
    """

    def __init__(
        self, page: LessonPage, begin: Callable[[], None], *, label: str, stop: str, deed: str = ""
    ) -> None:
        self._page, self._labels = page, (label, stop)
        self._begin = begin
        self._worker: Thread | None = None
        self._stop = Event()
        self.running = False
        self.button = Button(label)
        self.progress = Status()  # not the page's, which every control that is used clears
        self.busy = stack(self.progress)
        show_only(self.busy, False)
        page.on_press(self.button, self.press, deed=deed)

    def press(self) -> None:
        """Start the work, or stop it if it is running."""
        if self.running:
            self.stop()
        else:
            self._begin()

    def start(
        self,
        work: Callable[[Progress, Callable[[], bool]], Any],
        take: Callable[[Any], None],
        *,
        saying: str,
    ) -> None:
        """Run `work(progress, stopped)`, then hand what it returns to `take` on the page, whole or
        not at all. ValueError while it runs already."""
        if self.running:
            raise ValueError(f"this is already running: wait for it, or press {self._labels[1]}")
        self._stop.clear()
        self.running = True
        self.progress.busy(saying)
        self.button.label = self._labels[1]
        show_only(self.busy, True)
        self._worker = Thread(target=self._run, args=(work, take), daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """Stop after the current step and keep what has been computed so far."""
        self._stop.set()
        self.progress.busy("stopping after the current step")

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the work has ended."""
        if self._worker is not None:
            self._worker.join(seconds)

    def _run(
        self, work: Callable[[Progress, Callable[[], bool]], Any], take: Callable[[Any], None]
    ) -> None:
        def progress(done: int, total: int, text: str) -> None:
            if not self._stop.is_set():
                self.progress.busy(f"{done} of {total}: {text}")

        try:
            found = work(progress, self._stop.is_set)
        except Exception as error:  # noqa: BLE001, said on the page and raised again by it
            self._finish(partial(_again, error))
        else:
            self._finish(lambda: take(found))

    def _finish(self, then: Callable[[], None]) -> None:
        """Report an error on the page: in this thread nothing else would."""
        with self._page.one_at_a_time:
            show_only(self.busy, False)
            self.button.label = self._labels[0]
            self.running = False
            self._page.do(then)


def _again(error: Exception) -> None:
    raise error
