"""Fill the tables of README.md from the course and from recorded measurements.

    python tools/readme.py

Each table stands between <!-- NAME --> and <!-- /NAME -->; a test compares.
"""

import json
import re
from pathlib import Path
from typing import Any

from qviz.ui.views.lessons import LESSONS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"


def filled(text: str) -> str:
    """The page's text with every table as it should be."""
    for name, table in (("course", course()), ("damage", damage()), ("models", models())):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, found = re.subn(pattern, lambda m, t=table: m[1] + t + m[2], text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"README.md has {found} places for the table {name}; it needs one")
    return text


def course() -> str:
    lines = ["| lesson | the question |", "|---|---|"]
    lines += [f"| {one.number} {one.title} | {one.question} |" for one in LESSONS]
    return "\n".join(lines) + "\n"


def damage() -> str:
    """Perplexity of the bundled model by method, at about 4, 3 and 2 bits."""
    rows = recorded("methods_on_model")["rows"]
    stored = rows[0]["perplexity"]
    wanted = ("round to nearest, g128", "AWQ, g128", "GPTQ, g128")
    lines = [
        f"| bits per weight · perplexity ({stored:.2f} at 16) | about 4 bits | about 3 | about 2 |",
        "|---|---|---|---|",
    ]
    for method in wanted:
        cells = [
            f"{row['bits per weight']:.2f} · {row['perplexity']:.2f}"
            for bits in ("4", "3", "2")
            for row in rows
            if (row["bits"], row["method"]) == (bits, method)
        ]
        if len(cells) != 3:
            raise ValueError(f"methods_on_model.json has {len(cells)} of 3 rows of {method}")
        name = method.replace("g128", "groups of 128")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def models() -> str:
    """What the recorded compatibility run found, in one sentence."""
    notes = recorded("compatibility")
    count = len(notes["rows"])
    loads = sum(str(row["load"]).startswith("ok") for row in notes["rows"])
    cells = [str(v) for row in notes["rows"] for k, v in row.items() if k not in ("model", "kind")]
    good = sum(cell.startswith("ok") for cell in cells)
    refused = sum(cell.startswith("refused") for cell in cells)
    wrong = sum(cell.startswith("FAILS") for cell in cells)
    return (
        f"Of {count} architectures tried, {loads} load. Of the operations tried on them, "
        f"{good:,} gave right results, {refused} were refused with a reason, and {wrong} gave "
        "wrong results.\n"
    )


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
