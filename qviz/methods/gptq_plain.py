"""All of GPTQ in a dozen plain lines, to be read with the paper (Frantar et al. 2022).

It computes the same as `gptq`, without the parts that make that fast, general and safe: blocks,
which move many
columns in one product; the order of the columns; conventions for the levels (here "absmax": levels
around 0, up to the largest weight); channels without input; and a Hessian that has no factor. A
test compares the codes of the two.
"""

import torch


def gptq_plain(
    w: torch.Tensor, h: torch.Tensor, *, bits: int = 4, group_size: int = 128, damp: float = 0.01
) -> torch.Tensor:
    """The codes [out, in] int8 of a weight w [out, in], from −(2^(bits−1) − 1) to 2^(bits−1) − 1.

    h           [in, in] the Hessian 2·XᵀX / tokens of the layer's inputs, in the weight's dtype
    group_size  inputs that share a scale; the last group may be smaller
    damp        λ, a fraction of the mean of diag H

    Nothing is checked: this is for reading. To quantize, use `gptq`.

    >>> gptq_plain(weight.double(), calibration.hessian.double(), bits=3).unique().tolist()
    [-3, -2, -1, 0, 1, 2, 3]
    """
    w, codes, top = w.clone(), torch.empty_like(w), 2 ** (bits - 1) - 1
    h = h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)  # H⁻¹ = UᵀU
    for j in range(w.shape[1]):
        if j % group_size == 0:  # a group begins: its range, as compensation has left it
            s = w[:, j : j + group_size].abs().amax(1) / top
        codes[:, j] = (w[:, j] / s).round().clamp(-top, top)
        e = (w[:, j] - s * codes[:, j]) / u[j, j]
        w[:, j + 1 :] -= torch.outer(e, u[j, j + 1 :])
    return codes.to(torch.int8)
