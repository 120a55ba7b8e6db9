"""Every kernel × format × shape × batch against float64: what the tests bound, as a table.

python bench/kernels_correctness.py [--device cpu|cuda]

On a CPU the Triton kernels run in Triton's interpreter. An error is ‖y − r‖/‖r‖ in the Frobenius
norm, r the kernel's reference in float64; the other one is from X·Ŵᵀ with inputs and weight as they
were given. Each row has the worst over all its shapes and batches.
"""

import argparse
import os
from typing import Any

import torch
from record import save

from qviz.kernels import available
from qviz.kernels.errors import Target
from qviz.kernels.formats import FORMATS, Format
from qviz.kernels.kernel import Kernel
from qviz.kernels.measure import synthetic_inputs, synthetic_weight

ROWS = (1, 17, 48, 64, 130)  # odd ones, and ones that no tile divides
COLUMNS = (256, 768)  # what every format divides
BATCHES = (1, 3, 16, 64)


def row(kernel: Kernel, format: Format, device: torch.device) -> dict[str, Any] | None:
    """The worst errors of a kernel with a format; None where it does not take it at all."""
    cases, refused, worst, total = 0, 0, 0.0, 0.0
    dtype = kernel.dtypes[0]
    for rows in ROWS:
        for columns in COLUMNS:
            q = format.quantize(synthetic_weight((rows, columns), seed=rows))
            if kernel.refuses(q) is not None:
                refused += len(BATCHES)
                continue
            target, packed = Target.of(q), kernel.pack(q, device, dtype)
            for batch in BATCHES:
                x = synthetic_inputs(batch, columns, seed=batch).to(dtype)
                error, whole = target.errors(kernel, x, kernel.multiply(packed, x.to(device)))
                cases, worst, total = cases + 1, max(worst, error), max(total, whole)
    if not cases:
        return None
    return {
        "kernel": kernel.name + (" (interpreted)" if kernel.interpreted else ""),
        "format": format.name,
        "inputs": str(dtype).removeprefix("torch."),
        "cases": cases,
        "refused, with a reason": refused,
        "worst error": worst,
        "worst total error": total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    there = available(device)
    rows = []
    for each in there:
        for format in FORMATS.values() if each else ():
            found = row(each.kernel, format, device)
            if found is not None:
                print(found, flush=True)
                rows.append(found)
    absent = "".join(f"\n- {each.kernel.name}: {each.reason}" for each in there if not each)
    notes = (
        f"{sum(r['cases'] for r in rows)} products: {', '.join(map(str, ROWS))} rows × "
        f"{', '.join(map(str, COLUMNS))} inputs × batch {', '.join(map(str, BATCHES))}."
        + (f" Not available:\n{absent}" if absent else "")
    )
    title = f"Kernels against float64 on {'a CPU' if device.type == 'cpu' else 'CUDA'}"
    print(save(f"kernels_correctness_{device.type}", title, rows, notes).read_text())


if __name__ == "__main__":
    main()
