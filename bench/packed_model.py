"""Whole models with packed weights: tokens per second and memory beside 16-bit weights.

    python bench/packed_model.py [--device cpu|cuda] [--models bundled random] [--minutes 2]
                                 [--into DIR] [KERNEL …]

Each kernel that runs on the device packs the first format that it takes. Two models: the bundled
one, so small that the calls cost more than the products, and a Llama of 0.31 billion RANDOM
weights, 4 of the 16 layers of Llama-3.2-1B, which says nothing but has the speed and memory of a
real one. Speeds are measured in turns in one process. On a CPU the memory of the larger model is
measured in a process of its own for each row; on CUDA torch's allocator tells it.

It says each step before it begins. On CUDA it stops after two minutes: kernels that had no turn
until then are named in the notes.
"""

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from record import save, table

import qviz
from qviz.kernels import formats, registry
from qviz.kernels.packed_compare import compare_logits, compare_texts
from qviz.kernels.packed_cost import Speed, memory, random_llama, speed, speeds
from qviz.kernels.packed_model import PackedModel, pack_model
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.quantize import QuantizedModel
from qviz.models.texts import evaluation_texts

MIB = 2**20
START = time.perf_counter()
PROMPT_TOKENS = 128
SLOW = 5.0  # seconds of a run from which a kernel is measured with fewer tokens
FEW = {"new_tokens": 4, "repeats": 2}
BLOCK = re.compile(r"layers\.\d+\.")
ORDER = ("int4-g128", "nf4-g64", "int8")  # formats that are tried before the others


@dataclass(frozen=True)
class Variant:
    """A row: a kernel and its format, or neither for 16-bit weights of this dtype."""

    kernel: str | None
    format: str | None
    dtype: torch.dtype

    @property
    def label(self) -> str:
        return self.kernel or f"16 bits, {str(self.dtype).removeprefix('torch.')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", help="only kernels whose name contains one of these")
    parser.add_argument("--device", default=registry.default_device().type)
    parser.add_argument("--models", nargs="+", default=["bundled", "random"])
    parser.add_argument("--layers", type=int, default=4, help="of the random model")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="after which no kernel is begun (CUDA: 1.4)")
    parser.add_argument("--into", type=Path, help="folder of the results (default bench/results)")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args, *args.child)))
        return
    minutes = args.minutes or (1.4 if args.device == "cuda" else float("inf"))
    args.end, args.late = START + 60 * minutes, []
    rows: list[dict[str, Any]] = []
    for which in args.models:
        rows += rows_of(args, which)
    notes = notes_of(args)
    if args.dry_run or args.kernels:
        print(table(rows), notes, sep="\n\n")
        return
    title = f"Packed models on {device_title(args.device)}, beside 16-bit weights"
    path = save(f"packed_model_{args.device}", title, rows, notes, into=args.into)
    print(path.read_text(encoding="utf-8"))


def device_title(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} cores"


def notes_of(args: argparse.Namespace) -> str:
    there = registry.available(args.device)
    absent = [f"{each.kernel.name}: {each.reason}" for each in there if not each]
    on_cuda = (
        " On CUDA, allocated is what torch's allocator had more once the model was packed, peak "
        "with the most that was added while text was generated."
        if args.device == "cuda"
        else ""
    )
    late = f"\n\nThe time was up before: {', '.join(args.late)}." if args.late else ""
    return (
        f"{PROMPT_TOKENS} prompt tokens, {args.new_tokens} new ones, batch {args.batch}; median "
        f"and 95th percentile of {args.repeats} runs, all rows of a model in turns. A kernel that "
        f"takes more than {SLOW:g} s for a run was measured with {FEW['new_tokens']} new tokens, "
        f"{FEW['repeats']} times (column new tokens). Times 16 bits: beside bfloat16 weights in "
        f"the same turns. Counted: parameters and buffers. Process: proportional set size of a "
        f"fresh process after generating, above the same process before the model was made, once "
        f"malloc has given back what is free; not for the bundled model, whose few MiB are lost "
        f"in what libraries set aside. The blocks of the random model hold the same weights."
        f"{on_cuda} KL and next tokens: against the dequantized weights in 16 bits, on held-out "
        f"text; the random model has nothing to say.\n\nNot available here:\n\n"
        + ("\n".join(f"- {line}" for line in absent) or "- nothing")
        + late
    )


# ---------------------------------------------------------------------- models and variants


def model_of(args: argparse.Namespace, which: str, dtype: torch.dtype) -> LoadedModel:
    if which == "bundled":
        return qviz.load_model(device=args.device, dtype=dtype)
    return random_llama(layers=args.layers, dtype=dtype, device=args.device)


