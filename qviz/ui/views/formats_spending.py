"""Where a format spends its codes: the table, the one thing to take away, the prediction."""

import math

from qviz.core.formats import FORMATS
from qviz.study.number_formats import (
    TITLES,
    count_between,
    finite_numbers,
    largest,
    smallest_positive,
    within_one,
)
from qviz.ui.widgets import number, percent

UNKNOWN = "?"
ASKED = "fp16"  # the format that the prediction is about
ANSWERS = {"about 1 in 100": 0.01, "about a tenth": 0.1, "about half": 0.5, "nearly all": 0.95}
SPENDS = ("numbers", "from −1 to 1", "from 1 to 2", "smallest above 0", "largest")


def spends_row(name: str, revealed: bool) -> list[str]:
    """How a format spends its codes: a row of the table, its second cell hidden until guessed."""
    return [
        grouped(finite_numbers(name)),
        percent(within_one(name)) if revealed else UNKNOWN,
        grouped(count_between(name, 1.0, 2.0)),
        number(smallest_positive(name)),
        number(largest(name), 5),
    ]


def grouped(n: int) -> str:
    """A count with its thousands apart.

    >>> grouped(65279)
    '65\u202f279'
    """
    return f"{n:,}".replace(",", "\u202f")


def where_spent(name: str, revealed: bool) -> str:
    """The one thing to take away, of one format."""
    title, count = TITLES[name], finite_numbers(name)
    inside = f" {percent(within_one(name))} of all lie from −1 to 1." if revealed else ""
    if name == "nf4":
        return (
            f"{title}: {count} levels, close together around 0, where most weights of a block lie, "
            f"and far apart at its ends.{inside}"
        )
    f = FORMATS[name]
    if f.is_integer:
        return (
            f"{title}: {count} numbers, equally far apart. Everywhere the same absolute error; "
            f"a scale has to put them where the weights are.{inside}"
        )
    each, last = count_between(name, 1.0, 2.0), count_between(name, 2.0**f.emax, math.inf)
    fewer = "" if last == each else f" (the last one {grouped(last)})"
    return (
        f"{title}: {grouped(count)} numbers. Each of the {f.emax - f.emin + 1} doublings from "
        f"{number(f.min_normal)} on gets {grouped(each)} of them{fewer}, so the spacing grows with "
        f"the number and the relative error does not.{inside}"
    )


def verdict(guess: int) -> str:
    """The prediction against the count."""
    title, share = TITLES[ASKED], within_one(ASKED)
    inside = count_between(ASKED, -1.0, math.nextafter(1.0, 2.0))
    right = min(ANSWERS, key=lambda answer: abs(ANSWERS[answer] - share))
    text = (
        f"{grouped(inside)} of {title}'s {grouped(finite_numbers(ASKED))} numbers, "
        f"{percent(share)}. INT8 has {percent(within_one('int8'))} of its own there."
    )
    if list(ANSWERS)[guess] == right:
        return f"Right: {text} Which bits decide that, and why does FP8 differ so little from FP16?"
    return f"{text} Look at the exponents: how many are below 0, and how many above?"
