"""GPTQ's blocks by replay: the same bits as launched one by one, and nothing that waits."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gptq import MODES, calibration, weight
from torch.utils._python_dispatch import TorchDispatchMode

import qviz
from qviz.core.agreement import agreement
from qviz.methods import gptq as module
from qviz.methods.gptq import Block, GroupPlan, Levelling, gptq, round_block
from qviz.methods.gptq_cuda import REPEATS, Kind, Replays
from qviz.methods.gptq_record import record

COLUMNS = 512
# Options, and how many of the blocks are done by replay.
WAYS = [
    ({}, 3),
    ({"group_size": 32}, 3),
    ({"group_size": 256}, 3),
    ({"group_size": None}, 3),
    ({"group_size": 32, "block_size": 48}, 4),
    ({"group_size": 64, "block_size": 48}, 4),
    ({"group_size": 16, "block_size": 48}, 9),
    ({"block_size": 1}, 511),
    ({"block_size": 200}, 0),
    ({"group_size": 32, "act_order": True}, 3),
    ({"group_size": 32, "act_order": True, "static_groups": True, "symmetric": False}, 3),
    ({"group_size": 32, "static_groups": True, "scale_dtype": torch.float16}, 3),
    ({"group_size": 64, "symmetric": False, "scale_dtype": torch.bfloat16}, 3),
    ({"group_size": 16, "stale_groups": True}, 3),
    ({"group_size": 64, "mse": True, "bits": 2}, 3),
]


class Again:
    """Stands in for a CUDA graph where there is no GPU: the work is done when it is recorded, and
    done again, into the same tensors, whenever it is replayed."""

    def __init__(self, work):
        self._work, self.result = work, work()
        for tensor in self.result:  # a recording does nothing yet
            tensor.fill_(torch.nan)

    def replay(self):
        for kept, made in zip(self.result, self._work(), strict=True):
            kept.copy_(made)


def by_replay(monkeypatch, w, c, **options):
    """The result of a run whose blocks are replayed, on the CPU, and how many were."""
    made = []

    def replays(plan, cuts, work):
        made.append(Replays(plan, cuts, work, record=Again))
        return made[0]

    blocks = module._quantize_block

    def quantize_block(w, u, codes, levels, start, stop, none, emit):
        assert none is None
        if not made:
            size = options.get("block_size", 128)
            cuts = [(i, min(i + size, len(codes))) for i in range(0, len(codes), size)]
            replays(levels.plan, cuts, round_block)
        return blocks(w, u, codes, levels, start, stop, made[0], emit)

    monkeypatch.setattr(module, "_quantize_block", quantize_block)
    return gptq(w, c, **options), made[0].replayed


def same(a, b):
    assert torch.equal(a.codes, b.codes)
    for one, other in zip(a._streams(), b._streams(), strict=True):
        assert one.name == other.name
        assert torch.equal(one.values, other.values)
    assert a.info["loss"] == b.info["loss"]


@pytest.mark.parametrize(("options", "replayed"), WAYS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_replayed_blocks_give_the_same_bits(monkeypatch, options, replayed, dtype):
    w, c = weight(24, COLUMNS, dtype=dtype), calibration(COLUMNS, tokens=900)
    plain = gptq(w, c, **options)
    again, blocks = by_replay(monkeypatch, w, c, **options)
    same(plain, again)
    assert blocks == replayed


@settings(max_examples=25)
@given(
    groups=st.integers(2, 20),
    size=st.sampled_from([4, 8, 12, 32]),
    block=st.sampled_from([4, 8, 12, 16, 24, 50]),
    order=st.booleans(),
    static=st.booleans(),
)
def test_replayed_blocks_of_any_size(groups, size, block, order, static):
    n = groups * size
    w, c = weight(5, n, dtype=torch.float32), calibration(n, tokens=2 * n)
    options = {
        "group_size": size, "block_size": block, "act_order": order, "static_groups": static
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        again, _ = by_replay(patch, w, c, **options)
    same(gptq(w, c, **options), again)


def test_a_group_that_begins_in_a_block_and_reaches_beyond_is_done_plainly():
    plan = {
        "bits": 4, "symmetric": True, "convention": "gptq", "scale_dtype": None, "mse": False,
        "static_groups": False, "stale_groups": False, "act_order": False, "in_features": 768,
    }  # fmt: skip
    kinds = [Kind.of(GroupPlan(group_size=96, **plan), i, i + 128) for i in range(0, 768, 128)]
    assert kinds == [None] * 2 + [kinds[2]] + [None] * 2 + [kinds[2]]
    assert kinds[2].groups == (0,) * 32 + (1,) * 96
    assert kinds[2].inside == (1,)
    whole = [Kind.of(GroupPlan(group_size=256, **plan), i, i + 128) for i in range(0, 768, 128)]
    assert len(set(whole)) == 1
    assert whole[0].inside == ()
    assert REPEATS == 3


# ------------------------------------------------------------------- what a recording must not hold


class Watched(TorchDispatchMode):
    """Fails where an operation on tensors of one device reads or writes one of the CPU's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        seen = [*args, *(kwargs or {}).values(), result]
        devices = {x.device.type for x in seen if isinstance(x, torch.Tensor)}
        assert devices <= {"meta"}, f"{func} moves numbers between devices: {devices}"
        self.count = getattr(self, "count", 0) + 1
        return result


