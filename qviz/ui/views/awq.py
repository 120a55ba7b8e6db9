"""Lesson 8: AWQ on a real layer with its real inputs, in five parts.

Which channels matter, what multiplying one does, the search for all factors, clipping and folding,
and AWQ beside others at equal bits. The parts share a case (a layer, its inputs, a width), which is
made anew only when a control changes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from qviz.core.calibration import Calibration
from qviz.models.capture import load_calibration
from qviz.study.awq_case import Case, amplifier, load_case, louder
from qviz.study.awq_steps import Search
from qviz.ui.views.awq_channels import ChannelsPart
from qviz.ui.views.awq_clip import ClipPart
from qviz.ui.views.awq_guide import CHANNELS, CLIP, GUIDE, ONE, OTHERS, SEARCH
from qviz.ui.views.awq_one import OnePart
from qviz.ui.views.awq_others import OthersPart
from qviz.ui.views.awq_pictures import part as pictured
from qviz.ui.views.awq_search import SearchPart
from qviz.ui.views.fields import CellField
from qviz.ui.views.guide_steps import Step
from qviz.ui.views.layer_page import LayerPage, Opened
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.parts import PartedLesson
from qviz.ui.views.scale_sharing import ScaleSharing
from qviz.ui.views.snippet import call
from qviz.ui.widgets import Code, MatrixView, Slider, Text, details, stack

BITS = (2, 3, 4, 5, 6, 8)
LOUD = {"as trained": 1.0, "2×": 2.0, "4×": 4.0, "8×": 8.0, "16×": 16.0, "32×": 32.0}


class AwqLesson(PartedLesson, LayerPage):
    """The lesson. `.widget` is the page; the rest is plain Python and needs no browser.

    source  None (the bundled model), "minilm", a directory or a Hub id
    layer   the name of one of its linear layers
    """

    lesson_number = 8
    guide_steps: Sequence[Step] = GUIDE
    first_layer = "model.layers.1.self_attn.v_proj"
    sources = "Hub id, folder or minilm"  # not a file alone: the model has to run

    def __init__(self, source: str | None = None, layer: str | None = None) -> None:
        super().__init__()
        self._base: tuple[Opened, Case] | None = None  # as trained
        self._case: tuple[tuple[Any, ...], Case] | None = None
        self._search: Search | None = None
        # The weight that was looked at last, of which layer, and whether it is held.
        self._looked: tuple[Opened, tuple[int, int], bool] | None = None
        self._kept_look: tuple[Opened, tuple[int, int], bool] | None = None
        self.code = Code()
        self._build_controls()
        self.channels, self.one = ChannelsPart(self), OnePart(self)
        self.search, self.clip, self.others = SearchPart(self), ClipPart(self), OthersPart(self)
        self.parts = {
            CHANNELS: self.channels, ONE: self.one, SEARCH: self.search, CLIP: self.clip,
            OTHERS: self.others,
        }  # fmt: skip
        self.prediction = self.channels.prediction
        self._build_cell()
        for part in self.parts.values():
            part.also = [] if part is self.others else [self._bits_box]
        self.widget = self.compose_parts(
            common=self._common,
            code=self.code,
            own=[self.source_control, self.open_button, self.bundled_button],
        )
        self.open(source, layer)

    # ---------------------------------------------------------------- controls that parts share

    def _build_controls(self) -> None:
        self.add_parts(CHANNELS, ONE, SEARCH, CLIP, OTHERS)
        self.bits_control = self.add(
            "bits", Slider("Bits per code", [str(b) for b in BITS], 1, ticks=True),
            busy=COMPUTING, live=lambda: self.part != OTHERS,
        )  # fmt: skip
        self.loud_control = self.add(
            "loud",
            Slider(
                "Loudest channels, made louder",
                list(LOUD),
                description="Inputs times m, weights divided by m: the same function",
            ),
            busy=COMPUTING,
        )
        self.unit_control = self.add(
            "scale", ScaleSharing(matrix=False, sizes=(256, 128, 64, 32)), busy=COMPUTING
        )
        self.note = Text("", role="wait")
        self._bits_box = stack(self.bits_control)
        self._common = [
            self._bits_box, self.loud_control, self.note, self.layer_control,
            details("More", self.unit_control),
        ]  # fmt: skip

    @property
    def bits(self) -> int:
        return BITS[int(self.bits_control.index)]

    @property
    def loud(self) -> float:
        return LOUD[self.loud_control.value]

    def fit(self) -> None:
        self.unit_control.fit(self.opened.weight.shape[1])
        super().fit()

    def keys_of(self, part: Any) -> Sequence[str]:
        return part.keys  # type: ignore[no-any-return]

    # ---------------------------------------------------------------- the case

    def base(self) -> Case:
        """The layer as it is, before its channels are made louder."""
        opened = self.opened
        if self._base is None or self._base[0] is not opened:
            self._base = opened, load_case(opened.source, opened.layer)
        return self._base[1]

    def case(self) -> Case:
        """What the controls ask for; the same object as long as they ask for the same."""
        base = self.base()
        asked = base, self.bits, self.unit_control.granularity.group_size, self.loud
        if self._case is None or self._case[0] != asked:
            bits, group = asked[1:3]
            self._case = asked, louder(replace(base, bits=bits, group_size=group), self.loud)
        return self._case[1]

    def case_maker(self) -> Callable[[str], Case]:
        """How a case of another layer is read, with what the controls now say, in any thread."""
        source, loud = self.source, self.loud
        group = self.unit_control.granularity.group_size

        def make(name: str) -> Case:
            return load_case(source, name, group_size=group, loud=loud)

        return make

    def inputs(self) -> Calibration:
        """As trained, on the calibration text."""
        return self.base().calibration

    def inputs_on(self, text: str) -> Calibration:
        """As trained, on another text."""
        return load_calibration(self.source, self.layer, text=text)

    def search_of(self, case: Case) -> Search:
        """The search on the grid that is chosen, made once."""
        known, grid = self._search, self.search.grid
        if known is None or known.case is not case or known.grid != grid:
            known = self._search = Search(case, grid)
        return known

    @property
    def code_of_case(self) -> str:
        """Python that makes the case."""
        case = self.case()
        made = call(
            "load_case", self.source, self.layer, bits=case.bits, group_size=case.group_size,
            loud=self.loud,
        )  # fmt: skip
        return f"import qviz\nfrom qviz.study.awq_case import load_case\n\ncase = {made}"

    # ---------------------------------------------------------------- one weight

    def _build_cell(self) -> None:
        views = [one.picture for one in self.parts.values() if hasattr(one, "picture")]
        self.fields["weight"] = CellField(
            "weight", lambda: self.picture, lambda: self.cell, live=lambda: self.part != OTHERS
        )
        for view in views:
            for trait in ("cursor", "pinned"):
                self.on_change(view, trait, self._pointed)

    @property
    def picture(self) -> MatrixView:
        """In which weights are pointed at now."""
        view: Any = getattr(self.current, "picture", self.channels.picture)
        assert isinstance(view, MatrixView)
        return view

    @property
    def loudest(self) -> int:
        return int(self.case().calibration.act_absmean.argmax())

    @property
    def cell(self) -> tuple[int, int]:
        """The weight that the page is about, in whatever part is open."""
        return self._looked_at[0]

    @property
    def held(self) -> bool:
        return self._looked_at[1]

    @property
    def _looked_at(self) -> tuple[tuple[int, int], bool]:
        """(the weight, whether it is held); of another layer than before, one of its loudest
        channel, held by nobody."""
        if self._looked is not None and self._looked[0] is self.opened:
            return self._looked[1:]
        return (len(pictured(self.case().weight)) // 7, self.loudest), False

    def settle(self, picture: MatrixView) -> None:
        """Let a part's picture, which has just been drawn, show that weight. Called quietly."""
        cell, held = self._looked_at
        picture.cursor, picture.pinned = list(cell), held
        self._looked = self.opened, cell, held

    def _pointed(self) -> None:
        """Another weight in the open part's picture."""
        row, column = self.picture.cursor
        if row < 0 or self.current.shown is None:
            return
        self._looked = self.current.shown.opened, (row, column), bool(self.picture.pinned)
        getattr(self.current, "pointed", self.current.look)()

    def _keep(self) -> None:
        self._kept_look = self._looked
        super()._keep()

    def _restore(self) -> None:
        self._looked = self._kept_look
        super()._restore()

    # ---------------------------------------------------------------- words of the whole page

    def show(self, part: Any, fresh: Any) -> None:
        super().show(part, fresh)
        self.note.text = self._note(fresh.case)

    def _note(self, case: Case) -> str:
        """What is shown of the layer, and what was done to it."""
        shown = len(pictured(case.weight))
        whole = self.opened.weight.shape[0]
        said = []
        if self.loud != 1:
            n = int((amplifier(self.inputs(), self.loud) != 1).sum())
            said.append(
                f"{n} of {case.weight.shape[1]} channels are {self.loud_control.value} as loud as "
                f"trained, and the weights that meet them as much smaller: the layer computes what "
                f"it did, to the last bit."
            )
        if len(case.weights) > 1:
            names = " and ".join(n.rpartition(".")[2] for n in case.weights if n != case.name)
            said.append(f"It shares its input, and so its factors, with {names}.")
        if len(case.weight) < whole:
            said.append(f"Measured on the first {len(case.weight)} of {whole} rows.")
        if shown < len(case.weight):
            said.append(f"Pictures show the first {shown} rows.")
        return " ".join(said)
