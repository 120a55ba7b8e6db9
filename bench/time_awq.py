"""Time of AWQ beside the published algorithm written plainly, same weight and inputs, same run.

The reference is Lin et al. 2023 as its authors' code runs it, in float32: for each of twenty
candidates the whole weight is rounded and the inputs multiplied by it; for each of ten limits the
share of every group in every output is formed for every token, 256 rows at a time.

python bench/time_awq.py [rows×columns …]
"""

import sys

import torch
from record import median_times, save

import qviz
from qviz.core.transform import InputScale
from qviz.methods.awq import clip_limits, search

SIZES = ("1024×1024", "4096×4096")
BITS, GROUP, TOKENS, ROWS = 4, 128, 512, 256
OPTIONS = {"bits": BITS, "group_size": GROUP, "symmetric": False}


def rounded(weight: torch.Tensor) -> torch.Tensor:
    groups = weight.reshape(-1, GROUP)
    top, low = groups.amax(1, keepdim=True), groups.amin(1, keepdim=True)
    steps = 2**BITS - 1
    scale = (top - low).clamp(min=1e-5) / steps
    zero = (-torch.round(low / scale)).clamp_(0, steps)
    codes = torch.clamp(torch.round(groups / scale) + zero, 0, steps)
    return ((codes - zero) * scale).reshape(weight.shape)


def reference_scale(weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The best of the twenty candidates' factors."""
    outputs, size = inputs @ weight.T, inputs.abs().mean(0)
    best, lowest = torch.ones_like(size), float("inf")
    for k in range(20):
        s = size.pow(k / 20).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        loss = (outputs - inputs @ (rounded(weight * s) / s).T).pow(2).mean().item()
        if loss < lowest:
            best, lowest = s, loss
    return best


def reference_limits(weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The best of the ten limits of each group [rows, groups], for 256 rows."""
    x = inputs.reshape(1, len(inputs), -1, GROUP)
    w = weight.reshape(len(weight), 1, -1, GROUP)
    top = w.abs().amax(-1, keepdim=True)
    best, lowest = top.clone(), torch.full_like(top, torch.inf)
    outputs = (x * w).sum(-1)  # [rows, tokens, groups]
    for k in range(10):
        limit = top * (1 - k / 20)
        found = (x * rounded(torch.clamp(w, -limit, limit))).sum(-1)
        error = (found - outputs).pow(2).mean(1).reshape(lowest.shape)
        better = error < lowest
        lowest[better], best[better] = error[better], limit[better]
    return best.squeeze(-1).squeeze(1)


def main() -> None:
    rows = []
    for size in sys.argv[1:] or SIZES:
        out, n = (int(part) for part in size.replace("x", "×").split("×"))
        g = torch.Generator().manual_seed(0)
        w = torch.randn(out, n, generator=g) * 0.02
        x = torch.randn(TOKENS, n, generator=g) * torch.exp(torch.randn(n, generator=g))
        # Every token is in the sample, so that the loss comes from the inputs where these are few.
        h = 2 * x.T @ x / TOKENS
        c = qviz.Calibration(x, h, x.abs().amax(0), x.abs().mean(0), TOKENS)
        theirs, ours = median_times(
            lambda w=w, x=x: reference_scale(w, x), lambda w=w, c=c: search([w], c, **OPTIONS)
        )
        s = search([w], c, **OPTIONS).scale
        part, transform = (w * s)[:ROWS], InputScale(s)
        their_clip, our_clip = median_times(
            lambda part=part, x=x, s=s: reference_limits(part, x / s),
            lambda part=part, c=c, t=transform: clip_limits(part, c, t, **OPTIONS),
        )
        limits = clip_limits(part, c, transform, **OPTIONS)[0]
        same = (limits == reference_limits(part, x / s)).float().mean()
        rows.append(
            {
                "rows×columns": size,
                "factors: qviz, s": ours,
                "reference, s": theirs,
                "ratio": ours / theirs,
                f"limits of {ROWS} rows: qviz, s": our_clip,
                "their reference, s": their_clip,
                "ratio of limits": our_clip / their_clip,
                "equal factors": str(torch.equal(s, reference_scale(w, x))),
                "equal limits": f"{float(same):.3%}",
            }
        )
    notes = f"{TOKENS} tokens. Limits differ only where two of them have the same error."
    print(save("time_awq", "AWQ, 4 bits, group 128, asymmetric", rows, notes).read_text())


if __name__ == "__main__":
    main()
