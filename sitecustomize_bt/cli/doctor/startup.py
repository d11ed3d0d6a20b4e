"""Whether the hook runs when Python starts: looked up in what is installed, and tried.

What is installed: each copy that this Python sees, and whether its start-up files are unchanged.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import site
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from ... import __version__
from ...startup.settings import ENABLE
from .check import Check, fine, note, problem, stop
from .program import FLAGS, Program

DISTRIBUTION = "sitecustomize-bt"
PACKAGE = __name__.partition(".")[0]
FILES = (f"{PACKAGE}_init.pth", f"{PACKAGE}_init.start")
_SECONDS = 60

# A fresh Python prints this about itself, after an empty line that ends other output.
_PROBE = f"""
import json, sys
bootstrap = sys.modules.get("{PACKAGE}.startup.bootstrap")
finders = [type(finder).__module__ for finder in sys.meta_path]
print()
print(json.dumps({{
    "prefix": sys.prefix,
    "version": "%d.%d.%d" % sys.version_info[:3],
    "flags": [name for name in {tuple(FLAGS)!r} if getattr(sys.flags, name)],
    "bootstrap": bootstrap and bootstrap.__file__,
    "armed": "{PACKAGE}.startup.trigger" in finders,
}}))
"""

_NO_VARIABLES = "makes Python ignore variables, so the hook does nothing"
_STOPPING = {
    "no_site": "makes Python read no start-up files",
    "isolated": _NO_VARIABLES,
    "ignore_environment": _NO_VARIABLES,
}
_NOT_RUN = "not in a fresh interpreter with the variable set"


@dataclass(frozen=True)
class Copy:
    """One installation. ``source``: what pip installed it from, with options."""

    version: str
    folder: Path
    package: Path | None
    faults: tuple[str, ...]
    source: str

    @property
    def again(self) -> str:
        """The command that installs it again."""
        return f"pip install --force-reinstall --no-deps {self.source}"


@dataclass(frozen=True)
class Started:
    """A fresh interpreter. ``bootstrap``: its start-up code. ``armed``: it waits for libraries."""

    prefix: str
    version: str
    flags: list[str]
    bootstrap: str | None
    armed: bool
    complaint: str

    @property
    def package(self) -> Path | None:
        """The folder of the package whose start-up code ran."""
        return Path(self.bootstrap).resolve().parents[1] if self.bootstrap else None


def checks(host: Program, copies: list[Copy], ran_here: bool) -> Iterator[Check]:
    """Check the start-up; ``ran_here``: whether the start-up code ran in this process."""
    started = _start(host)
    if isinstance(started, str):
        text = f"{host.python} cannot be started ({started})"
        yield stop("interpreter", text, f'make `{host.python} -c "print(1)"` work first')
        return
    # With -S, a venv's Python reports the prefix of its base Python.
    elsewhere = host.given and "no_site" not in started.flags and started.prefix != sys.prefix
    if elsewhere:
        text = f"the program runs in {started.prefix}; what follows is about {sys.prefix}"
        yield problem("interpreter", text, f"`{host.python} -m {PACKAGE} doctor` looks there")
    else:
        yield fine("interpreter", f"Python {started.version}, {host.python}")
    found = [*_flags(started, copies), *_installed(copies), *_package(started, copies)]
    yield from found
    if started.package and started.armed:
        here = "ran in this process" if ran_here else "not in this process"
        yield fine("runs", f"{here}; runs in a fresh one with the variable set (tried)")
    elif any(check.stops for check in found):  # that is the reason
        yield note("runs", _NOT_RUN)
    else:
        text, fix = _NOT_RUN, copies[0].again
        if started.package:
            text = f"it started and failed: {started.complaint}"
        elif elsewhere:
            text += f", in {started.prefix}"
            fix = f"{host.python} -m pip install {copies[0].source}"
        elif not {copy.folder for copy in copies}.intersection(site_folders()):
            text += f": {copies[0].folder} is no site folder, so its .pth files are not read"
            fix = f"{sys.executable} -m pip install {copies[0].source}"
        yield stop("runs", text, f"`{fix}`")


def _start(host: Program) -> Started | str:
    """A fresh interpreter, or why it cannot be started."""
    try:
        done = subprocess.run(
            [host.python, *host.options, "-c", _PROBE],
            env={**os.environ, ENABLE: "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
        complaint = (done.stderr.splitlines() or [""])[-1]
        if done.returncode != 0:
            return f"it ends with status {done.returncode}: {complaint}"
        return Started(**json.loads(done.stdout.splitlines()[-1]), complaint=complaint)
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"


def _flags(started: Started, copies: list[Copy]) -> Iterator[Check]:
    stopping = [name for name in _STOPPING if name in started.flags]
    if "isolated" in stopping:  # it sets the others as well
        stopping = ["isolated"]
    for name in stopping:
        option = f"-{FLAGS[name]}"
        yield stop("flags", f"{option} {_STOPPING[name]}", f"start Python without {option}")
    for_user = copies and all(copy.folder == user_folder() for copy in copies)
    if for_user and not stopping and "no_user_site" in started.flags:
        folder = f"{copies[0].folder}, where it is installed"
        text = f"-s or PYTHONNOUSERSITE keeps Python from {folder}"
        yield stop("flags", text, "start Python without, or install it for all users")
    elif not stopping:
        yield fine("flags", "none that would stop it")


def _installed(copies: list[Copy]) -> Iterator[Check]:
    if not copies:
        text = f"{DISTRIBUTION} is not installed in {sys.prefix}"
        pip = f"`{sys.executable} -m pip install` its folder or wheel"
        yield stop("installed", text, f"{pip}, or run this with the Python of your program")
        return
    shown = " and ".join(f"{copy.version} in {copy.folder}" for copy in copies)
    if len(copies) > 1:
        fix = f"`pip uninstall {DISTRIBUTION}` until none is left, then install it once"
        yield problem("installed", f"{len(copies)} times: {shown}", fix)
    else:
        yield fine("installed", shown)
    for copy in copies:
        yield from (problem("start-up files", text, f"`{copy.again}`") for text in copy.faults)
    if not any(copy.faults for copy in copies):
        yield fine("start-up files", "both there, with the hashes in RECORD")


def _package(started: Started, copies: list[Copy]) -> Iterator[Check]:
    here = Path(__file__).resolve().parents[2]
    ours = copies[0].package if copies else None
    theirs = started.package or ours
    if started.package and ours and started.package != ours.resolve():
        text = f"start-up runs {started.package}, and {ours} is what is installed"
        yield problem("package", text, "take the other one off the path (is it in PYTHONPATH?)")
    elif theirs and theirs != here:
        yield note("package", f"this command is {here}; programs get {theirs}")
    elif theirs:
        yield fine("package", f"{__version__}, {here}")


# Where this package is installed.


def copies() -> list[Copy]:
    """Every installation that this interpreter can see, in the order of ``sys.path``."""
    # With -s, -I or -S, Python does not have all site folders on sys.path.
    path = list(dict.fromkeys([*sys.path, *map(str, site_folders())]))
    found: dict[tuple[Path, str], Copy] = {}
    for distribution in metadata.distributions(name=DISTRIBUTION, path=path):
        copy = _copy(distribution)
        found.setdefault((copy.folder, copy.version), copy)
    return list(found.values())


def site_folders() -> list[Path]:
    """The folders whose .pth files this interpreter reads, or would read without -s, -I and -S."""
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
