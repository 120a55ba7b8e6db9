"""The diagnosis: which known mistakes reproduce what the learner's function returned.

It is never a guess. Every mistake is a small change of one plain loop (`variants`). `Bench.follow`
runs them all beside the learner's result, and those that give the same are named
(`known_mistakes`).
"""

from dataclasses import dataclass

import torch

from qviz.core.agreement import Agreement
from qviz.exercises.known_mistakes import EXPLANATIONS, candidates
from qviz.exercises.variants import Bench, Seen, Variant

ROWS = 64  # rows in which mistakes are tried
MISSES = 0.1  # share of the rows that may differ from a mistake that is still named


@dataclass(frozen=True)
class Mistake:
    """A known mistake that reproduces what the learner's function returned.

    name         a key of `EXPLANATIONS`
    explanation  what happens, and what to change
    details      what was varied, where the mistake has several forms (conventions, block sizes)
    agreement    of the mistake's run with the learner's, in the rows that were tried; None where
                 it gives no codes but an error
    """

    name: str
    explanation: str
    details: tuple[str, ...]
    agreement: Agreement | None

    def __str__(self) -> str:
        more = f" ({', '.join(self.details)})" if self.details else ""
        return f"{self.name.replace('_', ' ')}{more}: {self.explanation}"


def named(name: str, found: Agreement | None = None, details: tuple[str, ...] = ()) -> Mistake:
    """The mistake of this name."""
    return Mistake(name, EXPLANATIONS[name], details, found)


def diagnose(bench: Bench, seen: Seen, affected: torch.Tensor) -> tuple[Mistake, ...]:
    """The known mistakes that reproduce what was seen, where the true run does not.

    affected  [out] bool: rows in which the true run does not
    A mistake is named if it differs from what was seen in at most one in ten of the rows tried
    (those affected and some others), and in at most one in ten of those affected.
    """
    bad = _spread(affected.nonzero().flatten(), ROWS * 3 // 4)
    good = _spread((~affected).nonzero().flatten(), ROWS - len(bad))
    if len(bad) == 0:
        return ()
    rows = torch.cat([bad, good])
    mistakes: dict[str, Mistake] = {}
    kept: list[tuple[Variant, Agreement]] = []
    for v in candidates(bench, seen.values is not None):
        found = bench.follow(v, seen, rows, MISSES)
        if found is None:
            continue
        missed = sum(d.row < len(bad) for d in found.unexplained)
        if missed <= MISSES * len(bad):
            kept.append((v, found))
    for v, found in _closest(bench, kept, seen):
        before = mistakes[v.name].details if v.name in mistakes else ()
        details = (*before, v.detail) if v.detail else before
        mistakes[v.name] = named(v.name, found, details)
    return tuple(mistakes.values())


def _closest(
    bench: Bench, kept: list[tuple[Variant, Agreement]], seen: Seen
) -> list[tuple[Variant, Agreement]]:
    """Among those that explain what was seen: the ones that leave the fewest rows unexplained and,
    if that decides, those whose factor is the emitted one."""
    fewest = min((len(found.unexplained) for _, found in kept), default=0)
    kept = [(v, found) for v, found in kept if len(found.unexplained) == fewest]
    if seen.factor is None or len(kept) < 2:
        return kept
    alike = [pair for pair in kept if _is_factor(bench.factor(pair[0]), seen.factor)]
    return alike or kept


def _is_factor(ours: torch.Tensor | None, theirs: torch.Tensor) -> bool:
    if ours is None or ours.shape != theirs.shape:
        return False
    return float((ours - theirs).norm()) <= 1e-2 * float(ours.norm())


def _spread(indices: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` of the indices, evenly spread."""
    if len(indices) <= count:
        return indices
    return indices[torch.arange(count, device=indices.device) * len(indices) // count]
