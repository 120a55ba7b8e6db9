"""Every figure holds the numbers it is given, where a reader looks for them, and says its units."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import KERNEL, measurement, point

from qviz.kernels.registry import BASELINE
from qviz.ui.figures.bit_width import error_curves, levels_histogram
from qviz.ui.figures.common import CODES, ERROR, INK, NOW, ORIGINAL, WAIT, axes_layout
from qviz.ui.figures.gptq import column_codes, errors_so_far, exchange
from qviz.ui.figures.kernels import points_of, role, roofline, speedups, times

BITS = (2, 3, 4, 5, 6, 7, 8)


def axes(figure):
    return figure.layout.xaxis.title.text, figure.layout.yaxis.title.text


def within(values, span):
    """Whether all of a trace can be seen."""
    return span[0] <= min(values) and max(values) <= span[1]


def test_axes_have_their_titles_and_do_not_take_a_swipe():
    layout = axes_layout("across", "up")
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("across", "up")
    assert layout.xaxis.fixedrange and layout.yaxis.fixedrange
    assert not layout.showlegend


# ------------------------------------------------------------------------------------- bit width


@settings(max_examples=8)
@given(st.integers(0, 99))
def test_the_histogram_shows_counts_levels_and_the_way_of_one_weight(seed):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=500) + rng.uniform(-2, 2)
    counts, edges = np.histogram(w, bins=20)
    levels = [np.linspace(w.min(), w.max(), 2**b) * 1.1 for b in BITS]
    nearest = [float(x[np.abs(x - w[0]).argmin()]) for x in levels]
    figure = levels_histogram(counts, edges, levels, float(w[0]), nearest)
    assert axes(figure) == ("weight", "weights per bin")
    bars, lines, way = figure.data
    assert list(bars.y) == list(counts)
    np.testing.assert_allclose(bars.x - bars.width / 2, edges[:-1])
    np.testing.assert_allclose(bars.x + bars.width / 2, edges[1:])
    assert (bars.marker.color, lines.line.color, way.line.color) == (ORIGINAL, CODES, ERROR)
    assert tuple(way.marker.color) == (ORIGINAL, CODES)
    assert [t.name for t in figure.data] == [
        "weights of the layer", "levels", "the chosen weight and its level",
    ]  # fmt: skip
    (bottom, top), span = figure.layout.yaxis.range, figure.layout.xaxis.range
    assert bottom == 0 and within(way.y, (counts.max(), top))
    assert within(edges, span) and all(within(x, span) for x in levels)
    assert len(figure.frames) == len(BITS)
    for frame, x, to in zip(figure.frames, levels, nearest, strict=True):
        assert list(frame.traces) == [1, 2]
        drawn, moved = frame.data
        assert list(moved.x) == [w[0], to]
        for i, level in enumerate(x):  # up, and a gap before the next
            assert list(drawn.x[3 * i : 3 * i + 2]) == [level, level]
            assert list(drawn.y[3 * i : 3 * i + 2]) == [0, counts.max()]
            assert np.isnan(drawn.x[3 * i + 2]) and np.isnan(drawn.y[3 * i + 2])
        assert drawn.opacity == (1.0 if len(x) <= 64 else 0.4)
        assert drawn.line.width == (1.5 if len(x) <= 32 else 0.5)
    assert "weights near" in bars.hovertemplate and "level" in lines.hovertemplate


curves_of = st.lists(st.floats(1e-5, 0.9), min_size=7, max_size=7)


@settings(max_examples=12)
@given(curves_of, curves_of, curves_of, st.sampled_from(["matrix", "row", "group of 32"]))
def test_error_curves_are_in_percent_and_mark_the_moment(a, b, c, chosen):
    curves = {"matrix": a, "row": b, "group of 32": c}
    figure = error_curves(BITS, curves, chosen)
    assert axes(figure) == ("bits per code", "error, %")
    assert figure.layout.yaxis.type == "log"
    for trace, (label, values) in zip(figure.data, curves.items(), strict=False):
        mine = label == chosen
        assert list(trace.x) == list(BITS) and trace.name == label
        assert list(trace.y) == pytest.approx([100 * v for v in values])
        assert trace.line.color == (ERROR if mine else WAIT)
        assert trace.mode == ("lines+markers" if mine else "lines")
        assert (trace.line.dash == "solid") == mine
        assert trace.line.width == (2.5 if mine else 1.5)
        assert trace.visible and trace.zorder == mine
        assert trace.hovertemplate == f"{label}, %{{x}} bits: %{{y:.3g}} %<extra></extra>"
    dashes = [trace.line.dash for trace in figure.data[:3]]
    assert len(set(dashes)) == 3
    other = [t.line.dash for t in error_curves(BITS, curves, "row").data[:3]]
    assert all(x == y or "solid" in (x, y) for x, y in zip(dashes, other, strict=True))
    low, high = figure.layout.yaxis.range
    known = np.log10([100 * v for values in curves.values() for v in values])
    assert low < known.min() and high > known.max()
    assert figure.layout.xaxis.range[0] < 2 and figure.layout.xaxis.range[1] > 8
    for frame, bits, value in zip(figure.frames, BITS, curves[chosen], strict=True):
        (now,) = frame.data
        assert list(frame.traces) == [3]
        assert (list(now.x), list(now.y)) == ([bits], [100 * value])
        digits = 2 if value < 0.1 else 3
        assert now.text[0] == f"<b>{100 * value:.{digits}g} %</b>"
        assert now.textposition == ("bottom left" if bits == 8 else "top right")
    assert figure.layout.showlegend
    hidden = error_curves(BITS, curves, chosen, drawn=False)
    assert [trace.visible for trace in hidden.data[:3]] == [False] * 3
    assert not hidden.layout.showlegend and hidden.data[3].visible is not False
    marked = figure.data[3]
    assert (marked.marker.color, marked.marker.line.color) == (NOW, INK)
    assert not marked.showlegend and marked.zorder == 2


def test_curves_of_nothing_have_an_axis_all_the_same():
    figure = error_curves(BITS, {"row": [0.0] * 7}, "row")
    low, high = figure.layout.yaxis.range
    assert low < -1 and high > 2
    assert figure.frames[0].data[0].text[0] == "<b>0 %</b>"


def test_the_label_at_the_right_end_stays_inside():
    """Below the last point there is room for its label, at one percent of the height and more."""
    values = [0.4 / 2.1**b for b in range(7)]
    figure = error_curves(BITS, {"row": values}, "row")
    low, high = figure.layout.yaxis.range
    last = np.log10(100 * values[-1])
    assert 0.1 < (last - low) / (high - low) < 0.3
    assert 0.05 < (high - np.log10(100 * values[0])) / (high - low) < 0.3


# ------------------------------------------------------------------------------------------ GPTQ


@settings(max_examples=12)
@given(st.integers(0, 99), st.booleans())
def test_errors_so_far_are_in_percent_over_columns(seed, second):
    rng = np.random.default_rng(seed)
    steps = np.array([0, 3, 7, 20])
    made = {
        "rtn": ("round to nearest", steps, rng.uniform(0, 0.3, 4)),
        "first": ("GPTQ", steps, rng.uniform(0, 0.2, 4)),
    }
    if second:
        made["second"] = ("other", steps, rng.uniform(0, 0.5, 4))
    figure = errors_so_far(made)
    assert axes(figure) == ("columns rounded", "output error, %")
    looks = {"first": (ERROR, "solid"), "second": (CODES, "dash"), "rtn": (WAIT, "dot")}
    for trace, (name, (label, x, y)) in zip(figure.data, made.items(), strict=True):
        assert list(trace.x) == list(x) and trace.name == label
        np.testing.assert_allclose(trace.y, 100 * y)
        assert (trace.line.color, trace.line.dash) == looks[name]
        assert trace.line.width == (1.5 if name == "rtn" else 2.5)
        assert trace.hovertemplate == f"%{{y:.3g}} % after %{{x}} columns<extra>{label}</extra>"
    assert list(figure.layout.xaxis.range) == [0, 20]
    assert figure.layout.yaxis.range[0] == 0
    top = max(float(100 * y.max()) for _, _, y in made.values())
    assert top < figure.layout.yaxis.range[1] < 1.5 * top
    assert figure.layout.showlegend


def test_errors_that_are_all_zero_have_an_axis_all_the_same():
    zeros = ("GPTQ", np.arange(3), np.zeros(3))
    assert errors_so_far({"first": zeros}).layout.yaxis.range[1] > 1


@settings(max_examples=12)
@given(st.integers(0, 99), st.integers(0, 5))
def test_a_columns_codes_lie_over_their_positions(seed, row):
    rng = np.random.default_rng(seed)
    position = rng.uniform(-2, 9, 6)
    codes = position.round().clip(0, 7)
    figure = column_codes(position, codes, (0, 7), row)
    assert axes(figure) == ("w/s + z before rounding", "code q")
    ideal, all_rows, chosen = figure.data
    assert list(ideal.x) == list(ideal.y) == list(figure.layout.xaxis.range)
    assert ideal.x[0] == min(0, position.min()) - 0.5
    assert ideal.x[1] == max(7, position.max()) + 0.5
    assert list(all_rows.x) == list(position) and list(all_rows.y) == list(codes)
    assert list(chosen.x) == [position[row]] * 2
    assert list(chosen.y) == [position[row], codes[row]]
    assert tuple(chosen.marker.color) == (ORIGINAL, CODES) and chosen.line.color == ERROR
    assert (ideal.line.color, all_rows.marker.color) == (WAIT, CODES)
    low, high = figure.layout.yaxis.range
    assert -1 < low < 0 and 7 < high < 8
    assert [t.name for t in figure.data] == ["no error", "one row each", "the chosen row"]


def test_what_a_weight_received_and_passed_on_lies_before_and_after_its_step():
    figure = exchange(np.array([0.1, -0.2, 0.3]), np.array([0.4, -0.5]))
    assert axes(figure) == ("step", "moved by")
    received, passed = figure.data
    assert (list(received.x), list(received.y)) == ([0, 1, 2], [0.1, -0.2, 0.3])
    assert (list(passed.x), list(passed.y)) == ([4, 5], [0.4, -0.5])
    assert (received.name, passed.name) == ("received from", "passed on to")
    assert (received.line.color, passed.line.color) == (ORIGINAL, ERROR)
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == 3
    assert figure.layout.shapes[0].line.color == NOW
    assert list(figure.layout.xaxis.range) == [0, 5]


# --------------------------------------------------------------------------------------- kernels

BATCHES = (1, 8, 64)
SLOW = "torch.int8"
NAMES = [BASELINE, KERNEL, SLOW]
MEDIANS = {BASELINE: (4e-4, 5e-4, 9e-4), KERNEL: (1e-4, 3e-4, 2e-3), SLOW: (8e-4, 9e-4, 5e-3)}


@pytest.fixture
def measured():
    return measurement(
        point(name, MEDIANS[name][i], (0.9, 1.3), 900_000 if name == BASELINE else 300_000, batch)
        for i, batch in enumerate(BATCHES)
        for name in NAMES
    )


def test_points_are_found_by_batch_the_first_of_two_dtypes(measured):
    again = measurement([*measured.points[::-1], point(KERNEL, 1.0, batch=8)])
    found = points_of(again, KERNEL)
    assert list(found) == [1, 8, 64]
    assert [p.time.median for p in found.values()] == list(MEDIANS[KERNEL])
    assert [role(name, KERNEL) for name in NAMES] == [ORIGINAL, CODES, WAIT]


def test_bars_are_milliseconds_with_their_spread(measured):
    figure = times(measured, NAMES, BATCHES, KERNEL)
    assert figure.layout.xaxis.title.text == "milliseconds"
    (bars,) = figure.data
    assert bars.orientation == "h" and bars.hovertemplate == "%{y}: %{x:.4g} ms<extra></extra>"
    assert tuple(bars.marker.color) == (WAIT, CODES, ORIGINAL)  # plotly counts from below
    for i, frame in enumerate(figure.frames):
        assert list(frame.traces) == [0]
        (drawn,) = frame.data
        wanted = [1e3 * MEDIANS[name][i] for name in NAMES[::-1]]
        assert list(drawn.x) == pytest.approx(wanted)
        assert list(drawn.error_x.array) == pytest.approx([0.3 * t for t in wanted])
        assert list(drawn.error_x.arrayminus) == pytest.approx([0.1 * t for t in wanted])
        speed = [MEDIANS[BASELINE][i] / MEDIANS[name][i] for name in NAMES]
        labels = [f"{n}  {s:.3g}×" for n, s in zip(NAMES, speed, strict=True)]
        assert list(drawn.y) == [labels[2], labels[1], f"{BASELINE}  16 bits"]
        low, high = frame.layout.xaxis.range
        assert low == 0 and max(wanted) * 1.3 < high < max(wanted) * 1.6


def test_one_wild_repeat_does_not_make_the_bars_short(measured):
    wild = [point(BASELINE, 1e-3, (0.9, 30.0)), point(KERNEL, 5e-4, (0.9, 1.1))]
    frame = times(measurement(wild), NAMES[:2], (1,), KERNEL).frames[0]
    assert 1.4 < frame.layout.xaxis.range[1] < 1.6


def test_what_was_not_measured_is_said_to_be(measured):
    fewer = measurement(p for p in measured.points if (p.kernel, p.batch) != (KERNEL, 8))
    (drawn,) = times(fewer, NAMES, BATCHES, KERNEL).frames[1].data
    assert drawn.x[1] is None and drawn.y[1] == f"{KERNEL}  not measured"
    assert drawn.error_x.array[1] is None and drawn.error_x.arrayminus[1] is None
    (now,) = speedups(fewer, NAMES, BATCHES, KERNEL).frames[1].data
    assert list(now.x) == list(now.y) == []
    spot = roofline(fewer, NAMES, BATCHES, KERNEL).frames[1].data[1]
    assert list(spot.x) == list(spot.y) == []


def test_speedups_are_ratios_to_sixteen_bits(measured):
    figure = speedups(measured, NAMES, BATCHES, KERNEL)
    assert axes(figure) == ("tokens at once", "speed, × 16 bits")
    ratios = {
        name: [d / t for d, t in zip(MEDIANS[BASELINE], MEDIANS[name], strict=True)]
        for name in NAMES
    }
    for trace, name in zip(figure.data, (KERNEL, SLOW), strict=False):
        mine = name == KERNEL
        assert trace.name == name and list(trace.x) == list(BATCHES)
        assert list(trace.y) == pytest.approx(ratios[name])
        assert trace.mode == ("lines+markers" if mine else "lines")
        assert (trace.line.dash == "solid") == mine and trace.zorder == mine
        assert trace.line.width == (2.5 if mine else 1.5)
        assert trace.line.color == (CODES if mine else WAIT)
        assert trace.hovertemplate == f"{name}, %{{x}} tokens: %{{y:.3g}}×<extra></extra>"
    now, one = figure.data[2:]
    assert list(one.y) == [1, 1] and one.name == "16-bit" and one.line.color == ORIGINAL
    assert one.x[0] < 1 and one.x[1] > 64
    assert list(figure.layout.xaxis.range) == pytest.approx(np.log10(one.x))
    assert list(figure.layout.xaxis.tickvals) == list(BATCHES)
    assert list(figure.layout.xaxis.ticktext) == ["1", "8", "64"]
    assert now.marker.color == NOW and not now.showlegend
    for i, (frame, batch) in enumerate(zip(figure.frames, BATCHES, strict=True)):
        assert list(frame.traces) == [2]
        (mark,) = frame.data
        assert (list(mark.x), list(mark.y)) == ([batch], [ratios[KERNEL][i]])
        assert mark.text[0] == f"<b>{ratios[KERNEL][i]:.3g}×</b>"
        assert mark.textposition == ("top right" if i == 0 else "top center")
    low, high = figure.layout.yaxis.range
    seen = np.log10([*ratios[KERNEL], *ratios[SLOW], 1.0])
    assert low < seen.min() < seen.max() < high < seen.max() + 0.5
    assert low > seen.min() - 0.5
    ticks = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    assert all(float(text) == pytest.approx(value) for value, text in ticks.items())
    assert {0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0} <= {round(value, 6) for value in ticks}
    assert figure.layout.legend.xanchor == "right" and figure.layout.legend.x == 1
    hidden = speedups(measured, NAMES, BATCHES, KERNEL, drawn=False)
    assert [t.visible for t in hidden.data[:2]] == [False, False]
    assert not hidden.layout.showlegend and not hidden.data[3].showlegend
    assert figure.layout.showlegend and one.showlegend


def test_the_roof_and_every_kernel_below_it(measured):
    figure = roofline(measured, NAMES, BATCHES, KERNEL)
    assert axes(figure) == ("operations per byte moved", "10⁹ operations per second")
    roof, chosen_trail, dense_trail, *spots = figure.data
    bandwidth, rate = 3e10, 2e11
    all_points = list(measured.points)
    intensities = [p.flops / p.moved_bytes for p in all_points]
    rates = [p.flops / p.time.median / 1e9 for p in all_points]
    assert roof.x[1] == pytest.approx(rate / bandwidth)
    assert roof.x[0] <= min(intensities) and roof.x[2] >= max(intensities)
    assert list(roof.y) == pytest.approx([bandwidth * roof.x[0] / 1e9, rate / 1e9, rate / 1e9])
    assert roof.name == "what bfloat16 allows" and roof.line.color == INK
    assert roof.hovertemplate == "bfloat16: %{y:.3g}·10⁹ per second<extra></extra>"
    for trail, name in ((chosen_trail, KERNEL), (dense_trail, BASELINE)):
        points = list(points_of(measured, name).values())
        assert list(trail.x) == pytest.approx([p.flops / p.moved_bytes for p in points])
        assert list(trail.y) == pytest.approx([p.flops / p.time.median / 1e9 for p in points])
        assert trail.line.color == role(name, KERNEL) and not trail.showlegend
    assert (chosen_trail.line.dash, dense_trail.line.dash) == ("solid", "dot")
    assert [spot.name for spot in spots] == NAMES
    symbols = [spot.marker.symbol for spot in spots]
    assert symbols[0] == "circle" and len(set(symbols)) == 3
    assert [spot.marker.size for spot in spots] == [9, 12, 9]
    assert [spot.marker.line.width for spot in spots] == [0, 1, 0]
    assert [spot.zorder for spot in spots] == [1, 2, 1]
    for spot, name in zip(spots, NAMES, strict=True):
        assert spot.marker.color == role(name, KERNEL)
        assert spot.hovertemplate.startswith(f"{name}: %{{x:.3g}} operations per byte, %{{y:.3g}}·")
    for i, frame in enumerate(figure.frames):
        assert list(frame.traces) == [3, 4, 5]
        for drawn, name in zip(frame.data, NAMES, strict=True):
            (one,) = measured.select(kernel=name, batch=BATCHES[i])
            assert list(drawn.x) == pytest.approx([one.flops / one.moved_bytes])
            assert list(drawn.y) == pytest.approx([one.flops / one.time.median / 1e9])
    assert within(np.log10(intensities), figure.layout.xaxis.range)
    assert within(np.log10([*rates, rate / 1e9]), figure.layout.yaxis.range)
    assert figure.layout.legend.xanchor == "left" and figure.layout.showlegend
    # The legend has a tenth of the height for each of its lines, above the roof.
    low, high = figure.layout.yaxis.range
    assert (high - np.log10(rate / 1e9)) / (high - low) == pytest.approx(0.105 * 4, abs=0.01)


def test_each_kind_of_arithmetic_has_its_roof():
    made = [point(BASELINE, 1e-3), point(KERNEL, 1e-3)]
    both = measurement([*made, replace(point(SLOW, 1e-3), arithmetic="int8")])
    ceilings = replace(both.ceilings, matmul_rate={"bfloat16": 2e11, "int8": 5e11})
    figure = roofline(replace(both, ceilings=ceilings), NAMES, (1,), KERNEL)
    assert [t.name for t in figure.data[:2]] == ["what bfloat16 allows", "what int8 allows"]
    assert [t.y[2] for t in figure.data[:2]] == pytest.approx([200, 500])
    assert figure.data[0].line.dash == "solid" != figure.data[1].line.dash
    unknown = replace(both, ceilings=replace(ceilings, matmul_rate={}))
    assert not any("allows" in (t.name or "") for t in roofline(unknown, NAMES, (1,), KERNEL).data)
