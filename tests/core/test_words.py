"""Numbers in words: one spelling."""

import math

import pytest

from qviz.core.words import counted, number, percent, signed


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0412345, 4, "0.04123"), (-3, 4, "−3"), (-0.0, 4, "0"), (1.5e-7, 4, "1.5e−7"),
        (123456.0, 3, "1.23e5"), (math.nan, 4, "NaN"), (math.inf, 4, "∞"), (-math.inf, 4, "−∞"),
    ],
)  # fmt: skip
def test_a_number_has_significant_digits_and_a_true_minus_sign(value, digits, text):
    assert number(value, digits) == text


def test_shares_changes_and_counts():
    assert percent(0.05) == "5 %" and percent(-0.123456) == "−12.3 %"
    assert [signed(v) for v in (0.5, -0.5, 0.0)] == ["+0.5", "−0.5", "0"]
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
