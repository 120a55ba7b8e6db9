"""What the granularity lesson says of equal bits: who wins within a budget, and by how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qviz.study.granularity import NF4_BLOCKS, Point
from qviz.ui.views.granularity_words import one_scale
from qviz.ui.widgets import number, percent

OF_WEIGHTS, OF_OUTPUT = "weights", "layer output"


@dataclass(frozen=True)
class Standing:
    """One granularity's best within a budget.

    size   of its groups or blocks, None where there are none
    error  by which it is judged; scales: bits per weight beside the codes
    """

    label: str
    size: int | None
    bits: int
    cost: float
    error: float

    @property
    def scales(self) -> float:
        return self.cost - self.bits


@dataclass(frozen=True)
class Budgeted:
    """A budget, and what it affords, the closest first.

    finest  the smallest group, whose scales cost most; None where it cannot be afforded
    ahead   the cheapest point beyond the budget that is closer than the winner
    """

    budget: float
    what: str
    standings: tuple[Standing, ...]
    finest: str
    ahead: Standing | None


def standing(point: Point, error: float) -> Standing:
    return Standing(point.label, point.size, point.bits, point.cost, error)


def _spent(one: Standing) -> str:
    if one.label == NF4_BLOCKS:
        return f"NF4 codes with one scale for each flat block of {one.size}"
    return f"{one.bits}-bit codes with {one_scale(one.label)}"


def budget_sentence(facts: Budgeted) -> str:
    """Who wins at this budget, what the smallest group achieves, and what a few more bits buy."""
    if not facts.standings:
        return f"Nothing here fits into {number(facts.budget)} bits per weight."
    best = facts.standings[0]
    text = (
        f"Within {number(facts.budget)} bits per weight, {_spent(best)} come closest: the "
        f"{facts.what} {'is' if facts.what == OF_OUTPUT else 'are'} off by {percent(best.error)}, "
        f"for {number(best.cost)} bits."
    )
    small = next((one for one in facts.standings if one.label == facts.finest), None)
    if small is None:
        text += f" One scale for each {facts.finest} does not fit into this budget."
    elif small is best:
        text += f" Scales take {number(small.scales, 3)} of these bits, and here that pays off."
    else:
        text += (
            f" The {facts.finest} loses: scales take {number(small.scales, 3)} of its "
            f"{number(small.cost)} bits, which leaves {small.bits}-bit codes, off by "
            f"{percent(small.error)}, {_times(small.error, best.error)} as much."
        )
    if facts.ahead is not None:
        more = facts.ahead
        text += (
            f" With {number(more.cost - facts.budget, 2)} bits more, {_spent(more)} are off by "
            f"{percent(more.error)}."
        )
    return text


def _times(error: float, best: float) -> str:
    return f"{number(error / best, 3)}×" if best else "∞×"


def budget_rows(
    facts: Budgeted, labels: Sequence[str]
) -> list[tuple[str, list[str], list[int], str]]:
    """Every granularity's best within the budget, in the order of `labels`."""
    best = facts.standings[0] if facts.standings else None
    known = {one.label: one for one in facts.standings}
    rows: list[tuple[str, list[str], list[int], str]] = []
    for label in labels:
        one = known.get(label)
        if one is None or best is None:
            rows.append((label, ["–"] * 5, [], "wait"))
            continue
        rows.append(
            (
                label,
                [
                    str(one.bits),
                    number(one.scales, 3),
                    number(one.cost),
                    percent(one.error),
                    _times(one.error, best.error),
                ],
                [3, 4] if one is best else [],
                "now" if one is best else "",
            )
        )
    return rows


def tally(wins: Mapping[str, float], finest: str) -> str:
    """Which share of the budgets each granularity wins, and how the smallest group fares."""
    said = ", ".join(f"{percent(share)} {label}" for label, share in wins.items())
    text = f"Closest, as a share of all budgets: {said}."
    share = wins.get(finest, 0.0)
    if share == 0:
        return f"{text} The {finest} never wins."
    winner = next(iter(wins))
    if winner == finest:
        return f"{text} The {finest} wins most often."
    often = "far less often" if share < wins[winner] / 2 else "less often"
    return f"{text} The {finest} wins {often} than the {winner}."
