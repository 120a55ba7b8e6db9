"""Agreement: whether two runs of one algorithm gave the same codes, except at ties.

An algorithm that rounds one column after another and lets each rounding change the next (GPTQ)
cannot be repeated bit for bit if sums run in another order. A weight that lies within rounding
error of the midpoint between two levels may go either way, and then everything after it in its row
differs, rightly. So only the first difference in each row counts. It is explained if the weight was
that close to the midpoint between the two codes.
"""

from dataclasses import dataclass

import torch

TIE = 1e-3  # spacings: a weight this close to the midpoint of two levels is at a tie
LOSS = 1e-3  # relative: two losses that differ by less count as equal


@dataclass(frozen=True)
class Difference:
    """Where two runs first differ in one row.

    step       of the algorithm at which they differ, and `column` the weight's column there
    ours, theirs   the two codes
    position   where the weight lay, in codes, before our run rounded it
    distance   from the midpoint between the two codes, in spacings; infinite if they are not
               adjacent
    explained  whether this is a tie
    """

    row: int
    step: int
    column: int
    ours: int
    theirs: int
    position: float
    distance: float
    explained: bool

    def __str__(self) -> str:
        return (
            f"row {self.row}, column {self.column} (step {self.step}): {self.ours} beside "
            f"{self.theirs}, the weight lay at {self.position:.6f}, {self.distance:.2g} spacings "
            "from the tie"
        )


@dataclass(frozen=True)
class Agreement:
    """What a comparison of two runs found.

    rows         how many were compared
    compared     codes up to and including the first difference of each row; later ones are not
                 counted
    differences  the first of each row that has one, in the order of rows
    excess_loss  ours / theirs − 1; None if no losses were given
    """

    rows: int
    compared: int
    differences: tuple[Difference, ...]
    excess_loss: float | None

    @property
    def unexplained(self) -> tuple[Difference, ...]:
        """The differences that are not ties, earliest step first: this is where to look for the
        mistake."""
        found = [d for d in self.differences if not d.explained]
        return tuple(sorted(found, key=lambda d: (d.step, d.row)))

    @property
    def holds(self) -> bool:
        """Whether every difference is a tie and, if there is none, the losses agree within 0.1 %.

        A tie that goes the other way changes its row's loss, for better as often as for worse: at 2
        bits one row of 256 has been seen to change the sum by 0.9 %.
        """
        if self.differences:
            return not self.unexplained
        return self.excess_loss is None or abs(self.excess_loss) <= LOSS

    def __str__(self) -> str:
        loss = "" if self.excess_loss is None else f", loss {self.excess_loss:+.3%}"
        text = (
            f"{self.rows - len(self.differences)} of {self.rows} rows equal, "
            f"{len(self.differences) - len(self.unexplained)} differ at a tie, "
            f"{len(self.unexplained)} elsewhere{loss}"
        )
        return f"{text}; first: {self.unexplained[0]}" if self.unexplained else text


def agreement(
    ours: torch.Tensor,
    theirs: torch.Tensor,
    position: torch.Tensor,
    *,
    perm: torch.Tensor | None = None,
    losses: tuple[float, float] | None = None,
    tolerance: float = TIE,
) -> Agreement:
    """Compare the codes [rows, columns] of two runs by the first difference in each row.

    position   [rows, columns] where each weight lay in our run before it was rounded, in codes:
               the code is the nearest integer, within its limits
    perm       [columns] the column that each step rounded; None: from left to right
    losses     (ours, theirs)
    tolerance  how far from the midpoint between two codes a weight may lie and still be a tie

    ValueError when the shapes differ.

    >>> run = record(weight, calibration, bits=4)
    >>> print(agreement(run.result.codes, theirs, run.positions()))
    """
    if not ours.shape == theirs.shape == position.shape or ours.ndim != 2:
        raise ValueError(
            f"codes and positions must be matrices of one shape, got {tuple(ours.shape)}, "
            f"{tuple(theirs.shape)} and {tuple(position.shape)}"
        )
    order = torch.arange(ours.shape[1], device=ours.device) if perm is None else perm
    a, b, at = ours[:, order].int(), theirs[:, order].int(), position[:, order].double()
    differs = a != b
    rows = differs.any(1).nonzero().flatten()
    steps = differs[rows].int().argmax(1)  # the first of several maxima
    a, b, at = a[rows, steps], b[rows, steps], at[rows, steps]
    distance = (at - (a + b) * 0.5).abs()
    distance[(a - b).abs() != 1] = torch.inf
    columns = order[steps]
    found = tuple(
        Difference(
            row=int(rows[i]),
            step=int(steps[i]),
            column=int(columns[i]),
            ours=int(a[i]),
            theirs=int(b[i]),
            position=float(at[i]),
            distance=float(distance[i]),
            explained=bool(distance[i] <= tolerance),
        )
        for i in range(len(rows))
    )
    return Agreement(
        rows=len(ours),
        compared=differs.numel() - int((differs.shape[1] - 1 - steps).sum()),
        differences=found,
        excess_loss=None if losses is None else _excess(*losses),
    )


def _excess(ours: float, theirs: float) -> float:
    if theirs == 0:
        return 0.0 if ours == 0 else float("inf")
    return ours / theirs - 1
