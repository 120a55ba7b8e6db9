"""The command line: thin, and in words when the user can repair what went wrong."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import qviz
from qviz import cli
from qviz.methods import registry
from qviz.models.checkpoint import list_layers


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qviz", *arguments], capture_output=True, text=True, timeout=120
    )


def test_python_m_qviz_is_the_command() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"qviz {qviz.__version__}\n")


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from qviz import cli; cli.parser().format_help();"
        "print([name for name in ('torch', 'plotly', 'voila', 'transformers', 'numpy')"
        " if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--notebooks", "/nowhere"], "00_start.ipynb was not found in /nowhere"),
        (["serve", "--port", "70000"], "--port must lie between 0 and 65535, not 70000"),
        (["serve", "--pool", "-1"], "--pool must be 0 or more, not -1"),
        (["layers", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_the_user_can_repair_is_said_without_a_traceback(
    arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("qviz: ")
    assert words in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("error", [ImportError("pip install it"), MemoryError("will not fit")])
def test_a_missing_package_or_too_little_memory_is_said(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("qviz.models.checkpoint.list_layers", fail)
    assert cli.main(["layers", "minilm"]) == 2
    assert capsys.readouterr().err == f"qviz: {error}\n"


def test_a_port_in_use_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    (tmp_path / "00_start.ipynb").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert (
            cli.main(["serve", "--no-browser", "--port", port, "--notebooks", str(tmp_path)]) == 2
        )
    assert f"port {port} is in use" in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "methods_command", lambda args: [].missing)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        cli.main(["methods"])


@pytest.mark.parametrize(("columns", "widest"), [("40", 60), ("80", 80), ("200", 100)])
def test_methods_lists_the_registry(
    columns: str,
    widest: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    *lines, last = out.splitlines()
    assert "qviz methods NAME" in last
    heads = [line for line in lines if not line.startswith(" ")]
    assert [head.split()[0] for head in heads] == list(registry.methods())
    assert all(len(line) <= widest for line in lines if line.startswith(" "))
    words = " ".join(out.split())
    for method in registry.methods().values():
        assert f"{method.name} {method.title} {method.kind} method; needs" in words
        assert " ".join(method.source.split()) in words
        assert all(f"{key}={value}" in words for key, value in method.defaults.items())
        assert all(need in words for need in method.needs)


def test_layers_lists_the_bundled_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["layers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    layers = list_layers()
    assert len(lines) == len(layers) + 1
    for line, layer in zip(lines[1:], layers, strict=True):
        assert line.split()[:2] == [layer.name, "×".join(map(str, layer.shape))]


def test_columns_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    cli.print_table(("a", "b"), [("long name", "x"), ("s", "a last column may run on")])
    assert capsys.readouterr().out.splitlines() == [
        "a          b",
        "long name  x",
        "s          a last column may run on",
    ]
