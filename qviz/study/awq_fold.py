"""Folding AWQ's factors, shown on real inputs: the output before and after, nothing rounded.

W·diag(s) multiplies x/s. Where x comes out of a norm, γ/s makes x/s; where it comes out of an
up projection, its rows divided by s do. Three ways are compared with the layer as trained: folded;
folded with factors that are powers of two, which floating point multiplies without an error; and
forgotten, which is how it fails in practice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

TOKENS = 256  # of the kept inputs that the outputs are compared on
UNIT = 0.05  # how far a norm's root mean square may be from 1 before its weight is no multiplier


@dataclass(frozen=True)
class Fold:
    """How far the output is from the layer's as trained, over its root mean square.

    folded, powers, forgotten  the largest difference of any output, relative to the outputs' root
                               mean square: with the factors folded, with powers of two folded, and
                               with the weights scaled and the inputs not
    equal                      whether powers of two change not a single bit
    """

    folded: float
    powers: float
    forgotten: float
    equal: bool


def fold_norm(
    x: torch.Tensor,
    gamma: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> Fold:
    """A norm that feeds the layer: x [tokens, in] is what it puts out, gamma [in] its weight.

    Right where `multiplies` holds.
    """
    beta = torch.zeros_like(gamma) if bias is None else bias
    plain = _plain(x[:TOKENS].float(), gamma, beta)

    def after(s: torch.Tensor) -> torch.Tensor:
        return (plain * (gamma / s) + beta / s) @ (weight * s).T

    return _compare(after, plain * gamma + beta, weight, scale)


def multiplies(x: torch.Tensor, gamma: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether a norm that puts out x [tokens, in] multiplies by its weight gamma [in] alone.

    Divided by it, every token then has root mean square 1. Gemma's norms multiply by 1 + weight:
    factors folded into that weight would change the function.
    """
    beta = torch.zeros_like(gamma) if bias is None else bias
    plain = _plain(x[:TOKENS].float(), gamma, beta)[:, gamma != 0]
    rms = plain.square().mean(1).sqrt()
    return bool((rms - 1).abs().median() < UNIT)


def _plain(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """What the norm multiplies, 0 in channels that it switches off."""
    alive = gamma != 0
    return torch.where(alive, (x - beta) / torch.where(alive, gamma, 1.0), 0.0)


def fold_up(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
) -> Fold:
    """A gated feed-forward block, down(silu(gate·x) · up·x): up takes the factors of down.

    x [tokens, model] enters gate and up [in, model]; weight [model, in] is down's.
    """
    x = x[:TOKENS].float()
    gated = torch.nn.functional.silu(x @ gate.T)  # [tokens, in]

    def after(s: torch.Tensor) -> torch.Tensor:
        return (gated * (x @ (up / s.unsqueeze(1)).T)) @ (weight * s).T

    return _compare(after, gated * (x @ up.T), weight, scale)


def fold_inputs(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> Fold:
    """Nothing to fold into: the inputs are divided while the model runs."""
    x = x[:TOKENS].float()
    return _compare(lambda s: (x / s) @ (weight * s).T, x, weight, scale)


def powers_of_two(scale: torch.Tensor) -> torch.Tensor:
    """The nearest power of two of each factor."""
    return torch.exp2(scale.log2().round())


def _compare(
    after: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
) -> Fold:
    before = x @ weight.T
    unit = float(before.double().square().mean().sqrt()) or 1.0
    two = after(powers_of_two(scale))
    wrong = x @ (weight * scale).T

    def off(other: torch.Tensor) -> float:
        return float((other - before).abs().max()) / unit

    return Fold(off(after(scale)), off(two), off(wrong), torch.equal(two, before))
