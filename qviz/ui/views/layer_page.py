"""What the lessons about one layer share: which layer it is, and how another one is opened.

A lesson derives from LayerPage and says how a layer is shown (`_show`). When something fails,
controls and pictures go back to what was last computed.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch

from qviz.core.check import unknown
from qviz.models.checkpoint import list_layers, load_layer
from qviz.ui.views.lesson_page import LessonPage
from qviz.ui.widgets import Button, Choice, TextField

FIRST_LAYER = "model.layers.1.mlp.down_proj"


class LayerPage(LessonPage, ABC):
    """A lesson on one linear layer of a model.

    first_layer    the layer to begin with, of a model that has it
    sources        what can be opened here, in words
    kept           attributes that go back to their last good value when something fails;
                   `source`, `layers` and `weight` always do
    """

    first_layer = FIRST_LAYER
    sources = "Hub id, folder or .safetensors file"
    kept: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.source: str | None = None
        self.layers: list[str] = []
        self.weight = torch.zeros(1, 1)
        self._remembered: tuple[dict[str, Any], list[tuple[Any, list[str], int]]] | None = None
        self.layer_control = Choice("Layer", ["…"])
        self.source_control = TextField("Model", placeholder=self.sources)
        self.open_button = Button("Open it")
        self.bundled_button = Button("Back to the bundled model")
        self.on_change(self.layer_control, "index", self._new_layer, busy="Reading the layer …")
        open_own = self.handler(self._open_own, "Opening it …")
        self.open_button.on_click(open_own)
        self.source_control.on_submit(open_own)
        self.bundled_button.on_click(self.handler(self.open, "Opening the bundled model …"))

    @property
    def layer(self) -> str:
        return self.layers[int(self.layer_control.index)]

    @abstractmethod
    def _show(self, weight: torch.Tensor) -> None:
        """Show this weight of `source` and `layer`; what can fail comes before any picture."""

    def _controls(self) -> list[Any]:
        """The controls with an index that go back with the pictures when something fails."""
        return [self.layer_control]

    def _keep(self) -> None:
        """Remember what the pictures show, for when the next thing cannot be computed."""
        self._remembered = (
            {name: getattr(self, name) for name in ("source", "layers", "weight", *self.kept)},
            [(control, list(control.options), control.index) for control in self._controls()],
        )

    def _restore(self) -> None:
        if self._remembered is None:
            return
        values, controls = self._remembered
        for name, value in values.items():
            setattr(self, name, value)
        with self.quietly():
            for control, options, index in controls:
                control.set_options(options, index)

    # ---------------------------------------------------------------- opening a model, a layer

    def open(self, source: str | None = None, layer: str | None = None) -> None:
        """Show a layer of a model; if it cannot be read, everything stays as it was."""
        names = [info.name for info in list_layers(source)]
        if not names:
            raise ValueError(f"{source or 'the model'} has no linear layers to show")
        if layer is not None and layer not in names:
            raise ValueError(unknown("layer", layer, names))
        first = layer or (self.first_layer if self.first_layer in names else names[0])
        weight = load_layer(source, first)
        self.source = source
        try:
            with self.quietly():
                self.layers = names
                self.layer_control.set_options(short_names(names), names.index(first))
            self._show(weight)
        except Exception:
            self._restore()
            raise
        self.status.clear()

    def _open_own(self) -> None:
        source = str(self.source_control.value).strip()
        if not source:
            raise ValueError(f"type a {self.sources} first")
        if len(source) > 1000:
            raise ValueError(f"{len(source)} characters are too long for a Hub id or a path")
        self.open(source)

    def _new_layer(self) -> None:
        self._show(load_layer(self.source, self.layer))


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
