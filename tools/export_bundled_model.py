"""Write the bundled model's files into qviz/data from the checkpoint that training left.

    python tools/export_bundled_model.py

Model and tokenizer in the ordinary Hugging Face layout, the texts, the split, every measured
figure in metrics.json, and the model card, which `model_card.md` frames and metrics.json fills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from string import Template

import numpy as np
import torch
from stdlib_corpus import STDLIB, BundledText, Document, bundled_texts, documents, split
from torch.nn import functional as F
from train_bundled_model import END_OF_TEXT, LONG, SEED, TOKENS_PER_STEP, WORK, config
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DATA = Path(__file__).resolve().parent.parent / "qviz" / "data"
MODEL, TEXTS = DATA / "model", DATA / "texts"
PROMPTS = ["def read", "class Stack:\n    def", "    def __init__(self"]


@torch.no_grad()
def cost(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> tuple[float, int]:
    """Nats and tokens of the joined texts, each token predicted from 512 to 1023 before it.

    The end-of-text tokens between the texts count as nats to pay and bring no bytes, just as a
    compressor must store where a file ends.
    """
    ids = [0] + [token for text in texts for token in [*tokenizer(text)["input_ids"], 0]]
    stream = torch.tensor(ids)
    stride = LONG // 2
    nats, counted = 0.0, 0
    while counted < len(stream) - 1:
        end = min(len(stream), counted + 1 + (stride if counted else LONG - 1))
        window, fresh = stream[max(0, end - LONG) : end], end - counted - 1
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        nats += F.cross_entropy(logits[-fresh:], window[-fresh:], reduction="sum").item()
        counted += fresh
    return nats, counted


def figures(texts: list[str], nats: float, tokens: int) -> dict[str, float]:
    """Loss per token and bits per byte, beside what `xz -9e` needs for the same bytes."""
    raw = "".join(texts).encode()
    bits_per_byte = nats / np.log(2) / len(raw)
    xz_bits_per_byte = 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw)
    return {
        "bytes": len(raw),
        "tokens": tokens,
        "loss": nats / tokens,
        "perplexity": float(np.exp(nats / tokens)),
        "bits_per_byte": float(bits_per_byte),
        "xz_bits_per_byte": xz_bits_per_byte,
        "ratio_to_xz": float(bits_per_byte / xz_bits_per_byte),
    }


@torch.no_grad()
def activation_outliers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str
) -> dict[str, dict[str, float]]:
    """Per linear layer: its input channels' absolute maxima, the largest against the median."""
    absmax: dict[str, torch.Tensor] = {}

    def record(name: str) -> Callable:
        def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            new = arguments[0].abs().flatten(0, -2).amax(0)  # [in_features]
            absmax[name] = torch.maximum(absmax.get(name, new), new)

        return hook

    hooks = [
        module.register_forward_pre_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        for window in torch.tensor(tokenizer(text)["input_ids"]).split(LONG):
            model(input_ids=window[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: {
            "max": values.max().item(),
            "median": values.median().item(),
            "ratio": (values.max() / values.median()).item(),
        }
        for name, values in absmax.items()
    }


def samples(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, str]]:
    """What the model really writes: once greedily, once drawn with a fixed seed."""
    made = []
    ways = {
        "greedy": {"do_sample": False},
        "temperature 0.7, top-p 0.9": {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
    }
    for prompt in PROMPTS:
        for name, options in ways.items():
            torch.manual_seed(SEED)
            inputs = tokenizer(prompt, return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=120, top_k=None, **options)
            text = tokenizer.decode(output[0], skip_special_tokens=True)
            made.append({"prompt": prompt, "decoding": name, "text": text})
    return made


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_test(path: str) -> bool:
    return path.startswith("test/") or "/test" in path


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_texts(texts: list[BundledText]) -> None:
    """The calibration and evaluation texts, and what each of them is."""
    TEXTS.mkdir(parents=True, exist_ok=True)
    index = []
    for text in texts:
        raw = text.text.encode()
        (TEXTS / f"{text.name}.txt").write_bytes(raw)
        index.append(
            {
                "name": text.name,
                "file": f"{text.name}.txt",
                "role": text.role,
                "domain": text.domain,
                "description": text.description,
                "bytes": len(raw),
                "sha256": hashlib.sha256(raw).hexdigest(),
                "sources": text.sources,
            }
        )
    write_json(TEXTS / "texts.json", {"python": platform.python_version(), "texts": index})


def processor() -> str:
    """The processor's name, where the system tells it."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else platform.processor()


def card(metrics: dict, note: str) -> str:
    """The model card: the template with the figures of this run."""
    measured = {
        "held-out text, all of it": metrics["held_out"],
        "its library sources": metrics["held_out_sources"],
        "its tests": metrics["held_out_tests"],
        "`heldout_python.txt`": metrics["heldout_python.txt"],
        "`python.txt`: training text": metrics["python.txt"],
    }
    rows = [
        f"| {name} | {m['bytes']:,} | {m['loss']:.3f} | {m['perplexity']:.2f} "
        f"| {m['bits_per_byte']:.3f} | {m['xz_bits_per_byte']:.3f} | {m['ratio_to_xz']:.3f} |"
        for name, m in measured.items()
    ]
    outliers = sorted(metrics["activation_outliers"].items(), key=lambda item: -item[1]["ratio"])
    written = [
        f"Prompt `{sample['prompt']!r}`, {sample['decoding']}:\n\n"
        f"```python\n{sample['text']}\n```\n"
        for sample in metrics["samples"]
    ]
    training = metrics["training"]
    return Template((Path(__file__).parent / "model_card.md").read_text()).substitute(
        training,
        note=note,
        parameters=f"{metrics['parameters']:,}",
        million_seen=f"{training['tokens_seen'] / 1e6:.1f}",
        million_tokens=f"{training['tokens_in_text'] / 1e6:.2f}",
        python=metrics["python"],
        torch=metrics["torch"],
        processor=metrics["processor"],
        cores=metrics["cores"],
        results="\n".join(rows),
        outliers="\n".join(f"| `{name}` | {o['ratio']:.1f} |" for name, o in outliers[:6]),
        samples="\n".join(written),
        repeated_percent=f"{100 * metrics['held_out_lines_repeated']:.1f}",
        held_out_percent=f"{100 * metrics['held_out_share']:.1f}",
    )


def write_model(
    work: Path, weights: dict[str, torch.Tensor]
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model (rounded to BF16) and tokenizer in the ordinary Hugging Face layout."""
    model = LlamaForCausalLM(config())
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.bfloat16().save_pretrained(MODEL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(MODEL)
    (MODEL / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    return model, tokenizer


def repeated_lines(known: list[str], unseen: list[str]) -> float:
    """Share of the unseen texts' long lines that stand word for word in the known texts."""
    lines = {line for text in known for line in text.splitlines()}
    long_lines = [s for text in unseen for s in text.splitlines() if len(s.strip()) >= 40]
    return sum(line in lines for line in long_lines) / len(long_lines)


def write_split(found: list[Document], training: list[str], held_out: list[str]) -> None:
    size = dict.fromkeys(("training", "held_out"), 0)
    for document in found:
        side = "held_out" if document.module in set(held_out) else "training"
        size[side] += len(document.text.encode())
    write_json(
        MODEL / "split.json",
        {
            "python": platform.python_version(),
            "bytes": size,
            "held_out": held_out,
            "held_out_files": [d.path for d in found if d.module in set(held_out)],
            "training": training,
        },
    )


def export(work: Path, note: str) -> None:
    """Write model, texts, split, metrics and card into qviz/data from the last checkpoint."""
    MODEL.mkdir(parents=True, exist_ok=True)
    found = documents()
    training, held_out = split(found)
    held_docs = [d for d in found if d.module in set(held_out)]
    train_docs = [d for d in found if d.module in set(training)]
    texts = bundled_texts(found, training, held_out)
    write_texts(texts)
    write_split(found, training, held_out)
    # The PSF License asks that it travels with what is derived from CPython.
    (MODEL / "LICENSE.txt").write_bytes((STDLIB / "LICENSE.txt").read_bytes())
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    model, tokenizer = write_model(work, state["model"])

    # Measured with the weights as shipped, rounded to BF16, and arithmetic in float32.
    model.float().eval()
    tests = [d.text for d in held_docs if is_test(d.path)]
    sources = [d.text for d in held_docs if not is_test(d.path)]
    bundled = {text.name: text.text for text in texts}
    shipped, known = [bundled["heldout_python"]], bundled["python"]
    of_sources, of_tests = cost(model, tokenizer, sources), cost(model, tokenizer, tests)
    everything = figures(sources + tests, of_sources[0] + of_tests[0], of_sources[1] + of_tests[1])
    metrics = {
        "parameters": model.num_parameters(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor(),
        "cores": os.cpu_count(),
        "training": {
            "minutes": round(state["elapsed"] / 60),
            "core_minutes": round(state["cpu_seconds"] / 60),
            "steps": state["step"],
            "tokens_seen": state["step"] * TOKENS_PER_STEP,
            "tokens_in_text": state["tokens"],
            "epochs": round(state["step"] * TOKENS_PER_STEP / state["tokens"], 2),
            "files": len(train_docs),
        },
        "held_out_share": everything["bytes"] / sum(len(d.text.encode()) for d in found),
        "held_out_lines_repeated": repeated_lines(
            [d.text for d in train_docs], [d.text for d in held_docs]
        ),
        "held_out": everything,
        "held_out_sources": figures(sources, *of_sources),
        "held_out_tests": figures(tests, *of_tests),
        "heldout_python.txt": figures(shipped, *cost(model, tokenizer, shipped)),
        "python.txt": figures([known], *cost(model, tokenizer, [known])),
        "activation_outliers": activation_outliers(model, tokenizer, known),
        "samples": samples(model, tokenizer),
    }
    metrics["files"] = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(MODEL.iterdir())
        if path.name not in ("README.md", "metrics.json")
    }
    write_json(MODEL / "metrics.json", metrics)
    (MODEL / "README.md").write_text(card(metrics, note), encoding="utf-8")
    total = sum(p.stat().st_size for p in MODEL.parent.rglob("*") if p.is_file())
    print(f"bits per byte {everything['bits_per_byte']:.3f}, qviz/data {total:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the checkpoint")
    parser.add_argument("--note", default="", help="what else the card should say of the training")
    arguments = parser.parse_args()
    export(arguments.work, arguments.note)


if __name__ == "__main__":
    main()
