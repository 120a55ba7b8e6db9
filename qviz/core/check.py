"""Checks that every public function makes on its arguments, with messages that name the fix."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from os import PathLike

import numpy as np
import torch

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_matrix(
    x: object,
    name: str = "weight",
    *,
    shape_fix: Callable[[str, tuple[int, ...]], str] | None = None,
) -> torch.Tensor:
    """`x` as a finite, non-empty floating-point matrix [rows, columns]; never a cast, and a copy
    only of NumPy arrays that torch cannot share (read-only or reversed ones).

    Takes a torch tensor on any device or a NumPy array. Raises TypeError for anything else or for
    integers, ValueError for other shapes and for NaN or Inf (naming the first position). Each says
    what to do: `shape_fix` (name, shape) is what to do about another shape; None: that of a weight.

    >>> as_matrix(torch.ones(8, 16, 3).flatten(1)).shape
    torch.Size([8, 48])
    """
    if isinstance(x, np.ndarray):
        x = _shared_with_numpy(x, name)
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor or a NumPy array, {_not_a_tensor(x, name)}")
    if x.layout != torch.strided or x.is_meta:
        fix = "load its values first" if x.is_meta else f"take {name}.to_dense()"
        raise TypeError(f"{name} must be a dense tensor that holds its values: {fix}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name} has dtype {x.dtype}; expected one of float32, bfloat16, float16, float64. "
            + _dtype_fix(str(x.dtype).removeprefix("torch."), name, f"{name}.float()")
        )
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError((shape_fix or _weight_shape_fix)(name, tuple(x.shape)))
    x = x.detach()
    require_finite(x, name)
    return x


def _shared_with_numpy(x: np.ndarray, name: str) -> torch.Tensor:
    if x.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(
            f"{name} has NumPy dtype {x.dtype}; expected one of float32, float16, float64. "
            + _dtype_fix(x.dtype.name, name, f'{name}.astype("float32")')
        )
    # torch warns if an array is read-only, although we only read, and has no negative strides
    shareable = x.flags.writeable and min(x.strides, default=0) >= 0
    return torch.from_numpy(x if shareable else x.copy())


def _dtype_fix(dtype: str, name: str, cast: str) -> str:
    """What to do about numbers of another dtype. A cast alone is rarely right: most are codes,
    which mean nothing without their scales."""
    if dtype.startswith(("qint", "quint")):
        return f"It is already quantized: {name}.dequantize() returns its values"
    if dtype.startswith("float8"):
        return (
            "Weights in 8 bits are stored in units of a scale, which a cast alone would drop: pass "
            f"{cast} * scale, with the scale of each weight's tensor, row or block "
            "(weight_scale or weight_scale_inv in a checkpoint)"
        )
    if dtype.startswith(("int", "uint", "bits", "float4")):
        return (
            "Integers are usually codes whose scales are stored separately: dequantize them "
            f"with the library that made them. If they are the weights themselves, pass {cast}"
        )
    if dtype.startswith("complex"):
        return f"Pass the real and the imaginary part separately, {name}.real and {name}.imag"
    return f"Pass {cast}"


def _not_a_tensor(x: object, name: str) -> str:
    """What was given instead of a tensor, and which part of it to pass."""
    kind = type(x).__name__
    if kind == "Conv1D":  # transformers' own, of GPT-2: a linear layer stored the other way
        return f"got {kind}: pass its weight as [out, in], layer.weight.T"
    if isinstance(getattr(x, "weight", None), torch.Tensor):
        return f"got {kind}: pass its weight, layer.weight"
    if isinstance(x, torch.nn.Module) or isinstance(getattr(x, "model", None), torch.nn.Module):
        return f"got {kind}: pass the weight of one layer, or the model to qviz.quantize_model"
    if isinstance(x, Mapping):
        return f"got {kind}: pass one of its tensors, such as {name}[{next(iter(x), 'name')!r}]"
    if isinstance(x, str | PathLike):
        return f"got {x!r}: load it first, qviz.load_layer(model, layer)"
    if isinstance(x, list | tuple):
        return f"got {kind}: pass torch.tensor({name}, dtype=torch.float32)"
    if hasattr(x, "dequantize"):
        return f"got {kind}, which is already quantized: pass its values, {name}.dequantize()"
    return f"got {kind}"


def _weight_shape_fix(name: str, shape: tuple[int, ...]) -> str:
    """The message for something that is not a matrix. How to make one depends on what the numbers
    are: a wrong reshape (one expert per row, one weight per row) would be quantized without
    complaint."""
    if 0 in shape:
        fix = (
            "it has no values. If it is sharded over processes or not loaded yet, gather or "
            "load it first"
        )
    elif len(shape) == 3:
        fix = (
            "where the first dimension counts experts, quantize each expert's matrix, "
            f"{name}[i] ({name}[i].T where it is stored [in, out]). The weight of a 1-D "
            f"convolution is the matrix {name}.flatten(1)"
        )
    elif len(shape) > 3:
        fix = f"the weight of a convolution is the matrix {name}.flatten(1)"
    elif len(shape) == 1:
        fix = (
            "the vectors of a model (biases, the weights of norms) stay in full precision. If it "
            f"is one row of a matrix, pass {name}.reshape(1, -1)"
        )
    else:
        fix = "pass the whole weight of a layer"
    return (
        f"{name} must be a non-empty matrix [out_features, in_features], got shape {shape}: {fix}"
    )


def require_finite(x: torch.Tensor, name: str, *, fix: str = "") -> None:
    """Raise ValueError naming the first position in `x` that is NaN or infinite.

    `fix` says what to do, if that is something other than repairing the tensor itself.
    """
    # The extremes of a tensor with a NaN are NaN: one pass and no second tensor in the usual case.
    if all(math.isfinite(end) for end in torch.stack(torch.aminmax(x)).tolist()):
        return
    bad = (~torch.isfinite(x)).nonzero()
    where = ", ".join(str(i) for i in bad[0].tolist())
    value = float(x[tuple(bad[0])])
    cast = ""
    if x.dtype == torch.float16 and math.isinf(value):
        cast = (
            "Float16 ends at 65504: if the tensor was cast, keep the dtype that it was saved in. "
        )
    raise ValueError(
        f"{name} has {len(bad)} value(s) that are not finite, the first is {value} at [{where}]. "
        + (
            fix
            or f"{cast}Quantization needs finite numbers: load it again, or set them to 0 with "
            f"torch.nan_to_num({name}, 0, 0, 0)"
        )
    )


def narrowed(
    x: torch.Tensor, dtype: torch.dtype, name: str, *, below: int | None = None
) -> torch.Tensor:
    """The finite `x` in the dtype that a computation needs.

    Raises ValueError, naming the power of two to divide by, for numbers that the dtype cannot hold
    or that are not under 2^below, which leaves headroom for what comes later.

    >>> narrowed(torch.tensor([[70000.0 / 2.0**2]]), torch.float16, "weight").dtype
    torch.float16
    """
    y = x.to(dtype)
    limit = torch.finfo(dtype).max
    if limit >= torch.finfo(x.dtype).max or all(
        math.isfinite(e) for e in torch.stack(torch.aminmax(y)).tolist()
    ):
        return y
    bad = torch.isinf(y).nonzero()
    where = ", ".join(str(i) for i in bad[0].tolist())
    largest = float(x.abs().amax())
    # One more than the exponents differ by: a mantissa just below 2 would be rounded up to Inf.
    fix = rescaling(name, largest, math.frexp(limit)[1] - 1 if below is None else below)
    raise ValueError(
        f"{name} has {len(bad)} value(s) beyond {str(dtype).removeprefix('torch.')}, which ends at "
        f"{limit:g}: the first is {float(x[tuple(bad[0])]):g} at [{where}]. {fix}"
    )


def rescaling(name: str, largest: float, exponent: int) -> str:
    """Advice: how to bring numbers up to `largest` below 2^exponent, and how to undo it afterwards.

    >>> rescaling("weight", 70000.0, 15)
    'Pass weight / 2.0**2, and multiply the result by 2.0**2'
    """
    # At most 2^100 upwards, which float32 holds as a factor.
    power = max(math.frexp(largest)[1] - exponent, -100)
    if power >= 0:
        return f"Pass {name} / 2.0**{power}, and multiply the result by 2.0**{power}"
    return f"Pass {name} * 2.0**{-power}, and divide the result by 2.0**{-power}"


def require_representable(x: torch.Tensor, weight: torch.Tensor, what: str) -> None:
    """Raise ValueError if the reconstruction x of a finite weight overflows the weight's dtype
    because its largest numbers were rounded up."""
    dtype = str(weight.dtype).removeprefix("torch.")
    fix = (
        "weight.float()" if weight.dtype == torch.float16 else "weight / 2.0, and double the result"
    )
    require_finite(
        x,
        f"the {what} reconstruction of weight, in {dtype},",
        fix=f"The weight is finite, but {what} rounds it beyond {dtype}: pass {fix}",
    )


def as_device(device: torch.device | str) -> torch.device:
    """The device of this name. Raises ValueError, naming those that qviz runs on, if torch has
    none."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'there is no device {device!r}; take "cpu" or "cuda"') from error


