"""Lesson 11: what is on the page is what was measured, recorded or computed, and says which."""

from dataclasses import replace
from threading import Event

import pytest

from qviz.kernels import formats
from qviz.kernels.ceilings import Ceilings
from qviz.kernels.records import Record, recorded
from qviz.kernels.registry import BASELINE
from qviz.kernels.results import Measurement, Point
from qviz.kernels.timing import Timing
from qviz.ui.figures.kernels import roofline, speedups, times
from qviz.ui.views import (
    KernelsLesson,
    kernels_chosen,
    kernels_inside,
    kernels_race,
    kernels_tile,
    kernels_words,
)

SHAPE, FORMAT, BATCHES = (2048, 2048), "int4-g128", (1, 8, 64)
FAST, SLOW = "torch.int4", "torch.int8"


def point(kernel, batch, seconds, weight_bytes=2_000_000, format=FORMAT):
    moved = weight_bytes + 2 * batch * (2048 + 2048)
    return Point(
        kernel=kernel, format=format, shape=SHAPE, batch=batch, dtype="bfloat16",
        time=Timing(seconds, seconds * 0.95, seconds * 1.1, 9),
        weight_bytes=weight_bytes, moved_bytes=moved, flops=2 * batch * 2048 * 2048,
        error=0.002, total_error=0.003, copies=3, launch=None, arithmetic="bfloat16",
    )  # fmt: skip


@pytest.fixture
def measured():
    """16-bit weights, a kernel that wins up to batch 8, and one that never does."""
    points = []
    for batch, dense, fast, slow in (
        (1, 4e-4, 1e-4, 8e-4),
        (8, 4e-4, 2e-4, 9e-4),
        (64, 5e-4, 2e-3, 4e-3),
    ):
        points.append(point(BASELINE, batch, dense, 8_388_608))
        points.append(point(FAST, batch, fast))
        points.append(point(SLOW, batch, slow))
    machine = {
        "device": "CPU", "processor": "Test 9000", "cores": "2", "threads": "2", "torch": "2.13",
        "date": "2026-01-31T00:00:00+00:00", "load before": "0.1",
    }  # fmt: skip
    ceilings = Ceilings(2e10, 3e10, {"bfloat16": 2e11}, 1 << 20)
    return Measurement(machine, ceilings, tuple(points), {"triton.w4a16": "There is no GPU."})


@pytest.fixture
def lesson(measured, monkeypatch):
    record = Record("cpu_test", "Test 9000, 2 threads, 2026-01-31", measured)
    monkeypatch.setattr(kernels_race, "recorded", lambda: [record])
    return KernelsLesson()


@pytest.fixture
def bare(monkeypatch):
    """A page that has no records."""
    monkeypatch.setattr(kernels_race, "recorded", list)
    return KernelsLesson()


def rows(table):
    return {row["label"]: row["texts"] for row in table.rows}


# ---------------------------------------------------------------------- figures


def test_bars_are_the_medians_from_zero(measured):
    figure = times(measured, [BASELINE, FAST, SLOW], BATCHES, FAST)
    for frame, expected in zip(figure.frames, ([0.8, 0.1, 0.4], [0.9, 0.2, 0.4], [4, 2, 0.5]),
                               strict=True):  # fmt: skip
        assert list(frame.data[0].x) == pytest.approx(expected)
        assert frame.layout.xaxis.range[0] == 0
    labels = [f"{SLOW}  0.5×", f"{FAST}  4×", f"{BASELINE}  16 bits"]
    assert list(figure.frames[0].data[0].y) == labels


def test_a_kernel_without_a_point_has_no_bar(measured):
    fewer = replace(measured, points=measured.points[:-1])
    figure = times(fewer, [BASELINE, FAST, SLOW], BATCHES, FAST)
    assert figure.frames[2].data[0].x[0] is None


