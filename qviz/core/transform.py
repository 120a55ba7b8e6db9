"""Transforms: what a method did to a weight before it quantized it, and how to undo it."""

from dataclasses import dataclass
from typing import Protocol

import torch

from qviz.core.ledger import Stream


class Transform(Protocol):
    """A change of coordinates of a weight [out, in] that leaves the layer's function unchanged."""

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight in the coordinates in which it is quantized, a new tensor."""

    def undo(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight back in its own coordinates, a new tensor."""

    def streams(self) -> list[Stream]:
        """What has to be stored with the codes; nothing if a neighbouring layer absorbed it."""


@dataclass(frozen=True, eq=False)
class InputScale:
    """Input channels multiplied by `scale` [in], W·diag(s); the inputs are divided by it.

    folded   the division was folded into the layer before, so that it costs no storage (AWQ,
             SmoothQuant); otherwise the scales are stored in their dtype
    outputs  [out] or None: divisors of the outputs, because the next layer's scales were folded
             into this one

    Raises ValueError for factors that are not finite or not above 0: nothing could undo them.
    """

    scale: torch.Tensor
    folded: bool = True
    outputs: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "outputs"):
            factors = getattr(self, name)
            if factors is not None and not bool((torch.isfinite(factors) & (factors > 0)).all()):
                raise ValueError(f"InputScale: {name} must be finite and above 0 everywhere")

    def apply(self, weight: torch.Tensor) -> torch.Tensor:
        if self.scale.shape != weight.shape[1:]:
            raise ValueError(
                f"the weight has {weight.shape[1]} inputs, the factors' shape is "
                f"{tuple(self.scale.shape)}; give one for each input"
            )
        scaled = weight * self.scale.to(weight)
        if self.outputs is None:
            return scaled
        return scaled / self.outputs.to(weight).unsqueeze(-1)

    def undo(self, weight: torch.Tensor) -> torch.Tensor:
        back = weight / self.scale.to(weight)
        return back if self.outputs is None else back * self.outputs.to(weight).unsqueeze(-1)

    def part(self, rows: slice, columns: slice) -> "InputScale":
        """The same for a window of the weight."""
        outputs = None if self.outputs is None else self.outputs[rows]
        return InputScale(self.scale[columns], self.folded, outputs)

    def streams(self) -> list[Stream]:
        return [] if self.folded else [Stream("input scales", self.scale)]


def require_input_scale(transform: object) -> None:
    """TypeError for anything but an InputScale, such as the bare factors."""
    if not isinstance(transform, InputScale):
        raise TypeError(
            f"transform must be an InputScale, got {type(transform).__name__}; factors s [in] "
            f"become one by InputScale(s)"
        )
