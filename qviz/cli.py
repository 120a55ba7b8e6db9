"""The `qviz` command. It is thin: every subcommand is a few lines around the library."""

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from qviz import __version__

# Errors that a user can cause and repair, printed as one sentence. Anything else is our fault and
# keeps its
# traceback.
# Packages whose versions matter when a page looks wrong.
PACKAGES_OF_PAGES = (
    "torch", "triton", "bitsandbytes", "numpy", "transformers", "safetensors", "ipywidgets",
    "anywidget", "plotly", "voila", "jupyter_server", "jupyterlab",
)  # fmt: skip

USER_ERRORS = (ValueError, OSError, LookupError, RuntimeError, ImportError, MemoryError)


def say(text: str) -> None:
    print(text, flush=True)


def serve_command(args: argparse.Namespace) -> None:
    from qviz import server

    if args.pool < 0:
        raise ValueError(f"--pool must be 0 or more, not {args.pool}")
    if args.port is not None and not 0 <= args.port <= 65535:
        raise ValueError(f"--port must lie between 0 and 65535, not {args.port}")
    server.serve(
        server.ServeOptions(
            notebooks=server.find_notebooks(args.notebooks),
            port=args.port,
            host=args.host,
            browser=args.browser,
            token=server.new_token() if args.token else None,
            pool=args.pool,
            embed=tuple(args.embed),
        ),
        say,
    )


def version_command(args: argparse.Namespace) -> None:
    say(f"qviz {__version__}")
    if args.verbose:
        from qviz.kernels.machine import machine
        from qviz.kernels.registry import default_device

        about = machine(default_device(), packages=PACKAGES_OF_PAGES)
        for name in (
            "qviz",
            "load before",
            "cache",
        ):  # printed above, or of interest to benchmarks only
            del about[name]
        for name, value in about.items():
            say(f"{name}: {value}")


def methods_command(args: argparse.Namespace) -> None:
    from qviz.methods import registry

    if args.method is not None:
        from qviz.methods.describe import describe

        say(describe(registry.get(args.method)))
        return
    for method in registry.methods().values():
        needs = ", ".join(sorted(method.needs)) or "nothing but the weight"
        defaults = (f"{key}={value}" for key, value in method.defaults.items())
        say(f"{method.name:<14}{method.title}")
        print_indented(f"{method.kind} method; needs {needs}")
        print_indented(", ".join(defaults))
        print_indented(method.source)
    say("qviz methods NAME shows where the defaults come from and which events can be traced.")


def layers_command(args: argparse.Namespace) -> None:
    from qviz.models.checkpoint import list_layers

    rows = [
        (layer.name, "×".join(map(str, layer.shape)), layer.dtype)
        for layer in list_layers(args.model)
    ]
    print_table(("layer", "shape [out×in]", "stored as"), rows)


def kernels_command(args: argparse.Namespace) -> None:
    from qviz import kernels
    from qviz.kernels import table
    from qviz.kernels.asked import check
    from qviz.kernels.formats import DEFAULT_FORMAT
    from qviz.kernels.shapes import parse_shape

    if args.recorded:
        there = kernels.records.recorded()
        say(f"{len(there)} measurement{'' if len(there) == 1 else 's'} of other machines:\n")
        for record in there:
            say(f"# {record.title} (recorded)\n\n{table.measurement_text(record.measurement)}\n")
        return
    if args.list:
        say(str(kernels.available(args.device)))
        return
    shapes = [parse_shape(text) for text in args.shape or ["2048x2048"]]
    given = (
        args.format or DEFAULT_FORMAT,
        [whole_number(n, "--batch") for n in args.batch.split(",")],
    )
    options = {"device": args.device, "kernels": args.kernel, "seconds": args.seconds}
    # Bad options and unwritable files fail now, not after a long list or after minutes.
    for shape in shapes:
        check(shape, *given, **options)
    if args.json is not None:
        require_writable(args.json, "--json")
    say(str(kernels.available(args.device)))
    found = None
    for shape in shapes:
        one = kernels.measure(
            shape,
            *given,
            **options,
            ceilings=None if found is None else found.ceilings,
            progress=lambda done, total, text: print(f"{done}/{total} {text}", file=sys.stderr),
        )
        found = one if found is None else found.joined(one)
    if found is not None:
        say(f"\n{table.measurement_text(found)}")
        if args.json is not None:
            say(f"\nwritten to {kernels.records.save(found, args.json)}")


