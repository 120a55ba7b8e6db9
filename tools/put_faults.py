"""Put small faults into the package, one at a time, and see which of them no test notices.

    python tools/put_faults.py [--count 60] [--seed 0] [--only FILE …] [--save FILE.json] [--list]

The faults (`faults.py`) are drawn evenly over the pages' words and tables, figures, experiments,
wiring, the server and the core. Each is put into a copy of the checkout in a temporary folder;
tests run there until one fails. Each test file near its module in the imports has run once
without a fault, and it is known which functions each of its tests calls: those that call the
faulty one come first, then those that share a page or a process with them, and no others. What
survives is a sentence, a number or a control that could be wrong tomorrow without anybody knowing.

mutmut and cosmic-ray were considered. They change operators and constants, not words, units or
the fields of f-strings, which is where a page lies; they rewrite files of the checkout, run one
command for every fault and choose none evenly. Of either only the loop would be left, which is
this file.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from faults import KINDS, Fault, faults_in

ROOT = Path(__file__).resolve().parents[1]
#: Where words and figures are made, what puts them on a page, and what all of them rest on.
#: A module belongs to the first area that names it.
AREAS = {
    "words": (
        "qviz/ui/views/*_words.py", "qviz/study/*_words.py", "qviz/ui/views/arithmetic.py",
        "qviz/ui/views/cost.py", "qviz/ui/views/spacing.py", "qviz/ui/views/*_claims.py",
        "qviz/study/gptq_verdicts.py", "qviz/study/gptq_compared.py",
        "qviz/study/gptq_contrasts.py",
    ),
    "figures": ("qviz/ui/figures/*.py", "qviz/ui/views/*_charts.py"),
    "study": ("qviz/study/*.py",),
    "wiring": ("qviz/ui/views/*.py",),
    "server": (
        "qviz/server/app.py", "qviz/server/words.py", "qviz/server/options.py", "qviz/cli.py",
    ),
    "core": ("qviz/core/*.py",),
}  # fmt: skip
#: Faults that change nothing that anybody could see, with the reason: not put in, but named.
EQUIVALENT = {
    "qviz/core/granularity.py: (torch.zeros_like(rows), torch.zeros_like(columns)) → "
    "(torch.zeros_like(columns), torch.zeros_like(rows))": "zeros, which broadcast either way",
    "qviz/study/clipping.py: known - back → back - known": "only its size counts",
}

NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", ".binder-venv", "dist", "build"
)
EXAMPLES = "tests/test_docstrings.py"
NO_TESTS = 5  # pytest's exit status where a file has none that are to run
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "plotly.graph_objects", "anywidget", "pytest"])
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the process that the others are forked from
MOST_FILES = 4  # of tests for one module: the nearest
MOST_SECONDS = 60  # that the tests for one fault may take together, without it


@dataclass(frozen=True)
class Outcome:
    """The outcome of a fault; `noticed` names the first test that failed, empty: none did."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    noticed: str
    seconds: float

    @property
    def area(self) -> str:
        return area_of(self.file)


def area_of(file: str) -> str:
    """The first area that names a module; empty for one that was only named on the command line."""
    named = (a for a, globs in AREAS.items() if any(Path(file).match(glob) for glob in globs))
    return next(named, "")


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
        near, seen, tests = [file], {file}, {}
        for distance in range(1, 5):
            near = sorted({one for name in near for one in importers[name]} - seen)
            seen.update(near)
            for name in near:
                if Path(name).name.startswith("test_") and "browser" not in name:
                    tests[name] = (distance, *_unlike(name, file))
        found[file] = sorted(tests, key=tests.__getitem__)
    return found


def _unlike(test: str, file: str) -> tuple[int, bool, str]:
    """For sorting: tests mirror the package, so names and folders say which are a module's own."""
    words, own = (set(Path(name).stem.split("_")) for name in (test, file))
    return -len(words & own), Path(test).parts[1] not in Path(file).parts, test


