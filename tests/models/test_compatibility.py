"""A handful of the zoo, one of each kind, against what docs/compatibility.md says of them."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from cells import Case, Outcome, Wrong, examine, judge
from zoo import ZOO

import qviz

BENCH = Path(__file__).parents[2] / "bench"
RECORDED = BENCH / "results" / "compatibility.json"
SOME = (
    "Llama, tied",
    "GPT-2",
    "Bamba",
    "Qwen3-MoE",
    "GPT-OSS",
    "DeepSeek-V3",
    "BERT, masked words",
    "Longformer",
    "Llama, no head",
    "LLaVA",
    "T5",
    "ViT",
)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The script that writes the page."""
    sys.path.insert(0, str(BENCH))
    try:
        import compatibility
    finally:
        sys.path.remove(str(BENCH))
    return compatibility


@pytest.fixture(scope="module")
def recorded(bench) -> dict[str, dict[str, Outcome]]:
    return bench.recorded()


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_what_the_page_says_is_so(name, recorded):
    found = examine(name)
    assert not {column: o for column, o in found.items() if o.state == "fails"}
    assert found == recorded[name]


def test_the_whole_zoo_is_recorded_and_nothing_in_it_is_wrong(recorded):
    assert recorded.keys() == ZOO.keys()
    assert len(ZOO) >= 75
    wrong = {
        (name, column): outcome.words
        for name, outcomes in recorded.items()
        for column, outcome in outcomes.items()
        if outcome.state == "fails"
    }
    assert not wrong
    assert {ZOO[name].kind for name in SOME} == {one.kind for one in ZOO.values()}


def test_the_page_is_what_was_recorded(recorded, bench):
    about = json.loads(RECORDED.read_text(encoding="utf-8"))["conditions"]
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(recorded, about)


def test_what_is_ok_what_is_refused_and_what_is_a_fault():
    """The judge: qviz's own words are a refusal, whatever comes from below is a fault."""
    case = Case("Llama, tied")

    def refused(case: Case) -> str:
        return str(qviz.load_layer(case.path, "no.such.layer"))

    def below(case: Case) -> str:
        return str(case.loaded.model(input_ids=None))

    def own(case: Case) -> str:
        raise Wrong("another value")

    def bare(case: Case) -> str:
        return {}["key"]

    def late(case: Case) -> str:
        while True:
            pass

    assert judge(refused, case).state == "refused"
    assert "unknown layer" in judge(refused, case).words
    assert judge(below, case).state == "fails"
    assert judge(own, case) == Outcome("fails", "another value")
    assert judge(bare, case).words.startswith("KeyError")
    assert judge(late, case, seconds=1) == Outcome("fails", "not done after 1 s")
    assert judge(lambda case: "", case) == Outcome("ok")
