"""The notebooks: they run, carry no outputs, and hold prose, one import and one view each."""

import ast
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from qviz.ui.views.lessons import LESSONS

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_every_lesson_has_its_notebook_and_no_other_is_there():
    assert [p.name for p in NOTEBOOKS] == ["00_start.ipynb", *(x.notebook for x in LESSONS)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_prose_one_import_one_view(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert len(code) == 1
    assert not code[0].outputs
    assert code[0].execution_count is None
    assert code[0].source.startswith("from qviz.ui.views import ")
    prose = "".join(c.source for c in cells if c.cell_type == "markdown")
    assert prose
    assert "$" not in prose  # formulas belong to the view, where their terms light up


def test_tabs_are_named_as_the_lessons_are():
    titles = {p.name: nbformat.read(p, as_version=4).metadata.title for p in NOTEBOOKS}
    assert titles == {"00_start.ipynb": "All lessons", **{x.notebook: x.title for x in LESSONS}}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_cell_shows_a_page(path, capfd):
    """Here, where importing torch once is enough; the browser tests run each in a kernel."""
    [source] = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    *before, shown = ast.parse(source).body
    names: dict[str, Any] = {}
    exec("\n".join([*map(ast.unparse, before), f"view = {ast.unparse(shown)}"]), names)
    assert "application/vnd.jupyter.widget-view+json" in names["view"]._repr_mimebundle_()
    assert capfd.readouterr() == ("", "")


def test_runs_in_a_kernel_and_says_nothing():
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(FOLDER))
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    shown = [o.data for o in outputs if o.output_type in ("display_data", "execute_result")]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    assert not [o for o in outputs if o.output_type in ("error", "stream")]
