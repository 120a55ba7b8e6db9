"""The machine instructions that decode weights, run one by one here, against what they stand for.

A GPU runs these texts, the interpreter the plain lines beside them in `triton_source`; both are
held against the codes, for every code in every place.
"""

import re

import pytest
import torch

from qviz.kernels import triton_decode
from qviz.kernels.torch_kernels import e4m3_values
from qviz.kernels.triton_layout import table_bytes
from qviz.methods.nf4 import NF4

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
BYTES = torch.arange(256, dtype=torch.int64)


def halves(word):
    """The lower and the upper 16 bits of words [n] int64, as int16 [n, 2]."""
    both = torch.stack([word & 0xFFFF, word >> 16], dim=1)
    return torch.where(both > 0x7FFF, both - 0x10000, both).to(torch.int16)


def whole(pair):
    """The words [n] int64 of int16 [n, 2]."""
    both = pair.to(torch.int64) & 0xFFFF
    return both[:, 0] | both[:, 1] << 16


def prmt(a, b, selector):
    """PTX ISA, prmt: four bytes out of the eight of b:a, by the nibbles of the selector."""
    bytes_ = torch.stack([(w >> 8 * i) & 255 for w in (a, b) for i in range(4)], dim=1)
    result = torch.zeros_like(a)
    for i in range(4):
        nibble = (selector >> 4 * i) & 15
        byte = bytes_.gather(1, (nibble & 7)[:, None])[:, 0]
        sign = torch.where(byte > 127, 255, 0)
        result |= torch.where(nibble > 7, sign, byte) << 8 * i
    return result


def fma(kind, a, b, c):
    """a·b + c of both halves, rounded once: products of 16-bit floats are exact in float64."""
    x, y, z = (halves(w).view(DTYPES[kind]).double() for w in (a, b, c))
    return whole((x * y + z).to(DTYPES[kind]).view(torch.int16))


def run(text, given):
    """The registers after a text, each [n] int64; a KeyError or ValueError for anything it does
    not know."""
    registers = dict(given)
    n = len(next(iter(given.values())))

    def value(name):
        known = registers.get(name)
        return known if known is not None else torch.full((n,), int(name, 0))

    for line in text.strip("{} ").split(";"):
        operation, _, rest = line.strip().partition(" ")
        if operation in ("", ".reg"):
            continue
        target, *names = (name.strip() for name in rest.split(","))
        x = [value(name) for name in names]
        match operation.split("."):
            case ["mov", "b32"]:
                result = x[0]
            case ["prmt", "b32"]:
                result = prmt(*x)
            case ["shr", "u32"]:
                result = x[0] >> x[1]
            case ["and", "b32"]:
                result = x[0] & x[1]
            case ["lop3", "b32"] if names[3] == triton_decode.AND_OR:
                result = (x[0] & x[1]) | x[2]
            case ["fma", "rn", kind]:
                result = fma(kind.removesuffix("x2"), *x)
            case _:
                raise ValueError(f"unknown instruction: {line}")
        registers[target] = result & 0xFFFFFFFF
    return registers


def words_with(codes, bits):
    """Every pair of words whose codes [n] lie in place j of the one and of the other, the rest
    filled with what was drawn: (a, b) for each place."""
    generator = torch.Generator().manual_seed(0)
    count = 32 // bits
    other = codes.flip(0)
    for j in range(count):
        drawn = torch.randint(0, 2**32, (2, len(codes)), generator=generator)
        hole = ~(((1 << bits) - 1) << bits * j) & 0xFFFFFFFF
        yield j, (drawn[0] & hole) | codes << bits * j, (drawn[1] & hole) | other << bits * j, other


@pytest.mark.parametrize("kind", sorted(DTYPES))
def test_a_code_minus_eight(kind):
    codes = torch.arange(16).repeat(16)
    for j, a, b, other in words_with(codes, 4):
        made = halves(run(triton_decode.affine(kind), {"$8": a, "$9": b})[f"${j}"])
        values = made.view(DTYPES[kind]).double()
        assert torch.equal(values[:, 0], codes.double() - 8)
        assert torch.equal(values[:, 1], other.double() - 8)


@pytest.mark.parametrize("kind", sorted(DTYPES))
def test_a_level_of_the_table(kind):
    levels = (
        torch.cat([torch.tensor(NF4), torch.linspace(-3, 5e4, 16)]).reshape(2, 16).to(DTYPES[kind])
    )
    codes = torch.arange(16).repeat(16)
    for table in levels:
        registers = table_bytes(table.float(), DTYPES[kind])[:, 0].to(torch.int64) & 0xFFFFFFFF
        given = {f"${10 + 2 * i}": r.expand(len(codes)) for i, r in enumerate(registers)}
        for j, a, b, other in words_with(codes, 4):
            made = run(triton_decode.codebook(), {"$8": a, "$9": b, **given})[f"${j}"]
            values = halves(made).view(DTYPES[kind])
            assert torch.equal(values[:, 0], table[codes])
            assert torch.equal(values[:, 1], table[other])


@pytest.mark.parametrize("kind", sorted(DTYPES))
def test_an_e4m3_number(kind):
    finite = BYTES[(BYTES & 127) != 127]
    levels = e4m3_values(torch.device("cpu"))
    for j, a, b, other in words_with(finite, 8):
        made = run(triton_decode.e4m3(kind), {"$4": a, "$5": b})[f"${j}"]
        values = halves(made).view(DTYPES[kind]).float()
        for got, codes in ((values[:, 0], finite), (values[:, 1], other)):
            assert torch.equal(got, levels[codes])
            assert torch.equal(got.signbit(), codes > 127)  # −0 as well


def test_every_place_of_both_words_is_decoded():
    """Each text writes all of its planes, and reads no register that it does not name."""
    for text, planes in (
        (triton_decode.affine("bf16"), 8),
        (triton_decode.codebook(), 8),
        (triton_decode.e4m3("f16"), 4),
    ):
        written = set(re.findall(r"\w+\.[\w.]+ (\$\d+),", text))
        assert written == {f"${j}" for j in range(planes)}


def test_what_the_little_machine_does_not_know():
    with pytest.raises(ValueError, match="unknown instruction"):
        run("{ add.u32 a, $1, $2; }", {"$1": BYTES, "$2": BYTES})
