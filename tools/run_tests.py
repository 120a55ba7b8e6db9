"""Run the tests on two cores, in three processes: a browser's tests mostly wait for pages.

    python tools/run_tests.py [--slow] [options of pytest]

The contract that every lesson keeps in a browser, what else drives a browser, and all others. The
others print as they go; what the browsers' said follows at the end.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import IO

NO_TESTS = 5  # pytest's exit status where none fits the options: another process may have some
KINDS = ("browser and contract", "browser and not contract", "not browser")


def main(arguments: list[str]) -> int:
    slow = "--slow" in arguments
    options = [one for one in arguments if one != "--slow"]

    marks = [kind if slow else f"{kind} and not slow" for kind in KINDS]
    commands = [[sys.executable, "-m", "pytest", "-m", mark, *options] for mark in marks]
    with ExitStack() as stack:
        running: list[tuple[subprocess.Popen[bytes], IO[str]]] = []
        for one in commands[:-1]:
            said = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(one, stdout=said, stderr=subprocess.STDOUT)
            stack.callback(process.terminate)  # which one that has ended does not mind
            running.append((process, said))
        statuses = {subprocess.run(commands[-1], check=False).returncode}
        for process, said in running:
            statuses.add(process.wait())
            said.seek(0)
            print(said.read(), flush=True)
    failed = statuses - {0, NO_TESTS}
    return max(failed) if failed else min(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
