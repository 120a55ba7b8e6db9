"""AWQ a step at a time: channels kept, one channel scaled, candidates searched, groups clipped.

Everything is `qviz.methods.awq` itself: what it tells through its events, and its own result for
factors that are given to it. Only the paper's two motivating experiments are made here, from the
same rounding: channels kept in 16 bits (section 3.1) and one channel scaled (section 3.2).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from qviz.core.granularity import Granularity
from qviz.core.grids import Affine
from qviz.core.metrics import output_energy, ratio
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Trace
from qviz.core.transform import InputScale
from qviz.methods.affine import affine
from qviz.methods.awq import CLIP_GRID, CLIP_STEPS, GRIDS, awq, is_clipped, search
from qviz.study.awq_case import Case

BY_INPUTS, BY_WEIGHTS, AT_RANDOM = "largest inputs", "largest weights", "at random"
FRACTIONS = tuple(1 - k / CLIP_GRID for k in range(CLIP_STEPS))


# ------------------------------------------------------------------------- channels kept


@dataclass(frozen=True, eq=False)
class Keeping:
    """The output error when some channels stay as they are and the others are rounded.

    orders  how channels are chosen → [in] channels, the first kept first
    errors  how → float64 [in + 1], the error after so many are kept; "at random" is the root mean
            square over all ways to choose so many
    sizes   how → [in] what the channels are ordered by
    """

    orders: Mapping[str, torch.Tensor]
    errors: Mapping[str, torch.Tensor]
    sizes: Mapping[str, torch.Tensor]


def keeping(case: Case) -> Keeping:
    """All of it at once: with M = EᵀE ∘ H, of E = Ŵ − W, the squared error of the channels in a
    set R that are rounded is the sum of M over R × R."""
    lost = case.nearest.dequantize() - case.weight
    h = case.calibration.hessian
    m = (lost.to(h).T @ lost.to(h)).mul_(h)  # [in, in]
    whole = output_energy(case.weight, case.calibration)
    sizes = {
        BY_INPUTS: case.calibration.act_absmean,
        BY_WEIGHTS: case.weight.abs().mean(0),
    }
    orders = {how: size.argsort(descending=True, stable=True) for how, size in sizes.items()}
    energies = {how: _suffixes(m, order) for how, order in orders.items()}
    energies[AT_RANDOM] = _at_random(m)
    errors = {
        how: (e.clamp(min=0) / whole if whole else torch.zeros_like(e)).sqrt()
        for how, e in energies.items()
    }
    return Keeping(orders, errors, sizes)


def _suffixes(m: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """[in + 1] sums of m over what is left after the first k of `order`, for each k."""
    p = m[order][:, order]
    own = p.diagonal().double() + 2 * p.triu(1).sum(1, dtype=torch.float64)
    left = own.flip(0).cumsum(0).flip(0)
    return torch.cat([left, left.new_zeros(1)])


def _at_random(m: torch.Tensor) -> torch.Tensor:
    """The mean of such sums over all choices of k channels."""
    n = len(m)
    alone = m.diagonal().sum(dtype=torch.float64)
    pairs = m.sum(dtype=torch.float64) - alone
    left = n - torch.arange(n + 1, dtype=torch.float64)
    both = left * (left - 1) / (n * (n - 1)) if n > 1 else torch.zeros_like(left)
    return alone * left / n + pairs * both


# ------------------------------------------------------------------------- one channel scaled


@dataclass(frozen=True, eq=False)
class Scaled:
    """A group of columns, rounded with one of its channels multiplied by a factor.

    factor    s of the channel
    tensor    of the group's columns [rows, size], scaled
    back      [rows, size] as they come back, divided by s again
    widened   share of the rows in which the spacing Δ grew; narrowed: in which it shrank
    growth    mean Δ′/Δ over the rows
    channel, others, group  by how much the output is off through this channel's errors alone,
              through those of the others in the group, and through the whole group's
    output    the layer's output error with this group in place of the old one
    """

    factor: float
    tensor: QuantizedTensor
    back: torch.Tensor
    widened: float
    narrowed: float
    growth: float
    channel: float
    others: float
    group: float
    output: float


def one_channel(case: Case, channel: int, factors: Sequence[float]) -> list[Scaled]:
    """The channel's group at each factor; the first factor is 1, as it was."""
    first = channel // case.size * case.size
    part = slice(first, first + case.size)
    columns, at = case.weight[:, part], channel - first
    h = case.calibration.hessian[part, part]
    whole = output_energy(case.weight, case.calibration)
    layer = case.nearest.dequantize()
    base: torch.Tensor | None = None  # the spacings at s = 1
    made: list[Scaled] = []
    for factor in factors:
        s = torch.ones(case.size)
        s[at] = factor
        options = {"bits": case.bits, "symmetric": False, "group_size": None}
        q = affine(columns * s, **options, convention="awq")  # type: ignore[arg-type]
        back = q.dequantize() / s
        lost = back - columns
        assert isinstance(q.grid, Affine)
        spacing = q.grid.scale[:, 0].double()
        base = spacing if base is None else base
        alone, rest = lost.clone(), lost.clone()
        alone[:, torch.arange(case.size) != at] = 0
        rest[:, at] = 0
        layer[:, part] = back
        made.append(
            Scaled(
                factor=float(factor),
                tensor=q,
                back=back,
                widened=float((spacing > base).double().mean()),
                narrowed=float((spacing < base).double().mean()),
                growth=float((spacing / base).mean()),
                channel=_off(alone, h, whole),
                others=_off(rest, h, whole),
                group=_off(lost, h, whole),
                output=case.error(layer),
            )
        )
    return made


