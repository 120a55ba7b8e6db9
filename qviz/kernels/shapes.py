"""Shapes of the linear layers of real models, derived from their configurations.

The numbers are those of each model's config.json on the Hugging Face Hub; the layers follow from
the architecture, which is that of Llama in all of them: attention with fewer heads for keys and
values than for queries, and a gated MLP.
"""

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qviz.core.check import unknown
from qviz.models.checkpoint import BUNDLED

_NAMES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "num_hidden_layers", "vocab_size", "tie_word_embeddings",
)  # fmt: skip


def _config(*values: int | bool) -> Mapping[str, int]:
    return MappingProxyType(dict(zip(_NAMES, values, strict=True)))


# Sources: huggingface.co/ORGANISATION/NAME, config.json, with meta-llama, Qwen and mistralai.
CONFIGS: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "Llama-3.2-1B": _config(2048, 8192, 32, 8, 16, 128256, True),
        "Llama-3.1-8B": _config(4096, 14336, 32, 8, 32, 128256, False),
        "Llama-3.1-70B": _config(8192, 28672, 64, 8, 80, 128256, False),
        "Qwen2.5-0.5B": _config(896, 4864, 14, 2, 24, 151936, True),
        "Qwen2.5-7B": _config(3584, 18944, 28, 4, 28, 152064, False),
        "Mistral-7B-v0.3": _config(4096, 14336, 32, 8, 32, 32768, False),
    }
)


def linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Role → (out, in) of the linear layers of one block, and of the head where it has weights
    of its own.

    config  the entries of a config.json; head_dim is hidden_size / num_attention_heads where it
            is not given. ValueError, naming them, for entries that are missing.

    >>> linear_shapes(CONFIGS["Llama-3.1-8B"])["down_proj"]
    (4096, 14336)
    """
    missing = [name for name in _NAMES[:4] if name not in config]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    shapes = {
        "q_proj": (heads * size, hidden),
        "k_proj": (kv_heads * size, hidden),
        "v_proj": (kv_heads * size, hidden),
        "o_proj": (hidden, heads * size),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }
    if not config.get("tie_word_embeddings", False) and "vocab_size" in config:
        shapes["lm_head"] = (config["vocab_size"], hidden)
    return shapes


def _shapes() -> dict[str, Mapping[str, tuple[int, int]]]:
    bundled = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
    configs = {"bundled": bundled, **CONFIGS}
    return {name: MappingProxyType(linear_shapes(config)) for name, config in configs.items()}


SHAPES: Mapping[str, Mapping[str, tuple[int, int]]] = MappingProxyType(_shapes())


def parse_shape(text: str) -> tuple[int, int]:
    """(out, in) of "4096x14336", "4096×14336", or of a model's layer, "Llama-3.1-8B:down_proj".

    Raises ValueError, suggesting similar names, for anything else.

    >>> parse_shape("llama-3.2-1b:k_proj")
    (512, 2048)
    """
    model, colon, role = text.strip().partition(":")
    if colon:
        return _named(model.strip(), role.strip())
    found = re.fullmatch(r"(\d+)\s*[x×*]\s*(\d+)", text.strip(), re.IGNORECASE)
    if found is None or "0" in (found[1].lstrip("0") or "0", found[2].lstrip("0") or "0"):
        raise ValueError(
            f"a shape is written OUTxIN, such as 4096x14336, or MODEL:LAYER, such as "
            f"Llama-3.1-8B:down_proj; got {text!r}"
        )
    return int(found[1]), int(found[2])


def _named(model: str, role: str) -> tuple[int, int]:
    by_lower = {name.lower(): name for name in SHAPES}
    if model.lower() not in by_lower:
        raise ValueError(unknown("model", model, SHAPES))
    layers = SHAPES[by_lower[model.lower()]]
    if role not in layers:
        raise ValueError(unknown(f"layer of {model}", role, layers))
    return layers[role]
