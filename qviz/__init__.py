"""qviz: see and touch LLM quantization.

Every public name is loaded on first use, so that `import qviz` stays cheap: torch, transformers
and plotly take seconds that a command line or a notebook should spend only when it needs them.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Calibration": "qviz.core.calibration",
    "Granularity": "qviz.core.granularity",
    "QuantizedTensor": "qviz.core.tensor",
    "Sequential": "qviz.models.sequential",
    "Trace": "qviz.core.trace",
    "capture": "qviz.models.capture",
    "generate": "qviz.models.text",
    "linear_layers": "qviz.models.layers",
    "load_layer": "qviz.models.checkpoint",
    "load_model": "qviz.models.load",
    "load_calibration": "qviz.models.capture",
    "perplexity": "qviz.models.text",
    "quantize": "qviz.methods.registry",
    "quantize_model": "qviz.models.quantize",
    "rotate_model": "qviz.models.rotate",
    "step_through": "qviz.exercises.step_through",
    "sweep": "qviz.study.sweep",
    "train_quantized": "qviz.study.training",
}

_PARTS = ("kernels",)  # parts of the package that are used by their own name

__all__ = ["__version__", *_PARTS, *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"qviz.{name}")
    if name not in _HOME:
        raise AttributeError(
            f"module 'qviz' has no attribute {name!r}; it has {', '.join(__all__[1:])}"
        )
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access does not come here again
    return value


def __dir__() -> list[str]:
    return __all__
