"""Calibration: what a method may know about the inputs of one linear layer.

The one form in which data reaches a method. `qviz.capture` makes it from a model and texts.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from qviz.core.check import as_matrix, require_finite, require_int
from qviz.core.divide import divide

RECAPTURE = (
    "Capture again with the model in float32 or bfloat16: float16 ends at 65504, so large "
    "activations become Inf"
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of the inputs X of one linear layer, Y = X·Wᵀ.

    inputs      [kept tokens, in] float32: a sample of the rows of X (all of them if there are few)
    hessian     [in, in] float32 or float64: the mean over tokens of 2·x·xᵀ, that is 2·XᵀX / tokens
                (GPTQ, Frantar et al. 2022, section 3; the average is over tokens, not sequences)
    act_absmax  [in] float32: the largest |x| of each input channel over all tokens
    act_absmean [in] float32: the mean |x| of each input channel over all tokens
    tokens      how many rows of X went into hessian, act_absmax and act_absmean
    layer       the layer's name, for messages
    source      what text it was, for captions

    Raises ValueError for parts that do not fit together and for numbers that are not finite.
    """

    inputs: torch.Tensor
    hessian: torch.Tensor
    act_absmax: torch.Tensor
    act_absmean: torch.Tensor
    tokens: int
    layer: str = ""
    source: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if self.hessian.ndim != 2 or self.hessian.shape[0] != self.hessian.shape[1]:
            raise ValueError(f"hessian must be [in, in], got shape {tuple(self.hessian.shape)}")
        n = self.hessian.shape[0]
        for name in ("act_absmax", "act_absmean"):
            if getattr(self, name).shape != (n,):
                raise ValueError(
                    f"{name} must have the hessian's {n} channels, "
                    f"got shape {tuple(getattr(self, name).shape)}"
                )
        if self.inputs.ndim != 2 or self.inputs.shape[1] != n:
            raise ValueError(
                f"inputs must be [tokens, {n}] like the hessian, got {tuple(self.inputs.shape)}"
            )
        if self.tokens < 1:
            raise ValueError("a calibration needs at least one token")
        # A single NaN here would silently make all factors NaN.
        for name in ("inputs", "hessian", "act_absmax", "act_absmean"):
            if getattr(self, name).numel():
                require_finite(getattr(self, name), f"the calibration's {name}", fix=RECAPTURE)

    @property
    def in_features(self) -> int:
        return self.hessian.shape[0]

    def sample(self, tokens: int) -> "Calibration":
        """The statistics of the first `tokens` of the kept inputs, as from a shorter text.

        The kept inputs are a random sample of the text's tokens, in text order. The Hessian keeps
        its dtype. Raises ValueError for more tokens than were kept.

        >>> qviz.load_calibration(None, "model.layers.0.mlp.down_proj").sample(16).tokens
        16
        """
        tokens = require_int(tokens, "tokens", 1, 10**9)
        if tokens > len(self.inputs):
            raise ValueError(
                f"{tokens} rows of inputs were asked for, but only {len(self.inputs)} were kept: "
                f"capture again with keep_inputs={tokens}"
            )
        rows = self.inputs[:tokens]
        wide = rows.to(self.hessian.dtype)
        product = wide.T @ wide
        return replace(
            self,
            inputs=rows,
            hessian=divide(product + product.T, tokens),  # symmetric to the last bit
            act_absmax=rows.abs().amax(0),
            act_absmean=rows.double().abs().mean(0).float(),
            tokens=tokens,
        )


def require_calibration(x: object) -> None:
    """TypeError for anything but a Calibration, such as the dict that qviz.capture returns."""
    if not isinstance(x, Calibration):
        hint = "; pass one layer's entry of it" if isinstance(x, dict) else ""
        raise TypeError(
            "calibration must be one layer's qviz.Calibration, as returned by "
            f"qviz.capture(…)[layer] or qviz.load_calibration; got {type(x).__name__}{hint}"
        )


def require_fit(calibration: Calibration, in_features: int) -> None:
    """Raise ValueError for a calibration with another number of input channels, TypeError for
    anything else."""
    require_calibration(calibration)
    if calibration.in_features != in_features:
        layer = f" ({calibration.layer})" if calibration.layer else ""
        raise ValueError(
            f"the calibration has {calibration.in_features} input channels{layer}, the weight "
            f"{in_features}: was it captured for another layer?"
        )


def wide_matrix(weight: torch.Tensor | np.ndarray, calibration: Calibration) -> torch.Tensor:
    """The weight [out, in], checked with its calibration, in float32 (float64 stays) and row-major.

    Row-major, so that a sum runs in the same order whatever strides the weight came with. The
    tensor may be the caller's own: it is not to be written to.
    """
    matrix = as_matrix(weight)
    require_fit(calibration, matrix.shape[1])
    wide = matrix.dtype if matrix.dtype == torch.float64 else torch.float32
    return matrix.to(wide).contiguous()
