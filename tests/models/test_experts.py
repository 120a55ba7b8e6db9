"""Mixtures of experts: each expert's matrix is a layer, wherever layers are named."""

import copy

import pytest
import torch
import transformers
from torch import nn

import qviz
from qviz.models.checkpoint import list_layers
from qviz.models.experts import ExpertStack, separate_experts
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.load import load_model
from qviz.models.reading import run
from tests.models.zoo import ZOO, directory

# Fused [experts, out, in] from one file each; the same, files and modules named differently;
# [experts, in, out] with biases; experts that read every row; rows one below the other.
MIXTURES = ("Mixtral", "Qwen3-MoE", "GPT-OSS", "DeepSeek-V3", "Llama 4, text", "DBRX", "JetMoE")
TEXT = "def read(path):\n    return open(path).read()\n" * 12


@pytest.fixture(scope="module")
def mixtures() -> dict[str, LoadedModel]:
    return {name: load_model(directory(name)) for name in MIXTURES}


def experts_of(model: LoadedModel) -> dict[str, object]:
    return {n: one for n, one in linear_layers(model).items() if one.stack is not None}


@pytest.mark.parametrize("name", MIXTURES)
def test_separated_experts_compute_what_transformers_does(name, mixtures):
    """And what was a parameter is one again in state_dict, bit for bit."""
    cls = type(mixtures[name].model)
    plain = cls.from_pretrained(directory(name), experts_implementation="eager").eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = plain(input_ids=ids, use_cache=False).logits
    logits = run(mixtures[name], ids).logits
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    ours, theirs = mixtures[name].model.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", MIXTURES)
def test_lists_files_and_modules_know_the_same_experts(name, mixtures):
    listed = {layer.name: layer.shape for layer in list_layers(directory(name))}
    layers = linear_layers(mixtures[name])
    assert listed == {n: (one.out_features, one.in_features) for n, one in layers.items()}
    experts = experts_of(mixtures[name])
    assert len(experts) >= 8
    for layer in experts:
        weight = qviz.load_layer(directory(name), layer)
        assert torch.equal(weight, layers[layer].weight)
        stack, _, number = layer.rpartition(".")
        assert torch.equal(qviz.load_layer(directory(name), f"{stack}[{number}]"), weight)


def test_a_saved_model_is_an_ordinary_checkpoint(mixtures, tmp_path):
    """Quantized experts are in it, under transformers' own names."""
    quantized = qviz.quantize_model(mixtures["Mixtral"], bits=4, group_size=32)
    quantized.model.model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, experts_implementation="eager"
    ).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, run(quantized.model, ids).logits)


def test_inputs_of_an_expert_are_the_tokens_routed_to_it(mixtures):
    """Against the router's own choice, computed here from the hidden states."""
    model = mixtures["Mixtral"]
    seen = qviz.capture(model, TEXT, max_tokens=150, sequence_length=50, keep_inputs=1000)
    block = model.model.model.layers[0].mlp
    hidden: list[torch.Tensor] = []
    handle = block.register_forward_pre_hook(lambda m, args: hidden.append(args[0].flatten(0, 1)))
    try:
        qviz.capture(model, TEXT, ["model.layers.1.self_attn.q_proj"], max_tokens=150,
                     sequence_length=50)  # fmt: skip
    finally:
        handle.remove()
    x = torch.cat(hidden)
    chosen = block.gate(x)[2]
    total = 0
    for e in range(len(block.experts.gate_up_proj)):
        rows = x[(chosen == e).any(dim=1)].double()
        layer = f"model.layers.0.mlp.experts.gate_up_proj.{e}"
        if not len(rows):
            assert layer not in seen
            continue
        expected = 2 * rows.T @ rows / len(rows)
        total += len(rows)
        assert seen[layer].tokens == len(rows)
        assert torch.allclose(seen[layer].hessian.double(), expected, rtol=1e-4, atol=1e-5)
        middle = seen[f"model.layers.0.mlp.experts.down_proj.{e}"]
        assert middle.tokens == len(rows)
    assert total == len(x) * chosen.shape[1]


@pytest.mark.parametrize("name", MIXTURES)
def test_a_calibration_does_not_depend_on_the_batch(name, mixtures):
    one, four = (
        qviz.capture(mixtures[name], TEXT, max_tokens=220, sequence_length=50, batch_size=b)
        for b in (1, 4)
    )
    assert one.keys() == four.keys()
    for layer, alone in one.items():
        assert alone.tokens == four[layer].tokens
        off = (alone.hessian - four[layer].hessian).norm() / alone.hessian.norm()
        assert off < 1e-5, layer


def starved(model: LoadedModel, expert: int) -> LoadedModel:
    """The model with a router that never chooses one expert of the first block."""
    twin = copy.deepcopy(model)
    gate = twin.model.model.layers[0].mlp.gate
    original = gate.forward

    def forward(hidden: torch.Tensor):
        logits, _, _ = original(hidden)
        logits = logits.clone()
        logits[:, expert] = -torch.inf
        scores, chosen = torch.topk(logits.float().softmax(-1), gate.top_k, dim=-1)
        return logits, scores / scores.sum(-1, keepdim=True), chosen

    gate.forward = forward
    return twin


