"""A linear layer whose weight exists only in packed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qviz.core.tensor import QuantizedTensor
from qviz.core.transform import InputScale
from qviz.kernels.kernel import Kernel, Packed
from qviz.methods.rotation import Rotation


class PackedLinear(nn.Module):
    """A linear layer Y = X·Ŵᵀ (+ b) whose weight exists only as a kernel packed it.

    kernel     the kernel that multiplies
    packed     its bytes; each of its tensors is a buffer of this module, named packed_…
    bias       [out] or None
    transform  the change to inputs and outputs that no neighbouring layer absorbs:
               an InputScale (inputs divided, outputs multiplied) or a Rotation (x·Q, y·Qₒᵀ)

    Inputs of another dtype than the weight was packed for are converted to it, and outputs back to
    the dtype of the inputs, so that a kernel which takes float32 alone works in a 16-bit model.
    Casting the module (`.half()`, `.to(torch.float32)`) casts its bias; the packed bytes keep their
    dtypes. It moves between devices of one type; ValueError for a move to another type, as the
    layout of the bytes may be another there.
    """

    quantized = True  # no weight of its own that could be set: load.require_own_weight asks for it
    bias: torch.Tensor | None
    columns: torch.Tensor | None
    input_scale: torch.Tensor | None
    output_scale: torch.Tensor | None
    input_signs: torch.Tensor | None
    output_signs: torch.Tensor | None

    def __init__(
        self,
        kernel: Kernel,
        packed: Packed,
        bias: torch.Tensor | None = None,
        *,
        transform: InputScale | Rotation | None = None,
    ) -> None:
        super().__init__()
        if packed.kernel != kernel.name:
            raise ValueError(f"these bytes were packed for {packed.kernel}, not for {kernel.name}")
        self.kernel, self.packed = kernel, packed
        self.out_features, self.in_features = packed.shape
        for name, tensor in packed.tensors.items():
            self.register_buffer(f"packed_{name}", tensor)
        self.register_buffer("columns", packed.columns)
        held = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", held)
        scale = transform if isinstance(transform, InputScale) else None
        turn = transform if isinstance(transform, Rotation) else None
        self._hold("input_scale", None if scale is None else scale.scale)
        self._hold("output_scale", None if scale is None else scale.outputs)
        self._hold("input_signs", None if turn is None else turn.signs)
        self._hold("output_signs", None if turn is None else turn.output)
        self._plain = transform is None

    def _hold(self, name: str, tensor: torch.Tensor | None) -> None:
        where = self.packed.device
        self.register_buffer(name, None if tensor is None else tensor.detach().to(where, copy=True))

    @classmethod
    def pack(
        cls,
        q: QuantizedTensor,
        kernel: Kernel,
        bias: torch.Tensor | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PackedLinear:
        """The layer of a quantized weight; its transform, if it has one, runs with it.

        dtype is that of inputs and outputs (None: the kernel's own); a kernel that does not take it
        packs for its own. ValueError, saying why, for a tensor that the kernel does not take.

        >>> q = qviz.quantize(weight, bits=4, group_size=32)
        >>> layer = PackedLinear.pack(q, qviz.kernels.get("torch.matmul"), dtype=torch.float32)
        >>> layer(torch.ones(2, weight.shape[1])).shape
        torch.Size([2, 64])
        """
        if not isinstance(q.transform, InputScale | Rotation | None):
            raise ValueError(
                f"this weight was quantized in other coordinates ({type(q.transform).__name__}), "
                "and how to transform the inputs is not known here; pack q.folded() and "
                "transform them yourself"
            )
        # A copy, since a kernel may return the tensor's own codes.
        packed = kernel.pack(q.folded(), device, inner_dtype(kernel, dtype)).copy()
        if bias is not None:
            bias = bias.detach().to(packed.device, dtype or packed.dtype, copy=True)
        return cls(kernel, packed, bias, transform=q.transform)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Y [..., out] in the dtype of x [..., in]; ValueError for another width or device."""
        if self._plain:
            y = self.kernel.multiply(self.packed, x.to(self.packed.dtype)).to(x.dtype)
        else:
            y = self._leave(self.kernel.multiply(self.packed, self._enter(x))).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def _enter(self, x: torch.Tensor) -> torch.Tensor:
        """The inputs in the coordinates in which the weight was quantized, in the packed dtype."""
        if self.input_scale is not None:
            x = x / self.input_scale  # in the wider dtype of the two, rounded once below
        if self.input_signs is not None:
            x = Rotation(self.input_signs).apply(x)  # x·Q, row by row as for a weight
        return x.to(self.packed.dtype)

    def _leave(self, y: torch.Tensor) -> torch.Tensor:
        """The outputs back in their own coordinates."""
        if self.output_scale is not None:
            y = y * self.output_scale
        if self.output_signs is not None:
            y = Rotation(self.output_signs).undo(y)  # y·Qₒᵀ
        return y

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """What .to(), .half() and .cuda() call with what they do to one tensor."""
        there = fn(torch.empty(0, device=self.packed.device)).device
        if there.type != self.packed.device.type:
            raise ValueError(
                f"weights packed for {self.kernel.name} on {self.packed.device} cannot move to "
                f"{there}, where their layout may be another: pack the quantized model again with "
                f"device={str(there)!r}. Other parts of the model may have moved already"
            )

        def bytes_kept(tensor: torch.Tensor) -> torch.Tensor:
            if tensor is self.bias or fn(tensor.new_empty(0)).dtype == tensor.dtype:
                return fn(tensor)
            return tensor.to(there)  # a cast would change the meaning of the bytes

        super()._apply(bytes_kept, recurse)  # type: ignore[no-untyped-call]
        self._refresh(there)
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        self._refresh(self.packed.device)

    def _refresh(self, device: torch.device) -> None:
        """Rebuild `packed` from the present buffers: products read it, not them."""
        tensors = {name: self.get_buffer(f"packed_{name}") for name in self.packed.tensors}
        self.packed = replace(self.packed, tensors=tensors, columns=self.columns, device=device)

    def extra_repr(self) -> str:
        return (
            f"{self.kernel.name}, in_features={self.in_features}, "
            f"out_features={self.out_features}, {self.packed.dtype}, {self.packed.nbytes} bytes"
        )


def inner_dtype(kernel: Kernel, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype a kernel packs for where the model computes in `dtype`."""
    return dtype if dtype in kernel.dtypes and dtype is not None else kernel.dtypes[0]
