"""One measuring at a time: threads, processes, a process that dies, and a stop while waiting."""

import subprocess
import sys
import threading

import pytest

from qviz.kernels import alone as module
from qviz.kernels.alone import alone

HOLD = """
import sys
from pathlib import Path
from qviz.kernels import alone
alone.PATH = Path(sys.argv[1])
with alone.alone(lambda: None) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATH", tmp_path / "measuring.lock")
    monkeypatch.setattr(module, "TURN", 0.02)


def test_threads_take_turns():
    inside, most, turns = 0, 0, 0
    said = threading.Semaphore(0)

    def work():
        nonlocal inside, most, turns
        with alone(said.release) as mine:
            inside += 1
            most, turns = max(most, inside), turns + mine
            threading.Event().wait(0.05)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    with alone(lambda: None):  # each of them finds it taken
        for thread in threads:
            thread.start()
        for _ in threads:
            assert said.acquire(timeout=30)
        assert turns == 0
    for thread in threads:
        thread.join(30)
    assert (most, turns) == (1, 3)
    assert not said.acquire(blocking=False)  # said once each, however long the wait


def test_stopped_while_waiting():
    with alone(lambda: None), alone(lambda: None, lambda: True) as mine:
        assert not mine
    with alone(lambda: None) as mine:  # and the first one's turn has ended
        assert mine


def test_another_process_and_its_death():
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(module.PATH)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline().strip() == "True"
        with alone(lambda: None, lambda: True) as mine:
            assert not mine
        holder.kill()
        holder.wait()
        with alone(lambda: None) as mine:
            assert mine
