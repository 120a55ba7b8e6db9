"""Vectors of llama.cpp for the fast tests: the bytes that its C code makes of 31 super-blocks.

Run with an interpreter that has llama-cpp-python:  python tools/golden/llama_cpp.py
"""

import hashlib
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import qviz
from qviz.methods.gguf import LAYOUTS

ROOT = Path(__file__).parents[2]
SEED = 2025
LAYER = "model.layers.1.mlp.down_proj"


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


def layer_digests(quantize: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    """SHA-256 of the bytes of a trained layer: of 16 rows in each type, and of all 256, which are
    1,024 super-blocks, in Q4_K. The importance is one that every machine computes alike."""
    w = qviz.load_layer("bundled", LAYER).float()
    importance = (torch.arange(w.shape[1]) * 37 % 101 + 1).float() / 128
    found = {}
    for name in LAYOUTS:
        for rows in (16, 256) if name == "Q4_K" else (16,):
            for how, own in (("plain", None), ("importance", importance)):
                digest = hashlib.sha256(quantize(name, w[:rows], own).tobytes()).digest()
                found[f"{name}/{how}/{rows}"] = np.frombuffer(digest, np.uint8)
    return found


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
    for name, found in (("gguf", out), ("gguf_layer", layer_digests(ggml.quantize))):
        path = ROOT / "tests" / "golden" / f"{name}.npz"
        np.savez_compressed(path, origin=np.array(about), **found)
        sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