def test_speedups_are_those_of_the_measurement(measured):
    figure = speedups(measured, [BASELINE, FAST, SLOW], BATCHES, FAST)
    assert list(figure.data[0].x) == list(BATCHES)
    assert list(figure.data[0].y) == pytest.approx([4, 2, 0.25])
    assert list(figure.data[1].y) == pytest.approx([0.5, 4 / 9, 0.125])
    assert [frame.data[0].y[0] for frame in figure.frames] == pytest.approx([4, 2, 0.25])
    hidden = speedups(measured, [BASELINE, FAST, SLOW], BATCHES, FAST, drawn=False)
    assert not hidden.data[0].visible and not hidden.data[1].visible


def test_the_roof_is_what_was_measured(measured):
    figure = roofline(measured, [BASELINE, FAST, SLOW], BATCHES, FAST)
    roof = figure.data[0]
    assert roof.y[1] == roof.y[2] == pytest.approx(200)  # 2e11 operations a second
    assert roof.x[1] == pytest.approx(2e11 / 3e10)  # where the two ceilings meet
    assert roof.y[0] / roof.x[0] == pytest.approx(30)  # 3e10 bytes a second, a read
    for one in measured.points:  # the turn of the roof is that of the bound in words
        left = one.intensity < roof.x[1]
        assert measured.bound(one).limit == ("memory" if left else "arithmetic")
    spot = figure.frames[0].data[1]
    chosen = measured.select(kernel=FAST, batch=1)[0]
    assert spot.x[0] == pytest.approx(chosen.flops / chosen.moved_bytes)
    assert spot.y[0] == pytest.approx(chosen.flops / 1e-4 / 1e9)


# ---------------------------------------------------------------------- the race


def test_a_record_is_shown_as_recorded(lesson):
    race = lesson.race
    assert "Recorded on Test 9000" in race.origin.text and "not measured here" in race.origin.text
    assert race.source_control.options[0] == kernels_race.HERE
    assert race.batch_control.options == ["1", "8", "64"]
    assert rows(race.absent) == {"triton.\u200bw4a16": ["There is no GPU."]}


def test_the_table_has_the_measured_figures(lesson, measured):
    table = rows(lesson.race.table)
    assert table["time"] == ["100 µs", "200 µs", "2 ms"]
    assert table["10th–90th percentile"][2] == "1.9 ms – 2.2 ms"
    assert table["speed, × 16 bits"] == ["4×", "2×", "0.25×"]
    assert table["error of its arithmetic"][0] == "0.2 %"
    chosen = measured.select(kernel=FAST, batch=1)[0]
    share = measured.bound(chosen).memory / chosen.time.median  # of the bandwidth of the bound
    assert table["share of B used"][0] == f"{100 * share:.3g} %"
    assert table["bandwidth B"] == ["30 GB/s, a read"] * 3
    assert table["at 16 bits"][0] == "8.39 MB"


def test_what_bounds_it_lights_up(lesson):
    """One token: 2 MB at 30 GB/s take 67 µs, 8.4 million operations 42 µs; more tokens turn it."""
    assert lesson.race.equation.actives == [
        ["bytes", "bandwidth"],
        ["operations", "rate"],
        ["operations", "rate"],
    ]
    assert "memory is the tighter bound" in lesson.race.caption.texts[0]
    assert "arithmetic is the tighter bound" in lesson.race.caption.texts[2]


def test_predict_first(lesson):
    race = lesson.race
    assert race.prediction.verdict.texts == [""]
    race.prediction.control.index = race.prediction.control.options.index("1")
    assert race.prediction.verdict.texts[0].startswith(
        "Not 1. torch.int4 is faster than 16-bit weights up to"
    )
    race.prediction.control.index = race.prediction.control.options.index("8")
    assert race.prediction.verdict.texts[0].startswith("Right.")
    race.kernel_control.index = race.kernel_control.options.index(SLOW)
    assert "not faster" in race.prediction.verdict.texts[0]
    race.prediction.control.index = race.prediction.control.options.index(kernels_race.NEVER)
    assert race.prediction.verdict.texts[0].startswith("Right.")


