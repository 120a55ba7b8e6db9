"""Every method on the bundled model: true bits per weight, perplexity, error of its layers.

    python bench/methods_on_model.py [--tokens N] [--dry-run] [LABEL …]

Calibration is Python source of the shipped calibration texts, 8192 tokens; perplexity is that of
the shipped held-out text. Only the linear layers are quantized; scales are stored in float16 where
a method leaves the choice.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from record import save, table

import qviz
from qviz.core.calibration import Calibration
from qviz.core.linear import QuantizedLinear
from qviz.core.metrics import output_energy
from qviz.methods.gguf.mixes import layer_types
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.quantize import QuantizedModel
from qviz.models.rotate import rotate_model
from qviz.models.texts import find_text

HALF = {"scale_dtype": torch.float16}
G128, G32 = {"group_size": 128, **HALF}, {"group_size": 32, **HALF}
# bits that the row is about → label → (method, options); "rotated" runs on the rotated model,
# "file mix" gives each layer the type that such a GGUF file has there
ROWS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "8": {
        "round to nearest, rows": ("affine", {"bits": 8, "granularity": "channel", **HALF}),
        "LLM.int8()": ("llm_int8", {}),
        "SmoothQuant W8A8, α 0.5": ("smoothquant", {}),
        "MXFP8 E4M3": ("microscaling", {"format": "mxfp8_e4m3"}),
        "MXINT8": ("microscaling", {"format": "mxint8"}),
        "GGUF Q8_0": ("gguf", {"type": "Q8_0"}),
    },
    "6 and 5": {
        "MXFP6 E2M3": ("microscaling", {"format": "mxfp6_e2m3"}),
        "GGUF Q6_K": ("gguf", {"type": "Q6_K"}),
        "GGUF Q5_K": ("gguf", {"type": "Q5_K"}),
        "GGUF Q5_1": ("gguf", {"type": "Q5_1"}),
        "GGUF Q5_0": ("gguf", {"type": "Q5_0"}),
    },
    **{
        str(bits): {
            "round to nearest, g128": ("affine", {"bits": bits, **G128}),
            "round to nearest, g32": ("affine", {"bits": bits, **G32}),
            "round to nearest, asymmetric, g128": (
                "affine",
                {"bits": bits, "symmetric": False, **G128},
            ),
            "GPTQ, g128": ("gptq", {"bits": bits, **G128}),
            "GPTQ, act-order, g128": ("gptq", {"bits": bits, "act_order": True, **G128}),
            "GPTQ, g32": ("gptq", {"bits": bits, **G32}),
            "AWQ, g128": ("awq", {"bits": bits, **G128}),
            "HQQ, g64": ("hqq", {"bits": bits}),
            "rotated, round to nearest, g128": ("rotated", {"bits": bits, **G128}),
        }
        for bits in (4, 3, 2)
    },
}
ROWS["4"] |= {
    "NF4": ("nf4", {}),
    "NF4, double quantization": ("nf4", {"double_quant": True}),
    "FP4 (bitsandbytes)": ("nf4", {"format": "fp4"}),
    "MXFP4": ("microscaling", {}),
    "NVFP4": ("microscaling", {"format": "nvfp4"}),
    "GGUF Q4_K": ("gguf", {"type": "Q4_K"}),
    "GGUF Q4_0": ("gguf", {"type": "Q4_0"}),
    "GGUF Q4_1": ("gguf", {"type": "Q4_1"}),
}
ROWS["3"] |= {"GGUF Q3_K": ("gguf", {"type": "Q3_K"})}
for bits, file_type in (("4", "Q4_K_M"), ("3", "Q3_K_M"), ("2", "Q2_K")):
    for weighed in (False, True):
        label = f"GGUF file {file_type}" + (", weighted by importance" if weighed else "")
        ROWS[bits][label] = ("file mix", {"file_type": file_type, "weighed": weighed})
ROWS["2"] |= {
    "GGUF Q2_K": ("gguf", {"type": "Q2_K"}),
    "vectors of 4, 256 entries": ("vector", {"dim": 4, "bits": 8}),
    "two additive codebooks, vectors of 8": ("vector", {"dim": 8, "bits": 8, "books": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", nargs="*", help="only rows whose label contains one of these")
    parser.add_argument("--tokens", type=int, help="score only so many tokens")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    model = qviz.load_model()
    calibration = qviz.capture(model, find_text("python")[1], max_tokens=8192)
    rotated = rotate_model(model).model
    base = qviz.perplexity(model, max_tokens=args.tokens)
    rows = [
        {
            "bits": "16",
            "method": "as stored",
            "perplexity": base.value,
            "times that of 16 bits": 1.0,
        }
    ]
    for bits, label, method, options in chosen(args.labels):
        given = None if method == "rotated" else calibration
        if method == "rotated":
            made = qviz.quantize_model(rotated, "affine", **options)
        elif method == "file mix":
            own = mixed(model, calibration, **options)
            made = qviz.quantize_model(model, "gguf", per_layer=own)
        else:
            made = qviz.quantize_model(model, method, calibration=calibration, **options)
        found = qviz.perplexity(made.model, max_tokens=args.tokens).value
        rows.append(
            {
                "bits": bits,
                "method": label,
                "bits per weight": round(made.bits_per_weight, 4),
                "perplexity": found,
                "times that of 16 bits": found / base.value,
                "output error": "" if given is None else output_error(model, made, given),
            }
        )
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    notes = (
        "Output error: ‖X(W − Ŵ)ᵀ‖ / ‖XWᵀ‖ over all layers together, on the calibration inputs of "
        "the 16-bit model, from the weights alone (not for a rotated model, whose weights are "
        "others)."
    )
    if args.dry_run or args.labels:
        print(table(rows))
    else:
        print(
            save("methods_on_model", "Every method on the bundled model", rows, notes).read_text()
        )


def chosen(labels: list[str]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for bits, group in ROWS.items():
        for label, (method, options) in group.items():
            if not labels or any(part.lower() in label.lower() for part in labels):
                yield bits, label, method, options


def mixed(
    model: LoadedModel, calibration: Mapping[str, Calibration], file_type: str, weighed: bool
) -> dict[str, dict[str, Any]]:
    """Layer → its options in a GGUF file of this type; `weighed`: with an importance matrix."""
    types = layer_types(model.config.to_dict(), file_type, importance=weighed)
    own: dict[str, dict[str, Any]] = {name: {"type": kind} for name, kind in types.items()}
    if weighed:
        for name in own:
            own[name]["importance"] = calibration[name].hessian.diagonal() / 2
    return own


def output_error(
    model: LoadedModel, made: QuantizedModel, calibration: Mapping[str, Calibration]
) -> float:
    """Relative output error over all layers, each counted by its own energy."""
    layers = linear_layers(model)
    lost = whole = 0.0
    for name, tensor in made.tensors.items():
        q = tensor.weight if isinstance(tensor, QuantizedLinear) else tensor
        w = layers[name].weight.double()
        lost += output_energy(w - q.dequantize().double(), calibration[name])
        whole += output_energy(w, calibration[name])
    return math.sqrt(lost / whole)


if __name__ == "__main__":
    main()
