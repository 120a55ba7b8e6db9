"""Write docs/coverage.md: which lesson, exactness test and golden vector covers each method.

    python tools/coverage.py

Everything is read from the registry, the course, the sources of lessons and studies, and
tests/exactness; a test compares the page.
"""

import ast
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "coverage.md"
sys.path.insert(0, str(ROOT / "tests"))

from exactness import HEAVY, everything  # noqa: E402

from qviz.kernels.formats import FORMATS  # noqa: E402
from qviz.methods import registry  # noqa: E402
from qviz.ui.views.lessons import LESSONS, Lesson  # noqa: E402

HEAD = """# Coverage

Written by `python tools/coverage.py`. A lesson covers what its page imports, directly or through
the studies it shows. *Compared with* lists the systems and formulas in `tests/exactness/`, with the
number of comparisons; [how many numbers are equal](../bench/results/exactness.md) is recorded with
versions. Systems marked * are built from source or pin other versions, so only `make exactness`
installs them; small golden vectors stand in for some of them in `make test`.

"""
END = """
Defaults, their origin and every event of a method are in [methods.md](methods.md), or printed by
`qviz methods NAME`.
"""


def page() -> str:
    return f"{HEAD}{methods()}\n{lessons()}\n{studies()}{END}"


def methods() -> str:
    """A row for each method of the registry, and one for the number formats."""
    named = {m.name: (m.title, m.source) for m in registry.methods().values()}
    named["formats"] = (
        "Number formats: bits, values, rounding, saturation",
        "IEEE 754; OCP FP8 and MX 1.0",
    )
    rows = [
        [
            f"`{name}`<br>{title}", source, _numbers(name), _compared(name), _golden(name),
            _files(f"tests/methods/test_{name}.py", f"tests/core/test_{name}.py"),
        ]
        for name, (title, source) in named.items()
    ]  # fmt: skip
    heads = ["method", "source", "lessons", "compared with", "golden vectors", "own tests"]
    return _table("Methods", heads, rows)


def lessons() -> str:
    rows = [
        [
            f"{one.number} {one.title}",
            _listed(f"`{name}`" for name in _methods_of(one)),
            _listed(f"`{name}`" for name in _studies_of(one)),
        ]
        for one in LESSONS
    ]
    return _table("Lessons", ["lesson", "methods", "studies"], rows)


def studies() -> str:
    """The modules that combine methods and models, by the first line of their docstring."""
    rows = []
    for file in sorted((ROOT / "qviz" / "study").glob("[a-z]*.py")):
        words = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        where = [str(one.number) for one in LESSONS if file.stem in _studies_of(one)]
        tests = sorted((ROOT / "tests" / "study").glob(f"test_{file.stem}*.py"))
        rows.append(
            [
                f"`qviz.study.{file.stem}`",
                " ".join(words.partition("\n\n")[0].split()),
                _listed(where),
                _files(*(str(test.relative_to(ROOT)) for test in tests)),
            ]
        )
    return _table("Studies", ["module", "what", "lessons", "tests"], rows)


def _numbers(method: str) -> str:
    return _listed(str(one.number) for one in LESSONS if method in _methods_of(one))


def _compared(method: str) -> str:
    """The oracles of a method, each with the number of comparisons."""
    found: dict[str, int] = {}
    for one in everything().values():
        if one.method == method:
            name = f"{one.oracle}{'*' if one.oracle in HEAVY else ''}"
            found[name] = found.get(name, 0) + 1
    return _listed(f"{name}{f' ({count})' if count > 1 else ''}" for name, count in found.items())


def _golden(method: str) -> str:
    """The golden vectors that the tests of a method read."""
    files = [ROOT / "tests" / "exactness" / f"{method}.py"]
    files += [ROOT / "tests" / "methods" / f"test_{method}.py"]
    files += sorted((ROOT / "tests" / "study").glob(f"test_{method}_*.py"))
    text = "".join(f.read_text(encoding="utf-8") for f in files if f.exists())
    names = [f.name for f in sorted((ROOT / "tests" / "golden").glob("*.npz"))]
    said = re.findall(r"[\w{}]+\.npz", text)
    patterns = [re.sub(r"\\{\w+\\}", r"\\w+", re.escape(one)) for one in said]
    return _listed(f"`{n}`" for n in names if any(re.fullmatch(p, n) for p in patterns))


def _methods_of(lesson: Lesson) -> list[str]:
    """The methods that a lesson's page can run, in the order of the registry."""
    found: set[str] = set()
    for module in _reached(lesson.module):
        if module.startswith("qviz.methods."):
            found.add(module.split(".")[2])
        if module == "qviz.kernels.formats":
            found |= {one.method for one in FORMATS.values()}
        if module == "qviz.study.number_formats":
            found.add("formats")
    return [name for name in [*registry.methods(), "formats"] if name in found]


def _studies_of(lesson: Lesson) -> list[str]:
    return sorted(m.split(".")[2] for m in _reached(lesson.module) if m.startswith("qviz.study."))


@cache
def _reached(module: str) -> frozenset[str]:
    """The modules of qviz that a page imports, through its views and studies."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if one in reached:
            continue
        reached.add(one)
        if one.split(".")[1] in ("ui", "study") and one != "qviz.ui.views.lessons":
            waiting += _imports(one)
    return frozenset(reached)


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules of qviz that one module imports, or whose method it names in a call."""
    file = ROOT / Path(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{name.name}" for name in node.names]
            found += [node.module, *(name for name in inside if _exists(name))]
        elif isinstance(node, ast.Call):
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            found += [f"qviz.methods.{t}" for t in texts if t in registry.methods()]
    return tuple(name for name in found if name.startswith("qviz.") and _exists(name))


def _exists(module: str) -> bool:
    file = ROOT / Path(*module.split("."))
    return file.with_suffix(".py").exists() or (file / "__init__.py").exists()


def _files(*paths: str) -> str:
    there = [path for path in paths if (ROOT / path).exists()]
    return _listed(f"[{Path(path).name}](../{path})" for path in there)


def _listed(parts: object) -> str:
    return ", ".join(parts) or "–"  # type: ignore[call-overload]


def _table(title: str, heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table under a heading; | in a cell would end it."""
    lines = [heads, ["---"] * len(heads), *rows]
    text = "\n".join(f"| {' | '.join(c.replace('|', '¦') for c in cells)} |" for cells in lines)
    return f"## {title}\n\n{text}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