def examples(path: Path, file: str) -> list[list[str]]:
    """What pytest is told to run the examples of a module's docstrings, where there are any."""
    if ">>>" not in path.read_text(encoding="utf-8"):
        return []
    return [[EXAMPLES, "-k", file.removesuffix("py").replace("/", ".")]]


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

    def run(
        self, tests: Sequence[str], limit: float, *options: str, plugin: Any = None
    ) -> tuple[int | None, str]:
        """(pytest's exit status, None where the time was up; what it printed)."""
        command = [
            "-q", "-x", "--no-header", "-p", "no:cacheprovider", "-m", "not browser and not slow",
            *options, *tests,
        ]  # fmt: skip
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as said:
            process = FORKS.Process(
                target=child, args=(command, self.root, self.cache, said.name, plugin)
            )
            process.start()
            process.join(limit)
            status = process.exitcode
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)  # a server that a test has started, too
            process.join()
            return status, said.read()

    @contextlib.contextmanager
    def having(self, file: str, source: str) -> Iterator[None]:
        """A file with another text for a while; no calibration that was captured with it stays."""
        original, cached = (self.root / file).read_text("utf-8"), set(self.cache.iterdir())
        self.put(file, source)
        try:
            yield
        finally:
            self.put(file, original)
            for made in set(self.cache.iterdir()) - cached:
                made.unlink()

    def put(self, file: str, source: str) -> None:
        path = self.root / file
        path.write_text(source, encoding="utf-8")
        for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            stale.unlink()  # it is told from the new one by whole seconds


def child(command: list[str], root: Path, cache: Path, said: str, plugin: Any) -> None:
    """Run pytest in a process that has torch and the like already."""
    os.setsid()
    out = os.open(said, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ |= {
        "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "QVIZ_CACHE": str(cache.parent),
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    sys.dont_write_bytecode = True
    sys.path[0] = str(root)
    os.chdir(root)
    status = int(pytest.main(command, [FirstFailure(), *([] if plugin is None else [plugin])]))
    sys.stdout.flush()
    os._exit(status)  # threads that a test has left behind would be waited for


class FirstFailure:
    """A plugin of pytest: an example that fails is enough, a smaller one takes minutes to find."""

    def pytest_configure(self) -> None:
        """After the settings that the tests bring along."""
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("first failure", settings(), phases=phases, database=None)
        settings.load_profile("first failure")


@dataclass
class Called:
    """A plugin of pytest: which functions of the checkout each test calls, written to `path`.

    Tests of a file that share a parametrized fixture share what it has set up: they are of one
    `group`. Another process may call anything: a test that starts one is `apart`.
    """

    root: Path
    path: Path

    def pytest_configure(self) -> None:
        self._tests: list[dict[str, Any]] = []
        self._calls: set[tuple[str, str]] = set()
        self._apart = False
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, _: object) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
            self._apart = True

    def _on_call(self, frame: Any, _event: str, _: object) -> None:
        code = frame.f_code
        self._calls.add((code.co_filename, code.co_qualname))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self._calls, self._apart, began = set(), False, time.monotonic()
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            here = f"{self.root}{os.sep}"
            self._tests.append({
                "name": item.nodeid, "group": group_of(item), "apart": self._apart,
                "seconds": round(time.monotonic() - began, 3),
                "calls": sorted({
                    f"{file.removeprefix(here)}:{name.partition('.<locals>')[0]}"
                    for file, name in self._calls if file.startswith(here)
                }),
            })  # fmt: skip

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self._tests), encoding="utf-8")


def group_of(item: Any) -> str:
    """A test's file, and which of the parametrized fixtures it uses."""
    marks = [mark.args[0] for mark in item.iter_markers("parametrize")]
    own = {name.strip() for m in marks for name in (m.split(",") if isinstance(m, str) else m)}
    indices = getattr(getattr(item, "callspec", None), "indices", {})
    shared = [f"{name}={at}" for name, at in sorted(indices.items()) if name not in own]
    return " ".join([item.nodeid.partition("::")[0], *shared])


@dataclass(frozen=True)
class InOrder:
    """A plugin of pytest: these tests alone, in this order. All of them where one is gone: what a
    fault has made of their names is for the tests to notice."""

    names: tuple[str, ...]

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        by_name = {item.nodeid: item for item in items}
        if by_name.keys() >= set(self.names):
            chosen = [by_name[name] for name in self.names]
            config.hook.pytest_deselected(items=[one for one in items if one not in chosen])
            items[:] = chosen


