"""The AWQ lesson's search: twenty candidates on the steps' bar, and a second search beside it.

All candidates are made when the controls change and sent ahead; stepping needs no kernel.
"""

from dataclasses import dataclass
from typing import Any

from qviz.methods.awq import GRIDS
from qviz.study.awq_beside import (
    CONTRASTS,
    FEW,
    GRID_TITLES,
    TEXT,
    TOKENS,
    Contrast,
    changed,
)
from qviz.study.awq_case import Case, amplifier, times
from qviz.study.awq_steps import Search
from qviz.ui.figures.awq import factor_cloud, search_curves
from qviz.ui.views.awq_equations import SEARCH
from qviz.ui.views.awq_pictures import AwqPart, draw_felt, felt, reach, weight_of
from qviz.ui.views.awq_search_words import (
    Found,
    Try,
    beside_sentence,
    found_sentence,
    try_sentence,
)
from qviz.ui.views.awq_weight import weight_rows
from qviz.ui.views.frame import tie_frames
from qviz.ui.views.lesson_page import COMPUTING
from qviz.ui.views.snippet import Name, call
from qviz.ui.widgets import (
    Caption,
    Chart,
    Choice,
    MatrixView,
    Readout,
    Text,
    Transport,
    figures_row,
    link_matrices,
    number,
    section,
    show_only,
    stack,
)

NOTHING = "nothing"
GRID_NAMES = tuple(GRIDS)


@dataclass(frozen=True, eq=False)
class SearchShown:
    """A search, and perhaps a second one with one thing changed."""

    opened: Any
    case: Case
    first: Search
    second: Search | None = None
    contrast: Contrast | None = None

    def facts(self, search: Search, k: int) -> Try:
        one = search.candidates[k]
        return Try(
            k, len(search.candidates) - 1, one.ratio, one.duo, float(one.scale.min()),
            float(one.scale.max()), len(search.case.weights), one.error,
            None if k == 0 else search.candidates[search.best_so_far(k - 1)].error,
            search.judged_nearest,
        )  # fmt: skip

    def found(self, search: Search) -> Found:
        one = search.chosen
        return Found(
            one.ratio, one.duo, one.spread, one.error, search.judged_all[search.best],
            search.judged_nearest,
        )  # fmt: skip

    def caption(self, k: int) -> str:
        """What this step shows, of both searches where there are two."""
        text = try_sentence(self.facts(self.first, k))
        if k == len(self.first.candidates) - 1:
            text += f" {found_sentence(self.found(self.first))}"
        if self.second is not None:
            text += f" Second search: {_lower(try_sentence(self.facts(self.second, k)))}"
        return text


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


