"""Vectors of KIVI for the fast tests: its own quantization and packing, on CPU in float16.

Give it quant/new_pack.py of a checkout:  python tools/golden/kivi.py KIVI/quant/new_pack.py
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
COMMIT = "876b4d2"
SEED = 2402
HEADS, TOKENS, WIDTH, GROUP = 2, 64, 32, 32


def kivi(path: Path) -> ModuleType:
    """The module. Its GPU kernels need Triton; its plain functions need only torch."""
    sys.modules["triton"] = sys.modules["triton.language"] = MagicMock()
    spec = spec_from_file_location("new_pack", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs() -> dict[str, torch.Tensor]:
    """[1, heads, tokens, width] float16: random with a large channel, ties, a constant group."""
    g = torch.Generator().manual_seed(SEED)
    x = torch.randn(1, HEADS, TOKENS, WIDTH, generator=g)
    x[..., 5] = x[..., 5] * 0.5 + 9
    steps = torch.arange(TOKENS * WIDTH).remainder(61).reshape(TOKENS, WIDTH) / 8
    flat = x.clone()
    flat[0, 0, :32, 3] = 0.7  # a group of keys
    flat[0, 1, 40, :] = -0.3  # a group of values
    return {"random": x.half(), "ties": steps.expand_as(x).half(), "constant": flat.half()}


def main() -> None:
    path = Path(sys.argv[1])
    module = kivi(path)
    found: dict[str, np.ndarray] = {
        "origin": np.array(
            f"tools/golden/kivi.py, KIVI {COMMIT} quant/new_pack.py on CPU, torch "
            f"{torch.__version__}, seed {SEED}, groups of {GROUP}"
        )
    }
    for name, x in inputs().items():
        found[f"{name} x"] = x.numpy()
        widths = (2, 4, 8) if name == "random" else (2,)
        for part, letter in (("keys", "k"), ("values", "v")):
            for bits in widths:
                pack = getattr(module, f"quant_and_pack_{letter}cache")
                words, scale, low = pack(x.clone(), GROUP, bits)
                unpack = getattr(module, f"unpack_and_dequant_{letter}cache")
                back = unpack(words, scale, low, GROUP, bits)
                results = {"words": words, "scale": scale, "min": low, "back": back}
                for what, tensor in results.items():
                    found[f"{name} {part} {bits} {what}"] = tensor.numpy()
    np.savez_compressed(ROOT / "tests/golden/kivi.npz", **found)


if __name__ == "__main__":
    main()
