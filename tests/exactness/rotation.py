"""Rotation: Hadamard matrices, the fast transform, and the codes of the rotated weight."""

from collections.abc import Iterator

import numpy as np
import torch
from inputs import adversarial

import qviz
from exactness import Array, Tally, against, equal
from qviz.core.hadamard import hadamard_matrix, hadamard_transform, random_signs
from qviz.methods.rotation import Rotation, rotation

Pairs = Iterator[tuple[Array, Array]]
QUAROT = (12, 20, 28, 36, 40, 52, 60, 108, 140, 156, 172)


@against("scipy", method="rotation", what="Hadamard matrices of powers of two: equal")
def sylvester() -> Tally:
    from scipy.linalg import hadamard

    return equal((hadamard_matrix(2**m), hadamard(2**m)) for m in range(12))


@against("compressed-tensors", method="rotation", what="its deterministic Hadamard matrices: equal")
def deterministic() -> Tally:
    from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix

    theirs = (deterministic_hadamard_matrix(2**m, torch.float64) for m in range(12))
    return equal((hadamard_matrix(2**m), h) for m, h in enumerate(theirs))


@against("integers", method="rotation", what="H·Hᵀ = n·I for every size of QuaRot's tables, ×2^m")
def defining_property() -> Tally:
    def pairs() -> Pairs:
        for n in (k << m for k in QUAROT for m in range(4)):
            h = hadamard_matrix(n).int()
            yield h @ h.T, n * torch.eye(n, dtype=torch.int32)

    return equal(pairs())


@against("torchao", method="rotation", what="QuaRot's matmul_hadU given our K×K matrix: equal")
def transform() -> Tally:
    """Integer inputs, so that the sums of both are exact and only the order of rows can differ."""
    from torchao.prototype.spinquant.hadamard_utils import matmul_hadU_slow

    def pairs() -> Pairs:
        g = torch.Generator().manual_seed(2)
        for k in (1, *QUAROT):
            for n in (k, 2 * k, 16 * k):
                x = torch.randint(-50, 51, (4, n), generator=g).double()
                h = None if k == 1 else hadamard_matrix(k).double()  # 40 is 2 × 20 here
                ours = hadamard_transform(x) / torch.tensor(n).sqrt()
                yield ours, matmul_hadU_slow(x, h, k)

    return equal(pairs())


def weights() -> Iterator[torch.Tensor]:
    g = torch.Generator().manual_seed(4)
    for columns in (128, 96, 160, 172):  # 2^7, 12·8, 20·8 and 172
        w = torch.randn(24, columns, generator=g) * 0.05
        w[:, 3] *= 40
        yield w
    yield qviz.load_layer(None, "model.layers.0.mlp.up_proj").float()[:128]
    yield from (w for name, w in adversarial().items() if name != "large")


@against("float64 brute force", method="rotation", what="codes and scales of explicit W·Q: equal")
def codes() -> Tally:
    def pairs() -> Pairs:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for w in weights():
                for bits in (2, 4, 8):
                    yield from one(w.to(dtype), bits)

    return equal(pairs())


def one(w: torch.Tensor, bits: int) -> Pairs:
    """The whole of rotation, from its definition, with dense matrices and NumPy."""
    ours = rotation(w, bits=bits, seed=6)
    n = w.shape[1]
    signs = random_signs(w.shape[1] + w.shape[0], 6)[:n]
    q = np.diag(signs.double().numpy()) @ hadamard_matrix(n).double().numpy().T
    rotated = torch.from_numpy(w.double().numpy() @ q / np.sqrt(n)).to(w.dtype)
    top = 2 ** (bits - 1)
    scale = rotated.abs().amax(1, keepdim=True).clamp(min=1e-5) / (top - 1)
    yield ours.grid.scale, scale
    yield ours.codes, torch.clamp((rotated / scale).round(), -top, top - 1)


@against("float64 brute force", method="rotation", what="both sides, there and back: within 1e-12")
def there_and_back() -> Tally:
    mismatches = compared = inputs = 0
    g = torch.Generator().manual_seed(5)
    for shape in ((128, 96), (12, 172), (60, 2), (1, 36)):
        w = torch.randn(*shape, generator=g, dtype=torch.float64)
        turn = Rotation.random(shape, 9, "both")
        assert turn.output is not None
        left, right = (
            torch.diag(s.double()) @ hadamard_matrix(len(s)).double().T / len(s) ** 0.5
            for s in (turn.output, turn.signs)
        )
        for ours, theirs in ((turn.apply(w), left.T @ w @ right), (turn.undo(turn.apply(w)), w)):
            mismatches += int(((ours - theirs).abs() > 1e-12).sum())
            compared, inputs = compared + w.numel(), inputs + 1
    return Tally(inputs, compared, mismatches)
