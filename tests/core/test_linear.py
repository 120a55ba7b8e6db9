"""What layers that quantize their inputs share."""

import pytest
import torch

from qviz.core.linear import integer_product


def test_sums_that_may_leave_int32_are_refused():
    most = torch.full((1, 2**17 - 1), -128, dtype=torch.int8)
    assert int(integer_product(most, most)) == (2**17 - 1) * 2**14
    with pytest.raises(ValueError, match=r"131072 products.*split the inputs"):
        integer_product(*[torch.zeros(1, 2**17, dtype=torch.int8)] * 2)


@pytest.mark.parametrize("columns", [1, 1024, 1025, 5000])
def test_integer_products_are_exact_at_the_largest_codes(columns):
    g = torch.Generator().manual_seed(columns)
    a = torch.randint(-128, 128, (3, columns), generator=g, dtype=torch.int8)
    b = torch.randint(-128, 128, (4, columns), generator=g, dtype=torch.int8)
    a[0], b[0], b[1] = -128, -128, 127
    a[1] = 127
    want = (a.long()[:, None] * b.long()[None]).sum(-1)
    product = integer_product(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product.long(), want)
