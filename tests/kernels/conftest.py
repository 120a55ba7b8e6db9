"""Fixtures of the kernels' tests."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

if find_spec("triton") is not None:
    # Before anything sets TRITON_INTERPRET: a Triton that is first imported with it can compile
    # nothing in this process, neither here nor for torch.compile.
    import triton  # noqa: F401


@pytest.fixture(scope="module")
def interpreter() -> Iterator[None]:
    """Triton's interpreter on the CPU, for this module alone.

    The kernels ask for the variable whenever they are used, and have a copy of their functions for
    each way to run, so both can be used in one process.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield
