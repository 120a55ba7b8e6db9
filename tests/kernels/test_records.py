"""Measurements as files: what comes back is what was written, and anything else is refused."""

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qviz import kernels
from qviz.kernels import plain, records, table
from qviz.kernels.ceilings import Ceilings
from qviz.kernels.results import Measurement, Point
from qviz.kernels.timing import Timing

MACHINE = {"device": "CPU", "processor": "Some CPU @ 3 GHz", "threads": "2",
           "date": "2026-02-03T04:05:06+00:00"}  # fmt: skip
TIME = Timing(1e-3, 0.9e-3, 1.2e-3, 7)


def point(kernel="torch.matmul", **changes) -> Point:
    made = Point(kernel, "int8", (8, 16), 4, "bfloat16", TIME, 256, 512, 1024, 1e-3, 2e-3, 2, None,
                 "bfloat16")  # fmt: skip
    return replace(made, **changes)


def example(**changes) -> Measurement:
    points = (
        point(),
        point("torch.int8", launch=Timing(2e-3, 1e-3, 3e-3, 9), note="odd", error_rows=256),
    )
    found = Measurement(
        MACHINE, Ceilings(1e9, 2e9, {"bfloat16": 1e12}, 2**20), points, {"a": "It is absent."}
    )
    return replace(found, **changes)


def altered(path: str, value: object) -> str:
    """The example as JSON with the entry at this path set, or removed (None)."""
    data = json.loads(example().to_json())
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    at = data
    for step in steps:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return json.dumps(data)


def test_what_was_written_comes_back():
    for found in (example(), example(complete=False), example(points=(), left_out={})):
        assert Measurement.from_json(found.to_json()) == found


positive = st.floats(1e-300, 1e300)
timings = st.builds(Timing, positive, positive, positive, st.integers(2, 10**6))


@given(
    st.lists(st.tuples(timings, st.none() | timings, positive, st.text()), max_size=4),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_any_finite_measurement_comes_back(rows, words):
    points = tuple(point(time=t, launch=one, error=e, note=n) for t, one, e, n in rows)
    found = example(points=points, left_out=words, machine=words)
    assert Measurement.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("ceilings.cache", None, "Measurement.ceilings lacks cache"),
        ("points.1.time.low", None, r"Measurement.points\[1\].time lacks low"),
        ("complete", None, "Measurement lacks complete"),
        ("extra", 1, "Measurement has unknown extra"),
        ("points.0.speed", 1, r"Measurement.points\[0\] has unknown speed"),
        ("points.0.batch", True, r"points\[0\].batch must be int, got True"),
        ("points.0.batch", 1.5, r"points\[0\].batch must be int, got 1.5"),
        ("points.0.kernel", 3, r"points\[0\].kernel must be str, got 3"),
        ("points.0.error", "0.1", r"points\[0\].error must be float, got '0.1'"),
        ("points.0.shape", [1, 2, 3], r"points\[0\].shape must have 2 entries, got 3"),
        ("points.0.shape", 3, r"points\[0\].shape must be a list, got 3"),
        ("points", {}, "Measurement.points must be a list"),
        ("ceilings", [], "Measurement.ceilings must be an object"),
        ("ceilings.matmul_rate.int8", "fast", "matmul_rate.int8 must be float"),
        ("machine.device", 1, "machine.device must be str"),
        ("complete", 1, "complete must be bool"),
    ],
)
def test_what_is_missing_unknown_or_of_another_type_is_named(path, value, words):
    with pytest.raises(ValueError, match=words):
        Measurement.from_json(altered(path, value))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_not_finite_is_not_read(text):
    whole = example().to_json().replace('"error": 0.001', f'"error": {text}', 1)
    assert text in whole
    with pytest.raises(ValueError, match="finite"):
        Measurement.from_json(whole)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_written(value, tmp_path):
    path = tmp_path / "kept.json"
    records.save(example(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        records.save(example(points=(point(error=value),)), path)
    assert path.read_bytes() == before


def test_a_whole_number_is_a_float_where_one_is_wanted():
    found = Measurement.from_json(altered("ceilings.copy_bandwidth", 10**9))
    assert found.ceilings.copy_bandwidth == 1e9
    assert type(found.ceilings.copy_bandwidth) is float
    with pytest.raises(ValueError, match=r"copy_bandwidth must be finite"):
        Measurement.from_json(altered("ceilings.copy_bandwidth", 10**400))


def test_text_that_is_no_json_is_said():
    with pytest.raises(ValueError, match="this is not JSON"):
        plain.loads(Measurement, "{")


def test_files(tmp_path):
    path = records.save(example(), tmp_path / "new" / "folder" / "found.json")
    assert records.load(path) == example()
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"found.json is not a measurement of kernels: Measurement"
    ):
        records.load(path)
    with pytest.raises(FileNotFoundError):
        records.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("machine", "title", "name"),
    [
        (MACHINE, "Some CPU @ 3 GHz, 2 threads, 2026-02-03", "cpu_some_cpu_3_ghz_2_threads.json"),
        ({**MACHINE, "threads": "1"}, "Some CPU @ 3 GHz, 1 thread, 2026-02-03",
         "cpu_some_cpu_3_ghz_1_thread.json"),
        ({**MACHINE, "device": "ACME X9"}, "ACME X9, 2026-02-03", "cuda_acme_x9.json"),
    ],
)  # fmt: skip
def test_a_record_is_named_after_its_device(machine, title, name):
    found = example(machine=machine)
    assert (records.title(found), records.file_name(found)) == (title, name)


