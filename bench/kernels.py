"""Real kernels beside 16-bit weights: time, bandwidth, errors, and where they stop being faster.

python bench/kernels.py [--device cpu|cuda] [--large] [--minutes 5.5] [--into DIR]
                        [--formats FORMAT …] [--batches N …]

Needs torch and numpy; triton, bitsandbytes and llama-cpp-python take part where they are installed.
Runs from a bare checkout with PYTHONPATH=. and writes bench/results/kernels_{cpu,cuda}.json, .md
and the measurement that ships, qviz/data/kernels/DEVICE.json, below DIR (the repository): the first
two after each format, so that a run that is cut short leaves what it has, the last at the end.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from record import table as markdown

from qviz.kernels import Measurement, measure, records, table
from qviz.kernels.formats import FORMATS
from qviz.kernels.measure import synthetic_weight
from qviz.kernels.registry import BASELINE, default_device, usable
from qviz.kernels.results import Point
from qviz.kernels.timing import Timing

ROOT = Path(__file__).parents[1]
BIG = (8192, 28672)  # the down projection of Llama-3.1-70B
SHAPES = {"cpu": [(4096, 4096), (2048, 8192)], "cuda": [BIG, (4096, 4096)]}
BATCHES = (1, 4, 16, 64, 256)
CUDA_FORMATS = ("int4-g128", "int4-asym-g128", "nf4-g64", "int8", "fp8")
BUDGET = 0.7  # of a copy's bandwidth, for 4-bit weights with 16-bit inputs at batch 1
RIVAL = "bitsandbytes"


def formats_to_measure(device: torch.device, shape: tuple[int, int]) -> list[str]:
    """On CUDA, and of the big weight, those of the budget; else all that a kernel takes here."""
    names = CUDA_FORMATS if device.type == "cuda" or shape == BIG else tuple(FORMATS)
    weight = synthetic_weight((256, 512))
    return [n for n in names if len(usable(FORMATS[n].quantize(weight), device)) > 1]


def measure_all(
    device: torch.device,
    shapes: list[tuple[int, int]],
    seconds: float,
    stopped: Callable[[], bool],
    *,
    formats: Sequence[str] | None = None,
    batches: Sequence[int] = BATCHES,
    keep: Callable[[Measurement], object] = lambda found: None,
) -> Measurement:
    """Every shape with every format, in one measurement; `keep` is given what there is after each
    format."""
    found: Measurement | None = None
    start = time.perf_counter()

    def so_far(part: Measurement) -> None:
        keep(part if found is None else found.joined(part))

    for shape in shapes:
        one = measure(
            shape,
            formats or formats_to_measure(device, shape),
            batches,
            device=device,
            seconds=seconds,
            ceilings=None if found is None else found.ceilings,
            progress=told(shape, start),
            stopped=stopped,
            keep=so_far,
        )
        found = one if found is None else found.joined(one)
    assert found is not None
    return found


def told(shape: tuple[int, int], start: float) -> Callable[[int, int, str], None]:
    """Progress as lines of stderr, with the seconds since the start."""

    def say(done: int, total: int, text: str) -> None:
        passed = time.perf_counter() - start
        line = f"{passed:6.1f} s  {shape[0]}×{shape[1]} {done}/{total} {text}"
        print(line, file=sys.stderr, flush=True)

    return say


# ---------------------------------------------------------------------- the verdict


def verdict(found: Measurement) -> list[str]:
    """Sentences: the 4-bit kernels at batch 1 with the big weight, against budget and rival."""
    points = found.select(shape=BIG, batch=1)
    four = [p for p in points if p.kernel != BASELINE and is_w4a16(p)]
    rivals = [p for p in four if p.kernel.startswith(RIVAL)]
    ours = [p for p in four if p not in rivals]
    if found.machine["device"] == "CPU" or not ours:
        return [
            f"Budget (4-bit weights of {BIG[0]}×{BIG[1]} at batch 1 on a GPU: {100 * BUDGET:.0f} % "
            f"of a copy's bandwidth): not measured here."
        ]
    said = []
    for p in sorted(ours, key=lambda p: p.time.median):
        share = found.bandwidth_share(p)
        word = "met" if share >= BUDGET else "missed"
        said.append(
            f"{p.kernel} with {p.format}: {100 * share:.0f} % of a copy's bandwidth, budget of "
            f"{100 * BUDGET:.0f} % {word}; {beside(found, p, rivals)}."
        )
    return said


def beside(found: Measurement, point: Point, rivals: list[Point]) -> str:
    """How it compares with the fastest rival. Formats are measured one after the other, so each
    is taken relative to the 16-bit product that ran in turns with it."""
    if not rivals:
        return f"{RIVAL} was not measured beside it"
    best = max(rivals, key=found.speedup)
    mine, theirs = relative(found, point), relative(found, best)
    if mine.overlaps(theirs):
        return f"within the spread of {best.kernel} with {best.format}"
    side = "ahead of" if mine.median < theirs.median else "behind"
    ratio = theirs.median / mine.median
    return f"{side} {best.kernel} with {best.format} ({ratio:.2f} times as fast)"


def relative(found: Measurement, point: Point) -> Timing:
    """Its time in units of the 16-bit product's beside it."""
    unit, time = found.baseline(point).time.median, point.time
    return Timing(time.median / unit, time.low / unit, time.high / unit, time.repeats)


