"""What ten systems do with the same numbers: rows of their table, and the sentence above it."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from qviz.core.grids import Affine
from qviz.study.clipping import Outcome, same_results
from qviz.ui.views.scale_and_zero_point_words import times
from qviz.ui.views.spacing import SYSTEMS, spacing
from qviz.ui.widgets import counted, number, percent

COLUMNS = [
    "spacing s",
    "codes",
    "code of 0",
    "clipped",
    "error",
    "result",
    "best range",
    "error at best",
]
SystemRow = tuple[str, list[str], list[int], str]


def system_rows(
    outcomes: Sequence[Outcome],
    errors: Sequence[tuple[float, float]],
    chosen: str,
    span: tuple[float, float],
) -> list[SystemRow]:
    """One row for each of `outcomes`, of one form: (system, cells, lit cells, role).

    errors   of the whole range and of the best part, as shares of the squared numbers
    chosen   the convention that the page uses
    span     the smallest and the largest number
    """
    letters = {
        one.convention: ascii_uppercase[i]
        for i, members in enumerate(same_results(outcomes))
        for one in members
    }
    known = [whole for whole, _ in errors if whole == whole]
    rows: list[SystemRow] = []
    for one, (whole, best) in zip(outcomes, errors, strict=True):
        role = "now" if one.convention == chosen else ""
        name = short(one.convention)
        if one.quantized is None or one.whole is None:
            rows.append((name, ["no rule for such numbers", *[""] * 7], [], role))
            continue
        grid = one.quantized.grid
        assert isinstance(grid, Affine)
        zero = grid.zero_point
        zero_code = (
            "none" if grid.offset is not None else number(0 if zero is None else float(zero[0, 0]))
        )
        cells = [
            spacing(one.convention, one.symmetric, grid.bits, *span, float(grid.scale[0, 0])),
            f"{number(grid.qmin)} … {grid.qmax}", zero_code,
            str(one.whole.clipped), percent(whole), letters[one.convention],
            f"{100 * (one.kept or 0):.0f} %", percent(best),
        ]  # fmt: skip
        rows.append((name, cells, [4] if whole == min(known) else [], role))
    return rows


@dataclass(frozen=True)
class Systems:
    """How the systems of one form quantize the same numbers.

    systems  how many have such a form, rules how many rules they have between them, refusing how
             many have none for these numbers, results how many different results the others give
    least    the smallest error and the largest, as shares of the squared numbers, with who has them
    """

    form: str
    bits: int
    n: int
    noun: str
    systems: int
    rules: int
    refusing: int
    results: int
    least: float
    least_by: str
    most: float
    most_by: str


def systems_sentence(found: Systems) -> str:
    """How many meanings “4-bit symmetric” has, on these numbers."""
    f = found
    text = f"“{f.bits}-bit {f.form}” means {f.rules} different rules in {f.systems} systems. "
    if f.refusing == f.systems:
        return f"{text}None of them has a rule for such {f.noun}s."
    text += f"On these {counted(f.n, f.noun)} they give {counted(f.results, 'different result')}"
    if f.refusing:
        text += f", and {f.refusing} {'has' if f.refusing == 1 else 'have'} no rule for them"
    if f.results == 1:
        return f"{text}, with an error of {percent(f.least)}."
    if f.least == f.most:
        return f"{text}, all with an error of {percent(f.least)}."
    text += (
        f", with errors from {percent(f.least)} ({short(f.least_by)}) to {percent(f.most)} "
        f"({short(f.most_by)})"
    )
    return f"{text}, {times(f.most / f.least)} as much." if f.least else f"{text}."


def short(convention: str) -> str:
    """The name under which people know a system.

    >>> short("compressed_tensors")
    'LLM Compressor, vLLM'
    """
    return SYSTEMS[convention][0]
