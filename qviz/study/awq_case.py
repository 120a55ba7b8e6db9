"""One AWQ problem: a layer, the linears that share its input, the inputs, and what feeds them.

AWQ looks for factors that serve all linears of one input, and folds them into what makes that
input. Which layers these are is told from the names of a checkpoint's tensors, by the same table of
blocks that folding a whole model uses (`qviz.models.fold.BLOCKS`): no model has to be built.

Symbols as in `qviz.methods.awq`: W [out, in], X [tokens, in], a [in] mean |X|, s [in] the factors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from qviz.core.calibration import Calibration
from qviz.core.metrics import output_energy, output_error
from qviz.core.tensor import QuantizedTensor
from qviz.methods.affine import affine
from qviz.models.capture import load_calibration
from qviz.models.checkpoint import find_checkpoint, load_layer
from qviz.models.fold import BLOCKS, Block, Feed

LOUD_SHARE = 0.01  # of the channels that `louder` amplifies


@dataclass(frozen=True, eq=False)
class Case:
    """A layer that AWQ is to quantize.

    name         of the layer
    weights      name → weight [out, in] float32 of every linear of this input, the layer among them
    calibration  what AWQ sees of the inputs; judge: inputs that errors are measured on
    bits, group_size  of the asymmetric grid (convention "awq")
    """

    name: str
    weights: Mapping[str, torch.Tensor]
    calibration: Calibration
    judge: Calibration
    bits: int = 4
    group_size: int | None = 128

    @property
    def weight(self) -> torch.Tensor:
        """[out, in] of the layer itself."""
        return self.weights[self.name]

    @property
    def options(self) -> dict[str, Any]:
        """What every method here is called with."""
        return {"bits": self.bits, "group_size": self.group_size, "symmetric": False}

    @property
    def size(self) -> int:
        """Inputs that share a scale."""
        return self.weight.shape[1] if self.group_size is None else self.group_size

    @cached_property
    def nearest(self) -> QuantizedTensor:
        """The layer rounded to nearest, on AWQ's own grid."""
        return affine(self.weight, **self.options, convention="awq")

    @cached_property
    def energy(self) -> float:
        """tr(W·H·Wᵀ) of all linears of this input together, on the calibration."""
        return sum(output_energy(w, self.calibration) for w in self.weights.values())

    @cached_property
    def judged_energy(self) -> float:
        """The same on the judge's inputs."""
        return sum(output_energy(w, self.judge) for w in self.weights.values())

    def error(self, back: torch.Tensor, *, judged: bool = False) -> float:
        """How far the layer's output is off with `back` [out, in] in place of its weight: on the
        calibration, or on the judge's inputs."""
        return output_error(self.weight, back, self.judge if judged else self.calibration)


# ------------------------------------------------------------------------- changing the inputs


def times(calibration: Calibration, factor: torch.Tensor) -> Calibration:
    """The calibration of inputs x·m, `factor` m [in] not negative: what every statistic becomes.

    >>> times(calibration, torch.full((calibration.in_features,), 2.0)).act_absmax
    """
    m = factor.to(calibration.hessian)
    f = factor.to(calibration.inputs)
    return replace(
        calibration,
        inputs=calibration.inputs * f,
        hessian=calibration.hessian * m * m.unsqueeze(1),
        act_absmax=calibration.act_absmax * f,
        act_absmean=calibration.act_absmean * f,
    )


def loudest(calibration: Calibration, share: float = LOUD_SHARE) -> torch.Tensor:
    """The channels with the largest mean |x|, that share of all of them and at least one."""
    count = max(1, round(share * calibration.in_features))
    return calibration.act_absmean.topk(count).indices


def amplifier(calibration: Calibration, factor: float) -> torch.Tensor:
    """m [in]: `factor` for the loudest channels, 1 for the others."""
    m = torch.ones(calibration.in_features)
    m[loudest(calibration)] = factor
    return m


def louder(case: Case, factor: float) -> Case:
    """The same function with louder channels: inputs times m, the weights that meet them divided.

    Large language models have channels far louder than the rest; small ones hardly do. With a
    power of two as `factor` no product changes by a single bit.
    """
    if factor == 1:
        return case
    m = amplifier(case.calibration, factor)
    return replace(
        case,
        weights={name: w / m for name, w in case.weights.items()},
        calibration=times(case.calibration, m),
        judge=times(case.judge, m),
    )


# ------------------------------------------------------------------------- reading one

MEASURED = 1 << 20  # weights; of a larger linear as many whole rows as make up so many
HELD_OUT = "heldout_python"


