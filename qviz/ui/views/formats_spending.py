"""Where a format spends its codes: the table, the one fact to remember, the prediction."""

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
    """A count with its thousands set apart.

    >>> grouped(65279)
    '65\u202f279'
    """
    return f"{n:,}".replace(",", "\u202f")


def where_spent(name: str, revealed: bool) -> str:
    """The one fact to remember about a format."""
    title, count = TITLES[name], finite_numbers(name)
    inside = (
        f" {percent(within_one(name))} of them lie in the range from −1 to 1." if revealed else ""
    )
    if name == "nf4":
        return (
            f"{title}: {count} levels. They are close together around 0, where most weights of a "
            f"block lie, and far apart at the ends.{inside}"
        )
    f = FORMATS[name]
    if f.is_integer:
        return (
            f"{title}: {count} equally spaced numbers. The absolute error is the same "
            f"everywhere, so a scale has to move them to where the weights are.{inside}"
        )
    each, last = count_between(name, 1.0, 2.0), count_between(name, 2.0**f.emax, math.inf)
    fewer = "" if last == each else f" (the last one {grouped(last)})"
    return (
        f"{title}: {grouped(count)} numbers. Each of the {f.emax - f.emin + 1} doublings from "
        f"{number(f.min_normal)} on gets {grouped(each)} of them{fewer}. So the spacing grows "
        f"with the number, and the relative error does not.{inside}"
    )


def verdict(guess: int) -> str:
    """The prediction against the count."""
    title, share = TITLES[ASKED], within_one(ASKED)
    inside = count_between(ASKED, -1.0, math.nextafter(1.0, 2.0))
    right = min(ANSWERS, key=lambda answer: abs(ANSWERS[answer] - share))
    text = (
        f"{grouped(inside)} of {title}'s {grouped(finite_numbers(ASKED))} numbers, "
        f"{percent(share)}, lie there. For INT8 it is {percent(within_one('int8'))}."
    )
    if list(ANSWERS)[guess] == right:
        return f"Right: {text} Which bits decide that, and why does FP8 differ so little from FP16?"
    return f"{text} Look at the exponents: how many are below 0, and how many above?"
