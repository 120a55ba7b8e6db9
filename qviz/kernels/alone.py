"""One measurement at a time on a machine: two that run at once disturb each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock, Timeout

# The same file for every user and process of the machine, whatever the checkout.
PATH = Path(gettempdir()) / "qviz-measuring.lock"
TURN = 0.2  # seconds between checks whether the other measurement has ended


@contextmanager
def alone(
    waiting: Callable[[], object], stopped: Callable[[], bool] | None = None
) -> Iterator[bool]:
    """Hold this machine's measurement lock, across all processes, while the block runs.

    If another process is measuring, `waiting` is called once, and the block starts when that has
    ended. If `stopped` returns True meanwhile, the block gets False and holds nothing. A process
    that dies releases the lock.
    """
    lock, said = FileLock(PATH, mode=0o666), False
    while True:
        try:
            lock.acquire(timeout=TURN)
            break
        except Timeout:
            if stopped is not None and stopped():
                yield False
                return
            if not said:
                waiting()
                said = True
    try:
        yield True
    finally:
        lock.release()
