"""A layer's inputs on the package's texts and on the learner's own."""

from collections.abc import Callable
from typing import Any

from qviz.core.calibration import Calibration
from qviz.models.capture import load_calibration
from qviz.models.texts import calibration_texts, evaluation_texts
from qviz.ui.views.fields import ValueField
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.lesson_page import LessonPage
from qviz.ui.views.snippet import Name
from qviz.ui.widgets import Button, TextField

OWN_TEXT = "your own text"
LONG = 1500  # characters; a longer text of the learner's own is too long for a link


class LayerTexts:
    """The inputs of the page's layer on each of the package's texts, and on the learner's own,
    captured once. `controls` let the learner bring a text."""

    def __init__(self, page: LessonPage, take: Callable[[], None]) -> None:
        """`take` is called when the learner has entered a text."""
        self.own = ""  # the learner's own text
        self._page, self._take = page, take
        self._opened: Opened | None = None
        self._whole: dict[str, Calibration] = {}
        self._parts: dict[tuple[str, int], Calibration] = {}
        self.own_control = TextField("Your own text", placeholder="paste some text")
        self.own_button = Button("Calibrate on it")
        self.controls = [self.own_control, self.own_button]
        page.on_press(self.own_button, self._read_own, "Reading the text …", field=self.own_control)
        page.fields["own"] = ValueField(
            "own", self, "own", text=lambda own: own if len(own) <= LONG else "",
            take=lambda text: setattr(self, "own", text),
        )  # fmt: skip

    def of(self, opened: Opened, text: str) -> Calibration:
        """By the text's name on the page."""
        if opened is not self._opened:
            self._opened, self._whole, self._parts = opened, {}, {}
        content = self.own if text == OWN_TEXT else TEXT_NAMES[text]
        if content not in self._whole:
            self._whole[content] = load_calibration(
                opened.source, opened.layer, text=content, progress=self._say
            )
        return self._whole[content]

    def sample(self, opened: Opened, text: str, tokens: int) -> Calibration:
        """This many tokens of it."""
        whole = self.of(opened, text)
        if tokens >= whole.tokens:
            return whole
        key = whole.source, tokens
        if key not in self._parts:
            self._parts[key] = whole.sample(tokens)
        return self._parts[key]

    def in_code(self, text: str) -> Any:
        """A text as the page's code names it; the learner's own stands before the calls."""
        return Name("your_text") if text == OWN_TEXT else TEXT_NAMES[text]

    def _read_own(self) -> None:
        text = str(self.own_control.value).strip()
        if len(text.split()) < 2:
            raise ValueError("type or paste some text first")
        self.own = text
        self._take()

    def _say(self, done: int, total: int) -> None:
        self._page.status.busy(f"Running the model on the text: {done} of {total} pieces")


def spoken_text(name: str) -> str:
    """The name of one of the package's texts as a reader writes it.

    >>> spoken_text("heldout_python")
    'held-out python'
    """
    return name.replace("heldout", "held-out").replace("_", " ")


TEXT_NAMES = {spoken_text(n): n for n in [*calibration_texts(), *evaluation_texts()]}
