"""Vectors of ParetoQ's quantizers in training: values, and gradients of weights and steps.

Run with a checkout of facebookresearch/ParetoQ:  python tools/golden/paretoq.py PATH
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
SEED = 2025
# which of its two quantizers, and for how many bits
CASES = [("LsqBinaryTernaryExtension", 3), ("LsqBinaryTernaryExtension", 4),
         ("StretchedElasticQuant", 2), ("StretchedElasticQuant", 3)]  # fmt: skip


def main(checkout: Path) -> None:
    path = checkout / "models" / "utils_quant.py"
    spec = importlib.util.spec_from_file_location("paretoq", path)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    commit = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip

    g = torch.Generator().manual_seed(SEED)
    weight = torch.randn(6, 96, generator=g)
    upstream = torch.randn(6, 96, generator=g)
    # Powers of two, so that it does not matter in which order values are multiplied.
    steps = torch.exp2(torch.tensor([-3.0, -2.0, -1.0, 0.0, -2.0, -1.0])).unsqueeze(1)
    out = {"weight": weight.numpy(), "upstream": upstream.numpy(), "steps": steps.numpy()}
    for name, bits in CASES:
        # the stretched quantizer is given the whole range, 2^(b−1) steps
        size = steps * 2 ** (bits - 1) if name == "StretchedElasticQuant" else steps
        w, alpha = weight.clone().requires_grad_(), size.clone().requires_grad_()
        value = getattr(theirs, name).apply(w, alpha, bits, False)
        value.backward(upstream)
        parts = {"value": value.detach(), "by_weight": w.grad, "by_size": alpha.grad}
        out |= {f"{name}.{bits}.{part}": tensor.numpy() for part, tensor in parts.items()}
    out["origin"] = np.array(
        f"tools/golden/paretoq.py, facebookresearch/ParetoQ at {commit}, "
        f"torch {torch.__version__}, seed {SEED}"
    )
    np.savez_compressed(ROOT / "tests" / "golden" / "paretoq.npz", **out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
