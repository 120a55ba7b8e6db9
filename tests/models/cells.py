"""What qviz can do with a model of the zoo: one check for each column of docs/compatibility.md.

A check compares what qviz computes with transformers alone, or with a few lines of obvious
arithmetic; it returns what to show ("" for plain ok), and raises Wrong for a wrong value. `judge`
runs one and sorts what happens: ok, refused in words by qviz, or a failure, to which every
exception counts that comes from below.
"""

import copy
import inspect
import linecache
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from zoo import ZOO, Architecture, directory

import qviz
from qviz.core.calibration import Calibration
from qviz.models.checkpoint import list_layers
from qviz.models.fold import feeds, fold_input_scales
from qviz.models.sequential import Sequential, follow

SECONDS = 120  # for one check
NEW_TOKENS = 24
REFUSALS = (ValueError, TypeError, MemoryError, FileNotFoundError)
PACKAGE = Path(qviz.__file__).parent
NOTHING = "–"  # a check that cannot be made

# Of different lengths, two of them equal, so that some windows share a batch and some do not; all
# within one window.
TEXTS = (
    "def read(self, path): return the value",
    "import os, sys\nfor name in names: print(name, end='')",
    "the words of a line",
    "def read(self, path): return the value",
    "class Reader(object):\n    def __init__(self, stream): self.stream = stream\n",
)
PROTEINS = (
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ",
    "GSSGSSGLLDKWEEIRRSL",
    "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTK",
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ",
)
FIRST_OF_EXPERT = ("gate_up_proj", "up_proj", "w1", "v1")  # those that read the hidden states
KINDS = {"recurrent": "decoder", "experts": "decoder", "part": "headless"}


class Wrong(Exception):
    """A value that is not what it has to be."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    state  "ok", "refused", "fails", or NOTHING
    words  what to show beside ok, the sentence of a refusal, or what went wrong
    """

    state: str
    words: str = ""


class Case:
    """A model of the zoo, loaded; what several checks need is computed once."""

    def __init__(self, name: str) -> None:
        self.zoo: Architecture = ZOO[name]
        self.path = directory(name)
        self.texts = PROTEINS if self.zoo.tokenizer == "protein" else TEXTS

    @cached_property
    def loaded(self) -> Any:
        return qviz.load_model(self.path)

    @cached_property
    def original(self) -> Any:
        """The model as transformers reads it, without qviz."""
        cls = type(self.zoo.model())
        model = cls.from_pretrained(self.path, dtype=torch.float32).eval()
        return model.requires_grad_(False)

    @cached_property
    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self.path) if self.zoo.tokenizer else None

    @cached_property
    def ids(self) -> list[torch.Tensor]:
        """The token ids of each text [1, tokens]."""
        return [torch.tensor([self.tokenizer(text)["input_ids"]]) for text in self.texts]

    @cached_property
    def runs(self) -> bool:
        """Whether transformers alone can run the model on these texts."""
        try:
            outputs(self.original, self.ids[0])
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return False
        return True

    @cached_property
    def captured(self) -> dict[str, Calibration]:
        return self.capture(4)

    def capture(self, batch_size: int) -> dict[str, Calibration]:
        return qviz.capture(
            self.loaded,
            list(self.texts),
            max_tokens=100_000,
            batch_size=batch_size,
            hessian_dtype=torch.float64,
        )

    @cached_property
    def affine(self) -> Any:
        return qviz.quantize_model(self.loaded, "affine", bits=4, group_size=None)


# ------------------------------------------------------------------------------------------ judging


def judge(check: Callable[[Case], str], case: Case, seconds: int = SECONDS) -> Outcome:
    """Run one check and sort what happens."""
    return sort_out(lambda: check(case), lambda words: _without_names(words, case), seconds)


def sort_out(
    call: Callable[[], str], rename: Callable[[str], str] = str, seconds: int = SECONDS
) -> Outcome:
    """What a call comes to: what it returns, a refusal, or a failure; `rename` mends the words."""
    try:
        with _time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Outcome("ok", call())
    except Wrong as wrong:
        return Outcome("fails", str(wrong))
    except TimeoutError:
        return Outcome("fails", f"not done after {seconds} s")
    except Exception as error:  # noqa: BLE001  whatever comes is what is to be shown
        words = rename(str(error))
        if isinstance(error, REFUSALS) and _raised_by_qviz(error):
            return Outcome("refused", words)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = "/".join(Path(frame.filename).parts[-2:])
        return Outcome("fails", f"{type(error).__name__} in {place}: {words}".rstrip(": "))


