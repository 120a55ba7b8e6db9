"""GPTQ's equations line by line: what each term means, and how they are misprinted."""

from collections.abc import Mapping
from dataclasses import dataclass

MOMENTS = ("levels", "round", "divide", "pass on")

#: The lines in their order: name → (formula, the same in words).
LINES = {
    "H": (
        """
<math display="block"><mrow>
  <msup><mi data-term="H">H</mi><mrow><mo>−</mo><mn>1</mn></mrow></msup><mo>=</mo>
  <msup><mi data-term="U">U</mi><mi>T</mi></msup><mi data-term="U">U</mi>
</mrow></math>
""",
        "H inverse is U transposed times U.",
    ),
    "s": (
        """
<math display="block"><mrow>
  <mi data-term="s">s</mi><mo>=</mo><mfrac><mi data-term="range" mathvariant="normal">range</mi>
  <mi data-term="N">N</mi></mfrac>
</mrow></math>
""",
        "s is the range over N.",
    ),
    "q": (
        """
<math display="block"><mrow>
  <mi data-term="q">q</mi><mo>=</mo><mi data-term="round">round</mi><mo>(</mo>
  <msub><mi data-term="w">w</mi><mi>j</mi></msub><mo>/</mo><mi data-term="s">s</mi>
  <mo>+</mo><mi data-term="z">z</mi><mo>)</mo>
</mrow></math>
""",
        "q is w j over s plus z, rounded.",
    ),
    "what": (
        """
<math display="block"><mrow>
  <mover accent="true"><mi data-term="what">w</mi><mo>^</mo></mover><mo>=</mo>
  <mi data-term="s">s</mi><mo>·</mo><mo>(</mo><mi data-term="q">q</mi><mo>−</mo>
  <mi data-term="z">z</mi><mo>)</mo>
</mrow></math>
""",
        "w hat is s times q minus z.",
    ),
    "e": (
        """
<math display="block"><mrow>
  <mi data-term="e">e</mi><mo>=</mo><mfrac>
  <mrow data-term="gap"><msub><mi>w</mi><mi>j</mi></msub><mo>−</mo>
  <mover accent="true"><mi>w</mi><mo>^</mo></mover></mrow>
  <msub data-term="Ujj"><mi>U</mi><mrow><mi>j</mi><mi>j</mi></mrow></msub></mfrac>
</mrow></math>
""",
        "e is w j minus w hat, over U j j.",
    ),
    "w": (
        """
<math display="block"><mrow>
  <msub data-term="wk"><mi>w</mi><mi>k</mi></msub><mo>←</mo>
  <msub data-term="wk"><mi>w</mi><mi>k</mi></msub><mo>−</mo>
  <mi data-term="e">e</mi><mo>·</mo><msub data-term="Ujk"><mi>U</mi>
  <mrow><mi>j</mi><mi>k</mi></mrow></msub><mo>,</mo><mi>k</mi><mo>&gt;</mo><mi>j</mi>
</mrow></math>
""",
        "From each later w k, e times U j k is subtracted.",
    ),
}

TERMS = {
    "H": "H: how inputs move together, 2·XᵀX / tokens, with damping on its diagonal",
    "U": "U: the upper Cholesky factor of H⁻¹. Its row j says how the columns after j can "
    "compensate for an error in column j",
    "w": "w_{j}: the column of this step, with all the compensation it has received so far",
    "s": "s: the spacing of the levels, shared by the group",
    "range": "range: how far the weights of the group reach at this point",
    "N": "N: how many spacings fit into the range; it depends on the bits",
    "z": "z: the zero point, the code that stands for 0",
    "round": "round: to the nearest level; a code beyond the last level becomes that level's",
    "q": "q: the stored code",
    "what": "ŵ: the rounded weight that the code stands for",
    "gap": "w_{j} − ŵ: the rounding error",
    "Ujj": "U_{jj}: large where an error in this column does little harm, because its inputs are "
    "small or later columns can compensate for it",
    "e": "e: the rounding error divided by U_{jj}, once",
    "wk": "w_{k}: a column that is still waiting",
    "Ujk": "U_{jk}: how much column k can compensate for column j",
}
LIT = {
    "levels": ["range", "N"],
    "round": ["q", "round", "w", "what"],
    "divide": ["gap", "Ujj"],
    "pass on": ["wk", "Ujk"],
}
BY_HAND_LIT = {
    "inputs": ["H"],
    "factor": ["H", "U"],
    "levels": LIT["levels"],
    "round": LIT["round"],
    "divide": LIT["divide"],
    "compensate": LIT["pass on"],
    "end": [],
}
_GAP = """<mrow data-term="gap"><msub><mi>w</mi><mi>j</mi></msub><mo>−</mo>
  <mover accent="true"><mi>w</mi><mo>^</mo></mover></mrow>"""