def test_records_are_listed_gpus_first(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    assert records.recorded() == []
    gpu = example(machine={**MACHINE, "device": "ACME X9"})
    for found in (example(), gpu):
        records.save(found, tmp_path / records.file_name(found))
    assert [record.title for record in records.recorded()] == [
        "ACME X9, 2026-02-03",
        "Some CPU @ 3 GHz, 2 threads, 2026-02-03",
    ]
    assert records.recorded()[0].measurement == gpu


def test_all_that_ships_can_be_shown():
    shipped = records.recorded()
    assert len(shipped) == len(list(records.FOLDER.glob("*.json")))
    for record in shipped:
        found = record.measurement
        assert found.complete, f"{record.name} was stopped before its end"
        assert found.points and all(found.speedup(p) > 0 for p in found.points)
        assert all(p.error < 0.05 for p in found.points), record.name
        assert found.machine["date"] and found.machine["torch"]
        assert table.measurement_text(found)


# ---------------------------------------------------------------------- as text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2.0, "2.00 s"), (0.9996, "1000 ms"), (0.0123, "12.3 ms"), (9.996e-6, "10.0 µs"),
        (9.99e-5, "99.9 µs"), (0.000456, "456 µs"), (1.5e-7, "150 ns"), (1e-9, "1.00 ns"),
    ],
)  # fmt: skip
def test_durations_have_three_digits(value, words):
    assert table.seconds(value) == words


def test_the_table_has_a_line_for_each_point():
    rows = table.rows(example(), "int8", (8, 16))
    assert [row["kernel"] for row in rows] == ["torch.matmul", "torch.int8"]
    assert rows[1] == {
        "batch": "4", "kernel": "torch.int8", "time": "1.00 ms [900 µs – 1.20 ms]",
        "× 16-bit": "1.00", "weight": "0.000256 MB", "of copy": "0 %", "of product": "0 %",
        "error": "1.0e-03", "total error": "2.0e-03", "called alone": "2.00 ms",
    }  # fmt: skip
    lines = table.aligned(rows).splitlines()
    assert len(lines) == 3 and lines[0].startswith("batch  kernel ")
    assert lines[1].index("torch.matmul") == lines[2].index("torch.int8")


def test_two_baselines_are_told_apart():
    found = example(points=(point(), point(dtype="float16"), point("k", dtype="float16")))
    kernels = {row["kernel"] for row in table.rows(found, "int8", (8, 16))}
    assert kernels == {"torch.matmul (bfloat16)", "torch.matmul (float16)", "k (float16)"}


def test_the_text_says_everything():
    found = example(
        left_out={"a": "No.", "b, int8": "It takes none.", "b, fp8": "It takes none."},
        complete=False,
    )
    text = table.measurement_text(found)
    for words in (
        "processor Some CPU @ 3 GHz", "copy 1 GB/s (read and written), read 2 GB/s, cache 1 MiB",
        "bfloat16 1", "int8, 8×16\nbatch", "torch.int8: odd.",
        "torch.int8 is not faster than 16-bit weights at batch 4",
        "Errors are those of 256 outputs", "Left out:\na: No.\n"
        "b (int8; fp8): It takes none.", "Stopped before everything was measured.",
    ):  # fmt: skip
        assert words in text