def test_dragging_reveals_too(lesson):
    race = lesson.race
    assert '"visible":false' in race.speedups.figures
    race.batch_control.index = 2
    assert '"visible":false' not in race.speedups.figures
    assert "up to batch 8" in race.prediction.verdict.texts[0]


def test_nothing_is_claimed_before_it_was_measured(bare):
    race = bare.race
    assert "Not measured on this machine yet" in race.origin.text
    assert (
        "This machine has no GPU" in race.origin.text
        or "This machine has a GPU" in race.origin.text
    )
    assert "qv-gone" in race.charts._dom_classes
    assert race.table.rows == [] and "times every kernel that takes" in race.caption.texts[0]
    assert race.shape_control.value.startswith("2048×2048")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(kernels_race, "BATCHES", (1, 3))
    monkeypatch.setattr(kernels_race, "SECONDS", 0.01)


def choose_small(race):
    small = next(i for i, name in enumerate(race.shape_control.options) if "bundled" in name)
    race.shape_control.index = small
    assert max(race.shape) <= 1024


def test_measuring_this_machine(bare, quick):
    race = bare.race
    choose_small(race)
    race._ceilings = recorded()[-1].measurement.ceilings  # finding them out takes half a minute
    race.measuring.button.click()
    race.measuring.wait(120)
    assert bare.status.text == ""
    assert "Measured on" in race.origin.text
    assert race.kernels[0] == BASELINE and len(race.kernels) > 1
    assert race.batches == [1, 3]
    shown = race.shown.select(kernel=race.kernel, batch=3)[0]
    assert shown.shape == race.shape and shown.time.median > 0 and shown.error < 0.02
    assert "qv-gone" not in race.charts._dom_classes
    race.format_control.index = list(formats.FORMATS).index("int8")
    assert "Not measured on this machine yet" in race.origin.text  # another format was not


def test_measuring_from_a_record_keeps_what_was_chosen(lesson, quick, measured):
    race = lesson.race
    called = []

    def measure(shape, format, batches, **options):
        called.append((shape, format))
        return measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels_race, "measure", measure)
        race.measuring.button.click()
        race.measuring.wait(20)
    assert called == [(SHAPE, FORMAT)]
    assert race.source_control.index == 0 and "Measured on Test 9000" in race.origin.text
    race.source_control.index = 1
    assert "Recorded on" in race.origin.text


def test_stopping_shows_what_there_is(bare, quick, monkeypatch, measured):
    race = bare.race

    def measure(shape, format, batches, *, progress, stopped, **options):
        progress(0, 3, "something")
        assert "something" in race.measuring.progress.text
        race.prediction.control.index = 0
        race.shape_control.index = 1 - min(race.shape_control.index, 1)  # clears the page's status
        assert "something" in race.measuring.progress.text
        race.shape_control.index = before
        race.measuring.button.click()
        assert stopped()
        progress(1, 3, "a step that was under way")
        assert "stopping" in race.measuring.progress.text
        return replace(measured, points=measured.points[:3], complete=False)

    before = race.shape_control.index
    monkeypatch.setattr(kernels_race, "measure", measure)
    race.measuring.button.click()
    race.measuring.wait(20)
    assert race.batches == [1]
    assert "Stopped early" in race.origin.text
    assert "qv-gone" in race.measuring.busy._dom_classes
    assert race.measuring.button.label == kernels_race.MEASURE


def test_what_was_measured_behind_the_learners_back_is_said(bare, monkeypatch, measured):
    race = bare.race

    def measure(shape, format, batches, **options):
        race.format_control.index = 1 - min(race.format_control.index, 1)
        return measured

    monkeypatch.setattr(kernels_race, "measure", measure)
    race.measuring.button.click()
    race.measuring.wait(20)
    assert race.shown is None and "Meanwhile" in race.origin.text
    assert "was measured here" in race.origin.text


