"""The registry: all methods, what each needs, and one function to call any of them.

A method is one file with a `METHOD` and one line here; the sweep, the command line and the tests
find it from then on.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch

from qviz.core.calibration import Calibration, require_calibration
from qviz.core.check import close, unknown
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
    """Factors that all linears of one input have in common, because the input can only be divided
    once.

    The method takes them as its option `transform`.

    factors  (weights, calibration, **the method's options) → s [in]
    into     the layer that may be divided by them: "norm", a norm before the linears, or "linear",
             one whose outputs are their inputs
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
    events   the table of the events that it emits
    origins  option → where the default comes from: the system or paper with the same one, or "qviz"
             with the reason
    choices  option → the names that it accepts, for options with few choices
    bits     the bit-widths that its option `bits` accepts; none where the format fixes the width
    shared   for a method that scales inputs: how linears of one input get the same factors
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
    bits: Collection[int] = ()
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


@dataclass(frozen=True)
class Elsewhere:
    """The name of an option in another library.

    name    the name there; option: the name here
    whose   the libraries
    value   the value here for True there, if it is not True; empty for options that are not
            switches
    """

    name: str
    option: str
    whose: str
    value: str = ""


# People who know another library try its names first. Of two lines with the same name, the first
# whose option the method has counts.
ELSEWHERE = (
    Elsewhere("num_bits", "bits", "compressed-tensors"),
    Elsewhere("w_bit", "bits", "llm-awq, AutoAWQ"),
    Elsewhere("w_bits", "bits", "QuaRot"),
    Elsewhere("wbits", "bits", "the GPTQ reference code"),
    Elsewhere("nbits", "bits", "hqq"),
    Elsewhere("n_bit", "bits", "llm-awq"),
    Elsewhere("n_bits", "bits", "SmoothQuant"),
    Elsewhere("nbits_per_codebook", "bits", "AQLM"),
    Elsewhere("sym", "symmetric", "GPTQModel, AutoRound"),
    Elsewhere("w_asym", "symmetric", "QuaRot", "False"),
    Elsewhere("zero_point", "symmetric", "llm-awq, AutoAWQ", "False"),
    Elsewhere("groupsize", "group_size", "the GPTQ reference code"),
    Elsewhere("q_group_size", "group_size", "llm-awq, AutoAWQ"),
    Elsewhere("w_groupsize", "group_size", "QuaRot"),
    Elsewhere("blocksize", "block_size", "the GPTQ reference code"),
    Elsewhere("blocksize", "group_size", "bitsandbytes"),
    Elsewhere("block_size", "group_size", "bitsandbytes, torchao"),
    Elsewhere("strategy", "granularity", "compressed-tensors"),
    Elsewhere("desc_act", "act_order", "GPTQModel, AutoGPTQ"),
    Elsewhere("actorder", "act_order", "the GPTQ reference code, llm-compressor"),
    Elsewhere("damp_percent", "damp", "GPTQModel, AutoGPTQ"),
    Elsewhere("percdamp", "damp", "the GPTQ reference code"),
    Elsewhere("dampening_frac", "damp", "llm-compressor"),
    Elsewhere("apply_clip", "clip", "AutoAWQ"),
    Elsewhere("mse_range", "clip", "llm-awq"),
    Elsewhere("duo_scaling", "grid", "AutoAWQ, llm-compressor", '"autoawq"'),
    Elsewhere("smoothing_strength", "alpha", "llm-compressor"),
    Elsewhere("lora_alpha", "alpha", "peft"),
    Elsewhere("r", "rank", "peft"),
    Elsewhere("lora_r", "rank", "QLoRA"),
    Elsewhere("a_bits", "act_bits", "QuaRot"),
    Elsewhere("act_quant", "activations", "SmoothQuant"),
    Elsewhere("llm_int8_threshold", "threshold", "transformers"),
    Elsewhere("quant_type", "format", "bitsandbytes"),
    Elsewhere("bnb_4bit_quant_type", "format", "transformers"),
    Elsewhere("elem_format", "format", "microxcaling"),
    Elsewhere("bnb_4bit_use_double_quant", "double_quant", "transformers"),
    Elsewhere("compress_statistics", "double_quant", "bitsandbytes"),
    Elsewhere("qtype", "type", "gguf, llama.cpp"),
    Elsewhere("ftype", "type", "llama.cpp"),
    Elsewhere("imatrix", "importance", "llama.cpp"),
    Elsewhere("optimize", "iters", "hqq", "20"),
    Elsewhere("num_codebooks", "books", "AQLM"),
    Elsewhere("in_group_size", "dim", "AQLM"),
)


# What a method is called elsewhere, and how to call it here; formats are found in the choices.
METHODS_ELSEWHERE = {
    "rtn": '"affine"',
    "int8": '"affine", bits=8',
    "int4": '"affine", bits=4',
    "bitsandbytes": '"nf4" (4 bits) or "llm_int8" (8 bits)',
    "bnb": '"nf4" (4 bits) or "llm_int8" (8 bits)',
    "quarot": '"rotation"',
    "lsq": '"qat"',
    "aqlm": '"vector", books=2, dim=8',
}


def methods() -> Mapping[str, Method]:
    """Every method by name."""
    return {name: get(name) for name in _MODULES}


def get(name: str) -> Method:
    """The method of this name; ValueError with the nearest names if there is none."""
    if not isinstance(name, str):
        raise TypeError(
            f"method must be a name, such as 'gptq', got {type(name).__name__}; data and options "
            f"are named: calibration=…, bits=…"
        )
    if name not in _MODULES:
        raise ValueError(_unknown_method(name))
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

    The method's kind determines the result: a QuantizedTensor ("weight", and "cache" for keys or
    values [tokens, channels]), a QuantizedLinear ("linear") or a torch module ("training").
    `options` are the method's own (see `qviz methods`); an unknown one is a TypeError that lists
    them. A method that needs calibration and gets none raises a ValueError that says how to capture
    it. The weight is not changed.

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
    """The ValueError for a method that needs calibration and got none."""
    needs = get(method).needs
    if needs:
        raise ValueError(
            f"{method} needs calibration ({', '.join(sorted(needs))}): pass "
            f"calibration=qviz.capture(model, texts) to quantize_model, and one layer's, "
            f"qviz.capture(model, texts, [layer])[layer], to quantize and sweep"
        )


