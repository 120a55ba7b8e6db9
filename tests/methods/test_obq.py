"""OBQ against its definition, with the inverse found anew at every step."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from inputs import calibration_for

import qviz
from qviz.core.metrics import output_error
from qviz.methods.gptq import gptq
from qviz.methods.obq import EVENTS, obq


def problem(rows=6, columns=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(200, columns, generator=g, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=g, dtype=torch.float64) / columns**0.5
    w = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    return w, calibration_for(x + x @ mix)


def by_definition(w, h, bits, damp):
    """One row after another; H_F⁻¹ is the inverse of the rows and columns of H that are left."""
    h = h.numpy() + damp * np.diag(h.numpy()).mean() * np.eye(len(h))
    top, codes, loss = 2**bits - 1, np.zeros(w.shape, np.int64), 0.0
    for r, row in enumerate(w.numpy().copy()):
        scale = 2 * np.abs(row).max() / top
        left = list(range(len(row)))
        while left:
            inverse = np.linalg.inv(h[np.ix_(left, left)])
            live = row[left]
            q = np.clip(np.rint(live / scale) + 2 ** (bits - 1), 0, top)
            off = live - scale * (q - 2 ** (bits - 1))
            cost = off**2 / np.diag(inverse)
            k = int(cost.argmin())
            if (np.abs(off) > scale / 2).any() and live[k] != 0:
                k = int(np.abs(off).argmax())
            codes[r, left[k]] = q[k]
            loss += cost[k] / 2
            row[left] = live - off[k] / inverse[k, k] * inverse[k]
            left.pop(k)
    return codes, loss


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_the_paper_defines(bits, seed):
    w, c = problem(seed=seed)
    ours = obq(w, c, bits=bits)
    codes, loss = by_definition(w, c.hessian, bits, 0.01)
    assert np.array_equal(ours.codes.numpy(), codes)
    assert ours.info["loss"] == pytest.approx(loss, rel=1e-9)


def test_rows_are_problems_of_their_own(monkeypatch):
    w, c = problem(rows=8)
    together = obq(w, c, bits=3, group_size=8)
    monkeypatch.setattr("qviz.methods.obq.MEMORY", 3 * 24**2 * 8)  # three rows at a time
    assert torch.equal(obq(w, c, bits=3, group_size=8).codes, together.codes)
    assert torch.equal(obq(w[5:6], c, bits=3, group_size=8).codes, together.codes[5:6])


def test_it_beats_rounding_and_is_close_to_gptq():
    layer = "layers.0.self_attn.k_proj"
    w, c = qviz.load_layer(None, layer)[:6], qviz.load_calibration(None, layer)
    greedy = obq(w, c, bits=3)
    fixed = gptq(w, c, bits=3, group_size=None)
    plain = qviz.quantize(w, bits=3, granularity="channel", convention="gptq")
    assert torch.equal(greedy.grid.scale, plain.grid.scale)
    error, gptq_error, rtn_error = (
        output_error(w, q.dequantize(), c) for q in (greedy, fixed, plain)
    )
    assert error < 0.8 * rtn_error
    assert error == pytest.approx(gptq_error, rel=0.2)


def test_trace():
    w, c = problem()
    before = w.clone()
    trace = qviz.Trace()
    traced, plain = obq(w, c, emit=trace), obq(w, c)
    assert torch.equal(traced.codes, plain.codes)
    assert torch.equal(w, before)
    assert [e.name for e in trace] == ["obq.step"] * 24
    assert set(trace[0].tensors) == set(EVENTS[0].tensors)
    # Each row rounds each of its weights once.
    order = torch.stack([e["column"] for e in trace], 1)
    assert torch.equal(order.sort(1).values, torch.arange(24).expand(6, -1))
    for now, then in pairwise(trace):
        moved = now["live"] - now["error"].unsqueeze(1) * now["hinv_row"]
        assert torch.equal(moved, then["live"])
        assert torch.isinf(then["scores"][torch.arange(6), now["column"]]).all()
    value = plain.dequantize()
    each = torch.arange(6)
    assert all(torch.equal(e["value"], value[each, e["column"]]) for e in trace)


def test_dead_columns_and_the_bill():
    w, c = problem()
    c.hessian[5], c.hessian[:, 5] = 0, 0
    q = obq(w, c, bits=3, group_size=8)
    assert q.info["dead_columns"] == [5]
    assert (q.dequantize()[:, 5] == 0).all()
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes


def test_errors():
    w, c = problem()
    with pytest.raises(ValueError, match="5 does not divide"):
        obq(w, c, group_size=5)
    with pytest.raises(ValueError, match="24 input channels"):
        obq(w[:, :8], c)
    wide = calibration_for(torch.randn(10, 4096))
    with pytest.raises(ValueError, match=r"Use weight\[:2\], or gptq"):
        obq(torch.randn(64, 4096), wide)
    with pytest.raises(TypeError, match="pass one layer's entry"):
        obq(w, {"layer": c})
    big = replace(c, hessian=c.hessian * (1e38 / c.hessian.max()))  # inverse: 0 in float32
    with pytest.raises(ValueError, match="pass the weight as float64"):
        obq(w.float(), big)
    assert obq(w.double(), big).info["loss"] > 0
