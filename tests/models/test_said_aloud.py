"""What models and results print, patterns for layers, and calibrations that know their weights."""

import re
from dataclasses import replace

import pytest
import torch

import qviz
from qviz.core.calibration import Calibration
from qviz.models.layers import LoadedModel, choose_layers, copy_of, linear_layers
from qviz.models.load import load_model
from qviz.models.resume import weights_fingerprint
from tests.models.zoo import directory

TEXT = "def read(path):\n    return open(path).read()\n" * 12
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return load_model(directory("Llama"))


@pytest.fixture(scope="module")
def captured(llama) -> dict[str, Calibration]:
    return qviz.capture(llama, TEXT, max_tokens=200)


# ----------------------------------------------------------------------------------------- printed


def test_a_model_prints_what_it_is(llama):
    text = repr(llama)
    layers = linear_layers(llama)
    count = sum(p.numel() for p in llama.model.parameters())
    inside = sum(one.weight.numel() for one in layers.values())
    assert text.startswith(f"{llama.name}: LlamaForCausalLM, a decoder: it predicts the next token")
    assert f"{count:,} parameters in float32 on cpu" in text
    assert f"{inside / count:.1%} of them in {len(layers)} linear layers" in text
    assert text.count("\n") == 1, "no module tree"


def test_a_model_prints_what_its_checkpoint_lacks_or_has_too_much():
    bert = load_model(directory("BERT"))
    odd = replace(bert, missing=frozenset({"pooler.dense.bias"}), unused=frozenset("dcba"))
    assert "random, because the checkpoint lacks them: pooler.dense.bias" in repr(odd)
    assert "but unused by the model: a, b, c and 1 more" in repr(odd)


@pytest.mark.parametrize(
    ("method", "options"), [("affine", {"bits": 3, "group_size": 32}), ("nf4", {})]
)
def test_a_result_prints_its_figures(llama, method, options):
    done = qviz.quantize_model(llama, method, **options)
    text = repr(done)
    weights = sum(q.ledger.weights for q in done.tensors.values())
    bits = sum(q.ledger.total_bits for q in done.tensors.values())
    total = sum(p.numel() for p in llama.model.parameters())
    assert f"quantized with {method}: {bits / weights:.3f} bits per weight" in text
    assert f"in {len(done.tensors)} layers, {weights / total:.1%} of all parameters" in text
    before, after = 2 * total, bits // 8 + 2 * (total - weights)
    assert abs(after - done.nbytes()) <= len(done.tensors)
    assert f"{before / 1e6:.2f} MB at 16 bits, {done.nbytes() / 1e6:.2f} MB" in text
    assert f"({before / done.nbytes():.2f}× smaller)" in text
    for reason in set(done.skipped.values()):
        count = list(done.skipped.values()).count(reason)
        assert f"left unquantized: {count} × {reason}" in text
    assert "the output head stays at 16 bits" in text


# ---------------------------------------------------------------------------------------- patterns


def test_layers_by_pattern(llama, captured):
    names = list(linear_layers(llama))
    for pattern in ("*.mlp.*", "model.layers.?.self_attn.[qk]*", "*.q_proj", "*"):
        if "[" in pattern:  # only * and ? are special: brackets number experts
            with pytest.raises(ValueError, match="no layer matches the pattern"):
                choose_layers(llama, pattern)
            continue
        expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
        expected = [name for name in names if re.fullmatch(expression, name)]
        assert list(choose_layers(llama, pattern)) == expected
        assert list(choose_layers(llama, [pattern, Q])) == list(dict.fromkeys([*expected, Q]))
    assert qviz.capture(llama, TEXT, "*.mlp.*", max_tokens=60).keys() == {
        name for name in names if ".mlp." in name
    }
    done = qviz.quantize_model(
        llama, "gptq", layers="*.0.mlp.*", calibration=captured, bits=4, group_size=32
    )
    assert done.tensors.keys() == {name for name in names if ".0.mlp." in name}
    with pytest.raises(ValueError, match=r"no layer matches the pattern '\*\.mpl\.\*'.*names like"):
        qviz.quantize_model(llama, layers="*.mpl.*")


# ------------------------------------------------------------------------------------ fingerprints


def test_another_models_capture_is_refused(llama, captured):
    """The same names and shapes, other weights; and this model after it was changed."""
    other = copy_of(llama)
    linear_layers(other)["model.layers.1.mlp.down_proj"].weight[0, 0] += 1e-3
    how = {"bits": 4, "group_size": 32, "calibration": captured}
    assert qviz.quantize_model(llama, "gptq", **how).tensors
    rotated = qviz.rotate_model(llama).model
    quantized = qviz.quantize_model(llama, "gptq", **how).model
    for model in (other, rotated, quantized):
        with pytest.raises(ValueError, match=r"captured from other weights than.*Capture it again"):
            qviz.quantize_model(model, "gptq", **how)


def test_a_calibration_made_by_hand_is_taken(llama, captured):
    unknown = {name: replace(one, weights="") for name, one in captured.items()}
    known = qviz.quantize_model(llama, "gptq", bits=4, group_size=32, calibration=captured)
    taken = qviz.quantize_model(llama, "gptq", bits=4, group_size=32, calibration=unknown)
    assert all(torch.equal(made.codes, taken.tensors[n].codes) for n, made in known.tensors.items())


def test_the_fingerprint_is_of_the_values(tmp_path, llama):
    half = load_model(directory("Llama, bfloat16"), dtype=torch.bfloat16)
    wide = load_model(directory("Llama, bfloat16"), dtype=torch.float32)
    assert weights_fingerprint(half) == weights_fingerprint(wide)
    assert weights_fingerprint(half) != weights_fingerprint(llama)
    changed = copy_of(half)
    changed.model.model.norm.weight[0] *= 2
    assert weights_fingerprint(changed) != weights_fingerprint(half)


def test_a_cached_calibration_keeps_it(monkeypatch, tmp_path, llama):
    monkeypatch.setenv("QVIZ_CACHE", str(tmp_path))
    fresh = qviz.load_calibration(directory("Llama"), Q, text=TEXT)
    again = qviz.load_calibration(directory("Llama"), Q, text=TEXT)
    assert fresh.weights == again.weights == weights_fingerprint(llama)
    assert qviz.quantize_model(
        llama, "gptq", layers=[Q], calibration={Q: again}, bits=4, group_size=32
    ).tensors


def test_a_layer_without_a_calibration_says_so_and_the_advice_works(llama, captured):
    part = {name: one for name, one in captured.items() if ".mlp." in name}
    with pytest.raises(ValueError, match=r"q_proj: the calibration has no entry for it") as raised:
        qviz.quantize_model(llama, "gptq", calibration=part, bits=4, group_size=32)
    assert 'on_error="skip"' in str(raised.value)
    done = qviz.quantize_model(
        llama, "gptq", calibration=part, bits=4, group_size=32, on_error="skip"
    )
    assert done.tensors.keys() == part.keys()
    assert "on_error" not in done.skipped[Q]


def test_a_layer_that_mamba_never_calls():
    model = load_model(directory("Mamba"))
    calibration = qviz.capture(model, TEXT, max_tokens=120)
    name = next(n for n in linear_layers(model) if n.endswith("dt_proj"))
    assert name not in calibration
    with pytest.raises(ValueError, match="never calls it as a layer on text"):
        qviz.capture(model, TEXT, [name])
    done = qviz.quantize_model(
        model, "gptq", calibration=calibration, bits=4, group_size=None, on_error="skip"
    )
    assert "never calls it as a layer" in done.skipped[name]
