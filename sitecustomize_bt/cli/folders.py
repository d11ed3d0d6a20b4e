"""Saved models on disk: which registered encoders a folder holds, and how one is loaded."""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families import table as registry
from ..families.table import Encoder
from .outcome import FailedError, WrongUseError

if TYPE_CHECKING:
    import torch

# Where a pipeline without a model_index.json (as FramePack's parts come) keeps its encoders.
PARTS = ("text_encoder", "text_encoder_2", "image_encoder")

# config.json's model_type -> the class that reads it, where `architectures` names none of ours.
_BY_TYPE = {
    "llama": "LlamaModel",
    "clip_text_model": "CLIPTextModel",
    "clip_vision_model": "CLIPVisionModel",
    "clip": "CLIPModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip": "SiglipModel",
}

# Names in a safetensors header -> torch's; others are quantized weights, which no dtype scales.
_SAFETENSORS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

_SAYS_DTYPE_SINCE = 5  # transformers' major version; torch_dtype before

_LONGEST_HEADER = 100 * 2**20  # safetensors' own limit


@dataclass(frozen=True)
class SavedModel:
    """One registered encoder on disk.

    ``dtype``: as saved, by config.json or else by the weights, as torch names it.
    """

    path: Path
    row: Encoder
    dtype: str
    weights_bytes: int

    def bytes_as(self, dtype: str) -> int:
        """What the weights take in memory, loaded as ``dtype``."""
        files = _weight_files(self.path)
        if not all(file.suffix == ".safetensors" for file in files):
            return self.weights_bytes * ITEM_BYTES[dtype] // ITEM_BYTES.get(self.dtype, 4)
        total = self.weights_bytes
        for name, size in _bytes_by_type(files).items():
            if name in _SAFETENSORS:
                total += size * ITEM_BYTES[dtype] // ITEM_BYTES[_SAFETENSORS[name]] - size
        return total


def find(folder: Path, class_name: str | None = None) -> list[SavedModel]:
    """Every registered encoder in ``folder``: a saved model's, or a pipeline's with several.

    ``class_name``: the class to load it as; of a pipeline, the only class that is taken.
    """
    if class_name is not None:
        _row(class_name)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise WrongUseError(f"{folder} {problem}")
    if (folder / "config.json").is_file():
        config = _read(folder / "config.json")
        return [_saved(folder, config, _row(class_name or _named_class(folder, config)))]
    found, others = [], []
    for part in _parts(folder):
        config = _read(part / "config.json")
        name = _named_class(part, config)
        row = _known(name)
        if row is not None and class_name in (None, name):
            found.append(_saved(part, config, row))
        else:
            others.append(f"{part.name} ({name})")
    if not found:
        if others:
            wanted = class_name or f"a supported class ({_supported()})"
            raise WrongUseError(f"{folder} has no part of {wanted}, only {', '.join(others)}")
        raise WrongUseError(f"{folder} is no saved model: it has no config.json")
    return found


