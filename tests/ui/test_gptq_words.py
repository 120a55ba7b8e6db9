"""What the GPTQ lesson says of a step, a weight and two runs, held against the runs' tensors."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import calibration_for
from said import cut, holds, numbers_in, points

from qviz.study.gptq_contrasts import CONTRASTS
from qviz.study.gptq_plan import Plan
from qviz.study.gptq_walk import Walk
from qviz.ui.views.gptq_beside import FormulasNow, SecondRun, WeightStory
from qviz.ui.views.gptq_equation import MISPRINTS, MOMENTS
from qviz.ui.views.gptq_words import (
    GUESSES,
    GUIDE,
    adapted,
    brief_rows,
    guess_judged,
    sentence,
    side_by_side,
    story_rows,
)

N, ROWS = 24, 5


def inputs(seed: int, tokens: int = 60) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(tokens, 4, generator=g, dtype=torch.float64)
    mix = torch.randn(4, N, generator=g, dtype=torch.float64)
    return base @ mix + 0.5 * torch.randn(tokens, N, generator=g, dtype=torch.float64)


def walk_of(dead: int | None = None, **options) -> Walk:
    x = inputs(1)
    if dead is not None:
        x[:, dead] = 0
    weight = torch.randn(ROWS, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    judge = calibration_for(inputs(2))
    return Plan(weight, calibration_for(x), judge, {"group_size": 8, "bits": 3, **options}).walk()


class Plain:
    """One weight's story from the run's errors and factor, the plain way."""

    def __init__(self, walk: Walk, row: int, column: int) -> None:
        self.step = int((walk.perm == column).nonzero())
        u, e = walk.recording.hinv_chol, walk.recording.errors
        self.given = float(walk.original[row, column])
        self.dead = column in walk.dead
        start = 0.0 if self.dead else self.given
        self.moves = [-float(e[j, row] * u[j, self.step]) for j in range(self.step)]
        self.start, self.live = start, start + sum(self.moves)
        self.e, self.diagonal = float(e[self.step, row]), float(u[self.step, self.step])
        self.out = [-self.e * float(u[self.step, k]) for k in range(self.step + 1, walk.n)]
        grid, group = walk.grid, int(walk.recording.groups()[column])
        self.group, self.scale = group, float(grid.scale[row, group])
        self.zero = 0.0 if grid.zero_point is None else float(grid.zero_point[row, group])
        self.code, self.qmin, self.qmax = int(walk.result.codes[row, column]), grid.qmin, grid.qmax
        self.value = float(walk.result.dequantize()[row, column])
        self.position = self.live / self.scale + self.zero
        self.nearest_code = int(walk.nearest.codes[row, column])
        self.nearest_value = float(walk.nearest.dequantize()[row, column])
        self.columns = [int(c) for c in walk.perm]

    @property
    def clipped(self) -> bool:
        return not self.qmin - 0.5 <= self.position <= self.qmax + 0.5

    def most(self, moves: list[float], columns: list[int]) -> list[float]:
        """[amount, column] of the largest, nothing where all are 0."""
        if not any(moves):
            return []
        at = int(np.abs(moves).argmax())
        return [moves[at], columns[at]]


settings_of_a_run = st.fixed_dictionaries(
    {
        "bits": st.integers(2, 4),
        "group_size": st.sampled_from([8, 12, None]),
        "act_order": st.booleans(),
        "symmetric": st.booleans(),
        "static_groups": st.booleans(),
        "dead": st.sampled_from([None, 6]),
    }
)


@settings(max_examples=25)
@given(settings_of_a_run, st.integers(0, ROWS - 1), st.integers(0, N - 1), st.integers(0, N))
def test_sentences_and_tables_of_any_weight(options, row, step, now):
    walk = walk_of(**options)
    column = int(walk.perm[step])
    plain = Plain(walk, row, column)
    check_levels(sentence(walk, step, "levels", row), walk, plain, row)
    check_rounding(sentence(walk, step, "round", row), plain, row, column)
    place = {"step": plain.step, "column": column, "row": row}
    lost = plain.live - plain.value
    holds(
        sentence(walk, step, "divide", row), fixed=["the rounding error is"], **place,
        lost=lost, diagonal=plain.diagonal, e=plain.e,
    )  # fmt: skip
    check_passing_on(sentence(walk, step, "pass on", row), walk, plain, place)
    check_rows(walk, plain, row, column, now)


def check_levels(text: str, walk: Walk, plain: Plain, row: int) -> None:
    size, step = walk.options["group_size"], plain.step
    expected = {"step": step, "column": plain.columns[step], "row": row}
    kinds = {
        "a group begins": size and not walk.options["static_groups"] and step % size == 0,
        "its group's scale was set": size and not walk.options["static_groups"] and step % size,
        "the whole row shares one scale": size is None,
        "has its scale from the original weights": size and walk.options["static_groups"],
    }
    for phrase, true in kinds.items():
        points(text, f"{phrase}/", bool(true))
    if kinds["a group begins"]:
        expected["size"] = (size, "weights in this row")
    elif kinds["its group's scale was set"]:
        expected["found"] = step // size * size
    elif size:
        expected["group"] = plain.columns[step] // size
    fixed = ["before the first step"] if size is None else []
    holds(text, fixed=fixed, **expected, scale=plain.scale)


def check_rounding(text: str, plain: Plain, row: int, column: int) -> None:
    expected = {"step": plain.step, "column": column, "row": row, "w": plain.live}
    expected |= {"position": plain.position, "code": plain.code, "value": plain.value}
    other = plain.nearest_code != plain.code
    expected |= {"nearest": plain.nearest_code} if other else {}
    ways = {
        "the last level: w lies beyond it/": plain.clipped,
        "Without compensation it would have become/": other,
    }
    holds(text, ways=ways, **expected)


def check_passing_on(text: str, walk: Walk, plain: Plain, place: dict) -> None:
    left = walk.n - plain.step - 1
    if not left or not any(plain.out):
        points(text, "no column is left/there is no error to pass on", left == 0)
        holds(text, fixed=["this last error"] if not left else [], **place)
        return
    amount, column = plain.most(plain.out, plain.columns[plain.step + 1 :])
    kept = "Rounded weights stay as they are." in text
    assert kept == (plain.step > 0)
    points(text, "waiting weight moves/waiting weights move", left == 1)
    holds(text, fixed=["most of all"], **place, left=left, to=column, by=amount)


def check_rows(walk: Walk, plain: Plain, row: int, column: int, now: int) -> None:
    rows = story_rows(walk, walk.story(row, column), now)
    turn = plain.step
    done, here = turn < now, turn == now
    wanted = [
        ("row, column", "", [row, column], ""),
        ("its turn", "now" if here else "", [turn], "done" if done else "now" if here else "wait"),
        ("trained weight", "original", [plain.given], ""),
        *([("its input was always 0", "error", [0], "set to")] if plain.dead else []),
        ("now, rounded", "now", [plain.value], "") if done else
        (f"now, moved {now}×", "now", [plain.start + sum(plain.moves[:now])], ""),
        ("moved in total by", "", [plain.live - plain.start], ""),
        ("w at its turn", "original", [plain.live], ""),
        ("spacing s", "", [plain.scale], ""),
        *([("zero point z", "", [plain.zero], "")] if plain.zero else []),
        ("w/s + z", "", [plain.position], ""),
        ("code q", "codes", [plain.code, plain.qmin, plain.qmax], "of"),
        ("ŵ", "codes", [plain.value], ""),
        ("w − ŵ", "error", [plain.live - plain.value], ""),
        ("U_{jj}", "", [plain.diagonal], ""),
        ("e = (w − ŵ) / U_{jj}", "error", [plain.e], ""),
        ("passes on most", "", plain.most(plain.out, plain.columns[turn + 1 :]), ""),
        ("received most", "", plain.most(plain.moves, plain.columns[:turn]), ""),
        ("round to nearest", "wait", [plain.nearest_code, plain.nearest_value], "→"),
    ]  # fmt: skip
    assert [(label, role) for label, _, role in rows] == [(w[0], w[1]) for w in wanted]
    for (label, text, _), (_, _, numbers, words) in zip(rows, wanted, strict=True):
        said = {f"{label} {i}": value for i, value in enumerate(numbers)}
        holds(text, digits=2 if "most" in label else 3, **said)
        assert words in text
        points(text, "clipped/", "code" in label and plain.clipped)
        if "most" in label:
            way = " to " if "passes" in label else " from "
            assert (way in text) == bool(numbers) == (text != "nothing")
    check_brief(rows)


def check_brief(rows: list) -> None:
    """Of the whole table each moment keeps what it is about."""
    about = {
        "levels": {"spacing s", "zero point z"},
        "round": {"w at its turn", "w/s + z", "code q", "ŵ"},
        "divide": {"w − ŵ", "U_{jj}", "e = (w − ŵ) / U_{jj}"},
        "pass on": {"e = (w − ŵ) / U_{jj}", "passes on most"},
    }
    assert set(about) == set(MOMENTS)
    always = {"row, column", "its turn", "trained weight", "its input was always 0"}
    for moment, labels in about.items():
        kept = [row for row in rows if row[0] in labels | always or row[0].startswith("now, ")]
        assert brief_rows(rows, moment) == kept


def test_the_end_says_both_errors():
    walk = walk_of()
    holds(
        sentence(walk, N, "round", 0), n=N,
        error=float(walk.error[-1]), nearest=float(walk.rtn_error[-1]),
    )  # fmt: skip


def test_a_weight_beyond_the_last_level_is_said_to_be_clipped():
    """Compensation has moved it out of the range that its group was given beforehand."""
    walk = walk_of(static_groups=True, bits=2)
    cells = [(r, c) for r in range(ROWS) for c in range(N)]
    clipped = [Plain(walk, r, c) for r, c in cells if Plain(walk, r, c).clipped]
    assert clipped
    for plain in clipped[:3]:
        row = next(r for r, c in cells if Plain(walk, r, c).given == plain.given)
        check_rounding(
            sentence(walk, plain.step, "round", row), plain, row, plain.columns[plain.step]
        )
        check_rows(walk, plain, row, plain.columns[plain.step], 0)


def test_the_chart_of_a_weight_has_its_words():
    walk = walk_of()
    story = WeightStory()
    for row, column in ((0, 0), (2, 9), (1, N - 1)):
        plain = Plain(walk, row, column)
        story.draw(walk, (row, column), 3, "round", of_two=False)
        expected = {"row": row, "column": column, "moved": plain.live - plain.start}
        expected |= {"e": plain.e, "left": (N - column - 1, "column")}
        holds(story.exchange.summaries[0], **expected)
        assert story.brief_table.label == "The chosen weight"
        figure = story.exchange.figures
        assert "received from" in figure
    story.draw(walk, (0, 0), 3, "round", of_two=True)
    assert story.brief_table.label == "The chosen weight, first run"
    labels = [row["label"] for row in story.brief_table.rows]
    assert "code q" in labels
    assert len(story.table.rows) > len(labels)


@pytest.mark.parametrize("name", [c.name for c in CONTRASTS])
def test_a_second_run_says_why_and_what_it_shows(name):
    (contrast,) = (c for c in CONTRASTS if c.name == name)
    first = walk_of()
    plan = Plan(first.original, first.calibration, first.judge, {"group_size": 8, "bits": 3})
    run = SecondRun()
    if not contrast.fits(plan):
        return
    second = contrast.apply(plan, lambda _: calibration_for(inputs(5))).walk()
    run.draw(first, second, contrast, plan)
    assert run.title.text == f"Second run: {contrast.named(plan)}"
    assert run.diagnosis.texts == [f"{contrast.why} {contrast.diagnose(first, second)}"]
    variant = second.options["variant"]
    now = FormulasNow()
    true = now.equation.mathml, now.equation.aria
    now.show(variant)
    assert ((now.equation.mathml, now.equation.aria) == true) == (variant is None)
    assert ('data-term="wrong"' in now.equation.mathml) == (variant is not None)
    assert bool(now.note.text) == (variant is not None)
    if variant is not None:
        assert now.note.text == f"As misprinted, used by the second run. {MISPRINTS[variant][0]}."
    now.show(None)
    assert (now.equation.mathml, now.equation.aria, now.note.text) == (*true, "")
    run.draw(first, second, None, plan)
    assert run.title.text == "Second run: the one you kept"
    assert run.diagnosis.texts == [side_by_side(first, second)]


# -------------------------------------------------------------------------- two runs, and the guess


@pytest.mark.parametrize(
    ("option", "values", "said"),
    [
        ("bits", (2, 4), "Bits 2 beside 4"),
        ("symmetric", (True, False), "Symmetric levels on beside off"),
        ("group_size", (8, None), "Scale per group of 8 beside row"),
        ("act_order", (True, False), "Act-order on beside off"),
        ("static_groups", (False, True), "Scales set beforehand off beside on"),
        ("mse", (False, True), "Range search off beside on"),
        ("damp", (0.0, 0.01), "Damping 0 % beside 1 %"),
        ("block_size", (1, 128), "Block size 1 beside 128"),
        ("scale_dtype", (torch.float16, torch.float32), "Scales stored as float16 beside float32"),
    ],
)
def test_what_differs_between_two_runs_is_named_first_run_first(option, values, said):
    runs = [walk_of(**{option: value}) for value in values]
    for (first, second), words in (
        (runs, said),
        (runs[::-1], " beside ".join(_exchanged(said, values))),
    ):
        text = side_by_side(first, second)
        changed, errors = cut(text, ". ")
        assert changed == words
        ends = [float(walk.error[-1]) for walk in (first, second)]
        holds(
            errors, fixed=["first run", "second"],
            first=(ends[0], "% in the first run"), second=(ends[1], "% in the second"),
        )  # fmt: skip


def _exchanged(said: str, values: tuple) -> tuple[str, str]:
    """The words for the first value and of the second, exchanged, behind the same name."""
    first, second = said.split(" beside ")
    name = next(n for n in NAMES_SAID if first.startswith(n))
    return f"{name}{second}", first.removeprefix(name)


NAMES_SAID = ("Bits ", "Symmetric levels ", "Scale per ", "Act-order ", "Scales set beforehand ",
              "Range search ", "Damping ", "Block size ", "Scales stored as ")  # fmt: skip


def test_two_runs_on_other_inputs_say_whose():
    first, second = walk_of(), walk_of()
    first.calibration = replace(first.calibration, source="python")
    second.calibration = replace(second.calibration, source="heldout_python", tokens=1)
    text = side_by_side(first, second)
    assert text.startswith("Calibrated on 60 tokens of python beside 1 token of held-out python.")
    first.judge = replace(first.judge, source="numbers")
    assert "; measured on 60 tokens of numbers beside" in side_by_side(first, second)


def test_two_runs_that_are_alike_say_one_error():
    walk = walk_of()
    text = side_by_side(walk, walk)
    assert text.startswith("Both runs are still the same")
    holds(text, fixed=["the first run changes"], error=float(walk.error[-1]))


def test_what_a_run_had_to_change_is_said():
    assert adapted(walk_of()) == []
    few = Plan(
        torch.randn(3, N),
        calibration_for(inputs(3, tokens=4)),
        None,
        {"damp": 0.0, "group_size": 8},
    ).walk()
    (raised,) = adapted(few)
    holds(raised, fixed=["damping was raised"], asked=0.0, used=few.result.info["damp"])
    (dead,) = adapted(walk_of(dead=3))
    assert dead.startswith("1 input channel was 0 in every token")
    assert "the weights that read it to 0" in dead
    x = inputs(1)
    x[:, [3, 5]] = 0
    two = Plan(torch.randn(3, N), calibration_for(x), None, {"group_size": 8}).walk()
    (dead,) = adapted(two)
    assert dead.startswith("2 input channels were 0 in every token")
    assert "the weights that read them to 0" in dead


@given(st.floats(0.0, 2.0), st.integers(0, len(GUESSES) - 1))
def test_the_guess_is_judged_by_the_share_that_is_left(share, guess):
    walk = copy(FIRST)
    walk.error, walk.rtn_error = np.array([0.0, share * 0.08]), np.array([0.0, 0.08])
    share = float(walk.error[-1] / walk.rtn_error[-1])
    text = guess_judged(walk, guess)
    bounds = [low for low, _ in GUESSES]
    right = sum(share < low for low in bounds)
    points(text, "Right/Not quite", right == guess)
    points(text, "Does it still win/makes it lose", share < 1)
    tail = ["16 tokens"] if share < 1 else ["makes it lose", "the text first"]
    holds(text, fixed=tail, error=float(walk.error[-1]), nearest=0.08, share=share)


FIRST = walk_of()


def test_guesses_are_named_by_their_shares():
    assert GUESSES == (
        (1.0, "more than all of it"), (0.75, "three quarters or more"), (0.5, "half or more"),
        (0.25, "a quarter or more"), (0.0, "less than a quarter"),
    )  # fmt: skip


def test_where_nothing_is_lost_there_is_nothing_to_guess():
    walk = copy(FIRST)
    walk.rtn_error = np.zeros(3)
    assert "nothing to guess" in guess_judged(walk, 0)
    assert not numbers_in(guess_judged(walk, 0))


def test_steps_of_the_guide_begin_with_states_and_end_with_goals():
    for step in GUIDE:
        assert all(isinstance(value, str) for value in step.start.values()), step.title
        assert step.done and all(hasattr(goal, "met") for goal in step.done.values()), step.title
        assert not all(goal.met(step.start.get(k, ""), "") for k, goal in step.done.items())
