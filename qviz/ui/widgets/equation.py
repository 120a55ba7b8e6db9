"""Equation: native MathML whose terms light up and say what they mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import traitlets

from .base import BrowserWidget, module


class Equation(BrowserWidget):
    """A formula. Elements with `data-term="x"` light up while "x" is in `active`.

    `terms` gives each term's plain meaning, shown while it is pointed at or focused; `hovered` is
    that term. `actives` with `frame` does the lighting without the kernel.

    >>> Equation('<math><mi data-term="w">w</mi></math>', {"w": "a weight"}, aria="w").terms
    {'w': 'a weight'}
    """

    _esm = module("equation")

    mathml = traitlets.Unicode().tag(sync=True)
    terms = traitlets.Dict().tag(sync=True)
    active = traitlets.List(traitlets.Unicode()).tag(sync=True)
    actives = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    frame = traitlets.Int(0).tag(sync=True)
    hovered = traitlets.Unicode().tag(sync=True)
    calm = traitlets.Bool(False).tag(sync=True)  # show only the formulas that light up
    aria = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        mathml: str,
        terms: Mapping[str, str] | None = None,
        active: Sequence[str] = (),
        *,
        aria: str = "",
        actives: Sequence[Sequence[str]] = (),
        calm: bool = False,
    ) -> None:
        """`aria` is the formula in words. `calm`: of several formulas, show only those in which a
        term lights up, or all if none does. Raises ValueError for a term that is not in
        `mathml`."""
        meanings = {str(k): str(v) for k, v in (terms or {}).items()}
        marked = set(re.findall(r'data-term="([^"]*)"', mathml))
        for name in {*meanings, *active, *(t for step in actives for t in step)}:
            if name not in marked:
                raise ValueError(
                    f"term {name!r} is not marked in the formula; marked are {sorted(marked)}"
                )
        super().__init__(
            mathml=mathml,
            terms=meanings,
            active=list(active),
            aria=aria,
            actives=[list(step) for step in actives],
            calm=calm,
        )
