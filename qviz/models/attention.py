"""What attention reads in one layer: a text's queries, keys and values, as a cache holds them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qviz.core.check import require_int
from qviz.methods.kv_cache import attention
from qviz.models.layers import LoadedModel, loaded
from qviz.models.reading import run, token_windows
from qviz.models.rotate import LLAMA_LIKE


@dataclass(frozen=True)
class AttentionStates:
    """One layer's attention on one text, queries and keys after rotary embedding.

    queries  [heads, tokens, width]
    keys     [tokens, kv heads · width], heads side by side: what a cache holds
    values   [tokens, kv heads · width]
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scaling: float

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[1] // self.queries.shape[2]

    def outputs(
        self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The causal attention's outputs [heads, tokens, width], float32 at least; with other keys
        or values (a cache's reconstruction) in place of its own where they are given; ValueError
        where their shape is another."""
        for other in (keys, values):
            if other is not None and other.shape != self.keys.shape:
                raise ValueError(
                    f"keys and values must be {list(self.keys.shape)} [tokens, kv heads · width], "
                    f"as those that were captured; got {list(other.shape)}"
                )
        k, v = (
            (own if other is None else other).reshape(len(own), self.kv_heads, -1).transpose(0, 1)
            for own, other in ((self.keys, keys), (self.values, values))
        )
        return attention(self.queries, k, v, scaling=self.scaling)

    def error(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> float:
        """‖outputs with these − outputs‖ / ‖outputs‖"""
        exact = self.outputs().double()
        return float((self.outputs(keys, values).double() - exact).norm() / exact.norm())


def capture_attention(
    model: LoadedModel, text: str, layer: int = 0, *, max_tokens: int = 512
) -> AttentionStates:
    """Queries, keys and values of one layer for the first `max_tokens` tokens of a text.

    At most one window of the model is read. The model runs once, with a hook that is always
    removed. Raises ValueError for models other than LLAMA_LIKE ones, for a layer that it
    does not have, and for more tokens than a layer with a sliding window looks back.

    >>> states = capture_attention(qviz.load_model(), "def f(x):\\n    return x\\n" * 8, 2)
    >>> q = qviz.quantize(states.keys[:32], "kv_cache", bits=2)
    """
    model = loaded(model)
    if getattr(model.config, "model_type", "") not in LLAMA_LIKE:
        raise ValueError(
            f"{model.name} is a {model.config.model_type} model; attention can only be captured "
            f"in {', '.join(LLAMA_LIKE)} models"
        )
    blocks: Any = model.model.model.layers  # type: ignore[union-attr]
    require_int(layer, "layer", 0, len(blocks) - 1)
    ids = token_windows(model, text, require_int(max_tokens, "max_tokens", 1, 10**9), None)[0]
    module, seen, owner = blocks[layer].self_attn, {}, threading.get_ident()
    _require_full_view(module, len(ids), layer)

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == owner:
            seen["hidden"] = args[0] if args else kwargs["hidden_states"]
            seen["rotary"] = kwargs["position_embeddings"]

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        run(model, torch.tensor([ids], device=model.device))
        with torch.no_grad():
            return _states(module, seen["hidden"], *seen["rotary"])
    finally:
        handle.remove()


def _require_full_view(module: Any, tokens: int, layer: int) -> None:
    """ValueError where the layer's own attention would not see all of these tokens."""
    window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))
    if window is not None and tokens > window:
        raise ValueError(
            f"layer {layer} looks back only {window} tokens, but there are {tokens}: use "
            f"max_tokens={window}"
        )


def _states(
    module: Any, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> AttentionStates:
    """The attention's inputs from the hidden state [1, tokens, hidden] and the rotary angles."""

    def heads(name: str) -> torch.Tensor:  # [heads, tokens, width]
        x: torch.Tensor = getattr(module, f"{name}_proj")(hidden)[0].unflatten(
            -1, (-1, module.head_dim)
        )
        norm = getattr(module, f"{name}_norm", None)  # Qwen 3 has one for each head
        x = x if norm is None else norm(x)
        return x.transpose(0, 1)

    q, k = (_rotary(heads(name), cos[0], sin[0]) for name in ("q", "k"))
    keys, values = (x.transpose(0, 1).flatten(1) for x in (k, heads("v")))
    return AttentionStates(q, keys, values, float(module.scaling))


def _rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair (x_i, x_{i + width/2}) turned by its token's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
