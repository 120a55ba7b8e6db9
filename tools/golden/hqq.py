"""Vectors of hqq for the fast tests: what it makes of a few weights, on CPU in float32.

Run with an interpreter that has hqq:  python tools/golden/hqq.py
"""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
SEED = 2023


def weights() -> dict[str, torch.Tensor]:
    """Weights [4, 128] of which each takes another way through the method."""
    g = torch.Generator().manual_seed(SEED)
    w = torch.randn(4, 128, generator=g)
    heavy = w.clone()
    heavy[:, ::13] *= 6
    cases = {
        "usual": w * 0.03,  # every residual too small to be an outlier
        "heavy": heavy,  # outliers in most steps
        "far": w * 0.01 + 5,  # zero points of −1,500
        "flat": w * 1e-6 + 0.7,  # a range under 1e-4: the scale is 1
        "capped": w * 2e-4,  # 1/s would exceed 2e4 at 8 bits
        "zeros": w * torch.tensor([[1.0], [0.0], [1.0], [0.0]]),
        "ties": (torch.arange(128).remainder(16) - 7.5).expand(4, -1).clone(),
    }
    cases["bfloat16"] = heavy.bfloat16()
    cases["float16"] = heavy.half()
    return cases


def main() -> None:
    sys.path.pop(0)  # this folder, in which "hqq" would be this very file
    from hqq.core.quantize import Quantizer

    out = {}
    for name, w in weights().items():
        out[f"{name}/weight"] = w.float().numpy()  # exact for the 16-bit ones too
        for bits in (8, 4, 3, 2, 1):
            codes, meta = Quantizer.quantize(
                w.clone(), nbits=bits, group_size=64, round_zero=bits == 4, axis=1,
                optimize=True, device="cpu", compute_dtype=torch.float32, bitpack=False,
            )  # fmt: skip
            out[f"{name}/{bits}/codes"] = codes.to(torch.uint8).numpy()
            out[f"{name}/{bits}/scale"] = meta["scale"].numpy()
            out[f"{name}/{bits}/zero"] = meta["zero"].numpy()
    about = f"tools/golden/hqq.py, hqq {version('hqq')}, torch {torch.__version__}, seed {SEED}"
    path = ROOT / "tests" / "golden" / "hqq.npz"
    np.savez_compressed(path, origin=np.array(about), **out)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
