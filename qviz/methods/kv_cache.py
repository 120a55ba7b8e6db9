"""Quantization of the KV cache.

Every token that a decoder has read leaves a key and a value in each layer, and for long texts they
take more memory than the weights. A few channels of the keys are large for all tokens, so KIVI lets
groups of tokens of one channel share a scale; values have no such channels, so there groups of
channels of one token share it, and the latest tokens stay as they are. Per-token int8 and FP8 are
what serving systems do instead.

Symbols: K, V [tokens, channels], the keys after rotary embedding and the values of one layer, heads
side by side; b bits, G group size, R residual length, s = (max − min)/(2^b − 1) of a group, codes
q = RNE((x − min)/s), x̂ = s·q + min. Paper: KIVI (Liu et al. 2024, arXiv 2402.02750), section 3 and
algorithm 1. Code: KIVI quant/new_pack.py, models/llama_kivi.py.

Hugging Face's QuantizedCache is something else: keys and values are grouped along the same axis
(4 bits, groups of 64), the whole prompt is quantized at once, and each time the residual of 128
tokens is full, everything is dequantized, joined and quantized anew, so that old tokens lose a
little more each time. Its FP8 backend fixes the scale by the prompt; the numbers are those here.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from qviz.core.check import FLOAT_DTYPES, as_matrix, narrowed, require_bits, require_int, unknown
from qviz.core.divide import divide
from qviz.core.formats import FORMATS, decode, encode
from qviz.core.granularity import Granularity, not_dividing, whole_or_size
from qviz.core.grids import Affine, Codebook
from qviz.core.ledger import Ledger, Stream
from qviz.core.tensor import QuantizedTensor
from qviz.core.trace import Emit, EventSpec
from qviz.methods import affine as rounding
from qviz.methods.registry import Method

PARTS = ("keys", "values")
BITS = rounding.BITS
FIXED = {"kivi": None, "token_int8": 8, "fp8": 8}  # scheme → its bits, where it has no choice
KIVI_BITS = 2

EVENTS = (
    EventSpec(
        "kv_cache.groups",
        {"groups": "[rows, groups, n] the numbers that share a scale; KIVI's keys transposed"},
        "keys: G tokens of a channel; values: G channels of a token",
        "KIVI, section 3.2",
    ),
    *rounding.EVENTS,
    EventSpec(
        "kv_cache.fp8",
        {"scale": "[1, 1] the matrix' scale", "position": "[tokens, channels] x / s, before E4M3"},
        "s = max|x| / 448",
        "transformers cache_utils.py:Fp8QuantizedLayer",
    ),
    EventSpec(
        "kv_cache.codes",
        {"codes": "[tokens, channels] codes, or E4M3 bit patterns"},
        "KIVI: q = RNE((x − min) / s); per token: q = RNE(x / s); FP8: q = E4M3(x / s)",
        "KIVI quant/new_pack.py; transformers cache_utils.py:Fp8QuantizedLayer",
    ),
)


def kv_cache(
    x: torch.Tensor | np.ndarray,
    *,
    bits: int | None = None,
    kind_of: str = "keys",
    scheme: str = "kivi",
    group_size: int | None = 32,
    scale_dtype: torch.dtype | None = None,
    emit: Emit | None = None,
) -> QuantizedTensor:
    """Quantize the keys or values of one layer, all tokens at once.

    x            [tokens, channels], heads side by side; keys after rotary embedding
    bits         2 to 8, None for 2 (KIVI); the other schemes have 8
    kind_of      "keys" or "values"; the schemes other than "kivi" treat both alike
    scheme       "kivi"; "token_int8", one scale for each token, max|x|/127; "fp8", E4M3 with one
                 scale for the matrix, max|x|/448
    group_size   tokens (keys) or channels (values) that share a scale in "kivi"; for values take a
                 divisor of the head's width, or groups reach from head to head. None or −1: all
    scale_dtype  dtype of stored scales and minimums, with which codes are found. None: float16, or
                 bfloat16 for bfloat16; in "fp8" float32 always

    Arithmetic is that of x's dtype, so float16 gives KIVI's codes bit for bit. Returns codes
    [tokens, channels] uint8 (int8 in "token_int8"); the granularity of KIVI's keys has axis 0. In
    a group of equal numbers, where KIVI divides 0 by 0, codes are 0 and x̂ is the number itself.
    Raises ValueError for tokens (keys) or channels (values) that the group size does not divide:
    KiviCache keeps what is left over as it is.

    >>> q = kv_cache(torch.randn(128, 64), bits=2)
    >>> q.bits_per_weight
    3.0
    """
    x = _tokens(x)
    bits = _checked_bits(scheme, bits)
    if kind_of not in PARTS:
        raise ValueError(f'kind_of must be "keys" or "values", got {kind_of!r}')
    if scale_dtype is None:
        scale_dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float16
    if scheme == "kivi":
        q = _kivi(x, bits, kind_of, group_size, scale_dtype, emit)
    elif scheme == "token_int8":
        q = _token_int8(x, scale_dtype, emit)
    else:
        q = _fp8(x, emit)
    if emit is not None:
        emit("kv_cache.codes", codes=q.codes)
    return replace(q, info={**q.info, "method": "kv_cache", "scheme": scheme, "kind_of": kind_of})


def _tokens(x: object, name: str = "x") -> torch.Tensor:
    return as_matrix(x, name, shape_fix=_shape_fix)


def _shape_fix(name: str, shape: tuple[int, ...]) -> str:
    """The message for keys or values that are not a matrix."""
    if 0 in shape:
        fix = "there are no tokens in it"
    elif len(shape) == 4:
        fix = (
            f"[batch, heads, tokens, width], as transformers has them, become one for each "
            f"sequence i: {name}[i].transpose(0, 1).flatten(1)"
        )
    elif len(shape) == 3:
        fix = (
            f"[heads, tokens, width] become one by {name}.transpose(0, 1).flatten(1), [batch, "
            f"tokens, channels] one for each sequence i, {name}[i]"
        )
    else:
        fix = f"of a single token it is {name}.reshape(1, -1)"
    return f"{name} must be a matrix [tokens, channels], heads side by side, got {shape}: {fix}"


def _checked_bits(scheme: str, bits: int | None) -> int:
    if scheme not in FIXED:
        raise ValueError(unknown("scheme", scheme, FIXED))
    fixed = FIXED[scheme]
    if fixed is None:
        return require_bits(KIVI_BITS if bits is None else bits, BITS)
    if bits is not None and require_int(bits, "bits", 1, 32) != fixed:
        raise ValueError(f'scheme="{scheme}" has {fixed} bits, got bits={bits}; omit bits')
    return fixed


def _kivi(
    x: torch.Tensor,
    bits: int,
    kind_of: str,
    group_size: int | None,
    scale_dtype: torch.dtype,
    emit: Emit | None,
) -> QuantizedTensor:
    """Minimum and scale for groups along the tokens (keys) or along the channels (values)."""
    keys = kind_of == "keys"
    unit = Granularity("group", group_size, axis=0 if keys else 1)
    count, what = (x.shape[0], "tokens") if keys else (x.shape[1], "channels")
    if unit.group_size is not None and count % unit.group_size:
        raise ValueError(
            not_dividing(unit.group_size, count, f"{what} of these {kind_of}")
            + ("; a KiviCache keeps the tokens left over as they are" if keys else "")
        )
    groups = unit.split(x)  # [channels, tokens/G, G] or [tokens, channels/G, G]
    if emit is not None:
        emit("kv_cache.groups", groups=groups)
    q = rounding.affine(
        groups.flatten(1),  # keys lie transposed in KIVI as well, [channels, tokens]
        bits=bits,
        symmetric=False,
        group_size=group_size,
        convention="kivi",
        scale_dtype=scale_dtype,
        emit=emit,
    )
    codes = q.codes if unit.axis else q.codes.T
    return QuantizedTensor(codes, q.grid, unit, (x.shape[0], x.shape[1]), info=q.info)


def _token_int8(x: torch.Tensor, scale_dtype: torch.dtype, emit: Emit | None) -> QuantizedTensor:
    """One scale for each token: s = max(max|x|, 1e-5)/127, q = RNE(x/s)."""
    if emit is not None:
        emit("kv_cache.groups", groups=x.unsqueeze(1))
    return rounding.affine(
        x, bits=8, granularity="token", convention="absmax", scale_dtype=scale_dtype, emit=emit
    )


def _fp8(x: torch.Tensor, emit: Emit | None) -> QuantizedTensor:
    """E4M3 of x/s with s = max|x|/448 in float32, saturating."""
    if emit is not None:
        emit("kv_cache.groups", groups=x.reshape(1, 1, -1))
    wide = narrowed(x, torch.float32, "x")
    scale = divide(wide.abs().amax().reshape(1, 1), FORMATS["fp8_e4m3"].max_finite)
    # The smallest normal number is the floor, so that zeros have a scale.
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    position = wide / scale
    if emit is not None:
        emit("kv_cache.fp8", scale=scale, position=position)
    codes = encode(position, "fp8_e4m3", saturate=True)
    values = decode(torch.arange(256, device=x.device), "fp8_e4m3")
    grid = Codebook(values, scale, 8, (Stream("scale", scale),), dtype=x.dtype)
    info = {"device": str(x.device), "compute": "float32"}
    return QuantizedTensor(codes, grid, Granularity("tensor"), (x.shape[0], x.shape[1]), info=info)


def kivi_words(quantized: QuantizedTensor) -> torch.Tensor:
    """The codes as KIVI keeps them: int32 words of 32/bits codes, the first in the lowest bits.

    Along the tokens for keys [channels, tokens·bits/32], along the channels for values [tokens,
    channels·bits/32]. The same bits as in pack(), in another order. ValueError for bits other than
    2, 4, 8 and for lengths that do not fill the last word, neither of which KIVI has, and for what
    another method or scheme quantized.
    """
    if quantized.info.get("scheme") != "kivi":
        raise ValueError(f'only keys and values of scheme="kivi" have its words, not {quantized!r}')
    bits = quantized.grid.bits
    codes = quantized.codes if quantized.granularity.axis else quantized.codes.T
    each = 32 // bits
    if bits not in (2, 4, 8) or codes.shape[1] % each:
        raise ValueError(
            f"KIVI packs 2, 4 or 8 bits into whole words of 32, not {codes.shape[1]} codes of "
            f"{bits} bits; quantized.pack() takes any"
        )
    shifts = torch.arange(0, 32, bits, device=codes.device)
    words = (codes.reshape(codes.shape[0], -1, each).long() << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scaling: float | None = None,
    causal: bool = True,
) -> torch.Tensor:
    """softmax(Q·Kᵀ·scaling)·V for each head [heads, queries, width], in float32 at least.

    queries [heads, queries, width]; keys, values [kv heads, tokens, width], where each is shared by
    heads / kv heads consecutive heads. scaling None: 1/√width. `causal`: the last query sees all
    tokens, each one before it one less. ValueError for shapes that do not fit, and for more causal
    queries than tokens, the first of which would see none.
    """
    _require_heads(queries, keys, values, causal)
    shared = queries.shape[0] // keys.shape[0]
    dtype = torch.promote_types(queries.dtype, torch.float32)
    q, k, v = (x.to(dtype) for x in (queries, keys, values))
    k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scaling is None else scaling)
    if causal:
        count, tokens = scores.shape[-2:]
        later = torch.ones(count, tokens, dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(later.triu(tokens - count + 1), -math.inf)
    return scores.softmax(-1) @ v


def _require_heads(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, causal: bool
) -> None:
    fit = (
        queries.ndim == keys.ndim == values.ndim == 3
        and queries.shape[2] == keys.shape[2]
        and keys.shape[:2] == values.shape[:2]
        and keys.shape[0] > 0
        and queries.shape[0] % keys.shape[0] == 0
    )
    if not fit:
        raise ValueError(
            f"queries must be [heads, queries, width], keys and values [kv heads, tokens, width] "
            f"with kv heads that divide the heads; got {list(queries.shape)}, {list(keys.shape)} "
            f"and {list(values.shape)}"
        )
    if causal and queries.shape[1] > keys.shape[1]:
        raise ValueError(
            f"{queries.shape[1]} queries see only {keys.shape[1]} tokens: give each query its "
            "token, or pass causal=False"
        )


class KiviCache:
    """The growing cache of one layer: old tokens quantized, the latest unquantized.

    Keys wait until R are together, and are then quantized at once, since a group needs G tokens;
    values are quantized one token at a time, as soon as R later ones are there. A prompt is treated
    as if its tokens had come one by one.

    heads         how many key heads lie side by side in a row
    bits          of keys and values
    group_size    G; divides R and the width of a head
    residual      R: 128 in the paper, 32 in KIVI's example
    dtype         in which the latest tokens are kept and everything is computed: float16, bfloat16,
                  or for studies float32 or float64 (scales are float16 all the same)

    >>> cache = KiviCache(heads=2)
    >>> cache.prefill(keys, values)  # [tokens, 2·width] each
    >>> out = cache.decode(query, key, value)  # [query heads, width]; [1, 2·width] each
    >>> cache.bits_per_number
    """

    def __init__(
        self,
        *,
        heads: int = 1,
        bits: int = KIVI_BITS,
        group_size: int = 32,
        residual: int = 128,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        self.heads = require_int(heads, "heads", 1, 2**16)
        self.bits = _checked_bits("kivi", bits)
        size = whole_or_size(group_size)
        if size is None:
            raise ValueError(
                "group_size must be a number of tokens here: a group is quantized once it is "
                "full, and a growing cache never is"
            )
        self.group_size = require_int(size, "group_size", 1, 2**16)
        self.residual = require_int(residual, "residual", 1, 2**20)
        if self.residual % self.group_size:
            raise ValueError(
                f"residual={residual} must be a multiple of group_size={group_size}, so that keys "
                f"leave it in whole groups"
            )
        if dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"dtype must be one of {', '.join(map(str, FLOAT_DTYPES))}, got {dtype!r}"
            )
        self.dtype = dtype
        self._quantized: dict[str, QuantizedTensor | None] = {"keys": None, "values": None}
        self._latest: dict[str, torch.Tensor] = {}  # [tokens, channels] in self.dtype

    def prefill(self, keys: torch.Tensor | np.ndarray, values: torch.Tensor | np.ndarray) -> None:
        """Take in a prompt, [tokens, channels] each. (KIVI computes the attention of the prompt
        itself with keys and values as they were.) ValueError if the cache is not empty."""
        if self._latest:
            raise ValueError("the cache already holds tokens; use append, or a new KiviCache")
        self._take(keys, values)
        self._settle()

    def append(self, keys: torch.Tensor | np.ndarray, values: torch.Tensor | np.ndarray) -> None:
        """Take in further tokens, [tokens, channels] each."""
        self._take(keys, values)
        self._settle()

    def decode(
        self,
        query: torch.Tensor,
        key: torch.Tensor | np.ndarray,
        value: torch.Tensor | np.ndarray,
    ) -> torch.Tensor:
        """One step of generation: the attention [query heads, width] of a token to all so far and
        itself, and only then, as in KIVI, what has become old is quantized.

        query [query heads, width], key and value [1, channels].
        """
        before = dict(self._latest)
        self._take(key, value)
        try:
            out = self.attend(query)
        except ValueError:  # a query that does not fit must not leave its token behind
            self._latest = before
            raise
        self._settle()
        return out

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        """The attention [query heads, width] of one query to everything in the cache."""
        keys, values = (self._by_head(x) for x in (self.keys(), self.values()))
        if query.ndim != 2 or query.shape[0] % self.heads or query.shape[1] != keys.shape[-1]:
            raise ValueError(
                f"query must be [a multiple of {self.heads} heads, {keys.shape[-1]}], got "
                f"{list(query.shape)}"
            )
        return attention(query.unsqueeze(1), keys, values).squeeze(1)

    def keys(self) -> torch.Tensor:
        """All keys [tokens, channels] as attention sees them, in `dtype`."""
        return self._all("keys")

    def values(self) -> torch.Tensor:
        """All values [tokens, channels] as attention sees them, in `dtype`."""
        return self._all("values")

    def quantized(self, kind_of: str) -> QuantizedTensor | None:
        """The old "keys" or "values" [old tokens, channels]; None while all are recent."""
        return self._quantized[kind_of]

    def latest(self, kind_of: str) -> torch.Tensor:
        """The recent "keys" or "values" [recent tokens, channels], as they came."""
        self._require_tokens()
        return self._latest[kind_of]

    def __len__(self) -> int:
        """Tokens in the cache."""
        if not self._latest:
            return 0
        old = self._quantized["keys"]
        return len(self._latest["keys"]) + (0 if old is None else old.shape[0])

    def pack(self) -> dict[str, np.ndarray]:
        """Name → bytes (uint8) of everything that the cache stores."""
        self._require_tokens()
        packed: dict[str, np.ndarray] = {}
        for part, old in self._quantized.items():
            stored = {} if old is None else old.pack()
            packed |= {f"{part}: {name}": data for name, data in stored.items()}
            packed[f"{part}: latest"] = Stream("latest", self._latest[part]).pack()
        return packed

    @property
    def ledger(self) -> Ledger:
        """The ledger; its `weights` are the cached numbers, keys and values."""
        self._require_tokens()
        items = []
        for part, old in self._quantized.items():
            stored = () if old is None else old.ledger.items
            latest = Stream("latest", self._latest[part]).items
            items += [replace(item, name=f"{part}: {item.name}") for item in (*stored, *latest)]
        return Ledger(tuple(items), 2 * len(self) * self._latest["keys"].shape[1])

    @property
    def bits_per_number(self) -> float:
        """Bits that each number of K and V costs on average."""
        return self.ledger.bits_per_weight

    def _require_tokens(self) -> None:
        if not self._latest:
            raise ValueError("the cache is empty; give it tokens with prefill or append")

    def _all(self, part: str) -> torch.Tensor:
        self._require_tokens()
        old = self._quantized[part]
        latest = self._latest[part]
        return latest if old is None else torch.cat([old.dequantize(), latest])

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """[heads, tokens, width]"""
        return x.reshape(len(x), self.heads, -1).transpose(0, 1)

    def _take(self, keys: torch.Tensor | np.ndarray, values: torch.Tensor | np.ndarray) -> None:
        """Add tokens to the recent ones."""
        new = dict(zip(PARTS, (_tokens(keys, "keys"), _tokens(values, "values")), strict=True))
        shape = new["keys"].shape
        if new["values"].shape != shape:
            raise ValueError(
                f"keys {list(shape)} and values {list(new['values'].shape)} must have one shape"
            )
        if shape[1] % (self.heads * self.group_size):
            raise ValueError(
                f"{shape[1]} channels are not {self.heads} heads of a multiple of group_size "
                f"{self.group_size}: use a group size that divides the width of a head"
            )
        if self._latest and self._latest["keys"].shape[1] != shape[1]:
            raise ValueError(
                f"the cache has {self._latest['keys'].shape[1]} channels, these tokens {shape[1]}"
            )
        for part, x in new.items():
            new[part] = x.to(self.dtype)
            if not torch.isfinite(new[part]).all():
                raise ValueError(
                    f"the {part} overflow {str(self.dtype).removeprefix('torch.')}; use "
                    "KiviCache(dtype=torch.bfloat16)"
                )
        for part, x in new.items():
            before = self._latest.get(part)
            self._latest[part] = x.clone() if before is None else torch.cat([before, x])

    def _settle(self) -> None:
        """Quantize what is old: whole residuals of keys, all but the last residual of values."""
        count = len(self._latest["keys"])
        self._quantize("keys", count - count % self.residual)
        self._quantize("values", max(len(self._latest["values"]) - self.residual, 0))

    def _quantize(self, part: str, count: int) -> None:
        if count == 0:
            return
        old, self._latest[part] = self._latest[part].tensor_split([count])
        new = kv_cache(old, bits=self.bits, kind_of=part, group_size=self.group_size)
        before = self._quantized[part]
        self._quantized[part] = new if before is None else _joined(before, new)


def _joined(before: QuantizedTensor, after: QuantizedTensor) -> QuantizedTensor:
    """Both as one, the tokens of the second after those of the first."""
    a, b = before.grid, after.grid
    assert isinstance(a, Affine)
    assert isinstance(b, Affine)
    assert a.offset is not None
    assert b.offset is not None
    along = 1 - before.granularity.axis  # where the tokens are in the scales [rows, groups]
    grid = replace(
        a, scale=torch.cat([a.scale, b.scale], along), offset=torch.cat([a.offset, b.offset], along)
    )
    shape = (before.shape[0] + after.shape[0], before.shape[1])
    codes = torch.cat([before.codes, after.codes])
    return QuantizedTensor(codes, grid, before.granularity, shape, info=before.info)


METHOD = Method(
    name="kv_cache",
    kind="cache",
    function=kv_cache,
    needs=frozenset(),
    title="KV cache: keys per channel, values per token",
    source="KIVI (Liu et al. 2024, arXiv 2402.02750), section 3; quant/new_pack.py, "
    "models/llama_kivi.py",
    events=EVENTS,
    bits=BITS,
    choices={"kind_of": PARTS, "scheme": tuple(FIXED)},
    origins={
        "bits": "KIVI-2 (None: the scheme's own)",
        "kind_of": "qviz: the part that needs care",
        "scheme": "KIVI",
        "group_size": "KIVI",
        "scale_dtype": "KIVI runs in float16",
    },
)
