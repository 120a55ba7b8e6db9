"""The README's code runs as it stands, and its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_in_ten_lines(capsys):
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)
    printed = capsys.readouterr().out
    assert f"{names['q'].bits_per_weight:.4f} bits per weight" in printed
    assert f"{names['q'].bits_per_weight:.3f} bits" in code[1]  # the figure in the comment


def test_links_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (ROOT / target).exists(), target
