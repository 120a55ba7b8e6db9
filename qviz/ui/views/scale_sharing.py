"""What shares a scale: one control for the whole matrix, a row, or groups of a row."""

from collections.abc import Sequence

from qviz.core.granularity import Granularity
from qviz.ui.widgets import Slider

SIZES = (256, 128, 64, 32, 16)
MATRIX, ROW = "matrix", "row"
FIRST = "group of 128"


class ScaleSharing(Slider):
    """A slider from coarse to fine. `granularity` is the choice.

    >>> sharing = ScaleSharing()
    >>> sharing.fit(256)
    >>> sharing.granularity
    Granularity(kind='group', group_size=128, axis=1)
    """

    def __init__(self, *, matrix: bool = True, sizes: Sequence[int] = SIZES) -> None:
        """`matrix`: also one scale for the whole matrix."""
        self._coarse = [MATRIX, ROW] if matrix else [ROW]
        self._sizes = tuple(sizes)
        super().__init__("One scale per", [*self._coarse, FIRST], len(self._coarse))

    def fit(self, columns: int) -> None:
        """Offer what divides rows of this many inputs. The choice stays if possible; otherwise the
        nearest group size is chosen."""
        sizes = [size for size in self._sizes if size < columns and columns % size == 0]
        options = [*self._coarse, *(f"group of {size}" for size in sizes)]
        chosen = self.value
        if chosen not in options:
            near = [s for s in sizes if s <= _size(chosen)] or sizes
            chosen = f"group of {near[0]}" if near else ROW
        if options != list(self.options):
            self.set_options(options, options.index(chosen))

    @property
    def granularity(self) -> Granularity:
        return sharing(self.value)


def sharing(name: str) -> Granularity:
    """The granularity of an option's name."""
    if name == MATRIX:
        return Granularity("tensor")
    return Granularity("channel") if name == ROW else Granularity("group", _size(name))


def each(name: str) -> str:
    """What has one scale each, in a sentence.

    >>> each("matrix"), each("group of 32")
    ('the whole matrix', 'each group of 32')
    """
    return "the whole matrix" if name == MATRIX else f"each {name}"


def _size(name: str) -> int:
    return int(name.removeprefix("group of "))
