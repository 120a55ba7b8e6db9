"""Write a lesson's notebook: the page first, then prose, no outputs, no mathematics.

    python tools/new_notebook.py notebooks/01_bit_width.ipynb BitWidthLesson prose.md

The first heading of the prose is the page's title; `prose.md` may be `-` for standard input.
"""

import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def main(path: str, view: str, prose: str) -> None:
    text = sys.stdin.read() if prose == "-" else Path(prose).read_text(encoding="utf-8")
    notebook = new_notebook(
        cells=[
            new_code_cell(f"from qviz.ui.views import {view}\n\n{view}()", id="view"),
            new_markdown_cell(text.strip(), id="prose"),
        ],
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )
    nbformat.write(notebook, path)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
