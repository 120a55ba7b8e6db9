"""What lesson 5 shows: a layer, and every contender's four bits for it at every block size."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from qviz.core.tensor import QuantizedTensor
from qviz.study.level_duel import NF4_DOUBLE, NF4_NAME, Duel, Entry
from qviz.ui.views.layer_page import Opened

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, eq=False)
class Shown:
    """What the page shows: a layer, and every contender's four bits for it.

    duel        the weight [rows, in] float32, its inputs, and its blocks
    entries     block size → name → result; a rival that does not fit is omitted
    packed      for each of SIZES NF4's bytes of the codes
    convention  of INT4 symmetric
    """

    opened: Opened
    duel: Duel
    entries: Mapping[int, Mapping[str, Entry]]
    packed: list[np.ndarray]
    convention: str

    @property
    def weight(self) -> torch.Tensor:
        return self.duel.weight

    def plain(self, size: int) -> QuantizedTensor:
        """NF4 in blocks of this size."""
        return self.entries[size][NF4_NAME].tensor

    def double(self, size: int) -> QuantizedTensor:
        """The same with double quantization."""
        return self.entries[size][NF4_DOUBLE].tensor
