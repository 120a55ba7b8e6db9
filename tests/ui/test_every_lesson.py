"""What every lesson must keep, of those in the course and of one made for this test.

It opens; each control makes its round through a link; a bad source, a bad link and a failing
computation leave the page as it was, trait by trait; its code runs and gives what is on screen;
each step of its guide can be done; whatever can be reached has a name, and each picture says in
words what it shows.
"""

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
import toy_lesson
from toy_lesson import TOY

from qviz.kernels.records import recorded
from qviz.ui.views.fields import CellField, HandlesField, OptionField, StepField, ToggleField
from qviz.ui.views.layer_page import LayerPage
from qviz.ui.views.lessons import COURSE, GALLERY_NOTEBOOK, LESSONS, THEMES, Lesson, neighbours
from qviz.ui.widgets import (
    Button,
    Caption,
    Chart,
    Choice,
    Code,
    Disclosure,
    Equation,
    MatrixView,
    NumberLine,
    Readout,
    Slider,
    Status,
    Table,
    TextField,
    Toggle,
    Transport,
    as_address,
    from_address,
)

ALL = [*LESSONS, TOY]
SMALL = "model.layers.0.self_attn.k_proj"
#: Lesson → (state of a link, what its code has to give there).
Check = Callable[[Any, dict[str, Any]], None]


def _awq(page: Any, names: dict[str, Any]) -> None:
    part = page.current
    if part is page.channels:
        assert torch.equal(names["found"].errors["at random"], part.shown.found.errors["at random"])
    elif part is page.one:
        assert [s.output for s in names["steps"]] == [s.output for s in part.shown.steps]
    elif part is page.search:
        assert [c.loss for c in names["search"].candidates] == [
            c.loss for c in part.shown.first.candidates
        ]
    elif part is page.clip:
        assert torch.equal(names["clip"].after.codes, part.shown.clip.after.codes)
    else:
        assert names["scores"] == part.shown.scores


def _bit_width(page: Any, names: dict[str, Any]) -> None:
    q = page.shown.tensors[page.bits_control.index]
    assert torch.equal(names["q"].codes, q.codes)
    assert q.bits_per_weight == names["q"].bits_per_weight


def _formats(page: Any, names: dict[str, Any]) -> None:
    if page.part == "a block of weights":
        assert torch.equal(names["q"].codes, page.block.shown.run.q.codes)
        assert names["q"].bits_per_weight == page.block.shown.cost.bits
        return
    assert names["landing"] == page.number.shown.landings[page.format_control.index]


def _gptq(page: Any, names: dict[str, Any]) -> None:
    if page.part == "by hand":
        assert names["walk"].gptq == page.hand.shown.gptq
        return
    assert torch.equal(names["walk"].result.codes, page.shown.first.result.codes)
    assert names["walk"].error[-1] == page.shown.first.error[-1]


def _granularity(page: Any, names: dict[str, Any]) -> None:
    if page.part == "equal bits":
        assert names["points"] == page.budget.shown.points
        return
    at = page.outlier.size_control.index
    for q, shared in zip(names["q"], page.outlier.shown.shared.values(), strict=True):
        window = page.outlier.shown.window
        assert torch.equal(window.of(q.codes), shared.fates[at].codes)
        assert q.bits_per_weight == shared.trained.bits_per_weight


def _gguf(page: Any, names: dict[str, Any]) -> None:
    if page.part == "file":
        assert names["map"] == page.file.shown.maps[page.file.file_control.index]
        return
    if page.part == "types":
        assert names["found"].keys() == page.types.shown.scores.keys()
        for name, (plain, weighed) in page.types.shown.scores.items():
            for a, b in zip((plain, weighed), names["found"][name], strict=True):
                assert (a.error, a.output, a.bits) == (b.error, b.output, b.bits)
        return
    shown = page.encode.shown
    assert torch.equal(names["walk"].data, shown.walk.data)
    block = shown.first // shown.walk.x.numel()
    size = len(shown.walk.data)
    assert (
        names["whole"][block * size : (block + 1) * size].tolist()
        == page.encode.pictures.bytes.values
    )
    if shown.beside == "with importance":
        own = names["weighed"].grid.data[shown.row][block * size : (block + 1) * size]
        assert own.tolist() == page.encode.pictures.bytes.others


