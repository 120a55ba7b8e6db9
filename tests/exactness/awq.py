"""AWQ: candidates, losses, the chosen factors, clip limits and codes."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from inputs import adversarial, calibration_for, golden_layer

import qviz
from exactness import Tally, against, equal
from qviz.core.calibration import Calibration
from qviz.methods.awq import GRIDS, awq, search
from qviz.models.texts import calibration_texts

GOLDEN = Path(__file__).parents[1] / "golden"
TIE = 1e-9  # losses of two candidates closer than this, relatively, are a tie


def rounded(group: np.ndarray, bits: int) -> np.ndarray:
    """One group rounded as AWQ rounds, weight by weight, in Python's floats."""
    steps = 2**bits - 1
    scale = max(group.max() - group.min(), 1e-5) / steps
    zero = min(max(-round(group.min() / scale), 0), steps)
    return np.array(
        [(min(max(round(v / scale) + zero, 0), steps) - zero) * scale for v in group.tolist()]
    )


def losses_by_hand(
    weights: Sequence[np.ndarray], x: np.ndarray, a: np.ndarray, bits: int, size: int, grid: str
) -> tuple[list[float], list[np.ndarray]]:
    """Loss and factors of each candidate, from the outputs themselves, in float64."""
    n = len(a)
    groups = [slice(g, g + size) for g in range(0, n, size)]
    magnitude = np.zeros(n)
    for row in np.concatenate(weights):
        for g in groups:
            magnitude[g] += abs(row[g]) / (max(abs(row[g])) + 1e-6)
    magnitude /= sum(map(len, weights))
    losses, factors = [], []
    for ratio, duo in GRIDS[grid].candidates:
        s = np.empty(n)
        for j in range(n):
            s[j] = a[j] ** ratio
            if duo:
                s[j] /= magnitude[j] ** (1 - ratio) + 1e-4
        s = np.maximum(s, 1e-4)
        s = s / math.sqrt(s.max() * s.min())
        errors = []
        for row in np.concatenate(weights):
            back = np.concatenate([rounded(row[g] * s[g], bits) / s[g] for g in groups])
            errors.append(np.mean((x @ (back - row)) ** 2))
        losses.append(float(np.mean(errors)))
        factors.append(s)
    return losses, factors


def problems() -> list[tuple[list[np.ndarray], np.ndarray]]:
    """(weights that share an input, inputs): one or three weights, few tokens and many."""
    g = np.random.default_rng(4)
    made = []
    for tokens, rows in ((20, [6]), (150, [5]), (90, [4, 3, 2])):
        x = g.normal(size=(tokens, 64)) * np.exp(g.normal(size=64))
        x[:, 11] = 0  # a channel that is always 0
        made.append(([g.standard_t(4, size=(r, 64)) * 0.05 for r in rows], np.float32(x)))
    hard = [w.double().numpy() for name, w in adversarial(64).items() if name != "large"]
    return made + [([w], made[1][1]) for w in hard]


def wide_calibration(x: np.ndarray) -> Calibration:
    return calibration_for(torch.from_numpy(np.asarray(x, np.float64)))


@against(
    "brute force in float64", method="awq", what="losses within 1e-9, ratio and factors, ties apart"
)
def by_hand() -> Tally:
    compared = wrong = inputs = 0
    settings = itertools.product(problems(), ((4, 16), (2, 64)), GRIDS)
    for (weights, x), (bits, size), grid in settings:
        calibration = wide_calibration(x)
        a = calibration.act_absmean.double().numpy()
        losses, factors = losses_by_hand(weights, np.float64(x), a, bits, size, grid)
        ours = search(
            [torch.from_numpy(w) for w in weights], calibration,
            bits=bits, group_size=size, grid=grid,
        )  # fmt: skip
        energy = np.mean((x @ np.concatenate(weights).T) ** 2)  # an exact fit leaves only noise
        near = np.isclose(ours.losses.numpy(), losses, rtol=1e-9, atol=1e-25 * energy)
        best = losses.index(min(losses))
        tied = losses[ours.best] <= min(losses) * (1 + TIE)
        same = np.isclose(ours.scale.numpy(), factors[ours.best], rtol=1e-12)
        inputs += 1
        compared += len(losses) + 1 + len(a)
        wrong += int((~near).sum()) + int(ours.best != best and not tied) + int((~same).sum())
    return Tally(inputs, compared, wrong)


@against("brute force in float64", method="awq", what="clip steps, ties apart; limits")
def clipping_by_hand() -> Tally:
    compared = wrong = inputs = 0
    for (weights, x), bits in itertools.product(problems(), (4, 2)):
        trace = qviz.Trace("awq.scaled", "awq.clip")
        awq(torch.from_numpy(weights[0]), wide_calibration(x), bits=bits, group_size=16,
            clip=True, emit=trace)  # fmt: skip
        q_scale = awq(torch.from_numpy(weights[0]), wide_calibration(x), bits=bits, group_size=16)
        scaled, clip = trace[0]["weight"].numpy(), trace[1]
        divided = np.float64(x) / q_scale.transform.scale.numpy()
        for row, group in itertools.product(range(len(scaled)), range(4)):
            part = slice(16 * group, 16 * group + 16)
            w, top = scaled[row, part], abs(scaled[row, part]).max()
            errors = []
            for k in range(10):
                limit = top * (1 - k / 20)
                d = rounded(np.clip(w, -limit, limit), bits) - w
                errors.append(float(np.mean((divided[:, part] @ d) ** 2)))
            step = int(clip["step"][row, group])
            tied = errors[step] <= min(errors) * (1 + TIE)
            compared += 2
            wrong += int(step != errors.index(min(errors)) and not tied)
            wrong += int(not math.isclose(clip["limit"][row, group], top * (1 - step / 20)))
        inputs += 1
    return Tally(inputs, compared, wrong)