@pytest.mark.parametrize("sequential", [False, True])
def test_an_expert_without_tokens_is_rounded_and_said(mixtures, sequential):
    model = starved(mixtures["Mixtral"], 2)
    options = {"bits": 3, "group_size": 32}
    if sequential:
        calibration = qviz.Sequential(TEXT, max_tokens=200, sequence_length=50)
    else:
        calibration = qviz.capture(model, TEXT, max_tokens=200, sequence_length=50)
    done = qviz.quantize_model(model, "gptq", calibration=calibration, **options)
    name = "model.layers.0.mlp.experts.gate_up_proj.2"
    weight = linear_layers(model)[name].weight
    assert done.tensors[name].info["calibration"]["tokens"] == 0
    assert "uncorrelated" in done.tensors[name].info["calibration"]["instead"]
    rounded = qviz.quantize(weight, "affine", convention="gptq", **options)
    assert torch.equal(done.tensors[name].codes, rounded.codes)
    (none,) = [note for note in done.notes if "saw no token" in note]
    assert none.startswith("expert matrices that saw no token: 2 (")
    assert name in none
    assert none in repr(done)
    other = done.tensors["model.layers.0.mlp.experts.gate_up_proj.0"].info["calibration"]
    assert other["tokens"] > 0
    assert "instead" not in other


def test_few_tokens_are_said(mixtures):
    calibration = qviz.capture(mixtures["Mixtral"], TEXT, max_tokens=40, sequence_length=40)
    done = qviz.quantize_model(
        mixtures["Mixtral"], "gptq", calibration=calibration, bits=4, group_size=32
    )
    layers = linear_layers(mixtures["Mixtral"])
    few = [
        n
        for n, c in calibration.items()
        if layers[n].stack is not None and c.tokens < layers[n].in_features
    ]
    (note,) = [note for note in done.notes if "fewer tokens" in note]
    assert f"fewer tokens than they have inputs: {len(few)} (" in note
    assert f"the fewest {min(calibration[n].tokens for n in few)};" in note


@pytest.mark.parametrize("name", MIXTURES)
def test_most_of_a_mixture_is_quantized(name, mixtures):
    """Share, ledger and bytes count the experts; an expert's matrix is what its codes say."""
    model = mixtures[name]
    done = qviz.quantize_model(model, bits=4, group_size=16, layers="*")
    experts = experts_of(model)
    assert experts.keys() <= done.tensors.keys()
    weights = sum(q.ledger.weights for q in done.tensors.values())
    total = sum(p.numel() for p in model.model.parameters())
    assert done.share == weights / total
    assert done.share > 0.6
    now = linear_layers(done.model)
    for layer in experts:
        assert torch.equal(now[layer].weight, done.tensors[layer].dequantize())
    plain = total * 2
    assert done.nbytes() == (
        sum(q.ledger.nbytes for q in done.tensors.values()) + (total - weights) * 2
    )
    assert done.nbytes() < plain


def test_methods_that_quantize_activations_run_in_experts(mixtures):
    """LLM.int8() multiplies in the expert's place, with the tokens routed to it."""
    model = mixtures["Qwen3-MoE"]
    done = qviz.quantize_model(model, "llm_int8", layers="*.experts.*")
    ids = torch.arange(3, 60)[None]
    exact, eight = run(model, ids).logits, run(done.model, ids).logits
    off = float((eight - exact).norm() / exact.norm())
    assert 0 < off < 0.05


def test_each_method_on_each_expert(mixtures):
    """Error per expert: with calibration the outputs on its own tokens get closer, on average."""
    model = mixtures["Mixtral"]
    calibration = qviz.capture(model, TEXT, max_tokens=400, sequence_length=100)
    layers = [n for n in experts_of(model) if n in calibration]
    errors: dict[str, list[float]] = {"affine": [], "gptq": []}
    for name in layers:
        weight = linear_layers(model)[name].weight
        table = qviz.sweep(
            weight, ("affine", "gptq"), [3], calibration=calibration[name], group_size=32
        )
        for row in table:
            errors[row["method"]].append(row["output_error"])
    assert sum(errors["gptq"]) < 0.95 * sum(errors["affine"])


