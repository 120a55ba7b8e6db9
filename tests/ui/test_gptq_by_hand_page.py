"""Lesson 7's first part: the numbers on the page are those of the walk, and a reader's own work."""

import numpy as np
import pytest

from qviz.study.gptq_by_hand import INPUTS, WEIGHTS, by_hand
from qviz.study.gptq_by_hand_words import sentence
from qviz.ui.views.gptq import GptqLesson


@pytest.fixture(scope="module")
def shared():
    return GptqLesson()


@pytest.fixture
def hand(shared):
    shared.go({})
    return shared.hand


def cells(table, frame):
    """Row label → its numbers, for one frame; empty cells are None."""
    return {
        row["label"]: [float(c.replace("−", "-")) if c and "," not in c else None
                       for c in row["cells"]]
        for row in table.frames[frame]
    }  # fmt: skip


def test_every_number_of_every_moment(hand, shared):
    walk = by_hand()
    w, x = np.array(WEIGHTS), np.array(INPUTS, dtype=float)
    assert shared.transport.captions == [sentence(walk, moment) for moment in walk.moments]
    assert shared.transport.n == len(walk.moments) == len(hand.row_table.frames)
    for i, moment in enumerate(walk.moments):
        row, outputs = cells(hand.row_table, i), cells(hand.output_table, i)
        now = np.array(moment.weights)
        assert row["as trained"][:3] == list(WEIGHTS)
        assert row["now"] == pytest.approx([*now, ((now - w) ** 2).sum()], rel=1e-3, abs=1e-12)
        for t, token in enumerate(x):
            true, off = outputs[f"token {t}"][1:3]
            assert true == pytest.approx(token @ w, rel=1e-3)
            assert off == pytest.approx(token @ (now - w), rel=1e-3, abs=1e-12)
        mean = ((x @ (now - w)) ** 2).mean()
        assert outputs["mean of squares"][2] == pytest.approx(mean, rel=1e-3, abs=1e-12)
    end, last = cells(hand.row_table, -1), cells(hand.output_table, -1)
    near = [*walk.nearest.weights, walk.nearest.weight_error]
    assert end["rounded to nearest"] == pytest.approx(near, rel=1e-3)
    assert last["mean of squares"][3] == pytest.approx(walk.nearest.output_error, rel=1e-3)
    h, u = cells(hand.hessian_table, 0), cells(hand.factor_table, 0)
    assert np.array(list(h.values())) == pytest.approx(2 * x.T @ x / len(x))
    upper = np.array(list(u.values()))
    assert upper.T @ upper == pytest.approx(np.linalg.inv(2 * x.T @ x / len(x)), rel=1e-3)


def test_the_weights_end_farther_off_and_the_outputs_nearer(hand):
    """The point of the part, in the numbers that stand on the page."""
    row, outputs = cells(hand.row_table, -1), cells(hand.output_table, -1)
    assert row["now"][-1] > row["rounded to nearest"][-1]
    assert outputs["mean of squares"][2] < outputs["mean of squares"][3]


def test_what_a_moment_is_about_lights_up(hand):
    walk = by_hand()
    for i, moment in enumerate(walk.moments):
        lit = {r["label"]: r["lit"] for r in hand.row_table.frames[i]}["now"]
        if moment.kind == "round":
            assert lit == [moment.step]
        if moment.kind == "compensate":
            assert lit == list(range(moment.step + 1, 3))
    divide = next(i for i, m in enumerate(walk.moments) if m.kind == "divide")
    assert hand.factor_table.frames[divide][0]["lit"] == [0]
    assert hand.equation.actives[divide] == ["gap", "Ujj"]


def test_numbers_of_the_readers_own(hand, shared):
    hand.weights_control.value, hand.inputs_control.value = "1.5, −2", "1 1; 0 2"
    hand.again_button.click()
    assert shared.status.text == ""
    assert hand.shown.weights == (1.5, -2.0) and hand.shown.inputs == ((1.0, 1.0), (0.0, 2.0))
    assert len(hand.factor_table.frames[0]) == 2
    link = shared.address.state
    shared.go({})
    assert hand.shown == by_hand()
    shared._on_address(link)
    assert hand.shown.weights == (1.5, -2.0)


@pytest.mark.parametrize(
    ("weights", "inputs", "says"),
    [
        ("1, x, 2", "1 1 1", "numbers separated by commas"),
        ("1", "1; 2", "2 to 4 weights"),
        ("0, 0", "1 0; 0 1", "all weights are 0"),
        ("1, 2", "1 1", "do not span"),
        ("1, 2", "1; 2", "each token needs 2"),
    ],
)
def test_numbers_that_cannot_be_worked_out_are_said(hand, shared, weights, inputs, says):
    before = hand.shown
    hand.weights_control.value, hand.inputs_control.value = weights, inputs
    hand.again_button.click()
    assert shared.status.kind == "error" and says in shared.status.text
    assert hand.shown is before


def test_a_link_that_speaks_of_a_run_is_about_the_real_layer(shared):
    shared.go({"layer": "model.layers.0.self_attn.o_proj", "step": "10"})
    assert shared.part == "a real layer" and shared.step == 10
    shared.go({"step": "2"})
    assert shared.part == "by hand" and shared.step == 2
