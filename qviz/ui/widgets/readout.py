"""Readout and Caption: words and numbers for each frame, sent ahead."""

from __future__ import annotations

from collections.abc import Sequence

import traitlets

from .base import BrowserWidget, module

Row = tuple[str, str | Sequence[str]] | tuple[str, str | Sequence[str], str]


class Readout(BrowserWidget):
    """A table of named values: one weight's arithmetic, a ledger of bits.

    >>> table = Readout("One weight", [("code", ["3", "12"], "codes"), ("trained", "0.0412")])
    >>> table.rows[1]
    {'label': 'trained', 'texts': ['0.0412'], 'role': ''}
    """

    _esm = module("readout")

    label = traitlets.Unicode().tag(sync=True)
    rows = traitlets.List().tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)

    def __init__(self, label: str = "", rows: Sequence[Row] = ()) -> None:
        super().__init__(label=label)
        self.set_rows(rows)

    def set_rows(self, rows: Sequence[Row], label: str | None = None) -> None:
        """Replace all rows: (label, text for all frames or a text per frame[, role of the label]).

        Labels and texts may hold _{…} and ^{…}. `role` is one of the colours' meanings.
        """
        made = []
        for row in rows:
            name, texts, role = row if len(row) == 3 else (*row, "")
            each = [texts] if isinstance(texts, str) else [str(text) for text in texts]
            if not each:
                raise ValueError(f"row {name!r} has no text")
            made.append({"label": name, "texts": each, "role": role})
        counts = {len(row["texts"]) for row in made} - {1}
        if len(counts) > 1:
            raise ValueError(f"rows have texts for different numbers of frames: {sorted(counts)}")
        with self.hold_sync():
            if label is not None:
                self.label = label
            self.rows = made


class Caption(BrowserWidget):
    """One sentence per frame, spoken to screen readers when the frame has come to rest."""

    _esm = module("caption")

    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    source = traitlets.Unicode().tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)

    def __init__(self, texts: Sequence[str] | str = "", source: str = "") -> None:
        """`source` is a small reference after the sentence, such as a paper's equation."""
        super().__init__(source=source)
        self.set_texts(texts)

    def set_texts(self, texts: Sequence[str] | str) -> None:
        """Replace the sentences: one for all frames or one per frame."""
        self.texts = [texts] if isinstance(texts, str) else [str(text) for text in texts]


class Code(BrowserWidget):
    """Text to read and copy, such as the library calls behind a frame: one for all frames or one
    per frame. `lit` are the line numbers, from 1, that a frame is about; `label` names the text."""

    _esm = module("code")

    label = traitlets.Unicode("Python code").tag(sync=True)
    texts = traitlets.List(traitlets.Unicode()).tag(sync=True)
    lit = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)

    def __init__(self, texts: Sequence[str] | str = "", *, label: str = "Python code") -> None:
        super().__init__(label=label)
        self.set_texts(texts)

    def set_texts(self, texts: Sequence[str] | str, lit: Sequence[Sequence[int]] = ()) -> None:
        """Replace the texts, and which lines each frame is about."""
        with self.hold_sync():
            self.lit = [list(lines) for lines in lit]
            self.texts = [texts] if isinstance(texts, str) else [str(text) for text in texts]
