"""Captured statistics against matrix products of our own, in float64."""

import threading

import pytest
import torch

from qviz.models.capture import capture, input_hooks
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.load import load_model
from qviz.models.reading import WindowBatch, token_windows
from qviz.models.statistics import Collector


def inputs_by_hand(model: LoadedModel, windows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Layer → X [tokens, in], each window run alone: no batch, no padding, no sharing."""
    rows: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, layer in linear_layers(model).items():
        seen = rows.setdefault(name, [])
        keep = lambda module, args, seen=seen: seen.append(args[0].flatten(0, -2))  # noqa: E731
        handles.append(layer.module.register_forward_pre_hook(keep))
    with torch.no_grad():
        for window in windows:
            model.model.base_model(input_ids=torch.tensor([window]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(seen).double() for name, seen in rows.items()}


def assert_is_of(calibration, x: torch.Tensor, *, rows: bool = True) -> None:
    assert calibration.tokens == len(x)
    scale = x.abs().max()
    hessian = 2 * x.T @ x / len(x)
    torch.testing.assert_close(calibration.hessian.double(), hessian, rtol=1e-4, atol=1e-4)
    assert torch.equal(calibration.hessian, calibration.hessian.T)
    close = {"rtol": 1e-4, "atol": float(scale) * 1e-5}
    torch.testing.assert_close(calibration.act_absmax.double(), x.abs().amax(0), **close)
    torch.testing.assert_close(calibration.act_absmean.double(), x.abs().mean(0), **close)
    if rows:
        torch.testing.assert_close(calibration.inputs.double(), x, **close)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_against_brute_force(loaded, words, kind):
    """Three texts of different lengths in padded batches of three, against one window at a time."""
    model = loaded[kind]
    texts = [words[:150], words[:41], words[200:275]]
    windows = token_windows(model, texts, None, 40)
    assert len({len(w) for w in windows}) > 1, "the test needs padding"
    captured = capture(model, texts, sequence_length=40, batch_size=3, keep_inputs=1000)
    assert list(captured) == list(linear_layers(model))
    by_hand = inputs_by_hand(model, windows)
    for name, calibration in captured.items():
        if name == "pooler.dense":
            continue  # reads one token of each window: its own test below
        assert_is_of(calibration, by_hand[name])
        assert calibration.layer == name


def test_a_pooler_counts_its_own_rows(loaded, words):
    captured = capture(loaded["bert"], words, ["pooler.dense"], sequence_length=32, max_tokens=100)
    windows = token_windows(loaded["bert"], words, 100, 32)
    assert captured["pooler.dense"].tokens == len(windows) == 4
    assert_is_of(captured["pooler.dense"], inputs_by_hand(loaded["bert"], windows)["pooler.dense"])


def test_a_text_given_twice_counts_twice(loaded, words):
    one = capture(loaded["llama"], words[:60], sequence_length=64)
    two = capture(loaded["llama"], [words[:60]] * 2, sequence_length=64)
    for name, calibration in one.items():
        assert two[name].tokens == 2 * calibration.tokens == 2 * len(words[:60].encode())
        torch.testing.assert_close(two[name].hessian, calibration.hessian)
        torch.testing.assert_close(two[name].inputs, calibration.inputs.repeat(2, 1))


def test_the_mean_is_over_tokens_not_over_windows(loaded):
    """A long and a short text: each token weighs the same."""
    long, short = "import this " * 8, "xy"
    name = "model.layers.1.mlp.down_proj"
    both = capture(loaded["llama"], [long, short], [name])[name]
    a = capture(loaded["llama"], long, [name])[name]
    b = capture(loaded["llama"], short, [name])[name]
    assert (a.tokens, b.tokens) == (96, 2)
    expected = (96 * a.hessian + 2 * b.hessian) / 98
    torch.testing.assert_close(both.hessian, expected, rtol=1e-4, atol=1e-4)


def test_several_layers_at_once_are_each_alone(loaded, words):
    names = list(linear_layers(loaded["llama"]))[:7]
    together = capture(loaded["llama"], words, names, max_tokens=200, keep_inputs=32)
    for name in names:
        alone = capture(loaded["llama"], words, [name], max_tokens=200, keep_inputs=32)[name]
        for part in ("inputs", "hessian", "act_absmax", "act_absmean"):
            assert torch.equal(getattr(alone, part), getattr(together[name], part))


def test_layers_with_one_input_share_the_work(loaded, words, monkeypatch):
    measured = []
    original = Collector._measure
    monkeypatch.setattr(
        Collector,
        "_measure",
        lambda self, layer, x: (measured.append(layer), original(self, layer, x))[1],
    )
    captured = capture(loaded["llama"], words, sequence_length=64, batch_size=8, max_tokens=256)
    assert len(measured) == 2 * 4, "q, k and v are one; o; gate and up are one; down"
    first = "model.layers.0.self_attn"
    assert captured[f"{first}.q_proj"].hessian is captured[f"{first}.v_proj"].hessian
    assert captured[f"{first}.q_proj"].hessian is not captured[f"{first}.o_proj"].hessian
    assert captured[f"{first}.q_proj"].layer == f"{first}.q_proj"


def batch_of(tokens: int) -> WindowBatch:
    return WindowBatch(torch.zeros(1, tokens, dtype=torch.long), first=0, number=0)


def test_layers_part_when_their_inputs_do():
    """a and b share their first input but not the second; c joins late."""
    x, y, z = torch.randn(5, 3), torch.randn(4, 3), torch.randn(6, 3)
    collector = Collector(torch.float32, keep=100, seed=0)
    collector.begin(batch_of(5))
    for layer, seen in [("a", x), ("b", x), ("a", y), ("b", z), ("c", z)]:
        collector.see(layer, seen)
    collector.flush()
    results = collector.results(["a", "b", "c"], "", "")
    for layer, expected in [("a", [x, y]), ("b", [x, z]), ("c", [z])]:
        assert_is_of(results[layer], torch.cat(expected).double())


def test_a_tensor_written_to_in_between_is_another_input():
    x = torch.ones(2, 3)
    collector = Collector(torch.float32, keep=10, seed=0)
    collector.begin(batch_of(2))
    collector.see("a", x)
    x.mul_(2)
    collector.see("b", x)
    collector.flush()
    results = collector.results(["a", "b"], "", "")
    assert (results["a"].act_absmax == 1).all()
    assert (results["b"].act_absmax == 2).all()


def test_a_layer_run_twice_on_one_tensor_counts_twice():
    x = torch.randn(2, 3)
    collector = Collector(torch.float32, keep=10, seed=0)
    collector.begin(batch_of(2))
    collector.see("a", x)
    collector.see("a", x)
    collector.flush()
    assert_is_of(collector.results(["a"], "", "")["a"], torch.cat([x, x]).double())


def test_the_sample_is_of_the_same_tokens_in_order_and_by_seed(loaded, words):
    name = "model.layers.0.mlp.down_proj"
    whole = capture(loaded["llama"], words, [name], max_tokens=300, keep_inputs=300)
    everything = whole[name].inputs

    def sample(**options):
        captured = capture(loaded["llama"], words, max_tokens=300, keep_inputs=20, **options)
        return captured[name].inputs

    kept = sample()
    distance = torch.cdist(kept, everything, compute_mode="donot_use_mm_for_euclid_dist")
    where = distance.argmin(dim=1)
    assert distance.amin(dim=1).max() < 1e-3
    assert (where.diff() > 0).all(), "in the order of the text"
    assert where[-1] > 150, "not only the beginning"
    assert torch.equal(sample(seed=0), kept)
    assert not torch.equal(sample(seed=1), kept)
    torch.testing.assert_close(sample(batch_size=1), kept, rtol=1e-4, atol=1e-4)


def test_float64_sums(loaded, words):
    name = "model.layers.1.mlp.down_proj"
    captured = capture(loaded["llama"], words, [name], hessian_dtype=torch.float64, max_tokens=300)
    x = captured[name].inputs.double()
    assert captured[name].hessian.dtype == torch.float64
    torch.testing.assert_close(captured[name].hessian, 2 * x.T @ x / 300, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_a_float64_hessian_is_the_mean_of_its_parts_by_tokens(checkpoints, words, kind, batch_size):
    """In float64 throughout, so that neither batches nor padding may show."""
    model = load_model(checkpoints[kind])
    model.model.double()
    texts = [words[:150], "def f(x): return x " * 3, "é ß lazy dog " * 5]
    how = {"sequence_length": 32, "max_tokens": 10**6, "hessian_dtype": torch.float64}
    parts = [capture(model, text, batch_size=1, **how) for text in texts]
    for name, whole in capture(model, texts, batch_size=batch_size, **how).items():
        tokens = sum(part[name].tokens for part in parts)
        mean = sum(part[name].hessian * part[name].tokens for part in parts) / tokens
        assert whole.tokens == tokens
        assert (whole.hessian - mean).abs().max() <= 1e-12 * mean.abs().max()


def test_dropout_takes_no_part(checkpoints, words):
    model = load_model(checkpoints["gpt2"])
    still = capture(model, words, max_tokens=100)
    model.model.train()
    model.model.transformer.h[0].eval()  # a part that was frozen on purpose
    moved = capture(model, words, max_tokens=100)
    assert all(torch.equal(still[name].hessian, moved[name].hessian) for name in still)
    assert model.model.training
    assert not model.model.transformer.h[0].training


def test_windows(loaded, words):
    model = loaded["llama"]
    windows = token_windows(model, [words[:100], words[:30]], 90, 40)
    ids = model.tokenizer(words)["input_ids"]
    # one from each text in turn; the last one is cut to reach 90
    assert windows == [ids[:40], ids[:30], ids[40:60]]
    special = token_windows(loaded["bert"], "word " * 20, None, 40)
    assert all(w[0] == 1 and w[-1] == 2 for w in special), "[CLS] and [SEP] around each window"
    assert sum(len(w) - 2 for w in special) == 100
    assert len(token_windows(model, words, None, None)[0]) == 128, "the model's positions"


def hook_count(model: LoadedModel) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.model.modules())


def test_hooks_are_always_removed(loaded, words):
    model = loaded["llama"]
    capture(model, words, max_tokens=20)
    assert hook_count(model) == 0

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(model, words, max_tokens=20, progress=interrupt)
    assert hook_count(model) == 0

    def boom(module, args):
        raise RuntimeError("boom")

    breaking = model.model.model.layers[1].mlp.register_forward_pre_hook(boom)
    with pytest.raises(RuntimeError, match="boom"):
        capture(model, words, max_tokens=20)
    breaking.remove()
    assert hook_count(model) == 0
    with pytest.raises(ZeroDivisionError), input_hooks(linear_layers(model), lambda n, x: 1 / 0):
        model.model(input_ids=torch.tensor([[1, 2]]))
    assert hook_count(model) == 0


def test_another_thread_is_not_captured(loaded):
    model, seen = loaded["llama"], []
    ids = torch.tensor([[5, 6, 7]])

    def run():
        with torch.no_grad():
            model.model(input_ids=ids)

    with input_hooks(linear_layers(model), lambda name, x: seen.append(name)):
        other = threading.Thread(target=run)
        other.start()
        other.join()
        assert seen == []
        run()
        assert len(seen) == 14


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_named(loaded, words, bad):
    model = loaded["llama"]
    poison = {"window": 0}

    def spoil(module, args):
        x = args[0].clone()
        poison["window"] += len(x)
        if poison["window"] == 4:  # the second batch of two
            x[1, 3, 5] = bad
        return (x,)

    handle = model.model.model.layers[0].mlp.down_proj.register_forward_pre_hook(spoil)
    try:
        with pytest.raises(ValueError, match=r"0\.mlp\.down_proj.*window 3, token 3, channel 5"):
            capture(model, words, sequence_length=16, max_tokens=64, batch_size=2)
    finally:
        handle.remove()
    assert hook_count(model) == 0


def test_what_is_asked_is_checked(loaded, words, checkpoints):
    model = loaded["llama"]
    for options, said in [
        ({"layers": ["mlp.down_pro"]}, "unknown layer"),
        ({"layers": ["lm_head"]}, "lm_head cannot be used: .*tied"),
        ({"layers": []}, "layers is empty"),
        ({"sequence_length": 129}, "positions for only 128"),
        ({"max_tokens": 0}, "max_tokens must be from 1"),
        ({"keep_inputs": 0}, "keep_inputs"),
    ]:
        with pytest.raises(ValueError, match=said):
            capture(model, words, **options)
    for texts in ("", [], ["", " "]):
        with pytest.raises(ValueError, match="texts are empty"):
            capture(model, texts)
    with pytest.raises(TypeError, match="text 1 must be a string"):
        capture(model, ["a", 5])
    with pytest.raises(TypeError, match="hessian_dtype"):
        capture(model, words, hessian_dtype=torch.float16)
    with pytest.raises(ValueError, match="no tokenizer"):
        capture(LoadedModel(model.model, None, "bare", "decoder"), words)


def test_hessians_that_will_not_fit_are_refused(loaded, words, monkeypatch):
    monkeypatch.setattr("qviz.core.memory.available_memory", lambda: 10_000)
    with pytest.raises(MemoryError, match="fewer layers at a time"):
        capture(loaded["llama"], words)
    assert capture(loaded["llama"], words, ["layers.0.self_attn.q_proj"])  # 4 kB


def test_progress_and_source(loaded, words):
    steps = []
    captured = capture(
        loaded["gpt2"],
        words,
        sequence_length=16,
        max_tokens=80,
        batch_size=2,
        source="words",
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(2, 5), (4, 5), (5, 5)]
    assert {c.source for c in captured.values()} == {"words"}


def test_half_precision_models_give_float32_statistics(checkpoints, words):
    from qviz.models.load import load_model

    model = load_model(checkpoints["llama-bf16"], dtype=torch.bfloat16)
    for calibration in capture(model, words, max_tokens=50).values():
        assert {calibration.inputs.dtype, calibration.hessian.dtype} == {torch.float32}