@against(
    "brute force in float64",
    method="awq",
    what="trained layers in float32: losses within 0.1 %, ratio and factors",
    slow=True,
)
def trained_layers() -> Tally:
    layers = ["model.layers.0.self_attn.v_proj", "model.layers.3.self_attn.o_proj"]
    text = calibration_texts()["python"].text
    captured = qviz.capture(qviz.load_model(), text, layers, max_tokens=600, keep_inputs=600)
    compared = wrong = 0
    for layer, grid in itertools.product(layers, ("llm-awq", "autoawq")):
        w, given = qviz.load_layer(None, layer).float(), captured[layer]
        a, x = given.act_absmean.double().numpy(), given.inputs.double().numpy()
        losses, factors = losses_by_hand([w.double().numpy()], x, a, 4, 128, grid)
        ours = search([w], given, grid=grid)
        # r = 0 rounds the stored 16-bit weights themselves, some of which lie on ties
        wrong += int((~np.isclose(ours.losses, losses, rtol=1e-3)).sum())
        wrong += int((~np.isclose(ours.losses[1:], losses[1:], rtol=1e-6)).sum())
        wrong += ours.best != losses.index(min(losses))
        wrong += int((~np.isclose(ours.scale, factors[ours.best], rtol=1e-5)).sum())
        compared += 2 * len(losses) + len(a)
    return Tally(4, compared, wrong)


@against(
    "llm-awq d6e797a vectors", method="awq", what="factors, limits, scales, zeros, codes: equal"
)
def llm_awq_vectors() -> Tally:
    golden = np.load(GOLDEN / "awq_llm_awq.npz")
    w, x = golden_layer()

    def pairs():
        for bits in (4, 3):
            trace = qviz.Trace("awq.clip")
            q = awq(w, calibration_for(x), bits=bits, group_size=32, emit=trace)
            yield q.transform.scale, golden[f"{bits}/scale"]
            yield trace[0]["limit"], golden[f"{bits}/limit"]
            yield q.grid.scale, golden[f"{bits}/step"]
            yield q.grid.zero_point, golden[f"{bits}/zero"]
            yield q.codes, golden[f"{bits}/codes"]

    return equal(pairs())


@against("AutoAWQ 88e4c76 vectors", method="awq", what="weight-aware factors: equal")
def autoawq_vectors() -> Tally:
    golden = np.load(GOLDEN / "awq_autoawq.npz")
    w, x = golden_layer()
    options = {"group_size": 32, "grid": "autoawq"}
    return equal(
        (search([w], calibration_for(x), bits=bits, **options).scale, golden[f"{bits}/scale"])
        for bits in (4, 3)
    )


@against(
    "llmcompressor", method="awq", what="best loss within 1e-6, weight-aware factors within 1e-5"
)
def llm_compressor() -> Tally:
    """Its AWQ rounds as compressed-tensors does, which differs from "awq" at ties alone where
    every group has weights of both signs."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle import initialize
    from llmcompressor.modifiers.transform.awq.base import AWQModifier

    w, x = golden_layer()
    compared = wrong = inputs = 0
    for bits, size in itertools.product((4, 3), (32, 64)):
        layer = torch.nn.Linear(128, 128, bias=False).requires_grad_(False)
        layer.weight.copy_(w)
        args = QuantizationArgs(
            num_bits=bits, symmetric=False, strategy="group", group_size=size,
            observer="memoryless_minmax",
        )  # fmt: skip
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        initialize.initialize_module_for_quantization(layer, scheme)
        modifier = AWQModifier(duo_scaling=True)
        modifier._smooth_activation_stats = {"": [x.abs().sum(0), torch.tensor(len(x))]}
        names = {"smooth_name": "", "parent_name": ""}
        feed = SimpleNamespace(parent=layer, balance_layers=[layer], **names)
        run = mock.patch.object(AWQModifier, "_run_samples", lambda self, m: [x @ m.weight.T])
        with run, torch.no_grad():
            theirs = modifier._compute_best_scale(feed, [x @ w.T], {layer: w.clone()})
        options = {"bits": bits, "group_size": size, "grid": "llm-compressor"}
        ours = search([w], calibration_for(x), **options)
        error = modifier._error_metrics[0]
        wrong += not math.isclose(error["best_error"], min(ours.losses), rel_tol=1e-6)
        # unscaled, these integers do fall on ties
        wrong += not math.isclose(error["initial_error"], ours.losses[0], rel_tol=1e-2)
        wrong += int((~torch.isclose(ours.scale, theirs.float(), rtol=1e-5)).sum())
        compared += 2 + len(theirs)
        inputs += 1
    return Tally(inputs, compared, wrong)
