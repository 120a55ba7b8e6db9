"""Every example in a docstring runs, and prints what it says it prints, if it says so.

An example may begin with what its reader has at hand, named by the name that it has there: `names`.
"""

import doctest
import pkgutil
from functools import cache
from importlib import import_module

import pytest
import torch

import qviz
from qviz.methods.gptq_record import record
from qviz.study.gptq_walk import Walk

PACKAGES = (
    "qviz.core.",
    "qviz.methods.",
    "qviz.models.",
    "qviz.study.",
    "qviz.exercises.",
    "qviz.kernels.",
)
LAYER = "model.layers.0.mlp.down_proj"


@cache
def examples() -> dict[str, doctest.DocTest]:
    """Dotted name → the example of that function or class."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for module in pkgutil.walk_packages(qviz.__path__, "qviz."):
        if module.name.startswith(PACKAGES):
            tests = finder.find(import_module(module.name))
            found |= {test.name: test for test in tests if test.examples}
    return found


@cache
def names() -> dict[str, object]:
    """What any example may take as given."""
    weight = qviz.load_layer(None, LAYER)[:64].float()
    groups = weight.unflatten(1, (-1, 128))  # [rows, groups, 128]
    return {
        "qviz": qviz,
        "torch": torch,
        "model": qviz.load_model(),
        "weight": weight,
        "calibration": qviz.load_calibration(None, LAYER),
        "x": groups,
        "lo": groups.amin(-1),
        "hi": groups.amax(-1),
        "record": record,
        "theirs": torch.zeros(weight.shape, dtype=torch.uint8),
    }


def own_names(name: str) -> dict[str, object]:
    """What one example takes as given."""
    if name.endswith(".KiviCache"):
        x = torch.randn(40, 64)
        return {"keys": x, "values": x, "query": torch.randn(4, 32), "key": x[:1], "value": x[:1]}
    if name == "qviz.methods.smoothquant.search":
        names = {p: f"model.layers.0.self_attn.{p[0]}_proj" for p in ("query", "key", "value")}
        weights = {part: qviz.load_layer(None, layer) for part, layer in names.items()}
        return {**weights, "calibration": qviz.load_calibration(None, names["query"])}
    if name.endswith(".AttemptWalk"):
        return {"my_gptq": lambda w, h: w.sign().int(), "Walk": Walk}
    return {}


class Runner(doctest.DocTestRunner):
    """Raises what an example raises; where no output is shown, any will do."""

    def report_unexpected_exception(self, out, test, example, exc_info):
        raise AssertionError(f"{test.name}: {example.source.strip()}") from exc_info[1]

    def report_failure(self, out, test, example, got):
        assert not example.want, f"{test.name}: {example.source.strip()} gives {got}"


def runs_long(name: str) -> bool:
    """Whether an example measures this machine, or trains a model."""
    return name.split(".")[-1] in ("measure", "ceilings", "train_quantized")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if runs_long(n) else []) for n in examples()],
)
def test_the_example_runs(name, capsys):
    test = examples()[name]
    test.globs = {**names(), **test.globs, **own_names(name)}
    Runner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(test)


def test_there_are_examples():
    assert len(examples()) > 40
