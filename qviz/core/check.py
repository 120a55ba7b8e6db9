"""Checks that every public function makes of what it is given, with messages that name the fix."""

import math
from collections.abc import Iterable
from difflib import get_close_matches

import numpy as np
import torch

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_matrix(x: object, name: str = "weight") -> torch.Tensor:
    """`x` as a finite, non-empty floating-point matrix [rows, columns]; never a cast, and a copy
    only of NumPy arrays that torch cannot share (read-only or reversed ones).

    Takes a torch tensor on any device or a NumPy array. Raises TypeError for anything else or for
    integers, ValueError for other shapes and for NaN or Inf (naming the first position).
    """
    if isinstance(x, np.ndarray):
        if x.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"{name} has NumPy dtype {x.dtype}; convert it first, for example "
                f"{name}.astype('float32')"
            )
        # torch warns if an array is read-only, although we only read, and has no negative strides
        shareable = x.flags.writeable and min(x.strides, default=0) >= 0
        x = torch.from_numpy(x if shareable else x.copy())
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor or a NumPy array, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_meta:
        fix = "load its values first" if x.is_meta else f"take {name}.to_dense()"
        raise TypeError(f"{name} must be a dense tensor that holds its values: {fix}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name} has dtype {x.dtype}; expected one of float32, bfloat16, float16, float64. "
            f"Convert it first, for example {name}.float()"
        )
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty matrix [out_features, in_features], got shape "
            f"{tuple(x.shape)}; reshape it, for example {name}.reshape({name}.shape[0], -1)"
        )
    x = x.detach()
    require_finite(x, name)
    return x


def require_finite(x: torch.Tensor, name: str) -> None:
    """Raise ValueError naming the first position in `x` that is NaN or infinite."""
    # The extremes of a tensor with a NaN are NaN: one pass and no second tensor in the usual case.
    if all(math.isfinite(end) for end in torch.stack(torch.aminmax(x)).tolist()):
        return
    bad = (~torch.isfinite(x)).nonzero()
    where = ", ".join(str(i) for i in bad[0].tolist())
    value = float(x[tuple(bad[0])])
    raise ValueError(
        f"{name} has {len(bad)} value(s) that are not finite, the first is {value} at [{where}]. "
        f"Quantization needs finite numbers: mend the source, or mask with torch.nan_to_num"
    )


def as_device(device: torch.device | str) -> torch.device:
    """The device of this name; ValueError, with those that qviz runs on, where torch has none."""
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


def require_number(value: object, name: str) -> float:
    """`value` as a float if it is a number; TypeError otherwise. NaN and ±Inf are numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is not known: what was asked, what is near, what there is."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"unknown {kind} {name!r}.{hint} Known: {listed}"
