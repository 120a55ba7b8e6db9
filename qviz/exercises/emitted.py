"""What a learner's function emitted, compared with the same tensors of the true run.

The first wrong quantity says more than the first wrong code: a Hessian without damping, a factor
that is not U, a scale, a live column, an error. Quantities are compared in the order in which GPTQ
computes them, and rows only while their codes agree.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from qviz.core.agreement import TIE
from qviz.core.grids import Affine
from qviz.core.trace import Event, Trace
from qviz.exercises.learner import Levelled, Listener, read_codes
from qviz.methods.gptq_record import Recording

EXACT = 1e-3  # floats that differ by less, in spacings or as a share, count as equal
WORDS = {
    "hessian": "the damped Hessian",
    "perm": "the order of the columns",
    "hinv_chol": "the factor U",
    "scale": "the scale",
    "zero": "the zero point",
    "column": "the column that is rounded",
    "live": "the live column",
    "codes": "code",
    "value": "value",
    "error": "the error e_j",
    "hinv_row": "row j of U",
}


@dataclass(frozen=True)
class Divergence:
    """Where a learner's run first differs from the true one.

    step      of the algorithm; None: before the first
    column    of the weight; None where no column is concerned
    row       of the weight; None where all rows are concerned
    quantity  a key of `WORDS`
    expected, got   the two numbers (codes are counted as the learner counts them)
    distance  of the true position from the midpoint between the two codes, in spacings; None where
              the quantity is not a code
    at        position in the emitted tensor, for matrices
    """

    step: int | None
    column: int | None
    row: int | None
    quantity: str
    expected: float
    got: float
    distance: float | None = None
    at: tuple[int, ...] = ()

    def __str__(self) -> str:
        place = "before the first column" if self.step is None else f"at column {self.column}"
        if self.step is not None and self.step != self.column:
            place += f" (step {self.step})"
        row = "" if self.row is None else f", row {self.row}"
        at = f" at [{', '.join(map(str, self.at))}]" if self.at else ""
        numbers = f"expected {self.expected:.6g}, got {self.got:.6g}"
        return f"{place}{row}: {WORDS[self.quantity]}{at}, {numbers}"


@dataclass(frozen=True, eq=False)
class Truth:
    """The true run, with all that the learner may have emitted.

    hessian  [in, in] damped, in the order of the steps
    groups   the true run's events, by number of the group
    live    [out, in] in the weight's order of columns
    """

    recording: Recording
    levelled: Levelled
    hessian: torch.Tensor
    groups: Mapping[int, Event]
    live: torch.Tensor
    position: torch.Tensor
    upfront: bool
    group_size: int

    @property
    def perm(self) -> torch.Tensor:
        return self.recording.perm

    def zero_tie(self, group: int) -> torch.Tensor:
        """[out] bool: rows whose zero point in this group was itself rounded at a tie."""
        event, grid = self.groups[group], self.recording.result.grid
        assert isinstance(grid, Affine)
        zero = grid.zero_point
        if zero is None or zero.is_floating_point() or self.recording.result.info["symmetric"]:
            return torch.zeros(len(self.live), dtype=torch.bool, device=self.live.device)
        weights = event["weights"].double()
        lo = weights.amin(1).clamp(max=0)
        lo = torch.where((weights == 0).all(1), -1.0, lo)  # levels of a group of zeros: of −1…1
        position = lo / event["scale"].double()
        return (position - position.floor() - 0.5).abs() <= TIE


@dataclass(frozen=True, eq=False)
class Slack:
    """How much float32 may change, where H is close to singular.

    factor  [in] how far a row of U may be off (2-norm)
    live    [in] how far the live weights of each step may be off, in spacings
    """

    factor: torch.Tensor
    live: torch.Tensor


def first_wrong(
    listener: Listener, truth: Truth, parted: torch.Tensor, offset: int, slack: Slack
) -> tuple[Divergence | None, list[str]]:
    """The earliest emitted quantity that is not the true one, and notes.

    parted  [out] the step at which the codes of each row first differ from the true run's (in if
            never)
    offset  the number to add to the learner's codes
    """
    notes = [*listener.strange.values(), *_misshapen(listener, truth)]
    scale, said = _scale_of(listener.trace, truth)
    notes += said
    fixed = _before(listener.trace, truth, scale, slack)
    later = [*_groups(listener.trace, truth, parted, offset),
             *_columns(listener.columns(), truth, parted, scale, slack)]  # fmt: skip
    found = next(fixed, None)
    if found is None and later:
        found = min(later, key=lambda pair: pair[0])[1]
    return found, notes


def _misshapen(listener: Listener, truth: Truth) -> Iterator[str]:
    """What cannot be compared because its shape is wrong or its step does not exist."""
    n, rows = len(truth.perm), len(truth.live)
    wanted = {("gptq.hessian", "hessian"): (n, n), ("gptq.hessian", "perm"): (n,),
              ("gptq.cholesky", "hinv_chol"): (n, n), ("gptq.group", "scale"): (rows,),
              ("gptq.group", "zero"): (rows,), ("gptq.column", "codes"): (rows,),
              ("gptq.column", "live"): (rows,), ("gptq.column", "value"): (rows,),
              ("gptq.column", "error"): (rows,)}  # fmt: skip
    for (event, name), shape in wanted.items():
        given = [e[name] for e in listener.trace.named(event) if name in e.tensors]
        odd = [x for x in given if x.shape != shape and (len(shape) > 1 or x.numel() != shape[0])]
        if odd:
            yield f"{event} emits {name} of shape {tuple(odd[0].shape)}, expected {shape}"
    outside = [step for step in listener.columns() if not 0 <= step < n]
    if outside:
        yield f"gptq.column was emitted for step {outside[0]}: steps are 0…{n - 1}"


def _scale_of(trace: Trace, truth: Truth) -> tuple[float, list[str]]:
    """The factor by which the learner's Hessian is larger: it changes no code, only U and e."""
    for event in trace.named("gptq.hessian"):
        h = event.tensors.get("hessian")
        if h is None or h.shape != truth.hessian.shape:
            continue
        ours, theirs = truth.hessian.double().triu(1), h.double().triu(1)
        power = float((ours * ours).sum())
        factor = float((ours * theirs).sum()) / power if power else 1.0
        same = float((theirs - factor * ours).norm()) <= EXACT * abs(factor) * power**0.5
        if same and factor > 0 and abs(factor - 1) > EXACT:
            return factor, [f"its Hessian is {factor:.4g} times the given one: no code changes"]
    return 1.0, []