def _raised_by_qviz(error: BaseException) -> bool:
    """Whether a `raise` of qviz made it, in words: not one that a call inside happened to make."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = PACKAGE in Path(last.filename).parents
    line = linecache.getline(last.filename, last.lineno or 0)
    return ours and "raise " in line and len(str(error).split()) > 4


def _without_names(words: str, case: Case) -> str:
    """The sentence as it would stand for every model: its path and class left open."""
    words = words.replace(str(case.path), "MODEL").replace(case.path.name, "MODEL")
    names = {type(case.original).__name__: "CLASS"}
    with_base = getattr(case.original, "base_model", None)
    if with_base is not None:
        names[type(with_base).__name__] = "CLASS"
    for name in sorted(names, key=len, reverse=True):
        words = words.replace(name, names[name])
    kind = re.escape(str(getattr(case.original.config, "model_type", "") or "TYPE"))
    return " ".join(re.sub(rf"\b{kind}\b", "TYPE", words, count=1).split())


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def require(condition: bool, wrong: str) -> None:
    if not condition:
        raise Wrong(wrong)


def twin(model: Any) -> Any:
    return replace(model, model=copy.deepcopy(model.model))


def outputs(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits, or else the first thing that a model gives out, of one text."""
    with torch.no_grad():
        given = model(input_ids=ids, **_no_cache(model))
    return given.logits if getattr(given, "logits", None) is not None else given[0]


def _no_cache(model: nn.Module) -> dict[str, bool]:
    has = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if has else {}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """‖one − other‖ / ‖other‖; infinite where the shapes differ or something is not finite."""
    if one.shape != other.shape or not bool(torch.isfinite(one).all()):
        return float("inf")
    return float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30))


def require_same(model: nn.Module, other: nn.Module, case: Case, within: float, what: str) -> None:
    for ids in case.ids[:3] if case.runs else []:
        try:
            got = outputs(model, ids)
        except Exception as error:
            raise Wrong(f"{what}: does not run: {type(error).__name__}: {error}") from error
        off = apart(got, outputs(other, ids))
        require(off <= within, f"{what}: outputs differ by {off:.2g} of their size")


# ------------------------------------------------------------------------------------------- checks


def load(case: Case) -> str:
    """The class that config.json names, with every weight as it was saved, and the right kind."""
    model = case.loaded.model
    own, wanted = model.state_dict(), case.original.state_dict()
    require(
        type(model) is type(case.original),
        f"loaded as {type(model).__name__}, config.json names {type(case.original).__name__}",
    )
    require(own.keys() == wanted.keys(), "parameters have other names than in transformers")
    differs = [name for name in wanted if not torch.equal(own[name], wanted[name])]
    require(not differs, f"{len(differs)} parameters differ, {differs[:1]}")
    if case.runs:
        require_same(model, case.original, case, 1e-5, "loaded")
    expected = KINDS.get(case.zoo.kind, case.zoo.kind)
    if expected in ("decoder", "headless", "encoder"):
        kind = case.loaded.kind
        require(kind == expected, f"is called {kind}, is {expected}")
    return ""


def layers(case: Case) -> str:
    """Files and model name the same layers, and load_layer reads what the model multiplies."""
    listed = {info.name: info.shape for info in list_layers(case.path)}
    known = qviz.linear_layers(case.loaded)
    require(bool(known), "no linear layers")
    for name, layer in known.items():
        require(name in listed, f"{_open(name)} is a layer of the model, not of its file")
        require(listed[name] == tuple(layer.weight.shape), f"{_open(name)} has two shapes")
        read = qviz.load_layer(case.path, name)
        require(torch.equal(read, layer.weight), f"load_layer reads another {_open(name)}")
    more = [name for name in listed if name not in known]
    require(not more, f"{_open(more[0]) if more else ''} is a layer of the file, not of the model")
    return str(len(known))


