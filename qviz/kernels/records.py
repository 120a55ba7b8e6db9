"""Stored measurements: writing, reading, and those that ship with the package.

The shipped ones were measured elsewhere at another time and are shown as such, with machine and
date.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from qviz.kernels.results import Measurement

FOLDER = Path(__file__).parents[1] / "data" / "kernels"


@dataclass(frozen=True)
class Record:
    """A measurement that ships: its file's name, a title such as device and date, and itself."""

    name: str
    title: str
    measurement: Measurement


def save(measurement: Measurement, path: str | Path) -> Path:
    """Write it as JSON; returns the path. ValueError where a figure is not finite."""
    path = Path(path)
    text = measurement.to_json()  # before the file is touched
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load(path: str | Path) -> Measurement:
    """What `save` wrote. ValueError, naming file and field, where it is something else."""
    try:
        return Measurement.from_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a measurement of kernels: {error}") from error


def title(measurement: Measurement) -> str:
    """Where and when: "AMD EPYC, 2 threads, 2026-01-31"."""
    about = measurement.machine
    where = about.get("device", "unknown device")
    if where == "CPU":
        threads = about.get("threads", "?")
        plural = "" if threads == "1" else "s"
        where = f"{about.get('processor', 'CPU')}, {threads} thread{plural}"
    return f"{where}, {about.get('date', 'unknown date')[:10]}"


def file_name(measurement: Measurement) -> str:
    """A name for its file, from the device alone: a later run on it takes the earlier's place."""
    where = title(measurement).rpartition(", ")[0]
    kind = "cpu" if measurement.machine.get("device") == "CPU" else "cuda"
    return f"{kind}_{re.sub(r'[^a-z0-9]+', '_', where.lower()).strip('_')}.json"


def recorded() -> list[Record]:
    """The measurements that ship, GPUs first. ValueError where a file was damaged."""
    paths = sorted(FOLDER.glob("*.json"), key=lambda path: (path.name.startswith("cpu"), path.name))
    found = [(path.stem, load(path)) for path in paths]
    return [Record(name, title(measurement), measurement) for name, measurement in found]