def _off(lost: torch.Tensor, h: torch.Tensor, whole: float) -> float:
    """√(tr(E·H·Eᵀ) over the whole output's)."""
    energy = float(((lost.to(h) @ h).double() * lost.double()).sum())
    return math.sqrt(ratio(max(energy, 0.0), whole))


# ------------------------------------------------------------------------- the search


@dataclass(frozen=True, eq=False)
class Candidate:
    """One try of the search.

    ratio, duo  r, and whether the weights' sizes enter
    scale       [in] its factors
    loss        the mean squared error that the search compares, as `awq` tells it
    error       the same as a share of the output of all linears of this input
    """

    ratio: float
    duo: bool
    scale: torch.Tensor
    loss: float
    error: float

    @property
    def spread(self) -> float:
        """The largest factor over the smallest."""
        return float(self.scale.max() / self.scale.min())


class Search:
    """A search for factors, as `awq.search` makes it: candidates in its order, and the best."""

    def __init__(self, case: Case, grid: str) -> None:
        self.case, self.grid = case, grid
        trace = Trace("awq.candidate")
        found = search(
            list(case.weights.values()), case.calibration, **case.options, grid=grid, emit=trace
        )
        outputs = sum(len(w) for w in case.weights.values())
        power = case.energy / 2 / outputs  # the mean squared output
        self.best = found.best
        self.candidates = [
            Candidate(r, duo, event["scale"], float(event["loss"]),
                      ratio(float(event["loss"]), power) ** 0.5)
            for (r, duo), event in zip(GRIDS[grid].candidates, trace, strict=True)
        ]  # fmt: skip
        self._tensors: dict[int, QuantizedTensor] = {}

    @property
    def chosen(self) -> Candidate:
        return self.candidates[self.best]

    def best_so_far(self, k: int) -> int:
        """Which of the first k + 1 candidates the search would take."""
        losses = [one.loss for one in self.candidates[: k + 1]]
        return losses.index(min(losses))

    def tensor(self, k: int) -> QuantizedTensor:
        """The layer with the factors of candidate k: `awq`'s own result for them, not clipped."""
        if k not in self._tensors:
            transform = InputScale(self.candidates[k].scale)
            self._tensors[k] = awq(
                self.case.weight, self.case.calibration, **self.case.options,
                transform=transform, clip=False,
            )  # fmt: skip
        return self._tensors[k]

    def judged(self, k: int) -> float:
        """The error on the judge's inputs with candidate k, of all linears of this input."""
        case, scale = self.case, self.candidates[k].scale
        backs = {
            name: self.tensor(k).dequantize() if name == case.name else self._round(w, scale)
            for name, w in case.weights.items()
        }
        return self._judge(backs)

    @cached_property
    def judged_all(self) -> list[float]:
        return [self.judged(k) for k in range(len(self.candidates))]

    @cached_property
    def judged_nearest(self) -> float:
        """The same of rounding to nearest."""
        options = {**self.case.options, "convention": "awq"}
        weights = self.case.weights
        return self._judge({name: affine(w, **options).dequantize() for name, w in weights.items()})

    def _round(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """A linear of this input, as `awq` gives it back with these factors."""
        case = self.case
        given = {**case.options, "transform": InputScale(scale), "clip": False}
        return awq(weight, case.calibration, **given).dequantize()

    def _judge(self, backs: Mapping[str, torch.Tensor]) -> float:
        case = self.case
        lost = sum(output_energy(back - case.weights[n], case.judge) for n, back in backs.items())
        return math.sqrt(ratio(lost, case.judged_energy))


# ------------------------------------------------------------------------- the clip search


class Clip:
    """The clip search after some factors, as `awq` makes it.

    scaled           [out, in] the weight that is clipped, W·diag(s)
    errors           [10, out, groups] each group's own error at each limit
    step, limit      [out, groups] which limit was taken, and the largest |w| that remains
    before, after    the layer without and with clipping
    """

    def __init__(self, case: Case, scale: torch.Tensor) -> None:
        self.case = case
        transform = InputScale(scale)
        given = {**case.options, "transform": transform}
        trace = Trace("awq.scaled", "awq.clip")
        self.after = awq(case.weight, case.calibration, **given, clip=True, emit=trace)
        self.before = awq(case.weight, case.calibration, **given, clip=False)
        self.scaled = trace[0]["weight"]
        event = trace[1]
        self.errors, self.step, self.limit = event["errors"], event["step"], event["limit"]
        self._transform = transform

    @cached_property
    def counts(self) -> list[int]:
        """How many groups took each limit."""
        return torch.bincount(self.step.flatten(), minlength=CLIP_STEPS).tolist()

    @cached_property
    def together(self) -> list[float]:
        """The layer's output error when every group takes the same limit, for each of the ten."""
        return [self.case.error(self._cut(k)) for k in range(CLIP_STEPS)]

    @cached_property
    def error_before(self) -> float:
        return self.case.error(self.before.dequantize())

    @cached_property
    def error_after(self) -> float:
        return self.case.error(self.after.dequantize())

    @cached_property
    def promised(self) -> float:
        """√ of the sum of all groups' own errors after clipping over that before: what the search
        believes it has gained, because it judges each group as if the others made no error."""
        best = self.errors.gather(0, self.step.unsqueeze(0)).double().sum()
        return math.sqrt(ratio(float(best), float(self.errors[0].double().sum())))

    @property
    def usual(self) -> bool:
        """Whether the paper's code clips a layer of this name."""
        return is_clipped(self.case.name)

    def group(self, row: int, group: int, k: int) -> tuple[torch.Tensor, QuantizedTensor]:
        """(weights of a group, scaled and cut to limit k [size]; the same rounded, [1, size])."""
        w = self.scaled[row, group * self.case.size : (group + 1) * self.case.size]
        limit = w.abs().max() * FRACTIONS[k]
        cut = w.clamp(-limit, limit)
        q = affine(
            cut.unsqueeze(0), bits=self.case.bits, symmetric=False, group_size=None,
            convention="awq",
        )  # fmt: skip
        return cut, q

    def _cut(self, k: int) -> torch.Tensor:
        unit = Granularity.of("group", self.case.group_size)
        groups = unit.split(self.scaled)
        limit = groups.abs().amax(-1, keepdim=True) * FRACTIONS[k]
        shape = (self.scaled.shape[0], self.scaled.shape[1])
        cut = unit.join(groups.clamp(-limit, limit), shape)
        q = affine(cut, **self.case.options, convention="awq")
        return self._transform.undo(q.dequantize())
