"""The bundled model: bits per byte beside xz, and what quantization does to it.

    python bench/bundled_model.py            # all held-out text; minutes on 2 cores
    python bench/bundled_model.py --tokens 2048 --dry-run

Perplexity of the held-out text that ships with the model, and a sample, at 16 bits (BF16 as
stored) and at 8, 6, 5, 4, 3, 2 bits by round-to-nearest, in groups of 128 and 32, symmetric and
asymmetric, scales in FP16. Calibration plays no part.
"""

import argparse
import json
import lzma
from collections.abc import Iterator
from typing import Any

import torch
from record import RESULTS, save, table

import qviz
from qviz.models.checkpoint import BUNDLED
from qviz.models.layers import LoadedModel
from qviz.models.texts import evaluation_texts

NAME, TITLE = "bundled_model", "Bundled model: perplexity on held-out Python by bits"
PROMPT = '''class Stack:
    """A stack of items."""

    def __init__(self):
'''
BITS, GROUPS = (8, 6, 5, 4, 3, 2), (128, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, help="score only so many tokens")
    parser.add_argument("--samples", action="store_true", help="new samples, rows as recorded")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    recorded = json.loads((RESULTS / f"{NAME}.json").read_text())["rows"] if options.samples else []
    rows, samples = [], []
    for i, (setting, model) in enumerate(settings(qviz.load_model())):
        rows.append(recorded[i] if recorded else {**setting, **score(model, options.tokens)})
        samples.append(f"{label(setting)}\n\n```python\n{PROMPT}{sample(model)}\n```")
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    notes = "\n\n".join([against_xz(), "## Samples (temperature 0.7, one seed)", *samples])
    if options.dry_run:
        print(TITLE, table(rows), notes, sep="\n\n")
    else:
        print(save(NAME, TITLE, rows, notes))


def settings(model: LoadedModel) -> Iterator[tuple[dict[str, Any], LoadedModel]]:
    """(what was done, the model) as stored, then for each setting."""
    stored = sum(p.numel() for p in model.model.parameters()) * 2  # BF16, tied weights once
    yield about("as stored", 16, "", 16.0, stored), model
    for group_size in GROUPS:
        for symmetric in (True, False):
            for bits in BITS:
                quantized = qviz.quantize_model(
                    model,
                    bits=bits,
                    symmetric=symmetric,
                    group_size=group_size,
                    scale_dtype=torch.float16,
                )
                kind = "symmetric" if symmetric else "asymmetric"
                cost = (quantized.bits_per_weight, quantized.nbytes())
                yield about(kind, bits, group_size, *cost), quantized.model


def about(kind: str, bits: int, group: int | str, per_weight: float, size: int) -> dict[str, Any]:
    return {
        "levels": kind,
        "bits": bits,
        "group": group,
        "bits per weight": per_weight,
        "model MB": size / 1e6,
    }


def score(model: LoadedModel, tokens: int | None) -> dict[str, Any]:
    found = qviz.perplexity(model, max_tokens=tokens)
    return {
        "perplexity": found.value,
        "bits per byte": found.bits_per_byte,
        "tokens": found.tokens,
    }


def label(row: dict[str, Any]) -> str:
    group = f", group {row['group']}" if row["group"] else ""
    return f"**{row['bits']} bits, {row['levels']}{group}**"


def sample(model: LoadedModel) -> str:
    return qviz.generate(model, PROMPT, max_new_tokens=96, temperature=0.7, seed=0)


def against_xz() -> str:
    """What the model card records over all held-out modules, and xz on the text measured here."""
    raw = b"".join(text.path.read_bytes() for text in evaluation_texts().values())
    ours = 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw)
    lines = [f"`xz -9e` needs {ours:.3f} bits per byte for the text measured above."]
    card = BUNDLED / "metrics.json"
    if card.is_file():
        whole = json.loads(card.read_text(encoding="utf-8"))["held_out"]
        lines.append(
            f"Over all held-out modules, as training recorded it: model "
            f"{whole['bits_per_byte']:.3f}, `xz -9e` {whole['xz_bits_per_byte']:.3f} bits per "
            f"byte, ratio {whole['ratio_to_xz']:.3f}."
        )
    return " ".join(lines)


if __name__ == "__main__":
    main()
