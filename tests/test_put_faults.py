"""The tool that puts faults in: it makes each kind, finds the tests, and tells what survives."""

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "put_faults.py"
sys.path.insert(0, str(TOOL.parent))
FAULTS = runpy.run_path(str(TOOL.parent / "faults.py"))
TOOLS = runpy.run_path(str(TOOL))
sys.path.remove(str(TOOL.parent))
faults_in, KINDS = FAULTS["faults_in"], FAULTS["KINDS"]


def made(code: str) -> set[tuple[str, str]]:
    """(kind, the last line with the fault) of all faults of a function's last line."""
    found = faults_in("m.py", f"def f(a, b, xs, i):\n    {code}\n")
    return {(fault.kind, fault.source.splitlines()[-1].strip()) for fault in found}


@pytest.mark.parametrize(
    ("code", "kind", "faulty"),
    [
        ("return a - b", "sign", "return a + b"),
        ("return -a", "sign", "return a"),
        ("return number(a)", "sign", "return number(-a)"),
        ("return number(a, 3)", "factor of 10", "return number(10 * a, 3)"),
        ("return number(a, 3)", "factor of 10", "return number(a / 10, 3)"),
        ("return 100 * a", "factor of 10", "return 1000 * a"),
        ("return f'{a:.3g} %'", "factor of 10", "return f'{10 * a:.3g} %'"),
        ("return f'{a} of {b}'", "exchanged", "return f'{b} of {a}'"),
        ("return g(a, b)", "exchanged", "return g(b, a)"),
        ("return a - b", "exchanged", "return b - a"),
        ("return [g(a), g(b)]", "exchanged", "return [g(b), g(a)]"),
        ("return {'x': a, 'y': b}", "exchanged", "return {'x': b, 'y': a}"),
        ("return 'Slower than'", "direction", "return 'Faster than'"),
        ("return f'{a} loses'", "direction", "return f'{a} gains'"),
        ("return xs[0]", "neighbour", "return xs[1]"),
        ("return xs[-1]", "neighbour", "return xs[-2]"),
        ("return xs[i]", "neighbour", "return xs[i - 1]"),
        ("return a + 1", "neighbour", "return a"),
        (
            "return 'warn' if not a and b else ''",
            "condition",
            "return 'warn' if not a or b else ''",
        ),
        ("return 'warn' if not a else ''", "condition", "return 'warn' if a else ''"),
        ("return a > b", "condition", "return a <= b"),
        ("return percent(a / b)", "wrong whole", "return percent(a / (a + b))"),
        ("return percent(a)", "wrong whole", "return percent(1 - a)"),
        ("return '3 ms'", "unit", "return '3 µs'"),
        ("return f'{a}×'", "unit", "return f'{a} %'"),
        ("return [a, b]", "dropped", "return [a]"),
        ("return f'{a} of {b}'", "dropped", "return f'{a} of '"),
        ("xs.append(a)", "dropped", "pass"),
        ("xs += 'more'", "dropped", "pass"),
        ("a.caption.set_texts(xs)", "left out", "pass"),
        ("a.text = f'{b} of {i}'", "left out", "pass"),
        ("return Slider('x', looks=True)", "condition", "return Slider('x', looks=False)"),
        ("raise ValueError('more than that')", "direction", "raise ValueError('fewer than that')"),
    ],
)
def test_each_kind_of_fault_can_be_made(code, kind, faulty):
    assert (kind, faulty) in made(code)
    assert kind in KINDS


@pytest.mark.parametrize(
    "code",
    [
        "assert a < b", "import os", "'''Slower, a docstring.'''", "return a or b",
        "return isinstance(a, b)", "return i in (a, b)", "xs = (One, Two)", "x: 'list[int]' = a",
        "return '<mi>first</mi>'", "super().__init__()", "return Chart('Error above 4 bits')",
        "return section('More', a)",
    ],
)  # fmt: skip
def test_what_nobody_reads_or_computes_is_left_alone(code):
    assert made(code) == set()


def test_what_changes_nothing_is_named_with_its_reason_and_is_a_fault_that_can_be_made():
    for name, reason in TOOLS["EQUIVALENT"].items():
        file = name.partition(": ")[0]
        text = (ROOT / file).read_text(encoding="utf-8")
        assert name in {fault.name for fault in faults_in(file, text)}, name
        assert len(reason) > 10


def test_an_object_is_not_left_without_a_part_that_it_begins_with():
    found = faults_in("m.py", "class A:\n    def __init__(self):\n        self.x = self.f()\n")
    assert found == []


