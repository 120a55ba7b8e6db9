"""Train the bundled model on this Python's standard library: a good hour on two cores.

    python tools/train_bundled_model.py --minutes 60
    python tools/export_bundled_model.py

Training leaves its checkpoint in `.work/bundled_model` and resumes from there when it was
interrupted.  The second command writes the files of qviz/data from that checkpoint.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
from stdlib_corpus import Document, documents, split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

WORK = Path(__file__).resolve().parent.parent / ".work" / "bundled_model"

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2816
SEED = 2026
WORKERS = 2  # processes, one per core
TOKENS_PER_STEP = 12288
SHORT, LONG = 512, 1024  # tokens per sequence, before and after LONG_FROM
LONG_FROM = 0.75
WARM_UP, DECAY_FROM = 0.02, 0.55  # shares of the time
MUON_RATE, ADAMW_RATE = 3e-3, 3e-3

log = logging.getLogger("train")


def config() -> LlamaConfig:
    """The architecture: every width a multiple of 256, so that k-quant super-blocks fit."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONG,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        # No pad token here: PyTorch would stop training the embedding row of that token.
        pad_token_id=None,
        use_cache=True,
    )


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenizer pattern, learned from the training text alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, found: list[Document]) -> list[np.ndarray]:
    """Token ids per document, each with the end-of-text token in front."""
    encodings = tokenizer.encode_batch([document.text for document in found])
    return [np.array([0, *encoding.ids], dtype=np.uint16) for encoding in encodings]


def batches(encoded: list[np.ndarray], length: int, rng: np.random.Generator, rank: int = 0):
    """One epoch of [batch, length + 1] token ids: documents shuffled, joined, cut at new places.

    Each step's rows are dealt to the worker processes in turn.
    """
    order = rng.permutation(len(encoded))
    stream = np.concatenate([encoded[i] for i in order])[rng.integers(length) :]
    count = (len(stream) - 1) // length
    starts = rng.permutation(count) * length
    per_step = TOKENS_PER_STEP // length
    for i in range(0, count - per_step + 1, per_step):
        mine = starts[i + rank : i + per_step : WORKERS]
        rows = np.stack([stream[s : s + length + 1] for s in mine])
        yield torch.from_numpy(rows.astype(np.int64))


def rate(progress: float) -> float:
    """Share of the full learning rate: warm-up, constant, linear decay to zero."""
    return max(0.0, min(1.0, progress / WARM_UP, (1.0 - progress) / (1.0 - DECAY_FROM)))


