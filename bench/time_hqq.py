"""Time of HQQ beside hqq, same weight, same run, both on the processor in float32.

python bench/time_hqq.py, with an interpreter that has hqq
"""

import contextlib
import io
from collections.abc import Callable

import torch
from record import median_times, save

import qviz


def hqq_run(w: torch.Tensor, bits: int) -> Callable[[], object]:
    with contextlib.redirect_stdout(io.StringIO()):  # it greets
        from hqq.core.quantize import Quantizer

    return lambda: Quantizer.quantize(
        w, nbits=bits, group_size=64, round_zero=bits == 4, axis=1, optimize=True, device="cpu",
        compute_dtype=torch.float32, bitpack=False,
    )  # fmt: skip


def main() -> None:
    rows = []
    cases = [(n, *case) for n in (1024, 4096) for case in ((0.03, 4), (1.0, 2))]
    for n, spread, bits in cases:
        w = torch.randn(n, n, generator=torch.Generator().manual_seed(0)) * spread
        ours, theirs = median_times(
            lambda w=w, bits=bits: qviz.quantize(w, "hqq", bits=bits), hqq_run(w, bits)
        )
        rows.append(
            {
                "weight": f"{n}×{n}, standard deviation {spread}",
                "bits": bits,
                "qviz, s": ours,
                "hqq, s": theirs,
                "ratio": ours / theirs,
            }
        )
    print(save("time_hqq", "HQQ, group 64, at most 20 steps", rows).read_text())


if __name__ == "__main__":
    main()
