"""GGUF's quantized types: Q4_0 … Q8_0, MXFP4 and the k-quants Q2_K … Q6_K.

Weights are cut along each row into blocks of 32, or super-blocks of 256, and each becomes a few
bytes that hold codes and scales; no calibration is needed. The k-quants search for their scales:
sub-blocks of 16 or 32 weights try about twenty scales and fit each by weighted least squares, and
the scales found are quantized in turn. The bytes are those of llama.cpp's C code.

Symbols: x weights of a (sub-)block, w their importance, q codes, s scale, m minimum; d and dmin
the float16 numbers of a block. Source: ggml src/ggml-quants.c; there is no paper. Read search.py
for the searches, kquants.py and legacy.py for the types, layout.py for the bytes, decode.py for
the way back, mixes.py for which tensor of a file gets which type.
"""

import builtins
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from qviz.core.check import as_matrix, narrowed, require_finite, rescaling, unknown
from qviz.core.grids import Blocks
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods.gguf import kquants, legacy
from qviz.methods.gguf.decode import from_bytes, from_parts
from qviz.methods.gguf.kquants import KQUANTS, spread
from qviz.methods.gguf.layout import LAYOUTS, pack
from qviz.methods.gguf.mixes import FALLBACKS, FILE_TYPES
from qviz.methods.gguf.search import square_root
from qviz.methods.registry import Method

__all__ = ["EVENTS", "FALLBACKS", "LAYOUTS", "METHOD", "encode", "from_bytes", "gguf"]

NO_SEARCH = ("Q8_0", "MXFP4")  # the types that ignore importance, here as in llama.cpp
ROOM = 15  # weights below 2^15 have scales that float16 can hold, in every type
# How many weights are encoded at a time. On a CPU the tensors of a search stay in its cache (the
# search of Q3_K sees to that itself); a GPU needs large pieces.
CHUNK = {"cpu": 2**18, "cuda": 2**24}
CHUNK_Q3_K = 2**20

