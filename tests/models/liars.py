"""Model directories that lie: each is a whole checkpoint with one thing in it that is not so.

    path = build("integer weights")    →  a directory, made once per process

Most are the tiny Llama of the zoo with one file changed. The text to try them with is `TEXT`.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from zoo import ZOO, directory, root

TEXT = "def read(self, path): return the value"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Liar:
    """A directory that lies.

    lie      what in it is not so, and what is
    spoil    does it to the directory of a good model
    honest   the model of the zoo that it is otherwise
    text     what to run it on
    """

    lie: str
    spoil: Callable[[Path], None]
    honest: str = "Llama"
    text: str = TEXT


def integer_weights(path: Path) -> None:
    def quantized(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, weight in weights.items():
            if name.endswith("proj.weight"):
                scale = weight.abs().amax(dim=1, keepdim=True) / 127
                found[name] = (weight / scale).round().to(torch.int8)
                found[f"{name}_scale"] = scale
            else:
                found[name] = weight
        return found

    _rewrite(path, quantized)


def two_truths(path: Path) -> None:
    """An older model's shards and index are left beside the new single file."""
    before = path.parent / f"{path.name}-before"
    _other_weights().save_pretrained(before, max_shard_size="99KB")
    for file in before.iterdir():
        if "safetensors" in file.name:
            shutil.copy(file, path / file.name)
    shutil.rmtree(before)


def stale_index(path: Path) -> None:
    two_truths(path)
    for shard in path.glob("model-*.safetensors"):
        shard.unlink()


def missing_shard(path: Path) -> None:
    _in_shards(path)
    sorted(path.glob("model-*.safetensors"))[1].unlink()


def index_leads_out(path: Path) -> None:
    _in_shards(path)
    index = json.loads((path / INDEX).read_text())
    first = min(index["weight_map"])
    index["weight_map"][first] = "../../secret.safetensors"
    (path / INDEX).write_text(json.dumps(index))


def wrong_shard(path: Path) -> None:
    """The index exchanges the shards of two tensors."""
    _in_shards(path)
    index = json.loads((path / INDEX).read_text())
    places = index["weight_map"]
    one = "model.layers.0.self_attn.q_proj.weight"
    other = next(name for name in sorted(places) if places[name] != places[one])
    places[one], places[other] = places[other], places[one]
    (path / INDEX).write_text(json.dumps(index))


def another_model(path: Path) -> None:
    _other_weights().save_pretrained(path)


def wrong_class(path: Path) -> None:
    _configure(path, architectures=["BertModel"])


def unknown_class(path: Path) -> None:
    _configure(path, architectures=["LlamaForEverything"])


def other_sizes(path: Path) -> None:
    _configure(path, intermediate_size=128)


def more_layers(path: Path) -> None:
    _configure(path, num_hidden_layers=3)


def tied_but_different(path: Path) -> None:
    _configure(path, tie_word_embeddings=True)


def broken_tokenizer(path: Path) -> None:
    file = path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8")[:1000], encoding="utf-8")


def added_tokens(path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["<|user|>", "<|assistant|>"], special_tokens=True)
    tokenizer.save_pretrained(path)


def truncated(path: Path) -> None:
    whole = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def not_numbers(path: Path) -> None:
    def spoiled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
        return weights

    _rewrite(path, spoiled)


def lfs_pointer(path: Path) -> None:
    (path / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        "size 509512\n"
    )


def adapter_only(path: Path) -> None:
    """What a LoRA training leaves: an adapter, and the configuration of the whole model."""
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    adapter = {f"{q}.lora_A.weight": torch.zeros(4, 64), f"{q}.lora_B.weight": torch.zeros(64, 4)}
    save_file(adapter, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    (path / WEIGHTS).unlink()


def mxfp4(path: Path) -> None:
    """Experts as GPT-OSS is published: *_blocks and *_scales, and a configuration that says so."""
    mxfp4_unsaid(path)
    _configure(path, quantization_config={"quant_method": "mxfp4"})


def mxfp4_unsaid(path: Path) -> None:
    def packed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, weight in weights.items():
            if name.endswith(("gate_up_proj", "down_proj")):
                experts, inputs, outputs = weight.shape
                blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16))
                found[f"{name}_blocks"] = blocks.to(torch.uint8)
                found[f"{name}_scales"] = torch.full(
                    (experts, outputs, inputs // 32), 120, dtype=torch.uint8
                )
            else:
                found[name] = weight
        return found

    _rewrite(path, packed)


LIARS: Mapping[str, Liar] = {
    "integer weights": Liar(
        "int8 weights with weight_scale beside them; config.json does not say so", integer_weights
    ),
    "two truths": Liar("a single file, and the index and shards of an older model", two_truths),
    "stale index": Liar("an index whose shards are gone, beside a whole single file", stale_index),
    "another model": Liar("same names and shapes, other weights", another_model),
    "wrong class": Liar("config.json names BertModel for a Llama", wrong_class),
    "unknown class": Liar("config.json names a class that does not exist", unknown_class),
    "other sizes": Liar("config.json has another intermediate size", other_sizes),
    "more layers": Liar("config.json has three layers, the file two", more_layers),
    "tied, but different": Liar(
        "config.json ties the head to the embeddings, the file has another head",
        tied_but_different,
    ),
    "broken tokenizer": Liar("tokenizer.json ends in the middle", broken_tokenizer),
    "added tokens": Liar(
        "the tokenizer has two tokens that the embedding does not have",
        added_tokens,
        text="<|user|> def read(self, path): <|assistant|> return the value",
    ),
    "truncated": Liar("the header promises twice as many bytes as there are", truncated),
    "missing shard": Liar("the index names a shard that is not there", missing_shard),
    "wrong shard": Liar("the index exchanges the files of two tensors", wrong_shard),
    "index leads out": Liar("the index names a file outside the directory", index_leads_out),
    "not numbers": Liar("one weight is NaN", not_numbers),
    "LFS pointer": Liar("a pointer of Git LFS under the name of the weights", lfs_pointer),
    "adapter only": Liar("the configuration of a whole model, and a LoRA adapter", adapter_only),
    "MXFP4": Liar("experts as *_blocks and *_scales, as GPT-OSS is published", mxfp4, "GPT-OSS"),
    "MXFP4, unsaid": Liar("the same, and config.json does not say so", mxfp4_unsaid, "GPT-OSS"),
}


@cache
def build(name: str) -> Path:
    """The directory of this liar; made once per process."""
    liar = LIARS[name]
    path = root() / f"liar-{name.replace(' ', '-').replace(',', '').lower()}"
    shutil.copytree(directory(liar.honest), path)
    liar.spoil(path)
    return path


def _rewrite(
    path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    save_file(change(load_file(path / WEIGHTS)), path / WEIGHTS, metadata={"format": "pt"})


def _configure(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _in_shards(path: Path) -> None:
    model = ZOO["Llama"].model()
    (path / WEIGHTS).unlink()
    model.save_pretrained(path, max_shard_size="99KB")


def _other_weights() -> Any:
    """The tiny Llama again, every weight another."""
    model = ZOO["Llama"].model()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9).add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model
