"""Vector quantization: a few neighbouring weights share one code into a learned table.

The weight is cut into short vectors; k-means finds a codebook of typical ones, and each vector is
replaced by the number of its nearest entry. Cells in several dimensions can be rounder and follow
the weights' density better than the boxes of scalar levels, so the same bits give a smaller error.
With several books, one entry of each is added up, as in AQLM: found greedily at first, each book on
the residual of the others, then all of them in turn.

Papers: Lloyd 1982; Linde, Buzo & Gray 1980 (vectors); Arthur & Vassilvitskii 2007 (k-means++);
Babenko & Lempitsky 2014 and Egiazarian et al. 2024 (AQLM, arXiv 2401.06118; additive books). AQLM
fits its books to the layer's output by gradient steps; here they are fitted to the weight by least
squares, which can be followed step by step.

Symbols: s scale of a row, x vectors [n, d] of W / s, h how much an error in each of their values
counts, C books [books, entries, d], codes [n, books], x̂ = s·Σ_b C_b[code_b].
Loss: Σ h·(x − Σ_b C_b[code_b])² / Σ h·x², the part of the energy that is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from qviz.core.check import FLOAT_DTYPES, as_matrix, require_bits, require_int, unknown
from qviz.core.granularity import Granularity
from qviz.core.grids import VectorCodebook
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.registry import Method

# What happens to an entry that no vector is nearest to.
BITS = range(1, 13)
EMPTY = {
    "farthest": "it becomes the vector with the largest error (scikit-learn)",
    "keep": "it stays where it is (SciPy)",
}
# Distances computed at once. They stay in the processor's cache, and the whole table, which would
# be a gigabyte for a million vectors and 256 entries, never exists.
CHUNK = {"cpu": 2**18, "cuda": 2**26}
SAMPLE = 2**16  # k-means++ looks at so many vectors; each entry is one pass over them

EVENTS = (
    EventSpec(
        "vector.start",
        {"vectors": "[out, in/d, d] the weight over its scales", "scale": "[out, 1] s, as stored"},
        "s = root mean square of the row; x = W / s, cut into vectors of d",
        "Egiazarian et al. 2024, section 3",
    ),
    EventSpec(
        "vector.book",
        {"books": "[books, entries, d] with the start of one more book; later ones are zero"},
        "an entry is a vector, drawn with probability ∝ its error with the entries so far",
        "Arthur & Vassilvitskii 2007, section 2.2",
    ),
    EventSpec(
        "vector.assign",
        {"codes": "[out, in/d, books] nearest entries", "loss": "[] with these codes"},
        "code = argmin_k Σ h·(r − C_k)², r the residual of the other books; a beam over several "
        "books",
        "Lloyd 1982; Egiazarian et al. 2024, section 3.1 (beam search)",
    ),
    EventSpec(
        "vector.update",
        {
            "books": "[books, entries, d] moved entries",
            "loss": "[] with these books",
            "moved": "[] empty entries that got a vector of their own",
        },
        "C_k = Σ h·r / Σ h over the vectors with code k",
        "Lloyd 1982; Linde, Buzo & Gray 1980",
    ),
    EventSpec(
        "vector.codes",
        {
            "codes": "[out, in/d, books] final codes",
            "books": "[books, entries, d] as stored",
            "loss": "[] with both",
        },
        "x̂ = s·Σ_b C_b[code_b]",
        "Egiazarian et al. 2024, section 3",
    ),
)


def vector(
    weight: torch.Tensor | np.ndarray,
    *,
    bits: int = 8,
    dim: int = 4,
    books: int = 1,
    iters: int = 25,
    beam: int = 4,
    row_scale: bool = True,
    importance: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
    seed: int = 0,
    empty: str = "farthest",
    store_dtype: torch.dtype | None = torch.float16,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Quantize vectors of `dim` weights of a row with learned tables of 2^bits entries.

    weight       [out, in]; float32, bfloat16, float16 (computed in float32) or float64
    bits         width of one code, 1 to 12; the codes cost bits·books/dim per weight
    dim          weights in a vector, 1 to 16; 1 gives the best scalar levels (Lloyd–Max)
    books        tables whose entries are added, 1 to 4
    iters        the maximum number of rounds of assignment and update, for each book and then for
                 all
    beam         how many combinations the search over several books follows; 2^bits with two books
                 tries them all
    row_scale    divide each row by its root mean square first; its error then counts by s²
    importance   [in] not negative: how much an error in each input channel counts, such as
                 calibration.hessian.diagonal(); None: all the same
    start        [books, entries, dim] to start from instead of k-means++, for W / s
    seed         of the draws of k-means++
    empty        the rule for an entry without vectors, one of `EMPTY`
    store_dtype  dtype of books and scales as stored; the last assignment is made with what is
                 stored. None: the dtype of the search

    Returns codes [out, in/dim, books] (uint8, int16 from 9 bits on) on a VectorCodebook; the books
    are on the ledger. The loss never rises within a stage (one book's, or all books'). `info` has
    the loss after each round of each stage, which stages ended because no code changed any more,
    the empty entries that were moved, and the entries of each book that nothing uses.
    Raises ValueError for NaN or Inf, a dim that does not divide the row, fewer vectors than
    entries, and scales or entries that `store_dtype` cannot hold.

    >>> q = vector(torch.randn(256, 256), dim=4, bits=8)
    >>> q.codes.shape, q.ledger.per_weight("codes"), q.ledger.per_weight("codebooks")
    (torch.Size([256, 64, 1]), 2.0, 0.25)
    """
    weight = as_matrix(weight)
    _require_options(weight, bits, dim, books, iters, beam, seed, empty, store_dtype)
    shape = (weight.shape[0], weight.shape[1])
    compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
    stored = store_dtype or compute

    w = weight.to(compute)
    scale = _row_scale(w, stored) if row_scale else w.new_ones(shape[0], 1)  # [out, 1]
    x = (w / scale).reshape(-1, dim)  # [n, dim]
    h = _emphasis(scale, importance, shape, dim) if row_scale or importance is not None else None
    problem = Problem.of(x, h, empty)
    cut = (shape[0], shape[1] // dim)
    if emit is not None:
        emit("vector.start", vectors=x.reshape(*cut, dim), scale=scale)

    search = _Alternation(problem, books, 2**bits, cut, emit)
    search.run(_given(start, search.table), iters, beam, seed)

    table = _stored(search.table, stored, "codebook entry")
    # Rounding the entries may have brought another one nearer.
    found, errors = problem.assign(table.to(compute), search.codes, range(books), beam)
    codes = found.reshape(*cut, books).to(torch.uint8 if bits <= 8 else torch.int16)
    loss = problem.loss(errors)
    if emit is not None:
        emit("vector.codes", codes=codes, books=table, loss=loss)

    used = [len(torch.unique(book)) for book in found.T]
    info = {
        "method": "vector",
        "device": str(weight.device),
        "compute": str(compute).removeprefix("torch."),
        "loss": float(loss),
        "losses": search.losses,
        "converged": search.converged,
        "moved": search.moved,
        "unused": [2**bits - count for count in used],
    }
    grid = VectorCodebook(table, bits, scale.to(stored) if row_scale else None, compute)
    unit = Granularity("channel" if row_scale else "tensor")
    return QuantizedTensor(codes, grid, unit, shape, info=info)


def _require_options(
    weight: torch.Tensor,
    bits: int,
    dim: int,
    books: int,
    iters: int,
    beam: int,
    seed: int,
    empty: str,
    store_dtype: torch.dtype | None,
) -> None:
    require_bits(bits, BITS)
    require_int(dim, "dim", 1, 16)
    require_int(books, "books", 1, 4)
    require_int(iters, "iters", 1, 10_000)
    require_int(beam, "beam", 1, 2**12)
    require_int(seed, "seed", 0, 2**63 - 1)
    if empty not in EMPTY:
        raise ValueError(unknown("rule for empty entries", empty, EMPTY))
    if store_dtype is not None and store_dtype not in FLOAT_DTYPES:
        names = ", ".join(map(str, FLOAT_DTYPES))
        raise TypeError(f"store_dtype must be None or one of {names}; got {store_dtype!r}")
    columns = weight.shape[1]
    if columns % dim:
        fits = [str(d) for d in range(1, 17) if columns % d == 0]
        raise ValueError(
            f"dim {dim} does not divide the {columns} columns of this weight; these do: "
            f"{', '.join(fits)}"
        )
    count = weight.numel() // dim
    if count < 2**bits:
        raise ValueError(
            f"{count} vectors are fewer than the {2**bits} entries of a codebook: use fewer bits "
            f"(at most {count.bit_length() - 1}), a smaller dim, or a larger weight"
        )


def _row_scale(w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The root mean square of each row [out, 1], rounded to `dtype`; 1 for a row of zeros."""
    largest = w.abs().amax(1, keepdim=True)
    largest = torch.where(largest == 0, 1.0, largest)
    # divided by the largest first, or the squares of large weights would overflow
    scale = (w / largest).square().mean(1, keepdim=True).sqrt() * largest
    scale = torch.where(scale == 0, 1.0, scale)
    return _stored(scale, dtype, "row scale").to(w.dtype)


def _stored(x: torch.Tensor, dtype: torch.dtype, what: str) -> torch.Tensor:
    """`x` in the dtype it is stored in. ValueError if that is infinite, or 0 for all or any row."""
    y = x.to(dtype)
    lost = (y == 0) & (x != 0)
    if not torch.isfinite(y).all() or (lost.any() and (what == "row scale" or not y.any())):
        worst = float(x.abs().amax()) if not torch.isfinite(y).all() else float(x.abs().amin())
        raise ValueError(
            f"a {what} of {worst:g} cannot be stored in {str(dtype).removeprefix('torch.')}: use "
            f"store_dtype=torch.float32, or row_scale=True if it is off"
        )
    return y


def _emphasis(
    scale: torch.Tensor, importance: torch.Tensor | None, shape: tuple[int, int], dim: int
) -> torch.Tensor:
    """h, how much an error in x counts: [n, 1], or [n, dim] where inputs differ."""
    rows = (scale / scale.amax()).square()  # an error of x is one of s times that in W
    if importance is None:
        return rows.repeat_interleave(shape[1] // dim, dim=0)
    given = torch.as_tensor(importance).detach().to(scale)
    if given.shape != (shape[1],) or not torch.isfinite(given).all() or not (given >= 0).all():
        raise ValueError(
            f"importance must be [{shape[1]}] finite numbers that are not negative, one for each "
            f"column; got shape {tuple(given.shape)}"
        )
    if not given.any():
        raise ValueError("importance is 0 for every column: nothing would be fitted")
    return (rows * (given / given.amax())).reshape(-1, dim)


def _given(start: torch.Tensor | None, table: torch.Tensor) -> torch.Tensor | None:
    """The start asked for, like `table`."""
    if start is None:
        return None
    given = torch.as_tensor(start).detach().to(table)
    if given.shape != table.shape or not torch.isfinite(given).all():
        raise ValueError(
            f"start must be finite and [books, entries, dim] = {list(table.shape)}, got shape "
            f"{list(given.shape)}"
        )
    return given


@dataclass(frozen=True)
class Problem:
    """Vectors to be coded, the weights of their errors, and the two moves of the alternation.

    x [n, d]; h [n, d], [n, 1] or None (all 1); energy [] float64 is Σ h·x². Codes are [n, books]
    int64, a table is [books, entries, d]; `free` are the books that a move may change. Neither
    move raises the loss.
    """

    x: torch.Tensor
    h: torch.Tensor | None
    energy: torch.Tensor
    empty: str

    @classmethod
    def of(cls, x: torch.Tensor, h: torch.Tensor | None, empty: str) -> "Problem":
        """ValueError if the squares of x leave the range of its dtype."""
        squares = x.square()
        energy = (squares if h is None else squares * h).sum(dtype=torch.float64)
        if not torch.isfinite(energy) or (h is None and energy == 0 and x.any()):
            raise ValueError(
                f"the squares of these weights leave the range of {x.dtype}: use row_scale=True, "
                f"or weights in float64"
            )
        return cls(x, h, torch.where(energy == 0, 1.0, energy), empty)

    def _weighted(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.h is None else x * self.h

    def rest(self, table: torch.Tensor, codes: torch.Tensor, book: int | None) -> torch.Tensor:
        """The residual of x [n, d] after all books but one (None: all)."""
        rest = self.x
        for i, entries in enumerate(table):
            if i != book:
                rest = rest - entries[codes[:, i]]
        return rest

    def errors(self, table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Σ h·(x − x̂)² of each vector [n]."""
        return self._weighted(self.rest(table, codes, None).square()).sum(1)

    def loss(self, errors: torch.Tensor) -> torch.Tensor:
        """The part of the energy [] float64 that is lost."""
        return errors.sum(dtype=torch.float64) / self.energy

    def assign(
        self, table: torch.Tensor, codes: torch.Tensor, free: Sequence[int], beam: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The nearest entries of the free books, and the errors [n] with them.

        A code changes only if that is nearer by the plain formula: near a tie the expanded square
        of the search is off by rounding, and codes would change for ever.
        """
        size = CHUNK.get(self.x.device.type, CHUNK["cuda"])
        widest = 1 if len(free) == 1 else beam
        rows = max(1, size // (table.shape[1] * widest))
        found = codes.clone()
        for i in range(0, len(codes), rows):
            part = slice(i, i + rows)
            h = None if self.h is None else self.h[part]
            found[part] = _beam_search(self.x[part], h, table, codes[part], free, beam)
        before, after = self.errors(table, codes), self.errors(table, found)
        nearer = after < before
        return torch.where(nearer[:, None], found, codes), torch.where(nearer, after, before)

    def update(
        self, table: torch.Tensor, codes: torch.Tensor, free: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Entries moved to the mean of the residuals they stand for, one book after the other.

        Returns the table, the codes (changed where an empty entry got a vector) and how many did.
        """
        table, codes, moved = table.clone(), codes.clone(), 0
        for book in free:
            count = torch.bincount(codes[:, book], minlength=table.shape[1])
            if self.empty == "farthest" and not count.all():
                gone = (count == 0).nonzero().flatten()
                worst = self.errors(table, codes).topk(len(gone))
                far = worst.indices[worst.values > 0]
                codes[far, book] = gone[: len(far)]
                moved += len(far)
            rest = self.rest(table, codes, book)
            total = self._sums(codes[:, book], self._weighted(rest), table.shape[1])
            ones = torch.ones_like(rest[:, :1]) if self.h is None else self.h
            mass = self._sums(codes[:, book], ones, table.shape[1])
            table[book] = torch.where(mass > 0, total / mass, table[book].double()).to(table)
        return table, codes, moved

    def _sums(self, codes: torch.Tensor, values: torch.Tensor, entries: int) -> torch.Tensor:
        """Sums [entries, columns] float64 of the rows of values with each code."""
        # in float64, because thousands of vectors share an entry
        columns = [torch.bincount(codes, v.double(), minlength=entries) for v in values.T]
        return torch.stack(columns, dim=1)


def _beam_search(
    x: torch.Tensor,
    h: torch.Tensor | None,
    table: torch.Tensor,
    codes: torch.Tensor,
    free: Sequence[int],
    beam: int,
) -> torch.Tensor:
    """The best codes [m, books] that a beam finds, changing the free books in turn.

    After each book the `beam` best combinations so far are kept, after the last one the best. They
    differ in the books already changed, so that none is kept twice.
    """
    m, entries = len(x), table.shape[1]
    kept = codes[:, None]  # [m, kept, books]
    for book in free:
        rest = x[:, None]  # [m, kept, d]
        for i in range(len(table)):
            if i != book:
                rest = rest - table[i][kept[..., i]]
        costs = _costs(rest, None if h is None else h[:, None], table[book]).reshape(m, -1)
        if book == free[-1]:
            best = costs.min(1, keepdim=True).indices  # far faster than argmin, and than topk
        else:
            best = costs.topk(min(beam, costs.shape[1]), largest=False).indices
        chosen = best // entries
        kept = kept.gather(1, chosen[..., None].expand(-1, -1, len(table))).clone()
        kept[..., book] = best % entries
    return kept[:, 0]


def _costs(rest: torch.Tensor, h: torch.Tensor | None, entries: torch.Tensor) -> torch.Tensor:
    """Σ h·(rest − entry)² [m, kept, entries], up to what all of a vector's costs share.

    As a matrix product, of values around the book's mean: far from zero the expanded square would
    leave nothing of the differences.
    """
    centre = entries.mean(0)
    rest, entries = rest - centre, entries - centre
    flat = rest.reshape(-1, rest.shape[-1])
    if h is None or h.shape[-1] == 1:  # a factor of the whole vector changes no comparison
        h = torch.ones_like(rest[:1, :1])
        costs = torch.addmm(entries.square().sum(1), flat, entries.T, alpha=-2)
    else:
        each = h.expand(rest.shape).reshape(flat.shape)
        costs = (each @ entries.square().T).addmm_(each * flat, entries.T, alpha=-2)
    costs = costs.reshape(*rest.shape[:2], -1)
    if rest.shape[1] > 1:  # what a vector's combinations leave differs, and so do their costs
        costs += (h * rest.square()).sum(-1, keepdim=True)
    return costs


def _plus_plus(
    rest: torch.Tensor, h: torch.Tensor | None, entries: int, generator: torch.Generator
) -> torch.Tensor:
    """Entries [entries, d] drawn from the vectors, far ones more often (k-means++)."""
    draws = torch.rand(entries, generator=generator, dtype=torch.float64).to(rest.device)
    size = max(SAMPLE, entries)
    if len(rest) > size:
        some = torch.randperm(len(rest), generator=generator)[:size].to(rest.device)
        rest, h = rest[some], None if h is None else h[some]
    table = torch.empty_like(rest[:entries])
    table[0] = rest[(draws[0] * len(rest)).long()]
    error = rest.new_full((len(rest),), torch.inf)
    for k in range(1, entries):
        squares = (rest - table[k - 1]).square()
        error = torch.minimum(error, (squares if h is None else squares * h).sum(1))
        total = error.cumsum(0, dtype=torch.float64)
        # right: a vector that is an entry already has no width in the sum and is never hit. If all
        # are, the last one is repeated, and stays without vectors.
        index = torch.searchsorted(total, draws[k] * total[-1], right=True)
        table[k] = rest[index.clamp(max=len(rest) - 1)]
    return table


class _Alternation:
    """The state of the alternation: the table, the codes, and how it went.

    losses     [stages][rounds] after each update
    converged  [stages] whether a stage ended because no code changed any more
    moved      empty entries that got a vector
    """

    def __init__(
        self, problem: Problem, books: int, entries: int, cut: tuple[int, int], emit: Emit | None
    ) -> None:
        x = problem.x
        self.problem, self.cut, self.emit = problem, cut, emit
        self.table = x.new_zeros(books, entries, x.shape[1])
        self.codes = torch.zeros(len(x), books, dtype=torch.int64, device=x.device)
        self.losses: list[list[float]] = []
        self.converged: list[bool] = []
        self.moved = 0

    def run(self, given: torch.Tensor | None, iters: int, beam: int, seed: int) -> None:
        """One book after the other on the residual of those before, then all of them in turn."""
        books, entries, _ = self.table.shape
        generator = torch.Generator().manual_seed(seed)
        for book in range(books):
            if given is None:
                rest = self.problem.rest(self.table, self.codes, None)
                self.table[book] = _plus_plus(rest, self.problem.h, entries, generator)
            else:
                self.table[book] = given[book]
            if self.emit is not None:
                self.emit("vector.book", books=self.table)
            self._stage([book], iters, beam)
        if books > 1:
            self._stage(range(books), iters, beam)

    def _stage(self, free: Sequence[int], iters: int, beam: int) -> None:
        losses, converged = [], False
        for turn in range(iters):
            before = self.codes
            self.codes, errors = self.problem.assign(self.table, before, free, beam)
            loss = self.problem.loss(errors)
            if self.emit is not None:
                codes = self.codes.reshape(*self.cut, -1)
                self.emit("vector.assign", codes=codes, loss=loss)
            # Whether a code changed decides on going on: a wait for the device, once in a round.
            converged = turn > 0 and torch.equal(before, self.codes)
            if converged:
                break
            self.table, self.codes, moved = self.problem.update(self.table, self.codes, free)
            loss = self.problem.loss(self.problem.errors(self.table, self.codes))
            if self.emit is not None:
                at = torch.tensor(moved)
                self.emit("vector.update", books=self.table, loss=loss, moved=at)
            losses.append(loss)
            self.moved += moved
        self.losses.append(torch.stack(losses).tolist())
        self.converged.append(converged)


METHOD = Method(
    name="vector",
    kind="weight",
    function=vector,
    needs=frozenset(),
    title="Learned tables of short vectors (k-means; added up, as in AQLM)",
    source="Lloyd 1982; Linde, Buzo & Gray 1980; Egiazarian et al. 2024 (AQLM, arXiv 2401.06118)",
    events=EVENTS,
    bits=BITS,
    choices={"empty": tuple(EMPTY)},
    origins={
        "bits": "AQLM's 2×8 and 8-bit books: a table of 256 entries",
        "dim": "qviz: 2 bits per weight with one book (AQLM: 8, with two)",
        "books": "qviz: plain k-means first (AQLM: 1 of 16 bits or 2 of 8)",
        "iters": "qviz: later rounds gain little",
        "beam": "qviz (AQLM's script: 1)",
        "row_scale": "AQLM: a scale for each output unit",
        "importance": "qviz: k-means alone (SqueezeLLM and AQLM weigh by calibration)",
        "start": "k-means++",
        "seed": "qviz",
        "empty": "scikit-learn",
        "store_dtype": "AQLM",
    },
)
