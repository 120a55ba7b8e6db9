"""What the GPTQ lesson says: its guide, a sentence for each stage, one weight's history."""

from typing import Any

import numpy as np

from qviz.core.calibration import Calibration
from qviz.exercises.attempt_walk import AttemptWalk
from qviz.exercises.report import StepReport
from qviz.study.gptq_walk import Story, Walk
from qviz.ui.views.guide_steps import AtLeast, Is, Step
from qviz.ui.views.layer_texts import spoken_text
from qviz.ui.widgets import Text, counted, number, percent, signed

BY_HAND, A_LAYER = "by hand", "a real layer"

GUIDE = (
    Step(
        "Three weights by hand",
        "Step through one row with “One step forward”. Rounding to nearest moves the first two "
        "weights in the same direction, and their inputs never have opposite signs, so the two "
        "errors add up in the output. At the end compare the two error sums, of the weights and "
        "of the outputs. Which one does the next layer see?",
        {"part": BY_HAND},
        {"part": Is(BY_HAND), "step": AtLeast(12)},
    ),
    Step(
        "One real column",
        "Under “Stage of the step” choose the four stages one after the other. Each shows its "
        "equation, and the sentence above the steps' bar gives its numbers.",
        {"part": A_LAYER, "step": "300", "moment": "levels"},
        {"part": Is(A_LAYER), "moment": Is("pass on")},
    ),
    Step(
        "A weight that waits",
        "A weight near the right end is held. Play at 64× and watch the row “now” of its table. "
        "How often is it moved before its turn comes, and how far?",
        {"part": A_LAYER, "weight": "36, 1000"},
        {"part": Is(A_LAYER), "step": AtLeast(1000)},
    ),
    Step(
        "Two bits, smaller groups",
        "Move “One scale per” to the smallest groups. Which changes the gap between GPTQ and "
        "rounding to nearest more, the bits or the group size?",
        {"part": A_LAYER, "bits": "2", "step": "1024"},
        {"bits": Is("2"), "scale": Is("group of 32")},
    ),
    Step(
        "Calibrate on too little text",
        "Open “Calibration text” and take 16 tokens. The run fits those 16 tokens well. What "
        "happens on the text that it is measured on?",
        {"part": A_LAYER, "step": "1024"},
        {"part": Is(A_LAYER), "tokens": Is("16")},
    ),
    Step(
        "Find a misprint",
        "Choose “failure: Divided twice” under “A second run beside it”. The equation on the "
        "right is then the misprinted one, with the error marked. Below the pictures you read "
        "by what symptom you would find this mistake in your own code.",
        {"part": A_LAYER, "step": "512"},
        {"part": Is(A_LAYER), "beside": Is("double_division")},
    ),
)

GUESSES = ((1.0, "more than all of it"), (0.75, "three quarters or more"), (0.5, "half or more"),
           (0.25, "a quarter or more"), (0.0, "less than a quarter"))  # fmt: skip

Row = tuple[str, str, str]


def sentence(walk: Walk, step: int, moment: str, row: int) -> str:
    """What this stage of step `step` does to one row. Step n is the end of the run."""
    if step == walk.n:
        return (
            f"All {walk.n} columns are rounded. The layer's output is off by "
            f"{percent(walk.error[-1])}; rounding each weight to its nearest level leaves "
            f"{percent(walk.rtn_error[-1])}."
        )
    column = int(walk.perm[step])
    story = walk.story(row, column)
    where = f"Step {step}, column {column}, row {row}"
    says = {
        "levels": _levels(walk, step, story),
        "round": _rounding(story),
        "divide": (
            f"the rounding error is w − ŵ = {number(story.rounding_error, 3)}. Divided once by "
            f"U_{{jj}} = {number(story.diagonal, 3)} this is e = {number(story.error, 3)}."
        ),
        "pass on": _passing_on(walk, step, story),
    }
    return f"{where}: {says[moment]}"


