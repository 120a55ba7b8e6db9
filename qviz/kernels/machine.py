"""The machine of a measurement: what a reader needs to judge the figures."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from qviz import __version__
from qviz.kernels.timing import last_level_cache

PACKAGES = ("torch", "triton", "bitsandbytes", "llama-cpp-python", "numpy")


def machine(device: torch.device, *, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Names → what is there now, versions of `packages` among it; all text, and "unknown" where the
    system does not say."""
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "processor": processor(),
        "cores": str(os.cpu_count() or "unknown"),
        "threads": str(torch.get_num_threads()),
        "cache": str(last_level_cache(device)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "qviz": __version__,
    }
    found |= {name: _version(name) for name in packages}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found["compute capability"] = f"{major}.{minor}"
        found["cuda"] = torch.version.cuda or "unknown"
        found["driver"] = _driver()
    found["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    found["load before"] = load()
    return found


def load() -> str:
    """The average number of processes that wanted to run in the last minute."""
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0].strip()
