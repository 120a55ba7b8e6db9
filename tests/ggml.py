"""llama.cpp's own C code, through the shared library that llama-cpp-python carries."""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

# enum ggml_type in ggml.h
NUMBERS = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "MXFP4": 39,
}  # fmt: skip


@cache
def library() -> ctypes.CDLL:
    """libggml-base; ModuleNotFoundError if llama-cpp-python is not installed."""
    spec = find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("llama-cpp-python is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    found = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    found.ggml_row_size.restype = ctypes.c_size_t
    found.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return found


def quantize(name: str, weight: torch.Tensor, importance: torch.Tensor | None = None) -> np.ndarray:
    """The bytes uint8 [out, bytes of a row] that ggml_quantize_chunk writes, one thread."""
    x = np.ascontiguousarray(weight.float().numpy())
    rows, columns = x.shape
    size = library().ggml_row_size(NUMBERS[name], columns)
    out = np.zeros((rows, size), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance.float().numpy())
    written = library().ggml_quantize_chunk(
        NUMBERS[name], x.ctypes.data, out.ctypes.data, 0, rows, columns,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
    assert written == out.size
    return out
