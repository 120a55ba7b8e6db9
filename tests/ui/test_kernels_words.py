"""What the kernels lesson says of measurements, held against measurements that are made up."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import KERNEL, measurement, point
from said import cut, holds, points

from qviz.kernels.ceilings import Ceilings
from qviz.kernels.records import Record
from qviz.kernels.registry import BASELINE
from qviz.kernels.results import Bound
from qviz.kernels.timing import Timing
from qviz.ui.views import KernelsLesson, kernels_race, kernels_words, kernels_work
from qviz.ui.views.kernels_words import (
    bandwidth_name,
    bound_words,
    busy_words,
    compared,
    device_words,
    duration,
    scattered,
    share,
    size,
    three,
    why_so_fast,
)

times = st.floats(2e-6, 0.5)
spreads = st.sampled_from([(0.95, 1.05), (0.5, 1.5), (0.3, 2.0)])


# ---------------------------------------------------------------------- numbers


@given(st.floats(1e-6, 100.0))
def test_durations_and_sizes_come_back_in_seconds_and_bytes(x):
    holds(duration(x), x=x)
    assert duration(x).endswith(" ms" if x >= 1e-3 else " µs")
    holds(size(1e4 * x * 1e4), bytes=1e8 * x)
    holds(share(x), x=x)
    holds(three(1e5 * x), x=1e5 * x)


@pytest.mark.parametrize(
    ("count", "said"),
    [(999, "999 bytes"), (1000, "1 kB"), (1_000_000, "1 MB"), (2_340_000_000, "2.34 GB"),
     (12_345_678, "12.3 MB"), (1_234_567_890_123, "1235 GB")],
)  # fmt: skip
def test_sizes_have_the_unit_that_fits(count, said):
    assert size(count) == said


def test_all_of_a_whole_part_is_written():
    assert [three(v) for v in (12345.6, 1.23456, -12345.6)] == ["12346", "1.23", "−12346"]
    assert share(123.4567) == "12346 %" and share(0.012345) == "1.23 %"
    assert duration(12.3456) == "12346 ms"


@given(st.floats(1e9, 1e12), st.floats(1e9, 1e12))
def test_the_bandwidth_is_that_of_the_faster_of_two_ways(copy, read):
    ceilings = Ceilings(copy, read, {}, 1)
    text = bandwidth_name(ceilings)
    holds(text, best=max(copy, read))
    points(text, "a read/a copy", read >= copy)


# ---------------------------------------------------------------------- comparisons


@given(times, times, spreads, spreads)
def test_faster_and_slower_follow_the_medians(mine, dense, spread, other):
    one, beside = point(median=mine, spread=spread), point(BASELINE, dense, other)
    speed = dense / mine
    text = compared(one, beside, speed)
    overlap = spread[1] * mine >= other[0] * dense and other[1] * dense >= spread[0] * mine
    wild = [p.kernel for p in (one, beside) if p.time.high > 2 * p.time.low]
    if wild:
        assert f"the repeats of {' and of '.join(wild)} are more than a factor of 2 apart" in text
    assert ("was something else running" in text) == bool(wild)
    text = text.partition(", but the repeats")[0]
    fixed = ["16-bit weights"]
    if overlap:
        holds(text, fixed=[*fixed, "no measurable difference from"])
    else:
        ratio = max(speed, 1 / speed)
        holds(text, fixed=fixed, ways={"as fast as/as slow as": speed - 1}, ratio=ratio)
        assert "×" in text


def test_sixteen_bits_are_compared_with_nothing():
    one = point(BASELINE)
    assert compared(one, one, 1.0) == (
        "there is no other kernel to compare these with 16-bit weights"
    )


@given(times, st.floats(1e-6, 0.1), st.one_of(st.none(), st.floats(1e-6, 0.1)))
def test_the_tighter_bound_is_named(median, memory, arithmetic):
    one, bound = point(median=median), Bound(memory, arithmetic)
    tight = max(memory, arithmetic or 0.0)
    text = bound_words(one, bound)
    expected = {"moved": float(one.moved_bytes), "memory": memory}
    expected |= {} if arithmetic is None else {"arithmetic": arithmetic}
    ways = {"so memory is the tighter/so arithmetic is the tighter": memory >= (arithmetic or 0.0)}
    ways["the device can do more than the best that was measured/"] = median < tight
    holds(text, ways=ways, **expected, times=(median / tight, "× as long as that"))


@given(times, times, st.floats(1e-6, 0.1), st.floats(1e-6, 0.1), spreads)
def test_why_a_kernel_gains_more_than_its_weights_are_smaller(mine, dense, memory, rate, spread):
    one, beside = point(median=mine, spread=spread), point(BASELINE, dense, (0.95, 1.05), 900_000)
    bound = Bound(memory, rate)
    text = why_so_fast(one, beside, dense / mine, bound)
    if spread[1] > 2 * spread[0]:
        assert text == ""
        return
    lag = dense / max(memory, rate)
    more = memory >= rate and dense / mine > 1.1 * 3 and lag > 1.1
    said = {"smaller": (3.0, "× smaller")} | ({"lag": (lag, "× as")} if more else {})
    fixed = ["smaller"] + (["more than that because the 16-bit"] if more else [])
    points(text, "It gains/", more)
    holds(text, ways={"gains/": more}, fixed=fixed, **said)
    assert why_so_fast(beside, one, 1.0, bound) == ""
    assert why_so_fast(one, replace(beside, time=Timing(1, 0.1, 2, 9)), 2.0, bound) == ""


def test_scattered_repeats_are_a_factor_of_two_apart():
    assert scattered(point(spread=(0.5, 1.01))) and not scattered(point(spread=(0.5, 1.0)))


# ---------------------------------------------------------------------- machines


@given(st.floats(0.0, 9.0), st.integers(1, 64), st.booleans())
def test_a_busy_machine_warns(load, cores, complete):
    said = busy_words(
        measurement(complete=complete, cores=str(cores), **{"load before": f"{load}"})
    )
    busy = load > cores / 4
    points(said, "Do not trust small differences/", busy)
    points(said, "Stopped early: whatever is missing was not measured./", not complete)
    fixed = ["an earlier measurement"] if busy else []
    expected = {"load": load, "cores": (cores, "cores")} if busy else {}
    holds(said, fixed=fixed, **expected)


@pytest.mark.parametrize("about", [{"load before": "unknown"}, {"cores": "?"}])
@pytest.mark.parametrize("complete", [True, False])
def test_an_unknown_load_says_nothing_of_it(about, complete):
    said = busy_words(measurement(complete=complete, **{"load before": "9", **about}))
    assert said == ("" if complete else "Stopped early: whatever is missing was not measured.")


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_device_is_named(monkeypatch, kind):
    monkeypatch.setattr(kernels_words.registry, "default_device", lambda: torch.device(kind))
    about = {"device": "GPU X", "processor": "Test 9000", "threads": "3"}
    monkeypatch.setattr(kernels_words, "machine", lambda device: about)
    text = device_words()
    points(
        text, "This machine has a GPU, GPU X: its kernels/This machine has no GPU", kind == "cuda"
    )
    assert ("(Test 9000, threads: 3)" in text) == (kind == "cpu")
    said = "It runs on the GPU." if kind == "cuda" else "It runs on the processor."
    assert kernels_work._device_words() == said


# ---------------------------------------------------------------------- the race's table


@pytest.fixture
def race(monkeypatch):
    """Two batches, one with a kernel that was not measured, one with a point without a rate."""
    points_ = [
        point(BASELINE, 4e-4, weight_bytes=1_048_576), point(KERNEL, 1.5e-4),
        point(BASELINE, 7e-4, weight_bytes=1_048_576, batch=8),
        replace(point(KERNEL, 9e-4, batch=8), arithmetic=None, note="timed in a loop"),
        point(BASELINE, 2e-3, weight_bytes=1_048_576, batch=64),
    ]  # fmt: skip
    record = Record("made_up", "Test 9000", measurement(points_))
    monkeypatch.setattr(kernels_race, "recorded", lambda: [record])
    return KernelsLesson().race


def test_every_figure_of_the_table_is_the_measured_one(race):
    table = {row["label"]: row["texts"] for row in race.table.rows}
    shown = race.shown
    for i, batch in enumerate((1, 8)):
        (one,) = shown.select(kernel=KERNEL, batch=batch)
        (dense,) = shown.select(kernel=BASELINE, batch=batch)
        memory, flops = one.moved_bytes / 3e10, 2.0 * batch * 512 * 1024
        wanted = {
            "time": [one.time.median],
            "10th–90th percentile": [one.time.low, one.time.high],
            "16 bits take": [dense.time.median],
            "speed, × 16 bits": [dense.time.median / one.time.median],
            "weight": [300_000.0],
            "at 16 bits": [1_048_576.0],
            "bandwidth B": [3e10],
            "share of B used": [memory / one.time.median],
            "memory bound": [memory],
            "error of its arithmetic": [0.00213],
            "… with rounded inputs, scales": [0.0341],
        }
        known = [flops / 2e11 / one.time.median], [flops / 2e11]
        labels = ("share of R used", "arithmetic bound")
        for label, value in zip(labels, known, strict=True):
            wanted[label] = value if batch == 1 else []
            assert (table[label][i] == "not known") == (batch == 8)
        assert set(table) == {*wanted, "inputs"}
        for label, values in wanted.items():
            holds(table[label][i], **{f"{label} {n}": v for n, v in enumerate(values)})
    assert {texts[2] for label, texts in table.items() if label != "inputs"} == {"not measured"}


def test_every_sentence_of_the_race_has_its_figures(race):
    texts = race.caption.texts
    assert texts[2] == f"{KERNEL} was not measured with 64 tokens."
    assert texts[1].endswith(f". {KERNEL}: timed in a loop.")
    shown = race.shown
    for text, batch in zip(texts, (1, 8), strict=False):
        (one,) = shown.select(kernel=KERNEL, batch=batch)
        (dense,) = shown.select(kernel=BASELINE, batch=batch)
        opening, rest = cut(text, ": ")
        holds(opening, tokens=(batch, "token"), median=one.time.median)
        assert opening.startswith(f"With {batch} token{'' if batch == 1 else 's'}, {KERNEL} takes")
        speed = dense.time.median / one.time.median
        assert rest.startswith(compared(one, dense, speed))
        assert why_so_fast(one, dense, speed, shown.bound(dense)) in rest
        assert bound_words(one, shown.bound(one)) in rest


def test_charts_say_in_words_what_they_show(race):
    for i, batch in enumerate((1, 8, 64)):
        here = race.shown.select(batch=batch)
        text = race.times.summaries[i]
        expected = {"batch": batch} | {p.kernel: p.time.median for p in here}
        holds(text, **expected)
        assert [text.index(p.kernel) for p in here] == sorted(text.index(p.kernel) for p in here)
        chosen = race.shown.select(kernel=KERNEL, batch=batch)
        text = race.roofline.summaries[i]
        if not chosen:
            assert text == f"{KERNEL} was not measured at batch {batch}."
            continue
        flops = 2.0 * batch * 512 * 1024
        holds(
            text, batch=(batch, ":"), fixed=["operations per second", "bytes per second"],
            intensity=(flops / chosen[0].moved_bytes, "operations per byte"),
            rate=(flops / chosen[0].time.median / 1e9, "billion operations"),
            best=(30.0, "billion bytes"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("speeds", "truth"),
    [((2.0, 1.5, 1.2), "at every batch here"), ((0.5, 0.4, 0.3), "never"), ((2.0, 0.5, 0.3), "1"),
     ((2.0, 1.5, 0.5), "8")],
)  # fmt: skip
def test_each_guess_is_judged(monkeypatch, speeds, truth):
    made = []
    for batch, speed in zip((1, 8, 64), speeds, strict=True):
        made += [point(BASELINE, 1e-3, (0.99, 1.01), batch=batch)]
        made += [point(KERNEL, 1e-3 / speed, (0.99, 1.01), batch=batch)]
    record = Record("made_up", "Test 9000", measurement(made))
    monkeypatch.setattr(kernels_race, "recorded", lambda: [record])
    race = KernelsLesson().race
    options = race.prediction.control.options[1:]
    assert options == ["never", "1", "8", "at every batch here"]
    for i, answer in enumerate(options, start=1):
        race.prediction.control.index = i
        text = race.prediction.verdict.texts[0]
        assert text.startswith("Right. " if answer == truth else f"Not {answer}. ")
        said = text.partition(". ")[2]
        points(said, "is not faster/is faster", truth == "never")
        if truth in ("1", "8"):
            assert f"up to batch {truth} but no longer at" in said


# ---------------------------------------------------------------------- at work


def comparison(ratio: float, at: int | None) -> SimpleNamespace:
    """What the words of a comparison are made of."""
    memory = [SimpleNamespace(total=1_000_000), SimpleNamespace(total=int(1_000_000 * ratio))]
    rows = [
        {"what": "read the prompt", "in words": "wrong"},
        {"what": "decode, a token", "in words": "the pace"},
    ]
    texts = SimpleNamespace(parts_at=at, new_tokens=48)
    return SimpleNamespace(memory=memory, texts=texts, rows=rows)


@given(st.floats(1.1, 8.0), st.one_of(st.none(), st.integers(0, 47)))
def test_the_comparison_of_two_models_in_words(ratio, at):
    text = kernels_work._verdict(comparison(ratio, at))
    expected = {"ratio": int(1e6 * ratio) / 1e6}
    expected |= {"of": (48, "tokens")} if at is None else {"at": (at + 1, "of"), "of": 48}
    same = {"are the same for all/differ from new token": at is None, "smaller/larger": True}
    assert "compared with 16-bit weights: the pace. And" in text
    holds(text, fixed=["16-bit weights"], ways=same, **expected)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"what": "bytes a token", "packed": 2e6, "16 bits": 8e6, "in words": "4× fewer"},
         "2 MB · 8 MB · 4× fewer"),
        ({"what": "seconds", "packed": 0.25, "16 bits": 0.5, "in words": "", "ratio": 0.5},
         "0.25 · 0.5 · ratio 0.5"),
    ],
)  # fmt: skip
def test_a_row_of_a_comparison_has_the_packed_figure_first(row, said):
    assert kernels_work._figure(row) == (row["what"], said)


def test_formats_are_offered_with_the_kernels_that_can_work(monkeypatch):
    """Neither the 16-bit product nor a kernel that is only interpreted can be chosen."""
    named = ((BASELINE, False), ("works", False), ("slow", True))
    found = [SimpleNamespace(name=name, interpreted=slow) for name, slow in named]
    monkeypatch.setattr(
        kernels_work.registry, "usable",
        lambda q, device: found if q.grid.bits == 8 else found[::2],
    )  # fmt: skip
    offered = kernels_work._formats_with_kernels()
    assert "int8" in offered and "int4-g128" not in offered
    assert all(names == ["works"] for names in offered.values())


def test_what_two_models_wrote_is_put_under_its_name():
    """Figures, logits and memory of a comparison, the packed one's first."""

    parts = {"weights": 1000, "rest": 234}
    sixteen = {"weights": 4000, "rest": 567}
    row = {"what": "decode, bytes", "packed": 1e6, "16 bits": 4e6, "in words": "4× fewer"}
    found = SimpleNamespace(
        texts=SimpleNamespace(
            prompt="p", packed="acked", reference="lain", parts_at=3, new_tokens=48
        ),
        logits=SimpleNamespace(
            tokens=511, max_abs=0.12345, relative=0.0234, kl=3.21e-4, same_top=0.98765
        ),
        memory=(
            SimpleNamespace(parts=parts, sixteen_bit=sixteen, total=1234),
            SimpleNamespace(total=4567),
        ),
        rows=[row],
        kernels=["torch.int8"],
        notes=["A note."],
        dtype=torch.bfloat16,
    )
    lesson = KernelsLesson()
    lesson.part_control.index = 2
    part = lesson.work
    chosen = part.kernel_control.value
    part.draw(kernels_work.Wrote(found, "tiny", part.format, chosen))
    assert part.packed_text.texts == ["packed"] and part.reference_text.texts == ["plain"]
    rows = {row["label"]: row["texts"][0] for row in part.logits.rows}
    wanted = {
        "tokens compared": 511, "largest difference of a logit": 0.12345,
        "relative difference of all logits": 0.0234, "KL divergence": (3.21e-4, "nats"),
        "same next token": 0.98765,
    }  # fmt: skip
    assert list(rows) == list(wanted)
    for label, value in wanted.items():
        holds(rows[label], value=value)
    assert rows["same next token"] == "98.77 %"
    held = {row["label"]: row["texts"][0] for row in part.memory.rows}
    assert held == {"weights": "1,000 · 4,000", "rest": "234 · 567", "total": "1,234 · 4,567"}
    assert part.memory.label == "Bytes held · at 16 bits"
    assert part.figures.label == "Packed · 16 bits · in words"
    assert part.where.text.startswith("tiny: ")
    assert "torch.int8 in bfloat16, measured here. A note." in part.where.text
    assert "For your new choice" not in part.where.text
    part.draw(kernels_work.Wrote(found, "tiny", part.format, "another kernel"))
    assert part.where.text.endswith(f"press “{part.write_button.label}” again.")


