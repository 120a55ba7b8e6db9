"""One measuring at a time on a machine: two that run at once measure each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock, Timeout

# The same file for every user and process of the machine; what is locked is not this checkout's.
PATH = Path(gettempdir()) / "qviz-measuring.lock"
TURN = 0.2  # seconds between two looks at whether the other one has ended


@contextmanager
def alone(
    waiting: Callable[[], object], stopped: Callable[[], bool] | None = None
) -> Iterator[bool]:
    """Holds this machine's measuring while the block runs, in this process and all others.

    Where another one measures, `waiting` is called once, and the block begins when that has ended.
    It is given False, and holds nothing, where `stopped` said True meanwhile. A process that dies
    gives its turn up.
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
