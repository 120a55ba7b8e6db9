"""Training with quantization: a few steps on the bundled model learn, and what stays does stay."""

import copy
from dataclasses import replace

import pytest
import torch

import qviz
from qviz.methods.qlora import LoraLinear
from qviz.models.layers import linear_layers
from qviz.models.texts import evaluation_texts
from qviz.study import training
from qviz.study.training import train_quantized, training_texts

SHORT = {"texts": "python", "sequence_length": 64, "batch_size": 4}
TWO_BITS = {"base": "affine", "base_options": {"bits": 2}}


@pytest.fixture(scope="module")
def bundled():
    return qviz.load_model()


@pytest.fixture(scope="module")
def two_bits(bundled):
    before = copy.deepcopy(bundled.model.state_dict())
    trained = train_quantized(bundled, bits=2, steps=12, scale_dtype=torch.float16, **SHORT)
    return bundled, before, trained


def test_the_loss_falls_and_the_rounded_model_is_better(two_bits):
    model, _, trained = two_bits
    assert len(trained.losses) == 12
    assert trained.losses[-1] < 0.5 * trained.losses[0]
    nearest = qviz.quantize_model(model, bits=2).model
    limit = {"max_tokens": 512}
    before, after = (qviz.perplexity(m, **limit).nll_per_token for m in (nearest, trained.model))
    assert after < before - 1
    assert trained.bits_per_weight == 2.125
    assert trained.tokens == 12 * 4 * 64


def test_the_model_given_stays_as_it_was(two_bits):
    model, before, trained = two_bits
    after = model.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in model.model.parameters())
    assert all(type(one.module) is torch.nn.Linear for one in linear_layers(model).values())
    # and what was not replaced is equal in the copy, without being shared
    theirs = dict(trained.model.model.named_parameters())
    for name, parameter in model.model.named_parameters():
        if name.removesuffix(".weight") not in trained.modules:
            assert torch.equal(parameter, theirs[name])
            assert parameter.data_ptr() != theirs[name].data_ptr()


def test_the_model_computes_with_what_was_quantized(two_bits):
    _, _, trained = two_bits
    layers = linear_layers(trained.model)
    assert trained.tensors.keys() == trained.modules.keys() == layers.keys()
    for name, tensor in trained.tensors.items():
        assert torch.equal(layers[name].weight, tensor.dequantize())
        assert torch.equal(trained.modules[name].fake_quantized(), tensor.dequantize())
    assert "tied" in trained.skipped["lm_head"]


def test_only_branches_train_with_qlora(bundled):
    trained = train_quantized(bundled, "qlora", steps=10, rank=4, **TWO_BITS, **SHORT)
    assert trained.losses[-1] < trained.losses[0] - 0.3
    starts = []
    for name, layer in linear_layers(bundled).items():
        module = trained.model.model.get_submodule(name)
        assert isinstance(module, LoraLinear)
        assert module.B.any()
        alone = qviz.quantize(layer.weight, "affine", bits=2)
        assert torch.equal(module.base.codes, alone.codes)
        assert torch.equal(module.base.grid.scale, alone.grid.scale)
        starts.append(module.A.flatten()[:8])
    assert len(torch.unique(torch.stack(starts), dim=0)) == len(starts), "no two start alike"
    assert not any(p.requires_grad for p in trained.model.model.parameters())
    assert trained.bits_per_weight > 2.25


@pytest.mark.parametrize("method", ["qat", "qlora"])
def test_biases_and_half_precision_go_along(bundled, method):
    module = copy.deepcopy(bundled.model).bfloat16()
    one = module.model.layers[0].mlp.up_proj
    one.bias = torch.nn.Parameter(torch.randn(1024).bfloat16(), requires_grad=False)
    model = replace(bundled, model=module)
    options = TWO_BITS if method == "qlora" else {}
    layers = ["layers.0.mlp.up_proj", "layers.0.mlp.down_proj"]
    trained = train_quantized(model, method, steps=2, layers=layers, **options, **SHORT)
    mine = trained.model.model.model.layers[0].mlp.up_proj
    assert torch.equal(mine.bias, one.bias)
    assert trained.model.model.model.layers[0].mlp.down_proj.bias is None
    x = torch.randn(5, 256).bfloat16()
    assert torch.equal(mine(x), trained.modules["model.layers.0.mlp.up_proj"](x))
    assert qviz.perplexity(trained.model, max_tokens=64).value > 1


def test_the_same_seed_gives_the_same_model(bundled):
    options = {"bits": 3, "steps": 2, "layers": ["layers.0.mlp.up_proj"], **SHORT}
    one, same = (train_quantized(bundled, seed=1, **options) for _ in range(2))
    other = train_quantized(bundled, seed=2, **options)
    assert one.losses == same.losses != other.losses
    (name,) = one.tensors
    assert name == "model.layers.0.mlp.up_proj"
    assert torch.equal(one.tensors[name].dequantize(), same.tensors[name].dequantize())
    assert one.skipped["model.layers.1.mlp.up_proj"] == "not among the requested layers"


