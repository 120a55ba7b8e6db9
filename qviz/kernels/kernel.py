"""What a kernel is: what it needs, how it stores a quantized weight, how it multiplies with it.

A kernel computes Y = X·Ŵᵀ from the packed bytes of a QuantizedTensor. Three things are kept
separate so that each can be tested alone: `adapt`, the weight that the packed bytes stand for (a
kernel may
store scales in fewer bits); `inputs`, how the kernel converts X before it multiplies (some
quantize it too); and the product itself, whose reference is those two, multiplied in float64.

Symbols: X [tokens, in] inputs, Ŵ [out, in] the dequantized weight, Y [tokens, out], m tokens
(the batch), n outputs, k inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import torch

from qviz.core.grids import Affine
from qviz.core.tensor import QuantizedTensor

# The exceptions that a library raises if it lacks a kernel, its device, or the instructions for it.
LACKING = (RuntimeError, NotImplementedError, AttributeError, ImportError, OSError, TypeError)


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight as one kernel reads it.

    kernel   its name
    shape    (out, in) of the weight
    dtype    of the inputs and outputs it was packed for
    device   where it lies
    tensors  everything on the device that a product reads, by name
    options  numbers that the product needs beside them, such as the group size
    columns  [in] int64 or None: the order in which the kernel wants the inputs (GPTQ's act-order)
    scratch  what a kernel derives from the tensors once and keeps (a library's own handle); not
             copied
    """

    kernel: str
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    tensors: Mapping[str, torch.Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    columns: torch.Tensor | None = None
    scratch: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes really held on the device; tensors that share a storage count once."""
        held = [*self.tensors.values(), *([] if self.columns is None else [self.columns])]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        return sum(storages.values())

    def copy(self) -> "Packed":
        """The same bytes at another address."""
        copies = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return replace(self, tensors=copies, scratch={})

    def __repr__(self) -> str:
        out, columns = self.shape
        return f"Packed({self.kernel}, {out}×{columns}, {self.nbytes} bytes on {self.device})"


class Kernel(ABC):
    """A real product with a packed weight. Subclasses are stateless; `registry` lists them.

    name         backend and product, such as "torch.int4"
    title        what it is, in a few words
    source       where its code is
    devices      device types on which it can exist at all
    dtypes       of the inputs (and outputs) it takes; the first is the one it is made for
    activations  how the inputs are converted, in words; "as they are" if they are not
    arithmetic   the dtype that inputs and weights are rounded to; None: that of the inputs
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16, torch.float32)
    activations: ClassVar[str] = "as they are"
    arithmetic: ClassVar[torch.dtype | None] = None

    @property
    def backend(self) -> str:
        return self.name.partition(".")[0]

    @property
    def interpreted(self) -> bool:
        """Whether it runs here only in an interpreter: correct, but useless for timing."""
        return False

    # ------------------------------------------------------------------ what it needs

    def missing(self, device: torch.device | str = "cpu") -> str | None:
        """One sentence that says why the kernel cannot run on this device; None: it can.

        Found out by running it once on a small weight, not assumed from versions.
        """
        where = torch.device(device)
        absent = _device_missing(where)
        if absent is not None:
            return absent
        if where.type not in self.devices:
            return f"{self.name} exists only on {' and '.join(self.devices)}, not on {where.type}."
        return _probed(self, where)

    def _lacks(self, device: torch.device) -> str | None:
        """What is known to be absent before anything runs (a package, a capability): one
        sentence, or None. May raise LACKING."""
        return None

    @abstractmethod
    def sample(self) -> QuantizedTensor:
        """A small tensor that this kernel takes, on the CPU: it is tried with it."""

    def _probe(self, device: torch.device) -> str | None:
        """Why not, in a sentence: what is missing, or that the product was wrong. May raise
        LACKING."""
        lacking = self._lacks(device)
        if lacking is not None:
            return lacking
        q, dtype = self.sample(), self.dtypes[0]
        x = torch.randn(3, q.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
        y = self.multiply(self.pack(q, device, dtype), x.to(device)).cpu().double()
        expected = self.reference(q, x)
        # Far above rounding error, far below the effect of a misplaced nibble.
        if not float((y - expected).norm()) < 0.02 * float(expected.norm()):
            return (
                f"{self.name} ran here, but its product is wrong, so its layout must be different."
            )
        return None

    @abstractmethod
    def refuses(self, q: QuantizedTensor) -> str | None:
        """One sentence that says why this tensor is not for this kernel; None: it is."""

    # ------------------------------------------------------------------ what it computes

    def adapt(self, q: QuantizedTensor, dtype: torch.dtype) -> QuantizedTensor:
        """The tensor that the packed bytes stand for: q, with what the kernel stores in fewer
        bits rounded to them."""
        return q

    def inputs(self, x: torch.Tensor, q: QuantizedTensor) -> torch.Tensor:
        """X [tokens, in] as the kernel multiplies it, in float64."""
        return x.double()

    def reference(self, q: QuantizedTensor, x: torch.Tensor) -> torch.Tensor:
        """The product in float64 [tokens, out]: dequantize, then multiply. This is the reference
        for a kernel's arithmetic."""
        weight = self.adapt(q, x.dtype).dequantize().double()
        return self.inputs(x, q) @ weight.T

    def pack(
        self,
        q: QuantizedTensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Packed:
        """The weight in the kernel's layout, on `device` (None: where its codes are), for inputs
        of `dtype` (None: the kernel's own).

        ValueError, saying why, for a tensor or a dtype that the kernel does not take. q is not
        changed. Columns in act-order are sorted by group, and the inputs with them.
        """
        if not isinstance(q, QuantizedTensor):
            raise TypeError(
                f"pack takes a QuantizedTensor, got {type(q).__name__}; a QuantizedLinear has one "
                f"as its .weight"
            )
        dtype = dtype or self.dtypes[0]
        if dtype not in self.dtypes:
            known = ", ".join(str(one).removeprefix("torch.") for one in self.dtypes)
            raise ValueError(f"{self.name} multiplies {known} inputs, not {dtype}")
        reason = self.refuses(q) or _transformed(q)
        if reason is not None:
            raise ValueError(reason)
        where = q.codes.device if device is None else torch.device(device)
        sorted_q, columns = by_group(q)
        tensors, options = self._pack(self.adapt(sorted_q, dtype), where, dtype)
        kept = {name: t.to(where).contiguous() for name, t in tensors.items()}
        if columns is not None:
            columns = columns.to(where)
        return Packed(self.name, q.shape, dtype, where, kept, options, columns)

    @abstractmethod
    def _pack(
        self, q: QuantizedTensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and options of Packed, for an adapted tensor whose groups are consecutive."""

    def multiply(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        """Y [..., out] in the dtype of x [..., in].

        ValueError for another kernel's bytes, or inputs of another width, dtype or device.
        """
        if packed.kernel != self.name:
            raise ValueError(f"these bytes were packed for {packed.kernel}, not for {self.name}")
        if x.ndim == 0 or x.shape[-1] != packed.shape[1]:
            raise ValueError(
                f"the weight takes {packed.shape[1]} inputs in the last dimension, got shape "
                f"{tuple(x.shape)}"
            )
        if x.dtype != packed.dtype or x.device.type != packed.device.type:
            raise ValueError(
                f"the weight was packed for {packed.dtype} on {packed.device}, the inputs are "
                f"{x.dtype} on {x.device}: convert them, or pack it again"
            )
        flat = x.reshape(-1, packed.shape[1])  # [tokens, in]
        if packed.columns is not None:
            flat = flat[:, packed.columns]
        if flat.shape[0] == 0:
            return x.new_empty((*x.shape[:-1], packed.shape[0]))
        y = self.product(packed, flat.contiguous())
        return y.reshape(*x.shape[:-1], packed.shape[0])

    @abstractmethod
    def product(self, packed: Packed, x: torch.Tensor) -> torch.Tensor:
        """Y [tokens, out] for inputs [tokens, in] that are contiguous, checked and in the
        kernel's order: what is measured."""

    def __repr__(self) -> str:
        return f"<kernel {self.name}: {self.title}>"


# ---------------------------------------------------------------------- what kernels share


@cache
def _probed(kernel: Kernel, device: torch.device) -> str | None:
    try:
        return kernel._probe(device)
    except LACKING as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        return f"{kernel.name} does not run here: {said[0].rstrip('.')[:160]}."


@cache
def _device_missing(device: torch.device) -> str | None:
    if device.type == "cuda" and not torch.cuda.is_available():
        return "There is no CUDA device here, or this torch was built without CUDA."
    if device.type not in ("cpu", "cuda"):
        return f"qviz has kernels for CPU and CUDA devices, not for {device.type}."
    return None


def _transformed(q: QuantizedTensor) -> str | None:
    """Why a tensor with a transform cannot be packed as it is."""
    if q.transform is None:
        return None
    return (
        f"this weight was quantized in other coordinates ({type(q.transform).__name__}): pack "
        "q.folded() and apply the transform to the inputs"
    )


def by_group(q: QuantizedTensor) -> tuple[QuantizedTensor, torch.Tensor | None]:
    """The tensor with its columns sorted by group, and the order [in] of the inputs that this
    requires; (q, None) if groups are already consecutive.

    What kernels do with GPTQ's act-order (Marlin, vLLM): a gather of the inputs costs less than
    looking up a group for every weight. ValueError where groups are of unequal sizes.
    """
    if q.g_idx is None:
        return q, None
    columns = torch.argsort(q.g_idx, stable=True)
    size = q.granularity.group_size or q.shape[1]
    expected = torch.arange(q.shape[1], device=q.g_idx.device) // size
    if not torch.equal(q.g_idx[columns].long(), expected):
        raise ValueError(
            f"the groups of this tensor do not have {size} columns each, so no kernel takes it"
        )
    return replace(q, codes=q.codes[:, columns], g_idx=None), columns


def affine_of(q: QuantizedTensor) -> Affine | None:
    """The grid, if levels are equally spaced and stored as scale and zero point."""
    return q.grid if type(q.grid) is Affine else None


def group_of(q: QuantizedTensor) -> int | None:
    """Weights along a row that share a scale (the row's length where all do); None for other
    granularities than groups and rows."""
    if q.granularity.kind == "channel" and q.granularity.axis == 1:
        return q.shape[1]
    if q.granularity.kind == "group" and q.granularity.axis == 1:
        return q.granularity.group_size
    return None


def round_up(value: int, to: int) -> int:
    """The smallest multiple of `to` that is not below value."""
    return -(-value // to) * to


def padded(x: torch.Tensor, rows: int, columns: int, value: float = 0) -> torch.Tensor:
    """x [r, c] as the corner of a matrix [rows, columns] of `value`; x itself where it fits."""
    if x.shape == (rows, columns):
        return x
    extra = (0, columns - x.shape[1], 0, rows - x.shape[0])
    return torch.nn.functional.pad(x, extra, value=value)
