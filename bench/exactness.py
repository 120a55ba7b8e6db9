"""Every method against its oracles: method × oracle × cases × mismatches, as one table.

python bench/exactness.py [METHOD …]

`make exactness` runs it twice: with --heavy in the environment of the oracles that are built from
source or pin other versions, then with --merge, which keeps those rows, in the usual one.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exactness import HEAVY, Comparison, everything


def row(comparison: Comparison) -> dict[str, Any]:
    """One line of the table, or why there is none."""
    line = {"method": comparison.method, "what": comparison.what}
    try:
        oracle = f"{comparison.oracle} {comparison.version}".strip()
    except LookupError as missing:
        return {**line, "oracle": comparison.oracle, "note": str(missing)}
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the oracles' own
        tally = comparison.run()
    return {
        **line,
        "oracle": oracle,
        "cases": tally.inputs,
        "numbers compared": tally.compared,
        "mismatches": tally.mismatches,
        "allowed": comparison.allowed,
        "seconds": round(time.perf_counter() - start, 1),
        "note": tally.note,
        "run as": comparison.name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="only these; recorded with --merge")
    parser.add_argument("--heavy", action="store_true", help="only the heavy oracles")
    parser.add_argument("--merge", action="store_true", help="keep rows that cannot be run here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    earlier: dict[str, dict[str, Any]] = {}
    recorded = RESULTS / "exactness.json"
    if args.merge and recorded.exists():
        rows = json.loads(recorded.read_text())["rows"]
        earlier = {r["run as"]: r for r in rows if "cases" in r}
    rows = []
    for comparison in everything().values():
        if args.methods and comparison.method not in args.methods:
            if comparison.name in earlier:
                rows.append(earlier[comparison.name])
            continue
        if args.heavy and comparison.oracle not in HEAVY:
            continue
        line = row(comparison)
        if "cases" not in line:
            line = earlier.get(comparison.name, line)
        print(" | ".join(str(v) for v in line.values()), flush=True)
        rows.append(line)
    rows.sort(key=lambda r: (r["method"], r["oracle"]))
    if args.merge or not args.methods:
        done = [r for r in rows if "cases" in r]
        notes = (
            f"{len(done)} comparisons, {sum(r['numbers compared'] for r in done):,} numbers, "
            f"{sum(r['mismatches'] for r in done)} mismatches."
        )
        if args.methods:
            notes += f" Counted now: {', '.join(args.methods)}; the others stand as counted before."
        print(save("exactness", "Every method against the real systems", rows, notes).read_text())
    if wrong := [r for r in rows if r.get("mismatches", 0) > r.get("allowed", 0)]:
        sys.exit(f"{len(wrong)} comparison(s) differ by more than is explained")


if __name__ == "__main__":
    main()