def test_the_models_code_may_do_with_a_stack_what_it_does_with_a_parameter():
    torch.manual_seed(0)
    parameter = torch.randn(3, 4, 6)
    stack = ExpertStack(parameter, 3, turned=False)
    seen: list[int] = []
    for i, layer in enumerate(stack.children()):
        layer.register_forward_pre_hook(lambda m, args, i=i: seen.append(i))
    x = torch.randn(5, 6)
    bias = torch.randn(4)
    assert torch.equal(nn.functional.linear(x, stack[1]), nn.functional.linear(x, parameter[1]))
    with_bias = nn.functional.linear(x, stack[torch.tensor(2)], bias)
    assert torch.allclose(with_bias, nn.functional.linear(x, parameter[2], bias))
    assert torch.equal(x @ stack[0].T, x @ parameter[0].T)
    rows = torch.randn(3, 5, 6)
    rows[1, :3] = 0
    product = torch.bmm(rows, stack.transpose(1, 2))
    assert torch.allclose(product, torch.bmm(rows, parameter.transpose(1, 2)), atol=1e-6)
    assert seen == [1, 2, 0, 0, 1, 2]
    assert torch.equal(torch.mul(stack[1], 2), parameter[1] * 2)  # anything else: a tensor
    assert torch.equal(torch.sum(stack), parameter.sum())
    assert seen == [1, 2, 0, 0, 1, 2]
    assert (stack.shape, stack.dtype, len(stack)) == (parameter.shape, torch.float32, 3)
    with pytest.raises(TypeError, match="only the last two axes"):
        stack.transpose(0, 1)


def test_every_stack_in_the_zoo_is_separated():
    """No 3-D parameter of experts is left in any mixture of the zoo."""
    for name, one in ZOO.items():
        if one.kind != "experts":
            continue
        model = one.model()
        before = sum(p.numel() for p in model.parameters())
        separate_experts(model)
        assert sum(p.numel() for p in model.parameters()) == before
        left = [n for n, p in model.named_parameters() if p.ndim == 3 and "expert" in n.lower()]
        assert not left, (name, left)


def test_an_expert_in_brackets_is_the_same_layer_from_the_cache_and_in_per_layer(cache, mixtures):
    where, text = directory("Mixtral"), "def read(path)"
    starved = next(n for n in experts_of(mixtures["Mixtral"]) if n not in
                   qviz.capture(mixtures["Mixtral"], text))  # fmt: skip
    for _ in range(2):  # from the model, and from the disk
        one = qviz.load_calibration(
            where, "model.layers.0.mlp.experts.gate_up_proj[0].weight", text=text
        )
        assert one.layer == "model.layers.0.mlp.experts.gate_up_proj.0"
        with pytest.raises(ValueError, match=rf"^{starved}: no token .* routed to this expert"):
            qviz.load_calibration(where, starved, text=text)
    stack, _, number = starved.rpartition(".")
    done = qviz.quantize_model(
        mixtures["Mixtral"], bits=4, group_size=32, per_layer={f"{stack}[{number}]": {"bits": 8}}
    )
    assert int(done.tensors[starved].codes.max()) > 15


def test_experts_that_nobody_looked_at_are_not_called_without_tokens(mixtures):
    model = mixtures["Mixtral"]
    attention = qviz.capture(model, TEXT, ["*self_attn*"], max_tokens=60)
    options = {"calibration": attention, "bits": 4, "group_size": 32}
    with pytest.raises(ValueError, match=r"experts\.\S+: the calibration has no entry for it"):
        qviz.quantize_model(model, "gptq", **options)
    done = qviz.quantize_model(model, "gptq", on_error="skip", **options)
    assert done.tensors.keys() == attention.keys()
    assert not done.notes


@pytest.mark.parametrize("name", ["Llama 4, text", "PhiMoE"])
def test_a_router_that_derives_from_linear_is_no_linear_layer(name):
    """It gives out scores: a product in its place would not."""
    model = load_model(directory(name))
    routers = [n for n, m in model.model.named_modules() if type(m).__name__.endswith("Router")]
    assert routers
    assert all(isinstance(model.model.get_submodule(n), nn.Linear) for n in routers)
    assert linear_layers(model).keys().isdisjoint(routers)
    assert "Router" in qviz.models.layers.skipped_layers(model)[routers[0]]
    done = qviz.quantize_model(model, "llm_int8")
    ids = torch.arange(3, 40)[None]
    exact, eight = run(model, ids).logits, run(done.model, ids).logits
    assert 0 < float((eight - exact).norm() / exact.norm()) < 0.4


def test_a_calibration_knows_what_its_router_added():
    """DeepSeek-V3 chooses experts by a buffer that is stored and no parameter."""
    model = load_model(directory("DeepSeek-V3"))
    calibration = qviz.capture(model, TEXT, ["*self_attn*"], max_tokens=60)
    twin = copy.deepcopy(model)
    twin.model.model.layers[1].mlp.gate.e_score_correction_bias.add_(torch.tensor([1.0, 0, 0, 0]))
    options = {"calibration": calibration, "layers": "*self_attn.o_proj", "group_size": 32}
    assert qviz.quantize_model(model, "gptq", **options).tensors
    with pytest.raises(ValueError, match="captured from other weights"):
        qviz.quantize_model(twin, "gptq", **options)


def test_an_expert_without_tokens_at_run_time_multiplies_nothing(mixtures):
    """Quantized activations: a text that leaves experts out is no error."""
    model = mixtures["Llama 4, text"]
    done = qviz.quantize_model(model, "llm_int8", layers="*.experts.*")
    exact, eight = (run(m, torch.tensor([[5, 6]])).logits for m in (model, done.model))
    assert float((eight - exact).norm() / exact.norm()) < 0.1
