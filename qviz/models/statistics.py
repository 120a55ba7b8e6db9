"""Streaming statistics of what enters linear layers; `capture` feeds them from forward hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from qviz.core.calibration import Calibration
from qviz.models.reading import WindowBatch


@dataclass
class Batch:
    """What one input tensor adds to the statistics of every layer that receives it."""

    rows: torch.Tensor  # [n, in] float32
    product: torch.Tensor  # XᵀX [in, in]
    absmax: torch.Tensor  # [in]
    abssum: torch.Tensor  # [in] float64


@dataclass
class Statistics:
    """Running statistics over the rows of X, for the layers that have always shared their X."""

    draw: np.random.Generator
    keep: int
    tokens: int = 0
    product: torch.Tensor | None = None  # ΣXᵀX [in, in]
    absmax: torch.Tensor | None = None  # [in]
    abssum: torch.Tensor | None = None  # [in]
    rows: torch.Tensor | None = None  # [kept, in]
    rank: np.ndarray = field(default_factory=lambda: np.empty(0))  # [kept]

    def add(self, batch: Batch) -> None:
        self.tokens += len(batch.rows)
        if self.product is None or self.absmax is None or self.abssum is None:
            # a copy: another Statistics may start from the same batch
            self.product, self.absmax = batch.product.clone(), batch.absmax.clone()
            self.abssum = batch.abssum.clone()
        else:
            self.product += batch.product
            self.absmax = torch.maximum(self.absmax, batch.absmax)
            self.abssum += batch.abssum
        self._sample(batch.rows)

    def _sample(self, rows: torch.Tensor) -> None:
        """Keep the rows with the smallest of random numbers, one per row: a uniform sample of a
        stream of unknown length. (Every k-th row would beat with the window length.)"""
        rank = np.concatenate([self.rank, self.draw.random(len(rows))])
        chosen = np.sort(np.argsort(rank, kind="stable")[: self.keep])  # in the order of the text
        rows = rows if self.rows is None else torch.cat([self.rows, rows])
        self.rows, self.rank = rows[torch.from_numpy(chosen).to(rows.device)], rank[chosen]

    def calibration(self, source: str, weights: str) -> Calibration:
        assert self.product is not None and self.absmax is not None
        assert self.abssum is not None and self.rows is not None
        # (XᵀX)ᵀ = XᵀX, which a BLAS does not promise to the last bit but a Cholesky may assume.
        hessian = (self.product + self.product.T) / self.tokens
        absmean = (self.abssum / self.tokens).float()
        return Calibration(
            self.rows,
            hessian,
            self.absmax,
            absmean,
            self.tokens,
            source=source,
            weights=weights,
        )


class LastInput:
    """The input that came last, held so that its address cannot be reused in the meantime."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.x: torch.Tensor | None = None
        self.version = -1

    def hold(self, x: torch.Tensor) -> None:
        self.x, self.version = x, x._version

    def is_again(self, x: torch.Tensor) -> bool:
        """Whether x is that tensor, still unchanged."""
        last = self.x
        if last is None or x._version != self.version:
            return False
        same_place = x.data_ptr() == last.data_ptr() and x.stride() == last.stride()
        return x is last or (same_place and x.shape == last.shape and x.dtype == last.dtype)


