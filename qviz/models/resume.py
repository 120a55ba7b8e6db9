"""A run that can be continued: one safetensors file for each layer that is finished.

A file's header says what run it belongs to, by everything that determines the result, and holds
checksums of its tensors and of itself. Files are written under another name and renamed. A damaged
file only costs time: its layer is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qviz.core.storage import to_plain, to_value
from qviz.models.cache import checksum, write_whole
from qviz.models.layers import LoadedModel

log = logging.getLogger("qviz")

LONG = 40  # characters of a value up to which a message shows it
FORMAT = 1  # increase it when the meaning of the stored data changes


class Checkpoint:
    """The finished layers of one run in a directory, which is made if it is not there.

    directory  whose safetensors files are all of this run
    key        name → what determines the result, as JSON holds it
    layers     the layers that the run is to make
    classes    dataclasses that may be stored beside those of qviz.core.storage
    device     of what is read back

    stored     layer → what was found there: a result, or a reason why the layer was left as it is
    damaged    layer → what is wrong with its file

    Raises ValueError for a directory with files of another run, and says what differs.
    """

    def __init__(
        self,
        directory: str | Path,
        key: Mapping[str, Any],
        layers: Sequence[str],
        classes: Sequence[type] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        self.directory, self.classes = Path(directory).expanduser(), tuple(classes)
        self.device = device
        self.key = json.loads(json.dumps({"format": FORMAT, **key}))
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"checkpoint={str(directory)!r} is a file; name a directory")
        paths = {self._path(layer): layer for layer in layers}
        if len(paths) < len(layers):
            raise ValueError("two layers would be stored under one file name")
        self.stored: dict[str, Any] = {}
        self.damaged: dict[str, str] = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            self._look_at(path, paths.get(path))

    def _path(self, layer: str) -> Path:
        return self.directory / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', layer)}.safetensors"

    def _look_at(self, path: Path, layer: str | None) -> None:
        from safetensors import SafetensorError

        try:
            header, tensors = _read(path, self.device)
        except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
            if layer is None:
                raise ValueError(
                    f"{path} is not part of this run ({error}); give the checkpoint a directory "
                    "of its own"
                ) from error
            self.damaged[layer] = (
                f"{path.name} was damaged ({error}), so {layer} was computed again"
            )
            log.warning("%s", self.damaged[layer])
            return
        self._require_same(header["key"])
        if layer is None or header["layer"] != layer:
            raise ValueError(
                f"{path} holds {header['layer']}, which is not expected there; remove it"
            )
        self.stored[layer] = to_value(header["result"], tensors, self.classes)

    def _require_same(self, key: Mapping[str, Any]) -> None:
        if key == self.key:
            return
        there, here = _flat(key), _flat(self.key)
        differ = [
            _difference(name, there.get(name, "not given"), here.get(name, "not given"))
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        ]
        raise ValueError(
            f"{self.directory} belongs to another run: {'; '.join(differ)}. Use the same "
            "options, or give another directory"
        )

    def notes(self, layers: int) -> list[str]:
        """How many layers were found, in words."""
        if not self.stored and not self.damaged:
            return []
        found = f"{len(self.stored)} of {layers} layers were read from {self.directory}"
        return [found, *self.damaged.values()]

    def write(self, layer: str, result: object) -> None:
        """Store a finished layer; OSError where that is not possible."""
        from safetensors import SafetensorError

        plain, tensors = to_plain(result, self.classes)
        checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
        header = {"key": self.key, "layer": layer, "result": plain, "checksums": checksums}
        text = json.dumps(header)
        crc = zlib.crc32(text.encode())
        try:
            write_whole(self._path(layer), tensors, json.dumps({"crc": crc, "header": text}))
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"{layer} cannot be stored in {self.directory} ({error}). The layers before it "
                "are stored; once there is space and write permission, the same call continues "
                "from there"
            ) from error


def _read(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "qviz" not in metadata:
            raise ValueError("it holds something else")
        outer = json.loads(metadata["qviz"])
        if zlib.crc32(outer["header"].encode()) != outer["crc"]:
            raise ValueError("the checksum of its header is wrong")
        header = json.loads(outer["header"])
        tensors = {name: file.get_tensor(name) for name in header["checksums"]}
    for name, tensor in tensors.items():
        if checksum(tensor) != header["checksums"][name]:
            raise ValueError(f"the checksum of {name} is wrong")
    return header, {name: tensor.to(device) for name, tensor in tensors.items()}


def _difference(name: str, there: Any, here: Any) -> str:
    """Both values, unless they are too long to be read: checksums, lists of layers."""
    if max(len(str(there)), len(str(here))) > LONG:
        return f"{name} differ" if name.endswith("s") else f"the {name} differs"
    return f"{name} was {there}, is {here}"


def _flat(key: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested names joined by dots, so that a message can name the one that differs."""
    flat: dict[str, Any] = {}
    for name, value in key.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def fingerprint(model: LoadedModel) -> str:
    """SHA-256 of a model's configuration, parameters and buffers, with their names and dtypes."""
    config = {k: str(v) for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in (*model.model.named_parameters(), *model.model.named_buffers()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()


def weights_fingerprint(model: LoadedModel) -> str:
    """SHA-256 of the values of a model's parameters, with their names and shapes, and of those
    buffers that a checkpoint stores (DeepSeek-V3 routes by one).

    The same for the same values in another dtype or on another device, and whatever version of
    transformers describes the model: a calibration is kept on disk with it.
    """
    found = hashlib.sha256()
    for name, tensor in (*model.model.named_parameters(), *_stored_buffers(model)):
        wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(_bytes(wide))
    return found.hexdigest()


def _stored_buffers(model: LoadedModel) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, module in model.model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}", buffer


def describe(value: Any) -> Any:
    """An option's value as JSON holds it, equal for equal values; tensors by their checksum.

    Raises TypeError for a value without such a description, such as a function.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(_bytes(value)).hexdigest()}"
    if isinstance(value, np.ndarray):
        return describe(torch.from_numpy(value))
    if isinstance(value, Mapping):
        return {str(name): describe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    return to_plain(value)[0]


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
