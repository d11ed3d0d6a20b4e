"""A folder of computed outputs, shared by all processes that are given its path.

An entry is two files: ``.safetensors`` holds the tensors, ``.json`` everything else and their
checksum. Both are written under another name and renamed, the JSON last, so that nobody sees half
an entry. An entry that does not fit its checksum, its key or this version is dropped.

It holds hashes of a prompt's tokens, not its text. But whoever has the encoder can recover the text
from hidden states. So the folder is private to its user (0700, files 0600).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .origin import HEADER_LENGTH

VERSION = 3  # 1 had other checksums, 2 another form of an output

_DATA, _ABOUT, _PART = ".safetensors", ".json", ".part"
# Other files in the folder are never touched: they may be the user's.
_KEY = re.compile(r"[0-9a-f]{40}")
_ABANDONED = 3600  # seconds after which an unfinished file counts as abandoned
_numbers = itertools.count()

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WHOLE = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"}
# The dtypes that are read and so written, by safetensors' names and torch's.
DTYPES = {**_FLOATS, **_WHOLE, "BOOL": "bool"}

# The exceptions that reading a damaged entry may raise.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class DamagedError(ValueError):
    """An entry is not what was written."""


@dataclass(frozen=True)
class Kept:
    """One entry of a folder, as its JSON describes it. ``size``: in bytes; times: in seconds."""

    key: str
    label: str
    model_class: str
    size: int
    uses: int
    created: float
    used: float


class Folder:
    """The folder at ``path``. ``limit``: how many bytes it may hold."""

    def __init__(self, path: str, limit: int) -> None:
        self.path, self.limit = path, limit

    def create(self) -> None:
        """Create the folder, private to its user, if it is missing; raises OSError."""
        if os.path.isfile(self.path):
            raise NotADirectoryError(f"{self.path} is a file, not a folder")
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{self.path} cannot be written to")

    def about(self, key: str) -> dict[str, Any]:
        """The JSON of an entry; raises OSError or what is in DAMAGE."""
        with open(self._file(key, _ABOUT), encoding="ascii") as file:
            about = json.load(file)
        if not isinstance(about, dict) or about["version"] != VERSION or about["key"] != key:
            raise DamagedError(f"{key} is of another version, or not the one it says it is")
        if about["seal"] != _seal(about):
            raise DamagedError(f"{key} says something else than was written")
        return about

    def tensors(self, key: str, about: dict[str, Any]) -> dict[str, Any]:
        """The tensors of an entry; raises OSError or what is in DAMAGE."""
        data = bytearray(int(about["size"]))
        with open(self._file(key, _DATA), "rb") as file:
            read = file.readinto(data)
            if read != len(data) or file.read(1) or _checksum(data) != about["checksum"]:
                raise DamagedError(f"{key} does not fit its checksum")
        return _tensors(data)

    def write(self, key: str, about: dict[str, Any], tensors: dict[str, Any]) -> bool:
        """Write an entry; False if it is larger than the folder's limit. Raises OSError."""
        import safetensors.torch

        data = safetensors.torch.save(tensors)
        if len(data) > self.limit:
            return False
        self._make_room(key, len(data))
        now = time.time()
        about = {
            **about,
            "version": VERSION,
            "key": key,
            "size": len(data),
            "checksum": _checksum(data),
            "created": now,
            "used": now,
            "uses": 0,
        }
        about["seal"] = _seal(about)
        self._replace(key, _DATA, data)
        self._replace(key, _ABOUT, _json(about))
        return True

    def used(self, key: str) -> None:
        """Count one use, so that the entry is dropped last; raises OSError or what is in DAMAGE."""
        about = self.about(key)
        about |= {"uses": about["uses"] + 1, "used": time.time()}
        self._replace(key, _ABOUT, _json(about))

    def drop(self, key: str) -> None:
        """Remove the files of an entry that exist."""
        for ending in (_ABOUT, _DATA):
            with contextlib.suppress(OSError):
                os.unlink(self._file(key, ending))

    def keys(self) -> Iterator[str]:
        """The keys of all entries, in no order; raises OSError."""
        for name in os.listdir(self.path):
            key, ending = os.path.splitext(name)
            if ending == _ABOUT and _KEY.fullmatch(key):
                yield key

    def is_foreign(self) -> bool:
        """Whether plain files are there, and none of them is an entry's; raises OSError."""
        with os.scandir(self.path) as found:
            names = [one.name for one in found if one.is_file() and not one.name.startswith(".")]
        return bool(names) and not any(map(_KEY.match, names))

    def kept(self) -> list[Kept]:
        """All entries that can be read, the least recently used first; raises OSError."""
        found = []
        for key in self.keys():
            with contextlib.suppress(OSError, *DAMAGE):
                about = self.about(key)
                found.append(
                    Kept(
                        key,
                        str(about["label"]),
                        str(about["model_class"]),
                        int(about["size"]),
                        int(about["uses"]),
                        float(about["created"]),
                        float(about["used"]),
                    )
                )
        return sorted(found, key=lambda kept: kept.used)

    def latest(self, number: int) -> list[str]:
        """The keys of the ``number`` entries used last, the latest first; raises OSError."""
        used = sorted(((used, key) for key, (used, _) in self._sizes().items()), reverse=True)
        return [key for _, key in used[:number]]

    def damaged(self) -> list[str]:
        """The keys of entries that are not what was written; raises OSError."""
        found = []
        for key in sorted(self.keys()):
            try:
                self.tensors(key, self.about(key))
            except Exception:  # OSError, or whatever torch raises for a damaged file
                found.append(key)
        return found

    def _make_room(self, new: str, size: int) -> None:
        self._sweep()
        # Read each time, because other models and processes write here too.
        sizes = self._sizes()
        sizes.pop(new, None)  # it is replaced
        found = sorted((used, key, held) for key, (used, held) in sizes.items())
        total = sum(held for _, _, held in found)
        for _, key, held in found:
            if total + size <= self.limit:
                break
            self.drop(key)
            total -= held

    def _sizes(self) -> dict[str, tuple[float, int]]:
        """When each entry was last used (each use rewrites its JSON), and its size in bytes."""
        found = {}
        for key in self.keys():
            with contextlib.suppress(OSError):
                used = os.stat(self._file(key, _ABOUT)).st_mtime
                found[key] = used, os.stat(self._file(key, _DATA)).st_size
        return found

    def _sweep(self) -> None:
        """Remove what killed processes have left: unfinished files, one file without the other."""
        now, names = time.time(), set(os.listdir(self.path))
        for name in names:
            key, ending = os.path.splitext(name)
            is_part = ending == _PART and _KEY.fullmatch(name[1:].partition(".")[0])
            other = {_DATA: _ABOUT, _ABOUT: _DATA}.get(ending)
            is_alone = other and _KEY.fullmatch(key) and key + other not in names
            if is_part or is_alone:
                path = os.path.join(self.path, name)
                with contextlib.suppress(OSError):
                    if now - os.stat(path).st_mtime > _ABANDONED:
                        os.unlink(path)

    def _replace(self, key: str, ending: str, data: bytes) -> None:
        part = os.path.join(self.path, f".{key}.{os.getpid()}.{next(_numbers)}{_PART}")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
            os.replace(part, self._file(key, ending))
        except BaseException:  # a full disk, or Ctrl-C: leave no unfinished file
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise

    def _file(self, key: str, ending: str) -> str:
        return os.path.join(self.path, key + ending)


