"""Saved models on disk: which encoders of the table a folder holds, and how one is loaded."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compat import transformers as compat
from ..families import table
from ..families.table import Encoder
from ..reuse.disk import DTYPES
from .outcome import FailedError, WrongUseError

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# In the order in which transformers tries them.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

_SUPPORTED = ", ".join(row.name for row in table.ENCODERS)


@dataclass(frozen=True)
class SavedModel:
    """One encoder on disk. ``floats``: the bytes of the weights of each dtype."""

    path: Path
    row: Encoder
    dtype: str
    weights_bytes: int
    floats: dict[str, int]

    def bytes_as(self, dtype: str) -> int:
        """What the weights take in memory, loaded as ``dtype``."""
        size = ITEM_BYTES[dtype]
        scaled = sum(bytes * size // ITEM_BYTES[name] for name, bytes in self.floats.items())
        return self.weights_bytes - sum(self.floats.values()) + scaled


def find(folder: Path, class_name: str | None = None) -> list[SavedModel]:
    """The encoders in the folder of a model or a pipeline; ``class_name``: only of that class."""
    asked = None if class_name is None else _row(class_name)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise WrongUseError(f"{folder} {problem}")
    if (folder / "config.json").is_file():
        config = _read(folder / "config.json")
        return [_saved(folder, config, asked or _row(_named_class(folder, config)))]
    found, others = [], []
    for part in _parts(folder):
        config = _read(part / "config.json")
        name = _named_class(part, config)
        row = table.row_named(name)
        if row is not None and asked in (None, row):
            found.append(_saved(part, config, row))
        else:
            others.append(f"{part.name} ({name})")
    if others and not found:
        wanted = class_name or f"a supported class ({_SUPPORTED})"
        raise WrongUseError(f"{folder} has no part of {wanted}, only {', '.join(others)}")
    if not found:
        raise WrongUseError(
            f"{folder} is no saved model: it has no config.json, and no folder in it has one"
        )
    return found


def libraries() -> tuple[Any, Any]:
    """torch, and a transformers that prints nothing but errors."""
    try:
        import torch  # without it, transformers' classes are only names
        import transformers
    except ImportError as error:
        text = "torch and transformers are needed (pip install 'sitecustomize-bt[encoders]')"
        raise FailedError(f"{text}: {error}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


def check_device(device: str) -> None:
    """Raise WrongUseError unless ``device`` is there, and has memory to read from."""
    torch, _ = libraries()
    try:
        torch.ones(1, device=device).cpu()
    except Exception as error:
        reason = first_line(error)
        raise WrongUseError(f"device {device!r} cannot be used here: {reason}") from error


def class_of(saved: SavedModel) -> Any:
    """transformers' class."""
    return getattr(libraries()[1], saved.row.name)


def load(saved: SavedModel, attention: str | None, dtype: str, device: str) -> Any:
    """The model in eval mode; ``attention``: the ``attn_implementation`` to ask for, if any."""
    cls = class_of(saved)
    options = {compat.dtype_keyword(): getattr(libraries()[0], dtype)}
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        model, loading = cls.from_pretrained(
            str(saved.path), local_files_only=True, output_loading_info=True, **options
        )
        placed = model.eval().to(device)
    except Exception as error:
        problem = f"cannot be loaded as {saved.row.name}: {first_line(error)}"
        raise FailedError(f"{saved.path} {problem}") from error
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers makes them up at random, so no two loads would be the same model.
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"{saved.row.name}: {missing[0]}{more} missing"
        raise FailedError(f"{saved.path} does not hold all weights of {what}")
    return placed


def first_line(error: Exception) -> str:
    """The first line of what ``error`` says."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _parts(folder: Path) -> list[Path]:
    """The folders of a pipeline's parts that have a config.json."""
    # FramePack's parts come without a model_index.json.
    names = [row.role for row in table.ENCODERS if row.role]
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
    classes, kind = config.get("architectures"), config.get("model_type")
    name = classes[0] if isinstance(classes, list) and classes else None
    if table.row_named(str(name)) is None:
        by_type = {row.model_type: row.name for row in table.ENCODERS if row.model_type}
        name = by_type.get(str(kind)) or name or kind
    if name is None:
        raise WrongUseError(f"{folder / 'config.json'} names neither a class nor a model_type")
    return str(name)


def _row(name: str) -> Encoder:
    row = table.row_named(name)
    if row is None:
        raise WrongUseError(f"{name} is not supported (supported: {_SUPPORTED})")
    return row


def _saved(folder: Path, config: dict[str, Any], row: Encoder) -> SavedModel:
    files = _weight_files(folder)
    if not files:
        raise WrongUseError(f"{folder} has a config.json and no weights")
    total = sum(file.stat().st_size for file in files)
    floats = _floats(files)
    dtype = config.get("dtype") or config.get("torch_dtype")
    if dtype not in ITEM_BYTES:
        dtype = max(floats, key=lambda name: floats[name], default="float32")
    if files[0].suffix != ".safetensors":
        floats[dtype] = total  # a .bin file is not read for its dtypes
    return SavedModel(folder, row, dtype, total, floats)


def _weight_files(folder: Path) -> list[Path]:
    """The files that ``from_pretrained`` would read."""
    for name in _WEIGHTS:
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file():
            return [file]
        if not index.is_file():
            continue
        shards = _read(index).get("weight_map") or {}
        if not isinstance(shards, dict) or not all(type(s) is str for s in shards.values()):
            raise WrongUseError(f"{index} does not say where weights are")
        files = [folder / shard for shard in sorted(set(shards.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise WrongUseError(f"{folder} lacks {', '.join(missing)}, which its index names")
        return files
    return []


def _floats(files: list[Path]) -> Counter[str]:
    """The bytes of the weights of each dtype, read from the files' headers."""
    libraries()  # raises if there is no transformers, which brings safetensors
    import safetensors

    sizes: Counter[str] = Counter()
    for file in (file for file in files if file.suffix == ".safetensors"):
        try:
            with safetensors.safe_open(file, "numpy") as opened:  # "pt" would import torch
                for weight in map(opened.get_slice, opened.keys()):
                    dtype = DTYPES.get(weight.get_dtype())
                    # Any other weights are quantized, and no dtype changes their size.
                    if dtype in ITEM_BYTES:
                        sizes[dtype] += ITEM_BYTES[dtype] * math.prod(weight.get_shape())
        except (OSError, safetensors.SafetensorError) as error:
            # Only the weights are cut off, after a whole header: loading them will fail and say so.
            if "incomplete" not in str(error).lower():
                raise WrongUseError(f"{file} is not a safetensors file: {error}") from error
    return sizes