def _kernels(page: Any, names: dict[str, Any]) -> None:
    at = page.race.batch_control.index
    assert names["found"].speedup(names["point"]) == page.race.shown.speedup(names["point"])
    assert names["point"].batch == page.race.batches[at]


def _nf4(page: Any, names: dict[str, Any]) -> None:
    size = page.size
    assert torch.equal(names["q"].codes, page.shown.plain(size).codes)
    assert names["double"].bits_per_weight == page.shown.double(size).bits_per_weight
    best = page.shown.entries[size]["Lloyd–Max"]
    assert torch.equal(names["own"].dequantize(), best.dequantize())


def _scale_and_zero_point(page: Any, names: dict[str, Any]) -> None:
    at = min(page.kept_control.index, len(page.code.texts) - 1)
    codes = page.shown.frames.follow(page.shown.numbers.flat).code[at]
    assert torch.equal(names["q"].codes[0].float(), codes)


def _toy(page: Any, names: dict[str, Any]) -> None:
    assert torch.equal(names["error"], page.shown.error)


CODE: dict[str, list[tuple[dict[str, str], Check]]] = {
    "awq": [
        ({"kept": "1 %", "loud": "8×"}, _awq),
        ({"part": "one channel", "bits": "4", "scale": "group of 64"}, _awq),
        ({"part": "search", "grid": "llm-compressor-both", "layer": SMALL}, _awq),
        ({"part": "clip and fold", "layer": SMALL}, _awq),
        ({"part": "beside others", "layer": SMALL, "loud": "2×"}, _awq),
    ],
    "bit_width": [
        ({"bits": "3"}, _bit_width),
        ({"bits": "2", "levels": "asymmetric", "scale": "row", "dtype": "float32"}, _bit_width),
    ],
    "formats": [
        ({}, _formats),
        ({"format": "bf16", "x": "1/3", "rounding": "toward_zero"}, _formats),
        ({"format": "fp8_e4m3", "x": "500", "beyond": "last"}, _formats),
        ({"part": "a block of weights", "layer": SMALL, "block": "mxfp6_e2m3"}, _formats),
    ],
    "scale_and_zero_point": [
        ({"kept": "75 %"}, _scale_and_zero_point),
        ({"levels": "asymmetric", "look": "gate", "kept": "by hand", "ends": "-0.2, 1"},
         _scale_and_zero_point),
    ],
    "gptq": [
        ({}, _gptq),
        ({"part": "a real layer", "layer": SMALL}, _gptq),
        ({"layer": SMALL, "tokens": "64", "order": "act-order",
          "judge": "the calibration text"}, _gptq),
    ],
    "gguf": [
        ({}, _gguf),
        ({"layer": SMALL, "type": "Q6_K", "beside": "with importance"}, _gguf),
        ({"layer": SMALL, "type": "MXFP4", "weight": "2, 200"}, _gguf),
        ({"part": "types", "layer": SMALL}, _gguf),
        ({"part": "file", "file": "Q3_K_M", "imatrix": "on"}, _gguf),
    ],
    "granularity": [
        ({"size": "16×", "layer": SMALL}, _granularity),
        ({"size": "100×", "layer": SMALL, "outlier": "3, 5", "bits": "3"}, _granularity),
        ({"size": "8×", "matrix": "weights in flat blocks", "layer": SMALL}, _granularity),
        ({"size": "8×", "matrix": "inputs of the layer", "layer": SMALL}, _granularity),
        ({"part": "equal bits", "layer": SMALL}, _granularity),
    ],
    "memory_and_speed": [({"tokens": "16"}, _kernels)],
    "nf4": [
        ({"part": "fill", "layer": SMALL}, _nf4),
        ({"part": "duel", "layer": SMALL, "block": "256"}, _nf4),
    ],
    "toy": [({"bits": "2"}, _toy)],
}  # fmt: skip
#: Lesson → the control whose frame its code shows.
LEADS = {
    "bit_width": "bits",
    "formats": "format",
    "granularity": "size",
    "memory_and_speed": "tokens",
    "nf4": "block",
    "scale_and_zero_point": "kept",
}
#: Lessons that are as well tested on a small layer as on their own.
SMALL_FIRST = ("bit_width", "gguf", "granularity", "nf4", "scale_and_zero_point", "toy")
#: States in which the parts of a lesson are open, besides the one it opens in.
PARTS: dict[str, list[dict[str, str]]] = {
    "awq": [
        {"part": part, "layer": SMALL}
        for part in ("one channel", "search", "clip and fold", "beside others")
    ],
    "formats": [{"part": "a block of weights", "layer": SMALL}],
    "gptq": [{"part": "a real layer", "layer": SMALL}],
    "gguf": [{"part": "types", "layer": SMALL}, {"part": "file"}],
    "granularity": [{"part": "equal bits", "layer": SMALL}],
    "memory_and_speed": [
        {"part": "race", "format": "int8"},
        {"part": "inside"},
        {"part": "model"},
    ],
    "nf4": [{"part": part, "layer": SMALL} for part in ("fill", "store", "duel")],
}


