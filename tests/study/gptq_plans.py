"""Small GPTQ runs for tests of what is said about them: correlated inputs, and a judge."""

import torch
from inputs import calibration_for

from qviz.study.gptq_contrasts import CONTRASTS, Plan
from qviz.study.gptq_walk import Walk

NAMES = {c.name: c for c in CONTRASTS}


def problem(columns=64, rows=24, tokens=200):
    """(a plan of correlated inputs, with a judge of its own, in float64; texts for a contrast)."""
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(6, columns, generator=g, dtype=torch.float64)
    sizes = torch.logspace(-0.5, 0.5, columns, dtype=torch.float64)

    def inputs(seed):
        h = torch.Generator().manual_seed(seed)
        base = torch.randn(tokens, 6, generator=h, dtype=torch.float64) @ mix
        noise = torch.randn(tokens, columns, generator=h, dtype=torch.float64)
        return calibration_for((base + 0.5 * noise) * sizes)

    w = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    return Plan(w, inputs(1), inputs(2), {"group_size": 32, "bits": 3}), lambda _: inputs(7)


def run(name, plan, texts) -> tuple[Plan, Walk, Walk]:
    """(the second run's plan, the first run, the second)."""
    second = NAMES[name].apply(plan, texts)
    return second, plan.walk(), second.walk()
