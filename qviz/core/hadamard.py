"""Hadamard matrices, and multiplying by one without ever forming it.

H_n is n×n, all entries ±1, with H·Hᵀ = n·I; H/√n is a rotation that spreads a single large entry
over all n. For n = K·2^m the matrix is H_K ⊗ H_2 ⊗ … ⊗ H_2 (Sylvester), so that a product costs
n·(K + m) additions instead of n². For K there are three constructions, by Paley (two) and by
Goethals and Seidel. QuaRot and torchao read their K×K matrices from Sloane's tables; those built
here have the same orders and the same defining property, but other rows, so a rotated weight
differs from theirs in every entry but has the same statistics.
"""

import itertools
from functools import cache

import numpy as np
import torch

from qviz.core.check import require_int

# Four ±1 sequences of length m whose periodic autocorrelations add up to zero at every shift: bit i
# set means −1 at i. Found by trying all sequences that stay the same when indices are multiplied by
# 12 (m = 13), 16 (m = 39), 6 (m = 43) or −1 (the others). Paley's constructions as they are below,
# which need a prime, give no matrix of order 4·m for these m.
_SEQUENCES = {
    13: (0x1332, 0x1806, 0x528, 0x11E2),
    23: (0x6542A6, 0x6A0056, 0x6C7E36, 0x1CC338),
    25: (0x1227912, 0x195FEA6, 0x474B88, 0x10F33C2),
    29: (0x53A1728, 0x1045E882, 0xCD3F2CC, 0x653F298),
    39: (0x114855BB6E, 0x64989E8BC8, 0x75D29EBDF4, 0x3DF01CF9E4),
    43: (0x53502F40ACA, 0x47A4C0325E2, 0x637AC935EC6, 0x871D9B8E10),
}

CACHED = 2**15  # numbers; up to this size torch does not use other threads either


def hadamard_matrix(n: int) -> torch.Tensor:
    """H_n [n, n] int8, entries ±1, H·Hᵀ = n·I; divide by √n for a rotation.

    n is 1, 2, or K·2^m with a K for which a construction is known here: 4, 8, 12, 16, 20, 24, 28 …
    ValueError for the others. For powers of two the matrix is Sylvester's, hence symmetric.

    >>> h = hadamard_matrix(12).int()
    >>> torch.equal(h @ h.T, 12 * torch.eye(12, dtype=torch.int32))
    True
    """
    base, doublings = _factors(require_int(n, "n", 1, 2**20))
    h = _base_matrix(base)
    for _ in range(doublings):
        h = np.kron(h, np.array([[1, 1], [1, -1]], np.int8))
    return torch.from_numpy(h.copy())