def require_writable(path: Path, option: str) -> None:
    """Raise ValueError or OSError, naming the option, if no file can be written at this path."""
    if path.is_dir():
        raise ValueError(
            f"{option} needs a file to write to, but {path} is a folder: name a file in it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{option}: cannot write {path}; name another file")


def whole_number(text: str, option: str) -> int:
    """The whole numbers; ValueError, naming the option, if one is not a number."""
    if not text.strip().isdecimal():
        raise ValueError(f"{option} takes whole numbers separated by commas, got {text!r}")
    return int(text)


def cache_command(args: argparse.Namespace) -> None:
    from qviz.models.capture import warm_cache

    for line in warm_cache():
        say(line)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    columns = list(zip(head, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns[:-1]] + [0]  # the last column may run on
    for row in [head, *rows]:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)))


def print_indented(text: str, indent: int = 14) -> None:
    """The text as a paragraph as wide as the terminal, between 60 and 100 columns."""
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 100)
    space = " " * indent
    lines = textwrap.wrap(text, width, initial_indent=space, subsequent_indent=space,
                          break_on_hyphens=False)  # fmt: skip
    say("\n".join(lines))


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="qviz", description="See and touch LLM quantization.")
    top.add_argument("--version", action="store_true", help="print the version")
    top.add_argument(
        "--verbose", action="store_true", help="with --version: print what a bug report needs"
    )
    commands = top.add_subparsers(dest="command", metavar="command")

    serve = commands.add_parser("serve", help="serve the lessons to a browser")
    serve.add_argument(
        "--port", type=int, help="port to listen on (default: 8866 or the next free)"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    serve.add_argument(
        "--no-browser", dest="browser", action="store_false", help="do not open a browser"
    )
    serve.add_argument(
        "--no-token",
        dest="token",
        action="store_false",
        help="ask for no token: anyone who can reach the port can use the server",
    )
    serve.add_argument(
        "--pool", type=int, default=1, metavar="N", help="warm kernels for each page (%(default)s)"
    )
    serve.add_argument("--notebooks", type=Path, metavar="DIR", help="folder with the lessons")
    serve.add_argument(
        "--embed", action="append", default=[], metavar="ORIGIN",
        help="let this site (https://lms.example) embed the pages",
    )  # fmt: skip
    serve.set_defaults(run=serve_command)

    methods = commands.add_parser("methods", help="list the quantization methods")
    methods.add_argument("method", nargs="?", help="show one method with its options and events")
    methods.set_defaults(run=methods_command)

    layers = commands.add_parser("layers", help="list a model's linear layers and their shapes")
    layers.add_argument(
        "model", nargs="?", help="Hub id, folder or .safetensors file (default: the bundled model)"
    )
    layers.set_defaults(run=layers_command)

    kernels = commands.add_parser(
        "kernels", help="measure real kernels, or list those that run here"
    )
    kernels.add_argument(
        "--list",
        action="store_true",
        help="only list which kernels run here, and why others do not",
    )
    kernels.add_argument(
        "--shape", action="append", metavar="S", help="2048x2048, or a layer: Llama-3.1-8B:up_proj"
    )
    kernels.add_argument("--batch", default="1,4,16,64,256", metavar="N,…", help="(%(default)s)")
    kernels.add_argument(
        "--format", action="append", metavar="F", help="of the weight (int4-g128); may be repeated"
    )
    kernels.add_argument(
        "--device", metavar="D", help="cpu or cuda (default: a GPU if there is one)"
    )
    kernels.add_argument(
        "--seconds", type=float, default=0.3, help="for each kernel and batch (%(default)s)"
    )
    kernels.add_argument(
        "--kernel", action="append", metavar="K", help="only this kernel; may be repeated"
    )
    kernels.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    kernels.add_argument(
        "--recorded", action="store_true", help="print measurements of other machines"
    )
    kernels.set_defaults(run=kernels_command)

    cache = commands.add_parser("cache", help="prepare the bundled model's calibration data")
    cache.set_defaults(run=cache_command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0 on success, 2 for an error that the user can repair."""
    top = parser()
    args = top.parse_args(argv)
    if args.command is None and not args.version:
        top.error("name a command, or --help")
    if args.verbose and not args.version:
        top.error("--verbose only works with --version")
    try:
        (version_command if args.version else args.run)(args)
    except BrokenPipeError:  # `qviz methods | head`
        sys.stderr.close()
        return 0
    except USER_ERRORS as error:
        # str(KeyError) puts quotes around its message.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"qviz: {text}", file=sys.stderr)
        return 2
    return 0
