"""The command line: thin, and in words when the user can repair what went wrong."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
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


def test_what_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version", "--verbose"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"qviz {qviz.__version__}"
    said = dict(line.split(": ", 1) for line in lines)
    assert said["python"] == platform.python_version()
    for package in ("torch", "numpy", "voila", "anywidget", "jupyterlab"):
        assert said[package] == metadata.version(package)
    assert {"device", "processor", "system", "date"} <= said.keys()


@pytest.mark.parametrize("wrong", [[], ["--verbose"], ["--verbose", "methods"]])
def test_what_is_no_command_is_said(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(wrong)
    assert left.value.code == 2
    said = "only works with --version" if "methods" in wrong else "name a command"
    assert said in capsys.readouterr().err


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


def test_a_name_that_is_not_found_is_said_without_quotes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """str() of a KeyError would put some around its whole message."""

    for error, text in [(KeyError("no 'x' here"), "no 'x' here"), (LookupError("none"), "none")]:

        def fail(name: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("qviz.models.checkpoint.list_layers", fail)
        assert cli.main(["layers"]) == 2
        assert capsys.readouterr().err == f"qviz: {text}\n"


def test_what_serve_is_asked_for_is_what_the_server_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qviz import server

    got: list[server.ServeOptions] = []
    monkeypatch.setattr(server, "serve", lambda options, say: got.append(options))
    monkeypatch.setenv("QVIZ_TOKEN", "named")
    (tmp_path / "00_start.ipynb").touch()
    folder = ["--notebooks", str(tmp_path)]
    assert cli.main(["serve", *folder]) == 0
    assert cli.main(["serve", *folder, "--no-token", "--no-browser", "--port", "0"]) == 0
    assert cli.main(["serve", *folder, "--host", "0.0.0.0", "--pool", "0", "--port", "65535"]) == 0
    first, second, third = got
    assert first == server.ServeOptions(tmp_path.resolve(), token="named")
    assert (second.token, second.browser, second.port) == (None, False, 0)
    assert (third.host, third.pool, third.port, third.token) == ("0.0.0.0", 0, 65535, "named")
    assert third.browser and first.host == "127.0.0.1" and first.pool == 1
    assert capsys.readouterr().err == ""
    for wrong in (["--port", "-1"], ["--port", "65536"], ["--pool", "-1"]):
        assert cli.main(["serve", *folder, *wrong]) == 2
    assert len(got) == 3


def test_the_measurements_that_ship_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qviz.kernels import records

    shipped = records.recorded()
    for count in (0, 1, 2):
        monkeypatch.setattr(records, "recorded", lambda count=count: (shipped * 2)[:count])
        assert cli.main(["kernels", "--recorded"]) == 0
        said = capsys.readouterr().out
        opening = f"{count} measurement{'' if count == 1 else 's'} of other machines:"
        assert said.startswith(opening) and said.count("(recorded)") == count


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


# ---------------------------------------------------------------------- kernels


def test_kernels_lists_what_runs_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    from qviz.kernels import available

    assert cli.main(["kernels", "--list", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == str(available("cpu")).splitlines()
    assert lines[0].startswith("torch.matmul") and "available" in lines[0]


def test_kernels_measures_what_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qviz.kernels import ceilings, records

    given = ceilings.Ceilings(1e10, 1e10, {"bfloat16": 1e11}, 2**20)
    monkeypatch.setattr(sys.modules["qviz.kernels.measure"], "measure_ceilings", lambda d: given)
    path = tmp_path / "found.json"
    asked = ["--shape", "32x64", "--shape", "bundled:k_proj", "--batch", "1,3", "--format", "int8",
             "--format", "fp8", "--kernel", "torch.int8", "--seconds", "0.002"]  # fmt: skip
    assert cli.main(["kernels", "--device", "cpu", "--json", str(path), *asked]) == 0
    said = capsys.readouterr()
    for words in ("int8, 32×64\n", "fp8, 128×256\n", "copy 10 GB/s", f"written to {path}",
                  "torch.int8 (fp8): torch.int8 takes symmetric 8-bit"):  # fmt: skip
        assert words in said.out
    assert "6/6 done" in said.err
    found = records.load(path)
    assert len(found.points) == 2 * 2 * 3  # shapes, batches; two kernels with int8, one with fp8
    assert found.ceilings == given


def test_kernels_prints_what_ships_as_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    from qviz.kernels import records

    assert cli.main(["kernels", "--recorded"]) == 0
    out = capsys.readouterr().out
    assert all(f"# {record.title} (recorded)" in out for record in records.recorded())
    assert f"{len(records.recorded())} measurement" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "4096"], "a shape is written OUTxIN"),
        (["--batch", "1,two"], "--batch takes whole numbers separated by commas, got 'two'"),
        (["--batch", "0"], "a batch must be from 1"),
        (["--format", "int5"], "unknown format 'int5'"),
        (["--kernel", "torch.int9"], "unknown kernel 'torch.int9'"),
        (["--seconds", "0"], "seconds must be above 0"),
        (["--seconds", "nan"], "seconds must be above 0"),
        (["--shape", "64x128", "--shape", "64x100"], "int4-g128 does not accept this shape"),
        (["--device", "tpu"], 'there is no device \'tpu\'; take "cpu" or "cuda"'),
        (["--list", "--device", "tpu"], 'there is no device \'tpu\'; take "cpu" or "cuda"'),
    ],
)
def test_kernels_says_what_the_user_can_repair_and_nothing_before_it(
    arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert cli.main(["kernels", *device, *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_what_cannot_be_written_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **options: object) -> None:
        raise AssertionError("it was measured first")

    monkeypatch.setattr("qviz.kernels.measure", fail)
    (tmp_path / "file").touch()
    for path, words in [
        (tmp_path, f"--json needs a file to write to, but {tmp_path} is a folder"),
        (tmp_path / "file" / "found.json", "file"),
    ]:
        assert cli.main(["kernels", "--device", "cpu", "--json", str(path)]) == 2
        said = capsys.readouterr()
        assert words in said.err
        assert said.out == ""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert cli.main(["kernels", "--device", "cpu", "--json", str(tmp_path / "new.json")]) == 2
    assert "--json: " in capsys.readouterr().err
    assert not (tmp_path / "new.json").exists()