@pytest.mark.parametrize(("convention", "symmetric"), MODES)
@pytest.mark.parametrize(
    "more",
    [{}, {"scale_dtype": torch.float16}, pytest.param({"mse": True}, marks=pytest.mark.slow)],
    ids=str,
)
def test_nothing_in_a_block_waits_for_the_gpu(convention, symmetric, more):
    """With tensors that have shapes and no numbers: whatever asks for a number fails."""
    options = {
        "bits": 4, "symmetric": symmetric, "convention": convention, "scale_dtype": None,
        "mse": False, "group_size": 32, "static_groups": False, "stale_groups": False,
        "act_order": False, "in_features": 64, **more,
    }  # fmt: skip
    levels = Levelling(GroupPlan(**options), torch.arange(64))
    with Watched() as watched:
        w, u = torch.empty(64, 8, device="meta"), torch.empty(64, 64, device="meta")
        codes, errors = round_block(Block(w, u, levels, 0, 64))
        assert codes.shape == errors.shape == (64, 8)
        found = levels.of_group(1).grid.scale
        assert found.shape == (8, 1)
    assert watched.count > 64 * 8


def test_levels_are_checked_once_the_columns_are_done():
    """So that no group waits; the message is the one that each group's own check would give."""
    w, alone = weight(4, 128), replace(calibration(), hessian=torch.eye(128).double())
    w[2, 64:96] *= 1e-9
    with pytest.raises(ValueError, match=r"scale of group \[2, 2\] is 0\.0 \(computed.*float16"):
        gptq(w, alone, group_size=32, scale_dtype=torch.float16)


# ------------------------------------------------------------------------------------- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize(("options", "replayed"), WAYS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_on_a_gpu_replayed_blocks_give_the_same_bits(monkeypatch, options, replayed, dtype):
    w, c = weight(64, COLUMNS, dtype=dtype).cuda(), calibration(COLUMNS, tokens=900)
    again = gptq(w, c, **options)
    assert again.info["replayed_blocks"] == replayed
    monkeypatch.setattr("qviz.methods.gptq_cuda.REPEATS", 10**9)
    plain = gptq(w, c, **options)
    assert plain.info["replayed_blocks"] == 0
    same(plain, again)


@needs_gpu
@pytest.mark.parametrize(("convention", "symmetric"), MODES)
def test_on_a_gpu_every_convention_agrees_with_the_processor(convention, symmetric):
    w, c = weight(64, COLUMNS, dtype=torch.float32), calibration(COLUMNS, tokens=900)
    options = {"convention": convention, "symmetric": symmetric, "group_size": 64}
    ours = record(w, c, **options)
    theirs = gptq(w.cuda(), c, **options)
    assert theirs.info["replayed_blocks"] == 3
    found = agreement(ours.result.codes, theirs.codes.cpu(), ours.positions())
    assert found.holds, found


@needs_gpu
def test_on_a_gpu_a_traced_run_launches_and_agrees():
    w, c = weight(64, COLUMNS, dtype=torch.float32).cuda(), calibration(COLUMNS, tokens=900)
    traced = gptq(w, c, emit=qviz.Trace("gptq.block"))
    assert "replayed_blocks" not in traced.info
    same(traced, gptq(w, c))


@needs_gpu
def test_on_a_gpu_bad_levels_and_overflow_are_refused_after_replay():
    w, c = weight(8, COLUMNS, dtype=torch.float32), calibration(COLUMNS, tokens=900)
    w[2, 256:384] *= 1e-9
    alone = replace(c, hessian=torch.eye(COLUMNS))
    with pytest.raises(ValueError, match=r"scale of group \[2, 2\] is 0\.0 \(computed.*float16"):
        gptq(w.cuda(), alone, scale_dtype=torch.float16)
