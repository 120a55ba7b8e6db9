"""Write docs/methods.md: every method's needs, defaults and events, from the registry itself.

python tools/method_docs.py
"""

from pathlib import Path

from qviz.methods import registry
from qviz.methods.describe import describe

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
HEAD = """# The methods

Written by `python tools/method_docs.py` from the registry; `qviz methods NAME` prints one of them.
How each is held against the real system stands in the
[table of exactness](../bench/results/exactness.md).

"""


def page() -> str:
    return HEAD + "\n".join(describe(method) for method in registry.methods().values())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
