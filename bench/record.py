"""How every benchmark measures, and writes down what it found, with machine, versions and date."""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qviz.kernels.machine import processor

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "qviz", "torch", "numpy", "transformers", "voila", "jupyterlab", "anywidget", "plotly",
    "bitsandbytes", "compressed-tensors", "torchao", "gguf", "hqq", "llama-cpp-python",
    "scikit-learn",
)  # fmt: skip


def conditions() -> dict[str, Any]:
    """What a reader needs to know to judge a figure."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def median_times(*runs: Callable[[], object], repeats: int = 3) -> list[float]:
    """Median seconds of each, run in turns so that all meet the same machine."""
    taken: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, times in zip(runs, taken, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return [sorted(times)[repeats // 2] for times in taken]


def save(
    name: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    notes: str = "",
    *,
    into: Path | None = None,
) -> Path:
    """Write NAME.json below `into` (bench/results) and a table for people beside it; returns the
    latter."""
    about = conditions()
    folder = into or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    data = {"title": title, "conditions": about, "rows": list(rows), "notes": notes}
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        f"# {title}",
        "",
        f"{about['date']}, commit {about['commit']}, {about['cores']} cores {about['processor']}, "
        f"Python {about['python']}, {versions}; load before the run {about['load before']}.",
        "",
        table(rows),
        "",
    ]
    if notes:
        lines += [notes, ""]
    path = folder / f"{name}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; the columns are the keys in order of appearance."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(n, "")) for n in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ⏎ ")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
