"""The model and the texts that come with the package."""

import pytest
import torch

import qviz
from qviz.models import checkpoint
from qviz.models.capture import warm_cache
from qviz.models.checkpoint import list_layers
from qviz.models.layers import linear_layers
from qviz.models.load import load_model
from qviz.models.texts import calibration_texts, evaluation_texts, find_text


@pytest.fixture(scope="module")
def bundled():
    return load_model()


def test_it_is_a_small_decoder_of_the_promised_shape(bundled):
    assert (bundled.kind, bundled.name) == ("decoder", "bundled")
    shapes = {s.name: s.shape for s in list_layers()}
    assert len(shapes) == 4 * 7
    assert shapes["model.layers.0.mlp.down_proj"] == (256, 1024)
    assert all(columns % 256 == 0 for _, columns in shapes.values()), "k-quant super-blocks fit"
    assert {s.dtype for s in list_layers()} == {"BF16"}
    assert set(linear_layers(bundled)) == set(shapes)
    for name, layer in linear_layers(bundled).items():
        assert torch.equal(qviz.load_layer(None, name).float(), layer.weight)


def test_it_predicts_unseen_python_and_suffers_from_few_bits(bundled):
    def bits_per_byte(model):
        return qviz.perplexity(model, max_tokens=512).bits_per_byte

    sixteen = bits_per_byte(bundled)
    assert sixteen < 2.5
    four, two = (
        bits_per_byte(qviz.quantize_model(bundled, bits=bits, group_size=32).model)
        for bits in (4, 2)
    )
    assert sixteen < two
    assert four < two


def test_it_writes(bundled):
    assert qviz.generate(bundled, "def __init__(self", max_new_tokens=8).strip()


def test_texts():
    assert {"python", "english", "docs", "numbers"} <= set(calibration_texts())
    assert "heldout_python" in evaluation_texts()
    assert not set(calibration_texts()) & set(evaluation_texts())
    for text in (calibration_texts() | evaluation_texts()).values():
        assert len(text.text) > 10_000
        assert text.description
    assert find_text("python") == ("python", calibration_texts()["python"].text)
    assert find_text("my own text") == ("your text", "my own text")
    with pytest.raises(ValueError, match=r"unknown text 'pythn'\. Did you mean"):
        find_text("pythn")


@pytest.mark.slow
def test_warm_cache(cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as without MiniLM
    said = list(warm_cache())
    assert "bundled model ready in" in said[0]
    assert "other texts ready in" in said[1]
    assert len(said) == 2
    texts = [*calibration_texts(), *evaluation_texts()]  # a lesson calibrates on each of them
    assert len(list(cache.glob("*.safetensors"))) == len(texts)
    monkeypatch.setattr("qviz.models.capture.load_model", None)  # the second needs no model
    list(warm_cache())
    found = qviz.load_calibration(None, "model.layers.3.mlp.down_proj")
    assert found.tokens == 15963  # all there are of this text
    assert found.inputs.shape == (1024, 1024)
    assert found.source == "python"
    for text in texts:
        assert qviz.load_calibration(None, "model.layers.0.mlp.up_proj", text=text).source == text


def test_a_missing_installation_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path)
    with pytest.raises(FileNotFoundError, match="reinstall qviz"):
        load_model()
