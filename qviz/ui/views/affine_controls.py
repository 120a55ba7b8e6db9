"""The controls of equally spaced levels: symmetric or not, who shares a scale, whose convention,
and the type in which scales are stored.
"""

from typing import Any

import torch

from qviz.methods.affine import CONVENTIONS, DEFAULT_CONVENTION
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.views.scale_sharing import FIRST, ScaleSharing
from qviz.ui.views.spacing import system
from qviz.ui.widgets import Choice

SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class AffineControls:
    """Fields of the page: levels, scale, convention, dtype. `options` are those of `affine`.

    first   who shares a scale to begin with
    stored  whether the type of stored scales can be chosen; otherwise they stay as computed
    """

    def __init__(self, page: LessonPage, *, first: str = FIRST, stored: bool = True) -> None:
        self.levels = page.add(
            "levels", Choice("Levels", ["symmetric", "asymmetric"], kind="segmented"),
            busy=COMPUTING, lights=["z"],
        )  # fmt: skip
        unit = ScaleSharing()
        unit.set_options(unit.options, unit.options.index(first))
        self.unit = page.add("scale", unit, busy=COMPUTING, lights=["s"])
        names = [system(name, True) for name in self.conventions]
        self.convention = page.add(
            "convention", Choice("Spacing computed as in", names), busy=COMPUTING, lights=["s"],
            names=lambda: self.conventions,
        )  # fmt: skip
        self.dtype: Choice | None = None
        if stored:
            self.dtype = page.add(
                "dtype", Choice("Scales stored as", list(SCALE_DTYPES)), busy=COMPUTING
            )

    @property
    def symmetric(self) -> bool:
        return int(self.levels.index) == 0

    @property
    def conventions(self) -> list[str]:
        """The conventions that define what the learner chose, symmetric or asymmetric."""
        symmetric = self.symmetric
        return [n for n, c in CONVENTIONS.items() if (c.symmetric if symmetric else c.asymmetric)]

    @property
    def scheme(self) -> dict[str, Any]:
        """The options of `affine` besides bits and who shares a scale."""
        scheme = {
            "symmetric": self.symmetric,
            "convention": self.conventions[int(self.convention.index)],
        }
        return (
            scheme
            if self.dtype is None
            else {**scheme, "scale_dtype": SCALE_DTYPES[self.dtype.value]}
        )

    @property
    def options(self) -> dict[str, Any]:
        """The options of `affine`, except bits."""
        unit = self.unit.granularity
        return {"granularity": unit.kind, "group_size": unit.group_size, **self.scheme}

    def fit(self, columns: int) -> None:
        """Offer what fits a layer with this many inputs and the chosen levels."""
        self.unit.fit(columns)
        names = self.conventions
        titles = [system(name, self.symmetric) for name in names]
        if titles != list(self.convention.options):
            # Symmetric and asymmetric conventions are matched by system; only the divisor changes.
            kept = str(self.convention.value).partition(":")[0]
            same = [i for i, title in enumerate(titles) if title.partition(":")[0] == kept]
            at = same[0] if same else names.index(DEFAULT_CONVENTION)
            self.convention.set_options(titles, at)