def _before(trace: Trace, truth: Truth, scale: float, slack: Slack) -> Iterator[Divergence]:
    """What is wrong before the first column: Hessian, order, factor."""
    for event in trace.named("gptq.hessian"):
        perm = event.tensors.get("perm")
        if perm is not None and perm.shape == truth.perm.shape and bool((perm != truth.perm).any()):
            j = int((perm != truth.perm).int().argmax())
            ours, theirs = int(truth.perm[j]), int(perm[j])
            yield Divergence(None, None, None, "perm", ours, theirs, at=(j,))
        h = event.tensors.get("hessian")
        if h is not None:
            limit = EXACT * float(truth.hessian.diagonal().mean())
            allowed = torch.full((len(truth.hessian), 1), scale * limit, dtype=torch.float64)
            yield from _matrix("hessian", truth.hessian.double() * scale, h, allowed)
    for event in trace.named("gptq.cholesky"):
        u = event.tensors.get("hinv_chol")
        if u is not None:
            ours = truth.recording.hinv_chol.double() / scale**0.5
            allowed = EXACT * ours.norm(dim=1) + slack.factor / scale**0.5
            yield from _matrix("hinv_chol", ours, u, allowed.unsqueeze(1))


def _matrix(
    name: str, ours: torch.Tensor, theirs: torch.Tensor, allowed: torch.Tensor
) -> Iterator[Divergence]:
    if theirs.shape != ours.shape:
        return
    wrong = ~((ours - theirs.double()).abs() <= allowed.to(ours.device))
    if bool(wrong.any()):
        j, k = (int(i) for i in wrong.nonzero()[0])
        yield Divergence(None, None, None, name, float(ours[j, k]), float(theirs[j, k]), at=(j, k))


Key = tuple[int, int]  # step and place within the step, to sort by


def _groups(
    trace: Trace, truth: Truth, parted: torch.Tensor, offset: int
) -> Iterator[tuple[Key, Divergence]]:
    """Scales and zero points that are wrong, in rows whose codes have agreed so far."""
    for i, event in enumerate(trace.named("gptq.group")):
        number = int(event.tensors.get("group", torch.tensor(i)))
        if number not in truth.groups:
            continue
        step = -1 if truth.upfront else number * truth.group_size
        alive = parted >= step
        for rank, name in enumerate(("scale", "zero")):
            theirs = event.tensors.get(name)
            ours = truth.groups[number][name].double()
            if theirs is None or theirs.numel() != ours.numel():
                continue
            got = theirs.flatten().double()
            allowed = EXACT * ours.abs() if name == "scale" else torch.full_like(ours, 0.5)
            expected = ours if name == "scale" else ours - offset
            wrong = alive & ~((expected - got).abs() <= allowed)
            if name == "zero":
                wrong &= ~truth.zero_tie(number)
            if bool(wrong.any()):
                row = int(wrong.int().argmax())
                column = None if step < 0 else int(truth.perm[step])
                yield (
                    (step, rank),
                    Divergence(None if step < 0 else step, column, row, name,
                               float(expected[row]), float(got[row]), at=(number,)),
                )  # fmt: skip


