"""The layout's promises: imports run one way, importing is cheap, every method is documented."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qviz.methods import registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "qviz"
# Each layer may import itself and those before it.
LAYERS = (
    {"core"},
    {"methods"},
    {"models"},
    {"study", "kernels"},
    {"exercises"},
    {"ui"},
    {"cli", "server", "__main__"},
)
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}


def imported_parts(path: Path) -> set[str]:
    """The parts of qviz that a module imports anywhere in it, also inside functions."""
    here = ("qviz", *path.relative_to(PACKAGE).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            found |= {name} if name != "qviz" else {f"qviz.{a.name}" for a in node.names}
    return {name.split(".")[1] for name in found if name.startswith("qviz.")}


@pytest.mark.parametrize(
    "path",
    sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"),
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_imports_run_one_way(path):
    mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert mine in RANK, f"{mine} has no place in the order of the layers"
    wrong = {part for part in imported_parts(path) if RANK.get(part, 0) > RANK[mine]}
    assert not wrong, f"{path.name} in {mine} imports from above: {sorted(wrong)}"


def test_the_layers_are_those_that_exist():
    """A layer that is only planned would look like one that may be imported from."""
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert RANK.keys() == there - {"__init__", "__pycache__", "data"}


def test_the_folders_that_contributors_are_told_of_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| `qviz/")]
    told = {
        name.removeprefix("qviz/").removesuffix("/").removesuffix(".py")
        for line in table
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }
    assert told == RANK.keys() - {"__main__"}


def requirements() -> dict[str, Requirement]:
    """What pyproject.toml declares, extras included, by normalised name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(text) for texts in lists for text in texts]
    return {canonicalize_name(one.name): one for one in found}


def imported_packages() -> dict[str, str]:
    """Name of each foreign package that is imported anywhere → a module that imports it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found |= {name.split(".")[0]: path.name for name in names}
    return {n: p for n, p in found.items() if n != "qviz" and n not in sys.stdlib_module_names}


def test_what_is_imported_is_declared():
    """What comes only because another package needs it goes when that package changes its mind."""
    declared, used = requirements(), imported_packages()
    missing = {n: where for n, where in used.items() if canonicalize_name(n) not in declared}
    assert not missing, f"not in pyproject.toml: {missing}"


def test_packages_whose_inner_parts_are_overridden_have_an_upper_bound():
    declared = requirements()
    for name in ("voila", "jupyter-server"):
        assert any(part.operator == "<" for part in declared[name].specifier), name


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import qviz", ("torch", "transformers", "plotly", "ipywidgets")),
        ("import qviz; qviz.quantize; qviz.Trace", ("transformers", "plotly", "ipywidgets")),
        ("from qviz.ui.views import BitWidthLesson", ("transformers",)),
    ],
)
def test_what_an_import_does_not_load(code, absent):
    script = f"{code}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists():
    import qviz

    for name in qviz.__all__:
        assert getattr(qviz, name) is not None
    with pytest.raises(AttributeError, match="quantize"):
        qviz.nothing_of_the_kind  # noqa: B018


def test_the_registry_is_complete():
    for name, method in registry.methods().items():
        assert method.name == name
        assert method.kind in ("weight", "linear", "cache", "training")
        assert method.needs <= {"inputs", "hessian", "act_absmax", "act_absmean"}
        assert method.source
        assert method.function.__doc__
        assert method.origins.keys() == method.defaults.keys(), name
        assert all(event.formula and event.source and event.tensors for event in method.events)
