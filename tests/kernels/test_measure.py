"""Measuring: clocks, cold copies, turns, errors against float64, and who is left out."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qviz.kernels import errors, formats, registry, timing
from qviz.kernels.ceilings import Ceilings, _require_room, ceilings
from qviz.kernels.dense import Matmul
from qviz.kernels.measure import (
    Point,
    Timing,
    _arithmetic_of,
    _Turns,
    measure,
    synthetic_inputs,
    synthetic_weight,
)
from qviz.kernels.results import Measurement

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
GIVEN = Ceilings(1e10, 2e10, {"bfloat16": 1e11, "float32": 5e10, "int8": 2e11}, 2**20)
CPU = torch.device("cpu")


class Off(Matmul):
    """The 16-bit product, a thousandth too large."""

    name = "fake.off"

    def product(self, packed, x):
        return super().product(packed, x) * 1.001


class Rounded(Matmul):
    """Takes float32, and rounds the inputs to whole numbers first."""

    name = "fake.rounded"
    dtypes = (torch.float32,)
    activations = "int8 for all"

    def inputs(self, x, q):
        return x.double().round()

    def product(self, packed, x):
        return super().product(packed, x.round())


class Absent(Matmul):
    name = "fake.absent"

    def missing(self, device="cpu"):
        return "It is not there."


class Picky(Matmul):
    name = "fake.picky"

    def refuses(self, q):
        return "It takes nothing." if q.grid.bits == 8 else None


class Interpreted(Matmul):
    name = "fake.interpreted"
    interpreted = True


class Overflowing(Matmul):
    name = "fake.overflowing"

    def missing(self, device="cpu"):
        return None

    def product(self, packed, x):
        return super().product(packed, x) * math.inf


class Failing(Matmul):
    """Is tried with success, and does not pack."""

    name = "fake.failing"

    def missing(self, device="cpu"):
        return None

    def _pack(self, q, device, dtype):
        raise ValueError("no room in the layout.")


FAKES = (Matmul(), Off(), Rounded(), Absent(), Picky(), Interpreted(), Overflowing(), Failing())


@pytest.fixture
def fakes(monkeypatch):
    """A registry of kernels that are known to be wrong in known ways."""
    monkeypatch.setattr(registry, "_all", lambda: {kernel.name: kernel for kernel in FAKES})


def quick(*arguments, **options):
    return measure(*arguments, **{"device": "cpu", "seconds": 0.002, "ceilings": GIVEN, **options})


# ---------------------------------------------------------------------- timings and clocks


def test_a_timing_is_median_and_tenths():
    made = Timing.of([float(n) for n in range(11)])
    assert made == Timing(5.0, 1.0, 9.0, 11)


@given(st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=50))
def test_a_timing_is_in_order_and_within_its_samples(samples):
    made = Timing.of(samples)
    slack = 1e-12 * max(samples)
    assert min(samples) - slack <= made.low <= made.median + slack
    assert made.median - slack <= made.high <= max(samples) + slack
    assert made.repeats == len(samples)


@given(st.tuples(*[st.floats(0, 10)] * 4))
def test_ranges_overlap_exactly_when_neither_lies_above_the_other(ends):
    a, b = sorted(ends[:2]), sorted(ends[2:])
    one, other = (Timing(sum(e) / 2, e[0], e[1], 7) for e in (a, b))
    assert one.overlaps(other) == other.overlaps(one) == (not (a[1] < b[0] or b[1] < a[0]))


@given(st.integers(1, 2**34), st.integers(2**10, 2**29))
def test_copies_exceed_three_times_the_cache_or_are_the_most_there_may_be(size, cache):
    copies = timing.copies_for(size, cache)
    assert copies >= 2
    assert copies * size > 3 * cache or copies == timing.MOST_COPIES
    assert copies == 2 or (copies - 1) * size <= 3 * cache  # and no more than that takes


def sys_tree(root: Path, *caches: tuple[int, str, str, str]) -> Path:
    """cpu, level, size, shared_cpu_list → files as Linux has them."""
    for i, (cpu, level, size, shared) in enumerate(caches):
        folder = root / f"cpu{cpu}" / "cache" / f"index{i}"
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(text + "\n")
    return root


def test_the_cache_is_that_of_the_highest_level(tmp_path):
    root = sys_tree(
        tmp_path, (0, "1", "48K", "0"), (0, "2", "1024K", "0"), (0, "3", "32768K", "0-1"),
        (1, "3", "32768K", "0-1"),
    )  # fmt: skip
    assert timing._cache_in_sys(root) == 32 * 2**20


@pytest.mark.parametrize(("threads", "mebibytes"), [(1, 32), (2, 128), (8, 128)])
def test_two_caches_count_where_threads_can_fill_both(tmp_path, monkeypatch, threads, mebibytes):
    root = sys_tree(tmp_path, (0, "3", "32M", "0-3"), (4, "3", "96M", "4-7"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert timing._cache_in_sys(root) == {32: 96, 128: 128}[mebibytes] * 2**20


@pytest.mark.parametrize("caches", [(), [(0, "3", "unknown", "0")]])
def test_without_sys_lscpu_is_asked_and_then_it_is_assumed(tmp_path, monkeypatch, caches):
    monkeypatch.setattr(timing, "_CPU", sys_tree(tmp_path, *caches))
    monkeypatch.setattr(timing.shutil, "which", lambda name: "/usr/bin/lscpu")
    answer = "L1d cache:  98304 (2 instances)\nL2 cache:  2097152\nL3 cache:   33554432 (1)\n"

    class Done:
        stdout = answer

    monkeypatch.setattr(timing.subprocess, "run", lambda *a, **k: Done)
    found = timing.last_level_cache(CPU)
    assert (found.size, str(found)) == (2**25, "32 MiB (from lscpu)")
    monkeypatch.setattr(timing.shutil, "which", lambda name: None)
    assert "assumed" in str(timing.last_level_cache(CPU))


class Ticks:
    """A clock that calls advance, in the place of time.perf_counter."""

    def __init__(self):
        self.now, self.calls = 0.0, 0

    def perf_counter(self):
        return self.now

    def call_of(self, seconds):
        def call():
            self.now += seconds
            self.calls += 1

        return call


@pytest.mark.parametrize(("seconds", "calls"), [(1e-3, 1), (50e-6, 1), (20e-6, 3), (1e-6, 50)])
def test_short_calls_are_timed_together(monkeypatch, seconds, calls):
    clock = Ticks()
    monkeypatch.setattr(timing, "time", clock)
    timer = timing.CpuTimer(clock.call_of(seconds))
    before = clock.calls
    assert timer.sample() == pytest.approx(seconds)
    assert clock.calls - before in (calls, calls + 1)  # one more where the clock's sums round


class Counted(timing.Timer):
    """Takes what it is told to, and notes when it was asked."""

    def __init__(self, clock, name, seconds, order):
        self.clock, self.name, self.order = clock, name, order
        self.seconds = seconds if callable(seconds) else lambda: seconds

    def sample(self):
        taken = self.seconds()
        self.clock.now += taken
        self.order.append(self.name)
        return taken


def test_all_take_turns_and_the_slowest_is_sampled_seven_times(monkeypatch):
    clock, order = Ticks(), []
    monkeypatch.setattr(timing, "time", clock)
    timers = {n: Counted(clock, n, s, order) for n, s in (("slow", 1.0), ("fast", 0.001))}
    found = timing.round_robin(timers, 0.07)
    assert found["slow"].repeats == 7
    assert 69 <= found["fast"].repeats <= 77  # 0.07 s of it
    turns = [name for i, name in enumerate(order[-100:]) if i == 0 or order[-100:][i - 1] != name]
    assert len(turns) >= 7  # neither was measured in one piece
    assert (found["slow"].median, found["fast"].median) == (1.0, 0.001)


def test_a_drift_meets_all_alike(monkeypatch):
    """Two equal kernels on a machine that becomes slower come out equal."""
    clock, order = Ticks(), []
    monkeypatch.setattr(timing, "time", clock)
    timers = {n: Counted(clock, n, lambda: 0.001 * (1 + clock.now), order) for n in ("a", "b")}
    found = timing.round_robin(timers, 0.5)
    assert found["a"].median == pytest.approx(found["b"].median, rel=0.1)
    assert found["a"].high > 1.3 * found["a"].low  # while the drift itself is seen


def test_the_warm_up_ends_when_medians_agree(monkeypatch):
    clock, order = Ticks(), []
    monkeypatch.setattr(timing, "time", clock)
    falling = iter([8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    timer = Counted(clock, "a", lambda: next(falling), order)
    assert timing.warm_up(timer, 100.0) == 1.0
    endless = Counted(clock, "a", lambda: 1.0 + clock.now, order)  # never twice the same
    assert timing.warm_up(endless, 0.5) > 1.0


def test_stopping_between_turns_gives_nothing(monkeypatch):
    clock, order = Ticks(), []
    monkeypatch.setattr(timing, "time", clock)
    answers = iter([False, False, True])
    timers = {"a": Counted(clock, "a", 0.01, order)}
    assert timing.round_robin(timers, 0.07, lambda: next(answers)) is None


def test_every_call_takes_the_next_copy():
    q = formats.get("int8").quantize(synthetic_weight((8, 16)))
    seen = []

    class Watched(Matmul):
        def product(self, packed, x):
            seen.append((packed.tensors["weight"].data_ptr(), x.data_ptr()))
            return super().product(packed, x)

    first = Watched().pack(q, dtype=torch.float32)
    copies = [first, first.copy(), first.copy()]
    turns = _Turns(Watched(), copies, [torch.ones(2, 16), torch.ones(2, 16)])
    results = [turns() for _ in range(6)]
    assert all(torch.equal(results[0], each) for each in results)
    weights, inputs = zip(*seen, strict=True)
    assert len(set(weights[:3])) == 3 and weights[:3] == weights[3:]
    assert len(set(inputs)) == 2


def test_where_no_graph_takes_a_product_it_is_looped_and_said(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(timing, "Graph", refuse)
    monkeypatch.setattr(timing, "Looped", lambda call, device, calls: ("looped", calls))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    timer, note = timing.timer_for(lambda: None, torch.device("cuda"), 3)
    assert timer == ("looped", 21)  # each of 3 copies 7 times: 20 at least
    assert "not permitted when stream is capturing" in note and "more" not in note
    assert timing.timer_for(lambda: None, CPU, 3)[1] == ""


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", formats.FORMATS)
def test_rows_of_a_tensor_are_those_of_its_reconstruction(name):
    q = formats.get(name).quantize(synthetic_weight((24, 256), seed=3))
    rows = torch.tensor([1, 5, 6, 23])
    part = errors.rows_of(q, rows)
    assert part.shape == (4, 256)
    assert torch.equal(part.dequantize(), q.dequantize()[rows])
    x = synthetic_inputs(3, 256)
    for kernel in registry.usable(q, "cpu"):
        given = x.to(kernel.dtypes[0])
        whole, few = kernel.reference(q, given), kernel.reference(part, given)
        assert torch.allclose(few, whole[:, rows], rtol=1e-12, atol=1e-12), kernel.name


def test_rows_that_share_their_blocks_cannot_be_taken():
    q = formats.get("nf4-g64").quantize(synthetic_weight((8, 96)))
    with pytest.raises(ValueError, match="run from one row into the next"):
        errors.rows_of(q, torch.tensor([0]))


def test_the_errors_of_a_known_mistake(fakes):
    found = quick((32, 64), "int8", [1, 5], kernels=["fake.off", "fake.rounded"])
    weight = formats.get("int8").quantize(synthetic_weight((32, 64))).dequantize().double()
    for batch in (1, 5):
        (off,) = found.select(kernel="fake.off", batch=batch)
        assert off.dtype == "bfloat16"
        assert 0.0005 < off.error < 0.006  # a thousandth, and bfloat16
        (rounded,) = found.select(kernel="fake.rounded", batch=batch)
        assert rounded.error < 1e-6  # its reference rounds the inputs too
        x = synthetic_inputs(batch, 64, seed=batch).double()
        expected = ((x.round() - x) @ weight.T).norm() / (x @ weight.T).norm()
        assert rounded.total_error == pytest.approx(float(expected), rel=1e-4)


def test_of_a_large_weight_some_outputs_are_checked(fakes, monkeypatch):
    monkeypatch.setattr(errors, "WHOLE", 1000)
    monkeypatch.setattr(errors, "SOME", 64)
    some = quick((200, 64), "int8", [4], kernels=["fake.rounded"])
    monkeypatch.setattr(errors, "WHOLE", 10**6)
    whole = quick((200, 64), "int8", [4], kernels=["fake.rounded"])
    for point, all_of in zip(some.points, whole.points, strict=True):
        assert (point.error_rows, all_of.error_rows) == (64, None)
        assert point.total_error == pytest.approx(all_of.total_error, rel=0.3)


def test_the_large_shapes_are_never_checked_whole():
    rows = errors.checked_rows((8192, 28672))
    assert len(rows) == len(set(rows.tolist())) == 256
    assert torch.equal(rows, errors.checked_rows((8192, 28672)))
    assert not torch.equal(rows, errors.checked_rows((8192, 28672), seed=1))
    assert errors.checked_rows((2048, 2048)) is None


# ---------------------------------------------------------------------- measuring


def test_a_point_counts_what_is_moved_and_computed(fakes):
    found = quick((32, 64), "int8", [3], kernels=["fake.rounded"])
    baseline, point = found.points
    assert (baseline.kernel, baseline.dtype) == ("torch.matmul", "bfloat16")
    assert (baseline.weight_bytes, point.weight_bytes) == (2 * 32 * 64, 4 * 32 * 64)
    assert point.moved_bytes == 4 * (32 * 64 + 3 * 64 + 3 * 32)
    assert point.flops == baseline.flops == 2 * 3 * 32 * 64
    assert point.copies == 3 * 2**20 // point.weight_bytes + 1
    assert (point.arithmetic, baseline.arithmetic) == ("int8", "bfloat16")
    assert point.launch is None and point.time.repeats >= 7 and point.note == ""
    assert found.speedup(baseline) == 1
    assert found.speedup(point) == baseline.time.median / point.time.median
    assert found.bandwidth_share(point) == point.moved_bytes / point.time.median / 1e10
    assert found.rate_share(point) == point.flops / point.time.median / 2e11
    assert found.complete and found.machine["device"] == "CPU"
    assert list(found.machine)[-3:] == ["date", "load before", "load after"]


def test_what_a_kernel_makes_of_each_copy_once_is_not_timed(fakes, monkeypatch):
    made, timed = [], []

    class Lazy(Matmul):
        name = "fake.lazy"

        def product(self, packed, x):
            if "handle" not in packed.scratch:
                packed.scratch["handle"] = len(made)
                made.append(bool(timed))
            return super().product(packed, x)

    turns = timing.round_robin
    monkeypatch.setitem(measure.__globals__, "round_robin", lambda *a: timed.append(1) or turns(*a))
    monkeypatch.setattr(registry, "_all", lambda: {k.name: k for k in (Matmul(), Lazy())})
    (lazy,) = quick((64, 128), "int8", [1]).select(kernel="fake.lazy")
    assert made[-lazy.copies :] == [False] * lazy.copies  # all before the clock ran
    assert len(made) == lazy.copies + 1  # and one when it was tried


def test_copies_that_stay_in_the_cache_are_said(fakes, monkeypatch):
    large = replace(GIVEN, cache=2**30)
    monkeypatch.setattr(timing, "MOST_COPIES", 8)
    (only,) = quick((8, 16), "int8", [1], ceilings=large, kernels=[]).points
    assert (only.copies, only.note) == (
        8, "8 copies are 0.0 MiB: some may have been in the cache"
    )  # fmt: skip


def test_who_is_left_out_and_why(fakes):
    found = quick((32, 64), "int8", [1])
    assert {p.kernel for p in found.points} == {"torch.matmul", "fake.off", "fake.rounded"}
    assert found.left_out == {
        "fake.absent": "It is not there.",
        "fake.interpreted": "fake.interpreted is only interpreted on a CPU, so its results mean "
        "something but its time does not.",
        "fake.picky": "It takes nothing.",
        "fake.failing": "It could not be packed: no room in the layout.",
        "fake.overflowing, batch 1": "It failed: the product has values that are not finite.",
    }


def test_without_the_sixteen_bit_product_there_is_no_race(fakes, monkeypatch):
    """A time with nothing beside it would make every comparison of the run fail."""

    class Breaking(Matmul):
        def product(self, packed, x):
            if x.shape[0] == 4:
                raise RuntimeError("out of memory")
            return super().product(packed, x)

    kernels = (Breaking(), Off())
    monkeypatch.setattr(registry, "_all", lambda: {kernel.name: kernel for kernel in kernels})
    monkeypatch.setattr(Off, "product", Matmul.product)
    found = quick((32, 64), "int8", [1, 4])
    assert {p.batch for p in found.points} == {1} and len(found.points) == 2
    assert found.left_out == {
        "torch.matmul, batch 4": "It failed: out of memory.",
        "fake.off, batch 4": "There is no torch.matmul to compare it with, because that failed.",
    }
    assert [one.batches for one in found.crossovers()] == [(1,)]


def test_a_format_that_does_not_fit_is_refused_before_anything_is_measured(fakes):
    steps = []
    with pytest.raises(ValueError, match="q4_k does not accept this shape: Q4_K needs rows"):
        quick((64, 96), ["int8", "q4_k"], [1], progress=lambda *step: steps.append(step))
    assert steps == []


def test_several_formats_in_one_run(fakes):
    found = quick((32, 128), ["int8", "int4-g128"], [1], kernels=["fake.picky"])
    assert [(p.kernel, p.format) for p in found.points] == [
        ("torch.matmul", "int8"),
        ("torch.matmul", "int4-g128"),
        ("fake.picky", "int4-g128"),
    ]
    assert found.left_out == {"fake.picky, int8": "It takes nothing."}


def test_a_real_weight_can_be_measured(fakes):
    weight = torch.randn(16, 32)
    before = weight.clone()
    found = quick(None, "int8", [2], weight=weight, kernels=[])
    assert found.points[0].shape == (16, 32)
    assert torch.equal(weight, before)
    with pytest.raises(ValueError, match="the weight is 16×32, not 4×4"):
        quick((4, 4), "int8", [2], weight=weight)


def test_progress_counts_every_step(fakes):
    steps = []
    quick(
        (32, 64), ["int8", "fp8"], [1, 2], kernels=["fake.off"], progress=lambda *s: steps.append(s)
    )
    assert [done for done, _, _ in steps] == list(range(7))
    assert {total for _, total, _ in steps} == {6}
    assert steps[-1][2] == "done"
    assert steps[1][2] == "int8, batch 1: 2 kernels in turns"


@pytest.mark.parametrize("after", [0, 1, 4, 12])
def test_when_it_is_stopped_what_was_measured_is_kept(fakes, after):
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > after

    found = quick((32, 64), "int8", [1, 2, 4], kernels=["fake.off"], stopped=stopped)
    assert not found.complete
    assert len(found.points) % 2 == 0  # a batch is kept whole or not at all
    assert bool(found.points) == (after >= 12)
    assert found.crossovers() == [] or found.crossovers()[0].batches == (1,)


def test_what_was_measured_is_given_after_each_format(fakes):
    kept = []
    found = quick((32, 64), ["int8", "fp8"], [1, 2], kernels=["fake.off"], keep=kept.append)
    assert [part.points for part in kept] == [found.points[: len(kept[0].points)], found.points]
    assert {point.format for point in kept[0].points} == {"int8"}
    assert found.complete and not any(part.complete for part in kept)


def test_the_inputs_are_the_same_for_the_same_seed():
    assert torch.equal(synthetic_weight((8, 600), 3), synthetic_weight((8, 600), 3))
    assert not torch.equal(synthetic_weight((8, 600), 3), synthetic_weight((8, 600), 4))
    wide = synthetic_weight((64, 600)).std(0)
    assert (wide > 0.08).sum() == 3  # one column in 256, rounded up
    assert (synthetic_inputs(64, 2048).std(0) > 5).sum() == 2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (((0, 8),), {}, ValueError, "each side of the shape must be from 1"),
        (((8,),), {}, ValueError, r"shape must be \(out, in\)"),
        ((None,), {}, ValueError, r"shape must be \(out, in\)"),
        (((8, 8), "int9"), {}, ValueError, "unknown format 'int9'"),
        (((8, 8), []), {}, ValueError, "no format to measure"),
        (((8, 8), "int8", []), {}, ValueError, "batches must be distinct numbers"),
        (((8, 8), "int8", [2, 2]), {}, ValueError, "batches must be distinct numbers"),
        (((8, 8), "int8", [0]), {}, ValueError, "a batch must be from 1"),
        (((8, 8), "int8", [1.5]), {}, TypeError, "a batch must be an integer"),
        (((8, 8), "int8", [1]), {"seconds": 0}, ValueError, "seconds must be above 0"),
        (((8, 8), "int8", [1]), {"seconds": math.nan}, ValueError, "seconds must be above 0"),
        (((8, 8), "int8", [1]), {"kernels": ["torch.mat"]}, ValueError, "torch.matmul"),
        (((8, 8), "int8", [1]), {"seed": -1}, ValueError, "seed must be from 0"),
    ],
)
def test_what_makes_no_sense_is_said(fakes, arguments, options, error, words):
    with pytest.raises(error, match=words):
        quick(*arguments, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_said(fakes):
    with pytest.raises(RuntimeError, match="no CUDA device"):
        measure((8, 8), "int8", [1], device="cuda")


def test_what_does_not_fit_is_refused_before_anything_is_made(fakes, monkeypatch):
    monkeypatch.setattr("qviz.core.memory.available_memory", lambda: 2**30)
    with pytest.raises(MemoryError, match=r"measuring 8192×28672 with 1 kernels needs .* GiB"):
        quick((8192, 28672), "int8", [1], kernels=["fake.off"])


def test_buffers_that_do_not_fit_on_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 2**34))
    with pytest.raises(
        MemoryError, match=r"needs 1.0 GiB of the GPU's memory, but only 0.5 GiB are free"
    ):
        _require_room(2**30, torch.device("cuda", 0))


@pytest.mark.slow
def test_ceilings_are_those_of_this_machine():
    found = ceilings("cpu")
    assert found.cache == timing.last_level_cache(CPU).size
    assert 1e8 < found.copy_bandwidth < 1e13 and 1e8 < found.read_bandwidth < 1e13
    assert found.bandwidth == max(found.copy_bandwidth, found.read_bandwidth)
    assert {"bfloat16", "float32"} <= found.matmul_rate.keys()
    assert all(1e7 < rate < 1e15 for rate in found.matmul_rate.values())


def test_every_kernel_has_an_arithmetic_with_a_ceiling():
    """One that said otherwise what it makes of its inputs would lose its share of the rate."""
    known = {"bfloat16", "float16", "float32", "int8", "float8_e4m3fn"}
    for kernel in registry.kernels().values():
        assert _arithmetic_of(kernel, kernel.dtypes[0]) in known, kernel


def test_real_kernels_are_measured_beside_each_other():
    found = quick((64, 256), "int8", [1, 17], seconds=0.005)
    kernels = {p.kernel for p in found.points}
    assert {"torch.matmul", "torch.int8"} <= kernels
    for point in found.points:
        assert point.error < 0.01 and point.total_error < 0.2, point
    q = formats.get("int8").quantize(synthetic_weight((64, 256)))
    for name in kernels - {"torch.matmul"}:
        (point,) = found.select(kernel=name, batch=1)
        assert point.weight_bytes == registry.get(name).pack(q).nbytes
    assert len(found.crossovers()) == len(kernels) - 1


# ---------------------------------------------------------------------- what follows from points


def point(kernel, batch, seconds, *, spread=0.0, dtype="bfloat16") -> Point:
    time = Timing(seconds, seconds * (1 - spread), seconds * (1 + spread), 9)
    return Point(kernel, "int8", (8, 8), batch, dtype, time, 64, 128, 128 * batch, 0.0, 0.0, 2,
                 None, dtype)  # fmt: skip


def measured(speedups: dict[int, float], spread=0.0) -> Measurement:
    """A kernel "k" with these speed-ups, by batch."""
    points = []
    for batch, factor in speedups.items():
        points += [point("torch.matmul", batch, 1.0, spread=spread), point("k", batch, 1 / factor)]
    return Measurement({}, GIVEN, tuple(points), {})


@given(st.floats(0.2, 2), st.floats(2, 300))
def test_a_power_law_is_met_where_it_is_one(slope, meets):
    batches = (1, 4, 16, 64, 256, 1024)
    found = measured({b: (meets / b) ** slope for b in batches}).crossover("k", "int8", (8, 8))
    assert found.faster == max(b for b in batches if b < meets)
    assert found.slower == min(b for b in batches if b >= meets)
    assert found.batch == pytest.approx(meets, rel=1e-6)
    assert found.gaps == ()
    assert f"up to batch {found.faster} but no longer at {found.slower}" in str(found)


@pytest.mark.parametrize(
    ("speedups", "spread", "verdict", "words"),
    [
        ({1: 3, 4: 2}, 0, "always", "is faster at every batch measured, 1 to 4."),
        ({1: 0.5, 4: 0.4}, 0, "never", "is not faster at any batch measured, 1 to 4."),
        ({2: 3}, 0, "always", "is faster at batch 2."),
        ({2: 1}, 0, "within the spread", "is not faster at batch 2. At batch 2 there is no "
         "measurable difference."),
        ({1: 4, 4: 0.25}, 0, "crosses", "is faster up to batch 1 but no longer at 4; they break "
         "even at about batch 2."),
        ({1: 0.5, 4: 2, 16: 0.5}, 0, "crosses", "is faster up to batch 4 but no longer at 16; they "
         "break even at about batch 8. At batch 1 it is not, though."),
        ({1: 0.5, 2: 0.6, 4: 2}, 0, "crosses", "is faster at the largest batch measured, 4. At "
         "batch 1 and 2 it is not, though."),
        ({1: 1.1, 4: 0.95}, 0.2, "within the spread", "is faster up to batch 1 but no longer at 4; "
         "they break even at about batch 2.46. At batch 1 and 4 there is no measurable "
         "difference."),
        ({1: 2, 4: 0.95}, 0.2, "crosses", "is faster up to batch 1 but no longer at 4; they break "
         "even at about batch 3.64. At batch 4 there is no measurable difference."),
    ],
)  # fmt: skip
def test_where_a_kernel_stops_being_faster(speedups, spread, verdict, words):
    found = measured(speedups, spread).crossover("k", "int8", (8, 8))
    said = "k " + words.replace("is faster", "is faster than 16-bit weights").replace(
        "not faster", "not faster than 16-bit weights"
    )
    assert (found.verdict, str(found)) == (verdict, said)


def test_comparisons_that_cannot_be_made_are_refused():
    found = measured({1: 2})
    with pytest.raises(ValueError, match="the baseline that the others are compared with"):
        found.crossover("torch.matmul", "int8", (8, 8))
    with pytest.raises(
        LookupError, match="x was not measured with int8 at 8×8: it was not requested"
    ):
        found.crossover("x", "int8", (8, 8))
    alone = Measurement({}, GIVEN, (point("k", 1, 1.0),), {"x": "It is absent."})
    with pytest.raises(LookupError, match=r"torch.matmul was not measured in bfloat16 at batch 1"):
        alone.speedup(alone.points[0])
    with pytest.raises(LookupError, match="It is absent"):
        alone.crossover("x", "int8", (8, 8))
    several = replace(alone, left_out={"x, int8": "It takes 4 bits."})
    with pytest.raises(LookupError, match="It takes 4 bits"):
        several.crossover("x", "int8", (8, 8))


def test_the_baseline_has_the_dtype_of_the_inputs():
    points = [
        point("torch.matmul", 1, s, dtype=d) for s, d in ((1.0, "bfloat16"), (4.0, "float16"))
    ]
    points += [point("k", 1, 1.0, dtype=d) for d in ("bfloat16", "float16", "float32")]
    found = Measurement({}, GIVEN, tuple(points), {})
    assert [found.speedup(p) for p in found.select(kernel="k")] == [1.0, 4.0, 1.0]
    assert found.rate_share(points[3]) is None  # no float16 among the ceilings


def test_measurements_of_several_shapes_join():
    one = measured({1: 2})
    other = replace(
        measured({4: 2}),
        machine={"load before": "7", "load after": "9"},
        left_out={"a": "No.", "b": "Gone."},
        complete=False,
    )
    joined = replace(one, left_out={"a": "No.", "b": "Never there."}).joined(other)
    assert joined.points == one.points + other.points
    assert joined.left_out == {"a": "No.", "b": "Never there. Gone."}
    assert not joined.complete
    assert joined.machine == {"load after": "9"}


# ---------------------------------------------------------------------- on a GPU


@needs_gpu
def test_a_graph_times_what_a_loop_does_without_its_launches():
    device = torch.device("cuda", 0)
    a = torch.randn(4096, 4096, device=device, dtype=torch.float16)
    graph, note = timing.timer_for(lambda: a @ a, device, 1)
    assert isinstance(graph, timing.Graph) and note == ""
    looped = timing.Looped(lambda: a @ a, device, 20)
    found = timing.round_robin({"graph": graph, "looped": looped}, 0.2)
    assert found["graph"].median == pytest.approx(found["looped"].median, rel=0.2)


@needs_gpu
def test_what_waits_for_the_gpu_is_looped_and_the_next_graph_is_fine():
    device = torch.device("cuda", 0)
    a = torch.ones(8, device=device)
    timer, note = timing.timer_for(lambda: a.sum().item(), device, 1)
    assert isinstance(timer, timing.Looped) and "no CUDA graph takes it" in note
    torch.cuda.empty_cache()  # what an allocator that is still capturing dies of
    assert isinstance(timing.timer_for(lambda: a + 1, device, 1)[0], timing.Graph)
    assert torch.cuda.get_sync_debug_mode() == 0


@needs_gpu
def test_on_a_gpu_launches_are_measured_too():
    found = measure((256, 256), "int8", [1], device="cuda", seconds=0.01, kernels=[])
    (only,) = found.points
    assert only.launch is not None and only.launch.median > only.time.median > 0
    assert only.error < 0.01 and "driver" in found.machine
