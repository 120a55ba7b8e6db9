"""QuantizedTensor and its grids: reconstruction, windows, levels, packed bytes and the bill."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qviz
from qviz.core.granularity import Granularity
from qviz.core.grids import Affine, Blocks, Codebook, VectorCodebook
from qviz.core.ledger import LedgerItem, Stream
from qviz.core.metrics import error_split
from qviz.core.tensor import QuantizedTensor
from qviz.core.transform import InputScale


def codebook(shape=(4, 12), kind="flat", size=8, **options):
    """A tensor with random codes of three bits and a scale for each group."""
    g = torch.Generator().manual_seed(3)
    unit = Granularity(kind, size, **options)
    scale = torch.rand(unit.groups(shape), generator=g) + 0.5
    values = torch.tensor([-4.0, -2, -1, 0, 0.5, 1, 3, torch.nan])
    grid = Codebook(values, scale, 3, (Stream("absmax", scale),))
    codes = torch.randint(0, 7, shape, generator=g, dtype=torch.uint8)
    return QuantizedTensor(codes, grid, unit, shape)


UNITS = [
    {"kind": "flat", "size": 8},
    {"kind": "flat", "size": 5},  # straddles rows; the last group is short
    {"kind": "group", "size": 4},
    {"kind": "group", "size": 2, "axis": 0},
    {"kind": "channel", "size": None},
    {"kind": "channel", "size": None, "axis": 0},
    {"kind": "tensor", "size": None},
]


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_dequantize_cell_by_cell(unit):
    """Each value is its code's entry in the table times the scale of the group it belongs to."""
    q = codebook(**unit)
    rows, columns = q.shape
    group = {
        "flat": lambda r, c: (0, (r * columns + c) // unit["size"]),
        "group": lambda r, c: (
            (r, c // unit["size"]) if unit.get("axis", 1) else (c, r // unit["size"])
        ),
        "channel": lambda r, c: (r, 0) if unit.get("axis", 1) else (c, 0),
        "tensor": lambda r, c: (0, 0),
    }[unit["kind"]]
    whole = q.dequantize()
    for r in range(rows):
        for c in range(columns):
            at = group(r, c)
            assert q.group_of(r, c) == at
            assert whole[r, c] == q.grid.values[int(q.codes[r, c])] * q.grid.scale[at]


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_split_and_join_are_inverse(unit):
    x = torch.randn(4, 12)
    size = Granularity(unit["kind"], unit["size"], axis=unit.get("axis", 1))
    assert torch.equal(size.join(size.split(x), (4, 12)), x)
    assert size.split(x).shape[:2] == size.groups((4, 12))


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_a_window_is_a_part_of_the_whole(unit):
    q = codebook(**unit)
    for rows, columns in ((slice(1, 3), slice(2, 9)), (slice(3, 4), slice(11, 12))):
        assert torch.equal(q.window(rows, columns), q.dequantize()[rows, columns])


def test_levels_leave_out_what_is_not_finite():
    q = codebook(kind="group", size=4)
    s = float(q.grid.scale[1, 2])
    expected = torch.tensor([-4, -2, -1, 0, 0.5, 1, 3]) * s
    torch.testing.assert_close(q.levels(1, 9), expected)
    low, high = q.grid.extremes()
    assert (low[1, 2], high[1, 2]) == (-4 * s, 3 * s)
    with pytest.raises(IndexError, match="rows go from 0 to 3"):
        q.levels(4, 0)


def test_input_scales_are_undone_everywhere():
    w = torch.randn(6, 32)
    s = torch.rand(32) + 0.5
    plain = qviz.quantize(w * s, group_size=8)
    q = QuantizedTensor(
        plain.codes, plain.grid, plain.granularity, plain.shape, transform=InputScale(s)
    )
    assert torch.equal(q.dequantize(), plain.dequantize() / s)
    part = (slice(2, 5), slice(7, 20))
    assert torch.equal(q.window(*part), q.dequantize()[part])
    assert torch.isclose(q.levels(3, 9), q.dequantize()[3, 9]).any()
    assert q.ledger == plain.ledger  # folded into the layer before
    stored = QuantizedTensor(
        q.codes, q.grid, q.granularity, q.shape, transform=InputScale(s.half(), folded=False)
    )
    assert stored.ledger.total_bits == plain.ledger.total_bits + 32 * 16
    with pytest.raises(ValueError, match="range to clip"):
        error_split(w, q)


def test_outputs_that_the_next_layer_divided_are_undone_too():
    w, s, out = torch.randn(6, 32), torch.rand(32) + 0.5, torch.rand(6) + 0.5
    both = InputScale(s, outputs=out)
    torch.testing.assert_close(both.apply(w), w * s / out[:, None])
    torch.testing.assert_close(both.undo(both.apply(w)), w)
    with pytest.raises(ValueError, match=r"32 inputs.*\(31,\).*one for each"):
        InputScale(s[1:]).apply(w)
    plain = qviz.quantize(both.apply(w), group_size=8)
    q = QuantizedTensor(plain.codes, plain.grid, plain.granularity, plain.shape, transform=both)
    back = plain.dequantize() / s * out[:, None]
    torch.testing.assert_close(q.dequantize(), back)
    part = (slice(2, 5), slice(7, 20))
    assert torch.equal(q.window(*part), q.dequantize()[part])
    assert torch.isclose(q.levels(3, 9), q.dequantize()[3, 9]).any()


@pytest.mark.parametrize("zero", [None, torch.uint8, torch.float32])
@pytest.mark.parametrize("offset", [False, True])
def test_equally_spaced_levels_by_hand(zero, offset):
    """x̂ = s·(q − z) + offset, its levels, its ends and what is stored of it."""
    scale = torch.tensor([[0.5, 2.0], [0.25, 1.0]])
    zeros = None if zero is None else torch.tensor([[3, 0], [7, 15]], dtype=zero)
    offsets = torch.tensor([[1.0, -1.0], [0.5, 4.0]]) if offset else None
    grid = Affine(scale, 4, 0, 15, torch.float32, zeros, offsets)
    codes = torch.randint(0, 16, (2, 6), generator=torch.Generator().manual_seed(2)).byte()
    q = QuantizedTensor(codes, grid, Granularity("group", 3), (2, 6))

    def value(code: int, row: int, group: int) -> float:
        z = 0.0 if zeros is None else float(zeros[row, group])
        return float(scale[row, group]) * (code - z) + (float(offsets[row, group]) if offset else 0)

    for row in range(2):
        for column in range(6):
            group = column // 3
            wanted = value(int(codes[row, column]), row, group)
            assert float(q.dequantize()[row, column]) == wanted
            levels = [value(code, row, group) for code in range(16)]
            assert q.levels(row, column).tolist() == levels
            low, high = grid.extremes()
            assert (float(low[row, group]), float(high[row, group])) == (levels[0], levels[-1])
    stored = {item.name: (item.count, item.bits) for item in q.ledger.items}
    wanted = {"codes": (12, 4), "scales": (4, 32)}
    if zero is not None:  # an integer zero point is one of the codes
        wanted["zero points"] = (4, 4 if zero == torch.uint8 else 32)
    assert stored == wanted | ({"offsets": (4, 32)} if offset else {})


def test_signed_codes_are_stored_from_zero_on():
    grid = Affine(torch.ones(1, 1), 4, -8, 7, torch.float32, torch.full((1, 1), -3))
    codes = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    q = QuantizedTensor(codes, grid, Granularity("channel"), (1, 4))
    assert q.pack()["codes"].tolist() == [0xF0, 0x78]
    assert q.pack()["zero points"].tolist() == [5]
    assert (grid.code_dtype, Affine(torch.ones(1, 1), 4, 0, 15, torch.float32).code_dtype) == (
        torch.int8, torch.uint8,
    )  # fmt: skip


def test_columns_may_belong_to_any_group():
    g_idx = torch.tensor([2, 0, 1, 0, 2, 1, 1, 0], dtype=torch.int32)
    scale = torch.rand(3, 3) + 0.5
    codes = torch.randint(-8, 8, (3, 8), dtype=torch.int8)
    grid = Affine(scale, 4, -8, 7, torch.float32)
    q = QuantizedTensor(codes, grid, Granularity("group", 3), (3, 8), g_idx=g_idx)
    assert torch.equal(q.dequantize(), codes * scale[:, g_idx.long()])
    assert torch.equal(q.window(slice(1, 2), slice(3, 6)), q.dequantize()[1:2, 3:6])
    assert q.group_of(2, 4) == (2, 2)
    assert q.ledger.per_weight("g_idx") == 32 / 3


def test_vectors_add_up():
    books = torch.randn(2, 5, 4)
    codes = torch.randint(0, 5, (3, 2, 2))
    scale = torch.rand(3, 1)
    q = QuantizedTensor(codes, VectorCodebook(books, 3, scale), Granularity("channel"), (3, 8))
    expected = [
        torch.cat([books[0, codes[r, v, 0]] + books[1, codes[r, v, 1]] for v in range(2)])
        for r in range(3)
    ]
    torch.testing.assert_close(q.dequantize(), torch.stack(expected) * scale)
    assert torch.equal(q.window(slice(1, 3), slice(2, 5)), q.dequantize()[1:3, 2:5])
    assert {i.name: i.total_bits for i in q.ledger.items if i.name != "padding"} == {
        "codes": 12 * 3, "codebooks": 40 * 32, "scales": 3 * 32
    }  # fmt: skip
    with pytest.raises(ValueError, match="several weights at once"):
        q.levels(0, 0)


def test_blocks_bill_their_fields():
    data = torch.arange(36, dtype=torch.uint8).reshape(2, 18)
    inner = Affine(torch.ones(2, 1), 4, 0, 15, torch.float32)
    grid = Blocks("Q4_0", data, inner, (("codes", 32, 4), ("scales", 1, 16)), 2)
    codes = torch.randint(0, 16, (2, 32), dtype=torch.uint8)
    q = QuantizedTensor(codes, grid, Granularity("group", 32), (2, 32))
    assert q.ledger.items == (LedgerItem("codes", 64, 4), LedgerItem("scales", 2, 16))
    assert q.pack()["blocks"].tolist() == data.flatten().tolist()
    assert q.ledger.nbytes == 36
    assert torch.equal(q.dequantize(), codes.float())


@given(
    st.integers(1, 12), st.lists(st.integers(0, 2**12 - 1), min_size=1, max_size=40), st.booleans()
)
def test_packing_keeps_every_bit(bits, numbers, big):
    numbers = [n % 2**bits for n in numbers]
    stream = Stream("codes", torch.tensor(numbers), bits, "big" if big else "little")
    packed = stream.pack()
    assert packed.dtype == np.uint8
    assert len(packed) == -(-len(numbers) * bits // 8)
    text = "".join(f"{b:08b}" if big else f"{b:08b}"[::-1] for b in packed)
    read = [text[i * bits : (i + 1) * bits] for i in range(len(numbers))]
    assert [int(r if big else r[::-1], 2) for r in read] == numbers
    assert "1" not in text[len(numbers) * bits :]


@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_the_bill_equals_the_bytes(unit):
    q = codebook(**unit)
    assert sum(map(len, q.pack().values())) == q.ledger.nbytes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("flat",), "needs a group_size"),
        (("row",), "must be one of"),
        (("channel", 4), "does not apply"),
        (("group", 0), "at least 1"),
        (("channel", None, 2), "axis must be 0"),
    ],
)
def test_granularity_is_checked(arguments, says):
    with pytest.raises(ValueError, match=says):
        Granularity(*arguments)


def test_a_group_that_does_not_divide_names_those_that_do():
    with pytest.raises(ValueError, match=r"5 does not divide the 4 rows"):
        Granularity("group", 5, axis=0).split(torch.ones(4, 12))


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan, torch.inf])
def test_factors_that_nothing_could_undo_are_refused(bad):
    with pytest.raises(ValueError, match="scale must be finite and above 0"):
        InputScale(torch.tensor([1.0, bad]))
    with pytest.raises(ValueError, match="outputs must be finite and above 0"):
        InputScale(torch.ones(2), outputs=torch.tensor([bad]))


def test_tensors_are_compared_by_identity():
    """Equality of fields would ask torch for the truth of a whole matrix."""
    q, twin = codebook(), codebook()
    assert q == q
    assert q != twin
    assert len({q, twin}) == 2