def test_a_fault_knows_the_function_around_it():
    text = (
        "X = [f(1), f(2)]\nclass A:\n    y = [f(1), f(2)]\n    def g(self):\n"
        "        def inner():\n            return lambda: xs[0]\n"
    )
    found = {(fault.line, fault.function) for fault in faults_in("m.py", text)}
    assert found == {(1, ""), (3, ""), (6, "A.g")}


def test_prose_outside_functions_is_left_alone():
    assert faults_in("m.py", "TEXT = 'slower'\n") == []


def test_every_fault_of_the_package_is_a_program_and_another_one():
    path = ROOT / "qviz" / "ui" / "views" / "cost.py"
    text = path.read_text(encoding="utf-8")
    found = faults_in("cost.py", text)
    assert len(found) > 20
    assert len({fault.name for fault in found}) > 0.9 * len(found)
    same = ast.unparse(ast.parse(text))
    for fault in found:
        compile(fault.source, "cost.py", "exec")
        assert fault.source != same
        assert 1 <= fault.line <= text.count("\n")


def test_faults_are_drawn_evenly_and_the_same_for_the_same_seed():
    files = [*(ROOT / "qviz" / "ui" / "figures").glob("*.py")]
    every = [f for p in files for f in faults_in(p.name, p.read_text(encoding="utf-8"))]
    chosen = TOOLS["drawn"](every, 40, 3)
    assert chosen == TOOLS["drawn"](every, 40, 3) != TOOLS["drawn"](every, 40, 4)
    assert len({id(fault) for fault in chosen}) == 40
    shares = {name: sum(f.file == name for f in chosen) for name in {f.file for f in every}}
    assert min(shares.values()) >= min(8, sum(f.file == "common.py" for f in every))
    kinds = {kind: sum(f.kind == kind for f in chosen) for kind in {f.kind for f in every}}
    assert min(kinds.values()) >= 2
    assert len(TOOLS["drawn"](every, 10**6, 0)) == len(every)


def test_tests_are_found_over_imports_the_nearest_first():
    found = TOOLS["test_map"](ROOT, ["qviz/core/words.py", "qviz/server/words.py"])
    assert found["qviz/core/words.py"][0] == "tests/core/test_words.py"
    assert found["qviz/server/words.py"][0] == "tests/test_server_words.py"
    assert not any("browser" in test for tests in found.values() for test in tests)


TOY = '''"""A toy."""


def compared(new, old):
    return "faster" if new < old else "slower"


def listed(new, old):
    return f"{new} beside {old}"
'''
TOY_TEST = """from toy.words import compared, listed


def test_both_ways():
    assert compared(1, 2) == "faster" and compared(2, 1) == "slower"
    assert "beside" in listed(1, 2)
"""


def test_a_planted_survivor_survives_and_a_planted_kill_is_noticed(tmp_path):
    root, saved = tmp_path / "toy_project", tmp_path / "saved.json"
    for file, text in (("toy/words.py", TOY), ("tests/toy/test_words.py", TOY_TEST)):
        (root / file).parent.mkdir(parents=True)
        (root / file).write_text(text, encoding="utf-8")
    command = [sys.executable, TOOL, "--root", root, "--only", "toy/words.py", "--save", saved]
    done = subprocess.run(
        [*command, "--count", "100"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    outcomes = json.loads(saved.read_text(encoding="utf-8"))["outcomes"]
    noticed = {(o["kind"], o["after"].split(" beside ")[0]): o["noticed"] for o in outcomes}
    assert noticed["exchanged", "f'{old}"] == ""  # the planted survivor
    kept = [o for o in outcomes if o["line"] == 5]
    assert {o["kind"] for o in kept} >= {"direction", "condition"}
    assert all(o["noticed"] == "tests/toy/test_words.py::test_both_ways" for o in kept)
    left = sum(not o["noticed"] for o in outcomes)
    last = next(line for line in done.stdout.splitlines() if line.startswith("all "))
    assert last.split() == ["all", str(len(outcomes)), str(len(outcomes) - left), str(left)]
    assert done.stdout.count("SURVIVES") == left
    assert (root / "toy" / "words.py").read_text(encoding="utf-8") == TOY  # only the copy was
    assert sorted(p.name for p in root.rglob("*") if p.is_file()) == ["test_words.py", "words.py"]
    again = subprocess.run(
        [*command, "--list", "--count", "2"], capture_output=True, text=True, timeout=60, check=True
    )
    assert len(again.stdout.splitlines()) == 3
