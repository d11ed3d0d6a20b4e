"""Whether a model fits into memory, told before it is loaded."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass

# Weights, and a share for activations, the outputs that are kept and the loading itself.
_WITH_ACTIVATIONS = 1.2
_UNITS = ("B", "kB", "MB", "GB", "TB")
_STEP = 1000


@dataclass(frozen=True)
class Room:
    """Memory that is free: in bytes, None if that cannot be told."""

    where: str
    free: int | None


def rooms(device: str, limit: int | None) -> list[Room]:
    """Where a model has to fit that is to run on ``device``; it passes through main memory.

    ``limit``: what may be taken, at most.
    """
    import torch

    found = [Room("main memory", _main_memory())]
    placed = torch.device(device)
    if placed.type == "cuda":
        found.append(Room(device, torch.cuda.mem_get_info(placed.index)[0]))
    return [Room(room.where, _least(room.free, limit)) for room in found]


def needed(weights_bytes: int) -> int:
    """What a model takes while it runs, roughly."""
    return int(weights_bytes * _WITH_ACTIVATIONS)


def too_small(rooms: list[Room], need: int) -> Room | None:
    """The first of ``rooms`` that ``need`` bytes do not fit into."""
    return next((room for room in rooms if room.free is not None and room.free < need), None)


def size(number: int) -> str:
    """``16.1 GB``."""
    value, unit = float(number), 0
    while value >= _STEP and unit < len(_UNITS) - 1:
        value, unit = value / _STEP, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{number} B"


def parse(text: str) -> int:
    """Bytes from ``16GB``, ``16GiB``, ``500M`` or ``16000000000``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 16GB or 16GiB is")
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix) if prefix else 0
    return int(float(number) * (1024 if binary else _STEP) ** power)


def _main_memory() -> int | None:
    try:
        import psutil
    except ImportError:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):  # not of this system
            return None
    return int(psutil.virtual_memory().available)


def _least(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)