@pytest.fixture(scope="module")
def pages() -> dict[str, Any]:
    return {}


#: Lesson → what a guess has shown, beside its verdict.
HIDDEN: dict[str, list[str]] = {}
#: The widgets and traits that the browser moves by itself.
MOVED: set[tuple[int, str]] = set()


def linked(link: Any, source: Any, target: Any) -> Any:
    """Remember what is tied to what."""
    MOVED.add((id(target[0]), target[1]))
    if link.__name__ == "jslink":  # in both directions
        MOVED.add((id(source[0]), source[1]))
    return link(source, target)


def hidden(page: Any) -> list[str]:
    """What the answer to a prediction lets the learner see, in a page that was just opened."""
    prediction = page.prediction
    if prediction is None:
        return []
    for part in ({}, *PARTS.get(page.lesson.slug, [])):
        page.go(part)
        if visible(page.widget, prediction.control) and not prediction.control.disabled:
            break
    assert not prediction.revealed and not "".join(prediction.verdict.texts)
    its_own = {id(widget) for widget in widgets(prediction.box)}
    shows = (Caption, Chart, MatrixView, Readout, Table)
    others = [
        f"{i} {type(widget).__name__}"
        for i, widget in enumerate(widgets(page.widget))
        if isinstance(widget, shows) and id(widget) not in its_own
    ]
    before = on_screen(page)
    prediction.control.index = 1
    assert prediction.revealed and "".join(prediction.verdict.texts)
    after = on_screen(page)
    prediction.control.index = 0
    changed = [name for name in before if before[name] != after[name]]
    return [name for name in changed if name.rsplit(".", 1)[0] in others]


@pytest.fixture(params=ALL, ids=lambda lesson: lesson.slug)
def page(request: pytest.FixtureRequest, pages: dict[str, Any]) -> Any:
    lesson: Lesson = request.param
    if lesson.slug not in pages:
        view = getattr(importlib.import_module(lesson.module), lesson.view)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("jslink", "jsdlink"):
                patch.setattr(ipywidgets, name, partial(linked, getattr(ipywidgets, name)))
            pages[lesson.slug] = view()
        HIDDEN[lesson.slug] = hidden(pages[lesson.slug])
    found = pages[lesson.slug]
    found.go({})
    found.guide.active = -1
    found._step = None
    return found


