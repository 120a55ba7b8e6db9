"""Captured calibrations on disk: one safetensors file per run of a model over a text.

A file holds each distinct set of statistics once, however many layers share it, and in its header
what run it came from and a checksum of every tensor. Files are written under another name and
renamed, so that a reader never sees half a file and of two concurrent writers one wins completely.
When the files exceed LIMIT_BYTES together, those unused for longest are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qviz.core.calibration import Calibration
from qviz.models.checkpoint import match_name, no_layer

log = logging.getLogger("qviz")

LIMIT_BYTES = 2 << 30  # of all files: a class that tries out its own texts must not fill the disk
ABANDONED = 86400  # seconds after which a half-written file has no writer
FORMAT = 3  # part of the key: increase it when the meaning of the stored data changes
TENSORS = ("inputs", "hessian", "act_absmax", "act_absmean")


def directory() -> Path:
    """Where the files are: $QVIZ_CACHE, or the user's cache directory."""
    chosen = os.environ.get("QVIZ_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "calibration"
    import platformdirs

    return Path(platformdirs.user_cache_dir("qviz")) / "calibration"


def path_of(key: Mapping[str, Any]) -> Path:
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
    return directory() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def read(key: Mapping[str, Any], layer: str) -> Calibration | None:
    """The stored calibration of a layer, or None if there is none that is sound.

    Raises ValueError if the run is stored but knows no such layer, or has no calibration for it.
    """
    from safetensors import SafetensorError, safe_open

    path = path_of(key)
    if not path.is_file():
        return None
    try:
        with contextlib.suppress(OSError):  # a cache that belongs to another user is still read
            os.utime(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["qviz"])
            silent = header["silent"]
            name = match_name(layer, [*header["layers"], *silent])
            if name is not None and name not in silent:
                entry = header["layers"][name]
                tensors = {
                    part: _tensor(file, f"{entry['group']}.{part}", header) for part in TENSORS
                }
                return Calibration(
                    **tensors,
                    tokens=entry["tokens"],
                    layer=name,
                    source=header["source"],
                    weights=header["weights"],
                )
    except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
        log.warning("the cached calibration %s is damaged (%s); computing it again", path, error)
        return None
    raise ValueError(silent[name] if name is not None else no_layer(layer, header["layers"]))


def _tensor(file: Any, name: str, header: Mapping[str, Any]) -> torch.Tensor:
    tensor: torch.Tensor = file.get_tensor(name)
    if checksum(tensor) != header["checksums"][name]:
        raise ValueError(f"the checksum of {name} is wrong")
    return tensor


def write(
    key: Mapping[str, Any], calibrations: Mapping[str, Calibration], silent: Mapping[str, str]
) -> None:
    """Store a run; `silent` has the layers without a calibration, and what to answer for them.

    A cache that cannot be written is reported to the log and otherwise harmless.
    """
    from safetensors import SafetensorError

    path = path_of(key)
    groups: dict[int, str] = {}  # layers that share a Hessian share everything
    tensors: dict[str, torch.Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, calibration in calibrations.items():
        group = groups.setdefault(id(calibration.hessian), f"g{len(groups)}")
        layers[name] = {"group": group, "tokens": calibration.tokens}
        for part in TENSORS:
            tensors[f"{group}.{part}"] = getattr(calibration, part).cpu().contiguous()
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
    any_of_them = next(iter(calibrations.values()))
    header = {
        "layers": layers,
        "silent": dict(silent),
        "checksums": checksums,
        "source": any_of_them.source,
        "weights": any_of_them.weights,
        "key": dict(key),
    }
    try:
        write_whole(path, tensors, json.dumps(header))
        _evict(path)
    except (OSError, SafetensorError) as error:  # disk full, read-only …
        log.warning("the calibration cache %s cannot be written: %s", path.parent, error)


def write_whole(path: Path, tensors: Mapping[str, torch.Tensor], header: str) -> None:
    """Write a safetensors file under another name and rename it: it is there whole, or not at all.

    The header is found under "qviz" in its metadata. Raises OSError or SafetensorError where the
    file cannot be written.
    """
    from safetensors.torch import save_file

    temporary = path.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(dict(tensors), temporary, metadata={"qviz": header})
        temporary.chmod(mode)  # as the umask says: save_file lets nobody else read its files
        os.replace(temporary, path)
        _sweep(path.parent)
    except BaseException:  # also when the user interrupts
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _sweep(place: Path) -> None:
    """Remove what a killed process left half-written: a day old, nobody is still writing it."""
    for path in place.glob("*.partial"):
        with contextlib.suppress(OSError):  # another process may sweep too
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)


def _evict(newest: Path) -> None:
    """Remove the files that were unused for longest, down to LIMIT_BYTES; never `newest`."""
    files = [(p.stat(), p) for p in newest.parent.glob("*.safetensors") if p != newest]
    total = newest.stat().st_size + sum(stat.st_size for stat, _ in files)
    for stat, path in sorted(files, key=lambda item: item[0].st_mtime):
        if total <= LIMIT_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
