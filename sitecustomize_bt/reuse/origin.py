"""Which checkpoint a model was loaded from, found out without reading its weights.

``from_pretrained`` maps safetensors files into memory; the first forward reads them. So this module
must not read them first. A hub cache names a file by its hash. Any other weights file is identified
by its size, its time, its safetensors header and some samples.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..startup.faults import pass_on

# Arguments of from_pretrained whose effect shows in the files, the config or the tensors.
_KNOWN = frozenset(
    (
        *("adapter_kwargs", "attn_implementation", "cache_dir", "config", "device_map", "dtype"),
        *("force_download", "local_files_only", "low_cpu_mem_usage", "max_memory"),
        *("offload_folder", "offload_state_dict", "output_loading_info", "proxies"),
        *("pretrained_model_name_or_path", "resume_download", "revision", "subfolder", "token"),
        *("torch_dtype", "use_auth_token", "use_safetensors", "variant"),
    )
)

HEADER_LENGTH = 8  # bytes, little-endian: https://github.com/huggingface/safetensors#format
_LONGEST_HEADER = 100_000_000
_SAMPLES, _SAMPLE = 16, 4096
_SMALL = 10_000_000


class NoOriginError(Exception):
    """A load may give another model next time. The message says why."""


@dataclass(frozen=True)
class Origin:
    """One checkpoint. ``digest``: of its contents. ``files``: path, bytes and time of each."""

    digest: str
    files: tuple[tuple[str, int, int], ...]

    def is_there(self) -> bool:
        """Whether none of its files has changed since."""
        try:
            return self.files == tuple(_stamp(path) for path, _, _ in self.files)
        except OSError as error:
            pass_on(error)
            return False


def of_load(config_path: str | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Origin:
    """The origin of what ``from_pretrained(*args, **kwargs)`` returns.

    ``config_path``: the checkpoint's own config file. Raises NoOriginError or OSError.
    """
    unknown = sorted(name for name in kwargs.keys() - _KNOWN if kwargs[name] is not None)
    if len(args) > 1 or unknown:
        raise NoOriginError(f"loaded with {unknown[0] if unknown else 'further arguments'}")
    if config_path is None or os.path.basename(config_path) != "config.json":
        raise NoOriginError("loaded from no folder of its own")
    if kwargs.get("use_safetensors") is False:
        raise NoOriginError("loaded from files that are not safetensors")
    # All files count, because nobody says which of them the model is loaded from.
    folder = os.path.dirname(config_path)
    paths = sorted(
        os.path.join(folder, name)
        for name in os.listdir(folder)
        if name.endswith((".safetensors", ".json"))
    )
    of_weights = [path for path in paths if path.endswith(".safetensors")]
    wanted = kwargs.get("variant") or ""
    if not any(wanted in os.path.basename(path) for path in of_weights):
        raise NoOriginError("loaded from files that are not safetensors")
    if any(os.path.basename(path) == "adapter_config.json" for path in paths):
        raise NoOriginError("loaded with an adapter")
    files = tuple(map(_stamp, paths))
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        for part in (os.path.basename(path).encode(), *_content(path)):
            digest.update(len(part).to_bytes(8, "little") + part)
    return Origin(digest.hexdigest(), files)


def _stamp(path: str) -> tuple[str, int, int]:
    found = os.stat(path)
    return path, found.st_size, found.st_mtime_ns


def _content(path: str) -> Iterator[bytes]:
    """What identifies this file, without reading all of its weights."""
    _, size, time = _stamp(path)
    yield str(size).encode()
    blob = os.path.realpath(path)
    if os.path.basename(os.path.dirname(blob)) == "blobs" and os.path.islink(path):
        yield os.path.basename(blob).encode()  # a hub cache uses the hash as the name
        return
    with open(path, "rb") as file:
        if not path.endswith(".safetensors"):
            if size > _SMALL:
                raise NoOriginError(f"{os.path.basename(path)} is too large for its kind")
            yield file.read()
            return
        yield str(time).encode()
        length = int.from_bytes(file.read(HEADER_LENGTH), "little")
        yield file.read(min(length, _LONGEST_HEADER))
        for number in range(_SAMPLES):
            file.seek(number * max(size - _SAMPLE, 0) // (_SAMPLES - 1))
            yield file.read(_SAMPLE)
