"""Names in files against those of modules, and what a model is by its configuration."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import qviz
from qviz.models import names
from qviz.models.architecture import architecture_of, quiet_transformers
from qviz.models.checkpoint import Checkpoint, find_checkpoint, list_layers
from qviz.models.layers import linear_layers
from qviz.models.load import load_model
from tests.models.zoo import directory, tiny


@pytest.mark.parametrize("kind", names.PLAIN)
def test_plain_types_need_no_translation(kind):
    """Held against transformers: no rule for their names but those that never touch a linear's,
    and the head tied by default as the table says."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    config = transformers.AutoConfig.for_model(kind)
    assert bool(config.tie_word_embeddings) == names.PLAIN[kind]
    assert get_checkpoint_conversion_mapping(kind) is None
    for rule in get_checkpoint_conversion_mapping("legacy"):
        for layer in ("self_attn.q_proj.weight", "attn.c_attn.weight", "output.dense.weight"):
            assert rule.rename_source_key(f"model.layers.0.{layer}")[1] is None


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi-3", "GPT-2", "BERT"])
def test_plain_types_list_what_their_modules_are(name):
    where = directory(name)
    assert names.translation_of(find_checkpoint(where)) is None
    listed = {layer.name: layer.shape for layer in list_layers(where)}
    layers = linear_layers(load_model(where))
    assert listed == {n: (one.out_features, one.in_features) for n, one in layers.items()}


@pytest.mark.parametrize(
    "name",
    [
        "GPT-NeoX",
        "Gemma 3, with vision",
        "LLaVA",
        "Zamba",
        "Mamba 2",
        "RWKV",
        "ALBERT",
        "ModernBERT",
    ],
)
def test_translated_types_list_and_read_what_their_modules_are(name):
    """Heads of other names, a text part inside, weights of several places, infinity in JSON."""
    where = directory(name)
    listed = {layer.name: layer.shape for layer in list_layers(where)}
    layers = linear_layers(load_model(where))
    assert listed == {n: (one.out_features, one.in_features) for n, one in layers.items()}
    for layer, one in layers.items():
        assert torch.equal(qviz.load_layer(where, layer), one.weight), layer
    with pytest.raises(ValueError, match="unknown layer"):
        qviz.load_layer(where, "no_such_layer")


def test_a_mixture_is_read_from_either_form_of_its_files(tmp_path):
    """One file holds each expert by itself, another all of them in one tensor: the same layers."""
    where = directory("Qwen3-MoE")
    stored = load_file(where / "model.safetensors")
    model = load_model(where)
    fused = {k: v.contiguous() for k, v in model.model.state_dict().items()}
    assert stored.keys() != fused.keys()
    for file in where.iterdir():
        if file.suffix in (".json", ".jinja"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(fused, tmp_path / "model.safetensors")
    assert [x.name for x in list_layers(tmp_path)] == [x.name for x in list_layers(where)]
    for layer in linear_layers(model):
        assert torch.equal(qviz.load_layer(tmp_path, layer), qviz.load_layer(where, layer))


def test_one_expert_is_read_from_its_own_tensors_alone(monkeypatch):
    """Not from those of all experts, which may be gigabytes."""
    where, read = directory("Mixtral"), []
    original = Checkpoint.read
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, t, row=None: read.append(t) or original(self, t, row)
    )
    qviz.load_layer(where, "model.layers.1.mlp.experts.gate_up_proj.3")
    assert len(read) == 2
    assert all(".experts.3." in tensor for tensor in read)


def configured(tmp_path, **config) -> Checkpoint:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return Checkpoint("some model", "directory", tmp_path)


