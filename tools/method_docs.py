"""Write docs/methods.md: every method's needs, defaults and events, from the registry itself.

python tools/method_docs.py
"""

import re
from pathlib import Path

from qviz.methods import registry
from qviz.methods.describe import describe, names_elsewhere

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = """# The methods

Written by `python tools/method_docs.py` from the registry; `qviz methods NAME` prints one of them.
How each is held against the real system stands in the
[table of exactness](../bench/results/exactness.md).

All are called as `qviz.quantize(weight, "NAME", option=…)`; one that needs more than the weight
takes a calibration third, such as `qviz.capture(model, texts)[layer]`. What comes back depends on
the kind:

| kind | what comes back |
| ---|--- |
| weight | a `QuantizedTensor`: `codes`, `dequantize()`, `pack()`, `ledger`, `bits_per_weight` |
| linear | a `QuantizedLinear`: called with inputs, it rounds those too |
| cache | a `QuantizedTensor` of keys or values [tokens, channels] |
| training | a torch module that is trained in place of the linear layer |

With `emit=trace`, a `qviz.Trace()`, the events of a method's table are kept; those of a product
come when the `QuantizedLinear` is called, with `linear(x, emit=trace)`. A `group_size` of `None`,
or `-1` as in other libraries, is the whole row. The conventions, in which
real systems differ, are named in `CONVENTIONS` of the method's module.

"""


def page() -> str:
    methods = registry.methods().values()
    lines = [f"- [{m.name}](#{m.name}-{_anchor(m.title)}): {m.title}" for m in methods]
    return HEAD + "\n".join([*lines, "", *(describe(m) for m in methods), names_elsewhere()])


def _anchor(title: str) -> str:
    """A heading as GitHub links to it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