def states(page: Any) -> list[dict[str, str]]:
    """The page as it opens, but on a small layer, and its other parts."""
    first = {"layer": SMALL} if page.lesson.slug in SMALL_FIRST else {}
    return [first, *PARTS.get(page.lesson.slug, [])]


def widgets(root: Any) -> Iterator[Any]:
    """Every widget of a page."""
    yield root
    for child in getattr(root, "children", ()):
        yield from widgets(child)


def on_screen(page: Any) -> dict[str, Any]:
    """All that the browser is told, but for counters and the line that says what went wrong."""
    state = {}
    for i, widget in enumerate(widgets(page.widget)):
        if isinstance(widget, Status):
            continue
        for name, value in widget.get_state().items():
            if name == "readout":  # which has a counter of its own
                value = {k: v for k, v in value.items() if k != "version"}
            if name not in ("version", "runs", "answered", "busy") and not name.startswith("_view"):
                state[f"{i} {type(widget).__name__}.{name}"] = bytes(value) if isinstance(
                    value, (bytes, memoryview)) else value  # fmt: skip
    return state


def assert_unchanged(before: dict[str, Any], page: Any) -> None:
    after = on_screen(page)
    assert before.keys() == after.keys()
    different = [name for name in before if before[name] != after[name]]
    assert not different


# ------------------------------------------------------------------------------------ the course


def test_the_course() -> None:
    assert [one.number for one in COURSE] == list(range(1, 16))
    assert len({one.slug for one in COURSE}) == 15
    assert {one.theme for one in COURSE} == set(THEMES)
    for one in COURSE:
        assert one.title and one.question.endswith("?")
        assert bool(one.view) == bool(one.promise) == one.exists
    assert neighbours(LESSONS[0]) == (None, LESSONS[1])
    assert neighbours(LESSONS[-1]) == (LESSONS[-2], None)
    assert set(CODE) == {one.slug for one in ALL}, "each lesson has code whose result is checked"


