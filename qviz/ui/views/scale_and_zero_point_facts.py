"""The facts behind what lesson 3 says of each range, its code, and the field of its two handles."""

import numpy as np
import numpy.typing as npt

from qviz.study.clipping import KEPT
from qviz.ui.views.fields import HandlesField
from qviz.ui.views.scale_and_zero_point_numbers import Shown
from qviz.ui.views.scale_and_zero_point_words import BY_HAND, At, Judged
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import NumberLine, Slider

PARTS = [f"{100 * kept:.0f} %" for kept in KEPT]
HAND = len(PARTS)  # the slider's last position
ANSWERS = (100, 90, 75, 50)  # percent of the range, to guess from


class EndsField(HandlesField):
    """The range by hand; empty while the slider says which part of the range is kept."""

    def __init__(self, key: str, line: NumberLine, slider: Slider) -> None:
        super().__init__(key, line, looks=True)
        self.slider = slider

    @property
    def text(self) -> str:
        return super().text if self.slider.index == HAND else ""

    @property
    def names(self) -> list[str]:
        return [self.text, super().names[1]]

    def offers(self, text: str) -> bool:
        return not text or super().offers(text)

    def set(self, text: str) -> None:
        if text:
            super().set(text)


def frame_names(shown: Shown) -> list[str]:
    """Each frame's name: the part of the range, or "by hand"."""
    return PARTS if shown.hand is None else [BY_HAND]


def facts(shown: Shown, *, revealed: bool) -> list[At]:
    """The numbers behind the caption of each range; `revealed`: the lowest may be named."""
    tried, numbers = shown.frames, shown.numbers
    rounding, clipping = shown.shares(tried)
    lowest = shown.hand is None and revealed
    return [
        At(
            kept=kept, low=float(tried.low[i]), high=float(tried.high[i]),
            spacing=float(tried.levels.grid.scale[i, 0]), n=numbers.n, noun=numbers.noun,
            levels=tried.values.shape[1], used=int(tried.used[i]), beyond=int(tried.beyond[i]),
            rounding=float(rounding[i]), clipping=float(clipping[i]),
            whole=float(shown.total[-1]), lowest=lowest and i == tried.best,
        )
        for i, kept in enumerate(frame_names(shown))
    ]  # fmt: skip


def judged(shown: Shown, guess: int) -> Judged:
    """The prediction against what was computed."""
    best, total, part = shown.tried.best, shown.total, f"{ANSWERS[guess]} %"
    return Judged(
        guess=ANSWERS[guess], answers=ANSWERS, best=round(100 * KEPT[best]),
        at_guess=float(total[PARTS.index(part)]), lowest=float(total[best]),
        whole=float(total[-1]), beyond=int(shown.tried.beyond[best]),
        n=shown.numbers.n, noun=shown.numbers.noun,
    )  # fmt: skip


def snippet(shown: Shown, i: int) -> str:
    """The library calls behind one range."""
    low, high = float(shown.frames.low[i]), float(shown.frames.high[i])
    made = call("quantize_within", Name("numbers"), low, high, **shown.scheme)
    gates = ", gate_activations" if shown.numbers.noun == "activation" else ""
    return (
        f"import qviz\nfrom qviz.core.metrics import error_split\n"
        f"from qviz.study.clipping import quantize_within{gates}\n\n"
        f"numbers = {shown.numbers.code}\n"
        f"q = {made}  # the range\nprint(q.codes, error_split(numbers[None], q))"
    )


def bars(n: int) -> int:
    """Enough bars to make the shape visible: the square root of the count, from 16 to 96."""
    return int(min(max(2 * n**0.5, 16), 96))


def shortened(levels: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Rounded to what a screen can show: long numbers are most of what a page has to load."""
    reach = float(np.abs(levels).max())
    digits = 5 - int(np.floor(np.log10(reach))) if reach > 0 else 0
    rounded: npt.NDArray[np.floating] = np.round(levels, digits)
    return rounded