_QUANTS = "ggml src/ggml-quants.c"
EVENTS = (
    EventSpec(
        "gguf.blocks",
        {"x": "[blocks, weights] float32, the blocks of one chunk of the weight, in order"},
        "x = consecutive weights of a row, 32 or 256 to a block",
        f"{_QUANTS}:quantize_row_*_ref",
    ),
    EventSpec(
        "gguf.position",
        {
            "position": "[blocks, 32] where each weight falls, in spacings",
            "inverse": "[blocks, 1] 1/d, of d before it is rounded to float16",
        },
        "(x − m) / d; d = (max − min)/N, or extreme/−2^(b−1), or absmax/127",
        f"{_QUANTS}:quantize_row_q4_0_ref and its relatives",
    ),
    EventSpec(
        "gguf.exponent",
        {"exponent": "[blocks, 1] uint8, biased by 127"},
        "e = ⌊log₂ max|x|⌋ − 2 + 127",
        f"{_QUANTS}:quantize_row_mxfp4_ref",
    ),
    EventSpec(
        "kquant.weights",
        {"weights": "[sub-blocks, weights] how much the error of each weight counts"},
        "w = rms + |x| (Q4_K, Q5_K), |x| (Q2_K), x² (Q3_K, Q6_K); or from importance",
        f"{_QUANTS}:quantize_row_q4_K_ref",
    ),
    EventSpec(
        "kquant.start",
        {
            "low": "[sub-blocks] min(x, 0)",
            "high": "[sub-blocks] max x",
            "iscale": "[sub-blocks] N / (high − low)",
            "scale": "[sub-blocks] 1 / iscale",
            "error": "[sub-blocks] the error to improve on",
            "codes": "[sub-blocks, weights]",
        },
        "q = clamp(RNE(iscale·(x − low)), 0, N)",
        f"{_QUANTS}:make_qkx2_quants",
    ),
    EventSpec(
        "kquant.search",
        {
            "iscale": "[sub-blocks] the 1/s with which codes are tried",
            "scale": "[sub-blocks] s of the least squares fit to these codes",
            "minimum": "[sub-blocks] m of that fit, at most 0",
            "error": "[sub-blocks] of that fit",
            "accepted": "[sub-blocks] bool: it is the best so far",
            "codes": "[sub-blocks, weights]",
        },
        "(s, m) = argmin Σ w·(s·q + m − x)², kept if Σ w·|s·q + m − x|ᵖ falls",
        f"{_QUANTS}:make_qkx2_quants",
    ),
    EventSpec(
        "kquant.symmetric",
        {
            "iscale": "[sub-blocks] −(h + 0.1k) / extreme; the first event is k = 0",
            "scale": "[sub-blocks] s of the least squares fit",
            "gain": "[sub-blocks] by how much the fit reduces Σwx²",
            "accepted": "[sub-blocks] bool: it is the best so far",
            "codes": "[sub-blocks, weights]",
        },
        "s = Σwxq / Σwq², gain = s·Σwxq",
        f"{_QUANTS}:make_qx_quants",
    ),
    EventSpec(
        "kquant.refine_start",
        {
            "wxq": "[sub-blocks] Σwxq",
            "wqq": "[sub-blocks] Σwq²",
            "codes": "[sub-blocks, weights] with the extreme weight at −h",
        },
        "q = clamp(RNE(−h/extreme · x), −h, h − 1)",
        f"{_QUANTS}:make_q3_quants",
    ),
    EventSpec(
        "kquant.refine",
        {
            "blocks": "[moves] the sub-blocks in which another code moves",
            "weight": "[moves] the weight whose code does, the first whose turn comes",
            "code": "[moves] its best code, given all others",
            "wxq": "[moves] Σwxq with it",
            "wqq": "[moves] Σwq² with it",
        },
        "q_i = RNE(x_i · Σ'wq² / Σ'wxq), kept if (Σwxq)²/Σwq² grows",
        f"{_QUANTS}:make_q3_quants",
    ),
    EventSpec(
        "kquant.first_level",
        {
            "scales": "[blocks, sub-blocks of a block] float32, as the search found them",
            "mins": "[blocks, sub-blocks of a block] −m; 0 for Q3_K and Q6_K",
        },
        "s and −m of the best try",
        f"{_QUANTS}:quantize_row_q4_K_ref",
    ),
    EventSpec(
        "kquant.second_level",
        {
            "d": "[blocks, 1] float16 unit of the scales",
            "dmin": "[blocks, 1] float16 unit of the minimums; 0 for Q3_K and Q6_K",
            "scales": "[blocks, sub-blocks of a block] integers",
            "mins": "[blocks, sub-blocks of a block] integers; 0 for Q3_K and Q6_K",
        },
        "d = max scale / levels, scales = RNE(levels/max · scale)",
        f"{_QUANTS}:quantize_row_q4_K_ref",
    ),
    EventSpec(
        "gguf.codes",
        {"codes": "[blocks, weights] as they are stored, found with the scales as stored"},
        "q = clamp(RNE((x + dmin·min) / (d·scale)))",
        f"{_QUANTS}:quantize_row_q4_K_ref",
    ),
    EventSpec(
        "gguf.bytes",
        {"data": "[blocks, bytes] uint8"},
        "the C struct of the type",
        "ggml src/ggml-common.h",
    ),
)