def test_what_cannot_be_measured_is_said_in_words(bare, monkeypatch):
    def measure(*arguments, **options):
        raise MemoryError("8192×28672 would not fit")

    monkeypatch.setattr(kernels_race, "measure", measure)
    bare.race.measuring.button.click()
    bare.race.measuring.wait(20)
    assert bare.status.kind == "error" and "would not fit" in bare.status.text
    assert bare.race.measuring.button.label == kernels_race.MEASURE


def test_a_press_while_it_measures_stops_it(bare, monkeypatch, measured):
    race, go, calls = bare.race, Event(), []

    def measure(*arguments, stopped, **options):
        calls.append(arguments)
        assert go.wait(20)
        assert stopped() is (len(calls) == 1)  # the first is, the second is not
        return measured

    monkeypatch.setattr(kernels_race, "measure", measure)
    race.measuring.button.click()
    assert race.measuring.button.label == kernels_race.STOP
    with pytest.raises(ValueError, match="already running"):
        race.measure()
    race.measuring.button.click()
    assert "stopping" in race.measuring.progress.text
    go.set()
    race.measuring.wait(20)
    assert len(calls) == 1 and race.measuring.button.label == kernels_race.MEASURE
    race.measuring.button.click()  # and the next press is taken
    race.measuring.wait(20)
    assert len(calls) == 2 and bare.status.text == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_while_it_is_drawn_is_said(bare, monkeypatch, measured):
    """In a thread of its own an exception would reach nobody."""
    alone = replace(measured, points=tuple(p for p in measured.points if p.kernel != BASELINE))
    monkeypatch.setattr(kernels_race, "measure", lambda *a, **k: alone)
    bare.race.measuring.button.click()
    bare.race.measuring.wait(20)
    assert bare.status.kind == "error" and "torch.matmul was not measured" in bare.status.text
    assert bare.race.measuring.button.label == kernels_race.MEASURE


def test_where_nothing_could_be_measured_the_reason_is_said(bare, monkeypatch, measured):
    none = replace(measured, points=())
    monkeypatch.setattr(kernels_race, "measure", lambda *a, **k: none)
    bare.race.measuring.button.click()
    bare.race.measuring.wait(20)
    assert bare.status.text == "nothing could be measured. triton.w4a16: There is no GPU."


def test_a_busy_machine_is_named(bare, measured, monkeypatch):
    busy = replace(measured, machine={**measured.machine, "load before": "1.9"})
    assert "was busy (load 1.9 on 2 cores)" in kernels_words.busy_words(busy)
    assert kernels_words.busy_words(measured) == ""
    monkeypatch.setattr(kernels_race, "recorded", lambda: [Record("a", "Test 9000", busy)])
    assert "was busy (load 1.9 on 2 cores)" in KernelsLesson().race.origin.text


def test_of_another_format_nobody_is_missing_here(measured):
    both = replace(
        measured,
        left_out={
            "triton.w4a16": "There is no GPU.",
            f"torch.fp8, {FORMAT}": "Other levels.",
            "torch.int4, int8": "Eight bits.",
            f"torch.int8, {FORMAT}, batch 64": "It failed.",
        },
    )
    assert kernels_chosen.only(both, SHAPE, FORMAT).left_out == {
        "triton.w4a16": "There is no GPU.",
        "torch.fp8": "Other levels.",
        "torch.int8, batch 64": "It failed.",
    }


def lesson_of(measured, monkeypatch):
    monkeypatch.setattr(kernels_race, "recorded", lambda: [Record("a", "Test 9000", measured)])
    return KernelsLesson()


