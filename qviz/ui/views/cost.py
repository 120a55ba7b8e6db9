"""What a quantized layer costs, as rows of a table: the same rows in every lesson."""

from collections.abc import Sequence

from qviz.core.tensor import QuantizedTensor
from qviz.ui.widgets import number

Row = tuple[str, list[str] | str, str]


def cost_rows(tensors: Sequence[QuantizedTensor]) -> list[Row]:
    """What each of `tensors` (all of one layer) costs: bits per weight, item by item, with the type
    in which scales are stored, and bytes compared with 16 bits."""
    ledgers = [q.ledger for q in tensors]
    names = dict.fromkeys(item.name for ledger in ledgers for item in ledger.items)
    out, columns = tensors[0].shape
    return [
        *(
            (_typed(name, tensors[0]), [number(x.per_weight(name)) for x in ledgers], "")
            for name in names
        ),
        ("bits per weight", [number(x.bits_per_weight) for x in ledgers], "codes"),
        ("this layer", [f"{number(x.nbytes / 1000)} kB" for x in ledgers], ""),
        ("at 16 bits", f"{number(2 * out * columns / 1000)} kB", "wait"),
    ]


def _typed(name: str, q: QuantizedTensor) -> str:
    scale = getattr(q.grid, "scale", None)
    if name != "scales" or scale is None:
        return name
    return f"scales ({str(scale.dtype).removeprefix('torch.')})"
