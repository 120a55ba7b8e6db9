"""From the numbers of a step to its sentence: which facts each kind of moment has."""

from qviz.study.gguf_facts import (
    bytes_facts,
    found_facts,
    level_facts,
    off,
    pass_facts,
    sizes_of,
    try_facts,
    weigh_facts,
)
from qviz.study.gguf_walk import (
    BACK,
    BLOCK,
    BYTES,
    FOUND,
    LEVELS,
    PASS,
    START,
    TRY,
    WEIGH,
    Moment,
    RowWalk,
    Walk,
)
from qviz.ui.views.gguf_beside_words import (
    BY_INPUTS,
    BY_REST,
    BesideFacts,
    beside_words,
)
from qviz.ui.views.gguf_guide import OUTLIER, PAIRS
from qviz.ui.views.gguf_run import Shown
from qviz.ui.views.gguf_words import (
    Won,
    back_words,
    block_words,
    bytes_words,
    found_words,
    level_words,
    pass_words,
    plain_words,
    start_words,
    try_words,
    weigh_words,
)


def moment_words(walk: Walk, moment: Moment, group: int, row: int, first: int) -> str:
    """One run's sentence at a moment."""
    sizes, kind = sizes_of(walk), moment.kind
    if kind == BLOCK:
        return block_words(sizes, row, first)
    if kind == WEIGH:
        return weigh_words(weigh_facts(walk, group), group)
    if kind == START and len(walk.fits) == 1:
        fit = walk.fits[0]
        low = float(fit.minimum[0]) if "m" in walk.parts else None
        return plain_words(walk.type, float(fit.scale[0]), low, sizes.code_bits)
    if kind == START:
        return start_words(try_facts(walk, moment, group), walk.type)
    if kind == TRY:
        return try_words(try_facts(walk, moment, group), walk.type)
    if kind == FOUND:
        return found_words(found_facts(walk, group), group, walk.groups)
    if kind == LEVELS:
        return level_words(level_facts(walk, group), sizes, group)
    if kind == PASS:
        return pass_words(pass_facts(walk), sizes)
    if kind == BYTES:
        return bytes_words(bytes_facts(walk, moment.section))
    assert kind == BACK
    return back_words(sizes, off(walk.x, walk.back))


def beside_at(shown: Shown, step: int) -> BesideFacts:
    """How far off both runs are at a step from which on both have values."""
    assert shown.second is not None
    values = [w.at(m) for w, m in zip(shown.walks, shown.moments(step), strict=True)]
    pairs = [(w.x, v[1]) for w, v in zip(shown.walks, values, strict=True) if v is not None]
    both = [off(x, v) for x, v in pairs]
    weighed = None if shown.weighs is None else [off(x, v, shown.weighs) for x, v in pairs]
    by = BY_REST if shown.beside == OUTLIER else BY_INPUTS
    if weighed is None:
        return BesideFacts(both[0], both[1])
    return BesideFacts(both[0], both[1], weighed[0], weighed[1], by)


def sentence(shown: Shown, step: int, group: int) -> str:
    """The caption of a step: the first run's sentence, and from the end of the search on how far
    off the second is."""
    moment = shown.steps[step][0]
    text = moment_words(shown.walk, moment, group, shown.row, shown.first)
    if shown.second is None or moment.kind not in (FOUND, LEVELS, PASS, BACK):
        return text
    if shown.beside == PAIRS and moment.kind != BACK:
        return text
    return text + beside_words(beside_at(shown, step))


def section_holds(walk: Walk, name: str) -> tuple[tuple[str, int], ...]:
    return bytes_facts(walk, name).holds


def won(whole: RowWalk, block: int, group: int) -> Won | None:
    """How the sub-blocks of a row ended their search; None where tries have no spacings."""
    counts = [0, 0, 0]
    mine = 0
    for b in range(whole.blocks):
        walk = whole.block(b)
        plain = walk.fits[0].tried
        if len(walk.fits) < 2 or plain is None:
            return None
        for g in range(walk.groups):
            tried = walk.fits[walk.best(g)].tried or plain
            which = 0 if tried > plain else 1 if tried == plain else 2
            counts[which] += 1
            if (b, g) == (block, group):
                mine = which
    return Won(mine, *counts)