def require_options(method: str, options: Mapping[str, Any]) -> None:
    """TypeError for an option that the method does not have, with ours where another library has
    that name (`ELSEWHERE`), else the near ones; for anything but
    True or False where an option is one of the two, since "no" would count as True; and for
    anything but a name (or the default) where it is one of a few names."""
    known, choices = get(method).defaults, get(method).choices
    strange = [name for name in options if name not in known]
    if strange:
        raise TypeError(_unknown_options(method, strange, known))
    for name, value in options.items():
        if isinstance(known[name], bool) and not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}")
        named = isinstance(value, str) or value is known[name]
        if name in choices and not named:
            raise TypeError(f"{name} must be one of {', '.join(choices[name])}; got {value!r}")


def _unknown_method(name: object) -> str:
    """The message for an unknown method name: the format or the system that it may be."""
    asked = str(name).lower()
    calls = [
        f'"{method.name}", {option}="{choice}"'
        for method in methods().values()
        for option in ("format", "type", "scheme")
        for choice in method.choices.get(option, ())
        if choice.lower() == asked and choice not in _MODULES
    ]
    if asked in METHODS_ELSEWHERE:
        calls.append(METHODS_ELSEWHERE[asked])
    if not calls:
        return unknown("method", name, _MODULES)
    known = ", ".join(sorted(_MODULES))
    return f"unknown method {name!r}. Here it is {' or '.join(calls)}. Known: {known}"


def _unknown_options(method: str, strange: Sequence[str], known: Mapping[str, Any]) -> str:
    """The message for options that the method does not have: all of them, so they can be fixed at
    once."""
    said = [f"unknown option for {method} {name!r}.{_ours(name, known)}" for name in strange]
    return f"{' '.join(said)} Known: {', '.join(sorted(known))}"


def _ours(name: str, known: Mapping[str, Any]) -> str:
    """The name here of an option of another library, or the names that look like it."""
    for other in ELSEWHERE:
        if other.name != name.lower() or other.option not in known:
            continue
        sense = f"; {name}=True is {other.option}={other.value}" if other.value else ""
        return f" Here it is {other.option} ({name} is the name in {other.whose}{sense})."
    near = close(name, known)
    return f" Did you mean {' or '.join(near)}?" if near else ""