# ---------------------------------------------------------------------- the benchmark


@pytest.fixture
def bench(monkeypatch):
    """The names of bench/kernels.py."""
    folder = Path(__file__).parents[2] / "bench"
    monkeypatch.syspath_prepend(str(folder))
    return runpy.run_path(str(folder / "kernels.py"))


def big(kernel, seconds, *, format="int4-g128", bits=4.25, arithmetic="bfloat16", spread=0.01):
    """A point of batch 1 with the weight that the budget is about."""
    size = int(8192 * 28672 * bits / 8)
    time = Timing(seconds, seconds * (1 - spread), seconds * (1 + spread), 9)
    return point(kernel, format=format, shape=(8192, 28672), batch=1, time=time, weight_bytes=size,
                 moved_bytes=size, arithmetic=arithmetic)  # fmt: skip


def test_the_verdict_is_that_of_the_figures(bench):
    size = int(8192 * 28672 * 4.25 / 8)
    enough, little = size / 0.75e12, size / 0.5e12  # with a copy of 10¹² bytes per second
    rival = big("bitsandbytes.matmul_4bit", size / 0.6e12, format="nf4-g64")
    points = (
        rival,
        big("torch.matmul", 0.01, bits=16, format="nf4-g64"),
        big("triton.w4a16", enough),
        big("torch.int4", little),
        big("near", size / 0.6e12),
        big("torch.matmul", 0.01, bits=16),
        big("torch.int8", enough, bits=8, format="int8"),
        big("dynamic", enough, arithmetic="int8"),
    )
    gpu = {**MACHINE, "device": "ACME X9"}
    found = example(points=points, ceilings=Ceilings(1e12, 1e12, {}, 2**20), machine=gpu)
    end = "bitsandbytes.matmul_4bit with nf4-g64"
    said = "{} with int4-g128: {} % of a copy's bandwidth, budget of 70 % {}; {}."
    assert bench["verdict"](found) == [
        said.format("triton.w4a16", 75, "met", f"ahead of {end} (1.25 times as fast)"),
        said.format("near", 60, "missed", f"within the spread of {end}"),
        said.format("torch.int4", 50, "missed", f"behind {end} (0.83 times as fast)"),
    ]
    # Had the machine been half as fast while the rival was measured, nothing else would be said.
    slowed = replace(rival, time=Timing(*(2 * t for t in (rival.time.median, rival.time.low,
                                                          rival.time.high)), 9))  # fmt: skip
    drifted = (slowed, big("torch.matmul", 0.02, bits=16, format="nf4-g64"), *points[2:])
    assert bench["verdict"](replace(found, points=drifted)) == bench["verdict"](found)
    alone = bench["verdict"](replace(found, points=points[2:3]))
    assert "bitsandbytes was not measured beside it" in alone[0]
    assert "not measured here" in bench["verdict"](example())[0]


@pytest.mark.parametrize("complete", [True, False])
def test_only_what_is_complete_ships(bench, tmp_path, complete):
    page = bench["write"](example(complete=complete), tmp_path)
    assert page == tmp_path / "bench" / "results" / "kernels_cpu.md"
    text = page.read_text(encoding="utf-8")
    assert "## int8, 8×16" in text and "- a: It is absent." in text
    assert ("The time was up" in text) == (not complete)
    rows = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["rows"]
    assert [row["kernel"] for row in rows] == ["torch.matmul", "torch.int8"]
    shipped = list((tmp_path / "qviz" / "data" / "kernels").glob("*.json"))
    assert [records.load(path) for path in shipped] == ([example()] if complete else [])


def test_what_ships():
    """A GPU first, the CPU after it; all that was measured can be compared, and nothing is shown of
    a kernel that does not exist."""
    first, *others = records.recorded()
    assert "H100" in first.title and others and all("CPU" not in each.title for each in others)
    known = kernels.kernels()
    for each in (first, *others):
        found = each.measurement
        assert found.complete
        assert {point.kernel for point in found.points} <= set(known)
        assert all(found.speedup(point) > 0 for point in found.points)
        # A reason stands for a kernel, or for a kernel with a format; none was timed after all.
        timed = {p.kernel for p in found.points} | {f"{p.kernel}, {p.format}" for p in found.points}
        assert not timed & set(found.left_out)
