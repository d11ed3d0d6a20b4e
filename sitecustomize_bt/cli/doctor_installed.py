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
    """One installation. ``folder``: the site folder it is in. ``package``: the package's folder.

    ``faults``: what is wrong with a start-up file, by its name. ``source``: where it came from,
    with the options to install it from there again.
    """

    version: str
    folder: Path
    package: Path | None
    faults: dict[str, str]
    source: str

    @property
    def again(self) -> str:
        """The command that installs it again."""
        return f"pip install --force-reinstall --no-deps {self.source}"


def copies() -> list[Copy]:
    """Every installation that this interpreter can see, in the order of ``sys.path``."""
    found: dict[tuple[Path, str], Copy] = {}
    for distribution in metadata.distributions(name=DISTRIBUTION, path=_path()):
        copy = _copy(distribution)
        found.setdefault((copy.folder, copy.version), copy)
    return list(found.values())


def site_folders() -> list[Path]:
    """The folders whose .pth files this interpreter reads, or would without -s, -I and -S."""
    folders = list(site.getsitepackages())
    if sys.prefix == sys.base_prefix or site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [Path(folder).resolve() for folder in folders]


def user_folder() -> Path:
    """The site folder of the user."""
    return Path(site.getusersitepackages()).resolve()


def _path() -> list[str]:
    # Started with -s, -I or -S, the site folders are not all on sys.path.
    return list(dict.fromkeys([*sys.path, *map(str, site_folders())]))


def _copy(distribution: metadata.Distribution) -> Copy:
    folder = Path(str(distribution.locate_file(""))).resolve()
    recorded = {str(file): file for file in distribution.files or ()}
    origin, editable = _origin(distribution)
    package = folder / PACKAGE if f"{PACKAGE}/__init__.py" in recorded else None
    if package is None and editable:
        package = Path(url2pathname(urlparse(origin).path)).resolve() / PACKAGE
    source = url2pathname(urlparse(origin).path) if origin.startswith("file:") else origin
    return Copy(
        version=distribution.version,
        folder=folder,
        package=package,
        faults=dict(_faults(folder, recorded)),
        source=f"{'-e ' if editable else ''}{source or '<the folder or wheel it came from>'}",
    )


def _origin(distribution: metadata.Distribution) -> tuple[str, bool]:
    """The URL it was installed from (empty: not known), and whether it is editable."""
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
        return str(found.get("url", "")), bool(found.get("dir_info", {}).get("editable"))
    except ValueError:
        return "", False


def _faults(folder: Path, recorded: dict[str, metadata.PackagePath]) -> Iterator[tuple[str, str]]:
    for name in FILES:
        path = folder / name
        written = recorded[name].hash if name in recorded else None
        if not os.path.isfile(path):
            yield name, f"{name} is missing from {folder}"
        elif written is None:
            yield name, f"{path} stands in no RECORD, so nobody knows whether it is ours"
        elif _digest(path, written.mode) != written.value:
            yield name, f"{path} is not what was installed (its hash is not the one in RECORD)"


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, path.read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