def file_layers(case: Case) -> str:
    """For a model that is not loaded: every listed layer can be read."""
    listed = list_layers(case.path)
    for info in listed:
        weight = qviz.load_layer(case.path, info.name)
        require(tuple(weight.shape) == info.shape, f"{_open(info.name)} has two shapes")
        require(bool(torch.isfinite(weight).all()), f"{_open(info.name)} is not finite")
    return f"{len(listed)}, in the file"


def share(case: Case) -> str:
    """How much of all parameters but embeddings and output head went through the quantizer."""
    model = case.loaded.model
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None and hasattr(head, "weight"):
        tables.add(id(head.weight))
    every = sum(p.numel() for p in model.parameters() if id(p) not in tables)
    names = {id(p): name for name, p in model.named_parameters()}
    touched = {_parameter(name) for name in case.affine.tensors}
    as_others = sorted(names[table] for table in tables if names.get(table) in touched)
    require(not as_others, f"{as_others} quantized, an output head or a table of embeddings")
    quantized = sum(q.ledger.weights for q in case.affine.tensors.values())
    require(quantized <= every, "more weights quantized than there are: some count twice")
    return f"{100 * quantized / every:.0f} %"


def capture(case: Case) -> str:
    """The same in batches of one and of four, and what hooks on single texts collect."""
    four, one = case.captured, case.capture(1)
    require(four.keys() == one.keys(), "other layers at another batch size")
    for name in four:
        off = apart(four[name].hessian, one[name].hessian)
        tokens = (four[name].tokens, one[name].tokens)
        require(off <= 1e-4, f"{_open(name)}: Hessians of batch 1 and 4 differ by {off:.2g}")
        require(
            tokens[0] == tokens[1],
            f"{_open(name)}: batch 4 counts {tokens[0]} rows of input, batch 1 {tokens[1]}",
        )
    for name, (hessian, rows) in (watched(case) | routed(case)).items():
        require(name in four, f"{_open(name)} runs, and was not captured")
        off = apart(four[name].hessian, hessian)
        require(
            off <= 1e-4,
            f"{_open(name)}: the Hessian differs by {off:.2g} from that of single texts "
            f"({four[name].tokens} and {rows} rows)",
        )
    long = " ".join(case.texts) * 8  # longer than any of these models has positions for
    some = list(four)[:1]
    require(qviz.capture(case.loaded, long, some, max_tokens=400)[some[0]].tokens > 0, "no tokens")
    return ""


