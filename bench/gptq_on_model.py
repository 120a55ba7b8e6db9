"""GPTQ on the bundled model: calibrated in one shot, and as the model is quantized.

    python bench/gptq_on_model.py [--tokens N] [--calibration-tokens N] [--dry-run] [LABEL …]

Calibration is Python source of the shipped calibration texts; perplexity is that of the shipped
held-out text. Only the linear layers are quantized, with symmetric levels; scales are stored in
float16.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from record import save, table

import qviz
from qviz.models.texts import find_text

NOTES = (
    "One shot: all Hessians from the 16-bit model. By subset, by block: each layer's Hessian from "
    "the model in which the layers before it are quantized (qviz.Sequential), calibrated again "
    "for each input of a block, or once for each block. Calibration on {tokens} tokens of Python "
    "source."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", nargs="*", help="only rows whose label contains one of these")
    parser.add_argument("--tokens", type=int, help="score only so many tokens")
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    model = qviz.load_model()
    how = {"texts": find_text("python")[1], "max_tokens": args.calibration_tokens}
    calibrations = {
        "": None,
        "one shot": qviz.capture(model, **how),
        "by subset": qviz.Sequential(**how),
        "by block": qviz.Sequential(order="block", **how),
    }
    base = qviz.perplexity(model, max_tokens=args.tokens).value
    rows = [{"bits": 16, "group": "", "method": "as stored", "calibrated": ""}]
    rows[0] |= {"bits per weight": 16, "perplexity": base, "times that of 16 bits": 1.0}
    for bits, group_size, label, method, calibrated, options in chosen(args.labels):
        given = calibrations[calibrated]
        made = qviz.quantize_model(
            model,
            method,
            calibration=given,
            bits=bits,
            group_size=group_size,
            scale_dtype=torch.float16,
            **options,
        )
        found = qviz.perplexity(made.model, max_tokens=args.tokens).value
        rows.append(
            {
                "bits": bits,
                "group": group_size,
                "method": label,
                "calibrated": calibrated,
                "bits per weight": round(made.bits_per_weight, 4),
                "perplexity": found,
                "times that of 16 bits": found / base,
            }
        )
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if args.dry_run or args.labels:
        print(table(rows))
    else:
        notes = NOTES.format(tokens=args.calibration_tokens)
        print(save("gptq_on_model", "GPTQ on the bundled model", rows, notes).read_text())


def chosen(labels: list[str]) -> Iterator[tuple[int, int, str, str, str, dict[str, Any]]]:
    """Bits, group size, label, method, how it is calibrated, and the options that remain."""
    methods = [("round to nearest", "affine", ("",), {})]
    for label, options in (("GPTQ", {}), ("GPTQ, act-order", {"act_order": True})):
        methods.append((label, "gptq", ("one shot", "by subset", "by block"), options))
    for bits in (4, 3, 2):
        for group_size in (128, 32):
            for label, method, ways, options in methods:
                for way in ways:
                    name = f"{bits} bits, g{group_size}, {label}, {way}"
                    if not labels or any(part.lower() in name.lower() for part in labels):
                        yield bits, group_size, label, method, way, options


if __name__ == "__main__":
    main()