def _columns(
    events: Mapping[int, Event],
    truth: Truth,
    parted: torch.Tensor,
    scale: float,
    slack: Slack,
) -> Iterator[tuple[Key, Divergence]]:
    """Tensors of columns that are wrong, the first of each name."""
    n, rows = len(truth.perm), len(truth.live)
    steps = {j: event for j, event in sorted(events.items()) if 0 <= j < n}
    for j, event in steps.items():
        column, true = event.tensors.get("column"), int(truth.perm[j])
        if column is not None and int(column) != true:
            yield (j, 2), Divergence(j, true, None, "column", true, int(column))
            break
    u = truth.recording.hinv_chol.double() / scale**0.5
    for rank, name in ((3, "live"), (5, "value"), (6, "error")):
        given = {j: e[name].flatten() for j, e in steps.items() if name in e.tensors}
        given = {j: x for j, x in given.items() if len(x) == rows}
        if given:
            yield from _first_column(name, rank, given, truth, parted, u, slack)
    for j, event in steps.items():
        row = event.tensors.get("hinv_row")
        if row is None or row.numel() not in (n, n - j):
            continue
        expected, got = u[j, j:], row.flatten()[-(n - j) :].double()
        limit = EXACT * expected.norm() + slack.factor[j] / scale**0.5
        wrong = ~((expected - got).abs() <= limit)
        if bool(wrong.any()):
            k = int(wrong.int().argmax())
            yield (
                (j, 7),
                Divergence(j, int(truth.perm[j]), None, "hinv_row",
                           float(expected[k]), float(got[k]), at=(k,)),
            )  # fmt: skip
            break


def _first_column(
    name: str,
    rank: int,
    given: Mapping[int, torch.Tensor],
    truth: Truth,
    parted: torch.Tensor,
    u: torch.Tensor,
    slack: Slack,
) -> Iterator[tuple[Key, Divergence]]:
    """The first step at which one tensor [out] is wrong in a row that has agreed so far."""
    at = torch.tensor(list(given), device=parted.device)
    columns = truth.perm[at]
    got = torch.stack([x.double() for x in given.values()])  # [steps, out]
    step_size = truth.levelled.scale[:, columns].T
    live, value = truth.live[:, columns].T.double(), truth.levelled.value[:, columns].T
    diagonal = u[at, at].unsqueeze(1)
    expected = {"live": live, "value": value, "error": (live - value) / diagonal}[name]
    unit = step_size / diagonal if name == "error" else step_size
    # A row that first differs at this very step still had the right live weight, but no longer the
    # value.
    alive = parted >= at.unsqueeze(1) if name == "live" else parted > at.unsqueeze(1)
    limit = 2 * EXACT + slack.live[at].unsqueeze(1)
    if name == "error":  # which is at most half a spacing, divided by a U_jj that may be off too
        limit = limit + (slack.factor[at] / truth.recording.hinv_chol[at, at].abs()).unsqueeze(1)
    wrong = alive & ~((expected - got).abs() <= limit * unit)
    if bool(wrong.any()):
        i = int(wrong.any(1).int().argmax())
        row = int(wrong[i].int().argmax())
        yield (
            (int(at[i]), rank),
            Divergence(int(at[i]), int(columns[i]), row, name,
                       float(expected[i, row]), float(got[i, row])),
        )  # fmt: skip


def collected(
    listener: Listener, truth: Truth
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor, int]:
    """Codes (int32) or values [out, in] as emitted, in the weight's own order of columns.

    Then which columns [in] are known, and the number added to the codes. None, None if there are
    none.
    """
    rows, n = truth.live.shape
    known = torch.zeros(n, dtype=torch.bool, device=truth.live.device)
    for name in ("codes", "value"):
        given = {j: e[name].flatten() for j, e in listener.columns().items() if name in e.tensors}
        given = {j: x for j, x in given.items() if 0 <= j < n and len(x) == rows}
        if not given:
            continue
        columns = truth.perm[torch.tensor(list(given), device=known.device)]
        known[columns] = True
        stacked = torch.stack(list(given.values()), 1)
        if name == "value":
            values = torch.full(truth.live.shape, torch.nan, dtype=torch.float64)
            values = values.to(known.device)
            values[:, columns] = stacked.double()
            return None, values, known, 0
        read, offset, _ = read_codes(stacked, truth.levelled, columns)
        codes = truth.levelled.codes.clone()
        codes[:, columns] = read
        return codes, None, known, offset
    return None, None, known, 0
