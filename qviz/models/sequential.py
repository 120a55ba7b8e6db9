"""Sequential calibration: each layer is calibrated on the outputs of the layers quantized before
it.

The blocks of a model run one after another, each once on all windows of text: hidden states enter,
the block's layers are calibrated and quantized, and the outputs of the quantized block enter the
next. So the model never runs as a whole for a single layer, and an early error can still be
compensated later. Frantar et al. 2022, section 4; llama.py:llama_sequential, where the option
`true_sequential` is what order="subset" means here. Layers outside the blocks are calibrated on
runs of the whole model, at their place in the order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qviz import __version__
from qviz.core.calibration import Calibration
from qviz.core.check import require_int, unknown
from qviz.core.linear import QuantizedLinear
from qviz.core.memory import require_memory
from qviz.core.tensor import QuantizedTensor
from qviz.models.capture import (
    KEEP_INPUTS,
    MAX_TOKENS,
    Progress,
    collect,
    input_hooks,
    require_collecting,
    runner_of,
)
from qviz.models.layers import LinearLayer, LoadedModel, linear_layers, loaded
from qviz.models.reading import (
    WindowBatch,
    as_in_use,
    as_texts,
    equal_batches,
    token_windows,
)
from qviz.models.resume import Checkpoint, describe, fingerprint, weights_fingerprint
from qviz.models.statistics import Sharing

Quantized = QuantizedTensor | QuantizedLinear
# Quantizes one layer; the reason in words where it is to be left as it is.
Make = Callable[[str, LinearLayer, Calibration | None], Quantized | str]
Put = Callable[[LoadedModel, LinearLayer, Quantized], None]  # into the model, in place

ORDERS = ("subset", "block")


@dataclass(frozen=True)
class Sequential:
    """How quantize_model is to calibrate as it goes.

    texts            what the model reads, as for qviz.capture, like all that is not named here
    order            what is quantized between two calibrations: "subset", the layers of one input
                     (query, key and value; output; gate and up; down), or "block", all layers of a
                     block together, which takes fewer passes
    source           what text it is, for `info`
    checkpoint       a directory of its own in which every finished layer is stored, so that the
                     same call, after an interruption, continues where it stopped. The result is
                     then
                     bit for bit that of a run without interruption (on the same machine and with
                     as many threads)

    Raises ValueError or TypeError for options that make no sense.

    >>> text = "def f(x):\\n    return x"
    >>> how = qviz.Sequential(text, max_tokens=64)
    >>> qviz.quantize_model(model, "gptq", calibration=how, bits=3).bits_per_weight
    """

    texts: str | Sequence[str]
    _: KW_ONLY
    order: str = "subset"
    max_tokens: int = MAX_TOKENS
    sequence_length: int | None = None
    keep_inputs: int = KEEP_INPUTS
    batch_size: int = 4
    hessian_dtype: torch.dtype = torch.float32
    source: str = ""
    seed: int = 0
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(as_texts(self.texts)))  # read more than once
        if self.order not in ORDERS:
            raise ValueError(unknown("order", self.order, ORDERS))
        require_collecting(self.hessian_dtype, self.keep_inputs, self.batch_size)
        require_int(self.seed, "seed", 0, 2**63 - 1)

    def windows(self, model: LoadedModel) -> list[list[int]]:
        """The token ids of all windows that the model reads."""
        return token_windows(model, self.texts, self.max_tokens, self.sequence_length)


def run_key(model: LoadedModel, layers: Sequence[str], how: Sequential) -> dict[str, Any]:
    """What determines the result beside the method, as JSON holds it."""
    return {
        "model": fingerprint(model),
        "layers": list(layers),
        "texts": _sha256(how.texts),
        "tokens": _sha256(how.windows(model)),
        "calibration": {
            name: describe(getattr(how, name))
            for name in (
                "order",
                "max_tokens",
                "sequence_length",
                "keep_inputs",
                "batch_size",
                "hessian_dtype",
                "source",
                "seed",
            )
        },
        "device": model.device.type,
        "versions": {"qviz": __version__} | {n: version(n) for n in ("torch", "transformers")},
    }


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@dataclass
class Outcome:
    """The results of the layers, and notes about the run."""

    tensors: dict[str, Quantized] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def follow(
    model: LoadedModel,
    layers: Sequence[str],
    how: Sequential,
    make: Make,
    put: Put,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Quantize these layers of a model one after another, in place, in the order of execution.

    Layers that never run on the texts come last, and `make` gets no calibration for them. Raises
    ValueError for a model whose blocks do not form a chain, MemoryError where hidden states and
    Hessians
    do not fit.
    """
    model = loaded(model)
    run = _Run(model, layers, how, make, put, checkpoint, progress)
    with as_in_use(model):
        if run.left:
            run.through_the_model()
        run.unit(tuple(run.waiting))  # found in the checkpoint, or never run
    return run.outcome