def prompt_of(which: str, model: LoadedModel) -> list[int]:
    if which == "bundled":
        text = next(iter(evaluation_texts().values())).text
        return list(model.tokenizer(text[:4000])["input_ids"])[:PROMPT_TOKENS]
    g = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (PROMPT_TOKENS,), generator=g).tolist()


def variants(args: argparse.Namespace, model: LoadedModel) -> Iterator[Variant]:
    """A kernel and the first format that it takes, for each that runs; 16 bits before them."""
    weight = next(iter(linear_layers(model).values())).weight
    first = {name: formats.FORMATS[name] for name in ORDER}
    samples = {name: one.quantize(weight) for name, one in {**first, **formats.FORMATS}.items()}
    found = []
    for each in registry.available(args.device):
        name = each.kernel.name
        if not each or (args.kernels and not any(part in name for part in args.kernels)):
            continue
        taken = next((n for n, q in samples.items() if each.kernel.refuses(q) is None), None)
        if taken is not None:
            halves = [d for d in each.kernel.dtypes if d in (torch.bfloat16, torch.float16)]
            found.append(Variant(name, taken, halves[0] if halves else torch.bfloat16))
    for dtype in dict.fromkeys([torch.bfloat16, *(one.dtype for one in found)]):
        yield Variant(None, None, dtype)
    yield from found


def quantized_as(model: LoadedModel, name: str) -> QuantizedModel:
    """The model in a format; of random weights only the first block is really quantized, and its
    tensors stand for those of all blocks, which have the same shapes."""
    one = formats.get(name)
    if model.tokenizer is not None:
        return qviz.quantize_model(model, one.method, **one.options)
    layers, tensors = linear_layers(model), {}
    for layer in layers:
        first = BLOCK.sub("layers.0.", layer)
        if first not in tensors:
            tensors[first] = one.quantize(layers[first].weight)
        tensors[layer] = tensors[first]
    return QuantizedModel(model, tensors, {}, one.method)


# ---------------------------------------------------------------------- one model's rows


def rows_of(args: argparse.Namespace, which: str) -> list[dict[str, Any]]:
    say(f"{which}: making the model, and finding out which kernels run here")
    original = model_of(args, which, torch.bfloat16)
    chosen = list(variants(args, original))
    say(f"{which}: {', '.join(one.label for one in chosen)}")
    prompt = prompt_of(which, original)
    held: dict[Variant, dict[str, float]] = {}
    if which == "random" and args.device == "cpu":
        held = {one: in_a_process_of_its_own(args, which, one) for one in chosen}
    models: dict[Variant, PackedModel | LoadedModel] = {}
    said: dict[Variant, dict[str, Any]] = {}
    for name in dict.fromkeys(one.format for one in chosen):
        quantized = None if name is None else quantized_as(original, name)
        for one in (one for one in chosen if one.format == name):
            if one.kernel is not None and time.perf_counter() > args.end:
                args.late.append(f"{which}, {one.label}")
                continue
            say(f"{which}: packing {one.label}")
            before = torch.cuda.memory_allocated() if args.device == "cuda" else 0
            if quantized is None or one.kernel is None:
                models[one] = model_of(args, which, one.dtype)
            else:
                models[one] = packed = pack_model(quantized, one.kernel)
                said[one] = quality(packed, quantized, args) if which == "bundled" else {}
            held.setdefault(one, counted(models[one]))
            if args.device == "cuda":
                held[one]["allocated"] = torch.cuda.memory_allocated() - before
    found = measured(args, which, models, prompt)
    for one in list(found):
        added = found[one][0].added
        if added is not None:
            held[one]["peak"] = held[one]["allocated"] + added
    return [row_of(which, one, found, said.get(one, {}), held[one]) for one in found]


def say(what: str) -> None:
    print(f"{time.perf_counter() - START:6.0f} s  {what}", file=sys.stderr, flush=True)


def quality(packed: PackedModel, quantized: QuantizedModel, args: argparse.Namespace) -> dict:
    """How far it is from its dequantized reference."""
    texts = [text.text for text in evaluation_texts().values()]
    reference = packed.reference(quantized)
    logits = compare_logits(packed.model, reference, texts, max_tokens=2048)
    said = compare_texts(packed.model, reference, texts[0][:200], new_tokens=args.new_tokens)
    parts = f"at {said.parts_at}" if said.parts_at is not None else f"not in {args.new_tokens}"
    return {
        "KL, nats": logits.kl,
        "same next token": logits.same_top,
        "greedy text parts": parts,
    }


