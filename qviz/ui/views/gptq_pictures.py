"""The pictures and charts of one GPTQ run, or of two beside each other, at any step.

Errors and the factor U of a run are sent to the browser, which shows the weights at any step from
them, forwards and backwards, without the kernel.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from qviz.exercises.attempt_walk import AttemptWalk
from qviz.study.gptq_walk import Walk
from qviz.ui.figures.gptq import column_codes, errors_so_far
from qviz.ui.views.frame import tie_frames
from qviz.ui.widgets import (
    Chart,
    Choice,
    MatrixFrame,
    MatrixView,
    Replay,
    Toggle,
    Transport,
    figures_row,
    link,
    link_matrices,
    number,
    percent,
    show_only,
)

AXES, OWN_AXES = ("row", "step"), ("row", "column")
ASPECT = 4 / 3  # the same for all pictures, so that they line up


class RunPictures:
    """One run's pictures, or those of a pair; `factor_control` and `stretch_control` belong to
    them."""

    def __init__(self, transport: Transport) -> None:
        self.replay, self.replays = Replay(), (Replay(), Replay())
        self.now_view = MatrixView("Weights now", aspect=ASPECT)
        self.passed_view = MatrixView("Passed on by this step", aspect=ASPECT)
        self.factor_view = MatrixView("What the run knows", aspect=ASPECT)
        self.pair_views = (
            MatrixView("First run", aspect=ASPECT),
            MatrixView("Second run", aspect=ASPECT),
        )
        self.between_view = MatrixView("First − second", aspect=ASPECT)
        self.names = ("first run", "second run")
        self.errors = Chart("Output error so far", height=190)
        self.column_chart = Chart("This column: weights and their codes", height=190)
        self.factor_control = Choice(
            "“What the run knows” shows the", ["factor U", "Hessian H"], kind="segmented"
        )
        self.stretch_control = Toggle("Stretch the colours of “Passed on by this step”")
        self.single = figures_row(self.now_view, self.passed_view, self.factor_view)
        self.pair = figures_row(*self.pair_views, self.between_view)
        tie_frames(transport, self.now_view, self.passed_view, *self.pair_views, self.between_view)
        link(transport, "index", (self.errors, "mark"), (self.factor_view, "row_mark"))
        tie_frames(self.factor_control, self.factor_view)
        link(self.stretch_control, "value", (self.passed_view, "autoscale"))
        link_matrices(self.now_view, self.passed_view)
        link_matrices(*self.pair_views, self.between_view)

    def name_pair(self, first: str, second: str) -> None:
        """As written in the middle of a sentence."""
        self.names = (first, second)
        for view, name in zip(self.pair_views, self.names, strict=True):
            view.label = f"{name[0].upper()}{name[1:]}"
        self.between_view.label = f"{self.pair_views[0].label} − {second}"

    def show_pair(self, both: bool) -> None:
        """The pair's pictures, or those of the first run alone."""
        show_only(self.single, not both)
        show_only(self.pair, both)

    def draw_first(self, walk: Walk) -> None:
        """The pictures of the first run, columns in the order of its steps."""
        fill(self.replay, walk, torch.arange(walk.n))
        limits = reach(walk.original)
        self.now_view.set_replay(
            self.replay,
            show="now",
            window=walk.window,
            limits=limits,
            role="codes",
            axes=AXES,
            describe=f"{walk.rows} rows; columns before the mark are rounded; the others wait and "
            "have been moved by their errors",
        )
        self.passed_view.set_replay(
            self.replay, show="handed", window=walk.handed_window, limits=_passed_reach(walk),
            role="error", axes=AXES, cells="amounts",
            describe="What the marked column's rounding error does to each column after it",
        )  # fmt: skip
        u, h = walk.recording.hinv_chol, walk.hessian
        self.factor_view.set_frames(
            [MatrixFrame(u), MatrixFrame(h)],
            labels=["U", "H, damped"],
            limits=[reach(u[u != 0]), reach(h)],
            reduce="max_abs", axes=("step", "step"), cells="entries",
        )  # fmt: skip

    def draw_pair(self, first: Walk, second: Walk | AttemptWalk) -> None:
        """Both runs at the same step, columns in the weight's own order, which they share."""
        limits = reach(first.original)
        for walk, replay, view in zip((first, second), self.replays, self.pair_views, strict=True):
            fill(replay, walk, walk.turn)
            view.set_replay(
                replay, show="now", window=_own_order(walk), limits=limits, role="codes",
                axes=OWN_AXES,
                describe=f"{walk.rows} rows, in the layer's own order of columns, after this step",
            )  # fmt: skip
        a, b = _own_order(first), _own_order(second)
        self.between_view.set_replay(
            self.replays[0], minus=self.replays[1], show="now",
            window=lambda step, rows, columns: a(step, rows, columns) - b(step, rows, columns),
            limits=limits, role="error", axes=OWN_AXES, cells="differences",
            describe="Weights of the first run minus those of the second, after the same step",
        )  # fmt: skip

    def draw_errors(
        self, first: Walk, second: Walk | AttemptWalk | None, *, revealed: bool
    ) -> None:
        """The curves, once the learner has predicted or stepped; earlier they would reveal the
        answer."""
        steps = np.arange(first.n + 1)
        curves = {"rtn": ("round to nearest", steps, first.rtn_error)}
        if revealed:
            names = self.names
            curves["first"] = ("GPTQ" if second is None else names[0], steps, first.error)
            if isinstance(second, Walk):
                curves["second"] = (names[1], steps, second.error)
            elif second is not None:
                curves["second"] = (names[1], *second.error)
        words = "; ".join(f"{label} ends at {percent(y[-1])}" for label, _, y in curves.values())
        self.errors.set_figures(
            errors_so_far(curves),
            summary=f"Relative error of the layer's output against columns rounded: {words}",
        )

    def draw_column(self, walk: Walk, step: int, row: int) -> None:
        at = walk.column(min(step, walk.n - 1))
        off = float(np.sqrt(np.mean((at.position - at.codes) ** 2)))
        self.column_chart.set_figures(
            column_codes(at.position, at.codes, (at.qmin, at.qmax), row),
            summary=(
                f"Column {at.column}: {walk.rows} weights against their codes, off by "
                f"{number(off, 3)} spacings (root mean square); row {row} lies at "
                f"{number(at.position[row])} and becomes {number(at.codes[row])}"
            ),
        )


