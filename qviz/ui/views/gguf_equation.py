"""The formulas of a GGUF type, one line for each moment of the walk; terms light up with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from qviz.methods.gguf.kquants import KQUANTS, WithMinimum
from qviz.methods.gguf.legacy import LEGACY
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
)

TERMS = {
    "a": "a: importance, the mean square of the input that meets the weight",
    "w": "w: how much the error of this weight counts in the search",
    "x": "x: the trained weight",
    "t": "t: into how many spacings the range of the sub-block is cut; the search varies it",
    "q": "q: the code of the weight",
    "s": "s: the scale of the sub-block, the distance between its levels",
    "m": "m: the minimum of the sub-block, at most 0; the level of code 0",
    "d": "d: the float16 step in which the scales of the block count",
    "k": "k: the scale of the sub-block as an integer",
    "D": "dmin: the float16 step in which the minimums count",
    "l": "l: the minimum of the sub-block as an integer, its sign turned",
    "what": "x̂: the weight as it comes back",
    "e": "e: the exponent of the block's scale, a byte",
    "v": "v: the value of a code in FP4 E2M1",
}

#: Moments → which lines they are about.
_LINE_OF = {
    BLOCK: (), WEIGH: (0,), START: (1, 2), TRY: (1, 2), FOUND: (2,), LEVELS: (3,), PASS: (4,),
    BYTES: (5,), BACK: (5,),
}  # fmt: skip


@dataclass(frozen=True)
class Formulas:
    """MathML of all lines, the meaning of their terms, the formulas in words, and the terms that
    light up by kind of moment."""

    mathml: str
    terms: dict[str, str]
    spoken: str
    lit: dict[str, list[str]]


def _i(term: str, text: str | None = None) -> str:
    return f'<mi data-term="{term}">{text or term}</mi>'


def _o(text: str) -> str:
    return f"<mo>{text}</mo>"


def _n(value: int | float | str) -> str:
    return f"<mn>{value}</mn>"


def _frac(above: str, below: str) -> str:
    return f"<mfrac><mrow>{above}</mrow><mrow>{below}</mrow></mfrac>"


def _round(inner: str) -> str:
    return f"<mi>round</mi>{_o('(')}{inner}{_o(')')}"


_X, _Q, _W, _S, _M = _i("x"), _i("q"), _i("w"), _i("s"), _i("m")
_D, _K, _L, _DMIN = _i("d"), _i("k"), _i("l"), '<msub><mi data-term="D">d</mi><mi>min</mi></msub>'
_HAT = '<mover accent="true"><mi data-term="what">x</mi><mo>^</mo></mover>'
_MEAN = f"<mover><msup><mi>x</mi>{_n(2)}</msup><mo>¯</mo></mover>"


def formulas(type: str, importance: bool) -> Formulas:
    """The lines of a type; empty lines are left out."""
    kind = KQUANTS.get(type)
    if kind is None:
        lines = _legacy(type, importance)
    elif isinstance(kind, WithMinimum):
        lines = _minimum(type, kind.top, kind.levels, kind.sigma, importance)
    else:
        lines = _symmetric(type, kind.half, kind.levels, kind.sigma, importance)
    # A term has the number of its line in its name: only the lines of the moment light up.
    own = [
        (line.replace('data-term="', f'data-term="{i}'), said, [f"{i}{term}" for term in terms])
        for i, (line, said, terms) in enumerate(lines)
    ]
    return Formulas(
        "".join(f'<math display="block"><mrow>{line}</mrow></math>' for line, _, _ in own if line),
        {name: TERMS[name[1:]] for _, _, terms in own for name in terms},
        "; ".join(said for line, said, _ in own if line),
        {kind: [term for at in ats for term in own[at][2]] for kind, ats in _LINE_OF.items()},
    )


Line = tuple[str, str, Sequence[str]]


def _weights(plain: str, spoken: str, sigma: int, importance: bool) -> Line:
    if not importance:
        return _W + _o("=") + plain, spoken, ["w", "x"]
    if sigma == 0:
        return _W + _o("=") + _i("a"), "w is a", ["w", "a"]
    mean = (_n(sigma) if sigma > 1 else "") + _MEAN
    return (
        f"{_W}{_o('=')}{_i('a')}<msqrt>{mean}{_o('+')}<msup>{_X}{_n(2)}</msup></msqrt>",
        f"w is a times the root of {sigma} times the mean square plus x squared",
        ["w", "a", "x"],
    )


def _minimum(type: str, top: int, levels: int, sigma: int, importance: bool) -> list[Line]:
    size = f"{_o('|')}{_X}{_o('|')}"
    plain = size if type == "Q2_K" else f"<msqrt>{_MEAN}</msqrt>{_o('+')}{size}"
    said = (
        "w is the size of x" if type == "Q2_K" else "w is the root mean square plus the size of x"
    )
    inner = f"{_S}{_Q}{_o('+')}{_M}{_o('−')}{_X}"
    # Q2_K fits squares all the same, but keeps what lowers the sum of sizes.
    kept = (
        f"{_o(',')}<mspace linebreak='newline'></mspace><mi>keep</mi>{_o('∑')}{_W}{_o('|')}"
        f"{_S}{_Q}{_o('+')}{_M}{_o('−')}{_X}{_o('|')}"
        if type == "Q2_K" and not importance
        else ""
    )
    return [
        _weights(plain, said, sigma, importance),
        (_Q + _o("=") + _round(_frac(_i("t"), f"<mi>max</mi>{_o('−')}{_M}") + _o("·") +
                               f"{_o('(')}{_X}{_o('−')}{_M}{_o(')')}"),
         "q is t over the range, times x minus m, rounded", ["q", "t", "x", "m"]),
        (f"{_S}{_o(',')}{_M}{_o('=')}<mi>argmin</mi>{_o('∑')}{_W}"
         f"<msup><mrow>{_o('(')}{inner}{_o(')')}</mrow>{_n(2)}</msup>{kept}",
         "s and m are the weighted least squares fit of x by s q plus m",
         ["s", "m", "w", "q", "x"]),
        (_D + _o("=") + _frac(f"<mi>max</mi>{_S}", _n(levels)) + _o(",") + _K + _o("=") +
         _round(_frac(_S, _D)) + _o(",") + _L + _o("=") + _round(_frac(_o("−") + _M, _DMIN)),
         f"d is the largest s over {levels}; k is s over d, rounded; l is minus m over d min, "
         f"rounded", ["d", "s", "k", "l", "m", "D"]),
        (_Q + _o("=") + _round(_frac(_X + _o("+") + _DMIN + _L, _D + _K)),
         "q is x plus d min l, over d k, rounded", ["q", "x", "D", "l", "d", "k"]),
        (_HAT + _o("=") + _D + _K + _Q + _o("−") + _DMIN + _L,
         "x hat is d k q minus d min l", ["what", "d", "k", "q", "D", "l"]),
    ]  # fmt: skip


def _symmetric(type: str, half: int, levels: int, sigma: int, importance: bool) -> list[Line]:
    squared = f"<msup>{_X}{_n(2)}</msup>"
    moved = type == "Q3_K" and not importance
    tried = _n(half) if moved else _i("t")
    return [
        _weights(squared, "w is x squared", sigma, importance),
        (_Q + _o("=") + _round(_frac(_o("−") + tried, "<mi>extreme</mi>") + _o("·") + _X),
         "q is minus t over the extreme weight, times x, rounded",
         ["q", "x", *([] if moved else ["t"])]),
        (_S + _o("=") + _frac(_o("∑") + _W + _X + _Q, _o("∑") + _W + f"<msup>{_Q}{_n(2)}</msup>"),
         "s is the sum of w x q over the sum of w q squared", ["s", "w", "x", "q"]),
        (_D + _o("=") + _frac("<mi>extreme</mi>" + _S, _n(f"−{levels}")) + _o(",") + _K + _o("=") +
         _round(_frac(_S, _D)),
         f"d is the extreme s over minus {levels}; k is s over d, rounded", ["d", "s", "k"]),
        (_Q + _o("=") + _round(_frac(_X, _D + _K)), "q is x over d k, rounded",
         ["q", "x", "d", "k"]),
        (_HAT + _o("=") + _D + _K + _Q, "x hat is d k q", ["what", "d", "k", "q"]),
    ]  # fmt: skip


def _legacy(type: str, importance: bool) -> list[Line]:
    if type == "MXFP4":
        floor = (
            f"{_o('⌊')}<msub><mi>log</mi>{_n(2)}</msub><mi>max</mi>{_o('|')}{_X}{_o('|')}{_o('⌋')}"
        )
        two = f"<msup>{_n(2)}{_i('e')}</msup>"
        value = f'<msub><mi data-term="v">v</mi>{_Q}</msub>'
        return [
            ("", "", []),
            (_i("e") + _o("=") + floor + _o("−") + _n(2),
             "e is the floor of the logarithm of the largest size, minus 2", ["e", "x"]),
            (_Q + _o("=") + "<mi>nearest</mi>" + _o("(") + _frac(_X, two) + _o(")"),
             "q is the code whose value is nearest to x over 2 to the e", ["q", "x", "e"]),
            ("", "", []), ("", "", []),
            (_HAT + _o("=") + two + _o("·") + value, "x hat is 2 to the e times v of q",
             ["what", "e", "v", "q"]),
        ]  # fmt: skip
    kind = LEGACY[type]
    if importance:
        made = (
            _minimum(type, kind.steps, 0, 1, True)
            if kind.minimum
            else _symmetric(type, -kind.steps, 0, 1, True)
        )
        back = _HAT + _o("=") + _S + _Q + (_o("+") + _M if kind.minimum else "")
        terms = ["what", "s", "q", *(["m"] if kind.minimum else [])]
        return [*made[:3], ("", "", []), ("", "", []), (back, "x hat is s q", terms)]
    if kind.minimum:
        first = _D + _o("=") + _frac(f"<mi>max</mi>{_o('−')}{_M}", _n(kind.steps))
        second = _Q + _o("=") + _round(_frac(_X + _o("−") + _M, _D))
        last = _HAT + _o("=") + _D + _Q + _o("+") + _M
        some = ["m"]
    else:
        over = _n(str(kind.steps).replace("-", "−"))
        largest = "<mi>extreme</mi>" if kind.steps < 0 else f"<mi>max</mi>{_o('|')}{_X}{_o('|')}"
        first = _D + _o("=") + _frac(largest, over)
        second = _Q + _o("=") + _round(_frac(_X, _D))
        last, some = _HAT + _o("=") + _D + _Q, []
    return [
        ("", "", []),
        (first, "d is the range over the number of spacings",
         ["d", *some, *(["x"] if kind.steps > 0 and not kind.minimum else [])]),
        (second, "q is x over d, rounded", ["q", "x", "d", *some]),
        ("", "", []), ("", "", []),
        (last, "x hat is d q" + (" plus m" if some else ""), ["what", "d", "q", *some]),
    ]  # fmt: skip