IMPORTS = """
import json, os, sys
import anywidget, torch  # which all of them need, and which take seconds
for view, others in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        exec(f"from qviz.ui.views import {view}")
        print(view, [name for name in others if name in sys.modules], flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_importing_one_lesson_imports_no_other() -> None:
    asked = [(one.view, [o.module for o in LESSONS if o is not one]) for one in LESSONS]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, json.dumps(asked)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{view} []" for view, _ in asked]


def test_a_new_lesson_is_short() -> None:
    """Its whole file, imports and state too; no line is longer than elsewhere."""
    lines = inspect.getsource(toy_lesson).splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 100


# ------------------------------------------------------------------------------------ one lesson


def test_it_opens_with_its_name_and_its_neighbours(page: Any) -> None:
    lesson, head = page.lesson, page.head
    assert page.status.text == ""
    assert head.title == f"{lesson.number} · {lesson.title}" and head.question == lesson.question
    assert head.gallery == GALLERY_NOTEBOOK
    before, after = neighbours(lesson)
    assert (head.before, head.after) == (before.slug if before else "", after.slug if after else "")
    assert [one["number"] for one in head.course] == list(range(1, 16))
    assert page.state == {} and page.address.state == ""


def values_of(field: Any) -> list[str]:
    """Other values that a field can take now: the next and the last."""
    if isinstance(field, OptionField):
        others = [name for name in field.names if name != field.text and name != "kept"]
        return others[:1] + others[-1:] if not field.control.disabled else []
    if isinstance(field, ToggleField):
        return ["on" if field.text == "off" else "off"]
    if isinstance(field, StepField):
        return ["1", str(field.control.n - 1)]
    if isinstance(field, CellField):
        rows, columns = field.control.shape
        return [f"{rows - 1}, {columns - 1}"]
    if isinstance(field, HandlesField):
        return field.names[1:]
    return []


#: Names whose value decides what others can be: each goes alone, the others together.
DECIDING = {
    "part",
    "layer",
    "matrix",
    "levels",
    "text",
    "figures",
    "shape",
    "format",
    "multiplied",
    "scale",
    "rows",
    "block",
    "system",
    "look",
    "ends",
    "type",
    "beside",
}


#: Lesson → how many of its captions and readouts are about what no choice changes (a table of
#: hardware, the levels of NF4), so that only their own control moves them on.
STILL = {"formats": 2, "gguf": 1, "memory_and_speed": 1, "nf4": 4}
#: Of some lessons what is worked out frame by frame, as the learner comes there.
AS_ASKED = {"nf4": ("Caption.texts", "Table.frames")}


def in_sight(page: Any) -> dict[str, Any]:
    """What of all that the learner sees, with what a prediction hides, while nobody points at a
    weight. Not what was touched last: the terms that are lit, and where a control stands that
    does not count now."""
    idle = {id(getattr(f, "control", None)) for f in page.fields.values() if not f.live()}
    for field in page.fields.values():
        if isinstance(field, CellField) and field.live() and not field.control.pinned:
            field.control.cursor = [-1, -1]
            field.control.cursor = [0, 0]
    if page.prediction is not None and visible(page.widget, page.prediction.control):
        page.prediction.moved()
    seen = {
        f"{i} {type(widget).__name__}": widget
        for i, widget in enumerate(widgets(page.widget))
        if visible(page.widget, widget)
        and not getattr(widget, "disabled", False)
        and id(widget) not in idle
    }
    whole = {tuple(name.rsplit(".", 1)): value for name, value in on_screen(page).items()}
    return {
        f"{name}.{trait}": np.float32(value).tolist() if trait == "values" else value
        for (name, trait), value in whole.items()
        if name in seen and (not isinstance(seen[name], Equation) or trait != "active")
    }  # fmt: skip


#: What a page says of what it shows, by the trait that says it.
SAYS = {Caption: "texts", Table: "frames", Chart: "summaries",
        MatrixView: "summaries", Code: "texts"}  # fmt: skip


def said(page: Any) -> dict[int, tuple[str, str]]:
    """Of captions, readouts and code in sight: widget → (its name, what it says)."""
    told = {}
    verdict = None if page.prediction is None else page.prediction.verdict
    for widget in widgets(page.widget):
        words = words_of(widget) if isinstance(widget, (Caption, Readout, Code)) else ()
        if words and widget is not verdict and visible(page.widget, widget):
            told[id(widget)] = named(widget), repr(words)
    return told


def words_of(widget: Any) -> Any:
    """What it says, a frame each; empty where it says nothing."""
    if isinstance(widget, Readout):
        return [widget.rows] * max((len(row["texts"]) for row in widget.rows), default=0)
    traits = (trait for kind, trait in SAYS.items() if isinstance(widget, kind))
    return getattr(widget, next(traits, ""), ())


def named(widget: Any) -> str:
    return f"{type(widget).__name__} {getattr(widget, 'label', '')}"


def test_each_control_makes_its_round_through_a_link(page: Any) -> None:
    """And the page shows the same, whether a control was moved or a link was opened from anywhere;
    and whatever says something follows one of the controls."""
    tried: set[str] = set()
    alone: set[str] = set()  # what never had but one value to choose from
    made: list[tuple[dict[str, str], dict[str, str], str, dict[str, Any]]] = []
    heard: dict[int, tuple[str, set[str]]] = {}
    for base in states(page):
        page.go(base)
        plans = {k: values_of(f) for k, f in page.fields.items() if f.live() and k not in base}
        together = {k: values for k, values in plans.items() if values and k not in DECIDING}
        rounds = [{k: v} for k in plans.keys() & DECIDING for v in dict.fromkeys(plans[k])]
        rounds += [{k: values[at] for k, values in together.items()} for at in (0, -1)]
        for state in rounds:
            reach(page, base, state)
            whole = page.whole_state
            assert {k: whole[k] for k in state} == state
            made.append((state, whole, page.address.state, in_sight(page)))
            for one, (name, text) in said(page).items():
                heard.setdefault(one, (name, set()))[1].add(text)
            tried |= {*base, *state}
        alone |= {k for k, values in plans.items() if not values}
    for state, whole, link, before in made:
        page._on_address(link)  # as the browser asks for it
        assert page.status.text == ""
        assert page.whole_state == whole
        after = in_sight(page)
        different = [k for k in before | after if before.get(k) != after.get(k)]
        if page.lesson.slug in AS_ASKED:
            different = [k for k in different if not k.endswith(AS_ASKED[page.lesson.slug])]
        assert different == [], state
    can = {k for k, f in page.fields.items() if getattr(f, "control", None) is not None}
    words = {"row", "inputs", "prompt"}  # each in the test of its lesson
    assert can <= tried | alone | words
    assert len(tried) > len(alone)
    still = [name for name, texts in heard.values() if len(texts) < 2]
    assert len(still) == STILL.get(page.lesson.slug, 0), still


def reach(page: Any, base: dict[str, str], state: dict[str, str]) -> None:
    """A state, by hand where that is one control in sight."""
    if len(state) == 1:
        [(key, value)] = state.items()
        page.go(base)
        if visible(page.widget, page.fields[key].control):
            page.fields[key].set(value)
            return
    page.go({**base, **state})


def test_every_control_is_in_the_address(page: Any) -> None:
    """Or is known to be left out: guesses are each learner's own, and models and texts to be
    opened are typed in before they count."""
    controls = {id(f.control) for f in page.fields.values() if hasattr(f, "control")}
    left_out = {"Model", "Your own text", *(
        [] if page.prediction is None else [page.prediction.control.label])}  # fmt: skip
    for widget in widgets(page.widget):
        if isinstance(widget, (Slider, Choice, Toggle, TextField, Transport)) or (
            isinstance(widget, NumberLine) and widget.handles
        ):
            assert id(widget) in controls or widget.label in left_out, widget.label


def test_names_and_values_with_any_characters_survive_a_link() -> None:
    state = {"layer": "model.layers.0.mlp.experts.gate_up_proj[3]", "text": "ä & b=c #1 + 50 %",
             "層": "重み"}  # fmt: skip
    link = as_address(state)
    assert from_address(link) == from_address(f"#{link}") == state
    assert not set(link) & set('[] #"<>')
    with pytest.raises(ValueError, match="name=value"):
        from_address("nonsense")


def test_a_bad_link_is_said_and_changes_nothing(page: Any) -> None:
    before = on_screen(page)
    key = next(k for k, f in page.fields.items() if isinstance(f, OptionField) and f.live())
    for link in ("nonsense", "no_such_name=1", f"{key}=no+such+value", "%ff=1"):
        page._on_address(link)
        assert page.status.kind == "error" and "address" in page.status.text, link
        assert_unchanged(before, page)


def test_a_bad_source_is_said_and_changes_nothing(page: Any, tmp_path: Any) -> None:
    if not isinstance(page, LayerPage):
        pytest.skip("this lesson opens no layer of the learner's")
    for base in states(page):
        page.go(base)
        page.source_control.value = ""
        before = on_screen(page)
        for source in ("", str(tmp_path), str(tmp_path / "nowhere")):
            page.source_control.value = source
            page.open_button.click()
            assert page.status.kind == "error" and page.status.text
            page.source_control.value = ""
            assert_unchanged(before, page)


@contextmanager
def failing(owner: Any, name: str, error: Exception, after: bool) -> Iterator[None]:
    """The first call of a method fails, before it does anything or after it has."""
    true, calls = getattr(owner, name), []

    def broken(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) > 1:
            return true(*args, **options)
        if after:
            true(*args, **options)
        raise error

    setattr(owner, name, broken)
    try:
        yield
    finally:
        delattr(owner, name)
    assert calls


@pytest.mark.parametrize(("name", "after"), [("compute", False), ("compute", True), ("draw", True)])
def test_a_failing_computation_restores_what_was_shown(page: Any, name: str, after: bool) -> None:
    for base in states(page):
        if base == {"part": "model"}:
            continue  # nothing is computed there before a button is pressed
        page.go(base)
        key, field = next(
            (k, f) for k, f in page.fields.items()
            if isinstance(f, OptionField) and not f.looks and f.live() and k not in base
            and k not in ("layer", "part") and len(f.names) > 1
        )  # fmt: skip
        before, shown = on_screen(page), page.current.shown
        with failing(page.current, name, ValueError("made up"), after):
            field.set(next(n for n in field.names if n != field.text))
        assert page.status.kind == "error" and "made up" in page.status.text
        assert page.current.shown is shown, key
        assert_unchanged(before, page)
        with failing(page.current, name, KeyError("made up"), after), pytest.raises(KeyError):
            field.set(next(n for n in field.names if n != field.text))
        assert "defect" in page.status.text
        assert_unchanged(before, page)


def test_its_code_runs_and_gives_what_is_on_screen(page: Any, capsys: Any) -> None:
    for state, check in CODE[page.lesson.slug]:
        page.go(state)
        code = next(w for w in widgets(page.widget) if isinstance(w, Code) and
                    w.label == "Python code")  # fmt: skip
        lead = LEADS.get(page.lesson.slug)
        at = 0 if lead is None else page.fields[lead].control.index  # whose frame it shows
        at = min(at, len(code.texts) - 1)  # or one text for all
        names: dict[str, Any] = {}
        exec(code.texts[at], names)
        check(page, names)


def test_all_that_can_be_reached_has_a_name(page: Any) -> None:
    for base in states(page):
        page.go(base)
        for widget in widgets(page.widget):
            if isinstance(
                widget,
                (
                    Slider,
                    Choice,
                    Toggle,
                    TextField,
                    Button,
                    Transport,
                    Code,
                    NumberLine,
                ),
            ):
                assert widget.label, type(widget).__name__
            if isinstance(widget, Disclosure):
                assert widget.summary
            if isinstance(widget, Equation):
                assert widget.aria
            if isinstance(widget, (Readout, Table)) and (
                getattr(widget, "rows", None) or getattr(widget, "frames", None)
            ):
                assert widget.label


def test_each_picture_says_what_it_shows(page: Any) -> None:
    for base in states(page):
        page.go(base)
        for widget in widgets(page.widget):
            if isinstance(widget, (MatrixView, Chart, NumberLine)) and visible(page.widget, widget):
                assert widget.label
                assert widget.summaries and all(text.strip() for text in widget.summaries)
            if isinstance(widget, Caption) and visible(page.widget, widget):
                assert isinstance(widget.texts, list)


def visible(root: Any, widget: Any) -> bool:
    """Whether no box around it is taken out of the page."""
    if root is widget:
        return True
    if "qv-gone" in getattr(root, "_dom_classes", ()):
        return False
    return any(visible(child, widget) for child in getattr(root, "children", ()))


def test_no_two_controls_of_a_part_have_one_name(page: Any) -> None:
    for base in states(page):
        page.go(base)
        labels = [
            w.label
            for w in widgets(page.widget)
            if isinstance(w, (Slider, Choice, Toggle, TextField, NumberLine))
            and visible(page.widget, w)
        ]
        assert len(labels) == len(set(labels)), labels


def test_what_has_frames_follows_a_control_in_the_browser(page: Any) -> None:
    """Pictures, tables and words that were sent ahead show the frame that a slider says."""
    for base in states(page):
        page.go(base)
        for widget in widgets(page.widget):
            if len(words_of(widget)) > 1 and visible(page.widget, widget):
                assert (id(widget), "frame") in MOVED, named(widget)


def test_pictures_of_one_matrix_are_enlarged_together(page: Any) -> None:
    for base in states(page):
        page.go(base)
        shown = [w for w in widgets(page.widget)
                 if isinstance(w, MatrixView) and visible(page.widget, w)]  # fmt: skip
        for view in shown:
            if any(view.shape == other.shape for other in shown if other is not view):
                assert (id(view), "view") in MOVED, view.label


# ------------------------------------------------------------------------------- the prediction

#: Lessons that ask about something else than the layer.
OF_NO_LAYER = ("formats",)


def test_a_prediction_hides_its_answer_until_it_is_guessed_or_seen(page: Any) -> None:
    if page.prediction is None:
        pytest.skip("this lesson asks for no prediction")
    assert HIDDEN[page.lesson.slug], "nothing was hidden"


def test_another_layer_is_another_question(page: Any) -> None:
    if page.prediction is None or not isinstance(page, LayerPage):
        pytest.skip("this lesson asks nothing about a layer")
    if page.lesson.slug in OF_NO_LAYER:
        pytest.skip("this lesson asks about something else")
    other = SMALL.replace("k_proj", "v_proj")
    prediction = page.prediction
    part = next(({"part": p["part"]} for p in PARTS.get(page.lesson.slug, ())
                 if page.lesson.slug == "gptq"), {})  # fmt: skip
    page.go({**part, "layer": SMALL})
    prediction.control.index = 1
    assert prediction.revealed and "".join(prediction.verdict.texts)
    page.go({**part, "layer": other})
    assert not prediction.revealed and not prediction.guessed
    assert not "".join(prediction.verdict.texts)


# ------------------------------------------------------------------------------------ the guide


def test_each_step_of_the_guide_can_be_done(page: Any) -> None:
    assert page.guide_steps
    for i, step in enumerate(page.guide_steps):
        page.guide.done = [False] * len(page.guide_steps)
        page.guide.click(i)
        assert page.status.kind == "", (step.title, page.status.text)
        assert page.guide.active == i
        for key, value in step.start.items():
            assert page.whole_state[key] == value
        assert not page.guide.done[i], f"“{step.title}” is done before the learner did it"
        for key, goal in step.done.items():
            field = page.fields[key]
            offered = getattr(field, "names", None) or values_of(field)
            field.set(goal.example(page._began.get(key, ""), offered))
        if "measure" in step.deeds:
            page.race.measuring.wait(1)  # none is under way
            pytest.MonkeyPatch().setattr("qviz.ui.views.kernels_race.SECONDS", 0.002)
            # What a machine does at best takes half a minute to find out: a recorded one's will do.
            page.race._ceilings = recorded()[-1].measurement.ceilings
        for deed in step.deeds:
            page.deeds[deed].click()
            if deed == "measure":
                page.race.measuring.wait(120)
        assert page.status.kind == "", (step.title, page.status.text)
        assert page.guide.done[i], f"“{step.title}” was done and is not ticked"


def test_words_of_the_guide_name_what_is_on_the_page(page: Any) -> None:
    """What stands in quotation marks is a control, a button, an option, or a row of a table."""
    for i, step in enumerate(page.guide_steps):
        page.guide.click(i)
        said = set()
        for widget in widgets(page.widget):
            for name in ("label", "summary", "text"):
                said.add(getattr(widget, name, ""))
            said |= set(getattr(widget, "options", ()))
            for rows in [getattr(widget, "rows", ()), *getattr(widget, "frames", ())]:
                said |= {row["label"] for row in rows if isinstance(row, dict)}
            said |= {"One step forward", "now"} if isinstance(widget, Transport) else set()
        for quoted in step.watch.split("“")[1:]:
            assert quoted.partition("”")[0] in said, (step.title, quoted)
        assert isinstance(page.widget, ipywidgets.Box)
