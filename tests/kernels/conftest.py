"""Fixtures of the kernels' tests."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def interpreter() -> Iterator[None]:
    """Triton's interpreter on the CPU, for this module alone.

    The kernels ask for the variable whenever they are used, and have a copy of their functions for
    each way to run; so it need not be set before Triton is imported, and other tests in the same
    process can compile.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield
