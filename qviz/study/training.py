"""Training with quantization: a model's linear layers replaced by trainable quantized ones.

The student starts as a copy of the model and learns to predict what the unquantized model predicts
(distillation: the Kullback–Leibler divergence between their next-token distributions), or the text
itself; nothing but the replaced layers is trained. It reads calibration texts, or modules of the
standard library that the bundled model was trained on, but never the evaluation texts.
"""

from __future__ import annotations

import json
import math
import platform
import re
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from qviz.core.check import require_int, require_number, unknown
from qviz.core.linear import TrainableLinear
from qviz.core.tensor import QuantizedTensor
from qviz.methods import registry
from qviz.models.layers import LoadedModel, copy_of, loaded
from qviz.models.quantize import layers_to_quantize
from qviz.models.reading import as_texts, require_tokenizer, window_length
from qviz.models.rotate import put_in_place
from qviz.models.texts import calibration_texts, evaluation_texts

Progress = Callable[[int, int, float], None]  # called with (steps done, steps, loss)

SPLIT = Path(__file__).parents[1] / "data" / "model" / "split.json"
WARM_UP = 0.05  # share of the steps in which the learning rate rises; then it falls to 0 linearly
GRADIENT_NORM = 1.0
SEEDS = 1_000_000  # more than a model has layers: each has its own seed, whatever the run's
PHRASE = 200  # characters; a shorter text may occur in an evaluation text by chance

# Learning rates by the lowest loss on the bundled model, among a few; text is not repeated within a
# run, so that its loss is as good a judge as held-out text.
QAT_RATE = 4e-3  # for one bit; halved for each further bit, like the spacing of the levels
QLORA_RATE = 1e-2
STEP_RATE = 0.1  # of the rate of weights


@dataclass(frozen=True)
class TrainedModel:
    """A model that was trained with quantized layers.

    model    a copy whose trained layers stand in place, without gradients: for "qat" ordinary
             layers with the rounded weights, for "qlora" layers with base and branch
    modules  layer → the module as it was trained
    tensors  layer → QuantizedTensor: codes, scales and what they cost
    skipped  layer → why it was left as it was
    losses   of every step, before its update, in nats per token
    source   which texts it was trained on
    tokens   how many tokens were read, repetitions included
    seconds  how long the training took
    """

    model: LoadedModel
    modules: Mapping[str, TrainableLinear]
    tensors: Mapping[str, QuantizedTensor]
    skipped: Mapping[str, str]
    losses: tuple[float, ...]
    source: str
    tokens: int
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight over all trained layers: codes, scales, and adapters as they are kept."""
        bills = [module.ledger for module in self.modules.values()]
        return sum(bill.total_bits for bill in bills) / sum(bill.weights for bill in bills)


def train_quantized(
    model: LoadedModel,
    method: str = "qat",
    *,
    layers: Sequence[str] | None = None,
    texts: str | Sequence[str] | None = None,
    steps: int = 300,
    lr: float | None = None,
    distill: float = 1.0,
    sequence_length: int = 256,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> TrainedModel:
    """Train a decoder's quantized layers; the model given stays as it is.

    method    a "training" method: "qat" or "qlora"; `options` are its own
    layers    None: all linear layers but an output head
    texts     to train on: one or several, or names of calibration texts; None: training_texts()
    steps     updates, each on batch_size windows of sequence_length tokens
    lr        Adam's largest learning rate; None: what suits the method on the bundled model
    distill   share of the loss that compares with the unquantized model's predictions (in nats:
              KL(teacher ‖ student)); the rest is the text's own cross-entropy
    seed      of the order of the texts, and of random starts
    progress  called as progress(done, steps, loss) after each step

    On the bundled model the defaults take less than five minutes on two cores. The same seed gives
    the same result on the same machine with the same number of threads. Raises ValueError for
    encoders, unknown names, evaluation texts or parts of them, and a loss or parameters that are no
    longer finite.

    >>> trained = train_quantized(qviz.load_model(), bits=3, steps=2)
    >>> qviz.perplexity(trained.model, max_tokens=1024)
    """
    kind = registry.get(method).kind
    if kind != "training":
        raise ValueError(f"{method} is a {kind} method; train_quantized takes training methods")
    registry.require_options(method, options)
    model = loaded(model)
    if model.kind != "decoder":
        raise ValueError(f"{model.name} does not predict the next token; use a decoder")
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        require_int(value, name, 1, 1_000_000)
    length = window_length(model, sequence_length)
    require_int(seed, "seed", 0, 2**32 - 1)
    if not 0 <= require_number(distill, "distill") <= 1:
        raise ValueError(f"distill is a share, from 0 to 1; got {distill}")
    if lr is not None and not 0 < require_number(lr, "lr") < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    stream = token_stream(model, texts, steps * batch_size * length, seed)
    student, modules, skipped = replace_layers(model, method, layers, seed=seed, **options)

    start = time.perf_counter()
    rate = _rate(method, options) if lr is None else lr
    batches = _windows(stream, length, batch_size, np.random.default_rng(seed))
    losses = _train(student, model, modules, batches, steps, rate, distill, progress)
    seconds = time.perf_counter() - start

    for name, module in modules.items():
        put_in_place(student.model, name, module.frozen())
    tensors = {name: module.quantized() for name, module in modules.items()}
    tokens = steps * batch_size * length
    source = _library()[0] if texts is None else "the texts given"
    return TrainedModel(student, modules, tensors, skipped, losses, source, tokens, seconds)


def replace_layers(
    model: LoadedModel,
    method: str,
    layers: Sequence[str] | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> tuple[LoadedModel, dict[str, TrainableLinear], dict[str, str]]:
    """A copy of the model with trainable layers in place, those by name, and why others are left.

    Only the new layers' parameters require gradients. A method with a seed gets another for every
    layer, so that layers of one shape do not start alike, nor those of neighbouring seeds.
    """
    chosen, skipped = layers_to_quantize(model, layers)
    student = copy_of(model)
    student.model.requires_grad_(False)
    seeded = "seed" in registry.get(method).defaults
    modules: dict[str, TrainableLinear] = {}
    for i, (name, layer) in enumerate(chosen.items()):
        own = {"seed": seed * SEEDS + i, **options} if seeded else options
        try:
            module = registry.quantize(layer.weight, method, **own)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        bias = layer.module.bias
        if isinstance(bias, torch.Tensor):
            module.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        put_in_place(student.model, name, module)
        modules[name] = module
    return student, modules, skipped


def training_texts(seed: int = 0) -> Iterator[str]:
    """Texts to train on, in an order drawn by `seed`: this Python's standard library without what
    is held out; the calibration texts where Python came without sources.
    """
    _, found = _library()
    if not found:
        yield from (calibration_texts()[name].text for name in ("python", "docs", "english"))
        return
    for i in np.random.default_rng(seed).permutation(len(found)):
        try:
            yield found[i].read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an old encoding, in a test of exactly that


def _library() -> tuple[str, list[Path]]:
    """What there is to train on, in words, and its files; none where Python came without sources.

    Every file of a held-out module is excluded, and every other file with such a module's name in
    its own (a test, a helper), so that another Python's layout lets nothing in.
    """
    split = json.loads(SPLIT.read_text(encoding="utf-8"))
    closed = {name.strip("_") for name in split["held_out"]}
    closed |= {"site-packages", "dist-packages", "encodings"}  # others' code, tables of characters
    files = set(split["held_out_files"])
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name not in files and not closed & set(re.split(r"[/._]", name)):
            found.append(path)
    if len(found) < 100:
        return "the calibration texts, because this Python has no sources", []
    return f"the standard library of Python {platform.python_version()}", found


def token_stream(
    model: LoadedModel, texts: str | Sequence[str] | None, wanted: int, seed: int = 0
) -> torch.Tensor:
    """Token ids [n] of the texts one after another, each begun with the end-of-text token.

    texts as in train_quantized. Stops at `wanted` tokens; fewer if the texts have no more.
    """
    tokenizer = require_tokenizer(model)
    source = training_texts(seed) if texts is None else iter(_named(texts))
    ids: list[int] = []
    for text in source:
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        ids += tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > wanted:
            break
    return torch.tensor(ids[: wanted + 1])


def _named(texts: str | Sequence[str]) -> list[str]:
    """Texts, with names of calibration texts replaced by what they hold.

    Refused are evaluation texts, what contains one, and what is part of one, if it is more than a
    phrase that others may have written as well.
    """
    known, closed = calibration_texts(), evaluation_texts()
    found = []
    for text in as_texts(texts):
        part = text.strip()
        held = (one.text.strip() for one in closed.values())
        if text in closed or any(
            one in part or (len(part) >= PHRASE and part in one) for one in held
        ):
            raise ValueError(
                "an evaluation text must not be used for training: its loss would mean nothing"
            )
        if not any(c.isspace() for c in part) and text not in known:
            raise ValueError(unknown("text", text, known))
        found.append(known[text].text if text in known else text)
    return found


def _windows(
    stream: torch.Tensor, length: int, batch: int, rng: np.random.Generator
) -> Iterator[torch.Tensor]:
    """Without end, [batch, length + 1] token ids: passes over the stream, cut at new places and
    shuffled each time, so that text is repeated only when all of it was read."""
    if len(stream) <= length:
        raise ValueError(
            f"the texts have {len(stream)} tokens, a window needs {length + 1}; give more text or "
            f"a smaller sequence_length"
        )
    starts: list[int] = []
    while True:
        while len(starts) < batch:
            count = (len(stream) - 1) // length
            spare = len(stream) - 1 - count * length
            starts += list(rng.permutation(count) * length + rng.integers(spare + 1))
        rows, starts = starts[:batch], starts[batch:]
        yield torch.stack([stream[s : s + length + 1] for s in rows])


def _train(
    student: LoadedModel,
    teacher: LoadedModel,
    modules: Mapping[str, TrainableLinear],
    batches: Iterator[torch.Tensor],
    steps: int,
    lr: float,
    distill: float,
    progress: Progress | None,
) -> tuple[float, ...]:
    """Train the modules where they stand in the student; returns the loss before each update."""
    optimizer, schedule = _optimizer(modules, lr, steps)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    losses: list[float] = []
    for done, ids in zip(range(1, steps + 1), batches, strict=False):
        with torch.enable_grad():  # also where the caller does without
            loss = _loss(student, teacher, ids.to(teacher.device), distill)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} at step {done}; use a smaller lr")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(done, steps, losses[-1])
    optimizer.zero_grad()  # the modules are kept, their gradients are of no more use
    for name, module in modules.items():  # no loss was computed after the last update
        for part, parameter in module.named_parameters():
            if not parameter.isfinite().all():
                raise ValueError(f"{part} of {name} is no longer finite; use a smaller lr")
    return tuple(losses)


def _loss(
    student: LoadedModel, teacher: LoadedModel, ids: torch.Tensor, distill: float
) -> torch.Tensor:
    """Nats per token on ids [batch, length + 1]."""
    inputs, targets = ids[:, :-1], ids[:, 1:].flatten()
    logits = student.model(input_ids=inputs, use_cache=False).logits.float().flatten(0, 1)
    loss = torch.zeros((), device=ids.device)
    if distill > 0:
        with torch.no_grad():
            wanted = teacher.model(input_ids=inputs, use_cache=False).logits.float().flatten(0, 1)
        loss = loss + distill * functional.kl_div(
            logits.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True
        )
    if distill < 1:
        loss = loss + (1 - distill) * functional.cross_entropy(logits, targets)
    return loss


def _rate(method: str, options: Mapping[str, Any]) -> float:
    """The largest learning rate, where none is given."""
    if method != "qat":
        return QLORA_RATE
    bits = {**registry.get(method).defaults, **options}["bits"]
    return float(QAT_RATE / 2**bits)


def _optimizer(
    modules: Mapping[str, TrainableLinear], lr: float, steps: int
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
    """Adam on everything trainable; the step sizes of the levels at a tenth of the rate.

    Adam moves every parameter by about lr at a time, whatever its gradient. A step size moves all
    levels of its group at once, so it must not jump as a single weight may.
    """
    named = [
        (name, p) for m in modules.values() for name, p in m.named_parameters() if p.requires_grad
    ]
    groups = [
        {"params": [p for name, p in named if name != "step"], "lr": lr},
        {"params": [p for name, p in named if name == "step"], "lr": lr * STEP_RATE},
    ]
    optimizer = torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.95))
    warm = max(1, round(WARM_UP * steps))

    def rate(done: int) -> float:
        return min((done + 1) / warm, (steps - done) / max(1, steps - warm))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
