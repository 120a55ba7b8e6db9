"""Runs on their way to the browser: decoded as replay.js does it, each step is the true one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qviz.ui.widgets import Chart, MatrixView, Replay, Transport, codec, number
from qviz.ui.widgets.replay import encode_run

Run = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def some_run(rows: int, n: int, *, shuffled: bool = False, size: float = 1.0, seed: int = 0) -> Run:
    """A run of the form that the widget asks for: any errors, any shares, any end."""
    rng = np.random.default_rng(seed)
    start, end = rng.standard_normal((2, rows, n)) * size
    errors = rng.standard_normal((rows, n)) * size * 0.2
    shares = rng.standard_normal((n, n)) / np.sqrt(n)  # its lower triangle must not matter
    turn = rng.permutation(n) if shuffled else np.arange(n)
    return start, end, errors, shares, turn


def after(run: Run, s: int) -> np.ndarray:
    """The matrix after s steps, by the definition."""
    start, end, errors, shares, turn = run
    return np.where(turn < s, end, start - errors[:, :s] @ shares[:s])


def handed(run: Run, s: int) -> np.ndarray:
    start, _end, errors, shares, turn = run
    if s == len(turn):
        return np.zeros_like(start)
    return np.where(turn > s, -np.outer(errors[:, s], shares[s]), 0.0)


SHOWN: dict[str, Callable[[Run, int], np.ndarray]] = {
    "now": after,
    "moved": lambda run, s: after(run, s) - run[0],
    "handed": handed,
}


class Decoded:
    """The formula of replay.js, in NumPy: integers that are summed step by step."""

    def __init__(self, replay: Any) -> None:
        (_, n), (rows, count), step = replay.shape, replay.grid, replay.step
        self.at = 0
        take = lambda kind, size: self._take(replay.data, kind, size)  # noqa: E731
        self.turn = take("<i4", n)
        e_scale, s_scale, w_scale, m_scale = (take("<f4", k) for k in (n, n, count, count))
        self.errors = take("<i2", n * rows).reshape(n, rows)
        self.shown = np.minimum(np.arange(count) * step[1] + step[1] // 2, n - 1)
        self.order = np.argsort(self.turn[self.shown])
        self.turns = self.turn[self.shown][self.order]
        self.shares = [take("<i2", int((self.turns > j).sum())) for j in range(n)]
        self.start = take("<i2", count * rows).reshape(count, rows) / 32767 * w_scale[:, None]
        self.moved = take("<i2", count * rows).reshape(count, rows) / 32767 * m_scale[:, None]
        assert self.at == len(replay.data)
        self.factors = (e_scale / 32767.0) * (s_scale / 32767.0)
        self.unit = replay.unit
        self.sums = np.zeros((count, rows), np.int64)
        self.step = 0

    def _take(self, data: bytes, kind: str, size: int) -> np.ndarray:
        found = np.frombuffer(data, kind, size, self.at)
        self.at += found.nbytes
        return found.astype(np.float64) if kind == "<f4" else found

    def forward(self) -> None:
        j = self.step
        waiting = self.turns > j
        factor = self.factors[j] / self.unit
        terms = (self.errors[j] * factor)[None, :] * self.shares[j][:, None].astype(float)
        self.sums[waiting] -= np.trunc(terms).astype(np.int64)
        assert np.abs(self.sums).max(initial=0) < 2**31  # the browser has 32 bits
        self.step += 1

    def now(self) -> np.ndarray:
        done = (self.turns < self.step)[:, None]
        values = self.start + np.where(done, self.moved, self.sums * self.unit)
        out = np.empty(values.T.shape)
        out[:, self.order] = values.T
        return out


def loaded(run: Run) -> Replay:
    replay = Replay()
    replay.set_run(*run)
    return replay


# ---------------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    ("rows", "n", "shuffled", "size"),
    [(1, 1, False, 1.0), (5, 12, False, 1.0), (7, 40, True, 1e-20), (530, 70, True, 1.0),
     (3, 1030, False, 1e4), (3, 520, True, 1.0)],
)  # fmt: skip
def test_every_step_decodes_to_the_true_numbers(
    rows: int, n: int, shuffled: bool, size: float
) -> None:
    run = some_run(rows, n, shuffled=shuffled, size=size)
    replay = loaded(run)
    twin = Decoded(replay)
    _start, _end, errors, shares, _turn = run
    step = codec.factors((rows, n))
    # each factor of a term is off by at most half an integer of its scale; sums by a unit per term
    terms = np.abs(errors).max(axis=0) * np.abs(shares).max(axis=1)
    ends = max(np.abs(run[0]).max(), np.abs(run[1] - run[0]).max())
    for s in range(n + 1):
        bound = ends / 32767 * 2 + terms[:s].sum() * 1.01 / 32767 + s * replay.unit
        want = codec.reduce_matrix(after(run, s), step, "nearest")
        assert np.abs(twin.now() - want).max() <= bound, s
        if s < n:
            twin.forward()


def test_what_waits_and_hands_nothing_on_is_exact() -> None:
    start, end = np.array([[1.0, -0.5]]), np.array([[0.75, -0.5]])
    replay = loaded((start, end, np.zeros((1, 2)), np.eye(2), np.array([1, 0])))
    twin = Decoded(replay)
    for want in ([1.0, -0.5], [1.0, -0.5], [0.75, -0.5]):
        np.testing.assert_allclose(twin.now(), [want], rtol=1e-7)
        if twin.step < 2:
            twin.forward()


def test_shares_of_finished_columns_are_not_sent() -> None:
    run = some_run(4, 9, shuffled=True)
    useless = run[4][None, :] <= np.arange(9)[:, None]
    changed = np.where(useless, 1e9, run[3])
    assert encode_run(*run).data == encode_run(*run[:3], changed, run[4]).data


@pytest.mark.parametrize(("rows", "n", "most"), [(1024, 1024, 2.6), (256, 1024, 1.8)])
def test_a_run_is_small_enough_to_be_sent(rows: int, n: int, most: float) -> None:
    run = encode_run(*some_run(rows, n))
    assert len(run.data) < most * 2**20
    assert (run.grid, run.step) == ((min(rows, 512), 512), (-(-rows // 512), 2))


def test_tensors_and_arrays_are_the_same_run_and_stay_as_they_are() -> None:
    run = some_run(6, 8, shuffled=True)
    tensors = [torch.from_numpy(part.copy()) for part in run]
    before = [part.clone() for part in tensors]
    assert encode_run(*tensors) == encode_run(*run)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({1: np.zeros((3, 4))}, r"end has shape \(3, 4\), but \(3, 5\)"),
        ({2: np.zeros((3, 4))}, r"errors has shape .* a step for each column"),
        ({3: np.zeros((5, 4))}, r"shares has shape .* \(5, 5\)"),
        ({0: np.full((3, 5), np.nan)}, "start holds values that are not finite"),
        ({2: np.full((3, 5), np.inf)}, "errors holds values that are not finite"),
        ({2: np.full((3, 5), 1e300)}, "errors holds magnitudes that float32 cannot hold"),
        ({0: np.zeros(5)}, "1 dimensions"),
        ({4: np.array([0, 1, 2, 3, 3])}, "each step 0 … 4 once"),
        ({4: np.array([1, 2, 3, 4, 5])}, "each step 0 … 4 once"),
        ({4: np.arange(4)}, "turn must be 5 integers"),
        ({4: np.arange(5.0)}, "turn must be 5 integers"),
    ],
)
def test_what_is_no_run_is_refused(change: dict[int, np.ndarray], words: str) -> None:
    good = some_run(3, 5)
    replay = loaded(good)
    data = replay.data
    with pytest.raises(ValueError, match=words):
        replay.set_run(*(change.get(i, part) for i, part in enumerate(good)))
    assert (replay.data, replay.version) == (data, 1)


# ---------------------------------------------------------------------- views of a run


class Asked:
    """A view of a run, what its window was asked for, and what it sent."""

    def __init__(self, run: Run, show: Any = "now", **options: Any) -> None:
        self.windows: list[tuple[int, slice, slice]] = []
        self.run, self.show = run, show
        self.replay = loaded(run)
        self.view = MatrixView("W")
        self.view.set_replay(
            self.replay, **{"show": show, "window": self.window, "limits": 2.0, **options}
        )
        self.sent: list[tuple[Any, Any]] = []
        self.view.send = lambda content, buffers=None: self.sent.append((content, buffers))

    def window(self, s: int, rows: slice, columns: slice) -> np.ndarray:
        self.windows.append((s, rows, columns))
        return SHOWN[self.show](self.run, s)[rows, columns]

    def ask(self, **content: Any) -> None:
        self.view._handle_custom_msg({"version": self.view.version, **content}, [])


def test_nothing_is_sent_per_step() -> None:
    asked = Asked(some_run(700, 600))
    view = asked.view
    assert (view.shape, view.grid, view.step) == ([700, 600], [350, 300], [2, 2])
    assert (view.data, view.ranges, view.summaries) == (b"", [], [""])
    assert view.get_state(["replay"])["replay"] == f"IPY_MODEL_{asked.replay.model_id}"
    assert asked.windows == []


@pytest.mark.parametrize("show", ["now", "moved", "handed"])
def test_the_readout_is_the_exact_value_of_the_shown_step(show: Any) -> None:
    run = some_run(6, 9, shuffled=True)
    asked = Asked(run, show)
    view = asked.view
    view.cursor = [4, 7]
    for s in (0, 3, 9):
        view.frame = s
        want = number(SHOWN[show](run, s)[4, 7], 6)
        assert view.readout == {
            "row": 4, "column": 7, "frame": s, "text": want, "version": view.version,
        }  # fmt: skip
    assert all(w[1:] == (slice(4, 5), slice(7, 8)) for w in asked.windows)
    view.frame = 40  # beyond the end: the last step, as the browser shows it
    assert view.readout["frame"] == 9
    view.cursor = [-1, -1]
    assert view.readout == {}


def test_tiles_and_numbers_are_those_of_the_shown_step() -> None:
    run = some_run(20, 30)
    asked = Asked(run)
    asked.ask(type="tile", id="t", frame=5, rows=[2, 9], cols=[3, 40], range=[-0.5, 0.5])
    asked.ask(type="around", frame=6, row=1, column=29)
    (tile, buffers), (around, _) = asked.sent
    want = after(run, 5)[2:9, 3:30]
    assert (tile["range"], tile["cols"], tile["grid"]) == ([-0.5, 0.5], [3, 30], [7, 27])
    np.testing.assert_array_equal(
        np.frombuffer(buffers[0], np.uint8).reshape(want.shape), codec.encode(want, -0.5, 0.5)
    )
    np.testing.assert_array_equal(np.frombuffer(buffers[1], np.float32), np.float32(want).ravel())
    assert around["texts"][0][6] == number(after(run, 6)[0, 29])
    assert [w[0] for w in asked.windows] == [5, 6]  # and no other steps
    for odd in (None, [1, 0], ["a", 2], [float("nan"), 1], 3):
        asked.ask(type="tile", id="t", frame=5, rows=[2, 9], cols=[3, 40], range=odd)
        assert asked.sent[-1][0]["range"] == [-2.0, 2.0]


def test_requests_about_another_run_are_ignored() -> None:
    asked = Asked(some_run(20, 30))
    old = asked.view.version
    asked.view.cursor = [15, 3]
    asked.run = some_run(8, 12, seed=1)
    asked.replay.set_run(*asked.run)
    view = asked.view
    assert (view.shape, view.runs, view.cursor) == ([8, 12], [2], [-1, -1])
    asked.ask(type="tile", id="t", version=old, frame=1, rows=[0, 5], cols=[0, 5])
    asked.ask(type="tile", id="t", frame=13, rows=[0, 5], cols=[0, 5])
    assert asked.sent == []
    asked.ask(type="tile", id="t", frame=12, rows=[0, 5], cols=[0, 5])
    assert asked.sent[0][0]["frame"] == 12


def test_a_window_of_the_wrong_shape_is_named() -> None:
    view = MatrixView("W")
    view.set_replay(
        loaded(some_run(6, 9)), show="now", window=lambda *_: np.zeros((2, 2)), limits=1
    )
    with pytest.raises(ValueError, match=r"window of step 0 has shape \(2, 2\), asked was for"):
        view.cursor = [1, 1]


def test_two_runs_are_subtracted_once_they_match() -> None:
    first, second = loaded(some_run(6, 9)), loaded(some_run(6, 9, seed=1))
    view = MatrixView("W")
    options: dict[str, Any] = {"show": "now", "limits": (-1, 3), "minus": second}
    view.set_replay(first, window=lambda s, r, c: np.zeros((6, 9))[r, c], **options)
    assert (view.runs, view.shared_limits) == ([1, 1], [[-1.0, 3.0]])
    first.set_run(*some_run(4, 5))
    assert (view.runs, view.shape) == ([], [0, 0])  # nothing to show until the other one follows
    view.cursor = [1, 1]
    assert view.readout == {}
    second.set_run(*some_run(4, 5, seed=1))
    assert (view.runs, view.shape) == ([2, 2], [4, 5])
    assert view.readout["text"] == "0"
    second.set_run(*some_run(3, 3))
    with pytest.raises(ValueError, match="to subtract has shape"):
        view.set_replay(first, window=lambda s, r, c: 0, **options)


def test_frames_and_runs_take_turns_in_a_view() -> None:
    asked = Asked(some_run(6, 9))
    view = asked.view
    view.frame = 9
    view.set_frames([np.ones((4, 4)), np.zeros((4, 4))])
    assert (view.replay, view.runs, view.frame, view.shape) == (None, [], 1, [4, 4])
    version = view.version
    asked.replay.set_run(*some_run(5, 5))  # concerns this view no longer
    assert (view.version, view.shape) == (version, [4, 4])
    view.cursor = [1, 1]
    assert view.readout["texts"] == ["1", "0"]
    view.set_replay(asked.replay, show="now", window=asked.window, limits=1)
    assert (view.shape, view.version, view.runs) == ([5, 5], version + 1, [2])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"show": "later"}, ValueError, "'now', 'moved' or 'handed'"),
        ({"limits": 0}, ValueError, "low < high"),
        ({"limits": "max"}, ValueError, "neither a number nor a pair"),
        ({"labels": ["a"]}, ValueError, "1 labels for 10 steps"),
        ({"colormap": "categorical"}, ValueError, "sums"),
        ({"minus": 3}, TypeError, "Replay widgets"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    view = MatrixView("W", [np.ones((2, 2))])
    good = {"show": "now", "window": lambda *_: 0, "limits": 1.0}
    with pytest.raises(error, match=words):
        view.set_replay(loaded(some_run(6, 9)), **{**good, **options})
    assert (view.replay, view.version) == (None, 1)


def test_a_closed_run_is_refused() -> None:
    replay, view = loaded(some_run(6, 9)), MatrixView("W")
    replay.close()
    with pytest.raises(ValueError, match="closed"):
        view.set_replay(replay, show="now", window=lambda *_: 0, limits=1)


# ---------------------------------------------------------------------- what is linked to steps


def test_marks_take_whole_numbers_from_links() -> None:
    chart, transport = Chart("C"), Transport(5, 2)
    chart.mark = transport.index
    assert chart.mark == 2.0
    chart.mark = None
    view = MatrixView("W", [np.ones((2, 2))])
    view.row_mark = 1
    assert view.get_state(["row_mark"]) == {"row_mark": 1}
