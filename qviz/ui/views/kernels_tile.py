"""A tile of a kernel's program in pictures and words: what each step holds, and what it shows of
one weight.
"""

import torch

from qviz.kernels.tiles import EVENTS, Step, Walk
from qviz.ui.widgets import number

FORMULAS = {event.name: event.formula for event in EVENTS}
INT8_FORMULAS = {
    "tile.inputs": "q_x[column]",
    "tile.products": "total + Σ q · q_x",
    "tile.store": "y[row] = s_x · s[row] · Σ total",
}
PRODUCT = {
    "triton.w4a16": "(q − z) · x", "triton.nf4": "level · x", "triton.w8a8": "q · q_x",
}  # fmt: skip
SHOWS = {
    "tile.rows": "nothing has been read yet",
    "tile.step": "the token's inputs",
    "tile.quantized": "the inputs as int8 codes",
    "tile.words": "bytes, as they lie in memory",
    "tile.weights": "int8 weights",
    "tile.scale": "the scale of each weight",
    "tile.inputs": "the inputs, the same for each row",
    "tile.codes": "codes",
    "tile.weight": "what the codes stand for",
    "tile.products": "value times input",
    "tile.total": "each row's sum so far",
    "tile.store": "the outputs",
}
READS = ("tile.words", "tile.weights")
ROLES = {"code q": "codes", "input x": "original", "the sum of its row": "now"}


def label(step: Step) -> str:
    where = ""
    if step.columns.stop:
        where = f", columns {step.columns.start} to {step.columns.stop - 1}"
    return f"{SHOWS[step.event]}{where}"


def picture(walk: Walk, width: int) -> list[torch.Tensor]:
    """For each step, what the program holds: a matrix [rows, width] float32 with a cell for each
    weight of the tile; zeros beyond the end of a row."""
    rows = walk.rows.stop - walk.rows.start
    frames = []
    for i, step in enumerate(walk.steps):
        span = step.columns.stop - step.columns.start
        values = _in_hand(walk, i).float()
        if values.ndim == 1:
            values = values.expand(rows, -1)
        if span and values.shape[1] < span:  # one number for several columns
            values = values.repeat_interleave(-(-span // values.shape[1]), dim=1)
        values = values[:, :width]
        if values.shape[1] == 1:
            values = values.expand(-1, width)
        frames.append(torch.nn.functional.pad(values, (0, width - values.shape[1])).contiguous())
    return frames


def _in_hand(walk: Walk, i: int) -> torch.Tensor:
    """What one step produces: [rows, columns], [columns], or one number for each row."""
    step, rows = walk.steps[i], walk.rows.stop - walk.rows.start
    held = step.tensors
    match step.event:
        case "tile.rows":
            return torch.zeros(rows, 1)
        case "tile.words":
            return held["words"].flatten(1).contiguous().view(torch.uint8)
        case "tile.products":
            return products(walk, i)
        case "tile.total":
            return held["total"].sum(1, keepdim=True)
        case "tile.store":
            return held["y"].float()[:, None]
        case "tile.step":
            return held["inputs"]
    name = step.event.removeprefix("tile.")
    return held[{"quantized": "codes"}.get(name, name)]


def products(walk: Walk, i: int) -> torch.Tensor:
    """Value times input of each weight [rows, columns] of the tile of step i."""
    if walk.kernel == "triton.w8a8":
        return walk.steps[i].tensors["partial"]
    values = _latest(walk, i, "tile.codes")["values"]
    return values * _latest(walk, i, "tile.inputs")["inputs"]


def _latest(walk: Walk, i: int, event: str) -> dict[str, torch.Tensor]:
    """The tensors of the last such event up to step i."""
    return next(dict(s.tensors) for s in reversed(walk.steps[: i + 1]) if s.event == event)


def story(walk: Walk, row: int, column: int, wide: torch.Tensor) -> list[dict[str, str]]:
    """For each step, what is known about one weight of the tile: label → text.

    wide  [rows] the program's outputs in float64
    """
    told: list[dict[str, str]] = []
    known: dict[str, str] = {}
    for i, step in enumerate(walk.steps):
        if step.event in READS:  # another tile, another weight
            known = {k: v for k, v in known.items() if k in ("the sum of its row", "token's scale")}
        formula = FORMULAS[step.event]
        if walk.kernel == "triton.w8a8":
            formula = INT8_FORMULAS.get(step.event, formula)
        known = {**known, "what happens": formula, **_told(walk, i, row, column)}
        told.append(known)
    told[-1] = {
        **told[-1],
        "output y, in bfloat16": number(float(walk.y[row])),
        "the same in float64": number(float(wide[row])),
    }
    return told


def _told(walk: Walk, i: int, row: int, column: int) -> dict[str, str]:
    """What step i shows of one weight of its tile."""
    step, held = walk.steps[i], walk.steps[i].tensors
    span = step.columns.stop - step.columns.start
    if span and column >= span and step.event not in ("tile.step", "tile.quantized"):
        return {}
    match step.event:
        case "tile.step":
            return {"token's scale": number(float(held["step"][0]))}
        case "tile.words":
            return _word(walk, held["words"], row, column)
        case "tile.weights":
            return {"code q": number(int(held["weights"][row, column]))}
        case "tile.scale":
            told = {"scale s": number(float(held["scale"][row, column]))}
            if walk.kernel == "triton.w4a16":
                told["zero point z"] = number(float(held["zero"][row, column]))
            return told
        case "tile.inputs":
            name = "input x" if walk.kernel != "triton.w8a8" else "input's code"
            return {name: number(float(held["inputs"][column]))}
        case "tile.codes":
            name = "q − z" if walk.kernel == "triton.w4a16" else "its level"
            return {
                "code q": number(int(held["codes"][row, column])),
                name: number(float(held["values"][row, column])),
            }
        case "tile.weight":
            return {"weight ŵ": number(float(held["weight"][row, column]))}
        case "tile.products":
            product = products(walk, i)[row, column]
            if walk.kernel != "triton.w8a8":
                return {PRODUCT[walk.kernel]: number(float(product))}
            total = int(_sum_so_far(walk, i)[row])
            return {PRODUCT[walk.kernel]: _integer(int(product)),
                    "the sum of its row": _integer(total)}  # fmt: skip
        case "tile.total":
            return {"the sum of its row": number(float(held["total"][row].sum()))}
    return {}


def _integer(value: int) -> str:
    """All digits in groups of three, with the minus sign that `number` uses."""
    return f"{value:,}".replace("-", "−")


def _sum_so_far(walk: Walk, i: int) -> torch.Tensor:
    """The integer sums [rows] of an int8 program up to step i."""
    parts = [s.tensors["partial"] for s in walk.steps[: i + 1] if s.event == "tile.products"]
    return torch.stack([part.sum(1) for part in parts]).sum(0)


def _word(walk: Walk, words: torch.Tensor, row: int, column: int) -> dict[str, str]:
    """The word [of words [r, c, w]] in which a weight lies, where in it, and beside which columns:
    the same bits of a tile's words are a plane, the codes of as many columns side by side."""
    at = walk.place(column)
    word = int(words[row].flatten()[at.word]) & 0xFFFFFFFF
    bits = [f"{word:032b}"[i : i + 4] for i in range(0, 32, 4)]
    bits[7 - at.plane] = f"[{bits[7 - at.plane]}]"
    return {
        "its 32-bit word": f"number {at.word}: 0x{word:08x}",
        "its four bits there": " ".join(bits),
        "columns in its bit plane": f"{at.side.start} to {at.side.stop - 1}",
    }
