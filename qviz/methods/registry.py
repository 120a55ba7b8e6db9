"""The registry: which methods there are, what each needs, and one function to call any of them.

A method is one file with a `METHOD` and one line here; the sweep, the command line and the tests
find it from then on.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration, require_calibration
from qviz.core.check import unknown
from qviz.core.trace import Emit, EventSpec

_MODULES = {
    "affine": "qviz.methods.affine",
    "awq": "qviz.methods.awq",
    "gguf": "qviz.methods.gguf",
    "gptq": "qviz.methods.gptq",
    "nf4": "qviz.methods.nf4",
    "llm_int8": "qviz.methods.llm_int8",
    "hqq": "qviz.methods.hqq",
    "fp8": "qviz.methods.fp8",
    "microscaling": "qviz.methods.microscaling",
    "qat": "qviz.methods.qat",
    "qlora": "qviz.methods.qlora",
    "smoothquant": "qviz.methods.smoothquant",
    "rotation": "qviz.methods.rotation",
    "kv_cache": "qviz.methods.kv_cache",
    "vector": "qviz.methods.vector",
}


@dataclass(frozen=True)
class Shared:
    """Factors that all linears of one input have in common, as it can be divided only once.

    The method takes them as its option `transform`.

    factors  (weights, calibration, **the method's options) → s [in]
    into     what may be divided by them: "norm", a norm before the linears, or "linear", one whose
             outputs are their inputs
    """

    factors: Callable[..., torch.Tensor]
    into: frozenset[str]


@dataclass(frozen=True)
class Method:
    """A method as the registry knows it.

    name     as in quantize(…, name)
    kind     "weight" and "cache" return a QuantizedTensor, "linear" a QuantizedLinear, "training" a
             torch module
    needs    which parts of a Calibration it uses: a subset of inputs, hessian, act_absmax,
             act_absmean; empty for a method that looks at weights alone
    title    what it is, in a few words
    source   the paper and the reference code it follows
    events   the table of what it emits
    origins  option → whose default it is: the system or paper that has the same one, or "qviz"
             with the reason
    choices  option → the names that it takes, for options that are one of a few
    shared   for a method that scales inputs: how linears of one input come to the same factors
    """

    name: str
    kind: str
    function: Callable[..., Any]
    needs: frozenset[str]
    title: str
    source: str
    events: tuple[EventSpec, ...]
    origins: Mapping[str, str]
    choices: Mapping[str, Collection[str]] = field(default_factory=dict)
    shared: Shared | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """Option → default, read from the function itself so that it cannot drift."""
        parameters = inspect.signature(self.function).parameters.values()
        return {
            p.name: p.default
            for p in parameters
            if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "emit"
        }


def methods() -> Mapping[str, Method]:
    """Every method by name."""
    return {name: get(name) for name in _MODULES}


def get(name: str) -> Method:
    """The method of this name; ValueError with the nearest names if there is none."""
    if name not in _MODULES:
        raise ValueError(unknown("method", name, _MODULES))
    method = import_module(_MODULES[name]).METHOD
    assert isinstance(method, Method)
    return method


def quantize(
    weight: torch.Tensor | np.ndarray,
    method: str = "affine",
    calibration: Calibration | None = None,
    *,
    emit: Emit | None = None,
    **options: Any,
) -> Any:
    """Quantize a weight [out, in] with the method of this name.

    Returns what the method's kind says: a QuantizedTensor ("weight", and "cache" for keys or
    values [tokens, channels]), a QuantizedLinear ("linear") or a torch module ("training").
    `options` are the method's own (see `qviz methods`); an unknown one is a TypeError that lists
    them. A method that needs calibration and gets none raises a ValueError that says how to
    capture it. The weight is not changed.

    >>> q = qviz.quantize(torch.randn(64, 256), "affine", bits=4, group_size=64)
    >>> q.dequantize()
    """
    chosen = get(method)
    require_options(method, options)
    if calibration is not None:
        require_calibration(calibration)
    if not chosen.needs:
        return chosen.function(weight, emit=emit, **options)
    if calibration is None:
        require_data(method)
    return chosen.function(weight, calibration, emit=emit, **options)


def require_data(method: str) -> None:
    """ValueError for a method that needs calibration, for where there is none."""
    needs = get(method).needs
    if needs:
        raise ValueError(
            f"{method} needs calibration ({', '.join(sorted(needs))}): pass "
            f"calibration=qviz.capture(model, texts) to quantize_model, and one layer's, "
            f"qviz.capture(model, texts, [layer])[layer], to quantize and sweep"
        )


def require_options(method: str, options: Mapping[str, Any]) -> None:
    """TypeError for an option that the method does not have, with the near ones; for anything but
    True or False where an option is one of the two, since "no" would count as True; and for
    anything but a name (or the default) where it is one of a few names."""
    known, choices = get(method).defaults, get(method).choices
    strange = sorted(set(options) - set(known))
    if strange:
        raise TypeError(unknown(f"option for {method}", strange[0], known))
    for name, value in options.items():
        if isinstance(known[name], bool) and not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}")
        named = isinstance(value, str) or value is known[name]
        if name in choices and not named:
            raise TypeError(f"{name} must be one of {', '.join(choices[name])}; got {value!r}")