def require_int(value: object, name: str, low: int, high: int) -> int:
    """`value` if it is an int in [low, high]; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return int(value)


def require_bits(value: object, widths: Collection[int], name: str = "bits") -> int:
    """`value` if it is one of a method's bit-widths; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value not in widths:
        raise ValueError(f"{name} must be {in_words(widths)}, got {value}")
    return int(value)


def in_words(widths: Collection[int]) -> str:
    """Numbers to choose from, as written in a sentence.

    >>> in_words(range(2, 9)), in_words((1, 2, 4))
    ('from 2 to 8', 'one of 1, 2, 4')
    """
    known = sorted(widths)
    if len(known) > 2 and known == list(range(known[0], known[-1] + 1)):
        return f"from {known[0]} to {known[-1]}"
    return ("one of " if len(known) > 1 else "") + ", ".join(map(str, known))


def require_number(value: object, name: str) -> float:
    """`value` as a float if it is a number; TypeError otherwise. NaN and ±Inf are numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def close(name: object, known: Iterable[str]) -> list[str]:
    """At most three names similar to this one, the nearest first."""
    lower = {each.lower(): each for each in sorted(known)}
    return [lower[each] for each in get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)]


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for an unknown name: what was asked, what is similar, what exists."""
    names = sorted(known)
    near = close(name, names)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"unknown {kind} {name!r}.{hint} Known: {listed}"
