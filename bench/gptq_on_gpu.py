"""GPTQ on a GPU with the Hessian given, 4 bits, group 128: seconds, and the codes beside a CPU's.

python bench/gptq_on_gpu.py

The codes of the smallest size are counted beside the CPU's. Products in another order may turn a
code at a rounding tie, and what follows from it in its row; the tests hold that to its rule.
"""

import statistics
import time

import torch
from record import table

import qviz

SIZES = ((1024, 1024), (4096, 4096), (4096, 11008))
REPEATS = 3


def problem(out: int, columns: int) -> tuple[torch.Tensor, qviz.Calibration]:
    """A weight and a Hessian of inputs of unequal size, on the GPU."""
    g = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(out, columns, generator=g, device="cuda")
    x = torch.randn(2 * columns, columns, generator=g, device="cuda")
    x *= torch.rand(columns, generator=g, device="cuda")
    largest, mean = x.abs().amax(0), x.abs().mean(0)
    return weight, qviz.Calibration(x[:1].clone(), 2 * x.T @ x / len(x), largest, mean, len(x))


def on_cpu(calibration: qviz.Calibration) -> qviz.Calibration:
    c = calibration
    return qviz.Calibration(
        c.inputs.cpu(), c.hessian.cpu(), c.act_absmax.cpu(), c.act_absmean.cpu(), c.tokens
    )


def seconds_of(weight: torch.Tensor, calibration: qviz.Calibration) -> list[float]:
    """Of each repeat, after one that is not counted."""
    taken = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        qviz.quantize(weight, "gptq", calibration, bits=4, group_size=128)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[1:]


def main() -> None:
    rows = []
    for out, columns in SIZES:
        weight, calibration = problem(out, columns)
        taken = seconds_of(weight, calibration)
        row = {"size": f"{out}×{columns}", "median, s": statistics.median(taken)}
        row |= {"fastest, s": min(taken), "slowest, s": max(taken), "equal to the CPU's": ""}
        if out * columns <= 2**20:
            ours = qviz.quantize(weight, "gptq", calibration, bits=4, group_size=128).codes.cpu()
            theirs = qviz.quantize(
                weight.cpu(), "gptq", on_cpu(calibration), bits=4, group_size=128
            ).codes
            row["equal to the CPU's"] = f"{float((ours == theirs).float().mean()):.6f} of the codes"
        rows.append(row)
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