class Tests:
    """The test files of a copy, and what each test of them calls."""

    def __init__(self, copy: Copy, files: Sequence[str], known: Mapping[str, Any]) -> None:
        self._copy, self.known = copy, dict(known)
        self._map = test_map(copy.root, files)
        alone = [file for file in files if not self._map[file]]
        if alone:
            raise SystemExit(f"No test imports {', '.join(alone)}, however far round")

    def of(self, fault: Fault) -> tuple[list[str], float]:
        """(tests that can notice a fault, those that call its function first, quick ones before
        slow ones, and no more than the time allows; their seconds)."""
        near = {file: self._called(file) for file in self._map[fault.file][:MOST_FILES]}
        ranked = []
        for file, tests in near.items():
            reach = [one for one in tests if self._calls(one, fault)]
            groups = {one["group"] for one in reach}
            for one in tests:
                if one["group"] in groups or one["apart"]:
                    rank = 0 if one in reach else 1 if one["group"] in groups else 2
                    ranked.append((rank, sum(r["seconds"] for r in reach), file, one))
        ranked.sort(key=lambda r: (*r[:3], r[3]["seconds"]))
        chosen, seconds = [], 0.0
        for *_, one in ranked:
            if not chosen or seconds + one["seconds"] <= MOST_SECONDS:
                chosen.append(one["name"])
                seconds += one["seconds"]
        return chosen, seconds

    @staticmethod
    def _calls(test: Mapping[str, Any], fault: Fault) -> bool:
        """What stands outside functions is used by whoever calls one of the module."""
        if fault.function:
            return f"{fault.file}:{fault.function}" in test["calls"]
        return any(name.startswith(f"{fault.file}:") for name in test["calls"])

    def _called(self, file: str) -> list[dict[str, Any]]:
        """Found out once, without a fault."""
        if file not in self.known:
            with tempfile.NamedTemporaryFile("r", encoding="utf-8") as found:
                plugin = Called(self._copy.root, Path(found.name))
                status, text = self._copy.run([file], 1800, plugin=plugin)
                if status not in (0, NO_TESTS):
                    raise SystemExit(
                        f"{file} fails without any fault; mend it first:\n{text[-4000:]}"
                    )
                self.known[file] = json.load(found)
        return list(self.known[file])


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
    """The tests, and then the examples in the module's docstrings: these import all."""
    began, noticed = time.monotonic(), ""
    files = list(dict.fromkeys(name.partition("::")[0] for name in tests))
    documented = examples(copy.root / fault.file, fault.file)
    with copy.having(fault.file, fault.source):
        for some, plugin in [(files, InOrder(tuple(tests))), *((one, None) for one in documented)]:
            if not some:
                continue  # no test calls the function
            status, text = copy.run(some, limit, "--hypothesis-seed=0", plugin=plugin)
            noticed = verdict(status, text, limit)
            if noticed:
                break
    return Outcome(
        fault.file, fault.line, fault.kind, fault.before, fault.after, noticed,
        round(time.monotonic() - began, 1),
    )  # fmt: skip


def verdict(status: int | None, text: str, limit: float) -> str:
    """What noticed a fault; nothing did where it is empty. A run that ends otherwise is no news of
    the fault: SystemExit with what it said."""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    if status is None:
        return f"not done in {limit:.0f} s"
    if status in (0, NO_TESTS):
        return ""
    if failed is None and status > 0:
        raise SystemExit(f"pytest ended with {status} and without a failing test:\n{text[-4000:]}")
    return failed[1] if failed else f"ended by signal {-status}"


