"""Vectors of llama.cpp for the fast tests: the bytes that its C code makes of 31 super-blocks.

Run with an interpreter that has llama-cpp-python:  python tools/golden/llama_cpp.py
"""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import qviz

ROOT = Path(__file__).parents[2]
SEED = 2025


def weights() -> torch.Tensor:
    """24 super-blocks [24, 256]: 8 trained, 8 random of any size, 8 that have broken encoders."""
    g = torch.Generator().manual_seed(SEED)
    w = torch.randn(8, 256, generator=g)
    hard = torch.stack(
        [
            torch.zeros(256),
            torch.full((256,), -0.3),
            w[0].abs() + 0.1,
            w[1] * 2e-7 - 1,  # a few neighbouring float32 numbers
            torch.where(w[2].abs() > 1.8, w[2], 0.0),
            (3 * w[3]).round(),
            w[4] * 1e-15,
            torch.where(torch.arange(256) == 77, 300.0, w[5]),
        ]
    )
    trained = qviz.load_layer("bundled", "model.layers.1.mlp.up_proj")[:512:64].float()
    return torch.cat([trained, w * torch.logspace(-3, 3, 8)[:, None], hard])


def skewed() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [7, 256] and an importance [256] that hangs on a few inputs: with Q2_K or Q4_K a
    sub-block of each row gets a scale below 0, whose code wraps around and spills over."""
    g = torch.Generator().manual_seed(SEED)
    w = -torch.randn(512, 256, generator=g).abs() - 0.3
    importance = torch.exp(8 * torch.randn(256, generator=g))
    return w[[274, 310, 312, 396, 397, 407, 493]], importance


def main() -> None:
    sys.path[0] = str(ROOT / "tests")
    import ggml

    g = torch.Generator().manual_seed(SEED)
    importance = torch.rand(256, generator=g) ** 3
    importance[::11] = 0
    w = weights()
    out = {"weight": w.numpy(), "importance": importance.numpy()}
    for name in ggml.NUMBERS:
        if name.endswith("_K"):
            out[f"{name}/plain"] = ggml.quantize(name, w)
        if name not in ("Q8_0", "MXFP4"):
            out[f"{name}/importance"] = ggml.quantize(name, w, importance)
    w, importance = skewed()
    out |= {"skewed_weight": w.numpy(), "skewed_importance": importance.numpy()}
    for name in ("Q2_K", "Q4_K", "Q5_K"):
        out[f"{name}/skewed"] = ggml.quantize(name, w, importance)
    about = (
        f"tools/golden/llama_cpp.py, llama-cpp-python {version('llama-cpp-python')} (x86-64, "
        f"without FMA), seed {SEED}"
    )
    path = ROOT / "tests" / "golden" / "gguf.npz"
    np.savez_compressed(path, origin=np.array(about), **out)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