def class_of(saved: SavedModel) -> Any:
    """transformers' class, from a transformers that prints nothing but errors."""
    try:
        import torch  # noqa: F401 - without it, transformers has names for its classes and no more
        import transformers
    except ImportError as error:
        raise FailedError(f"a model cannot be loaded here: {error}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return getattr(transformers, saved.row.name)


def load(saved: SavedModel, attention: str | None, dtype: str, device: str) -> torch.nn.Module:
    """The model by its class's ``from_pretrained``, in eval mode, on ``device``.

    ``attention``: the ``attn_implementation`` to ask for; None asks for none.
    """
    cls = class_of(saved)
    import torch
    import transformers

    renamed = int(transformers.__version__.partition(".")[0]) >= _SAYS_DTYPE_SINCE
    options: dict[str, Any] = {"dtype" if renamed else "torch_dtype": getattr(torch, dtype)}
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        model, loading = cls.from_pretrained(
            str(saved.path), local_files_only=True, output_loading_info=True, **options
        )
    except Exception as error:
        raise _cannot_load(saved, error) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers makes them up at random, so no two loads would be the same model.
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FailedError(
            f"{saved.path} does not hold all weights of {saved.row.name}: "
            f"{missing[0]}{more} missing"
        )
    try:
        placed: torch.nn.Module = model.eval().to(device)
    except Exception as error:
        raise _cannot_load(saved, error) from error
    return placed


def _cannot_load(saved: SavedModel, error: Exception) -> FailedError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return FailedError(f"{saved.path} cannot be loaded as {saved.row.name}: {reason}")


def _parts(folder: Path) -> list[Path]:
    """The folders of a pipeline's parts that have a config.json."""
    names: list[str] = list(PARTS)
    if (folder / "model_index.json").is_file():
        index = _read(folder / "model_index.json")
        # Parts are [library, class] pairs; those of other libraries are no encoders of ours.
        names = [k for k, v in index.items() if isinstance(v, list) and v[:1] == ["transformers"]]
    return [folder / name for name in names if (folder / name / "config.json").is_file()]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WrongUseError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise WrongUseError(f"{path} is not a JSON object")
    return value


def _named_class(folder: Path, config: dict[str, Any]) -> str:
    """The class that the folder's config names, supported or not."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    if isinstance(first, str) and _known(first) is not None:
        return first
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _BY_TYPE:
        return _BY_TYPE[model_type]
    name = first or model_type
    if name is None:
        raise WrongUseError(f"{folder / 'config.json'} names neither a class nor a model_type")
    return str(name)


def _known(name: str) -> Encoder | None:
    return next((row for row in registry.ENCODERS if row.name == name), None)


def _row(name: str) -> Encoder:
    row = _known(name)
    if row is None:
        raise WrongUseError(f"{name} is not supported (supported: {_supported()})")
    return row


def _supported() -> str:
    return ", ".join(row.name for row in registry.ENCODERS)


def _saved(folder: Path, config: dict[str, Any], row: Encoder) -> SavedModel:
    files = _weight_files(folder)
    if not files:
        raise WrongUseError(f"{folder} has a config.json and no weights")
    dtype = config.get("dtype") or config.get("torch_dtype")
    if dtype not in ITEM_BYTES:
        types = Counter({k: v for k, v in _bytes_by_type(files).items() if k in _SAFETENSORS})
        dtype = _SAFETENSORS[types.most_common(1)[0][0]] if types else "float32"
    return SavedModel(folder, row, dtype, sum(file.stat().st_size for file in files))


def _weight_files(folder: Path) -> list[Path]:
    """The files that ``from_pretrained`` would read."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            shards = _read(folder / f"{name}.index.json").get("weight_map") or {}
            if not isinstance(shards, dict) or not all(type(s) is str for s in shards.values()):
                raise WrongUseError(f"{folder / name}.index.json does not say where weights are")
            files = [folder / shard for shard in sorted(set(shards.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise WrongUseError(f"{folder} lacks {', '.join(missing)}, which its index names")
            return files
    return []


def _bytes_by_type(files: list[Path]) -> Counter[str]:
    """Bytes of weights by safetensors' name of their type; of other files nothing is known."""
    sizes: Counter[str] = Counter()
    for file in files:
        if file.suffix != ".safetensors":
            continue
        header = _header(file)
        try:
            for tensor in (value for name, value in header.items() if name != "__metadata__"):
                begin, end = tensor["data_offsets"]
                sizes[tensor["dtype"]] += end - begin
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise WrongUseError(f"{file} is not a safetensors file: its header is odd") from error
    return sizes


def _header(file: Path) -> dict[str, Any]:
    """A safetensors file's: eight bytes of length, then JSON."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(opened.read(length))
            return header
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise WrongUseError(f"{file} is not a safetensors file: {error}") from error
