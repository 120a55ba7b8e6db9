"""What the lesson on number formats says about a block of weights with a shared scale."""

import math
from collections.abc import Mapping

from qviz.study.number_formats import TITLES
from qviz.study.shared_scale import Cost, Member, SharedScale
from qviz.ui.views.formats_words import pattern
from qviz.ui.widgets import counted, number, percent

BLOCK_TITLES = {
    "mxfp4": "MXFP4: FP4 E2M1 in blocks of 32",
    "nvfp4": "NVFP4: FP4 E2M1 in blocks of 16",
    "mxfp6_e2m3": "MXFP6: E2M3 in blocks of 32",
    "mxfp6_e3m2": "MXFP6: E3M2 in blocks of 32",
    "mxfp8_e4m3": "MXFP8: E4M3 in blocks of 32",
    "mxfp8_e5m2": "MXFP8: E5M2 in blocks of 32",
    "mxint8": "MXINT8: INT8 in blocks of 32",
}
SYSTEMS = {
    "torchao": "torchao",
    "compressed_tensors": "LLM Compressor, vLLM",
    "microxcaling": "microxcaling, the paper's authors",
    "ggml": "llama.cpp",
}
SCALE_RULES = {
    "floor": "floor: that of the largest weight (OCP MX)",
    "ceil": "ceil: the next power up, so that nothing is clipped",
    "even": "even: that of the largest weight, rounded first",
    "rceil": "rceil: the smallest that clips nothing",
    "nearest": "none: an E4M3 number, rounded to nearest",
}

EQUATION = """
<math display="block"><mrow><mover accent="true"><mi data-term="xhat">v</mi><mo>^</mo></mover>
  <mo>=</mo><mi data-term="P">P</mi><mo>(</mo><mi data-term="q">q</mi><mo>)</mo><mo>·</mo>
  <mi data-term="s">s</mi></mrow></math>
<math display="block"><mrow><mi>q</mi><mo>=</mo><mi data-term="round">round</mi><mo>(</mo><mfrac>
  <mi data-term="v">v</mi><mi>s</mi></mfrac><mo>)</mo></mrow></math>
"""
SPOKEN = (
    "v hat is the element that code q stands for, times s; q is v over s, rounded to an element"
)
TERMS = {
    "v": "v: a trained weight of the block",
    "s": "s: the scale that the whole block shares; a power of two in MX, an E4M3 number times the "
    "tensor's own scale in NVFP4",
    "round": "round: to the nearest number of the element format; anything beyond the largest "
    "becomes the largest",
    "q": "q: the stored code",
    "P": "P: the element format, which says what a code stands for",
    "xhat": "v̂: the reconstructed weight",
}


def scale_rows(b: SharedScale, rule: str) -> list[tuple[str, str, str]]:
    """How the block got its scale: rows of a readout."""
    top, emax = number(b.block.top), b.block.emax
    byte = pattern(b.scale_format, b.stored)
    rows = [
        ("its block", f"row {b.row}, inputs {b.start} … {b.start + len(b.members) - 1}", ""),
        ("a = max |v|", number(b.amax), "original"),
    ]
    if b.scale_format == "e8m0":
        if rule == "floor" and b.amax > 0:
            low = math.frexp(b.amax)[1] - 1
            rows.append((f"e = ⌊log_{{2}} a⌋ − {emax}", f"{_minus(low)} − {emax} = "
                         f"{_minus(low - emax)}", ""))  # fmt: skip
        power = f"2^{{{_minus(b.stored - 127)}}}"
        rows.append(("s, a power of two", f"{power} = {number(b.scale)}", ""))
    else:
        rows.append((f"a ÷ {top}", number(b.amax / b.block.top), ""))
        if b.tensor is not None:
            rows.append(("the tensor's scale, FP32", number(b.tensor), ""))
        rows.append(("the block's scale, E4M3", number(b.local), ""))
        rows.append(("s, both together", number(b.scale), ""))
    rows.append((f"s as stored, {TITLES[b.scale_format]}", f"{byte} (byte {b.stored})", "codes"))
    return rows


def member_rows(b: SharedScale, m: Member) -> list[tuple[str, str, str]]:
    """One weight's whole arithmetic."""
    element = b.block.element.name
    said = f"{number(m.element)}, the largest: clipped" if m.clipped else number(m.element)
    return [
        ("trained weight v", number(m.weight), "original"),
        ("v / s", number(m.scaled), ""),
        ("code q", pattern(element, m.code), "codes"),
        (f"P(q), {TITLES[element]}", said, "codes"),
        ("v̂ = P(q) · s", number(m.value), "codes"),
        ("error v − v̂", number(m.error), "error"),
    ]


def members_table(b: SharedScale) -> list[tuple[str, list[str], list[int]]]:
    """All weights of a block."""
    element = b.block.element.name
    return [
        (
            str(m.column),
            [
                number(m.weight),
                number(m.scaled),
                pattern(element, m.code),
                number(m.value),
                number(m.error),
            ],
            [3] if m.clipped else [],
        )
        for m in b.members
    ]


def sentence(b: SharedScale, cost: Cost) -> str:
    """What the shared scale does to this block, and to the layer."""
    title = b.format.upper().replace("_", " ")
    who = f"{title}: {len(b.members)} weights share the scale {number(b.scale)}"
    if b.amax == 0:
        return f"{who}. All of them are 0 and stay 0. {_layer(cost)}"
    reach = number(b.scale * b.block.top)
    fit = (
        f", which reaches to {reach}; the largest of them is {number(b.amax)}"
        f"{_beyond(b)}. They are rounded to {counted(b.used, 'different value')} and are off by "
        f"{percent(b.relative_error)}."
    )
    return f"{who}{fit} {_layer(cost)}"


def _beyond(b: SharedScale) -> str:
    if not b.clipped:
        return ""
    return f", so {counted(b.clipped, 'weight')} {'is' if b.clipped == 1 else 'are'} clipped"


def _layer(cost: Cost) -> str:
    return (
        f"The layer: {number(cost.bits)} bits per weight, off by {percent(cost.off)}, "
        f"{percent(cost.clipped)} of its weights clipped."
    )


def cost_table(costs: Mapping[str, Cost]) -> list[tuple[str, list[str], list[int]]]:
    """Every block format on this layer."""
    return [
        (
            BLOCK_TITLES[name].partition(" in")[0],
            [number(c.bits), percent(c.off), percent(c.clipped)],
            [],
        )
        for name, c in costs.items()
    ]


def _minus(n: int) -> str:
    return str(n).replace("-", "−")
