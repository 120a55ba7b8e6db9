"""The real kernels: which run here, what they make of a quantized weight, and how fast."""

from qviz.kernels import records
from qviz.kernels.kernel import Kernel, Packed
from qviz.kernels.measure import measure
from qviz.kernels.registry import available, get, kernels, require, usable
from qviz.kernels.results import Measurement

__all__ = [
    "Kernel",
    "Measurement",
    "Packed",
    "available",
    "get",
    "kernels",
    "measure",
    "records",
    "require",
    "usable",
]
