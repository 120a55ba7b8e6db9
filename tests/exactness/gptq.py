"""GPTQ against llm-compressor, the authors' code and explicit updates of H⁻¹.

Equal means what `qviz.core.agreement` says: float32 sums run in another order in each of them, so
in each row the first code that differs must be that of a weight within 1e-3 steps of a rounding
tie, nothing after it counts, and the losses agree within 0.1 %.
"""

import json
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import calibration_for

import qviz
from exactness import Tally, against
from qviz.core.agreement import LOSS, Agreement, agreement
from qviz.methods.affine import fit_levels
from qviz.methods.gptq_record import record

BUNDLED = (
    "layers.0.self_attn.q_proj",
    "layers.0.mlp.up_proj",
    "layers.1.mlp.down_proj",
    "layers.3.self_attn.o_proj",
)
MINILM = (
    "encoder.layer.3.intermediate.dense",
    "encoder.layer.3.output.dense",
    "encoder.layer.0.attention.self.query",
)
BLOCKS = (1, 16, 32, 48, 128, 256)
GOLDEN = Path(__file__).parents[1] / "golden"


def tally(found: Iterator[Agreement]) -> Tally:
    """Codes compared, and rows that part elsewhere than at a tie.

    A loss that is off by more than 0.1 % although all codes are equal is a mismatch, and so is a
    mean over all runs that is off by as much: what follows a tie may be better or worse.
    """
    results = list(found)
    parted = sum(len(a.differences) - len(a.unexplained) for a in results)
    excess = [a.excess_loss for a in results if a.excess_loss is not None]
    mean = sum(excess) / max(len(excess), 1)
    wrong = sum(len(a.unexplained) for a in results)
    off = sum(not a.holds and not a.unexplained for a in results) + (abs(mean) > LOSS)
    note = f"{parted} of {sum(a.rows for a in results)} rows differ at a tie"
    if excess:
        note += f"; losses {mean:+.4%} on average, {min(excess):+.2%} to {max(excess):+.2%}"
    return Tally(
        inputs=len(results),
        compared=sum(a.compared for a in results),
        mismatches=wrong + off,
        note=note,
    )


@cache
def problem(model: str | None, layer: str) -> tuple[torch.Tensor, qviz.Calibration]:
    """A real layer's first 256 rows in float32 and its calibration."""
    weight = qviz.load_layer(model, layer)[:256].float()
    return weight, qviz.load_calibration(model, layer)