def gguf(
    weight: torch.Tensor | np.ndarray,
    *,
    type: str = "Q4_K",
    fallback: bool = False,
    importance: torch.Tensor | np.ndarray | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Encode a weight as one of GGUF's types, byte for byte as llama.cpp does.

    weight      [out, in]; it is encoded from float32, whatever its dtype
    type        one of `LAYOUTS`
    fallback    for a row whose length is not a multiple of 256, use llama.cpp's fallback type
                (`FALLBACKS`) instead of refusing; `info` says which type was used
    importance  [in], the mean square of each input over calibration data, llama.cpp's imatrix:
                errors are weighted by it, and more scales are tried. Q8_0 and MXFP4 ignore it.
                `calibration.hessian.diagonal() / 2` of a Calibration is exactly that

    Returns codes [out, in] uint8 (Q8_0: int8) and a `Blocks` grid, both decoded from the bytes;
    `pack()["blocks"]` are the bytes as in a file. Raises ValueError for NaN or Inf, a
    row that the block does not divide, weights too large for a float16 scale, and an importance
    that is zero everywhere. Weights too small for such a scale become 0 as in llama.cpp, and so
    may those of a block whose importance is zero; `info` counts the groups.

    >>> q = gguf(torch.randn(8, 256), type="Q4_K")
    >>> q.grid.data.shape, q.bits_per_weight
    (torch.Size([8, 144]), 4.5)
    """
    weight = as_matrix(weight)
    columns = weight.shape[1]
    name = _choose(type, columns, fallback)
    if importance is not None:
        importance = _as_importance(importance, columns)
    if weight.dtype == torch.float64:
        weight = narrowed(weight, torch.float32, "weight", below=ROOM)
    parts: dict[str, torch.Tensor] = {}
    data = _encode(weight, name, importance, emit, parts)
    with _one_thread():
        found = from_parts(name, data, parts)
        _require_finite_levels(found, name, float(weight.abs().amax()))
        vanished = _vanished(weight, found)
    info: dict[str, object] = {
        "method": "gguf",
        "type": name,
        "device": str(weight.device),
        "importance": importance is not None and name not in NO_SEARCH,
        "vanished_groups": vanished,
    }
    if name != type:
        info["fallback"] = f"{type} needs rows whose length is a multiple of 256; {columns} is not"
    return QuantizedTensor(found.codes, found.grid, found.granularity, found.shape, info=info)


def _choose(type: str, columns: int, fallback: bool) -> str:
    """The type to encode. Raises ValueError if the row length does not allow it."""
    if type in FILE_TYPES and type not in LAYOUTS:
        raise ValueError(
            f"{type} is a mix of types for a whole file, with {FILE_TYPES[type].base} for most "
            f"tensors: pass type={FILE_TYPES[type].base!r}, or list each tensor's type with "
            f"qviz.methods.gguf.mixes.tensor_types(config, {type!r})"
        )
    if type not in LAYOUTS:
        raise ValueError(unknown("GGUF type", type, LAYOUTS))
    block = LAYOUTS[type].weights
    if columns % block == 0:
        return type
    if columns % legacy.BLOCK:
        raise ValueError(
            f"{type} needs rows whose length is a multiple of {block}, and {columns} is not even "
            "a multiple of 32, which every quantized GGUF type needs. llama.cpp stores such a "
            "weight as float16; skip this layer"
        )
    if not fallback:
        raise ValueError(
            f"{type} needs rows whose length is a multiple of {block}, got {columns}. llama.cpp "
            f"falls back to {FALLBACKS[type]} here: pass fallback=True, or "
            f"type={FALLBACKS[type]!r}"
        )
    return FALLBACKS[type]


def _as_importance(importance: torch.Tensor | np.ndarray, columns: int) -> torch.Tensor:
    """The importance [in] in float32, checked."""
    if isinstance(importance, np.ndarray):
        importance = torch.from_numpy(importance.copy())
    if not isinstance(importance, torch.Tensor) or importance.shape != (columns,):
        got = tuple(getattr(importance, "shape", ())) or builtins.type(importance).__name__
        raise ValueError(
            f"importance must be a tensor [{columns}], one number for each input, got {got}; for "
            f"example inputs.square().mean(0)"
        )
    if importance.is_complex():
        raise TypeError("importance must be real: it is a mean of squares")
    require_finite(importance.detach(), "importance")
    importance = narrowed(importance.detach(), torch.float32, "importance")
    if (importance < 0).any():
        raise ValueError("importance must not be negative: it is a mean of squares")
    if not importance.any():
        raise ValueError(
            "importance is zero everywhere: no weight would count, and all would become 0. Pass "
            "importance=None if nothing is known"
        )
    return importance


def encode(
    weight: torch.Tensor,
    name: str,
    *,
    importance: torch.Tensor | None = None,
    emit: Emit | None = None,
) -> torch.Tensor:
    """The bytes uint8 [out, bytes of a row] of a finite weight [out, in] whose rows fit.

    These are the bytes that llama.cpp's C code writes, even where its own validation refuses them
    afterwards:
    a scale too large for float16 becomes Inf. `gguf` refuses it too.
    """
    return _encode(weight, name, importance, emit, parts=None)


def _encode(
    weight: torch.Tensor,
    name: str,
    importance: torch.Tensor | None,
    emit: Emit | None,
    parts: dict[str, torch.Tensor] | None,
) -> torch.Tensor:
    """The bytes; and, in `parts` if it is given, the parts [blocks, count] that they are made of,
    which are what decoding them gives."""
    layout = LAYOUTS[name]
    blocks = weight.reshape(-1, layout.weights)
    weights = spreads = None
    if importance is not None and name not in NO_SEARCH:
        weights = importance.to(weight.device, torch.float32).reshape(-1, layout.weights)
        if name not in KQUANTS:  # these weigh by the row's mean square, k-quants by the block's
            spreads = spread(weight.float(), 1, legacy.BLOCK).unsqueeze(1)  # [blocks, 1]
    weights_at_once = CHUNK["cuda" if weight.is_cuda else "cpu"]
    if name == "Q3_K":
        weights_at_once = max(weights_at_once, CHUNK_Q3_K)
    step = weights_at_once // layout.weights

    data = torch.empty(len(blocks), layout.nbytes, dtype=torch.uint8, device=weight.device)

    def chunk(start: int) -> Mapping[str, torch.Tensor]:
        x = blocks[start : start + step].float()  # [blocks, weights]
        if emit is not None:
            emit("gguf.blocks", x=x)
        own = None
        if weights is not None:
            order = torch.arange(start, start + len(x), device=x.device) % len(weights)
            own = weights[order]  # [blocks, weights]; every row of the matrix has the same
            if spreads is not None:
                own = own * square_root(spreads[start : start + step] + x * x)
        made = _encode_chunk(name, x, own, emit)
        if emit is not None:
            emit("gguf.codes", codes=made["codes"])
        pack(layout, made, out=data[start : start + step])
        if emit is not None:
            emit("gguf.bytes", data=data[start : start + step])
        return made

    with _one_thread():
        for start in range(0, len(blocks), step):
            made = chunk(start)
            if parts is None:
                continue
            for part, numbers in made.items():
                if start == 0:
                    parts[part] = numbers.new_empty(len(blocks), numbers.shape[1])
                parts[part][start : start + step] = numbers
    return data.reshape(len(weight), -1)


class _Threads:
    """The number of torch threads before the first of the running calls."""

    lock, running, before = threading.Lock(), 0, 1


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from splitting each operation among threads. There are thousands of operations,
    each a few microseconds long, and if another process uses the cores the threads wait for each
    other ten times longer than they work.

    The number belongs to the process as well as to each of its threads: overlapping calls in
    different threads must not mistake each other's 1 for the original number.
    """
    with _Threads.lock:
        now = torch.get_num_threads()  # a thread that never asked would be given the number later
        if _Threads.running == 0:
            _Threads.before = now
        _Threads.running += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _Threads.lock:
            _Threads.running -= 1
            torch.set_num_threads(_Threads.before)


def _encode_chunk(
    name: str, x: torch.Tensor, weights: torch.Tensor | None, emit: Emit | None
) -> Mapping[str, torch.Tensor]:
    if name in KQUANTS:
        return kquants.encode(name, x, weights, emit)
    if name == "MXFP4":
        return legacy.encode_mxfp4(x, emit)
    return legacy.encode(name, x, weights, emit)


def _require_finite_levels(found: QuantizedTensor, name: str, largest: float) -> None:
    """ValueError where d, dmin or m became Inf or NaN, which llama.cpp refuses to write."""
    assert isinstance(found.grid, Blocks)
    stored = [found.grid.inner.scale, getattr(found.grid.inner, "offset", None)]
    for values in stored:
        if values is None or bool(torch.isfinite(values).all()):
            continue
        row, group = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise ValueError(
            f"the levels of group [{row}, {group}] overflow: its weights are too large for the "
            f"float16 scales of {name}, and llama.cpp refuses them too. "
            f"{rescaling('weight', largest, ROOM)}"
        )


def _vanished(weight: torch.Tensor, found: QuantizedTensor) -> int:
    """How many groups of weights became a constant, because their scale is stored as 0."""
    assert isinstance(found.grid, Blocks)
    gone = found.grid.inner.scale == 0  # [rows, groups]
    if not gone.any():
        return 0
    lost = weight.reshape(*gone.shape, -1)[gone]  # [groups, weights]
    if getattr(found.grid.inner, "offset", None) is not None:  # a constant needs no step
        lost = lost - lost[:, :1]
    return int(lost.any(1).sum())


METHOD = Method(
    name="gguf",
    kind="weight",
    function=gguf,
    needs=frozenset(),
    title="GGUF's block types, as llama.cpp encodes them",
    source="llama.cpp: ggml/src/ggml-quants.c, src/llama-quant.cpp",
    events=EVENTS,
    choices={"type": tuple(LAYOUTS)},
    origins={
        "type": "llama.cpp: most tensors of Q4_K_M, its quantize example's usual choice",
        "fallback": "qviz: nothing happens silently; llama.cpp falls back with a warning",
        "importance": "llama.cpp: no imatrix unless --imatrix",
    },
)