_WK = """<msub data-term="wk"><mi>w</mi><mi>k</mi></msub>"""
_E = """
<math display="block"><mrow><mi data-term="e">e</mi><mo>=</mo>
  <mfrac>{gap}{divisor}</mfrac></mrow></math>
"""
_W = """
<math display="block"><mrow>{wk}<mo>←</mo>{wk}<mo>−</mo>{error}<mo>·</mo>{factor}<mo>,</mo>
  <mi>k</mi><mo>&gt;</mo><mi>j</mi></mrow></math>
"""
_INVERSE = (
    "<msub><mrow><mo>[</mo><msup><mi>H</mi><mrow><mo>−</mo><mn>1</mn></mrow></msup><mo>]</mo>"
    "</mrow><mrow><mi>j</mi><mi>{0}</mi></mrow></msub>"
)
_FACTOR = "<msub><mi>U</mi><mrow><mi>j</mi><mi>{0}</mi></mrow></msub>"


def _wrong(term: str) -> str:
    return f'<mrow data-term="wrong">{term}</mrow>'


def _twice(divisor: str) -> str:
    return _wrong(f"<mfrac><mi>e</mi>{divisor}</mfrac>")


def _e(divisor: str) -> str:
    return _E.format(gap=_GAP, divisor=divisor)


def _w(error: str, factor: str) -> str:
    return _W.format(wk=_WK, error=error, factor=factor)


_E_WITH_INVERSE = (
    _e(_wrong(_INVERSE.format("j"))),
    "As misprinted, e is w j minus w hat, over H inverse j j.",
)
#: Variant → what is wrong, and the lines that are misprinted.
MISPRINTS: Mapping[str, tuple[str, Mapping[str, tuple[str, str]]]] = {
    "double_division": (
        "Wrong: e is already divided by U_{jj}",
        {
            "w": (
                _w(_twice(_FACTOR.format("j")), _FACTOR.format("k")),
                "As misprinted, from each later w k, e over U j j, times U j k, is subtracted.",
            ),
        },
    ),
    "no_update": (
        "Wrong: this is H⁻¹ of all columns, as if none were rounded yet",
        {
            "e": _E_WITH_INVERSE,
            "w": (
                _w("<mi>e</mi>", _wrong(_INVERSE.format("k"))),
                "As misprinted, from each later w k, e times H inverse j k is subtracted.",
            ),
        },
    ),
    "as_printed": (
        "Wrong: this is H⁻¹ of all columns, and e is divided a second time",
        {
            "e": _E_WITH_INVERSE,
            "w": (
                _w(_twice(_INVERSE.format("j")), _wrong(_INVERSE.format("k"))),
                "As misprinted, from each later w k, e over H inverse j j, times H inverse j k, "
                "is subtracted.",
            ),
        },
    ),
}


@dataclass(frozen=True)
class Formulas:
    """What an Equation shows: its formulas, in words, what terms mean, and those that light up at
    each stage of a step."""

    mathml: str
    spoken: str
    terms: Mapping[str, str]
    actives: list[list[str]]


def formulas(variant: str | None = None) -> Formulas:
    """GPTQ's equations, correct or as misprinted, with the error always lit."""
    meaning, changed = MISPRINTS[variant] if variant is not None else ("", {})
    lines = {**LINES, **changed}
    mathml = "".join(formula for formula, _ in lines.values())
    terms = {name: text for name, text in TERMS.items() if f'data-term="{name}"' in mathml}
    wrong = ["wrong"] if variant is not None else []
    return Formulas(
        mathml,
        " ".join(words for _, words in lines.values()),
        {**terms, **({"wrong": meaning} if wrong else {})},
        [[*(name for name in LIT[moment] if name in terms), *wrong] for moment in MOMENTS],
    )


EQUATION, SPOKEN = formulas().mathml, formulas().spoken
