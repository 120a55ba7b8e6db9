"""What the GGUF lesson says of types on a layer, and of the mixes of files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qviz.ui.widgets import counted, number, percent

OF_WEIGHTS, OF_OUTPUTS = "weights", "outputs"


@dataclass(frozen=True)
class TypeFacts:
    """A type on a layer: bits, bits of its codes, error without and with importance.

    weighed  None where the type ignores importance, or nobody knows the inputs (`inputs`)
    rivals   types of the same bits: name → error without importance
    what     whose error it is
    """

    type: str
    bits: float
    code_bits: float
    error: float
    weighed: float | None
    inputs: bool
    rivals: Mapping[str, float]
    what: str


def type_words(facts: TypeFacts) -> str:
    """A type on the layer, in a sentence or three."""
    over = facts.bits - facts.code_bits
    text = (
        f"{facts.type}: {number(facts.bits)} bits per weight, {number(facts.code_bits)} of them "
        f"for codes and {number(over)} for scales. The {facts.what} are off by "
        f"{percent(facts.error)}."
    )
    if facts.weighed is not None:
        text += (
            f" With importance, at the same bits: {percent(facts.weighed)}, "
            f"{_way(facts.weighed, facts.error)}."
        )
    elif facts.inputs:
        text += " It ignores importance."
    for name, error in facts.rivals.items():
        text += f" {name} costs the same, and is off by {percent(error)}."
    return text


def _way(now: float, before: float) -> str:
    if percent(now) == percent(before):
        return "no change"
    return f"{percent(abs(now / before - 1))} {'less' if now < before else 'more'}"


def type_rows(facts: TypeFacts) -> list[str]:
    """The cells of a type in the table, after its bits."""
    weighed = percent(facts.weighed) if facts.weighed is not None else "–"
    return [percent(facts.error), weighed]


@dataclass(frozen=True)
class ShiftFacts:
    """Squared error, over the weights' mean square, of the tenth of inputs that matters least and
    of the one that matters most, without and with importance."""

    plain_least: float
    plain_most: float
    weighed_least: float
    weighed_most: float


def shift_words(name: str, facts: ShiftFacts | None, inputs: bool) -> str:
    """What importance does to the error of a type."""
    if facts is None:
        return (
            f"{name} has no search that importance could guide."
            if inputs
            else "Nobody knows the inputs of this layer yet: let the model run on text first."
        )
    return (
        f"Importance moves the error: where inputs are largest the squared error goes "
        f"{_from(facts.weighed_most, facts.plain_most)}, where they are smallest "
        f"{_from(facts.weighed_least, facts.plain_least)}."
    )


def _from(now: float, before: float) -> str:
    if percent(now) == percent(before):
        return f"nowhere (it stays {percent(now)})"
    return f"{'down' if now < before else 'up'} from {percent(before)} to {percent(now)}"


# ------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class FileFacts:
    """A file: bits of its block and of all of it, parameters, bytes, and the tensors whose type is
    not the block's: (name, how many layers of how many, types)."""

    model: str
    file_type: str
    base: str
    base_bits: float
    bits: float
    parameters: int
    nbytes: int
    layers: int
    raised: Sequence[tuple[str, int, tuple[str, ...]]]
    once: Sequence[tuple[str, str]]


def file_words(facts: FileFacts) -> str:
    """A file in a few sentences: the block, the mix, what it comes to."""
    text = (
        f"{facts.file_type} of {facts.model}: the block is {facts.base} with "
        f"{number(facts.base_bits)} bits per weight, the whole file has {facts.bits:.2f}: "
        f"{_size(facts.nbytes)} for {_count(facts.parameters)} weights. "
    )
    if facts.raised:
        each = [
            f"{name} in {_layers(n, facts.layers)} ({' and '.join(types)})"
            for name, n, types in facts.raised
        ]
        text += f"Not {facts.base}: {'; '.join(each)}. "
    else:
        text += f"Every linear layer is {facts.base}. "
    return text + " ".join(f"{name} is {kind}." for name, kind in facts.once)


def _layers(n: int, of: int) -> str:
    return f"all {of} layers" if n == of else f"{n} of {counted(of, 'layer')}"


def _size(nbytes: int) -> str:
    return f"{number(nbytes / 1e9, 3)} GB" if nbytes >= 1e8 else f"{number(nbytes / 1e6, 3)} MB"


def _count(n: int) -> str:
    return f"{number(n / 1e9, 3)} billion" if n >= 1e8 else f"{number(n / 1e6, 3)} million"


def mix_words(model: str, mixes: Sequence[tuple[str, float]], base: str) -> str:
    """K names the block, M the mix: files of one block type side by side."""
    each = ", ".join(f"{name} {bits:.2f}" for name, bits in mixes)
    if len(mixes) == 1:
        return f"{base} has one mix only here: {each} bits per weight."
    return (
        f"K names the block, S, M and L the mix. One block, {base}, and {len(mixes)} mixes of "
        f"{model}: {each} bits per weight."
    )


def cell_words(kinds: Sequence[str]) -> str:
    """The types of a tensor across the layers, as a table's cell."""
    counts = {kind: list(kinds).count(kind) for kind in dict.fromkeys(kinds)}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{n}× {kind}" for kind, n in counts.items())