def _levels(walk: Walk, step: int, story: Story) -> str:
    s = f"s = {number(story.scale, 3)}"
    if not walk.recording.plan.upfront:
        size = walk.recording.plan.size
        first = step // size * size
        if step == first:
            return (
                f"a group begins. The present range of its {counted(size, 'weight')} in this row "
                f"gives the spacing of the levels, {s}."
            )
        return f"its group's scale was set at step {first}; here {s}."
    if walk.options["group_size"] is None:
        return f"the whole row shares one scale, set before the first step; here {s}."
    return f"group {story.group} has its scale from the original weights; here {s}."


def _rounding(story: Story) -> str:
    text = (
        f"w = {number(story.live)}, so w/s + z = {number(story.position)}. It is rounded to code "
        f"{number(story.code)}, which stands for ŵ = {number(story.value)}"
    )
    if story.clipped:
        text += ", the last level: w lies beyond it"
    if story.nearest_code != story.code:
        text += f". Without compensation it would have become code {number(story.nearest_code)}"
    return f"{text}."


def _passing_on(walk: Walk, step: int, story: Story) -> str:
    left = walk.n - step - 1
    if not left:
        return "no column is left to compensate for this last error."
    ((column, amount),) = story.receivers(1)
    if amount == 0:
        return (
            "there is no error to pass on, or no column whose inputs are correlated with this "
            "one's."
        )
    moves = "waiting weight moves" if left == 1 else "waiting weights move"
    text = (
        f"the {left} {moves} by −e·U_{{jk}}, most of all the one in column {column}, by "
        f"{signed(amount)}."
    )
    return f"{text} Rounded weights stay as they are." if step else text


def story_rows(walk: Walk, story: Story, step: int) -> list[Row]:
    """One weight's whole arithmetic, for a table; `step` is the page's present step."""
    turn = story.step
    state = "done" if turn < step else "now" if turn == step else "waiting"
    rows: list[Row] = [
        ("row, column", f"{story.row}, {story.column}", ""),
        ("its turn", f"step {turn}, {state}", "now" if turn == step else ""),
        ("trained weight", number(story.original), "original"),
    ]
    if story.dead:
        rows.append(("its input was always 0", "set to 0", "error"))
    rows += [
        _so_far(story, step),
        ("moved in total by", signed(story.compensation), ""),
        ("w at its turn", number(story.live), "original"),
        ("spacing s", number(story.scale), ""),
    ]
    if story.zero:
        rows.append(("zero point z", number(story.zero), ""))
    clipped = ", clipped" if story.clipped else ""
    return [
        *rows,
        ("w/s + z", number(story.position), ""),
        (
            "code q",
            f"{number(story.code)} (of {number(story.qmin)} … {number(story.qmax)}{clipped})",
            "codes",
        ),
        ("ŵ", number(story.value), "codes"),
        ("w − ŵ", number(story.rounding_error), "error"),
        ("U_{jj}", number(story.diagonal, 3), ""),
        ("e = (w − ŵ) / U_{jj}", number(story.error, 3), "error"),
        ("passes on most", _most(story.receivers(1), "to"), ""),
        ("received most", _most(story.contributors(1), "from"), ""),
        (
            "round to nearest",
            f"{number(story.nearest_code)} → {number(story.nearest_value)}",
            "wait",
        ),
    ]


def _so_far(story: Story, step: int) -> Row:
    """The weight as the picture shows it after `step` steps."""
    if story.step < step:
        return "now, rounded", number(story.value), "now"
    moved = story.start + float(story.incoming[:step].sum())
    return f"now, moved {step}×", number(moved), "now"


def _most(amounts: list[tuple[int, float]], way: str) -> str:
    named = [f"{signed(amount, 2)} {way} {column}" for column, amount in amounts if amount]
    return ", ".join(named) or "nothing"


def brief_rows(rows: list[Row], moment: str) -> list[Row]:
    """Of one weight's rows, those that this stage of a step is about."""
    wanted = {
        "levels": ("spacing s", "zero point z"),
        "round": ("w at its turn", "w/s + z", "code q", "ŵ"),
        "divide": ("w − ŵ", "U_{jj}", "e = (w − ŵ) / U_{jj}"),
        "pass on": ("e = (w − ŵ) / U_{jj}", "passes on most"),
    }[moment]
    return [
        row
        for i, row in enumerate(rows)
        if i < 3 or row[0] in wanted or row[0].startswith(("now", "its input"))
    ]


# ---------------------------------------------------------------------------- two runs, and texts

