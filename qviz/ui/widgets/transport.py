"""Transport: the one set of buttons for everything that steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import traitlets

from .base import BrowserWidget, module


class Transport(BrowserWidget):
    """To start, back, play or pause, forward, to end, scrub, speed, jump to an event, caption.

    Playing happens in the browser; `index` (0 … n − 1) follows and can be linked. Keys, when the
    transport has the focus: space plays, arrows step (Shift: by ten), Home and End go to the ends,
    [ and ] or Page Down and Page Up to the previous and the next step of the first events.

    `captions`, one per step, are shown without the kernel; else `caption` is. `events` name steps:
    {"outlier": [37, 80]}.
    """

    _esm = module("transport")

    label = traitlets.Unicode("step").tag(sync=True)
    n = traitlets.Int(1).tag(sync=True)
    index = traitlets.Int(0).tag(sync=True)
    playing = traitlets.Bool(False).tag(sync=True)
    speeds = traitlets.List(traitlets.Float()).tag(sync=True)
    speed = traitlets.Int(0).tag(sync=True)
    rate = traitlets.Float(4.0).tag(sync=True)
    events = traitlets.Dict().tag(sync=True)
    caption = traitlets.Unicode().tag(sync=True)
    captions = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(
        self,
        n: int,
        index: int = 0,
        label: str = "step",
        speeds: Sequence[float] = (0.25, 1, 4, 16),
        events: Mapping[str, Sequence[int]] | None = None,
        *,
        caption: str = "",
        captions: Sequence[str] = (),
        rate: float = 4.0,
    ) -> None:
        """`rate` is how many steps a second speed 1 makes."""
        if not speeds or min(speeds) <= 0:
            raise ValueError(f"speeds must be positive factors, not {list(speeds)}")
        factors = [float(s) for s in speeds]
        first = factors.index(1.0) if 1.0 in factors else 0
        super().__init__(label=label, speeds=factors, speed=first, rate=rate)
        self.set_steps(n, index, events=events, caption=caption, captions=captions)

    def set_steps(
        self,
        n: int,
        index: int | None = None,
        *,
        events: Mapping[str, Sequence[int]] | None = None,
        caption: str = "",
        captions: Sequence[str] = (),
    ) -> None:
        """Another run: `n` steps, their events and captions. The index stays where it can."""
        if n < 1:
            raise ValueError(f"a transport needs at least one step, not {n}")
        index = min(self.index, n - 1) if index is None else index
        if not 0 <= index < n:
            raise ValueError(f"index {index} is outside the steps 0…{n - 1}")
        if captions and len(captions) != n:
            raise ValueError(f"{len(captions)} captions for {n} steps; give one per step or none")
        named = {str(name): [int(step) for step in steps] for name, steps in (events or {}).items()}
        for name, steps in named.items():
            if any(not 0 <= step < n for step in steps):
                raise ValueError(f"event {name!r} names steps outside 0…{n - 1}: {steps}")
        with self.hold_sync():
            self.playing = False
            self.n, self.index, self.events = n, index, named
            self.caption, self.captions = caption, [str(text) for text in captions]