def test_progress_and_the_share_of_distillation(bundled):
    seen = {}
    for share in (0.0, 0.5, 1.0):
        steps = []
        train_quantized(bundled, bits=4, steps=2, layers=["layers.1.mlp.up_proj"], distill=share,
                        progress=lambda *a, s=steps: s.append(a), **SHORT)  # fmt: skip
        assert [s[:2] for s in steps] == [(1, 2), (2, 2)]
        seen[share] = steps[0][2]
    assert seen[0.5] == pytest.approx((seen[0.0] + seen[1.0]) / 2, rel=1e-5)
    assert seen[1.0] < 0.1 < 1 < seen[0.0]  # one layer of 4 bits is close to the teacher


def test_nothing_held_out_is_trained_on():
    """No evaluation text, no file of a module it comes from, no test of one."""
    texts = list(training_texts())
    assert len(texts) > 500
    read = {line for text in texts for line in text.splitlines()}
    for evaluation in evaluation_texts().values():
        lines = [line for line in evaluation.text.splitlines() if len(line) >= 40]
        # 2.3 % is what the two sides of the bundled model's split have in common anyway
        assert sum(line in read for line in lines) < 0.05 * len(lines)


def test_without_sources_the_calibration_texts_serve_and_the_result_says_so(
    bundled, monkeypatch, tmp_path
):
    options = {"steps": 1, "layers": ["layers.0.mlp.up_proj"], **SHORT, "texts": None}
    assert "standard library of Python 3" in train_quantized(bundled, **options).source
    monkeypatch.setattr(training.sysconfig, "get_path", lambda name: str(tmp_path))
    assert len(list(training_texts())) == 3
    assert "calibration texts" in train_quantized(bundled, **options).source
    assert train_quantized(bundled, **{**options, "texts": "python"}).source == "the texts given"


def test_what_is_asked_is_checked(bundled):
    python = evaluation_texts()["heldout_python"]
    for options, says in [
        ({"method": "affine"}, "affine is a weight method"),
        ({"texts": "heldout_python"}, "must not be used for training"),
        ({"texts": python.text}, "must not be used for training"),
        ({"texts": python.text[2000:9000]}, "must not be used for training"),
        ({"texts": python.text + "# and one line"}, "must not be used for training"),
        ({"texts": "pyhton"}, "Did you mean python"),
        ({"texts": "def f(x): pass"}, "a window needs 257"),
        ({"distill": 2}, "from 0 to 1"),
        ({"distill": float("nan")}, "from 0 to 1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"lr": -0.1}, "lr must be positive"),
        ({"steps": 0}, "steps must be from 1"),
        ({"group_size": 96}, r"model\.layers\.0\.self_attn\.q_proj: group_size 96"),
        ({"layers": ["nothing"]}, "nothing"),
    ]:
        with pytest.raises(ValueError, match=says):
            train_quantized(bundled, **{"steps": 1, "texts": "python", **options})
    with pytest.raises(TypeError, match="unknown option"):
        train_quantized(bundled, bitz=3)
    with pytest.raises(ValueError, match="use a decoder"):
        train_quantized(replace(bundled, kind="encoder"))
    with pytest.raises(ValueError, match="use a smaller lr"):
        train_quantized(bundled, "qlora", steps=4, lr=1e30, **TWO_BITS, **SHORT)


def test_what_the_last_update_broke_is_refused(bundled, monkeypatch):
    """No loss is computed after it, so the loss cannot tell."""
    real = torch.optim.Adam.step

    def broken(self, *args):
        real(self, *args)
        self.param_groups[0]["params"][0].data[0, 0] = float("nan")

    monkeypatch.setattr(torch.optim.Adam, "step", broken)
    for method, options in [("qat", {}), ("qlora", TWO_BITS)]:
        with pytest.raises(
            ValueError, match=r"of model\.layers\.0\.mlp\.up_proj is no longer finite"
        ):
            train_quantized(
                bundled, method, steps=1, layers=["layers.0.mlp.up_proj"], **options, **SHORT
            )


def test_no_layer_of_one_seed_starts_like_one_of_the_next(bundled):
    starts = [
        tuple(module.A.detach().flatten()[:8].tolist())
        for seed in (0, 1)
        for module in training.replace_layers(bundled, "qlora", seed=seed, **TWO_BITS)[1].values()
    ]
    assert len(set(starts)) == len(starts) == 2 * len(linear_layers(bundled))


def test_training_works_without_gradients_around_it_and_keeps_none(bundled):
    options = {"steps": 2, "layers": ["layers.0.mlp.up_proj"], **SHORT}
    with torch.no_grad():
        inside = train_quantized(bundled, **options)
    assert inside.losses == train_quantized(bundled, **options).losses
    (module,) = inside.modules.values()
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("method", ["qat", "qlora"])
def test_rotations_that_run_with_the_model_go_on_running(bundled, method):
    """Replacing a layer must not drop what turns its inputs, nor turn them twice."""
    rotated = qviz.rotate_model(bundled, online=True).model
    options = {"bits": 8} if method == "qat" else {"base_options": {}}
    made = train_quantized(
        rotated, method, layers=["layers.0.mlp.down_proj"], steps=1, lr=1e-9, **options, **SHORT
    )
    text = "def add(a, b):\n    return a + b\n" * 8
    before = qviz.perplexity(rotated, text).value
    assert qviz.perplexity(made.model, text).value == pytest.approx(before, rel=0.02)
