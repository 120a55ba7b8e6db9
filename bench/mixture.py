"""A mixture of experts, trained here: perplexity by method, and every expert's own error.

    python bench/mixture.py            # trains a small Mixtral for some minutes, then quantizes it

Two blocks of 128 channels with eight experts each, two for a token, the bundled model's tokenizer,
trained on four fifths of the package's evaluation text and scored on the last fifth. One expert of
each block is then kept from all tokens by its router, so that an expert without calibration is
among them. 3 bits in groups of 32.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from record import save, table

import qviz
from qviz.models.checkpoint import BUNDLED
from qviz.models.layers import LoadedModel, linear_layers
from qviz.models.load import load_model
from qviz.models.reading import as_in_use
from qviz.models.texts import calibration_texts, evaluation_texts
from qviz.study.sweep import measure

NAME, TITLE = "mixture", "A small trained mixture of experts: perplexity and error per expert"
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
STARVED, BITS = 5, {"bits": 3, "group_size": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="training steps")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to score")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = trained(Path(folder), options.steps)
    rows = [
        {"": "as trained", "perplexity": score(model, options.tokens)},
    ]
    starve(model)
    rows.append(
        {
            "": "one expert of each block kept from tokens",
            "perplexity": score(model, options.tokens),
        }
    )
    texts = [split()[0], calibration_texts()["python"].text]
    captured = qviz.capture(model, texts, max_tokens=16384)
    experts: list[dict[str, Any]] = []
    for method, how in methods(texts, captured).items():
        name, calibration, given = how
        done = qviz.quantize_model(model, name, calibration=calibration, **given)
        rows.append(
            {
                "": method,
                "perplexity": score(done.model, options.tokens),
                "bits per weight": done.bits_per_weight,
                "share of parameters": f"{done.share:.1%}",
                "notes": "; ".join(done.notes) or "none",
            }
        )
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        experts += [{"method": method, **row} for row in errors(model, done, captured)]
    wide = by_expert(experts)
    notes = f"## Relative output error of each expert's matrix, on its own tokens\n\n{table(wide)}"
    if options.dry_run:
        print(TITLE, table(rows), notes, sep="\n\n")
    else:
        print(save(NAME, TITLE, rows, notes))


def methods(texts: list[str], captured: Mapping[str, Any]) -> dict[str, tuple[str, Any, Any]]:
    sequential = qviz.Sequential(texts, max_tokens=16384)
    gptq_grid = {**BITS, "convention": "gptq"}
    return {
        "round to nearest": ("affine", None, gptq_grid),
        "GPTQ": ("gptq", captured, BITS),
        "GPTQ, sequential": ("gptq", sequential, BITS),
        "AWQ, not folded": ("awq", captured, {**BITS, "fold": False}),
        "NF4": ("nf4", None, {}),
        "LLM.int8()": ("llm_int8", None, {}),
    }


def trained(folder: Path, steps: int) -> LoadedModel:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED)
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        **SIZES, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=tokenizer.eos_token_id
    )
    config._experts_implementation = "eager"
    model = transformers.MixtralForCausalLM(config)
    ids = tokenizer(split()[0], verbose=False)["input_ids"]
    stream, length, batch = torch.tensor(ids), 128, 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        starts = torch.randint(0, len(stream) - length - 1, (batch,))
        windows = torch.stack([stream[s : s + length] for s in starts])
        loss = model(input_ids=windows, labels=windows, output_router_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder)


def starve(model: LoadedModel) -> None:
    """Keep one expert of each block from all tokens: its router never chooses it."""
    for block in model.model.model.layers:  # type: ignore[union-attr]
        gate = block.mlp.gate
        original = gate.forward

        def forward(hidden: torch.Tensor, gate: Any = gate, original: Any = original) -> Any:
            logits = original(hidden)[0].clone()
            logits[:, STARVED] = -torch.inf
            scores, chosen = torch.topk(logits.float().softmax(-1), gate.top_k, dim=-1)
            return logits, scores / scores.sum(-1, keepdim=True), chosen

        gate.forward = forward


def split() -> tuple[str, str]:
    """What the mixture is trained on, and what it is scored on: of the text that the bundled model
    was never trained on, which is no matter here."""
    text = "".join(one.text for one in evaluation_texts().values())
    middle = text.index("\n", len(text) * 4 // 5)
    return text[:middle], text[middle:]


def score(model: LoadedModel, tokens: int) -> float:
    with as_in_use(model):
        return qviz.perplexity(model, split()[1], max_tokens=tokens).value


def errors(model: LoadedModel, done: Any, captured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """‖(W − Ŵ)·X‖ / ‖W·X‖ by each expert's Hessian; the weight's own error without tokens."""
    rows = []
    for name, layer in linear_layers(model).items():
        if layer.stack is None or name not in done.tensors:
            continue
        made = done.tensors[name]
        figures = measure(layer.weight, made, captured.get(name))
        without = name not in captured
        rows.append(
            {
                "expert": name.removeprefix("model.layers."),
                "tokens": 0 if without else captured[name].tokens,
                "error": figures["relative_error" if without else "output_error"],
            }
        )
    return rows


def by_expert(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wide: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = wide.setdefault(row["expert"], {"expert": row["expert"], "tokens": row["tokens"]})
        line[row["method"]] = row["error"]
    return list(wide.values())


if __name__ == "__main__":
    main()
