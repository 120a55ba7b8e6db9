"""Quadratic sums that grow with every row: what each further column of a run adds to its error."""

import torch

WIDTH = 256  # columns that are summed together: wide enough for fast products


class Sandwich:
    """M = U·H·Uᵀ for upper triangular U; only the part on and above the diagonal is needed.

    Rows of U·H are kept from the diagonal on: nothing to the left of it is ever used.
    """

    def __init__(self, u: torch.Tensor, h: torch.Tensor) -> None:
        self.u, self.half = u, torch.zeros_like(u)
        for at in range(0, len(u), WIDTH):
            end = min(at + WIDTH, len(u))
            self.half[at:end, at:] = u[at:end, at:] @ h[at:, at:]

    def __getitem__(self, part: tuple[slice, slice]) -> torch.Tensor:
        """M[:stop, start:stop]."""
        rows, columns = part
        return self.half[rows, columns.start :] @ self.u[columns, columns.start :].T


def leading_sums(d: torch.Tensor, m: torch.Tensor | Sandwich) -> torch.Tensor:
    """[n] what each further row of D adds to tr(DᵀMD), for D [n, out] and symmetric M [n, n].

    Row j adds M_jj·|d_j|² + 2·Σ_{i<j} M_ij·(d_i·d_j). Done for several columns of M at a time,
    and only for its upper half.
    """
    n = len(d)
    out = d.new_empty(n)
    for at in range(0, n, WIDTH):
        end = min(at + WIDTH, n)
        upper = m[:end, at:end].clone()
        upper[at:] = upper[at:].triu_()
        upper[at:].diagonal().mul_(0.5)
        out[at:end] = 2 * ((upper.T @ d[:end]) * d[at:end]).sum(1)
    return out