def llmcompressor_run(
    w: torch.Tensor, h: torch.Tensor, *, bits: int, symmetric: bool, group: int | None, order: bool
) -> tuple[torch.Tensor, float]:
    """Codes and loss of llm-compressor, with the scales its min-max observer finds."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    args = QuantizationArgs(
        num_bits=bits,
        symmetric=symmetric,
        strategy="channel" if group is None else "group",
        group_size=group,
        actorder="weight" if order else None,
    )
    groups = w.reshape(w.shape[0], -1, group or w.shape[1])
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    made, losses, fell_back = quantize_weight(
        w.clone()[None], h.clone()[None], scale[None], zero[None], None, args
    )
    assert not bool(fell_back.any())
    values = made[0].reshape(groups.shape)
    codes = torch.round(values / scale.unsqueeze(-1)) + zero.unsqueeze(-1)
    return codes.reshape(w.shape), float(losses.sum())


def llmcompressor_settings(
    groups: tuple[int | None, ...] = (32, 64, 128, None),
) -> Iterator[dict]:
    for bits, symmetric, group, order in product(
        (2, 3, 4, 8), (True, False), groups, (False, True)
    ):
        yield {"bits": bits, "symmetric": symmetric, "group": group, "order": order}


def beside_llmcompressor(
    w: torch.Tensor, c: qviz.Calibration, run: Callable, settings: dict
) -> Agreement:
    """Our run with the settings of theirs; `run` gives their codes and loss."""
    theirs, loss = run(w, c.hessian, **settings)
    ours = record(
        w,
        c,
        bits=settings["bits"],
        symmetric=settings["symmetric"],
        group_size=settings["group"],
        act_order=settings["order"],
        static_groups=settings["group"] is not None,
        convention="compressed_tensors",
    )
    return agreement(
        ours.result.codes,
        theirs,
        ours.positions(),
        perm=ours.perm,
        losses=(ours.result.info["loss"], loss),
    )


@against("llmcompressor", method="gptq", what="codes, ties apart; 4 bundled layers", slow=True)
def bundled_layers() -> Tally:
    return tally(
        beside_llmcompressor(*problem(None, layer), llmcompressor_run, settings)
        for layer in BUNDLED
        for settings in llmcompressor_settings()
    )


@against("llmcompressor", method="gptq", what="codes, ties apart; 3 layers of MiniLM", slow=True)
def minilm_layers() -> Tally:
    return tally(
        beside_llmcompressor(*problem("minilm", layer), llmcompressor_run, settings)
        for layer in MINILM
        for settings in llmcompressor_settings()
    )


# --------------------------------------------------------------------- vectors of the real systems


@cache
def integers() -> tuple[torch.Tensor, qviz.Calibration]:
    """Weight and inputs that the vectors were made with: integers, so that H has no rounding."""
    with np.load(GOLDEN / "gptq_problem.npz") as data:
        x = torch.from_numpy(data["inputs"]).double() / 16
        return torch.from_numpy(data["weight"]).float() / 64, calibration_for(x)


@against("llm-compressor 0.14 vectors", method="gptq", what="codes, ties apart; 32 settings")
def llmcompressor_vectors() -> Tally:
    def found() -> Iterator[Agreement]:
        with np.load(GOLDEN / "gptq_llmcompressor.npz") as data:
            for settings in llmcompressor_settings((32, None)):
                key = "/".join(map(str, settings.values()))
                theirs = torch.from_numpy(data[f"{key}/codes"]), float(data[f"{key}/loss"])
                yield beside_llmcompressor(*integers(), lambda *_, t=theirs, **__: t, settings)

    return tally(found())


@against("IST-DASLab/gptq 2d65066 vectors", method="gptq", what="codes, ties apart; 10 settings")
def reference_vectors() -> Tally:
    def found() -> Iterator[Agreement]:
        with np.load(GOLDEN / "gptq_reference.npz") as data:
            for i, settings in enumerate(json.loads(str(data["settings"]))):
                dynamic = settings["group_size"] and not settings.get("static_groups", False)
                ours = record(*integers(), stale_groups=bool(dynamic), **settings)
                assert ours.result.info["dead_columns"] == [int(data["dead"])]
                theirs = torch.from_numpy(data[f"{i}/values"])
                yield agreement(
                    ours.result.codes,
                    nearest_codes(theirs, ours.result),
                    ours.positions(),
                    perm=ours.perm,
                    losses=(ours.result.info["loss"], float(data[f"{i}/loss"])),
                )

    return tally(found())


def nearest_codes(values: torch.Tensor, q: qviz.QuantizedTensor) -> torch.Tensor:
    """The codes that stand for these values [out, in], which are levels of q but for rounding."""
    groups = torch.arange(q.shape[1]) // (q.granularity.group_size or q.shape[1])
    groups = groups if q.g_idx is None else q.g_idx.long()
    position = values.double() / q.grid.scale[:, groups].double() + q.grid.zero_point[:, groups]
    return position.round().to(torch.int32)


# ------------------------------------------------------------------------------ explicit formulas


def explicit_obq(
    w: torch.Tensor,
    h: torch.Tensor,
    *,
    bits: int,
    symmetric: bool,
    group_size: int | None,
    act_order: bool = False,
    static_groups: bool = False,
) -> torch.Tensor:
    """Codes of OBQ with a fixed order: H⁻¹ itself is updated at every step, no factor, no blocks.

    After a column is rounded it leaves the problem: H⁻¹ ← H⁻¹ − H⁻¹_:j·H⁻¹_j: / H⁻¹_jj. Columns
    stay where they are in the weight, whatever the order in which they are rounded.
    """
    original, w, h = w.double(), w.double().clone(), h.double().clone()
    n = len(h)
    group = group_size or n
    order = list(range(n))
    if act_order:
        order = h.diagonal().argsort(descending=True, stable=True).tolist()
    h.diagonal().add_(0.01 * h.diagonal().mean())
    inverse = torch.linalg.inv(h)
    codes = torch.empty(w.shape, dtype=torch.int32)
    for step, j in enumerate(order):
        if static_groups or group_size is None:
            first = j // group * group
            part = original[:, first : first + group]
        elif step % group == 0:
            part = w[:, order[step : step + group]]
        levels = fit_levels(
            part.amin(1, keepdim=True),
            part.amax(1, keepdim=True),
            bits=bits,
            symmetric=symmetric,
            convention="gptq",
        )
        position = w[:, j, None] / levels.grid.scale
        code = (position.round() + levels.grid.zero_point).clamp(0, 2**bits - 1)
        codes[:, j] = code[:, 0].int()
        move = (w[:, j, None] - (code - levels.grid.zero_point) * levels.grid.scale) / inverse[j, j]
        w -= move * inverse[j]
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def beside_explicit_updates(
    w: torch.Tensor, c: qviz.Calibration, blocks: tuple[int, ...], **options: Any
) -> Iterator[Agreement]:
    theirs = explicit_obq(w, c.hessian, **options)
    for block in blocks:
        ours = record(w, c, block_size=block, **options)
        yield agreement(ours.result.codes, theirs, ours.positions(), perm=ours.perm, tolerance=1e-9)


@against(
    "explicit updates of the inverse in float64",
    method="gptq",
    what="codes, ties within 1e-9 steps apart; block sizes 1, 16, 32, 48, 128, 256",
)
def explicit_updates() -> Tally:
    def found() -> Iterator[Agreement]:
        w, c = problem(None, BUNDLED[1])
        w = w[:96].double()
        for bits, symmetric, group in product((2, 3, 4), (True, False), (32, 128)):
            options = {"bits": bits, "symmetric": symmetric, "group_size": group}
            yield from beside_explicit_updates(w, c, BLOCKS, **options)

    return tally(found())


@against(
    "explicit updates of the inverse in float64",
    method="gptq",
    what="codes, ties within 1e-9 steps apart; two models, every order and kind of group",
    slow=True,
)
def explicit_updates_everywhere() -> Tally:
    layers = ((None, BUNDLED[0]), (None, BUNDLED[3]), ("minilm", MINILM[0]), ("minilm", MINILM[2]))

    def found() -> Iterator[Agreement]:
        for model, layer in layers:
            w, c = problem(model, layer)
            w = w[:32].double()
            for bits, symmetric, group, order, static in product(
                (2, 3, 4, 8), (True, False), (32, 64, 128, None), (False, True), (False, True)
            ):
                options = {"bits": bits, "symmetric": symmetric, "group_size": group}
                ways = {"act_order": order, "static_groups": static}
                yield from beside_explicit_updates(w, c, (16, 128), **options, **ways)

    return tally(found())
