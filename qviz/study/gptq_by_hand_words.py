"""GPTQ by hand in words: one or two sentences for each stage, made from its facts and
directions."""

from collections.abc import Callable, Mapping

from qviz.core.words import counted, number, signed
from qviz.study.gptq_by_hand import ByHand, Moment

DIGITS = 10  # decimals; float64 rounding noise beyond them is dropped, so that 0.4 reads as 0.4


def sentence(walk: ByHand, moment: Moment) -> str:
    """What happens at this moment of the walk, with its numbers.

    >>> from qviz.study.gptq_by_hand import by_hand
    >>> walk = by_hand()
    >>> print(sentence(walk, walk.moments[3]))
    Column 0: w = −2.6, so w/s = −2.6. It is rounded down to code −3, which stands for ŵ = −3, and
    w − ŵ = 0.4.
    """
    return _SAYS[moment.kind](walk, moment)


def _n(value: float) -> str:
    return number(round(value, DIGITS))


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(_n(value) for value in values)


def _inputs(walk: ByHand, moment: Moment) -> str:
    facts = moment.facts
    first, second = int(facts["first"]), int(facts["second"])
    together = {
        "up": f"inputs {first} and {second} are large in the same tokens, with the same sign",
        "down": f"inputs {first} and {second} are large in the same tokens, with opposite signs",
        "same": "no two inputs are correlated",
    }[moment.directions["together"]]
    return (
        f"{counted(int(facts['tokens']), 'token')} with {len(walk.weights)} inputs each. H is the "
        f"mean of 2·x·xᵀ over them. H_{{{first}{second}}} = {_n(facts['shared'])}: {together}."
    )


def _factor(walk: ByHand, moment: Moment) -> str:
    return (
        f"U is the upper triangle with H⁻¹ = UᵀU. Row j of it says how the columns after j can "
        f"compensate for an error in column j. Its diagonal, "
        f"{_list(tuple(row[j] for j, row in enumerate(walk.factor)))}, divides the errors."
    )


def _levels(walk: ByHand, moment: Moment) -> str:
    facts = moment.facts
    top = int(facts["top"])
    return (
        f"The largest magnitude is {_n(facts['largest'])}, and {walk.bits} bits give the levels "
        f"{_n(-top)} to {top} times s. So s = {_n(facts['largest'])} / {top} = "
        f"{_n(facts['scale'])}. Rounding each weight to its nearest level would give "
        f"{_list(walk.nearest.weights)}."
    )


def _round(walk: ByHand, moment: Moment) -> str:
    facts, step = moment.facts, moment.step
    w = f"w = {_n(facts['w'])}"
    text = f"Column {step}: {w}, so w/s = {_n(facts['position'])}"
    if facts["clipped"]:
        text += f". That lies beyond the last level, so it becomes ŵ = {_n(facts['value'])}"
    elif moment.directions["rounded"] == "same":
        text += f". That is already a level, ŵ = {_n(facts['value'])}"
    else:
        text += (
            f". It is rounded {moment.directions['rounded']} to code {_n(facts['code'])}, which "
            f"stands for ŵ = {_n(facts['value'])}"
        )
    text += f", and w − ŵ = {_n(facts['lost'])}."
    if moment.directions["beside_nearest"] != "same":
        text += f" Without compensation it would have become {_n(facts['nearest'])}."
    return text


def _divide(walk: ByHand, moment: Moment) -> str:
    facts, j = moment.facts, moment.step
    lost, e = _n(facts["lost"]), _n(facts["e"])
    power = f"({e})²" if facts["e"] < 0 else f"{e}²"
    return (
        f"e = {lost} / U_{{{j}{j}}} = {lost} / {_n(facts['diagonal'])} = {e}. Once the later "
        f"columns have moved, this step adds {power}/2 = {_n(facts['cost'])} to the mean squared "
        "output error."
    )


