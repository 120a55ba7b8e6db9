"""Put small faults into the package, one at a time, and see which of them no test notices.

    python tools/put_faults.py [--count 60] [--seed 0] [--only FILE …] [--save FILE.json] [--list]

The faults (`faults.py`) are drawn evenly over the pages' words, figures, tables, messages and the
core. Each is put into a copy of the checkout in a temporary folder; the tests that concern its
module run there, those nearest to it in the imports first, until one fails. What survives is a
sentence or a number that could be wrong tomorrow without anybody knowing.

mutmut and cosmic-ray were considered. They change operators and constants, not words, units or
the fields of f-strings, which is where a page lies; they rewrite files of the checkout, run one
command for every fault and choose none evenly. Of either only the loop would be left, which is
this file.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import platformdirs
from faults import KINDS, Fault, faults_in

ROOT = Path(__file__).resolve().parents[1]
#: Where words and figures are made, and what all of them rest on.
PLACES = (
    "qviz/ui/views/*_words.py", "qviz/ui/views/arithmetic.py", "qviz/ui/views/cost.py",
    "qviz/ui/views/spacing.py", "qviz/ui/views/scale_sharing.py", "qviz/ui/views/gallery.py",
    "qviz/ui/views/gptq_beside.py", "qviz/ui/views/kernels_*.py", "qviz/ui/figures/*.py",
    "qviz/study/*_words.py", "qviz/study/gptq_verdicts.py", "qviz/study/gptq_compared.py",
    "qviz/study/gptq_contrasts.py", "qviz/study/gptq_plan.py", "qviz/server/app.py",
    "qviz/server/options.py", "qviz/cli.py", "qviz/core/*.py",
)  # fmt: skip
#: Faults that change nothing that anybody could see, with the reason: not put in, but named.
EQUIVALENT: dict[str, str] = {}

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", ".binder-venv", "dist", "build"
)
EXAMPLES = "tests/test_docstrings.py"
MOST_TESTS = 6  # files of tests for one module: the nearest
MOST_SECONDS = 100  # that these may take together without a fault


@dataclass(frozen=True)
class Outcome:
    """What became of a fault; `noticed` names the first test that failed, empty: none did."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    noticed: str
    seconds: float


# ---------------------------------------------------------------- which tests concern which module


def imported(path: Path, root: Path) -> set[str]:
    """The files below root that a file imports at any depth of its functions, or names as a
    string, to be imported when it is needed."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.update([node.value] if re.fullmatch(r"\w+(\.\w+)+", node.value) else [])
    places = [name.replace(".", "/") + end for name in names for end in (".py", "/__init__.py")]
    files = [base / place for place in places for base in (root, root / "tests")]
    return {str(file.relative_to(root)) for file in files if file.is_file()}


def test_map(root: Path, files: Iterable[str]) -> dict[str, list[str]]:
    """Module → the test files that reach it over imports, the nearest first."""
    every = {str(p.relative_to(root)): p for p in root.rglob("*.py") if ".venv" not in str(p)}
    importers = defaultdict(set)
    for name, path in every.items():
        for target in imported(path, root):
            importers[target].add(name)
    found = {}
    for file in files:
        stem = Path(file).stem
        near, seen, tests = [file], {file}, {}
        for distance in range(1, 5):
            near = sorted({one for name in near for one in importers[name]} - seen)
            seen.update(near)
            for name in near:
                if Path(name).name.startswith("test_") and "browser" not in name:
                    tests[name] = (distance - (Path(name).stem == f"test_{stem}"), name)
        found[file] = sorted(tests, key=tests.__getitem__)
    return found


def examples(copy: "Copy", files: Iterable[str]) -> dict[str, list[str]]:
    """Module → the tests that run its docstrings' examples."""
    if not (copy.root / EXAMPLES).is_file():
        return {file: [] for file in files}
    listed = copy.run([EXAMPLES], 600, "--collect-only")[1].splitlines()
    modules = {file: file.removesuffix(".py").replace("/", ".") for file in files}
    return {file: [t for t in listed if f"[{name}." in t] for file, name in modules.items()}