def test_a_race_that_is_too_close_judges_no_guess(measured, monkeypatch):
    close = [replace(p, time=Timing(4e-4, 3e-4, 5e-4, 9)) for p in measured.points]
    race = lesson_of(replace(measured, points=tuple(close)), monkeypatch).race
    race.prediction.control.index = 2
    assert race.prediction.verdict.texts[0].startswith("No guess is right or wrong here.")
    assert "there is no measurable difference" in race.prediction.verdict.texts[0]


def test_faster_than_the_bound_is_no_multiple_of_it(measured, monkeypatch):
    """Ceilings are measured, so that a kernel can be below what they ask for."""
    slow = replace(measured.ceilings, copy_bandwidth=1e9, read_bandwidth=1e9)
    race = lesson_of(replace(measured, ceilings=slow), monkeypatch).race
    assert "the device can do more" in race.caption.texts[0]


def test_what_was_different_with_a_point_is_said(measured, monkeypatch):
    looped = [
        replace(p, note="timed in a loop") if p.kernel == FAST and p.batch == 8 else p
        for p in measured.points
    ]
    race = lesson_of(replace(measured, points=tuple(looped)), monkeypatch).race
    assert race.caption.texts[1].endswith(". torch.int4: timed in a loop.")
    assert "loop" not in race.caption.texts[0]


def test_sixteen_bits_alone_are_compared_with_nothing(measured, monkeypatch):
    only = replace(measured, points=tuple(p for p in measured.points if p.kernel == BASELINE))
    race = lesson_of(only, monkeypatch).race
    assert race.kernel == BASELINE
    assert "there is no other kernel to compare these with 16-bit weights" in race.caption.texts[0]


# ---------------------------------------------------------------------- inside a kernel


@pytest.fixture(scope="module")
def opened():
    lesson = KernelsLesson()
    lesson.part_control.index = 1
    assert lesson.status.text == ""
    return lesson


@pytest.fixture(params=range(3), ids=["w4a16", "nf4", "w8a8"])
def inside(opened, request):
    part = opened.inside
    part.kernel_control.index = request.param
    part.rows_control.index = kernels_inside.ROWS.index(4)
    part.program_control.index = 5
    assert opened.status.text == ""
    return part


def column(table, label):
    return next(row["texts"] for row in table.rows if row["label"] == label)


def test_only_the_chosen_part_is_on_the_page(opened):
    opened.part_control.index = 1
    for part, shown in ((opened.race, False), (opened.inside, True), (opened.work, False)):
        assert all(("qv-gone" not in box._dom_classes) is shown for box in (*part.main, *part.side))
    opened.part_control.index = 0
    assert "qv-gone" in opened.inside.main[0]._dom_classes
    assert "qv-gone" not in opened.race.main[0]._dom_classes
    opened.part_control.index = 1


def test_the_program_ends_with_the_kernels_output(inside):
    walk = inside.walk
    assert walk.rows == slice(20, 24)
    for row in range(4):
        inside.tile_view.cursor = [row, 0]
        stored, wide = (
            column(inside.table, n)[-1] for n in ("output y, in bfloat16", "the same in float64")
        )
        stored, wide = (float(text.replace("−", "-")) for text in (stored, wide))
        assert stored == pytest.approx(float(walk.y[row]), rel=1e-3)
        assert stored == pytest.approx(wide, rel=2**-8)


