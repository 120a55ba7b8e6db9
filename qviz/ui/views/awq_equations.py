"""The equations of the AWQ lesson, a set for each part, with what their terms mean."""

from dataclasses import dataclass

from qviz.ui.widgets import Equation


@dataclass(frozen=True)
class Formula:
    """What an Equation shows; `lit` are the terms that the part is about."""

    mathml: str
    spoken: str
    terms: dict[str, str]
    lit: tuple[str, ...]

    def widget(self) -> Equation:
        return Equation(self.mathml, self.terms, list(self.lit), aria=self.spoken)


def _hat(term: str, letter: str) -> str:
    return f'<mover accent="true"><mi data-term="{term}">{letter}</mi><mo>^</mo></mover>'


_ROUND = f"""
<math display="block"><mrow>
  <mi data-term="q">q</mi><mo>=</mo><mi data-term="round">round</mi><mo>(</mo><mfrac>
  <mrow><mi data-term="w">w</mi>%s</mrow><mi data-term="delta">Δ</mi></mfrac><mo>+</mo>
  <mi data-term="z">z</mi><mo>)</mo>
</mrow></math>
<math display="block"><mrow>{_hat("what", "w")}<mo>=</mo>%s</mrow></math>
"""
_BACK = (
    '<mi data-term="delta">Δ</mi><mo>·</mo><mo>(</mo><mi data-term="q">q</mi><mo>−</mo>'
    '<mi data-term="z">z</mi><mo>)</mo>'
)
_SCALED = _ROUND % (
    '<mo>·</mo><mi data-term="s">s</mi>',
    f'<mfrac><mrow>{_BACK}</mrow><mi data-term="s">s</mi></mfrac>',
)
_TERMS = {
    "q": "q: the code that is stored",
    "round": "round: to the nearest whole number; codes beyond the last become the last",
    "w": "w: the trained weight",
    "delta": "Δ: the spacing of the levels, what the group spans over 2ᵇ − 1; every weight of the "
    "group shares it",
    "z": "z: the code of 0",
    "what": "ŵ: what comes back",
}
_S = {"s": "s: the factor of the weight's channel. The inputs of that channel are divided by it"}

CHANNELS = Formula(
    f"""
<math display="block"><mrow>
  <mi data-term="dy">δy</mi><mo>=</mo><munder><mo>∑</mo><mi data-term="j">j</mi></munder>
  <mo>(</mo><msub>{_hat("what", "w")}<mi>j</mi></msub><mo>−</mo>
  <msub><mi data-term="w">w</mi><mi>j</mi></msub><mo>)</mo><mo>·</mo>
  <msub><mi data-term="x">x</mi><mi>j</mi></msub>
</mrow></math>
"""
    + _ROUND % ("", _BACK),
    "The output's error is the sum over channels j of w hat j minus w j, times x j. q is w over "
    "delta plus z, rounded. w hat is delta times q minus z.",
    {
        "dy": "δy: what an output is off by",
        "j": "j: the input channels; each has a column of weights and one input",
        "x": "x_{j}: the input of the channel. A large one makes every error of its column large",
        **_TERMS,
    },
    ("x", "dy"),
)
ONE = Formula(
    _SCALED,
    "q is w times s over delta plus z, rounded. w hat is delta times q minus z, over s.",
    {**_TERMS, **_S},
    ("s",),
)
SEARCH = Formula(
    """
<math display="block"><mrow>
  <msub><mi data-term="s">s</mi><mi>j</mi></msub><mo>∝</mo>
  <msubsup><mi data-term="a">a</mi><mi>j</mi><mi data-term="r">r</mi></msubsup><mspace width="1em"/>
  <mtext>or</mtext><mspace width="1em"/>
  <mfrac><msubsup><mi data-term="a">a</mi><mi>j</mi><mi data-term="r">r</mi></msubsup>
  <mrow><msubsup><mover accent="true"><mi data-term="size">w</mi><mo>¯</mo></mover><mi>j</mi>
  <mrow><mn>1</mn><mo>−</mo><mi>r</mi></mrow></msubsup><mo>+</mo><msup><mn>10</mn>
  <mrow><mo>−</mo><mn>4</mn></mrow></msup></mrow></mfrac>
</mrow></math>
"""
    + _SCALED
    + """
<math display="block"><mrow>
  <mi data-term="loss">L</mi><mo>(</mo><mi data-term="r">r</mi><mo>)</mo><mo>=</mo>
  <mtext>mean</mtext><mspace width="0.2em"/><msup><mrow><mo>(</mo><mi>X</mi><mo>·</mo><msup>
  <mrow><mo>(</mo><mover accent="true"><mi>W</mi><mo>^</mo></mover><mo>−</mo><mi>W</mi><mo>)</mo>
  </mrow><mi>T</mi></msup><mo>)</mo></mrow><mn>2</mn></msup>
</mrow></math>
""",
    "s j is proportional to a j to the power r, or that over w bar j to the power one minus r plus "
    "ten to the minus four. q is w times s over delta plus z, rounded. w hat is delta times q "
    "minus z, over s. The loss of r is the mean of X times W hat minus W transposed, squared.",
    {
        "a": "a_{j}: the mean |x| of the channel over the calibration text",
        "r": "r: the one number that is searched, the same for all channels. 0 scales nothing, 1 "
        "makes all inputs equally loud",
        "size": "w̄_{j}: the mean size of the channel's weights, relative to the largest of their "
        "groups. Only duo scaling divides by it",
        "loss": "L: what the search compares, the mean squared error of the output",
        **_TERMS,
        "s": "s_{j}: the factors, then divided by √(max s · min s), so that they lie around 1",
    },
    ("r", "loss"),
)
CLIP = Formula(
    """
<math display="block"><mrow>
  <mi data-term="limit">m</mi><mo>=</mo><mo>(</mo><mn>1</mn><mo>−</mo><mfrac>
  <mi data-term="k">k</mi><mn>20</mn></mfrac><mo>)</mo><mo>·</mo><mi data-term="max">max</mi>
  <mo>|</mo><mi data-term="w">w</mi><mo>·</mo><mi data-term="s">s</mi><mo>|</mo>
</mrow></math>
<math display="block"><mrow>
  <mi data-term="v">v</mi><mo>=</mo><mi data-term="clamp">clamp</mi><mo>(</mo>
  <mi data-term="w">w</mi><mo>·</mo><mi data-term="s">s</mi><mo>,</mo><mo>±</mo>
  <mi data-term="limit">m</mi><mo>)</mo>
</mrow></math>
<math display="block"><mrow>
  <mi data-term="q">q</mi><mo>=</mo><mi data-term="round">round</mi><mo>(</mo><mfrac>
  <mi data-term="v">v</mi><mi data-term="delta">Δ</mi></mfrac>
  <mo>+</mo><mi data-term="z">z</mi><mo>)</mo>
</mrow></math>
""",
    "m is one minus k over twenty, times the largest size of w times s. v is w times s, clamped to "
    "plus or minus m. q is v over delta plus z, rounded.",
    {
        "limit": "m: the largest size that is left in the group",
        "k": "k: which limit, from 0, which cuts nothing, to 9",
        "max": "max: over the weights of the group",
        "v": "v: the scaled weight as it is rounded",
        "clamp": "clamp: what lies beyond ±m becomes m or −m",
        **{name: text for name, text in _TERMS.items() if name != "what"},
        **_S,
    },
    ("limit", "clamp"),
)
