"""File mixes of whole models: which tensor of a GGUF file gets which type, and what that costs.

The rules are those of `qviz.methods.gguf.mixes`; here they become a map of a model.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from qviz.kernels.shapes import CONFIGS
from qviz.methods.gguf.layout import LAYOUTS
from qviz.methods.gguf.mixes import (
    FILE_TYPES,
    ModelShape,
    file_bits_per_weight,
    file_bytes,
    tensor_types,
)
from qviz.models.checkpoint import BUNDLED

BUNDLED_NAME = "the bundled model"
#: config.json of each: huggingface.co/meta-llama/Llama-2-7b-hf and
#: mistralai/Mixtral-8x7B-v0.1, besides those of CONFIGS.
_MORE: Mapping[str, Mapping[str, Any]] = {
    "Llama-2-7B": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_key_value_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "Mixtral-8x7B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000,
        "tie_word_embeddings": False, "num_local_experts": 8,
    },
}  # fmt: skip
#: Models whose files are drawn, by name.
MODELS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        BUNDLED_NAME: json.loads((BUNDLED / "config.json").read_text(encoding="utf-8")),
        **CONFIGS,
        **_MORE,
    }
)
#: Parts of a block of the model, in the order in which they are drawn; then what is there once.
ROWS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
ONCE = ("token_embd", "output")


@dataclass(frozen=True)
class FileMap:
    """A file of one type.

    types   row of ROWS → the type in each layer; of ONCE the one type (the head's is missing where
            it shares the embedding)
    shares  the same names → share of the file's bytes
    base    the type that gives the file its name; bits, base_bits: per weight
    raised  tensors of ROWS whose type is not the base's own: name → how many layers
    """

    model: str
    file_type: str
    importance: bool
    types: Mapping[str, tuple[str, ...]]
    shares: Mapping[str, float]
    base: str
    bits: float
    base_bits: float
    nbytes: int
    parameters: int

    @property
    def layers(self) -> int:
        return len(self.types[ROWS[0]])

    @property
    def raised(self) -> dict[str, int]:
        return {
            row: sum(kind != self.base for kind in self.types[row])
            for row in ROWS
            if any(kind != self.base for kind in self.types[row])
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every type in the file but float32's, by bits."""
        there = {kind for each in self.types.values() for kind in each}
        return tuple(sorted(there, key=lambda kind: (type_bits(kind), kind)))


def type_bits(name: str) -> float:
    """Bits per weight of a type."""
    if name in ("F16", "F32"):
        return float(name[1:])
    return 8 * LAYOUTS[name].nbytes / LAYOUTS[name].weights


def file_map(model: str, file_type: str, *, importance: bool = False) -> FileMap:
    """The file of this type of one of MODELS.

    >>> file_map("Llama-3.1-8B", "Q4_K_M").raised
    {'attn_v': 16, 'ffn_down': 16}
    """
    config = MODELS[model]
    shape, types = ModelShape.of(config), tensor_types(config, file_type, importance=importance)
    shapes = dict(shape.tensors())
    whole = file_bytes(config, file_type, importance=importance)
    found: dict[str, list[str]] = {}
    sizes: dict[str, float] = {}
    for name, kind in types.items():
        part = re.sub(r"^blk\.\d+\.|_exps|\.weight$", "", name)
        if part not in (*ROWS, *ONCE):
            continue
        found.setdefault(part, []).append(kind)
        sizes[part] = sizes.get(part, 0) + prod(shapes[name]) * type_bits(kind) / 8
    base = FILE_TYPES[file_type].base
    return FileMap(
        model, file_type, importance,
        {part: tuple(found[part]) for part in (*ROWS, *ONCE) if part in found},
        {part: sizes[part] / whole for part in (*ROWS, *ONCE) if part in sizes},
        base, file_bits_per_weight(config, file_type, importance=importance), type_bits(base),
        whole, sum(prod(each) for each in shapes.values()),
    )  # fmt: skip
