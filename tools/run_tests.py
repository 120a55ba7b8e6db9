"""Run the tests on two cores: those that drive a browser in one process, all others in another.

    python tools/run_tests.py [--slow] [options of pytest]

A second Chromium beside the first would slow both. The others print as they go; what the browser's
said follows at the end.
"""

import subprocess
import sys
import tempfile

NO_TESTS = 5  # pytest's exit status where none fits the options: the other process may have some


def main(arguments: list[str]) -> int:
    slow = "--slow" in arguments
    options = [one for one in arguments if one != "--slow"]
    kinds = ("browser", "not browser")
    marks = [kind if slow else f"{kind} and not slow" for kind in kinds]
    commands = [[sys.executable, "-m", "pytest", "-m", mark, *options] for mark in marks]
    with tempfile.TemporaryFile("w+") as said:
        browser = subprocess.Popen(commands[0], stdout=said, stderr=subprocess.STDOUT)
        try:
            others = subprocess.run(commands[1], check=False).returncode
            statuses = {browser.wait(), others}
        finally:
            browser.terminate()
        said.seek(0)
        print(said.read())
    failed = statuses - {0, NO_TESTS}
    return max(failed) if failed else min(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