@pytest.mark.parametrize(
    ("config", "cls", "kind"),
    [
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, "LlamaModel", "headless"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification",
            "headless",
        ),
        (
            {"model_type": "t5", "architectures": ["T5EncoderModel"], "is_encoder_decoder": True},
            "T5EncoderModel",
            "encoder",
        ),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "BertForMaskedLM",
            "encoder",
        ),
        ({"model_type": "bert", "architectures": ["TFBertModel"]}, "BertModel", "encoder"),
        ({"model_type": "bert", "is_decoder": True}, "BertModel", "headless"),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
            "Gemma3ForConditionalGeneration",
            "decoder",
        ),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "ViTModel", "other"),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "CLIPModel", "other"),
        ({"model_type": "llama"}, "LlamaForCausalLM", "decoder"),
        ({"model_type": "llama", "architectures": "LlamaModel"}, "LlamaModel", "headless"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "T5Model", "encoder–decoder"),
        ({"model_type": "bert"}, "BertModel", "encoder"),
    ],
)
def test_class_and_kind_are_those_of_the_configuration(tmp_path, config, cls, kind):
    found = architecture_of(configured(tmp_path, **config))
    assert (found.cls.__name__, found.kind) == (cls, kind)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama", "architectures": ["MistralForCausalLM"]}, "contradicts itself"),
        ({"model_type": "llama", "architectures": ["MyLlama"]}, "names the class MyLlama, which"),
        ({"model_type": "mine", "auto_map": {"AutoModel": "x.y"}}, "remote code, which qviz"),
        (
            {"model_type": "llava", "text_config": {"quantization_config": {"bits": 4}}},
            r"already quantized \(some method\)",
        ),
        ({"model_type": "llama", "quantization_config": ["fp8"]}, "already quantized"),
        (
            {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}},
            r"already quantized \(mxfp4\)",
        ),
    ],
)
def test_a_configuration_that_will_not_do_says_why(tmp_path, config, said):
    with pytest.raises(ValueError, match=said):
        architecture_of(configured(tmp_path, **config))


def test_quiet_leaves_the_settings_alone():
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    with quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_layers_of_an_encoder_decoder_are_listed_and_read(name):
    """The refusal to load it says so."""
    where = directory(name)
    stored = load_file(where / "model.safetensors")
    with pytest.raises(ValueError, match=r"encoder–decoder .*can be read with load_layer"):
        load_model(where)
    listed = list_layers(where)
    assert len(listed) > 10
    for layer in listed:
        weight = qviz.load_layer(where, layer.name)
        assert tuple(weight.shape) == layer.shape
        assert any(torch.equal(weight, other) for other in stored.values())


def test_an_expert_that_the_files_lack_is_not_replaced_by_the_next(tmp_path):
    where = directory("Qwen3-MoE")
    for file in where.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = load_file(where / "model.safetensors")
    fewer = {k: v for k, v in stored.items() if ".0.mlp.experts.1." not in k}
    assert len(fewer) == len(stored) - 3
    save_file(fewer, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for expert in range(4):
        with pytest.raises(ValueError, match=r"hold 3 tensors \S+down_proj\S* for the 4 experts"):
            qviz.load_layer(tmp_path, f"model.layers.0.mlp.experts.down_proj.{expert}")
    assert qviz.load_layer(tmp_path, "model.layers.1.mlp.experts.down_proj.1") is not None


def test_a_mixtures_layers_are_worked_out_once(monkeypatch):
    where, made = directory("Qwen2-MoE"), []
    original = names.Translation.place
    monkeypatch.setattr(
        names.Translation, "place", lambda self, layer: made.append(layer) or original(self, layer)
    )
    listed = list_layers(where)
    before = len(made)
    qviz.load_layer(where, listed[3].name)
    assert len(made) == before + 1


def test_expert_10_comes_after_expert_2(tmp_path):
    tiny("Qwen3MoeForCausalLM", num_local_experts=12, num_experts=12).save_pretrained(tmp_path)
    layers = linear_layers(load_model(tmp_path))
    for expert in (2, 10):
        name = f"model.layers.0.mlp.experts.gate_up_proj.{expert}"
        assert torch.equal(qviz.load_layer(tmp_path, name), layers[name].weight)
