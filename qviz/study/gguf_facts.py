"""The numbers behind each sentence about a block of a GGUF type, as frozen values."""

import math
from dataclasses import dataclass

import torch

from qviz.methods.gguf.kquants import KQUANTS
from qviz.study.gguf_walk import Moment, Walk


def off(x: torch.Tensor, values: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    """√(Σ w(x − x̂)² / Σ wx²) in float64; 0 for 0/0."""
    w = torch.ones_like(x) if weights is None else weights
    noise = float((w.double() * (values.double() - x.double()).square()).sum())
    signal = float((w.double() * x.double().square()).sum())
    return math.sqrt(noise / signal) if signal else (0.0 if not noise else math.inf)


@dataclass(frozen=True)
class Sizes:
    """A type: sub-blocks of a block, weights of one, bytes of the block, bits of a code, bits per
    weight; `levels` is the largest integer of a scale, 0 where scales have one level only."""

    type: str
    groups: int
    size: int
    nbytes: int
    code_bits: int
    bits: float
    levels: int
    scale_bits: int

    @property
    def weights(self) -> int:
        return self.groups * self.size


def sizes_of(walk: Walk) -> Sizes:
    layout, kind = walk.layout, KQUANTS.get(walk.type)
    two = kind is not None
    return Sizes(
        walk.type, walk.groups, walk.x.shape[1], layout.nbytes, layout.bits,
        8 * layout.nbytes / layout.weights, kind.levels if kind is not None else 0,
        layout.width("scales") if two else 0,
    )  # fmt: skip


@dataclass(frozen=True)
class WeighFacts:
    """How much errors count in a sub-block: the most and the least, and the weights they are of."""

    importance: bool
    most: float
    least: float
    most_x: float
    least_x: float


@dataclass(frozen=True)
class TryFacts:
    """One try of a sub-block: `number` of `count` (0: the plain one); its error beside the best
    until then and the plain one's. `changed` codes are not those of the best until then."""

    number: int
    count: int
    tried: float | None
    plain_tried: float | None
    scale: float
    minimum: float
    error: float
    best: float
    plain: float
    kept: bool
    changed: int
    power: int


@dataclass(frozen=True)
class FoundFacts:
    """The end of a search: which try is kept, its error beside the plain one's; off: of the whole
    block, before and after the search."""

    number: int
    count: int
    tried: float | None
    error: float
    plain: float
    changed: int
    off_plain: float
    off: float


@dataclass(frozen=True)
class LevelFacts:
    """Scales become integers: d and the scale of a sub-block before and after; off before and
    after. `minimum` None where the type has none."""

    d: float
    scale: float
    integer: int
    stored: float
    dmin: float
    minimum: float | None
    min_integer: int
    off_before: float
    off: float
    searched: int
    smallest: int
    largest: int


@dataclass(frozen=True)
class PassFacts:
    """The second pass: codes of the block that change; off before and after it."""

    changed: int
    off_before: float
    off: float


@dataclass(frozen=True)
class BytesFacts:
    """A member of the struct: its first and last byte, and (part, bits in all) of what it holds."""

    section: str
    first: int
    last: int
    holds: tuple[tuple[str, int], ...]


def weigh_facts(walk: Walk, group: int) -> WeighFacts:
    assert walk.weights is not None
    w, x = walk.weights[group], walk.x[group]
    high, low = int(w.argmax()), int(w.argmin())
    return WeighFacts(walk.importance, float(w[high]), float(w[low]), float(x[high]), float(x[low]))


def try_facts(walk: Walk, moment: Moment, group: int) -> TryFacts:
    k = moment.fit
    fit, plain = walk.fits[k], walk.fits[0]
    before = walk.fits[walk.best(group, k - 1)] if k else plain
    return TryFacts(
        k, len(walk.fits) - 1, fit.tried, plain.tried, float(fit.scale[group]),
        float(fit.minimum[group]), float(fit.error[group]), float(before.error[group]),
        float(plain.error[group]), bool(fit.accepted[group]),
        int((fit.codes[group] != before.codes[group]).sum()), walk.power,
    )  # fmt: skip


def found_facts(walk: Walk, group: int) -> FoundFacts:
    best, plain = walk.best(group), walk.fits[0]
    fit = walk.fits[best]
    return FoundFacts(
        best, len(walk.fits) - 1, fit.tried, float(fit.error[group]), float(plain.error[group]),
        int((fit.codes[group] != plain.codes[group]).sum()), off(walk.x, plain.values),
        off(walk.x, walk.kept()[1]),
    )  # fmt: skip


def level_facts(walk: Walk, group: int) -> LevelFacts:
    assert walk.first is not None and walk.second is not None
    (scales, mins), (d, dmin, ks, ls) = walk.first, walk.second
    has_minimum = "mins" in walk.parts
    return LevelFacts(
        d, float(scales[group]), int(ks[group]), d * int(ks[group]), dmin,
        float(mins[group]) if has_minimum else None, int(ls[group]),
        off(walk.x, walk.kept()[1]), off(walk.x, walk.decoded(walk.chosen)),
        walk.level_tries, int(ks.abs().min()), int(ks.abs().max()),
    )  # fmt: skip


def pass_facts(walk: Walk) -> PassFacts:
    return PassFacts(
        int((walk.codes != walk.chosen.long()).sum()), off(walk.x, walk.decoded(walk.chosen)),
        off(walk.x, walk.back),
    )  # fmt: skip


def bytes_facts(walk: Walk, name: str) -> BytesFacts:
    start = 0
    for section in walk.layout.sections:
        if section.name == name:
            held: dict[str, int] = {}
            for piece in section.pieces:
                held[piece.part] = held.get(piece.part, 0) + piece.count * piece.bits
            return BytesFacts(name, start, start + section.size - 1,
                              tuple(held.items()) or ((name, 16),))  # fmt: skip
        start += section.size
    raise KeyError(name)


@dataclass(frozen=True)
class ZooFacts:
    """What went wrong in a second walk, beside the first: how far off both are, and the signs.

    farther       weights that lie nearer to another level of their sub-block than to their own
    same_codes    both have the same codes, each as often
    zero_scales, small_scales
                  integer scales of 0, and of at most a tenth of the largest
    rest, rest_true
                  off without the weight that is the largest of the second walk
    factor        by how much that weight is larger than in the first
    """

    off: float
    off_true: float
    weights: int
    farther: int
    same_codes: bool
    zero_scales: int
    small_scales: int
    groups: int
    rest: float
    rest_true: float
    factor: float


def zoo_facts(true: Walk, other: Walk) -> ZooFacts:
    ks = None if other.second is None else other.second[2].abs()
    rest = without_largest(other.x)
    at = int(other.x.abs().argmax())
    before = float(true.x.flatten()[at])
    return ZooFacts(
        off(other.x, other.back), off(true.x, true.back), other.x.numel(), _farther(other),
        _same_codes(true, other), 0 if ks is None else int((ks == 0).sum()),
        0 if ks is None else int((10 * ks <= int(ks.max())).sum()), other.groups,
        off(other.x, other.back, rest), off(true.x, true.back, rest),
        float(other.x.flatten()[at]) / before if before else 1.0,
    )  # fmt: skip


def without_largest(x: torch.Tensor) -> torch.Tensor:
    """1 for each weight but the largest in size, which is 0."""
    rest = torch.ones_like(x)
    rest.view(-1)[int(x.abs().argmax())] = 0
    return rest


def _farther(walk: Walk) -> int:
    """Weights for which another level of their sub-block is nearer."""
    x = walk.x.double()
    nearest = (walk.stored_levels()[:, None, :] - x[:, :, None]).abs().amin(2)
    mine = (walk.back.double() - x).abs()
    return int((mine > nearest * (1 + 1e-6) + 1e-12).sum())


def _same_codes(true: Walk, other: Walk) -> bool:
    return bool(torch.equal(true.codes.flatten().sort()[0], other.codes.flatten().sort()[0]))
