"""A zoo: one tiny random model of each architecture, saved the way a Hub download looks.

Each is made from transformers' own configuration class, with two layers of 64 channels, a
vocabulary of 512 tokens and few experts. Weights are drawn anew, wide enough that attention,
routing and the text that comes out depend on what goes in, and norms have weights and biases of
their own, so that a factor in the wrong place changes what a model computes.

    directory("Llama")  →  the path of config.json, model.safetensors and a tokenizer
"""

import atexit
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn

BUNDLED = Path(__file__).parents[2] / "qviz" / "data" / "model"
VOCABULARY, WIDTH = 512, 64

OWN = object()  # stands for the value that the configuration class has by itself
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 32,
}
TEXT: Mapping[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SENTENCE: Mapping[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Architecture:
    """One way to build a model.

    name       what the field calls it
    kind       decoder, recurrent (a decoder with other layers than attention), experts, encoder,
               part (of a decoder: no head, or another one), encoder–decoder, vision–language,
               other (no text)
    make       builds it, with random weights
    note       what is unusual in it
    tokenizer  one of TOKENIZERS, or "" for none
    saving     options of save_pretrained
    """

    name: str
    kind: str
    make: Callable[[], Any]
    note: str = ""
    tokenizer: str = "text"
    saving: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> Any:
        """A new instance, with the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()))  # for what `drawn` leaves alone
            return self.make()


# ---------------------------------------------------------------------------------------- building


def tiny(model_class: str, weights: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of this class: SIZES as far as its configuration has them, then `changes`."""
    chosen = getattr(transformers, model_class)
    return drawn(chosen(sized(chosen.config_class, **changes))).to(weights)


def sized(config_class: Any, **changes: Any) -> Any:
    """A configuration of this class: SIZES as far as it has them, then `changes`."""
    config_class = (
        getattr(transformers, config_class) if isinstance(config_class, str) else config_class
    )
    has = {*config_class().to_dict(), *config_class.attribute_map}
    options = {name: value for name, value in SIZES.items() if name in has}
    options = {**options, **TEXT, **changes}
    return config_class(**{k: v for k, v in options.items() if v is not OWN})


def drawn(model: Any) -> Any:
    """The model with weights of its own; the same on every call."""
    generator = torch.Generator().manual_seed(zlib.crc32(type(model).__name__.encode()))
    done: set[int] = set()  # a tied weight is drawn once, as the embeddings
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                spread = _spread(module, name, parameter)
                if spread is None or id(parameter) in done:
                    continue
                done.add(id(parameter))
                mean, deviation = spread
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(mean + deviation * noise)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0  # some classes make it so on loading
    return model.eval()


def _spread(module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[float, float] | None:
    """Mean and deviation to draw a parameter from; None for one that stays as transformers made it
    (decay rates and the like, which are stable in a range of their own)."""
    kind = type(module).__name__
    if isinstance(module, nn.Embedding):
        return 0.0, 0.3
    if "Norm" in kind and parameter.ndim == 1:
        return float(parameter.mean()), 0.2
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or kind == "Conv1D":
        inputs = parameter.shape[0] if kind == "Conv1D" else parameter[0].numel()
        return 0.0, inputs**-0.5 if name == "weight" else 0.1
    if any(word in kind for word in ("Expert", "Router", "Gate")):
        return 0.0, 0.1 if "bias" in name else WIDTH**-0.5
    return None


# --------------------------------------------------------------------------------------- tokenizers


def text_tokenizer() -> Any:
    """The bundled model's, cut to the first tokens: <|endoftext|> is 0, nothing goes around."""
    return _cut(
        {"<|endoftext|>": 0},
        None,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


def sentence_tokenizer() -> Any:
    """The same pieces as encoders use them: <s> … </s>, with tokens for padding and masks."""
    names = {"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3}
    around = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
            {"SpecialToken": {"id": "</s>", "type_id": 1}},
        ],
        "special_tokens": {
            name: {"id": name, "ids": [names[name]], "tokens": [name]} for name in ("<s>", "</s>")
        },
    }
    return _cut(
        names,
        around,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
    )


def _cut(special: Mapping[str, int], around: Any, **names: str) -> Any:
    """The bundled tokenizer with these special tokens first, and the first of its pieces."""
    from tokenizers import Tokenizer

    whole = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].__getitem__)[1:]
    pieces = pieces[: VOCABULARY - len(special)]
    vocabulary = {**special, **{piece: i + len(special) for i, piece in enumerate(pieces)}}
    whole["model"]["vocab"] = vocabulary
    whole["model"]["merges"] = [m for m in whole["model"]["merges"] if "".join(m) in vocabulary]
    template = whole["added_tokens"][0]
    whole["added_tokens"] = [template | {"id": i, "content": name} for name, i in special.items()]
    whole["post_processor"] = around or whole["post_processor"]
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def ctrl_tokenizer() -> Any:
    """A slow one: written in Python, it knows no offsets."""
    folder = Path(tempfile.mkdtemp(prefix="qviz-zoo-"))
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["<unk>", *letters, *(f"{c}@@" for c in letters), *(f"{c}</w>" for c in letters)]
    pairs = ["t h", "th e</w>", "q u", "i n</w>"]
    pieces += [pair.replace(" ", "").replace("</w>", "") for pair in pairs]
    pieces += [f"{p}@@" for p in ("th", "qu")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    tokenizer = transformers.CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return _with_folder(tokenizer, folder)


def protein_tokenizer() -> Any:
    """ESM's, one token per letter: a slow one, with tokens around every text."""
    folder = Path(tempfile.mkdtemp(prefix="qviz-zoo-"))
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<mask>"]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    return _with_folder(transformers.EsmTokenizer(str(folder / "vocab.txt")), folder)


def _with_folder(tokenizer: Any, folder: Path) -> Any:
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return tokenizer


TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "text": text_tokenizer,
    "sentence": sentence_tokenizer,
    "ctrl": ctrl_tokenizer,
    "protein": protein_tokenizer,
    "characters": lambda: transformers.CanineTokenizer(),
    "bytes": lambda: transformers.ByT5Tokenizer(extra_ids=0),  # without a file of its vocabulary
}


# ----------------------------------------------------------------------------------- the zoo itself


def _one(kind: str, tokenizer: str = "text") -> Callable[..., Architecture]:
    def build(
        name: str,
        model_class: str,
        note: str = "",
        tokenizer: str = tokenizer,
        saving: Mapping[str, Any] = MappingProxyType({}),
        **changes: Any,
    ) -> Architecture:
        special = SENTENCE if tokenizer in ("sentence", "protein") else {}
        make = partial(tiny, model_class, **{**special, **changes})
        return Architecture(name, kind, make, note, tokenizer, saving)

    return build


decoder, recurrent, experts, part = (
    _one(kind) for kind in ("decoder", "recurrent", "experts", "part")
)
encoder, both = _one("encoder", "sentence"), _one("encoder–decoder", "sentence")

_MLA = {  # multi-head latent attention: keys and values through a low rank
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,  # of the rotary embedding
    "num_key_value_heads": 4,
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
_LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


def internlm3() -> Any:
    return drawn(transformers.LlamaForCausalLM(sized("InternLM3Config")))


DECODERS = (
    decoder("Llama", "LlamaForCausalLM"),
    decoder(
        "Llama, tied",
        "LlamaForCausalLM",
        "head and embeddings are one table",
        tie_word_embeddings=True,
    ),
    decoder(
        "Llama, bytes",
        "LlamaForCausalLM",
        "a tokenizer without a vocabulary file",
        vocab_size=259,
        tokenizer="bytes",
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=0,
    ),
    decoder("Llama, bfloat16", "LlamaForCausalLM", weights=torch.bfloat16),
    decoder(
        "Llama, shards", "LlamaForCausalLM", "several files", saving={"max_shard_size": "99KB"}
    ),
    decoder("Mistral", "MistralForCausalLM", "attends to a window", sliding_window=24),
    decoder("Ministral", "MinistralForCausalLM"),
    decoder("Ministral 3", "Ministral3ForCausalLM"),
    decoder("Qwen2", "Qwen2ForCausalLM"),
    decoder("Qwen3", "Qwen3ForCausalLM"),
    decoder("Gemma", "GemmaForCausalLM", "norms multiply by 1 + weight"),
    decoder("Gemma 2", "Gemma2ForCausalLM", "norms before and after", sliding_window=24),
    decoder(
        "Gemma 3, text",
        "Gemma3ForCausalLM",
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
    ),
    decoder("VaultGemma", "VaultGemmaForCausalLM"),
    decoder("Phi", "PhiForCausalLM", "attention and MLP side by side"),
    decoder("Phi-3", "Phi3ForCausalLM", "q, k, v in one layer; gate and up in one"),
    decoder("GPT-2", "GPT2LMHeadModel", "Conv1D stores [in, out]"),
    decoder("GPT", "OpenAIGPTLMHeadModel", "no cache"),
    decoder("GPT-J", "GPTJForCausalLM", rotary_dim=8),
    decoder("GPT-NeoX", "GPTNeoXForCausalLM", "its head is called embed_out in the file"),
    decoder("GPT-NeoX, Japanese", "GPTNeoXJapaneseForCausalLM"),
    decoder(
        "GPT-Neo", "GPTNeoForCausalLM", attention_types=[[["global", "local"], 1]], window_size=24
    ),
    decoder("GPT-BigCode", "GPTBigCodeForCausalLM", "one head of keys and values"),
    decoder("CodeGen", "CodeGenForCausalLM", rotary_dim=8),
    decoder("CTRL", "CTRLLMHeadModel", "a slow tokenizer", tokenizer="ctrl", dff=96),
    decoder("OPT", "OPTForCausalLM", word_embed_proj_dim=WIDTH, ffn_dim=96),
    decoder(
        "OPT, projected",
        "OPTForCausalLM",
        "embeddings narrower than the blocks",
        word_embed_proj_dim=32,
        ffn_dim=96,
    ),
    decoder("BLOOM", "BloomForCausalLM", "ALiBi; q, k, v interleaved"),
    decoder(
        "Falcon",
        "FalconForCausalLM",
        head_dim=OWN,
        ffn_hidden_size=96,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    decoder(
        "Falcon, 7B form",
        "FalconForCausalLM",
        "one head of keys and values",
        head_dim=OWN,
        ffn_hidden_size=96,
    ),
    decoder("MPT", "MptForCausalLM", "ALiBi", max_seq_len=128, expansion_ratio=2),
    decoder("StableLM", "StableLmForCausalLM"),
    decoder("Cohere", "CohereForCausalLM", "one norm for attention and MLP", logit_scale=1.0),
    decoder("Cohere 2", "Cohere2ForCausalLM", sliding_window=24, logit_scale=1.0),
    decoder("OLMo", "OlmoForCausalLM", "norms without weights"),
    decoder("OLMo 2", "Olmo2ForCausalLM", "norms only after"),
    decoder("OLMo 3", "Olmo3ForCausalLM", sliding_window=24),
    decoder("Granite", "GraniteForCausalLM"),
    decoder("StarCoder 2", "Starcoder2ForCausalLM"),
    Architecture("InternLM 3", "decoder", internlm3, "loads as a Llama"),
    decoder("Nemotron", "NemotronForCausalLM", "norms multiply by 1 + weight"),
    decoder("Persimmon", "PersimmonForCausalLM"),
    decoder("Helium", "HeliumForCausalLM"),
    decoder("GLM", "GlmForCausalLM"),
    decoder("GLM-4", "Glm4ForCausalLM"),
    decoder("SmolLM3", "SmolLM3ForCausalLM"),
    decoder("Ernie 4.5", "Ernie4_5ForCausalLM"),
    decoder("EXAONE 4", "Exaone4ForCausalLM"),
    decoder("Apertus", "ApertusForCausalLM"),
    decoder("Arcee", "ArceeForCausalLM"),
    decoder("BitNet", "BitNetForCausalLM"),
    decoder("CWM", "CwmForCausalLM"),
    decoder("DiffLlama", "DiffLlamaForCausalLM", "attention as a difference"),
    decoder("Doge", "DogeForCausalLM"),
    decoder("HunYuan", "HunYuanDenseV1ForCausalLM"),
    decoder("Jais 2", "Jais2ForCausalLM"),
    decoder("MiniCPM 3", "MiniCPM3ForCausalLM", "latent attention", **_MLA),
    decoder("ModernBERT decoder", "ModernBertDecoderForCausalLM"),
    decoder("NanoChat", "NanoChatForCausalLM"),
    decoder("Seed-OSS", "SeedOssForCausalLM"),
    decoder("Youtu", "YoutuForCausalLM", "latent attention", **_MLA),
    decoder("XGLM", "XGLMForCausalLM", ffn_dim=96),
    decoder("BioGPT", "BioGptForCausalLM"),
    decoder(
        "Reformer",
        "ReformerModelWithLMHead",
        "pads its inputs to whole chunks",
        is_decoder=True,
        axial_pos_shape=[8, 16],
        axial_pos_embds_dim=[32, 32],
        feed_forward_size=96,
        attention_head_size=16,
        local_attn_chunk_length=16,
        attn_layers=["local", "local"],
    ),
    decoder("BERT as decoder", "BertLMHeadModel", is_decoder=True),
    decoder(
        "BART decoder",
        "BartForCausalLM",
        decoder_layers=2,
        decoder_ffn_dim=96,
        decoder_attention_heads=4,
        is_encoder_decoder=False,
        is_decoder=True,
        forced_eos_token_id=None,
    ),
    decoder("BEAM", "BeamForCausalLM"),
    decoder("Flint", "FlintForCausalLM"),
    decoder("Granite, windows", "GraniteSWAForCausalLM"),
    decoder("HyperCLOVA X", "HyperCLOVAXForCausalLM"),
    decoder("HRM, text", "HrmTextForCausalLM", "blocks run several times"),
    decoder(
        "TrOCR decoder",
        "TrOCRForCausalLM",
        decoder_layers=2,
        decoder_ffn_dim=96,
        decoder_attention_heads=4,
        d_model=WIDTH,
        num_hidden_layers=OWN,
        is_encoder_decoder=False,
    ),
    decoder(
        "RemBERT as decoder",
        "RemBertForCausalLM",
        is_decoder=True,
        input_embedding_size=32,
        output_embedding_size=32,
    ),
    decoder("RoFormer as decoder", "RoFormerForCausalLM", is_decoder=True, embedding_size=WIDTH),
    decoder("ELECTRA as decoder", "ElectraForCausalLM", is_decoder=True, embedding_size=32),
    decoder(
        "RoBERTa as decoder",
        "RobertaForCausalLM",
        "positions start at 2",
        is_decoder=True,
        pad_token_id=1,
        max_position_embeddings=130,
    ),
    decoder("BERT generation", "BertGenerationDecoder", is_decoder=True),
    decoder(
        "BigBird as decoder", "BigBirdForCausalLM", is_decoder=True, attention_type="original_full"
    ),
    decoder(
        "Gemma 3n, text",
        "Gemma3nForCausalLM",
        "an embedding for each layer",
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        intermediate_size=[96] * 4,
        vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=24,
        activation_sparsity_pattern=[0.0] * 4,
        altup_num_inputs=2,
    ),
    decoder(
        "Gemma 4, text",
        "Gemma4ForCausalLM",
        "an embedding for each layer",
        vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=8,
        sliding_window=24,
        global_head_dim=32,
        layer_types=["sliding_attention", "full_attention"],
    ),
    decoder("LFM3", "Lfm3ForCausalLM", layer_types=["conv", "full_attention"], sliding_window=24),
    decoder(
        "CPM-Ant",
        "CpmAntForCausalLM",
        "prompt tokens of its own",
        dim_model=WIDTH,
        dim_ff=96,
        dim_head=16,
        num_hidden_layers=2,
        prompt_length=4,
        prompt_types=4,
        segment_types=8,
    ),
)

RECURRENT = (
    recurrent("Mamba", "MambaForCausalLM", "dt_proj's weight is used, the layer never called"),
    recurrent("Mamba 2", "Mamba2ForCausalLM", num_heads=8, head_dim=16, state_size=8, n_groups=1),
    recurrent("FalconMamba", "FalconMambaForCausalLM"),
    recurrent("RWKV", "RwkvForCausalLM", attention_hidden_size=WIDTH, context_length=128),
    recurrent(
        "xLSTM", "xLSTMForCausalLM", num_heads=4, head_dim=OWN, qk_dim_factor=1.0, chunk_size=16
    ),
    recurrent(
        "RecurrentGemma",
        "RecurrentGemmaForCausalLM",
        lru_width=WIDTH,
        num_hidden_layers=3,
        attention_window_size=24,
    ),
    recurrent("Bamba", "BambaForCausalLM", **_MAMBA, num_hidden_layers=3, attn_layer_indices=[1]),
    recurrent(
        "Zamba",
        "ZambaForCausalLM",
        "blocks share attention",
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        head_dim=32,
        attention_hidden_size=2 * WIDTH,
    ),
    recurrent(
        "Zamba 2",
        "Zamba2ForCausalLM",
        "blocks share attention, with adapters",
        num_hidden_layers=4,
        mamba_d_state=8,
        n_mamba_heads=8,
        adapter_rank=8,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        head_dim=32,
    ),
    recurrent("Falcon-H1", "FalconH1ForCausalLM", **_MAMBA, mamba_d_ssm=128),
    recurrent("LFM2", "Lfm2ForCausalLM", layer_types=["conv", "full_attention"]),
    recurrent(
        "Qwen3.5, text",
        "Qwen3_5ForCausalLM",
        **_LINEAR_ATTENTION,
        layer_types=["linear_attention", "full_attention"],
    ),
    recurrent("OLMo hybrid", "OlmoHybridForCausalLM"),
    recurrent(
        "Nemotron-H",
        "NemotronHForCausalLM",
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=1,
        num_hidden_layers=OWN,
        chunk_size=16,
        moe_shared_expert_intermediate_size=32,
        layers_block_type=["mamba", "attention", "moe", "mlp"],
    ),
)

EXPERTS = (
    experts("Mixtral", "MixtralForCausalLM"),
    experts(
        "Mixtral, shards", "MixtralForCausalLM", "several files", saving={"max_shard_size": "99KB"}
    ),
    experts("Qwen2-MoE", "Qwen2MoeForCausalLM", "a shared expert"),
    experts("Qwen3-MoE", "Qwen3MoeForCausalLM"),
    experts(
        "Qwen3-Next",
        "Qwen3NextForCausalLM",
        "recurrent layers",
        **_LINEAR_ATTENTION,
        layer_types=["linear_attention", "full_attention"],
    ),
    experts(
        "Qwen3.5-MoE, text",
        "Qwen3_5MoeForCausalLM",
        **_LINEAR_ATTENTION,
        layer_types=["linear_attention", "full_attention"],
    ),
    experts("GPT-OSS", "GptOssForCausalLM", "experts [in, out], with biases", sliding_window=24),
    experts(
        "DeepSeek-V2",
        "DeepseekV2ForCausalLM",
        "latent attention",
        **_MLA,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    ),
    experts(
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        "latent attention",
        **_MLA,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    ),
    experts(
        "Llama 4, text",
        "Llama4ForCausalLM",
        "experts [in, out]; chunked attention",
        intermediate_size_mlp=96,
        attention_chunk_size=24,
        num_experts_per_tok=1,
    ),
    experts("OLMoE", "OlmoeForCausalLM"),
    experts("FlexOlmo", "FlexOlmoForCausalLM"),
    experts("PhiMoE", "PhimoeForCausalLM"),
    experts("GraniteMoE", "GraniteMoeForCausalLM"),
    experts("GraniteMoE, shared", "GraniteMoeSharedForCausalLM", shared_intermediate_size=32),
    experts(
        "GraniteMoE, hybrid",
        "GraniteMoeHybridForCausalLM",
        "recurrent layers",
        **_MAMBA,
        layer_types=["mamba", "attention"],
    ),
    experts("Ernie 4.5-MoE", "Ernie4_5_MoeForCausalLM", moe_num_experts=4, moe_k=2),
    experts("GLM-4-MoE", "Glm4MoeForCausalLM", first_k_dense_replace=1),
    experts("GLM-4-MoE, lite", "Glm4MoeLiteForCausalLM", **_MLA),
    experts("MiniMax", "MiniMaxForCausalLM", "linear attention", block_size=16),
    experts("MiniMax M2", "MiniMaxM2ForCausalLM"),
    experts("dots.1", "Dots1ForCausalLM", first_k_dense_replace=1),
    experts("HunYuan-MoE", "HunYuanMoEV1ForCausalLM", moe_topk=2),
    experts(
        "JetMoE",
        "JetMoeForCausalLM",
        "experts in attention too",
        kv_channels=16,
        num_key_value_heads=2,
    ),
    experts(
        "DBRX",
        "DbrxForCausalLM",
        "experts in one long matrix",
        d_model=WIDTH,
        n_heads=4,
        n_layers=2,
        max_seq_len=128,
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        ffn_config={
            "hidden_size": WIDTH,
            "ffn_hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    ),
    experts(
        "Jamba",
        "JambaForCausalLM",
        "recurrent layers",
        layers_block_type=OWN,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
    ),
    experts(
        "LFM2-MoE",
        "Lfm2MoeForCausalLM",
        "short convolutions",
        layer_types=["conv", "full_attention"],
        num_dense_layers=1,
    ),
    experts("AFMoE", "AfmoeForCausalLM", num_dense_layers=1),
    experts("EXAONE-MoE", "ExaoneMoeForCausalLM"),
    experts("Solar Open", "SolarOpenForCausalLM"),
    experts("MiMo-V2-Flash", "MiMoV2FlashForCausalLM"),
    experts("Aria, text", "AriaTextForCausalLM"),
    experts("Cohere 2-MoE", "Cohere2MoeForCausalLM", logit_scale=1.0),
    experts(
        "LongCat-Flash",
        "LongcatFlashForCausalLM",
        "experts that do nothing",
        **_MLA,
        ffn_hidden_size=96,
        expert_ffn_hidden_size=32,
        zero_expert_num=2,
        moe_topk=2,
        num_layers=2,
        num_hidden_layers=OWN,
    ),
    experts("Granite-MoE, windows", "GraniteMoeSWAForCausalLM"),
    experts("HunYuan v3", "HYV3ForCausalLM", "a dense first layer"),
    experts("Laguna", "LagunaForCausalLM"),
    experts("Mellum", "MellumForCausalLM"),
    experts("Kolibri", "Kolibri1ForCausalLM"),
    experts(
        "MiniMax M3, text",
        "MiniMaxM3VLForCausalLM",
        dense_intermediate_size=96,
        shared_intermediate_size=32,
        rotary_dim=8,
        index_n_heads=2,
        index_head_dim=16,
        index_block_size=16,
    ),
    experts(
        "DeepSeek-V4",
        "DeepseekV4ForCausalLM",
        "compressed attention",
        q_lora_rank=32,
        o_groups=2,
        o_lora_rank=16,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=8,
        sliding_window=24,
        hc_mult=2,
        num_key_value_heads=1,
    ),
    experts(
        "DeepSeek-V3.2",
        "DeepseekV32ForCausalLM",
        "attends to what an index picks",
        **_MLA,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=128,
    ),
    experts(
        "GLM-5",
        "GlmMoeDsaForCausalLM",
        "attends to what an index picks",
        **_MLA,
        first_k_dense_replace=1,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=128,
    ),
    experts(
        "Kimi Linear",
        "KimiLinearForCausalLM",
        "recurrent layers",
        **{**_MLA, "head_dim": 16},
        linear_head_dim=16,
        linear_num_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    experts(
        "Ling hybrid",
        "BailingHybridForCausalLM",
        "recurrent layers",
        **{**_MLA, "head_dim": 16},
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        layer_group_size=2,
    ),
    experts("Zaya", "ZayaForCausalLM", num_experts_per_tok=1, router_hidden_size=16),
    experts(
        "Gemma 4, experts",
        "Gemma4ForCausalLM",
        "experts beside a dense MLP",
        vocab_size_per_layer_input=512,
        hidden_size_per_layer_input=8,
        sliding_window=24,
        global_head_dim=32,
        layer_types=["sliding_attention", "full_attention"],
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
    ),
    experts("A.X K1", "AXK1ForCausalLM", "latent attention", **_MLA, n_group=1, topk_group=1),
)

ENCODERS = (
    encoder("BERT", "BertModel"),
    encoder("BERT, masked words", "BertForMaskedLM"),
    encoder("RoBERTa", "RobertaForMaskedLM", "positions start at 2", max_position_embeddings=130),
    encoder("XLM-R", "XLMRobertaForMaskedLM", max_position_embeddings=130),
    encoder("CamemBERT", "CamembertForMaskedLM", max_position_embeddings=130),
    encoder("DistilBERT", "DistilBertModel", hidden_dim=96),
    encoder("ALBERT", "AlbertModel", "one block runs several times", embedding_size=32),
    encoder("ELECTRA", "ElectraModel", embedding_size=32),
    encoder("DeBERTa", "DebertaModel", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    encoder("DeBERTa v2", "DebertaV2Model", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    encoder("MPNet", "MPNetModel"),
    encoder(
        "ModernBERT",
        "ModernBertModel",
        "local and global attention",
        local_attention=16,
        global_attn_every_n_layers=2,
    ),
    encoder(
        "ESM",
        "EsmModel",
        "a slow tokenizer, of amino acids",
        tokenizer="protein",
        position_embedding_type="rotary",
        mask_token_id=31,
        vocab_size=33,
    ),
    encoder("FNet", "FNetModel", "mixes tokens by Fourier transforms, padding too"),
    encoder(
        "Longformer",
        "LongformerModel",
        "pads inside to whole windows",
        max_position_embeddings=130,
        attention_window=[16, 16],
    ),
    encoder("BigBird", "BigBirdModel", attention_type="original_full"),
    encoder(
        "BigBird, sparse",
        "BigBirdModel",
        "pads inside to whole blocks",
        block_size=4,
        num_random_blocks=1,
    ),
    encoder("Nystromformer", "NystromformerModel", num_landmarks=128, segment_means_seq_len=128),
    encoder(
        "Nystromformer, landmarks",
        "NystromformerModel",
        "takes inputs of 128 tokens only",
        num_landmarks=16,
        segment_means_seq_len=128,
    ),
    encoder(
        "Funnel",
        "FunnelModel",
        "shortens the sequence",
        num_hidden_layers=OWN,
        block_sizes=[1, 1],
        d_inner=96,
        d_head=16,
        n_head=4,
    ),
    encoder(
        "MobileBERT",
        "MobileBertModel",
        embedding_size=32,
        intra_bottleneck_size=32,
        true_hidden_size=OWN,
    ),
    encoder("SqueezeBERT", "SqueezeBertModel", "linears as convolutions", embedding_size=WIDTH),
    encoder("ConvBERT", "ConvBertModel", embedding_size=32),
    encoder("EuroBERT", "EuroBertModel"),
    encoder("NomicBERT", "NomicBertModel"),
    encoder("GTE", "GteModel"),
    encoder("Ernie", "ErnieModel"),
    encoder("RoFormer", "RoFormerModel", embedding_size=WIDTH),
    encoder("RemBERT", "RemBertModel", input_embedding_size=32, output_embedding_size=32),
    encoder("Megatron-BERT", "MegatronBertModel"),
    encoder("MRA", "MraModel", "without its CUDA kernel, attention gives zeros"),
    encoder("YOSO", "YosoModel"),
    encoder("LayoutLM", "LayoutLMModel", "positions on a page", max_2d_position_embeddings=64),
    encoder("Jina v3", "JinaEmbeddingsV3Model"),
    encoder(
        "XLNet",
        "XLNetLMHeadModel",
        "sequence first; tokens in any order",
        max_position_embeddings=OWN,
        d_inner=96,
        d_model=WIDTH,
        n_head=4,
        d_head=16,
    ),
    encoder("XLM", "XLMWithLMHeadModel"),
    encoder("BERT, called a decoder", "BertLMHeadModel", "every token sees the whole text"),
    encoder(
        "T5, encoder",
        "T5EncoderModel",
        "relative positions",
        d_ff=96,
        d_kv=16,
        num_layers=2,
        num_hidden_layers=OWN,
        decoder_start_token_id=0,
    ),
    encoder("Ultrabert", "UltrabertModel"),
    encoder("Tapas", "TapasModel", "positions in a table"),
    encoder("RoBERTa, norm first", "RobertaPreLayerNormModel", max_position_embeddings=130),
    encoder("data2vec, text", "Data2VecTextModel", max_position_embeddings=130),
    encoder("I-BERT", "IBertModel", max_position_embeddings=130),
    encoder("XLM-R XL", "XLMRobertaXLModel", max_position_embeddings=130),
    encoder("Flaubert", "FlaubertModel"),
    encoder(
        "RoCBERT",
        "RoCBertModel",
        "embeds how characters look and sound",
        enable_pronunciation=False,
        enable_shape=False,
        pronunciation_vocab_size=16,
        shape_vocab_size=16,
    ),
    encoder(
        "Canine",
        "CanineModel",
        "characters, and no vocabulary",
        tokenizer="characters",
        num_hash_buckets=256,
    ),
    encoder("Splinter", "SplinterModel"),
)

PARTS = (
    part("Llama, no head", "LlamaModel"),
    part("Llama, classes", "LlamaForSequenceClassification", num_labels=3),
    part("GPT-2, no head", "GPT2Model"),
    part("Qwen3, no head", "Qwen3Model", "an embedding model"),
    part("Mistral, no head", "MistralModel", sliding_window=24),
)

BOTH = (
    both(
        "T5",
        "T5ForConditionalGeneration",
        d_ff=96,
        d_kv=16,
        num_layers=2,
        num_hidden_layers=OWN,
        decoder_start_token_id=0,
    ),
    both(
        "BART",
        "BartForConditionalGeneration",
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_hidden_layers=OWN,
    ),
)


def _vision(**changes: Any) -> dict[str, Any]:
    """A picture of 16 × 16 pixels in 4 patches."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 8,
        **changes,
    }


def llava() -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_vision()),
        text_config=sized("LlamaConfig"),
        image_token_index=511,
    )
    return drawn(transformers.LlavaForConditionalGeneration(config))


def gemma3_with_vision() -> Any:
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**_vision()),
        text_config=sized("Gemma3TextConfig", sliding_window=24),
        mm_tokens_per_image=4,
        image_token_index=511,
        boi_token_index=510,
        eoi_token_index=509,
    )
    return drawn(transformers.Gemma3ForConditionalGeneration(config))


def qwen2_vl() -> Any:
    config = transformers.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": WIDTH,
            "hidden_size": WIDTH,
            "num_heads": 4,
            "patch_size": 8,
        },
        text_config={
            **SIZES,
            **TEXT,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
        },
        image_token_id=511,
        video_token_id=510,
        vision_start_token_id=509,
        vision_end_token_id=508,
    )
    return drawn(transformers.Qwen2VLForConditionalGeneration(config))


def mllama() -> Any:
    vision = {
        **_vision(),
        "attention_heads": 4,
        "num_global_layers": 1,
        "max_num_tiles": 1,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]],
        "vision_output_dim": 2 * WIDTH,
    }
    text = {**SIZES, **TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    config = transformers.MllamaConfig(
        vision_config=vision, text_config=text, image_token_index=511
    )
    return drawn(transformers.MllamaForConditionalGeneration(config))


def clip() -> Any:
    text = {**SIZES, **TEXT}
    config = transformers.CLIPConfig(text_config=text, vision_config=_vision())
    return drawn(transformers.CLIPModel(config))


def vit() -> Any:
    return drawn(transformers.ViTForImageClassification(transformers.ViTConfig(**_vision())))


def whisper() -> Any:
    return tiny(
        "WhisperForConditionalGeneration",
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=64,
        max_target_positions=128,
        num_hidden_layers=OWN,
        decoder_start_token_id=0,
    )


def wav2vec2() -> Any:
    return tiny(
        "Wav2Vec2ForCTC",
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )


VISION_LANGUAGE = tuple(
    Architecture(name, "vision–language", make, note)
    for name, make, note in (
        ("LLaVA", llava, ""),
        ("Gemma 3, with vision", gemma3_with_vision, ""),
        ("Qwen2-VL", qwen2_vl, ""),
        ("Mllama", mllama, "attends to pictures in layers of their own"),
    )
)
OTHER = (
    Architecture("ViT", "other", vit, "pictures", ""),
    Architecture("CLIP", "other", clip, "pictures and text", "text"),
    Architecture("Whisper", "encoder–decoder", whisper, "sound", "text"),
    Architecture("wav2vec 2", "other", wav2vec2, "sound", ""),
)

ZOO: Mapping[str, Architecture] = {
    one.name: one
    for one in (*DECODERS, *RECURRENT, *EXPERTS, *ENCODERS, *PARTS, *BOTH, *VISION_LANGUAGE, *OTHER)
}


# ------------------------------------------------------------------------------------------ on disk


@cache
def root() -> Path:
    """Where the zoo lies while this process runs."""
    made = Path(tempfile.mkdtemp(prefix="qviz-zoo-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def directory(name: str) -> Path:
    """A directory with this architecture's model and tokenizer; made once per process."""
    one = ZOO[name]
    path = root() / f"tiny-{name.replace(' ', '-').replace(',', '').lower()}"
    model = one.model()
    model.save_pretrained(path, **one.saving)
    if one.tokenizer:
        TOKENIZERS[one.tokenizer]().save_pretrained(path)
    return path
