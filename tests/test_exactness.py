"""Each comparison of tests/exactness holds; which is what `make exactness` prints as a table."""

import warnings

import pytest
from exactness import DISTRIBUTIONS, HEAVY, everything

COMPARISONS = everything()


@pytest.mark.parametrize(
    "comparison",
    [
        pytest.param(c, id=name, marks=[pytest.mark.slow] if c.slow else [])
        for name, c in COMPARISONS.items()
    ],
)
def test_equal(comparison):
    if comparison.oracle in HEAVY:
        try:
            comparison.version  # noqa: B018
        except LookupError as missing:
            pytest.skip(f"{missing}; make exactness installs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the oracles' own
        tally = comparison.run()
    assert tally.compared > 0
    assert tally.mismatches <= comparison.allowed, tally
    assert tally.mismatches == 0 or tally.note, "a mismatch that is allowed must be explained"


def test_oracles_have_versions():
    for comparison in COMPARISONS.values():
        if comparison.oracle in DISTRIBUTIONS - HEAVY:
            assert comparison.version
