"""The report that is written at exit, where the host asked for one: a file for each process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import sys
import time
from typing import Any

from ..core import console, locks
from ..startup.faults import FAULTS, pass_on
from ..startup.settings import REPORT, Settings

SCHEMA = "sitecustomize-bt/report"
VERSION = 2
READABLE = (1, 2)  # 1 has no outcomes

_LIBRARIES = ("torch", "transformers", "accelerate", "diffusers")

_lock = locks.new()
_registered = False
_started = time.time()


def write_at_exit(settings: Settings) -> None:
    """Write the report of this process when it ends, if ``settings`` ask for one.

    No report is written if a process ends without Python's exit handlers: if it is killed, or is a
    forked child of multiprocessing.
    """
    global _registered  # noqa: PLW0603 - one process, one report
    with _lock:
        if settings.report and not _registered:
            _registered = True
            try:
                # Not abspath(), which takes the slash off a folder's name.
                folder = "" if os.path.isabs(settings.report) else os.getcwd()
            except OSError as error:  # the folder is gone
                pass_on(error)
                console.fault(f"no report will be written to {REPORT}", error)
                return
            atexit.register(_write, settings, os.path.join(folder, settings.report))


def _write(settings: Settings, wanted: str) -> None:
    """Write the report; print one line if that fails."""
    temporary = ""
    try:
        path = _path(settings, wanted)
        temporary = f"{path}.{os.getpid()}.part"
        with open(temporary, "x", encoding="ascii") as file:
            file.write(json.dumps(_report(settings), indent=1) + "\n")
        os.replace(temporary, path)  # nobody ever reads half a report
    except FAULTS as error:
        pass_on(error)
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        console.fault(f"no report was written to {REPORT}", error)


def _path(settings: Settings, wanted: str) -> str:
    """The file of this process: a folder gets one for each, a file's name is the main process's."""
    if wanted.endswith(("/", os.sep)) or os.path.isdir(wanted):
        os.makedirs(wanted, exist_ok=True)
        return os.path.join(wanted, f"{platform.node()}-{os.getpid()}.json")
    if settings.rank or _is_child():
        stem, suffix = os.path.splitext(wanted)
        return f"{stem}.{os.getpid()}{suffix}"
    return wanted


def _is_child() -> bool:
    """Whether multiprocessing started this process."""
    multiprocessing = sys.modules.get("multiprocessing")
    return multiprocessing is not None and multiprocessing.parent_process() is not None


def _report(settings: Settings) -> dict[str, Any]:
    """What one process did, written when it ends.

    ``process`` (``pid``, ``host``, ``rank``, ``program``, ``python``, ``started``, ``ended``),
    ``mode`` (off, on or auto), ``versions``, and ``models``, one for each decision: ``label``,
    ``model_class``, ``applied``, ``reason``, ``line``, ``outcomes`` (since version 2; for each of
    ``attention``, ``backends``, ``padding`` and ``reuse``: ``on``, ``reason``, ``detail``),
    ``overruled`` (whether a later one on the same model holds in its place), ``running`` (the
    attention implementation read off the model), ``optimum`` (its answer), ``forwards``,
    ``seconds`` (of host time), ``kernels`` (a list of ``kernel``, ``why_not_flash`` and
    ``forwards``), ``padding`` (``forwards``, ``trimmed``, ``tokens_given``, ``tokens_computed`` and
    ``passed_through``, a count by reason) and ``reuse`` (calls ``answered`` from what is kept,
    those of them ``from_folder``, calls ``computed``, those of them ``continued`` from a known
    prefix, ``tokens_known`` by that, ``dropped``, how often all was, ``kept_bytes``,
    ``why_no_folder`` and ``passed_through``); null where it was not measured.
    """
    # At the end of a process: a host that starts does not wait for it.
    from .. import __version__
    from . import status

    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in _LIBRARIES}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "process": {
            "pid": os.getpid(),
            "host": platform.node(),
            "rank": settings.rank,
            "program": os.path.basename(sys.argv[0]) if sys.argv else "",
            "python": platform.python_version(),
            "started": _stamp(_started),
            "ended": _stamp(time.time()),
        },
        "mode": settings.mode,
        "versions": {"sitecustomize_bt": __version__, **versions},
        "models": [model.as_data() for model in status.models()],
    }


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