class Sharing:
    """Learns which layers always receive the same tensor, without looking into it."""

    def __init__(self) -> None:
        self.last, self.count = LastInput(), 0
        self.received: dict[str, list[int]] = {}  # layer → the numbers of its inputs

    def begin(self) -> None:
        """A new batch."""
        self.last.forget()

    def see(self, layer: str, x: torch.Tensor) -> None:
        if not self.last.is_again(x):
            self.count += 1
            self.last.hold(x)
        self.received.setdefault(layer, []).append(self.count)

    def groups(self) -> list[list[str]]:
        """The layers of each input, in the order in which they first ran."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for layer, numbers in self.received.items():
            groups.setdefault(tuple(numbers), []).append(layer)
        return list(groups.values())


class Collector:
    """Gathers what the hooks see. One Statistics serves all layers that always got the same X."""

    def __init__(self, hessian_dtype: torch.dtype, keep: int, seed: int) -> None:
        self.hessian_dtype, self.keep, self.seed = hessian_dtype, keep, seed
        self.statistics: dict[str, Statistics] = {}
        self.tokens = (0, 0)  # windows, and tokens of each, of the batch
        self.window = 0
        self.last = LastInput()
        self._forget()

    def _forget(self) -> None:
        self.last.forget()
        self.batch: Batch | None = None
        self.members: list[str] = []

    def begin(self, batch: WindowBatch) -> None:
        """A new batch of windows."""
        self.tokens, self.window = (batch.ids.shape[0], batch.ids.shape[1]), batch.first
        self._forget()  # an earlier forward may have raised half-way

    def see(self, layer: str, x: torch.Tensor) -> None:
        if x.numel() == 0:
            return  # an expert to which nothing was routed
        if not self.last.is_again(x) or layer in self.members:
            self.flush()
            self.batch = self._measure(layer, x)
            self.last.hold(x)
        self.members.append(layer)

    def flush(self) -> None:
        """Add the pending batch to the statistics of the layers that received it."""
        if self.batch is not None:
            by_statistics: dict[int, list[str]] = {}
            for layer in self.members:
                by_statistics.setdefault(id(self.statistics.get(layer)), []).append(layer)
            for layers in by_statistics.values():
                self._own(layers).add(self.batch)
        self._forget()

    def _own(self, layers: list[str]) -> Statistics:
        """The statistics of exactly these layers: new, theirs already, or a split-off copy."""
        old = self.statistics.get(layers[0])
        users = sum(s is old for s in self.statistics.values()) if old is not None else 0
        if old is not None and users == len(layers):
            return old
        if old is None:
            own = Statistics(np.random.default_rng(self.seed), self.keep)
        else:
            own = copy.deepcopy(old)
        self.statistics |= dict.fromkeys(layers, own)
        return own

    def _measure(self, layer: str, x: torch.Tensor) -> Batch:
        # every row counts: windows of different length never share a batch
        rows = x.detach().reshape(-1, x.shape[-1])
        windows, length = self.tokens
        tokens_first = length == 1 and x.shape[1:-1] == (windows,)
        if x.ndim > 2 and len(x) == 1 < windows and not tokens_first:
            # What no window has a part of its own in (DeBERTa's relative positions) comes once for
            # a batch; it counts for each window, or the result would depend on the batch size.
            rows = rows.repeat(windows, 1)
        rows = rows.float()
        absolute = rows.abs()
        absmax = absolute.amax(dim=0)
        if not bool(torch.isfinite(absmax).all()):  # amax keeps NaN and Inf
            self._refuse(layer, x)
        wide = rows.to(self.hessian_dtype)
        return Batch(rows, wide.T @ wide, absmax, absolute.sum(dim=0, dtype=torch.float64))

    def _refuse(self, layer: str, x: torch.Tensor) -> None:
        first = (~torch.isfinite(x)).nonzero()[0].tolist()
        value = float(x[tuple(first)])
        *place, channel = first
        if x.shape[:-1] == self.tokens:
            where = f"window {place[0] + self.window}, token {place[1]}"
        else:
            where = f"row {', '.join(map(str, place))}"
        raise ValueError(
            f"the input of {layer} is {value} at {where}, channel {channel}. The model overflows "
            f"on this text: load it with dtype=torch.float32, or check its weights"
        )

    def results(self, layers: Iterable[str], source: str, weights: str) -> dict[str, Calibration]:
        shared: dict[int, Calibration] = {}
        results = {}
        for layer in layers:
            statistics = self.statistics.get(layer)
            if statistics is not None:
                if id(statistics) not in shared:
                    shared[id(statistics)] = statistics.calibration(source, weights)
                results[layer] = replace(shared[id(statistics)], layer=layer)
        return results