def test_each_record_is_shown_under_its_own_name(monkeypatch):
    made = []
    for i, median in enumerate((1e-3, 2e-3, 3e-3)):
        points_ = [point(BASELINE, 9e-3), point(KERNEL, median)]
        made.append(Record(f"r{i}", f"Machine {i}", measurement(points_, torch=f"2.{i}")))
    monkeypatch.setattr(kernels_race, "recorded", lambda: made)
    race = KernelsLesson().race
    titles = [kernels_race.HERE, *(f"recorded: Machine {i}" for i in range(3))]
    assert race.source_control.options == titles
    for i, median in enumerate((1e-3, 2e-3, 3e-3)):
        race.source_control.index = i + 1
        assert race.record is made[i]
        assert race.origin.text.startswith(f"Recorded on Machine {i} (torch 2.{i}), not measured")
        (time,) = (row["texts"] for row in race.table.rows if row["label"] == "time")
        holds(time, time=median)
    race.source_control.index = 0
    assert race.record is None


def test_charts_and_tables_are_named_by_what_they_show(race):
    assert race.times.label == "Time of one product"
    assert race.speedups.label == "Speed relative to 16 bits"
    assert race.roofline.label == "What memory and arithmetic allow (roofline)"
    assert race.table.label == KERNEL
    asked = "Before you drag: up to how many tokens is it faster than 16-bit weights?"
    assert race.prediction.control.label == asked
    assert race.equation.aria == "t is at least the larger of bytes over B and 2 m n k over R"
    assert "Recorded on Test 9000 (torch 2.13), not measured here." in race.origin.text
