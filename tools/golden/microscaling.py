"""Vectors of two microscaling implementations for the fast tests.

python tools/golden/microscaling.py microxcaling CHECKOUT   of github.com/microsoft/microxcaling
python tools/golden/microscaling.py ggml                    with an interpreter that has llama_cpp
"""

import ctypes
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
COMMIT = "7bc4195"  # of microxcaling
SEED = 2310
ELEMENTS = ("fp4_e2m1", "fp6_e2m3", "fp6_e3m2", "fp8_e4m3", "fp8_e5m2", "int8")


def weight() -> tuple[np.ndarray, np.ndarray]:
    """Sixty-fourths int8 [rows, blocks, 32] and the float32 peaks [rows, blocks] they multiply.

    Peaks lie at and a step beside powers of two and the numbers at which an element rounds up, in
    blocks of ordinary, tiny and huge weights; multiples of 1/64 of a power of two hold every tie.
    """
    g = np.random.default_rng(SEED)
    parts = g.integers(-64, 65, (24, 6, 32)).astype(np.int8)
    parts[..., 0], parts[..., 16] = 64, -64  # NVFP4 has two blocks in 32
    parts[0, 0], parts[1, 1, :16] = 0, 0
    bases = np.float32([1, 1.5, 1.75, 1.875, 1.9375, 1.25, 6 / 4, 448 / 256])
    steps = np.int32([-1, 0, 1])
    rows = (bases.view(np.int32)[:, None] + steps).reshape(-1, 1).view(np.float32)
    return parts, np.ldexp(rows, np.int32([-130, -30, -9, 0, 7, 100])).astype(np.float32)


def put_together(parts: np.ndarray, peaks: np.ndarray) -> torch.Tensor:
    w = parts.astype(np.float32) / 64 * peaks[..., None]
    return torch.from_numpy(w.reshape(len(parts), -1))


def microxcaling(w: torch.Tensor, checkout: str) -> tuple[str, dict[str, np.ndarray]]:
    sys.path.insert(0, checkout)
    from mx.mx_ops import _quantize_mx

    out = {}
    for element in ELEMENTS:
        for rounding in ("nearest", "even"):
            back = _quantize_mx(w, 8, element, axes=[-1], block_size=32, round=rounding)
            out[f"{element}/{rounding}"] = back.numpy()
    return f"microxcaling {COMMIT}", out


def ggml(w: torch.Tensor) -> tuple[str, dict[str, np.ndarray]]:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    out = {}
    for name, size, bytes_of_block in (("mxfp4", 32, 17), ("nvfp4", 64, 36)):
        packed = np.zeros((w.numel() // size, bytes_of_block), np.uint8)
        back = np.zeros(w.shape, np.float32)
        count = ctypes.c_int64(w.numel())
        x = np.ascontiguousarray(w.numpy())
        pointer = ctypes.c_void_p
        quantize = getattr(library, f"quantize_row_{name}_ref")
        quantize(pointer(x.ctypes.data), pointer(packed.ctypes.data), count)
        dequantize = getattr(library, f"dequantize_row_{name}")
        dequantize(pointer(packed.ctypes.data), pointer(back.ctypes.data), count)
        out[f"{name}/blocks"], out[f"{name}/values"] = packed, back
    return f"llama-cpp-python {version('llama-cpp-python')}", out


def main() -> None:
    which, *rest = sys.argv[1:]
    parts, peaks = weight()
    w = put_together(parts, peaks)
    about, out = microxcaling(w, *rest) if which == "microxcaling" else ggml(w)
    path = GOLDEN / f"microscaling_{which}.npz"
    origin = f"tools/golden/microscaling.py, {about}, torch {torch.__version__}, seed {SEED}"
    np.savez_compressed(path, origin=np.array(origin), parts=parts, peaks=peaks, **out)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
