"""Own anywidgets: a Python file and a JavaScript module each."""

from qviz.core.words import counted, exactly, number, percent, signed

from .address import Address, as_address, from_address
from .base import Style, link, style
from .bits import Bits
from .block_bytes import BlockBytes
from .charts import Chart, PlotlyLoader
from .controls import Button, Choice, Slider, TextField, Toggle
from .equation import Equation
from .format_line import FormatLine
from .guide import Guide
from .head import Head
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
from .number_line import NumberLine
from .path import Path
from .readout import Caption, Code, Readout
from .replay import Replay
from .status import Status
from .table import Table
from .transport import Transport

__all__ = [
    "Address",
    "Bits",
    "BlockBytes",
    "Button",
    "Caption",
    "Chart",
    "Choice",
    "Code",
    "Disclosure",
    "Equation",
    "FormatLine",
    "Guide",
    "Head",
    "MatrixFrame",
    "MatrixView",
    "NumberLine",
    "Path",
    "PlotlyLoader",
    "Readout",
    "Replay",
    "Slider",
    "Status",
    "Style",
    "Table",
    "Text",
    "TextField",
    "Toggle",
    "Transport",
    "as_address",
    "column_of",
    "counted",
    "details",
    "exactly",
    "figures_row",
    "from_address",
    "link",
    "link_matrices",
    "number",
    "page",
    "percent",
    "section",
    "show_only",
    "signed",
    "stack",
    "style",
]
