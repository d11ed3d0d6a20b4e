"""Does it run when Python starts? Looked up in what is installed, and tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..startup.settings import ENABLE
from . import doctor_host, doctor_installed
from .doctor_check import Check, Section
from .doctor_host import Host
from .doctor_installed import DISTRIBUTION, PACKAGE, Copy

_SECTION = Section("start-up")
_SECONDS = 60

# What a Python does that has started; the empty line ends whatever others have printed.
_PROBE = f"""
import json, sys
bootstrap = sys.modules.get("{PACKAGE}.startup.bootstrap")
finders = [type(finder).__module__ for finder in sys.meta_path]
print()
print(json.dumps({{
    "prefix": sys.prefix,
    "version": "%d.%d.%d" % sys.version_info[:3],
    "flags": [name for name in {tuple(doctor_host.FLAGS)!r} if getattr(sys.flags, name)],
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


@dataclass(frozen=True)
class Started:
    """A fresh interpreter, with the variable set and the options of the host.

    ``version``: Python's. ``flags``: the names of ``sys.flags`` that are set, of those in FLAGS.
    ``package``: the folder of the package whose start-up code ran. ``armed``: whether it now waits
    for the libraries.
    ``complaint``: the last line on its stderr.
    """

    prefix: str
    version: str
    flags: tuple[str, ...]
    package: Path | None
    armed: bool
    complaint: str


def checks(host: Host, copies: list[Copy], ran_here: bool) -> list[Check]:
    """``ran_here``: whether the start-up code ran in this process."""
    started = _start(host)
    found = [_interpreter(host, started)]
    if isinstance(started, str):
        return found
    found += _flags(started, copies)
    found += _installed(copies)
    found += _package(started, copies)
    explained = any(check.stops for check in found)
    found.append(_runs(host, started, copies, ran_here, explained))
    return found


def _start(host: Host) -> Started | str:
    """A fresh interpreter, or why there is none."""
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
        found = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    bootstrap = found["bootstrap"]
    return Started(
        prefix=found["prefix"],
        version=found["version"],
        flags=tuple(found["flags"]),
        package=Path(bootstrap).resolve().parents[1] if bootstrap else None,
        armed=found["armed"],
        complaint=complaint,
    )


def _interpreter(host: Host, started: Started | str) -> Check:
    if isinstance(started, str):
        return _SECTION.stop(
            "interpreter",
            f"{host.python} cannot be started ({started})",
            f'make `{host.python} -c "print(1)"` work first',
        )
    if _elsewhere(host, started):
        return _SECTION.problem(
            "interpreter",
            f"the program runs in {started.prefix}; what follows is about {sys.prefix}",
            f"`{host.python} -m {PACKAGE} doctor` looks there",
        )
    return _SECTION.fine("interpreter", f"Python {started.version}, {host.python}")


def _elsewhere(host: Host, started: Started) -> bool:
    # With -S, a venv's Python says the prefix of the one beneath it.
    return host.given and "no_site" not in started.flags and started.prefix != sys.prefix


def _flags(started: Started, copies: list[Copy]) -> Iterator[Check]:
    stopping = [name for name in _STOPPING if name in started.flags]
    if "isolated" in stopping:  # which sets the others as well
        stopping = ["isolated"]
    for name in stopping:
        option = f"-{doctor_host.FLAGS[name]}"
        yield _SECTION.stop(
            "flags", f"{option} {_STOPPING[name]}", f"start Python without {option}"
        )
    for_user = copies and all(copy.folder == doctor_installed.user_folder() for copy in copies)
    if for_user and not stopping and "no_user_site" in started.flags:
        yield _SECTION.stop(
            "flags",
            f"-s or PYTHONNOUSERSITE keeps Python from {copies[0].folder}, where it is installed",
            "start Python without, or install it for all users",
        )
    elif not stopping:
        yield _SECTION.fine("flags", "none that would stop it")


def _installed(copies: list[Copy]) -> Iterator[Check]:
    if not copies:
        yield _SECTION.stop(
            "installed",
            f"{DISTRIBUTION} is not installed in {sys.prefix}",
            f"`{sys.executable} -m pip install` its folder or wheel, "
            "or run this with the Python of your program",
        )
        return
    shown = " and ".join(f"{copy.version} in {copy.folder}" for copy in copies)
    if len(copies) > 1:
        yield _SECTION.problem(
            "installed",
            f"{len(copies)} times: {shown}",
            f"`pip uninstall {DISTRIBUTION}` until none is left, then install it once",
        )
    else:
        yield _SECTION.fine("installed", shown)
    faults = [(text, copy) for copy in copies for text in copy.faults.values()]
    for text, copy in faults:
        yield _SECTION.problem("start-up files", text, f"`{copy.again}`")
    if not faults:
        yield _SECTION.fine("start-up files", "both there, with the hashes in RECORD")


def _package(started: Started, copies: list[Copy]) -> Iterator[Check]:
    here = Path(__file__).resolve().parents[1]
    installed = copies[0].package if copies else None
    if started.package and installed and started.package != installed.resolve():
        yield _SECTION.problem(
            "package",
            f"start-up runs {started.package}, and {installed} is what is installed",
            "take the other one off the path (is it in PYTHONPATH?)",
        )
        return
    theirs = started.package or installed
    if theirs and theirs != here:
        yield _SECTION.note("package", f"this command is {here}; programs get {theirs}")
    elif theirs:
        yield _SECTION.fine("package", f"{__version__}, {here}")


def _runs(
    host: Host, started: Started, copies: list[Copy], ran_here: bool, explained: bool
) -> Check:
    if started.package and started.armed:
        here = "ran in this process" if ran_here else "not in this process"
        return _SECTION.fine("runs", f"{here}; runs in a fresh one with the variable set (tried)")
    text = "not in a fresh interpreter with the variable set"
    if explained:
        return _SECTION.note("runs", text)
    folders = doctor_installed.site_folders()
    mend = f"`{copies[0].again}`"
    if started.package:
        text = f"it started and failed: {started.complaint}"
    elif _elsewhere(host, started):
        text = f"{text}, in {started.prefix}"
        mend = f"`{host.python} -m pip install {copies[0].source}`"
    elif not any(copy.folder in folders for copy in copies):
        text = f"{text}: {copies[0].folder} is no site folder, so its .pth files are not read"
        mend = f"`{sys.executable} -m pip install {copies[0].source}`"
    return _SECTION.stop("runs", text, mend)
