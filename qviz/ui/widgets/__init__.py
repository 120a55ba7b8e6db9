"""Own anywidgets: a Python file and a JavaScript module each."""

from qviz.core.words import number

from .base import Style, link, style
from .charts import Chart, PlotlyLoader
from .controls import Button, Choice, Slider, TextField, Toggle
from .equation import Equation
from .layout import (
    Disclosure,
    Text,
    column_of,
    details,
    figures_row,
    page,
    section,
    show_only,
    stack,
)
from .matrix import MatrixView, link_matrices
from .matrix_source import MatrixFrame
from .readout import Caption, Code, Readout
from .replay import Replay
from .status import Status
from .transport import Transport

__all__ = [
    "Button",
    "Caption",
    "Chart",
    "Choice",
    "Code",
    "Disclosure",
    "Equation",
    "MatrixFrame",
    "MatrixView",
    "PlotlyLoader",
    "Readout",
    "Replay",
    "Slider",
    "Status",
    "Style",
    "Text",
    "TextField",
    "Toggle",
    "Transport",
    "column_of",
    "details",
    "figures_row",
    "link",
    "link_matrices",
    "number",
    "page",
    "section",
    "show_only",
    "stack",
    "style",
]
