"""Vectors of SmoothQuant's own code for the fast tests, on one small problem made of integers.

python tools/golden/smoothquant.py CHECKOUT     of github.com/mit-han-lab/smoothquant at c61476d
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Not this folder: its hqq.py would pass for the package.
sys.path[:1] = [sys.argv[1], str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from inputs import golden_layer  # noqa: E402
from smoothquant import fake_quant, smooth  # noqa: E402
from torch import nn  # noqa: E402

ROWS, TOKENS = 16, 8


def main() -> None:
    w, x = golden_layer()
    out = {}
    for alpha in (0.5, 0.85):
        norm = nn.LayerNorm(w.shape[1])
        parts = [linear_of(w[:ROWS]), linear_of(w[ROWS:])]
        with torch.no_grad():
            smooth.smooth_ln_fcs(norm, parts, x.abs().amax(0), alpha)
        scaled = x[:TOKENS] * norm.weight.detach()
        for activations in ("per_token", "per_tensor"):
            layer = fake_quant.W8A8Linear.from_float(
                linear_of(parts[0].weight.detach()), "per_channel", activations
            )
            out[f"{alpha}/{activations}/output"] = layer(scaled.clone()).numpy()
            out[f"{alpha}/{activations}/inputs"] = layer.act_quant(scaled.clone()).numpy()
        # the norm's weight was 1, so it is 1/s now, which the factors themselves do not round to
        out |= {
            f"{alpha}/norm": norm.weight.detach().numpy(),
            f"{alpha}/smoothed": parts[0].weight.detach().numpy(),
            f"{alpha}/weight": layer.weight.detach().numpy(),
        }
    path = ROOT / "tests" / "golden" / "smoothquant.npz"
    origin = (
        f"tools/golden/smoothquant.py, mit-han-lab/smoothquant c61476d, torch {torch.__version__}"
    )
    np.savez_compressed(path, origin=np.array(origin), **out)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


def linear_of(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear.requires_grad_(False)


if __name__ == "__main__":
    main()
