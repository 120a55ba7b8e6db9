"""The real kernels: which ones run here, what they compute with a quantized weight, and how
fast."""

from qviz.kernels import records
from qviz.kernels.kernel import Kernel, Packed
from qviz.kernels.measure import measure
from qviz.kernels.packed_compare import compare
from qviz.kernels.packed_model import pack_model
from qviz.kernels.registry import available, get, kernels, require, usable
from qviz.kernels.results import Measurement

__all__ = [
    "Kernel",
    "Measurement",
    "Packed",
    "available",
    "compare",
    "get",
    "kernels",
    "measure",
    "pack_model",
    "records",
    "require",
    "usable",
]