# ------------------------------------------------------------------------------------ running tests


class Copy:
    """A copy of the checkout in which faults are put, and tests run: without a network, with the
    calibrations that this user has, and with nothing kept of what a fault has made of them."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = folder / "copy"
        shutil.copytree(root, self.root, ignore=NOT_COPIED)
        self.cache = folder / "cache" / "calibration"
        self.cache.mkdir(parents=True)
        chosen = os.environ.get("QVIZ_CACHE") or platformdirs.user_cache_dir("qviz")
        for file in (Path(chosen) / "calibration").glob("*.safetensors"):
            (self.cache / file.name).symlink_to(file)

    def run(self, tests: Sequence[str], limit: float, *options: str) -> tuple[int | None, str]:
        """(pytest's exit status, None where the time was up; what it printed)."""
        environment = {
            **os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1",
            "QVIZ_CACHE": str(self.cache.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [
            sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider",
            "-m", "not browser and not slow", *options, *tests,
        ]  # fmt: skip
        before = set(self.cache.iterdir())
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            process = subprocess.Popen(
                command, cwd=self.root, env=environment, stdout=said, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            status: int | None = None
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                pass
            finally:
                end(process)
            said.seek(0)
            text = said.read()
        for made in set(self.cache.iterdir()) - before if "--junitxml" not in options else ():
            made.unlink()
        return status, text

    def put(self, file: str, source: str) -> None:
        path = self.root / file
        path.write_text(source, encoding="utf-8")
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            stale.unlink()  # it is told from the new one by whole seconds


def end(process: "subprocess.Popen[bytes]") -> None:
    """End it and what it has started: a server of a test outlives a test that was cut off."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.wait()
    else:
        process.wait()


def measured(copy: Copy, tests: Sequence[str]) -> dict[str, float]:
    """Test file → its seconds without a fault, every module as `ast.unparse` writes it."""
    report = copy.root.parent / "times.xml"
    status, text = copy.run(tests, 3600, "--junitxml", str(report), "-o", "junit_family=xunit1")
    if status != 0:
        raise SystemExit(f"Tests fail without any fault; mend them first:\n{text[-4000:]}")
    seconds: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        seconds[case.get("file") or ""] += float(case.get("time") or 0)
    return seconds


def nearest(tests: Sequence[str], seconds: dict[str, float]) -> list[str]:
    """As many of them, the nearest first, as the time allows; one in any case."""
    chosen: list[str] = []
    for test in tests:
        if len(chosen) < MOST_TESTS and (
            not chosen or sum(seconds[t] for t in [*chosen, test]) <= MOST_SECONDS
        ):
            chosen.append(test)
    return chosen


# ------------------------------------------------------------------------------------------- faults


def drawn(faults: Sequence[Fault], count: int, seed: int) -> list[Fault]:
    """`count` of them, evenly over files and, in each file, the kinds that were least drawn."""
    rng = random.Random(seed)
    left: dict[str, dict[str, list[Fault]]] = defaultdict(lambda: defaultdict(list))
    for fault in faults:
        left[fault.file][fault.kind].append(fault)
    for kinds in left.values():
        for some in kinds.values():
            rng.shuffle(some)
    files, chosen, so_far = sorted(left), [], Counter[str]()
    rng.shuffle(files)
    while len(chosen) < count and any(left.values()):
        for file in files:
            kinds = {kind: some for kind, some in left[file].items() if some}
            left[file] = defaultdict(list, kinds)
            if kinds and len(chosen) < count:
                kind = min(sorted(kinds), key=lambda k: (so_far[k], KINDS.index(k)))
                chosen.append(kinds[kind].pop())
                so_far[kind] += 1
    return chosen


def try_one(copy: Copy, fault: Fault, tests: Sequence[str], limit: float) -> Outcome:
    original = (copy.root / fault.file).read_text(encoding="utf-8")
    began = time.monotonic()
    copy.put(fault.file, fault.source)
    try:
        status, text = copy.run(tests, limit, "--hypothesis-seed=0")
    finally:
        copy.put(fault.file, original)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    noticed = {0: "", None: f"not done in {limit:.0f} s"}.get(
        status, failed[1] if failed else f"pytest ended with {status}"
    )
    return Outcome(
        fault.file, fault.line, fault.kind, fault.before, fault.after, noticed,
        round(time.monotonic() - began, 1),
    )  # fmt: skip


def table(outcomes: Sequence[Outcome]) -> str:
    """By kind: put in, noticed, survived."""
    lines = [f"{'kind':<14}{'put in':>8}{'noticed':>9}{'survived':>10}"]
    for kind in [*KINDS, "all"]:
        some = [o for o in outcomes if kind in (o.kind, "all")]
        if some:
            left = sum(not o.noticed for o in some)
            lines.append(f"{kind:<14}{len(some):>8}{len(some) - left:>9}{left:>10}")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="faults to put in (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="only in these modules")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the outcomes as JSON")
    parser.add_argument("--list", action="store_true", help="only say which would be put in")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (this one)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every fault was noticed, 1 when some survive."""
    args = arguments(argv)
    root, began = args.root.resolve(), time.monotonic()
    files = args.only or sorted({str(p.relative_to(root)) for g in PLACES for p in root.glob(g)})
    every = [
        f for file in files for f in faults_in(file, (root / file).read_text(encoding="utf-8"))
    ]
    alike = [fault for fault in every if fault.name in EQUIVALENT]
    chosen = drawn([f for f in every if f.name not in EQUIVALENT], args.count, args.seed)
    print(f"{len(chosen)} of {len(every)} faults in {len(files)} modules, seed {args.seed}")
    if args.list:
        for fault in chosen:
            print(f"{fault.file}:{fault.line}: {fault.kind}: {fault.before} → {fault.after}")
        return 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        outcomes = put_in(Copy(root, Path(folder)), chosen)
    seconds = time.monotonic() - began
    print(f"\n{table(outcomes)}\n{seconds / 60:.1f} minutes")
    for fault in alike:
        print(f"changes nothing: {fault.name} ({EQUIVALENT[fault.name]})")
    if args.save is not None:
        found = {"seed": args.seed, "seconds": round(seconds), "of": len(every),
                 "outcomes": [asdict(o) for o in outcomes]}  # fmt: skip
        args.save.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
    return int(any(not o.noticed for o in outcomes))


def put_in(copy: Copy, chosen: Sequence[Fault]) -> list[Outcome]:
    """Put in one after the other, and say as it goes."""
    files = sorted({fault.file for fault in chosen})
    tests = test_map(copy.root, files)
    alone = [file for file in files if not tests[file]]
    if alone:
        raise SystemExit(f"No test imports {', '.join(alone)}, however far round")
    wanted = sorted({t for some in tests.values() for t in some[:MOST_TESTS]})
    for file in files:
        text = (copy.root / file).read_text(encoding="utf-8")
        copy.put(file, ast.unparse(ast.parse(text)))
    documented = examples(copy, files)
    seconds = measured(copy, [*wanted, *(e for some in documented.values() for e in some)])
    outcomes = []
    for i, fault in enumerate(chosen, 1):
        near = nearest(tests[fault.file], seconds)
        limit = 60 + 3 * sum(seconds[test] for test in near)
        done = try_one(copy, fault, [*documented[fault.file], *near], limit)
        outcomes.append(done)
        said = f"{done.file}:{done.line} {done.kind}: {done.before} → {done.after}"
        print(f"{i}/{len(chosen)} {said}: {done.noticed or 'SURVIVES'}", flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
