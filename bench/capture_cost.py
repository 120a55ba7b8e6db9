"""Time and memory of capture and sequential GPTQ on the bundled model, beside another checkout.

    python bench/capture_cost.py --beside ../qviz-before     # any checkout with the same functions

Each figure is of a process of its own, the two checkouts in turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from record import save, table

NAME, TITLE = "capture_cost", "Capture and sequential calibration beside an earlier commit"
HERE = Path(__file__).parents[1]
WORK = {
    "capture, 16384 tokens": "qviz.capture(model, text, max_tokens=16384)",
    "sequential GPTQ, 8192 tokens": (
        "qviz.quantize_model(model, 'gptq', bits=4, group_size=32, "
        "calibration=qviz.Sequential(text, max_tokens=8192))"
    ),
}
PROGRAM = """
import json, resource, sys, time
import qviz
from qviz.models.texts import calibration_texts
model = qviz.load_model()
text = calibration_texts()["python"].text
qviz.capture(model, text, max_tokens=256)  # what is loaded on first use
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"seconds": seconds, "MiB": (after - before) / 1024}}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beside", type=Path, required=True, help="the other checkout")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    rows = []
    for what, work in WORK.items():
        found: dict[str, list[dict[str, float]]] = {"now": [], "before": []}
        for _ in range(options.repeats):
            for name, where in (("before", options.beside), ("now", HERE)):
                found[name].append(measured(where, work))
        row: dict[str, object] = {"what": what}
        for figure in ("seconds", "MiB"):
            now, before = (
                statistics.median(run[figure] for run in found[name]) for name in ("now", "before")
            )
            row |= {f"{figure} before": before, f"{figure} now": now, f"{figure} ×": now / before}
        rows.append(row)
    other = subprocess.run(
        ["git", "-C", str(options.beside), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    notes = f"Medians of {options.repeats} processes each; before: commit {other}."
    if options.dry_run:
        print(table(rows), notes, sep="\n")
    else:
        print(save(NAME, TITLE, rows, notes))


def measured(where: Path, work: str) -> dict[str, float]:
    """Seconds, and how much more memory the process had at its peak."""
    environment = {**os.environ, "PYTHONPATH": str(where.resolve())}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work=work)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
