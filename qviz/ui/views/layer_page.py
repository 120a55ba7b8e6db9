"""What the lessons about one layer share: which layer is shown, and how another one is opened."""

from dataclasses import dataclass
from urllib.parse import parse_qs

import torch

from qviz.core.calibration import Calibration
from qviz.core.check import unknown
from qviz.models.capture import load_calibration
from qviz.models.checkpoint import list_layers, load_layer
from qviz.ui.views.fields import ValueField
from qviz.ui.views.lesson_page import LessonPage
from qviz.ui.widgets import Button, Choice, TextField, from_address

FIRST_LAYER = "model.layers.1.mlp.down_proj"
OFFLINE = (None, "minilm")  # models that come with the package: a link may open them by itself


@dataclass(frozen=True, eq=False)
class Opened:
    """A layer that was read: weight [out, in] as the file has it."""

    source: str | None
    layer: str
    weight: torch.Tensor


class LayerPage(LessonPage):
    """A lesson on one linear layer of a model.

    first_layer    the layer to begin with, of a model that has it
    sources        what can be opened here, in words
    source, layer  what the controls ask for; `opened` is that layer
    """

    first_layer = FIRST_LAYER
    sources = "Hub id, folder or .safetensors file"

    def __init__(self) -> None:
        super().__init__()
        self.source: str | None = None
        self.layers: list[str] = []
        self._opened: Opened | None = None
        self._captured: set[str | None] = set()  # the learner's models that were run
        self._inputs: tuple[Opened, Calibration] | None = None
        self._pending: dict[
            str, str
        ] = {}  # what a link asked for, of a model that the learner has not agreed to load
        self.layer_control = Choice("Layer", ["…"])
        self.source_control = TextField("Model", placeholder=self.sources)
        self.open_button = Button("Open it")
        self.bundled_button = Button("Back to the bundled model")
        self.fields["model"] = ValueField(
            "model", self, "_names", text=lambda names: names[0] or "", take=self._take_source
        )
        self.add(
            "layer", self.layer_control, busy="Reading the layer …",
            names=lambda: self.layers or self.layer_control.options,  # before a model is open
        )  # fmt: skip
        opening = "Opening it …"
        self.on_press(self.open_button, self._open_own, opening, field=self.source_control)
        self.on_press(self.bundled_button, self._offer_source, "Opening the bundled model …")

    # ---------------------------------------------------------------- which layer

    @property
    def layer(self) -> str:
        return self.layers[int(self.layer_control.index)]

    @property
    def opened(self) -> Opened:
        """The layer that the controls ask for, read once."""
        last = None if self.shown is None else self.shown.opened
        for found in (last, self._opened):
            if found is not None and (found.source, found.layer) == (self.source, self.layer):
                break
        else:
            found = Opened(self.source, self.layer, load_layer(self.source, self.layer))
            self._opened = found
        return found

    @property
    def _names(self) -> tuple[str | None, list[str]]:
        return self.source, self.layers

    @_names.setter
    def _names(self, names: tuple[str | None, list[str]]) -> None:
        self.source, self.layers = names

    # ---------------------------------------------------------------- opening a model

    def open(self, source: str | None = None, layer: str | None = None) -> None:
        """Show a layer of a model; if it cannot be read, everything stays as it was."""
        self.whole(lambda: self._offer_source(source, layer))

    def _offer_source(self, source: str | None = None, layer: str | None = None) -> None:
        with self.quietly():
            self._take_names(source, layer)
        self.update()

    def _take_names(self, source: str | None, layer: str | None = None) -> None:
        names = [info.name for info in list_layers(source)]
        if layer is not None and layer not in names:
            raise ValueError(unknown("layer", layer, names))
        first = layer or (self.first_layer if self.first_layer in names else names[0])
        self.source, self.layers = source, names
        self.layer_control.set_options(short_names(names), names.index(first))

    # ---------------------------------------------------------------- its real inputs

    def add_capture(self) -> Button:
        """The button that runs the learner's model. Nothing else runs it, because it may take a
        while and much memory."""
        self.capture_button = Button("Run it on text to measure its output error")
        self.on_press(self.capture_button, self._capture, "Running the model on text …")
        return self.capture_button

    def inputs_of(self, opened: Opened) -> Calibration | None:
        """The layer's real inputs, read once; None until the model has been run."""
        if opened.source not in OFFLINE and opened.source not in self._captured:
            return None
        if self._inputs is None or self._inputs[0] is not opened:
            self._inputs = opened, load_calibration(opened.source, opened.layer)
        return self._inputs[1]

    def _capture(self) -> None:
        if self.source is None:
            raise ValueError(
                "the bundled model's inputs are already captured; open your own model first"
            )
        load_calibration(self.source, self.layer)
        self._captured.add(self.source)
        self.update()

    def _open_own(self) -> None:
        source = str(self.source_control.value).strip()
        if not source:
            raise ValueError(f"type a {self.sources} first")
        if len(source) > 1000:
            raise ValueError(f"{len(source)} characters are too many for a Hub id or a path")
        if self._pending.get("model") == source:
            self._go(self._pending)
            self._pending = {}
        else:
            self._offer_source(source)

    def _take_source(self, text: str) -> None:
        if (text or None) != self.source:
            self._take_names(text or None)

    def _on_address(self, text: str) -> None:
        """From a link: another person's choice must not load a model before the learner agrees."""
        asked = parse_qs(text).get("model", [""])[0]
        if (asked or None) in (*OFFLINE, self.source):
            super()._on_address(text)
            return
        with self.one_at_a_time:
            self._pending = from_address(text)
            self.source_control.value = asked
            self.status.show_error(
                f"this link is about {asked}, a model that does not come with the page. Its name "
                f"is filled in under Your own layer: press “{self.open_button.label}” there to "
                "load it"
            )


def short_names(names: list[str]) -> list[str]:
    """Layer names without the dotted beginning that all of them share ("model." of
    "model.layers.0…"; a word that belongs to a number stays)."""
    parts = [name.split(".") for name in names]
    same = 0
    while all(
        len(p) > same + 1 and p[same] == parts[0][same] and not p[same + 1].isdigit() for p in parts
    ):
        same += 1
    return [".".join(p[same:]) for p in parts]