class SearchPart(AwqPart):
    """The search for the ratio."""

    keys = ("grid", "beside", "candidate")
    shown: SearchShown | None

    def __init__(self, page: Any) -> None:
        super().__init__(page)
        self.grid_control = self.add(
            "grid", Choice("Candidates of", [GRID_TITLES[name] for name in GRID_NAMES]),
            busy=COMPUTING, names=lambda: list(GRID_NAMES),
        )  # fmt: skip
        self._names = {NOTHING: NOTHING}  # what stands on the page → name in a link
        self.beside_control = Choice("A second search beside it", [NOTHING])
        self.add("beside", self.beside_control, busy=COMPUTING, names=self._beside_names)
        self.foot = Transport(20, label="candidate", rate=2.0)
        self.add("candidate", self.foot, lambda: None)
        self.picture = MatrixView("Error, times its input: a·(Ŵ − W)")
        self.second_view = MatrixView("The same, second search")
        self.curve = Chart("What every candidate does to the output", height=300)
        self.cloud = Chart("Loud channels get large factors", height=300)
        self.table = Readout("The chosen weight")
        self.why, self.sign = Text("", role="wait"), Caption()
        self.sign.add_class("qv-aside")
        self._second_box = stack(self.second_view)
        self._sign_box = stack(Text("The second search", "h3"), self.sign)
        tie_frames(self.foot, self.picture, self.second_view, self.curve, self.cloud, self.table)
        link_matrices(self.picture, self.second_view)
        for box in (self._second_box, self._sign_box):
            show_only(box, False)
        self.controls = [self.grid_control, self.why, self.beside_control]
        self.main = [
            section(
                "Twenty candidates",
                Text(self.curve.label, "h3"),
                self.curve,
                self._sign_box,
                figures_row(
                    self.picture, self._second_box, stack(Text(self.cloud.label, "h3"), self.cloud)
                ),
            )
        ]
        self.side = [section("What a candidate is", SEARCH.widget(), self.table)]

    # ---------------------------------------------------------------- what the learner chose

    @property
    def grid(self) -> str:
        return GRID_NAMES[int(self.grid_control.index)]

    def _beside_names(self) -> list[str]:
        return [self._names[title] for title in self.beside_control.options]

    def fit(self) -> None:
        """Offer what differs from the first search."""
        enough = len(self.page.inputs().inputs) > FEW
        offered = [
            one for one in CONTRASTS
            if one.name != self.grid and (one.name != TOKENS or enough)
        ]  # fmt: skip
        titles = [f"{one.family}: {one.title}" for one in offered]
        kept = self._names[self.beside_control.value]
        self._names |= {title: one.name for title, one in zip(titles, offered, strict=True)}
        names = [NOTHING, *(one.name for one in offered)]
        at = names.index(kept) if kept in names else 0
        if [NOTHING, *titles] != list(self.beside_control.options):
            self.beside_control.set_options([NOTHING, *titles], at)

    # ---------------------------------------------------------------- computing

    def compute(self) -> SearchShown:
        case, last, grid = self.page.case(), self.shown, self.grid
        known = last is not None and last.case is case and last.first.grid == grid
        first = self.page.search_of(case)
        _ = first.judged_all  # what can fail in it belongs here
        name = self._names[self.beside_control.value]
        contrast = next((one for one in CONTRASTS if one.name == name), None)
        second = None
        if contrast is not None:
            if known and last and last.contrast is contrast:
                second = last.second
            else:
                second = Search(*changed(case, grid, name, self._other(case, name)))
                _ = second.judged_all
        return SearchShown(self.page.opened, case, first, second, contrast)

    def _other(self, case: Case, name: str) -> Any:
        """The calibration on a text of numbers, as loud as the first."""
        if name != TEXT:
            return None
        other = self.page.inputs_on("numbers")
        loud = amplifier(self.page.inputs(), self.page.loud)
        return times(other, loud) if self.page.loud != 1 else other

    # ---------------------------------------------------------------- drawing

    def draw(self, shown: SearchShown) -> None:
        first, second = shown.first, shown.second
        n = len(first.candidates)
        self.shown = shown
        limit = reach(felt(shown.case, shown.case.nearest.dequantize()))
        with self.page.quietly():
            last = [k for k in range(n) if first.best_so_far(k) == k]
            self.foot.set_steps(
                n, events={"new best": last}, captions=[shown.caption(k) for k in range(n)]
            )
            self._draw_pictures(self.picture, first, limit)
            if second is not None:
                self._draw_pictures(self.second_view, second, limit)
            self.page.settle(self.picture)
        show_only(self._second_box, second is not None)
        show_only(self._sign_box, second is not None)
        if second is not None and shown.contrast is not None:
            said = beside_sentence(shown.contrast.name, shown.found(first), shown.found(second))
            self.sign.set_texts(f"{shown.contrast.why} {said}")
        self.why.text = next(one.why for one in CONTRASTS if one.name == first.grid)
        self._draw_curve(shown)
        self.look()
        self.page.code.set_texts(self._snippet(shown))

    def _draw_pictures(self, view: MatrixView, search: Search, limit: float) -> None:
        """Errors felt by the judge's layer: those of the first case's inputs."""
        assert self.shown is not None
        draw_felt(
            view,
            [
                felt(self.shown.case, search.tensor(k).dequantize())
                for k in range(len(search.candidates))
            ],
            [f"r = {number(one.ratio, 3)}" for one in search.candidates], limit,
        )  # fmt: skip

    def _draw_curve(self, shown: SearchShown) -> None:
        runs, best = [], []
        both = (shown.first, shown.second)
        for name, search in zip(("first", "second"), both, strict=True):
            if search is None:
                continue
            runs.append(
                (name, [one.ratio for one in search.candidates],
                 [one.error for one in search.candidates], search.judged_all)
            )  # fmt: skip
            best.append([search.best_so_far(k) for k in range(len(search.candidates))])
        self.curve.set_figures(
            search_curves(runs, best, shown.first.judged_nearest),
            [shown.caption(k) for k in range(len(shown.first.candidates))],
        )

    def look(self) -> None:
        shown = self.shown
        assert shown is not None
        row, column = self.page.cell
        first = shown.first
        self.table.set_rows(
            weight_rows(
                [
                    weight_of(shown.case, first.tensor(k), row, column, scale=one.scale)
                    for k, one in enumerate(first.candidates)
                ]
            ),
            "The chosen weight" + ("" if shown.second is None else ", first search"),
        )
        a = first.case.calibration.act_absmean.double().numpy()
        scales = [one.scale.double().numpy() for one in first.candidates]
        self.cloud.set_figures(
            factor_cloud(a, scales, column),
            [
                f"r = {number(one.ratio, 3)}: channel {column}, whose mean |x| is "
                f"{number(float(a[column]), 3)}, has the factor {number(float(s[column]), 3)}"
                for one, s in zip(first.candidates, scales, strict=True)
            ],
        )

    def _snippet(self, shown: SearchShown) -> str:
        made = call("Search", Name("case"), shown.first.grid)
        text = (
            f"{self.page.code_of_case}\n\nfrom qviz.study.awq_steps import Search\n\n"
            f"search = {made}  # each candidate as qviz.methods.awq tells it\n"
            f"print([(one.ratio, one.duo, one.error) for one in search.candidates])\n"
            f"print(search.chosen.ratio, search.judged(search.best))"
        )
        given = call(
            "qviz.quantize", Name("case.weight"), "awq", Name("case.calibration"),
            **shown.case.options, grid=shown.first.grid,
        )  # fmt: skip
        if len(shown.case.weights) == 1:
            return f"{text}\n\nq = {given}  # the same, in one call"
        return text
