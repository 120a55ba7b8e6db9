"""Vector quantization against k-means of scikit-learn and SciPy, and against plain enumeration."""

from collections.abc import Iterator

import numpy as np
import torch

import qviz
from exactness import Array, Tally, against, equal
from qviz.methods.vector import Problem

TOLERANCE = 1e-9  # of entries of size 1: float64 after dozens of rounds


def weight(rows: int = 32, columns: int = 256, seed: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    w[:, ::19] *= 4
    return w


def start_for(w: torch.Tensor, dim: int, bits: int, far: int = 0) -> torch.Tensor:
    """Every so manyth vector; the first `far` entries where no vector will be near."""
    x = w.reshape(-1, dim)
    start = x[:: len(x) // 2**bits][: 2**bits].clone()
    start[:far] = 100 + torch.arange(far, dtype=x.dtype)[:, None]
    return start


def compare(ours: qviz.QuantizedTensor, entries: np.ndarray, x: np.ndarray) -> Tally:
    """Entries to rounding error, in whatever order, and each vector's entry.

    A vector that is as near to one entry as to the other may have either.
    """
    mine = ours.grid.books[0].numpy()
    order, theirs = np.lexsort(mine.T), np.lexsort(entries.T)
    wrong = int((np.abs(mine[order] - entries[theirs]) > TOLERANCE).sum())
    codes = ours.codes.numpy().reshape(-1)
    distance = ((x[:, None] - entries) ** 2).sum(-1)
    chosen = ((x - mine[codes]) ** 2).sum(-1)
    missed = int((chosen > distance.min(1) + TOLERANCE).sum())
    return Tally(1, entries.size + len(x), wrong + missed)


SETTINGS = [(1, 2), (1, 4), (2, 4), (2, 6), (4, 4), (4, 8), (8, 6)]


@against(
    "scikit-learn",
    method="vector",
    what="entries within 1e-9, each vector's entry nearest, loss within 1e-12",
)
def lloyd_of_scikit_learn() -> Tally:
    from sklearn.cluster import KMeans

    tally = Tally(0, 0, 0)
    for dim, bits in SETTINGS:
        for far in (0, 1, 3):  # empty entries, moved to the farthest vectors
            for iters in (1, 30):
                w = weight()
                start = start_for(w, dim, bits, min(far, 2**bits - 1))
                x = w.reshape(-1, dim).numpy()
                theirs = KMeans(
                    2**bits, init=start.numpy(), n_init=1, max_iter=iters, tol=0, algorithm="lloyd"
                ).fit(x)
                ours = qviz.quantize(
                    w, "vector", dim=dim, bits=bits, iters=iters, row_scale=False,
                    start=start[None], store_dtype=None,
                )  # fmt: skip
                tally += compare(ours, theirs.cluster_centers_, x)
                loss = theirs.inertia_ / (x**2).sum()
                tally += Tally(0, 1, int(abs(ours.info["loss"] - loss) > 1e-12))
    return tally


@against("scikit-learn", method="vector", what="entries within 1e-9; rows count by their scale")
def weighted_lloyd() -> Tally:
    from sklearn.cluster import KMeans

    tally = Tally(0, 0, 0)
    for dim, bits in SETTINGS:
        w = weight() * torch.logspace(-2, 1, 32, dtype=torch.float64)[:, None]
        scale = w.square().mean(1, keepdim=True).sqrt()
        x = w / scale
        start = start_for(x, dim, bits)
        counts = (scale / scale.amax()).square().repeat_interleave(256 // dim, dim=0).flatten()
        theirs = KMeans(
            2**bits, init=start.numpy(), n_init=1, max_iter=9, tol=0, algorithm="lloyd"
        ).fit(x.reshape(-1, dim).numpy(), sample_weight=counts.numpy())
        ours = qviz.quantize(
            w, "vector", dim=dim, bits=bits, iters=9, start=start[None], store_dtype=None
        )
        assert ours.info["moved"] == 0, "the two weigh farthest vectors differently"
        tally += compare(ours, theirs.cluster_centers_, x.reshape(-1, dim).numpy())
    return tally


@against("scipy", method="vector", what="entries within 1e-9, each vector's entry nearest")
def lloyd_of_scipy() -> Tally:
    from scipy.cluster.vq import kmeans2

    tally = Tally(0, 0, 0)
    for dim, bits in SETTINGS:
        for far in (0, 1, 3):  # empty entries stay where they are
            for iters in (1, 30):
                w = weight(seed=2)
                start = start_for(w, dim, bits, min(far, 2**bits - 1))
                x = w.reshape(-1, dim).numpy()
                entries, _ = kmeans2(x, start.numpy(), iter=iters, minit="matrix", missing="warn")
                ours = qviz.quantize(
                    w, "vector", dim=dim, bits=bits, iters=iters, row_scale=False,
                    start=start[None], store_dtype=None, empty="keep",
                )  # fmt: skip
                tally += compare(ours, entries.reshape(-1, dim), x)
    return tally


@against("float64 brute force", method="vector", what="the best of all pairs of entries of 2 books")
def widest_beam() -> Tally:
    def all_pairs() -> Iterator[tuple[Array, Array]]:
        g = torch.Generator().manual_seed(5)
        for dim, bits in ((1, 3), (2, 4), (4, 5), (8, 4)):
            x = torch.randn(500, dim, generator=g, dtype=torch.float64)
            table = torch.randn(2, 2**bits, dim, generator=g, dtype=torch.float64)
            for h in (None, torch.rand(500, 1, generator=g, dtype=torch.float64),
                      torch.rand(500, dim, generator=g, dtype=torch.float64)):  # fmt: skip
                codes = torch.zeros(500, 2, dtype=torch.int64)
                found, _ = Problem.of(x, h, "keep").assign(table, codes, range(2), 2**bits)
                sums = (table[0][:, None] + table[1]).reshape(-1, dim)
                squares = (x[:, None] - sums).square()
                best = (squares if h is None else squares * h[:, None]).sum(-1).argmin(1)
                yield found, torch.stack([best // 2**bits, best % 2**bits], dim=1)

    return equal(all_pairs())


@against(
    "float64 least squares",
    method="vector",
    what="loss of the best books for given codes: within 1e-9 of it",
)
def books_for_given_codes() -> Tally:
    """Updates in turns, codes held, end where solving for both books at once ends."""
    wrong = compared = 0
    g = torch.Generator().manual_seed(6)
    for dim, entries in ((1, 4), (4, 16)):
        for weighted in (False, True):
            x = torch.randn(400, dim, generator=g, dtype=torch.float64)
            h = torch.rand(400, dim, generator=g, dtype=torch.float64) if weighted else None
            codes = torch.randint(entries, (400, 2), generator=g)
            problem = Problem.of(x, h, "keep")
            table = torch.zeros(2, entries, dim, dtype=torch.float64)
            for _ in range(200):
                table, _, _ = problem.update(table, codes, range(2))
            ours = float(problem.errors(table, codes).sum())
            one_hot = torch.nn.functional.one_hot(codes, entries).reshape(400, -1).double()
            best = 0.0
            for j in range(dim):
                root = torch.ones(400, 1).double() if h is None else h[:, j : j + 1].sqrt()
                a, b = (one_hot * root).numpy(), (x[:, j : j + 1] * root).numpy()
                solution = np.linalg.lstsq(a, b)[0]
                best += float(((a @ solution - b) ** 2).sum())
            compared += 1
            wrong += abs(ours - best) > 1e-9 * best
    return Tally(compared, compared, wrong)
