"""The trace contract: what a hook sees, keeps and may do."""

import pytest
import torch

import qviz


def test_filters_before_it_copies():
    trace = qviz.Trace("a.*")
    shared = torch.zeros(3)
    trace("b.one", x=shared)
    trace("a.one", x=shared)
    trace("a.two", x=shared)
    assert [e.name for e in trace] == ["a.one", "a.two"]
    assert trace.nbytes == 2 * 12


def test_events_never_change_afterwards():
    trace = qviz.Trace()
    live = torch.zeros(3)
    trace("step", x=live)
    live += 1
    assert torch.equal(trace[0]["x"], torch.zeros(3))
    with pytest.raises(TypeError):
        trace[0].tensors["x"] = live


def test_an_exception_in_a_hook_reaches_the_caller():
    def hook(event, **tensors):
        raise RuntimeError(f"stop at {event}")

    w = torch.randn(4, 128)
    with pytest.raises(RuntimeError, match=r"stop at affine\.range"):
        qviz.quantize(w, emit=hook)
    qviz.quantize(w)  # nothing was left registered


def test_indexing_and_names():
    trace = qviz.Trace()
    for i in range(4):
        trace(f"gptq.column{i % 2}", i=torch.tensor(i))
    assert len(trace) == 4
    assert [int(e["i"]) for e in trace[1:3]] == [1, 2]
    assert [int(e["i"]) for e in trace.named("*0")] == [0, 2]
    assert "4 events" in repr(trace)
