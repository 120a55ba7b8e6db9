"""What lessons share: who shares a scale, code printed from a call, a prediction, goals."""

from keyword import iskeyword

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qviz.core.granularity import Granularity
from qviz.ui.views.guide_steps import AtLeast, Is, Moved, Step
from qviz.ui.views.prediction import Prediction
from qviz.ui.views.scale_sharing import ScaleSharing, each
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import Guide, as_address, from_address


@given(columns=st.integers(1, 4096), chosen=st.integers(0, 6))
def test_whatever_is_offered_divides_the_row(columns, chosen):
    sharing = ScaleSharing()
    sharing.fit(2048)
    sharing.index = min(chosen, len(sharing.options) - 1)
    sharing.fit(columns)
    weight = torch.zeros(2, columns)
    for index in range(len(sharing.options)):
        sharing.index = index
        assert sharing.granularity.split(weight).numel() == weight.numel()
    assert sharing.options[:2] == ["matrix", "row"]


def test_the_choice_stays_where_it_can():
    sharing = ScaleSharing()
    assert sharing.granularity == Granularity("group", 128)
    sharing.fit(96)
    assert sharing.granularity == Granularity("group", 32)
    sharing.fit(7)
    assert sharing.granularity == Granularity("channel")
    assert ScaleSharing(matrix=False).options[0] == "row"
    assert (each("matrix"), each("row")) == ("the whole matrix", "each row")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,12}", fullmatch=True).filter(lambda name: not iskeyword(name)),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=40),
                  st.floats(allow_nan=False, allow_infinity=False)),
        max_size=12,
    )
)  # fmt: skip
def test_a_printed_call_is_that_call(options):
    text = call("f", Name("x"), "y", **options)
    assert max(map(len, text.splitlines())) <= 140
    assert eval(text, {"f": lambda *a, **o: (a, o), "x": 1}) == ((1, "y"), options)  # noqa: S307


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=60), max_size=6))
def test_any_state_survives_a_link(state):
    try:
        "".join([*state, *state.values()]).encode()
    except UnicodeEncodeError:  # half a pair of surrogates, which no keyboard writes
        return
    assert from_address(as_address(state)) == state


def test_a_prediction_hides_judges_and_asks_anew():
    drawn = []
    asked = Prediction(
        "How many?", ["one", "two"], lambda i: f"answer {i}", lambda: drawn.append(1)
    )
    assert not asked.revealed and not asked.guessed
    asked.control.index = 2
    asked.answer()
    assert asked.revealed and drawn == [1] and asked.verdict.texts == ["answer 1"]
    asked.moved()
    assert drawn == [1]
    asked.reset(["three"])
    assert not asked.revealed and asked.verdict.texts == [""]
    assert list(asked.control.options) == ["your guess", "three"]
    asked.moved()
    assert drawn == [1, 1] and asked.verdict.texts == [""]


def test_when_a_step_of_a_guide_is_done():
    step = Step("t", "w", done={"bits": Is("2"), "step": AtLeast(9)}, deeds=("measure",))
    began = {"bits": "8", "step": "0"}
    assert not step.met({"bits": "2", "step": "12"}, began, set())
    assert not step.met({"bits": "2", "step": "8"}, began, {"measure"})
    assert step.met({"bits": "2", "step": "12"}, began, {"measure"})
    assert Moved().met("b", "a") and not Moved().met("a", "a")
    assert Moved().example("a", ["a", "b"]) == "b"


def test_a_guide_hears_its_browser_and_nothing_else():
    guide, heard = Guide("x", [("a", "b"), ("c", "d")]), []
    guide.on_step(heard.append)
    for content in (
        {"type": "step", "index": 1},
        {"type": "step", "index": 7},
        {"type": "x"},
        "no",
    ):
        guide._on_message(guide, content, [])
    assert heard == [1]
    guide.tick(1)
    assert guide.done == [False, True]
    with pytest.raises(ValueError, match="outside the 2 steps"):
        guide.click(2)
