"""The Python side of the widgets, driven by the messages and traits that a browser would send."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qviz.ui import extension
from qviz.ui.views.fields import HandlesField
from qviz.ui.widgets import (
    Button,
    Caption,
    Chart,
    Choice,
    Disclosure,
    Equation,
    MatrixFrame,
    MatrixView,
    NumberLine,
    PlotlyLoader,
    Readout,
    Slider,
    Status,
    Text,
    Toggle,
    Transport,
    base,
    codec,
    details,
    figures_row,
    link,
    link_matrices,
    number,
    page,
    section,
)

RNG = np.random.default_rng(0)
A = RNG.standard_normal((30, 40)).astype(np.float32)


class Browser:
    """What a widget sends to its browser, and a way to send as the browser does."""

    def __init__(self, widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widget = widget
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        monkeypatch.setattr(
            widget, "send", lambda content, buffers=None: self.sent.append((content, buffers or []))
        )

    def send(self, **content: Any) -> None:
        self.widget._handle_custom_msg(content, [])


@pytest.fixture
def browse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Browser]:
    return lambda widget: Browser(widget, monkeypatch)


def test_a_widget_answers_who_waits_until_changes_were_heard(browse) -> None:
    """And nobody takes that for a press."""
    button = Button("Compute")
    pressed: list[Any] = []
    button.on_click(pressed.append)
    browser = browse(button)
    browser.send(type="hear", id="qv-heard-3")
    assert browser.sent == [({"heard": "qv-heard-3"}, [])] and pressed == []


# ---------------------------------------------------------------------- MatrixView


def sent_frames(view: MatrixView) -> np.ndarray:
    return np.frombuffer(view.data, np.uint8).reshape(len(view.ranges), *view.grid)


def test_frames_are_sent_against_their_own_range() -> None:
    view = MatrixView("W", [A, A / 10, A / 100], limits=1.0)
    for i, indices in enumerate(sent_frames(view)):
        span = view.ranges[i]
        back = codec.decode(indices, *span)
        step = (span[1] - span[0]) / 254
        assert np.abs(back - np.clip(A / 10**i, *span)).max() <= step * 0.51
    assert view.shared_limits == [[-1.0, 1.0]] * 3
    assert view.own_limits[1][1] < view.own_limits[0][1] / 9  # autoscale uses each frame's own


def test_large_matrices_are_sent_at_display_resolution() -> None:
    big = RNG.standard_normal((1030, 513)).astype(np.float32)
    view = MatrixView("W", [big], reduce="max_abs", limits="max")
    assert (view.shape, view.step, view.grid) == ([1030, 513], [3, 2], [344, 257])
    want = codec.encode(codec.reduce_matrix(big, (3, 2), "max_abs"), *view.ranges[0])
    np.testing.assert_array_equal(sent_frames(view)[0], want)


def test_frames_may_be_tensors_functions_and_frames() -> None:
    tensor = torch.from_numpy(A).to(torch.bfloat16)
    view = MatrixView("W", [tensor, lambda: A, MatrixFrame(A), A.astype(np.float64), A.tolist()])
    assert view.values_at(3, 4)[1:] == [pytest.approx(float(A[3, 4]))] * 4
    assert view.values_at(3, 4)[0] == float(tensor[3, 4])


def test_windows_spare_the_whole_matrix(browse: Callable[[Any], Browser]) -> None:
    whole = []

    def compute() -> np.ndarray:
        whole.append(1)
        return A

    asked = []

    def window(rows: slice, columns: slice) -> np.ndarray:
        asked.append((rows, columns))
        return A[rows, columns]

    view = MatrixView("W", [MatrixFrame(compute, window)])
    whole.clear()
    browser = browse(view)
    view.cursor = [2, 3]
    browser.send(type="tile", id="a", version=view.version, frame=0, rows=[0, 5], cols=[1, 9])
    assert view.readout["texts"] == [number(A[2, 3], 6)]
    assert browser.sent[0][0]["grid"] == [5, 8]
    assert whole == []
    assert asked == [(slice(2, 3), slice(3, 4)), (slice(0, 5), slice(1, 9))]


def test_computed_frames_are_kept_within_limits() -> None:
    calls = []

    def frame(k: int) -> Callable[[], np.ndarray]:
        def compute() -> np.ndarray:
            calls.append(k)
            return A * k

        return compute

    view = MatrixView("W", [frame(1), frame(2)])
    view.values_at(0, 0)
    view.values_at(1, 1)
    assert calls == [1, 2]  # computed once each: both fit into what is kept


def test_cursor_is_answered_with_exact_values_of_all_frames() -> None:
    view = MatrixView("W", [A, A * 2])
    assert view.readout == {}
    view.cursor = [29, 39]
    assert view.readout["texts"] == [number(A[29, 39], 6), number(A[29, 39] * 2, 6)]
    view.set_frames([A * 3])
    assert view.readout["texts"] == [number(A[29, 39] * np.float32(3), 6)]
    assert view.readout["version"] == view.version
    view.set_frames([A[:5, :5]])  # the cursor's cell is gone
    assert view.cursor == [-1, -1]
    assert view.readout == {}


@settings(max_examples=40)
@given(st.data())
def test_tiles_are_the_exact_region(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 700))
    matrix = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    view = MatrixView("W", [matrix, -matrix], limits="max")
    sent: list[Any] = []
    view.send = lambda content, buffers=None: sent.append((content, buffers))
    r = sorted(data.draw(st.tuples(st.integers(-3, rows + 3), st.integers(-3, rows + 3))))
    c = sorted(data.draw(st.tuples(st.integers(-3, columns + 3), st.integers(-3, columns + 3))))
    request = {"type": "tile", "id": "t", "version": 1, "frame": 1, "rows": r, "cols": c}
    view._handle_custom_msg(request, [])
    part = -matrix[max(0, r[0]) : max(0, r[1]), max(0, c[0]) : max(0, c[1])]
    if part.size == 0:
        assert sent == []
        return
    content, buffers = sent[0]
    assert (content["rows"][0], content["cols"][0]) == (max(0, r[0]), max(0, c[0]))
    step = tuple(content["step"])
    assert step == codec.factors(part.shape)
    want = codec.encode(codec.reduce_matrix(part, step, "nearest"), *view.ranges[1])
    np.testing.assert_array_equal(
        np.frombuffer(buffers[0], np.uint8).reshape(content["grid"]), want
    )
    assert (len(buffers) == 2) == (part.size <= 4096)
    if len(buffers) == 2:
        np.testing.assert_array_equal(np.frombuffer(buffers[1], np.float32), part.ravel())


@pytest.mark.parametrize(
    "content",
    [
        {"type": "tile", "version": 0, "frame": 0, "rows": [0, 1], "cols": [0, 1]},  # came late
        {"type": "tile", "version": 1, "frame": 7, "rows": [0, 1], "cols": [0, 1]},
        {"type": "tile", "version": 1, "frame": "0", "rows": [0, 1], "cols": [0, 1]},
        {"type": "tile", "version": 1, "frame": 0, "rows": [5, 5], "cols": [0, 1]},
        {"type": "tile", "version": 1, "frame": 0, "rows": None, "cols": [0, 1]},
        {"type": "tile", "version": 1, "frame": 0, "rows": [0.5, 2], "cols": [0, 1]},
        {"type": "around", "version": 1, "frame": 0, "row": None, "column": 2},
        {"type": "something else", "version": 1, "frame": 0},
        {},
        "text",
    ],
)
def test_requests_that_fit_nothing_are_ignored(
    content: Any, browse: Callable[[Any], Browser]
) -> None:
    view = MatrixView("W", [A])
    browser = browse(view)
    view._handle_custom_msg(content, [])
    assert browser.sent == []


def test_neighbours_stay_inside_the_matrix(browse: Callable[[Any], Browser]) -> None:
    view = MatrixView("W", [A], digits=3)
    browser = browse(view)
    browser.send(type="around", version=1, frame=0, row=29, column=0)
    answer = browser.sent[0][0]
    assert answer["start"] == [23, 0]
    assert answer["texts"] == [[number(v, 3) for v in line] for line in A[23:30, 0:7]]
    small = MatrixView("W", [A[:2, :3]])
    other = browse(small)
    other.send(type="around", version=1, frame=0, row=0, column=0)
    assert np.shape(other.sent[0][0]["texts"]) == (2, 3)


@pytest.mark.parametrize(
    ("limits", "colormap", "want"),
    [
        (2, "diverging", [-2.0, 2.0]),
        (2, "sequential", [0.0, 2.0]),
        ((-1, 3), "diverging", [-1.0, 3.0]),
        ([0.5, (0, 4)], "diverging", [-0.5, 0.5]),
        ("max", "sequential", [0.0, float(np.abs(A).max()) * 2]),
    ],
)
def test_limits(limits: Any, colormap: Any, want: list[float]) -> None:
    frames = [np.abs(A), np.abs(A) * 2]
    view = MatrixView("W", frames, limits=limits, colormap=colormap)
    assert view.shared_limits[0] == pytest.approx(want)


def test_limits_hold_most_values_unless_told_otherwise() -> None:
    outlier = A.copy()
    outlier[0, 0] = 100
    view = MatrixView("W", [outlier])
    assert view.shared_limits[0][1] < 5
    assert view.clipped[0][1] == 100  # the legend says that there is more
    assert view.ranges[0][1] < 5  # and no index is spent on it


@pytest.mark.parametrize("value", [0.0, 0.7, -0.3, 1e-41, 1e30])
def test_constant_matrices_have_a_range(value: float) -> None:
    for colormap in ("diverging", "sequential"):
        view = MatrixView("W", [np.full((3, 3), value)], colormap=colormap)
        for low, high in (*view.ranges, *view.shared_limits, *view.own_limits):
            assert np.isfinite([low, high]).all()
            assert low < high
        if colormap == "diverging":  # zero is white, also where there is nothing else
            for low, high in (*view.shared_limits, *view.own_limits):
                assert low == -high


def test_every_hard_weight_can_be_shown(hard_weight: torch.Tensor) -> None:
    view = MatrixView("W", [hard_weight, hard_weight * 0], reduce="max_abs")
    shown = codec.decode(sent_frames(view)[0], *view.ranges[0])
    span = view.ranges[0]
    want = np.clip(hard_weight.numpy().astype(np.float64), *span)
    assert np.abs(shown - want).max() <= (span[1] - span[0]) / 254 * 0.51
    json.dumps([view.ranges, view.shared_limits, view.own_limits, view.clipped], allow_nan=False)


def test_codes_are_shown_as_they_are() -> None:
    codes = np.arange(12).reshape(3, 4) - 8
    view = MatrixView("Codes", [codes], colormap="categorical")
    np.testing.assert_array_equal(sent_frames(view)[0], codes + 8)
    for bad, words in ((A, "integer codes"), (np.array([[0, 300]]), "255"),):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            MatrixView("Codes", [bad], colormap="categorical")


@pytest.mark.parametrize(
    ("frames", "options", "words"),
    [
        ([], {}, "at least one frame"),
        ([A, A[:5]], {}, "frame 1 has shape"),
        ([A[0]], {}, "1 dimensions"),
        ([A[:0]], {}, "empty"),
        ([A], {"labels": ["a", "b"]}, "2 labels for 1 frames"),
        ([A], {"limits": (3, 1)}, "low < high"),
        ([A], {"limits": "all"}, "unknown limits"),
        ([A], {"limits": [1, 2]}, "2 limits for 1 frames"),
        ([A], {"limits": (1, 2, 3)}, "neither a number nor a pair"),
        ([A], {"colormap": "jet"}, "unknown colormap"),
        ([A], {"describe": []}, "0 descriptions"),
    ],
)
def test_what_is_wrong_with_frames_is_said(frames: Any, options: Any, words: str) -> None:
    view = MatrixView("W", [A])
    before = view.data
    with pytest.raises(ValueError, match=words):
        view.set_frames(frames, **options)
    assert view.data == before  # and the picture stays
    assert view.version == 1


def test_summaries_say_what_a_picture_shows() -> None:
    view = MatrixView("W", [np.array([[1.0, np.nan], [np.inf, -2.0]])], describe=["Loud."])
    assert view.summaries == [
        "2 × 2, from −2 to 1, root mean square 1.581, 1 not a number, 1 infinite. Loud."
    ]


def test_frame_stays_where_it_can() -> None:
    view = MatrixView("W", [A, A, A])
    view.frame = 2
    view.set_frames([A * 2, A, A])
    assert view.frame == 2
    view.set_frames([A])
    assert view.frame == 0


# ---------------------------------------------------------------------- controls


def test_options_can_be_replaced() -> None:
    slider = Slider("Group", ["32", "64", "row"], 1)
    assert slider.value == "64"
    slider.set_options(["16", "32", "64", "128"])
    assert (slider.index, slider.value) == (2, "64")  # the same option, elsewhere
    slider.set_options(["a", "b"])
    assert (slider.index, slider.value) == (1, "b")
    slider.set_options(["x", "y", "z"], 2)
    assert slider.value == "z"


def test_no_observer_sees_an_index_outside_the_options() -> None:
    slider = Slider("Group", ["a"], 0)
    seen = []
    slider.observe(lambda _: seen.append(slider.value), ["index", "options"])
    slider.set_options([str(i) for i in range(9)], 8)
    slider.set_options(["only"], 0)
    assert seen[-1] == "only"


@pytest.mark.parametrize("make", [Slider, Choice])
def test_wrong_options_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="at least one option"):
        make("L", [])
    with pytest.raises(ValueError, match="outside"):
        make("L", ["a"], 1)
    control = make("L", ["a", "b"], 1)
    with pytest.raises(ValueError, match="at least one option"):
        control.set_options([])
    assert control.value == "b"


def test_unknown_kind_of_choice() -> None:
    with pytest.raises(ValueError, match="segmented"):
        Choice("L", ["a"], kind="radio")  # type: ignore[arg-type]


def test_handles_stay_on_their_line_and_in_their_order() -> None:
    line = NumberLine("Weights", handles=["low", "high"])
    line.set_line((-2, 2), [-1, 1], step=0.5)
    line.set_line((-0.5, 3))  # they stay where they can
    assert line.values == [-0.5, 1] and line.step == pytest.approx(3.5 / 200)
    for values, words in (([0.0], "1 values for 2 handles"), ([1.0, 0.0], "keep their order"),
                          ([0.0, 4.0], "between -0.5 and 3"),
                          ([0.0, float("nan")], "between")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            line.set_line((-0.5, 3), values)
        assert line.values == [-0.5, 1]
    for bounds in ((1, 1), (2, 1), (0, float("inf"))):
        with pytest.raises(ValueError, match="two ends"):
            line.set_line(bounds)
    with pytest.raises(ValueError, match="step"):
        line.set_line((0, 1), [0, 1], step=2)
    with pytest.raises(ValueError, match="shade"):
        NumberLine("Weights", shade="left")  # type: ignore[arg-type]


def test_a_frame_takes_handles_to_its_places() -> None:
    line = NumberLine("Weights", handles=["low", "high"])
    line.set_line((-2, 2), [-1, 1])
    line.set_places([(-2, 2), (), (-0.5, 0)])
    assert line.values == [-1, 1]  # until a frame is shown
    for frame, values in ((2, [-0.5, 0]), (1, [-0.5, 0]), (7, [-0.5, 0]), (0, [-2, 2])):
        line.frame = frame  # the browser's link does this
        assert line.values == values
    with pytest.raises(ValueError, match="keep their order"):
        line.set_places([(1, 0)])
    assert len(line.places) == 3


def test_what_lies_behind_a_line_is_checked() -> None:
    line = NumberLine("Weights")
    line.set_histogram([3, 0], [0, 1, 2])
    assert line.bars == [[[3, 0], [0, 1, 2]]]
    line.set_histogram([[1], [2]], [[0, 1], [0, 2]])
    assert [edges for _, edges in line.bars] == [[0, 1], [0, 2]]
    line.set_histogram([], [])
    assert line.bars == []
    for counts, edges in (([1], [0]), ([-1], [0, 1]), ([1, 1], [0, 2, 1])):
        with pytest.raises(ValueError, match="histogram"):
            line.set_histogram(counts, edges)
    line.set_levels([[0], [1, 2]], "levels")
    assert line.summaries == ["levels", "levels"]
    with pytest.raises(ValueError, match="1 summaries for 2"):
        line.set_levels([[0], [1]], ["one"])


@settings(max_examples=60)
@given(
    st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.lists(st.floats(0, 1), min_size=2, max_size=2)
)
def test_handles_survive_a_link(low: float, span: float, at: list[float]) -> None:
    line = NumberLine("Weights", handles=["low", "high"])
    line.set_line((low, low + span), [low + t * span for t in sorted(at)])
    field = HandlesField("range", line)
    text = field.text
    field.set(text)
    assert field.text == text and field.offers(text)
    assert not field.offers("1") and not field.offers("a, b") and not field.offers("")
    assert field.names[0] == text
    field.set(field.names[1])
    line.set_line((0, 1), [0.25, 0.5])
    assert HandlesField("range", line).names[1] != HandlesField("range", line).text
    with pytest.raises(ValueError, match="range=5, 6 in the address"):
        field.set("5, 6")


def test_button_calls_its_handlers(browse: Callable[[Any], Browser]) -> None:
    button = Button("Go")
    got = []
    button.on_click(got.append)
    browse(button).send(type="click")
    button.click()
    button.disabled = True
    button._handle_custom_msg({"type": "click"}, [])
    assert got == [button, button]


def test_link_needs_targets_and_makes_one_link_each() -> None:
    toggle, view = Toggle("On"), MatrixView("W", [A])
    ties = link(toggle, "value", (view, "autoscale"), (view, "pinned"))
    assert [tie._model_name for tie in ties] == ["LinkModel", "LinkModel"]
    (tie,) = link(toggle, "value", (view, "autoscale"), back=False)
    assert tie._model_name == "DirectionalLinkModel"
    with pytest.raises(ValueError, match="at least one"):
        link(toggle, "value")
    link_matrices(view, MatrixView("V", [A]))


# ---------------------------------------------------------------------- Chart


def unpack(chart: Chart) -> list[dict[str, Any]]:
    """The figures as the browser rebuilds them."""

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(v) for v in value]
        if isinstance(value, dict) and "qv" in value:
            kind = np.dtype("<" + value["qv"])
            count = int(np.prod(value["shape"]))
            assert value["at"] % kind.itemsize == 0
            return np.frombuffer(chart.buffers, kind, count, value["at"]).reshape(value["shape"])
        if isinstance(value, dict):
            return {k: walk(v) for k, v in value.items()}
        return value

    return [walk(f) for f in json.loads(chart.figures)]


def test_figures_travel_as_bytes_and_equal_arrays_once() -> None:
    x, z = np.linspace(0, 1, 100), RNG.standard_normal((5, 6))
    figures = [
        go.Figure([go.Scatter(x=x, y=x**k, name=f"<{k}>"), go.Heatmap(z=z)]) for k in range(3)
    ]
    chart = Chart("Curves", figures, ["a", "b", "c"])
    for k, figure in enumerate(unpack(chart)):
        np.testing.assert_allclose(figure["data"][0]["y"], x**k, rtol=1e-6)
        np.testing.assert_allclose(figure["data"][1]["z"], z, rtol=1e-6)
        assert figure["data"][0]["name"] == f"<{k}>"
        assert "template" not in figure["layout"]
    assert len(chart.buffers) <= 4 * (100 * 4 + 30) + 64  # x, three y (x⁰ too), one z in float32


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.linspace(0, 1, 9), "f4"),
        (1e9 + np.arange(9.0), "f8"),  # float32 would merge neighbours
        (np.array([1e-300, 1.0]), "f8"),
        (np.array([1e300, 1.0]), "f8"),
        (np.arange(9), "i1"),
        (np.array([0, 2**20]), "i4"),
        (np.array([0.5, np.nan, np.inf]), "f4"),
    ],
)
def test_arrays_take_the_smallest_type_that_keeps_them(values: np.ndarray, kind: str) -> None:
    figure = {"data": [{"type": "scatter", "y": values}], "layout": {}}
    chart = Chart("C", [go.Figure(figure) if kind == "i1" else figure])
    y = json.loads(chart.figures)[0]["data"][0]["y"]
    assert y["qv"] == ("i4" if kind == "i1" and y["qv"] == "i4" else kind)
    np.testing.assert_allclose(unpack(chart)[0]["data"][0]["y"], values, rtol=1e-6)


def test_lists_scalars_and_text_in_figures() -> None:
    figure = go.Figure(
        go.Scatter(x=["a", "b"], y=[1.0, float("nan")], customdata=[np.float32(2)]),
        {"title": "t", "xaxis": {"range": [0, np.float64(1)]}},
    )
    packed = unpack(Chart("C", [figure]))[0]
    assert list(packed["data"][0]["x"]) == ["a", "b"]
    assert packed["layout"]["title"]["text"] == "t"


def test_what_is_no_figure_is_refused() -> None:
    chart = Chart("C")
    for bad, words in (([], "at least one"), ([3], "not int"), ([{"layout": {}}], "not dict")):
        with pytest.raises(ValueError, match=words):
            chart.set_figures(bad)
    with pytest.raises(ValueError, match="2 summaries for 1"):
        chart.set_figures([go.Figure()], ["a", "b"])


@pytest.mark.parametrize("make", [lambda: Chart("C"), PlotlyLoader])
def test_plotly_comes_from_the_kernel_on_request(
    make: Callable[[], Any], browse: Callable[[Any], Browser]
) -> None:
    browser = browse(make())
    browser.send(type="plotly")
    content, buffers = browser.sent[0]
    assert content == {"type": "plotly"}
    assert b"plotly.js v" in buffers[0][:200]


def test_plotly_is_asked_for_where_the_server_offers_it() -> None:
    patterns = [pattern for pattern, *_ in extension.handlers("/base/")]
    assert any(re.fullmatch(pattern, f"/base/{Chart('C').url}") for pattern in patterns)
    assert Chart("C").url.endswith(extension.plotly_js_name())


# ---------------------------------------------------------------------- the rest


def test_transport_checks_its_steps() -> None:
    transport = Transport(10, 3, "column", events={"outlier": [2]}, captions=["c"] * 10)
    transport.set_steps(5)
    assert (transport.n, transport.index, transport.events) == (5, 3, {})
    transport.set_steps(2)
    assert transport.index == 1
    for arguments, words in (
        ((0,), "at least one step"),
        ((5, 5), "outside the steps"),
    ):
        with pytest.raises(ValueError, match=words):
            transport.set_steps(*arguments)
    with pytest.raises(ValueError, match="'late'"):
        transport.set_steps(5, events={"late": [5]})
    with pytest.raises(ValueError, match="2 captions for 5 steps"):
        transport.set_steps(5, captions=["a", "b"])
    with pytest.raises(ValueError, match="positive"):
        Transport(5, speeds=[0])


def test_equation_knows_its_terms() -> None:
    formula = '<math><mi data-term="w">w</mi></math>'
    assert Equation(formula, {"w": "a weight"}, ["w"]).active == ["w"]
    with pytest.raises(ValueError, match="'v' is not marked"):
        Equation(formula, {"v": "?"})
    with pytest.raises(ValueError, match=r"marked are \['w'\]"):
        Equation(formula, actives=[["x"]])


def test_readout_rows_and_captions() -> None:
    table = Readout("T", [("a", ["1", "2"]), ("b", "same", "codes")])
    assert table.rows[1] == {"label": "b", "texts": ["same"], "role": "codes"}
    with pytest.raises(ValueError, match="different numbers of frames"):
        table.set_rows([("a", ["1", "2"]), ("b", ["1", "2", "3"])])
    with pytest.raises(ValueError, match="no text"):
        table.set_rows([("a", [])])
    assert Caption(["one", "two"]).texts == ["one", "two"]
    assert Caption("one").texts == ["one"]


def test_status() -> None:
    status = Status()
    status.busy("Computing")
    assert (status.kind, status.text) == ("busy", "Computing")
    status.show_error("no")
    assert status.kind == "error"
    status.clear()
    assert status.text == ""


def test_page_puts_everything_into_its_place() -> None:
    parts = [Text(name) for name in "abcde"]
    card = section("Own card", parts[2])
    box = page("T", controls=[parts[0]], main=[parts[1], card], side=[parts[3]], caption=parts[4])
    grid = box.children[0]
    assert "qv-page" in grid._dom_classes
    classes = [child._dom_classes for child in grid.children]
    assert [c[0] for c in classes] == ["qv-head", "qv-col", "qv-col", "qv-col"]
    main = grid.children[2].children
    assert [c._dom_classes[0] for c in main] == ["qv-card", "qv-card", "qv-caption-row"]
    assert main[1] is card
    bare = page("T").children[0]
    assert {"qv-no-side", "qv-no-controls"} <= set(bare._dom_classes)
    assert isinstance(details("More", parts[0]).children[0], Disclosure)
    assert len(figures_row(*parts).children) == 5
    with pytest.raises(ValueError, match="h1"):
        Text("x", "marquee")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-0.0, "0"), (-0.041234, "−0.04123"), (123456, "1.235e5"), (1e-7, "1e−7"),
     (float("-inf"), "−∞"), (12, "12")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_widgets_need_neither_torch_nor_plotly() -> None:
    """A page that shows no model should not pay 200 MB and seconds for them."""
    code = (
        "import sys, qviz.ui.widgets; "
        "print([m for m in ('torch', 'plotly', 'pandas', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_modules_stay_small_and_import_nothing() -> None:
    """A module must load within two seconds on a slow machine and without a network."""
    for make in (
        lambda: MatrixView("W"), lambda: Chart("C"), lambda: Transport(1), lambda: Status(),
        lambda: Slider("S", ["a"]), lambda: Equation("<math/>"), lambda: NumberLine("L"),
    ):  # fmt: skip
        text = make()._esm
        assert len(text) < 48_000
        assert "import " not in text.replace("No imports", "")
        assert "http:" not in text.replace("http://www.w3.org", "")
        assert "https:" not in text
        assert "innerHTML" not in text
        assert not [line for line in text.splitlines() if line != line.strip() or not line]
        assert "Helpers in front of every" not in text  # comments stay with the sources


def test_sources_can_lose_their_indentation_and_comments() -> None:
    """No string goes over several lines, where blanks and slashes would be part of it."""
    sources = sorted(Path(base.__file__).parent.glob("*.js"))
    assert len(sources) > 15
    for path in sources:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert line.count("`") % 2 == 0, f"{path.name}: {line}"


def test_a_figure_with_frames_is_the_figures_it_stands_for() -> None:
    base = go.Figure([go.Scatter(x=[0, 1], y=[0, 1], line={"color": "red", "width": 1})])
    base.add_bar(x=[1], y=[2])
    base.frames = [
        go.Frame(traces=[0], data=[{"type": "scatter", "y": [k, k], "line": {"width": k}}])
        for k in (2, 3)
    ]
    several = [
        go.Figure([
            go.Scatter(x=[0, 1], y=[k, k], line={"color": "red", "width": k}),
            go.Bar(x=[1], y=[2]),
        ])
        for k in (2, 3)
    ]  # fmt: skip
    one, two = Chart("c", base, ["a", "b"]), Chart("c", several, ["a", "b"])
    assert one.figures == two.figures
    assert one.buffers == two.buffers
