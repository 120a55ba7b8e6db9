"""LLM.int8(): integer products, except for the few input columns that hold outliers.

Each row of the weight and each token of the inputs is divided by its largest magnitude and rounded
to 8-bit integers, which are multiplied exactly. A handful of input channels of a large model carry
values so large that they would leave no levels to the rest of their token; columns in which any
value reaches a threshold are therefore taken out and multiplied in half precision, with weights
rebuilt from the same integers. Weights stay 8 bits wide throughout, outlier columns included.

Symbols: X [tokens, in] inputs, W [out, in] weights, O the outlier columns, a [tokens] and b [out]
the largest magnitudes of the rows of X and W, q codes, RNE rounding half to even. Paper: Dettmers
et al. 2022 (arXiv 2208.07339), sections 2 and 3. Convention: bitsandbytes 0.50.2, MatMul8bitLt.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from qviz.core.check import as_matrix, narrowed, require_number
from qviz.core.granularity import Granularity
from qviz.core.grids import Affine
from qviz.core.ledger import Stream
from qviz.core.linear import QuantizedLinear, integer_product
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.registry import Method

PATHS = ("cpu", "cuda")
# 1/127² as each path's source has it. 1/16129 is 6.2000124e-5: a digit was lost in the first.
CPU_CONSTANT = 6.200124e-05
CUDA_CONSTANT = 6.200012e-05
STEP = 7.874015718698502e-3  # 1/127 in float32

EVENTS = (
    EventSpec(
        "llm_int8.weight",
        {"codes": "[out, in] int8", "absmax": "[out, 1] largest magnitude of each row"},
        "b = max |w| of a row, q = RNE(w · (127/b)), w in float16",
        "Dettmers et al. 2022, section 2.2; backends/default/ops.py:int8_vectorwise_quant",
    ),
    EventSpec(
        "llm_int8.outliers",
        {
            "inputs": "[tokens, in] in float16",
            "mask": "[tokens, in] bool: which of them reach the threshold",
            "columns": "[outliers] the columns that hold at least one",
        },
        "|x| ≥ threshold; O = the columns with any",
        "Dettmers et al. 2022, section 3.2; backends/default/ops.py:int8_vectorwise_quant",
    ),
    EventSpec(
        "llm_int8.activation",
        {
            "absmax": "[tokens, 1] largest magnitude of each token's other values",
            "codes": "[tokens, in] int8, 0 in the outlier columns",
        },
        "a = max |x| below the threshold, q = RNE(x · (127/a))",
        "Dettmers et al. 2022, equation 3; backends/default/ops.py:int8_vectorwise_quant",
    ),
    EventSpec(
        "llm_int8.product",
        {"product": "[tokens, out] int32", "part": "[tokens, out] in the inputs' dtype"},
        "Σ q_x·q_w, exact; part = product · (a·b) / 127²",
        "Dettmers et al. 2022, equation 4; backends/default/ops.py:int8_mm_dequant",
    ),
    EventSpec(
        "llm_int8.side",
        {
            "inputs": "[tokens, outliers] the outlier columns of X as they came",
            "weight": "[out, outliers] those of W, rebuilt from the codes, in the inputs' dtype",
        },
        "ŵ = q_w · b / 127",
        "Dettmers et al. 2022, equation 8; backends/default/ops.py:int8_mixed_scaled_mm",
    ),
    EventSpec(
        "llm_int8.output",
        {"output": "[tokens, out] the layer's output; the side path added what part lacks"},
        "Y = part + X_O·Ŵ_Oᵀ",
        "Dettmers et al. 2022, equation 8",
    ),
)


@dataclass(frozen=True, kw_only=True)
class AbsmaxRows(Affine):
    """x̂ = q·b/127, from the stored b = absmax [rows, 1]; `scale` is the spacing b/127.

    Its own arithmetic, because q·b·(1/127) and q·(b/127) round differently.
    """

    absmax: torch.Tensor

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(self.compute) * self.absmax.unsqueeze(-1) * STEP

    def at(self, rows: torch.Tensor, groups: torch.Tensor) -> "AbsmaxRows":
        return replace(self, scale=self.scale[rows, groups], absmax=self.absmax[rows, groups])

    def streams(self, codes: torch.Tensor) -> list[Stream]:
        return [Stream("codes", codes), Stream("absmax", self.absmax)]


@dataclass(frozen=True, repr=False)
class Int8Linear(QuantizedLinear):
    """A layer Y = X·Wᵀ of 8-bit integers with a side path for outlier columns.

    weight     codes [out, in] int8 and absmax [out, 1]
    threshold  |x| from which a value is an outlier; 0: there are none
    path       "cpu" or "cuda": whose constants and roundings the output has
    """

    weight: QuantizedTensor
    threshold: float = 6.0
    path: str = "cpu"

    def __call__(self, x: torch.Tensor, *, emit: Emit | None = None) -> torch.Tensor:
        """Y [..., out] in the dtype of x [..., in], without bias.

        Codes and outliers are found in float16, whatever the dtype; the side path takes the inputs
        as they came. Which columns are outliers depends on all tokens of a call. Raises ValueError
        for inputs that are not finite, or not in float16, and for the wrong number of them.
        """
        grid = self.weight.grid
        assert isinstance(grid, AbsmaxRows)
        flat = self.flatten(x)  # [tokens, in]
        half = _half(flat, "inputs")
        mask = half.abs() >= (self.threshold or torch.inf)
        column = mask.any(dim=0)  # [in]
        columns = column.nonzero().flatten()  # [outliers]
        if emit is not None:
            emit("llm_int8.outliers", inputs=half, mask=mask, columns=columns)

        # An outlier counts for no token's absmax, but its column's other values do.
        codes, absmax = _rows(half.masked_fill(mask, 0.0))
        codes.masked_fill_(column, 0)
        if emit is not None:
            emit("llm_int8.activation", absmax=absmax, codes=codes)

        product = integer_product(codes, self.weight.codes)  # [tokens, out]
        part = self._scaled(product, absmax, grid.absmax.T).to(flat.dtype)
        if emit is not None:
            emit("llm_int8.product", product=product, part=part)

        taken = flat[:, columns]
        rebuilt = grid.decode(self.weight.codes[:, None, columns]).squeeze(1).to(flat.dtype)
        if emit is not None:
            emit("llm_int8.side", inputs=taken, weight=rebuilt)

        # One operation, as in the reference: the sum is rounded to half precision once, not twice.
        y = part.addmm(taken, rebuilt.T)
        if emit is not None:
            emit("llm_int8.output", output=y)
        return y.reshape(*x.shape[:-1], -1)

    def _scaled(self, product: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """product·a·b/127² [tokens, out], in the order and precision of the path."""
        if self.path == "cpu":
            return product.float() * (a * b) * CPU_CONSTANT
        # The CUDA kernel writes float16, whatever dtype is asked of it.
        return (product.float() * a * b * CUDA_CONSTANT).half()


def llm_int8(
    weight: torch.Tensor | np.ndarray,
    *,
    threshold: float = 6.0,
    path: str = "cpu",
    emit: Emit | None = None,
) -> Int8Linear:
    """A layer that multiplies 8-bit integers, and outlier columns in the inputs' precision.

    weight     [out, in]; rounded to float16 first
    threshold  magnitude from which an input is an outlier; 0 takes no column out
    path       "cpu": the roundings of bitsandbytes on a CPU, whose constant for 1/127² is 1.8e-5
               too large, relatively; "cuda": those that its CUDA kernel's source has

    Returns an Int8Linear: codes [out, in] int8, absmax [out, 1] float32; its weight dequantizes to
    float32. `info` counts the rows of zeros. Raises ValueError for NaN or Inf, and for weights
    beyond float16's 65504.

    >>> linear = llm_int8(torch.randn(64, 256))
    >>> linear(torch.randn(2, 10, 256)).shape, linear.bits_per_weight
    (torch.Size([2, 10, 64]), 8.125)
    """
    weight = as_matrix(weight)
    threshold = require_number(threshold, "threshold")
    if not threshold >= 0:  # NaN too
        raise ValueError(f"threshold must be 0 (no outliers) or positive, got {threshold}")
    if path not in PATHS:
        raise ValueError(f'path must be "cpu" or "cuda", got {path!r}')
    codes, absmax = _rows(_half(weight, "weight"))
    if emit is not None:
        emit("llm_int8.weight", codes=codes, absmax=absmax)
    grid = AbsmaxRows(absmax * STEP, 8, -127, 127, torch.float32, absmax=absmax)
    info = {
        "method": "llm_int8",
        "threshold": threshold,
        "path": path,
        "device": str(weight.device),
        "compute": "float16 inputs, int32 sums",
        "zero_rows": int(torch.count_nonzero(absmax == 0)),
    }
    shape = (weight.shape[0], weight.shape[1])
    q = QuantizedTensor(codes, grid, Granularity("channel"), shape, info=info)
    return Int8Linear(q, threshold, path)


def _half(x: torch.Tensor, name: str) -> torch.Tensor:
    return narrowed(x, torch.float16, name)


def _rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, columns] int8 and absmax [rows, 1] float32 of float16 values."""
    absmax = x.abs().amax(dim=1, keepdim=True).float()
    # A row of zeros has no scale: 0·∞ would be NaN. Its codes are 0.
    inverse = torch.where(absmax > 0, 127.0 / absmax, 0.0)
    return torch.round(x * inverse).to(torch.int8), absmax


METHOD = Method(
    name="llm_int8",
    kind="linear",
    function=llm_int8,
    needs=frozenset(),
    title="8-bit integer products, outlier columns in half precision",
    source="Dettmers et al. 2022 (arXiv 2208.07339); bitsandbytes 0.50.2, MatMul8bitLt",
    events=EVENTS,
    choices={"path": PATHS},
    origins={
        "threshold": "Dettmers et al. 2022, transformers BitsAndBytesConfig",
        "path": "bitsandbytes on a CPU, which the tests run",
    },
)
