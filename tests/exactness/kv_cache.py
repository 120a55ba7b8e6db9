"""KV cache: KIVI's own numbers, its formulas by plain loops, and the serving systems' schemes."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from inputs import adversarial

from exactness import Array, Tally, against, equal
from qviz.methods.kv_cache import kivi_words, kv_cache

Pairs = Iterator[tuple[Array, Array]]
GOLDEN = Path(__file__).parents[1] / "golden" / "kivi.npz"


def merged(x: np.ndarray) -> torch.Tensor:
    """[1, heads, tokens, width] → [tokens, channels], heads side by side."""
    return torch.from_numpy(x[0]).transpose(0, 1).flatten(1)


@against("KIVI 876b4d2, golden", method="kv_cache", what="words, scales, minimums, values: equal")
def kivi() -> Tally:
    """In a constant group KIVI's scale is 0 and its CPU codes are noise; its values are right."""
    golden = np.load(GOLDEN)

    def pairs() -> Pairs:
        for key in golden.files:
            if not key.endswith("words"):
                continue
            name, part, bits, _ = key.split()
            words, scale, low, back = (
                golden[f"{name} {part} {bits} {what}"] for what in ("words", "scale", "min", "back")
            )
            x = merged(golden[f"{name} x"])
            ours = kv_cache(x, bits=int(bits), kind_of=part)
            yield ours.dequantize(), merged(back)
            if part == "keys":  # [1, heads, tokens/16, width], [1, heads, groups, 1, width]
                words, scale, low = (
                    a.reshape(a.shape[1], a.shape[2], -1).transpose(0, 2, 1).reshape(x.shape[1], -1)
                    for a in (words, scale, low)
                )
            else:  # [1, heads, tokens, width/16], [1, heads, tokens, groups, 1]
                words, scale, low = (
                    a.reshape(a.shape[1], a.shape[2], -1).transpose(1, 0, 2).reshape(len(x), -1)
                    for a in (words, scale, low)
                )
            yield ours.grid.offset, low
            usual = scale > 0
            assert usual.all() == (name != "constant")
            yield ours.grid.scale, np.where(usual, scale, 1)
            known = np.repeat(usual, int(bits), axis=1)  # 32 codes of a group fill `bits` words
            yield (
                torch.where(torch.from_numpy(known), kivi_words(ours), 0),
                np.where(known, words, 0),
            )

    return equal(pairs())


def weights(dtype: torch.dtype) -> Iterator[torch.Tensor]:
    g = torch.Generator().manual_seed(8)
    x = torch.randn(64, 96, generator=g)
    x[:, 7] = x[:, 7] + 12
    yield x.to(dtype)
    for name, w in adversarial(64).items():
        w = w.to(dtype).repeat(16, 1)  # [64, 64]
        if name != "large" and torch.isfinite(w).all():
            yield w


@against("loops in float32", method="kv_cache", what="KIVI's scales, minimums, codes: equal")
def formulas() -> Tally:
    """Group by group and number by number. Each operation is rounded to the dtype by itself."""

    def pairs() -> Pairs:
        for dtype in (np.float32, np.float16):
            for x in weights(torch.from_numpy(np.zeros(1, dtype)).dtype):
                for part in ("keys", "values"):
                    yield from one(x, part, dtype)

    return equal(pairs())


def one(x: torch.Tensor, part: str, dtype: type[np.floating]) -> Pairs:
    ours = kv_cache(x, bits=3, kind_of=part)
    lines = x.numpy().T if part == "keys" else x.numpy()  # groups along the last axis
    scales, lows, codes = [], [], []
    for line in lines:
        for start in range(0, len(line), 32):
            group = line[start : start + 32]
            low = np.float16(min(group)).astype(dtype)
            scale = np.float16((max(group) - min(group)) / dtype(7)).astype(dtype)
            scale = scale if scale > 0 else dtype(1)
            scales.append(scale)
            lows.append(low)
            codes += [min(max(np.rint((v - low) / scale), 0), 7) for v in group]
    yield ours.grid.scale.flatten(), np.array(scales)
    yield ours.grid.offset.flatten(), np.array(lows)
    mine = ours.codes.T if part == "keys" else ours.codes
    yield mine.flatten(), np.array(codes)


@against("transformers", method="kv_cache", what="FP8: bytes, scale and values of its cache, equal")
def fp8() -> Tally:
    from transformers.cache_utils import Fp8QuantizedLayer

    def pairs() -> Pairs:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for x in weights(dtype):
                layer = Fp8QuantizedLayer()
                layer.update(x[None, None], x[None, None])
                codes, scale = layer._quantized_keys
                ours = kv_cache(x, scheme="fp8")
                yield ours.codes, codes[0, 0].view(torch.uint8)
                yield ours.grid.scale.flatten(), scale.reshape(1)
                yield ours.dequantize(), layer._dequantize((codes, scale))[0, 0]

    return equal(pairs())


@against("loops in float32", method="kv_cache", what="int8 per token: scales and codes, equal")
def token_int8() -> Tally:
    def pairs() -> Pairs:
        for x in weights(torch.float32):
            ours = kv_cache(x, scheme="token_int8")
            for row, line in enumerate(x.numpy()):
                largest = max(np.abs(line).max(), np.float32(1e-5))
                scale = np.float16(largest / np.float32(127))
                codes = [max(-127, min(127, round(float(v / np.float32(scale))))) for v in line]
                yield ours.grid.scale[row], np.array([scale])
                yield ours.codes[row], np.array(codes)

    return equal(pairs())


@against("loops in float64", method="kv_cache", what="attention of one query: within 1e-6")
def attention() -> Tally:
    """Grouped-query attention head by head and token by token, beside KiviCache.attend."""
    from qviz.methods.kv_cache import KiviCache

    g = torch.Generator().manual_seed(9)
    keys, values = torch.randn(2, 100, 64, generator=g)
    query = torch.randn(4, 32, generator=g)
    cache = KiviCache(heads=2, residual=32)
    cache.prefill(keys, values)
    ours = cache.attend(query)
    k, v = cache.keys().double(), cache.values().double()
    mismatches = 0
    for head in range(4):
        at = slice(32 * (head // 2), 32 * (head // 2) + 32)
        scores = [math.exp(float(query[head].double() @ row[at]) / math.sqrt(32)) for row in k]
        want = sum(p * row[at] for p, row in zip(scores, v, strict=True)) / sum(scores)
        mismatches += int(((ours[head] - want).abs() > 1e-6).sum())
    return Tally(1, ours.numel(), mismatches)
