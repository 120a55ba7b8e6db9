"""SmoothQuant: factors, smoothed and rounded weights, rounded activations, products."""

import itertools
from pathlib import Path

import numpy as np
import torch
from inputs import adversarial, calibration_for, golden_layer

import qviz
from exactness import Array, Tally, against, equal
from qviz.core.transform import InputScale
from qviz.methods.smoothquant import ALPHAS, search, smoothquant

GOLDEN = Path(__file__).parents[1] / "golden" / "smoothquant.npz"
SHAPE = (16, 8)  # rows and tokens of the vectors


def same_power(s: torch.Tensor, w: torch.Tensor, inverse: Array, smoothed: Array) -> torch.Tensor:
    """s [in] with the last bit that the vectors' machine gave its powers.

    aᵅ is a library's power function, whose last bit differs between processors. Of s and its two
    neighbours in float32, for each channel the one from which 1/s and W·s follow bit for bit; s
    where none does, and then they are counted as different.
    """
    far = torch.full_like(s, torch.inf)
    near = torch.stack([s, torch.nextafter(s, far), torch.nextafter(s, -far)])  # [3, in]
    fits = 1 / near == torch.from_numpy(inverse)
    fits &= (w * near[:, None] == torch.from_numpy(smoothed)).all(dim=1)
    return near.gather(0, fits.int().argmax(dim=0, keepdim=True))[0]


@against(
    "mit-han-lab/smoothquant c61476d vectors",
    method="smoothquant",
    what="1/s and W·s, but for the last bit of a power; rounded weights and activations: equal; "
    "output within 1e-6",
)
def vectors() -> Tally:
    golden = np.load(GOLDEN)
    w, x = golden_layer()
    rows, tokens = SHAPE

    def pairs():
        for alpha in (0.5, 0.85):
            _, ours = search([w[:rows], w[rows:]], calibration_for(x), alpha=alpha)
            inverse = golden[f"{alpha}/norm"]
            s = same_power(ours, w[:rows], inverse, golden[f"{alpha}/smoothed"])
            yield 1 / s, inverse
            for activations in ("token", "tensor"):
                trace = qviz.Trace()
                linear = smoothquant(
                    w[:rows], calibration_for(x), activations=activations,
                    transform=InputScale(s), emit=trace,
                ).folded()  # fmt: skip
                yield trace.named("smoothquant.smoothed")[0]["weight"], golden[f"{alpha}/smoothed"]
                yield linear.dequantize(), golden[f"{alpha}/weight"]
                # the reference's norm multiplies by the rounded 1/s
                y = linear(x[:tokens] * torch.from_numpy(inverse), emit=trace)
                event = trace.named("smoothquant.activation")[0]
                key = f"{alpha}/per_{activations}"
                yield event["codes"] * event["scale"], golden[f"{key}/inputs"]
                want = golden[f"{key}/output"]
                yield abs(y.numpy() - want) <= 1e-6 * abs(want).max(), np.ones_like(want, bool)

    return equal(pairs())


@against(
    "formula in float64", method="smoothquant", what="factors channel by channel: within 1e-12"
)
def factors_by_hand() -> Tally:
    compared = wrong = inputs = 0
    x = np.random.default_rng(3).normal(size=(50, 128)) * 3
    x[:, 7] = 0
    given = calibration_for(torch.from_numpy(x))
    a = given.act_absmax.double().tolist()
    weights = [w.double() for w in adversarial().values()]
    for first, alpha in itertools.product(range(len(weights)), (0, 0.3, 0.5, 0.85, 1)):
        fed = weights[first : first + 3]
        _, s = search(fed, given, alpha=alpha)
        for j in range(128):
            largest = max(max(abs(float(w)) for w in part[:, j]) for part in fed)
            want = max(a[j] ** alpha / max(largest, 1e-5) ** (1 - alpha), 1e-5)
            wrong += not np.isclose(float(s[j]), want, rtol=1e-12)
        compared += 128
        inputs += 1
    return Tally(inputs, compared, wrong)


def output_by_hand(
    w: np.ndarray, x: np.ndarray, s: np.ndarray, act_bits: int, activations: str
) -> np.ndarray:
    """Ŷ of the smoothed layer in float64, both sides rounded and multiplied as values."""
    axis = 1 if activations == "token" else None
    scaled, divided = w * s, x / s
    top = 2 ** (act_bits - 1) - 1
    ws = np.maximum(abs(scaled).max(axis=1, keepdims=True), 1e-5) / 127
    xs = np.maximum(abs(divided).max(axis=axis, keepdims=True), 1e-5) / top
    return (np.rint(divided / xs) * xs) @ (np.rint(scaled / ws) * ws).T


@against(
    "formula in float64", method="smoothquant", what="output within 1e-12; the best α, ties apart"
)
def outputs_and_alpha() -> Tally:
    compared = wrong = inputs = 0
    for seed, activations, act_bits in itertools.product(range(4), ("token", "tensor"), (8, 5)):
        g = np.random.default_rng(seed)
        w = g.normal(size=(24, 64)) * np.exp(g.normal(size=64) / 2) * 0.1
        x = np.float64(np.float32(g.normal(size=(60, 64)) * np.exp(g.normal(size=64))))
        given = calibration_for(torch.from_numpy(x))
        options = {"act_bits": act_bits, "activations": activations}
        losses = []
        for alpha in ALPHAS:
            linear = smoothquant(torch.from_numpy(w), given, alpha=alpha, **options)
            s = linear.weight.transform.scale.numpy()
            want = output_by_hand(w, x, s, act_bits, activations)
            y = linear(torch.from_numpy(x)).numpy()
            wrong += int((abs(y - want) > 1e-12 * abs(want).max()).sum())
            compared += y.size
            losses.append(float(np.mean((want - x @ w.T) ** 2)))
        found, _ = search([torch.from_numpy(w)], given, alpha="search", **options)
        wrong += losses[ALPHAS.index(found)] > min(losses) * (1 + 1e-9)
        compared += 1
        inputs += 1
    return Tally(inputs, compared, wrong)