def load_case(
    source: str | None,
    layer: str,
    *,
    bits: int = 4,
    group_size: int | None = 128,
    loud: float = 1.0,
    judge: str = HELD_OUT,
) -> Case:
    """The case of a layer of a model, whose inputs are captured where they are not known yet.

    loud  how much louder its loudest channels are made (see `louder`); judge: the text that errors
    are measured on. Errors as those of `qviz.load_layer` and `qviz.load_calibration`.

    >>> load_case(None, "model.layers.1.self_attn.v_proj", bits=3).weight.shape
    torch.Size([128, 256])
    """
    found = wiring({n: i.shape for n, i in find_checkpoint(source).headers().items()}, layer)
    case = Case(
        layer,
        {name: some_rows(load_layer(source, name)).float() for name in found.linears},
        load_calibration(source, layer),
        load_calibration(source, layer, text=judge),
        bits,
        group_size,
    )
    return louder(case, loud)


def some_rows(weight: torch.Tensor) -> torch.Tensor:
    """The whole weight [out, in], or its first rows where it is large: rows are rounded
    independently of each other."""
    return weight[: max(1, MEASURED // weight.shape[1])]


# ------------------------------------------------------------------------- what feeds a layer


@dataclass(frozen=True)
class Wiring:
    """What makes a layer's input, and who else multiplies it.

    linears  all linears of this input, the layer among them
    source   the norm or linear whose outputs it is; "" where none is known
    into     "norm", "linear" or ""
    shared   how many of the linears' inputs each output of the source becomes: 1, or more where
             heads share values (grouped-query attention), and then nothing can be folded
    note     why there is no source
    """

    linears: tuple[str, ...]
    source: str = ""
    into: str = ""
    shared: int = 1
    note: str = ""

    @property
    def folds(self) -> bool:
        """Whether the source can take up the factors."""
        return bool(self.source) and self.shared == 1


UNKNOWN = "a block of this kind is not known here"
NO_FEED = "no layer before it is known that could take up its factors"


def wiring(shapes: Mapping[str, tuple[int, ...]], layer: str) -> Wiring:
    """How `layer` is fed; `shapes` are those of all tensors of the checkpoint, by name.

    >>> shapes = {n: i.shape for n, i in find_checkpoint(None).headers().items()}
    >>> wiring(shapes, "model.layers.0.self_attn.v_proj").source
    'model.layers.0.input_layernorm'
    """
    found = _block_of(shapes, layer)
    if found is None:
        return Wiring((layer,), note=UNKNOWN)
    block, prefix = found
    for feed in block.feeds:
        if layer.removeprefix(prefix) in feed.linears:
            return _wired(shapes, prefix, feed)
    return Wiring((layer,), note=block.note or NO_FEED)


def block_wirings(shapes: Mapping[str, tuple[int, ...]], layer: str) -> tuple[Wiring, ...]:
    """Every input of the layer's block that could be divided; none where the block is not known."""
    found = _block_of(shapes, layer)
    if found is None:
        return ()
    block, prefix = found
    return tuple(_wired(shapes, prefix, feed) for feed in block.feeds)


def _wired(shapes: Mapping[str, tuple[int, ...]], prefix: str, feed: Feed) -> Wiring:
    linears = tuple(prefix + name for name in feed.linears)
    shared = 1
    if feed.into == "linear":
        outputs = shapes[f"{prefix}{feed.source}.weight"][0]
        inputs = shapes[f"{linears[0]}.weight"][1]
        # A fused layer's last outputs are the ones that go on (gate and up: up).
        shared = 1 if outputs % inputs == 0 else max(2, inputs // outputs)
    return Wiring(linears, prefix + feed.source, feed.into, shared)


def _block_of(shapes: Mapping[str, tuple[int, ...]], layer: str) -> tuple[Block, str] | None:
    """(kind of block, what its names begin with) of the block that the layer is in."""
    for block in BLOCKS:
        known = {name for feed in block.feeds for name in (feed.source, *feed.linears)}
        for part in sorted(known | block.others):
            prefix = layer.removesuffix(part)
            if prefix == layer or (prefix and not prefix.endswith(".")):
                continue
            if known <= _parts(shapes, prefix) <= known | block.others:
                return block, prefix
    return None


def _parts(shapes: Iterable[str], prefix: str) -> set[str]:
    """The modules with parameters under this prefix."""
    inside = (name.removeprefix(prefix) for name in shapes if name.startswith(prefix))
    return {name.rpartition(".")[0] for name in inside}