def is_w4a16(point: Point) -> bool:
    """Four bits a weight and a little for scales, inputs multiplied in 16 bits."""
    bits = 8 * point.weight_bytes / (point.shape[0] * point.shape[1])
    return bits < 5.2 and point.arithmetic in ("bfloat16", "float16")


# ---------------------------------------------------------------------- what is written


def plain_rows(found: Measurement) -> list[dict[str, Any]]:
    """One line of numbers for each point."""
    return [
        {
            "format": p.format,
            "shape": f"{p.shape[0]}×{p.shape[1]}",
            "batch": p.batch,
            "kernel": p.kernel,
            "dtype": p.dtype,
            "median, s": p.time.median,
            "p10, s": p.time.low,
            "p90, s": p.time.high,
            "samples": p.time.repeats,
            "× 16-bit": found.speedup(p),
            "weight, bytes": p.weight_bytes,
            "of copy": found.bandwidth_share(p),
            "of product": found.rate_share(p),
            "error": p.error,
            "total error": p.total_error,
            "copies": p.copies,
            "called alone, s": None if p.launch is None else p.launch.median,
            "note": p.note,
        }
        for p in found.points
    ]


def write(found: Measurement, root: Path) -> Path:
    """The files of the results and, once it is complete, the one that ships; returns the one for
    people."""
    kind = "cpu" if found.machine["device"] == "CPU" else "cuda"
    if found.complete:  # nothing ships that was cut short
        records.save(found, root / "qviz" / "data" / "kernels" / records.file_name(found))
    results = root / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    title = f"Kernels on {records.title(found)}"
    data = {
        "title": title,
        "conditions": dict(found.machine),
        "rows": plain_rows(found),
        "notes": verdict(found),
        "left out": dict(found.left_out),
        "complete": found.complete,
    }
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (results / f"kernels_{kind}.json").write_text(text, encoding="utf-8")
    path = results / f"kernels_{kind}.md"
    path.write_text(page(found, title), encoding="utf-8")
    return path


def page(found: Measurement, title: str) -> str:
    parts = [f"# {title}", f"{table.machine_text(found.machine)}."]
    parts += [table.ceilings_text(found.ceilings).replace("\n", "; ") + ".", *verdict(found)]
    parts.append(
        "Cold weights: copies that exceed the last-level cache take turns, and so do the kernels. "
        "Times are medians with the 10th and 90th percentile."
    )
    for format, shape in table.sections(found):
        parts.append(f"## {format}, {shape[0]}×{shape[1]}")
        parts.append(markdown(table.rows(found, format, shape)))
        parts.append("\n".join(f"- {said}" for said in table.remarks(found, format, shape)))
    if found.left_out:
        parts.append("## Left out")
        parts.append("\n".join(f"- {line}" for line in table.left_out_lines(found)))
    if not found.complete:
        parts.append("The time was up before everything was measured.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--large", action="store_true", help="on a CPU, 8192×28672 as well")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each kernel and batch")
    parser.add_argument("--minutes", type=float, default=5.5, help="after which it stops")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), help="only these")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="only these")
    parser.add_argument("--into", type=Path, default=ROOT, help="root of what is written")
    args = parser.parse_args()
    device = default_device() if args.device is None else torch.device(args.device)
    shapes = SHAPES[device.type] + ([BIG] if args.large and device.type == "cpu" else [])
    end = time.perf_counter() + 60 * args.minutes
    found = measure_all(
        device,
        shapes,
        args.seconds,
        lambda: time.perf_counter() > end,
        formats=args.formats,
        batches=args.batches,
        keep=lambda found: write(found, args.into),
    )
    print(write(found, args.into).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
