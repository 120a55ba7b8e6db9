"""The texts that come with qviz: some to calibrate on, others, never seen in training, to evaluate.

They are files of the package because the standard library, from which most of them are taken,
differs between Python versions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from qviz.core.check import unknown

TEXTS = Path(__file__).parents[1] / "data" / "texts"


@dataclass(frozen=True)
class Text:
    """A text of the package: `role` is calibration or evaluation, `domain` what kind it is."""

    name: str
    description: str
    role: str
    domain: str
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


def calibration_texts() -> dict[str, Text]:
    """Name → text that methods may calibrate on."""
    return {name: text for name, text in _all_texts().items() if text.role == "calibration"}


def evaluation_texts() -> dict[str, Text]:
    """Name → text that the bundled model has not been trained on."""
    return {name: text for name, text in _all_texts().items() if text.role == "evaluation"}


def find_text(text: str) -> tuple[str, str]:
    """(caption, content) of a text of the package by its name, or of the learner's own text.

    A string with white space in it is a text, any other a name. Raises ValueError for an unknown
    name.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a name or one string, got {type(text).__name__}")
    if any(c.isspace() for c in text.strip()):
        return "your text", text
    known = _all_texts()
    if text not in known:
        raise ValueError(unknown("text", text, known))
    return text, known[text].text


@lru_cache(maxsize=1)
def _all_texts() -> dict[str, Text]:
    index = TEXTS / "texts.json"
    if not index.is_file():
        raise FileNotFoundError(f"the texts are missing from {TEXTS}; reinstall qviz")
    entries = json.loads(index.read_text(encoding="utf-8"))["texts"]
    return {
        e["name"]: Text(e["name"], e["description"], e["role"], e["domain"], TEXTS / e["file"])
        for e in entries
    }
