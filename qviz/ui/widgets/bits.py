"""Bits: the code of each frame's number format; every bit is a button, and can be painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import traitlets

from .base import BrowserWidget, module


@dataclass(frozen=True)
class Group:
    """Bits that belong together.

    kind   "sign", "exponent", "mantissa", "integer" or "index": how they look
    label  stands below them
    names  what each bit is called, the highest first
    """

    kind: str
    label: str
    names: tuple[str, ...]


class Bits(BrowserWidget):
    """A code as a row of bits, one row for each frame.

    `codes` has the code of each frame, `notes` what each of a frame's groups says now. What the
    learner did is in `pressed`: [frame, new code, number of the press]. Answer it with `set_codes`;
    until then the browser shows the bits as they were pressed.
    """

    _esm = module("bits")

    label = traitlets.Unicode().tag(sync=True)
    layouts = traitlets.List().tag(sync=True)  # per frame: its groups
    codes = traitlets.List(traitlets.Int()).tag(sync=True)
    notes = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    pressed = traitlets.List(traitlets.Int()).tag(sync=True)
    answered = traitlets.Int(0).tag(sync=True)

    def __init__(self, label: str, layouts: Sequence[Sequence[Group]]) -> None:
        """`layouts` are the groups of each frame, from the highest bit down."""
        made = [
            [{"kind": g.kind, "label": g.label, "names": list(g.names)} for g in groups]
            for groups in layouts
        ]
        super().__init__(label=label, layouts=made, codes=[0] * len(made))

    def width(self, frame: int) -> int:
        """How many bits a frame has."""
        return sum(len(group["names"]) for group in self.layouts[frame])

    def set_codes(self, codes: Sequence[int], notes: Sequence[Sequence[str]]) -> None:
        """Show a code for each frame. −1: the format has none for this number; its bits are 0.

        ValueError for a code that does not fit, or notes for another number of groups.
        """
        for frame, (code, said) in enumerate(zip(codes, notes, strict=True)):
            if not -1 <= code < 1 << self.width(frame):
                raise ValueError(f"code {code} does not fit into {self.width(frame)} bits")
            if len(said) != len(self.layouts[frame]):
                raise ValueError(f"{len(said)} notes for {len(self.layouts[frame])} groups of bits")
        with self.hold_sync():
            self.codes, self.notes = list(codes), [list(said) for said in notes]
            self.answered = self.pressed[2] if self.pressed else 0

    def press(self, frame: int, code: int) -> None:
        """The effect of a press on a bit: the frame now has this code."""
        if not 0 <= code < 1 << self.width(frame):
            raise ValueError(f"code {code} does not fit into {self.width(frame)} bits")
        self.pressed = [frame, code, (self.pressed[2] if self.pressed else 0) + 1]
