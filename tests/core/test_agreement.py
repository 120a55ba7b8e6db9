"""Agreement of two runs: the first difference of each row, and whether it was a tie."""

import pytest
import torch

from qviz.core.agreement import agreement

OURS = torch.tensor([[3, 1, 2, 0], [3, 1, 2, 0], [3, 1, 2, 0], [3, 1, 2, 0]])
AT = torch.tensor([[3.1, 0.8, 2.4, 0.2]] * 4)


def test_equal_runs():
    found = agreement(OURS, OURS, AT, losses=(2.0, 2.001))
    assert found.holds
    assert (found.rows, found.compared, found.differences) == (4, 16, ())
    assert str(found).startswith("4 of 4 rows equal")
    assert not agreement(OURS, OURS, AT, losses=(2.0, 2.01)).holds


def test_only_the_first_difference_of_a_row_counts():
    theirs, at = OURS.clone(), AT.clone()
    theirs[1] = torch.tensor([3, 2, 9, 9])  # parts at a tie between 1 and 2, then goes elsewhere
    at[1, 1] = 1.5004
    found = agreement(OURS, theirs, at)
    (one,) = found.differences
    assert (one.row, one.step, one.column, one.ours, one.theirs) == (1, 1, 1, 1, 2)
    assert one.distance == pytest.approx(4e-4, rel=1e-3)
    assert one.explained and found.holds
    assert found.compared == 16 - 2
    assert not agreement(OURS, theirs, at, tolerance=1e-4).holds


def test_what_is_no_tie_is_named_earliest_first():
    theirs, at = OURS.clone(), AT.clone()
    theirs[0, 3] = 1  # at 0.2: far from 0.5
    theirs[2, 1] = 3  # two levels off: no tie lies between
    at[2, 1] = 2.0
    found = agreement(OURS, theirs, at)
    assert not found.holds
    assert [(d.row, d.step) for d in found.unexplained] == [(2, 1), (0, 3)]
    assert "row 2, column 1 (step 1): 1 beside 3" in str(found)


def test_a_tie_may_change_the_loss():
    theirs, at = OURS.clone(), AT.clone()
    theirs[1, 1], at[1, 1] = 2, 1.5
    assert agreement(OURS, theirs, at, losses=(1.0, 0.9)).holds


def test_first_means_first_in_the_order_of_the_steps():
    theirs = OURS.clone()
    theirs[0, 0], theirs[0, 3] = 2, 1
    (one,) = agreement(OURS, theirs, AT, perm=torch.tensor([3, 2, 1, 0])).differences
    assert (one.step, one.column) == (0, 3)
    (one,) = agreement(OURS, theirs, AT).differences
    assert (one.step, one.column) == (0, 0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        agreement(OURS, OURS[:2], AT)
