"""Time of GGUF encoding of 4M weights beside llama.cpp's C code and gguf-py, same run.

python bench/gguf.py, with an interpreter that has llama-cpp-python, gguf, or both
"""

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from record import save

import qviz
from qviz.methods.gguf import encode

BENCH = str(Path(__file__).parent)
sys.path = [p for p in sys.path if p != BENCH]  # in which "gguf" would be this very file
sys.path.append(str(Path(__file__).parents[1] / "tests"))
import ggml  # noqa: E402

REPEATS = 7
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


def medians(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, taking turns, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: sorted(t)[REPEATS // 2] for name, t in times.items()}


def main() -> None:
    w = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(0))
    rows: list[dict[str, Any]] = []
    for name in TYPES:
        ours = {
            "bytes": lambda name=name: encode(w, name),
            "all": lambda name=name: qviz.quantize(w, "gguf", type=name),
        }
        theirs = peers(w, name)
        found = medians({**ours, **theirs})
        rows += [
            {
                "type": name,
                "peer": peer,
                "peer, s": found[peer],
                "qviz, bytes, s": found["bytes"],
                "ratio": found["bytes"] / found[peer],
                "qviz, bytes and codes, s": found["all"],
                "ratio, codes too": found["all"] / found[peer],
            }
            for peer in theirs
        ]
    title = "GGUF types: encoding of 1024×4096 float32 weights"
    notes = (
        "All encode on one thread. The peers write bytes; qviz also checks its input and decodes "
        "codes and scales from the bytes, which the last two columns include."
    )
    print(save("gguf", title, rows, notes).read_text())


if __name__ == "__main__":
    main()
