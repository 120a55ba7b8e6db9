"""OBQ: rounding one weight at a time, in each row the one that costs least next.

Every row is a problem of its own: the weight whose rounding harms the output least is rounded, the
others of its row move to compensate for it, and it leaves the problem. GPTQ does this in one order
for all rows, which makes it fast. Frantar and Alistarh 2022 (arXiv 2208.11580).

Symbols: w a row, H Hessian of the squared output error, F the weights not yet rounded, H_F⁻¹ the
inverse of H restricted to them, q what a weight is rounded to. H_F⁻¹ differs from row to row, so
there is one for each. It is meant for comparisons on small layers and is not in the registry.
"""

import numpy as np
import torch

from qviz.core.calibration import Calibration, require_fit
from qviz.core.check import as_matrix, require_bits
from qviz.core.granularity import Granularity
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.affine import BITS, Levels, fit_levels
from qviz.methods.gptq import finite_loss, prepare

WORK_LIMIT = 2 * 10**11  # rows·in³: about a minute
MEMORY = 2**27  # bytes of inverse Hessians that are worked on together

EVENTS = (
    EventSpec(
        "obq.step",
        {
            "rows": "[rows] the rows that this step is of",
            "column": "[rows] the weight that each of them rounds",
            "scores": "[rows, in] what rounding each weight would cost; ∞ where it is done",
            "live": "[rows, in] the weights with all compensation so far",
            "value": "[rows] q, what the weight is rounded to",
            "error": "[rows] (w − q) / [H_F⁻¹]_jj",
            "hinv_row": "[rows, in] row j of H_F⁻¹",
        },
        "j = argmin (w_j − q_j)² / [H_F⁻¹]_jj, w ← w − (w_j − q_j) / [H_F⁻¹]_jj · [H_F⁻¹]_j:",
        "Frantar and Alistarh 2022, section 5 and algorithm 3; trueobs.py:TrueOBS.quantize",
    ),
)


