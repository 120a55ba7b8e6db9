"""A GPTQ run that the learner keeps, to compare with what is changed from then on."""

from dataclasses import dataclass
from typing import Any

from qviz.study.gptq_walk import Walk
from qviz.ui.views.fields import ValueField
from qviz.ui.views.gptq_controls import KEPT
from qviz.ui.views.layer_page import Opened
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.widgets import Button, as_address, from_address

RUN_FIELDS = ("bits", "scale", "order", "levels", "found", "range", "damp", "block", "dtype",
              "text", "tokens", "judge")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Held:
    """A kept run: what determined it, as in a link, and its layer."""

    opened: Opened
    state: str
    walk: Walk


class Keeping:
    """The button that keeps the page's present run, and the field that carries it in a link.
    `held` is the kept run, or None."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self.held: Held | None = None
        self.button = Button("Keep this run to compare")
        page.fields["kept"] = ValueField(
            "kept", self, "held", text=lambda held: "" if held is None else held.state,
            take=self._take,
        )  # fmt: skip
        page.on_press(self.button, self._keep, COMPUTING)

    def fit(self, opened: Opened) -> None:
        """Forget a run of another layer."""
        if self.held is not None and self.held.opened is not opened:
            self.held = None

    def _keep(self) -> None:
        page, shown = self._page, self._page.shown
        told = {key: page.fields[key].text for key in RUN_FIELDS}
        self.held = Held(shown.opened, as_address(told), shown.first)
        with page.quietly():
            page.fit()
            page.fields["beside"].set(KEPT)
        page.update()

    def _take(self, text: str) -> None:
        """From a link: make the run that was kept, before the page's own is set."""
        self.held = None
        if not text:
            return
        page = self._page
        for key, value in from_address(text).items():
            if key not in RUN_FIELDS:
                raise ValueError(
                    f"a kept run is described by {', '.join(RUN_FIELDS)}, not by {key}"
                )
            page.fields[key].set(value)
            page.fit()
        self.held = Held(page.opened, text, page.plan().walk())
