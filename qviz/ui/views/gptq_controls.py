"""The controls of a GPTQ run: its options, its calibration text, and the text that judges it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qviz.core.calibration import Calibration
from qviz.models.texts import calibration_texts, evaluation_texts
from qviz.study.gptq_contrasts import Contrast
from qviz.study.gptq_plan import Plan
from qviz.ui.views.layer_texts import OWN_TEXT, spoken_text
from qviz.ui.views.lesson_page import COMPUTING, LessonPage
from qviz.ui.views.scale_sharing import ScaleSharing
from qviz.ui.widgets import Choice, Slider, percent

BITS = (2, 3, 4, 5, 6, 8)
DAMPS = (0.0, 0.0001, 0.001, 0.01, 0.05, 0.1, 0.5)
BLOCKS = (1, 8, 32, 128, 256)
FEW = (16, 64, 256, 1024)  # tokens of the kept sample that a run may be limited to
SCALE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SAME_TEXT = "the calibration text"
NOTHING, HELD = "nothing", "the run you kept"
KEPT = "kept"  # what HELD is called in a link
FAMILIES = {"setting": "setting", "honest": "does it still win", "failure": "failure"}


class RunControls:
    """The controls, as fields of the page while its real layer is open."""

    def __init__(self, page: LessonPage, live: Callable[[], bool]) -> None:
        def add(key: str, control: Any, **more: Any) -> Any:
            return page.add(key, control, busy=COMPUTING, live=live, **more)

        self.bits = add("bits", Slider("Bits per code", [str(b) for b in BITS], 1, ticks=True))
        self.unit = add("scale", ScaleSharing(matrix=False, sizes=(256, 128, 64, 32)))
        self.order = add(
            "order",
            Choice("Order of the columns", ["left to right", "act-order"], kind="segmented"),
        )
        self.scheme = add("levels", Choice("Levels", ["symmetric", "asymmetric"], kind="segmented"))
        self.static = add(
            "found",
            Choice("Scales are set", ["when a group is reached", "before the first step"]),
        )
        self.range = add(
            "range", Choice("From", ["the whole range", "the best range (MSE search)"])
        )
        self.damp = add("damp", Slider("Damping", [percent(d) for d in DAMPS], DAMPS.index(0.01)))
        self.block = add("block", Slider("Block size", [str(b) for b in BLOCKS], BLOCKS.index(128)))
        self.dtype = add("dtype", Choice("Scales stored as", list(SCALE_DTYPES)))
        self.text = add("text", Choice("Calibration text", spoken(calibration_texts())))
        self.tokens = add("tokens", Slider("Tokens", ["1"]))
        self.judge = add("judge", Choice("Errors are measured on", judges("")))
        self._named = {NOTHING: NOTHING, HELD: KEPT}  # what stands on the page → name in a link
        self.beside = add(
            "beside", Choice("A second run beside it", [NOTHING]), names=lambda: self.beside_names
        )

    @property
    def options(self) -> dict[str, Any]:
        """The options of `gptq`, as the controls say."""
        return {
            "bits": BITS[self.bits.index],
            "symmetric": self.scheme.index == 0,
            "group_size": self.unit.granularity.group_size,
            "act_order": self.order.index == 1,
            "static_groups": self.static.index == 1,
            "mse": self.range.index == 1,
            "damp": DAMPS[self.damp.index],
            "block_size": BLOCKS[self.block.index],
            "scale_dtype": SCALE_DTYPES[self.dtype.value],
        }

    @property
    def beside_names(self) -> list[str]:
        return [self._named[title] for title in self.beside.options]

    @property
    def beside_name(self) -> str:
        return self.beside_names[int(self.beside.index)]

    def fit_texts(self, own: str) -> None:
        """Offer the learner's own text where there is one."""
        texts = [*spoken(calibration_texts()), *([OWN_TEXT] if own else [])]
        if texts != list(self.text.options):
            self.text.set_options(texts)
        if judges(own) != list(self.judge.options):
            self.judge.set_options(judges(own))

    def fit_tokens(self, whole: Calibration) -> None:
        """Offer the available token counts: parts of the kept sample, and all of it."""
        kept = len(whole.inputs)
        names = [str(n) for n in FEW if n <= kept and n < whole.tokens] + [str(whole.tokens)]
        all_of_them = self.tokens.index == len(self.tokens.options) - 1
        at = names.index(self.tokens.value) if self.tokens.value in names else -1
        if names != list(self.tokens.options):
            self.tokens.set_options(names, len(names) - 1 if all_of_them or at < 0 else at)

    def fit_beside(self, offered: tuple[Contrast, ...], plan: Plan, held: bool) -> str:
        """Offer the second runs that fit the plan, and drop one that no longer fits. Returns the
        name of a dropped contrast."""
        titles = [titled(contrast, plan) for contrast in offered]
        self._named |= dict(zip(titles, (c.name for c in offered), strict=True))
        chosen = self.beside_name
        options = [NOTHING, *([HELD] if held else []), *titles]
        names = [self._named[title] for title in options]
        there = chosen in names
        self.beside.set_options(options, names.index(chosen) if there else 0)
        return "" if there or chosen == KEPT else chosen


def titled(contrast: Contrast, plan: Plan) -> str:
    """A second run beside this plan, as the text of an option."""
    return f"{FAMILIES[contrast.family]}: {contrast.named(plan)}"


def spoken(texts: Mapping[str, Any]) -> list[str]:
    return [spoken_text(name) for name in texts]


def judges(own: str) -> list[str]:
    """The texts that errors can be measured on."""
    mine = [OWN_TEXT] if own else []
    return [*spoken(evaluation_texts()), SAME_TEXT, *spoken(calibration_texts()), *mine]
