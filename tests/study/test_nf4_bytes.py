"""One weight's bytes are those that bitsandbytes writes, and decode to what it decodes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qviz
from qviz.methods.nf4 import NF4
from qviz.study.nf4_bytes import listing, second, stored


def random(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(
    shape=st.sampled_from([(64, 256), (3, 65), (7, 37), (130, 512), (1, 1)]),
    size=st.sampled_from([32, 64, 256]),
    place=st.integers(0, 2**20),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_every_byte_is_that_of_bitsandbytes(shape, size, place, seed):
    from bitsandbytes.functional import quantize_4bit

    w = random(*shape, seed)
    k = place % w.numel()
    row, column = divmod(k, shape[1])
    packed, state = quantize_4bit(w, quant_type="nf4", blocksize=size)
    theirs = packed.flatten().numpy()
    ours = qviz.quantize(w, "nf4", group_size=size)
    at = stored(w, ours.pack()["codes"], size, row, column)
    assert at.byte_at == k // 2 and at.byte == theirs[k // 2]
    nibble = theirs[k // 2] >> 4 if k % 2 == 0 else theirs[k // 2] & 15
    assert (at.high, at.code) == (k % 2 == 0, nibble)
    assert at.absmax == state.absmax[at.block].numpy().tobytes()
    assert at.level == np.float32(NF4[nibble])
    assert at.value == ours.dequantize()[row, column]
    assert at.w == w[row, column]
    assert at.x == pytest.approx(at.w / at.a, rel=1e-6)
    assert (at.below is None or at.below < at.x) and (at.above is None or at.x <= at.above)

    _, twice = quantize_4bit(w, quant_type="nf4", blocksize=size, compress_statistics=True)
    q = qviz.quantize(w, "nf4", group_size=size, double_quant=True)
    then = second(q, at)
    assert then.code == twice.absmax[at.block]
    assert then.absmax == twice.state2.absmax[then.group]
    assert then.offset == twice.offset
    assert then.level == twice.state2.code[then.code]
    assert then.value == pytest.approx(then.level * then.absmax + then.offset, rel=1e-6)
    assert then.weight == q.dequantize()[row, column]
    if then.absmax:
        assert then.position == pytest.approx((at.a - then.offset) / then.absmax, rel=1e-4)


def test_a_weight_quantized_once_has_no_second_level():
    w = random(4, 64, 0)
    q = qviz.quantize(w, "nf4")
    with pytest.raises(ValueError, match="without double"):
        second(q, stored(w, q.pack()["codes"], 64, 0, 0))


@given(n=st.integers(1, 200), at=st.integers(0, 199), rows=st.integers(1, 5))
def test_a_listing_has_the_byte_in_its_place(n, at, rows):
    packed, at = np.arange(n, dtype=np.uint8), at % n
    made = listing(packed, at, rows)
    assert len(made) == min(rows, -(-n // 8))
    assert all(start + i == value for start, row in made for i, value in enumerate(row))
    assert any(start <= at < start + len(row) for start, row in made)
