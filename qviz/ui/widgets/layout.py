"""The layout of a page: controls on the left, pictures in the middle, one weight on the right.

Everything is an ipywidgets Box with classes of the one stylesheet. Widths follow the box the page
stands in, not the window, so that a page also fits into a notebook's output in JupyterLab.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import ipywidgets
import traitlets

from .base import BrowserWidget, module, plain_layout, style

Widget: TypeAlias = Any  # ipywidgets comes without types


class Text(BrowserWidget):
    """A heading or paragraph of plain text; _{…} and ^{…} are sub- and superscripts.

    `names` is the class of the surrounding box that this heading names as a landmark.
    """

    _esm = module("text")

    text = traitlets.Unicode().tag(sync=True)
    tag = traitlets.Unicode("p").tag(sync=True)
    role = traitlets.Unicode().tag(sync=True)
    names = traitlets.Unicode().tag(sync=True)

    def __init__(self, text: str, tag: str = "p", *, role: str = "", names: str = "") -> None:
        if tag not in ("h1", "h2", "h3", "p"):
            raise ValueError(f"tag {tag!r} is none of h1, h2, h3, p")
        super().__init__(text=text, tag=tag, role=role, names=names)


class Disclosure(BrowserWidget):
    """The button of `details`: shows or hides the box that follows it."""

    _esm = module("disclosure")

    summary = traitlets.Unicode().tag(sync=True)
    expanded = traitlets.Bool(False).tag(sync=True)


def _box(children: Sequence[Widget], *classes: str) -> ipywidgets.Box:
    box = ipywidgets.Box(list(children), layout=plain_layout())
    for name in classes:
        box.add_class(name)
    return box


def section(heading: str, *children: Widget) -> ipywidgets.Box:
    """A card with a heading that names it as a landmark."""
    head = [Text(heading, "h2", names="qv-card")] if heading else []
    return _box([*head, *children], "qv-card")


def stack(*children: Widget) -> ipywidgets.Box:
    """Children one below the other at the usual distance, without a card around them."""
    return _box(children, "qv-stack")


def figures_row(*children: Widget, wide: bool = False) -> ipywidgets.Box:
    """Children side by side if each has at least 180 pixels (300 with `wide`), otherwise
    stacked."""
    return _box(children, "qv-row", *(["qv-row-wide"] if wide else []))


def details(summary: str, *children: Widget, open: bool = False) -> ipywidgets.Box:
    """Children behind a button that shows and hides them; works by keyboard and without Python."""
    return _box(
        [Disclosure(summary=summary, expanded=open), _box(children, "qv-details-body")],
        "qv-details",
    )


def show_only(box: Widget, shown: bool) -> None:
    """Show a box (a section, a stack), or remove it from the page.

    TypeError for a single widget: anywidget does not pass a later change of classes on.
    """
    if not isinstance(box, ipywidgets.Box):
        raise TypeError(f"show_only takes a box; put the {type(box).__name__} into a stack()")
    (box.remove_class if shown else box.add_class)("qv-gone")


def column_of(whole: Widget, name: str) -> ipywidgets.Box:
    """The part of a page that has this class, such as "qv-lead"."""
    grid = whole.children[0]
    return next(part for part in grid.children if name in part._dom_classes)


def page(
    title: str = "",
    *,
    head: Widget | None = None,
    guide: Widget | None = None,
    lead: Widget | None = None,
    controls: Sequence[Widget] = (),
    main: Sequence[Widget] = (),
    side: Sequence[Widget] = (),
    caption: Widget | None = None,
    wide: Sequence[Widget] = (),
    foot: Sequence[Widget] = (),
    controls_heading: str = "You choose",
) -> ipywidgets.Box:
    """One screen of a lesson.

    Below the head (or a plain title) and the guide three columns: `controls` (one card), `main`
    and `side` (each a column of sections; what is no section gets a card of its own), `caption`
    below `main`, then `wide` (what opens across the page) and `foot` over the full width. In a box
    narrower than 900 pixels all of it is stacked in this order.

    `lead` is the one control the page is about. It stands above `controls`, and where the page is
    stacked it stays on the screen while the pictures scroll by under it.
    """
    parts: list[Widget] = [_box([head or Text(title, "h1", names="qv-page")], "qv-head")]
    if guide is not None:
        parts.append(_box([guide], "qv-guide-row"))
    if lead is not None:
        parts.append(_box([_box([lead], "qv-card")], "qv-col", "qv-lead"))
    if controls:
        parts.append(_box([section(controls_heading, *controls)], "qv-col", "qv-controls"))
    said = [] if caption is None else [_box([caption], "qv-caption-row")]
    parts.append(_box([*_cards(main), *said], "qv-col", "qv-main"))
    if side:
        parts.append(_box(_cards(side), "qv-col", "qv-side"))
    if wide:
        parts.append(_box(wide, "qv-wide"))
    if foot:
        parts.append(_box(foot, "qv-foot", "qv-stack"))
    absent = [name for name, there in (("side", side), ("controls", controls or lead)) if not there]
    grid = _box(parts, "qv-page", *(f"qv-no-{name}" for name in absent))
    return _box([grid, style()], "qv-root")


def _cards(children: Sequence[Widget]) -> list[Widget]:
    """Every child in a card: one card for consecutive children that are no section themselves."""
    out: list[Widget] = []
    loose: list[Widget] = []
    for child in children:
        if "qv-card" in getattr(child, "_dom_classes", ()):
            if loose:
                out.append(_box(loose, "qv-card"))
                loose = []
            out.append(child)
        else:
            loose.append(child)
    if loose:
        out.append(_box(loose, "qv-card"))
    return out
