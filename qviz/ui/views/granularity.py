"""Lesson 4: values that share a scale share its precision, and sharing less costs bits.

It has two parts, shown one at a time: one outlier that grows, and all granularities at equal bits.
"""

from typing import Any

import torch

from qviz.core.calibration import Calibration
from qviz.methods.affine import CONVENTIONS, DEFAULT_CONVENTION
from qviz.models.capture import load_calibration
from qviz.ui.views.affine_controls import SCALE_DTYPES
from qviz.ui.views.granularity_budget import BudgetPart
from qviz.ui.views.granularity_outlier import OutlierPart
from qviz.ui.views.granularity_words import BUDGET, GUIDE, OUTLIER
from qviz.ui.views.layer_page import OFFLINE, LayerPage
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.parts import PartedLesson
from qviz.ui.views.spacing import system
from qviz.ui.widgets import Choice, Code, details

PARTS = (OUTLIER, BUDGET)
SYMMETRIC = [name for name, one in CONVENTIONS.items() if one.symmetric]


class GranularityLesson(PartedLesson, LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source  None (the bundled model), "minilm", a directory, a .safetensors file or a Hub id
    layer   the name of one of its linear layers
    """

    lesson_number = 4
    guide_steps = GUIDE
    first_layer = "model.layers.3.mlp.down_proj"  # of the bundled model, the one with an outlier

    def __init__(self, source: str | None = None, layer: str | None = None) -> None:
        super().__init__()
        self.code = Code()
        self.add_parts(*PARTS)
        self.convention_control = self.add(
            "convention",
            Choice("Spacing computed as in", [system(name, True) for name in SYMMETRIC],
                   SYMMETRIC.index(DEFAULT_CONVENTION)),
            busy=COMPUTING, names=lambda: SYMMETRIC, lights=["d"],
        )  # fmt: skip
        self.dtype_control = self.add(
            "dtype", Choice("Scales stored as", list(SCALE_DTYPES)), busy=COMPUTING
        )
        self.outlier = OutlierPart(self)
        self.budget = BudgetPart(self)
        self.prediction = self.outlier.prediction
        self.equation = self.outlier.affine_equation
        self.parts = {OUTLIER: self.outlier, BUDGET: self.budget}
        self.widget = self.compose_parts(
            caption=None,
            common=[
                details("More", *self.outlier.also, self.layer_control, self.convention_control,
                        self.dtype_control),
            ],
            code=self.code,
            own=[self.source_control, self.open_button, self.bundled_button],
        )  # fmt: skip
        self.open(source, layer)

    # ---------------------------------------------------------------- what both parts ask for

    @property
    def scheme(self) -> dict[str, Any]:
        """The options of `affine` that both parts share."""
        return {
            "symmetric": True,
            "convention": SYMMETRIC[int(self.convention_control.index)],
            "scale_dtype": SCALE_DTYPES[self.dtype_control.value],
        }

    @property
    def has_inputs(self) -> bool:
        """Whether the layer's inputs are known without running the learner's model."""
        return self.source in OFFLINE or self.source in self._captured

    def calibration(self) -> Calibration:
        found = self.inputs_of(self.opened)
        assert found is not None, "asked for before has_inputs"
        return found

    def inputs(self) -> torch.Tensor:
        """[tokens, in] of the layer: the inputs that the calibration kept."""
        return self.calibration().inputs.float()

    def capture(self) -> None:
        """Run the learner's model on text."""
        if self.source in OFFLINE:
            raise ValueError(
                "the inputs of this model are already known; open your own model first"
            )
        load_calibration(self.source, self.layer)
        self._captured.add(self.source)