NAMES = {
    "bits": "bits", "symmetric": "symmetric levels", "group_size": "scale per",
    "act_order": "act-order", "static_groups": "scales set beforehand", "mse": "range search",
    "damp": "damping", "block_size": "block size", "scale_dtype": "scales stored as",
}  # fmt: skip


def side_by_side(first: Walk, second: Walk) -> str:
    """How the kept run differs, and what difference that makes."""
    changed = [
        f"{NAMES.get(name, name)} {_setting(name, first.options[name])} beside "
        f"{_setting(name, second.options[name])}"
        for name in first.options
        if first.options[name] != second.options[name]
    ]
    a, b = first.calibration, second.calibration
    if (a.source, a.tokens) != (b.source, b.tokens):
        changed.append(f"calibrated on {_sample(a)} beside {_sample(b)}")
    if first.judge.source != second.judge.source:
        changed.append(f"measured on {_sample(first.judge)} beside {_sample(second.judge)}")
    ends = percent(first.error[-1]), percent(second.error[-1])
    if not changed:
        return (
            f"Both runs are still the same: the layer's output is off by {ends[0]}. Change a "
            "setting: the first run changes and this one stays."
        )
    what = "; ".join(changed)
    return (
        f"{what[0].upper()}{what[1:]}. The layer's output is off by {ends[0]} in the first run "
        f"and by {ends[1]} in the second."
    )


def differing(first: Walk, second: Walk | AttemptWalk, apart: np.ndarray, step: int) -> str:
    """How many of the weights that both runs have rounded by this step differ; `apart` is the share
    of each column."""
    both = ((first.turn < step) & (second.turn < step)).numpy()
    if not both.any():
        return ""
    share = percent(float(apart[both].mean()))
    return f" Of the weights that both runs have rounded, {share} differ by s/2 or more."


def _setting(name: str, value: Any) -> str:
    if name == "group_size":
        return "row" if value is None else f"group of {value}"
    if name == "damp":
        return percent(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "scale_dtype":
        return str(value).removeprefix("torch.")
    return str(value)


def _sample(calibration: Calibration) -> str:
    return f"{counted(calibration.tokens, 'token')} of {spoken_text(calibration.source)}"


def adapted(walk: Walk) -> list[str]:
    """What the run had to change in order to work."""
    info, said = walk.result.info, []
    if info["damp"] != walk.options["damp"]:
        said.append(
            f"With {percent(walk.options['damp'])} damping the Hessian had no Cholesky factor, "
            f"so damping was raised to {percent(info['damp'])}."
        )
    dead = len(info["dead_columns"])
    if dead:
        said.append(
            f"{counted(dead, 'input channel')} {'was' if dead == 1 else 'were'} 0 in every token "
            f"of the calibration text; GPTQ sets the weights that read "
            f"{'it' if dead == 1 else 'them'} to 0."
        )
    return said


def told(report: StepReport) -> list[Any]:
    """What the report on the learner's function says, and how to continue."""
    lines = str(report).splitlines()
    return [
        *(
            Text(line, role="good" if report.passed and i == 0 else "")
            for i, line in enumerate(lines)
        ),
        Text(
            "The first run is the true one. The second shows what your function returned. Its "
            "waiting columns move only if it also emitted its errors and rows of U.",
            role="wait",
        ),
    ]


def guess_judged(walk: Walk, guess: int) -> str:
    """The prediction, one of GUESSES, against the run, and what to ask next."""
    left, all_of_it = float(walk.error[-1]), float(walk.rtn_error[-1])
    if all_of_it == 0:
        return "Rounding to nearest has no output error here, so there is nothing to guess."
    share = left / all_of_it
    right = next(i for i, (low, _) in enumerate(GUESSES) if share >= low)
    why = (
        "Try a calibration text of 16 tokens, or of another kind. Does it still win?"
        if share < 1
        else "Which of its settings makes it lose? Look at the tokens and the text first."
    )
    return (
        f"{'Right' if right == guess else 'Not quite'}: GPTQ leaves an output error of "
        f"{percent(left)} where rounding to nearest leaves {percent(all_of_it)}, that is "
        f"{percent(share)} of it. {why}"
    )
