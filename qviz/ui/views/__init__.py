"""One view per lesson: wires controls to methods and figures."""

from qviz.ui.views.bit_width import BitWidthLesson
from qviz.ui.views.gallery import Gallery
from qviz.ui.views.gptq import GptqLesson
from qviz.ui.views.kernels import KernelsLesson

__all__ = ["BitWidthLesson", "Gallery", "GptqLesson", "KernelsLesson"]
