"""Where the factors of a layer of the AWQ lesson go, worked out on its real inputs."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from qviz.core.calibration import Calibration
from qviz.models.capture import load_calibration
from qviz.models.checkpoint import Checkpoint, find_checkpoint, load_layer
from qviz.study.awq_case import Case, Wiring, amplifier, block_wirings, wiring
from qviz.study.awq_fold import Fold, fold_inputs, fold_norm, fold_up, multiplies
from qviz.ui.widgets import number

SOME = 8  # channels that the table lists
NO_MULTIPLIER = "the norm before it does not multiply by its weight alone"

TableRows = tuple[list[str], list[Any]]


@dataclass(frozen=True, eq=False)
class Folding:
    """How a layer is fed and what folding its factors changes.

    divided   [in] what is divided: the norm's weight, or the root mean square of the source's rows;
              None where nothing is
    siblings  (output of the source, the inputs of the layer that it becomes), where it is several
    block     every input of the layer's block that could be divided
    """

    wiring: Wiring
    fold: Fold
    divided: torch.Tensor | None
    siblings: tuple[tuple[int, tuple[int, ...]], ...]
    block: tuple[Wiring, ...]


def folding(
    source: str | None, case: Case, trained: Calibration, loud: float, scale: torch.Tensor
) -> Folding:
    """Of the case's layer of a model, with factors `scale` [in]; `trained`: its inputs before they
    were made louder."""
    checkpoint = find_checkpoint(source)
    shapes = {name: info.shape for name, info in checkpoint.headers().items()}
    wired, block = wiring(shapes, case.name), block_wirings(shapes, case.name)
    m, x, weight = amplifier(trained, loud), case.calibration.inputs, case.weight
    divided: torch.Tensor | None = None
    siblings: tuple[tuple[int, tuple[int, ...]], ...] = ()
    if not wired.folds:
        fold = fold_inputs(x, weight, scale)
        siblings = _siblings(checkpoint, shapes, wired)
    elif wired.into == "norm":
        gamma, beta = (
            checkpoint.read(f"{wired.source}.{part}").float() * m
            if f"{wired.source}.{part}" in shapes
            else None
            for part in ("weight", "bias")
        )
        assert gamma is not None, "a norm of a block that is known has a weight"
        if multiplies(x, gamma, beta):
            fold, divided = fold_norm(x, gamma, weight, scale, beta), gamma
        else:
            wired = replace(wired, source="", into="", note=NO_MULTIPLIER)
            fold = fold_inputs(x, weight, scale)
    else:
        rows = load_layer(source, wired.source).float()[-len(scale) :] * m.unsqueeze(1)
        divided = rows.square().mean(1).sqrt()
        gate = wired.source.removesuffix("up_proj") + "gate_proj"
        if f"{gate}.weight" in shapes and gate != wired.source:
            enters = load_calibration(source, wired.source).inputs
            fold = fold_up(enters, load_layer(source, gate).float(), rows, weight, scale)
        else:  # attention's mixing of tokens is not at hand
            fold = fold_inputs(x, weight, scale)
    return Folding(wired, fold, divided, siblings, block)


def _siblings(
    checkpoint: Checkpoint, shapes: Any, wired: Wiring
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Which inputs each value channel becomes, head by head, where query heads share values."""
    config = checkpoint.config
    heads = config.get("num_attention_heads")
    if wired.shared == 1 or not heads:
        return ()
    outputs = shapes[f"{wired.source}.weight"][0]
    size = shapes[f"{wired.linears[0]}.weight"][1] // heads
    return tuple(
        (j, tuple((j // size * wired.shared + r) * size + j % size for r in range(wired.shared)))
        for j in range(outputs)
    )


def channel_rows(case: Case, found: Folding, scale: torch.Tensor) -> TableRows:
    """(columns, rows) of the loudest channels: what is divided, what is multiplied."""
    a, s = case.calibration.act_absmean, scale
    made = {"norm": ["norm's γ", "γ/s"], "linear": ["its source's row, rms", "that over s"]}
    columns = [] if found.divided is None else made[found.wiring.into]
    rows: list[Any] = []
    for j in a.topk(min(SOME, len(a))).indices.tolist():
        cells = [number(float(a[j]), 3), number(float(s[j]), 3)]
        if found.divided is not None:
            now = float(found.divided[j])
            cells += [number(now, 3), number(now / float(s[j]), 3)]
        size = float(case.weight[:, j].abs().mean())
        cells += [number(size, 3), number(size * float(s[j]), 3)]
        rows.append((f"channel {j}", cells, []))
    return ["mean |x|", "s", *columns, "mean |w|", "mean |w·s|"], rows


def sibling_rows(found: Folding, scale: torch.Tensor) -> TableRows:
    """(columns, rows) of the value channels whose inputs disagree most about their factor."""
    wanted = {j: scale[list(inputs)] for j, inputs in found.siblings}
    apart = {j: float(s.max() / s.min()) for j, s in wanted.items()}
    rows: list[Any] = []
    for j in sorted(apart, key=lambda j: -apart[j])[:SOME]:
        inputs = dict(found.siblings)[j]
        cells = [f"{number(float(scale[i]), 3)} (input {i})" for i in inputs]
        rows.append((f"value channel {j}", [*cells, f"{number(apart[j], 3)}×"], []))
    columns = [f"head {r + 1} wants" for r in range(found.wiring.shared)]
    return [*columns, "apart"], rows


def block_rows(found: Folding, layer: str) -> TableRows:
    """(columns, rows) of every input of the block: who multiplies it, what makes it, whether it
    folds."""
    rows = []
    for one in found.block:
        names = ", ".join(name.rpartition(".")[2] for name in one.linears)
        lit = [0, 1, 2] if layer in one.linears else []
        folds = "yes" if one.folds else "no"
        rows.append((names, [one.source.rpartition(".")[2], str(one.shared), folds], lit))
    return ["made by", "inputs per output", "folds"], rows
