"""The notebooks: they run, carry no outputs, and hold prose, one import and one view each."""

from pathlib import Path

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
def test_runs(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(FOLDER))
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    shown = [o.data for o in outputs if o.output_type in ("display_data", "execute_result")]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    assert not [o for o in outputs if o.output_type in ("error", "stream")]
