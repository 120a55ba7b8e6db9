"""Every system on the same numbers: a picture of their levels, and a table for each form."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from qviz.study.clipping import Outcome, rules, same_results
from qviz.ui.figures.scale_and_zero_point import levels_of_systems
from qviz.ui.views.scale_and_zero_point_numbers import Numbers
from qviz.ui.views.scale_and_zero_point_systems_words import (
    COLUMNS,
    Systems,
    short,
    system_rows,
    systems_sentence,
)
from qviz.ui.views.scale_and_zero_point_words import (
    FORMS,
)
from qviz.ui.widgets import Chart, Table, Text, number, section


class SystemsPart:
    """How ten conventions quantize the numbers of the page. `.widget` is a card."""

    def __init__(self) -> None:
        self.texts = [Text("") for _ in FORMS]
        self.charts = [
            Chart(f"Where each system puts its {form} levels", height=170) for form in FORMS
        ]
        self.tables = [Table(f"Systems with {form} levels") for form in FORMS]
        told = zip(self.texts, self.charts, self.tables, strict=True)
        parts = [part for three in told for part in three]
        self.widget = section("Every system on the same numbers", *parts)

    def draw(self, numbers: Numbers, outcomes: list[Outcome], scheme: Mapping[str, Any]) -> None:
        """`outcomes` are of `numbers`; `scheme` is what the rest of the page shows."""
        for i, form in enumerate(FORMS):
            some = [one for one in outcomes if one.symmetric == (i == 0)]
            chosen = scheme["convention"] if scheme["symmetric"] == (i == 0) else ""
            self._draw_form(i, form, numbers, some, scheme["bits"], chosen)

    def _draw_form(
        self, i: int, form: str, numbers: Numbers, some: list[Outcome], bits: int, chosen: str
    ) -> None:
        span = (numbers.values.low, numbers.values.high)
        errors = [_errors(numbers, one) for one in some]
        self.tables[i].set_rows(COLUMNS, [system_rows(some, errors, chosen, span)])
        self.texts[i].text = systems_sentence(
            facts(form, bits, numbers, some, [whole for whole, _ in errors])
        )
        names = [short(one.convention).partition(",")[0] for one in some]
        levels = [
            np.array([]) if q is None else q.levels(0, 0).double().numpy()
            for q in (one.quantized for one in some)
        ]
        at = next((k for k, one in enumerate(some) if one.convention == chosen), -1)
        said = [
            f"{name}, {number(each[0], 3)} to {number(each[-1], 3)}"
            for name, each in zip(names, levels, strict=True) if len(each)
        ]  # fmt: skip
        self.charts[i].set_figures(
            levels_of_systems(names, levels, at, span),
            f"{len(names)} rows of levels, over numbers from {number(span[0])} to "
            f"{number(span[1])}: {'; '.join(said)}",
        )


def _errors(numbers: Numbers, one: Outcome) -> tuple[float, float]:
    """Of the whole range and of the best part, as shares of the squared numbers."""
    if one.whole is None or one.best is None:
        return np.nan, np.nan
    return numbers.values.share(one.whole.total), numbers.values.share(one.best.total)


def facts(
    form: str, bits: int, numbers: Numbers, some: list[Outcome], errors: list[float]
) -> Systems:
    """The numbers behind the sentence about one form."""
    known = [(error, one.convention) for error, one in zip(errors, some, strict=True)
             if one.quantized is not None]  # fmt: skip
    least, most = (min(known), max(known)) if known else ((0.0, ""), (0.0, ""))
    return Systems(
        form=form, bits=bits, n=numbers.n, noun=numbers.noun, systems=len(some),
        rules=rules(symmetric=form == FORMS[0]), refusing=len(some) - len(known),
        results=len(same_results(some)), least=least[0], least_by=least[1],
        most=most[0], most_by=most[1],
    )  # fmt: skip
