"""The GPU run in one command, without a GPU: its clock, its files, and what it reads from them."""

import runpy
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool():
    """The names of tools/gpu_check.py."""
    return runpy.run_path(str(ROOT / "tools" / "gpu_check.py"))


def step(tool, name, code, seconds=20.0, found=lambda text: text.strip()):
    return tool["Step"](name, f"About {name}", [sys.executable, "-c", code], seconds, found)


def alive(number):
    """Whether a process still runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_that_is_cut_short_leaves_what_it_has(tool, tmp_path):
    endless = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    every = [
        step(tool, "first", "print('all is well')"),
        step(tool, "second", endless, 2.0),
        step(tool, "third", "import sys; print('wrong'); sys.exit(3)"),
        step(tool, "fourth", "print('never')"),
    ]
    begun = time.perf_counter()
    done = tool["check"](every, tmp_path, tool["FEWEST"] + 4.0, "Some Card, commit abc.")
    assert time.perf_counter() - begun < 20
    assert [each.status for each in done][:2] == [0, None]
    child = int((tmp_path / "second.txt").read_text().split()[1])
    for _ in range(50):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)  # what a step started ends with it
    said = (tmp_path / "summary.md").read_text()
    assert "Some Card, commit abc." in said and "all is well" in said
    assert "its time was up" in said and "child" in said
    if len(done) == 3:
        assert "exit status 3" in said and "Not run: About fourth" in said


def test_everything_runs_from_the_checkout(tool, tmp_path):
    code = "import os, qviz; print(qviz.__file__); print(os.environ['QVIZ_CACHE'])"
    (done,) = tool["check"]([step(tool, "one", code)], tmp_path, 60.0, "")
    package, cache = done.text.split()
    assert Path(package).is_relative_to(ROOT) and Path(cache).is_dir()
    assert "Not run" not in (tmp_path / "summary.md").read_text()


def test_a_file_stays_below_a_megabyte(tool, tmp_path):
    code = "for i in range(30000): print('x' * 99)"
    (done,) = tool["check"]([step(tool, "long", code)], tmp_path, 60.0, "")
    assert done.status == 0
    assert 800_000 < (tmp_path / "long.txt").stat().st_size < 1_000_000


def test_failing_tests_are_named(tool):
    text = (
        "..F\n= short test summary info =\n"
        "FAILED tests/kernels/test_triton.py::test_fp8[cuda-17-72-triton.fp8] - assert 3 <= 1\n"
        "ERROR tests/kernels/test_bnb.py::test_all[cuda]\n"
        "======= 1 failed, 119 passed, 1 error in 61.20s (0:01:01) =======\n"
    )
    assert tool["failures"](text) == (
        "1 failed, 119 passed, 1 error in 61.20s (0:01:01)\n\n"
        "- tests/kernels/test_triton.py::test_fp8[cuda-17-72-triton.fp8]\n"
        "- tests/kernels/test_bnb.py::test_all[cuda]"
    )
    assert (
        tool["failures"]("120 passed, 3 deselected in 9.1s\n") == "120 passed, 3 deselected in 9.1s"
    )
    assert tool["failures"]("..F") == "It did not come to an end."


def test_tables_are_taken_from_what_was_printed(tool):
    text = "12 s  said\n# Title\n\nwords\n\n| a | b |\n|---|---|\n| 1 | 2 |\nmore\n| c |\n|---|\n"
    assert tool["last_table"](text) == (
        "# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| c |\n|---|"
    )
    assert tool["last_table"]("nothing") == "It printed no table."


def test_at_most_eight_files(tool, tmp_path):
    """A file for each step, the summary, and the kernels' figures twice."""
    every = tool["steps"](tmp_path, True)
    for each in every:
        (tmp_path / f"{each.name}.txt").write_text("text")
        script = next(part for part in each.command if part.endswith(".py") or "tests/" in part)
        assert (ROOT / script).exists()
    (tmp_path / "summary.md").write_text("text")
    for name in (
        "bench/results/kernels_cuda.json", "bench/results/kernels_cuda.md",
        "qviz/data/kernels/cuda_some_card.json", "tables/packed_model_cuda.json",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    tool["tidy"](tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 8 and {"kernels_cuda.json", "cuda_some_card.json"} <= set(names)
    assert all(path.is_file() for path in tmp_path.iterdir())


def test_wheels_are_unpacked_for_the_path(tool, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "some-1.0-py3-none-any.whl", "w") as file:
        file.writestr("some_package_of_ours/__init__.py", "")
    folder = tool["unpack"](tmp_path)
    assert (folder / "some_package_of_ours" / "__init__.py").exists()


def test_without_a_gpu_it_says_so(tool, monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--into", str(tmp_path)])
    with pytest.raises(SystemExit, match="There is no CUDA device here"):
        tool["main"]()