def hadamard_transform(x: torch.Tensor, *, transpose: bool = False) -> torch.Tensor:
    """H·x for every vector x along the last axis [..., n], not normalized; Hᵀ·x with `transpose`.

    The fast Walsh–Hadamard transform: m passes of sums and differences of pairs, then one product
    with H_K. A new tensor of x's dtype and device, in whose precision all sums run; the passes add
    in the same order on every device. ValueError where no H_n is known.

    >>> hadamard_transform(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor([1., 1., 1., 1.])
    """
    n = x.shape[-1]
    base, doublings = _factors(n)
    h = torch.from_numpy(_base_matrix(base)).to(x)
    h = h.T if transpose else h  # Sylvester's part is symmetric
    vectors = x.reshape(-1, n)
    # Pieces that stay in a processor's cache through all passes: six times as fast at 4096².
    rows = max(CACHED // n if x.device.type == "cpu" else len(vectors), 1)
    pieces = [_transform(piece, h, doublings) for piece in torch.split(vectors, rows)]
    return torch.cat(pieces).reshape(x.shape)  # not written into one tensor: gradients pass


def _transform(x: torch.Tensor, base: torch.Tensor, doublings: int) -> torch.Tensor:
    """(base ⊗ H_2 ⊗ … ⊗ H_2)·x for every row of x [rows, n]."""
    y = x
    for level in range(doublings):
        pairs = y.reshape(-1, 2, 1 << level)  # the two halves of each block of 2^(level + 1)
        first, second = pairs.unbind(1)
        y = torch.stack((first + second, first - second), dim=1)
    if len(base) > 1:
        y = base @ y.reshape(len(x), len(base), -1)
    return y.reshape(x.shape)


def random_signs(n: int, seed: int) -> torch.Tensor:
    """n random signs [n] int8, −1 or 1; the same for a seed on every device and torch version."""
    draw = np.random.default_rng(require_int(seed, "seed", 0, 2**63 - 1))
    return torch.from_numpy(draw.integers(0, 2, n).astype(np.int8) * 2 - 1)


def has_hadamard(n: int) -> bool:
    """Whether hadamard_matrix(n) exists here."""
    return _split(n) is not None


def _factors(n: int) -> tuple[int, int]:
    """(K, m) with n = K·2^m; ValueError naming the next larger size if there are none."""
    found = _split(n)
    if found is not None:
        return found
    next_size = next(k for k in itertools.count(n + 1) if _split(k) is not None)
    raise ValueError(
        f"no Hadamard matrix of size {n} is known here: the size must be 1, 2, or K·2^m with a "
        f"known K (4, 12, 20, 28, 36 …). Pad that side with {next_size - n} zeros to {next_size}, "
        f"the next larger size, or leave this layer without a rotation"
    )


@cache
def _split(n: int) -> tuple[int, int] | None:
    """(K, m) with the smallest K that has a construction, or None."""
    if n < 1:
        return None
    odd = n // (n & -n)
    base = odd
    while n % base == 0:
        if _construction(base) is not None:
            return base, (n // base).bit_length() - 1
        base *= 2
    return None


def _construction(k: int) -> str | None:
    if k == 1:
        return "one"
    if k % 4:
        return None
    if _is_prime(k - 1):  # k − 1 ≡ 3 mod 4
        return "paley 1"
    if k % 8 == 4 and _is_prime(k // 2 - 1):  # k/2 − 1 ≡ 1 mod 4
        return "paley 2"
    return "goethals–seidel" if k // 4 in _SEQUENCES else None


@cache
def _base_matrix(k: int) -> np.ndarray:
    """H_K [K, K] int8."""
    kind = _construction(k)
    if kind == "paley 1":
        return _paley_1(k - 1)
    if kind == "paley 2":
        return _paley_2(k // 2 - 1)
    if kind == "goethals–seidel":
        return _goethals_seidel(k // 4)
    return np.ones((1, 1), np.int8)


def _jacobsthal(q: int) -> np.ndarray:
    """Q [q, q]: Q_ij = χ(i − j), which is 1 for squares modulo the prime q, −1 for others."""
    chi = -np.ones(q, np.int8)
    chi[np.arange(1, q, dtype=np.int64) ** 2 % q] = 1
    chi[0] = 0
    i = np.arange(q)
    table: np.ndarray = chi[(i[:, None] - i) % q]
    return table


def _paley_1(q: int) -> np.ndarray:
    """Order q + 1 for a prime q ≡ 3 mod 4: I + S with the skew S = [[0, 1], [−1, Q]]."""
    s = np.zeros((q + 1, q + 1), np.int8)
    s[0, 1:], s[1:, 0], s[1:, 1:] = 1, -1, _jacobsthal(q)
    return s + np.eye(q + 1, dtype=np.int8)


def _paley_2(q: int) -> np.ndarray:
    """Order 2·(q + 1) for a prime q ≡ 1 mod 4, from the symmetric C = [[0, 1], [1, Q]]."""
    c = np.zeros((q + 1, q + 1), np.int8)
    c[0, 1:], c[1:, 0], c[1:, 1:] = 1, 1, _jacobsthal(q)
    eye = np.eye(q + 1, dtype=np.int8)
    plus, minus = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
    return np.kron(c, plus) + np.kron(eye, minus)


def _goethals_seidel(m: int) -> np.ndarray:
    """Order 4·m from four circulants A, B, C, D with A·Aᵀ + B·Bᵀ + C·Cᵀ + D·Dᵀ = 4m·I."""
    i = np.arange(m)
    rows = [
        1 - 2 * (np.array([bits >> j & 1 for j in range(m)], np.int8)) for bits in _SEQUENCES[m]
    ]
    a, b, c, d = (row[(i - i[:, None]) % m] for row in rows)
    r = np.eye(m, dtype=np.int8)[::-1]
    return np.block(
        [
            [a, b @ r, c @ r, d @ r],
            [-b @ r, a, d.T @ r, -c.T @ r],
            [-c @ r, -d.T @ r, a, b.T @ r],
            [-d @ r, c.T @ r, -b.T @ r, a],
        ]
    )


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
