"""The code of README and docs runs as it stands, tables are as recorded, links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qviz
from qviz.models.checkpoint import list_layers

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
TEXT = README.read_text(encoding="utf-8")


def run_blocks(text: str, capsys: pytest.CaptureFixture) -> tuple[dict[str, object], list[str]]:
    """What the code of a page defines, and what each block of it prints."""
    names: dict[str, object] = {}
    printed = []
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
        printed.append(capsys.readouterr().out)
    return names, printed


def test_its_code_runs(capsys):
    names, (printed,) = run_blocks(TEXT, capsys)
    assert f"{names['q'].bits_per_weight:.3f} bits" in TEXT  # the figure in the comment
    assert f"{names['q'].bits_per_weight:.4f} bits per weight" in printed
    assert f"{names['small'].bits_per_weight:.3f} bits per weight" in printed
    assert "Perplexity(value=" in printed


@pytest.mark.slow
def test_the_code_of_the_library_page_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    names, printed = run_blocks(text, capsys)
    assert len(printed) == 4
    assert f"{names['q'].bits_per_weight:.4f} bits per weight" in printed[0]
    assert f"{names['q'].bits_per_weight:.3f} bits" in text  # the figure in the comment
    assert "round" in printed[1]  # what was handed in does not compensate
    assert list((tmp_path / "run").iterdir())
    assert "available" in printed[3] and "batch" in printed[3]
    assert names["packed"].nbytes > 0 and names["y"].shape == (3, 256)


def test_its_tables_are_those_of_the_course_and_of_recorded_runs():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.filled(TEXT) == TEXT, "run python tools/readme.py"


def test_it_is_short():
    assert len(TEXT.encode()) < 8192


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_what_the_readme_says_of_single_files_is_so(tmp_path):
    """A .safetensors file serves where single layers are asked for, and not where a model runs."""
    assert "Where it only needs single layers" in TEXT
    path = tmp_path / "one.safetensors"
    save_file({"layer.weight": torch.ones(4, 8)}, path)
    assert [layer.name for layer in list_layers(path)] == ["layer"]
    assert qviz.load_layer(path, "layer").shape == (4, 8)
    with pytest.raises(ValueError, match="single file"):
        qviz.load_model(path)
