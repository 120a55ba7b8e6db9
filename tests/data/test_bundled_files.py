"""The files under qviz/data agree with each other; nothing is loaded into a model here."""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors import safe_open

import qviz

DATA = Path(qviz.__file__).parent / "data"
MODEL, TEXTS = DATA / "model", DATA / "texts"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_model_and_texts_fit_in_ten_megabytes_and_the_records_in_one() -> None:
    records = size(DATA / "kernels")
    assert size(DATA) - records <= 10_000_000
    assert 0 < records <= 1_000_000


def test_the_measured_files_are_the_ones_that_ship() -> None:
    files = read(MODEL / "metrics.json")["files"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "split.json"} <= set(files)
    for name, recorded in files.items():
        assert recorded == {
            "bytes": (MODEL / name).stat().st_size,
            "sha256": sha256(MODEL / name),
        }, name


def test_every_text_is_described_and_unchanged() -> None:
    texts = read(TEXTS / "texts.json")["texts"]
    assert {text["file"] for text in texts} == {path.name for path in TEXTS.glob("*.txt")}
    for text in texts:
        path = TEXTS / text["file"]
        assert path.stat().st_size == text["bytes"], text["name"]
        assert sha256(path) == text["sha256"], text["name"]
        assert text["role"] in ("calibration", "evaluation")
        assert text["domain"]
        assert text["description"]


def test_split_keeps_held_out_modules_out_of_training() -> None:
    split = read(MODEL / "split.json")
    assert not set(split["held_out"]) & set(split["training"])
    share = split["bytes"]["held_out"] / sum(split["bytes"].values())
    assert 0.04 <= share <= 0.05
    # Neither a held-out module's tests nor its files count as another module of the other side.
    for module in ("json", "poplib"):
        assert module in split["held_out"]
        assert f"test:{module}" not in split["training"]


def test_texts_come_from_the_side_of_the_split_that_their_role_demands() -> None:
    unseen = set(read(MODEL / "split.json")["held_out_files"])
    for text in read(TEXTS / "texts.json")["texts"]:
        sources = set(text["sources"])
        if text["role"] == "evaluation":
            assert sources
            assert sources <= unseen
        else:
            assert not sources & unseen


def test_checkpoint_is_an_ordinary_bf16_llama() -> None:
    config = read(MODEL / "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    for width in ("hidden_size", "intermediate_size", "vocab_size"):
        assert config[width] % 256 == 0, width  # k-quant super-blocks
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    tokenizer = read(MODEL / "tokenizer.json")
    assert len(tokenizer["model"]["vocab"]) == config["vocab_size"]
    parameters = 0
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  (safe_open cannot be iterated)
            tensor = weights.get_slice(name)
            assert tensor.get_dtype() == "BF16", name
            count = 1
            for size in tensor.get_shape():
                count *= size
            parameters += count
    assert parameters == read(MODEL / "metrics.json")["parameters"]


# `xz` finds the repetitions within test files too, so they bring the two closest together.
@pytest.mark.parametrize(
    ("part", "limit"), [("held_out_sources", 0.6), ("heldout_python.txt", 0.6), ("held_out", 0.62)]
)
def test_model_predicts_unseen_text_far_better_than_xz(part: str, limit: float) -> None:
    measured = read(MODEL / "metrics.json")[part]
    assert measured["ratio_to_xz"] <= limit
    assert measured["ratio_to_xz"] == pytest.approx(
        measured["bits_per_byte"] / measured["xz_bits_per_byte"]
    )


def test_card_shows_the_measured_figures() -> None:
    metrics = read(MODEL / "metrics.json")
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for part in ("held_out", "held_out_sources", "held_out_tests", "heldout_python.txt"):
        assert (
            f"| {metrics[part]['perplexity']:.2f} | {metrics[part]['bits_per_byte']:.3f} |" in card
        )
    assert f"{metrics['parameters']:,}" in card
    assert metrics["samples"][0]["text"] in card
    assert "$" not in card.split("## What it writes")[0]  # an unfilled field of the template
