"""plotly.js, the copy inside the installed plotly package: its location and its address."""

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


@cache
def plotly_js_file() -> Path:
    """The file that plotly itself ships. Raises FileNotFoundError when there is none."""
    spec = find_spec("plotly")  # finds the package without running it
    roots = spec.submodule_search_locations if spec else None
    for root in roots or []:
        path = Path(root) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path
    raise FileNotFoundError(
        "plotly.min.js was not found in the plotly package; reinstall plotly "
        "(pip install --force-reinstall plotly)"
    )


def plotly_js_name() -> str:
    """File name in the address, `plotly-7.1.0.min.js`."""
    return f"plotly-{version('plotly')}.min.js"


def plotly_js_url() -> str:
    """Where a server of qviz offers the file, relative to its base URL."""
    return f"qviz/static/{plotly_js_name()}"
