"""Which tensor of a GGUF file gets which type: "Q4_K_M" is a recipe, not a type.

A file type has a base type, and stores the tensors whose errors hurt most in more bits: values and
the down
projection, above all in the first and last eighth of the layers. The head is stored with 6 bits or
more, vectors (norms) in float32. Here the recipes are data and the bits of a file are computed
from them and from the shapes of a model. Source: llama.cpp src/llama-quant.cpp,
llama_tensor_get_type_impl, for decoders of the Llama kind, dense or with experts.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from qviz.core.check import unknown
from qviz.methods.gguf.layout import LAYOUTS

# The types that llama.cpp uses for a row that is not a multiple of 256. A row that is not a
# multiple of 32 either stays float16.
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model that determine its size and its mix of types."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    experts: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelShape":
        """From the config.json of a model of the Llama kind; ValueError if it lacks a number."""
        names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
                 "vocab_size")  # fmt: skip
        missing = [name for name in names if not isinstance(config.get(name), int)]
        if missing:
            raise ValueError(
                f"the configuration lacks {', '.join(missing)}: file mixes are defined for models "
                f"of the Llama kind; pass such a config.json as a dictionary"
            )
        layers, hidden, intermediate, heads, vocabulary = (config[name] for name in names)
        return cls(
            layers,
            hidden,
            intermediate,
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads,
            vocabulary,
            bool(config.get("tie_word_embeddings", False)),
            config.get("num_local_experts") or 0,
        )

    @property
    def queries_per_key(self) -> int:
        return self.heads // self.kv_heads

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(GGUF name, shape [.., out, in]) of every tensor."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        experts = (self.experts,) if self.experts else ()
        suffix = "_exps" if self.experts else ""
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (self.hidden,),
            "attn_q": (queries, self.hidden),
            "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, queries),
            "ffn_norm": (self.hidden,),
            f"ffn_gate{suffix}": (*experts, self.intermediate, self.hidden),
            f"ffn_up{suffix}": (*experts, self.intermediate, self.hidden),
            f"ffn_down{suffix}": (*experts, self.hidden, self.intermediate),
        }
        if self.experts:
            block["ffn_gate_inp"] = (self.experts, self.hidden)
        yield "token_embd.weight", (self.vocabulary, self.hidden)
        for i in range(self.layers):
            for name, shape in block.items():
                yield f"blk.{i}.{name}.weight", shape
        yield "output_norm.weight", (self.hidden,)
        if not self.tied:
            yield "output.weight", (self.vocabulary, self.hidden)


# GGUF name of a block's linear → its name in transformers' LlamaForCausalLM
LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# (model, layer) → the type that a tensor is raised to, or None: the base type
Rule = Callable[[ModelShape, int], str | None]


def _always(name: str | None) -> Rule:
    return lambda model, i: name


def _first(count: int, name: str, then: str | None = None) -> Rule:
    return lambda model, i: name if i < count else then


def _first_part(part: int, name: str, then: str | None = None) -> Rule:
    """The first 1/part of the layers."""
    return lambda model, i: name if i < model.layers // part else then


def _more(name: str) -> Rule:
    """The first and the last eighth of the layers, and every third between them."""

    def rule(model: ModelShape, i: int) -> str | None:
        eighth = model.layers // 8
        at_ends = i < eighth or i >= 7 * model.layers // 8
        return name if at_ends or (i - eighth) % 3 == 2 else None

    return rule


def _shared(name: str, otherwise: str | None = None) -> Rule:
    """Where at least four heads share their keys and values, which are then small."""
    return lambda model, i: name if model.queries_per_key >= 4 else otherwise


_KEEP = _always(None)


@dataclass(frozen=True)
class Mix:
    """A file type: its base type, and what values, down and output projections are raised to.

    with_experts  what the output projection is raised to instead in a model of 8 experts
    important     what the first eighth of the down projections becomes with an importance matrix
    """

    base: str
    values: Rule = _KEEP
    down: Rule = _KEEP
    output: str | None = None
    with_experts: str | None = None
    important: str | None = None


FILE_TYPES: dict[str, Mix] = {
    "Q4_0": Mix("Q4_0", important="Q4_1"),
    "Q4_1": Mix("Q4_1"),
    "Q5_0": Mix("Q5_0", important="Q5_1"),
    "Q5_1": Mix("Q5_1"),
    "Q8_0": Mix("Q8_0"),
    "Q2_K": Mix("Q2_K", _shared("Q4_K", "Q3_K"), _always("Q3_K"), "Q3_K", with_experts="Q5_K"),
    "Q2_K_S": Mix("Q2_K", _shared("Q4_K"), _first_part(8, "Q4_K")),
    "Q3_K_S": Mix("Q3_K", with_experts="Q5_K"),
    "Q3_K_M": Mix(
        "Q3_K", _first(2, "Q5_K", "Q4_K"), _first_part(16, "Q5_K", "Q4_K"), "Q4_K",
        with_experts="Q5_K",
    ),
    "Q3_K_L": Mix("Q3_K", _always("Q5_K"), _always("Q5_K"), "Q5_K"),
    "Q4_K_S": Mix("Q4_K", _first(4, "Q5_K"), _first_part(8, "Q5_K"), with_experts="Q5_K"),
    "Q4_K_M": Mix("Q4_K", _more("Q6_K"), _more("Q6_K"), with_experts="Q5_K"),
    "Q5_K_S": Mix("Q5_K"),
    "Q5_K_M": Mix("Q5_K", _more("Q6_K"), _more("Q6_K")),
    "Q6_K": Mix("Q6_K"),
}  # fmt: skip


def tensor_type(
    name: str,
    shape: tuple[int, ...],
    model: ModelShape,
    file_type: str,
    *,
    importance: bool = False,
) -> str:
    """The type of a tensor of this GGUF name and shape [.., out, in] in a file of this type.

    >>> llama = ModelShape(32, 4096, 11008, 32, 32, 128, 32000, tied=False)
    >>> tensor_type("blk.0.ffn_down.weight", (4096, 11008), llama, "Q4_K_M")
    'Q6_K'
    """
    if file_type not in FILE_TYPES:
        raise ValueError(unknown("GGUF file type", file_type, FILE_TYPES))
    mix = FILE_TYPES[file_type]
    if len(shape) < 2 or name.endswith(("_norm.weight", "ffn_gate_inp.weight")):
        return "F32"
    if name == "output.weight" or (model.tied and name == "token_embd.weight"):
        fits = shape[-1] % LAYOUTS[mix.base].weights == 0
        chosen = "Q6_K" if fits and mix.base != "Q8_0" else "Q8_0"
    else:
        layer = re.match(r"blk\.(\d+)\.", name)
        raised = _raised(name, int(layer[1]), model, mix, importance) if layer else None
        chosen = raised or mix.base
    return fitting_type(chosen, shape[-1])


def _raised(name: str, i: int, model: ModelShape, mix: Mix, importance: bool) -> str | None:
    """The type that a tensor of layer i is raised to, if any."""
    if "attn_v." in name or "attn_qkv." in name:
        chosen = mix.values(model, i)
        # 80 layers that share values among heads, a 70B model: they are small, and cost little.
        if model.layers == 80 and model.kv_heads < model.heads:
            chosen = "Q5_K" if (chosen or mix.base) in ("Q3_K", "Q4_K") else chosen
        return "Q8_0" if model.experts == 8 else chosen
    if "attn_k." in name:
        return "Q8_0" if model.experts == 8 else None
    if "ffn_down" in name:
        if importance and mix.important and i < model.layers // 8:
            return mix.important
        return mix.down(model, i)
    if "attn_output." in name:
        return mix.with_experts if model.experts == 8 else mix.output
    return None


def fitting_type(name: str, columns: int) -> str:
    """This type, or the one llama.cpp uses instead if rows of this length do not fit its blocks."""
    if columns % LAYOUTS[name].weights:
        name = FALLBACKS.get(name, "F16")
    return name if columns % 32 == 0 else "F16"


def tensor_types(
    config: Mapping[str, Any], file_type: str, *, importance: bool = False
) -> dict[str, str]:
    """GGUF name → type of every tensor of the model with this config.json."""
    model = ModelShape.of(config)
    return {
        name: tensor_type(name, shape, model, file_type, importance=importance)
        for name, shape in model.tensors()
    }


def layer_types(
    config: Mapping[str, Any], file_type: str, *, importance: bool = False
) -> dict[str, str]:
    """Linear layer, by its name in transformers → type, for a Llama-like model without experts.

    Layers that such a file keeps at 16 bits are omitted.

    >>> types = layer_types(model.config.to_dict(), "Q4_K_M")
    >>> own = {name: {"type": kind} for name, kind in types.items()}
    >>> mixed = qviz.quantize_model(model, "gguf", per_layer=own)
    """
    if ModelShape.of(config).experts:
        raise ValueError("the experts of a layer share one GGUF tensor; see tensor_types")
    found = {}
    for name, kind in tensor_types(config, file_type, importance=importance).items():
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if block and block[2] in LINEARS and kind in LAYOUTS:
            found[f"model.layers.{block[1]}.{LINEARS[block[2]]}"] = kind
    return found


def file_bytes(config: Mapping[str, Any], file_type: str, *, importance: bool = False) -> int:
    """Bytes of all tensors of a file, without its metadata."""
    types = tensor_types(config, file_type, importance=importance)
    shapes = ModelShape.of(config).tensors()
    return sum(round(prod(shape) * _bits(types[name])) for name, shape in shapes) // 8


def file_bits_per_weight(
    config: Mapping[str, Any], file_type: str, *, importance: bool = False
) -> float:
    """Bits of all tensors of a file over the model's parameters.

    config  the config.json of a model of the Llama kind, as a dictionary

    >>> llama = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
    ...          "num_attention_heads": 32, "vocab_size": 32000}
    >>> round(file_bits_per_weight(llama, "Q4_K_M"), 2)
    4.84
    """
    weights = sum(prod(shape) for _, shape in ModelShape.of(config).tensors())
    return 8 * file_bytes(config, file_type, importance=importance) / weights


def _bits(name: str) -> float:
    """Bits per weight of a type."""
    if name in ("F32", "F16"):
        return {"F32": 32.0, "F16": 16.0}[name]
    return 8 * LAYOUTS[name].nbytes / LAYOUTS[name].weights
