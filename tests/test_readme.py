"""The README's code runs as it stands, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qviz
from qviz.models.checkpoint import list_layers

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_code_runs_from_top_to_bottom(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    printed = []
    for code in blocks:
        exec(code, names)
        printed.append(capsys.readouterr().out)
    assert f"{names['q'].bits_per_weight:.4f} bits per weight" in printed[0]
    assert f"{names['q'].bits_per_weight:.3f} bits" in blocks[0]  # the figure in the comment
    assert "round" in printed[1]  # what was handed in does not compensate
    assert list((tmp_path / "run").iterdir())
    assert "available" in printed[3] and "batch" in printed[3]
    assert names["packed"].nbytes > 0 and names["y"].shape == (3, 256)


def test_links_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_what_the_readme_says_of_single_files_is_so(tmp_path):
    """A .safetensors file serves where single layers are asked for, and not where a model runs."""
    assert "Wherever single layers are asked for" in TEXT
    path = tmp_path / "one.safetensors"
    save_file({"layer.weight": torch.ones(4, 8)}, path)
    assert [layer.name for layer in list_layers(path)] == ["layer"]
    assert qviz.load_layer(path, "layer").shape == (4, 8)
    with pytest.raises(ValueError, match="single file"):
        qviz.load_model(path)
