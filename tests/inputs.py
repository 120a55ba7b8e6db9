"""Inputs that tests share: random, trained-like, and made to break things."""

import numpy as np
import torch

import qviz


def adversarial(columns: int = 128) -> dict[str, torch.Tensor]:
    """Name → weight [4, columns] that has broken some quantizer."""
    g = torch.Generator().manual_seed(5)
    w = torch.randn(4, columns, generator=g)
    half = torch.arange(columns).remainder(16) - 8
    cases = {
        "random": w,
        "zero row": w * torch.tensor([[1.0], [0.0], [1.0], [1.0]]),
        "all zero": torch.zeros(4, columns),
        "constant": torch.full((4, columns), 0.7),
        "negative constant": torch.full((4, columns), -0.3),
        "positive": w.abs() + 0.1,
        "negative": -w.abs() - 0.1,
        "far from zero": w * 0.01 + 5,
        "ties": (half + 0.5).expand(4, -1).clone(),
        "exact": half.expand(4, -1).float().clone(),
        "one outlier": torch.cat([w[:, :-1], torch.full((4, 1), 300.0)], dim=1),
        "single value": torch.nn.functional.one_hot(torch.arange(4), columns).float(),
        "small": w * 1e-4,
        "tiny": w * 1e-20,
        "subnormal": w * 1e-41,
        "large": w * 1e30,
        "negative zero": torch.where(w > 0, w, -0.0),
    }
    return cases


def calibration_for(x: torch.Tensor) -> qviz.Calibration:
    """The Calibration of inputs x [tokens, in], computed the plain way."""
    return qviz.Calibration(
        inputs=x.float(),
        hessian=(2 * x.double().T @ x.double() / len(x)),
        act_absmax=x.abs().amax(0).float(),
        act_absmean=x.abs().mean(0).float(),
        tokens=len(x),
    )


def golden_layer() -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [128, 128] and inputs [1300, 128] of golden vectors, both of integers.

    From NumPy's legacy generator, whose numbers are frozen, so that they need not be stored.
    """
    g = np.random.RandomState(2306)
    w = g.randint(-40, 41, (4, 128, 128)).sum(0) * (1 + 3 * (g.randint(0, 40, (1, 128)) == 0))
    x = g.randint(-9, 10, (3, 1300, 128)).sum(0) + g.randint(-5, 6, (1300, 1))
    x = x * g.choice([1, 1, 2, 3, 5, 8, 30], (1, 128))
    return torch.from_numpy(w).float() / 2048, torch.from_numpy(x).float() / 16