def test_the_bits_in_brackets_are_the_code(opened):
    part = opened.inside
    part.kernel_control.index = 0
    q, step = part.shown.q, part.walk.steps[1]
    for row, col in ((0, 0), (1, 5), (2, 31), (3, 64), (0, 127)):
        part.tile_view.cursor = [row, col]
        bits = column(part.table, "its four bits there")[1]
        code = int(bits.split("[")[1].split("]")[0], 2) + q.grid.qmin
        assert code == int(q.codes[part.walk.rows.start + row, step.columns.start + col])
        told, _, word = column(part.table, "its 32-bit word")[1].partition(": ")
        words = step.tensors["words"][row].flatten()
        number = int(told.removeprefix("number "))
        assert int(word, 16) == int(words[number]) & 0xFFFFFFFF
        # The columns in its bit plane are those whose codes are the same bits of the tile's words.
        start, end = map(int, column(part.table, "columns in its bit plane")[1].split(" to "))
        assert start <= col <= end and end - start + 1 == 16
        place = bits.split().index(next(each for each in bits.split() if "[" in each))
        codes = [(int(w) >> 4 * (7 - place)) & 15 for w in words]
        plane = q.codes[part.walk.rows.start + row, start : end + 1].int() - q.grid.qmin
        assert codes == plane.tolist()
        assert int(bits.replace("[", "").replace("]", "").replace(" ", ""), 2) == int(word, 16)


def test_the_table_can_be_recomputed_by_hand(inside):
    """Factors and product stand under their names; the int8 sum comes to the output."""
    table = {row["label"]: row["texts"] for row in inside.table.rows}

    def value(label: str, step: int = -1) -> float:
        text = table[label][step]
        return float(text.replace("−", "-").replace(",", ""))

    if inside.walk.kernel == "triton.w8a8":
        assert value("q · q_x") == value("code q") * value("input's code")
        scales = value("token's scale") * value("scale s of its row")
        assert value("the sum of its row") * scales == pytest.approx(
            value("the same in float64"), rel=3e-3
        )
        return
    name = "q − z" if inside.walk.kernel == "triton.w4a16" else "its level"
    product = kernels_tile.PRODUCT[inside.walk.kernel]
    assert value(product) == pytest.approx(value(name) * value("input x"), rel=2e-3)


def test_what_was_read_is_counted(inside):
    read = column(inside.traffic, "bytes read so far")
    assert read[-1] == f"{inside.walk.nbytes:,} bytes"
    assert column(inside.traffic, "the same weights at 16 bits")[-1] == f"{2 * 4 * 1024:,} bytes"
    counts = [int(text.replace(",", "").split()[0]) for text in read]
    assert counts == sorted(counts)


def test_every_step_lights_lines_and_has_words(inside):
    steps = inside.walk.steps
    assert len(inside.code.lit) == len(inside.transport.captions) == len(steps)
    total = len(inside.code.texts[0].splitlines())
    assert all(lines and max(lines) <= total for lines in inside.code.lit)
    assert len(inside.tile_view.labels) == len(steps)


def test_pictures_hold_what_the_step_is_about(opened):
    part = opened.inside
    part.kernel_control.index = 0
    walk, q = part.walk, part.shown.q
    frames = kernels_tile.picture(walk, 128)
    at = next(i for i, s in enumerate(walk.steps) if s.event == "tile.weight")
    where = walk.steps[at]
    expected = q.dequantize()[where.rows, where.columns].float()
    assert (frames[at] - expected).abs().max() < 1e-6
    products = kernels_tile.products(walk, at + 1)
    assert (frames[at + 1] == products).all()
    assert (frames[-1] == walk.y.float()[:, None]).all()


def test_the_mark_follows_the_step(opened):
    part = opened.inside
    part.transport.index = next(i for i, s in enumerate(part.walk.steps) if s.columns.start == 256)
    assert part.weight_view.column_mark == 256
    assert part.weight_view.row_mark == part.walk.rows.start
    part.transport.index = 0


def test_any_format_block_and_program(opened):
    part = opened.inside
    for kernel in range(3):
        part.kernel_control.index = kernel
        for format in range(len(part.format_control.options)):
            part.format_control.index = format
            for rows in (0, len(kernels_inside.ROWS) - 1):
                part.rows_control.index = rows
                part.program_control.index = len(part.program_control.options) - 1
                assert opened.status.text == ""
                assert part.walk.rows.stop == 256
                assert len(column(part.table, "what happens")) == len(part.walk.steps)
