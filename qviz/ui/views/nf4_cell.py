"""One weight in NF4, as rows of text: its arithmetic, its bytes, and the bill of the layer."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qviz.core.ledger import Ledger
from qviz.core.tensor import QuantizedTensor
from qviz.study.level_duel import OWN, Entry
from qviz.study.nf4_bytes import ROW, Second, Stored, listing
from qviz.ui.views.nf4_words import SHORT
from qviz.ui.widgets import number

Row = tuple[str, list[str] | str, str]
BILL = ("numbers × bits", "bytes", "bits/weight", "bytes, double", "bits/weight")
ITEMS = {
    "codes": "codes q",
    "absmax": "absmax a, float32",
    "absmax codes": "codes c of a, uint8",
    "second absmax": "second absmax A, float32",
    "absmax offset": "mean o, float32",
    "padding": "bits that fill the last byte",
}


def arithmetic(row: int, column: int, found: Sequence[Stored]) -> list[Row]:
    """From the weight to its code and back, a text for each block size."""
    return [
        ("row, column", f"{row}, {column}", ""),
        ("trained weight w", number(found[0].w), "original"),
        ("block, place in it", [f"{s.block}, {s.index}" for s in found], ""),
        ("a = max |w| of the block", [number(s.a) for s in found], ""),
        ("x = w / a", [number(s.x, 5) for s in found], ""),
        ("lies between the bounds", [_between(s) for s in found], ""),
        ("code q", [str(s.code) for s in found], "codes"),
        ("level v_{q}", [number(s.level, 5) for s in found], "codes"),
        ("ŵ = v_{q} · a", [number(s.value) for s in found], "codes"),
        ("error w − ŵ", [number(s.w - s.value) for s in found], "error"),
    ]


def _between(s: Stored) -> str:
    if s.below is None:
        return f"up to {number(s.above or 0.0)}"
    if s.above is None:
        return f"above {number(s.below)}"
    return f"{number(s.below)} … {number(s.above)}"


def byte_rows(packed: Sequence[np.ndarray], found: Sequence[Stored]) -> list[list[Any]]:
    """The bytes around the weight's own byte, which is lit, for each block size."""
    frames = []
    for bytes_, s in zip(packed, found, strict=True):
        rows: list[Any] = []
        for start, values in listing(bytes_, s.byte_at):
            cells = [f"{value:02x}" for value in values]
            lit = [s.byte_at - start] if start <= s.byte_at < start + ROW else []
            rows.append((str(start), cells + [""] * (ROW - len(cells)), lit))
        frames.append(rows)
    return frames


def byte_words(found: Sequence[Stored]) -> list[Row]:
    """Which half of which byte is the weight's, and how its block's absmax lies in memory."""
    return [
        ("byte", [f"{s.byte_at}: 0x{s.byte:02x} = {s.byte:08b}" for s in found], ""),
        (
            "its half of the byte",
            [
                f"{'high' if s.high else 'low'}, {s.code:04b} = code {s.code}"
                for s in found
            ],
            "codes",
        ),
        ("the other half", [_other(s) for s in found], ""),
        ("a in memory", [s.absmax.hex(" ") for s in found], ""),
    ]  # fmt: skip


def _other(s: Stored) -> str:
    code = s.byte & 15 if s.high else s.byte >> 4
    return f"code {code}, the weight {'after' if s.high else 'before'} it"


def second_rows(found: Sequence[Stored], then: Sequence[Second]) -> list[Row]:
    """How double quantization stores the block's absmax, for each block size."""
    return [
        ("a", [number(s.a, 6) for s in found], ""),
        ("o, the mean of all a", [number(t.offset, 6) for t in then], ""),
        ("A, largest |a − o| of 256", [number(t.absmax, 6) for t in then], ""),
        ("(a − o) / A", [_position(t.position) for t in then], ""),
        ("code c, one byte", [f"{t.code} = 0x{t.code:02x}" for t in then], "codes"),
        ("its level d_{c}", [number(t.level, 5) for t in then], "codes"),
        ("â = d_{c} · A + o", [number(t.value, 6) for t in then], "codes"),
        ("ŵ = v_{q} · â", [number(t.weight) for t in then], "codes"),
        (
            "error w − ŵ",
            [number(s.w - t.weight) for s, t in zip(found, then, strict=True)],
            "error",
        ),
    ]


def _position(value: float) -> str:
    return "0 / 0, all a are equal" if math.isnan(value) else number(value, 5)


def bill(plain: QuantizedTensor, double: QuantizedTensor) -> list[Any]:
    """The bytes of a layer item by item: with a float32 absmax, and with double quantization."""
    both = plain.ledger, double.ledger
    items = {item.name: item for ledger in both for item in ledger.items}
    order = [name for name in ITEMS if name in items]
    rows: list[Any] = [
        (
            ITEMS[name],
            [
                f"{items[name].count} × {items[name].bits}",
                *(text for ledger in both for text in _item(ledger, name)),
            ],
            [],
        )
        for name in order
    ]
    sums = [text for x in both for text in (str(x.nbytes), f"{x.bits_per_weight:.3f}")]
    sixteen = 2 * plain.shape[0] * plain.shape[1]
    return [
        *rows,
        ("together", ["", *sums], [2, 4], "codes"),
        ("at 16 bits", [f"{sixteen // 2} × 16", str(sixteen), "16.000", "", ""], [], "wait"),
    ]


def _item(ledger: Ledger, name: str) -> list[str]:
    """Bytes and bits per weight of one item; empty where it is not stored."""
    bits = sum(item.total_bits for item in ledger.items if item.name == name)
    return [f"{bits / 8:g}", f"{ledger.per_weight(name):.3f}"] if bits else ["–", "–"]


def rivals_rows(
    w: float, row: int, column: int, own: tuple[float, float], entries: Sequence[Entry]
) -> list[Any]:
    """The weight as each contender reconstructs it: value, error. `own` is the learner's level and
    its value."""
    rows: list[Any] = [(SHORT[OWN], [number(own[1]), number(w - own[1], 3)], [], "now")]
    for entry in entries:
        back = entry.value(row, column)
        rows.append((SHORT[entry.name], [number(back), number(w - back, 3)], []))
    return rows
