"""``reuse``: what encode reuse keeps in a folder, whether it is sound, and how to remove it."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import asdict
from pathlib import Path

from ..reuse.disk import Folder
from ..startup.settings import REUSE_DIR
from .outcome import CommandOutcome, FailedError, Table, WrongUseError

HELP = f"List, check or remove what encode reuse keeps in a folder ({REUSE_DIR})."
EXAMPLE = "sitecustomize-bt reuse ~/encoded --verify"
SCHEMA = 1

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this command takes."""
    parser.add_argument("folder", help=f"the folder that {REUSE_DIR} named")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--verify", action="store_true", help="compute every checksum again; a finding if one fails"
    )
    what.add_argument("--clear", action="store_true", help="remove everything that is kept")
    what.add_argument(
        "--older-than", metavar="AGE", type=_age, help="remove what was not used for so long: 30d"
    )


def run(options: argparse.Namespace) -> CommandOutcome:
    """List a folder, and check it or remove from it first.

    JSON: ``folder``; ``entries``, the last used first, each with ``key``, ``label``,
    ``model_class``, ``size`` in bytes, ``uses``, ``created`` and ``used`` in seconds since 1970;
    ``bytes`` of all; ``damaged``, keys (with ``--verify``); ``removed``, how many were. A finding:
    something is damaged.
    """
    path = Path(options.folder)
    if not options.folder or not path.is_dir():
        raise WrongUseError(f"there is no folder {options.folder or '(its name is empty)'}")
    folder = Folder(str(path), limit=0)
    try:
        if folder.is_foreign():
            raise WrongUseError(f"{path} holds other files, and nothing of encode reuse")
        removed = _remove(folder, options)
        damaged = folder.damaged() if options.verify else []
        kept = folder.kept()[::-1]
    except OSError as error:
        raise FailedError(f"{path} cannot be read ({error.strerror})") from error
    size = sum(one.size for one in kept)
    rows = [
        (
            one.label,
            one.model_class,
            _date(one.created),
            _date(one.used),
            f"{one.uses:,}",
            _mb(one.size),
        )
        for one in kept
    ]
    columns = ("model", "class", "kept since", "last used", "uses", "MB")
    blocks: list[Table | str] = [Table(str(path), columns, rows, numbers=(4, 5))] if rows else []
    count = f"{len(kept):,} {'entry' if len(kept) == 1 else 'entries'}"
    blocks.append(f"{count}, {_mb(size)} MB in {path}.")
    if options.clear or options.older_than is not None:
        blocks.append(f"{removed:,} removed.")
    if options.verify:
        blocks.append(f"{len(damaged):,} damaged{': ' if damaged else ''}{', '.join(damaged)}.")
    data = {
        "folder": str(path),
        "entries": [asdict(one) for one in kept],
        "bytes": size,
        "damaged": damaged,
        "removed": removed,
    }
    return CommandOutcome(bool(damaged), data, blocks)


def _remove(folder: Folder, options: argparse.Namespace) -> int:
    if options.clear:
        keys = list(folder.keys())
    elif options.older_than is not None:
        limit = time.time() - options.older_than
        keys = [one.key for one in folder.kept() if one.used < limit]
    else:
        return 0
    for key in keys:
        folder.drop(key)
    return len(keys)


def _age(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age (such as 12h, 30d or 4w)")
    return float(int(found[1]) * _UNITS[found[2]])


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"
