"""Fixtures of all tests."""

import pytest
import torch
from inputs import adversarial


@pytest.fixture(params=sorted(adversarial()), ids=lambda name: name.replace(" ", "-"))
def hard_weight(request: pytest.FixtureRequest) -> torch.Tensor:
    return adversarial()[request.param]