def optimizers(model: LlamaForCausalLM, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for the embedding and the norms."""
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    adamw = {"lr": ADAMW_RATE, "betas": (0.9, 0.95), "weight_decay": 0.0}
    if not muon:
        return [
            torch.optim.AdamW(inside, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1),
            torch.optim.AdamW(others, **adamw),
        ]
    # match_rms_adamw scales each update to the size that AdamW's would have, whatever the shape.
    return [
        torch.optim.Muon(inside, lr=MUON_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, **adamw),
    ]


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.lm_head(model.model(input_ids=inputs, use_cache=False).last_hidden_state)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def quick_loss(model: LlamaForCausalLM, encoded: list[np.ndarray]) -> float:
    """Held-out loss of 72 fixed windows, to watch for overfitting on the way."""
    rng = np.random.default_rng(0)
    epoch = batches(encoded, SHORT, rng)
    rows = [next(epoch) for _ in range(6)]
    return float(np.mean([loss_of(model, row[:, :-1], row[:, 1:]).item() for row in rows]))


def average(values: list[torch.Tensor]) -> None:
    """Replace the tensors by their mean over the workers, in one message."""
    flat = torch.cat([value.flatten() for value in values])
    distributed.all_reduce(flat)
    flat /= WORKERS
    for value, mean in zip(values, flat.split([v.numel() for v in values]), strict=True):
        value.copy_(mean.view_as(value))


def train(rank: int, minutes: float, muon: bool, work: Path) -> None:
    """Train for `minutes` of wall time; the schedule follows the clock, not a step count.

    One process per core that meet once per step: with one process of two threads, which meet
    several hundred times per step, any other program on the machine slows training fivefold.
    """
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{work}/rendezvous", rank=rank, world_size=WORKERS
    )
    handlers = [logging.FileHandler(work / "train.log"), logging.StreamHandler()]
    logging.basicConfig(format="%(asctime)s %(message)s", handlers=handlers)
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    torch.manual_seed(SEED)
    found = documents()
    training, held_out = map(set, split(found))
    train_docs = [d for d in found if d.module in training]
    held_docs = [d for d in found if d.module in held_out]
    if rank == 0 and not (work / "tokenizer.json").exists():
        train_tokenizer([d.text for d in train_docs]).save(str(work / "tokenizer.json"))
    distributed.barrier()
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    encoded, held_encoded = encode(tokenizer, train_docs), encode(tokenizer, held_docs)
    tokens = sum(map(len, encoded))
    log.info("%d training documents, %d tokens", len(encoded), tokens)

    model = LlamaForCausalLM(config())
    parameters = list(model.parameters())
    optims = optimizers(model, muon)
    full_rates = [o.param_groups[0]["lr"] for o in optims]
    compiled = torch.compile(lambda x, y: loss_of(model, x, y), dynamic=False)
    checkpoint = work / "checkpoint.pt"
    step, epoch, elapsed_before, cpu_before = 0, 0, 0.0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optimizers"], strict=True):
            optim.load_state_dict(saved)
        step, epoch, elapsed_before = state["step"], state["epoch"] + 1, state["elapsed"]
        cpu_before = state["cpu_seconds"]
        log.info("resumed at step %d", step)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizers": [o.state_dict() for o in optims],
            "step": step,
            "epoch": epoch,
            "elapsed": elapsed,
            "tokens": tokens,
            "cpu_seconds": cpu_before + WORKERS * time.process_time(),
            "minutes": minutes,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)  # never half a checkpoint
        log.info("held-out loss %.4f", quick_loss(model, held_encoded))

    start = last_save = time.monotonic()
    recent: list[float] = []
    progress = 0.0
    while progress < 1.0:
        length = SHORT if progress < LONG_FROM else LONG
        for rows in batches(encoded, length, np.random.default_rng([SEED, epoch]), rank):
            for optim, full in zip(optims, full_rates, strict=True):
                for group in optim.param_groups:
                    group["lr"] = full * rate(progress)
            loss = compiled(rows[:, :-1], rows[:, 1:])
            loss.backward()
            # The clock is averaged too, so that all workers agree about the schedule.
            clock = torch.tensor(elapsed_before + time.monotonic() - start)
            loss = loss.detach()
            average([*(p.grad for p in parameters), loss, clock])
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optim in optims:
                optim.step()
                optim.zero_grad()
            step += 1
            elapsed = clock.item()
            progress = elapsed / (60 * minutes)
            recent.append(loss.item())
            if step % 50 == 0:
                mean = np.mean(recent)
                log.info("step %d  %.0f s  epoch %d  loss %.4f", step, elapsed, epoch, mean)
                recent.clear()
            if rank == 0 and time.monotonic() - last_save > 240:
                save()
                last_save = time.monotonic()
            if progress >= 1.0 or (length == SHORT and progress >= LONG_FROM):
                break
        epoch += 1
    if rank == 0:
        save()
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="wall time of the training")
    parser.add_argument("--adamw", action="store_true", help="AdamW everywhere, to compare")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the checkpoints")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    (work / "rendezvous").unlink(missing_ok=True)  # of a run that was killed
    spawn(train, (arguments.minutes, not arguments.adamw, work), nprocs=WORKERS)


if __name__ == "__main__":
    main()
