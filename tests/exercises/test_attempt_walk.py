"""A learner's run as a page walks through it: what was handed in, and nothing else."""

import sys

import numpy as np
import pytest
import torch

import qviz
from qviz.core.calibration import Calibration
from qviz.exercises.attempt_walk import AttemptWalk
from qviz.methods.gptq import gptq
from qviz.study.gptq_walk import Walk

gptq_module = sys.modules[gptq.__module__]  # its name is also that of the function
OPTIONS = {"bits": 3, "group_size": 16, "act_order": True}


@pytest.fixture(scope="module")
def layer() -> tuple[torch.Tensor, Calibration]:
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(32, 32, generator=g)
    x = torch.randn(200, 32, generator=g) @ mix
    peak = x.abs().amax(0)
    weight = torch.randn(20, 32, generator=g)
    return weight, Calibration(x[:8], 2 * x.T @ x / 200, peak, peak, 200)


def walked(layer, function):
    weight, calibration = layer
    report = qviz.step_through(function, weight, calibration, **OPTIONS)
    return report, report.walk, AttemptWalk(report)


def test_a_right_run_that_tells_all_is_the_true_walk(layer):
    calibration = layer[1]

    def right(weight, hessian, emit, **options):
        return gptq(weight, calibration, emit=emit, **OPTIONS)

    report, true, attempt = walked(layer, right)
    assert report.passed
    for step in range(true.n + 1):
        torch.testing.assert_close(attempt.now(step), true.now(step), rtol=1e-4, atol=1e-5)
    steps, errors = attempt.error
    np.testing.assert_allclose(errors, true.error[steps], rtol=1e-4, atol=1e-6)


def test_codes_alone_leave_the_waiting_columns_as_they_were(layer):
    weight, calibration = layer

    def nearest(weight, hessian, bits, group_size):
        return qviz.quantize(weight, "affine", bits=bits, group_size=group_size).codes

    report, true, attempt = walked(layer, nearest)
    assert not report.passed
    middle = attempt.now(10)
    assert torch.equal(middle[:, 10:], weight[:, true.perm][:, 10:])
    # read with the true scales, as the report says
    grid, g_idx = true.grid, true.result.g_idx.long()
    scale, zero = grid.scale[:, g_idx], grid.zero_point[:, g_idx]
    value = scale * (report.codes - zero)
    torch.testing.assert_close(attempt.now(true.n), value[:, true.perm])
    lost = (weight - value).double()
    h = calibration.hessian.double()
    w = weight.double()
    expected = ((lost @ h * lost).sum() / (w @ h * w).sum()).sqrt()
    assert attempt.error[1][-1] == pytest.approx(float(expected), rel=1e-5)


def test_values_are_shown_as_they_are_and_missing_columns_stay(layer):
    weight = layer[0]
    _, _, attempt = walked(layer, lambda w, h: w * 0.5)
    torch.testing.assert_close(attempt.values, weight * 0.5)

    def half(weight, hessian, emit):
        for step in range(4):
            emit("gptq.column", step=step, codes=torch.zeros(20, dtype=torch.int32))
        raise RuntimeError("not finished")

    report, true, attempt = walked(layer, half)
    assert report.exception is not None
    done = torch.isfinite(attempt.values).all(0)
    assert done.sum() == 4
    assert torch.equal(attempt.now(true.n)[:, 4:], weight[:, true.perm][:, 4:])


def test_nothing_to_walk_through_is_said(layer):
    weight, calibration = layer
    report = qviz.step_through(lambda w, h: None, weight, calibration, **OPTIONS)
    with pytest.raises(ValueError, match="no codes to show"):
        AttemptWalk(report)


def test_the_true_run_is_run_once_for_report_and_walk(layer, monkeypatch):
    """GPTQ, and with it the damped Hessian and its factor, for one attempt on the page."""
    weight, calibration = layer
    runs = []
    real = gptq_module.prepare

    def counted(*given, **options):
        runs.append(options)
        return real(*given, **options)

    monkeypatch.setattr(gptq_module, "prepare", counted)
    report = qviz.step_through(lambda weight, hessian: weight.round(), weight, calibration, bits=3,
                               group_size=16)  # fmt: skip
    walk, attempt = report.walk, AttemptWalk(report)
    walk.error, attempt.error, walk.story(3, 5), walk.hessian, attempt.now(9)
    assert len(runs) == 1
    assert walk.recording is report.recording
    plain = Walk(weight, calibration, **report.options)
    assert len(runs) == 2  # what the count would have seen
    assert torch.equal(walk.hessian, plain.hessian)
    assert torch.equal(walk.result.codes, plain.result.codes)
    np.testing.assert_array_equal(walk.error, plain.error)