def watched(case: Case) -> dict[str, tuple[torch.Tensor, int]]:
    """Layer → 2·XᵀX / rows and how many rows, from plain hooks, one text at a time.

    Where a module pads by itself to whole windows or blocks, what it appended does not count.
    """
    seen: dict[str, list[tuple[torch.Tensor, int]]] = {}
    handles, tokens = [], 0

    def hook(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = (args[0] if args else kwargs["input"]).detach().double()
            seen.setdefault(name, []).append((x, tokens))

        return see

    for name in qviz.linear_layers(case.loaded):
        handles += [
            module.register_forward_pre_hook(hook(name), with_kwargs=True)
            for module in _modules_of(case.loaded.model, name)
        ]
    try:
        for ids in case.ids:
            tokens = ids.shape[1]
            outputs(case.loaded.model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _second_moment(calls) for name, calls in seen.items()}


def routed(case: Case) -> dict[str, tuple[torch.Tensor, int]]:
    """The same for the first matrices of experts, from what transformers routes to each.

    For experts that are called with (hidden states, indices, weights), as nearly all are.
    """
    known = qviz.linear_layers(case.loaded)
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            x, chosen = list(given.values())[:2]
            for layer, expert in firsts[name]:
                rows = x.reshape(-1, x.shape[-1])[(chosen == expert).any(dim=-1)]
                seen.setdefault(layer, []).append(rows.detach().double())

        return see

    firsts: dict[str, list[tuple[str, int]]] = {}
    for name, module in case.original.named_modules():
        signature = list(inspect.signature(module.forward).parameters)
        if signature[1:3] in (
            ["top_k_index", "top_k_weights"],
            ["router_indices", "routing_weights"],
        ):
            # LongCat has more matrices than experts that multiply: the others do nothing
            count = min([len(p) for p in module.parameters(recurse=False)] or [10**9])
            firsts[name] = [
                (layer, int(layer.rpartition(".")[2]))
                for layer in known
                if layer.startswith(f"{name}.") and layer.split(".")[-2] in FIRST_OF_EXPERT
            ]
            firsts[name] = [(layer, expert) for layer, expert in firsts[name] if expert < count]
            require(bool(firsts[name]), f"{_open(name)}: no layers of experts")
            handles.append(module.register_forward_pre_hook(hook(name), with_kwargs=True))
    try:
        for ids in case.ids:
            outputs(case.original, ids)
    finally:
        for handle in handles:
            handle.remove()
    moments = {}
    for layer, parts in seen.items():
        rows = torch.cat(parts)
        if len(rows):
            moments[layer] = (2 * rows.T @ rows / len(rows), len(rows))
        else:
            require(layer not in case.captured, f"{_open(layer)} gets no tokens, and was captured")
    return moments


def _second_moment(calls: Sequence[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, int]:
    """2·XᵀX / rows of the inputs in calls (x, tokens of the text)."""
    lengths = {x[..., 0].numel() for x, _ in calls}
    constant = len(lengths) == 1 and len({tokens for _, tokens in calls}) > 1
    parts = []
    for x, tokens in calls:
        rows = x.reshape(-1, x.shape[-1])
        padded = len(rows) > tokens and len(rows) % tokens and not constant
        parts.append(rows[:tokens] if padded else rows)
    rows = torch.cat(parts)
    return 2 * rows.T @ rows / len(rows), len(rows)


def _modules_of(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that multiply by this layer's weight; none for an expert, one of several
    matrices in a parameter."""
    if "[" in name:
        return []
    weight = model.get_submodule(name).weight
    return [module for module in model.modules() if getattr(module, "weight", None) is weight]


def affine(case: Case) -> str:
    """Every layer is what quantizing its weight gives; all else, and the original, unchanged."""
    before = {name: value.clone() for name, value in case.loaded.model.state_dict().items()}
    made = case.affine
    after = case.loaded.model.state_dict()
    require(
        all(torch.equal(before[name], after[name]) for name in before), "the original is changed"
    )
    _require_put(made, case)
    for name, tensor in made.tensors.items():
        weight = qviz.linear_layers(case.loaded)[name].weight
        plain = qviz.quantize(weight, "affine", bits=4, group_size=None)
        require(torch.equal(tensor.dequantize(), plain.dequantize()), f"{_open(name)}: other codes")
    return ""


def _require_put(made: Any, case: Case) -> None:
    """The copy's layers are the dequantized ones, its other parameters the original's."""
    quantized = qviz.linear_layers(made.model)
    own, original = dict(made.model.model.named_parameters()), case.loaded.model.state_dict()
    for name, tensor in made.tensors.items():
        weight = quantized[name].weight
        require(apart(tensor.dequantize(), weight) < 1e-6, f"{_open(name)} in the copy is another")
    touched = {_parameter(name) for name in made.tensors}
    for name, value in own.items():
        require(
            name in touched or torch.equal(value, original[name]), f"{_open(name)} is changed too"
        )
    if case.runs:
        off = apart(outputs(made.model.model, case.ids[0]), outputs(case.loaded.model, case.ids[0]))
        require(off < float("inf"), "the quantized copy gives out something else, or NaN")


def _parameter(layer: str) -> str:
    """The parameter that holds a layer: an expert is one matrix of several in it."""
    return layer.partition("[")[0] if "[" in layer else f"{layer}.weight"


def gptq(case: Case) -> str:
    """All that affine quantizes, put in place, at no more output error than rounding."""
    made = qviz.quantize_model(
        case.loaded,
        "gptq",
        calibration=case.captured,
        bits=4,
        group_size=None,
        on_error="skip",
    )
    _require_put(made, case)
    known = qviz.linear_layers(case.loaded)
    errors = {"gptq": 0.0, "rounding": 0.0}
    for name, tensor in made.tensors.items():
        if name not in case.captured:
            continue
        weight, hessian = known[name].weight.double(), case.captured[name].hessian
        plain = qviz.quantize(
            known[name].weight, "affine", bits=4, group_size=None, convention="gptq"
        )
        size = torch.trace(weight @ hessian @ weight.T).clamp(min=1e-30)
        for key, what in (("gptq", tensor), ("rounding", plain)):
            off = weight - what.dequantize().double()
            errors[key] += float(torch.trace(off @ hessian @ off.T) / size)
    require(
        errors["gptq"] <= errors["rounding"],
        f"more output error than rounding: {errors['gptq']:.3g} and {errors['rounding']:.3g}",
    )
    return _left(made, case)


def _left(made: Any, case: Case) -> str:
    """What was left of the layers that affine quantizes, and why."""
    left = [name for name in made.skipped if name in case.affine.tensors]
    if not left:
        return ""
    kinds = ", ".join(sorted({_open(name).rpartition(".")[2] for name in left}))
    return f"left: {kinds}, as {_without_names(made.skipped[left[0]], case)}"


def sequential(case: Case) -> str:
    """With nothing quantized each layer sees what a capture sees; and GPTQ runs that way."""
    seen: dict[str, Calibration | None] = {}

    def make(name: str, layer: object, calibration: Calibration | None) -> str:
        seen[name] = calibration
        return "only looking"

    def put(*_: object) -> None:
        raise AssertionError("nothing was quantized")

    how = Sequential(list(case.texts), max_tokens=100_000, hessian_dtype=torch.float64)
    chosen = case.affine.tensors
    follow(twin(case.loaded), list(chosen), how, make, put)
    require(seen.keys() == chosen.keys(), "some layers had no turn")
    for name, one in seen.items():
        there = case.captured.get(name)
        require((one is None) == (there is None), f"{_open(name)} runs here and not there")
        if one is not None and there is not None:
            off = apart(one.hessian, there.hessian)
            require(
                off <= 1e-4, f"{_open(name)}: the Hessian differs from a capture's by {off:.2g}"
            )
            require(one.tokens == there.tokens, f"{_open(name)}: other tokens than in a capture")
    made = qviz.quantize_model(
        case.loaded, "gptq", calibration=how, bits=4, group_size=None, on_error="skip"
    )
    _require_put(made, case)
    return _left(made, case)


def awq(case: Case) -> str:
    """Folded factors change nothing, and the copy computes with what `tensors` says; factors of
    each layer's own work too."""
    _require_as_said(_quantized(case, "awq", fold=False), case)
    _require_fold(case, frozenset({"norm", "linear"}))
    made = _quantized(case, "awq")
    _require_as_said(made, case)
    return _left(made, case)


def smoothquant(case: Case) -> str:
    """Folded factors change nothing, and 8-bit weights and activations stay near the original;
    with factors of each layer's own too."""
    within = 0.5 if case.zoo.kind == "experts" else 0.25  # a token may go to another expert
    own = _quantized(case, "smoothquant", fold=False)
    require_same(own.model.model, case.loaded.model, case, within, "8 bits, not folded")
    _require_fold(case, frozenset({"norm"}))
    made = _quantized(case, "smoothquant")
    require_same(made.model.model, case.loaded.model, case, within, "8 bits and the original")
    return _left(made, case)


def _quantized(case: Case, method: str, **options: Any) -> Any:
    bits = {"bits": 4, "group_size": None} if method == "awq" else {}
    return qviz.quantize_model(
        case.loaded, method, calibration=case.captured, on_error="skip", **bits, **options
    )


def _require_as_said(made: Any, case: Case) -> None:
    """The copy computes what the model does with the dequantized weights in their places."""
    plain = twin(case.loaded)
    known = qviz.linear_layers(plain)
    for name, tensor in made.tensors.items():
        known[name].set_weight(tensor.dequantize())
    require_same(made.model.model, plain.model, case, 1e-3, "the copy and its dequantized weights")


def _require_fold(case: Case, into: frozenset[str]) -> None:
    generator = torch.Generator().manual_seed(5)
    known = qviz.linear_layers(case.loaded)
    scales = {}
    for feed in feeds(case.loaded, into):
        width = known[feed.linears[0]].in_features
        scales[feed] = torch.rand(width, generator=generator) * 1.5 + 0.5
    folded = fold_input_scales(case.loaded, scales)
    require_same(folded.model, case.loaded.model, case, 1e-4, "factors folded")


def rotation(case: Case) -> str:
    """A rotated model computes what it computed."""
    turned = qviz.rotate_model(case.loaded)
    require_same(turned.model.model, case.loaded.model, case, 1e-3, "rotated")
    return ""


def perplexity(case: Case) -> str:
    """As transformers' logits have it, and only of a model that cannot see what it predicts."""
    got = qviz.perplexity(case.loaded, list(case.texts))
    require(_is_causal(case), "a perplexity, though the model sees the token that it predicts")
    total, count = 0.0, 0
    for ids in case.ids:
        logits = outputs(case.original, ids[:, :-1])[0].double()
        total += float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    require(
        abs(got.nll_per_token - total / count) <= 1e-4 * total / count and got.tokens == count,
        f"{got.nll_per_token:.5f} nats of {got.tokens} tokens, transformers {total / count:.5f} "
        f"of {count}",
    )
    return ""


def _is_causal(case: Case) -> bool:
    """Whether no prediction depends on the tokens after it."""
    ids = case.ids[0]
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 7) % 250 + 3
    return apart(outputs(case.original, other)[:, :-1], outputs(case.original, ids)[:, :-1]) < 1e-4


def text(case: Case) -> str:
    """Greedily continued, the same text as transformers' own generate."""
    remark = ""
    for prompt in (case.texts[0], case.texts[-1]):
        got = qviz.generate(case.loaded, prompt, max_new_tokens=NEW_TOKENS)
        ids = torch.tensor([case.tokenizer(prompt)["input_ids"]])
        own = _decoded(case, ids, _generated(case, ids))
        if got != own:
            plain = _decoded(case, ids, _plainly_generated(case, ids))
            require(plain != own, f"{got!r}, transformers {own!r}")
            require(got == plain, f"{got!r}, by transformers' logits {plain!r}")
            remark = "transformers' generate itself differs from the logits of the whole text"
    return remark


def _generated(case: Case, ids: torch.Tensor) -> list[int]:
    """The tokens with which transformers' generate goes on."""
    with torch.no_grad():
        own = case.original.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
        )
    return own[0, ids.shape[1] :].tolist()


def _plainly_generated(case: Case, ids: torch.Tensor) -> list[int]:
    """The likeliest token after all so far, again and again, without a cache."""
    start = ids.shape[1]
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, outputs(case.original, ids)[:, -1:].argmax(-1)], dim=1)
    return ids[0, start:].tolist()