def table(outcomes: Sequence[Outcome]) -> str:
    """By kind, by area: put in, noticed, survived."""
    lines = [f"{'':<14}{'put in':>8}{'noticed':>9}{'survived':>10}"]
    for name in [*KINDS, *AREAS, "all"]:
        some = [o for o in outcomes if name in (o.kind, o.area, "all")]
        if some:
            left = sum(not o.noticed for o in some)
            lines.append(f"{name:<14}{len(some):>8}{len(some) - left:>9}{left:>10}")
    return "\n".join(lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="faults to put in (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="only in these modules")
    parser.add_argument("--area", nargs="+", choices=AREAS, help="only in these areas")
    parser.add_argument(
        "--again", type=Path, metavar="FILE",
        help="only what survived in the run that saved this: whether it still does",
    )  # fmt: skip
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the outcomes as JSON")
    parser.add_argument(
        "--times", type=Path, metavar="FILE",
        help="what an earlier run saved: test files that are unchanged do not run again without "
        "a fault",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="only say which would be put in")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (this one)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every fault was noticed, 1 when some survive."""
    args = arguments(argv)
    root, began = args.root.resolve(), time.monotonic()
    files = args.only or modules(root, args.area or AREAS)
    every = [
        f for file in files for f in faults_in(file, (root / file).read_text(encoding="utf-8"))
    ]
    alike = [fault for fault in every if fault.name in EQUIVALENT]
    usable = [fault for fault in every if fault.name not in EQUIVALENT]
    chosen = (
        drawn(usable, args.count, args.seed) if args.again is None else left(usable, args.again)
    )
    print(f"{len(chosen)} of {len(every)} faults in {len(files)} modules, seed {args.seed}")
    if args.list:
        for fault in chosen:
            print(f"{fault.file}:{fault.line}: {fault.kind}: {fault.before} → {fault.after}")
        return 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        copy, faulty = Copy(root, Path(folder)), sorted({fault.file for fault in chosen})
        for file in faulty:  # written as they will be with a fault, but without one
            copy.put(file, ast.unparse(ast.parse((root / file).read_text(encoding="utf-8"))))
        tests = Tests(copy, faulty, known(root, args.times))
        outcomes = put_in(copy, chosen, tests)
    seconds = time.monotonic() - began
    print(f"\n{table(outcomes)}\n{seconds / 60:.1f} minutes")
    for fault in alike:
        print(f"changes nothing: {fault.name} ({EQUIVALENT[fault.name]})")
    if args.save is not None:
        found = {
            "seed": args.seed, "seconds": round(seconds), "of": len(every),
            "outcomes": [asdict(o) for o in outcomes],
            "tests": {file: [stamp(root / file), called] for file, called in tests.known.items()},
        }  # fmt: skip
        args.save.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return int(any(not o.noticed for o in outcomes))


def modules(root: Path, areas: Iterable[str]) -> list[str]:
    found = {str(p.relative_to(root)) for a in areas for g in AREAS[a] for p in root.glob(g)}
    return sorted(file for file in found if area_of(file) in areas)


def left(faults: Sequence[Fault], saved: Path) -> list[Fault]:
    """Those that survived in an earlier run."""
    outcomes = json.loads(saved.read_text(encoding="utf-8"))["outcomes"]
    names = {f"{o['file']}: {o['before']} → {o['after']}" for o in outcomes if not o["noticed"]}
    return [fault for fault in faults if fault.name in names]


def stamp(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def known(root: Path, saved: Path | None) -> dict[str, Any]:
    """What an earlier run found out of test files that are as they were then."""
    if saved is None:
        return {}
    tests = json.loads(saved.read_text(encoding="utf-8"))["tests"]
    there = ((root / file, file, of, called) for file, (of, called) in tests.items())
    return {
        file: called for path, file, of, called in there if path.is_file() and stamp(path) == of
    }


def put_in(copy: Copy, chosen: Sequence[Fault], tests: Tests) -> list[Outcome]:
    """Put in one after the other, and say as it goes."""
    outcomes = []
    for i, fault in enumerate(chosen, 1):
        names, seconds = tests.of(fault)
        done = try_one(copy, fault, names, 180 + 6 * seconds)
        outcomes.append(done)
        said = f"{done.file}:{done.line} {done.kind}: {done.before} → {done.after}"
        print(
            f"{i}/{len(chosen)} {said}: {done.noticed or 'SURVIVES'} "
            f"({len(names)} tests, {done.seconds:.0f} s)", flush=True,
        )  # fmt: skip
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