def _seal(about: dict[str, Any]) -> str:
    """The checksum of an entry's JSON, without the fields that a use changes."""
    said = {name: value for name, value in about.items() if name not in ("used", "uses", "seal")}
    return _checksum(_json(said))


def _json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, sort_keys=True).encode("ascii")


def _tensors(data: bytearray) -> dict[str, Any]:
    """The tensors of a safetensors file, which share its memory; raises what is in DAMAGE.

    ``safetensors.torch.load`` copies each of them, which takes as long as reading the file.
    https://github.com/huggingface/safetensors#format
    """
    import torch

    length = int.from_bytes(data[:HEADER_LENGTH], "little")
    found = {}
    for name, about in json.loads(data[HEADER_LENGTH : HEADER_LENGTH + length]).items():
        first, end = about["data_offsets"]
        dtype = getattr(torch, DTYPES[about["dtype"]])
        tensor = torch.empty(0, dtype=dtype)
        if end > first:
            count, offset = (end - first) // dtype.itemsize, HEADER_LENGTH + length + first
            tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=offset)
        found[name] = tensor.view(about["shape"])
    return found


def _checksum(data: bytes | bytearray) -> str:
    """Tells damage, not malice: whoever can write here could write another checksum too."""
    return f"{zlib.crc32(data):08x}"
