"""Tiny random models of each kind, saved the way a Hub download looks."""

from pathlib import Path

import pytest
import torch

from qviz.models.layers import LoadedModel
from qviz.models.load import load_model

WORDS = "the quick brown fox jumps over the lazy dog and def return import self in of a to é ß "


def save_tokenizer(directory: Path, *, special: bool = False) -> None:
    """A byte-level tokenizer with one token per byte; `special` adds [CLS] and [SEP]."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(["[PAD]", "[CLS]", "[SEP]", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {}
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)


def build(kind: str):
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(7)
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=260,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        return LlamaForCausalLM(config)
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            vocab_size=260,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        return GPT2LMHeadModel(config)
    config = BertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=260,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return BertModel(config)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind → directory: llama, gpt2, bert (float32), llama-sharded, llama-bf16, gpt2-f16."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for kind in ("llama", "gpt2", "bert"):
        model = build(kind)
        made[kind] = root / kind
        model.save_pretrained(made[kind])
        if kind == "llama":
            made["llama-sharded"] = root / "llama-sharded"
            model.save_pretrained(made["llama-sharded"], max_shard_size="20KB")
            made["llama-bf16"] = root / "llama-bf16"
            model.to(torch.bfloat16).save_pretrained(made["llama-bf16"])
        if kind == "gpt2":
            made["gpt2-f16"] = root / "gpt2-f16"
            model.half().save_pretrained(made["gpt2-f16"])
    for kind, directory in made.items():
        save_tokenizer(directory, special=kind == "bert")
    return made


@pytest.fixture(scope="session")
def loaded(checkpoints: dict[str, Path]) -> dict[str, LoadedModel]:
    """The tiny models in memory. Tests must leave them as they are."""
    return {kind: load_model(checkpoints[kind]) for kind in ("llama", "gpt2", "bert")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QVIZ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


@pytest.fixture(scope="session")
def words() -> str:
    return WORDS * 12
