"""Two parts of the NF4 lesson: how full the sixteen bins are, and what is stored for a block."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qviz.core.tensor import QuantizedTensor
from qviz.methods.nf4 import NF4, normal_levels
from qviz.study.level_duel import distinct
from qviz.study.nf4_bytes import Stored, second
from qviz.study.nf4_levels import occupancy_as_built, occupancy_in_blocks
from qviz.ui.figures.nf4 import bits_by_size, occupancy, spread
from qviz.ui.views.nf4_build import narrow
from qviz.ui.views.nf4_cell import BILL, bill, byte_rows, byte_words, second_rows
from qviz.ui.views.nf4_duel import said
from qviz.ui.views.nf4_shown import SIZES, Shown
from qviz.ui.views.nf4_words import FillFacts, StoreFacts, fill_sentence, store_sentence
from qviz.ui.views.parts import LessonPart
from qviz.ui.widgets import Caption, Chart, Readout, Table, Text, figures_row, percent, section


class FillPart(LessonPart):
    """How full the bins are; `views` follow the block size."""

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.occupancy = Chart("How full the sixteen bins are", height=200)
        self.spread = Chart("Where the weights lie among the levels", height=160)
        self.caption = Caption()
        self.views = [self.occupancy, self.spread, self.caption]
        self.main = [
            section("How full the bins are", said(self.caption), self.occupancy, self.spread)
        ]

    def draw(self, shown: Shown) -> None:
        """A layer in blocks of each size."""
        blocks = [shown.duel.blocks(size) for size in SIZES]
        levels = distinct(NF4)
        largest = float(normal_levels().quantile[-1])
        measured, facts = [], []
        for each, size in zip(blocks, SIZES, strict=True):
            share = each.counts(levels) / len(each.x)
            full, empty = int(share.argmax()), int(share.argmin())
            measured.append(share)
            facts.append(
                FillFacts(size, full, float(share[full]), empty, float(share[empty]),
                          each.reach, largest)
            )  # fmt: skip
        normal = [occupancy_in_blocks(levels, size).numpy() for size in SIZES]
        built = occupancy_as_built(levels, largest).numpy()
        texts = [fill_sentence(one) for one in facts]
        self.caption.set_texts(texts)
        self.occupancy.set_figures(
            occupancy(measured, normal, built),
            [
                f"Blocks of {size}, share of codes 0 to 15: {', '.join(map(percent, share))}"
                for size, share in zip(SIZES, measured, strict=True)
            ],
        )
        edges = np.linspace(-1, 1, 82)
        counts = [np.histogram(each.x, edges)[0] for each in blocks]
        self.spread.set_figures(spread(counts, edges, NF4, largest), texts)


class StorePart(LessonPart):
    """What is stored: the cost, and the bytes around one weight; `views` follow the block size."""

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.bill = Table("What this layer costs")
        self.bits = Chart("Bits per weight against block size", height=190)
        self.bytes = Table("The bytes around it")
        self.byte_words = Readout("In memory")
        self.second = Readout("Its absmax, quantized too")
        self.caption = Caption()
        self.views = [
            self.bill, self.bits, self.bytes, self.byte_words, self.second, self.caption,
        ]  # fmt: skip
        self.main = [
            section("What is stored", said(self.caption), narrow(self.bill)),
            section("", figures_row(narrow(self.bytes), self.byte_words, wide=True)),
        ]
        self.bits_box = section("", Text(self.bits.label, "h3"), self.bits)
        self.side = [section("", self.second)]

    def draw(self, shown: Shown) -> None:
        """A layer in blocks of each size, without and with double quantization."""
        pairs = [(shown.plain(size), shown.double(size)) for size in SIZES]
        self.bill.set_rows(BILL, [bill(*pair) for pair in pairs])
        facts = [
            StoreFacts(size, a.bits_per_weight, b.bits_per_weight, a.ledger.nbytes, b.ledger.nbytes)
            for size, (a, b) in zip(SIZES, pairs, strict=True)
        ]
        texts = [store_sentence(one) for one in facts]
        self.caption.set_texts(texts)
        bits = ([q.bits_per_weight for q in each] for each in zip(*pairs, strict=True))
        self.bits.set_figures(bits_by_size(SIZES, *bits), texts)

    def draw_cell(
        self, packed: Sequence[npt.NDArray[np.uint8]], found: Sequence[Stored],
        double: Sequence[QuantizedTensor],
    ) -> None:  # fmt: skip
        """One weight, `found` in the bytes of each block size."""
        then = [second(q, at) for q, at in zip(double, found, strict=True)]
        self.bytes.set_rows([f"+{i}" for i in range(8)], byte_rows(packed, found))
        self.byte_words.set_rows(byte_words(found))
        self.second.set_rows(second_rows(found, then))
