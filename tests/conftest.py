"""Fixtures of all tests."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from inputs import adversarial

# A busy machine is no failure of the code: examples have no time limit.
settings.register_profile("qviz", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("qviz")

# The matrices here are small: threads that wait for each other cost more than they give, above all
# while a browser or another test process wants the same cores.
torch.set_num_threads(1)


@pytest.fixture(params=sorted(adversarial()), ids=lambda name: name.replace(" ", "-"))
def hard_weight(request: pytest.FixtureRequest) -> torch.Tensor:
    return adversarial()[request.param]
