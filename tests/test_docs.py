"""The pages that are written from the code say what the code says."""

import importlib.util
import re
from pathlib import Path

from qviz import __version__, cli
from qviz.methods import registry

ROOT = Path(__file__).parents[1]


def test_the_page_of_methods_is_current(capsys):
    spec = importlib.util.spec_from_file_location("method_docs", ROOT / "tools" / "method_docs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run python tools/method_docs.py"
    for name, method in registry.methods().items():
        assert cli.main(["methods", name]) == 0
        printed = capsys.readouterr().out
        assert printed.strip() in tool.page()
        assert all(f"`{option}`" in printed for option in method.defaults)


def test_one_version_everywhere():
    """What is released next stands above what was released last, and both are this package's."""
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in changes.splitlines() if line[:3] == "## "]
    assert headings[:2] == ["Unreleased", __version__]


def test_what_ci_runs_is_what_a_machine_runs():
    """The forge's workflow and pre-commit call what .ci/run and make check do, nothing else."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "- run: .ci/run\n" in workflow and workflow.count("run:") == 1
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    checks = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ncheck:")[1].split("\n\n")[0]
    called = re.findall(r"\$\(BIN\)/(.+)", checks)
    assert len(called) == 3
    assert all(f"entry: .venv/bin/{one.removesuffix(' .')}\n" in hooks for one in called)