def obq(
    weight: torch.Tensor | np.ndarray,
    calibration: Calibration,
    *,
    bits: int = 4,
    symmetric: bool = True,
    group_size: int | None = None,
    damp: float = 0.01,
    convention: str = "gptq",
    scale_dtype: torch.dtype | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Round each row's weights in the order in which they cost least, compensating every one.

    weight       [out, in]; float32, bfloat16 or float16 (computed in float32) or float64
    calibration  of the inputs of this layer; only its Hessian is used
    bits         2 to 8
    symmetric    levels placed around 0
    group_size   inputs that share a scale; None or −1: the whole row. Levels are found beforehand
    damp         added to diag H, a fraction of its mean; raised as in GPTQ
    convention   one of `qviz.methods.affine.CONVENTIONS`
    scale_dtype  dtype in which scales are stored and used; None: the one computed in

    A weight that compensation has pushed more than half a spacing out of its range is rounded at
    once, the worst first: waiting would push it further. Returns codes [out, in]; `info["loss"]`
    is the mean over tokens of the squared output error, as GPTQ's. ValueError for a layer that is
    too large: time grows with rows·in³.

    >>> layer = "model.layers.0.self_attn.k_proj"
    >>> q = obq(qviz.load_layer(None, layer)[:8], qviz.load_calibration(None, layer), bits=3)
    >>> q.info["loss"]
    """
    weight = as_matrix(weight)
    require_fit(calibration, weight.shape[1])
    bits = require_bits(bits, BITS)
    rows, columns = weight.shape
    if rows * columns**3 > WORK_LIMIT:
        fit = WORK_LIMIT // columns**3
        raise ValueError(
            f"OBQ of a {rows}×{columns} weight takes rows·in³ = {rows * columns**3:.1g} "
            f"operations; {WORK_LIMIT:.0g} is the limit. "
            + (f"Use weight[:{fit}], or gptq" if fit else "Use gptq")
        )
    unit = Granularity.of("group", group_size)
    unit.split(weight)
    setup = prepare(weight, calibration, damp=damp, act_order=False)
    w = setup.columns(weight).T.contiguous()  # [out, in], dead columns 0
    groups = unit.split(w)
    levels = fit_levels(
        groups.amin(-1), groups.amax(-1), bits=bits, symmetric=symmetric,
        convention=convention, scale_dtype=scale_dtype,
    )  # fmt: skip
    inverse = setup.hinv_chol.T @ setup.hinv_chol

    codes = torch.empty_like(w, dtype=levels.grid.code_dtype)
    loss = torch.zeros((), dtype=torch.float64, device=w.device)
    together = max(1, MEMORY // (columns**2 * w.element_size()))
    for first in range(0, rows, together):
        part = torch.arange(first, min(first + together, rows), device=w.device)
        loss += _quantize_rows(w, inverse, levels, unit, part, codes, emit)
    info = {
        "method": "obq",
        "convention": convention,
        "symmetric": symmetric,
        "device": str(weight.device),
        "compute": str(w.dtype).removeprefix("torch."),
        "damp": setup.damp,
        "dead_columns": setup.dead.nonzero().flatten().tolist(),
        "loss": finite_loss(loss, w.dtype) / 2,
    }
    return QuantizedTensor(codes, levels.grid, unit, (rows, columns), info=info)


def _quantize_rows(
    w: torch.Tensor,
    inverse: torch.Tensor,
    levels: Levels,
    unit: Granularity,
    rows: torch.Tensor,
    codes: torch.Tensor,
    emit: Emit | None,
) -> torch.Tensor:
    """Round all weights of these rows, writing into codes; returns Σ (w − q)² / [H_F⁻¹]_jj, []."""
    n = w.shape[1]
    live = w[rows]  # [r, in]
    mine = levels.of_rows(rows).working()
    grid = mine.grid
    half = unit.join((grid.scale * 0.5).unsqueeze(-1).expand(len(rows), -1, n // grid.groups[1]),
                     (len(rows), n))  # fmt: skip
    h = inverse.expand(len(rows), n, n).clone()  # [r, in, in]
    done = torch.zeros_like(live, dtype=torch.bool)
    each = torch.arange(len(rows), device=w.device)
    loss = live.new_zeros((), dtype=torch.float64)
    for _ in range(n):
        nearest = mine.round_(mine.position(unit.split(live))).clamp_(grid.qmin, grid.qmax)
        value = unit.join(grid.decode(nearest), (len(rows), n))
        scores = (live - value).square() / h.diagonal(dim1=1, dim2=2)
        scores[done] = torch.inf
        j = _choose(scores, live, (live - value).abs().masked_fill(done, 0.0), half)  # [r]
        row = h[each, j]  # [r, in]
        chosen = value[each, j]
        error = (live[each, j] - chosen) / row[each, j]
        codes[rows, j] = unit.join(nearest, (len(rows), n))[each, j].to(codes.dtype)
        loss += scores[each, j].sum(dtype=torch.float64)
        if emit is not None:
            emit(
                "obq.step",
                rows=rows,
                column=j,
                scores=scores,
                live=live,
                value=chosen,
                error=error,
                hinv_row=row,
            )
        live = live - error.unsqueeze(1) * row
        done[each, j] = True
        # Gaussian elimination of one row and column: what is left is the inverse of H without j.
        root = row / row[each, j].sqrt().unsqueeze(1)
        h.baddbmm_(root.unsqueeze(2), root.unsqueeze(1), alpha=-1)
    return loss


def _choose(
    scores: torch.Tensor, live: torch.Tensor, off: torch.Tensor, half: torch.Tensor
) -> torch.Tensor:
    """The weight [r] that each row rounds next: the cheapest, or one that left its range."""
    each = torch.arange(len(scores), device=scores.device)
    cheapest = scores.argmin(1)
    # Exact zeros go first whatever lies outside, as in the reference code: they cost nothing.
    urgent = (off > half).any(1) & (live[each, cheapest] != 0)
    return torch.where(urgent, off.argmax(1), cheapest)
