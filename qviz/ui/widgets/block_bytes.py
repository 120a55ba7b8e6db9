"""BlockBytes: the bytes of one block, section by section, and the meaning of each of their bits."""

from __future__ import annotations

from collections.abc import Sequence

import traitlets

from .base import BrowserWidget, module

#: What some neighbouring bits of a byte mean: (the lowest, how many, words).
Meaning = tuple[int, int, str]


class BlockBytes(BrowserWidget):
    """Bytes in hexadecimal. Pointing at one, or going to it with the arrow keys, says what its bits
    mean; a press holds it, and `chosen` is its number (−1: none).

    `written` says for each frame how many bytes there are by then, `now` which section is being
    written (−1: none). `lit` are bits [byte, lowest bit, how many] that belong together. `others`
    are the bytes of another block of the type, or empty: those that differ are marked.
    """

    _esm = module("block_bytes")

    label = traitlets.Unicode().tag(sync=True)
    values = traitlets.List(traitlets.Int()).tag(sync=True)
    others = traitlets.List(traitlets.Int()).tag(sync=True)
    sections = traitlets.List().tag(sync=True)  # [name, bytes, words]
    meanings = traitlets.List().tag(sync=True)  # per byte: [lowest bit, how many, words], from top
    written = traitlets.List(traitlets.Int()).tag(sync=True)
    now = traitlets.List(traitlets.Int()).tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    lit = traitlets.List().tag(sync=True)
    chosen = traitlets.Int(-1).tag(sync=True)

    def __init__(self, label: str) -> None:
        super().__init__(label=label)

    def set_block(
        self,
        values: Sequence[int],
        sections: Sequence[tuple[str, int, str]],
        meanings: Sequence[Sequence[Meaning]],
        *,
        written: Sequence[int],
        now: Sequence[int],
        others: Sequence[int] = (),
    ) -> None:
        """Another block. ValueError where bytes, sections and meanings do not fit together."""
        if sum(size for _, size, _ in sections) != len(values) or len(meanings) != len(values):
            raise ValueError(
                f"{len(values)} bytes for sections of {[size for _, size, _ in sections]} and "
                f"{len(meanings)} meanings"
            )
        for byte, each in enumerate(meanings):
            if sum(bits for _, bits, _ in each) != 8:
                raise ValueError(f"the meanings of byte {byte} are not about its 8 bits")
        if len(written) != len(now) or not written:
            raise ValueError(f"{len(written)} frames of bytes for {len(now)} of sections")
        if others and len(others) != len(values):
            raise ValueError(f"{len(others)} bytes beside {len(values)}")
        with self.hold_sync():
            self.values, self.others = [int(v) for v in values], [int(v) for v in others]
            self.sections = [list(one) for one in sections]
            self.meanings = [[list(one) for one in each] for each in meanings]
            self.written, self.now = list(written), list(now)
            if self.chosen >= len(self.values):
                self.chosen = -1