def _decoded(case: Case, ids: torch.Tensor, new: list[int]) -> str:
    """The text of new tokens, up to the one that ends it."""
    ends = {case.tokenizer.eos_token_id, getattr(case.original.config, "eos_token_id", None)}
    stop = next((i for i, token in enumerate(new) if token in ends), len(new))
    prompt = ids[0].tolist()
    before = case.tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
    whole = case.tokenizer.decode(prompt + new[:stop], clean_up_tokenization_spaces=False)
    return whole[len(before) :]


CHECKS: Mapping[str, Callable[[Case], str]] = {
    "load": load,
    "layers": layers,
    "share": share,
    "capture": capture,
    "affine": affine,
    "GPTQ": gptq,
    "Sequential": sequential,
    "AWQ": awq,
    "SmoothQuant": smoothquant,
    "rotation": rotation,
    "perplexity": perplexity,
    "text": text,
}


def examine(name: str, checks: Sequence[str] = tuple(CHECKS)) -> dict[str, Outcome]:
    """Column → outcome for one model of the zoo.

    What needs a loaded model is not tried where loading is refused: its layers are then read from
    the file.
    """
    case = Case(name)
    found = {"load": judge(load, case)}
    for check in checks:
        if check == "load":
            continue
        if "loaded" in case.__dict__:
            found[check] = judge(CHECKS[check], case)
        elif check == "layers":
            found[check] = judge(file_layers, case)
        else:
            found[check] = Outcome(NOTHING)
    return {check: found[check] for check in checks}


def _open(layer: str) -> str:
    """A layer's name as it stands for every block."""
    parts = layer.split(".")
    return ".".join("N" if part.isdigit() else part for part in parts)
