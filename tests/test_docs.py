"""The pages that are written from the code say what the code says."""

import importlib.util
from pathlib import Path

from qviz import cli
from qviz.methods import registry

ROOT = Path(__file__).parents[1]


def test_the_page_of_methods_is_current(capsys):
    spec = importlib.util.spec_from_file_location("method_docs", ROOT / "tools" / "method_docs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(), "run python tools/method_docs.py"
    for name, method in registry.methods().items():
        assert cli.main(["methods", name]) == 0
        printed = capsys.readouterr().out
        assert printed.strip() in tool.page()
        assert all(f"`{option}`" in printed for option in method.defaults)