# ---------------------------------------------------------------------------------------- the run


class _Run:
    """One pass through the model.

    layers   all that are to be quantized
    waiting  those that have not had their turn
    """

    def __init__(
        self,
        model: LoadedModel,
        layers: Sequence[str],
        how: Sequential,
        make: Make,
        put: Put,
        checkpoint: Checkpoint | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.how, self.make, self.put = model, how, make, put
        self.checkpoint, self.progress = checkpoint, progress
        known = linear_layers(model)
        self.weights = weights_fingerprint(model)
        self.layers = {name: known[name] for name in layers}
        self.waiting = dict.fromkeys(layers)
        self.batches: list[WindowBatch] = []
        self.several: set[str] = set()  # layers that run several times in one pass
        self.stored = {} if checkpoint is None else checkpoint.stored
        self.outcome = Outcome()
        if checkpoint is not None:
            self.outcome.notes += checkpoint.notes(len(layers))

    @property
    def left(self) -> set[str]:
        """The waiting layers that the checkpoint does not have."""
        return self.waiting.keys() - self.stored.keys()

    def through_the_model(self) -> None:
        """Every layer that runs, as long as one is left."""
        windows = self.how.windows(self.model)
        self.batches = equal_batches(windows, self.how.batch_size, self.model.device)
        whole = runner_of(self.model, self.layers)
        survey = _survey(self.model, self.layers, self.batches, whole, self.how)
        self.several = survey.several
        for names in _units(survey.before, self.how.order):
            self.unit(names, whole)
        hidden: list[torch.Tensor] = []
        for i, block in enumerate(survey.blocks):
            rest = {name for later in survey.blocks[i:] for name in later.layers}
            if rest.isdisjoint(self.left):
                self.unit([name for name in self.waiting if name in rest])
                break
            hidden = hidden or [_entering(block, whole, batch) for batch in self.batches]
            self._block(block, hidden, last=block is survey.blocks[-1])
        hidden.clear()
        for names in _units(survey.after, self.how.order):
            self.unit(names, whole)

    def _block(self, block: _Block, hidden: list[torch.Tensor], last: bool) -> None:
        """Quantize a block's layers, and put in place of its inputs what it then gives out, unless
        nobody needs it."""

        def run(batch: WindowBatch) -> torch.Tensor:
            return block.run(hidden[batch.number], batch.number)

        for names in _units(block.groups, self.how.order):
            self.unit(names, run)
        with torch.no_grad():
            for i, batch in enumerate([] if last else self.batches):
                hidden[i] = run(batch)
        block.calls.clear()

    def unit(
        self, names: Sequence[str], run: Callable[[WindowBatch], object] | None = None
    ) -> None:
        """Quantize layers that are calibrated together; `run` runs them on a batch, unless all of
        them are stored, or never run."""
        missing = {name: self.layers[name] for name in names if name not in self.stored}
        seen = self._seen(missing, run) if missing and run is not None else {}
        before, made = len(self.outcome.tensors), {}
        for name in names:
            if name in self.stored:
                made[name] = self.stored[name]
            else:
                facts = {"together": list(names), "quantized_before": before}
                made[name] = self._made(name, seen.get(name), facts)
            del self.waiting[name]
            if self.progress is not None:
                self.progress(len(self.layers) - len(self.waiting), len(self.layers))
        # only now: a layer that is quantized must not change what the others here receive
        for name, result in made.items():
            if isinstance(result, str):
                self.outcome.skipped[name] = result
            else:
                self.put(self.model, self.layers[name], result)
                self.outcome.tensors[name] = result

    def _seen(
        self, layers: Mapping[str, LinearLayer], run: Callable[[WindowBatch], object]
    ) -> dict[str, Calibration]:
        def run_until_seen(batch: WindowBatch) -> None:
            with _stop_after({} if self.several & layers.keys() else layers):
                run(batch)

        return collect(
            layers,
            self.batches,
            run_until_seen,
            keep_inputs=self.how.keep_inputs,
            hessian_dtype=self.how.hessian_dtype,
            source=self.how.source,
            weights=self.weights,
            seed=self.how.seed,
        )

    def _made(
        self, name: str, calibration: Calibration | None, facts: Mapping[str, Any]
    ) -> Quantized | str:
        result = self.make(name, self.layers[name], calibration)
        if calibration is not None and not isinstance(result, str):
            result = noted(result, calibration, order=self.how.order, **facts)
        if self.checkpoint is not None:
            self.checkpoint.write(name, result)
        return result


def noted(made: Quantized, calibration: Calibration, **facts: Any) -> Quantized:
    """The same result, whose `info` says under "calibration" which inputs it was made for."""
    if isinstance(made, QuantizedLinear):
        weight = noted(made.weight, calibration, **facts)
        assert isinstance(weight, QuantizedTensor)
        return made.with_weight(weight)
    about = {"tokens": calibration.tokens, "source": calibration.source, **facts}
    return replace(made, info={**made.info, "calibration": about})


class _Enough(Exception):
    """Ends a run of the model of which nothing more is needed."""


@contextmanager
def _stop_after(layers: Mapping[str, LinearLayer]) -> Iterator[None]:
    """What runs inside ends as soon as all of these layers have received their inputs.

    Hooks that were there before still see the last of them.
    """
    waiting = set(layers)

    def see(name: str, x: torch.Tensor) -> None:
        waiting.discard(name)
        if not waiting:
            raise _Enough

    with input_hooks(layers, see), suppress(_Enough):
        yield


def _units(groups: Sequence[Sequence[str]], order: str) -> list[list[str]]:
    """The layers that are calibrated together, in turn."""
    if order == "subset" or not groups:
        return [list(group) for group in groups]
    return [[name for group in groups for name in group]]


# ------------------------------------------------------------------------------------- the blocks


@dataclass(frozen=True)
class _Call:
    """What a block is called with beside hidden states: masks, positions."""

    keyword: str | None  # under which it receives hidden states; None: first of all
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def taken(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, _Call]:
        """Hidden states [batch, tokens, width], and the rest."""
        if args:
            return args[0], cls(None, args[1:], kwargs)
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return kwargs["hidden_states"], cls("hidden_states", args, rest)

    def given(self, hidden: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.keyword is None:
            return (hidden, *self.args), dict(self.kwargs)
        return self.args, {self.keyword: hidden, **self.kwargs}


def _is_cache(value: object) -> bool:
    """Whether this keeps what earlier calls gave it, told without importing transformers."""
    return any("Cache" in kind.__name__ for kind in type(value).__mro__)


@dataclass
class _Block:
    """One of the blocks that run one after another.

    calls   one for each batch
    groups  its layers, those of one input together, in the order in which they run
    """

    name: str
    module: nn.Module
    calls: list[_Call] = field(default_factory=list)
    groups: list[list[str]] = field(default_factory=list)

    @property
    def layers(self) -> list[str]:
        return [name for group in self.groups for name in group]

    def run(self, hidden: torch.Tensor, batch: int) -> torch.Tensor:
        """Hidden states out for hidden states in, which stay as they are."""
        args, kwargs = self.calls[batch].given(hidden.clone())
        return _hidden(self.module(*args, **kwargs))


def _hidden(output: Any) -> torch.Tensor:
    """The hidden states in a block's output, which may be a tuple or a list."""
    states: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return states


@dataclass
class _Survey:
    """How the model runs, learned from running it as it is.

    blocks          up to the last one with layers that are to be quantized
    before, after   the layers outside, in groups like those of a block
    several         layers that run more than once in one pass
    """

    blocks: list[_Block]
    before: list[list[str]]
    after: list[list[str]]
    several: set[str]


def _survey(
    model: LoadedModel,
    layers: Mapping[str, LinearLayer],
    batches: Sequence[WindowBatch],
    whole: Callable[[WindowBatch], None],
    how: Sequential,
) -> _Survey:
    """Run the model once over all batches and keep what each block is called with."""
    blocks = _find_blocks(model)
    for layer in layers.values():
        if layer.shared:
            # Its inputs come from several blocks, and it can be quantized at only one of them.
            raise ValueError(
                f"in {model.name}, {layer.name} and {next(iter(layer.shared))} have one weight in "
                f"several blocks. {INSTEAD}"
            )
    sharing, early, several = Sharing(), set[str](), set[str]()
    for i, batch in enumerate(batches):
        chain, seen = _Chain(model.name, blocks), set[str]()
        sharing.begin()

        def see(name: str, x: torch.Tensor, chain: _Chain = chain, seen: set[str] = seen) -> None:
            sharing.see(name, x)
            (several if name in seen else seen).add(name)
            if not chain.calls:
                early.add(name)

        with input_hooks(layers, see):
            chain.watch(whole, batch)
        for block, call in zip(blocks, chain.calls, strict=True):
            block.calls.append(call)
        if i == 0:
            chain.require_all_through_hidden_states(whole, batch)
            groups = _experts_together(sharing.groups(), layers)
            _require_memory(layers, groups, chain, batches, how)
    groups, outside = _experts_together(sharing.groups(), layers), set(layers)
    for block in blocks:
        inside = {name for name in layers if name.startswith(f"{block.name}.")}
        block.groups, outside = _among(groups, inside), outside - inside
    while blocks and not blocks[-1].groups:
        blocks.pop()
    before, after = _among(groups, outside & early), _among(groups, outside - early)
    return _Survey(blocks, before, after, several)


def _experts_together(
    groups: Sequence[Sequence[str]], layers: Mapping[str, LinearLayer]
) -> list[list[str]]:
    """The groups, those of the experts of one parameter as one: they run side by side, so one
    calibration serves all."""
    together: dict[object, list[str]] = {}
    for i, group in enumerate(groups):
        stack = layers[group[0]].stack
        together.setdefault(i if stack is None else stack, []).extend(group)
    return list(together.values())


def _among(groups: Sequence[Sequence[str]], names: set[str]) -> list[list[str]]:
    """The groups without other names, where something is left."""
    found = [[name for name in group if name in names] for group in groups]
    return [group for group in found if group]


def _find_blocks(model: LoadedModel) -> list[_Block]:
    """The members of the list of modules that has the most linear layers in it."""
    linears = linear_layers(model)
    most, found = 0, list[_Block]()
    for name, module in model.model.named_modules():
        count = sum(linear.startswith(f"{name}.") for linear in linears)
        if isinstance(module, nn.ModuleList) and count > most:  # of equal ones, the outermost
            most, found = count, [_Block(f"{name}.{i}", part) for i, part in enumerate(module)]
    if not found:
        raise ValueError(f"{model.name} has no list of blocks. {INSTEAD}")
    return found


INSTEAD = (
    "Sequential needs blocks that run one after another; use calibration=qviz.capture(model, "
    "texts), which calibrates on the unquantized model"
)


class _Chain:
    """Watches the blocks while the model runs: whether each runs once, on what the one before gave.

    calls  what each block was called with, as far as the run has come
    """

    def __init__(self, name: str, blocks: Sequence[_Block], factor: float = 1) -> None:
        self.name, self.blocks = name, blocks
        self.calls: list[_Call] = []
        self.hidden = torch.empty(0)  # what the last block gave
        self.factor = factor  # of the hidden states that enter the first

    def watch(self, whole: Callable[[WindowBatch], None], batch: WindowBatch) -> None:
        """Run the model on a batch; raises ValueError if the blocks do not form a chain."""
        handles = []
        try:
            for i, block in enumerate(self.blocks):
                enter = block.module.register_forward_pre_hook(self._enter(i), with_kwargs=True)
                handles += [enter, block.module.register_forward_hook(self._leave)]
            with torch.no_grad():
                whole(batch)
        finally:
            for handle in handles:
                handle.remove()
        if len(self.calls) != len(self.blocks):
            raise ValueError(f"{self.name} does not run all of its blocks. {INSTEAD}")

    def _enter(self, i: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            kept = sorted(k for k, v in kwargs.items() if _is_cache(v))
            if kept or any(map(_is_cache, args)):
                # Each run of the block would read the keys of the runs before.
                raise ValueError(
                    f"{self.name} passes {self.blocks[i].name} a cache "
                    f"({', '.join(kept) or 'by position'}) although none was requested. {INSTEAD}"
                )
            hidden, call = _Call.taken(args, kwargs)
            if len(self.calls) != i:
                raise ValueError(
                    f"{self.name} runs {self.blocks[i].name} out of turn, or twice. {INSTEAD}"
                )
            if i and not (hidden is self.hidden or torch.equal(hidden, self.hidden)):
                raise ValueError(
                    f"in {self.name}, {self.blocks[i].name} receives something other than the "
                    f"output of the block before. {INSTEAD}"
                )
            self.calls.append(call)
            return None if i or self.factor == 1 else call.given(hidden * self.factor)

        return hook

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.hidden = _hidden(output)

    def require_all_through_hidden_states(
        self, whole: Callable[[WindowBatch], None], batch: WindowBatch
    ) -> None:
        """Raise ValueError if a block is called with anything else that depends on the blocks
        before: it would change with every layer that is quantized."""
        other = _Chain(self.name, self.blocks, factor=0.5)
        other.watch(whole, batch)
        for block, here, there in zip(self.blocks, self.calls, other.calls, strict=True):
            pairs = zip(_tensors(here), _tensors(there), strict=True)
            if not all(torch.equal(a, b) for a, b in pairs):
                raise ValueError(
                    f"in {self.name}, {block.name} is called with more than hidden states that "
                    f"depends on the blocks before. {INSTEAD}"
                )


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """All tensors inside calls, tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, _Call):
        yield from _tensors((value.args, value.kwargs))
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _entering(
    block: _Block, whole: Callable[[WindowBatch], None], batch: WindowBatch
) -> torch.Tensor:
    """The hidden states that the first block receives; the model does not run further."""
    caught: list[torch.Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(_Call.taken(args, kwargs)[0])
        raise _Enough

    handle = block.module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with suppress(_Enough), torch.no_grad():
            whole(batch)
    finally:
        handle.remove()
    return caught[0]


def _require_memory(
    layers: Mapping[str, LinearLayer],
    groups: Sequence[Sequence[str]],
    chain: _Chain,
    batches: Sequence[WindowBatch],
    how: Sequential,
) -> None:
    """MemoryError if hidden states, calls and the Hessians of a unit would not fit.

    By what the first batch takes, for as many tokens as all batches have.
    """
    calls = {id(x): x.numel() * x.element_size() for x in _tensors(tuple(chain.calls))}
    states = chain.hidden.numel() * chain.hidden.element_size()
    sizes = [
        layers[group[0]].in_features ** 2 * (len(group) if layers[group[0]].stack else 1)
        for group in groups
    ]
    together = max(sizes, default=0) if how.order == "subset" else sum(sizes) // len(chain.blocks)
    hessians = 2 * together * how.hessian_dtype.itemsize  # the sum, and the mean made of it
    batches_like_it = sum(batch.ids.numel() for batch in batches) / batches[0].ids.numel()
    require_memory(
        int((sum(calls.values()) + states) * batches_like_it) + hessians,
        f"sequential calibration (hidden states of {len(batches)} batches, and Hessians)",
        'Use fewer max_tokens, or order="subset"',
    )
