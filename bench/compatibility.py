"""What works with which architecture: docs/compatibility.md, from a zoo of tiny random models.

python bench/compatibility.py [--merge] [NAME …]

With names only these are run, and nothing is written; with --merge too, they are, and the others
stand as recorded before. The models are those of tests/models/zoo.py, the checks those of
tests/models/cells.py.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from record import RESULTS, conditions

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))
from cells import CHECKS, NOTHING, Outcome, examine
from zoo import ZOO, Architecture

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"

KINDS = {
    "decoder": "Decoders",
    "recurrent": "Decoders with recurrent layers",
    "experts": "Mixtures of experts",
    "encoder": "Encoders",
    "part": "Decoders without their head, or with another one",
    "vision–language": "Vision and language",
    "encoder–decoder": "Encoder–decoders",
    "other": "No text",
}
SHORT = {"Sequential": "seq.", "SmoothQuant": "SQ", "rotation": "rot.", "perplexity": "ppl"}

Found = Mapping[str, Mapping[str, Outcome]]  # architecture → column → outcome

HEAD = """# Which models work

Every row is a tiny random model of one architecture, made from its transformers configuration,
saved as a checkpoint, and taken through qviz. What comes out is compared with transformers alone.
✓ means that it works and that the values are right. A number in brackets leads to a note below the
tables: the sentence with which qviz refuses, what it leaves out, or what is unusual in the model
(MODEL stands for the model's name, CLASS and TYPE for its class and model type). ✗ is a fault. A
dash: not tried, as the model is not loaded.

| column | ✓ when |
|---|---|
| load | `load_model` gives the class that config.json names, with every weight as it was saved |
| layers | the file and the model name the same layers (their number), `load_layer` reads them |
| share | how many of all parameters but embeddings and output head `quantize_model` quantizes |
| capture | Hessians are the same in batches of one and of four, and those of plain hooks |
| affine | every layer is what quantizing its weight gives, and nothing else is changed |
| GPTQ | the same layers, at no more output error than rounding to nearest |
| seq. | `Sequential` with nothing quantized shows every layer the inputs of a capture |
| AWQ, SQ | factors folded into the layers before leave the outputs as they were |
| rot. | `rotate_model` leaves the outputs as they were |
| ppl | `perplexity` is that of transformers' logits |
| text | `generate` writes what transformers' greedy `generate` writes |
"""


class Notes:
    """Sentences by number, in the order in which they are first needed."""

    def __init__(self) -> None:
        self.sentences: dict[str, int] = {}

    def number(self, sentence: str) -> int:
        return self.sentences.setdefault(sentence, len(self.sentences) + 1)

    def lines(self) -> list[str]:
        return [f"{number}. {_escaped(words)}" for words, number in self.sentences.items()]


def _escaped(words: str) -> str:
    return words.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def cell(column: str, outcome: Outcome, notes: Notes) -> str:
    """What stands in the table for an outcome."""
    if outcome.state == NOTHING:
        return NOTHING
    if outcome.state == "fails":
        return f"✗ ({notes.number(outcome.words)})"
    if outcome.state == "refused":
        return f"({notes.number(outcome.words)})"
    if column in ("layers", "share"):
        return outcome.words
    return f"✓ ({notes.number(outcome.words)})" if outcome.words else "✓"


def table(kind: str, found: Found, notes: Notes) -> list[str]:
    """The rows of one kind of model."""
    columns = list(CHECKS)
    titles = ["model", *(SHORT.get(c, c) for c in columns)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, outcomes in found.items():
        if ZOO[name].kind == kind:
            remark = f" ({notes.number(ZOO[name].note)})" if ZOO[name].note else ""
            cells = [cell(column, outcomes[column], notes) for column in columns]
            lines.append("| " + " | ".join([name + remark, *cells]) + " |")
    return lines


def summary(found: Found) -> str:
    """How many architectures and cells, and the results."""
    states = Counter(o.state for outcomes in found.values() for o in outcomes.values())
    cells = sum(states.values())
    loaded = sum(outcomes["load"].state == "ok" for outcomes in found.values())
    return (
        f"{len(found)} architectures, of which {loaded} load. Of {cells} cells {states['ok']} are "
        f"right, {states['refused']} refused in words, {states['fails']} wrong, and "
        f"{states[NOTHING]} cannot be tried because the model is not loaded."
    )


def page(found: Found, about: Mapping[str, object]) -> str:
    """docs/compatibility.md"""
    notes = Notes()
    versions = about["versions"]
    assert isinstance(versions, Mapping)
    lines = [HEAD, summary(found), ""]
    lines.append(
        f"Written by `python bench/compatibility.py` on {about['date']} with transformers "
        f"{versions['transformers']} and torch {versions['torch']}."
    )
    for kind, title in KINDS.items():
        if any(ZOO[name].kind == kind for name in found):
            lines += ["", f"## {title}", "", *table(kind, found, notes)]
    lines += ["", "## Notes", "", *notes.lines(), ""]
    return "\n".join(lines)


def rows(found: Found) -> list[dict[str, str]]:
    """The same for machines: "ok", "refused: …", "FAILS: …" or a dash in each cell."""
    return [
        {"model": name, "kind": ZOO[name].kind, **{c: spelled(o) for c, o in outcomes.items()}}
        for name, outcomes in found.items()
    ]


def spelled(outcome: Outcome) -> str:
    state = {"fails": "FAILS"}.get(outcome.state, outcome.state)
    return f"{state}: {outcome.words}" if outcome.words else state


def read(spelled: str) -> Outcome:
    """The outcome that is spelled like this."""
    state, _, words = spelled.partition(": ")
    return Outcome({"FAILS": "fails"}.get(state, state), words)


def survey(zoo: Sequence[Architecture]) -> dict[str, dict[str, Outcome]]:
    found = {}
    for one in zoo:
        start = time.perf_counter()
        found[one.name] = examine(one.name)
        print(f"{one.name} ({time.perf_counter() - start:.1f} s)", flush=True)
        for column, outcome in found[one.name].items():
            if outcome.words and not (outcome.state == "ok" and column in ("layers", "share")):
                print(f"    {column}: {spelled(outcome)}", flush=True)
    return found


def recorded() -> dict[str, dict[str, Outcome]]:
    """What was found before, of the models that are still in the zoo."""
    lines = json.loads((RESULTS / "compatibility.json").read_text(encoding="utf-8"))["rows"]
    known = {line["model"]: {c: read(line[c]) for c in CHECKS} for line in lines}
    return {name: outcomes for name, outcomes in known.items() if name in ZOO}


def write(found: Found, about: Mapping[str, object]) -> None:
    """The JSON file and the page."""
    data = {
        "title": "Which models work",
        "conditions": about,
        "rows": rows(found),
        "notes": summary(found),
    }
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "compatibility.json").write_text(text, encoding="utf-8")
    PAGE.write_text(page(found, about), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--merge", action="store_true", help="record them beside the others")
    given = parser.parse_args()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    about = conditions()
    found = survey([ZOO[name] for name in given.names or ZOO])
    print(summary(found))
    if given.merge:
        together = recorded() | found
        write({name: together[name] for name in ZOO if name in together}, about)
    elif not given.names:
        write(found, about)
    if any(o.state == "fails" for outcomes in found.values() for o in outcomes.values()):
        sys.exit("some cells are wrong")


if __name__ == "__main__":
    main()
