"""Lesson 2, third part: which hardware multiplies matrices in which format, with sources.

"Multiplies natively" means that a matrix instruction takes operands in this format. Everything else
is decoded first, in software: then the format saves memory and bandwidth, not arithmetic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qviz.study.number_formats import TITLES
from qviz.ui.views.formats_block import caption_card, tight
from qviz.ui.views.parts import LessonPart
from qviz.ui.widgets import Caption, Table, Text, link, section

YES, NO, OPEN, API = "✓", "·", "?", "(✓)"
COLUMNS = ("FP32", "TF32", "BF16", "FP16", "FP8", "FP6", "FP4", "MX", "INT8", "INT4")
#: Format of the page → its column. Formats that no hardware here multiplies are missing.
COLUMN_OF = {
    "fp32": "FP32",
    "tf32": "TF32",
    "bf16": "BF16",
    "fp16": "FP16",
    "fp8_e5m2": "FP8",
    "fp8_e4m3": "FP8",
    "fp6_e3m2": "FP6",
    "fp6_e2m3": "FP6",
    "fp4_e2m1": "FP4",
    "e8m0": "MX",
    "int8": "INT8",
    "int4": "INT4",
}
SOURCES = (
    "NVIDIA CUTLASS, media/docs/cpp/functionality.md: data types of TensorOp kernels by compute "
    "capability",
    "NVIDIA CUTLASS, include/cute/arch/mma_sm89.hpp: mma with E4M3 and E5M2 operands from 8.9 on; "
    "mma_sm90_gmma_ext.hpp for 9.0",
    "NVIDIA CUTLASS, media/docs/cpp/blackwell_functionality.md: tcgen05.mma and the mma of SM120, "
    "also with NVFP4's block scales",
    "AMD Matrix Instruction Calculator, matrix_calculator.py: operand types of every MFMA and WMMA "
    "instruction (CDNA 3's FP8 is not OCP's: other bias, no −0)",
    "AMD, Matrix Core Programming on AMD CDNA 3 and CDNA 4 (ROCm blogs, 2025): table of MFMA "
    "instructions; it omits integers and TF32",
    "Intel, ISPC stdlib/include/amx.isph: AMX features by processor; Intel SDM, TDPBF16PS: "
    "subnormal inputs count as zero there",
    "Google Cloud TPU documentation: peak compute of v5e, v6e and TPU7x by data type",
    "Apple, MetalTensorOpsMatMul2d.h (Metal 4): operand types of matmul2d. Which of them the GPU "
    "multiplies in hardware, and which it widens first, Apple does not say",
)


@dataclass(frozen=True)
class Hardware:
    """A kind of processor: what its matrix instructions take.

    types    columns that its sources list
    sources  numbers in SOURCES, from 1
    open     columns that its sources do not mention
    """

    name: str
    types: tuple[str, ...]
    sources: tuple[int, ...]
    open: tuple[str, ...] = ()
    only_api: bool = False

    def cell(self, column: str) -> str:
        """✓ listed, · not listed, ? not mentioned, (✓) accepted by the library."""
        if column in self.types:
            return API if self.only_api else YES
        return OPEN if column in self.open else NO


HARDWARE = (
    Hardware("NVIDIA Volta (V100)", ("FP16",), (1,)),
    Hardware("NVIDIA Turing (T4, RTX 20)", ("FP16", "INT8", "INT4"), (1,)),
    Hardware("NVIDIA Ampere (A100, RTX 30)", ("TF32", "BF16", "FP16", "INT8", "INT4"), (1,)),
    Hardware("NVIDIA Ada (L40, RTX 40)", ("TF32", "BF16", "FP16", "FP8", "INT8", "INT4"), (1, 2)),
    Hardware("NVIDIA Hopper (H100, H200)", ("TF32", "BF16", "FP16", "FP8", "INT8"), (1, 2)),
    Hardware(
        "NVIDIA Blackwell (B200)",
        ("TF32", "BF16", "FP16", "FP8", "FP6", "FP4", "MX", "INT8"), (3,),
    ),
    Hardware(
        "NVIDIA Blackwell (RTX 50)",
        ("TF32", "BF16", "FP16", "FP8", "FP6", "FP4", "MX", "INT8"), (1, 3), ("INT4",),
    ),
    Hardware("AMD CDNA 2 (MI250)", ("FP32", "BF16", "FP16", "INT8"), (4,)),
    Hardware("AMD CDNA 3 (MI300)", ("FP32", "TF32", "BF16", "FP16", "FP8", "INT8"), (4, 5)),
    Hardware(
        "AMD CDNA 4 (MI355X)",
        ("FP32", "BF16", "FP16", "FP8", "FP6", "FP4", "MX"), (5,), ("TF32", "INT8", "INT4"),
    ),
    Hardware("AMD RDNA 3 (RX 7000)", ("BF16", "FP16", "INT8", "INT4"), (4,)),
    Hardware("AMD RDNA 4 (RX 9000)", ("BF16", "FP16", "FP8", "INT8", "INT4"), (4,)),
    Hardware("Intel AMX (Xeon, 4th gen)", ("BF16", "INT8"), (6,)),
    Hardware("Intel AMX (Xeon 6, P cores)", ("BF16", "FP16", "INT8"), (6,)),
    Hardware("Google TPU v5e, v6e", ("BF16", "INT8"), (7,)),
    Hardware("Google TPU7x", ("BF16", "FP8"), (7,), ("INT8",)),
    Hardware(
        "Apple GPU (Metal 4)",
        ("FP32", "BF16", "FP16", "FP8", "FP4", "INT8", "INT4"), (8,), only_api=True,
    ),
)  # fmt: skip


def who(name: str) -> list[str]:
    """The hardware that multiplies a format natively, by its sources."""
    column = COLUMN_OF.get(name, "")
    return [one.name for one in HARDWARE if one.cell(column) == YES]


def answer(name: str) -> str:
    """A sentence about one format."""
    title, found = TITLES[name], who(name)
    if not found:
        return (
            f"{title}: no processor in this table multiplies in it. Its weights are decoded to a "
            "wider format first, so it saves memory and reading time, but no arithmetic."
        )
    if name == "e8m0":
        return (
            f"{title} is a scale, not an operand. These processors apply it to blocks inside the "
            f"matrix instruction: {_listed(found)}."
        )
    return (
        f"{title}: {len(found)} of the {len(HARDWARE)} processors here multiply in it: "
        f"{_listed(found)}."
    )


def _listed(names: list[str]) -> str:
    short = [name.partition(" (")[0] if name.count("Blackwell") == 0 else name for name in names]
    return ", ".join(dict.fromkeys(short))


def rows(name: str) -> list[tuple[str, list[str], list[int]]]:
    """The table, with the format's column lit."""
    column = COLUMN_OF.get(name, "")
    lit = [COLUMNS.index(column)] if column else []
    return [
        (
            f"{one.name} ^{{{', '.join(map(str, one.sources))}}}",
            [one.cell(c) for c in COLUMNS],
            [i for i in lit if one.cell(COLUMNS[i]) == YES],
        )
        for one in HARDWARE
    ]


class HardwarePart(LessonPart):
    """The table, and a sentence for each format."""

    has_code = has_own = False
    shown: Mapping[str, str] | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        table = Table("Which hardware multiplies in which format")
        table.set_rows(COLUMNS, [rows(name) for name in TITLES])
        self.caption = Caption([answer(name) for name in TITLES])
        link(page.format_control, "index", (table, "frame"), (self.caption, "frame"))
        legend = Text(
            f"{YES} listed by the source; {NO} not listed; {OPEN} the source does not say; {API} "
            "the library accepts it, but how it is multiplied is not published. MX: the E8M0 "
            "scales of blocks are applied inside the instruction.",
            role="wait",
        )
        sources = [Text(f"{i}. {text}.", role="wait") for i, text in enumerate(SOURCES, 1)]
        self.main = [
            caption_card(self.caption),
            section("", tight(table), legend),
        ]
        self.side = [section("Sources", *sources)]

    def compute(self) -> Mapping[str, str]:
        """The only thing here that depends on the learner is the format, which the browser looks
        up."""
        return {name: answer(name) for name in TITLES}

    def draw(self, shown: Mapping[str, str]) -> None:
        """All of it has been sent."""
