"""LLM.int8() beside bitsandbytes on a CPU: statistics, codes, outlier columns and outputs."""

import itertools
import logging
from collections.abc import Iterator

import torch
from inputs import adversarial

import qviz
from exactness import Array, Tally, against, equal

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
THRESHOLDS = (0.0, 0.5, 6.0)
Pairs = Iterator[tuple[Array, Array]]


def weights() -> list[torch.Tensor]:
    """Trained, random and hard weights that float16 can hold, and sizes that are odd.

    None has one input and several outputs: there torch's own int8 product on a CPU (torch._int_mm,
    which bitsandbytes calls) returns what its memory held before.
    """
    g = torch.Generator().manual_seed(3)
    hard = [v for v in adversarial(256).values() if torch.isfinite(v.half()).all()]
    odd = [torch.randn(n, k, generator=g) for n, k in ((1, 1), (7, 3), (33, 129), (96, 2500))]
    return [qviz.load_layer(None, "model.layers.0.mlp.up_proj")[:128].float(), *hard, *odd]


def few() -> list[torch.Tensor]:
    """Those whose products are worth comparing with every kind of input."""
    every = weights()
    return [*every[:3], *every[-4:]]


def inputs(columns: int) -> list[torch.Tensor]:
    """Outlier columns, none, all, values on the threshold, a row of zeros, one token."""
    g = torch.Generator().manual_seed(columns)
    x = torch.randn(24, columns, generator=g)
    far = x.clone()
    far[:, :: max(1, columns // 5)] *= 20
    far[3] = 0
    edge = x.clamp(-1, 1)
    edge[::5, ::7] = 6.0
    edge[1::5, ::9] = 5.999  # below 6 in float32, 6 in float16
    edge[2::5, ::8] = 6 - 2**-8  # the nearest float16 below 6
    return [x * 0.3, far, edge, x * 50, far[:1], torch.zeros(4, columns), x * 1e-6]


def products() -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """Weight, inputs and threshold of every product that is compared."""
    for dtype, threshold, w in itertools.product(DTYPES, THRESHOLDS, few()):
        for x in inputs(w.shape[1]):
            yield w, x.to(dtype), threshold


def theirs(w: torch.Tensor, x: torch.Tensor, threshold: float) -> torch.Tensor:
    from bitsandbytes import matmul
    from bitsandbytes.autograd._functions import MatmulLtState
    from bitsandbytes.functional import int8_vectorwise_quant

    state = MatmulLtState()
    # as Linear8bitLt in evaluation; while training, a CPU quantizes no activations at all
    state.is_training, state.has_fp16_weights, state.threshold = False, False, threshold
    state.CB, state.SCB, _ = int8_vectorwise_quant(w.half())
    return matmul(x, None, state=state, threshold=threshold)


@against("bitsandbytes", method="llm_int8", what="weight: codes, absmax, values: equal")
def weight() -> Tally:
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    def one(w: torch.Tensor) -> Pairs:
        ours = qviz.quantize(w, "llm_int8").weight
        codes, absmax, _ = int8_vectorwise_quant(w.half())
        yield ours.codes, codes
        yield ours.grid.absmax.flatten(), absmax
        yield ours.dequantize(), int8_vectorwise_dequant(codes, absmax)

    return equal(pair for dtype in DTYPES for w in weights() for pair in one(w.to(dtype)))


@against(
    "bitsandbytes", method="llm_int8", what="inputs: codes, absmax, outlier columns, product: equal"
)
def activations() -> Tally:
    from bitsandbytes.functional import int8_linear_matmul, int8_vectorwise_quant

    def one(w: torch.Tensor, x: torch.Tensor, threshold: float) -> Pairs:
        linear, trace = qviz.quantize(w, "llm_int8", threshold=threshold), qviz.Trace()
        linear(x, emit=trace)
        shown = {
            name: t for event in trace for name, t in event.tensors.items() if name != "inputs"
        }
        codes, absmax, columns = int8_vectorwise_quant(x.half(), threshold=threshold)
        yield shown["codes"], codes
        yield shown["absmax"].flatten(), absmax
        if columns is not None:
            yield shown["columns"], columns
        yield shown["product"], int8_linear_matmul(codes, linear.weight.codes)

    return equal(pair for case in products() for pair in one(*case))


@against("bitsandbytes", method="llm_int8", what="output, batches of 1 to 3 dimensions: equal")
def output() -> Tally:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every cast

    def one(w: torch.Tensor, x: torch.Tensor, threshold: float) -> Pairs:
        linear = qviz.quantize(w, "llm_int8", threshold=threshold)
        yield linear(x), theirs(w, x, threshold)
        batch = x[: len(x) // 2 * 2].reshape(-1, 2, x.shape[1])
        if len(batch):
            yield linear(batch), theirs(w, batch, threshold)

    return equal(pair for case in products() for pair in one(*case))
