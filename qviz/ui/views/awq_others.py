"""AWQ beside other methods at equal bits: on this layer at several widths, and on every layer."""

from dataclasses import dataclass, replace
from typing import Any

from qviz.study.awq_beside import (
    CLIPPED,
    GPTQ,
    METHODS,
    NEAREST,
    Standing,
    every_layer,
    standings,
)
from qviz.study.awq_case import Case
from qviz.ui.figures.awq import by_bits
from qviz.ui.views.awq_others_words import Score, Tally, scores_sentence, tally_sentence
from qviz.ui.views.awq_pictures import AwqPart
from qviz.ui.views.background import Background
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.layer_page import short_names
from qviz.ui.widgets import (
    Caption,
    Chart,
    Slider,
    Table,
    Text,
    figures_row,
    number,
    percent,
    section,
    show_only,
    stack,
)

WIDTHS = (2, 3, 4)
COLUMNS = ["bits per weight", "calibration text", "held-out text", "× nearest"]


@dataclass(frozen=True, eq=False)
class OthersShown:
    """A case, and every method at each of WIDTHS; layers: the same of all layers at one width."""

    opened: Any
    case: Case
    scores: dict[int, list[Standing]]
    layers: dict[str, list[Standing]] | None = None

    def facts(self, bits: int) -> list[Score]:
        return [Score(one.method, one.error, one.judged) for one in self.scores[bits]]


class OthersPart(AwqPart):
    """All methods at equal bits."""

    keys = ("width",)
    shown: OthersShown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.lead = self.add(
            "width", Slider("Bits per code, for all methods", [str(b) for b in WIDTHS], 1,
                            ticks=True),
            lambda: None, looks=True,
        )  # fmt: skip
        self.own = Chart("On the calibration text", height=270)
        self.judged = Chart("On held-out text", height=270)
        self.table = Table("This layer, at equal bits")
        self.caption = Caption()
        tie_frames(self.lead, self.own, self.judged, self.table, self.caption)
        self.every = Background(
            page, self._begin, label="Measure every layer of this model",
            stop="Stop measuring",
        )  # fmt: skip
        self.every_table = Table("Every layer, on held-out text")
        self.tally = Caption()
        self.tally.add_class("qv-aside")
        self._every_box = stack(self.tally, self.every_table)
        show_only(self._every_box, False)
        self.main = [
            section(
                "Equal bits, five methods",
                figures_row(
                    stack(Text(self.own.label, "h3"), self.own),
                    stack(Text(self.judged.label, "h3"), self.judged),
                    wide=True,
                ),
                self.table,
            ),
            section(
                "Is this layer typical?", self.every.button, self.every.busy, self._every_box,
            ),
        ]  # fmt: skip

    @property
    def width(self) -> int:
        return WIDTHS[int(self.lead.index)]

    def compute(self) -> OthersShown:
        case, last = self.page.case(), self.shown
        if last is not None and last.case is case:
            return last
        scores = {b: standings(replace(case, bits=b)) for b in WIDTHS}
        return OthersShown(self.page.opened, case, scores)

    def draw(self, shown: OthersShown) -> None:
        for chart, judged in ((self.own, False), (self.judged, True)):
            curves = {
                method: [
                    shown.scores[b][i].judged if judged else shown.scores[b][i].error
                    for b in WIDTHS
                ]
                for i, method in enumerate(METHODS)
            }
            chart.set_figures(
                by_bits(WIDTHS, curves, "output error, %"),
                [
                    f"{b} bits: " + ", ".join(f"{m} {percent(v[i])}" for m, v in curves.items())
                    for i, b in enumerate(WIDTHS)
                ],
            )
        self.table.set_rows(COLUMNS, [_rows(shown.scores[b]) for b in WIDTHS])
        self.caption.set_texts([
            scores_sentence(b, shown.scores[b][0].bits_per_weight, shown.facts(b)) for b in WIDTHS
        ])  # fmt: skip
        show_only(self._every_box, bool(shown.layers))
        self._draw_layers(shown)
        self.page.code.set_texts(
            f"{self.page.code_of_case}\n\nfrom dataclasses import replace\n"
            f"from qviz.study.awq_beside import standings\n\n"
            f"scores = {{bits: standings(replace(case, bits=bits)) for bits in {WIDTHS}}}\n"
            f"print(*scores[{WIDTHS[1]}], sep='\\n')"
        )

    # ---------------------------------------------------------------- every layer

    def _begin(self) -> None:
        names, make, bits = list(self.page.layers), self.page.case_maker(), self.width
        opened = self.page.opened

        def work(progress: Any, stopped: Any) -> dict[str, list[Standing]]:
            found = {}
            cases = every_layer(names, lambda name: replace(make(name), bits=bits), stopped)
            for i, (name, made) in enumerate(cases, 1):
                found[name] = made
                progress(i, len(names), name)
            return found

        def take(found: dict[str, list[Standing]]) -> None:
            now = self.shown
            if now is None or not found or now.opened.source != opened.source:
                return  # another model is open by now
            self.page.show(self, replace(now, layers=found))

        self.every.start(work, take, saying=f"1 of {len(names)}: {names[0]}")

    def _draw_layers(self, shown: OthersShown) -> None:
        if not shown.layers:
            return
        names = dict(zip(shown.layers, short_names(list(shown.layers)), strict=True))
        rows = []
        for name, made in shown.layers.items():
            least = min(range(len(made)), key=lambda i: made[i].judged)
            rows.append((names[name], [percent(one.judged) for one in made], [least]))
        self.every_table.set_rows(list(METHODS), [rows])
        self.tally.set_texts(tally_sentence(tally_of(shown.layers, names)))


def tally_of(layers: dict[str, list[Standing]], names: dict[str, str]) -> Tally:
    """How often AWQ with clipping wins, and where it does worst."""

    def judged(made: list[Standing], method: str) -> float:
        return next(one.judged for one in made if one.method == method)

    over = {
        name: judged(made, CLIPPED) / judged(made, NEAREST) if judged(made, NEAREST) else 1.0
        for name, made in layers.items()
    }
    worst = max(over, key=lambda name: over[name])
    return Tally(
        next(iter(layers.values()))[0].bits, len(layers),
        sum(judged(made, CLIPPED) < judged(made, NEAREST) for made in layers.values()),
        sum(judged(made, CLIPPED) < judged(made, GPTQ) for made in layers.values()),
        names[worst], over[worst],
    )  # fmt: skip


def _rows(made: list[Standing]) -> list[Any]:
    least = min(one.judged for one in made)
    nearest = made[0].judged
    return [
        (
            one.method,
            [
                number(one.bits_per_weight), percent(one.error), percent(one.judged),
                f"{number(one.judged / nearest, 3)}×" if nearest else "–",
            ],
            [2] if one.judged == least else [],
        )
        for one in made
    ]  # fmt: skip