def _compensate(walk: ByHand, moment: Moment) -> str:
    facts, j = moment.facts, moment.step
    assert j is not None
    if not facts["left"]:
        return (
            f"No column is left to compensate. The mean squared output error stays at "
            f"{_n(facts['output_error'])}, the sum of all e²/2."
        )
    if all(moment.directions[f"move_{k}"] == "same" for k in range(j + 1, len(walk.weights))):
        return f"Nothing moves. The mean squared output error stays at {_n(facts['output_error'])}."
    moves = [
        f"column {k} by −({_n(facts['e'])})·({_n(facts[f'U_{k}'])}) = "
        f"{signed(round(facts[f'move_{k}'], DIGITS))} to {_n(facts[f'to_{k}'])}"
        for k in range(j + 1, len(walk.weights))
    ]
    return (
        f"Each later column moves by −e·U_{{{j}k}}: {'; '.join(moves)}. That "
        f"{_brings(moment.directions['output_error'])} the mean squared output error "
        f"{_from_to(facts['unpaid'], facts['output_error'])}: the sum of e²/2 so far."
    )


def _brings(direction: str) -> str:
    return {"smaller": "lowers", "same": "leaves", "larger": "raises"}[direction]


def _from_to(before: float, after: float) -> str:
    if _n(before) == _n(after):
        return f"at {_n(after)}"
    return f"from {_n(before)} to {_n(after)}"


def _end(walk: ByHand, moment: Moment) -> str:
    facts, is_ = moment.facts, moment.directions
    if is_["codes"] == "same":
        opening = (
            f"GPTQ and rounding to nearest both give {_list(walk.gptq.weights)}, with a mean "
            f"squared output error of {_n(facts['output_error'])}."
        )
    else:
        opening = (
            f"GPTQ gives {_list(walk.gptq.weights)}, rounding to nearest "
            f"{_list(walk.nearest.weights)}. {_weights(facts, is_['weight_error'])} "
            f"{_outputs(facts, is_['output_error'])} {_token(facts)}"
        )
    best = (
        f"None of the {_n(facts['combinations'])} combinations of levels has a smaller output "
        f"error."
        if is_["beside_best"] == "same"
        else f"The best of all {_n(facts['combinations'])} combinations of levels, "
        f"{_list(walk.best.weights)}, has an output error of "
        f"{_n(facts['best_output_error'])}. One pass over the columns does not always find "
        "it."
    )
    if (is_["weight_error"], is_["output_error"]) == ("larger", "smaller"):
        best += " The next layer only sees the outputs, never the weights."
    return f"{opening} {best}"


def _token(facts: Mapping[str, float]) -> str:
    """The token on which rounding to nearest has the largest error."""
    return (
        f"On token {int(facts['token'])} rounding to nearest is off by "
        f"{_n(abs(facts['nearest_miss']))} and GPTQ by {_n(abs(facts['miss']))}."
    )


def _weights(facts: Mapping[str, float], way: str) -> str:
    where = {"larger": "further from", "same": "as far from", "smaller": "nearer to"}[way]
    return (
        f"GPTQ's weights are {where} the original ones: Σ(w − ŵ)² is "
        f"{_beside(facts['weight_error'], facts['nearest_weight_error'], way)}."
    )


def _outputs(facts: Mapping[str, float], way: str) -> str:
    where = {"larger": "further off", "same": "as far off", "smaller": "nearer"}[way]
    return (
        f"Its outputs are {where}: their mean squared error is "
        f"{_beside(facts['output_error'], facts['nearest_output_error'], way)}."
    )


def _beside(one: float, other: float, way: str) -> str:
    if way == "same":
        return _n(one)
    return f"{_n(one)}, {'up' if way == 'larger' else 'down'} from {_n(other)}"


_SAYS: dict[str, Callable[[ByHand, Moment], str]] = {
    "inputs": _inputs,
    "factor": _factor,
    "levels": _levels,
    "round": _round,
    "divide": _divide,
    "compensate": _compensate,
    "end": _end,
}