def measured(
    args: argparse.Namespace,
    which: str,
    models: Mapping[Variant, PackedModel | LoadedModel],
    prompt: list[int],
) -> dict[Variant, tuple[Speed, Speed]]:
    """Variant → its speed, and that of bfloat16 weights in the same turns; without those that had
    no turn before the time was up."""
    slow, ready = set(), {}
    for one, model in models.items():
        if one.kernel is not None and time.perf_counter() > args.end:
            args.late.append(f"{which}, {one.label}")
            continue
        say(f"{which}: trying {one.label}, which may compile")
        trial = speed(model, prompt, new_tokens=3, batch=args.batch, repeats=1)
        (first,), (rest,) = trial.prefill.seconds, trial.decode.seconds
        ready[one] = model
        if one.kernel and first + rest / 2 * args.new_tokens > SLOW:
            slow.add(one)
    base = next(one for one in ready if one.kernel is None)
    usual = {"new_tokens": args.new_tokens, "repeats": args.repeats}
    found: dict[Variant, tuple[Speed, Speed]] = {}
    for options, some in ((usual, set(ready) - slow), (FEW, slow)):
        these = {one.label: model for one, model in ready.items() if one in {*some, base}}
        say(f"{which}: measuring {len(some)} with {options['new_tokens']} new tokens")
        took = speeds(these, prompt, batch=args.batch, **options) if some else {}
        found |= {one: (took[one.label], took[base.label]) for one in some}
    return {one: found[one] for one in ready}


def row_of(
    which: str,
    one: Variant,
    found: Mapping[Variant, tuple[Speed, Speed]],
    said: Mapping[str, Any],
    held: Mapping[str, float],
) -> dict[str, Any]:
    fast, base = found[one]
    return {
        "model": which,
        "weights": one.label,
        "format": one.format or "",
        "between layers": str(one.dtype).removeprefix("torch."),
        "counted, MiB": held["counted"] / MIB,
        "linears, MiB": held["linears"] / MIB,
        "process, MiB": held["process"] / MIB if "process" in held else "",
        **{key: held[key] / MIB for key in ("allocated", "peak") if key in held},
        "prefill, tokens/s": fast.prefill.median,
        "prefill, p95": fast.prefill.p95,
        "decode, tokens/s": fast.decode.median,
        "decode, p95": fast.decode.p95,
        "prefill, times 16 bits": fast.prefill.median / base.prefill.median,
        "decode, times 16 bits": fast.decode.median / base.decode.median,
        "new tokens": fast.new_tokens,
        **said,
    }


# ---------------------------------------------------------------------- memory, in fresh processes


def in_a_process_of_its_own(args: argparse.Namespace, which: str, one: Variant) -> dict[str, float]:
    asked = [which, one.kernel or "-", one.format or "-", str(one.dtype).removeprefix("torch.")]
    command = [sys.executable, __file__, "--device", args.device, "--layers", str(args.layers)]
    done = subprocess.run([*command, "--child", *asked], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {one.label} failed:\n{done.stderr[-2000:]}")
    say(f"{which}: memory of {one.label}")
    return json.loads(done.stdout.splitlines()[-1])


def child(
    args: argparse.Namespace, which: str, kernel: str, format: str, dtype: str
) -> dict[str, float]:
    """Bytes that a model holds, counted and as the process has them."""
    name, half = None if kernel == "-" else kernel, getattr(torch, dtype)
    # Everything that is loaded and set up once, by a small model of the same make.
    small = random_llama(
        hidden=256, layers=1, heads=4, kv_heads=2, intermediate=512, vocabulary=512, dtype=half,
        device=args.device,
    )  # fmt: skip
    small = small if name is None else pack_model(quantized_as(small, format), name)
    speed(small, [1, 2, 3], new_tokens=2, repeats=1)
    del small
    before = held_by_this_process()
    model = model_of(args, which, half)
    prompt = prompt_of(which, model)
    if name is not None:
        model = pack_model(quantized_as(model, format), name)
    speed(model, prompt, new_tokens=4, repeats=1)
    process = held_by_this_process() - before
    return {**counted(model), "process": process}


def counted(model: PackedModel | LoadedModel) -> dict[str, float]:
    """Bytes of parameters and buffers, and of the linears among them."""
    use = memory(model)
    linears = (size for part, size in use.parts.items() if "linears" in part)
    return {"counted": use.total, "linears": sum(linears)}


def held_by_this_process() -> int:
    """Proportional set size, once what was freed is really given back."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
    info = psutil.Process().memory_full_info()
    return int(getattr(info, "pss", info.rss))  # pss: Linux only


if __name__ == "__main__":
    main()
