"""Vectors of two GPTQ implementations for the fast tests, on one small problem made of integers.

python tools/golden/gptq.py llmcompressor        with an interpreter that has it
python tools/golden/gptq.py reference CHECKOUT   of github.com/IST-DASLab/gptq at 2d65066
"""

import contextlib
import io
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SEED, ROWS, COLUMNS, TOKENS, DEAD = 2210, 16, 128, 256, 77
REFERENCE = [
    {"bits": 4, "symmetric": False, "group_size": None},
    {"bits": 4, "symmetric": True, "group_size": 128},
    {"bits": 3, "symmetric": False, "group_size": 32},
    {"bits": 2, "symmetric": False, "group_size": 16, "act_order": True},
    {"bits": 4, "symmetric": True, "group_size": 64, "act_order": True},
    {"bits": 3, "symmetric": False, "group_size": 32, "act_order": True, "static_groups": True},
    {"bits": 3, "symmetric": True, "group_size": 32, "static_groups": True, "damp": 0.1},
    {"bits": 4, "symmetric": False, "group_size": None, "mse": True},
    {"bits": 2, "symmetric": False, "group_size": 32, "mse": True},
    {"bits": 8, "symmetric": False, "group_size": 32, "block_size": 64},
]


def problem() -> tuple[np.ndarray, np.ndarray]:
    """Weight and inputs as int8; correlated inputs, some large channels, one that is always 0."""
    g = np.random.default_rng(SEED)
    mix = g.normal(size=(COLUMNS, COLUMNS)) / 12 + np.eye(COLUMNS)
    x = g.normal(size=(TOKENS, COLUMNS)) @ mix * g.uniform(2, 30, COLUMNS)
    x[:, DEAD] = 0
    w = g.standard_t(4, size=(ROWS, COLUMNS)) * 20
    return np.clip(np.rint(w), -127, 127).astype(np.int8), np.clip(np.rint(x), -127, 127).astype(
        np.int8
    )


def save(name: str, about: str, out: dict[str, np.ndarray]) -> None:
    path = GOLDEN / f"gptq_{name}.npz"
    origin = f"tools/golden/gptq.py, {about}, torch {torch.__version__}, seed {SEED}"
    np.savez_compressed(path, origin=np.array(origin), **out)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


def llmcompressor(w: torch.Tensor, h: torch.Tensor) -> None:
    from exactness.gptq import llmcompressor_run, llmcompressor_settings

    out = {}
    for settings in llmcompressor_settings((32, None)):
        codes, loss = llmcompressor_run(w, h.float(), **settings)
        key = "/".join(map(str, settings.values()))
        out[f"{key}/codes"] = codes.to(torch.int16).numpy().astype(np.int8)
        out[f"{key}/loss"] = np.array(loss)
    save("llmcompressor", f"llmcompressor {version('llmcompressor')}", out)


def reference(w: torch.Tensor, x: torch.Tensor, checkout: str) -> None:
    sys.path.insert(0, checkout)
    import gptq as theirs
    import quant

    torch.cuda.synchronize = lambda: None  # the code expects a GPU only for this
    out = {"settings": np.array(json.dumps(REFERENCE)), "dead": np.array(DEAD)}
    for i, s in enumerate(REFERENCE):
        layer = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        layer.weight.data = w.clone()
        run = theirs.GPTQ(layer)
        run.quantizer = quant.Quantizer()
        run.quantizer.configure(
            s["bits"], perchannel=True, sym=s["symmetric"], mse=s.get("mse", False)
        )
        run.add_batch(x.float().unsqueeze(1), None)  # every token a sequence: H per token, as ours
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            run.fasterquant(
                blocksize=s.get("block_size", 128),
                percdamp=s.get("damp", 0.01),
                groupsize=s["group_size"] or -1,
                actorder=s.get("act_order", False),
                static_groups=s.get("static_groups", False),
            )
        out[f"{i}/values"] = layer.weight.data.numpy()
        out[f"{i}/loss"] = np.array(float(printed.getvalue().split()[-1]))
    save("reference", "IST-DASLab/gptq 2d65066", out)


def main() -> None:
    sys.path[0] = str(ROOT / "tests")  # not this folder, in which "gptq" would be this very file
    codes, inputs = problem()
    np.savez_compressed(GOLDEN / "gptq_problem.npz", weight=codes, inputs=inputs)
    w, x = torch.from_numpy(codes).float() / 64, torch.from_numpy(inputs).double() / 16
    if sys.argv[1] == "reference":
        reference(w, x, sys.argv[2])
    else:
        llmcompressor(w, 2 * x.T @ x / len(x))


if __name__ == "__main__":
    main()
