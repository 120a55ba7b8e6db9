"""What a GPU says of this checkout, within seven minutes: failing tests by name, then figures.

    python tools/gpu_check.py [--into gpu-check] [--minutes 7] [--commit HASH] [--wheels DIR]

For a machine that has torch, Triton and pytest, and neither a network nor this package installed:
everything runs from the checkout. Wheels in DIR (bitsandbytes, say) are unpacked into a folder of
their own first. Each step runs in a process of its own with a time limit, the most important
first; what it prints goes to a file as it comes, so that a run that is cut short leaves what it
has. `summary.md` is written again after each step. Eight files at most, each below 1 MB.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = 900_000  # bytes of a file
FEWEST = 5.0  # seconds that are worth starting a step with
FORMATS = ("int4-g128", "nf4-g64", "fp8")


@dataclass(frozen=True)
class Step:
    """One thing to find out.

    name     of its file, which is NAME.txt
    title    as the summary says it
    command  what is run, with the repository as its folder
    seconds  that it may take
    found    what the summary says, from what was printed
    """

    name: str
    title: str
    command: Sequence[str]
    seconds: float
    found: Callable[[str], str]


@dataclass(frozen=True)
class Done:
    """A step that ran: how long, and with which exit status (None: its time was up)."""

    step: Step
    seconds: float
    status: int | None
    text: str


def steps(into: Path, parallel: bool) -> list[Step]:
    """What is run, the most important first."""
    python = sys.executable
    pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rfE", "--tb=short"]
    pytest += ["-n", "8"] if parallel else []
    bench = [python, "bench/kernels.py", "--device", "cuda", "--into", str(into)]
    return [
        Step(
            "tests_kernels",
            "Tests of the kernels on the GPU",
            [*pytest, "tests/kernels", "-k", "cuda or gpu or graph"],
            120,
            failures,
        ),
        Step(
            "kernels",
            "Every kernel beside 16-bit weights",
            [*bench, "--minutes", "2.4", "--seconds", "0.15", "--formats", *FORMATS],
            160,
            last_table,
        ),
        Step("gptq", "GPTQ, the Hessian given", [python, "bench/gptq_on_gpu.py"], 40, last_table),
        Step(
            "tests_methods",
            "Tests of the methods on the GPU",
            [*pytest, "tests/methods", "tests/models", "tests/core", "-k", "cuda or gpu"],
            60,
            failures,
        ),
        Step(
            "packed_model",
            "A model with packed weights",
            [python, "bench/packed_model.py", "--device", "cuda", "--minutes", "0.7",
             "--models", "random", "--into", str(into / "tables"), "16", "--repeats", "3"],
            70,
            last_table,
        ),
    ]  # fmt: skip


# ---------------------------------------------------------------------- what was found, in words


def failures(text: str) -> str:
    """The failing tests by name, and pytest's last line.

    >>> failures("FAILED tests/a.py::b[cuda] - x\\n1 failed, 2 passed in 3.0s")
    '1 failed, 2 passed in 3.0s\\n\\n- tests/a.py::b[cuda]'
    """
    names = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    totals = re.findall(
        r"^=*\s*(\d+ (?:passed|failed|error|deselected).*?)\s*=*$", text, re.MULTILINE
    )
    said = totals[-1] if totals else "It did not come to an end."
    return "\n\n".join([said, *(["\n".join(f"- {name}" for name in names)] if names else [])])


def last_table(text: str) -> str:
    """The tables of what was printed, and the lines before each that title it.

    >>> last_table("noise\\n| a |\\n|---|\\n| 1 |")
    '| a |\\n|---|\\n| 1 |'
    """
    kept, lines = [], text.splitlines()
    for at, line in enumerate(lines):
        if line.startswith(("#", "|")):
            if line.startswith("|") and (at == 0 or not lines[at - 1].startswith(("|", "#"))):
                kept.append("")
            kept.append(line)
    return "\n".join(kept).strip() or "It printed no table."


# ---------------------------------------------------------------------- running


def run(step: Step, seconds: float, into: Path, environment: dict[str, str]) -> Done:
    """Run a step for these seconds at most; its output goes to its file line by line."""
    start, path = time.perf_counter(), into / f"{step.name}.txt"
    late = threading.Event()
    kept: list[str] = []
    size = 0
    with (
        subprocess.Popen(
            step.command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        ) as process,
        path.open("w", encoding="utf-8") as file,
    ):  # fmt: skip

        def stop() -> None:
            late.set()
            os.killpg(process.pid, 9)  # with the processes that it started, and no others

        clock = threading.Timer(seconds, stop)
        clock.start()
        assert process.stdout is not None
        for line in process.stdout:
            size += len(line.encode())
            if size < LARGEST:
                file.write(line)
                file.flush()
                kept.append(line)
        status = process.wait()
        clock.cancel()
    passed = time.perf_counter() - start
    return Done(step, passed, None if late.is_set() else status, "".join(kept))


def summary(done: Sequence[Done], about: str, waiting: Sequence[str]) -> str:
    """What was found so far, as Markdown."""
    parts = ["# What a GPU says of this checkout", about]
    for each in done:
        ended = "its time was up" if each.status is None else f"exit status {each.status}"
        parts.append(f"## {each.step.title}\n\n{each.seconds:.0f} s, {ended}.")
        parts.append(each.step.found(each.text))
    if waiting:
        parts.append(f"Not run: {', '.join(waiting)}.")
    return "\n\n".join(parts) + "\n"


def check(every: Sequence[Step], into: Path, seconds: float, about: str) -> list[Done]:
    """Run the steps one after the other until the time is up, the summary after each."""
    start, done = time.perf_counter(), list[Done]()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "QVIZ_CACHE": tempfile.mkdtemp(prefix="qviz-gpu-check-"),
    }
    for at, step in enumerate(every):
        left = seconds - (time.perf_counter() - start)
        waiting = [each.title for each in every[at:]]
        (into / "summary.md").write_text(summary(done, about, waiting), encoding="utf-8")
        if left < FEWEST:
            break
        print(f"{seconds - left:5.0f} s  {step.title}", flush=True)
        done.append(run(step, min(step.seconds, left), into, environment))
    else:
        (into / "summary.md").write_text(summary(done, about, []), encoding="utf-8")
    return done


def unpack(wheels: Path) -> Path:
    """The files of wheels in a folder of their own, for PYTHONPATH."""
    folder = Path(tempfile.mkdtemp(prefix="qviz-wheels-"))
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder)
    return folder


def tidy(into: Path) -> None:
    """The kernels' figures beside the other files; the rest of what the benchmarks wrote says what
    was printed once more."""
    inner = [path for path in into.rglob("*") if path.is_file() and path.parent != into]
    for path in inner:
        wanted = path.name == "kernels_cuda.json" or path.parent.name == "kernels"
        if wanted and path.stat().st_size < LARGEST:
            path.replace(into / path.name)
        else:
            path.unlink()
    for folder in sorted((p for p in into.rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--into", type=Path, default=Path("gpu-check"))
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--commit", help="which commit this is, where there is no git to ask")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here; a figure of a GPU comes from a GPU or not at all.")
    into = args.into.resolve()
    into.mkdir(parents=True, exist_ok=True)
    if args.wheels is not None:
        folders = [str(unpack(args.wheels)), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    import importlib.util

    parallel = importlib.util.find_spec("xdist") is not None
    about = (
        f"{torch.cuda.get_device_name()}, commit {args.commit or commit()}, torch "
        f"{torch.__version__}, {time.strftime('%Y-%m-%d %H:%M')}."
    )
    check(steps(into, parallel), into, 60 * args.minutes, about)
    tidy(into)
    print((into / "summary.md").read_text(encoding="utf-8"))


def commit() -> str:
    """The commit of the checkout, or "unknown"."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
