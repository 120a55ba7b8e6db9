"""Colour tables of the matrix views, as 256 × 3 bytes; also what the charts draw lines with.

Each map is given by a few anchors with straight lines between them. All are safe for the usual
colour-vision deficiencies: the diverging maps run between blue and red or orange, never red–green,
and their lightness alone orders magnitudes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.uint8]
Colormap = Literal["diverging", "sequential", "categorical"]

# ColorBrewer's published RdBu anchors, low values blue, high values red.
_DIVERGING_LIGHT = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f"
# Its counterpart for dark pages: the middle recedes, magnitudes glow.
_DIVERGING_DARK = "b3dcff 5fa8ea 2f72b5 1d456f 22272e 6e3a1c b3611f ec9440 ffd9a8"
# The published values of cividis at ten equal steps.
_SEQUENTIAL = "00204d 00336f 39486b 575d6d 707173 8a8779 a69d75 c4b56c e4cf5b ffea46"
# Okabe and Ito's eight colours, black replaced by a grey that shows on both themes.
_CATEGORIES = "0072b2 e69f00 009e73 cc79a7 56b4e9 d55e00 f0e442 808890"

#: The colour of values that are not numbers; in no map.
NAN_COLOR = (214, 39, 190)


def _rgb(colours: str) -> npt.NDArray[np.float64]:
    return np.array([list(bytes.fromhex(colour)) for colour in colours.split()], np.float64)


def _table(anchors: str) -> Table:
    points = _rgb(anchors)
    at = np.linspace(0, len(points) - 1, 256)
    channels = [np.interp(at, np.arange(len(points)), points[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def palette(colormap: Colormap, *, dark: bool = False, categories: int = 8) -> Table:
    """The 256 colours of a map, lowest value first: uint8 [256, 3].

    `categories` says how many codes a categorical map has to tell apart; beyond eight no set of
    distinct hues is safe, so the codes are spread over the sequential map in their order.
    """
    if colormap == "diverging":
        return _table(_DIVERGING_DARK if dark else _DIVERGING_LIGHT)
    if colormap == "sequential":
        return _table(_SEQUENTIAL)
    if colormap != "categorical":
        raise ValueError(
            f"unknown colormap {colormap!r}: use 'diverging', 'sequential' or 'categorical'"
        )
    count = max(1, categories)
    which = np.rint(np.arange(256) / 255 * (count - 1)).astype(int)
    if count <= len(_CATEGORIES.split()):
        hues: Table = _rgb(_CATEGORIES)[which].astype(np.uint8)
        return hues
    steps: Table = _table(_SEQUENTIAL)[np.rint(which / (count - 1) * 255).astype(int)]
    return steps
