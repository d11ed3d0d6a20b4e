"""Where this package is installed, and whether its start-up files are what was installed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import site
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

DISTRIBUTION = "sitecustomize-bt"
PACKAGE = __name__.partition(".")[0]
FILES = (f"{PACKAGE}_init.pth", f"{PACKAGE}_init.start")


@dataclass(frozen=True)
class Copy:
    """One installation. ``source``: what pip installed it from, with the options for that."""

    version: str
    folder: Path
    package: Path | None
    faults: tuple[str, ...]
    source: str

    @property
    def again(self) -> str:
        """The command that installs it again."""
        return f"pip install --force-reinstall --no-deps {self.source}"


def copies() -> list[Copy]:
    """Every installation that this interpreter can see, in the order of ``sys.path``."""
    # Python started with -s, -I or -S has not all site folders on sys.path.
    path = list(dict.fromkeys([*sys.path, *map(str, site_folders())]))
    found: dict[tuple[Path, str], Copy] = {}
    for distribution in metadata.distributions(name=DISTRIBUTION, path=path):
        copy = _copy(distribution)
        found.setdefault((copy.folder, copy.version), copy)
    return list(found.values())


def site_folders() -> list[Path]:
    """The folders whose .pth files this interpreter reads, or would without -s, -I and -S."""
    folders = [Path(folder).resolve() for folder in site.getsitepackages()]
    if sys.prefix == sys.base_prefix or site.ENABLE_USER_SITE:
        folders.append(user_folder())
    return folders


def user_folder() -> Path:
    """The site folder of the user."""
    return Path(site.getusersitepackages()).resolve()


def _copy(distribution: metadata.Distribution) -> Copy:
    folder = Path(str(distribution.locate_file(""))).resolve()
    recorded = {str(file): file for file in distribution.files or ()}
    source, editable = _origin(distribution)
    package = Path(source).resolve() / PACKAGE if editable else None
    if f"{PACKAGE}/__init__.py" in recorded:
        package = folder / PACKAGE
    again = f"{'-e ' if editable else ''}{source or '<the folder or wheel it came from>'}"
    faults = tuple(_faults(folder, recorded))
    return Copy(distribution.version, folder, package, faults, again)


def _origin(distribution: metadata.Distribution) -> tuple[str, bool]:
    """The path or URL it was installed from (empty: unknown), and whether it is editable."""
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
    except ValueError:
        return "", False
    url = str(found.get("url", ""))
    source = url2pathname(urlparse(url).path) if url.startswith("file:") else url
    return source, bool(found.get("dir_info", {}).get("editable"))


def _faults(folder: Path, recorded: dict[str, metadata.PackagePath]) -> Iterator[str]:
    for name in FILES:
        path = folder / name
        written = recorded[name].hash if name in recorded else None
        if not os.path.isfile(path):
            yield f"{name} is missing from {folder}"
        elif written is None:
            yield f"{path} stands in no RECORD, so nobody knows whether it is ours"
        else:
            digest = hashlib.new(written.mode, path.read_bytes()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != written.value:
                yield f"{path} is not what was installed (its hash is not the one in RECORD)"