def fill(replay: Replay, walk: Walk | AttemptWalk, turn: torch.Tensor) -> None:
    """Send a run to the browser; `turn` [in] is the step that rounds each column shown."""
    replay.set_run(
        walk.now(0)[:, turn], walk.now(walk.n)[:, turn],
        walk.errors.T, walk.factor[:, turn], turn,
    )  # fmt: skip


def reach(values: torch.Tensor) -> float:
    """The magnitude that 99.5 % of the values stay within, where a colour map may end."""
    sizes = values.abs().flatten().float().numpy()
    return float(np.quantile(sizes[:: max(1, len(sizes) // 100_000)], 0.995)) or 1.0


def _passed_reach(walk: Walk) -> float:
    """A colour limit for what steps pass on; half of the steps reach it somewhere."""
    errors = walk.recording.errors.abs().quantile(0.95, dim=1)  # [in]
    later = walk.recording.hinv_chol.triu(1).abs().quantile(0.95, dim=1)  # [in]
    return float((errors * later).median()) or 1.0


def _own_order(walk: Walk | AttemptWalk) -> Callable[..., Any]:
    """Parts of `walk.now` with columns in the weight's own order."""

    def window(step: int, rows: slice, columns: slice) -> torch.Tensor:
        return walk.now(step)[:, walk.turn[columns]][rows]

    return window


def apart(first: Walk, second: Walk | AttemptWalk) -> np.ndarray:
    """[in] per column, the share of weights that the two runs put s/2 or more from each other.

    Values that differ by less are the same level, found from slightly different weights.
    """
    a, b = (walk.now(walk.n)[:, walk.turn] for walk in (first, second))
    groups = [first.group_of(int(step)) for step in first.turn]
    half = first.grid.scale.reshape(first.rows, -1)[:, groups] / 2
    far = (a - b).abs() >= half * (1 - 1e-6)
    return np.asarray(far.double().mean(0))
