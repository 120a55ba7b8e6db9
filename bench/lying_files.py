"""What happens with model directories in which something is not so.

python bench/lying_files.py [NAME …]

With names only these are tried, and nothing is written. The directories are made by
tests/models/liars.py.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from record import save

import qviz
from qviz.models.checkpoint import list_layers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))
from cells import Outcome, sort_out
from liars import LIARS, build
from zoo import directory

LAYER = "layers.0.self_attn.q_proj"


def listed(name: str) -> str:
    return f"{len(list_layers(build(name)))} layers"


def read(name: str) -> str:
    weight = qviz.load_layer(build(name), LAYER)
    return f"{list(weight.shape)}, {_whose(name, weight)}"


def loaded(name: str) -> str:
    model = qviz.load_model(build(name))
    (layer,) = (w for n, w in qviz.linear_layers(model).items() if n.endswith(LAYER))
    head = model.model.get_output_embeddings().weight
    tied = torch.equal(head, model.model.get_input_embeddings().weight)
    return (
        f"{type(model.model).__name__}, {_whose(name, layer.weight)}, head "
        f"{'tied to the embeddings' if tied else 'of its own'}"
    )


def captured(name: str) -> str:
    """On the text of the liar."""
    calibration = qviz.capture(qviz.load_model(build(name)), LIARS[name].text)
    return f"{next(iter(calibration.values())).tokens} tokens"


def quantized(name: str) -> str:
    """With what was captured from the honest model of the same names and shapes."""
    honest = qviz.load_model(directory(LIARS[name].honest))
    calibration = qviz.capture(honest, LIARS[name].text.replace("<|user|> ", ""))
    made = qviz.quantize_model(
        qviz.load_model(build(name)), "gptq", calibration=calibration, group_size=None
    )
    return f"{len(made.tensors)} layers quantized"


def _whose(name: str, weight: torch.Tensor) -> str:
    """Whether a weight is that of the honest model."""
    honest = qviz.load_layer(directory(LIARS[name].honest), LAYER)
    if torch.equal(weight, honest):
        return "the honest weight"
    return f"another weight (largest {float(weight.abs().max()):.3g})"


ACTIONS: Mapping[str, Callable[[str], str]] = {
    "list_layers": listed,
    "load_layer": read,
    "load_model": loaded,
    "capture": captured,
    "GPTQ with the honest model's capture": quantized,
}


def tried(name: str) -> dict[str, Outcome]:
    """Action → what came of it."""
    path = build(name)

    def rename(words: str) -> str:
        return words.replace(str(path), "MODEL").replace(path.name, "MODEL")

    return {
        action: sort_out(lambda do=do: do(name), rename)  # type: ignore[misc]
        for action, do in ACTIONS.items()
    }


def row(name: str, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """One line of the table; a sentence that repeats the one before is not written again."""
    said: dict[str, str] = {}
    before = ""
    for action, o in outcomes.items():
        words = {"ok": "", "refused": "refused: ", "fails": "FAILS: "}[o.state] + o.words
        said[action] = "the same" if words == before else words
        before = words
    return {"directory": name, "what is not so": LIARS[name].lie, **said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these, and nothing is written")
    names = parser.parse_args().names
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    rows, failed = [], 0
    for name in names or LIARS:
        outcomes = tried(name)
        failed += sum(o.state == "fails" for o in outcomes.values())
        rows.append(row(name, outcomes))
        print(f"{name}: {LIARS[name].lie}", flush=True)
        for action in ACTIONS:
            print(f"    {action}: {rows[-1][action]}", flush=True)
    if not names:
        save("lying_files", "Model directories in which something is not so", rows)
    if failed:
        sys.exit(f"{failed} answers are faults")


if __name__ == "__main__":
    main()
