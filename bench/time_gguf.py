"""Time of GGUF encoding of 4M weights beside llama.cpp's C code and gguf-py, same run.

python bench/time_gguf.py, with an interpreter that has llama-cpp-python, gguf, or both
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from record import median_times, save

import qviz
from qviz.methods.gguf import encode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import ggml

TYPES = ("Q4_K", "Q6_K", "Q2_K", "Q3_K", "Q5_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def peers(w: torch.Tensor, name: str) -> dict[str, Callable[[], object]]:
    """Peer → what it does with this weight; those that are installed and have the type."""
    found: dict[str, Callable[[], object]] = {}
    if find_spec("llama_cpp"):
        found["llama.cpp, C, 1 thread"] = lambda: ggml.quantize(name, w)
    if find_spec("gguf") and not name.endswith("_K"):
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        array, kind = w.numpy(), GGMLQuantizationType[name]
        found["gguf-py"] = lambda: quantize(array, kind)
    return found


def main() -> None:
    w = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    for name in TYPES:
        theirs = peers(w, name)
        times = median_times(
            lambda name=name: encode(w, name),
            lambda name=name: qviz.quantize(w, "gguf", type=name),
            *theirs.values(),
        )
        rows += [
            {
                "type": name,
                "peer": peer,
                "peer, s": time,
                "qviz, bytes, s": times[0],
                "ratio": times[0] / time,
                "qviz, bytes and codes, s": times[1],
                "ratio, codes too": times[1] / time,
            }
            for peer, time in zip(theirs, times[2:], strict=True)
        ]
    title = "GGUF types: encoding of 1024×4096 float32 weights"
    notes = (
        "All encode on one thread. The peers write bytes; qviz also checks its input and decodes "
        "codes and scales from the bytes, which the last two columns include."
    )
    print(save("time_gguf", title, rows, notes).read_text())


if __name__ == "__main__":
    main()
