"""Write binder/requirements.txt: the pins of constraints.txt that the package needs at run time.

    python tools/binder_requirements.py          writes the file
    python tools/binder_requirements.py --check  fails when the file is not what would be written

Binder has no use for the test tools, and each of them would have to be downloaded at every build.
What is needed follows from the metadata of the packages installed here.
"""

import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "binder" / "requirements.txt"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HEAD = f"""\
# Written by tools/binder_requirements.py from constraints.txt; a test compares.
# The default torch would bring gigabytes of CUDA libraries; PyTorch's CPU builds have this index.
--extra-index-url {TORCH_CPU_INDEX}
"""


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Collect into `seen` what (name, extras) requires on this platform, and so on."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    for text in requires(name) or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            continue
        needed(canonicalize_name(requirement.name), frozenset(requirement.extras), seen)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name.strip()): version.strip() for name, version in pairs}


def requirements() -> str:
    """The text of binder/requirements.txt. Raises ValueError for a package without a pin."""
    seen: set[tuple[str, frozenset[str]]] = set()
    needed("qviz", frozenset(), seen)
    pinned = pins()
    names = sorted({name for name, _ in seen} - {"qviz"})
    # setuptools and pip come with the environment, and repo2docker has its own.
    names = [name for name in names if name not in ("setuptools", "pip")]
    missing = [name for name in names if name not in pinned]
    if missing:
        raise ValueError(f"constraints.txt does not pin {', '.join(missing)}; add what was tested")
    # "+cpu" and not only the index: without it a mirror's CUDA build would do as well.
    versions = {**pinned, "torch": pinned["torch"] + "+cpu"}
    return HEAD + "".join(f"{name}=={versions[name]}\n" for name in names)


if __name__ == "__main__":
    text = requirements()
    if "--check" in sys.argv:
        if text != TARGET.read_text(encoding="utf-8"):
            raise SystemExit(
                "binder/requirements.txt is out of date: python tools/binder_requirements.py"
            )
    else:
        TARGET.write_text(text, encoding="utf-8")
        print(f"{TARGET.relative_to(ROOT)}: {text.count('==')} pins")
