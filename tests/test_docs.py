"""The pages that are written from the code say what the code says."""

import importlib.util
import re
import subprocess
from pathlib import Path

from qviz import __version__, cli
from qviz.methods import registry
from qviz.ui.views.lessons import LESSONS

ROOT = Path(__file__).parents[1]


def script(name):
    """A tool of this repository as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_page_of_methods_is_current(capsys):
    tool = script("method_docs")
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


def test_the_page_of_coverage_is_current():
    """Every method and every lesson has its row, and every golden vector is somebody's."""
    tool = script("coverage")
    text = tool.page()
    assert tool.PAGE.read_text(encoding="utf-8") == text, "run python tools/coverage.py"
    assert all(f"| `{name}`<br>" in text for name in registry.methods())
    assert all(f"| {one.number} {one.title} |" in text for one in LESSONS)
    golden = {file.name for file in (ROOT / "tests" / "golden").glob("*.npz")}
    assert golden and all(f"`{name}`" in text for name in golden)
    assert "| 5, 7" not in text.split("`vector`<br>")[1].split("\n")[0]  # no lesson shows it


#: What has been said in this repository and reads like a translation, and what to write instead.
BANNED = {
    r"makes? good for|made good by": "compensates for, is compensated by",
    r"hands? (it |them )?on\b|handed on": "passes on",
    r"hands its|\bhands on\b": "passes on",
    r"has no meaning with these": "does not apply with",
    r"one recognises": "you can tell",
    r"\bleave \S+ (away|out)\b": "omit",
    r"\btimes (less|fewer|smaller|slower)\b": "N× smaller, N× slower",
    r"damping there was|groups there were": "the previous damping, the old groups",
    r"within the spread as": "no measurable difference from",
    r"output makes of it|inputs make of it": "say what changes",
    r"what becomes of\b|what became of\b": "name the result",
    r"comes? back as\b": "is rounded to",
    r"\bmade as by\b|\bcomputed as by\b": "computed as in",
    r"\bbe had\b|\bbe spoken to\b": "be available, be reached",
    r"\b(is|are) none of ours\b": "say which",
    r"\bwithout a word\b": "silently",
    r"\bis said of\b|\bspeaks? of\b": "describe",
    r"\bweighed by\b": "weighted by",
    r"\b(is|are) no (multiple|level|matrix|number|tie|power)\b": "is not a",
    r"steps? between levels?": "spacing",
    r"steps from the (tie|middle)|half a step (beyond|of)|in steps of a level": "spacings",
    r"\bmoment of the step\b": "stage of the step",
}
#: Where the words are not this project's, or are its rules about them.
QUOTED = (
    "qviz/data/",
    "bench/results/",
    "tests/test_docs.py",
    "tests/golden/",
    "LICENSE",
    "constraints.txt",
    "docs/gptq.png",
)


def test_no_phrase_that_reads_like_a_translation():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [name for name in listed.stdout.split() if not name.startswith(QUOTED)]
    assert len(files) > 200
    found = []
    for name in files:
        text = plain(ROOT / name)
        for phrase, better in BANNED.items():
            for hit in re.finditer(phrase, text, re.IGNORECASE):
                around = text[max(0, hit.start() - 40) : hit.end() + 40]
                found.append(f"{name}: …{around}…: {better}")
    assert not found, "\n".join(found)


def plain(file):
    """The text of a file as it is read: strings in parts joined, comments without their marks."""
    text = file.read_text(encoding="utf-8", errors="ignore")
    text = re.sub(r'"\s*\n\s*[frb]*"', "", text)
    return re.sub(r"\s*\n\s*(#:?|//|\*)?\s*", " ", text)


def test_the_list_of_phrases_finds_them(tmp_path):
    """In strings of several parts, comments and prose alike."""
    source = tmp_path / "said.py"
    source.write_text(
        '# it must be\n# made good by others\nx = (\n    f"what becomes "\n    "of it"\n)\n'
    )
    hits = [p for p in BANNED if re.search(p, plain(source), re.IGNORECASE)]
    assert len(hits) == 2
